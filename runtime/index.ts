/**
 * Troupe's public face: every name that users import, and the wiring of the default ports.
 */
import { mkdir, realpath } from 'node:fs/promises'
import { createOpenAIModelPort, type OpenAIModelPortOptions } from '../actors/model-openai.js'
import { createToolPort } from '../actors/tool.js'
import { agentMachine, budgetMachine, crewMachine, toolMachine } from '../machines/index.js'
import { createLevelJournal } from '../transport/level-journal.js'
import { createMemoryJournal } from '../transport/memory-journal.js'
import type { Agent, Crew } from './define.js'
import type { LiveCrew } from './dispatcher.js'
import type { Journal } from './journal.js'
import { createLog, type Log, type LogLevel } from './log.js'
import { prepareCrew } from './prepared-crew.js'
import type { RunResult } from './run.js'
import { Runtime, type RunInput, type SpawnOptions, type StartOptions } from './runtime.js'
import { Scope } from './scope.js'
import { systemClock } from './system-clock.js'
import { Worker } from './worker.js'

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
  type Budget,
  type Crew,
  type CrewOptions,
  defineAgent,
  defineCrew,
  defineTool,
  type EffectClass,
  type InstructionsContext,
  type Tool,
  type ToolContext,
  ToolError,
  type ToolOptions,
} from './define.js'
export { type ErrorCode, errorCodes, isTroupeError, TroupeError } from './errors.js'
export type { TroupeEvent } from './events.js'
export type { LogLevel } from './log.js'
export type { ModelSettings, Price } from './ports.js'
export { type ChatMessage, Run, type RunCost, type RunResult, type RunUsage } from './run.js'
export {
  CrewHandle,
  type CrewDetails,
  type CrewInfo,
  keyOf,
  type Part,
  type RunInfo,
  type RunInput,
  Runtime,
  type SpawnOptions,
  type StartOptions,
} from './runtime.js'

/** How to create a runtime. */
export interface RuntimeOptions {
  /** Folder of the store; made when missing. @default none: everything is in memory and gone with the process */
  readonly store?: string
  /**
   * What an acknowledged step survives: `process` a killed process, `power` a power cut (fsync).
   * @default 'power'
   */
  readonly durability?: 'process' | 'power'
  /** Live objects for tools; never journalled. */
  readonly deps?: unknown
  /** Providers by name: base URL, key, `fetch`. Known ones need none. */
  readonly providers?: OpenAIModelPortOptions['providers']
  /** Prices by deployment, for models that the price table does not know or has wrong. */
  readonly prices?: OpenAIModelPortOptions['prices']
  /** Least severe log lines on stderr. @default 'warn' */
  readonly log?: LogLevel
  /** A quiet crew leaves memory after so long. @default 30_000 */
  readonly idleMs?: number
}

interface SharedWorker {
  readonly opening: Promise<Worker>
  users: number
}

/** Workers by the real path of their store: a second runtime on the same store in this process shares the first one's. */
const shared = new Map<string, SharedWorker>()
const machines = { agent: agentMachine, tool: toolMachine, budget: budgetMachine, crew: crewMachine }

/**
 * Opens a store, or a memory, and takes up what its last owner left.
 * @throws TroupeError `STORE_BUSY` when another process has the store, `STORE_CORRUPT`, `CONFIG_INVALID`.
 */
export async function createRuntime(options: RuntimeOptions = {}): Promise<Runtime> {
  const log = createLog(options.log ?? 'warn')
  const model = createOpenAIModelPort({
    ...(options.providers === undefined ? {} : { providers: options.providers }),
    ...(options.prices === undefined ? {} : { prices: options.prices }),
  })
  const { worker, release } = await openWorker(options, log)
  const concurrency = new Map<string, number>()
  const bind = (crew: Crew): LiveCrew => {
    const prepared = prepareCrew(crew, model)
    const tools = createToolPort({
      tools: (_shard, agent) => prepared.agents.get(agent)?.tools ?? new Map(),
      deps: options.deps,
      log: (bindings) => log.with(bindings),
      clock: systemClock,
      concurrency: (shard) => concurrency.get(shard) ?? prepared.crew.limits.toolConcurrency,
    })
    return { prepared, model, tools }
  }
  const runtime: Runtime = new Runtime({
    worker,
    bind,
    release: async () => {
      await release(runtime.graceMs)
      await model.close()
    },
  })
  return runtime
}

async function openWorker(
  options: RuntimeOptions,
  log: Log,
): Promise<{ worker: Worker; release: (graceMs: number) => Promise<void> }> {
  if (options.store === undefined) {
    const worker = await open(createMemoryJournal(), options, log)
    return { worker, release: (graceMs) => worker.close(graceMs) }
  }
  await mkdir(options.store, { recursive: true })
  const path = await realpath(options.store)
  const entry = shared.get(path) ?? {
    opening: open(createLevelJournal({ path, durability: options.durability ?? 'power' }), options, log),
    users: 0,
  }
  shared.set(path, entry)
  entry.users += 1
  const leave = async (graceMs: number): Promise<void> => {
    entry.users -= 1
    if (entry.users > 0) return
    shared.delete(path)
    await (await entry.opening).close(graceMs)
  }
  try {
    return { worker: await entry.opening, release: leave }
  } catch (error) {
    shared.delete(path)
    throw error
  }
}

async function open(journal: Journal, options: RuntimeOptions, log: Log): Promise<Worker> {
  const worker = new Worker({
    journal,
    log,
    executor: `${process.pid}`,
    ports: { clock: systemClock, random: Math.random },
    context: { scope: new Scope(), machines },
    ...(options.idleMs === undefined ? {} : { idleMs: options.idleMs }),
  })
  await worker.open()
  return worker
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
