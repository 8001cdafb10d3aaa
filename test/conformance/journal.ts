/**
 * What every journal does, whatever keeps it: the port's invariants J1 to J6 and each of its methods.
 *
 * Owns: the checks that hold for all implementations.
 * Does not own: faults of one implementation (`test/fault/`).
 */

import { createHash } from 'node:crypto'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Journal, JournalRecord, Pending, ShardHead, SnapshotManifest } from '../../runtime/journal.js'
import { code, collect, text } from '../support/values.js'

/** A journal under test, and a way to lose its process: `reopen` gives a journal on what the last one left. */
export interface JournalUnderTest {
  readonly journal: Journal
  /** A new journal on the same store; the old one was closed. */
  reopen(): Journal
  dispose(): Promise<void>
}

const idle: Pending = { nextDueAt: null, openEffects: 0, outbox: 0 }
const zeros = new Uint8Array(32)

/** The chain hash, computed on the test's own account. */
export function chain(previous: Uint8Array, bytes: Uint8Array): Uint8Array {
  return createHash('sha256').update(previous).update(bytes).digest()
}

/** The record after `head`, of `commits` commits. */
export function nextRecord(
  head: Pick<ShardHead, 'shard' | 'sequence' | 'hash'>,
  content: string,
  more: Partial<JournalRecord> = {},
): JournalRecord {
  const bytes = Buffer.from(content)
  const first = head.sequence + 1
  const base = { shard: head.shard, first, last: first, bytes, events: null, pending: idle }
  return { ...base, hash: chain(head.hash, bytes), ...more }
}

/** Appends one record after the shard's head. */
export async function appendNext(
  journal: Journal,
  shard: string,
  content: string,
  more: Partial<JournalRecord> = {},
): Promise<JournalRecord> {
  const record = nextRecord(await journal.head(shard), content, more)
  await journal.append(record)
  return record
}

const sha = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

/** Runs the suite. `make` gives a journal that is not open yet. */
export function journalConformance(name: string, make: () => Promise<JournalUnderTest>): void {
  describe(`journal on ${name}`, () => {
    let subject: JournalUnderTest
    let journal: Journal

    beforeEach(async () => {
      subject = await make()
      journal = subject.journal
      await journal.open()
    })
    afterEach(async () => {
      await journal.close()
      await subject.dispose()
    })

    /** Closes and opens again. */
    async function again(): Promise<ReturnType<Journal['open']>> {
      await journal.close()
      journal = subject.reopen()
      return journal.open()
    }

    test('open: a new store has nothing, and was not left unclean', async () => {
      expect(await again()).toEqual({ shards: 0, pending: [], damaged: [], unclean: false })
    })

    test('open: a second owner is refused with STORE_BUSY', async () => {
      const second = subject.reopen()
      await expect(second.open()).rejects.toEqual(code('STORE_BUSY'))
      await appendNext(journal, 'a', 'still works')
      await second.close()
    })

    test('open: shards with something pending are reported, idle and removed ones are not', async () => {
      const due = { nextDueAt: 1_700_000_000_123, openEffects: 2, outbox: 3 }
      await appendNext(journal, 'idle', 'one')
      await appendNext(journal, 'gone', 'one', { pending: due })
      await journal.remove('gone')
      const record = await appendNext(journal, 'busy', 'one', { pending: due })
      const report = await again()
      expect(report.shards).toBe(2)
      expect(report.damaged).toEqual([])
      expect(report.pending).toEqual([
        expect.objectContaining({ shard: 'busy', sequence: 1, pending: due, removed: false }),
      ])
      expect(text(report.pending[0]!.hash)).toBe(text(record.hash))
    })

    test('head: an unknown shard is at sequence 0 with a hash of zeros', async () => {
      expect(await journal.head('nobody')).toEqual({
        shard: 'nobody',
        sequence: 0,
        hash: zeros,
        pending: idle,
        removed: false,
      })
      expect((await again()).shards).toBe(0)
    })

    test('head: it follows each append, before and after a new open', async () => {
      await appendNext(journal, 'a', 'one')
      const record = await appendNext(journal, 'a', 'two', {
        last: 4,
        pending: { nextDueAt: 5, openEffects: 0, outbox: 0 },
      })
      for (let opened = 0; opened < 2; opened++) {
        const head = await journal.head('a')
        expect(head).toMatchObject({ shard: 'a', sequence: 4, removed: false, pending: record.pending })
        expect(Buffer.from(head.hash).equals(record.hash)).toBe(true)
        await again()
      }
    })

    test('heads: all shards in the order of their names, tombstones included', async () => {
      for (const shard of ['b', 'a-b', 'a', 'B', 'a_1']) await appendNext(journal, shard, 'x')
      await journal.remove('b')
      const heads = await collect(journal.heads())
      expect(heads.map(({ shard }) => shard)).toEqual(['B', 'a', 'a-b', 'a_1', 'b'])
      expect(heads.map(({ removed }) => removed)).toEqual([false, false, false, false, true])
    })

    test('J1 append: what resolved is there after a new open', async () => {
      for (let index = 0; index < 50; index++) await appendNext(journal, `s${index % 7}`, `entry ${index}`)
      await again()
      const found = await Promise.all([0, 1, 2, 3, 4, 5, 6].map((shard) => collect(journal.read(`s${shard}`, 1))))
      expect(
        found
          .flat()
          .map(({ bytes }) => text(bytes))
          .sort(),
      ).toEqual(Array.from({ length: 50 }, (_, index) => `entry ${index}`).sort())
    })

    test('J2 append: record, events and index row come together', async () => {
      await appendNext(journal, 'a', 'one', { events: Buffer.from('e1') })
      await appendNext(journal, 'a', 'two')
      await appendNext(journal, 'a', 'three', { last: 5, events: Buffer.from('e3') })
      await again()
      expect((await journal.head('a')).sequence).toBe(5)
      const events = await collect(journal.readEvents('a', 1))
      expect(events.map(({ first, bytes }) => [first, text(bytes)])).toEqual([
        [1, 'e1'],
        [3, 'e3'],
      ])
      expect((await collect(journal.readEvents('a', 4))).map(({ first }) => first)).toEqual([3])
    })

    test('J3 append: a gap in sequence is refused and changes nothing', async () => {
      const one = await appendNext(journal, 'a', 'one')
      for (const first of [1, 3, 0, -1]) {
        const record = {
          ...nextRecord({ shard: 'a', sequence: first - 1, hash: one.hash }, 'other'),
          first,
          last: first,
        }
        await expect(journal.append(record)).rejects.toEqual(code('STORE_FAILED'))
      }
      await expect(journal.append(nextRecord({ shard: 'new', sequence: 1, hash: zeros }, 'x'))).rejects.toEqual(
        code('STORE_FAILED'),
      )
      const backwards = nextRecord(await journal.head('a'), 'x', { last: 1 })
      await expect(journal.append(backwards)).rejects.toEqual(code('STORE_FAILED'))
      expect((await again()).shards).toBe(1)
      expect((await collect(journal.read('a', 1))).map(({ bytes }) => text(bytes))).toEqual(['one'])
      await appendNext(journal, 'a', 'two')
    })

    test('J3 append: shards do not wait for each other and each keeps its order', async () => {
      const shards = Array.from({ length: 40 }, (_, index) => `shard-${index}`)
      await Promise.all(
        shards.map(async (shard) => {
          for (let index = 0; index < 25; index++) await appendNext(journal, shard, `${shard}:${index}`)
        }),
      )
      await again()
      for (const shard of shards) {
        const records = await collect(journal.read(shard, 1))
        expect(records.map(({ bytes }) => text(bytes))).toEqual(
          Array.from({ length: 25 }, (_, index) => `${shard}:${index}`),
        )
        let hash: Uint8Array = zeros
        for (const record of records) {
          hash = chain(hash, record.bytes)
          expect(Buffer.from(record.hash).equals(hash)).toBe(true)
        }
      }
    })

    test('J4 read: it starts with the record that contains the sequence asked for', async () => {
      await appendNext(journal, 'a', '1-3', { last: 3 })
      await appendNext(journal, 'a', '4')
      await appendNext(journal, 'a', '5-40', { last: 40 })
      await appendNext(journal, 'a', '41')
      await appendNext(journal, 'ab', 'another shard')
      const from = async (sequence: number): Promise<string[]> =>
        (await collect(journal.read('a', sequence))).map(({ bytes }) => text(bytes))
      expect(await from(0)).toEqual(['1-3', '4', '5-40', '41'])
      expect(await from(3)).toEqual(['1-3', '4', '5-40', '41'])
      expect(await from(4)).toEqual(['4', '5-40', '41'])
      expect(await from(36)).toEqual(['5-40', '41'])
      expect(await from(41)).toEqual(['41'])
      expect(await from(42)).toEqual([])
      expect(await collect(journal.read('nobody', 1))).toEqual([])
    })

    test('J4 read: bytes come back as they were, many and large', async () => {
      const large = Buffer.alloc(300_000, 'large')
      let head = await journal.head('a')
      for (let index = 0; index < 1500; index++) {
        const record = {
          ...nextRecord(head, ''),
          bytes: index === 700 ? large : Buffer.from([index & 255, index >> 8, 0, 255]),
        }
        await journal.append(record)
        head = { ...head, sequence: record.last, hash: record.hash }
      }
      const records = await collect(journal.read('a', 1))
      expect(records.length).toBe(1500)
      records.forEach((record, index) => {
        const expected = index === 700 ? large : Buffer.from([index & 255, index >> 8, 0, 255])
        if (!expected.equals(record.bytes) || record.first !== index + 1) expect.fail(`record ${index}`)
      })
    })

    test('J5 refresh: it gives the head of a shard without a failure', async () => {
      await appendNext(journal, 'a', 'one')
      expect(await journal.refresh('a')).toMatchObject({ sequence: 1 })
      expect(await journal.refresh('nobody')).toMatchObject({ sequence: 0 })
      await appendNext(journal, 'a', 'two')
    })

    test('J6 remove: a tombstone stays, and a new life goes on from it', async () => {
      for (const content of ['one', 'two', 'three'])
        await appendNext(journal, 'a', content, { events: Buffer.from(content) })
      await appendNext(journal, 'b', 'bystander')
      const before = await journal.head('a')
      await journal.putAttempts('a', { e: 1 })
      await journal.remove('a')
      await journal.remove('a')
      for (let opened = 0; opened < 2; opened++) {
        expect(await journal.head('a')).toMatchObject({ sequence: 3, removed: true, pending: idle })
        expect(Buffer.from((await journal.head('a')).hash).equals(before.hash)).toBe(true)
        expect(await collect(journal.read('a', 1))).toEqual([])
        expect(await collect(journal.readEvents('a', 1))).toEqual([])
        expect(await journal.getAttempts('a')).toEqual({})
        expect((await again()).shards).toBe(1)
      }
      await expect(journal.append(nextRecord({ shard: 'a', sequence: 0, hash: zeros }, 'x'))).rejects.toEqual(
        code('STORE_FAILED'),
      )
      await appendNext(journal, 'a', 'four')
      expect(await journal.head('a')).toMatchObject({ sequence: 4, removed: false })
      expect((await again()).shards).toBe(2)
      expect((await collect(journal.read('a', 1))).map(({ first, bytes }) => [first, text(bytes)])).toEqual([
        [4, 'four'],
      ])
      expect((await collect(journal.read('b', 1))).length).toBe(1)
    })

    test('J6 remove: blobs and snapshots go, those of a shard with a like name stay', async () => {
      const bytes = Buffer.from('a blob')
      const hash = sha(bytes)
      for (const shard of ['a', 'a-b', 'b']) {
        await appendNext(journal, shard, 'one')
        await journal.putBlob(shard, hash, bytes, 1)
        await journal.putSnapshot(manifestOf(shard, 1, [bytes]), new Map([[hash, bytes]]), [])
      }
      await journal.remove('a')
      await journal.remove('never-written')
      await expect(journal.getBlob('a', hash)).rejects.toEqual(code('BLOB_MISSING'))
      expect(await journal.listBlobs('a')).toEqual([])
      expect(await journal.snapshots('a')).toEqual([])
      await expect(journal.getChunks('a', [hash])).rejects.toEqual(code('JOURNAL_CORRUPT'))
      expect((await collect(journal.heads())).map(({ shard }) => shard)).toEqual(['a', 'a-b', 'b'])
      for (const shard of ['a-b', 'b']) {
        expect(text(await journal.getBlob(shard, hash))).toBe('a blob')
        expect((await journal.snapshots(shard)).length).toBe(1)
      }
    })

    test('putBlob: it comes back, is listed with the lowest sequence, and is deleted by hash', async () => {
      const large = Buffer.alloc(1_000_000, 'blob')
      const small = Buffer.from('small')
      await journal.putBlob('a', sha(large), large, 7)
      await journal.putBlob('a', sha(large), large, 9)
      await journal.putBlob('a', sha(small), small, 5)
      await journal.putBlob('a', sha(small), small, 3)
      await again()
      expect(Buffer.from(await journal.getBlob('a', sha(large))).equals(large)).toBe(true)
      const bySequence = [...(await journal.listBlobs('a'))].sort((one, other) => one.sequence - other.sequence)
      expect(bySequence).toEqual([
        { hash: sha(small), sequence: 3 },
        { hash: sha(large), sequence: 7 },
      ])
      await journal.deleteBlobs('a', [sha(large), 'f'.repeat(64)])
      await expect(journal.getBlob('a', sha(large))).rejects.toEqual(code('BLOB_MISSING'))
      await expect(journal.getBlob('b', sha(small))).rejects.toEqual(code('BLOB_MISSING'))
      expect((await journal.listBlobs('a')).length).toBe(1)
      expect(await journal.listBlobs('b')).toEqual([])
    })

    test('putSnapshot: newest first, kept ones stay, unnamed chunks go', async () => {
      const [one, two, three] = ['one', 'two', 'three'].map((each) => Buffer.from(each)) as [Buffer, Buffer, Buffer]
      const chunks = (...all: Buffer[]): Map<string, Uint8Array> => new Map(all.map((each) => [sha(each), each]))
      await journal.putSnapshot(manifestOf('a', 1, [one]), chunks(one), [])
      await journal.putSnapshot(manifestOf('a', 20, [one, two]), chunks(two), [1])
      expect((await journal.snapshots('a')).map(({ sequence }) => sequence)).toEqual([20, 1])
      await journal.putSnapshot(manifestOf('a', 300, [two, three]), chunks(three), [20])
      await again()
      expect(await journal.snapshots('a')).toEqual([
        expect.objectContaining({ shard: 'a', sequence: 300, chunks: [sha(two), sha(three)] }),
        expect.objectContaining({ shard: 'a', sequence: 20, chunks: [sha(one), sha(two)] }),
      ])
      const newest = (await journal.snapshots('a'))[0] as SnapshotManifest
      expect([text(newest.bytes), Buffer.from(newest.hash).equals(chain(zeros, Buffer.from('300')))]).toEqual([
        'manifest 300',
        true,
      ])
      expect((await journal.getChunks('a', newest.chunks)).map(text)).toEqual(['two', 'three'])
      await journal.putSnapshot(manifestOf('a', 301, [three]), chunks(), [])
      await expect(journal.getChunks('a', [sha(one)])).rejects.toEqual(code('JOURNAL_CORRUPT'))
      expect((await journal.getChunks('a', [sha(three)])).map(text)).toEqual(['three'])
    })

    test('putSnapshot: a manifest that names a chunk nobody stored is refused', async () => {
      const manifest = manifestOf('a', 1, [Buffer.from('nowhere')])
      await expect(journal.putSnapshot(manifest, new Map(), [])).rejects.toEqual(code('JOURNAL_CORRUPT'))
      expect(await journal.snapshots('a')).toEqual([])
    })

    test('putAttempts: the last row counts, an empty one is none', async () => {
      expect(await journal.getAttempts('a')).toEqual({})
      await journal.putAttempts('a', { effect: 1 })
      await journal.putAttempts('a', { effect: 2, timer: 1 })
      await again()
      expect(await journal.getAttempts('a')).toEqual({ effect: 2, timer: 1 })
      await journal.putAttempts('a', {})
      expect(await journal.getAttempts('a')).toEqual({})
    })

    test('acceptLoss: the shard is cut back and goes on from there', async () => {
      const records: JournalRecord[] = []
      for (let index = 1; index <= 9; index++)
        records.push(await appendNext(journal, 'a', `${index}`, { events: Buffer.from('e') }))
      await journal.putSnapshot(manifestOf('a', 4, []), new Map(), [])
      await journal.putSnapshot(manifestOf('a', 8, []), new Map(), [4])
      await journal.acceptLoss('a', 5, records[4]!.hash)
      for (let opened = 0; opened < 2; opened++) {
        expect(await journal.head('a')).toMatchObject({ sequence: 5, removed: false })
        expect((await collect(journal.read('a', 1))).map(({ bytes }) => text(bytes))).toEqual(['1', '2', '3', '4', '5'])
        expect((await collect(journal.readEvents('a', 1))).length).toBe(5)
        expect((await journal.snapshots('a')).map(({ sequence }) => sequence)).toEqual([4])
        expect((await again()).damaged).toEqual([])
      }
      await appendNext(journal, 'a', 'six')
      expect((await again()).damaged).toEqual([])
      expect((await journal.head('a')).sequence).toBe(6)
    })

    test('acceptLoss: all of it, or up to a snapshot that the records do not reach', async () => {
      await appendNext(journal, 'a', 'one')
      await journal.acceptLoss('a', 0, zeros)
      expect(await journal.head('a')).toMatchObject({ sequence: 0, removed: false })
      expect(await collect(journal.read('a', 1))).toEqual([])
      await appendNext(journal, 'a', 'again one')
      const hash = chain(zeros, Buffer.from('of a snapshot'))
      await journal.acceptLoss('a', 12, hash)
      expect((await again()).damaged).toEqual([])
      expect(Buffer.from((await journal.head('a')).hash).equals(hash)).toBe(true)
      await appendNext(journal, 'a', 'thirteen')
      expect((await collect(journal.read('a', 1))).map(({ first }) => first)).toEqual([13])
      expect(await again()).toMatchObject({ shards: 1, damaged: [] })
    })

    test('close: it waits for what was asked, twice is once, and then nothing works', async () => {
      const appended = Promise.all(
        Array.from({ length: 20 }, (_, index) =>
          journal.append(nextRecord({ shard: `s${index}`, sequence: 0, hash: zeros }, 'x')),
        ),
      )
      await appended
      await Promise.all([journal.close(), journal.close()])
      await journal.close()
      await expect(journal.head('s1')).rejects.toEqual(code('STORE_FAILED'))
      await expect(journal.append(nextRecord({ shard: 's1', sequence: 1, hash: zeros }, 'x'))).rejects.toEqual(
        code('STORE_FAILED'),
      )
      journal = subject.reopen()
      expect(await journal.open()).toMatchObject({ shards: 20, unclean: false })
    })
  })
}

function manifestOf(shard: string, sequence: number, chunks: readonly Uint8Array[]): SnapshotManifest {
  const hash = chain(zeros, Buffer.from(`${sequence}`))
  return { shard, sequence, hash, bytes: Buffer.from(`manifest ${sequence}`), chunks: chunks.map(sha) }
}
