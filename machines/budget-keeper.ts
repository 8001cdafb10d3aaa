/**
 * The budget keeper: nobody spends before it has granted.
 *
 * Accounts form a tree. A child's limit is carved from its parent when it is opened; counters that a child does not
 * limit are its parent's. A model call reserves its worst price and settles its real one. A request that does not fit
 * waits while other grants are open, since they may give something back; with none open it is cut down to what is left,
 * or refused below `minOutputTokens`. In a soft account a request that does not fit is granted all the same as long as
 * anything is left: limits may be passed by one call. What a soft child lacks then, its parent must have.
 *
 * A keeper of a crew that shares a budget with others has a share of it, and asks for more when a request does not fit
 * (`budget-share.ts`); the request waits for the answer. What is not used goes back when a request was refused, at the
 * end of the run, and when bills come behind that. Accounts and share both have to have what a grant takes.
 *
 * Idempotent by grant id: a grant is reserved once; an estimated settlement is replaced by the first real one; after a
 * real one nothing changes. A grant that nobody settles expires: at the second sweep it is settled at its maximum.
 */
import { assertEvent, assign, enqueueActions, raise, setup } from 'xstate'
import {
  absorb,
  type Accounts,
  book,
  carve,
  payer,
  plus,
  raised,
  refund,
  returned,
  room,
  sources,
} from './budget-accounts.js'
import {
  answered,
  askFor,
  idOf,
  isAnswer,
  isAsked,
  isMistold,
  lackOf,
  leftOf,
  mayLeave,
  type Refusal,
  returnOf,
  type Share,
  type SharedGrant,
  shareMs,
  shareOf,
  spentAfter,
  spentUp,
  unanswered,
  usedOf,
  wasAskedFor,
  windowOf,
} from './budget-share.js'
import {
  type Amounts,
  type BudgetMessage,
  type BudgetReserve,
  type Dimension,
  dimensions,
  type Limits,
  nothing,
  to,
} from './messages.js'

interface Grant extends SharedGrant {
  readonly account: string
  /** `held` counts as reserved; `estimated` counts as spent until a real settlement replaces it. */
  readonly state: 'held' | 'estimated'
  /** Sweeps it has seen. */
  readonly age: number
}

interface BudgetContext {
  readonly self: string
  readonly minOutputTokens: number
  readonly accounts: Accounts
  readonly grants: Readonly<Record<string, Grant>>
  readonly waiting: readonly BudgetReserve[]
  /** What the next request in the queue gets. */
  readonly next: Decision | null
  /** A sweep is planned. */
  readonly sweeping: boolean
  /** Of a budget that crews share; null: the limits are all there is. */
  readonly share: Share | null
}

/** Input of a keeper: the limits of its root account, named `run`. */
interface BudgetInput {
  readonly self: string
  readonly limits: Limits
  readonly soft?: true | undefined
  readonly minOutputTokens: number
  readonly pool?: { readonly address: string; readonly answerMs: number } | undefined
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
      readonly code?: string
      readonly reason?: string
    }
  | { readonly kind: 'ask'; readonly request: BudgetReserve; readonly least: Amounts; readonly most: Amounts }

/** How long an unsettled grant stays open at least; twice that at most. Longer than any model call may take. */
const sweepMs = 15 * 60_000

// -------------------------------------------------------------------------------- arithmetic, all in integers

const ceilDiv = (value: number, by: number) => Math.ceil(value / by)
/** Micro-dollars per million tokens times tokens, in nano-dollars. */
const cost = (tokens: number, price: number) => ceilDiv(tokens * price, 1_000)
const worstOf = (request: BudgetReserve, maxOutputTokens: number): Amounts => ({
  nanoUsd: cost(request.inputTokens, request.price.input) + cost(maxOutputTokens, request.price.output),
  tokens: request.inputTokens + maxOutputTokens,
  modelCalls: 1,
  toolCalls: 0,
})

/** The first dimension that has no room for `amount`. */
const shortage = (context: BudgetContext, account: string, amount: Amounts) =>
  dimensions.find(
    (dimension) => amount[dimension] > 0 && amount[dimension] > room(context.accounts, account, dimension),
  )
/** What of its dimensions a request may take at most: of its account, or of the share. */
const affordable = (request: BudgetReserve, roomOf: (dimension: Dimension) => number) => {
  const money = roomOf('nanoUsd') - cost(request.inputTokens, request.price.input)
  const byMoney = Math.floor((money * 1_000) / Math.max(request.price.output, 1))
  return Math.min(request.maxOutputTokens, byMoney, roomOf('tokens') - request.inputTokens)
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
  if (short === undefined) return underShare(context, request, request.maxOutputTokens)
  if (mayFree(context, request.account, short)) return null
  const most = affordable(request, (dimension) => room(context.accounts, request.account, dimension))
  const cut = most >= leastOf(request) && shortage(context, request.account, worstOf(request, most)) === undefined
  return cut ? underShare(context, request, most) : refusal(context, request)
}
const leastOf = (request: BudgetReserve) => Math.min(request.minOutputTokens, request.maxOutputTokens)

/** What the share lets a request have that its account has the room for. */
function underShare(context: BudgetContext, request: BudgetReserve, maxOutputTokens: number): Decision | null {
  const { share, grants } = context
  const most = worstOf(request, maxOutputTokens)
  if (share === null || lackOf(share, grants, most) === undefined) return grantOf(request, maxOutputTokens)
  if (isAsked(share)) return null
  if (!wasAskedFor(share, request.grant))
    return { kind: 'ask', request, least: worstOf(request, leastOf(request)), most }
  return mayLeave(share, grants) ? null : cutToShare(share, grants, request, maxOutputTokens)
}
/** There is no more of the share: the call is cut down to what there is, or refused. */
function cutToShare(share: Share, grants: BudgetContext['grants'], request: BudgetReserve, most: number): Decision {
  const used = usedOf(share, grants)
  const cut = Math.min(
    most,
    affordable(request, (dimension) => leftOf(share, used, dimension)),
  )
  const lack = lackOf(share, grants, worstOf(request, Math.max(cut, leastOf(request))))
  return lack === undefined ? grantOf(request, cut) : shareRefusal(request, share, lack)
}
const shareRefusal = (request: BudgetReserve, share: Share, lack: Dimension): Decision => {
  const { dimension, limit, code, reason }: Refusal = share.asking?.why ?? {
    ...{ dimension: lack, limit: share.given?.[lack] ?? 0 },
    ...spentUp(share, lack, share.until),
  }
  return { kind: 'refuse', request, account: `@${idOf(share)}`, dimension: dimension ?? lack, limit, code, reason }
}
/** The share when nobody waits for more of it any more. */
const served = (share: Share | null, { grant }: BudgetReserve): Share | null =>
  share?.asking?.state === 'answered' && share.asking.grant === grant ? { ...share, asking: null } : share

/** Reserves; what a soft account lacks comes from its parent. */
const hold = ({ accounts, grants, share }: BudgetContext, { grant, account }: BudgetReserve, worst: Amounts) => ({
  accounts: absorb(book(accounts, account, 'held', worst, 1), account),
  grants: { ...grants, [grant]: { account, worst, state: 'held', age: 0, ...windowOf(share) } as const },
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
    share: spentAfter(context.share, grant, spent),
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

/** Raised by the keeper itself: what is old expires, the window of its share has ended, the pool has not answered. */
type Own = { type: 'budget.sweep' } | { type: 'share.over' } | { type: 'share.late' }
/** What was asked for is still to come; what was answered was of a window that has ended. */
const askedOnly = ({ asking }: Share) => (asking?.state === 'asked' ? asking : null)

const keeper = setup({
  types: {} as { context: BudgetContext; events: BudgetMessage | Own; input: BudgetInput },
  guards: {
    /** The common case: nobody waits, there is room, and the sweep is planned. */
    fitsNow: ({ context, event }) =>
      event.type === 'budget.reserve' &&
      context.sweeping &&
      context.waiting.length === 0 &&
      context.grants[event.grant] === undefined &&
      shortage(context, event.account, worstOf(event, event.maxOutputTokens)) === undefined &&
      lackOf(context.share, context.grants, worstOf(event, event.maxOutputTokens)) === undefined,
    settlesQuietly: ({ context, event }) =>
      event.type === 'budget.settle' &&
      context.waiting.length === 0 &&
      (context.share?.told ?? null) === null &&
      context.grants[event.grant] !== undefined,
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
    /** The share has not enough, and others may as well have what is left of it. */
    refusesShort: ({ context }) => context.next?.kind === 'refuse' && context.next.code !== undefined,
    asks: ({ context }) => context.next?.kind === 'ask',
    /** It has told the pool what it has used, and it was less, or more. */
    hasMistold: ({ context }) => isMistold(context.share, context.grants),
    hasShare: ({ context }) => context.share !== null,
    isAnswer: ({ context, event }) =>
      (event.type === 'share.given' || event.type === 'share.refused') && isAnswer(context.share, event),
    givesUntil: ({ context, event }) =>
      event.type === 'share.given' && event.until !== 0 && isAnswer(context.share, event),
    /** Nobody will ever take what it has asked. */
    isRefused: ({ context, event }) =>
      event.type === 'mail.returned' && event.message === 'share.ask' && context.share?.asking?.state === 'asked',
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
      const share = served(context.share, request)
      enqueue.assign({ waiting: context.waiting.slice(1), share, ...hold(context, request, worst) })
    }),
    refuse: enqueueActions(({ context, enqueue }) => {
      const { kind: _, request, ...why } = context.next as Extract<Decision, { kind: 'refuse' }>
      enqueue.sendTo(to(request.replyTo), { type: 'budget.refused', grant: request.grant, ...why })
      enqueue.assign({ waiting: context.waiting.slice(1), share: served(context.share, request) })
    }),
    ask: enqueueActions(({ context, enqueue }) => {
      const { request, ...amounts } = context.next as Extract<Decision, { kind: 'ask' }>
      const before = context.share!
      const { message, share } = askFor(before, usedOf(before, context.grants), request.grant, amounts)
      enqueue.sendTo(to(share.pool), message)
      enqueue.raise({ type: 'share.late' }, { id: 'late', delay: share.answerMs })
      enqueue.assign({ share })
    }),
    takeAnswer: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, ['share.given', 'share.refused', 'mail.returned'])
      enqueue.cancel('late')
      enqueue.assign({ share: answered(context.share!, event, context.waiting[0]?.grant) })
    }),
    planOver: enqueueActions(({ event, enqueue }) => {
      assertEvent(event, 'share.given')
      enqueue.raise({ type: 'share.over' }, { id: 'over', delay: shareMs(event) })
    }),
    /** Its window has ended. */
    endShare: assign({
      share: ({ context }) => context.share && { ...context.share, given: null, asking: askedOnly(context.share) },
    }),
    giveUp: assign({ share: ({ context }) => unanswered(context.share!, context.waiting[0]?.grant) }),
    giveBack: enqueueActions(({ context, enqueue }) => {
      for (const { pool, message, share } of returnOf(context.share, context.grants, false)) {
        enqueue.sendTo(to(pool), message)
        enqueue.cancel('late')
        enqueue.assign({ share })
      }
    }),
    /** The last that the pool hears, unless bills are still to come. */
    account: enqueueActions(({ context, enqueue }) => {
      const isFinal = Object.keys(context.grants).length === 0
      for (const { pool, message, share } of returnOf(context.share, context.grants, isFinal)) {
        enqueue.sendTo(to(pool), message)
        enqueue.assign({ share })
      }
    }),
    accountLast: enqueueActions(({ context, enqueue }) => {
      for (const { pool, message } of returnOf(context.share, context.grants, true)) enqueue.sendTo(to(pool), message)
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
      const { accounts, share } = expired
      return { accounts, share, grants: Object.fromEntries(aged) as BudgetContext['grants'] }
    }),
    close: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'budget.close')
      const closed = expire(context, () => true)
      enqueue.sendTo(to(event.replyTo), { type: 'budget.closed', spent: total(closed) })
      enqueue.assign({ accounts: closed.accounts, grants: closed.grants, share: closed.share, waiting: [] })
    }),
    report: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'budget.report')
      enqueue.sendTo(to(event.replyTo), { type: 'budget.closed', spent: total(context) })
    }),
    cancelTimers: enqueueActions(({ enqueue }) => {
      for (const id of ['sweep', 'late', 'over']) enqueue.cancel(id)
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
    share: shareOf(input.pool),
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
        'budget.report': { actions: ['report', 'giveBack'] },
        // What it had asked for may be lost with the message that it failed over, and so are its timers.
        'actor.resumed': [
          { guard: 'hasShare', target: '.looking', actions: ['giveBack', 'endShare', 'planSweep', 'sweeping'] },
          { guard: 'isSweeping', actions: 'planSweep' },
        ],
        'share.given': [
          { guard: 'givesUntil', target: '.looking', actions: ['takeAnswer', 'planOver'] },
          { guard: 'isAnswer', target: '.looking', actions: 'takeAnswer' },
        ],
        'share.refused': { guard: 'isAnswer', target: '.looking', actions: 'takeAnswer' },
        'mail.returned': { guard: 'isRefused', target: '.looking', actions: 'takeAnswer' },
        'share.over': { target: '.looking', actions: 'endShare' },
        'share.late': { target: '.looking', actions: ['giveBack', 'giveUp'] },
        'budget.sweep': [
          { guard: 'anythingHeld', target: '.looking', actions: ['sweep', 'planSweep'] },
          { actions: 'swept' },
        ],
        'budget.close': { target: 'closed', actions: ['close', 'account', 'cancelTimers'] },
      },
      states: {
        quiet: {},
        /** Serves the queue from its head until a request has to wait. */
        looking: {
          entry: 'look',
          always: [
            { guard: 'grantsFirst', target: 'looking', reenter: true, actions: ['grant', 'planSweep', 'sweeping'] },
            { guard: 'grants', target: 'looking', reenter: true, actions: 'grant' },
            { guard: 'refusesShort', target: 'looking', reenter: true, actions: ['refuse', 'giveBack'] },
            { guard: 'refuses', target: 'looking', reenter: true, actions: 'refuse' },
            { guard: 'asks', target: 'looking', reenter: true, actions: 'ask' },
            { guard: 'hasMistold', target: 'quiet', actions: 'giveBack' },
            { target: 'quiet' },
          ],
        },
      },
    },
    /** The run is over. Late real settlements still count, until nobody can send one any more. */
    closed: {
      always: { guard: 'nothingEstimated', target: 'gone' },
      after: { [2 * sweepMs]: { target: 'gone', actions: 'accountLast' } },
      on: {
        'budget.settle': {
          guard: 'isHeldOrEstimated',
          target: 'closed',
          reenter: true,
          actions: ['settle', 'account'],
        },
      },
    },
    gone: { type: 'final' },
  },
})
