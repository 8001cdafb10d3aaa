/**
 * The tool port: runs users' tools in this process.
 *
 * Owns: places (how many run at once, in which order), time limits, cancelling, the tool's context.
 * Does not own: the words for what a tool returns or throws (`tool-result.ts`); whether a call may run
 * again; the record of a dispatch (`mayStart` writes it); validation of what a model wrote (`runtime/verdict.ts`; here
 * the schema is applied once more, for its transforms).
 *
 * - TL1 Every call gets exactly one outcome. Nothing here rejects or throws, whatever the tool does.
 * - TL2 The tool's code runs only after `mayStart` answered true and while the call is neither cancelled nor timed out.
 * - TL3 A place is given back exactly once: at the outcome, also when the run goes on and ignores its signal.
 * - TL4 Waiting calls go in the order in which they came, among those whose tool has a free place.
 * - TL5 What leaves is bounded: `maxBytes` of output, 2 KiB of a foreign error, 64 progress values a second of 8 KiB.
 *
 * A tool shares the process: an endless loop, `process.exit` and a throw in its own timers are beyond this file.
 */
import { Buffer } from 'node:buffer'
import { ToolError } from '../runtime/define.js'
import type { AnyTool, ToolContext, ToolLog } from '../runtime/define.js'
import type { Clock, ToolOutcome, ToolPort, ToolRequest, ToolVerified } from '../runtime/ports.js'
import { cutBytes } from '../runtime/redact.js'
import { describeIssues } from '../runtime/verdict.js'
import { cutOutput, describeThrown, toText, wordsOf } from './tool-result.js'

/** What a tool's log lines carry. */
export interface ToolBindings {
  readonly shard: string
  readonly runId: string
  readonly agent: string
  readonly callId: string
  readonly tool: string
}

/** What the port needs of the worker. */
export interface ToolPortOptions {
  /** The tools of an agent of a shard, by name. Asked at each call. */
  readonly tools: (shard: string, agent: string) => ReadonlyMap<string, AnyTool>
  /** Handed to every tool as it is. */
  readonly deps: unknown
  readonly log: (bindings: ToolBindings) => ToolLog
  readonly clock: Clock
  /** Executions at once in a shard over all its tools; asked whenever a place may be given. Below 1 counts as 1. */
  readonly concurrency: (shard: string) => number
  /** Values that never reach a model or a journal by way of an error message. @default [] */
  readonly secrets?: readonly string[]
}

const maxProgressBytes = 8192
const maxProgressPerSecond = 64

/**
 * Makes the tool port. It holds no resources of its own and needs no close.
 *
 * `verify` takes a place like `run`; `mayStart` is not asked for it. It answers `null` when the tool has no `verify`, or
 * that fails, is cancelled or exceeds `timeoutMs`; a done call whose result cannot be told stays done.
 */
export function createToolPort(options: ToolPortOptions): ToolPort {
  const places = new Places(options.concurrency)
  const told = (thrown: unknown): ToolOutcome => failed('threw', describeThrown(thrown, options.secrets ?? []))
  return {
    run: (request) => run(options, places, request).catch(told),
    verify: (request) => verify(options, places, request).catch(() => ({ done: null })),
  }
}

type FailedKind = Extract<ToolOutcome, { status: 'failed' }>['kind']

function failed(kind: FailedKind, message: string): ToolOutcome {
  return { status: 'failed', kind, message }
}

async function run(options: ToolPortOptions, places: Places, request: ToolRequest): Promise<ToolOutcome> {
  const tool = options.tools(request.shard, request.agent).get(request.tool)
  if (tool === undefined) return failed('told', `There is no tool named ${request.tool}.`)
  const leave = await places.enter(request.shard, tool, request.signal)
  if (leave === null) return { status: 'cancelled', started: false }
  try {
    const admission = await admit(request)
    if (admission === 'refused') return { status: 'dropped' }
    if (admission === 'cancelled') return { status: 'cancelled', started: false }
    const ended = await bounded(options, request, async (context, begin) => {
      const input = await parseInput(tool, request.arguments)
      begin()
      return tool.run(input as never, context as never)
    })
    return outcomeOf(ended, tool, request, options.secrets ?? [])
  } finally {
    leave()
  }
}

function outcomeOf(ended: Ended, tool: AnyTool, request: ToolRequest, secrets: readonly string[]): ToolOutcome {
  if (ended.how === 'cancelled') return { status: 'cancelled', started: ended.started }
  if (ended.how === 'timeout') {
    return failed(
      'timeout',
      `The tool did not end within ${request.timeoutMs} ms. Whether it took effect is not known.`,
    )
  }
  if (ended.how === 'returned') {
    try {
      return { status: 'ok', ...cutOutput(toText(ended.value), tool.maxBytes) }
    } catch (thrown) {
      return failed('unserialisable', `The tool ran, but its result cannot be told: ${describeThrown(thrown, secrets)}`)
    }
  }
  const words = wordsOf(ended.thrown)
  if (words !== null) return failed('told', cutOutput(words, tool.maxBytes).content)
  return failed('threw', describeThrown(ended.thrown, secrets))
}

async function verify(options: ToolPortOptions, places: Places, request: ToolRequest): Promise<ToolVerified> {
  const tool = options.tools(request.shard, request.agent).get(request.tool)
  const ask = tool?.verify
  if (tool === undefined || ask === undefined) return { done: null }
  const leave = await places.enter(request.shard, tool, request.signal)
  if (leave === null) return { done: null }
  try {
    const ended = await bounded(options, request, async (context, begin) => {
      const input = await parseInput(tool, request.arguments)
      begin()
      return ask.call(tool, input as never, context as never)
    })
    if (ended.how !== 'returned' || typeof ended.value !== 'object' || ended.value === null) return { done: null }
    const { done } = ended.value as { done?: unknown }
    if (done === false) return { done: false }
    if (done !== true) return { done: null }
    try {
      const { result } = ended.value as { result?: unknown }
      return { done: true, content: cutOutput(toText(result), tool.maxBytes).content }
    } catch (thrown) {
      const why = describeThrown(thrown, options.secrets ?? [])
      return { done: true, content: `The call was made, but its result cannot be told: ${why}` }
    }
  } finally {
    leave()
  }
}

/** The arguments as the tool's schema gives them. Throws `ToolError` when they do not fit, so that nothing retries. */
async function parseInput(tool: AnyTool, text: string): Promise<unknown> {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    throw new ToolError('The arguments are not valid JSON.')
  }
  const result = await tool.input.safeParseAsync(value)
  if (result.success) return result.data
  throw new ToolError(`The arguments do not fit the tool any more. ${describeIssues(result.error)}`)
}

/** Asks `mayStart`, but waits no longer than the call is wanted. A refusal to answer is a refusal. */
function admit(request: ToolRequest): Promise<'admitted' | 'refused' | 'cancelled'> {
  if (request.signal.aborted) return Promise.resolve('cancelled')
  return new Promise((resolve) => {
    const onAbort = () => resolve('cancelled')
    const answer = (may: boolean) => {
      request.signal.removeEventListener('abort', onAbort)
      resolve(may ? 'admitted' : 'refused')
    }
    request.signal.addEventListener('abort', onAbort, { once: true })
    attempt(() => request.mayStart()).then(answer, () => answer(false))
  })
}

/** How the user's code ended, as far as it was waited for. */
type Ended =
  | { readonly how: 'returned'; readonly value: unknown }
  | { readonly how: 'threw'; readonly thrown: unknown }
  | { readonly how: 'timeout' }
  | { readonly how: 'cancelled'; readonly started: boolean }

/**
 * Runs user code until it ends, its time is up or it is cancelled, whichever is first. When it was given up, its signal
 * aborts and nobody listens any more. `work` calls `begin` right before the tool's own function: it throws when that
 * must not run any more, as the checks of a schema may take longer than the call is wanted.
 */
function bounded(
  options: ToolPortOptions,
  request: ToolRequest,
  work: (context: ToolContext, begin: () => void) => Promise<unknown>,
): Promise<Ended> {
  if (request.signal.aborted) return Promise.resolve({ how: 'cancelled', started: false })
  return new Promise((resolve) => {
    // Made when the tool asks for its signal; most never do.
    let controller: AbortController | undefined
    let reason: DOMException | undefined
    const signalOf = (): AbortSignal => {
      controller ??= new AbortController()
      if (reason !== undefined) controller.abort(reason)
      return controller.signal
    }
    const abort = (why: DOMException): void => {
      reason = why
      controller?.abort(why)
    }
    let over = false
    let started = false
    const end = (ended: Ended): boolean => {
      if (over) return false
      over = true
      stopTimer()
      request.signal.removeEventListener('abort', onAbort)
      resolve(ended)
      return true
    }
    const onAbort = () => {
      if (end({ how: 'cancelled', started })) abort(new DOMException('cancelled', 'AbortError'))
    }
    request.signal.addEventListener('abort', onAbort, { once: true })
    const stopTimer = options.clock.after(request.timeoutMs, () => {
      if (end({ how: 'timeout' })) abort(new DOMException('timed out', 'TimeoutError'))
    })
    const context = contextOf(options, request, signalOf, () => !over)
    const begin = () => {
      if (reason !== undefined) throw reason
      started = true
    }
    // both ends are handled, so that a run that was given up can still reject and nobody hears of it
    work(context, begin).then(
      (value) => end({ how: 'returned', value }),
      (thrown: unknown) => end({ how: 'threw', thrown }),
    )
  })
}

function contextOf(
  options: ToolPortOptions,
  request: ToolRequest,
  signal: () => AbortSignal,
  live: () => boolean,
): ToolContext {
  const { shard, runId, agent, callId, tool } = request
  let log: ToolLog | undefined
  let guard: AbortSignal | undefined
  let progress: ((value: unknown) => void) | undefined
  let data: { readonly copy: unknown } | undefined
  const logNow = (): ToolLog => (log ??= logOf(() => options.log({ shard, runId, agent, callId, tool })))
  // Most tools use few of these, and some are dear to make: each is made when it is asked for.
  return {
    deps: options.deps,
    get data() {
      data ??= { copy: ownCopy(request.data) }
      return data.copy
    },
    runId,
    agent,
    callId,
    idempotencyKey: request.idempotencyKey,
    get signal() {
      return (guard ??= guarded(signal(), () => logNow().warn('an abort listener of the tool threw')))
    },
    get progress() {
      return (progress ??= progressOf(options.clock, request, live))
    },
    get log() {
      return logNow()
    },
  }
}

/** A copy, so that a tool that writes to its `data` changes nobody else's. */
function ownCopy(data: unknown): unknown {
  try {
    return structuredClone(data)
  } catch {
    return data
  }
}

/** Calls at once and gives what it throws as a rejection. */
async function attempt<T>(work: () => T | Promise<T>): Promise<T> {
  return work()
}

/**
 * A signal whose listeners may throw: Node would make that an uncaught exception, and one careless
 * `addEventListener('abort', …)` of a tool would end every crew of the process. (`onabort` is not covered.)
 */
function guarded(signal: AbortSignal, onThrow: () => void): AbortSignal {
  type Listener = Parameters<AbortSignal['addEventListener']>[1]
  type Options = Parameters<AbortSignal['addEventListener']>[2]
  const add = signal.addEventListener.bind(signal)
  const remove = signal.removeEventListener.bind(signal)
  const guards = new WeakMap<object, (event: Event) => void>()
  const guard = (listener: Listener): Listener => {
    // null and the like are for Node to judge
    if ((typeof listener !== 'function' && typeof listener !== 'object') || listener === null) return listener
    const known = guards.get(listener)
    if (known !== undefined) return known
    const made = (event: Event): void => {
      const call = () => (typeof listener === 'function' ? listener.call(signal, event) : listener.handleEvent(event))
      attempt<unknown>(call).catch(onThrow)
    }
    guards.set(listener, made)
    return made
  }
  return Object.defineProperties(signal, {
    addEventListener: {
      value: (type: string, listener: Listener, options?: Options) => add(type, guard(listener), options),
    },
    removeEventListener: {
      value: (type: string, listener: Listener, options?: Options) => remove(type, guard(listener), options),
    },
  })
}

/** Progress as the outside may see it: a copy, small, not too often, and nothing once the call is over. */
function progressOf(clock: Clock, request: ToolRequest, live: () => boolean): (value: unknown) => void {
  let since = clock.monotonic()
  let shown = 0
  return (value) => {
    try {
      if (!live()) return
      const now = clock.monotonic()
      if (now - since >= 1000) {
        since = now
        shown = 0
      }
      if (shown >= maxProgressPerSecond) return
      shown += 1
      if (typeof value === 'string') return request.progress(cutBytes(value, maxProgressBytes))
      const text = toText(value, maxProgressBytes)
      if (text !== '' && Buffer.byteLength(text) <= maxProgressBytes) request.progress(JSON.parse(text))
    } catch {
      // best effort: what cannot be shown is not shown
    }
  }
}

/** A log that a tool cannot fail over. */
function logOf(make: () => ToolLog): ToolLog {
  let made: ToolLog | undefined
  const line = (level: keyof ToolLog) => (message: string, data?: object) => {
    try {
      made ??= make()
      if (data === undefined) made[level](message)
      else made[level](message, data)
    } catch {
      // a line is lost, a call is not
    }
  }
  return { debug: line('debug'), info: line('info'), warn: line('warn'), error: line('error') }
}

/** A call that waits for its place. */
interface Waiting {
  /** Order of arrival in the shard. */
  readonly ticket: number
  /** Executions of its tool that may run at once. */
  readonly cap: number
  readonly enter: () => void
}

/** The calls of one tool in a shard: how many are at work, and which wait, by ticket and so in order of arrival. */
interface Desk {
  running: number
  readonly waiting: Map<number, Waiting>
}

/** The calls of one shard, by tool. */
interface Lane {
  running: number
  readonly tools: Map<string, Desk>
}

/** Places for executions: so many a shard, and so many a tool in it. */
class Places {
  readonly #lanes = new Map<string, Lane>()
  readonly #concurrency: (shard: string) => number
  #tickets = 0

  constructor(concurrency: (shard: string) => number) {
    this.#concurrency = concurrency
  }

  /** Waits for a place; the answer gives it back (once, further calls do nothing). Null: cancelled before it came. */
  enter(shard: string, tool: AnyTool, signal: AbortSignal): Promise<(() => void) | null> {
    if (signal.aborted) return Promise.resolve(null)
    const lane: Lane = this.#lanes.get(shard) ?? { running: 0, tools: new Map<string, Desk>() }
    this.#lanes.set(shard, lane)
    const own: Desk = lane.tools.get(tool.name) ?? { running: 0, waiting: new Map<number, Waiting>() }
    lane.tools.set(tool.name, own)
    const ticket = this.#tickets
    this.#tickets += 1
    return new Promise((resolve) => {
      const leave = () => {
        lane.running -= 1
        own.running -= 1
        this.#fill(shard, lane)
      }
      const onAbort = () => {
        own.waiting.delete(ticket)
        resolve(null)
        this.#tidy(shard, lane)
      }
      signal.addEventListener('abort', onAbort, { once: true })
      const enter = () => {
        signal.removeEventListener('abort', onAbort)
        own.waiting.delete(ticket)
        lane.running += 1
        own.running += 1
        resolve(once(leave))
      }
      own.waiting.set(ticket, { ticket, cap: tool.concurrency, enter })
      this.#fill(shard, lane)
    })
  }

  #fill(shard: string, lane: Lane): void {
    const limit = this.#limit(shard)
    while (lane.running < limit) {
      let next: Waiting | undefined
      for (const tool of lane.tools.values()) {
        const [first] = tool.waiting.values()
        if (first === undefined || tool.running >= first.cap) continue
        if (next === undefined || first.ticket < next.ticket) next = first
      }
      if (next === undefined) break
      next.enter()
    }
    this.#tidy(shard, lane)
  }

  #limit(shard: string): number {
    try {
      const limit = this.#concurrency(shard)
      return limit >= 1 ? limit : 1
    } catch {
      return 1
    }
  }

  /** Forgets what is empty. */
  #tidy(shard: string, lane: Lane): void {
    for (const [name, tool] of lane.tools) {
      if (tool.running === 0 && tool.waiting.size === 0) lane.tools.delete(name)
    }
    if (lane.tools.size === 0 && this.#lanes.get(shard) === lane) this.#lanes.delete(shard)
  }
}

function once(call: () => void): () => void {
  let called = false
  return () => {
    if (called) return
    called = true
    call()
  }
}
