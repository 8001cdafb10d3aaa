/**
 * The books of a budget that crews share, as they are told.
 *
 * Owns: where its actor is, what is told of it.
 * Does not own: the books themselves (`machines/budget-pool.ts`), the definition (`shared-budget.ts`).
 */
import { type Amounts, type Limits, poolBooked, type PoolData } from '../machines/index.js'
import type { BudgetLimits } from './budget.js'
import type { ShardState } from './state.js'

/** The actor of a shard that is a budget. */
export const poolAddress = 'pool/main'

/** What of a shared budget is spent, and by whom. */
export interface PoolBooks {
  readonly limits: BudgetLimits
  readonly window: 'hour' | 'day' | 'month' | null
  /** When it begins anew, in epoch milliseconds; null: never, or nothing was asked of it yet. */
  readonly until: number | null
  /** Spent in this window, and given to crews that may still spend it. */
  readonly booked: BudgetLimits
  /** Keepers of runs that have a share, and what of `booked` it is. */
  readonly shares: readonly { readonly keeper: string; readonly booked: BudgetLimits }[]
  /** Keepers that wait, the first one first. */
  readonly waiting: readonly string[]
}

/** The data of a shared budget among the data of a crew; null for a crew of another kind. */
export function poolOf(crew: unknown): PoolData | null {
  return (crew as { readonly pool?: PoolData } | null)?.pool ?? null
}

interface Books {
  readonly data: PoolData
  readonly until: number
  readonly spent: Amounts
  readonly holders: Readonly<Record<string, { readonly booked: Amounts }>>
  readonly waiting: readonly { readonly sender: string }[]
}

/** The books of a shard that is a budget; undefined for another. */
export function booksOf({ actors }: Pick<ShardState, 'actors'>): PoolBooks | undefined {
  const books = actors.get(poolAddress)?.snapshot.context as Books | undefined
  if (books === undefined) return undefined
  const { data, until, holders, waiting } = books
  return {
    limits: told(data.limits),
    window: data.window,
    until: until === 0 ? null : until,
    booked: told(poolBooked(books)),
    shares: Object.entries(holders).map(([keeper, { booked }]) => ({ keeper, booked: told(booked) })),
    waiting: waiting.map(({ sender }) => sender),
  }
}

function told({ nanoUsd, tokens, modelCalls }: Limits): BudgetLimits {
  return {
    ...(nanoUsd === undefined ? {} : { usd: nanoUsd / 1e9 }),
    ...(tokens === undefined ? {} : { tokens }),
    ...(modelCalls === undefined ? {} : { modelCalls }),
  }
}
