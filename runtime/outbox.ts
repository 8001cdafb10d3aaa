/**
 * The outbox at work: hands the letters of durable commits over, to each receiver in order.
 *
 * Owns: which letters are under way from this process, trying again, what becomes of a letter that nobody will ever take.
 * Does not own: the letters (`mail.ts`), the way to the receiver (`worker.ts`, `transport/`), the records that clear them
 * (`shard.ts`).
 *
 * - OB1 A letter is handed over only after the commit that wrote it is durable, and again by the next owner until the
 *   record that clears it is.
 * - OB2 Letters to one receiver are handed over one after the other, in the order of their numbers; a receiver that takes
 *   nothing holds up nobody else.
 * - OB3 A letter that its receiver will never take comes back to its actor as `mail.returned`.
 * - OB4 A letter whose content cannot be read now waits until it can; the shard goes on. One whose content is damaged stops it.
 */
import { textsOf } from './content.js'
import type { Draft } from './envelope.js'
import { type ErrorCode, isStoreTrouble, type TroupeError, toTroupeError } from './errors.js'
import type { Journal } from './journal.js'
import { causeOf, type OutboxRow, partsOf } from './mail.js'
import type { Clock } from './ports.js'
import type { ShardState } from './state.js'

/** What the outbox needs of its shard. */
export interface SendingShard {
  readonly id: string
  readonly journal: Journal
  readonly clock: Clock
  state(): ShardState
  /** Hands a letter over; resolves when the receiver has it, or will. */
  send(receiver: string, draft: Draft): Promise<void>
  /** Takes a message; resolves when it is durable. */
  post(draft: Draft): Promise<unknown>
  /** Something that must not happen did; the shard stops with it. */
  stop(reason: TroupeError): void
}

/** How long letters that were handed over wait for another commit to be cleared with. */
const clearMs = 1_000
const againMs = 100
const maxAgainMs = 5_000

/** Why a letter will never be taken. */
const finalCodes: readonly ErrorCode[] = [
  'CREW_UNKNOWN',
  'ENVELOPE_INVALID',
  'ENVELOPE_TOO_LARGE',
  'ID_INVALID',
  'MESSAGE_REFUSED',
  'NATS_DENIED',
  'SENDER_BEHIND',
]

/** A letter that comes back: to the actor that wrote it, from the shard that it was for. */
export function returned(
  receiver: string,
  letter: Pick<Draft, 'body' | 'cause' | 'to'>,
  actor: string,
  why: TroupeError,
): Draft {
  const { code, message: reason } = why
  const whose = letter.body.type.startsWith('share.') ? { actor: letter.to } : {}
  const body = { type: 'mail.returned', message: letter.body.type, code, reason: reason.slice(0, 500), ...whose }
  return { from: `${receiver}/shard/self`, to: actor, cause: letter.cause.split('|')[0] ?? '', body, values: [] }
}

/** Hands letters over. */
export class Outbox {
  readonly #shard: SendingShard
  /** Letters that wait, by receiver; the first one is under way. */
  readonly #lanes = new Map<string, OutboxRow[]>()
  readonly #known = new Set<string>()
  #handed: string[] = []
  #clearing: (() => void) | null = null
  #closed = false

  constructor(shard: SendingShard) {
    this.#shard = shard
  }

  /** Takes letters of a durable commit, or of an owner before this one. */
  send(rows: Iterable<OutboxRow>): void {
    for (const row of rows) {
      if (this.#closed || this.#known.has(row.id)) continue
      this.#known.add(row.id)
      const [receiver] = partsOf(row.to)
      const lane = this.#lanes.get(receiver)
      if (lane !== undefined) lane.push(row)
      else {
        const begun = [row]
        this.#lanes.set(receiver, begun)
        void this.#run(receiver, begun)
      }
    }
  }

  /** Letters that were handed over and are still in the journal; whoever takes them writes that down. */
  takeHanded(): readonly string[] {
    if (this.#handed.length === 0) return this.#handed
    this.#clearing?.()
    this.#clearing = null
    const handed = this.#handed
    this.#handed = []
    return handed
  }

  /** Hands nothing more over. What is under way may still arrive. */
  close(): void {
    this.#closed = true
    this.#clearing?.()
  }

  /** Never rejects. */
  async #run(receiver: string, lane: OutboxRow[]): Promise<void> {
    for (let row = lane[0]; row !== undefined && !this.#closed; row = lane[0]) {
      try {
        await this.#hand(receiver, row)
      } catch (error) {
        this.#closed = true
        return this.#shard.stop(toTroupeError(error, 'STORE_FAILED'))
      }
      lane.shift()
      this.#done(row.id)
    }
    this.#lanes.delete(receiver)
  }

  async #hand(receiver: string, row: OutboxRow): Promise<void> {
    const { clock } = this.#shard
    let draft: Draft | null = null
    for (let delayMs = againMs; !this.#closed; delayMs = Math.min(maxAgainMs, delayMs * 2)) {
      try {
        draft ??= await this.#draftOf(row)
        return await this.#shard.send(receiver, draft)
      } catch (error) {
        const why = toTroupeError(error, 'STORE_FAILED')
        if (draft === null && !isStoreTrouble(error)) throw why
        if (draft !== null && finalCodes.includes(why.code) && !why.retryable)
          return this.#giveUp(receiver, row, draft, why)
      }
      await new Promise<void>((resolve) => clock.after(delayMs, resolve))
    }
  }

  async #draftOf(row: OutboxRow): Promise<Draft> {
    const { id, journal } = this.#shard
    const values = await textsOf(journal, id, row.entries)
    const cause = causeOf(this.#shard.state().mail, row)
    return { from: `${id}/${row.from}`, to: partsOf(row.to)[1], cause, body: row.body, values }
  }

  async #giveUp(receiver: string, row: OutboxRow, draft: Draft, why: TroupeError): Promise<void> {
    // A shard that stops or is closed meanwhile keeps the letter for its next owner.
    await this.#shard.post(returned(receiver, draft, row.from, why)).catch(() => this.close())
  }

  #done(id: string): void {
    if (this.#closed) return
    this.#handed.push(id)
    this.#clearing ??= this.#shard.clock.after(clearMs, () => {
      this.#clearing = null
      const rows = this.takeHanded()
      if (rows.length > 0) this.#shard.post(handedOver(rows)).catch(() => undefined)
    })
  }
}

/** The record of letters that were handed over. */
export function handedOver(rows: readonly string[]): Draft {
  return { from: 'shard/self', to: 'shard/self', cause: '', body: { type: 'mail.handed', rows }, values: [] }
}
