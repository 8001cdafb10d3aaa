/**
 * Budgets: limits of spending as users write them, and as machines count them.
 *
 * Owns: their shape, its check, their form in the machines.
 * Does not own: counting (`machines/budget-keeper.ts`), raising them (`raising.ts`), what a person is asked (`asks.ts`).
 */
import { z } from 'zod'
import type { Limits } from '../machines/index.js'
import { TroupeError } from './errors.js'

/** What a budget limits. */
export interface BudgetLimits {
  /** US dollars. */
  readonly usd?: number
  /** Input and output tokens together. */
  readonly tokens?: number
  readonly modelCalls?: number
  readonly toolCalls?: number
}

/** Limits of spending. Each counts for one run unless `per` says otherwise. */
export interface Budget extends BudgetLimits {
  /** Time in which the run was active in a living process, in milliseconds. */
  readonly wallMs?: number
  /** @default 'run' */
  readonly per?: 'run' | 'crew'
  /**
   * `strict`: a call that may cost more than what is left is cut down to it, or not made. `soft`: it is made as long as
   * anything is left, so one call may pass the limit.
   * @default 'strict'
   */
  readonly mode?: 'strict' | 'soft'
  /**
   * What follows when it is spent. `end`: the run, or the delegation whose own budget it was, ends with `BUDGET_EXHAUSTED`.
   * `ask`: whoever cannot pay waits, and a person is asked for more (`asks`, `approve`), over restarts too.
   * @default 'end'
   */
  readonly onExhausted?: 'end' | 'ask'
  /** How long a person is asked for; then it is as with `end`. @default 7 days */
  readonly askMs?: number
  /**
   * A budget of `defineBudget`, or the id of one, that is spent from together with other crews: a run has no more than that
   * gives it, and waits while others may give something back. Of tool calls only the crew's own limit counts.
   */
  readonly from?: string | { readonly kind: 'crew'; readonly name: string; readonly pool: unknown }
}

/** The fields of limits. */
export const limitFields = {
  usd: z.number().min(0).max(1_000_000).optional(),
  tokens: z.int().min(0).optional(),
  modelCalls: z.int().min(0).optional(),
  toolCalls: z.int().min(0).optional(),
}

/** What somebody may raise a budget to. */
const raiseShape = z
  .strictObject(limitFields)
  .refine((limits) => Object.values(limits).some((limit) => limit !== undefined), 'name at least one limit')

/** Longest delay that a timer takes, and so the largest `…Ms` of a definition. */
const maxMs = 2 ** 31 - 1
/** A time in milliseconds. */
export const ms = z.int().min(1).max(maxMs)

/** The fields of a budget. */
export const budgetFields = {
  ...limitFields,
  wallMs: ms.optional(),
  mode: z.enum(['strict', 'soft']).optional(),
  onExhausted: z.enum(['end', 'ask']).optional(),
  askMs: ms.optional(),
}

/** Made by `defineBudget`, of this or another copy of the package. */
export function isShared(value: unknown): boolean {
  const made = typeof value === 'object' && value !== null ? (value as { kind?: unknown; pool?: unknown }) : {}
  return made.kind === 'crew' && made.pool !== undefined
}

/** The budget of a crew. */
export const crewBudget = z.strictObject({
  ...budgetFields,
  per: z.enum(['run', 'crew']).optional(),
  from: z
    .union([
      z.string().regex(/^[A-Za-z0-9_-]{1,64}$/),
      z.custom<object>(isShared, 'a budget of defineBudget, or the id of one'),
    ])
    .optional(),
})

/** How long a person has to answer, when nothing else is said: seven days, in milliseconds. */
export const defaultAskMs = 7 * 86_400_000

/** The limits as machines count them. */
export function limitsOf({ usd, tokens, modelCalls, toolCalls }: BudgetLimits): Limits {
  return {
    ...(usd === undefined ? {} : { nanoUsd: Math.round(usd * 1e9) }),
    ...(tokens === undefined ? {} : { tokens }),
    ...(modelCalls === undefined ? {} : { modelCalls }),
    ...(toolCalls === undefined ? {} : { toolCalls }),
  }
}

/** What else machines know of a budget; nothing where it is as usual. */
export function termsOf({ mode, onExhausted, askMs = defaultAskMs }: Budget): { soft?: true; raiseMs?: number } {
  return { ...(mode === 'soft' ? { soft: true as const } : {}), ...(onExhausted === 'ask' ? { raiseMs: askMs } : {}) }
}

/** The id of the budget that is shared with other crews, as machines know it; nothing where there is none. */
export function fromOf({ from }: Budget): { from?: string } {
  return from === undefined ? {} : { from: typeof from === 'string' ? from : from.name }
}

/** Limits that somebody names. @throws TroupeError `INPUT_INVALID`. */
export function raiseOf(given: unknown): Limits {
  const read = raiseShape.safeParse(given)
  if (read.success) return limitsOf(read.data as BudgetLimits)
  const [issue] = read.error.issues
  const where = issue?.path.map(String).join('.') ?? ''
  throw new TroupeError(
    'INPUT_INVALID',
    `a budget is raised to usd, tokens, modelCalls, toolCalls: ${where} ${issue?.message}`,
  )
}
