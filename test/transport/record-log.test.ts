import { cpSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Level } from 'level'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { JournalRecord } from '../../runtime/journal.js'
import { HeadFile } from '../../transport/head-file.js'
import { LevelCommit } from '../../transport/level-commit.js'
import type { Database } from '../../transport/level-database.js'
import { replay } from '../../transport/level-flush.js'
import { createLevelJournal } from '../../transport/level-journal.js'
import { decodeRow, nameChecksum } from '../../transport/rows.js'
import { ShardHeads, entryOf } from '../../transport/shard-heads.js'
import { LevelLane } from '../../transport/level-lane.js'
import { RecordLog, type LoggedRecord } from '../../transport/record-log.js'
import { appendNext, chain, nextRecord } from '../conformance/journal.js'

let folder: string
let paths: [string, string]
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'troupe-log-'))
  paths = [join(folder, 'log-0'), join(folder, 'log-1')]
})
afterEach(() => rm(folder, { recursive: true, force: true }))

/** Records of one shard, one commit each. */
function recordsOf(shard: string, count: number, size = 40): JournalRecord[] {
  let hash: Uint8Array = new Uint8Array(32)
  return Array.from({ length: count }, (_, index) => {
    const more = index % 3 === 0 ? { events: Buffer.from(`events ${index + 1}`) } : {}
    const record = nextRecord({ shard, sequence: index, hash }, `${shard} ${index + 1} `.padEnd(size, '.'), more)
    hash = record.hash
    return record
  })
}

function appendTo(log: RecordLog, records: readonly JournalRecord[]): LoggedRecord[] {
  const entry = (shard: string) => ({ nameCrc: nameChecksum(shard), base: 0 })
  const logged = log.append(records.map((record) => ({ entry: entry(record.shard), record })))
  log.hold(logged)
  return logged
}

function recoverAll(): LoggedRecord[] {
  const log = new RecordLog(paths)
  const found = log.recover()
  log.close()
  return found
}

const plain = ({ shard, first, last, value, events }: LoggedRecord) =>
  [shard, first, last, value.toString('latin1'), events?.toString('latin1') ?? null].join(' ')
const names = (records: readonly LoggedRecord[]): string[] => records.map(({ shard, last }) => `${shard}${last}`)

describe('record log', () => {
  test('RL6 append: a file that is synced grows in large steps, and what it has is found among the zeros', async () => {
    const log = new RecordLog(paths, true)
    const sizes = new Set<number>()
    const written: string[] = []
    for (const record of recordsOf('a', 600, 1_000)) {
      written.push(...appendTo(log, [record]).map(plain))
      await log.sync()
      sizes.add(statSync(paths[0]).size)
    }
    expect([...sizes]).toEqual([262_144, 524_288, 786_432])
    log.close()
    expect(recoverAll().map(plain)).toEqual(written)
    const other = new RecordLog(paths, true)
    other.clear(true)
    expect(statSync(paths[0]).size).toBe(0)
    appendTo(other, recordsOf('b', 1, 300_000))
    expect(statSync(paths[0]).size).toBe(524_288)
    other.close()
    expect(names(recoverAll())).toEqual(['b1'])
  })

  test('RL1 recover: a flipped bit, or an end cut off, takes the frame that it hit and no other', () => {
    const log = new RecordLog(paths)
    const records = ['a', 'bb', 'c'].flatMap((shard) => recordsOf(shard, 3))
    const written = appendTo(log, records).map(plain)
    log.close()
    expect(recoverAll().map(plain)).toEqual(written)
    const bytes = readFileSync(paths[0])
    let at = 0
    const ends = records.map((record) => (at += RecordLog.sizeOf(record)))
    for (let bit = 0; bit < bytes.length * 8; bit += 11) {
      const flipped = Buffer.from(bytes)
      flipped[bit >> 3]! ^= 1 << (bit & 7)
      writeFileSync(paths[0], flipped)
      const hit = ends.findIndex((end) => end > bit >> 3)
      expect([bit, recoverAll().map(plain)]).toEqual([bit, written.toSpliced(hit, 1)])
    }
    for (let length = 0; length < bytes.length; length += 17) {
      writeFileSync(paths[0], bytes.subarray(0, length))
      expect(recoverAll().map(plain)).toEqual(written.slice(0, ends.filter((end) => end <= length).length))
    }
  })

  test('RL2 turn: a file whose records are not released is not written over', () => {
    const log = new RecordLog(paths)
    appendTo(log, recordsOf('a', 1))
    log.turn()
    appendTo(log, recordsOf('b', 1))
    expect(() => log.turn()).toThrow('not released')
    log.release()
    log.turn()
    expect(names([...log.leaving().values()].flat())).toEqual(['b1'])
    log.close()
  })

  test('RL2 fits: a file ends at its size, and a larger record has one of its own', () => {
    const log = new RecordLog(paths)
    expect(log.fits(10_000_000)).toBe(true)
    appendTo(log, recordsOf('a', 1, 2_000_000))
    expect([log.fits(90_000), log.fits(200_000)]).toEqual([true, false])
    log.turn()
    appendTo(log, recordsOf('b', 1, 5_000_000))
    log.close()
    expect(names(recoverAll())).toEqual(['a1', 'b1'])
  })

  test('RL3 recover: files in the order of their use, without what an earlier use left behind', () => {
    const log = new RecordLog(paths)
    const [a, b] = [recordsOf('a', 9), recordsOf('b', 4)]
    appendTo(log, a.slice(0, 6))
    log.turn()
    appendTo(log, b)
    log.release()
    log.turn()
    appendTo(log, a.slice(6))
    log.close()
    expect(names(recoverAll())).toEqual(['b1', 'b2', 'b3', 'b4', 'a7', 'a8', 'a9'])
    const again = new RecordLog(paths)
    again.recover()
    appendTo(again, recordsOf('c', 1))
    again.close()
    expect(names(recoverAll())).toEqual(['b1', 'b2', 'b3', 'b4', 'c1'])
  })

  test('RL4 of: what is held is there until it is released, over both files', () => {
    const log = new RecordLog(paths)
    const a = recordsOf('a', 4)
    appendTo(log, a.slice(0, 2))
    log.turn()
    appendTo(log, [...recordsOf('b', 1), ...a.slice(2)])
    expect(names(log.of('a'))).toEqual(['a1', 'a2', 'a3', 'a4'])
    expect(names(log.lasts())).toEqual(['a4', 'b1'])
    log.release()
    expect(names(log.of('a'))).toEqual(['a3', 'a4'])
    expect(log.last('nobody')).toBeUndefined()
    log.close()
  })

  test('RL5 clear: nothing comes back', () => {
    const log = new RecordLog(paths)
    appendTo(log, recordsOf('a', 3))
    log.turn()
    appendTo(log, recordsOf('b', 3))
    log.release()
    log.turn()
    log.release()
    log.clear(true)
    log.close()
    expect(recoverAll()).toEqual([])
  })
})

describe('record log and LevelDB', () => {
  let db: Level<string, Buffer>
  let witness: HeadFile
  let log: RecordLog
  beforeEach(async () => {
    db = new Level<string, Buffer>(join(folder, 'db'), { valueEncoding: 'buffer' })
    await db.open()
    witness = new HeadFile(join(folder, 'head'))
    log = new RecordLog(paths)
  })
  afterEach(async () => {
    witness.close()
    log.close()
    await db.close()
  })

  const open = () => {
    const lane = new LevelLane()
    const target = { db: db as Database, log, witness }
    const heads = new ShardHeads((shard) => {
      const entry = { ...entryOf(shard, undefined), nameCrc: nameChecksum(shard), exists: false }
      return Promise.resolve(entry)
    })
    const commit = new LevelCommit(
      lane,
      { sync: false },
      () => target,
      () => undefined,
    )
    const append = async (record: JournalRecord) => commit.append(await heads.entry(record.shard), record)
    return { lane, commit, append }
  }
  const rows = async (): Promise<string[]> => (await db.keys().all()).sort()

  test('LA1 append: the witness was written when it resolves', async () => {
    const { append } = open()
    for (const record of recordsOf('a', 3)) {
      await append(record)
      cpSync(join(folder, 'head'), join(folder, 'head-then'))
      const then = new HeadFile(join(folder, 'head-then'))
      expect(then.witness('a')?.sequence).toBe(record.last)
      then.close()
    }
  })

  test('LA2 append: it waits for LevelDB only when both files are full', async () => {
    const { lane, append } = open()
    let release = (): void => undefined
    const blocked = lane.run(() => new Promise<void>((resolve) => (release = resolve)))
    const records = recordsOf('a', 40, 100_000)
    let landed = 0
    const all = (async () => {
      for (const record of records) {
        await append(record)
        landed++
      }
    })()
    await expect.poll(() => landed).toBe(40)
    const more = recordsOf('b', 20, 100_000)
    const rest = (async () => {
      for (const record of more) {
        await append(record)
        landed++
      }
    })()
    // An append that may land does so within a turn or two of the event loop.
    for (let turn = 0; turn < 100; turn++) await new Promise((resolve) => setImmediate(resolve))
    expect(landed).toBe(40)
    release()
    await Promise.all([blocked, all, rest])
    expect(landed).toBe(60)
  })

  test('LA3 LF1 flush: LevelDB has records, events and one index row a shard', async () => {
    const { commit, append } = open()
    for (const record of [...recordsOf('a', 3), ...recordsOf('b', 2)]) await append(record)
    expect(await rows()).toEqual([])
    await commit.flush()
    expect(await rows()).toEqual(
      ['r!a!a1', 'r!a!a2', 'r!a!a3', 'e!a!a1', 'i!a', 'r!b!a1', 'r!b!a2', 'e!b!a1', 'i!b'].sort(),
    )
    expect(decodeRow('a', await db.get('i!a'))?.last).toBe(3)
    expect(log.of('a')).toEqual([])
    await commit.flush()
    for (const record of recordsOf('c', 40, 100_000)) await append(record)
    await commit.flush()
    expect(decodeRow('c', await db.get('i!c'))?.last).toBe(40)
    await commit.idle()
  })

  test('LF2 replay: what LevelDB has is left out, and so is everything behind a gap', async () => {
    const [a, b, c] = ['a', 'b', 'c'].map((shard) => appendTo(log, recordsOf(shard, 6))) as [
      LoggedRecord[],
      LoggedRecord[],
      LoggedRecord[],
    ]
    const options = { sync: false }
    await replay(db, [...a.slice(0, 3), ...c.slice(0, 2)], options)
    await db.del('i!c')
    await db.del('r!a!a1')
    await replay(db, [...a, ...b.slice(0, 2), ...b.slice(3), ...c.slice(2)], options)
    const found = (await rows()).filter((key) => key.startsWith('r'))
    const expected = { a: [2, 3, 4, 5, 6], b: [1, 2], c: [1, 2, 3, 4, 5, 6] }
    expect(found).toEqual(Object.entries(expected).flatMap(([shard, all]) => all.map((each) => `r!${shard}!a${each}`)))
    for (const [shard, all] of Object.entries(expected))
      expect(decodeRow(shard, await db.get(`i!${shard}`))?.last).toBe(all.at(-1))
  })
})

describe('LevelDB journal behind its log', () => {
  const open = async (name: string) => {
    const journal = createLevelJournal({ path: join(folder, name), durability: 'process' })
    return { journal, report: await journal.open() }
  }
  /** What a killed process would leave. */
  const kill = (name: string): string => {
    cpSync(join(folder, 'store'), join(folder, name), { recursive: true })
    return name
  }
  const read = async (journal: Awaited<ReturnType<typeof open>>['journal'], shard: string): Promise<number[]> => {
    const found: number[] = []
    for await (const record of journal.read(shard, 1)) found.push(record.last)
    return found
  }
  const due = { nextDueAt: 5, openEffects: 1, outbox: 0 }

  test('J1 open: a killed journal has its records, events and index rows, also a second time', async () => {
    const { journal } = await open('store')
    for (const content of ['one', 'two', 'three']) {
      await appendNext(journal, 'a', content, { events: Buffer.from(content), pending: due })
    }
    for (const name of [kill('killed'), 'killed']) {
      const again = await open(name)
      expect(again.report).toMatchObject({
        shards: 1,
        damaged: [],
        unclean: true,
        pending: [{ sequence: 3, pending: due }],
      })
      expect(await read(again.journal, 'a')).toEqual([1, 2, 3])
      const events: string[] = []
      for await (const { bytes } of again.journal.readEvents('a', 2)) events.push(Buffer.from(bytes).toString())
      expect(events).toEqual(['two', 'three'])
      cpSync(join(folder, name), join(folder, 'then'), { recursive: true })
      await again.journal.close()
      await rm(join(folder, name), { recursive: true })
      cpSync(join(folder, 'then'), join(folder, name), { recursive: true })
    }
    await journal.close()
    expect(paths.map((_, index) => readFileSync(join(folder, 'store', `log-${index}`)).length)).toEqual([0, 0])
  })

  test('J4 open: a damaged frame is a loss of its shard alone', async () => {
    const { journal } = await open('store')
    for (const content of ['one', 'two', 'three'])
      for (const shard of ['a', 'b']) await appendNext(journal, shard, content)
    const file = join(folder, kill('killed'), 'log-0')
    const bytes = readFileSync(file)
    bytes[bytes.indexOf('two')]! ^= 1
    writeFileSync(file, bytes)
    const { journal: killed, report } = await open('killed')
    expect(report.damaged).toEqual([expect.objectContaining({ shard: 'a', code: 'JOURNAL_TRUNCATED' })])
    expect(await read(killed, 'b')).toEqual([1, 2, 3])
    await killed.close()
    await journal.close()
  })

  test('RL5 acceptLoss and remove: what was cut off or deleted does not come back from the log', async () => {
    const { journal } = await open('store')
    for (let index = 0; index < 5; index++) {
      for (const shard of ['cut', 'removed', 'other']) await appendNext(journal, shard, `${index}`)
    }
    const two = chain(chain(new Uint8Array(32), Buffer.from('0')), Buffer.from('1'))
    const appending = Promise.all(['other', 'new'].map((shard) => appendNext(journal, shard, 'meanwhile')))
    await journal.acceptLoss('cut', 2, two)
    await journal.remove('removed')
    await appending
    const { journal: killed, report } = await open(kill('killed'))
    expect(report.damaged).toEqual([])
    expect(await read(killed, 'cut')).toEqual([1, 2])
    expect(await read(killed, 'removed')).toEqual([])
    expect([await killed.head('other'), await killed.head('new')].map(({ sequence }) => sequence)).toEqual([6, 1])
    await killed.close()
    await journal.close()
  })

  test('LR1 read: records that go into LevelDB meanwhile are read once', async () => {
    const { journal } = await open('store')
    const flush = async () => {
      const { hash, sequence } = await journal.head('b')
      await journal.putSnapshot({ shard: 'b', sequence, hash, bytes: Buffer.from('x'), chunks: [] }, new Map(), [])
    }
    for (let index = 0; index < 6; index++) {
      await appendNext(journal, 'a', `${index}`, { events: Buffer.from('e') })
      await appendNext(journal, 'b', `${index}`)
      if (index === 2) await flush()
    }
    const records = journal.read('a', 1)[Symbol.asyncIterator]()
    const events = journal.readEvents('a', 1)[Symbol.asyncIterator]()
    const found = [(await records.next()).value?.last as number]
    let heard = (await events.next()).done === false ? 1 : 0
    await appendNext(journal, 'a', 'later')
    await flush()
    for (let next = await records.next(); next.done !== true; next = await records.next()) found.push(next.value.last)
    while ((await events.next()).done !== true) heard++
    expect(found).toEqual([1, 2, 3, 4, 5, 6])
    expect(heard).toBe(6)
    const heads: string[] = []
    await appendNext(journal, 'aa', 'x')
    await appendNext(journal, 'b', 'x')
    for await (const { shard, sequence } of journal.heads()) heads.push(`${shard} ${sequence}`)
    expect(heads).toEqual(['a 7', 'aa 1', 'b 7'])
    await journal.close()
  })
})
