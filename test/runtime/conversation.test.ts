import fc from 'fast-check'
import { expect, test } from 'vitest'
import { BlobRef } from '../../runtime/codec.js'
import { valuesAt } from '../../runtime/content.js'
import {
  append,
  bytesOf,
  type Conversations,
  fromStoredEntry,
  render,
  stage,
  textOf,
  toStoredEntry,
} from '../../runtime/conversation.js'
import { defineAgent, defineTool } from '../../runtime/define.js'
import { z } from 'zod'
import { call, messagesOf, openStage, resultsIn, say } from '../support/crew-stage.js'

const user = (text: string) => JSON.stringify({ role: 'user', content: text })

const texts = (logs: Conversations, name: string) => logs.get(name)?.entries.map(({ text }) => text)

test('conversation: values become messages as they are, and a user message is made of text', () => {
  const logs: Conversations = new Map()
  append(logs, 'a', { type: 'log.append', values: [1, 0] }, 4, [user('x'), user('y')])
  append(logs, 'a', { type: 'log.append', user: 'told "so"' }, 5, [])
  expect(texts(logs, 'a')).toEqual([user('y'), user('x'), user('told "so"')])
})

test('conversation: values of an earlier commit are named by it, and read when they are asked for', () => {
  const [now, later]: [Conversations, Conversations] = [new Map(), new Map()]
  append(now, 'a', { type: 'log.append', values: [1], sequence: 4 }, 4, [user('x'), user('y')])
  append(later, 'a', { type: 'log.append', values: [1], sequence: 4 }, 9, [user('other')])
  expect([texts(now, 'a'), texts(later, 'a')]).toEqual([[user('y')], [null]])
  expect(later.get('a')!.hash).toBe(now.get('a')!.hash)
})

test('V1 conversation: the hash after n entries names exactly these n', () => {
  const entry = fc.record({ sequence: fc.nat(3), index: fc.nat(2), text: fc.string() })
  fc.assert(
    fc.property(fc.array(entry, { maxLength: 5 }), fc.array(entry, { maxLength: 5 }), (left, right) => {
      const hash = (entries: typeof left) => {
        const logs: Conversations = new Map()
        for (const { sequence, index, text } of entries) {
          append(logs, 'a', { type: 'log.append', values: [index] }, sequence + 1, ['', '', ''])
          append(logs, 'a', { type: 'log.append', user: text }, 0, [])
        }
        return logs.get('a')?.hash
      }
      const same = JSON.stringify(left) === JSON.stringify(right)
      return (hash(left) === hash(right)) === same
    }),
  )
})

test('V1 conversation: what is appended later changes nothing before it', () => {
  const logs: Conversations = new Map()
  append(logs, 'a', { type: 'log.append', values: [0] }, 4, [user('x')])
  const before = structuredClone(logs.get('a')!.entries)
  append(logs, 'a', { type: 'log.append', values: [0] }, 9, [user('z')])
  stage(logs, 'a', { type: 'log.stage', index: 0, callId: 'c', text: 'r' }, 9, [])
  logs.get('a')?.seal()
  expect(logs.get('a')?.entries.slice(0, 1)).toEqual(before)
})

test('V2 conversation: plain data names the place of content and has none of it, but for what a machine wrote', () => {
  const logs: Conversations = new Map()
  append(logs, 'a', { type: 'log.append', values: [0] }, 4, [user('secret content')])
  stage(logs, 'a', { type: 'log.stage', index: 0, callId: 'c0', value: 0 }, 5, ['secret result'])
  stage(logs, 'a', { type: 'log.stage', index: 1, callId: 'c1', text: 'in its own words' }, 5, [])
  logs.get('a')?.seal()
  const stored = logs.get('a')!.entries.map(toStoredEntry)
  expect(stored).toEqual([
    [4, 0, 'message', '', ''],
    [5, 0, 'tool', 'c0', ''],
    [0, 0, 'tool', 'c1', 'in its own words'],
  ])
  const restored = stored.map(fromStoredEntry)
  expect(restored.map(({ text }) => text)).toEqual([null, null, render('tool', 'c1', 'in its own words')])
})

test('V2 conversation: a large value stays beside the journal and is not held in memory', () => {
  const logs: Conversations = new Map()
  append(logs, 'a', { type: 'log.append', values: [0] }, 4, [new BlobRef('ab', 100_000)])
  expect(logs.get('a')?.entries[0]).toMatchObject({ text: null })
  expect(bytesOf(logs.get('a')!)).toBe(0)
})

test('V3 conversation: results are appended in the order of the calls', () => {
  fc.assert(
    fc.property(fc.shuffledSubarray([0, 1, 2, 3, 11, 20], { minLength: 1 }), (order) => {
      const logs: Conversations = new Map()
      for (const index of order) stage(logs, 'a', { type: 'log.stage', index, callId: `c${index}`, text: 'x' }, 1, [])
      logs.get('a')?.seal()
      const ids = logs.get('a')?.entries.map(({ callId }) => callId) ?? []
      expect(ids).toEqual([...order].sort((one, other) => one - other).map((index) => `c${index}`))
      expect(logs.get('a')?.staged.size).toBe(0)
    }),
  )
})

test('conversation: a delegate’s answer is taken over by its place, as a tool result', () => {
  const logs: Conversations = new Map()
  append(logs, 'child', { type: 'log.append', values: [0] }, 7, [
    JSON.stringify({ role: 'assistant', content: 'found "it"' }),
  ])
  stage(logs, 'a', { type: 'log.stage', index: 0, callId: 'c', answerOf: 'child' }, 8, [])
  stage(logs, 'a', { type: 'log.stage', index: 1, callId: 'd', answerOf: 'gone' }, 8, [])
  logs.get('a')?.seal()
  expect(texts(logs, 'a')?.map((text) => JSON.parse(text ?? '') as unknown)).toEqual([
    { role: 'tool', tool_call_id: 'c', content: 'found "it"' },
    { role: 'tool', tool_call_id: 'd', content: '' },
  ])
  expect(logs.get('a')?.entries[0]).toMatchObject({ sequence: 7, index: 0, shape: 'answer' })
})

test('conversation: the first messages of another one are copied, which stays', () => {
  const logs: Conversations = new Map()
  append(logs, 'a', { type: 'log.append', values: [0, 1, 2] }, 4, [user('x'), user('y'), user('z')])
  append(logs, 'b', { type: 'log.append', copy: 'a', first: 2 }, 5, [])
  expect([texts(logs, 'a'), texts(logs, 'b')]).toEqual([
    [user('x'), user('y'), user('z')],
    [user('x'), user('y')],
  ])
})

test('conversation: a result that is there is not replaced by one that is only for want of another', () => {
  const logs: Conversations = new Map()
  const want = (index: number) =>
    stage(logs, 'a', { type: 'log.stage', index, callId: `c${index}`, text: 'lost', unless: 'staged' }, 4, [])
  stage(logs, 'a', { type: 'log.stage', index: 0, callId: 'c0', text: 'found' }, 4, [])
  want(0)
  want(1)
  expect([...logs.get('a')!.staged.values()].map(({ inline }) => inline)).toEqual(['found', 'lost'])
})

test('conversation: all of another one is taken over, which goes', () => {
  const logs: Conversations = new Map()
  append(logs, 'old', { type: 'log.append', values: [0] }, 1, [user('x')])
  append(logs, 'new', { type: 'log.append', values: [0] }, 2, [user('y')])
  append(logs, 'old', { type: 'log.append', all: 'new' }, 2, [])
  expect(texts(logs, 'old')).toEqual([user('x'), user('y')])
  expect(logs.has('new')).toBe(false)
})

test('conversation: the text of a message is read from text and from parts', () => {
  expect(textOf(user('x'))).toBe('x')
  expect(textOf('{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url"},{"text":"b"}]}')).toBe('ab')
  expect(textOf('{"role":"assistant","content":null}')).toBe('')
})

test('CT1 content: what was forgotten comes back from the record that has it, blobs too, checked against the chain', async () => {
  const big = 'x'.repeat(100_000)
  const lookup = defineTool({ name: 'lookup', description: '', input: z.object({}), effect: 'pure', run: () => big })
  const agent = defineAgent({ model: 'a:one', instructions: 'x', tools: [lookup], continue: true })
  const stage = await openStage({
    model: (request) => (resultsIn(request).length === 0 ? call(['lookup']) : say('done')),
  })
  const crew = await stage.runtime.spawn(agent)
  await crew.ask('first')
  await stage.runtime.close()
  const again = await openStage({ store: stage.store, clock: stage.clock })
  const reopened = await again.runtime.spawn(agent)
  await reopened.ask('second')
  expect(messagesOf(again.requests[0]!).map(({ content }) => content)).toEqual([
    'x',
    'first',
    null,
    big,
    'done',
    'second',
  ])
  expect(await valuesAt(again.journal, 'agent', 2)).toEqual([user('first')])
  await again.runtime.close()
})

test('CT1 content: a record that is not in the chain gives JOURNAL_CORRUPT, never text', async () => {
  const agent = defineAgent({ model: 'a:one', instructions: 'x', continue: true })
  const stage = await openStage()
  const crew = await stage.runtime.spawn(agent)
  await crew.ask('first')
  await crew.ask('second')
  await stage.runtime.close()
  const again = await openStage({ store: stage.store, clock: stage.clock })
  const reopened = await again.runtime.spawn(agent)
  const { records } = stage.store.shards.get('agent')!
  const bytes = Uint8Array.from(records[1]!.bytes)
  bytes[bytes.indexOf('first'.charCodeAt(0))] = 0x46
  records[1] = { ...records[1]!, bytes }
  const run = reopened.start('third')
  await expect(run.result).rejects.toMatchObject({ code: 'SHARD_STOPPED', details: { reason: 'JOURNAL_CORRUPT' } })
  expect(again.requests).toEqual([])
  await again.runtime.close()
})
