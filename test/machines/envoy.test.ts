import { expect, test } from 'vitest'
import { envoyMachine } from '../../machines/index.js'
import { cover, drive } from '../support/machine-driver.js'

const covered = cover(envoyMachine)
const input = {
  self: 'envoy/writer-4-0',
  crew: 'crew/main',
  agent: 'q3/agent/writer',
  conversation: 'writer-4-0',
  length: 1,
  depth: 2,
  chain: ['q1'],
  answerMs: 60_000,
}
const start = () => drive(covered.machine, input)
const ended = (code: string | null, reason: string, more = {}) => ({
  type: 'agent.finished',
  address: 'envoy/writer-4-0',
  conversation: 'writer-4-0',
  code,
  reason,
  finish: '',
  rounds: 0,
  length: 1,
  tokens: 0,
  answer: 0,
  result: '',
  ...more,
})

test('envoy: gives the task to the crew of its agent, with the message of its conversation', () => {
  const task = { type: 'delegate.task', agent: 'writer', depth: 2, chain: ['q1'], attach: 'writer-4-0' }
  expect(start().to('q3/crew/main')).toEqual([task])
})

test('envoy: brings the answer home as the last message of its conversation', () => {
  const envoy = start().send({ type: 'delegate.answered', code: null, reason: '', tokens: 7, result: 'r' })
  expect(envoy.sent).toEqual([
    ['log/writer-4-0', { type: 'log.append', values: [0] }],
    ['crew/main', ended(null, '', { tokens: 7, answer: 7, result: 'r' })],
  ])
  expect(envoy.done).toBe(true)
})

test('envoy: a failure over there, and a letter that nobody takes, are the end', () => {
  const failed = start().send({
    type: 'delegate.answered',
    code: 'ROUND_LIMIT',
    reason: 'too many',
    tokens: 0,
    result: '',
  })
  expect(failed.sent).toEqual([['crew/main', ended('ROUND_LIMIT', 'too many')]])
  const back = { type: 'mail.returned', message: 'delegate.task', code: 'CREW_UNKNOWN', reason: 'there is none' }
  expect(start().send(back).sent).toEqual([['crew/main', ended('CREW_UNKNOWN', 'there is none')]])
})

test('envoy: cancelled, or too late, it calls the agent back', () => {
  const recall = ['q3/crew/main', { type: 'delegate.revoke' }]
  expect(start().send({ type: 'run.cancel' }).sent).toEqual([
    recall,
    ['crew/main', ended('RUN_CANCELLED', 'cancelled')],
  ])
  const reason = 'no answer came within 60 seconds'
  expect(start().fire().sent).toEqual([recall, ['crew/main', ended('DELEGATION_FAILED', reason)]])
})

test('envoy: every transition was taken and every guard answered both ways', () => {
  expect(covered.missing()).toEqual([])
})
