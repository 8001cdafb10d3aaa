/**
 * Moves under faults: crews are given from worker to worker all the time, so that most outcomes follow them by mail, while
 * the server is killed with SIGKILL.
 */
import { startNatsServer } from '../support/nats-server.js'
import { bundleChild } from './child-script.js'
import { killServer, leaseMs, startWorkers } from './failover-trials.js'
import { draw } from './kill-crews.js'
import { setStage, type StageReport, type WorkerStage } from './worker-stage.js'

/** What came of the trials. */
export interface MoveReport extends StageReport {
  /** Kills of the server. */
  readonly kills: number
  readonly moves: number
  readonly ms: number
}

/** How many crews of each worker move at once. */
const together = 6

/** Kills the server so many times, seconds apart. @param lanes crews at work at once */
export async function runMoves(options: {
  readonly seed: number
  readonly kills: number
  readonly lanes: number
}): Promise<MoveReport> {
  const { seed, kills, lanes } = options
  const started = performance.now()
  await using script = await bundleChild('worker-child')
  const server = await startNatsServer()
  try {
    const name = `v${seed}`
    await using stage = await setStage({ name, script: script.path, servers: [server], lanes, slower: 20, leaseMs })
    await startWorkers(stage, 3)
    stage.load()
    const ending = new AbortController()
    const moving = moveAll(stage, ending.signal)
    for (let kill = 0; kill < kills; kill += 1) {
      await new Promise((resolve) => setTimeout(resolve, 1_000 + draw(`${seed} ${kill} delay`, 1_500)))
      await killServer(stage, server, 'random')
    }
    ending.abort()
    const moves = await moving
    const report = await stage.finish()
    return { ...report, kills, moves, ms: Math.round(performance.now() - started) }
  } finally {
    await server.dispose()
  }
}

/** Gives crews at work to other workers until it is aborted; resolves with how many went. */
async function moveAll(stage: WorkerStage, signal: AbortSignal): Promise<number> {
  let moved = 0
  for (let round = 0; !signal.aborted; round += 1) {
    const names = [...stage.workers.keys()]
    const moves = names.flatMap((from, index) =>
      stage.observer
        .unfinishedOf(from)
        .slice(0, together)
        .map((crew) => {
          const to = names[(index + 1 + (round % 2)) % names.length]!
          // It may have ended, or the server is away.
          return stage.client.move(crew, to).then(
            () => true,
            () => false,
          )
        }),
    )
    moved += (await Promise.all(moves)).filter(Boolean).length
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  return moved
}
