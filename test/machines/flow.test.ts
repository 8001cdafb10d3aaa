import { describe, expect, test } from 'vitest'
import { type FlowStages, flowMachine } from '../../machines/index.js'
import { cover, drive, type Driver, type Message } from '../support/machine-driver.js'

const covered = cover(flowMachine)
const input = {
  ...{ self: 'flow/r3', crew: 'crew/main', run: 'r3', conversation: 'r3', length: 2, tokens: 30, sequence: 3 },
}
const start = (stages: FlowStages, systems: Record<string, number> = {}): Driver =>
  drive(covered.machine, { ...input, systems, stages } as { self: string })
const all = (...agents: string[]) => ({ agents, join: 'all' as const })
const first = (...agents: string[]) => ({ agents, join: 'first' as const })
const finished = (index: number, code: string | null = null): Message => ({
  ...{ type: 'delegate.finished', index, tokens: 10, result: `said ${index}`, code, reason: code === null ? '' : 'so' },
})
const called = (flow: Driver) =>
  flow.to('crew/main').flatMap(({ type, name }) => (type === 'delegate.call' ? [name] : []))
const ends = (flow: Driver) => flow.to('crew/main').filter(({ type }) => type === 'agent.finished')
const cancels = { type: 'delegate.cancel', caller: 'flow/r3' }

describe('flow: one after the other', () => {
  test('flow: the first agent is given the task', () => {
    const flow = start([all('a'), all('b')])
    expect(flow.to('log/a-3-0')).toEqual([{ type: 'log.append', copy: 'r3' }])
    expect(flow.to('crew/main')).toEqual([
      {
        ...{ type: 'delegate.call', caller: 'flow/r3', conversation: 'r3', index: 0, callId: 'a-3-0', agent: 'a' },
        ...{ name: 'a-3-0', depth: 1, length: 2, tokens: 30, trail: [] },
      },
    ])
    expect(flow.emitted).toEqual([{ type: 'flow.stage', stage: 1, agents: ['a'], join: 'all' }])
  })

  test('flow: the next one is given the task and what the one before has answered', () => {
    const flow = start([all('a'), all('b'), all('c')]).send(finished(0))
    expect(flow.to('log/b-3-64')).toEqual([
      { type: 'log.append', copy: 'r3' },
      { type: 'log.append', answer: { of: 'r3', index: 0, role: 'user', agent: 'a' } },
    ])
    expect(flow.to('crew/main')).toContainEqual(expect.objectContaining({ name: 'b-3-64', length: 3, tokens: 40 }))
    flow.send(finished(64))
    expect(flow.to('log/c-3-128')).toContainEqual(
      expect.objectContaining({ answer: { of: 'r3', index: 64, role: 'user', agent: 'b' } }),
    )
    expect(flow.to('log/c-3-128')).toHaveLength(2)
  })

  test('flow: what the last one answers is the answer', () => {
    const flow = start([all('a'), all('b')]).send(finished(0), finished(64))
    expect(flow.to('log/r3')).toEqual([
      { type: 'log.append', answer: { of: 'r3', index: 64, role: 'assistant', agent: 'b' } },
      { type: 'log.clear' },
    ])
    expect(ends(flow)).toMatchObject([{ address: 'flow/r3', code: null, length: 3, answer: 10, result: 'said 64' }])
    expect(flow.done).toBe(true)
  })

  test('flow: an agent that makes its own system message for a task has it first', () => {
    const flow = start([all('a')], { a: 4 })
    expect(flow.to('log/a-3-0')).toEqual([
      { type: 'log.append', values: [4], sequence: 3 },
      { type: 'log.append', copy: 'r3' },
    ])
    expect(flow.to('crew/main')).toMatchObject([{ length: 3 }])
  })

  test('flow: one that fails ends it, and says who it was', () => {
    const flow = start([all('a'), all('b')]).send(finished(0, 'ROUND_LIMIT'))
    expect(ends(flow)).toMatchObject([{ code: 'ROUND_LIMIT', reason: 'a: so' }])
  })
})

describe('flow: at once', () => {
  test('flow: all are waited for, and told in the order of the definition', () => {
    const flow = start([all('a', 'b'), all('c')])
    expect(called(flow)).toEqual(['a-3-0', 'b-3-1'])
    expect(flow.send(finished(1)).sent).toEqual([])
    flow.send(finished(0))
    expect(flow.to('log/c-3-64').slice(1)).toMatchObject([{ answer: { agent: 'a' } }, { answer: { agent: 'b' } }])
    expect(called(flow)).toEqual(['c-3-64'])
  })

  test('flow: of all one that fails ends the others, too', () => {
    const flow = start([all('a', 'b')]).send(finished(1, 'MODEL_FAILED'))
    expect(flow.to('crew/main')).toContainEqual(cancels)
    expect(ends(flow)).toMatchObject([{ code: 'MODEL_FAILED' }])
  })

  test('flow: the first answer counts, and the others are stopped', () => {
    const flow = start([first('a', 'b', 'c'), all('d')]).send(finished(1))
    expect(flow.to('crew/main')[0]).toEqual(cancels)
    expect(flow.to('log/d-3-64').slice(1)).toMatchObject([{ answer: { agent: 'b', index: 1 } }])
    // What one of them says while it is being stopped is nothing to anybody.
    expect(flow.send(finished(0), finished(2, 'RUN_CANCELLED')).sent).toEqual([])
    expect(flow.send(finished(64)).done).toBe(true)
  })

  test('flow: of a race those that fail are left out, and it fails with the last of them', () => {
    const flow = start([first('a', 'b')]).send(finished(0, 'MODEL_FAILED'))
    expect(flow.sent).toEqual([])
    const answered = start([first('a', 'b')]).send(finished(0, 'MODEL_FAILED'), finished(1))
    expect(ends(answered)).toMatchObject([{ code: null }])
    expect(ends(flow.send(finished(1, 'ROUND_LIMIT')))).toMatchObject([{ code: 'ROUND_LIMIT', reason: 'b: so' }])
  })

  test('flow: cancelled, it stops whoever works for it', () => {
    const flow = start([all('a', 'b')]).send({ type: 'run.cancel' })
    expect(flow.to('crew/main')).toMatchObject([cancels, { type: 'agent.finished', code: 'RUN_CANCELLED' }])
  })
})

test('flow: all of it is covered', () => {
  expect(covered.missing()).toEqual([])
})
