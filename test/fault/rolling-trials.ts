/**
 * Rolling restarts: every worker is asked to leave by SIGTERM, one after the other, while crews are at work.
 */
import { startNatsServer } from '../support/nats-server.js'
import { bundleChild } from './child-script.js'
import { leaseMs, startWorkers } from './failover-trials.js'
import { setStage, type StageReport } from './worker-stage.js'

/** What came of the trials. */
export interface RollingReport extends StageReport {
  readonly restarts: number
  readonly ms: number
}

/** Restarts all three workers, so many times. @param lanes crews at work at once */
export async function runRollingRestarts(options: {
  readonly seed: number
  readonly count: number
  readonly lanes: number
}): Promise<RollingReport> {
  const { seed, count, lanes } = options
  const started = performance.now()
  await using script = await bundleChild('worker-child')
  const server = await startNatsServer()
  const found: string[] = []
  try {
    await using stage = await setStage({ name: `r${seed}`, script: script.path, servers: [server], lanes, leaseMs })
    await startWorkers(stage, 3)
    stage.load()
    for (let restart = 0; restart < count; restart += 1) {
      for (const worker of [...stage.workers.values()]) {
        // The first crews are there: nobody leaves who has nothing.
        await stage.observer.until(() => stage.observer.unfinishedOf(worker.name).length > 0, 10_000)
        const next = stage.startWorker()
        stage.note({ fault: 'term', window: 'SIGTERM', worker: worker.name, at: Date.now() })
        worker.child.kill('SIGTERM')
        await worker.ended
        if (worker.child.exitCode !== 0) found.push(`${worker.name} ended with ${worker.child.exitCode}`)
        await next
      }
    }
    const report = await stage.finish()
    if (report.lost > 0) found.push(`${report.lost} outcomes are unknown`)
    const violations = [...found, ...report.violations]
    return { ...report, restarts: count, violations, ms: Math.round(performance.now() - started) }
  } finally {
    await server.dispose()
  }
}
