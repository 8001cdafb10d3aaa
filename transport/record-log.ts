/**
 * The log in front of LevelDB: where a record is durable before LevelDB has it.
 *
 * An append into LevelDB is a hop to another thread and back, and a row of the index each time. Here it is one write
 * into a file, and LevelDB gets the records of a whole file at once, later.
 *
 * Owns: the two files, the layout of a frame, finding the frames again, which records only the log has.
 * Does not own: when a file is written into LevelDB (`level-commit.ts`) and how (`level-flush.ts`), telling that
 * something is missing (`head-file.ts`).
 *
 * - RL1 A frame comes back as it was written or not at all, and a damaged one takes no other one with it.
 * - RL2 The files are used in turn, and one is written over only after `release`: then its records are elsewhere.
 * - RL3 What comes back is in the order of its appends; what an earlier use of a file left behind does not come back.
 * - RL4 What is held can be read without waiting, also while it is written into LevelDB.
 * - RL5 After `clear` nothing comes back.
 * - RL6 A file that is synced grows in large steps: a sync that has to write a new size, too, takes milliseconds at times.
 */

import { closeSync, constants, existsSync, fdatasync, fstatSync, fsyncSync, ftruncateSync } from 'node:fs'
import { openSync, readFileSync, writeSync } from 'node:fs'
import { dirname } from 'node:path'
import { crc32 } from 'node:zlib'
import type { JournalRecord } from '../runtime/journal.js'
import { syncFolder } from './head-file.js'
import * as rows from './rows.js'

/** A file that has this many bytes is full. A larger frame has a file of its own. */
const fileBytes = 2 * 1024 * 1024
const magic = Buffer.from('TRL1')
/** Magic 0 · checksum over the rest 4 · era 8 · length of row and record 12 · of the events 16 · of the name 20 · flags 21. */
const headerSize = 24
const checkedFrom = 8
const hasEvents = 1

/** A record as the log keeps it. */
export interface LoggedRecord {
  readonly shard: string
  readonly first: number
  readonly last: number
  /** Index row and record, as LevelDB gets them. */
  readonly value: Buffer
  readonly events: Buffer | null
}

/** A record to append, and what its row needs besides. */
export interface LogEntry {
  readonly entry: { readonly nameCrc: number; readonly base: number }
  readonly record: JournalRecord
}

/** What a file that is synced grows by. */
const growth = Buffer.alloc(256 * 1024)

interface LogFile {
  readonly fd: number
  /** Bytes that the file has. */
  size: number
  /** Where the next frame begins. */
  end: number
  /** What is acknowledged and not in LevelDB, by shard. */
  readonly held: Map<string, LoggedRecord[]>
}

/** The log, open. Its owner has the store. */
export class RecordLog {
  /** Which use of a file is written now: it goes up with each turn. */
  era = 1
  readonly #paths: readonly [string, string]
  readonly #isSynced: boolean
  #filling: LogFile
  #leaving: LogFile

  /** Opens both files, or creates them. Nothing is written until `append` or `clear`. @param isSynced `sync` follows each append */
  constructor(paths: readonly [string, string], isSynced = false) {
    this.#paths = paths
    this.#isSynced = isSynced
    const isNew = !paths.every((path) => existsSync(path))
    const open = (path: string): LogFile => {
      const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600)
      return { fd, size: fstatSync(fd).size, end: 0, held: new Map() }
    }
    this.#filling = open(paths[0])
    this.#leaving = open(paths[1])
    if (isNew) syncFolder(dirname(paths[0]))
  }

  /** The records that are in the files, oldest first. Called before the first append. */
  recover(): LoggedRecord[] {
    const found = this.#paths.map((path) => newestFrames(readFileSync(path)))
    found.sort((one, other) => one.era - other.era)
    this.era = Math.max(...found.map(({ era }) => era)) + 1
    return found.flatMap(({ frames }) => frames)
  }

  /** Bytes of a record's frame. */
  static sizeOf({ shard, bytes, events }: JournalRecord): number {
    return headerSize + shard.length + rows.rowBytes + bytes.length + (events?.length ?? 0)
  }

  /** Whether the file that is filled takes so many bytes more. */
  fits(size: number): boolean {
    return this.#filling.end === 0 || this.#filling.end + size <= fileBytes
  }

  /** Writes records in one go. They survive the process from now on; `hold` says that they count. */
  append(group: readonly LogEntry[]): LoggedRecord[] {
    let size = 0
    for (const { record } of group) size += RecordLog.sizeOf(record)
    const bytes = Buffer.allocUnsafe(size)
    let at = 0
    const logged = group.map((each) => {
      const frame = bytes.subarray(at, (at += RecordLog.sizeOf(each.record)))
      return writeFrame(frame, this.era, each)
    })
    const file = this.#filling
    if (this.#isSynced) grow(file, file.end + size)
    writeAt(file, bytes, file.end)
    file.end += size
    return logged
  }

  /** Waits until what was appended is on disk. */
  sync(): Promise<void> {
    const { fd } = this.#filling
    return new Promise((resolve, reject) => fdatasync(fd, (error) => (error === null ? resolve() : reject(error))))
  }

  /** From now on these records are read from here. */
  hold(records: readonly LoggedRecord[]): void {
    const { held } = this.#filling
    for (const record of records) {
      const known = held.get(record.shard)
      if (known === undefined) held.set(record.shard, [record])
      else known.push(record)
    }
  }

  /** True when the file that is filled has records. */
  get isFilling(): boolean {
    return this.#filling.held.size > 0
  }

  /** Changes the files over. What `leaving` gives from now on has to be released before the next turn. */
  turn(): void {
    if (this.#leaving.held.size > 0) throw new Error('the other file of the log is not released')
    const filled = this.#filling
    this.#filling = this.#leaving
    this.#filling.end = 0
    this.#leaving = filled
    this.era++
  }

  /** The records of the file that was filled last, by shard. */
  leaving(): ReadonlyMap<string, readonly LoggedRecord[]> {
    return this.#leaving.held
  }

  /** All records that are leaving are in LevelDB. */
  release(): void {
    this.#leaving.held.clear()
  }

  /** The records of a shard that LevelDB may not have. */
  of(shard: string): readonly LoggedRecord[] {
    const leaving = this.#leaving.held.get(shard) ?? []
    const filling = this.#filling.held.get(shard) ?? []
    return [...leaving, ...filling]
  }

  /** The last record of a shard, when LevelDB may not have it. */
  last(shard: string): LoggedRecord | undefined {
    return (this.#filling.held.get(shard) ?? this.#leaving.held.get(shard))?.at(-1)
  }

  /** The last record of each shard that has any here, in the order of their names. */
  lasts(): LoggedRecord[] {
    const shards = new Set([...this.#leaving.held.keys(), ...this.#filling.held.keys()])
    return [...shards].sort().flatMap((shard) => this.last(shard) ?? [])
  }

  /** Empties both files; nothing may be held. Without `sync` a power cut may bring back what LevelDB has anyway. */
  clear(sync = false): void {
    for (const file of [this.#filling, this.#leaving]) {
      file.end = 0
      if (file.size === 0) continue
      ftruncateSync(file.fd, 0)
      file.size = 0
      if (sync) fsyncSync(file.fd)
    }
  }

  /** Releases the files without writing. */
  close(): void {
    for (const { fd } of [this.#filling, this.#leaving]) closeSync(fd)
  }
}

function grow(file: LogFile, size: number): void {
  while (file.size < size) writeAt(file, growth, file.size)
}

function writeAt(file: LogFile, bytes: Buffer, at: number): void {
  for (let written = 0; written < bytes.length; ) {
    written += writeSync(file.fd, bytes, written, bytes.length - written, at + written)
  }
  file.size = Math.max(file.size, at + bytes.length)
}

function writeFrame(frame: Buffer, era: number, { entry, record }: LogEntry): LoggedRecord {
  const { shard, first, last, hash, bytes, events, pending } = record
  const valueAt = headerSize + shard.length
  const eventsAt = valueAt + rows.rowBytes + bytes.length
  const value = frame.subarray(valueAt, eventsAt)
  rows.writeRow(value, entry.nameCrc, { first, last, base: entry.base, hash, pending, removed: false, removing: false })
  value.set(bytes, rows.rowBytes)
  if (events !== null) frame.set(events, eventsAt)
  frame.set(magic, 0)
  frame.writeUInt32LE(era, 8)
  frame.writeUInt32LE(value.length, 12)
  frame.writeUInt32LE(events?.length ?? 0, 16)
  frame.writeUInt32LE(shard.length | (events === null ? 0 : hasEvents << 8), 20)
  frame.write(shard, headerSize, 'latin1')
  frame.writeUInt32LE(crc32(frame.subarray(checkedFrom)), 4)
  return { shard, first, last, value, events: events === null ? null : frame.subarray(eventsAt) }
}

interface Frame {
  readonly era: number
  readonly end: number
  readonly record: LoggedRecord
}

/** The frame that begins at `at`, or null when there is no sound one. */
function frameAt(bytes: Buffer, at: number): Frame | null {
  if (at + headerSize > bytes.length) return null
  const valueAt = at + headerSize + bytes.readUInt8(at + 20)
  const eventsAt = valueAt + bytes.readUInt32LE(at + 12)
  const end = eventsAt + bytes.readUInt32LE(at + 16)
  if (end > bytes.length || bytes.readUInt32LE(at + 4) !== crc32(bytes.subarray(at + checkedFrom, end))) return null
  const shard = bytes.toString('latin1', at + headerSize, valueAt)
  const value = bytes.subarray(valueAt, eventsAt)
  const row = rows.decodeRow(shard, value)
  if (row === null) return null
  const events = (bytes.readUInt8(at + 21) & hasEvents) === 0 ? null : bytes.subarray(eventsAt, end)
  return { era: bytes.readUInt32LE(at + 8), end, record: { shard, first: row.first, last: row.last, value, events } }
}

/** The sound frames of the last use of a file; behind them there may be some of earlier uses. */
function newestFrames(bytes: Buffer): { readonly era: number; readonly frames: LoggedRecord[] } {
  const found: Frame[] = []
  for (let at = bytes.indexOf(magic); at !== -1; ) {
    const frame = frameAt(bytes, at)
    if (frame !== null) found.push(frame)
    at = bytes.indexOf(magic, frame?.end ?? at + 1)
  }
  const era = found.reduce((highest, frame) => Math.max(highest, frame.era), 0)
  return { era, frames: found.filter((frame) => frame.era === era).map(({ record }) => record) }
}
