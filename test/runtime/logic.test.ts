import { describe, expect, test } from 'vitest'
import {
  type AnyStateMachine,
  assign,
  createMachine,
  emit,
  enqueueActions,
  fromCallback,
  fromEventObservable,
  fromObservable,
  fromPromise,
  fromTransition,
  sendTo,
  setup,
  spawnChild,
} from 'xstate'
import { to } from '../../machines/index.js'
import { defineMachine } from '../../runtime/define-machine.js'
import { formOf } from '../../runtime/logic.js'
import { DecidedMachine, logicOf } from '../support/decided-machine.js'
import { events } from '../support/envelopes.js'

const child = createMachine({ id: 'child', initial: 'a', states: { a: {} } })
const callback = fromCallback(() => undefined)
const observable = fromObservable(() => ({ subscribe: () => ({ unsubscribe: () => undefined }) }) as never)
const eventObservable = fromEventObservable(() => ({ subscribe: () => ({ unsubscribe: () => undefined }) }) as never)
const reducer = fromTransition((state: number) => state + 1, 0)
const promise = fromPromise(() => Promise.resolve(1))

/** A machine that does something on `go`. */
const doing = (action: unknown): AnyStateMachine =>
  setup({ actors: { child } }).createMachine({
    on: { go: { actions: action as never } },
    initial: 'a',
    states: { a: {} },
  })
const invoking = (invoke: object): AnyStateMachine => createMachine({ id: 'x', invoke: invoke as never })

describe('logic: refused where it is defined', () => {
  const refused: Readonly<Record<string, () => AnyStateMachine>> = {
    'an invoked callback': () => invoking({ src: callback, id: 'c' }),
    'a named callback': () => setup({ actors: { callback } }).createMachine({ invoke: { src: 'callback', id: 'c' } }),
    'an observable': () => invoking({ src: observable, id: 'c' }),
    'an observable of events': () => invoking({ src: eventObservable, id: 'c' }),
    'a callback of a child': () => invoking({ src: createMachine({ invoke: { src: callback, id: 'c' } }), id: 'k' }),
    'a callback in an inner state': () =>
      createMachine({
        initial: 'a',
        states: { a: { initial: 'b', states: { b: { invoke: { src: callback, id: 'c' } } } } },
      }),
    onSnapshot: () => invoking({ src: child, id: 'c', onSnapshot: { actions: [] } }),
    'a system id': () => invoking({ src: child, id: 'c', systemId: 's' }),
    'a spawned child without an id': () => doing(spawnChild(child)),
    'a spawned child with a system id': () => doing(spawnChild(child, { id: 'c', systemId: 's' } as never)),
    'a spawned child whose snapshots are read': () => doing(spawnChild(child, { id: 'c', syncSnapshot: true })),
    'a spawned callback': () => doing(spawnChild(callback, { id: 'c' })),
    'a spawned child by a named action': () =>
      setup({ actions: { start: spawnChild(child) as never } }).createMachine({ entry: 'start' as never }),
    'logic that is not there': () => invoking({ src: 'nothing', id: 'c' }),
  }

  test.each(Object.entries(refused))('LG1 logic: %s is refused when the machine is defined', (_, make) => {
    expect(() => defineMachine(make(), { name: 'x' })).toThrow(expect.objectContaining({ code: 'MACHINE_UNSUPPORTED' }))
  })

  test('logic: what it is told by what it does', () => {
    expect([child, reducer, promise, callback, observable, eventObservable, {}, null, 7].map(formOf)).toEqual([
      ...['machine', 'transition', 'promise'],
      ...Array<null>(6).fill(null),
    ])
  })

  test('logic: a callback that nobody starts does no harm', () => {
    expect(() => logicOf(setup({ actors: { callback } }).createMachine({}))).not.toThrow()
  })

  test('LG2 logic: kinds are the way down by names', () => {
    const inner = setup({ actors: { reducer, promise } }).createMachine({ invoke: { src: 'promise', id: 'p' } })
    const outer = setup({ actors: { inner } }).createMachine({
      id: 'outer',
      entry: spawnChild(reducer as never, { id: 'sum' } as never),
      invoke: [
        { src: 'inner', id: 'i' },
        { src: child, id: 'c' },
      ],
    } as never)
    expect([...logicOf(outer as unknown as AnyStateMachine).keys()]).toEqual([
      ...['machine:user', 'machine:user/inner', 'machine:user/inner/reducer', 'machine:user/inner/promise'],
      'machine:user/invoke.c',
    ])
  })
})

describe('logic: refused at the step', () => {
  const refused: Readonly<Record<string, unknown>> = {
    'spawn inside assign': assign(({ spawn }: never) => ({
      ref: (spawn as (...all: unknown[]) => unknown)('child', { id: 'c' }),
    })),
    'a child without an id, by enqueueActions': enqueueActions(({ enqueue }) =>
      (enqueue as unknown as { spawnChild(of: string): void }).spawnChild('child'),
    ),
    'a child with a system id': enqueueActions(({ enqueue }) =>
      (enqueue as unknown as { spawnChild(of: string, options: object): void }).spawnChild('child', {
        id: 'c',
        systemId: 's',
      }),
    ),
    'a child whose snapshots are read': enqueueActions(({ enqueue }) =>
      (enqueue as unknown as { spawnChild(of: string, options: object): void }).spawnChild('child', {
        id: 'c',
        syncSnapshot: true,
      }),
    ),
    'a child of logic that nobody has named': enqueueActions(({ enqueue }) =>
      enqueue.spawnChild(createMachine({}) as never, { id: 'c' } as never),
    ),
    'system.get': enqueueActions(({ system }) => void system.get('other')),
    'self.send': enqueueActions(({ self }) => self.send({ type: 'x' })),
    'reading a snapshot': enqueueActions(({ self }) => void self.getSnapshot()),
    'sending to a port': sendTo(to('port/model'), { type: 'model.call' }),
    'sending to a conversation': sendTo(to('log/x'), { type: 'log.clear' }),
    'sending to the shard': sendTo(to('shard/runs'), { type: 'run.queued' }),
    'sending to an agent': sendTo(to('agent/writer'), { type: 'x' }),
    'sending to another crew': sendTo(to('other/crew/main'), { type: 'crew.task' }),
    'sending to something else': sendTo((() => ({ no: 'address' })) as never, { type: 'x' } as never),
    'a delay that is none': sendTo(to('machine/x'), { type: 'x' } as never, { delay: Number.POSITIVE_INFINITY }),
  }

  test.each(Object.entries(refused))('LS1 logic: %s fails the machine, and nothing of it is done', (_, action) => {
    const machine = new DecidedMachine(doing(action), {}, true)
    machine.send({ type: 'go' })
    expect(machine.told).toMatchObject({ status: 'error', children: {} })
    const [end] = events(machine.commits.at(-1)!, 'machine.finished')
    expect(end).toMatchObject({ code: 'MACHINE_UNSUPPORTED' })
    expect(events(machine.commits.at(-1)!, 'message.dead')).toHaveLength(1)
    expect(machine.state.timers.size + machine.state.effects.size + machine.state.mail.outbox.size).toBe(0)
  })

  const notPlain: Readonly<Record<string, unknown>> = {
    'a function in its context': assign({ x: () => () => 1 } as never),
    'a date in its context': assign({ x: () => new Date(0) } as never),
    'no number in its context': assign({ x: () => Number.NaN } as never),
    'a ring in a message': sendTo(to('machine/x'), () => {
      const ring: Record<string, unknown> = { type: 'x' }
      ring['ring'] = ring
      return ring as never
    }),
    'a message without a type': sendTo(to('machine/x'), (() => ({})) as never),
    'a big number in an event': emit((() => ({ type: 'x', n: 1n })) as never),
    'a key that reaches a prototype': assign((() => ({ x: JSON.parse('{"__proto__":{"a":1}}') as object })) as never),
  }

  test.each(Object.entries(notPlain))('LS4 PL2 logic: %s fails the machine and no shard', (_, action) => {
    const machine = new DecidedMachine(doing(action), {}, true)
    machine.send({ type: 'go' })
    expect(events(machine.commits.at(-1)!, 'machine.finished')).toMatchObject([{ code: 'CONTEXT_NOT_PLAIN' }])
  })

  test('LS4 PL1 logic: what is undefined is left out, so that a context comes back as it is', () => {
    const machine = new DecidedMachine(
      doing(assign({ gone: () => undefined, list: () => [1, undefined] } as never)),
      {},
      true,
    )
    machine.send({ type: 'go' })
    expect(machine.told.context).toEqual({ list: [1, null] })
    expect(Object.keys(machine.told.context as object)).toEqual(['list'])
    machine.restore()
    expect(machine.told.context).toEqual({ list: [1, null] })
  })

  test('logic: a step that never comes to rest ends with COMMIT_OVERFLOW', () => {
    const machine = new DecidedMachine(
      createMachine({
        context: { n: 0 },
        initial: 'a',
        states: {
          a: { on: { go: 'b' } },
          b: { always: { target: 'c', actions: assign({ n: ({ context }) => context.n + 1 }) } },
          c: { always: 'b' },
        },
      }),
      {},
    )
    machine.send({ type: 'go' })
    expect(events(machine.commits.at(-1)!, 'machine.finished')).toMatchObject([{ code: 'COMMIT_OVERFLOW' }])
  })
})
