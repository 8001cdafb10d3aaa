/**
 * The replica of a shard: takes every record as soon as the store has it, decides each commit a second time, and checks
 * the invariants after each.
 *
 * It is the simulation's own replay from the first record: whatever a recovery brings back must equal it.
 */
import { type Amounts, machines } from '../../machines/index.js'
import { BlobRef, decode, encode } from '../../runtime/codec.js'
import { type Commit, crewAddress, type DecideContext, decide } from '../../runtime/commit.js'
import type { Envelope } from '../../runtime/envelope.js'
import type { JournalRecord } from '../../runtime/journal.js'
import { partsOf, type Stamp, stampOf } from '../../runtime/mail.js'
import { checkChain, fromRecord } from '../../runtime/record.js'
import type { Scope } from '../../runtime/scope.js'
import {
  type Effect,
  emptyState,
  fromStoredState,
  type Generation,
  type ShardState,
  stateHash,
  type StoredState,
  toStoredState,
} from '../../runtime/state.js'
import { Accounts } from './accounts.js'
import { checkFlows } from './flows.js'
import { Holdings, losesWord } from './holdings.js'
import type { Judge } from './judge.js'
import { type Branch, branches, type Notes } from './notes.js'
import type { SeededRandom } from './seeded-random.js'
import { deepFreeze } from './deep-freeze.js'
import { Incarnations } from './incarnations.js'
import { Ladders } from './ladders.js'
import { mayFail, wasTaken } from './machine-faults.js'
import { Rounds } from './rounds.js'
import { Routes } from './routes.js'
import { Steers } from './steers.js'

/** What the replica needs of its world. */
export interface ReplicaWorld {
  readonly random: SeededRandom
  readonly notes: Notes
  readonly judge: Judge
  /** Probability that a state is rebuilt from bytes after a commit. */
  readonly rebuild: number
  readonly freeze: boolean
  readonly clockSteps: boolean
  /** Whether the budget that crews share was asked before it was there. */
  readonly poolRefused: () => boolean
  /** What runs the machines. */
  readonly scope: () => Scope
  /** Virtual time. */
  readonly now: () => number
  /** Processes that have ended so far. */
  readonly ends: () => number
  /** A number for the crashes so far; among several workers whose lease ran out counts, and an owner that did not leave. */
  readonly crashes: () => number
  /** How many processes crashed behind such a number: each once. */
  readonly crashesSince: (before: number) => number
  /** An owner did not leave before the next one took its shard. */
  readonly overtaken: (owner: string) => void
  /** An agent waits for a person to say something. */
  readonly asked: (shard: string, ask: string, kind: string) => void
  /** Whether a person has said that to an ask. */
  readonly hasSaid: (shard: string, ask: string, decision: string) => boolean
  /** When the present process started. */
  readonly startedAt: () => number
  /** Time so far in which there was no process. */
  readonly deadMs: () => number
}

/** What the crew machine knows, as far as it is looked at. */
interface CrewContext {
  readonly task: { readonly run: string } | null
  readonly waiting: readonly unknown[]
  readonly paused: boolean
  readonly data: { readonly wallMs: number | null; readonly from?: string }
}

interface Started {
  readonly at: number
  readonly wallMs: number | null
  /** Time in which there had been no process before it began. */
  readonly deadMs: number
  /** Time that a run is excused: from the last commit of a process to the start of the one that writes the next. */
  excused: number
  /** Time in which a living process could not write. */
  stalled: number
  /** How long before its record was stored it may have begun. */
  readonly late: number
}

/** Slack of a wall budget: appends are slow. */
const wallSlackMs = 3_000

/** What the journal of one shard adds up to. */
export class Replica {
  readonly shard: string
  readonly context: DecideContext
  state: ShardState
  readonly accounts: Accounts
  /** Every effect that was ever asked for. */
  readonly asked = new Map<string, Effect>()
  /** Effects with a `dispatched` record, and how many processes had ended by then. */
  readonly dispatched = new Map<string, number>()
  /** Executors whose call a person has approved. */
  readonly approved = new Set<string>()
  readonly count = { commits: 0, rounds: 0, delegations: 0, onceCalls: 0 }
  /** A keeper went before its calls were settled, with its crew or since it failed; or its last word came back. */
  recalled = false
  /** The present process had an append that failed since the last record. */
  stalled = false
  /** A process ended since the last record. */
  #ended = false
  readonly #causes = new Set<string>()
  /** Letters that went back: sender, its life and number. */
  readonly refusals = new Set<string>()
  /** The last letter of each sender, by this replica's own count. */
  readonly #stamps = new Map<string, Stamp>()
  /** The last number of each receiver. */
  readonly sentTo = new Map<string, number>()
  /** Envoys under way. */
  readonly #away = new Set<string>()
  /** Owners that did not leave the shard before the next one took it. */
  #overtaken = 0
  #lastAt = 0
  /** Chain hash of the last record. */
  #chain: Uint8Array = new Uint8Array(32)
  #hashed = { sequence: -1, hash: '' }
  #run: Started | null = null
  /** How long the present record was on its way. */
  #late = 0
  readonly #onceDoubted = new Map<string, number>()
  /** Crashes before each commit. */
  readonly #crashesAt: number[] = []
  /** What each commit is looked at by. */
  readonly #watchers: readonly { take(state: ShardState, commit: Commit): void }[]
  readonly rounds: Rounds
  readonly incarnations: Incarnations
  /** Dead letters that were told and not told to have gone. */
  #letters = 0
  /** First commit that asked for a piece of work. */
  readonly #firstAsked = new Map<string, number>()
  readonly #world: ReplicaWorld

  constructor(shard: string, world: ReplicaWorld) {
    this.shard = shard
    this.#world = world
    this.context = { scope: world.scope(), machines, explain: true }
    this.state = emptyState(shard)
    this.accounts = new Accounts(shard, world.notes)
    const { notes } = world
    this.rounds = new Rounds(shard, notes, world.judge)
    this.incarnations = new Incarnations(shard, notes)
    const others = [new Steers(notes), new Ladders(shard, notes), new Holdings(shard, notes), new Routes(shard, notes)]
    this.#watchers = [...others, this.rounds, this.incarnations]
  }

  get crew(): CrewContext | null {
    return (this.state.actors.get(crewAddress)?.snapshot.context as CrewContext | undefined) ?? null
  }

  /** Hash of the state. */
  hash(): string {
    const { sequence } = this.state
    if (this.#hashed.sequence !== sequence)
      this.#hashed = { sequence, hash: stateHash(this.state, this.context.scope, machines) }
    return this.#hashed.hash
  }

  /** The process is gone. */
  end(): void {
    this.#ended = true
    this.stalled = false
  }

  /** Takes a record that the store has. Returns its envelopes. */
  take(record: JournalRecord): Envelope[] {
    const commits = fromRecord(this.shard, record)
    this.#checkPlace(record)
    if (commits.length > 1) this.#world.notes.reached('commits share a record')
    this.#excuse()
    for (const { envelope, digest } of commits) this.#takeCommit(envelope, digest)
    return commits.map(({ envelope }) => envelope)
  }

  /** A record follows the one before: by its number, and by its hash, which is over that one's. */
  #checkPlace(record: JournalRecord): void {
    const { notes } = this.#world
    const detail = () => `${this.#where()}: ${record.first} to ${record.last} come next`
    notes.check('gap', record.first === this.state.sequence + 1 && record.last >= record.first, detail)
    try {
      checkChain(this.shard, this.#chain, record)
    } catch (error) {
      notes.violate('gap', `${this.#where()}: ${String(error)}`)
    }
    this.#chain = record.hash
  }

  /** Only commits tell later how long a process lived: nobody knows of its time after the last one. */
  #excuse(): void {
    const now = this.#world.now()
    const from = this.#ended ? this.#world.startedAt() : this.#lastAt
    if (this.#run !== null) {
      this.#run.excused += from - this.#lastAt
      if (this.stalled) this.#run.stalled += now - from
    }
    this.#late = this.stalled ? now - from : 0
    this.#ended = false
    this.stalled = false
    this.#lastAt = now
  }

  #takeCommit(envelope: Envelope, digest: Uint8Array): void {
    const { notes } = this.#world
    this.count.commits += 1
    this.#crashesAt[this.state.sequence + 1] = this.#world.crashes()
    notes.check('time', envelope.at >= this.state.at, () => `${this.#where()}: ${envelope.at} after ${this.state.at}`)
    this.#before(envelope)
    this.incarnations.before(this.state, envelope)
    this.#decidedOnce(envelope)
    this.#takenOnce(envelope)
    const stale = this.#isStale(envelope)
    const commit = decide(this.state, envelope, this.context)
    notes.check('pure', Buffer.from(digest).equals(commit.digest), () => `${this.#where()}: ${envelope.body.type}`)
    if (stale) this.#checkStale(envelope, commit)
    this.#after(envelope, commit)
    for (const effect of commit.effects) this.#ask(effect)
    for (const [from, event] of commit.events) this.#see(from, event as Seen)
    for (const { to, number } of commit.letters) this.#sent(partsOf(to)[0], number)
    for (const effect of commit.dispatched) this.dispatched.set(effect, this.#ends())
    this.accounts.check(this.state, commit.decisions)
    this.recalled ||= losesWord(commit)
    checkFlows(this.state, notes)
    for (const watcher of this.#watchers) watcher.take(this.state, commit)
    this.#countLetters(commit)
    for (const [, event] of commit.events as [string, Seen][])
      if (event.type === 'run.finished' && event.code !== 'EFFECT_CRASHED')
        this.accounts.checkBill(event.run, event.spent)
    this.#disturbState()
  }

  #countLetters({ events }: Commit): void {
    for (const [, event] of events) {
      if (event.type === 'message.dead') this.#letters += 1
      if (event.type === 'letter.replayed') this.#letters -= 1
      if (event.type === 'letters.dropped') this.#letters -= event['count'] as number
    }
    const { size } = this.state.letters
    this.#world.notes.check('letters', size === this.#letters, () => `${this.#where()}: ${size} of ${this.#letters}`)
  }

  // ------------------------------------------------------------------------------------------ impurity

  /** A state that was stored and read again, or that nobody can write to, must decide the same. */
  #disturbState(): void {
    const { random, rebuild, freeze, notes } = this.#world
    if (freeze) {
      notes.reached('impurity checked: contexts frozen')
      for (const actor of this.state.actors.values()) deepFreeze(actor.snapshot.context)
    }
    if (!random.chance(rebuild)) return
    notes.reached('impurity checked: state rebuilt from bytes')
    const { scope } = this.context
    const before = encode(toStoredState(this.state, scope, machines))
    this.state = fromStoredState(this.shard, decode(before) as StoredState, scope, machines)
    const after = encode(toStoredState(this.state, scope, machines))
    notes.check('replay', before.equals(after), () => `${this.#where()}: the state changed on its way through bytes`)
  }

  // ------------------------------------------------------------------------------------------ generations

  /** Whether an outcome or a timer is of something that is not open any more. */
  #isStale({ from, cause }: Envelope): boolean {
    if (from.startsWith('port/')) return !this.state.effects.has(cause)
    if (from !== 'clock/timer') return false
    const [actor = '', id = '', generation = ''] = cause.split('|')
    return this.state.timers.get(`${actor}|${id}`)?.generation !== generation
  }

  #checkStale(envelope: Envelope, commit: Commit): void {
    const { notes } = this.#world
    const [first] = commit.decisions
    if (envelope.from === 'clock/timer') {
      notes.reached('late timer was not delivered')
      return notes.check('generation', first === undefined, () => `${this.#where()}: ${envelope.cause}: ${first}`)
    }
    notes.reached(first === undefined ? 'late outcome changed nothing' : 'late outcome changed accounts')
    const accountsOnly = first === undefined || /^budget\/\S+ \{"type":"budget\.settle"/.test(first)
    notes.check('generation', accountsOnly, () => `${this.#where()}: outcome of ${envelope.cause}: ${first}`)
  }

  // ------------------------------------------------------------------------------------------ branches

  #before({ from, cause, body, values }: Envelope): void {
    const { notes } = this.#world
    if (values.some((value) => value instanceof BlobRef)) notes.reached('value in a blob')
    if (from.startsWith('port/')) {
      const effect = this.state.effects.get(cause)
      if (effect !== undefined) this.#beforeOutcome(effect, body as Seen)
      return
    }
    if (body.type === 'shard.taken') this.#taken()
    const taken = body.type === 'shard.taken' && (body['downMs'] as number) > 0
    if (taken || body.type === 'shard.resumed') notes.reached('time down was not counted')
    if (body.type === 'timer.crashed') {
      notes.reached('timer given up after crashes')
      const generation = this.state.timers.get(body['timer'] as string)?.generation ?? '0-0'
      this.#checkGivenUp(body['timer'] as string, Number.parseInt(generation, 10))
    }
    if (body.type !== 'effects.parked' || (body['effects'] as string[]).length > 0) return
    if ([...this.state.effects.values()].some((effect) => effect.parked)) notes.reached('parked effects dispatched')
  }

  #taken(): void {
    const { notes } = this.#world
    if (this.state.sequence === 0) return
    if (this.state.owner !== '') {
      this.#overtaken += 1
      this.#world.overtaken(this.state.owner)
    }
    notes.reached(this.state.owner === '' ? 'shard taken from one that left it' : 'shard taken from one that was gone')
  }

  #beforeOutcome(effect: Effect, body: Seen): void {
    const { notes } = this.#world
    const asked = effect.body
    if (body.type === 'effect.crashed') {
      notes.reached('effect given up after crashes')
      const work = `${effect.from} ${effect.length}`
      this.#checkGivenUp(work, this.#firstAsked.get(work) ?? 0)
    }
    if (body.type === 'model.replied' && body.calls.some((call) => call.arguments !== undefined))
      notes.reached('call repaired')
    if (effect.executor !== this.state.owner && !body.type.startsWith('effect.'))
      notes.reached('effect left to its executor')
    if (body.type === 'tool.verified') this.#verified(effect, body.done)
    if (body.type !== 'effect.interrupted') return
    if (asked.type === 'model.call') return notes.reached('model call interrupted')
    if (!('callId' in asked) || !('effect' in asked)) return
    if (asked.effect !== 'once' || asked.type === 'tool.verify') return notes.reached('tool call interrupted')
    if (body.started) this.#onceDoubted.set(asked.callId, this.dispatched.get(effect.id) ?? Number.POSITIVE_INFINITY)
    else notes.reached('once call interrupted before its start')
  }

  #decidedOnce({ from, cause, body }: Envelope): void {
    if (from !== 'client/local' || cause === '') return
    this.#world.notes.check('decided', !this.#causes.has(cause), () => `${this.#where()}: ${body.type} ${cause}`)
    this.#causes.add(cause)
  }

  /** Letters of a sender come in the order of their numbers, each once. */
  #takenOnce({ from, cause, body }: Envelope): void {
    const stamp = stampOf(cause)
    const { notes } = this.#world
    if (body.type === 'mail.returned') notes.reached('letter returned: no such crew')
    if (stamp === null) return
    const [sender] = partsOf(from)
    const last = this.#stamps.get(sender)
    const next = this.nextOf(sender, stamp)
    const isNext = stamp.number === next && stamp.life === (last?.life ?? stamp.life)
    notes.check('mail', isNext, () => `${this.#where()}: letter ${stamp.number} of ${sender}, expected ${next}`)
    this.#stamps.set(sender, stamp)
    if (body.type === 'delegate.revoke') notes.reached('delegation called back')
    if (body.type !== 'delegate.answered') return
    notes.reached(body['code'] === null ? 'delegation answered by mail' : 'delegation failed by mail')
  }

  /** A letter that came while there was no such crew: it went back, and leaves a gap. */
  refused({ from, cause }: Pick<Envelope, 'from' | 'cause'>): void {
    const stamp = stampOf(cause)
    if (stamp !== null) this.refusals.add(`${partsOf(from)[0]} ${stamp.life} ${stamp.number}`)
  }

  /** The number that is to come next of a sender up to a letter: of those that went back none is. */
  nextOf(sender: string, { life, number }: Pick<Stamp, 'life' | 'number'>): number {
    let next = (this.#stamps.get(sender)?.number ?? 0) + 1
    while (next < number && this.refusals.has(`${sender} ${life} ${next}`)) next += 1
    return next
  }

  #sent(receiver: string, number: number): void {
    const before = this.sentTo.get(receiver) ?? 0
    this.#world.notes.check(
      'mail',
      number === before + 1,
      () => `${this.#where()}: ${number} to ${receiver} after ${before}`,
    )
    this.sentTo.set(receiver, number)
  }

  /** Each envoy that set out comes home once, unless its whole crew failed. */
  #seeAgent(type: 'agent.started' | 'agent.finished', address: string): void {
    if (!address.startsWith('envoy/')) return
    const { notes } = this.#world
    const fits = type === 'agent.started' ? !this.#away.has(address) : this.#away.delete(address)
    notes.check('delegated', fits, () => `${this.#where()}: ${type} ${address}`)
    if (type === 'agent.started') this.#away.add(address)
  }

  /** Tasks for other crews that never ended. */
  get away(): readonly string[] {
    return [...this.#away].filter((address) => this.state.actors.has(address))
  }

  /** Ends of processes, and owners that did not leave: over either an outcome may be lost. */
  #ends(): number {
    return this.#world.ends() + this.#overtaken
  }

  /** Three processes must have died since the work was asked for. */
  #checkGivenUp(work: string, since: number): void {
    const crashes = this.#world.crashesSince(this.#crashesAt[since] ?? 0)
    this.#world.notes.check('poison', crashes >= 3, () => `${this.#where()}: ${work} is given up after ${crashes}`)
  }

  #verified(effect: Effect, done: boolean | null): void {
    const { notes } = this.#world
    if (done === true) notes.reached('once call verified: done')
    else if (done === null) notes.reached('once call verified: unsure')
    else if (effect.body.type === 'tool.verify') notes.reached('once call verified: not done')
  }

  #after({ body }: Envelope, { decisions, cancelled }: Commit): void {
    const { notes } = this.#world
    const crew = this.crew
    if (crew !== null && crew.waiting.length > 0) notes.reached('delegation waited')
    if (
      body.type === 'model.failed' &&
      decisions.some((line) => /^(timer agent\/.* route|agent\/.*route\.next)/.test(line))
    )
      notes.reached('model call retried')
    for (const { id } of cancelled) this.#onceDoubted.delete(this.#callOf(id))
  }

  #callOf(effect: string): string {
    const body = this.asked.get(effect)?.body
    return body !== undefined && 'callId' in body ? body.callId : ''
  }

  #ask(effect: Effect): void {
    const { notes } = this.#world
    this.asked.set(effect.id, effect)
    const work = `${effect.from} ${effect.length}`
    if (!this.#firstAsked.has(work)) this.#firstAsked.set(work, this.state.sequence)
    const { body } = effect
    if (body.type !== 'model.call') return
    this.accounts.granted(body.keeper, body.grant, body.worst)
    const wanted = this.state.actors.get(effect.from)?.snapshot.context as
      | { data: { maxOutputTokens: number } }
      | undefined
    if ((wanted?.data.maxOutputTokens ?? 0) > body.maxOutputTokens) notes.reached('grant cut to what is left')
    if (body.depth > 1) notes.reached('delegation nested')
  }

  /** What a person was asked last by an actor, if anything. */
  askOf(executor: string): Effect | undefined {
    return this.#lastAsk(({ from }) => from === executor)
  }

  /** Whoever is answered may ask again in the same commit. */
  #lastAsk(isMeant: (effect: Effect) => boolean): Effect | undefined {
    const before = [...this.asked.values()].filter(({ id }) => Number(id.split('-')[0]) < this.state.sequence)
    return before.findLast((effect) => effect.body.type === 'human.ask' && isMeant(effect))
  }

  /** An answer came to the call that it was said to. */
  #checkAnswer(from: string, decision: string): void {
    const ask = this.askOf(from)
    const hasSaid = ask !== undefined && this.#world.hasSaid(this.shard, ask.id, decision)
    this.#world.notes.check('approved', hasSaid, () => `${this.#where()}: nobody has ${decision} the call of ${from}`)
  }

  /** The limit that is raised is one that a person has raised. */
  #checkRaise(account: string): void {
    const { notes } = this.#world
    notes.reached('budget raised')
    const ask = this.#lastAsk(({ body }) => isOfBudget(body, account))
    const isRaised = ask !== undefined && this.#world.hasSaid(this.shard, ask.id, 'approved')
    notes.check('raised', isRaised, () => `${this.#where()}: nobody has raised the budget of ${account}`)
  }

  #see(from: string, event: Seen): void {
    const { notes } = this.#world
    switch (event.type) {
      case 'model.replied':
        this.count.rounds += 1
        return
      case 'delegate.called':
        this.count.delegations += 1
        return
      case 'tool.refused':
        return notes.reached('call refused')
      case 'human.asked':
        return this.#world.asked(this.shard, event.ask, event.kind)
      case 'human.answered':
        this.#checkAnswer(from, event.decision)
        if (event.decision === 'approved') this.approved.add(from)
        if (event.edited) notes.reached('call approved with other arguments')
        return notes.reached(event.decision === 'approved' ? 'call approved' : 'call denied')
      case 'human.expired':
        return notes.reached('call not answered in time')
      case 'model.skipped':
        return notes.reached('model call passed a breaker over')
      case 'model.held':
        return notes.reached('model call refused by breakers')
      case 'breaker.changed':
        return event.to === 'cooled' ? notes.reached('model call cooled its deployment') : undefined
      case 'tool.retried':
        return notes.reached('tool call retried')
      case 'tool.finished':
        return event.status === 'unknown' ? this.#seeUnknown(event.callId) : undefined
      case 'budget.raised':
        return this.#checkRaise(event.account)
      case 'budget.exhausted':
        return notes.reached(event.account === 'run' ? 'budget refused' : 'child budget refused')
      case 'message.dead':
        return notes.check(
          'taken',
          wasTaken(this.state, event),
          () => `${this.#where()}: ${event.message} to ${event.to}: ${event.code}`,
        )
      case 'actor.failed':
        return notes.check('taken', mayFail(event), () => `${this.#where()}: ${from}: ${event.reason}`)
      case 'crew.redefined':
        return this.crew?.task != null ? notes.reached('redefined in a run') : undefined
      case 'run.paused':
        return event.run !== '' ? notes.reached('paused') : undefined
      case 'agent.started':
      case 'agent.finished':
        return this.#seeAgent(event.type, event.address)
      case 'run.started':
        this.#start()
        if (this.state.runs.get(event.run)?.conversation !== event.run) notes.reached('conversation kept over runs')
        return
      case 'run.finished':
        return this.#finish(event)
    }
  }

  #start(): void {
    const wallMs = this.crew?.data.wallMs ?? null
    this.#run = {
      at: this.#world.now(),
      wallMs,
      deadMs: this.#world.deadMs(),
      excused: 0,
      stalled: 0,
      late: this.#late,
    }
  }

  /** An outcome is unknown only when a process ended between the record of its start and now. */
  #seeUnknown(callId: string): void {
    const { notes } = this.#world
    const ends = this.#onceDoubted.get(callId)
    notes.check('unknown', ends !== undefined && ends < this.#ends(), () => `${this.#where()}: ${callId}`)
    notes.reached('once call unknown: told')
  }

  #finish(event: Extract<Seen, { type: 'run.finished' }>): void {
    const { notes } = this.#world
    const isRefused = event.code === 'DELEGATION_FAILED' && this.state.runs.get(event.run)?.replyTo !== ''
    if (isRefused && event.reason.endsWith('waits for it itself')) return notes.reached('delegation refused: a cycle')
    if (isRefused) return notes.reached('delegation refused: two ask each other')
    if (event.reason === 'cancelled before it started') return notes.reached('cancelled while waiting')
    // It asked before the budget that it shares was there.
    if (event.code === 'CREW_UNKNOWN' && this.#world.poolRefused()) return void (this.#run = null)
    const byWall = event.reason.includes('wallMs')
    const end: string = `end: ${event.code ?? 'answered'}${byWall ? ' by wallMs' : ''}`
    if ((branches as readonly string[]).includes(end)) notes.reached(end as Branch)
    else notes.violate('ends', `${this.#where()}: ${event.run} ended with ${event.code}: ${event.reason}`)
    const run = this.#run
    this.#run = null
    if (run === null || run.wallMs === null || this.#world.clockSteps) return
    const all = this.#world.now() - run.at
    const alive = all - (this.#world.deadMs() - run.deadMs)
    const { wallMs, excused, stalled, late } = run
    const times = `${alive} of ${all} alive, ${excused} excused, ${stalled} stalled`
    const detail = () => `${this.#where()}: ${event.run} ended after ${times}: ${wallMs} ms`
    notes.check('wall', all - excused - stalled <= wallMs + wallSlackMs, detail)
    notes.check('wall', !byWall || alive + late >= wallMs - wallSlackMs, detail)
  }

  #where(): string {
    return `${this.shard} ${this.state.sequence}`
  }
}

function isOfBudget(body: Effect['body'], account: string): boolean {
  if (body.type !== 'human.ask' || body.kind !== 'budget') return false
  return (JSON.parse(body.arguments ?? '{}') as { account: string }).account === account
}

/** Messages and events, as far as they are looked at. */
type Seen =
  | { type: 'model.replied'; calls: { arguments?: string }[] }
  | { type: 'effect.interrupted'; started: boolean }
  | { type: 'effect.crashed' }
  | { type: 'tool.verified'; done: boolean | null }
  | { type: 'delegate.called' | 'tool.refused' | 'tool.retried' | 'crew.redefined' }
  | { type: 'tool.finished'; status: string; callId: string }
  | { type: 'budget.exhausted'; account: string }
  | { type: 'message.dead'; letter: Generation; code: string; to: string; message: string }
  | { type: 'actor.failed'; code: string; reason: string }
  | { type: 'agent.started' | 'agent.finished'; address: string }
  | { type: 'run.paused' | 'run.started'; run: string }
  | { type: 'model.skipped' | 'model.held' | 'human.expired' }
  | { type: 'human.asked'; ask: string; kind: string }
  | { type: 'budget.raised'; account: string; mode: string }
  | { type: 'human.answered'; decision: string; edited: boolean }
  | { type: 'breaker.changed'; to: string }
  | { type: 'run.finished'; run: string; code: string | null; reason: string; spent: Amounts }
