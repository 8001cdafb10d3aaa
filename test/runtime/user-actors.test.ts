import { describe, expect, test } from 'vitest'
import { type AnyStateMachine, assign, cancel, createMachine, emit, raise, sendParent, sendTo, setup } from 'xstate'
import { to } from '../../machines/index.js'
import { DecidedMachine } from '../support/decided-machine.js'
import { events } from '../support/envelopes.js'
import { LiveMachine } from '../support/live-machine.js'

/** Both sides take the same messages and waits. */
function same(machine: AnyStateMachine, ...steps: ({ type: string } | number)[]): DecidedMachine {
  const live = new LiveMachine(machine, {})
  const ours = new DecidedMachine(machine, {}, true)
  const check = (): void => {
    expect(ours.told).toEqual(live.told)
    expect(Object.fromEntries(ours.emitted)).toEqual(Object.fromEntries(live.emitted))
  }
  check()
  for (const step of steps) {
    for (const side of [live, ours]) {
      if (typeof step === 'number') side.wait(step)
      else side.send(step)
    }
    check()
  }
  return ours
}

interface Seen {
  readonly seen: readonly string[]
}
const note = assign({
  seen: ({ context, event }: { context: Seen; event: { type: string } }) => [...context.seen, event.type],
}) as never

const kid = setup({ types: {} as { context: Seen } }).createMachine({
  context: { seen: [] },
  initial: 'busy',
  entry: sendParent({ type: 'hello' }),
  output: ({ context }) => context.seen.length,
  on: { ping: { actions: [note, sendParent({ type: 'pong' }), emit({ type: 'pinged' } as never)] } },
  states: {
    busy: { after: { 30: 'late' }, on: { end: 'ended' } },
    late: { on: { end: 'ended' } },
    ended: { type: 'final' },
  },
})

const parent = setup({ types: {} as { context: Seen }, actors: { kid } }).createMachine({
  context: { seen: [] },
  initial: 'idle',
  on: { '*': { actions: note } },
  states: {
    idle: { on: { go: 'busy' } },
    busy: {
      entry: sendTo('kid', { type: 'ping' }),
      exit: sendTo('kid', { type: 'ping' }),
      invoke: { src: 'kid', id: 'kid', onDone: { target: 'idle', actions: note } },
      on: {
        tell: { actions: sendTo('kid', { type: 'ping' }) },
        later: { actions: sendTo('kid', { type: 'ping' }, { delay: 10, id: 'late|r' }) },
        never: { actions: cancel('late|r') },
        finish: { actions: [sendTo('kid', { type: 'end' }), sendTo('kid', { type: 'ping' })] },
        leave: 'idle',
      },
    },
  },
})

describe('user actors', () => {
  test('UA1 user actors: children start, hear, say, end and are left as in XState', () => {
    const go = [{ type: 'go' }, { type: 'tell' }, 40, { type: 'finish' }, { type: 'go' }, { type: 'leave' }]
    same(parent, ...go, { type: 'go' }, { type: 'unknown' }, { type: 'finish' })
  })

  test('UA4 user actors: a delayed message to a child is its sender’s: cancelled by it, and of no use behind its child', () => {
    const ours = same(parent, { type: 'go' }, { type: 'later' }, { type: 'never' }, 20, { type: 'later' }, 20, {
      type: 'later',
    })
    same(parent, { type: 'go' }, { type: 'later' }, { type: 'leave' }, { type: 'go' }, 20)
    ours.send({ type: 'leave' })
    ours.wait(20)
    expect(events(ours.commits.at(-1)!, 'message.dead')).toEqual([])
    ours.take({ from: 'client/local', to: 'crew/main', cause: '', body: { type: 'crew.cancel' }, values: [] })
    expect([ours.state.timers.size, ours.state.actors.size]).toEqual([0, 1])
  })

  test('UA2 user actors: the end of a child of an earlier visit is not taken for that of the next one', () => {
    const quick = setup({}).createMachine({
      initial: 'a',
      states: { a: { on: { end: 'b' } }, b: { type: 'final', entry: sendParent({ type: 'again' }) } },
    })
    const machine = setup({ types: {} as { context: Seen }, actors: { quick } }).createMachine({
      context: { seen: [] },
      initial: 'busy',
      states: {
        busy: {
          invoke: { src: 'quick', id: 'quick', onDone: { actions: note } },
          on: { go: { actions: sendTo('quick', { type: 'end' }) }, again: { target: 'busy', reenter: true } },
        },
      },
    })
    const ours = new DecidedMachine(machine, {}, true)
    ours.send({ type: 'go' })
    expect(ours.told).toMatchObject({ context: { seen: [] }, children: { quick: { status: 'active' } } })
  })

  test('user actors: the id of a timer may hold anything, and a machine without a version is restored', () => {
    const machine = createMachine({
      initial: 'a',
      states: { a: { entry: raise({ type: 'r' }, { delay: 5, id: 'a|b|c' }), on: { r: 'b' } }, b: {} },
    })
    const ours = new DecidedMachine(machine, {})
    ours.restore()
    ours.wait(5)
    expect(ours.told.value).toBe('b')
  })

  test('user actors: two machines that talk without end are stopped by COMMIT_OVERFLOW', () => {
    const echo = setup({}).createMachine({ on: { ping: { actions: sendParent({ type: 'pong' }) } } })
    const machine = setup({ actors: { echo } }).createMachine({
      invoke: { src: 'echo', id: 'echo' },
      on: { '*': { actions: sendTo('echo', { type: 'ping' }) } },
    })
    const ours = new DecidedMachine(machine, {})
    ours.send({ type: 'go' })
    expect(events(ours.commits.at(-1)!, 'message.dead')).toMatchObject([{ code: 'COMMIT_OVERFLOW' }])
    expect(ours.told.status).toBe('error')
  })

  test('user actors: a message to a machine that is not there is nobody’s, as inside any commit', () => {
    const ours = new DecidedMachine(
      createMachine({ on: { go: { actions: sendTo(to('machine/other'), { type: 'x' }) } } }),
      {},
    )
    ours.send({ type: 'go' })
    expect(events(ours.commits.at(-1)!, 'message.dead')).toEqual([])
    expect(ours.told.status).toBe('active')
  })
})
