/**
 * Where the breakers of a simulation are stored, what the provider knows of them, and when a deployment is down.
 *
 * What is stored is heard of at once by everybody; storing takes its time, and fails for whoever is cut off.
 */
import type { StoredBreaker } from '../../machines/messages.js'
import { type BreakerEntry, Breakers, type BreakerStore } from '../../runtime/breakers.js'
import type { Clock } from '../../runtime/ports.js'
import { MemoryBreakers } from '../../transport/memory-breakers.js'
import { SeededRandom } from './seeded-random.js'
import { never, type SimulatedProcess, type World } from './world.js'

/** Small enough for a seed to see all of it. */
const settings = { failures: 3, minCalls: 6, windowMs: 20_000, cooldownMs: 3_000, probeMs: 5_000 }

/** The breakers of one seed. */
export class SimulatedBreakers {
  readonly #world: World
  readonly #memory = new MemoryBreakers()
  /** Calls that came to an end. */
  readonly #done = new Set<string>()
  /** Not of the seed's own row of draws. */
  readonly #random: SeededRandom
  /** When which deployment is down, in milliseconds. */
  readonly #outage: { readonly deployment: string; readonly from: number; readonly to: number } | null

  constructor(world: World, seed: number) {
    this.#world = world
    this.#random = new SeededRandom(seed + 0x62726561)
    const from = this.#random.int(0, 30_000)
    const outage = {
      deployment: this.#random.pick(['sim:cheap', 'sim:dear']),
      from,
      to: from + this.#random.int(2_000, 30_000),
    }
    this.#outage = this.#random.chance(0.3) ? outage : null
  }

  /** Whether whoever calls a deployment now has no answer. */
  isDown(deployment: string): boolean {
    const { now } = this.#world.timeline
    const isDown = this.#outage?.deployment === deployment && now >= this.#outage.from && now < this.#outage.to
    if (isDown) this.#world.notes.fault('model down')
    return isDown
  }

  /** The breakers of a process. */
  of(process: SimulatedProcess, clock: Clock): Breakers {
    const breakers = new Breakers({ store: this.#storeOf(process), clock, settings })
    const { done } = breakers
    // What comes of a probe is known here before it is stored.
    breakers.done = (target, call, end) => {
      this.#done.add(call)
      return done.call(breakers, target, call, end)
    }
    return breakers
  }

  /** A call reaches the provider: not while its breaker is open for everybody, and half-open as the probe only. */
  arrives(deployment: string, call: string, process: SimulatedProcess): void {
    const breaker = this.#memory.entries.get(`model/${deployment}`)?.breaker
    const isHalfOpen = breaker?.state === 'halfOpen' && this.#now < (breaker.probe?.until ?? 0)
    const detail = (): string => `${deployment}: ${call} of process ${process.id} beside ${breaker?.probe?.call}`
    // A probe is stored before it is made.
    this.#world.notes.check('probe', breaker?.state !== 'open', detail)
    // Clocks of processes that were set differ: then nobody knows whose turn it is.
    if (isHalfOpen && !this.#done.has(breaker.probe!.call) && this.#world.plan.clockSteps === 0)
      this.#world.notes.check('probe', breaker.probe?.call === call, detail)
  }

  get #now(): number {
    return 1_700_000_000_000 + this.#world.timeline.now
  }

  #storeOf(process: SimulatedProcess): BreakerStore {
    const { timeline, cluster } = this.#world
    const latency = (): Promise<void> =>
      process.alive ? timeline.wait(this.#random.int(1, cluster === null ? 2 : 30), process) : never()
    return {
      load: async (target) => {
        await latency()
        return this.#memory.load(target)
      },
      save: async (target, breaker, revision) => {
        await latency()
        if (cluster !== null && this.#random.chance(this.#world.calm ? 0 : 0.02)) throw new Error('cut off')
        const before = this.#memory.entries.get(target)
        const saved = await this.#memory.save(target, breaker, revision)
        if (saved !== null) this.#judge(target, before, breaker)
        await latency()
        return saved
      },
      all: async () => {
        await latency()
        return this.#memory.all()
      },
      watch: (told) =>
        this.#memory.watch((target, entry) => {
          if (process.alive) told(target, entry)
        }),
    }
  }

  /** One probe takes the place of another only when that is overdue or done. */
  #judge(target: string, before: BreakerEntry | undefined, { state, probe }: StoredBreaker): void {
    const { notes, plan } = this.#world
    if (state === 'open' && before?.breaker.state === 'closed') notes.reached('breaker opened')
    if (state === 'closed' && before?.breaker.state === 'halfOpen') notes.reached('breaker closed')
    const earlier = before?.breaker.state === 'halfOpen' ? before.breaker.probe : null
    if (earlier === null || state !== 'halfOpen' || plan.clockSteps > 0) return
    const isOverdue = earlier.call === probe?.call || this.#done.has(earlier.call) || this.#now >= earlier.until
    notes.check('probe', isOverdue, () => `${target}: ${probe?.call} beside ${earlier.call}`)
  }
}
