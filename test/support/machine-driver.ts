/**
 * Drives one machine through the scope, as a commit does, without a shard around it.
 *
 * Every step is taken three times: by the live snapshot, frozen deeply, by one that went through bytes, and by XState
 * itself. All must say the same and come to the same state.
 */
import type { AnyStateMachine } from 'xstate'
import { expect } from 'vitest'
import { decode, encode } from '../../runtime/codec.js'
import {
  type Action,
  type Message,
  type PersistedSnapshot,
  Scope,
  type Snapshot,
  type Step,
} from '../../runtime/scope.js'
import { refer } from './xstate-reference.js'

/** A message that was sent: to whom, and what. */
export type Sent = readonly [to: string, message: Message]

/** One machine and what it said. */
export interface Driver {
  /** State as `value` or `outer.inner`. */
  readonly state: string
  readonly context: Readonly<Record<string, never>>
  readonly done: boolean
  /** What the last step sent at once, in order. */
  readonly sent: readonly Sent[]
  /** What the last step sent to others for later, and in how many milliseconds. */
  readonly later: readonly (readonly [to: string, message: Message, delayMs: number])[]
  /** What the last step emitted. */
  readonly emitted: readonly Message[]
  /** Whether a transition took the last message. */
  readonly taken: boolean
  /** Delayed messages to itself that are neither fired nor cancelled, by id. */
  readonly timers: ReadonlyMap<string, { readonly delayMs: number; readonly message: Message }>
  /** Delivers messages one after the other; `sent` and `emitted` are of the last. */
  send(...messages: readonly Message[]): Driver
  /** Fires a timer: the only one, or the one with this id. */
  fire(id?: string): Driver
  /** Messages of the last step to this address. */
  to(address: string): readonly Message[]
  /** The plain data of its snapshot. */
  persisted(): PersistedSnapshot
}

/** Which guards answered what and which transitions were taken, over all drivers of one machine. */
export interface Coverage {
  readonly machine: AnyStateMachine
  /** What was not seen: `guard name: true|false` and `state: event #n`. */
  missing(): string[]
  /** Notes which transitions a message takes from a state, when it is not delivered by a driver. */
  note(before: Snapshot, message: Message): void
}

/** A copy of the machine that remembers what was covered. */
export function cover(machine: AnyStateMachine): Coverage {
  const answers = new Set<string>()
  const named = Object.entries(machine.implementations.guards as Record<string, (...args: unknown[]) => boolean>)
  const guards = Object.fromEntries(
    named.map(([name, guard]) => [
      name,
      (...args: unknown[]) => {
        const answer = guard(...args)
        answers.add(`guard ${name}: ${answer}`)
        return answer
      },
    ]),
  )
  const covered = machine.provide({ guards } as never)
  const taken = new Set<unknown>()
  takenBy.set(covered, taken)
  return {
    machine: covered,
    note: (before, message) => noteTransitions(covered, before, message),
    missing: () => [
      ...named.flatMap(([name]) =>
        [`guard ${name}: true`, `guard ${name}: false`].filter((answer) => !answers.has(answer)),
      ),
      ...nodesOf(covered.root as Node).flatMap((node) =>
        [...node.transitions].flatMap(([event, candidates]) =>
          candidates
            .map((candidate, index) => (taken.has(candidate) ? '' : `${node.id}: ${event} #${index}`))
            .filter((text) => text !== ''),
        ),
      ),
    ],
  }
}

interface Node {
  readonly id: string
  readonly states: Readonly<Record<string, Node>>
  readonly transitions: ReadonlyMap<string, readonly unknown[]>
}

function nodesOf(node: Node): Node[] {
  return [node, ...Object.values(node.states).flatMap(nodesOf)]
}

const takenBy = new WeakMap<AnyStateMachine, Set<unknown>>()

function noteTransitions(machine: AnyStateMachine, before: Snapshot, message: Message): void {
  for (const transition of machine.getTransitionData(before as never, message)) takenBy.get(machine)?.add(transition)
}

/** Starts a machine. */
export function drive(machine: AnyStateMachine, input: { readonly self: string }): Driver {
  const scope = new Scope()
  const address = input.self
  const timers = new Map<string, { delayMs: number; message: Message }>()
  let step = freeze(scope.start(machine, address, freeze(structuredClone(input))))
  const reference = refer(machine, address, freeze(structuredClone(input)))
  expectSame()
  keepTimers(step.actions)

  function expectSame(): void {
    const { value, context, status } = step.snapshot
    expect({ value, context, status, actions: step.actions }).toEqual({
      value: reference.value,
      context: reference.context,
      status: reference.status,
      actions: reference.actions,
    })
  }

  function keepTimers(actions: readonly Action[]): void {
    for (const action of actions) {
      if (action.kind === 'cancel') timers.delete(action.id)
      if (action.kind === 'send' && action.delayMs !== null && action.to === address) {
        timers.set(action.id ?? 'unnamed', { delayMs: action.delayMs, message: action.message })
      }
    }
  }

  function deliver(message: Message): void {
    freeze(message)
    const restored = scope.restore(machine, throughBytes(scope.persist(step.snapshot)))
    const again = scope.deliver(restored, address, throughBytes(message))
    const before = step.snapshot
    const next = freeze(scope.deliver(before, address, message))
    expect(throughBytes(again.actions)).toEqual(throughBytes(next.actions))
    expect(throughBytes(scope.persist(again.snapshot))).toEqual(throughBytes(scope.persist(next.snapshot)))
    expect(again.taken).toBe(next.taken)
    noteTransitions(machine, before, message)
    keepTimers(next.actions)
    step = next
    reference.send(message)
    expectSame()
  }

  const driver: Driver = {
    get state() {
      return nameOf(step.snapshot.value)
    },
    get context() {
      return step.snapshot.context as Record<string, never>
    },
    get done() {
      return step.snapshot.status !== 'active'
    },
    get sent() {
      return step.actions.flatMap((action): Sent[] =>
        action.kind === 'send' && action.delayMs === null ? [[action.to, action.message]] : [],
      )
    },
    get later() {
      return step.actions.flatMap((action): Driver['later'][number][] =>
        action.kind === 'send' && action.delayMs !== null && action.to !== address
          ? [[action.to, action.message, action.delayMs]]
          : [],
      )
    },
    get emitted() {
      return step.actions.flatMap((action) => (action.kind === 'emit' ? [action.event] : []))
    },
    get taken() {
      return step.taken
    },
    timers,
    send(...messages) {
      for (const message of messages) deliver(message)
      return driver
    },
    fire(id) {
      const key = id ?? (timers.size === 1 ? [...timers.keys()][0]! : 'no single timer')
      const timer = timers.get(key)
      if (timer === undefined) throw new Error(`no timer ${key}: ${[...timers.keys()].join(', ')}`)
      timers.delete(key)
      deliver(timer.message)
      expect(driver.taken).toBe(true)
      return driver
    },
    to: (wanted) => driver.sent.filter(([address]) => address === wanted).map(([, message]) => message),
    persisted: () => scope.persist(step.snapshot),
  }
  return driver
}

function nameOf(value: unknown): string {
  if (typeof value === 'string') return value
  return Object.entries(value as Record<string, unknown>)
    .map(([key, inner]) => `${key}.${nameOf(inner)}`)
    .join(' ')
}

function throughBytes<T>(value: T): T {
  return decode(encode(value)) as T
}

/** Freezes what a machine may hold: its step's snapshot context, its messages, its input. */
function freeze<T>(value: T): T {
  const isStep = typeof value === 'object' && value !== null && 'snapshot' in value && 'actions' in value
  freezeDeeply(isStep ? (value as unknown as Step).snapshot.context : value)
  if (isStep) freezeDeeply((value as unknown as Step).actions)
  return value
}

function freezeDeeply(value: unknown): void {
  if (typeof value !== 'object' || value === null || Object.isFrozen(value)) return
  Object.freeze(value)
  for (const inner of Object.values(value)) freezeDeeply(inner)
}

export type { Message, Snapshot }
