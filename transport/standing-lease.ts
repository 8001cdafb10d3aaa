/**
 * The standing lease: a worker's lease that is taken again whenever it was lost.
 *
 * Owns: taking it again, announcing under the next lease what was to be announced under the last.
 * Does not own: one lease (`nats-lease.ts`), what follows from losing it.
 *
 * - SL1 A lease that is lost is taken again until it is released, with another epoch; what is announced is what was asked
 *   for last, and whose process it is.
 * - SL2 Whoever waits for it goes on when it is held, when it is given back, or when the wait is over.
 */
import { setTimeout as pause } from 'node:timers/promises'
import type { NatsLink } from './nats-connection.js'
import { type LeaseOptions, NatsLease } from './nats-lease.js'
import { type Announcement, ownerName } from './nats-membership.js'
import type { Subjects } from './subjects.js'

const defaultTtlMs = 5_000

type Take = (told: Announcement, process?: number) => Promise<NatsLease>

/** Takes leases of one name, from `take` to `release`. */
export class StandingLease {
  readonly #take: Take
  readonly #options: LeaseOptions
  readonly #closing = new AbortController()
  #lease: NatsLease
  readonly #owners = new Set<string>()
  #told: Announcement
  #taking: Promise<void> | null = null
  readonly #waiting = new Set<() => void>()
  /** Called when the lease was lost, and when there is another one. */
  onChange: () => void = () => undefined

  private constructor(options: LeaseOptions, lease: NatsLease, take: Take) {
    this.#options = options
    this.#take = take
    this.#told = options.announcement ?? { crews: {} }
    this.#lease = lease
    this.#owners.add(this.owner)
    lease.onLost = () => this.#lose()
  }

  /** Takes the first one. @throws TroupeError `STORE_BUSY` while another process has the name, and what the server refuses. */
  static async take(link: NatsLink, subjects: Subjects, options: LeaseOptions): Promise<StandingLease> {
    const take: Take = (announcement, process) =>
      NatsLease.take(link, subjects, { ...options, announcement, ...(process === undefined ? {} : { process }) })
    return new StandingLease(options, await take(options.announcement ?? { crews: {} }), take)
  }

  /** Number of the lease that is held, or was held last. */
  get epoch(): number {
    return this.#lease.epoch
  }

  /** `<worker>.<epoch>`, behind the first lease `<worker>.<epoch>-<process>`. */
  get owner(): string {
    return ownerName(this.#options.worker, this.epoch, this.#lease.process)
  }

  /** Whether an owner was this process, under this lease or an earlier one. */
  wasOwner(owner: string): boolean {
    return this.#owners.has(owner)
  }

  /** False while there is none, and as soon as it may have run out. */
  get isHeld(): boolean {
    return this.#lease.isHeld
  }

  /** Resolves when it is held, and in any case after a while. */
  held(withinMs: number): Promise<void> {
    if (this.isHeld) return Promise.resolve()
    return new Promise((resolve) => {
      const end = (): void => {
        clearTimeout(timer)
        this.#waiting.delete(end)
        resolve()
      }
      const timer = setTimeout(end, withinMs)
      this.#waiting.add(end)
    })
  }

  /** Epoch milliseconds, by the server's clock, at which this process's monotonic clock stood at zero. */
  get offsetMs(): number {
    return this.#lease.offsetMs
  }

  /** Tells others something else from now on, at the latest with the next lease. Never rejects. */
  announce(told: Announcement): Promise<void> {
    this.#told = told
    return this.#lease.announce(told)
  }

  /** Gives it back, and does not take it again. */
  async release(): Promise<void> {
    this.#closing.abort()
    for (const end of this.#waiting) end()
    await this.#taking
    await this.#lease.release()
  }

  #lose(): void {
    this.#taking = this.#takeAgain()
    this.#change()
  }

  async #takeAgain(): Promise<void> {
    const { signal } = this.#closing
    const pauseMs = (this.#options.ttlMs ?? defaultTtlMs) / 3
    while (!signal.aborted) {
      const told = this.#told
      const lease = await this.#take(told, this.#lease.process).catch(() => null)
      if (lease !== null) return this.#hold(lease, told)
      await pause(pauseMs, null, { signal, ref: false }).catch(() => undefined)
    }
  }

  #hold(lease: NatsLease, told: Announcement): void {
    this.#lease = lease
    this.#owners.add(this.owner)
    if (this.#closing.signal.aborted) return
    if (told !== this.#told) void lease.announce(this.#told)
    this.#change()
    for (const end of this.#waiting) end()
    lease.onLost = () => this.#lose()
  }

  #change(): void {
    if (!this.#closing.signal.aborted) this.onChange()
  }
}
