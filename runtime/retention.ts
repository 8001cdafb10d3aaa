/**
 * Retention: crews that nobody has used for long are removed.
 *
 * Owns: which crews those are, when it is looked.
 * Does not own: removing one, and what stays of it (`worker.ts`, the journals).
 *
 * - RT1 Only a crew at rest is removed: no run, effect, timer or letter of it is open, and no dead letter is kept for anybody.
 * - RT2 A crew that somebody holds, or has used within the time, stays.
 */
import { toTroupeError } from './errors.js'
import type { Journal, ShardHead } from './journal.js'
import type { Log } from './log.js'
import type { Clock } from './ports.js'
import { fromRecord } from './record.js'

/** What retention needs of its worker. */
export interface RetainingWorker {
  readonly journal: Pick<Journal, 'heads' | 'read'>
  readonly clock: Clock
  readonly log: Log
  /** Whether a shard is this worker's, at rest, held by nobody here, and its last run ended before that time. Rebuilds it when need be. */
  mayGo(id: string, since: number): Promise<boolean>
  remove(id: string): Promise<void>
}

const longestPauseMs = 3_600_000

/** Looks ten times in `retainMs`, at least once an hour. */
export class Retention {
  readonly #worker: RetainingWorker
  readonly #retainMs: number
  #cancel: () => void = () => undefined
  #closed = false

  /** @param retainMs how long a crew is kept after its last commit */
  constructor(worker: RetainingWorker, retainMs: number) {
    this.#worker = worker
    this.#retainMs = retainMs
  }

  start(): void {
    if (this.#closed) return
    this.#cancel = this.#worker.clock.after(Math.min(longestPauseMs, Math.ceil(this.#retainMs / 10)), () => {
      void this.#look().finally(() => this.start())
    })
  }

  close(): void {
    this.#closed = true
    this.#cancel()
  }

  /** Never rejects. */
  async #look(): Promise<void> {
    const { journal, log } = this.#worker
    try {
      for await (const head of journal.heads()) {
        if (this.#closed) return
        if (isQuiet(head)) await this.#removeOld(head)
      }
    } catch (error) {
      log.warn('old crews could not be looked for', { reason: toTroupeError(error, 'STORE_FAILED').message })
    }
  }

  async #removeOld(head: ShardHead): Promise<void> {
    const { shard } = head
    const { clock, log } = this.#worker
    const since = clock.now() - this.#retainMs
    try {
      if ((head.storedAt ?? (await this.#lastCommitAt(head))) > since) return
      if (!(await this.#worker.mayGo(shard, since)) || this.#closed) return
      await this.#worker.remove(shard)
      log.info('an old crew was removed', { shard })
    } catch (error) {
      const { code, message: reason } = toTroupeError(error, 'STORE_FAILED')
      log.warn('an old crew could not be removed', { shard, code, reason })
    }
  }

  async #lastCommitAt({ shard, sequence }: ShardHead): Promise<number> {
    let at = Number.POSITIVE_INFINITY
    for await (const record of this.#worker.journal.read(shard, sequence))
      for (const { envelope } of fromRecord(shard, record)) at = envelope.at
    return at
  }
}

/** Whether nothing of a shard is open as far as its head tells. */
function isQuiet({ removed, sequence, pending }: ShardHead): boolean {
  return !removed && sequence > 0 && pending.openEffects === 0 && pending.outbox === 0 && pending.nextDueAt === null
}
