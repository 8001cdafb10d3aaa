/** What a crew is started with and told, for tests of its machine. */
import type { AgentData, CrewData } from '../../machines/index.js'
import type { Message } from './machine-driver.js'

export const agentData = (name: string, more: Partial<AgentData> = {}): AgentData => ({
  name,
  deployments: [{ name: 'a:one', price: { input: 1, output: 1 }, group: 0 }],
  rounds: 3,
  attempts: 2,
  maxOutputTokens: 100,
  minOutputTokens: 10,
  baseTokens: 5,
  limits: null,
  keep: false,
  loops: null,
  ...more,
})
export const data: CrewData = {
  name: 'report',
  lead: 'writer',
  agents: {
    writer: agentData('writer'),
    helper: agentData('helper'),
    saver: agentData('saver', { limits: { tokens: 50 } }),
  },
  limits: { tokens: 1_000 },
  per: 'run',
  wallMs: null,
  delegates: 2,
  answerMs: 5_000,
}
export const spent = { nanoUsd: 7, tokens: 30, modelCalls: 2, toolCalls: 1 }
export const closed: Message = { type: 'budget.closed', spent }

export const task = (sequence: number, more: Record<string, unknown> = {}): Message => ({
  type: 'crew.task',
  tokens: 12,
  messages: 1,
  key: `k${sequence}`,
  data: false,
  sequence,
  ...more,
})
export const finished = (address: string, more: Record<string, unknown> = {}): Message => ({
  type: 'agent.finished',
  address,
  conversation: address.slice(6),
  code: null,
  reason: '',
  finish: 'stop',
  rounds: 1,
  length: 3,
  tokens: 40,
  answer: 10,
  result: 'said',
  ...more,
})
export const call = (name: string, more: Record<string, unknown> = {}): Message => ({
  type: 'delegate.call',
  caller: 'agent/writer-r1',
  conversation: 'r1',
  index: 0,
  callId: 'c0',
  agent: 'helper',
  name,
  depth: 1,
  length: 2,
  tokens: 9,
  trail: ['writer'],
  ...more,
})
export const actorFailed = (address: string, more: Record<string, unknown> = {}): Message => ({
  ...{ type: 'actor.failed', address, code: 'ACTOR_FAILED', reason: 'boom', at: 1_000, resumable: true },
  ...more,
})
export const exhausted = (address: string, account: string): Message => ({
  type: 'agent.exhausted',
  address,
  account,
  dimension: 'tokens',
  limit: 40,
})
export const decided = (account: string, raised: boolean, more: Record<string, unknown> = {}): Message => ({
  type: 'budget.decided',
  account,
  dimension: 'tokens',
  raised,
  reason: raised ? '' : 'ada gave no more',
  ...more,
})
