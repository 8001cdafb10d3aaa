/**
 * Appends: into the log at once, into LevelDB by the file.
 *
 * Owns: group commit, the order log → witness → caller, when a file of the log is written into LevelDB.
 * Does not own: the log's layout (`record-log.ts`), the rows in LevelDB (`level-flush.ts`), its other writes
 * (`level-lane.ts`).
 *
 * - LA1 Appends that wait are written as one group; an append is resolved after the witness has been written.
 * - LA2 Appends wait for LevelDB only when both files of the log are full.
 * - LA3 What was appended before a `flush` is in LevelDB when that resolves.
 */

import type { TroupeError } from '../runtime/errors.js'
import type { JournalRecord } from '../runtime/journal.js'
import type { HeadFile } from './head-file.js'
import type { Database, WriteOptions } from './level-database.js'
import { portionBatch, portions } from './level-flush.js'
import { copyOf, type LevelLane } from './level-lane.js'
import { RecordLog, type LoggedRecord } from './record-log.js'
import type { Entry } from './shard-heads.js'

const maxGroup = 1000
/** In `power` the witness goes to disk this often: a power cut can leave it older by so much, never ahead. */
const witnessSyncMs = 1000
/** A log that nobody appends to is written into LevelDB after this time, or the double of it. */
const quietMs = 1000
/** So many groups in a row may keep the event loop from its other work. */
const groupsInARow = 32

interface Waiting {
  readonly entry: LevelEntry
  readonly record: JournalRecord
  readonly resolve: () => void
  readonly reject: (error: TroupeError) => void
}

interface Flush {
  /** The last use of a file that has to be in LevelDB. */
  readonly era: number
  readonly resolve: () => void
  readonly reject: (error: TroupeError) => void
}

/** A shard in use. */
export interface LevelEntry extends Entry {
  readonly nameCrc: number
  /** It has an index row. */
  exists: boolean
}

/** What is written to. */
export interface CommitTarget {
  readonly db: Database
  readonly log: RecordLog
  readonly witness: HeadFile
}

/** The appends of one open journal. */
export class LevelCommit {
  readonly #lane: LevelLane
  readonly #options: WriteOptions
  readonly #target: () => CommitTarget
  readonly #forget: (shard: string) => void
  #queue: Waiting[] = []
  #flushes: Flush[] = []
  #scheduled = false
  #groups = 0
  /** A group is on its way to the disk. */
  #writing = false
  /** A file of the log is on its way into LevelDB. */
  #leaving = false
  /** Appends wait while this is not 0. */
  #held = 0
  #onIdle: (() => void)[] = []
  #witnessSyncedAt = 0
  #quiet: NodeJS.Timeout | null = null
  #appended = false

  /** `forget` drops a shard's cached head: whether its append landed is not known. */
  constructor(lane: LevelLane, options: WriteOptions, target: () => CommitTarget, forget: (shard: string) => void) {
    this.#lane = lane
    this.#options = options
    this.#target = target
    this.#forget = forget
    lane.onFailure = (error) => this.#rejectAll(error)
  }

  /** Queues an append; its entry is busy until it is settled. */
  append(entry: LevelEntry, record: JournalRecord): Promise<void> {
    entry.busy = true
    return new Promise<void>((resolve, reject) => {
      this.#queue.push({ entry, record, resolve, reject })
      this.#schedule()
    })
  }

  /** Resolves when all that was appended is in LevelDB. */
  async flush(): Promise<void> {
    if (this.#lane.failure !== null) throw copyOf(this.#lane.failure)
    const { log } = this.#target()
    const isFilling = this.#writing || log.isFilling
    if (!isFilling && !this.#leaving) return
    await new Promise<void>((resolve, reject) => {
      this.#flushes.push({ era: isFilling ? log.era : log.era - 1, resolve, reject })
      this.#schedule()
    })
  }

  /** Runs something while LevelDB has all records and no append changes that. */
  async alone(run: (target: CommitTarget) => Promise<void>): Promise<void> {
    this.#held++
    try {
      await this.flush()
      await run(this.#target())
    } finally {
      this.#held--
      this.#schedule()
    }
  }

  /** Resolves when nothing is written or waits. The log may have records all the same. */
  async idle(): Promise<void> {
    while (this.#isBusy()) await new Promise<void>((resolve) => this.#onIdle.push(resolve))
    if (this.#quiet !== null) clearTimeout(this.#quiet)
    this.#quiet = null
    await this.#lane.idle()
  }

  #isBusy(): boolean {
    return this.#scheduled || this.#writing || this.#leaving || this.#held > 0 || this.#queue.length > 0
  }

  #schedule(): void {
    if (this.#writing || this.#scheduled) return
    this.#scheduled = true
    // After all microtasks: appends of other shards that the same event led to join the group.
    if (++this.#groups % groupsInARow === 0) setImmediate(this.#next)
    else process.nextTick(this.#next)
  }

  readonly #next = (): void => {
    this.#scheduled = false
    if (this.#lane.failure !== null) this.#rejectAll(this.#lane.failure)
    else if (this.#queue.length > 0 || this.#flushes.length > 0) this.#advance(this.#target())
    if (!this.#isBusy()) for (const resolve of this.#onIdle.splice(0)) resolve()
  }

  #advance(target: CommitTarget): void {
    const { log } = target
    const waiting = this.#held > 0 ? undefined : this.#queue[0]
    const isFull = waiting !== undefined && !log.fits(RecordLog.sizeOf(waiting.record))
    const isAsked = log.isFilling && this.#flushes.some(({ era }) => era >= log.era)
    if ((isFull || isAsked) && !this.#leaving) void this.#leave(target)
    else if (isFull) return
    if (waiting !== undefined) this.#writeGroup(target)
  }

  #writeGroup({ log }: CommitTarget): void {
    const queue = this.#queue
    let size = 0
    let bytes = 0
    while (size < queue.length && size < maxGroup) {
      bytes += RecordLog.sizeOf(queue[size]!.record)
      if (size > 0 && !log.fits(bytes)) break
      size++
    }
    const group = size === queue.length ? queue : queue.splice(0, size)
    if (group === queue) this.#queue = []
    this.#writing = true
    try {
      const logged = log.append(group)
      if (this.#options.sync) {
        log.sync().then(
          () => this.#landed(group, logged),
          (thrown: unknown) => this.#lost(group, thrown),
        )
      } else {
        this.#landed(group, logged)
      }
    } catch (thrown) {
      this.#lost(group, thrown)
    }
  }

  #landed(group: readonly Waiting[], logged: readonly LoggedRecord[]): void {
    const { witness, log } = this.#target()
    try {
      for (const { entry, record } of group) {
        witness.sum += record.last - entry.sequence
        if (!entry.exists) witness.count++
        witness.note(record.shard, record.last, record.hash)
      }
      witness.write()
    } catch (thrown) {
      this.#lost(group, thrown)
      return
    }
    log.hold(logged)
    this.#writing = false
    for (const { entry, record, resolve } of group) {
      entry.sequence = record.last
      entry.hash = record.hash
      entry.pending = record.pending
      entry.removed = false
      entry.exists = true
      entry.busy = false
      resolve()
    }
    if (this.#options.sync) this.#syncWitness(witness)
    this.#appended = true
    if (this.#quiet === null) this.#waitForQuiet()
    if (this.#queue.length > 0 || this.#flushes.length > 0 || this.#options.sync) this.#schedule()
  }

  #syncWitness(witness: HeadFile): void {
    const now = performance.now()
    if (now - this.#witnessSyncedAt < witnessSyncMs) return
    this.#witnessSyncedAt = now
    witness.syncSoon()
  }

  #waitForQuiet(): void {
    this.#quiet = setTimeout(() => {
      this.#quiet = null
      if (this.#appended) this.#waitForQuiet()
      // A failure is told to whoever appends next.
      else void this.flush().catch(() => undefined)
      this.#appended = false
    }, quietMs).unref()
  }

  #lost(group: readonly Waiting[], thrown: unknown): void {
    this.#writing = false
    this.#queue = [...group, ...this.#queue]
    this.#rejectAll(this.#lane.fail(thrown))
    this.#schedule()
  }

  /** Turns the log over and writes the filled file into LevelDB. */
  async #leave({ db, log }: CommitTarget): Promise<void> {
    const { era } = log
    log.turn()
    this.#leaving = true
    try {
      for (const portion of portions(log.leaving())) {
        await this.#lane.run(() => portionBatch(db, portion).write(this.#options))
      }
      log.release()
      const done = this.#flushes.filter((flush) => flush.era <= era)
      this.#flushes = this.#flushes.filter((flush) => flush.era > era)
      for (const { resolve } of done) resolve()
    } catch {
      // The lane has failed, and has told everybody who waits.
    }
    this.#leaving = false
    this.#schedule()
  }

  #rejectAll(error: TroupeError): void {
    const queue = this.#queue
    this.#queue = []
    for (const { entry, reject } of queue) {
      this.#forget(entry.shard)
      entry.busy = false
      reject(copyOf(error))
    }
    for (const { reject } of this.#flushes.splice(0)) reject(copyOf(error))
  }
}
