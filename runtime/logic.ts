/**
 * Logic: a user's XState machine taken apart once, with everything that it may start.
 *
 * Owns: which logic can run durably and which is refused, the kind by which an actor of it is stored.
 * Does not own: its steps (`logic-step.ts`), the definition around it (`define-machine.ts`).
 *
 * - LG1 What cannot be carried out durably is refused with `MACHINE_UNSUPPORTED` when the machine is defined, wherever it
 *   can be seen there: callbacks, observables, a child without an id or with a system id, `onSnapshot`.
 * - LG2 A kind says where in the definition a logic is, by names of the user's: it stays the same when code is added.
 */
import { type AnyStateMachine, fromPromise, type PromiseActorLogic } from 'xstate'
import { TroupeError } from './errors.js'
import type { Message } from './scope.js'

export type { AnyStateMachine, EventFrom, InputFrom, OutputFrom } from 'xstate'

/** What an actor of a user's does: takes messages as a machine or a reducer, or waits for one outcome: a promise's, an agent's. */
export type LogicForm = 'machine' | 'transition' | 'promise' | 'agent'

/** Logic of XState, as far as it is used. */
export interface XStateLogic {
  readonly config: unknown
  transition(snapshot: unknown, event: unknown, scope: unknown): unknown
  getInitialSnapshot(scope: unknown, input: unknown): unknown
}

/** What a promise may do when its outcome is not known: as of tools. */
export type PromiseEffect = 'pure' | 'idempotent' | 'once'

/** One logic of a definition. */
export interface Logic {
  readonly form: LogicForm
  /** Kind of its actors: `machine:<definition>`, and behind it the way down to this one. */
  readonly kind: string
  readonly machine: AnyStateMachine
  readonly logic: XStateLogic
  readonly version: string | undefined
  /** Every logic that is known in the definition, by XState's object. */
  readonly known: ReadonlyMap<unknown, Logic>
  /** Of a promise. */
  readonly effect: PromiseEffect
  /** Brings the stored state of another version to this one. */
  readonly migrate: Migrate | undefined
  /** Of a call of an agent: whom it calls; empty for anything else. */
  readonly agent: string
  /** Of a definition itself: checks what it is told from outside, at the edge. @throws TroupeError `INPUT_INVALID`, `MESSAGE_REFUSED`. */
  readonly accepts: Accepts | undefined
}

/** What a message from outside is to a machine. */
export type Accepts = (message: unknown) => Promise<Message>

/** State and context of an actor, as they are stored. */
export interface MigratedState {
  readonly value: unknown
  readonly context: unknown
}

/** Pure. @param from the version that stored it; empty for none */
export type Migrate = (stored: MigratedState, from: string) => MigratedState

/** What is told about a machine beside itself. */
export interface LogicOptions {
  readonly name: string
  readonly version: string | undefined
  readonly migrate: Migrate | undefined
  /** Classes of promises, by the names of their sources. */
  readonly promises: Readonly<Record<string, PromiseEffect>>
  readonly accepts?: Accepts
}

/** What an agent is told: text, or plain data, which becomes JSON text. */
export type AgentTask = string | object

/**
 * An agent of the crew as logic of a machine that is its `flow`: `invoke` it as a promise. `input` is what it is told as its
 * user; it has nothing else in mind. Its answer is the `output` of `onDone`: text, or the value of its `output` schema.
 * `onError` is told `{ code, message }`. Leaving the state cancels what it does, and gives back what it has not spent.
 *
 *     setup({ actors: { writer: callAgent('writer') } }).createMachine({
 *       invoke: { src: 'writer', id: 'draft', input: ({ context }) => context.task, onDone: 'done', onError: 'failed' }, …
 *
 * @param name of an agent of the crew @throws Error where it is started by XState itself
 */
export function callAgent<Output = string>(name: string): PromiseActorLogic<Output, AgentTask> {
  const logic = fromPromise<Output, AgentTask>(() =>
    Promise.reject(new TroupeError('MACHINE_UNSUPPORTED', `the agent ${name} works only for a crew of Troupe`)),
  )
  return Object.assign(logic, { agent: name })
}

/** Agents that the logic of a definition calls. */
export function agentsCalledBy(logics: ReadonlyMap<string, Logic>): string[] {
  return [...new Set([...logics.values()].flatMap(({ agent }) => (agent === '' ? [] : [agent])))]
}

/** First part of the kind of every user's actor. */
const kindPrefix = 'machine:'

/** Whether something is logic of a user's and not a shipped machine. */
export function isLogic(machine: object): machine is Logic {
  return 'form' in machine
}

/** Whether an actor is one of a user's. */
export function isUserKind(kind: string): boolean {
  return kind.startsWith(kindPrefix)
}

/** Kind of the actors of a definition itself. */
export function kindOf(name: string): string {
  return `${kindPrefix}${name}`
}

/**
 * Takes a machine apart.
 * @returns everything in it by kind; the machine itself is the first.
 * @throws TroupeError `MACHINE_UNSUPPORTED`.
 */
export function readLogic(machine: AnyStateMachine, options: LogicOptions): ReadonlyMap<string, Logic> {
  return new Reading(options).read(machine)
}

interface StateNode {
  readonly id: string
  readonly config: { readonly invoke?: unknown }
  readonly states: Readonly<Record<string, StateNode>>
  readonly entry: readonly unknown[]
  readonly exit: readonly unknown[]
  readonly always: readonly { readonly actions: readonly unknown[] }[] | undefined
  readonly transitions: ReadonlyMap<string, readonly { readonly actions: readonly unknown[] }[]>
  readonly initial: { readonly actions: readonly unknown[] } | undefined
  readonly invoke: readonly Invocation[]
}

interface Invocation {
  readonly src: string
  readonly id: string
  readonly systemId?: unknown
  readonly onSnapshot?: unknown
}

interface SpawnAction {
  readonly type: string
  readonly src: unknown
  readonly id: unknown
  readonly systemId: unknown
  readonly syncSnapshot: unknown
}

class Reading {
  readonly #options: LogicOptions
  readonly #known = new Map<unknown, Logic>()
  readonly #byKind = new Map<string, Logic>()

  constructor(options: LogicOptions) {
    this.#options = options
  }

  read(machine: AnyStateMachine): ReadonlyMap<string, Logic> {
    if (formOf(machine) !== 'machine') throw this.#refusal('', 'something that is no state machine')
    this.#add(machine, kindOf(this.#options.name), '', this.#options.migrate)
    const unused = Object.keys(this.#options.promises).find((name) => !this.#promiseNames.has(name))
    if (unused !== undefined) throw this.#refusal('', `a class for '${unused}', which is no promise of it,`)
    return this.#byKind
  }

  readonly #promiseNames = new Set<string>()

  /** @param source the name by which its parent knows it; empty for the machine itself */
  #add(logic: unknown, wanted: string, source: string, migrate?: Migrate): void {
    if (this.#known.has(logic)) return
    const form = formOf(logic)
    let kind = wanted
    while (this.#byKind.has(kind)) kind += '~'
    if (form === null) throw this.#refusal(source, 'callback or observable logic')
    if (form === 'promise') this.#promiseNames.add(source)
    const found: Logic = {
      form,
      kind,
      machine: logic as AnyStateMachine,
      logic: logic as XStateLogic,
      // A child has a version of its own, or none.
      version: source === '' ? this.#options.version : versionOf(logic),
      known: this.#known,
      effect: this.#options.promises[source] ?? 'once',
      migrate,
      accepts: source === '' ? this.#options.accepts : undefined,
      agent: form === 'agent' ? (logic as { readonly agent: string }).agent : '',
    }
    this.#known.set(logic, found)
    this.#byKind.set(kind, found)
    if (form === 'machine') this.#readMachine(found)
  }

  #readMachine({ machine, kind }: Logic): void {
    const actors = machine.implementations.actors as Readonly<Record<string, unknown>>
    for (const [source, logic] of Object.entries(actors)) {
      // One that is never started does no harm; one that is, is refused where it is named, or at the step.
      if (formOf(logic) !== null) this.#add(logic, `${kind}/${source}`, source)
    }
    for (const action of Object.values(machine.implementations.actions)) this.#readAction(action, kind, actors)
    this.#readNode(machine.root as unknown as StateNode, kind, actors)
  }

  #readNode(node: StateNode, kind: string, actors: Readonly<Record<string, unknown>>): void {
    for (const [index, { src, id, systemId, onSnapshot }] of node.invoke.entries()) {
      if (onSnapshot !== undefined) throw this.#refusal(id, 'onSnapshot')
      if (systemId !== undefined) throw this.#refusal(id, 'a system id')
      this.#addSource(inlineSource(node, index) ?? src, `invoke.${id}`, kind, actors)
    }
    const ways = [...node.transitions.values()].flat()
    const transitions = [...ways, ...(node.always ?? []), ...(node.initial === undefined ? [] : [node.initial])]
    for (const action of [...node.entry, ...node.exit, ...transitions.flatMap((each) => each.actions)])
      this.#readAction(action, kind, actors)
    for (const child of Object.values(node.states)) this.#readNode(child, kind, actors)
  }

  #readAction(action: unknown, kind: string, actors: Readonly<Record<string, unknown>>): void {
    if (typeof action !== 'function' || (action as unknown as SpawnAction).type !== 'xstate.spawnChild') return
    const { src, id, systemId, syncSnapshot } = action as unknown as SpawnAction
    const name = typeof id === 'string' ? id : ''
    if (id === undefined) throw this.#refusal(name, 'a child without an id')
    if (systemId !== undefined) throw this.#refusal(name, 'a system id')
    if (syncSnapshot === true) throw this.#refusal(name, 'reading the snapshots of a child')
    this.#addSource(src, `spawn.${name}`, kind, actors)
  }

  /** @param source a name among the machine's actors, or the logic itself @param inline its name in that case */
  #addSource(source: unknown, inline: string, kind: string, actors: Readonly<Record<string, unknown>>): void {
    const logic = typeof source === 'string' ? actors[source] : source
    const name = typeof source === 'string' ? source : inline
    if (logic === undefined) throw this.#refusal(name, 'a child whose logic is not there')
    this.#add(logic, `${kind}/${name}`, name)
  }

  #refusal(source: string, what: string): TroupeError {
    const where = source === '' ? this.#options.name : `${this.#options.name}: ${source}`
    return new TroupeError('MACHINE_UNSUPPORTED', `${where}: ${what} cannot be carried out durably`)
  }
}

/** The logic that an invocation brings with it; null for one that names its logic. */
function inlineSource(node: StateNode, index: number): unknown {
  const { invoke } = node.config
  const { src } = (Array.isArray(invoke) ? invoke[index] : invoke) as { readonly src: unknown }
  return typeof src === 'string' ? null : src
}

function versionOf(logic: unknown): string | undefined {
  const { version } = logic as { readonly version?: unknown }
  return typeof version === 'string' ? version : undefined
}

/** What logic is; null for what cannot run durably: only logic without a start of its own is pure, but for promises. */
export function formOf(logic: unknown): LogicForm | null {
  if (typeof logic !== 'object' || logic === null) return null
  if ('__xstatenode' in logic) return 'machine'
  if ('agent' in logic && typeof logic.agent === 'string') return 'agent'
  const { config, transition, start } = logic as { config?: unknown; transition?: unknown; start?: unknown }
  if (typeof config !== 'function' || typeof transition !== 'function') return null
  if (start === undefined) return 'transition'
  try {
    // Of all that XState offers only a promise is done by this; a callback throws, an observable goes on.
    const resolve = { type: 'xstate.promise.resolve', data: null }
    const next = (logic as XStateLogic).transition({ status: 'active' }, resolve, { self: {} })
    return (next as { status?: unknown }).status === 'done' ? 'promise' : null
  } catch {
    return null
  }
}
