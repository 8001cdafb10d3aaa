/**
 * What lies between the workers of a simulation: leases, the list of those that live, requests from one to another, and
 * mail. All of it is late, lost and repeated as the seed has it; a worker may be cut off, and may stand still.
 */
import type { Draft } from '../../runtime/envelope.js'
import { isTroupeError } from '../../runtime/errors.js'
import { isForeign, partsOf } from '../../runtime/mail.js'
import { returned } from '../../runtime/outbox.js'
import type { Ownership } from '../../runtime/ownership.js'
import { ownerOf } from '../../transport/partitions.js'
import { partitionOf } from '../../transport/subjects.js'
import type { VirtualClock } from './virtual-clock.js'
import { never, type SimulatedProcess, type World } from './world.js'

/** How long a lease lasts. */
export const leaseMs = 3_000
/** How long an answer is waited for. */
const patienceMs = 4_000
const mailAgainMs = 700

interface Lease {
  readonly worker: string
  readonly owner: string
  expiresAt: number
  /** Wants shards. */
  offers: boolean
}

/** A letter that is safe, until some owner of its shard has taken it. */
interface Letter {
  readonly shard: string
  readonly draft: Draft
  /** Counts them. */
  readonly number: number
}

/** The servers between the workers of one seed. */
export class SimulatedCluster {
  readonly #world: World
  readonly #members = new Map<string, SimulatedOwnership>()
  readonly leases = new Map<string, Lease>()
  /** Shards that were given to a worker. */
  readonly pins = new Map<string, string>()
  #epochs = 0
  /** Leases that ran out: their holders count as gone. */
  lost = 0
  /** By owner, the first owner of its process. */
  readonly processes = new Map<string, string>()
  /** Processes that gave their lease back. */
  readonly ended = new Set<string>()
  /** Processes that crashed or whose lease ran out, in order. */
  readonly gone: string[] = []
  /** Letters that nobody has taken yet. */
  readonly #mail = new Set<Letter>()
  #letters = 0

  constructor(world: World) {
    this.#world = world
  }

  /** A worker comes; its name's earlier lease must have run out. */
  join(process: SimulatedProcess, worker: string, clock: VirtualClock): SimulatedOwnership {
    const owner = this.take(worker)
    const ownership = new SimulatedOwnership(this, this.#world, process, owner, clock)
    this.#members.set(worker, ownership)
    return ownership
  }

  /** A lease for a name that nobody has. @param process the first owner of the process that takes it; undefined: this one */
  take(worker: string, offers = true, process?: string): string {
    const owner = `${worker}.${(this.#epochs += 1)}`
    this.processes.set(owner, process ?? owner)
    this.leases.set(worker, { worker, owner, expiresAt: this.#world.timeline.now + leaseMs, offers })
    this.#world.trace(() => `${owner} has a lease`)
    this.tell()
    return owner
  }

  /** Leases that ran out go. */
  expire(): void {
    const { now } = this.#world.timeline
    for (const [worker, lease] of this.leases) {
      if (lease.expiresAt > now) continue
      this.leases.delete(worker)
      this.lost += 1
      this.lose(lease.owner)
      this.#world.trace(() => `the lease of ${lease.owner} has run out`)
    }
  }

  processOf(owner: string): string {
    return this.processes.get(owner) ?? owner
  }

  /** The process of an owner died, or counts as gone. */
  lose(owner: string): void {
    this.gone.push(this.processOf(owner))
  }

  /** Everybody who can be reached hears of a change, some later than others. */
  tell(): void {
    const { timeline, random } = this.#world
    for (const member of this.#members.values()) timeline.after(random.int(0, 30), member.process, () => member.look())
  }

  /** Letters for a shard that nobody has taken yet. */
  lettersOf(shard: string): readonly Letter[] {
    return [...this.#mail].filter((letter) => letter.shard === shard)
  }

  /** Whether letters from one crew to another are under way. */
  get hasLetters(): boolean {
    return [...this.#mail].some(({ draft }) => isForeign(draft.from))
  }

  isTaken(letter: Letter): boolean {
    return this.#taken.has(letter)
  }

  member(owner: string): SimulatedOwnership | undefined {
    return this.members.find((member) => member.owner === owner)
  }

  /** Whose process an owner is, under whatever lease. */
  processMember(owner: string): SimulatedOwnership | undefined {
    return this.members.find((member) => this.processOf(member.owner) === this.processOf(owner))
  }

  get members(): readonly SimulatedOwnership[] {
    return [...this.#members.values()]
  }

  /** Keeps a letter and brings it to whoever owns its shard, until one has taken it: soon, or behind later ones. */
  post(shard: string, draft: Draft): void {
    const { random, notes, calm } = this.#world
    const letter = { shard, draft, number: (this.#letters += 1) }
    this.#mail.add(letter)
    this.#world.trace(() => `a letter for ${shard}: ${draft.body.type} ${draft.cause}`)
    const late = !calm && random.chance(0.15)
    if (late) notes.fault('mail late')
    this.#bring(letter, late ? random.int(1_000, 20_000) : random.int(1, 50))
  }

  #bring(letter: Letter, delayMs: number): void {
    const { timeline, random } = this.#world
    timeline.after(delayMs, null, () => {
      const all = this.members.filter(({ process, cut }) => process.alive && !cut && process.worker !== null)
      const owning = all.filter((member) => member.owns(letter.shard))
      const to = owning.length === 0 ? undefined : random.pick(owning)
      if (to === undefined) return this.#bring(letter, mailAgainMs)
      timeline.after(random.int(0, 5), to.process, () => void this.#give(letter, to))
      // A worker that stands still or dies has taken nothing: the letter comes to another.
      timeline.after(patienceMs, null, () => {
        if (!this.#taken.has(letter)) this.#bring(letter, 1)
      })
    })
  }

  readonly #taken = new WeakSet<Letter>()

  async #give(letter: Letter, to: SimulatedOwnership): Promise<void> {
    const { random, notes, timeline, calm } = this.#world
    try {
      // Behind its coming, while it is written.
      if (!calm && to.process.worker!.active.has(letter.shard) && random.chance(0.15)) {
        this.#world.forcedSlowMs = 5
        timeline.after(random.int(1, 3), to.process, () => this.#world.crash(to.process, 'crash: mail to append'))
      }
      const [first] = this.lettersOf(letter.shard)
      await to.process.worker!.receive(letter.shard, letter.draft, first === letter)
    } catch (error) {
      // As the mail over NATS does with what nobody will ever take.
      if (!isTroupeError(error) || error.code !== 'CREW_UNKNOWN' || this.#taken.has(letter)) return
      const [sender, actor] = partsOf(letter.draft.from)
      this.#world.replica(letter.shard).refused(letter.draft)
      this.post(sender, returned(letter.shard, letter.draft, actor, error))
    }
    if (!to.process.alive || this.#taken.has(letter)) return
    // Its acknowledgement may be lost: then it comes once more.
    if (random.chance(0.1)) return notes.fault('mail twice')
    const isOvertaking = [...this.#mail].some(({ shard, number }) => shard === letter.shard && number < letter.number)
    if (isOvertaking) notes.reached('mail out of order')
    this.#taken.add(letter)
    this.#mail.delete(letter)
  }
}

/** Ownership as one worker sees it. */
export class SimulatedOwnership implements Ownership {
  readonly process: SimulatedProcess
  readonly #cluster: SimulatedCluster
  readonly #world: World
  readonly #clock: VirtualClock
  readonly #name: string
  #owner: string
  readonly #seen = new Map<string, number>()
  #view = new Map<string, Lease>()
  #pins = new Map<string, string>()
  #renewedAt: number
  #lost = false
  #left = false
  #withdrawn = false
  /** Cut off from everybody, journal included: hears nothing. */
  cut = false
  /** What it says is heard. */
  reaches = true
  onChange: (shard?: string, gains?: boolean) => void = () => undefined

  constructor(cluster: SimulatedCluster, world: World, process: SimulatedProcess, owner: string, clock: VirtualClock) {
    this.#cluster = cluster
    this.#world = world
    this.process = process
    this.#owner = owner
    this.#clock = clock
    this.#name = owner.slice(0, owner.lastIndexOf('.'))
    this.#renewedAt = world.timeline.now
    this.look(false)
    this.#plan()
  }

  get owner(): string {
    return this.#owner
  }

  /** It has its lease by its own clock. */
  get holds(): boolean {
    return !this.#lost && !this.#left && this.process.alive && this.#world.timeline.now - this.#renewedAt < leaseMs
  }

  #plan(): void {
    this.#world.timeline.after(leaseMs / 3, this.process, () => {
      this.#renew()
      this.look()
      this.#plan()
    })
  }

  #renew(): void {
    if (this.#left) return
    const lease = this.#cluster.leases.get(this.#name)
    if (this.cut) {
      // Stored, for all that others know; who does not hear of it must take it for lost.
      if (this.reaches && !this.#lost && lease?.owner === this.owner)
        lease.expiresAt = this.#world.timeline.now + leaseMs
      if (!this.holds) this.#lose()
      return
    }
    this.#cluster.expire()
    if (this.#lost) return this.#again(this.#cluster.leases.get(this.#name))
    if (lease?.owner !== this.owner) return this.#lose()
    lease.expiresAt = this.#world.timeline.now + leaseMs
    this.#renewedAt = this.#world.timeline.now
  }

  #lose(): void {
    if (this.#lost) return
    this.#lost = true
    this.#world.notes.fault('lease lost')
    this.#world.trace(() => `${this.owner} has lost its lease`)
    this.onChange()
  }

  /** Takes a lease again, under another number. */
  #again(lease: Lease | undefined): void {
    if (lease !== undefined) return
    this.#owner = this.#cluster.take(this.#name, !this.#withdrawn, this.#cluster.processOf(this.owner))
    this.#renewedAt = this.#world.timeline.now
    this.#lost = false
    this.onChange()
  }

  /** Looks who lives. */
  look(tell = true): void {
    if (this.cut || this.#lost || this.#left) return
    this.#cluster.expire()
    const moved = [...this.#cluster.pins].filter(([shard, worker]) => this.#pins.get(shard) !== worker)
    this.#pins = new Map(this.#cluster.pins)
    if (tell) for (const [shard] of moved) this.onChange(shard)
    for (const { owner } of this.#cluster.leases.values()) this.#seen.set(owner, this.#clock.now())
    const known = this.#view
    const before = JSON.stringify([...known].map(([name, { owner, offers }]) => [name, owner, offers]))
    this.#view = new Map([...this.#cluster.leases].map(([name, lease]) => [name, { ...lease }]))
    const after = JSON.stringify([...this.#view].map(([name, { owner, offers }]) => [name, owner, offers]))
    if (before !== after)
      this.#world.trace(
        () =>
          `${this.owner} sees ${[...this.#view.values()].map(({ owner, offers }) => owner + (offers ? '' : ' (wants none)')).join()}`,
      )
    const mine = known.get(this.#name)
    const isMore = [...known].every(([name, { owner, offers }]) => {
      const now = this.#view.get(name)
      return now?.owner === owner && (now.offers || !offers)
    })
    const gains = !isMore || mine?.offers !== this.#view.get(this.#name)?.offers
    if (tell && before !== after) this.onChange(undefined, gains)
  }

  owns(shard: string): boolean {
    return this.holds && this.ownerOf(shard) === this.#name
  }

  ownerOf(shard: string): string | null {
    const offering = [...this.#view.values()].filter(({ offers }) => offers).map(({ worker }) => worker)
    const pinned = this.#pins.get(shard)
    return pinned !== undefined && offering.includes(pinned) ? pinned : ownerOf(partitionOf(shard), offering)
  }

  async assign(shard: string, _crew: string, worker: string | null): Promise<string> {
    if (worker === null) this.#cluster.pins.delete(shard)
    else this.#cluster.pins.set(shard, worker)
    const isNew = this.#pins.get(shard) !== (worker ?? undefined)
    this.#pins = new Map(this.#cluster.pins)
    if (isNew) this.onChange(shard)
    this.#cluster.tell()
    return this.ownerOf(shard) ?? this.#name
  }

  async handOver(shard: string, worker: string): Promise<void> {
    const owner = this.#view.get(worker)?.owner
    if (owner !== undefined)
      await this.#ask(this.#cluster.member(owner), (other) => other.take(shard).catch(() => undefined), undefined)
  }

  lives(owner: string): boolean {
    if (owner === this.owner) return this.holds
    return [...this.#view.values()].some((lease) => lease.owner === owner)
  }

  isRunning(owner: string): boolean {
    const process = this.#cluster.processOf(owner)
    if (process === this.#process) return true
    return [...this.#view.values()].some((lease) => this.#cluster.processOf(lease.owner) === process)
  }

  crashOf(owner: string): string | null {
    const process = this.#cluster.processOf(owner)
    return process === this.#process || this.#cluster.ended.has(process) ? null : process
  }

  /** The first owner of this process. */
  get #process(): string {
    return this.#cluster.processOf(this.owner)
  }

  lastSeen(owner: string): number | null {
    return this.#seen.get(owner) ?? null
  }

  async release(shard: string, owner: string): Promise<void> {
    this.#world.notes.reached('owner asked to leave')
    this.#world.trace(() => `${this.owner} asks ${owner} to leave ${shard}`)
    await this.#ask(this.#cluster.member(owner), async (worker) => void (await worker.leave(shard)), undefined)
  }

  working(executor: string, shard: string, effects: readonly string[]): Promise<readonly string[] | null> {
    if (this.#cluster.processOf(executor) === this.#process)
      return Promise.resolve(this.process.worker?.working(shard, effects) ?? [])
    return this.#ask<readonly string[] | null>(
      this.#cluster.processMember(executor),
      (worker) => Promise.resolve(worker.working(shard, effects)),
      null,
    )
  }

  cancel(executor: string, shard: string, effects: readonly string[]): void {
    void this.#ask(
      this.#cluster.processMember(executor),
      (worker) => Promise.resolve(worker.cancel(shard, effects)),
      undefined,
    )
  }

  /** A request over the wire: lost, late, answered or not. */
  #ask<T>(
    other: SimulatedOwnership | undefined,
    work: (worker: NonNullable<SimulatedProcess['worker']>) => Promise<T>,
    otherwise: T,
  ): Promise<T> {
    const { timeline, random } = this.#world
    return new Promise((resolve) => {
      timeline.after(patienceMs, this.process, () => resolve(otherwise))
      if (!this.reaches || other === undefined || random.chance(this.#world.calm ? 0 : 0.05)) return
      timeline.after(random.int(0, 20), other.process, () => {
        const { worker } = other.process
        if (worker === null || other.cut) return
        void work(worker).then((answer) => {
          if (other.reaches && !this.cut) timeline.after(random.int(0, 20), this.process, () => resolve(answer))
        })
      })
    })
  }

  async send(shard: string, draft: Draft): Promise<void> {
    const { timeline, random, notes } = this.#world
    if (!this.process.alive) return never()
    if (!isForeign(draft.from)) notes.reached('outcome sent after its shard')
    for (;;) {
      await timeline.wait(random.int(1, 20), this.process)
      // Kept or not, whoever hears no answer sends it again.
      if (this.cut || random.chance(this.#world.calm ? 0 : 0.1)) {
        if (this.reaches && random.chance(0.5)) this.#cluster.post(shard, draft)
        await timeline.wait(patienceMs, this.process)
        continue
      }
      this.#cluster.post(shard, draft)
      return
    }
  }

  async mailTaken(shard: string): Promise<void> {
    const { timeline } = this.#world
    const letters = this.#cluster.lettersOf(shard)
    // As over NATS: until a letter that a dead reader had came to another one.
    for (let tries = 0; tries < 60 && letters.some((letter) => !this.#cluster.isTaken(letter)); tries++)
      await timeline.wait(250, this.process)
  }

  async withdraw(): Promise<void> {
    this.#withdrawn = true
    const lease = this.#cluster.leases.get(this.#name)
    if (lease?.owner === this.owner && !this.cut) {
      lease.offers = false
      this.#cluster.tell()
    }
    this.look(false)
  }

  /** Nothing comes to it for a while. @param oneWay what it says is heard all the same */
  cutOff(forMs: number, oneWay: boolean): void {
    this.#world.notes.fault(oneWay ? 'worker cut off one way' : 'worker cut off')
    this.#world.trace(() => `${this.owner} is cut off${oneWay ? ' one way' : ''}`)
    this.cut = true
    this.reaches = oneWay
    this.#world.timeline.after(forMs, null, () => {
      this.cut = false
      this.reaches = true
      this.#world.trace(() => `${this.owner} is not cut off any more`)
    })
  }

  /** Gives the lease back. */
  leave(): void {
    this.#left = true
    const lease = this.#cluster.leases.get(this.#name)
    if (lease?.owner !== this.owner) return
    this.#cluster.leases.delete(this.#name)
    this.#cluster.ended.add(this.#process)
    this.#cluster.tell()
  }
}
