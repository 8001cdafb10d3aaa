/**
 * The face of a runtime: what a program can do with it and with its crews, wherever they run.
 *
 * Owns: the two interfaces.
 * Does not own: the runtime of this process (`runtime.ts`), the one of another (`remote-runtime.ts`).
 *
 * - F1 Both runtimes keep every promise written here; what one cannot do, it refuses with a code.
 */
import type { AnswerOptions, ApproveOptions, PendingAsk } from './asks.js'
import type { BreakerInfo } from './breakers.js'
import type { MachineDefinition } from './define-machine.js'
import type { DeadLetters } from './dead-letters.js'
import type { Agent, Crew } from './define.js'
import type { TroupeEvent } from './events.js'
import type { RecordedCommit } from './record.js'
import type { RefusedLetters } from './refused-letters.js'
import type { RepairReport } from './repair.js'
import type { Run, RunResult } from './run.js'
import type { RunInput, StartOptions } from './run-input.js'
import type { MachineEventsOptions, MachineState, SendOptions } from './machine-handle.js'
import type { CrewDetails, CrewInfo, MachineSpawnOptions, SpawnOptions } from './runtime.js'
import type { Message } from './scope.js'
import type { ClusterInfo, DrainProgress } from './survey.js'
import type { BudgetLimits } from './budget.js'
import type { RaiseOptions } from './raising.js'
import type { SteerInput, SteerOptions } from './steering.js'

/** A live crew. */
export interface CrewHandle<Output = unknown> {
  readonly id: string
  /**
   * Gives the crew a task. Runs of a crew go one after the other.
   *
   * Refusals reject `run.id` and `run.result`: `INPUT_INVALID`, `RUNS_FULL`, `MAILBOX_FULL`, `STORE_FULL`,
   * `SHARD_STOPPED`.
   */
  start(input: RunInput, options?: StartOptions): Run<Output>
  /** A run by its id. The handle's promises reject with `RUN_UNKNOWN` when there is none. */
  run(id: string): Run<Output>
  /** The run that is going on, or undefined. */
  current(): Promise<Run<Output> | undefined>
  /** Gives a task and waits for its result. @throws TroupeError with the code that ended the run. */
  ask(input: RunInput, options?: StartOptions): Promise<RunResult<Output>>
  /** Holds every agent before its next model call. Resolves when that is durable. */
  pause(): Promise<void>
  /** Lets paused agents go on. */
  resume(): Promise<void>
  /** Ends the current run, or the given one, with `RUN_CANCELLED`. */
  cancel(run?: string): Promise<void>
  /** As `Runtime.steer`. */
  steer(input: SteerInput, options?: SteerOptions): Promise<void>
  /** As `Runtime.raise`. */
  raise(to: BudgetLimits, options?: RaiseOptions): Promise<void>
  /** As `Runtime.asks`. */
  asks(): Promise<readonly PendingAsk[]>
  /** As `Runtime.approve`. */
  approve(ask: string, options?: ApproveOptions): Promise<void>
  /** As `Runtime.deny`. */
  deny(ask: string, reason?: string, options?: AnswerOptions): Promise<void>
  /** As `Runtime.answer`. */
  answer(ask: string, text: string, options?: AnswerOptions): Promise<void>
  /** As `Runtime.move`. */
  move(to?: string): Promise<string>
}

/** A live machine of the user's own. */
export interface MachineHandle<Output = unknown, Event extends Message = Message> {
  readonly id: string
  /**
   * Sends it a message; resolves when that is journalled, whatever becomes of it. It is checked where the machine's code is.
   * @throws TroupeError `INPUT_INVALID`, `MESSAGE_REFUSED` for a type that only XState may use, `MACHINE_ENDED`,
   * `MAILBOX_FULL`, `STORE_FULL`.
   */
  send(message: Event, options?: SendOptions): Promise<void>
  /** Its state and context. */
  state(): Promise<MachineState>
  /** Its output, when it is done. Rejects with what it failed over, `RUN_CANCELLED`, `RUNTIME_CLOSED`. */
  readonly result: Promise<Output>
  /** What it and its children emitted and did, from the first event on, until it ends. */
  events(options?: MachineEventsOptions): AsyncGenerator<TroupeEvent, void, void>
  /** Ends it, with its children and whatever they wait for: its result is `RUN_CANCELLED`. Resolves when that is durable. */
  cancel(): Promise<void>
}

/** A program's door to its crews. Close it when done: `await using` does. */
export interface Runtime extends AsyncDisposable {
  /**
   * Starts a machine of one's own, or takes it up again: a crew of its own, without agents. `input` counts the first time.
   * When another process owns the store, it must run there already; over NATS some worker must have its code, where input and
   * messages are checked, and both have to be plain data.
   * @throws TroupeError as for a crew, and `INPUT_INVALID`.
   */
  spawn<Output, Input, Event extends Message>(
    definition: MachineDefinition<Output, Input, Event>,
    options?: MachineSpawnOptions<Input>,
  ): Promise<MachineHandle<Output, Event>>
  /**
   * Starts a crew, or takes a live one up again; another definition than its last is journalled as `crew.redefined`.
   * When another process owns the store, the crew must run there already, with this very definition.
   * @throws TroupeError `ID_INVALID`, `CREW_INVALID`, `MODEL_UNKNOWN`, `KEY_MISSING`, `UPGRADE_REFUSED`,
   * `JOURNAL_CORRUPT`, `JOURNAL_TRUNCATED`, `SHARD_STOPPED`, `STORE_BUSY`, `RUNTIME_CLOSED`.
   */
  spawn<Output>(definition: Crew<Output> | Agent<Output>, options?: SpawnOptions): Promise<CrewHandle<Output>>
  /** A crew that this runtime has spawned; undefined for another. */
  crew(id: string): CrewHandle | undefined
  /** Every crew in the store, by name. */
  list(): AsyncGenerator<CrewInfo, void, void>
  /** The workers that share the crews over NATS; null for a store, which one process owns. */
  cluster(): Promise<ClusterInfo | null>
  /** Circuit breakers of deployments and tool servers that keep somebody back, of this process or of all workers. */
  breakers(): Promise<readonly BreakerInfo[]>
  /**
   * Has a worker, or without NATS the process that owns the store, take nothing new, hand over or park what it has, and go.
   * Begins when it is iterated, and ends when that process is done; each item says what it still has.
   * @param worker name of a worker; with NATS it must be said @param options `graceMs`: how long running calls may take, default 30,000
   * @throws TroupeError `CONFIG_INVALID`, `WORKER_UNKNOWN`.
   */
  drain(worker?: string, options?: { readonly graceMs?: number }): AsyncGenerator<DrainProgress, void, void>
  /** One crew: its actors, what they wait for, its runs. @throws TroupeError `CREW_UNKNOWN` and what stopped it. */
  show(id: string): Promise<CrewDetails>
  /** The commits of a crew from `from` on, as they were recorded. @throws TroupeError `CREW_UNKNOWN`, `JOURNAL_CORRUPT`. */
  journal(id: string, from?: number): AsyncGenerator<RecordedCommit, void, void>
  /** Deletes a crew with its journal, blobs and snapshots. Its id may be used again. @throws TroupeError `CREW_UNKNOWN`. */
  remove(id: string): Promise<void>
  /**
   * Tells what a crew has lost whose journal is damaged (`JOURNAL_TRUNCATED`, `JOURNAL_CORRUPT`), over NATS: a store is
   * repaired by `troupe repair` while no process owns it.
   * @param options `acceptLoss`: go on from the last sound record; the loss is journalled
   * @throws TroupeError `CREW_UNKNOWN`, `MESSAGE_REFUSED` for a damaged crew that is at work, `STORE_BUSY` without NATS.
   */
  repair(id: string, options?: { readonly acceptLoss?: boolean }): Promise<RepairReport>
  /** Messages that nobody could process: look at them, replay them, drop them. */
  readonly deadLetters: DeadLetters
  /** Letters over NATS that no crew takes: look at them, send them again, drop them. */
  readonly refusedLetters: RefusedLetters
  /** Holds a crew's agents before their next model call, spawned here or not. @throws TroupeError `CREW_UNKNOWN`. */
  pause(id: string): Promise<void>
  /** Lets a crew's paused agents go on. @throws TroupeError `CREW_UNKNOWN`. */
  resume(id: string): Promise<void>
  /** Ends a crew's current run, or the given one, with `RUN_CANCELLED`. @throws TroupeError `CREW_UNKNOWN`. */
  cancel(id: string, run?: string): Promise<void>
  /**
   * Says something to a crew's lead, or to another agent at work: a user message that joins the conversation before the
   * next model call. A reply that is on its way comes first; if it is an answer, another round follows, as long as the agent
   * has one left. Resolves when it is durable.
   * @throws TroupeError `CREW_UNKNOWN`, `INPUT_INVALID`, `STEER_REFUSED` when there is nobody at work to hear it.
   */
  steer(id: string, input: SteerInput, options?: SteerOptions): Promise<void>
  /**
   * Sets limits of a budget that is at work: of the run that goes on, of a crew whose budget counts over its runs, or of one of
   * its agents, which takes it from what the run has left. Those that are not named stay. Whoever could not pay goes on. The
   * definition is not changed: the next run begins with its limits. Resolves when that is durable.
   * @throws TroupeError `CREW_UNKNOWN`, `INPUT_INVALID`, `RAISE_REFUSED` when there is no such budget at work.
   */
  raise(id: string, to: BudgetLimits, options?: RaiseOptions): Promise<void>
  /** What a crew's agents wait for a person to say: approvals, questions and spent budgets, the oldest first. @throws TroupeError `CREW_UNKNOWN`. */
  asks(id: string): Promise<readonly PendingAsk[]>
  /**
   * Lets a call be made that waits for approval: this one, with these arguments. Of a budget the arguments are what its limits
   * are to be (`{ usd: 5 }`); without them it gets as much again as its definition says. Resolves when that is durable.
   * @throws TroupeError `CREW_UNKNOWN`, `ASK_CLOSED` when nobody waits for this any more, `INPUT_INVALID` for arguments that
   * the tool does not take, and for a question.
   */
  approve(id: string, ask: string, options?: ApproveOptions): Promise<void>
  /** Has a call that waits for approval not be made; the model is told who said so, and why. @throws TroupeError as `approve`. */
  deny(id: string, ask: string, reason?: string, options?: AnswerOptions): Promise<void>
  /** Answers a question of an agent. @throws TroupeError as `approve`; `INPUT_INVALID` for an approval. */
  answer(id: string, ask: string, text: string, options?: AnswerOptions): Promise<void>
  /**
   * Gives a crew to another worker: its owner takes nothing new, finishes its commit and hands it over; what runs goes on,
   * its outcomes follow. It stays there while that worker lives and has the crew's code.
   * @param to name of a worker @default the worker that the crew falls to by the rule
   * @returns name of the worker that has it now
   * @throws TroupeError `CREW_UNKNOWN`, `WORKER_UNKNOWN`, `WORKER_UNFIT`, why the other one cannot go on with it, and
   * `CONFIG_INVALID` without NATS.
   */
  move(id: string, to?: string): Promise<string>
  /** Waits up to `graceMs` (default 30,000) for what is running, writes snapshots, closes the store. Idempotent. */
  close(options?: { readonly graceMs?: number }): Promise<void>
}
