/**
 * Where the shards in use stand: a cache over the index rows.
 *
 * Owns: loading a row once, forgetting shards that are not in use.
 * Does not own: writing rows (`level-commit.ts`), damage marks (`level-journal.ts`).
 *
 * - LH1 An entry is the only one of its shard while it is busy.
 * - LH2 Two generations of at most 2,048 entries: a full young one becomes the old one, the old one is forgotten.
 */

import { nothingPending, type Pending, type ShardHead } from '../runtime/journal.js'
import * as rows from './rows.js'

/** A shard in use. */
export interface Entry {
  readonly shard: string
  readonly nameCrc: number
  sequence: number
  hash: Uint8Array
  /** Records up to here are not of this life. */
  base: number
  pending: Pending
  removed: boolean
  /** It has an index row. */
  exists: boolean
  /** A change of it is under way. */
  busy: boolean
}

const generationSize = 2048

/** The cache. `read` gives a shard's decoded index row, undefined when there is none. */
export class LevelHeads {
  #young = new Map<string, Entry>()
  #old = new Map<string, Entry>()
  readonly #loading = new Map<string, Promise<Entry>>()
  readonly #read: (shard: string) => Promise<rows.Row | undefined>

  constructor(read: (shard: string) => Promise<rows.Row | undefined>) {
    this.#read = read
  }

  /** The entry when it is there without waiting. */
  cached(shard: string): Entry | undefined {
    const young = this.#young.get(shard)
    if (young !== undefined) return young
    const old = this.#old.get(shard)
    if (old !== undefined) this.#keep(old)
    return old
  }

  /** The entry, loaded if need be. */
  entry(shard: string): Promise<Entry> {
    const cached = this.cached(shard)
    if (cached !== undefined) return Promise.resolve(cached)
    let loading = this.#loading.get(shard)
    if (loading === undefined) {
      loading = this.#load(shard).finally(() => this.#loading.delete(shard))
      this.#loading.set(shard, loading)
    }
    return loading
  }

  async #load(shard: string): Promise<Entry> {
    const row = await this.#read(shard)
    const entry: Entry = {
      shard,
      nameCrc: rows.nameChecksum(shard),
      sequence: row?.last ?? 0,
      hash: row?.hash ?? new Uint8Array(32),
      base: row?.base ?? 0,
      pending: row?.pending ?? nothingPending,
      removed: row?.removed ?? false,
      exists: row !== undefined,
      busy: false,
    }
    this.#keep(entry)
    return entry
  }

  #keep(entry: Entry): void {
    if (this.#young.size >= generationSize) {
      const forgotten = this.#old
      this.#old = this.#young
      this.#young = new Map()
      for (const each of forgotten.values()) if (each.busy) this.#young.set(each.shard, each)
    }
    this.#young.set(entry.shard, entry)
    this.#old.delete(entry.shard)
  }

  /** The next use reads the row again. */
  forget(shard: string): void {
    this.#young.delete(shard)
    this.#old.delete(shard)
  }

  /** Forgets all. */
  clear(): void {
    this.#young.clear()
    this.#old.clear()
  }
}

/** An entry as the port shows it. */
export function headOf({ shard, sequence, hash, pending, removed }: Entry): ShardHead {
  return { shard, sequence, hash, pending, removed }
}
