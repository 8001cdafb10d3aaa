/**
 * The worker: owns the shards of one journal in this process.
 *
 * Owns: which shards are active, waking them for timers and open work, unloading quiet ones, their end.
 * Does not own: a shard's inside (`shard.ts`), timers (`wakes.ts`), what runs for shards that were left (`departed.ts`), what
 * users see (`runtime.ts`).
 *
 * - K1 A shard is active at most once; whoever asks while it is being rebuilt waits for the same one.
 * - K2 Whatever is due or open when the journal is opened is taken up without anybody asking for it.
 * - K3 A shard that cannot be rebuilt says why to whoever asks; the others are not touched.
 * - K4 Quiet shards leave memory; their next timer wakes them.
 * - K5 Where there are other workers: a shard is active only while this one is to own it; one that it is not to own any
 *   more is left in order, and one that it is to own from now on is taken up when it has something to do.
 * - K6 A damaged shard has an owner like any other, by the crew that its last message tells: only that one gives up what
 *   was lost, while nobody here has the shard.
 * - K7 A shard that went to others and came back unseen is taken anew before it takes an outcome of what it does not know, or
 *   tells anybody that it does not know a run or an ask, and whenever this worker is told that it is its own.
 */
import type { Commit, DecideContext } from './commit.js'
import { type CrewVersion, nameIn } from './crew-version.js'
import { Departed } from './departed.js'
import type { LiveCrew, Ports } from './dispatcher.js'
import { type ErrorCode, isTroupeError, TroupeError, toTroupeError } from './errors.js'
import { EventHub, isEnd } from './events.js'
import type { Draft } from './envelope.js'
import { isDamage, type Journal, type OpenReport, type ShardHead } from './journal.js'
import type { Log } from './log.js'
import type { Logic } from './logic.js'
import { isForeign } from './mail.js'
import { elsewhere, type Ownership, type Whose } from './ownership.js'
import { acceptLoss, damageOf, findLoss, type RepairReport, toReport } from './repair.js'
import { Retention } from './retention.js'
import type { ActivateOptions, ShardHost } from './shard-host.js'
import { Shard } from './shard.js'
import { isAtRest, type ShardState } from './state.js'
import { Wakes } from './wakes.js'

/** What a worker is made of. */
export interface WorkerOptions {
  readonly journal: Journal
  readonly ports: Ports
  readonly context: DecideContext
  readonly log: Log
  /** Name of this process in records. */
  readonly executor: string
  /** Every commit is decided twice and compared. @default false */
  readonly checks?: boolean
  /** A quiet shard is unloaded after so long. @default 30_000 */
  readonly idleMs?: number
  /** Shards being rebuilt at once. @default 32 */
  readonly rebuilds?: number
  /** Who owns what, when several workers share the journal. @default this one owns everything */
  readonly ownership?: Ownership
  /** Told of every commit, with all messages in it, when it is durable. Must neither wait nor throw. @default nobody */
  readonly trace?: (shard: string, commit: Commit) => void
  /** A crew at rest is removed so long after its last commit, in milliseconds. @default never */
  readonly retainMs?: number
  /** The code of a crew by its name: a shard that is woken by its work has nobody who spawns it. */
  readonly crewOf?: (name: string) => LiveCrew | undefined
}

/** When a shard that could not be taken is tried again. */
const againMs = 1_000
/** When the journal is looked through once more after workers came or went. */
const secondLookMs = 10_000

/** Owner of shards. */
export class Worker {
  readonly hub = new EventHub()
  readonly journal: Journal
  /** Told of the shards that are this worker's and not active, whenever workers came or went. Must neither wait nor throw. */
  onLook: (heads: readonly ShardHead[]) => void = () => undefined
  readonly #options: WorkerOptions
  readonly #host: ShardHost
  readonly #active = new Map<string, Shard>()
  readonly #activating = new Map<string, Promise<Shard>>()
  readonly #wakes: Wakes
  readonly #departed: Departed
  readonly #unloading = new Map<string, Promise<void>>()
  readonly #pinned = new Map<string, number>()
  readonly #ends = new Map<string, Set<() => void>>()
  #unclean = false
  #openedAt = 0
  /** Shards whose crash was counted since the journal was opened. */
  readonly #counted = new Set<string>()
  #sweep: (() => void) | null = null
  readonly #retention: Retention | null
  /** What new shards are to run, until they are defined. */
  readonly #intended = new Map<string, CrewVersion>()
  #changing: Promise<void> | null = null
  #changed = false
  /** Something may be this worker's that was not. */
  #gains = false
  #secondLook: (() => void) | null = null
  #closing = false
  #closed = false

  constructor(options: WorkerOptions) {
    this.#options = options
    this.journal = options.journal
    this.#wakes = new Wakes(options.ports.clock, (shard) => this.#wakeDue(shard))
    this.#departed = new Departed(options.ports.clock)
    this.#host = {
      ...{ journal: options.journal, ports: options.ports, executor: options.executor },
      context: options.trace === undefined ? options.context : { ...options.context, trace: true },
      ownership: options.ownership ?? null,
      checks: options.checks === true,
      openedAt: () => this.#openedAt,
      schedule: (shard, dueAt) => this.#wakes.plan(shard, dueAt),
      publish: (shard, events) => {
        this.hub.publish(shard, events)
        if (events.some(isEnd)) this.#tellEnds(shard)
      },
      trace: (shard, commit) => options.trace?.(shard, commit),
      show: (shard, event) => this.hub.show(shard, event),
      watched: (shard) => this.hub.watched(shard),
      stopped: (shard, reason) => {
        if (reason.code === 'SHARD_FENCED') this.#depart(shard)
        else options.log.error('shard stopped', { shard, code: reason.code, reason: reason.message })
        this.#tellEnds(shard)
        this.hub.wake(shard)
      },
      mail: (receiver, draft) => options.ownership?.send(receiver, draft) ?? this.receive(receiver, draft, true),
      sent: (shard, effect) => this.#departed.sent(shard, effect),
    }
    if (options.ownership !== undefined) options.ownership.onChange = (shard, gains) => this.#changeOf(shard, gains)
    const { retainMs, log } = options
    const { clock } = options.ports
    const mayGo = (id: string, since: number): Promise<boolean> => this.#mayGo(id, since)
    const retaining = { journal: this.journal, clock, log, mayGo, remove: (id: string) => this.remove(id) }
    this.#retention = retainMs === undefined ? null : new Retention(retaining, retainMs)
  }

  /** Opens the journal and takes up what is due or open. Resolves when the journal is open; the work goes on. */
  async open(): Promise<OpenReport> {
    const report = await this.journal.open()
    this.#unclean = report.unclean
    for (const damage of report.damaged) this.#options.log.error('shard damaged', { ...damage })
    const now = this.#options.ports.clock.now()
    this.#openedAt = now
    void this.#takeUp(report.pending)
    this.#planSweep()
    this.#retention?.start()
    return report
  }

  /** Rebuilds those of the shards that have something to do, and plans when the others will. */
  #takeUp(heads: readonly ShardHead[]): Promise<void> {
    const open: string[] = []
    for (const head of heads) {
      if (!this.#owns(head.shard, head.crew ?? '')) continue
      this.#dropStale(head)
      if (this.#hasWork(head)) open.push(head.shard)
      else if (!this.#active.has(head.shard)) this.#wakes.plan(head.shard, head.pending.nextDueAt)
    }
    return this.#wakeAll(open)
  }

  /** Whether something of a shard is open or due now. */
  #hasWork({ pending }: ShardHead): boolean {
    const { openEffects, outbox, nextDueAt } = pending
    return openEffects > 0 || outbox > 0 || (nextDueAt ?? Number.POSITIVE_INFINITY) <= this.#options.ports.clock.now()
  }

  /** Whether this worker is to own a shard. @param crew what a new shard is to run */
  async owns(id: string, crew: CrewVersion = ''): Promise<boolean> {
    return (await this.whose(id, crew)) === 'own'
  }

  /** Whose a shard is. @param crew what a new shard is to run */
  async whose(id: string, crew: CrewVersion = ''): Promise<Whose> {
    const active = this.#active.get(id)
    const version = active === undefined ? await this.#crewOf(id, crew) : this.#versionOf(active)
    if (this.#owns(id, version)) return 'own'
    return this.#options.ownership?.ownerOf(id, version) == null ? 'nobody' : 'other'
  }

  /** The last record of a shard. What is remembered of one that is not active here may have gone on elsewhere. */
  head(id: string): Promise<ShardHead> {
    const isOurs = this.#options.ownership === undefined || this.#active.has(id)
    return isOurs ? this.journal.head(id) : this.journal.refresh(id)
  }

  /** The crew of a shard that is not active here. @param intended what it is to run when it is new */
  async #crewOf(id: string, intended: CrewVersion): Promise<CrewVersion> {
    try {
      let head = await this.journal.head(id)
      // What is not known here may be somewhere else by now, or more: a shard is taken before it says what it runs.
      if (head.sequence === 0 || (head.crew ?? '') === '') head = await this.journal.refresh(id)
      return head.removed || (head.crew ?? '') === '' ? intended : head.crew!
    } catch (error) {
      if (!isDamage(error)) throw error
      // Somebody has to say so, and to repair it.
      const { crew } = error.details
      return typeof crew === 'string' && crew !== '' ? crew : intended
    }
  }

  #versionOf(shard: Shard): CrewVersion {
    return shard.crewVersion === '' ? (this.#intended.get(shard.id) ?? '') : shard.crewVersion
  }

  #owns(shard: string, crew: CrewVersion): boolean {
    return this.#options.ownership?.owns(shard, crew) ?? true
  }

  /** Tells it of a machine of a user's: shards that run it can be rebuilt. One of the same name takes the place of the last. */
  register(logics: ReadonlyMap<string, Logic>): void {
    Object.assign(this.#options.context.machines, Object.fromEntries(logics))
  }

  /** The active shards. */
  get active(): ReadonlyMap<string, Shard> {
    return this.#active
  }

  /** Nothing more happens here: its shards are closed. */
  get closed(): boolean {
    return this.#closed
  }

  /**
   * The shard, rebuilt when it is not active.
   * @throws TroupeError as `Shard.activate`.
   */
  shard(id: string, options: { readonly acceptUpgrade?: boolean; readonly crew?: CrewVersion } = {}): Promise<Shard> {
    if (this.#closing) return Promise.reject(new TroupeError('RUNTIME_CLOSED', 'the runtime is closed'))
    const active = this.#active.get(id)
    if (active !== undefined && !this.#owns(id, this.#versionOf(active))) return Promise.reject(elsewhere(id))
    if (active !== undefined) {
      active.lastUsed = this.#options.ports.clock.monotonic()
      return Promise.resolve(active)
    }
    const known = this.#activating.get(id)
    if (known !== undefined && options.acceptUpgrade !== true) return known
    // Whoever woke the shard for its open work did not accept an upgrade: its refusal is not this caller's.
    const before = known?.catch(() => null) ?? Promise.resolve(null)
    const activating = before
      .then((shard) => shard ?? this.#activate(id, options.acceptUpgrade === true, options.crew ?? ''))
      .finally(() => {
        if (this.#activating.get(id) === activating) this.#activating.delete(id)
      })
    this.#activating.set(id, activating)
    return activating
  }

  /**
   * Takes what was sent to a shard: a letter of another one, or an outcome. Resolves when that is durable.
   * @param first no earlier letter can still come
   * @throws TroupeError `CREW_UNKNOWN` when there is no such crew, and as `Shard.receive` and `Shard.post`.
   */
  async receive(id: string, draft: Draft, first: boolean): Promise<void> {
    if (!isForeign(draft.from)) return this.takeOutcome(id, async (shard) => void (await shard.post(draft)))
    if (!this.#active.has(id)) {
      let head = await this.journal.head(id)
      if (head.sequence === 0) head = await this.journal.refresh(id)
      if (head.sequence === 0 || head.removed) throw new TroupeError('CREW_UNKNOWN', `there is no crew ${id}`)
    }
    await (await this.shard(id)).receive(draft, first)
  }

  /**
   * Has a shard take an outcome. One that is behind its journal may refuse it as one that nobody asked for: then it is taken
   * anew, and asked again.
   * @throws TroupeError as `shard`, and what `take` throws.
   */
  async takeOutcome(id: string, take: (shard: Shard) => Promise<void>): Promise<void> {
    const shard = await this.shard(id)
    try {
      await take(shard)
    } catch (error) {
      if (!isTroupeError(error) || error.code !== 'OUTCOME_FORGED') throw error
      const current = await this.knowing(id, () => false)
      if (current === shard) throw error
      await take(current)
    }
  }

  /**
   * A shard that knows something. One that does not is taken anew when others have written to it since it was taken here.
   * @throws TroupeError as `shard`.
   */
  async knowing(id: string, knows: (state: ShardState) => boolean): Promise<Shard> {
    const shard = await this.shard(id)
    if (knows(shard.state)) return shard
    this.#dropStale(await this.journal.refresh(id))
    return this.shard(id)
  }

  /** Lets go of a shard to which others have written since it was taken here. */
  #dropStale({ shard, sequence }: ShardHead): void {
    const active = this.#active.get(shard)
    if (active?.isBehind(sequence) === true) active.abandon()
  }

  /** Calls back whenever a run of the shard ended or the shard stopped; at once the first time. Returns an unsubscribe. */
  onEnd(id: string, callback: () => void): () => void {
    const callbacks = this.#ends.get(id) ?? new Set()
    callbacks.add(callback)
    this.#ends.set(id, callbacks)
    queueMicrotask(callback)
    return () => {
      callbacks.delete(callback)
      if (callbacks.size === 0) this.#ends.delete(id)
    }
  }

  #tellEnds(id: string): void {
    for (const callback of [...(this.#ends.get(id) ?? [])]) callback()
  }

  /** Keeps a shard in memory until the returned function is called. */
  pin(id: string): () => void {
    this.#pinned.set(id, (this.#pinned.get(id) ?? 0) + 1)
    let held = true
    return () => {
      if (!held) return
      held = false
      const left = (this.#pinned.get(id) ?? 1) - 1
      if (left === 0) this.#pinned.delete(id)
      else this.#pinned.set(id, left)
    }
  }

  async #activate(id: string, acceptUpgrade: boolean, crew: CrewVersion): Promise<Shard> {
    await this.#unloading.get(id)
    if (this.#options.ownership !== undefined) {
      if (!this.#owns(id, await this.#crewOf(id, crew))) throw elsewhere(id)
      this.#intended.set(id, crew)
    }
    const options: ActivateOptions = { unclean: this.#unclean && !this.#counted.has(id), acceptUpgrade }
    const shard = await Shard.activate(id, this.#host, options)
    this.#counted.add(id)
    // Somebody else may have taken it while it was rebuilt.
    if (shard.stopped?.code === 'SHARD_FENCED') throw elsewhere(id)
    this.#active.set(id, shard)
    const code = this.#options.crewOf?.(nameIn(shard.crewVersion))
    if (code !== undefined) await shard.define(code)
    // It may be another's by now, and the change of owners passed by a shard that was not there yet.
    if (!this.#owns(id, this.#versionOf(shard))) void shard.leave()
    if (shard.crewVersion !== '') this.#intended.delete(id)
    return shard
  }

  /** Rebuilds shards, some at a time. */
  async #wakeAll(ids: readonly string[]): Promise<void> {
    const queue = [...ids]
    const next = async (): Promise<void> => {
      for (let id = queue.shift(); id !== undefined && !this.#closing; id = queue.shift()) await this.#wake(id)
    }
    await Promise.all(Array.from({ length: this.#options.rebuilds ?? 32 }, next))
  }

  async #wake(id: string): Promise<void> {
    try {
      const shard = await this.shard(id)
      shard.fireDue()
    } catch (error) {
      const { code, message } = toTroupeError(error, 'STORE_FAILED')
      if (this.#options.ownership !== undefined && isPassing(code)) return this.#tryAgain(id)
      this.#options.log.error('shard cannot go on', { shard: id, code, reason: message })
    }
  }

  /** The owner may not have known yet that it is none any more, or the server may have been away. */
  #tryAgain(id: string): void {
    this.#options.ports.clock.after(againMs, () => {
      if (!this.#closing && !this.#active.has(id)) void this.#wakeOwned(id)
    })
  }

  /** What is not this worker's any more is left alone: a change of owners is told. */
  async #wakeOwned(id: string): Promise<void> {
    try {
      if (this.#owns(id, (await this.journal.head(id)).crew ?? '')) await this.#wake(id)
    } catch {
      this.#tryAgain(id)
    }
  }

  #wakeDue(shard: string): void {
    const active = this.#active.get(shard)
    if (active !== undefined) active.fireDue()
    else void this.#wake(shard)
  }

  #planSweep(): void {
    const idleMs = this.#options.idleMs ?? 30_000
    this.#sweep = this.#options.ports.clock.after(idleMs / 2, () => {
      const limit = this.#options.ports.clock.monotonic() - idleMs
      for (const [id, shard] of this.#active) {
        const idle = shard.lastUsed < limit && !shard.busy && !this.#pinned.has(id) && !this.hub.watched(id)
        if (idle && shard.stopped === null) this.#unload(id, shard)
      }
      this.#planSweep()
    })
  }

  async #mayGo(id: string, since: number): Promise<boolean> {
    if (this.#pinned.has(id) || this.hub.watched(id) || !(await this.owns(id))) return false
    const shard = await this.shard(id)
    return !shard.busy && isAtRest(shard.state, since) && !this.#pinned.has(id)
  }

  #unload(id: string, shard: Shard): void {
    this.#active.delete(id)
    // Whoever asks meanwhile waits until it has written what it had.
    const unloading = shard
      .unload()
      .catch(() => undefined)
      .then(() => void this.#unloading.delete(id))
    this.#unloading.set(id, unloading)
  }

  // ------------------------------------------------------------------------------------------ other workers

  /**
   * Leaves what others are to own, takes up what this one is to own. One change at a time, the last one counts.
   * @param gains whether there may be something to take up
   * @param again whether to look a second time: who had them may have gone on for a moment, and what it did last is seen then
   */
  #change(gains = true, again = true): void {
    this.#changed = true
    if (gains) this.#gains = true
    if (gains) this.#secondLook?.()
    if (gains && again)
      this.#secondLook = this.#options.ports.clock.after(secondLookMs, () => this.#change(true, false))
    this.#changing ??= this.#settle().finally(() => {
      this.#changing = null
    })
  }

  /** @param shard the only one that may have another owner now; undefined: any */
  #changeOf(shard?: string, gains = true): void {
    if (shard === undefined) return this.#change(gains)
    const active = this.#active.get(shard)
    if (active === undefined || this.#owns(shard, this.#versionOf(active))) void this.#lookAfter(shard)
    else void this.leave(shard)
  }

  /** Takes a shard up when it is this worker's and has something to do. Never rejects. */
  async #lookAfter(id: string): Promise<void> {
    try {
      const head = await this.journal.refresh(id)
      if (isPending(head)) await this.#takeUp([head])
    } catch {
      this.#options.ports.clock.after(againMs, () => {
        if (!this.#closing) this.#changeOf(id)
      })
    }
  }

  async #settle(): Promise<void> {
    while (this.#changed) {
      this.#changed = false
      const { ownership } = this.#options
      const { owner } = ownership!
      const holds = ownership!.lives(owner)
      // What was taken under a lease that is lost may be somebody else's by now.
      for (const shard of [...this.#active.values()]) if (!holds || shard.owner !== owner) shard.abandon()
      const foreign = [...this.#active].filter(([id, shard]) => !this.#owns(id, this.#versionOf(shard)))
      await Promise.all(foreign.map(([id]) => this.leave(id)))
      if (this.#closing) return
      for (const shard of this.#active.values()) shard.interruptLost()
      if (!this.#gains) continue
      this.#gains = false
      await this.#look()
    }
  }

  /** Takes up what has something to do and is this one's. Never rejects. */
  async #look(): Promise<void> {
    try {
      const heads: ShardHead[] = []
      for await (const head of this.journal.heads()) heads.push(head)
      // Takeovers go before what was told of others' last commits.
      void this.#takeUp(heads.filter(isPending)).then(() => {
        if (!this.#closing)
          this.onLook(heads.filter((head) => !this.#active.has(head.shard) && this.#owns(head.shard, head.crew ?? '')))
      })
    } catch (error) {
      const reason = toTroupeError(error, 'STORE_FAILED').message
      this.#options.log.warn('the journal could not be looked through', { reason })
      this.#options.ports.clock.after(againMs, () => this.#change())
    }
  }

  /** Leaves a shard in order; what runs for it goes on. Resolves when another worker may take it. */
  async leave(id: string): Promise<void> {
    const shard = this.#active.get(id) ?? (await this.#activating.get(id)?.catch(() => undefined))
    await shard?.leave()
  }

  /**
   * Gives a shard to another worker, for as long as that one lives; null: to whomever the rule says. Resolves with the name
   * of the worker that has it now.
   * @throws TroupeError `CONFIG_INVALID` where one process owns everything, `WORKER_UNKNOWN`, `WORKER_UNFIT`, and why the
   * other one cannot go on with it: then it is given back to the rule.
   */
  async move(id: string, to: string | null): Promise<string> {
    const { ownership } = this.#options
    if (ownership === undefined) {
      const message = 'one process owns this store: a crew moves between workers over NATS (--nats URL)'
      throw new TroupeError('CONFIG_INVALID', message)
    }
    const crew = await this.#crewOf(id, '')
    const owner = await ownership.assign(id, crew, to)
    if (this.#owns(id, crew)) return owner
    try {
      await this.leave(id)
      await ownership.handOver(id, owner)
      return owner
    } catch (error) {
      await ownership.assign(id, crew, null).catch(() => undefined)
      throw error
    }
  }

  /** Takes up a shard that was given to this worker. @throws TroupeError `SHARD_ELSEWHERE` for another's, and why it cannot go on. */
  async take(id: string): Promise<void> {
    const head = await this.journal.refresh(id)
    if (!this.#owns(id, head.crew ?? '')) throw elsewhere(id)
    this.#dropStale(head)
    if (this.#hasWork(head)) (await this.shard(id)).fireDue()
    else this.#wakes.plan(id, head.pending.nextDueAt)
  }

  /** Of these effects, those whose outcome this process still owes, or has sent. */
  working(id: string, effects: readonly string[]): string[] {
    return this.#departed.working(id, effects, this.#active.get(id))
  }

  /** Ends work for a shard that was left. */
  cancel(id: string, effects: readonly string[]): void {
    this.#departed.cancel(id, effects)
  }

  /** A shard has another owner now: it leaves memory when nothing runs for it here any more. */
  #depart(id: string): void {
    const shard = this.#active.get(id)
    // Overtaken while it was being taken: its timers are looked after again, if it is still to be this one's.
    if (shard === undefined) return this.#tryAgain(id)
    this.#active.delete(id)
    this.#wakes.plan(id, null)
    // Whoever took it may not know yet that it is not to own it.
    if (this.#owns(id, this.#versionOf(shard))) this.#tryAgain(id)
    this.#intended.delete(id)
    this.#departed.add(shard)
  }

  /** Deletes a shard: journal, blobs, snapshots; leaves a tombstone. */
  async remove(id: string): Promise<void> {
    const active = this.#active.get(id) ?? (await this.#activating.get(id)?.catch(() => undefined))
    this.#active.delete(id)
    await active?.close(0)
    this.#wakes.plan(id, null)
    await this.journal.remove(id)
    await this.#options.ownership?.assign(id, '', null).catch(() => undefined)
  }

  /**
   * Tells what a damaged shard has lost; with `accepts` it goes on without.
   * @throws TroupeError `CREW_UNKNOWN`, `SHARD_ELSEWHERE`, `STORE_BUSY` where one process owns everything, `MESSAGE_REFUSED`
   * for a damaged one that is at work, and why it cannot be cut.
   */
  async repair(id: string, accepts: boolean): Promise<RepairReport> {
    if (this.#options.ownership === undefined) {
      const message = `the store is in use by this process: end it, then \`troupe repair ${id}\``
      throw new TroupeError('STORE_BUSY', message, { details: { pid: process.pid } })
    }
    if (!(await this.owns(id))) throw elsewhere(id)
    const before = await this.#findLoss(id)
    if (!accepts || before === null || before.to < before.from) return toReport(id, before, false)
    const report = await this.#aside(id, async () => {
      const { context, ports } = this.#host
      // What it had in memory may have become a snapshot that stands behind the damage.
      const loss = await this.#findLoss(id)
      const loses = loss !== null && loss.to >= loss.from
      if (loses) await acceptLoss(this.journal, loss, context, ports.clock.now())
      return toReport(id, loss, loses)
    })
    const head = await this.journal.refresh(id)
    this.onLook([head])
    void this.#takeUp([head])
    return report
  }

  async #findLoss(id: string): Promise<ReturnType<typeof findLoss>> {
    return findLoss(this.journal, id, await damageOf(this.journal, id), this.#host.context)
  }

  /** Does something to a shard that nobody has meanwhile. @throws TroupeError `MESSAGE_REFUSED` for one that is at work. */
  async #aside<T>(id: string, work: () => Promise<T>): Promise<T> {
    const active = this.#active.get(id) ?? (await this.#activating.get(id)?.catch(() => undefined))
    if (active?.stopped === null && active.busy)
      throw new TroupeError('MESSAGE_REFUSED', `${id} is at work, and has in memory what is damaged: cancel it first`)
    this.#active.delete(id)
    const before = this.#unloading.get(id)
    const working = (async () => {
      await before
      await active?.close(0)
      return work()
    })()
    // Whoever asks meanwhile waits until it is done.
    const done = working
      .then(
        () => undefined,
        () => undefined,
      )
      .finally(() => {
        if (this.#unloading.get(id) === done) this.#unloading.delete(id)
      })
    this.#unloading.set(id, done)
    return working
  }

  /** Hands every shard to other workers, and waits for what still runs here. */
  async #withdraw(graceMs: number): Promise<void> {
    const { ownership } = this.#options
    if (ownership === undefined) return
    await ownership.withdraw()
    await Promise.allSettled([...this.#activating.values()])
    await Promise.all([...this.#active.keys()].map((id) => this.leave(id)))
    await this.#departed.settled(graceMs)
  }

  /** Who may be called now; undefined when nobody is kept back. */
  get breakers(): Ports['breakers'] {
    return this.#options.ports.breakers
  }

  /** Shards that are here, those included that were left while something ran for them, and what runs. */
  get left(): { readonly crews: number; readonly calls: number } {
    const shards = new Set([...this.#active.values(), ...this.#departed.shards])
    return { crews: shards.size, calls: [...shards].reduce((sum, { working }) => sum + working, 0) }
  }

  /** Closes every shard, waiting up to `graceMs` for what runs, then the journal. */
  async close(graceMs: number): Promise<void> {
    this.#closing = true
    this.#wakes.close()
    await this.#withdraw(graceMs)
    this.#secondLook?.()
    this.#retention?.close()
    this.#sweep?.()
    await Promise.allSettled([...this.#activating.values(), ...this.#unloading.values()])
    const ids = new Set([...this.#active.keys(), ...this.#ends.keys()])
    await Promise.all([...this.#active.values()].map((shard) => shard.close(graceMs)))
    this.#active.clear()
    this.#closed = true
    for (const id of ids) {
      this.#tellEnds(id)
      this.hub.wake(id)
    }
    await this.journal.close()
  }
}

function isPending({ removed, pending }: ShardHead): boolean {
  return !removed && (pending.openEffects > 0 || pending.nextDueAt !== null || pending.outbox > 0)
}

/** What may be otherwise in a moment. */
function isPassing(code: ErrorCode): boolean {
  return code === 'SHARD_ELSEWHERE' || code === 'STORE_FAILED' || code === 'STORE_FULL' || code === 'NATS_UNREACHABLE'
}
