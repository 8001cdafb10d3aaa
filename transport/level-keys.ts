/**
 * Keys and rows of the LevelDB journal.
 *
 * Owns: how a shard's records, index row, events, blobs, snapshots and attempts are named and laid out in bytes, and
 * the checksums over what the hash chain does not cover.
 * Does not own: reading and writing them (`level-journal.ts`, `level-content.ts`), what the bytes inside mean.
 *
 * - LK1 Keys of one kind and shard are contiguous and in the order of their sequences.
 * - LK2 A row is bound to its shard by its checksum: under another shard's key it does not decode.
 * - LK3 A record starts with the index row of its time, so the index can be rebuilt from the records.
 */

import { createHash } from 'node:crypto'
import { crc32 } from 'node:zlib'
import { nothingPending, type Pending, type SnapshotManifest } from '../runtime/journal.js'
import { TroupeError } from '../runtime/errors.js'

/** Kinds of keys, one letter each. */
export const kind = {
  index: 'i',
  record: 'r',
  events: 'e',
  blob: 'b',
  blobInfo: 'n',
  chunk: 'c',
  manifest: 'm',
  attempts: 'a',
} as const

/** One of the key kinds. */
export type Kind = (typeof kind)[keyof typeof kind]

/** Written last by `close`: a synced write that takes the log along. */
export const closedKey = 'z!closed'

/** A range of keys, `lt` excluded. */
export interface KeyRange {
  readonly gte: string
  readonly lt: string
}

// '!' and '"' are neighbours and sort below every character of an id, so `<kind>!<shard>!…` never meets another shard.
const separator = '!'
const afterSeparator = '"'
const shardPattern = /^[A-Za-z0-9_-]{1,64}$/

/** @throws TroupeError `ID_INVALID` for a name that would break the order of keys. */
export function checkShardName(shard: string): void {
  if (!shardPattern.test(shard)) throw new TroupeError('ID_INVALID', `not a shard name: ${JSON.stringify(shard)}`)
}

/** The key of a row that a shard has once. */
export function shardKey(of: Kind, shard: string): string {
  return of + separator + shard
}

/** The key of a row that is named by its content's hash. */
export function hashKey(of: Kind, shard: string, hash: string): string {
  return of + separator + shard + separator + hash
}

/** The key of a row that is named by a sequence; the length in front keeps base 36 in numeric order. */
export function sequenceKey(of: Kind, shard: string, sequence: number): string {
  const digits = sequence.toString(36)
  return of + separator + shard + separator + String.fromCharCode(96 + digits.length) + digits
}

/** The part of a key behind its shard. */
export function keyTail(key: string): string {
  return key.slice(key.indexOf(separator, 2) + 1)
}

/** The shard in a key. */
export function keyShard(key: string): string {
  const end = key.indexOf(separator, 2)
  return end === -1 ? key.slice(2) : key.slice(2, end)
}

/** The sequence in a key that `sequenceKey` made; NaN when it is damaged. */
export function keySequence(key: string): number {
  return Number.parseInt(keyTail(key).slice(1), 36)
}

/** All keys of a kind. */
export function kindRange(of: Kind): KeyRange {
  return { gte: of + separator, lt: of + afterSeparator }
}

/** All keys of a kind and shard that carry a hash or a sequence. */
export function shardRange(of: Kind, shard: string): KeyRange {
  const prefix = of + separator + shard
  return { gte: prefix + separator, lt: prefix + afterSeparator }
}

/** Where a shard stands: the index row, and the head of each of its records. */
export interface Row {
  /** First sequence of the record; for a row without record the same as `last`. */
  readonly first: number
  readonly last: number
  /** Records up to here belong to an earlier life of the id, or are lost: this one starts behind it. */
  readonly base: number
  readonly hash: Uint8Array
  readonly pending: Pending
  readonly removed: boolean
  /** The rows of the removed life are not all deleted yet. */
  readonly removing: boolean
}

/** Bytes of an encoded row. */
export const rowBytes = 80
const rowVersion = 1
const removedFlag = 1
const removingFlag = 2

/** Checksum of a shard's name, the start value of its rows' checksums. */
export function nameChecksum(shard: string): number {
  return crc32(shard)
}

/** Writes a row at the start of `target`. */
export function writeRow(target: Buffer, nameCrc: number, row: Row): void {
  target[0] = rowVersion
  target[1] = (row.removed ? removedFlag : 0) | (row.removing ? removingFlag : 0)
  target[2] = 0
  target[3] = 0
  target.writeUInt32LE(row.pending.openEffects, 4)
  target.writeUInt32LE(row.pending.outbox, 8)
  target.writeDoubleLE(row.first, 12)
  target.writeDoubleLE(row.last, 20)
  target.writeDoubleLE(row.base, 28)
  target.writeDoubleLE(row.pending.nextDueAt ?? Number.NaN, 36)
  target.set(row.hash, 44)
  target.writeUInt32LE(crc32(target.subarray(0, 76), nameCrc), 76)
}

/** A row alone, as it stands under its index key. */
export function encodeRow(shard: string, row: Row): Buffer {
  const bytes = Buffer.allocUnsafe(rowBytes)
  writeRow(bytes, nameChecksum(shard), row)
  return bytes
}

/** Reads the row at the start of `value`; null when it is short, damaged or another shard's. */
export function decodeRow(shard: string, value: Uint8Array): Row | null {
  if (value.length < rowBytes || value[0] !== rowVersion) return null
  const bytes = asBuffer(value)
  if (bytes.readUInt32LE(76) !== crc32(bytes.subarray(0, 76), nameChecksum(shard))) return null
  const nextDueAt = bytes.readDoubleLE(36)
  const openEffects = bytes.readUInt32LE(4)
  const outbox = bytes.readUInt32LE(8)
  const idle = Number.isNaN(nextDueAt) && openEffects === 0 && outbox === 0
  const flags = bytes[1] ?? 0
  return {
    first: bytes.readDoubleLE(12),
    last: bytes.readDoubleLE(20),
    base: bytes.readDoubleLE(28),
    hash: bytes.subarray(44, 76),
    pending: idle ? nothingPending : { nextDueAt: Number.isNaN(nextDueAt) ? null : nextDueAt, openEffects, outbox },
    removed: (flags & removedFlag) !== 0,
    removing: (flags & removingFlag) !== 0,
  }
}

/** A payload behind the checksum of its key, its number and itself. */
export function seal(key: string, payload: Uint8Array, number = 0): Buffer {
  const sealed = Buffer.allocUnsafe(sealBytes + payload.length)
  sealed.writeDoubleLE(number, 4)
  sealed.set(payload, sealBytes)
  sealed.writeUInt32LE(crc32(sealed.subarray(4), crc32(key)), 0)
  return sealed
}

/** What `seal` wrapped, or null when key or bytes are not what they were. */
export function unseal(key: string, sealed: Uint8Array): { readonly number: number; readonly payload: Buffer } | null {
  if (sealed.length < sealBytes) return null
  const bytes = asBuffer(sealed)
  if (bytes.readUInt32LE(0) !== crc32(bytes.subarray(4), crc32(key))) return null
  return { number: bytes.readDoubleLE(4), payload: bytes.subarray(sealBytes) }
}

const sealBytes = 12

/** A manifest's payload: chain hash, number of chunks, their hashes, the manifest's own bytes. */
export function encodeManifest(manifest: SnapshotManifest): Buffer {
  const head = Buffer.allocUnsafe(36)
  head.set(manifest.hash, 0)
  head.writeUInt32LE(manifest.chunks.length, 32)
  return Buffer.concat([head, ...manifest.chunks.map((hash) => Buffer.from(hash, 'hex')), manifest.bytes])
}

/** Reads what `encodeManifest` made; its checksum was verified by `unseal`. */
export function decodeManifest(shard: string, sequence: number, payload: Buffer): SnapshotManifest {
  const chunks: string[] = []
  const end = 36 + 32 * payload.readUInt32LE(32)
  for (let at = 36; at < end; at += 32) chunks.push(payload.toString('hex', at, at + 32))
  return { shard, sequence, hash: payload.subarray(0, 32), bytes: payload.subarray(end), chunks }
}

/** Hex SHA-256, the name of blobs and chunks. */
export function contentHash(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

/** The journal's chain: SHA-256 over the previous hash and a record's bytes. */
export function chainHash(previous: Uint8Array, bytes: Uint8Array): Buffer {
  return createHash('sha256').update(previous).update(bytes).digest()
}

/** The same bytes as a Buffer, without a copy. */
export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}
