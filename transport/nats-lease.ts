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
 * - NL4 What a worker announces is stored at once, under the same epoch.
 * - NL5 A renewal whose answer is lost does not lose the lease, whether or not it was stored.
 */
import { setTimeout as wait } from 'node:timers/promises'
import { jetstream } from '@nats-io/jetstream'
import { type KV, Kvm } from '@nats-io/kv'
import { errors } from '@nats-io/transport-node'
import { TroupeError } from '../runtime/errors.js'
import { isOverwritten, storeError } from './jetstream-content.js'
import type { NatsLink } from './nats-connection.js'
import { type Announcement, encodeAnnouncement, memberOf } from './nats-membership.js'
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
  /** Number of the first lease of this process. @default this one is the first */
  readonly process?: number
}

/** A lease as it was taken. */
interface Taken {
  readonly bucket: KV
  readonly worker: string
  readonly ttlMs: number
  readonly epoch: number
  readonly told: Announcement
  readonly process: number
  /** When it was asked for: the server counts from when it took it, which is not before. */
  readonly askedAt: number
  readonly offsetMs: number
  readonly since: number
}

/** One lease. */
export class NatsLease {
  /** The fencing number. */
  readonly epoch: number
  /** Epoch milliseconds, by the server's clock, at which this process's monotonic clock stood at zero. */
  readonly offsetMs: number
  /** When it was taken, in epoch milliseconds of the server. */
  readonly since: number
  /** Number of the first lease of its process. */
  readonly process: number
  readonly #bucket: KV
  readonly #worker: string
  readonly #ttlMs: number
  #revision: number
  #renewedAt: number
  /** What is to be announced, and what is stored. */
  #told: Announcement
  #stored: Announcement
  #timer: NodeJS.Timeout | undefined
  #expiry: NodeJS.Timeout | undefined
  #renewing: Promise<void> | null = null
  readonly #waiting: (() => void)[] = []
  #state: 'held' | 'lost' | 'released' = 'held'
  #onLost: () => void = () => undefined

  private constructor({ bucket, worker, ttlMs, epoch, told, process, askedAt, offsetMs, since }: Taken) {
    this.#bucket = bucket
    this.#worker = worker
    this.#ttlMs = ttlMs
    this.#told = told
    this.#stored = told
    this.epoch = epoch
    this.offsetMs = offsetMs
    this.since = since
    this.process = process
    this.#revision = epoch
    this.#renewedAt = askedAt
    this.#expire()
    this.#plan(ttlMs / 3)
  }

  /** @throws TroupeError `STORE_BUSY` while another process has the name, and what the server refuses. */
  static async take(link: NatsLink, subjects: Subjects, options: LeaseOptions): Promise<NatsLease> {
    const { worker, ttlMs = 5_000, replicas = 1, announcement: told = { crews: {} }, process } = options
    try {
      const client = jetstream(link.connection, { timeout: Math.max(ttlMs, 1_000) })
      const settings = { ttl: ttlMs, history: 1, replicas }
      const bucket = await onceMade(() => new Kvm(client).create(subjects.stream('workers'), settings))
      const askedAt = performance.now()
      const note = process === undefined ? {} : { process }
      const epoch = await onceMade(() => bucket.create(worker, encodeAnnouncement(told, note)))
      const answeredAt = performance.now()
      const entry = await bucket.get(worker)
      // The server wrote its time on the entry somewhere in between.
      const since = entry?.created.getTime() ?? Date.now()
      const offsetMs = since - (askedAt + answeredAt) / 2
      return new NatsLease({ bucket, worker, ttlMs, epoch, told, process: process ?? epoch, askedAt, offsetMs, since })
    } catch (error) {
      if (!isOverwritten(error)) throw storeError(error)
      const message = `there is a worker ${worker} already`
      throw new TroupeError('STORE_BUSY', message, { retryable: true, details: { worker } })
    }
  }

  /** False once it is lost or given back, and as soon as it may have run out. */
  get isHeld(): boolean {
    return this.#state === 'held' && performance.now() - this.#renewedAt < this.#ttlMs
  }

  /** Called once when the lease is lost; at once when it is lost already. */
  set onLost(callback: () => void) {
    this.#onLost = callback
    if (this.#state === 'lost') callback()
  }

  /**
   * Tells others something else from now on. Resolves when that, or what was announced after it, is stored, or the lease is
   * not held any more. Never rejects.
   */
  announce(told: Announcement): Promise<void> {
    if (this.#state !== 'held') return Promise.resolve()
    this.#told = told
    void this.#renew()
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  #plan(delayMs: number): void {
    this.#timer = setTimeout(() => void this.#renew(), delayMs).unref()
  }

  #expire(): void {
    clearTimeout(this.#expiry)
    const leftMs = this.#renewedAt + this.#ttlMs - performance.now()
    this.#expiry = setTimeout(() => this.#lose(), leftMs).unref()
  }

  /** One renewal at a time: each names the revision of the one before. */
  #renew(): Promise<void> {
    clearTimeout(this.#timer)
    this.#renewing ??= this.#write().then((stored) => {
      this.#renewing = null
      this.#follow(stored)
    })
    return this.#renewing
  }

  /** Whether it was stored. */
  async #write(): Promise<boolean> {
    const askedAt = performance.now()
    const told = this.#told
    try {
      const text = encodeAnnouncement(told, this)
      // An answer that takes as long may be lost with its link: then there is time to ask again.
      this.#revision = await this.#bucket.update(this.#worker, text, this.#revision, this.#ttlMs / 3)
    } catch (error) {
      if (isOverwritten(error)) await this.#recognise()
      return false
    }
    this.#stored = told
    this.#renewedAt = askedAt
    if (this.#state === 'held') this.#expire()
    return true
  }

  /** Something else is stored than was known: a renewal of this lease whose answer did not come, or a loss. */
  async #recognise(): Promise<void> {
    try {
      const entry = await this.#bucket.get(this.#worker)
      if (memberOf(entry)?.epoch === this.epoch) this.#revision = entry!.revision
      else this.#lose()
    } catch {
      // Asked again with the next renewal.
    }
  }

  #follow(stored: boolean): void {
    if (this.#state !== 'held') return
    if (stored && this.#stored === this.#told) this.#settle()
    if (stored && this.#stored !== this.#told) void this.#renew()
    else this.#plan(this.#ttlMs / (stored ? 3 : 20))
  }

  #settle(): void {
    for (const resolve of this.#waiting.splice(0)) resolve()
  }

  #lose(): void {
    if (this.#state !== 'held') return
    this.#end('lost')
    this.#onLost()
  }

  #end(state: 'lost' | 'released'): void {
    this.#state = state
    clearTimeout(this.#timer)
    clearTimeout(this.#expiry)
    this.#settle()
  }

  /** Gives it back: the name is free at once. */
  async release(): Promise<void> {
    if (this.#state !== 'held') return
    this.#end('released')
    await this.#renewing
    await this.#bucket.delete(this.#worker, { previousSeq: this.#revision }).catch(() => undefined)
  }
}

/** Tries, 50 ms apart, while somebody else makes the same bucket. */
const makeTries = 40

/** A server (2.9.10) knows of a stream that is being made before it is one, and names it before it listens. */
async function onceMade<T>(work: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries += 1) {
    try {
      return await work()
    } catch (error) {
      if (tries === makeTries || !isBeingMade(error as Error)) throw error
      await wait(50)
    }
  }
}

function isBeingMade({ message, cause }: Error): boolean {
  if (cause instanceof errors.RequestError) return cause.isNoResponders()
  return /subjects overlap with an existing stream/.test(message)
}
