/**
 * The envoy: stands for an agent of another crew. It sends the task there and brings the answer home; for its own crew
 * it is an agent like any other.
 *
 *     away ─► home
 */
import { assertEvent, assign, enqueueActions, sendTo, setup } from 'xstate'
import { type EnvoyInput, type EnvoyMessage, to } from './messages.js'

interface EnvoyContext extends EnvoyInput {
  code: string | null
  reason: string
  /** Estimate of the answer. */
  answer: number
  /** What came back, as a hash. */
  result: string
}

const crewOf = (address: string) => `${address.slice(0, address.indexOf('/'))}/crew/main`
const agentOf = (address: string) => address.slice(address.lastIndexOf('/') + 1)

const envoy = setup({
  types: {} as { context: EnvoyContext; events: EnvoyMessage; input: EnvoyInput },
  guards: {
    answered: ({ event }) => event.type === 'delegate.answered' && event.code === null,
  },
  actions: {
    give: sendTo(
      ({ context }) => to(crewOf(context.agent)),
      ({ context }) => ({
        type: 'delegate.task',
        agent: agentOf(context.agent),
        depth: context.depth,
        chain: context.chain,
        attach: context.conversation,
      }),
    ),
    recall: sendTo(({ context }) => to(crewOf(context.agent)), { type: 'delegate.revoke' }),
    takeAnswer: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'delegate.answered')
      enqueue.sendTo(to(`log/${context.conversation}`), { type: 'log.append', values: [0] })
      enqueue.assign({ answer: event.tokens, result: event.result })
    }),
    endFailed: assign(({ event }) => {
      assertEvent(event, ['delegate.answered', 'mail.returned'])
      return { code: event.code ?? 'DELEGATION_FAILED', reason: event.reason }
    }),
    endLate: assign({
      code: 'DELEGATION_FAILED',
      reason: ({ context }) => `no answer came within ${Math.round(context.answerMs / 1_000)} seconds`,
    }),
    endCancelled: assign({ code: 'RUN_CANCELLED', reason: 'cancelled' }),
    finish: sendTo(
      ({ context }) => to(context.crew),
      ({ context }) => ({
        type: 'agent.finished',
        address: context.self,
        conversation: context.conversation,
        code: context.code,
        reason: context.reason,
        finish: '',
        rounds: 0,
        length: context.length,
        tokens: context.answer,
        answer: context.answer,
        result: context.result,
      }),
    ),
  },
  delays: { deadline: ({ context }) => context.answerMs },
})

/** The envoy machine. Bump `version` with any change of its decisions. */
export const envoyMachine = envoy.createMachine({
  id: 'envoy',
  version: '1',
  context: ({ input }) => ({ ...input, code: null, reason: '', answer: 0, result: '' }),
  initial: 'away',
  states: {
    away: {
      entry: 'give',
      after: { deadline: { target: 'home', actions: ['recall', 'endLate'] } },
      on: {
        'delegate.answered': [
          { guard: 'answered', target: 'home', actions: 'takeAnswer' },
          { target: 'home', actions: 'endFailed' },
        ],
        'mail.returned': { target: 'home', actions: 'endFailed' },
        'run.cancel': { target: 'home', actions: ['recall', 'endCancelled'] },
      },
    },
    home: { type: 'final', entry: 'finish' },
  },
})
