import { describe, expect, test } from 'vitest'
import { defineAgent, defineCrew } from '../../runtime/define.js'
import { TroupeError } from '../../runtime/errors.js'
import type { Journal } from '../../runtime/journal.js'
import { type ModelRequest } from '../../runtime/ports.js'
import { createMemoryStore } from '../../transport/memory-journal.js'
import {
  call,
  gate,
  type Model,
  openStage,
  override,
  quiet,
  resultsIn,
  say,
  type Stage,
  until,
} from '../support/crew-stage.js'

const writer = defineAgent({ model: 'a:writer', instructions: 'write', delegates: ['b/agent/finder'] })
const asking = defineCrew({ name: 'asking', agents: { writer }, lead: 'writer' })
const finder = defineAgent({ model: 'b:finder', instructions: 'find' })
const keeper = defineAgent({ model: 'b:keeper', instructions: ({ input }) => `keep ${input}` })
const asked = defineCrew({ name: 'asked', agents: { keeper, finder }, lead: 'keeper' })

const isOf = (request: ModelRequest, name: string) => request.deployment.endsWith(name)
/** The writer gives one task away and answers with what comes back. */
const scripted: Model = (request) => {
  if (!isOf(request, 'writer')) return say('found it')
  const [result] = resultsIn(request)
  return result === undefined ? call(['b_finder', { task: 'find it' }]) : say(`told: ${result}`)
}

const events = async ({ journal }: Stage, shard: string, type: string) => {
  const { fromEvents } = await import('../../runtime/record.js')
  const found = []
  for await (const { bytes } of journal.readEvents(shard, 1)) found.push(...fromEvents(bytes))
  return found.filter(({ event }) => event.type === type).map(({ event }) => event)
}

/** Lets time pass until something has ended. */
async function inTime<T>({ clock }: Stage, ended: Promise<T>): Promise<T> {
  let isOver = false
  void ended.finally(() => (isOver = true)).catch(() => undefined)
  await until(() => {
    clock.advance(50)
    return isOver
  })
  return ended
}

describe('mail: a task for an agent of another crew', () => {
  test('OB1 MA1 mail: the task is a run of the other crew, its answer the result of the call', async () => {
    const stage = await openStage({ model: scripted })
    await stage.runtime.spawn(asked, { id: 'b' })
    const crew = await stage.runtime.spawn(asking, { id: 'a' })
    expect((await crew.ask('go')).output).toBe('told: found it')
    const { runs, mail } = (await stage.worker.shard('b')).state
    expect([...runs.values()]).toMatchObject([
      { status: 'finished', lead: 'finder', replyTo: expect.stringMatching(/^a\/envoy\/finder-/) },
    ])
    expect(mail.cursor('a')?.number).toBe(1)
    expect(await events(stage, 'a', 'mail.sent')).toMatchObject([
      { to: 'b/crew/main', message: 'delegate.task', number: 1 },
    ])
    expect(await events(stage, 'b', 'mail.taken')).toMatchObject([{ message: 'delegate.task' }])
    stage.clock.advance(2_000)
    await until(async () => (await stage.worker.shard('a')).state.mail.outbox.size === 0)
    await until(async () => (await stage.worker.shard('b')).state.mail.outbox.size === 0)
    await stage.runtime.close()
  })
})

describe('mail: what becomes of a task', () => {
  /** What the writer was told of its delegation. */
  const toldBy = async (model: Model, more: { readonly target?: string; readonly spawned?: boolean } = {}) => {
    const stage = await openStage({ model })
    if (more.spawned !== false) await stage.runtime.spawn(asked, { id: 'b' })
    const agent = defineAgent({ model: 'a:writer', instructions: 'x', delegates: [more.target ?? 'b/agent/finder'] })
    const crew = await stage.runtime.spawn(agent, { id: 'a' })
    const { output } = await crew.ask('go')
    await stage.runtime.close()
    return output
  }
  const calling =
    (name: string): Model =>
    (request) => {
      if (!isOf(request, 'writer')) return say('found it')
      const [result] = resultsIn(request)
      return result === undefined ? call([name, { task: 'find it' }]) : say(result)
    }

  test('OB3 mail: a crew that there is not is told to the model with its code', async () => {
    expect(await toldBy(calling('b_finder'), { spawned: false })).toBe(
      'b/agent/finder failed: CREW_UNKNOWN: there is no crew b',
    )
  })

  test('mail: an agent that the other crew has not is told to the model', async () => {
    const told = await toldBy(calling('b_nobody'), { target: 'b/agent/nobody' })
    expect(told).toBe('b/agent/nobody failed: DELEGATION_FAILED: the crew b has no agent nobody')
  })

  test('mail: instructions that are a function are called where the agent is', async () => {
    const stage = await openStage({ model: calling('b_keeper') })
    await stage.runtime.spawn(asked, { id: 'b' })
    const agent = defineAgent({ model: 'a:writer', instructions: 'x', delegates: ['b/agent/keeper'] })
    const crew = await stage.runtime.spawn(agent, { id: 'a' })
    expect((await crew.ask('go')).output).toBe('found it')
    const [first] = stage.requests.find((request) => isOf(request, 'keeper'))!.messages
    expect(first).toBe('{"role":"system","content":"keep find it"}')
    await stage.runtime.close()
  })

  test('mail: a crew that waits for whoever asks it refuses, and so does one that asks back', async () => {
    const back = defineAgent({ model: 'b:back', instructions: 'x', delegates: ['a/agent/writer'] })
    const stage = await openStage({
      model: (request) => {
        const [result] = resultsIn(request)
        if (result !== undefined) return say(result)
        return call([isOf(request, 'writer') ? 'b_back' : 'a_writer', { task: 'you do it' }])
      },
    })
    await stage.runtime.spawn(defineCrew({ name: 'b', agents: { back }, lead: 'back' }), { id: 'b' })
    const agent = defineAgent({ model: 'a:writer', instructions: 'x', delegates: ['b/agent/back'] })
    const a = await stage.runtime.spawn(defineCrew({ name: 'a', agents: { writer: agent }, lead: 'writer' }), {
      id: 'a',
    })
    const { output } = await a.ask('go')
    expect(output).toBe('a/agent/writer failed: DELEGATION_FAILED: the crew a waits for it itself')
    await stage.runtime.close()
  })

  test('mail: of two crews that ask each other at once the first by name refuses, and both end', async () => {
    const stage = await openStage({
      model: (request) => {
        const [result] = resultsIn(request)
        if (result !== undefined) return say(result)
        const own = request.deployment.split(':')[0]
        return request.messages.at(-1)!.includes('you do it')
          ? say(`${own} did it`)
          : call([own === 'a' ? 'b_y' : 'a_x', { task: 'you do it' }])
      },
    })
    const x = defineAgent({ model: 'a:x', instructions: 'x', delegates: ['b/agent/y'] })
    const y = defineAgent({ model: 'b:y', instructions: 'x', delegates: ['a/agent/x'] })
    const a = await stage.runtime.spawn(defineCrew({ name: 'a', agents: { x }, lead: 'x' }), { id: 'a' })
    const b = await stage.runtime.spawn(defineCrew({ name: 'b', agents: { y }, lead: 'y' }), { id: 'b' })
    const ends = await Promise.all([a.ask('go'), b.ask('go')])
    expect(ends.map(({ output }) => output)).toEqual([
      'b did it',
      'a/agent/x failed: DELEGATION_FAILED: the crew a waits for b and would be waited for',
    ])
    await stage.runtime.close()
  })

  test('mail: cancelling the caller ends the run over there', async () => {
    const answer = gate<ReturnType<typeof say>>()
    const stage = await openStage({
      model: (request) => (isOf(request, 'writer') ? call(['b_finder', { task: 'x' }]) : answer.opened),
    })
    const b = await stage.runtime.spawn(asked, { id: 'b' })
    const crew = await stage.runtime.spawn(asking, { id: 'a' })
    const run = crew.start('go')
    await until(() => stage.requests.length === 2)
    await crew.cancel()
    await expect(run.result).rejects.toMatchObject({ code: 'RUN_CANCELLED' })
    const { runs } = (await stage.worker.shard('b')).state
    await until(() => [...runs.values()].every(({ status }) => status === 'finished'))
    expect([...runs.values()][0]?.end?.code).toBe('RUN_CANCELLED')
    expect(await b.current()).toBeUndefined()
    answer.open(say('late'))
    await stage.runtime.close()
  })

  test('mail: an answer that does not come in time is told, and the run over there is ended', async () => {
    const stage = await openStage({
      model: (request) => {
        if (!isOf(request, 'writer')) return new Promise(() => undefined)
        const [result] = resultsIn(request)
        return result === undefined ? call(['b_finder', { task: 'x' }]) : say(result)
      },
    })
    await stage.runtime.spawn(asked, { id: 'b' })
    const patient = defineCrew({ name: 'asking', agents: { writer }, lead: 'writer', limits: { answerMs: 60_000 } })
    const crew = await stage.runtime.spawn(patient, { id: 'a' })
    const run = crew.start('go')
    await until(() => stage.requests.length === 2)
    stage.clock.advance(60_001)
    expect((await run.result).output).toBe('b/agent/finder failed: DELEGATION_FAILED: no answer came within 60 seconds')
    const { runs } = (await stage.worker.shard('b')).state
    await until(() => [...runs.values()][0]?.end?.code === 'RUN_CANCELLED')
    await stage.runtime.close()
  })
})

describe('mail: letters that come twice, late or not at all', () => {
  test('D6 OB1 mail: a process that dies before the hand-over sends again; one that dies behind it is not taken twice', async () => {
    for (const lost of ['before', 'after'] as const) {
      const store = createMemoryStore()
      let dying = true
      const stuck = (journal: Journal) =>
        override(journal, {
          append: async (record) => {
            // The last owner dies right before, or right after, the other crew took the letter.
            const isTaking = record.shard === 'b' && record.first > 1
            if (dying && isTaking && lost === 'before') return new Promise(() => undefined)
            await journal.append(record)
            if (dying && isTaking) await new Promise(() => undefined)
          },
        })
      const first = await openStage({ store, model: scripted, journal: stuck })
      await first.runtime.spawn(asked, { id: 'b' })
      const crew = await first.runtime.spawn(asking, { id: 'a' })
      void crew.start('go', { key: 'k' }).result.catch(() => undefined)
      await until(() => (store.shards.get('a')?.head.pending.outbox ?? 0) === 1)
      if (lost === 'after') await until(() => (store.shards.get('b')?.head.sequence ?? 0) > 1)
      await quiet()
      dying = false
      first.crash()
      const next = await openStage({ store, model: scripted, clock: first.clock, unclean: true })
      await next.runtime.spawn(asked, { id: 'b' })
      const again = await next.runtime.spawn(asking, { id: 'a' })
      const ended = again.ask('go', { key: 'k' })
      // What was refused while the code was not here comes again in time.
      expect((await inTime(next, ended)).output).toBe('told: found it')
      expect((await next.worker.shard('b')).state.runs.size).toBe(1)
      expect(await events(next, 'b', 'mail.taken')).toHaveLength(1)
      await next.runtime.close()
    }
  })

  test('OB4 mail: a letter whose content cannot be read now waits until it can, and the crew goes on', async () => {
    const store = createMemoryStore()
    // The other crew takes nothing: the letter stays.
    const stuck = (journal: Journal) =>
      override(journal, {
        append: (record) =>
          record.shard === 'b' && record.first > 1 ? new Promise(() => undefined) : journal.append(record),
      })
    const first = await openStage({ store, model: scripted, journal: stuck })
    await first.runtime.spawn(asked, { id: 'b' })
    const crew = await first.runtime.spawn(asking, { id: 'a' })
    void crew.start('go', { key: 'k' }).result.catch(() => undefined)
    await until(() => (store.shards.get('a')?.head.pending.outbox ?? 0) === 1)
    await quiet()
    // What is rebuilt from a snapshot has no texts in memory.
    await (await first.worker.shard('a')).snapshot()
    first.crash()
    let reads = 0
    const away = (journal: Journal) =>
      override(journal, {
        read: (id, from) => {
          if (id === 'a' && (reads += 1) < 4) throw new TroupeError('STORE_FAILED', 'the link is lost')
          return journal.read(id, from)
        },
      })
    const next = await openStage({ store, model: scripted, clock: first.clock, unclean: true, journal: away })
    await next.runtime.spawn(asked, { id: 'b' })
    const ended = (await next.runtime.spawn(asking, { id: 'a' })).ask('go', { key: 'k' })
    expect((await inTime(next, ended)).output).toBe('told: found it')
    expect(reads).toBeGreaterThanOrEqual(4)
    await next.runtime.close()
  })

  const letter = (number: number, sequence: number, life = 1) => ({
    from: 'a/envoy/x-1-0',
    to: 'crew/main',
    cause: `${sequence}-0|${life}|${number}`,
    body: { type: 'delegate.revoke' },
    values: [],
  })
  const receiving = async () => {
    const stage = await openStage()
    await stage.runtime.spawn(asked, { id: 'b' })
    const { worker } = stage
    return { stage, take: (draft: ReturnType<typeof letter>, isFirst = false) => worker.receive('b', draft, isFirst) }
  }

  test('MA2 IN1 mail: what was taken is dropped, what comes early is refused and taken later, in order', async () => {
    const { stage, take } = await receiving()
    await expect(take(letter(2, 6))).rejects.toMatchObject({ code: 'MAIL_GAP', retryable: true })
    await take(letter(1, 5))
    await take(letter(1, 5))
    await Promise.all([take(letter(2, 6)), take(letter(3, 6)), take(letter(2, 6))])
    expect(await events(stage, 'b', 'mail.taken')).toHaveLength(3)
    await expect(take(letter(5, 9))).rejects.toMatchObject({ code: 'MAIL_GAP' })
    // What is missing never comes.
    await take(letter(5, 9), true)
    expect((await stage.worker.shard('b')).state.mail.cursor('a')).toEqual({ life: 1, number: 5, sequence: 9 })
    await stage.runtime.close()
  })

  test('MA3 IN2 mail: a sender that goes back in time is refused, another life of it begins anew', async () => {
    const { stage, take } = await receiving()
    await take(letter(1, 50, 40))
    await take(letter(2, 51, 40))
    for (const back of [letter(2, 60, 40), letter(3, 50, 40), letter(3, 30, 20)])
      await expect(take(back)).rejects.toMatchObject({ code: 'SENDER_BEHIND', retryable: false })
    await take(letter(1, 70, 65))
    expect(await events(stage, 'b', 'mail.taken')).toHaveLength(3)
    await stage.runtime.close()
  })

  test('IN3 mail: another crew says here only what crews say to each other', async () => {
    const { stage, take } = await receiving()
    const forged = [
      { body: { type: 'crew.cancel' } },
      { body: { type: 'budget.granted' }, to: 'agent/keeper-r2' },
      { body: { type: 'crew.defined', definition: '' }, to: 'shard/self' },
      { body: { type: 'delegate.answered', code: null, reason: '' } },
      { body: { type: 'delegate.task', agent: 'a b', depth: 0, chain: [] } },
    ]
    for (const part of forged)
      await expect(take({ ...letter(1, 5), ...part })).rejects.toMatchObject({ code: 'MESSAGE_REFUSED' })
    await expect(take({ ...letter(1, 5), cause: '' })).rejects.toMatchObject({ code: 'ENVELOPE_INVALID' })
    await expect(stage.worker.receive('c', letter(1, 5), true)).rejects.toMatchObject({ code: 'CREW_UNKNOWN' })
    expect((await stage.worker.shard('b')).state.mail.cursor('a')).toBeUndefined()
    await stage.runtime.close()
  })

  test('OB2 mail: a crew whose code is not here yet holds up nobody else', async () => {
    const both = defineAgent({ model: 'a:writer', instructions: 'x', delegates: ['b/agent/finder', 'c/agent/finder'] })
    const model: Model = (request) => {
      if (!isOf(request, 'writer')) return say('found it')
      const results = resultsIn(request)
      return results.length === 0 ? call(['c_finder', { task: 'x' }], ['b_finder', { task: 'x' }]) : say(results.join())
    }
    const store = createMemoryStore()
    const before = await openStage({ store })
    for (const id of ['b', 'c']) await before.runtime.spawn(asked, { id })
    await before.runtime.close()
    const stage = await openStage({ store, model, clock: before.clock })
    await stage.runtime.spawn(asked, { id: 'b' })
    const crew = await stage.runtime.spawn(both, { id: 'a' })
    const run = crew.start('go')
    await until(() => stage.requests.some((request) => isOf(request, 'finder')))
    await stage.runtime.spawn(asked, { id: 'c' })
    stage.clock.advance(6_000)
    expect((await run.result).output).toBe('found it,found it')
    await stage.runtime.close()
  })
})
