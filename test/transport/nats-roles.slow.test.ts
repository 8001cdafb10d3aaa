import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { z } from 'zod'
import { reply, startScriptedModel } from '../../actors/scripted-model.js'
import type { TroupeEvent } from '../../runtime/events.js'
import {
  createRuntime,
  type Crew,
  defineAgent,
  defineCrew,
  defineTool,
  type DistributedRuntime,
} from '../../runtime/index.js'
import { errors } from '@nats-io/transport-node'
import { newKey } from '../../transport/nats-config.js'
import { connectNats } from '../../transport/nats-connection.js'
import { createDoorClient } from '../../transport/nats-door-client.js'
import { followEvents } from '../../transport/nats-follower.js'
import { NatsMail } from '../../transport/nats-mail.js'
import { Subjects } from '../../transport/subjects.js'
import { startRoleServer, type RoleServer } from '../support/role-server.js'

let roles: RoleServer
let model: Awaited<ReturnType<typeof startScriptedModel>>
beforeAll(async () => {
  roles = await startRoleServer()
  model = await startScriptedModel(({ messages }) =>
    messages.at(-1)?.role === 'tool' ? 'All is known.' : reply.call('lookup', { topic: 'x' }),
  )
})
afterAll(async () => {
  await model.close()
  await roles.server.dispose()
})

const lookup = defineTool({
  name: 'lookup',
  description: 'Looks a topic up.',
  input: z.object({ topic: z.string() }),
  effect: 'idempotent',
  run: (_, { progress }) => {
    progress('half')
    return 'x'.repeat(300_000)
  },
  maxBytes: 400_000,
})
const desk: Crew = defineCrew({
  name: 'desk',
  agents: { clerk: defineAgent({ model: 'scripted:m', tools: [lookup], instructions: 'Answer.' }) },
  lead: 'clerk',
})

async function join(user: string, more: object = {}): Promise<DistributedRuntime> {
  const runtime = await createRuntime({
    nats: { ...roles.as(user), leaseMs: 1_000, ...more },
    providers: { scripted: { baseURL: model.baseURL } },
  })
  onTestFinished(() => runtime.close({ graceMs: 0 }))
  return runtime as DistributedRuntime
}
const workerOf = async (name: string): Promise<DistributedRuntime> => {
  const worker = await join('worker', { worker: name })
  await worker.offer(desk)
  return worker
}
const clientOf = (user: string): Promise<DistributedRuntime> => join(user, { role: 'client' })

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = []
  for await (const item of items) found.push(item)
  return found
}

describe('roles at work', () => {
  test('ROL1 ROL2 ROL3 roles: crews are run, moved, watched and removed without a right too few', async () => {
    const [one, two] = [await workerOf('w1'), await workerOf('w2')]
    const ada = await clientOf('ada')
    const crew = await ada.spawn(desk, { id: 'q3' })
    const run = crew.start('go')
    const types: string[] = []
    for await (const { type } of run.events) types.push(type)
    expect(types.at(-1)).toBe('troupe.run.finished')
    expect(await run.result).toMatchObject({ output: 'All is known.' })
    const owner = await crew.move('w1')
    expect([owner, await crew.move('w2'), await crew.move()]).toEqual(['w1', 'w2', expect.stringMatching(/^w[12]$/)])
    await crew.pause()
    await crew.resume()
    expect((await all(ada.list())).map(({ id }) => id)).toEqual(['q3'])
    expect((await all(ada.journal('q3'))).length).toBeGreaterThan(5)
    expect(await ada.show('q3')).toMatchObject({ crew: 'desk' })
    expect(await ada.cluster()).toMatchObject({ refused: 0, workers: [{ worker: 'w1' }, { worker: 'w2' }] })
    // What is no letter, as a worker may send it.
    const inside = await connectNats(roles.as('worker'))
    onTestFinished(() => inside.connection.close())
    inside.connection.publish(new Subjects('shop').mail('q3', 'agent/x'), 'no letter')
    await expect.poll(async () => (await ada.cluster())?.refused).toBe(1)
    const [refused] = await all(ada.refusedLetters.list('q3'))
    expect(await ada.refusedLetters.show('q3', refused!.id)).toMatchObject({ code: 'ENVELOPE_INVALID', crew: 'q3' })
    await expect(ada.refusedLetters.replay('q3', refused!.id)).rejects.toMatchObject({ code: 'LETTER_REFUSED' })
    expect(await ada.refusedLetters.drop('q3')).toBe(1)
    // A worker uses crews, too.
    expect(await (await two.spawn(desk, { id: 'q4' })).ask('go')).toMatchObject({ output: 'All is known.' })
    await one.close()
    expect(await crew.ask('again')).toMatchObject({ output: 'All is known.' })
    const watching = await connectNats(roles.as('observer'))
    onTestFinished(() => watching.connection.close())
    const seen: TroupeEvent[] = []
    for await (const { event } of followEvents({
      link: watching,
      subjects: new Subjects('shop'),
      since: 'all',
      live: true,
    })) {
      seen.push(event)
      if (event.type === 'troupe.run.finished' && event.source.includes('/q4/')) break
    }
    const late = new Date(Date.parse(seen.at(-1)!.time) - 1).toISOString()
    for await (const { event } of followEvents({ link: watching, subjects: new Subjects('shop'), since: late })) {
      expect(event.time >= late).toBe(true)
      break
    }
    expect(await ada.repair('q3', { acceptLoss: true })).toMatchObject({ damage: null, repaired: false })
    await ada.remove('q3')
    expect(roles.refused()).toEqual([])
  })

  test('ROL3 roles: a letter too large for a message goes from worker to worker', async () => {
    const subjects = new Subjects('shop')
    const [sender, reader] = [await connectNats(roles.as('worker')), await connectNats(roles.as('worker'))]
    const [from, to] = [
      await NatsMail.open({ link: sender, subjects }),
      await NatsMail.open({ link: reader, subjects }),
    ]
    const taken: string[] = []
    to.receive({
      whose: () => 'own',
      take: async (_, { values }) => void taken.push(values[0] as string),
      dead: async () => undefined,
    })
    to.listen(new Set(Array.from({ length: 64 }, (_, partition) => partition)))
    const values = ['x'.repeat(1_500_000)]
    await from.send('q9', { from: 'port/tool', to: 'agent/x', cause: 'e', body: { type: 'tool.ok' }, values })
    await expect.poll(() => taken.length).toBe(1)
    await from.taken('q9')
    await to.drain()
    for (const each of [from, to]) each.close()
    for (const { connection } of [sender, reader]) await connection.close()
    expect(roles.refused()).toEqual([])
  })
})

/** Who may: w shard workers, t the tool worker `t1`, c the client `ada`, o observers; - nobody. */
type Who = string
/** [what, subject, who publishes, who subscribes]. Everything that is not said here is in the last rows, for nobody. */
const matrix: readonly (readonly [what: string, subject: string, publish: Who, subscribe: Who])[] = [
  ['own door', 'troupe.shop.in.ada.q3', 'c', 'w'],
  ['own question', 'troupe.shop.ask.ada', 'c', 'w'],
  ['door of another client', 'troupe.shop.in.eve.q3', '-', 'w'],
  ['question of another client', 'troupe.shop.ask.eve', '-', 'w'],
  ['door of a worker', 'troupe.shop.in.worker.q3', 'w', 'w'],
  ['all doors', 'troupe.shop.in.*.*', '-', 'w'],
  ['journal', 'troupe.shop.journal.7.q3', 'w', '-'],
  ['content', 'troupe.shop.content.q3.blob.k.0', 'w', '-'],
  ['body of a large letter', 'troupe.shop.content.q3.letter.k.0', 'wt', '-'],
  ['mail', 'troupe.shop.mail.7.q3.crew.crew', 'w', '-'],
  ['outcome of a tool', 'troupe.shop.mail.7.q3.outcome.t1', 'wt', '-'],
  ['outcome of another’s tool', 'troupe.shop.mail.7.q3.outcome.t2', 'w', '-'],
  ['event', 'troupe.shop.event.q3', 'w', 'o'],
  ['live event', 'troupe.shop.live.q3.agent.x.model.delta', 'w', 'o'],
  ['whether anybody watches', 'troupe.shop.live.q3.watch', 'w', 'o'],
  ['traced message', 'troupe.shop.msg.q3.agent.x', 'w', 'o'],
  ['all events', 'troupe.shop.event.>', 'w', 'o'],
  ['request to a worker', 'troupe.shop.worker.w1', 'w', 'w'],
  ['request to a tool worker', 'troupe.shop.worker.t1', 'w', 'wt'],
  ['port work offered', 'troupe.shop.tool.lookup', 'w', 't'],
  ['port work of a tool worker', 'troupe.shop.start.t1', 'w', 't'],
  ['port work of another', 'troupe.shop.start.t2', 'w', '-'],
  ['own progress', 'troupe.shop.progress.w1.t1', 't', 'w'],
  ['another’s progress', 'troupe.shop.progress.w1.t2', '-', 'w'],
  ['dead letter', 'troupe.shop.dead', 'w', '-'],
  ['refused letter', 'troupe.shop.dead.q3.m1-x', 'w', '-'],
  ['all refused letters', 'troupe.shop.dead.>', '-', '-'],
  ['a refused letter, read', '$JS.API.STREAM.MSG.GET.troupe_shop_dead', 'w', '-'],
  ['the list of refused letters', '$JS.API.CONSUMER.CREATE.troupe_shop_dead', 'w', '-'],
  ['refused letters, counted', '$JS.API.STREAM.INFO.troupe_shop_dead', 'w', '-'],
  ['dropping refused letters', '$JS.API.STREAM.PURGE.troupe_shop_dead', 'w', '-'],
  ['deleting a refused letter', '$JS.API.STREAM.MSG.DELETE.troupe_shop_dead', '-', '-'],
  ['lease', '$KV.troupe_shop_workers.w1', 'w', '-'],
  ['lease of a tool worker', '$KV.troupe_shop_workers.t1', 'wt', '-'],
  ['pin', '$KV.troupe_shop_pins.q3', 'w', '-'],
  ['account', '$JS.API.INFO', 'wto', '-'],
  ['reading events', '$JS.API.CONSUMER.CREATE.troupe_shop_events', 'ow', '-'],
  ['reading the journal', '$JS.API.CONSUMER.CREATE.troupe_shop_journal', 'w', '-'],
  ['a message of the journal', '$JS.API.STREAM.MSG.GET.troupe_shop_journal', 'w', '-'],
  ['a message of the journal, direct', '$JS.API.DIRECT.GET.troupe_shop_journal', 'w', '-'],
  ['the last message of a crew', '$JS.API.DIRECT.GET.troupe_shop_journal.troupe.shop.journal.25.q3', 'w', '-'],
  ['a piece of the content, direct', '$JS.API.DIRECT.GET.troupe_shop_content.troupe.shop.content.q3', 'w', '-'],
  ['a message of the content', '$JS.API.STREAM.MSG.GET.troupe_shop_content', 'w', '-'],
  ['leases, direct', '$JS.API.DIRECT.GET.KV_troupe_shop_workers.$KV.troupe_shop_workers.w1', 'wt', '-'],
  ['how far mail is read', '$JS.API.CONSUMER.INFO.troupe_shop_mail.p7', 'w', '-'],
  ['making the reading of mail anew', '$JS.API.CONSUMER.DELETE.troupe_shop_mail.p7', 'w', '-'],
  ['deleting a letter', '$JS.API.STREAM.MSG.DELETE.troupe_shop_mail', 'w', '-'],
  ['reading mail', '$JS.API.CONSUMER.MSG.NEXT.troupe_shop_mail.p7', 'w', '-'],
  ['acknowledging mail', '$JS.ACK.troupe_shop_mail.p7.1.1.1.1.0', 'w', '-'],
  ['acknowledging events', '$JS.ACK.troupe_shop_events.x.1.1.1.1.0', '-', '-'],
  ['making the journal', '$JS.API.STREAM.CREATE.troupe_shop_journal', 'w', '-'],
  ['purging the journal', '$JS.API.STREAM.PURGE.troupe_shop_journal', 'w', '-'],
  ['purging events', '$JS.API.STREAM.PURGE.troupe_shop_events', '-', '-'],
  ['deleting the journal', '$JS.API.STREAM.DELETE.troupe_shop_journal', '-', '-'],
  ['deleting a message', '$JS.API.STREAM.MSG.DELETE.troupe_shop_journal', '-', '-'],
  ['changing the journal', '$JS.API.STREAM.UPDATE.troupe_shop_journal', '-', '-'],
  ['restoring the journal', '$JS.API.STREAM.RESTORE.troupe_shop_journal', '-', '-'],
  ['the list of streams', '$JS.API.STREAM.NAMES', '-', '-'],
  ['another stream', '$JS.API.STREAM.CREATE.mine', '-', '-'],
  ['another namespace’s stream', '$JS.API.STREAM.INFO.troupe_other_journal', '-', '-'],
  ['another namespace’s door', 'troupe.other.in.ada.q3', '-', '-'],
  ['another namespace’s journal', 'troupe.other.journal.7.q3', '-', '-'],
  ['inbox of ada', '_INBOX_ada.x', 'w', 'c'],
  ['inbox of eve', '_INBOX_eve.x', 'w', '-'],
  ['inbox of the workers', '_INBOX_worker.x', 'w', 'w'],
  ['inbox of a tool worker', '_INBOX_t1.x', '-', 't'],
  ['inbox of observers', '_INBOX_observer.x', '-', 'o'],
  ['the common inbox', '_INBOX.x', '-', '-'],
  ['advisories', '$JS.EVENT.ADVISORY.API', '-', '-'],
  ['the system', '$SYS.REQ.SERVER.PING', '-', '-'],
  ['everything of ours', 'troupe.>', '-', '-'],
  ['everything', '>', '-', '-'],
  ['something else', 'else.where', '-', '-'],
]

describe('role matrix', () => {
  test.each([
    ['worker', 'w'],
    ['t1', 't'],
    ['ada', 'c'],
    ['observer', 'o'],
  ])(
    'ROL1 ROL2 ROL3 ROL4 matrix: %s may publish and subscribe what the table says, and nothing else',
    async (user, letter) => {
      const connection = await roles.bare(user)
      const denied = new Set<string>()
      void (async () => {
        for await (const status of connection.status()) {
          const error = status.type === 'error' ? status.error : null
          if (error instanceof errors.PermissionViolationError) denied.add(`${error.operation} ${error.subject}`)
        }
      })()
      const isFilter = (subject: string): boolean => /[*>]/.test(subject)
      for (const [, subject] of matrix) {
        if (!isFilter(subject)) connection.publish(subject, 'x')
        const subscription = connection.subscribe(subject, { callback: () => undefined })
        await connection.flush()
        if (!subscription.isClosed()) subscription.unsubscribe()
      }
      const mayNot = matrix.flatMap(([, subject, publish, subscribe]) => [
        ...(isFilter(subject) || publish.includes(letter) ? [] : [`publish ${subject}`]),
        ...(subscribe.includes(letter) ? [] : [`subscription ${subject}`]),
      ])
      // The library tells of an error a moment after it came.
      await expect.poll(() => denied.size).toBeGreaterThanOrEqual(mayNot.length)
      expect([...denied].sort()).toEqual(mayNot.sort())

      await connection.close()
    },
  )

  test('NCF1 strangers: without a key nobody gets in, and the key of one is not that of another', async () => {
    for (const options of [{}, { user: 'worker', password: 'worker' }, { nkeySeed: newKey().seed }]) {
      const opening = connectNats({ servers: roles.server.url, ...options })
      await expect(opening).rejects.toMatchObject({ code: 'NATS_DENIED' })
    }
    // Eve's key with ada's name.
    const { nkeySeed } = roles.as('eve')
    const eve = await connectNats({ ...roles.as('ada'), nkeySeed: nkeySeed! }, { jetStream: false })
    const asked = createDoorClient({ link: eve, subjects: new Subjects('shop') }).ask({ method: 'show', crew: 'q3' })
    await expect(asked).rejects.toMatchObject({ code: 'NATS_DENIED' })
    await eve.connection.close()
  })
})
