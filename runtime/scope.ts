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
import { TroupeError } from './errors.js'

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

/** The live state of one actor: an XState snapshot, never serialised as it is. */
export type Snapshot = AnyMachineSnapshot

/** A machine: a pure function of snapshot and message. */
export type Machine = AnyStateMachine

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
}

/** Microsteps that one message may cause in one machine. */
export const maxMicrosteps = 1_000

interface CollectedAction {
  readonly type: string
  readonly params: unknown
}

/** What XState gives a machine to act through; here it acts on nothing. */
type PureScope = Parameters<AnyStateMachine['transition']>[2]

/** Runs machines. Holds no state between steps. */
export class Scope {
  #actions: Action[] = []
  #self = ''
  #microsteps = 0
  readonly #actorScope: PureScope
  readonly #ref: { id: string; sessionId: string; address: string }

  constructor() {
    const refuse = (what: string) => () => {
      throw new TroupeError('MACHINE_UNSUPPORTED', `${what} cannot be carried out durably`)
    }
    const system = {
      _bookId: refuse('spawning an actor'),
      _register: refuse('spawning an actor'),
      _unregister: () => undefined,
      _sendInspectionEvent: () => {
        this.#microsteps += 1
        if (this.#microsteps > maxMicrosteps) {
          throw new TroupeError(
            'COMMIT_OVERFLOW',
            `${this.#self} did not come to rest after ${maxMicrosteps} microsteps`,
          )
        }
      },
      get: refuse('system.get'),
      _logger: () => undefined,
      scheduler: { schedule: refuse('a live timer'), cancel: refuse('a live timer') },
    }
    this.#ref = {
      id: '',
      sessionId: '',
      address: '',
      send: refuse('self.send'),
      getSnapshot: refuse('self.getSnapshot'),
      system,
    } as { id: string; sessionId: string; address: string }
    this.#actorScope = {
      self: this.#ref,
      id: '',
      sessionId: '',
      system,
      logger: () => undefined,
      defer: refuse('spawn inside assign'),
      emit: refuse('a live emit'),
      stopChild: refuse('stopChild'),
      actionExecutor: (action: CollectedAction) => this.#collect(action),
    } as unknown as PureScope
  }

  /** The first step of a new actor. Throws what the machine throws. */
  start(machine: AnyStateMachine, address: string, input: unknown): Step {
    this.#begin(address)
    const snapshot: Snapshot = machine.getInitialSnapshot(this.#actorScope, input)
    return { snapshot, actions: this.#actions, taken: true }
  }

  /** One message. Throws what the machine throws. */
  deliver(snapshot: Snapshot, address: string, message: Message): Step {
    this.#begin(address)
    const machine = snapshot.machine as AnyStateMachine
    const next: Snapshot = machine.transition(snapshot, message, this.#actorScope)
    // A transition without actions that stays where it is gives back the same snapshot, and was taken all the same.
    const taken = next !== snapshot || machine.getTransitionData(snapshot, message).length > 0
    return { snapshot: next, actions: this.#actions, taken }
  }

  /** The plain data of a snapshot. */
  persist(snapshot: Snapshot): PersistedSnapshot {
    const history: Record<string, string[]> = {}
    for (const [key, nodes] of Object.entries(snapshot.historyValue as Record<string, { id: string }[]>)) {
      history[key] = nodes.map((node) => node.id)
    }
    return { value: snapshot.value, context: snapshot.context, status: snapshot.status, history }
  }

  /** A live snapshot from stored data. @throws TroupeError `SNAPSHOT_INCOMPATIBLE` when the machine has no such state. */
  restore(machine: AnyStateMachine, persisted: PersistedSnapshot): Snapshot {
    try {
      const historyValue = Object.fromEntries(
        Object.entries(persisted.history).map(([key, ids]) => [key, ids.map((id) => ({ id }))]),
      )
      // XState would only warn of a remembered state that is gone; this throws.
      for (const id of Object.values(persisted.history).flat()) machine.getStateNodeById(id)
      const stored = { ...persisted, context: {}, historyValue, children: {}, output: undefined, error: undefined }
      const restored = machine.restoreSnapshot(stored as never, this.#actorScope) as Snapshot
      // XState would take an object with `xstate$$type` in a context for a reference to an actor, and lose it.
      return Object.assign(restored, { context: persisted.context })
    } catch (error) {
      throw new TroupeError('SNAPSHOT_INCOMPATIBLE', `${machine.id}: ${(error as Error).message}`, { cause: error })
    }
  }

  #begin(address: string): void {
    this.#actions = []
    this.#microsteps = 0
    this.#self = address
    this.#ref.id = address
    this.#ref.sessionId = address
    this.#ref.address = address
  }

  #collect(action: CollectedAction): void {
    const params = action.params as Record<string, unknown>
    switch (action.type) {
      case 'xstate.sendTo':
        this.#actions.push({
          kind: 'send',
          to: this.#target(params['to']),
          message: params['event'] as Message,
          delayMs: (params['delay'] as number | undefined) ?? null,
          id: (params['id'] as string | undefined) ?? null,
        })
        return
      case 'xstate.raise':
        // Without a delay a raise stays inside the machine; the action is only collected, never to be done.
        if (params['delay'] === undefined) return
        this.#actions.push({
          kind: 'send',
          to: this.#self,
          message: params['event'] as Message,
          delayMs: params['delay'] as number,
          id: (params['id'] as string | undefined) ?? null,
        })
        return
      case 'xstate.cancel':
        this.#actions.push({ kind: 'cancel', id: params['sendId'] as string })
        return
      case 'xstate.emit':
        this.#actions.push({ kind: 'emit', event: params['event'] as Message })
        return
      case 'xstate.log':
        return
      default:
        throw new TroupeError('MACHINE_UNSUPPORTED', `${this.#self}: the action ${action.type} is not supported`)
    }
  }

  #target(target: unknown): string {
    if (typeof target === 'object' && target !== null && 'address' in target && typeof target.address === 'string') {
      return target.address
    }
    throw new TroupeError('MACHINE_UNSUPPORTED', `${this.#self} sends to something that is not an address`)
  }
}
