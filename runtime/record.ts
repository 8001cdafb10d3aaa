/**
 * Records: commits as bytes, and back.
 *
 * Owns: the stored form of commits and their events, the chain's link.
 * Does not own: where the bytes are kept (`journal.ts`).
 *
 * - RE1 A record's hash is SHA-256 over the previous record's hash and its bytes.
 * - RE2 Bytes that do not decode to commits are `JOURNAL_CORRUPT`, never a guess.
 */
import { chain, decode, encode } from './codec.js'
import type { Commit, DomainEvent } from './commit.js'
import { type Envelope, fromStored, type StoredEnvelope, toStored } from './envelope.js'
import { TroupeError } from './errors.js'
import type { JournalRecord, Pending, StoredRecord } from './journal.js'
import type { Message } from './scope.js'

/** A commit as it is read back. */
export interface RecordedCommit {
  readonly sequence: number
  readonly envelope: Envelope
  readonly digest: Uint8Array
  readonly trail: Uint8Array
}

type StoredCommit = readonly [StoredEnvelope, Uint8Array, Uint8Array]
type StoredEvents = readonly [sequence: number, at: number, events: readonly DomainEvent[]]

/** An event with its place: id and order come from it. */
export interface PlacedEvent {
  readonly sequence: number
  /** Position among the commit's events. */
  readonly index: number
  readonly at: number
  readonly from: string
  readonly event: Message
}

/** Makes one record of consecutive commits. */
export function toRecord(
  shard: string,
  previous: Uint8Array,
  commits: readonly Commit[],
  pending: Pending,
): JournalRecord {
  const bytes = encode(commits.map((commit): StoredCommit => [toStored(commit.envelope), commit.digest, commit.trail]))
  const events = commits
    .filter((commit) => commit.events.length > 0)
    .map((commit): StoredEvents => [commit.sequence, commit.envelope.at, commit.events])
  return {
    shard,
    first: commits[0]!.sequence,
    last: commits.at(-1)!.sequence,
    hash: chain(previous, bytes),
    bytes,
    events: events.length === 0 ? null : encode(events),
    lastEvent: events.at(-1)?.[0],
    pending,
  }
}

/** Decodes a record. @throws TroupeError `JOURNAL_CORRUPT`. */
export function fromRecord(shard: string, record: StoredRecord): RecordedCommit[] {
  try {
    const stored = decode(record.bytes) as StoredCommit[]
    if (stored.length !== record.last - record.first + 1) throw new Error('wrong number of commits')
    return stored.map(([envelope, digest, trail], index) => ({
      sequence: record.first + index,
      envelope: fromStored(envelope),
      digest,
      trail,
    }))
  } catch (error) {
    throw corrupt(shard, record.first, `does not decode: ${(error as Error).message}`)
  }
}

/** Checks a record against its predecessor's hash. @throws TroupeError `JOURNAL_CORRUPT`. */
export function checkChain(shard: string, previous: Uint8Array, record: StoredRecord): void {
  if (!chain(previous, record.bytes).equals(record.hash)) {
    throw corrupt(shard, record.first, 'its hash does not follow from the one before')
  }
}

/** Decodes the events that are stored beside a record. */
export function fromEvents(bytes: Uint8Array): PlacedEvent[] {
  return (decode(bytes) as StoredEvents[]).flatMap(([sequence, at, events]) =>
    events.map(([from, event], index) => ({ sequence, index, at, from, event })),
  )
}

/** The events of a commit with their places. */
export function eventsOf(commit: Commit): PlacedEvent[] {
  return commit.events.map(([from, event], index) => ({
    sequence: commit.sequence,
    index,
    at: commit.envelope.at,
    from,
    event,
  }))
}

export function corrupt(shard: string, sequence: number, what: string): TroupeError {
  return new TroupeError('JOURNAL_CORRUPT', `${shard}: record ${sequence} ${what}`, { details: { shard, sequence } })
}
