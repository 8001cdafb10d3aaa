/**
 * Promises of users' machines as work for a port.
 *
 * Owns: what is asked for, running it, what comes of it.
 * Does not own: when (`dispatcher.ts`), what an actor makes of the outcome (`logic-step.ts`).
 *
 * - PM1 A promise that resolves with what is no plain data, or with too much of it, is rejected with the reason: its outcome
 *   is journalled, and a machine gets what is in the journal.
 */
import type { Outcome } from './edge.js'
import { TroupeError } from './errors.js'
import type { Logic, PromiseEffect } from './logic.js'
import { errorData, toPlain } from './plain.js'

/** A promise that a machine wants run: work for the port `promise`. */
export interface PromiseCall {
  readonly type: 'promise.call'
  /** Kind of its logic. */
  readonly kind: string
  readonly effect: PromiseEffect
  readonly input?: unknown
  /** What it reads; empty for one that runs. */
  readonly conversation: string
  /** What is to be read, in the place of a promise: the task of a run, or what an agent has answered. */
  readonly reads?: ContentRead
}

/** What a user's machine is told of a conversation. */
export type ContentRead =
  | { readonly task: string }
  | {
      readonly agent: string
      /** Of its answer among those of the run. */
      readonly index: number
    }

/** Bytes of JSON of an outcome. */
const maxOutcomeBytes = 256 * 1024

/** Runs a promise. Never rejects. @param shown how its actor is called */
export async function runPromise(
  logic: Logic,
  call: PromiseCall,
  actor: string,
  signal: AbortSignal,
): Promise<Outcome> {
  const refuse = (what: string) => (): never => {
    throw new TroupeError('MACHINE_UNSUPPORTED', `${actor}: ${what} cannot be carried out durably`)
  }
  const self = {
    id: actor,
    sessionId: actor,
    address: actor,
    send: refuse('self.send'),
    getSnapshot: refuse('self.getSnapshot'),
  }
  const system = { get: refuse('system.get'), getAll: refuse('system.getAll') }
  const create = logic.logic.config as (given: object) => unknown
  try {
    return resolved(await create({ input: call.input, signal, self, system, emit: refuse('emit') }))
  } catch (thrown) {
    return rejected(thrown)
  }
}

/** The outcome of a promise that was kept. */
export function resolved(output: unknown): Outcome {
  try {
    const plain = bounded(toPlain(output, 'its output'))
    return { body: { type: 'promise.resolved', ...(plain === undefined ? {} : { output: plain }) }, values: [] }
  } catch (thrown) {
    return rejected(thrown)
  }
}

/** The outcome of a promise that was rejected, or could not be run. */
export function rejected(thrown: unknown): Outcome {
  let error = errorData(thrown)
  try {
    bounded(error)
  } catch (tooLarge) {
    error = errorData(tooLarge)
  }
  return { body: { type: 'promise.rejected', error }, values: [] }
}

function bounded<T>(value: T): T {
  const bytes = value === undefined ? 0 : Buffer.byteLength(JSON.stringify(value))
  if (bytes <= maxOutcomeBytes) return value
  throw new TroupeError('ENVELOPE_TOO_LARGE', `the outcome has ${bytes} bytes, at most ${maxOutcomeBytes} are kept`)
}
