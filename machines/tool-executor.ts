/**
 * The tool executor: one tool call of one reply, until the model can be told what came of it.
 *
 * What may be tried again is: `pure` and `idempotent` calls after a failure, a timeout or a crash, always with the same
 * key. A `once` call is dispatched at most once: when its outcome is lost it is unknown, and `onUnknown` decides.
 *
 *     running ─► done            succeeded, failed for good, or unknown and told
 *        │ └► backoff ─► running
 *        └► doubting ─► verifying ─► running | done
 */
import { assertEvent, assign, emit, enqueueActions, sendTo, setup } from 'xstate'
import { type ToolInput, type ToolMessage, to } from './messages.js'

interface ToolContext extends ToolInput {
  /** Number of the execution that was asked for last; the first is 1. */
  attempt: number
  /** Executions that failed: these use up retries, one that died with its process does not. */
  failures: number
  retryMs: number
}

/** What the outside may watch a tool executor do. */
export type ToolEvent =
  | {
      type: 'tool.finished'
      callId: string
      tool: string
      status: 'ok' | 'failed' | 'unknown'
      bytes: number
      attempts: number
    }
  | { type: 'human.answered'; callId: string; tool: string; decision: string; by: string; edited: boolean }
  | { type: 'human.expired'; callId: string; tool: string }
  | { type: 'tool.retried'; callId: string; tool: string; kind: string; delayMs: number }

const unknownText =
  'The outcome of this call is unknown: the process died while it ran. It may or may not have happened; it was not tried again.'
const crashedText = 'The call was given up: the process died three times over it.'
const expiredText = 'Not done: nobody answered in time.'
/** Rough tokens of a text of so many bytes. */
const tokensOf = (bytes: number) => Math.ceil(bytes / 3)

const tool = setup({
  types: {} as { context: ToolContext; events: ToolMessage; input: ToolInput; emitted: ToolEvent },
  guards: {
    mayRetry: ({ context, event }) =>
      event.type === 'tool.failed' &&
      event.retryMs !== null &&
      context.effect !== 'once' &&
      context.failures < context.retries,
    asks: ({ context }) => context.ask !== undefined,
    approved: ({ event }) => event.type === 'human.answered' && event.decision === 'approved',
    /** A lost call that must not be made again without being asked for. */
    doubtful: ({ context, event }) => event.type === 'effect.interrupted' && event.started && context.effect === 'once',
    verifies: ({ context }) => context.onUnknown === 'verify',
    happened: ({ event }) => event.type === 'tool.verified' && event.done === true,
    didNot: ({ event }) => event.type === 'tool.verified' && event.done === false,
  },
  actions: {
    ask: sendTo(to('port/human'), ({ context }) => askOf(context)),
    /** Nobody is asked any more, and the call may have other arguments than the model wrote. */
    takeApproval: assign(({ event }) => {
      assertEvent(event, 'human.answered')
      return event.arguments === undefined ? {} : { arguments: event.arguments }
    }),
    showAnswer: emit(({ context, event }) => {
      assertEvent(event, 'human.answered')
      const { decision, by } = event
      const { callId, tool } = context
      return { type: 'human.answered', callId, tool, decision, by, edited: event.arguments !== undefined }
    }),
    showExpired: emit(({ context: { callId, tool } }) => ({ type: 'human.expired', callId, tool })),
    countAttempt: assign({ attempt: ({ context }) => context.attempt + 1 }),
    call: sendTo(to('port/tool'), ({ context }) => callOf(context, 'tool.call')),
    verify: sendTo(to('port/tool'), ({ context }) => callOf(context, 'tool.verify')),
    stop: sendTo(to('port/tool'), { type: 'effect.cancel' }),
    planRetry: assign(({ context, event }) => {
      assertEvent(event, 'tool.failed')
      return { failures: context.failures + 1, retryMs: event.retryMs ?? 0 }
    }),
    showRetry: emit(({ context, event }) => {
      assertEvent(event, 'tool.failed')
      return {
        type: 'tool.retried',
        callId: context.callId,
        tool: context.tool,
        kind: event.kind,
        delayMs: event.retryMs ?? 0,
      }
    }),
    tellValue: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, ['tool.succeeded', 'tool.failed', 'tool.verified', 'human.answered'])
      const status = hasFailed(event) ? 'failed' : 'ok'
      const { index, callId, tool } = context
      enqueue.sendTo(to(`log/${context.conversation}`), { type: 'log.stage', index, callId, value: 0 })
      enqueue.sendTo(to(context.owner), {
        ...{ type: 'tool.finished', index, status, tokens: tokensOf(event.bytes) },
        result: event.result,
      })
      enqueue.emit({ type: 'tool.finished', callId, tool, status, bytes: event.bytes, attempts: context.attempt })
    }),
    tellText: enqueueActions(({ context, enqueue }, params: { text: string; status: 'failed' | 'unknown' }) => {
      const { index, callId, tool } = context
      const { text, status } = params
      const bytes = text.length
      enqueue.sendTo(to(`log/${context.conversation}`), { type: 'log.stage', index, callId, text })
      enqueue.sendTo(to(context.owner), {
        ...{ type: 'tool.finished', index, status, tokens: tokensOf(bytes) },
        result: status,
      })
      enqueue.emit({ type: 'tool.finished', callId, tool, status, bytes, attempts: context.attempt })
    }),
  },
  delays: {
    retry: ({ context }) => context.retryMs,
    expiry: ({ context }) => context.ask?.waitMs ?? 0,
  },
})

function hasFailed(event: ToolMessage): boolean {
  return event.type === 'tool.failed' || (event.type === 'human.answered' && event.decision === 'denied')
}

function askOf(context: ToolContext) {
  const { agent, run, conversation, position, index, callId, tool, ask } = context
  const asked = { type: 'human.ask', ...ask, agent, run, conversation, position, index, callId, tool }
  return context.arguments === undefined ? asked : { ...asked, arguments: context.arguments }
}

function callOf(context: ToolContext, type: 'tool.call' | 'tool.verify') {
  const { agent, run, conversation, position, index, callId, tool, effect, timeoutMs, key, attempt } = context
  const call = { type, agent, run, conversation, position, index, callId, tool, effect, timeoutMs, key, attempt }
  return context.arguments === undefined ? call : { ...call, arguments: context.arguments }
}

/** The tool executor machine. Bump `version` with any change of its decisions. */
export const toolMachine = tool.createMachine({
  id: 'tool',
  version: '3',
  context: ({ input }) => ({ ...input, attempt: 1, failures: 0, retryMs: 0 }),
  initial: 'starting',
  on: {
    'tool.cancel': { target: '.done', actions: 'stop' },
  },
  states: {
    starting: { always: [{ guard: 'asks', target: 'asking' }, { target: 'running' }] },
    /** For as long as nobody says anything: over restarts, too. */
    asking: {
      entry: 'ask',
      on: {
        'human.answered': [
          { guard: 'approved', target: 'running', actions: ['takeApproval', 'showAnswer'] },
          { target: 'done', actions: ['showAnswer', 'tellValue'] },
        ],
      },
      after: {
        expiry: {
          target: 'done',
          actions: ['stop', 'showExpired', { type: 'tellText', params: { text: expiredText, status: 'failed' } }],
        },
      },
    },
    running: {
      entry: 'call',
      on: {
        'tool.succeeded': { target: 'done', actions: 'tellValue' },
        'tool.failed': [
          { guard: 'mayRetry', target: 'backoff', actions: ['planRetry', 'showRetry'] },
          { target: 'done', actions: 'tellValue' },
        ],
        'effect.interrupted': [
          { guard: 'doubtful', target: 'doubting' },
          { target: 'running', reenter: true, actions: 'countAttempt' },
        ],
        'effect.crashed': {
          target: 'done',
          actions: { type: 'tellText', params: { text: crashedText, status: 'failed' } },
        },
      },
    },
    backoff: { after: { retry: { target: 'running', actions: 'countAttempt' } } },
    doubting: {
      always: [
        { guard: 'verifies', target: 'verifying' },
        { target: 'done', actions: { type: 'tellText', params: { text: unknownText, status: 'unknown' } } },
      ],
    },
    verifying: {
      entry: 'verify',
      on: {
        'tool.verified': [
          { guard: 'happened', target: 'done', actions: 'tellValue' },
          { guard: 'didNot', target: 'running', actions: 'countAttempt' },
          { target: 'done', actions: { type: 'tellText', params: { text: unknownText, status: 'unknown' } } },
        ],
        'effect.interrupted': { target: 'verifying', reenter: true },
        'effect.crashed': {
          target: 'done',
          actions: { type: 'tellText', params: { text: unknownText, status: 'unknown' } },
        },
      },
    },
    done: { type: 'final' },
  },
})
