import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { headers } from '@nats-io/transport-node'
import { jetstream } from '@nats-io/jetstream'
import { describe, expect, test } from 'vitest'
import type { Journal } from '../../runtime/journal.js'
import { createLog } from '../../runtime/log.js'
import { createJetStreamJournal } from '../../transport/jetstream-journal.js'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { NatsLease } from '../../transport/nats-lease.js'
import { NatsMembership } from '../../transport/nats-membership.js'
import { Subjects } from '../../transport/subjects.js'
import { appendNext, journalConformance, nextRecord } from '../conformance/journal.js'
import { type LinkProxy, startLinkProxy } from '../support/link-proxy.js'
import { type NatsServer, startNatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'
import { code, collect, text } from '../support/values.js'
import { useOwners } from '../support/jetstream-owners.js'

let server: NatsServer
let link: NatsLink
let count = 0
useNats((nats) => {
  ;({ server, link } = nats)
})

journalConformance('JetStream', () => {
  const subjects = new Subjects(`test${++count}`)
  const make = () => createJetStreamJournal({ link, subjects, worker: 'one', leaseMs: 1_000 })
  const dispose = async () => {
    for (const of of ['journal', 'content'] as const) await link.manager.streams.delete(subjects.stream(of))
  }
  return Promise.resolve({ journal: make(), reopen: make, dispose })
})

journalConformance('JetStream with a local copy', async () => {
  const subjects = new Subjects(`test${++count}`)
  const path = await mkdtemp(join(tmpdir(), 'troupe-copy-'))
  const copy = { path: join(path, 'copy'), log: createLog('silent') }
  const make = () => createJetStreamJournal({ link, subjects, worker: 'one', leaseMs: 1_000, copy })
  const dispose = async () => {
    for (const of of ['journal', 'content'] as const) await link.manager.streams.delete(subjects.stream(of))
    await rm(path, { recursive: true })
  }
  return { journal: make(), reopen: make, dispose }
})

describe('JetStream journal', () => {
  const stage = useOwners('own', () => link)
  const { closing, owner, lastOf } = stage

  /** A connection through a proxy of its own. */
  async function proxied(): Promise<{ readonly proxy: LinkProxy; readonly over: NatsLink }> {
    const proxy = await startLinkProxy(server.port)
    closing.push(() => proxy.close())
    const over = await connectNats({ servers: `127.0.0.1:${proxy.port}` })
    closing.push(() => over.connection.close())
    return { proxy, over }
  }

  test('JJ1 append: an owner that somebody else has overtaken is SHARD_FENCED, and changes nothing', async () => {
    const [old, next] = [await owner('old'), await owner('next')]
    const one = await appendNext(old, 'a', 'one')
    await appendNext(next, 'a', 'two')
    const stale = nextRecord({ shard: 'a', sequence: 1, hash: one.hash }, 'stale')
    await expect(old.append(stale)).rejects.toEqual(code('SHARD_FENCED'))
    expect((await collect(next.read('a', 1))).map(({ bytes }) => text(bytes))).toEqual(['one', 'two'])
    expect(await old.refresh('a')).toMatchObject({ sequence: 2 })
  })

  test('JJ1 append: the same record by another owner is not the own one', async () => {
    const [old, next] = [await owner('old'), await owner('next')]
    const one = await appendNext(old, 'a', 'one')
    const same = nextRecord({ shard: 'a', sequence: 1, hash: one.hash }, 'two')
    await next.append(same)
    await expect(old.append(same)).rejects.toEqual(code('SHARD_FENCED'))
  })

  test('JJ1 remove: what is left of a removed shard still fences a stale owner', async () => {
    const [old, next] = [await owner('old'), await owner('next')]
    const one = await appendNext(old, 'a', 'one')
    await next.remove('a')
    await expect(old.append(nextRecord({ shard: 'a', sequence: 1, hash: one.hash }, 'x'))).rejects.toEqual(
      code('SHARD_FENCED'),
    )
  })

  test('JJ2 append: one whose acknowledgement is lost, and that landed, is acknowledged', async () => {
    const { proxy, over } = await proxied()
    const journal = await owner('one', over)
    const one = await appendNext(journal, 'a', 'one')
    proxy.onUp = (bytes) => {
      if (!bytes.includes('.a ') || !bytes.includes('HPUB')) return
      proxy.onUp = () => undefined
      proxy.down = 'swallow'
      setTimeout(() => {
        proxy.down = 'pass'
        proxy.cut()
      }, 200)
    }
    await journal.append(nextRecord({ shard: 'a', sequence: 1, hash: one.hash }, 'two'))
    expect((await collect(journal.read('a', 1))).map(({ bytes }) => text(bytes))).toEqual(['one', 'two'])
    await appendNext(journal, 'a', 'three')
  })

  test('JJ2 append: one that never left is STORE_FAILED, and is appended again after a refresh', async () => {
    const { proxy, over } = await proxied()
    const journal = await owner('one', over)
    const one = await appendNext(journal, 'a', 'one')
    const two = nextRecord({ shard: 'a', sequence: 1, hash: one.hash }, 'two')
    proxy.up = 'swallow'
    const failed = expect(journal.append(two)).rejects.toEqual(code('STORE_FAILED'))
    setTimeout(() => {
      proxy.cut()
      proxy.up = 'pass'
    }, 300)
    await failed
    expect(await journal.refresh('a')).toMatchObject({ sequence: 1 })
    await journal.append(two)
  })

  test('JJ5 append: an own one that lands late is STORE_FAILED and found by a refresh, a foreign one is SHARD_FENCED', async () => {
    const { proxy, over } = await proxied()
    const [journal, other] = [await owner('one', over, 7), await owner('two', link, 8)]
    const ones = [await appendNext(journal, 'a', 'one'), await appendNext(journal, 'b', 'one')] as const
    const next = (one: (typeof ones)[number], content: string) => nextRecord({ ...one, sequence: 1 }, content)
    const late = ones.map((one) => next(one, 'late'))
    const held = new Promise<void>((resolve) => {
      let seen = ''
      proxy.onUp = (bytes) => {
        proxy.up = 'hold'
        seen += bytes.toString('latin1')
        if (seen.includes('.a ') && seen.includes('.b ')) resolve()
      }
    })
    const failing = late.map((record) => expect(journal.append(record)).rejects.toEqual(code('STORE_FAILED')))
    await held
    proxy.onUp = () => undefined
    const land = proxy.strand()
    proxy.up = 'pass'
    await Promise.all(failing)
    expect([await journal.refresh('a'), await journal.refresh('b')]).toMatchObject([{ sequence: 1 }, { sequence: 1 }])
    await appendNext(other, 'b', 'foreign')
    land()
    await expect.poll(() => other.refresh('a')).toMatchObject({ sequence: 2 })
    await expect(journal.append(next(ones[0], 'again'))).rejects.toMatchObject({
      code: 'STORE_FAILED',
      retryable: true,
    })
    expect(await journal.refresh('a')).toMatchObject({ sequence: 2, hash: Buffer.from(late[0]!.hash) })
    await expect(journal.append(next(ones[1], 'again'))).rejects.toEqual(code('SHARD_FENCED'))
    expect((await collect(other.read('b', 1))).map(({ bytes }) => text(bytes))).toEqual(['one', 'foreign'])
  })

  test('open: journals under leases of somebody else share the stream, and leave the name alone', async () => {
    const lease = await NatsLease.take(link, stage.subjects, { worker: 'one' })
    const [one, two] = [await owner('one', link, lease.epoch), await owner('one', link, lease.epoch + 1)]
    await appendNext(one, 'a', 'one')
    await appendNext(two, 'a', 'two')
    await one.close()
    expect(lease.isHeld).toBe(true)
    await lease.release()
  })

  test('JJ6 heads: the name of a crew comes back, and stays through records, cuts and removal', async () => {
    const journal = await owner('one')
    const busy = { nextDueAt: null, openEffects: 1, outbox: 0 }
    const one = await appendNext(journal, 'a', 'one', { crew: 'report', pending: busy })
    await appendNext(journal, 'b', 'one', { crew: '' })
    const crews = async (of: Journal) => (await collect(of.heads())).map(({ crew }) => crew)
    const next = createJetStreamJournal({ link, subjects: stage.subjects, worker: 'next' })
    closing.push(() => next.close())
    expect((await next.open()).pending).toMatchObject([{ shard: 'a', crew: 'report' }])
    const change: readonly (() => Promise<unknown>)[] = [
      () => appendNext(next, 'a', 'two'),
      () => next.acceptLoss('a', 1, one.hash),
      () => next.remove('a'),
      () => appendNext(next, 'a', 'two'),
    ]
    for (const step of change) {
      await step()
      expect([await next.head('a'), await journal.refresh('a')]).toMatchObject([{ crew: 'report' }, { crew: 'report' }])
      expect(await crews(journal)).toEqual(['report', undefined])
    }
    await appendNext(next, 'a', 'three', { crew: 'survey' })
    expect(await crews(journal)).toEqual(['survey', undefined])
  })

  test('JJ6 heads: whoever looked at all of them knows the version that another made it; where it stood, it stands', async () => {
    const [one, next] = [await owner('one'), await owner('next')]
    await appendNext(one, 'a', 'one', { crew: 'report@1' })
    expect(await next.head('a')).toMatchObject({ sequence: 1, crew: 'report@1' })
    const second = await appendNext(next, 'a', 'two', { crew: 'report@2' })
    expect(await one.head('a')).toMatchObject({ sequence: 1, crew: 'report@1' })
    expect(await collect(one.heads())).toMatchObject([{ shard: 'a', sequence: 2, crew: 'report@2' }])
    expect(await one.head('a')).toMatchObject({ sequence: 1, crew: 'report@2' })
    await expect(appendNext(one, 'a', 'stale', { crew: 'report@1' })).rejects.toMatchObject({ code: 'SHARD_FENCED' })
    expect(await one.refresh('a')).toMatchObject({ sequence: 2, hash: second.hash, crew: 'report@2' })
    await next.remove('a')
    for (const each of [one, next]) expect(await each.refresh('a')).toMatchObject({ removed: true, crew: 'report@2' })
  })

  test('JJ3 acceptLoss: what was cut is cut for another owner too, once and twice', async () => {
    const old = await owner('old')
    const records = []
    for (const content of ['1', '2', '3', '4', '5']) records.push(await appendNext(old, 'a', content))
    await old.acceptLoss('a', 3, records[2]!.hash)
    await appendNext(old, 'a', 'four')
    const next = await owner('next')
    const read = async (journal: Journal) => (await collect(journal.read('a', 1))).map(({ bytes }) => text(bytes))
    expect(await read(next)).toEqual(['1', '2', '3', 'four'])
    await next.acceptLoss('a', 1, records[0]!.hash)
    await appendNext(next, 'a', 'two')
    await old.refresh('a')
    expect(await read(old)).toEqual(['1', 'two'])
  })

  test('JJ4 open: a shard whose last message is no row of it is damaged, the others go on', async () => {
    const journal = await owner('one')
    await appendNext(journal, 'a', 'one')
    await appendNext(journal, 'b', 'one')
    const head = headers()
    head.set('Troupe-Row', Buffer.alloc(80, 7).toString('base64'))
    head.set('Troupe-Behind', String(await lastOf('a')))
    await jetstream(link.connection).publish(stage.subjects.journal('a'), 'x', { headers: head })
    const other = createJetStreamJournal({ link, subjects: stage.subjects, worker: 'two' })
    closing.push(() => other.close())
    expect((await other.open()).damaged).toMatchObject([{ shard: 'a', code: 'JOURNAL_CORRUPT' }])
    await expect(other.head('a')).rejects.toEqual(code('JOURNAL_CORRUPT'))
    await expect(other.append(nextRecord({ shard: 'a', sequence: 1, hash: new Uint8Array(32) }, 'x'))).rejects.toEqual(
      code('JOURNAL_CORRUPT'),
    )
    await appendNext(other, 'b', 'two')
    const [one] = await collect(journal.read('a', 1))
    await other.acceptLoss('a', 1, one!.hash)
    await appendNext(other, 'a', 'two')
    expect((await collect(other.read('a', 1))).map(({ bytes }) => text(bytes))).toEqual(['one', 'two'])
  })

  test('JJ3 append: the same record behind a cut, and the same cut again, are stored again', async () => {
    const journal = await owner('one')
    const one = await appendNext(journal, 'a', 'one')
    for (let round = 0; round < 3; round++) {
      const two = await appendNext(journal, 'a', 'two')
      expect((await journal.refresh('a')).sequence).toBe(two.last)
      expect((await collect(journal.read('a', 1))).map(({ bytes }) => text(bytes))).toEqual(['one', 'two'])
      await journal.acceptLoss('a', 1, one.hash)
      expect((await journal.refresh('a')).sequence).toBe(1)
    }
  })

  test('MS1 read: gives what was there when it began, and ends, while others append', async () => {
    const journal = await owner('one')
    for (let n = 1; n <= 12; n++) await appendNext(journal, 'a', `${n}`)
    const found: string[] = []
    for await (const { bytes } of journal.read('a', 1)) {
      found.push(text(bytes))
      await appendNext(journal, 'a', 'later')
    }
    expect(found).toEqual(Array.from({ length: 12 }, (_, n) => `${n + 1}`))
  })

  test('JR1 read: the last commits of a long shard are read back from the end, earlier ones found by halving', async () => {
    const { proxy, over } = await proxied()
    const journal = await owner('one', over)
    const steps = async (commits: number, back: number): Promise<number> => {
      let { sequence } = await journal.head('a')
      while (sequence < commits) sequence = (await appendNext(journal, 'a', 'x')).last
      let count = 0
      proxy.onUp = (bytes) => {
        count += bytes.toString('latin1').split('$JS.API.DIRECT.GET').length - 1
      }
      expect(await collect(journal.read('a', commits - back + 1))).toHaveLength(back)
      proxy.onUp = () => undefined
      return count
    }
    const [short, far] = [await steps(64, 3), await steps(64, 40)]
    expect(short).toBe(3)
    expect(await steps(1_024, 3)).toBe(3)
    expect(far).toBeGreaterThan(16)
    expect(await steps(1_024, 40)).toBeLessThanOrEqual(far + 6)
  })

  test('JC2 append: a record larger than a message comes back, events and all', async () => {
    const journal = await owner('one')
    const bytes = Buffer.alloc(3_000_000, 'large ')
    const events = Buffer.alloc(700_000, 'events ')
    await journal.append({ ...nextRecord(await journal.head('a'), ''), bytes, events })
    const [record] = await collect(journal.read('a', 1))
    expect(bytes.equals(record!.bytes)).toBe(true)
    const [found] = await collect(journal.readEvents('a', 1))
    expect(events.equals(found!.bytes)).toBe(true)
  })

  test('JC3 snapshots: the last and the one before it, without a list; one that was only begun is none', async () => {
    const journal = await owner('one')
    const lists: string[] = []
    const watch = link.connection.subscribe('$JS.API.STREAM.INFO.>', {
      callback: (_error, { subject }) => void lists.push(subject),
    })
    await link.connection.flush()
    const sequences = async () => (await journal.snapshots('a')).map(({ sequence }) => sequence)
    const put = (sequence: number, keep: readonly number[]) => {
      const manifest = {
        shard: 'a',
        sequence,
        hash: new Uint8Array(32),
        bytes: Buffer.from(`m${sequence}`),
        chunks: [],
      }
      return journal.putSnapshot(manifest, new Map(), keep)
    }
    await put(5, [])
    await put(6, [5])
    await put(7, [6])
    expect(await sequences()).toEqual([7, 6])
    await put(7, [6])
    await put(8, [7])
    expect(await sequences()).toEqual([8, 7])
    await link.connection.flush()
    expect(lists).toEqual([])
    watch.unsubscribe()
    // Whoever dies over the next one has written some of it over that which was not to be kept.
    const [older] = [0, 1].map((slot) => stage.subjects.content('a', 'manifest', String(slot)))
    await jetstream(link.connection).publish(older!, 'some of it')
    expect(await sequences()).toEqual([8])
    await put(9, [8])
    expect(await sequences()).toEqual([9, 8])
    await put(10, [])
    expect(await sequences()).toEqual([10])
  })

  test('JC1 blobs and chunks: what was changed in the stream is not given out', async () => {
    const journal = await owner('one')
    const hash = '5'.repeat(64)
    await journal.putBlob('a', hash, Buffer.from('of another hash'), 1)
    await expect(journal.getBlob('a', hash)).rejects.toEqual(code('BLOB_MISSING'))
    const manifest = { shard: 'a', sequence: 1, hash: new Uint8Array(32), bytes: Buffer.from('m'), chunks: [hash] }
    await journal.putSnapshot(manifest, new Map([[hash, Buffer.from('of another hash')]]), [])
    await expect(journal.getChunks('a', [hash])).rejects.toEqual(code('JOURNAL_CORRUPT'))
    await jetstream(link.connection).publish(stage.subjects.content('a', 'manifest', '0'), 'nothing sealed')
    expect(await journal.snapshots('a')).toEqual([])
  })

  test('open: a stream that is not set as it must be is CONFIG_INVALID', async () => {
    await link.manager.streams.add({ name: stage.subjects.stream('journal'), subjects: [stage.subjects.journals()] })
    const journal = createJetStreamJournal({ link, subjects: stage.subjects, worker: 'one' })
    await expect(journal.open()).rejects.toEqual(code('CONFIG_INVALID'))
  })

  test('append: a full stream is STORE_FULL, and work goes on when there is room', async () => {
    const journal = await owner('one')
    const one = await appendNext(journal, 'a', 'one')
    const { config } = await link.manager.streams.info(stage.subjects.stream('journal'))
    const limited = { ...config, max_msgs: 1, discard: 'new' as const }
    await link.manager.streams.update(config.name, limited)
    const two = nextRecord({ shard: 'a', sequence: 1, hash: one.hash }, 'two')
    await expect(journal.append(two)).rejects.toEqual(code('STORE_FULL'))
    await link.manager.streams.update(config.name, { ...limited, max_msgs: -1 })
    expect(await journal.refresh('a')).toMatchObject({ sequence: 1 })
    await journal.append(two)
  })

  test('J1 nats-server: kill -9 and a new start lose nothing that was acknowledged', async () => {
    const own = await startNatsServer()
    closing.push(() => own.dispose())
    const over = await connectNats({ servers: own.url })
    closing.push(() => over.connection.close())
    const journal = await owner('one', over)
    const acknowledged = new Map<string, number>()
    let stop = false
    const writers = Array.from({ length: 20 }, async (_, index) => {
      const shard = `s${index}`
      while (!stop) {
        try {
          const { last } = await appendNext(journal, shard, `${shard} ${Math.random()}`)
          acknowledged.set(shard, last)
        } catch (error) {
          expect((error as { code: string }).code).toMatch(/^STORE_F/)
          await journal.refresh(shard).catch(() => undefined)
        }
      }
    })
    for (let round = 0; round < 3; round++) {
      const before = [...acknowledged.values()].reduce((sum, last) => sum + last, 0)
      await expect
        .poll(() => [...acknowledged.values()].reduce((sum, last) => sum + last, 0), { timeout: 20_000 })
        .toBeGreaterThan(before + 200)
      await own.kill()
      await own.start()
    }
    stop = true
    await Promise.all(writers)
    for (const [shard, last] of acknowledged) {
      const records = await collect(journal.read(shard, 1))
      expect(records.at(-1)!.last).toBeGreaterThanOrEqual(last)
      expect(records.map(({ first }) => first)).toEqual(records.map((_, index) => index + 1))
    }
  })
})

describe('NATS lease', () => {
  test('NL4 lease: another announcement is seen at once, and stays under the same epoch', async () => {
    const subjects = new Subjects(`lease${++count}`)
    const lease = await NatsLease.take(link, subjects, { worker: 'a', ttlMs: 9_000 })
    const list = await NatsMembership.open(link, subjects, 9_000)
    await lease.announce({ crews: { report: '1' } })
    await expect.poll(() => list.members.get('a')).toMatchObject({ crews: { report: '1' }, epoch: lease.epoch })
    await Promise.all([lease.announce({ crews: { report: '2' } }), lease.announce({ crews: { report: '3' } })])
    await expect.poll(() => list.members.get('a')).toMatchObject({ crews: { report: '3' }, epoch: lease.epoch })
    await lease.release()
    await lease.announce({ crews: {} })
    list.close()
  })

  test('NL5 lease: a renewal that was stored and whose answer is lost does not lose it', async () => {
    const subjects = new Subjects(`lease${++count}`)
    const proxy = await startLinkProxy(server.port)
    const over = await connectNats({ servers: `127.0.0.1:${proxy.port}` })
    const lease = await NatsLease.take(over, subjects, { worker: 'a', ttlMs: 3_000 })
    const list = await NatsMembership.open(link, subjects, 3_000)
    let told = 0
    lease.onLost = () => void told++
    proxy.onUp = (bytes) => {
      if (!bytes.includes('HPUB $KV.')) return
      proxy.onUp = () => undefined
      proxy.down = 'swallow'
    }
    await expect.poll(() => list.members.get('a')!.revision, { timeout: 3_000 }).toBeGreaterThan(lease.epoch)
    proxy.down = 'pass'
    proxy.cut()
    const before = list.members.get('a')!.revision
    await expect.poll(() => list.members.get('a')!.revision, { timeout: 6_000 }).toBeGreaterThan(before + 2)
    expect([lease.isHeld, told, list.members.get('a')!.epoch]).toEqual([true, 0, lease.epoch])
    list.close()
    await lease.release()
    await over.connection.close()
    await proxy.close()
  })

  test('NL1 NL2 lease: a name has one at a time, and a later one has a higher epoch', async () => {
    const subjects = new Subjects(`lease${++count}`)
    const take = (worker: string) => NatsLease.take(link, subjects, { worker, ttlMs: 1_000 })
    const first = await take('a')
    await expect(take('a')).rejects.toEqual(code('STORE_BUSY'))
    const other = await take('b')
    await first.release()
    const second = await take('a')
    expect(first.epoch < other.epoch && other.epoch < second.epoch).toBe(true)
    expect([first.isHeld, second.isHeld]).toEqual([false, true])
    await Promise.all([other.release(), second.release()])
  })

  test('NL3 lease: one that cannot be renewed is lost, its owner is told, and the name is free', async () => {
    const subjects = new Subjects(`lease${++count}`)
    const proxy = await startLinkProxy(server.port)
    const over = await connectNats({ servers: `127.0.0.1:${proxy.port}` })
    const lease = await NatsLease.take(over, subjects, { worker: 'a', ttlMs: 1_000 })
    let told = 0
    const lost = new Promise<void>((resolve) => {
      lease.onLost = () => {
        told++
        resolve()
      }
    })
    const since = performance.now()
    proxy.up = 'swallow'
    const next = (async () => {
      for (;;) {
        const taken = await NatsLease.take(link, subjects, { worker: 'a', ttlMs: 1_000 }).catch(() => null)
        if (taken !== null) return taken
      }
    })()
    const taken = await next
    expect(lease.isHeld).toBe(false)
    expect(performance.now() - since).toBeGreaterThan(600)
    proxy.up = 'pass'
    proxy.cut()
    await lost
    expect(told).toBe(1)
    expect(taken.epoch).toBeGreaterThan(lease.epoch)
    await taken.release()
    await over.connection.close()
    await proxy.close()
  })
})
