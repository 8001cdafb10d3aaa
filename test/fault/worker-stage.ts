/**
 * The stage of workers under faults: servers, worker processes, crews that come and go as a load, an observer of their
 * events, and the judge at the end. What faults are made, and when, is the trials' affair.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { MsgRequest } from '@nats-io/jetstream'
import { createRuntime, type Runtime } from '../../runtime/index.js'
import { isTroupeError } from '../../runtime/errors.js'
import { consumerOf } from '../../transport/mail-leftovers.js'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { partitionOf, Subjects } from '../../transport/subjects.js'
import type { NatsServer } from '../support/nats-server.js'
import type { CrewResult } from './kill-child.js'
import {
  type CrewKind,
  type CrewPlan,
  draw,
  type LedgerLine,
  sharedCrews,
  sharedNameOf,
  taskOf,
  type Workshop,
} from './kill-crews.js'
import { judgeDeeds } from './kill-judge.js'
import { type KillModel, startKillModel } from './kill-model.js'
import { answerMail, type MailGroup } from './mail-crews.js'
import type { Window } from './hooked-ports.js'
import type { Fault, WorkerConfig, WorkerHears, WorkerSays } from './worker-child.js'
import {
  type CrewStory,
  judgeGivenUp,
  judgeLosses,
  judgeStored,
  type StoredCrews,
  type WorkerFault,
} from './worker-judge.js'
import { WorkerObserver } from './worker-observer.js'

const root = join(import.meta.dirname, '../..')
/** A run must have ended by then. */
const boundMs = 240_000
/** Letters must be gone by then, once nothing runs. */
const lettersMs = 60_000
const kinds: readonly CrewKind[] = ['once', 'plain', 'once', 'plain', 'once', 'tight', 'once', 'plain']

/** How to set a stage. */
export interface StageOptions {
  readonly name: string
  /** The bundled `worker-child`. */
  readonly script: string
  /** One server, or the nodes of a cluster. They outlive the stage. */
  readonly servers: readonly NatsServer[]
  /** Crews at work at once. */
  readonly lanes: number
  readonly leaseMs: number
  readonly replicas?: number
  /** Times the usual latency of the model. @default 1 */
  readonly slower?: number
  readonly haulBytes?: number
  /** Crews that ask each other, and have the model to themselves. @default none */
  readonly groups?: readonly MailGroup[]
}

/** A worker process. */
export interface WorkerProcess {
  readonly name: string
  readonly child: ChildProcess
  /** Epoch milliseconds when it was seen to be gone. */
  readonly ended: Promise<number>
  /** What it said of its link, in order. */
  readonly links: { readonly what: string; readonly at: number }[]
  arm(window: Window | null, fault: Fault, nth?: number): void
}

/** What a stage came to. */
export interface StageReport {
  readonly runs: number
  readonly records: number
  readonly events: number
  /** `once` calls whose outcome was lost. */
  readonly lost: number
  /** Calls that were given up, since three processes died over each. */
  readonly givenUp: number
  /** Executions of tools that were repeats. */
  readonly repeats: number
  readonly onceCalls: number
  readonly violations: readonly string[]
}

/** What several came to together. */
export function totalOf(reports: readonly StageReport[]): StageReport {
  const sum = (of: (report: StageReport) => number): number => reports.reduce((total, each) => total + of(each), 0)
  return {
    runs: sum(({ runs }) => runs),
    records: sum(({ records }) => records),
    events: sum(({ events }) => events),
    lost: sum(({ lost }) => lost),
    givenUp: sum(({ givenUp }) => givenUp),
    repeats: sum(({ repeats }) => repeats),
    onceCalls: sum(({ onceCalls }) => onceCalls),
    violations: reports.flatMap(({ violations }) => violations),
  }
}

/** Sets a stage. */
export async function setStage(options: StageOptions): Promise<WorkerStage> {
  const folder = await mkdtemp(join(tmpdir(), 'troupe-workers-'))
  mkdirSync(join(folder, 'ledger'))
  const subjects = new Subjects(options.name)
  const model = await startKillModel(options.slower, options.groups === undefined ? undefined : answerMail)
  const servers = options.servers.map(({ url }) => url)
  const link = await connectNats({ servers, name: 'judge' })
  const client = await createRuntime({ nats: { servers, namespace: options.name, role: 'client' }, log: 'error' })
  return new WorkerStage(options, { folder, subjects, model, link, client })
}

interface Props {
  readonly folder: string
  readonly subjects: Subjects
  readonly model: KillModel
  readonly link: NatsLink
  readonly client: Runtime
}

/** Workers, their load, and whoever watches. */
export class WorkerStage implements AsyncDisposable {
  readonly workers = new Map<string, WorkerProcess>()
  readonly faults: WorkerFault[] = []
  readonly subjects: Subjects
  readonly link: NatsLink
  readonly client: Runtime
  /** Milliseconds from the end of an owner until the next one was seen, one for each crew that it had. */
  readonly takeoverMs: number[] = []
  readonly #options: StageOptions
  readonly #folder: string
  readonly #model: KillModel
  readonly #plans: CrewPlan[] = []
  readonly #results: CrewResult[] = []
  readonly #danger = new Set<string>()
  readonly #broken: string[] = []
  readonly #measuring: Promise<void>[] = []
  #observer: WorkerObserver | null = null
  #lanes: Promise<void>[] = []
  #loading = false
  #workerCount = 0

  /** Made by `setStage`. */
  constructor(options: StageOptions, { folder, subjects, model, link, client }: Props) {
    this.#options = options
    this.#folder = folder
    this.subjects = subjects
    this.#model = model
    this.link = link
    this.client = client
    this.noteServer()
  }

  /** Runs that have ended so far. */
  get ended(): number {
    return this.#results.length
  }

  /** What the model was asked. */
  get requests(): KillModel['requests'] {
    return this.#model.requests
  }

  get observer(): WorkerObserver {
    // There is no stream before there is a worker.
    this.#observer ??= new WorkerObserver(this.link, this.subjects)
    return this.#observer
  }

  // Workers.

  /** Starts a worker, with a name that none had; resolves when it takes crews. @param server @default the servers' own addresses */
  async startWorker(servers = this.#options.servers.map(({ url }) => url)): Promise<WorkerProcess> {
    const { name: namespace, leaseMs, replicas = 1, haulBytes = 0, script, groups = [] } = this.#options
    const name = `w${(this.#workerCount += 1)}`
    const config: WorkerConfig = {
      servers,
      namespace,
      worker: name,
      leaseMs,
      replicas,
      haulBytes,
      groups,
      baseURL: this.#model.model.baseURL,
      ledger: join(this.#folder, 'ledger'),
      store: join(this.#folder, name),
      serverPid: join(this.#folder, 'server.pid'),
    }
    const child = spawn(process.execPath, [script, JSON.stringify(config)], {
      cwd: root,
      stdio: ['pipe', 'pipe', 'pipe'],
    })
    let errors = ''
    child.stderr.on('data', (data: Buffer) => (errors = (errors + data.toString()).slice(-4_000)))
    child.stdin.on('error', () => undefined)
    const ended = new Promise<number>((resolve) => child.once('exit', () => resolve(Date.now())))
    const worker: WorkerProcess = {
      name,
      child,
      ended,
      links: [],
      arm: (window, fault, nth = 1) => {
        const hears: WorkerHears = { window, fault, nth }
        if (child.exitCode === null && child.signalCode === null) child.stdin.write(`${JSON.stringify(hears)}\n`)
      },
    }
    await new Promise<void>((resolve, reject) => {
      createInterface({ input: child.stdout }).on('line', (line) => {
        const says = JSON.parse(line) as WorkerSays
        if (says.type === 'ready') resolve()
        else if (says.type === 'failed') this.#broken.push(`${name} failed: ${says.reason}`)
        else if (says.type === 'link') worker.links.push({ what: says.what, at: Date.now() })
        else if (says.type === 'danger') this.#danger.add(says.shard)
        else this.#danger.delete(says.shard)
      })
      void ended.then(() => reject(new Error(`${name} ended before it was ready: ${errors}`)))
    })
    this.workers.set(name, worker)
    void ended.then(() => {
      this.workers.delete(name)
      const { exitCode, signalCode } = child
      if (signalCode !== 'SIGKILL' && exitCode !== 0)
        this.#broken.push(`${name} ended by itself with ${signalCode ?? exitCode}: ${errors}`)
    })
    return worker
  }

  /** Notes which process is the server that hooks kill. */
  noteServer(): void {
    writeFileSync(join(this.#folder, 'server.pid'), `${this.#options.servers[0]!.pid}`)
  }

  /** Notes a fault. For an end of a worker it measures, from then on, until its crews have another owner. */
  note(fault: Omit<WorkerFault, 'until'>): WorkerFault {
    const noted: WorkerFault = { ...fault, until: fault.at }
    this.faults.push(noted)
    return noted
  }

  /** Measures how long it takes until each unfinished crew of a worker that has just been killed has another owner. */
  measure(worker: string, at: number): void {
    for (const crew of this.observer.unfinishedOf(worker)) {
      const seen = this.observer.crews.get(crew)!
      const before = seen.takings.length
      const taken = this.observer
        .until(() => seen.takings.length > before || seen.finished, 30_000)
        .then((isTaken) => {
          const next = seen.takings[before]
          if (next !== undefined) this.takeoverMs.push(next.seenAt - at)
          // What it did last may have come to the stream after it died.
          else if (!isTaken) this.#broken.push(`${crew} was not taken over after the end of ${worker}`)
        })
      this.#measuring.push(taken)
    }
  }

  /** The next fault that a hook makes; null when none is made in time. */
  async nextFault(after: number, timeoutMs: number): Promise<LedgerLine | null> {
    let found: LedgerLine | undefined
    await this.observer.until(() => (found = this.hookedFaults()[after]) !== undefined, timeoutMs)
    return found ?? null
  }

  /** What hooks have done so far. */
  hookedFaults(): LedgerLine[] {
    return readLines(join(this.#folder, 'ledger', 'faults'))
  }

  /** Lines of a crew's ledger so far. */
  ledgerOf(crew: string): LedgerLine[] {
    return readLines(join(this.#folder, 'ledger', crew))
  }

  /** Resolves when what killed workers had is with others. */
  async takenOver(): Promise<void> {
    await Promise.all(this.#measuring.splice(0))
  }

  /** Resolves when no work is open that has been through two crashes, or after ten seconds. */
  async calm(): Promise<void> {
    const isCalm = (): boolean => [...this.#danger].every((shard) => this.observer.crews.get(shard)?.finished === true)
    await this.observer.until(isCalm, 10_000)
    this.#danger.clear()
  }

  // Load.

  /** Begins to give crews their tasks: each lane one after the other, until `settle`. */
  load(): void {
    this.#loading = true
    const crews = sharedCrews(idleShop)
    this.#lanes = Array.from({ length: this.#options.lanes }, async () => {
      while (this.#loading) await this.#give(this.#nextPlan(), crews)
    })
  }

  /** Runs crews to their end that are there and idle from then on. */
  async fill(count: number): Promise<void> {
    const crews = sharedCrews(idleShop)
    const ids = Array.from({ length: count }, (_, index) => `${this.#options.name}-bulk-i${index}`)
    const next = async (): Promise<void> => {
      for (let id = ids.shift(); id !== undefined; id = ids.shift()) {
        const plan: CrewPlan = { id, kind: 'bulk', rounds: 1 }
        const handle = await this.client.spawn(crews.get('bulk')!, { id })
        await handle.ask(taskOf(plan), { key: 'the-run' })
      }
    }
    // Each waits for the model most of its time.
    await Promise.all(Array.from({ length: 64 }, next))
  }

  #nextPlan(): CrewPlan {
    const count = this.#plans.length
    const kind = kinds[count % kinds.length]!
    const id = `${this.#options.name}-${kind}-${count}`
    const plan = { id, kind, rounds: kind === 'tight' ? 40 : 5 + draw(`${id} rounds`, 6) }
    this.#plans.push(plan)
    return plan
  }

  async #give(plan: CrewPlan, crews: ReturnType<typeof sharedCrews>): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    const hung = new Promise<CrewResult>((resolve) => {
      timer = setTimeout(() => resolve(failure(plan, 'HUNG', `no end after ${boundMs} ms`)), boundMs)
    })
    const watched = this.#plans.length % 5 === 0
    this.#results.push(await Promise.race([resultOf(this.client, plan, crews, watched), hung]))
    clearTimeout(timer)
  }

  /** Ends the load and the workers as they are: what they had is not waited for. */
  async halt(): Promise<void> {
    this.#loading = false
    await Promise.all([...this.workers.values()].map(({ child, ended }) => (child.kill('SIGKILL'), ended)))
    await this.#caughtUp()
  }

  /** Gives no more tasks; resolves when all that were given have ended. */
  async settle(): Promise<void> {
    this.#loading = false
    await Promise.all(this.#lanes)
    await this.takenOver()
  }

  // The end.

  /**
   * What is wrong with the mail when nobody sends any more: letters that stay. The last ones come again for a while, since
   * answers to a server that was killed are lost.
   */
  async judgeLetters(): Promise<string[]> {
    for (const until = Date.now() + lettersMs; Date.now() < until; await new Promise((r) => setTimeout(r, 250)))
      if ((await this.#letterLeft().catch(() => undefined)) === null) return []
    const which = await this.#letterLeft().catch(String)
    return which === null ? [] : [`a letter is stored ${lettersMs} ms after the last run ended: ${which}`]
  }

  /** The first letter that can be had, and what its consumer knows of it; null for none. 2.9.10 may count one that it has not. */
  async #letterLeft(): Promise<string | null> {
    const { streams, consumers } = this.link.manager
    const stream = this.subjects.stream('mail')
    const query = { seq: 1, next_by_subj: this.subjects.mails() } as MsgRequest
    const letter = await streams.getMessage(stream, query)
    if (letter === null) return null
    const info = await consumers.info(stream, consumerOf(partitionOf(this.subjects.shardOfMail(letter.subject))))
    const { delivered, ack_floor, num_ack_pending, num_pending } = info
    const known = { delivered, ack_floor, num_ack_pending, num_pending }
    return `${letter.seq} of ${letter.time.toISOString()} ${letter.subject} ${JSON.stringify(known)}`
  }

  /** Ends the load, lets a twin that nobody disturbs do the same, and judges. */
  async finish(): Promise<StageReport> {
    await this.settle()
    const letters = await this.judgeLetters()
    const ledger = this.#plans.flatMap(({ id }) => this.ledgerOf(id))
    const twin = await runTwin(this.#plans, this.#model.model.baseURL)
    const crews = this.#plans.map(({ id }) => id)
    const { lost, givenUp, records, events, violations } = await this.judge(crews)
    const deeds = {
      crews: this.#plans,
      results: this.#results,
      lost,
      givenUp: new Set(givenUp.map(({ crew }) => crew)),
      ledger,
      twin: twin.results,
      twinLedger: twin.ledger,
    }
    const all = [...judgeDeeds(deeds), ...violations, ...letters]
    const starts = ledger.filter(({ what }) => what === 'start')
    return {
      runs: this.#results.length,
      records,
      events,
      lost: lost.length,
      givenUp: givenUp.length,
      repeats: starts.length - new Set(starts.map(({ key }) => key)).size,
      onceCalls: starts.filter(({ tool }) => tool === 'send' || tool === 'pay').length,
      violations: all.map((violation) => `${this.#options.name}: ${violation}`),
    }
  }

  /** What the server has of these crews, and all that is wrong with it and with the processes. */
  async judge(crews: readonly string[], see?: (crew: string, story: CrewStory) => void): Promise<StoredCrews> {
    await this.#caughtUp()
    const stored = await judgeStored(this.link, this.subjects, crews, this.observer.crews, see)
    const { lost, givenUp } = stored
    const explained = [...judgeLosses(lost, this.faults), ...judgeGivenUp(givenUp, this.faults)]
    const violations = [...this.#broken, ...stored.violations, ...explained]
    return { ...stored, violations }
  }

  /** Resolves when the observer has seen what the stream has, and nothing comes any more. */
  async #caughtUp(): Promise<void> {
    const count = (): number => [...this.observer.crews.values()].reduce((sum, { ids }) => sum + ids.length, 0)
    for (let before = -1; before !== count(); ) {
      before = count()
      await this.observer.until(() => count() !== before, 1_500)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#loading = false
    for (const { child } of this.workers.values()) child.kill('SIGKILL')
    await Promise.all([...this.workers.values()].map(({ ended }) => ended))
    await this.#observer?.stop()
    await this.client.close()
    await this.link.connection.close()
    await this.#model.model.close()
    await rm(this.#folder, { recursive: true, force: true })
  }
}

function readLines(file: string): LedgerLine[] {
  if (!existsSync(file)) return []
  const text = readFileSync(file, 'utf8')
  // A line is whole when it has its end.
  const lines = text
    .slice(0, text.lastIndexOf('\n') + 1)
    .split('\n')
    .filter(Boolean)
  return lines.map((line) => JSON.parse(line) as LedgerLine)
}

/** Tools that nobody calls: whoever only asks needs the definitions. */
export const idleShop: Workshop = {
  write: () => undefined,
  read: () => [],
  working: () => undefined,
  die: () => Promise.reject(new Error('nobody works here')),
  poisonous: false,
}

function failure({ id }: CrewPlan, code: string, reason: string): CrewResult {
  return { id, code, reason, output: '', messages: [], modelCalls: 0 }
}

async function resultOf(
  runtime: Runtime,
  plan: CrewPlan,
  crews: ReturnType<typeof sharedCrews>,
  watched: boolean,
): Promise<CrewResult> {
  const { id } = plan
  try {
    const handle = await runtime.spawn(crews.get(sharedNameOf(plan))!, { id })
    const run = handle.start(taskOf(plan), { key: 'the-run' })
    if (watched) drain(run.events).catch(() => undefined)
    const { output, messages, usage } = await run.result
    return { id, code: null, reason: '', output, messages, modelCalls: usage.modelCalls }
  } catch (error) {
    if (!isTroupeError(error)) throw error
    return failure(plan, error.code, error.message)
  }
}

/** Watching makes the model stream. */
async function drain(events: AsyncIterable<unknown>): Promise<void> {
  for await (const event of events) void event
}

/** The same tasks in the memory of this process. */
async function runTwin(
  plans: readonly CrewPlan[],
  baseURL: string,
): Promise<{ readonly results: CrewResult[]; readonly ledger: LedgerLine[] }> {
  const ledgers = new Map<string, LedgerLine[]>()
  const of = (slot: string): LedgerLine[] => {
    const crew = slot.split('.')[0]!
    const lines = ledgers.get(crew) ?? []
    ledgers.set(crew, lines)
    return lines
  }
  const shop: Workshop = {
    ...idleShop,
    write: (line) => void of(line.slot).push({ pid: process.pid, at: Date.now(), ...line }),
    read: of,
  }
  const crews = sharedCrews(shop)
  const runtime = await createRuntime({
    providers: { scripted: { baseURL, apiKey: null } },
    log: 'error',
    checks: 'off',
  })
  try {
    const results: CrewResult[] = []
    const queue = [...plans]
    const next = async (): Promise<void> => {
      for (let plan = queue.shift(); plan !== undefined; plan = queue.shift())
        results.push(await resultOf(runtime, plan, crews, false))
    }
    await Promise.all(Array.from({ length: 32 }, next))
    return { results, ledger: [...ledgers.values()].flat() }
  } finally {
    await runtime.close({ graceMs: 0 })
  }
}

/** Ends the process of a server, and starts it again. */
export async function restart(server: NatsServer): Promise<void> {
  await server.kill()
  await server.start()
}
