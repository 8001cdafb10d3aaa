/**
 * 100 crews at once, 10 rounds each, on 1, 2 and 4 workers in processes of their own; over the same on the embedded runtime
 * with a store, and by hand on the `openai` client. Rounds a second of all together, `nats-server` on the same machine.
 */
import { cpus } from 'node:os'
import { BenchCluster } from './cluster.js'
import { benchAgent, type Contender, median, rawContender, round3, say, troupeContender } from './measure.js'
import { startProvider, task } from './provider.js'

const crews = 100
const rounds = 10
const passes = 4
const workers = [1, 2, 4] as const

/** The crews of so many workers. */
async function clusterContender(many: number, baseURL: string): Promise<Contender> {
  const cluster = await BenchCluster.start()
  await Promise.all(
    Array.from({ length: many }, (_, index) => cluster.worker({ baseURL, worker: `w${index + 1}`, leaseMs: 10_000 })),
  )
  const client = await cluster.runtime('client')
  const agent = benchAgent(1_000)
  let count = 0
  return {
    name: `${many} workers`,
    converse: async () => {
      const crew = await client.spawn(agent, { id: `bench-${(count += 1)}` })
      const result = await crew.ask(task(rounds))
      if (result.rounds !== rounds + 1) throw new Error(`${result.rounds} rounds instead of ${rounds + 1}`)
    },
    close: () => cluster.stop(),
  }
}

async function pass(contender: Contender): Promise<number> {
  const start = performance.now()
  await Promise.all(Array.from({ length: crews }, () => contender.converse(rounds)))
  return (crews * (rounds + 1)) / ((performance.now() - start) / 1_000)
}

export async function benchScale(): Promise<object> {
  const provider = await startProvider()
  const contenders: Contender[] = []
  try {
    contenders.push(rawContender('raw', provider.baseURL, true))
    contenders.push(await troupeContender('embedded', provider.baseURL, 'process', true))
    for (const many of workers) contenders.push(await clusterContender(many, provider.baseURL))
    const samples = new Map<string, number[]>(contenders.map(({ name }) => [name, []]))
    for (let index = -1; index < passes; index += 1) {
      for (const contender of contenders) {
        const rate = await pass(contender)
        if (index >= 0) samples.get(contender.name)!.push(rate)
      }
    }
    const rate = (name: string) => median(samples.get(name)!)
    say('contender    rounds/s   least   most')
    for (const [name, values] of samples) {
      const figures = [rate(name), Math.min(...values), Math.max(...values)]
      say(`${name.padEnd(12)} ${figures.map((value) => value.toFixed(0).padStart(7)).join(' ')}`)
    }
    return {
      bench: 'scale',
      cores: cpus().length,
      rounds1Worker: Math.round(rate('1 workers')),
      rounds2Workers: Math.round(rate('2 workers')),
      rounds4Workers: Math.round(rate('4 workers')),
      oneOverEmbedded: round3(rate('1 workers') / rate('embedded')),
      oneOverRaw: round3(rate('1 workers') / rate('raw')),
      twoOverOne: round3(rate('2 workers') / rate('1 workers')),
      fourOverOne: round3(rate('4 workers') / rate('1 workers')),
    }
  } finally {
    for (const contender of contenders) await contender.close()
    provider.stop()
  }
}
