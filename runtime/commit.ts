/**
 * Decide: takes one external envelope into a shard's state and says what follows.
 *
 * Owns: the order of messages inside a commit, actors' lives, timers, runs.
 * Does not own: what is open with the ports (`effects.ts`), the digest (`decided.ts`), the append and the effects' execution
 * (`shard.ts`, `dispatcher.ts`).
 *
 * - D1 Pure: the same state and envelope give the same state, digest and effects, on any machine at any time.
 * - D2 Messages inside a commit are taken first in, first out, until nobody has anything more to say; those of users' actors
 *   to each other in XState's order (`user-actors.ts`).
 * - D3 What fails, fails one actor: its supervisor is told inside the same commit, and the envelope counts as taken.
 * - D4 An outcome is delivered once, to the actor that asked, and only while its effect is open; afterwards it changes
 *   accounts only. A timer that was replaced or cancelled is not delivered.
 * - D5 An outcome that no transition takes fails its actor with `OUTCOME_IGNORED`.
 * - D6 A letter to another shard is a row of the outbox, numbered, with what its conversation says now; the end of a run that
 *   was asked for by mail is such a letter, however the run ended.
 * - D7 Who is gone asks a port for nothing and starts nobody: nobody would wait for it, nobody would stop it.
 * - D8 Whoever fails leaves no grant open: its calls are charged what their outcome said, or their worst until a real bill
 *   comes. It goes on from before its failure only if nothing that it said was lost.
 */
import { linkOf, write } from './conversation.js'
import { dropLetters, trimLetters } from './dead-letter.js'
import type { Envelope } from './envelope.js'
import { type Commit, type DecideContext, Decided, type DomainEvent, type TracedMessage } from './decided.js'
import {
  ask,
  close,
  dispatched,
  lost,
  park,
  type Settlement,
  settleLate,
  settleLost,
  settleWorst,
  withdraw,
} from './effects.js'
import { codeOf, type ErrorCode, reasonOf } from './errors.js'
import { farewellsOf } from './farewell.js'
import { crewAddress } from './flow-machine.js'
import { isHeardAgain } from './heard.js'
import { isUserKind } from './logic.js'
import { isForeign, maxOutbox, partsOf, stampOf } from './mail.js'
import { poolAddress, poolOf } from './pool-books.js'
import { failedRun, type RunEnd } from './runs.js'
import type { Action, Message, Step } from './scope.js'
import { type Actor, type Effect, type ShardState, timerKey } from './state.js'
import { isUserAddress, machineAddress, machineOf, toldIn, UserActors } from './user-actors.js'

/** Messages that one envelope may cause before somebody fails over it. */
export const maxMessages = 10_000
/** Messages for tidying up after each such failure, and failures before the whole crew fails. */
const moreMessages = 1_000
const maxOverflows = 10

/** The keeper of a budget of the crew: what it has counted outlives a failure of the crew. */
const crewKeeper = 'budget/crew'

export { type Commit, crewAddress, type DecideContext, type DomainEvent, type TracedMessage }

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
  /** Which of the messages is being taken. */
  #taking: number | null = null
  /** Messages that nobody took: their crew failed. */
  #dropped = 0
  #users: UserActors | undefined
  readonly #decided: Decided
  readonly #state: ShardState
  readonly #envelope: Envelope
  readonly #context: DecideContext
  #messages = 0
  #messageLimit = maxMessages
  #overflows = 0
  #crewRestarted = false
  /** Actors that failed in this commit, as they were before. */
  readonly #failed = new Map<string, Actor>()
  #lettersAdded = false
  /** The outcome that came, as long as its actor has not taken it. */
  #outcome: { readonly effect: Effect; readonly body: Message } | null = null
  /** Actors that have no state to go on from: they ended in an error, or some of their own messages were lost. */
  readonly #cut = new Set<string>()
  /** The dead letter that is decided anew, in place of the envelope's own message. */
  #replayed: Message | null = null

  constructor(state: ShardState, envelope: Envelope, context: DecideContext) {
    this.#state = state
    this.#envelope = envelope
    this.#context = context
    this.#decided = new Decided(state, envelope)
  }

  run(): Commit {
    const state = this.#state
    state.sequence += 1
    state.at = Math.max(state.at, this.#envelope.at)
    if (state.mail.life === 0) state.mail.begin(state.sequence)
    this.#intake()
    for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) {
      this.#taking = this.#messages + this.#dropped
      this.#take(next)
    }
    if (this.#lettersAdded) this.#tellDropped(trimLetters(state.letters), 'no room')
    return this.#decided.commit(this.#context.explain === true)
  }

  // ------------------------------------------------------------------------------------------ the envelope

  #intake(): void {
    const { to, from, cause, body } = this.#envelope
    if (isForeign(from)) return this.#takeLetter()
    if (isHeardAgain(this.#state, this.#envelope)) return
    if (to === 'shard/self') return this.#takeOwn(body)
    // A machine of a user's takes what was said to it, and nothing more.
    const message = isUserAddress(to) ? body : { ...body, sequence: this.#state.sequence }
    if (body.type === 'crew.cancel' && this.#isMachine()) return this.#usersNow().cancel(machineAddress)
    if (from === 'clock/timer') return this.#takeTimer(cause)
    if (!from.startsWith('port/')) return this.#push({ from, to, message, must: false })
    const effect = this.#state.effects.get(cause)
    const asker = close(this.#state, cause, body)
    if (effect !== undefined && asker !== null) {
      this.#outcome = { effect, body }
      return this.#push({ from, to: asker, message, must: true })
    }
    const late = settleLate(this.#state, cause, body)
    if (late !== null) this.#settle(from, [late])
  }

  #settle(from: string, all: readonly Settlement[]): void {
    for (const { keeper: to, message } of all) this.#push({ from, to, message, must: false })
  }

  /** A letter of another shard. An answer that nobody waits for any more is none to anybody. */
  #takeLetter(): void {
    const { to, from, cause, body } = this.#envelope
    const { mail, actors, sequence, shard } = this.#state
    const stamp = stampOf(cause)
    if (stamp !== null && !mail.take(partsOf(from)[0], stamp)) return
    this.#decided.emit(to, { type: 'mail.taken', from, message: body.type })
    if (/^(envoy|budget)\//.test(to) && !actors.has(to)) return
    // Shares have windows, and end with them; and they outlive what a keeper knows of them.
    const ofShares = /^(pool|budget)\//.test(to) ? { at: this.#state.at, life: stamp?.life ?? 0 } : {}
    const message = isUserAddress(to) ? toldIn(body) : { ...body, sequence, sender: from, shard, ...ofShares }
    this.#push({ from, to, message, must: false })
  }

  #takeTimer(cause: string): void {
    // The id of a timer may hold anything; its generation comes last.
    const at = cause.lastIndexOf('|')
    const key = cause.slice(0, at)
    const timer = this.#state.timers.get(key)
    if (timer === undefined || timer.generation !== cause.slice(at + 1)) return
    this.#state.timers.delete(key)
    this.#decided.timersChanged = true
    const { actor, to, message } = timer
    if (to === undefined) return this.#push({ from: 'clock/timer', to: actor, message, must: true })
    this.#push({ from: actor, to, message, must: false })
  }

  #takeOwn(body: Message): void {
    switch (body.type) {
      case 'crew.defined':
        return this.#define(body)
      case 'effect.dispatched':
        return dispatched(this.#decided, body)
      case 'shard.resumed':
        return this.#resume(body['downMs'] as number)
      case 'effects.parked':
        return park(this.#state, body['effects'] as string[])
      case 'shard.taken':
        this.#state.owner = body['owner'] as string
        lost(this.#state, this.#envelope.at)
        this.#decided.emit('shard/self', { type: 'shard.taken', owner: body['owner'] })
        if ((body['downMs'] as number) > 0) this.#resume(body['downMs'] as number)
        return
      case 'mail.handed':
        return this.#state.mail.clear(body['rows'] as string[])
      case 'shard.left':
        this.#state.owner = ''
        park(this.#state, body['parked'] as string[])
        return this.#decided.emit('shard/self', { type: 'shard.left', owner: body['owner'] })
      // The place of a lost commit: its number names runs, effects and keys, and is not used again.
      case 'shard.skipped':
        return
      case 'letter.replayed':
        return this.#replay(body)
      case 'letter.dropped':
        return this.#tellDropped(dropLetters(this.#state.letters, body['letter'] as string | null), 'asked')
      case 'timer.crashed':
        return this.#crashTimer(body['timer'] as string)
      // What was sent behind the cut is not known any more: its numbers would be taken for those letters.
      case 'shard.repaired':
        this.#state.mail.begin(this.#state.sequence)
        return this.#decided.emit('shard/self', body)
      default:
        this.#decided.emit('shard/self', body)
    }
  }

  #define(body: Message): void {
    this.#state.definition = body['definition'] as string
    const machine = machineOf(body['crew'])
    const pool = poolOf(body['crew'])
    const lead = pool !== null ? poolAddress : machine === null ? crewAddress : machineAddress
    const isKnown = this.#state.actors.has(lead)
    this.#decided.emit('shard/self', { type: isKnown ? 'crew.redefined' : 'crew.defined' })
    if (machine !== null)
      return isKnown ? undefined : this.#usersNow().start(machineAddress, machine.kind, 'shard/self', body['input'])
    if (pool !== null && !isKnown)
      return this.#start(poolAddress, 'pool', 'shard/self', { self: poolAddress, data: pool })
    if (!this.#state.actors.has(lead)) return this.#startCrew(body['crew'])
    this.#push({ from: 'shard/self', to: lead, message: { type: 'crew.redefined', crew: body['crew'] }, must: false })
  }

  #startCrew(data: unknown, keeper: 'crew' | null = null): void {
    this.#start(crewAddress, 'crew', 'shard/self', { self: crewAddress, data, keeper })
  }

  /** Time in which the process was down counts for no timer of active time. */
  #resume(downMs: number): void {
    for (const timer of this.#state.timers.values()) if (timer.id.startsWith('active:')) timer.dueAt += downMs
    this.#decided.timersChanged = true
    this.#decided.emit('shard/self', { type: 'shard.resumed', downMs })
  }

  /** A timer whose delivery killed the process three times is a dead letter. */
  #crashTimer(key: string): void {
    const timer = this.#state.timers.get(key)
    if (timer === undefined) return
    this.#state.timers.delete(key)
    this.#decided.timersChanged = true
    const reason = 'the process died three times over a timer'
    this.#deadLetter('clock/timer', timer.actor, timer.message, 'EFFECT_CRASHED', reason)
    this.#fail(timer.actor, 'EFFECT_CRASHED', reason)
  }

  // ------------------------------------------------------------------------------------------ messages inside

  #push(delivery: Delivery): void {
    this.#queue.push(delivery)
    this.#note(delivery)
  }

  #note({ from, to, message }: Pick<Delivery, 'from' | 'to' | 'message'>): void {
    if (this.#context.trace === true) this.#decided.traced.push({ from, to, message, cause: this.#taking })
    this.#decided.lines.push(`${to} ${JSON.stringify(message)}`)
  }

  /** Whether the crew is one machine. */
  #isMachine(): boolean {
    return this.#state.actors.has(machineAddress) && !this.#state.actors.has(crewAddress)
  }

  #take(delivery: Delivery): void {
    this.#messages += 1
    if (this.#messages > this.#messageLimit) return this.#overflow(delivery)
    const { to, message } = delivery
    if (to.startsWith('log/')) return this.#takeLog(to.slice(4), message)
    if (to.startsWith('port/')) return this.#takeAsk(delivery.from, message)
    if (to === 'shard/actors') return this.#takeActors(delivery.from, message)
    if (to === 'shard/runs') return this.#takeRun(message)
    if (isForeign(to)) return this.#write(delivery.from, to, message)
    this.#deliver(delivery)
  }

  #takeAsk(from: string, message: Message): void {
    if (message.type === 'effect.cancel') return withdraw(this.#decided, from)
    if (this.#state.actors.has(from)) ask(this.#decided, from, message)
  }

  /** Fails whoever the message is for, or else its sender; then there is room to tell its supervisor. */
  #overflow({ from, to, message }: Delivery): void {
    const reason = `more than ${maxMessages} messages in one commit`
    this.#deadLetter(from, to, message, 'COMMIT_OVERFLOW', reason)
    this.#overflows += 1
    const failing = this.#overflows > maxOverflows ? crewAddress : this.#state.actors.has(to) ? to : from
    if (!this.#state.actors.has(failing)) return
    this.#cut.add(failing).add(from)
    this.#messageLimit = this.#messages + moreMessages
    this.#fail(failing, 'COMMIT_OVERFLOW', reason)
  }

  #deliver({ from, to, message, must, replayed }: Delivery): void {
    if (isUserAddress(to)) return this.#usersNow().deliver({ from, to, message })
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
    if (must) this.#outcome = null
    actor.snapshot = step.snapshot
    this.#carryOut(to, step)
  }

  #carryOut(address: string, step: Step): void {
    for (const action of step.actions) {
      if (action.kind === 'emit') this.#decided.emit(address, action.event)
      else if (action.kind === 'cancel') this.#cancelTimer(address, action.id)
      else if (action.kind === 'send') this.#send(address, action)
    }
    if (step.snapshot.status === 'active') return
    if (step.snapshot.status === 'error') {
      this.#cut.add(address)
      return this.#fail(address, 'ACTOR_FAILED', reasonOf(step.snapshot.error))
    }
    this.#stop(address)
  }

  #send(from: string, { to, message, id, delayMs }: Extract<Action, { kind: 'send' }>): void {
    if (delayMs === null) this.#push({ from, to, message, must: false })
    else this.#plan(from, to, id, delayMs, message)
  }

  // ------------------------------------------------------------------------------------------ timers

  #plan(from: string, to: string, name: string | null, delayMs: number, message: Message): void {
    const generation = this.#decided.generation()
    const id = name ?? generation
    // What a user's actor says to somebody else later is its own: it can cancel it, and it goes with it, as in XState.
    const isOwn = from === to || !isUserAddress(from)
    const timer = { actor: isOwn ? to : from, id, generation, dueAt: this.#envelope.at + delayMs, message }
    this.#state.timers.set(timerKey(timer.actor, id), isOwn ? timer : { ...timer, to })
    this.#decided.timersChanged = true
    this.#decided.say('timer', `${to} ${id} ${delayMs} ${JSON.stringify(message)}`)
  }

  #cancelTimer(address: string, id: string): void {
    if (!this.#state.timers.delete(timerKey(address, id))) return
    this.#decided.timersChanged = true
    this.#decided.say('cancel', `${address} ${id}`)
  }

  // ------------------------------------------------------------------------------------------ conversations

  #takeLog(name: string, message: Message): void {
    const { logs, sequence } = this.#state
    write(logs, name, message, { sequence, values: this.#envelope.values })
  }

  // ------------------------------------------------------------------------------------------ mail

  /** Puts a letter into the outbox. `attach` names a conversation whose last message goes with it. */
  #write(from: string, to: string, message: Message): void {
    const { logs, mail } = this.#state
    const { attach, ...body } = message
    if (/^(delegate\.task|machine\.told)$/.test(body.type) && mail.outbox.size >= maxOutbox) {
      const full = { type: 'mail.returned', message: body.type, code: 'MAILBOX_FULL', reason: 'the outbox is full' }
      return this.#push({ from: 'shard/self', to: from, message: full, must: false })
    }
    const last = attach === undefined ? undefined : logs.get(attach as string)?.entries.at(-1)
    const row = mail.write({
      id: this.#decided.generation(),
      from,
      to,
      body,
      entries: last === undefined ? [] : [last],
    })
    this.#decided.letters.push(row)
    this.#decided.emit(from, { type: 'mail.sent', to, message: body.type, number: row.number })
    this.#decided.say('mail', `${row.id} ${to} ${row.number} ${JSON.stringify(body)} ${row.entries.map(linkOf).join()}`)
  }

  /** Says to other crews what an actor leaves behind. */
  #recall(address: string): void {
    const actor = this.#state.actors.get(address)
    if (actor === undefined) return
    for (const { to, message } of farewellsOf(actor, crewAddress)) this.#write(address, to, message)
  }

  // ------------------------------------------------------------------------------------------ actors

  #takeActors(from: string, message: Message): void {
    if (message.type === 'actor.stop') {
      this.#recall(message['address'] as string)
      return this.#stop(message['address'] as string)
    }
    if (message.type === 'actor.resume') return this.#resumeActor(from, message['address'] as string)
    if (!this.#state.actors.has(from)) return
    const kind = message['kind'] as string
    if (isUserKind(kind)) return this.#usersNow().lead(kind, message['name'] as string)
    this.#start(`${kind}/${message['name'] as string}`, kind, from, message['input'])
  }

  /** An actor that has just failed goes on from before the message that it failed over. */
  #resumeActor(from: string, address: string): void {
    const actor = this.#failed.get(address)
    if (actor === undefined || this.#state.actors.has(address)) return
    this.#failed.delete(address)
    this.#state.actors.set(address, actor)
    this.#push({ from, to: address, message: { type: 'actor.resumed' }, must: false })
  }

  #start(address: string, kind: string, parent: string, input: unknown): void {
    const machine = this.#context.machines[kind]
    const generation = this.#decided.generation()
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
    withdraw(this.#decided, address)
    for (const [key, timer] of this.#state.timers) {
      if (timer.actor === address) this.#decided.timersChanged = this.#state.timers.delete(key)
    }
    for (const [effect, owed] of this.#state.owed) {
      if (owed.keeper === address) this.#state.owed.delete(effect)
    }
  }

  /** Stops whoever cannot end its own calls. */
  #abort(address: string): void {
    this.#settle(address, settleWorst(this.#state, address))
    this.#stop(address)
  }

  #fail(address: string, code: ErrorCode, reason: string): void {
    if (isUserAddress(address)) return this.#usersNow().fail(address, code, reason)
    const actor = this.#state.actors.get(address)
    if (actor === undefined) return
    this.#failed.set(address, actor)
    if (actor.kind === 'budget' && address !== crewKeeper) this.#recall(address)
    if (this.#outcome?.effect.from === address)
      this.#settle(address, settleLost(this.#outcome.effect, this.#outcome.body))
    this.#abort(address)
    this.#stopChildren(address)
    this.#decided.emit(address, { type: 'actor.failed', code, reason })
    this.#tell(actor.parent, address, code, reason)
  }

  /** Whoever worked for an actor that failed works for nobody. */
  #stopChildren(parent: string): void {
    for (const [address, actor] of [...this.#state.actors]) {
      if (actor.parent !== parent || address === crewKeeper) continue
      this.#recall(address)
      this.#abort(address)
      this.#stopChildren(address)
    }
  }

  #mayResume(address: string): boolean {
    return this.#failed.has(address) && !this.#state.actors.has(address) && !this.#cut.has(address)
  }

  /** Users' actors, when there are any. */
  #usersNow(): UserActors {
    return (this.#users ??= new UserActors({
      decided: this.#decided,
      context: this.#context,
      failed: this.#failed,
      relay: (delivery) => {
        this.#note(delivery)
        this.#messages += 1
        if (this.#messages <= this.#messageLimit) return true
        this.#overflow({ ...delivery, must: false })
        return false
      },
      push: (from, to, message) => this.#push({ from, to, message, must: false }),
      plan: (from, to, name, delayMs, message) => this.#plan(from, to, name, delayMs, message),
      cancelTimer: (address, id) => this.#cancelTimer(address, id),
      stop: (address) => this.#stop(address),
      deadLetter: (...letter) => this.#deadLetter(...letter),
    }))
  }

  /** Tells the supervisor. The crew's supervisor is the shard: its runs end and it starts anew. */
  #tell(parent: string, address: string, code: ErrorCode, reason: string): void {
    // A budget that crews share goes on with its books, as a crew's keeper does.
    if (address === poolAddress) return this.#resumeActor(parent, address)
    if (address !== crewAddress) {
      const failed = { type: 'actor.failed', address, code, reason, at: this.#state.at }
      const message = { ...failed, resumable: this.#mayResume(address) }
      return this.#push({ from: address, to: parent, message, must: false })
    }
    const keeper = this.#state.actors.has(crewKeeper) ? 'crew' : null
    for (const other of [...this.#state.actors.keys()]) if (other !== crewKeeper) this.#stop(other)
    this.#dropped += this.#queue.length
    for (const delivery of this.#queue.splice(0)) {
      if (delivery.to === 'shard/runs') this.#takeRun(delivery.message)
      // Its keeper goes on, with all that was spent.
      else if (delivery.to === crewKeeper && delivery.message.type === 'budget.settle') this.#push(delivery)
    }
    for (const run of [...this.#state.runs.unfinished.values()]) {
      const end = failedRun(run.run, code, reason)
      this.#takeRun(end)
      this.#decided.emit(crewAddress, end)
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
      runs.queue(id, this.#state.sequence, this.#envelope, this.#replayed)
      return
    }
    const run = runs.get(id)
    if (run === undefined) return
    if (message.type === 'run.restarted') {
      run.conversation = message['conversation'] as string
      return
    }
    if (message.type === 'run.started') {
      run.status = 'running'
      run.conversation = message['conversation'] as string
      run.skip = run.conversation === id ? 0 : (logs.get(run.conversation)?.length ?? 0)
      return
    }
    const { code, reason, finish, rounds, spent } = message as unknown as RunEnd
    const end = { code, reason, finish, rounds, spent, at: this.#envelope.at }
    runs.finish(run, logs.get(run.conversation)?.length ?? 0, end)
    this.#decided.finished.push(id)
    if (run.replyTo === '') return
    const answer = code === null ? { attach: run.conversation } : {}
    this.#write(crewAddress, run.replyTo, { type: 'delegate.answered', code, reason, ...answer })
  }

  // ------------------------------------------------------------------------------------------ the rest

  #deadLetter(from: string, to: string, message: Message, code: string, reason: string): void {
    const id = this.#decided.generation()
    this.#state.letters.set(id, { id, from, to, message, code, reason, at: this.#envelope.at })
    this.#lettersAdded = true
    this.#decided.say('dead', `${id} ${code} ${to} ${message.type}`)
    this.#decided.emit('shard/dead', { type: 'message.dead', letter: id, from, to, message: message.type, code })
    if (to === crewAddress && /^(crew|delegate)\.task$/.test(message.type)) this.#endTask(code)
  }

  /** @param count how many went */
  #tellDropped(count: number, reason: 'asked' | 'no room'): void {
    if (count > 0) this.#decided.emit('shard/dead', { type: 'letters.dropped', count, reason })
  }

  #replay({ letter: id, message: edited, by }: Message): void {
    const letter = this.#state.letters.get(id as string)
    if (letter === undefined) return
    this.#state.letters.delete(letter.id)
    this.#replayed = (edited as Message | undefined) ?? letter.message
    this.#decided.emit('shard/dead', {
      type: 'letter.replayed',
      letter: letter.id,
      to: letter.to,
      message: this.#replayed.type,
      ...(edited === undefined ? {} : { editedBy: by }),
    })
    const message = isUserAddress(letter.to) ? this.#replayed : { ...this.#replayed, sequence: this.#state.sequence }
    this.#push({ from: this.#envelope.from, to: letter.to, message, must: false, replayed: true })
  }

  /** A task that nobody took is a run that ended: whoever gave it waits for an end. */
  #endTask(code: string): void {
    const run = `r${this.#state.sequence}`
    const end = failedRun(run, code, 'the crew could not take the task')
    if (!this.#state.runs.has(run)) this.#takeRun({ type: 'run.queued', run })
    this.#takeRun(end)
    this.#decided.emit(crewAddress, end)
  }
}
