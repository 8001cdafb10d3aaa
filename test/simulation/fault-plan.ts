/** Which faults a seed has, and how often: each seed draws its own subset and rates (swarm testing). */
import type { SeededRandom } from './seeded-random.js'

/** Places in the code where a process may be made to die. */
export type CrashWindow =
  | 'before append'
  | 'append landed'
  | 'outcome to append'
  | 'append to dispatch'
  | 'before dispatched record'
  | 'dispatched record landed'
  | 'dispatched to start'
  | 'blob to append'
  | 'in recovery'
  | 'in snapshot'
  | 'in close'

/** Work that kills the process each time. */
export type Poison = 'none' | 'tool' | 'once' | 'model' | 'timer'

/** Rates are probabilities at each occasion; counts are upper bounds of a seed. */
export interface FaultPlan {
  /** Crashes at most, poison not counted. */
  crashes: number
  readonly crash: Readonly<Record<CrashWindow, number>>
  /** Crashes at moments that have nothing to do with the work. */
  readonly randomCrashes: number
  readonly poison: Poison
  readonly appendFails: number
  readonly appendAmbiguous: number
  readonly appendSlow: number
  readonly slowMs: number
  readonly fullPeriods: number
  /** Snapshots at random, beside those of closing. */
  readonly snapshots: number
  readonly snapshotFails: number
  readonly rotten: number
  readonly otherBranch: number
  readonly duplicate: number
  readonly late: number
  readonly modelFails: number
  readonly modelHangs: number
  readonly modelLies: boolean
  readonly modelNoUsage: number
  readonly invalidCalls: number
  readonly misfits: number
  readonly toolFails: number
  readonly toolHangs: number
  readonly ignoresCancel: number
  readonly large: number
  readonly pauses: number
  readonly cancels: number
  readonly redefinitions: number
  readonly closes: number
  readonly clockSteps: number
  readonly collisions: boolean
  /** The client does not keep its crews in memory. */
  readonly unpinned: boolean
  readonly idleMs: number
  /** The product decides every commit twice. */
  readonly checks: boolean
}

const windows: readonly CrashWindow[] = [
  'before append',
  'append landed',
  'outcome to append',
  'append to dispatch',
  'before dispatched record',
  'dispatched record landed',
  'dispatched to start',
  'blob to append',
  'in recovery',
  'in snapshot',
  'in close',
]
/** How often a window is passed in a seed, roughly: rare ones get higher rates. */
const rarity: Readonly<Record<CrashWindow, number>> = {
  'before append': 0.015,
  'append landed': 0.015,
  'outcome to append': 0.03,
  'append to dispatch': 0.03,
  'before dispatched record': 0.12,
  'dispatched record landed': 0.12,
  'dispatched to start': 0.12,
  'blob to append': 0.3,
  'in recovery': 0.15,
  'in snapshot': 0.25,
  'in close': 0.3,
}

/** Draws the faults of a seed. */
export function drawFaults(random: SeededRandom): FaultPlan {
  const some = (enabled: number, rate: number) => (random.chance(enabled) ? rate * (0.5 + random.next()) : 0)
  const count = (enabled: number, most: number) => (random.chance(enabled) ? random.int(1, most) : 0)
  return {
    crashes: random.pick([0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 6]),
    crash: Object.fromEntries(windows.map((window) => [window, some(0.4, rarity[window])])) as FaultPlan['crash'],
    randomCrashes: count(0.3, 2),
    poison: random.weighted({ none: 88, tool: 3, once: 3, model: 3, timer: 3 }),
    appendFails: some(0.25, 0.02),
    appendAmbiguous: some(0.25, 0.02),
    appendSlow: some(0.6, 0.4),
    slowMs: random.pick([2, 20, 200]),
    fullPeriods: count(0.12, 2),
    snapshots: some(0.7, 0.08),
    snapshotFails: some(0.15, 0.3),
    rotten: some(0.12, 0.5),
    otherBranch: some(0.2, 0.6),
    duplicate: some(0.35, 0.06),
    late: some(0.5, 0.7),
    modelFails: some(0.5, 0.08),
    modelHangs: some(0.15, 0.03),
    modelLies: random.chance(0.5),
    modelNoUsage: some(0.3, 0.1),
    invalidCalls: some(0.5, 0.1),
    misfits: some(0.4, 0.5),
    toolFails: some(0.5, 0.1),
    toolHangs: some(0.2, 0.04),
    ignoresCancel: some(0.5, 0.5),
    large: some(0.1, 0.06),
    pauses: count(0.2, 3),
    cancels: count(0.2, 2),
    redefinitions: count(0.2, 2),
    closes: count(0.25, 2),
    clockSteps: count(0.1, 3),
    collisions: random.chance(0.5),
    unpinned: random.chance(0.12),
    idleMs: random.pick([4_000, 30_000]),
    checks: random.chance(0.02),
  }
}
