import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { jetstream } from '@nats-io/jetstream'
import { createLog } from '../../runtime/log.js'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { NatsEvents } from '../../transport/nats-events.js'
import { type FollowedEvent, followEvents, type FollowOptions } from '../../transport/nats-follower.js'
import { Subjects } from '../../transport/subjects.js'
import { byShard, EventSource, take } from '../support/event-source.js'
import { startLinkProxy } from '../support/link-proxy.js'
import { type NatsServer, startNatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'
import { code } from '../support/values.js'

let server: NatsServer
let link: NatsLink
let subjects: Subjects
let source: EventSource
let events: NatsEvents
let count = 0
const closing: (() => Promise<unknown>)[] = []
const shards = ['a', 'b', 'c']
useNats((nats) => {
  ;({ server, link } = nats)
})
beforeEach(async () => {
  subjects = new Subjects(`follow${++count}`)
  source = await EventSource.open()
  events = await NatsEvents.open({ link, subjects, journal: source.journal, log: createLog('silent') })
})
afterEach(async () => {
  await events.close()
  for (const close of closing.splice(0).reverse()) await close()
})

const ids = (followed: readonly FollowedEvent[]) => followed.map(({ event }) => event.id)
const idsOf = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, n) => `a-${from + n}-0`)

/** So many commits of one event each, each a message of its own. */
async function commits(shard: string, many: number): Promise<void> {
  for (let n = 0; n < many; n++) {
    await source.commit(shard, { count: 1 }, events)
    await events.flush()
  }
}

/** Follows until the test ends; gives what has come. */
function following(options: Partial<FollowOptions>, over = link): FollowedEvent[] {
  const seen: FollowedEvent[] = []
  const leaving = new AbortController()
  const done = (async () => {
    for await (const each of followEvents({ link: over, subjects, ...options, signal: leaving.signal })) seen.push(each)
  })()
  closing.push(() => {
    leaving.abort()
    return done
  })
  return seen
}
const consumers = async () => (await link.manager.consumers.list(subjects.stream('events')).next()).length

describe('follow', () => {
  test('NF1 follow: from a number of the stream, from a time, from the beginning, from now', async () => {
    await commits('a', 10)
    expect(ids(await take({ link, subjects, since: 'all' }, 10))).toEqual(idsOf(1, 10))
    const [, third, fourth] = await take({ link, subjects, since: 1 }, 3)
    expect([third?.event.id, third?.sequence, fourth?.sequence]).toEqual(['a-3-0', 3, 4])
    // The stream's time, not the events': a pause of its own between the two.
    const middle = await link.manager.streams.getMessage(subjects.stream('events'), { seq: 10 })
    const since = new Date(middle!.time.getTime() + 1).toISOString()
    await expect.poll(() => Date.now()).toBeGreaterThan(Date.parse(since))
    await commits('a', 5)
    expect(ids(await take({ link, subjects, since }, 5))).toEqual(idsOf(11, 15))
    const seen = following({})
    await expect.poll(consumers).toBe(1)
    await commits('a', 3)
    await expect.poll(() => ids(seen)).toEqual(idsOf(16, 18))
    const late = following({ since: '2000-01-01T00:00:00Z' })
    await expect.poll(() => ids(late)).toEqual(idsOf(1, 18))
  })

  test('NF1 follow: a time that is later than the stream’s last event gives what comes', async () => {
    await commits('a', 2)
    const seen = following({ since: new Date(Date.now() + 60_000).toISOString() })
    await expect.poll(consumers).toBe(1)
    await commits('a', 1)
    await expect.poll(() => ids(seen)).toEqual(['a-3-0'])
  })

  test('NF1 follow: a filter names a shard, a kind of actor, a type', async () => {
    await source.commit('a', { count: 1 }, events)
    await source.commit('b', { count: 1, from: 'crew/main', type: 'run.finished' }, events)
    await source.commit('b', { count: 1 }, events)
    await events.flush()
    const found = async (filter: string, many: number) =>
      ids(await take({ link, subjects, filter, since: 'all' }, many)).sort()
    expect(await found('b', 2)).toEqual(['b-1-0', 'b-2-0'])
    expect(await found('*.agent.>', 2)).toEqual(['a-1-0', 'b-2-0'])
    expect(await found('*.*.*.run.finished', 1)).toEqual(['b-1-0'])
    expect(await found('>', 3)).toHaveLength(3)
    for (const filter of ['', 'a..b', '>.a', 'a b', 'a.>.b', 'x\r\n', 'a*', '.']) {
      await expect(take({ link, subjects, filter }, 1), filter).rejects.toEqual(code('ID_INVALID'))
    }
  })

  test('NF1 follow: links that are cut and bytes that vanish leave nothing out, and nothing comes twice', async () => {
    const proxy = await startLinkProxy(server.port)
    closing.push(() => proxy.close())
    const over = await connectNats({ servers: `127.0.0.1:${proxy.port}` })
    closing.push(() => over.connection.close())
    const seen = following({ since: 'all' }, over)
    const total = () => Object.values(source.expected).flat().length
    await expect.poll(consumers).toBe(1)
    for (let round = 0; round < 6; round++) {
      for (let n = 0; n < 50; n++) for (const shard of shards) await source.commit(shard, {}, events)
      // What is sent into a link that is already dead is the end of all there is: nothing comes behind it.
      proxy.down = round % 2 === 0 ? 'swallow' : 'pass'
      await events.flush()
      proxy.cut()
      proxy.down = 'pass'
      await expect.poll(() => seen.length, { timeout: 10_000 }).toBe(total())
    }
    expect(byShard(seen.map(({ event }) => event))).toEqual({ ids: source.expected, twice: 0 })
    const numbers = seen.map(({ sequence }) => sequence!)
    expect(numbers).toEqual([...numbers].sort((one, other) => one - other))
  })

  test('NF1 follow: a stream that does not answer at the start, as while its leader is chosen, is asked again', async () => {
    const proxy = await startLinkProxy(server.port)
    closing.push(() => proxy.close())
    const over = await connectNats({ servers: `127.0.0.1:${proxy.port}` })
    closing.push(() => over.connection.close())
    await commits('a', 3)
    let asked = false
    proxy.onUp = (bytes) => (asked ||= bytes.includes('STREAM.INFO'))
    proxy.down = 'swallow'
    const seen = following({ since: 'all' }, over)
    await expect.poll(() => asked).toBe(true)
    proxy.cut()
    proxy.down = 'pass'
    await expect.poll(() => ids(seen), { timeout: 15_000 }).toEqual(idsOf(1, 3))
  })

  test('NF4 follow: the number of any event that came is a place to go on from', async () => {
    await commits('a', 1)
    for (let n = 0; n < 3; n++) {
      const one = await source.commit('a', { count: 3 })
      const other = await source.commit('a', { count: 1, from: 'crew/main', type: 'run.finished' })
      events.publish('a', [...one, ...other])
      await events.flush()
    }
    expect((await link.manager.streams.info(subjects.stream('events'))).state.last_seq).toBe(4)
    for (const [filter, many] of [
      ['a', 13],
      ['*.agent.>', 10],
    ] as const) {
      const all = await take({ link, subjects, filter, since: 'all' }, many)
      for (const [index, { sequence }] of all.slice(0, -1).entries()) {
        const seen = following({ filter, since: sequence! })
        await expect.poll(() => ids(seen)).toContain(all.at(-1)!.event.id)
        expect(ids(seen)).toEqual(expect.arrayContaining(ids(all).slice(index + 1)))
      }
    }
  })

  test('NF1 follow: a server that is killed and started again leaves nothing out', async () => {
    const own = await startNatsServer()
    closing.push(() => own.dispose())
    const over = await connectNats({ servers: own.url })
    closing.push(() => over.connection.close())
    const publisher = await NatsEvents.open({ link: over, subjects, journal: source.journal, log: createLog('silent') })
    closing.push(() => publisher.close())
    const seen = following({ since: 'all' }, over)
    for (let round = 0; round < 3; round++) {
      for (let n = 0; n < 40; n++) for (const shard of shards) await source.commit(shard, {}, publisher)
      await expect.poll(() => seen.length, { timeout: 10_000 }).toBeGreaterThan(round * 240 + 30)
      await own.kill()
      await own.start()
      const total = Object.values(source.expected).flat().length
      await expect.poll(() => seen.length, { timeout: 15_000 }).toBe(total)
    }
    expect(byShard(seen.map(({ event }) => event))).toEqual({ ids: source.expected, twice: 0 })
  })

  test('NF2 follow: an event that is stored twice comes once, and what is no event does not come', async () => {
    await commits('a', 2)
    const first = await link.manager.streams.getMessage(subjects.stream('events'), { seq: 1 })
    await jetstream(link.connection).publish(first!.subject, first!.data)
    await jetstream(link.connection).publish(first!.subject, 'not JSON')
    await jetstream(link.connection).publish(first!.subject, '{"id":"a-9-9"}')
    await commits('b', 1)
    expect(ids(await take({ link, subjects, since: 'all' }, 3))).toEqual(['a-1-0', 'a-2-0', 'b-1-0'])
  })

  test('NF3 follow: a slow reader gets every stored event, and of the live ones as many as fit', async () => {
    const live = { kind: 'progress', effect: '1-0', agent: 'writer', run: 'r2', callId: 'c', value: 1 } as const
    const stream = followEvents({ link, subjects, live: true, since: 'all' })
    const first = stream.next()
    await expect.poll(consumers).toBe(1)
    await link.connection.flush()
    events.show('a', live)
    expect((await first).value?.sequence).toBeNull()
    for (let n = 0; n < 2_000; n++) events.show('a', live)
    for (let n = 0; n < 12; n++) await source.commit('a', { count: 100 }, events)
    await events.flush()
    await link.connection.flush()
    const seen = []
    for await (const each of stream) {
      if (each.sequence === null) seen.push('live')
      else seen.push(each.event.id)
      if (each.event.id === 'a-12-99') break
    }
    expect(seen.filter((id) => id === 'live').length).toBeLessThanOrEqual(500)
    expect(seen.filter((id) => id !== 'live')).toEqual(source.expected['a'])
  })

  test('follow: whoever reads may leave, and a signal ends it, also before it began', async () => {
    await commits('a', 2)
    await take({ link, subjects, since: 'all' }, 1)
    const leaving = new AbortController()
    const stream = followEvents({ link, subjects, signal: leaving.signal })
    const next = stream.next()
    await expect.poll(consumers).toBe(1)
    leaving.abort()
    expect(await next).toEqual({ done: true, value: undefined })
    expect(await followEvents({ link, subjects, signal: leaving.signal }).next()).toMatchObject({ done: true })
    await expect.poll(consumers).toBe(0)
  })

  test('follow: what cannot be followed is said at once', async () => {
    for (const since of [-1, 1.5, Number.NaN, 'yesterday', ''])
      await expect(take({ link, subjects, since }, 1)).rejects.toEqual(code('INPUT_INVALID'))
    const nowhere = new Subjects('nowhere')
    await expect(take({ link, subjects: nowhere }, 1)).rejects.toEqual(code('CONFIG_INVALID'))
  })

  test('follow: a connection that is closed ends it with NATS_UNREACHABLE', async () => {
    const over = await connectNats({ servers: server.url })
    const next = followEvents({ link: over, subjects }).next()
    await expect.poll(consumers).toBe(1)
    await Promise.all([expect(next).rejects.toEqual(code('NATS_UNREACHABLE')), over.connection.close()])
  })
})
