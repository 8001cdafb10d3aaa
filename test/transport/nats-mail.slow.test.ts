import { randomBytes } from 'node:crypto'
import { headers } from '@nats-io/transport-node'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { BlobRef, encode } from '../../runtime/codec.js'
import type { Draft } from '../../runtime/envelope.js'
import { type ErrorCode, TroupeError } from '../../runtime/errors.js'
import { portion } from '../../transport/jetstream-pull.js'
import type { Whose } from '../../runtime/ownership.js'
import { type MailReceiver, NatsMail, type NatsMailOptions } from '../../transport/nats-mail.js'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { partitionOf, Subjects } from '../../transport/subjects.js'
import { type LinkProxy, startLinkProxy } from '../support/link-proxy.js'
import type { NatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'
import { code } from '../support/values.js'

let server: NatsServer
let link: NatsLink
let subjects: Subjects
let count = 0
const closing: (() => unknown)[] = []
useNats((nats) => {
  ;({ server, link } = nats)
})
beforeEach(() => {
  subjects = new Subjects(`mail${++count}`)
})
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close()
})

const patient = { timeout: 15_000, interval: 20 }
/** Two shards of one partition. */
const partition = partitionOf('a')
const near = Array.from({ length: 10_000 }, (_, index) => `s${index}`).find((id) => partitionOf(id) === partition)!
const letter = (text: string, more: Partial<Draft> = {}): Draft => ({
  from: 'tool/other',
  to: 'agent/writer',
  cause: '',
  body: { type: 'noted' },
  values: [text],
  ...more,
})
const error = (code: ErrorCode): TroupeError => new TroupeError(code, `it is ${code}`)

async function opened(options: Partial<NatsMailOptions> = {}): Promise<NatsMail> {
  const mail = await NatsMail.open({ link, subjects, ackWaitMs: 1_000, ...options })
  closing.push(() => mail.close())
  return mail
}

/** A connection through a proxy of its own. */
async function proxied(): Promise<{ readonly proxy: LinkProxy; readonly over: NatsLink }> {
  const proxy = await startLinkProxy(server.port)
  closing.push(() => proxy.close())
  const over = await connectNats({ servers: `127.0.0.1:${proxy.port}` })
  closing.push(() => over.connection.close())
  return { proxy, over }
}

interface Receiving {
  readonly mail: NatsMail
  /** `<shard>:<first value>` of what was taken, in order. */
  readonly taken: string[]
  /** The same of what was dead, with its code. */
  readonly dead: string[]
}

/** Receives the partition's mail. `take` may reject or wait; what it resolved for is taken. */
async function receiving(
  receiver: Partial<MailReceiver> = {},
  options: Partial<NatsMailOptions> = {},
): Promise<Receiving> {
  const mail = await opened(options)
  const [taken, dead]: [string[], string[]] = [[], []]
  const named = (shard: string, draft: Draft | null) => `${shard}:${(draft?.values[0] as string | undefined) ?? ''}`
  mail.receive({
    whose: () => 'own',
    ...receiver,
    take: async (shard, draft, deliveries, first) => {
      await receiver.take?.(shard, draft, deliveries, first)
      taken.push(named(shard, draft))
    },
    dead: async (shard, draft, why, reason, raw) => {
      await receiver.dead?.(shard, draft, why, reason, raw)
      dead.push(`${named(shard, draft)}:${why}`)
    },
  })
  mail.listen(new Set([partition]))
  return { mail, taken, dead }
}

const state = async (of: 'mail' | 'content') => (await link.manager.streams.info(subjects.stream(of))).state
const stored = async () => (await state('mail')).messages
/** Letters that were delivered and not answered, or are to come again. */
const pending = async () =>
  (await link.manager.consumers.info(subjects.stream('mail'), `p${partition}`)).num_ack_pending
const isEmpty = () => expect.poll(stored, patient).toBe(0)
const never = (): Promise<void> => new Promise(() => undefined)

test('ML1 send: what is stored survives a kill of the server, and what is sent meanwhile is stored after', async () => {
  const mail = await opened()
  await mail.send('a', letter('1'))
  await server.kill()
  const second = mail.send('a', letter('2'))
  await server.start()
  await second
  expect(await stored()).toBe(2)
  const { taken } = await receiving()
  await expect.poll(() => taken, patient).toEqual(['a:1', 'a:2'])
  await isEmpty()
})

test('ML1 send: a link that is cut after the letter went gives one letter', async () => {
  const { proxy, over } = await proxied()
  const mail = await opened({ link: over })
  proxy.onUp = (bytes) => {
    if (!bytes.includes('HPUB')) return
    proxy.onUp = () => undefined
    proxy.down = 'swallow'
    void expect
      .poll(stored, patient)
      .toBe(1)
      .then(() => {
        proxy.down = 'pass'
        proxy.cut()
      })
  }
  await mail.send('a', letter('1'))
  await mail.send('a', letter('2'))
  expect(await state('mail')).toMatchObject({ messages: 2, last_seq: 2 })
})

test('ML1 send: a full stream makes the sender wait, closing ends the wait with RUNTIME_CLOSED', async () => {
  const mail = await opened()
  await link.manager.streams.update(subjects.stream('mail'), { max_msgs: 1 })
  await mail.send('a', letter('1'))
  const waiting = mail.send('a', letter('2'))
  const { taken } = await receiving()
  await waiting
  await expect.poll(() => taken, patient).toEqual(['a:1', 'a:2'])
  await isEmpty()
  await link.manager.streams.update(subjects.stream('mail'), { subjects: ['elsewhere.>'] })
  const refused = expect(mail.send('a', letter('3'))).rejects.toEqual(code('RUNTIME_CLOSED'))
  mail.close()
  await refused
  await expect(mail.send('a', letter('4'))).rejects.toEqual(code('RUNTIME_CLOSED'))
})

test('send: names and sizes that cannot be are refused at once', async () => {
  const mail = await opened()
  await expect(mail.send('a.b', letter('1'))).rejects.toEqual(code('ID_INVALID'))
  await expect(mail.send('a', letter('x'.repeat(9 * 1024 * 1024)))).rejects.toEqual(code('ENVELOPE_TOO_LARGE'))
  expect(await stored()).toBe(0)
})

test('JST1 open: a stream that is there and no work queue is CONFIG_INVALID, one with other limits stays', async () => {
  const [name, subject] = [subjects.stream('mail'), subjects.mails()]
  await link.manager.streams.add({ name, subjects: [subject] })
  await expect(opened()).rejects.toEqual(code('CONFIG_INVALID'))
  await link.manager.streams.delete(name)
  await opened()
  await link.manager.streams.update(name, { max_bytes: 1_000_000 })
  await opened()
  expect((await link.manager.streams.info(name)).config.max_bytes).toBe(1_000_000)
})

test('ML6 taken: a letter that the server counts and does not have is not waited for; one that is there is', async () => {
  const { streams } = link.manager
  const info = async (...asked: Parameters<typeof streams.info>) => {
    const found = await streams.info(...asked)
    // As 2.9.10 does after some kills.
    return {
      ...found,
      state: { ...found.state, subjects: { [subjects.mail('b', 'crew/main')]: 1, ...found.state.subjects } },
    }
  }
  const lying = Object.create(streams, { info: { value: info } }) as typeof streams
  const manager = Object.create(link.manager, { streams: { value: lying } }) as typeof link.manager
  const mail = await opened({ link: { ...link, manager }, ackWaitMs: 60_000 })
  const begun = performance.now()
  await mail.taken('b')
  expect(performance.now() - begun).toBeLessThan(5_000)
  await mail.send('b', letter('one'))
  let isOver = false
  const waiting = mail.taken('b').then(() => (isOver = true))
  await expect.poll(stored, patient).toBe(1)
  expect(isOver).toBe(false)
  await link.manager.streams.purge(subjects.stream('mail'))
  await waiting
})

test('ML2 take: what is not taken when its receiver closes goes to another one', async () => {
  const begun: string[] = []
  const one = await receiving({
    take: (shard) => {
      begun.push(shard)
      return never()
    },
  })
  await one.mail.send('a', letter('1'))
  await expect.poll(() => begun, patient).toEqual(['a'])
  expect(await stored()).toBe(1)
  one.mail.close()
  const counts: number[] = []
  const two = await receiving({ take: async (_shard, _draft, deliveries) => void counts.push(deliveries) })
  await expect.poll(() => two.taken, patient).toEqual(['a:1'])
  expect(counts).toEqual([2])
  await isEmpty()
})

test('ML2 take: what is not taken when the link of its receiver is cut goes to another one', async () => {
  const { proxy, over } = await proxied()
  const begun: string[] = []
  const take = (shard: string) => {
    begun.push(shard)
    return never()
  }
  await receiving({ take }, { link: over })
  const mail = await opened()
  await mail.send('a', letter('1'))
  await expect.poll(() => begun, patient).toEqual(['a'])
  proxy.up = 'swallow'
  proxy.down = 'swallow'
  const two = await receiving()
  await expect.poll(() => two.taken, patient).toEqual(['a:1'])
  await isEmpty()
})

test('MLR3 take: one that takes longer than the server waits is taken once', async () => {
  let finish = (): void => undefined
  const counts: number[] = []
  const take = (_shard: string, _draft: Draft, deliveries: number) => {
    counts.push(deliveries)
    return new Promise<void>((resolve) => (finish = resolve))
  }
  const since = performance.now()
  const { mail, taken } = await receiving({ take })
  const other = await receiving({ take })
  await mail.send('a', letter('1'))
  await expect.poll(() => performance.now() - since, patient).toBeGreaterThan(3_000)
  expect(counts).toEqual([1])
  finish()
  await expect.poll(() => [...taken, ...other.taken], patient).toEqual(['a:1'])
  await isEmpty()
})

test('MLR1 order: letters of a shard are taken in order, also when every third is first refused', async () => {
  const refused = new Set<unknown>()
  const take = async (_shard: string, { values: [text] }: Draft) => {
    if (Number(text) % 3 !== 0 || refused.has(text)) return
    refused.add(text)
    throw error('STORE_FAILED')
  }
  const { mail, taken } = await receiving({ take })
  const texts = Array.from({ length: 12 }, (_, index) => String(index))
  for (const text of texts) await mail.send('a', letter(text))
  await expect.poll(() => taken.length, patient).toBe(12)
  expect(taken).toEqual(texts.map((text) => `a:${text}`))
  await isEmpty()
})

test('JP1 flood: of more letters of one shard than its credit a portion is kept, and all are taken in order', async () => {
  const sender = await opened()
  const texts = Array.from({ length: 5 * portion }, (_, index) => String(index))
  for (const text of texts) await sender.send('a', letter(text))
  let open = (): void => undefined
  const gate = new Promise<void>((resolve) => (open = resolve))
  const { taken } = await receiving({ take: () => gate })
  await expect.poll(pending, patient).toBe(portion)
  open()
  await expect.poll(() => taken.length, patient).toBe(texts.length)
  expect(taken).toEqual(texts.map((text) => `a:${text}`))
  await isEmpty()
})

test('MLR2 stuck: shards that get nothing done stop no other one of their partition, and go on in order', async () => {
  let isStuck = true
  const waiting: (() => void)[] = []
  const take = (shard: string) =>
    shard === near || !isStuck ? Promise.resolve() : new Promise<void>((resolve) => waiting.push(resolve))
  const { mail, taken } = await receiving({ take, creditPerShard: 4 })
  const texts = Array.from({ length: 300 }, (_, index) => String(index))
  for (const text of texts) await mail.send('a', letter(text))
  await mail.send(near, letter('1'))
  await expect.poll(() => taken, patient).toEqual([`${near}:1`])
  await mail.send(near, letter('2'))
  await expect.poll(() => taken, { ...patient, timeout: 1_000 }).toEqual([`${near}:1`, `${near}:2`])
  isStuck = false
  for (const resolve of waiting) resolve()
  await expect.poll(() => taken.length, { ...patient, timeout: 60_000 }).toBe(302)
  expect(taken.slice(2)).toEqual(texts.map((text) => `a:${text}`))
  await isEmpty()
})

test('ML3 elsewhere: a letter goes to the worker that owns its shard, or whose take does not refuse', async () => {
  const owns = new Set(['a'])
  const one = await receiving({ whose: (shard) => (owns.has(shard) ? 'own' : 'other') })
  const two = await receiving({
    take: async (shard) => {
      if (owns.has(shard)) throw error('SHARD_ELSEWHERE')
    },
  })
  for (const text of ['1', '2', '3']) {
    await one.mail.send('a', letter(text))
    await one.mail.send(near, letter(text))
  }
  await isEmpty()
  expect(one.taken.sort()).toEqual(['a:1', 'a:2', 'a:3'])
  expect(two.taken.sort()).toEqual([`${near}:1`, `${near}:2`, `${near}:3`].sort())
})

test('ML3 elsewhere: of readers that ask at the same time no one gets each time what is for the other', async () => {
  const owned = new Set<string>()
  let asked = 0
  const whose =
    (own: string) =>
    (shard: string): Whose => {
      asked += 1
      return !owned.has(shard) ? 'nobody' : shard === own ? 'own' : 'other'
    }
  const one = await receiving({ whose: whose(near) })
  const two = await receiving({ whose: whose('a') })
  // Both ask anew as soon as it is back, and from then on in step.
  await server.kill()
  await server.start()
  await one.mail.send('a', letter('1'))
  await one.mail.send(near, letter('1'))
  // By then they come again more seldom than anybody asks.
  await expect.poll(() => asked, patient).toBeGreaterThanOrEqual(14)
  owned.add('a').add(near)
  await expect.poll(() => [...one.taken, ...two.taken].length, { timeout: 12_000, interval: 20 }).toBe(2)
  await isEmpty()
})

test('ML3 nobody: letters of a shard without owner wait, and come when it has one', async () => {
  let isOwned = false
  let asked = 0
  const whose = async (): Promise<Whose> => (++asked > 0 && isOwned ? 'own' : 'nobody')
  const { mail, taken } = await receiving({ whose })
  for (const text of ['1', '2']) await mail.send('a', letter(text))
  await expect.poll(() => asked, patient).toBeGreaterThan(2)
  expect(taken).toEqual([])
  isOwned = true
  await expect.poll(() => taken, patient).toEqual(['a:1', 'a:2'])
  await isEmpty()
})

test('parked: letters of a stopped shard are counted, the others go on', async () => {
  let calls = 0
  const take = async (shard: string) => {
    if (shard !== 'a') return
    calls++
    throw error('SHARD_STOPPED')
  }
  const { mail, taken } = await receiving({ take })
  for (const text of ['1', '2', '3']) await mail.send('a', letter(text))
  await mail.send(near, letter('1'))
  await expect.poll(() => [taken, mail.parked], patient).toEqual([[`${near}:1`], 3])
  expect(calls).toBe(1)
  await expect.poll(stored, patient).toBe(3)
})

test('ML4 large: the body comes back equal and is gone afterwards, of two of the same content too', async () => {
  const content = randomBytes(600_000).toString('hex')
  const draft = letter(content, {
    values: [content, new BlobRef('0'.repeat(64), 70_000)],
    body: { type: 'noted', at: 1 },
  })
  const sender = await opened()
  await sender.send('a', draft)
  await sender.send('a', draft)
  expect((await state('content')).messages).toBe(6)
  expect((await state('mail')).bytes).toBeLessThan(2_000)
  const got: Draft[] = []
  let refused = false
  const { taken } = await receiving({
    take: async (_shard, each) => {
      if (!refused) {
        refused = true
        throw new TroupeError('MAILBOX_FULL', 'later', { retryable: true })
      }
      got.push(each)
    },
  })
  await expect.poll(() => taken.length, patient).toBe(2)
  expect(got).toEqual([draft, draft])
  expect(got[0]!.values[1]).toBeInstanceOf(BlobRef)
  await isEmpty()
  await expect.poll(async () => (await state('content')).messages, patient).toBe(0)
})

test('LTR1 JSON: an outcome of a tool worker may be written in it, and nothing else', async () => {
  const { taken, dead } = await receiving()
  const outcome = letter('far', { from: 'port/tool', to: 'outcome/t' })
  link.connection.publish(subjects.mail('a', 'agent/writer'), JSON.stringify(letter('near')))
  link.connection.publish(subjects.mail('a', 'outcome/other'), JSON.stringify(outcome))
  link.connection.publish(subjects.mail('a', 'outcome/t'), JSON.stringify(outcome))
  await expect.poll(() => taken, patient).toEqual(['a:far'])
  expect(dead).toHaveLength(2)
})

test('ML5 LTR1 garbage: what is no letter of its subject is a dead letter, and the next one comes through', async () => {
  const told: unknown[] = []
  const watch = link.connection.subscribe(subjects.dead(), {
    callback: (_error, message) => void told.push(message.json()),
  })
  closing.push(() => watch.unsubscribe())
  const { mail, taken, dead } = await receiving()
  const subject = subjects.mail('a', 'agent/writer')
  const head = (fields: Record<string, string>) => {
    const made = headers()
    for (const [name, value] of Object.entries(fields)) made.set(name, value)
    return { headers: made }
  }
  const hash = 'f'.repeat(64)
  const publish = link.connection.publish.bind(link.connection)
  publish(subject, randomBytes(100))
  publish(subject, '')
  publish(subject, encode({ ...letter('1'), extra: 1 }))
  publish(subject, encode({ ...letter('1'), values: [new BlobRef('../x', -1)] }))
  publish(subject, encode(letter('1', { to: 'agent/other' })))
  publish(`troupe.mail${count}.mail.${partition}.x`, encode(letter('1')))
  publish(subject, '', head({ 'Troupe-Body': hash, 'Troupe-Bytes': '9999999', 'Nats-Msg-Id': 'one' }))
  publish(subject, '', head({ 'Troupe-Body': hash, 'Troupe-Bytes': 'NaN', 'Nats-Msg-Id': 'two' }))
  publish(subject, '', head({ 'Troupe-Body': hash, 'Troupe-Bytes': '10', 'Nats-Msg-Id': '*.>' }))
  publish(subject, '', head({ 'Troupe-Body': hash, 'Troupe-Bytes': '10', 'Nats-Msg-Id': 'nowhere' }))
  await mail.send('a', letter('good'))
  await expect.poll(() => taken, patient).toEqual(['a:good'])
  await isEmpty()
  const codes = dead.map((each) => each.split(':').at(-1))
  expect(codes.sort()).toEqual(['BLOB_MISSING', ...Array<string>(8).fill('ENVELOPE_INVALID'), 'ENVELOPE_TOO_LARGE'])
  expect(told).toHaveLength(10)
  expect(told[0]).toEqual({ shard: 'a', code: 'ENVELOPE_INVALID', reason: expect.any(String), at: expect.any(Number) })
})

test('ML5 refused: what a shard will never take is dead once somebody keeps it, and comes again until then', async () => {
  const refusals: Record<string, ErrorCode> = {
    forged: 'OUTCOME_FORGED',
    refused: 'MESSAGE_REFUSED',
    invalid: 'ENVELOPE_INVALID',
    unknown: 'CREW_UNKNOWN',
  }
  let kept = 0
  const { mail, taken, dead } = await receiving({
    take: async (_shard, { values: [text] }) => {
      const refusal = refusals[text as string]
      if (refusal !== undefined) throw error(refusal)
    },
    dead: async () => {
      if (kept++ === 0) throw error('STORE_FULL')
    },
  })
  for (const text of [...Object.keys(refusals), 'fine']) await mail.send('a', letter(text))
  await expect.poll(() => taken, patient).toEqual(['a:fine'])
  expect(dead).toEqual(Object.entries(refusals).map(([text, why]) => `a:${text}:${why}`))
  expect(kept).toBe(5)
  await isEmpty()
})

test('LTR2 letter: what was sent comes as it was', async () => {
  const draft = letter('ü', {
    from: 'port/tool',
    cause: '12-3',
    to: 'tool/a strange/name.*>',
    body: { type: 'tool.succeeded', nested: { list: [1, null, 'x', { __proto__x: true }] }, zero: 0 },
    values: ['', 'two', new BlobRef('ab'.repeat(32), 3)],
  })
  const got: Draft[] = []
  const { mail, taken } = await receiving({ take: async (_shard, each) => void got.push(each) })
  await mail.send('a', draft)
  await expect.poll(() => taken.length, patient).toBe(1)
  expect(got).toEqual([draft])
})

test('drain: what was begun is finished, what waits is given back at once', async () => {
  const texts = Array.from({ length: 2 * portion }, (_, index) => String(index))
  const sender = await opened({ ackWaitMs: 60_000 })
  for (const text of texts) await sender.send('a', letter(text))
  const begun: (() => void)[] = []
  const take = () => new Promise<void>((resolve) => begun.push(resolve))
  const one = await receiving({ take }, { ackWaitMs: 60_000 })
  await expect.poll(() => begun.length, patient).toBe(1)
  const drained = one.mail.drain()
  begun[0]!()
  await drained
  expect(one.taken).toEqual(['a:0'])
  const two = await receiving({}, { ackWaitMs: 60_000 })
  await expect.poll(() => two.taken.length, patient).toBe(texts.length - 1)
  await isEmpty()
})

test('JP2 drain: a letter that is on its way is given back at once', async () => {
  const { proxy, over } = await proxied()
  const one = await receiving({}, { link: over, ackWaitMs: 60_000 })
  const sender = await opened({ ackWaitMs: 60_000 })
  await sender.send('a', letter('1'))
  await expect.poll(() => one.taken, patient).toEqual(['a:1'])
  proxy.down = 'hold'
  await sender.send('a', letter('2'))
  await expect.poll(pending, patient).toBe(1)
  const drained = one.mail.drain()
  proxy.down = 'pass'
  await drained
  const two = await receiving({}, { ackWaitMs: 60_000 })
  await expect.poll(() => two.taken, patient).toEqual(['a:2'])
  expect(one.taken).toEqual(['a:1'])
})

test('listen: exactly these partitions are read', async () => {
  const { mail, taken } = await receiving()
  mail.listen(new Set([(partition + 1) % 64]))
  const other = await receiving({ whose: (shard) => (shard === 'a' ? 'own' : 'other') })
  await mail.send('a', letter('1'))
  await expect.poll(() => other.taken, patient).toEqual(['a:1'])
  await other.mail.drain()
  await mail.send('a', letter('2'))
  mail.listen(new Set([partition]))
  await expect.poll(() => taken, patient).toEqual(['a:2'])
  await isEmpty()
})

test('JP3 reading: goes on after a cut link, a killed server and a deleted consumer', async () => {
  const { proxy, over } = await proxied()
  const { taken } = await receiving({}, { link: over })
  const sender = await opened()
  const arrives = async (text: string) => {
    await sender.send('a', letter(text))
    await expect.poll(() => taken.at(-1), patient).toBe(`a:${text}`)
  }
  await arrives('1')
  proxy.cut()
  await arrives('2')
  await server.kill()
  await server.start()
  await arrives('3')
  await link.manager.consumers.delete(subjects.stream('mail'), `p${partition}`)
  await arrives('4')
  await isEmpty()
})
