import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Journal, SnapshotManifest } from '../../runtime/journal.js'
import { createLog, type Log } from '../../runtime/log.js'
import { createJetStreamJournal } from '../../transport/jetstream-journal.js'
import { LocalCopy } from '../../transport/local-copy.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { Subjects } from '../../transport/subjects.js'
import { appendNext, chain, nextRecord } from '../conformance/journal.js'
import { useNats } from '../support/use-nats.js'
import { collect } from '../support/values.js'

let link: NatsLink
let subjects: Subjects
let folder: string
let warnings: string[]
let log: Log
let count = 0
const closing: (() => Promise<unknown>)[] = []
useNats((nats) => {
  link = nats.link
})
beforeEach(async () => {
  subjects = new Subjects(`copy${++count}`)
  folder = await mkdtemp(join(tmpdir(), 'troupe-copy-'))
  warnings = []
  const silent = createLog('silent')
  log = { ...silent, with: () => log, warn: (text) => void warnings.push(text) }
})
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close()
  await rm(folder, { recursive: true })
})

/** @param copy a folder below the test's; null for none */
async function owner(epoch: number, copy: string | null, maxBytes?: number, of = subjects): Promise<Journal> {
  const options = { path: join(folder, copy ?? ''), log, ...(maxBytes === undefined ? {} : { maxBytes }) }
  const kept = copy === null ? {} : { copy: options }
  const journal = createJetStreamJournal({ link, subjects: of, worker: `w${epoch}`, epoch: () => epoch, ...kept })
  await journal.open()
  closing.push(() => journal.close())
  return journal
}

async function texts(journal: Journal, shard: string, from = 1): Promise<string[]> {
  const all: string[] = []
  let hash: Uint8Array | null = from === 1 ? new Uint8Array(32) : null
  for await (const record of journal.read(shard, from)) {
    if (hash !== null) expect(Buffer.from(record.hash).equals(chain(hash, record.bytes))).toBe(true)
    hash = record.hash
    all.push(Buffer.from(record.bytes).toString())
  }
  return all
}

/** What a piece of work gets from the server, in bytes. */
async function fetched(work: () => Promise<unknown>): Promise<number> {
  const before = link.connection.stats().inBytes
  await work()
  return link.connection.stats().inBytes - before
}

const numbers = (from: number, to: number, word = 'n') =>
  Array.from({ length: to - from + 1 }, (_, index) => `${word}${from + index}`)
const large = (text: string) => `${text}${'.'.repeat(2_000)}`
async function write(journal: Journal, all: readonly string[], shard = 'a'): Promise<void> {
  for (const text of all) await appendNext(journal, shard, text)
}
function manifestOf(hash: Uint8Array, sequence: number, chunk: Buffer): SnapshotManifest {
  const name = createHash('sha256').update(chunk).digest('hex')
  return {
    shard: 'a',
    sequence,
    hash,
    bytes: Buffer.from(`manifest ${chunk.toString('latin1', 0, 5)}`),
    chunks: [name],
  }
}
const chunksOf = ({ chunks }: SnapshotManifest, chunk: Buffer) => new Map([[chunks[0]!, chunk]])

describe('local copy', () => {
  test('CPR1 restart: what was written or read before is not fetched again, and the tail of others is', async () => {
    const all = numbers(1, 200).map(large)
    const first = await owner(1, 'copy')
    await write(first, all)
    const chunk = Buffer.alloc(300_000, 'c')
    const manifest = manifestOf((await first.head('a')).hash, 200, chunk)
    await first.putSnapshot(manifest, chunksOf(manifest, chunk), [])
    await first.close()
    const other = await owner(2, null)
    await write(other, numbers(201, 210))
    const again = await owner(3, 'copy')
    const bytes = await fetched(async () => {
      expect(await texts(again, 'a')).toEqual([...all, ...numbers(201, 210)])
      expect((await again.snapshots('a')).map(({ sequence }) => sequence)).toEqual([200])
      expect((await again.getChunks('a', manifest.chunks)).map((each) => each.length)).toEqual([300_000])
    })
    expect(bytes).toBeLessThan(40_000)
    expect(await fetched(() => texts(other, 'a'))).toBeGreaterThan(400_000)
    // What was fetched then is here now.
    await again.close()
    const last = await owner(4, 'copy')
    expect(await fetched(() => texts(last, 'a'))).toBeLessThan(5_000)
    expect(await texts(last, 'a', 205)).toEqual(numbers(205, 210))
    expect(warnings).toEqual([])
  })

  test('CPR2 asking: what proves the records here is asked for once, and what was proved not again', async () => {
    const first = await owner(1, 'copy')
    await write(first, numbers(1, 40))
    await first.close()
    const other = await owner(2, null)
    await write(other, numbers(41, 44))
    const again = await owner(3, 'copy')
    await again.head('a')
    const asked = async (from: number): Promise<number> => {
      const before = link.connection.stats().outMsgs
      await texts(again, 'a', from)
      return link.connection.stats().outMsgs - before
    }
    // The records behind those here, and that there is no more.
    expect(await asked(30)).toBe(4)
    expect(await asked(30)).toBe(0)
  })

  test('CPR1 foreign: a folder of another namespace changes nothing', async () => {
    const others = new Subjects(`foreign${count}`)
    const foreign = await owner(1, 'copy', undefined, others)
    await write(foreign, numbers(1, 20, 'foreign '))
    await foreign.close()
    const plain = await owner(2, null)
    await write(plain, numbers(1, 30))
    for (let round = 0; round < 2; round++) {
      const journal = await owner(3 + round, 'copy')
      expect(await texts(journal, 'a')).toEqual(numbers(1, 30))
      expect(await texts(journal, 'a', 20)).toEqual(numbers(20, 30))
      await journal.close()
    }
  })

  test('LC5 cut: what another owner has cut is not given again, nor a snapshot of it', async () => {
    const first = await owner(1, 'copy')
    await write(first, numbers(1, 10))
    const [old, young] = [Buffer.from('old'), Buffer.from('young')]
    const stale = manifestOf((await first.head('a')).hash, 10, old)
    await first.putSnapshot(stale, chunksOf(stale, old), [])
    await first.close()
    const other = await owner(2, null)
    const [, , , , fifth] = await collect(other.read('a', 1))
    await other.acceptLoss('a', 5, fifth!.hash)
    await write(other, numbers(6, 10, 'again '))
    const fresh = manifestOf((await other.head('a')).hash, 10, young)
    await other.putSnapshot(fresh, chunksOf(fresh, young), [])
    const journal = await owner(3, 'copy')
    expect(await texts(journal, 'a')).toEqual([...numbers(1, 5), ...numbers(6, 10, 'again ')])
    expect((await journal.snapshots('a')).map(({ bytes }) => Buffer.from(bytes).toString())).toEqual(['manifest young'])
    await journal.remove('a')
    expect(await texts(journal, 'a')).toEqual([])
    await write(journal, ['new life'])
    expect(await texts(journal, 'a', 11)).toEqual(['new life'])
  })

  test('LCP1 damage: whatever happens to the files, what is read is what was written', async () => {
    const all = numbers(1, 120).map(large)
    const chunk = Buffer.alloc(100_000, 'c')
    const first = await owner(1, 'copy')
    await write(first, all)
    const manifest = manifestOf((await first.head('a')).hash, 120, chunk)
    await first.putSnapshot(manifest, chunksOf(manifest, chunk), [])
    await first.close()
    for (let round = 0; round < 12; round++) {
      for (const name of readdirSync(join(folder, 'copy'))) {
        const path = join(folder, 'copy', name)
        if (!/\.(log|ldb)$/.test(name)) continue
        const bytes = readFileSync(path)
        for (let at = round * 97 + 11; at < bytes.length; at += 20_011)
          bytes[at] = (bytes[at] ?? 0) ^ (1 << (round % 8))
        writeFileSync(path, round === 11 ? bytes.subarray(0, bytes.length / 2) : bytes)
      }
      const journal = await owner(2 + round, 'copy')
      expect(await texts(journal, 'a')).toEqual(all)
      expect(await texts(journal, 'a', 60)).toEqual(all.slice(59))
      const [found] = await journal.snapshots('a')
      expect(found).toMatchObject({ sequence: 120, chunks: manifest.chunks })
      expect((await journal.getChunks('a', manifest.chunks))[0]!.length).toBe(100_000)
      await journal.close()
    }
  })

  test('LCP2 folder: in use or no folder at all, the journal goes without, and says so once', async () => {
    const first = await owner(1, 'copy')
    const second = await owner(2, 'copy')
    await writeFile(join(folder, 'file'), 'no folder')
    const third = await owner(3, 'file')
    await write(first, numbers(1, 3))
    for (const journal of [second, third]) expect(await texts(journal, 'a')).toEqual(numbers(1, 3))
    expect(warnings).toEqual([
      'another process uses the local copy: this worker goes without one',
      'the local copy cannot be opened: this worker goes without one',
    ])
    await first.close()
    const heir = await owner(4, 'copy')
    expect(await fetched(() => texts(heir, 'a'))).toBeLessThan(1_500)
    expect(warnings).toHaveLength(2)
  })

  test('LC3 keeping: what does not fit on the way to the disk is not kept, and leaves no hole in what is given', async () => {
    const copy = (await LocalCopy.open({ path: join(folder, 'copy'), log }))!
    closing.push(() => copy.close())
    let head = { shard: 'a', sequence: 0, hash: new Uint8Array(32) as Uint8Array }
    await copy.enter('a', '')
    for (let index = 0; index < 40; index++) {
      const record = nextRecord(head, 'x'.repeat(2 ** 20))
      copy.keepRecord('a', record)
      head = { shard: 'a', sequence: record.last, hash: record.hash }
    }
    const found = await collect(copy.records('a', 1))
    expect(found.map(({ first }) => first)).toEqual(found.map((_, index) => index + 1))
    expect(found.length).toBeGreaterThan(10)
    expect(found.length).toBeLessThan(20)
  })

  test('LC3 reading: it has what was kept before it, and does not wait for what is kept all the time', async () => {
    const copy = (await LocalCopy.open({ path: join(folder, 'copy'), log }))!
    closing.push(() => copy.close())
    await copy.enter('a', '')
    const record = nextRecord({ shard: 'a', sequence: 0, hash: new Uint8Array(32) }, 'first')
    copy.keepRecord('a', record)
    let reading = true
    let kept = 0
    const keeping = (async () => {
      for (; reading && kept < 20_000; kept++) {
        copy.keepPiece('b', 'chunk', String(kept % 10).repeat(64), Buffer.alloc(1_000))
        await Promise.resolve()
        if (kept % 20 === 0) await new Promise((resolve) => setImmediate(resolve))
      }
    })()
    const found = await collect(copy.records('a', 1))
    reading = false
    await keeping
    expect(found.map(({ first }) => first)).toEqual([1])
    expect(kept).toBeLessThan(20_000)
  })

  test('LC4 room: shards that were not used for longest go first', async () => {
    const journal = await owner(1, 'copy', 300_000)
    for (const shard of ['a', 'b', 'c', 'd']) {
      await write(journal, numbers(1, 50).map(large), shard)
      // Used in this order by the clock.
      const now = Date.now()
      await expect.poll(() => Date.now()).toBeGreaterThan(now)
    }
    await journal.close()
    const again = await owner(2, 'copy', 300_000)
    const bytes = async (shard: string) => fetched(() => texts(again, shard))
    expect(await bytes('d')).toBeLessThan(5_000)
    expect(await bytes('a')).toBeGreaterThan(100_000)
    expect(await texts(again, 'b')).toEqual(numbers(1, 50).map(large))
  })
})
