/**
 * Events from commits of 100 shards to 1, 10 and 100 followers, by way of the stream; over the same events in raw publishes
 * to as many raw subscribers, one event a message, which read their JSON and nothing more. Each subscriber has a connection
 * of its own; all are in one process beside the publisher's. Events that arrive a second.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { createLog } from '../../runtime/log.js'
import { fromEvents, type PlacedEvent } from '../../runtime/record.js'
import { encode } from '../../runtime/codec.js'
import { toCloudEvent } from '../../runtime/events.js'
import { connectNats } from '../../transport/nats-connection.js'
import { NatsEvents } from '../../transport/nats-events.js'
import { followEvents } from '../../transport/nats-follower.js'
import { Subjects } from '../../transport/subjects.js'
import { createMemoryJournal } from '../../transport/memory-journal.js'
import { appendNext } from '../conformance/journal.js'
import { startNatsServer } from '../support/nats-server.js'
import { median, round3, say } from './measure.js'

const self = fileURLToPath(import.meta.url)
const subscribers = [1, 10, 100] as const
const shards = 100
/** Commits of two events each, as a tool round has them. */
const commitsOf = { 1: 100, 10: 20, 100: 4 } as const
const passes = 4
const namespace = 'fanout'

/** The subscribers: tells when all have had so many events more. */
async function listen(way: string, many: number, url: string): Promise<void> {
  const subjects = new Subjects(namespace)
  let seen = 0
  let wanted = Number.POSITIVE_INFINITY
  const count = (): void => {
    seen += 1
    if (seen === wanted) process.send?.('done')
  }
  process.on('message', (events: number) => {
    wanted = events * many
    seen = 0
    process.send?.('set')
  })
  process.on('disconnect', () => process.exit(0))
  for (let index = 0; index < many; index += 1) {
    const link = await connectNats({ servers: url })
    if (way === 'raw') {
      const callback = (_: Error | null, message: { json(): unknown }): void => {
        message.json()
        count()
      }
      link.connection.subscribe('raw.>', { callback })
      await link.connection.flush()
    } else {
      void (async () => {
        for await (const _ of followEvents({ link, subjects })) count()
      })()
    }
  }
  process.send?.('ready')
}

function said(child: ChildProcess, word: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const ended = (code: number | null): void => reject(new Error(`the subscribers ended with ${code}`))
    const heard = (found: unknown): void => {
      if (found !== word) return
      child.off('message', heard)
      child.off('exit', ended)
      resolve()
    }
    child.on('message', heard)
    child.once('exit', ended)
  })
}

interface Rates {
  readonly raw: number
  readonly stream: number
}

async function measure(many: (typeof subscribers)[number]): Promise<Rates> {
  const server = await startNatsServer()
  const link = await connectNats({ servers: server.url })
  const subjects = new Subjects(namespace)
  const journal = createMemoryJournal()
  await journal.open()
  const events = await NatsEvents.open({ link, subjects, journal, log: createLog('error') })
  const start = async (way: string): Promise<ChildProcess> => {
    const words = ['listen', way, String(many), server.url]
    const child = fork(self, words, { execArgv: process.execArgv, stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
    await said(child, 'ready')
    return child
  }
  const consumers = async () => (await link.manager.streams.info(subjects.stream('events'))).state.consumer_count
  const commit = async (shard: string): Promise<readonly PlacedEvent[]> => {
    const sequence = (await journal.head(shard)).sequence + 1
    const replied = {
      type: 'model.replied',
      agent: 'writer',
      finish: 'tool_calls',
      calls: 1,
      usage: { in: 100, out: 10 },
    }
    const called = { type: 'tool.called', callId: 'call_1', tool: 'look', agent: 'writer', attempt: 1 }
    const stored = [
      [
        sequence,
        Date.now(),
        [
          ['agent/writer-r2', replied],
          ['tool/writer-r2-1', called],
        ],
      ],
    ]
    const record = await appendNext(journal, shard, `${sequence}`, { events: encode(stored) })
    return fromEvents(record.events!)
  }
  const [raw, stream] = [await start('raw'), await start('stream')]
  while ((await consumers()) < many) await new Promise((resolve) => setTimeout(resolve, 20))
  const commits = commitsOf[many]
  const ready = { raw, stream }
  const rates = { raw: [] as number[], stream: [] as number[] }
  for (let pass = -1; pass < passes; pass += 1) {
    for (const way of ['raw', 'stream'] as const) {
      const all: (readonly [shard: string, placed: readonly PlacedEvent[]])[] = []
      for (let index = 0; index < commits * shards; index += 1) {
        const shard = `s${index % shards}`
        all.push([shard, await commit(shard)])
      }
      const total = all.length * 2
      const child = ready[way]
      child.send(total)
      await said(child, 'set')
      const done = said(child, 'done')
      const since = performance.now()
      if (way === 'stream') for (const [shard, placed] of all) events.publish(shard, placed)
      else
        for (const [shard, placed] of all)
          for (const each of placed) link.connection.publish(`raw.${shard}`, JSON.stringify(toCloudEvent(shard, each)))
      await done
      if (pass >= 0) rates[way].push((total * many) / ((performance.now() - since) / 1_000))
      // What was published raw is no commit that the stream has yet: it goes there unmeasured.
      if (way === 'raw') {
        for (const [shard, placed] of all) events.publish(shard, placed)
      }
      await events.flush()
      stream.send(Number.MAX_SAFE_INTEGER)
      await said(stream, 'set')
    }
  }
  for (const child of [raw, stream]) child.kill('SIGKILL')
  await events.close()
  await link.connection.close()
  await server.dispose()
  return { raw: median(rates.raw), stream: median(rates.stream) }
}

export async function benchFanout(): Promise<object> {
  const result: Record<string, number | string> = { bench: 'fanout' }
  say('subscribers   raw/s  stream/s  ratio')
  for (const many of subscribers) {
    const { raw, stream } = await measure(many)
    const ratio = round3(stream / raw)
    say([many, raw.toFixed(0), stream.toFixed(0), ratio].map((value) => String(value).padStart(9)).join(' '))
    result[`streamOverRaw${many}`] = ratio
    result[`events${many}PerSecond`] = Math.round(stream)
  }
  return result
}

if (process.argv[2] === 'listen') await listen(process.argv[3]!, Number(process.argv[4]), process.argv[5]!)
