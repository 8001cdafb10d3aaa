/**
 * The distributed runtime: one worker among others over NATS, or a client of theirs.
 *
 * Owns: the wiring of NATS: journal, ownership, mail, events, the door; the order in which they start and end.
 * Does not own: what each of them does (`transport/`), the embedded runtime (`index.ts`).
 *
 * - DI1 Every crew is used through the door, those of this process too: where a crew is now makes no difference.
 * - DI2 Closing hands the crews over before it waits for what still runs here; others go on with them meanwhile.
 */
import { randomBytes } from 'node:crypto'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { clusterClock } from '../transport/cluster-clock.js'
import { createJetStreamJournal } from '../transport/jetstream-journal.js'
import { connectNats, type NatsLink, type NatsOptions, watchDenied } from '../transport/nats-connection.js'
import { type Door, openDoor } from '../transport/nats-door.js'
import { createDoorClient } from '../transport/nats-door-client.js'
import { NatsBreakers } from '../transport/nats-breakers.js'
import { NatsEvents } from '../transport/nats-events.js'
import { NatsLive } from '../transport/nats-live.js'
import { NatsMail } from '../transport/nats-mail.js'
import { NatsOwnership } from '../transport/nats-ownership.js'
import { NatsRefused } from '../transport/nats-refused.js'
import { NatsSurvey } from '../transport/nats-survey.js'
import { readSettings, type Settings } from '../transport/nats-settings.js'
import { NatsToolWorker } from '../transport/nats-tool-worker.js'
import { type RemoteProgress, RemoteTools } from '../transport/nats-tools.js'
import { NatsTrace } from '../transport/nats-trace.js'
import { StandingLease } from '../transport/standing-lease.js'
import { Subjects } from '../transport/subjects.js'
import { WorkerRequests } from '../transport/worker-requests.js'
import type { Breakers, BreakerStore } from './breakers.js'
import { type AnswerTarget, answerRequest } from './control-answers.js'
import type { Agent, AnyTool, Crew } from './define.js'
import type { MachineDefinition } from './define-machine.js'
import { crewOf, type Definition } from './definition.js'
import type { LiveCrew } from './dispatcher.js'
import { TroupeError } from './errors.js'
import type { CrewHandle, MachineHandle, Runtime } from './face.js'
import { runGuarded } from './guarded-tools.js'
import type { Journal } from './journal.js'
import type { Log } from './log.js'
import type { Clock, ToolPort } from './ports.js'
import { isRemoteOutcome, readRemoteOutcome } from './remote-outcome.js'
import { isForeign, partsOf, stampOf } from './mail.js'
import { returned } from './outbox.js'
import { Offered } from './offered.js'
import { RemoteRuntime } from './remote-runtime.js'
import { type MachineSpawnOptions, Runtime as LocalRuntime, type SpawnOptions } from './runtime.js'
import type { Message } from './scope.js'
import type { Worker, WorkerOptions } from './worker.js'

/** How a runtime takes part. */
export interface DistributedOptions extends NatsOptions {
  /** Crews, workers, mail and events of one name belong together. @default 'default' */
  readonly namespace?: string
  /**
   * `worker` runs crews; `tools` works on calls of the `remote` tools of the crews that it is offered, and runs none of them;
   * `client` only uses crews that workers run.
   * @default 'worker'
   */
  readonly role?: 'worker' | 'tools' | 'client'
  /** Name of this worker: `^[A-Za-z0-9_-]{1,64}$`, one process at a time. @default host name, process id and some chance */
  readonly worker?: string
  /** How long a worker that has gone silent keeps its crews, in milliseconds. @default 5_000 */
  readonly leaseMs?: number
  /** Copies of journal, mail and events in a cluster of NATS servers. @default 1 */
  readonly replicas?: number
  /** How long the event stream keeps events, in milliseconds; whoever makes the stream decides. @default 7 days */
  readonly keepEventsMs?: number
  /**
   * Let every message between actors pass by on `troupe.<namespace>.msg.…` once its commit is durable: best effort, stored
   * nowhere. @default false
   */
  readonly trace?: boolean
}

const defaultLeaseMs = 5_000
/** Requests of clients under way at once: a crew that is waited for and followed has two. */
const maxRequests = 4_096

/** What the composition root gives. */
export interface DistributedParts {
  readonly nats: DistributedOptions
  /** Folder for a local copy of what this worker reads and writes. */
  readonly store: string | undefined
  readonly log: Log
  readonly bind: (crew: Crew) => LiveCrew
  /** Hash of a crew's definition. Whoever only uses crews needs no keys of their providers. */
  readonly hashOf: (crew: Crew) => string
  readonly newWorker: (journal: Journal, more: Partial<WorkerOptions>) => Worker
  /** The circuit breakers of a worker; undefined when nobody is to be kept back. */
  readonly newBreakers: (store: BreakerStore, clock: Clock) => Breakers | undefined
  /** A tool port for these tools, whoever asks. */
  readonly newTools: (tools: ReadonlyMap<string, AnyTool>) => ToolPort
  /** Ends the ports, when nothing runs any more. */
  readonly closePorts: () => Promise<void>
  /** Machines of the user's that a worker runs from the beginning. @default none */
  readonly machines?: readonly Definition[]
}

/** Joins a namespace. @throws TroupeError `NATS_UNREACHABLE`, `NATS_DENIED`, `NATS_UNSUPPORTED`, `STORE_BUSY`, `CONFIG_INVALID`. */
export async function joinNamespace(parts: DistributedParts): Promise<DistributedRuntime> {
  const { nats } = parts
  const subjects = new Subjects(nats.namespace ?? 'default')
  const isClient = nats.role === 'client'
  const link = await connectNats({ name: nats.worker ?? 'troupe', ...nats }, { jetStream: !isClient })
  // A client's requests are told so themselves.
  if (!isClient)
    watchDenied(link, ({ code, details }) => parts.log.error('NATS does not allow it', { code, ...details }))
  try {
    const member = await joinAs(nats.role ?? 'worker', parts, link, subjects)
    if (parts.machines !== undefined) await member?.offer(parts.machines)
    return new DistributedRuntime(parts, link, subjects, member)
  } catch (error) {
    await link.connection.close()
    throw error
  }
}

/** What this process does for others. */
interface Member {
  readonly name: string
  /** Works for crews and machines of these definitions from now on. */
  offer(definitions: readonly Definition[]): Promise<void>
  /** Hands everything over, waits up to `graceMs` for what runs, and goes. */
  leave(graceMs: number): Promise<void>
  /** Resolves when it has gone. */
  readonly left: Promise<void>
}

async function joinAs(
  role: NonNullable<DistributedOptions['role']>,
  parts: DistributedParts,
  link: NatsLink,
  subjects: Subjects,
): Promise<Member | null> {
  if (role === 'client') return null
  return role === 'tools' ? ToolMembership.join(parts, link, subjects) : Membership.join(parts, link, subjects)
}

/** A runtime whose crews are wherever their owner is. */
export class DistributedRuntime extends RemoteRuntime implements Runtime {
  readonly #parts: DistributedParts
  readonly #link: NatsLink
  readonly #subjects: Subjects
  readonly #member: Member | null
  #closed: Promise<void> | null = null

  /** @internal Made by `joinNamespace`. */
  constructor(parts: DistributedParts, link: NatsLink, subjects: Subjects, member: Member | null) {
    super({ channel: createDoorClient({ link, subjects }), hashOf: parts.hashOf })
    this.#parts = parts
    this.#link = link
    this.#subjects = subjects
    this.#member = member
  }

  /** Name of this worker; null for a client. */
  get worker(): string | null {
    return this.#member?.name ?? null
  }

  /** Resolves when this worker has handed everything over and gone, because somebody drained it or it was closed. */
  get left(): Promise<void> {
    return this.#member?.left ?? new Promise(() => undefined)
  }

  /** Version of the server. */
  get server(): string {
    return this.#link.version
  }

  /** What the server has given to what is stored: read back from it. */
  settings(): Promise<Settings> {
    return readSettings(this.#link, this.#subjects)
  }

  /**
   * Lets this worker run crews and machines of these definitions, or work on their remote tools. A client cannot. Of several that it has
   * others are told at once, and it looks once for crews that are its own now.
   * @throws TroupeError `CONFIG_INVALID` for a client, `CREW_INVALID` for a tool worker and another tool of a name that it has.
   */
  async offer(...definitions: readonly Definition[]): Promise<void> {
    if (this.#member === null) throw new TroupeError('CONFIG_INVALID', 'a client runs no crews')
    await this.#member.offer(definitions)
  }

  override spawn<Output, Input, Event extends Message>(
    definition: MachineDefinition<Output, Input, Event>,
    options?: MachineSpawnOptions<Input>,
  ): Promise<MachineHandle<Output, Event>>
  override spawn<Output>(definition: Crew<Output> | Agent<Output>, options?: SpawnOptions): Promise<CrewHandle<Output>>
  override async spawn(definition: Crew | Agent | MachineDefinition, options: SpawnOptions = {}): Promise<unknown> {
    await this.#member?.offer([definition])
    return super.spawn(definition as Crew, options)
  }

  override close(options: { readonly graceMs?: number } = {}): Promise<void> {
    this.#closed ??= this.#close(options.graceMs ?? 30_000)
    return this.#closed
  }

  async #close(graceMs: number): Promise<void> {
    await this.#member?.leave(graceMs)
    await super.close()
    await this.#link.connection.close()
    await this.#parts.closePorts()
  }
}

/** This process as one of the workers. */
class Membership implements Member {
  readonly name: string
  readonly #ownership: NatsOwnership
  readonly #offered: Offered
  readonly #leaving: Leaving

  private constructor(name: string, ownership: NatsOwnership, offered: Offered, leaving: Leaving) {
    this.name = name
    this.#ownership = ownership
    this.#offered = offered
    this.#leaving = leaving
  }

  static async join(parts: DistributedParts, link: NatsLink, subjects: Subjects): Promise<Membership> {
    const { nats, log } = parts
    const name = nats.worker ?? workerName()
    const shared = { link, subjects, ...(nats.replicas === undefined ? {} : { replicas: nats.replicas }) }
    const leaseMs = nats.leaseMs ?? defaultLeaseMs
    // Letters that a dead worker held come to the next one soon after its shards have.
    const mail = await NatsMail.open({ ...shared, log, ackWaitMs: 2 * leaseMs })
    const refused = await NatsRefused.open({ ...shared, send: (shard, letter, id) => mail.send(shard, letter, id) })
    const ownership = await NatsOwnership.open({ ...shared, worker: name, leaseMs, crews: {}, mail })
    const folder = parts.store === undefined ? null : join(parts.store, `copy-${nats.namespace ?? 'default'}`)
    const copy = folder === null ? undefined : { path: folder, log }
    const journal = createJetStreamJournal({ ...shared, worker: name, epoch: () => ownership.epoch, copy })
    const trace = nats.trace === true ? new NatsTrace(link, subjects) : null
    const kept = await NatsBreakers.open(shared)
    const breakers = parts.newBreakers(kept, ownership.clock)
    const worker = parts.newWorker(journal, {
      ...(trace === null ? {} : { trace: (shard, commit) => trace.publish(shard, commit) }),
      ports: { clock: ownership.clock, random: Math.random, breakers },
      executor: name,
      ownership,
      crewOf: (crew) => offered.crews.get(crew),
    })
    const remote = new RemoteTools({
      ...{ link, subjects, log, worker: name },
      lives: (executor) => ownership.isRunning(executor),
      release: (executor, shard, effect) => ownership.cancel(executor, shard, [effect]),
      show: (progress) => show(worker, progress),
    })
    const offered: Offered = new Offered(
      (crew) => routed(parts.bind(crew), remote),
      ({ logics }) => worker.register(logics),
    )
    const leaving = new Leaving(worker)
    ownership.serve({
      leave: (shard) => worker.leave(shard),
      take: (shard) => worker.take(shard),
      working: (shard, effects) => worker.working(shard, effects),
      cancel: (shard, effects) => worker.cancel(shard, effects),
      drain: (graceMs) => leaving.drain(graceMs),
    })
    await worker.open()
    const events = await NatsEvents.open({
      ...{ ...shared, journal, log },
      ...(nats.keepEventsMs === undefined ? {} : { maxAgeMs: nats.keepEventsMs }),
    })
    const live = new NatsLive({
      ...{ link, subjects, hub: worker.hub, shards: () => worker.active.keys() },
      show: (shard, event) => events.show(shard, event),
    })
    worker.hub.tap = (shard, placed) => {
      if (!placed.some(({ event }) => event.type === 'shard.taken')) return events.publish(shard, placed)
      events.catchUp(shard)
      void live.look(shard)
    }
    worker.onLook = (heads) => void events.catchUpAll(heads)
    receive({ mail, worker, ownership, refused, log })
    const door = await doorTo({ worker, ownership, offered, leaving, parts, link, subjects, refused })
    leaving.ends = [
      () => mail.drain(),
      () => worker.close(0),
      () => door.close(),
      () => remote.close(),
      () => live.close(),
      () => events.close(),
      () => mail.close(),
      () => kept.close(),
      () => ownership.close(),
    ]
    return new Membership(name, ownership, offered, leaving)
  }

  async offer(definitions: readonly Definition[]): Promise<void> {
    const added = definitions.map((each) => this.#offered.add(each))
    if (added.includes(true)) await this.#ownership.announce(this.#offered.versions())
  }

  leave(graceMs: number): Promise<void> {
    return this.#leaving.begin(graceMs)
  }

  get left(): Promise<void> {
    return this.#leaving.gone
  }
}

/** A crew whose remote tools are called where they are. */
function routed({ prepared, model, tools }: LiveCrew, remote: RemoteTools): LiveCrew {
  const isRemote = (agent: string, tool: string): boolean =>
    prepared.agents.get(agent)?.tools.get(tool)?.remote === true
  return { prepared, model, tools: remote.route(tools, isRemote) }
}

/** The end of a worker: begun once, by its own process or by whoever drains it. */
class Leaving {
  readonly #worker: Pick<Worker, 'close' | 'left'>
  #begun: Promise<void> | null = null
  #tellHandedOver = (): void => undefined
  #tellGone = (): void => undefined
  /** Nothing runs here any more; whoever waits for that is told before the door is shut. */
  readonly handedOver = new Promise<void>((resolve) => (this.#tellHandedOver = resolve))
  readonly gone = new Promise<void>((resolve) => (this.#tellGone = resolve))
  /** What is ended behind the worker, in this order. Null as long as it has not begun. */
  ends: readonly (() => Promise<void> | void)[] | null = null

  constructor(worker: Pick<Worker, 'close' | 'left'>) {
    this.#worker = worker
  }

  begin(graceMs: number): Promise<void> {
    this.#begun ??= this.#leave(graceMs)
    return this.#begun
  }

  async #leave(graceMs: number): Promise<void> {
    await this.#worker.close(graceMs)
    this.#tellHandedOver()
    for (const end of this.ends ?? []) await end()
    this.#tellGone()
  }

  /** Begins, unless it has, and says what is left. @throws TroupeError `SHARD_ELSEWHERE`, retryable, before it can. */
  drain(graceMs: number): { readonly crews: number; readonly calls: number } {
    if (this.ends === null)
      throw new TroupeError('SHARD_ELSEWHERE', 'this worker only just begins', { retryable: true })
    void this.begin(graceMs).catch(() => undefined)
    return this.#worker.left
  }
}

/** This process as one that works on remote tools. */
class ToolMembership implements Member {
  readonly name: string
  readonly #lease: StandingLease
  readonly #worker: NatsToolWorker
  readonly #tools: Map<string, AnyTool>
  readonly #leaving: Leaving

  private constructor(
    name: string,
    lease: StandingLease,
    worker: NatsToolWorker,
    tools: Map<string, AnyTool>,
    leaving: Leaving,
  ) {
    this.name = name
    this.#lease = lease
    this.#worker = worker
    this.#tools = tools
    this.#leaving = leaving
  }

  static async join(
    { nats, log, newTools, newBreakers }: DistributedParts,
    link: NatsLink,
    subjects: Subjects,
  ): Promise<ToolMembership> {
    const { worker: name = workerName(), leaseMs = defaultLeaseMs, replicas = 1 } = nats
    const mail = await NatsMail.open({ link, subjects, replicas, log })
    const lease = await StandingLease.take(link, subjects, { worker: name, ttlMs: leaseMs, replicas })
    const tools = new Map<string, AnyTool>()
    const port = newTools(tools)
    const kept = await NatsBreakers.open({ link, subjects, replicas })
    const breakers = newBreakers(kept, clusterClock(lease.offsetMs))
    const worker = new NatsToolWorker({
      ...{ link, subjects, log, worker: name },
      owner: () => (lease.isHeld ? lease.owner : null),
      tools: {
        verify: (request) => port.verify(request),
        run: (request) => runGuarded(port, breakers, tools.get(request.tool)?.server, request),
      },
      send: (shard, letter) => mail.send(shard, letter),
    })
    const requests = new WorkerRequests(link, subjects, leaseMs)
    const leaving = new Leaving(worker)
    // As long as it has a lease, whoever asks is told what it still works on.
    leaving.ends = [() => lease.release(), () => requests.close(), () => kept.close(), () => mail.close()]
    requests.serve(name, () => (lease.isHeld ? lease.epoch : null), {
      leave: () => worker.leave(),
      take: (shard) => worker.take(shard),
      working: (shard, effects) => worker.working(shard, effects),
      cancel: (shard, effects) => worker.cancel(shard, effects),
      drain: (graceMs) => leaving.drain(graceMs),
    })
    return new ToolMembership(name, lease, worker, tools, leaving)
  }

  async offer(definitions: readonly Definition[]): Promise<void> {
    const agents = definitions.flatMap((each) => Object.values(crewOf(each).agents))
    const remote = agents.flatMap(({ tools }) => tools.filter((tool) => tool.remote))
    for (const tool of remote) {
      const known = this.#tools.get(tool.name)
      if (known !== undefined && known !== tool)
        throw new TroupeError('CREW_INVALID', `there are two remote tools named ${tool.name}: which one is meant?`)
      this.#tools.set(tool.name, tool)
    }
    await this.#lease.announce({ crews: {}, tools: [...this.#tools.keys()] })
    for (const tool of remote) this.#worker.offer(tool.name, tool)
  }

  leave(graceMs: number): Promise<void> {
    return this.#leaving.begin(graceMs)
  }

  get left(): Promise<void> {
    return this.#leaving.gone
  }
}

/** Shows what a remote tool shows, as long as this process has the shard. */
function show(worker: Worker, { shard, effect: id, executor, value }: RemoteProgress): void {
  const effect = worker.active.get(shard)?.state.effects.get(id)
  if (effect === undefined || effect.executor !== executor || effect.body.type !== 'tool.call') return
  const { agent, run, callId } = effect.body
  worker.hub.show(shard, { kind: 'progress', effect: id, agent, run, callId, value })
}

/** Who has to do with mail. */
interface MailParts {
  readonly mail: NatsMail
  readonly worker: Worker
  readonly ownership: NatsOwnership
  readonly refused: NatsRefused
  readonly log: Log
}

/** Mail of this worker's shards, wherever they are at the moment. */
function receive({ mail, worker, ownership, refused, log }: MailParts): void {
  mail.receive({
    whose: (shard) => worker.whose(shard),
    take: async (id, letter, _, first) => {
      if (!isRemoteOutcome(letter)) return worker.receive(id, letter, first)
      await worker.takeOutcome(id, async (shard) => {
        const draft = readRemoteOutcome(letter, shard.state, Math.random)
        if (draft !== null) await shard.post(draft)
      })
    },
    dead: async (shard, draft, code, reason, letter) => {
      // Its actor waits for something to come of it. What comes back is not sent back.
      const isBack = draft !== null && stampOf(draft.cause) !== null && isForeign(draft.from)
      await refused.put(letter, { shard, draft, code, reason, returned: isBack })
      log.warn('dead letter', { shard, letter: letter.id, code, reason })
      if (!isBack) return
      const [sender, actor] = partsOf(draft.from)
      await ownership.send(sender, returned(shard, draft, actor, new TroupeError(code, reason)))
    },
  })
  const settle = ownership.onChange
  const listen = (): void => mail.listen(ownership.partitions())
  ownership.onChange = (shard, gains) => {
    settle(shard, gains)
    listen()
  }
  listen()
}

/** What is behind a door. */
interface DoorParts {
  readonly worker: Worker
  readonly ownership: NatsOwnership
  readonly offered: Offered
  readonly leaving: Leaving
  readonly parts: DistributedParts
  readonly link: NatsLink
  readonly subjects: Subjects
  readonly refused: NatsRefused
}

function doorTo({ worker, ownership, offered, leaving, parts, link, subjects, refused }: DoorParts): Promise<Door> {
  const bind = (crew: Crew): LiveCrew => offered.crews.get(crew.name)!
  const survey = new NatsSurvey({ link, subjects, ownership })
  const drain = (name: string | undefined, graceMs: number) => {
    if (name !== undefined) return ownership.drain(name, graceMs, leaving.handedOver)
    throw new TroupeError('CONFIG_INVALID', 'which worker? `troupe ps` lists them')
  }
  const runtime = new LocalRuntime({ worker, bind, survey, refused, drain, release: () => Promise.resolve() })
  const target: Omit<AnswerTarget, 'store'> = {
    runtime,
    crew: (id, name) => offered.crew({ worker, runtime }, id, name),
    machine: (id, spawn) => offered.machine({ worker, runtime }, id, spawn),
  }
  return openDoor({
    link,
    subjects,
    log: parts.log,
    maxRequests,
    owns: async (shard, crew) => {
      // One that stood still has lost its lease, hears all that was asked meanwhile, and has the next lease in a moment.
      await ownership.leased()
      return worker.owns(shard, crew)
    },
    // Its name changes with its leases.
    answer: (request, signal, client) =>
      answerRequest({ ...target, store: `worker ${ownership.owner}` }, request, signal, client),
  })
}

/** A name that no other process has. */
function workerName(): string {
  const host = hostname()
    .replaceAll(/[^A-Za-z0-9_-]/g, '-')
    .slice(0, 40)
  return `${host}-${process.pid}-${randomBytes(3).toString('hex')}`
}
