/**
 * The remote runtime: the face of a runtime whose crews run in other processes, over any channel that reaches them.
 *
 * Owns: the remote runtime and its handles, which request each of their methods is.
 * Does not own: the channels (`control-client.ts`, `transport/nats-door-client.ts`), the wire's shapes (`control-wire.ts`).
 *
 * - RM1 A remote handle keeps what the face promises, or refuses with `STORE_BUSY` and the owner's pid.
 */
import { randomUUID } from 'node:crypto'
import type { AnswerOptions, ApproveOptions, PendingAsk } from './asks.js'
import type { BreakerInfo } from './breakers.js'
import { type ControlRequest, fromWireCommit } from './control-wire.js'
import type { DeadLetterDetails, DeadLetterInfo, DeadLetters } from './dead-letters.js'
import { type Agent, type Crew, toCrew } from './define.js'
import { isMachineDefinition, machineCrew, type MachineDefinition, plainInput } from './define-machine.js'
import { checkId } from './envelope.js'
import type { TroupeEvent } from './events.js'
import type { CrewHandle, MachineHandle, Runtime } from './face.js'
import type { RecordedCommit } from './record.js'
import type { RefusedDetails, RefusedInfo, RefusedLetters } from './refused-letters.js'
import type { RepairReport } from './repair.js'
import { cancelOn, Run, type RunResult } from './run.js'
import { dataText, messagesOf, type RunInput, type StartOptions } from './run-input.js'
import { RemoteMachine } from './remote-machine.js'
import type { CrewDetails, CrewInfo, MachineSpawnOptions, SpawnOptions } from './runtime.js'
import type { Message } from './scope.js'
import type { ClusterInfo, DrainProgress } from './survey.js'
import { type BudgetLimits, raiseOf } from './budget.js'
import type { RaiseOptions } from './raising.js'
import { type SteerInput, steerKey, steerMessage, type SteerOptions, whomOf } from './steering.js'

/** The way to whoever answers requests. */
export interface Channel {
  /** Asks for one thing. @throws TroupeError what was answered, `RUNTIME_CLOSED` when closed. */
  ask(request: ControlRequest): Promise<unknown>
  /** Asks for many; returns the closing result, null after `signal`. Leaving the generator ends the request. */
  stream(request: ControlRequest, signal?: AbortSignal): AsyncGenerator<unknown, unknown, void>
  /** Ends what is under way with `RUNTIME_CLOSED`; nothing more can be asked. Idempotent. */
  close(): void
}

/** What a remote runtime is made of. */
export interface RemoteRuntimeOptions {
  readonly channel: Channel
  /** Process id of whoever answers, when that is one process of this machine. */
  readonly owner?: number
  /** Hash of a crew's definition, as the other end would compute it. @default none: any definition of that name will do */
  readonly hashOf?: (crew: Crew) => string
}

/** A runtime whose crews run in other processes. */
export class RemoteRuntime implements Runtime {
  /** Process id of the store's owner; null when it is not one process of this machine. */
  readonly owner: number | null
  readonly #channel: Channel
  readonly #hashOf: ((crew: Crew) => string) | null
  readonly #crews = new Map<string, CrewHandle>()

  /** @internal Made by whoever has the channel. */
  constructor({ channel, owner, hashOf }: RemoteRuntimeOptions) {
    this.#channel = channel
    this.owner = owner ?? null
    this.#hashOf = hashOf ?? null
  }

  spawn<Output, Input, Event extends Message>(
    definition: MachineDefinition<Output, Input, Event>,
    options?: MachineSpawnOptions<Input>,
  ): Promise<MachineHandle<Output, Event>>
  spawn<Output>(definition: Crew<Output> | Agent<Output>, options?: SpawnOptions): Promise<CrewHandle<Output>>
  async spawn(definition: Crew | Agent | MachineDefinition, options: MachineSpawnOptions = {}): Promise<unknown> {
    return isMachineDefinition(definition) ? this.#spawnMachine(definition, options) : this.#spawn(definition, options)
  }

  async #spawnMachine(definition: MachineDefinition, { id, input }: MachineSpawnOptions): Promise<RemoteMachine> {
    const crew = machineCrew(definition)
    const shard = checkId(id ?? crew.name, 'a crew id')
    const code = this.#codeOf(crew)
    const given = input === undefined ? {} : { input: plainInput(input, `the input of ${crew.name}`) }
    await this.#channel.ask({ method: 'spawn', crew: shard, ...code, ...given })
    return new RemoteMachine(shard, this.#channel)
  }

  /** What the other end needs to know of a crew's code. */
  #codeOf(crew: Crew): { readonly name: string; readonly definition?: string } {
    const hash = this.#hashOf?.(crew)
    return { name: crew.name, ...(hash === undefined ? {} : { definition: hash }) }
  }

  async #spawn<Output>(definition: Crew<Output> | Agent<Output>, options: SpawnOptions): Promise<CrewHandle<Output>> {
    const crew = toCrew(definition)
    const id = checkId(options.id ?? crew.name, 'a crew id')
    const code = this.#codeOf(crew)
    await this.#channel.ask({ method: 'attach', crew: id, ...code })
    const handle = new RemoteCrew<Output>(id, crew.lead, code, this.#channel)
    this.#crews.set(id, handle)
    return handle
  }

  crew(id: string): CrewHandle | undefined {
    return this.#crews.get(id)
  }

  async *list(): AsyncGenerator<CrewInfo, void, void> {
    for await (const item of this.#channel.stream({ method: 'list' })) yield item as CrewInfo
  }

  async cluster(): Promise<ClusterInfo | null> {
    return (await this.#channel.ask({ method: 'cluster' })) as ClusterInfo | null
  }

  async breakers(): Promise<readonly BreakerInfo[]> {
    return (await this.#channel.ask({ method: 'breakers' })) as BreakerInfo[]
  }

  async *drain(
    worker?: string,
    { graceMs = 30_000 }: { readonly graceMs?: number } = {},
  ): AsyncGenerator<DrainProgress, void, void> {
    const whom = worker === undefined ? {} : { worker: checkId(worker, 'a worker') }
    for await (const item of this.#channel.stream({ method: 'drain', graceMs, ...whom })) yield item as DrainProgress
  }

  async show(id: string): Promise<CrewDetails> {
    return (await this.#channel.ask({ method: 'show', crew: checkId(id, 'a crew id') })) as CrewDetails
  }

  async *journal(id: string, from = 1): AsyncGenerator<RecordedCommit, void, void> {
    const crew = checkId(id, 'a crew id')
    for await (const item of this.#channel.stream({ method: 'journal', crew, from })) yield fromWireCommit(item)
  }

  async remove(id: string): Promise<void> {
    await this.#channel.ask({ method: 'remove', crew: checkId(id, 'a crew id') })
    this.#crews.delete(id)
  }

  async repair(id: string, { acceptLoss = false }: { readonly acceptLoss?: boolean } = {}): Promise<RepairReport> {
    return (await this.#channel.ask({ method: 'repair', crew: checkId(id, 'a crew id'), acceptLoss })) as RepairReport
  }

  async pause(id: string): Promise<void> {
    await this.#channel.ask({ method: 'pause', crew: checkId(id, 'a crew id') })
  }

  async resume(id: string): Promise<void> {
    await this.#channel.ask({ method: 'resume', crew: checkId(id, 'a crew id') })
  }

  async cancel(id: string, run?: string): Promise<void> {
    const crew = checkId(id, 'a crew id')
    await this.#channel.ask(run === undefined ? { method: 'cancel', crew } : { method: 'cancel', crew, run })
  }

  readonly deadLetters: DeadLetters = {
    list: (crew) => this.#letters(checkId(crew, 'a crew id')),
    show: async (id, letter) => {
      const crew = checkId(id, 'a crew id')
      return (await this.#channel.ask({ method: 'letter', crew, letter })) as DeadLetterDetails
    },
    replay: async (id, letter, { message, by } = {}) => {
      const crew = checkId(id, 'a crew id')
      const who = by === undefined ? {} : { by }
      // Whether it is a message is told by the other end.
      const edit = message === undefined ? {} : { message: message as { type: string }, ...who }
      await this.#channel.ask({ method: 'replay', crew, letter, ...edit })
    },
    drop: async (id, letter) => {
      const crew = checkId(id, 'a crew id')
      const asked = letter === undefined ? { method: 'drop' as const, crew } : { method: 'drop' as const, crew, letter }
      return (await this.#channel.ask(asked)) as number
    },
  }

  readonly refusedLetters: RefusedLetters = {
    list: (crew) => this.#refused(crew),
    show: async (shard, letter) => (await this.#channel.ask({ method: 'refusal', shard, letter })) as RefusedDetails,
    replay: async (shard, letter) => void (await this.#channel.ask({ method: 'resend', shard, letter })),
    drop: async (shard, letter) =>
      (await this.#channel.ask({ method: 'discard', shard, ...(letter === undefined ? {} : { letter }) })) as number,
  }

  async *#refused(crew: string | undefined): AsyncGenerator<RefusedInfo, void, void> {
    const asked = { method: 'refused' as const, ...(crew === undefined ? {} : { shard: crew }) }
    for await (const item of this.#channel.stream(asked)) yield item as RefusedInfo
  }

  async *#letters(crew: string): AsyncGenerator<DeadLetterInfo, void, void> {
    for await (const item of this.#channel.stream({ method: 'letters', crew })) yield item as DeadLetterInfo
  }

  async steer(id: string, input: SteerInput, options: SteerOptions = {}): Promise<void> {
    await steered(this.#channel, checkId(id, 'a crew id'), input, options)
  }

  async raise(id: string, to: BudgetLimits, options: RaiseOptions = {}): Promise<void> {
    await raised(this.#channel, checkId(id, 'a crew id'), to, options)
  }

  async asks(id: string): Promise<readonly PendingAsk[]> {
    return asked(this.#channel, checkId(id, 'a crew id'))
  }

  async approve(id: string, ask: string, options: ApproveOptions = {}): Promise<void> {
    await responded(this.#channel, checkId(id, 'a crew id'), ask, { decision: 'approved', ...options })
  }

  async deny(id: string, ask: string, reason?: string, options: AnswerOptions = {}): Promise<void> {
    await responded(this.#channel, checkId(id, 'a crew id'), ask, { decision: 'denied', text: reason, ...options })
  }

  async answer(id: string, ask: string, text: string, options: AnswerOptions = {}): Promise<void> {
    await responded(this.#channel, checkId(id, 'a crew id'), ask, { decision: 'answered', text, ...options })
  }

  async move(id: string, to?: string): Promise<string> {
    return moved(this.#channel, checkId(id, 'a crew id'), to)
  }

  /** Leaves the other processes alone: their runs go on. */
  async close(): Promise<void> {
    this.#channel.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

async function moved(channel: Channel, crew: string, to: string | undefined): Promise<string> {
  const worker = to === undefined ? {} : { to: checkId(to, 'a worker') }
  return (await channel.ask({ method: 'move', crew, ...worker })) as string
}

async function asked(channel: Channel, crew: string): Promise<readonly PendingAsk[]> {
  return (await channel.ask({ method: 'asks', crew })) as PendingAsk[]
}

async function responded(
  channel: Channel,
  crew: string,
  ask: string,
  said: Pick<Extract<ControlRequest, { method: 'answer' }>, 'decision' | 'text' | 'arguments' | 'by'>,
): Promise<void> {
  await channel.ask({ method: 'answer', crew, ask, ...said })
}

async function raised(channel: Channel, crew: string, limits: BudgetLimits, { agent }: RaiseOptions): Promise<void> {
  raiseOf(limits)
  await channel.ask({ method: 'raise', crew, limits, ...(agent === undefined ? {} : { agent }) })
}

/** The key makes asking again the same message. */
async function steered(channel: Channel, crew: string, input: SteerInput, options: SteerOptions): Promise<void> {
  steerMessage(input)
  await channel.ask({ method: 'steer', crew, input, key: steerKey(options), ...whomOf(options) })
}

/** A crew that runs in another process. */
class RemoteCrew<Output> implements CrewHandle<Output> {
  readonly id: string
  readonly #lead: string
  /** What the other end needs to know of the crew's code. */
  readonly #code: { readonly name: string; readonly definition?: string }
  readonly #channel: Channel

  constructor(
    id: string,
    lead: string,
    code: { readonly name: string; readonly definition?: string },
    channel: Channel,
  ) {
    this.id = id
    this.#lead = lead
    this.#code = code
    this.#channel = channel
  }

  start(input: RunInput, options: StartOptions = {}): Run<Output> {
    const run = this.#run(this.#start(input, options))
    if (options.signal !== undefined) cancelOn(options.signal, run)
    return run
  }

  run(id: string): Run<Output> {
    return this.#run(this.#channel.ask({ method: 'find', crew: this.id, run: id }) as Promise<string>)
  }

  async current(): Promise<Run<Output> | undefined> {
    const id = (await this.#channel.ask({ method: 'current', crew: this.id })) as string | null
    return id === null ? undefined : this.run(id)
  }

  ask(input: RunInput, options: StartOptions = {}): Promise<RunResult<Output>> {
    return this.start(input, options).result
  }

  async pause(): Promise<void> {
    await this.#channel.ask({ method: 'pause', crew: this.id })
  }

  async resume(): Promise<void> {
    await this.#channel.ask({ method: 'resume', crew: this.id })
  }

  async cancel(run?: string): Promise<void> {
    const { id: crew } = this
    await this.#channel.ask(run === undefined ? { method: 'cancel', crew } : { method: 'cancel', crew, run })
  }

  async steer(input: SteerInput, options: SteerOptions = {}): Promise<void> {
    await steered(this.#channel, this.id, input, options)
  }

  async raise(to: BudgetLimits, options: RaiseOptions = {}): Promise<void> {
    await raised(this.#channel, this.id, to, options)
  }

  asks(): Promise<readonly PendingAsk[]> {
    return asked(this.#channel, this.id)
  }

  async approve(ask: string, options: ApproveOptions = {}): Promise<void> {
    await responded(this.#channel, this.id, ask, { decision: 'approved', ...options })
  }

  async deny(ask: string, reason?: string, options: AnswerOptions = {}): Promise<void> {
    await responded(this.#channel, this.id, ask, { decision: 'denied', text: reason, ...options })
  }

  async answer(ask: string, text: string, options: AnswerOptions = {}): Promise<void> {
    await responded(this.#channel, this.id, ask, { decision: 'answered', text, ...options })
  }

  move(to?: string): Promise<string> {
    return moved(this.#channel, this.id, to)
  }

  async #start(input: RunInput, options: StartOptions): Promise<string> {
    messagesOf(input)
    const { data, key = randomUUID() } = options
    if (data !== undefined) dataText(data)
    const request = { method: 'start', crew: this.id, ...this.#code, key, input } as const
    return (await this.#channel.ask(data === undefined ? request : { ...request, data })) as string
  }

  #run(started: Promise<string>): Run<Output> {
    const { id: crew } = this
    const channel = this.#channel
    return new Run<Output>({
      started,
      lead: this.#lead,
      result: async (run) => (await channel.ask({ method: 'result', crew, run })) as RunResult<Output>,
      events: async function* (run, after, { signal }) {
        const since = after === null ? {} : { since: `${crew}-${after.sequence}-${after.index}` }
        for await (const item of channel.stream({ method: 'events', crew, run, ...since }, signal))
          yield item as TroupeEvent
      },
      cancel: async (run) => {
        await channel.ask({ method: 'cancel', crew, run })
      },
    })
  }
}
