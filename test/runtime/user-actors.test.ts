import { describe, expect, test } from 'vitest'
import {
  assign,
  createMachine,
  emit,
  fromTransition,
  sendParent,
  sendTo,
  setup,
  stopChild,
  spawnChild,
  raise,
  type AnyStateMachine,
} from 'xstate'
import { DecidedMachine } from '../support/decided-machine.js'
import { LiveMachine } from '../support/live-machine.js'

const same = (machine: AnyStateMachine, ...steps: ({ type: string } | number)[]) => {
  const live = new LiveMachine(machine, {})
  const ours = new DecidedMachine(machine, {}, true)
  const check = () => {
    expect(ours.told).toEqual(live.told)
    expect(Object.fromEntries(ours.emitted)).toEqual(Object.fromEntries(live.emitted))
  }
  check()
  for (const step of steps) {
    if (typeof step === 'number') {
      for (let left = step; left > 0; left -= 1) {
        live.wait(1)
        ours.wait(1)
      }
    } else {
      live.send(step)
      ours.send(step)
    }
    check()
  }
  return ours
}

describe('user actors', () => {
  test('children', () => {
    const child = setup({}).createMachine({
      context: ({ input }) => ({ n: (input as any)?.n ?? 0, seen: [] as string[] }),
      initial: 'a',
      entry: sendParent({ type: 'hello' }),
      output: ({ context }) => context.n,
      on: {
        ping: {
          actions: [
            assign({ n: ({ context }) => context.n + 1 }),
            sendParent(({ context }) => ({ type: 'pong', n: context.n })),
            emit({ type: 'pinged' }),
          ],
        },
      },
      states: { a: { after: { 30: 'b' }, on: { end: 'z' } }, b: { on: { end: 'z' } }, z: { type: 'final' } },
    })
    const machine = setup({ actors: { child } }).createMachine({
      context: { seen: [] as string[] },
      initial: 'idle',
      on: { '*': { actions: assign({ seen: ({ context, event }) => [...context.seen, event.type] }) } },
      states: {
        idle: { on: { go: 'busy' } },
        busy: {
          entry: sendTo('kid', { type: 'ping' }),
          invoke: {
            src: 'child',
            id: 'kid',
            input: { n: 3 },
            onDone: {
              target: 'idle',
              actions: assign({ seen: ({ context, event }) => [...context.seen, `done ${event.output}`] }),
            },
          },
          on: {
            tell: { actions: sendTo('kid', { type: 'ping' }) },
            finish: { actions: sendTo('kid', { type: 'end' }) },
            leave: 'idle',
          },
        },
      },
    })
    same(
      machine as any,
      { type: 'go' },
      { type: 'tell' },
      40,
      { type: 'finish' },
      { type: 'go' },
      { type: 'leave' },
      { type: 'go' },
      { type: 'zzz' },
      { type: 'finish' },
    )
  })
})
