/**
 * The lease of a worker: for a while nobody else has its name, and the number of the lease tells it from the one before.
 *
 * A lease only decides who tries. What keeps an owner that was paused from writing is the journal's fence.
 *
 * Owns: taking, renewing and giving back one lease, noticing that it is lost.
 * Does not own: what follows from it.
 *
 * - NL1 A name has one lease at a time: the second who asks is refused until the first gives it back or it runs out.
 * - NL2 The epoch of a later lease is higher, whoever had the name before.
 * - NL3 A lease that could not be renewed in time is lost for good, and whoever had it is told once.
 */
import { type KV, Kvm } from '@nats-io/kv'
import { TroupeError } from '../runtime/errors.js'
import { storeError } from './jetstream-content.js'
import type { NatsLink } from './nats-connection.js'
import { type Announcement, encodeAnnouncement } from './nats-membership.js'
import type { Subjects } from './subjects.js'

/** Options of `NatsLease.take`. */
export interface LeaseOptions {
  /** Name of the worker: one token. */
  readonly worker: string
  /** It runs out after so long without a renewal. @default 5_000 */
  readonly ttlMs?: number
  /** Copies of the bucket in a cluster. @default 1 */
  readonly replicas?: number
  /** What others are to know of this worker. @default nothing */
  readonly announcement?: Announcement
}

/** One lease. */
export class NatsLease {
  /** The fencing number. */
  readonly epoch: number
  readonly #bucket: KV
  readonly #worker: string
  readonly #ttlMs: number
  readonly #told: string
  #revision: number
  #renewedAt = performance.now()
  #timer: NodeJS.Timeout
  #state: 'held' | 'lost' | 'released' = 'held'
  /** Called once when the lease is lost. */
  onLost: () => void = () => undefined

  private constructor(bucket: KV, worker: string, ttlMs: number, revision: number, told: string) {
    this.#bucket = bucket
    this.#worker = worker
    this.#ttlMs = ttlMs
    this.#told = told
    this.epoch = revision
    this.#revision = revision
    this.#timer = this.#plan()
  }

  /** @throws TroupeError `STORE_BUSY` while another process has the name, and what the server refuses. */
  static async take(link: NatsLink, subjects: Subjects, options: LeaseOptions): Promise<NatsLease> {
    const ttlMs = options.ttlMs ?? 5_000
    try {
      const bucket = await new Kvm(link.connection).create(subjects.stream('workers'), {
        ttl: ttlMs,
        history: 1,
        replicas: options.replicas ?? 1,
      })
      const told = encodeAnnouncement(options.announcement ?? { crews: {} })
      const revision = await bucket.create(options.worker, told)
      return new NatsLease(bucket, options.worker, ttlMs, revision, told)
    } catch (error) {
      if (!/wrong last sequence/i.test((error as Error).message)) throw storeError(error)
      const message = `there is a worker ${options.worker} already`
      throw new TroupeError('STORE_BUSY', message, { retryable: true, details: { worker: options.worker } })
    }
  }

  /** False once it is lost or given back. */
  get isHeld(): boolean {
    return this.#state === 'held' && performance.now() - this.#renewedAt < this.#ttlMs
  }

  #plan(): NodeJS.Timeout {
    return setTimeout(() => void this.#renew(), this.#ttlMs / 3).unref()
  }

  async #renew(): Promise<void> {
    const asked = performance.now()
    try {
      this.#revision = await this.#bucket.update(this.#worker, this.#told, this.#revision)
      // The server counts from when it took it, which is not before it was asked.
      this.#renewedAt = asked
    } catch (error) {
      if (/wrong last sequence/i.test((error as Error).message)) return this.#lose()
    }
    if (this.#state !== 'held') return
    if (performance.now() - this.#renewedAt >= this.#ttlMs) this.#lose()
    else this.#timer = this.#plan()
  }

  #lose(): void {
    if (this.#state !== 'held') return
    this.#state = 'lost'
    clearTimeout(this.#timer)
    this.onLost()
  }

  /** Gives it back: the name is free at once. */
  async release(): Promise<void> {
    if (this.#state !== 'held') return
    this.#state = 'released'
    clearTimeout(this.#timer)
    await this.#bucket.delete(this.#worker, { previousSeq: this.#revision }).catch(() => undefined)
  }
}
