/**
 * A message of the journal's stream: what its header fields say, written and read.
 *
 * Owns: names and forms of the header fields.
 * Does not own: which message goes where (`jetstream-journal.ts`), which of them count (`jetstream-reading.ts`).
 */
import { headers, type MsgHdrs } from '@nats-io/transport-node'
import type { CrewVersion } from '../runtime/crew-version.js'
import type { Placed } from './fence.js'
import * as rows from './rows.js'
import type { Message } from './stored-messages.js'

const rowHeader = 'Troupe-Row'
const kindHeader = 'Troupe-Kind'
const epochHeader = 'Troupe-Epoch'
const cutHeader = 'Troupe-Cut'
/** `name@version`; the name alone in messages of earlier versions of ours. */
const crewHeader = 'Troupe-Crew'
/** Of the journal: the last commit with events so far. Of the event stream: the commit of the message's last event. */
export const lastEventHeader = 'Troupe-Last-Event'
/** Number of the message of the shard that its writer saw last; 0 for none. */
const behindHeader = 'Troupe-Behind'
/** Length of the record, with events behind it. */
const eventsHeader = 'Troupe-Events'
/** Hash of a payload that is kept beside the stream. */
const bodyHeader = 'Troupe-Body'

/** What a shard's message is. */
export type Kind = 'record' | 'cut' | 'tombstone'

/** Numbers of the stream whose messages do not count any more, both ends included. */
export type Cut = readonly [from: number, to: number]

/** What a message says besides its payload. */
export interface Label {
  readonly kind: Kind
  readonly row: rows.Row
  /** Fencing number of its writer's lease. */
  readonly epoch: number
  /** Number of the message of the shard that its writer saw last; 0 for none. */
  readonly behind: number
  readonly crew: CrewVersion | undefined
  readonly lastEvent: number | undefined
  readonly cuts: readonly Cut[]
}

/** What its payload is: a record, the record with events behind it, or nothing, with both kept elsewhere. */
export interface Payload {
  readonly data: Uint8Array
  /** Bytes of the record; null when there are no events. */
  readonly eventsAt: number | null
  /** Where it is kept, by hash; null for here. */
  readonly kept: string | null
}

/** Of a message that is no record. */
export const noPayload: Payload = { data: new Uint8Array(0), eventsAt: null, kept: null }

/** Header fields of a message. */
export function headerOf(shard: string, label: Label, { eventsAt, kept }: Payload): MsgHdrs {
  const header = headers()
  if (eventsAt !== null) header.set(eventsHeader, String(eventsAt))
  if (kept !== null) header.set(bodyHeader, kept)
  header.set(rowHeader, rows.encodeRow(shard, label.row).toString('base64'))
  header.set(kindHeader, label.kind)
  header.set(epochHeader, String(label.epoch))
  header.set(behindHeader, String(label.behind))
  if (label.crew !== undefined) header.set(crewHeader, label.crew)
  if (label.lastEvent !== undefined) header.set(lastEventHeader, String(label.lastEvent))
  if (label.cuts.length > 0) header.set(cutHeader, label.cuts.map((cut) => cut.join('-')).join(','))
  return header
}

/** The payload that a message has or points to. */
export function payloadOf({ header, data }: Message): Payload {
  const [at, kept] = [header?.get(eventsHeader) ?? '', header?.get(bodyHeader) ?? '']
  return { data, eventsAt: at === '' ? null : Number(at), kept: kept === '' ? null : kept }
}

/** The row that a message carries; null when it is none of this shard. */
export function rowOf(shard: string, { header }: Message): rows.Row | null {
  return rows.decodeRow(shard, Buffer.from(header?.get(rowHeader) ?? '', 'base64'))
}

/** Number of the message that its writer saw last, as it says; null for what no journal wrote. */
export function behindOf(message: Pick<Message, 'header'>): number | null {
  const text = message.header?.get(behindHeader) ?? ''
  return /^\d{1,15}$/.test(text) ? Number(text) : null
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

/** Whether a message is a cut: nothing was written since it. */
export function isCut(message: Message | null): boolean {
  return message?.header?.get(kindHeader) === 'cut'
}

/** Whether a message is a record that counts. */
export function isRecord({ seq, header }: Message, cuts: readonly Cut[]): boolean {
  return header?.get(kindHeader) === 'record' && !isIn(cuts, seq)
}

/** Whether what has this number does not count. */
export function isIn(cuts: readonly Cut[], seq: number): boolean {
  return cuts.some(([from, to]) => seq >= from && seq <= to)
}

/** The chain hash of a row, as marks have it. */
export function hashOf({ hash }: Pick<rows.Row, 'hash'>): string {
  return rows.asBuffer(hash).toString('base64url')
}

/** A message of the stream as the fence sees it. */
export function placedOf(shard: string, message: Message | null): Placed | null {
  if (message === null) return null
  const row = rowOf(shard, message)
  const epoch = message.header?.get(epochHeader) ?? 'unknown'
  const kind = message.header?.get(kindHeader) ?? ''
  const mark = row == null ? null : { epoch: Number(epoch), kind, last: row.last, hash: hashOf(row) }
  return { at: message.seq, behind: behindOf(message), mark, epoch }
}
