/**
 * Messages of the journal's stream: the last of a shard, those from a commit on, the last of every shard.
 *
 * Owns: finding messages and fetching them, what their headers say.
 * Does not own: what follows from them (`jetstream-journal.ts`).
 *
 * - JR1 A reading gives the messages that were there when it began, in their order, and then ends.
 * - JR2 The record of a commit is found in a number of steps that grows with the logarithm of the stream.
 */
import { AckPolicy, DeliverPolicy, type JetStreamClient, ReplayPolicy } from '@nats-io/jetstream'
import type { MsgHdrs } from '@nats-io/transport-node'
import { isTroupeError, TroupeError } from '../runtime/errors.js'
import { storeError } from './jetstream-content.js'
import type { NatsLink } from './nats-connection.js'
import * as rows from './rows.js'
import type { Subjects } from './subjects.js'

export const rowHeader = 'Troupe-Row'
export const kindHeader = 'Troupe-Kind'
export const cutHeader = 'Troupe-Cut'
export const crewHeader = 'Troupe-Crew'
/** Messages that are asked for one by one before a consumer is made: most reads are short. */
const singly = 4
const portion = 500
/** How long the server may take. */
export const waitMs = 5_000

/** Numbers of the stream whose messages do not count any more, both ends included. */
export type Cut = readonly [from: number, to: number]

/** A message of the stream. */
export interface Message {
  readonly seq: number
  readonly header: MsgHdrs | undefined
  readonly data: Uint8Array
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

  /** The row of each shard's last message, null for a damaged one, and its crew. */
  async *lastRows(): AsyncGenerator<readonly [shard: string, row: rows.Row | null, crew: string | undefined]> {
    const subjects = this.#subjects
    const found = this.#consume({
      deliver_policy: DeliverPolicy.LastPerSubject,
      filter_subject: subjects.journals(),
      headers_only: true,
    })
    for await (const message of found) {
      const shard = subjects.shardOf(message.subject)
      yield [shard, rowOf(shard, message), crewOf(message)]
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
    for await (const message of this.#consume({ ...start, filter_subject: this.#subjects.journal(shard) })) {
      if (message.seq > to) return
      yield message
    }
  }

  /** The messages that are there now, by a consumer of their own. */
  async *#consume(config: {
    readonly deliver_policy: DeliverPolicy
    readonly filter_subject: string
    readonly opt_start_seq?: number
    readonly headers_only?: boolean
  }): AsyncGenerator<Message & { readonly subject: string }> {
    const { manager } = this.#link
    try {
      const info = await manager.consumers.add(this.#stream, {
        ...config,
        ack_policy: AckPolicy.None,
        replay_policy: ReplayPolicy.Instant,
        mem_storage: true,
        num_replicas: 1,
        inactive_threshold: 30_000 * 1_000_000,
      })
      const consumer = this.#client.consumers.getConsumerFromInfo(info)
      try {
        for (let left = info.num_pending; left > 0; ) {
          const messages = await consumer.fetch({ max_messages: Math.min(left, portion), expires: waitMs })
          const before = left
          for await (const { seq, headers: header, data, subject } of messages) {
            left--
            yield { seq, header, data, subject }
          }
          if (left === before) throw new TroupeError('STORE_FAILED', 'the server stopped sending', { retryable: true })
        }
      } finally {
        await manager.consumers.delete(this.#stream, info.name).catch(() => undefined)
      }
    } catch (error) {
      throw isTroupeError(error) ? error : storeError(error)
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

/** Name of the crew that a message carries. */
export function crewOf(message: Message | null): string | undefined {
  const name = message?.header?.get(crewHeader) ?? ''
  return name === '' ? undefined : name
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
