/**
 * Circuit breakers in a file beside the journal of one process, so that a restart does not forget which provider is down.
 *
 * Owns: the file, `breakers.json`: written as a whole, next to it, and renamed.
 * Does not own: keeping other processes from the folder (the journal's lock).
 *
 * - FB1 The file is whole at any time; what a power cut takes from it is lost, and nothing else is.
 * - FB2 A file that cannot be read counts as none.
 */
import { readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { type StoredBreaker, storedBreaker } from '../machines/index.js'
import type { BreakerEntry, BreakerStore } from '../runtime/breakers.js'
import { MemoryBreakers } from './memory-breakers.js'

const file = z.record(z.string(), z.object({ breaker: storedBreaker, revision: z.int().min(1) }))

/** A store of breakers in a folder. */
export class FileBreakers implements BreakerStore {
  readonly #path: string
  readonly #memory: MemoryBreakers
  #writing: Promise<void> = Promise.resolve()

  private constructor(path: string, memory: MemoryBreakers) {
    this.#path = path
    this.#memory = memory
  }

  /** Opens the store of a folder that exists. Never rejects. */
  static async open(folder: string): Promise<FileBreakers> {
    const path = join(folder, 'breakers.json')
    return new FileBreakers(path, new MemoryBreakers(await read(path)))
  }

  load(target: string): Promise<BreakerEntry | null> {
    return this.#memory.load(target)
  }

  async save(target: string, breaker: StoredBreaker, revision: number): Promise<number | null> {
    const saved = await this.#memory.save(target, breaker, revision)
    if (saved === null) return null
    const writing = this.#writing.then(() => this.#write())
    this.#writing = writing.catch(() => undefined)
    await writing
    return saved
  }

  all(): Promise<ReadonlyMap<string, BreakerEntry>> {
    return this.#memory.all()
  }

  watch(told: (target: string, entry: BreakerEntry) => void): () => void {
    return this.#memory.watch(told)
  }

  async #write(): Promise<void> {
    const beside = `${this.#path}.new`
    await writeFile(beside, JSON.stringify(Object.fromEntries(this.#memory.entries)), { mode: 0o600 })
    await rename(beside, this.#path)
  }
}

async function read(path: string): Promise<ReadonlyMap<string, BreakerEntry>> {
  try {
    return new Map(Object.entries(file.parse(JSON.parse(await readFile(path, 'utf8')))))
  } catch {
    return new Map()
  }
}
