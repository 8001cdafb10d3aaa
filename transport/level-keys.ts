/**
 * Keys of the LevelDB journal.
 *
 * Owns: how a shard's records, index row, events, blobs, snapshots and attempts are named.
 * Does not own: reading and writing them (`level-journal.ts`, `level-content.ts`), how they are laid out (`rows.ts`).
 *
 * - LK1 Keys of one kind and shard are contiguous and in the order of their sequences.
 * - LK2 A record starts with the index row of its time, so the index can be rebuilt from the records.
 */

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
