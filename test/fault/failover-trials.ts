/**
 * Failover under load: workers are killed with SIGKILL, and so is the server, in each window and at random, while crews with
 * all classes of tools are at work.
 */
import { once } from 'node:events'
import type { NatsServer } from '../support/nats-server.js'
import { startNatsServer } from '../support/nats-server.js'
import { bundleChild } from './child-script.js'
import type { Window } from './hooked-ports.js'
import { draw } from './kill-crews.js'
import { restart, setStage, type StageReport, totalOf, type WorkerProcess, type WorkerStage } from './worker-stage.js'

/** The windows of append, publish, acknowledgement and dispatch. */
export const failoverWindows = [
  'before append',
  'append sent',
  'append to dispatch',
  'append to dispatched',
  'dispatched to check',
  'before mail',
  'mail sent',
  'mail taken',
  'before event',
] as const satisfies readonly Window[]

/** How many, of what. */
export interface FailoverOptions {
  readonly seed: number
  /** Faults in each window: every other one kills the server. */
  readonly each: number
  /** Faults at random. */
  readonly random: number
  /** Crews at work at once. */
  readonly lanes: number
  /** Times the model's usual latency of some 12 ms: crews that wait for nobody leave no time for anything else. */
  readonly slower: number
  /** Faults in one namespace. */
  readonly together: number
  /** Crews that are there and idle, in the first `idleNamespaces`, and what each has, in bytes. */
  readonly idle: number
  readonly idleBytes: number
  /** @default all of them */
  readonly idleNamespaces?: number
  /** Told how far it is. */
  readonly onProgress?: (text: string) => void
}

/** What came of the trials. */
export interface FailoverReport extends Omit<StageReport, 'violations'> {
  readonly faults: number
  readonly perWindow: Readonly<Record<string, number>>
  readonly killedWorkers: number
  readonly killedServers: number
  /** Takeovers after the end of a worker, and their times. */
  readonly takeovers: number
  readonly takeoverP50Ms: number
  readonly takeoverP99Ms: number
  /** The same where there were idle crews. */
  readonly takeoverIdleP99Ms: number
  readonly violations: readonly string[]
  readonly ms: number
}

interface Planned {
  readonly window: Window | null
  readonly fault: 'kill' | 'server'
}

/** How long a lease lasts. */
export const leaseMs = 1_000
/** A hook that nothing passes by then is given up, and planned again. */
const hookMs = 10_000
const workerCount = 3

/** Makes the faults, in as many namespaces as that takes. */
export async function runFailover(options: FailoverOptions): Promise<FailoverReport> {
  const { seed, each, random, together } = options
  const started = performance.now()
  const plan = plannedFaults(seed, each, random)
  const all = plan.length
  const perWindow: Record<string, number> = {}
  const stages: (StageReport & { readonly takeoverMs: readonly number[]; readonly idle: boolean })[] = []
  const broken: string[] = []
  const killed = { worker: 0, server: 0 }
  await using script = await bundleChild('worker-child')
  for (let at = 0; plan.length > 0 && at < 2 + (2 * all) / together && broken.length < 5; at += 1) {
    const server = await startNatsServer()
    try {
      await using stage = await setStage({
        name: `f${seed}-${at}`,
        script: script.path,
        servers: [server],
        lanes: options.lanes,
        slower: options.slower,
        leaseMs,
        haulBytes: options.idleBytes,
      })
      await startWorkers(stage, workerCount)
      const idle = at < (options.idleNamespaces ?? Number.POSITIVE_INFINITY) ? options.idle : 0
      await stage.fill(idle)
      stage.load()
      for (let made = 0; made < together && plan.length > 0; made += 1) {
        const [planned] = plan.splice(0, 1) as [Planned]
        if (!(await makeFault(stage, server, planned, `${seed} ${at} ${made}`))) plan.push(planned)
      }
      const report = await stage.finish()
      stages.push({ ...report, takeoverMs: stage.takeoverMs, idle: idle > 0 })
      for (const { window, fault } of stage.faults) {
        perWindow[window] = (perWindow[window] ?? 0) + 1
        killed[fault === 'server' ? 'server' : 'worker'] += 1
      }
    } catch (error) {
      broken.push(error instanceof Error ? (error.stack ?? error.message) : String(error))
    } finally {
      await server.dispose()
    }
    options.onProgress?.(
      `${all - plan.length} of ${all} faults, ${broken.length} broken, last: ${stages.at(-1)?.violations.join() ?? ''}`,
    )
  }
  if (plan.length > 0) broken.push(`${plan.length} faults were never made, first ${JSON.stringify(plan[0])}`)
  const timesOf = (of: typeof stages): number[] =>
    of.flatMap(({ takeoverMs }) => takeoverMs).sort((one, other) => one - other)
  const takeoverMs = timesOf(stages)
  const total = totalOf(stages)
  return {
    ...total,
    faults: killed.worker + killed.server,
    perWindow,
    killedWorkers: killed.worker,
    killedServers: killed.server,
    takeovers: takeoverMs.length,
    takeoverP50Ms: quantile(takeoverMs, 0.5),
    takeoverP99Ms: quantile(takeoverMs, 0.99),
    takeoverIdleP99Ms: quantile(timesOf(stages.filter(({ idle }) => idle)), 0.99),
    violations: [...broken, ...total.violations],
    ms: Math.round(performance.now() - started),
  }
}

/** Of sorted numbers; 0 for none. */
export function quantile(sorted: readonly number[], part: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? 0
}

/** Kills the server with SIGKILL and starts it again. */
export async function killServer(stage: WorkerStage, server: NatsServer, window: string): Promise<void> {
  const fault = stage.note({ fault: 'server', window, worker: '', at: Date.now() })
  await restart(server)
  stage.noteServer()
  fault.until = Date.now() + 2 * leaseMs
}

/** Starts workers, one after the other: two that start at once make the streams twice. */
export async function startWorkers(stage: WorkerStage, count: number): Promise<void> {
  await stage.startWorker()
  await Promise.all(Array.from({ length: count - 1 }, () => stage.startWorker()))
}

/** In an order that follows from the seed. */
function plannedFaults(seed: number, each: number, random: number): Planned[] {
  const hooked = failoverWindows.flatMap((window) =>
    Array.from({ length: each }, (_, index): Planned => ({ window, fault: index % 2 === 0 ? 'kill' : 'server' })),
  )
  const others = Array.from(
    { length: random },
    (_, index): Planned => ({
      window: null,
      fault: index % 4 === 3 ? 'server' : 'kill',
    }),
  )
  return [...hooked, ...others]
    .map((planned, index) => ({ planned, order: draw(`${seed} order ${index}`, 1_000_000) }))
    .sort((one, other) => one.order - other.order)
    .map(({ planned }) => planned)
}

/** Makes one fault, and puts right what it broke. False when its hook was not passed. */
async function makeFault(stage: WorkerStage, server: NatsServer, planned: Planned, name: string): Promise<boolean> {
  await stage.calm()
  const victim = busiest(stage)
  if (planned.window === null) await atRandom(stage, server, victim, planned.fault, name)
  else if (!(await atHook(stage, victim, planned as Hooked, name))) return false
  if (planned.fault === 'server') {
    const fault = stage.faults.at(-1)!
    await server.ended
    await server.start()
    stage.noteServer()
    fault.until = Date.now() + 2 * leaseMs
    return true
  }
  stage.measure(victim.name, await victim.ended)
  // Whoever restarts what has died needs a while: on two cores a start in that second is measured, not the takeover.
  await stage.takenOver()
  await stage.startWorker()
  return true
}

type Hooked = Planned & { readonly window: Window }

async function atRandom(
  stage: WorkerStage,
  server: NatsServer,
  victim: WorkerProcess,
  fault: 'kill' | 'server',
  name: string,
): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, draw(`${name} delay`, 300)))
  const at = Date.now()
  stage.note({ fault, window: 'random', worker: fault === 'kill' ? victim.name : '', at })
  if (fault === 'server') await server.kill()
  else victim.child.kill('SIGKILL')
}

async function atHook(
  stage: WorkerStage,
  victim: WorkerProcess,
  { window, fault }: Hooked,
  name: string,
): Promise<boolean> {
  const before = stage.hookedFaults().length
  const isMail = window.includes('mail')
  victim.arm(window, fault, isMail ? 1 : 1 + draw(`${name} nth`, 40))
  const moving = new AbortController()
  const moves = isMail ? moveCrews(stage, victim.name, window === 'mail taken', moving.signal) : Promise.resolve()
  const line = await stage.nextFault(before, hookMs)
  moving.abort()
  await moves
  if (line === null) {
    victim.arm(null, fault)
    return false
  }
  stage.note({ fault, window, worker: fault === 'kill' ? victim.name : '', at: line.at })
  return true
}

/** The worker with most crews at work. */
export function busiest(stage: WorkerStage): WorkerProcess {
  const count = ({ name }: WorkerProcess): number => stage.observer.unfinishedOf(name).length
  return [...stage.workers.values()].sort((one, other) => count(other) - count(one))[0]!
}

/** Gives crews to other workers, or others' to this one, so that outcomes follow them by mail. */
async function moveCrews(stage: WorkerStage, worker: string, hither: boolean, signal: AbortSignal): Promise<void> {
  const aborted = once(signal, 'abort')
  while (!signal.aborted) {
    const others = [...stage.workers.keys()].filter((name) => name !== worker)
    const from = hither ? others : [worker]
    const crews = from.flatMap((name) => stage.observer.unfinishedOf(name)).slice(0, 4)
    const to = (index: number): string => (hither ? worker : others[index % others.length]!)
    const moves = crews.map((crew, index) => stage.client.move(crew, to(index)).catch(() => undefined))
    // A worker that is killed meanwhile answers nothing; others answer for it in time.
    await Promise.race([Promise.all(moves), aborted])
    if (crews.length === 0) await new Promise((resolve) => setTimeout(resolve, 20))
  }
}
