/**
 * The runtime as its user sees it: spawn crews, give them tasks, look at them.
 *
 * Owns: which crews are live here, what is told of the ones in the store, closing.
 * Does not own: the composition of ports (`index.ts`), what a live crew can do (`crew-handle.ts`), the work itself
 * (`worker.ts`, `shard.ts`).
 *
 * - R2 Bad input is refused with a code before anything is journalled.
 */
import {
  type AnswerOptions,
  approval,
  type ApproveOptions,
  denial,
  type PendingAsk,
  pendingAsks,
  respond,
  type Said,
} from './asks.js'
import type { BreakerInfo } from './breakers.js'
import type { BudgetLimits } from './budget.js'
import { crewAddress } from './commit.js'
import { command, CrewHandle, stayAlive } from './crew-handle.js'
import { crewVersion, nameIn } from './crew-version.js'
import { type DeadLetters, LocalDeadLetters } from './dead-letters.js'
import type { Agent, Crew } from './define.js'
import { toCrew } from './define.js'
import { isMachineDefinition, machineCrew, type MachineDefinition, machineInput } from './define-machine.js'
import type { LiveCrew } from './dispatcher.js'
import { checkId } from './envelope.js'
import { type ErrorCode, TroupeError } from './errors.js'
import { type Durability, isDamage, type ShardHead } from './journal.js'
import { MachineHandle, type MachineState } from './machine-handle.js'
import { booksOf, poolAddress, type PoolBooks } from './pool-books.js'
import { raise, type RaiseOptions } from './raising.js'
import { fromRecord, type RecordedCommit } from './record.js'
import { noRefusedLetters, type RefusedLetters } from './refused-letters.js'
import type { RepairReport } from './repair.js'
import { type RunInfo, runInfo, stateName } from './run-info.js'
import type { Message } from './scope.js'
import { crewNameOf, type Effect, portWork, type ShardState } from './state.js'
import type { ClusterInfo, CrewPlace, DrainProgress, Survey } from './survey.js'
import { steer, type SteerInput, type SteerOptions } from './steering.js'
import { machineAddress } from './user-actors.js'
import type { Worker } from './worker.js'

export type { RunInfo }

/** How long what runs may take when its process closes. */
const defaultGraceMs = 30_000

/** How to spawn a crew. */
export interface SpawnOptions {
  /** `^[A-Za-z0-9_-]{1,64}$`. @default the crew's name */
  readonly id?: string
  /** Go on although this code decides otherwise than the code that wrote the journal. @default false */
  readonly acceptUpgrade?: boolean
}

/** How to spawn a machine. */
export interface MachineSpawnOptions<Input = unknown> extends SpawnOptions {
  /** What it is started with, the first time; journalled. */
  readonly input?: Input
}

/** A crew in the store, as `list` and `show` tell it; where it is, among several workers. */
export interface CrewInfo extends Partial<CrewPlace> {
  readonly id: string
  /** Commits so far. */
  readonly sequence: number
  readonly openEffects: number
  /** Mail to other crews that was not handed over. */
  readonly outbox: number
  /** Epoch milliseconds; null when no timer is set. */
  readonly nextDueAt: number | null
  /** Name of the crew whose code it runs, where the journal keeps it. */
  readonly crew?: string
}

/** Everything `show` tells. */
export interface CrewDetails extends CrewInfo {
  readonly crew: string
  readonly actors: readonly { readonly address: string; readonly state: string; readonly waitsFor: string | null }[]
  readonly runs: readonly RunInfo[]
  readonly stopped: { readonly code: ErrorCode; readonly reason: string } | null
  /** Letters to other crews that were not handed over. */
  readonly outgoing: readonly { readonly to: string; readonly message: string; readonly number: number }[]
  /** What its agents wait for a person to say. */
  readonly asks: readonly PendingAsk[]
  /** Its agents hold before their next model call, until `resume`. */
  readonly paused: boolean
  /** Of a crew that is one machine of the user's: how that is. */
  readonly machine?: MachineState['status']
  /** Of a budget that crews share: what is spent of it. */
  readonly books?: PoolBooks
  /** What an acknowledged step survives. */
  readonly durability: Durability
}

/** What `createRuntime` builds a runtime from. */
export interface RuntimeParts {
  readonly worker: Worker
  /** Prepares a crew with the ports of this runtime. */
  readonly bind: (crew: Crew) => LiveCrew
  /** Releases what the parts hold. */
  readonly release: () => Promise<void>
  /** Among several workers: where crews are, and what waits for them. */
  readonly survey?: Survey
  /** Mail that no crew takes. @default none comes */
  readonly refused?: RefusedLetters
  /** Hands over what a worker has, or the owner of the store. */
  readonly drain?: (worker: string | undefined, graceMs: number) => AsyncGenerator<DrainProgress, void, void>
}

/** A process's door to its crews. Close it when done: `await using` does. */
export class Runtime {
  readonly #parts: RuntimeParts
  readonly #crews = new Map<string, CrewHandle<unknown>>()
  readonly #machines = new Map<string, MachineHandle<never, never>>()
  #closed: Promise<void> | null = null

  /** @internal Made by `createRuntime`. */
  constructor(parts: RuntimeParts) {
    this.#parts = parts
    this.refusedLetters = parts.refused ?? noRefusedLetters
    this.deadLetters = new LocalDeadLetters(parts.worker.journal, async (id) => {
      await this.#known(id)
      return parts.worker.shard(id)
    })
  }

  /** Messages that nobody could process. */
  readonly deadLetters: DeadLetters
  /** Letters over NATS that no crew takes. */
  readonly refusedLetters: RefusedLetters

  /** @internal Its process has the store for a moment only: whoever is refused may ask again. */
  passing = false

  /** @internal */
  get worker(): Worker {
    return this.#parts.worker
  }

  /**
   * Starts a crew or a machine, or takes a live one up again; another definition than its last is journalled as `crew.redefined`.
   * @throws TroupeError `ID_INVALID`, `CREW_INVALID`, `MODEL_UNKNOWN`, `KEY_MISSING`, `UPGRADE_REFUSED`, `JOURNAL_CORRUPT`,
   * `JOURNAL_TRUNCATED`, `SHARD_STOPPED`, `RUNTIME_CLOSED`.
   */
  spawn<Output, Input, Event extends Message>(
    definition: MachineDefinition<Output, Input, Event>,
    options?: MachineSpawnOptions<Input>,
  ): Promise<MachineHandle<Output, Event>>
  spawn<Output>(definition: Crew<Output> | Agent<Output>, options?: SpawnOptions): Promise<CrewHandle<Output>>
  async spawn(definition: Crew | Agent | MachineDefinition, options: SpawnOptions = {}): Promise<unknown> {
    if (this.#closed !== null) throw new TroupeError('RUNTIME_CLOSED', 'the runtime is closed')
    return isMachineDefinition(definition) ? this.#spawnMachine(definition, options) : this.#spawn(definition, options)
  }

  async #spawn<Output>(definition: Crew<Output> | Agent<Output>, options: SpawnOptions): Promise<CrewHandle<Output>> {
    const crew = toCrew(definition)
    const id = checkId(options.id ?? crew.name, 'a crew id')
    const live = this.#parts.bind(crew)
    if (crew.flowMachine !== undefined) this.worker.register(crew.flowMachine.logics)
    const intended = crewVersion(crew.name, live.prepared.hash)
    const shard = await this.worker.shard(id, { acceptUpgrade: options.acceptUpgrade === true, crew: intended })
    if (shard.state.actors.has(machineAddress)) throw new TroupeError('CREW_INVALID', `${id} is a machine, and no crew`)
    checkKind(shard.state, crew, id)
    await shard.define(live)
    const handle = new CrewHandle<Output>(id, this.worker, live)
    this.#crews.get(id)?.release()
    this.#crews.set(id, handle)
    return handle
  }

  async #spawnMachine<Output, Input, Event extends Message>(
    definition: MachineDefinition<Output, Input, Event>,
    options: MachineSpawnOptions<Input>,
  ): Promise<MachineHandle<Output, Event>> {
    const handle = await this.openMachine(definition, options)
    this.#machines.get(handle.id)?.release()
    this.#machines.set(handle.id, handle as never)
    return handle
  }

  /** @internal As `spawn`; this runtime keeps nothing of it. Whoever has the handle releases it. */
  async openMachine<Output, Input, Event extends Message>(
    definition: MachineDefinition<Output, Input, Event>,
    options: MachineSpawnOptions<Input>,
  ): Promise<MachineHandle<Output, Event>> {
    const crew = machineCrew(definition)
    const id = checkId(options.id ?? crew.name, 'a crew id')
    const live = this.#parts.bind(crew)
    this.worker.register(definition.logics)
    const { sequence, removed } = await this.worker.head(id)
    // Where there are other workers taking a shard is a commit: bad input must not leave that behind.
    const input = sequence === 0 || removed ? await machineInput(definition, options.input) : undefined
    const intended = crewVersion(crew.name, live.prepared.hash)
    const shard = await this.worker.shard(id, { acceptUpgrade: options.acceptUpgrade === true, crew: intended })
    if (shard.state.definition !== '' && !shard.state.actors.has(machineAddress))
      throw new TroupeError('CREW_INVALID', `${id} is a crew of agents, and no machine`)
    const isNew = !shard.state.actors.has(machineAddress)
    await shard.define(live, isNew ? (input ?? (await machineInput(definition, options.input))) : undefined)
    return new MachineHandle<Output, Event>(id, this.worker, live, definition as never)
  }

  /** @internal A machine that this runtime has spawned; undefined for another. */
  machine(id: string): MachineHandle<never, never> | undefined {
    return this.#machines.get(id)
  }

  /** A crew that this runtime has spawned; undefined for another. */
  crew(id: string): CrewHandle<unknown> | undefined {
    return this.#crews.get(id)
  }

  /** Every crew in the store, by name. */
  async *list(): AsyncGenerator<CrewInfo, void, void> {
    const heads: ShardHead[] = []
    for await (const head of this.worker.journal.heads()) if (!head.removed) heads.push(head)
    // Behind them: whatever these know of may be stored by then.
    const place = await this.#parts.survey?.places()
    for (const head of heads) yield { ...infoOf(head), ...place?.(head) }
  }

  /** The workers; null where one process owns everything. */
  async cluster(): Promise<ClusterInfo | null> {
    return (await this.#parts.survey?.cluster()) ?? null
  }

  /** Circuit breakers that keep somebody back. */
  async breakers(): Promise<readonly BreakerInfo[]> {
    return (await this.worker.breakers?.list()) ?? []
  }

  /** Has the owner of the store, or a worker, hand over and go. @throws TroupeError `CONFIG_INVALID`, `WORKER_UNKNOWN`. */
  drain(worker?: string, options: { readonly graceMs?: number } = {}): AsyncGenerator<DrainProgress, void, void> {
    const { drain } = this.#parts
    if (drain === undefined) throw new TroupeError('CONFIG_INVALID', 'without a store there is nothing to hand over')
    return drain(worker, options.graceMs ?? defaultGraceMs)
  }

  /** One crew: its actors, what they wait for, its runs. @throws TroupeError `CREW_UNKNOWN` and what stopped it. */
  async show(id: string): Promise<CrewDetails> {
    const head = await this.#known(id)
    const shard = await this.worker.shard(id)
    const state = shard.state
    const waits = new Map([...state.effects.values()].map((effect) => [effect.from, waitOf(effect.body)]))
    const place = await this.#parts.survey?.places(id)
    const books = booksOf(state)
    const machine = state.actors.get(machineAddress)?.snapshot.status as MachineState['status'] | undefined
    return {
      ...infoOf(head),
      ...place?.(head),
      ...(books === undefined ? {} : { books }),
      ...(machine === undefined ? {} : { machine }),
      durability: this.worker.journal.durability,
      sequence: state.sequence,
      openEffects: portWork(state),
      crew: crewNameOf(state.definition),
      actors: [...state.actors].map(([address, actor]) => ({
        address,
        state: stateName(actor.snapshot.value),
        waitsFor: waits.get(address) ?? null,
      })),
      runs: [...state.runs.values()].map((run) => runInfo(run, state)),
      stopped: shard.stopped === null ? null : { code: shard.stopped.code, reason: shard.stopped.message },
      outgoing: [...state.mail.outbox.values()].map(({ to, body, number }) => ({ to, message: body.type, number })),
      asks: await pendingAsks(shard, this.worker.journal),
      paused: (state.actors.get(crewAddress)?.snapshot.context as { paused?: boolean } | undefined)?.paused === true,
    }
  }

  /** The commits of a crew from `from` on, as they were recorded. @throws TroupeError `CREW_UNKNOWN`, `JOURNAL_CORRUPT`. */
  async *journal(id: string, from = 1): AsyncGenerator<RecordedCommit, void, void> {
    await this.#known(id)
    for await (const record of this.worker.journal.read(id, from)) {
      for (const commit of fromRecord(id, record)) if (commit.sequence >= from) yield commit
    }
  }

  /** Deletes a crew with its journal, blobs and snapshots. Its id may be used again. @throws TroupeError `CREW_UNKNOWN`. */
  async remove(id: string): Promise<void> {
    await this.#known(id).catch((error: unknown) => {
      if (!isDamage(error)) throw error
    })
    for (const handles of [this.#crews, this.#machines]) {
      handles.get(id)?.release()
      handles.delete(id)
    }
    await this.worker.remove(id)
  }

  /** Tells what a damaged crew has lost, and gives it up. @throws TroupeError as `Worker.repair`. */
  async repair(id: string, options: { readonly acceptLoss?: boolean } = {}): Promise<RepairReport> {
    return this.worker.repair(checkId(id, 'a crew id'), options.acceptLoss === true)
  }

  /** Holds a crew's agents before their next model call, spawned here or not. @throws TroupeError `CREW_UNKNOWN`. */
  async pause(id: string): Promise<void> {
    await this.#known(id)
    await command(this.worker.shard(id), { type: 'crew.pause' })
  }

  /** Lets a crew's paused agents go on. @throws TroupeError `CREW_UNKNOWN`. */
  async resume(id: string): Promise<void> {
    await this.#known(id)
    await command(this.worker.shard(id), { type: 'crew.resume' })
  }

  /** Ends a crew's current run, or the given one, with `RUN_CANCELLED`. @throws TroupeError `CREW_UNKNOWN`. */
  async cancel(id: string, run?: string): Promise<void> {
    await this.#known(id)
    await command(this.worker.shard(id), run === undefined ? { type: 'crew.cancel' } : { type: 'crew.cancel', run })
  }

  /** Says something to a crew's agents at work. @throws TroupeError `CREW_UNKNOWN`, `INPUT_INVALID`, `STEER_REFUSED`. */
  async steer(id: string, input: SteerInput, options: SteerOptions = {}): Promise<void> {
    await this.#known(id)
    await steer(this.worker.shard(id), input, options)
  }

  /** As `face.ts` says. @throws TroupeError `CREW_UNKNOWN`, `INPUT_INVALID`, `RAISE_REFUSED`. */
  async raise(id: string, to: BudgetLimits, options: RaiseOptions = {}): Promise<void> {
    await this.#known(id)
    await raise(this.worker.shard(id), to, options)
  }

  /** What a crew waits for a person to say. @throws TroupeError `CREW_UNKNOWN`. */
  async asks(id: string): Promise<readonly PendingAsk[]> {
    await this.#known(id)
    return pendingAsks(await this.worker.shard(id), this.worker.journal)
  }

  /** Lets a call be made. @throws TroupeError `CREW_UNKNOWN`, `ASK_CLOSED`, `INPUT_INVALID`. */
  approve(id: string, ask: string, options: ApproveOptions = {}): Promise<void> {
    return this.respond(id, ask, approval(options), options.by)
  }

  /** Has a call not be made. @throws TroupeError as `approve`. */
  deny(id: string, ask: string, reason?: string, { by }: AnswerOptions = {}): Promise<void> {
    return this.respond(id, ask, denial(reason), by)
  }

  /** Answers a question. @throws TroupeError as `approve`. */
  answer(id: string, ask: string, text: string, { by }: AnswerOptions = {}): Promise<void> {
    return this.respond(id, ask, { decision: 'answered', text }, by)
  }

  /** @internal Says it, whatever it is. */
  async respond(id: string, ask: string, said: Said, by?: string): Promise<void> {
    await this.#known(id)
    await respond((knows) => this.worker.knowing(id, knows), ask, said, by)
  }

  /** Gives a crew to another worker. @throws TroupeError `CREW_UNKNOWN` and as `Worker.move`. */
  async move(id: string, to?: string): Promise<string> {
    await this.#known(id)
    return this.worker.move(id, to ?? null)
  }

  /** Waits up to `graceMs` for what is running, writes snapshots, closes the store. Idempotent. @param options `graceMs` default 30,000. */
  close(options: { readonly graceMs?: number } = {}): Promise<void> {
    this.#closed ??= this.#close(options.graceMs ?? defaultGraceMs)
    return this.#closed
  }

  async #close(graceMs: number): Promise<void> {
    for (const handle of [...this.#crews.values(), ...this.#machines.values()]) handle.release()
    this.#graceMs = graceMs
    const leave = stayAlive()
    try {
      await this.#parts.release()
    } finally {
      leave()
    }
  }

  #graceMs = defaultGraceMs

  /** @internal How long a close may wait. */
  get graceMs(): number {
    return this.#graceMs
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #known(id: string): Promise<ShardHead> {
    const head = await this.worker.head(checkId(id, 'a crew id'))
    if (head.sequence === 0 || head.removed)
      throw new TroupeError('CREW_UNKNOWN', `there is no crew ${id} in this store`)
    return head
  }
}

function infoOf(head: ShardHead): CrewInfo {
  return {
    id: head.shard,
    sequence: head.sequence,
    openEffects: head.pending.openEffects,
    outbox: head.pending.outbox,
    nextDueAt: head.pending.nextDueAt,
    ...((head.crew ?? '') === '' ? {} : { crew: nameIn(head.crew!) }),
  }
}

/** A budget stays one, and a crew of agents does. @throws TroupeError `CREW_INVALID`. */
function checkKind({ definition, actors }: ShardState, crew: Crew, id: string): void {
  const is = actors.has(poolAddress)
  if (definition === '' || is === (crew.pool !== undefined)) return
  throw new TroupeError('CREW_INVALID', `${id} is ${is ? 'a budget, and no crew of agents' : 'a crew, and no budget'}`)
}

function waitOf(body: Effect['body']): string {
  if (body.type === 'promise.call') return `promise ${body.kind}`
  if (body.type === 'round.prepare') return `round ${body.rounds + 1} of ${body.agent}`
  if (body.type === 'human.ask') return `${body.kind} of ${body.tool || body.agent}`
  return body.type === 'model.call' ? `model ${body.deployments.join(' or ')}` : `tool ${body.tool}`
}
