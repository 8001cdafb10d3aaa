/**
 * The handle of a machine that runs in another process.
 *
 * Owns: which request each of its methods is, what is plain enough to be asked.
 * Does not own: the way there (`Channel`), the checks by the machine's own schemas, which are where its code is
 * (`machine-handle.ts`).
 *
 * - RH1 What crosses is what was said: a message or an input that JSON would change is refused here, with `INPUT_INVALID`.
 * - RH2 A message has a key, its own or a new one: asked again after a failover it is taken once.
 */
import { randomUUID } from 'node:crypto'
import { plainInput } from './define-machine.js'
import { parseCursor, type TroupeEvent } from './events.js'
import type { MachineHandle } from './face.js'
import { messageKey } from './heard.js'
import { type MachineEventsOptions, type MachineState, outputOf, type SendOptions } from './machine-handle.js'
import type { Channel } from './remote-runtime.js'
import type { Message } from './scope.js'

/** A machine that runs in another process. */
export class RemoteMachine<Output = unknown, Event extends Message = Message> implements MachineHandle<Output, Event> {
  readonly id: string
  readonly #channel: Channel

  /** @internal Made by `RemoteRuntime.spawn`. */
  constructor(id: string, channel: Channel) {
    this.id = id
    this.#channel = channel
  }

  async send(message: Event, { key = randomUUID() }: SendOptions = {}): Promise<void> {
    const said = plainInput(message, 'a message')
    await this.#channel.ask({ method: 'send', crew: this.id, message: said ?? null, key: messageKey(key) })
  }

  async state(): Promise<MachineState> {
    return (await this.#channel.ask({ method: 'state', crew: this.id })) as MachineState
  }

  get result(): Promise<Output> {
    const ended = this.#channel.ask({ method: 'result', crew: this.id }) as Promise<MachineState>
    const result = ended.then((state) => outputOf<Output>(this.id, state))
    // Nobody has to wait for it.
    result.catch(() => undefined)
    return result
  }

  async *events({ since, signal }: MachineEventsOptions = {}): AsyncGenerator<TroupeEvent, void, void> {
    const after = since === undefined ? null : parseCursor(since)
    const request = { method: 'events', crew: this.id, ...(after === null ? {} : { since: since! }) } as const
    for await (const item of this.#channel.stream(request, signal)) yield item as TroupeEvent
  }

  async cancel(): Promise<void> {
    await this.#channel.ask({ method: 'cancel', crew: this.id })
  }
}
