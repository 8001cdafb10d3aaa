/**
 * The tool worker: works on calls of tools for the owners of shards, and owns no shard.
 *
 * A call comes in two steps. Its owner asks for a place, which is kept for a while; once it has recorded that this worker
 * does it, it starts the call there. So nothing runs here of which the journal does not know, and a worker that is full
 * keeps nobody waiting.
 *
 * Owns: places, what runs and what ran here, cancelling, sending outcomes until they are stored.
 * Does not own: the tools (`actors/tool.ts`), the lease (`nats-ownership.ts`), the owner's half (`nats-tools.ts`).
 *
 * - TO1 An effect is started once: with a place that was given for it, once, before the place's time is over by this
 *   process's own clock, and under the lease that gave it.
 * - TO2 What this worker said that it does not know, or was told to cancel, it does not start afterwards.
 * - TO3 For an owner of a shard with a lower term than one that was seen before, nothing is started.
 * - TO4 It answers for a call until the outcome is stored, and remembers that it was; without an outcome it answers no more.
 * - TO5 What comes, however malformed, large or many, harms nobody: it is refused and counted.
 * - TO6 A worker that leaves takes nothing new, and finishes what it has within its grace.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as pause } from 'node:timers/promises'
import type { Msg, Subscription } from '@nats-io/transport-node'
import type { z } from 'zod'
import type { Draft } from '../runtime/envelope.js'
import { isTroupeError, TroupeError, toTroupeError } from '../runtime/errors.js'
import type { Log } from '../runtime/log.js'
import type { ToolOutcome, ToolPort, ToolRequest, ToolVerified } from '../runtime/ports.js'
import { Recent } from '../runtime/recent.js'
import { outcomeAddress, remoteOutcome } from '../runtime/remote-outcome.js'
import type { NatsLink } from './nats-connection.js'
import type { Subjects } from './subjects.js'
import * as work from './tool-work.js'
import type { WorkerWork } from './worker-requests.js'

/** A tool that is offered. */
export interface OfferedTool {
  /** Calls of it at once. */
  readonly concurrency: number
}

/** What a tool worker needs. */
export interface ToolWorkerOptions {
  /** JetStream is not needed. */
  readonly link: Pick<NatsLink, 'connection'>
  readonly subjects: Subjects
  /** Name of this worker. */
  readonly worker: string
  /** Its lease: `<worker>.<epoch>`, and null while there is none. */
  readonly owner: () => string | null
  /** Runs the tools. Asked with a place, so it need not make anybody wait. */
  readonly tools: ToolPort
  /** Takes letters to shards: resolves when they are stored. */
  readonly send: (shard: string, letter: Draft) => Promise<void>
  readonly log: Log
  /** How long a place is kept, in milliseconds; at most 10,000. @default 10_000 */
  readonly placeMs?: number
}

/** Finished calls, and shards' terms, that are remembered. */
const maxRemembered = 10_000
/** Places that are given at once, over all tools. */
const maxPlaces = 1_024
const queue = 'tools'
/** When it is looked again whether everything is done. */
const lookMs = 10

/** A place for one call of a tool. */
interface Place {
  readonly id: string
  readonly tool: string
  readonly shard: string
  readonly effect: string
  readonly executor: string
  /** By the monotonic clock. */
  readonly until: number
}

/** A call that runs, or whose outcome is on its way. */
interface Running {
  readonly place: Place
  readonly controller: AbortController
}

/** Works on calls from `offer` to `close`. */
export class NatsToolWorker implements WorkerWork {
  readonly #options: ToolWorkerOptions
  readonly #tools = new Map<string, OfferedTool & { readonly subscription: Subscription }>()
  readonly #starts: Subscription
  readonly #reader: work.StartReader
  /** By effect. */
  readonly #places = new Map<string, Place>()
  readonly #running = new Map<string, Running>()
  /** Places of calls whose outcome is stored, by effect. */
  readonly #ended = new Recent<string>(maxRemembered)
  /** The highest term that was seen of each shard. */
  readonly #terms = new Recent<number>(maxRemembered)
  #refused = 0
  #leaving = false

  constructor(options: ToolWorkerOptions) {
    const { link, subjects, worker } = options
    this.#options = options
    this.#reader = new work.StartReader((id) => [...this.#places.values()].some((place) => place.id === id))
    this.#starts = link.connection.subscribe(subjects.start(worker), {
      callback: (error, message) => {
        if (error === null) this.#answer(message, (asked) => this.#take(asked))
      },
    })
  }

  /** Takes calls of a tool from now on. */
  offer(name: string, tool: OfferedTool): void {
    const { link, subjects } = this.#options
    const known = this.#tools.get(name)
    const subscription =
      known?.subscription ??
      link.connection.subscribe(subjects.tool(name), {
        queue,
        callback: (error, message) => {
          if (error === null) this.#answer(message, (asked) => this.#givePlace(name, asked))
        },
      })
    this.#tools.set(name, { ...tool, subscription })
  }

  /** Names of what is offered. */
  get tools(): readonly string[] {
    return [...this.#tools.keys()]
  }

  /** Calls at work, and outcomes on their way. */
  get running(): number {
    return this.#running.size
  }

  /** What it still has. */
  get left(): { readonly crews: number; readonly calls: number } {
    return { crews: 0, calls: this.running }
  }

  /** Questions and starts that were refused. */
  get refused(): number {
    return this.#refused
  }

  /** Takes nothing new, and waits up to `graceMs` for what runs; then that is aborted, and nobody hears of it. */
  async close(graceMs: number): Promise<void> {
    this.#leaving = true
    for (const { subscription } of this.#tools.values()) subscription.unsubscribe()
    this.#places.clear()
    const until = performance.now() + graceMs
    while (this.#running.size > 0 && performance.now() < until) await pause(lookMs)
    this.#starts.unsubscribe()
    for (const { controller } of this.#running.values()) controller.abort()
    this.#running.clear()
  }

  // What owners of shards ask, over the requests between workers.

  async leave(): Promise<void> {
    // It has no shards.
  }

  async take(shard: string): Promise<void> {
    throw new TroupeError('WORKER_UNFIT', `a tool worker does not take ${shard}`)
  }

  working(shard: string, effects: readonly string[]): readonly string[] {
    return effects.filter((effect) => {
      const key = keyOf(shard, effect)
      this.#void(key)
      return this.#running.has(key) || this.#ended.has(key)
    })
  }

  cancel(shard: string, effects: readonly string[]): void {
    for (const effect of effects) {
      const key = keyOf(shard, effect)
      this.#void(key)
      this.#running.get(key)?.controller.abort()
      this.#running.delete(key)
    }
  }

  /** The place of an effect is no more. */
  #void(key: string): void {
    const place = this.#places.get(key)
    if (place === undefined) return
    this.#places.delete(key)
    this.#reader.forget(place.id)
  }

  // Questions and their answers.

  #answer(message: Msg, answer: (message: Msg) => object | null): void {
    let said: object | null
    try {
      said = answer(message)
    } catch (error) {
      this.#refused += 1
      said = work.refusal(error)
      this.#options.log.debug('port work was refused', { reason: toTroupeError(error, 'ENVELOPE_INVALID').message })
    }
    try {
      if (said !== null && hasInbox(message)) message.respond(JSON.stringify(said))
    } catch {
      // The link is away: whoever asked is told by time.
    }
  }

  #givePlace(name: string, message: Msg): z.input<typeof work.placeAnswer> {
    const { shard, effect, term } = work.readWork(message.data, work.placeQuestion, work.maxShortBytes)
    checkInbox(message)
    this.#checkTerm(shard, term)
    const executor = this.#options.owner()
    const key = keyOf(shard, effect)
    if (executor === null || this.#leaving) return { busy: true }
    if (this.#running.has(key) || this.#ended.has(key))
      throw new TroupeError('MESSAGE_REFUSED', `${effect} of ${shard} was started here already`)
    this.#void(key)
    this.#dropOld()
    const held = [...this.#places.values(), ...[...this.#running.values()].map(({ place }) => place)]
    const taken = held.filter(({ tool }) => tool === name).length
    if (taken >= (this.#tools.get(name)?.concurrency ?? 0) || this.#places.size >= maxPlaces) return { busy: true }
    const withinMs = this.#options.placeMs ?? 10_000
    const place: Place = { id: randomUUID(), tool: name, shard, effect, executor, until: performance.now() + withinMs }
    this.#places.set(key, place)
    return { executor, place: place.id, withinMs }
  }

  #dropOld(): void {
    const now = performance.now()
    for (const [key, { until }] of this.#places) if (until <= now) this.#void(key)
  }

  #checkTerm(shard: string, term: number): void {
    const highest = this.#terms.get(shard) ?? 0
    if (term < highest) {
      throw new TroupeError('SHARD_FENCED', `${shard} has had an owner of term ${highest}: ${term} is over`)
    }
    this.#terms.delete(shard)
    this.#terms.set(shard, term)
  }

  #take(message: Msg): z.input<typeof work.startAnswer> | null {
    const start = this.#reader.take(message)
    if (start === null) return null
    checkInbox(message)
    const { shard, effect, term } = start
    const key = keyOf(shard, effect)
    // The answer was lost, and it is asked again.
    if ((this.#running.get(key)?.place.id ?? this.#ended.get(key)) === start.place) return { started: true }
    this.#checkTerm(shard, term)
    const place = this.#places.get(key)
    if (place?.id !== start.place || place.tool !== start.tool || !this.#mayStart(place))
      throw new TroupeError('MESSAGE_REFUSED', `${effect} of ${shard} has no place here, or came too late`)
    this.#void(key)
    if (start.outcome !== this.#options.subjects.mail(shard, outcomeAddress(this.#options.worker)))
      throw new TroupeError('MESSAGE_REFUSED', `${effect} of ${shard}: the outcome is to go somewhere else`)
    const running = { place, controller: new AbortController() }
    this.#running.set(key, running)
    void this.#work(key, start, running)
    return { started: true }
  }

  #mayStart({ until, executor }: Place): boolean {
    return performance.now() < until && this.#options.owner() === executor && !this.#leaving
  }

  // One call.

  /** Never rejects. */
  async #work(key: string, start: work.Start, { place, controller }: Running): Promise<void> {
    const { tools, log } = this.#options
    const { signal } = controller
    try {
      const request = this.#requestOf(start, place, signal)
      const outcome = await (start.work === 'verify' ? tools.verify(request) : tools.run(request))
      // Whoever was told to stop has nothing to tell.
      if (signal.aborted || ('status' in outcome && outcome.status === 'cancelled')) return
      await this.#send(place, outcome)
      this.#ended.set(key, place.id)
    } catch (error) {
      const { code, message } = toTroupeError(error, 'STORE_FAILED')
      if (!signal.aborted) log.error('an outcome was not sent', { shard: place.shard, code, reason: message })
    } finally {
      if (this.#running.get(key)?.controller === controller) this.#running.delete(key)
    }
  }

  async #send({ shard, effect, executor }: Place, outcome: ToolOutcome | ToolVerified): Promise<void> {
    const { send } = this.#options
    try {
      await send(shard, remoteOutcome(executor, effect, outcome))
    } catch (error) {
      if (!isTroupeError(error) || error.code !== 'ENVELOPE_TOO_LARGE') throw error
      const message = `The tool ran, but its result cannot be sent: ${error.message}`
      const instead: ToolOutcome | ToolVerified =
        'done' in outcome ? { done: true, content: message } : { status: 'failed', kind: 'unserialisable', message }
      await send(shard, remoteOutcome(executor, effect, instead))
    }
  }

  #requestOf(start: work.Start, place: Place, signal: AbortSignal): ToolRequest {
    const { shard, effect, agent, run, callId, idempotencyKey, tool, timeoutMs, data, term, owner } = start
    return {
      ...{ shard, effect, agent, runId: run, callId, idempotencyKey, tool, timeoutMs, data, term, signal },
      arguments: start.arguments,
      leaving: new AbortController().signal,
      // The last look before the tool's own code.
      mayStart: () => Promise.resolve(this.#mayStart(place)),
      progress: (value) => this.#show(owner, place, value),
    }
  }

  /** Best effort: while the link is away it is lost. */
  #show(owner: string, { shard, effect, executor }: Place, value: unknown): void {
    const { link, subjects, worker } = this.#options
    const text = JSON.stringify({ shard, effect, executor, value })
    if (!link.connection.isClosed()) link.connection.publish(subjects.progress(owner, worker), text)
  }
}

/** Nobody writes where only workers may by making this worker answer there. */
function hasInbox({ reply }: Msg): boolean {
  return /^_INBOX[._]/.test(reply ?? '')
}

function checkInbox(message: Msg): void {
  if (!hasInbox(message)) throw new TroupeError('MESSAGE_REFUSED', 'port work without an inbox for the answer')
}

function keyOf(shard: string, effect: string): string {
  return `${shard} ${effect}`
}
