/**
 * The flow: leads a run through its stages. It has the agents of a stage called as an agent has its delegates, waits until
 * all have answered, or the first has, and goes on with what they said.
 *
 * An agent is given the task, and behind it what the stage before has answered. The answers of the last stage are the run's.
 *
 *     calling ─► waiting ─► calling … ─► ended
 */
import { assertEvent, assign, emit, enqueueActions, sendTo, setup } from 'xstate'
import { type DelegateFinished, type FlowInput, type FlowMessage, to } from './messages.js'

/** An agent that was called. */
interface Called {
  readonly index: number
  readonly agent: string
}

interface FlowContext extends FlowInput {
  stage: number
  /** Called in this stage, and without an answer. */
  open: readonly Called[]
  /** Those that have answered in the stage before, and in this one, in the order of the definition. */
  before: readonly Called[]
  answered: readonly Called[]
  /** Tokens of what was answered in the stage before, and in this one. */
  given: number
  answer: number
  /** Hash of the last answer. */
  result: string
  code: string | null
  reason: string
}

/** What the outside may watch a flow do. */
export type FlowEvent = { type: 'flow.stage'; stage: number; agents: readonly string[]; join: string }

/** Agents of one stage: its calls have the numbers from here on. */
const width = 64
const stageOf = ({ stages, stage }: FlowContext) => stages[stage]!
const calledIn = (context: FlowContext): readonly Called[] =>
  stageOf(context).agents.map((agent, at) => ({ agent, index: context.stage * width + at }))
const isLast = ({ stages, stage }: FlowContext) => stage + 1 === stages.length
const isOpen = ({ open }: FlowContext, event: FlowMessage) =>
  event.type === 'delegate.finished' && open.some(({ index }) => index === event.index)
const openBut = ({ open }: FlowContext, { index }: DelegateFinished) => open.filter((each) => each.index !== index)
/** In the order of the definition, whoever came first. */
const inOrder = (called: readonly Called[]) => [...called].sort((one, other) => one.index - other.index)
const nameOf = ({ sequence }: FlowContext, { agent, index }: Called) => `${agent}-${sequence}-${index}`

/** What begins one agent: its conversation, then its call. */
function callOf(context: FlowContext, called: Called) {
  const { self, conversation, sequence, before } = context
  const name = nameOf(context, called)
  const system = context.systems[called.agent]
  const messages = [
    ...(system === undefined ? [] : [{ values: [system], sequence }]),
    { copy: conversation },
    ...before.map(({ agent, index }) => ({ answer: { of: conversation, index, role: 'user', agent } })),
  ]
  const call = {
    ...{ type: 'delegate.call', caller: self, conversation, index: called.index, callId: name, agent: called.agent },
    ...{ name, depth: 1, length: context.length + messages.length - 1, trail: [] },
    tokens: context.tokens + context.given,
    ...(stageOf(context).join === 'first' ? { race: true } : {}),
  }
  return { log: to(`log/${name}`), appends: messages.map((message) => ({ type: 'log.append', ...message })), call }
}

const flow = setup({
  types: {} as { context: FlowContext; events: FlowMessage; input: FlowInput; emitted: FlowEvent },
  guards: {
    isStale: ({ context, event }) => event.type === 'delegate.finished' && !isOpen(context, event),
    /** It failed, and nobody else can still do what is wanted. */
    fails: ({ context, event }) =>
      event.type === 'delegate.finished' &&
      event.code !== null &&
      (stageOf(context).join === 'all' || context.open.length === 1),
    misses: ({ event }) => event.type === 'delegate.finished' && event.code !== null,
    endsFlow: ({ context, event }) => endsStage(context, event) && isLast(context),
    endsStage: ({ context, event }) => endsStage(context, event),
  },
  actions: {
    call: enqueueActions(({ context, enqueue }) => {
      for (const { log, appends, call } of calledIn(context).map((called) => callOf(context, called))) {
        for (const append of appends) enqueue.sendTo(log, append)
        enqueue.sendTo(to(context.crew), call)
      }
      enqueue.assign({ open: calledIn(context), answered: [], answer: 0 })
    }),
    showStage: emit(({ context }) => ({ type: 'flow.stage', stage: context.stage + 1, ...stageOf(context) })),
    take: assign(({ context, event }) => {
      assertEvent(event, 'delegate.finished')
      const { index, tokens, result } = event
      const answered = inOrder([...context.answered, ...context.open.filter((each) => each.index === index)])
      return { open: openBut(context, event), answered, answer: context.answer + tokens, result }
    }),
    drop: assign(({ context, event }) => {
      assertEvent(event, 'delegate.finished')
      return { open: openBut(context, event) }
    }),
    /** Whoever did not come first, or works for a flow that ends. */
    stopOthers: sendTo(
      ({ context }) => to(context.crew),
      ({ context }) => ({ type: 'delegate.cancel', caller: context.self }),
    ),
    advance: assign(({ context }) => ({
      stage: context.stage + 1,
      before: context.answered,
      given: context.answer,
    })),
    answerRun: enqueueActions(({ context, enqueue }) => {
      const { conversation } = context
      for (const { agent, index } of context.answered) {
        const answer = { of: conversation, index, role: 'assistant', agent }
        enqueue.sendTo(to(`log/${conversation}`), { type: 'log.append', answer })
      }
      enqueue.assign({ length: context.length + context.answered.length })
    }),
    clear: sendTo(({ context }) => to(`log/${context.conversation}`), { type: 'log.clear' }),
    endFailed: assign(({ context, event }) => {
      assertEvent(event, 'delegate.finished')
      const failed = context.open.find(({ index }) => index === event.index)!
      return { code: event.code, reason: `${failed.agent}: ${event.reason}` }
    }),
    endCancelled: assign({ code: 'RUN_CANCELLED', reason: 'cancelled' }),
    finish: sendTo(
      ({ context }) => to(context.crew),
      ({ context: { self, conversation, code, reason, length, tokens, answer, result } }) => ({
        ...{ type: 'agent.finished', address: self, conversation, code, reason, finish: 'stop', rounds: 0 },
        ...{ length, tokens: tokens + answer, answer, result },
      }),
    ),
  },
})

/** With this answer the stage has what it waits for. */
function endsStage(context: FlowContext, event: FlowMessage): boolean {
  return event.type === 'delegate.finished' && (stageOf(context).join === 'first' || context.open.length === 1)
}

/** The flow machine. Bump `version` with any change of its decisions. */
export const flowMachine = flow.createMachine({
  id: 'flow',
  version: '1',
  context: ({ input }) => ({
    ...input,
    ...{ stage: 0, open: [], before: [], answered: [], answer: 0, given: 0, result: '', code: null, reason: '' },
  }),
  initial: 'calling',
  states: {
    calling: { entry: ['call', 'showStage'], always: 'waiting' },
    waiting: {
      on: {
        'delegate.finished': [
          { guard: 'isStale' },
          { guard: 'fails', target: 'ended', actions: ['endFailed', 'stopOthers'] },
          { guard: 'misses', actions: 'drop' },
          { guard: 'endsFlow', target: 'ended', actions: ['take', 'stopOthers', 'answerRun'] },
          { guard: 'endsStage', target: 'calling', actions: ['take', 'stopOthers', 'advance'] },
          { actions: 'take' },
        ],
        'run.cancel': { target: 'ended', actions: ['endCancelled', 'stopOthers'] },
      },
    },
    ended: { type: 'final', entry: ['clear', 'finish'] },
  },
})
