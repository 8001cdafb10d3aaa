/**
 * The circuit breaker of one target: a deployment, or a server that tools speak to. It decides who may call it now.
 *
 *     closed ─(failures)─► open ─(its time is over, somebody asks)─► halfOpen ─(the probe was answered)─► closed
 *                           ▲                                            │
 *                           └────────────(the probe failed)──────────────┘
 *
 * - *Closed*: everybody may. It opens after `failures` in a row, or when more than `rate` of at least `minCalls` calls of
 *   a window failed. Calls under way may succeed yet: failures are often quick, and of two hundred calls that begin at once a
 *   few that fail would come back first, all in a row.
 * - *Open*: nobody may, until its time is over.
 * - *Half-open*: one may, the probe; what comes of it decides. A probe that nothing is heard of in time gives way to another.
 *
 * Beside that a target may *cool down*: it asked for time, or refuses whoever asks for a reason that lasts. Those who have
 * another one leave it alone meanwhile.
 *
 * Time is in the messages. It outlives no crew and belongs to none: it runs beside them, without a journal, and what is
 * worth keeping of it is what `storedBreaker` names.
 */
import { assertEvent, assign, enqueueActions, sendTo, setup } from 'xstate'
import { type BreakerInput, type BreakerMessage, type PermitNeed, type StoredBreaker, to } from './messages.js'

interface BreakerContext extends BreakerInput, Omit<StoredBreaker, 'state'> {
  /** Calls that failed since the last one that was answered. */
  readonly inARow: number
  /** Calls of this window. */
  readonly calls: number
  readonly failed: number
  /** When this window began. */
  readonly since: number
}

/** What is worth telling. `ms`: for how long. */
export type BreakerEvent =
  | { type: 'breaker.opened'; target: string; ms: number }
  | { type: 'breaker.probed'; target: string }
  | { type: 'breaker.closed'; target: string }
  | { type: 'breaker.cooled'; target: string; ms: number }

/** Who leaves a target that cools down alone, by why it does. */
const leaves: Readonly<Record<NonNullable<StoredBreaker['cooling']>['why'], readonly PermitNeed[]>> = {
  asked: ['choice', 'last'],
  fault: ['choice'],
}

/** With one more call that was answered or failed. */
function counted({ settings, since, calls, failed, inARow }: BreakerContext, at: number, hasFailed: boolean) {
  const isOver = at - since >= settings.windowMs
  return {
    since: isOver ? at : since,
    calls: (isOver ? 0 : calls) + 1,
    failed: (isOver ? 0 : failed) + (hasFailed ? 1 : 0),
    inARow: hasFailed ? inARow + 1 : 0,
  }
}

/** Whether so many failures open it. @param underWay calls that may succeed yet */
function isEnough(
  { failures, minCalls, rate }: BreakerInput['settings'],
  { inARow, calls, failed }: ReturnType<typeof counted>,
  underWay: number,
): boolean {
  const isRow = inARow >= failures && inARow >= underWay * rate
  return isRow || (calls >= minCalls && failed > (calls + underWay) * rate)
}

const empty = { inARow: 0, calls: 0, failed: 0, since: 0 }

/** What keeps a call back, and until when. */
const refusals = {
  open: ({ until }: BreakerContext) => ({ reason: 'open', until }),
  probing: ({ probe }: BreakerContext) => ({ reason: 'probing', until: probe!.until }),
  cooling: ({ cooling }: BreakerContext) => ({ reason: cooling!.why, until: cooling!.until }),
} as const

const breaker = setup({
  types: {} as { context: BreakerContext; events: BreakerMessage; input: BreakerInput; emitted: BreakerEvent },
  guards: {
    coolsFor: ({ context: { cooling }, event }) =>
      event.type === 'permit.ask' &&
      cooling !== null &&
      event.at < cooling.until &&
      leaves[cooling.why].includes(event.need),
    rests: ({ context, event }) => event.type === 'permit.ask' && event.at < context.until,
    probing: ({ context, event }) => event.type === 'permit.ask' && event.at < (context.probe?.until ?? 0),
    opens: ({ context, event }) =>
      event.type === 'permit.done' &&
      event.verdict === 'failed' &&
      isEnough(context.settings, counted(context, event.at, true), event.underWay),
    forgives: ({ context, event }) =>
      event.type === 'permit.done' &&
      event.verdict === 'answered' &&
      event.cooling === null &&
      context.cooling?.why === 'fault',
    answered: ({ context, event }) =>
      event.type === 'permit.done' && event.call === context.probe?.call && event.verdict === 'answered',
    failed: ({ context, event }) =>
      event.type === 'permit.done' && event.call === context.probe?.call && event.verdict === 'failed',
    undone: ({ context, event }) => event.type === 'permit.done' && event.call === context.probe?.call,
    toldOpen: ({ event }) => event.type === 'breaker.told' && event.state === 'open',
    toldProbing: ({ event }) => event.type === 'breaker.told' && event.state === 'halfOpen',
  },
  actions: {
    grant: sendTo(({ event }) => to((event as { replyTo: string }).replyTo), { type: 'permit.granted', probe: false }),
    refuse: sendTo(
      ({ event }) => to((event as { replyTo: string }).replyTo),
      ({ context, event }, { why }: { why: keyof typeof refusals }) => {
        assertEvent(event, 'permit.ask')
        const { reason, until } = refusals[why](context)
        return { type: 'permit.refused', reason, waitMs: until - event.at }
      },
    ),
    probe: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'permit.ask')
      enqueue.sendTo(to(event.replyTo), { type: 'permit.granted', probe: true })
      enqueue.emit({ type: 'breaker.probed', target: context.target })
      enqueue.assign({ probe: { call: event.call, until: event.at + context.settings.probeMs } })
    }),
    count: assign(({ context, event }) => {
      assertEvent(event, 'permit.done')
      return event.verdict === 'none' ? {} : counted(context, event.at, event.verdict === 'failed')
    }),
    /** It took a call: whatever was wrong with it is over. */
    forgive: assign({ cooling: null }),
    cool: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'permit.done')
      for (const { ms, why } of event.cooling === null ? [] : [event.cooling]) {
        enqueue.emit({ type: 'breaker.cooled', target: context.target, ms })
        enqueue.assign({ cooling: { until: event.at + ms, why } })
      }
    }),
    open: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'permit.done')
      const ms = context.settings.cooldownMs
      enqueue.emit({ type: 'breaker.opened', target: context.target, ms })
      enqueue.assign({ ...empty, until: event.at + ms, probe: null })
    }),
    close: enqueueActions(({ context, enqueue }) => {
      enqueue.emit({ type: 'breaker.closed', target: context.target })
      enqueue.assign({ ...empty, until: 0, probe: null })
    }),
    /** The probe learned nothing: the next one may at once. */
    retract: assign({ probe: null }),
    adopt: assign(({ event }) => {
      assertEvent(event, 'breaker.told')
      const { until, probe, cooling } = event
      return { ...empty, until, probe, cooling }
    }),
  },
})

/** The circuit breaker machine. */
export const breakerMachine = breaker.createMachine({
  id: 'breaker',
  version: '2',
  context: ({ input }) => ({ ...input, ...empty, until: 0, probe: null, cooling: null }),
  initial: 'closed',
  on: {
    'breaker.told': [
      { guard: 'toldOpen', target: '.open', actions: 'adopt' },
      { guard: 'toldProbing', target: '.halfOpen', actions: 'adopt' },
      { target: '.closed', actions: 'adopt' },
    ],
  },
  states: {
    closed: {
      on: {
        'permit.ask': [
          { guard: 'coolsFor', actions: { type: 'refuse', params: { why: 'cooling' } } },
          { actions: 'grant' },
        ],
        'permit.done': [
          { guard: 'opens', target: 'open', actions: ['cool', 'open'] },
          { guard: 'forgives', actions: ['forgive', 'count'] },
          { actions: ['cool', 'count'] },
        ],
      },
    },
    open: {
      on: {
        'permit.ask': [
          { guard: 'rests', actions: { type: 'refuse', params: { why: 'open' } } },
          { target: 'halfOpen', actions: 'probe' },
        ],
        'permit.done': { actions: 'cool' },
      },
    },
    halfOpen: {
      on: {
        'permit.ask': [
          { guard: 'probing', actions: { type: 'refuse', params: { why: 'probing' } } },
          { actions: 'probe' },
        ],
        'permit.done': [
          { guard: 'answered', target: 'closed', actions: ['cool', 'close'] },
          { guard: 'failed', target: 'open', actions: ['cool', 'open'] },
          { guard: 'undone', target: 'open', actions: ['cool', 'retract'] },
          { actions: 'cool' },
        ],
      },
    },
  },
})
