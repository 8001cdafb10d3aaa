/**
 * Users' actors inside a commit: their messages to each other, their children, how they end.
 *
 * Owns: the order in which they take messages, who may still hear of whom, what is left of a machine that ended.
 * Does not own: their steps (`logic-step.ts`), timers, effects and messages of anybody else (`commit.ts`).
 *
 * - UA1 They take messages in XState's order: one that is at rest takes what it is told at once, before its sender goes on;
 *   one that is at work when it is behind what it says now.
 * - UA2 A child is named by the commit that starts it: its end is told only to a parent that still has this very one.
 * - UA3 A machine that ended stays, with its output or its error: whoever asks later is told.
 * - UA4 Who stops or fails takes its children, timers and effects along, and the agents that it has called.
 * - UA5 Its state, its context and what it emits are decisions like any other: code that comes to others is refused on replay.
 * - UA6 A machine that leads a run begins when its task is read; of its crew it hears that the run is cancelled, nothing else.
 */
import { shortHash } from './codec.js'
import type { DecideContext, Decided } from './decided.js'
import { codeOf, type ErrorCode, isErrorCode, reasonOf } from './errors.js'
import { answerRead, callOf, crewAddress, desertion, flowAddress, flowEnd, taskRead } from './flow-machine.js'
import { isLogic, type Logic } from './logic.js'
import { type LogicSnapshot, notBegun, type Place } from './logic-step.js'
import { isForeign } from './mail.js'
import { errorData } from './plain.js'
import type { Action, Message, Snapshot, Step } from './scope.js'
import type { PreparedCrew } from './prepared-crew.js'
import type { Actor, Machines, ShardState } from './state.js'

/** The machine of a crew that is one machine. */
export const machineAddress = 'machine/main'
/** Parent of machines that nobody started. */
const shardAddress = 'shard/self'
/** Actors that start each other; deeper, one that starts itself would end in the stack. */
const maxDepth = 64

/** An action of a user's own, to be run when its commit is durable. */
export interface CustomAction {
  readonly actor: string
  readonly name: string
  readonly run: () => unknown
}

/** The machine that a crew is, in the definition of a crew. */
export interface MachineData {
  readonly kind: string
  readonly version: string
}

/** The machine that a crew is; null for a crew of agents. @param crew the definition as data */
export function machineOf(crew: unknown): MachineData | null {
  return (crew as { readonly machine?: MachineData } | null)?.machine ?? null
}

/** Whether an address is that of an actor of a user's. */
export function isUserAddress(address: string): boolean {
  return address.startsWith('machine/') || address.startsWith('child/')
}

/** The message that defines a crew. @param input of one that is one machine, for its start */
export function definedBy({ definition, data }: Pick<PreparedCrew, 'definition' | 'data'>, input: unknown): Message {
  return { type: 'crew.defined', definition, crew: data, ...(input === undefined ? {} : { input }) }
}

/** Whether a run has ended, or a machine that nobody started, by its address. */
export function hasEnded({ runs, actors }: Pick<ShardState, 'runs' | 'actors'>, id: string): boolean {
  const machine = actors.get(id)?.snapshot.status ?? 'active'
  return runs.get(id)?.status === 'finished' || machine !== 'active'
}

/** A user's logic by its kind; null when this process has not been told of it. */
export function logicNamed(machines: Machines, kind: string): Logic | null {
  const machine = machines[kind]
  return machine !== undefined && isLogic(machine) ? machine : null
}

/** A message on its way to an actor of a user's. */
export interface UserDelivery {
  readonly from: string
  readonly to: string
  readonly message: Message
}

/** What users' actors need of the commit around them. */
export interface UserHost {
  readonly decided: Decided
  readonly context: DecideContext
  /** Actors that failed in this commit. */
  readonly failed: Map<string, Actor>
  /** Counts and notes a message inside; false when there are too many, which has failed somebody. */
  relay(delivery: UserDelivery): boolean
  /** A message to somebody who is no actor of a user's. */
  push(from: string, to: string, message: Message): void
  plan(from: string, to: string, name: string | null, delayMs: number, message: Message): void
  cancelTimer(address: string, id: string): void
  /** Takes an actor out, with its timers and effects. */
  stop(address: string): void
  deadLetter(from: string, to: string, message: Message, code: ErrorCode, reason: string): void
}

/** How logic ended. */
type LogicEnd = { readonly output: unknown } | { readonly error: unknown }

/** The users' actors of one commit. */
export class UserActors {
  readonly #host: UserHost
  /** Who is at work, and what waits for it; null is the end of what it takes: it is to stop. */
  readonly #busy = new Map<string, (UserDelivery | null)[]>()

  constructor(host: UserHost) {
    this.#host = host
  }

  get #actors(): Map<string, Actor> {
    return this.#host.decided.state.actors
  }

  /** Gives an actor a message: it takes it now, or when it is done with what it is at. */
  deliver(delivery: UserDelivery): void {
    if (this.#isFromCrew(delivery)) return delivery.message.type === 'run.cancel' ? this.cancel(delivery.to) : undefined
    const waiting = this.#busy.get(delivery.to)
    if (waiting !== undefined) waiting.push(delivery)
    else this.#work(delivery.to, () => this.#take(delivery))
  }

  /** Starts an actor. Of one that cannot start its parent is told, or whoever asks for the machine's end. */
  start(address: string, kind: string, parent: string, input: unknown, id = address): void {
    const { decided, context } = this.#host
    const generation = decided.generation()
    const logic = logicNamed(context.machines, kind)
    if (logic === null) {
      const end = { error: { code: 'MACHINE_UNKNOWN', message: `there is no machine of kind ${kind}` } }
      return this.#tell(address, parent, end)
    }
    this.#actors.set(address, { kind, parent, generation, snapshot: unborn(logic, id) })
    this.#work(address, () => {
      this.#try(address, parent, (place) => context.scope.start(logic, address, input, place, id))
    })
  }

  /** Starts the machine that leads a run: as soon as it is told of its task. */
  lead(kind: string, run: string): void {
    const address = flowAddress(run)
    const generation = this.#host.decided.generation()
    const logic = logicNamed(this.#host.context.machines, kind)
    if (logic === null) {
      const end = { error: { code: 'MACHINE_UNKNOWN', message: `there is no machine of kind ${kind}` } }
      return this.#say(address, flowEnd(this.#crew, address, end))
    }
    const snapshot = { ...unborn(logic, address), value: notBegun, context: run }
    this.#actors.set(address, { kind, parent: crewAddress, generation, snapshot })
    this.#host.push(address, 'port/promise', { ...taskRead(kind, run) })
  }

  /** What the crew says to the machine that leads its run. */
  #isFromCrew({ from, to }: UserDelivery): boolean {
    return from === crewAddress && this.#actors.get(to)?.parent === crewAddress
  }

  #say(from: string, said: ReturnType<typeof callOf>): void {
    for (const { to, message } of said) this.#host.push(from, to, message)
  }

  /** The crew's state: it knows the task. */
  get #crew(): Snapshot | undefined {
    return this.#actors.get(crewAddress)?.snapshot
  }

  /** Ends a machine that nobody started, unless it has ended. */
  cancel(address: string): void {
    const actor = this.#actors.get(address)
    if (actor === undefined || !('logic' in actor.snapshot) || actor.snapshot.status !== 'active') return
    this.#end(address, { error: { code: 'RUN_CANCELLED', message: 'the machine was cancelled' } })
  }

  /** Fails an actor. @param error what its parent is told */
  fail(address: string, code: ErrorCode, reason: string, error: unknown = { code, message: reason }): void {
    const actor = this.#actors.get(address)
    if (actor === undefined) return
    this.#host.failed.set(address, actor)
    this.#host.decided.emit(address, { type: 'actor.failed', code, reason })
    this.#end(address, { error })
  }

  // ------------------------------------------------------------------------------------------ steps

  /** Does something in an actor's name, and then what was said to it meanwhile. */
  #work(address: string, first: () => void): void {
    if (this.#busy.size >= maxDepth) {
      const reason = `more than ${maxDepth} actors at work in each other`
      return this.fail(address, 'COMMIT_OVERFLOW', reason)
    }
    const waiting: (UserDelivery | null)[] = []
    this.#busy.set(address, waiting)
    first()
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      if (next === null) this.#stop(address)
      else this.#take(next)
    }
    this.#busy.delete(address)
  }

  #take({ from, to, message }: UserDelivery): void {
    const actor = this.#actors.get(to)
    const { snapshot } = actor ?? {}
    const isOutside = from === this.#host.decided.envelope.from
    if (actor === undefined || snapshot === undefined || !('logic' in snapshot) || snapshot.status !== 'active') {
      // Inside a commit it is normal that somebody has just gone; what comes from outside is never lost in silence.
      const code = actor === undefined ? 'ACTOR_FAILED' : 'MACHINE_ENDED'
      if (isOutside)
        this.#host.deadLetter(from, to, message, code, `${to} ${actor === undefined ? 'is gone' : 'has ended'}`)
      return
    }
    if (isLateEnd(snapshot, from, message)) return
    const { scope } = this.#host.context
    if (snapshot.value === notBegun && snapshot.logic.form === 'machine') return this.#begin(to, actor, message)
    this.#try(to, actor.parent, (place) => scope.deliver(snapshot, to, message, place), { from, to, message })
  }

  /** What a machine hears before it has begun: its task. */
  #begin(address: string, { kind, parent, snapshot }: Actor, { type, output, error }: Message): void {
    const { logic, context } = snapshot as LogicSnapshot
    const { scope } = this.#host.context
    if (type === 'promise.resolved')
      return this.#try(address, parent, (place) => scope.start(logic, address, output, place))
    if (type === 'effect.interrupted')
      return this.#host.push(address, 'port/promise', { ...taskRead(kind, context as string) })
    if (type === 'effect.crashed')
      return this.fail(address, 'EFFECT_CRASHED', 'the process died three times over its task')
    if (type === 'promise.rejected') this.#end(address, { error })
  }

  /** One step. @param delivery what it takes; nothing at its start */
  #try(address: string, parent: string, run: (place: Place) => Step, delivery?: UserDelivery): void {
    let step: Step
    try {
      step = run(placeOf(address, parent, this.#host.decided))
    } catch (error) {
      const [code, reason] = [codeOf(error), reasonOf(error)]
      if (delivery !== undefined) this.#host.deadLetter(delivery.from, address, delivery.message, code, reason)
      return this.fail(address, code, reason, errorData(error))
    }
    const actor = this.#actors.get(address)!
    actor.snapshot = step.snapshot
    this.#host.decided.say('state', `${address} ${stateLine(step.snapshot as LogicSnapshot)}`)
    for (const action of step.actions) this.#carryOut(address, action)
    const { status, error, output } = step.snapshot as LogicSnapshot
    // Who is gone by now has been stopped by what it said.
    if (status === 'active' || this.#actors.get(address) !== actor) return
    if (status === 'done') return this.#end(address, { output })
    const { code, message } = (error ?? {}) as { readonly code?: unknown; readonly message?: unknown }
    const known = typeof code === 'string' && isErrorCode(code) ? code : 'ACTOR_FAILED'
    this.fail(address, known, typeof message === 'string' ? message : 'it failed', error)
  }

  #carryOut(address: string, action: Action): void {
    const { decided } = this.#host
    switch (action.kind) {
      case 'send':
        if (action.delayMs === null) return this.#relay(address, action.to, saidTo(action.to, action.message))
        return this.#host.plan(address, action.to, action.id, action.delayMs, saidTo(action.to, action.message))
      case 'cancel':
        return this.#host.cancelTimer(address, action.id)
      case 'emit':
        decided.say('emit', `${address} ${JSON.stringify(action.event)}`)
        return decided.emit(address, { type: 'machine.emitted', event: action.event })
      case 'log':
        return decided.emit(address, { type: 'machine.logged', label: action.label, value: action.value })
      case 'start': {
        const { child, id, logic, input = null } = action
        decided.say('start', JSON.stringify([child, address, id, logic, input]))
        return this.start(child, logic, address, action.input, id)
      }
      case 'ask': {
        const { kind, effect } = (this.#actors.get(address)!.snapshot as LogicSnapshot).logic
        const input = action.input === null ? {} : { input: action.input }
        return this.#host.push(address, 'port/promise', {
          type: 'promise.call',
          kind,
          effect,
          ...input,
          conversation: '',
        })
      }
      case 'call':
      case 'read':
        return this.#workWithAgent(address, action)
      case 'stop':
        decided.say('stop', action.child)
        return this.#stopSoon(action.child)
      case 'custom':
        decided.say('custom', `${address} ${action.name}`)
        decided.customs.push({ actor: address, name: action.name, run: action.run })
    }
  }

  #workWithAgent(child: string, { kind, input }: { readonly kind: 'call' | 'read'; readonly input?: unknown }): void {
    const { logic } = this.#actors.get(child)!.snapshot as LogicSnapshot
    const call = { child, agent: logic.agent, input }
    if (kind === 'call') return this.#say(child, callOf(this.#crew, call))
    this.#host.push(child, 'port/promise', { ...answerRead(logic.kind, this.#crew, call) })
  }

  #relay(from: string, to: string, message: Message): void {
    if (!isUserAddress(to)) return this.#host.push(from, to, message)
    const delivery = { from, to, message }
    if (this.#host.relay(delivery)) this.deliver(delivery)
  }

  // ------------------------------------------------------------------------------------------ ends

  /** Stops an actor: one at work when it is behind what it says now; what waits for it is dropped. */
  #stopSoon(address: string): void {
    const waiting = this.#busy.get(address)
    if (waiting === undefined) this.#stop(address)
    else waiting.splice(0, waiting.length, null)
  }

  #stop(address: string): void {
    const actor = this.#actors.get(address)
    this.#host.stop(address)
    if (actor !== undefined && isAtWork(actor)) this.#host.push(address, crewAddress, desertion(address))
    this.#stopChildren(address)
  }

  #stopChildren(parent: string): void {
    for (const [address, actor] of [...this.#actors]) if (actor.parent === parent) this.#stop(address)
  }

  #end(address: string, end: LogicEnd): void {
    const actor = this.#actors.get(address)!
    const waiting = this.#busy.get(address)
    if (waiting !== undefined) waiting.length = 0
    this.#stop(address)
    if (actor.parent === crewAddress) return this.#say(address, flowEnd(this.#crew, address, end))
    if (actor.parent !== shardAddress) return this.#tell(address, actor.parent, end)
    const snapshot = ended(actor.snapshot as LogicSnapshot, end)
    this.#actors.set(address, { ...actor, snapshot })
    const { code = null, message = '' } = ('error' in end ? end.error : {}) as { code?: unknown; message?: unknown }
    const failure = 'error' in end ? { code: code ?? 'ACTOR_FAILED', reason: message } : { code: null, reason: '' }
    this.#host.decided.emit(address, { type: 'machine.finished', ...failure })
    this.#host.decided.finished.push(address)
  }

  #tell(address: string, parent: string, end: LogicEnd): void {
    const message = endOf(this.#actors.get(parent)?.snapshot, address, end)
    if (message !== null) this.#relay(address, parent, message)
  }
}

/** Whether an agent works for this very actor. */
function isAtWork({ snapshot }: Actor): boolean {
  return 'logic' in snapshot && snapshot.logic.form === 'agent' && snapshot.status === 'active'
}

/** What is said to a machine of another crew is a letter. */
function saidTo(to: string, message: Message): Message {
  return isForeign(to) ? { type: 'machine.told', message } : message
}

/** What a machine hears of a letter: what another one has said, or that nobody takes what it has said itself. */
export function toldIn(letter: Message): Message {
  return letter.type === 'machine.told' ? (letter['message'] as Message) : letter
}

/** Where an actor stands. */
function placeOf(address: string, parent: string, decided: Decided): Place {
  // The crew is told how its machine has ended, and nothing that a machine says.
  return { address, parent: isUserAddress(parent) ? parent : null, child: () => `child/${decided.generation()}` }
}

/** What a machine calls one of its children; null for an actor that is none, or none any more. */
function nameOf(parent: Snapshot | undefined, child: string): string | null {
  if (parent === undefined || !('logic' in parent)) return null
  for (const [id, { address }] of Object.entries(parent.children)) if (address === child) return id
  return null
}

/** The end of a child, as its parent is told; null when the parent does not have it any more. */
function endOf(parent: Snapshot | undefined, child: string, end: LogicEnd): Message | null {
  const id = nameOf(parent, child)
  if (id === null) return null
  return 'error' in end
    ? { type: `xstate.error.actor.${id}`, error: end.error, actorId: id }
    : { type: `xstate.done.actor.${id}`, ...(end.output === undefined ? {} : { output: end.output }), actorId: id }
}

/** Whether a message is a child's end that its receiver does not wait for any more. */
function isLateEnd(receiver: Snapshot, from: string, { type, actorId }: Message): boolean {
  if (!from.startsWith('child/') || !/^xstate\.(done|error)\.actor\./.test(type)) return false
  return nameOf(receiver, from) !== actorId
}

/** What a step has led to, as a decision: a context by its hash, since decisions are told in errors. */
function stateLine({ status, value, context }: LogicSnapshot): string {
  return `${status} ${JSON.stringify(value)} ${shortHash(JSON.stringify(context ?? null))}`
}

/** A machine that nobody started, when it has ended. */
function ended(snapshot: LogicSnapshot, end: LogicEnd): LogicSnapshot {
  const rest = { ...snapshot, children: {} }
  return 'error' in end
    ? { ...rest, status: 'error', error: end.error ?? null }
    : { ...rest, status: 'done', output: end.output }
}

/** An actor before its first step. */
function unborn(logic: Logic, id: string): LogicSnapshot {
  const nothing = { value: {}, context: null, output: undefined, error: undefined, children: {}, inner: null }
  return { logic, id, status: 'active', ...nothing }
}
