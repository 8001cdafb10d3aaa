/**
 * Rows: where a shard stands, and other small things that are kept beside its records, as bytes.
 *
 * Owns: the layout of rows, sealed payloads and manifests, and the checksums over what the hash chain does not cover.
 * Does not own: under which key or subject they are kept.
 *
 * - RO1 A row is bound to its shard by its checksum: under another shard's name it does not decode.
 * - RO2 A sealed payload comes back as it was, under its own key, or not at all.
 */

import { createHash } from 'node:crypto'
import { crc32 } from 'node:zlib'
import { nothingPending, type Pending, type SnapshotManifest } from '../runtime/journal.js'

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
