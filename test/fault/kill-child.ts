/**
 * The process that is killed: several crews on one store, real HTTP, real tools that keep a ledger.
 *
 * It is wired as `runtime/index.ts` wires it, with each port wrapped: a wrapper counts how often its window is passed
 * and kills the process with SIGKILL at the n-th time. The product knows nothing of it. Run by `kill-trials.ts`.
 */
import { openSync, readFileSync, writeSync } from 'node:fs'
import { createFetch } from '../../actors/fetch.js'
import { createOpenAIModelPort } from '../../actors/model-openai.js'
import { createToolPort } from '../../actors/tool.js'
import { agentMachine, budgetMachine, crewMachine, toolMachine } from '../../machines/index.js'
import type { Crew } from '../../runtime/define.js'
import type { LiveCrew } from '../../runtime/dispatcher.js'
import { isTroupeError } from '../../runtime/errors.js'
import type { Journal, JournalRecord } from '../../runtime/journal.js'
import { createLog } from '../../runtime/log.js'
import type { ModelPort, ToolPort } from '../../runtime/ports.js'
import { prepareCrew } from '../../runtime/prepared-crew.js'
import { fromRecord } from '../../runtime/record.js'
import type { CrewHandle } from '../../runtime/crew-handle.js'
import { Runtime } from '../../runtime/runtime.js'
import { Scope } from '../../runtime/scope.js'
import { systemClock } from '../../runtime/system-clock.js'
import { Worker } from '../../runtime/worker.js'
import { createLevelJournal } from '../../transport/level-journal.js'
import { crewOf, type CrewPlan, type LedgerLine, taskOf, type Workshop } from './kill-crews.js'

/** Where a process may be killed by hook. */
export type HookedWindow = 'before append' | 'append to dispatch' | 'in flight' | 'outcome to append'

/** What the parent tells a child. */
export interface ChildConfig {
  readonly store: string
  readonly ledger: string
  readonly baseURL: string
  readonly durability: 'process' | 'power'
  readonly crews: readonly CrewPlan[]
  /** Kill at the n-th passing of the window once armed; null: not by hook. */
  readonly hook: { readonly window: HookedWindow; readonly nth: number } | null
  /** Armed only when no open work has been through so many crashes. */
  readonly crashes: number
  readonly poisonous: boolean
  /** After this the runs are called hung. */
  readonly boundMs: number
}

/** What became of one crew's run. */
export interface CrewResult {
  readonly id: string
  readonly code: string | null
  readonly reason: string
  readonly output: string
  readonly messages: readonly { readonly role: string; readonly content?: unknown }[]
  readonly modelCalls: number
}

/** A `once` call that was interrupted after its `dispatched` record: who had it, when it was dispatched and given up. */
export interface LostCall {
  readonly crew: string
  readonly executor: string
  readonly dispatchedAt: number
  readonly interruptedAt: number
}

/** A line of the child's stdout. */
export type ChildSays =
  | { readonly type: 'opening' }
  | { readonly type: 'armed' }
  | { readonly type: 'done'; readonly results: readonly CrewResult[]; readonly lost: readonly LostCall[] }
  | { readonly type: 'hung'; readonly state: unknown }
  | { readonly type: 'failed'; readonly reason: string }

const config = JSON.parse(process.argv[2] ?? '{}') as ChildConfig
const ledger = openSync(config.ledger, 'a')

function say(line: ChildSays): void {
  const bytes = Buffer.from(`${JSON.stringify(line)}\n`)
  for (let at = 0; at < bytes.length; ) {
    try {
      at += writeSync(1, bytes, at)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error
    }
  }
}

function write(line: Omit<LedgerLine, 'pid' | 'at'>): void {
  writeSync(ledger, `${JSON.stringify({ pid: process.pid, at: Date.now(), ...line })}\n`)
}

function die(): never {
  for (;;) process.kill(process.pid, 'SIGKILL')
}

// ---------------------------------------------------------------------------------------------- the hook

/** Counts passings, and kills. Not before every piece of work that was through `config.crashes` crashes is done. */
class Gate {
  /** Work that must be done first: shard, then the actor or timer that waits. */
  readonly #endangered = new Map<string, Set<string>>()
  readonly #waiting: (() => void)[] = []
  #spawned = false
  #armed = false
  #passed = 0

  pass(window: HookedWindow, what: string): void {
    if (!this.#armed || config.hook?.window !== window) return
    this.#passed += 1
    if (this.#passed < config.hook.nth) return
    write({ what: 'kill', tool: window, slot: what, key: '' })
    die()
  }

  /** The runtime counted crashes for work that it is about to try again. */
  counted(shard: string, attempts: Readonly<Record<string, number>>): void {
    const works = Object.entries(attempts).filter(([, count]) => count >= config.crashes)
    const names = works.map(([work]) => work.split(' ')[1]!)
    if (names.length > 0) this.#endangered.set(shard, new Set(names))
  }

  appended(record: JournalRecord): void {
    const names = this.#endangered.get(record.shard)
    if (names === undefined) return
    for (const { envelope } of fromRecord(record.shard, record)) {
      if (envelope.from === 'clock/timer') names.delete(envelope.cause.split('|').slice(0, 2).join('|'))
      if (envelope.from.startsWith('port/') && envelope.body.type !== 'effect.interrupted') names.delete(envelope.to)
    }
    if (names.size === 0) this.ended(record.shard)
  }

  /** The shard has nothing that could come to harm any more. */
  ended(shard: string): void {
    this.#endangered.delete(shard)
    for (const wake of this.#waiting.splice(0)) wake()
    this.#arm()
  }

  /** Resolves when only `shard`, if any, could come to harm. */
  async safeBut(shard: string): Promise<void> {
    while ([...this.#endangered.keys()].some((other) => other !== shard))
      await new Promise<void>((resolve) => this.#waiting.push(resolve))
  }

  spawned(): void {
    this.#spawned = true
    this.#arm()
  }

  disarm(): void {
    this.#spawned = false
    this.#armed = false
  }

  #arm(): void {
    if (this.#armed || !this.#spawned || this.#endangered.size > 0) return
    this.#armed = true
    say({ type: 'armed' })
  }
}

const gate = new Gate()

function guardJournal(inner: Journal): Journal {
  const guarded: Partial<Journal> = {
    append: async (record) => {
      gate.pass('before append', record.shard)
      await inner.append(record)
      gate.pass('append to dispatch', record.shard)
      gate.appended(record)
    },
    putAttempts: async (shard, attempts) => {
      gate.counted(shard, attempts)
      await inner.putAttempts(shard, attempts)
    },
  }
  return new Proxy(inner, {
    get: (_target, name: keyof Journal) => {
      const own = guarded[name]
      if (own !== undefined) return own
      const value: unknown = inner[name]
      return typeof value === 'function' ? (value.bind(inner) as unknown) : value
    },
  })
}

function guardModel(inner: ModelPort): ModelPort {
  const call: ModelPort['call'] = async (request) => {
    const outcome = await inner.call(request)
    gate.pass('outcome to append', 'model')
    return outcome
  }
  return { call, price: inner.price, check: inner.check, close: inner.close }
}

function guardTools(inner: ToolPort): ToolPort {
  return {
    run: async (request) => {
      const outcome = await inner.run(request)
      gate.pass('outcome to append', request.tool)
      return outcome
    },
    verify: async (request) => {
      const outcome = await inner.verify(request)
      gate.pass('outcome to append', `verify ${request.tool}`)
      return outcome
    },
  }
}

const shop: Workshop = {
  write,
  read: () => {
    const lines = readFileSync(config.ledger, 'utf8').split('\n').filter(Boolean)
    return lines.map((line) => JSON.parse(line) as LedgerLine)
  },
  working: (tool) => gate.pass('in flight', tool),
  die: async (crew) => {
    await gate.safeBut(crew)
    return die()
  },
  poisonous: config.poisonous,
}

// ---------------------------------------------------------------------------------------------- the runtime

function createRuntime(): { runtime: Runtime; worker: Worker } {
  const fetch = createFetch()
  const model = createOpenAIModelPort({
    providers: {
      scripted: {
        baseURL: config.baseURL,
        apiKey: null,
        headers: { 'x-process': `${process.pid}` },
        fetch: async (url, init) => {
          // by then the request is on the wire; a reply takes longer
          const timer = setTimeout(() => gate.pass('in flight', 'model'), 2)
          try {
            return await fetch(url, init)
          } finally {
            clearTimeout(timer)
          }
        },
      },
    },
  })
  const log = createLog('error')
  const guarded = guardModel(model)
  const bind = (crew: Crew): LiveCrew => {
    const prepared = prepareCrew(crew, guarded)
    const tools = createToolPort({
      tools: (_shard, agent) => prepared.agents.get(agent)?.tools ?? new Map(),
      deps: undefined,
      log: (bindings) => log.with(bindings),
      clock: systemClock,
      concurrency: () => prepared.crew.limits.toolConcurrency,
    })
    return { prepared, model: guarded, tools: guardTools(tools) }
  }
  const worker = new Worker({
    journal: guardJournal(createLevelJournal({ path: config.store, durability: config.durability })),
    log,
    executor: `${process.pid}`,
    ports: { clock: systemClock, random: Math.random },
    context: {
      scope: new Scope(),
      machines: { agent: agentMachine, tool: toolMachine, budget: budgetMachine, crew: crewMachine },
    },
  })
  const runtime: Runtime = new Runtime({
    worker,
    bind,
    release: async () => {
      await worker.close(runtime.graceMs)
      await model.close()
      await fetch.close()
    },
  })
  return { runtime, worker }
}

async function resultOf(crew: CrewHandle<string>, plan: CrewPlan, watched: boolean): Promise<CrewResult> {
  const run = crew.start(taskOf(plan), { key: 'the-run' })
  if (watched) void drain(run.events)
  const { id } = plan
  try {
    const { output, messages, usage } = await run.result
    return { id, code: null, reason: '', output, messages, modelCalls: usage.modelCalls }
  } catch (error) {
    if (!isTroupeError(error)) throw error
    return { id, code: error.code, reason: error.message, output: '', messages: [], modelCalls: 0 }
  } finally {
    gate.ended(id)
  }
}

/** Watching makes the model stream. */
async function drain(events: AsyncIterable<unknown>): Promise<void> {
  for await (const event of events) void event
}

async function lostCalls(runtime: Runtime, crew: string): Promise<LostCall[]> {
  const dispatched = new Map<string, { executor: string; at: number }>()
  const lost: LostCall[] = []
  for await (const { envelope } of runtime.journal(crew)) {
    const { body, at, cause } = envelope
    if (body.type === 'effect.dispatched') dispatched.set(cause, { executor: String(body['executor']), at })
    if (body.type !== 'effect.interrupted' || body['started'] !== true) continue
    const by = dispatched.get(cause) ?? { executor: 'nobody', at: Number.POSITIVE_INFINITY }
    lost.push({ crew, executor: by.executor, dispatchedAt: by.at, interruptedAt: at })
  }
  return lost
}

async function main(): Promise<void> {
  const { runtime, worker } = createRuntime()
  const bound = setTimeout(() => {
    const crews = config.crews.map(({ id }) => runtime.show(id).catch(String))
    void Promise.all(crews).then((state) => {
      say({ type: 'hung', state })
      process.exit(3)
    })
  }, config.boundMs)
  say({ type: 'opening' })
  await worker.open()
  const handles: CrewHandle<string>[] = []
  for (const plan of config.crews) handles.push(await runtime.spawn(crewOf(plan, shop), { id: plan.id }))
  const results = handles.map((handle, index) => resultOf(handle, config.crews[index]!, index % 3 === 0))
  gate.spawned()
  const all = await Promise.all(results)
  gate.disarm()
  const lost = await Promise.all(config.crews.map(({ id }) => lostCalls(runtime, id)))
  await runtime.close({ graceMs: 5_000 })
  clearTimeout(bound)
  say({ type: 'done', results: all, lost: lost.flat() })
}

main().catch((error: unknown) => {
  say({ type: 'failed', reason: error instanceof Error ? (error.stack ?? error.message) : String(error) })
  process.exit(4)
})
