/**
 * Messages of the journal's stream: the last of a shard, those from a commit on, the last of every shard.
 *
 * Owns: finding messages and fetching them.
 * Does not own: what is in one (`jetstream-message.ts`), what follows from it (`jetstream-ends.ts`, `jetstream-journal.ts`).
 *
 * - JR2 A message counts only when it stands right behind the one that its writer saw: what else comes to a shard's subject is
 *   a stray, and is passed over by everybody.
 * - JR3 Of a stream with copies its leader is asked: another one may be behind. What a copy lacks is asked of the others: each
 *   message says which one is before it.
 * - JR1 The record of a commit is found in a number of steps that grows with the logarithm of the stream, and in as many as
 *   there are records behind it where these are few.
 */
import { DeliverPolicy, JetStreamApiCodes, JetStreamApiError, type JetStreamClient } from '@nats-io/jetstream'
import type { CrewVersion } from '../runtime/crew-version.js'
import { TroupeError } from '../runtime/errors.js'
import { storeError } from './jetstream-content.js'
import { behindOf, crewOf, type Cut, cutsOf, isIn, isRecord, lastEventOf, rowOf } from './jetstream-message.js'
import type { NatsLink } from './nats-connection.js'
import * as rows from './rows.js'
import { type Message, storedMessages } from './stored-messages.js'
import type { Subjects } from './subjects.js'

/** How often copies are asked for a message: whichever answers. */
const exactTries = 6
/** Messages that are asked for one by one before a consumer is made: most reads are short. */
const singly = 4
/** The same for those that are read back from the end: as many as finding the first one by halving would take. */
const backwards = 16

/** What the last message of a shard tells. */
export interface LastRow {
  readonly shard: string
  /** Number of the message. */
  readonly at: number
  /** Null for a damaged one. */
  readonly row: rows.Row | null
  readonly crew: CrewVersion | undefined
  readonly lastEvent: number | undefined
  readonly storedAt: number
}

/** Where a shard ends. */
export interface End {
  /** The last message that counts; null for none. */
  readonly last: Message | null
  /** Number of the last message, whether it counts or not: what the server compares with; 0 for none. */
  readonly at: number
  /** What does not count. */
  readonly cuts: readonly Cut[]
}

/** Reads one namespace's journal stream. */
export class JetStreamReading {
  readonly #link: NatsLink
  readonly #subjects: Subjects
  readonly #client: JetStreamClient
  readonly #stream: string
  /** The stream has copies. */
  copies = false

  constructor(link: NatsLink, subjects: Subjects, client: JetStreamClient) {
    this.#link = link
    this.#subjects = subjects
    this.#client = client
    this.#stream = subjects.stream('journal')
  }

  /** The last message of a shard, from the leader. */
  async last(shard: string): Promise<Message | null> {
    const query = { last_by_subj: this.#subjects.journal(shard) }
    const { direct, streams } = this.#link.manager
    try {
      return await (this.copies ? streams : direct).getMessage(this.#stream, query)
    } catch (error) {
      throw storeError(error)
    }
  }

  /** The last commit of a shard whose events are all in the event stream; 0 for none, and where there is no such stream. */
  async eventsUntil(shard: string): Promise<number> {
    const [stream, subject] = [this.#subjects.stream('events'), this.#subjects.events(shard)]
    try {
      return lastEventOf(await this.#link.manager.streams.getMessage(stream, { last_by_subj: subject })) ?? 0
    } catch (error) {
      if (error instanceof JetStreamApiError && error.code === Number(JetStreamApiCodes.StreamNotFound)) return 0
      throw storeError(error)
    }
  }

  /** Where a shard ends, strays passed over. */
  async end(shard: string): Promise<End> {
    const last = await this.last(shard)
    if (last === null) return { last, at: 0, cuts: [] }
    return (await this.#counts(shard, last))
      ? { last, at: last.seq, cuts: cutsOf(last) }
      : this.#endWithStrays(shard, last.seq)
  }

  /** Whether the last message of a shard stands where its writer saw the end. One server alone compares that itself. */
  async #counts(shard: string, last: Message): Promise<boolean> {
    const behind = behindOf(last)
    if (behind === null || !this.copies) return behind !== null
    return (await this.next(shard, behind + 1))?.seq === last.seq
  }

  /** The same, by all messages of the shard: that is rare. */
  async #endWithStrays(shard: string, at: number): Promise<End> {
    let last: Message | null = null
    let before: number | null = null
    /** Number of the first stray behind the last one that counts. */
    let stray: number | null = null
    const wanted = { deliver_policy: DeliverPolicy.All, filter_subject: this.#subjects.journal(shard) }
    for await (const message of storedMessages(this.#link, this.#client, this.#stream, wanted)) {
      const behind = behindOf(message)
      // The first one may stand behind what was purged.
      if (behind !== null && (before === null || behind === before)) {
        last = message
        stray = null
      } else stray ??= message.seq
      before = message.seq
    }
    // A copy that is behind must not say where a shard ends.
    if (before !== at) throw new TroupeError('STORE_FAILED', `${shard}: a copy is behind`, { retryable: true })
    return { last, at, cuts: stray === null ? cutsOf(last) : [...cutsOf(last), [stray, at]] }
  }

  /** What each shard's last message tells. */
  async *lastRows(): AsyncGenerator<LastRow> {
    const subjects = this.#subjects
    const found = storedMessages(this.#link, this.#client, this.#stream, {
      deliver_policy: DeliverPolicy.LastPerSubject,
      filter_subject: subjects.journals(),
      headers_only: true,
    })
    for await (const message of found) {
      const shard = subjects.shardOf(message.subject)
      const { seq: at, storedAt } = message
      const last = behindOf(message) === null ? (await this.end(shard)).last : message
      if (last === null) continue
      yield { shard, at, row: rowOf(shard, last), crew: crewOf(last), lastEvent: lastEventOf(last), storedAt }
    }
  }

  /** The number of a message at or before the record that contains a commit: found by halving. */
  async find(shard: string, sequence: number, last: number, cuts: readonly Cut[]): Promise<number> {
    let low = 1
    let high = last
    // Behind a cut the commits go back: then all is read.
    if (cuts.length > 0 || sequence <= 1) return low
    while (low < high) {
      const middle = Math.ceil((low + high) / 2)
      const message = await this.next(shard, middle)
      const row = message === null ? null : rowOf(shard, message)
      if (message === null || message.seq > last || row === null || row.first > sequence) high = middle - 1
      else low = row.last >= sequence ? message.seq : Math.max(middle, message.seq)
      if (message !== null && row !== null && row.first <= sequence && row.last >= sequence) return message.seq
    }
    return low
  }

  /** The first message of a shard from a number on. */
  async next(shard: string, seq: number): Promise<(Message & { readonly subject: string }) | null> {
    const query = { seq, next_by_subj: this.#subjects.journal(shard) }
    const { direct, streams } = this.#link.manager
    try {
      // The client's type does not know that a stream's leader may be asked so, too.
      return await (this.copies ? streams.getMessage(this.#stream, query) : direct.getMessage(this.#stream, query))
    } catch (error) {
      throw storeError(error)
    }
  }

  /**
   * Messages of a shard, from the one on that contains a commit, or from one before it. What is asked for is most often
   * near the end: there each message tells which one is before it.
   */
  async *from(shard: string, sequence: number, { at, cuts }: Pick<End, 'at' | 'cuts'>): AsyncGenerator<Message> {
    // Behind a cut the commits go back.
    const tail = cuts.length === 0 && sequence > 1 ? await this.#tail(shard, sequence, at) : []
    const [first] = tail
    // The number of a message of the shard: a copy that lacks it is noticed.
    const before = first === undefined ? at : behindOf(first)!
    if (first === undefined || !contains(shard, first, sequence))
      yield* this.messages(shard, await this.find(shard, sequence, before, cuts), before)
    yield* tail
  }

  /** The last messages of a shard, in order: back to the one that contains a commit, or as many as are asked for one by one. */
  async #tail(shard: string, sequence: number, at: number): Promise<Message[]> {
    const found: Message[] = []
    for (let seq = at; seq > 0 && found.length < backwards; ) {
      const message = await this.#exact(shard, seq)
      const behind = message === null ? null : behindOf(message)
      if (message === null || behind === null) break
      found.unshift(message)
      if (contains(shard, message, sequence)) break
      seq = behind
    }
    return found
  }

  /** Messages of a shard, both numbers included. */
  async *messages(shard: string, from: number, to: number): AsyncGenerator<Message> {
    let before = from - 1
    for await (const message of this.#found(shard, from, to)) {
      yield* await this.#between(shard, before, message)
      yield message
      before = message.seq
    }
    const last = this.copies && before < to ? await this.#exact(shard, to) : null
    if (last === null) return
    yield* await this.#between(shard, before, last)
    yield last
  }

  /** Those that the copy has which answers. */
  async *#found(shard: string, from: number, to: number): AsyncGenerator<Message> {
    let seq = from
    for (let count = 0; count < singly && seq <= to; count++) {
      const message = await this.next(shard, seq)
      if (message === null || message.seq > to) return
      yield message
      seq = message.seq + 1
    }
    if (seq > to) return
    const start = { deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: seq }
    const wanted = { ...start, filter_subject: this.#subjects.journal(shard) }
    for await (const message of storedMessages(this.#link, this.#client, this.#stream, wanted)) {
      if (message.seq > to) return
      yield message
    }
  }

  /** What stands before a message and behind a number: a copy may lack it. Each message says which one is before it. */
  async #between(shard: string, before: number, last: Message): Promise<Message[]> {
    const found: Message[] = []
    if (!this.copies) return found
    for (let behind = behindOf(last) ?? 0; behind > before; ) {
      const message = await this.#exact(shard, behind)
      if (message === null) break
      found.unshift(message)
      behind = behindOf(message) ?? 0
    }
    return found
  }

  /** One message of a shard, from whichever copy has it; null when none of those that answered does. */
  async #exact(shard: string, seq: number): Promise<Message | null> {
    const subject = this.#subjects.journal(shard)
    const { direct, streams } = this.#link.manager
    try {
      for (let asked = 0; asked < (this.copies ? exactTries : 1); asked++) {
        const query = { seq }
        const message = await (this.copies && asked === 0 ? streams : direct).getMessage(this.#stream, query)
        if (message?.subject === subject) return message
      }
      return null
    } catch (error) {
      throw storeError(error)
    }
  }

  /** The row of the last message of a shard that has a sound one, up to a number. */
  async soundRow(shard: string, to: number, cuts: readonly Cut[]): Promise<rows.Row | undefined> {
    let found: rows.Row | undefined
    for await (const message of this.messages(shard, 1, to)) {
      const row = rowOf(shard, message)
      if (row !== null && !isIn(cuts, message.seq)) found = row
    }
    return found
  }

  /** The sound record that ends at a commit with this hash. */
  async endingAt(
    { shard, at, cuts }: { readonly shard: string; readonly at: number; readonly cuts: readonly Cut[] },
    sequence: number,
    hash: Uint8Array,
  ): Promise<{ readonly seq: number; readonly base: number } | null> {
    for await (const message of this.messages(shard, 1, at)) {
      const row = rowOf(shard, message)
      if (row?.last !== sequence || !isRecord(message, cuts)) continue
      if (rows.asBuffer(row.hash).equals(hash)) return { seq: message.seq, base: row.base }
    }
    return null
  }
}

/** Whether a message is the record with a commit, or of a time before it. */
function contains(shard: string, message: Message, sequence: number): boolean {
  const row = rowOf(shard, message)
  return row !== null && isRecord(message, []) && row.first <= sequence
}
