/**
 * Messages that the server stores for a tool round: what one of 120 rounds has more than one of 20, a round, by the numbers of the
 * streams. One worker; of local tools what is `idempotent` takes two records, what is `once` takes a third; a remote tool runs with
 * a tool worker.
 */
import { BenchCluster } from './cluster.js'
import { benchAgent, round3, say } from './measure.js'
import { startProvider, task } from './provider.js'

const streams = ['journal', 'events', 'mail', 'content'] as const
const rounds = [20, 120] as const
type Counts = Record<(typeof streams)[number], number>

type Kind = 'idempotent' | 'once' | 'remote'

async function countsOf(cluster: BenchCluster): Promise<Counts> {
  const found = {} as Counts
  for (const of of streams) found[of] = await cluster.last(of)
  return found
}

/** What the streams hold when nothing comes any more. */
async function settled(cluster: BenchCluster): Promise<Counts> {
  for (let before = await countsOf(cluster); ; ) {
    await new Promise((resolve) => setTimeout(resolve, 300))
    const now = await countsOf(cluster)
    if (streams.every((of) => now[of] === before[of])) return now
    before = now
  }
}

async function perRound(kind: Kind, baseURL: string): Promise<Counts> {
  const cluster = await BenchCluster.start()
  try {
    const runtime = await cluster.runtime('worker', { providers: { openai: { baseURL, apiKey: 'none' } } })
    const agent = benchAgent(1_000, undefined, kind === 'remote' ? 'once' : kind, kind === 'remote')
    if (kind === 'remote') await (await cluster.runtime('tools')).offer(agent)
    const crew = await runtime.spawn(agent, { id: 'bench' })
    const taken: Counts[] = []
    for (const many of [rounds[0], ...rounds]) {
      const before = await settled(cluster)
      await crew.ask(task(many))
      const after = await settled(cluster)
      taken.push(Object.fromEntries(streams.map((of) => [of, after[of] - before[of]])) as Counts)
    }
    const [, few, many] = taken as [Counts, Counts, Counts]
    const each = (of: keyof Counts) => round3((many[of] - few[of]) / (rounds[1] - rounds[0]))
    return Object.fromEntries(streams.map((of) => [of, each(of)])) as Counts
  } finally {
    await cluster.stop()
  }
}

export async function benchStored(): Promise<object> {
  const provider = await startProvider()
  try {
    const sum = (counts: Counts) => round3(streams.reduce((total, of) => total + counts[of], 0))
    const [idempotent, once, remote] = [
      await perRound('idempotent', provider.baseURL),
      await perRound('once', provider.baseURL),
      await perRound('remote', provider.baseURL),
    ]
    say(`a round of     ${streams.map((of) => of.padStart(8)).join(' ')}      all`)
    for (const [name, counts] of [
      ['idempotent', idempotent],
      ['once', once],
      ['once, remote', remote],
    ] as const)
      say(
        `${name.padEnd(14)} ${[...streams.map((of) => counts[of]), sum(counts)].map((n) => String(n).padStart(8)).join(' ')}`,
      )
    return {
      bench: 'stored',
      journalPerRound: idempotent.journal,
      journalPerOnceRound: once.journal,
      eventsPerRound: idempotent.events,
      storedPerRound: sum(idempotent),
      storedPerOnceRound: sum(once),
      journalPerRemoteRound: remote.journal,
      storedPerRemoteRound: sum(remote),
    }
  } finally {
    provider.stop()
  }
}
