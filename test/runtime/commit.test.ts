import { describe, expect, test } from 'vitest'
import { type AnyMachineSnapshot, assign, createMachine, emit, sendTo } from 'xstate'
import { to } from '../../machines/index.js'
import { crewAddress, maxMessages } from '../../runtime/commit.js'
import { append } from '../../runtime/conversation.js'
import { maxCalls } from '../../runtime/edge.js'
import { shippedMachines } from '../support/crew-stage.js'
import {
  answer,
  command,
  crewData,
  defined,
  Desk,
  events,
  interrupted,
  nothing,
  outcome,
  replied,
  spent,
  task,
  toolVerdict,
  usage,
} from '../support/envelopes.js'

const running = (desk = new Desk()): Desk => {
  desk.all(defined(), task())
  return desk
}
const dead = (desk: Desk) => events(desk.commits.at(-1)!, 'message.dead')
const failed = (desk: Desk) => events(desk.commits.at(-1)!, 'actor.failed')

describe('commit: promises', () => {
  const story = (desk: Desk, restoring: boolean): void => {
    const take = (draft: Parameters<Desk['take']>[0]) => {
      if (restoring) desk.restore()
      desk.take(draft)
    }
    take(defined())
    take(task())
    take(outcome(desk.effect(), replied({ calls: [toolVerdict(0), toolVerdict(1, { effect: 'once' })] }), [answer('')]))
    const [first, second] = [...desk.state.effects.keys()]
    take(outcome(second!, { type: 'tool.succeeded', bytes: 3 }, ['two'], 'tool/3-1'))
    take(outcome(first!, { type: 'tool.failed', kind: 'threw', bytes: 3, retryMs: 500 }, ['one'], 'tool/3-0'))
    take(due(desk, 'tool/3-0'))
    take(outcome(desk.effect('tool/3-0'), { type: 'tool.succeeded', bytes: 3 }, ['one'], 'tool/3-0'))
    take(outcome(desk.effect(), replied(), [answer('done')]))
  }

  test('D1 commit: the same envelopes give the same digests, effects and state, at another time, over bytes', () => {
    const one = new Desk()
    story(one, false)
    const other = new Desk()
    other.now = 99_000_000
    story(other, true)
    expect(one.commits.map(({ digest }) => Buffer.from(digest).toString('hex'))).toEqual(
      other.commits.map(({ digest }) => Buffer.from(digest).toString('hex')),
    )
    expect(one.commits.map(({ effects }) => effects)).toEqual(other.commits.map(({ effects }) => effects))
    const same = new Desk()
    story(same, true)
    expect(same.hash).toBe(one.hash)
    expect([...one.state.runs.values()]).toMatchObject([{ status: 'finished', end: { code: null, rounds: 2 } }])
  })

  test('D1 commit: another decision gives another digest', () => {
    const [one, other] = [running(), running()]
    const change = { ...usage, outputTokens: 11 }
    const a = one.take(outcome(one.effect(), replied(), [answer('x')]))
    const b = other.take(
      outcome(other.effect(), replied({ usage: change, spent: { ...spent, tokens: 31 } }), [answer('x')]),
    )
    expect(Buffer.from(a.digest).equals(Buffer.from(b.digest))).toBe(false)
  })

  test('D1 commit: the state’s time is the envelope’s and never runs backwards', () => {
    const desk = running()
    desk.now = 500
    desk.take(command({ type: 'crew.pause' }))
    expect(desk.state.at).toBe(1_000)
  })

  test('D2 commit: messages are taken first in, first out', () => {
    const seen = (name: string, more: unknown[] = []) => [emit(() => ({ type: `seen.${name}` })), ...more]
    const crew = createMachine({
      entry: [
        sendTo(to('shard/actors'), { type: 'actor.start', kind: 'other', name: 'a', input: {} }),
        sendTo(to('shard/actors'), { type: 'actor.start', kind: 'other', name: 'b', input: {} }),
        sendTo(to('other/a'), { type: 'one' }),
        sendTo(to('other/b'), { type: 'two' }),
        sendTo(to('other/a'), { type: 'three' }),
      ],
    })
    const other = createMachine({
      on: {
        one: { actions: seen('one', [sendTo(to('other/b'), { type: 'four' })]) as never },
        two: { actions: seen('two', [sendTo(to('other/a'), { type: 'five' })]) as never },
        three: { actions: seen('three') as never },
        four: { actions: seen('four') as never },
        five: { actions: seen('five') as never },
      },
    })
    const commit = new Desk({ crew, other }).take(defined())
    const order = commit.events.map(([, { type }]) => type).filter((type) => type.startsWith('seen'))
    expect(order).toEqual(['seen.one', 'seen.two', 'seen.three', 'seen.four', 'seen.five'])
  })

  const throwing = (where: 'guard' | 'assign' | 'start') =>
    createMachine({
      context: () => {
        if (where === 'start') throw new Error('planted in start')
        return {}
      },
      on: {
        'model.replied': {
          guard: () => {
            if (where === 'guard') throw new Error('planted in guard')
            return true
          },
          actions: assign(() => {
            throw new Error('planted in assign')
          }),
        },
      },
      entry: sendTo(to('port/model'), {
        type: 'model.call',
        agent: 'writer',
        run: 'r2',
        conversation: 'r2',
        deployments: ['a:one'],
        maxOutputTokens: 10,
        grant: 'g',
        keeper: 'budget/r2',
        depth: 0,
        tries: 0,
        worst: nothing,
      }),
    })

  test.each(['guard', 'assign'] as const)(
    'D3 commit: a throw in a %s fails its actor, tells its supervisor, loses nothing',
    (where) => {
      const desk = running(new Desk({ ...shippedMachines, agent: throwing(where) }))
      const commit = desk.take(outcome(desk.effect(), replied(), [answer('x')]))
      expect(commit.sequence).toBe(3)
      expect(dead(desk)).toMatchObject([{ to: 'agent/writer-r2', message: 'model.replied', code: 'ACTOR_FAILED' }])
      expect(failed(desk)).toMatchObject([
        { code: 'ACTOR_FAILED', reason: expect.stringContaining(`planted in ${where}`) },
      ])
      expect(events(commit, 'run.finished')).toMatchObject([{ run: 'r2', code: 'ACTOR_FAILED' }])
      expect(desk.state.actors.has('agent/writer-r2')).toBe(false)
      expect(desk.state.effects.size).toBe(0)
    },
  )

  test('D3 commit: whoever worked for an actor that failed is stopped, with its effects', () => {
    const desk = running()
    desk.take(outcome(desk.effect(), replied({ calls: [toolVerdict(0), toolVerdict(1)] }), [answer('')]))
    const agent = desk.state.actors.get('agent/writer-r2')!
    const broken = (agent.snapshot as AnyMachineSnapshot).machine.provide({
      guards: {
        endsRound: () => {
          throw new Error('planted')
        },
      },
    } as never)
    agent.snapshot = desk.scope.restore(broken, desk.scope.persist(agent.snapshot))
    const [first] = desk.state.effects.keys()
    const commit = desk.take(outcome(first!, { type: 'tool.succeeded', bytes: 1 }, ['one'], 'tool/3-0'))
    expect(events(commit, 'run.finished')).toMatchObject([{ code: 'ACTOR_FAILED' }])
    expect(commit.cancelled).toHaveLength(1)
    expect([...desk.state.actors.keys()]).toEqual(atRest)
  })

  test('D3 commit: an actor that cannot even start is told to its supervisor', () => {
    const desk = running(new Desk({ ...shippedMachines, agent: throwing('start') }))
    expect(events(desk.commits[1]!, 'run.finished')).toMatchObject([{ run: 'r2', code: 'ACTOR_FAILED' }])
  })

  test('D3 commit: a crew that fails ends its runs, and starts anew for the next task', () => {
    const crew = shippedMachines['crew']!.provide({
      guards: {
        cancelsThis: () => {
          throw new Error('planted')
        },
      },
    } as never)
    const desk = running(new Desk({ ...shippedMachines, crew }))
    desk.take(task('k2'))
    desk.take(outcome(desk.effect(), replied({ calls: [toolVerdict(0), toolVerdict(1)] }), [answer('')]))
    const [first] = desk.state.effects.keys()
    desk.take(outcome(first!, { type: 'tool.succeeded', bytes: 1 }, ['one'], 'tool/4-0'))
    expect(desk.state.logs.get('r2')!.staged.size).toBe(1)
    append(desk.state.logs, 'helper-4-1', { type: 'log.append', user: 'of a delegate' }, 5, [])
    const commit = desk.take(command({ type: 'crew.cancel' }))
    expect(events(commit, 'run.finished')).toMatchObject([
      { run: 'r2', code: 'ACTOR_FAILED' },
      { run: 'r3', code: 'ACTOR_FAILED' },
    ])
    expect([...desk.state.actors.keys()]).toEqual([crewAddress])
    expect(desk.state.effects.size + desk.state.timers.size + desk.state.owed.size).toBe(0)
    expect([...desk.state.logs.keys()]).toEqual(['r2', 'r3'])
    expect(desk.state.logs.get('r2')!.staged.size).toBe(0)
    desk.take(task('k3'))
    expect(desk.state.runs.get('r7')).toMatchObject({ status: 'running' })
  })

  test('D3 commit: a crew that cannot start stays away; tasks for it end with a code', () => {
    const desk = new Desk({ ...shippedMachines, crew: throwing('start') })
    desk.all(defined(), task())
    expect(desk.state.actors.size).toBe(0)
    expect(dead(desk)).toMatchObject([{ to: crewAddress, message: 'crew.task' }])
    expect(desk.state.runs.get('r2')).toMatchObject({ key: 'k1', status: 'finished', end: { code: 'ACTOR_FAILED' } })
  })

  test('D4 commit: an outcome is delivered once', () => {
    const desk = running()
    const effect = desk.effect()
    desk.take(outcome(effect, replied({ calls: [toolVerdict(0)] }), [answer('')]))
    const before = desk.hash
    const again = desk.take(outcome(effect, replied(), [answer('again')]))
    expect(again.events).toEqual([])
    expect(again.decisions).toEqual([])
    desk.state.sequence -= 1
    expect(desk.hash).toBe(before)
  })

  test('D4 commit: an outcome goes to the actor that asked, whoever it is addressed to', () => {
    const desk = running()
    const commit = desk.take(outcome(desk.effect(), replied(), [answer('x')], 'budget/r2'))
    expect(events(commit, 'run.finished')).toMatchObject([{ code: null }])
  })

  test('D4 commit: an outcome for an effect that never was changes nothing', () => {
    const desk = running()
    const commit = desk.take(outcome('77-3', replied(), [answer('x')]))
    expect(commit.decisions).toEqual([])
    expect(desk.state.effects.size).toBe(1)
  })

  test('D4 commit: a late bill of an interrupted call replaces its estimate, once', () => {
    const desk = running()
    const effect = desk.effect()
    desk.take(outcome(effect, interrupted))
    const late = desk.take(outcome(effect, replied(), [answer('late')]))
    expect(late.decisions).toEqual([expect.stringContaining('budget.settle')])
    expect(late.events).toEqual([])
    expect(desk.take(outcome(effect, replied(), [answer('late')])).decisions).toEqual([])
    desk.take(outcome(desk.effect(), replied(), [answer('done')]))
    expect(desk.state.runs.get('r2')?.end?.spent).toEqual({ ...spent, nanoUsd: 80_000, tokens: 60, modelCalls: 2 })
  })

  test('D4 commit: a call that failed after it was closed costs nothing and counts as one', () => {
    const desk = running()
    const effect = desk.effect()
    desk.take(outcome(effect, interrupted))
    expect(desk.take(outcome(effect, failure())).decisions).toEqual([expect.stringContaining('budget.settle')])
    desk.take(outcome(desk.effect(), replied(), [answer('done')]))
    expect(desk.state.runs.get('r2')?.end?.spent).toMatchObject({ nanoUsd: 40_000, tokens: 30, modelCalls: 2 })
  })

  test('D4 commit: a timer that was replaced or cancelled is not delivered', () => {
    const desk = running()
    desk.take(outcome(desk.effect(), failure()))
    const cancelled = due(desk, 'agent/writer-r2')
    desk.take(command({ type: 'crew.cancel' }))
    expect(desk.state.timers.size).toBe(0)
    expect(desk.take(cancelled).decisions).toEqual([])
    const replaced = running()
    replaced.take(outcome(replaced.effect(), failure()))
    const first = due(replaced, 'agent/writer-r2')
    replaced.take(first)
    replaced.take(outcome(replaced.effect(), failure()))
    expect(replaced.take(first).decisions).toEqual([])
    expect(dead(replaced)).toEqual([])
    replaced.take(due(replaced, 'agent/writer-r2'))
    expect(replaced.state.effects.size).toBe(1)
  })

  test('D5 commit: an outcome that no transition takes fails its actor', () => {
    const desk = running()
    const commit = desk.take(outcome(desk.effect(), { type: 'tool.succeeded', bytes: 1 }, ['x']))
    expect(dead(desk)).toMatchObject([{ message: 'tool.succeeded', code: 'OUTCOME_IGNORED' }])
    expect(failed(desk)).toMatchObject([{ code: 'OUTCOME_IGNORED' }])
    expect(events(commit, 'run.finished')).toMatchObject([{ code: 'OUTCOME_IGNORED' }])
  })

  test('D7 commit: who is stopped in the commit of its start asks a port for nothing', () => {
    const asking = createMachine({ entry: sendTo(to('port/human'), { type: 'human.ask', conversation: '' }) })
    const stop = sendTo(to('shard/actors'), { type: 'actor.stop', address: 'asking/x' })
    const start = sendTo(to('shard/actors'), { type: 'actor.start', kind: 'asking', name: 'x', input: {} })
    const left = (...entry: (typeof start)[]) => {
      const desk = new Desk({ crew: createMachine({ entry }), asking })
      const commit = desk.take(defined())
      return [commit.effects.length, desk.state.effects.size, desk.state.actors.has('asking/x')]
    }
    expect(left(start)).toEqual([1, 1, true])
    expect(left(start, stop)).toEqual([0, 0, false])
  })

  test('D7 commit: who is stopped in the commit of its start starts nobody', () => {
    const start = (name: string) =>
      sendTo(to('shard/actors'), { type: 'actor.start', kind: name, name: 'x', input: {} })
    const stop = sendTo(to('shard/actors'), { type: 'actor.stop', address: 'first/x' })
    const started = (...entry: (typeof stop)[]) => {
      const crew = createMachine({ entry })
      const desk = new Desk({ crew, first: createMachine({ entry: start('second') }), second: createMachine({}) })
      desk.take(defined())
      return [...desk.state.actors.keys()].filter((address) => address !== crewAddress)
    }
    expect(started(start('first'))).toEqual(['first/x', 'second/x'])
    expect(started(start('first'), stop)).toEqual([])
  })

  test('D5 commit: a transition that does nothing takes it too', () => {
    const deaf = createMachine({ ...throwingConfig(), on: { 'model.replied': {} } })
    const desk = running(new Desk({ ...shippedMachines, agent: deaf }))
    desk.take(outcome(desk.effect(), replied(), [answer('x')]))
    expect(failed(desk)).toEqual([])
  })

  function throwingConfig() {
    return { entry: throwing('guard').config.entry as never }
  }
})

describe('commit: bounds', () => {
  test('commit: an endless ping-pong ends with COMMIT_OVERFLOW; the run ends, the crew goes on', () => {
    // A lead that plays it with itself: whom it ends with does not depend on whose turn it is.
    const ping = sendTo(to('agent/writer-r2'), { type: 'ping' })
    const agent = createMachine({ entry: ping, on: { ping: { actions: ping }, 'run.cancel': {} } })
    const desk = new Desk({ ...shippedMachines, agent })
    const commit = running(desk).commits[1]!
    expect(events(commit, 'actor.failed')).toMatchObject([{ code: 'COMMIT_OVERFLOW' }])
    expect(events(commit, 'message.dead')).toMatchObject([{ message: 'ping', code: 'COMMIT_OVERFLOW' }])
    expect(events(commit, 'run.finished')).toMatchObject([{ run: 'r2', code: 'COMMIT_OVERFLOW' }])
    expect(commit.decisions.length).toBeLessThan(maxMessages * 2)
    expect([...desk.state.actors.keys()]).toEqual(atRest)
    desk.take(task('k2'))
    expect(desk.state.runs.get('r3')).toMatchObject({ status: 'running' })
  })

  test('commit: actors that fail each other for ever end with the crew started anew', () => {
    const agent = createMachine({
      entry: [
        sendTo(to('shard/actors'), { type: 'actor.start', kind: 'tool', name: 'pong', input: {} }),
        sendTo(to('tool/pong'), { type: 'ping' }),
      ],
      on: {
        'actor.failed': {
          actions: [
            sendTo(to('shard/actors'), { type: 'actor.start', kind: 'tool', name: 'pong', input: {} }),
            sendTo(to('tool/pong'), { type: 'ping' }),
          ],
        },
        'run.cancel': {},
      },
    })
    const tool = createMachine({
      on: {
        ping: {
          guard: () => {
            throw new Error('planted')
          },
        },
      },
    })
    const desk = new Desk({ ...shippedMachines, agent, tool })
    const commit = running(desk).commits[1]!
    expect(events(commit, 'run.finished')).toMatchObject([{ run: 'r2', code: 'COMMIT_OVERFLOW' }])
    expect([...desk.state.actors.keys()]).toEqual(atRest)
  })

  test('commit: a crew that never comes to rest is started anew once a commit', () => {
    const crew = createMachine({
      entry: sendTo(to(crewAddress), { type: 'again' }),
      on: { again: { actions: sendTo(to(crewAddress), { type: 'again' }) } },
    })
    const desk = new Desk({ ...shippedMachines, crew })
    const commit = desk.take(defined())
    expect(commit.decisions.length).toBeLessThan(maxMessages * 3)
    expect(events(commit, 'actor.failed').every(({ code }) => code === 'COMMIT_OVERFLOW')).toBe(true)
    expect(() => desk.take(task())).not.toThrow()
  })

  test('commit: a reply with as many refused calls as the edge lets in is taken whole', () => {
    const desk = running()
    const calls = Array.from({ length: maxCalls }, (_, index) => ({
      verdict: 'refused',
      index,
      callId: `c${index}`,
      name: 'nope',
      message: 'no',
    }))
    const commit = desk.take(outcome(desk.effect(), replied({ calls }), [answer('')]))
    expect(dead(desk)).toEqual([])
    expect(failed(desk)).toEqual([])
    expect(commit.effects).toHaveLength(1)
    expect(desk.state.logs.get('r2')?.length).toBe(maxCalls + 2)
  })
})

describe('commit: actors, effects, runs', () => {
  test('commit: an actor that is stopped leaves no effect, no timer and no debt', () => {
    const desk = running()
    desk.take(outcome(desk.effect(), replied({ calls: [toolVerdict(0), toolVerdict(1)] }), [answer('')]))
    expect(desk.state.effects.size).toBe(2)
    const commit = desk.take(command({ type: 'crew.cancel' }))
    expect(commit.cancelled).toHaveLength(2)
    expect(desk.state.effects.size + desk.state.timers.size).toBe(0)
    expect([...desk.state.actors.keys()]).toEqual(atRest)
  })

  test('commit: a second actor of the same name is refused and its supervisor told', () => {
    const crew = createMachine({
      entry: [1, 2].map(() => sendTo(to('shard/actors'), { type: 'actor.start', kind: 'tool', name: 'x', input: {} })),
      on: { 'actor.failed': { actions: emit(({ event }) => ({ ...event, type: 'told' })) } },
    })
    const commit = new Desk({ crew, tool: createMachine({}) }).take(defined())
    expect(events(commit, 'told')).toMatchObject([
      { address: 'tool/x', code: 'ACTOR_FAILED', reason: 'tool/x runs already' },
    ])
  })

  test('commit: an actor of a kind that nobody knows is refused and its supervisor told', () => {
    const crew = createMachine({
      entry: sendTo(to('shard/actors'), { type: 'actor.start', kind: 'ghost', name: 'x', input: {} }),
      on: { 'actor.failed': { actions: emit(({ event }) => ({ ...event, type: 'told' })) } },
    })
    expect(events(new Desk({ crew }).take(defined()), 'told')).toMatchObject([{ address: 'ghost/x' }])
  })

  test('commit: a `dispatched` record marks its effect, another does nothing', () => {
    const desk = running()
    desk.take(outcome(desk.effect(), replied({ calls: [toolVerdict(0, { effect: 'once' })] }), [answer('')]))
    const record = (effect: string) => ({
      from: 'shard/self',
      to: 'shard/self',
      cause: effect,
      body: { type: 'effect.dispatched', effect, executor: 'p', startBy: 5_000 },
      values: [],
    })
    const commit = desk.take(record(desk.effect()))
    expect(commit.dispatched).toEqual([desk.effect()])
    expect(desk.state.effects.get(desk.effect())?.startBy).toBe(5_000)
    expect(desk.take(record('99-0')).dispatched).toEqual([])
  })

  test('commit: time in which the process was down moves timers of active time only', () => {
    const desk = new Desk()
    desk.all(defined({ ...crewData, wallMs: 10_000 }), task())
    desk.take(outcome(desk.effect(), failure(700)))
    desk.take({
      from: 'shard/self',
      to: 'shard/self',
      cause: '',
      body: { type: 'shard.resumed', downMs: 4_000 },
      values: [],
    })
    const due = Object.fromEntries([...desk.state.timers.values()].map(({ id, dueAt }) => [id.slice(0, 6), dueAt]))
    expect(due).toEqual({ active: 15_000, sweep: 901_000, route: 1_700 })
  })

  test('commit: a timer that killed the process three times is a dead letter', () => {
    const desk = running()
    desk.take(outcome(desk.effect(), failure()))
    const [key] = [...desk.state.timers].find(([, { actor }]) => actor === 'agent/writer-r2')!
    desk.take({
      from: 'shard/self',
      to: 'shard/self',
      cause: '',
      body: { type: 'timer.crashed', timer: key },
      values: [],
    })
    expect(dead(desk)).toMatchObject([{ from: 'clock/timer', code: 'EFFECT_CRASHED' }])
    expect(events(desk.commits.at(-1)!, 'run.finished')).toMatchObject([{ code: 'EFFECT_CRASHED' }])
  })

  test.each(['budget/crew|sweep', 'crew/main|active:wall'])(
    'commit: what a budget of the crew has counted outlives a failure over %s',
    (timer) => {
      const desk = new Desk()
      desk.all(defined({ ...crewData, per: 'crew', wallMs: 5_000, limits: { modelCalls: 3 } }), task())
      desk.take(outcome(desk.effect(), replied(), [answer('one')]))
      desk.take(task('second'))
      desk.take({ ...task(), from: 'shard/self', to: 'shard/self', body: { type: 'timer.crashed', timer }, values: [] })
      expect(failed(desk)).toMatchObject([{ code: 'EFFECT_CRASHED' }])
      const keeper = desk.state.actors.get('budget/crew')!.snapshot.context as {
        accounts: { run: Record<'spent' | 'held', { modelCalls: number }> }
      }
      // The second call was under way: it is held, or counted at its worst.
      const { held, spent: gone } = keeper.accounts.run
      expect(gone.modelCalls + held.modelCalls).toBe(2)
      expect([...desk.state.runs.values()].map(({ end }) => end?.code)).toEqual([null, 'EFFECT_CRASHED'])
    },
  )

  test('commit: a message from outside to somebody who is not there is a dead letter', () => {
    const desk = running()
    desk.take({ ...command({ type: 'run.cancel' }), to: 'agent/ghost' })
    expect(dead(desk)).toMatchObject([{ from: 'client/local', to: 'agent/ghost', message: 'run.cancel' }])
  })
})

/** The actors of a crew that has had a run. */
const atRest = [crewAddress, 'router/main']

function failure(delayMs = 500) {
  const why = { kind: 'server', reason: 'x', delayMs, retryAfterMs: null }
  const admission = { deployment: 'a:one', skipped: [], changes: [] }
  return { type: 'model.failed', ...admission, ...why, spent: nothing, real: true }
}

/** The envelope of an actor's timer. */
function due(desk: Desk, actor: string) {
  const timer = [...desk.state.timers.values()].find((each) => each.actor === actor)!
  const cause = `${timer.actor}|${timer.id}|${timer.generation}`
  return { from: 'clock/timer', to: actor, cause, body: { type: 'timer.due' }, values: [] }
}
