/* eslint max-lines: "off" -- the last test counts what all the others covered of one machine */
import { expect, test } from 'vitest'
import { type AgentInput, agentMachine, type CallVerdict, defaultLoops, nothing } from '../../machines/index.js'
import {
  choice,
  data,
  delegation,
  ended,
  failed,
  granted,
  handoff,
  input,
  next,
  prepared,
  refusal,
  refused,
  replied,
  spent,
  stopped,
  toolCall,
  unadmitted,
  unprepared,
  usage,
  worst,
} from '../support/agent-messages.js'
import { cover, drive, type Driver, type Message } from '../support/machine-driver.js'

const covered = cover(agentMachine)

const start = (more: Partial<AgentInput> = {}): Driver => drive(covered.machine, { ...input, ...more })
const thinking = (more: Partial<AgentInput> = {}): Driver => start(more).send(granted)
const acting = (calls: readonly CallVerdict[], more: Partial<AgentInput> = {}): Driver =>
  thinking(more).send(replied({ calls, finish: 'tool_calls' }))
/** The loop detector's. */
const verdict = (more: Record<string, unknown> = {}): Message => ({
  ...{ type: 'loop.verdict', rung: 'pass', text: '', refused: [] },
  ...more,
})
const checking = (calls: readonly CallVerdict[], more: Partial<AgentInput> = {}): Driver =>
  acting(calls, { detector: 'loop/r1', ...more, data: { ...data, ...more.data, loops: defaultLoops } })
const end = (driver: Driver) => driver.to('crew/main').find(({ type }) => type === 'agent.finished')

test('agent: it asks for leave at the dearest price before its first call', () => {
  const agent = start({ data: choice })
  expect(agent.state).toBe('reserving')
  expect(agent.sent).toEqual([
    [
      'budget/r1',
      {
        type: 'budget.reserve',
        grant: 'agent/writer-r1#0',
        account: 'run',
        replyTo: 'agent/writer-r1',
        inputTokens: 20,
        maxOutputTokens: 1_000,
        minOutputTokens: 100,
        price: { input: 3_000_000, output: 2_000_000 },
      },
    ],
  ])
})

test('agent: with leave it calls the model with what the grant pays for', () => {
  const agent = thinking()
  expect(agent.state).toBe('thinking')
  expect(agent.to('port/model')).toMatchObject([
    { type: 'model.call', agent: 'writer', deployments: ['a:one'], maxOutputTokens: 700, conversation: 'r1', worst },
  ])
})

test('agent: an answer ends it: settled, appended, told to the crew', () => {
  const agent = thinking().send(replied())
  expect(agent.done).toBe(true)
  expect(agent.sent).toEqual([
    ['budget/r1', { type: 'budget.settle', grant: 'agent/writer-r1#0', spent, real: true, toolCalls: 0 }],
    ['log/r1', { type: 'log.append', values: [0] }],
    [
      'crew/main',
      {
        type: 'agent.finished',
        address: 'agent/writer-r1',
        conversation: 'r1',
        code: null,
        reason: '',
        finish: 'stop',
        rounds: 1,
        length: 2,
        tokens: 30,
        answer: usage.outputTokens,
        result: 'said',
      },
    ],
  ])
})

test('agent: an estimated usage settles as an estimate', () => {
  const agent = thinking().send(replied({ usage: { ...usage, estimated: true } }))
  expect(agent.to('budget/r1')).toMatchObject([{ type: 'budget.settle', real: false }])
})

test('agent: calls of a round start together, each with its own executor and key', () => {
  const agent = acting([toolCall(0), toolCall(1)])
  expect(agent.state).toBe('acting')
  expect(agent.to('shard/actors')).toMatchObject([
    { type: 'actor.start', kind: 'tool', name: '7-0', input: { self: 'tool/7-0', key: '7-0', position: 1, index: 0 } },
    { type: 'actor.start', kind: 'tool', name: '7-1', input: { self: 'tool/7-1', key: '7-1', position: 1, index: 1 } },
  ])
  expect(agent.emitted).toMatchObject([{ type: 'model.replied', round: 1, calls: 2, nanoUsd: 90 }])
})

test('agent: the round is sealed when the last call has come back, in whatever order', () => {
  const agent = acting([toolCall(0), toolCall(1), delegation(2)])
  agent.send({ type: 'delegate.finished', index: 2, tokens: 100, result: 'r' })
  expect(agent.state).toBe('acting')
  expect(agent.sent).toEqual([])
  agent.send({ type: 'tool.finished', index: 1, status: 'ok', tokens: 10, result: 'r' })
  expect(agent.state).toBe('acting')
  agent.send({ type: 'tool.finished', index: 0, status: 'failed', tokens: 5, result: 'r' })
  expect(agent.state).toBe('reserving')
  expect(agent.to('log/r1')).toEqual([{ type: 'log.seal' }])
  expect(agent.to('budget/r1')).toMatchObject([{ grant: 'agent/writer-r1#1', inputTokens: 30 + 100 + 10 + 5 }])
  expect(agent.context['length']).toBe(5)
})

test('agent: a result that came twice closes its call once', () => {
  const agent = acting([toolCall(0), toolCall(1)])
  const finished = { type: 'tool.finished', index: 0, status: 'ok', tokens: 1, result: 'r' }
  agent.send(finished, finished)
  expect(agent.state).toBe('acting')
  expect(agent.context['open']).toMatchObject([{ index: 1 }])
})

test('agent: a refused call is told and needs nobody', () => {
  const agent = acting([refusal(0)])
  expect(agent.state).toBe('reserving')
  expect(agent.to('log/r1')).toEqual([
    { type: 'log.append', values: [0] },
    { type: 'log.stage', index: 0, callId: 'c0', text: 'There is no tool named "nope".' },
    { type: 'log.seal' },
  ])
  expect(agent.emitted).toContainEqual({
    type: 'tool.refused',
    callId: 'c0',
    tool: 'nope',
    reason: 'There is no tool named "nope".',
  })
})

test('agent: a delegation opens the conversation of its own that the reply brought', () => {
  const agent = acting([delegation(0), refusal(1)])
  expect(agent.state).toBe('acting')
  expect(agent.to('log/helper-7-0')).toEqual([{ type: 'log.append', values: [1, 2], sequence: 7 }])
  expect(agent.to('crew/main')).toMatchObject([
    { type: 'delegate.call', caller: 'agent/writer-r1', index: 0, name: 'helper-7-0', depth: 1, length: 2, tokens: 40 },
  ])
})

test('agent: an executor that failed is told as a result, another actor is not its business', () => {
  const agent = acting([toolCall(0), delegation(1)])
  const failure = { type: 'actor.failed', code: 'ACTOR_FAILED', reason: 'boom' }
  agent.send({ ...failure, address: 'tool/9-9' })
  expect(agent.context['open']).toHaveLength(2)
  agent.send({ ...failure, address: 'tool/7-0' })
  expect(agent.to('log/r1')).toEqual([
    { type: 'log.stage', index: 0, callId: 'c0', text: 'The tool could not be run: boom' },
  ])
  agent.send({ type: 'delegate.finished', index: 1, tokens: 0, result: 'r' })
  expect(agent.state).toBe('reserving')
})

test('agent: calls in the last round are not made, and the end says so', () => {
  const agent = acting([refusal(0)]).send(granted, replied({ calls: [refusal(0)] }), granted)
  expect(agent.state).toBe('thinking')
  agent.send(replied({ calls: [toolCall(0), toolCall(1)] }))
  expect(agent.state).toBe('failed')
  expect(agent.to('shard/actors')).toEqual([])
  expect(agent.to('log/r1').map(({ type }) => type)).toEqual(['log.append', 'log.stage', 'log.stage', 'log.seal'])
  expect(end(agent)).toMatchObject({ code: 'ROUND_LIMIT', rounds: 3, reason: 'no answer after 3 rounds' })
})

test('agent: an answer in the last round is an answer', () => {
  const agent = start({ data: { ...data, rounds: 1 } }).send(granted, replied())
  expect(end(agent)).toMatchObject({ code: null, rounds: 1 })
})

test('agent: a new definition with fewer rounds ends it before the next call', () => {
  const agent = acting([toolCall(0)])
  agent.send({ type: 'agent.redefined', data: { ...data, rounds: 1 } })
  agent.send({ type: 'tool.finished', index: 0, status: 'ok', tokens: 1, result: 'r' })
  expect(end(agent)).toMatchObject({ code: 'ROUND_LIMIT', rounds: 1 })
})

test('agent: an answer that does not fit is sent back with the reason, at most twice', () => {
  const misfit = replied({ fits: false, reason: 'text: expected string' })
  const agent = start({ data: { ...data, rounds: 9 } }).send(granted, misfit)
  expect(agent.state).toBe('reserving')
  expect(agent.to('log/r1')).toEqual([
    { type: 'log.append', values: [0] },
    { type: 'log.append', user: 'text: expected string' },
  ])
  expect(agent.context['length']).toBe(3)
  agent.send(granted, misfit)
  expect(agent.state).toBe('reserving')
  agent.send(granted, misfit)
  expect(end(agent)).toMatchObject({ code: 'OUTPUT_INVALID', reason: 'text: expected string', rounds: 3 })
})

test('agent: an answer that fits after a correction is the answer', () => {
  const agent = thinking().send(replied({ fits: false, reason: 'no' }), granted, replied({ fits: true }))
  expect(end(agent)).toMatchObject({ code: null, rounds: 2 })
})

test('agent: a misfit in the last round is not sent back', () => {
  const agent = start({ data: { ...data, rounds: 1 } }).send(granted, replied({ fits: false, reason: 'no' }))
  expect(end(agent)).toMatchObject({ code: 'OUTPUT_INVALID', rounds: 1 })
})

test('agent: behind a failure it asks the router, and goes on under a new grant', () => {
  const agent = thinking().send(failed({ retryAfterMs: 30 }))
  expect(agent.state).toBe('routing')
  expect(agent.to('budget/r1')).toMatchObject([
    { type: 'budget.settle', grant: 'agent/writer-r1#0', real: true, spent: { nanoUsd: 0, modelCalls: 1 } },
  ])
  const failure = { deployment: 'a:one', kind: 'server', retryAfterMs: 30 }
  expect(agent.to('router/main')).toEqual([
    {
      ...{ type: 'route.ask', replyTo: 'agent/writer-r1', round: 'r1 0' },
      ...{ groups: [['a:one']], attempts: 3, failure, delayMs: 40, skipped: [] },
    },
  ])
  expect(agent.emitted).toEqual([
    { type: 'model.failed', round: 1, deployment: 'a:one', kind: 'server', reason: 'oops' },
  ])
  agent.send(next('a:one', 1))
  expect(agent.to('budget/r1')).toMatchObject([{ grant: 'agent/writer-r1#1' }])
  agent.send(granted)
  expect(agent.to('port/model')).toMatchObject([{ deployments: ['a:one'], grant: 'agent/writer-r1#1', tries: 1 }])
})

test('agent: with a choice each round begins with all of them, and goes on with those that the router names', () => {
  const agent = start({ data: choice }).send(granted)
  expect(agent.to('port/model')).toMatchObject([{ deployments: ['a:one', 'b:two'], tries: 0 }])
  agent.send(failed({ deployment: 'b:two' }))
  expect(agent.to('router/main')).toMatchObject([
    { round: 'r1 0', groups: [['a:one'], ['b:two']], failure: { deployment: 'b:two' } },
  ])
  agent.send(next('a:one', 1), granted)
  expect(agent.to('port/model')).toMatchObject([{ deployments: ['a:one'], tries: 1 }])
  agent.send(replied({ calls: [refusal(0)] }), granted)
  expect(agent.to('port/model')).toMatchObject([{ deployments: ['a:one', 'b:two'], tries: 0 }])
})

test('agent: when no deployment takes its call nothing is spent, and the router is asked', () => {
  const skipped = [{ deployment: 'a:one', reason: 'open' as const, waitMs: 900 }]
  const agent = thinking().send(unadmitted(...skipped))
  expect(agent.state).toBe('routing')
  expect(agent.to('budget/r1')).toEqual([{ type: 'budget.release', grant: 'agent/writer-r1#0' }])
  expect(agent.to('router/main')).toMatchObject([{ failure: null, delayMs: 40, skipped }])
  expect(agent.emitted).toEqual([{ type: 'model.skipped', round: 1, skipped }])
  agent.send(next('a:one'))
  expect(agent.to('budget/r1')).toMatchObject([{ grant: 'agent/writer-r1#1' }])
  expect(end(thinking().send(unadmitted(...skipped), ended))).toMatchObject({
    code: 'MODEL_FAILED',
    reason: 'no deployment takes a call: a:one',
  })
})

test('agent: the outside is told who was passed over, and what a call has changed for others', () => {
  const skipped = [{ deployment: 'a:one', reason: 'asked' as const, waitMs: 900 }]
  const changes = [{ to: 'opened' as const, ms: 30_000 }]
  const told = [
    { type: 'model.skipped', round: 1, skipped },
    { type: 'breaker.changed', deployment: 'b:two', to: 'opened', ms: 30_000 },
  ]
  const admitted = { deployment: 'b:two', skipped, changes }
  expect(thinking().send(replied(admitted)).emitted.slice(0, 2)).toEqual(told)
  expect(thinking().send(failed(admitted)).emitted.slice(0, 2)).toEqual(told)
})

test('agent: what the router has named is asked although its user pauses it or speaks meanwhile', () => {
  const agent = start({ data: choice }).send(
    ...[granted, failed(), { type: 'run.pause' }, { type: 'run.steer', tokens: 6 }, next('b:two', 1)],
  )
  expect(agent.state).toBe('held')
  agent.send({ type: 'run.resume' })
  expect(agent.state).toBe('reserving')
  expect(agent.send(granted).to('port/model')).toMatchObject([{ deployments: ['b:two'] }])
})

test('agent: when the router has no other try for it, it ends with the last failure', () => {
  const agent = thinking().send(failed({ kind: 'timeout', reason: 'late', spent, real: false }))
  expect(agent.to('budget/r1')).toMatchObject([{ spent: { nanoUsd: 90, modelCalls: 1 }, real: false }])
  expect(end(agent.send(ended))).toMatchObject({ code: 'MODEL_FAILED', reason: 'timeout: late', rounds: 0 })
})

test('agent: a deployment that its definition does not name any more is not asked', () => {
  const agent = start({ data: choice }).send(
    ...[granted, failed(), { type: 'agent.redefined', data }, next('b:two', 1), granted],
  )
  expect(agent.to('port/model')).toMatchObject([{ deployments: ['a:one'] }])
})

test('agent: a reply resets tries and deployment', () => {
  const agent = thinking().send(failed(), next('a:one', 1), granted, replied({ calls: [refusal(0)] }))
  expect(agent.context).toMatchObject({ tries: 0, deployments: [], round: 1 })
})

test('agent: an interrupted call is settled at its maximum and asked for anew', () => {
  const agent = thinking().send({ type: 'effect.interrupted', started: true })
  expect(agent.state).toBe('reserving')
  expect(agent.sent).toMatchObject([
    ['budget/r1', { type: 'budget.settle', grant: 'agent/writer-r1#0', spent: worst, real: false, toolCalls: 0 }],
    ['budget/r1', { type: 'budget.reserve', grant: 'agent/writer-r1#1' }],
  ])
  expect(agent.context).toMatchObject({ round: 0, tries: 0 })
})

test('agent: a call over which the process died three times ends it', () => {
  const agent = thinking().send({ type: 'effect.crashed' })
  expect(agent.to('budget/r1')).toMatchObject([{ type: 'budget.settle', spent: worst, real: false }])
  expect(end(agent)).toMatchObject({ code: 'EFFECT_CRASHED' })
})

test('agent: with a limit of tool calls a round asks before it acts', () => {
  const agent = acting([toolCall(0), toolCall(1), refusal(2)], { counted: true })
  expect(agent.state).toBe('authorizing')
  expect(agent.to('budget/r1')).toMatchObject([
    { type: 'budget.settle', toolCalls: 0 },
    { type: 'budget.charge', account: 'run', toolCalls: 3 },
  ])
  expect(agent.to('shard/actors')).toEqual([])
  agent.send({ type: 'budget.granted', grant: '', maxOutputTokens: 0, worst: nothing })
  expect(agent.state).toBe('acting')
  expect(agent.to('shard/actors')).toHaveLength(2)
  expect(agent.to('log/r1')).toHaveLength(1)
})

test('agent: without one the calls are counted with the settlement', () => {
  const agent = acting([toolCall(0), refusal(1)])
  expect(agent.to('budget/r1')).toMatchObject([{ type: 'budget.settle', toolCalls: 2 }])
})

test('agent: it cannot pay for a call: it tells the crew and waits', () => {
  const agent = start().send(refused)
  expect(agent.state).toBe('exhausted')
  expect(agent.to('crew/main')).toEqual([
    { type: 'agent.exhausted', address: 'agent/writer-r1', account: 'run', dimension: 'nanoUsd', limit: 9 },
  ])
  expect(agent.emitted).toEqual([{ type: 'budget.exhausted', account: 'run', dimension: 'nanoUsd' }])
  agent.send({ type: 'budget.raised' })
  expect(agent.state).toBe('reserving')
  expect(agent.to('budget/r1')).toMatchObject([{ type: 'budget.reserve', grant: 'agent/writer-r1#0' }])
})

test('agent: it may not act: raised, it asks for the same calls again', () => {
  const agent = acting([toolCall(0)], { counted: true }).send({ ...refused, dimension: 'toolCalls' })
  expect(agent.state).toBe('exhausted')
  agent.send({ type: 'budget.raised' })
  expect(agent.state).toBe('authorizing')
  expect(agent.to('budget/r1')).toMatchObject([{ type: 'budget.charge', toolCalls: 1 }])
})

test('agent: raised, a delegation has the task that its reply brought, whatever brings the raise', () => {
  const agent = acting([delegation(1)], { counted: true }).send({ ...refused, dimension: 'toolCalls' })
  agent.send({ type: 'budget.raised' }, granted)
  expect(agent.to('log/helper-7-1')).toEqual([{ type: 'log.append', values: [1, 2], sequence: 7 }])
})

test('agent: a raise that it does not wait for changes nothing', () => {
  const agent = thinking().send({ type: 'budget.raised' })
  expect(agent.state).toBe('thinking')
  expect(agent.sent).toEqual([])
})

test('agent: a new definition counts from the next round, with its first deployment', () => {
  const other = { ...data, deployments: [{ name: 'c:three', price: { input: 1, output: 1 }, group: 0 }] }
  const agent = thinking().send(failed(), { type: 'agent.redefined', data: other }, next('a:one', 1), granted)
  expect(agent.to('port/model')).toMatchObject([{ deployments: ['c:three'] }])
})

test('agent: before it acts it asks whether its calls lead anywhere, and tells what the last ones brought', () => {
  const agent = checking([toolCall(0), delegation(1), refusal(2)])
  expect(agent.state).toBe('checking')
  const asked = {
    ...{ type: 'loop.check', replyTo: 'agent/writer-r1', conversation: 'r1', turn: 0, trail: ['writer'] },
    loops: defaultLoops,
  }
  const calls = [
    { index: 0, call: 'lookup0', agent: null },
    { index: 1, call: 'helper1', agent: 'helper' },
    { index: 2, call: 'nope', agent: null },
  ]
  expect(agent.to('loop/r1')).toEqual([{ ...asked, learned: [], calls }])
  agent.send(verdict())
  expect(agent.state).toBe('acting')
  expect(agent.to('crew/main')).toMatchObject([{ type: 'delegate.call', trail: ['writer'] }])
  agent.send({ type: 'delegate.finished', index: 1, tokens: 1, result: 'said' })
  agent.send({ type: 'tool.finished', index: 0, status: 'ok', tokens: 1, result: 'found' })
  agent.send(granted, replied({ calls: [{ ...toolCall(0), call: '' }] }))
  const learned = [
    { call: 'nope', result: 'refused' },
    { call: 'helper1', result: 'said' },
    { call: 'lookup0', result: 'found' },
  ]
  expect(agent.to('loop/r1')).toMatchObject([{ learned, calls: [{ index: 0, call: '' }] }])
})

test('agent: what may be repeated at will is not told, and what could not be run is', () => {
  const more = { data: { ...data, rounds: 9 } }
  const agent = checking([{ ...toolCall(0), call: '' }, toolCall(1)], more).send(verdict())
  agent.send({ type: 'tool.finished', index: 0, status: 'ok', tokens: 1, result: 'x' })
  agent.send({ type: 'actor.failed', address: 'tool/7-1', code: 'ACTOR_FAILED', reason: 'threw' })
  agent.send(granted, replied({ calls: [toolCall(0)] }))
  expect(agent.to('loop/r1')).toMatchObject([{ learned: [{ call: 'lookup1', result: 'failed' }] }])
})

test('agent: what it must not call is refused with the reason, the rest is made; it learned nothing of it', () => {
  const agent = checking([toolCall(0), delegation(1), refusal(2), toolCall(3)])
  agent.send(verdict({ rung: 'block', refused: [0, 1, 2].map((index) => ({ index, message: 'again' })) }))
  expect(agent.state).toBe('acting')
  const told = agent.to('log/r1').map(({ callId, text }) => [callId, text])
  expect(told).toEqual([0, 1, 2].map((index) => [`c${index}`, 'again']))
  expect(agent.emitted.map(({ tool }) => tool)).toEqual(['lookup', 'helper', 'nope'])
  expect(agent.to('shard/actors')).toMatchObject([{ name: '7-3' }])
  agent.send({ type: 'tool.finished', index: 3, status: 'ok', tokens: 1, result: 'r' })
  agent.send(granted, replied({ calls: [toolCall(0)] }))
  const unmade = ['lookup0', 'helper1', 'nope'].map((call) => ({ call, result: '' }))
  expect(agent.to('loop/r1')).toMatchObject([{ learned: [...unmade, { call: 'lookup3', result: 'r' }] }])
})

test('agent: a warning joins the conversation behind the results it is about', () => {
  const agent = checking([toolCall(0)]).send(verdict({ rung: 'warn', text: 'nothing new' }))
  expect(agent.state).toBe('acting')
  agent.send({ type: 'tool.finished', index: 0, status: 'ok', tokens: 1, result: 'r' })
  expect(agent.to('log/r1')).toEqual([{ type: 'log.seal' }, { type: 'log.append', user: 'nothing new' }])
  expect(agent.state).toBe('reserving')
  // The task, the reply, its result, the warning.
  expect(agent.context).toMatchObject({ length: 4, warning: '' })
})

test('agent: stopped it ends with the reason, every call answered', () => {
  const agent = checking([toolCall(0), delegation(1)]).send(verdict({ rung: 'stop', text: 'nothing new' }))
  expect(agent.done).toBe(true)
  expect(end(agent)).toMatchObject({ code: 'LOOP_DETECTED', reason: 'nothing new' })
  expect(agent.to('log/r1').map(({ type }) => type)).toEqual(['log.stage', 'log.stage', 'log.seal'])
})

test('agent: with calls that are counted it asks first whether they lead anywhere, then whether they are paid for', () => {
  const agent = checking([toolCall(0)], { counted: true })
  expect(agent.to('budget/r1').map(({ type }) => type)).toEqual(['budget.settle'])
  agent.send(verdict())
  expect(agent.state).toBe('authorizing')
  expect(agent.to('budget/r1')).toMatchObject([{ type: 'budget.charge', toolCalls: 1 }])
})

test('agent: when its user has spoken what it learned before counts no more', () => {
  const agent = checking([toolCall(0)]).send(verdict(), { type: 'run.steer', tokens: 6 })
  agent.send({ type: 'tool.finished', index: 0, status: 'ok', tokens: 1, result: 'r' })
  agent.send(granted, replied({ calls: [toolCall(0)] }))
  expect(agent.to('loop/r1')).toMatchObject([{ turn: 1, learned: [] }])
})

/** Every state in which an agent can be found between two messages, and how it gets there. */
const places: Readonly<Record<string, () => Driver>> = {
  held: () => start({ paused: true }),
  reserving: () => start(),
  thinking: () => thinking(),
  routing: () => thinking().send(failed()),
  checking: () => checking([toolCall(0)]),
  authorizing: () => acting([toolCall(0)], { counted: true }),
  acting: () => acting([toolCall(0), delegation(1), refusal(2)]),
  exhausted: () => start().send(refused),
  'exhausted with calls': () => acting([toolCall(0)], { counted: true }).send(refused),
}

test.each(Object.entries(places))(
  'agent: cancel in %s ends it, leaves nothing open and every call answered',
  (_, go) => {
    const agent = go()
    const before = agent.state
    agent.send({ type: 'run.cancel' })
    expect(agent.done).toBe(true)
    expect(agent.timers.size).toBe(0)
    expect(end(agent)).toMatchObject({ code: 'RUN_CANCELLED' })
    const to = agent.sent.map(([address, { type }]) => `${address} ${type}`)
    if (before === 'reserving') expect(to).toContain('budget/r1 budget.release')
    if (before === 'thinking')
      expect(to).toEqual(expect.arrayContaining(['port/model effect.cancel', 'budget/r1 budget.settle']))
    if (before === 'acting') {
      expect(to).toEqual(expect.arrayContaining(['tool/7-0 tool.cancel', 'crew/main delegate.cancel']))
      expect(agent.to('log/r1').map(({ type }) => type)).toEqual(['log.stage', 'log.stage', 'log.stage', 'log.seal'])
    }
    if (before === 'authorizing' || before === 'checking')
      expect(agent.to('log/r1').at(-1)).toEqual({ type: 'log.seal' })
  },
)

/** How each state is left towards the next model call. */
const onward: Readonly<Record<string, (agent: Driver) => Driver>> = {
  held: (agent) => agent,
  reserving: (agent) => agent.send(granted, replied({ calls: [refusal(0)] })),
  thinking: (agent) => agent.send(replied({ calls: [refusal(0)] })),
  routing: (agent) => agent.send(next('a:one', 1)),
  authorizing: (agent) =>
    agent.send(granted, { type: 'tool.finished', index: 0, status: 'ok', tokens: 1, result: 'r' }),
  acting: (agent) =>
    agent.send(
      { type: 'tool.finished', index: 0, status: 'ok', tokens: 1, result: 'r' },
      { type: 'delegate.finished', index: 1, tokens: 1, result: 'r' },
    ),
  exhausted: (agent) => agent.send({ type: 'budget.raised' }),
  'exhausted with calls': (agent) =>
    agent.send({ type: 'budget.raised' }, granted, {
      type: 'tool.finished',
      index: 0,
      status: 'ok',
      tokens: 1,
      result: 'r',
    }),
  checking: (agent) => agent.send(verdict(), { type: 'tool.finished', index: 0, status: 'ok', tokens: 1, result: 'r' }),
}

test.each(Object.entries(places))(
  'agent: paused in %s it holds before its next model call, and goes on',
  (name, go) => {
    const agent = go().send({ type: 'run.pause' })
    onward[name]?.(agent)
    expect(agent.state).toBe('held')
    agent.send({ type: 'run.pause' })
    expect(agent.state).toBe('held')
    agent.send({ type: 'run.resume' })
    expect(agent.state).toBe('reserving')
    expect(agent.to('budget/r1')).toMatchObject([{ type: 'budget.reserve' }])
  },
)

test.each(Object.entries(places))('agent: paused and resumed in %s it goes on as if nothing had been', (name, go) => {
  const agent = go().send({ type: 'run.pause' }, { type: 'run.resume' })
  onward[name]?.(agent)
  expect(agent.state).toBe('reserving')
})

const steer: Message = { type: 'run.steer', tokens: 6 }
const waits = ['log/r1+user', { type: 'log.append', values: [0] }]
const joins = ['log/r1', { type: 'log.append', all: 'r1+user' }]
const joined = (agent: Driver) => agent.to('log/r1').filter((message) => 'all' in message).length

test.each(Object.entries(places))(
  'agent: messages of its user in %s join its conversation once, together, before its next call',
  (name, go) => {
    const agent = go()
    const { length, tokens } = agent.context as unknown as AgentInput
    agent.send({ type: 'run.pause' })
    for (const _ of [1, 2]) {
      const releases = agent.state === 'reserving'
      agent.send(steer)
      expect(agent.emitted).toEqual([{ type: 'agent.steered', agent: 'writer', run: 'r1', tokens: 6 }])
      expect(agent.sent).toContainEqual(waits)
      expect(joined(agent)).toBe(0)
      expect(agent.to('budget/r1')).toEqual(releases ? [{ type: 'budget.release', grant: 'agent/writer-r1#0' }] : [])
    }
    expect(agent.state).toBe(name === 'reserving' ? 'held' : name.replace(' with calls', ''))
    if (name !== 'reserving') onward[name]?.(agent)
    expect(agent.state).toBe('held')
    const before = agent.context as unknown as AgentInput
    agent.send({ type: 'run.resume' })
    expect(agent.state).toBe('reserving')
    expect(agent.sent[0]).toEqual(joins)
    expect(agent.to('budget/r1')).toMatchObject([{ type: 'budget.reserve', inputTokens: before.tokens + 12 }])
    expect(agent.context).toMatchObject({ length: before.length + 2, steered: 0, steerTokens: 0 })
    if (name === 'held') expect(before).toMatchObject({ length, tokens })
  },
)

test('agent: a message in reserving withdraws the request: the next one has another grant and counts it', () => {
  const agent = start().send(steer)
  expect(agent.state).toBe('reserving')
  expect(agent.sent).toEqual([
    ['budget/r1', { type: 'budget.release', grant: 'agent/writer-r1#0' }],
    waits,
    joins,
    ['budget/r1', expect.objectContaining({ grant: 'agent/writer-r1#1', inputTokens: 26 })],
  ])
})

test('agent: a message joins behind the reply that is on its way, and an answer is not the last word', () => {
  const agent = thinking().send(steer, replied())
  expect(agent.state).toBe('reserving')
  expect(agent.sent.filter(([to]) => to.startsWith('log/'))).toEqual([
    ['log/r1', { type: 'log.append', values: [0] }],
    joins,
  ])
  agent.send(granted, replied())
  expect(agent.done).toBe(true)
  expect(end(agent)).toMatchObject({ code: null, rounds: 2, length: 4 })
})

test('agent: a message joins behind the results of a round, never between', () => {
  const agent = acting([toolCall(0), delegation(1)]).send(steer)
  agent.send({ type: 'delegate.finished', index: 1, tokens: 1, result: 'r' })
  expect(joined(agent)).toBe(0)
  agent.send({ type: 'tool.finished', index: 0, status: 'ok', tokens: 1, result: 'r' })
  expect(agent.to('log/r1')).toEqual([{ type: 'log.seal' }, { type: 'log.append', all: 'r1+user' }])
})

test('agent: an answer that does not fit is corrected first; one that may not be corrected again has another round', () => {
  const misfit = replied({ fits: false, reason: 'not like this' })
  const more = { data: { ...data, rounds: 9 } }
  const agent = thinking(more).send(steer, misfit)
  expect(agent.to('log/r1')).toEqual([
    { type: 'log.append', values: [0] },
    { type: 'log.append', user: 'not like this' },
    { type: 'log.append', all: 'r1+user' },
  ])
  agent.send(granted, misfit, granted, steer, misfit)
  expect(agent.state).toBe('reserving')
  expect(agent.to('log/r1')).toHaveLength(2)
})

test.each([
  ['an answer in its last round', replied(), null],
  ['calls in its last round', replied({ calls: [toolCall(0)] }), 'ROUND_LIMIT'],
  ['its cancel', { type: 'run.cancel' }, 'RUN_CANCELLED'],
] as const)(
  'agent: with %s a message that waits has no round left to join: it goes, and an event says so',
  (_, last, code) => {
    const agent = thinking({ data: { ...data, rounds: 1 } }).send(steer, steer, last)
    expect(agent.done).toBe(true)
    expect(joined(agent)).toBe(0)
    expect(agent.to('log/r1+user')).toEqual([{ type: 'log.drop' }])
    expect(agent.emitted).toContainEqual({ type: 'agent.unsteered', agent: 'writer', run: 'r1', messages: 2 })
    expect(end(agent)).toMatchObject({ code })
  },
)

test('agent: with a failure that is its last a message that waits has no round left to join, either', () => {
  const agent = thinking().send(steer, failed(), ended)
  expect(end(agent)).toMatchObject({ code: 'MODEL_FAILED' })
  expect(agent.emitted).toMatchObject([{ type: 'agent.unsteered', messages: 1 }])
})

test('agent: a message that its state does not take changes nothing and is not taken', () => {
  const agent = start()
  for (const message of [replied(), failed(), next('a:one'), { type: 'effect.crashed' }, { type: 'something.else' }]) {
    const before = agent.persisted()
    expect(agent.send(message).taken).toBe(false)
    expect(agent.persisted()).toEqual(before)
  }
})

test('agent: grants are never asked for twice and never left open', () => {
  const agent = start()
  const asked: string[] = []
  const closed: string[] = []
  const look = () => {
    for (const message of agent.to('budget/r1')) {
      const { type, grant } = message as { type: string; grant: string }
      if (type === 'budget.reserve') asked.push(grant)
      if (type === 'budget.settle' || type === 'budget.release') closed.push(grant)
    }
  }
  look()
  const steps = [granted, failed(), next('a:one', 1), granted, { type: 'effect.interrupted', started: true }, granted]
  for (const step of [...steps, replied({ calls: [refusal(0)] }), granted, replied()]) {
    agent.send(step)
    look()
  }
  expect(agent.done).toBe(true)
  expect(new Set(asked).size).toBe(asked.length)
  expect(closed).toEqual(asked)
})

test('agent: who hands over ends with its round, and names who goes on, what of it all, and from where', () => {
  const agent = acting([handoff(0)])
  expect(agent.state).toBe('handed')
  expect(agent.to('log/r1')).toEqual([
    { type: 'log.append', values: [0] },
    { type: 'log.stage', index: 0, callId: 'c0', text: 'Done: closer goes on from here.' },
    { type: 'log.seal' },
    { type: 'log.append', values: [], sequence: 7 },
  ])
  expect(agent.emitted).toContainEqual({ type: 'agent.handed', callId: 'c0', agent: 'closer' })
  const handover = {
    ...{ agent: 'closer', name: 'closer-7-0', trail: input.trail },
    view: { hidden: [], system: null },
  }
  expect(end(agent)).toMatchObject({ code: null, rounds: 1, length: 3, answer: 0, handover })
})

test('agent: a hand-over waits for the other calls of its round, which is its last one in any case', () => {
  const agent = acting([toolCall(0), handoff(1)], { data: { ...data, rounds: 1 } })
  expect(agent.state).toBe('acting')
  agent.send({ type: 'tool.finished', index: 0, status: 'ok', tokens: 30, result: 'r' })
  expect(agent.state).toBe('handed')
  expect(end(agent)).toMatchObject({ code: null, length: 4, handover: { name: 'closer-7-1' } })
})

test('agent: the next one is not shown what was hidden before or is now, and its system message comes last', () => {
  const view = { hidden: [[0, 0]] as [number, number][], system: null }
  const call = handoff(0, { hidden: [[1, 1]], saved: 15, system: 1 })
  const agent = acting([call], { view, length: 2 })
  expect(agent.to('log/r1').at(-1)).toEqual({ type: 'log.append', values: [1], sequence: 7 })
  const tokens = Number(end(acting([handoff(0)]))!['tokens'])
  const hidden = [
    [0, 0],
    [1, 1],
  ]
  expect(end(agent)).toMatchObject({ length: 5, tokens: tokens - 15, handover: { view: { hidden, system: 4 } } })
})

test('agent: one that was handed a conversation asks the model with its view of it', () => {
  const view = { hidden: [[0, 0]] as [number, number][], system: 4 }
  expect(thinking({ view }).to('port/model')).toMatchObject([{ view }])
  expect(thinking().to('port/model')[0]).not.toHaveProperty('view')
})

test('agent: what the user has said meanwhile joins before the next one goes on', () => {
  const agent = acting([toolCall(0), handoff(1)]).send({ type: 'run.steer', tokens: 6 })
  agent.send({ type: 'tool.finished', index: 0, status: 'ok', tokens: 1, result: 'r' })
  expect(agent.to('log/r1').map(({ type, all }) => [type, all])).toEqual([
    ['log.seal', undefined],
    ['log.append', 'r1+user'],
    ['log.append', undefined],
  ])
  expect(end(agent)).toMatchObject({ length: 5 })
})

test('agent: a hand-over that the loop detector refuses is none', () => {
  const agent = checking([handoff(0)])
  expect(agent.to('loop/r1')).toMatchObject([{ calls: [{ index: 0, call: '', agent: 'closer' }] }])
  agent.send(verdict({ refused: [{ index: 0, message: 'not in a ring' }] }))
  expect(agent.state).toBe('reserving')
  expect(agent.to('log/r1')).toContainEqual({ type: 'log.stage', index: 0, callId: 'c0', text: 'not in a ring' })
})

const resumed: Message = { type: 'actor.resumed' }

test('agent: one that is resumed while it hands over hands over, without the results of its other calls', () => {
  const agent = acting([toolCall(0), handoff(1)]).send(resumed)
  expect(agent.state).toBe('handed')
  expect(agent.to('log/r1').map(({ type, index, unless }) => [type, index, unless])).toEqual([
    ['log.stage', 0, 'staged'],
    ['log.stage', 1, 'staged'],
    ['log.seal', undefined, undefined],
    ['log.append', undefined, undefined],
  ])
  expect(end(agent)).toMatchObject({ length: 4, handover: { name: 'closer-7-1' } })
})

test('agent: one that is resumed asks anew, under a grant of its own, whatever it waited for', () => {
  const waiting = [start(), thinking(), thinking().send(failed()), start().send(refused)]
  for (const agent of waiting) {
    const grants = Number(agent.context['grants'])
    agent.send(resumed)
    expect(agent.state).toBe('reserving')
    expect(agent.to('budget/r1')).toMatchObject([
      { type: 'budget.reserve', grant: `agent/writer-r1#${grants + 1}`, inputTokens: 20 },
    ])
  }
  expect(start({ paused: true }).send(resumed).state).toBe('held')
})

test('agent: one that is resumed tells the model of calls whose results it has not, and keeps those that came', () => {
  const agent = acting([toolCall(0), toolCall(1), refusal(2)])
  agent.send({ type: 'tool.finished', index: 1, status: 'ok', tokens: 10, result: 'r' }, resumed)
  expect(agent.state).toBe('reserving')
  const text = expect.stringContaining('The outcome of this call is unknown')
  expect(agent.to('log/r1')).toEqual([
    { type: 'log.stage', index: 0, callId: 'c0', text, unless: 'staged' },
    { type: 'log.stage', index: 1, callId: 'c1', text, unless: 'staged' },
    { type: 'log.stage', index: 2, callId: 'c2', text: 'There is no tool named "nope".', unless: 'staged' },
    { type: 'log.seal' },
  ])
  expect(agent.context).toMatchObject({ length: 5, open: [], verdicts: [] })
})

test('agent: one that is resumed before its calls were made says so', () => {
  const agent = checking([toolCall(0)]).send(resumed)
  expect(agent.state).toBe('reserving')
  expect(agent.to('log/r1')).toMatchObject([{ text: expect.stringContaining('Not done') }, { type: 'log.seal' }])
})

/** Its user's code has a say in each of its rounds, or in all later ones. */
const asking = (prepares: 'each' | 'later' = 'each', more: Partial<AgentInput> = {}): Driver =>
  start({ ...more, data: { ...data, ...more.data, prepares } })
const finished: Message = { type: 'tool.finished', index: 0, status: 'ok', tokens: 5, result: 'r' }

test('agent: one whose user has a say asks before it asks for money, and its round is as it was told', () => {
  const agent = asking('each', { view: { hidden: [[0, 0]], system: null } })
  expect([agent.state, agent.sent]).toEqual([
    'preparing',
    [
      [
        'port/round',
        {
          ...{ type: 'round.prepare', agent: 'writer', run: 'r1', conversation: 'r1', rounds: 0 },
          ...{ used: nothing, answered: [], view: { hidden: [[0, 0]], system: null } },
        },
      ],
    ],
  ])
  const deployments = [{ name: 'z:dear', price: { input: 9_000_000, output: 7_000_000 }, group: 0 }]
  const plan = { deployments, tools: ['lookup'], maxOutputTokens: 50, tokens: 77 }
  expect(agent.send(prepared(plan)).to('budget/r1')).toMatchObject([
    { inputTokens: 77, maxOutputTokens: 50, price: { input: 9_000_000, output: 7_000_000 } },
  ])
  expect(agent.send(granted).to('port/model')).toMatchObject([
    { deployments: ['z:dear'], plan: { ...plan, sequence: 5 } },
  ])
  expect(agent.send(failed({ deployment: 'z:dear' })).to('router/main')).toMatchObject([{ groups: [['z:dear']] }])
  agent.send(next('z:dear', 1), granted)
  expect(agent.to('port/model')).toMatchObject([{ deployments: ['z:dear'], plan: { tools: ['lookup'] }, tries: 1 }])
})

test('agent: what was said of a round holds for that one, and what its calls have cost is told', () => {
  const agent = asking().send(prepared({ tools: [], tokens: 3 }), granted, replied({ calls: [toolCall(0)] }))
  // Only the reply is new: the round had not sent all of the conversation.
  expect(agent.context['tokens']).toBe(input.tokens + usage.outputTokens)
  expect(agent.send(finished).to('port/round')).toMatchObject([
    { rounds: 1, used: spent, answered: [{ index: 0, name: 'lookup' }] },
  ])
  agent.send(prepared(), granted)
  expect(agent.to('port/model')).toMatchObject([{ plan: { sequence: 5 }, deployments: ['a:one'] }])
  expect(agent.to('port/model')[0]!['plan']).not.toHaveProperty('tools')
  agent.send(failed({ spent }), next('a:one', 1), granted, { type: 'effect.interrupted', started: true }, granted)
  const calls = [toolCall(0), delegation(1), refusal(2)]
  agent.send(replied({ calls }), { ...finished, status: 'failed' })
  const answered = { type: 'delegate.finished', index: 1, tokens: 9, result: 'd', code: null, reason: '' }
  expect(agent.send(answered).to('port/round')).toMatchObject([
    {
      used: { nanoUsd: 3 * spent.nanoUsd + worst.nanoUsd, tokens: 3 * spent.tokens + worst.tokens, modelCalls: 4 },
      answered: [{ index: 1, name: 'helper' }],
    },
  ])
})

test('agent: with conditions only it asks before each round but the first, and answers when it is stopped', () => {
  const agent = asking('later').send(granted, replied({ calls: [toolCall(0)] }), finished)
  expect(agent.state).toBe('preparing')
  expect(agent.send(stopped).sent).toMatchObject([
    ['log/r1', { type: 'log.append', values: [0] }],
    ['crew/main', { code: null, finish: 'stopped', rounds: 1, length: 4, answer: 4, result: 'last' }],
  ])
  expect(agent.emitted).toContainEqual({ type: 'agent.stopped', agent: 'writer', run: 'r1', condition: 'roundsAre(1)' })
})

test('agent: code of its user that fails ends it with its code; a death over it asks again, a third one ends it', () => {
  expect(end(asking().send(unprepared))).toMatchObject({ code: 'CALLBACK_FAILED', reason: 'it threw' })
  const agent = asking().send({ type: 'effect.interrupted', started: false })
  expect([agent.state, agent.to('port/round').length]).toEqual(['preparing', 1])
  expect(end(agent.send({ type: 'effect.crashed' }))).toMatchObject({ code: 'EFFECT_CRASHED' })
  const cancelled = asking().send({ type: 'run.cancel' })
  expect(cancelled.to('port/round')).toEqual([{ type: 'effect.cancel' }])
  expect(end(cancelled)).toMatchObject({ code: 'RUN_CANCELLED' })
})

test('agent: what a user says while a round is prepared joins behind that, and the round is prepared anew', () => {
  const steer = { type: 'run.steer', tokens: 6 }
  const agent = asking().send(steer, prepared({ tokens: 3 }))
  expect([agent.state, agent.to('port/round').length]).toEqual(['preparing', 1])
  expect(agent.send(prepared()).to('budget/r1')).toMatchObject([{ inputTokens: input.tokens + 6 }])
  expect(agent.send(steer).state).toBe('preparing')
  agent.send({ type: 'run.pause' }, prepared())
  expect([agent.state, agent.send({ type: 'run.resume' }).state]).toEqual(['held', 'reserving'])
  const unheard = asking('later').send(granted, replied({ calls: [toolCall(0)] }), finished, steer, stopped)
  expect(unheard.emitted).toContainEqual({ type: 'agent.unsteered', agent: 'writer', run: 'r1', messages: 1 })
})

test('agent: one that is resumed while a round is prepared asks again; a prepared round is kept', () => {
  expect(asking().send(resumed).to('port/round')).toMatchObject([{ rounds: 0 }])
  const agent = asking().send(prepared({ tools: [] }), granted, resumed, granted)
  expect(agent.to('port/model')).toMatchObject([{ plan: { tools: [] } }])
})

test('agent: every transition was taken and every guard answered both ways', () => {
  expect(covered.missing()).toEqual([])
})
