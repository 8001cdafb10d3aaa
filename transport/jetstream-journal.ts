/**
 * The journal in JetStream: one stream of a namespace, one subject a shard.
 *
 * A record is one message: its row in a header, its bytes and events behind each other. What ends or cuts a shard is a
 * message too, since single messages are never deleted: a deletion would make the server forget the fence.
 *
 * Owns: appending, reading, cutting and removing shards.
 * Does not own: what is in a message (`jetstream-message.ts`), finding it (`jetstream-reading.ts`), ends that are not sound
 * (`jetstream-ends.ts`), the fence and what an ambiguous answer means (`fence.ts`), content beside records
 * (`jetstream-content.ts`), who owns which shard (`nats-lease.ts`), what is kept in this process's folder (`local-copy.ts`,
 * `copied-records.ts`).
 *
 * - JJ1 A record lands only behind the one that its owner saw last: the server compares.
 * - JJ2 After an answer that did not come, the journal itself is asked: an append that landed is acknowledged, an append
 *   of another owner is `SHARD_FENCED`.
 * - JJ5 Among several workers an earlier append of the same owner that landed late is `STORE_FAILED`: after `refresh` its
 *   record is there.
 * - JJ6 A shard's crew and that one's version stay with it: through records, cuts and its removal. Whoever has looked at all
 *   heads knows what others made of it; where the shard stood for it, it stands: that is what the server compares.
 * - JJ7 Where copies let two records land at one place the first counts. The writer of the other is told that its append has
 *   failed, though the server had acknowledged it.
 * - JJ3 What is cut is never read again, and stays cut for every later owner.
 * - JJ9 Of a shard whose end is damaged or gone the sound records can be read, and it can be removed: its tombstone has the
 *   number of the last commit that is known of.
 */
import { DiscardPolicy, jetstream, type JetStreamClient } from '@nats-io/jetstream'
import { isTroupeError, TroupeError } from '../runtime/errors.js'
import {
  type BlobInfo,
  type Durability,
  isDamage,
  type Journal,
  type JournalRecord,
  nothingPending,
  type OpenReport,
  type ShardHead,
  type SnapshotManifest,
  type StoredRecord,
} from '../runtime/journal.js'
import { CopiedRecords } from './copied-records.js'
import { publishBehind } from './fence.js'
import { ensureContent, JetStreamContent, partBytes, storeError } from './jetstream-content.js'
import { acceptedLoss, damaged, JetStreamEnds, missing, type StreamEntry } from './jetstream-ends.js'
import {
  hashOf,
  headerOf,
  isRecord,
  type Kind,
  type Label,
  noPayload,
  type Payload,
  payloadOf,
  placedOf,
  rowOf,
} from './jetstream-message.js'
import { JetStreamReading } from './jetstream-reading.js'
import { ensureStream } from './jetstream-stream.js'
import { LocalCopy, type LocalCopyOptions } from './local-copy.js'
import { NatsLease } from './nats-lease.js'
import { durabilityOf } from './nats-settings.js'
import type { NatsLink } from './nats-connection.js'
import * as rows from './rows.js'
import { entryOf, headOf, ShardHeads } from './shard-heads.js'
import { type Message, waitMs } from './stored-messages.js'
import type { Subjects } from './subjects.js'

/** Options of `createJetStreamJournal`. */
export interface JetStreamJournalOptions {
  readonly link: NatsLink
  readonly subjects: Subjects
  /** The worker's name: one process at a time. */
  readonly worker: string
  /** @default 5_000 */
  readonly leaseMs?: number
  /** Copies in a cluster. @default 1 */
  readonly replicas?: number
  /**
   * Number of the worker's lease, when several workers share the stream: the journal then takes none of its own.
   * @default the journal takes a lease under the worker's name
   */
  readonly epoch?: () => number
  /** Where this process keeps what it has read and written, so that it need not be fetched again. @default nowhere */
  readonly copy?: LocalCopyOptions | undefined
}

/** A larger message keeps its body beside the journal. */
const largestBody = partBytes

/** A journal in JetStream. Nothing is touched before `open`. */
export function createJetStreamJournal(options: JetStreamJournalOptions): Journal {
  return new JetStreamJournal(options)
}

/** What a message has besides its row: its writer's lease, the crew, its payload. */
interface Content extends Pick<Label, 'epoch' | 'crew' | 'lastEvent'> {
  readonly payload: () => Promise<Payload>
}

class JetStreamJournal implements Journal {
  /** The server does not sync before it acknowledges. */
  #durability: Durability = 'process'
  readonly #options: JetStreamJournalOptions
  readonly #client: JetStreamClient
  readonly #content: JetStreamContent
  readonly #stream: string
  readonly #reading: JetStreamReading
  readonly #ends: JetStreamEnds
  readonly #heads: ShardHeads<StreamEntry>
  readonly #inFlight = new Set<Promise<unknown>>()
  #lease: NatsLease | null = null
  #copy: LocalCopy | null = null
  #copied: CopiedRecords | null = null
  #state: 'closed' | 'opening' | 'open' | 'closing' = 'closed'
  #closed: Promise<void> = Promise.resolve()

  constructor(options: JetStreamJournalOptions) {
    this.#options = options
    this.#client = jetstream(options.link.connection, { timeout: waitMs })
    this.#content = new JetStreamContent(options.link, options.subjects)
    this.#stream = options.subjects.stream('journal')
    this.#reading = new JetStreamReading(options.link, options.subjects, this.#client)
    this.#ends = new JetStreamEnds(this.#reading)
    this.#heads = new ShardHeads(async (shard) => this.#enter(await this.#ends.load(shard)))
  }

  // Life.

  get durability(): Durability {
    return this.#durability
  }

  async open(): Promise<OpenReport> {
    const { link, subjects, worker, replicas } = this.#options
    if (this.#state !== 'closed') throw new TroupeError('STORE_BUSY', `${worker} is open already`)
    this.#state = 'opening'
    try {
      const [name, subject] = [subjects.stream('journal'), subjects.journals()]
      // A full stream refuses what is new: it must not make room at the expense of what is old.
      const settings = { deny_delete: true, allow_direct: true, discard: DiscardPolicy.New }
      const journal = await ensureStream(link, { name, subjects: [subject], ...settings }, replicas)
      const content = await ensureContent(link, subjects, replicas)
      this.#reading.copies = journal.num_replicas > 1
      this.#content.isDirect = content.num_replicas === 1 && content.allow_direct
      this.#durability = durabilityOf(Math.min(journal.num_replicas, content.num_replicas))
      if (this.#options.epoch === undefined) this.#lease = await this.#take()
      await this.#openCopy()
      this.#state = 'open'
      return await this.#look()
    } catch (error) {
      this.#state = 'closed'
      await this.#lease?.release()
      await this.#copy?.close()
      throw storeError(error)
    }
  }

  async #openCopy(): Promise<void> {
    const { copy } = this.#options
    this.#copy = copy === undefined ? null : await LocalCopy.open(copy)
    this.#content.copy = this.#copy
    this.#copied =
      this.#copy === null ? null : new CopiedRecords(this.#copy, (shard, from) => this.#served(shard, from))
  }

  #take(): Promise<NatsLease> {
    const { link, subjects, worker, leaseMs, replicas } = this.#options
    return NatsLease.take(link, subjects, {
      worker,
      ...(leaseMs === undefined ? {} : { ttlMs: leaseMs }),
      ...(replicas === undefined ? {} : { replicas }),
    })
  }

  async #look(): Promise<OpenReport> {
    const pending: ShardHead[] = []
    const damaged: OpenReport['damaged'][number][] = []
    let shards = 0
    for await (const { shard, row, crew, lastEvent } of this.#reading.lastRows()) {
      if (row === null) {
        damaged.push({ shard, code: 'JOURNAL_CORRUPT', reason: 'the row of its last message is damaged' })
        shards++
      } else if (!row.removed && row.last > 0) {
        shards++
        if (row.pending !== nothingPending) pending.push(headOf({ ...entryOf(shard, row), crew, lastEvent }))
      }
    }
    return { shards, pending, damaged, unclean: false }
  }

  close(): Promise<void> {
    if (this.#state === 'open') {
      this.#state = 'closing'
      this.#closed = this.#release()
    }
    return this.#closed
  }

  async #release(): Promise<void> {
    while (this.#inFlight.size > 0) await Promise.allSettled(this.#inFlight)
    await this.#lease?.release()
    await this.#copy?.close()
    this.#heads.clear()
    this.#state = 'closed'
  }

  #check(): void {
    if (this.#state !== 'open') throw new TroupeError('STORE_FAILED', 'the journal is not open')
  }

  /** The fencing number that is written with each message. */
  get #epoch(): number {
    return this.#options.epoch?.() ?? this.#lease?.epoch ?? 0
  }

  // Appending.

  async append(record: JournalRecord): Promise<void> {
    this.#check()
    // Of the lease under which it was decided: while the place is looked up another may take its place.
    const epoch = this.#epoch
    const entry = await this.#heads.entry(record.shard)
    const { shard, first, last } = record
    if (entry.busy || first !== entry.sequence + 1 || last < first) {
      const problem = entry.busy ? 'an append is in flight' : `it ends at ${entry.sequence}`
      const message = `commits ${first} to ${last} of ${shard} do not follow: ${problem}`
      throw new TroupeError('STORE_FAILED', message, { details: { shard, sequence: entry.sequence, first } })
    }
    const row = { ...record, base: entry.base, removed: false, removing: false }
    await this.#write(entry, 'record', row, {
      epoch,
      crew: (record.crew ?? entry.crew) || undefined,
      lastEvent: record.lastEvent ?? entry.lastEvent,
      payload: () => this.#payloadOf(record),
    })
    this.#ends.told(shard)
    this.#copied?.keep(shard, record)
  }

  /** What is sent of a record: a large one is kept beside the stream. */
  async #payloadOf({ shard, bytes, events }: JournalRecord): Promise<Payload> {
    const data = events === null ? bytes : Buffer.concat([bytes, events])
    const eventsAt = events === null ? null : bytes.length
    if (data.length <= largestBody) return { data, eventsAt, kept: null }
    const kept = rows.contentHash(data)
    await this.#content.putBody(shard, kept, data)
    return { data: new Uint8Array(0), eventsAt, kept }
  }

  /** Publishes one message behind the last of its shard. After a failure the entry is forgotten. */
  async #write(
    entry: StreamEntry,
    kind: Kind,
    row: rows.Row,
    { epoch, crew, lastEvent, payload }: Content = {
      epoch: this.#epoch,
      crew: entry.crew,
      // What is cut goes back.
      lastEvent: entry.lastEvent === undefined ? undefined : Math.min(entry.lastEvent, row.last),
      payload: () => Promise.resolve(noPayload),
    },
  ): Promise<void> {
    this.#check()
    entry.busy = true
    const { shard, at: behind, cuts } = entry
    const writing = (async (): Promise<void> => {
      const content = await payload()
      const header = headerOf(shard, { kind, row, epoch, behind, crew, lastEvent, cuts }, content)
      const subject = this.#options.subjects.journal(shard)
      const publish = async (msgID: string, lastSubjectSequence: number): Promise<number> => {
        const options = { msgID, headers: header, expect: { lastSubjectSequence }, timeout: waitMs }
        return (await this.#client.publish(subject, content.data, options)).seq
      }
      const mark = { epoch, kind, last: row.last, hash: hashOf(row) }
      const shared = this.#options.epoch !== undefined
      const message = { shard, mark, behind, shared, copies: this.#reading.copies }
      const after = async (number: number) => placedOf(shard, await this.#reading.next(shard, number + 1))
      const ack = await publishBehind(message, { publish, after })
      Object.assign(entry, { at: ack, sequence: row.last, hash: row.hash, base: row.base })
      Object.assign(entry, { pending: row.pending, removed: row.removed, crew, lastEvent })
    })()
    this.#inFlight.add(writing)
    try {
      await writing
    } catch (error) {
      this.#heads.forget(shard)
      throw storeError(error)
    } finally {
      entry.busy = false
      this.#inFlight.delete(writing)
    }
  }

  async refresh(shard: string): Promise<ShardHead> {
    this.#check()
    if (this.#heads.cached(shard)?.busy !== true) this.#heads.forget(shard)
    this.#ends.told(shard)
    return this.head(shard)
  }

  // Heads.

  async head(shard: string): Promise<ShardHead> {
    this.#check()
    return headOf(await this.#heads.entry(shard))
  }

  async *heads(): AsyncGenerator<ShardHead> {
    this.#check()
    const found: ShardHead[] = []
    for await (const { shard, at, row, crew, lastEvent, storedAt } of this.#reading.lastRows()) {
      const known = this.#heads.peek(shard)
      if (known !== undefined && !known.busy && known.at < at) known.crew = crew
      if (row !== null && row.last > 0) found.push({ ...headOf({ ...entryOf(shard, row), crew, lastEvent }), storedAt })
    }
    yield* found.sort((one, other) => (one.shard < other.shard ? -1 : 1))
  }

  async #enter(entry: StreamEntry): Promise<StreamEntry> {
    await this.#copied?.enter(entry.shard, lifeOf(entry))
    return entry
  }

  /** The entry of a shard, of one whose end is damaged or gone as far as it is sound. */
  async #soundEntry(shard: string): Promise<{ readonly entry: StreamEntry; readonly damage: TroupeError | null }> {
    try {
      return { entry: await this.#heads.entry(shard), damage: null }
    } catch (error) {
      if (!isDamage(error)) throw error
      return { entry: await this.#enter(await this.#ends.loadSound(shard)), damage: error }
    }
  }

  // Reading.

  async *read(shard: string, from: number): AsyncGenerator<StoredRecord> {
    this.#check()
    const { entry, damage } = await this.#soundEntry(shard)
    const start = Math.max(from, entry.base + 1)
    // What is known here of a damaged shard may be more than others could read.
    if (damage === null && this.#copied !== null) yield* this.#copied.read(entry, lifeOf(entry), start)
    else yield* this.#served(shard, start)
  }

  async *#served(shard: string, from: number): AsyncGenerator<StoredRecord> {
    for await (const { row, bytes } of this.#records(shard, from)) {
      yield { first: row.first, last: row.last, hash: row.hash, bytes }
    }
  }

  async *readEvents(
    shard: string,
    from: number,
  ): AsyncGenerator<{ readonly first: number; readonly bytes: Uint8Array }> {
    for await (const { row, events } of this.#records(shard, from)) {
      if (events !== null) yield { first: row.first, bytes: events }
    }
  }

  async *#records(
    shard: string,
    from: number,
  ): AsyncGenerator<{ readonly row: rows.Row; readonly bytes: Uint8Array; readonly events: Uint8Array | null }> {
    this.#check()
    const { entry, damage } = await this.#soundEntry(shard)
    yield* this.#recordsOf(entry, from)
    if (damage !== null) throw damage
  }

  async *#recordsOf(
    { shard, at, base, sequence, cuts }: StreamEntry,
    from: number,
  ): AsyncGenerator<{ readonly row: rows.Row; readonly bytes: Uint8Array; readonly events: Uint8Array | null }> {
    const start = Math.max(from, base + 1)
    if (at === 0 || start > sequence) return
    let next = start
    for await (const message of this.#reading.from(shard, start, { at, cuts })) {
      if (!isRecord(message, cuts)) continue
      const row = rowOf(shard, message)
      if (row === null) throw damaged(shard)
      if (row.last < start) continue
      const follows = next === start ? row.first <= start : row.first === next
      if (!follows) throw missing(shard, next, row.first - 1)
      next = row.last + 1
      yield { row, ...(await this.#parts(shard, message)) }
      if (next > sequence) return
    }
    if (next <= sequence) throw missing(shard, next, sequence)
  }

  async #parts(
    shard: string,
    message: Message,
  ): Promise<{ readonly bytes: Uint8Array; readonly events: Uint8Array | null }> {
    const { data, eventsAt, kept } = payloadOf(message)
    const all = kept === null ? data : await this.#content.getBody(shard, kept)
    if (all === null || (kept !== null && rows.contentHash(all) !== kept)) throw damaged(shard)
    if (eventsAt === null) return { bytes: all, events: null }
    return { bytes: all.subarray(0, eventsAt), events: all.subarray(eventsAt) }
  }

  // Ends.

  async remove(shard: string): Promise<void> {
    this.#check()
    const { at } = (await this.#soundEntry(shard)).entry
    try {
      await this.#entomb(shard)
    } catch (error) {
      if (!isTroupeError(error) || error.code !== 'STORE_FULL') throw error
      // There is no room even for the tombstone: what goes makes some. The last record stays, and with it the fence.
      await this.#empty(shard, at)
      await this.#entomb(shard)
    }
    await this.#empty(shard, at)
  }

  async #entomb(shard: string): Promise<void> {
    const { entry, damage } = await this.#soundEntry(shard)
    if (entry.busy) throw new TroupeError('STORE_FAILED', `${shard} is being written`, { retryable: true })
    const sequence = Math.max(entry.sequence, Number(damage?.details['last'] ?? 0))
    if (sequence === 0 || entry.removed) return
    const { hash } = entry
    const position = { first: sequence, last: sequence, base: sequence, hash }
    entry.cuts = []
    await this.#write(entry, 'tombstone', { ...position, pending: nothingPending, removed: true, removing: false })
  }

  /** Deletes all that a shard stored but its last message. @param at number of its last message; 0: there is none */
  async #empty(shard: string, at: number): Promise<void> {
    await this.#content.clear(shard)
    await this.#forget(shard)
    const filter = this.#options.subjects.journal(shard)
    if (at > 0) await this.#options.link.manager.streams.purge(this.#stream, { filter, keep: 1 })
  }

  async acceptLoss(shard: string, sequence: number, hash: Uint8Array): Promise<void> {
    this.#check()
    const entry = this.#heads.cached(shard) ?? (await this.#enter(await this.#ends.loadSound(shard)))
    if (entry.busy) throw new TroupeError('STORE_FAILED', `${shard} is being written`, { retryable: true })
    const kept = sequence === 0 ? null : await this.#reading.endingAt(entry, sequence, hash)
    const from = kept === null ? 1 : kept.seq + 1
    entry.cuts = [...entry.cuts, acceptedLoss, ...(entry.at >= from ? [[from, entry.at] as const] : [])]
    const base = kept === null ? sequence : kept.base
    const row = { first: sequence, last: sequence, base, hash, pending: nothingPending }
    await this.#write(entry, 'cut', { ...row, removed: false, removing: false })
    this.#ends.cut(shard)
    await this.#forget(shard)
    await this.#content.cutSnapshots(shard, sequence)
    await this.#content.putAttempts(shard, {})
  }

  /** The shard's records are not what they were: its next use reads where it stands, and enters another life. */
  async #forget(shard: string): Promise<void> {
    await this.#copied?.forget(shard)
    if (this.#copied !== null) this.#heads.forget(shard)
  }

  // Content beside the records.

  putBlob(shard: string, hash: string, bytes: Uint8Array, sequence: number): Promise<void> {
    return this.#content.putBlob(shard, hash, bytes, sequence)
  }

  getBlob(shard: string, hash: string): Promise<Uint8Array> {
    return this.#content.getBlob(shard, hash)
  }

  listBlobs(shard: string): Promise<readonly BlobInfo[]> {
    return this.#content.listBlobs(shard)
  }

  deleteBlobs(shard: string, hashes: readonly string[]): Promise<void> {
    return this.#content.deleteBlobs(shard, hashes)
  }

  putSnapshot(
    manifest: SnapshotManifest,
    chunks: ReadonlyMap<string, Uint8Array>,
    keep: readonly number[],
  ): Promise<void> {
    return this.#content.putSnapshot(manifest, chunks, keep)
  }

  snapshots(shard: string): Promise<readonly SnapshotManifest[]> {
    return this.#content.snapshots(shard)
  }

  getChunks(shard: string, hashes: readonly string[]): Promise<readonly Uint8Array[]> {
    return this.#content.getChunks(shard, hashes)
  }

  putAttempts(shard: string, attempts: Readonly<Record<string, number>>): Promise<void> {
    return this.#content.putAttempts(shard, attempts)
  }

  getAttempts(shard: string): Promise<Readonly<Record<string, number>>> {
    return this.#content.getAttempts(shard)
  }
}

/** What tells records of a shard from those of the same numbers that were cut, or of an earlier life. */
function lifeOf({ base, cuts }: StreamEntry): string {
  return `${base}:${cuts.map((cut) => cut.join('-')).join(',')}`
}
