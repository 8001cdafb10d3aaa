import { describe, expect, test } from 'vitest'
import { defineAgent } from '../../runtime/define.js'
import {
  call,
  failure,
  gate,
  type Model,
  openStage,
  override,
  quiet,
  resultsIn,
  say,
  until,
} from '../support/crew-stage.js'
import { createManualClock } from '../support/manual-clock.js'
import { z } from 'zod'
import { defineCrew, defineTool } from '../../runtime/define.js'
import type { Journal } from '../../runtime/journal.js'
import { parallel } from '../../runtime/flow.js'
import type { ModelFailure, ModelReply, ModelRequest } from '../../runtime/ports.js'
import { createMemoryStore } from '../../transport/memory-journal.js'
import { Owners } from '../support/owners.js'

const agent = defineAgent({ model: 'a:one', instructions: 'x' })
const failing: Parameters<typeof openStage>[0] = {
  model: (_, index) => (index === 0 ? failure('server', { retryAfterMs: 120_000 }) : say('done')),
}

describe('worker', () => {
  test('K1 worker: whoever asks while a shard is being rebuilt gets the same one', async () => {
    const slow = gate()
    let rebuilds = 0
    const stage = await openStage({
      journal: (journal) =>
        override(journal, {
          head: async (id) => {
            rebuilds += 1
            await slow.opened
            return journal.head(id)
          },
        }),
    })
    const asked = [stage.worker.shard('one'), stage.worker.shard('one'), stage.worker.shard('two')]
    await quiet()
    slow.open()
    const [first, second, other] = await Promise.all(asked)
    expect(second).toBe(first)
    expect(other).not.toBe(first)
    expect(await stage.worker.shard('one')).toBe(first)
    expect(rebuilds).toBe(2)
    await stage.runtime.close()
  })

  test('worker: what was heard of a shard before it said what it runs is looked up again', async () => {
    const owners = new Owners()
    const store = createMemoryStore({ shared: true })
    const crew = defineCrew({ name: 'pair', agents: { agent }, lead: 'agent' })
    const first = await openStage({ store, member: owners.join('a'), crews: [crew] })
    await first.runtime.spawn(crew)
    owners.rule = (version) => (version === '' ? 'b' : 'a')
    // As it was behind the first record: taken, and nothing more.
    const stale = (journal: Journal) =>
      override(journal, { head: async (id) => ({ ...(await journal.head(id)), sequence: 1, crew: '' }) })
    const second = await openStage({ store, member: owners.join('b'), crews: [crew], journal: stale })
    await expect(second.worker.whose('pair')).resolves.toBe('other')
    await expect(first.worker.whose('pair')).resolves.toBe('own')
    for (const { runtime } of [first, second]) await runtime.close()
  })

  test('K2 worker: what is open when the journal is opened is taken up without being asked for', async () => {
    const stage = await openStage({ model: () => gate<never>().opened })
    const crew = await stage.runtime.spawn(agent)
    crew.start('go')
    await until(() => stage.requests.length === 1)
    stage.crash()
    const again = await openStage({ store: stage.store, clock: stage.clock })
    await until(() => again.worker.active.has('agent'))
    const shard = await again.worker.shard('agent')
    await until(() => [...shard.state.effects.values()].every((effect) => effect.id !== '2-0' && !effect.parked))
    // It was interrupted and asked for anew; without a definition no port has it yet.
    expect(shard.state.effects.size).toBe(1)
    expect(again.requests).toEqual([])
    await again.runtime.close()
  })

  test('K2 worker: what is due, and what will be, is taken up without being asked for', async () => {
    const stage = await openStage(failing)
    const crew = await stage.runtime.spawn(agent)
    const id = await crew.start('go').id
    const shard = await stage.worker.shard('agent')
    await until(() => shard.state.effects.size === 0)
    stage.crash()
    const again = await openStage({ store: stage.store, clock: stage.clock })
    await quiet()
    expect(again.worker.active.size).toBe(0)
    again.clock.advance(120_000)
    await until(() => again.worker.active.has('agent'))
    const reopened = await again.runtime.spawn(agent)
    await expect(reopened.run(id).result).resolves.toMatchObject({ output: 'done' })
    await again.runtime.close()
  })

  test('worker: crashes over a call that its agent will ask for again are not forgotten over those of another', async () => {
    const store = createMemoryStore()
    const clock = createManualClock()
    const named = (instructions: string) => defineAgent({ model: 'a:one', instructions })
    const agents = { one: named('one'), two: named('two') }
    const crew = defineCrew({ name: 'pair', agents, flow: parallel(['one', 'two']) })
    const open = async (model?: Model) => {
      const stage = await openStage({ store, clock, unclean: true, ...(model && { model }), breakers: null })
      const run = (await stage.runtime.spawn(crew)).start('go', { key: 'k' })
      return { ...stage, run }
    }
    /** A process that dies over a call of the one; the other one's calls are answered so. */
    const dieOver = async (dying: string, other: () => ModelReply | ModelFailure, passingMs = 0) => {
      const isOver = ({ messages }: ModelRequest) => messages[0]!.includes(dying)
      const { requests, run, crash } = await open((request) => (isOver(request) ? gate<never>().opened : other()))
      run.result.catch(() => undefined)
      await quiet()
      clock.advance(passingMs)
      await until(() => requests.some(isOver))
      await quiet()
      crash()
    }
    const later = () => failure('server', { retryAfterMs: 90_000 })
    await dieOver('one', later)
    await dieOver('one', later)
    await dieOver('two', later, 90_000)
    await dieOver('one', () => say('done'), 90_000)
    const last = await open()
    await expect(last.run.result).rejects.toMatchObject({ code: 'EFFECT_CRASHED' })
    expect(last.requests).toEqual([])
    await last.runtime.close()
  })

  test('K2 TA3 worker: what a start asks for, when it gives a timer up, is not taken for left behind', async () => {
    const stage = await openStage(failing)
    const crew = await stage.runtime.spawn(agent)
    const first = await crew.start('one').id
    const shard = await stage.worker.shard('agent')
    await until(() => shard.state.effects.size === 0)
    const second = await crew.start('two').id
    stage.crash()
    stage.clock.advance(120_000)
    for (const _ of [1, 2]) {
      const fired = gate()
      const dying = await openStage({
        ...{ store: stage.store, clock: stage.clock, unclean: true },
        journal: (inner) =>
          override(inner, {
            append: (record) => {
              if (!Buffer.from(record.bytes).includes('timer.due')) return inner.append(record)
              fired.open()
              return gate<never>().opened
            },
          }),
      })
      await fired.opened
      dying.crash()
    }
    const last = await openStage({ store: stage.store, clock: stage.clock, unclean: true })
    const again = await last.runtime.spawn(agent)
    await expect(again.run(first).result).rejects.toMatchObject({ code: 'EFFECT_CRASHED' })
    await expect(again.run(second).result).resolves.toMatchObject({ output: 'done' })
    expect(last.requests).toHaveLength(1)
    const { records } = stage.store.shards.get('agent')!
    expect(records.some(({ bytes }) => Buffer.from(bytes).includes('timer.crashed'))).toBe(true)
    expect(records.some(({ bytes }) => Buffer.from(bytes).includes('effect.interrupted'))).toBe(false)
    await last.runtime.close()
  })

  test('K3 worker: a shard that cannot be rebuilt says why to whoever asks; the others are not touched', async () => {
    const stage = await openStage()
    for (const id of ['one', 'two']) await (await stage.runtime.spawn(agent, { id })).ask('go')
    stage.crash()
    stage.store.shards.get('one')!.records.splice(1, 1)
    const again = await openStage({ store: stage.store, clock: stage.clock })
    for (const _ of [1, 2]) await expect(again.worker.shard('one')).rejects.toMatchObject({ code: 'JOURNAL_CORRUPT' })
    await expect(again.runtime.spawn(agent, { id: 'one' })).rejects.toMatchObject({ code: 'JOURNAL_CORRUPT' })
    await expect((await again.runtime.spawn(agent, { id: 'two' })).ask('go')).resolves.toMatchObject({ output: 'done' })
    await again.runtime.close()
  })

  test('K4 worker: a quiet shard leaves memory, and its next timer wakes it', async () => {
    const stage = await openStage({ ...failing, idleMs: 10_000 })
    const shard = await stage.worker.shard('agent')
    await shard.define(stage.bind({ ...(await crewOf()) }))
    await shard.post(task('k1'), true)
    await until(() => stage.requests.length === 1)
    await quiet()
    stage.clock.advance(60_000)
    await until(() => !stage.worker.active.has('agent'))
    await quiet()
    stage.clock.advance(61_000)
    await until(() => stage.worker.active.has('agent'))
    const woken = await stage.worker.shard('agent')
    expect(woken).not.toBe(shard)
    await until(() => woken.state.effects.size === 1)
    await stage.runtime.close()
  })

  test('K4 worker: a shard that is pinned, watched, busy or waits for a port stays', async () => {
    const lookup = defineTool({ name: 'lookup', description: '', input: z.object({}), run: () => hang.opened })
    const hang = gate<string>()
    const busy = defineAgent({ model: 'a:one', instructions: 'x', tools: [lookup] })
    const stage = await openStage({
      idleMs: 10_000,
      model: (request) => (resultsIn(request).length === 0 ? call(['lookup']) : say('done')),
    })
    const unpin = stage.worker.pin('one')
    const first = await stage.worker.shard('one')
    const unsubscribe = stage.worker.hub.subscribe('two', { take: () => undefined, show: () => undefined })
    const second = await stage.worker.shard('two')
    const crew = await stage.runtime.spawn(busy, { id: 'three' })
    const run = crew.start('go')
    await until(() => stage.requests.length === 1)
    await quiet()
    stage.clock.advance(45_000)
    await quiet()
    expect([...stage.worker.active.keys()].sort()).toEqual(['one', 'three', 'two'])
    expect(await stage.worker.shard('one')).toBe(first)
    expect(await stage.worker.shard('two')).toBe(second)
    unpin()
    unpin()
    unsubscribe()
    stage.clock.advance(45_000)
    await until(() => stage.worker.active.size === 1)
    hang.open('late')
    await expect(run.result).resolves.toMatchObject({ output: 'done' })
    await stage.runtime.close()
  })

  test('K4 worker: a run whose shard left memory in between goes on', async () => {
    const stage = await openStage({ ...failing, idleMs: 10_000 })
    const crew = await stage.runtime.spawn(agent)
    const run = crew.start('go')
    await until(() => stage.requests.length === 1)
    await quiet()
    stage.clock.advance(121_000)
    await expect(run.result).resolves.toMatchObject({ output: 'done' })
    await stage.runtime.close()
  })

  test('worker: closed, it refuses with RUNTIME_CLOSED, and whoever waits is told', async () => {
    const stage = await openStage({ model: () => gate<never>().opened })
    const crew = await stage.runtime.spawn(agent)
    const run = crew.start('go')
    const result = run.result
    const read = (async () => {
      for await (const _ of run.events) void _
    })()
    await until(() => stage.requests.length === 1)
    const [, closing] = [read.catch(() => undefined), stage.runtime.close()]
    await expect(result).rejects.toMatchObject({ code: 'RUNTIME_CLOSED', details: { runId: 'r2' } })
    await expect(read).rejects.toMatchObject({ code: 'RUNTIME_CLOSED' })
    await closing
    await expect(crew.start('more').id).rejects.toMatchObject({ code: 'RUNTIME_CLOSED' })
    await expect(crew.pause()).rejects.toMatchObject({ code: 'RUNTIME_CLOSED' })
    await expect(stage.runtime.spawn(agent)).rejects.toMatchObject({ code: 'RUNTIME_CLOSED' })
    await expect(stage.runtime.close()).resolves.toBeUndefined()
  })

  test('worker: an upgrade that is accepted while the shard is being woken is not lost', async () => {
    const stage = await openStage()
    const slow = gate()
    const shard = stage.worker.shard('one')
    const accepted = stage.worker.shard('one', { acceptUpgrade: true })
    slow.open()
    expect(await accepted).toBe(await shard)
    await stage.runtime.close()
  })

  test('worker: a removed crew is gone, its timers too', async () => {
    const stage = await openStage(failing)
    const crew = await stage.runtime.spawn(agent)
    crew.start('go')
    await until(() => stage.requests.length === 1)
    await quiet()
    await stage.runtime.remove('agent')
    await expect(stage.runtime.show('agent')).rejects.toMatchObject({ code: 'CREW_UNKNOWN' })
    await expect(stage.runtime.remove('agent')).rejects.toMatchObject({ code: 'CREW_UNKNOWN' })
    stage.clock.advance(300_000)
    await quiet()
    expect(stage.requests).toHaveLength(1)
    expect(stage.worker.active.has('agent')).toBe(false)
    await stage.runtime.close()
  })
})

async function crewOf() {
  const { toCrew } = await import('../../runtime/define.js')
  return toCrew(agent)
}

function task(key: string) {
  const body = { type: 'crew.task', tokens: 1, messages: 1, key, data: false }
  return { from: 'client/local', to: 'crew/main', cause: '', body, values: ['{"role":"user","content":"go"}'] }
}
