/**
 * The other end of the control socket: the way to the process that owns the store.
 *
 * Owns: finding the owner, asking it.
 * Does not own: the wire (`control-wire.ts`), the serving end (`control.ts`), the runtime that asks
 * (`remote-runtime.ts`), when a store is busy (`index.ts`).
 *
 * - I1 When the owner goes away, whoever waits is told with `RUNTIME_CLOSED`; nothing of the run is lost by that.
 * - I2 A request keeps this process alive, an idle remote runtime does not.
 */
import { connect, type Socket } from 'node:net'
import {
  type ControlRequest,
  controlAnswer,
  controlGreeting,
  findSocket,
  linesOf,
  maxAnswerBytes,
  readLine,
  toError,
  toLine,
} from './control-wire.js'
import type { Crew } from './define.js'
import { isTroupeError, TroupeError } from './errors.js'
import { type Channel, RemoteRuntime } from './remote-runtime.js'

/** How long a greeting may take. */
const greetingMs = 5_000

/** Reaches the process that owns a store. */
class ControlClient implements Channel {
  readonly #path: string
  readonly #sockets = new Set<Socket>()
  #closed = false

  constructor(path: string) {
    this.#path = path
  }

  /** Asks for one thing. */
  async ask(request: ControlRequest): Promise<unknown> {
    const answer = this.stream(request)
    for (;;) {
      const next = await answer.next()
      if (next.done === true) return next.value
    }
  }

  /** Asks for many; returns the closing result. Leaving the generator ends the request. */
  async *stream(request: ControlRequest, signal?: AbortSignal): AsyncGenerator<unknown, unknown, void> {
    if (this.#closed) throw new TroupeError('RUNTIME_CLOSED', 'the runtime is closed')
    const socket = connect(this.#path).on('error', () => undefined)
    const leave = (): void => void socket.destroy()
    this.#sockets.add(socket)
    signal?.addEventListener('abort', leave)
    try {
      socket.write(toLine(request))
      const lines = linesOf(socket, maxAnswerBytes)
      await lines.next()
      for await (const line of lines) {
        const answer = readLine(line, controlAnswer)
        if ('error' in answer) throw toError(answer.error)
        if ('result' in answer) return answer.result
        if ('item' in answer) yield answer.item
      }
      throw this.#gone()
    } catch (error) {
      if (signal?.aborted === true) return null
      throw isTroupeError(error) ? error : this.#gone(error)
    } finally {
      signal?.removeEventListener('abort', leave)
      this.#sockets.delete(socket)
      socket.destroy()
    }
  }

  close(): void {
    this.#closed = true
    for (const socket of this.#sockets) socket.destroy()
  }

  #gone(cause?: unknown): TroupeError {
    if (this.#closed) return new TroupeError('RUNTIME_CLOSED', 'the runtime is closed')
    return new TroupeError('RUNTIME_CLOSED', 'the process that owned the store is gone', { retryable: true, cause })
  }
}

/** Process id of whoever answers there in our language; null when nobody does. */
async function greet(path: string): Promise<number | null> {
  const socket = connect(path).on('error', () => undefined)
  socket.setTimeout(greetingMs, () => socket.destroy())
  try {
    for await (const line of linesOf(socket, 1_024)) return readLine(line, controlGreeting).pid
    return null
  } catch {
    return null
  } finally {
    socket.destroy()
  }
}

/** A runtime for a store that another process owns; null when that process cannot be reached. */
export async function connectRuntime(options: {
  /** Real path of the store's folder. */
  readonly store: string
  /** Hash of a crew's definition, as the owner would compute it. */
  readonly hashOf: (crew: Crew) => string
}): Promise<RemoteRuntime | null> {
  const path = await findSocket(options.store)
  const owner = await greet(path)
  return owner === null ? null : new RemoteRuntime({ channel: new ControlClient(path), owner, hashOf: options.hashOf })
}
