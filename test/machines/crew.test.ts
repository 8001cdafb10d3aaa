/* eslint max-lines: "off" -- the last test counts what all the others covered of one machine */
import { describe, expect, test } from 'vitest'
import {
  type AgentData,
  type CrewData,
  crewMachine,
  defaultLoops,
  nothing,
  type Supervision,
} from '../../machines/index.js'
import {
  actorFailed,
  agentData,
  call,
  closed,
  data,
  decided,
  exhausted,
  finished,
  spent,
  task,
} from '../support/crew-messages.js'
import { cover, drive, type Driver, type Message } from '../support/machine-driver.js'

const covered = cover(crewMachine)

const start = (more: Partial<CrewData> = {}): Driver =>
  drive(covered.machine, { self: 'crew/main', data: { ...data, ...more } } as { self: string })
const running = (more: Partial<CrewData> = {}): Driver => start(more).send(task(1))
const resumed = { type: 'actor.resume', address: 'budget/crew' }
const ofType = (driver: Driver, type: string) =>
  driver.sent.filter(([, message]) => message.type === type).map(([, message]) => message)
const end = (driver: Driver) => driver.to('shard/runs').find(({ type }) => type === 'run.finished')
/** Of each run; the router outlives them. */
const started = (driver: Driver) =>
  ofType(driver, 'actor.start')
    .filter(({ kind }) => kind !== 'router')
    .map(({ name }) => name)

describe('crew: runs', () => {
  test('crew: a task starts a keeper with the limits and the lead with the conversation', () => {
    const crew = running()
    expect(crew.state).toBe('running.working')
    expect(crew.to('shard/runs')).toEqual([
      { type: 'run.queued', run: 'r1' },
      { type: 'run.started', run: 'r1', conversation: 'r1' },
    ])
    expect(crew.to('log/r1')).toEqual([{ type: 'log.append', values: [0] }])
    expect(crew.to('shard/actors')).toMatchObject([
      { kind: 'budget', name: 'r1', input: { self: 'budget/r1', limits: { tokens: 1_000 } } },
      { kind: 'router' },
      {
        kind: 'agent',
        name: 'writer-r1',
        input: { self: 'agent/writer-r1', keeper: 'budget/r1', account: 'run', length: 1, tokens: 17, counted: false },
      },
    ])
    expect(crew.emitted.map(({ type }) => type)).toEqual(['run.queued', 'run.started', 'agent.started'])
  })

  test('crew: the answer ends the run, with the bill', () => {
    const crew = running().send(finished('agent/writer-r1', { conversation: 'r1' }))
    expect(crew.state).toBe('closing.billing')
    expect(crew.to('budget/r1')).toEqual([{ type: 'budget.close', replyTo: 'crew/main' }])
    crew.send(closed)
    expect(crew.state).toBe('idle')
    expect(end(crew)).toEqual({
      type: 'run.finished',
      run: 'r1',
      spent,
      code: null,
      reason: '',
      finish: 'stop',
      rounds: 1,
      conversation: 'r1',
    })
  })

  test('crew: an end without an answer ends the run with its code', () => {
    const crew = running().send(finished('agent/writer-r1', { code: 'ROUND_LIMIT', reason: 'no answer' }), closed)
    expect(end(crew)).toMatchObject({ code: 'ROUND_LIMIT', reason: 'no answer', spent })
  })

  test('crew: runs wait in order and go one after the other', () => {
    const crew = running().send(task(2))
    expect(crew.state).toBe('running.working')
    expect(started(crew)).toEqual([])
    crew.send(task(3), finished('agent/writer-r1'), closed)
    expect(started(crew)).toEqual(['r2', 'writer-r2'])
    crew.send(finished('agent/writer-r2'), closed)
    expect(started(crew)).toEqual(['r3', 'writer-r3'])
    crew.send(finished('agent/writer-r3'), closed)
    expect(crew.state).toBe('idle')
  })

  test('crew: a task with several messages brings all of them', () => {
    const crew = start().send(task(1, { messages: 3 }))
    expect(crew.to('log/r1')).toEqual([{ type: 'log.append', values: [0, 1, 2] }])
    expect(ofType(crew, 'actor.start').at(-1)).toMatchObject({ input: { length: 3 } })
  })

  test('crew: a limit of tool calls makes its agents ask, the crew’s or their own', () => {
    const counted = (driver: Driver) => (ofType(driver, 'actor.start').at(-1)!['input'] as { counted: boolean }).counted
    expect(counted(running())).toBe(false)
    expect(counted(running({ limits: { toolCalls: 3 } }))).toBe(true)
    const agents = { ...data.agents, writer: agentData('writer', { limits: { toolCalls: 1 } }) }
    expect(counted(running({ agents }))).toBe(true)
  })
})

describe('crew: cancel', () => {
  test('crew: cancel ends the run that goes on, and everybody in it', () => {
    const crew = running().send(call('helper-5-0'), call('helper-5-1'), call('helper-5-2'), { type: 'crew.cancel' })
    expect(crew.state).toBe('closing.stopping')
    expect(ofType(crew, 'run.cancel')).toHaveLength(3)
    crew.send(
      finished('agent/writer-r1', { code: 'RUN_CANCELLED' }),
      finished('agent/helper-5-0', { code: 'RUN_CANCELLED' }),
    )
    expect(crew.state).toBe('closing.stopping')
    crew.send(finished('agent/helper-5-1', { code: 'RUN_CANCELLED' }))
    expect(crew.state).toBe('closing.billing')
    expect(started(crew)).toEqual([])
    crew.send(closed)
    expect(end(crew)).toMatchObject({ run: 'r1', code: 'RUN_CANCELLED' })
  })

  test('crew: a run is cancelled by its name, also while it waits', () => {
    const crew = running().send(task(2), task(3), { type: 'crew.cancel', run: 'r2' })
    expect(crew.state).toBe('running.working')
    expect(end(crew)).toMatchObject({ run: 'r2', code: 'RUN_CANCELLED', spent: nothing })
    crew.send({ type: 'crew.cancel', run: 'r1' }, finished('agent/writer-r1', { code: 'RUN_CANCELLED' }))
    crew.send({ type: 'crew.cancel', run: 'r3' })
    expect(end(crew)).toMatchObject({ run: 'r3', code: 'RUN_CANCELLED' })
    crew.send(closed)
    expect(crew.state).toBe('idle')
    expect(end(crew)).toMatchObject({ run: 'r1', code: 'RUN_CANCELLED' })
  })

  test('crew: cancel of nothing, or of a run that is not there, does nothing', () => {
    expect(start().send({ type: 'crew.cancel' }).taken).toBe(false)
    expect(running().send({ type: 'crew.cancel', run: 'r9' }).taken).toBe(false)
  })

  test('crew: the first end counts', () => {
    const crew = running().send({ type: 'crew.cancel' }, finished('agent/writer-r1'), closed)
    expect(end(crew)).toMatchObject({ code: 'RUN_CANCELLED' })
  })
})

describe('crew: delegates', () => {
  test('crew: at most so many work at once, the rest wait in order', () => {
    const crew = running().send(call('helper-5-0'))
    expect(started(crew)).toEqual(['helper-5-0'])
    expect(started(crew.send(call('helper-5-1')))).toEqual(['helper-5-1'])
    expect(started(crew.send(call('helper-5-2')))).toEqual([])
    expect(started(crew.send(call('helper-5-3')))).toEqual([])
    crew.send(finished('agent/helper-5-1'))
    expect(started(crew)).toEqual(['helper-5-2'])
    crew.send(finished('agent/helper-5-0'))
    expect(started(crew)).toEqual(['helper-5-3'])
  })

  test('crew: an answer goes into the caller’s conversation, the delegate’s own is dropped', () => {
    const crew = running().send(call('helper-5-0', { index: 4, callId: 'c4' }), finished('agent/helper-5-0'))
    expect(crew.to('log/r1')).toEqual([{ type: 'log.stage', index: 4, callId: 'c4', answerOf: 'helper-5-0' }])
    expect(crew.to('log/helper-5-0')).toEqual([{ type: 'log.drop' }])
    expect(crew.to('agent/writer-r1')).toMatchObject([{ type: 'delegate.finished', index: 4 }])
    const order = crew.sent.map(([address, { type }]) => `${address} ${type}`)
    expect(order.indexOf('log/r1 log.stage')).toBeLessThan(order.indexOf('log/helper-5-0 log.drop'))
  })

  test('crew: a delegate that ends with a code, or fails, is told to its caller', () => {
    const crew = running().send(call('helper-5-0'), call('helper-5-1', { index: 1 }))
    crew.send(finished('agent/helper-5-0', { code: 'ROUND_LIMIT', reason: 'no answer' }))
    expect(crew.to('log/r1')).toMatchObject([{ index: 0, text: 'helper failed: ROUND_LIMIT: no answer' }])
    crew.send(actorFailed('agent/helper-5-1'))
    expect(crew.to('log/r1')).toMatchObject([{ index: 1, text: 'helper failed: ACTOR_FAILED: boom' }])
    expect(crew.to('agent/writer-r1')).toMatchObject([{ type: 'delegate.finished', index: 1 }])
    expect(crew.state).toBe('running.working')
  })

  test('crew: a delegate that waits for one of its own takes no place', () => {
    const crew = running({ delegates: 1 }).send(call('helper-5-0'))
    expect(started(crew.send(call('helper-6-0', { caller: 'agent/helper-5-0' })))).toEqual(['helper-6-0'])
    expect(started(crew.send(call('helper-7-0', { caller: 'agent/helper-6-0' })))).toEqual(['helper-7-0'])
    expect(started(crew.send(call('helper-5-1', { index: 1 })))).toEqual([])
    crew.send(finished('agent/helper-7-0'), finished('agent/helper-6-0'))
    expect(started(crew)).toEqual([])
    expect(started(crew.send(finished('agent/helper-5-0')))).toEqual(['helper-5-1'])
  })

  test('crew: a caller that gives up takes its delegates along, running and waiting, with their conversations', () => {
    const by = { caller: 'agent/helper-5-0' }
    const crew = running({ delegates: 1 }).send(call('helper-5-0'), call('helper-5-1', by), call('helper-5-2', by))
    crew.send({ type: 'delegate.cancel', caller: 'agent/helper-5-0' })
    expect(crew.to('agent/helper-5-1')).toEqual([{ type: 'run.cancel' }])
    expect(crew.to('log/helper-5-2')).toEqual([{ type: 'log.drop' }])
    crew.send(finished('agent/helper-5-1', { code: 'RUN_CANCELLED' }), finished('agent/helper-5-0'))
    expect(started(crew)).toEqual([])
  })

  test('crew: an agent with a budget of its own has an account, opened before it and given back behind the last', () => {
    const crew = running().send(call('saver-5-0', { agent: 'saver' }))
    expect(crew.sent.map(([address, { type }]) => `${address} ${type}`)).toEqual([
      'budget/r1 budget.open',
      'shard/actors actor.start',
    ])
    expect(crew.to('budget/r1')).toEqual([
      { type: 'budget.open', account: 'run/saver', parent: 'run', limits: { tokens: 50 } },
    ])
    crew.send(call('saver-5-1', { agent: 'saver', index: 1 }), finished('agent/saver-5-0'))
    expect(crew.to('budget/r1')).toEqual([])
    crew.send(finished('agent/saver-5-1'))
    expect(crew.to('budget/r1')).toEqual([{ type: 'budget.refund', account: 'run/saver' }])
  })

  test('crew: somebody unknown says nothing that counts', () => {
    for (const message of [finished('agent/ghost'), actorFailed('agent/ghost'), actorFailed('tool/1-1')])
      expect(running().send(message).taken).toBe(false)
  })
})

describe('crew: budget', () => {
  test('crew: nobody can pay any more: the run ends', () => {
    const crew = running().send(call('helper-5-0'), exhausted('agent/helper-5-0', 'run'))
    expect(crew.state).toBe('closing.stopping')
    expect(ofType(crew, 'run.cancel')).toHaveLength(2)
    crew.send(finished('agent/helper-5-0', { code: 'RUN_CANCELLED' }), exhausted('agent/writer-r1', 'run'))
    crew.send(finished('agent/writer-r1', { code: 'RUN_CANCELLED' }), closed)
    expect(end(crew)).toMatchObject({ code: 'BUDGET_EXHAUSTED', reason: expect.stringContaining('tokens') })
  })

  test('crew: a delegate’s own account ran dry: only the delegation fails', () => {
    const crew = running().send(call('saver-5-0', { agent: 'saver' }), exhausted('agent/saver-5-0', 'run/saver'))
    const why = { code: 'BUDGET_EXHAUSTED', reason: 'the budget of tokens is spent (account run/saver)' }
    expect(crew.sent).toEqual([['agent/saver-5-0', { type: 'run.cancel', ...why }]])
    expect(crew.state).toBe('running.working')
    crew.send(finished('agent/saver-5-0', why))
    expect(crew.to('agent/writer-r1')).toMatchObject([{ type: 'delegate.finished', ...why }])
  })

  test('crew: one of a race that cannot pay leaves the run to the others, one that delegates for it does not', () => {
    const racing = () => running().send(call('helper-5-0', { race: true }), call('helper-5-1', { race: true }))
    for (const account of ['run', '@team']) {
      const crew = racing().send(exhausted('agent/helper-5-0', account))
      expect(crew.to('agent/helper-5-0')).toMatchObject([{ type: 'run.cancel', code: 'BUDGET_EXHAUSTED' }])
      expect(crew.state).toBe('running.working')
    }
    const below = racing().send(call('helper-6-0', { caller: 'agent/helper-5-0' }))
    expect(below.send(exhausted('agent/helper-6-0', 'run')).state).toBe('closing.stopping')
  })

  test('crew: the lead’s own account ran dry: the run ends', () => {
    const agents = { ...data.agents, writer: agentData('writer', { limits: { tokens: 5 } }) }
    const crew = running({ agents }).send(exhausted('agent/writer-r1', 'run/writer'))
    crew.send(finished('agent/writer-r1', { code: 'RUN_CANCELLED' }), closed)
    expect(end(crew)).toMatchObject({ code: 'BUDGET_EXHAUSTED' })
  })

  describe('crew: a person is asked for more', () => {
    const asking = (more: Partial<CrewData> = {}) => running({ raiseMs: 900, ...more })
    const saver = { ...data.agents, saver: agentData('saver', { limits: { tokens: 50 }, raiseMs: 700 }) }
    const stopped = (name: string) => ({ type: 'actor.stop', address: `escalation/${name}` })

    test('crew: who cannot pay waits for an escalation, one a budget', () => {
      const crew = asking().send(call('helper-5-0'), exhausted('agent/helper-5-0', 'run'))
      expect(crew.to('shard/actors')).toMatchObject([
        {
          ...{ type: 'actor.start', kind: 'escalation', name: 'helper-5-0' },
          input: { agent: 'helper', account: 'run', dimension: 'tokens', limit: 40, waitMs: 900, run: 'r1' },
        },
      ])
      expect(crew.send(exhausted('agent/writer-r1', 'run')).sent).toEqual([])
      expect(crew.state).toBe('running.working')
    })

    test('crew: with more, the keeper is told, and all who wait ask again', () => {
      const crew = asking().send(call('helper-5-0'), exhausted('agent/helper-5-0', 'run'))
      crew.send(exhausted('agent/writer-r1', 'run'), decided('run', true, { limits: { tokens: 5_000 } }))
      expect(crew.sent).toEqual([
        ['budget/r1', { type: 'budget.raise', account: 'run', limits: { tokens: 5_000 }, mode: 'to' }],
        ['agent/helper-5-0', { type: 'budget.raised' }],
        ['agent/writer-r1', { type: 'budget.raised' }],
      ])
      expect(crew.emitted).toMatchObject([{ type: 'budget.raised', account: 'run', mode: 'to' }])
      // It is asked anew when that is spent, too.
      expect(crew.send(exhausted('agent/writer-r1', 'run')).to('shard/actors')).toMatchObject([{ kind: 'escalation' }])
    })

    test('crew: without a figure it gets as much as its definition says, once more', () => {
      const crew = asking().send(exhausted('agent/writer-r1', 'run'), decided('run', true))
      const raise = { type: 'budget.raise', account: 'run', limits: { tokens: 1_000 }, mode: 'by' }
      expect(crew.to('budget/r1')).toEqual([raise])
    })

    test('crew: no more for the run ends it, no more for a delegate’s own budget only the delegation', () => {
      const crew = asking().send(exhausted('agent/writer-r1', 'run'), decided('run', false))
      crew.send(finished('agent/writer-r1', { code: 'RUN_CANCELLED' }), closed)
      expect(end(crew)).toMatchObject({ code: 'BUDGET_EXHAUSTED', reason: expect.stringContaining('ada gave no more') })
      const other = running({ agents: saver }).send(call('saver-5-0', { agent: 'saver' }))
      other.send(exhausted('agent/saver-5-0', 'run/saver'))
      expect(other.to('shard/actors')).toMatchObject([
        { kind: 'escalation', input: { waitMs: 700, account: 'run/saver' } },
      ])
      other.send(decided('run/saver', false))
      expect(other.to('agent/saver-5-0')).toMatchObject([
        { type: 'run.cancel', code: 'BUDGET_EXHAUSTED', reason: expect.stringContaining('ada gave no more') },
      ])
      expect(other.state).toBe('running.working')
    })

    test('crew: no more for the run ends only who cannot pay, as long as others of its race may answer', () => {
      const crew = asking().send(call('helper-5-0', { race: true }), call('helper-5-1', { race: true }))
      crew.send(exhausted('agent/helper-5-0', 'run'), decided('run', false))
      expect(crew.to('agent/helper-5-0')).toMatchObject([{ type: 'run.cancel', code: 'BUDGET_EXHAUSTED' }])
      expect(crew.state).toBe('running.working')
    })

    test('crew: no more for the lead’s own budget ends the run', () => {
      const agents = { ...data.agents, writer: agentData('writer', { limits: { tokens: 5 }, raiseMs: 700 }) }
      const crew = running({ agents }).send(exhausted('agent/writer-r1', 'run/writer'), decided('run/writer', false))
      expect(crew.state).toBe('closing.stopping')
    })

    test('crew: nobody is asked any more when nobody waits any more, or the run ends', () => {
      const crew = asking().send(call('helper-5-0'), exhausted('agent/helper-5-0', 'run'))
      crew.send(finished('agent/helper-5-0', { code: 'RUN_CANCELLED' }))
      expect(crew.to('shard/actors')).toEqual([stopped('helper-5-0')])
      crew.send(exhausted('agent/writer-r1', 'run'), { type: 'crew.cancel' })
      expect(crew.to('shard/actors')).toEqual([stopped('writer-r1')])
      expect(crew.send(decided('run', true)).sent).toEqual([])
    })

    test('crew: an escalation that fails ends the run', () => {
      const crew = asking().send(exhausted('agent/writer-r1', 'run'), actorFailed('escalation/writer-r1'))
      expect(crew.state).toBe('closing.stopping')
    })

    test('crew: another definition lets who waits ask again', () => {
      const crew = asking().send(exhausted('agent/writer-r1', 'run'))
      crew.send({ type: 'crew.redefined', crew: { ...data, limits: { tokens: 9_000 } } })
      expect(crew.sent).toMatchObject([
        ['agent/writer-r1', { type: 'agent.redefined' }],
        ['budget/r1', { type: 'budget.raise', limits: { tokens: 9_000 }, mode: 'set' }],
        ['agent/writer-r1', { type: 'budget.raised' }],
        ['shard/actors', stopped('writer-r1')],
      ])
    })
  })

  describe('crew: a budget is raised by command', () => {
    const raise = (more: Record<string, unknown> = {}): Message => ({
      ...{ type: 'crew.raise', limits: { tokens: 2_000 } },
      ...more,
    })

    test('crew: of the run at work, and who waits asks again', () => {
      const crew = running({ raiseMs: 900 }).send(exhausted('agent/writer-r1', 'run'), raise())
      expect(crew.sent).toEqual([
        ['budget/r1', { type: 'budget.raise', account: 'run', limits: { tokens: 2_000 }, mode: 'to' }],
        ['agent/writer-r1', { type: 'budget.raised' }],
        ['shard/actors', { type: 'actor.stop', address: 'escalation/writer-r1' }],
      ])
    })

    test('crew: of an agent with a budget of its own, whether or not that is open yet', () => {
      const crew = running().send(raise({ agent: 'saver' }))
      expect(crew.to('budget/r1')).toEqual([
        { type: 'budget.open', account: 'run/saver', parent: 'run', limits: { tokens: 50 } },
        { type: 'budget.raise', account: 'run/saver', limits: { tokens: 2_000 }, mode: 'to' },
      ])
      expect(crew.send(raise({ agent: 'helper' })).emitted).toEqual([{ type: 'raise.refused', agent: 'helper' }])
      expect(crew.sent).toEqual([])
    })

    test('crew: without a run only of a budget that counts over runs, and never while one ends', () => {
      expect(start().send(raise()).emitted).toEqual([{ type: 'raise.refused', agent: '' }])
      const crew = running({ per: 'crew' }).send(finished('agent/writer-r1'))
      expect(crew.send(raise()).emitted).toEqual([{ type: 'raise.refused', agent: '' }])
      expect(crew.send(closed, raise()).to('budget/crew')).toMatchObject([{ type: 'budget.raise', mode: 'to' }])
    })
  })

  test('crew: the wall budget ends the run, and goes with it', () => {
    const crew = running({ wallMs: 5_000 })
    expect([...crew.timers]).toEqual([['active:wall', { delayMs: 5_000, message: { type: 'crew.wall' } }]])
    crew.fire()
    crew.send(finished('agent/writer-r1', { code: 'RUN_CANCELLED' }), closed)
    expect(end(crew)).toMatchObject({ code: 'BUDGET_EXHAUSTED', reason: 'the budget of wallMs is spent' })
    const answered = running({ wallMs: 5_000 }).send(finished('agent/writer-r1'))
    expect(answered.timers.size).toBe(0)
    expect(running().timers.size).toBe(0)
  })

  test('crew: each run has its time, set anew', () => {
    const crew = running({ wallMs: 5_000 }).send(task(2), finished('agent/writer-r1'), closed)
    expect(started(crew)).toEqual(['r2', 'writer-r2'])
    expect([...crew.timers.keys()]).toEqual(['active:wall'])
  })

  test('crew: a keeper that fails ends the run without a bill, and the next run has a new one', () => {
    const crew = running().send(task(2), actorFailed('budget/r1'))
    expect(crew.state).toBe('closing.stopping')
    crew.send(finished('agent/writer-r1', { code: 'RUN_CANCELLED' }))
    expect(end(crew)).toMatchObject({ run: 'r1', code: 'ACTOR_FAILED', spent: nothing })
    expect(started(crew)).toEqual(['r2', 'writer-r2'])
  })

  test('crew: a keeper of an earlier run that fails is nothing to the run that goes on', () => {
    const crew = running().send(task(2), finished('agent/writer-r1'), closed, actorFailed('budget/r1'))
    expect(crew.state).toBe('running.working')
    expect(crew.sent).toEqual([])
  })

  test('crew: a keeper of the crew that fails between two runs goes on with what it has counted', () => {
    const crew = running({ per: 'crew' }).send(finished('agent/writer-r1'), closed, actorFailed('budget/other'))
    expect(crew.send(actorFailed('budget/crew')).to('shard/actors')).toEqual([resumed])
    crew.send(task(2))
    expect(started(crew)).toEqual(['writer-r2'])
  })

  test('crew: a keeper that fails over the bill, or while others stop, holds nobody up', () => {
    const billing = running().send(finished('agent/writer-r1'), actorFailed('budget/r1'))
    expect(billing.state).toBe('idle')
    expect(end(billing)).toMatchObject({ code: null, spent: nothing })
    const stopping = running().send({ type: 'crew.cancel' }, actorFailed('budget/r1'))
    expect(stopping.state).toBe('closing.stopping')
    stopping.send(finished('agent/writer-r1', { code: 'RUN_CANCELLED' }))
    expect(stopping.state).toBe('idle')
    expect(end(stopping)).toMatchObject({ code: 'RUN_CANCELLED' })
  })

  test('crew: a budget of the crew has one keeper; a run is billed what it added', () => {
    const crew = running({ per: 'crew' })
    expect(started(crew)).toEqual(['crew', 'writer-r1'])
    crew.send(finished('agent/writer-r1'))
    expect(crew.to('budget/crew')).toEqual([{ type: 'budget.report', replyTo: 'crew/main' }])
    crew.send(closed)
    expect(end(crew)).toMatchObject({ spent })
    crew.send(task(2))
    expect(started(crew)).toEqual(['writer-r2'])
    crew.send(finished('agent/writer-r2'), {
      ...closed,
      spent: { nanoUsd: 10, tokens: 31, modelCalls: 3, toolCalls: 1 },
    })
    expect(end(crew)).toMatchObject({ spent: { nanoUsd: 3, tokens: 1, modelCalls: 1, toolCalls: 0 } })
  })

  test('crew: a keeper of the crew that fails ends the run, and goes on with what it has counted', () => {
    const crew = running({ per: 'crew' }).send(actorFailed('budget/crew'))
    expect(crew.to('shard/actors')).toEqual([resumed])
    crew.send(finished('agent/writer-r1', { code: 'RUN_CANCELLED' }))
    expect(crew.to('budget/crew')).toEqual([{ type: 'budget.report', replyTo: 'crew/main' }])
    expect(end(crew.send(closed))).toMatchObject({ code: 'ACTOR_FAILED', spent })
    expect(started(crew.send(task(2)))).toEqual(['writer-r2'])
    const stopping = running({ per: 'crew' }).send({ type: 'crew.cancel' }, actorFailed('budget/crew'))
    expect(stopping.to('shard/actors')).toEqual([resumed])
    expect(stopping.state).toBe('closing.stopping')
  })

  test('crew: a keeper of the crew that fails over the bill holds nobody up; the next bill has it', () => {
    const crew = running({ per: 'crew' }).send(finished('agent/writer-r1'), actorFailed('budget/crew'))
    expect(crew.to('shard/actors')).toEqual([resumed])
    expect(end(crew)).toMatchObject({ code: null, spent: nothing })
    crew.send(task(2), finished('agent/writer-r2'), closed)
    expect(end(crew)).toMatchObject({ spent })
  })

  test('crew: one that failed and begins anew asks its keeper what was spent before', () => {
    const input = { self: 'crew/main', data: { ...data, per: 'crew' }, keeper: 'crew' } as { self: string }
    const crew = drive(covered.machine, input)
    expect(crew.to('budget/crew')).toEqual([{ type: 'budget.report', replyTo: 'crew/main' }])
    crew.send(closed, task(2), finished('agent/writer-r2'), { ...closed, spent: { ...spent, tokens: 40 } })
    expect(end(crew)).toMatchObject({ spent: { ...nothing, tokens: 10 } })
  })
})

describe('crew: failures', () => {
  test('crew: a lead that fails ends the run with its code', () => {
    const crew = running().send(call('helper-5-0'), actorFailed('agent/writer-r1'))
    expect(ofType(crew, 'run.cancel')).toHaveLength(1)
    crew.send(actorFailed('agent/helper-5-0'), closed)
    expect(end(crew)).toMatchObject({ code: 'ACTOR_FAILED', reason: 'agent/writer-r1: boom' })
  })

  test('crew: a delegate that fails takes its own delegates along', () => {
    const crew = running().send(call('helper-5-0'), call('helper-6-0', { caller: 'agent/helper-5-0' }))
    crew.send(actorFailed('agent/helper-5-0'))
    expect(crew.to('agent/helper-6-0')).toEqual([{ type: 'run.cancel' }])
    crew.send(finished('agent/helper-6-0', { code: 'RUN_CANCELLED' }))
    // Its caller and the caller's conversation are gone: nothing may bring the conversation back.
    expect(crew.to('log/helper-5-0').filter(({ type }) => type === 'log.stage')).toEqual([])
  })

  test('crew: what comes while a run ends is too late and does no harm', () => {
    const crew = running().send({ type: 'crew.cancel' }, call('helper-5-0'), {
      type: 'delegate.cancel',
      caller: 'agent/writer-r1',
    })
    expect(started(crew)).toEqual([])
    crew.send(finished('agent/ghost'), actorFailed('agent/ghost'), closed)
    expect(crew.state).toBe('closing.stopping')
  })
})

describe('crew: pause and definition', () => {
  test('crew: pause and resume reach everybody at work, and whoever starts later', () => {
    const crew = running().send(call('helper-5-0'), { type: 'crew.pause' })
    expect(ofType(crew, 'run.pause')).toHaveLength(2)
    expect(crew.emitted).toEqual([{ type: 'run.paused', run: 'r1' }])
    crew.send(call('helper-5-1'))
    expect(ofType(crew, 'actor.start')).toMatchObject([{ input: { paused: true } }])
    crew.send({ type: 'crew.resume' })
    expect(ofType(crew, 'run.resume')).toHaveLength(3)
    expect(crew.emitted).toEqual([{ type: 'run.resumed', run: 'r1' }])
  })

  test('crew: a pause between runs holds the next one', () => {
    const crew = start().send({ type: 'crew.pause' }, task(1))
    expect(ofType(crew, 'actor.start').at(-1)).toMatchObject({ input: { paused: true } })
  })

  test('crew: a new definition reaches agents and keeper; lead and limits of the next run are its own', () => {
    const other: CrewData = { ...data, lead: 'helper', limits: { tokens: 5 } }
    const crew = running().send(task(2), { type: 'crew.redefined', crew: other })
    expect(crew.to('agent/writer-r1')).toEqual([{ type: 'agent.redefined', data: other.agents['writer'] }])
    expect(crew.to('budget/r1')).toEqual([{ type: 'budget.raise', account: 'run', limits: { tokens: 5 }, mode: 'set' }])
    crew.send(finished('agent/writer-r1'), closed)
    expect(started(crew)).toEqual(['r2', 'helper-r2'])
  })

  test('crew: an agent that the new definition does not have works on with the old one', () => {
    const { writer: _, ...agents } = data.agents
    const crew = running().send({ type: 'crew.redefined', crew: { ...data, lead: 'helper', agents } })
    expect(ofType(crew, 'agent.redefined')).toEqual([])
    crew.send(finished('agent/writer-r1'), closed)
    expect(end(crew)).toMatchObject({ code: null })
  })

  test.each([
    ['run', 'crew'],
    ['crew', 'run'],
  ] as const)(
    'crew: a budget per %s that becomes one per %s: the run ends with its own keeper, the next has a new one',
    (per, then) => {
      const crew = running({ per }).send(task(2), { type: 'crew.redefined', crew: { ...data, per: then } })
      const keeper = per === 'run' ? 'budget/r1' : 'budget/crew'
      crew.send(finished('agent/writer-r1'))
      expect(crew.to(keeper)).toHaveLength(1)
      crew.send(closed)
      expect(started(crew)).toEqual([then === 'run' ? 'r2' : 'crew', 'writer-r2'])
      const [, lead] = ofType(crew, 'actor.start')
      expect(lead).toMatchObject({ input: { keeper: then === 'run' ? 'budget/r2' : 'budget/crew' } })
      expect(end(crew)).toMatchObject({ spent })
    },
  )
})

describe('crew: kept conversations', () => {
  const keeping = { agents: { ...data.agents, writer: agentData('writer', { keep: true }) } }

  test('crew: the next run goes on in the conversation of the last', () => {
    const crew = running(keeping).send(
      finished('agent/writer-r1', { conversation: 'r1', length: 3, tokens: 40 }),
      closed,
    )
    crew.send(task(2))
    expect(crew.to('shard/runs')).toContainEqual({ type: 'run.started', run: 'r2', conversation: 'r1' })
    expect(crew.to('log/r1')).toEqual([{ type: 'log.append', all: 'r2' }])
    expect(ofType(crew, 'actor.start')).toMatchObject([
      { kind: 'budget' },
      { input: { conversation: 'r1', length: 4, tokens: 40 + 12 + 5 } },
    ])
  })

  test('crew: a lead that fails, also while its run ends, leaves no conversation to go on with', () => {
    for (const endings of [[], [{ type: 'crew.cancel' }]]) {
      const crew = running(keeping).send(finished('agent/writer-r1', { conversation: 'r1' }), closed, task(2))
      crew.send(...endings, actorFailed('agent/writer-r2'), closed, task(3))
      expect(crew.to('shard/runs')).toContainEqual({ type: 'run.started', run: 'r3', conversation: 'r3' })
    }
  })

  test('crew: a cancelled run leaves its conversation to go on with', () => {
    const crew = running(keeping).send({ type: 'crew.cancel' })
    crew.send(finished('agent/writer-r1', { conversation: 'r1', code: 'RUN_CANCELLED' }), closed, task(2))
    expect(crew.to('shard/runs')).toContainEqual({ type: 'run.started', run: 'r2', conversation: 'r1' })
  })

  test('crew: without `continue` each run has its own', () => {
    const crew = running().send(finished('agent/writer-r1', { conversation: 'r1' }), closed, task(2))
    expect(crew.to('shard/runs')).toContainEqual({ type: 'run.started', run: 'r2', conversation: 'r2' })
    expect(crew.to('log/r1')).toEqual([])
  })
})

describe('crew: messages of its user', () => {
  const steer = (key: string, more: Record<string, unknown> = {}): Message => ({
    type: 'crew.steer',
    tokens: 6,
    key,
    ...more,
  })
  const heard = (crew: Driver) => ofType(crew, 'run.steer').length
  const refused = { type: 'steer.refused', run: 'r1', agent: '' }
  const helpers = (): Driver => running().send(call('helper-5-0'), call('helper-5-1', { index: 1 }))

  test('crew: a message goes to the lead, also when its run is named', () => {
    const crew = running().send(steer('a'))
    expect(crew.sent).toEqual([['agent/writer-r1', { type: 'run.steer', tokens: 6 }]])
    crew.send(steer('b', { run: 'r1' }))
    expect(heard(crew)).toBe(1)
  })

  test('crew: one for another agent goes to each of its live tasks, or to the one of that name', () => {
    const crew = helpers().send(steer('a', { agent: 'helper' }))
    expect(crew.sent.map(([to]) => to)).toEqual(['agent/helper-5-0', 'agent/helper-5-1'])
    crew.send(steer('b', { agent: 'helper-5-1' }))
    expect(crew.sent.map(([to]) => to)).toEqual(['agent/helper-5-1'])
  })

  test('crew: nobody at work is a refusal: no run, another run, an agent that does not work, a run that ends', () => {
    const crew = start().send(steer('a'))
    expect(crew.emitted).toEqual([{ ...refused, run: '' }])
    crew.send(task(1), steer('b', { run: 'r9' }))
    expect(crew.emitted).toEqual([{ ...refused, run: 'r9' }])
    crew.send(steer('c', { agent: 'helper' }))
    expect(crew.emitted).toEqual([{ ...refused, agent: 'helper' }])
    crew.send({ type: 'crew.cancel' }, steer('d'))
    expect(crew.emitted).toEqual([refused])
    expect(heard(crew)).toBe(0)
  })

  test('crew: the same key is passed on once, also when its run is over by now', () => {
    const crew = running().send(steer('a'), steer('a'))
    expect([crew.taken, heard(crew), crew.emitted]).toEqual([true, 0, []])
    crew.send(finished('agent/writer-r1', { conversation: 'r1' }), closed, steer('a'))
    expect(crew.emitted).toEqual([])
    crew.send(task(2), ...Array.from({ length: 64 }, (_, index) => steer(`k${index}`)))
    crew.send(steer('k0'))
    expect(heard(crew)).toBe(0)
    crew.send(steer('a'))
    expect(heard(crew)).toBe(1)
  })

  test.each(['running', 'closing'])('crew: what an agent that failed did not hear goes with it, %s', (where) => {
    const crew = helpers().send(...(where === 'closing' ? [{ type: 'crew.cancel' }] : []))
    crew.send(actorFailed('agent/helper-5-0'))
    expect(crew.to('log/helper-5-0+user')).toEqual([{ type: 'log.drop' }])
    crew.send(actorFailed('agent/writer-r1'))
    expect(crew.to('log/r1+user')).toEqual([{ type: 'log.drop' }])
  })
})

describe('crew: router', () => {
  test('crew: its first run starts a router, which all its agents know and which outlives the run', () => {
    const crew = running()
    const routers = () => ofType(crew, 'actor.start').filter(({ kind }) => kind === 'router')
    expect(routers()).toEqual([{ type: 'actor.start', kind: 'router', name: 'main', input: { self: 'router/main' } }])
    expect(ofType(crew, 'actor.start').at(-1)).toMatchObject({ kind: 'agent', input: { router: 'router/main' } })
    crew.send(finished('agent/writer-r1'), closed, task(2))
    expect(routers()).toEqual([])
    expect(ofType(crew, 'actor.start').at(-1)).toMatchObject({ kind: 'agent', input: { router: 'router/main' } })
  })

  test('crew: a router that fails ends the run, and the next run has another one', () => {
    for (const before of [[], [{ type: 'crew.cancel' }], [finished('agent/writer-r1'), closed]]) {
      const crew = running().send(...before, actorFailed('router/main'))
      if (before.length === 0) expect(crew.state).toBe('closing.stopping')
      if (crew.state !== 'idle') crew.send(finished('agent/writer-r1'), closed)
      if (before.length === 0) expect(end(crew)).toMatchObject({ code: 'ACTOR_FAILED' })
      crew.send(task(2))
      expect(ofType(crew, 'actor.start').map(({ kind }) => kind)).toContain('router')
    }
  })
})

describe('crew: loops', () => {
  const loops = { agents: { ...data.agents, writer: agentData('writer', { loops: defaultLoops }) } }

  test('crew: each run has a detector of its own, which its agents know, and which goes with it', () => {
    const crew = running(loops)
    expect(crew.to('shard/actors')).toMatchObject([
      { kind: 'budget' },
      { kind: 'loop', name: 'r1', input: { self: 'loop/r1' } },
      { kind: 'router' },
      { kind: 'agent', input: { detector: 'loop/r1', trail: ['writer'] } },
    ])
    crew.send(call('helper-5-0', { trail: ['writer'] }))
    const [helper] = ofType(crew, 'actor.start')
    expect(helper).toMatchObject({ input: { detector: 'loop/r1', trail: ['writer', 'helper'] } })
    crew.send(finished('agent/writer-r1'), finished('agent/helper-5-0'), closed)
    expect(ofType(crew, 'actor.stop')).toEqual([{ type: 'actor.stop', address: 'loop/r1' }])
    expect(started(crew.send(task(2)))).toEqual(['r2', 'r2', 'writer-r2'])
  })

  test('crew: who delegates is told what came back', () => {
    const crew = running(loops).send(call('helper-5-0'), call('helper-5-1', { index: 1 }))
    crew.send(finished('agent/helper-5-0', { conversation: 'helper-5-0', result: 'x' }))
    expect(ofType(crew, 'delegate.finished')).toMatchObject([{ result: 'x' }])
    crew.send(finished('agent/helper-5-1', { conversation: 'helper-5-1', code: 'ROUND_LIMIT' }))
    expect(ofType(crew, 'delegate.finished')).toMatchObject([{ result: 'ROUND_LIMIT' }])
  })

  test('crew: without a detector nobody answers: its failure ends the run', () => {
    const crew = running(loops).send(actorFailed('loop/r1'))
    expect(crew.state).toBe('closing.stopping')
    crew.send(finished('agent/writer-r1', { code: 'RUN_CANCELLED' }), closed)
    expect(end(crew)).toMatchObject({ code: 'ACTOR_FAILED' })
    expect(ofType(crew, 'actor.stop')).toEqual([])
    const late = running(loops).send({ type: 'crew.cancel' }, actorFailed('loop/r1'))
    expect(end(late.send(finished('agent/writer-r1'), closed))).toMatchObject({ code: 'RUN_CANCELLED' })
  })
})

describe('crew: tasks of other crews', () => {
  const given = (sequence: number, more: Record<string, unknown> = {}): Message => ({
    ...{ type: 'delegate.task', agent: 'helper', depth: 3, chain: [], tokens: 12, messages: 1, refused: '' },
    ...{ sender: `a/envoy/helper-${sequence}-0`, shard: 'm', sequence },
    ...more,
  })
  const away = (name: string, agent: string): Message => call(name, { agent })
  const reasonOf = (driver: Driver) => end(driver)?.['reason']

  test('crew: a task by mail is a run with that agent as its lead, as deep as it comes', () => {
    const crew = start().send(given(1))
    expect(crew.to('shard/actors')).toMatchObject([
      { kind: 'budget' },
      { kind: 'router' },
      { kind: 'agent', name: 'helper-r1', input: { depth: 3, run: 'r1' } },
    ])
    crew.send(finished('agent/helper-r1'), closed)
    expect(end(crew)).toMatchObject({ run: 'r1', code: null, conversation: 'helper-r1' })
  })

  test('crew: what cannot be asked ends before it begins', () => {
    expect(reasonOf(start().send(given(1, { agent: 'nobody' })))).toBe('the crew m has no agent nobody')
    expect(reasonOf(start().send(given(1, { refused: 'threw' })))).toBe('threw')
    expect(reasonOf(start().send(given(1, { chain: ['m'] })))).toBe('the crew m waits for it itself')
    const crew = running()
    for (let sequence = 2; sequence < 102; sequence += 1) crew.send(given(sequence))
    expect(end(crew.send(given(102)))).toMatchObject({ run: 'r102', code: 'RUNS_FULL' })
  })

  test('crew: a delegate of another crew is an envoy, and takes a place like any other', () => {
    const crew = running({ delegates: 1 }).send(away('x-5-0', 'z/agent/x'))
    expect(crew.to('shard/actors')).toEqual([
      {
        ...{ type: 'actor.start', kind: 'envoy', name: 'x-5-0' },
        input: {
          ...{ self: 'envoy/x-5-0', crew: 'crew/main', agent: 'z/agent/x', conversation: 'x-5-0', length: 2, depth: 1 },
          ...{ chain: [], answerMs: 5_000 },
        },
      },
    ])
    expect(started(crew.send(away('x-5-1', 'z/agent/x')))).toEqual([])
    crew.send(finished('envoy/x-5-0', { conversation: 'x-5-0' }))
    expect(started(crew)).toEqual(['x-5-1'])
    expect(crew.to('log/r1')).toMatchObject([{ type: 'log.stage', answerOf: 'x-5-0' }])
  })

  test('crew: who waits for it waits on for what it asks of others', () => {
    const crew = start().send(given(1, { chain: ['q'] }))
    crew.send(call('x-5-0', { agent: 'z/agent/x', caller: 'agent/helper-r1' }))
    expect(crew.to('shard/actors')).toMatchObject([{ input: { chain: ['q', 'a'] } }])
  })

  test('crew: a task of a crew that it waits for itself is refused by the first by name of two, by any of more', () => {
    const waits = (crew: string) => running().send(away('x-5-0', `${crew}/agent/x`))
    expect(reasonOf(waits('z').send(given(2, { sender: 'z/envoy/y' })))).toContain('the crew m waits for z')
    expect(reasonOf(waits('a').send(given(2)))).toBeUndefined()
    expect(reasonOf(waits('a').send(given(2, { chain: ['a'], sender: 'q/envoy/y' })))).toContain('m waits for a, q')
    expect(reasonOf(waits('k').send(given(2)))).toBeUndefined()
    // The other way round: the task waits already when the run asks.
    const later = running().send(given(2, { sender: 'z/envoy/y' }), away('x-5-0', 'z/agent/x'))
    expect(end(later)).toMatchObject({ run: 'r2', code: 'DELEGATION_FAILED' })
  })

  test('crew: a task that nobody waits for any more ends, at work or waiting', () => {
    const revoke = (sequence: number): Message => ({ type: 'delegate.revoke', sender: `a/envoy/helper-${sequence}-0` })
    const crew = start().send(given(1), given(2), given(3), revoke(2))
    expect(end(crew)).toMatchObject({ run: 'r2', code: 'RUN_CANCELLED' })
    crew.send(revoke(1))
    expect(crew.state).toBe('closing.stopping')
    expect(end(crew.send(revoke(3)))).toMatchObject({ run: 'r3', code: 'RUN_CANCELLED' })
    expect(end(crew.send(finished('agent/helper-r1'), closed))).toMatchObject({ run: 'r1', code: 'RUN_CANCELLED' })
    expect(crew.send(revoke(7)).taken).toBe(false)
  })
})

describe('crew: hand-overs', () => {
  const next = (agent: string, more: Record<string, unknown> = {}) => ({
    handover: { agent, name: `${agent}-9-0`, view: { hidden: [], system: null }, trail: ['writer'], ...more },
  })
  const begun = (crew: Driver) => ofType(crew, 'actor.start').at(-1)

  test('crew: another agent goes on in the place of the lead, and its answer is the run’s', () => {
    const crew = running().send(finished('agent/writer-r1', { conversation: 'r1', rounds: 2, ...next('helper') }))
    expect(crew.state).toBe('running.working')
    expect(begun(crew)).toMatchObject({
      ...{ kind: 'agent', name: 'helper-9-0' },
      input: { conversation: 'r1', account: 'run', length: 3, tokens: 45, depth: 0, trail: ['writer', 'helper'] },
    })
    expect(crew.emitted.map(({ type, agent }) => [type, agent])).toEqual([
      ['agent.finished', 'writer'],
      ['agent.started', 'helper'],
    ])
    crew.send(finished('agent/helper-9-0', { conversation: 'r1', rounds: 3 }), closed)
    expect(end(crew)).toMatchObject({ code: null, conversation: 'r1', rounds: 5 })
  })

  test('crew: another agent goes on in the place of a delegate, from its own budget, and answers whoever called', () => {
    const crew = running().send(call('helper-5-0'))
    crew.send(finished('agent/helper-5-0', next('saver')))
    expect(crew.sent.map(([target, { type }]) => [target, type])).toEqual([
      ['budget/r1', 'budget.open'],
      ['shard/actors', 'actor.start'],
    ])
    expect(begun(crew)).toMatchObject({ input: { conversation: 'helper-5-0', account: 'run/saver' } })
    crew.send(finished('agent/saver-9-0', { conversation: 'helper-5-0' }))
    expect(crew.to('agent/writer-r1')).toMatchObject([{ type: 'delegate.finished', code: null }])
    expect(crew.to('budget/r1')).toEqual([{ type: 'budget.refund', account: 'run/saver' }])
    expect(crew.to('log/helper-5-0')).toEqual([{ type: 'log.drop' }])
  })

  test('crew: one that hands over gives back what it has not spent before the next one opens its budget', () => {
    const crew = running().send(call('saver-5-0', { agent: 'saver' }), finished('agent/saver-5-0', next('saver')))
    expect(crew.to('budget/r1').map(({ type }) => type)).toEqual(['budget.open'])
    crew.send(finished('agent/saver-9-0', next('helper')))
    expect(crew.to('budget/r1')).toEqual([{ type: 'budget.refund', account: 'run/saver' }])
  })

  test('crew: a kept conversation goes on behind what the next one wrote', () => {
    const keeping = { agents: { ...data.agents, writer: agentData('writer', { keep: true }) } }
    const crew = running(keeping).send(finished('agent/writer-r1', { conversation: 'r1', ...next('helper') }))
    crew.send(finished('agent/helper-9-0', { conversation: 'r1', length: 9, tokens: 70 }), closed, task(2))
    expect(begun(crew)).toMatchObject({ name: 'writer-r2', input: { conversation: 'r1', length: 10 } })
    expect(begun(crew)!['input']).not.toHaveProperty('view')
    crew.send(finished('agent/writer-r2', { conversation: 'r1', ...next('helper') }))
    crew.send(actorFailed('agent/helper-9-0'), closed, task(3))
    expect(begun(crew)).toMatchObject({ name: 'writer-r3', input: { conversation: 'r3', length: 1 } })
  })

  test('crew: of a kept conversation nobody is shown the system message of another one in the next run', () => {
    const keeping = { agents: { ...data.agents, writer: agentData('writer', { keep: true }) } }
    const view = { hidden: [[1, 2]], system: 4 }
    const crew = running(keeping).send(finished('agent/writer-r1', { conversation: 'r1', ...next('helper', { view }) }))
    expect(begun(crew)).toMatchObject({ input: { view } })
    crew.send(finished('agent/helper-9-0', { conversation: 'r1' }), closed, task(2))
    expect(begun(crew)).toMatchObject({ name: 'writer-r2', input: { view: { hidden: [[4, 4]], system: null } } })
    crew.send(finished('agent/writer-r2', { conversation: 'r1' }), closed, task(3))
    expect(begun(crew)).toMatchObject({ name: 'writer-r3', input: { view: { hidden: [[4, 4]], system: null } } })
  })

  test('crew: who is handed over to an agent that the crew does not have any more ends with CREW_INVALID', () => {
    const crew = running().send(call('helper-5-0'), finished('agent/helper-5-0', next('nobody')))
    expect(crew.to('agent/writer-r1')).toMatchObject([{ type: 'delegate.finished', code: 'CREW_INVALID' }])
    crew.send(finished('agent/writer-r1', next('nobody')), closed)
    expect(end(crew)).toMatchObject({ code: 'CREW_INVALID', reason: 'the crew has no agent nobody any more' })
  })

  test('crew: of a run that ends nobody goes on', () => {
    const crew = running().send({ type: 'crew.cancel' }, finished('agent/writer-r1', next('helper')))
    expect(ofType(crew, 'actor.start')).toEqual([])
    crew.send(closed)
    expect(end(crew)).toMatchObject({ code: 'RUN_CANCELLED' })
  })

  test('crew: who was handed a conversation begins anew where it was handed over, with its view, in one of its own', () => {
    const supervision = { restart: 'fresh', intensity: 1, periodMs: 1_000, then: 'stop' } as const
    const agents = {
      writer: agentData('writer', { supervision }),
      helper: agentData('helper', { supervision }),
    }
    const view = { hidden: [[1, 2]], system: 4 }
    const crew = running({ agents }).send(actorFailed('agent/writer-r1', { resumable: false }))
    expect(begun(crew)).toMatchObject({ name: 'writer-r1-i2', input: { conversation: 'r1-i2' } })
    crew.send(finished('agent/writer-r1-i2', { conversation: 'r1-i2', length: 5, ...next('helper', { view }) }))
    crew.send(actorFailed('agent/helper-9-0', { resumable: false }))
    expect(begun(crew)).toMatchObject({
      name: 'helper-9-0-i3',
      input: { conversation: 'r1-i3', length: 5, view, trail: ['writer', 'helper'] },
    })
    expect(crew.to('log/r1-i3')).toEqual([{ type: 'log.append', copy: 'r1-i2', first: 5 }])
    crew.send(actorFailed('agent/helper-9-0-i3', { resumable: false }), closed)
    expect(end(crew)).toMatchObject({ code: 'ACTOR_FAILED' })
  })
})

describe('crew: supervision', () => {
  const supervised = (more: Partial<Supervision> = {}, of: Partial<AgentData> = {}): { agents: CrewData['agents'] } => {
    const supervision: Supervision = { restart: 'fresh', intensity: 2, periodMs: 1_000, then: 'stop', ...more }
    const named = ['writer', 'helper', 'saver'] as const
    const agents = named.map((name) => [name, agentData(name, { ...data.agents[name], supervision, ...of })] as const)
    return { agents: Object.fromEntries(agents) }
  }
  const resuming = supervised({ restart: 'resume' })
  const failing = (address: string, at = 1_000, more: Record<string, unknown> = {}): Message =>
    actorFailed(address, { at, ...more })
  const restarted = (driver: Driver) => driver.emitted.filter(({ type }) => type === 'agent.restarted')
  const starts = (driver: Driver) => ofType(driver, 'actor.start')

  test('crew: a fresh lead is a new incarnation: another name, another conversation with the same task', () => {
    const crew = running(supervised()).send(failing('agent/writer-r1'))
    expect(crew.state).toBe('running.working')
    expect(crew.sent).toMatchObject([
      ['budget/r1', { type: 'budget.withdraw', holder: 'agent/writer-r1' }],
      ['log/r1-i2', { type: 'log.append', copy: 'r1', first: 1 }],
      ['log/r1', { type: 'log.drop' }],
      ['log/r1+user', { type: 'log.drop' }],
      ['shard/runs', { type: 'run.restarted', run: 'r1', conversation: 'r1-i2' }],
      [
        'shard/actors',
        {
          ...{ type: 'actor.start', kind: 'agent', name: 'writer-r1-i2' },
          input: {
            self: 'agent/writer-r1-i2',
            conversation: 'r1-i2',
            length: 1,
            tokens: 17,
            account: 'run',
            trail: ['writer'],
          },
        },
      ],
    ])
    const told = { agent: 'writer', restart: 'fresh', code: 'ACTOR_FAILED' }
    expect(crew.emitted).toEqual([{ type: 'agent.restarted', ...told, address: 'agent/writer-r1-i2', incarnation: 2 }])
    // Whatever the old one still says is nobody's.
    expect(crew.send(finished('agent/writer-r1')).taken).toBe(false)
    crew.send(finished('agent/writer-r1-i2', { conversation: 'r1-i2' }), closed)
    expect(end(crew)).toMatchObject({ run: 'r1', code: null, conversation: 'r1-i2' })
  })

  test('crew: a fresh delegate answers the call that the first one was started for, from the same account', () => {
    const crew = running(supervised()).send(call('saver-5-0', { agent: 'saver', index: 4, callId: 'c4' }))
    crew.send(failing('agent/saver-5-0'))
    expect(crew.sent).toMatchObject([
      ['budget/r1', { type: 'budget.withdraw' }],
      ['log/saver-5-0-i2', { type: 'log.append', copy: 'saver-5-0', first: 2 }],
      ['log/saver-5-0', { type: 'log.drop' }],
      ['log/saver-5-0+user', { type: 'log.drop' }],
      ['shard/actors', { name: 'saver-5-0-i2', input: { account: 'run/saver', depth: 1, trail: ['writer', 'saver'] } }],
    ])
    crew.send(failing('agent/saver-5-0-i2'))
    expect(starts(crew)).toMatchObject([{ name: 'saver-5-0-i3', input: { conversation: 'saver-5-0-i3' } }])
    expect(crew.to('log/saver-5-0-i3')).toEqual([{ type: 'log.append', copy: 'saver-5-0-i2', first: 2 }])
    crew.send(finished('agent/saver-5-0-i3', { conversation: 'saver-5-0-i3' }))
    expect(crew.to('log/r1')).toEqual([{ type: 'log.stage', index: 4, callId: 'c4', answerOf: 'saver-5-0-i3' }])
    expect(crew.to('agent/writer-r1')).toMatchObject([{ type: 'delegate.finished', index: 4 }])
    expect(crew.to('budget/r1')).toEqual([{ type: 'budget.refund', account: 'run/saver' }])
  })

  test('crew: a resumed agent goes on under its name, and is told whether it is paused', () => {
    const crew = running(resuming).send(failing('agent/writer-r1'))
    expect(crew.sent).toEqual([
      ['budget/r1', { type: 'budget.withdraw', holder: 'agent/writer-r1' }],
      ['shard/actors', { type: 'actor.resume', address: 'agent/writer-r1' }],
      ['agent/writer-r1', { type: 'run.resume' }],
    ])
    expect(restarted(crew)).toMatchObject([{ restart: 'resume', incarnation: 1, address: 'agent/writer-r1' }])
    crew.send({ type: 'crew.pause' }, failing('agent/writer-r1'))
    expect(crew.to('agent/writer-r1')).toEqual([{ type: 'run.pause' }])
    crew.send(finished('agent/writer-r1'), closed)
    expect(end(crew)).toMatchObject({ code: null, conversation: 'writer-r1' })
  })

  test('crew: what cannot be resumed begins anew', () => {
    const crew = running(resuming).send(failing('agent/writer-r1', 1_000, { resumable: false }))
    expect(restarted(crew)).toMatchObject([{ restart: 'fresh', incarnation: 2 }])
  })

  test.each([resuming, supervised()])(
    'crew: one for one: only those who worked for it go, and answer nobody',
    (policy) => {
      const crew = running({ ...policy, delegates: 3 })
      crew.send(
        call('helper-5-0'),
        call('helper-6-0', { caller: 'agent/helper-5-0' }),
        call('helper-5-1', { index: 1 }),
      )
      crew.send(call('helper-6-1', { caller: 'agent/helper-5-0' }), call('helper-6-2', { caller: 'agent/helper-5-0' }))
      crew.send(failing('agent/helper-5-0'))
      expect(ofType(crew, 'run.cancel')).toHaveLength(2)
      expect(crew.to('log/helper-6-2')).toEqual([{ type: 'log.drop' }])
      expect(crew.to('agent/helper-5-1')).toEqual([])
      for (const name of ['helper-6-0', 'helper-6-1']) {
        crew.send(finished(`agent/${name}`, { code: 'RUN_CANCELLED' }))
        expect(ofType(crew, 'delegate.finished')).toEqual([])
      }
      // Neither is one of them started again that fails over its end.
      crew.send(call('helper-7-0', { caller: 'agent/helper-5-1' }), {
        type: 'delegate.cancel',
        caller: 'agent/helper-5-1',
      })
      crew.send(failing('agent/helper-7-0'))
      expect([restarted(crew), ofType(crew, 'delegate.finished')]).toEqual([[], []])
    },
  )

  test('crew: at most so many restarts within a period, then its task ends', () => {
    const crew = running(supervised()).send(call('helper-5-0'))
    crew.send(failing('agent/helper-5-0', 1_000), failing('agent/helper-5-0-i2', 1_900))
    // The first is forgotten by then.
    crew.send(failing('agent/helper-5-0-i3', 2_000))
    expect(restarted(crew)).toMatchObject([{ incarnation: 4 }])
    crew.send(failing('agent/helper-5-0-i4', 2_500))
    expect(restarted(crew)).toEqual([])
    expect(crew.to('log/r1')).toMatchObject([{ text: 'helper failed: ACTOR_FAILED: boom' }])
    expect(crew.to('agent/writer-r1')).toMatchObject([{ type: 'delegate.finished', code: 'ACTOR_FAILED' }])
    expect(crew.state).toBe('running.working')
  })

  test('crew: a lead that was restarted too often ends its run with its code', () => {
    const crew = running(supervised({ intensity: 1 })).send(failing('agent/writer-r1'), failing('agent/writer-r1-i2'))
    expect(end(crew.send(closed))).toMatchObject({ code: 'ACTOR_FAILED', reason: 'agent/writer-r1-i2: boom' })
  })

  test('crew: `escalate` ends the run over a delegate, with the delegate’s code', () => {
    const crew = running(supervised({ restart: 'never', then: 'escalate' })).send(call('helper-5-0'))
    crew.send(failing('agent/helper-5-0', 1_000, { code: 'COMMIT_OVERFLOW' }))
    expect(crew.state).toBe('closing.stopping')
    expect(crew.to('agent/writer-r1')).toEqual([{ type: 'run.cancel' }])
    crew.send(finished('agent/writer-r1', { code: 'RUN_CANCELLED' }), closed)
    expect(end(crew)).toMatchObject({ code: 'COMMIT_OVERFLOW', reason: 'agent/helper-5-0: boom' })
  })

  test('crew: nobody is restarted while a run ends, nor by a definition that has no such agent any more', () => {
    const crew = running(supervised()).send({ type: 'crew.cancel' }, failing('agent/writer-r1'))
    expect(restarted(crew)).toEqual([])
    expect(end(crew.send(closed))).toMatchObject({ code: 'RUN_CANCELLED' })
    const { helper: _, ...agents } = supervised().agents
    const other = running(supervised()).send(call('helper-5-0'), { type: 'crew.redefined', crew: { ...data, agents } })
    expect(restarted(other.send(failing('agent/helper-5-0')))).toEqual([])
  })

  test('crew: an envoy is not restarted, whatever the crew says of its agents', () => {
    const crew = running(supervised()).send(call('x-5-0', { agent: 'z/agent/x' }), failing('envoy/x-5-0'))
    expect(restarted(crew)).toEqual([])
    expect(crew.to('agent/writer-r1')).toMatchObject([{ type: 'delegate.finished' }])
  })

  test('crew: a new incarnation spends from the account of the first, whatever the definition says by now', () => {
    const { agents } = supervised({}, { limits: { tokens: 30 } })
    const crew = running(supervised()).send(call('helper-5-0'), { type: 'crew.redefined', crew: { ...data, agents } })
    crew.send(failing('agent/helper-5-0'))
    expect(ofType(crew, 'budget.open')).toEqual([])
    expect(starts(crew)).toMatchObject([{ input: { account: 'run' } }])
  })

  test('crew: a lead or a flow that ends leaves no result behind that nobody reads', () => {
    const crew = running(supervised({ restart: 'never' })).send(failing('agent/writer-r1'))
    expect(crew.to('log/r1')).toEqual([{ type: 'log.clear' }])
    const flow = [{ agents: ['helper'], join: 'all' as const }]
    const led = running({ lead: '', flow }).send(finished('flow/r1', { conversation: 'r1' }))
    expect(led.to('log/r1')).toEqual([{ type: 'log.clear' }])
    expect(running().send(finished('agent/writer-r1')).to('log/r1')).toEqual([])
  })

  test('crew: what earlier runs have said in a kept conversation stays, and the next run goes on with the new one', () => {
    const crew = running(supervised({}, { keep: true })).send(
      ...[finished('agent/writer-r1', { conversation: 'r1', length: 3, tokens: 40 }), closed, task(2)],
      failing('agent/writer-r2'),
    )
    expect(crew.to('log/r2-i2')).toEqual([{ type: 'log.append', copy: 'r1', first: 4 }])
    expect(crew.to('log/r1')).toEqual([{ type: 'log.clear' }])
    expect(starts(crew)).toMatchObject([{ input: { conversation: 'r2-i2', length: 4, tokens: 40 + 12 + 5 } }])
    crew.send(finished('agent/writer-r2-i2', { conversation: 'r2-i2', length: 6 }), closed, task(3))
    expect(crew.to('shard/runs')).toContainEqual({ type: 'run.started', run: 'r3', conversation: 'r2-i2' })
  })

  test('crew: what its user has said to an agent goes with the old incarnation, and is told', () => {
    const steer = (key: string): Message => ({ type: 'crew.steer', tokens: 6, key })
    const crew = running(supervised()).send(steer('a'), steer('b'), failing('agent/writer-r1'))
    expect(crew.emitted).toMatchObject([
      { type: 'agent.unsteered', agent: 'writer', run: 'r1', messages: 2 },
      { type: 'agent.restarted' },
    ])
    // The new one is told what is said from now on.
    expect(crew.send(steer('c')).sent).toEqual([['agent/writer-r1-i2', { type: 'run.steer', tokens: 6 }]])
  })

  test('crew: nobody is asked for more for an agent that has failed', () => {
    const crew = running({ ...resuming, raiseMs: 900 }).send(exhausted('agent/writer-r1', 'run'))
    crew.send(failing('agent/writer-r1'))
    expect(crew.to('shard/actors')).toContainEqual({ type: 'actor.stop', address: 'escalation/writer-r1' })
    expect(crew.send(exhausted('agent/writer-r1', 'run')).to('shard/actors')).toMatchObject([{ kind: 'escalation' }])
  })

  test('crew: whoever failed holds no grant any more, restarted or not', () => {
    const crew = running().send(call('helper-5-0'), failing('agent/helper-5-0'))
    expect(crew.to('budget/r1')).toEqual([{ type: 'budget.withdraw', holder: 'agent/helper-5-0' }])
  })
})

test('crew: every transition was taken and every guard answered both ways', () => {
  expect(covered.missing()).toEqual([])
})
