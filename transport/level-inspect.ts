/**
 * What an opening LevelDB journal looks through: index rows against the head file, and records against index rows.
 *
 * Owns: which shards are damaged and why, rebuilding an index row from a sound last record.
 * Does not own: lifting a damage mark, the counts after opening (`level-journal.ts`).
 *
 * - LI1 One pass over the index rows when all is well; records are looked at only when something is not.
 * - LI2 A row is rebuilt only from a record whose chain hash was verified; nothing else is repaired.
 * - LI3 Every missing commit that the head file can prove is named with its shard, or with all shards it may be of.
 */

import { nothingPending, type Damage, type ShardHead } from '../runtime/journal.js'
import type { HeadFile } from './head-file.js'
import { entries, levelCode, type Database } from './level-database.js'
import * as keys from './level-keys.js'
import * as rows from './rows.js'

/** Name of the damage whose shards are not known: the store has lost shards of which no trace is left. */
export const unknownShards = '*'

/** A damaged shard, and what the head file's sums count for it. */
export interface DamageMark extends Damage {
  /** Commits that the sums count and the store has. */
  readonly counted: number
  /** Commits that the sums count and the store has not. */
  readonly deficit: number
  /** True when it shares the loss that could not be told apart. */
  readonly shares: boolean
  /** False for the one mark of shards whose names are not known. */
  readonly named: boolean
}

/** What was found. */
export interface Inspection {
  readonly shards: number
  readonly pending: readonly ShardHead[]
  readonly damaged: Map<string, DamageMark>
  /** Removed shards whose deletion was interrupted. */
  readonly removing: readonly string[]
  /** What the head file's header has to say from now on, losses included. */
  readonly count: number
  readonly sum: number
  /** Part of `count` and `sum` that no shard accounts for. */
  readonly lostCount: number
  readonly lostSum: number
}

interface Scan {
  count: number
  sum: number
  shards: number
  complete: boolean
  readonly pending: ShardHead[]
  readonly removing: string[]
  readonly bad: string[]
  readonly marks: DamageMark[]
  /** Shards that the head file knows and the index does not. */
  readonly unseen: Set<string>
}

/** Looks a store through. */
export async function inspect(db: Database, head: HeadFile): Promise<Inspection> {
  let scan = await scanIndex(db, head)
  if (!isSound(scan, head) && (await rebuildRows(db))) scan = await scanIndex(db, head)
  const damaged = new Map<string, DamageMark>()
  for (const mark of scan.marks) damaged.set(mark.shard, mark)
  for (const shard of scan.unseen) {
    const sequence = head.witness(shard)?.sequence ?? 0
    const reason = `all of its ${sequence} commits are missing`
    damaged.set(shard, {
      shard,
      code: 'JOURNAL_TRUNCATED',
      reason,
      counted: 0,
      deficit: sequence,
      shares: false,
      named: true,
    })
  }
  let sum = scan.sum
  for (const mark of damaged.values()) sum += mark.deficit
  const count = scan.count + scan.unseen.size
  const lostSum = head.sound ? Math.max(0, head.sum - sum) : 0
  const lostCount = head.sound ? Math.max(0, head.count - count) : 0
  for (const shard of scan.bad) {
    const reason = 'its index row is damaged and its last record does not prove where it stood'
    damaged.set(shard, { shard, code: 'JOURNAL_CORRUPT', reason, counted: 0, deficit: 0, shares: true, named: true })
  }
  if (scan.bad.length === 0 && (lostSum > 0 || lostCount > 0)) await suspect(db, head, damaged, lostSum, lostCount)
  const pending = scan.pending.filter(({ shard }) => !damaged.has(shard))
  return {
    shards: scan.shards,
    pending,
    damaged,
    removing: scan.removing.filter((shard) => !damaged.has(shard)),
    count: count + lostCount,
    sum: sum + lostSum,
    lostCount,
    lostSum,
  }
}

function isSound(scan: Scan, head: HeadFile): boolean {
  if (!scan.complete || scan.bad.length > 0 || scan.marks.length > 0 || scan.unseen.size > 0) return false
  return !head.sound || (scan.count >= head.count && scan.sum >= head.sum)
}

async function scanIndex(db: Database, head: HeadFile): Promise<Scan> {
  const scan: Scan = {
    count: 0,
    sum: 0,
    shards: 0,
    complete: true,
    pending: [],
    removing: [],
    bad: [],
    marks: [],
    unseen: new Set(head.shards()),
  }
  try {
    for await (const [key, value] of entries(db, keys.kindRange(keys.kind.index))) scanRow(scan, head, key, value)
  } catch (thrown) {
    if (levelCode(thrown) !== 'LEVEL_CORRUPTION') throw thrown
    scan.complete = false
  }
  return scan
}

function scanRow(scan: Scan, head: HeadFile, key: string, value: Buffer): void {
  const shard = keys.keyShard(key)
  const row = rows.decodeRow(shard, value)
  scan.count++
  scan.unseen.delete(shard)
  if (row === null) {
    scan.bad.push(shard)
    scan.shards++
    return
  }
  scan.sum += row.last
  if (row.removing) scan.removing.push(shard)
  if (!row.removed) scan.shards++
  if (row.pending !== nothingPending && !row.removed) {
    scan.pending.push({ shard, sequence: row.last, hash: row.hash, pending: row.pending, removed: false })
  }
  const witness = head.witness(shard)
  if (witness === undefined) return
  if (witness.sequence > row.last) {
    const reason = `commit ${witness.sequence} was stored, the journal ends at ${row.last}`
    const deficit = witness.sequence - row.last
    scan.marks.push({
      shard,
      code: 'JOURNAL_TRUNCATED',
      reason,
      counted: row.last,
      deficit,
      shares: false,
      named: true,
    })
  } else if (witness.sequence === row.last && !rows.asBuffer(row.hash).equals(witness.hash)) {
    const reason = `commit ${row.last} has another hash than the one that was stored`
    scan.marks.push({
      shard,
      code: 'JOURNAL_CORRUPT',
      reason,
      counted: row.last,
      deficit: 0,
      shares: false,
      named: true,
    })
  }
}

/** Marks every shard that may be the one whose tail is missing: those for which the head file has no slot. */
async function suspect(
  db: Database,
  head: HeadFile,
  damaged: Map<string, DamageMark>,
  lostSum: number,
  lostCount: number,
): Promise<void> {
  const lost = `${lostSum} commits are missing from the store`
  try {
    for await (const [key, value] of entries(db, keys.kindRange(keys.kind.index))) {
      const shard = keys.keyShard(key)
      if (head.witness(shard) !== undefined || damaged.has(shard)) continue
      const counted = rows.decodeRow(shard, value)?.last ?? 0
      const reason = `${lost}; this shard may be one of theirs`
      damaged.set(shard, { shard, code: 'JOURNAL_TRUNCATED', reason, counted, deficit: 0, shares: true, named: true })
    }
  } catch (thrown) {
    if (levelCode(thrown) !== 'LEVEL_CORRUPTION') throw thrown
  }
  const anySuspect = [...damaged.values()].some((mark) => mark.shares)
  if (anySuspect && lostCount === 0) return
  const shard = unknownShards
  const reason = `${lost}; ${lostCount} shards are gone and their names are not known`
  damaged.set(shard, { shard, code: 'JOURNAL_TRUNCATED', reason, counted: 0, deficit: 0, shares: true, named: false })
}

/** Rebuilds index rows that are damaged, missing or older than their shard's last record. True when there were any. */
async function rebuildRows(db: Database): Promise<boolean> {
  const batch = db.batch()
  let rebuilt = 0
  for (const shard of await recordedShards(db)) {
    const key = keys.shardKey(keys.kind.index, shard)
    const found = await readable(() => db.get(key))
    const row = found === undefined ? null : rows.decodeRow(shard, found)
    const last = await lastSoundRow(db, shard)
    if (last === null || (row !== null && row.last >= rows.decodeRow(shard, last)!.last)) continue
    batch.put(key, last)
    rebuilt++
  }
  if (rebuilt > 0) await batch.write({ sync: true })
  return rebuilt > 0
}

async function recordedShards(db: Database): Promise<string[]> {
  const shards: string[] = []
  const iterator = db.iterator({ ...keys.kindRange(keys.kind.record), values: false })
  try {
    for (;;) {
      const [entry] = await iterator.nextv(1)
      if (entry === undefined) break
      const shard = keys.keyShard(entry[0])
      shards.push(shard)
      iterator.seek(keys.shardRange(keys.kind.record, shard).lt)
    }
  } catch (thrown) {
    if (levelCode(thrown) !== 'LEVEL_CORRUPTION') throw thrown
  } finally {
    await iterator.close()
  }
  return shards
}

/** The row in front of a shard's last record, when the record's chain hash is right. */
export async function lastSoundRow(db: Database, shard: string): Promise<Buffer | null> {
  const range = keys.shardRange(keys.kind.record, shard)
  const iterator = db.iterator({ ...range, reverse: true, limit: 2 })
  const found: Buffer[] = []
  const read = await readable(async () => {
    for (let index = 0; index < 2; index++) {
      const [entry] = await iterator.nextv(1)
      if (entry === undefined) break
      if (index === 0 && keys.keySequence(entry[0]) !== rows.decodeRow(shard, entry[1])?.last) break
      found.push(entry[1])
    }
    return true
  })
  await iterator.close()
  const [last, before] = found
  const row = last === undefined ? null : rows.decodeRow(shard, last)
  if (read === undefined || last === undefined || row === null) return null
  const previous = before === undefined ? null : rows.decodeRow(shard, before)
  if (before !== undefined && (previous === null || previous.last !== row.first - 1)) return null
  // The hash before a first record of a later life is the tombstone's; the row that held it may be the lost one.
  if (previous === null && row.base > 0) return last.subarray(0, rows.rowBytes)
  const hash = rows.chainHash(previous?.hash ?? new Uint8Array(32), last.subarray(rows.rowBytes))
  return hash.equals(row.hash) ? last.subarray(0, rows.rowBytes) : null
}

async function readable<T>(read: () => Promise<T>): Promise<T | undefined> {
  try {
    return await read()
  } catch (thrown) {
    if (levelCode(thrown) !== 'LEVEL_CORRUPTION') throw thrown
    return undefined
  }
}
