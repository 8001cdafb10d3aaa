/**
 * What an agent holds, what the outside may watch it do, and what it works out from both.
 */
import {
  type AgentInput,
  type AgentMessage,
  type Amounts,
  type CallVerdict,
  type LoopCheck,
  type RouteAsk,
  steeringsOf,
  to,
} from './messages.js'

/** A call of this round that has no result yet. */
export interface OpenCall {
  readonly index: number
  readonly callId: string
  /** The executor, or null for a delegation. */
  readonly executor: string | null
}

/** What a call brought: both as hashes. */
export type Learned = LoopCheck['learned'][number]

export interface AgentContext extends AgentInput {
  /** Rounds done. */
  round: number
  /** Calls that failed in this round. */
  tries: number
  /** Grants asked for so far: the next grant's number. */
  grants: number
  /** The deployment that the router has named for this round; empty for the first one. */
  deployment: string
  /** Tokens of the last reply. */
  answer: number
  /** Answers that did not fit the output. */
  misfits: number
  worst: Amounts
  /** The last reply, as a hash. */
  result: string
  /** How often the user has spoken. */
  turn: number
  /** What the calls of the last round brought, of those that count. */
  learned: readonly Learned[]
  /** What the loop detector has to say to the model behind this round; empty for nothing. */
  warning: string
  verdicts: readonly CallVerdict[]
  sequence: number
  open: readonly OpenCall[]
  /** Messages of the user that wait to join the conversation, and their tokens. */
  steered: number
  steerTokens: number
  code: string | null
  reason: string
  finish: string
}

/** What the outside may watch an agent do. */
export type AgentEvent =
  | {
      type: 'model.replied'
      round: number
      calls: number
      finish: string
      inputTokens: number
      outputTokens: number
      nanoUsd: number
    }
  | { type: 'model.failed'; round: number; deployment: string; kind: string; reason: string }
  | { type: 'tool.refused'; callId: string; tool: string; reason: string }
  | { type: 'delegate.called'; callId: string; agent: string }
  | { type: 'budget.exhausted'; account: string; dimension: string }
  | { type: 'agent.steered'; agent: string; run: string; tokens: number }
  | { type: 'agent.unsteered'; agent: string; run: string; messages: number }

export type Tool = Extract<CallVerdict, { verdict: 'tool' }>
export type Delegate = Extract<CallVerdict, { verdict: 'delegate' }>
export type Refused = Extract<CallVerdict, { verdict: 'refused' }>

export const isTool = (call: CallVerdict): call is Tool => call.verdict === 'tool'
export const isDelegate = (call: CallVerdict): call is Delegate => call.verdict === 'delegate'
export const isRefused = (call: CallVerdict): call is Refused => call.verdict === 'refused'

export const log = (context: AgentContext) => to(`log/${context.conversation}`)
export const steerings = (context: AgentContext) => to(`log/${steeringsOf(context.conversation)}`)
export const grantOf = (context: AgentContext) => `${context.self}#${context.grants}`
/** A deployment that its definition does not name any more is not asked. */
export const deploymentOf = ({ data, deployment }: AgentContext) =>
  (data.deployments.find(({ name }) => name === deployment) ?? data.deployments[0]!).name
/** What the router is asked. */
export const routeAskOf = (context: AgentContext, failure: RouteAsk['failure']): RouteAsk => ({
  type: 'route.ask',
  replyTo: context.self,
  round: `${context.run} ${context.round}`,
  deployments: context.data.deployments.map(({ name }) => name),
  attempts: context.data.attempts,
  failure,
})
export const executorOf = (sequence: number, index: number) => `tool/${sequence}-${index}`
export const dearest = (context: AgentContext) => ({
  input: Math.max(...context.data.deployments.map((deployment) => deployment.price.input)),
  output: Math.max(...context.data.deployments.map((deployment) => deployment.price.output)),
})
export const opened = (calls: readonly CallVerdict[], sequence: number): OpenCall[] =>
  calls
    .filter((call) => !isRefused(call))
    .map((call) => ({
      index: call.index,
      callId: call.callId,
      executor: isTool(call) ? executorOf(sequence, call.index) : null,
    }))
export const isCalling = (event: AgentMessage) => event.type === 'model.replied' && event.calls.length > 0
/** With what the call at a place brought, if it counts. */
export const learn = ({ learned, verdicts }: AgentContext, index: number, result: string): readonly Learned[] => [
  ...learned,
  ...verdicts.filter((each) => each.index === index && each.call !== '').map(({ call }) => ({ call, result })),
]
export const nameOf = (call: CallVerdict) => (isTool(call) ? call.tool : isDelegate(call) ? call.agent : call.name)
export const closesLast = (context: AgentContext, event: AgentMessage) =>
  event.type === 'tool.finished' && context.open.every((call) => call.index === event.index)
/** Most answers that are sent back because they do not fit. */
export const maxMisfits = 2
