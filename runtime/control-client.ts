/**
 * The other end of the control socket: a runtime whose crews run in the process that owns the store.
 *
 * Owns: asking, the remote runtime and its handles.
 * Does not own: the wire (`control-wire.ts`), the serving end (`control.ts`), when a store is busy (`index.ts`).
 *
 * - I1 A remote handle keeps what the face promises, or refuses with `STORE_BUSY` and the owner's pid.
 * - I2 When the owner goes away, whoever waits is told with `RUNTIME_CLOSED`; nothing of the run is lost by that.
 * - I3 A request keeps this process alive, an idle remote runtime does not.
 */
import { randomUUID } from 'node:crypto'
import { connect, type Socket } from 'node:net'
import {
  type ControlRequest,
  controlAnswer,
  controlGreeting,
  findSocket,
  fromWireCommit,
  linesOf,
  maxAnswerBytes,
  readLine,
  toError,
  toLine,
} from './control-wire.js'
import { type Agent, type Crew, toCrew } from './define.js'
import { checkId } from './envelope.js'
import { isTroupeError, TroupeError } from './errors.js'
import type { TroupeEvent } from './events.js'
import type { CrewHandle, Runtime } from './face.js'
import type { RecordedCommit } from './record.js'
import { cancelOn, Run, type RunResult } from './run.js'
import { messagesOf, type RunInput, type StartOptions } from './run-input.js'
import type { CrewDetails, CrewInfo, SpawnOptions } from './runtime.js'

/** How long a greeting may take. */
const greetingMs = 5_000

/** Reaches the process that owns a store. */
class ControlClient {
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
        yield answer.item
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
  return owner === null ? null : new RemoteRuntime(new ControlClient(path), owner, options.hashOf)
}

/** A runtime whose crews run in another process of this machine. */
export class RemoteRuntime implements Runtime {
  /** Process id of the store's owner. */
  readonly owner: number
  readonly #client: ControlClient
  readonly #hashOf: (crew: Crew) => string
  readonly #crews = new Map<string, CrewHandle>()

  /** @internal Made by `connectRuntime`. */
  constructor(client: ControlClient, owner: number, hashOf: (crew: Crew) => string) {
    this.#client = client
    this.owner = owner
    this.#hashOf = hashOf
  }

  async spawn<Output>(
    definition: Crew<Output> | Agent<Output>,
    options: SpawnOptions = {},
  ): Promise<CrewHandle<Output>> {
    const crew = toCrew(definition)
    const id = checkId(options.id ?? crew.name, 'a crew id')
    const hash = this.#hashOf(crew)
    await this.#client.ask({ method: 'attach', crew: id, definition: hash })
    const handle = new RemoteCrew<Output>(id, crew.lead, hash, this.#client)
    this.#crews.set(id, handle)
    return handle
  }

  crew(id: string): CrewHandle | undefined {
    return this.#crews.get(id)
  }

  async *list(): AsyncGenerator<CrewInfo, void, void> {
    for await (const item of this.#client.stream({ method: 'list' })) yield item as CrewInfo
  }

  async show(id: string): Promise<CrewDetails> {
    return (await this.#client.ask({ method: 'show', crew: checkId(id, 'a crew id') })) as CrewDetails
  }

  async *journal(id: string, from = 1): AsyncGenerator<RecordedCommit, void, void> {
    const crew = checkId(id, 'a crew id')
    for await (const item of this.#client.stream({ method: 'journal', crew, from })) yield fromWireCommit(item)
  }

  async remove(id: string): Promise<void> {
    await this.#client.ask({ method: 'remove', crew: checkId(id, 'a crew id') })
    this.#crews.delete(id)
  }

  async pause(id: string): Promise<void> {
    await this.#client.ask({ method: 'pause', crew: checkId(id, 'a crew id') })
  }

  async resume(id: string): Promise<void> {
    await this.#client.ask({ method: 'resume', crew: checkId(id, 'a crew id') })
  }

  async cancel(id: string, run?: string): Promise<void> {
    const crew = checkId(id, 'a crew id')
    await this.#client.ask(run === undefined ? { method: 'cancel', crew } : { method: 'cancel', crew, run })
  }

  /** Leaves the owner alone: its runs go on. */
  async close(): Promise<void> {
    this.#client.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

/** A crew that runs in the process that owns the store. */
class RemoteCrew<Output> implements CrewHandle<Output> {
  readonly id: string
  readonly #lead: string
  readonly #definition: string
  readonly #client: ControlClient

  constructor(id: string, lead: string, definition: string, client: ControlClient) {
    this.id = id
    this.#lead = lead
    this.#definition = definition
    this.#client = client
  }

  start(input: RunInput, options: StartOptions = {}): Run<Output> {
    const run = this.#run(this.#start(input, options))
    if (options.signal !== undefined) cancelOn(options.signal, run)
    return run
  }

  run(id: string): Run<Output> {
    return this.#run(this.#client.ask({ method: 'find', crew: this.id, run: id }) as Promise<string>)
  }

  async current(): Promise<Run<Output> | undefined> {
    const id = (await this.#client.ask({ method: 'current', crew: this.id })) as string | null
    return id === null ? undefined : this.run(id)
  }

  ask(input: RunInput, options: StartOptions = {}): Promise<RunResult<Output>> {
    return this.start(input, options).result
  }

  async pause(): Promise<void> {
    await this.#client.ask({ method: 'pause', crew: this.id })
  }

  async resume(): Promise<void> {
    await this.#client.ask({ method: 'resume', crew: this.id })
  }

  async cancel(run?: string): Promise<void> {
    const { id: crew } = this
    await this.#client.ask(run === undefined ? { method: 'cancel', crew } : { method: 'cancel', crew, run })
  }

  async #start(input: RunInput, options: StartOptions): Promise<string> {
    messagesOf(input)
    const { data, key = randomUUID() } = options
    const request = { method: 'start', crew: this.id, definition: this.#definition, key, input } as const
    return (await this.#client.ask(data === undefined ? request : { ...request, data })) as string
  }

  #run(started: Promise<string>): Run<Output> {
    const { id: crew } = this
    const client = this.#client
    return new Run<Output>({
      started,
      lead: this.#lead,
      result: async (run) => (await client.ask({ method: 'result', crew, run })) as RunResult<Output>,
      events: async function* (run, after, { signal }) {
        const since = after === null ? {} : { since: `${crew}-${after.sequence}-${after.index}` }
        for await (const item of client.stream({ method: 'events', crew, run, ...since }, signal))
          yield item as TroupeEvent
      },
      cancel: async (run) => {
        await client.ask({ method: 'cancel', crew, run })
      },
    })
  }
}
