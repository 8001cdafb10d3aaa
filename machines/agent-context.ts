/**
 * What an agent holds, what the outside may watch it do, and what it works out from both.
 */
import {
  type AgentInput,
  type AgentMessage,
  type Amounts,
  type BreakerChange,
  type BudgetReserve,
  type CallVerdict,
  type Handover,
  type LoopCheck,
  nothing,
  type RoundPlan,
  type RoundPrepare,
  type RouteAsk,
  type Skipped,
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
  /** The deployments that the router has named for this round; empty for all of them. */
  deployments: readonly string[]
  /** Tokens of the last reply. */
  answer: number
  /** Answers that did not fit the output. */
  misfits: number
  /** What its user's code has said of this round, if it has. */
  plan?: RoundPlan | null
  /** What its model calls have cost; counted only for its user's code. */
  used?: Amounts
  /** Calls of the last reply that were answered; known only for its user's code. */
  answered?: RoundPrepare['answered']
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
  /** The call by which it handed over. */
  handoff: Handoff | null
  code: string | null
  reason: string
  finish: string
}

/** What the outside may watch an agent do. */
export type AgentEvent =
  | {
      type: 'model.replied'
      round: number
      deployment: string
      calls: number
      finish: string
      inputTokens: number
      outputTokens: number
      nanoUsd: number
    }
  | { type: 'model.failed'; round: number; deployment: string; kind: string; reason: string }
  /** Deployments that would not take a call: why, and for how long. */
  | { type: 'model.skipped'; round: number; skipped: readonly Skipped[] }
  /** This agent's call has opened or closed the breaker of its deployment, or it cools down. */
  | { type: 'breaker.changed'; deployment: string; to: BreakerChange['to']; ms: number }
  | { type: 'tool.refused'; callId: string; tool: string; reason: string }
  | { type: 'delegate.called'; callId: string; agent: string }
  | { type: 'agent.handed'; callId: string; agent: string }
  | { type: 'budget.exhausted'; account: string; dimension: string }
  | { type: 'agent.steered'; agent: string; run: string; tokens: number }
  | { type: 'agent.unsteered'; agent: string; run: string; messages: number }
  /** A stop condition holds: its name. */
  | { type: 'agent.stopped'; agent: string; run: string; condition: string }

export type Tool = Extract<CallVerdict, { verdict: 'tool' }>
export type Delegate = Extract<CallVerdict, { verdict: 'delegate' }>
export type Handoff = Extract<CallVerdict, { verdict: 'handoff' }>
export type Refused = Extract<CallVerdict, { verdict: 'refused' }>

export const isTool = (call: CallVerdict): call is Tool => call.verdict === 'tool'
export const isDelegate = (call: CallVerdict): call is Delegate => call.verdict === 'delegate'
export const isHandoff = (call: CallVerdict): call is Handoff => call.verdict === 'handoff'
export const isRefused = (call: CallVerdict): call is Refused => call.verdict === 'refused'

export const log = (context: AgentContext) => to(`log/${context.conversation}`)
export const steerings = (context: AgentContext) => to(`log/${steeringsOf(context.conversation)}`)
export const grantOf = (context: AgentContext) => `${context.self}#${context.grants}`
/** Whom to ask. A deployment that its definition does not name any more is not. */
export const deploymentsOf = (context: AgentContext): string[] => {
  const { deployments } = context
  const all = choiceOf(context).map(({ name }) => name)
  const named = deployments.filter((each) => all.includes(each))
  return named.length === 0 ? all : named
}
/** What it may choose from in this round. */
const choiceOf = ({ data, plan }: AgentContext) => plan?.deployments ?? data.deployments
export const isUnprepared = ({ data, plan, round }: AgentContext) =>
  plan == null && (data.prepares === 'each' || (data.prepares === 'later' && round > 0))
/** What its user's code is asked before a round. */
export const roundAskOf = ({ data, run, conversation, view, round, ...rest }: AgentContext): RoundPrepare => ({
  ...{ type: 'round.prepare', agent: data.name, run, conversation, rounds: round },
  ...{ used: rest.used ?? nothing, answered: rest.answered ?? [] },
  ...(view === undefined ? {} : { view }),
})
/** What the next call sends, behind a reply. Of a round that did not send all of it only the reply is new. */
export const tokensAfter = (
  { plan, tokens }: AgentContext,
  { inputTokens, outputTokens }: { readonly inputTokens: number; readonly outputTokens: number },
) => (plan?.tokens === undefined ? inputTokens : tokens) + outputTokens
/** With what a call has cost, for those whose user asks. */
export const usedAfter = ({ data, used = nothing }: AgentContext, spent: Amounts): Partial<AgentContext> =>
  data.prepares === undefined
    ? {}
    : {
        used: {
          nanoUsd: used.nanoUsd + spent.nanoUsd,
          tokens: used.tokens + spent.tokens,
          modelCalls: used.modelCalls + spent.modelCalls,
          toolCalls: used.toolCalls + spent.toolCalls,
        },
      }
/** What was said of a round holds no longer: it is over, or something was said since. */
export const unplanned = ({ plan }: AgentContext): Partial<AgentContext> => (plan == null ? {} : { plan: null })
/** A reply has come: nothing is answered of it. */
export const unanswered = ({ answered }: AgentContext): Partial<AgentContext> =>
  answered === undefined ? {} : { answered: [] }
/** With a call that was answered, for those whose user asks. */
export const answeredBy = (
  { data, verdicts, answered = [] }: AgentContext,
  event: Extract<AgentMessage, { type: 'tool.finished' | 'delegate.finished' }>,
): Partial<AgentContext> => {
  const isAnswered = event.type === 'tool.finished' ? event.status === 'ok' : event.code === null
  const calls = verdicts.filter(({ index }) => isAnswered && index === event.index)
  return data.prepares === undefined
    ? {}
    : { answered: [...answered, ...calls.map((call) => ({ index: call.index, name: nameOf(call) }))] }
}
/** What the router is asked. */
export const routeAskOf = (
  context: AgentContext,
  { failure, delayMs, skipped }: Pick<RouteAsk, 'failure' | 'delayMs' | 'skipped'>,
): RouteAsk => ({
  type: 'route.ask',
  replyTo: context.self,
  round: `${context.run} ${context.round}`,
  groups: groupsOf(choiceOf(context)),
  attempts: context.data.attempts,
  failure,
  delayMs,
  skipped,
})
const groupsOf = (deployments: AgentInput['data']['deployments']): string[][] => {
  const groups = [...new Set(deployments.map(({ group }) => group))]
  return groups.map((group) => deployments.filter((each) => each.group === group).map(({ name }) => name))
}
/** What is told of how the deployment of a call was found. */
export const admissionOf = (
  context: AgentContext,
  {
    deployment,
    skipped,
    changes,
  }: { deployment: string; skipped: readonly Skipped[]; changes: readonly BreakerChange[] },
): AgentEvent[] => [
  ...skippedOf(context, skipped),
  ...changes.map(({ to, ms }) => ({ type: 'breaker.changed' as const, deployment, to, ms })),
]
export const skippedOf = (context: AgentContext, skipped: readonly Skipped[]): AgentEvent[] =>
  skipped.length === 0 ? [] : [{ type: 'model.skipped', round: context.round + 1, skipped }]
export const executorOf = (sequence: number, index: number) => `tool/${sequence}-${index}`
/** What the keeper is asked before a round. */
export const reserveOf = (context: AgentContext): BudgetReserve => ({
  type: 'budget.reserve',
  grant: grantOf(context),
  account: context.account,
  replyTo: context.self,
  inputTokens: context.plan?.tokens ?? context.tokens,
  maxOutputTokens: context.plan?.maxOutputTokens ?? context.data.maxOutputTokens,
  minOutputTokens: context.data.minOutputTokens,
  price: dearest(choiceOf(context)),
})
/** What the crew is told at the end. */
export const finishedOf = (context: AgentContext) => ({
  type: 'agent.finished',
  address: context.self,
  conversation: context.conversation,
  code: context.code,
  reason: context.reason,
  finish: context.finish,
  rounds: context.round,
  length: context.length,
  tokens: context.tokens,
  answer: context.answer,
  result: context.result,
})
const dearest = (deployments: AgentInput['data']['deployments']) => ({
  input: Math.max(...deployments.map((deployment) => deployment.price.input)),
  output: Math.max(...deployments.map((deployment) => deployment.price.output)),
})
export const opened = (calls: readonly CallVerdict[], sequence: number): OpenCall[] =>
  calls
    .filter((call) => isTool(call) || isDelegate(call))
    .map((call) => ({
      index: call.index,
      callId: call.callId,
      executor: isTool(call) ? executorOf(sequence, call.index) : null,
    }))
export const isCalling = (event: AgentMessage): event is Extract<AgentMessage, { type: 'model.replied' }> =>
  event.type === 'model.replied' && event.calls.length > 0
/** With what the call at a place brought, if it counts. */
export const learn = ({ learned, verdicts }: AgentContext, index: number, result: string): readonly Learned[] => [
  ...learned,
  ...verdicts.filter((each) => each.index === index && each.call !== '').map(({ call }) => ({ call, result })),
]
/** With the call that an executor failed over. */
export const learnFailed = (context: AgentContext, executor: string): readonly Learned[] =>
  learn(context, context.open.find((call) => call.executor === executor)?.index ?? -1, 'failed')
export const nameOf = (call: CallVerdict) => (isTool(call) ? call.tool : isRefused(call) ? call.name : call.agent)
/** Whom a call is for; null for a tool's. */
export const calledBy = (call: CallVerdict) => (isDelegate(call) || isHandoff(call) ? call.agent : null)
export const handsOver = ({ verdicts }: Pick<AgentContext, 'verdicts'>) => verdicts.some(isHandoff)
/** Values of the reply that the other one needs: its system message, behind everything else. */
export const broughtBy = ({ handoff }: AgentContext): number[] => {
  const { system = null } = handoff ?? {}
  return system === null ? [] : [system]
}
/** What the crew hears of whoever goes on. */
export const handoverOf = ({ handoff, sequence, length, trail, view }: AgentContext): Handover | null => {
  if (handoff === null) return null
  const { agent, index, system } = handoff
  const hidden = [...(view?.hidden ?? []), ...handoff.hidden]
  return {
    ...{ agent, name: `${agent}-${sequence}-${index}`, trail },
    view: { hidden, system: system === null ? null : length - 1 },
  }
}
/** What is told of the calls of a round that ends without their results: those that were refused keep their reason. */
export const lostCalls = ({ verdicts }: AgentContext, text: string) =>
  verdicts.map((call) => ({ index: call.index, callId: call.callId, text: isRefused(call) ? call.message : text }))
export const closesLast = (context: AgentContext, event: AgentMessage) =>
  event.type === 'tool.finished' && context.open.every((call) => call.index === event.index)
/** Most answers that are sent back because they do not fit. */
export const maxMisfits = 2
