/**
 * Letters that are done with and are stored nevertheless.
 *
 * A server removes a letter when it is acknowledged. One that is killed may remember that it was acknowledged, and not that
 * it was removed (2.9.10): nobody gets such a letter any more, and it would be counted, and waited for, for good. Or it
 * remembers that a letter is to be acknowledged, and not that it was removed, or has it and never delivers it again.
 *
 * Owns: finding such letters of a partition, and deleting them; consumers that wait for what does not come.
 * Does not own: reading (`jetstream-pull.ts`), when the server may have been killed (`nats-mail.ts`).
 *
 * - MLO1 A letter that was acknowledged goes, also when the server was killed before it removed it; one that was not, stays.
 * - MLO2 A consumer that waits for acknowledgements and has delivered nothing for longer than any letter stays away is made
 *   anew: whatever is stored comes again, and whoever has taken it knows.
 */
import type { ConsumerInfo, MsgRequest } from '@nats-io/jetstream'
import type { NatsLink } from './nats-connection.js'
import type { Subjects } from './subjects.js'

/** Name of the consumer of a partition's mail. */
export function consumerOf(partition: number): string {
  return `p${partition}`
}

/** Looks for letters that stayed, once for each partition that is added. */
export class MailLeftovers {
  readonly #link: NatsLink
  readonly #subjects: Subjects
  readonly #stream: string
  /** Partitions that are to be looked through. */
  readonly #due = new Set<number>()
  readonly #looking = new Set<number>()
  /** How much the consumers of partitions that are due had delivered, and since when. */
  readonly #delivered = new Map<number, { readonly count: number; readonly since: number }>()
  readonly #stuckMs: number

  /** @param stuckMs longer than any letter stays away before it comes again */
  constructor(link: NatsLink, subjects: Subjects, stuckMs: number) {
    this.#link = link
    this.#subjects = subjects
    this.#stream = subjects.stream('mail')
    this.#stuckMs = stuckMs
  }

  /** The server may have been killed since this partition was looked through. */
  add(partition: number): void {
    this.#due.add(partition)
  }

  /** The partition is not read here any more. */
  drop(partition: number): void {
    this.#due.delete(partition)
    this.#delivered.delete(partition)
  }

  /** Looks through a partition that is due, again and again until nothing is left that may still be found. Never rejects. */
  look(partition: number): void {
    if (!this.#due.has(partition) || this.#looking.has(partition)) return
    this.#looking.add(partition)
    this.#delete(partition)
      .then((isDone) => {
        if (isDone) this.drop(partition)
      })
      // The server is away: it is looked again when more letters are asked for.
      .catch(() => undefined)
      .finally(() => this.#looking.delete(partition))
  }

  /** Resolves with false as long as something is not acknowledged yet: what lies behind it may be done with or not. */
  async #delete(partition: number): Promise<boolean> {
    const { streams, consumers } = this.#link.manager
    const info = await consumers.info(this.#stream, consumerOf(partition))
    const upTo = acknowledgedUpTo(info)
    for (let seq = 1; seq <= upTo; ) {
      // The client's type does not know that a stream may be asked so, too.
      const query = { seq, next_by_subj: this.#subjects.mails(partition) } as MsgRequest
      const letter = await streams.getMessage(this.#stream, query)
      if (letter === null || letter.seq > upTo) break
      await streams.deleteMessage(this.#stream, letter.seq, false)
      seq = letter.seq + 1
    }
    if (info.num_ack_pending === 0) return true
    if (this.#isStuck(partition, info)) await consumers.delete(this.#stream, consumerOf(partition))
    return false
  }

  #isStuck(partition: number, { delivered }: ConsumerInfo): boolean {
    const count = delivered.consumer_seq
    const known = this.#delivered.get(partition)
    if (known?.count === count) return performance.now() - known.since > this.#stuckMs
    this.#delivered.set(partition, { count, since: performance.now() })
    return false
  }
}

/** Every letter up to this one that was delivered is acknowledged. Letters are delivered in their order. */
function acknowledgedUpTo({ num_ack_pending, delivered, ack_floor }: ConsumerInfo): number {
  return num_ack_pending === 0 ? delivered.stream_seq : ack_floor.stream_seq
}
