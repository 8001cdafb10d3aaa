import { describe, expect, test, vi } from 'vitest'
import {
  type AnyActorRef,
  type AnyStateMachine,
  assign,
  cancel,
  createMachine,
  emit,
  enqueueActions,
  fromPromise,
  log,
  raise,
  sendParent,
  sendTo,
  setup,
  spawnChild,
  stopChild,
} from 'xstate'
import { to } from '../../machines/index.js'
import { decode, encode } from '../../runtime/codec.js'
import { maxMicrosteps, Scope } from '../../runtime/scope.js'

const scope = new Scope()
const begin = (machine: AnyStateMachine, input: unknown = {}) => scope.start(machine, 'user/one', input)
const step = (machine: AnyStateMachine, ...messages: { type: string }[]) =>
  messages.reduce((before, message) => scope.deliver(before.snapshot, 'user/one', message), begin(machine))

/** A machine that does one action on `go`. */
const doing = (action: unknown) =>
  createMachine({ on: { go: { actions: action as never } }, initial: 'a', states: { a: {} } })

describe('scope: actions as data', () => {
  test('scope: what a machine wants done comes back in order', () => {
    const machine = doing([
      sendTo(to('log/x'), { type: 'one' }),
      emit({ type: 'seen' }),
      sendTo(to('log/y'), { type: 'two' }, { delay: 50, id: 'later' }),
      raise({ type: 'own' }, { delay: 70, id: 'own' }),
      cancel('later'),
      log('nothing'),
    ])
    expect(step(machine, { type: 'go' }).actions).toEqual([
      { kind: 'send', to: 'log/x', message: { type: 'one' }, delayMs: null, id: null },
      { kind: 'emit', event: { type: 'seen' } },
      { kind: 'send', to: 'log/y', message: { type: 'two' }, delayMs: 50, id: 'later' },
      { kind: 'send', to: 'user/one', message: { type: 'own' }, delayMs: 70, id: 'own' },
      { kind: 'cancel', id: 'later' },
    ])
  })

  test('scope: an `after` is a delayed message to itself, and leaving its state cancels it', () => {
    const machine = createMachine({
      initial: 'a',
      states: { a: { after: { 100: 'b' }, on: { go: 'b' } }, b: {} },
    })
    const [timer] = begin(machine).actions
    expect(timer).toMatchObject({ kind: 'send', to: 'user/one', delayMs: 100 })
    const id = (timer as { id: string }).id
    expect(step(machine, { type: 'go' }).actions).toEqual([{ kind: 'cancel', id }])
  })

  test('scope: raised messages without delay are taken inside the step', () => {
    const machine = createMachine({
      initial: 'a',
      states: { a: { on: { go: { actions: raise({ type: 'on' }) }, on: 'b' } }, b: {} },
    })
    expect(step(machine, { type: 'go' })).toMatchObject({ snapshot: { value: 'b' }, actions: [], taken: true })
  })

  test('scope: a message is taken when a transition took it, also one that does nothing', () => {
    const machine = createMachine({
      context: { allowed: false },
      on: { noted: { actions: assign({}) }, guarded: { guard: ({ context }) => context.allowed, actions: assign({}) } },
      initial: 'a',
      states: { a: { on: { go: 'a' } } },
    })
    expect(step(machine, { type: 'go' }).taken).toBe(true)
    expect(step(machine, { type: 'noted' }).taken).toBe(true)
    expect(step(machine, { type: 'guarded' }).taken).toBe(false)
    expect(step(machine, { type: 'unknown' }).taken).toBe(false)
  })
})

describe('scope: promises', () => {
  test('S1 scope: an action of one’s own is refused and never run', () => {
    const ran = vi.fn()
    for (const action of [ran, () => ran(), { type: 'named' }]) {
      const machine = setup({ actions: { named: () => ran() } }).createMachine({
        on: { go: { actions: action as never } },
        initial: 'a',
        states: { a: {} },
      })
      expect(() => step(machine, { type: 'go' })).toThrow(expect.objectContaining({ code: 'MACHINE_UNSUPPORTED' }))
    }
    expect(ran).not.toHaveBeenCalled()
  })

  test('S2 scope: the same snapshot and message give the same step, whatever ran in between', () => {
    const machine = createMachine({
      context: { count: 0 },
      initial: 'a',
      states: {
        a: {
          after: { 10: 'a' },
          on: {
            go: {
              target: 'a',
              reenter: true,
              actions: [assign({ count: ({ context }) => context.count + 1 }), sendTo(to('log/x'), { type: 'one' })],
            },
          },
        },
      },
    })
    const first = step(machine, { type: 'go' })
    for (let other = 0; other < 50; other += 1) new Scope().start(machine, 'user/two', {})
    step(doing(emit({ type: 'x' })), { type: 'go' })
    const second = step(machine, { type: 'go' })
    expect(second.actions).toEqual(first.actions)
    expect(encode(scope.persist(second.snapshot)).equals(encode(scope.persist(first.snapshot)))).toBe(true)
  })

  const child = createMachine({ initial: 'a', states: { a: {} } })
  const work = fromPromise(() => Promise.resolve(1))
  const refused: Readonly<Record<string, () => AnyStateMachine>> = {
    'spawn in assign': () =>
      doing(assign({ ref: ({ spawn }: { spawn: (logic: unknown) => unknown }) => spawn(child) })),
    spawnChild: () => doing(spawnChild(child, { id: 'child' })),
    stopChild: () => doing(stopChild('child')),
    'an invoked promise': () =>
      createMachine({ initial: 'a', states: { a: { on: { go: 'b' } }, b: { invoke: { src: work, id: 'work' } } } }),
    'sendTo something else': () => doing(sendTo(() => ({ no: 'address' }) as unknown as AnyActorRef, { type: 'x' })),
    'system.get': () => doing(enqueueActions(({ system }) => void system.get('other'))),
    'self.send': () => doing(enqueueActions(({ self }) => self.send({ type: 'x' }))),
    'self.getSnapshot': () => doing(enqueueActions(({ self }) => void self.getSnapshot())),
  }

  test.each(Object.entries(refused))('S3 scope: %s is refused, never dropped', (_, make) => {
    expect(() => step(make(), { type: 'go' })).toThrow(expect.objectContaining({ code: 'MACHINE_UNSUPPORTED' }))
  })

  test('S3 scope: what is sent to a name, or to a parent, throws: there are addresses only', () => {
    expect(() => step(doing(sendTo('other', { type: 'x' })), { type: 'go' })).toThrow('other')
    expect(() => step(doing(sendParent({ type: 'x' })), { type: 'go' })).toThrow('parent')
  })

  test('S4 scope: a step that never comes to rest ends with COMMIT_OVERFLOW, by `always` or by `raise`', () => {
    const always = createMachine({
      context: { count: 0 },
      initial: 'a',
      states: {
        a: { on: { go: 'b' } },
        b: { always: { target: 'c', actions: assign({ count: ({ context }) => context.count + 1 }) } },
        c: { always: 'b' },
      },
    })
    const raising = createMachine({ on: { go: { actions: raise({ type: 'go' }) } } })
    for (const machine of [always, raising]) {
      expect(() => step(machine, { type: 'go' })).toThrow(expect.objectContaining({ code: 'COMMIT_OVERFLOW' }))
    }
    expect(step(doing(emit({ type: 'x' })), { type: 'go' }).actions).toHaveLength(1)
  })

  test('S4 scope: up to the bound a step may take as many microsteps as it likes', () => {
    const machine = createMachine({
      context: { left: maxMicrosteps - 10 },
      initial: 'a',
      states: {
        a: { on: { go: 'b' } },
        b: {
          always: {
            guard: ({ context }) => context.left > 0,
            target: 'b',
            reenter: true,
            actions: assign({ left: ({ context }) => context.left - 1 }),
          },
        },
      },
    })
    expect(step(machine, { type: 'go' }).snapshot.context).toEqual({ left: 0 })
  })

  test('scope: what a guard or an assign throws is thrown, and the snapshot before it still works', () => {
    const machine = createMachine({
      on: {
        guard: {
          guard: () => {
            throw new Error('guard')
          },
        },
        assign: {
          actions: assign(() => {
            throw new Error('assign')
          }),
        },
        fine: { actions: emit({ type: 'fine' }) },
      },
    })
    const before = begin(machine)
    expect(() => scope.deliver(before.snapshot, 'user/one', { type: 'guard' })).toThrow(/guard/)
    expect(() => scope.deliver(before.snapshot, 'user/one', { type: 'assign' })).toThrow('assign')
    expect(scope.deliver(before.snapshot, 'user/one', { type: 'fine' }).actions).toHaveLength(1)
  })
})

describe('scope: plain data', () => {
  const rich = createMachine({
    context: { list: [1], text: 'ä' },
    type: 'parallel',
    states: {
      left: {
        initial: 'one',
        states: {
          one: {
            initial: 'x',
            states: { x: { on: { deep: 'y' } }, y: {}, past: { type: 'history' } },
            on: { out: 'two' },
          },
          two: { on: { back: 'one.past' } },
        },
      },
      right: { initial: 'off', states: { off: { on: { out: 'on' } }, on: {} } },
    },
  })

  test('scope: a snapshot goes through bytes and goes on as before, history and parallel states too', () => {
    const live = step(rich, { type: 'deep' }, { type: 'out' })
    const persisted = decode(encode(scope.persist(live.snapshot))) as ReturnType<Scope['persist']>
    const restored = scope.restore(rich, persisted)
    expect(restored.value).toEqual({ left: 'two', right: 'on' })
    const next = scope.deliver(restored, 'user/one', { type: 'back' })
    expect(next.snapshot.value).toEqual({ left: { one: 'y' }, right: 'on' })
    expect(scope.persist(next.snapshot)).toEqual(
      scope.persist(scope.deliver(live.snapshot, 'user/one', { type: 'back' }).snapshot),
    )
  })

  test('scope: a state that the machine does not have is SNAPSHOT_INCOMPATIBLE', () => {
    const gone = { value: 'gone', context: {}, status: 'active', history: {} }
    expect(() => scope.restore(doing(log('x')), gone)).toThrow(
      expect.objectContaining({ code: 'SNAPSHOT_INCOMPATIBLE' }),
    )
    const persisted = scope.persist(begin(rich).snapshot)
    expect(() => scope.restore(rich, { ...persisted, history: { 'nope.past': ['nope'] } })).toThrow(
      expect.objectContaining({ code: 'SNAPSHOT_INCOMPATIBLE' }),
    )
  })

  test('scope: a context that looks like an actor reference stays data', () => {
    const machine = createMachine({ context: { told: { xstate$$type: 1, id: 'x' } }, initial: 'a', states: { a: {} } })
    const live = begin(machine)
    const restored = scope.restore(machine, decode(encode(scope.persist(live.snapshot))) as never)
    expect(restored.context).toEqual({ told: { xstate$$type: 1, id: 'x' } })
  })

  test('scope: a machine with output ends; its end is data', () => {
    const machine = createMachine({ initial: 'a', states: { a: { on: { go: 'b' } }, b: { type: 'final' } } })
    const ended = step(machine, { type: 'go' })
    expect(ended.snapshot.status).toBe('done')
    expect(scope.persist(ended.snapshot)).toMatchObject({ value: 'b', status: 'done' })
  })
})
