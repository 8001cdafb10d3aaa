/**
 * Rows of both places: what LevelDB has, then what only the log in front of it has.
 *
 * Owns: putting the two together in the order of the keys.
 * Does not own: what is wrong with a row (`level-journal.ts`).
 *
 * - LR1 A row that moves from the log to LevelDB while it is read is given once: the log is looked at first, then
 *   LevelDB, and what LevelDB gave is left out of the log's.
 */

import { entries, type Database } from './level-database.js'
import * as keys from './level-keys.js'
import * as rows from './rows.js'
import type { LoggedRecord, RecordLog } from './record-log.js'

/** Records or events of a shard, from the record that contains `from` on. */
export async function* shardEntries(
  db: Database,
  log: RecordLog,
  of: typeof keys.kind.record | typeof keys.kind.events,
  shard: string,
  from: number,
): AsyncGenerator<[string, Buffer]> {
  const logged = log.of(shard).filter(({ last }) => last >= from)
  const begin = logged[0]?.first ?? Number.POSITIVE_INFINITY
  let sequence = from - 1
  if (begin > from) {
    const range = { gte: keys.sequenceKey(of, shard, from), lt: keys.shardRange(of, shard).lt }
    for await (const entry of entries(db, range)) {
      sequence = keys.keySequence(entry[0])
      yield entry
    }
  }
  for (const record of logged) {
    if (record.last <= sequence) continue
    const key = keys.sequenceKey(of, shard, record.last)
    // A copy: whoever keeps a record must not keep all that was appended with it.
    if (of === keys.kind.record) yield [key, Buffer.from(record.value)]
    else if (record.events !== null) yield [key, rows.seal(key, record.events, record.first)]
  }
}

/** Index rows of all shards. */
export async function* indexEntries(db: Database, log: RecordLog): AsyncGenerator<[string, Buffer]> {
  const logged = log.lasts()
  let next = 0
  for await (const entry of entries(db, keys.kindRange(keys.kind.index))) {
    const shard = keys.keyShard(entry[0])
    for (let record = logged[next]; record !== undefined && record.shard <= shard; record = logged[++next]) {
      if (record.shard < shard) yield indexEntry(record)
    }
    const newer = logged[next - 1]
    yield newer?.shard === shard && !reaches(entry[1], newer) ? indexEntry(newer) : entry
  }
  for (const record of logged.slice(next)) yield indexEntry(record)
}

function indexEntry({ shard, value }: LoggedRecord): [string, Buffer] {
  return [keys.shardKey(keys.kind.index, shard), Buffer.from(value.subarray(0, rows.rowBytes))]
}

function reaches(value: Buffer, { shard, last }: LoggedRecord): boolean {
  const row = rows.decodeRow(shard, value)
  return row !== null && row.last >= last
}
