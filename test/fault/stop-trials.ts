/**
 * Stops of an owner: it sleeps beyond its lease between a `once` call's record and its start, somebody else takes its
 * crews, and it wakes up believing that they are its own. Run by itself on a mutant: `stop-trials.ts COUNT SEED`.
 */
import { startNatsServer } from '../support/nats-server.js'
import { bundleChild } from './child-script.js'
import { busiest, leaseMs, startWorkers } from './failover-trials.js'
import type { Window } from './hooked-ports.js'
import { draw, onceTools } from './kill-crews.js'
import { setStage, type StageReport, type WorkerStage } from './worker-stage.js'

const windows: readonly Window[] = ['append to dispatched', 'dispatched to check']

/** What came of the trials. */
export interface StopReport extends StageReport {
  /** Stops over which somebody else took the very crew. */
  readonly stops: number
  readonly perWindow: Readonly<Record<string, number>>
  readonly ms: number
}

/** Stops owners, one at a time. @param lanes crews at work at once */
export async function runStops(options: {
  readonly seed: number
  readonly count: number
  readonly lanes: number
}): Promise<StopReport> {
  const { seed, count, lanes } = options
  const started = performance.now()
  const perWindow: Record<string, number> = {}
  const found: string[] = []
  await using script = await bundleChild('worker-child')
  const server = await startNatsServer()
  try {
    await using stage = await setStage({ name: `s${seed}`, script: script.path, servers: [server], lanes, leaseMs })
    await startWorkers(stage, 3)
    stage.load()
    let stops = 0
    for (let at = 0; stops < count && at < 2 * count + 3; at += 1) {
      const window = windows[at % windows.length]!
      const violations = await stopOnce(stage, window, 1 + draw(`${seed} nth ${at}`, 8))
      if (violations === null) continue
      found.push(...violations)
      perWindow[window] = (perWindow[window] ?? 0) + 1
      stops += 1
    }
    const report = await stage.finish()
    const violations = [...found, ...report.violations]
    return { ...report, stops, perWindow, violations, ms: Math.round(performance.now() - started) }
  } finally {
    await server.dispose()
  }
}

/** Stops an owner until another one has the crew. What it did wrong then; null when nobody was stopped. */
async function stopOnce(stage: WorkerStage, window: Window, nth: number): Promise<string[] | null> {
  await stage.calm()
  const victim = busiest(stage)
  const before = stage.hookedFaults().length
  victim.arm(window, 'stop', nth)
  const line = await stage.nextFault(before, 10_000)
  if (line === null) {
    victim.arm(null, 'stop')
    return null
  }
  const fault = stage.note({ fault: 'stop', window, worker: victim.name, at: line.at })
  const crew = line.slot
  const seen = stage.observer.crews.get(crew)
  const isTaken = (): boolean => {
    const owner = seen?.owner ?? ''
    return owner !== '' && owner.split('.')[0] !== victim.name
  }
  const taken = await stage.observer.until(isTaken, 20_000)
  const woken = Date.now()
  victim.child.kill('SIGCONT')
  if (!taken) return [`${crew} was not taken over while ${victim.name} was stopped`]
  // It is awake, and knows, when it takes crews under another lease, or has answered somebody.
  const retaken = (): boolean =>
    seen!.takings.some(({ owner, seenAt }) => seenAt > woken && owner.startsWith(`${victim.name}.`))
  await stage.observer.until(() => seen!.finished || retaken(), 10_000)
  fault.until = Date.now()
  if (retaken()) return []
  const pid = victim.child.pid
  return stage
    .ledgerOf(crew)
    .filter((each) => each.pid === pid && each.what === 'start' && onceTools.has(each.tool) && each.at >= woken)
    .map(({ tool, slot }) => `${victim.name} had lost ${crew} and started ${tool} ${slot}`)
}

if (process.argv[1] === import.meta.filename) {
  const [count = 4, seed = 1] = process.argv.slice(2).map(Number)
  const report = await runStops({ seed, count, lanes: 12 })
  process.stdout.write(`${JSON.stringify(report)}\n`)
  process.exit(report.violations.length === 0 ? 0 : 1)
}
