/**
 * Troupe's public face: every name that users import, and the wiring of the default ports.
 */
import { mkdir, realpath } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { z } from 'zod'
import { createOpenAIModelPort, type OpenAIModelPortOptions } from '../actors/model-openai.js'
import { createToolPort } from '../actors/tool.js'
import { type BreakerSettings, breakerSettings, machines } from '../machines/index.js'
import { FileBreakers } from '../transport/file-breakers.js'
import { createLevelJournal } from '../transport/level-journal.js'
import { MemoryBreakers } from '../transport/memory-breakers.js'
import { createMemoryJournal } from '../transport/memory-journal.js'
import { Breakers, type BreakerStore } from './breakers.js'
import { listenControl, type Unlisten } from './control.js'
import type { Agent, AnyTool, Crew } from './define.js'
import type { MachineDefinition } from './define-machine.js'
import type { DistributedOptions } from './distributed.js'
import type { LiveCrew } from './dispatcher.js'
import { isTroupeError, TroupeError } from './errors.js'
import type { Runtime } from './face.js'
import type { Journal } from './journal.js'
import { createLog, type Log, type LogLevel } from './log.js'
import type { Logic } from './logic.js'
import type { Clock, ModelPort, ToolPort } from './ports.js'
import { prepareCrew } from './prepared-crew.js'
import type { RunResult } from './run.js'
import type { RunInput, StartOptions } from './run-input.js'
import { Runtime as LocalRuntime, type SpawnOptions } from './runtime.js'
import { Scope } from './scope.js'
import type { DrainProgress } from './survey.js'
import { systemClock } from './system-clock.js'
import { Worker, type WorkerOptions } from './worker.js'

export type { DistributedOptions, DistributedRuntime } from './distributed.js'
export type { ProviderOptions } from '../actors/providers.js'
export {
  fault,
  reply,
  type ScriptedModel,
  type ScriptedModelOptions,
  startScriptedModel,
} from '../actors/scripted-model.js'
export {
  type Agent,
  type AgentOptions,
  type ApprovalContext,
  type Crew,
  type CrewOptions,
  defineAgent,
  defineCrew,
  defineTool,
  type EffectClass,
  type FlowCrewOptions,
  type HandoffOptions,
  type MachineFlowOptions,
  type HistoryMessage,
  type FlowOutput,
  type InstructionsContext,
  type Tool,
  type ToolContext,
  ToolError,
  type ToolOptions,
} from './define.js'
export {
  defineMachine,
  type FlowMachine,
  type FlowMachineOutput,
  type MachineDefinition,
  type MachineOptions,
} from './define-machine.js'
export { type AgentTask, callAgent } from './logic.js'
export { type ErrorCode, errorCodes, isTroupeError, TroupeError } from './errors.js'
export type { TroupeEvent } from './events.js'
export type { CrewHandle, MachineHandle, Runtime } from './face.js'
export type { LogLevel } from './log.js'
export type { ModelSettings, Price } from './ports.js'
export { type ChatMessage, Run, type RunCost, type RunResult, type RunUsage } from './run.js'
export type { AnswerOptions, ApproveOptions, PendingAsk } from './asks.js'
export type { DeadLetterDetails, DeadLetterInfo, DeadLetters, ReplayOptions } from './dead-letters.js'
export type { RefusedDetails, RefusedInfo, RefusedLetters } from './refused-letters.js'
export type { RepairReport } from './repair.js'
export type { Budget, BudgetLimits } from './budget.js'
export {
  type Flow,
  type Parallel,
  parallel,
  type ParallelOptions,
  sequential,
  type Step,
  supervisor,
  type Supervisor,
} from './flow.js'
export type { RoundChanges, RoundContext } from './prepare-round.js'
export {
  all,
  any,
  calledTool,
  not,
  type RoundCall,
  type RoundUsage,
  roundsAre,
  spentAtLeast,
  type StopCondition,
  type StopContext,
  type StopFunction,
  type StopRule,
  textMatches,
} from './stop-condition.js'
export type { Supervision } from './supervision.js'
export { defineBudget, type SharedBudget, type SharedBudgetOptions, type SharedLimits } from './shared-budget.js'
export type { PoolBooks } from './pool-books.js'
export type { RaiseOptions } from './raising.js'
export type { SteerInput, SteerOptions } from './steering.js'
export { keyOf, type Part, type RunInput, type StartOptions } from './run-input.js'
export type { MachineEventsOptions, MachineState, SendOptions } from './machine-handle.js'
export type { CrewDetails, CrewInfo, MachineSpawnOptions, RunInfo, SpawnOptions } from './runtime.js'
export type { BreakerInfo } from './breakers.js'
export type { ClusterInfo, DrainProgress, WorkerInfo } from './survey.js'

/** How to create a runtime. */
export interface RuntimeOptions {
  /** Folder of the store; made when missing. @default none: everything is in memory and gone with the process */
  readonly store?: string
  /**
   * What an acknowledged step survives: `process` a killed process, `power` a power cut (fsync).
   * @default 'power'
   */
  readonly durability?: 'process' | 'power'
  /**
   * Work together with other processes over NATS: where it is, or how to take part. Crews are kept in JetStream then;
   * `store` is a worker's local copy of what it has read and written, at most about 1 GiB, and may be deleted at any time.
   * @default none: everything is in this process
   */
  readonly nats?: string | DistributedOptions | undefined
  /** Live objects for tools; never journalled. */
  readonly deps?: unknown
  /** Providers by name: base URL, key, `fetch`. Known ones need none. */
  readonly providers?: OpenAIModelPortOptions['providers']
  /** Prices by deployment, for models that the price table does not know or has wrong. */
  readonly prices?: OpenAIModelPortOptions['prices']
  /** Machines of one's own that may be in the store: what is due of them is taken up before anybody spawns them. */
  readonly machines?: readonly MachineDefinition[]
  /** Least severe log lines on stderr. @default 'warn' */
  readonly log?: LogLevel
  /** A quiet crew leaves memory after so long. @default 30_000 */
  readonly idleMs?: number
  /**
   * A crew whose last run ended so long ago is removed, as by `rm`, when nothing of it is open, no dead letter is kept and
   * nobody holds it. @default crews are kept
   */
  readonly retainMs?: number
  /**
   * When the circuit breaker of a deployment or tool server opens, and for how long; `false`: nobody is kept back. It opens
   * after `failures` in a row, or when more than `rate` of the calls within `windowMs` failed, if there were `minCalls`; calls
   * under way count as ones that may succeed, so that a few quick failures of many calls open nothing. Nobody calls for `cooldownMs` then; behind that one call, the probe, finds out, and others wait for it for up to `probeMs`.
   * @default { failures: 5, rate: 0.5, minCalls: 10, windowMs: 60_000, cooldownMs: 30_000, probeMs: 60_000 }
   */
  readonly breakers?: false | Partial<BreakerSettings>
  /**
   * Decide every step twice and compare, so that an impure machine is found at once. Costs time that grows with the crew.
   * @default 'on' when NODE_ENV is `test` or `development`, else 'off'
   */
  readonly checks?: 'on' | 'off'
}

interface SharedStore {
  readonly opening: Promise<{ readonly worker: Worker; readonly unlisten: Unlisten }>
  readonly runtimes: Set<LocalRuntime>
  /** Closes the model ports of all runtimes, also of closed ones: a call may still be on its way. */
  readonly ends: (() => Promise<void>)[]
  users: number
  closing: Promise<void> | null
}

/**
 * Open stores of this process by their real path: a second runtime on the same store shares the first one's worker,
 * also when a bundler or a reload made a second copy of this module.
 */
const home = globalThis as { [key: symbol]: Map<string, SharedStore> | undefined }
const stores = (home[Symbol.for('troupe.stores.1')] ??= new Map<string, SharedStore>())
/** How long a busy store is asked again: its owner may be about to listen, or about to leave. */
const busyMs = 5_000
const askAgainMs = 50
/** When it is looked again what a store that drains still has. */
const drainLookMs = 250
/** Of a tool worker each tool's own bound counts. */
const noBound = Number.POSITIVE_INFINITY

/**
 * Opens a store, or a memory, and takes up what its last owner left. On a store that another process owns it becomes a
 * client of that process: crews that run there can be used, others are `STORE_BUSY`.
 * @param inUse called each time that the store is found in use by a process that does not answer, for 5 s at most
 * @throws TroupeError `STORE_BUSY` when the owner cannot be reached, `STORE_CORRUPT`, `CONFIG_INVALID`.
 */
export async function createRuntime(
  options: RuntimeOptions = {},
  inUse: () => void = () => undefined,
): Promise<Runtime> {
  checkBreakers(options)
  const log = createLog(options.log ?? 'warn')
  const model = createOpenAIModelPort({
    ...(options.providers === undefined ? {} : { providers: options.providers }),
    ...(options.prices === undefined ? {} : { prices: options.prices }),
  })
  const toolPort = (of: (agent: string) => ReadonlyMap<string, AnyTool>, atOnce: number): ToolPort =>
    createToolPort({
      tools: (_shard, agent) => of(agent),
      deps: options.deps,
      log: (bindings) => log.with(bindings),
      clock: systemClock,
      concurrency: () => atOnce,
    })
  const bound = new WeakMap<Crew, LiveCrew>()
  const bind = (crew: Crew): LiveCrew => {
    const known = bound.get(crew)
    if (known !== undefined) return known
    const prepared = prepareCrew(crew, model)
    const ofAgent = (agent: string): ReadonlyMap<string, AnyTool> => prepared.agents.get(agent)?.tools ?? new Map()
    const tools = toolPort(ofAgent, prepared.crew.limits.toolConcurrency)
    const live = { prepared, model, tools, deps: options.deps }
    bound.set(crew, live)
    return live
  }
  if (options.nats !== undefined && options.nats !== '') {
    const { joinNamespace } = await import('./distributed.js')
    const nats = typeof options.nats === 'string' ? { servers: options.nats } : options.nats
    const newWorker = (journal: Journal, more: Partial<WorkerOptions>) => workerOn(journal, options, log, more)
    const unchecked: ModelPort = {
      call: (request) => model.call(request),
      price: (deployment) => model.price(deployment),
      check: () => undefined,
      close: () => model.close(),
    }
    const hashOf = (crew: Crew): string => prepareCrew(crew, unchecked).hash
    const newTools = (tools: ReadonlyMap<string, AnyTool>): ToolPort => toolPort(() => tools, noBound)
    const newBreakers = (store: BreakerStore, clock: Clock) => breakersOn(store, clock, options, log)
    const closePorts = (): Promise<void> => model.close()
    const { store, machines: own = [] } = options
    const wiring = { nats, store, log, bind, hashOf, machines: own }
    return joinNamespace({ ...wiring, newWorker, newTools, newBreakers, closePorts })
  }
  if (options.store === undefined) {
    const worker = await open(createMemoryJournal(), new MemoryBreakers(), options, log)
    const release = async (): Promise<void> => {
      await worker.close(runtime.graceMs)
      await model.close()
    }
    const runtime: LocalRuntime = new LocalRuntime({ worker, bind, release })
    return runtime
  }
  await mkdir(options.store, { recursive: true, mode: 0o700 })
  const path = await realpath(options.store)
  for (const until = performance.now() + busyMs; ; await delay(askAgainMs)) {
    try {
      return await share(path, options, log, bind, () => model.close())
    } catch (error) {
      if (!isTroupeError(error) || error.code !== 'STORE_BUSY') throw error
      const { connectRuntime } = await import('./control-client.js')
      const remote = await connectRuntime({ store: path, hashOf: (crew) => prepareCrew(crew, model).hash })
      if (remote !== null) return remote
      if (performance.now() > until) throw error
      inUse()
    }
  }
}

/** A runtime on a store that this process owns, or now takes. @throws TroupeError `STORE_BUSY`. */
async function share(
  path: string,
  options: RuntimeOptions,
  log: Log,
  bind: (crew: Crew) => LiveCrew,
  closeModel: () => Promise<void>,
): Promise<Runtime> {
  for (let known = stores.get(path); known?.closing != null; known = stores.get(path)) {
    await known.closing.catch(() => undefined)
  }
  const store = stores.get(path) ?? openStore(path, options, log)
  store.users += 1
  const { worker } = await store.opening
  for (const { logics } of options.machines ?? []) worker.register(logics)
  const release = async (): Promise<void> => {
    store.runtimes.delete(runtime)
    store.users -= 1
    if (store.users === 0) store.closing ??= closeStore(path, store, runtime.graceMs)
    await store.closing
  }
  store.ends.push(closeModel)
  const drain = (_: string | undefined, graceMs: number) => drainStore(path, store, graceMs)
  const runtime: LocalRuntime = new LocalRuntime({ worker, bind, release, drain })
  store.runtimes.add(runtime)
  return runtime
}

/** Closes a store for all its runtimes. */
async function closeStore(path: string, store: SharedStore, graceMs: number): Promise<void> {
  const { worker, unlisten } = await store.opening
  try {
    await unlisten()
    await worker.close(graceMs)
    await Promise.all(store.ends.map((end) => end()))
  } finally {
    if (stores.get(path) === store) stores.delete(path)
  }
}

/** Closes a store though its runtimes may still be used: they are told `RUNTIME_CLOSED`. */
async function* drainStore(
  path: string,
  store: SharedStore,
  graceMs: number,
): AsyncGenerator<DrainProgress, void, void> {
  const { worker } = await store.opening
  store.closing ??= closeStore(path, store, graceMs)
  let done = false
  const end = store.closing.finally(() => (done = true))
  while (!done) {
    yield { worker: null, ...worker.left }
    await Promise.race([end, delay(drainLookMs)])
  }
}

function openStore(path: string, options: RuntimeOptions, log: Log): SharedStore {
  const runtimes = new Set<LocalRuntime>()
  const listen = async (worker: Worker): Promise<Unlisten> => {
    const drain = (_: string | undefined, graceMs: number) => drainStore(path, store, graceMs)
    const runtime = new LocalRuntime({ worker, bind: onlySpawned, release: async () => undefined, drain })
    const spawned = <T>(handle: (runtime: LocalRuntime) => T | undefined): T | undefined =>
      [...runtimes]
        .reverse()
        .map(handle)
        .find((each) => each !== undefined)
    const crew = (id: string) => spawned((each) => each.crew(id))
    const machine = (id: string) => {
      const found = spawned((each) => each.machine(id))
      return found === undefined ? undefined : { machine: found as never, release: () => undefined }
    }
    const passing = () => runtimes.size > 0 && [...runtimes].every((each) => each.passing)
    return listenControl({ store: path, runtime, crew, machine, log, passing })
  }
  const journal = createLevelJournal({ path, durability: options.durability ?? 'power' })
  const opening = FileBreakers.open(path)
    .then((breakers) => open(journal, breakers, options, log))
    .then(async (worker) => ({ worker, unlisten: await listen(worker) }))
  const store: SharedStore = { opening, runtimes, ends: [], users: 0, closing: null }
  stores.set(path, store)
  opening.catch(() => stores.delete(path))
  return store
}

/** The runtime behind the control socket has no crews of its own. */
function onlySpawned(): never {
  throw new TroupeError('STORE_BUSY', 'only crews that were spawned here can be used from outside')
}

async function open(journal: Journal, store: BreakerStore, options: RuntimeOptions, log: Log): Promise<Worker> {
  const breakers = breakersOn(store, systemClock, options, log)
  const worker = workerOn(journal, options, log, { ports: { clock: systemClock, random: Math.random, breakers } })
  await worker.open()
  return worker
}

/** The circuit breakers of a worker; none when they are not wanted. */
function breakersOn(store: BreakerStore, clock: Clock, options: RuntimeOptions, log: Log): Breakers | undefined {
  const { breakers: settings = {} } = options
  return settings === false ? undefined : new Breakers({ store, clock, log, settings })
}

/** @throws TroupeError `CONFIG_INVALID` for settings of breakers that are none. */
function checkBreakers({ breakers = {} }: RuntimeOptions): void {
  const read = z.union([z.literal(false), breakerSettings.partial().strict()]).safeParse(breakers)
  if (read.success) return
  throw new TroupeError('CONFIG_INVALID', `breakers: ${z.prettifyError(read.error)}`)
}

/** The logic of the users' machines that a runtime is told of. */
function logicsOf({ machines: own = [] }: RuntimeOptions): Record<string, Logic> {
  return Object.fromEntries(own.flatMap(({ logics }) => [...logics]))
}

function workerOn(journal: Journal, options: RuntimeOptions, log: Log, more: Partial<WorkerOptions> = {}): Worker {
  return new Worker({
    journal,
    log,
    executor: `${process.pid}`,
    ports: { clock: systemClock, random: Math.random },
    context: { scope: new Scope(), machines: { ...machines, ...logicsOf(options) } },
    checks: (options.checks ?? defaultChecks()) === 'on',
    ...(options.idleMs === undefined ? {} : { idleMs: options.idleMs }),
    ...(options.retainMs === undefined ? {} : { retainMs: options.retainMs }),
    ...more,
  })
}

/**
 * Gives one task to a crew or an agent and waits for the answer; everything in memory unless `runtime.store` says where.
 * @throws TroupeError with the code that ended the run.
 */
export async function ask<Output>(
  definition: Crew<Output> | Agent<Output>,
  input: RunInput,
  options: StartOptions & { readonly runtime?: RuntimeOptions; readonly spawn?: SpawnOptions } = {},
): Promise<RunResult<Output>> {
  const { runtime: runtimeOptions, spawn, ...start } = options
  const runtime = await createRuntime(runtimeOptions)
  try {
    const crew = await runtime.spawn(definition, spawn)
    return await crew.ask(input, start)
  } finally {
    await runtime.close({ graceMs: 0 })
  }
}

function defaultChecks(): 'on' | 'off' {
  const mode = process.env['NODE_ENV']
  return mode === 'test' || mode === 'development' ? 'on' : 'off'
}
