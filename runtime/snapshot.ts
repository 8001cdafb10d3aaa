/**
 * Snapshots: a shard's state as a manifest and chunks.
 *
 * Owns: how the state is cut into chunks, so that only what changed is written again.
 * Does not own: when (`shard.ts`), where (`journal.ts`).
 *
 * - SN1 A snapshot holds the chain hash of its sequence: one that does not fit the journal is never used.
 * - SN2 A sealed segment of a conversation is written once, however often its shard is snapshotted.
 */
import { contentHash, decode, encode } from './codec.js'
import type { StoredEntry } from './conversation.js'
import { TroupeError } from './errors.js'
import type { Journal, SnapshotManifest } from './journal.js'
import type { Scope } from './scope.js'
import {
  fromStoredState,
  type Machines,
  type ShardState,
  type StoredLog,
  type StoredState,
  toStoredState,
} from './state.js'

/** Entries in a sealed segment. */
const segmentLength = 512
/** An actor's state up to here is in the manifest: it would be a read of its own, for each of them. */
const inlineBytes = 4 * 1024

type ManifestLog = readonly [string, readonly string[], readonly StoredEntry[], StoredLog[2], string]

interface Manifest {
  readonly state: Omit<StoredState, 'logs' | 'actors'>
  /** The state of each actor, encoded, or the hash of its chunk. */
  readonly actors: readonly (Uint8Array | string)[]
  readonly logs: readonly ManifestLog[]
}

/** A snapshot that is ready to be stored. */
export interface Snapshotted {
  readonly manifest: SnapshotManifest
  readonly chunks: ReadonlyMap<string, Uint8Array>
  /** Bytes of the manifest and of all its chunks, stored before or not. */
  readonly bytes: number
}

/** Hashes of segments that were sealed before, by conversation: they need not be encoded again. */
export type SealedSegments = Map<string, string[]>

/** Takes a snapshot of `state`, whose journal ends with `hash`. */
export function takeSnapshot(
  state: ShardState,
  hash: Uint8Array,
  sealed: SealedSegments,
  scope: Scope,
  machines: Machines,
): Snapshotted {
  const { logs, actors, ...rest } = toStoredState(state, scope, machines)
  const chunks = new Map<string, Uint8Array>()
  let bytes = 0
  const add = (chunk: Uint8Array): string => {
    const name = contentHash(chunk)
    chunks.set(name, chunk)
    bytes += chunk.length
    return name
  }
  const manifest: Manifest = {
    state: rest,
    actors: actors.map((actor) => {
      const encoded = encode(actor)
      return encoded.length > inlineBytes ? add(encoded) : encoded
    }),
    logs: logs.map(([name, entries, staged, logHash]): ManifestLog => {
      const known = sealed.get(name) ?? []
      for (let at = known.length * segmentLength; at + segmentLength <= entries.length; at += segmentLength) {
        known.push(add(encode(entries.slice(at, at + segmentLength))))
      }
      sealed.set(name, known)
      return [name, [...known], entries.slice(known.length * segmentLength), staged, logHash]
    }),
  }
  for (const name of sealed.keys()) if (!state.logs.has(name)) sealed.delete(name)
  const encoded = encode(manifest)
  const ofActors = manifest.actors.filter((actor) => typeof actor === 'string')
  const names = [...ofActors, ...manifest.logs.flatMap(([, segments]) => segments)]
  return {
    manifest: { shard: state.shard, sequence: state.sequence, hash, bytes: encoded, chunks: [...new Set(names)] },
    chunks,
    bytes: bytes + encoded.length,
  }
}

/**
 * Rebuilds the state of a stored snapshot.
 * @param accept whether an actor may go on under another version of its machine, said in words
 * @throws TroupeError `JOURNAL_CORRUPT` when a chunk is missing, `SNAPSHOT_INCOMPATIBLE` when this release cannot read it.
 */
export async function loadSnapshot(
  journal: Journal,
  stored: SnapshotManifest,
  sealed: SealedSegments,
  scope: Scope,
  machines: Machines,
  accept?: (difference: string) => boolean,
): Promise<ShardState> {
  const manifest = decode(stored.bytes) as Manifest
  const contents = await journal.getChunks(stored.shard, stored.chunks)
  const chunk = new Map(stored.chunks.map((name, index) => [name, contents[index]!]))
  const read = (name: string): unknown => {
    const bytes = chunk.get(name)
    if (bytes === undefined)
      throw new TroupeError('JOURNAL_CORRUPT', `${stored.shard}: a snapshot lacks the chunk ${name}`)
    return decode(bytes)
  }
  const logs = manifest.logs.map(([name, segments, open, staged, hash]): StoredLog => {
    sealed.set(name, [...segments])
    return [name, [...segments.flatMap((segment) => read(segment) as StoredEntry[]), ...open], staged, hash]
  })
  const actors = manifest.actors.map((actor) =>
    typeof actor === 'string' ? read(actor) : decode(actor),
  ) as StoredState['actors']
  return fromStoredState(stored.shard, { ...manifest.state, actors, logs }, scope, machines, accept)
}
