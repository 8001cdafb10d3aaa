/**
 * Machines out of a number: every construct that users' machines may have, in any arrangement.
 *
 * The same seed makes the same machine, as often as it is asked for: what one of them remembers is not the other's.
 */
import {
  type AnyActorRef,
  type AnyStateMachine,
  and,
  assign,
  cancel,
  emit,
  enqueueActions,
  fromPromise,
  fromTransition,
  log,
  not,
  or,
  raise,
  sendParent,
  sendTo,
  setup,
  spawnChild,
  stateIn,
  stopChild,
} from 'xstate'
import type { Message } from '../../runtime/scope.js'

/** Uniform numbers out of a seed. */
export class Dice {
  #state: number

  constructor(seed: number) {
    this.#state = (seed * 2654435761 + 40503) >>> 0
  }

  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let mixed = this.#state
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }

  below(bound: number): number {
    return Math.floor(this.next() * bound)
  }

  chance(share: number): boolean {
    return this.next() < share
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!
  }
}

/** Where promises of a generated machine get their outcome: by what they were asked. */
export type Settle = (input: { readonly ask: string }) => Promise<unknown>

/** Whom a generated machine sends to: an address for the runtime, an actor for XState. */
export interface Outside {
  readonly address: string
  readonly ref: AnyActorRef
}

export const eventTypes = ['a', 'b', 'c', 'd', 'tell', 'end', 'r'] as const

interface Context {
  readonly count: number
  readonly seen: readonly string[]
}

/** What a child counts and says; it ends by message or by itself. */
function childOf(kind: 'echo' | 'brief' | 'fails' | 'nest', inner?: AnyStateMachine): AnyStateMachine {
  const made = setup({
    types: {} as { context: Context; input: { readonly count: number }; output: unknown },
    actors: { ...(inner === undefined ? {} : { inner }) } as Record<string, AnyStateMachine>,
    // A parent that answers what its child says would go on with it for ever.
    guards: { below: ({ context }) => context.count < 12 },
    actions: {
      note: assign({
        count: ({ context }) => context.count + 1,
        seen: ({ context, event }) => [...context.seen.slice(-6), event.type],
      }),
      say: sendParent(({ context, event }) => ({ type: 'b', count: context.count, by: event.type })),
      show: emit(({ context, event }) => ({ type: 'shown', count: context.count, by: event.type })),
      throws: assign(() => {
        throw new Error('planted')
      }),
    },
  })
  const busy = {
    entry: ['note'],
    on: {
      tell: { guard: 'below', actions: ['note', 'say', 'show'] },
      end: kind === 'fails' ? { actions: ['throws'] } : 'ended',
    },
    after: { 17: kind === 'brief' ? 'ended' : { actions: ['note', 'say'] } },
    exit: ['show'],
    ...(kind === 'nest'
      ? {
          invoke: { src: 'inner', id: 'deep', input: { count: 10 }, onDone: { actions: ['note', 'say'] } },
          on: {
            tell: { guard: 'below', actions: ['note', sendTo('deep', { type: 'tell' })] },
            b: { guard: 'below', actions: ['note', 'say'] },
            end: 'ended',
          },
        }
      : {}),
  }
  return made.createMachine({
    context: ({ input }: { input?: { count?: number } }) => ({ count: input?.count ?? 0, seen: [] }),
    initial: 'busy',
    output: ({ context }: { context: Context }) => ({ count: context.count }),
    states: { busy, ended: { type: 'final', entry: ['note', 'say'] } },
  } as never) as unknown as AnyStateMachine
}

const reducer = fromTransition(
  (state: { count: number }, event: { type: string }, { self, emit: show }) => {
    if (event.type !== 'tell') return state
    ;(show as (event: object) => void)({ type: 'counted', count: state.count, by: self.id })
    return { count: state.count + 1 }
  },
  ({ input }) => ({ count: (input as { count?: number } | undefined)?.count ?? 0 }),
)

/** A machine out of a seed. @param share of states that work with promises */
export function generateMachine(
  seed: number,
  outside: () => unknown,
  settle: Settle,
  promises: boolean,
): AnyStateMachine {
  return new Generator(new Dice(seed), outside, settle, promises).machine()
}

class Generator {
  readonly #dice: Dice
  readonly #outside: () => unknown
  readonly #settle: Settle
  readonly #promises: boolean
  readonly #ids: string[] = []

  constructor(dice: Dice, outside: () => unknown, settle: Settle, promises: boolean) {
    this.#dice = dice
    this.#outside = outside
    this.#settle = settle
    this.#promises = promises
  }

  machine(): AnyStateMachine {
    const brief = childOf('brief')
    const outside = this.#outside
    const definitions = setup({
      types: {} as { context: Context },
      actors: {
        echo: childOf('echo'),
        brief,
        fails: childOf('fails'),
        nest: childOf('nest', brief),
        reducer,
        work: fromPromise(({ input }: { input: { ask: string } }) => this.#settle(input)),
      } as never,
      guards: {
        even: ({ context }) => context.count % 2 === 0,
        below: ({ context }, params: { limit: number }) => context.count < params.limit,
        both: and(['even', not('never')] as never),
        either: or(['even', ({ event }: { event: { type: string } }) => event.type === 'a'] as never),
        never: () => false,
      },
      actions: {
        note: assign({
          seen: ({ context, event }, params: { at: string }) => [
            ...context.seen.slice(-12),
            `${params.at}:${event.type}:${JSON.stringify((event as { output?: unknown }).output ?? (event as { by?: unknown }).by ?? 0)}`,
          ],
        }),
        count: assign(({ context }) => ({ count: context.count + 1 })),
        say: sendTo(
          outside as never,
          (({ context, event }: { context: Context; event: Message }) => ({
            type: 'said',
            count: context.count,
            by: event.type,
          })) as never,
        ),
        show: emit(({ context }) => ({ type: 'shown', count: context.count })),
        log: log(({ context }) => context.count),
        now: raise({ type: 'r' }),
      } as never,
      delays: { soon: ({ context }) => 3 + (context.count % 20) },
    })
    this.#name('m', 0)
    const root = this.#state('m', 0)
    return definitions.createMachine({
      ...root,
      options: { maxIterations: 200 },
      context: { count: 0, seen: [] },
      output: ({ context }: { context: Context }) => ({ count: context.count, seen: context.seen.length }),
    } as never) as unknown as AnyStateMachine
  }

  /** The shape first: transitions may lead anywhere in it. */
  readonly #shape = new Map<string, { type: string; keys: string[] }>()

  #name(id: string, depth: number): void {
    const dice = this.#dice
    const isInner = depth === 0 || (depth < 3 && dice.chance(0.5))
    const type = isInner ? (dice.chance(depth === 0 ? 0.25 : 0.35) ? 'parallel' : 'compound') : 'atomic'
    const keys = isInner ? Array.from({ length: 2 + dice.below(2) }, (_, at) => `s${at}`) : []
    this.#shape.set(id, { type, keys })
    for (const key of keys) {
      if (depth > 0 || type !== 'parallel' || key !== '') this.#ids.push(`${id}-${key}`)
      this.#name(`${id}-${key}`, depth + 1)
    }
  }

  #state(id: string, depth: number): Record<string, unknown> {
    const dice = this.#dice
    const { type, keys } = this.#shape.get(id)!
    const child = depth > 0 && dice.chance(0.4) ? this.#child(id) : null
    const entry = [...this.#actions(`${id}+`), ...(child !== null && dice.chance(0.5) ? child.tell : [])]
    const exit = [...this.#actions(`${id}-`), ...(child !== null && dice.chance(0.3) ? child.tell : [])]
    const on: Record<string, unknown> = {}
    for (const event of eventTypes) if (dice.chance(0.35)) on[event] = this.#transitions(id, event, child)
    if (dice.chance(0.1)) on['*'] = { actions: [{ type: 'note', params: { at: `${id}*` } }] }
    const states: Record<string, unknown> = {}
    for (const key of keys) states[key] = this.#state(`${id}-${key}`, depth + 1)
    if (type === 'compound') {
      if (dice.chance(0.5)) states['past'] = this.#history(id, keys)
      if (dice.chance(depth === 0 ? 0.5 : 0.4)) {
        states['ended'] = { id: `${id}-ended`, type: 'final', entry: this.#actions(`${id}.`), output: depth }
        on['end'] = { target: depth === 0 ? '.ended' : `#${id}-ended`, guard: { type: 'below', params: { limit: 60 } } }
      }
    }
    return {
      id,
      ...(type === 'parallel' ? { type } : {}),
      entry,
      exit,
      on,
      ...(child === null ? {} : { invoke: child.invoke }),
      ...(dice.chance(0.3) ? { after: { [dice.pick([5, 11, 'soon'])]: this.#transition(id, null) } } : {}),
      ...(depth > 0 && dice.chance(0.12) ? { always: this.#always(id) } : {}),
      ...(type !== 'atomic' && depth > 0 && dice.chance(0.7)
        ? { onDone: { target: `#${dice.pick(this.#ids)}`, actions: [{ type: 'note', params: { at: `${id}!` } }] } }
        : {}),
      ...(type === 'compound' ? { initial: dice.pick(keys) } : {}),
      ...(keys.length === 0 ? {} : { states }),
    }
  }

  /** On what a child says at once it may be told something again: that ends with the guard. */
  #transitions(id: string, event: string, child: { tell: unknown[] } | null): object[] {
    const bound = event === 'b' ? { guard: { type: 'below', params: { limit: 15 } } } : {}
    return Array.from({ length: 1 + this.#dice.below(2) }, () => ({ ...this.#transition(id, child), ...bound }))
  }

  #history(id: string, keys: readonly string[]): object {
    this.#ids.push(`${id}-past`)
    const deep = this.#dice.chance(0.5) ? { history: 'deep' } : {}
    return {
      id: `${id}-past`,
      type: 'history',
      ...deep,
      ...(this.#dice.chance(0.5) ? { target: this.#dice.pick(keys) } : {}),
    }
  }

  #always(id: string): object {
    // Without messages a machine may go round and round: it counts, and ends with the guard.
    const guard = this.#dice.chance(0.3) ? stateIn(`#${id}`) : 'even'
    return [
      {
        target: `#${this.#dice.pick(this.#ids)}`,
        guard: and([guard as never, { type: 'below', params: { limit: 25 } } as never]),
        actions: ['count'],
      },
    ]
  }

  #child(state: string): { invoke: object; tell: unknown[] } {
    const dice = this.#dice
    const id = `k-${state}`
    const src = dice.pick([
      'echo',
      'brief',
      'fails',
      'nest',
      'reducer',
      ...(this.#promises ? ['work', 'work', 'work'] : []),
    ])
    const note = (at: string): object => ({ actions: [{ type: 'note', params: { at: `${id}${at}` } }, 'count'] })
    const ends = dice.chance(0.4) ? { target: `#${dice.pick(this.#ids)}`, ...note(' done') } : note(' done')
    const input = ({ context }: { context: Context }): object => ({
      count: context.count,
      ask: `${id} ${context.count}`,
    })
    const errors = src === 'fails' || src === 'work' || dice.chance(0.5)
    return {
      invoke: { src, id, input, onDone: ends, ...(errors ? { onError: note(' failed') } : {}) },
      tell: [sendTo(id, { type: 'tell' }), ...(dice.chance(0.3) ? [sendTo(id, { type: 'tell' }, { delay: 4 })] : [])],
    }
  }

  #transition(id: string, child: { tell: unknown[] } | null): object {
    const dice = this.#dice
    const guard = dice.chance(0.4)
      ? { guard: dice.pick(['even', 'both', 'either', { type: 'below', params: { limit: 5 + dice.below(40) } }]) }
      : {}
    const actions = [...this.#actions(id), 'count']
    if (dice.chance(0.15)) {
      // One that raises ends with its guard: else it would go on for ever.
      return { guard: { type: 'below', params: { limit: 20 } }, actions: [...actions, 'now'] }
    }
    if (child !== null && dice.chance(0.5)) {
      const end = dice.chance(0.4) ? [sendTo(`k-${id}` as never, { type: 'end' } as never)] : []
      return { ...guard, actions: [...actions, ...child.tell, ...end] }
    }
    if (dice.chance(0.2)) return { ...guard, actions }
    const reenter = id !== 'm' && dice.chance(0.3) ? { reenter: true } : {}
    return { ...guard, ...reenter, target: `#${dice.pick(this.#ids)}`, actions }
  }

  #actions(at: string): unknown[] {
    return Array.from({ length: this.#dice.below(3) }, () => this.#action(at)).flat()
  }

  #action(at: string): unknown[] {
    const dice = this.#dice
    const id = `later ${at}|`
    switch (dice.below(10)) {
      case 0:
      case 1:
        return [{ type: 'note', params: { at } }]
      case 2:
        return ['say']
      case 3:
        return ['show', 'log']
      case 4:
        return [cancel(id), raise({ type: 'r' }, { id, delay: 2 + dice.below(25) })]
      case 5:
        return [cancel(id), ...(dice.chance(0.5) ? ['count'] : [])]
      case 6:
        return [sendTo(this.#outside as never, { type: 'late', at } as never, { delay: dice.below(15) })]
      case 7:
        return [
          stopChild('spawned'),
          spawnChild(dice.pick(['echo', 'brief', 'reducer']) as never, { id: 'spawned', input: { count: 1 } } as never),
          sendTo('spawned' as never, { type: 'tell' } as never),
        ]
      case 8:
        return dice.chance(0.5)
          ? [stopChild('spawned')]
          : [{ type: 'note', params: ({ context }: { context: Context }) => ({ at: `${at}${context.count}` }) }]
      default:
        return [enqueueActions((({ context, enqueue, check }: never) => several(context, enqueue, check, at)) as never)]
    }
  }
}

function several(
  context: Context,
  enqueue: ((action: unknown) => void) & Record<'assign' | 'emit' | 'raise' | 'cancel', (...all: unknown[]) => void>,
  check: (guard: unknown) => boolean,
  at: string,
): void {
  enqueue.assign({ count: context.count + 2 })
  if (check('even')) enqueue('say')
  if (check(not('even'))) enqueue.emit({ type: 'odd' })
  enqueue({ type: 'note', params: { at: `${at} inside` } })
  enqueue.cancel('nothing')
}
