/**
 * Repair: gives up what a damaged crew lost, and goes on from its last sound record.
 *
 * Owns: finding what is sound, cutting the rest, writing down what was lost.
 * Does not own: finding damage (`journal.ts`, `recovery.ts`), what becomes of open work afterwards (`shard.ts`: a `once`
 * call that had started is unknown).
 *
 * - P1 Nothing is changed before somebody accepted the loss, and nothing is guessed: what is kept is chained.
 * - P2 The loss is a record of the journal. The numbers of lost commits are not used again: no new call gets the key of a
 *   lost one, no new event the id of one that was told, and no letter the life of those that were sent.
 */
import { BlobRef } from './codec.js'
import { type Commit, type DecideContext, decide } from './commit.js'
import { textsOf } from './content.js'
import { TroupeError } from './errors.js'
import { type Damage, isDamage, type Journal, type SnapshotManifest } from './journal.js'
import { checkChain, corrupt, fromRecord, toRecord } from './record.js'
import { recover } from './recovery.js'
import { loadSnapshot } from './snapshot.js'
import { nextDueAt, portWork, type ShardState } from './state.js'

/** What is wrong with a crew's journal. */
export interface Loss {
  readonly crew: string
  readonly code: string
  readonly reason: string
  /** The last sound commit; 0 when nothing is. */
  readonly sound: number
  /** Hash of the record that ends with it. */
  readonly hash: Uint8Array
  /**
   * First and last commit that go; `to` is the last one that is known of. `to < from`: none goes, the damage is in
   * history that a snapshot stands in for.
   */
  readonly from: number
  readonly to: number
}

/** What is told of a crew's journal, and what was done about it. */
export interface RepairReport {
  readonly crew: string
  /** Null when all of it is sound. */
  readonly damage: { readonly code: string; readonly reason: string } | null
  /** The last sound commit, of a damaged one. */
  readonly sound?: number
  /** The commits that are to be given up, or were; null when none is. */
  readonly lost: { readonly from: number; readonly to: number } | null
  /** They were given up. */
  readonly repaired: boolean
}

/** A loss as it is told. */
export function toReport(crew: string, loss: Loss | null, repaired: boolean): RepairReport {
  if (loss === null) return { crew, damage: null, lost: null, repaired: false }
  const { code, reason, sound, from, to } = loss
  return { crew, damage: { code, reason }, sound, lost: to < from ? null : { from, to }, repaired }
}

/** Most numbers of lost commits that are skipped one by one. */
const maxSkipped = 10_000

/**
 * Looks a crew's journal through, blobs included; null when all of it is sound.
 * @param mark what the journal itself says of where the crew ends: its `open`, or `damageOf`
 * @throws TroupeError `CREW_UNKNOWN`.
 */
export async function findLoss(
  journal: Journal,
  crew: string,
  mark: Damage | undefined,
  context: DecideContext,
): Promise<Loss | null> {
  const known = Math.max(mark?.last ?? 0, await lastKnown(journal, crew))
  if (mark === undefined && known === 0) {
    throw new TroupeError('CREW_UNKNOWN', `there is no crew ${crew} in this store`)
  }
  const walked = await walkNewest(journal, crew, context)
  const problem = walked.problem ?? (mark === undefined ? null : new TroupeError(mark.code, mark.reason))
  const { sequence, hash } = walked
  if (problem === null) {
    const { problem: history } = (await walk(journal, crew, null)) ?? { problem: null }
    if (history === null) return null
    const { code, message: reason } = history
    return { crew, code, reason, sound: sequence, hash, from: sequence + 1, to: sequence }
  }
  // A lost tail of unknown length lost at least one commit.
  const to = Math.max(known, sequence + 1)
  return { crew, code: problem.code, reason: problem.message, sound: sequence, hash, from: sequence + 1, to }
}

/** What a journal that several workers share says of where a crew ends; undefined when that is sound. */
export async function damageOf(journal: Journal, crew: string): Promise<Damage | undefined> {
  try {
    await journal.refresh(crew)
    return undefined
  } catch (error) {
    if (!isDamage(error)) throw error
    const { message: reason, details } = error
    return { shard: crew, code: error.code as Damage['code'], reason, last: Number(details['last'] ?? 0) }
  }
}

/** The last commit that the index knows of; a damaged index knows less. */
async function lastKnown(journal: Journal, crew: string): Promise<number> {
  try {
    for await (const head of journal.heads()) if (head.shard === crew && !head.removed) return head.sequence
  } catch (error) {
    if (!isDamage(error)) throw error
  }
  return 0
}

interface Walk {
  readonly sequence: number
  readonly hash: Uint8Array
  /** Why it went no further; null at the end of a sound journal. */
  readonly problem: TroupeError | null
}

/** From the newest snapshot that can be used, or from the start. */
async function walkNewest(journal: Journal, crew: string, context: DecideContext): Promise<Walk> {
  for (const snapshot of await journal.snapshots(crew).catch(() => [])) {
    if (!(await isUsable(journal, crew, snapshot, context))) continue
    const walked = await walk(journal, crew, snapshot)
    if (walked !== null) return walked
  }
  return (await walk(journal, crew, null)) ?? { sequence: 0, hash: new Uint8Array(32), problem: null }
}

/** Whether a snapshot is whole, and what unfinished runs say in it can still be read. */
async function isUsable(
  journal: Journal,
  crew: string,
  snapshot: SnapshotManifest,
  context: DecideContext,
): Promise<boolean> {
  try {
    const state = await loadSnapshot(journal, snapshot, new Map(), context.scope, context.machines)
    const finished = new Set([...state.runs.values()].filter((run) => run.end !== null).map((run) => run.conversation))
    for (const [name, log] of state.logs) if (!finished.has(name)) await textsOf(journal, crew, log.entries)
    return true
  } catch (error) {
    if (isDamage(error)) return false
    throw error
  }
}

/** Follows the chain as far as it is sound; null when the journal does not have the snapshot's record. */
async function walk(journal: Journal, crew: string, snapshot: SnapshotManifest | null): Promise<Walk | null> {
  let sequence = 0
  let hash: Uint8Array | null = null
  try {
    for await (const record of journal.read(crew, snapshot?.sequence ?? 1)) {
      if (snapshot !== null && hash === null) {
        if (record.last !== snapshot.sequence || !Buffer.from(record.hash).equals(snapshot.hash)) return null
      } else {
        // The first record of a new life follows from one that is gone: only its own checksum vouches for it.
        const previous = hash ?? (record.first === 1 ? new Uint8Array(32) : null)
        if (previous !== null) checkChain(crew, previous, record)
        if (hash !== null && record.first !== sequence + 1) throw corrupt(crew, record.first, 'leaves a gap before it')
        for (const commit of fromRecord(crew, record)) await checkBlobs(journal, crew, commit.envelope.values)
      }
      sequence = record.last
      hash = record.hash
    }
  } catch (error) {
    if (!isDamage(error)) throw error
    if (snapshot !== null && hash === null) return null
    return { sequence, hash: hash ?? new Uint8Array(32), problem: error }
  }
  if (snapshot !== null && hash === null) return null
  return { sequence, hash: hash ?? new Uint8Array(32), problem: null }
}

async function checkBlobs(journal: Journal, crew: string, values: readonly unknown[]): Promise<void> {
  for (const value of values) if (value instanceof BlobRef) await journal.getBlob(crew, value.hash)
}

/**
 * Cuts a crew back to its last sound commit and journals the loss. The crew must not be active.
 * @throws TroupeError `STORE_FAILED`, `STORE_FULL`, `UPGRADE_REFUSED` when this code cannot replay what is left.
 */
export async function acceptLoss(journal: Journal, loss: Loss, context: DecideContext, now: number): Promise<void> {
  const { crew, sound, hash, from, to, code, reason } = loss
  await journal.acceptLoss(crew, sound, hash)
  const recovered = await recover(journal, crew, context, false)
  const { state } = recovered
  const commits: Commit[] = []
  while (state.sequence < to && commits.length < maxSkipped) {
    commits.push(own(state, { type: 'shard.skipped' }, context, now))
  }
  // Behind the lost numbers: what it is told as, and the life that begins with it, have a number that was never used.
  const told = { type: 'shard.repaired', code, reason: reason.slice(0, 2_048), from, to }
  commits.push(own(state, told, context, now))
  const pending = { nextDueAt: nextDueAt(state), openEffects: portWork(state), outbox: 0 }
  await journal.append(toRecord(crew, recovered.hash, commits, pending))
}

function own(state: ShardState, body: { type: string; [field: string]: unknown }, context: DecideContext, now: number) {
  const at = Math.max(state.at, now)
  return decide(state, { from: 'shard/self', to: 'shard/self', at, cause: '', body, values: [] }, context)
}
