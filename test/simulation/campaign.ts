/** A campaign: many seeds, in one process or two, and what they came to together. */
import { execFileSync, fork } from 'node:child_process'
import { constants, setPriority } from 'node:os'
import { dirname, resolve as resolvePath } from 'node:path'
import { fileURLToPath } from 'node:url'
import { branches, clusterBranches, clusterFaults, faults, type Invariant } from './notes.js'
import type { SeedResult } from './seed-result.js'
import { runSeed } from './simulation.js'

/** A seed that broke a promise. */
export interface FailedSeed {
  readonly seed: number
  readonly invariant: Invariant
  readonly detail: string
  /** Further broken promises of the same seed. */
  readonly more: number
  /** The command that replays it. */
  readonly replay: string
}

/** What a campaign came to. Plain data. */
export interface CampaignResult {
  readonly base: number
  readonly seeds: number
  readonly failed: readonly FailedSeed[]
  /** Seeds that ended with another hash when they were run again. */
  readonly unsteady: readonly number[]
  readonly replayed: number
  readonly commits: readonly number[]
  readonly faults: readonly number[]
  readonly rounds: readonly number[]
  readonly delegations: readonly number[]
  readonly onceCalls: readonly number[]
  /** Seeds that reached each fault and branch. */
  readonly reached: Readonly<Record<string, number>>
  /** Processor time of all processes. */
  readonly cpuMs: number
  readonly wallMs: number
}

/** How to run a campaign. */
export interface CampaignOptions {
  /** First seed; the others follow. */
  readonly base: number
  readonly seeds: number
  /** Processes of their own. @default 0: this one */
  readonly processes?: number
  /** The program to run, of another copy of the tree. @default the one beside this file */
  readonly main?: string
  /** Workers that share a journal. @default 1 */
  readonly workers?: number
  /** One of so many seeds is run twice, and must come to the same hash. @default 100; 0 for none */
  readonly twiceEvery?: number
}

/** The line that runs a seed again; `--trace` shows what happened. */
export const replayLine = (seed: number, workers = 1) =>
  `JITI_TSCONFIG_PATHS=true node --import jiti/register test/simulation/main.ts --seed ${seed}${workers > 1 ? ` --workers ${workers}` : ''}`

/** Hash of the commit that is tested; a fixed one where there is none. */
export function commitOf(): string {
  try {
    return execFileSync('git', ['rev-parse', 'HEAD'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
  } catch {
    return '20250101'
  }
}

/** The seeds of a commit: distant ones for each hash. */
export function baseOf(commit: string): number {
  return Number.parseInt(commit.slice(0, 8), 16) * 1_000
}

/** Runs a campaign. */
export async function runCampaign(options: CampaignOptions): Promise<CampaignResult> {
  const processes = options.processes ?? 0
  const started = performance.now()
  if (processes === 0) return runHere(options)
  const share = Math.ceil(options.seeds / processes)
  const parts = Array.from({ length: processes }, (_, index) => ({
    ...options,
    base: options.base + index * share,
    seeds: Math.max(0, Math.min(share, options.seeds - index * share)),
  }))
  const results = await Promise.all(parts.filter(({ seeds }) => seeds > 0).map(runInChild))
  return { ...results.reduce(merge), wallMs: performance.now() - started }
}

async function runHere({ base, seeds, workers = 1, twiceEvery = 100 }: CampaignOptions): Promise<CampaignResult> {
  const started = performance.now()
  const cpu = process.cpuUsage()
  const failed: FailedSeed[] = []
  const unsteady: number[] = []
  const results: SeedResult[] = []
  const reached: Record<string, number> = {}
  let replayed = 0
  for (let seed = base; seed < base + seeds; seed++) {
    const result = await runSeed(seed, { workers })
    results.push(result)
    for (const name of result.sometimes) reached[name] = (reached[name] ?? 0) + 1
    const [first] = result.violations
    if (first !== undefined)
      failed.push({ seed, ...first, more: result.violations.length - 1, replay: replayLine(seed, workers) })
    if (twiceEvery === 0 || seed % twiceEvery !== 0) continue
    replayed += 1
    if ((await runSeed(seed, { workers })).hash !== result.hash) unsteady.push(seed)
  }
  const { user, system } = process.cpuUsage(cpu)
  return {
    base,
    seeds,
    failed,
    unsteady,
    replayed,
    commits: results.map(({ commits }) => commits),
    faults: results.map((result) => result.faults),
    rounds: results.map(({ rounds }) => rounds),
    delegations: results.map(({ delegations }) => delegations),
    onceCalls: results.map(({ onceCalls }) => onceCalls),
    reached,
    cpuMs: (user + system) / 1_000,
    wallMs: performance.now() - started,
  }
}

function merge(one: CampaignResult, other: CampaignResult): CampaignResult {
  const reached = { ...one.reached }
  for (const [name, count] of Object.entries(other.reached)) reached[name] = (reached[name] ?? 0) + count
  return {
    base: Math.min(one.base, other.base),
    seeds: one.seeds + other.seeds,
    failed: [...one.failed, ...other.failed],
    unsteady: [...one.unsteady, ...other.unsteady],
    replayed: one.replayed + other.replayed,
    commits: [...one.commits, ...other.commits],
    faults: [...one.faults, ...other.faults],
    rounds: [...one.rounds, ...other.rounds],
    delegations: [...one.delegations, ...other.delegations],
    onceCalls: [...one.onceCalls, ...other.onceCalls],
    reached,
    cpuMs: one.cpuMs + other.cpuMs,
    wallMs: Math.max(one.wallMs, other.wallMs),
  }
}

/** Runs a part of a campaign in a process of its own. */
function runInChild({ base, seeds, workers = 1, twiceEvery = 100, main }: CampaignOptions): Promise<CampaignResult> {
  const program = main ?? fileURLToPath(new URL('./main.ts', import.meta.url))
  const args = ['--base', String(base), '--seeds', String(seeds), '--twice-every', String(twiceEvery), '--child']
  if (workers > 1) args.push('--workers', String(workers))
  return new Promise((resolve, reject) => {
    let result: CampaignResult | null = null
    const child = fork(program, args, {
      cwd: resolvePath(dirname(program), '../..'),
      // Short-lived objects are all there is: a larger nursery saves a fifth of the time.
      execArgv: ['--max-semi-space-size=64', ...(program.endsWith('.ts') ? ['--import', 'jiti/register'] : [])],
      env: { ...process.env, JITI_TSCONFIG_PATHS: 'true', VITEST: '' },
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    })
    // It has a clock of its own: whoever waits for the real one beside it goes first.
    if (child.pid !== undefined) setPriority(child.pid, constants.priority.PRIORITY_LOW)
    child.on('message', (message) => (result = message as CampaignResult))
    child.on('error', reject)
    child.on('exit', (code) => {
      if (result !== null) resolve(result)
      else reject(new Error(`the process of the seeds from ${base} on ended with ${code}`))
    })
  })
}

/** The middle value. */
export function median(values: readonly number[]): number {
  return [...values].sort((one, other) => one - other)[values.length >> 1] ?? 0
}

/** What a campaign is judged by. */
export interface Summary {
  readonly seeds: number
  readonly violations: number
  readonly medianCommits: number
  readonly medianFaults: number
  readonly leastRounds: number
  readonly leastDelegations: number
  readonly leastOnceCalls: number
  /** Faults and branches that no seed reached. */
  readonly neverReached: readonly string[]
  readonly unsteady: readonly number[]
  readonly replayed: number
  readonly cpuMsPerSeed: number
  readonly seedsPerSecond: number
}

/** What only one process on its own store comes to: among several workers other code does it. */
const aloneOnly: readonly string[] = ['append failed, landed', 'append reloaded: landed', 'orphaned blob dropped']

/** Sums a campaign up. */
export function summarize(result: CampaignResult, workers = 1): Summary {
  const cluster = workers > 1 ? [...clusterFaults, ...clusterBranches] : []
  return {
    seeds: result.seeds,
    violations: result.failed.length,
    medianCommits: median(result.commits),
    medianFaults: median(result.faults),
    leastRounds: Math.min(...result.rounds),
    leastDelegations: Math.min(...result.delegations),
    leastOnceCalls: Math.min(...result.onceCalls),
    neverReached: [...faults, ...branches, ...cluster]
      .filter((name) => workers === 1 || !aloneOnly.includes(name))
      .filter((name) => (result.reached[name] ?? 0) === 0),
    unsteady: result.unsteady,
    replayed: result.replayed,
    cpuMsPerSeed: Math.round((result.cpuMs / (result.seeds + result.replayed)) * 100) / 100,
    seedsPerSecond: Math.round((result.seeds / result.wallMs) * 1_000_00) / 100,
  }
}
