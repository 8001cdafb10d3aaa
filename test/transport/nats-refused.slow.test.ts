import { randomBytes } from 'node:crypto'
import { headers } from '@nats-io/transport-node'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { contentHash, encode } from '../../runtime/codec.js'
import type { Draft } from '../../runtime/envelope.js'
import { type ErrorCode, TroupeError } from '../../runtime/errors.js'
import type { RefusedInfo } from '../../runtime/refused-letters.js'
import type { RawLetter } from '../../transport/letter.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { NatsMail } from '../../transport/nats-mail.js'
import { keptLetters, NatsRefused, type Refusal } from '../../transport/nats-refused.js'
import { partitionOf, Subjects } from '../../transport/subjects.js'
import { useNats } from '../support/use-nats.js'
import { code } from '../support/values.js'

let link: NatsLink
let subjects: Subjects
let count = 0
const closing: (() => unknown)[] = []
useNats((nats) => {
  link = nats.link
})
beforeEach(() => {
  subjects = new Subjects(`refused${++count}`)
})
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close()
})

const patient = { timeout: 15_000, interval: 20 }
const letter = (text: string): Draft => ({
  ...{ from: 'port/model', to: 'agent/writer', cause: '1-0', body: { type: 'noted' }, values: [text] },
})
const state = async (of: 'mail' | 'content' | 'dead') => (await link.manager.streams.info(subjects.stream(of))).state
const isEmpty = () => expect.poll(async () => (await state('mail')).messages, patient).toBe(0)

async function all(refused: NatsRefused, crew?: string): Promise<RefusedInfo[]> {
  const found: RefusedInfo[] = []
  for await (const each of refused.list(crew)) found.push(each)
  return found
}

/** Mail of which every letter is refused with the code that is in force; null takes it. */
async function refusing(first: ErrorCode | null = 'MESSAGE_REFUSED') {
  const mail = await NatsMail.open({ link, subjects, ackWaitMs: 1_000 })
  closing.push(() => mail.close())
  const refused = await NatsRefused.open({ link, subjects, send: (shard, draft, id) => mail.send(shard, draft, id) })
  const told = { refusal: first, taken: [] as Draft[], returned: false, failures: 0, puts: 0 }
  mail.receive({
    whose: () => 'own',
    take: async (_shard, draft) => {
      if (told.refusal !== null) throw new TroupeError(told.refusal, 'it is\r\nrefused ü')
      told.taken.push(draft)
    },
    dead: async (shard, draft, why, reason, raw) => {
      told.puts += 1
      await refused.put(raw, { shard, draft, code: why, reason, returned: told.returned })
      // Whoever stored it dies before the server hears that it was.
      if (told.failures-- > 0) throw new TroupeError('STORE_FAILED', 'planted', { retryable: true })
    },
  })
  mail.listen(new Set([partitionOf('a'), partitionOf('b')]))
  return { mail, refused, told }
}

test('NRF1 ML5 put: a refused letter is stored before the mail forgets it, once however often it comes, and shown as it was', async () => {
  const { mail, refused, told } = await refusing()
  told.failures = 3
  await mail.send('a', letter('said'))
  await isEmpty()
  expect(told.puts).toBe(4)
  expect((await state('dead')).messages).toBe(1)
  const [info] = await all(refused)
  expect(info).toEqual({
    ...{ id: expect.stringMatching(/^m1-[0-9a-z]+$/), crew: 'a', from: 'port/model', to: 'agent/writer' },
    ...{ type: 'noted', code: 'MESSAGE_REFUSED', reason: 'it is\r\nrefused ü', at: expect.any(Number) },
    ...{ bytes: encode(letter('said')).length, hash: contentHash(encode(letter('said'))) },
    ...{ kept: 'whole', returned: false },
  })
  expect(Math.abs(info!.at - Date.now())).toBeLessThan(60_000)
  expect(await refused.show('a', info!.id)).toEqual({
    ...info,
    message: { type: 'noted' },
    values: ['said'],
    raw: null,
  })
  expect([(await all(refused, 'a')).length, (await all(refused, 'b')).length]).toEqual([1, 0])
  for (const [crew, id] of [
    ['b', info!.id],
    ['a', 'm9-x'],
    ['a', '*'],
    ['a.>', info!.id],
  ] as const)
    await expect(refused.show(crew, id)).rejects.toEqual(code('LETTER_UNKNOWN'))
})

test('NRF2 put: whatever comes is kept within bounds, and the oldest go', async () => {
  const refused = await NatsRefused.open({ link, subjects, send: async () => undefined })
  const raw = (id: string, bytes: Uint8Array, more: Partial<RawLetter> = {}): RawLetter => ({
    ...{ id, bytes, subject: subjects.mail('a', 'agent/x'), claim: null },
    ...more,
  })
  const long = '\u0000ü"'.repeat(100_000)
  const hostile: Refusal = {
    ...{ shard: `${long}.*>`, code: 'ENVELOPE_INVALID', reason: long, returned: false },
    draft: { from: long, to: long, cause: long, body: { type: long }, values: [] },
  }
  await refused.put(raw('m1-a', randomBytes(1_000_000), { subject: long }), hostile)
  await refused.put(raw('m2-a', randomBytes(100)), hostile)
  const claim = { id: 'x', hash: 'f'.repeat(64), bytes: 9_000_000 }
  await refused.put(raw('m3-a', new Uint8Array(0), { claim }), hostile)
  const found = await all(refused)
  expect(found.map(({ kept, bytes }) => [kept, bytes])).toEqual([
    ['none', 1_000_000],
    ['whole', 100],
    ['none', 9_000_000],
  ])
  expect(
    found.every(({ reason, from, type, crew }) => [reason, from, type, crew].every((it) => it.length <= 500)),
  ).toBe(true)
  const { crew } = found[0]!
  expect(await refused.show(crew, 'm1-a')).toMatchObject({ message: null, raw: null })
  expect((await refused.show(crew, 'm2-a')).raw).toHaveLength(136)
  expect(await refused.drop(crew)).toBe(3)
  const { config } = await link.manager.streams.info(subjects.stream('dead'))
  expect(config).toMatchObject({ max_msgs: keptLetters, max_bytes: 16 * 1_048_576, discard: 'old' })
  expect(config.max_age).toBeGreaterThan(0)
  await link.manager.streams.update(subjects.stream('dead'), { max_msgs: 5 })
  const plain: Refusal = { ...hostile, shard: 'a', draft: null, reason: '' }
  for (let n = 0; n < 8; n++) await refused.put(raw(`m${n}-b`, randomBytes(10)), plain)
  expect((await all(refused)).map(({ id }) => id)).toEqual(['m3-b', 'm4-b', 'm5-b', 'm6-b', 'm7-b'])
  // The operator's limits stay.
  await NatsRefused.open({ link, subjects, send: async () => undefined })
  expect((await link.manager.streams.info(subjects.stream('dead'))).config.max_msgs).toBe(5)
})

test('NRF3 replay: a letter is in the mail again once, a large one with its body, and is gone from here', async () => {
  const { mail, refused, told } = await refusing()
  const large = letter('x'.repeat(600_000))
  await mail.send('a', letter('small'))
  await mail.send('a', large)
  await isEmpty()
  expect((await all(refused)).map(({ kept }) => kept)).toEqual(['whole', 'beside'])
  // Its body is there as long as it is.
  expect((await state('content')).messages).toBe(2)
  told.refusal = null
  const [first, second] = await all(refused)
  // Whoever asks twice, and whoever dies between sending and dropping.
  const both = await Promise.allSettled([refused.replay('a', first!.id), refused.replay('a', first!.id)])
  expect(both.some(({ status }) => status === 'fulfilled')).toBe(true)
  await refused.replay('a', second!.id)
  await isEmpty()
  expect(told.taken).toEqual([letter('small'), large])
  expect(await all(refused)).toEqual([])
  await expect.poll(async () => (await state('content')).messages, patient).toBe(0)
  await expect(refused.replay('a', first!.id)).rejects.toEqual(code('LETTER_UNKNOWN'))
})

test('RFL1 replay: what is refused for good, was sent back, or has lost its body stays, and says why', async () => {
  const { mail, refused, told } = await refusing('OUTCOME_FORGED')
  await mail.send('a', letter('forged'))
  await isEmpty()
  told.refusal = 'CREW_UNKNOWN'
  told.returned = true
  await mail.send('a', letter('told'))
  await isEmpty()
  told.returned = false
  await mail.send('a', letter('x'.repeat(600_000)))
  await isEmpty()
  await link.manager.streams.purge(subjects.stream('content'))
  const reasons: string[] = []
  for (const { id } of await all(refused)) {
    const error: unknown = await refused.replay('a', id).catch((thrown: unknown) => thrown)
    expect(error).toEqual(code('LETTER_REFUSED'))
    reasons.push((error as Error).message)
  }
  expect(reasons).toEqual([
    expect.stringContaining('OUTCOME_FORGED'),
    expect.stringContaining('sender'),
    expect.stringContaining('not there whole'),
  ])
  expect(await refused.drop('a', (await all(refused))[0]!.id)).toBe(1)
  expect(await refused.drop('a')).toBe(2)
  await expect(refused.drop('a', 'm1-a')).rejects.toEqual(code('LETTER_UNKNOWN'))
})

test('ML5 hostile: a large letter for what is no shard is refused and kept, and the mail behind it goes on', async () => {
  const { mail, refused, told } = await refusing(null)
  const head = headers()
  for (const [name, value] of Object.entries({
    'Troupe-Body': 'f'.repeat(64),
    'Troupe-Bytes': '10',
    'Nats-Msg-Id': 'x',
  }))
    head.set(name, value)
  const [, namespace] = subjects.mails().split('.')
  link.connection.publish(`troupe.${namespace}.mail.${partitionOf('a')}.ü$.agent.x`, '', { headers: head })
  await mail.send('a', letter('good'))
  await expect.poll(() => told.taken, patient).toEqual([letter('good')])
  await isEmpty()
  expect(await all(refused, 'ü$')).toMatchObject([{ crew: 'ü$', code: 'ID_INVALID', kept: 'none' }])
  expect(await refused.drop('ü$')).toBe(1)
})
