/**
 * The handle of a live machine: send it messages, look at it, wait for its end.
 *
 * Owns: what is told of a machine, the wait for its output, its events.
 * Does not own: the work itself (`worker.ts`, `shard.ts`), the checks of what it is sent (`define-machine.ts`), the handle in
 * another process (`remote-machine.ts`).
 *
 * - MH1 A message that was taken is in the journal; one to a machine that has ended is refused with `MACHINE_ENDED`.
 * - MH2 Somebody who waits for a machine keeps the process alive and the shard in memory; leaving cancels nothing.
 * - MH3 A message whose key is known was taken: it is neither sent again nor refused, also when the machine has ended since.
 */
import { command, stayAlive } from './crew-handle.js'
import { type MachineDefinition, machineMessage } from './define-machine.js'
import type { LiveCrew } from './dispatcher.js'
import { type ErrorCode, isErrorCode, TroupeError } from './errors.js'
import type { MachineHandle as Face } from './face.js'
import { messageKey } from './heard.js'
import { type Cursor, isAfter, parseCursor, streamEvents, type TroupeEvent } from './events.js'
import type { LogicSnapshot } from './logic-step.js'
import type { Message } from './scope.js'
import type { Shard } from './shard.js'
import type { ShardState } from './state.js'
import { hasEnded, machineAddress } from './user-actors.js'
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

/** How to send a message. */
export interface SendOptions {
  /** The same key is the same message: sent again it changes nothing. Up to 64 characters. @default a new one */
  readonly key?: string
}

/** Which events to read. */
export interface MachineEventsOptions {
  /** Id of the last event that is known. @default from the beginning */
  readonly since?: string
  readonly signal?: AbortSignal
}

/** A live machine of this process. */
export class MachineHandle<Output = unknown, Event extends Message = Message> implements Face<Output, Event> {
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

  /** @internal Hash of the definition that it was spawned with. */
  get definition(): string {
    return this.#live.prepared.hash
  }

  /** As the face says. @throws TroupeError there, and `SHARD_STOPPED`. */
  async send(message: Event, options: SendOptions = {}): Promise<void> {
    return this.take(message, options.key === undefined ? '' : messageKey(options.key), 'local')
  }

  /** @internal Sends what anybody says. @param key empty: none @param client who says it */
  async take(message: unknown, key: string, client: string): Promise<void> {
    const body = await machineMessage(this.#definition, message)
    const shard = await this.#shard()
    const taken = shard.state.heard.commitOf(key)
    if (taken !== undefined && shard.isDurable(taken)) return
    if (taken === undefined && shard.hasEnded(machineAddress)) throw this.#ended()
    const draft = { from: `client/${client}`, to: machineAddress, cause: key, body, values: [] }
    const { events } = await shard.post(draft, true)
    if (events.some(([, { type, code }]) => type === 'message.dead' && code === 'MACHINE_ENDED')) throw this.#ended()
  }

  /** Its state and context. */
  async state(): Promise<MachineState> {
    return stateIn(await this.#current())
  }

  /** Its output, when it is done. As the face says; rejects with `SHARD_STOPPED`, too. */
  get result(): Promise<Output> {
    const result = this.end().then((state) => outputOf<Output>(this.id, state))
    // Nobody has to wait for it.
    result.catch(() => undefined)
    return result
  }

  /** What it and its children emitted and did, from the first event on, until it ends. */
  async *events(options: MachineEventsOptions = {}): AsyncGenerator<TroupeEvent, void, void> {
    const since = options.since === undefined ? null : parseCursor(options.since)
    const isOver = (await this.#current()).hasEnded(machineAddress)
    // Of one that has ended the last event is found only by whoever begins before it.
    const after: Cursor = isOver || since === null ? { sequence: 0, index: -1 } : since
    const unpin = this.#worker.pin(this.id)
    const leave = stayAlive()
    try {
      yield* streamEvents({
        shard: this.id,
        after,
        journal: this.#worker.journal,
        hub: this.#worker.hub,
        isLast: ({ from, event }) => from === machineAddress && event.type === 'machine.finished',
        wants: (placed) => since === null || isAfter(placed, since),
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

  /** The shard, as it is now: what it does not know yet may have been done elsewhere. */
  #current(): Promise<Shard> {
    return this.#shard((state) => hasEnded(state, machineAddress))
  }

  /** @param knows as in `Worker.knowing` */
  async #shard(knows: (state: ShardState) => boolean = () => true): Promise<Shard> {
    const shard = await this.#worker.knowing(this.id, knows)
    if (shard.crew !== this.#live && shard.stopped === null && shard.crew === null) await shard.define(this.#live)
    return shard
  }

  #ended(): TroupeError {
    return new TroupeError('MACHINE_ENDED', `${this.id} has ended`)
  }

  /** @internal Its state when it has ended; waits until the signal ends the wait with `RUNTIME_CLOSED`. */
  async end(signal?: AbortSignal): Promise<MachineState> {
    const shard = await this.#current()
    const unpin = this.#worker.pin(this.id)
    const leave = stayAlive()
    let unsubscribe = (): void => undefined
    try {
      return await new Promise<MachineState>((resolve, reject) => {
        const look = (): void => {
          const reason = signal?.aborted === true ? nobodyWaits(this.id) : this.#gone(shard)
          if (shard.hasEnded(machineAddress)) resolve(stateIn(shard))
          else if (reason !== null) reject(reason)
        }
        const unwatch = this.#worker.onEnd(this.id, look)
        signal?.addEventListener('abort', look)
        unsubscribe = () => {
          unwatch()
          signal?.removeEventListener('abort', look)
        }
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

/** @throws TroupeError `CREW_UNKNOWN` for a shard without a machine. */
function stateIn({ id, state }: Shard): MachineState {
  const snapshot = state.actors.get(machineAddress)?.snapshot as LogicSnapshot | undefined
  if (snapshot === undefined) throw new TroupeError('CREW_UNKNOWN', `${id} is no machine`)
  const { status, value, context, output, error } = snapshot
  return {
    ...{ status, value, context },
    ...(output === undefined ? {} : { output }),
    ...(error === undefined ? {} : { error }),
  }
}

/** The output of a machine that has ended. @throws TroupeError what it failed over. */
export function outputOf<Output>(id: string, { status, output, error }: MachineState): Output {
  if (status === 'done') return output as Output
  const { code, message } = (error ?? {}) as { readonly code?: unknown; readonly message?: unknown }
  const known: ErrorCode = typeof code === 'string' && isErrorCode(code) ? code : 'ACTOR_FAILED'
  throw new TroupeError(known, typeof message === 'string' ? message : `${id} failed`, { cause: error })
}

function nobodyWaits(id: string): TroupeError {
  return new TroupeError('RUNTIME_CLOSED', `nobody waits for ${id} any more`)
}
