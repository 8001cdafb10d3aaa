/**
 * Probes in a cluster: three worker processes over a nats-server, and many crews that would all like to use one deployment
 * that fails. The judge is the provider: between the opening of the breaker and its closing it is asked once a cooldown, by
 * whichever worker, also when the prober is killed while it probes, or loses its link. Then its lease runs out, and one
 * other probes.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import {
  fault,
  reply,
  type ScriptedAnswer,
  type ScriptedModel,
  startScriptedModel,
} from '../../actors/scripted-model.js'
import { createRuntime, isTroupeError, type Runtime } from '../../runtime/index.js'
import { type LinkProxy, startLinkProxy } from '../support/link-proxy.js'
import { type NatsServer, startNatsServer } from '../support/nats-server.js'
import { bundleChild, type ChildScript } from './child-script.js'
import { draw } from './kill-crews.js'
import { clerk, type ProbeChildConfig, probeSettings } from './probe-child.js'

/** What becomes of a probe. */
export const probeEnds = ['fails', 'prober dies', 'fails behind a cut link', 'fails', 'answers', 'prober dies'] as const
type ProbeEnd = (typeof probeEnds)[number]

const { cooldownMs, probeMs } = probeSettings
/** How far the clocks of two workers may lie apart. */
const slackMs = 250
/** A lease counts from when its worker asked for it: until its request is here it has been stored, on a busy machine. */
const askedMs = 1_000
/** A probe comes by then, when there is time for one. */
const patienceMs = 20_000
/** A breaker that opens is known everywhere by then, and whoever was permitted to call before has called. */
const heardMs = 800
/** Whoever probes at the same time has asked by then. */
const togetherMs = 200

/** What came of the trials. */
export interface ProbeReport {
  readonly trials: number
  readonly perEnd: Readonly<Record<string, number>>
  /** Requests to the deployment that fails: while its breaker was closed, and as probes. */
  readonly calls: number
  readonly probes: number
  /** Runs of crews that ended meanwhile. */
  readonly runs: number
  /** How long those runs took over whose call three processes died: they end with `EFFECT_CRASHED`, as they should. */
  readonly givenUpMs: readonly number[]
  /** Most time from when a probe might come until it came. */
  readonly slowestMs: number
  readonly violations: readonly string[]
  readonly ms: number
}

/** A request to the deployment that fails. */
interface Asked {
  readonly at: number
  readonly worker: string
}

/** Runs the trials. @param lanes crews at work at once */
export async function runProbeTrials(options: {
  readonly trials: number
  readonly seed: number
  readonly lanes: number
  /** Told how far it is. */
  readonly onProgress?: (text: string) => void
}): Promise<ProbeReport> {
  const started = performance.now()
  await using script = await bundleChild('probe-child')
  await using stage = await Stage.set(options.seed, script)
  stage.load(options.lanes)
  await stage.open()
  const perEnd: Record<string, number> = {}
  for (let trial = 0; trial < options.trials; trial += 1) {
    const end = probeEnds[trial % probeEnds.length]!
    perEnd[end] = (perEnd[end] ?? 0) + 1
    await stage.probe(trial, end)
    options.onProgress?.(`${trial + 1} of ${options.trials} probes: ${end}`)
  }
  await stage.settle()
  const { calls, probes, runs, givenUpMs, slowestMs, violations } = stage
  const ms = Math.round(performance.now() - started)
  return { trials: options.trials, perEnd, calls, probes, runs, givenUpMs, slowestMs, violations, ms }
}

interface WorkerProcess {
  readonly child: ChildProcess
  readonly proxy: LinkProxy
}

class Stage implements AsyncDisposable {
  calls = 0
  probes = 0
  runs = 0
  readonly givenUpMs: number[] = []
  slowestMs = 0
  readonly violations: string[] = []
  readonly #workers = new Map<string, WorkerProcess>()
  readonly #asked: Asked[] = []
  /** The breaker is closed, as far as is known: whoever likes may ask. */
  #isClosed = true
  /** What a request gets. */
  #answer: () => ScriptedAnswer | Promise<ScriptedAnswer> = () => fault.status(500)
  #onAsked: () => void = () => undefined
  #isLoading = false
  #lanes: Promise<void>[] = []
  #count = 0
  /** A worker that comes in the place of one that died. */
  #starting: Promise<void> = Promise.resolve()
  /** When the next probe may come at the earliest. */
  #due = 0

  private constructor(
    private readonly namespace: string,
    private readonly script: ChildScript,
    private readonly server: NatsServer,
    private readonly model: ScriptedModel,
    private readonly client: Runtime,
  ) {}

  static async set(seed: number, script: ChildScript): Promise<Stage> {
    const namespace = `p${seed}`
    const server = await startNatsServer()
    let stage: Stage | null = null
    const model = await startScriptedModel(
      ({ model: name, headers }) =>
        name === 'shaky' ? stage!.#ask(String(headers['x-worker'])) : fault.delay(400, reply.text('well')),
      { keep: 0 },
    )
    const client = await createRuntime({ nats: { servers: server.url, namespace, role: 'client' }, log: 'error' })
    stage = new Stage(namespace, script, server, model, client)
    for (let index = 0; index < 3; index += 1) await stage.#startWorker()
    return stage
  }

  /** Gives crews tasks, each lane one after the other. */
  load(lanes: number): void {
    this.#isLoading = true
    this.#lanes = Array.from({ length: lanes }, async (_, lane) => {
      const crew = await this.client.spawn(clerk, { id: `${this.namespace}-${lane}` })
      while (this.#isLoading) {
        const from = performance.now()
        const code = await crew.ask('go').then(() => null, codeOf)
        this.runs += 1
        if (code === 'EFFECT_CRASHED') this.givenUpMs.push(Math.round(performance.now() - from))
        else if (code !== null) this.violations.push(`a run of ${this.namespace}-${lane} ended with ${code}`)
      }
    })
  }

  /** Lets the deployment fail until its breaker is open, and that is known. */
  async open(): Promise<void> {
    this.#answer = () => fault.status(500)
    for (;;) {
      const [found] = await this.client.breakers()
      if (found?.state !== 'open') {
        await pause(20)
        continue
      }
      this.#due = found.until - slackMs
      // Calls that were permitted before may be on their way.
      await pause(heardMs)
      this.#isClosed = false
      return
    }
  }

  /** One probe and what becomes of it; behind it the breaker is open again. */
  async probe(trial: number, end: ProbeEnd): Promise<void> {
    const held = gate<ScriptedAnswer>()
    this.#answer = () => held.opened
    const isNext = await this.#next(trial, end)
    if (isNext === null) return
    if (end === 'prober dies') await this.#killed(isNext.worker, isNext.at)
    else if (end === 'fails behind a cut link') await this.#failedUnheard(isNext.worker, trial, held)
    else if (end === 'answers') await this.#answered(held)
    else {
      await pause(draw(`${this.namespace} ${trial} takes`, 300))
      this.#failed(held)
    }
    held.open(fault.status(500))
  }

  async settle(): Promise<void> {
    await this.#starting
    this.#isLoading = false
    this.#isClosed = true
    this.#answer = () => reply.text('well again')
    await Promise.all(this.#lanes)
  }

  // What becomes of a probe.

  #failed(held: Gate<ScriptedAnswer>): void {
    this.#due = Date.now() + cooldownMs - slackMs
    held.open(fault.status(500))
  }

  /** The worker dies over it: its lease is all that keeps the others from asking. */
  async #killed(worker: string, at: number): Promise<void> {
    const { child, proxy } = this.#workers.get(worker)!
    // Two go on: the one that came for the last one that died is there.
    await this.#starting
    this.#workers.delete(worker)
    child.kill('SIGKILL')
    await proxy.close()
    this.#due = at + probeMs - askedMs
    // Not waited for: the next probe may come before it does.
    this.#starting = this.#startWorker()
  }

  /** It fails while its worker has no link: nobody hears of it before the link, or the lease, comes to its end. */
  async #failedUnheard(worker: string, trial: number, held: Gate<ScriptedAnswer>): Promise<void> {
    const { proxy } = this.#workers.get(worker)!
    const lasts = 300 + draw(`${this.namespace} ${trial} lasts`, 3_000)
    if (trial % 2 === 0) [proxy.up, proxy.down] = ['swallow', 'swallow']
    proxy.cut()
    await pause(50)
    this.#failed(held)
    setTimeout(() => {
      ;[proxy.up, proxy.down] = ['pass', 'pass']
      // What was begun in silence does not go on.
      proxy.cut()
    }, lasts)
  }

  /** It closes the breaker: everybody calls, until it is opened anew. */
  async #answered(held: Gate<ScriptedAnswer>): Promise<void> {
    const before = this.calls
    this.#isClosed = true
    this.#answer = () => reply.text('well again')
    held.open(reply.text('well again'))
    const until = Date.now() + patienceMs
    while (this.calls < before + 5 && Date.now() < until) await pause(20)
    if (this.calls < before + 5) this.violations.push('the probe was answered, and nobody calls')
    await this.open()
  }

  // The provider.

  #ask(worker: string): ScriptedAnswer | Promise<ScriptedAnswer> {
    if (this.#isClosed) this.calls += 1
    else {
      this.probes += 1
      this.#asked.push({ at: Date.now(), worker })
      this.#onAsked()
    }
    return this.#answer()
  }

  /** The next probe: it does not come before its time, and no other comes with it. */
  async #next(trial: number, end: ProbeEnd): Promise<Asked | null> {
    const name = `trial ${trial}, ${end}`
    const from = Date.now()
    if (this.#asked.length === 0) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, patienceMs + Math.max(0, this.#due - from))
        this.#onAsked = () => {
          clearTimeout(timer)
          resolve()
        }
      })
      this.#onAsked = () => undefined
    }
    const first = this.#asked[0]
    if (first === undefined) {
      this.violations.push(`${name}: nobody probes`)
      return null
    }
    if (first.at < this.#due) this.violations.push(`${name}: ${first.worker} asks ${this.#due - first.at} ms too early`)
    this.slowestMs = Math.max(this.slowestMs, first.at - this.#due)
    await pause(togetherMs)
    const all = this.#asked.splice(0)
    if (all.length > 1) this.violations.push(`${name}: ${all.map(({ worker }) => worker).join(' and ')} probe`)
    return first
  }

  // Workers.

  async #startWorker(): Promise<void> {
    const worker = `w${(this.#count += 1)}`
    const proxy = await startLinkProxy(this.server.port)
    const server = `nats://127.0.0.1:${proxy.port}`
    const { namespace } = this
    const config: ProbeChildConfig = { server, namespace, worker, baseURL: this.model.baseURL }
    const child = spawn(process.execPath, [this.script.path, JSON.stringify(config)], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    child.stdin.on('error', () => undefined)
    this.#workers.set(worker, { child, proxy })
    await new Promise<void>((resolve, reject) => {
      createInterface({ input: child.stdout }).once('line', () => resolve())
      child.once('exit', (code, signal) => {
        reject(new Error(`${worker} ended by ${signal ?? code} before it was ready`))
        if (this.#workers.has(worker)) this.violations.push(`${worker} ended by ${signal ?? code}`)
      })
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const workers = [...this.#workers.values()]
    this.#workers.clear()
    this.#isLoading = false
    for (const { child, proxy } of workers) {
      child.kill('SIGKILL')
      await proxy.close()
    }
    await this.client.close()
    await this.model.close()
    await this.server.dispose()
  }
}

interface Gate<Value> {
  readonly opened: Promise<Value>
  open(value: Value): void
}

function gate<Value>(): Gate<Value> {
  let open: (value: Value) => void = () => undefined
  const opened = new Promise<Value>((resolve) => (open = resolve))
  return { opened, open: (value) => open(value) }
}

function codeOf(error: unknown): string {
  if (!isTroupeError(error)) throw error
  return error.code
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}
