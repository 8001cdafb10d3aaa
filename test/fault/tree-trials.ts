/**
 * Trials of a tree of budgets: 60 agents on three levels, races whose losers are cancelled in flight, and a process that is
 * killed with SIGKILL at every window and at random, and started again on its store. The judge is the provider, a server in
 * this process that bills each request that reaches it, whatever becomes of the reply (`tree-books.ts`).
 */
import { spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fault, type ScriptedAnswer, type ScriptedRequest, startScriptedModel } from '../../actors/scripted-model.js'
import { createLevelJournal } from '../../transport/level-journal.js'
import { bundleChild } from './child-script.js'
import type { Window } from './hooked-ports.js'
import { draw } from './kill-crews.js'
import { type Bill, type BooksReport, booksOf, judgeBooks } from './tree-books.js'
import type { TreeChildConfig, TreeChildSays } from './tree-child.js'
import {
  handbookTokens,
  heads,
  managers,
  maxOutput,
  roomy,
  scouts,
  tight,
  type TreeLimits,
  treePrice,
  workers,
} from './tree-crew.js'

/** A process must be done, or have been killed, by then. */
const boundMs = 60_000
const windows: readonly Window[] = ['before append', 'append to dispatch', 'in flight', 'outcome to append']

/** A kill that is still to be done: at a window, or so long after so many requests. */
type Planned =
  | { readonly window: Window; readonly nth: number }
  | { readonly requests: number; readonly delayMs: number }

/** What came of one trial. */
export interface TreeTrial extends BooksReport {
  readonly name: string
  readonly kills: readonly string[]
  readonly requests: number
  readonly code: string | null
  readonly ms: number
}

/** What came of all. */
export interface TreeReport {
  readonly trials: readonly TreeTrial[]
  readonly perWindow: Readonly<Record<string, number>>
  readonly requests: number
  /** Calls that count as estimated. */
  readonly estimated: number
  /** Agents that could not pay. */
  readonly exhausted: number
  readonly violations: readonly string[]
  readonly ms: number
}

/** Runs so many trials. The first is undisturbed, and must be exact without any estimate. */
export async function runTreeTrials(options: { readonly trials: number; readonly seed: number }): Promise<TreeReport> {
  const started = performance.now()
  await using script = await bundleChild('tree-child')
  const trials: TreeTrial[] = []
  for (let at = 0; at < options.trials; at += 1) trials.push(await new Trial(at, options.seed, script.path).run())
  const perWindow: Record<string, number> = {}
  for (const window of trials.flatMap(({ kills }) => kills)) perWindow[window] = (perWindow[window] ?? 0) + 1
  return {
    trials,
    perWindow,
    requests: trials.reduce((sum, { requests }) => sum + requests, 0),
    estimated: trials.reduce((sum, { estimated }) => sum + estimated, 0),
    exhausted: trials.reduce((sum, { exhausted }) => sum + exhausted, 0),
    violations: trials.flatMap(({ name, violations }) => violations.map((violation) => `${name}: ${violation}`)),
    ms: Math.round(performance.now() - started),
  }
}

// ---------------------------------------------------------------------------------------------- the provider

class Provider {
  readonly bills: Bill[] = []
  requests = 0
  onRequest: () => void = () => undefined
  readonly #failed = new Set<string>()

  constructor(
    private readonly seed: string,
    /** Some requests meet a fault. */
    private readonly faulty: boolean,
    private readonly slower: number,
  ) {}

  answer(request: ScriptedRequest): ScriptedAnswer {
    const agent = /^I am (\w+)\./.exec(String(request.messages[0]?.content))![1]!
    const round = request.messages.filter(({ role }) => role === 'assistant').length
    const task = String(request.messages.find(({ role }) => role === 'user')?.content)
    const place = `${agent} ${task} ${round}`
    const count = (this.requests += 1)
    this.onRequest()
    const refused = this.#faultOf(place)
    if (refused === 'busy') return fault.status(503)
    // No two bills of an agent are alike.
    const input = handbookTokens + (count % 100)
    const wanted = 8 * (15 + draw(`${this.seed} ${place} output`, 40)) + (Math.floor(count / 100) % 8)
    const output = Math.min(wanted, request.maxTokens ?? maxOutput)
    const nanoUsd = (input * treePrice.input + output * treePrice.output) / 1_000
    this.bills.push({ agent, input, output, nanoUsd })
    const says = output < wanted ? { text: 'cut short', finish: 'length' } : this.#speech(agent, task, round)
    const answer = { ...says, usage: { input, output } }
    return refused === 'cut' ? fault.cut(100, answer) : fault.delay(this.slower * this.#latencyOf(agent, place), answer)
  }

  #speech(agent: string, task: string, round: number): ScriptedAnswer {
    const call = (name: string, at: number) => ({ name, id: `c${round}-${at}`, arguments: { task: `${task} ${at}` } })
    const all = (name: string, count: number) => Array.from({ length: count }, (_, at) => call(name, at))
    const number = agent.slice(1)
    if (agent.startsWith('s') || agent.startsWith('w')) {
      if (round === draw(`${this.seed} ${task} rounds`, 3)) return { text: 'done' }
      return { calls: [{ name: 'note', id: `n${round}`, arguments: { n: round } }] }
    }
    if (round > 0) return { text: `${agent} is done` }
    if (agent === 'chief') return { calls: managers.map((name, at) => call(name, at)) }
    return { calls: agent.startsWith('h') ? all(`s${number}`, scouts) : all(`w${number}`, workers) }
  }

  /** One head and its scouts are quick, so that the others are cancelled in the midst of their calls. */
  #latencyOf(agent: string, place: string): number {
    const own = draw(`${this.seed} ${place} latency`, 60)
    if (!/^[hs]/.test(agent)) return 5 + own
    return agent.slice(1) === String(1 + draw(`${this.seed} winner`, heads.length)) ? 5 + own / 4 : 50 + 3 * own
  }

  /** At most once a request. */
  #faultOf(place: string): 'busy' | 'cut' | null {
    const at = draw(`${this.seed} ${place} fault`, 30)
    if (!this.faulty || at > 1 || this.#failed.has(place)) return null
    this.#failed.add(place)
    return at === 0 ? 'busy' : 'cut'
  }
}

// ---------------------------------------------------------------------------------------------- a trial

class Trial {
  readonly #name: string
  readonly #seed: string
  readonly #limits: TreeLimits
  readonly #exact: boolean
  readonly #provider: Provider
  readonly #planned: Planned[]
  readonly #kills: string[] = []
  readonly #violations: string[] = []

  constructor(
    private readonly at: number,
    seed: number,
    private readonly script: string,
  ) {
    this.#seed = `t${seed}-${at}`
    this.#exact = at === 0
    this.#limits = at % 3 === 1 ? tight : roomy
    this.#name = `${this.#limits === tight ? 'tight' : 'roomy'} ${this.#seed}`
    this.#provider = new Provider(this.#seed, at % 2 === 1, at % 5 === 4 ? 4 : 1)
    this.#planned = this.#exact ? [] : [this.#kill(2 * at), this.#kill(2 * at + 1)]
  }

  /** All windows in turn, and random ones. */
  #kill(index: number): Planned {
    const window = windows[index % (windows.length + 1)]
    const some = draw(`${this.#seed} kill ${index}`, 40)
    return window === undefined
      ? { requests: 5 + 2 * some, delayMs: draw(`${this.#seed} delay ${index}`, 60) }
      : { window, nth: 3 + some }
  }

  async run(): Promise<TreeTrial> {
    const started = performance.now()
    const folder = await mkdtemp(join(tmpdir(), 'troupe-tree-'))
    const model = await startScriptedModel((request) => this.#provider.answer(request), { keep: 0 })
    const store = join(folder, 'store')
    try {
      const config = {
        ...{ store, baseURL: model.baseURL, limits: this.#limits, races: !this.#exact, boundMs },
        per: this.at % 4 === 3 ? ('run' as const) : ('crew' as const),
      }
      let says = await this.#process(config)
      while (says === 'killed') says = await this.#process(config)
      if (says.type !== 'done')
        throw new Error(`${this.#name}: it did not end: ${JSON.stringify(says).slice(0, 2_000)}`)
      return await this.#judge(store, says, Math.round(performance.now() - started))
    } finally {
      await model.close()
      await rm(folder, { recursive: true, force: true })
    }
  }

  /** One process: to its end, or to the next kill. */
  async #process(base: Omit<TreeChildConfig, 'hook'>): Promise<TreeChildSays | 'killed'> {
    const [next] = this.#planned
    const hook = next !== undefined && 'window' in next ? next : null
    const config: TreeChildConfig = { ...base, hook }
    const child = spawn(process.execPath, [this.script, JSON.stringify(config)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const bound = setTimeout(() => child.kill('SIGKILL'), boundMs + 10_000)
    const closed = new Promise<void>((resolve) => child.once('close', () => resolve()))
    let shot = false
    const from = this.#provider.requests
    this.#provider.onRequest = () => {
      if (shot || next === undefined || 'window' in next || this.#provider.requests - from < next.requests) return
      shot = true
      setTimeout(() => child.kill('SIGKILL'), next.delayMs)
    }
    let says: TreeChildSays = { type: 'failed', reason: 'it said nothing' }
    for await (const line of createInterface({ input: child.stdout })) says = JSON.parse(line) as TreeChildSays
    await closed
    clearTimeout(bound)
    if (says.type === 'done') return says
    if (says.type === 'dying' || (shot && child.signalCode === 'SIGKILL')) {
      this.#planned.shift()
      this.#kills.push(hook?.window ?? 'random')
      return 'killed'
    }
    const reason = `it ended by ${child.signalCode ?? child.exitCode}`
    return says.type === 'ready' ? { type: 'failed', reason } : says
  }

  async #judge(store: string, end: Extract<TreeChildSays, { type: 'done' }>, ms: number): Promise<TreeTrial> {
    const { bills, requests } = this.#provider
    const journal = createLevelJournal({ path: store, durability: 'process' })
    await journal.open()
    const books = await booksOf(journal, 'tree')
    await journal.close()
    const { violations, ...report } = judgeBooks(books, bills, this.#limits, end.costNanoUsd)
    this.#violations.push(...violations)
    const fail = (isWrong: boolean, what: string): unknown => isWrong && this.#violations.push(what)
    fail(end.code !== null && this.#limits === roomy, `it ended with ${end.code}: ${end.reason}`)
    fail(this.#exact && end.costNanoUsd !== report.billedNanoUsd, `${end.costNanoUsd} is not ${report.billedNanoUsd}`)
    fail(this.#exact && report.agents !== 60, `${report.agents} agents called a model`)
    return {
      ...{ name: this.#name, kills: this.#kills, requests, code: end.code, ms },
      ...{ ...report, violations: this.#violations },
    }
  }
}
