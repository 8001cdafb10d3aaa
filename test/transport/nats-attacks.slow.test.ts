import type { NatsConnection } from '@nats-io/transport-node'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { reply, startScriptedModel } from '../../actors/scripted-model.js'
import { z } from 'zod'
import { encode } from '../../runtime/codec.js'
import { createRuntime, defineAgent, defineCrew, defineTool, type DistributedRuntime } from '../../runtime/index.js'
import { partitionOf, Subjects } from '../../transport/subjects.js'
import { type RoleServer, startRoleServer } from '../support/role-server.js'

/**
 * One worker with a crew that has run, on a server with the printed configuration; whoever attacks is a user of it. What
 * the crew has decided is in its journal, digests included: the same journal is the same state.
 */
let roles: RoleServer
let model: Awaited<ReturnType<typeof startScriptedModel>>
let worker: DistributedRuntime
const subjects = new Subjects('shop')
const desk = defineCrew({
  name: 'desk',
  agents: {
    clerk: defineAgent({
      model: 'scripted:m',
      instructions: 'Answer.',
      tools: [
        defineTool({
          name: 'lookup',
          description: 'Looks up.',
          input: z.object({ topic: z.string() }),
          effect: 'idempotent',
          run: () => 'a fact',
        }),
      ],
    }),
  },
  lead: 'clerk',
})

beforeAll(async () => {
  roles = await startRoleServer()
  model = await startScriptedModel(({ messages }) =>
    messages.at(-1)?.role === 'tool' ? 'All is known.' : reply.call('lookup', { topic: 'x' }),
  )
  const nats = { ...roles.as('worker'), worker: 'w1' }
  const providers = { scripted: { baseURL: model.baseURL } }
  worker = (await createRuntime({ nats, providers, log: 'silent' })) as DistributedRuntime
  await (await worker.spawn(desk, { id: 'q3' })).ask('go')
})
afterAll(async () => {
  await worker.close({ graceMs: 0 })
  await model.close()
  await roles.server.dispose()
})

async function journal(): Promise<unknown[]> {
  const commits: unknown[] = []
  for await (const commit of worker.journal('q3')) commits.push(commit)
  return commits
}

/** Does something to the crew's disadvantage: afterwards its journal is the same, nothing is new, and it works. */
async function unharmed(attack: () => Promise<void>): Promise<void> {
  const [before, crews] = [await journal(), await ids()]
  await attack()
  expect(await journal()).toEqual(before)
  expect(await ids()).toEqual(crews)
  expect(await (await worker.spawn(desk, { id: 'q3' })).ask(`go on ${before.length}`)).toMatchObject({
    output: 'All is known.',
  })
  expect(Object.keys(Object.prototype)).toEqual([])
}

async function ids(): Promise<string[]> {
  const found: string[] = []
  for await (const { id } of worker.list()) found.push(id)
  return found
}

/** A connection with nothing but the library. */
async function as(user: string): Promise<{ connection: NatsConnection; close(): Promise<void> }> {
  const connection = await roles.bare(user)
  return { connection, close: () => connection.close() }
}

/** Asks as the library does; the answer, or null for none. That it was taken is no answer yet: then it is asked again. */
async function ask(
  connection: NatsConnection,
  subject: string,
  body: string | Uint8Array,
): Promise<{ error?: { code: string }; result?: unknown } | null> {
  const answer = await connection.request(subject, body, { timeout: 3_000 }).then(
    (message) => message.json<{ alive?: true; error?: { code: string }; result?: unknown }>(),
    () => null,
  )
  return answer?.alive === true ? ask(connection, subject, body) : answer
}

const show = { method: 'show', crew: 'q3' }
const hostile: readonly (string | Uint8Array)[] = [
  ...[1, 64, 4_096].map((length) => Buffer.from(Array.from({ length }, (_, index) => (index * 167 + length) % 256))),
  '',
  'null',
  '[]',
  '{',
  '{"method":"show"}',
  '['.repeat(500_000),
  '{"a":'.repeat(100_000),
  'x'.repeat(1_048_576),
  `{"method":"start","crew":"q3","key":"k","input":"x","name":"desk","data":${'['.repeat(5_000)}${']'.repeat(5_000)}`,
  JSON.stringify({ ...show, from: 'client/eve' }),
  JSON.stringify({ ...show, client: 'worker' }),
  '{"method":"show","crew":"q3","__proto__":{"polluted":1}}',
  '{"method":"cancel","crew":"q3","constructor":{"prototype":{"polluted":1}}}',
  JSON.stringify({ method: 'xstate.done.actor.agent', crew: 'q3' }),
  JSON.stringify({ type: 'xstate.stop', crew: 'q3' }),
  ...['q.3', '*', '>', 'q3\r\nPUB x 0\r\n', 'x'.repeat(5_000), '', 'q3 ', '../q3'].map((crew) =>
    JSON.stringify({ ...show, crew }),
  ),
  encode({ method: 'show', crew: 'q3' }),
  encode({ from: 'port/model', to: 'crew/crew', cause: '', body: { type: 'xstate.stop' }, values: [] }),
]

test('ND3 malformed: at its doors a client gets a code for everything, and the crew is as it was', async () => {
  const ada = await as('ada')
  await unharmed(async () => {
    for (const subject of [subjects.door('ada', 'q3'), subjects.questions('ada')])
      for (const [index, body] of hostile.entries()) {
        const answer = await ask(ada.connection, subject, body)
        expect(answer?.error?.code, `${subject} ${index}`).toMatch(
          /^(?:ENVELOPE_INVALID|ENVELOPE_TOO_LARGE|MESSAGE_REFUSED)$/,
        )
      }
    // Without a reply, with somebody else's, with one that is none.
    for (const reply of ['', '_INBOX_eve.x', '_INBOX_worker.x', subjects.journal('q3'), '_INBOX_ada.*'])
      ada.connection.publish(
        subjects.door('ada', 'q3'),
        JSON.stringify({ method: 'cancel', crew: 'q3' }),
        reply === '' ? {} : { reply },
      )
    await ada.connection.flush()
  })
  expect(roles.refused()).toEqual([])
  await ada.close()
})

test('ND2 forged: a client at the door of another is stopped by the server, and its body says nothing about who it is', async () => {
  const [ada, eve] = [await as('ada'), await as('eve')]
  const heard: string[] = []
  eve.connection.subscribe('_INBOX_eve.>', { callback: (_error, { subject }) => void heard.push(subject) })
  await unharmed(async () => {
    for (const subject of [subjects.door('ada', 'q3'), subjects.questions('ada'), subjects.door('worker', 'q3')])
      expect(await ask(eve.connection, subject, JSON.stringify(show))).toBeNull()
    // Ada's answers do not come to eve, whatever ada asks for.
    ada.connection.publish(subjects.door('ada', 'q3'), JSON.stringify(show), { reply: '_INBOX_eve.x' })
    expect((await ask(ada.connection, subjects.door('ada', 'q3'), JSON.stringify(show)))?.result).toMatchObject({
      crew: 'desk',
    })
  })
  expect(heard.filter((subject) => subject === '_INBOX_eve.x')).toEqual([])
  // The server writes its log when it comes to it.
  for (const subject of [subjects.door('ada', 'q3'), subjects.questions('ada'), subjects.door('worker', 'q3')])
    await expect.poll(() => roles.refused()).toContain(`eve publish ${subject}`)
  for (const each of [ada, eve]) await each.close()
})

test('NQ1 replayed: the same command again, byte for byte, is done once', async () => {
  const ada = await as('ada')
  const start = JSON.stringify({ method: 'start', crew: 'q7', name: 'desk', key: 'k', input: 'go' })
  const door = subjects.door('ada', 'q7')
  const answers = await Promise.all([1, 2, 3, 4].map(() => ask(ada.connection, door, start)))
  const runs = new Set(answers.map((answer) => answer?.result))
  expect(runs.size).toBe(1)
  const [run] = [...runs] as [string]
  await worker.crew('q7')?.run(run).result
  await (await worker.spawn(desk, { id: 'q7' })).run(run).result
  expect((await ask(ada.connection, door, start))?.result).toBe(run)
  expect((await worker.show('q7')).runs).toHaveLength(1)
  const commits = (await worker.show('q7')).sequence
  // A cancel of a run that is over, and a pause that is one already.
  for (let time = 0; time < 3; time++) {
    await ask(ada.connection, door, JSON.stringify({ method: 'cancel', crew: 'q7', run }))
    expect((await ask(ada.connection, door, start))?.result).toBe(run)
  }
  expect((await worker.show('q7')).runs).toMatchObject([{ status: 'finished' }])
  expect((await worker.show('q7')).sequence - commits).toBeLessThanOrEqual(3)
  await ada.close()
})

test('LTR1 tool worker: what it sends that is no outcome of its own is a dead letter, and changes nothing', async () => {
  const t1 = await as('t1')
  const partition = partitionOf('q3')
  const outcome = `troupe.shop.mail.${partition}.q3.outcome.t1`
  const bodies = [
    ...hostile,
    encode({ from: 'port/tool', to: 'outcome/t1', cause: '5-0', body: { type: 'xstate.stop' }, values: [] }),
    encode({
      from: 'port/tool',
      to: 'outcome/t2',
      cause: '5-0',
      body: { type: 'tool.ended', executor: 't2.1', status: 'ok', truncated: false },
      values: ['x'],
    }),
    encode({
      from: 'port/tool',
      to: 'outcome/t1',
      cause: '5-0',
      body: { type: 'tool.ended', executor: 'w1.1', status: 'ok', truncated: false },
      values: ['x'],
    }),
    encode({ from: 'agent/clerk', to: 'crew/crew', cause: '', body: { type: 'run.start' }, values: [] }),
  ]
  await unharmed(async () => {
    for (const body of bodies.filter((each) => each.length <= 1_000_000)) t1.connection.publish(outcome, body)
    for (const other of ['outcome.t2', 'crew.crew', 'agent.clerk-r1'])
      t1.connection.publish(`troupe.shop.mail.${partition}.q3.${other}`, encode({}))
    await t1.connection.flush()
    const worked = await roles.bare('worker')
    const { jetstreamManager } = await import('@nats-io/jetstream')
    const manager = await jetstreamManager(worked)
    await expect
      .poll(async () => (await manager.streams.info('troupe_shop_mail')).state.messages, { timeout: 30_000 })
      .toBe(0)
    await worked.close()
  })
  await expect.poll(() => roles.refused()).toContain(`t1 publish troupe.shop.mail.${partition}.q3.crew.crew`)
  await t1.close()
})

test('WQ2 worker requests, progress and leases: noise of those who may send there harms nobody', async () => {
  const [w, t1] = [await as('worker'), await as('t1')]
  await unharmed(async () => {
    for (const body of hostile.filter((each) => each.length <= 1_000_000)) {
      const answer = await ask(w.connection, subjects.worker('w1'), body)
      expect(answer?.error?.code).toMatch(/^(?:ENVELOPE_INVALID|ENVELOPE_TOO_LARGE)$/)
      t1.connection.publish('troupe.shop.progress.w1.t1', body)
      t1.connection.publish('$KV.troupe_shop_workers.t1', body)
    }
    await t1.connection.flush()
  })
  expect(await worker.cluster()).toMatchObject({ workers: [{ worker: 'w1' }] })
  for (const each of [w, t1]) await each.close()
})

test('ROL1 spy: whoever listens to everything hears nothing, and sees its own inbox only', async () => {
  for (const user of ['eve', 'observer', 't1']) {
    const spy = await as(user)
    const heard: string[] = []
    for (const subject of ['>', 'troupe.>', '_INBOX_ada.>', '_INBOX_worker.>', '$KV.>', '$JS.>'])
      spy.connection.subscribe(subject, {
        callback: (error, message) => void (error === null && heard.push(message.subject)),
      })
    await spy.connection.flush()
    await (await worker.spawn(desk, { id: 'q3' })).ask(`for ${user}`)
    await spy.connection.flush()
    expect(heard).toEqual([])
    // There was something to hear.
    if (user === 'observer') {
      spy.connection.subscribe(subjects.events(), { callback: (_error, { subject }) => void heard.push(subject) })
      await spy.connection.flush()
      await (await worker.spawn(desk, { id: 'q3' })).ask('heard')
      await expect.poll(() => new Set(heard)).toEqual(new Set([subjects.events('q3')]))
    }
    await spy.close()
  }
})
