/**
 * The budget pool: one budget that many crews spend from. It gives shares of it to their keepers.
 *
 * A share counts as spent until its keeper says what it has used. So the limits hold whoever dies, is cut off or is told
 * late; what nobody accounts for stays booked until the window ends. A window begins anew with all that is limited: what
 * comes back of an earlier one gives nothing to it.
 *
 * Who asks first is served first. Who cannot be served waits while others hold what they may give back. When all of those
 * wait as well, whoever of them asked last is refused, since somebody has to give back; and nobody waits longer than
 * `waitMs`. Idempotent by the numbers of a keeper's messages: of two the later one counts. A keeper whose journal was cut back
 * counts anew, and may not know all that it used: whatever it was given before is spent.
 */
import { assertEvent, assign, enqueueActions, setup } from 'xstate'
import { endOf } from './calendar.js'
import {
  type Amounts,
  type Dimension,
  dimensions,
  type Limits,
  nothing,
  type PoolData,
  type PoolInput,
  type PoolMessage,
  type ShareAsk,
  to,
} from './messages.js'

/** What a keeper has of this window. */
interface Holder {
  /** Of its last message. */
  readonly life: number
  readonly number: number
  /** Counts as spent. */
  readonly booked: Amounts
  /** By how much the last answer raised that. */
  readonly last: Amounts
  /** It may give something back. */
  readonly open: boolean
}

/** A keeper that waits. */
interface Waiting extends ShareAsk {
  /** When it is refused at the latest, in epoch milliseconds. */
  readonly dueAt: number
  /** Its end has a timer. */
  readonly planned: boolean
}

interface PoolContext {
  readonly self: string
  readonly data: PoolData
  /** End of the window in epoch milliseconds; 0: none. */
  readonly until: number
  /** What keepers have used in this window that say nothing more. */
  readonly spent: Amounts
  readonly holders: Readonly<Record<string, Holder>>
  readonly waiting: readonly Waiting[]
  readonly next: Decision | null
}

type Decision =
  | { readonly kind: 'give'; readonly ask: Waiting; readonly booked: Amounts }
  | { readonly kind: 'refuse'; readonly ask: Waiting; readonly dimension: Dimension }

/** What the outside may watch a pool do. Amounts are of the counters that it limits. */
export type PoolEvent =
  | { type: 'share.given'; keeper: string; given: Limits }
  | { type: 'share.returned'; keeper: string; used: Amounts }
  | { type: 'share.refused'; keeper: string; dimension: Dimension; until: number }
  | { type: 'pool.window'; until: number; spent: Amounts }
  | { type: 'budget.raised'; account: string; limits: Limits; mode: 'to' }
  | { type: 'raise.refused'; agent: string }

/** Raised by the pool itself, when a keeper has waited for long enough. */
type Due = { type: 'share.due'; keeper: string; number: number; at: number }
type Any = PoolMessage | Due

// -------------------------------------------------------------------------------- windows

/** The end of the window that a moment lies in; 0 for none. */
const windowEnd = (window: PoolData['window'], at: number): number => (window === null ? 0 : endOf(window, at))

/** When a message came; null for one that does not say. */
const timeOf = (event: Any) => ('at' in event ? event.at : null)
/** Whether another window has begun by then. */
const isOver = ({ until }: PoolContext, at: number | null): at is number => at !== null && until !== 0 && at >= until
/** The books of the window that a message comes in, and of the life of its keeper. Who waits goes on waiting in it. */
function rolled(context: PoolContext, event: Any): Pick<PoolContext, 'until' | 'spent' | 'holders' | 'waiting'> {
  const { data, until, waiting } = context
  const { spent, holders } = outlived(context, event)
  const at = timeOf(event)
  if (!isOver(context, at))
    return { until: until === 0 && at !== null ? windowEnd(data.window, at) : until, spent, holders, waiting }
  const end = windowEnd(data.window, at)
  return { until: end, spent: nothing, holders: {}, waiting: waiting.map((ask) => waitingFrom(data, end, ask, at)) }
}

/** What was given to the earlier life of a keeper is spent. */
function outlived({ spent, holders }: PoolContext, event: Any): Pick<PoolContext, 'spent' | 'holders'> {
  if (!('sender' in event) || !('life' in event)) return { spent, holders }
  const holder = holders[event.sender]
  if (holder === undefined || holder.life >= event.life) return { spent, holders }
  return { spent: plus(spent, holder.booked), holders: without(holders, event.sender) }
}

/** What was booked in the window that ends with a message, if one does. */
const closedBy = (context: PoolContext, event: Any) => (isOver(context, timeOf(event)) ? [bookedOf(context)] : [])

/** A request that waits from a moment on: until something comes, the window ends or it has waited for long enough. */
function waitingFrom({ waitMs }: PoolData, until: number, ask: ShareAsk, at: number): Waiting {
  return { ...ask, at, dueAt: at + Math.min(waitMs, until === 0 ? waitMs : until - at), planned: false }
}

// -------------------------------------------------------------------------------- the books

const amounts = (of: (dimension: Dimension) => number): Amounts => ({
  nanoUsd: of('nanoUsd'),
  tokens: of('tokens'),
  modelCalls: of('modelCalls'),
  toolCalls: of('toolCalls'),
})
const plus = (a: Amounts, b: Amounts): Amounts => amounts((each) => a[each] + b[each])
const minus = (a: Amounts, b: Amounts): Amounts => amounts((each) => a[each] - b[each])
/** Everything that counts as spent. */
export const bookedOf = ({
  spent,
  holders,
}: {
  readonly spent: Amounts
  readonly holders: Readonly<Record<string, Pick<Holder, 'booked'>>>
}): Amounts => Object.values(holders).reduce((sum, { booked }) => plus(sum, booked), spent)
const limitOf = ({ data }: PoolContext, dimension: Dimension) => data.limits[dimension] ?? Number.POSITIVE_INFINITY
/** What is limited of amounts. */
const limited = ({ data }: PoolContext, all: Amounts): Limits =>
  Object.fromEntries(
    dimensions.filter((each) => data.limits[each] !== undefined).map((each) => [each, all[each]] as const),
  )
/** What a keeper had used of this window when it asked. */
const usedBy = ({ until }: PoolContext, ask: ShareAsk) => (ask.until === until ? ask.used : nothing)

/** What is missing of the least that a keeper needs. */
function shortage(context: PoolContext, ask: Waiting, booked: Amounts): Dimension | undefined {
  const own = context.holders[ask.sender]?.booked ?? nothing
  const needs = plus(usedBy(context, ask), ask.least)
  return dimensions.find((each) => needs[each] > own[each] + Math.max(0, limitOf(context, each) - booked[each]))
}

/** What counts as spent for a keeper from now on: what its call takes or a share, as far as that is there. */
function shareFor(context: PoolContext, ask: Waiting, booked: Amounts): Amounts {
  const own = context.holders[ask.sender]?.booked ?? nothing
  const used = usedBy(context, ask)
  return amounts((each) => {
    if (context.data.limits[each] === undefined) return used[each]
    const wanted = used[each] + Math.max(ask.most[each], context.data.share[each] ?? 0)
    return Math.max(own[each], Math.min(wanted, own[each] + Math.max(0, limitOf(context, each) - booked[each])))
  })
}

const isWaiting = ({ waiting }: PoolContext, keeper: string) => waiting.some(({ sender }) => sender === keeper)
/** Keepers that may give something back, but for one. */
const othersOf = ({ holders }: PoolContext, keeper: string) =>
  Object.keys(holders).filter((each) => each !== keeper && holders[each]!.open)

/** What comes next for those who wait; null while they have to. */
function decide(context: PoolContext): Decision | null {
  const [first] = context.waiting
  if (first === undefined) return null
  const booked = bookedOf(context)
  const dimension = shortage(context, first, booked)
  if (dimension === undefined) return { kind: 'give', ask: first, booked: shareFor(context, first, booked) }
  const others = othersOf(context, first.sender)
  const rest = others.reduce((sum, each) => minus(sum, context.holders[each]!.booked), booked)
  const never = shortage(context, first, rest)
  if (never !== undefined) return { kind: 'refuse', ask: first, dimension: never }
  if (others.some((each) => !isWaiting(context, each))) return null
  return {
    kind: 'refuse',
    ask: context.waiting.filter(({ sender }) => others.includes(sender)).at(-1) ?? first,
    dimension,
  }
}

/** Place of a message among those of its keeper. */
interface Place {
  readonly life: number
  readonly number: number
}
const isBehind = (one: Place, other: Place) =>
  one.life === other.life ? one.number > other.number : one.life > other.life
/** Whether a message of a keeper counts: it comes behind its last one. */
const isLater = ({ holders, waiting }: PoolContext, message: Place & { readonly sender: string }) =>
  [holders[message.sender], waiting.find(({ sender }) => sender === message.sender)].every(
    (last) => last === undefined || isBehind(message, last),
  )

const without = <T>(record: Readonly<Record<string, T>>, key: string) => {
  const { [key]: _, ...rest } = record
  return rest
}
const crewOf = (keeper: string) => keeper.slice(0, keeper.indexOf('/'))

/** A place in the queue: that of the keeper's request before, if it waits. */
function queued({ waiting, data }: PoolContext, until: number, ask: ShareAsk): readonly Waiting[] {
  const item = waitingFrom(data, until, ask, ask.at)
  const at = waiting.findIndex(({ sender }) => sender === ask.sender)
  return at === -1 ? [...waiting, item] : waiting.map((each, index) => (index === at ? item : each))
}

/** The books when a keeper has told what it has used. What is told of another window changes nothing in this one. */
function settled(context: PoolContext, event: Extract<PoolMessage, { type: 'share.settle' }>) {
  const { sender, life, number, used, final, until } = event
  const holder = context.holders[sender]
  const rest = { waiting: context.waiting.filter((each) => each.sender !== sender) }
  if (holder === undefined || until !== context.until) return { ...context, ...rest }
  if (final) return { ...context, ...rest, spent: plus(context.spent, used), holders: without(context.holders, sender) }
  const row = { life, number, booked: used, last: nothing, open: false }
  return { ...context, ...rest, holders: { ...context.holders, [sender]: row } }
}

/** Of a crew that is gone: nobody asks for it any more, and what it was never told of it has not spent. */
function takenBack(context: PoolContext, event: Extract<PoolMessage, { type: 'mail.returned' }>) {
  const crew = crewOf(event.sender)
  const keeper = `${crew}/${event.actor ?? ''}`
  const holder = context.holders[keeper]
  const waiting = context.waiting.filter(({ sender }) => crewOf(sender) !== crew)
  if (holder === undefined || event.message !== 'share.given') return { waiting }
  const row = { ...holder, booked: minus(holder.booked, holder.last), last: nothing, open: false }
  return { waiting, holders: { ...context.holders, [keeper]: row } }
}

const dueId = (keeper: string) => `due ${keeper}`

const pool = setup({
  types: {} as { context: PoolContext; events: Any; input: PoolInput; emitted: PoolEvent },
  guards: {
    isLater: ({ context, event }) =>
      (event.type === 'share.ask' || event.type === 'share.settle') && isLater(context, event),
    /** Its answer may not have come. */
    wasGiven: ({ context, event }) =>
      event.type === 'share.ask' &&
      context.holders[event.sender]?.number === event.number &&
      context.holders[event.sender]?.life === event.life &&
      !isWaiting(context, event.sender),
    mayRaise: ({ event }) => event.type === 'crew.raise' && event.agent === undefined,
    isDue: ({ context, event }) =>
      event.type === 'share.due' &&
      context.waiting.some(({ sender, number }) => sender === event.keeper && number === event.number),
    opensWindow: ({ context, event }) => isOver(context, timeOf(event)),
    gives: ({ context }) => context.next?.kind === 'give',
    refuses: ({ context }) => context.next?.kind === 'refuse',
    isUnplanned: ({ context }) => context.waiting.some(({ planned }) => !planned),
  },
  actions: {
    roll: enqueueActions(({ context, event, enqueue }) => {
      const books = rolled(context, event)
      for (const spent of closedBy(context, event)) enqueue.emit({ type: 'pool.window', until: books.until, spent })
      enqueue.assign(books)
    }),
    enqueueAsk: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'share.ask')
      const holder = context.holders[event.sender]
      enqueue.assign({
        waiting: queued(context, context.until, event),
        holders:
          holder === undefined
            ? context.holders
            : { ...context.holders, [event.sender]: { ...holder, number: event.number } },
      })
    }),
    answerAgain: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'share.ask')
      const { until } = context
      const given = limited(context, context.holders[event.sender]!.booked)
      enqueue.sendTo(to(event.sender), { type: 'share.given', number: event.number, until, given })
    }),
    settle: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'share.settle')
      const { spent, holders, waiting } = settled(context, event)
      enqueue.cancel(dueId(event.sender))
      enqueue.emit({ type: 'share.returned', keeper: event.sender, used: event.used })
      enqueue.assign({ spent, holders, waiting })
    }),
    takeBack: assign(({ context, event }) => {
      assertEvent(event, 'mail.returned')
      return takenBack(context, event)
    }),
    look: assign({ next: ({ context }) => decide(context) }),
    give: enqueueActions(({ context, enqueue }) => {
      const { ask, booked } = context.next as Extract<Decision, { kind: 'give' }>
      const { sender: keeper, life, number } = ask
      const last = minus(booked, context.holders[keeper]?.booked ?? nothing)
      const given = limited(context, booked)
      enqueue.sendTo(to(keeper), { type: 'share.given', number, until: context.until, given })
      enqueue.emit({ type: 'share.given', keeper, given })
      enqueue.cancel(dueId(keeper))
      enqueue.assign({
        waiting: context.waiting.filter(({ sender }) => sender !== keeper),
        holders: { ...context.holders, [keeper]: { life, number, booked, last, open: true } },
      })
    }),
    refuse: enqueueActions(({ context, enqueue }) => {
      const { ask, dimension } = context.next as Extract<Decision, { kind: 'refuse' }>
      for (const { target, message, told } of refusal(context, ask, dimension)) {
        enqueue.sendTo(to(target), message)
        enqueue.emit(told)
      }
      enqueue.cancel(dueId(ask.sender))
      enqueue.assign({ waiting: context.waiting.filter(({ sender }) => sender !== ask.sender) })
    }),
    /** Nothing came in time. */
    expire: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'share.due')
      for (const { target, message, told } of expired(context, event.keeper)) {
        enqueue.sendTo(to(target), message)
        enqueue.emit(told)
      }
      enqueue.assign({ waiting: context.waiting.filter(({ sender }) => sender !== event.keeper) })
    }),
    planDue: enqueueActions(({ context, enqueue }) => {
      for (const { sender: keeper, number, dueAt, at } of context.waiting.filter(({ planned }) => !planned))
        enqueue.raise({ type: 'share.due', keeper, number, at: dueAt }, { id: dueId(keeper), delay: dueAt - at })
      enqueue.assign({ waiting: context.waiting.map((ask) => ({ ...ask, planned: true })) })
    }),
    /** Its timers are gone. */
    forgetPlans: assign({ waiting: ({ context }) => context.waiting.map((ask) => ({ ...ask, planned: false })) }),
    redefine: assign({
      data: ({ context, event }) => (event.type === 'crew.redefined' ? event.crew.pool : context.data),
    }),
    raise: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'crew.raise')
      const { limits } = event
      enqueue.emit({ type: 'budget.raised', account: 'pool', limits, mode: 'to' })
      enqueue.assign({ data: { ...context.data, limits: { ...context.data.limits, ...limits } } })
    }),
    refuseRaise: enqueueActions(({ event, enqueue }) => {
      assertEvent(event, 'crew.raise')
      enqueue.emit({ type: 'raise.refused', agent: event.agent ?? '' })
    }),
  },
})

/** What a keeper is told that gets nothing. */
const refusal = (context: PoolContext, { sender, number }: Waiting, dimension: Dimension) => {
  const { until } = context
  const limit = context.data.limits[dimension] ?? 0
  const message = { type: 'share.refused', number, until, dimension, limit } as const
  return [{ target: sender, message, told: { type: 'share.refused', keeper: sender, dimension, until } as const }]
}

/** The same, of one that has waited for long enough. */
const expired = (context: PoolContext, keeper: string) =>
  context.waiting
    .filter(({ sender }) => sender === keeper)
    .flatMap((ask) => refusal(context, ask, shortage(context, ask, bookedOf(context)) ?? 'modelCalls'))

/** The budget pool machine. Bump `version` with any change of its decisions. */
export const poolMachine = pool.createMachine({
  id: 'pool',
  version: '1',
  context: ({ input: { self, data } }) => ({
    ...{ self, data, until: 0, spent: nothing, holders: {}, waiting: [], next: null },
  }),
  initial: 'quiet',
  on: {
    'share.ask': [
      { guard: 'isLater', target: '.looking', actions: ['roll', 'enqueueAsk'] },
      { guard: 'wasGiven', actions: 'answerAgain' },
    ],
    'share.settle': { guard: 'isLater', target: '.looking', actions: ['roll', 'settle'] },
    'share.due': [
      { guard: 'opensWindow', target: '.looking', actions: 'roll' },
      { guard: 'isDue', target: '.looking', actions: 'expire' },
    ],
    'mail.returned': { target: '.looking', actions: 'takeBack' },
    'crew.raise': [{ guard: 'mayRaise', target: '.looking', actions: 'raise' }, { actions: 'refuseRaise' }],
    'crew.redefined': { target: '.looking', actions: 'redefine' },
    'actor.resumed': { target: '.looking', actions: 'forgetPlans' },
  },
  states: {
    quiet: {},
    /** Serves those who wait until the first of them has to. */
    looking: {
      entry: 'look',
      always: [
        { guard: 'gives', target: 'looking', reenter: true, actions: 'give' },
        { guard: 'refuses', target: 'looking', reenter: true, actions: 'refuse' },
        { guard: 'isUnplanned', target: 'quiet', actions: 'planDue' },
        { target: 'quiet' },
      ],
    },
  },
})
