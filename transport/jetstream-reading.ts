/**
 * Messages of the journal's stream: the last of a shard, those from a commit on, the last of every shard.
 *
 * Owns: finding messages and fetching them, what their headers say.
 * Does not own: what follows from them (`jetstream-journal.ts`).
 *
 * - JR1 The record of a commit is found in a number of steps that grows with the logarithm of the stream.
 */
import { DeliverPolicy, type JetStreamClient } from '@nats-io/jetstream'
import type { CrewVersion } from '../runtime/crew-version.js'
import { storeError } from './jetstream-content.js'
import type { NatsLink } from './nats-connection.js'
import * as rows from './rows.js'
import { type Message, storedMessages } from './stored-messages.js'
import type { Subjects } from './subjects.js'

export const rowHeader = 'Troupe-Row'
export const kindHeader = 'Troupe-Kind'
export const cutHeader = 'Troupe-Cut'
/** `name@version`; the name alone in messages of earlier versions of ours. */
export const crewHeader = 'Troupe-Crew'
/** Of the journal: the last commit with events so far. Of the event stream: the commit of the message's last event. */
export const lastEventHeader = 'Troupe-Last-Event'
/** Messages that are asked for one by one before a consumer is made: most reads are short. */
const singly = 4

/** Numbers of the stream whose messages do not count any more, both ends included. */
export type Cut = readonly [from: number, to: number]

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

/** Reads one namespace's journal stream. */
export class JetStreamReading {
  readonly #link: NatsLink
  readonly #subjects: Subjects
  readonly #client: JetStreamClient
  readonly #stream: string

  constructor(link: NatsLink, subjects: Subjects, client: JetStreamClient) {
    this.#link = link
    this.#subjects = subjects
    this.#client = client
    this.#stream = subjects.stream('journal')
  }

  /** The last message of a shard, from the leader. */
  async last(shard: string): Promise<Message | null> {
    const subject = this.#subjects.journal(shard)
    try {
      return await this.#link.manager.streams.getMessage(this.#stream, { last_by_subj: subject })
    } catch (error) {
      throw storeError(error)
    }
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
      yield { shard, at, row: rowOf(shard, message), crew: crewOf(message), lastEvent: lastEventOf(message), storedAt }
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
      const message = await this.#next(shard, middle)
      const row = message === null ? null : rowOf(shard, message)
      if (message === null || message.seq > last || row === null || row.first > sequence) high = middle - 1
      else low = row.last >= sequence ? message.seq : Math.max(middle, message.seq)
      if (message !== null && row !== null && row.first <= sequence && row.last >= sequence) return message.seq
    }
    return low
  }

  /** The first message of a shard from a number on. */
  async #next(shard: string, seq: number): Promise<(Message & { readonly subject: string }) | null> {
    const query = { seq, next_by_subj: this.#subjects.journal(shard) }
    try {
      return await this.#link.manager.direct.getMessage(this.#stream, query)
    } catch (error) {
      throw storeError(error)
    }
  }

  /** Messages of a shard, both numbers included. */
  async *messages(shard: string, from: number, to: number): AsyncGenerator<Message> {
    let seq = from
    for (let count = 0; count < singly && seq <= to; count++) {
      const message = await this.#next(shard, seq)
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

/** The row that a message carries; null when it is none of this shard. */
export function rowOf(shard: string, { header }: Message): rows.Row | null {
  return rows.decodeRow(shard, Buffer.from(header?.get(rowHeader) ?? '', 'base64'))
}

/** The crew and its version that a message carries. */
export function crewOf(message: Message | null): CrewVersion | undefined {
  const crew = message?.header?.get(crewHeader) ?? ''
  return crew === '' ? undefined : crew
}

/** The last commit with events up to a message. */
export function lastEventOf(message: Pick<Message, 'header'> | null): number | undefined {
  const text = message?.header?.get(lastEventHeader) ?? ''
  return text === '' ? undefined : Number(text)
}

/** What does not count any more, as a shard's last message tells it. */
export function cutsOf(message: Message | null): Cut[] {
  const text = message?.header?.get(cutHeader) ?? ''
  return text === '' ? [] : text.split(',').map((cut) => cut.split('-').map(Number) as [number, number])
}

/** Whether a message is a record that counts. */
export function isRecord({ seq, header }: Message, cuts: readonly Cut[]): boolean {
  return header?.get(kindHeader) === 'record' && !cuts.some(([from, to]) => seq >= from && seq <= to)
}
