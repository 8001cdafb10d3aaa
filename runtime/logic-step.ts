/**
 * Steps of users' logic: machines by XState itself, reducers, and promises that wait for their outcome.
 *
 * Owns: what XState is given to act through, children as names instead of live actors, the stored form of it all.
 * Does not own: what can run (`logic.ts`), what becomes of an action (`user-actors.ts`).
 *
 * - LS1 No factory of a child and no action of the user's runs inside a step: both come back as data.
 * - LS2 A child that is stopped in the step that starts it never starts, and nothing is sent to it.
 * - LS3 What is sent to a child in the step that starts it comes to it behind its start, as in XState.
 * - LS4 What an actor keeps and says is plain data (`plain.ts`).
 * - LS5 A stored actor goes on like the live one: parallel states are left and entered in the same order.
 */
import type { AnyMachineSnapshot, AnyStateMachine } from 'xstate'
import { TroupeError } from './errors.js'
import type { Logic } from './logic.js'
import { errorData, toPlain } from './plain.js'
import type { Action, Message, PersistedSnapshot, Step } from './scope.js'

/** A child by the address of its actor. */
export interface Child {
  readonly address: string
  readonly kind: string
}

/** The live state of a user's actor. */
export interface LogicSnapshot {
  readonly logic: Logic
  /** What its parent calls it. */
  readonly id: string
  readonly status: 'active' | 'done' | 'error'
  readonly value: unknown
  readonly context: unknown
  readonly output: unknown
  /** Of one that failed: what its parent is told. */
  readonly error: unknown
  /** By the names that the machine has for them. */
  readonly children: Readonly<Record<string, Child>>
  /** XState's own, of a machine. */
  readonly inner: AnyMachineSnapshot | null
}

/** Where a user's actor stands. */
export interface Place {
  readonly address: string
  /** Address of its parent; null for one without. */
  readonly parent: string | null
  /** Names a new child. */
  readonly child: () => string
}

/** Microsteps that one message may cause in one machine. */
export const maxMicrosteps = 1_000
/** Actors that a machine of a user's may send to, beside its parent: others, its own children, machines of other crews. */
const addressable = /^((machine|child)|[A-Za-z0-9_-]{1,64}\/machine)\/[A-Za-z0-9_-]{1,64}$/
/** Longest delay: later the clock's own arithmetic is at its end. */
const maxDelayMs = 100 * 365 * 24 * 3_600_000

interface CollectedAction {
  readonly type: string
  readonly params: unknown
  readonly info?: { readonly context: unknown; readonly event: unknown }
  readonly exec?: (info: unknown, params: unknown) => unknown
}

/** What XState makes of a child: an actor that is never started. */
interface ChildRef {
  id: string
  address: string
  logic: unknown
  readonly src: unknown
  readonly options: { readonly id?: string; readonly systemId?: unknown; readonly input?: unknown }
  readonly _syncSnapshot?: boolean | undefined
}

/** A child under way in this step, with its logic. */
interface Born {
  readonly ref: ChildRef
  readonly logic: Logic
}

type PureScope = Parameters<AnyStateMachine['transition']>[2]

/** The first step of a new actor of a user's. Never throws for what a machine does: as in XState its status says so. */
export function startLogic(logic: Logic, id: string, input: unknown, place: Place): Step {
  const first = { logic, id, status: 'active', value: {}, output: undefined, error: undefined, inner: null } as const
  if (logic.form === 'promise') {
    const context = toPlain(input, `the input of ${id}`) ?? null
    return stepOf({ ...first, context, children: {} }, [{ kind: 'ask', input: context }])
  }
  if (logic.form === 'agent') {
    const context = toPlain(input, `the input of ${id}`) ?? null
    return stepOf({ ...first, value: 'working', context, children: {} }, [{ kind: 'call', input: context }])
  }
  const step = new LogicStep(logic, id, place)
  const begun = logic.logic.getInitialSnapshot(step.scope, input)
  if (logic.form === 'machine') return step.end(begun as AnyMachineSnapshot, {}, true)
  const context = toPlain((begun as { context: unknown }).context, 'the context')
  return stepOf({ ...first, context: context ?? null, children: {} }, step.actions)
}

/** One message. Throws what the machine throws. */
export function deliverLogic(snapshot: LogicSnapshot, message: Message, place: Place): Step {
  const { logic, id } = snapshot
  if (logic.form === 'promise') {
    // What certainly has not begun may be begun, and so may what may be done twice.
    const again = message.type === 'effect.interrupted' && (message['started'] !== true || logic.effect !== 'once')
    return again ? stepOf(snapshot, [{ kind: 'ask', input: snapshot.context }]) : stepOf(settled(snapshot, message))
  }
  if (logic.form === 'agent') return agentStep(snapshot, message)
  const step = new LogicStep(logic, id, place)
  if (logic.form === 'machine') {
    const before = snapshot.inner!
    return step.end(logic.machine.transition(before, message, step.scope) as AnyMachineSnapshot, snapshot.children)
  }
  const before = { status: 'active', context: snapshot.context, output: undefined, error: undefined }
  const next = logic.logic.transition(before, message, step.scope) as { context: unknown }
  const context = toPlain(next.context, 'the context') ?? null
  return stepOf(context === snapshot.context ? snapshot : { ...snapshot, context }, step.actions)
}

/** The plain data of a user's actor. */
export function persistLogic(snapshot: LogicSnapshot): PersistedSnapshot {
  const { id, value, context, status, children, inner, output, error } = snapshot
  const history: Record<string, string[]> = {}
  const nodes = (inner?._nodes ?? []) as readonly { readonly id: string; readonly type: string }[]
  for (const [key, remembered] of Object.entries((inner?.historyValue ?? {}) as Record<string, { id: string }[]>))
    history[key] = remembered.map((node) => node.id)
  return {
    ...{ value, context, status, history, id, children },
    ...(output === undefined ? {} : { output }),
    ...(error === undefined ? {} : { error }),
    // Which of several states is left first depends on when each was entered.
    ...(nodes.some(({ type }) => type === 'parallel') ? { nodes: nodes.map((node) => node.id) } : {}),
  }
}

/** A live snapshot from stored data. Throws when the machine has no such state. */
export function restoreLogic(logic: Logic, persisted: PersistedSnapshot): LogicSnapshot {
  const { id = '', value, context, status, children = {}, output, error } = persisted
  const known = new Set([...logic.known.values()].map(({ kind }) => kind))
  for (const { kind } of Object.values(children)) if (!known.has(kind)) throw new Error(`there is no logic ${kind}`)
  const inner =
    logic.form === 'machine' && value !== notBegun ? restoreMachine(logic.machine, persisted, children) : null
  const state = status as LogicSnapshot['status']
  return { logic, id, status: state, value, context, output, error, children, inner }
}

function restoreMachine(
  machine: AnyStateMachine,
  persisted: PersistedSnapshot,
  children: Readonly<Record<string, Child>>,
): AnyMachineSnapshot {
  const byId = (machine as unknown as { readonly idMap: ReadonlyMap<string, unknown> }).idMap
  const nodeOf = (id: string): unknown => byId.get(id) ?? machine.getStateNodeById(id)
  const { value, context, status, output, nodes } = persisted
  const historyValue = Object.fromEntries(
    Object.entries(persisted.history).map(([key, ids]) => [key, ids.map((id) => nodeOf(id))]),
  )
  const stored = { value, status, output, context: {}, historyValue, children: {}, error: undefined }
  const restored: AnyMachineSnapshot = machine.restoreSnapshot(stored as never, refusingScope as never)
  const refs = Object.entries(children).map(([id, { address }]) => [id, { id, address, _parent: null }])
  return Object.assign(restored, {
    context: context as never,
    children: Object.fromEntries(refs) as never,
    ...(nodes === undefined ? {} : { _nodes: nodes.map(nodeOf) as never, value: value as never }),
  })
}

/** State of a machine whose input is still to be read. */
export const notBegun = null

/** A call of an agent: it works, then its answer is read, which is no part of any machine. */
function agentStep(snapshot: LogicSnapshot, message: Message): Step {
  const isWorking = snapshot.value === 'working'
  if (message.type !== 'delegate.finished') {
    if (isWorking) return stepOf(snapshot)
    return message.type === 'effect.interrupted' ? reads(snapshot) : stepOf(settled(snapshot, message))
  }
  if (!isWorking) return stepOf(snapshot)
  const { code, reason } = message
  if (code !== null) return stepOf({ ...snapshot, status: 'error', error: { code, message: reason } })
  return reads({ ...snapshot, value: 'answering' })
}

/** Reading changes nothing, so it may be done again. */
function reads(snapshot: LogicSnapshot): Step {
  return stepOf(snapshot, [{ kind: 'read' }])
}

/** A promise's end. */
function settled(snapshot: LogicSnapshot, message: Message): LogicSnapshot {
  switch (message.type) {
    case 'promise.resolved':
      return { ...snapshot, status: 'done', output: message['output'] }
    case 'promise.rejected':
      return { ...snapshot, status: 'error', error: message['error'] }
    case 'effect.interrupted':
      return { ...snapshot, status: 'error', error: unknownOutcome }
    case 'effect.crashed':
      return { ...snapshot, status: 'error', error: crashed }
    default:
      return snapshot
  }
}

const unknownOutcome = { code: 'EFFECT_UNKNOWN', message: 'whether it was done is not known' }
const crashed = { code: 'EFFECT_CRASHED', message: 'the process died three times over it' }

function stepOf(snapshot: LogicSnapshot, actions: readonly Action[] = []): Step {
  return { snapshot, actions, taken: true }
}

function refusing(what: string, who = 'a machine'): () => never {
  return () => {
    throw new TroupeError('MACHINE_UNSUPPORTED', `${who}: ${what} cannot be carried out durably`)
  }
}

const refusingScope = { self: {}, system: {}, actionExecutor: () => undefined }

/** One step under way. */
class LogicStep {
  readonly actions: Action[] = []
  readonly scope: PureScope
  readonly #logic: Logic
  readonly #id: string
  readonly #place: Place
  readonly #self: object
  readonly #born = new Map<string, Born>()
  #microsteps = 0

  constructor(logic: Logic, id: string, place: Place) {
    this.#logic = logic
    this.#id = id
    this.#place = place
    const { address, parent } = place
    const refuse = (what: string): (() => never) => refusing(what, address)
    const system = {
      _bookId: () => '',
      _register: refuse('a live actor'),
      _unregister: () => undefined,
      _set: refuse('a system id'),
      _sendInspectionEvent: (event: { type: string; actorRef: ChildRef }) =>
        event.type === '@xstate.actor' ? this.#bear(event.actorRef) : this.#microstep(),
      get: refuse('system.get'),
      getAll: refuse('system.getAll'),
      _logger: () => undefined,
      scheduler: { schedule: refuse('a live timer'), cancel: refuse('a live timer') },
    }
    this.#self = {
      id,
      sessionId: address,
      address,
      send: refuse('self.send'),
      getSnapshot: refuse('self.getSnapshot'),
      system,
      _parent: parent === null ? undefined : { address: parent },
    }
    this.scope = {
      self: this.#self,
      id,
      sessionId: address,
      system,
      logger: () => undefined,
      defer: refuse('spawn inside assign'),
      // Of a reducer; a machine's is an action.
      emit: (event: Message) => this.#emit(event),
      stopChild: refuse('a live child'),
      actionExecutor: (action: CollectedAction) => this.#collect(action),
    } as unknown as PureScope
  }

  #microstep(): void {
    this.#microsteps += 1
    if (this.#microsteps <= maxMicrosteps) return
    const reason = `${this.#place.address} did not come to rest after ${maxMicrosteps} microsteps`
    throw new TroupeError('COMMIT_OVERFLOW', reason)
  }

  /** XState makes an actor of each child: it is told of it before anything of its logic runs. */
  #bear(ref: ChildRef): void {
    const { id, systemId } = ref.options
    if (typeof id !== 'string') return this.#refuse('a child without an id')
    if (systemId !== undefined) return this.#refuse('a system id')
    if (ref._syncSnapshot === true) return this.#refuse('reading the snapshots of a child')
    const logic = this.#logic.known.get(ref.logic)
    if (logic === undefined) return this.#refuse(`a child '${id}' of logic that its definition does not name`)
    ref.logic = { getInitialSnapshot: () => ({ status: 'active' }) }
    ref.address = this.#place.child()
    this.#born.set(ref.address, { ref, logic })
  }

  #refuse(what: string): never {
    return refusing(what, this.#place.address)()
  }

  #collect({ type, params, info, exec }: CollectedAction): void {
    // An action of one's own has no parameters, or any.
    const given = (params ?? {}) as Record<string, unknown>
    switch (type) {
      case 'xstate.sendTo':
        // Whom it is for may be known only at the end of the step: XState fills it in there.
        this.#sends.push([this.actions.length, given])
        this.actions.push({ kind: 'emit', event: given['event'] as Message })
        return
      case 'xstate.raise':
        if (typeof given['delay'] === 'number') this.#send(this.actions.length, { ...given, to: this.#self })
        return
      case 'xstate.cancel':
        this.actions.push({ kind: 'cancel', id: String(given['sendId']) })
        return
      case 'xstate.emit':
        return this.#emit(given['event'] as Message)
      case 'xstate.log':
        this.actions.push({ kind: 'log', label: labelOf(given['label']), value: shown(given['value']) })
        return
      case 'xstate.spawnChild':
        return this.#start(given['actorRef'] as ChildRef | undefined, given['input'])
      case 'xstate.stopChild':
        // The parameters are the child itself, and nothing for one that there is not.
        if ('address' in given) this.actions.push({ kind: 'stop', child: given['address'] as string })
        return
      default:
        if (exec !== undefined) this.#custom(type, info!, params, exec)
    }
  }

  readonly #sends: (readonly [at: number, params: Record<string, unknown>])[] = []

  #emit(event: Message): void {
    this.actions.push({ kind: 'emit', event: messageOf(event, 'an emitted event') })
  }

  #start(ref: ChildRef | undefined, input: unknown): void {
    const born = this.#born.get(ref?.address ?? '')
    if (born === undefined) return this.#refuse('a child whose logic is not there')
    const { logic } = born
    const given = toPlain(input, `the input of ${born.ref.id}`)
    this.actions.push({ kind: 'start', child: born.ref.address, id: born.ref.id, logic: logic.kind, input: given })
  }

  #custom(
    name: string,
    { context, event }: { readonly context: unknown; readonly event: unknown },
    params: unknown,
    exec: (info: unknown, params: unknown) => unknown,
  ): void {
    const { address } = this.#place
    const self = {
      ...{ id: this.#id, sessionId: address, address },
      send: refusing('self.send', address),
      getSnapshot: refusing('self.getSnapshot', address),
    }
    const system = { get: refusing('system.get', address), getAll: refusing('system.getAll', address) }
    this.actions.push({ kind: 'custom', name, run: () => exec({ context, event, self, system }, params) })
  }

  #send(at: number, { to, event, delay, id }: Record<string, unknown>): void {
    // As in XState a delay that nobody has defined is none.
    const delayMs = typeof delay === 'number' ? Math.max(0, delay) : null
    if (delayMs !== null && !(delayMs <= maxDelayMs)) return this.#refuse(`a delay of ${delayMs}`)
    this.actions[at] = {
      kind: 'send',
      to: this.#addressOf(to),
      message: messageOf(event, 'a message'),
      delayMs,
      id: typeof id === 'string' ? id : null,
    }
  }

  #addressOf(target: unknown): string {
    const { address, parent } = this.#place
    const to = (target as { readonly address?: unknown } | undefined)?.address
    if (typeof to !== 'string') return this.#refuse('sending to something that is not an address')
    if (to === address || to === parent || addressable.test(to)) return to
    return this.#refuse(`sending to ${to.slice(0, 200)}`)
  }

  /** @param isFirst the machine has just begun: XState does nothing that a start said which failed */
  end(inner: AnyMachineSnapshot, before: LogicSnapshot['children'], isFirst = false): Step {
    const { status } = inner
    const value = inner.value as unknown
    if (status === 'error' && isFirst) this.actions.length = 0
    else for (const [at, params] of this.#sends) this.#send(at, params)
    const context = toPlain(inner.context as unknown, 'the context')
    if (context !== inner.context) Object.assign(inner, { context })
    const snapshot: LogicSnapshot = {
      ...{ logic: this.#logic, id: this.#id, value, context, inner, children: this.#childrenOf(inner, before) },
      status: status as LogicSnapshot['status'],
      output: toPlain(inner.output as unknown, 'the output'),
      error: status === 'error' ? errorData(inner.error) : undefined,
    }
    const actions = this.#inOrder()
    return stepOf(snapshot, isFirst && status === 'active' ? startsFirst(actions, snapshot.children) : actions)
  }

  #childrenOf({ children }: AnyMachineSnapshot, before: LogicSnapshot['children']): LogicSnapshot['children'] {
    const refs = Object.entries(children as Readonly<Record<string, ChildRef | undefined>>)
    if (refs.length === 0) return {}
    return Object.fromEntries(
      refs.map(([id, ref]): [string, Child] => {
        const known = before[id]
        if (known !== undefined && known.address === ref?.address) return [id, known]
        const born = this.#born.get(ref?.address ?? '')
        if (born === undefined) return this.#refuse(`a child '${id}' whose logic is not there`)
        return [id, { address: born.ref.address, kind: born.logic.kind }]
      }),
    )
  }

  /** The actions as they take effect: see LS2 and LS3. */
  #inOrder(): readonly Action[] {
    if (this.#born.size === 0) return this.actions
    const stopped = new Set(this.actions.flatMap((action) => (action.kind === 'stop' ? [action.child] : [])))
    const unborn = new Set([...this.#born.keys()].filter((child) => stopped.has(child)))
    const waiting = new Map<string, Action[]>()
    const ordered: Action[] = []
    const coming = new Set(this.#born.keys())
    for (const action of this.actions) {
      if (action.kind === 'start' || action.kind === 'stop') {
        if (unborn.has(action.child)) continue
        ordered.push(action, ...(action.kind === 'start' ? (waiting.get(action.child) ?? []) : []))
        coming.delete(action.child)
      } else if (action.kind === 'send' && action.delayMs === null && coming.has(action.to)) {
        if (!unborn.has(action.to)) waiting.set(action.to, [...(waiting.get(action.to) ?? []), action])
      } else ordered.push(action)
    }
    return ordered
  }
}

/** XState starts the children of a machine that begins before it does anything that its first step said. */
function startsFirst(actions: readonly Action[], children: LogicSnapshot['children']): readonly Action[] {
  if (!actions.some(({ kind }) => kind === 'start')) return actions
  const order = Object.values(children).map(({ address }) => address)
  const starts = actions.filter((action) => action.kind === 'start')
  starts.sort((a, b) => order.indexOf(a.child) - order.indexOf(b.child))
  return [...starts, ...actions.filter(({ kind }) => kind !== 'start')]
}

/** A message that somebody made: plain data with a type. @throws TroupeError `CONTEXT_NOT_PLAIN`. */
function messageOf(message: unknown, what: string): Message {
  const plain = toPlain(message, what) as Message | null | undefined
  if (typeof plain === 'object' && plain !== null && typeof plain.type === 'string') return plain
  throw new TroupeError('CONTEXT_NOT_PLAIN', `${what} has no type`)
}

function labelOf(label: unknown): string | null {
  return typeof label === 'string' ? label.slice(0, 256) : null
}

/** A value that is only shown: what is no plain data is shown as text. */
function shown(value: unknown): unknown {
  try {
    return toPlain(value, 'a logged value') ?? null
  } catch {
    return String(value).slice(0, 2_048)
  }
}
