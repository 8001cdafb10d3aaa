/**
 * Ownership over NATS: a lease under the worker's name, the list of those that have one, and requests between them.
 *
 * Owns: which shards are this worker's by lease, list, announcements and pins.
 * Does not own: leases (`standing-lease.ts`), the list (`nats-membership.ts`), the list of pins (`nats-pins.ts`), the rule
 * (`partitions.ts`), requests on the wire (`worker-requests.ts`), letters (`mail`), what an owner does
 * (`runtime/worker.ts`).
 *
 * - NO1 Workers that see the same list agree: a shard has one owner among those who announce its crew, and none without.
 * - NO2 Without a lease nothing is owned, from the moment it may have run out; it is taken again until `close`, with another
 *   epoch.
 * - NO3 A worker that withdrew lives and owns nothing, also under a later lease.
 * - NO4 Whoever has another lease, does not answer or cannot be reached is gone for whoever asks, in time; who goes while it is
 *   asked is not waited for any longer.
 * - NO6 A process that lost its lease and took another is not gone: what it works on is left to it.
 * - NO5 A shard that was given to a worker is that worker's while it lives and offers the crew, and else the rule's.
 * - NO7 Who announces the version that a shard is of goes before others; without one any of them may have it.
 */
import { setTimeout as pause } from 'node:timers/promises'
import { crewVersion, type CrewVersion, nameIn } from '../runtime/crew-version.js'
import type { Draft } from '../runtime/envelope.js'
import { isTroupeError, TroupeError } from '../runtime/errors.js'
import type { Ownership } from '../runtime/ownership.js'
import type { Clock } from '../runtime/ports.js'
import type { DrainProgress, WorkerInfo } from '../runtime/survey.js'
import { clusterClock } from './cluster-clock.js'
import type { NatsLink } from './nats-connection.js'
import { type Member, NatsMembership, partsOf, processOf } from './nats-membership.js'
import { NatsPins } from './nats-pins.js'
import { type Crews, offers, Placement } from './partitions.js'
import { StandingLease } from './standing-lease.js'
import { partitionOf, type Subjects } from './subjects.js'
import { type Question, WorkerRequests, type WorkerWork } from './worker-requests.js'

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
/** How long a worker may take until it has a shard that was given to it. */
const handOverMs = 60_000
/** When one that did not answer is asked again. */
const askAgainMs = 100
/** How long the next lease is waited for: whoever asked has asked again by then. */
const leasedMs = 1_500
/** When it is looked again what a worker that drains still has. */
const drainLookMs = 250

/** Who owns what, seen by one worker. */
export class NatsOwnership implements Ownership {
  readonly #options: NatsOwnershipOptions
  readonly #members: NatsMembership
  readonly #requests: WorkerRequests
  readonly #closing = new AbortController()
  readonly #lease: StandingLease
  #crews: Crews
  readonly #pins: NatsPins
  /** Who owns what by the rule, as the list is now; null until somebody asks. */
  #placement: Placement | null = null
  #work: WorkerWork | null = null
  /** Leases whose owners are being asked something, and what tells whoever asks that they are gone. */
  readonly #asked = new Set<{ readonly worker: string; readonly epoch: number; readonly gone: () => void }>()
  /** The server's time, as it was when the first lease was taken, and held since. */
  readonly clock: Clock
  onChange: (shard?: string, gains?: boolean) => void = () => undefined

  private constructor(options: NatsOwnershipOptions, lease: StandingLease, members: NatsMembership, pins: NatsPins) {
    const { link, subjects, requestMs = 5_000 } = options
    this.#options = options
    this.#members = members
    this.#pins = pins
    this.#crews = options.crews
    this.#requests = new WorkerRequests(link, subjects, requestMs)
    this.#lease = lease
    this.clock = clusterClock(lease.offsetMs)
    // Whoever comes, or offers more, takes from others.
    members.onChange = (joined) => this.#change(undefined, joined?.includes(options.worker) !== false)
    pins.onChange = (shard) => this.#change(shard)
    lease.onChange = () => this.#change()
  }

  /**
   * Takes a lease, and knows who else has one when it resolves.
   * @throws TroupeError `STORE_BUSY` while another process has the name, `ID_INVALID` for a name that is no token, and what
   * the server refuses.
   */
  static async open(options: NatsOwnershipOptions): Promise<NatsOwnership> {
    const { link, subjects, worker, leaseMs = defaultLeaseMs, replicas = 1 } = options
    subjects.worker(worker)
    const announcement = { crews: options.crews }
    const lease = await StandingLease.take(link, subjects, { worker, ttlMs: leaseMs, replicas, announcement })
    let pins: NatsPins | null = null
    try {
      pins = await NatsPins.open({ link, subjects, pollMs: leaseMs / 3, replicas })
      return new NatsOwnership(options, lease, await NatsMembership.open(link, subjects, leaseMs), pins)
    } catch (error) {
      pins?.close()
      await lease.release()
      throw error
    }
  }

  /** Answers other workers from now on. */
  serve(work: WorkerWork): void {
    this.#work = work
    this.#requests.serve(this.#options.worker, () => (this.#lease.isHeld ? this.epoch : null), {
      leave: (shard) => work.leave(shard),
      take: async (shard) => {
        // Whoever gave it to this worker knows it before the watch does.
        await this.#pins.refresh(shard)
        await work.take(shard)
      },
      ...(work.drain === undefined ? {} : { drain: (graceMs: number) => work.drain!(graceMs) }),
      working: (shard, effects) => work.working(shard, effects),
      cancel: (shard, effects) => work.cancel(shard, effects),
    })
  }

  /** Gives the lease back, and does not take it again. */
  async close(): Promise<void> {
    this.#closing.abort()
    this.#requests.close()
    this.#members.close()
    this.#pins.close()
    await this.#lease.release()
  }

  // The lease.

  /** Number of the lease that is held, or was held last. */
  get epoch(): number {
    return this.#lease.epoch
  }

  get owner(): string {
    return this.#lease.owner
  }

  /** Resolves when this worker has a lease, and in any case after a while: what may be its own then is not known before. */
  leased(): Promise<void> {
    return this.#lease.held(leasedMs)
  }

  #change(shard?: string, gains = true): void {
    if (shard === undefined) {
      this.#placement = null
      for (const { worker, epoch, gone } of [...this.#asked]) if (!this.#hasLease(worker, epoch)) gone()
    }
    if (!this.#closing.signal.aborted) this.onChange(shard, gains)
  }

  // Who owns what.

  owns(shard: string, crew: CrewVersion): boolean {
    return this.#lease.isHeld && this.ownerOf(shard, crew) === this.#options.worker
  }

  ownerOf(shard: string, crew: CrewVersion): string | null {
    const pinned = this.#pins.workerOf(shard)
    if (pinned !== null && offers(this.#crewsOf(pinned), crew)) return pinned
    return this.#ownersOf(crew)[partitionOf(shard)] ?? null
  }

  #ownersOf(crew: CrewVersion): readonly (string | null)[] {
    if (this.#placement === null) {
      const names = new Set([...this.#members.members.keys(), this.#options.worker])
      this.#placement = new Placement([...names].map((name) => [name, this.#crewsOf(name)]))
    }
    return this.#placement.ownersOf(crew)
  }

  /** Partitions that fall to a worker by the rule. In the versions that it has there are all that it has in any. */
  #fallTo(worker: string, crews: Crews): Set<number> {
    const fallen = new Set<number>()
    for (const [name, version] of Object.entries(crews))
      for (const [partition, owner] of this.#ownersOf(crewVersion(name, version)).entries())
        if (owner === worker) fallen.add(partition)
    return fallen
  }

  /** The crews of a worker; none for one that is gone. What this one has it knows before others tell it. */
  #crewsOf(worker: string): Crews {
    return worker === this.#options.worker ? this.#crews : (this.#members.members.get(worker)?.crews ?? {})
  }

  /** Those that live, by name, and how many partitions fall to each. */
  workers(): WorkerInfo[] {
    const members = [...this.#members.members.values()].sort((one, other) => (one.worker < other.worker ? -1 : 1))
    return members.map(({ worker, epoch, since, crews, tools = [] }) => {
      return { worker, epoch, since, crews, tools, partitions: this.#fallTo(worker, crews).size }
    })
  }

  /** Partitions in which shards of this worker may be. */
  partitions(): ReadonlySet<number> {
    const { worker: own } = this.#options
    if (!this.#lease.isHeld) return new Set()
    const found = this.#fallTo(own, this.#crews)
    for (const [shard, worker] of this.#pins.all()) if (worker === own) found.add(partitionOf(shard))
    return found
  }

  lives(owner: string): boolean {
    const { worker, epoch } = partsOf(owner)
    return this.#hasLease(worker, epoch)
  }

  #hasLease(worker: string, epoch: number): boolean {
    if (worker === this.#options.worker) return epoch === this.epoch && this.#lease.isHeld
    return this.#members.members.get(worker)?.epoch === epoch
  }

  isRunning(owner: string): boolean {
    return this.#lease.wasOwner(owner) || this.#memberOf(owner) !== undefined
  }

  crashOf(owner: string): string | null {
    const process = processOf(owner)
    return this.#lease.wasOwner(owner) || this.#members.hasEnded(process) ? null : process
  }

  /** The process of an owner, as long as it lives: under the lease that it has now. */
  #memberOf(owner: string): Member | undefined {
    const { worker, epoch, process } = partsOf(owner)
    const member = this.#members.members.get(worker)
    return member?.process === process || member?.epoch === epoch ? member : undefined
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
    this.#placement = null
    await this.#lease.announce({ crews })
  }

  withdraw(): Promise<void> {
    return this.announce({})
  }

  async assign(shard: string, crew: CrewVersion, worker: string | null): Promise<string> {
    if (worker !== null) {
      const lives = worker === this.#options.worker || this.#members.members.has(worker)
      if (!lives) throw noWorker(worker)
      if (!offers(this.#crewsOf(worker), crew))
        throw new TroupeError('WORKER_UNFIT', `${worker} does not have the code of ${nameIn(crew)}`, {
          details: { worker, crew: nameIn(crew) },
        })
    }
    await this.#pins.set(shard, worker)
    const owner = this.ownerOf(shard, crew)
    if (owner === null) throw new TroupeError('WORKER_UNKNOWN', `no worker has the code of ${nameIn(crew)}`)
    return owner
  }

  async handOver(shard: string, worker: string): Promise<void> {
    const until = performance.now() + handOverMs
    while (performance.now() < until) {
      const epoch = this.#members.members.get(worker)?.epoch
      if (epoch === undefined) break
      try {
        if ((await this.#requests.tell(worker, epoch, { method: 'take', shard })) !== null) return
      } catch (error) {
        if (!isTroupeError(error) || !error.retryable) throw error
      }
      await pause(askAgainMs)
    }
    throw new TroupeError('WORKER_UNKNOWN', `${worker} does not answer`, { retryable: true, details: { worker } })
  }

  /**
   * Has a worker hand everything over and go; tells what it still has, until it is gone. Another one is asked again for as
   * long as it lives; of this one `gone` tells.
   * @throws TroupeError `WORKER_UNKNOWN`, and why it refuses.
   */
  async *drain(worker: string, graceMs: number, gone: Promise<void>): AsyncGenerator<DrainProgress, void, void> {
    const isOwn = worker === this.#options.worker
    const epoch = isOwn ? this.epoch : this.#members.members.get(worker)?.epoch
    if (epoch === undefined) throw noWorker(worker)
    let isGone = false
    if (isOwn) void gone.then(() => (isGone = true))
    const ended = isOwn ? gone : new Promise<void>(() => undefined)
    while (isOwn ? !isGone : this.#hasLease(worker, epoch)) {
      const left = isOwn ? this.#work!.drain!(graceMs) : await this.#askToDrain(worker, epoch, graceMs)
      if (left !== null) yield { worker, ...left }
      await Promise.race([ended, pause(drainLookMs)])
    }
  }

  async #askToDrain(worker: string, epoch: number, graceMs: number): Promise<Omit<DrainProgress, 'worker'> | null> {
    try {
      return await this.#requests.drain(worker, epoch, graceMs)
    } catch (error) {
      if (isTroupeError(error) && error.retryable) return null
      throw error
    }
  }

  // Other workers.

  /** As `WorkerRequests.ask`: a process that dies while it is asked would have its answer waited for until the end. */
  async #ask(worker: string, epoch: number, question: Question): Promise<readonly string[] | null> {
    let gone: () => void = () => undefined
    const going = new Promise<null>((resolve) => (gone = () => resolve(null)))
    const asked = { worker, epoch, gone }
    this.#asked.add(asked)
    try {
      return await Promise.race([this.#requests.ask(worker, epoch, question), going])
    } finally {
      this.#asked.delete(asked)
    }
  }

  async release(shard: string, owner: string): Promise<void> {
    const { worker, epoch } = partsOf(owner)
    if (worker === this.#options.worker) return
    await this.#ask(worker, epoch, { method: 'release', shard })
  }

  async working(executor: string, shard: string, effects: readonly string[]): Promise<readonly string[] | null> {
    if (this.#lease.wasOwner(executor)) return this.#work?.working(shard, effects) ?? []
    const { worker, epoch } = this.#memberOf(executor) ?? partsOf(executor)
    // An earlier process of this name is gone.
    if (worker === this.#options.worker) return []
    return this.#ask(worker, epoch, { method: 'working', shard, effects })
  }

  cancel(executor: string, shard: string, effects: readonly string[]): void {
    if (this.#lease.wasOwner(executor)) return this.#work?.cancel(shard, effects)
    const { worker, epoch } = this.#memberOf(executor) ?? partsOf(executor)
    if (worker !== this.#options.worker) void this.#requests.ask(worker, epoch, { method: 'cancel', shard, effects })
  }

  send(shard: string, draft: Draft): Promise<void> {
    return this.#options.mail.send(shard, draft)
  }

  mailTaken(shard: string): Promise<void> {
    return this.#options.mail.taken(shard)
  }
}

function noWorker(worker: string): TroupeError {
  return new TroupeError('WORKER_UNKNOWN', `there is no worker ${worker}`, { details: { worker } })
}
