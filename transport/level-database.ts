/**
 * The part of LevelDB that the journal uses, and what its errors mean.
 *
 * Owns: the structural type of an open database, iteration that survives a damaged block, the mapping of LevelDB's
 * and the file system's errors to codes.
 * Does not own: opening it (`level-journal.ts` is the one home of the library).
 */

import { TroupeError, isTroupeError } from '../runtime/errors.js'
import type { KeyRange } from './level-keys.js'

/** Options of a write: `sync` waits for the disk. */
export interface WriteOptions {
  readonly sync: boolean
}

/** Writes that land together or not at all. */
export interface Batch {
  put(key: string, value: Buffer): unknown
  del(key: string): unknown
  write(options: WriteOptions): Promise<void>
}

/** What `iterator` takes. */
export interface IteratorOptions {
  readonly gte?: string
  readonly gt?: string
  readonly lt?: string
  readonly reverse?: boolean
  readonly limit?: number
  readonly values?: boolean
  readonly highWaterMarkBytes?: number
}

/** Entries in key order, read in portions. */
export interface EntryIterator {
  nextv(size: number): Promise<[string, Buffer][]>
  seek(key: string): void
  close(): Promise<void>
}

/** An open LevelDB with text keys and bytes as values. */
export interface Database {
  get(key: string): Promise<Buffer | undefined>
  getMany(keys: string[]): Promise<(Buffer | undefined)[]>
  batch(): Batch
  clear(range: KeyRange): Promise<void>
  iterator(options: IteratorOptions): EntryIterator
  /** Merges the tables of a range; whatever the range, the log becomes a table first. Only LevelDB proper has it. */
  compactRange?(start: string, end: string): Promise<void>
  close(): Promise<void>
}

/** Bytes an iterator fetches at once. The library's 16 KiB makes iteration of small rows twice as slow. */
const portionBytes = 4 * 1024 * 1024

/**
 * Entries of a range. LevelDB leaves a damaged block out and says so only at the end, taking the last portion with
 * it: then the rest is read again one by one, and the error comes after the last readable entry.
 */
export async function* entries(db: Database, range: KeyRange, keysOnly = false): AsyncGenerator<[string, Buffer]> {
  let from: IteratorOptions = range
  let size = 1000
  for (;;) {
    const iterator = db.iterator({ ...from, lt: range.lt, values: !keysOnly, highWaterMarkBytes: portionBytes })
    let last: string | undefined
    try {
      for (;;) {
        const portion = await iterator.nextv(size)
        if (portion.length === 0) return
        for (const entry of portion) {
          last = entry[0]
          yield entry
        }
      }
    } catch (thrown) {
      if (size === 1 || levelCode(thrown) !== 'LEVEL_CORRUPTION') throw thrown
      size = 1
      if (last !== undefined) from = { gt: last }
    } finally {
      await iterator.close()
    }
  }
}

/** Entries whose errors carry a code: `damaged` makes the one for a block that cannot be read. */
export async function* coded(
  from: AsyncGenerator<[string, Buffer]>,
  damaged: (reason: string) => TroupeError,
): AsyncGenerator<[string, Buffer]> {
  try {
    yield* from
  } catch (thrown) {
    throw levelCode(thrown) === 'LEVEL_CORRUPTION'
      ? damaged('a block of the store is not readable')
      : storeError(thrown)
  }
}

/** A value, or undefined when it is missing or LevelDB finds its block damaged. */
export async function soundValue(db: Database, key: string): Promise<Buffer | undefined> {
  try {
    return await db.get(key)
  } catch (thrown) {
    if (levelCode(thrown) !== 'LEVEL_CORRUPTION') throw storeError(thrown)
    return undefined
  }
}

/** LevelDB's own error code, through the library's wrapping. */
export function levelCode(thrown: unknown): string | undefined {
  for (let error = thrown; error instanceof Error; error = error.cause) {
    const code = (error as Error & { code?: unknown }).code
    if (typeof code === 'string' && code !== 'LEVEL_DATABASE_NOT_OPEN') return code
  }
  return undefined
}

function rootMessage(thrown: unknown): string {
  let error = thrown
  while (error instanceof Error && error.cause instanceof Error) error = error.cause
  return error instanceof Error ? error.message : String(thrown)
}

const fullPattern = /no space left|ENOSPC|disk quota|EDQUOT|file too large|EFBIG/i

/** What a failed write or read of the store is for the runtime. */
export function storeError(thrown: unknown): TroupeError {
  if (isTroupeError(thrown)) return thrown
  const message = rootMessage(thrown)
  if (fullPattern.test(message)) {
    return new TroupeError('STORE_FULL', `the store's disk is full: ${message}`, { retryable: true, cause: thrown })
  }
  return new TroupeError('STORE_FAILED', `the store failed: ${message}`, { retryable: true, cause: thrown })
}

/** What a failed open is for the runtime. `owner` is the process that holds the store, when it is known. */
export function openError(thrown: unknown, path: string, owner: number | null): TroupeError {
  const code = levelCode(thrown)
  const message = rootMessage(thrown)
  if (code === 'LEVEL_LOCKED') {
    const by = owner === null ? 'another process' : `process ${owner}`
    const details = owner === null ? { path } : { path, pid: owner }
    return new TroupeError('STORE_BUSY', `${path} is in use by ${by}`, { retryable: true, details, cause: thrown })
  }
  if (fullPattern.test(message)) return storeError(thrown)
  if (/permission denied|EACCES|too many open files|EMFILE|EROFS|read-only file system/i.test(message)) {
    return new TroupeError('STORE_FAILED', `${path} cannot be opened: ${message}`, { cause: thrown, details: { path } })
  }
  // Nothing is repaired here: LevelDB's repair() drops keys in silence.
  return new TroupeError('STORE_CORRUPT', `${path} is damaged: ${message}`, { cause: thrown, details: { path } })
}
