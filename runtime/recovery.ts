/**
 * Recovery: from what is stored to the state, or to the reason why not.
 *
 * Owns: the choice of a snapshot, replay, the check of chain and digests, the refusal of changed code.
 * Does not own: what happens to open effects afterwards (`shard.ts`).
 *
 * - Y1 Replay runs no effect and calls no code of the user.
 * - Y2 A snapshot is used only when the journal's chain has its hash at its sequence.
 * - Y3 A record that does not follow from the one before stops the shard with `JOURNAL_CORRUPT`.
 * - Y4 Decisions that differ from the recorded ones are refused with `UPGRADE_REFUSED`, which names the first one; the
 *   shard is untouched. An accepted upgrade is journalled and not refused again.
 * - Y5 A record that lands while a shard is rebuilt is no damage: the state is that of some moment, and what does not know
 *   of the record is kept out by the fence.
 * - Y6 Of a snapshot of the head no record is read: the head has its hash.
 */
import { type Commit, type DecideContext, decide } from './commit.js'
import { isTroupeError, TroupeError, toTroupeError } from './errors.js'
import type { Journal, ShardHead, SnapshotManifest, StoredRecord } from './journal.js'
import { checkChain, corrupt, fromRecord, type RecordedCommit } from './record.js'
import { loadSnapshot, type SealedSegments } from './snapshot.js'
import { machineOf } from './user-actors.js'
import { areRecorded, emptyState, missing, type ShardState } from './state.js'

/** A shard as it was recovered. */
export interface Recovered {
  readonly state: ShardState
  /** Chain hash of the last record. */
  readonly hash: Uint8Array
  /** Bytes of the records after the snapshot that was used. */
  readonly tailBytes: number
  /** Sequence of that snapshot; 0 for none. */
  readonly snapshot: number
  readonly sealed: SealedSegments
  /** The first decision that differs, when differences were accepted. */
  readonly diverged: string | null
}

/**
 * Rebuilds a shard.
 * @param acceptUpgrade takes changed decisions; the caller journals the upgrade.
 * @throws TroupeError `JOURNAL_CORRUPT`, `JOURNAL_TRUNCATED`, `UPGRADE_REFUSED`, `SNAPSHOT_INCOMPATIBLE`.
 */
export async function recover(
  journal: Journal,
  shard: string,
  context: DecideContext,
  acceptUpgrade: boolean,
): Promise<Recovered> {
  const head = await journal.head(shard)
  if (head.removed || head.sequence === 0) {
    const state = emptyState(shard)
    state.sequence = head.sequence
    return { state, hash: head.hash, tailBytes: 0, snapshot: 0, sealed: new Map(), diverged: null }
  }
  let refusal: TroupeError | null = null
  for (const stored of await journal.snapshots(shard)) {
    const sealed: SealedSegments = new Map()
    let changed: string | null = null
    try {
      const tail = isHead(head, stored) ? emptyTail(head) : await readTail(journal, shard, stored.sequence, stored.hash)
      if (tail === null) continue
      const accepted = acceptedHere(tail.commits, context)
      const state = await loadSnapshot(journal, stored, sealed, context.scope, context.machines, (difference) => {
        if (!accepted) changed ??= difference
        return accepted || acceptUpgrade
      })
      const replayed = replay(shard, state, tail, context, acceptUpgrade)
      const diverged = replayed.diverged ?? changed
      return await finish(journal, head, { ...replayed, diverged }, tail, stored.sequence, sealed)
    } catch (error) {
      // A damaged snapshot is an optimisation lost; one that this release cannot read may be made again by replay.
      if (!isTroupeError(error) || (error.code !== 'SNAPSHOT_INCOMPATIBLE' && error.code !== 'JOURNAL_CORRUPT'))
        throw error
      refusal = error
    }
  }
  const tail = await readTail(journal, shard, 0, new Uint8Array(32))
  if (tail === null) throw refusal ?? corrupt(shard, 1, 'is missing and no snapshot stands in for it')
  try {
    const replayed = replay(shard, emptyState(shard), tail, context, acceptUpgrade)
    return await finish(journal, head, replayed, tail, 0, new Map())
  } catch (error) {
    // Replay under other code after a snapshot that this code cannot read: both reasons count.
    if (refusal === undefined || !isTroupeError(error) || error.code !== 'UPGRADE_REFUSED') throw error
    const why = toTroupeError(refusal, 'SNAPSHOT_INCOMPATIBLE').message
    throw new TroupeError('UPGRADE_REFUSED', `${error.message} (${why})`, { details: error.details, cause: refusal })
  }
}

/** Whether a record of the tail accepts this very code, so that it may go on from the snapshot before. */
function acceptedHere(commits: readonly RecordedCommit[], context: DecideContext): boolean {
  return commits.some(
    ({ envelope: { body } }) =>
      body.type === 'shard.upgraded' &&
      areRecorded(context.machines, (body['machines'] ?? {}) as Readonly<Record<string, string>>),
  )
}

/** @param head as it was before the tail was read: somebody may have written since, where several share the journal */
async function finish(
  journal: Journal,
  { shard, sequence: least }: ShardHead,
  replayed: { state: ShardState; diverged: string | null },
  tail: Tail,
  snapshot: number,
  sealed: SealedSegments,
): Promise<Recovered> {
  const { sequence } = replayed.state
  const most = sequence > least ? (await journal.head(shard)).sequence : least
  if (sequence < least || sequence > most) {
    const message = `${shard}: records end at ${sequence}, the index says ${most}`
    throw new TroupeError('JOURNAL_TRUNCATED', message, { details: { shard, sequence } })
  }
  const { state, diverged } = replayed
  return { state, hash: tail.hash, tailBytes: tail.bytes, snapshot, sealed, diverged }
}

interface Tail {
  readonly commits: readonly RecordedCommit[]
  readonly hash: Uint8Array
  readonly bytes: number
}

/** Whether nothing came after a snapshot: the head has its hash, and nothing is to be read. */
function isHead(head: ShardHead, { sequence, hash }: Pick<SnapshotManifest, 'sequence' | 'hash'>): boolean {
  return head.sequence === sequence && Buffer.from(head.hash).equals(hash)
}

function emptyTail({ hash }: ShardHead): Tail {
  return { commits: [], hash, bytes: 0 }
}

/** The commits after `sequence`, chain checked; null when the journal does not have `hash` at `sequence`. */
async function readTail(journal: Journal, shard: string, sequence: number, hash: Uint8Array): Promise<Tail | null> {
  const commits: RecordedCommit[] = []
  let previous = hash
  let bytes = 0
  let anchored = sequence === 0
  for await (const record of journal.read(shard, Math.max(1, sequence))) {
    if (!anchored) {
      if (!isAt(record, sequence, hash)) return null
      anchored = true
      continue
    }
    const decoded = fromRecord(shard, record)
    if (sequence === 0 && commits.length === 0 && record.first > 1) {
      // The chain of a new life of an id goes on from a record that is gone: nothing is left to check its first link by.
      if (!isBirth(decoded[0])) return null
    } else {
      checkChain(shard, previous, record)
      const expected = (commits.at(-1)?.sequence ?? sequence) + 1
      if (record.first !== expected) throw corrupt(shard, record.first, 'leaves a gap before it')
    }
    commits.push(...decoded)
    previous = record.hash
    bytes += record.bytes.length
  }
  return anchored ? { commits, hash: previous, bytes } : null
}

/** Whether a commit may be the first that is left of a journal: a life begins with it. */
function isBirth(commit: RecordedCommit | undefined): boolean {
  const type = commit?.envelope.body.type
  return type === 'crew.defined' || type === 'shard.repaired' || type === 'shard.skipped'
}

function isAt(record: StoredRecord, sequence: number, hash: Uint8Array): boolean {
  return record.last === sequence && Buffer.from(record.hash).equals(hash)
}

function replay(
  shard: string,
  state: ShardState,
  tail: Tail,
  context: DecideContext,
  acceptUpgrade: boolean,
): { state: ShardState; diverged: string | null } {
  const accepted = upgradedUntil(tail.commits)
  let diverged: string | null = null
  const [firstCommit] = tail.commits
  if (firstCommit !== undefined) state.sequence = firstCommit.sequence - 1
  for (const recorded of tail.commits) {
    checkMachine(shard, recorded, context)
    const commit = decide(state, recorded.envelope, { ...context, explain: true })
    if (Buffer.from(commit.digest).equals(recorded.digest) || recorded.sequence <= accepted) continue
    if (!acceptUpgrade) throw refused(shard, recorded, commit)
    diverged ??= difference(recorded, commit)
  }
  return { state, diverged }
}

/** Replay without a machine of the user's would decide otherwise, and say that the code has changed. @throws TroupeError `MACHINE_UNKNOWN`. */
function checkMachine(shard: string, { envelope: { body } }: RecordedCommit, { machines }: DecideContext): void {
  const kind = body.type === 'crew.defined' ? machineOf(body['crew'])?.kind : undefined
  if (kind !== undefined && machines[kind] === undefined) throw missing(shard, kind)
}

/** Commits up to this one were accepted under other code. */
function upgradedUntil(commits: readonly RecordedCommit[]): number {
  return Math.max(
    0,
    ...commits
      .filter((commit) => commit.envelope.body.type === 'shard.upgraded')
      .map((commit) => commit.envelope.body['until'] as number),
  )
}

function refused(shard: string, recorded: RecordedCommit, commit: Commit): TroupeError {
  const what = difference(recorded, commit)
  return new TroupeError(
    'UPGRADE_REFUSED',
    `${shard}: this code decides otherwise than the code that wrote the journal: ${what}`,
    {
      details: { shard, sequence: recorded.sequence, difference: what },
    },
  )
}

/** The first decision that differs, in words. */
function difference(recorded: RecordedCommit, commit: Commit): string {
  const before = Buffer.from(recorded.trail)
  const now = Buffer.from(commit.trail)
  let index = 0
  while (
    index * 2 < before.length &&
    index * 2 < now.length &&
    before.readUInt16LE(index * 2) === now.readUInt16LE(index * 2)
  )
    index += 1
  const decision = commit.decisions[index]?.slice(0, 300) ?? 'nothing more'
  return `commit ${recorded.sequence} (${recorded.envelope.body.type} to ${recorded.envelope.to}), decision ${index + 1} of ${before.length / 2}: now ${decision}`
}
