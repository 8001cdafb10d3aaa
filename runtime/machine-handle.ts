/**
 * The handle of a live machine: send it messages, look at it, wait for its end.
 *
 * Owns: what is told of a machine, the wait for its output, its events.
 * Does not own: the work itself (`worker.ts`, `shard.ts`), the checks of what it is sent (`define-machine.ts`).
 *
 * - MH1 A message that was taken is in the journal; one to a machine that has ended is refused with `MACHINE_ENDED`.
 * - MH2 Somebody who waits for a machine keeps the process alive and the shard in memory; leaving cancels nothing.
 */
import { command, stayAlive } from './crew-handle.js'
import { type MachineDefinition, machineMessage } from './define-machine.js'
import type { LiveCrew } from './dispatcher.js'
import { type ErrorCode, isErrorCode, TroupeError } from './errors.js'
import { type Cursor, isAfter, parseCursor, streamEvents, type TroupeEvent } from './events.js'
import type { LogicSnapshot } from './logic-step.js'
import type { Message } from './scope.js'
import type { Shard } from './shard.js'
import { machineAddress } from './user-actors.js'
import type { Worker } from './worker.js'

/** A machine as it is now. */
export interface MachineState {
  readonly status: 'active' | 'done' | 'error'
  readonly value: unknown
  readonly context: unknown
  /** Of one that is done. */
  readonly output?: unknown
  /** Of one that failed or was cancelled: code and message, or what it threw as plain data. */
  readonly error?: unknown
}

/** Which events to read. */
export interface MachineEventsOptions {
  /** Id of the last event that is known. @default from the beginning */
  readonly since?: string
  readonly signal?: AbortSignal
}

/** A live machine. */
export class MachineHandle<Output = unknown, Event extends Message = Message> {
  readonly id: string
  readonly #worker: Worker
  readonly #live: LiveCrew
  readonly #definition: MachineDefinition<Output, never, Event>
  readonly #release: () => void

  /** @internal Made by `runtime.spawn`. */
  constructor(id: string, worker: Worker, live: LiveCrew, definition: MachineDefinition<Output, never, Event>) {
    this.id = id
    this.#worker = worker
    this.#live = live
    this.#definition = definition
    this.#release = worker.pin(id)
  }

  /** @internal Lets the shard leave memory. */
  release(): void {
    this.#release()
  }

  /**
   * Sends it a message; resolves when that is journalled, whatever becomes of it.
   * @throws TroupeError `INPUT_INVALID`, `MESSAGE_REFUSED` for a type that only XState may use, `MACHINE_ENDED`,
   * `MAILBOX_FULL`, `STORE_FULL`, `SHARD_STOPPED`.
   */
  async send(message: Event): Promise<void> {
    const body = await machineMessage(this.#definition, message)
    const shard = await this.#shard()
    if (shard.hasEnded(machineAddress)) throw this.#ended()
    const draft = { from: 'client/local', to: machineAddress, cause: '', body, values: [] }
    const { events } = await shard.post(draft, true)
    if (events.some(([, { type, code }]) => type === 'message.dead' && code === 'MACHINE_ENDED')) throw this.#ended()
  }

  /** Its state and context. */
  async state(): Promise<MachineState> {
    const shard = await this.#shard()
    const snapshot = shard.state.actors.get(machineAddress)?.snapshot as LogicSnapshot | undefined
    if (snapshot === undefined) throw new TroupeError('CREW_UNKNOWN', `${this.id} is no machine`)
    const { status, value, context, output, error } = snapshot
    return {
      ...{ status, value, context },
      ...(output === undefined ? {} : { output }),
      ...(error === undefined ? {} : { error }),
    }
  }

  /** Its output, when it is done. Rejects with what it failed over, `RUN_CANCELLED`, `RUNTIME_CLOSED`, `SHARD_STOPPED`. */
  get result(): Promise<Output> {
    const result = this.#result()
    // Nobody has to wait for it.
    result.catch(() => undefined)
    return result
  }

  /** What it and its children emitted and did, from the first event on, until it ends. */
  async *events(options: MachineEventsOptions = {}): AsyncGenerator<TroupeEvent, void, void> {
    await this.#shard()
    const after: Cursor = (options.since === undefined ? null : parseCursor(options.since)) ?? {
      sequence: 0,
      index: -1,
    }
    const unpin = this.#worker.pin(this.id)
    const leave = stayAlive()
    try {
      yield* streamEvents({
        shard: this.id,
        after,
        journal: this.#worker.journal,
        hub: this.#worker.hub,
        isLast: ({ from, event }) => from === machineAddress && event.type === 'machine.finished',
        wants: (placed) => isAfter(placed, after),
        wantsLive: null,
        now: () => Date.now(),
        ended: () => this.#gone(this.#worker.active.get(this.id)),
        signal: options.signal,
      })
    } finally {
      leave()
      unpin()
    }
  }

  /** Ends it, with its children and whatever they wait for: its result is `RUN_CANCELLED`. Resolves when that is durable. */
  cancel(): Promise<void> {
    return command(this.#shard(), { type: 'crew.cancel' })
  }

  async #shard(): Promise<Shard> {
    const shard = await this.#worker.shard(this.id)
    if (shard.crew !== this.#live && shard.stopped === null && shard.crew === null) await shard.define(this.#live)
    return shard
  }

  #ended(): TroupeError {
    return new TroupeError('MACHINE_ENDED', `${this.id} has ended`)
  }

  async #result(): Promise<Output> {
    const { status, output, error } = await this.#end(await this.#shard())
    if (status === 'done') return output as Output
    const { code, message } = (error ?? {}) as { readonly code?: unknown; readonly message?: unknown }
    const known: ErrorCode = typeof code === 'string' && isErrorCode(code) ? code : 'ACTOR_FAILED'
    throw new TroupeError(known, typeof message === 'string' ? message : `${this.id} failed`, { cause: error })
  }

  async #end(shard: Shard): Promise<LogicSnapshot> {
    const unpin = this.#worker.pin(this.id)
    const leave = stayAlive()
    let unsubscribe = (): void => undefined
    try {
      return await new Promise<LogicSnapshot>((resolve, reject) => {
        unsubscribe = this.#worker.onEnd(this.id, () => {
          const reason = this.#gone(shard)
          if (shard.hasEnded(machineAddress)) resolve(shard.state.actors.get(machineAddress)!.snapshot as LogicSnapshot)
          else if (reason !== null) reject(reason)
        })
      })
    } finally {
      unsubscribe()
      leave()
      unpin()
    }
  }

  /** Why nothing more will come of it here; null while it goes on. */
  #gone(shard: Shard | undefined): TroupeError | null {
    const stopped = shard?.stopped ?? null
    if (stopped?.code === 'SHARD_FENCED')
      return new TroupeError('SHARD_ELSEWHERE', `${this.id} went to another worker`, {
        retryable: true,
        cause: stopped,
      })
    if (stopped !== null)
      return new TroupeError('SHARD_STOPPED', `${this.id} stopped: ${stopped.code}: ${stopped.message}`, {
        cause: stopped,
      })
    if (!this.#worker.closed) return null
    return new TroupeError('RUNTIME_CLOSED', `the runtime was closed before ${this.id} ended`)
  }
}
