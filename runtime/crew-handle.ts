/**
 * The handle of a live crew: give it tasks, command it, wait for what comes of them.
 *
 * Owns: run keys, the wait for a run's end, its result, its events.
 * Does not own: the streams made of them (`run.ts`), the work itself (`worker.ts`, `shard.ts`).
 *
 * - R1 A run has a key: unfinished, it goes on; finished, its stored result is returned; a new one starts only under a
 *   new key.
 * - R3 Somebody who waits for a run keeps the process alive and the shard in memory; leaving cancels nothing.
 */
import { randomUUID } from 'node:crypto'
import {
  type AnswerOptions,
  approval,
  type ApproveOptions,
  denial,
  type PendingAsk,
  pendingAsks,
  respond,
} from './asks.js'
import { crewAddress } from './commit.js'
import { textsOf, valuesAt } from './content.js'
import { type Entry, textOf } from './conversation.js'
import { outputIn } from './flow-machine.js'
import type { LiveCrew } from './dispatcher.js'
import { taskMessages } from './edge.js'
import { type ErrorCode, TroupeError } from './errors.js'
import { type Cursor, isAfter, streamEvents, type TroupeEvent } from './events.js'
import { estimateTokens } from './prepared-crew.js'
import { poolAddress } from './pool-books.js'
import type { PlacedEvent } from './record.js'
import { cancelOn, type ChatMessage, Run, type RunResult } from './run.js'
import { dataText, messagesOf, type RunInput, type StartOptions } from './run-input.js'
import type { Shard } from './shard.js'
import type { RunState } from './runs.js'
import type { ShardState } from './state.js'
import type { BudgetLimits } from './budget.js'
import { raise, type RaiseOptions } from './raising.js'
import { steer, type SteerInput, type SteerOptions } from './steering.js'
import { machineAddress } from './user-actors.js'
import type { Worker } from './worker.js'

/** Runs of one crew that may wait. */
export const maxWaitingRuns = 100
/** Watches and takes nothing. */
const nobody = { take: () => undefined, show: () => undefined }

/** Holds the process while somebody waits in it: our own timers do not. */
export function stayAlive(): () => void {
  const timer = setInterval(() => undefined, 2 ** 30)
  return () => clearInterval(timer)
}

/** Tells a crew what its user wants; resolves when that is durable. */
export async function command(active: Promise<Shard>, body: { type: string; run?: string }): Promise<void> {
  const shard = await active
  if (body.type !== 'crew.cancel' && shard.state.actors.has(machineAddress))
    throw new TroupeError('CREW_INVALID', `${shard.id} is a machine: there are no agents that could hold`)
  if (shard.state.actors.has(poolAddress))
    throw new TroupeError('CREW_INVALID', `${shard.id} is a budget: nothing runs there`)
  await shard.post({ from: 'client/local', to: crewAddress, cause: '', body, values: [] }, true)
}

/** A live crew. */
export class CrewHandle<Output = unknown> {
  readonly id: string
  readonly #worker: Worker
  readonly #live: LiveCrew
  readonly #release: () => void

  /** @internal Made by `runtime.spawn`. */
  constructor(id: string, worker: Worker, live: LiveCrew) {
    this.id = id
    this.#worker = worker
    this.#live = live
    this.#release = worker.pin(id)
  }

  /** @internal Lets the shard leave memory. */
  release(): void {
    this.#release()
  }

  /** @internal Hash of the definition that the crew was spawned with. */
  get definition(): string {
    return this.#live.prepared.hash
  }

  /**
   * Gives the crew a task. Runs of a crew go one after the other.
   *
   * Refusals reject `run.id` and `run.result`: `INPUT_INVALID`, `RUNS_FULL`, `MAILBOX_FULL`, `STORE_FULL`, `SHARD_STOPPED`.
   */
  start(input: RunInput, options: StartOptions = {}): Run<Output> {
    const key = options.key ?? randomUUID()
    const started = this.#start(key, input, options)
    const run = new Run<Output>({
      started,
      result: (id) => this.#result(id),
      events: (id, after, rest) => this.#events(id, after, rest),
      cancel: (id) => this.cancel(id),
      lead: this.#live.prepared.crew.lead,
      watch: () => this.#worker.hub.subscribe(this.id, nobody),
    })
    if (options.signal !== undefined) cancelOn(options.signal, run)
    return run
  }

  /** A run by its id. @throws TroupeError `RUN_UNKNOWN` by way of the handle's promises. */
  run(id: string): Run<Output> {
    return new Run<Output>({
      started: this.#shard(has(id)).then((shard) => knownRun(shard, id).run),
      result: (known) => this.#result(known),
      events: (known, after, rest) => this.#events(known, after, rest),
      cancel: (known) => this.cancel(known),
      lead: this.#live.prepared.crew.lead,
    })
  }

  /** The run that is going on, or undefined. */
  async current(): Promise<Run<Output> | undefined> {
    const [running] = (await this.#shard()).state.runs.unfinished.values()
    return running === undefined ? undefined : this.run(running.run)
  }

  /** Gives a task and waits for its result. @throws TroupeError with the code that ended the run. */
  ask(input: RunInput, options: StartOptions = {}): Promise<RunResult<Output>> {
    return this.start(input, options).result
  }

  /** @internal The result of a run; waits until the signal ends the wait with `RUNTIME_CLOSED`. The run goes on. */
  result(id: string, signal: AbortSignal): Promise<RunResult<Output>> {
    return this.#result(id, signal)
  }

  /** Holds every agent before its next model call. Resolves when that is durable. */
  pause(): Promise<void> {
    return command(this.#shard(), { type: 'crew.pause' })
  }

  /** Lets paused agents go on. */
  resume(): Promise<void> {
    return command(this.#shard(), { type: 'crew.resume' })
  }

  /** What it waits for a person to say. */
  async asks(): Promise<readonly PendingAsk[]> {
    return pendingAsks(await this.#shard(), this.#worker.journal)
  }

  /** As `Runtime.approve`. */
  approve(ask: string, options: ApproveOptions = {}): Promise<void> {
    return respond((knows) => this.#shard(knows), ask, approval(options), options.by)
  }

  /** As `Runtime.deny`. */
  deny(ask: string, reason?: string, { by }: AnswerOptions = {}): Promise<void> {
    return respond((knows) => this.#shard(knows), ask, denial(reason), by)
  }

  /** As `Runtime.answer`. */
  answer(ask: string, text: string, { by }: AnswerOptions = {}): Promise<void> {
    return respond((knows) => this.#shard(knows), ask, { decision: 'answered', text }, by)
  }

  /** Ends the current run, or the given one, with `RUN_CANCELLED`. */
  cancel(run?: string): Promise<void> {
    return command(this.#shard(), run === undefined ? { type: 'crew.cancel' } : { type: 'crew.cancel', run })
  }

  /** Says something to the lead, or to another agent at work. @throws TroupeError `INPUT_INVALID`, `STEER_REFUSED`. */
  steer(input: SteerInput, options: SteerOptions = {}): Promise<void> {
    return steer(this.#shard(), input, options)
  }

  /** As `Runtime.raise`. */
  raise(to: BudgetLimits, options: RaiseOptions = {}): Promise<void> {
    return raise(this.#shard(), to, options)
  }

  /** Gives the crew to another worker, or to whomever it falls. Resolves with that one's name. */
  move(to?: string): Promise<string> {
    return this.#worker.move(this.id, to ?? null)
  }

  /** The shard with this crew's definition: another instance may have taken its place in memory. @param knows as in `Worker.knowing` */
  async #shard(knows: (state: ShardState) => boolean = () => true): Promise<Shard> {
    const shard = await this.#worker.knowing(this.id, knows)
    if (shard.crew !== this.#live && shard.stopped === null && shard.crew === null) await shard.define(this.#live)
    return shard
  }

  async #start(key: string, input: RunInput, options: StartOptions): Promise<string> {
    const { messages, text } = messagesOf(input)
    if (this.#live.prepared.data.pool !== undefined)
      throw new TroupeError('CREW_INVALID', `${this.id} is a budget, and takes no tasks`)
    if (key.length === 0 || key.length > 256)
      throw new TroupeError('INPUT_INVALID', 'a run key has 1 to 256 characters')
    const data = options.data === undefined ? null : dataText(options.data)
    const shard = await this.#shard()
    const same = shard.state.runs.withKey(key)
    if (same !== undefined && shard.isDurable(same.sequence)) return same.run
    const known = shard.starting.get(key)
    if (known !== undefined) return known
    checkWaiting(shard)
    const starting = this.#task(shard, key, { messages, text, data }, options).finally(() => shard.starting.delete(key))
    shard.starting.set(key, starting)
    return starting
  }

  async #task(
    shard: Shard,
    key: string,
    { messages, text, data }: { messages: readonly string[]; text: string; data: string | null },
    options: StartOptions,
  ): Promise<string> {
    const { prepared } = this.#live
    const { all, count, systems } = await taskMessages(prepared, messages, text, options.data ?? null)
    const tokens = estimateTokens(all.reduce((sum, message) => sum + message.length, 0))
    const task = { type: 'crew.task', tokens, messages: count, key, data: data !== null }
    const body = systems === null ? task : { ...task, systems }
    const values = data === null ? all : [...all, data]
    const commit = await shard.post({ from: 'client/local', to: crewAddress, cause: '', body, values }, true)
    return `r${commit.sequence}`
  }

  async #result(id: string, signal?: AbortSignal): Promise<RunResult<Output>> {
    const shard = await this.#shard(has(id))
    const finished = await this.#finished(shard, knownRun(shard, id), signal)
    const end = finished.end!
    if (end.code !== null) {
      throw new TroupeError(end.code as ErrorCode, end.reason, {
        details: {
          runId: id,
          crewId: this.id,
          costNanoUsd: end.spent.nanoUsd,
          tokens: end.spent.tokens,
          modelCalls: end.spent.modelCalls,
        },
      })
    }
    const entries = shard.state.logs.get(finished.conversation)?.entries.slice(finished.skip, finished.until) ?? []
    const texts = await textsOf(this.#worker.journal, this.id, entries)
    // A system message that `instructions` made is the first of a run; one of the caller's own stays.
    const made = typeof this.#live.prepared.crew.agents[this.#live.prepared.crew.lead]?.instructions === 'function'
    const messages = texts.slice(made ? 1 : 0).map((text) => JSON.parse(text) as ChatMessage)
    const { nanoUsd, ...usage } = end.spent
    return {
      runId: id,
      output: (await this.#output(entries, texts)) as Output,
      messages,
      usage,
      cost: { usd: nanoUsd / 1e9, nanoUsd },
      finishReason: end.finish,
      rounds: end.rounds,
    }
  }

  /** What the last message says; behind several agents at once what each of them says, by its name. */
  async #output(entries: readonly Entry[], texts: readonly string[]): Promise<unknown> {
    const { crew } = this.#live.prepared
    if (crew.flowMachine !== undefined && texts.length > 0) return outputIn(texts.at(-1)!)
    const { agents, join } = crew.flow?.stages.at(-1) ?? { agents: [crew.lead], join: 'all' }
    // Whoever these have handed over to answers as they would.
    const last = entries.length - (join === 'all' ? agents.length : 1)
    const said = await Promise.all(entries.slice(last).map((entry, at) => this.#said(entry, texts[last + at]!, agents)))
    if (agents.length === 1 || join === 'first') return said[0]
    return Object.fromEntries(agents.map((agent, at) => [agent, said[at]]))
  }

  /** An answer: text, or the value that its agent's `output` made of it. */
  async #said({ sequence }: Entry, text: string, agents: readonly string[]): Promise<unknown> {
    const typed = agents.some((name) => this.#live.prepared.agents.get(name)?.agent.output !== undefined)
    const value = typed ? (await valuesAt(this.#worker.journal, this.id, sequence))[1] : undefined
    return value === undefined ? textOf(text) : (JSON.parse(value) as unknown)
  }

  /** Waits for the run's end. */
  async #finished(shard: Shard, run: RunState, signal?: AbortSignal): Promise<RunState> {
    if (shard.hasEnded(run.run)) return shard.state.runs.get(run.run) ?? run
    const unpin = this.#worker.pin(this.id)
    const leave = stayAlive()
    let unsubscribe = (): void => undefined
    try {
      return await new Promise<RunState>((resolve, reject) => {
        const look = (): void => {
          const now = shard.state.runs.get(run.run)
          const reason = signal?.aborted === true ? nobodyWaits(run.run) : this.#ended(shard, run.run)
          if (now !== undefined && shard.hasEnded(run.run)) resolve(now)
          else if (reason !== null) reject(reason)
        }
        const unwatch = this.#worker.onEnd(this.id, look)
        signal?.addEventListener('abort', look)
        unsubscribe = () => {
          unwatch()
          signal?.removeEventListener('abort', look)
        }
      })
    } finally {
      unsubscribe()
      leave()
      unpin()
    }
  }

  /** Why nothing more will come of a run here; null while it goes on. */
  #ended(shard: Shard, runId: string): TroupeError | null {
    const { stopped } = shard
    if (stopped === null && !this.#worker.closed) return null
    if (stopped === null) {
      const message = `the runtime was closed before ${runId} ended; it goes on when ${this.id} is spawned again`
      return new TroupeError('RUNTIME_CLOSED', message, { details: { runId } })
    }
    if (stopped.code === 'SHARD_FENCED')
      return new TroupeError('SHARD_ELSEWHERE', `${this.id} went to another worker`, {
        retryable: true,
        cause: stopped,
      })
    return new TroupeError('SHARD_STOPPED', `${this.id} stopped: ${stopped.code}: ${stopped.message}`, {
      cause: stopped,
      details: { runId, reason: stopped.code },
    })
  }

  async *#events(
    id: string,
    after: Cursor | null,
    options: { live: boolean; signal?: AbortSignal | undefined },
  ): AsyncGenerator<TroupeEvent, void, void> {
    const shard = await this.#shard(has(id))
    const run = knownRun(shard, id)
    // Which of the crew's events are this run's shows at its start: reading begins there, whatever the cursor.
    let mine = false
    const is = ({ event }: PlacedEvent, type: string) => event.type === type && event['run'] === id
    const isOther = ({ event }: PlacedEvent) => event.type.startsWith('run.') && event['run'] !== id
    const unpin = this.#worker.pin(this.id)
    const leave = stayAlive()
    try {
      yield* streamEvents({
        shard: this.id,
        after: { sequence: run.sequence, index: -1 },
        journal: this.#worker.journal,
        hub: this.#worker.hub,
        isLast: (placed) => is(placed, 'run.finished'),
        wants: (placed) => {
          if (is(placed, 'run.started')) mine = true
          const isMine = (mine && !isOther(placed)) || is(placed, 'run.queued') || is(placed, 'run.finished')
          return isMine && (after === null || isAfter(placed, after))
        },
        wantsLive: options.live ? (event) => event.run === id : null,
        now: () => Date.now(),
        ended: () => this.#ended(shard, id),
        signal: options.signal,
      })
    } finally {
      leave()
      unpin()
    }
  }
}

function nobodyWaits(runId: string): TroupeError {
  return new TroupeError('RUNTIME_CLOSED', `nobody waits for ${runId} any more`, { details: { runId } })
}

/** Refuses a task when enough wait, those included that are not in the journal yet. @throws TroupeError `RUNS_FULL`. */
function checkWaiting(shard: Shard): void {
  const { runs } = shard.state
  const coming = [...shard.starting.keys()].filter((key) => runs.withKey(key) === undefined).length
  if (runs.unfinished.size + coming > maxWaitingRuns) {
    throw new TroupeError('RUNS_FULL', `${shard.id}: ${maxWaitingRuns} runs wait already`, { retryable: true })
  }
}

function has(run: string): (state: ShardState) => boolean {
  return ({ runs }) => runs.has(run)
}

function knownRun(shard: Shard, id: string): RunState {
  const run = shard.state.runs.get(id)
  if (run === undefined) throw new TroupeError('RUN_UNKNOWN', `${shard.id} has no run ${id}`)
  return run
}
