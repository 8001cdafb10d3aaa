/**
 * The accounts of a budget keeper: a tree in which a child's limit is carved from its parent's.
 *
 * Owns: their arithmetic, in integers.
 * Does not own: grants, when anything is booked (`budget-keeper.ts`).
 */
import { type Amounts, type BudgetRaise, type Dimension, dimensions, type Limits, nothing } from './messages.js'

/** Accounts by name: `run`, `run/writer`. */
export type Accounts = Readonly<Record<string, Account>>

export interface Account {
  readonly parent: string | null
  readonly limits: Limits
  readonly soft: boolean
  /** Reserved by open grants. */
  readonly held: Amounts
  readonly spent: Amounts
  /** Nobody spends from it: what comes back, as with a late bill below its estimate, is its parent's at once. */
  readonly vacant?: true
}

export const plus = (a: Amounts, b: Amounts, factor = 1): Amounts => ({
  nanoUsd: a.nanoUsd + factor * b.nanoUsd,
  tokens: a.tokens + factor * b.tokens,
  modelCalls: a.modelCalls + factor * b.modelCalls,
  toolCalls: a.toolCalls + factor * b.toolCalls,
})

const orInfinite = (value: number | undefined) => value ?? Number.POSITIVE_INFINITY

/** The account that counts a dimension for `name`: the nearest one with a limit, or the root. */
export function payer(accounts: Accounts, name: string, dimension: Dimension): string {
  const account = accounts[name]
  return account === undefined || account.parent === null || account.limits[dimension] !== undefined
    ? name
    : payer(accounts, account.parent, dimension)
}

/** What is left of a dimension for `name`. */
export function left(accounts: Accounts, name: string, dimension: Dimension): number {
  const account = accounts[payer(accounts, name, dimension)]
  return orInfinite(account?.limits[dimension]) - (account?.held[dimension] ?? 0) - (account?.spent[dimension] ?? 0)
}

/** Has what it lacks from above. */
const isLenient = (accounts: Accounts, at: string, dimension: Dimension) =>
  accounts[at]?.soft === true && left(accounts, at, dimension) > 0

/** Accounts that a dimension of `name` is reserved from: whoever pays it and, above a soft one, who has what it lacks. */
export function sources(accounts: Accounts, name: string, dimension: Dimension): readonly string[] {
  const at = payer(accounts, name, dimension)
  const above = isLenient(accounts, at, dimension) ? (accounts[at]?.parent ?? null) : null
  return above === null ? [at] : [at, ...sources(accounts, above, dimension)]
}

/** What may be reserved of a dimension for `name`: as much as wanted, where nobody is above who would have to have it. */
export function room(accounts: Accounts, name: string, dimension: Dimension): number {
  const all = sources(accounts, name, dimension)
  if (isLenient(accounts, all.at(-1)!, dimension)) return Number.POSITIVE_INFINITY
  return all.reduce((sum, at) => sum + Math.max(0, left(accounts, at, dimension)), 0)
}

/** Adds to `held` or `spent` of whoever pays each dimension. */
export function book(
  accounts: Accounts,
  name: string,
  column: 'held' | 'spent',
  amount: Amounts,
  factor: 1 | -1,
): Accounts {
  const only = accounts[name]!
  // An account without a parent pays everything itself: the common case, in one step.
  if (only.parent === null) return { ...accounts, [name]: { ...only, [column]: plus(only[column], amount, factor) } }
  const booked = { ...accounts }
  for (const dimension of dimensions) {
    if (amount[dimension] === 0) continue
    const at = payer(accounts, name, dimension)
    const account = booked[at]!
    const value = account[column][dimension] + factor * amount[dimension]
    booked[at] = { ...account, [column]: { ...account[column], [dimension]: value } }
  }
  return booked
}

/** A child that spent more than it was given takes the difference from its parent. */
export function absorb(accounts: Accounts, name: string): Accounts {
  const account = accounts[name]!
  if (account.parent === null) return accounts
  const over = (dimension: Dimension) =>
    Math.max(0, account.spent[dimension] + account.held[dimension] - orInfinite(account.limits[dimension]))
  if (dimensions.every((dimension) => over(dimension) === 0)) return absorb(accounts, account.parent)
  const limits = Object.fromEntries(
    dimensions
      .filter((dimension) => account.limits[dimension] !== undefined)
      .map((dimension) => [dimension, (account.limits[dimension] ?? 0) + over(dimension)]),
  ) as Limits
  const excess = {
    nanoUsd: over('nanoUsd'),
    tokens: over('tokens'),
    modelCalls: over('modelCalls'),
    toolCalls: over('toolCalls'),
  }
  return absorb(
    book({ ...accounts, [name]: { ...account, limits } }, account.parent, 'held', excess, 1),
    account.parent,
  )
}
/**
 * Gives `name` limits of up to `wanted`, taken from what its parent has left. What an account limits is settled when it is
 * first opened: later on its grants are booked there, so a counter can be topped up, not added or dropped.
 */
export function carve(accounts: Accounts, name: string, parent: string, wanted: Limits, soft = false): Accounts {
  const { vacant: _, ...account } = accounts[name] ?? { parent, limits: wanted, soft, held: nothing, spent: nothing }
  const before = accounts[name]?.limits ?? {}
  const limited = dimensions.filter((dimension) => account.limits[dimension] !== undefined)
  const more = (dimension: Dimension) =>
    Math.max(0, Math.min((wanted[dimension] ?? 0) - (before[dimension] ?? 0), left(accounts, parent, dimension)))
  const added = Object.fromEntries(limited.map((dimension) => [dimension, more(dimension)])) as Partial<Amounts>
  const limits = Object.fromEntries(
    limited.map((dimension) => [dimension, (before[dimension] ?? 0) + (added[dimension] ?? 0)]),
  ) as Limits
  return { ...book(accounts, parent, 'held', { ...nothing, ...(added as Amounts) }, 1), [name]: { ...account, limits } }
}
/** Other limits for an account that is open. */
export function raised(accounts: Accounts, event: BudgetRaise): Accounts {
  const account = accounts[event.account]
  if (account === undefined) return accounts
  const limits = limitsAfter(account.limits, event)
  return account.parent === null
    ? { ...accounts, [event.account]: { ...account, limits } }
    : carve(accounts, event.account, account.parent, limits)
}
function limitsAfter(before: Limits, { limits, mode }: BudgetRaise): Limits {
  if (mode === 'set') return limits
  if (mode === 'to') return { ...before, ...limits }
  const limited = dimensions.filter((dimension) => before[dimension] !== undefined)
  return Object.fromEntries(limited.map((each) => [each, before[each]! + (limits[each] ?? 0)]))
}
/** Gives back to the parent what `name` neither spent nor holds. */
export function refund(accounts: Accounts, name: string): Accounts {
  const account = accounts[name]!
  const used = plus(account.spent, account.held)
  const unused = (dimension: Dimension) => Math.max(0, (account.limits[dimension] ?? 0) - used[dimension])
  const back = {
    nanoUsd: unused('nanoUsd'),
    tokens: unused('tokens'),
    modelCalls: unused('modelCalls'),
    toolCalls: unused('toolCalls'),
  }
  const limits = Object.fromEntries(
    dimensions
      .filter((dimension) => account.limits[dimension] !== undefined)
      .map((dimension) => [dimension, Math.min(account.limits[dimension] ?? 0, used[dimension])]),
  ) as Limits
  return { ...book(accounts, account.parent ?? name, 'held', back, -1), [name]: { ...account, limits, vacant: true } }
}
/** Passes what has come back to an account that nobody spends from on to those above. */
export function returned(accounts: Accounts, name: string): Accounts {
  const { vacant, parent } = accounts[name]!
  return vacant === true && parent !== null ? returned(refund(accounts, name), parent) : accounts
}
