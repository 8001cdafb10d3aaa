/**
 * The local copy: what a worker has read from JetStream or written there, in LevelDB, so that it need not fetch it again.
 *
 * Owns: keeping records and pieces by shard, how much is kept and what goes first, trouble with the folder.
 * Does not own: what is true (JetStream), the check against it (`jetstream-journal.ts`, `jetstream-content.ts`).
 *
 * - LCP1 What is given out is what was kept: each row is checked against its hash, and records follow from each other.
 * - LCP2 A folder that is damaged, full, not writable or in use costs speed and nothing else. It is told once.
 * - LC3 Nobody waits for what is kept, and who reads not for what comes meanwhile; at most 16 MiB are on their way to the
 *   disk, and what does not fit is not kept.
 * - LC4 It holds at most about `maxBytes`: the shards that were not used for longest go first.
 * - LC5 What was kept of a shard before it was cut or removed is gone when its new life is entered.
 */
import { createHash } from 'node:crypto'
import { mkdirSync, rmSync } from 'node:fs'
import { isTroupeError } from '../runtime/errors.js'
import { nothingPending, type StoredRecord } from '../runtime/journal.js'
import type { Log } from '../runtime/log.js'
import { type Database, entries, levelCode } from './level-database.js'
import { openLevel } from './level-journal.js'
import * as keys from './level-keys.js'
import { checkTables, tablesOf } from './level-tables.js'
import * as rows from './rows.js'

/** Options of `LocalCopy.open`. */
export interface LocalCopyOptions {
  /** A folder of its own: it is emptied when it is damaged. */
  readonly path: string
  readonly log: Log
  /** @default 1 GiB */
  readonly maxBytes?: number
}

/** Kinds of pieces that are kept. */
export type PieceKind = 'blob' | 'chunk'

/** What is known of one shard. */
interface Kept {
  /** Which life of the shard it is of. */
  life: string
  bytes: number
  /** The last commit that is kept, or was: nothing behind it is looked for. */
  last: number
  /** Epoch milliseconds. */
  usedAt: number
}

const gibibyte = 1024 * 1024 * 1024
const maxPendingBytes = 16 * 1024 * 1024
/** Of `maxBytes`, what is left after shards had to go. */
const leftAfter = 0.8
const hashBytes = 32
const recordHead = rows.rowBytes + hashBytes
const kindOf = { blob: keys.kind.blob, chunk: keys.kind.chunk } as const
const shardKinds = [keys.kind.record, ...Object.values(kindOf)] as const

/** One folder, used by one process. */
export class LocalCopy {
  readonly #db: Database
  readonly #log: Log
  readonly #maxBytes: number
  readonly #shards: Map<string, Kept>
  /** What is to be written, by key; null deletes. */
  #pending = new Map<string, { readonly shard: string; readonly value: Buffer | null }>()
  #pendingBytes = 0
  #writing: Promise<void> | null = null
  /** The batch that is being written, how many rows were given and how many of them are written. */
  #batch: Promise<void> = Promise.resolve()
  #given = 0
  #written = 0
  #isBroken = false
  #total: number

  private constructor(db: Database, { log, maxBytes = gibibyte }: LocalCopyOptions, shards: Map<string, Kept>) {
    this.#db = db
    this.#log = log
    this.#maxBytes = maxBytes
    this.#shards = shards
    this.#total = [...shards.values()].reduce((sum, { bytes }) => sum + bytes, 0)
  }

  /** Opens a folder, and empties it when it is damaged. Null when it cannot be used: the log says why. Never rejects. */
  static async open(options: LocalCopyOptions): Promise<LocalCopy | null> {
    const { path, log } = options
    for (const isLast of [false, true]) {
      try {
        const db = await openSound(path)
        return new LocalCopy(db, options, await shardsOf(db))
      } catch (error) {
        if (levelCode(error) === 'LEVEL_LOCKED') {
          log.warn('another process uses the local copy: this worker goes without one', { path })
          return null
        }
        if (isLast || !isDamage(error)) {
          log.warn('the local copy cannot be opened: this worker goes without one', { path, reason: reasonOf(error) })
          return null
        }
        remove(path)
      }
    }
    return null
  }

  /** Writes what is still to be written. */
  async close(): Promise<void> {
    await this.#settled()
    if (this.#isBroken) return
    this.#isBroken = true
    await this.#db.close().catch(() => undefined)
  }

  /** Of this life is what comes now of a shard; what was kept of another one goes. */
  async enter(shard: string, life: string): Promise<void> {
    const kept = this.#shards.get(shard)
    if (kept !== undefined && kept.life !== life) await this.forget(shard)
    this.#touch(shard).life = life
  }

  /** Drops everything of a shard. */
  async forget(shard: string): Promise<void> {
    await this.#try(async () => {
      await this.#settled()
      await this.#clear(shard)
    })
  }

  async #clear(shard: string): Promise<void> {
    const kept = this.#shards.get(shard)
    if (kept === undefined) return
    this.#shards.delete(shard)
    this.#total -= kept.bytes
    for (const kind of shardKinds) await this.#db.clear(keys.shardRange(kind, shard))
    const batch = this.#db.batch()
    batch.del(keys.shardKey(keys.kind.index, shard))
    await batch.write({ sync: false })
  }

  // Pieces.

  /** A piece as it was kept, or null. Whoever asks checks it. */
  async piece(shard: string, kind: PieceKind, key: string): Promise<Buffer | null> {
    const found = await this.#try(async () => {
      await this.#settled()
      return this.#db.get(keys.hashKey(kindOf[kind], shard, key))
    })
    if (found !== undefined) this.#touch(shard)
    return found ?? null
  }

  keepPiece(shard: string, kind: PieceKind, key: string, bytes: Uint8Array): void {
    this.#put(shard, keys.hashKey(kindOf[kind], shard, key), rows.asBuffer(bytes))
  }

  dropPiece(shard: string, kind: PieceKind, key: string): void {
    if (this.#shards.has(shard)) this.#put(shard, keys.hashKey(kindOf[kind], shard, key), null)
  }

  // Records.

  keepRecord(shard: string, { first, last, hash, bytes }: StoredRecord): void {
    const row = { first, last, hash, base: 0, pending: nothingPending, removed: false, removing: false }
    const value = Buffer.concat([rows.encodeRow(shard, row), sha256(bytes), bytes])
    const kept = this.#touch(shard)
    kept.last = Math.max(kept.last, last)
    this.#put(shard, keys.sequenceKey(keys.kind.record, shard, first), value)
  }

  /** Records from the one that contains a sequence on, each following from the one before, as far as there are any. */
  async *records(shard: string, from: number): AsyncGenerator<StoredRecord> {
    const start = await this.#startOf(shard, from)
    if (start === null) return
    let previous: StoredRecord | null = null
    const found = entries(this.#db, { gte: start, lt: keys.shardRange(keys.kind.record, shard).lt })
    try {
      for await (const [, value] of found) {
        const record = recordIn(shard, value)
        if (record === null || (previous === null ? record.last < from : !follows(record, previous))) return
        yield record
        previous = record
      }
    } catch (error) {
      // What cannot be read is fetched; the rest may be sound.
      if (levelCode(error) !== 'LEVEL_CORRUPTION') this.#fail(error)
    }
  }

  /** The key of the record that may contain a sequence. */
  async #startOf(shard: string, from: number): Promise<string | null> {
    if ((this.#shards.get(shard)?.last ?? 0) < from) return null
    const found = await this.#try(async () => {
      await this.#settled()
      if (this.#isBroken || !this.#shards.has(shard)) return null
      const { gte } = keys.shardRange(keys.kind.record, shard)
      const lt = keys.sequenceKey(keys.kind.record, shard, from + 1)
      const iterator = this.#db.iterator({ gte, lt, reverse: true, limit: 1 })
      try {
        return (await iterator.nextv(1))[0]?.[0] ?? null
      } finally {
        await iterator.close()
      }
    })
    return found ?? null
  }

  // Writing.

  #touch(shard: string): Kept {
    const kept = this.#shards.get(shard) ?? { life: '', bytes: 0, last: 0, usedAt: 0 }
    kept.usedAt = Date.now()
    this.#shards.set(shard, kept)
    return kept
  }

  #put(shard: string, key: string, value: Buffer | null): void {
    const bytes = value?.length ?? 0
    if (this.#isBroken || this.#pendingBytes + bytes > maxPendingBytes) return
    this.#touch(shard)
    this.#pending.set(key, { shard, value })
    this.#pendingBytes += bytes
    this.#given++
    this.#writing ??= this.#write().finally(() => (this.#writing = null))
  }

  async #write(): Promise<void> {
    await this.#try(async () => {
      while (this.#pending.size > 0) {
        const pending = this.#pending
        const given = this.#given
        this.#pending = new Map()
        this.#pendingBytes = 0
        this.#batch = this.#writeBatch(pending)
        await this.#batch
        this.#written = given
      }
    })
  }

  async #writeBatch(
    pending: ReadonlyMap<string, { readonly shard: string; readonly value: Buffer | null }>,
  ): Promise<void> {
    const batch = this.#db.batch()
    for (const [key, { shard, value }] of pending) {
      const bytes = value?.length ?? -((await this.#db.get(key))?.length ?? 0)
      this.#touch(shard).bytes += bytes
      this.#total += bytes
      if (value === null) batch.del(key)
      else batch.put(key, value)
    }
    for (const shard of new Set([...pending.values()].map((each) => each.shard))) {
      batch.put(keys.shardKey(keys.kind.index, shard), Buffer.from(JSON.stringify(this.#touch(shard))))
    }
    await batch.write({ sync: false })
    await this.#makeRoom()
  }

  async #makeRoom(): Promise<void> {
    if (this.#total <= this.#maxBytes) return
    const oldest = [...this.#shards].sort(([, one], [, other]) => one.usedAt - other.usedAt)
    for (const [shard] of oldest) if (this.#total > this.#maxBytes * leftAfter) await this.#clear(shard)
  }

  /** Resolves when what was given up to now is written, however much comes after it. */
  async #settled(): Promise<void> {
    const given = this.#given
    while (this.#writing !== null && this.#written < given) await Promise.race([this.#batch, this.#writing])
  }

  /** Does something with the folder; undefined when it cannot be used. Never rejects. */
  async #try<T>(work: () => Promise<T>): Promise<T | undefined> {
    if (this.#isBroken) return undefined
    try {
      return await work()
    } catch (error) {
      if (levelCode(error) !== 'LEVEL_CORRUPTION') this.#fail(error)
      return undefined
    }
  }

  #fail(error: unknown): void {
    if (this.#isBroken) return
    this.#isBroken = true
    this.#pending.clear()
    this.#log.warn('the local copy is not used any more', { reason: reasonOf(error) })
    void this.#db.close().catch(() => undefined)
  }
}

/** Opens a folder that LevelDB survives. */
async function openSound(path: string): Promise<Database> {
  mkdirSync(path, { recursive: true, mode: 0o700 })
  const tables = tablesOf(path)
  const db = await openLevel(path)
  try {
    checkTables(tables)
    return db
  } catch (error) {
    await db.close()
    throw error
  }
}

async function shardsOf(db: Database): Promise<Map<string, Kept>> {
  const found = new Map<string, Kept>()
  try {
    for await (const [key, value] of entries(db, keys.kindRange(keys.kind.index))) {
      found.set(keys.keyShard(key), JSON.parse(value.toString()) as Kept)
    }
    return found
  } catch (error) {
    await db.close()
    throw error
  }
}

function recordIn(shard: string, value: Buffer): StoredRecord | null {
  const row = rows.decodeRow(shard, value)
  if (row === null || value.length < recordHead) return null
  const bytes = value.subarray(recordHead)
  if (!sha256(bytes).equals(value.subarray(rows.rowBytes, recordHead))) return null
  return { first: row.first, last: row.last, hash: row.hash, bytes }
}

/** Whether a record is the next one of the chain. */
export function follows(record: StoredRecord, previous: Pick<StoredRecord, 'last' | 'hash'>): boolean {
  return record.first === previous.last + 1 && rows.chainHash(previous.hash, record.bytes).equals(record.hash)
}

function sha256(bytes: Uint8Array): Buffer {
  return createHash('sha256').update(bytes).digest()
}

/** Whether what is in the folder is at fault, and not how it can be reached. */
function isDamage(error: unknown): boolean {
  if (isTroupeError(error)) return error.code === 'STORE_CORRUPT'
  return levelCode(error) === 'LEVEL_CORRUPTION' || error instanceof SyntaxError
}

function remove(path: string): void {
  try {
    rmSync(path, { recursive: true, force: true })
  } catch {
    // Opening it says what is wrong.
  }
}

function reasonOf(error: unknown): string {
  if (isTroupeError(error)) return error.message
  return error instanceof Error ? error.message : String(error)
}
