/**
 * The circuit breakers of this process: one actor a deployment or tool server, beside the crews and without a journal.
 *
 * Owns: running them, what is stored of them and when, how many calls each target has now.
 * Does not own: their decisions (`machines/circuit-breaker.ts`), whom to ask (`admission.ts`), where they are stored
 * (`transport/`).
 *
 * - BR1 A permit is an answer of the machine; a probe is permitted only when it is stored that it is this one.
 * - BR2 Only changes of state are stored, and nobody waits for that but a probe.
 * - BR3 What is stored by others counts here from when it is heard of, and before a change of one's own is stored.
 * - BR4 A store that is away stops no call that the machine admits; probes wait for it.
 */
import {
  type BreakerChange,
  type BreakerEvent,
  type BreakerMessage,
  type BreakerSettings,
  breakerMachine,
  type PermitAnswer,
  type PermitNeed,
  type Skipped,
  type StoredBreaker,
} from '../machines/index.js'
import type { Log } from './log.js'
import type { Clock } from './ports.js'
import { Scope, type Snapshot } from './scope.js'

/** A stored breaker, and the number of the change that made it what it is. */
export interface BreakerEntry {
  readonly breaker: StoredBreaker
  readonly revision: number
}

/** Where breakers outlive their process, and others hear of them. Whatever it throws means that it cannot be reached. */
export interface BreakerStore {
  /** What is stored of a target; null for nothing. */
  load(target: string): Promise<BreakerEntry | null>
  /**
   * Stores a change, when the one before it is still the last one. Resolves to its revision, or to null when it is not.
   * @param revision of the change before it; 0 for none
   */
  save(target: string, breaker: StoredBreaker, revision: number): Promise<number | null>
  /** Everything that is stored, by target. */
  all(): Promise<ReadonlyMap<string, BreakerEntry>>
  /** Calls back with what others store, until the returned function is called. */
  watch(told: (target: string, entry: BreakerEntry) => void): () => void
}

/** When breakers open, and for how long. */
export const defaultBreakers: BreakerSettings = {
  failures: 5,
  rate: 0.5,
  minCalls: 10,
  windowMs: 60_000,
  cooldownMs: 30_000,
  probeMs: 60_000,
}

/** An answer to who asks for a permit. */
export type Permit =
  | { readonly granted: true }
  | { readonly granted: false; readonly reason: Skipped['reason']; readonly waitMs: number }

/** Who would not take a call, why, and for how long that is known to be so. */
export interface Refusal {
  readonly target: string
  readonly reason: Skipped['reason']
  readonly waitMs: number
}

/** A breaker that keeps somebody back. */
export interface BreakerInfo {
  /** `model/<deployment>`, or the server of tools. */
  readonly target: string
  /** Open: nobody calls it. Half-open: one call finds out. Cooling: whoever has another one leaves it alone. */
  readonly state: 'open' | 'halfOpen' | 'cooling'
  /** Epoch milliseconds; of an open one in the past: the next call finds out. */
  readonly until: number
  /** Its calls failed; a call is under way to find out; it asked for time; it refuses for a reason that lasts. */
  readonly why: 'failed' | 'probing' | 'asked' | 'fault'
}

/** What came of a permitted call. */
export type CallEnd = Pick<Extract<BreakerMessage, { type: 'permit.done' }>, 'verdict' | 'cooling'>

/** Options of `Breakers`. */
export interface BreakersOptions {
  readonly store: BreakerStore
  readonly clock: Clock
  readonly log?: Log
  /** @default `defaultBreakers` */
  readonly settings?: Partial<BreakerSettings>
}

/** How long a probe waits for a store that is away. */
const storeAwayMs = 1_000

/** All breakers of a process. */
export class Breakers {
  readonly #options: BreakersOptions
  readonly #settings: BreakerSettings
  readonly #scope = new Scope()
  readonly #breakers = new Map<string, Breaker>()

  constructor(options: BreakersOptions) {
    this.#options = options
    this.#settings = { ...defaultBreakers, ...options.settings }
    options.store.watch((target, entry) => this.#breakers.get(target)?.told(entry))
  }

  /** Asks whether a call may be made now. One that may must be told of by `done`. @param call name of this call and no other */
  ask(target: string, call: string, need: PermitNeed): Promise<Permit> {
    return this.#of(target).ask(call, need)
  }

  /** Tells what came of a permitted call. Returns what that changes for others. */
  done(target: string, call: string, end: CallEnd): BreakerChange[] {
    return this.#of(target).done(call, end)
  }

  /** Those that keep somebody back, by target. A store that is away tells nothing: then it is those of this process. */
  async list(): Promise<readonly BreakerInfo[]> {
    const stored = await this.#options.store.all().catch(() => new Map<string, BreakerEntry>())
    for (const [target, entry] of stored) this.#breakers.get(target)?.told(entry)
    const all = new Map([...stored].map(([target, { breaker }]) => [target, breaker]))
    for (const [target, breaker] of this.#breakers) if (breaker.isReady) all.set(target, breaker.kept)
    const now = this.#options.clock.now()
    return [...all.keys()].sort().flatMap((target) => infoOf(target, all.get(target)!, now) ?? [])
  }

  /** Calls of a target that were permitted and are not done. */
  underWay(target: string): number {
    return this.#breakers.get(target)?.underWay ?? 0
  }

  /**
   * Waits for the end of a probe that kept a call back, or until another breaker may have changed its mind. Never rejects.
   * @returns false when there is none to wait for, or one of the signals has aborted
   */
  async probed(refusals: readonly Refusal[], signals: readonly AbortSignal[]): Promise<boolean> {
    const probing = refusals.filter(({ reason }) => reason === 'probing')
    if (probing.length === 0 || signals.some(({ aborted }) => aborted)) return false
    const sets = probing.map(({ target }) => this.#of(target).waiting)
    let end = (): void => undefined
    await new Promise<void>((resolve) => {
      const cancel = this.#options.clock.after(Math.min(...refusals.map(({ waitMs }) => waitMs)), resolve)
      end = () => {
        cancel()
        resolve()
      }
      for (const set of sets) set.add(end)
      for (const signal of signals) signal.addEventListener('abort', end, { once: true })
    })
    for (const set of sets) set.delete(end)
    for (const signal of signals) signal.removeEventListener('abort', end)
    return !signals.some(({ aborted }) => aborted)
  }

  #of(target: string): Breaker {
    let breaker = this.#breakers.get(target)
    if (breaker === undefined) {
      breaker = new Breaker(target, this.#settings, this.#scope, this.#options)
      this.#breakers.set(target, breaker)
    }
    return breaker
  }
}

/** One of them. */
class Breaker {
  readonly #target: string
  readonly #scope: Scope
  readonly #options: BreakersOptions
  #snapshot: Snapshot
  /** Of what is stored, as far as it is known here. */
  #stored: StoredBreaker
  #revision = 0
  /** It is known what is stored, or that nobody can tell. */
  readonly #ready: Promise<void>
  isReady = false
  #saving: Promise<boolean> = Promise.resolve(true)
  underWay = 0
  /** Called once it is in another state. */
  readonly waiting = new Set<() => void>()

  constructor(target: string, settings: BreakerSettings, scope: Scope, options: BreakersOptions) {
    this.#target = target
    this.#scope = scope
    this.#options = options
    const self = addressOf(target)
    this.#snapshot = scope.start(breakerMachine, self, { self, target, settings }).snapshot
    this.#stored = this.kept
    this.#ready = this.#load().then(
      () => void (this.isReady = true),
      (error: unknown) => {
        this.isReady = true
        this.#warn(error)
      },
    )
  }

  /** It counts from when it is asked for: of those who ask at once each knows of the others. */
  async ask(call: string, need: PermitNeed): Promise<Permit> {
    this.underWay += 1
    const permit = await this.#decide(call, need)
    if (!permit.granted) this.underWay -= 1
    return permit
  }

  async #decide(call: string, need: PermitNeed): Promise<Permit> {
    if (!this.isReady) await this.#ready
    for (;;) {
      const { answer } = this.#step({ type: 'permit.ask', replyTo: 'port', call, at: this.#now(), need })
      if (answer.type === 'permit.refused') return { granted: false, reason: answer.reason, waitMs: answer.waitMs }
      if (!answer.probe) return { granted: true }
      const isStored = await this.#save()
      const isOwn = this.kept.probe?.call === call
      if (isStored && isOwn) return { granted: true }
      // Another one was first: it is asked again, as that one has left it.
      if (!isOwn) continue
      this.#step({ type: 'permit.done', call, at: this.#now(), verdict: 'none', cooling: null, underWay: 0 })
      return { granted: false, reason: 'probing', waitMs: storeAwayMs }
    }
  }

  done(call: string, end: CallEnd): BreakerChange[] {
    this.underWay -= 1
    const { underWay } = this
    const { events } = this.#step({ type: 'permit.done', call, at: this.#now(), underWay, ...end })
    if (!isEqual(this.kept, this.#stored)) void this.#save()
    return events.flatMap(changeOf)
  }

  told({ breaker, revision }: BreakerEntry): void {
    if (revision <= this.#revision) return
    this.#revision = revision
    this.#stored = breaker
    if (!isEqual(this.kept, breaker)) this.#step({ type: 'breaker.told', ...breaker })
  }

  /** What of its state is worth keeping. */
  get kept(): StoredBreaker {
    const { until, probe, cooling } = this.#snapshot.context as StoredBreaker
    return { state: this.#snapshot.value as StoredBreaker['state'], until, probe, cooling }
  }

  #now(): number {
    return Math.floor(this.#options.clock.now())
  }

  #step(message: BreakerMessage): { readonly answer: PermitAnswer; readonly events: readonly BreakerEvent[] } {
    const before = this.kept.state
    const step = this.#scope.deliver(this.#snapshot, addressOf(this.#target), message)
    this.#snapshot = step.snapshot
    const sent = step.actions.find((action) => action.kind === 'send')
    const events = step.actions.flatMap((action) =>
      action.kind === 'emit' ? [action.event as unknown as BreakerEvent] : [],
    )
    for (const { type, ...rest } of events) if (type !== 'breaker.probed') this.#options.log?.info(type, rest)
    if (this.kept.state !== before) for (const wake of [...this.waiting]) wake()
    // Only an ask is answered, and each is.
    return { answer: sent?.message as unknown as PermitAnswer, events }
  }

  async #load(): Promise<void> {
    const entry = await this.#options.store.load(this.#target)
    if (entry !== null) this.told(entry)
  }

  /** One change is stored at a time, always the last one. False when it is not stored. */
  #save(): Promise<boolean> {
    this.#saving = this.#saving.then(() => this.#write())
    return this.#saving
  }

  /** Never rejects. */
  async #write(): Promise<boolean> {
    const breaker = this.kept
    if (isEqual(breaker, this.#stored)) return true
    try {
      const revision = await this.#options.store.save(this.#target, breaker, this.#revision)
      if (revision === null) {
        await this.#load()
        return false
      }
      // It may have been heard of by now, or something later.
      if (revision > this.#revision) {
        this.#revision = revision
        this.#stored = breaker
      }
      return true
    } catch (error) {
      this.#warn(error)
      return false
    }
  }

  #warn(error: unknown): void {
    const reason = error instanceof Error ? error.message : String(error)
    this.#options.log?.warn('circuit breaker not stored', { target: this.#target, reason })
  }
}

function infoOf(target: string, breaker: StoredBreaker, now: number): BreakerInfo | null {
  const { state, until, probe, cooling } = breaker
  if (state === 'halfOpen' && probe !== null) return { target, state, until: probe.until, why: 'probing' }
  if (state !== 'closed') return { target, state: 'open', until, why: 'failed' }
  if (cooling === null || cooling.until <= now) return null
  return { target, state: 'cooling', until: cooling.until, why: cooling.why }
}

function isEqual(one: StoredBreaker, two: StoredBreaker): boolean {
  return (
    one.state === two.state &&
    one.until === two.until &&
    one.probe?.call === two.probe?.call &&
    one.probe?.until === two.probe?.until &&
    one.cooling?.until === two.cooling?.until
  )
}

/** An event as the one whose call caused it is told. */
function changeOf(event: BreakerEvent): BreakerChange[] {
  switch (event.type) {
    case 'breaker.opened':
      return [{ to: 'opened', ms: event.ms }]
    case 'breaker.closed':
      return [{ to: 'closed', ms: 0 }]
    case 'breaker.cooled':
      return [{ to: 'cooled', ms: event.ms }]
    case 'breaker.probed':
      return []
  }
}

function addressOf(target: string): string {
  return `breaker/${target}`
}
