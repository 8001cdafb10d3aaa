/**
 * Trials of one budget under 200 agents that spend at once. The judge is the provider: a server in this process that
 * bills each request at list price, whatever becomes of the reply, and whose counts of input differ from the runtime's
 * estimates by up to 20 %.
 *
 * What is promised, and checked with the provider's own count, is: spent ≤ limit + 20 % of the estimated input of the
 * calls that fit into the limit at once. A bill that never came in (its process was killed, its call cancelled, its
 * connection cut) is booked at the call's maximum, since nobody can ask for it again. So what is used of a limit after
 * such a loss depends on how near to their maximum the lost calls were. So where a kill hits a whole limit's worth of
 * calls (`killed`), the model writes nearly as much as it may, and where that and the moment are left to chance
 * (`ambush`), the limit and the end are judged, and not how much of it was used.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable, Writable } from 'node:stream'
import { priceOf } from '../../actors/prices.js'
import {
  fault,
  lastUser,
  type ScriptedAnswer,
  type ScriptedMessage,
  type ScriptedRequest,
  startScriptedModel,
} from '../../actors/scripted-model.js'
import { type BudgetChildConfig, type BudgetChildSays, maxOutput, type RunEnd, workers } from './budget-child.js'
import { bundleChild } from './child-script.js'
import { draw } from './kill-crews.js'

/** List price of gpt-5-mini in nano-dollars a token, written down here and not looked up. */
const listPrice = { input: 250, output: 2_000 } as const
/** The largest error of an estimate of input. */
const maxError = 0.2
/** A process must be done, or have been killed, by then. */
const boundMs = 60_000

/** What happens in a trial. */
interface Variant {
  readonly name: 'wide' | 'killed' | 'cancelled' | 'carved' | 'early' | 'ambush'
  /** Output of a reply, as a part of its maximum. */
  readonly output: readonly [number, number]
  /** Latency of a reply, in milliseconds. */
  readonly latency: readonly [number, number]
  readonly kills: number
  /** Workers that the lead of the first run calls before it calls all: what is lost then is not the whole limit. */
  readonly prelude: number
  /** Cancels the first of two runs that share the budget, while its prelude is at work. */
  readonly cancels: boolean
  /** Part of the limit that the workers may spend together. */
  readonly carved: number | null
  readonly judgesUtilisation: boolean
  /** Some replies are refused or cut. */
  readonly faults: boolean
}

const calm = { kills: 0, prelude: 0, cancels: false, carved: null, judgesUtilisation: true, faults: false } as const
const variants: readonly Variant[] = [
  { ...calm, name: 'wide', output: [0.2, 1], latency: [2, 60], faults: true },
  { ...calm, name: 'early', output: [0.5, 1], latency: [100, 250], prelude: 6, kills: 2 },
  { ...calm, name: 'cancelled', output: [0.5, 1], latency: [60, 200], prelude: 12, cancels: true },
  { ...calm, name: 'carved', output: [0.2, 1], latency: [2, 60], carved: 0.95 },
  { ...calm, name: 'killed', output: [0.92, 1], latency: [150, 400], kills: 1 },
  { ...calm, name: 'ambush', output: [0.1, 1], latency: [2, 200], kills: 2, faults: true, judgesUtilisation: false },
]

/** What came of one trial. */
export interface BudgetTrial {
  readonly name: string
  /** Provider's count over the limit. */
  readonly utilisation: number
  readonly judgesUtilisation: boolean
  /** What the runtime says that was spent, over the limit. */
  readonly booked: number
  /** Limit over the dearest call. */
  readonly calls: number
  /** The stated error over the limit. */
  readonly allowance: number
  readonly requests: number
  readonly kills: number
  /** Most requests at the provider at once. */
  readonly peak: number
  readonly ends: readonly (string | null)[]
  readonly ms: number
}

/** What came of all. */
export interface BudgetReport {
  readonly trials: readonly BudgetTrial[]
  readonly leastUtilisation: number
  readonly mostSpent: number
  readonly violations: readonly string[]
  readonly ms: number
}

/** Runs `trials` trials, each variant in turn; the seed says which is the first. */
export async function runBudgetTrials(options: {
  readonly trials: number
  readonly seed: number
}): Promise<BudgetReport> {
  const started = performance.now()
  await using script = await bundleChild('budget-child')
  const trials: BudgetTrial[] = []
  const violations: string[] = []
  const listed = priceOf('openai:gpt-5-mini')
  if (listed?.input !== listPrice.input * 1_000 || listed.output !== listPrice.output * 1_000)
    violations.push(`the price table says ${JSON.stringify(listed)}`)
  for (let at = 0; at < options.trials; at += 1) {
    const trial = new Trial(variants[(options.seed + at) % variants.length]!, `${options.seed}-${at}`, script.path)
    const report = await trial.run()
    trials.push(report)
    violations.push(...trial.violations.map((violation) => `${trial.name}: ${violation}`))
  }
  const judged = trials.filter(({ judgesUtilisation }) => judgesUtilisation)
  return {
    trials,
    leastUtilisation: Math.min(...judged.map(({ utilisation }) => utilisation)),
    mostSpent: Math.max(...trials.map(({ utilisation }) => utilisation)),
    violations,
    ms: Math.round(performance.now() - started),
  }
}

// ---------------------------------------------------------------------------------------------- the provider

/** One request as the provider counts it. */
interface Billed {
  readonly agent: 'lead' | 'worker'
  /** What the runtime must have estimated. */
  readonly estimate: number
  readonly input: number
  readonly output: number
  readonly maxTokens: number
  readonly nanoUsd: number
}

/** The model and its meter. */
class Provider {
  readonly billed: Billed[] = []
  /** Real counts of each conversation's rounds: the runtime's next estimate comes from them. */
  readonly #usage = new Map<string, { input: number; output: number }>()
  readonly #failed = new Set<string>()
  /** Faults left, by kind. What a cut call may have cost is booked whole: six of them can be a fifth of the smallest limit. */
  readonly #faults = { cut: 3, busy: 4, broken: 1 }
  #inFlight = 0
  peak = 0
  onRequest: (count: number) => void = () => undefined

  constructor(
    private readonly variant: Variant,
    private readonly seed: string,
  ) {}

  get spent(): number {
    return this.billed.reduce((sum, { nanoUsd }) => sum + nanoUsd, 0)
  }

  answer(request: ScriptedRequest): ScriptedAnswer {
    const name = lastUser(request)
    const round = request.messages.filter(({ role }) => role === 'assistant').length
    const place = `${name} ${round}`
    const estimate = this.#estimateOf(request, name, round)
    const input = Math.round(estimate * this.#errorOf(place))
    const agent = name.startsWith('lead') ? 'lead' : 'worker'
    const maxTokens = request.maxTokens ?? 0
    const wanted = Math.floor(maxOutput[agent] * this.#between(this.variant.output, `${place} output`))
    const output = Math.min(wanted, maxTokens)
    const nanoUsd = input * listPrice.input + output * listPrice.output
    this.#usage.set(place, { input, output })
    const refused = this.#faultOf(place)
    const bill = { agent, estimate, input, output, maxTokens, nanoUsd } as const
    if (refused === null || 'cut' in refused) this.billed.push(bill)
    this.onRequest(this.billed.length)
    const says = output < wanted ? { text: 'cut short', finish: 'length' } : this.#speech(agent, name, round)
    const answer: ScriptedAnswer = { ...says, usage: { input, output } }
    if (refused !== null) return 'cut' in refused ? fault.cut(refused.cut, answer) : fault.status(refused.status)
    const delayMs = Math.round(this.#between(this.variant.latency, `${place} latency`))
    const slow = draw(`${this.seed} ${place} slow`, 20) === 0 ? 600 : 0
    this.#count(delayMs + slow)
    return fault.delay(delayMs + slow, answer)
  }

  #count(ms: number): void {
    this.#inFlight += 1
    this.peak = Math.max(this.peak, this.#inFlight)
    setTimeout(() => (this.#inFlight -= 1), ms)
  }

  /** The runtime's estimate: a third of the characters at first, then the last real counts and the new results. */
  #estimateOf(request: ScriptedRequest, name: string, round: number): number {
    const before = this.#usage.get(`${name} ${round - 1}`)
    if (before === undefined) {
      const [system, ...rest] = request.messages.map((message) => JSON.stringify(message).length)
      const tools = JSON.stringify(request.body['tools'] ?? '').length
      return Math.ceil(((system ?? 0) + tools) / 3) + 16 + Math.ceil(rest.reduce((sum, length) => sum + length, 0) / 3)
    }
    const last = request.messages.findLastIndex(({ role }) => role === 'assistant')
    const results = request.messages.slice(last + 1).map(resultTokens)
    return results.reduce((sum, tokens) => sum + tokens, before.input + before.output)
  }

  /** Both ways, or always too low, or always too high. */
  #errorOf(place: string): number {
    const lossy = this.variant.kills > 0 || this.variant.cancels
    const bias = draw(`${this.seed} bias`, lossy ? 2 : 3)
    if (bias === 1) return 1 + maxError
    return bias === 2 ? 1 - maxError : this.#between([1 - maxError, 1 + maxError], `${place} error`)
  }

  #between([low, high]: readonly [number, number], what: string): number {
    return low + ((high - low) * draw(`${this.seed} ${what}`, 10_001)) / 10_000
  }

  /** At most once for each request, and not often: what a fault may have cost is booked at its maximum. */
  #faultOf(place: string): { readonly status: number } | { readonly cut: number } | null {
    if (!this.variant.faults || this.#failed.has(place)) return null
    const at = draw(`${this.seed} ${place} fault`, 40)
    const kind = at < 6 ? 'cut' : at < 8 ? 'busy' : at < 9 ? 'broken' : null
    if (kind === null || this.#faults[kind] === 0) return null
    this.#faults[kind] -= 1
    this.#failed.add(place)
    return { cut: { cut: 100 }, busy: { status: 429 }, broken: { status: 500 } }[kind]
  }

  /** The lead sends everybody to work, after the prelude if there is one; a worker makes some notes and answers. */
  #speech(agent: 'lead' | 'worker', name: string, round: number): ScriptedAnswer {
    const { prelude } = this.variant
    const rehearses = prelude > 0 && name === 'lead one'
    if (agent === 'worker') {
      const rounds = name.includes('prelude') ? 0 : 2 + draw(name, 3)
      return round < rounds ? { calls: [{ name: 'note', id: `n${round}`, arguments: { n: round } }] } : { text: 'done' }
    }
    if (round === (rehearses ? 2 : 1)) return { text: 'all done' }
    const [count, what] = rehearses && round === 0 ? [prelude, 'prelude'] : [workers, 'work']
    const calls = Array.from({ length: count }, (_, index) => {
      return { name: 'worker', id: `c${round}-${index}`, arguments: { task: `${name.slice(5)} ${what} ${index}` } }
    })
    return { calls }
  }
}

function resultTokens({ content }: ScriptedMessage): number {
  const text = typeof content === 'string' ? content : ''
  return text.startsWith('noted') ? Math.ceil(text.length / 3) : 256
}

// ---------------------------------------------------------------------------------------------- a trial

class Trial {
  readonly name: string
  readonly violations: string[] = []
  readonly #provider: Provider
  readonly #limit: number
  readonly #kills: number[]
  #killed = 0

  constructor(
    private readonly variant: Variant,
    private readonly seed: string,
    private readonly script: string,
  ) {
    this.name = `${variant.name} ${seed}`
    this.#provider = new Provider(variant, seed)
    // In reservations of a worker's first call, some 2.4 million nano-dollars.
    const calls = 24 + draw(`${seed} limit`, 12)
    this.#limit = calls * 2_400_000
    const first = { early: 4, killed: calls - 6 + draw(`${seed} kill`, 5), ambush: 1 + draw(`${seed} kill`, 30) }
    const at = variant.name in first ? first[variant.name as keyof typeof first] : 0
    this.#kills = Array.from({ length: variant.kills }, (_, index) => at + 5 * index)
  }

  async run(): Promise<BudgetTrial> {
    const started = performance.now()
    const folder = await mkdtemp(join(tmpdir(), 'troupe-budget-'))
    const model = await startScriptedModel((request) => this.#provider.answer(request), { keep: 0 })
    let ends: readonly RunEnd[] = []
    try {
      const config: BudgetChildConfig = {
        store: join(folder, 'store'),
        baseURL: model.baseURL,
        limitNanoUsd: this.#limit,
        workersNanoUsd: this.variant.carved === null ? null : Math.floor(this.#limit * this.variant.carved),
        per: this.variant.cancels ? 'crew' : 'run',
        runs: this.variant.cancels ? ['one', 'two'] : ['one'],
        boundMs,
      }
      let says = await this.#process(config)
      while (says === 'killed') says = await this.#process(config)
      if (says.type === 'done') ends = says.ends
      else this.violations.push(`it did not end: ${JSON.stringify(says).slice(0, 2_000)}`)
    } finally {
      await model.close()
      await rm(folder, { recursive: true, force: true })
    }
    return this.#judge(ends, Math.round(performance.now() - started))
  }

  /** One process: to its end, or to the next kill. */
  async #process(config: BudgetChildConfig): Promise<BudgetChildSays | 'killed'> {
    const child = spawn(process.execPath, [this.script, JSON.stringify(config)], { stdio: ['pipe', 'pipe', 'inherit'] })
    child.stdin.on('error', () => undefined)
    let shot = false
    let says: BudgetChildSays = { type: 'failed', reason: 'it said nothing' }
    const bound = setTimeout(() => child.kill('SIGKILL'), config.boundMs + 10_000)
    const closed = new Promise<void>((resolve) => child.once('close', () => resolve()))
    this.#provider.onRequest = (count) => {
      const [next] = this.#kills
      if (shot || next === undefined || count < next) return this.#maybeCancel(child, count)
      this.#kills.shift()
      shot = true
      // Most of what was granted together is on the wire by then, except in an ambush.
      const most = { early: 50, killed: 300 }
      const within = this.variant.name in most ? most[this.variant.name as keyof typeof most] : 0
      const delayMs = within === 0 ? 0 : 30 + draw(`${this.seed} delay ${count}`, within)
      setTimeout(() => child.kill('SIGKILL'), delayMs)
    }
    for await (const line of createInterface({ input: child.stdout })) says = JSON.parse(line) as BudgetChildSays
    await closed
    clearTimeout(bound)
    if (child.signalCode === 'SIGKILL' && shot && says.type !== 'done') {
      this.#killed += 1
      return 'killed'
    }
    return says.type === 'ready'
      ? { type: 'failed', reason: `it ended by ${child.signalCode ?? child.exitCode}` }
      : says
  }

  /** In the midst of the first run's prelude. */
  #maybeCancel(child: ChildProcessByStdio<Writable, Readable, null>, count: number): void {
    if (!this.variant.cancels || count !== this.variant.prelude) return
    setTimeout(() => child.stdin.write('cancel one\n'), 20 + draw(`${this.seed} cancel`, 100))
  }

  #judge(ends: readonly RunEnd[], ms: number): BudgetTrial {
    const { billed, spent, peak } = this.#provider
    const dearest = Math.max(...billed.map(({ nanoUsd }) => nanoUsd))
    const reservations = billed.filter(({ agent, maxTokens }) => maxTokens === maxOutput[agent])
    const least = Math.min(...reservations.map(reservation))
    const worstError = Math.max(0, ...billed.map(({ input, estimate }) => (input - estimate) * listPrice.input))
    const allowance = Math.floor(this.#limit / least) * worstError
    const utilisation = spent / this.#limit
    const fail = (violation: string): number => this.violations.push(violation)
    if (this.#limit > 40 * dearest) fail(`the limit is ${this.#limit / dearest} times the dearest call`)
    if (spent > this.#limit + allowance) fail(`spent ${spent} of ${this.#limit}, stated error ${allowance}`)
    if (this.variant.judgesUtilisation && utilisation < 0.85) fail(`used ${utilisation} of the limit`)
    const booked = ends.reduce((sum, { costNanoUsd }) => sum + costNanoUsd, 0)
    if (booked < 0.85 * this.#limit) fail(`booked ${booked} of ${this.#limit}`)
    if (booked + allowance < spent) fail(`the runtime says ${booked}, the provider ${spent}`)
    const exact = this.variant.kills === 0 && !this.variant.cancels && !this.variant.faults
    if (exact && booked !== spent) fail(`nothing was lost, and the runtime says ${booked}, the provider ${spent}`)
    if (this.variant.cancels && ends[0]?.code !== 'RUN_CANCELLED') fail(`the first run ended with ${ends[0]?.code}`)
    const last = ends.at(-1)
    if (last !== undefined && last.code !== null && last.code !== 'BUDGET_EXHAUSTED')
      fail(`the run ended with ${last.code}: ${last.reason}`)
    return {
      name: this.name,
      utilisation: rounded(utilisation),
      judgesUtilisation: this.variant.judgesUtilisation,
      booked: rounded(booked / this.#limit),
      calls: rounded(this.#limit / dearest),
      allowance: rounded(allowance / this.#limit),
      requests: billed.length,
      kills: this.#killed,
      peak,
      ends: ends.map(({ code }) => code),
      ms,
    }
  }
}

function reservation({ estimate, maxTokens }: Billed): number {
  return estimate * listPrice.input + maxTokens * listPrice.output
}

function rounded(value: number): number {
  return Math.round(value * 10_000) / 10_000
}
