/**
 * Answers as NATS messages: numbered, so that a loss shows, and in parts when they are large.
 *
 *     Troupe-Answer: 3        the fourth answer to this request; the first is 0
 *     Troupe-Part: 1/4        the first of four messages that are one answer together; none for an answer in one
 *
 * Owns: the headers, splitting, joining, noticing what is missing.
 * Does not own: what an answer is (`runtime/control-wire.ts`), who sends and takes them (`nats-door.ts`,
 * `nats-door-client.ts`).
 *
 * - NA1 An answer is given out whole and in its turn, or the loss is told: nothing is passed over in silence.
 */
import { headers, type Msg, type MsgHdrs } from '@nats-io/transport-node'
import { maxAnswerBytes, tooLong } from '../runtime/control-wire.js'

/** Bytes of an answer in one message; a larger one is split. */
export const partBytes = 256 * 1024
const answerHeader = 'Troupe-Answer'
const partHeader = 'Troupe-Part'

/** A message to publish. */
export interface AnswerPart {
  readonly headers: MsgHdrs
  readonly data: Uint8Array
}

/** The messages of an answer. @param number how many answers went before it */
export function* partsOf(answer: object, number: number): Generator<AnswerPart, void, void> {
  const bytes = Buffer.from(JSON.stringify(answer))
  const count = Math.max(1, Math.ceil(bytes.length / partBytes))
  for (let part = 1; part <= count; part++) {
    const head = headers()
    head.set(answerHeader, String(number))
    if (count > 1) head.set(partHeader, `${part}/${count}`)
    yield { headers: head, data: bytes.subarray((part - 1) * partBytes, part * partBytes) }
  }
}

/** Joins the answers to one request. */
export class AnswerReader {
  #number = 0
  #parts: Buffer[] = []
  #bytes = 0

  /**
   * Takes the next message: the text of an answer when it is whole, `more` when parts of it are still to come, `gap` when
   * something before it was lost.
   * @throws TroupeError `ENVELOPE_TOO_LARGE` for an answer above the wire's bound.
   */
  take(message: Msg): { readonly text: string } | 'more' | 'gap' {
    const { part, count } = partOf(message)
    if (numberOf(message) !== this.#number || part !== this.#parts.length + 1) return 'gap'
    this.#bytes += message.data.length
    if (this.#bytes > maxAnswerBytes) throw tooLong(maxAnswerBytes)
    // The library uses its buffer again.
    this.#parts.push(Buffer.from(message.data))
    if (part < count) return 'more'
    const text = Buffer.concat(this.#parts).toString('utf8')
    this.#parts = []
    this.#bytes = 0
    this.#number += 1
    return { text }
  }
}

function numberOf({ headers: head }: Msg): number {
  return Number(head?.get(answerHeader) || Number.NaN)
}

function partOf({ headers: head }: Msg): { readonly part: number; readonly count: number } {
  const [part = 1, count = 1] = (head?.get(partHeader) || '1/1').split('/').map(Number)
  return { part, count }
}
