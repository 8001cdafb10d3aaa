/**
 * How shards end in LevelDB: cut back after a loss, or removed.
 *
 * Owns: which rows go and what the index row says then.
 * Does not own: the witness and the damage marks (`level-journal.ts`).
 *
 * - LE1 A cut is one batch: the index row never names what was deleted.
 * - LE2 A removal writes its tombstone first; rows left behind by a crash are of an earlier life and go on the next open.
 */

import { TroupeError } from '../runtime/errors.js'
import { nothingPending } from '../runtime/journal.js'
import { coded, entries, soundValue, type Batch, type Database } from './level-database.js'
import * as keys from './level-keys.js'
import * as rows from './rows.js'

/** Kinds of rows that a removal deletes after the tombstone is written. */
const removedKinds = [
  keys.kind.record,
  keys.kind.events,
  keys.kind.blob,
  keys.kind.blobInfo,
  keys.kind.chunk,
  keys.kind.manifest,
]

/**
 * A batch that deletes what comes after `sequence`. Without a sound record that ends there with `hash`, all records go:
 * the shard goes on from that position with nothing before it.
 */
export async function cutBatch(db: Database, shard: string, sequence: number, hash: Uint8Array): Promise<Batch> {
  const found = sequence === 0 ? undefined : await soundValue(db, keys.sequenceKey(keys.kind.record, shard, sequence))
  const row = found === undefined ? null : rows.decodeRow(shard, found)
  const stays = row !== null && row.last === sequence && rows.asBuffer(row.hash).equals(hash)
  const batch = db.batch()
  for (const of of [keys.kind.record, keys.kind.events, keys.kind.manifest]) {
    const keepsUpTo = stays || of === keys.kind.manifest ? sequence : 0
    const range = { gte: keys.sequenceKey(of, shard, keepsUpTo + 1), lt: keys.shardRange(of, shard).lt }
    const notReadable = (reason: string): TroupeError =>
      new TroupeError('JOURNAL_CORRUPT', `${shard}: ${reason}`, { details: { shard } })
    for await (const [key] of coded(entries(db, range, true), notReadable)) batch.del(key)
  }
  batch.del(keys.shardKey(keys.kind.attempts, shard))
  const key = keys.shardKey(keys.kind.index, shard)
  const start = { first: sequence, last: sequence, base: sequence, hash, pending: nothingPending }
  if (sequence === 0) batch.del(key)
  else batch.put(key, rows.encodeRow(shard, { ...start, ...(stays ? row : {}), removed: false, removing: false }))
  return batch
}

/** The index row of a removed shard. `removing`: its rows are not all deleted yet. */
export function tombstone(shard: string, sequence: number, hash: Uint8Array, removing: boolean): Buffer {
  const position = { first: sequence, last: sequence, base: sequence, hash }
  return rows.encodeRow(shard, { ...position, pending: nothingPending, removed: true, removing })
}

/** Deletes the rows of a removed shard, one kind after the other; then its tombstone says that it is done. */
export async function clearRemoved(
  db: Database,
  shard: string,
  run: (task: () => Promise<void>) => Promise<void>,
): Promise<void> {
  for (const of of removedKinds) await run(() => db.clear(keys.shardRange(of, shard)))
  const key = keys.shardKey(keys.kind.index, shard)
  const value = await soundValue(db, key)
  const row = value === undefined ? null : rows.decodeRow(shard, value)
  if (row === null) return
  const batch = db.batch()
  batch.put(key, tombstone(shard, row.last, row.hash, false))
  await run(() => batch.write({ sync: false }))
}
