/**
 * Where the shards in use stand: a cache over what a store says of each.
 *
 * Owns: loading a shard's position once, forgetting shards that are not in use.
 * Does not own: where positions are kept, damage marks (the journals).
 *
 * - LH1 An entry is the only one of its shard while it is busy.
 * - LH2 Two generations of at most 2,048 entries: a full young one becomes the old one, the old one is forgotten.
 */

import type { CrewVersion } from '../runtime/crew-version.js'
import { nothingPending, type Pending, type ShardHead } from '../runtime/journal.js'
import type * as rows from './rows.js'

/** A shard in use. */
export interface Entry {
  readonly shard: string
  sequence: number
  hash: Uint8Array
  /** Records up to here are not of this life. */
  base: number
  pending: Pending
  removed: boolean
  /** Its crew and that one's version, where the store keeps it. */
  crew?: CrewVersion | undefined
  /** The last commit with events, where the store keeps it. */
  lastEvent?: number | undefined
  /** A change of it is under way. */
  busy: boolean
}

/** The position that a shard's row tells; without one, that of a shard that was never written. */
export function entryOf(shard: string, row: rows.Row | null | undefined): Entry {
  return {
    shard,
    sequence: row?.last ?? 0,
    hash: row?.hash ?? new Uint8Array(32),
    base: row?.base ?? 0,
    pending: row?.pending ?? nothingPending,
    removed: row?.removed ?? false,
    busy: false,
  }
}

const generationSize = 2048

/** The cache. `read` gives the entry of a shard as the store has it. */
export class ShardHeads<E extends Entry> {
  #young = new Map<string, E>()
  #old = new Map<string, E>()
  readonly #loading = new Map<string, Promise<E>>()
  readonly #read: (shard: string) => Promise<E>

  constructor(read: (shard: string) => Promise<E>) {
    this.#read = read
  }

  /** The entry when it is there without waiting. */
  cached(shard: string): E | undefined {
    const young = this.#young.get(shard)
    if (young !== undefined) return young
    const old = this.#old.get(shard)
    if (old !== undefined) this.#keep(old)
    return old
  }

  /** The entry when it is there, not counted as a use. */
  peek(shard: string): E | undefined {
    return this.#young.get(shard) ?? this.#old.get(shard)
  }

  /** The entry, loaded if need be. */
  entry(shard: string): Promise<E> {
    const cached = this.cached(shard)
    if (cached !== undefined) return Promise.resolve(cached)
    let loading = this.#loading.get(shard)
    if (loading === undefined) {
      loading = this.#load(shard).finally(() => this.#loading.delete(shard))
      this.#loading.set(shard, loading)
    }
    return loading
  }

  async #load(shard: string): Promise<E> {
    const entry = await this.#read(shard)
    this.#keep(entry)
    return entry
  }

  #keep(entry: E): void {
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
export function headOf({ shard, sequence, hash, pending, removed, crew, lastEvent }: Entry): ShardHead {
  return {
    ...{ shard, sequence, hash, pending, removed },
    ...(crew === undefined ? {} : { crew }),
    ...(lastEvent === undefined ? {} : { lastEvent }),
  }
}
