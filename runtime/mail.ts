/**
 * The mail of a shard: letters to actors of other shards that were not handed over, and how far the letters of others came.
 *
 * Owns: numbers of letters, the rows of the outbox, the cursors of senders, their plain-data form.
 * Does not own: when a letter is written (`commit.ts`), sending rows (`outbox.ts`), what may come in (`inbox.ts`).
 *
 * - MA1 Letters from one life of a shard to another shard have consecutive numbers from 1, in the order of its commits.
 * - MA2 Of each sender a letter is taken once, in the order of its numbers: what was taken changes nothing when it comes again.
 * - MA3 A sender that goes back in time is not believed: an earlier life, a number that another of its commits had before,
 *   a later number of an earlier commit.
 */
import { type Entry, fromStoredEntry, type StoredEntry, toStoredEntry } from './conversation.js'
import type { Message } from './scope.js'

/** Letters that wait to be handed over; beyond that no new work is taken, and no task is given to another crew. */
export const maxOutbox = 256

/** A letter that is not handed over. */
export interface OutboxRow {
  /** Sequence and index of the commit that wrote it: the letter's cause. */
  readonly id: string
  /** The actor that wrote it. */
  readonly from: string
  /** `<shard>/<kind>/<name>`. */
  readonly to: string
  /** Among the letters to that shard. */
  readonly number: number
  readonly body: Message
  /** The message of a conversation that goes with it. */
  readonly entries: readonly Entry[]
}

/** What a letter says of its place among the letters of its sender. */
export interface Stamp {
  /** The sender's life: sequence of the first commit of its journal. */
  readonly life: number
  readonly number: number
  /** Sequence of the commit that wrote it. */
  readonly sequence: number
}

/** How a letter follows the ones that were taken of its sender. */
export type Place = 'next' | 'taken' | 'early' | 'behind'

type StoredRow = readonly [string, string, string, number, Message, readonly StoredEntry[]]

/** The plain data. */
export interface StoredMail {
  readonly life: number
  readonly outbox: readonly StoredRow[]
  readonly numbers: readonly (readonly [string, number])[]
  readonly cursors: readonly (readonly [string, Stamp])[]
}

/** The cause of a letter: who reads it finds the sending commit and the letter's place. */
export function causeOf({ life }: { readonly life: number }, { id, number }: Pick<OutboxRow, 'id' | 'number'>): string {
  return `${id}|${life}|${number}`
}

/** Reads the cause of a letter; null for something else. */
export function stampOf(cause: string): Stamp | null {
  const match = /^(\d{1,15})-\d{1,9}\|(\d{1,15})\|(\d{1,15})$/.exec(cause)
  return match === null ? null : { sequence: Number(match[1]), life: Number(match[2]), number: Number(match[3]) }
}

/** The key of a task's run: the same one of the same life of its sender has the same. */
export function taskKeyOf(sender: string, cause: string): string {
  return `${sender}|${stampOf(cause)?.life ?? 0}`
}

/** Whether an address is one of another shard: `<shard>/<kind>/<name>`. */
export function isForeign(address: string): boolean {
  return address.indexOf('/') !== address.lastIndexOf('/')
}

/** Shard and actor of a full address. */
export function partsOf(address: string): readonly [shard: string, actor: string] {
  const at = address.indexOf('/')
  return [address.slice(0, at), address.slice(at + 1)]
}

/** The mail of one shard. */
export class Mail {
  /** In the order in which they were written. */
  readonly outbox = new Map<string, OutboxRow>()
  /** The last number of each receiver. */
  readonly #numbers = new Map<string, number>()
  /** The last letter of each sender. */
  readonly #cursors = new Map<string, Stamp>()
  #life = 0

  get life(): number {
    return this.#life
  }

  /** A life of the shard begins with this commit; letters that were not handed over are its first ones. */
  begin(sequence: number): void {
    this.#life = sequence
    this.#numbers.clear()
    for (const row of [...this.outbox.values()]) this.outbox.set(row.id, { ...row, number: this.#next(row.to) })
  }

  /** Puts a letter into the outbox. */
  write(row: Omit<OutboxRow, 'number'>): OutboxRow {
    const written = { ...row, number: this.#next(row.to) }
    this.outbox.set(row.id, written)
    return written
  }

  #next(to: string): number {
    const [receiver] = partsOf(to)
    const number = (this.#numbers.get(receiver) ?? 0) + 1
    this.#numbers.set(receiver, number)
    return number
  }

  /** These letters were handed over. */
  clear(rows: readonly string[]): void {
    for (const id of rows) this.outbox.delete(id)
  }

  /** The last letter that was taken of a sender. */
  cursor(sender: string): Stamp | undefined {
    return this.#cursors.get(sender)
  }

  /** Where a letter stands. `early`: one before it was not taken. */
  placeOf(sender: string, { life, number, sequence }: Stamp): Place {
    const last = this.#cursors.get(sender)
    if (last === undefined || life > last.life) return number === 1 ? 'next' : 'early'
    if (life < last.life) return 'behind'
    if (number <= last.number) return sequence > last.sequence ? 'behind' : 'taken'
    if (sequence < last.sequence) return 'behind'
    return number === last.number + 1 ? 'next' : 'early'
  }

  /** Moves the cursor to a letter. False when it was taken before, or must not be. */
  take(sender: string, stamp: Stamp): boolean {
    const place = this.placeOf(sender, stamp)
    if (place === 'taken' || place === 'behind') return false
    this.#cursors.set(sender, stamp)
    return true
  }

  toStored(): StoredMail {
    return {
      life: this.#life,
      outbox: [...this.outbox.values()].map(
        ({ id, from, to, number, body, entries }): StoredRow => [
          id,
          from,
          to,
          number,
          body,
          entries.map(toStoredEntry),
        ],
      ),
      numbers: [...this.#numbers],
      cursors: [...this.#cursors],
    }
  }

  static fromStored({ life, outbox, numbers, cursors }: StoredMail): Mail {
    const mail = new Mail()
    mail.#life = life
    for (const [id, from, to, number, body, entries] of outbox)
      mail.outbox.set(id, { id, from, to, number, body, entries: entries.map(fromStoredEntry) })
    for (const [receiver, number] of numbers) mail.#numbers.set(receiver, number)
    for (const [sender, stamp] of cursors) mail.#cursors.set(sender, stamp)
    return mail
  }
}
