/**
 * The dispatcher: gives open effects to the ports and brings their outcomes back. One for each shard.
 *
 * Owns: which effects are in flight in this process, their cancellation, the `dispatched` record of `once` calls.
 * Does not own: what is asked for (machines), what an outcome means (`edge.ts`), taking it (`shard.ts`).
 *
 * - X1 An effect is dispatched only after the commit that asked for it is durable.
 * - X2 A `once` call starts only after its `dispatched` record is durable, and not after that record's `startBy`.
 * - X3 Every dispatched effect comes back with one outcome, whatever its port does, unless it was cancelled or given away.
 * - X5 When the shard has another owner, what runs here goes on and its outcome is sent after the shard; nothing new starts.
 * - X6 What another process is to work on names it in a durable `dispatched` record first, of whatever class it is; its
 *   outcome is that process's to bring, and the shard looks after it.
 * - X4 At most `maxInFlight` effects are with the ports; the rest wait here in order.
 */
import type { ModelCall, RoundPrepare, ToolCall } from '../machines/index.js'
import { argumentsOf, textsOf, valuesAt } from './content.js'
import { readContent } from './content-read.js'
import type { Entry } from './conversation.js'
import type { Draft } from './envelope.js'
import { admit, underPermit } from './admission.js'
import type { Breakers } from './breakers.js'
import { broken, type EdgeRun, failed, type Outcome, refused, replied, toolOutcome, verified } from './edge.js'
import { isStoreTrouble, TroupeError, toTroupeError } from './errors.js'
import { runGuarded } from './guarded-tools.js'
import { placesIn, type Shown } from './handoff.js'
import type { Journal } from './journal.js'
import type { Logic } from './logic.js'
import type {
  Clock,
  ModelDelta,
  ModelPort,
  ModelRequest,
  ModelTimeouts,
  RemotePlace,
  ToolPort,
  ToolRequest,
} from './ports.js'
import { failed as roundFailed, prepareRound } from './prepare-round.js'
import type { PreparedCrew } from './prepared-crew.js'
import { type PromiseCall, rejected, resolved, runPromise } from './promise-call.js'
import { messagesIn, plannedAgent } from './round-plan.js'
import { type Effect, isPortWork, type PortEffect, type ShardState } from './state.js'

/** Effects with the ports at once, in one shard. */
export const maxInFlight = 256
/** How long after its record a `once` call may start. */
export const startWithinMs = 10_000

/** When a call is asked for again that this process was not to make any more. */
const elsewhereMs = 250
/** Waits between two tries of reading what a call needs. */
const readAgainMs = 100
const maxReadAgainMs = 5_000

/** Not begun, and this process is sure of it: it may be asked for again. */
const notStarted: Outcome = { body: { type: 'effect.interrupted', started: false }, values: [] }

const timeouts: ModelTimeouts = { connectMs: 60_000, firstTokenMs: 120_000, gapMs: 60_000, totalMs: 600_000 }
/** Without a stream many providers send not even a header before the reply is whole. */
const wholeTimeouts: ModelTimeouts = { ...timeouts, connectMs: timeouts.totalMs }

/** A crew's definition with the ports that work for it. */
export interface LiveCrew {
  readonly prepared: PreparedCrew
  readonly model: ModelPort
  readonly tools: ToolPort
  /** Live objects for the user's code. */
  readonly deps?: unknown
}

/** What every shard of a worker shares. */
export interface Ports {
  readonly clock: Clock
  /** Uniform in [0, 1); for jitter only. */
  readonly random: () => number
  /** Who may be called now. @default everybody */
  readonly breakers?: Breakers | undefined
}

/** What passes by while an effect runs: best effort, never stored. */
export type LiveEvent =
  | {
      readonly kind: 'delta'
      readonly effect: string
      readonly agent: string
      readonly run: string
      readonly delta: ModelDelta
    }
  | {
      readonly kind: 'progress'
      readonly effect: string
      readonly agent: string
      readonly run: string
      readonly callId: string
      readonly value: unknown
    }

/** What the dispatcher needs of its shard. */
export interface DispatchingShard {
  readonly id: string
  readonly journal: Journal
  readonly ports: Ports
  /** Name of this process in `dispatched` records. */
  executor(): string
  /** Higher with every owner of the shard. */
  readonly term: number
  /** Whether this process may still act for the shard. */
  owns(): boolean
  state(): ShardState
  /** The crew's live definition; null while this process has none. */
  crew(): LiveCrew | null
  /** Logic of a user's machine by its kind; null when this process does not know it. */
  logic(kind: string): Logic | null
  /** The run's `data`. */
  dataOf(run: string): Promise<unknown>
  /** Takes an outcome or a `dispatched` record; resolves when it is durable. */
  post(draft: Draft): Promise<unknown>
  /** Sends an outcome to wherever the shard is now. */
  send(draft: Draft): Promise<void>
  /** Whether anybody watches the run live. */
  watched(): boolean
  show(event: LiveEvent): void
  /** The executor that its `dispatched` record names works on an effect now. */
  given(effect: string): void
  /** Something that must not happen did; the shard stops with it. */
  stop(reason: TroupeError): void
}

/**
 * An effect with the part of its conversation that it names, taken when its commit had become durable: the state may be
 * ahead by commits that drop the conversation and are not durable yet.
 */
interface Given {
  readonly effect: PortEffect
  readonly entries: readonly Entry[]
}

/** Gives effects to ports. */
export class Dispatcher {
  readonly #shard: DispatchingShard
  readonly #inFlight = new Map<string, AbortController>()
  readonly #waiting: Given[] = []
  readonly #leaving = new AbortController()
  #closed = false
  #draining = false
  #departed = false

  constructor(shard: DispatchingShard) {
    this.#shard = shard
  }

  /** Whether this process works on an effect, or will. */
  knows(effect: string): boolean {
    return this.runs(effect) || this.#waiting.some((waiting) => waiting.effect.id === effect)
  }

  /** Whether a port here has an effect, or its outcome is not delivered yet. */
  runs(effect: string): boolean {
    return this.#inFlight.has(effect)
  }

  get size(): number {
    return this.#inFlight.size + this.#waiting.length
  }

  /** Takes effects of a durable commit. */
  dispatch(effects: readonly Effect[]): void {
    const work = effects.filter(isPortWork)
    if (work.length === 0) return
    this.#waiting.push(...work.map((effect) => ({ effect, entries: this.#entriesOf(effect) })))
    this.pump()
  }

  /** Starts what may start: called when the crew's definition has come. */
  pump(): void {
    if (this.#closed || this.#draining) return
    while (this.#inFlight.size < maxInFlight) {
      const [given] = this.#waiting
      if (given === undefined || (this.#shard.crew() === null && !runsAlone(given.effect))) return
      this.#waiting.shift()
      this.#start(given)
    }
  }

  /** What a model is sent, or the message that has a tool's arguments. */
  #entriesOf({ body, length }: PortEffect): readonly Entry[] {
    if (body.type === 'promise.call') return this.#entriesRead(body, length)
    const entries = this.#shard.state().logs.get(body.conversation)?.entries ?? []
    return body.type === 'model.call' || body.type === 'round.prepare'
      ? entries.slice(0, length)
      : entries.slice(body.position, body.position + 1)
  }

  /** What a user's machine is to be told: a task, or what was staged of an answer. */
  #entriesRead({ conversation, reads }: PromiseCall, length: number): readonly Entry[] {
    const log = this.#shard.state().logs.get(conversation)
    if (reads === undefined || log === undefined) return []
    if ('task' in reads) return log.entries.slice(0, length)
    const staged = log.staged.get(reads.index)
    return staged === undefined ? [] : [staged]
  }

  /** Nobody waits for these any more. */
  cancel(effects: readonly string[]): void {
    for (const id of effects) {
      this.#inFlight.get(id)?.abort()
      const at = this.#waiting.findIndex(({ effect }) => effect.id === id)
      if (at >= 0) this.#waiting.splice(at, 1)
    }
  }

  /** Starts nothing more. Returns the effects that wait, by id: they were never with a port. */
  drain(): string[] {
    this.#draining = true
    return this.#waiting.map(({ effect }) => effect.id)
  }

  /** Effects with the ports. */
  get running(): number {
    return this.#inFlight.size
  }

  /** The shard has another owner, or will have: outcomes follow it. */
  depart(): void {
    this.#draining = true
    this.#departed = true
    this.#leaving.abort()
  }

  /** Aborts everything; outcomes that still come in are for a closed shard. */
  close(): void {
    this.#closed = true
    this.#waiting.length = 0
    for (const controller of this.#inFlight.values()) controller.abort()
  }

  #start(given: Given): void {
    const controller = new AbortController()
    this.#inFlight.set(given.effect.id, controller)
    void this.#carryOut(given, controller.signal)
  }

  /** Never rejects. */
  async #carryOut({ effect, entries }: Given, signal: AbortSignal): Promise<void> {
    const { body } = effect
    let outcome: Outcome | null
    try {
      if (body.type === 'model.call') outcome = await this.#model(effect, body, entries, signal)
      else if (body.type === 'promise.call') outcome = await this.#promise(effect, body, entries, signal)
      else if (body.type === 'round.prepare') outcome = await this.#round(effect, body, entries, signal)
      else outcome = await this.#tool(effect, body, entries, signal)
    } catch (error) {
      outcome = this.#break(effect, error)
    }
    try {
      // Out of the table only when the outcome is durable: until then this process knows the effect.
      if (outcome !== null && !this.#closed) await this.#deliver(draftOf(effect, outcome))
    } catch {
      // The shard stopped or is closed: the effect stays open for the next owner.
    }
    this.#inFlight.delete(effect.id)
    this.pump()
  }

  async #deliver(draft: Draft): Promise<void> {
    try {
      if (!this.#departed) return void (await this.#shard.post(draft))
    } catch (error) {
      if (!this.#hasDeparted()) throw error
    }
    await this.#shard.send(draft)
  }

  #break(effect: PortEffect, error: unknown): Outcome | null {
    const reason = toTroupeError(error, 'ACTOR_FAILED')
    if (reason.code === 'JOURNAL_CORRUPT' || reason.code === 'BLOB_MISSING') {
      this.#shard.stop(reason)
      return null
    }
    if (effect.body.type === 'promise.call') return rejected(reason)
    if (effect.body.type === 'round.prepare') return roundFailed(reason.code, reason.message)
    return broken(reason.code, reason.message, effect.body.type, effect.body)
  }

  async #promise(
    effect: Effect,
    call: PromiseCall,
    entries: readonly Entry[],
    signal: AbortSignal,
  ): Promise<Outcome | null> {
    const { journal, id: shard } = this.#shard
    const { reads } = call
    if (reads !== undefined) {
      const dataOf = (run: string) => this.#shard.dataOf(run)
      const reading = { journal, shard, entries, crew: this.#shard.crew()!.prepared, dataOf }
      const read = await this.#read(signal, async () => resolved(await readContent(reads, reading)))
      return read ?? (signal.aborted ? null : notStarted)
    }
    const logic = this.#shard.logic(call.kind)
    if (logic === null) throw new TroupeError('MACHINE_UNKNOWN', `there is no logic ${call.kind} any more`)
    if (!(await this.#mayStart(effect, call, signal))) return signal.aborted ? null : notStarted
    const outcome = await runPromise(logic, call, effect.from, signal)
    return signal.aborted ? null : outcome
  }

  async #round(
    effect: Effect,
    call: RoundPrepare,
    entries: readonly Entry[],
    signal: AbortSignal,
  ): Promise<Outcome | null> {
    const shard = this.#shard
    const live = shard.crew()!
    const agent = live.prepared.agents.get(call.agent)
    if (agent === undefined) throw new TroupeError('CREW_INVALID', `the crew has no agent ${call.agent} any more`)
    const places = placesIn(entries.length, call.view, agent.system !== null)
    const seen = places?.map((at) => entries[at]!) ?? entries
    const texts = await this.#read(signal, () => textsOf(shard.journal, shard.id, seen))
    const run = await this.#read(signal, () => this.#run(call.run))
    if (texts === null || run === null || !(await this.#mayStart(effect, { effect: 'pure' }, signal)))
      return signal.aborted ? null : notStarted
    const shown = shownAt(texts, places)
    const outcome = await prepareRound(call, live, { shown, data: run.data, clock: shard.ports.clock, signal })
    return signal.aborted ? null : outcome
  }

  async #run(id: string): Promise<Omit<EdgeRun, 'shown'>> {
    return { data: await this.#shard.dataOf(id), random: this.#shard.ports.random }
  }

  async #model(
    effect: Effect,
    call: ModelCall,
    entries: readonly Entry[],
    signal: AbortSignal,
  ): Promise<Outcome | null> {
    const shard = this.#shard
    const live = shard.crew()
    const defined = live?.prepared.agents.get(call.agent)
    if (live === null || defined === undefined)
      throw new TroupeError('CREW_INVALID', `the crew has no agent ${call.agent} any more`)
    const agent = plannedAgent(defined, call.plan)
    const places = placesIn(entries.length, call.view, agent.system !== null)
    const seen = places?.map((at) => entries[at]!) ?? entries
    const texts = await this.#read(signal, () => textsOf(shard.journal, shard.id, seen))
    const beside = call.plan?.beside === undefined ? [] : await this.#read(signal, () => this.#beside(call))
    if (texts === null || beside === null) return signal.aborted ? null : notStarted
    const shown = () => shownAt(texts, places)
    const whole = () => (agent.system === null ? texts : [agent.system, ...texts])
    const messages = call.plan === undefined ? whole() : messagesIn(agent, shown(), call.plan, beside)
    const { breakers } = shard.ports
    const id = `${shard.id}.${effect.id}`
    const signals = [signal, this.#leaving.signal]
    const { deployment, skipped } = await admit(breakers, {
      ...{ call: id, deployments: call.deployments, groups: agent.groups, signals, mayCall: () => shard.owns() },
    })
    if (deployment === null && signal.aborted) return null
    // Nothing was asked of anybody, so nothing is to be paid for: whoever has the crew now asks again.
    if (deployment === null && (this.#hasDeparted() || !shard.owns()))
      return refused(
        [{ deployment: call.deployments[0]!, reason: 'elsewhere', waitMs: elsewhereMs }],
        call,
        shard.ports,
      )
    if (deployment === null) return refused(skipped, call, shard.ports)
    const watched = shard.watched()
    const request: ModelRequest = {
      effect: effect.id,
      deployment,
      messages,
      tools: agent.schemas,
      responseFormat: agent.format,
      settings: agent.agent.settings,
      maxOutputTokens: call.maxOutputTokens,
      timeouts: watched ? timeouts : wholeTimeouts,
      stream: watched,
      signal,
      onDelta: watched
        ? (delta) => shard.show({ kind: 'delta', effect: effect.id, agent: call.agent, run: call.run, delta })
        : undefined,
    }
    const { reply, changes } = await underPermit(breakers, deployment, id, () => live.model.call(request))
    const admission = { deployment, skipped, changes }
    if (!reply.ok) return failed(reply, admission, call, live.prepared, shard.ports)
    // The reply has been paid for: it is kept for as long as it takes to check it.
    const run = await this.#read(null, () => this.#run(call.run))
    return run === null ? null : replied(reply, admission, call, live.prepared, { ...run, shown })
  }

  /** What a round says beside its conversation. */
  #beside({ plan }: ModelCall): Promise<readonly string[]> {
    return valuesAt(this.#shard.journal, this.#shard.id, plan!.sequence)
  }

  async #tool(effect: Effect, call: ToolCall, entries: readonly Entry[], signal: AbortSignal): Promise<Outcome | null> {
    const shard = this.#shard
    const { tools } = shard.crew()!
    const given = await this.#read(signal, async () => ({
      run: await this.#run(call.run),
      text: await argumentsOf(shard.journal, shard.id, call, entries),
    }))
    if (given === null) return signal.aborted ? null : notStarted
    const request: ToolRequest = {
      effect: effect.id,
      agent: call.agent,
      shard: shard.id,
      runId: call.run,
      callId: call.callId,
      idempotencyKey: `${shard.id}.${call.key}`,
      tool: call.tool,
      arguments: given.text,
      timeoutMs: call.timeoutMs,
      data: given.run.data,
      signal,
      mayStart: (remote) => this.#mayStart(effect, call, signal, remote),
      term: shard.term,
      leaving: this.#leaving.signal,
      progress: (value) =>
        shard.show({
          kind: 'progress',
          effect: effect.id,
          agent: call.agent,
          run: call.run,
          callId: call.callId,
          value,
        }),
    }
    const outcome = await (call.type === 'tool.verify'
      ? tools.verify(request)
      : runGuarded(tools, shard.ports.breakers, this.#serverOf(call), request))
    if ('done' in outcome) return verified(outcome)
    if (outcome.status === 'given') {
      shard.given(effect.id)
      return null
    }
    if (outcome.status === 'dropped' && !signal.aborted) return notStarted
    const brought = toolOutcome(outcome, call, shard.ports)
    // Only who was told to stop may bring nothing.
    if (brought === null && !signal.aborted) throw new TroupeError('ACTOR_FAILED', 'the tool port brought no outcome')
    return brought
  }

  /**
   * Reads what a call needs, for as long as the store is away. Null when nobody waits for it any more.
   * @param signal of a call that has not begun: it is given up when the shard is left; null for one that has
   */
  async #read<T>(signal: AbortSignal | null, read: () => Promise<T>): Promise<T | null> {
    const { clock } = this.#shard.ports
    for (let delayMs = readAgainMs; ; delayMs = Math.min(maxReadAgainMs, delayMs * 2)) {
      try {
        return await read()
      } catch (error) {
        if (!isStoreTrouble(error)) throw error
        await new Promise<void>((resolve) => clock.after(delayMs, resolve))
      }
      if (this.#closed || signal?.aborted === true || (signal !== null && this.#departed)) return null
    }
  }

  #serverOf({ agent, tool }: ToolCall): string | undefined {
    return this.#shard.crew()?.prepared.agents.get(agent)?.tools.get(tool)?.server
  }

  /** Writes the `dispatched` record of a `once` call or a remote one, then looks whether it may still start. */
  async #mayStart(
    effect: Effect,
    call: Pick<ToolCall, 'effect'>,
    signal: AbortSignal,
    { executor, withinMs }: RemotePlace = { executor: this.#shard.executor(), withinMs: startWithinMs },
  ): Promise<boolean> {
    if (signal.aborted || this.#closed || this.#departed) return false
    if (call.effect !== 'once' && executor === this.#shard.executor()) return true
    const { clock } = this.#shard.ports
    const startBy = clock.now() + withinMs
    const started = clock.monotonic()
    await this.#shard.post({
      from: 'shard/self',
      to: 'shard/self',
      cause: effect.id,
      body: { type: 'effect.dispatched', effect: effect.id, executor, startBy },
      values: [],
    })
    const inTime = clock.monotonic() - started < withinMs
    const mayAct = inTime && !this.#isClosed() && !this.#hasDeparted() && this.#shard.owns()
    return mayAct && !signal.aborted && this.#shard.state().effects.has(effect.id)
  }

  #hasDeparted(): boolean {
    return this.#departed
  }

  #isClosed(): boolean {
    return this.#closed
  }
}

/** Messages with their places in the conversation. @param places null: it is all of them */
function shownAt(texts: readonly string[], places: readonly number[] | null): Shown[] {
  return texts.map((text, index) => ({ text, at: places?.[index] ?? index }))
}

/** A promise's code is known without the crew's definition: its machine could not have been rebuilt. */
function runsAlone({ body }: Effect): boolean {
  return body.type === 'promise.call' && body.reads === undefined
}

function draftOf(effect: Effect, outcome: Outcome): Draft {
  const from = `port/${effect.body.type.split('.')[0] ?? ''}`
  return { from, to: effect.from, cause: effect.id, body: outcome.body, values: outcome.values }
}
