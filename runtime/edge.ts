/**
 * The edge: turns what a port brought into the message of an outcome.
 *
 * Owns: the judgement of replies, how long a failure waits before another try, the sizes of what comes in.
 * Does not own: calling the ports (`dispatcher.ts`), what actors make of it.
 *
 * - ED1 Everything of the user's that has to look at a reply (schemas, dynamic instructions) runs here, before the
 *   append; its verdict travels in the envelope.
 * - ED2 Randomness (jitter) is drawn here and travels as a number.
 */
import {
  type Amounts,
  type AskData,
  type BreakerChange,
  type CallVerdict,
  type ModelCall,
  nothing,
  type Skipped,
  type ToolCall,
} from '../machines/index.js'
import type { AnyTool } from './define.js'
import { canonicalJson, shortHash, type Value } from './codec.js'
import { textOf } from './conversation.js'
import { type ErrorCode, TroupeError, toTroupeError } from './errors.js'
import { agentsOf } from './flow.js'
import { agentsCalledBy } from './logic.js'
import { hiddenFrom, type Shown } from './handoff.js'
import type { ModelFailure, ModelReply, RawToolCall, ToolOutcome, Usage } from './ports.js'
import { estimateTokens, type PreparedAgent, type PreparedCrew, systemMessage } from './prepared-crew.js'
import type { Message } from './scope.js'
import { plannedAgent } from './round-plan.js'
import { type HandoffVerdict, judgeCalls, judgeOutput, type Verdict } from './verdict.js'

/** An outcome: a message with its content. */
export interface Outcome {
  readonly body: Message
  readonly values: readonly Value[]
}

/** What the edge needs to know of the run. */
export interface EdgeRun {
  readonly data: unknown
  /** Uniform in [0, 1). */
  readonly random: () => number
  /** What the model was sent of the conversation. */
  readonly shown: () => readonly Shown[]
}

/** First wait before another try, and the longest one, in milliseconds. */
const firstDelayMs = 500
const maxDelayMs = 30_000
/** Waits that a provider asks for are honoured up to here. */
const maxRetryAfterMs = 10 * 60_000

/** Failures of tools that may go well another time. */
const passing: ReadonlySet<string> = new Set(['threw', 'timeout', 'unavailable'])

/** Calls in one reply above which it is no reply: each would need an answer in the conversation. */
export const maxCalls = 1_024

/** How a call was made: whom was asked, who before it would not take the call, what has changed for others. */
export interface Admitted {
  readonly deployment: string
  readonly skipped: readonly Skipped[]
  readonly changes: readonly BreakerChange[]
}

/** The outcome of a model call that brought a reply. */
export async function replied(
  reply: ModelReply,
  admitted: Admitted,
  call: ModelCall,
  crew: PreparedCrew,
  run: EdgeRun,
): Promise<Outcome> {
  if (reply.toolCalls.length > maxCalls) return failed(absurd(reply), admitted, call, crew, run)
  const known = crew.agents.get(call.agent)
  const prepared = known === undefined ? undefined : plannedAgent(known, call.plan)
  const values: Value[] = [reply.message]
  const calls: CallVerdict[] = []
  for (const verdict of prepared === undefined ? [] : await judgeCalls(reply.toolCalls, prepared)) {
    const made = await admit(verdict, call, crew, run, values)
    calls.push({ ...made, call: identityOf(verdict, reply.toolCalls[verdict.index]!, prepared!) })
  }
  let fits: boolean | null = null
  let reason = ''
  if (calls.length === 0 && prepared?.agent.output !== undefined) {
    const judged = await judgeOutput(reply.text, prepared.agent.output)
    fits = judged.ok
    if (judged.ok) values.push(JSON.stringify(judged.value))
    else reason = judged.message
  }
  const spent = bill(admitted.deployment, call, crew, reply.usage, reply.costNanoUsd)
  return {
    body: {
      ...{
        type: 'model.replied',
        ...admitted,
        calls,
        fits,
        reason,
        finish: reply.finishReason,
        usage: reply.usage,
        spent,
      },
      result: shortHash(reply.text),
    },
    values,
  }
}

type WithoutCall<T> = T extends unknown ? Omit<T, 'call'> : never

/** Which call it is, whoever makes it and however its arguments are written; empty for one that may be repeated at will. */
function identityOf(verdict: Verdict, { arguments: written }: RawToolCall, { tools }: PreparedAgent): string {
  switch (verdict.verdict) {
    case 'refused':
      return shortHash(`${verdict.name} ${written}`)
    case 'delegate':
      return shortHash(`${verdict.agent} ${verdict.input}`)
    // A ring of hand-overs is found by those who take part in it.
    case 'handoff':
      return ''
    case 'tool': {
      if (tools.get(verdict.tool)?.polling === true) return ''
      return shortHash(`${verdict.tool} ${canonicalJson(JSON.parse(verdict.arguments))}`)
    }
  }
}

/** A verdict as machines take it. The messages of a new conversation join the envelope's values. */
async function admit(
  verdict: Verdict,
  call: ModelCall,
  crew: PreparedCrew,
  run: EdgeRun,
  values: Value[],
): Promise<WithoutCall<CallVerdict>> {
  const { index, callId } = verdict
  switch (verdict.verdict) {
    case 'refused':
      return { verdict: 'refused', index, callId, name: verdict.name, message: verdict.message }
    case 'tool': {
      const { tool, effect, timeoutMs, retries, onUnknown } = verdict
      const ask = await askOf(crew.agents.get(call.agent)?.tools.get(tool), verdict.arguments, call, run)
      return {
        ...{ verdict: 'tool', index, callId, tool, effect, timeoutMs, retries, onUnknown },
        ...(ask === null ? {} : { ask }),
        ...(verdict.repaired ? { arguments: verdict.arguments } : {}),
      }
    }
    case 'handoff':
      return admitHandoff(verdict, call, crew, run, values)
    case 'delegate': {
      if (call.depth >= crew.crew.limits.depth) {
        const message = `Not done: delegations may be nested ${crew.crew.limits.depth} deep at most.`
        return { verdict: 'refused', index, callId, name: verdict.agent, message }
      }
      const address = crew.agents.get(call.agent)?.away.get(verdict.agent)
      // Instructions of an agent of another crew are that crew's.
      const system = address === undefined ? await instructionsOf(crew, verdict.agent, verdict.input, run.data) : null
      const messages = [...(system === null ? [] : [system]), userMessage(verdict.input)]
      const first = values.length
      values.push(...messages)
      return {
        verdict: 'delegate',
        index,
        callId,
        agent: address ?? verdict.agent,
        values: messages.map((_, at) => first + at),
        tokens: estimateTokens(messages.reduce((sum, message) => sum + message.length, 0)),
      }
    }
  }
}

/** A hand-over, with what the next agent is shown. One that cannot be is refused with the reason. */
async function admitHandoff(
  { index, callId, name, agent }: HandoffVerdict & Pick<Verdict, 'index' | 'callId' | 'name'>,
  call: ModelCall,
  crew: PreparedCrew,
  run: EdgeRun,
  values: Value[],
): Promise<WithoutCall<CallVerdict>> {
  const { handoffs } = crew.agents.get(call.agent)!.agent
  const shown = run.shown()
  try {
    const { history } = handoffs.find((each) => each.agent === agent)!
    const { hidden, saved } = hiddenFrom(shown, history, call.view?.system)
    const system = await instructionsOf(crew, agent, lastSaid(shown), run.data)
    return {
      ...{ verdict: 'handoff', index, callId, agent, hidden, saved },
      system: system === null ? null : values.push(system) - 1,
    }
  } catch (error) {
    const message = `Not done: ${toTroupeError(error, 'MESSAGE_REFUSED').message}.`
    return { verdict: 'refused', index, callId, name, message }
  }
}

/** What the user said last. */
function lastSaid(shown: readonly Shown[]): string {
  const said = shown.findLast(({ text }) => (JSON.parse(text) as { role: string }).role === 'user')
  return said === undefined ? '' : textOf(said.text)
}

/** What a person is asked before a call is made; null for nothing. */
async function askOf(
  tool: AnyTool | undefined,
  written: string,
  { agent, run: runId }: ModelCall,
  { data }: EdgeRun,
): Promise<AskData | null> {
  const { question, approval = false, approvalMs: waitMs = 0 } = tool ?? {}
  if (question === true) return { kind: 'question', waitMs }
  if (typeof approval === 'boolean') return approval ? { kind: 'approval', waitMs } : null
  try {
    const input = await tool!.input.parseAsync(JSON.parse(written))
    return (await approval(input as never, { agent, runId, data } as never)) ? { kind: 'approval', waitMs } : null
  } catch {
    return { kind: 'approval', waitMs }
  }
}

/** The system message of an agent whose `instructions` is a function; null for text, which each request takes anew. */
export async function instructionsOf(
  crew: PreparedCrew,
  agent: string,
  input: string,
  data: unknown,
): Promise<string | null> {
  const instructions = crew.agents.get(agent)?.agent.instructions
  if (typeof instructions !== 'function') return null
  return systemMessage(String(await instructions({ agent, input, data })))
}

/**
 * The messages of a task, and system messages of agents whose instructions are functions: the lead's comes first, those of a
 * flow's agents behind the rest, by their places.
 * @throws TroupeError `INPUT_INVALID` for instructions that throw.
 */
export async function taskMessages(
  prepared: PreparedCrew,
  messages: readonly string[],
  text: string,
  data: unknown,
): Promise<{ all: readonly string[]; count: number; systems: Record<string, number> | null }> {
  const { lead, flow, flowMachine } = prepared.crew
  const systemOf = (agent: string): Promise<string | null> =>
    instructionsOf(prepared, agent, text, data).catch((error: unknown) => {
      const { message } = toTroupeError(error, 'INPUT_INVALID')
      throw new TroupeError('INPUT_INVALID', `the instructions of ${agent} threw: ${message}`, { cause: error })
    })
  if (flow === undefined && flowMachine === undefined) {
    const system = await systemOf(lead)
    const all = system === null ? messages : [system, ...messages]
    return { all, count: all.length, systems: null }
  }
  const called = flow === undefined ? agentsCalledBy(flowMachine!.logics) : agentsOf(flow)
  const made = await Promise.all(called.map(async (agent) => [agent, await systemOf(agent)] as const))
  const own = made.filter((each): each is readonly [string, string] => each[1] !== null)
  return {
    all: [...messages, ...own.map(([, system]) => system)],
    count: messages.length,
    systems: Object.fromEntries(own.map(([agent], at) => [agent, messages.length + at])),
  }
}

/** A user message as JSON text. */
export function userMessage(text: string): string {
  return JSON.stringify({ role: 'user', content: text })
}

/** The outcome of a model call that brought none. */
export function failed(
  failure: ModelFailure,
  admitted: Admitted,
  call: ModelCall,
  crew: PreparedCrew,
  run: Pick<EdgeRun, 'random'>,
): Outcome {
  const real = !failure.billed || failure.usage?.estimated === false
  const spent =
    failure.billed && failure.usage !== null
      ? bill(admitted.deployment, call, crew, failure.usage, failure.costNanoUsd)
      : nothing
  return {
    body: {
      type: 'model.failed',
      ...admitted,
      kind: failure.kind,
      reason: failure.message,
      delayMs: backoff(call.tries, run.random()),
      retryAfterMs: failure.retryAfterMs === null ? null : Math.min(maxRetryAfterMs, failure.retryAfterMs),
      spent: failure.billed && failure.usage === null ? call.worst : spent,
      real,
    },
    values: [],
  }
}

/** The outcome of a model call that no deployment would take. */
export function refused(skipped: readonly Skipped[], call: ModelCall, run: Pick<EdgeRun, 'random'>): Outcome {
  return { body: { type: 'model.refused', skipped, delayMs: backoff(call.tries, run.random()) }, values: [] }
}

function absurd({ toolCalls, usage, costNanoUsd }: ModelReply): ModelFailure {
  const message = `${toolCalls.length} tool calls in one reply, at most ${maxCalls} can be answered`
  return {
    ok: false,
    kind: 'invalid_reply',
    message,
    status: null,
    retryAfterMs: null,
    billed: true,
    usage,
    costNanoUsd,
  }
}

/** Exponential with full jitter. */
function backoff(tries: number, random: number): number {
  return Math.round(Math.min(maxDelayMs, firstDelayMs * 2 ** tries) * (0.5 + random / 2))
}

/** What a call cost. A model that the price table does not know costs the crew's worst case. */
function bill(
  deployment: string,
  call: ModelCall,
  crew: PreparedCrew,
  usage: Usage,
  costNanoUsd: number | null,
): Amounts {
  const { inputTokens, outputTokens } = usage
  const listedIn = call.plan?.deployments ?? crew.data.agents[call.agent]?.deployments
  const price = listedIn?.find(({ name }) => name === deployment)?.price ?? crew.crew.unknownPrice
  const listed = Math.ceil((inputTokens * price.input + outputTokens * price.output) / 1_000)
  return { nanoUsd: costNanoUsd ?? listed, tokens: inputTokens + outputTokens, modelCalls: 1, toolCalls: 0 }
}

/** The outcome of a tool call; null when the call was not made and nobody waits for it. */
export function toolOutcome(outcome: ToolOutcome, call: ToolCall, run: Pick<EdgeRun, 'random'>): Outcome | null {
  switch (outcome.status) {
    case 'ok': {
      const body = { type: 'tool.succeeded', bytes: outcome.content.length, result: shortHash(outcome.content) }
      return { body, values: [outcome.content] }
    }
    case 'failed': {
      const { kind, message } = outcome
      const mayRetry = call.effect !== 'once' && passing.has(kind)
      const retryMs = mayRetry ? Math.max(outcome.waitMs ?? 0, backoff(call.attempt - 1, run.random())) : null
      const body = { type: 'tool.failed', kind, bytes: message.length, retryMs, result: shortHash(message) }
      return { body, values: [outcome.message] }
    }
    default:
      return null
  }
}

/** The outcome of a `verify`. */
export function verified(answer: { readonly done: boolean | null; readonly content?: string }): Outcome {
  const content = answer.content ?? ''
  const body = { type: 'tool.verified', done: answer.done, bytes: content.length, result: shortHash(content) }
  return { body, values: [content] }
}

/** The outcome of a port that broke its promise never to reject. */
export function broken(
  code: ErrorCode,
  reason: string,
  type: 'model.call' | 'tool.call' | 'tool.verify',
  call: ModelCall | ToolCall,
): Outcome {
  if (type === 'model.call') {
    const worst = (call as ModelCall).worst
    return {
      body: {
        type: 'model.failed',
        ...{ deployment: (call as ModelCall).deployments[0]!, skipped: [], changes: [] },
        kind: 'config',
        reason: `${code}: ${reason}`,
        delayMs: 0,
        retryAfterMs: null,
        spent: worst,
        real: false,
      },
      values: [],
    }
  }
  if (type === 'tool.verify') return verified({ done: null })
  const message = `The tool could not be run: ${reason}`
  const body = { type: 'tool.failed', kind: 'threw', bytes: message.length, retryMs: null, result: shortHash(message) }
  return { body, values: [message] }
}
