/**
 * The journal of a simulated process: the one in memory, behind a disk that fails, lies idle, fills up, and loses what
 * it had not acknowledged when the process dies.
 */
import { isTroupeError, TroupeError } from '../../runtime/errors.js'
import {
  type BlobInfo,
  emptyHead,
  type Journal,
  type JournalRecord,
  type OpenReport,
  type ShardHead,
  type SnapshotManifest,
  type StoredRecord,
} from '../../runtime/journal.js'
import { fromRecord } from '../../runtime/record.js'
import { type Placed, publishBehind } from '../../transport/fence.js'
import { createMemoryJournal } from '../../transport/memory-journal.js'
import type { CrashWindow } from './fault-plan.js'
import type { Published, SimulatedStream } from './simulated-stream.js'
import { never, type SimulatedProcess, type World } from './world.js'

/** How long an answer of the server is waited for. */
const answerMs = 5_000
/** How long it takes to notice that there is no link. */
const cutMs = 1_000

/** What a worker knows of a shard's end: others may have written since. */
interface KnownEnd {
  readonly at: number
  readonly head: ShardHead
}

/** A journal that dies with its process. */
export class SimulatedJournal implements Journal {
  readonly durability = 'process'
  readonly #world: World
  readonly #process: SimulatedProcess
  readonly #inner: Journal
  /** Records that are not acknowledged yet, and how they land. False when they do not follow. */
  readonly #inFlight = new Map<string, () => boolean>()
  /** Where recovery began to read, and which snapshots it had to choose from. */
  readonly #reading = new Map<string, { from: number; manifests: readonly number[] }>()
  /** Where this worker knows shards to end, among several. */
  readonly #ends = new Map<string, KnownEnd>()
  /** Shards whose last append failed although it landed. */
  readonly #ambiguous = new Map<string, boolean>()

  constructor(world: World, process: SimulatedProcess) {
    this.#world = world
    this.#process = process
    this.#inner = createMemoryJournal({ store: world.store })
  }

  async open(): Promise<OpenReport> {
    if (!this.#process.alive) return never()
    const report = await this.#inner.open()
    const { unclean } = this.#world
    this.#world.unclean = true
    return { ...report, unclean }
  }

  /** The process dies: what was under way is there or not. */
  crash(): void {
    const { random, notes } = this.#world
    for (const land of this.#inFlight.values()) {
      const landed = random.chance(0.5) && land()
      notes.fault(landed ? 'crash: append in flight, landed' : 'crash: append in flight, lost')
    }
    this.#inFlight.clear()
  }

  // ------------------------------------------------------------------------------------------ append

  append(record: JournalRecord): Promise<void> {
    if (!this.#process.alive) return never()
    const { stream } = this.#world
    return stream === null ? this.#appendAlone(record) : this.#appendShared(stream, record)
  }

  #appendAlone(record: JournalRecord): Promise<void> {
    const { plan, random, notes } = this.#world
    const fault = this.#fatal(record)
    if (fault !== null) {
      if (fault.lands && this.#follows(record)) this.#land(record)
      this.#world.crash(this.#process, fault.name)
      return never()
    }
    if (this.#full()) return this.#refuse(record, 'STORE_FULL')
    if (!this.#world.calm && random.chance(plan.appendFails)) {
      notes.fault('append failed')
      this.#ambiguous.set(record.shard, false)
      return this.#refuse(record, 'STORE_FAILED')
    }
    if (!this.#world.calm && random.chance(plan.appendAmbiguous) && this.#land(record)) {
      notes.fault('append failed, landed')
      this.#ambiguous.set(record.shard, true)
      return this.#refuse(record, 'STORE_FAILED')
    }
    const slowMs = this.#slowMs()
    if (slowMs === 0) return this.#land(record) ? Promise.resolve() : this.#refuse(record, 'STORE_FAILED')
    return this.#appendLater(record, slowMs)
  }

  /** How long the disk takes. */
  #slowMs(): number {
    const { plan, random, forcedSlowMs } = this.#world
    const slowMs = forcedSlowMs || (random.chance(plan.appendSlow) ? random.int(1, plan.slowMs) : 0)
    this.#world.forcedSlowMs = 0
    return slowMs
  }

  /** Whether a record would land. */
  #follows(record: JournalRecord): boolean {
    return (this.#world.store.shards.get(record.shard)?.head.sequence ?? 0) + 1 === record.first
  }

  async #appendLater(record: JournalRecord, slowMs: number): Promise<void> {
    this.#inFlight.set(record.shard, () => this.#follows(record) && this.#land(record))
    await this.#world.timeline.wait(slowMs, this.#process)
    // It may have died while this was on its way: then `crash` has dealt with the record.
    if (!this.#process.alive) return never()
    this.#inFlight.delete(record.shard)
    if (!this.#land(record)) throw failed('STORE_FAILED', record)
  }

  /** Always takes some time, so that whoever tries again at once does not spin. */
  async #refuse(record: JournalRecord, code: 'STORE_FULL' | 'STORE_FAILED'): Promise<never> {
    this.#world.replica(record.shard).stalled = true
    await this.#world.timeline.wait(this.#world.random.int(1, 5), this.#process)
    throw failed(code, record)
  }

  /** Puts a record into the store. False when it does not follow. */
  #land(record: JournalRecord): boolean {
    this.#inner.append(record).catch(() => undefined)
    const landed = this.#world.store.shards.get(record.shard)?.head.hash === record.hash
    const detail = () => `${record.shard}: process ${this.#process.id} appends ${record.first}`
    this.#world.notes.check('gap', landed, detail)
    if (!landed) return false
    this.#world.landed(this.#process, record, '')
    return true
  }

  // ------------------------------------------------------------------------------------------ several workers

  /** As the JetStream journal does it. */
  async #appendShared(stream: SimulatedStream, record: JournalRecord): Promise<void> {
    const { shard } = record
    if (this.#reading.has(shard)) this.#rebuilt(shard)
    const { at: behind, head } = this.#endOf(stream, shard)
    if (record.first !== head.sequence + 1) throw failed('STORE_FAILED', record)
    const { owner } = this.#process.ownership!
    const epoch = Number(owner.slice(owner.lastIndexOf('.') + 1))
    const mark = { epoch, kind: 'record', last: record.last, hash: Buffer.from(record.hash).toString('base64url') }
    const common = { record, mark, writer: owner, process: this.#process }
    try {
      const at = await publishBehind(
        { shard, mark, behind, shared: true, copies: stream.copies },
        {
          publish: (id, after) => this.#publish(stream, { ...common, id, behind: after }),
          after: (number) => this.#afterOf(stream, shard, number),
        },
      )
      const { last: sequence, hash, pending, crew } = record
      this.#ends.set(shard, { at, head: { shard, sequence, hash, pending, removed: false, crew } })
    } catch (error) {
      this.#ends.delete(shard)
      if (isTroupeError(error) && error.code === 'SHARD_FENCED') this.#world.notes.reached('stale append fenced')
      throw error
    }
  }

  #endOf(stream: SimulatedStream, shard: string): KnownEnd {
    const known = this.#ends.get(shard)
    if (known !== undefined) return known
    const head = this.#world.store.shards.get(shard)?.head ?? emptyHead(shard)
    const end = { at: stream.end(shard), head }
    this.#ends.set(shard, end)
    return end
  }

  /** A request to the server: it may be lost, or its answer, or either is late. */
  async #publish(stream: SimulatedStream, message: Published): Promise<number> {
    const { plan, random, notes, timeline, calm } = this.#world
    const { record } = message
    const fault = this.#fatal(record)
    if (fault !== null) {
      if (fault.lands) stream.take(message)
      this.#world.crash(this.#process, fault.name)
      return never()
    }
    const { ownership } = this.#process
    if (ownership?.cut === true) {
      if (ownership.reaches && stream.take(message) !== null) notes.fault('append landed, answer lost')
      return this.#unanswered(record, cutMs)
    }
    if (this.#full()) return this.#refuse(record, 'STORE_FULL')
    if (!calm && random.chance(plan.appendFails)) {
      notes.fault('append failed')
      this.#ambiguous.set(record.shard, false)
      return this.#refuse(record, 'STORE_FAILED')
    }
    if (this.#losesAnswer(record)) return this.#landLate(stream, message)
    const travelMs = this.#serverMs()
    if (travelMs > answerMs) {
      timeline.after(travelMs, null, () => void stream.take(message, true))
      return this.#unanswered(record, answerMs)
    }
    this.#inFlight.set(record.shard, () => stream.take(message) !== null)
    await timeline.wait(travelMs, this.#process)
    if (!this.#process.alive) return never()
    this.#inFlight.delete(record.shard)
    const at = stream.take(message)
    if (at === null) throw failed('STORE_FAILED', record)
    return at
  }

  /** How long the server takes for a request; in a slow time longer than anybody waits, now and then. */
  #serverMs(): number {
    return this.#slowMs() + (this.#world.slowUntil > this.#world.timeline.now ? this.#world.random.int(100, 6_000) : 0)
  }

  /** Nobody waits any more. */
  async #unanswered(record: JournalRecord, afterMs: number): Promise<never> {
    await this.#world.timeline.wait(afterMs, this.#process)
    if (!this.#process.alive) return never()
    throw failed('STORE_FAILED', record)
  }

  /** Whether the answer to an append is lost: what a client asked for is the worst to decide twice. */
  #losesAnswer(record: JournalRecord): boolean {
    const { plan, random, calm } = this.#world
    if (calm || plan.appendAmbiguous === 0) return false
    const asked = fromRecord(record.shard, record).some(({ envelope }) => envelope.from === 'client/local')
    return random.chance(asked ? 0.3 : plan.appendAmbiguous * 4)
  }

  /** No acknowledgement comes: the record lands soon, or late, or never, when it still follows then. */
  async #landLate(stream: SimulatedStream, message: Published): Promise<never> {
    const { random, notes, timeline } = this.#world
    const patienceMs = random.pick([random.int(1, 400), answerMs])
    // Before it is given up, just while it is tried again, or long after.
    const landsMs = random.pick([random.int(1, patienceMs), patienceMs + random.int(1, 4), patienceMs + 600])
    if (random.chance(0.7)) {
      timeline.after(landsMs, null, () => {
        if (stream.take(message, true) === null) return
        notes.fault(landsMs > patienceMs ? 'append landed late' : 'append landed, answer lost')
      })
    }
    return this.#unanswered(message.record, patienceMs)
  }

  /** The first message behind a number, as the server tells it. */
  async #afterOf(stream: SimulatedStream, shard: string, behind: number): Promise<Placed | null> {
    await this.#hear(shard)
    return stream.after(shard, behind)
  }

  /** Asks the server for something. */
  async #hear(shard: string): Promise<void> {
    const travelMs = 1 + this.#serverMs()
    await this.#world.timeline.wait(Math.min(travelMs, answerMs), this.#process)
    if (!this.#process.alive) return never()
    if (travelMs > answerMs || this.#process.ownership?.cut === true) await this.#unreachable(shard)
  }

  /** Whether the process dies over this append, and how. */
  #fatal(record: JournalRecord): { name: Parameters<World['crash']>[1]; lands: boolean } | null {
    const { plan, random } = this.#world
    const { crash } = plan
    if (this.#process.recovering.has(record.shard) && this.#world.strikes('in recovery'))
      return { name: 'crash: in recovery', lands: random.chance(0.5) }
    if (this.#world.strikes('append landed')) return { name: 'crash: append landed', lands: true }
    if (this.#world.strikes('before append')) return { name: 'crash: before append', lands: false }
    const looks =
      crash['outcome to append'] + crash['before dispatched record'] + crash['dispatched record landed'] > 0 ||
      plan.poison === 'timer'
    if (!looks) return null
    const strikes = (window: CrashWindow) => this.#world.strikes(window)
    for (const { envelope } of fromRecord(record.shard, record)) {
      // A timer of active time moves with every start, is not due then, and so its crashes are not counted.
      const timer = envelope.from === 'clock/timer' && !envelope.cause.includes('|active:')
      if (timer && this.#world.poisons('timer', `${record.shard} ${envelope.cause}`))
        return { name: 'crash: poisonous timer', lands: false }
      if (
        envelope.from.startsWith('port/') &&
        !envelope.body.type.startsWith('effect.') &&
        strikes('outcome to append')
      )
        return { name: 'crash: outcome to append', lands: false }
      if (envelope.body.type !== 'effect.dispatched') continue
      if (strikes('before dispatched record')) return { name: 'crash: before dispatched record', lands: false }
      if (strikes('dispatched record landed')) return { name: 'crash: dispatched record landed', lands: true }
    }
    return null
  }

  #full(): boolean {
    return this.#world.fullUntil > this.#world.timeline.now
  }

  async refresh(shard: string): Promise<ShardHead> {
    if (!this.#process.alive) return never()
    if (this.#world.stream !== null) await this.#hear(shard)
    if (this.#full()) {
      await this.#world.timeline.wait(1, this.#process)
      throw new TroupeError('STORE_FULL', `${shard}: simulated: no space`)
    }
    const landed = this.#ambiguous.get(shard)
    if (landed !== undefined) this.#world.notes.reached(landed ? 'append reloaded: landed' : 'append reloaded: lost')
    this.#ambiguous.delete(shard)
    this.#ends.delete(shard)
    return this.head(shard)
  }

  async #unreachable(shard: string): Promise<never> {
    await this.#world.timeline.wait(cutMs, this.#process)
    throw new TroupeError('STORE_FAILED', `${shard}: simulated: no server`, { retryable: true })
  }

  // ------------------------------------------------------------------------------------------ reading

  async head(shard: string): Promise<ShardHead> {
    if (!this.#process.alive) return never()
    const { stream } = this.#world
    return stream === null ? this.#inner.head(shard) : this.#endOf(stream, shard).head
  }

  async *heads(): AsyncGenerator<ShardHead> {
    if (!this.#process.alive) await never()
    yield* this.#inner.heads()
  }

  async *read(shard: string, from: number): AsyncGenerator<StoredRecord> {
    if (!this.#process.alive) await never()
    const reading = this.#reading.get(shard)
    if (reading !== undefined) reading.from = from
    // What others have written since is not known here.
    const end = this.#ends.get(shard)?.head.sequence ?? Number.POSITIVE_INFINITY
    for await (const record of this.#inner.read(shard, from)) if (record.last <= end) yield record
  }

  async *readEvents(
    shard: string,
    from: number,
  ): AsyncGenerator<{ readonly first: number; readonly bytes: Uint8Array }> {
    if (!this.#process.alive) return never()
    yield* this.#inner.readEvents(shard, from)
  }

  async snapshots(shard: string): Promise<readonly SnapshotManifest[]> {
    if (!this.#process.alive) return never()
    if (this.#world.strikes('in recovery')) return this.#die('crash: in recovery')
    const manifests = await this.#inner.snapshots(shard)
    this.#reading.set(shard, { from: 0, manifests: manifests.map(({ sequence }) => sequence) })
    return manifests
  }

  async getChunks(shard: string, hashes: readonly string[]): Promise<readonly Uint8Array[]> {
    if (!this.#process.alive) return never()
    return this.#inner.getChunks(shard, hashes)
  }

  /** The first thing after a shard was rebuilt. */
  async listBlobs(shard: string): Promise<readonly BlobInfo[]> {
    if (!this.#process.alive) return never()
    this.#rebuilt(shard)
    return this.#inner.listBlobs(shard)
  }

  #rebuilt(shard: string): void {
    const reading = this.#reading.get(shard)
    this.#reading.delete(shard)
    this.#world.rebuiltAt.set(shard, this.#world.timeline.now)
    if (reading !== undefined) this.#noteRecovery(shard, reading)
  }

  #noteRecovery(shard: string, { from, manifests }: { from: number; manifests: readonly number[] }): void {
    const { notes, spoilt } = this.#world
    const used = manifests.find((sequence) => sequence === from)
    for (const sequence of manifests) {
      if (sequence === used) break
      const why = spoilt.get(shard)?.get(sequence)
      if (why === 'rotten') notes.reached('passed over a rotten snapshot')
      if (why === 'other branch') notes.reached('passed over a snapshot of another branch')
    }
    if (used === undefined) return notes.reached('recovered from the first record')
    notes.reached(used === manifests[0] ? 'recovered from the newest snapshot' : 'recovered from an older snapshot')
  }

  // ------------------------------------------------------------------------------------------ beside the records

  async putBlob(shard: string, hash: string, bytes: Uint8Array, sequence: number): Promise<void> {
    if (!this.#process.alive) return never()
    await this.#inner.putBlob(shard, hash, bytes, sequence)
    if (this.#world.strikes('blob to append')) return this.#die('crash: blob to append')
  }

  async getBlob(shard: string, hash: string): Promise<Uint8Array> {
    if (!this.#process.alive) return never()
    return this.#inner.getBlob(shard, hash)
  }

  async deleteBlobs(shard: string, hashes: readonly string[]): Promise<void> {
    if (!this.#process.alive) return never()
    this.#world.notes.reached('orphaned blob dropped')
    return this.#inner.deleteBlobs(shard, hashes)
  }

  async putSnapshot(
    manifest: SnapshotManifest,
    chunks: ReadonlyMap<string, Uint8Array>,
    keep: readonly number[],
  ): Promise<void> {
    const { random, notes, plan } = this.#world
    if (!this.#process.alive) return never()
    if (!this.#world.calm && random.chance(plan.snapshotFails)) {
      notes.fault('snapshot failed')
      await this.#world.timeline.wait(1, this.#process)
      throw new TroupeError('STORE_FAILED', `${manifest.shard}: simulated: no snapshot`)
    }
    if (!this.#world.strikes('in snapshot')) {
      if (random.chance(plan.appendSlow)) await this.#world.timeline.wait(random.int(1, plan.slowMs), this.#process)
      if (!this.#process.alive) return never()
      return this.#inner.putSnapshot(manifest, chunks, keep)
    }
    // Chunks come first: with some, all, or the manifest too.
    const stored = this.#world.store.shards.get(manifest.shard)?.chunks
    for (const [hash, bytes] of chunks) if (random.chance(0.6)) stored?.set(hash, bytes)
    if (random.chance(0.3)) await this.#inner.putSnapshot(manifest, chunks, keep)
    return this.#die('crash: in snapshot')
  }

  async putAttempts(shard: string, attempts: Readonly<Record<string, number>>): Promise<void> {
    if (!this.#process.alive) return never()
    if (this.#world.strikes('in recovery')) {
      if (this.#world.random.chance(0.5)) await this.#inner.putAttempts(shard, attempts)
      return this.#die('crash: in recovery')
    }
    return this.#inner.putAttempts(shard, attempts)
  }

  async getAttempts(shard: string): Promise<Readonly<Record<string, number>>> {
    if (!this.#process.alive) return never()
    return this.#inner.getAttempts(shard)
  }

  async remove(shard: string): Promise<void> {
    if (!this.#process.alive) return never()
    return this.#inner.remove(shard)
  }

  async acceptLoss(shard: string, sequence: number, hash: Uint8Array): Promise<void> {
    if (!this.#process.alive) return never()
    return this.#inner.acceptLoss(shard, sequence, hash)
  }

  async close(): Promise<void> {
    if (!this.#process.alive) return never()
    if (this.#world.strikes('in close')) return this.#die('crash: in close')
    await this.#inner.close()
    this.#world.unclean = false
  }

  #die<T>(name: Parameters<World['crash']>[1]): Promise<T> {
    this.#world.crash(this.#process, name)
    return never()
  }
}

function failed(code: 'STORE_FULL' | 'STORE_FAILED', { shard, first }: JournalRecord): TroupeError {
  return new TroupeError(code, `${shard}: simulated: record ${first} was not stored`, { retryable: true })
}
