/**
 * The scope: runs XState machines as pure functions and hands their actions back as data.
 *
 * Owns: everything that knows XState's inside (the actor scope a machine is given, the shape of its actions, its
 * snapshots). The only file that may.
 * Does not own: what becomes of an action (`commit.ts`).
 *
 * - S1 A step runs no effect and no user callback beyond the machine's own guards, assigns and expressions.
 * - S2 The same snapshot and message give the same step; nothing of the process (ids, counters, time) gets in.
 * - S3 What the scope cannot carry out durably is refused with `MACHINE_UNSUPPORTED`, never dropped.
 * - S4 A step that never comes to rest ends after `maxMicrosteps` with `COMMIT_OVERFLOW`.
 */
import type { AnyMachineSnapshot, AnyStateMachine } from 'xstate'
import type { Sink } from './chart-step.js'
import { type ChartSnapshot, chartOf } from './chart.js'
import { TroupeError } from './errors.js'
import { isLogic, type Logic } from './logic.js'
import {
  type Child,
  deliverLogic,
  type LogicSnapshot,
  maxMicrosteps,
  persistLogic,
  type Place,
  restoreLogic,
  startLogic,
} from './logic-step.js'

export { maxMicrosteps }

/** A message: plain data with a type. */
export interface Message {
  readonly type: string
  readonly [field: string]: unknown
}

/** What a machine wants done, in the order in which it said so. */
export type Action =
  | {
      readonly kind: 'send'
      readonly to: string
      readonly message: Message
      readonly delayMs: number | null
      readonly id: string | null
    }
  | { readonly kind: 'cancel'; readonly id: string }
  | { readonly kind: 'emit'; readonly event: Message }
  | LogicAction

/** What only users' logic wants done. */
export type LogicAction =
  | {
      readonly kind: 'start'
      /** Address of the new actor. */
      readonly child: string
      /** What the machine calls it. */
      readonly id: string
      /** Kind of its logic. */
      readonly logic: string
      readonly input: unknown
    }
  | { readonly kind: 'stop'; readonly child: string }
  /** Of a promise: it is to be run, once more when it is said again. */
  | { readonly kind: 'ask'; readonly input: unknown }
  /** An agent of the crew is to be told something. */
  | { readonly kind: 'call'; readonly input: unknown }
  /** What that agent has answered is to be read. */
  | { readonly kind: 'read' }
  | { readonly kind: 'log'; readonly label: string | null; readonly value: unknown }
  /** An action of the user's own: it runs when everything is durable, and never on replay. */
  | { readonly kind: 'custom'; readonly name: string; readonly run: () => unknown }

/** The live state of one actor, never serialised as it is. */
export type Snapshot = AnyMachineSnapshot | ChartSnapshot | LogicSnapshot

/** A machine: a pure function of snapshot and message. A user's is taken apart (`logic.ts`). */
export type Machine = AnyStateMachine | Logic

/** One step of one machine. */
export interface Step {
  readonly snapshot: Snapshot
  readonly actions: readonly Action[]
  /** False when no transition took the message. */
  readonly taken: boolean
}

/** The plain data of a snapshot: what is stored. */
export interface PersistedSnapshot {
  readonly value: unknown
  readonly context: unknown
  readonly status: string
  readonly history: Readonly<Record<string, readonly string[]>>
  /** Of users' logic only: its name, its children by theirs, its end, its states in the order in which they were entered. */
  readonly id?: string
  readonly children?: Readonly<Record<string, Child>>
  readonly output?: unknown
  readonly error?: unknown
  readonly nodes?: readonly string[]
}

interface CollectedAction {
  readonly type: string
  readonly params: unknown
}

/** What XState gives a machine to act through; here it acts on nothing. */
type PureScope = Parameters<AnyStateMachine['transition']>[2]

/** Runs machines. Holds no state between steps. */
export class Scope {
  readonly #sink = new Said()
  readonly #actorScope: PureScope

  constructor() {
    const sink = this.#sink
    const refuse = (what: string) => () => sink.refuse(what)
    this.#actorScope = {
      self: sink.self,
      id: '',
      sessionId: '',
      system: sink.system,
      logger: () => undefined,
      defer: sink.spawn,
      emit: refuse('a live emit'),
      stopChild: refuse('stopChild'),
      actionExecutor: (action: CollectedAction) => this.#collect(action),
    } as unknown as PureScope
  }

  /**
   * The first step of a new actor. Throws what the machine throws.
   * @param place where an actor of a user's stands @param id what its parent calls it
   */
  start(machine: Machine, address: string, input: unknown, place?: Place, id = address): Step {
    if (isLogic(machine)) return startLogic(machine, id, input, place ?? alone(address))
    this.#sink.begin(address)
    const chart = chartOf(machine)
    const snapshot: Snapshot =
      chart === null ? machine.getInitialSnapshot(this.#actorScope, input) : chart.start(input, this.#sink)
    return { snapshot, actions: this.#sink.actions, taken: true }
  }

  /** One message. Throws what the machine throws. */
  deliver(snapshot: Snapshot, address: string, message: Message, place?: Place): Step {
    this.#sink.begin(address)
    if ('leaf' in snapshot) {
      const step = chartOf(snapshot.machine)!.step(snapshot, message, this.#sink)
      return { snapshot: step.snapshot, actions: this.#sink.actions, taken: step.taken }
    }
    if ('logic' in snapshot) return deliverLogic(snapshot, message, place ?? alone(address))
    const machine = snapshot.machine as AnyStateMachine
    const next: Snapshot = machine.transition(snapshot, message, this.#actorScope)
    // A transition without actions that stays where it is gives back the same snapshot, and was taken all the same.
    const taken = next !== snapshot || machine.getTransitionData(snapshot, message).length > 0
    return { snapshot: next, actions: this.#sink.actions, taken }
  }

  /** The plain data of a snapshot. */
  persist(snapshot: Snapshot): PersistedSnapshot {
    if ('logic' in snapshot) return persistLogic(snapshot)
    const history: Record<string, string[]> = {}
    for (const [key, nodes] of Object.entries(snapshot.historyValue as Record<string, { id: string }[]>)) {
      history[key] = nodes.map((node) => node.id)
    }
    return { value: snapshot.value, context: snapshot.context, status: snapshot.status, history }
  }

  /** A live snapshot from stored data. @throws TroupeError `SNAPSHOT_INCOMPATIBLE` when the machine has no such state. */
  restore(machine: Machine, persisted: PersistedSnapshot): Snapshot {
    try {
      if (isLogic(machine)) return restoreLogic(machine, persisted)
      const chart = chartOf(machine)
      if (chart !== null) return chart.restore(persisted.value, persisted.context)
      return this.#restore(machine, persisted)
    } catch (error) {
      throw new TroupeError(
        'SNAPSHOT_INCOMPATIBLE',
        `${isLogic(machine) ? machine.kind : machine.id}: ${(error as Error).message}`,
        { cause: error },
      )
    }
  }

  #restore(machine: AnyStateMachine, persisted: PersistedSnapshot): Snapshot {
    const historyValue = Object.fromEntries(
      Object.entries(persisted.history).map(([key, ids]) => [key, ids.map((id) => ({ id }))]),
    )
    // XState would only warn of a remembered state that is gone; this throws.
    for (const id of Object.values(persisted.history).flat()) machine.getStateNodeById(id)
    const stored = { ...persisted, context: {}, historyValue, children: {}, output: undefined, error: undefined }
    const restored: AnyMachineSnapshot = machine.restoreSnapshot(stored as never, this.#actorScope)
    // XState would take an object with `xstate$$type` in a context for a reference to an actor, and lose it.
    return Object.assign(restored, { context: persisted.context as never })
  }

  #collect(action: CollectedAction): void {
    // An action of one's own has no parameters.
    const { event, to, delay, id, sendId } = (action.params ?? {}) as Record<string, unknown>
    switch (action.type) {
      case 'xstate.sendTo':
        return this.#sink.send(to, event as Message, delay, id)
      case 'xstate.raise':
        // Without a delay a raise stays inside the machine; the action is only collected, never to be done.
        if (delay !== undefined) this.#sink.raise(event as Message, delay as number, id)
        return
      case 'xstate.cancel':
        return this.#sink.cancel(sendId)
      case 'xstate.emit':
        return this.#sink.emit(event as Message)
      case 'xstate.log':
        return
      default:
        this.#sink.refuse(`the action ${action.type}`)
    }
  }
}

/** An actor of a user's without anybody around it: it has no parent, and its children are numbered. */
function alone(address: string): Place {
  let children = 0
  return { address, parent: null, child: () => `child/${(children += 1)}` }
}

/** What one step said. */
class Said implements Sink {
  actions: Action[] = []
  readonly self: { id: string; sessionId: string; address: string }
  readonly system: unknown
  readonly spawn = (): never => this.refuse('spawn inside assign')
  #microsteps = 0

  constructor() {
    const refuse = (what: string) => () => this.refuse(what)
    this.system = {
      _bookId: refuse('spawning an actor'),
      _register: refuse('spawning an actor'),
      _unregister: () => undefined,
      _sendInspectionEvent: () => this.microstep(),
      get: refuse('system.get'),
      _logger: () => undefined,
      scheduler: { schedule: refuse('a live timer'), cancel: refuse('a live timer') },
    }
    this.self = {
      id: '',
      sessionId: '',
      address: '',
      send: refuse('self.send'),
      getSnapshot: refuse('self.getSnapshot'),
      system: this.system,
    } as Said['self']
  }

  begin(address: string): void {
    this.actions = []
    this.#microsteps = 0
    this.self.id = address
    this.self.sessionId = address
    this.self.address = address
  }

  microstep(): void {
    this.#microsteps += 1
    if (this.#microsteps <= maxMicrosteps) return
    const reason = `${this.self.address} did not come to rest after ${maxMicrosteps} microsteps`
    throw new TroupeError('COMMIT_OVERFLOW', reason)
  }

  send(target: unknown, message: Message, delay: unknown, id: unknown): void {
    this.actions.push({
      kind: 'send',
      to: this.#addressOf(target),
      message,
      delayMs: (delay as number | undefined) ?? null,
      id: (id as string | undefined) ?? null,
    })
  }

  raise(message: Message, delayMs: number, id: unknown): void {
    this.send(this.self, message, delayMs, id)
  }

  cancel(id: unknown): void {
    this.actions.push({ kind: 'cancel', id: id as string })
  }

  emit(event: Message): void {
    this.actions.push({ kind: 'emit', event })
  }

  refuse(what: string): never {
    throw new TroupeError('MACHINE_UNSUPPORTED', `${this.self.address}: ${what} cannot be carried out durably`)
  }

  #addressOf(target: unknown): string {
    // XState sends to the machine itself what has no target.
    if (target === undefined) return this.self.address
    if (typeof target === 'object' && target !== null && 'address' in target && typeof target.address === 'string') {
      return target.address
    }
    return this.refuse('sending to something that is not an address')
  }
}
