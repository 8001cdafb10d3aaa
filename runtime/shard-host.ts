/**
 * What a worker and a shard are to each other.
 *
 * Owns: the shapes between the two.
 * Does not own: either (`worker.ts`, `shard.ts`).
 */
import type { Commit, DecideContext } from './commit.js'
import type { LiveEvent, Ports } from './dispatcher.js'
import type { Draft } from './envelope.js'
import type { TroupeError } from './errors.js'
import type { Journal } from './journal.js'
import type { Ownership } from './ownership.js'
import type { PlacedEvent } from './record.js'

/** What the worker gives each of its shards. */
export interface ShardHost {
  readonly journal: Journal
  readonly ports: Ports
  readonly context: DecideContext
  readonly executor: string
  /** Null where one process owns everything. */
  readonly ownership: Ownership | null
  /** Every commit is decided twice and compared (`checks.ts`). */
  readonly checks: boolean
  /** When this process began to own the journal: what the shard missed before that is time down. */
  openedAt(): number
  /** The shard's next timer is due then; null for none. */
  schedule(shard: string, dueAt: number | null): void
  /** Events of a durable commit, in order. */
  publish(shard: string, events: readonly PlacedEvent[]): void
  /** A durable commit, when messages are traced. */
  trace(shard: string, commit: Commit): void
  show(shard: string, event: LiveEvent): void
  watched(shard: string): boolean
  /** The shard stopped with a reason. */
  stopped(shard: string, reason: TroupeError): void
  /** Hands a letter to another shard; resolves when that has it, or will. */
  mail(receiver: string, draft: Draft): Promise<void>
  /** The outcome of an effect is on its way to wherever the shard is. */
  sent(shard: string, effect: string): void
}

/** How to activate. */
export interface ActivateOptions {
  /** The previous owner did not close: effects and timers count a crash. */
  readonly unclean: boolean
  readonly acceptUpgrade: boolean
}
