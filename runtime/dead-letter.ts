/**
 * Dead letters: messages that nobody could process, kept with their reason in the shard's state.
 *
 * Owns: their shape, the bounds of their table.
 * Does not own: when a message is one (`commit.ts`), what is done about it (`dead-letters.ts`).
 *
 * - DL1 A dead letter is kept until it is replayed or dropped. When there are too many the oldest go, and are counted.
 */
import type { Message } from './scope.js'
import type { Generation } from './state.js'

/** One message that nobody could process. Its content is the values of the commit that its id names. */
export interface DeadLetter {
  readonly id: Generation
  readonly from: string
  readonly to: string
  readonly message: Message
  readonly code: string
  readonly reason: string
  /** Epoch milliseconds. */
  readonly at: number
}

/** Dead letters of a shard. */
export const maxLetters = 1_000
/** Their messages, in characters of JSON. */
export const maxLetterBytes = 1_048_576

/** Drops the oldest until the bounds are kept. Gives their number. */
export function trimLetters(letters: Map<string, DeadLetter>): number {
  const sizes = [...letters.values()].map(({ id, message, reason }) => ({
    id,
    bytes: JSON.stringify(message).length + reason.length,
  }))
  let bytes = sizes.reduce((sum, each) => sum + each.bytes, 0)
  let dropped = 0
  for (const each of sizes) {
    if (letters.size <= maxLetters && bytes <= maxLetterBytes) break
    letters.delete(each.id)
    bytes -= each.bytes
    dropped += 1
  }
  return dropped
}

/** Drops one, or all. Gives their number. */
export function dropLetters(letters: Map<string, DeadLetter>, id: string | null): number {
  const { size } = letters
  if (id === null) letters.clear()
  else letters.delete(id)
  return size - letters.size
}
