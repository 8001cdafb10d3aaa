/**
 * The journal port: where a shard's records, snapshots, blobs and index row live.
 *
 * Owns: the shapes that cross the port and what an implementation must guarantee.
 * Does not own: what is inside a record (`record.ts`), when a snapshot is taken (`shard.ts`), the chain's check on
 * replay (`recovery.ts`).
 *
 * An implementation guarantees, and the conformance suite checks:
 * - J1 An append that resolved is there after the process was killed (`process`) or the power was cut (`power`).
 * - J2 A record, its events and its index row are stored together or not at all.
 * - J3 Appends of one shard are stored in order; an append whose `first` is not the shard's last sequence + 1 is
 *   refused with `STORE_FAILED` and changes nothing.
 * - J4 What is read is what was written, or an error with a code; a shard that lost its tail is named by `open`.
 * - J5 A failed append of one shard leaves the others usable, and its own retry is allowed after `refresh`.
 * - J6 A removed shard leaves a tombstone: its last sequence and hash go on in a new life of the id.
 */
import type { CrewVersion } from './crew-version.js'
import { isTroupeError, type TroupeError } from './errors.js'

/** What waits in a shard, kept beside its last record so that a start finds work without replay. */
export interface Pending {
  /** Earliest due time of a timer, in epoch milliseconds; null when there is none. */
  readonly nextDueAt: number | null
  /** Effects whose outcome has not come in. */
  readonly openEffects: number
  /** Mail to other shards that was not handed over. */
  readonly outbox: number
}

/** One append: one or more consecutive commits of one shard. */
export interface JournalRecord {
  readonly shard: string
  /** Sequence of the first commit inside. */
  readonly first: number
  /** Sequence of the last commit inside; `first <= last`. */
  readonly last: number
  /** SHA-256 over the previous record's hash and `bytes`: the chain. 32 bytes. */
  readonly hash: Uint8Array
  /** The encoded commits. */
  readonly bytes: Uint8Array
  /** The commits' domain events, encoded; outside the chain. Null when there are none. */
  readonly events: Uint8Array | null
  readonly pending: Pending
  /** The crew and its version, for a journal that several workers share; empty before it is defined. */
  readonly crew?: CrewVersion | undefined
  /** The last of its commits that has events; absent when none has. */
  readonly lastEvent?: number | undefined
}

/** A record as it is read back. */
export type StoredRecord = Pick<JournalRecord, 'first' | 'last' | 'hash' | 'bytes'>

/** The last record of a shard: the place where its next append goes on. */
export interface ShardHead {
  readonly shard: string
  /** 0 for a shard that was never written. */
  readonly sequence: number
  /** 32 zero bytes for a shard that was never written. */
  readonly hash: Uint8Array
  readonly pending: Pending
  /** True when the shard was removed and only its tombstone is left. */
  readonly removed: boolean
  /** Its crew and that one's version, where the journal keeps it. */
  readonly crew?: CrewVersion | undefined
  /** The last commit with events, where the journal keeps it; absent for none. */
  readonly lastEvent?: number | undefined
  /** When the last record was stored, in epoch milliseconds, where `heads` knows it. */
  readonly storedAt?: number | undefined
}

/** A shard that `open` or a read found damaged. */
export interface Damage {
  readonly shard: string
  readonly code: 'JOURNAL_TRUNCATED' | 'JOURNAL_CORRUPT'
  /** What was expected and what was found, for people. */
  readonly reason: string
  /** The last commit that is known to have been stored, lost or not. */
  readonly last?: number
}

/** What `open` found. */
export interface OpenReport {
  /** Number of shards in the store, without tombstones. */
  readonly shards: number
  /** Heads of the shards with something pending, in no order. Idle shards cost no memory. */
  readonly pending: readonly ShardHead[]
  /** Damaged shards. They refuse appends until `acceptLoss`; the others are usable. */
  readonly damaged: readonly Damage[]
  /** True when the previous owner did not close the journal. */
  readonly unclean: boolean
}

/** The stored form of a snapshot: its manifest names chunks by content hash. */
export interface SnapshotManifest {
  readonly shard: string
  /** The snapshot is the state after this commit. */
  readonly sequence: number
  /** The journal's chain hash at `sequence`. */
  readonly hash: Uint8Array
  /** The encoded manifest. */
  readonly bytes: Uint8Array
  /** Hex SHA-256 of each chunk that the manifest names. */
  readonly chunks: readonly string[]
}

/** A stored blob: a value too large for a record. */
export interface BlobInfo {
  /** Hex SHA-256 of its bytes. */
  readonly hash: string
  /** The lowest sequence that may name it; above the shard's head it is an orphan of a crash. */
  readonly sequence: number
}

/** How much a resolved append survives: nothing, a killed process, the loss of a minority of servers, a power cut. */
export type Durability = 'memory' | 'process' | 'replicas' | 'power'

/** Storage of all shards of one worker. One owner at a time. */
export interface Journal {
  readonly durability: Durability
  /**
   * Takes ownership and looks the index through.
   * @throws TroupeError `STORE_BUSY` when another process owns it, `STORE_CORRUPT` when it cannot be opened.
   */
  open(): Promise<OpenReport>
  /** The head of one shard; sequence 0 when it is unknown. */
  head(shard: string): Promise<ShardHead>
  /** Heads of all shards, tombstones included, in the order of their names. A shard whose head is damaged is left out. */
  heads(): AsyncIterable<ShardHead>
  /**
   * Stores one record; resolves when it is durable. At most one append of a shard may be in flight.
   * @throws TroupeError `STORE_FULL`, `STORE_FAILED`, or the shard's damage code.
   */
  append(record: JournalRecord): Promise<void>
  /** After a failed append: makes the shard's head readable and appendable again. Rejects as `append` does while it is not. */
  refresh(shard: string): Promise<ShardHead>
  /** Records from the one that contains sequence `from` on, in order; of a damaged shard what is sound, then its damage code. */
  read(shard: string, from: number): AsyncIterable<StoredRecord>
  /** Encoded events of the records from the one that contains sequence `from` on, in order. */
  readEvents(shard: string, from: number): AsyncIterable<{ readonly first: number; readonly bytes: Uint8Array }>
  /** Stores a blob durably before it resolves. */
  putBlob(shard: string, hash: string, bytes: Uint8Array, sequence: number): Promise<void>
  /** @throws TroupeError `BLOB_MISSING` when it is not there or its bytes do not match its hash. */
  getBlob(shard: string, hash: string): Promise<Uint8Array>
  listBlobs(shard: string): Promise<readonly BlobInfo[]>
  deleteBlobs(shard: string, hashes: readonly string[]): Promise<void>
  /** Chunks first (only those not yet stored), then the manifest; older manifests not in `keep`, of one at most, and their chunks go. */
  putSnapshot(
    manifest: SnapshotManifest,
    chunks: ReadonlyMap<string, Uint8Array>,
    keep: readonly number[],
  ): Promise<void>
  /** Manifests of a shard, newest first. */
  snapshots(shard: string): Promise<readonly SnapshotManifest[]>
  /** Chunks by hash. @throws TroupeError `JOURNAL_CORRUPT` when one is missing or its bytes do not match. */
  getChunks(shard: string, hashes: readonly string[]): Promise<readonly Uint8Array[]>
  /** A small durable row of the shard outside the journal, for counts that must survive a crash of the process in `decide`. */
  putAttempts(shard: string, attempts: Readonly<Record<string, number>>): Promise<void>
  getAttempts(shard: string): Promise<Readonly<Record<string, number>>>
  /**
   * Deletes journal, events, blobs, snapshots of a shard; leaves a tombstone with its last sequence and hash.
   * @throws TroupeError the damage code of a shard that has to be cut first, where that is so
   */
  remove(shard: string): Promise<void>
  /** Cuts a damaged shard back to `sequence` (0 = all) with chain hash `hash` and lifts its damage mark. */
  acceptLoss(shard: string, sequence: number, hash: Uint8Array): Promise<void>
  /** Flushes and releases ownership. Idempotent. */
  close(): Promise<void>
}

const damageCodes: readonly string[] = ['JOURNAL_CORRUPT', 'JOURNAL_TRUNCATED', 'BLOB_MISSING', 'SNAPSHOT_INCOMPATIBLE']

/** Whether an error says that what a shard stored is not what it was. */
export function isDamage(error: unknown): error is TroupeError {
  return isTroupeError(error) && damageCodes.includes(error.code)
}

/** A head for a shard that was never written. */
export function emptyHead(shard: string): ShardHead {
  return { shard, sequence: 0, hash: new Uint8Array(32), pending: nothingPending, removed: false }
}

/** Nothing waits. */
export const nothingPending: Pending = { nextDueAt: null, openEffects: 0, outbox: 0 }
