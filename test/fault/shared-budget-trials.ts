/**
 * Trials of one budget that 60 crews on 3 workers spend from, over a real server, while workers are killed with SIGKILL and
 * links are cut. The judge is the provider: a server in this process that counts the requests that it gets.
 *
 * What is promised, and checked with the provider's own count: requests ≤ limit. The unit is a model call, which needs no
 * estimate, so the stated error is none. What is checked beside it: every run ends, answered or with `BUDGET_EXHAUSTED`; 90 %
 * of the units are used, since more is asked for than there is (a call that was cut off is booked, whether or not it reached
 * the provider); at rest the books of the budget are what the runs say that they have spent.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { join } from 'node:path'
import {
  type ScriptedAnswer,
  type ScriptedModel,
  type ScriptedRequest,
  fault,
  lastUser,
  startScriptedModel,
} from '../../actors/scripted-model.js'
import { createRuntime, type Crew, isTroupeError, type Runtime } from '../../runtime/index.js'
import { type LinkProxy, startLinkProxy } from '../support/link-proxy.js'
import { type NatsServer, startNatsServer } from '../support/nats-server.js'
import { bundleChild } from './child-script.js'
import { leaseMs } from './failover-trials.js'
import { draw } from './kill-crews.js'
import type { SharedBudgetConfig } from './shared-budget-child.js'
import { allUnits, callsOf, crewsOfTrial, poolOf, sharedBudgetCrews } from './shared-budget-crews.js'

const root = join(import.meta.dirname, '../..')
const workers = 3
/** Trials that one namespace and its workers are used for. */
const together = 10
/** A run must have ended by then. */
const boundMs = 120_000
/** The books must be right by then, once all runs have ended. */
const booksMs = 30_000
/** Of the units that there are. */
const leastUsed = 0.9

/** What is done to workers: two of these in each trial, a kill and what its link meets. */
const faults = [
  ['kill', 'silence'],
  ['cut', 'kill'],
  ['silence', 'kill'],
  ['kill', 'cut'],
] as const
type Fault = (typeof faults)[number][number]

/** What came of one trial. */
export interface SharedBudgetTrial {
  readonly name: string
  /** Requests that the provider got. */
  readonly requests: number
  /** Model calls that the runs say they made. */
  readonly told: number
  /** What the budget has booked at the end. */
  readonly booked: number
  readonly answered: number
  readonly exhausted: number
  readonly kills: number
  readonly links: number
  readonly ms: number
}

/** What came of all. */
export interface SharedBudgetReport {
  readonly trials: readonly SharedBudgetTrial[]
  readonly leastUsed: number
  readonly mostUsed: number
  readonly kills: number
  readonly links: number
  readonly violations: readonly string[]
  readonly ms: number
}

/** Runs so many trials, ten in a namespace. */
export async function runSharedBudgetTrials(options: {
  readonly trials: number
  readonly seed: number
  /** What the budget of a trial has. @default 1,000 */
  readonly units?: number
}): Promise<SharedBudgetReport> {
  const started = performance.now()
  const { units = allUnits } = options
  const trials: SharedBudgetTrial[] = []
  const violations: string[] = []
  await using script = await bundleChild('shared-budget-child')
  for (let first = 0; first < options.trials; first += together) {
    const count = Math.min(together, options.trials - first)
    const names = Array.from({ length: count }, (_, at) => `b${options.seed}-${first + at}`)
    await using stage = await BudgetStage.set(script.path, `n${options.seed}-${first}`, names, units)
    for (const name of names) {
      const trial = new Trial(name, stage)
      trials.push(await trial.run())
      violations.push(...trial.violations.map((violation) => `${name}: ${violation}`))
    }
    violations.push(...stage.broken)
  }
  const used = trials.map(({ requests }) => requests / units)
  return {
    trials,
    leastUsed: Math.min(...used),
    mostUsed: Math.max(...used),
    kills: trials.reduce((sum, { kills }) => sum + kills, 0),
    links: trials.reduce((sum, { links }) => sum + links, 0),
    violations,
    ms: Math.round(performance.now() - started),
  }
}

// ---------------------------------------------------------------------------------------------- workers and provider

interface BudgetWorker {
  readonly child: ChildProcess
  readonly proxy: LinkProxy
  readonly ended: Promise<void>
}

/** A server, workers behind a proxy each, a client, and the provider. */
class BudgetStage implements AsyncDisposable {
  readonly workers: BudgetWorker[] = []
  readonly broken: string[] = []
  /** Requests by trial. */
  readonly requests = new Map<string, number>()
  onRequest: () => void = () => undefined
  readonly #script: string
  readonly #namespace: string
  readonly #trials: readonly string[]
  readonly units: number
  #server!: NatsServer
  #model!: ScriptedModel
  client!: Runtime
  #count = 0

  private constructor(script: string, namespace: string, trials: readonly string[], units: number) {
    this.units = units
    this.#script = script
    this.#namespace = namespace
    this.#trials = trials
  }

  static async set(script: string, namespace: string, trials: readonly string[], units: number): Promise<BudgetStage> {
    const stage = new BudgetStage(script, namespace, trials, units)
    stage.#server = await startNatsServer()
    stage.#model = await startScriptedModel((request) => stage.#answer(request), { keep: 0 })
    await Promise.all(Array.from({ length: workers }, () => stage.startWorker()))
    const { url } = stage.#server
    stage.client = await createRuntime({ nats: { servers: [url], namespace, role: 'client' }, log: 'error' })
    return stage
  }

  /** Each crew makes its number of calls: its task says whose they are. */
  #answer(request: ScriptedRequest): ScriptedAnswer {
    const crew = lastUser(request)
    const trial = crew.slice(0, crew.lastIndexOf('-'))
    this.requests.set(trial, (this.requests.get(trial) ?? 0) + 1)
    this.onRequest()
    const round = request.messages.filter(({ role }) => role === 'assistant').length
    const usage = { input: 20, output: 10 }
    const answer: ScriptedAnswer =
      round + 1 < callsOf(crew, this.units)
        ? { calls: [{ name: 'note', id: `n${round}`, arguments: { n: round } }], usage }
        : { text: 'done', usage }
    return fault.delay(5 + draw(`${crew} ${round} latency`, 60), answer)
  }

  async startWorker(): Promise<void> {
    const proxy = await startLinkProxy(this.#server.port)
    const worker = `w${(this.#count += 1)}`
    const config: SharedBudgetConfig = {
      ...{ servers: [`nats://127.0.0.1:${proxy.port}`], namespace: this.#namespace, worker, leaseMs },
      ...{ baseURL: this.#model.baseURL, trials: this.#trials, units: this.units },
    }
    const stdio = ['pipe', 'pipe', 'pipe'] as const
    const child = spawn(process.execPath, [this.#script, JSON.stringify(config)], { cwd: root, stdio: [...stdio] })
    let errors = ''
    child.stderr!.on('data', (data: Buffer) => (errors = (errors + data.toString()).slice(-4_000)))
    child.stdin!.on('error', () => undefined)
    const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()))
    await Promise.race([
      new Promise<void>((resolve) => child.stdout!.once('data', () => resolve())),
      ended.then(() => Promise.reject(new Error(`${worker} ended before it was ready: ${errors}`))),
    ])
    const one = { child, proxy, ended }
    this.workers.push(one)
    void ended.then(async () => {
      this.workers.splice(this.workers.indexOf(one), 1)
      if (child.signalCode !== 'SIGKILL' && child.exitCode !== 0)
        this.broken.push(`${worker} ended by itself with ${child.signalCode ?? child.exitCode}: ${errors}`)
      await proxy.close()
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.client.close()
    const ends = this.workers.map(({ child, ended }) => (child.kill('SIGKILL'), ended))
    await Promise.all(ends)
    await this.#model.close()
    await this.#server.dispose()
  }
}

// ---------------------------------------------------------------------------------------------- a trial

interface RunEnd {
  readonly code: string | null
  readonly reason: string
  readonly modelCalls: number
}

class Trial {
  readonly violations: string[] = []
  readonly #name: string
  readonly #stage: BudgetStage
  #kills = 0
  #links = 0

  constructor(name: string, stage: BudgetStage) {
    this.#name = name
    this.#stage = stage
  }

  get #requests(): number {
    return this.#stage.requests.get(this.#name) ?? 0
  }

  async run(): Promise<SharedBudgetTrial> {
    const started = performance.now()
    const { client } = this.#stage
    const [budget, crew] = sharedBudgetCrews([this.#name], this.#stage.units) as [Crew<unknown>, Crew<unknown>]
    await client.spawn(budget, { id: poolOf(this.#name) })
    let going = true
    const disturbing = this.#disturb(() => going)
    const ids = Array.from({ length: crewsOfTrial }, (_, at) => `${this.#name}-${at}`)
    const ends = await Promise.all(ids.map((id) => this.#end(crew, id)))
    going = false
    this.#stage.onRequest()
    await disturbing
    const told = ends.reduce((sum, { modelCalls }) => sum + modelCalls, 0)
    const booked = await this.#books(told)
    this.#judge(ends, told, booked)
    return {
      name: this.#name,
      requests: this.#requests,
      told,
      booked,
      answered: ends.filter(({ code }) => code === null).length,
      exhausted: ends.filter(({ code }) => code === 'BUDGET_EXHAUSTED').length,
      kills: this.#kills,
      links: this.#links,
      ms: Math.round(performance.now() - started),
    }
  }

  /** Gives a crew its task and waits for the end of its run. */
  async #end(crew: Crew<unknown>, id: string): Promise<RunEnd> {
    let timer: NodeJS.Timeout | undefined
    const hung = new Promise<RunEnd>((resolve) => {
      timer = setTimeout(
        () => resolve({ code: 'HUNG', reason: `${id}: no end after ${boundMs} ms`, modelCalls: 0 }),
        boundMs,
      )
    })
    return Promise.race([this.#endOf(crew, id), hung]).finally(() => clearTimeout(timer))
  }

  async #endOf(crew: Crew<unknown>, id: string): Promise<RunEnd> {
    try {
      const handle = await this.#stage.client.spawn(crew, { id })
      const { usage } = await handle.start(id, { key: 'the-run' }).result
      return { code: null, reason: '', modelCalls: usage.modelCalls }
    } catch (error) {
      if (!isTroupeError(error)) throw error
      return {
        code: error.code,
        reason: `${id}: ${error.message}`,
        modelCalls: Number(error.details['modelCalls'] ?? 0),
      }
    }
  }

  /** Makes the trial's faults, each when so many of the units are used. */
  async #disturb(going: () => boolean): Promise<void> {
    const kinds = faults[draw(`${this.#name} faults`, faults.length)]!
    const plan = kinds.map((kind, at) => ({
      kind,
      at: Math.round(this.#stage.units * (0.1 + 0.3 * at + draw(`${this.#name} ${at}`, 300) / 1_000)),
    }))
    for (const { kind, at } of plan) {
      await new Promise<void>((resolve) => {
        const look = (): void => {
          if (this.#requests < at && going()) return
          this.#stage.onRequest = () => undefined
          resolve()
        }
        this.#stage.onRequest = look
        look()
      })
      if (!going()) return
      await this.#make(kind, `${this.#name} ${at}`)
    }
  }

  async #make(kind: Fault, what: string): Promise<void> {
    const { workers: all } = this.#stage
    const worker = all[draw(`${what} worker`, all.length)]!
    if (kind === 'kill') {
      this.#kills += 1
      worker.child.kill('SIGKILL')
      await worker.ended
      return this.#stage.startWorker()
    }
    this.#links += 1
    if (kind === 'cut') return worker.proxy.cut()
    // Long enough for its lease to run out, so that others take its crews, or a little shorter.
    worker.proxy.up = 'swallow'
    worker.proxy.down = 'swallow'
    await new Promise((resolve) => setTimeout(resolve, leaseMs / 2 + draw(`${what} ms`, leaseMs)))
    worker.proxy.up = 'pass'
    worker.proxy.down = 'pass'
    worker.proxy.cut()
  }

  /** What the budget has booked, once that is what the runs say, or when it should have been. */
  async #books(told: number): Promise<number> {
    for (const until = Date.now() + booksMs; ; await new Promise((resolve) => setTimeout(resolve, 100))) {
      const { books } = await this.#stage.client.show(poolOf(this.#name))
      const booked = books?.booked.modelCalls ?? Number.NaN
      if ((booked === told && books?.waiting.length === 0) || Date.now() > until) return booked
    }
  }

  #judge(ends: readonly RunEnd[], told: number, booked: number): void {
    const requests = this.#requests
    const { units } = this.#stage
    const say = (violation: string): void => void this.violations.push(violation)
    if (requests > units) say(`the provider was asked ${requests} times, ${units} were allowed`)
    if (requests > told) say(`the provider was asked ${requests} times, and the runs know of ${told}`)
    if (booked !== told) say(`the budget has ${booked} booked, the runs have spent ${told}`)
    if (requests < leastUsed * units) say(`only ${requests} of ${units} were used`)
    for (const { code, reason } of ends) if (code !== null && code !== 'BUDGET_EXHAUSTED') say(`${code}: ${reason}`)
    if (this.#kills + this.#links < 2) say(`only ${this.#kills + this.#links} faults were made`)
  }
}
