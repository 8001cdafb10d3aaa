import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  type AnyStateMachine,
  and,
  assign,
  cancel,
  createMachine,
  emit,
  enqueueActions,
  log,
  not,
  raise,
  sendTo,
  setup,
} from 'xstate'
import { agentMachine, budgetMachine, crewMachine, envoyMachine, to, toolMachine } from '../../machines/index.js'
import { chartOf } from '../../runtime/chart.js'
import { type Message, Scope } from '../../runtime/scope.js'
import { refer } from '../support/xstate-reference.js'

interface Context {
  readonly count: number
  readonly seen: readonly string[]
}

const events = ['a', 'b', 'c', 'r'] as const
const keys = ['s0', 's1', 's2', 's3'] as const

interface Several {
  readonly context: Context
  readonly check: (guard: unknown) => boolean
  readonly enqueue: ((action: unknown) => void) &
    Record<'assign' | 'emit', (what: object) => void> & {
      sendTo: (to: unknown, message: (args: { context: Context }) => Message) => void
    }
}

/** Everything that `enqueueActions` offers. */
function several({ context, enqueue, check }: Several): void {
  enqueue.assign({ count: context.count + 2 })
  if (check('even')) enqueue('say')
  if (check(not(and(['even', 'isA'])))) enqueue.emit({ type: 'odd' })
  enqueue.sendTo(to('log/y'), ({ context: now }) => ({ type: 'late', count: now.count }))
  enqueue({ type: 'note', params: { at: 'inside' } })
}

/** Names of what the generated machines do: each writes down where it was, so that the order shows. */
const definitions = setup({
  types: {},
  guards: {
    even: ({ context }) => context.count % 2 === 0,
    below: ({ context }, params: { limit: number }) => context.count < params.limit,
    isA: ({ event }) => event.type === 'a',
  },
  actions: {
    note: assign({
      seen: ({ context, event }, params: { at: string }) => [...context.seen.slice(-12), `${params.at}:${event.type}`],
    }),
    count: assign(({ context }) => ({ count: context.count + 1 })),
    say: sendTo(to('log/x'), ({ context, event }) => ({ type: 'said', count: context.count, by: event.type })),
    show: emit(({ context }) => ({ type: 'shown', count: context.count })),
    later: raise({ type: 'r' }, { id: 'later', delay: ({ context }) => context.count * 10 }),
    now: raise({ type: 'r' }),
    never: cancel('later'),
    several: enqueueActions(several as never),
  },
  delays: { soon: ({ context }) => context.count },
})

const plainActions = ['count', 'say', 'show', 'later', 'never', 'several'] as const
const action = (at: string) =>
  fc.oneof(
    fc.constantFrom(...plainActions),
    fc.constant({ type: 'note', params: { at } }),
    fc.constant({ type: 'note', params: ({ context }: { context: Context }) => ({ at: `${at}-${context.count}` }) }),
  )
const actions = (at: string) => fc.array(action(at), { maxLength: 2 })
const guard = fc.oneof(
  fc.constantFrom('even', 'isA'),
  fc.record({ type: fc.constant('below'), params: fc.record({ limit: fc.integer({ min: 0, max: 40 }) }) }),
)
const optional = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined, freq: 1 })

/** A transition to a state anywhere in the tree, or to none. */
const transition = (at: string, targets: readonly string[]) =>
  fc
    .record({
      target: optional(fc.constantFrom(...targets)),
      guard: optional(guard),
      reenter: fc.boolean(),
      actions: actions(at),
      raises: fc.boolean(),
    })
    .map(({ raises, ...rest }) =>
      // One that raises counts as well, and ends with its guard: else it would go on for ever.
      raises
        ? { ...rest, guard: { type: 'below', params: { limit: 20 } }, actions: [...rest.actions, 'count', 'now'] }
        : rest,
    )
const without = (config: object) =>
  Object.fromEntries(Object.entries(config).filter(([, value]) => value !== undefined))

type Config = Record<string, unknown>

function stateAt(path: readonly string[], depth: number, targets: readonly string[]): fc.Arbitrary<Config> {
  const id = path.join('-')
  // The root cannot be entered again by a chart.
  const one = transition(id, targets).map((each) => without(path.length > 1 ? each : { ...each, reenter: false }))
  // Without messages a machine may go round and round: it counts, and ends with the guard.
  const always = fc.record({ target: fc.constantFrom(...targets), actions: fc.constant(['count', 'say']) })
  const on = fc.dictionary(fc.constantFrom(...events), fc.array(one, { minLength: 1, maxLength: 2 }), { maxKeys: 3 })
  const base = fc.record({
    entry: actions(`${id}+`),
    exit: actions(`${id}-`),
    on,
    always: optional(always.map((each) => ({ ...each, guard: { type: 'below', params: { limit: 3 } } }))),
    after: optional(one.map((each) => ({ soon: each }))),
  })
  if (depth === 0) return base.map((config) => ({ id, ...without(config) }))
  return fc
    .tuple(
      base,
      fc.tuple(...keys.map((key) => stateAt([...path, key], depth - 1, targets))),
      fc.constantFrom(...keys),
      actions(`${id}!`),
      fc.boolean(),
    )
    .map(([config, states, initial, initialActions, isLeaf]) => {
      // An inner state is at times a leaf, so that leaves lie at different depths.
      if (isLeaf && path.length > 1) return { id, ...without(config) }
      const inner = Object.fromEntries(keys.map((key, index) => [key, states[index]]))
      return { id, ...without(config), initial: { target: initial, actions: initialActions }, states: inner }
    })
}

/** States that are there in every tree: those of the first level. Inner ones are reached by their parents. */
const targets = keys.map((key) => `#root-${key}`)
const machineConfig = stateAt(['root'], 2, targets).map((config) => ({
  ...config,
  states: { ...(config['states'] as Config), end: { type: 'final', entry: ['say'], exit: ['show'] } },
  on: { ...(config['on'] as Config), end: { target: '.end', actions: ['count'] } },
  exit: ['show'],
  context: { count: 0, seen: [] },
}))

/** What either did: where it came to, or what it threw. */
function outcome(run: () => object): object {
  try {
    return run()
  } catch (error) {
    return { threw: (error as Error).message.replace(/^Unable to evaluate[^\n]*\n/, '') }
  }
}

function expectEqualSteps(machine: AnyStateMachine, messages: readonly Message[]): void {
  const scope = new Scope()
  const reference = refer(machine, 'user/one', {})
  let step = scope.start(machine, 'user/one', {})
  const ours = () => {
    const { value, context, status } = step.snapshot
    return { value, context: context as unknown, status, actions: step.actions }
  }
  const theirs = () => {
    const { value, context, status, actions: said } = reference
    return { value, context, status, actions: said }
  }
  expect(ours()).toEqual(theirs())
  for (const message of messages) {
    if (reference.status !== 'active') return
    // One that came back from bytes goes on like the live one.
    const restored = scope.restore(machine, structuredClone(scope.persist(step.snapshot)))
    const again = outcome(() => scope.deliver(restored, 'user/one', message).actions)
    const mine = outcome(() => {
      step = scope.deliver(step.snapshot, 'user/one', message)
      return ours()
    })
    const wanted = outcome(() => {
      reference.send(message)
      return theirs()
    })
    expect(mine).toEqual(wanted)
    if (!('threw' in wanted)) expect(again).toEqual(step.actions)
  }
}

describe('chart', () => {
  test('CH1 CS1 CS2 chart: generated machines take the steps that XState takes', () => {
    let charted = 0
    fc.assert(
      fc.property(
        machineConfig,
        fc.array(fc.constantFrom(...events, 'unknown', 'end'), { minLength: 10, maxLength: 50 }),
        (config, types) => {
          const machine = definitions.createMachine(config as never) as unknown as AnyStateMachine
          if (chartOf(machine) !== null) charted += 1
          expectEqualSteps(
            machine,
            types.map((type) => ({ type })),
          )
        },
      ),
      { numRuns: 300 },
    )
    expect(charted).toBeGreaterThan(200)
  })

  test('CH1 chart: the machines of the runtime have one', () => {
    for (const machine of [agentMachine, budgetMachine, crewMachine, envoyMachine, toolMachine]) {
      expect(chartOf(machine as AnyStateMachine)).not.toBeNull()
    }
  })

  test('CH1 chart: a guard or an expression that throws throws, and changes nothing', () => {
    const machine = createMachine({
      context: { count: 0 },
      initial: 'a',
      states: {
        a: {
          on: {
            guarded: {
              guard: () => {
                throw new Error('no guard')
              },
            },
            assigned: {
              actions: assign(() => {
                throw new Error('no value')
              }),
            },
            fine: { actions: assign({ count: 1 }) },
          },
        },
      },
    })
    expectEqualSteps(machine, [{ type: 'guarded' }, { type: 'assigned' }, { type: 'fine' }])
  })

  test('CH1 chart: a start that throws is a machine in error, and what it said before stays said', () => {
    const machine = createMachine({
      initial: 'a',
      entry: sendTo(to('log/x'), { type: 'begun' }),
      states: {
        a: {
          entry: assign(() => {
            throw new Error('no start')
          }),
        },
      },
    })
    const step = new Scope().start(machine, 'user/one', {})
    expect(step.snapshot).toMatchObject({ status: 'error', error: new Error('no start') })
    expect(step.actions).toHaveLength(1)
    expect(refer(machine, 'user/one', {})).toMatchObject({ status: 'error', actions: step.actions })
  })

  test('CH1 chart: what is sent to nobody goes to the machine itself', () => {
    const machine = createMachine({
      initial: 'a',
      states: { a: { on: { go: { actions: sendTo(() => undefined as never, { type: 'own' } as never) } } } },
    })
    expectEqualSteps(machine, [{ type: 'go' }])
  })

  const beyond: Readonly<Record<string, object>> = {
    'parallel states': { type: 'parallel', states: { a: {}, b: {} } },
    'a history state': {
      initial: 'a',
      states: { a: {}, b: { initial: 'c', states: { c: {}, h: { type: 'history' } } } },
    },
    'a final state inside another': { initial: 'a', states: { a: { initial: 'b', states: { b: { type: 'final' } } } } },
    'wildcard transitions': { on: { '*': {} }, initial: 'a', states: { a: {} } },
    'combined guards': { on: { go: { guard: not(() => true) } }, initial: 'a', states: { a: {} } },
    output: { initial: 'a', output: 1, states: { a: {} } },
    logging: { entry: log('hello'), initial: 'a', states: { a: {} } },
    'an action of one’s own': { entry: () => undefined, initial: 'a', states: { a: {} } },
  }

  test.each(Object.entries(beyond))(
    'CH2 chart: a machine with %s has none, and XState takes its steps',
    (_, config) => {
      expect(chartOf(createMachine(config))).toBeNull()
    },
  )
})
