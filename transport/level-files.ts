/**
 * The files beside LevelDB in the folder of a store.
 *
 * Owns: the owner's `pid`, the `reserve` of space, the probe for space, telling an unused folder from a damaged one.
 * Does not own: the head file, the log, LevelDB's own files.
 */

import { existsSync, readdirSync, readFileSync, rmSync, statfsSync, statSync, writeFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'

const reserveBytes = 1024 * 1024
/** Free space from which on a disk does not count as nearly full. */
const roomyBytes = 256 * 1024 * 1024
const probeBytes = 64 * 1024
const roomForNewLog = 256 * 1024

/** Paths of one store. */
export class LevelFiles {
  /** LevelDB's folder. */
  readonly database: string
  /** The witness. */
  readonly head: string
  /** The log in front of LevelDB. */
  readonly logs: readonly [string, string]
  readonly #pid: string
  readonly #reserve: string
  readonly #probe: string

  constructor(path: string) {
    this.database = join(path, 'db')
    this.head = join(path, 'head')
    this.logs = [join(path, 'log-0'), join(path, 'log-1')]
    this.#pid = join(path, 'pid')
    this.#reserve = join(path, 'reserve')
    this.#probe = join(path, 'probe')
  }

  /** True when nothing was ever stored: no head file, no table, only empty logs. A store without CURRENT is damaged. */
  isUnused(): boolean {
    if (existsSync(this.head) || this.#logBytes() > 0) return false
    if (!existsSync(this.database)) return true
    return readdirSync(this.database).every((name) => {
      if (name.endsWith('.ldb') || name.endsWith('.sst')) return false
      return !name.endsWith('.log') || statSync(join(this.database, name)).size === 0
    })
  }

  #logBytes(): number {
    return this.logs.reduce((sum, path) => sum + (existsSync(path) ? statSync(path).size : 0), 0)
  }

  /** The process that said last that it owns the store; null when none did. */
  owner(): number | null {
    try {
      const pid = Number.parseInt(readFileSync(this.#pid, 'utf8'), 10)
      return Number.isSafeInteger(pid) ? pid : null
    } catch {
      return null
    }
  }

  /** Says that this process owns the store. Only the message of a busy store needs it, so a failure is no harm. */
  claim(): void {
    try {
      writeFileSync(this.#pid, `${process.pid}\n`)
    } catch {
      // a full disk: the next process reads an old or no pid
    }
  }

  /** Takes `claim` back. */
  disclaim(): void {
    rmSync(this.#pid, { force: true })
  }

  /** True when the disk is far from full, so that nothing has to be kept aside for the next open. */
  hasRoom(): boolean {
    try {
      const { bavail, bsize } = statfsSync(this.database)
      return bavail * bsize > roomyBytes
    } catch {
      return false
    }
  }

  /** Frees the reserve. True when there was one. */
  freeReserve(): boolean {
    if (!existsSync(this.#reserve)) return false
    rmSync(this.#reserve, { force: true })
    return true
  }

  /** Sets space aside. Without room the store works all the same; the next open tries again. */
  async fillReserve(): Promise<void> {
    if (existsSync(this.#reserve) && statSync(this.#reserve).size === reserveBytes) return
    await fill(this.#reserve, reserveBytes).catch(() => rmSync(this.#reserve, { force: true }))
  }

  /**
   * Rejects while there is no room for what LevelDB needs to open, less the reserve: its log becomes a table, and a new
   * log begins with what only the log in front of it has.
   */
  async probeSpace(): Promise<void> {
    let bytes = roomForNewLog + this.#logBytes()
    for (const name of readdirSync(this.database)) {
      if (name.endsWith('.log')) bytes += statSync(join(this.database, name)).size
    }
    if (existsSync(this.#reserve)) bytes -= reserveBytes
    const parts: string[] = []
    try {
      // In parts, none of which is larger than the files that LevelDB will write.
      for (let left = Math.max(bytes, probeBytes); left > 0; left -= reserveBytes) {
        parts.push(`${this.#probe}-${parts.length}`)
        await fill(parts.at(-1)!, Math.min(left, reserveBytes))
      }
    } finally {
      for (const part of parts) rmSync(part, { force: true })
    }
  }
}

/** A file with all its blocks on disk: a sparse one would promise space that is not there. */
async function fill(path: string, bytes: number): Promise<void> {
  const file = await open(path, 'w', 0o600)
  try {
    await file.writeFile(Buffer.alloc(bytes))
    await file.sync()
  } finally {
    await file.close()
  }
}
