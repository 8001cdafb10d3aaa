/**
 * `npm run soak [-- AREA [PART …]] [--scale N] [--keep] [--no-bench] [--file PATH]`: the full counts of what `npm test` runs at a tenth, written to
 * `test/soak.json` together with the commit they were run on; an area that is not run stays as it was, and so do parts that
 * are not named, if nothing but what is told of them has changed since, or, with `--keep`, whatever has: then each of them
 * names the commit that it was run on. Of `core` the simulation runs beside the
 * other parts; the faults of `workers` and of `governance` are judged by time too, and run one after the other. The benchmarks
 * run alone at the end; the file is of recorded tool calls, and without one the bench `loops` is left out.
 */
import { execFileSync, spawn } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import type { BudgetReport } from './fault/budget-trials.js'
import type { KillReport } from './fault/kill-trials.js'
import { type Soaks, soakTable, withTable } from './soak-table.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    scale: { type: 'string', default: '1' },
    bench: { type: 'boolean', default: true },
    keep: { type: 'boolean' },
    file: { type: 'string' },
  },
  allowNegative: true,
})
/** Benches of each area. */
const benches: Readonly<Record<string, readonly string[]>> = {
  core: ['round', 'growth', 'store', 'journal', 'resume', 'cold', 'throughput'],
  workers: ['mail', 'stored', 'scale', 'fanout', 'takeover', 'restart', 'history'],
  governance: ['governance', 'round', 'growth', ...(values.file === undefined ? [] : ['loops', '--file', values.file])],
}
const areas = Object.keys(benches)
const [area = 'core', ...named] = positionals
if (!areas.includes(area)) {
  process.stderr.write(`no area ${area}; there are: ${areas.join(', ')}\n`)
  process.exit(2)
}
const scale = Number(values.scale)
const commit = execFileSync('git', ['rev-parse', 'HEAD'], { cwd: root, encoding: 'utf8' }).trim()
/** What a soak itself writes is no change of what it runs. */
const others = ['.', ':!test/soak.json', ':!*.md']
const status = ['status', '--porcelain', '--untracked-files=no', '--', ...others]
const dirty = execFileSync('git', status, { cwd: root, encoding: 'utf8' }).trim() !== ''
const base = Number.parseInt(commit.slice(0, 8), 16)
const say = (text: string): void => void process.stderr.write(`${new Date().toISOString().slice(11, 19)} ${text}\n`)

interface Part {
  readonly code: number | null
  readonly seconds: number
  readonly stdout: string
}

/** Runs a program of the repository; its stderr passes through. */
function run(args: readonly string[], built = false): Promise<Part> {
  const start = performance.now()
  const child = spawn(process.execPath, args, {
    cwd: root,
    env: {
      ...process.env,
      // Benches measure the built package, everything else runs on the source.
      JITI_TSCONFIG_PATHS: built ? undefined : 'true',
      TROUPE_SCALE: String(scale),
      TROUPE_SEED: String(base % 1_000_000),
      // What is printed is read.
      NO_COLOR: '1',
      FORCE_COLOR: undefined,
    },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let stdout = ''
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()))
  return new Promise((resolve) => {
    child.once('close', (code) => resolve({ code, seconds: Math.round((performance.now() - start) / 1_000), stdout }))
  })
}

const typescript = ['--import', 'jiti/register']
/** The last line of JSON that a program printed. */
function lastJson(stdout: string): Record<string, unknown> {
  const line = stdout
    .trim()
    .split('\n')
    .findLast((text) => text.startsWith('{'))
  return line === undefined ? {} : (JSON.parse(line) as Record<string, unknown>)
}

async function simulation(): Promise<object> {
  const seeds = Math.round(100_000 * scale)
  say(`simulation: ${seeds} seeds`)
  const { compileCopy } = await import('./simulation/compiled.js')
  using copy = compileCopy()
  const part = await run([copy.main, '--seeds', String(seeds), '--base', String(base), '--json'])
  return { ok: part.code === 0, seconds: part.seconds, ...lastJson(part.stdout) }
}

const vitest = ['node_modules/vitest/vitest.mjs', 'run', '--project']

/** A vitest run of the slow tests, or of another project's, by file. */
async function tests(name: string, files: readonly string[], project = 'real'): Promise<object> {
  say(`${name}: ${files.join(' ')}`)
  const part = await run([...vitest, project, '--reporter', 'json', ...files])
  const report = lastJson(part.stdout) as { numPassedTests?: number; numFailedTests?: number; numPendingTests?: number }
  return {
    ok: part.code === 0,
    seconds: part.seconds,
    passed: report.numPassedTests ?? 0,
    failed: report.numFailedTests ?? 0,
    skipped: report.numPendingTests ?? 0,
  }
}

async function kills(): Promise<object> {
  const { runKillTrials } = await import('./fault/kill-trials.js')
  const count = Math.round(300 * scale)
  say(`kills: ${count}`)
  const report: KillReport = await runKillTrials({ kills: count, seed: base })
  return { ok: report.violations.length === 0, ...report }
}

async function budget(): Promise<object> {
  const { runBudgetTrials } = await import('./fault/budget-trials.js')
  const trials = Math.max(1, Math.round(20 * scale))
  say(`budget: ${trials} trials`)
  const report: BudgetReport = await runBudgetTrials({ trials, seed: base })
  return { ok: report.violations.length === 0, ...report }
}

async function bench(): Promise<object> {
  say('benches')
  const part = await run(['--expose-gc', ...typescript, 'test/bench/main.ts', ...benches[area]!, '--json'], true)
  const lines = part.stdout
    .trim()
    .split('\n')
    .filter((line) => line.startsWith('{'))
  return { ok: part.code === 0, seconds: part.seconds, results: lines.map((line) => JSON.parse(line) as unknown) }
}

/** A part of the workers' area. */
async function faults<Report extends { readonly violations: readonly string[] }>(
  name: string,
  run: () => Promise<Report>,
): Promise<object> {
  say(name)
  const report = await run()
  return { ok: report.violations.length === 0, ...report }
}

const mutantTests = ['test/simulation/mutants.test.ts']
const times = (full: number): number => Math.max(1, Math.round(full * scale))

const workerSteps: Readonly<Record<string, () => Promise<object>>> = {
  failover: () =>
    faults('failover', async () => {
      const { leaseMs, runFailover } = await import('./fault/failover-trials.js')
      const counts = { each: times(20), random: times(100), lanes: times(200), slower: 150, together: 40 }
      const idle = { idle: times(1_000), idleBytes: 1_000_000, idleNamespaces: 3 }
      const report = await runFailover({ seed: base, ...counts, ...idle, onProgress: say })
      const slowest = Math.max(report.takeoverP99Ms, report.takeoverIdleP99Ms)
      const late = slowest > leaseMs + 2_000 ? [`takeovers take ${slowest} ms`] : []
      return { ...report, violations: [...report.violations, ...late] }
    }),
  stops: () =>
    faults('stops', async () => {
      const { runStops } = await import('./fault/stop-trials.js')
      const report = await runStops({ seed: base, count: times(50), lanes: 24 })
      const missed = report.stops < times(50) ? [`only ${report.stops} stops were made`] : []
      return { ...report, violations: [...report.violations, ...missed] }
    }),
  cluster: () =>
    faults('cluster', async () => {
      const { runClusterFaults } = await import('./fault/cluster-trials.js')
      return runClusterFaults({ seed: base, kills: times(30), truncations: times(20), lanes: 24, onProgress: say })
    }),
  links: () =>
    faults('links', async () => {
      const { runLinkFaults } = await import('./fault/link-trials.js')
      const report = await runLinkFaults({ seed: base, count: times(30), lanes: 24 })
      const late = Object.entries(report.noticedMs).filter(([, ms]) => ms > 5_000)
      return { ...report, violations: [...report.violations, ...late.map(([kind, ms]) => `${kind}: ${ms} ms`)] }
    }),
  rolling: () =>
    faults('rolling', async () =>
      (await import('./fault/rolling-trials.js')).runRollingRestarts({ seed: base, count: times(10), lanes: 24 }),
    ),
  moves: () =>
    faults('moves', async () =>
      (await import('./fault/move-trials.js')).runMoves({ seed: base, kills: times(40), lanes: 120 }),
    ),
  mail: () =>
    faults('mail', async () => {
      const { runMailTrials } = await import('./fault/mail-trials.js')
      const { runMailKills } = await import('./fault/mail-kill-trials.js')
      const { runMailMutant } = await import('./fault/worker-mutants.js')
      const counts = { seed: base, each: times(20), random: times(40) }
      const workers = await runMailTrials({
        ...counts,
        servers: times(20),
        together: 20,
        pairs: 6,
        rings: 3,
        crowds: 2,
      })
      const store = await runMailKills(counts)
      const mutant = runMailMutant()
      const missed = mutant.caughtBy === null ? [`the mutant ${mutant.mutant} was not caught`] : []
      return { workers, store, mutant, violations: [...workers.violations, ...store.violations, ...missed] }
    }),
  mutants: () =>
    faults('mutants', async () => {
      const { fenceMutants, runFenceMutant } = await import('./fault/worker-mutants.js')
      const results = fenceMutants.map((mutant) => runFenceMutant(mutant, 8, base))
      const missed = results.filter(({ caughtBy }) => caughtBy === null)
      return { caught: results.length - missed.length, results, violations: missed.map(({ mutant }) => mutant) }
    }),
}

/** Mutants of what governs a crew. */
const governanceMutants = [
  ...['allow-resets-ladder', 'answer-counts-twice', 'approval-of-any-call', 'attempt-not-counted'],
  ...['breaker-two-probes', 'budget-checked-after-call', 'flow-loser-goes-on', 'flow-stage-too-early'],
  ...['handoff-shows-all', 'refund-lost', 'rest-not-returned', 'restart-keeps-generation', 'round-plan-kept'],
  ...['round-tools-ignored', 'router-forgets-dead', 'settle-not-idempotent', 'share-not-booked'],
  'workers-probe-not-stored',
]

const governanceSteps: Readonly<Record<string, () => Promise<object>>> = {
  graphs: async () => {
    say('graphs')
    const part = await run([...vitest, 'unit', 'test/machines/graphs.test.ts'])
    const graphs = [...part.stdout.matchAll(/(\w+): (\d+) states, (\d+) steps/g)].map(([, machine, states, steps]) => {
      return { machine, states: Number(states), steps: Number(steps) }
    })
    const sum = (of: 'states' | 'steps') => graphs.reduce((total, each) => total + each[of], 0)
    return { ok: part.code === 0, seconds: part.seconds, states: sum('states'), steps: sum('steps'), graphs }
  },
  differential: () => tests('differential', ['test/runtime/differential'], 'unit'),
  tree: () =>
    faults('tree', async () =>
      (await import('./fault/tree-trials.js')).runTreeTrials({ trials: times(20), seed: base % 1_000_000 }),
    ),
  shared: () =>
    faults('shared', async () => {
      const { runSharedBudgetTrials } = await import('./fault/shared-budget-trials.js')
      return runSharedBudgetTrials({ trials: times(100), seed: base % 1_000_000 })
    }),
  probes: () =>
    faults('probes', async () => {
      const { runProbeTrials } = await import('./fault/probe-trials.js')
      return runProbeTrials({ trials: times(50), seed: base % 1_000_000, lanes: 24, onProgress: say })
    }),
  mutants: () => tests('mutants', [...mutantTests, '-t', governanceMutants.join('|')]),
}

const file = fileURLToPath(new URL('soak.json', import.meta.url))
const parts: Record<string, object> = { ...(named.length > 0 ? keptParts() : {}) }
const write = (): Soaks => {
  const soaks = JSON.parse(readFileSync(file, 'utf8')) as Soaks
  const all = { ...soaks, [area]: { commit, dirty, scale, node: process.version, parts } }
  writeFileSync(file, `${JSON.stringify(all, null, 2)}\n`)
  return all
}
/** Parts of this area that were run by the same counts: on the same code, or each with its commit. */
function keptParts(): Record<string, object> {
  const soaks = JSON.parse(readFileSync(file, 'utf8')) as Partial<
    Record<string, { commit: string; dirty: boolean; scale: number; parts: Record<string, object> }>
  >
  const before = soaks[area]
  if (before === undefined || before.dirty || before.scale !== scale) return {}
  if (values.keep === true) {
    const { commit: at, parts: all } = before
    return Object.fromEntries(Object.entries(all).map(([name, part]) => [name, { commit: at, ...part }]))
  }
  const difference = ['diff', '--name-only', before.commit, 'HEAD', '--', ...others]
  return execFileSync('git', difference, { cwd: root, encoding: 'utf8' }).trim() === '' ? before.parts : {}
}

/** One part after the other. */
async function lane(steps: Readonly<Record<string, () => Promise<object>>>): Promise<void> {
  for (const [name, step] of Object.entries(steps)) {
    if (named.length > 0 && !named.includes(name)) continue
    parts[name] = await step().catch((error: unknown) => ({ ok: false, error: String(error) }))
    say(`${name}: ${(parts[name] as { ok: boolean }).ok ? 'held' : 'BROKEN'}`)
    write()
  }
}
const storageTests = ['test/fault/storage.slow.test.ts', 'test/fault/bit-flips.slow.test.ts']
// The simulation keeps its own time; the others wait for disks and processes beside it. Benches need the machine alone.
const coreLanes = () =>
  Promise.all([
    lane({ simulation }),
    lane({
      kills,
      budget,
      storage: () => tests('storage', storageTests),
      mutants: () => tests('mutants', mutantTests),
    }),
  ])
await (area === 'core' ? coreLanes() : lane(area === 'workers' ? workerSteps : governanceSteps))
if (values.bench) await lane({ bench })
if (scale === 1 && 'bench' in parts) {
  const readme = fileURLToPath(new URL('../README.md', import.meta.url))
  writeFileSync(readme, withTable(readFileSync(readme, 'utf8'), soakTable(write())))
}
process.exit(Object.values(parts).every((part) => (part as { ok: boolean }).ok) ? 0 : 1)
