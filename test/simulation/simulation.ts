/**
 * The simulation: one seed is one world with its crews, its processes that die, and its judge.
 *
 * It runs the product's own worker, shards, dispatchers and machines; only clock, disk, provider and tools are
 * simulated. Everything that happens follows from the seed.
 */
import type { Draft } from '../../runtime/envelope.js'
import type { JournalRecord } from '../../runtime/journal.js'
import { type Effect, stateHash } from '../../runtime/state.js'
import { Worker } from '../../runtime/worker.js'
import { createMemoryStore, type MemoryStore } from '../../transport/memory-journal.js'
import { Client, resetCauses, type SimulatedCrew } from './client.js'
import { planClusterFaults } from './cluster-faults.js'
import { type CrashWindow, drawFaults, type FaultPlan } from './fault-plan.js'
import { checkEnd, checkEnded, hashOf, logOf } from './final-checks.js'
import { Judge } from './judge.js'
import { type Fault, Notes } from './notes.js'
import { machines } from '../../machines/index.js'
import { scopeOf } from './machine-faults.js'
import { Person } from './person.js'
import { checkPool, checkPoolEnd, hasPool, poolOf, poolShard } from './pools.js'
import { Replica, type ReplicaWorld } from './replica.js'
import { SeededRandom } from './seeded-random.js'
import { drawSteers } from './steers.js'
import { SimulatedBreakers } from './simulated-breakers.js'
import { SimulatedCluster } from './simulated-cluster.js'
import { SimulatedJournal } from './simulated-journal.js'
import { disturbMail } from './simulated-mail.js'
import { SimulatedStream } from './simulated-stream.js'
import { spoilSnapshots, type Spoilt } from './spoilt-snapshots.js'
import type { Slot } from './slot.js'
import { Timeline, VirtualClock } from './virtual-clock.js'
import {
  drawScript,
  hasOthers,
  isStubborn,
  kindOf,
  resetCalls,
  rowOf,
  type Script,
  sureVariant,
  variants,
} from './workload.js'
import type { SeedOptions, SeedResult } from './seed-result.js'
import { activeIn, type SimulatedProcess, type World } from './world.js'

/** Most events and most time of one seed: what has not ended by then never will. */
const maxEvents = 20_000
const maxMs = 48 * 3_600_000
/** Events after the first broken promise: what breaks then says little. */
const maxAfter = 300
/** From then on there are no more faults. */
const calmMs = 150_000
/** When things happen to a seed, in milliseconds. */
const horizonMs = 45_000

/** Runs one seed. */
export function runSeed(seed: number, options: SeedOptions = {}): Promise<SeedResult> {
  return new Simulation(seed, options).run()
}

class Simulation implements World {
  readonly seed: number
  readonly random: SeededRandom
  readonly timeline: Timeline
  readonly notes = new Notes()
  readonly judge = new Judge(this.notes)
  readonly plan: FaultPlan
  readonly cluster: SimulatedCluster | null
  readonly store: MemoryStore
  readonly stream: SimulatedStream | null
  readonly breakers: SimulatedBreakers
  slowUntil = 0
  unclean = false
  fullUntil = 0
  calm = false
  forcedSlowMs = 0
  readonly rebuiltAt = new Map<string, number>()
  readonly spoilt = new Map<string, Map<number, Spoilt>>()
  readonly scope = () => scopeOf(this.seed)
  readonly #crews: SimulatedCrew[] = []
  readonly #replicas = new Map<string, Replica>()
  readonly #scripts = new Map<string, Script>()
  readonly #wall = { stepMs: 0 }
  readonly #replicaWorld: ReplicaWorld
  readonly #compare = new Set<string>()
  readonly #trace: ((line: string) => void) | undefined
  readonly #slots: readonly Slot[]
  readonly #maxEvents: number
  #crashesLeft: number
  #ends = 0
  #crashes = 0
  #processes = 0
  #deadMs = 0
  #poisoned: string | null = null
  #poisonCrashes = 0
  #after = 0
  /** What is added to the numbers of the crews. */
  readonly #kind: number
  /** What they share. */
  readonly #pool: SimulatedCrew | null
  readonly #person: Person

  constructor(seed: number, options: SeedOptions) {
    this.seed = seed
    this.random = new SeededRandom(seed)
    this.timeline = new Timeline(this.random)
    this.plan = drawFaults(this.random)
    this.#crashesLeft = this.plan.crashes
    this.#trace = options.trace
    const workers = options.workers ?? 1
    this.#kind = kindOf(seed)
    this.#pool = hasPool(seed) ? { id: poolShard, variant: poolOf(seed), tasks: [] } : null
    // Leases are renewed every second, whether anything happens or not.
    this.#maxEvents = maxEvents * (workers > 1 ? 20 : 1)
    this.store = createMemoryStore({ shared: workers > 1 })
    this.cluster = workers > 1 ? new SimulatedCluster(this) : null
    this.stream = workers > 1 ? new SimulatedStream(this, seed % 2 === 1) : null
    this.breakers = new SimulatedBreakers(this, seed)
    this.#person = new Person(this, seed, (shard) => this.#clientsOf(shard))
    const empty = { process: null, journal: null, startedAt: 0, endedAt: 0 }
    this.#slots = Array.from({ length: workers }, (_, index) => ({ name: `w${index}`, ...empty, clients: new Map() }))
    this.#replicaWorld = {
      random: this.random,
      notes: this.notes,
      judge: this.judge,
      rebuild: this.random.chance(0.5) ? 0.03 : 0,
      freeze: this.random.chance(0.1),
      clockSteps: this.plan.clockSteps > 0 || workers > 1,
      scope: this.scope,
      now: () => this.timeline.now,
      // Whose lease ran out counts as gone, whether it is or not.
      ends: () => this.#ends + (this.cluster?.lost ?? 0),
      crashes: () => this.cluster?.gone.length ?? this.#crashes,
      crashesSince: (before) =>
        this.cluster === null ? this.#crashes - before : new Set(this.cluster.gone.slice(before)).size,
      overtaken: (owner) => this.cluster?.lose(owner),
      poolRefused: () => this.replica(poolShard).refusals.size > 0,
      asked: (shard, ask, kind) => this.#person.ask(shard, ask, kind),
      hasSaid: (shard, ask, decision) => this.#person.hasSaid(shard, ask, decision),
      startedAt: () => this.#slots[0]!.startedAt,
      deadMs: () => this.#deadMs,
    }
  }

  async run(): Promise<SeedResult> {
    resetCalls()
    resetCauses()
    if (this.plan.checks) this.notes.reached('impurity checked: every commit decided twice')
    this.#addCrew('a', this.#kind + this.random.int(0, variants - 1), this.random.int(3, 5))
    if (hasOthers(this.#kind)) this.#addCrew('m', this.#kind + this.random.int(0, variants - 1), 3)
    if (this.random.chance(0.15)) this.#addCrew('b', this.random.int(0, variants - 1), 2)
    this.#planFaults()
    for (const slot of this.#slots) this.#boot(slot)
    await this.#passUntil(() => this.#allEnded())
    this.calm = true
    for (let more = 0; more < 8 && this.#lacks(); more++) {
      this.#addCrew(`sure-${more}`, sureVariant(this.random), 1)
      await this.#passUntil(() => this.#allEnded())
    }
    if (this.random.chance(0.2)) await this.#rest()
    await this.#shutDown()
    // An answer that comes in the end of a worker may have something said behind it: the next one hands it over.
    for (let more = 0; more < 3 && this.#hasLetters(); more++) {
      for (const slot of this.#slots) this.timeline.after(100, null, () => this.#boot(slot))
      await this.#passUntil(() => this.#allEnded())
      await this.#shutDown()
    }
    const replicas = [...this.#replicas.values()]
    if (this.#after <= maxAfter) await checkEnd(this, this.#crews, replicas)
    if (this.#pool !== null) checkPoolEnd(this, this.#crews)
    const count = (what: keyof Replica['count']) => replicas.reduce((sum, replica) => sum + replica.count[what], 0)
    return {
      seed: this.seed,
      commits: count('commits'),
      faults: this.notes.faults,
      rounds: count('rounds'),
      delegations: count('delegations'),
      onceCalls: this.judge.onceCalls,
      violations: this.notes.violations,
      sometimes: this.notes.sometimes,
      hash: hashOf(this, replicas),
    }
  }

  trace(line: () => string): void {
    this.#trace?.(`${this.timeline.now} ${line()}`)
  }

  // ------------------------------------------------------------------------------------------ crews and floors

  #addCrew(id: string, variant: number, tasks: number): void {
    const crew: SimulatedCrew = { id, variant, tasks: [] }
    for (let index = 0; index < tasks; index++)
      crew.tasks.push({ key: `${id}-${index}`, arrived: false, handedBy: 0, run: null })
    this.#crews.push(crew)
    for (const task of crew.tasks) {
      this.timeline.after(this.random.int(0, horizonMs / 4), null, () => {
        task.arrived = true
        for (const client of this.#clientsOf(id)) void client.arrive()
      })
    }
    for (const slot of this.#slots)
      if (slot.process?.alive === true && slot.process.worker !== null) this.#serve(slot, slot.process, crew)
  }

  /** Clients of a crew, in processes that live. */
  #clientsOf(id: string): Client[] {
    const living = this.#slots.filter(({ process }) => process?.alive === true)
    return living.map(({ clients }) => clients.get(id)).filter((client) => client !== undefined)
  }

  /** The crews, and what they share. */
  #all(): readonly SimulatedCrew[] {
    return this.#pool === null ? this.#crews : [this.#pool, ...this.#crews]
  }

  /** A process that lives, if any. */
  #living(): Slot | undefined {
    const living = this.#slots.filter(({ process }) => process?.alive === true)
    return living.length > 1 ? this.random.pick(living) : living[0]
  }

  /** What each seed must have: five rounds, a delegation, a `once` call. */
  #lacks(): boolean {
    const sum = (what: 'rounds' | 'delegations') =>
      [...this.#replicas.values()].reduce((total, { count }) => total + count[what], 0)
    return sum('rounds') < 5 || sum('delegations') < 1 || this.judge.onceCalls < 1
  }

  /** Whether anything is on its way between crews. */
  #hasLetters(): boolean {
    return (
      this.cluster?.hasLetters === true || this.#all().some(({ id }) => this.replica(id).state.mail.outbox.size > 0)
    )
  }

  #allEnded(): boolean {
    if (this.#hasLetters()) return false
    for (const crew of this.#crews) {
      const { runs } = this.replica(crew.id).state
      const own = [...runs.values()].filter(({ replyTo }) => replyTo === '')
      if (own.length < crew.tasks.length) return false
      for (const run of runs.values()) if (run.status !== 'finished') return false
    }
    return true
  }

  script(shard: string, effect: Effect, base: number): Script {
    const body = effect.body as { agent: string; conversation: string; run: string; view?: object }
    const name = `${shard}|${body.conversation}|${body.run}${body.view === undefined ? '' : `|${effect.from}`}`
    const known = this.#scripts.get(name)
    if (known !== undefined) return known
    const script = drawScript(this.random, body.agent, base, isStubborn(this.seed))
    this.#scripts.set(name, script)
    return script
  }

  // ------------------------------------------------------------------------------------------ time

  async #passUntil(done: () => boolean): Promise<void> {
    for (let events = 0; !done(); events++) {
      if (this.notes.violations.length > 0 && (this.#after += 1) > maxAfter) return
      if (!this.timeline.run()) return checkEnded(this, this.#crews, 'nothing is due any more')
      if (this.timeline.now > calmMs) this.#calmDown()
      if (events > this.#maxEvents || this.timeline.now > maxMs)
        return checkEnded(this, this.#crews, `${events} events, ${this.timeline.now} ms`)
      // What is due at the same moment may come in before anything reacts.
      if (this.timeline.next === this.timeline.now && this.random.chance(0.3)) continue
      await new Promise((resolve) => setImmediate(resolve))
    }
  }

  #calmDown(): void {
    this.calm = true
    this.fullUntil = 0
    this.slowUntil = 0
  }

  /** Lets the last timers run out. */
  async #rest(): Promise<void> {
    const until = this.timeline.now + 3 * 3_600_000
    const pending = () =>
      [...this.#replicas.values()].some(({ state }) => state.timers.size + state.mail.outbox.size > 0)
    await this.#passUntil(() => this.timeline.now > until || !pending() || this.timeline.next === null)
    for (const { shard, state } of this.#replicas.values()) {
      const left = [...state.actors.keys()].filter(
        (address) => !/^((crew|router|pool).main|budget.crew)$/.test(address),
      )
      this.notes.check('rest', left.length === 0 && state.timers.size === 0, () => `${shard}: ${left.join()} are left`)
    }
  }

  /** A last close: nothing may be lost by it. */
  async #shutDown(): Promise<void> {
    for (const { process } of this.#slots) {
      let done = process?.worker == null || !process.alive
      if (!done) {
        process!.closing = true
        void process!.worker!.close(0).then(() => (done = true))
      }
      await this.#passUntil(() => done)
      if (process !== null) process.alive = false
    }
    this.store.owner = null
  }

  // ------------------------------------------------------------------------------------------ processes

  #boot(slot: Slot): void {
    const recovering = new Set(this.#all().map(({ id }) => id))
    const process: SimulatedProcess = {
      ...{ id: (this.#processes += 1), alive: true, worker: null, ownership: null, closing: false },
      ...{ recovering, underWay: new Set() },
    }
    const journal = new SimulatedJournal(this, process)
    const clock = new VirtualClock(this.timeline, process, this.#wall)
    const ownership = this.cluster?.join(process, slot.name, clock) ?? null
    process.ownership = ownership
    const worker = new Worker({
      journal,
      ports: { clock, random: this.random.next, breakers: this.breakers.of(process, clock) },
      context: { scope: this.scope(), machines },
      log: logOf(this.notes, process),
      executor: `p${process.id}`,
      idleMs: this.plan.idleMs,
      checks: this.plan.checks,
      ...(ownership === null ? {} : { ownership }),
    })
    this.trace(() => `process ${process.id} starts${ownership === null ? '' : ` as ${ownership.owner}`}`)
    slot.startedAt = this.timeline.now
    if (this.cluster === null) this.#deadMs += this.timeline.now - slot.endedAt
    slot.process = process
    slot.journal = journal
    slot.clients = new Map()
    for (const { id } of this.#all()) this.#compare.add(id)
    if (hasOthers(this.#kind)) disturbMail(this, process, worker)
    void worker.open().then(() => {
      process.worker = worker
      for (const crew of this.#all()) this.#serve(slot, process, crew)
    })
  }

  #serve(slot: Slot, process: SimulatedProcess, crew: SimulatedCrew): void {
    const client = new Client(this, process, crew)
    slot.clients.set(crew.id, client)
    if (this.plan.snapshots > 0 && !this.plan.unpinned)
      process.worker!.hub.subscribe(crew.id, {
        show: () => undefined,
        take: (events) => this.#watch(process, crew.id, events),
      })
    void client.serve()
  }

  /** Called between the append and what follows from it. */
  #watch(process: SimulatedProcess, shard: string, events: readonly { readonly sequence: number }[]): void {
    const { sequence } = this.replica(shard).state
    for (const event of events)
      this.notes.check('durable', event.sequence <= sequence, () => `${shard}: an event of ${event.sequence} was shown`)
    if (!process.alive || !this.random.chance(this.plan.snapshots)) return
    process
      .worker!.active.get(shard)
      ?.snapshot()
      .catch(() => undefined)
  }

  crash(process: SimulatedProcess, fault: Fault): void {
    if (!process.alive) return
    this.trace(() => `process ${process.id}: ${fault}`)
    this.notes.fault(fault)
    // A record may land while its process dies: this death is one over whatever it asks for.
    this.#slotOf(process).journal!.crash()
    this.#crashes += 1
    if (process.ownership !== null) this.cluster?.lose(process.ownership.owner)
    for (const crashed of process.underWay) crashed(true)
    this.#end(process, this.#downMs())
  }

  #slotOf(process: SimulatedProcess): Slot {
    return this.#slots.find((slot) => slot.process === process)!
  }

  #downMs(): number {
    return this.calm ? 100 : this.random.pick([1, 50, 50, 1_000, 1_000, 20_000, 400_000])
  }

  /** The process is gone, one way or another; the next one starts after `downMs`. */
  #end(process: SimulatedProcess, downMs: number): void {
    const worker = process.worker
    const slot = this.#slotOf(process)
    process.alive = false
    this.store.owner = null
    this.#ends += 1
    slot.endedAt = this.timeline.now
    for (const replica of this.#replicas.values()) replica.end()
    const comeBack = (): void => {
      // Its name is free when its lease has run out.
      this.cluster?.expire()
      if (this.cluster?.leases.has(slot.name) === true) return void this.timeline.after(500, null, comeBack)
      void spoilSnapshots(this, worker).then(() => this.#boot(slot))
    }
    this.timeline.after(downMs, null, comeBack)
  }

  strikes(window: CrashWindow): boolean {
    if (this.calm || this.#crashesLeft <= 0 || !this.random.chance(this.plan.crash[window])) return false
    this.#crashesLeft -= 1
    return true
  }

  poisons(kind: 'tool' | 'once' | 'model' | 'timer', work: string): boolean {
    if (kind !== this.plan.poison) return false
    if (this.#poisoned === null && this.random.chance(0.2)) this.#poisoned = work
    if (this.#poisoned !== work || this.#poisonCrashes > 5) return false
    this.#poisonCrashes += 1
    // A clock that is set back makes a timer that was due due again; who is resumed asks again for what was given up.
    this.notes.check(
      'poison',
      this.#poisonCrashes <= 3 + this.plan.clockSteps + this.notes.resumes,
      () => `${work} was tried ${this.#poisonCrashes} times`,
    )
    return true
  }

  async #closeCleanly(process: SimulatedProcess): Promise<void> {
    if (!process.alive || process.worker === null || process.closing) return
    process.closing = true
    const busy = [...process.worker.active.values()].some((shard) => shard.busy)
    this.notes.reached(busy ? 'close over running work' : 'close with nothing running')
    this.trace(() => `process ${process.id} closes`)
    await process.worker.close(this.random.pick([0, 20, 100]))
    process.ownership?.leave()
    if (process.alive) this.#end(process, this.random.int(1, 2_000))
  }

  // ------------------------------------------------------------------------------------------ faults

  #planFaults(): void {
    const { plan, random } = this
    const at = (count: number, happen: (process: SimulatedProcess) => void) => {
      for (let index = 0; index < count; index++) {
        this.timeline.after(random.int(0, horizonMs), null, () => {
          const process = this.calm ? null : this.#living()?.process
          if (process != null) happen(process)
        })
      }
    }
    const onEach = (work: (client: Client) => Promise<void>, id = random.pick(this.#crews).id) => {
      for (const client of this.#clientsOf(id)) void work(client)
    }
    at(plan.randomCrashes, (process) => {
      const busy = process.underWay.size > 0
      this.crash(process, busy ? 'crash: in flight' : 'crash: at rest')
    })
    at(plan.closes, (process) => void this.#closeCleanly(process))
    if (this.cluster !== null) planClusterFaults(this, at, (process) => void this.#closeCleanly(process))
    at(plan.fullPeriods, () => {
      this.notes.fault('store full')
      this.fullUntil = this.timeline.now + random.pick([100, 3_000, 20_000])
      // Somebody wants something while the store takes nothing.
      onEach((client) => client.command('crew.resume'))
      this.timeline.after(50, null, () => onEach((client) => client.command('crew.resume')))
    })
    at(plan.clockSteps, () => {
      this.notes.fault('clock stepped')
      this.#wall.stepMs += random.int(-60_000, 60_000)
    })
    at(plan.pauses, () => {
      onEach((client) => client.command('crew.pause'))
    })
    if (plan.pauses > 0) this.#resumeAll()
    at(plan.cancels, () => {
      const crew = random.pick(this.#crews)
      const runs = [...this.replica(crew.id).state.runs.keys()]
      const run = random.chance(0.5) ? random.pick(runs) : undefined
      onEach((client) => client.command('crew.cancel', run), crew.id)
    })
    for (const { id, key, agent, atMs } of drawSteers(this.seed, this.#crews, horizonMs))
      this.timeline.after(atMs, null, () => onEach((client) => client.steer(key, agent), id))
    at(plan.redefinitions, () => {
      const crew = random.pick(this.#crews)
      crew.variant = rowOf(crew.variant) + random.int(0, variants - 1)
      onEach((client) => client.redefine(), crew.id)
    })
  }

  /** Whoever pauses a crew goes on some time. */
  #resumeAll(): void {
    this.timeline.after(this.random.int(2_000, 15_000), null, () => {
      for (const crew of this.#crews)
        if (this.replica(crew.id).crew?.paused === true)
          for (const client of this.#clientsOf(crew.id)) void client.command('crew.resume')
      if (!this.#allEnded()) this.#resumeAll()
    })
  }

  pause(process: SimulatedProcess): void {
    this.notes.fault('worker stood still')
    process.pausedUntil = this.timeline.now + this.random.pick([500, 2_000, 4_000, 8_000])
    this.trace(() => `process ${process.id} stands still until ${process.pausedUntil}`)
  }

  collide(shard: string, delayMs: number): void {
    const owner = this.#slots.length === 1 ? this.#slots[0]!.process : null
    this.timeline.after(delayMs, owner, () => {
      this.forcedSlowMs = 4
      for (const client of this.#clientsOf(shard)) void client.command('crew.resume')
    })
  }

  deliver(shard: string, draft: Draft, delayMs: number, tries = 30): void {
    this.timeline.after(delayMs, null, () => {
      const active = this.#slots.map(({ process }) => activeIn(process, shard)).find((found) => found !== undefined)
      if (active !== undefined) return void active.post(draft).catch(() => undefined)
      if (tries > 0) this.deliver(shard, draft, 1_000, tries - 1)
    })
  }

  // ------------------------------------------------------------------------------------------ records

  replica(shard: string): Replica {
    const known = this.#replicas.get(shard)
    if (known !== undefined) return known
    const replica = new Replica(shard, this.#replicaWorld)
    this.#replicas.set(shard, replica)
    return replica
  }

  landed(process: SimulatedProcess | null, record: JournalRecord, writer: string): void {
    const replica = this.replica(record.shard)
    const before = replica.state.owner
    const envelopes = replica.take(record)
    const taking = envelopes[0]?.body.type === 'shard.taken'
    const { owner } = replica.state
    const detail = () => `${record.shard} ${record.first}: ${writer} wrote, ${before} had it, ${owner} has it`
    this.notes.check('owner', writer === (taking ? owner : before), detail)
    if (this.#pool !== null) checkPool(this, this.#crews)
    const first = record.last - envelopes.length
    for (const [index, { at: _, ...draft }] of envelopes.entries()) {
      const by = this.cluster === null ? '' : ` by ${writer}${process === null ? ', late' : ''}`
      const what = `${draft.from} > ${draft.to} ${draft.body.type} ${draft.cause}`
      this.trace(() => `${record.shard} ${first + index + 1} ${what}${by}`)
      if (draft.from === 'clock/timer' && this.plan.unpinned && this.rebuiltAt.get(record.shard) === this.timeline.now)
        this.notes.reached('shard woken by a timer')
      const outcome = draft.from.startsWith('port/') && !draft.body.type.startsWith('effect.')
      if (!outcome || this.calm || !this.random.chance(this.plan.duplicate)) continue
      this.notes.fault('outcome twice')
      this.deliver(record.shard, draft, this.random.int(0, 4_000))
    }
    const live = process?.worker?.active.get(record.shard)?.state
    // Its process may have decided something else since: what landed is an append of it that had failed, and came late.
    if (this.cluster !== null && (live?.sequence !== record.last || live.at !== replica.state.at)) return
    if (live === undefined || !(this.#compare.delete(record.shard) || this.random.chance(0.01))) return
    const same = stateHash(live, this.scope(), machines) === replica.hash()
    this.notes.check('replay', same, () => `${record.shard} ${record.last}: process ${process?.id} has another state`)
  }
}
