/**
 * Decide: takes one external envelope into a shard's state and says what follows.
 *
 * Owns: the order of messages inside a commit, actors' lives, timers, effects, the digest.
 * Does not own: the append, the effects' execution (`shard.ts`, `dispatcher.ts`).
 *
 * - D1 Pure: the same state and envelope give the same state, digest and effects, on any machine at any time.
 * - D2 Messages inside a commit are taken first in, first out, until nobody has anything more to say.
 * - D3 What fails, fails one actor: its supervisor is told inside the same commit, and the envelope counts as taken.
 * - D4 An outcome is delivered once, to the actor that asked, and only while its effect is open; afterwards it changes
 *   accounts only. A timer that was replaced or cancelled is not delivered.
 * - D5 An outcome that no transition takes fails its actor with `OUTCOME_IGNORED`.
 */
import type { Amounts, LogAppend, LogStage, ModelCall, ToolCall } from '../machines/index.js'
import { digestOf } from './codec.js'
import { append, emptyHash, stage } from './conversation.js'
import { dropLetters, trimLetters } from './dead-letter.js'
import { called } from './effect-event.js'
import type { Envelope } from './envelope.js'
import { type ErrorCode, isTroupeError } from './errors.js'
import type { RunEnd } from './runs.js'
import type { Message, Scope, Step } from './scope.js'
import { type Actor, type Effect, type Generation, type Machines, type ShardState, timerKey } from './state.js'
import { trailOf } from './trail.js'

/** Messages that one envelope may cause before somebody fails over it. */
export const maxMessages = 10_000
/** Messages for tidying up after each such failure, and failures before the whole crew fails. */
const moreMessages = 1_000
const maxOverflows = 10

/** The actor that takes tasks and commands. */
export const crewAddress = 'crew/main'
/** The keeper of a budget of the crew: what it has counted outlives a failure of the crew. */
const crewKeeper = 'budget/crew'

/** Something that happened, for whoever watches: where, and what. */
export type DomainEvent = readonly [from: string, event: Message]

/** A message that an actor was given, for whoever traces: which one of its commit made it, null for the envelope. */
export interface TracedMessage {
  readonly from: string
  readonly to: string
  readonly message: Message
  /** Index among the commit's messages of the one that was being taken when it was sent. */
  readonly cause: number | null
}

/** What one envelope led to. */
export interface Commit {
  readonly sequence: number
  readonly envelope: Envelope
  /** SHA-256 over every decision in order. */
  readonly digest: Uint8Array
  /** Two bytes of checksum a decision: tells which one differs. */
  readonly trail: Uint8Array
  /** Effects that were asked for and are still open. */
  readonly effects: readonly Effect[]
  /** Effects that nobody waits for any more. */
  readonly cancelled: readonly Effect[]
  /** `dispatched` records of this commit. */
  readonly dispatched: readonly Generation[]
  readonly events: readonly DomainEvent[]
  readonly timersChanged: boolean
  /** Runs that ended. */
  readonly finished: readonly string[]
  /** The decisions in words, for a refused upgrade; only when asked for. */
  readonly decisions: readonly string[]
  /** Every message inside, in the order in which they were sent; only when they are traced. */
  readonly messages: readonly TracedMessage[]
}

/** What `decide` needs beside state and envelope. */
export interface DecideContext {
  readonly scope: Scope
  readonly machines: Machines
  /** Effects of the outcome types that the edge may bring. */
  readonly explain?: boolean
  /** Commits tell their messages. */
  readonly trace?: boolean
}

/**
 * Takes one envelope. Changes `state`; a caller that cannot record the commit must drop the state.
 * Never throws for what an actor does.
 */
export function decide(state: ShardState, envelope: Envelope, context: DecideContext): Commit {
  return new Deciding(state, envelope, context).run()
}

interface Delivery {
  readonly from: string
  readonly to: string
  readonly message: Message
  /** An outcome, timer or interruption: some transition must take it. */
  readonly must: boolean
  /** A dead letter that is tried again: one that nobody takes is one again. */
  readonly replayed?: true
}

class Deciding {
  readonly #queue: Delivery[] = []
  readonly #traced: TracedMessage[] = []
  /** Which of the messages is being taken. */
  #taking: number | null = null
  /** Messages that nobody took: their crew failed. */
  #dropped = 0
  readonly #lines: string[] = []
  readonly #effects: Effect[] = []
  readonly #cancelled: Effect[] = []
  readonly #dispatched: Generation[] = []
  readonly #events: DomainEvent[] = []
  readonly #finished: string[] = []
  readonly #state: ShardState
  readonly #envelope: Envelope
  readonly #context: DecideContext
  #index = 0
  #messages = 0
  #messageLimit = maxMessages
  #overflows = 0
  #crewRestarted = false
  /** Actors that failed in this commit, as they were before. */
  readonly #failed = new Map<string, Actor>()
  #timersChanged = false
  #lettersAdded = false
  /** The dead letter that is decided anew, in place of the envelope's own message. */
  #replayed: Message | null = null

  constructor(state: ShardState, envelope: Envelope, context: DecideContext) {
    this.#state = state
    this.#envelope = envelope
    this.#context = context
  }

  run(): Commit {
    const state = this.#state
    state.sequence += 1
    state.at = Math.max(state.at, this.#envelope.at)
    this.#intake()
    for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) {
      this.#taking = this.#messages + this.#dropped
      this.#take(next)
    }
    if (this.#lettersAdded) this.#tellDropped(trimLetters(state.letters), 'no room')
    const text = this.#lines.join('\n')
    return {
      sequence: state.sequence,
      envelope: this.#envelope,
      digest: digestOf(text),
      trail: trailOf(this.#lines),
      effects: this.#effects.filter((effect) => state.effects.has(effect.id)),
      cancelled: this.#cancelled,
      dispatched: this.#dispatched,
      events: this.#events,
      timersChanged: this.#timersChanged,
      finished: this.#finished,
      decisions: this.#context.explain === true ? this.#lines : [],
      messages: this.#traced,
    }
  }

  // ------------------------------------------------------------------------------------------ the envelope

  #intake(): void {
    const { to, from, cause, body } = this.#envelope
    if (to === 'shard/self') return this.#takeOwn(body)
    const message = { ...body, sequence: this.#state.sequence }
    if (from === 'clock/timer') return this.#takeTimer(cause)
    if (!from.startsWith('port/')) return this.#push({ from, to, message, must: false })
    const effect = this.#state.effects.get(cause)
    if (effect === undefined) return this.#takeLate(cause, body)
    this.#state.effects.delete(cause)
    this.#owe(effect, body)
    this.#push({ from, to: effect.from, message, must: true })
  }

  /** A closed effect's outcome: what it cost still counts, once. */
  #takeLate(cause: string, body: Message): void {
    const owed = this.#state.owed.get(cause)
    if (owed === undefined || !('spent' in body)) return
    this.#state.owed.delete(cause)
    // A call that failed was one, as it is for an agent that still waits for it.
    const spent = { ...(body['spent'] as Amounts), modelCalls: 1 }
    const message = { type: 'budget.settle', grant: owed.grant, spent, real: isReal(body), toolCalls: 0 }
    this.#push({ from: 'port/model', to: owed.keeper, message, must: false })
  }

  #takeTimer(cause: string): void {
    const [actor = '', id = '', generation = ''] = cause.split('|')
    const timer = this.#state.timers.get(timerKey(actor, id))
    if (timer === undefined || timer.generation !== generation) return
    this.#state.timers.delete(timerKey(actor, id))
    this.#timersChanged = true
    this.#push({ from: 'clock/timer', to: actor, message: timer.message, must: true })
  }

  #takeOwn(body: Message): void {
    switch (body.type) {
      case 'crew.defined':
        return this.#define(body)
      case 'effect.dispatched': {
        const effect = this.#state.effects.get(body['effect'] as string)
        if (effect === undefined) return
        effect.startBy = body['startBy'] as number
        effect.executor = body['executor'] as string
        this.#dispatched.push(effect.id)
        this.#say('dispatched', effect.id)
        return
      }
      case 'shard.resumed':
        return this.#resume(body['downMs'] as number)
      case 'effects.parked':
        return this.#park(body['effects'] as string[])
      case 'shard.taken':
        this.#state.owner = body['owner'] as string
        this.#emit('shard/self', { type: 'shard.taken', owner: body['owner'] })
        if ((body['downMs'] as number) > 0) this.#resume(body['downMs'] as number)
        return
      case 'shard.left':
        this.#state.owner = ''
        this.#park(body['parked'] as string[])
        return this.#emit('shard/self', { type: 'shard.left', owner: body['owner'] })
      // The place of a lost commit: its number names runs, effects and keys, and is not used again.
      case 'shard.skipped':
        return
      case 'letter.replayed':
        return this.#replay(body['letter'] as string)
      case 'letter.dropped':
        return this.#tellDropped(dropLetters(this.#state.letters, body['letter'] as string | null), 'asked')
      case 'timer.crashed':
        return this.#crashTimer(body['timer'] as string)
      default:
        this.#emit('shard/self', body)
    }
  }

  /** These wait for the next owner; any other that waited is now the present owner's. */
  #park(effects: readonly string[]): void {
    for (const effect of this.#state.effects.values()) {
      const parked = effects.includes(effect.id)
      if (effect.parked && !parked) effect.executor = this.#state.owner
      effect.parked = parked
    }
  }

  #define(body: Message): void {
    this.#state.definition = body['definition'] as string
    this.#emit('shard/self', { type: this.#state.actors.has(crewAddress) ? 'crew.redefined' : 'crew.defined' })
    if (!this.#state.actors.has(crewAddress)) return this.#startCrew(body['crew'])
    this.#push({
      from: 'shard/self',
      to: crewAddress,
      message: { type: 'crew.redefined', crew: body['crew'] },
      must: false,
    })
  }

  #startCrew(data: unknown, keeper: 'crew' | null = null): void {
    this.#start(crewAddress, 'crew', 'shard/self', { self: crewAddress, data, keeper })
  }

  /** Time in which the process was down counts for no timer of active time. */
  #resume(downMs: number): void {
    for (const timer of this.#state.timers.values()) {
      if (timer.id.startsWith('active:')) timer.dueAt += downMs
    }
    this.#timersChanged = true
    this.#emit('shard/self', { type: 'shard.resumed', downMs })
  }

  /** A timer whose delivery killed the process three times is a dead letter. */
  #crashTimer(key: string): void {
    const timer = this.#state.timers.get(key)
    if (timer === undefined) return
    this.#state.timers.delete(key)
    this.#timersChanged = true
    const reason = 'the process died three times over a timer'
    this.#deadLetter('clock/timer', timer.actor, timer.message, 'EFFECT_CRASHED', reason)
    this.#fail(timer.actor, 'EFFECT_CRASHED', reason)
  }

  // ------------------------------------------------------------------------------------------ messages inside

  #push(delivery: Delivery): void {
    this.#queue.push(delivery)
    if (this.#context.trace === true) {
      const { from, to, message } = delivery
      this.#traced.push({ from, to, message, cause: this.#taking })
    }
    this.#lines.push(`${delivery.to} ${JSON.stringify(delivery.message)}`)
  }

  #say(what: string, text: string): void {
    this.#lines.push(`${what} ${text}`)
  }

  #take(delivery: Delivery): void {
    this.#messages += 1
    if (this.#messages > this.#messageLimit) return this.#overflow(delivery)
    const { to, message } = delivery
    if (to.startsWith('log/')) return this.#takeLog(to.slice(4), message)
    if (to.startsWith('port/')) return this.#takePort(delivery.from, message)
    if (to === 'shard/actors') return this.#takeActors(delivery.from, message)
    if (to === 'shard/runs') return this.#takeRun(message)
    this.#deliver(delivery)
  }

  /** Fails whoever the message is for, or else its sender; then there is room to tell its supervisor. */
  #overflow({ from, to, message }: Delivery): void {
    const reason = `more than ${maxMessages} messages in one commit`
    this.#deadLetter(from, to, message, 'COMMIT_OVERFLOW', reason)
    this.#overflows += 1
    const failing = this.#overflows > maxOverflows ? crewAddress : this.#state.actors.has(to) ? to : from
    if (!this.#state.actors.has(failing)) return
    this.#messageLimit = this.#messages + moreMessages
    this.#fail(failing, 'COMMIT_OVERFLOW', reason)
  }

  #deliver({ from, to, message, must, replayed }: Delivery): void {
    const actor = this.#state.actors.get(to)
    if (actor === undefined) {
      // Inside a commit it is normal that somebody has just gone; what comes from outside is never lost in silence.
      const reason = `${to} is gone`
      if (must || from === this.#envelope.from) this.#deadLetter(from, to, message, 'ACTOR_FAILED', reason)
      return
    }
    let step: Step
    try {
      step = this.#context.scope.deliver(actor.snapshot, to, message)
    } catch (error) {
      this.#deadLetter(from, to, message, codeOf(error), reasonOf(error))
      return this.#fail(to, codeOf(error), reasonOf(error))
    }
    if ((must || replayed === true) && !step.taken) {
      const reason = `${message.type} came in a state that does not take it`
      this.#deadLetter(from, to, message, 'OUTCOME_IGNORED', reason)
      return replayed === true ? undefined : this.#fail(to, 'OUTCOME_IGNORED', reason)
    }
    actor.snapshot = step.snapshot
    this.#carryOut(to, step)
  }

  #carryOut(address: string, step: Step): void {
    for (const action of step.actions) {
      if (action.kind === 'emit') this.#emit(address, action.event)
      else if (action.kind === 'cancel') this.#cancelTimer(address, action.id)
      else if (action.delayMs === null)
        this.#push({ from: address, to: action.to, message: action.message, must: false })
      else this.#plan(address, action.to, action.id, action.delayMs, action.message)
    }
    if (step.snapshot.status === 'active') return
    if (step.snapshot.status === 'error') return this.#fail(address, 'ACTOR_FAILED', reasonOf(step.snapshot.error))
    this.#stop(address)
  }

  // ------------------------------------------------------------------------------------------ timers

  #plan(from: string, to: string, name: string | null, delayMs: number, message: Message): void {
    const generation = this.#generation()
    const id = name ?? generation
    // A delayed message to somebody else waits in the sender's name and is delivered like any other message.
    const timer = { actor: to, id, generation, dueAt: this.#envelope.at + delayMs, message }
    this.#state.timers.set(timerKey(from === to ? from : to, id), timer)
    this.#timersChanged = true
    this.#say('timer', `${to} ${id} ${delayMs} ${JSON.stringify(message)}`)
  }

  #cancelTimer(address: string, id: string): void {
    if (!this.#state.timers.delete(timerKey(address, id))) return
    this.#timersChanged = true
    this.#say('cancel', `${address} ${id}`)
  }

  // ------------------------------------------------------------------------------------------ ports and conversations

  #takePort(from: string, message: Message): void {
    if (message.type === 'effect.cancel') return this.#cancelEffects(from)
    const body = message as unknown as ModelCall | ToolCall
    const log = this.#state.logs.get(body.conversation)
    const id = this.#generation()
    const effect: Effect = {
      id,
      from,
      body,
      length: log?.length ?? 0,
      hash: log?.hash ?? emptyHash,
      executor: this.#state.owner,
      startBy: null,
      parked: false,
    }
    this.#state.effects.set(id, effect)
    this.#effects.push(effect)
    this.#events.push([from, called(body)])
    this.#say('effect', `${id} ${effect.length} ${effect.hash}`)
  }

  #cancelEffects(from: string): void {
    for (const effect of this.#state.effects.values()) {
      if (effect.from !== from) continue
      this.#state.effects.delete(effect.id)
      this.#owe(effect, { type: 'effect.cancel' })
      this.#cancelled.push(effect)
    }
  }

  /** Remembers the grant of a model call that ends without a bill. */
  #owe(effect: Effect, body: Message): void {
    if (effect.body.type !== 'model.call' || ('spent' in body && isReal(body))) return
    // Whoever is stopped behind its keeper, when a whole crew is, owes nobody.
    if (!this.#state.actors.has(effect.body.keeper)) return
    this.#state.owed.set(effect.id, { keeper: effect.body.keeper, grant: effect.body.grant })
  }

  #takeLog(name: string, message: Message): void {
    const { logs, sequence } = this.#state
    const { values } = this.#envelope
    switch (message.type) {
      case 'log.append':
        return append(logs, name, message as unknown as LogAppend, sequence, values)
      case 'log.stage':
        return stage(logs, name, message as unknown as LogStage, sequence, values)
      case 'log.seal':
        logs.get(name)?.seal()
        return
      default:
        logs.delete(name)
    }
  }

  // ------------------------------------------------------------------------------------------ actors

  #takeActors(from: string, message: Message): void {
    if (message.type === 'actor.stop') return this.#stop(message['address'] as string)
    if (message.type === 'actor.resume') return this.#resumeActor(from, message['address'] as string)
    const kind = message['kind'] as string
    this.#start(`${kind}/${message['name'] as string}`, kind, from, message['input'])
  }

  /** An actor that has just failed goes on from before the message that it failed over. */
  #resumeActor(from: string, address: string): void {
    const actor = this.#failed.get(address)
    if (actor === undefined || this.#state.actors.has(address)) return
    this.#state.actors.set(address, actor)
    this.#push({ from, to: address, message: { type: 'actor.resumed' }, must: false })
  }

  #start(address: string, kind: string, parent: string, input: unknown): void {
    const machine = this.#context.machines[kind]
    const generation = this.#generation()
    if (machine === undefined || this.#state.actors.has(address)) {
      const reason = machine === undefined ? `no machine of kind ${kind}` : `${address} runs already`
      return this.#tell(parent, address, 'ACTOR_FAILED', reason)
    }
    let step: Step
    try {
      step = this.#context.scope.start(machine, address, input)
    } catch (error) {
      return this.#tell(parent, address, codeOf(error), reasonOf(error))
    }
    this.#state.actors.set(address, { kind, parent, generation, snapshot: step.snapshot })
    this.#carryOut(address, step)
  }

  #stop(address: string): void {
    if (!this.#state.actors.delete(address)) return
    this.#cancelEffects(address)
    for (const [key, timer] of this.#state.timers) {
      if (timer.actor === address) this.#timersChanged = this.#state.timers.delete(key)
    }
    for (const [effect, owed] of this.#state.owed) {
      if (owed.keeper === address) this.#state.owed.delete(effect)
    }
  }

  #fail(address: string, code: ErrorCode, reason: string): void {
    const actor = this.#state.actors.get(address)
    if (actor === undefined) return
    this.#failed.set(address, actor)
    this.#stop(address)
    this.#stopChildren(address)
    this.#emit(address, { type: 'actor.failed', code, reason })
    this.#tell(actor.parent, address, code, reason)
  }

  /** Whoever worked for an actor that failed works for nobody. */
  #stopChildren(parent: string): void {
    for (const [address, actor] of [...this.#state.actors]) {
      if (actor.parent !== parent || address === crewKeeper) continue
      this.#stop(address)
      this.#stopChildren(address)
    }
  }

  /** Tells the supervisor. The crew's supervisor is the shard: its runs end and it starts anew. */
  #tell(parent: string, address: string, code: ErrorCode, reason: string): void {
    if (address !== crewAddress) {
      return this.#push({
        from: address,
        to: parent,
        message: { type: 'actor.failed', address, code, reason },
        must: false,
      })
    }
    const keeper = this.#state.actors.has(crewKeeper) ? 'crew' : null
    for (const other of [...this.#state.actors.keys()]) if (other !== crewKeeper) this.#stop(other)
    this.#dropped += this.#queue.length
    for (const { to, message } of this.#queue.splice(0)) if (to === 'shard/runs') this.#takeRun(message)
    for (const run of [...this.#state.runs.unfinished.values()]) {
      const end = { type: 'run.finished', run: run.run, code, reason, finish: '', rounds: 0, spent: nothingSpent }
      this.#takeRun(end)
      this.#emit(crewAddress, end)
    }
    this.#dropLogs()
    const data = this.#state.definition === '' ? null : (JSON.parse(this.#state.definition) as { data?: unknown }).data
    // Once in a commit: a crew that cannot even start stays away, and whoever asks it for something is told.
    if (data === undefined || this.#crewRestarted) return
    this.#crewRestarted = true
    this.#startCrew(data, keeper)
  }

  /** Of a crew that failed only its runs' conversations stay: who worked in the others, or was to fill them, is gone. */
  #dropLogs(): void {
    const { logs, runs } = this.#state
    const ofRuns = new Set([...runs.values()].map((run) => run.conversation))
    for (const [name, log] of logs) {
      if (ofRuns.has(name)) log.staged.clear()
      else logs.delete(name)
    }
  }

  // ------------------------------------------------------------------------------------------ runs

  #takeRun(message: Message): void {
    const id = message['run'] as string
    const { runs, logs } = this.#state
    if (message.type === 'run.queued') {
      // A task that is given again is another run than the one that it ended as.
      const { key, data } = this.#replayed === null ? this.#envelope.body : { ...this.#replayed, key: id }
      runs.set(id, {
        run: id,
        key: typeof key === 'string' ? key : id,
        sequence: this.#state.sequence,
        data: data === true,
        status: 'queued',
        conversation: id,
        skip: 0,
        until: 0,
        end: null,
      })
      return
    }
    const run = runs.get(id)
    if (run === undefined) return
    if (message.type === 'run.started') {
      run.status = 'running'
      run.conversation = message['conversation'] as string
      run.skip = run.conversation === id ? 0 : (logs.get(run.conversation)?.length ?? 0)
      return
    }
    const { code, reason, finish, rounds, spent } = message as unknown as RunEnd
    const end = { code, reason, finish, rounds, spent, at: this.#envelope.at }
    runs.finish(run, logs.get(run.conversation)?.length ?? 0, end)
    this.#finished.push(id)
  }

  // ------------------------------------------------------------------------------------------ the rest

  #generation(): Generation {
    const generation: Generation = `${this.#state.sequence}-${this.#index}`
    this.#index += 1
    return generation
  }

  #emit(from: string, event: Message): void {
    this.#events.push([from, event])
  }

  #deadLetter(from: string, to: string, message: Message, code: string, reason: string): void {
    const id = this.#generation()
    this.#state.letters.set(id, { id, from, to, message, code, reason, at: this.#envelope.at })
    this.#lettersAdded = true
    this.#say('dead', `${id} ${code} ${to} ${message.type}`)
    this.#emit('shard/dead', { type: 'message.dead', letter: id, from, to, message: message.type, code })
    if (to === crewAddress && message.type === 'crew.task') this.#endTask(code)
  }

  /** @param count how many went */
  #tellDropped(count: number, reason: 'asked' | 'no room'): void {
    if (count > 0) this.#emit('shard/dead', { type: 'letters.dropped', count, reason })
  }

  #replay(id: string): void {
    const letter = this.#state.letters.get(id)
    if (letter === undefined) return
    this.#state.letters.delete(id)
    this.#replayed = letter.message
    this.#emit('shard/dead', { type: 'letter.replayed', letter: id, to: letter.to, message: letter.message.type })
    const message = { ...letter.message, sequence: this.#state.sequence }
    this.#push({ from: this.#envelope.from, to: letter.to, message, must: false, replayed: true })
  }

  /** A task that nobody took is a run that ended: whoever gave it waits for an end. */
  #endTask(code: string): void {
    const run = `r${this.#state.sequence}`
    const reason = 'the crew could not take the task'
    const end = { type: 'run.finished', run, code, reason, finish: '', rounds: 0, spent: nothingSpent }
    if (!this.#state.runs.has(run)) this.#takeRun({ type: 'run.queued', run })
    this.#takeRun(end)
    this.#emit(crewAddress, end)
  }
}

const nothingSpent = { nanoUsd: 0, tokens: 0, modelCalls: 0, toolCalls: 0 }

/** Whether an outcome's counts are the provider's own. */
function isReal(body: Message): boolean {
  const usage = body['usage'] as { estimated?: boolean } | undefined
  return usage === undefined ? body['real'] === true : usage.estimated === false
}

function codeOf(error: unknown): ErrorCode {
  return isTroupeError(error) ? error.code : 'ACTOR_FAILED'
}

function reasonOf(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).slice(0, 2_048)
}
