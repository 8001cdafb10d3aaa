/**
 * The ownership port: who owns which shard, when several workers share one journal.
 *
 * It decides who tries. What keeps an owner that does not know better from writing is the journal's fence: the first
 * commit of a new owner is `shard.taken`, and behind it nobody else's record lands.
 *
 * Owns: the shapes that cross the port, what whoever asks the wrong one is told.
 * Does not own: leases and lists (`transport/nats-*.ts`), what an owner does (`worker.ts`, `shard.ts`).
 *
 * An implementation guarantees:
 * - OW1 While a lease is held nobody else has its name, and the name of an owner, made of worker and lease, is never used again.
 * - OW2 `owns` is false as soon as the lease may have run out, by this process's own monotonic clock.
 * - OW3 A letter whose `send` resolved reaches the shard's owner at least once, however often owners change.
 */
import type { CrewVersion } from './crew-version.js'
import type { Draft } from './envelope.js'
import { TroupeError } from './errors.js'

/**
 * Who owns what. Embedded there is none: one process owns everything in its store. Of those who have the code of a crew, those
 * who have the version that is asked for go before others: everybody asks for the one that the shard's journal tells.
 */
export interface Ownership {
  /** This process in records: `<worker>.<epoch>`, later `<worker>.<epoch>-<process>`. Another one after each lease. */
  readonly owner: string
  /** Whether this process is to own the shard, and may still act. @param crew what it runs; empty when it has no crew yet */
  owns(shard: string, crew: CrewVersion): boolean
  /** Whether an owner of this name may be alive: it has that very lease. */
  lives(owner: string): boolean
  /** Whether the process behind an owner lives, under whatever lease it has now. */
  isRunning(owner: string): boolean
  /**
   * Name of the process behind an owner: one of its owners, the same for all of them. Null for this process, and for one
   * that gave its lease back: it did not crash.
   */
  crashOf(owner: string): string | null
  /** Epoch milliseconds when an owner that is gone was seen last; null when nobody here saw it. */
  lastSeen(owner: string): number | null
  /**
   * Asks a living owner to leave a shard, and waits until it has. Resolves in any case: after a while it is not waited
   * for, the fence keeps it out.
   */
  release(shard: string, owner: string): Promise<void>
  /**
   * Asks the process of an executor which of these effects it still works on, or has sent the outcome of. Null when no
   * answer came in a while; it is asked again then, as long as it runs.
   */
  working(executor: string, shard: string, effects: readonly string[]): Promise<readonly string[] | null>
  /** Tells an executor that nobody waits for these any more. Best effort. */
  cancel(executor: string, shard: string, effects: readonly string[]): void
  /** Wants no shards any more; what this process works on goes on, and it is known to live. */
  withdraw(): Promise<void>
  /** Sends an outcome to wherever the shard is now. Resolves when it will get there. */
  send(shard: string, draft: Draft): Promise<void>
  /** Resolves when the letters that are stored for a shard now were taken, or after a while: an executor that is gone may have sent one last. */
  mailTaken(shard: string): Promise<void>
  /** Name of the worker that is to own a shard; null when there is none. */
  ownerOf(shard: string, crew: CrewVersion): string | null
  /**
   * Gives a shard to a worker, for as long as that lives and has the code of its crew, in whatever version; null: to
   * whomever the rule says.
   * Resolves with the name of the worker that is to own it now, when others know or will.
   * @throws TroupeError `WORKER_UNKNOWN`, `WORKER_UNFIT` for one without that code.
   */
  assign(shard: string, crew: CrewVersion, worker: string | null): Promise<string>
  /**
   * Asks a worker to take a shard that it is to own, and waits until it has, or knows that nothing is to be done for it.
   * @throws TroupeError why it cannot, `WORKER_UNKNOWN` when it is gone.
   */
  handOver(shard: string, worker: string): Promise<void>
  /**
   * Called after workers came or went, or the own lease was lost or taken again.
   * @param shard the only one that may have another owner now; undefined: any
   * @param gains false when others came or offer more, and that is all: this worker owns nothing that it did not own before
   */
  onChange: (shard?: string, gains?: boolean) => void
}

/** Whose a shard is, as far as a worker knows: its own, another worker's, or nobody's who lives. */
export type Whose = 'own' | 'other' | 'nobody'

/** What whoever asks a worker for another's shard is told. */
export function elsewhere(id: string): TroupeError {
  return new TroupeError('SHARD_ELSEWHERE', `${id} belongs to another worker`, { retryable: true })
}
