/**
 * A worker that comes back to a crew with 1,000 rounds of 1 KB results, after a clean stop and after a kill: what it fetches
 * from the server, and how long until the crew's next reply, with a local copy and without.
 */
import { cpSync } from 'node:fs'
import { join } from 'node:path'
import { createJetStreamJournal } from '../../transport/jetstream-journal.js'
import { createLog } from '../../runtime/log.js'
import { connectNats } from '../../transport/nats-connection.js'
import { BenchCluster } from './cluster.js'
import { benchAgent, median, round3, say, scratch } from './measure.js'
import { resultOf, stubFetch } from './stub.js'

const rounds = 1_000
const passes = 5

interface Cost {
  readonly ms: number
  readonly bytes: number
}

/** What the server has sent, by its own count. */
async function sentBytes(monitor: string): Promise<number> {
  return ((await (await fetch(`${monitor}/varz`)).json()) as { out_bytes: number }).out_bytes
}

export async function benchRestart(): Promise<object> {
  const cluster = await BenchCluster.start({ monitor: true })
  const folder = scratch('restart')
  const agent = { ...benchAgent(90_000, resultOf(1_024)), continue: true }
  let wanted = rounds
  let count = 0
  const open = (store?: string) =>
    cluster.runtime('worker', {
      worker: `w${(count += 1)}`,
      providers: { openai: { baseURL: 'http://127.0.0.1:9/v1', apiKey: 'none', fetch: stubFetch(() => wanted) } },
      ...(store === undefined ? {} : { store }),
    })
  try {
    const first = await open(folder.path)
    await (await first.spawn(agent, { id: 'bench' })).ask('go')
    // The files as a kill would leave them.
    const killed = scratch('restart-killed')
    cpSync(folder.path, killed.path, { recursive: true })
    await first.close({ graceMs: 0 })
    wanted = 0
    const back = async (store?: string): Promise<Cost> => {
      const runtime = await open(store)
      const before = await sentBytes(cluster.monitor)
      const start = performance.now()
      await (await runtime.spawn(agent, { id: 'bench' })).ask('more')
      const ms = performance.now() - start
      const bytes = (await sentBytes(cluster.monitor)) - before
      await runtime.close({ graceMs: 0 })
      return { ms, bytes }
    }
    const afterKill = await back(killed.path)
    killed.drop()
    await back(folder.path)
    const samples: { with: Cost; without: Cost }[] = []
    for (let pass = 0; pass < passes; pass += 1) {
      samples.push({ without: await back(), with: await back(folder.path) })
    }
    const link = await connectNats({ servers: cluster.server.url })
    const log = createLog('silent')
    const raw = createJetStreamJournal({ link, subjects: cluster.subjects, worker: 'reader', epoch: () => 1 })
    await raw.open()
    const start = performance.now()
    for await (const _ of raw.read('bench', 1));
    const readMs = performance.now() - start
    await raw.close()
    const copied = createJetStreamJournal({
      link,
      subjects: cluster.subjects,
      worker: 'reader',
      epoch: () => 1,
      copy: { path: join(folder.path, `copy-${cluster.namespace}`), log },
    })
    await copied.open()
    const since = performance.now()
    for await (const _ of copied.read('bench', 1));
    const copiedMs = performance.now() - since
    await copied.close()
    await link.connection.close()
    const of = (way: 'with' | 'without', what: keyof Cost) => median(samples.map((sample) => sample[way][what]))
    say('local copy       ms       KB fetched   the whole journal, ms')
    say(
      `without    ${of('without', 'ms').toFixed(0).padStart(8)} ${(of('without', 'bytes') / 1_024).toFixed(0).padStart(12)} ${readMs.toFixed(0).padStart(12)}`,
    )
    say(
      `with       ${of('with', 'ms').toFixed(0).padStart(8)} ${(of('with', 'bytes') / 1_024).toFixed(0).padStart(12)} ${copiedMs.toFixed(0).padStart(12)}`,
    )
    say(`after kill ${afterKill.ms.toFixed(0).padStart(8)} ${(afterKill.bytes / 1_024).toFixed(0).padStart(12)}`)
    return {
      bench: 'restart',
      copiedMs: round3(of('with', 'ms')),
      plainMs: round3(of('without', 'ms')),
      copiedKB: Math.round(of('with', 'bytes') / 1_024),
      plainKB: Math.round(of('without', 'bytes') / 1_024),
      fetchedOverPlain: round3(of('with', 'bytes') / of('without', 'bytes')),
      afterKillKB: Math.round(afterKill.bytes / 1_024),
      afterKillMs: round3(afterKill.ms),
    }
  } finally {
    folder.drop()
    await cluster.stop()
  }
}
