/**
 * The state of a shard: everything that its journal adds up to.
 *
 * Owns: the tables (actors, conversations, effects, timers, runs) and their plain-data form.
 * Does not own: how a message changes them (`commit.ts`), where the plain data is kept (`snapshot.ts`).
 *
 * - T1 Two states that serve the same commits have the same plain data, byte for byte.
 * - T2 The plain data holds no content of messages: conversations name the records that have it.
 */
import type { HumanAsk, ModelCall, RoundPrepare, ToolCall } from '../machines/index.js'
import { contentHash, encode } from './codec.js'
import { crewVersion, type CrewVersion } from './crew-version.js'
import type { DeadLetter } from './dead-letter.js'
import { Conversation, type Conversations, fromStoredEntry, type StoredEntry, toStoredEntry } from './conversation.js'
import { TroupeError } from './errors.js'
import { Heard } from './heard.js'
import { Mail, type StoredMail } from './mail.js'
import { isLogic, isUserKind } from './logic.js'
import type { PromiseCall } from './promise-call.js'
import { Runs, type RunState } from './runs.js'
import type { Machine, Message, PersistedSnapshot, Scope, Snapshot } from './scope.js'

/** The machines that a shard may run, by actor kind. */
export type Machines = Readonly<Record<string, Machine>>

/** Sequence and index of the commit that made something. */
export type Generation = `${number}-${number}`

/** One running actor. */
export interface Actor {
  readonly kind: string
  /** Address of its supervisor. */
  readonly parent: string
  readonly generation: Generation
  snapshot: Snapshot
}

/** Work for a port whose outcome has not come in. */
export interface Effect {
  readonly id: Generation
  /** The actor that asked. */
  readonly from: string
  readonly body: ModelCall | ToolCall | HumanAsk | PromiseCall | RoundPrepare
  /** Length and hash of the conversation that it names. */
  readonly length: number
  readonly hash: string
  /** Who works on it: the owner that asked for it, or the one that its `dispatched` record names. Empty when embedded. */
  executor: string
  /** Epoch milliseconds until which a `once` call may start; null before its `dispatched` record. */
  startBy: number | null
  /** When its shard was first taken from whoever dispatched it, in epoch milliseconds; absent while that has it. */
  lostAt?: number
  /** A clean stop left it before any port had it: it is dispatched as it is, not interrupted. */
  parked: boolean
}

/** Work for a port of some process: anything but a question to a person. */
export interface PortEffect extends Effect {
  readonly body: ModelCall | ToolCall | PromiseCall | RoundPrepare
}

/** Whether some process has an effect, or will: what a person is asked no process does. */
export function isPortWork(effect: Effect): effect is PortEffect {
  return effect.body.type !== 'human.ask'
}

/** How many effects some process has, or will. */
export function portWork({ effects }: Pick<ShardState, 'effects'>): number {
  let count = 0
  for (const effect of effects.values()) if (isPortWork(effect)) count += 1
  return count
}

/** A message that is due later. */
export interface Timer {
  /** Whose it is: with this one it goes. */
  readonly actor: string
  /** Who gets the message, when it is somebody else. */
  readonly to?: string
  readonly id: string
  readonly generation: Generation
  dueAt: number
  readonly message: Message
}

/** The whole state. */
export interface ShardState {
  readonly shard: string
  sequence: number
  at: number
  /** Who took it, `<worker>.<epoch>`; empty when embedded, and when its last owner left it. */
  owner: string
  /** Canonical JSON of the crew's definition; empty before the first one. */
  definition: string
  readonly actors: Map<string, Actor>
  readonly logs: Conversations
  readonly effects: Map<string, Effect>
  readonly timers: Map<string, Timer>
  readonly runs: Runs
  /** Grants of effects that were closed without a real bill, by effect: a late one still counts. */
  readonly owed: Map<string, { readonly keeper: string; readonly grant: string }>
  /** Messages that nobody could process, by id, the oldest first. */
  readonly letters: Map<string, DeadLetter>
  /** Keys of what was said to a machine of the user's from outside. */
  heard: Heard
  mail: Mail
}

/** The form of the plain data; another one is refused. */
export const stateVersion = 2

type StoredActor = readonly [string, string, string, Generation, PersistedSnapshot]
/** A conversation's plain data: name, entries, staged results, hash. */
export type StoredLog = readonly [string, readonly StoredEntry[], readonly (readonly [number, StoredEntry])[], string]

/** The plain data of a state. */
export interface StoredState {
  readonly version: number
  readonly sequence: number
  readonly at: number
  readonly owner: string
  readonly definition: string
  /** Versions of the machines that wrote it. */
  readonly machines: Readonly<Record<string, string>>
  readonly actors: readonly StoredActor[]
  readonly logs: readonly StoredLog[]
  readonly effects: readonly Effect[]
  readonly timers: readonly Timer[]
  readonly runs: readonly RunState[]
  readonly owed: readonly (readonly [string, { readonly keeper: string; readonly grant: string }])[]
  /** Absent when there are none. */
  readonly letters?: readonly DeadLetter[]
  /** Absent when there are none. */
  readonly heard?: readonly (readonly [string, number])[]
  readonly mail: StoredMail
}

/** The state of a shard without a commit. */
export function emptyState(shard: string): ShardState {
  return {
    shard,
    sequence: 0,
    at: 0,
    owner: '',
    definition: '',
    actors: new Map(),
    logs: new Map(),
    effects: new Map(),
    timers: new Map(),
    runs: new Runs(),
    owed: new Map(),
    letters: new Map(),
    heard: new Heard(),
    mail: new Mail(),
  }
}

export function toStoredState(state: ShardState, scope: Scope, machines: Machines): StoredState {
  return {
    version: stateVersion,
    sequence: state.sequence,
    at: state.at,
    owner: state.owner,
    definition: state.definition,
    machines: versionsOf(machines, state),
    actors: [...state.actors].map(
      ([address, actor]): StoredActor => [
        address,
        actor.kind,
        actor.parent,
        actor.generation,
        scope.persist(actor.snapshot),
      ],
    ),
    logs: [...state.logs].map(([name, log]) => toStoredLog(name, log)),
    effects: [...state.effects.values()],
    timers: [...state.timers.values()],
    runs: [...state.runs.values()],
    owed: [...state.owed],
    ...(state.letters.size === 0 ? {} : { letters: [...state.letters.values()] }),
    ...(state.heard.size === 0 ? {} : { heard: state.heard.toStored() }),
    mail: state.mail.toStored(),
  }
}

export function toStoredLog(name: string, log: Conversation): StoredLog {
  const staged = [...log.staged].map(([index, entry]) => [index, toStoredEntry(entry)] as const)
  return [name, log.entries.map(toStoredEntry), staged, log.hash]
}

/**
 * Rebuilds a state. Conversations come without text.
 * @param accept whether an actor may go on under another version of its machine, said in words
 * @throws TroupeError `SNAPSHOT_INCOMPATIBLE` for another form, an unknown actor kind or a state that is gone.
 */
export function fromStoredState(
  shard: string,
  stored: StoredState,
  scope: Scope,
  machines: Machines,
  accept: (difference: string) => boolean = () => false,
): ShardState {
  if (stored.version !== stateVersion) {
    throw new TroupeError(
      'SNAPSHOT_INCOMPATIBLE',
      `${shard}: snapshot of form ${stored.version}, this release reads ${stateVersion}`,
    )
  }
  const state = emptyState(shard)
  state.sequence = stored.sequence
  state.at = stored.at
  state.owner = stored.owner
  state.definition = stored.definition
  for (const [address, kind, parent, generation, persisted] of stored.actors) {
    const machine = machines[kind]
    if (machine === undefined) throw missing(shard, kind)
    const migrated = migrate(machine, persisted, stored.machines[kind] ?? '')
    if (migrated === null) {
      const versions = `version ${stored.machines[kind] || '?'} of its machine, this is ${machine.version ?? '?'}`
      const difference = `${address} was run by ${versions}`
      if (!accept(difference)) throw new TroupeError('SNAPSHOT_INCOMPATIBLE', `${shard}: ${difference}`)
    }
    state.actors.set(address, { kind, parent, generation, snapshot: scope.restore(machine, migrated ?? persisted) })
  }
  for (const [name, entries, staged, hash] of stored.logs) {
    const log = new Conversation()
    log.entries.push(...entries.map(fromStoredEntry))
    for (const [index, entry] of staged) log.staged.set(index, fromStoredEntry(entry))
    log.hash = hash
    state.logs.set(name, log)
  }
  for (const effect of stored.effects) state.effects.set(effect.id, { ...effect })
  for (const timer of stored.timers) state.timers.set(timerKey(timer.actor, timer.id), { ...timer })
  for (const run of stored.runs) state.runs.set(run.run, { ...run })
  for (const [effect, grant] of stored.owed) state.owed.set(effect, grant)
  for (const letter of stored.letters ?? []) state.letters.set(letter.id, letter)
  state.heard = new Heard(stored.heard)
  state.mail = Mail.fromStored(stored.mail)
  return state
}

/** Hex hash of the plain data: equal states have equal ones. */
export function stateHash(state: ShardState, scope: Scope, machines: Machines): string {
  return contentHash(encode(toStoredState(state, scope, machines)))
}

/** What an actor of this version of its machine goes on from; null when the version that stored it is another one. */
function migrate(machine: Machine, persisted: PersistedSnapshot, version: string): PersistedSnapshot | null {
  if (version === (machine.version ?? '')) return persisted
  if (!isLogic(machine) || machine.migrate === undefined) return null
  // The order in which its states were entered is that of the old ones.
  const { nodes: _, ...rest } = persisted
  const { value, context } = machine.migrate({ value: persisted.value, context: persisted.context }, version)
  return { ...rest, value, context }
}

/** Why an actor of this kind cannot go on here. A user's machine may only not have been named yet. */
export function missing(shard: string, kind: string): TroupeError {
  if (!isUserKind(kind)) return new TroupeError('SNAPSHOT_INCOMPATIBLE', `${shard}: no machine of kind ${kind}`)
  const message = `${shard} runs ${kind}, and this process has not been told of it: spawn it, or name it to its runtime`
  return new TroupeError('MACHINE_UNKNOWN', message)
}

/** Versions of the shipped machines by kind, and of those that a shard has of its user. */
export function versionsOf(machines: Machines, { actors }: Pick<ShardState, 'actors'>): Record<string, string> {
  const versions: Record<string, string> = {}
  for (const [kind, machine] of Object.entries(machines)) if (!isLogic(machine)) versions[kind] = machine.version ?? ''
  for (const { kind } of actors.values()) if (isUserKind(kind)) versions[kind] = machines[kind]?.version ?? ''
  return versions
}

/** Whether machines are those that were recorded: all that are shipped, and those of the user that are named. */
export function areRecorded(machines: Machines, recorded: Readonly<Record<string, string>>): boolean {
  const shipped = Object.keys(machines).every((kind) => isUserKind(kind) || recorded[kind] !== undefined)
  return shipped && Object.entries(recorded).every(([kind, version]) => (machines[kind]?.version ?? '') === version)
}

/** Key of a timer in its table: a second one of the same id replaces the first. */
export function timerKey(actor: string, id: string): string {
  return `${actor}|${id}`
}

/** Earliest due time of a timer, of those after `after`; null when there is none. */
export function nextDueAt(state: ShardState, after = Number.NEGATIVE_INFINITY): number | null {
  let next: number | null = null
  for (const timer of state.timers.values()) {
    if (timer.dueAt > after && (next === null || timer.dueAt < next)) next = timer.dueAt
  }
  return next
}

/** The crew and the version whose definition this is; empty for none. */
export function crewVersionOf(definition: string): CrewVersion {
  return definition === '' ? '' : crewVersion(crewNameOf(definition), contentHash(definition))
}

/** The name of the crew whose definition this is; empty for none. */
export function crewNameOf(definition: string): string {
  return definition === '' ? '' : (JSON.parse(definition) as { data: { name: string } }).data.name
}

/** Nothing is open or kept for anybody, and the last run ended before a time. */
export function isAtRest({ effects, timers, mail, letters, runs, actors, at }: ShardState, since: number): boolean {
  if (effects.size + timers.size + mail.outbox.size + letters.size + runs.unfinished.size > 0) return false
  // What crews spend from is not for one run only.
  if (actors.has('pool/main')) return false
  const machine = actors.get('machine/main')
  if (machine !== undefined && (machine.snapshot.status === 'active' || at >= since)) return false
  return [...runs.values()].every(({ end }) => end === null || end.at < since)
}
