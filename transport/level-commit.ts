/**
 * The one lane through which everything is written to LevelDB.
 *
 * Owns: group commit, the order store → witness → caller, what happens after a failed write.
 * Does not own: opening the database anew (`level-journal.ts`), what is in a batch that is not an append.
 *
 * - G1 One write at a time. Appends that wait are written as one batch; an append is resolved after the witness has
 *   been written.
 * - G2 After a failed write nothing is written until `reset`: LevelDB would go on behind a torn record in its log, and
 *   lose on the next open what it acknowledged there.
 */

import { TroupeError } from '../runtime/errors.js'
import type { JournalRecord } from '../runtime/journal.js'
import type { HeadFile } from './head-file.js'
import { storeError, type Batch, type Database, type WriteOptions } from './level-database.js'
import type { Entry } from './level-heads.js'
import * as keys from './level-keys.js'

const maxGroup = 1000
const maxGroupBytes = 4 * 1024 * 1024
/** In `power` the witness goes to disk this often: a power cut can leave it older by so much, never ahead. */
const witnessSyncMs = 1000

interface Waiting {
  readonly entry: Entry
  readonly record: JournalRecord
  readonly resolve: () => void
  readonly reject: (error: TroupeError) => void
}

interface Task {
  readonly run: () => Promise<void>
  readonly resolve: () => void
  readonly reject: (error: TroupeError) => void
}

/** What the lane writes to. */
export interface CommitTarget {
  readonly db: Database
  readonly witness: HeadFile
}

/** The write lane of one open journal. */
export class LevelCommit {
  /** Why nothing is written any more; null while all is well. */
  failure: TroupeError | null = null

  readonly #options: WriteOptions
  readonly #target: () => CommitTarget
  readonly #forget: (shard: string) => void
  #queue: Waiting[] = []
  readonly #tasks: Task[] = []
  #writing = false
  #scheduled = false
  #turn: 'append' | 'task' = 'append'
  #onIdle: (() => void)[] = []
  #witnessSyncedAt = 0

  /** `forget` drops a shard's cached head: whether its append landed is not known. */
  constructor(options: WriteOptions, target: () => CommitTarget, forget: (shard: string) => void) {
    this.#options = options
    this.#target = target
    this.#forget = forget
  }

  /** Queues an append; its entry is busy until it is settled. */
  append(entry: Entry, record: JournalRecord): Promise<void> {
    entry.busy = true
    return new Promise<void>((resolve, reject) => {
      this.#queue.push({ entry, record, resolve, reject })
      this.#schedule()
    })
  }

  /** Writes a batch, alone. */
  write(batch: Batch, options = this.#options): Promise<void> {
    return this.run(() => batch.write(options))
  }

  /** Runs anything that writes, alone. */
  run(run: () => Promise<void>): Promise<void> {
    return new Promise<void>((resolve, reject) => {
      this.#tasks.push({ run, resolve, reject })
      this.#schedule()
    })
  }

  /** Resolves when nothing is written or waits. */
  idle(): Promise<void> {
    if (!this.#writing && !this.#scheduled) return Promise.resolve()
    return new Promise((resolve) => this.#onIdle.push(resolve))
  }

  /** Goes on after a failure, on a database that was opened anew. */
  reset(): void {
    this.failure = null
  }

  #schedule(): void {
    if (this.#writing || this.#scheduled) return
    this.#scheduled = true
    // After all microtasks: appends of other shards that the same event led to join the batch.
    process.nextTick(this.#next)
  }

  readonly #next = (): void => {
    this.#scheduled = false
    if (this.failure !== null) this.#rejectAll(this.failure)
    const task = this.#tasks[0]
    // Appends and tasks take turns, so that neither waits for all of the other.
    if (this.#queue.length > 0 && (task === undefined || this.#turn === 'append')) this.#writeGroup()
    else if (task !== undefined) void this.#runTask(task)
    else this.#finish()
  }

  #finish(): void {
    this.#writing = false
    if (this.#queue.length > 0 || this.#tasks.length > 0) this.#schedule()
    else for (const resolve of this.#onIdle.splice(0)) resolve()
  }

  async #runTask(task: Task): Promise<void> {
    this.#writing = true
    this.#turn = 'append'
    this.#tasks.shift()
    try {
      await task.run()
      task.resolve()
    } catch (thrown) {
      task.reject(copyOf(this.#fail(thrown)))
    }
    this.#finish()
  }

  #writeGroup(): void {
    this.#writing = true
    this.#turn = 'task'
    const queue = this.#queue
    let size = 0
    let bytes = 0
    while (size < queue.length && size < maxGroup && bytes < maxGroupBytes)
      bytes += queue[size++]?.record.bytes.length ?? 0
    const group = size === queue.length ? queue : queue.splice(0, size)
    if (group === queue) this.#queue = []
    let batch: Batch
    try {
      batch = this.#target().db.batch()
      for (const { entry, record } of group) putRecord(batch, entry, record)
    } catch (thrown) {
      this.#lost(group, thrown)
      return
    }
    batch.write(this.#options).then(
      () => this.#landed(group),
      (thrown: unknown) => this.#lost(group, thrown),
    )
  }

  #landed(group: readonly Waiting[]): void {
    const { witness } = this.#target()
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
    this.#finish()
  }

  #syncWitness(witness: HeadFile): void {
    const now = performance.now()
    if (now - this.#witnessSyncedAt < witnessSyncMs) return
    this.#witnessSyncedAt = now
    witness.syncSoon()
  }

  #lost(group: readonly Waiting[], thrown: unknown): void {
    const error = this.#fail(thrown)
    this.#queue = [...group, ...this.#queue]
    this.#rejectAll(error)
    this.#finish()
  }

  #fail(thrown: unknown): TroupeError {
    this.failure ??= storeError(thrown)
    return this.failure
  }

  #rejectAll(error: TroupeError): void {
    const queue = this.#queue
    this.#queue = []
    for (const { entry, reject } of queue) {
      this.#forget(entry.shard)
      entry.busy = false
      reject(copyOf(error))
    }
    for (const { reject } of this.#tasks.splice(0)) reject(copyOf(error))
  }
}

/** The same error with the caller's own stack and `cause`. */
export function copyOf(error: TroupeError): TroupeError {
  const { code, message, retryable, details, cause } = error
  return new TroupeError(code, message, { retryable, details, cause })
}

function putRecord(batch: Batch, entry: Entry, record: JournalRecord): void {
  const { shard, first, last, hash, bytes, events, pending } = record
  const value = Buffer.allocUnsafe(keys.rowBytes + bytes.length)
  keys.writeRow(value, entry.nameCrc, { first, last, base: entry.base, hash, pending, removed: false, removing: false })
  value.set(bytes, keys.rowBytes)
  batch.put(keys.sequenceKey(keys.kind.record, shard, last), value)
  batch.put(keys.shardKey(keys.kind.index, shard), value.subarray(0, keys.rowBytes))
  if (events === null) return
  const key = keys.sequenceKey(keys.kind.events, shard, last)
  batch.put(key, keys.seal(key, events, first))
}
