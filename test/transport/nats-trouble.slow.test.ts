/** What a server in trouble means for whoever uses it. */
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { afterEach, expect, test } from 'vitest'
import type { Journal, JournalRecord } from '../../runtime/journal.js'
import { nothingPending } from '../../runtime/journal.js'
import { createJetStreamJournal } from '../../transport/jetstream-journal.js'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { Subjects } from '../../transport/subjects.js'
import { startNatsCluster } from '../support/nats-cluster.js'
import { startNatsServer } from '../support/nats-server.js'

const open: (() => Promise<unknown>)[] = []
afterEach(async () => {
  for (const close of open.splice(0).reverse()) await close().catch(() => undefined)
})
const subjects = new Subjects('trouble')

async function linkTo(servers: string | readonly string[]): Promise<NatsLink> {
  const link = await connectNats({ servers })
  open.push(() => link.connection.close())
  return link
}

/** A journal, and a way to append to it: `bytes` of payload behind the last record of a shard. */
async function journalOn(link: NatsLink, epoch: number, replicas = 1) {
  const journal: Journal = createJetStreamJournal({ link, subjects, worker: `w${epoch}`, replicas, epoch: () => epoch })
  await journal.open()
  const append = async (shard: string, bytes: number): Promise<JournalRecord> => {
    const head = await journal.refresh(shard)
    const body = Buffer.alloc(bytes, head.sequence + 1)
    const hash = createHash('sha256').update(head.hash).update(body).digest()
    const first = head.sequence + 1
    const record = { shard, first, last: first, hash, bytes: body, events: null, pending: nothingPending }
    await journal.append(record)
    return record
  }
  return { journal, append }
}

test('STORE_FULL: a stream at its limit refuses what is new and keeps what is old, and goes on when there is room', async () => {
  const server = await startNatsServer()
  open.push(() => server.dispose())
  const link = await linkTo(server.url)
  const { journal, append } = await journalOn(link, 1)
  await append('s', 1_000)
  const name = subjects.stream('journal')
  const { state, config } = await link.manager.streams.info(name)
  await link.manager.streams.update(name, { ...config, max_bytes: state.bytes + 500 })
  for (let tries = 0; tries < 3; tries++)
    await expect(append('s', 1_000)).rejects.toMatchObject({ code: 'STORE_FULL', retryable: true })
  expect(await journal.refresh('s')).toMatchObject({ sequence: 1 })
  await link.manager.streams.update(name, { ...config, max_bytes: -1 })
  await append('s', 1_000)
  const read = []
  for await (const { first } of journal.read('s', 1)) read.push(first)
  expect(read).toEqual([1, 2])
  // To remove something makes room, though it takes some itself.
  await link.manager.streams.update(name, { ...config, max_bytes: (await link.manager.streams.info(name)).state.bytes })
  await journal.remove('s')
  expect(await journal.refresh('s')).toMatchObject({ sequence: 2, removed: true })
  await append('t', 500)
})

test('STORE_FULL: so does one whose server or account has no room left', async () => {
  const folder = join('/tmp', `troupe-nats-full-${process.pid}`)
  const config = `jetstream { store_dir: "${folder}", max_file_store: 300KB, max_memory_store: 1MB }\n`
  const server = await startNatsServer({ jetstream: false, config })
  open.push(() => server.dispose())
  const { journal, append } = await journalOn(await linkTo(server.url), 1)
  let written = 0
  const fill = async (): Promise<void> => {
    for (; written < 100; written++) await append('s', 10_000)
  }
  await expect(fill()).rejects.toMatchObject({ code: 'STORE_FULL' })
  expect(written).toBeGreaterThan(3)
  expect(await journal.refresh('s')).toMatchObject({ sequence: written })
  // 2.9.10 counts what was purged until it is started again: its own limit, unlike a stream's, is not freed before.
  await journal.remove('s').catch(() => undefined)
  await server.kill()
  await server.start()
  await expect
    .poll(
      () =>
        journal.remove('s').then(
          () => 'removed',
          () => 'not yet',
        ),
      { timeout: 20_000 },
    )
    .toBe('removed')
  expect(await journal.refresh('s')).toMatchObject({ sequence: written, removed: true })
  await append('t', 10_000)
})

test('rm: the tombstone keeps a stale owner out, and a new life goes on behind it', async () => {
  const server = await startNatsServer()
  open.push(() => server.dispose())
  const link = await linkTo(server.url)
  const [stale, next] = [await journalOn(link, 1), await journalOn(link, 2)]
  for (let count = 0; count < 3; count++) await stale.append('s', 100)
  const head = await stale.journal.head('s')
  await next.journal.remove('s')
  // It has not heard of it: what it knows is what was before.
  const late = {
    shard: 's',
    first: 4,
    last: 4,
    hash: Buffer.alloc(32, 7),
    bytes: Buffer.alloc(9),
    events: null,
    pending: nothingPending,
  }
  await expect(stale.journal.append(late)).rejects.toMatchObject({ code: 'SHARD_FENCED' })
  expect(await next.journal.refresh('s')).toMatchObject({ sequence: 3, removed: true, hash: head.hash })
  expect(await next.append('s', 100)).toMatchObject({ first: 4 })
  await expect(stale.journal.append(late)).rejects.toMatchObject({
    code: expect.stringMatching(/SHARD_FENCED|STORE_FAILED/),
  })
  const read = []
  for await (const { first, bytes } of next.journal.read('s', 1)) read.push([first, bytes.length])
  expect(read).toEqual([[4, 100]])
})

test('NST1 cluster: three copies are told; without a majority nothing is acknowledged, and what says so; it goes on with one', async () => {
  const servers = await startNatsCluster()
  for (const server of servers) open.push(() => server.dispose())
  const urls = servers.map(({ url }) => url)
  const link = await linkTo(urls)
  const { journal, append } = await journalOn(link, 1, 3)
  expect(journal.durability).toBe('replicas')
  await append('s', 100)
  await Promise.all([servers[1]!.kill(), servers[2]!.kill()])
  await expect(append('s', 100)).rejects.toMatchObject({ code: 'STORE_FAILED', retryable: true })
  // Whoever comes now is told what is wrong.
  await expect
    .poll(
      () =>
        connectNats({ servers: urls[0]! }).then(
          ({ connection }) => connection.close(),
          (error: unknown) => error,
        ),
      { timeout: 60_000 },
    )
    .toMatchObject({
      code: 'NATS_UNREACHABLE',
      retryable: true,
      message: expect.stringContaining('too few servers of the cluster'),
    })
  await servers[1]!.start()
  await expect
    .poll(
      () =>
        append('s', 100).then(
          () => 'stored',
          () => 'not yet',
        ),
      { timeout: 60_000 },
    )
    .toBe('stored')
  const read = []
  for await (const { first } of journal.read('s', 1)) read.push(first)
  expect(read[0]).toBe(1)
  expect(read).toEqual(read.map((_, index) => index + 1))
})
