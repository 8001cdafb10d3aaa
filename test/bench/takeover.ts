/**
 * `kill -9` of a worker that has 200 crews at work and 1,000 idle ones: from the kill to `shard.taken` and to the first
 * effect of each of the 200 at the next worker, over the lease's time to live. An outside observer of the event stream tells
 * the times.
 */
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { createJetStreamJournal } from '../../transport/jetstream-journal.js'
import { followEvents } from '../../transport/nats-follower.js'
import { ownersAmong } from '../../transport/partitions.js'
import { partitionOf } from '../../transport/subjects.js'
import { BenchCluster } from './cluster.js'
import { benchAgent, quantile, round3, say } from './measure.js'
import { writeCrew } from './population.js'

const active = 200
const idle = 1_000
const leaseMs = 2_000
const trials = 3
const workers = ['doomed', 'heir'] as const

/** A provider that answers nobody: every crew waits for its model. */
async function silentProvider(): Promise<{ readonly baseURL: string; readonly stop: () => void }> {
  const server = createServer((request) => request.resume())
  await once(server.listen(0, '127.0.0.1'), 'listening')
  return {
    baseURL: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`,
    stop: () => {
      server.closeAllConnections()
      server.close()
    },
  }
}

/** Ids of crews that are the first worker's while both live. */
function* doomedIds(): Generator<string> {
  const owners = ownersAmong(workers)
  for (let index = 0; ; index += 1) if (owners[partitionOf(`crew-${index}`)] === workers[0]) yield `crew-${index}`
}

interface Times {
  readonly taken: readonly number[]
  readonly effect: readonly number[]
}

async function trial(): Promise<Times> {
  const provider = await silentProvider()
  const cluster = await BenchCluster.start()
  try {
    const journal = createJetStreamJournal({
      link: cluster.link,
      subjects: cluster.subjects,
      worker: 'maker',
      epoch: () => 1,
    })
    await journal.open()
    const ids = doomedIds()
    const next = (): string => ids.next().value as string
    for (let first = 0; first < idle; first += 100) {
      await Promise.all(Array.from({ length: 100 }, () => writeCrew(journal, next(), 'nothing', Date.now(), 'bench')))
    }
    await journal.close()
    const { baseURL } = provider
    const doomed = await cluster.worker({ baseURL, worker: workers[0], leaseMs })
    await cluster.worker({ baseURL, worker: workers[1], leaseMs })
    const client = await cluster.runtime('client')
    const agent = benchAgent(1_000)
    await Promise.all(
      Array.from({ length: active }, async () => {
        const run = (await client.spawn(agent, { id: next() })).start('wait')
        run.result.catch(() => undefined)
      }),
    )
    const [taken, effect] = [new Map<string, number>(), new Map<string, number>()]
    let killedAt = Number.POSITIVE_INFINITY
    let called = 0
    let allCalled: () => void = () => undefined
    let allBack: () => void = () => undefined
    const waiting = new Promise<void>((resolve) => (allCalled = resolve))
    const back = new Promise<void>((resolve) => (allBack = resolve))
    const leaving = new AbortController()
    const watching = (async () => {
      const { link, subjects } = cluster
      for await (const { event } of followEvents({ link, subjects, since: 'all', signal: leaving.signal })) {
        const shard = event.source.split('/')[2]!
        if (event.type === 'troupe.model.called' && (called += 1) === active) allCalled()
        if (performance.now() < killedAt) continue
        const ms = performance.now() - killedAt
        if (event.type === 'troupe.shard.taken' && !taken.has(shard)) taken.set(shard, ms)
        else if (event.type === 'troupe.model.called' && taken.has(shard) && !effect.has(shard)) effect.set(shard, ms)
        if (effect.size === active) allBack()
      }
    })()
    await waiting
    const ended = once(doomed, 'exit')
    doomed.kill('SIGKILL')
    killedAt = performance.now()
    await ended
    await back
    leaving.abort()
    await watching
    return { taken: [...taken.values()], effect: [...effect.values()] }
  } finally {
    provider.stop()
    await cluster.stop()
  }
}

export async function benchTakeover(): Promise<object> {
  const all: Times[] = []
  for (let index = 0; index < trials; index += 1) all.push(await trial())
  const taken = all.flatMap((times) => times.taken)
  const effect = all.flatMap((times) => times.effect)
  say(`ms from the kill, lease ${leaseMs} ms     p50     p99`)
  for (const [name, samples] of [
    ['shard.taken', taken],
    ['first effect', effect],
  ] as const) {
    const figures = [quantile(samples, 0.5), quantile(samples, 0.99)]
    say(`${name.padEnd(30)} ${figures.map((value) => value.toFixed(0).padStart(7)).join(' ')}`)
  }
  return {
    bench: 'takeover',
    leaseMs,
    takenMs: round3(quantile(taken, 0.5)),
    takenP99Ms: round3(quantile(taken, 0.99)),
    effectMs: round3(quantile(effect, 0.5)),
    effectP99Ms: round3(quantile(effect, 0.99)),
    effectP99OverLeaseMs: round3(quantile(effect, 0.99) - leaseMs),
  }
}
