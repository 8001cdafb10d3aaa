import { expect, test } from 'vitest'
import type { Draft } from '../../runtime/envelope.js'
import { nothingPending } from '../../runtime/journal.js'
import { createJetStreamJournal } from '../../transport/jetstream-journal.js'
import { ensureStream } from '../../transport/jetstream-stream.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { NatsMail } from '../../transport/nats-mail.js'
import { readSettings } from '../../transport/nats-settings.js'
import { NatsSurvey } from '../../transport/nats-survey.js'
import { Subjects } from '../../transport/subjects.js'
import { useNats } from '../support/use-nats.js'

let link: NatsLink
useNats((nats) => {
  link = nats.link
})

const clock = { now: () => Date.now(), monotonic: () => performance.now(), after: () => () => undefined }
const ownership = { clock, workers: () => [], ownerOf: (shard: string) => `owner of ${shard}` }
const letter: Draft = { from: 'a/b', to: 'c/d', cause: 'x', body: { type: 'x' }, values: [] }

test('NSV1 NST1 survey: what waits is told by crew, with requests for those with mail only', async () => {
  const subjects = new Subjects('survey')
  const journal = createJetStreamJournal({ link, subjects, worker: 'w' })
  await journal.open()
  const mail = await NatsMail.open({ link, subjects })
  const survey = new NatsSurvey({ link, subjects, ownership })
  expect(await survey.cluster()).toEqual({ server: link.version, durability: 'process', replicas: 1, workers: [] })
  for (const shard of ['late', 'late', 'later']) await mail.send(shard, letter)
  const asked = link.connection.stats().outMsgs
  const place = await survey.places()
  // What waits, and the oldest of two crews.
  expect(link.connection.stats().outMsgs - asked).toBe(3)
  const head = (shard: string) => ({
    shard,
    sequence: 1,
    hash: new Uint8Array(32),
    pending: nothingPending,
    removed: false,
  })
  expect(place(head('late'))).toMatchObject({ owner: 'owner of late', letters: 2, lagMs: expect.any(Number) })
  expect(place(head('idle'))).toEqual({ owner: 'owner of idle', letters: 0, lagMs: null })
  expect(place(head('late')).lagMs).toBeLessThan(60_000)
  mail.close()
  await journal.close()
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
