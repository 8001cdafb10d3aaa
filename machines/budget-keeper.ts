/**
 * The budget keeper: nobody spends before it has granted.
 *
 * Accounts form a tree. A child's limit is carved from its parent when it is opened; counters that a child does not
 * limit are its parent's. A model call reserves its worst price and settles its real one. A request that does not fit
 * waits while other grants are open, since they may give something back; with none open it is cut down to what is left,
 * or refused below `minOutputTokens`. In a soft account a request that does not fit is granted all the same as long as
 * anything is left: limits may be passed by one call. What a soft child lacks then, its parent must have.
 *
 * Idempotent by grant id: a grant is reserved once; an estimated settlement is replaced by the first real one; after a
 * real one nothing changes. A grant that nobody settles expires: at the second sweep it is settled at its maximum.
 */
import { assertEvent, assign, cancel, enqueueActions, raise, setup } from 'xstate'
import {
  type Amounts,
  type BudgetMessage,
  type BudgetRaise,
  type BudgetReserve,
  type Dimension,
  dimensions,
  type Limits,
  nothing,
  to,
} from './messages.js'

interface Account {
  readonly parent: string | null
  readonly limits: Limits
  readonly soft: boolean
  /** Reserved by open grants. */
  readonly held: Amounts
  readonly spent: Amounts
  /** Nobody spends from it: what comes back, as with a late bill below its estimate, is its parent's at once. */
  readonly vacant?: true
}

interface Grant {
  readonly account: string
  readonly worst: Amounts
  /** `held` counts as reserved; `estimated` counts as spent until a real settlement replaces it. */
  readonly state: 'held' | 'estimated'
  /** Sweeps it has seen. */
  readonly age: number
}

interface BudgetContext {
  readonly self: string
  readonly minOutputTokens: number
  readonly accounts: Readonly<Record<string, Account>>
  readonly grants: Readonly<Record<string, Grant>>
  readonly waiting: readonly BudgetReserve[]
  /** What the next request in the queue gets. */
  readonly next: Decision | null
  /** A sweep is planned. */
  readonly sweeping: boolean
}

/** Input of a keeper: the limits of its root account, named `run`. */
interface BudgetInput {
  readonly self: string
  readonly limits: Limits
  readonly soft?: true | undefined
  readonly minOutputTokens: number
}

type Decision =
  | {
      readonly kind: 'grant'
      readonly request: BudgetReserve
      readonly maxOutputTokens: number
      readonly worst: Amounts
    }
  | {
      readonly kind: 'refuse'
      readonly request: BudgetReserve
      readonly account: string
      readonly dimension: Dimension
      readonly limit: number
    }

/** How long an unsettled grant stays open at least; twice that at most. Longer than any model call may take. */
const sweepMs = 15 * 60_000

// -------------------------------------------------------------------------------- arithmetic, all in integers

const plus = (a: Amounts, b: Amounts, factor = 1): Amounts => ({
  nanoUsd: a.nanoUsd + factor * b.nanoUsd,
  tokens: a.tokens + factor * b.tokens,
  modelCalls: a.modelCalls + factor * b.modelCalls,
  toolCalls: a.toolCalls + factor * b.toolCalls,
})
const ceilDiv = (value: number, by: number) => Math.ceil(value / by)
const orInfinite = (value: number | undefined) => value ?? Number.POSITIVE_INFINITY
/** Micro-dollars per million tokens times tokens, in nano-dollars. */
const cost = (tokens: number, price: number) => ceilDiv(tokens * price, 1_000)
const worstOf = (request: BudgetReserve, maxOutputTokens: number): Amounts => ({
  nanoUsd: cost(request.inputTokens, request.price.input) + cost(maxOutputTokens, request.price.output),
  tokens: request.inputTokens + maxOutputTokens,
  modelCalls: 1,
  toolCalls: 0,
})

/** The account that counts a dimension for `name`: the nearest one with a limit, or the root. */
function payer(accounts: BudgetContext['accounts'], name: string, dimension: Dimension): string {
  const account = accounts[name]
  return account === undefined || account.parent === null || account.limits[dimension] !== undefined
    ? name
    : payer(accounts, account.parent, dimension)
}

/** What is left of a dimension for `name`. */
function left(accounts: BudgetContext['accounts'], name: string, dimension: Dimension): number {
  const account = accounts[payer(accounts, name, dimension)]
  return orInfinite(account?.limits[dimension]) - (account?.held[dimension] ?? 0) - (account?.spent[dimension] ?? 0)
}

/** Has what it lacks from above. */
const isLenient = (accounts: BudgetContext['accounts'], at: string, dimension: Dimension) =>
  accounts[at]?.soft === true && left(accounts, at, dimension) > 0

/** Accounts that a dimension of `name` is reserved from: whoever pays it and, above a soft one, who has what it lacks. */
function sources(accounts: BudgetContext['accounts'], name: string, dimension: Dimension): readonly string[] {
  const at = payer(accounts, name, dimension)
  const above = isLenient(accounts, at, dimension) ? (accounts[at]?.parent ?? null) : null
  return above === null ? [at] : [at, ...sources(accounts, above, dimension)]
}

/** What may be reserved of a dimension for `name`: as much as wanted, where nobody is above who would have to have it. */
function room(accounts: BudgetContext['accounts'], name: string, dimension: Dimension): number {
  const all = sources(accounts, name, dimension)
  if (isLenient(accounts, all.at(-1)!, dimension)) return Number.POSITIVE_INFINITY
  return all.reduce((sum, at) => sum + Math.max(0, left(accounts, at, dimension)), 0)
}

/** Adds to `held` or `spent` of whoever pays each dimension. */
function book(
  accounts: BudgetContext['accounts'],
  name: string,
  column: 'held' | 'spent',
  amount: Amounts,
  factor: 1 | -1,
): BudgetContext['accounts'] {
  const only = accounts[name]!
  // An account without a parent pays everything itself: the common case, in one step.
  if (only.parent === null) return { ...accounts, [name]: { ...only, [column]: plus(only[column], amount, factor) } }
  const booked = { ...accounts }
  for (const dimension of dimensions) {
    const at = payer(accounts, name, dimension)
    const account = booked[at]!
    const value = account[column][dimension] + factor * amount[dimension]
    booked[at] = { ...account, [column]: { ...account[column], [dimension]: value } }
  }
  return booked
}

/** The first dimension that has no room for `amount`. */
const shortage = (context: BudgetContext, account: string, amount: Amounts) =>
  dimensions.find(
    (dimension) => amount[dimension] > 0 && amount[dimension] > room(context.accounts, account, dimension),
  )
const affordable = (context: BudgetContext, request: BudgetReserve) => {
  const money = room(context.accounts, request.account, 'nanoUsd') - cost(request.inputTokens, request.price.input)
  const byMoney = Math.floor((money * 1_000) / Math.max(request.price.output, 1))
  const byTokens = room(context.accounts, request.account, 'tokens') - request.inputTokens
  return Math.min(request.maxOutputTokens, byMoney, byTokens)
}
const anyHeld = (context: BudgetContext) => Object.values(context.grants).some((grant) => grant.state === 'held')
/** Might an open grant give back what `account` is short of? */
const mayFree = (context: BudgetContext, account: string, dimension: Dimension) => {
  const at = sources(context.accounts, account, dimension)
  return Object.values(context.grants).some(
    (grant) => grant.state === 'held' && at.includes(payer(context.accounts, grant.account, dimension)),
  )
}
const refusal = (context: BudgetContext, request: BudgetReserve): Decision => {
  const dimension = shortage(context, request.account, worstOf(request, request.minOutputTokens)) ?? 'tokens'
  return { kind: 'refuse', request, ...lacking(context, request.account, dimension) }
}
/** Who lacks it. */
const lacking = ({ accounts }: BudgetContext, name: string, dimension: Dimension) => {
  const account = payer(accounts, name, dimension)
  return { account, dimension, limit: accounts[account]?.limits[dimension] ?? 0 }
}
const grantOf = (request: BudgetReserve, maxOutputTokens: number): Decision => ({
  kind: 'grant',
  request,
  maxOutputTokens,
  worst: worstOf(request, maxOutputTokens),
})

/** What the first request in the queue gets now; null while it has to wait. */
function decide(context: BudgetContext): Decision | null {
  const [request] = context.waiting
  if (request === undefined) return null
  const short = shortage(context, request.account, worstOf(request, request.maxOutputTokens))
  if (short === undefined) return grantOf(request, request.maxOutputTokens)
  if (mayFree(context, request.account, short)) return null
  const most = affordable(context, request)
  const least = Math.min(request.minOutputTokens, request.maxOutputTokens)
  const cut = most >= least && shortage(context, request.account, worstOf(request, most)) === undefined
  return cut ? grantOf(request, most) : refusal(context, request)
}

/** Reserves; what a soft account lacks comes from its parent. */
const hold = ({ accounts, grants }: BudgetContext, { grant, account }: BudgetReserve, worst: Amounts) => ({
  accounts: absorb(book(accounts, account, 'held', worst, 1), account),
  grants: { ...grants, [grant]: { account, worst, state: 'held', age: 0 } as const },
})

/** Takes back a reservation that nothing was spent on. */
const released = <Books extends Pick<BudgetContext, 'accounts' | 'grants'>>(books: Books, grant: string): Books => {
  const { account, worst } = books.grants[grant]!
  const accounts = returned(book(books.accounts, account, 'held', worst, -1), account)
  return { ...books, accounts, grants: without(books.grants, grant) }
}
/** Reservations of an actor: a grant's id begins with the address of whoever asked for it. */
const heldBy = ({ grants }: BudgetContext, holder: string) =>
  Object.keys(grants).filter((id) => id.startsWith(`${holder}#`) && grants[id]?.state === 'held')

const known = (context: BudgetContext, grant: string) =>
  context.grants[grant] !== undefined || context.waiting.some((request) => request.grant === grant)
const without = (grants: BudgetContext['grants'], grant: string) => {
  const { [grant]: _, ...rest } = grants
  return rest
}
/** A child that spent more than it was given takes the difference from its parent. */
function absorb(accounts: BudgetContext['accounts'], name: string): BudgetContext['accounts'] {
  const account = accounts[name]!
  if (account.parent === null) return accounts
  const over = (dimension: Dimension) =>
    Math.max(0, account.spent[dimension] + account.held[dimension] - orInfinite(account.limits[dimension]))
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
function carve(
  accounts: BudgetContext['accounts'],
  name: string,
  parent: string,
  wanted: Limits,
  soft = false,
): BudgetContext['accounts'] {
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
function raised(accounts: BudgetContext['accounts'], event: BudgetRaise): BudgetContext['accounts'] {
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
function refund(accounts: BudgetContext['accounts'], name: string): BudgetContext['accounts'] {
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
function returned(accounts: BudgetContext['accounts'], name: string): BudgetContext['accounts'] {
  const { vacant, parent } = accounts[name]!
  return vacant === true && parent !== null ? returned(refund(accounts, name), parent) : accounts
}
/** Closes a grant: what it held or estimated is taken back, what it spent is booked. */
function settle(context: BudgetContext, id: string, spent: Amounts, real: boolean, toolCalls: number) {
  const grant = context.grants[id]!
  const column = grant.state === 'held' ? 'held' : 'spent'
  const cleared = book(context.accounts, grant.account, column, grant.worst, -1)
  const estimated: Grant = { ...grant, state: 'estimated', worst: spent }
  const booked = book(cleared, grant.account, 'spent', { ...spent, toolCalls: spent.toolCalls + toolCalls }, 1)
  return {
    accounts: returned(absorb(booked, grant.account), grant.account),
    grants: real ? without(context.grants, id) : { ...context.grants, [id]: estimated },
  }
}
/** Settles every held grant that `old` picks at its maximum. */
function expire(context: BudgetContext, old: (grant: Grant) => boolean): BudgetContext {
  return Object.entries(context.grants)
    .filter(([, grant]) => grant.state === 'held' && old(grant))
    .reduce<BudgetContext>((rest, [id, grant]) => ({ ...rest, ...settle(rest, id, grant.worst, false, 0) }), context)
}
const total = (context: BudgetContext) =>
  Object.values(context.accounts).reduce((sum, account) => plus(sum, account.spent), nothing)

/** Raised by the keeper itself. */
type Sweep = { type: 'budget.sweep' }

const keeper = setup({
  types: {} as { context: BudgetContext; events: BudgetMessage | Sweep; input: BudgetInput },
  guards: {
    /** The common case: nobody waits, there is room, and the sweep is planned. */
    fitsNow: ({ context, event }) =>
      event.type === 'budget.reserve' &&
      context.sweeping &&
      context.waiting.length === 0 &&
      context.grants[event.grant] === undefined &&
      shortage(context, event.account, worstOf(event, event.maxOutputTokens)) === undefined,
    settlesQuietly: ({ context, event }) =>
      event.type === 'budget.settle' && context.waiting.length === 0 && context.grants[event.grant] !== undefined,
    isNew: ({ context, event }) => event.type === 'budget.reserve' && !known(context, event.grant),
    isChild: ({ context, event }) =>
      event.type === 'budget.refund' && (context.accounts[event.account]?.parent ?? null) !== null,
    isHeldOrEstimated: ({ context, event }) =>
      event.type === 'budget.settle' && context.grants[event.grant] !== undefined,
    isHeld: ({ context, event }) => event.type === 'budget.release' && context.grants[event.grant]?.state === 'held',
    mayCharge: ({ context, event }) =>
      event.type === 'budget.charge' && event.toolCalls <= room(context.accounts, event.account, 'toolCalls'),
    isSweeping: ({ context }) => context.sweeping,
    grantsFirst: ({ context }) => context.next?.kind === 'grant' && !context.sweeping,
    grants: ({ context }) => context.next?.kind === 'grant',
    refuses: ({ context }) => context.next?.kind === 'refuse',
    anythingHeld: ({ context }) => anyHeld(context),
    nothingEstimated: ({ context }) => Object.keys(context.grants).length === 0,
  },
  actions: {
    openAccount: assign({
      accounts: ({ context, event }) => {
        assertEvent(event, 'budget.open')
        return carve(context.accounts, event.account, event.parent, event.limits, event.soft)
      },
    }),
    refundAccount: assign({
      accounts: ({ context, event }) => {
        assertEvent(event, 'budget.refund')
        return refund(context.accounts, event.account)
      },
    }),
    enqueueRequest: assign({
      waiting: ({ context, event }) =>
        event.type === 'budget.reserve' ? [...context.waiting, event] : context.waiting,
    }),
    look: assign({ next: ({ context }) => decide(context) }),
    grantNow: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'budget.reserve')
      const worst = worstOf(event, event.maxOutputTokens)
      const { grant, maxOutputTokens } = event
      enqueue.sendTo(to(event.replyTo), { type: 'budget.granted', grant, maxOutputTokens, worst })
      enqueue.assign(hold(context, event, worst))
    }),
    grant: enqueueActions(({ context, enqueue }) => {
      const { request, worst, maxOutputTokens } = context.next as Extract<Decision, { kind: 'grant' }>
      enqueue.sendTo(to(request.replyTo), { type: 'budget.granted', grant: request.grant, maxOutputTokens, worst })
      enqueue.assign({ waiting: context.waiting.slice(1), ...hold(context, request, worst) })
    }),
    refuse: enqueueActions(({ context, enqueue }) => {
      const { request, account, dimension, limit } = context.next as Extract<Decision, { kind: 'refuse' }>
      const refused = { type: 'budget.refused', grant: request.grant, account, dimension, limit }
      enqueue.sendTo(to(request.replyTo), refused)
      enqueue.assign({ waiting: context.waiting.slice(1) })
    }),
    settle: assign(({ context, event }) => {
      assertEvent(event, 'budget.settle')
      return settle(context, event.grant, event.spent, event.real, event.toolCalls)
    }),
    release: assign(({ context, event }) => {
      assertEvent(event, 'budget.release')
      const { accounts, grants } = released(context, event.grant)
      return { accounts, grants }
    }),
    withdraw: assign(({ context, event }) => {
      assertEvent(event, 'budget.withdraw')
      const { accounts, grants } = heldBy(context, event.holder).reduce(released, context)
      return { accounts, grants, waiting: context.waiting.filter(({ replyTo }) => replyTo !== event.holder) }
    }),
    forget: assign({
      waiting: ({ context, event }) =>
        event.type === 'budget.release'
          ? context.waiting.filter((request) => request.grant !== event.grant)
          : context.waiting,
    }),
    charge: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'budget.charge')
      const amount = { ...nothing, toolCalls: event.toolCalls }
      enqueue.sendTo(to(event.replyTo), { type: 'budget.granted', grant: '', maxOutputTokens: 0, worst: amount })
      enqueue.assign({ accounts: absorb(book(context.accounts, event.account, 'spent', amount, 1), event.account) })
    }),
    refuseCharge: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'budget.charge')
      const refused = { type: 'budget.refused', grant: '', ...lacking(context, event.account, 'toolCalls') }
      enqueue.sendTo(to(event.replyTo), refused)
    }),
    raise: assign(({ context, event }) => {
      assertEvent(event, 'budget.raise')
      return { accounts: raised(context.accounts, event) }
    }),
    sweep: assign(({ context }) => {
      const expired = expire(context, (grant) => grant.age > 0)
      const aged = Object.entries(expired.grants).map(([id, grant]) => [id, { ...grant, age: grant.age + 1 }])
      return { accounts: expired.accounts, grants: Object.fromEntries(aged) as BudgetContext['grants'] }
    }),
    close: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'budget.close')
      const closed = expire(context, () => true)
      enqueue.sendTo(to(event.replyTo), { type: 'budget.closed', spent: total(closed) })
      enqueue.assign({ accounts: closed.accounts, grants: closed.grants, waiting: [] })
    }),
    report: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'budget.report')
      enqueue.sendTo(to(event.replyTo), { type: 'budget.closed', spent: total(context) })
    }),
    planSweep: raise({ type: 'budget.sweep' }, { id: 'sweep', delay: sweepMs }),
    sweeping: assign({ sweeping: true }),
    swept: assign({ sweeping: false }),
  },
})

/** The budget keeper machine. Bump `version` with any change of its decisions. */
export const budgetMachine = keeper.createMachine({
  id: 'budget',
  version: '4',
  context: ({ input }) => ({
    self: input.self,
    minOutputTokens: input.minOutputTokens,
    accounts: { run: { parent: null, limits: input.limits, soft: input.soft === true, held: nothing, spent: nothing } },
    grants: {},
    waiting: [],
    next: null,
    sweeping: false,
  }),
  initial: 'open',
  states: {
    open: {
      initial: 'quiet',
      on: {
        'budget.open': { target: '.looking', actions: 'openAccount' },
        'budget.refund': { guard: 'isChild', target: '.looking', actions: 'refundAccount' },
        'budget.reserve': [
          { guard: 'fitsNow', actions: 'grantNow' },
          { guard: 'isNew', target: '.looking', actions: 'enqueueRequest' },
        ],
        'budget.settle': [
          { guard: 'settlesQuietly', actions: 'settle' },
          { guard: 'isHeldOrEstimated', target: '.looking', actions: 'settle' },
        ],
        'budget.release': [
          { guard: 'isHeld', target: '.looking', actions: 'release' },
          { target: '.looking', actions: 'forget' },
        ],
        'budget.withdraw': { target: '.looking', actions: 'withdraw' },
        'budget.charge': [{ guard: 'mayCharge', actions: 'charge' }, { actions: 'refuseCharge' }],
        'budget.raise': { target: '.looking', actions: 'raise' },
        'budget.report': { actions: 'report' },
        'actor.resumed': { guard: 'isSweeping', actions: 'planSweep' },
        'budget.sweep': [
          { guard: 'anythingHeld', target: '.looking', actions: ['sweep', 'planSweep'] },
          { actions: 'swept' },
        ],
        'budget.close': { target: 'closed', actions: ['close', cancel('sweep')] },
      },
      states: {
        quiet: {},
        /** Serves the queue from its head until a request has to wait. */
        looking: {
          entry: 'look',
          always: [
            { guard: 'grantsFirst', target: 'looking', reenter: true, actions: ['grant', 'planSweep', 'sweeping'] },
            { guard: 'grants', target: 'looking', reenter: true, actions: 'grant' },
            { guard: 'refuses', target: 'looking', reenter: true, actions: 'refuse' },
            { target: 'quiet' },
          ],
        },
      },
    },
    /** The run is over. Late real settlements still count, until nobody can send one any more. */
    closed: {
      always: { guard: 'nothingEstimated', target: 'gone' },
      after: { [2 * sweepMs]: 'gone' },
      on: { 'budget.settle': { guard: 'isHeldOrEstimated', target: 'closed', reenter: true, actions: 'settle' } },
    },
    gone: { type: 'final' },
  },
})
