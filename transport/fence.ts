/**
 * The fence of a subject: a message lands behind the last one that its writer saw, or not at all.
 *
 * Owns: what the server is asked to compare, a message's id, what an answer means that did not come or was a refusal.
 * Does not own: messages and how they are read (`jetstream-journal.ts`), who is to write (`nats-lease.ts`).
 */
import { TroupeError } from '../runtime/errors.js'

/** What tells one message of a shard's subject from all others. */
export interface Mark {
  /** Fencing number of its writer's lease. */
  readonly epoch: number
  readonly kind: string
  /** The last sequence that it holds. */
  readonly last: number
  /** Chain hash, base64url. */
  readonly hash: string
}

/** A message that is in the subject. */
export interface Placed {
  /** Its number in the stream. */
  readonly at: number
  /** Number of the message that its writer saw last, as it says itself; null when it says nothing. */
  readonly behind: number | null
  /** Null when it cannot be read. */
  readonly mark: Mark | null
  readonly epoch: string
}

/** A message on its way. */
export interface Fenced {
  readonly shard: string
  readonly mark: Mark
  /** Number of the last message of the subject that its writer saw; 0 for none. */
  readonly behind: number
  /** Several workers may write the subject, each under its own lease. */
  readonly shared: boolean
  /**
   * The stream has copies. Their leader compares before they agree on a message, and a new one may not know yet what was
   * agreed on before it: two messages can land behind the same one. Then an acknowledgement alone says nothing.
   */
  readonly copies: boolean
}

/** What a server does for the subject of a shard. */
export interface FencedSubject {
  /** Appends unless the last message is another one than `behind`; the same id once. Gives the message's number. */
  publish(id: string, behind: number): Promise<number>
  /** The first message behind a number; null for none. */
  after(behind: number): Promise<Placed | null>
}

/**
 * Publishes a message behind the last one that its writer saw, and gives its number.
 * @throws TroupeError `SHARD_FENCED` when another owner has written, `STORE_FAILED` when an earlier message of the same
 *   owner landed late, or one that does not count; whatever the server said when nothing has landed.
 */
export async function publishBehind(message: Fenced, subject: FencedSubject): Promise<number> {
  const { shard, mark, behind, copies } = message
  // The place is part of it: behind a cut the same record may come again, and is another message.
  const id = `${shard}:${mark.epoch}:${behind}:${mark.kind}:${mark.last}:${mark.hash}`
  let at: number
  try {
    at = await subject.publish(id, behind)
  } catch (error) {
    return readBack(message, await subject.after(behind), error)
  }
  if (!copies) return at
  const unseen = new TroupeError('STORE_FAILED', `the record of ${shard} is not to be seen yet`, { retryable: true })
  return readBack(message, await subject.after(behind), unseen)
}

/** What became of a message, by the first one that is behind what its writer saw. Its number when it landed there. */
function readBack({ shard, mark, behind, shared }: Fenced, first: Placed | null, error: unknown): number {
  if (first === null) throw error
  if (first.behind === behind && isSame(first.mark, mark)) return first.at
  if (first.behind !== behind) {
    const message = `a message landed behind the last record of ${shard} that does not count`
    throw new TroupeError('STORE_FAILED', message, { retryable: true, details: { shard, at: first.at } })
  }
  if (shared && first.epoch === String(mark.epoch)) {
    const message = `an earlier record of ${shard} landed after its append had failed`
    throw new TroupeError('STORE_FAILED', message, { retryable: true, details: { shard, epoch: mark.epoch } })
  }
  const message = `${shard} was written by the owner with epoch ${first.epoch}, this one has ${mark.epoch}`
  throw new TroupeError('SHARD_FENCED', message, { details: { shard, epoch: mark.epoch, by: first.epoch } })
}

function isSame(one: Mark | null, { epoch, kind, last, hash }: Mark): boolean {
  return one !== null && one.epoch === epoch && one.kind === kind && one.last === last && one.hash === hash
}
