import { describe, expect, test } from 'vitest'
import { type ToolInput, toolMachine } from '../../machines/index.js'
import { cover, drive, type Driver, type Message } from '../support/machine-driver.js'

const covered = cover(toolMachine)

const input: ToolInput = {
  self: 'tool/7-0',
  owner: 'agent/writer-r1',
  agent: 'writer',
  run: 'r1',
  conversation: 'r1',
  index: 2,
  callId: 'c2',
  tool: 'lookup',
  effect: 'idempotent',
  timeoutMs: 1_000,
  retries: 2,
  onUnknown: 'tell',
  position: 1,
  key: '7-0',
}
const succeeded: Message = { type: 'tool.succeeded', bytes: 10, result: 'r', sequence: 9 }
const failed = (kind: string, retryMs: number | null): Message => ({
  type: 'tool.failed',
  kind,
  bytes: 6,
  retryMs,
  result: 'f',
  sequence: 9,
})
const interrupted = (started: boolean): Message => ({ type: 'effect.interrupted', started })
const crashed: Message = { type: 'effect.crashed' }
const verified = (done: boolean | null): Message => ({ type: 'tool.verified', done, bytes: 4, result: 'v' })

const start = (more: Partial<ToolInput> = {}): Driver => drive(covered.machine, { ...input, ...more })
const calls = (driver: Driver) => driver.to('port/tool')
const staged = (driver: Driver) => driver.to('log/r1')
const told = (driver: Driver) => driver.to('agent/writer-r1')

const asked = { ask: { kind: 'approval' as const, waitMs: 5_000 } }
const answered = (decision: string, more: object = {}): Message => ({
  ...{ type: 'human.answered', decision, by: 'ada', bytes: 9, result: 'h', sequence: 9 },
  ...more,
})

describe('tool: a person', () => {
  test('tool: a call that wants approval asks a person about this very call, and nobody else', () => {
    const tool = start(asked)
    expect(tool.state).toBe('asking')
    expect(tool.sent).toEqual([
      [
        'port/human',
        {
          ...{ type: 'human.ask', kind: 'approval', waitMs: 5_000, agent: 'writer', run: 'r1', conversation: 'r1' },
          ...{ position: 1, index: 2, callId: 'c2', tool: 'lookup' },
        },
      ],
    ])
    expect(start({ ...asked, arguments: '{"a":1}' }).to('port/human')).toMatchObject([{ arguments: '{"a":1}' }])
  })

  test('tool: approved, it is made as any other', () => {
    const tool = start(asked).send(answered('approved'))
    expect([tool.state, calls(tool)]).toEqual(['running', [expect.not.objectContaining({ arguments: '{"b":2}' })]])
    expect(tool.emitted).toEqual([
      { type: 'human.answered', callId: 'c2', tool: 'lookup', decision: 'approved', by: 'ada', edited: false },
    ])
    expect(told(tool.send(succeeded))).toMatchObject([{ status: 'ok' }])
  })

  test('tool: approved with other arguments, it is made with those, each time', () => {
    const tool = start(asked).send(answered('approved', { arguments: '{"b":2}' }))
    expect(calls(tool)).toMatchObject([{ arguments: '{"b":2}', attempt: 1 }])
    expect(tool.emitted).toMatchObject([{ edited: true }])
    expect(calls(tool.send(interrupted(true)))).toMatchObject([{ arguments: '{"b":2}', attempt: 2 }])
  })

  test('tool: denied, it is not made, and the model is told', () => {
    const tool = start(asked).send(answered('denied'))
    expect([tool.state, calls(tool)]).toEqual(['done', []])
    expect(staged(tool)).toEqual([{ type: 'log.stage', index: 2, callId: 'c2', value: 0 }])
    expect(told(tool)).toMatchObject([{ status: 'failed', result: 'h' }])
  })

  test('tool: a question is answered by what the person says', () => {
    const tool = start({ ask: { kind: 'question', waitMs: 5_000 } }).send(answered('answered'))
    expect(calls(tool)).toEqual([])
    expect(told(tool)).toMatchObject([{ status: 'ok', result: 'h' }])
  })

  test('tool: when its time is over it is not made, the model is told, and nobody is asked any more', () => {
    const tool = start(asked)
    const [[name, timer] = ['', undefined]] = [...tool.timers]
    expect(timer?.delayMs).toBe(5_000)
    tool.fire(name)
    expect(tool.state).toBe('done')
    expect(calls(tool)).toEqual([{ type: 'effect.cancel' }])
    expect(staged(tool)).toMatchObject([{ text: 'Not done: nobody answered in time.' }])
    expect(tool.emitted[0]).toEqual({ type: 'human.expired', callId: 'c2', tool: 'lookup' })
  })

  test('tool: cancelled while a person is asked, it is over', () => {
    const tool = start(asked).send({ type: 'tool.cancel' })
    expect([tool.state, tool.to('port/tool')]).toEqual(['done', [{ type: 'effect.cancel' }]])
  })
})

test('tool: it asks the port once, with the key that stays the same', () => {
  const tool = start({ arguments: '{"a":1}' })
  expect(tool.state).toBe('running')
  expect(tool.sent).toEqual([
    [
      'port/tool',
      {
        type: 'tool.call',
        agent: 'writer',
        run: 'r1',
        conversation: 'r1',
        position: 1,
        index: 2,
        callId: 'c2',
        tool: 'lookup',
        effect: 'idempotent',
        timeoutMs: 1_000,
        key: '7-0',
        attempt: 1,
        arguments: '{"a":1}',
      },
    ],
  ])
})

test('tool: without repaired arguments the call names the message that has them', () => {
  expect(calls(start())[0]).not.toHaveProperty('arguments')
})

test('tool: an answer is staged, told to the owner and shown', () => {
  const tool = start().send(succeeded)
  expect(tool.done).toBe(true)
  expect(tool.sent).toEqual([
    ['log/r1', { type: 'log.stage', index: 2, callId: 'c2', value: 0 }],
    ['agent/writer-r1', { type: 'tool.finished', index: 2, status: 'ok', tokens: 4, result: 'r' }],
  ])
  expect(tool.emitted).toEqual([
    { type: 'tool.finished', callId: 'c2', tool: 'lookup', status: 'ok', bytes: 10, attempts: 1 },
  ])
})

describe.each(['pure', 'idempotent'] as const)('tool: %s', (effect) => {
  test.each(['threw', 'timeout'])('tool: %s is tried again after its wait, at most `retries` times', (kind) => {
    const tool = start({ effect })
    for (const attempt of [2, 3]) {
      tool.send(failed(kind, 250))
      expect(tool.state).toBe('backoff')
      expect(tool.emitted).toEqual([{ type: 'tool.retried', callId: 'c2', tool: 'lookup', kind, delayMs: 250 }])
      expect([...tool.timers.values()].map(({ delayMs }) => delayMs)).toEqual([250])
      tool.fire()
      expect(calls(tool)).toMatchObject([{ type: 'tool.call', attempt, key: '7-0' }])
    }
    tool.send(failed(kind, 250))
    expect(tool.done).toBe(true)
    expect(staged(tool)).toEqual([{ type: 'log.stage', index: 2, callId: 'c2', value: 0 }])
    expect(told(tool)).toMatchObject([{ status: 'failed' }])
  })

  test('tool: what the edge says is final is told at once', () => {
    const tool = start({ effect }).send(failed('told', null))
    expect(tool.done).toBe(true)
    expect(told(tool)).toMatchObject([{ status: 'failed', tokens: 2 }])
  })

  test.each([true, false])('tool: interrupted (started: %s) it goes again with the same key', (started) => {
    const tool = start({ effect }).send(interrupted(started))
    expect(tool.state).toBe('running')
    expect(calls(tool)).toMatchObject([{ type: 'tool.call', attempt: 2, key: '7-0' }])
  })
})

test('tool: a call that died with its process uses up no retry', () => {
  const tool = start({ retries: 1 }).send(interrupted(true), interrupted(true), failed('threw', 250))
  expect(tool.state).toBe('backoff')
  tool.fire().send(interrupted(true), failed('threw', 250))
  expect(tool.done).toBe(true)
})

describe('tool: once', () => {
  test('tool: a failure or timeout is never tried again, whatever the edge says', () => {
    for (const kind of ['threw', 'timeout']) {
      const tool = start({ effect: 'once' }).send(failed(kind, 250))
      expect(tool.done).toBe(true)
      expect(tool.timers.size).toBe(0)
      expect(told(tool)).toMatchObject([{ status: 'failed' }])
    }
  })

  test('tool: interrupted before it started it is called for the first time', () => {
    const tool = start({ effect: 'once' }).send(interrupted(false))
    expect(calls(tool)).toMatchObject([{ type: 'tool.call', key: '7-0' }])
  })

  test('tool: interrupted after it started it is unknown and told', () => {
    const tool = start({ effect: 'once' }).send(interrupted(true))
    expect(tool.done).toBe(true)
    expect(calls(tool)).toEqual([])
    expect(staged(tool)).toMatchObject([{ index: 2, text: expect.stringContaining('unknown') }])
    expect(told(tool)).toMatchObject([{ status: 'unknown' }])
    expect(tool.emitted).toMatchObject([{ type: 'tool.finished', status: 'unknown' }])
  })

  const verifying = () => start({ effect: 'once', onUnknown: 'verify' }).send(interrupted(true))

  test('tool: with verify the port is asked whether it happened, not to do it', () => {
    const tool = verifying()
    expect(tool.state).toBe('verifying')
    expect(calls(tool)).toMatchObject([{ type: 'tool.verify', key: '7-0', callId: 'c2' }])
  })

  test('tool: it happened: its result is the result', () => {
    const tool = verifying().send(verified(true))
    expect(staged(tool)).toEqual([{ type: 'log.stage', index: 2, callId: 'c2', value: 0 }])
    expect(told(tool)).toMatchObject([{ status: 'ok' }])
  })

  test('tool: it did not happen: it is called, with the same key', () => {
    const tool = verifying().send(verified(false))
    expect(tool.state).toBe('running')
    expect(calls(tool)).toMatchObject([{ type: 'tool.call', key: '7-0' }])
    tool.send(interrupted(true))
    expect(tool.state).toBe('verifying')
  })

  test('tool: nobody can say: unknown', () => {
    expect(told(verifying().send(verified(null)))).toMatchObject([{ status: 'unknown' }])
  })

  test.each([true, false])('tool: a lost question (started: %s) is asked again', (started) => {
    const tool = verifying().send(interrupted(started))
    expect(tool.state).toBe('verifying')
    expect(calls(tool)).toMatchObject([{ type: 'tool.verify' }])
  })

  test('tool: a question over which the process died three times leaves it unknown', () => {
    expect(told(verifying().send(crashed))).toMatchObject([{ status: 'unknown' }])
  })
})

test('tool: a call over which the process died three times is given up', () => {
  const tool = start().send(crashed)
  expect(tool.done).toBe(true)
  expect(staged(tool)).toMatchObject([{ text: expect.stringContaining('given up') }])
  expect(told(tool)).toMatchObject([{ status: 'failed' }])
})

const places: Readonly<Record<string, () => Driver>> = {
  running: () => start(),
  backoff: () => start().send(failed('threw', 10)),
  verifying: () => start({ effect: 'once', onUnknown: 'verify' }).send(interrupted(true)),
}

test.each(Object.entries(places))('tool: cancelled in %s it stops its work and says nothing more', (_, go) => {
  const tool = go().send({ type: 'tool.cancel' })
  expect(tool.done).toBe(true)
  expect(tool.timers.size).toBe(0)
  expect(tool.sent).toEqual([['port/tool', { type: 'effect.cancel' }]])
})

test('tool: every transition was taken and every guard answered both ways', () => {
  expect(covered.missing()).toEqual([])
})
