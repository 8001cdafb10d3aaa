/**
 * The shard: one crew's mailbox, state and journal in this process.
 *
 * Owns: intake with its bounds, the loop decide – append – act, snapshots, what happens after a failed append.
 * Does not own: decisions (`commit.ts`), ports (`dispatcher.ts`), rebuilding a state (`recovery.ts`).
 *
 * - H1 Nothing is acknowledged, dispatched or shown before the append that decided it is durable.
 * - H2 Envelopes are decided in the order in which they were taken; time never runs backwards.
 * - H3 After a failed append the state is dropped and rebuilt; what was decided and is not in the journal goes back to
 *   the head of the mailbox in order.
 * - H4 New work is refused with a code when there is no room; outcomes and timers never are.
 * - H6 Of records whose append failed at most one is in the journal; whatever is in it is not decided again.
 * - H7 A shard that somebody else has taken writes nothing more here, and says `SHARD_ELSEWHERE`.
 * - H5 A shard that cannot go on stops with its reason; the others go on.
 */
import { blobBytes, type BlobStore, maxRefreshMs, refreshMs, toBlob } from './blobs.js'
import { decideTwice } from './checks.js'
import { type Commit, decide } from './commit.js'
import { valuesAt } from './content.js'
import type { CrewVersion } from './crew-version.js'
import { runCustomAction } from './custom-action.js'
import { Dispatcher, type LiveCrew } from './dispatcher.js'
import { checkOutcome, checkType, type Draft, type Envelope, sizeOf } from './envelope.js'
import { type ErrorCode, isStoreTrouble, TroupeError, toTroupeError } from './errors.js'
import { Inbox } from './inbox.js'
import type { Pending } from './journal.js'
import { maxOutbox } from './mail.js'
import { type Attempt, type Item, maxMailbox, maxMailboxBytes } from './mailbox.js'
import { handedOver, Outbox } from './outbox.js'
import type { Ownership } from './ownership.js'
import { eventsOf, toRecord } from './record.js'
import { type Recovered, recover } from './recovery.js'
import type { ActivateOptions, ShardHost } from './shard-host.js'
import { type SealedSegments, takeSnapshot } from './snapshot.js'
import { crewVersionOf, type Effect, nextDueAt, portWork, type ShardState, timerKey } from './state.js'
import { byExecutor, recoverOwned, Takeover } from './takeover.js'
import { definedBy, hasEnded, logicNamed } from './user-actors.js'

/** Commits in one record at most. */
const maxCommits = 64
/** A tail above this is snapshotted when it outweighs the last snapshot. */
const tailBytes = 256 * 1024

/** One shard, active in this process. */
export class Shard {
  readonly id: string
  readonly #host: ShardHost
  readonly #dispatcher: Dispatcher
  readonly #takeover: Takeover
  readonly #outbox: Outbox
  readonly #inbox: Inbox
  readonly #mailbox: Item[] = []
  readonly #duePosted = new Set<string>()
  readonly #runData = new Map<string, Promise<unknown>>()
  #state: ShardState
  #hash: Uint8Array
  #sealed: SealedSegments
  #tailBytes: number
  #snapshotBytes = 0
  #snapshotAt: number
  #snapshotting: Promise<void> | null = null
  #work = 0
  #workBytes = 0
  #pumping: Promise<void> | null = null
  #crew: LiveCrew | null = null
  #stalled: ErrorCode | null = null
  /** Sequence of the last commit that is durable; the state may be ahead of it. */
  #durable: number
  /** Runs whose end was decided and is not durable yet. */
  readonly #ending = new Set<string>()
  #stopped: TroupeError | null = null
  #lastFinished: string | null = null
  #closing = false
  /** Nothing comes after its `shard.left`. */
  #left = false
  #leaving: Promise<void> = Promise.resolve()
  #crewVersion = { definition: '', crew: '' }
  /** Records whose append failed since the last one that did not: one of them may be in the journal, or come there late. */
  readonly #doubtful: Attempt[] = []
  #pending: Pending
  lastUsed: number

  private constructor(id: string, host: ShardHost, recovered: Recovered) {
    this.id = id
    this.#host = host
    this.#state = recovered.state
    this.#durable = recovered.state.sequence
    this.#hash = recovered.hash
    this.#sealed = recovered.sealed
    this.#tailBytes = recovered.tailBytes
    this.#snapshotAt = recovered.snapshot
    const { mail } = this.#state
    this.#pending = { nextDueAt: nextDueAt(this.#state), openEffects: portWork(this.#state), outbox: mail.outbox.size }
    this.lastUsed = host.ports.clock.monotonic()
    const logic = (kind: string) => logicNamed(host.context.machines, kind)
    this.#dispatcher = new Dispatcher({
      id,
      journal: host.journal,
      ports: host.ports,
      executor: () => host.ownership?.owner ?? host.executor,
      term: recovered.state.sequence,
      given: (effect) => void this.#takeover.follow(effect),
      owns: () => host.ownership?.owns(id, this.crewVersion) ?? true,
      send: (draft) => host.ownership!.send(id, draft).then(() => host.sent(id, draft.cause)),
      state: () => this.#state,
      crew: () => this.#crew,
      logic,
      dataOf: (run) => this.dataOf(run),
      post: (draft) => this.post(draft),
      watched: () => host.watched(id),
      show: (event) => host.show(id, event),
      stop: (reason) => this.#stop(reason),
    })
    this.#outbox = new Outbox({
      id,
      journal: host.journal,
      clock: host.ports.clock,
      state: () => this.#state,
      send: (receiver, draft) => host.mail(receiver, draft),
      post: (draft) => this.post(draft),
      stop: (reason) => this.#stop(reason),
    })
    this.#inbox = new Inbox({
      id,
      state: () => this.#state,
      crew: () => this.#crew,
      logic,
      check: () => this.#checkOpen(),
      post: (draft, work) => this.post(draft, work),
    })
    this.#takeover = new Takeover(host, {
      id,
      state: () => this.#state,
      own: (body) => this.#own(body),
      post: (draft) => this.post(draft),
      taken: () => this.#outbox.send(this.#state.mail.outbox.values()),
      snapshot: () => this.snapshot(),
      dispatch: (effects) => this.#dispatcher.dispatch(effects),
      isActive: () => this.#stopped === null && !this.#closing,
      worksOn: (effect) => this.worksOn(effect),
    })
  }

  /**
   * Rebuilds a shard and accounts for what its last owner left open.
   * @throws TroupeError `JOURNAL_CORRUPT`, `JOURNAL_TRUNCATED`, `UPGRADE_REFUSED`, `SNAPSHOT_INCOMPATIBLE`.
   */
  static async activate(id: string, host: ShardHost, options: ActivateOptions): Promise<Shard> {
    const recovered = await recoverOwned(id, host, options.acceptUpgrade)
    const shard = new Shard(id, host, recovered)
    await shard.#takeover.settle(recovered, options.unclean)
    host.schedule(id, nextDueAt(shard.#state))
    return shard
  }

  get state(): ShardState {
    return this.#state
  }

  /** Tasks on their way into the journal, by key: whoever asks for the same one waits for the same. */
  readonly starting = new Map<string, Promise<string>>()

  /** Whether a run has ended, or a user's machine by its address, durably. */
  hasEnded(run: string): boolean {
    return hasEnded(this.#state, run) && !this.#ending.has(run)
  }

  /** Whether a commit is durable. */
  isDurable(sequence: number): boolean {
    return sequence <= this.#durable
  }

  /** Whether others have written to it, by the last commit that its journal has, and it does not know yet. */
  isBehind(sequence: number): boolean {
    return this.#pumping === null && sequence > this.#durable
  }

  /** Why it stopped; null while it goes on. */
  get stopped(): TroupeError | null {
    return this.#stopped
  }

  /** Nothing is queued, running or about to be written. */
  get quiet(): boolean {
    return (
      this.#mailbox.length === 0 && this.#pumping === null && this.#dispatcher.size === 0 && this.#snapshotting === null
    )
  }

  /** Whether effects or letters are open; what a person is asked may wait anywhere. */
  get busy(): boolean {
    return !this.quiet || portWork(this.#state) > 0 || this.#state.mail.outbox.size > 0
  }

  get crew(): LiveCrew | null {
    return this.#crew
  }

  /** Under which lease it was taken; empty when embedded. */
  get owner(): string {
    return this.#state.owner
  }

  /** The crew and its version; empty before it is defined. */
  get crewVersion(): CrewVersion {
    const { definition } = this.#state
    if (this.#crewVersion.definition !== definition) this.#crewVersion = { definition, crew: crewVersionOf(definition) }
    return this.#crewVersion.crew
  }

  /** Interrupts what an executor that is gone left open. Effects of living ones are left to them. */
  interruptLost(): void {
    if (this.#stopped === null && !this.#closing) this.#takeover.interruptLost()
  }

  /** Whether a port here works on an effect, or will. */
  worksOn(effect: string): boolean {
    return this.#dispatcher.knows(effect)
  }

  /** Whether this process owes the outcome of an effect, to whoever has the shard. What only waits here another owner may as well do. */
  owes(effect: string): boolean {
    return this.#dispatcher.runs(effect)
  }

  /** Effects with the ports here. */
  get working(): number {
    return this.#dispatcher.running
  }

  /** Ends work here that nobody waits for any more. */
  cancel(effects: readonly string[]): void {
    this.#dispatcher.cancel(effects)
  }

  // ------------------------------------------------------------------------------------------ intake

  /**
   * Takes an envelope; resolves with its commit when that is durable.
   * @param work new work is refused when there is no room; outcomes and timers are not.
   * @throws TroupeError `MESSAGE_REFUSED`, `OUTCOME_FORGED`, `MAILBOX_FULL`, `STORE_FULL`, `STORE_FAILED`, `SHARD_STOPPED`.
   */
  async post(draft: Draft, work = false): Promise<Commit> {
    checkType(draft.body.type)
    this.#checkRoom(draft, work)
    checkOutcome(draft, this.#state)
    const values = draft.values.some((value) => typeof value === 'string' && value.length > blobBytes / 4)
      ? await Promise.all(draft.values.map((value) => toBlob(value, this.#blobs(work))))
      : draft.values
    return new Promise((resolve, reject) => {
      if (this.#stopped !== null) return reject(this.#refusal())
      if (this.#left) return reject(this.#closed())
      const item: Item = { draft: { ...draft, values }, bytes: sizeOf(draft), work, resolve, reject }
      this.#mailbox.push(item)
      if (work) {
        this.#work += 1
        this.#workBytes += item.bytes
      }
      this.#pump()
    })
  }

  /**
   * Takes a letter of another shard; resolves when that is durable, or was before.
   * @param first no earlier letter can still come
   * @throws TroupeError as `Inbox.take`.
   */
  receive(draft: Draft, first: boolean): Promise<void> {
    return this.#inbox.take(draft, first)
  }

  #checkOpen(): void {
    if (this.#stopped !== null) throw this.#refusal()
    if (this.#left) throw this.#closed()
  }

  #checkRoom(draft: Draft, work: boolean): void {
    this.#checkOpen()
    if (!work) return
    if (this.#closing) throw this.#closed()
    if (this.#stalled !== null)
      throw new TroupeError(this.#stalled, `${this.id}: the store takes no new records`, { retryable: true })
    if (this.#work >= maxMailbox || this.#workBytes + sizeOf(draft) > maxMailboxBytes)
      throw new TroupeError('MAILBOX_FULL', `${this.id}: ${this.#work} envelopes wait`, { retryable: true })
    const waiting = `${this.id}: ${maxOutbox} letters wait to be handed over`
    if (this.#state.mail.outbox.size >= maxOutbox) throw new TroupeError('MAILBOX_FULL', waiting, { retryable: true })
  }

  /** What new work is told while the shard is left or closed. */
  #closed(): TroupeError {
    if (this.#host.ownership === null) return new TroupeError('RUNTIME_CLOSED', `${this.id} is being closed`)
    return new TroupeError('SHARD_ELSEWHERE', `${this.id} is on its way to another worker`, { retryable: true })
  }

  #refusal(): TroupeError {
    const { code, message } = this.#stopped!
    if (code === 'SHARD_FENCED') return new TroupeError('SHARD_ELSEWHERE', message, { retryable: true })
    return new TroupeError('SHARD_STOPPED', `${this.id} stopped: ${code}: ${message}`, {
      cause: this.#stopped,
      details: { reason: code },
    })
  }

  /** New work is refused when the store takes nothing; an outcome waits until it does. */
  #blobs(work: boolean): BlobStore {
    const { journal, ports } = this.#host
    const waits = (): boolean => !work && this.#stopped === null && !this.#closing
    return { shard: this.id, journal, clock: ports.clock, sequence: () => this.#state.sequence, waits }
  }

  // ------------------------------------------------------------------------------------------ decide, record, act

  #pump(): void {
    if (this.#pumping !== null || this.#mailbox.length === 0) return
    this.#pumping = this.#loop()
      .catch((error: unknown) => this.#stop(toTroupeError(error, 'STORE_FAILED')))
      .finally(() => {
        this.#pumping = null
        if (this.#mailbox.length > 0 && this.#stopped === null) this.#pump()
      })
  }

  async #loop(): Promise<void> {
    const { ownership } = this.#host
    while (this.#mailbox.length > 0 && this.#stopped === null) {
      // Whoever was paused finds out before it writes what nobody would look for.
      if (ownership?.lives(ownership.owner) === false) throw this.#overtaken()
      this.#clearOutbox()
      const { owner: before } = this.#state
      const items = this.#mailbox.splice(0, maxCommits)
      const commits = items.map((item) => this.#decide(item.draft))
      if (this.#isForeign(before)) {
        this.#mailbox.unshift(...items)
        throw this.#overtaken()
      }
      for (const commit of commits) for (const run of commit.finished) this.#ending.add(run)
      const pending = this.#pendingNow(commits)
      const record = { ...toRecord(this.id, this.#hash, commits, pending), crew: this.crewVersion }
      const landed = await this.#append({ record, items, commits })
      if (landed === null) continue
      this.#hash = landed.record.hash
      this.#durable = landed.record.last
      this.#ending.clear()
      this.#pending = landed.record.pending
      this.#tailBytes += landed.record.bytes.length
      landed.items.forEach((item, index) => this.#act(item, landed.commits[index]!))
      this.#host.schedule(this.id, this.#pending.nextDueAt)
      this.#maybeSnapshot()
    }
  }

  /** What was handed over is written down together with what comes anyway. */
  #clearOutbox(): void {
    const rows = this.#outbox.takeHanded()
    if (rows.length === 0) return
    const nobody = (): undefined => undefined
    this.#mailbox.unshift({ draft: handedOver(rows), bytes: 0, work: false, resolve: nobody, reject: nobody })
  }

  /** Gives what is in the journal now: this record, or one that had failed before; null when none of them is. */
  async #append(attempt: Attempt): Promise<Attempt | null> {
    try {
      await this.#host.journal.append(attempt.record)
      this.#doubtful.length = 0
      return attempt
    } catch (error) {
      const cause = toTroupeError(error, 'STORE_FAILED')
      this.#doubtful.push(attempt)
      this.#mailbox.unshift(...attempt.items)
      if (cause.code === 'SHARD_FENCED') throw cause
      const before = this.#durable
      await this.#reload(cause)
      const landed = this.#doubtful.find(({ record }) => Buffer.from(this.#hash).equals(record.hash)) ?? null
      if (landed === null) {
        if (this.#host.ownership !== null && this.#durable !== before) throw this.#overtaken()
        return null
      }
      this.#doubtful.length = 0
      this.#mailbox.splice(0, this.#mailbox.length, ...this.#mailbox.filter((item) => !landed.items.includes(item)))
      return landed
    }
  }

  /**
   * It was taken under a lease that has been replaced since: whoever looks at its owner takes it for gone.
   * @param before who had it before what was decided last, by which it may have been taken or left
   */
  #isForeign(before: string): boolean {
    const { ownership } = this.#host
    const owners = [before, this.#state.owner].filter((owner) => owner !== '')
    return ownership !== null && owners.length > 0 && !owners.includes(ownership.owner)
  }

  #overtaken(): TroupeError {
    return new TroupeError('SHARD_FENCED', `${this.id} was taken by ${this.#state.owner || 'another owner'}`)
  }

  #decide(draft: Draft): Commit {
    const one = this.#host.checks ? decideTwice : decide
    return one(this.#state, this.#stamp(draft), this.#host.context)
  }

  #stamp(draft: Draft): Envelope {
    return { ...draft, at: Math.max(this.#state.at, this.#host.ports.clock.now()) }
  }

  #pendingNow(commits: readonly Commit[]): Pending {
    const changed = commits.some((commit) => commit.timersChanged)
    return {
      nextDueAt: changed ? nextDueAt(this.#state) : this.#pending.nextDueAt,
      openEffects: portWork(this.#state),
      outbox: this.#state.mail.outbox.size,
    }
  }

  #act(item: Item, commit: Commit): void {
    if (item.work) {
      this.#work -= 1
      this.#workBytes -= item.bytes
    }
    if (item.draft.from === 'clock/timer') this.#duePosted.delete(item.draft.cause)
    for (const run of commit.finished) this.#forget(run)
    if (commit.events.length > 0) this.#host.publish(this.id, eventsOf(commit))
    if (commit.messages.length > 0) this.#host.trace(this.id, commit)
    if (commit.cancelled.length > 0) this.#cancelEffects(commit.cancelled)
    if (commit.letters.length > 0) this.#outbox.send(commit.letters)
    // The state may be a rebuilt one: effects are taken from it, never from the commit.
    this.#dispatcher.dispatch(
      commit.effects.map((effect) => this.#state.effects.get(effect.id)).filter((effect) => effect !== undefined),
    )
    for (const action of commit.customs) runCustomAction(action, (body) => void this.#own(body).catch(() => undefined))
    item.resolve(commit)
  }

  #cancelEffects(effects: readonly Effect[]): void {
    const { ownership } = this.#host
    this.#dispatcher.cancel(effects.map(({ id }) => id))
    if (ownership === null) return
    for (const [executor, theirs] of byExecutor(effects))
      if (executor !== ownership.owner && ownership.isRunning(executor)) ownership.cancel(executor, this.id, theirs)
  }

  /**
   * The texts of the run before this one leave memory; its conversation stays as references. Those of the last run stay
   * for whoever awaits its result, and those of a conversation that goes on.
   */
  #forget(run: string): void {
    this.#runData.delete(run)
    const previous = this.#lastFinished
    this.#lastFinished = run
    const crew = this.#crew?.prepared.crew
    if (previous === null || crew?.agents[crew.lead]?.continue === true) return
    const conversation = this.#state.runs.get(previous)?.conversation ?? ''
    for (const entry of this.#state.logs.get(conversation)?.entries ?? []) if (entry.sequence !== 0) entry.text = null
  }

  /** After a failed append: rebuilds the state, waiting until the store can be used. */
  async #reload(cause: TroupeError): Promise<void> {
    this.#stalled = cause.code
    for (let delayMs = refreshMs; ; delayMs = Math.min(maxRefreshMs, delayMs * 2)) {
      // Whoever is leaving does not wait for a store that takes nothing: the next owner takes the shard as it is.
      if (this.#closing && this.#host.ownership !== null) throw this.#overtaken()
      if (this.#stopped !== null || this.#closing) throw this.#stopped ?? cause
      try {
        await this.#host.journal.refresh(this.id)
        const recovered = await recover(this.#host.journal, this.id, this.#host.context, false)
        this.#state = recovered.state
        this.#durable = recovered.state.sequence
        this.#ending.clear()
        this.#hash = recovered.hash
        this.#sealed = recovered.sealed
        this.#tailBytes = recovered.tailBytes
        this.#stalled = null
        return
      } catch (error) {
        if (!isStoreTrouble(error)) throw error
        await new Promise<void>((resolve) => this.#host.ports.clock.after(delayMs, resolve))
      }
    }
  }

  #stop(reason: TroupeError): void {
    // Whatever came back from an append that failed since is refused too.
    if (this.#stopped !== null) return this.#refuseAll()
    this.#stopped = reason
    // What runs may be waited for by the next owner, and if not, it still costs.
    this.#outbox.close()
    if (reason.code === 'SHARD_FENCED') this.#dispatcher.depart()
    else this.#dispatcher.close()
    this.#refuseAll()
    this.#host.schedule(this.id, null)
    this.#host.stopped(this.id, reason)
  }

  #refuseAll(): void {
    for (const item of this.#mailbox.splice(0)) item.reject(this.#refusal())
  }

  async #own(body: { type: string; [field: string]: unknown }): Promise<void> {
    await this.post({ from: 'shard/self', to: 'shard/self', cause: '', body, values: [] })
  }

  /**
   * Gives the shard the crew's live definition; journals it when it is another one than the last.
   * @param input of a crew that is one machine, for its start
   */
  async define(crew: LiveCrew, input?: unknown): Promise<void> {
    if (this.#state.definition !== crew.prepared.definition) await this.#own(definedBy(crew.prepared, input))
    this.#crew = crew
    this.#dispatcher.pump()
  }

  // ------------------------------------------------------------------------------------------ timers

  /** Takes every timer that is due. */
  fireDue(): void {
    const now = this.#host.ports.clock.now()
    const due = [...this.#state.timers.values()].filter((timer) => timer.dueAt <= now).sort((a, b) => a.dueAt - b.dueAt)
    for (const timer of due) {
      const cause = `${timerKey(timer.actor, timer.id)}|${timer.generation}`
      if (this.#duePosted.has(cause)) continue
      this.#duePosted.add(cause)
      const draft = { from: 'clock/timer', to: timer.actor, cause, body: { type: 'timer.due' }, values: [] }
      this.post(draft).catch(() => undefined)
    }
    // What is due already waits in the mailbox; the commit that takes it looks again.
    this.#host.schedule(this.id, nextDueAt(this.#state, now))
  }

  // ------------------------------------------------------------------------------------------ reading

  /** The `data` of a run. */
  dataOf(run: string): Promise<unknown> {
    const known = this.#runData.get(run)
    if (known !== undefined) return known
    const state = this.#state.runs.get(run)
    const data =
      state?.data === true
        ? valuesAt(this.#host.journal, this.id, state.sequence).then(
            (values) => JSON.parse(values.at(-1) ?? 'null') as unknown,
          )
        : Promise.resolve(null)
    this.#runData.set(run, data)
    // Read again when it is asked for again: the store may only have been away.
    data.catch(() => this.#runData.delete(run))
    return data
  }

  // ------------------------------------------------------------------------------------------ snapshots, end

  #maybeSnapshot(): void {
    if (this.#snapshotting !== null || this.#tailBytes < Math.max(tailBytes, this.#snapshotBytes)) return
    // A failed snapshot is an optimisation lost; the next commit tries again.
    void this.snapshot().catch(() => undefined)
  }

  /** Writes a snapshot of the state as it is now, unless nothing came after the last one. */
  async snapshot(): Promise<void> {
    if (this.#snapshotAt === this.#state.sequence || this.#stopped !== null) return
    const { manifest, chunks, bytes } = takeSnapshot(
      this.#state,
      this.#hash,
      this.#sealed,
      this.#host.context.scope,
      this.#host.context.machines,
    )
    const previous = this.#snapshotAt
    this.#snapshotAt = manifest.sequence
    this.#snapshotBytes = bytes
    this.#tailBytes = 0
    const writing = this.#host.journal
      .putSnapshot(manifest, chunks, previous === 0 ? [] : [previous])
      .catch((error: unknown) => {
        this.#snapshotAt = 0
        this.#sealed = new Map()
        throw error
      })
    this.#snapshotting = writing.finally(() => {
      this.#snapshotting = null
    })
    await this.#snapshotting
  }

  /**
   * Takes no new work and starts nothing; waits for what the ports have up to `graceMs`, then aborts it. What no port
   * had yet is parked for the next owner. Snapshots when there is a tail.
   */
  async close(graceMs: number): Promise<void> {
    this.#closing = true
    this.#dispatcher.drain()
    if (this.#stopped === null && graceMs > 0) await this.#settled(graceMs)
    const parked = this.#dispatcher.drain()
    const rows = this.#outbox.takeHanded()
    this.#outbox.close()
    if (this.#stopped === null && rows.length > 0) await this.post(handedOver(rows)).catch(() => undefined)
    if (this.#stopped === null && parked.length > 0) {
      await this.#own({ type: 'effects.parked', effects: parked }).catch(() => undefined)
    }
    this.#dispatcher.close()
    await this.#pumping?.catch(() => undefined)
    for (const item of this.#mailbox.splice(0)) item.reject(this.#closed())
    await this.#snapshotting?.catch(() => undefined)
    if (this.#stopped === null) await this.snapshot().catch(() => undefined)
  }

  /**
   * Gives the shard up in order: takes nothing new, finishes what it has, and says in the journal that it left. What the
   * ports have goes on, its outcome is sent after the shard.
   */
  leave(): Promise<void> {
    const { ownership } = this.#host
    if (ownership !== null && !this.#closing) this.#leaving = this.#leave(ownership)
    return this.#leaving
  }

  async #leave({ owner }: Ownership): Promise<void> {
    this.#closing = true
    this.#dispatcher.depart()
    while (this.#pumping !== null) await this.#pumping
    const parked = this.#dispatcher.drain()
    if (this.#stopped === null) {
      const leaving = this.#own({ type: 'shard.left', owner, parked }).catch(() => undefined)
      this.#left = true
      await leaving
    }
    this.#host.schedule(this.id, null)
    await this.#snapshotting?.catch(() => undefined)
    if (this.#stopped === null) await this.snapshot().catch(() => undefined)
    this.#stop(this.#overtaken())
  }

  /** The lease is lost: somebody else may have the shard by now. */
  abandon(): void {
    this.#stop(this.#overtaken())
  }

  /** Leaves memory while nothing runs; snapshots a long tail. */
  async unload(): Promise<void> {
    this.#closing = true
    this.#outbox.close()
    this.#dispatcher.close()
    if (this.#tailBytes > tailBytes) await this.snapshot()
  }

  /** Resolves when no port has work of this shard any more, or after `graceMs`. */
  async #settled(graceMs: number): Promise<void> {
    const { clock } = this.#host.ports
    const until = clock.monotonic() + graceMs
    while ((this.#dispatcher.running > 0 || this.#pumping !== null) && clock.monotonic() < until) {
      await new Promise<void>((resolve) => clock.after(5, resolve))
    }
  }
}
