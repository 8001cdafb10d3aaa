/**
 * The chart: a machine taken apart once, so that a step costs what its actions cost.
 *
 * XState finds out anew at each step which states a transition leaves and enters, and builds a snapshot for each action
 * (13 to 38 µs a step, half of a commit). For machines of nested states without parallel or history ones all of it is
 * known beforehand: for each transition and leaf the list of actions and the leaf they lead to.
 *
 * Owns: which machines have a chart, what their transitions do. With `chart-step.ts` and
 * `scope.ts` the only files that know XState's inside.
 * Does not own: the order of steps inside one message (`chart-step.ts`), what becomes of an action (`scope.ts`).
 *
 * - CH1 A step of a chart is the step of XState: the same state, context and actions in the same order.
 * - CH2 A machine with anything that a chart does not know has none: XState itself takes its steps.
 */
import type { AnyStateMachine } from 'xstate'
import {
  type Args,
  type BuiltIn,
  ChartStep,
  given,
  type Look,
  type Operation,
  Recorder,
  type Sink,
  valueAt,
} from './chart-step.js'
import type { Message } from './scope.js'

/** The state of a machine that has a chart: what the runtime reads of an XState snapshot, and its leaf. */
export interface ChartSnapshot {
  readonly machine: AnyStateMachine
  readonly status: 'active' | 'done' | 'error'
  readonly value: unknown
  readonly context: unknown
  readonly historyValue: Readonly<Record<string, never>>
  readonly error: unknown
  readonly leaf: Leaf
}

/** A state without inner states, and the way to it. */
export interface Leaf {
  readonly node: StateNode
  readonly value: unknown
  /** From the leaf to the root. */
  readonly path: readonly StateNode[]
  readonly always: readonly Transition[]
  /** Transitions by message type, the leaf's own first; filled as messages come. */
  readonly candidates: Map<string, readonly Transition[]>
}

/** One way out of a state. */
export interface Transition {
  readonly source: StateNode
  readonly target: StateNode | null
  readonly reenter: boolean
  readonly guard: Guard | null
  readonly actions: readonly Operation[]
  readonly plans: Map<Leaf, Plan>
}

/** What a transition does in one leaf. */
export interface Plan {
  readonly operations: readonly Operation[]
  readonly leaf: Leaf
}

type First = (args: object) => unknown
type Predicate = (look: Look, params: unknown) => boolean
type Guard = (context: unknown, event: Message) => boolean

// ---------------------------------------------------------------------------- XState's shapes, as far as they are used

interface StateNode {
  readonly id: string
  readonly key: string
  readonly type: string
  readonly parent: StateNode | undefined
  readonly states: Readonly<Record<string, StateNode>>
  readonly entry: readonly unknown[]
  readonly exit: readonly unknown[]
  readonly invoke: readonly unknown[]
  readonly output: unknown
  readonly always: readonly NodeTransition[] | undefined
  readonly transitions: ReadonlyMap<string, readonly NodeTransition[]>
  readonly initial: { readonly target: readonly StateNode[]; readonly actions: readonly unknown[] }
}

interface NodeTransition {
  readonly source: StateNode
  readonly target: readonly StateNode[] | undefined
  readonly reenter: boolean
  readonly guard: unknown
  readonly actions: readonly unknown[]
}

interface Implementations {
  readonly actions: Readonly<Record<string, unknown>>
  readonly guards: Readonly<Record<string, unknown>>
  readonly delays: Readonly<Record<string, unknown>>
}

const known = new Set([
  'xstate.assign',
  'xstate.sendTo',
  'xstate.raise',
  'xstate.cancel',
  'xstate.emit',
  'xstate.enqueueActions',
])
const noHistory = {}
const charts = new WeakMap<AnyStateMachine, Chart | null>()

/** Thrown while a machine is taken apart: it has something that a chart does not know. */
class Unknown extends Error {}

/** The chart of a machine; null when XState has to take its steps. */
export function chartOf(machine: AnyStateMachine): Chart | null {
  let chart = charts.get(machine)
  if (chart === undefined) {
    chart = tryChart(machine)
    charts.set(machine, chart)
  }
  return chart
}

function tryChart(machine: AnyStateMachine): Chart | null {
  try {
    return new Chart(machine)
  } catch (thrown) {
    if (thrown instanceof Unknown) return null
    throw thrown
  }
}

/** The steps of one machine. */
export class Chart {
  readonly #machine: AnyStateMachine
  readonly #root: StateNode
  readonly #implementations: Implementations
  readonly #leaves = new Map<StateNode, Leaf>()
  readonly #transitions = new Map<StateNode, ReadonlyMap<string, readonly Transition[]>>()
  readonly #begin: Plan
  readonly recorder = new Recorder((action, sink) => this.#operation(action) ?? sink.refuse('an action of its own'))

  /** @throws Unknown */
  constructor(machine: AnyStateMachine) {
    this.#machine = machine
    this.#root = machine.root as unknown as StateNode
    this.#implementations = machine.implementations as Implementations
    if (this.#root.output !== undefined) throw new Unknown()
    this.#readNode(this.#root)
    const leaf = this.#leafOf(this.#root)
    const operations = leaf.path.toReversed().flatMap((node) => this.#entering(node, true))
    this.#begin = { operations: [...operations, ...this.#ending(leaf)], leaf }
  }

  // ---------------------------------------------------------------------------- taking the machine apart

  #readNode(node: StateNode): void {
    const isRoot = node.parent === undefined
    const isPlain = node.type === 'compound' || node.type === 'atomic' || (node.type === 'final' && !isRoot)
    if (!isPlain || node.invoke.length > 0) throw new Unknown()
    // The end of an inner state is a message to the machine itself.
    if (node.type === 'final' && node.parent !== this.#root) throw new Unknown()
    this.#operations([...node.entry, ...node.exit, ...(node.type === 'compound' ? node.initial.actions : [])])
    const transitions = new Map<string, readonly Transition[]>()
    for (const [type, candidates] of node.transitions) {
      if (type.includes('*')) throw new Unknown()
      transitions.set(type, this.#readTransitions(candidates))
    }
    this.#transitions.set(node, transitions)
    for (const child of Object.values(node.states)) this.#readNode(child)
    if (node.type !== 'compound') this.#leaves.set(node, this.#readLeaf(node))
  }

  #readLeaf(node: StateNode): Leaf {
    const path: StateNode[] = []
    for (let at: StateNode | undefined = node; at !== undefined; at = at.parent) path.push(at)
    const always = path.flatMap((each) => this.#readTransitions(each.always ?? []))
    return { node, value: valueOf(path), path, always, candidates: new Map() }
  }

  #readTransitions(transitions: readonly NodeTransition[]): Transition[] {
    return transitions.map(({ source, target, reenter, guard, actions }) => {
      if ((target?.length ?? 0) > 1 || (reenter && source === this.#root)) throw new Unknown()
      const operations = this.#operations(actions)
      const [to = null] = target ?? []
      return { source, target: to, reenter, guard: this.#guard(guard), actions: operations, plans: new Map() }
    })
  }

  #operations(actions: readonly unknown[]): Operation[] {
    return actions.map((action) => {
      const operation = this.#operation(action)
      if (operation === null || typeof operation.action.to === 'string') throw new Unknown()
      return operation
    })
  }

  /** One of XState's own actions by itself, by its name, or with parameters; null for anything else. */
  #operation(action: unknown): Operation | null {
    if (typeof action === 'function') return builtIn(action, undefined)
    const name = typeof action === 'string' ? action : (action as { type: string }).type
    const params = typeof action === 'string' ? undefined : (action as { params?: unknown }).params
    return builtIn(this.#implementations.actions[name], params)
  }

  #guard(guard: unknown): Guard | null {
    if (guard === undefined) return null
    const { resolved, params } = this.#resolveGuard(guard)
    if (typeof resolved !== 'function' || 'check' in resolved) throw new Unknown()
    const test = resolved as Predicate
    if (params === undefined) return (context, event) => test({ context, event }, undefined)
    return (context, event) => test({ context, event }, given(params, { context, event }))
  }

  #resolveGuard(guard: unknown): { resolved: unknown; params: unknown } {
    if (typeof guard === 'function') return { resolved: guard, params: undefined }
    const name = typeof guard === 'string' ? guard : (guard as { type: string }).type
    const params = typeof guard === 'string' ? undefined : (guard as { params?: unknown }).params
    return { resolved: this.#implementations.guards[name], params }
  }

  // ---------------------------------------------------------------------------- plans

  #leafOf(node: StateNode): Leaf {
    let at = node
    while (at.type === 'compound') at = at.initial.target[0]!
    return this.#leaves.get(at)!
  }

  /** Which states a transition leaves and enters from a leaf, as actions in the order of the SCXML algorithm. */
  #plan({ source, target, reenter, actions }: Transition, from: Leaf): Plan {
    if (target === null) return { operations: actions, leaf: from }
    const domain = domainOf(source, target, reenter)
    const leaf = this.#leafOf(target)
    const exited = from.path.filter((node) => isInside(node, domain))
    const entered = leaf.path.filter((node) => isInside(node, domain))
    const operations = [
      ...exited.flatMap((node) => this.#operations(node.exit)),
      ...actions,
      ...entered.toReversed().flatMap((node) => this.#entering(node, node === target || isInside(node, target))),
    ]
    return { operations: [...operations, ...this.#ending(leaf)], leaf }
  }

  /** `byDefault`: its initial state is entered because nothing names an inner one. */
  #entering(node: StateNode, byDefault: boolean): Operation[] {
    const initial = byDefault && node.type === 'compound' ? node.initial.actions : []
    return this.#operations([...node.entry, ...initial])
  }

  /** A final state ends the machine, and that leaves every state. */
  #ending(leaf: Leaf): Operation[] {
    return leaf.node.type === 'final' ? leaf.path.flatMap((node) => this.#operations(node.exit)) : []
  }

  // ---------------------------------------------------------------------------- steps

  /** The first step of a new actor. Errors of the machine end it, as in XState: what it said before stays said. */
  start(input: unknown, sink: Sink): ChartSnapshot {
    const event = { type: 'xstate.init', input }
    const step = new ChartStep(this, this.#begin.leaf, {}, event, sink)
    try {
      const context = this.#machine.config.context as unknown
      step.context = typeof context === 'function' ? (context as First)({ ...step.args(), input }) : (context ?? {})
      step.run(this.#begin)
      step.settle()
    } catch (error) {
      return { ...this.#snapshot(step.leaf, step.context), status: 'error', error }
    }
    return this.#snapshot(step.leaf, step.context)
  }

  /** One message. Throws what the machine throws. */
  step(snapshot: ChartSnapshot, event: Message, sink: Sink): { snapshot: ChartSnapshot; taken: boolean } {
    const step = new ChartStep(this, snapshot.leaf, snapshot.context, event, sink)
    const taken = step.take(event)
    step.settle()
    const isSame = step.leaf === snapshot.leaf && step.context === snapshot.context
    return { snapshot: isSame ? snapshot : this.#snapshot(step.leaf, step.context), taken: taken || !isSame }
  }

  /** The snapshot of a state by its value. @throws Error when the machine has no such state. */
  restore(value: unknown, context: unknown): ChartSnapshot {
    let node = this.#root
    for (let rest = value; rest !== undefined && node.type === 'compound'; ) {
      const [key, inner] = innermost(rest)
      const child = node.states[key]
      if (child === undefined) throw new Error(`there is no state ${JSON.stringify(key)} in ${node.id}`)
      node = child
      rest = inner
    }
    return this.#snapshot(this.#leafOf(node), context)
  }

  #snapshot(leaf: Leaf, context: unknown): ChartSnapshot {
    return {
      machine: this.#machine,
      status: leaf.node.type === 'final' ? 'done' : 'active',
      value: leaf.value,
      context,
      historyValue: noHistory,
      error: undefined,
      leaf,
    }
  }

  // ---------------------------------------------------------------------------- for `ChartStep`

  candidates(leaf: Leaf, type: string): readonly Transition[] {
    let candidates = leaf.candidates.get(type)
    if (candidates === undefined) {
      candidates = leaf.path.flatMap((node) => this.#transitions.get(node)?.get(type) ?? [])
      // Types come from outside: what no state names is not remembered.
      if (candidates.length > 0) leaf.candidates.set(type, candidates)
    }
    return candidates
  }

  plan(transition: Transition, from: Leaf): Plan {
    let plan = transition.plans.get(from)
    if (plan === undefined) {
      plan = this.#plan(transition, from)
      transition.plans.set(from, plan)
    }
    return plan
  }

  delayOf(delay: unknown, args: Args, params: unknown): unknown {
    return valueAt(typeof delay === 'string' ? this.#implementations.delays[delay] : delay, args, params)
  }

  /** `check` of `enqueueActions`. Combined guards are XState's, and get a snapshot of its own. */
  check(guard: unknown, context: unknown, event: Message, leaf: Leaf): boolean {
    const { resolved, params } = this.#resolveGuard(guard)
    const args = { context, event }
    if (typeof resolved !== 'function') throw new Error(`there is no guard ${JSON.stringify(guard)}`)
    if (!('check' in resolved)) return (resolved as Predicate)(args, given(params, args))
    const snapshot = this.#machine.resolveState({ value: leaf.value, context } as never)
    return (resolved.check as (...all: unknown[]) => boolean)(snapshot, args, resolved)
  }
}

function builtIn(action: unknown, params: unknown): Operation | null {
  const isOne = typeof action === 'function' && 'type' in action && known.has(action.type as string)
  return isOne ? { action: action as unknown as BuiltIn, params } : null
}

/** The state value of a path from leaf to root: a name, or names in one another. */
function valueOf(path: readonly StateNode[]): unknown {
  if (path.length === 1) return {}
  return path.slice(1, -1).reduce<unknown>((value, node) => ({ [node.key]: value }), path[0]!.key)
}

/** The first name in a state value, and what is in it. */
function innermost(value: unknown): [string, unknown] {
  if (typeof value === 'string') return [value, undefined]
  return Object.entries(value as Record<string, unknown>)[0] ?? ['', undefined]
}

function isInside(node: StateNode, outer: StateNode): boolean {
  for (let at = node.parent; at !== undefined; at = at.parent) if (at === outer) return true
  return false
}

/** The state that a transition stays in. */
function domainOf(source: StateNode, target: StateNode, reenter: boolean): StateNode {
  if (!reenter && (target === source || isInside(target, source))) return source
  let domain = target.parent ?? target
  while (domain.parent !== undefined && !isInside(source, domain)) domain = domain.parent
  return domain
}
