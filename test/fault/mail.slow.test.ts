/**
 * Mail between crews under `kill -9`: counts are a tenth of the full ones; `npm run soak workers` runs all. `TROUPE_SEED`
 * repeats a run's plan; what a kill hits also depends on the machine.
 */
import { expect, test } from 'vitest'
import { mailKillWindows, runMailKills } from './mail-kill-trials.js'
import { mailWindows, runMailTrials } from './mail-trials.js'
import { runMailMutant } from './worker-mutants.js'

const seed = Number(process.env['TROUPE_SEED'] ?? Date.now() % 1_000_000)
console.log(`mail: TROUPE_SEED=${seed}`)
const longMs = 600_000
const tell = (name: string, report: { readonly violations: readonly string[] }): void =>
  console.log(
    `${name}: ${JSON.stringify({ ...report, violations: report.violations.length })}\n${report.violations.join('\n')}`,
  )

test(
  'mail: kill -9 of the worker of either crew in every window: each delegation ends once, each task is taken once, in order',
  async () => {
    const report = await runMailTrials({
      seed,
      each: 2,
      random: 4,
      servers: 4,
      together: 30,
      pairs: 4,
      rings: 2,
      crowds: 1,
    })
    tell('mail', report)
    expect(report.violations).toEqual([])
    for (const window of mailWindows) expect(report.perWindow[window], window).toBeGreaterThanOrEqual(2)
    expect(report.perWindow['random']).toBeGreaterThanOrEqual(4)
    // Both ends were reached, and the kills hit something.
    expect(report.ends['answered']).toBeGreaterThan(report.kills)
    expect(report.ends['DELEGATION_FAILED']).toBeGreaterThan(0)
  },
  longMs,
)

test(
  'mail: kill -9 of the process that has both crews in one store, in every window: each delegation ends once, in order',
  async () => {
    const report = await runMailKills({ seed, each: 2, random: 4 })
    tell('mail in one store', report)
    expect(report.violations).toEqual([])
    for (const window of mailKillWindows) expect(report.perWindow[window], window).toBeGreaterThanOrEqual(2)
    expect(report.ends['answered']).toBeGreaterThan(report.kills)
    expect(report.ends['DELEGATION_FAILED']).toBeGreaterThan(0)
  },
  longMs,
)

test('mail: the mutant without a credit per shard lets one stuck shard stop its partition, and is caught', () => {
  const { caughtBy, example } = runMailMutant()
  expect(caughtBy).toBe('mail tests')
  expect(example).toContain('MLR2 stuck')
})
