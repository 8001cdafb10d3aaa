/**
 * The journal in memory: for tests, simulation, and runs that need not survive their process.
 *
 * Owns: keeping a store's content across `close` and a new `open`, so that a simulation can crash and go on.
 * Does not own: anything durable. Records are kept as they came: whoever appends does not write to the bytes again.
 */

import { TroupeError } from '../runtime/errors.js'
import {
  emptyHead,
  nothingPending,
  type BlobInfo,
  type Journal,
  type JournalRecord,
  type OpenReport,
  type ShardHead,
  type SnapshotManifest,
  type StoredRecord,
} from '../runtime/journal.js'

interface MemoryShard {
  head: ShardHead
  records: JournalRecord[]
  readonly blobs: Map<string, { readonly bytes: Uint8Array; readonly sequence: number }>
  readonly chunks: Map<string, Uint8Array>
  /** Oldest first. */
  manifests: SnapshotManifest[]
  attempts: Readonly<Record<string, number>>
}

/** What memory journals over the same store share: its content, and who owns it. */
export interface MemoryStore {
  readonly shards: Map<string, MemoryShard>
  /** The journal that has it open; a simulated crash sets it to null. */
  owner: Journal | null
  /** Several journals may have it open, as several workers share a stream. */
  readonly shared: boolean
}

/** An empty store. @param options `shared`: for several journals at once; an append behind another's is `SHARD_FENCED` */
export function createMemoryStore({ shared = false }: { readonly shared?: boolean } = {}): MemoryStore {
  return { shards: new Map(), owner: null, shared }
}

/**
 * A journal in memory.
 *
 * - `store`: the content; pass the same one to go on with it after `close` or a simulated crash.
 */
export function createMemoryJournal(options: { store?: MemoryStore } = {}): Journal {
  return new MemoryJournal(options.store ?? createMemoryStore())
}

const done = Promise.resolve()

class MemoryJournal implements Journal {
  readonly durability = 'memory'
  readonly #store: MemoryStore

  constructor(store: MemoryStore) {
    this.#store = store
  }

  async open(): Promise<OpenReport> {
    if (this.#store.owner !== null && !this.#store.shared)
      throw new TroupeError('STORE_BUSY', 'the store has an owner', { retryable: true })
    this.#store.owner = this
    const pending: ShardHead[] = []
    let shards = 0
    for (const { head } of this.#store.shards.values()) {
      if (head.removed || head.sequence === 0) continue
      shards++
      const { nextDueAt, openEffects, outbox } = head.pending
      if (nextDueAt !== null || openEffects > 0 || outbox > 0) pending.push(head)
    }
    return { shards, pending, damaged: [], unclean: false }
  }

  async head(shard: string): Promise<ShardHead> {
    return this.#shards().get(shard)?.head ?? emptyHead(shard)
  }

  async *heads(): AsyncGenerator<ShardHead> {
    const shards = this.#shards()
    for (const shard of [...shards.keys()].sort()) {
      const found = shards.get(shard)
      if (found !== undefined && found.head.sequence > 0) yield found.head
    }
  }

  append(record: JournalRecord): Promise<void> {
    if (this.#store.owner !== this && !this.#store.shared) return Promise.reject(notOpen())
    const known = this.#store.shards.get(record.shard)
    const sequence = known === undefined ? 0 : known.head.sequence
    if (record.first !== sequence + 1 || record.last < record.first) return Promise.reject(outOfOrder(record, sequence))
    const shard = known ?? this.#create(record.shard)
    shard.records.push(record)
    shard.head = {
      shard: record.shard,
      sequence: record.last,
      hash: record.hash,
      pending: record.pending,
      removed: false,
      crew: record.crew,
    }
    return done
  }

  refresh(shard: string): Promise<ShardHead> {
    return this.head(shard)
  }

  async *read(shard: string, from: number): AsyncGenerator<StoredRecord> {
    yield* this.#recordsFrom(shard, from)
  }

  async *readEvents(
    shard: string,
    from: number,
  ): AsyncGenerator<{ readonly first: number; readonly bytes: Uint8Array }> {
    for (const { first, events } of this.#recordsFrom(shard, from)) if (events !== null) yield { first, bytes: events }
  }

  /** A copy, as an iterator of LevelDB sees the moment it was made. */
  #recordsFrom(shard: string, from: number): JournalRecord[] {
    const records = this.#shards().get(shard)?.records ?? []
    let low = 0
    let high = records.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((records[middle]?.last ?? 0) < from) low = middle + 1
      else high = middle
    }
    return records.slice(low)
  }

  async putBlob(shard: string, hash: string, bytes: Uint8Array, sequence: number): Promise<void> {
    const { blobs } = this.#open(shard)
    const known = blobs.get(hash)
    blobs.set(hash, { bytes, sequence: Math.min(sequence, known?.sequence ?? sequence) })
  }

  async getBlob(shard: string, hash: string): Promise<Uint8Array> {
    const blob = this.#shards().get(shard)?.blobs.get(hash)
    if (blob === undefined) {
      throw new TroupeError('BLOB_MISSING', `blob ${hash} of ${shard} is not there`, { details: { shard, hash } })
    }
    return blob.bytes
  }

  async listBlobs(shard: string): Promise<readonly BlobInfo[]> {
    const blobs = this.#shards().get(shard)?.blobs ?? []
    return [...blobs].map(([hash, { sequence }]) => ({ hash, sequence }))
  }

  async deleteBlobs(shard: string, hashes: readonly string[]): Promise<void> {
    const blobs = this.#shards().get(shard)?.blobs
    for (const hash of hashes) blobs?.delete(hash)
  }

  async putSnapshot(
    manifest: SnapshotManifest,
    chunks: ReadonlyMap<string, Uint8Array>,
    keep: readonly number[],
  ): Promise<void> {
    const shard = this.#open(manifest.shard)
    for (const hash of manifest.chunks) {
      const bytes = shard.chunks.get(hash) ?? chunks.get(hash)
      if (bytes === undefined) throw missingChunk(manifest.shard, hash)
      shard.chunks.set(hash, bytes)
    }
    const kept = shard.manifests.filter(({ sequence }) => sequence !== manifest.sequence && keep.includes(sequence))
    shard.manifests = [...kept, manifest].sort((one, other) => one.sequence - other.sequence)
    const named = new Set(shard.manifests.flatMap((each) => each.chunks))
    for (const hash of shard.chunks.keys()) if (!named.has(hash)) shard.chunks.delete(hash)
  }

  async snapshots(shard: string): Promise<readonly SnapshotManifest[]> {
    return (this.#shards().get(shard)?.manifests ?? []).toReversed()
  }

  async getChunks(shard: string, hashes: readonly string[]): Promise<readonly Uint8Array[]> {
    const chunks = this.#shards().get(shard)?.chunks
    return hashes.map((hash) => {
      const bytes = chunks?.get(hash)
      if (bytes === undefined) throw missingChunk(shard, hash)
      return bytes
    })
  }

  async putAttempts(shard: string, attempts: Readonly<Record<string, number>>): Promise<void> {
    this.#open(shard).attempts = { ...attempts }
  }

  async getAttempts(shard: string): Promise<Readonly<Record<string, number>>> {
    return this.#shards().get(shard)?.attempts ?? {}
  }

  async remove(shard: string): Promise<void> {
    const { head } = this.#open(shard)
    this.#store.shards.delete(shard)
    if (head.sequence === 0) return
    const tombstone = this.#create(shard)
    tombstone.head = { ...head, pending: nothingPending, removed: true }
  }

  async acceptLoss(shard: string, sequence: number, hash: Uint8Array): Promise<void> {
    const found = this.#open(shard)
    found.records = found.records.filter(({ last }) => last <= sequence)
    const last = found.records.at(-1)
    if (last?.last !== sequence) found.records = []
    found.manifests = found.manifests.filter((manifest) => manifest.sequence <= sequence)
    found.attempts = {}
    const pending = last?.last === sequence ? last.pending : nothingPending
    found.head = { shard, sequence, hash, pending, removed: false }
  }

  async close(): Promise<void> {
    if (this.#store.owner === this) this.#store.owner = null
  }

  #shards(): Map<string, MemoryShard> {
    if (this.#store.owner !== this && !this.#store.shared) throw notOpen()
    return this.#store.shards
  }

  #open(shard: string): MemoryShard {
    return this.#shards().get(shard) ?? this.#create(shard)
  }

  #create(shard: string): MemoryShard {
    const created: MemoryShard = {
      head: emptyHead(shard),
      records: [],
      blobs: new Map(),
      chunks: new Map(),
      manifests: [],
      attempts: {},
    }
    this.#store.shards.set(shard, created)
    return created
  }
}

function notOpen(): TroupeError {
  return new TroupeError('STORE_FAILED', 'the journal is not open')
}

function outOfOrder({ shard, first, last }: JournalRecord, sequence: number): TroupeError {
  return new TroupeError('STORE_FAILED', `${shard} ends at ${sequence}; commits ${first} to ${last} do not follow`, {
    details: { shard, sequence, first },
  })
}

function missingChunk(shard: string, hash: string): TroupeError {
  return new TroupeError('JOURNAL_CORRUPT', `chunk ${hash} of ${shard} is not stored`, { details: { shard, hash } })
}
