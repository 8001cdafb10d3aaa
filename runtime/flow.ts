/**
 * Flows: the order in which a crew's agents work, as users write it.
 *
 * Owns: their shapes, and the stages that machines need.
 * Does not own: leading a run through them (`machines/flow.ts`), the check against a crew's agents (`define.ts`).
 */
import { z } from 'zod'
import type { FlowStages } from '../machines/index.js'
import { TroupeError } from './errors.js'

/** Agents that work at once, as one step of a flow. */
export interface Parallel<Name extends string = string, Join extends 'all' | 'first' = 'all' | 'first'> {
  readonly kind: 'parallel'
  readonly agents: readonly Name[]
  readonly join: Join
}

/** One step: an agent, or some at once. */
export type Step<Name extends string = string> = Name | Parallel<Name>

/** Steps one after the other. `Last` is the last of them. */
export interface Flow<Last extends Step = Step> {
  readonly kind: 'flow'
  readonly stages: FlowStages
  /** Type of the last step; never present at run time. */
  readonly _last?: Last
}

/** One agent that has the others work for it, as often and in whatever order it likes. */
export interface Supervisor<Lead extends string = string> {
  readonly kind: 'supervisor'
  readonly lead: Lead
  readonly agents: readonly string[]
}

/** How a parallel step goes on. */
export interface ParallelOptions<Join extends 'all' | 'first' = 'all' | 'first'> {
  /**
   * `all`: when every one of them has answered; one that fails ends the run. `first`: with the first answer, the others are
   * cancelled and give back what they have not spent; it fails when all have failed.
   * @default 'all'
   */
  readonly join?: Join
}

/** Agents of one step. */
const maxAgents = 64
const maxStages = 256
const name = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/)
const names = z.array(name).min(2).max(maxAgents)
const parallelShape = z.strictObject({ kind: z.literal('parallel'), agents: names, join: z.enum(['all', 'first']) })
const supervisorShape = z.strictObject({
  kind: z.literal('supervisor'),
  lead: name,
  agents: z.array(name).min(1).max(maxAgents),
})
const stepsShape = z
  .array(z.union([name, parallelShape]))
  .min(1)
  .max(maxStages)

/**
 * Some agents at once, each with the same task.
 * @throws TroupeError `CREW_INVALID` for fewer than two, more than 64, or one of them twice.
 */
export function parallel<const Name extends string, const Join extends 'all' | 'first' = 'all'>(
  agents: readonly Name[],
  { join = 'all' as Join }: ParallelOptions<Join> = {},
): Parallel<Name, Join> {
  const step = checked(parallelShape, { kind: 'parallel', agents, join }, 'parallel')
  if (new Set(agents).size < agents.length) throw new TroupeError('CREW_INVALID', 'parallel: an agent is there twice')
  return Object.freeze(step) as object as Parallel<Name, Join>
}

/**
 * Agents one after the other: each is given the task, and behind it what the step before has answered. What the last one
 * answers is the run's answer; of a parallel step with all its answers an object by their names.
 * @throws TroupeError `CREW_INVALID` for no step.
 */
export function sequential<const Steps extends readonly Step[]>(
  ...steps: Steps
): Flow<Steps extends readonly [...Step[], infer Last extends Step] ? Last : Step> {
  const stages = checked(stepsShape, steps, 'sequential').map((step): FlowStages[number] =>
    typeof step === 'string' ? { agents: [step], join: 'all' } : { agents: step.agents, join: step.join },
  )
  return Object.freeze({ kind: 'flow', stages })
}

/**
 * One agent that gets the task, and may give parts of it to the others: each becomes one of its `delegates`.
 * @throws TroupeError `CREW_INVALID` for nobody, more than 64, one of them twice, or the agent itself.
 */
export function supervisor<const Lead extends string>(lead: Lead, agents: readonly string[]): Supervisor<Lead> {
  const made = checked(supervisorShape, { kind: 'supervisor', lead, agents }, 'supervisor')
  if (new Set([lead, ...agents]).size <= agents.length)
    throw new TroupeError('CREW_INVALID', 'supervisor: an agent is there twice')
  return Object.freeze(made) as object as Supervisor<Lead>
}

function checked<Shape extends z.ZodType>(shape: Shape, value: unknown, what: string): z.output<Shape> {
  const read = shape.safeParse(value)
  if (read.success) return read.data
  const [issue] = read.error.issues
  throw new TroupeError('CREW_INVALID', `${what}: ${issue?.path.map(String).join('.') ?? ''} ${issue?.message ?? ''}`)
}

/** A flow of one step stays what it is. */
export function toFlow(given: Flow | Parallel): Flow {
  return given.kind === 'flow' ? given : sequential(given)
}

/** Whether something is what `sequential`, `parallel` or `supervisor` made. */
export function isFlow(value: unknown): boolean {
  const kinds = /^(flow|parallel|supervisor)$/
  return typeof value === 'object' && value !== null && 'kind' in value && kinds.test(String(value.kind))
}

/** Every agent of a flow. */
export function agentsOf({ stages }: Pick<Flow, 'stages'>): string[] {
  return [...new Set(stages.flatMap(({ agents }) => agents))]
}
