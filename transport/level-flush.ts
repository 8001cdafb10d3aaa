/**
 * From the log into LevelDB.
 *
 * Owns: the rows that a logged record becomes, in which portions they are written, what of a left log is still missing
 * in LevelDB.
 * Does not own: when it happens (`level-commit.ts`), what is missing from both (`level-inspect.ts`).
 *
 * - LF1 A portion has records, events and one index row a shard: the one of its last record in there.
 * - LF2 Of a left log only what follows a shard's last record is taken; behind a gap nothing is.
 */

import { soundValue, type Batch, type Database, type WriteOptions } from './level-database.js'
import { lastSoundRow } from './level-inspect.js'
import * as keys from './level-keys.js'
import * as rows from './rows.js'
import type { LoggedRecord } from './record-log.js'

/**
 * So much is handed to LevelDB at once: a fraction of a millisecond for the one thread that all actors share, and no more
 * than this is lost by one damaged bit of LevelDB's log.
 */
const portionBytes = 64 * 1024

/** Splits records by shard into portions. */
export function* portions(records: ReadonlyMap<string, readonly LoggedRecord[]>): Generator<LoggedRecord[][]> {
  let portion: LoggedRecord[][] = []
  let bytes = 0
  for (const logged of records.values()) {
    let part: LoggedRecord[] = []
    portion.push(part)
    for (const record of logged) {
      if (bytes >= portionBytes) {
        yield portion
        portion = [(part = [])]
        bytes = 0
      }
      part.push(record)
      bytes += record.value.length + (record.events?.length ?? 0)
    }
  }
  if (bytes > 0) yield portion
}

/** The rows of a portion. */
export function portionBatch(db: Database, portion: readonly (readonly LoggedRecord[])[]): Batch {
  const batch = db.batch()
  for (const records of portion) {
    for (const { shard, first, last, value, events } of records) {
      batch.put(keys.sequenceKey(keys.kind.record, shard, last), value)
      if (events === null) continue
      const key = keys.sequenceKey(keys.kind.events, shard, last)
      batch.put(key, rows.seal(key, events, first))
    }
    const end = records.at(-1)
    if (end !== undefined) batch.put(keys.shardKey(keys.kind.index, end.shard), end.value.subarray(0, rows.rowBytes))
  }
  return batch
}

/** Writes what a log that was left behind has, and LevelDB has not. */
export async function replay(db: Database, logged: readonly LoggedRecord[], options: WriteOptions): Promise<void> {
  const byShard = new Map<string, LoggedRecord[]>()
  for (const record of logged) {
    const known = byShard.get(record.shard)
    if (known === undefined) byShard.set(record.shard, [record])
    else known.push(record)
  }
  const missing = await Promise.all(
    [...byShard].map(async ([shard, records]) => [shard, await following(db, shard, records)] as const),
  )
  for (const portion of portions(new Map(missing))) await portionBatch(db, portion).write(options)
}

/** The records that go on where LevelDB's end. */
async function following(db: Database, shard: string, records: readonly LoggedRecord[]): Promise<LoggedRecord[]> {
  const value = await soundValue(db, keys.shardKey(keys.kind.index, shard))
  // An index row that is damaged or gone must not make the log's records look as if they did not follow.
  const row =
    (value === undefined ? null : rows.decodeRow(shard, value)) ?? (await rowOfRecords(db, shard, records[0]?.first))
  const missing: LoggedRecord[] = []
  let sequence = row?.last ?? 0
  for (const record of records) {
    if (record.last <= sequence) continue
    if (record.first !== sequence + 1) break
    missing.push(record)
    sequence = record.last
  }
  return missing
}

async function rowOfRecords(db: Database, shard: string, first = 1): Promise<rows.Row | null> {
  const row = first === 1 ? null : await lastSoundRow(db, shard)
  return row === null ? null : rows.decodeRow(shard, row)
}
