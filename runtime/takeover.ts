/**
 * The takeover: how a shard comes from its last owner to this one.
 *
 * Owns: making it this process's own, counting crashes, what becomes of effects and timers that were left open.
 * Does not own: rebuilding the state (`recovery.ts`), who is to own it (`ownership.ts`), commits (`shard.ts`).
 *
 * - TA1 Where there are other workers, nothing is done for a shard before its `shard.taken` is durable.
 * - TA2 An effect that a living executor works on is left to it; one whose executor is gone is interrupted once.
 * - TA3 What is tried again after an unclean end counts a crash before it is; at the third it is given up, also by a later
 *   owner when the one that counted it left before it could. Among several workers three processes must have died over
 *   it: one that lost its lease and lives has not, also when it has no other one yet, and none dies twice.
 * - TA4 Whether a call was done is not asked before an executor that is only thought to be gone cannot begin it any more, and
 *   owners that follow each other do not wait anew.
 * - TA5 A tool call that was given to another process is asked after from time to time, and is interrupted when nobody has
 *   it, and a while behind its time in any case: a message that was lost holds up no run.
 * - TA6 A shard that is another's by what its journal says when it is to be taken is left alone: its owner is not asked for it.
 */
import type { DecideContext } from './commit.js'
import { type Ports, startWithinMs } from './dispatcher.js'
import type { Draft } from './envelope.js'
import type { Journal } from './journal.js'
import { elsewhere, type Ownership } from './ownership.js'
import { type Recovered, recover } from './recovery.js'
import type { Message } from './scope.js'
import { type Effect, isPortWork, type PortEffect, type ShardState, type Timer, versionsOf } from './state.js'

/** Crashes over one piece of work before it is given up. */
export const maxCrashes = 3

/** When an executor that did not answer is asked again. */
const askAgainMs = 250
/** When one that works on something is asked whether it still does. */
export const lookAgainMs = 10_000
/** How long after its time a tool call's outcome may still be on its way. */
export const lateMs = 5_000
/** How far the clocks of two owners may be apart. */
const clockMs = 1_000
/** How long a process that has no lease may take to have one again: what it lost its lease over may have held it up, too. */
export const returnMs = 5_000

/** What a takeover needs of its process. */
interface TakingHost {
  readonly journal: Journal
  readonly ports: Ports
  readonly context: DecideContext
  readonly ownership: Ownership | null
  openedAt(): number
}

/** What a takeover needs of its shard. */
interface TakenShard {
  readonly id: string
  state(): ShardState
  /** Takes a message of the shard's own; resolves when it is durable. */
  own(body: Message): Promise<void>
  post(draft: Draft): Promise<unknown>
  /** It is this process's now, durably: letters that were not handed over go out before new ones do. */
  taken(): void
  snapshot(): Promise<void>
  dispatch(effects: readonly Effect[]): void
  /** False when it was stopped or left. */
  isActive(): boolean
  /** Whether a port of this process works on an effect. */
  worksOn(effect: string): boolean
}

/** How a shard came to this process. */
interface Taking {
  /**
   * The process that may have died over it; empty where one process owns everything. Null when its last owner left it, or was
   * this process.
   */
  readonly suspect: string | null
  /** How long nobody had it, as far as it is still to be journalled. */
  readonly downMs: number
}

/**
 * The state of a shard as it is to be taken: whoever lives and has it is asked to leave it first.
 * @throws TroupeError `SHARD_ELSEWHERE` when it is of another version by now than was known here, and so another's.
 */
export async function recoverOwned(id: string, host: TakingHost, acceptUpgrade: boolean): Promise<Recovered> {
  const { journal, ownership, context } = host
  if (ownership === null) return recover(journal, id, context, acceptUpgrade)
  for (let asked = ''; ; ) {
    const { removed, crew = '' } = await journal.refresh(id)
    if (crew !== '' && !removed && !ownership.owns(id, crew)) throw elsewhere(id)
    const recovered = await recover(journal, id, context, acceptUpgrade)
    const { owner } = recovered.state
    // While one was waited for, another may have taken it: that one is asked too.
    if (owner === '' || owner === asked || owner === ownership.owner || !ownership.lives(owner)) return recovered
    await ownership.release(id, owner)
    asked = owner
  }
}

/** Ids of effects by who works on them. */
export function byExecutor(effects: readonly Effect[]): Map<string, string[]> {
  const found = new Map<string, string[]>()
  for (const { id, executor } of effects) found.set(executor, [...(found.get(executor) ?? []), id])
  return found
}

/** Takes one shard over. */
export class Takeover {
  readonly #host: TakingHost
  readonly #shard: TakenShard
  /** Ends of processes over what is open: a row for each piece of work and each process that died over it. */
  #crashes: Readonly<Record<string, number>> = {}

  constructor(host: TakingHost, shard: TakenShard) {
    this.#host = host
    this.#shard = shard
  }

  /** Makes the shard this process's own and accounts for what its last owner left open. */
  async settle({ diverged }: Recovered, unclean: boolean): Promise<void> {
    const shard = this.#shard
    const taking = await this.#take(unclean)
    shard.taken()
    // What is asked for from here on is this process's own.
    const left = this.#portWork().map(({ id }) => id)
    // Among several workers a blob that no record names yet may be another's: they go with the shard.
    if (this.#host.ownership === null) await this.#dropOrphans()
    if (diverged !== null) {
      const machines = versionsOf(this.#host.context.machines, shard.state())
      await shard.own({ type: 'shard.upgraded', until: shard.state().sequence, difference: diverged, machines })
      await shard.snapshot()
    }
    const active = [...shard.state().timers.values()].some((timer) => timer.id.startsWith('active:'))
    if (active && taking.downMs > 0) await shard.own({ type: 'shard.resumed', downMs: taking.downMs })
    await this.#countCrashes(taking)
    for (const [key, timer] of [...shard.state().timers]) {
      if (this.#isGivenUp(timerWork(key, timer), taking.suspect)) await shard.own({ type: 'timer.crashed', timer: key })
    }
    await this.#settleEffects(left)
  }

  /** What is open and some process has, or will. */
  #portWork(): PortEffect[] {
    return [...this.#shard.state().effects.values()].filter(isPortWork)
  }

  /** Makes the shard this process's own, durably where there are others. Says how its last owner went. */
  async #take(unclean: boolean): Promise<Taking> {
    const { ownership, ports } = this.#host
    const { owner: previous, at } = this.#shard.state()
    if (ownership === null) return { suspect: unclean ? '' : null, downMs: this.#host.openedAt() - at }
    const { owner } = ownership
    if (previous === owner) return { suspect: null, downMs: 0 }
    const goneAt = previous === '' ? at : Math.max(at, ownership.lastSeen(previous) ?? at)
    const downMs = at === 0 ? 0 : Math.max(0, ports.clock.now() - goneAt)
    await this.#shard.own({ type: 'shard.taken', owner, downMs })
    return { suspect: previous === '' ? null : ownership.crashOf(previous), downMs: 0 }
  }

  async #settleEffects(left: readonly string[]): Promise<void> {
    const shard = this.#shard
    const open = left.map((id) => shard.state().effects.get(id)).filter((effect) => effect !== undefined)
    const parked = open.filter((effect) => effect.parked)
    const rest = open.filter((effect) => !effect.parked)
    const { ownership } = this.#host
    // Embedded only the process that is gone could have them.
    if (ownership === null) await this.#interruptAll(rest)
    else for (const [executor, ids] of byExecutor(rest)) void this.#settleWith(ownership, executor, ids)
    if (parked.length === 0) return
    await shard.own({ type: 'effects.parked', effects: [] })
    shard.dispatch(parked.map(({ id }) => shard.state().effects.get(id)).filter((effect) => effect !== undefined))
  }

  /**
   * Leaves to an executor what it works on, for as long as it lives and says so; the rest is interrupted. It is asked again
   * in a while: what it meant to begin when it was asked it may have had to leave to others since. Never rejects.
   */
  async #settleWith(ownership: Ownership, executor: string, ids: readonly string[]): Promise<void> {
    for (let open = ids; open.length > 0; open = open.filter((id) => this.#shard.state().effects.has(id))) {
      const isGone = !ownership.isRunning(executor)
      const kept = isGone ? [] : await ownership.working(executor, this.#shard.id, open)
      if (!this.#shard.isActive()) return
      const late = open.filter((id) => kept?.includes(id) === true && this.#isLate(id))
      if (late.length > 0) ownership.cancel(executor, this.#shard.id, late)
      const lost = kept === null ? [] : open.filter((id) => !kept.includes(id) || late.includes(id))
      await this.#giveUp(lost, ownership, isGone)
      await this.#wait(kept === null || isGone ? askAgainMs : lookAgainMs)
    }
  }

  /** Whether a tool call should long have ended, wherever it runs. */
  #isLate(id: string): boolean {
    const { startBy = null, body } = this.#shard.state().effects.get(id) ?? {}
    if (startBy === null || body === undefined || !('timeoutMs' in body)) return false
    return this.#host.ports.clock.now() > startBy + body.timeoutMs + lateMs
  }

  /** Looks after an effect that was given to another process. Never rejects. */
  async follow(id: string): Promise<void> {
    await this.#wait(lookAgainMs)
    const effect = this.#shard.state().effects.get(id)
    const { ownership } = this.#host
    if (ownership !== null && effect !== undefined && this.#shard.isActive())
      await this.#settleWith(ownership, effect.executor, [id])
  }

  #wait(delayMs: number): Promise<void> {
    return new Promise((resolve) => this.#host.ports.clock.after(delayMs, resolve))
  }

  /** Interrupts what nobody works on. @param isGone the executor is gone, unless it is back by now. Never rejects. */
  async #giveUp(ids: readonly string[], ownership: Ownership, isGone: boolean): Promise<void> {
    if (ids.length === 0) return
    await ownership.mailTaken(this.#shard.id)
    const effects = ids
      .map((id) => this.#shard.state().effects.get(id))
      .filter((effect) => effect !== undefined)
      .filter(({ executor }) => !isGone || !ownership.isRunning(executor))
    while (!(await this.#countLost(effects, ownership))) {
      await this.#wait(askAgainMs)
      if (!this.#shard.isActive()) return
    }
    // What is given up is over for good: whoever only seems dead may come back before that.
    if (effects.some((effect) => this.#isGivenUp(workOf(effect)))) {
      await this.#wait(returnMs)
      if (!this.#shard.isActive()) return
    }
    await this.#interruptAll(effects).catch(() => undefined)
  }

  /** Counts the crashes of executors that are gone; false when that cannot be stored now. */
  async #countLost(effects: readonly Effect[], ownership: Ownership): Promise<boolean> {
    try {
      for (const [executor, ids] of byExecutor(effects)) {
        const process = ownership.isRunning(executor) ? null : ownership.crashOf(executor)
        const theirs = effects.filter(({ id }) => ids.includes(id))
        if (process !== null) await this.#count(theirs.map(workOf), process)
      }
      return true
    } catch {
      return false
    }
  }

  async #interruptAll(effects: readonly Effect[]): Promise<void> {
    await Promise.all(
      effects.map((effect) => {
        return this.#interrupt(effect, this.#isGivenUp(workOf(effect)))
      }),
    )
  }

  /** Interrupts what an executor that is gone left open. */
  interruptLost(): void {
    const { ownership } = this.#host
    if (ownership === null) return
    const lost = this.#portWork().filter(
      ({ id, executor, parked }) => !parked && !this.#shard.worksOn(id) && !ownership.isRunning(executor),
    )
    for (const [executor, ids] of byExecutor(lost)) void this.#settleWith(ownership, executor, ids)
  }

  async #interrupt(effect: Effect, crashed: boolean): Promise<void> {
    if (this.#host.ownership !== null && !crashed) await this.#outwait(effect)
    if (!this.#shard.state().effects.has(effect.id)) return
    const body = crashed ? { type: 'effect.crashed' } : { type: 'effect.interrupted', started: effect.startBy !== null }
    await this.#shard.post({ from: portOf(effect.body.type), to: effect.from, cause: effect.id, body, values: [] })
  }

  /**
   * An executor that is only thought to be gone may still begin a call that it has announced, and take its time. That counts
   * from when the shard was first taken from it: announced it was before that.
   */
  async #outwait(effect: Effect): Promise<void> {
    const callMs = this.#outwaitMs(effect)
    if (callMs === null) return
    const allMs = startWithinMs + callMs
    const now = this.#host.ports.clock.now()
    const restMs = effect.lostAt === undefined ? allMs : effect.lostAt + allMs + clockMs - now
    await this.#wait(Math.min(allMs, Math.max(0, restMs)))
  }

  /** How long a call may take that is only asked about when it is over; null for anything else. */
  #outwaitMs({ from, body, startBy }: Effect): number | null {
    const asker = this.#shard.state().actors.get(from)?.snapshot.context as { onUnknown?: string } | undefined
    const isAsked = body.type === 'tool.call' && body.effect === 'once' && asker?.onUnknown === 'verify'
    return startBy !== null && isAsked ? body.timeoutMs : null
  }

  /** Blobs of a crash that no record names. */
  async #dropOrphans(): Promise<void> {
    const { journal } = this.#host
    const { id } = this.#shard
    const { sequence } = this.#shard.state()
    const orphans = (await journal.listBlobs(id)).filter((blob) => blob.sequence > sequence)
    if (orphans.length === 0) return
    await journal.deleteBlobs(
      id,
      orphans.map((blob) => blob.hash),
    )
  }

  /**
   * Reads what was counted over what is open. After an unclean end what is about to be tried again counts one more: with one
   * process everything, with several the timers that were due; what an executor had counts when it is given up.
   */
  async #countCrashes({ suspect }: Taking): Promise<void> {
    const { journal, ports, ownership } = this.#host
    const { timers } = this.#shard.state()
    const now = ports.clock.now()
    const due = [...timers].filter(([, timer]) => timer.dueAt <= now).map(([key, timer]) => timerWork(key, timer))
    const work = [...new Set(this.#portWork().map(workOf)), ...due]
    if (work.length === 0) return
    this.#crashes = await journal.getAttempts(this.#shard.id)
    if (suspect !== null) await this.#count(ownership === null ? work : due, suspect)
  }

  /**
   * Counts the end of a process over pieces of work, durably; one among several dies once. What nobody will ask for any more
   * is forgotten: who waits for a person, or for money, may ask for the same again.
   */
  async #count(work: readonly string[], process: string): Promise<void> {
    const { journal, ownership } = this.#host
    const rows = work
      .map((each) => crashRow(each, process))
      .filter((row) => ownership === null || !(row in this.#crashes))
    if (rows.length === 0) return
    const { timers, actors } = this.#shard.state()
    const open = new Set([...this.#portWork().map(workOf), ...[...timers].map(([key, timer]) => timerWork(key, timer))])
    const counted = rows.map((row) => [row, (this.#crashes[row] ?? 0) + 1] as const)
    const kept = Object.entries(this.#crashes).filter(([row]) => {
      const { work } = partsOf(row)
      return open.has(work) || actors.has(askerOf(work))
    })
    const crashes = Object.fromEntries([...kept, ...counted])
    await journal.putAttempts(this.#shard.id, crashes)
    this.#crashes = crashes
  }

  /** Whether too many processes died over it. One that lost its lease and lives has not. @param suspect one that does not answer */
  #isGivenUp(work: string, suspect: string | null = null): boolean {
    const { ownership } = this.#host
    const isDead = (process: string): boolean =>
      ownership === null ||
      process === suspect ||
      (ownership.crashOf(process) !== null && !ownership.isRunning(process))
    let times = 0
    for (const [row, counted] of Object.entries(this.#crashes)) {
      const over = partsOf(row)
      if (over.work === work && isDead(over.process)) times += counted
    }
    return times >= maxCrashes
  }
}

/** Name of the row that counts how often a process died over a piece of work. */
function crashRow(work: string, process: string): string {
  return `${work} by ${process}`
}

function partsOf(row: string): { readonly work: string; readonly process: string } {
  const at = row.lastIndexOf(' by ')
  return { work: row.slice(0, at), process: row.slice(at + 4) }
}

/** Name of a piece of work that stays the same when it is asked for again: actor and length of its conversation. */
function workOf({ from, length, body }: Effect): string {
  return `effect ${from} ${length}${body.type === 'round.prepare' ? ' round' : ''}`
}

/** The actor that asked for it; none for a timer. */
function askerOf(work: string): string {
  return work.startsWith('effect ') ? work.split(' ')[1]! : ''
}

/** Name of a timer's delivery: one that is planned again under the same id is other work. */
function timerWork(key: string, timer: Timer): string {
  return `timer ${key}|${timer.generation}`
}

function portOf(type: string): string {
  if (type === 'promise.call') return 'port/promise'
  if (type === 'round.prepare') return 'port/round'
  return type === 'model.call' ? 'port/model' : 'port/tool'
}
