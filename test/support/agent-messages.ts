/** What an agent is started with and told, for tests of its machine. */
import { type AgentData, type AgentInput, type CallVerdict, nothing, type Skipped } from '../../machines/index.js'
import type { Message } from './machine-driver.js'

export const data: AgentData = {
  name: 'writer',
  deployments: [{ name: 'a:one', price: { input: 1_000_000, output: 2_000_000 }, group: 0 }],
  rounds: 3,
  attempts: 3,
  maxOutputTokens: 1_000,
  minOutputTokens: 100,
  baseTokens: 10,
  limits: null,
  keep: false,
  loops: null,
}
/** An agent's that has a choice. */
export const choice: AgentData = {
  ...data,
  deployments: [...data.deployments, { name: 'b:two', price: { input: 3_000_000, output: 1_000_000 }, group: 1 }],
}
export const input: AgentInput = {
  self: 'agent/writer-r1',
  run: 'r1',
  crew: 'crew/main',
  keeper: 'budget/r1',
  account: 'run',
  conversation: 'r1',
  depth: 0,
  length: 1,
  tokens: 20,
  paused: false,
  counted: false,
  detector: null,
  router: 'router/main',
  trail: ['writer'],
  data,
}
export const worst = { nanoUsd: 500, tokens: 1_020, modelCalls: 1, toolCalls: 0 }
export const spent = { nanoUsd: 90, tokens: 30, modelCalls: 1, toolCalls: 0 }
export const usage = { inputTokens: 20, outputTokens: 10, cachedInputTokens: 0, estimated: false }
export const granted: Message = { type: 'budget.granted', grant: 'agent/writer-r1#0', maxOutputTokens: 700, worst }
export const refused: Message = {
  type: 'budget.refused',
  grant: 'agent/writer-r1#0',
  account: 'run',
  dimension: 'nanoUsd',
  limit: 9,
}
export const toolCall = (index: number): CallVerdict => ({
  verdict: 'tool',
  index,
  callId: `c${index}`,
  tool: 'lookup',
  effect: 'once',
  timeoutMs: 1_000,
  retries: 0,
  onUnknown: 'tell',
  call: `lookup${index}`,
})
export const delegation = (index: number): CallVerdict => ({
  verdict: 'delegate',
  index,
  callId: `c${index}`,
  agent: 'helper',
  values: [1, 2],
  tokens: 40,
  call: `helper${index}`,
})
export const handoff = (
  index: number,
  more: Partial<Extract<CallVerdict, { verdict: 'handoff' }>> = {},
): CallVerdict => ({
  verdict: 'handoff',
  index,
  callId: `c${index}`,
  agent: 'closer',
  hidden: [],
  saved: 0,
  system: null,
  call: '',
  ...more,
})
export const refusal = (index: number): CallVerdict => ({
  verdict: 'refused',
  index,
  callId: `c${index}`,
  name: 'nope',
  message: 'There is no tool named "nope".',
  call: 'nope',
})
export const replied = (more: Record<string, unknown> = {}): Message => ({
  type: 'model.replied',
  ...{ deployment: 'a:one', skipped: [], changes: [] },
  calls: [],
  fits: null,
  reason: '',
  finish: 'stop',
  usage,
  spent,
  result: 'said',
  sequence: 7,
  ...more,
})
export const failed = (more: Record<string, unknown> = {}): Message => ({
  type: 'model.failed',
  ...{ deployment: 'a:one', skipped: [], changes: [] },
  kind: 'server',
  reason: 'oops',
  delayMs: 40,
  retryAfterMs: null,
  spent: nothing,
  real: true,
  ...more,
})
/** No deployment would take its call. */
export const unadmitted = (...skipped: readonly Skipped[]): Message => ({ type: 'model.refused', skipped, delayMs: 40 })
export const next = (deployment: string, tries = 0): Message => ({
  type: 'route.next',
  deployments: [deployment],
  tries,
})
export const ended: Message = { type: 'route.ended' }
/** What its user's code says of a round. */
export const prepared = (plan: Record<string, unknown> = {}): Message => ({ type: 'round.prepared', plan, sequence: 5 })
export const stopped: Message = { type: 'round.stopped', condition: 'roundsAre(1)', tokens: 4, result: 'last' }
export const unprepared: Message = { type: 'round.failed', code: 'CALLBACK_FAILED', reason: 'it threw' }
