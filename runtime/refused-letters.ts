/**
 * Refused letters: mail over NATS that no crew will ever take, kept with its reason beside the mail.
 *
 * Owns: their shapes, which of them may be sent again.
 * Does not own: keeping them (`transport/nats-refused.ts`), which letters are refused (`transport/nats-mail.ts`), messages
 * that a crew took and nobody could process (`dead-letters.ts`).
 *
 * - RFL1 A letter is sent again only when other code may take it, when it is there whole, and when its sender was not told
 *   that it came to nothing: that one has gone on without it.
 */
import { type ErrorCode, TroupeError } from './errors.js'
import type { Message } from './scope.js'

/** A refused letter, as `list` tells it. */
export interface RefusedInfo {
  readonly id: string
  /** What it was for, as its subject said: such a crew need not exist. */
  readonly crew: string
  /** Address of the sender, as it was said; empty when it was no letter. `to` and `type` likewise. */
  readonly from: string
  readonly to: string
  readonly type: string
  /** Why no crew takes it. */
  readonly code: string
  readonly reason: string
  /** Epoch milliseconds. */
  readonly at: number
  /** Size of its bytes. */
  readonly bytes: number
  /** Their hex SHA-256. */
  readonly hash: string
  /** Where they are: with it, `beside` the mail as those of large letters, or nowhere, since they were too many. */
  readonly kept: 'whole' | 'beside' | 'none'
  /** It went back: its sender was told. */
  readonly returned: boolean
}

/** Everything of a refused letter. */
export interface RefusedDetails extends RefusedInfo {
  /** Null for what is no letter, or not kept. */
  readonly message: Message | null
  /** Its content: what people, models and tools said. */
  readonly values: readonly string[]
  /** Base64 of what is no letter. */
  readonly raw: string | null
}

/** Letters that no crew takes. A store has none: they come over NATS. */
export interface RefusedLetters {
  /** All of the namespace, or those for one crew; the oldest first. */
  list(crew?: string): AsyncGenerator<RefusedInfo, void, void>
  /** One of them with its content. @throws TroupeError `LETTER_UNKNOWN`. */
  show(crew: string, letter: string): Promise<RefusedDetails>
  /**
   * Puts it into the mail again, once. Resolves when it is stored there; one that is refused again is a new one.
   * @throws TroupeError `LETTER_UNKNOWN`, `LETTER_REFUSED`.
   */
  replay(crew: string, letter: string): Promise<void>
  /** Deletes one, or all for the crew. Gives their number. @throws TroupeError `LETTER_UNKNOWN`. */
  drop(crew: string, letter?: string): Promise<number>
}

/** Whether an id is one of a refused letter: those of a crew's own table look different. */
export function isRefused(letter: string): boolean {
  return /^m\d{1,20}-[0-9a-z]{1,16}$/.test(letter)
}

/** Refusals that other code, or a crew that is there by now, may take back. */
const passing: readonly string[] = ['CREW_UNKNOWN', 'MESSAGE_REFUSED'] satisfies ErrorCode[]

/** Why a letter is not sent again; null when it may be. */
export function whyNotAgain({ code, kept, returned }: RefusedInfo): string | null {
  if (!passing.includes(code)) return `is refused for good: ${code}`
  if (returned) return 'went back to its sender, which has gone on without it'
  return kept === 'none' ? 'is too large, and was not kept' : null
}

/** There is no such letter. */
export function unknownLetter(crew: string, letter: string): TroupeError {
  return new TroupeError('LETTER_UNKNOWN', `${crew.slice(0, 80)} has no refused letter ${letter.slice(0, 80)}`)
}

/** Where no mail comes over NATS. */
export const noRefusedLetters: RefusedLetters = {
  list: async function* () {},
  show: async (crew, letter) => Promise.reject(unknownLetter(crew, letter)),
  replay: async (crew, letter) => Promise.reject(unknownLetter(crew, letter)),
  drop: async (crew, letter) => (letter === undefined ? 0 : Promise.reject(unknownLetter(crew, letter))),
}
