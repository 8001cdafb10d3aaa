/**
 * The process that is killed: several crews on one store, real HTTP, real tools that keep a ledger.
 *
 * It is wired as `runtime/index.ts` wires it, with each port wrapped: a wrapper counts how often its window is passed
 * and kills the process with SIGKILL at the n-th time. The product knows nothing of it. Run by `kill-trials.ts`.
 */
import { openSync, readFileSync, writeSync } from 'node:fs'
import { isTroupeError } from '../../runtime/errors.js'
import { createLog } from '../../runtime/log.js'
import type { CrewHandle } from '../../runtime/crew-handle.js'
import type { Run } from '../../runtime/run.js'
import { Runtime } from '../../runtime/runtime.js'
import { Scope } from '../../runtime/scope.js'
import { systemClock } from '../../runtime/system-clock.js'
import { Worker } from '../../runtime/worker.js'
import { createLevelJournal } from '../../transport/level-journal.js'
import {
  createHookedPorts,
  Danger,
  die,
  hookJournal,
  type Hooks,
  type LetterWindow,
  sayLine,
  type Window,
} from './hooked-ports.js'
import { machines } from '../../machines/index.js'
import { crewOf, type CrewPlan, type LedgerLine, onceTools, taskOf, type Workshop } from './kill-crews.js'
import { type LostCall, lostCalls } from './kill-judge.js'
import { askOf, lanesOf, mailCrews, type MailGroup } from './mail-crews.js'

/** Where a process may be killed by hook. */
export type HookedWindow =
  | Extract<Window, 'before append' | 'append to dispatch' | 'in flight' | 'outcome to append'>
  | Exclude<LetterWindow, `${string} sent`>

/** What the parent tells a child. */
export interface ChildConfig {
  readonly store: string
  readonly ledger: string
  readonly baseURL: string
  readonly durability: 'process' | 'power'
  readonly crews: readonly CrewPlan[]
  /** Crews that ask each other, and how many tasks each of their lanes is given. */
  readonly groups: readonly MailGroup[]
  readonly asks: number
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

/** A line of the child's stdout. */
export type ChildSays =
  | { readonly type: 'opening' }
  | { readonly type: 'armed' }
  | { readonly type: 'done'; readonly results: readonly CrewResult[]; readonly lost: readonly LostCall[] }
  | { readonly type: 'hung'; readonly state: unknown }
  | { readonly type: 'failed'; readonly reason: string }

const config = JSON.parse(process.argv[2] ?? '{}') as ChildConfig
const ledger = openSync(config.ledger, 'a')

const say = (line: ChildSays): void => sayLine(line)

function write(line: Omit<LedgerLine, 'pid' | 'at'>): void {
  writeSync(ledger, `${JSON.stringify({ pid: process.pid, at: Date.now(), ...line })}\n`)
}

// ---------------------------------------------------------------------------------------------- the hook

/** Counts passings, and kills. Not before every piece of work that was through `config.crashes` crashes is done. */
class Gate implements Hooks {
  readonly danger = new Danger(config.crashes)
  readonly #waiting: (() => void)[] = []
  #spawned = false
  #armed = false
  #passed = 0

  constructor() {
    this.danger.onSafe = () => {
      for (const wake of this.#waiting.splice(0)) wake()
      this.#arm()
    }
  }

  pass(window: Window, what: string): void {
    if (!this.#armed || config.hook?.window !== window) return
    this.#passed += 1
    if (this.#passed < config.hook.nth) return
    write({ what: 'kill', tool: window, slot: what, key: '' })
    die()
  }

  /** Resolves when only `shard`, if any, could come to harm. */
  async safeBut(shard: string): Promise<void> {
    while (this.danger.shards.some((other) => other !== shard))
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
    if (this.#armed || !this.#spawned || this.danger.shards.length > 0) return
    this.#armed = true
    say({ type: 'armed' })
  }
}

const gate = new Gate()

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
  const log = createLog('error')
  const ports = createHookedPorts(gate, { baseURL: config.baseURL, log, once: onceTools })
  const worker = new Worker({
    journal: hookJournal(createLevelJournal({ path: config.store, durability: config.durability }), gate),
    log,
    executor: `${process.pid}`,
    ports: { clock: systemClock, random: Math.random },
    context: { scope: new Scope(), machines },
  })
  const runtime: Runtime = new Runtime({
    worker,
    bind: ports.bind,
    release: async () => {
      await worker.close(runtime.graceMs)
      await ports.close()
    },
  })
  return { runtime, worker }
}

async function resultOf(crew: CrewHandle<string>, plan: CrewPlan, watched: boolean): Promise<CrewResult> {
  const run = crew.start(taskOf(plan), { key: 'the-run' })
  if (watched) void drain(run.events)
  try {
    return await endOf(plan.id, run)
  } finally {
    gate.danger.ended(plan.id)
  }
}

async function endOf(id: string, run: Run<string>): Promise<CrewResult> {
  try {
    const { output, messages, usage } = await run.result
    return { id, code: null, reason: '', output, messages, modelCalls: usage.modelCalls }
  } catch (error) {
    if (!isTroupeError(error)) throw error
    return { id, code: error.code, reason: error.message, output: '', messages: [], modelCalls: 0 }
  }
}

/** Gives a lane its tasks, one after the other. What had ended before the process was killed has ended still. */
async function resultsOf(
  group: MailGroup,
  lane: readonly string[],
  handles: ReadonlyMap<string, CrewHandle<string>>,
): Promise<CrewResult[]> {
  const results: CrewResult[] = []
  for (let n = 0; n < config.asks; n += 1) {
    const { crew, name, key, text } = askOf(group, lane, n)
    results.push(await endOf(name, handles.get(crew)!.start(text, { key })))
  }
  return results
}

/** Watching makes the model stream. */
async function drain(events: AsyncIterable<unknown>): Promise<void> {
  for await (const event of events) void event
}

async function main(): Promise<void> {
  const { runtime, worker } = createRuntime()
  const definitions = mailCrews(config.groups, shop)
  const ids = [...config.crews.map(({ id }) => id), ...definitions.keys()]
  const bound = setTimeout(() => {
    const crews = ids.map((id) => runtime.show(id).catch(String))
    void Promise.all(crews).then((state) => {
      say({ type: 'hung', state })
      process.exit(3)
    })
  }, config.boundMs)
  say({ type: 'opening' })
  await worker.open()
  const handles: CrewHandle<string>[] = []
  for (const plan of config.crews) handles.push(await runtime.spawn(crewOf(plan, shop), { id: plan.id }))
  const asked = new Map<string, CrewHandle<string>>()
  for (const [id, crew] of definitions) asked.set(id, await runtime.spawn(crew, { id }))
  const results = handles.map((handle, index) => resultOf(handle, config.crews[index]!, index % 3 === 0))
  const answers = config.groups.flatMap((group) => lanesOf(group).map((lane) => resultsOf(group, lane, asked)))
  gate.spawned()
  const all = [...(await Promise.all(results)), ...(await Promise.all(answers)).flat()]
  gate.disarm()
  const lost = await Promise.all(ids.map((id) => lostCalls(id, runtime.journal(id))))
  await runtime.close({ graceMs: 5_000 })
  clearTimeout(bound)
  say({ type: 'done', results: all, lost: lost.flat() })
}

main().catch((error: unknown) => {
  say({ type: 'failed', reason: error instanceof Error ? (error.stack ?? error.message) : String(error) })
  process.exit(4)
})
