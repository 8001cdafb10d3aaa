import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Commit } from '../../runtime/commit.js'
import type { DistributedRuntime } from '../../runtime/distributed.js'
import { createRuntime, defineAgent, reply, startScriptedModel } from '../../runtime/index.js'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { type FollowedEvent, followEvents } from '../../transport/nats-follower.js'
import { NatsTrace } from '../../transport/nats-trace.js'
import { Subjects } from '../../transport/subjects.js'
import { startLinkProxy } from '../support/link-proxy.js'
import type { NatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'

let server: NatsServer
let link: NatsLink
let subjects: Subjects
let count = 0
const closing: (() => Promise<unknown>)[] = []
useNats((nats) => {
  ;({ server, link } = nats)
})
beforeEach(() => {
  subjects = new Subjects(`trace${++count}`)
})
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close()
})

interface Told {
  readonly id: string
  readonly data: { readonly body: Record<string, unknown>; readonly lost?: number; readonly type: string }
}

/** What passes by from now on. */
async function listening(): Promise<Told[]> {
  const seen: Told[] = []
  const callback = (_: Error | null, message: { json<T>(): T }): void => void seen.push(message.json<Told>())
  link.connection.subscribe(subjects.messages(), { callback })
  await link.connection.flush()
  return seen
}

function commitOf(sequence: number, ...bodies: readonly object[]): Commit {
  const messages = bodies.map((body) => ({ from: 'a/x', to: 'agent/y', message: { type: 't', ...body }, cause: null }))
  return { sequence, envelope: { at: 1, cause: 'c' }, messages } as unknown as Commit
}

/** A run on a worker that traces or not, followed by somebody outside. */
async function followed(trace: boolean): Promise<FollowedEvent[]> {
  const model = await startScriptedModel(() => reply.text('done'))
  closing.push(() => model.close())
  const runtime = (await createRuntime({
    log: 'error',
    providers: { scripted: { baseURL: model.baseURL } },
    nats: { servers: server.url, namespace: `trace${count}`, trace },
  })) as DistributedRuntime
  closing.push(() => runtime.close({ graceMs: 0 }))
  const seen: FollowedEvent[] = []
  const leaving = new AbortController()
  const following = (async () => {
    const options = { link, subjects, filter: 'x.crew', messages: true, signal: leaving.signal }
    for await (const each of followEvents(options)) {
      seen.push(each)
      if (each.event.type === 'troupe.run.finished') leaving.abort()
    }
  })()
  const { streams } = link.manager
  const consumers = async () => (await streams.info(subjects.stream('events'))).state.consumer_count
  await expect.poll(consumers).toBe(1)
  const crew = await runtime.spawn(defineAgent({ name: 'x', model: 'scripted:any', instructions: 'Answer.' }), {
    id: 'x',
  })
  await crew.ask('Do you?')
  await following
  return seen
}

test('NT1 trace: off unless asked for; then the messages of the actors that the filter names come beside the events', async () => {
  const traced = await followed(true)
  const messages = traced.filter(({ event }) => event.type === 'troupe.message')
  expect(messages.every(({ event, sequence }) => sequence === null && event.data['to'] === 'crew/main')).toBe(true)
  expect(messages.map(({ event }) => event.data['type'])).toContain('crew.task')
  subjects = new Subjects(`trace${++count}`)
  const plain = await followed(false)
  expect(plain.filter(({ event }) => event.type === 'troupe.message')).toEqual([])
  expect(plain.length).toBeGreaterThan(1)
})

test('NT2 trace: over a link that takes nothing it costs no time and little memory, and says how many were lost', async () => {
  const proxy = await startLinkProxy(server.port)
  closing.push(() => proxy.close())
  const over = await connectNats({ servers: `127.0.0.1:${proxy.port}` })
  closing.push(() => over.connection.close())
  const trace = new NatsTrace(over, subjects)
  const seen = await listening()
  proxy.up = 'hold'
  const since = performance.now()
  for (let n = 1; n <= 300; n++) trace.publish('s', commitOf(n, { text: 'x'.repeat(30_000) }))
  expect(performance.now() - since).toBeLessThan(2_000)
  proxy.up = 'pass'
  await over.connection.flush()
  await expect.poll(() => seen.length).toBeGreaterThan(100)
  trace.publish('s', commitOf(301, {}))
  await expect.poll(() => seen.at(-1)?.id).toBe('s-message-301-0')
  expect(seen.length).toBeLessThan(150)
  expect(seen.length + seen.at(-1)!.data.lost!).toBe(301)
})

test('NT3 trace: no secret passes by, and nothing that is very large', async () => {
  const trace = new NatsTrace(link, subjects)
  const seen = await listening()
  trace.publish(
    's',
    commitOf(1, { reason: 'Bearer abcdefgh12345678 was refused "\\' }, { text: 'x'.repeat(100_000) }, { n: 1 }),
  )
  await expect.poll(() => seen.length).toBe(3)
  expect(seen.map(({ data }) => data.body)).toEqual([
    { reason: 'Bearer [redacted] was refused "\\' },
    { truncated: true },
    { n: 1 },
  ])
})
