/**
 * The runtime as its user sees it: spawn crews, give them tasks, look at them.
 *
 * Owns: handles of crews and runs, run keys, results.
 * Does not own: the composition of ports (`index.ts`), the work itself (`worker.ts`, `shard.ts`).
 *
 * - R1 A run has a key: unfinished, it goes on; finished, its stored result is returned; a new one starts only under a
 *   new key.
 * - R2 Bad input is refused with a code before anything is journalled.
 */
import { randomUUID } from 'node:crypto'
import { z } from 'zod'
import { contentHash } from './codec.js'
import { crewAddress } from './commit.js'
import { textsOf, valuesAt } from './content.js'
import { textOf } from './conversation.js'
import type { Agent, Crew } from './define.js'
import { toCrew } from './define.js'
import type { LiveCrew } from './dispatcher.js'
import { checkId } from './envelope.js'
import { instructionsOf } from './edge.js'
import { type ErrorCode, TroupeError, toTroupeError } from './errors.js'
import { type Cursor, isAfter, streamEvents, type TroupeEvent } from './events.js'
import type { ShardHead } from './journal.js'
import { estimateTokens } from './prepared-crew.js'
import { fromRecord, type PlacedEvent, type RecordedCommit } from './record.js'
import { type ChatMessage, Run, type RunResult } from './run.js'
import type { Shard } from './shard.js'
import type { RunState } from './state.js'
import type { Worker } from './worker.js'

/** Runs of one crew that may wait. */
export const maxWaitingRuns = 100
/** Largest input of a run, in characters of JSON. */
const maxInput = 16 * 1_048_576

/** A piece of a message. */
export type Part =
  | { readonly type: 'text'; readonly text: string }
  /** `url` may be a `data:` URL. */
  | { readonly type: 'image'; readonly url: string }
  /** A file as base64 with its media type. */
  | { readonly type: 'file'; readonly name: string; readonly mediaType: string; readonly data: string }

/** A task: text, parts, or whole messages in the OpenAI shape. */
export type RunInput = string | readonly Part[] | { readonly messages: readonly ChatMessage[] }

/** How to start a run. */
export interface StartOptions {
  /** JSON that the run's tools and instructions see; journalled. */
  readonly data?: unknown
  /** The same key names the same run. @default a new one */
  readonly key?: string
  /** Cancels the run. Leaving a stream does not. */
  readonly signal?: AbortSignal
}

/** How to spawn a crew. */
export interface SpawnOptions {
  /** `^[A-Za-z0-9_-]{1,64}$`. @default the crew's name */
  readonly id?: string
  /** Go on although this code decides otherwise than the code that wrote the journal. @default false */
  readonly acceptUpgrade?: boolean
}

/** A crew in the store, as `list` and `show` tell it. */
export interface CrewInfo {
  readonly id: string
  /** Commits so far. */
  readonly sequence: number
  readonly openEffects: number
  /** Epoch milliseconds; null when no timer is set. */
  readonly nextDueAt: number | null
}

/** A run, as `show` tells it. */
export interface RunInfo {
  readonly runId: string
  readonly key: string
  readonly status: RunState['status']
  readonly code: string | null
  readonly reason: string
  readonly rounds: number
  readonly costUsd: number
  readonly tokens: number
}

/** Everything `show` tells. */
export interface CrewDetails extends CrewInfo {
  readonly crew: string
  readonly actors: readonly { readonly address: string; readonly state: string; readonly waitsFor: string | null }[]
  readonly runs: readonly RunInfo[]
  readonly stopped: { readonly code: ErrorCode; readonly reason: string } | null
  /** Its agents hold before their next model call, until `resume`. */
  readonly paused: boolean
}

const part = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('text'), text: z.string() }),
  z.strictObject({ type: z.literal('image'), url: z.string().regex(/^(https?|data):/) }),
  z.strictObject({ type: z.literal('file'), name: z.string(), mediaType: z.string(), data: z.string() }),
])
const chatMessage = z.looseObject({ role: z.enum(['system', 'developer', 'user', 'assistant', 'tool']) })
const runInput = z.union([z.string(), z.array(part).min(1), z.strictObject({ messages: z.array(chatMessage).min(1) })])

/** The messages of a task as JSON text, and what of it is text. @throws TroupeError `INPUT_INVALID`. */
export function messagesOf(input: RunInput): { readonly messages: string[]; readonly text: string } {
  const checked = runInput.safeParse(input)
  if (!checked.success) {
    const [issue] = checked.error.issues
    throw new TroupeError(
      'INPUT_INVALID',
      `the input is not text, parts or messages: ${issue?.path.map(String).join('.') ?? ''} ${issue?.message ?? ''}`,
    )
  }
  const given = checked.data
  const messages =
    typeof given === 'string' ? [user(given)] : Array.isArray(given) ? [user(given.map(toContent))] : given.messages
  const texts = messages.map((message) => JSON.stringify(message))
  if (texts.reduce((sum, text) => sum + text.length, 0) > maxInput) {
    throw new TroupeError('ENVELOPE_TOO_LARGE', `the input has more than ${maxInput} characters`)
  }
  return { messages: texts, text: texts.map(textOf).join('\n') }
}

function user(content: unknown): ChatMessage {
  return { role: 'user', content }
}

function toContent(given: Part): unknown {
  if (given.type === 'text') return given
  if (given.type === 'image') return { type: 'image_url', image_url: { url: given.url } }
  return { type: 'file', file: { filename: given.name, file_data: `data:${given.mediaType};base64,${given.data}` } }
}

/** What `createRuntime` builds a runtime from. */
export interface RuntimeParts {
  readonly worker: Worker
  /** Prepares a crew with the ports of this runtime. */
  readonly bind: (crew: Crew) => LiveCrew
  /** Releases what the parts hold. */
  readonly release: () => Promise<void>
}

/** A process's door to its crews. Close it when done: `await using` does. */
export class Runtime {
  readonly #parts: RuntimeParts
  readonly #crews = new Map<string, CrewHandle<unknown>>()
  #closed: Promise<void> | null = null

  /** @internal Made by `createRuntime`. */
  constructor(parts: RuntimeParts) {
    this.#parts = parts
  }

  /** @internal */
  get worker(): Worker {
    return this.#parts.worker
  }

  /**
   * Starts a crew, or takes a live one up again; another definition than its last is journalled as `crew.redefined`.
   * @throws TroupeError `ID_INVALID`, `CREW_INVALID`, `MODEL_UNKNOWN`, `KEY_MISSING`, `UPGRADE_REFUSED`, `JOURNAL_CORRUPT`,
   * `JOURNAL_TRUNCATED`, `SHARD_STOPPED`, `RUNTIME_CLOSED`.
   */
  async spawn<Output>(
    definition: Crew<Output> | Agent<Output>,
    options: SpawnOptions = {},
  ): Promise<CrewHandle<Output>> {
    if (this.#closed !== null) throw new TroupeError('RUNTIME_CLOSED', 'the runtime is closed')
    const crew = toCrew(definition)
    const id = checkId(options.id ?? crew.name, 'a crew id')
    const live = this.#parts.bind(crew)
    const shard = await this.worker.shard(id, { acceptUpgrade: options.acceptUpgrade === true })
    await shard.define(live)
    const handle = new CrewHandle<Output>(id, this.worker, live)
    this.#crews.get(id)?.release()
    this.#crews.set(id, handle)
    return handle
  }

  /** A crew that this runtime has spawned; undefined for another. */
  crew(id: string): CrewHandle<unknown> | undefined {
    return this.#crews.get(id)
  }

  /** Every crew in the store, by name. */
  async *list(): AsyncGenerator<CrewInfo, void, void> {
    for await (const head of this.worker.journal.heads()) if (!head.removed) yield infoOf(head)
  }

  /** One crew: its actors, what they wait for, its runs. @throws TroupeError `CREW_UNKNOWN` and what stopped it. */
  async show(id: string): Promise<CrewDetails> {
    const head = await this.#known(id)
    const shard = await this.worker.shard(id)
    const state = shard.state
    const waits = new Map([...state.effects.values()].map((effect) => [effect.from, waitOf(effect.body)]))
    return {
      ...infoOf(head),
      sequence: state.sequence,
      openEffects: state.effects.size,
      crew: state.definition === '' ? '' : (JSON.parse(state.definition) as { data: { name: string } }).data.name,
      actors: [...state.actors].map(([address, actor]) => ({
        address,
        state: stateName(actor.snapshot.value),
        waitsFor: waits.get(address) ?? null,
      })),
      runs: [...state.runs.values()].map(runInfo),
      stopped: shard.stopped === null ? null : { code: shard.stopped.code, reason: shard.stopped.message },
      paused: (state.actors.get(crewAddress)?.snapshot.context as { paused?: boolean } | undefined)?.paused === true,
    }
  }

  /** The commits of a crew from `from` on, as they were recorded. @throws TroupeError `CREW_UNKNOWN`, `JOURNAL_CORRUPT`. */
  async *journal(id: string, from = 1): AsyncGenerator<RecordedCommit, void, void> {
    await this.#known(id)
    for await (const record of this.worker.journal.read(id, from)) {
      for (const commit of fromRecord(id, record)) if (commit.sequence >= from) yield commit
    }
  }

  /** Deletes a crew with its journal, blobs and snapshots. Its id may be used again. @throws TroupeError `CREW_UNKNOWN`. */
  async remove(id: string): Promise<void> {
    await this.#known(id)
    this.#crews.get(id)?.release()
    this.#crews.delete(id)
    await this.worker.remove(id)
  }

  /** Holds a crew's agents before their next model call, spawned here or not. @throws TroupeError `CREW_UNKNOWN`. */
  async pause(id: string): Promise<void> {
    await this.#known(id)
    await command(this.worker.shard(id), { type: 'crew.pause' })
  }

  /** Lets a crew's paused agents go on. @throws TroupeError `CREW_UNKNOWN`. */
  async resume(id: string): Promise<void> {
    await this.#known(id)
    await command(this.worker.shard(id), { type: 'crew.resume' })
  }

  /** Ends a crew's current run, or the given one, with `RUN_CANCELLED`. @throws TroupeError `CREW_UNKNOWN`. */
  async cancel(id: string, run?: string): Promise<void> {
    await this.#known(id)
    await command(this.worker.shard(id), run === undefined ? { type: 'crew.cancel' } : { type: 'crew.cancel', run })
  }

  /** Waits up to `graceMs` for what is running, writes snapshots, closes the store. Idempotent. @param options `graceMs` default 30,000. */
  close(options: { readonly graceMs?: number } = {}): Promise<void> {
    this.#closed ??= this.#close(options.graceMs ?? 30_000)
    return this.#closed
  }

  async #close(graceMs: number): Promise<void> {
    for (const handle of this.#crews.values()) handle.release()
    this.#graceMs = graceMs
    const leave = stayAlive()
    try {
      await this.#parts.release()
    } finally {
      leave()
    }
  }

  #graceMs = 30_000

  /** @internal How long a close may wait. */
  get graceMs(): number {
    return this.#graceMs
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #known(id: string): Promise<ShardHead> {
    const head = await this.worker.journal.head(checkId(id, 'a crew id'))
    if (head.sequence === 0 || head.removed)
      throw new TroupeError('CREW_UNKNOWN', `there is no crew ${id} in this store`)
    return head
  }
}

function infoOf(head: ShardHead): CrewInfo {
  return {
    id: head.shard,
    sequence: head.sequence,
    openEffects: head.pending.openEffects,
    nextDueAt: head.pending.nextDueAt,
  }
}

function waitOf(body: { readonly type: string; readonly tool?: string; readonly deployment?: string }): string {
  return body.type === 'model.call' ? `model ${body.deployment ?? ''}` : `tool ${body.tool ?? ''}`
}

function stateName(value: unknown): string {
  if (typeof value === 'string') return value
  return Object.entries(value as Record<string, unknown>)
    .map(([key, inner]) => `${key}.${stateName(inner)}`)
    .join(' ')
}

function runInfo(run: RunState): RunInfo {
  return {
    runId: run.run,
    key: run.key,
    status: run.status,
    code: run.end?.code ?? null,
    reason: run.end?.reason ?? '',
    rounds: run.end?.rounds ?? 0,
    costUsd: (run.end?.spent.nanoUsd ?? 0) / 1e9,
    tokens: run.end?.spent.tokens ?? 0,
  }
}

/** Watches and takes nothing. */
const nobody = { take: () => undefined, show: () => undefined }

/** Holds the process while somebody waits in it: our own timers do not. */
function stayAlive(): () => void {
  const timer = setInterval(() => undefined, 2 ** 30)
  return () => clearInterval(timer)
}

/** Tells a crew what its user wants; resolves when that is durable. */
async function command(active: Promise<Shard>, body: { type: string; run?: string }): Promise<void> {
  const shard = await active
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
      started: this.#shard().then((shard) => knownRun(shard, id).run),
      result: (known) => this.#result(known),
      events: (known, after, rest) => this.#events(known, after, rest),
      cancel: (known) => this.cancel(known),
      lead: this.#live.prepared.crew.lead,
    })
  }

  /** The run that is going on, or undefined. */
  async current(): Promise<Run<Output> | undefined> {
    const running = [...(await this.#shard()).state.runs.values()].find((run) => run.status !== 'finished')
    return running === undefined ? undefined : this.run(running.run)
  }

  /** Gives a task and waits for its result. @throws TroupeError with the code that ended the run. */
  ask(input: RunInput, options: StartOptions = {}): Promise<RunResult<Output>> {
    return this.start(input, options).result
  }

  /** Holds every agent before its next model call. Resolves when that is durable. */
  pause(): Promise<void> {
    return command(this.#shard(), { type: 'crew.pause' })
  }

  /** Lets paused agents go on. */
  resume(): Promise<void> {
    return command(this.#shard(), { type: 'crew.resume' })
  }

  /** Ends the current run, or the given one, with `RUN_CANCELLED`. */
  cancel(run?: string): Promise<void> {
    return command(this.#shard(), run === undefined ? { type: 'crew.cancel' } : { type: 'crew.cancel', run })
  }

  /** The shard with this crew's definition: another instance may have taken its place in memory. */
  async #shard(): Promise<Shard> {
    const shard = await this.#worker.shard(this.id)
    if (shard.crew !== this.#live && shard.stopped === null && shard.crew === null) await shard.define(this.#live)
    return shard
  }

  async #start(key: string, input: RunInput, options: StartOptions): Promise<string> {
    const { messages, text } = messagesOf(input)
    if (key.length === 0 || key.length > 256)
      throw new TroupeError('INPUT_INVALID', 'a run key has 1 to 256 characters')
    const data = options.data === undefined ? null : dataText(options.data)
    const shard = await this.#shard()
    const same = [...shard.state.runs.values()].find((run) => run.key === key)
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
    const { lead } = prepared.crew
    const system = await instructionsOf(prepared, lead, text, options.data ?? null).catch((error: unknown) => {
      const { message } = toTroupeError(error, 'INPUT_INVALID')
      throw new TroupeError('INPUT_INVALID', `the instructions of ${lead} threw: ${message}`, { cause: error })
    })
    const all = [...(system === null ? [] : [system]), ...messages]
    const tokens = estimateTokens(all.reduce((sum, message) => sum + message.length, 0))
    const body = { type: 'crew.task', tokens, messages: all.length, key, data: data !== null }
    const values = data === null ? all : [...all, data]
    const commit = await shard.post({ from: 'client/local', to: crewAddress, cause: '', body, values }, true)
    return `r${commit.sequence}`
  }

  async #result(id: string): Promise<RunResult<Output>> {
    const shard = await this.#shard()
    const finished = await this.#finished(shard, knownRun(shard, id))
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
    const last = entries.at(-1)
    const typed = this.#live.prepared.agents.get(this.#live.prepared.crew.lead)?.agent.output !== undefined
    const value =
      typed && last !== undefined ? (await valuesAt(this.#worker.journal, this.id, last.sequence))[1] : undefined
    const { nanoUsd, ...usage } = end.spent
    return {
      runId: id,
      output: (value === undefined ? textOf(texts.at(-1) ?? '{}') : JSON.parse(value)) as Output,
      messages,
      usage,
      cost: { usd: nanoUsd / 1e9, nanoUsd },
      finishReason: end.finish,
      rounds: end.rounds,
    }
  }

  /** Waits for the run's end. */
  async #finished(shard: Shard, run: RunState): Promise<RunState> {
    if (shard.hasEnded(run.run)) return shard.state.runs.get(run.run) ?? run
    const unpin = this.#worker.pin(this.id)
    const leave = stayAlive()
    try {
      return await new Promise<RunState>((resolve, reject) => {
        const unsubscribe = this.#worker.onEnd(this.id, () => {
          const now = shard.state.runs.get(run.run)
          const reason = this.#ended(shard, run.run)
          if (now !== undefined && shard.hasEnded(run.run)) resolve(now)
          else if (reason !== null) reject(reason)
          else return
          unsubscribe()
        })
      })
    } finally {
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
    const shard = await this.#shard()
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

/** Refuses a task when enough wait, those included that are not in the journal yet. @throws TroupeError `RUNS_FULL`. */
function checkWaiting(shard: Shard): void {
  const runs = [...shard.state.runs.values()]
  const keys = new Set(runs.map((run) => run.key))
  const coming = [...shard.starting.keys()].filter((key) => !keys.has(key)).length
  if (runs.filter((run) => run.status !== 'finished').length + coming > maxWaitingRuns) {
    throw new TroupeError('RUNS_FULL', `${shard.id}: ${maxWaitingRuns} runs wait already`, { retryable: true })
  }
}

function knownRun(shard: Shard, id: string): RunState {
  const run = shard.state.runs.get(id)
  if (run === undefined) throw new TroupeError('RUN_UNKNOWN', `${shard.id} has no run ${id}`)
  return run
}

function dataText(data: unknown): string {
  try {
    const text = JSON.stringify(data) as string | undefined
    if (text !== undefined && text.length <= maxInput) return text
  } catch {
    // Told below: a cycle, a bigint.
  }
  throw new TroupeError('INPUT_INVALID', 'the data of a run must be JSON')
}

/** Cancels a run when its signal says so. */
export function cancelOn<Output>(signal: AbortSignal, run: Run<Output>): void {
  const cancel = (): void => {
    run.cancel().catch(() => undefined)
  }
  if (signal.aborted) cancel()
  else signal.addEventListener('abort', cancel, { once: true })
}

/** The key of a run that is named by its input: the same task again is the same run. */
export function keyOf(id: string, input: RunInput): string {
  return contentHash(`${id}\n${JSON.stringify(input)}`).slice(0, 32)
}
