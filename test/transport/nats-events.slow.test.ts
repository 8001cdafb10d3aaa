import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { jetstream } from '@nats-io/jetstream'
import { maxQueued, NatsEvents, type NatsEventsOptions } from '../../transport/nats-events.js'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { Subjects } from '../../transport/subjects.js'
import type { Journal, ShardHead } from '../../runtime/journal.js'
import { createJetStreamJournal } from '../../transport/jetstream-journal.js'
import { createLog } from '../../runtime/log.js'
import { byShard, EventSource, stored, take } from '../support/event-source.js'
import { type LinkProxy, startLinkProxy } from '../support/link-proxy.js'
import { type NatsServer, startNatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'
import { code } from '../support/values.js'

let server: NatsServer
let link: NatsLink
let subjects: Subjects
let source: EventSource
let count = 0
const log = createLog('silent')
const closing: (() => Promise<unknown>)[] = []
const shards = ['a', 'b', 'c']
useNats((nats) => {
  ;({ server, link } = nats)
})
beforeEach(async () => {
  subjects = new Subjects(`events${++count}`)
  source = await EventSource.open()
})
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close()
})

async function publisher(more: Partial<NatsEventsOptions> = {}): Promise<NatsEvents> {
  const events = await NatsEvents.open({ link, subjects, journal: source.journal, log, ...more })
  closing.push(() => events.close())
  return events
}

/** A connection through a proxy of its own. */
async function proxied(): Promise<{ readonly proxy: LinkProxy; readonly over: NatsLink }> {
  const proxy = await startLinkProxy(server.port)
  closing.push(() => proxy.close())
  const over = await connectNats({ servers: `127.0.0.1:${proxy.port}` })
  closing.push(() => over.connection.close())
  return { proxy, over }
}

/** Two such commits fill a message. */
const half = { count: 32 }
const lastNumber = async () => (await link.manager.streams.info(subjects.stream('events'))).state.last_seq
const ids = async () => byShard(await stored({ link, subjects })).ids

describe('event stream', () => {
  test('NE1 events: those of a commit are one message of its shard, each a CloudEvent, in order', async () => {
    const events = await publisher()
    for (let n = 0; n < 5; n++) for (const shard of shards) await source.commit(shard, {}, events)
    await events.flush()
    const all = await stored({ link, subjects })
    expect(byShard(all)).toEqual({ ids: source.expected, twice: 0 })
    const last = await link.manager.streams.getMessage(subjects.stream('events'), {
      last_by_subj: subjects.events('b'),
    })
    const [first, second] = last!.json<object[]>().slice(-2)
    expect(first).toMatchObject({ specversion: '1.0', id: 'b-5-0', source: '/troupe/b/agent/writer' })
    expect(second).toMatchObject({ id: 'b-5-1', type: 'troupe.model.replied', data: { n: 1 } })
    expect(await lastNumber()).toBeLessThanOrEqual(15)
  })

  test('NE1 events: many at once are few messages, and none is larger than a message may be', async () => {
    const events = await publisher()
    for (let n = 0; n < 10; n++) await source.commit('a', { count: 100 }, events)
    await source.commit('a', { count: 20, data: { text: 'ä'.repeat(100_000) } }, events)
    await source.commit('a', { count: 1, data: { text: 'x'.repeat(700_000) } }, events)
    await events.flush()
    const all = await stored({ link, subjects })
    expect(byShard(all)).toEqual({ ids: source.expected, twice: 0 })
    expect(all.some(({ data }) => data['truncated'] === true)).toBe(false)
    expect(await lastNumber()).toBeLessThan(40)
  })

  test('NE1 events: a server that is killed and comes back misses none, and has them in order', async () => {
    const own = await startNatsServer()
    closing.push(() => own.dispose())
    const over = await connectNats({ servers: own.url })
    closing.push(() => over.connection.close())
    const events = await publisher({ link: over })
    const lastThere = () => over.manager.streams.info(subjects.stream('events')).then(({ state }) => state.last_seq)
    for (let round = 1; round <= 3; round++) {
      for (let n = 0; n < 100; n++) for (const shard of shards) await source.commit(shard, half, events)
      await expect.poll(lastThere, { timeout: 10_000, interval: 5 }).toBeGreaterThan(round * 150 - 100)
      await own.kill()
      for (const shard of shards) await source.commit(shard, {}, events)
      await own.start()
      await expect
        .poll(
          () =>
            over.connection.flush().then(
              () => true,
              () => false,
            ),
          { timeout: 5_000 },
        )
        .toBe(true)
    }
    await events.flush()
    const { ids: found, twice } = byShard(await stored({ link: over, subjects }))
    expect(found).toEqual(source.expected)
    expect(twice).toBe(0)
  })

  test('NE1 events: links that are cut, or swallow acknowledgements, leave no hole', async () => {
    const { proxy, over } = await proxied()
    const events = await publisher({ link: over })
    for (let round = 0; round < 4; round++) {
      const before = await lastNumber()
      for (let n = 0; n < 40; n++) for (const shard of shards) await source.commit(shard, half, events)
      await expect.poll(lastNumber, { timeout: 10_000, interval: 5 }).toBeGreaterThan(before + 20)
      proxy.down = round % 2 === 0 ? 'pass' : 'swallow'
      proxy.cut()
      proxy.down = 'pass'
    }
    await events.flush()
    expect(byShard(await stored({ link, subjects }))).toEqual({ ids: source.expected, twice: 0 })
  })

  test('NE1 takeover: the next owner goes on where the stream ends, beside one that does not know better', async () => {
    const old = await publisher()
    for (let n = 0; n < 100; n++) await source.commit('a', half, old)
    await expect.poll(lastNumber, { interval: 5 }).toBeGreaterThan(10)
    const next = await publisher()
    next.catchUp('a')
    for (let n = 0; n < 10; n++) await source.commit('a', {}, next)
    await Promise.all([old.flush(), next.flush()])
    expect(byShard(await stored({ link, subjects }))).toEqual({ ids: source.expected, twice: 0 })
  })

  test('NE1 takeover: what an owner had not sent when it ended is not missing', async () => {
    const old = await publisher()
    for (let n = 0; n < 400; n++) for (const shard of shards) await source.commit(shard, half, old)
    await expect.poll(lastNumber, { interval: 5 }).toBeGreaterThan(20)
    await old.close()
    await source.commit('a', {}, old)
    expect(await lastNumber()).toBeLessThan(600)
    const next = await publisher()
    for (const shard of shards) next.catchUp(shard)
    await next.flush()
    expect(await ids()).toEqual(source.expected)
  })

  test('NE1 takeover: of shards that nobody has any more what their last owner had not sent is not missing', async () => {
    const events = await publisher()
    for (const shard of shards) await source.commit(shard, {}, events)
    await source.commit('d', {}, events)
    await events.flush()
    // The last owner dies before it sends: all of one, some of another that another message could not take.
    await source.commit('a', {})
    await source.commit('b', { count: 100 })
    await source.commit('d', { count: 0 })
    const asked: string[] = []
    const journal = {
      readEvents: (shard: string, from: number) => {
        asked.push(shard)
        return source.journal.readEvents(shard, from)
      },
      refresh: (shard: string) => source.journal.refresh(shard),
    }
    const next = await publisher({ journal })
    const heads: ShardHead[] = []
    for await (const head of source.journal.heads()) {
      const [, lastEvent] = source.ids.get(head.shard)!.at(-1)!.split('-').map(Number)
      heads.push({ ...head, lastEvent })
    }
    await next.catchUpAll([...heads, { ...heads[0]!, shard: 'e', lastEvent: 9, removed: true }])
    await next.flush()
    expect(await ids()).toEqual(source.expected)
    expect([...new Set(asked)].sort()).toEqual(['a', 'b'])
    // Two messages had to take the events of one commit: what is behind the first of them is missing, should it be the last.
    const tells = async (seq: number) =>
      (await link.manager.streams.getMessage(subjects.stream('events'), { seq }))?.header.get('Troupe-Last-Event')
    const all = await stored({ link, subjects })
    expect(all.filter(({ id }) => id.startsWith('b-2-'))).toHaveLength(100)
    const numbers = Array.from({ length: await lastNumber() }, (_, index) => index + 1)
    const told = await Promise.all(numbers.map(tells))
    expect(told.filter((each) => each === '1').length).toBe(5)
    expect(told.filter((each) => each === '2').length).toBe(2)
    asked.length = 0
    await next.catchUpAll(heads)
    await next.catchUpAll(heads.map((head) => ({ ...head, lastEvent: undefined })))
    expect(asked).toEqual([])
  })

  test('NE1 takeover: who had a shard before another owner did stores what that one left out', async () => {
    const [one, two] = ['one', 'two'].map((worker, index) =>
      createJetStreamJournal({ link, subjects, worker, epoch: () => index + 1 }),
    ) as [Journal, Journal]
    const before = await EventSource.open(one)
    const events = await publisher({ journal: one })
    await before.commit('a', {}, events)
    await events.flush()
    // The next owner dies before it has stored its events; the first one remembers where the shard stood for it.
    const after = await EventSource.open(two)
    for (let n = 0; n < 2; n++) await after.commit('a', {})
    const heads: ShardHead[] = []
    for await (const head of one.heads()) heads.push({ ...head, lastEvent: head.sequence })
    await events.catchUpAll(heads)
    await events.flush()
    expect(await ids()).toEqual({ a: [...before.ids.get('a')!, ...after.ids.get('a')!] })
    for (const journal of [one, two]) await journal.close()
  })

  test('NE1 events: a shard of which nothing is known is read from where the stream ends', async () => {
    for (let n = 0; n < 3; n++) await source.commit('a', {})
    const events = await publisher()
    await source.commit('a', {}, events)
    await events.flush()
    expect(await ids()).toEqual(source.expected)
  })

  test('NE1 repair: a journal that was cut goes on with the events of its new commits', async () => {
    const events = await publisher()
    for (let n = 1; n <= 4; n++) await source.commit('a', { at: Date.now() - 1_000, type: `old.${n}` }, events)
    await events.flush()
    for (const cut of [2, 1]) {
      await source.journal.acceptLoss('a', cut, new Uint8Array(32))
      for (let n = cut + 1; n <= 4; n++) await source.commit('a', { type: `new.${n}`, count: 4 - cut })
      events.catchUp('a')
      await events.flush()
    }
    // Numbers that come again are other events: the server does not take them for those it remembers.
    const found = (await stored({ link, subjects })).map(({ id, type }) => `${id} ${type}`)
    const commit = (sequence: number, count: number) =>
      Array.from({ length: count }, (_, index) => `a-${sequence}-${index} troupe.new.${sequence}`)
    expect(found.slice(8)).toEqual([...[3, 4].flatMap((n) => commit(n, 2)), ...[2, 3, 4].flatMap((n) => commit(n, 3))])
  })

  test('NE2 publish: a server that takes nothing costs no memory and no time, and misses nothing afterwards', async () => {
    const { proxy, over } = await proxied()
    const events = await publisher({ link: over })
    for (const shard of shards) await source.commit(shard, {}, events)
    await events.flush()
    expect(events.queued).toBe(0)
    proxy.up = 'hold'
    let longest = 0
    for (let n = 0; n < 50; n++) {
      for (const shard of shards) {
        const placed = await source.commit(shard, { count: 80 })
        const since = performance.now()
        events.publish(shard, placed)
        longest = Math.max(longest, performance.now() - since)
        expect(events.queued).toBeLessThanOrEqual(maxQueued)
      }
    }
    expect(longest).toBeLessThan(100)
    proxy.up = 'pass'
    proxy.cut()
    await events.flush()
    expect(events.queued).toBe(0)
    const total = Object.values(source.expected).flat().length
    expect(total).toBeGreaterThan(maxQueued)
    const all = await take({ link, subjects, since: 'all' }, total)
    expect(byShard(all.map(({ event }) => event)).ids).toEqual(source.expected)
  })

  test('NE2 flush, close: they end though the server is away', async () => {
    const { proxy, over } = await proxied()
    const events = await publisher({ link: over })
    proxy.up = 'swallow'
    await source.commit('a', {}, events)
    const flushed = events.flush()
    await events.close()
    await flushed
    events.publish('a', await source.commit('a', {}))
    events.catchUp('a')
    expect(events.queued).toBe(0)
  })

  test('NE3 event: one that the server does not take is there without its data, and says so', async () => {
    const events = await publisher()
    await source.commit('a', { count: 1 }, events)
    await source.commit('a', { count: 1, data: { text: 'x'.repeat(2 ** 20) } }, events)
    await source.commit('a', { count: 1, data: { big: 2n ** 60n } }, events)
    await source.commit('a', { count: 1 }, events)
    await events.flush()
    const data = (await stored({ link, subjects })).map((event) => event.data)
    expect(data).toEqual([{ n: 0 }, { truncated: true }, { truncated: true }, { n: 0 }])
    const { config } = await link.manager.streams.info(subjects.stream('events'))
    await link.manager.streams.update(subjects.stream('events'), { ...config, max_msg_size: 1_000 })
    await source.commit('a', { count: 1, data: { text: 'x'.repeat(1_000) } }, events)
    await events.flush()
    expect((await stored({ link, subjects })).at(-1)).toMatchObject({ id: 'a-5-0', data: { truncated: true } })
  })

  test('NE4 takeover: what is older than the stream keeps is not stored again', async () => {
    const hour = 3_600_000
    await source.commit('a', { at: Date.now() - 2 * hour })
    await source.commit('a', { at: Date.now() - hour / 2 })
    const events = await publisher({ maxAgeMs: hour })
    events.catchUp('a')
    await events.flush()
    expect(await ids()).toEqual({ a: ['a-2-0', 'a-2-1'] })
  })

  test('open: a stream stays as its operator has set it, and one of other subjects is refused', async () => {
    await publisher({ maxAgeMs: 3_600_000 })
    await publisher()
    const { config } = await link.manager.streams.info(subjects.stream('events'))
    expect(config).toMatchObject({ max_age: 3_600_000 * 1e6, duplicate_window: 120_000 * 1e6, storage: 'file' })
    const other = new Subjects(`other${count}`)
    await link.manager.streams.add({ name: other.stream('events'), subjects: [`x${count}.>`] })
    await expect(publisher({ subjects: other })).rejects.toEqual(code('CONFIG_INVALID'))
  })

  test('show: live events pass by those who watch, and are stored nowhere', async () => {
    const events = await publisher()
    const watching = take({ link, subjects, filter: 'a', live: true }, 3)
    const live = { kind: 'delta', effect: '1-0', agent: 'writer', run: 'r2', delta: { text: 'hi', offset: 0 } } as const
    await expect.poll(async () => (await link.manager.consumers.list(subjects.stream('events')).next()).length).toBe(1)
    await link.connection.flush()
    events.show('a', live)
    events.show('b', live)
    events.show('a', {
      kind: 'progress',
      effect: '1-0',
      agent: 'writer',
      run: 'r2',
      callId: 'c',
      value: 'x'.repeat(2e6),
    })
    events.show('a', { kind: 'progress', effect: '1-0', agent: 'writer', run: 'r2', callId: 'c', value: 7 })
    await link.connection.flush()
    await source.commit('a', { count: 1 }, events)
    const seen = await watching
    expect(seen.map(({ event, sequence }) => [event.type, sequence])).toEqual([
      ['troupe.model.delta', null],
      ['troupe.tool.progress', null],
      ['troupe.model.replied', 1],
    ])
    expect(await lastNumber()).toBe(1)
  })

  test('events: what is not ours in the stream does not hold a shard up', async () => {
    const events = await publisher()
    await source.commit('a', {}, events)
    await events.flush()
    await jetstream(link.connection).publish(subjects.event('a', 'agent/x', 'y'), 'not JSON')
    events.catchUp('a')
    await source.commit('a', {}, events)
    await events.flush()
    const all = await take({ link, subjects, since: 'all' }, 4)
    expect(byShard(all.map(({ event }) => event)).ids).toEqual(source.expected)
  })
})
