import { jetstream } from '@nats-io/jetstream'
import { expect, test } from 'vitest'
import type { Draft } from '../../runtime/envelope.js'
import { nothingPending, type ShardHead } from '../../runtime/journal.js'
import { createLog } from '../../runtime/log.js'
import { createJetStreamJournal } from '../../transport/jetstream-journal.js'
import { ensureStream } from '../../transport/jetstream-stream.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { NatsEvents } from '../../transport/nats-events.js'
import { NatsMail } from '../../transport/nats-mail.js'
import { NatsRefused } from '../../transport/nats-refused.js'
import { readSettings } from '../../transport/nats-settings.js'
import { NatsSurvey } from '../../transport/nats-survey.js'
import { storedEvents } from '../../transport/stored-events.js'
import { Subjects } from '../../transport/subjects.js'
import { EventSource } from '../support/event-source.js'
import { useNats } from '../support/use-nats.js'

let link: NatsLink
useNats((nats) => {
  link = nats.link
})

const clock = { now: () => Date.now(), monotonic: () => performance.now(), after: () => () => undefined }
const ownership = { clock, workers: () => [], ownerOf: (shard: string) => `owner of ${shard}` }
const letter: Draft = { from: 'a/b', to: 'c/d', cause: 'x', body: { type: 'x' }, values: [] }

const head = (shard: string, more: Partial<ShardHead> = {}): ShardHead => ({
  ...{ shard, sequence: 1, hash: new Uint8Array(32), pending: nothingPending, removed: false },
  ...more,
})

test('NSV1 NST1 survey: what waits is told by crew, with requests for those with mail only', async () => {
  const subjects = new Subjects('survey')
  const journal = createJetStreamJournal({ link, subjects, worker: 'w' })
  await journal.open()
  const mail = await NatsMail.open({ link, subjects })
  await NatsRefused.open({ link, subjects, send: async () => undefined })
  const survey = new NatsSurvey({ link, subjects, ownership })
  const told = { server: link.version, durability: 'process', replicas: 1, refused: 0, workers: [] }
  expect(await survey.cluster()).toEqual(told)
  for (const shard of ['late', 'late', 'later']) await mail.send(shard, letter)
  const asked = link.connection.stats().outMsgs
  const place = await survey.places()
  // What waits, the oldest of two crews, and the event stream, which is not there.
  expect(link.connection.stats().outMsgs - asked).toBe(4)
  expect(place(head('late'))).toMatchObject({ owner: 'owner of late', letters: 2, lagMs: expect.any(Number) })
  expect(place(head('idle'))).toEqual({ owner: 'owner of idle', letters: 0, lagMs: null, eventsBehind: null })
  expect((await survey.places('later'))(head('late'))).toMatchObject({ letters: 0, lagMs: null })
  expect(place(head('late')).lagMs).toBeLessThan(60_000)
  mail.close()
  await journal.close()
})

test('NSV1 SEV1 survey: how far each crew’s events are behind is told, with requests that do not grow with the crews', async () => {
  const subjects = new Subjects('behind')
  const source = await EventSource.open()
  const log = createLog('silent')
  const events = await NatsEvents.open({ link, subjects, journal: source.journal, log, maxAgeMs: 60_000 })
  await NatsMail.open({ link, subjects })
  const crews = Array.from({ length: 300 }, (_, index) => `crew${index}`)
  for (const crew of crews) await source.commit(crew, {}, events)
  await source.commit('crew0', {}, events)
  await events.flush()
  const survey = new NatsSurvey({ link, subjects, ownership })
  const asked = link.connection.stats().outMsgs
  const place = await survey.places()
  // What waits, what the stream keeps; a consumer that is made, read and deleted.
  expect(link.connection.stats().outMsgs - asked).toBeLessThanOrEqual(6)
  const behind = (shard: string, more: Partial<ShardHead>) => place(head(shard, more)).eventsBehind
  expect(behind('crew0', { lastEvent: 2 })).toBe(0)
  expect(behind('crew1', { lastEvent: 4 })).toBe(3)
  expect(behind('crew2', {})).toBe(0)
  // Read before it was stored, or never stored: a journal may be told of too late, the stream never too early.
  expect(behind('crew0', { lastEvent: 1 })).toBe(0)
  expect(behind('unseen', { lastEvent: 5 })).toBe(5)
  expect(behind('unseen', { lastEvent: 5, storedAt: Date.now() - 120_000 })).toBe(0)
  expect((await survey.places('crew1'))(head('crew1', { lastEvent: 3 })).eventsBehind).toBe(2)
  const most = await storedEvents(link, jetstream(link.connection), subjects, { most: 10 })
  expect([most.isWhole, most.last.size]).toEqual([false, 10])
  await events.close()
})

test('NST1 settings: a stream that is not there is STORE_FAILED', async () => {
  await expect(readSettings(link, new Subjects('nowhere'))).rejects.toMatchObject({ code: 'STORE_FAILED' })
})

test('JST1 JST2 streams: what the server did not take is noticed, and one that is otherwise is refused with the setting', async () => {
  // 2.9 knows no time to live of single messages, and says nothing when it is asked for it.
  const config = { name: 'probe', subjects: ['probe.>'] }
  const asked = ensureStream(link, { ...config, allow_msg_ttl: true })
  if (link.version.startsWith('2.9.'))
    await expect(asked).rejects.toMatchObject({
      code: 'NATS_UNSUPPORTED',
      message: expect.stringContaining('allow_msg_ttl'),
    })
  else await asked
  expect(await ensureStream(link, config)).toMatchObject({ num_replicas: 1 })
  await expect(ensureStream(link, { ...config, allow_direct: true })).rejects.toMatchObject({
    code: 'CONFIG_INVALID',
    message: expect.stringContaining('allow_direct'),
  })
})
