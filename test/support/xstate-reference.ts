/**
 * XState's own steps, by its public `initialTransition` and `transition`, told in the runtime's words.
 *
 * What `runtime/scope.ts` says of a machine has to be what these say.
 */
import { type AnyMachineSnapshot, type AnyStateMachine, initialTransition, transition } from 'xstate'
import type { Action, Message } from '../../runtime/scope.js'

/** A machine that XState itself keeps. */
export interface Reference {
  readonly value: unknown
  readonly context: unknown
  readonly status: string
  /** What the last step said. */
  readonly actions: readonly Action[]
  /** Delivers a message. Throws what the machine throws. */
  send(message: Message): void
}

/** Starts a machine in XState. @param self what it sends to itself is addressed to */
export function refer(machine: AnyStateMachine, self: string, input: unknown): Reference {
  let [snapshot, executable] = initialTransition(machine, input as never) as [AnyMachineSnapshot, readonly Executable[]]
  return {
    get value() {
      return snapshot.value
    },
    get context() {
      return snapshot.context as unknown
    },
    get status() {
      return snapshot.status
    },
    get actions() {
      return executable.flatMap((action) => said(action, self))
    },
    send(message) {
      ;[snapshot, executable] = transition(machine, snapshot, message as never) as [
        AnyMachineSnapshot,
        readonly Executable[],
      ]
    },
  }
}

interface Executable {
  readonly type: string
  readonly params: unknown
}

function said({ type, params }: Executable, self: string): Action[] {
  const { to, event, delay, id, sendId } = params as {
    readonly to?: { readonly address?: string }
    readonly event: Message
    readonly delay?: number
    readonly id?: string
    readonly sendId: string
  }
  const send = { kind: 'send', message: event, delayMs: delay ?? null, id: id ?? null } as const
  if (type === 'xstate.sendTo') return [{ ...send, to: to?.address ?? self }]
  if (type === 'xstate.raise') return delay === undefined ? [] : [{ ...send, to: self }]
  if (type === 'xstate.cancel') return [{ kind: 'cancel', id: sendId }]
  if (type === 'xstate.emit') return [{ kind: 'emit', event }]
  throw new Error(`an action of another kind: ${type}`)
}
