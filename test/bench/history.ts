/**
 * Does a crew on JetStream cost more late in its life? Appends at commit 10,000 over commit 100; a round at commit 10,000
 * over one at commit 100, in what it takes beyond the same round by hand; and taking such a crew over, with its snapshots
 * and without.
 */
import { chain } from '../../runtime/codec.js'
import { type JournalRecord, nothingPending } from '../../runtime/journal.js'
import { createJetStreamJournal } from '../../transport/jetstream-journal.js'
import type { DistributedRuntime } from 'troupe'
import { BenchCluster } from './cluster.js'
import { raw } from './growth.js'
import { benchAgent, median, quantile, round3, say } from './measure.js'
import { resultOf, stubFetch } from './stub.js'

const starts = [50, 5_000] as const
const measured = 20
const passes = 12
const resultBytes = 200

/** Microseconds of single appends behind 100 and behind 10,000 records, in turn. */
async function appends(cluster: BenchCluster): Promise<readonly [number[], number[]]> {
  const { link, subjects } = cluster
  const journal = createJetStreamJournal({ link, subjects, worker: 'appender', epoch: () => 1 })
  await journal.open()
  const bytes = Buffer.alloc(490, 'x')
  const heads = new Map<string, { hash: Uint8Array; sequence: number }>()
  const append = async (shard: string): Promise<void> => {
    const head = heads.get(shard) ?? { hash: new Uint8Array(32), sequence: 0 }
    const first = head.sequence + 1
    const hash = chain(head.hash, bytes)
    const record: JournalRecord = { shard, first, last: first, hash, bytes, events: null, pending: nothingPending }
    await journal.append(record)
    heads.set(shard, { hash, sequence: first })
  }
  for (let at = 0; at < 10_000; at += 1) await append('long')
  const samples: readonly [number[], number[]] = [[], []]
  for (let pass = 0; pass < 10; pass += 1) {
    for (let at = 0; at < 100; at += 1) await append(`short-${pass}`)
    for (let at = 0; at < 100; at += 1) {
      for (const [index, shard] of [`short-${pass}`, 'long'].entries()) {
        const start = performance.now()
        await append(shard)
        samples[index]!.push((performance.now() - start) * 1_000)
      }
    }
  }
  await journal.close()
  return samples
}

interface LongCrew {
  /** Microseconds of a round beyond those of one by hand. */
  readonly overhead: number
  readonly ours: number
  /** Milliseconds of the next owner's first reply, with snapshots and without. */
  readonly takenMs: number
  readonly replayedMs: number
}

async function longCrew(start: number, cluster: BenchCluster): Promise<LongCrew> {
  const id = `crew-${start}`
  const agent = { ...benchAgent(90_000, resultOf(resultBytes)), continue: true }
  let rounds = start - 1
  let count = 0
  const open = (): Promise<DistributedRuntime> =>
    cluster.runtime('worker', {
      worker: `w${start}-${(count += 1)}`,
      providers: { openai: { baseURL: 'http://127.0.0.1:9/v1', apiKey: 'none', fetch: stubFetch(() => rounds) } },
    })
  const first = await open()
  const crew = await first.spawn(agent, { id })
  await crew.ask('go')
  const hand = raw(start, resultBytes)
  const samples: { ours: number; raw: number }[] = []
  const time = async (work: () => Promise<unknown>): Promise<number> => {
    const since = performance.now()
    await work()
    return ((performance.now() - since) * 1_000) / measured
  }
  for (let pass = -1; pass < passes; pass += 1) {
    rounds = measured - 1
    const sample = { ours: await time(() => crew.ask('more')), raw: await time(() => hand.advance()) }
    if (pass >= 0) samples.push(sample)
  }
  await first.close({ graceMs: 0 })
  const take = async (): Promise<number> => {
    const next = await open()
    const since = performance.now()
    rounds = 0
    await (await next.spawn(agent, { id })).ask('and?')
    const ms = performance.now() - since
    await next.close({ graceMs: 0 })
    return ms
  }
  const taken: number[] = []
  const replayed: number[] = []
  for (let pass = 0; pass < 3; pass += 1) {
    taken.push(await take())
    const filter = cluster.subjects.contents(id, 'manifest')
    await cluster.link.manager.streams.purge(cluster.subjects.stream('content'), { filter })
    replayed.push(await take())
  }
  return {
    overhead: median(samples.map((sample) => sample.ours - sample.raw)),
    ours: median(samples.map((sample) => sample.ours)),
    takenMs: median(taken),
    replayedMs: median(replayed),
  }
}

export async function benchHistory(): Promise<object> {
  const cluster = await BenchCluster.start()
  try {
    const [early, late] = await appends(cluster)
    const crews = [await longCrew(starts[0], cluster), await longCrew(starts[1], cluster)] as const
    say('at commit   append µs    p99   round µs  beyond raw µs   taken ms  replayed ms')
    for (const [index, samples] of [early, late].entries()) {
      const { ours, overhead, takenMs, replayedMs } = crews[index]!
      const figures = [median(samples), quantile(samples, 0.99), ours, overhead, takenMs, replayedMs]
      say([starts[index]! * 2, ...figures].map((value) => value.toFixed(0).padStart(10)).join(' '))
    }
    return {
      bench: 'history',
      append10000Over100: round3(median(late) / median(early)),
      appendMicros: round3(median(late)),
      // Where we are cheaper than the hand-written loop there is no overhead left that could grow.
      roundOverhead10000Over100: round3(Math.max(crews[1].overhead, 0) / Math.max(crews[0].overhead, 1)),
      roundMicros10000: round3(crews[1].ours),
      takenMs: round3(crews[1].takenMs),
      replayedMs: round3(crews[1].replayedMs),
    }
  } finally {
    await cluster.stop()
  }
}
