/**
 * The escalation: asks a person for more when a budget is spent, and tells the crew what came of it.
 *
 *     asking ─► decided
 */
import { assertEvent, emit, sendTo, setup } from 'xstate'
import { type EscalationInput, type EscalationMessage, to } from './messages.js'

/** What the outside may watch an escalation do. */
export type EscalationEvent =
  | { type: 'human.answered'; callId: string; tool: string; decision: string; by: string; edited: boolean }
  | { type: 'human.expired'; callId: string; tool: string }

/** It is about no call. */
const noCall = { callId: '', tool: '' }

const escalation = setup({
  types: {} as {
    context: EscalationInput
    events: EscalationMessage
    input: EscalationInput
    emitted: EscalationEvent
  },
  guards: {
    approved: ({ event }) => event.type === 'human.answered' && event.decision === 'approved',
  },
  actions: {
    ask: sendTo(to('port/human'), ({ context: { agent, run, account, dimension, limit, waitMs } }) => ({
      ...{ type: 'human.ask', kind: 'budget', waitMs, agent, run, ...noCall },
      ...{ conversation: '', position: 0, index: 0 },
      arguments: JSON.stringify({ account, dimension, limit }),
    })),
    withdraw: sendTo(to('port/human'), { type: 'effect.cancel' }),
    showAnswer: emit(({ event }) => {
      assertEvent(event, 'human.answered')
      const { decision, by, limits } = event
      return { type: 'human.answered', ...noCall, decision, by, edited: limits !== undefined }
    }),
    showExpired: emit({ type: 'human.expired', ...noCall }),
    tellRaised: sendTo(
      ({ context }) => to(context.crew),
      ({ context: { account, dimension }, event }) => {
        assertEvent(event, 'human.answered')
        const { limits } = event
        const decided = { type: 'budget.decided', account, dimension, raised: true, reason: '' }
        return limits === undefined ? decided : { ...decided, limits }
      },
    ),
    tellDenied: sendTo(
      ({ context }) => to(context.crew),
      ({ context: { account, dimension }, event }) => {
        assertEvent(event, 'human.answered')
        return { type: 'budget.decided', account, dimension, raised: false, reason: `${event.by} gave no more` }
      },
    ),
    tellExpired: sendTo(
      ({ context }) => to(context.crew),
      ({ context: { account, dimension } }) => ({
        ...{ type: 'budget.decided', account, dimension, raised: false, reason: 'nobody answered in time' },
      }),
    ),
  },
  delays: { expiry: ({ context }) => context.waitMs },
})

/** The escalation machine. Bump `version` with any change of its decisions. */
export const escalationMachine = escalation.createMachine({
  id: 'escalation',
  version: '1',
  context: ({ input }) => input,
  initial: 'asking',
  states: {
    /** For as long as nobody says anything: over restarts, too. */
    asking: {
      entry: 'ask',
      on: {
        'human.answered': [
          { guard: 'approved', target: 'decided', actions: ['showAnswer', 'tellRaised'] },
          { target: 'decided', actions: ['showAnswer', 'tellDenied'] },
        ],
      },
      after: { expiry: { target: 'decided', actions: ['withdraw', 'showExpired', 'tellExpired'] } },
    },
    decided: { type: 'final' },
  },
})
