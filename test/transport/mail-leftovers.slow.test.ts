import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Draft } from '../../runtime/envelope.js'
import { TroupeError } from '../../runtime/errors.js'
import { NatsMail, type NatsMailOptions } from '../../transport/nats-mail.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { partitionOf, Subjects } from '../../transport/subjects.js'
import type { NatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'

let server: NatsServer
let link: NatsLink
let subjects: Subjects
let count = 0
const open: NatsMail[] = []
useNats((nats) => {
  ;({ server, link } = nats)
})
beforeEach(() => {
  subjects = new Subjects(`leftovers${++count}`)
})
afterEach(() => {
  for (const mail of open.splice(0)) mail.close()
})

/** A letter for a shard that is stopped stays away for half a minute. */
const patient = { timeout: 45_000, interval: 20 }
/** Two shards of one partition. */
const partition = partitionOf('a')
const near = Array.from({ length: 10_000 }, (_, index) => `s${index}`).find((id) => partitionOf(id) === partition)!
const letter = (text: string): Draft => ({
  ...{ from: 'tool/other', to: 'agent/writer', cause: '', body: { type: 'noted' }, values: [text] },
})

/** Receives the partition's mail. */
async function receiving(take: (shard: string) => Promise<void>, options: Partial<NatsMailOptions> = {}) {
  const mail = await NatsMail.open({ link, subjects, ackWaitMs: 1_000, ...options })
  open.push(mail)
  const taken: string[] = []
  mail.receive({
    whose: () => 'own',
    take: async (shard, draft) => {
      await take(shard)
      taken.push(`${shard}:${draft.values[0] as string}`)
    },
    dead: () => Promise.reject(new Error('nothing is refused here')),
  })
  mail.listen(new Set([partition]))
  return { mail, taken }
}

const stored = async () => (await link.manager.streams.info(subjects.stream('mail'))).state.messages
const pending = async () =>
  (await link.manager.consumers.info(subjects.stream('mail'), `p${partition}`)).num_ack_pending
const isEmpty = () => expect.poll(stored, patient).toBe(0)

test('MLO1 leftovers: what a killed server forgot to remove goes, what was not acknowledged stays', async () => {
  let isParked = true
  const { mail, taken } = await receiving(async (shard) => {
    if (shard === near && isParked) throw new TroupeError('SHARD_STOPPED', 'it is stopped')
  })
  // What stays before them keeps the server from dropping the whole file that they are in.
  await mail.send(near, letter('parked'))
  // It may have written down by then what it removed.
  for (let time = 1; time === 1 || ((await stored()) === 1 && time < 20); time += 1) {
    for (let index = 0; index < 20; index += 1) await mail.send('a', letter(`${time} ${index}`))
    await expect.poll(() => taken.some((each) => each === `a:${time} 19`), patient).toBe(true)
    await expect.poll(stored, patient).toBe(1)
    await server.kill()
    await server.start()
  }
  expect(await stored()).toBeGreaterThan(1)
  expect(taken.filter((each) => each.startsWith(near))).toEqual([])
  // What lies behind a letter that is not acknowledged may wait for it.
  isParked = false
  await isEmpty()
  expect(taken.filter((each) => each.startsWith(near))).toEqual([`${near}:parked`])
})

test('MLO2 leftovers: a consumer that waits for what is not there any more is made anew, and what is stored comes again', async () => {
  const patience = { ackWaitMs: 60_000, stuckMs: 1_000 }
  const first = await receiving(() => new Promise(() => undefined), patience)
  await first.mail.send('a', letter('gone'))
  await first.mail.send(near, letter('kept'))
  await expect.poll(pending, patient).toBe(2)
  await link.manager.streams.deleteMessage(subjects.stream('mail'), 1)
  // The server would wait a minute for its answer.
  first.mail.close()
  const { taken } = await receiving(async () => undefined, patience)
  await isEmpty()
  expect(taken).toEqual([`${near}:kept`])
  await expect.poll(pending, patient).toBe(0)
})
