/**
 * What users write to have several crews spend from one budget.
 *
 * Owns: the definition of such a budget, its checks.
 * Does not own: counting (`machines/budget-pool.ts`, `machines/budget-keeper.ts`), what is told of it (`pool-books.ts`).
 *
 * - SB1 A shared budget is a crew without agents: it is spawned, offered by workers, owned and moved like any other.
 */
import { z } from 'zod'
import type { Limits, PoolData } from '../machines/index.js'
import { type BudgetLimits, limitFields, limitsOf, ms } from './budget.js'
import type { Crew } from './define.js'
import { emptyCrew } from './define-machine.js'
import { TroupeError } from './errors.js'

/** What a shared budget limits: tool calls are each crew's own. */
export type SharedLimits = Omit<BudgetLimits, 'toolCalls'>

/** A shared budget, as `defineBudget` takes it. */
export interface SharedBudgetOptions {
  /** `^[A-Za-z0-9_-]{1,64}$`. Crews name it, or the id that it is spawned with, as `budget: { from }`. */
  readonly name: string
  /** What all crews together may spend. At least one. */
  readonly limits: SharedLimits
  /** After what time it begins anew, in hours, days and months of UTC. @default never */
  readonly window?: 'hour' | 'day' | 'month'
  /**
   * How much a crew is given at once, when its next call takes less: fewer letters for larger shares. What it does not use
   * comes back at the end of its run. @default a hundredth of each limit
   */
  readonly share?: SharedLimits
  /** How long a crew that cannot pay waits for what others may give back, in milliseconds. @default 60_000 */
  readonly waitMs?: number
}

/** A checked shared budget. Give it to `runtime.spawn`, and to crews as `budget: { from }`. */
export interface SharedBudget extends Crew<never> {
  readonly pool: PoolData
}

const { toolCalls: _, ...shared } = limitFields
const shape = z.strictObject({
  name: z.string().regex(/^[A-Za-z0-9_-]{1,64}$/),
  limits: z
    .strictObject(shared)
    .refine((limits) => Object.values(limits).some((limit) => limit !== undefined), 'name at least one limit'),
  window: z.enum(['hour', 'day', 'month']).optional(),
  share: z.strictObject(shared).default({}),
  waitMs: ms.default(60_000),
})

/** A share is this part of a limit, when nothing is said. */
const sharesOfAll = 100

/**
 * Defines a budget that crews share, wherever they run: none of them spends what it was not given of it.
 * @throws TroupeError `CREW_INVALID` for a bad name, no limit, a limit of tool calls.
 */
export function defineBudget(options: SharedBudgetOptions): SharedBudget {
  const read = shape.safeParse(options)
  if (!read.success) throw new TroupeError('CREW_INVALID', `budget: ${z.prettifyError(read.error).slice(0, 1_000)}`)
  const { name, window = null, waitMs } = read.data
  const limits = limitsOf(read.data.limits as BudgetLimits)
  const share: Limits = { ...hundredth(limits), ...limitsOf(read.data.share as BudgetLimits) }
  return Object.freeze({ ...(emptyCrew as Crew<never>), name, pool: { limits, share, window, waitMs } })
}

function hundredth(limits: Limits): Limits {
  return Object.fromEntries(
    Object.entries(limits).map(([each, limit]) => [each, Math.ceil((limit ?? 0) / sharesOfAll)]),
  )
}
