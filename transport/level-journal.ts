/**
 * The journal in LevelDB: one folder, one owner, all shards of a worker.
 *
 *     db/      LevelDB (keys and rows: `level-keys.ts`)
 *     log-0/1  what is not in there yet (`record-log.ts`); empty when closed
 *     head     the witness (`head-file.ts`)
 *     pid      the owner's process id, for the message of who finds the store busy
 *     reserve  space that is freed when the disk is full, because LevelDB needs some to open
 *
 * Owns: ownership, damage marks, reading, cutting and removing shards, opening anew after a failed write.
 * Does not own: the order of writing (`level-commit.ts`), the chain's check (`recovery.ts` in `runtime/`), content
 * beside records (`level-content.ts`).
 *
 * - L1 In `power` the log and each batch is synced. The witness is not: a power cut can only leave it older than the
 *   store, which is no damage; it is brought to disk about once a second, and when the journal closes.
 * - L2 In `process` nothing is synced; after a power cut every shard behind the witness is named as truncated.
 * - L3 A damaged shard refuses `head` and appends with its code until `acceptLoss`; reading gives its sound records,
 *   then the error. The other shards go on.
 * - L4 An idle shard costs no memory.
 */

import { mkdirSync } from 'node:fs'
import { Level } from 'level'
import { TroupeError, isTroupeError } from '../runtime/errors.js'
import {
  type BlobInfo,
  type Durability,
  type Journal,
  type JournalRecord,
  type OpenReport,
  type ShardHead,
  type SnapshotManifest,
  type StoredRecord,
} from '../runtime/journal.js'
import { HeadFile } from './head-file.js'
import { LevelCommit, type CommitTarget, type LevelEntry } from './level-commit.js'
import { LevelContent } from './level-content.js'
import {
  coded,
  levelCode,
  openError,
  storeError,
  type Batch,
  type Database,
  type WriteOptions,
} from './level-database.js'
import { clearRemoved, cutBatch, tombstone } from './level-ends.js'
import { LevelFiles } from './level-files.js'
import { replay } from './level-flush.js'
import { inspect, type DamageMark } from './level-inspect.js'
import * as keys from './level-keys.js'
import * as rows from './rows.js'
import { ShardHeads, entryOf, headOf } from './shard-heads.js'
import { LevelLane, copyOf } from './level-lane.js'
import { indexEntries, shardEntries } from './level-reading.js'
import { checkTables, tablesOf } from './level-tables.js'
import { RecordLog } from './record-log.js'

/** A range without keys. */
const afterAllKeys = '\uffff'
/** What LevelDB gathers before it writes a table. Four times its default: large messages are merged less often. */
const writeBufferSize = 16 * 1024 * 1024

/** Options of `createLevelJournal`. */
export interface LevelJournalOptions {
  /** Folder of the store; made when it is not there. */
  readonly path: string
  /** What a resolved append survives. @default 'power' */
  readonly durability?: Exclude<Durability, 'memory'>
}

/** A journal in LevelDB. Nothing is touched before `open`. */
export function createLevelJournal(options: LevelJournalOptions): Journal {
  return new LevelJournal(options.path, options.durability ?? 'power')
}

/** Opens a folder of LevelDB. Rejects with the library's error. */
export async function openLevel(path: string, createIfMissing = true): Promise<Database> {
  const db = new Level<string, Buffer>(path, { valueEncoding: 'buffer', createIfMissing, writeBufferSize })
  await db.open()
  return db
}

class LevelJournal implements Journal {
  readonly durability: Durability
  readonly #path: string
  readonly #options: WriteOptions
  readonly #files: LevelFiles
  readonly #lane = new LevelLane()
  readonly #commit: LevelCommit
  readonly #heads: ShardHeads<LevelEntry>
  readonly #content: LevelContent

  #state: 'closed' | 'opening' | 'open' | 'closing' = 'closed'
  /** Null while closed, and after a reopening that failed. */
  #target: CommitTarget | null = null
  #damaged = new Map<string, DamageMark>()
  /** Part of the witness's sums that the marks with `shares` have in common. */
  #lost = { count: 0, sum: 0 }
  #recovery: Promise<void> | null = null
  #closed: Promise<void> = Promise.resolve()

  constructor(path: string, durability: Exclude<Durability, 'memory'>) {
    this.#path = path
    this.durability = durability
    this.#options = { sync: durability === 'power' }
    this.#files = new LevelFiles(path)
    this.#heads = new ShardHeads(async (shard) => {
      const row = await this.#row(shard)
      return { ...entryOf(shard, row), nameCrc: rows.nameChecksum(shard), exists: row !== undefined }
    })
    this.#commit = new LevelCommit(
      this.#lane,
      this.#options,
      () => this.#open(),
      (shard) => this.#heads.forget(shard),
    )
    this.#content = new LevelContent({ db: () => this.#open().db, write: (batch) => this.#write(batch) })
  }

  // Life.

  async open(): Promise<OpenReport> {
    if (this.#state !== 'closed') {
      throw new TroupeError('STORE_BUSY', `${this.#path} is open already`, { details: { pid: process.pid } })
    }
    this.#state = 'opening'
    try {
      mkdirSync(this.#path, { recursive: true, mode: 0o700 })
      const report = await this.#openTarget()
      await this.#files.fillReserve()
      this.#lane.reset()
      this.#state = 'open'
      return report
    } catch (thrown) {
      this.#state = 'closed'
      throw levelCode(thrown) === 'LEVEL_CORRUPTION' ? openError(thrown, this.#path, null) : storeError(thrown)
    }
  }

  /** Opens all files. On a full disk it is tried once more with the space that was set aside. */
  async #openTarget(): Promise<OpenReport> {
    const createIfMissing = this.#files.isUnused()
    for (;;) {
      try {
        return await this.#tryTarget(createIfMissing)
      } catch (thrown) {
        if (storeError(thrown).code !== 'STORE_FULL' || !this.#files.freeReserve()) throw thrown
      }
    }
  }

  async #tryTarget(createIfMissing: boolean): Promise<OpenReport> {
    const tables = tablesOf(this.#files.database)
    const db = await this.#openDatabase(createIfMissing)
    let log: RecordLog | null = null
    let witness: HeadFile | null = null
    try {
      this.#files.claim()
      checkTables(tables)
      log = new RecordLog(this.#files.logs, this.#options.sync)
      await replay(db, log.recover(), this.#options)
      log.clear()
      witness = new HeadFile(this.#files.head)
      return await this.#adopt({ db, log, witness })
    } catch (thrown) {
      this.#target = null
      witness?.close()
      log?.close()
      await db.close()
      throw thrown
    }
  }

  async #openDatabase(createIfMissing: boolean): Promise<Database> {
    try {
      return await openLevel(this.#files.database, createIfMissing)
    } catch (thrown) {
      throw openError(thrown, this.#path, this.#files.owner())
    }
  }

  /** Looks a store through and goes on from what was found. */
  async #adopt(target: CommitTarget): Promise<OpenReport> {
    const { db, witness } = target
    const found = await inspect(db, witness)
    this.#heads.clear()
    this.#damaged = found.damaged
    this.#lost = { count: found.lostCount, sum: found.lostSum }
    witness.pin = (shard) => this.#damaged.has(shard)
    for (const shard of found.removing) await clearRemoved(db, shard, (task) => task())
    const unclean = !witness.clean && (found.count > 0 || witness.sound)
    witness.count = found.count
    witness.sum = found.sum
    witness.writeHeader()
    this.#target = target
    const damaged = [...found.damaged.values()].map(({ shard, code, reason, counted, deficit }) => {
      return { shard, code, reason, last: counted + deficit }
    })
    return { shards: found.shards, pending: found.pending, damaged, unclean }
  }

  close(): Promise<void> {
    if (this.#state === 'open') {
      this.#state = 'closing'
      this.#closed = this.#release()
    }
    return this.#closed
  }

  async #release(): Promise<void> {
    await this.#recovery?.catch(() => undefined)
    await this.#commit.idle()
    const target = this.#target
    try {
      if (target !== null && this.#lane.failure === null) {
        await this.#commit.flush()
        // In `process` the log is not on disk yet: one synced write takes it along, or the witness could be ahead.
        const batch = target.db.batch()
        batch.put(keys.closedKey, Buffer.from(String(target.witness.sum)))
        await batch.write({ sync: true })
        target.log.clear()
        target.witness.writeHeader(true)
        // A table is compressed and has no row twice, the log is not and has: half the space of a small store.
        await target.db.compactRange?.(afterAllKeys, afterAllKeys).catch(() => undefined)
        // What is set aside for a full disk goes with the owner where the disk is far from full.
        if (this.#files.hasRoom()) {
          target.witness.trim()
          this.#files.freeReserve()
        }
      }
    } catch (thrown) {
      throw storeError(thrown)
    } finally {
      this.#files.disclaim()
      this.#target = null
      await closeTarget(target)
      this.#heads.clear()
      this.#state = 'closed'
    }
  }

  #open(): CommitTarget {
    if (this.#target !== null && this.#state !== 'closed') return this.#target
    if (this.#lane.failure !== null && this.#state === 'open') throw copyOf(this.#lane.failure)
    throw new TroupeError('STORE_FAILED', 'the journal is not open')
  }

  // Appending.

  append(record: JournalRecord): Promise<void> {
    const refusal = this.#refusal(record.shard)
    if (refusal !== null) return Promise.reject(refusal)
    const entry = this.#heads.cached(record.shard)
    if (entry !== undefined) return this.#append(entry, record)
    return this.#heads.entry(record.shard).then((loaded) => {
      const refusalNow = this.#refusal(record.shard)
      if (refusalNow !== null) throw refusalNow
      return this.#append(loaded, record)
    })
  }

  #append(entry: LevelEntry, record: JournalRecord): Promise<void> {
    if (!entry.busy && record.first === entry.sequence + 1 && record.last >= record.first) {
      return this.#commit.append(entry, record)
    }
    const { shard, first, last } = record
    const details = { shard, sequence: entry.sequence, first }
    const problem = entry.busy ? 'an append is in flight' : `it ends at ${entry.sequence}`
    const message = `commits ${first} to ${last} of ${shard} do not follow: ${problem}`
    return Promise.reject(new TroupeError('STORE_FAILED', message, { details }))
  }

  /** Why a shard takes no change now, or null. */
  #refusal(shard: string): TroupeError | null {
    if (this.#state !== 'open') return new TroupeError('STORE_FAILED', 'the journal is not open')
    if (this.#lane.failure !== null) return copyOf(this.#lane.failure)
    const mark = this.#damaged.size === 0 ? undefined : this.#damaged.get(shard)
    return mark === undefined ? null : damageError(mark)
  }

  async refresh(shard: string): Promise<ShardHead> {
    if (this.#lane.failure !== null && this.#state === 'open') {
      this.#recovery ??= this.#reopen().finally(() => {
        this.#recovery = null
      })
      await this.#recovery
    }
    if (this.#heads.cached(shard)?.busy !== true) this.#heads.forget(shard)
    return this.head(shard)
  }

  /** Opens the database anew, with a new log, once the disk has room for what that takes. */
  async #reopen(): Promise<void> {
    await this.#commit.idle()
    try {
      await this.#files.probeSpace()
      this.#files.freeReserve()
      const target = this.#target
      this.#target = null
      await closeTarget(target)
      await this.#openTarget()
      this.#lane.reset()
      await this.#files.fillReserve()
    } catch (thrown) {
      this.#lane.failure = storeError(thrown)
      throw copyOf(this.#lane.failure)
    }
  }

  // Heads.

  async head(shard: string): Promise<ShardHead> {
    const mark = this.#damaged.get(shard)
    if (mark !== undefined) throw damageError(mark)
    return headOf(await this.#heads.entry(shard))
  }

  async *heads(): AsyncGenerator<ShardHead> {
    const { db, log } = this.#open()
    for await (const [key, value] of coded(indexEntries(db, log), indexError)) {
      const shard = keys.keyShard(key)
      const row = rows.decodeRow(shard, value)
      if (row !== null) yield { shard, sequence: row.last, hash: row.hash, pending: row.pending, removed: row.removed }
      else if (!this.#damaged.has(shard)) throw this.#corrupt(shard, 'its index row is damaged')
    }
  }

  async #row(shard: string): Promise<rows.Row | undefined> {
    keys.checkShardName(shard)
    const { db, log } = this.#open()
    try {
      const value = log.last(shard)?.value ?? (await db.get(keys.shardKey(keys.kind.index, shard)))
      if (value === undefined) return undefined
      const row = rows.decodeRow(shard, value)
      if (row !== null) return row
    } catch (thrown) {
      if (levelCode(thrown) !== 'LEVEL_CORRUPTION') throw storeError(thrown)
    }
    throw this.#corrupt(shard, 'its index row is damaged')
  }

  /** Marks a shard whose damage was found after `open`. */
  #corrupt(shard: string, reason: string): TroupeError {
    const known = this.#damaged.get(shard)
    if (known !== undefined) return damageError(known)
    // Not known: then the witness's sum is given up until the next open.
    const witnessed = this.#target?.witness.witness(shard)?.sequence ?? Number.POSITIVE_INFINITY
    const counted = this.#heads.cached(shard)?.sequence ?? witnessed
    const mark: DamageMark = { shard, code: 'JOURNAL_CORRUPT', reason, counted, deficit: 0, shares: false, named: true }
    this.#damaged.set(shard, mark)
    return damageError(mark)
  }

  // Reading.

  async *read(shard: string, from: number): AsyncGenerator<StoredRecord> {
    const { base, end } = await this.#bounds(shard)
    const start = Math.max(from, base + 1)
    let next = start
    for await (const [key, value] of this.#shardEntries(keys.kind.record, shard, start)) {
      const row = rows.decodeRow(shard, value)
      if (row === null || row.last !== keys.keySequence(key)) {
        throw this.#corrupt(shard, `the record that ends at commit ${keys.keySequence(key)} is damaged`)
      }
      const follows = next === start ? row.first <= start : row.first === next
      if (!follows) throw this.#corrupt(shard, `commits ${next} to ${row.first - 1} are missing`)
      next = row.last + 1
      yield { first: row.first, last: row.last, hash: row.hash, bytes: value.subarray(rows.rowBytes) }
    }
    if (next <= end) throw this.#corrupt(shard, `commits ${next} to ${end} are missing`)
    const mark = this.#damaged.get(shard)
    if (mark !== undefined) throw damageError(mark)
  }

  async *readEvents(
    shard: string,
    from: number,
  ): AsyncGenerator<{ readonly first: number; readonly bytes: Uint8Array }> {
    const { base } = await this.#bounds(shard)
    for await (const [key, value] of this.#shardEntries(keys.kind.events, shard, Math.max(from, base + 1))) {
      const opened = rows.unseal(key, value)
      if (opened === null) {
        throw corruptError(shard, `the events of the record that ends at commit ${keys.keySequence(key)} are damaged`)
      }
      yield { first: opened.number, bytes: opened.payload }
    }
  }

  /** Where this life of the shard begins, and the commit it ends with as far as the index knows. */
  async #bounds(shard: string): Promise<{ readonly base: number; readonly end: number }> {
    if (!this.#damaged.has(shard)) {
      const { base, sequence } = await this.#heads.entry(shard)
      return { base, end: sequence }
    }
    const row = await this.#row(shard).catch((thrown: unknown) => {
      if (isTroupeError(thrown) && thrown.code !== 'STORE_FAILED') return undefined
      throw thrown
    })
    return { base: row?.base ?? 0, end: row?.last ?? 0 }
  }

  #shardEntries(of: 'r' | 'e', shard: string, from: number): AsyncGenerator<[string, Buffer]> {
    const { db, log } = this.#open()
    return coded(shardEntries(db, log, of, shard, from), (reason) => this.#corrupt(shard, reason))
  }

  // Ends.

  async remove(shard: string): Promise<void> {
    const entry = await this.#claim(shard)
    try {
      await this.#commit.flush()
      const { db } = this.#open()
      const batch = db.batch()
      const { sequence, hash } = entry
      if (entry.exists) batch.put(keys.shardKey(keys.kind.index, shard), tombstone(shard, sequence, hash, true))
      batch.del(keys.shardKey(keys.kind.attempts, shard))
      await this.#write(batch)
      await clearRemoved(db, shard, (task) => this.#lane.run(task))
    } finally {
      entry.busy = false
      this.#heads.forget(shard)
    }
  }

  /** Writes a batch, alone. */
  #write(batch: Batch): Promise<void> {
    return this.#lane.run(() => batch.write(this.#options))
  }

  /** The entry of a sound shard, made busy: nobody else changes it meanwhile. */
  async #claim(shard: string): Promise<LevelEntry> {
    const refusal = this.#refusal(shard)
    if (refusal !== null) throw refusal
    const entry = await this.#heads.entry(shard)
    if (entry.busy) throw new TroupeError('STORE_FAILED', `${shard} is being written`, { retryable: true })
    entry.busy = true
    return entry
  }

  /**
   * The store is cut before the witness: after a crash in between the shard is named again. A shard without mark gets a
   * slot first, so that it would be.
   */
  async acceptLoss(shard: string, sequence: number, hash: Uint8Array): Promise<void> {
    const mark = this.#damaged.get(shard)
    const entry = mark === undefined ? await this.#claim(shard) : null
    try {
      const { witness } = this.#open()
      if (entry?.exists === true) {
        witness.note(shard, entry.sequence, entry.hash)
        witness.write()
      }
      const hasRow = entry?.exists ?? mark?.named === true
      const isNamed = mark?.named !== false
      if (isNamed) {
        await this.#commit.alone(async ({ db, log }) => {
          const batch = await cutBatch(db, shard, sequence, hash)
          await this.#lane.run(async () => {
            log.clear(true)
            await batch.write({ sync: true })
          })
        })
      }
      this.#damaged.delete(shard)
      witness.sum -= entry?.sequence ?? (mark === undefined ? 0 : mark.counted + mark.deficit)
      if (hasRow) witness.count--
      if (mark?.shares === true && ![...this.#damaged.values()].some((each) => each.shares)) {
        witness.sum -= this.#lost.sum
        witness.count -= this.#lost.count
        this.#lost = { count: 0, sum: 0 }
      }
      witness.drop(shard)
      if (sequence > 0 && isNamed) {
        witness.sum += sequence
        witness.count++
        witness.note(shard, sequence, hash)
      }
      witness.writeHeader()
    } finally {
      if (entry !== null) entry.busy = false
      this.#heads.forget(shard)
    }
  }

  // Content beside the records.

  putBlob(shard: string, hash: string, bytes: Uint8Array, sequence: number): Promise<void> {
    return this.#content.putBlob(shard, hash, bytes, sequence)
  }

  getBlob(shard: string, hash: string): Promise<Uint8Array> {
    return this.#content.getBlob(shard, hash)
  }

  listBlobs(shard: string): Promise<readonly BlobInfo[]> {
    return this.#content.listBlobs(shard)
  }

  deleteBlobs(shard: string, hashes: readonly string[]): Promise<void> {
    return this.#content.deleteBlobs(shard, hashes)
  }

  async putSnapshot(
    manifest: SnapshotManifest,
    chunks: ReadonlyMap<string, Uint8Array>,
    keep: readonly number[],
  ): Promise<void> {
    // What LevelDB has must not name a record that only the log has.
    if (this.#open().log.last(manifest.shard) !== undefined) await this.#commit.flush()
    return this.#content.putSnapshot(manifest, chunks, keep)
  }

  snapshots(shard: string): Promise<readonly SnapshotManifest[]> {
    return this.#content.snapshots(shard)
  }

  getChunks(shard: string, hashes: readonly string[]): Promise<readonly Uint8Array[]> {
    return this.#content.getChunks(shard, hashes)
  }

  putAttempts(shard: string, attempts: Readonly<Record<string, number>>): Promise<void> {
    return this.#content.putAttempts(shard, attempts)
  }

  getAttempts(shard: string): Promise<Readonly<Record<string, number>>> {
    return this.#content.getAttempts(shard)
  }
}

async function closeTarget(target: CommitTarget | null): Promise<void> {
  target?.witness.close()
  target?.log.close()
  await target?.db.close()
}

function damageError({ shard, code, reason }: DamageMark): TroupeError {
  return new TroupeError(code, `${shard}: ${reason}`, { details: { shard } })
}

/** Which shards are behind a damaged block of the index is not known; `open` finds out. */
function indexError(reason: string): TroupeError {
  return new TroupeError('JOURNAL_CORRUPT', reason)
}

function corruptError(shard: string, reason: string): TroupeError {
  return new TroupeError('JOURNAL_CORRUPT', `${shard}: ${reason}`, { details: { shard } })
}
