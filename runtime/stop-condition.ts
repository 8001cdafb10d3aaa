/**
 * Stop conditions: when an agent makes no further round.
 *
 * Owns: their forms as users write them, their check, their form in a definition, whether one holds.
 * Does not own: when they are asked and what is read off the conversation (`prepare-round.ts`), what an agent that is stopped
 * answers (`prepare-round.ts`), the end of its task (`machines/agent.ts`).
 *
 * - STC1 A condition is data, or a function of the user's; what is data of it is part of the definition, a function by its name.
 * - STC2 Conditions are asked in their order, and only as far as the answer is not known yet.
 */
import { z } from 'zod'
import type { HistoryMessage } from './define.js'
import { TroupeError } from './errors.js'
import type { RunCost } from './run.js'

/** A call of the agent's last round. */
export interface RoundCall {
  /** The tool, or the agent that was asked. */
  readonly name: string
  /** What the model wrote. */
  readonly arguments: string
  /** What it was told. */
  readonly result: string
  /** False of one that was refused, failed, or whose outcome nobody knows. */
  readonly ok: boolean
}

/** What an agent's own model calls have used in this task so far; what its delegates used is not in it. */
export interface RoundUsage {
  /** Input and output tokens. */
  readonly tokens: number
  readonly modelCalls: number
}

/** What is known before a further round. */
export interface StopContext {
  readonly agent: string
  readonly runId: string
  /** Rounds done. */
  readonly round: number
  /** The conversation as the agent is shown it, without system messages. */
  readonly messages: readonly HistoryMessage[]
  /** What the agent said in its last round; empty when it only made calls. */
  readonly text: string
  readonly lastCalls: readonly RoundCall[]
  readonly usage: RoundUsage
  readonly cost: RunCost
  /** The run's `data`. */
  readonly data: unknown
  /** Live objects given to `createRuntime({ deps })`. */
  readonly deps: unknown
  /** Aborts on timeout, cancel and shutdown. */
  readonly signal: AbortSignal
}

/** A condition of the user's own. It may be asked again for the same round, when a process ended over it. */
export type StopFunction = (context: StopContext) => boolean | Promise<boolean>

/** One that is data: made by `roundsAre`, `calledTool`, `spentAtLeast`, `textMatches`, `any`, `all`, `not`. */
export type StopRule = { readonly kind: 'stop' } & (
  | { readonly is: 'rounds'; readonly rounds: number }
  | { readonly is: 'called'; readonly tool: string }
  | { readonly is: 'spent'; readonly usd?: number | undefined; readonly tokens?: number | undefined }
  | { readonly is: 'text'; readonly pattern: string; readonly flags: string | null }
  | { readonly is: 'any' | 'all'; readonly conditions: readonly StopCondition[] }
  | { readonly is: 'not'; readonly condition: StopCondition }
)

/** When an agent is to stop. */
export type StopCondition = StopRule | StopFunction

/** That a condition holds: its name, and the call by which it does, if it does by one. */
export interface Stop {
  readonly name: string
  readonly call: RoundCall | null
}

const maxDepth = 16
const maxConditions = 64
const anyCondition: z.ZodType<StopCondition> = z.custom<StopCondition>(
  (value) => typeof value === 'function' || isRule(value),
  'a function, or what roundsAre, calledTool, spentAtLeast, textMatches, any, all or not made',
)
const someConditions = z.array(anyCondition).min(1).max(maxConditions)

/** What `stopWhen` takes: one condition, or some of which one is enough. */
export const stopShape = z.union([anyCondition, someConditions])

/** So many rounds are done. @throws TroupeError `CREW_INVALID` for less than one. */
export function roundsAre(rounds: number): StopRule {
  return rule({ is: 'rounds', rounds: checked(z.int().min(1), rounds, 'roundsAre') })
}

/**
 * The last round had a call of this tool, or of this delegate, and it was answered: neither refused nor failed. What it was
 * answered is what the agent then answers.
 * One that the agent has not is refused with its crew.
 * @throws TroupeError `CREW_INVALID` for a name that no tool can have.
 */
export function calledTool(tool: string): StopRule {
  return rule({ is: 'called', tool: checked(z.string().min(1).max(160), tool, 'calledTool') })
}

/**
 * The agent's own model calls have used so much of either in this task. Other than a budget it is asked between rounds, so the
 * round that passes it is made to its end.
 * @throws TroupeError `CREW_INVALID` for neither, or less than nothing.
 */
export function spentAtLeast(limits: { readonly usd?: number; readonly tokens?: number }): StopRule {
  const shape = z
    .strictObject({ usd: z.number().min(0).optional(), tokens: z.int().min(0).optional() })
    .refine(({ usd, tokens }) => usd !== undefined || tokens !== undefined, 'name usd or tokens')
  return rule({ is: 'spent', ...checked(shape, limits, 'spentAtLeast') })
}

/** What the agent said in its last round has this text in it, or matches. @throws TroupeError `CREW_INVALID` for nothing. */
export function textMatches(pattern: string | RegExp): StopRule {
  if (pattern instanceof RegExp) return rule({ is: 'text', pattern: pattern.source, flags: pattern.flags })
  return rule({ is: 'text', pattern: checked(z.string().min(1), pattern, 'textMatches'), flags: null })
}

/** One of them holds; the first that does counts. @throws TroupeError `CREW_INVALID` for none. */
export function any(...conditions: readonly StopCondition[]): StopRule {
  return rule({ is: 'any', conditions: checked(someConditions, conditions, 'any') })
}

/** All of them hold. @throws TroupeError `CREW_INVALID` for none. */
export function all(...conditions: readonly StopCondition[]): StopRule {
  return rule({ is: 'all', conditions: checked(someConditions, conditions, 'all') })
}

/** It does not hold. @throws TroupeError `CREW_INVALID` for something else. */
export function not(condition: StopCondition): StopRule {
  return rule({ is: 'not', condition: checked(anyCondition, condition, 'not') })
}

/**
 * What `stopWhen` was given, as a list.
 * @param rounds most rounds of a task: those from there on are never asked for, since the agent has failed before
 * @throws TroupeError `CREW_INVALID` for a condition that can only hold then.
 */
export function conditionsOf(
  given: StopCondition | readonly StopCondition[] | undefined,
  rounds: number,
  agent: string,
): readonly StopCondition[] {
  const conditions = given === undefined ? [] : isList(given) ? given : [given]
  const isLate = (each: StopCondition): boolean =>
    typeof each !== 'function' && each.is === 'rounds' && each.rounds >= rounds
  if (alternativesOf(conditions).some(isLate))
    throw new TroupeError('CREW_INVALID', `agent ${agent}: stopWhen: limits.rounds (${rounds}) would end it before`)
  return Object.freeze([...conditions])
}

/** The conditions that are asked for themselves: one of them is enough. */
function alternativesOf(conditions: readonly StopCondition[]): StopCondition[] {
  return conditions.flatMap((each) =>
    typeof each !== 'function' && each.is === 'any' ? alternativesOf(each.conditions) : [each],
  )
}

/** The first that holds; null for none. Rejects with what a function of the user's throws. */
export async function firstStop(conditions: readonly StopCondition[], context: StopContext): Promise<Stop | null> {
  for (const each of conditions) {
    const stop = await stopOf(each, context)
    if (stop !== null) return stop
  }
  return null
}

/** Tools and agents that conditions are about. */
export function toolsIn(conditions: readonly StopCondition[]): string[] {
  return conditions.flatMap((each) => {
    if (typeof each === 'function') return []
    if (each.is === 'called') return [each.tool]
    return toolsIn(each.is === 'not' ? [each.condition] : 'conditions' in each ? each.conditions : [])
  })
}

/** A condition as the definition of a crew has it. */
export function describeCondition(condition: StopCondition): unknown {
  if (typeof condition === 'function') return `function ${condition.name}`
  if (condition.is === 'not') return { ...condition, condition: describeCondition(condition.condition) }
  if (condition.is === 'any' || condition.is === 'all')
    return { ...condition, conditions: condition.conditions.map(describeCondition) }
  return condition
}

/** A condition in words. */
function nameOf(condition: StopCondition): string {
  if (typeof condition === 'function') return condition.name === '' ? 'a function' : condition.name
  switch (condition.is) {
    case 'rounds':
      return `roundsAre(${condition.rounds})`
    case 'called':
      return `calledTool(${condition.tool})`
    case 'spent':
      return 'spentAtLeast'
    case 'text':
      return 'textMatches'
    case 'not':
      return `not(${nameOf(condition.condition)})`
    default:
      return `${condition.is}(${condition.conditions.map(nameOf).join(', ')})`
  }
}

async function stopOf(condition: StopCondition, context: StopContext): Promise<Stop | null> {
  const stop = (holds: boolean, call: RoundCall | null = null): Stop | null =>
    holds ? { name: nameOf(condition).slice(0, 256), call } : null
  if (typeof condition === 'function') return stop(await said(condition, context))
  const { round, lastCalls, usage, cost, text } = context
  switch (condition.is) {
    case 'rounds':
      return stop(round >= condition.rounds)
    case 'called': {
      const call = lastCalls.findLast(({ name, ok }) => ok && name === condition.tool) ?? null
      return stop(call !== null, call)
    }
    case 'spent': {
      const { usd = Number.POSITIVE_INFINITY, tokens = Number.POSITIVE_INFINITY } = condition
      return stop(cost.usd >= usd || usage.tokens >= tokens)
    }
    case 'text': {
      const { pattern, flags } = condition
      return stop(flags === null ? text.includes(pattern) : new RegExp(pattern, flags).test(text))
    }
    case 'any':
      return firstStop(condition.conditions, context)
    case 'not':
      return stop((await stopOf(condition.condition, context)) === null)
    default: {
      let call: RoundCall | null = null
      for (const each of condition.conditions) {
        const found = await stopOf(each, context)
        if (found === null) return null
        call ??= found.call
      }
      return stop(true, call)
    }
  }
}

async function said(condition: StopFunction, context: StopContext): Promise<boolean> {
  const answer: unknown = await condition(context)
  if (typeof answer === 'boolean') return answer
  throw new TroupeError('CALLBACK_FAILED', `it returned ${typeof answer}, not true or false`)
}

type Fields<T> = T extends unknown ? Omit<T, 'kind'> : never

function rule(fields: Fields<StopRule>): StopRule {
  const made = Object.freeze({ kind: 'stop', ...fields } as StopRule)
  if (depthOf(made) > maxDepth) throw new TroupeError('CREW_INVALID', `conditions are nested deeper than ${maxDepth}`)
  return made
}

function depthOf(condition: StopCondition): number {
  if (typeof condition === 'function') return 0
  if (condition.is === 'not') return 1 + depthOf(condition.condition)
  return 'conditions' in condition ? 1 + Math.max(...condition.conditions.map(depthOf)) : 1
}

function isRule(value: unknown): value is StopRule {
  return typeof value === 'object' && value !== null && (value as Partial<StopRule>).kind === 'stop' && 'is' in value
}

function isList(given: StopCondition | readonly StopCondition[]): given is readonly StopCondition[] {
  return Array.isArray(given)
}

function checked<Shape extends z.ZodType>(shape: Shape, value: unknown, what: string): z.output<Shape> {
  const read = shape.safeParse(value)
  if (read.success) return read.data
  throw new TroupeError('CREW_INVALID', `${what}: ${read.error.issues[0]?.message ?? 'invalid'}`)
}
