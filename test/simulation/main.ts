/**
 * The simulation from the command line.
 *
 *     main.ts --seed N [--trace]                 one seed, everything that happened on request
 *     main.ts [--seeds N] [--base N] [--json]    a campaign; in two processes above 2,000 seeds
 *     … --workers N                              several workers over one journal
 *     main.ts --mutant NAME|all [--seeds N]      seeds on the product without one of its mechanisms
 */
import { parseArgs } from 'node:util'
import { type CampaignOptions, runCampaign, summarize } from './campaign.js'
import { listMutants, runMutant } from './mutants.js'
import { invariants } from './notes.js'
import { runSeed } from './simulation.js'

const { values } = parseArgs({
  options: {
    seed: { type: 'string' },
    seeds: { type: 'string', default: '3000' },
    base: { type: 'string', default: '1' },
    'twice-every': { type: 'string', default: '100' },
    processes: { type: 'string' },
    json: { type: 'boolean', default: false },
    trace: { type: 'boolean', default: false },
    reached: { type: 'boolean', default: false },
    workers: { type: 'string', default: '1' },
    mutant: { type: 'string', multiple: true },
    child: { type: 'boolean', default: false },
  },
})
const print = (line: string) => process.stdout.write(`${line}\n`)

async function one(seed: number): Promise<boolean> {
  const result = await runSeed(seed, { workers: Number(values.workers), ...(values.trace ? { trace: print } : {}) })
  const { sometimes, violations, ...rest } = result
  if (values.json) print(JSON.stringify({ type: 'seed', ...rest, violations, sometimes: [...sometimes] }))
  else {
    print(JSON.stringify(rest))
    for (const { invariant, detail } of violations) print(`broken: ${invariants[invariant]}: ${detail}`)
  }
  return violations.length === 0
}

async function campaign(options: CampaignOptions): Promise<boolean> {
  const result = await runCampaign(options)
  if (process.send !== undefined && values.child) {
    await new Promise((resolve) => process.send!(result, resolve))
    return true
  }
  const summary = summarize(result, options.workers)
  if (values.json) print(JSON.stringify({ type: 'simulation', base: options.base, ...summary, failed: result.failed }))
  else {
    for (const { invariant, detail, replay } of result.failed) print(`${replay}\n  ${invariants[invariant]}: ${detail}`)
    print(JSON.stringify(summary, null, 2))
  }
  if (values.reached) print(JSON.stringify(result.reached, null, 2))
  return summary.violations === 0 && summary.neverReached.length === 0 && summary.unsteady.length === 0
}

async function mutants(names: readonly string[]): Promise<boolean> {
  let caught = true
  for (const name of names.includes('all') ? listMutants() : names) {
    const result = await runMutant(name, base, seeds, Math.max(1, Number(values.processes ?? 2)))
    print(JSON.stringify({ type: 'mutant', ...result }))
    caught &&= result.rate >= 0.01
  }
  return caught
}

const seeds = Number(values.seeds)
const processes = values.child ? 0 : Number(values.processes ?? (seeds > 2_000 ? 2 : 1))
const base = Number(values.base)
const fine =
  values.seed !== undefined
    ? await one(Number(values.seed))
    : values.mutant !== undefined
      ? await mutants(values.mutant)
      : await campaign({
          base,
          seeds,
          processes,
          workers: Number(values.workers),
          twiceEvery: Number(values['twice-every']),
        })
process.exitCode = fine ? 0 : 1
