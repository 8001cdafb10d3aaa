/**
 * Coming back: a store of 10,000 crews of which 1,000 have a timer due and 100 an open effect; one agent with 1,000
 * rounds; the heap of 100,000 idle crews.
 */
import { cpSync } from 'node:fs'
import { createRuntime } from 'troupe'
import type { Ports } from '../../runtime/dispatcher.js'
import { createLog } from '../../runtime/log.js'
import { Scope } from '../../runtime/scope.js'
import { systemClock } from '../../runtime/system-clock.js'
import { Worker } from '../../runtime/worker.js'
import { createLevelJournal } from '../../transport/level-journal.js'
import { benchAgent, median, round3, say, scratch } from './measure.js'
import { machines } from '../../machines/index.js'
import { populate, type Waiting } from './population.js'
import { resultOf, stubFetch } from './stub.js'

const ports: Ports = { clock: systemClock, random: Math.random }

function workerOn(path: string): Worker {
  const journal = createLevelJournal({ path, durability: 'process' })
  return new Worker({
    journal,
    ports,
    log: createLog('error'),
    executor: 'bench',
    context: { scope: new Scope(), machines },
  })
}

function waitingOf(index: number): Waiting {
  if (index % 10 === 0) return 'timer'
  return index % 100 === 1 ? 'effect' : 'nothing'
}

/** Milliseconds from open until every due timer was taken and every open effect interrupted. */
async function takeUp(): Promise<number> {
  const folder = scratch('resume')
  const journal = createLevelJournal({ path: folder.path, durability: 'process' })
  await journal.open()
  await populate(journal, 10_000, waitingOf, Date.now() - 60_000)
  await journal.close()
  const worker = workerOn(folder.path)
  const start = performance.now()
  await worker.open()
  const handled = (): boolean => {
    let timers = 0
    let effects = 0
    for (const shard of worker.active.values()) {
      // A timer that fired, and an effect that was interrupted, both led to a new model call after commit 3.
      const [open] = [...shard.state.effects.values()]
      if (open !== undefined && Number(open.id.split('-')[0]) >= 3) {
        if (waitingOf(Number(shard.id.slice(5))) === 'timer') timers += 1
        else effects += 1
      }
    }
    return timers === 1_000 && effects === 100
  }
  while (!handled()) {
    if (performance.now() - start > 60_000) throw new Error('not taken up within a minute')
    await new Promise((resolve) => setImmediate(resolve))
  }
  const ms = performance.now() - start
  await worker.close(0)
  folder.drop()
  return ms
}

/** Milliseconds until an agent with 1,000 rounds has its state and its conversation back, after a kill and after a close. */
async function longAgent(): Promise<{ afterKill: number; afterClose: number }> {
  const folder = scratch('resume-long')
  const agent = { ...benchAgent(90_000, resultOf(1_024)), continue: true }
  const open = (store: string, rounds: number) =>
    createRuntime({
      store,
      durability: 'process',
      providers: { openai: { baseURL: 'http://127.0.0.1:9/v1', apiKey: 'none', fetch: stubFetch(() => rounds) } },
    })
  const first = await open(folder.path, 1_000)
  await (await first.spawn(agent, { id: 'bench' })).ask('go')
  // The files as a kill would leave them: nothing was closed, no last snapshot.
  const killed = scratch('resume-killed')
  cpSync(folder.path, killed.path, { recursive: true, filter: (path) => !path.endsWith('.sock') })
  await first.close({ graceMs: 0 })
  const time = async (path: string): Promise<number> => {
    const runtime = await open(path, 0)
    const start = performance.now()
    await (await runtime.spawn(agent, { id: 'bench' })).ask('more')
    const ms = performance.now() - start
    await runtime.close({ graceMs: 0 })
    return ms
  }
  const afterKill = await time(killed.path)
  const closes = [await time(folder.path), await time(folder.path), await time(folder.path)]
  folder.drop()
  killed.drop()
  return { afterKill, afterClose: median(closes) }
}

/** Megabytes of heap with 100,000 idle crews in an open store. */
async function idleHeap(): Promise<number> {
  const folder = scratch('resume-idle')
  const journal = createLevelJournal({ path: folder.path, durability: 'process' })
  await journal.open()
  await populate(journal, 100_000, () => 'nothing', Date.now())
  await journal.close()
  const worker = workerOn(folder.path)
  await worker.open()
  globalThis.gc?.()
  const megabytes = process.memoryUsage().heapUsed / 1_048_576
  await worker.close(0)
  folder.drop()
  return megabytes
}

export async function benchResume(): Promise<object> {
  const ms = await takeUp()
  say(`10,000 crews, 1,000 due timers and 100 open effects handled ${ms.toFixed(0)} ms after open`)
  const long = await longAgent()
  say(
    `an agent with 1,000 rounds: ${long.afterKill.toFixed(0)} ms after a kill, ${long.afterClose.toFixed(0)} ms after a close, first reply included`,
  )
  const heap = await idleHeap()
  say(`100,000 idle crews: ${heap.toFixed(0)} MB of heap`)
  return {
    bench: 'resume',
    takeUpMs: round3(ms),
    longAgentAfterKillMs: round3(long.afterKill),
    longAgentMs: round3(long.afterClose),
    idleHeapMB: round3(heap),
  }
}
