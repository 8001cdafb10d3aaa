/**
 * A letter there and a letter back between shards of two workers, each stored before its `send` resolves and acknowledged
 * after it was taken; over a request and its reply on raw NATS, and over one raw publish into JetStream. One at a time, and
 * 64 at once.
 */
import { jetstream } from '@nats-io/jetstream'
import type { Draft } from '../../runtime/envelope.js'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { NatsMail } from '../../transport/nats-mail.js'
import { partitionOf } from '../../transport/subjects.js'
import { BenchCluster } from './cluster.js'
import { median, quantile, round3, say } from './measure.js'

const trips = 200
const passes = 6
const atOnce = 64
const text = 'x'.repeat(490)

interface Trip {
  readonly name: string
  once(lane: number): Promise<unknown>
}

/** Two ends of the mail: a letter to a lane's far shard is answered by one to its near shard. */
async function letters(cluster: BenchCluster, near: NatsLink, far: NatsLink): Promise<[Trip, () => Promise<void>]> {
  const { subjects } = cluster
  const lanes = Array.from({ length: atOnce }, (_, lane) => [`near-${lane}`, `far-${lane}`] as const)
  const waiting = new Map<string, () => void>()
  const draft = (from: string): Draft => ({
    from: `${from}/agent/bench`,
    to: 'agent/bench',
    cause: '',
    body: { type: 'bench.letter' },
    values: [text],
  })
  const [one, other] = [await NatsMail.open({ link: near, subjects }), await NatsMail.open({ link: far, subjects })]
  one.receive({
    whose: (shard) => (shard.startsWith('near-') ? 'own' : 'other'),
    take: async (shard) => waiting.get(shard)?.(),
    dead: async (_shard, _draft, code) => Promise.reject(new Error(code)),
  })
  other.receive({
    whose: (shard) => (shard.startsWith('far-') ? 'own' : 'other'),
    take: async (shard) => void other.send(shard.replace('far', 'near'), draft(shard)),
    dead: async (_shard, _draft, code) => Promise.reject(new Error(code)),
  })
  // Each lane's two shards in partitions that one end alone reads, as their owners would.
  const nearParts = new Set(lanes.map(([shard]) => partitionOf(shard)))
  const usable = lanes.filter(([, shard]) => !nearParts.has(partitionOf(shard)))
  one.listen(nearParts)
  other.listen(new Set(usable.map(([, shard]) => partitionOf(shard))))
  const trip: Trip = {
    name: 'letters',
    once: async (lane) => {
      const [home, away] = usable[lane % usable.length]!
      const back = new Promise<void>((resolve) => waiting.set(home, resolve))
      await one.send(away, draft(home))
      await back
    },
  }
  const end = async (): Promise<void> => {
    for (const mail of [one, other]) {
      await mail.drain()
      mail.close()
    }
  }
  return [{ ...trip, once: (lane) => trip.once(lane % usable.length) }, end]
}

export async function benchMail(): Promise<object> {
  const cluster = await BenchCluster.start()
  const near = await connectNats({ servers: cluster.server.url })
  const far = await connectNats({ servers: cluster.server.url })
  try {
    far.connection.subscribe('echo', { callback: (_, message) => void message.respond(message.data) })
    await far.connection.flush()
    await cluster.link.manager.streams.add({ name: 'raw', subjects: ['raw.*'] })
    const [letter, end] = await letters(cluster, near, far)
    const client = jetstream(near.connection)
    const contenders: readonly Trip[] = [
      { name: 'request and reply', once: () => near.connection.request('echo', text) },
      { name: 'JetStream publish', once: (lane) => client.publish(`raw.${lane}`, text) },
      letter,
    ]
    const singly = new Map<string, number[]>(contenders.map(({ name }) => [name, []]))
    const crowded = new Map<string, number[]>(contenders.map(({ name }) => [name, []]))
    for (let pass = -1; pass < passes; pass += 1) {
      for (const { name, once } of contenders) {
        for (let index = 0; index < trips; index += 1) {
          const start = performance.now()
          await once(0)
          if (pass >= 0) singly.get(name)!.push((performance.now() - start) * 1_000)
        }
        const start = performance.now()
        const lanes = 16
        await Promise.all(
          Array.from({ length: lanes }, async (_, lane) => {
            for (let index = 0; index < trips / 4; index += 1) await once(lane)
          }),
        )
        if (pass >= 0) crowded.get(name)!.push((lanes * trips) / 4 / ((performance.now() - start) / 1_000))
      }
    }
    await end()
    const micros = (name: string) => median(singly.get(name)!)
    const rate = (name: string) => median(crowded.get(name)!)
    say('contender            µs      p99   16 at once, a second')
    for (const [name, samples] of singly) {
      const figures = [median(samples), quantile(samples, 0.99), rate(name)]
      say(`${name.padEnd(18)} ${figures.map((value) => value.toFixed(0).padStart(7)).join(' ')}`)
    }
    return {
      bench: 'mail',
      roundTripMicros: round3(micros('letters')),
      roundTripP99Micros: round3(quantile(singly.get('letters')!, 0.99)),
      overRequestReply: round3(micros('letters') / micros('request and reply')),
      overJetStreamPublish: round3(micros('letters') / micros('JetStream publish')),
      tripsPerSecond: Math.round(rate('letters')),
      overJetStreamPublishAtOnce: round3(rate('JetStream publish') / rate('letters')),
    }
  } finally {
    await near.connection.close()
    await far.connection.close()
    await cluster.stop()
  }
}
