import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { type AnyStateMachine, assign, createMachine, emit, sendParent, setup } from 'xstate'
import { z } from 'zod'
import { agentMachine } from '../../machines/index.js'
import { connectRuntime } from '../../runtime/control-client.js'
import { defineAgent } from '../../runtime/define.js'
import { defineMachine } from '../../runtime/define-machine.js'
import type { TroupeEvent } from '../../runtime/events.js'
import { createRuntime } from '../../runtime/index.js'
import { prepareCrew } from '../../runtime/prepared-crew.js'
import { createMemoryStore } from '../../transport/memory-journal.js'
import { openStage, quiet, until } from '../support/crew-stage.js'
import { createManualClock } from '../support/manual-clock.js'

interface Context {
  readonly customer: string
  readonly items: number
}

const payment = createMachine({
  id: 'payment',
  initial: 'waiting',
  states: { waiting: { after: { 1_000: 'paid' } }, paid: { type: 'final', entry: sendParent({ type: 'paid.soon' }) } },
  output: { receipt: 7 },
})
const notified: string[] = []
const orderMachine = setup({
  types: {} as {
    context: Context
    input: { customer: string }
    events: { type: 'add'; items: number } | { type: 'order' } | { type: 'paid.soon' } | { type: 'throw' }
    output: { items: number; receipt: unknown }
  },
  actors: { payment },
  actions: {
    notify: ({ context }) => {
      notified.push(`${context.customer} ${context.items}`)
      if (context.items > 100) throw new Error('too many')
    },
    slow: (() => Promise.reject(new Error('late'))) as () => void,
  },
}).createMachine({
  id: 'order',
  context: ({ input }) => ({ customer: input.customer, items: 0 }),
  initial: 'open',
  output: ({ context, event }) => ({
    items: context.items,
    receipt: (event as unknown as { output?: unknown }).output ?? null,
  }),
  on: {
    throw: {
      actions: assign(() => {
        throw new Error('planted')
      }),
    },
  },
  states: {
    open: {
      on: {
        add: {
          actions: [
            assign({ items: ({ context, event }) => context.items + event.items }),
            emit({ type: 'added' } as never),
            'notify',
            'slow',
          ],
        },
        order: 'paying',
      },
    },
    paying: { invoke: { src: 'payment', id: 'payment', onDone: 'done' } },
    done: { type: 'final' },
  },
})
const order = defineMachine(orderMachine, { input: z.object({ customer: z.string() }) })

describe('machine handle', () => {
  test('MH1 machine: what it is sent moves it, its children end it, and its output is the result', async () => {
    const stage = await openStage()
    const machine = await stage.runtime.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    await machine.send({ type: 'add', items: 2 })
    expect(await machine.state()).toEqual({ status: 'active', value: 'open', context: { customer: 'Ada', items: 2 } })
    await machine.send({ type: 'order' })
    const { result } = machine
    stage.clock.advance(1_000)
    expect(await result).toEqual({ items: 2, receipt: null })
    expect(await machine.result).toEqual({ items: 2, receipt: null })
    expect(await machine.state()).toMatchObject({ status: 'done', value: 'done' })
    await expect(machine.send({ type: 'order' })).rejects.toMatchObject({ code: 'MACHINE_ENDED' })
    await stage.runtime.close()
  })

  test('UA3 machine: killed and spawned again it goes on, and its timers are due; its end is told again', async () => {
    const store = createMemoryStore()
    const clock = createManualClock()
    const first = await openStage({ store, clock })
    const before = await first.runtime.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    await before.send({ type: 'add', items: 3 })
    await before.send({ type: 'order' })
    first.crash()
    clock.advance(400)
    const second = await openStage({ store, clock, unclean: true })
    const again = await second.runtime.spawn(order, { id: 'o1', input: { customer: 'Bob' } })
    expect((await again.state()).context).toEqual({ customer: 'Ada', items: 3 })
    clock.advance(600)
    expect(await again.result).toEqual({ items: 3, receipt: null })
    await second.runtime.close()
    const third = await openStage({ store, clock })
    expect(await (await third.runtime.spawn(order, { id: 'o1' } as never)).result).toEqual({ items: 3, receipt: null })
    await third.runtime.close()
  })

  test('UC1 machine: actions of its own run once, behind the commit and not on replay; one that throws is an event', async () => {
    const store = createMemoryStore()
    notified.length = 0
    const first = await openStage({ store })
    const before = await first.runtime.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    await before.send({ type: 'add', items: 1 })
    await before.send({ type: 'add', items: 200 })
    expect(notified).toEqual(['Ada 1', 'Ada 201'])
    const events: TroupeEvent[] = []
    for await (const event of before.events()) {
      if (event.type === 'troupe.action.failed') events.push(event)
      if (events.length === 3) break
    }
    expect(events.map(({ data }) => data)).toEqual([
      { actor: 'machine/main', action: 'slow', reason: 'late' },
      { actor: 'machine/main', action: 'notify', reason: 'too many' },
      { actor: 'machine/main', action: 'slow', reason: 'late' },
    ])
    first.crash()
    const second = await openStage({ store, unclean: true })
    const again = await second.runtime.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    expect((await again.state()).context).toEqual({ customer: 'Ada', items: 201 })
    expect(notified).toHaveLength(2)
    await second.runtime.close()
  })

  test('machine: one that throws fails, its result says what over, and its children go with it', async () => {
    const stage = await openStage()
    const machine = await stage.runtime.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    await machine.send({ type: 'order' })
    await machine.send({ type: 'throw' })
    await expect(machine.result).rejects.toMatchObject({ code: 'ACTOR_FAILED', message: 'planted' })
    expect(await machine.state()).toMatchObject({ status: 'error', error: { name: 'Error', message: 'planted' } })
    expect([...(await stage.worker.shard('o1')).state.actors.keys()]).toEqual(['machine/main'])
    expect((await stage.worker.shard('o1')).state.timers.size).toBe(0)
    await stage.runtime.close()
  })

  test('UA4 machine: cancelled it ends with RUN_CANCELLED, with its children and timers', async () => {
    const stage = await openStage()
    const machine = await stage.runtime.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    await machine.send({ type: 'order' })
    await machine.cancel()
    await machine.cancel()
    await expect(machine.result).rejects.toMatchObject({ code: 'RUN_CANCELLED' })
    const { state } = await stage.worker.shard('o1')
    expect([state.actors.size, state.timers.size]).toEqual([1, 0])
    await stage.runtime.close()
  })

  test('MH2 machine: whoever waits for it keeps it in memory; who leaves its events cancels nothing', async () => {
    const stage = await openStage({ idleMs: 1_000 })
    const machine = await stage.runtime.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    machine.release()
    const { result } = machine
    await quiet()
    for (let times = 0; times < 5; times += 1) {
      stage.clock.advance(1_000)
      await quiet()
    }
    expect(stage.worker.active.has('o1')).toBe(true)
    for await (const { type } of machine.events()) if (type === 'troupe.crew.defined') break
    expect((await machine.state()).status).toBe('active')
    await stage.runtime.close()
    await expect(result).rejects.toMatchObject({ code: 'RUNTIME_CLOSED' })
  })

  test('DM2 machine: what it may not be given is refused, and nothing of it is journalled', async () => {
    const stage = await openStage()
    await expect(stage.runtime.spawn(order, { id: 'o1', input: { customer: 7 } as never })).rejects.toMatchObject({
      code: 'INPUT_INVALID',
    })
    const typed = defineMachine(orderMachine, { messages: z.object({ type: z.literal('order') }) })
    const machine = await stage.runtime.spawn(typed, { id: 'o1', input: { customer: 'Ada' } })
    const { sequence } = (await stage.worker.shard('o1')).state
    const send = (message: unknown) => machine.send(message as never)
    await expect(send({ type: 'add', items: 1 })).rejects.toMatchObject({ code: 'INPUT_INVALID' })
    const open = await stage.runtime.spawn(order, { id: 'o2', input: { customer: 'Ada' } })
    const other = (message: unknown) => open.send(message as never)
    await expect(other({ type: 'xstate.done.actor.payment' })).rejects.toMatchObject({ code: 'MESSAGE_REFUSED' })
    await expect(other({ type: '*' })).rejects.toMatchObject({ code: 'MESSAGE_REFUSED' })
    for (const odd of [
      null,
      'add',
      {},
      { type: 1 },
      { type: 'add', items: () => 1 },
      { type: 'add', items: 1n },
      { type: 'x', text: 'x'.repeat(300_000) },
    ])
      await expect(other(odd)).rejects.toMatchObject({ code: 'INPUT_INVALID' })
    expect((await stage.worker.shard('o1')).state.sequence).toBe(sequence)
    await stage.runtime.close()
  })

  test('machine: in a process that does not know it nothing is lost: MACHINE_UNKNOWN until it is spawned', async () => {
    const store = createMemoryStore()
    const clock = createManualClock()
    const first = await openStage({ store, clock })
    const before = await first.runtime.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    await before.send({ type: 'order' })
    await first.runtime.close()
    clock.advance(5_000)
    const second = await openStage({ store, clock })
    await expect(second.worker.shard('o1')).rejects.toMatchObject({ code: 'MACHINE_UNKNOWN' })
    const again = await second.runtime.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    clock.advance(1)
    expect(await again.result).toEqual({ items: 0, receipt: null })
    await second.runtime.close()
  })

  test('machine: an id is a crew’s or a machine’s, and not both', async () => {
    const stage = await openStage()
    await stage.runtime.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    const agent = defineAgent({ name: 'one', model: 'a:one', instructions: '' })
    await expect(stage.runtime.spawn(agent, { id: 'o1' })).rejects.toMatchObject({ code: 'CREW_INVALID' })
    await stage.runtime.spawn(agent, { id: 'c1' })
    await expect(stage.runtime.spawn(order, { id: 'c1', input: { customer: 'A' } })).rejects.toMatchObject({
      code: 'CREW_INVALID',
    })
    await stage.runtime.close()
  })

  test('machine: another version goes on by `migrate`, and only by it', async () => {
    const store = createMemoryStore()
    const first = await openStage({ store })
    const before = await first.runtime.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    await before.send({ type: 'add', items: 3 })
    await before.send({ type: 'order' })
    await first.runtime.close()
    const refused = await openStage({ store })
    const faster = createMachine({
      id: 'payment',
      initial: 'waiting',
      states: { waiting: { after: { 5: 'waiting' } } },
    })
    const changed = defineMachine(orderMachine.provide({ actors: { payment: faster } } as never), { version: '2' })
    await expect(refused.runtime.spawn(changed, { id: 'o1' } as never)).rejects.toMatchObject({
      code: 'UPGRADE_REFUSED',
    })
    await refused.runtime.close()
    const second = await openStage({ store })
    const migrated = defineMachine(orderMachine, {
      version: '2',
      migrate: ({ value, context }, from) => ({
        value,
        context: { ...(context as Context), customer: `was ${from}.` },
      }),
    })
    const again = await second.runtime.spawn(migrated, { id: 'o1' } as never)
    expect(await again.state()).toMatchObject({ context: { customer: 'was .', items: 3 } })
    await second.runtime.close()
  })

  test('machine: parallel states are migrated by their value, whatever order they were entered in', async () => {
    const make = (left: string) =>
      createMachine({
        id: 'two',
        type: 'parallel',
        states: { a: { initial: left, states: { [left]: { on: { go: 'end' } }, end: {} } }, b: {} },
      })
    const store = createMemoryStore()
    const first = await openStage({ store })
    await first.runtime.spawn(defineMachine(make('old')))
    await first.runtime.close()
    const second = await openStage({ store })
    const migrated = defineMachine(make('new'), {
      version: '2',
      migrate: ({ context }) => ({ value: { a: 'new', b: {} }, context }),
    })
    const machine = await second.runtime.spawn(migrated)
    expect((await machine.state()).value).toEqual({ a: 'new', b: {} })
    await machine.send({ type: 'go' })
    expect((await machine.state()).value).toEqual({ a: 'end', b: {} })
    await second.runtime.close()
  })

  test('DM1 machine: a definition that is none is refused', () => {
    for (const make of [
      () => defineMachine(orderMachine, { name: 'no name' }),
      () => defineMachine(orderMachine, { extra: 1 } as never),
      () => defineMachine(createMachine({})),
      () => defineMachine(orderMachine, { input: {} as never }),
    ])
      expect(make).toThrow(expect.objectContaining({ code: 'CREW_INVALID' }))
    expect(() => defineMachine(orderMachine, { promises: { nothing: 'pure' } })).toThrow(
      expect.objectContaining({ code: 'MACHINE_UNSUPPORTED' }),
    )
    expect(() => defineMachine({} as never, { name: 'x' })).toThrow(
      expect.objectContaining({ code: 'MACHINE_UNSUPPORTED' }),
    )
    expect(defineMachine(agentMachine as never).name).toBe('agent')
  })

  test('machine: it is shown, listed and cancelled by its id like any crew, and has no agents to hold', async () => {
    const stage = await openStage()
    const machine = await stage.runtime.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    await machine.send({ type: 'order' })
    expect(await stage.runtime.show('o1')).toMatchObject({
      crew: 'order',
      openEffects: 0,
      actors: [{ address: 'machine/main', state: 'paying' }, { state: 'waiting' }],
    })
    for (const hold of [stage.runtime.pause('o1'), stage.runtime.resume('o1')])
      await expect(hold).rejects.toMatchObject({ code: 'CREW_INVALID' })
    await expect(stage.runtime.steer('o1', 'faster')).rejects.toMatchObject({ code: 'STEER_REFUSED' })
    await stage.runtime.cancel('o1')
    await expect(machine.result).rejects.toMatchObject({ code: 'RUN_CANCELLED' })
    await stage.runtime.remove('o1')
    await stage.runtime.close()
  })

  test('machine: one that waits for messages is not at rest, one that has ended is', async () => {
    const stage = await openStage({ retainMs: 10_000, idleMs: 1_000 })
    const waiting = await stage.runtime.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    const done = await stage.runtime.spawn(order, { id: 'o2', input: { customer: 'Ada' } })
    await done.cancel()
    for (const handle of [waiting, done]) handle.release()
    const ids = async (): Promise<string[]> => {
      const found: string[] = []
      for await (const { id } of stage.runtime.list()) found.push(id)
      return found.sort()
    }
    await until(async () => {
      stage.clock.advance(5_000)
      await quiet()
      return (await ids()).length === 1
    })
    expect(await ids()).toEqual(['o1'])
    await stage.runtime.close()
  })

  test('machine: a runtime that is told of it takes it up before anybody spawns it', async () => {
    const store = await mkdtemp(join(tmpdir(), 'troupe-machines-'))
    const first = await createRuntime({ store, log: 'silent' })
    const machine = await first.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    await machine.send({ type: 'add', items: 1 })
    await first.close()
    const second = await createRuntime({ store, log: 'silent', machines: [order as never] })
    expect((await second.show('o1')).actors).toMatchObject([{ address: 'machine/main', state: 'open' }])
    await second.close()
    const third = await createRuntime({ store, log: 'silent' })
    await expect(third.show('o1')).rejects.toMatchObject({ code: 'MACHINE_UNKNOWN' })
    await third.close()
    await rm(store, { recursive: true })
  })

  test('RH1 machine: where its store is another process’s it is used through that one, once it was spawned there', async () => {
    const store = await mkdtemp(join(tmpdir(), 'troupe-machines-'))
    const owner = await createRuntime({ store, log: 'silent' })
    const remote = (await connectRuntime({ store, hashOf: (crew) => prepareCrew(crew, null as never).hash }))!
    await expect(remote.spawn(order, { id: 'o1', input: { customer: 'Eve' } })).rejects.toMatchObject({
      code: 'STORE_BUSY',
    })
    await owner.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    const machine = await remote.spawn(order, { id: 'o1', input: { customer: 'Eve' } })
    await machine.send({ type: 'add', items: 1 }, { key: 'k' })
    await machine.send({ type: 'add', items: 1 }, { key: 'k' })
    expect((await machine.state()).context).toEqual({ customer: 'Ada', items: 1 })
    const { result } = machine
    const types: string[] = []
    for await (const { type } of machine.events()) if (types.push(type) > 1) break
    expect(types).toEqual(['troupe.crew.defined', 'troupe.machine.emitted'])
    await machine.cancel()
    await expect(result).rejects.toMatchObject({ code: 'RUN_CANCELLED' })
    await expect(machine.send({ type: 'order' })).rejects.toMatchObject({ code: 'MACHINE_ENDED' })
    await remote.close()
    await owner.close()
    await rm(store, { recursive: true })
  })

  test('HE2 MH3 machine: what is sent again under its key is taken once, also behind a crash, a snapshot and the end', async () => {
    const store = createMemoryStore()
    const first = await openStage({ store })
    const machine = await first.runtime.spawn(order, { id: 'o1', input: { customer: 'Ada' } })
    await Promise.all([
      machine.send({ type: 'add', items: 1 }, { key: 'a' }),
      machine.send({ type: 'add', items: 1 }, { key: 'a' }),
      machine.send({ type: 'add', items: 1 }),
    ])
    expect((await machine.state()).context).toEqual({ customer: 'Ada', items: 2 })
    first.crash()
    const second = await openStage({ store, unclean: true })
    const again = await second.runtime.spawn(order, { id: 'o1' } as never)
    await again.send({ type: 'add', items: 1 }, { key: 'a' })
    expect((await again.state()).context).toEqual({ customer: 'Ada', items: 2 })
    await again.send({ type: 'throw' }, { key: 'b' })
    // A close writes a snapshot.
    await second.runtime.close()
    const third = await openStage({ store })
    const ended = await third.runtime.spawn(order, { id: 'o1' } as never)
    for (const key of ['a', 'b']) await ended.send({ type: 'add', items: 1 }, { key })
    for (const key of ['c', 'c'])
      await expect(ended.send({ type: 'order' }, { key })).rejects.toMatchObject({ code: 'MACHINE_ENDED' })
    await expect(ended.send({ type: 'order' }, { key: '' })).rejects.toMatchObject({ code: 'INPUT_INVALID' })
    await third.runtime.close()
  })

  test('UA5 machine: code that comes to another state, another context or other emits is refused on replay', async () => {
    const counter = (step: number, says: string, state: string) => {
      const count = assign({ count: ({ context }: { context: { count: number } }) => context.count + step })
      const entry = [count, emit({ type: says } as never)]
      const states = { idle: { on: { go: state } }, [state]: { entry } }
      const machine = createMachine({ id: 'counter', context: { count: 0 }, initial: 'idle', states } as never)
      return defineMachine(machine as unknown as AnyStateMachine)
    }
    const store = createMemoryStore()
    const first = await openStage({ store })
    const machine = await first.runtime.spawn(counter(1, 'went', 'gone'))
    await machine.send({ type: 'go' })
    first.crash()
    for (const changed of [counter(2, 'went', 'gone'), counter(1, 'left', 'gone'), counter(1, 'went', 'away')]) {
      const stage = await openStage({ store, unclean: true })
      await expect(stage.runtime.spawn(changed)).rejects.toMatchObject({ code: 'UPGRADE_REFUSED' })
      stage.crash()
    }
    const last = await openStage({ store, unclean: true })
    const same = await last.runtime.spawn(counter(1, 'went', 'gone'))
    expect(await same.state()).toMatchObject({ value: 'gone', context: { count: 1 } })
    last.crash()
    const accepting = await openStage({ store, unclean: true })
    const accepted = await accepting.runtime.spawn(counter(2, 'went', 'gone'), { acceptUpgrade: true })
    expect(await accepted.state()).toMatchObject({ context: { count: 2 } })
    await accepting.runtime.close()
  })

  test('machine: a schema that throws refuses what it was to check', async () => {
    const throws = (): never => {
      throw new Error('planted')
    }
    const strict = defineMachine(createMachine({ id: 'strict' }), {
      input: z.unknown().refine(throws),
      messages: z.unknown().refine(throws),
    })
    const stage = await openStage()
    await expect(stage.runtime.spawn(strict)).rejects.toMatchObject({ code: 'INPUT_INVALID' })
    await stage.runtime.close()
  })

  test('machine: what it emits is an event of its own kind, whatever it is called', async () => {
    const liar = defineMachine(
      createMachine({ id: 'liar', on: { go: { actions: emit({ type: 'run.finished' } as never) } } }),
    )
    const stage = await openStage()
    const machine = await stage.runtime.spawn(liar)
    await machine.send({ type: 'go' })
    await machine.cancel()
    const types: string[] = []
    for await (const { type, data } of machine.events()) types.push(`${type} ${JSON.stringify(data['event'] ?? null)}`)
    expect(types).toContain('troupe.machine.emitted {"type":"run.finished"}')
    expect(types.at(-1)).toBe('troupe.machine.finished null')
    await until(async () => (await machine.state()).status === 'error')
    await stage.runtime.close()
  })
})
