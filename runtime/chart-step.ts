/**
 * One message taken by a machine that has a chart: transitions until it comes to rest.
 *
 * Owns: the order of steps inside one message, evaluating XState's own actions, `enqueueActions`.
 * Does not own: which transitions there are (`chart.ts`), what becomes of an action (`scope.ts`).
 *
 * - CS1 Each action works on the context that the one before it left; what it says goes out in the same order.
 * - CS2 A machine rests when no transition without a message is left and no message that it raised.
 */
import type { Chart, Leaf, Plan, Transition } from './chart.js'
import type { Message } from './scope.js'

/** Takes what a step's actions say, in their order. */
export interface Sink {
  /** What actions get beside context and message. */
  readonly self: unknown
  readonly system: unknown
  readonly spawn: () => never
  /** Counts a microstep. @throws when there are too many. */
  microstep(): void
  send(target: unknown, message: Message, delay: unknown, id: unknown): void
  /** A message of the machine to itself, later. */
  raise(message: Message, delay: number, id: unknown): void
  cancel(id: unknown): void
  emit(event: Message): void
  /** @throws always: what cannot be carried out durably. */
  refuse(what: string): never
}

/** What expressions of actions get. */
export interface Args {
  readonly context: unknown
  readonly event: Message
  readonly self: unknown
  readonly system: unknown
  readonly spawn: () => never
}

/** What guards look at. */
export interface Look {
  readonly context: unknown
  readonly event: Message
}

type Expression = (args: Args, params: unknown) => unknown

/** One of XState's own actions, with the parameters its use gives it. */
export interface Operation {
  readonly action: BuiltIn
  readonly params: unknown
}

/** An action made by XState's `assign`, `sendTo`, … : a function with its parts as properties. */
export interface BuiltIn {
  readonly type: string
  readonly assignment?: unknown
  readonly to?: unknown
  readonly event?: unknown
  readonly delay?: unknown
  readonly id?: unknown
  readonly sendId?: unknown
  readonly collect?: (args: object, params: unknown) => void
}

/** One step under way. */
export class ChartStep {
  leaf: Leaf
  context: unknown
  readonly #chart: Chart
  readonly #sink: Sink
  #event: Message
  readonly #raised: Message[] = []

  constructor(chart: Chart, leaf: Leaf, context: unknown, event: Message, sink: Sink) {
    this.#chart = chart
    this.leaf = leaf
    this.context = context
    this.#event = event
    this.#sink = sink
  }

  args(): Args {
    const { self, system, spawn } = this.#sink
    return { context: this.context, event: this.#event, self, system, spawn }
  }

  /** The first transition for a message whose guard lets it through. False when there is none. */
  take(event: Message): boolean {
    this.#event = event
    const transition = this.#select(this.#chart.candidates(this.leaf, event.type))
    if (transition !== null) this.run(this.#chart.plan(transition, this.leaf))
    this.#sink.microstep()
    return transition !== null
  }

  /** Transitions without a message, and raised messages, until neither is left. */
  settle(): void {
    let looks = true
    while (this.leaf.node.type !== 'final') {
      const transition = looks ? this.#select(this.leaf.always) : null
      const { leaf, context } = this
      if (transition !== null) {
        this.run(this.#chart.plan(transition, leaf))
        this.#sink.microstep()
        // One that changes nothing would be chosen for ever.
        looks = this.leaf !== leaf || this.context !== context
        continue
      }
      const raised = this.#raised.shift()
      if (raised === undefined) return
      this.take(raised)
      looks = true
    }
  }

  #select(candidates: readonly Transition[]): Transition | null {
    for (const transition of candidates) {
      if (transition.guard === null || transition.guard(this.context, this.#event)) return transition
    }
    return null
  }

  run({ operations, leaf }: Plan): void {
    for (const operation of operations) this.#do(operation)
    this.leaf = leaf
  }

  #do(operation: Operation): void {
    const { action } = operation
    const args = this.args()
    const params = given(operation.params, args)
    switch (action.type) {
      case 'xstate.assign':
        this.context = assigned(action.assignment, args, params)
        return
      case 'xstate.sendTo': {
        const message = valueAt(action.event, args, params) as Message
        const delay = this.#chart.delayOf(action.delay, args, params)
        return this.#sink.send(valueAt(action.to, args, params), message, delay, action.id)
      }
      case 'xstate.raise': {
        const message = valueAt(action.event, args, params) as Message
        const delay = this.#chart.delayOf(action.delay, args, params)
        if (typeof delay === 'number') this.#sink.raise(message, delay, action.id)
        else this.#raised.push(message)
        return
      }
      case 'xstate.cancel':
        return this.#sink.cancel(valueAt(action.sendId, args, params))
      case 'xstate.emit':
        return this.#sink.emit(valueAt(action.event, args, params) as Message)
      case 'xstate.enqueueActions':
        for (const operation of this.#enqueued(action, args, params)) this.#do(operation)
        return
      default:
        this.#sink.refuse(`the action ${action.type}`)
    }
  }

  #enqueued(action: BuiltIn, { context, event, self, system }: Args, params: unknown): readonly Operation[] {
    const { leaf } = this
    const check = (guard: unknown): boolean => this.#chart.check(guard, context, event, leaf)
    return this.#chart.recorder.record(this.#sink, (enqueue) =>
      action.collect?.({ context, event, self, system, check, enqueue }, params),
    )
  }
}

/** The `enqueue` that machines get: notes what it is asked for. One a machine, since making it costs as much as a step. */
export class Recorder {
  #queue: Operation[] = []
  #sink: Sink | null = null
  readonly #enqueue: unknown

  constructor(named: (action: unknown, sink: Sink) => Operation) {
    const note = (action: BuiltIn): void => void this.#queue.push({ action, params: undefined })
    const enqueue = (action: unknown): void => void this.#queue.push(named(action, this.#sink!))
    this.#enqueue = Object.assign(enqueue, {
      assign: (assignment: unknown) => note({ type: 'xstate.assign', assignment }),
      sendTo: (to: unknown, event: unknown, options?: Pick<BuiltIn, 'id' | 'delay'>) =>
        note({ type: 'xstate.sendTo', to, event, id: options?.id, delay: options?.delay }),
      raise: (event: unknown, options?: Pick<BuiltIn, 'id' | 'delay'>) =>
        note({ type: 'xstate.raise', event, id: options?.id, delay: options?.delay }),
      cancel: (sendId: unknown) => note({ type: 'xstate.cancel', sendId }),
      emit: (event: unknown) => note({ type: 'xstate.emit', event }),
      sendParent: () => this.#sink!.refuse('sendParent'),
      spawnChild: () => this.#sink!.refuse('spawnChild'),
      stopChild: () => this.#sink!.refuse('stopChild'),
    })
  }

  record(sink: Sink, collect: (enqueue: unknown) => void): readonly Operation[] {
    const queue: Operation[] = []
    this.#queue = queue
    this.#sink = sink
    collect(this.#enqueue)
    return queue
  }
}

/** Parameters, which may be a function of context and message. */
export function given(params: unknown, { context, event }: Look): unknown {
  return typeof params === 'function' ? (params as (look: Look) => unknown)({ context, event }) : params
}

/** The value of an expression, or the value itself. */
export function valueAt(value: unknown, args: Args, params: unknown): unknown {
  return typeof value === 'function' ? (value as Expression)(args, params) : value
}

/** The context behind an assignment. */
function assigned(assignment: unknown, args: Args, params: unknown): object {
  const context = args.context as object
  if (typeof assignment === 'function') return { ...context, ...((assignment as Expression)(args, params) as object) }
  const next: Record<string, unknown> = { ...context }
  const updates = assignment as Record<string, unknown>
  for (const key of Object.keys(updates)) next[key] = valueAt(updates[key], args, params)
  return next
}
