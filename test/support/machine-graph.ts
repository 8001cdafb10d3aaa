/**
 * Everything that a machine can come to within a bound, by `@xstate/graph`, and the same steps by the runtime.
 *
 * A state is a state's value with its whole context: two that differ in anything are two. The bound is in the messages that
 * a model lists for a state; none for one that is far enough.
 */
import { type AdjacencyMap, getAdjacencyMap } from '@xstate/graph'
import { expect } from 'vitest'
import type { AnyMachineSnapshot, AnyStateMachine } from 'xstate'
import { type Message, Scope, type Snapshot } from '../../runtime/scope.js'
import type { Coverage } from './machine-driver.js'

/** What a machine is started with and told. */
export interface Model<Context> {
  /** Each is explored by itself. */
  readonly inputs: readonly { readonly self: string }[]
  /** Messages that may come in a state; those of its own timers come by themselves. */
  messages(context: Context, value: unknown): readonly Message[]
}

/** How much was explored. */
export interface Explored {
  readonly states: number
  readonly steps: number
  /** Steps after which the runtime was elsewhere than the model. */
  readonly differences: readonly string[]
}

/** More than any model here needs: one that grows for ever is a mistake in its bound. */
const maxSteps = 60_000
const maxDifferences = 5

/** Takes every step from every state that can be reached, in the runtime, and compares where it leads. */
export function explore<Context>({ machine, note }: Coverage, model: Model<Context>): Explored {
  let [states, steps] = [0, 0]
  const differences: string[] = []
  for (const input of model.inputs) {
    const graph = graphOf(machine, model, input)
    const scope = new Scope()
    const first = scope.start(machine, input.self, structuredClone(input)).snapshot
    const reached = new Map<string, Snapshot>([[nameOf(first), first]])
    // States that are found on the way are gone through as well.
    for (const [name, snapshot] of reached) {
      states += 1
      for (const { event, state } of Object.values(graph[name as keyof typeof graph]?.transitions ?? {})) {
        steps += 1
        note(snapshot, event)
        const after = scope.deliver(snapshot, input.self, event).snapshot
        const [is, ought] = [nameOf(after), nameOf(state as never)]
        if (is !== ought && differences.length < maxDifferences)
          differences.push(`${JSON.stringify(event)} in ${name.slice(0, 400)}\nruntime ${is}\nmodel   ${ought}`)
        if (!reached.has(is)) reached.set(is, after)
      }
      if (graph[name as keyof typeof graph] === undefined && snapshot.status === 'active' && differences.length === 0)
        differences.push(`the model does not know ${name}`)
    }
    if (states < Object.keys(graph).length && differences.length === 0)
      differences.push(`the runtime came to ${states} of ${Object.keys(graph).length} states`)
  }
  return { states, steps, differences }
}

function graphOf<Context>(
  machine: AnyStateMachine,
  model: Model<Context>,
  input: { readonly self: string },
): AdjacencyMap<AnyMachineSnapshot, Message> {
  return getAdjacencyMap(machine as never, {
    input: structuredClone(input) as never,
    limit: maxSteps,
    serializeState: (snapshot) => nameOf(snapshot as never) as never,
    events: (snapshot) => {
      const { context, value, status } = snapshot as unknown as AnyMachineSnapshot
      if (status !== 'active') return []
      return [...timersOf(snapshot as never), ...model.messages(context as Context, value)] as never[]
    },
  }) as never
}

/** Messages of the timers that run in a state. */
function timersOf({ _nodes: nodes }: AnyMachineSnapshot): Message[] {
  return nodes.flatMap(({ after }) => after.map(({ eventType }) => ({ type: eventType })))
}

function nameOf({ value, context, status }: Pick<Snapshot, 'value' | 'context' | 'status'>): string {
  return JSON.stringify([value, status, context])
}

/** How far a graph goes: so many states at least, and no farther than what is said of it. */
export interface Bound {
  readonly atLeast: number
  readonly within: string
}

/** Machines whose graph was explored here. */
export const explored = new Set<string>()

/**
 * The gate: each transition and both answers of each guard are among what was explored, and no step went elsewhere.
 * @param models each explored by itself: all that may come to a machine at once has too many states
 */
export function covers<Context>(
  coverage: Coverage,
  models: readonly Model<Context>[],
  { atLeast, within }: Bound,
): void {
  const found = models.map((model) => explore(coverage, model))
  const sum = (of: (each: Explored) => number): number => found.reduce((total, each) => total + of(each), 0)
  const { id } = coverage.machine
  explored.add(id)
  console.log(`${id}: ${sum(({ states }) => states)} states, ${sum(({ steps }) => steps)} steps; bound: ${within}`)
  expect(found.flatMap(({ differences }) => differences)).toEqual([])
  expect(coverage.missing()).toEqual([])
  // A bound that was drawn too close would cover little, and say nothing of it.
  expect(sum(({ states }) => states)).toBeGreaterThanOrEqual(atLeast)
}
