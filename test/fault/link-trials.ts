/**
 * Faults of links: each worker but one reaches the server through a proxy of its own, and all of them meet a fault at once,
 * each another one.
 */
import { type LinkProxy, startLinkProxy } from '../support/link-proxy.js'
import { startNatsServer } from '../support/nats-server.js'
import { bundleChild } from './child-script.js'
import { leaseMs, quantile } from './failover-trials.js'
import { setStage, type StageReport, type WorkerProcess, type WorkerStage } from './worker-stage.js'

/** What happens to a link. */
export const linkFaults = ['black hole', 'delay', 'cut', 'one-way', 'half-open'] as const
type LinkFault = (typeof linkFaults)[number]

/** What came of the trials. */
export interface LinkReport extends StageReport {
  /** Of each kind. */
  readonly trials: number
  /** Longest time until a worker noticed, by kind. A delay need not be noticed. */
  readonly noticedMs: Readonly<Record<string, number>>
  readonly noticedP50Ms: number
  readonly ms: number
}

/** A delay that a link must stand. */
const delayMs = 1_500

/** Makes faults of all kinds at once, so many times. @param lanes crews at work at once */
export async function runLinkFaults(options: {
  readonly seed: number
  readonly count: number
  readonly lanes: number
}): Promise<LinkReport> {
  const { seed, count, lanes } = options
  const started = performance.now()
  const noticed = new Map<string, number[]>()
  const found: string[] = []
  await using script = await bundleChild('worker-child')
  const server = await startNatsServer()
  const proxies: LinkProxy[] = []
  try {
    await using stage = await setStage({ name: `l${seed}`, script: script.path, servers: [server], lanes, leaseMs })
    await stage.startWorker()
    const workers: (readonly [WorkerProcess, LinkProxy])[] = []
    for (let index = 0; index < linkFaults.length; index += 1) {
      const proxy = await startLinkProxy(server.port)
      proxies.push(proxy)
      workers.push([await stage.startWorker([`nats://127.0.0.1:${proxy.port}`]), proxy])
    }
    stage.load()
    for (let trial = 0; trial < count; trial += 1) {
      await stage.calm()
      const faults = workers.map(([worker, proxy], index) => {
        const kind = linkFaults[(index + trial) % linkFaults.length]!
        return disturb(stage, worker, proxy, kind, trial).then((ms) => {
          if (ms === null) found.push(`${kind} ${trial}: ${worker.name} did not notice, or did not come back`)
          else if (kind !== 'delay') noticed.set(kind, [...(noticed.get(kind) ?? []), ms])
        })
      })
      await Promise.all(faults)
    }
    const report = await stage.finish()
    const all = [...noticed.values()].flat().sort((one, other) => one - other)
    return {
      ...report,
      trials: count,
      noticedMs: Object.fromEntries([...noticed].map(([kind, times]) => [kind, Math.max(...times)])),
      noticedP50Ms: quantile(all, 0.5),
      violations: [...found, ...report.violations],
      ms: Math.round(performance.now() - started),
    }
  } finally {
    for (const proxy of proxies) await proxy.close()
    await server.dispose()
  }
}

/** One fault of one link, from its beginning until the worker is back. Milliseconds until it was noticed; null: never. */
async function disturb(
  stage: WorkerStage,
  { name, links }: WorkerProcess,
  proxy: LinkProxy,
  kind: LinkFault,
  trial: number,
): Promise<number | null> {
  const before = links.length
  const told = (what: string) => links.slice(before).find((each) => each.what === what)
  const at = Date.now()
  const fault = stage.note({ fault: 'link', window: kind, worker: name, at })
  begin(proxy, kind, trial)
  if (kind === 'delay') await new Promise((resolve) => setTimeout(resolve, delayMs))
  else await stage.observer.until(() => told('disconnect') !== undefined, 20_000)
  proxy.up = 'pass'
  proxy.down = 'pass'
  const isBack = (): boolean =>
    told('reconnect') !== undefined || (kind === 'delay' && told('disconnect') === undefined)
  const back = await stage.observer.until(isBack, 20_000)
  fault.until = Date.now() + 2 * leaseMs
  if (!back) return null
  return kind === 'delay' ? 0 : told('disconnect')!.at - at
}

function begin(proxy: LinkProxy, kind: LinkFault, trial: number): void {
  if (kind === 'cut') return proxy.cut()
  if (kind === 'half-open') return proxy.halve()
  const passage = kind === 'delay' ? 'hold' : 'swallow'
  if (kind !== 'one-way' || trial % 2 === 0) proxy.up = passage
  if (kind !== 'one-way' || trial % 2 === 1) proxy.down = passage
}
