/**
 * What a budget keeper knows of its share of a budget that crews have together, and what it says to the pool of it.
 *
 * Owns: what may be used of the share, the messages to the pool.
 * Does not own: accounts and grants, when anything is said (`budget-keeper.ts`), who gets how much (`budget-pool.ts`).
 *
 * A grant belongs to the window of the share that it was made from: what comes back of it later gives nothing to another one.
 */
import { hourText } from './calendar.js'
import {
  type Amounts,
  type BudgetMessage,
  type Dimension,
  dimensions,
  type Limits,
  nothing,
  type ShareAsk,
} from './messages.js'

/** A share, and what is asked for. */
export interface Share {
  /** Full address of the pool. */
  readonly pool: string
  readonly answerMs: number
  /** What may be used in the window, of what the pool limits. Null: nothing, as long as nobody has given anything. */
  readonly given: Limits | null
  /** End of the window in epoch milliseconds; 0: there is none, or nothing is known of it yet. */
  readonly until: number
  /** By grants of this window that are settled. */
  readonly spent: Amounts
  /** Of the last message to the pool. */
  readonly number: number
  readonly asking: Asking | null
  /** What the pool was told was used, as long as nothing was asked for since. */
  readonly told: Amounts | null
}

/** The request that more is asked for. */
interface Asking {
  readonly grant: string
  /** `answered`: there is no more than that. */
  readonly state: 'asked' | 'answered'
  /** Why it is refused when that is not enough. */
  readonly why: Refusal | null
}

/** Why there is no more. */
export interface Refusal {
  readonly dimension: Dimension | null
  readonly limit: number
  readonly code: string
  readonly reason: string
}

/** A grant as far as shares have to do with it. */
export interface SharedGrant {
  readonly worst: Amounts
  readonly state: 'held' | 'estimated'
  /** End of the window that it is of; absent without a share. */
  readonly until?: number
}

/** A message of the pool, or of nobody for it. */
type PoolAnswer = Extract<BudgetMessage, { type: 'share.given' | 'share.refused' | 'mail.returned' }>

/** Clocks of two workers differ; a share that is over is asked for anew no more often than this. */
const leastMs = 1_000
/** What a pool counts: tool calls are the keeper's own. */
const counted = dimensions.filter((each) => each !== 'toolCalls')

/** The share of a keeper that begins. */
export function shareOf(pool: { readonly address: string; readonly answerMs: number } | undefined): Share | null {
  if (pool === undefined) return null
  const { address, answerMs } = pool
  return { pool: address, answerMs, given: null, until: 0, spent: nothing, number: 0, asking: null, told: null }
}

const plus = (a: Amounts, b: Amounts, factor: 1 | -1 = 1): Amounts => ({
  nanoUsd: a.nanoUsd + factor * b.nanoUsd,
  tokens: a.tokens + factor * b.tokens,
  modelCalls: a.modelCalls + factor * b.modelCalls,
  toolCalls: 0,
})

/** What is used of the window: spent, and reserved for open calls. */
export function usedOf({ until, spent }: Share, grants: Readonly<Record<string, SharedGrant>>): Amounts {
  return Object.values(grants)
    .filter((grant) => grant.state === 'held' && grant.until === until)
    .reduce((sum, { worst }) => plus(sum, worst), spent)
}

/** Whether calls of this window are open: they may need less than was reserved. */
export const mayLeave = ({ until }: Share, grants: Readonly<Record<string, SharedGrant>>): boolean =>
  Object.values(grants).some((grant) => grant.state === 'held' && grant.until === until)

/** What is left of a dimension of the share. */
export function leftOf(share: Share | null, used: Amounts, dimension: Dimension): number {
  if (share === null || dimension === 'toolCalls') return Number.POSITIVE_INFINITY
  return (share.given === null ? 0 : (share.given[dimension] ?? Number.POSITIVE_INFINITY)) - used[dimension]
}

/** The first dimension of which the share has not enough. */
export function lackOf(
  share: Share | null,
  grants: Readonly<Record<string, SharedGrant>>,
  amount: Amounts,
): Dimension | undefined {
  if (share === null) return undefined
  const used = usedOf(share, grants)
  return counted.find((each) => amount[each] > 0 && amount[each] > leftOf(share, used, each))
}

/** The share when a grant of its window costs something, in the place of what was known of it. */
export function spentAfter(share: Share | null, grant: SharedGrant, spent: Amounts): Share | null {
  if (share === null || grant.until !== share.until) return share
  const before = grant.state === 'estimated' ? plus(share.spent, grant.worst, -1) : share.spent
  return { ...share, spent: plus(before, spent) }
}

/** The end of the window that a grant made now is of. */
export const windowOf = (share: Share | null): Pick<SharedGrant, 'until'> =>
  share === null ? {} : { until: share.until }

// -------------------------------------------------------------------------------- what is said

/** The request for more: its message, and the share that waits for the answer. */
export function askFor(
  share: Share,
  used: Amounts,
  grant: string,
  { least, most }: Pick<ShareAsk, 'least' | 'most'>,
): { readonly message: Omit<ShareAsk, 'sender' | 'life' | 'at'>; readonly share: Share } {
  const number = share.number + 1
  const { until } = share
  const asking = { grant, state: 'asked', why: null } as const
  return {
    message: { type: 'share.ask', number, until, used, least, most },
    share: { ...share, number, asking, told: null },
  }
}

/** What was used, and that the rest may be had back; of a keeper that has asked for nothing, nothing. */
export function returnOf(share: Share | null, grants: Readonly<Record<string, SharedGrant>>, final: boolean) {
  if (share === null || share.number === 0) return []
  const used = usedOf(share, grants)
  const { until, pool, given } = share
  const number = share.number + 1
  const kept = given === null ? null : keptOf(given, used)
  const message = { type: 'share.settle', number, until, used, final } as const
  return [{ pool, message, share: { ...share, number, given: kept, asking: null, told: used } }]
}

/** Whether the pool counts something else than what is used: it was told, and bills came since. */
export function isMistold(share: Share | null, grants: Readonly<Record<string, SharedGrant>>): boolean {
  if (share === null || share.told === null) return false
  const { told, given } = share
  const used = usedOf(share, grants)
  return counted.some((each) => used[each] !== told[each] && (given === null || given[each] !== undefined))
}

const keptOf = (given: Limits, used: Amounts): Limits =>
  Object.fromEntries(dimensions.filter((each) => given[each] !== undefined).map((each) => [each, used[each]] as const))

// -------------------------------------------------------------------------------- what is heard

/** Whether an answer is still to come. */
export const isAsked = ({ asking }: Share): boolean => asking?.state === 'asked'
/** Whether the last request for more was made for this grant. */
export const wasAskedFor = ({ asking }: Share, grant: string): boolean => asking?.grant === grant

/** Whether this is what the pool has to say to the last request. */
export const isAnswer = (share: Share | null, event: { readonly number: number }): boolean =>
  share?.asking?.state === 'asked' && event.number === share.number

/** The share when the pool has answered. @param first the request that waits now: only that one is answered */
export function answered(share: Share, event: PoolAnswer, first: string | undefined): Share {
  const asking = { grant: first ?? '', state: 'answered', why: whyOf(share, event) } as const
  const next = { ...share, asking: share.asking?.grant === first ? asking : null }
  if (event.type !== 'share.given') return next
  const { given, until } = event
  return { ...next, given, until, spent: until === share.until ? share.spent : nothing }
}

/** Why there is no more, as far as an answer says so. */
function whyOf(share: Share, event: PoolAnswer): Refusal | null {
  if (event.type === 'share.given') return null
  if (event.type === 'mail.returned')
    return { dimension: null, limit: 0, code: event.code, reason: `the budget ${idOf(share)}: ${event.reason}` }
  const { dimension, limit, until } = event
  return { dimension, limit, ...spentUp(share, dimension, until) }
}

/** Of a budget that is spent, and begins anew at the end of its window. */
export function spentUp(share: Share, dimension: Dimension, until: number): Pick<Refusal, 'code' | 'reason'> {
  const end = until === 0 ? '' : ` until ${hourText(until)}`
  return { code: 'BUDGET_EXHAUSTED', reason: `the budget ${idOf(share)} has no ${dimension} left${end}` }
}

/** The share when nothing was heard in time. @param first the request that waits now */
export function unanswered(share: Share, first: string | undefined): Share {
  const reason = `the budget ${idOf(share)} did not answer within ${Math.round(share.answerMs / 1_000)} seconds`
  const why = { dimension: null, limit: 0, code: 'BUDGET_EXHAUSTED', reason }
  return { ...share, asking: { grant: first ?? '', state: 'answered', why } }
}

/** How long a share may be used from now on, in milliseconds. */
export const shareMs = (event: { readonly until: number; readonly at: number }): number =>
  Math.max(leastMs, event.until - event.at)

/** Id of the pool's shard. */
export const idOf = ({ pool }: Share): string => pool.slice(0, pool.indexOf('/'))
