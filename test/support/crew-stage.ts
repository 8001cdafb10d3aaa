/**
 * A runtime in memory: a manual clock, a scripted model port, users' tools behind the real tool port.
 *
 * A stage can crash (its store lives on, its worker is abandoned in whatever it did) and be opened again on the store.
 */
import { setImmediate as turn } from 'node:timers/promises'
import type { AnyStateMachine } from 'xstate'
import { createToolPort } from '../../actors/tool.js'
import { type BreakerSettings, machines } from '../../machines/index.js'
import { Breakers, type BreakerStore } from '../../runtime/breakers.js'
import type { Crew } from '../../runtime/define.js'
import type { LiveCrew } from '../../runtime/dispatcher.js'
import type { Journal } from '../../runtime/journal.js'
import { createLog } from '../../runtime/log.js'
import type { ModelFailure, ModelPort, ModelReply, ModelRequest, RawToolCall, ToolPort } from '../../runtime/ports.js'
import { prepareCrew } from '../../runtime/prepared-crew.js'
import { Runtime } from '../../runtime/runtime.js'
import { Scope } from '../../runtime/scope.js'
import type { Machines } from '../../runtime/state.js'
import { Worker } from '../../runtime/worker.js'
import { MemoryBreakers } from '../../transport/memory-breakers.js'
import { createMemoryJournal, createMemoryStore, type MemoryStore } from '../../transport/memory-journal.js'
import { createManualClock, type ManualClock } from './manual-clock.js'
import type { Member } from './owners.js'

/** By any kind: tests put others in their place. */
export const shippedMachines: Readonly<Record<string, AnyStateMachine>> = machines

/** What the model answers: a function of the request. */
export type Model = (
  request: ModelRequest,
  index: number,
) => Promise<ModelReply | ModelFailure> | ModelReply | ModelFailure

export interface StageOptions {
  readonly model?: Model
  readonly store?: MemoryStore
  readonly clock?: ManualClock
  readonly machines?: Machines
  /** What runs the machines. */
  readonly scope?: Scope
  /** Puts something between worker and journal. */
  readonly journal?: (journal: Journal) => Journal
  /** What `open` of the journal says. */
  readonly unclean?: boolean
  readonly idleMs?: number
  readonly retainMs?: number
  /** @default true */
  readonly checks?: boolean
  readonly deps?: unknown
  /** Instead of the real tool port. */
  readonly tools?: ToolPort
  /** Instead of what `model` scripts. */
  readonly modelPort?: ModelPort
  /** Where circuit breakers are stored; `null`: there are none. @default in memory */
  readonly breakers?: BreakerStore | null
  readonly breakerSettings?: Partial<BreakerSettings>
  /** One of several workers over a shared store, with the code of these crews. */
  readonly member?: Member
  readonly crews?: readonly Crew[]
}

export interface Stage {
  readonly runtime: Runtime
  readonly worker: Worker
  readonly journal: Journal
  readonly store: MemoryStore
  readonly clock: ManualClock
  /** Requests that the model port got. */
  readonly requests: ModelRequest[]
  readonly bind: (crew: Crew) => LiveCrew
  /** The process dies: nothing it still does reaches the store. */
  crash(): void
}

/** Opens a runtime on a memory store. */
export async function openStage(options: StageOptions = {}): Promise<Stage> {
  const store = options.store ?? createMemoryStore()
  const clock = options.clock ?? createManualClock()
  const memory = createMemoryJournal({ store })
  const marked = override(memory, {
    open: async () => ({ ...(await memory.open()), unclean: options.unclean ?? false }),
  })
  const journal = options.journal?.(marked) ?? marked
  const requests: ModelRequest[] = []
  const script = options.model ?? (() => say('done'))
  const model: ModelPort = options.modelPort ?? {
    call: async (request) => {
      requests.push(request)
      return script(request, requests.length - 1)
    },
    price: () => ({ input: 1_000_000, output: 2_000_000 }),
    check: () => undefined,
    close: async () => undefined,
  }
  const bind = (crew: Crew): LiveCrew => {
    const prepared = prepareCrew(crew, model)
    const tools =
      options.tools ??
      createToolPort({
        tools: (_shard, agent) => prepared.agents.get(agent)?.tools ?? new Map(),
        deps: options.deps,
        log: (bindings) => createLog('silent').with(bindings),
        clock,
        concurrency: () => prepared.crew.limits.toolConcurrency,
      })
    return { prepared, model, tools, deps: options.deps }
  }
  const { breakers: kept = new MemoryBreakers(), breakerSettings: settings = {} } = options
  const breakers = kept === null ? undefined : new Breakers({ store: kept, clock, settings })
  const known = new Map((options.crews ?? []).map((crew) => [crew.name, bind(crew)]))
  const worker = new Worker({
    journal,
    log: createLog('silent'),
    executor: 'test',
    ports: { clock, random: () => 0, breakers },
    context: { scope: options.scope ?? new Scope(), machines: { ...(options.machines ?? shippedMachines) } },
    checks: options.checks ?? true,
    idleMs: options.idleMs ?? 30_000,
    ...(options.retainMs === undefined ? {} : { retainMs: options.retainMs }),
    ...(options.member === undefined ? {} : { ownership: options.member }),
    crewOf: (name) => known.get(name),
  })
  if (options.member !== undefined) options.member.worker = worker
  await worker.open()
  const runtime = new Runtime({ worker, bind, release: () => worker.close(0) })
  const crash = () => {
    store.owner = null
  }
  return { runtime, worker, journal, store, clock, requests, bind, crash }
}

/** A journal with some methods of a test's own. */
export function override(journal: Journal, methods: Partial<Journal>): Journal {
  return new Proxy(journal, {
    get(target, name) {
      const own = (methods as Record<PropertyKey, unknown>)[name]
      if (own !== undefined) return own
      const value = Reflect.get(target, name, target) as unknown
      return typeof value === 'function' ? (value.bind(target) as unknown) : value
    },
  })
}

/** Waits until something is so, letting everything else run: for as long as a loaded machine may take. */
export async function until(holds: () => boolean | Promise<boolean>, what = 'it never came to that'): Promise<void> {
  const end = performance.now() + 20_000
  while (performance.now() < end) {
    if (await holds()) return
    await turn()
  }
  throw new Error(what)
}

/** Lets everything run that can. */
export async function quiet(): Promise<void> {
  for (let turns = 0; turns < 20; turns += 1) await turn()
}

const usage = { inputTokens: 20, outputTokens: 10, cachedInputTokens: 0, estimated: false }

/** A reply with text. */
export function say(text: string, more: Partial<ModelReply> = {}): ModelReply {
  return {
    ok: true,
    message: JSON.stringify({ role: 'assistant', content: text }),
    text,
    toolCalls: [],
    finishReason: 'stop',
    usage,
    costNanoUsd: null,
    model: 'test',
    ...more,
  }
}

/** A reply with tool calls: name and arguments, as text or as what becomes JSON. */
export function call(...calls: readonly (readonly [name: string, args?: unknown])[]): ModelReply {
  const toolCalls = calls.map(([name, args], index): RawToolCall => {
    return { id: `call_${index}`, name, arguments: typeof args === 'string' ? args : JSON.stringify(args ?? {}) }
  })
  const written = toolCalls.map(({ id, ...rest }) => ({ id, type: 'function', function: rest }))
  return say('', {
    message: JSON.stringify({ role: 'assistant', content: null, tool_calls: written }),
    toolCalls,
    finishReason: 'tool_calls',
  })
}

/** A call that failed. */
export function failure(kind: ModelFailure['kind'], more: Partial<ModelFailure> = {}): ModelFailure {
  return {
    ok: false,
    kind,
    message: kind,
    status: null,
    retryAfterMs: null,
    billed: false,
    usage: null,
    costNanoUsd: null,
    ...more,
  }
}

/** Messages of a request, parsed. */
export function messagesOf(request: ModelRequest): { role: string; content?: string; tool_call_id?: string }[] {
  return request.messages.map((text) => JSON.parse(text) as { role: string })
}

/** How many tool results a request has: how far the conversation is. */
export function resultsIn(request: ModelRequest): string[] {
  return messagesOf(request)
    .filter(({ role }) => role === 'tool')
    .map(({ content }) => content ?? '')
}

/** A promise with its end outside. */
export function gate<T = void>(): { readonly open: (value: T) => void; readonly opened: Promise<T> } {
  let open: (value: T) => void = () => undefined
  const opened = new Promise<T>((resolve) => {
    open = resolve
  })
  return { open, opened }
}
