/**
 * What a shard keeps beside its records in LevelDB: blobs, snapshots, attempts.
 *
 * Owns: storing, verifying and deleting them.
 * Does not own: which blob is still named by a record, when a snapshot is taken, failures of the store.
 *
 * - LC1 Nothing is given out that does not match its hash or checksum.
 * - LC2 A manifest is stored after its chunks are durable.
 */

import { TroupeError, isTroupeError } from '../runtime/errors.js'
import type { BlobInfo, SnapshotManifest } from '../runtime/journal.js'
import { coded, entries, soundValue, type Batch, type Database } from './level-database.js'
import * as keys from './level-keys.js'
import * as rows from './rows.js'

/** What the content needs of the journal around it. */
export interface ContentStore {
  /** The open database. @throws TroupeError when there is none. */
  db(): Database
  /** Writes a batch durably, under the journal's failure rules. */
  write(batch: Batch): Promise<void>
}

/** Blobs, snapshots and attempts of all shards of one database. */
export class LevelContent {
  readonly #store: ContentStore
  /** Keys of chunks that were found damaged: the next snapshot stores them again. */
  readonly #damagedChunks = new Set<string>()

  constructor(store: ContentStore) {
    this.#store = store
  }

  async putBlob(shard: string, hash: string, bytes: Uint8Array, sequence: number): Promise<void> {
    const db = this.#store.db()
    const infoKey = keys.hashKey(keys.kind.blobInfo, shard, hash)
    const known = await soundValue(db, infoKey)
    // A damaged row must not make the blob look like an orphan: 0 is below every head.
    const lowest = known === undefined ? sequence : Math.min(sequence, rows.unseal(infoKey, known)?.number ?? 0)
    const batch = db.batch()
    batch.put(keys.hashKey(keys.kind.blob, shard, hash), rows.asBuffer(bytes))
    batch.put(infoKey, rows.seal(infoKey, noBytes, lowest))
    await this.#store.write(batch)
  }

  async getBlob(shard: string, hash: string): Promise<Uint8Array> {
    const bytes = await soundValue(this.#store.db(), keys.hashKey(keys.kind.blob, shard, hash))
    if (bytes === undefined || rows.contentHash(bytes) !== hash) {
      const problem = bytes === undefined ? 'is not there or not readable' : 'does not match its hash'
      throw new TroupeError('BLOB_MISSING', `blob ${hash} of ${shard} ${problem}`, { details: { shard, hash } })
    }
    return bytes
  }

  async listBlobs(shard: string): Promise<readonly BlobInfo[]> {
    const blobs: BlobInfo[] = []
    for await (const [key, value] of this.#entries(keys.kind.blobInfo, shard)) {
      blobs.push({ hash: keys.keyTail(key), sequence: rows.unseal(key, value)?.number ?? 0 })
    }
    return blobs
  }

  async deleteBlobs(shard: string, hashes: readonly string[]): Promise<void> {
    if (hashes.length === 0) return
    const batch = this.#store.db().batch()
    for (const hash of hashes) {
      batch.del(keys.hashKey(keys.kind.blob, shard, hash))
      batch.del(keys.hashKey(keys.kind.blobInfo, shard, hash))
    }
    await this.#store.write(batch)
  }

  async putSnapshot(
    manifest: SnapshotManifest,
    chunks: ReadonlyMap<string, Uint8Array>,
    keep: readonly number[],
  ): Promise<void> {
    const { shard, sequence } = manifest
    const db = this.#store.db()
    await this.#putChunks(manifest, chunks)
    const key = keys.sequenceKey(keys.kind.manifest, shard, sequence)
    const batch = db.batch()
    batch.put(key, rows.seal(key, rows.encodeManifest(manifest), sequence))
    await this.#store.write(batch)
    await this.#collect(shard, new Set([...keep, sequence]))
  }

  async #putChunks(manifest: SnapshotManifest, chunks: ReadonlyMap<string, Uint8Array>): Promise<void> {
    const { shard } = manifest
    const stored = await this.#chunkHashes(shard)
    const batch = this.#store.db().batch()
    const written: string[] = []
    for (const hash of new Set(manifest.chunks)) {
      const key = keys.hashKey(keys.kind.chunk, shard, hash)
      if (stored.has(hash) && !this.#damagedChunks.has(key)) continue
      const bytes = chunks.get(hash)
      if (bytes === undefined) throw chunkError(shard, hash, 'is not stored')
      batch.put(key, rows.asBuffer(bytes))
      written.push(key)
    }
    if (written.length === 0) return
    await this.#store.write(batch)
    for (const key of written) this.#damagedChunks.delete(key)
  }

  async #chunkHashes(shard: string): Promise<Set<string>> {
    const hashes = new Set<string>()
    for await (const [key] of this.#entries(keys.kind.chunk, shard, true)) {
      hashes.add(keys.keyTail(key))
    }
    return hashes
  }

  /** Deletes the manifests that are not in `keep`, and the chunks that no remaining one names. */
  async #collect(shard: string, keep: ReadonlySet<number>): Promise<void> {
    const batch = this.#store.db().batch()
    const named = new Set<string>()
    let dropped = 0
    for await (const [key, value] of this.#entries(keys.kind.manifest, shard)) {
      const manifest = openManifest(shard, key, value)
      if (manifest !== null && keep.has(manifest.sequence)) {
        for (const hash of manifest.chunks) named.add(hash)
      } else {
        batch.del(key)
        dropped++
      }
    }
    if (dropped === 0) return
    for (const hash of await this.#chunkHashes(shard)) {
      if (!named.has(hash)) batch.del(keys.hashKey(keys.kind.chunk, shard, hash))
    }
    await this.#store.write(batch)
  }

  /** Sound manifests only: an older one, or replay from the start, gives the same state as a damaged one. */
  async snapshots(shard: string): Promise<readonly SnapshotManifest[]> {
    const found: SnapshotManifest[] = []
    try {
      for await (const [key, value] of this.#entries(keys.kind.manifest, shard)) {
        const manifest = openManifest(shard, key, value)
        if (manifest !== null) found.push(manifest)
      }
    } catch (thrown) {
      if (!isTroupeError(thrown) || thrown.code !== 'JOURNAL_CORRUPT') throw thrown
    }
    return found.reverse()
  }

  async getChunks(shard: string, hashes: readonly string[]): Promise<readonly Uint8Array[]> {
    const found: Uint8Array[] = []
    for (const hash of hashes) {
      const key = keys.hashKey(keys.kind.chunk, shard, hash)
      const bytes = await soundValue(this.#store.db(), key)
      if (bytes === undefined || rows.contentHash(bytes) !== hash) {
        this.#damagedChunks.add(key)
        throw chunkError(shard, hash, bytes === undefined ? 'is not there or not readable' : 'does not match its hash')
      }
      found.push(bytes)
    }
    return found
  }

  async putAttempts(shard: string, attempts: Readonly<Record<string, number>>): Promise<void> {
    const key = keys.shardKey(keys.kind.attempts, shard)
    const batch = this.#store.db().batch()
    if (Object.keys(attempts).length === 0) batch.del(key)
    else batch.put(key, rows.seal(key, Buffer.from(JSON.stringify(attempts))))
    await this.#store.write(batch)
  }

  async getAttempts(shard: string): Promise<Readonly<Record<string, number>>> {
    const key = keys.shardKey(keys.kind.attempts, shard)
    const sealed = await soundValue(this.#store.db(), key)
    if (sealed === undefined) return {}
    const opened = rows.unseal(key, sealed)
    if (opened === null) {
      throw new TroupeError('JOURNAL_CORRUPT', `the attempts of ${shard} are damaged`, { details: { shard } })
    }
    return JSON.parse(opened.payload.toString()) as Record<string, number>
  }

  #entries(of: keys.Kind, shard: string, keysOnly = false): AsyncGenerator<[string, Buffer]> {
    const rows = entries(this.#store.db(), keys.shardRange(of, shard), keysOnly)
    return coded(rows, (reason) => new TroupeError('JOURNAL_CORRUPT', `${shard}: ${reason}`, { details: { shard } }))
  }
}

const noBytes = new Uint8Array(0)

function openManifest(shard: string, key: string, value: Buffer): SnapshotManifest | null {
  const opened = rows.unseal(key, value)
  return opened === null ? null : rows.decodeManifest(shard, opened.number, opened.payload)
}

function chunkError(shard: string, hash: string, problem: string): TroupeError {
  return new TroupeError('JOURNAL_CORRUPT', `chunk ${hash} of ${shard} ${problem}`, { details: { shard, hash } })
}
