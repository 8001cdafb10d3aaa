/**
 * Ownership over NATS: a lease under the worker's name, the list of those that have one, and requests between them.
 *
 * Owns: which shards are this worker's by lease, list and announcements; taking a lost lease again.
 * Does not own: leases (`nats-lease.ts`), the list (`nats-membership.ts`), the rule (`partitions.ts`), requests on the wire
 * (`worker-requests.ts`), letters (`mail`), what an owner does (`runtime/worker.ts`).
 *
 * - NO1 Workers that see the same list agree: a shard has one owner among those who announce its crew, and none without.
 * - NO2 Without a lease nothing is owned, from the moment it may have run out; it is taken again until `close`, with another
 *   epoch.
 * - NO3 A worker that withdrew lives and owns nothing, also under a later lease.
 * - NO4 Whoever has another lease, does not answer or cannot be reached is gone for whoever asks, in time.
 */
import { setTimeout as pause } from 'node:timers/promises'
import type { Draft } from '../runtime/envelope.js'
import type { Ownership } from '../runtime/ownership.js'
import type { Clock } from '../runtime/ports.js'
import { clusterClock } from './cluster-clock.js'
import type { NatsLink } from './nats-connection.js'
import { NatsLease } from './nats-lease.js'
import { NatsMembership, ownerName } from './nats-membership.js'
import { partitionsOf } from './partitions.js'
import { partitionOf, type Subjects } from './subjects.js'
import { WorkerRequests, type WorkerWork } from './worker-requests.js'

/** Names of crews whose code a worker has, with the versions of their code. */
type Crews = Readonly<Record<string, string>>

/** Options of `NatsOwnership.open`. */
export interface NatsOwnershipOptions {
  readonly link: NatsLink
  readonly subjects: Subjects
  /** Name of the worker: one token, one process at a time. */
  readonly worker: string
  /** How long leases of this namespace last. @default 5_000 */
  readonly leaseMs?: number
  /** Copies of the list in a cluster. @default 1 */
  readonly replicas?: number
  /** Crews whose code is here, with its versions. */
  readonly crews: Crews
  /** Takes letters to shards; resolves when they will get there. */
  readonly mail: { send(shard: string, draft: Draft): Promise<void>; taken(shard: string): Promise<void> }
  /** How long the answer of another worker is waited for. @default 5_000 */
  readonly requestMs?: number
}

const defaultLeaseMs = 5_000
const noPartitions: ReadonlySet<number> = new Set()

/** Who owns what, seen by one worker. */
export class NatsOwnership implements Ownership {
  readonly #options: NatsOwnershipOptions
  readonly #members: NatsMembership
  readonly #requests: WorkerRequests
  readonly #closing = new AbortController()
  #lease: NatsLease
  #taking: Promise<void> | null = null
  #crews: Crews
  /** The own partitions of each own crew, as the list is now. */
  readonly #partitions = new Map<string, ReadonlySet<number>>()
  #work: WorkerWork | null = null
  /** The server's time, as it was when the first lease was taken, and held since. */
  readonly clock: Clock
  onChange: () => void = () => undefined

  private constructor(options: NatsOwnershipOptions, lease: NatsLease, members: NatsMembership) {
    const { link, subjects, requestMs = 5_000 } = options
    this.#options = options
    this.#members = members
    this.#crews = options.crews
    this.#requests = new WorkerRequests(link, subjects, requestMs)
    this.#lease = lease
    this.clock = clusterClock(lease.offsetMs)
    members.onChange = () => this.#change()
    lease.onLost = () => this.#lose()
  }

  /**
   * Takes a lease, and knows who else has one when it resolves.
   * @throws TroupeError `STORE_BUSY` while another process has the name, `ID_INVALID` for a name that is no token, and what
   * the server refuses.
   */
  static async open(options: NatsOwnershipOptions): Promise<NatsOwnership> {
    const { link, subjects, worker, leaseMs = defaultLeaseMs } = options
    subjects.worker(worker)
    const lease = await take(options, options.crews)
    try {
      return new NatsOwnership(options, lease, await NatsMembership.open(link, subjects, leaseMs))
    } catch (error) {
      await lease.release()
      throw error
    }
  }

  /** Answers other workers from now on. */
  serve(work: WorkerWork): void {
    this.#work = work
    this.#requests.serve(this.#options.worker, () => (this.#lease.isHeld ? this.epoch : null), work)
  }

  /** Gives the lease back, and does not take it again. */
  async close(): Promise<void> {
    this.#closing.abort()
    this.#requests.close()
    this.#members.close()
    await this.#taking
    await this.#lease.release()
  }

  // The lease.

  /** Number of the lease that is held, or was held last. */
  get epoch(): number {
    return this.#lease.epoch
  }

  get owner(): string {
    return ownerName(this.#options.worker, this.epoch)
  }

  #lose(): void {
    this.#taking = this.#takeAgain()
    this.#change()
  }

  async #takeAgain(): Promise<void> {
    const { signal } = this.#closing
    const pauseMs = (this.#options.leaseMs ?? defaultLeaseMs) / 3
    while (!signal.aborted) {
      const crews = this.#crews
      const lease = await take(this.#options, crews).catch(() => null)
      if (lease !== null) return this.#hold(lease, crews)
      await pause(pauseMs, null, { signal, ref: false }).catch(() => undefined)
    }
  }

  #hold(lease: NatsLease, crews: Crews): void {
    this.#lease = lease
    if (this.#closing.signal.aborted) return
    if (crews !== this.#crews) void lease.announce({ crews: this.#crews })
    this.#change()
    lease.onLost = () => this.#lose()
  }

  #change(): void {
    this.#partitions.clear()
    if (!this.#closing.signal.aborted) this.onChange()
  }

  // Who owns what.

  owns(shard: string, crew: string): boolean {
    return this.#lease.isHeld && this.#partitionsOf(crew).has(partitionOf(shard))
  }

  #partitionsOf(crew: string): ReadonlySet<number> {
    if (!offers(this.#crews, crew)) return noPartitions
    let partitions = this.#partitions.get(crew)
    if (partitions === undefined) {
      const { worker: own } = this.#options
      const others = [...this.#members.members.values()].filter(({ worker }) => worker !== own)
      const names = others.filter(({ crews }) => offers(crews, crew)).map(({ worker }) => worker)
      partitions = partitionsOf(own, [...names, own])
      this.#partitions.set(crew, partitions)
    }
    return partitions
  }

  /** Partitions in which shards of this worker may be. */
  partitions(): ReadonlySet<number> {
    const crews = this.#lease.isHeld ? Object.keys(this.#crews) : []
    return new Set(crews.flatMap((crew) => [...this.#partitionsOf(crew)]))
  }

  lives(owner: string): boolean {
    const { worker, epoch } = partsOf(owner)
    if (worker === this.#options.worker) return epoch === this.epoch && this.#lease.isHeld
    return this.#members.members.get(worker)?.epoch === epoch
  }

  lastSeen(owner: string): number | null {
    const seenAt = this.#members.lastSeen(owner)
    return seenAt === null ? null : Math.round(this.clock.now() - this.clock.monotonic() + seenAt)
  }

  /**
   * Has other crews from now on: here at once, for others when it resolves, or with the next lease when this one is lost.
   * Never rejects.
   */
  async announce(crews: Crews): Promise<void> {
    this.#crews = crews
    this.#partitions.clear()
    await this.#lease.announce({ crews })
  }

  withdraw(): Promise<void> {
    return this.announce({})
  }

  // Other workers.

  async release(shard: string, owner: string): Promise<void> {
    const { worker, epoch } = partsOf(owner)
    if (worker === this.#options.worker) return
    await this.#requests.ask(worker, epoch, { method: 'release', shard })
  }

  async working(executor: string, shard: string, effects: readonly string[]): Promise<readonly string[] | null> {
    const { worker, epoch } = partsOf(executor)
    if (executor === this.owner) return this.#work?.working(shard, effects) ?? []
    if (worker === this.#options.worker) return []
    return this.#requests.ask(worker, epoch, { method: 'working', shard, effects })
  }

  cancel(executor: string, shard: string, effects: readonly string[]): void {
    const { worker, epoch } = partsOf(executor)
    if (executor === this.owner) this.#work?.cancel(shard, effects)
    else if (worker !== this.#options.worker) {
      void this.#requests.ask(worker, epoch, { method: 'cancel', shard, effects })
    }
  }

  send(shard: string, draft: Draft): Promise<void> {
    return this.#options.mail.send(shard, draft)
  }

  mailTaken(shard: string): Promise<void> {
    return this.#options.mail.taken(shard)
  }
}

function take({ link, subjects, worker, leaseMs, replicas }: NatsOwnershipOptions, crews: Crews): Promise<NatsLease> {
  return NatsLease.take(link, subjects, {
    worker,
    ttlMs: leaseMs ?? defaultLeaseMs,
    replicas: replicas ?? 1,
    announcement: { crews },
  })
}

/** Whether a crew of this name is among them; any, for a shard that has none yet. */
function offers(crews: Crews, crew: string): boolean {
  return crew === '' ? Object.keys(crews).length > 0 : Object.hasOwn(crews, crew)
}

/** Worker and lease of an owner. A name that is none gives an epoch that nobody has. */
function partsOf(owner: string): { readonly worker: string; readonly epoch: number } {
  const dot = owner.lastIndexOf('.')
  const epoch = Number(owner.slice(dot + 1))
  return dot > 0 && Number.isSafeInteger(epoch) ? { worker: owner.slice(0, dot), epoch } : { worker: owner, epoch: 0 }
}
