import { afterEach, beforeEach, expect, test } from 'vitest'
import { EventHub } from '../../runtime/events.js'
import type { LiveEvent } from '../../runtime/dispatcher.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { followEvents, type FollowOptions } from '../../transport/nats-follower.js'
import { NatsLive } from '../../transport/nats-live.js'
import { Subjects } from '../../transport/subjects.js'
import type { NatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'

let server: NatsServer
let link: NatsLink
useNats((nats) => {
  ;({ server, link } = nats)
})
let subjects: Subjects
let count = 0
const closing: (() => unknown)[] = []
beforeEach(async () => {
  subjects = new Subjects(`live${++count}`)
  const name = subjects.stream('events')
  await link.manager.streams.add({ name, subjects: [subjects.events()] })
})
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close()
})

const delta: LiveEvent = { kind: 'delta', effect: '1-0', agent: 'a', run: 'r', delta: { text: 'x', offset: 0 } }

function stage(shards: () => string[] = () => ['q1', 'q2']) {
  const hub = new EventHub()
  const shown: string[] = []
  const live = new NatsLive({ link, subjects, hub, shards, show: (shard) => void shown.push(shard) })
  closing.push(() => live.close())
  const watched = () => ['q1', 'q2'].filter((shard) => hub.watched(shard))
  return { hub, live, shown, watched }
}

/** Follows until it is told to leave. */
function follow(options: Partial<FollowOptions>): () => Promise<void> {
  const leaving = new AbortController()
  const following = (async () => {
    for await (const _ of followEvents({ link, subjects, ...options, signal: leaving.signal })) void _
  })()
  const leave = async (): Promise<void> => {
    leaving.abort()
    await following
  }
  closing.push(leave)
  return leave
}

test('NV1 live: a shard is watched while somebody listens to its live events, and no other one is', async () => {
  const { hub, shown, watched } = stage()
  hub.show('q1', delta)
  for (const [filter, shards] of [
    ['q1', ['q1']],
    ['q2.agent.writer.model.>', ['q2']],
    ['*.agent.>', ['q1', 'q2']],
    [undefined, ['q1', 'q2']],
  ] as const) {
    const leave = follow({ filter, live: true })
    await expect.poll(watched, { timeout: 5_000 }).toEqual(shards)
    hub.show(shards[0], delta)
    await leave()
    await expect.poll(watched, { timeout: 5_000 }).toEqual([])
  }
  expect(shown).toEqual(['q1', 'q2', 'q1', 'q1'])
  // Who follows what is stored alone watches nothing.
  follow({})
  const { live, watched: others } = stage()
  await live.look('q1')
  expect(others()).toEqual([])
})

test('NV1 live: one that is looked at is watched at once, one that left is not any more', async () => {
  const shards = ['q1']
  const { live, watched } = stage(() => shards)
  follow({ live: true })
  await link.connection.flush()
  await expect.poll(async () => (await live.look('q1'), watched())).toEqual(['q1'])
  shards.length = 0
  await expect.poll(watched, { timeout: 5_000 }).toEqual([])
  await live.look('q2')
  live.close()
  await live.look('q1')
  expect(watched()).toEqual([])
})

test('NV2 live: without a server all stays as it was', async () => {
  const { live, watched } = stage()
  follow({ filter: 'q1', live: true })
  await expect.poll(watched, { timeout: 5_000 }).toEqual(['q1'])
  await server.kill()
  await expect
    .poll(() =>
      link.connection.rtt().then(
        () => 'up',
        () => 'down',
      ),
    )
    .toBe('down')
  await Promise.all(['q1', 'q2'].map((shard) => live.look(shard)))
  expect(watched()).toEqual(['q1'])
  await server.start()
  await expect
    .poll(
      () =>
        link.connection.rtt().then(
          () => 'up',
          () => 'down',
        ),
      { timeout: 10_000 },
    )
    .toBe('up')
})
