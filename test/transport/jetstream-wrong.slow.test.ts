import { headers } from '@nats-io/transport-node'
import { jetstream, type StoredMsg } from '@nats-io/jetstream'
import { describe, expect, test } from 'vitest'
import type { Journal } from '../../runtime/journal.js'
import { createJetStreamJournal } from '../../transport/jetstream-journal.js'
import { JetStreamReading } from '../../transport/jetstream-reading.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { appendNext, nextRecord } from '../conformance/journal.js'
import { useNats } from '../support/use-nats.js'
import { code, collect, text } from '../support/values.js'
import { useOwners } from '../support/jetstream-owners.js'

let link: NatsLink
useNats((nats) => {
  ;({ link } = nats)
})

describe('JetStream journal: what a server or a copy of it has wrong', () => {
  const stage = useOwners('wrong', () => link)
  const { closing, owner, lastOf } = stage

  test('JR2 strays: what no journal wrote is passed over by everybody, and stops nobody', async () => {
    const journal = await owner('one')
    for (const content of ['1', '2']) await appendNext(journal, 'a', content)
    // An answer of the server that somebody had sent here.
    const client = jetstream(link.connection)
    const junk = '{"type":"io.nats.jetstream.api.v1.stream_names_response"}'
    for (const shard of ['a', 'a', 'b']) await client.publish(stage.subjects.journal(shard), junk)
    const read = async (of: Journal) => (await collect(of.read('a', 1))).map(({ bytes }) => text(bytes))
    const other = createJetStreamJournal({ link, subjects: stage.subjects, worker: 'two' })
    closing.push(() => other.close())
    expect(await other.open()).toMatchObject({ shards: 1, damaged: [] })
    expect(await read(other)).toEqual(['1', '2'])
    // Whoever had the shard notices, is not fenced by it, and goes on.
    const third = nextRecord(await journal.head('a'), '3')
    await expect(journal.append(third)).rejects.toEqual(code('STORE_FAILED'))
    expect((await journal.refresh('a')).sequence).toBe(2)
    await journal.append(third)
    await appendNext(journal, 'a', '4')
    await client.publish(stage.subjects.journal('a'), junk)
    await other.refresh('a')
    await appendNext(other, 'a', '5')
    await appendNext(other, 'b', 'one')
    for (const each of [journal, other]) {
      await each.refresh('a')
      expect(await read(each)).toEqual(['1', '2', '3', '4', '5'])
    }
    expect((await collect(other.heads())).map(({ shard, sequence }) => [shard, sequence])).toEqual([
      ['a', 5],
      ['b', 1],
    ])
  })

  test('JR2 strays: of two records that copies let land at one place the first counts', async () => {
    const journal = await owner('one')
    for (const content of ['1', '2']) await appendNext(journal, 'a', content)
    const second = await lastOf('a')
    const twin = await link.manager.streams.getMessage(stage.subjects.stream('journal'), { seq: second })
    const twinHeaders = headers()
    for (const [name, [value = '']] of twin!.header) if (name.startsWith('Troupe-')) twinHeaders.set(name, value)
    await jetstream(link.connection).publish(stage.subjects.journal('a'), twin!.data, { headers: twinHeaders })
    const reading = new JetStreamReading(link, stage.subjects, jetstream(link.connection))
    reading.copies = true
    const stray = await lastOf('a')
    expect(await reading.end('a')).toMatchObject({ last: { seq: second }, at: stray, cuts: [[stray, stray]] })
  })

  /** A reading whose leader lacks some messages that another copy has. */
  function holedReading(hidden: readonly number[]): JetStreamReading {
    const { streams, direct } = link.manager
    const getMessage = async (
      stream: string,
      query: { seq: number; next_by_subj?: string },
    ): Promise<StoredMsg | null> => {
      const found = await direct.getMessage(stream, query)
      if (found === null || !hidden.includes(found.seq)) return found
      return query.next_by_subj === undefined ? null : getMessage(stream, { ...query, seq: found.seq + 1 })
    }
    const holed = { ...link, manager: { ...link.manager, direct, streams: { ...streams, getMessage } } }
    const reading = new JetStreamReading(holed, stage.subjects, jetstream(link.connection))
    reading.copies = true
    return reading
  }

  test('JR3 copies: what the copy that answers lacks is asked of the others', async () => {
    const journal = await owner('one')
    for (const content of ['1', '2', '3', '4']) await appendNext(journal, 'a', content)
    const at = [await lastOf('a', 3), await lastOf('a', 2), await lastOf('a', 1), await lastOf('a')]
    for (const hidden of [[at[1]!], [at[1]!, at[2]!], [at[3]!], at]) {
      const found = await collect(holedReading(hidden).messages('a', 1, at[3]!))
      expect(found.map(({ seq }) => seq)).toEqual(at)
    }
  })

  test('JR3 copies: nor is it missed where what is read back from the end begins', async () => {
    const journal = await owner('one')
    const at: number[] = []
    for (let content = 1; content <= 20; content += 1) {
      await appendNext(journal, 'a', `${content}`)
      at.push(await lastOf('a'))
      await appendNext(journal, 'other', `${content}`)
    }
    for (const back of [16, 17, 18]) {
      const found = await collect(holedReading([at.at(-back)!]).from('a', 3, { at: at.at(-1)!, cuts: [] }))
      expect(found.map(({ seq }) => seq).filter((seq) => seq >= at[2]!)).toEqual(at.slice(2))
    }
  })

  test('JJ8 a lost end: a shard that events tell more of is JOURNAL_TRUNCATED until it is cut and a record tells so, the others go on', async () => {
    const journal = await owner('one')
    const one = await appendNext(journal, 'a', 'one')
    const tell = async (shard: string, commit: number): Promise<void> => {
      const head = headers()
      head.set('Troupe-Last-Event', String(commit))
      await jetstream(link.connection).publish(stage.subjects.events(shard), '[]', { headers: head })
    }
    await link.manager.streams.add({ name: stage.subjects.stream('events'), subjects: [stage.subjects.events()] })
    await tell('a', 1)
    expect((await journal.refresh('a')).sequence).toBe(1)
    for (const shard of ['a', 'gone']) await tell(shard, 5)
    // A stray behind the end changes nothing.
    await jetstream(link.connection).publish(stage.subjects.journal('a'), 'x')
    for (const shard of ['a', 'gone']) await expect(journal.refresh(shard)).rejects.toEqual(code('JOURNAL_TRUNCATED'))
    await appendNext(journal, 'b', 'one')
    await journal.acceptLoss('a', 1, one.hash)
    await journal.acceptLoss('gone', 5, new Uint8Array(32))
    // Who cut them may die before a record tells of it.
    const other = await owner('two')
    await expect(other.refresh('a')).rejects.toEqual(code('JOURNAL_TRUNCATED'))
    expect((await other.refresh('gone')).sequence).toBe(5)
    for (const shard of ['a', 'gone']) await appendNext(journal, shard, 'two')
    expect((await collect(other.read('a', 1))).map(({ bytes }) => text(bytes))).toEqual(['one', 'two'])
    expect((await other.refresh('gone')).sequence).toBe(6)
  })

  test('JJ9 a lost end: what is sound is read, then the damage; a removal leaves the number that is known of', async () => {
    const journal = await owner('one')
    await link.manager.streams.add({ name: stage.subjects.stream('events'), subjects: [stage.subjects.events()] })
    const put = async (subject: string, bytes: string, fields: Record<string, string>): Promise<void> => {
      const head = headers()
      for (const [name, value] of Object.entries(fields)) head.set(name, value)
      await jetstream(link.connection).publish(subject, bytes, { headers: head })
    }
    const events = Buffer.from('e')
    for (const shard of ['a', 'b'])
      for (const content of ['1', '2']) await appendNext(journal, shard, content, { events, crew: 'desk@1' })
    for (const shard of ['a', 'gone']) await put(stage.subjects.events(shard), '[]', { 'Troupe-Last-Event': '5' })
    // Its row says nothing any more, its other headers do.
    const row = { 'Troupe-Row': Buffer.alloc(80, 7).toString('base64'), 'Troupe-Crew': 'desk@1' }
    await put(stage.subjects.journal('b'), 'x', { ...row, 'Troupe-Behind': String(await lastOf('b')) })
    const known = {
      a: ['JOURNAL_TRUNCATED', 5, 'desk@1'],
      gone: ['JOURNAL_TRUNCATED', 5, null],
      b: ['JOURNAL_CORRUPT', 3, 'desk@1'],
    }
    for (const [shard, [expected, last, crew]] of Object.entries(known)) {
      await expect(journal.refresh(shard)).rejects.toMatchObject({ code: expected, details: { last, crew } })
      for (const read of [journal.read(shard, 1), journal.readEvents(shard, 1)]) {
        const found: string[] = []
        const all = async (): Promise<void> => {
          for await (const { bytes } of read) found.push(text(bytes))
        }
        await expect(all()).rejects.toMatchObject({ code: expected })
        expect(found).toHaveLength(shard === 'gone' ? 0 : 2)
      }
      await journal.remove(shard)
      expect(await journal.refresh(shard)).toMatchObject({ removed: true, sequence: last })
      await appendNext(journal, shard, 'anew')
      const other = await owner(`next-${shard}`)
      expect((await collect(other.read(shard, 1))).map(({ first, bytes }) => [first, text(bytes)])).toEqual([
        [Number(last) + 1, 'anew'],
      ])
    }
  })
})
