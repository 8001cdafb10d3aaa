/**
 * What shards keep beside their journals in JetStream: blobs, snapshots, attempts, and records and letters too large for
 * a message.
 *
 * One message a piece, the newest of a subject counts. A large value is several parts; the first of them is written last
 * and says how many there are.
 *
 * Owns: storing, verifying and deleting pieces.
 * Does not own: the records (`jetstream-journal.ts`), which blob is still named by a record, what is kept here of them
 * (`local-copy.ts`).
 *
 * - JC1 Nothing is given out that does not match its hash or checksum.
 * - JC2 A value whose first part is there is there whole.
 * - JC3 Snapshots are found, stored and replaced without a look at what other shards have; one that is kept is never written
 *   over.
 */
import { DiscardPolicy, type JetStreamClient, jetstream, type StreamConfig } from '@nats-io/jetstream'
import { headers } from '@nats-io/transport-node'
import { TroupeError } from '../runtime/errors.js'
import type { BlobInfo, SnapshotManifest } from '../runtime/journal.js'
import { ensureStream } from './jetstream-stream.js'
import type { LocalCopy, PieceKind } from './local-copy.js'
import { natsError, type NatsLink } from './nats-connection.js'
import * as rows from './rows.js'
import type { Subjects } from './subjects.js'

/** Bytes of one part: below the server's usual limit of 1 MiB a message. */
export const partBytes = 512 * 1024
const partsHeader = 'Troupe-Parts'

/** Kinds of pieces. */
const kind = {
  blob: 'blob',
  info: 'info',
  chunk: 'chunk',
  manifest: 'manifest',
  attempts: 'attempts',
  body: 'body',
  letter: 'letter',
} as const

/**
 * Keys of a shard's manifests: the last one, and the one before it. A list of those that are there would have the server look
 * through the subjects of all shards.
 */
const slots = ['0', '1'] as const

/**
 * Makes sure that the stream of a namespace's pieces is there.
 * @param replicas copies in a cluster. Throws what `ensureStream` throws.
 */
export function ensureContent(link: NatsLink, subjects: Subjects, replicas = 1): Promise<StreamConfig> {
  const [name, subject] = [subjects.stream('content'), subjects.contents()]
  // A full stream refuses what is new; the one message of a subject is replaced all the same.
  const settings = { max_msgs_per_subject: 1, discard: DiscardPolicy.New }
  return ensureStream(link, { name, subjects: [subject], ...settings }, replicas, { allow_direct: true })
}

/** Pieces of all shards of one namespace. */
export class JetStreamContent {
  readonly #link: NatsLink
  readonly #subjects: Subjects
  readonly #stream: string
  readonly #client: JetStreamClient
  /** What was read or written here before; null for none. */
  copy: LocalCopy | null = null
  /** One server alone has the stream, and gives messages as they are. */
  isDirect = false

  constructor(link: NatsLink, subjects: Subjects) {
    this.#link = link
    this.#subjects = subjects
    this.#stream = subjects.stream('content')
    this.#client = jetstream(link.connection)
  }

  // Values of any size.

  async #put(shard: string, of: string, key: string, bytes: Uint8Array): Promise<void> {
    const count = Math.max(1, Math.ceil(bytes.length / partBytes))
    const part = (index: number): Uint8Array => bytes.subarray(index * partBytes, (index + 1) * partBytes)
    try {
      for (let index = 1; index < count; index++) {
        await this.#client.publish(this.#subjects.content(shard, of, key, index), part(index))
      }
      const head = headers()
      head.set(partsHeader, String(count))
      await this.#client.publish(this.#subjects.content(shard, of, key), part(0), { headers: head })
    } catch (error) {
      throw storeError(error)
    }
  }

  async #get(shard: string, of: string, key: string): Promise<Buffer | null> {
    const first = await this.#last(this.#subjects.content(shard, of, key))
    if (first === null) return null
    const parts = [first.data]
    for (let index = 1; index < first.parts; index++) {
      const part = await this.#last(this.#subjects.content(shard, of, key, index))
      if (part === null) return null
      parts.push(part.data)
    }
    return Buffer.concat(parts)
  }

  async #last(subject: string): Promise<{ readonly data: Uint8Array; readonly parts: number } | null> {
    try {
      const { direct, streams } = this.#link.manager
      // Of a stream with copies from the leader: another one may not have it yet.
      const message = await (this.isDirect ? direct : streams).getMessage(this.#stream, { last_by_subj: subject })
      return message === null ? null : { data: message.data, parts: Number(message.header.get(partsHeader)) }
    } catch (error) {
      throw storeError(error)
    }
  }

  /** A piece that is sound: as it was kept here, or else from the server. Otherwise what the server has of it. */
  async #sound(shard: string, of: PieceKind, key: string, isSound: (bytes: Buffer) => boolean): Promise<Buffer | null> {
    const kept = (await this.copy?.piece(shard, of, key)) ?? null
    if (kept !== null && isSound(kept)) return kept
    const bytes = await this.#get(shard, of, key)
    if (bytes !== null && isSound(bytes)) this.copy?.keepPiece(shard, of, key, bytes)
    return bytes
  }

  /** Stores a piece, and keeps it here. */
  async #putKept(shard: string, of: PieceKind, key: string, bytes: Uint8Array): Promise<void> {
    await this.#put(shard, of, key, bytes)
    this.copy?.keepPiece(shard, of, key, bytes)
  }

  async #dropKept(shard: string, of: PieceKind, key: string): Promise<void> {
    this.copy?.dropPiece(shard, of, key)
    await this.#drop(this.#subjects.contents(shard, of, key))
  }

  /** Keys of a kind. */
  async #keys(shard: string, of: string): Promise<string[]> {
    const filter = this.#subjects.pieces(shard, of)
    try {
      const { state } = await this.#link.manager.streams.info(this.#stream, { subjects_filter: filter })
      return Object.keys(state.subjects ?? {}).map((subject) => subject.split('.').at(-2) ?? '')
    } catch (error) {
      throw storeError(error)
    }
  }

  async #drop(filter: string): Promise<void> {
    try {
      await this.#link.manager.streams.purge(this.#stream, { filter })
    } catch (error) {
      throw storeError(error)
    }
  }

  /** Deletes all pieces of a shard. */
  clear(shard: string): Promise<void> {
    return this.#drop(this.#subjects.contents(shard))
  }

  // Bodies of records.

  putBody(shard: string, hash: string, bytes: Uint8Array): Promise<void> {
    return this.#put(shard, kind.body, hash, bytes)
  }

  getBody(shard: string, hash: string): Promise<Buffer | null> {
    return this.#get(shard, kind.body, hash)
  }

  // Bodies of letters. Each letter has its own, also of the same content: it goes when that letter was taken.

  putLetter(shard: string, id: string, bytes: Uint8Array): Promise<void> {
    return this.#put(shard, kind.letter, id, bytes)
  }

  getLetter(shard: string, id: string): Promise<Buffer | null> {
    return this.#get(shard, kind.letter, id)
  }

  deleteLetter(shard: string, id: string): Promise<void> {
    return this.#drop(this.#subjects.contents(shard, kind.letter, id))
  }

  // Blobs.

  async putBlob(shard: string, hash: string, bytes: Uint8Array, sequence: number): Promise<void> {
    const known = await this.#get(shard, kind.info, hash)
    const lowest = known === null ? sequence : Math.min(sequence, rows.unseal(hash, known)?.number ?? 0)
    if (known === null) await this.#putKept(shard, kind.blob, hash, bytes)
    await this.#put(shard, kind.info, hash, rows.seal(hash, noBytes, lowest))
  }

  async getBlob(shard: string, hash: string): Promise<Uint8Array> {
    const bytes = await this.#sound(shard, kind.blob, hash, (found) => rows.contentHash(found) === hash)
    if (bytes !== null && rows.contentHash(bytes) === hash) return bytes
    const problem = bytes === null ? 'is not there' : 'does not match its hash'
    throw new TroupeError('BLOB_MISSING', `blob ${hash} of ${shard} ${problem}`, { details: { shard, hash } })
  }

  async listBlobs(shard: string): Promise<readonly BlobInfo[]> {
    const found: BlobInfo[] = []
    for (const hash of await this.#keys(shard, kind.info)) {
      const sealed = await this.#get(shard, kind.info, hash)
      if (sealed !== null) found.push({ hash, sequence: rows.unseal(hash, sealed)?.number ?? 0 })
    }
    return found
  }

  async deleteBlobs(shard: string, hashes: readonly string[]): Promise<void> {
    for (const hash of hashes) {
      await this.#drop(this.#subjects.contents(shard, kind.info, hash))
      await this.#dropKept(shard, kind.blob, hash)
    }
  }

  // Snapshots.

  async putSnapshot(
    manifest: SnapshotManifest,
    chunks: ReadonlyMap<string, Uint8Array>,
    keep: readonly number[],
  ): Promise<void> {
    const { shard, sequence } = manifest
    const before = await this.#manifests(shard)
    const stored = new Set(before.flatMap((each) => each?.chunks ?? []))
    for (const hash of new Set(manifest.chunks)) {
      if (stored.has(hash)) continue
      const bytes = chunks.get(hash)
      if (bytes === undefined) throw chunkError(shard, hash, 'is not stored')
      await this.#putKept(shard, kind.chunk, hash, bytes)
    }
    const slot = slotFor(sequence, before, keep)
    await this.#put(shard, kind.manifest, slot, rows.seal(slot, rows.encodeManifest(manifest), sequence))
    const named = new Set(manifest.chunks)
    for (const [index, other] of before.entries()) {
      if (other === null || slots[index] === slot) continue
      if (keep.includes(other.sequence)) for (const hash of other.chunks) named.add(hash)
      else await this.#dropManifest(shard, slots[index]!)
    }
    for (const hash of stored) if (!named.has(hash)) await this.#dropKept(shard, kind.chunk, hash)
  }

  /** What is in each slot, as far as it is sound. */
  #manifests(shard: string): Promise<(SnapshotManifest | null)[]> {
    return Promise.all(
      slots.map(async (slot) => {
        const sealed = await this.#get(shard, kind.manifest, slot)
        const opened = sealed === null ? null : rows.unseal(slot, sealed)
        return opened === null ? null : rows.decodeManifest(shard, opened.number, opened.payload)
      }),
    )
  }

  #dropManifest(shard: string, slot: string): Promise<void> {
    return this.#drop(this.#subjects.contents(shard, kind.manifest, slot))
  }

  /** Sound manifests only: an older one, or replay from the start, gives the same state as a damaged one. */
  async snapshots(shard: string): Promise<readonly SnapshotManifest[]> {
    const found = (await this.#manifests(shard)).filter((each) => each !== null)
    return found.sort((one, other) => other.sequence - one.sequence)
  }

  /** Deletes the manifests above a sequence. */
  async cutSnapshots(shard: string, sequence: number): Promise<void> {
    for (const [index, each] of (await this.#manifests(shard)).entries()) {
      if ((each?.sequence ?? 0) > sequence) await this.#dropManifest(shard, slots[index]!)
    }
  }

  async getChunks(shard: string, hashes: readonly string[]): Promise<readonly Uint8Array[]> {
    return Promise.all(
      hashes.map(async (hash) => {
        const bytes = await this.#sound(shard, kind.chunk, hash, (found) => rows.contentHash(found) === hash)
        if (bytes !== null && rows.contentHash(bytes) === hash) return bytes
        throw chunkError(shard, hash, bytes === null ? 'is not there' : 'does not match its hash')
      }),
    )
  }

  // Attempts.

  async putAttempts(shard: string, attempts: Readonly<Record<string, number>>): Promise<void> {
    if (Object.keys(attempts).length === 0) return this.#drop(this.#subjects.contents(shard, kind.attempts))
    return this.#put(shard, kind.attempts, 'all', rows.seal('all', Buffer.from(JSON.stringify(attempts))))
  }

  async getAttempts(shard: string): Promise<Readonly<Record<string, number>>> {
    const sealed = await this.#get(shard, kind.attempts, 'all')
    if (sealed === null) return {}
    const opened = rows.unseal('all', sealed)
    if (opened === null) {
      throw new TroupeError('JOURNAL_CORRUPT', `the attempts of ${shard} are damaged`, { details: { shard } })
    }
    return JSON.parse(opened.payload.toString()) as Record<string, number>
  }
}

const noBytes = new Uint8Array(0)

/** Where a manifest goes: over the one of its sequence, or else over one that is not kept, of two such the older one. */
function slotFor(sequence: number, before: readonly (SnapshotManifest | null)[], keep: readonly number[]): string {
  const rank = (each: SnapshotManifest | null): number => {
    if (each === null) return -1
    if (each.sequence === sequence) return -2
    return keep.includes(each.sequence) ? Number.MAX_SAFE_INTEGER : each.sequence
  }
  const ranks = before.map(rank)
  return slots[ranks.indexOf(Math.min(...ranks))]!
}

/** A failure of JetStream while something was read or written. */
export function storeError(thrown: unknown): TroupeError {
  if (thrown instanceof TroupeError) return thrown
  const message = thrown instanceof Error ? thrown.message : String(thrown)
  if (
    /insufficient (storage|resources)|maximum (messages|bytes)|no space left|resource limits exceeded/i.test(message)
  ) {
    return new TroupeError('STORE_FULL', `the stream is full: ${message}`, { retryable: true, cause: thrown })
  }
  const error = natsError(thrown, 'NATS')
  if (error.code === 'NATS_DENIED') return error
  return new TroupeError('STORE_FAILED', `the stream failed: ${message}`, { retryable: true, cause: thrown })
}

/** What was to be replaced is not the last one any more. */
export function isOverwritten(error: unknown): boolean {
  return /wrong last sequence/i.test((error as Error).message)
}

function chunkError(shard: string, hash: string, problem: string): TroupeError {
  return new TroupeError('JOURNAL_CORRUPT', `chunk ${hash} of ${shard} ${problem}`, { details: { shard, hash } })
}
