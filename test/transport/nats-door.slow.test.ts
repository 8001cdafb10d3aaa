import type { NatsConnection } from '@nats-io/transport-node'
import { afterEach, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { type AnswerTarget, answerRequest } from '../../runtime/control-answers.js'
import type { ControlRequest } from '../../runtime/control-wire.js'
import { type Crew, defineAgent, defineCrew, defineTool } from '../../runtime/define.js'
import { TroupeError } from '../../runtime/errors.js'
import { isLive, type TroupeEvent } from '../../runtime/events.js'
import { createLog } from '../../runtime/log.js'
import { type Channel, RemoteRuntime } from '../../runtime/remote-runtime.js'
import { connectNats, type NatsLink, type NatsOptions } from '../../transport/nats-connection.js'
import { type Door, type DoorOptions, openDoor } from '../../transport/nats-door.js'
import { createDoorClient, type DoorClientOptions } from '../../transport/nats-door-client.js'
import { Subjects } from '../../transport/subjects.js'
import { call, gate, type Model, openStage, resultsIn, say, type Stage } from '../support/crew-stage.js'
import { type LinkProxy, startLinkProxy } from '../support/link-proxy.js'
import { type NatsServer, type NatsServerOptions, startNatsServer } from '../support/nats-server.js'
import { code } from '../support/values.js'

const open: { dispose(): Promise<unknown> }[] = []
afterEach(async () => {
  for (const each of open.splice(0).reverse()) await each.dispose()
})

function disposed<T>(part: T, dispose: (part: T) => Promise<unknown> | void): T {
  open.push({ dispose: async () => dispose(part) })
  return part
}

const server = async (options?: NatsServerOptions): Promise<NatsServer> =>
  disposed(await startNatsServer(options), (each) => each.dispose())
const proxyOf = async ({ port }: NatsServer): Promise<LinkProxy> =>
  disposed(await startLinkProxy(port), (each) => each.close())
const linkOf = async ({ port }: { readonly port: number }): Promise<NatsLink> =>
  disposed(await connectNats({ servers: `127.0.0.1:${port}` }), (each) => each.connection.close())

type Connected = Pick<NatsLink, 'connection' | 'user' | 'inboxPrefix'>

const subjects = new Subjects('test')
const lookup = defineTool({
  name: 'lookup',
  description: 'Looks a topic up.',
  input: z.object({ topic: z.string() }),
  effect: 'idempotent',
  run: ({ topic }) => `a fact about ${topic}`,
})
const desk = defineCrew({
  name: 'desk',
  agents: {
    clerk: defineAgent({ model: 'scripted:m', tools: [lookup], instructions: 'Answer.', limits: { rounds: 80 } }),
  },
  lead: 'clerk',
})

/** Looks things up before it answers; waits before it has the given number of results. */
const clerk =
  (rounds: number, waits: Readonly<Record<number, Promise<unknown>>> = {}): Model =>
  async (request) => {
    const { length } = resultsIn(request)
    await waits[length]
    return length < rounds ? call(['lookup', { topic: `topic ${length}` }]) : say('All is known.')
  }

const stageOf = async (model: Model): Promise<Stage> =>
  disposed(await openStage({ model }), (each) => each.runtime.close({ graceMs: 0 }))

/** What a worker that has the desk's code would let others reach. */
const targetOf = ({ runtime }: Stage): AnswerTarget => ({
  store: 'test',
  runtime,
  crew: async (id, name) => runtime.crew(id) ?? (name === 'desk' ? await runtime.spawn(desk, { id }) : undefined),
})

type Answer = DoorOptions['answer']
const answersOf =
  (stage: Stage): Answer =>
  (request, signal) =>
    answerRequest(targetOf(stage), request, signal)

const doorOf = async (link: Connected, answer: Answer, more: Partial<DoorOptions> = {}): Promise<Door> =>
  disposed(await openDoor({ link, subjects, answer, owns: () => true, log: createLog('silent'), ...more }), (door) =>
    door.close(),
  )
const channelOf = (link: Connected, more: Partial<DoorClientOptions> = {}): Channel =>
  disposed(createDoorClient({ link, subjects, ...more }), (each) => each.close())
const remoteOf = (link: Connected, more: Partial<DoorClientOptions> = {}): RemoteRuntime =>
  new RemoteRuntime({ channel: channelOf(link, more) })

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = []
  for await (const item of items) found.push(item)
  return found
}

/** Ids of the stored events. */
const idsOf = async (events: AsyncIterable<TroupeEvent>): Promise<string[]> =>
  (await all(events)).filter((event) => !isLive(event)).map(({ id }) => id)

describe('crews over NATS', () => {
  test('CA1 door: a crew is used from outside as from inside', async () => {
    const nats = await server()
    const held = gate()
    const stage = await stageOf(clerk(2, { 1: held.opened }))
    await doorOf(await linkOf(nats), answersOf(stage))
    const hashOf = (crew: Crew): string => stage.bind(crew).prepared.hash
    const channel = channelOf(await linkOf(nats), { client: 'me' })
    const runtime = new RemoteRuntime({ channel, hashOf })
    const crew = await runtime.spawn(desk, { id: 'front' })
    const run = crew.start('go', { key: 'k', data: { tenant: 'a' } })
    expect(await run.id).toBe(await crew.start('go', { key: 'k', data: { tenant: 'a' } }).id)
    expect(await (await crew.current())?.id).toBe(await run.id)
    await expect(crew.run('r99').id).rejects.toEqual(code('RUN_UNKNOWN'))
    const events = all(run.events)
    await crew.pause()
    expect(await runtime.show('front')).toMatchObject({ crew: 'desk', paused: true })
    await crew.resume()
    held.open()
    expect(await run.result).toMatchObject({ output: 'All is known.', rounds: 3 })
    expect((await events).at(-1)?.type).toBe('troupe.run.finished')
    const commits = await all(runtime.journal('front'))
    expect(commits).toEqual(await all(stage.runtime.journal('front')))
    expect(await all(runtime.journal('front', 3))).toEqual(commits.slice(2))
    expect(await all(runtime.list())).toEqual(await all(stage.runtime.list()))
    expect(await runtime.show('front')).toEqual(await stage.runtime.show('front'))
    await runtime.remove('front')
    await expect(runtime.show('front')).rejects.toEqual(code('CREW_UNKNOWN'))
  })

  test('CA2 door: a crew at work is not removed; it is cancelled first', async () => {
    const nats = await server()
    const stage = await stageOf(clerk(0, { 0: gate().opened }))
    await doorOf(await linkOf(nats), answersOf(stage))
    const runtime = remoteOf(await linkOf(nats))
    const run = (await runtime.spawn(desk)).start('go')
    await run.id
    await expect(runtime.remove('desk')).rejects.toEqual(code('MESSAGE_REFUSED'))
    await runtime.cancel('desk')
    await expect(run.result).rejects.toEqual(code('RUN_CANCELLED'))
    await runtime.cancel('desk')
    await runtime.remove('desk')
  })

  test('ND1 door: each crew is answered by its own worker, and a question by one of them', async () => {
    const nats = await server()
    const stages = await Promise.all([stageOf(clerk(0)), stageOf(clerk(0))])
    const asked: string[] = []
    for (const [index, stage] of stages.entries()) {
      const answer: Answer = (request, signal) => {
        asked.push(`${index} ${request.method}`)
        return answersOf(stage)(request, signal, '')
      }
      await doorOf(await linkOf(nats), answer, { owns: async (shard, name) => shard === `c${index}` && name !== 'x' })
    }
    const runtime = remoteOf(await linkOf(nats), { patienceMs: 300 })
    for (const id of ['c0', 'c1'])
      expect(await (await runtime.spawn(desk, { id })).ask('go')).toMatchObject({ rounds: 1 })
    expect(asked.toSorted()).toEqual(['0 attach', '0 result', '0 start', '1 attach', '1 result', '1 start'])
    expect(await all(runtime.list())).toMatchObject([{ id: expect.stringMatching(/c[01]/) }])
    expect(asked.filter((each) => each.endsWith('list'))).toHaveLength(1)
    await expect(runtime.show('c2')).rejects.toEqual(code('WORKER_MISSING'))
  })

  test('NA1 door: an answer above a message’s bound comes in parts, and is the same', async () => {
    const nats = await server()
    const text = 'ü€x'.repeat(500_000)
    const stage = await stageOf(() => say(text))
    await doorOf(await linkOf(nats), answersOf(stage))
    const crew = await remoteOf(await linkOf(nats)).spawn(desk)
    const { output } = await crew.ask('go')
    expect(output === text).toBe(true)
  })

  test('NQ4 door: a reader that is slow gets all of it, in order, by asking again', async () => {
    const nats = await server()
    const last = 300
    let asked = 0
    const door = await doorOf(await linkOf(nats), async function* (request) {
      asked += 1
      if (request.method !== 'journal') return
      for (let sequence = request.from; sequence <= last; sequence++) {
        yield { item: { sequence, pad: 'x'.repeat(100_000) } }
      }
      yield { result: null }
    })
    const items = channelOf(await linkOf(nats)).stream({ method: 'journal', crew: 'c', from: 1 })
    const sequences: number[] = []
    for await (const item of items) {
      // It reads on when nobody sends any more: what does not fit was left.
      if (sequences.length === 0) await expect.poll(() => door.underWay, { timeout: 5_000 }).toBe(0)
      sequences.push((item as { sequence: number }).sequence)
    }
    expect(sequences).toEqual(Array.from({ length: last }, (_, index) => index + 1))
    expect(asked).toBeGreaterThan(1)
  })
})

describe('ND2 ND3 what is refused', () => {
  /** Asks with bytes of one's own; the answer's code. That it was taken is no answer yet: then it is asked again. */
  async function raw(connection: NatsConnection, subject: string, bytes: string | Uint8Array): Promise<string> {
    const said = await connection.request(subject, bytes, { timeout: 5_000 })
    const answer = said.json<{ alive?: true; error?: { code: string } }>()
    return answer.alive === true ? raw(connection, subject, bytes) : (answer.error?.code ?? 'none')
  }

  const show = (crew: string): string => JSON.stringify({ method: 'show', crew })

  test.each([
    ['noise', 'q', new Uint8Array([0, 255, 1, 10]), 'ENVELOPE_INVALID'],
    ['nothing', 'q', '', 'ENVELOPE_INVALID'],
    ['an unknown method', 'q', '{"method":"eval","crew":"q"}', 'ENVELOPE_INVALID'],
    ['a field too many', 'q', '{"method":"show","crew":"q","client":"admin"}', 'ENVELOPE_INVALID'],
    ['a prototype', 'q', '{"method":"show","crew":{"__proto__":[]}}', 'ENVELOPE_INVALID'],
    ['deep', 'q', `{"method":"start","crew":"q","key":"k","input":${'['.repeat(100_000)}`, 'ENVELOPE_INVALID'],
    ['another crew', 'q', show('other'), 'MESSAGE_REFUSED'],
    ['a question at a door', 'q', '{"method":"list"}', 'MESSAGE_REFUSED'],
    ['a crew’s request as a question', null, show('q'), 'MESSAGE_REFUSED'],
  ])('refused: %s has a code, is counted, and the next one is served', async (_what, crew, bytes, expected) => {
    const nats = await server()
    const stage = await stageOf(clerk(0))
    const asked: ControlRequest[] = []
    const door = await doorOf(await linkOf(nats), (request, signal) => {
      asked.push(request)
      return answersOf(stage)(request, signal, '')
    })
    const { connection } = await linkOf(nats)
    const subject = crew === null ? subjects.questions('me') : subjects.door('me', crew)
    expect(await raw(connection, subject, bytes)).toBe(expected)
    expect({ asked, refused: door.refused, underWay: door.underWay }).toEqual({ asked: [], refused: 1, underWay: 0 })
    expect(await raw(connection, subjects.door('me', 'q'), show('q'))).toBe('CREW_UNKNOWN')
    expect(await all(stage.runtime.list())).toEqual([])
  })

  test('ND4 forged: answers go to an inbox of the client, and never where only workers may write', async () => {
    const nats = await server()
    const stage = await stageOf(clerk(0))
    const door = await doorOf(await linkOf(nats), answersOf(stage))
    const { connection } = await linkOf(nats)
    const seen: string[] = []
    // The server tells there of what it was asked when the links were made, late at times.
    const isOurs = (subject: string): boolean => !subject.startsWith('$JS.EVENT.')
    const callback = (_error: unknown, { subject }: { subject: string }) => void (isOurs(subject) && seen.push(subject))
    connection.subscribe('>', { callback })
    const forged = [
      subjects.journal('q'),
      subjects.mail('q', 'crew/crew'),
      '$JS.API.STREAM.PURGE.troupe_test_journal',
      '_INBOX',
      '_INBOX.>',
      '_INBOX.*.x',
      '_INBOX_other.x',
      '_INBOXED.x',
      `_INBOX.${'x'.repeat(300)}`,
    ]
    for (const reply of forged) connection.publish(subjects.door('me', 'q'), show('q'), { reply })
    connection.publish(subjects.door('me', 'q'), show('q'))
    connection.publish('troupe.test.in.me.$q', show('q'), { reply: '_INBOX.x' })
    connection.publish(subjects.door('me', 'q'), show('q'), { reply: '_INBOX_me.mine' })
    await expect.poll(() => seen.includes('_INBOX_me.mine')).toBe(true)
    expect(door.refused).toBe(forged.length + 2)
    expect(seen.filter((subject) => !subject.startsWith('troupe.test.in.'))).toEqual(['_INBOX_me.mine'])
  })

  test('ND3 crowd: above the bound a request is MAILBOX_FULL, to be tried again; who was served before is served', async () => {
    const nats = await server()
    const held = gate()
    const stage = await stageOf(clerk(0, { 0: held.opened }))
    const [first, second] = [await linkOf(nats), await linkOf(nats)]
    const door = await doorOf(first, answersOf(stage), { maxRequests: 2 })
    const runtime = remoteOf(await linkOf(nats))
    const crew = await runtime.spawn(desk)
    const runs = [crew.start('one'), crew.start('two')]
    await Promise.all(runs.map((run) => run.id))
    const results = runs.map((run) => run.result)
    await expect.poll(() => door.underWay).toBe(2)
    await expect(runtime.show('desk')).rejects.toMatchObject({ code: 'MAILBOX_FULL', retryable: true })
    // The next worker has room for one at a time: both get their result.
    const next = await doorOf(second, answersOf(stage), { maxRequests: 1 })
    await door.close()
    await expect.poll(() => next.underWay).toBe(1)
    held.open()
    expect((await Promise.all(results)).map(({ output }) => output)).toEqual(['All is known.', 'All is known.'])
  })

  test('oversized: a request above the server’s bound is ENVELOPE_TOO_LARGE before it is sent', async () => {
    const nats = await server({ config: 'max_payload: 65536' })
    const stage = await stageOf(clerk(0))
    const door = await doorOf(await linkOf(nats), answersOf(stage))
    const crew = await remoteOf(await linkOf(nats)).spawn(desk)
    await expect(crew.start('x'.repeat(70_000)).id).rejects.toEqual(code('ENVELOPE_TOO_LARGE'))
    expect(await crew.ask('go')).toMatchObject({ output: 'All is known.' })
    expect(door.refused).toBe(0)
    await expect(crew.start('go', { data: 1n }).id).rejects.toEqual(code('INPUT_INVALID'))
  })

  test('denied: a client that may not use the subject is told so, its own inbox is enough where it may', async () => {
    const allowed = 'publish: ["troupe.test.in.me.*"], subscribe: ["_INBOX_me.>"]'
    const users = `{ user: worker, password: w }, { user: me, password: m, permissions: { ${allowed} } }`
    const nats = await server({ config: `authorization { users: [${users}] }` })
    const address = `127.0.0.1:${nats.port}`
    const linkAs = async (options: Partial<NatsOptions>): Promise<NatsLink> =>
      disposed(await connectNats({ servers: address, ...options }, { jetStream: false }), (each) =>
        each.connection.close(),
      )
    const stage = await stageOf(clerk(0))
    await doorOf(await linkAs({ user: 'worker', password: 'w' }), answersOf(stage))
    const me = { user: 'me', password: 'm' }
    const link = await linkAs(me)
    expect(await (await remoteOf(link).spawn(desk)).ask('go')).toMatchObject({ output: 'All is known.' })
    const other = remoteOf(link, { client: 'other' })
    const details = { operation: 'publish', subject: 'troupe.test.in.other.desk' }
    await expect(other.spawn(desk)).rejects.toMatchObject({ code: 'NATS_DENIED', details })
    const shared = remoteOf(await linkAs({ ...me, inboxPrefix: '_INBOX' }))
    await expect(shared.spawn(desk)).rejects.toEqual(code('NATS_DENIED'))
  })

  test('NC5 denied: a door that may not hear what is asked does not open', async () => {
    const config = 'authorization { users: [{ user: w, password: w, permissions: { subscribe: ["_INBOX_w.>"] } }] }'
    const nats = await server({ config })
    const options = { servers: `127.0.0.1:${nats.port}`, user: 'w', password: 'w' }
    const link = disposed(await connectNats(options), (each) => each.connection.close())
    const opening = openDoor({
      link,
      subjects,
      answer: answersOf(await stageOf(clerk(0))),
      owns: () => true,
      log: createLog('silent'),
    })
    const details = { operation: 'subscription', subject: subjects.doors() }
    await expect(opening).rejects.toMatchObject({ code: 'NATS_DENIED', details })
  })
})

describe('pauses', () => {
  test('NQ2 failover: a worker that leaves sends whoever waits to the next one', async () => {
    const nats = await server()
    const held = gate()
    const stage = await stageOf(clerk(3, { 2: held.opened }))
    const door = await doorOf(await linkOf(nats), answersOf(stage))
    const run = (await remoteOf(await linkOf(nats)).spawn(desk)).start('go')
    const [result, ids] = [run.result, idsOf(run.events)]
    await expect.poll(() => door.underWay).toBe(2)
    const since = performance.now()
    const next = await doorOf(await linkOf(nats), answersOf(stage))
    await door.close()
    await expect.poll(() => next.underWay).toBe(2)
    expect(performance.now() - since).toBeLessThan(3_000)
    held.open()
    expect(await result).toMatchObject({ output: 'All is known.' })
    expect(await ids).toEqual(await idsOf(stage.runtime.crew('desk')!.run(await run.id).events))
  })

  test('NQ2 failover: a worker that falls silent is left for the next one, nothing lost and nothing twice', async () => {
    const nats = await server()
    const proxy = await proxyOf(nats)
    const held = gate()
    const stage = await stageOf(clerk(3, { 2: held.opened }))
    let owner = 'first'
    const door = await doorOf(await linkOf(proxy), answersOf(stage), { owns: () => owner === 'first' })
    const run = (await remoteOf(await linkOf(nats)).spawn(desk)).start('go')
    const [result, ids] = [run.result, idsOf(run.events)]
    await expect.poll(() => door.underWay).toBe(2)
    proxy.up = 'swallow'
    owner = 'second'
    const next = await doorOf(await linkOf(nats), answersOf(stage))
    await expect.poll(() => next.underWay, { timeout: 10_000 }).toBe(2)
    held.open()
    expect(await result).toMatchObject({ output: 'All is known.' })
    expect(await ids).toEqual(await idsOf(stage.runtime.crew('desk')!.run(await run.id).events))
  })

  test('failover: a server that is killed and starts again is a pause', async () => {
    const nats = await server()
    const held = gate()
    const stage = await stageOf(clerk(3, { 2: held.opened }))
    const door = await doorOf(await linkOf(nats), answersOf(stage))
    const run = (await remoteOf(await linkOf(nats)).spawn(desk)).start('go')
    const [result, ids] = [run.result, idsOf(run.events)]
    await expect.poll(() => door.underWay).toBe(2)
    await nats.kill()
    // What comes of it meanwhile reaches nobody.
    held.open()
    await stage.runtime.crew('desk')!.run(await run.id).result
    await nats.start()
    expect(await result).toMatchObject({ output: 'All is known.' })
    expect(await ids).toEqual(await idsOf(stage.runtime.crew('desk')!.run(await run.id).events))
  })

  test.each(['client', 'worker'])(
    'NQ2 cut link: events are complete and in order, however often the %s is cut off',
    async (who) => {
      const nats = await server()
      const proxy = await proxyOf(nats)
      const rounds = 60
      // At most three rounds ahead of what was seen.
      let seen = 0
      const model: Model = async (request) => {
        const { length } = resultsIn(request)
        await expect.poll(() => seen, { timeout: 20_000 }).toBeGreaterThanOrEqual(length - 3)
        return length < rounds ? call(['lookup', { topic: `topic ${length}` }]) : say('All is known.')
      }
      const stage = await stageOf(model)
      await doorOf(await linkOf(who === 'worker' ? proxy : nats), answersOf(stage))
      const run = (await remoteOf(await linkOf(who === 'client' ? proxy : nats)).spawn(desk)).start('go')
      const ids: string[] = []
      for await (const event of run.events) {
        if (isLive(event)) continue
        ids.push(event.id)
        if (event.type !== 'troupe.tool.called') continue
        seen += 1
        if (seen % 20 === 0) proxy.cut()
      }
      expect(seen).toBe(rounds)
      expect(ids).toEqual(await idsOf(stage.runtime.crew('desk')!.run(await run.id).events))
    },
  )

  /** Does what is asked for the first time, and then says that somebody else is to do it. */
  const twice = (stage: Stage, method: ControlRequest['method']): Answer => {
    let first = true
    return async function* (request, signal) {
      const isFirst = request.method === method && first
      if (isFirst) first = false
      for await (const answer of answersOf(stage)(request, signal, '')) if (!isFirst) yield answer
      if (isFirst) throw new TroupeError('SHARD_ELSEWHERE', 'it moved', { retryable: true })
    }
  }

  test('NQ1 asked again: a crew is removed once, a run is started once', async () => {
    const nats = await server()
    const stage = await stageOf(clerk(0))
    for (const method of ['start', 'remove', 'attach', 'pause'] as const) {
      const door = await doorOf(await linkOf(nats), twice(stage, method))
      const runtime = remoteOf(await linkOf(nats))
      const crew = await runtime.spawn(desk)
      expect(await crew.ask('go')).toMatchObject({ output: 'All is known.' })
      await crew.pause()
      expect((await runtime.show('desk')).runs).toHaveLength(1)
      await runtime.remove('desk')
      await expect(runtime.remove('desk')).rejects.toEqual(code('CREW_UNKNOWN'))
      await door.close()
    }
  })

  test('NQ1 asked again: a cancel ends the run that went on then, not the next one', async () => {
    const nats = await server()
    const held = gate()
    const stage = await stageOf(clerk(0, { 0: held.opened }))
    await doorOf(await linkOf(nats), twice(stage, 'cancel'))
    const crew = await remoteOf(await linkOf(nats)).spawn(desk)
    const runs = [crew.start('one'), crew.start('two')]
    await runs[0]!.id
    await runs[1]!.id
    await crew.cancel()
    await expect(runs[0]!.result).rejects.toEqual(code('RUN_CANCELLED'))
    held.open()
    expect(await runs[1]!.result).toMatchObject({ output: 'All is known.' })
  })

  test('NQ1 asked again: a list that breaks off goes on without what was passed on', async () => {
    const nats = await server()
    let asked = 0
    await doorOf(await linkOf(nats), async function* () {
      asked += 1
      for (const id of ['a', 'b', 'c'].slice(0, asked + 1)) yield { item: { id } }
      if (asked < 2) throw new TroupeError('RUNTIME_CLOSED', 'this worker ends')
      yield { result: null }
    })
    expect(await all(remoteOf(await linkOf(nats)).list())).toEqual([{ id: 'a' }, { id: 'b' }, { id: 'c' }])
  })
})

describe('ends', () => {
  test('NQ3 nobody: without a worker it is WORKER_MISSING after patienceMs, and a worker that comes in time is used', async () => {
    const nats = await server()
    const runtime = remoteOf(await linkOf(nats), { patienceMs: 1_000 })
    const since = performance.now()
    await expect(runtime.show('q')).rejects.toMatchObject({
      code: 'WORKER_MISSING',
      message: 'no worker answers for crew q',
      retryable: true,
    })
    await expect(all(runtime.list())).rejects.toEqual(code('WORKER_MISSING'))
    expect(performance.now() - since).toBeLessThan(4_000)
    const shown = remoteOf(await linkOf(nats)).show('q')
    const stage = await stageOf(clerk(0))
    await doorOf(await linkOf(nats), answersOf(stage))
    await expect(shown).rejects.toEqual(code('CREW_UNKNOWN'))
  })

  test('NQ3 nobody: workers that all say no are named in WORKER_MISSING', async () => {
    const nats = await server()
    await doorOf(await linkOf(nats), async function* () {
      throw new TroupeError('SHARD_ELSEWHERE', 'q belongs to another worker', { retryable: true })
    })
    await expect(remoteOf(await linkOf(nats), { patienceMs: 500 }).show('q')).rejects.toMatchObject({
      code: 'WORKER_MISSING',
      details: { crew: 'q', reason: 'SHARD_ELSEWHERE' },
    })
  })

  test('NQ3 close: whoever waits is told, by the channel or by its link', async () => {
    const nats = await server()
    const stage = await stageOf(clerk(0, { 0: gate().opened }))
    await doorOf(await linkOf(nats), answersOf(stage))
    for (const how of ['channel', 'link']) {
      const link = await linkOf(nats)
      const runtime = remoteOf(link)
      const result = (await runtime.spawn(desk, { id: how })).start('go').result
      await expect.poll(async () => (await stage.runtime.show(how)).runs.length).toBe(1)
      await (how === 'channel' ? runtime.close() : link.connection.close())
      await expect(result).rejects.toEqual(code('RUNTIME_CLOSED'))
      await expect(runtime.show(how)).rejects.toEqual(code('RUNTIME_CLOSED'))
    }
  })

  test('ND5 CA3 leave: a client that leaves a stream, or dies, ends the work for it and not the run', async () => {
    const nats = await server()
    const proxy = await proxyOf(nats)
    const held = gate()
    const stage = await stageOf(clerk(1, { 1: held.opened }))
    const door = await doorOf(await linkOf(nats), answersOf(stage))
    const run = (await remoteOf(await linkOf(nats)).spawn(desk)).start('go')
    for await (const event of run.events) if (event.type === 'troupe.run.started') break
    const left = new AbortController()
    const stream = all(run.stream({ signal: left.signal }))
    await expect.poll(() => door.underWay).toBe(1)
    left.abort()
    await stream
    await expect.poll(() => door.underWay, { timeout: 5_000 }).toBe(0)
    // One that dies while it waits for the result and the events.
    const link = await linkOf(proxy)
    const doomed = (await remoteOf(link).spawn(desk)).run(await run.id)
    const gone = Promise.allSettled([doomed.result, all(doomed.events)])
    await expect.poll(() => door.underWay).toBe(2)
    proxy.up = 'swallow'
    proxy.cut()
    await expect.poll(() => door.underWay, { timeout: 5_000 }).toBe(0)
    await link.connection.close()
    await gone
    held.open()
    expect(await run.result).toMatchObject({ output: 'All is known.' })
  })
})
