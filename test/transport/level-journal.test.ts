import { createHash } from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Level } from 'level'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { isTroupeError } from '../../runtime/errors.js'
import type { Journal } from '../../runtime/journal.js'
import { createLevelJournal } from '../../transport/level-journal.js'
import { HeadFile } from '../../transport/head-file.js'
import { appendNext, journalConformance, nextRecord } from '../conformance/journal.js'

for (const durability of ['process', 'power'] as const) {
  journalConformance(`LevelDB, durability ${durability}`, async () => {
    const folder = await mkdtemp(join(tmpdir(), 'troupe-journal-'))
    const path = join(folder, 'store')
    const create = () => createLevelJournal({ path, durability })
    return { journal: create(), reopen: create, dispose: () => rm(folder, { recursive: true, force: true }) }
  })
}

describe('LevelDB journal', () => {
  let folder: string
  let path: string
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'troupe-journal-'))
    path = join(folder, 'store')
  })
  afterEach(() => rm(folder, { recursive: true, force: true }))

  test('ownership: a busy store is named with the pid of its owner', async () => {
    const owner = createLevelJournal({ path })
    await owner.open()
    await expect(createLevelJournal({ path }).open()).rejects.toMatchObject({
      code: 'STORE_BUSY',
      retryable: true,
      details: { path, pid: process.pid },
    })
    await owner.close()
    await expect(readFile(join(path, 'pid'))).rejects.toMatchObject({ code: 'ENOENT' })
  })

  test('names: a shard name that would break the order of keys is refused', async () => {
    const journal = createLevelJournal({ path, durability: 'process' })
    await journal.open()
    for (const name of ['', 'a!b', 'a/b', 'ä', 'x'.repeat(65)]) {
      await expect(journal.head(name)).rejects.toMatchObject({ code: 'ID_INVALID' })
      await expect(
        journal.append(nextRecord({ shard: name, sequence: 0, hash: new Uint8Array(32) }, 'x')),
      ).rejects.toMatchObject({ code: 'ID_INVALID' })
    }
    await appendNext(journal, 'x'.repeat(64), 'fits')
    await journal.close()
  })

  test('append: a second append of a shard in flight is refused, the first one lands', async () => {
    const journal = createLevelJournal({ path, durability: 'process' })
    await journal.open()
    const head = await journal.head('a')
    const first = journal.append(nextRecord(head, 'one'))
    await expect(journal.append(nextRecord(head, 'one'))).rejects.toMatchObject({ code: 'STORE_FAILED' })
    await first
    expect((await journal.head('a')).sequence).toBe(1)
    await journal.close()
  })

  test('close: appends in flight land first', async () => {
    const journal = createLevelJournal({ path, durability: 'process' })
    await journal.open()
    const empty = { sequence: 0, hash: new Uint8Array(32) }
    await Promise.all(Array.from({ length: 200 }, (_, index) => journal.head(`s${index}`)))
    const appends = Array.from({ length: 200 }, (_, index) =>
      journal.append(nextRecord({ shard: `s${index}`, ...empty }, 'x')),
    )
    const settled = Promise.allSettled(appends)
    await journal.close()
    const landed = (await settled).filter(({ status }) => status === 'fulfilled').length
    expect(landed).toBe(200)
    expect(await journal.open()).toMatchObject({ shards: 200, unclean: false, damaged: [] })
    await journal.close()
  })

  test('heads: more shards than the cache and the head file hold go on where they were', async () => {
    const journal = createLevelJournal({ path, durability: 'process' })
    await journal.open()
    const names = Array.from({ length: 6000 }, (_, index) => `shard-${index}`)
    for (let round = 0; round < 2; round++)
      await Promise.all(names.map((name) => appendNext(journal, name, `round ${round}`)))
    await journal.close()
    expect(await journal.open()).toMatchObject({ shards: 6000, damaged: [], unclean: false })
    for (const name of ['shard-0', 'shard-3000', 'shard-5999']) expect((await journal.head(name)).sequence).toBe(2)
    await journal.close()
  })

  test('open: without a head file the store is opened, and counts as left unclean', async () => {
    const journal = createLevelJournal({ path, durability: 'process' })
    await journal.open()
    await appendNext(journal, 'a', 'one')
    await journal.close()
    await rm(join(path, 'head'))
    expect(await journal.open()).toMatchObject({ shards: 1, damaged: [], unclean: true })
    await journal.close()
  })

  test('open: a store whose CURRENT is gone is STORE_CORRUPT, never an empty new one', async () => {
    const journal = createLevelJournal({ path })
    await journal.open()
    await appendNext(journal, 'a', 'one')
    await journal.close()
    await rm(join(path, 'db', 'CURRENT'))
    await expect(journal.open()).rejects.toMatchObject({ code: 'STORE_CORRUPT' })
    await rm(join(path, 'head'))
    await expect(journal.open()).rejects.toMatchObject({ code: 'STORE_CORRUPT' })
  })
})

describe('LevelDB journal: damage', () => {
  let folder: string
  let path: string
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'troupe-journal-'))
    path = join(folder, 'store')
  })
  afterEach(() => rm(folder, { recursive: true, force: true }))

  const due = { nextDueAt: 12_345, openEffects: 2, outbox: 1 }

  /** A closed store whose shards have these many commits; the last one has something pending. */
  async function makeStore(shards: Readonly<Record<string, number>>): Promise<Journal> {
    const journal = createLevelJournal({ path, durability: 'process' })
    await journal.open()
    const make = async ([shard, commits]: [string, number]): Promise<void> => {
      for (let commit = 1; commit <= commits; commit++) {
        await appendNext(journal, shard, `${shard} ${commit}`, commit === commits ? { pending: due } : {})
      }
    }
    await Promise.all(Object.entries(shards).map(make))
    await journal.close()
    return journal
  }

  /** Changes the closed store behind the journal's back. */
  async function tamper(change: (db: Level<string, Buffer>) => Promise<void>): Promise<void> {
    const db = new Level<string, Buffer>(join(path, 'db'), { valueEncoding: 'buffer' })
    await change(db)
    await db.close()
  }

  async function readAll(journal: Journal, shard: string): Promise<{ read: number; code: string | null }> {
    let read = 0
    try {
      for await (const record of journal.read(shard, 1)) read = record.last
      return { read, code: null }
    } catch (thrown) {
      return { read, code: isTroupeError(thrown) ? thrown.code : 'none' }
    }
  }

  test('J4 open: a damaged or missing index row is rebuilt from the last record, pending included', async () => {
    const journal = await makeStore({ a: 3, b: 2, c: 1 })
    await tamper(async (db) => {
      await db.put('i!a', Buffer.from('not a row'))
      await db.del('i!b')
    })
    const report = await journal.open()
    expect(report).toMatchObject({ shards: 3, damaged: [] })
    expect(report.pending.map(({ shard, sequence, pending }) => [shard, sequence, pending]).sort()).toEqual([
      ['a', 3, due],
      ['b', 2, due],
      ['c', 1, due],
    ])
    for (const shard of ['a', 'b']) await appendNext(journal, shard, 'goes on')
    await journal.close()
    expect(await journal.open()).toMatchObject({ damaged: [], unclean: false })
    await journal.close()
  })

  test('J4 open: a lost tail is JOURNAL_TRUNCATED for its shard only, until the loss is accepted', async () => {
    const journal = await makeStore({ a: 5, b: 5 })
    let rowAtThree: Buffer = Buffer.alloc(0)
    await tamper(async (db) => {
      rowAtThree = (await db.get('r!a!a3')).subarray(0, 80)
      await db.batch([
        { type: 'del', key: 'r!a!a4' },
        { type: 'del', key: 'r!a!a5' },
        { type: 'put', key: 'i!a', value: rowAtThree },
      ])
    })
    for (let opened = 0; opened < 2; opened++) {
      const report = await journal.open()
      expect(report.damaged).toEqual([expect.objectContaining({ shard: 'a', code: 'JOURNAL_TRUNCATED' })])
      await expect(journal.head('a')).rejects.toMatchObject({ code: 'JOURNAL_TRUNCATED' })
      await expect(
        journal.append(nextRecord({ shard: 'a', sequence: 3, hash: new Uint8Array(32) }, 'x')),
      ).rejects.toMatchObject({ code: 'JOURNAL_TRUNCATED' })
      expect(await readAll(journal, 'a')).toEqual({ read: 3, code: 'JOURNAL_TRUNCATED' })
      await appendNext(journal, 'b', 'goes on')
      await journal.close()
    }
    await journal.open()
    await journal.acceptLoss('a', 3, rowAtThree.subarray(44, 76))
    await appendNext(journal, 'a', 'four again')
    await journal.close()
    expect(await journal.open()).toMatchObject({ damaged: [], unclean: false })
    expect(await readAll(journal, 'a')).toEqual({ read: 4, code: null })
    await journal.close()
  })

  test('J4 open: a shard of which nothing is left is named by the head file', async () => {
    const journal = await makeStore({ a: 5, b: 5 })
    await tamper((db) => db.clear({ gte: 'r!a!', lt: 'r!a"' }).then(() => db.del('i!a')))
    expect((await journal.open()).damaged).toEqual([expect.objectContaining({ shard: 'a', code: 'JOURNAL_TRUNCATED' })])
    await journal.acceptLoss('a', 0, new Uint8Array(32))
    await appendNext(journal, 'a', 'a new start')
    await journal.close()
    expect(await journal.open()).toMatchObject({ shards: 2, damaged: [] })
    await journal.close()
  })

  test('J4 open: an index row that no record proves is JOURNAL_CORRUPT', async () => {
    const journal = await makeStore({ a: 2, b: 2 })
    await tamper((db) =>
      db.batch([
        { type: 'put', key: 'i!a', value: Buffer.alloc(80) },
        { type: 'put', key: 'r!a!a2', value: Buffer.alloc(200) },
      ]),
    )
    expect((await journal.open()).damaged).toEqual([expect.objectContaining({ shard: 'a', code: 'JOURNAL_CORRUPT' })])
    expect(await readAll(journal, 'a')).toEqual({ read: 1, code: 'JOURNAL_CORRUPT' })
    await journal.acceptLoss('a', 0, new Uint8Array(32))
    await journal.close()
    expect(await journal.open()).toMatchObject({ shards: 1, damaged: [] })
    await journal.close()
  })

  test('J4 read: a damaged, a missing and a renamed record are JOURNAL_CORRUPT, and stop the shard', async () => {
    const journal = await makeStore({ a: 5, b: 5, c: 5, d: 5 })
    await tamper(async (db) => {
      await db.put('r!a!a3', Buffer.from('short'))
      await db.del('r!b!a3')
      await db.put('r!c!a3', await db.get('r!c!a4'))
    })
    expect(await journal.open()).toMatchObject({ damaged: [] })
    for (const shard of ['a', 'b', 'c']) {
      expect(await readAll(journal, shard)).toEqual({ read: 2, code: 'JOURNAL_CORRUPT' })
      await expect(appendNext(journal, shard, 'x')).rejects.toMatchObject({ code: 'JOURNAL_CORRUPT' })
    }
    expect(await readAll(journal, 'd')).toEqual({ read: 5, code: null })
    await journal.close()
  })

  test('J4 open: a loss that the head file cannot name stops every shard it may be of', {
    timeout: 60_000,
  }, async () => {
    const names = Array.from({ length: 4096 }, (_, index) => [`late-${index}`, 1] as const)
    await makeStore({ early: 3, other: 2 })
    const journal = await makeStore(Object.fromEntries(names))
    await tamper(async (db) => {
      const row = (await db.get('r!early!a2')).subarray(0, 80)
      await db.batch([
        { type: 'del', key: 'r!early!a3' },
        { type: 'put', key: 'i!early', value: row },
      ])
    })
    for (let opened = 0; opened < 2; opened++) {
      const { damaged } = await journal.open()
      expect(damaged.map(({ shard, code }) => [shard, code]).sort()).toEqual([
        ['early', 'JOURNAL_TRUNCATED'],
        ['other', 'JOURNAL_TRUNCATED'],
      ])
      await appendNext(journal, 'late-7', 'goes on')
      await journal.close()
    }
    await journal.open()
    for (const shard of ['early', 'other']) await journal.acceptLoss(shard, 0, new Uint8Array(32))
    await journal.close()
    expect(await journal.open()).toMatchObject({ damaged: [], shards: 4096 })
    await journal.close()
    await tamper((db) => db.clear({ gte: 'r!late-9!', lt: 'r!late-9"' }).then(() => db.del('i!late-9')))
    expect((await journal.open()).damaged.map(({ shard }) => shard)).toEqual(['late-9'])
    await journal.close()
  })

  test('J4 content: flipped blobs, chunks, manifests, events and attempts are not given out', async () => {
    const journal = await makeStore({})
    await journal.open()
    const bytes = Buffer.from('content of some length')
    const hash = createHash('sha256').update(bytes).digest('hex')
    await appendNext(journal, 'a', 'one', { events: bytes })
    await journal.putBlob('a', hash, bytes, 1)
    for (const sequence of [1, 2]) {
      const manifest = { shard: 'a', sequence, hash: new Uint8Array(32), bytes, chunks: [hash] }
      await journal.putSnapshot(manifest, new Map([[hash, bytes]]), [1])
    }
    await journal.putAttempts('a', { effect: 2 })
    await journal.close()
    await tamper(async (db) => {
      for (const key of [`b!a!${hash}`, `c!a!${hash}`, 'm!a!a2', 'e!a!a1', 'a!a']) {
        const value = Buffer.from(await db.get(key))
        value[value.length - 3] = (value[value.length - 3] ?? 0) ^ 4
        await db.put(key, value)
      }
    })
    await journal.open()
    await expect(journal.getBlob('a', hash)).rejects.toMatchObject({ code: 'BLOB_MISSING' })
    expect((await journal.snapshots('a')).map(({ sequence }) => sequence)).toEqual([1])
    await expect(journal.getChunks('a', [hash])).rejects.toMatchObject({ code: 'JOURNAL_CORRUPT' })
    await expect(journal.readEvents('a', 1)[Symbol.asyncIterator]().next()).rejects.toMatchObject({
      code: 'JOURNAL_CORRUPT',
    })
    await expect(journal.getAttempts('a')).rejects.toMatchObject({ code: 'JOURNAL_CORRUPT' })
    const manifest = { shard: 'a', sequence: 3, hash: new Uint8Array(32), bytes, chunks: [hash] }
    await journal.putSnapshot(manifest, new Map([[hash, bytes]]), [])
    expect((await journal.getChunks('a', [hash])).length).toBe(1)
    await journal.close()
  })
})

describe('head file', () => {
  let folder: string
  let path: string
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'troupe-head-'))
    path = join(folder, 'head')
  })
  afterEach(() => rm(folder, { recursive: true, force: true }))
  const hash = new Uint8Array(32).fill(7)

  test('W1 write: count and sum of the last write are found without a header', () => {
    const file = new HeadFile(path)
    file.writeHeader()
    for (let index = 1; index <= 10; index++) {
      file.count = index
      file.sum += index
      file.note(`s${index}`, index, hash)
      file.write()
    }
    file.close()
    const found = new HeadFile(path)
    expect([found.sound, found.clean, found.count, found.sum]).toEqual([true, false, 10, 55])
    expect(found.witness('s3')).toMatchObject({ sequence: 3 })
    found.close()
  })

  test('W3 write: a header of a new era takes back what slots said', () => {
    const file = new HeadFile(path)
    file.writeHeader()
    file.count = 1
    file.sum = 100
    file.note('a', 100, hash)
    file.write()
    file.sum = 40
    file.note('a', 40, hash)
    file.writeHeader(true)
    file.close()
    const found = new HeadFile(path)
    expect([found.clean, found.sum, found.witness('a')?.sequence]).toEqual([true, 40, 40])
    found.close()
  })

  test('W4 note: the slot unwritten longest is reused, a pinned one is not', () => {
    const file = new HeadFile(path)
    file.pin = (shard) => shard === 's0'
    for (let index = 0; index < 4096; index++) file.note(`s${index}`, 1, hash)
    file.note('s1', 2, hash)
    for (const shard of ['new-1', 'new-2']) file.note(shard, 1, hash)
    expect(['s0', 's1', 's2', 's3', 's4'].map((shard) => file.witness(shard)?.sequence)).toEqual([
      1,
      2,
      undefined,
      undefined,
      1,
    ])
    file.write()
    file.close()
    const found = new HeadFile(path)
    expect([...found.shards()].length).toBe(4096)
    found.close()
  })
})
