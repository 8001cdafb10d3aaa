/** What the parts of a simulation share: one object a seed. */
import type { Draft, Envelope } from '../../runtime/envelope.js'
import type { JournalRecord } from '../../runtime/journal.js'
import type { Scope } from '../../runtime/scope.js'
import type { Shard } from '../../runtime/shard.js'
import type { Effect } from '../../runtime/state.js'
import type { Worker } from '../../runtime/worker.js'
import type { MemoryStore } from '../../transport/memory-journal.js'
import type { CrashWindow, FaultPlan } from './fault-plan.js'
import type { Judge } from './judge.js'
import type { Fault, Notes } from './notes.js'
import type { Replica } from './replica.js'
import type { SeededRandom } from './seeded-random.js'
import type { Spoilt } from './spoilt-snapshots.js'
import type { SimulatedBreakers } from './simulated-breakers.js'
import type { SimulatedCluster, SimulatedOwnership } from './simulated-cluster.js'
import type { SimulatedStream } from './simulated-stream.js'
import type { Owner, Timeline } from './virtual-clock.js'
import type { Script } from './workload.js'

/** A process of the simulation. When it is dead, nothing that it began goes on. */
export interface SimulatedProcess extends Owner {
  readonly id: number
  worker: Worker | null
  /** Null where it owns the whole store. */
  ownership: SimulatedOwnership | null
  /** It was told to close. */
  closing: boolean
  /** Shards that it rebuilds at the moment. */
  readonly recovering: Set<string>
  /** What is under way outside of it and may still come about when it dies. */
  readonly underWay: Set<(crashed: true) => void>
}

/** The world of one seed. */
export interface World {
  readonly random: SeededRandom
  readonly timeline: Timeline
  readonly notes: Notes
  readonly judge: Judge
  readonly plan: FaultPlan
  /** Null with one process. */
  readonly cluster: SimulatedCluster | null
  readonly store: MemoryStore
  /** What several workers share; null with one process. */
  readonly stream: SimulatedStream | null
  readonly breakers: SimulatedBreakers
  /** Until when the server is slow; 0 when it is not. */
  slowUntil: number
  /** The last process did not close. */
  unclean: boolean
  /** Until when the store is full; 0 when it is not. */
  fullUntil: number
  /** When a shard was rebuilt last. */
  readonly rebuiltAt: Map<string, number>
  /** No more faults: everything has to come to its end. */
  calm: boolean
  /** Sequences of snapshots that storage has spoilt or that belong to another branch, by shard. */
  readonly spoilt: Map<string, Map<number, Spoilt>>
  replica(shard: string): Replica
  /** What runs the machines: they may fail. */
  scope(): Scope
  /** Whether the process dies here. Counts against the seed's crashes. */
  strikes(window: CrashWindow): boolean
  /** The process dies now. */
  crash(process: SimulatedProcess, fault: Fault): void
  /** Whether this piece of work kills the process each time. */
  poisons(kind: 'tool' | 'once' | 'model' | 'timer', work: string): boolean
  /** A process stands still for a while, as by a signal. */
  pause(process: SimulatedProcess): void
  /** A record is in the store. @param process whose state it left behind; null when that may have gone on meanwhile */
  landed(process: SimulatedProcess | null, record: JournalRecord, writer: string): void
  /** Gives an envelope to a shard as a redelivery or a late answer would. */
  deliver(shard: string, draft: Draft, delayMs: number): void
  /** What an agent means to do in its conversation. */
  script(shard: string, effect: Effect, base: number): Script
  /** Makes another envelope come in just before, so that the shard is busy when a timer and an outcome meet. */
  collide(shard: string, delayMs: number): void
  /** Notes a line of what happens, when somebody reads along. */
  trace(line: () => string): void
  /** True while the next append has to take so long, in milliseconds. */
  forcedSlowMs: number
}

/** Envelopes of a record that is about to be stored. */
export type Envelopes = readonly Envelope[]

/** Never answers: what a dead process asked for. */
export function never<T>(): Promise<T> {
  return new Promise<T>(() => undefined)
}

/** A shard that is active in a living process. */
export function activeIn(process: SimulatedProcess | null, shard: string): Shard | undefined {
  return process?.alive === true ? process.worker?.active.get(shard) : undefined
}
