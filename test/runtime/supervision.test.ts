import { describe, expect, test } from 'vitest'
import { assign, createMachine, sendTo } from 'xstate'
import { z } from 'zod'
import { agentMachine, type CrewData, type Supervision, to } from '../../machines/index.js'
import { crewAddress } from '../../runtime/commit.js'
import { defineAgent, defineCrew, defineTool } from '../../runtime/define.js'
import type { TroupeError } from '../../runtime/errors.js'
import { prepareCrew } from '../../runtime/prepared-crew.js'
import type { Supervision as SupervisionOptions } from '../../runtime/supervision.js'
import {
  call,
  gate,
  messagesOf,
  openStage,
  say,
  shippedMachines,
  type StageOptions,
  until,
} from '../support/crew-stage.js'
import {
  answer,
  command,
  crewData,
  defined,
  Desk,
  events,
  interrupted,
  outcome,
  replied,
  spent,
  task,
  toolVerdict,
} from '../support/envelopes.js'

/** An agent that fails over replies of the finish `length`, and over what a user says. */
const fragile = agentMachine.provide({
  guards: {
    lastRoundCalls: ({ event }: { event: { finish?: string } }) => {
      if (event.finish === 'length') throw new Error('planted')
      return false
    },
  },
  actions: {
    steer: assign(() => {
      throw new Error('planted in steer')
    }),
  },
} as never)
const machines = { ...shippedMachines, agent: fragile }
const poison = replied({ finish: 'length' })

const supervised = (more: Partial<Supervision> = {}, of: Partial<CrewData> = {}): CrewData => {
  const supervision: Supervision = { restart: 'fresh', intensity: 3, periodMs: 60_000, then: 'stop', ...more }
  const agents = Object.entries(crewData.agents).map(([name, agent]) => [name, { ...agent, supervision }] as const)
  return { ...crewData, ...of, agents: Object.fromEntries(agents) }
}
const running = (data: CrewData, desk = new Desk(machines)): Desk => {
  desk.all(defined(data), task())
  return desk
}
const keeperOf = (desk: Desk, address = 'budget/r2') =>
  desk.state.actors.get(address)?.snapshot.context as {
    accounts: Record<string, { held: typeof spent; spent: typeof spent }>
    grants: Record<string, { state: string }>
    waiting: unknown[]
  }
const worst = (desk: Desk) => (desk.state.effects.get(desk.effect())!.body as { worst: typeof spent }).worst
const nothingHeld = { nanoUsd: 0, tokens: 0, modelCalls: 0, toolCalls: 0 }

describe('supervision: what a failure takes with it', () => {
  test('D8 commit: whoever failed over its reply is charged what the reply cost, restarted or not', () => {
    for (const data of [crewData, supervised()]) {
      const desk = running(data)
      desk.take(outcome(desk.effect(), poison, [answer('x')]))
      if (data === crewData) expect(desk.state.runs.get('r2')?.end).toMatchObject({ code: 'ACTOR_FAILED', spent })
      else expect(keeperOf(desk).accounts['run']).toMatchObject({ spent, held: { modelCalls: 1 } })
    }
  })

  test('D8 commit: a call that was open counts at its worst, at once, until its real bill comes', () => {
    const desk = running(supervised({ restart: 'never' }, { per: 'crew' }))
    const [effect, most] = [desk.effect(), worst(desk)]
    const commit = desk.take({ ...command({ type: 'crew.steer', tokens: 3, key: 'a' }), values: ['{}'] })
    expect(events(commit, 'actor.failed')).toMatchObject([{ reason: 'planted in steer' }])
    expect(commit.cancelled.map(({ id }) => id)).toEqual([effect])
    expect(keeperOf(desk, 'budget/crew').accounts['run']).toMatchObject({ held: nothingHeld, spent: most })
    expect(desk.state.runs.get('r2')?.end).toMatchObject({ code: 'ACTOR_FAILED', spent: most })
    expect([...desk.state.owed.keys()]).toEqual([effect])
    desk.take(outcome(effect, replied(), [answer('late')]))
    expect(keeperOf(desk, 'budget/crew').accounts['run']).toMatchObject({ held: nothingHeld, spent })
    expect(desk.state.owed.size).toBe(0)
  })

  test('D8 commit: a call that nobody took costs nothing, whoever fails over that', () => {
    const deaf = agentMachine.provide({
      actions: {
        askElse: assign(() => {
          throw new Error('planted')
        }),
      },
    } as never)
    const desk = running(supervised(), new Desk({ ...shippedMachines, agent: deaf }))
    const skipped = [{ deployment: 'a:one', reason: 'open', waitMs: 5 }]
    desk.take(outcome(desk.effect(), { type: 'model.refused', skipped, delayMs: 9 }))
    expect(keeperOf(desk).accounts['run']).toMatchObject({ spent: nothingHeld, held: { modelCalls: 1 } })
  })

  test('D8 commit: a crew that fails leaves its keeper no grant that nobody settles', () => {
    const crew = shippedMachines['crew']!.provide({
      actions: {
        pause: assign(() => {
          throw new Error('planted')
        }),
      },
    } as never)
    const desk = running({ ...crewData, per: 'crew' }, new Desk({ ...shippedMachines, crew }))
    const most = worst(desk)
    desk.take(command({ type: 'crew.pause' }))
    expect(keeperOf(desk, 'budget/crew').accounts['run']).toMatchObject({ held: nothingHeld, spent: most })
  })
})

describe('supervision: a new incarnation', () => {
  test('supervision: it begins the same task in a conversation of its own, and its answer is the run’s', () => {
    const desk = running(supervised())
    const old = desk.effect()
    const commit = desk.take(outcome(old, poison, [answer('broken')]))
    expect(events(commit, 'agent.restarted')).toMatchObject([
      { agent: 'writer', address: 'agent/writer-r2-i2', restart: 'fresh', incarnation: 2, code: 'ACTOR_FAILED' },
    ])
    expect(desk.state.actors.has('agent/writer-r2')).toBe(false)
    expect([...desk.state.logs.keys()]).toEqual(['r2-i2'])
    expect(desk.state.runs.get('r2')).toMatchObject({ status: 'running', conversation: 'r2-i2', skip: 0 })
    // What comes for the old one is nobody's.
    for (const late of [replied(), interrupted]) {
      const { decisions } = desk.take(outcome(old, late, [answer('late')]))
      expect(decisions.filter((line) => line.startsWith('agent/'))).toEqual([])
    }
    desk.restore()
    desk.take(outcome(desk.effect(), replied(), [answer('done')], 'agent/writer-r2-i2'))
    expect(desk.state.runs.get('r2')?.end).toMatchObject({ code: null, rounds: 1 })
    const [asked, answered, ...more] = desk.state.logs.get('r2-i2')!.entries
    expect([asked, answered]).toMatchObject([{ sequence: 2 }, { sequence: 6 }])
    expect(more).toEqual([])
  })

  test('supervision: tools, timers and delegates of the old one go with it', () => {
    const desk = running(supervised())
    const calls = [
      toolVerdict(0, { effect: 'once' }),
      { verdict: 'delegate', index: 1, callId: 'c1', agent: 'helper', values: [1], tokens: 9, call: 'h' },
    ]
    desk.take(outcome(desk.effect(), replied({ calls }), [answer(''), answer('task')]))
    expect(desk.state.effects.size).toBe(2)
    const commit = desk.take({ ...command({ type: 'crew.steer', tokens: 3, key: 'a' }), values: ['{}'] })
    expect(commit.cancelled.map(({ from }) => from)).toEqual(['tool/3-0', 'agent/helper-3-1'])
    expect([...desk.state.actors.keys()].filter((address) => /^(agent|tool)/.test(address))).toEqual([
      'agent/writer-r2-i2',
    ])
    expect([...desk.state.logs.keys()]).toEqual(['r2-i2'])
    expect(desk.effect('agent/writer-r2-i2')).toBeDefined()
  })

  test('supervision: one that fails at its start is tried as often as may be, then its run ends', () => {
    const stillborn = createMachine({
      context: () => {
        throw new Error('planted in start')
      },
    })
    for (const restart of ['fresh', 'resume'] as const) {
      const desk = running(supervised({ restart, intensity: 2 }), new Desk({ ...shippedMachines, agent: stillborn }))
      const commit = desk.commits.at(-1)!
      expect(events(commit, 'agent.restarted')).toMatchObject([{ incarnation: 2 }, { incarnation: 3 }])
      expect(desk.state.runs.get('r2')?.end).toMatchObject({ code: 'ACTOR_FAILED' })
      expect([...desk.state.logs.keys()]).toEqual(['r2-i3'])
    }
  })
})

describe('supervision: an agent that is resumed', () => {
  const resuming = (more: Partial<Supervision> = {}) => supervised({ restart: 'resume', ...more })

  test('supervision: over its reply: the model is asked again, and the failed reply is a dead letter', () => {
    const desk = running(resuming())
    const first = desk.effect()
    const commit = desk.take(outcome(first, poison, [answer('broken')]))
    expect(events(commit, 'message.dead')).toMatchObject([{ message: 'model.replied', to: 'agent/writer-r2' }])
    expect(events(commit, 'agent.restarted')).toMatchObject([{ restart: 'resume', incarnation: 1 }])
    const again = desk.state.effects.get(desk.effect())!
    expect(again).toMatchObject({ from: 'agent/writer-r2', length: 1, body: { grant: 'agent/writer-r2#1' } })
    desk.restore().take(outcome(again.id, replied(), [answer('done')]))
    expect(desk.state.runs.get('r2')?.end).toMatchObject({ code: null, spent: { modelCalls: 2, tokens: 60 } })
  })

  test('supervision: in a round with calls: results that came stay, the others are told to be lost', () => {
    const desk = running(resuming())
    const calls = [toolVerdict(0), toolVerdict(1), toolVerdict(2)]
    desk.take(outcome(desk.effect(), replied({ calls }), [answer('')]))
    desk.take(outcome(desk.effect('tool/3-1'), { type: 'tool.succeeded', bytes: 3 }, ['two'], 'tool/3-1'))
    const commit = desk.take({ ...command({ type: 'crew.steer', tokens: 3, key: 'a' }), values: ['{}'] })
    expect(commit.cancelled.map(({ from }) => from)).toEqual(['tool/3-0', 'tool/3-2'])
    const log = desk.state.logs.get('r2')!
    expect(log.entries.map(({ callId, text }) => [callId, text?.includes('outcome of this call is unknown')])).toEqual([
      ...[
        ['', false],
        ['', false],
      ],
      ...[
        ['c0', true],
        ['c1', false],
        ['c2', true],
      ],
    ])
    expect(log.staged.size).toBe(0)
    expect(desk.state.effects.get(desk.effect())).toMatchObject({ from: 'agent/writer-r2', length: 5 })
  })

  test('supervision: one whose own messages were lost begins anew', () => {
    const ping = sendTo(to('agent/writer-r2'), { type: 'ping' })
    const agent = createMachine({ entry: ping, on: { ping: { actions: ping }, 'run.cancel': {} } })
    const commit = running(resuming({ intensity: 1 }), new Desk({ ...shippedMachines, agent })).commits[1]!
    expect(events(commit, 'agent.restarted')).toMatchObject([{ restart: 'fresh', code: 'COMMIT_OVERFLOW' }])
  })

  test('supervision: it goes on while it may, then its task ends', () => {
    const desk = running(resuming({ intensity: 2, periodMs: 500 }))
    const fail = () => desk.take(outcome(desk.effect(), poison, [answer('x')]))
    fail()
    desk.now += 400
    fail()
    desk.now += 100
    expect(events(fail(), 'agent.restarted')).toHaveLength(1)
    expect(events(fail(), 'agent.restarted')).toHaveLength(0)
    expect(desk.state.runs.get('r2')?.end).toMatchObject({ code: 'ACTOR_FAILED', reason: 'agent/writer-r2: planted' })
    expect([...desk.state.actors.keys()]).toEqual([crewAddress, 'router/main'])
  })
})

describe('supervision: through the runtime', () => {
  const broken = say('x', { finishReason: 'length' })
  const crewOf = (supervision: SupervisionOptions | undefined, own?: SupervisionOptions) =>
    defineCrew({
      name: 'desk',
      agents: {
        chief: defineAgent({ model: 'a:one', instructions: 'chief', delegates: ['scout'], tools: [wait] }),
        scout: defineAgent({
          model: 'a:one',
          instructions: 'scout',
          ...(own === undefined ? {} : { supervision: own }),
        }),
      },
      lead: 'chief',
      ...(supervision === undefined ? {} : { supervision }),
    })
  const tools = { started: gate(), aborted: gate() }
  const wait = defineTool({
    ...{ name: 'wait', description: '', input: z.object({}), timeoutMs: 60_000 },
    run: (_, { signal }) => {
      tools.started.open()
      return new Promise((_resolve, reject) => {
        signal.addEventListener('abort', () => {
          tools.aborted.open()
          reject(new Error('aborted'))
        })
      })
    },
  })
  const stageOf = (options: StageOptions) => openStage({ machines, ...options })

  test('supervision: a fresh agent asks its model what the first one asked, and the run has one answer', async () => {
    const stage = await stageOf({ model: (_, index) => (index < 2 ? broken : say('fine')) })
    const crew = await stage.runtime.spawn(crewOf({ restart: 'fresh' }))
    const { output, messages, usage } = await crew.ask('go')
    expect([output, usage.modelCalls]).toEqual(['fine', 3])
    expect(messages.map(({ role }) => role)).toEqual(['user', 'assistant'])
    expect(new Set(stage.requests.map(({ messages }) => messages.join())).size).toBe(1)
    await stage.runtime.close()
  })

  test.each([
    ['of this run', [], []],
    ['of a run before', [say('nothing yet')], ['wait', 'nothing yet']],
  ])(
    'supervision: who handed over a conversation %s, and keeps it, goes on in what its fresh successor has made of it',
    async (_, first, before) => {
      const said = [...first, call(['transfer_to_closer', {}]), broken, say('fine'), say('once more')]
      const stage = await stageOf({ model: (_, index) => said[index]! })
      const chief = defineAgent({ model: 'a:one', instructions: 'chief', handoffs: ['closer'], continue: true })
      const closer = defineAgent({ model: 'a:one', instructions: 'closer' })
      const supervision = { restart: 'fresh' } as const
      const crew = await stage.runtime.spawn(
        defineCrew({ name: 'desk', agents: { chief, closer }, lead: 'chief', supervision }),
      )
      if (first.length > 0) await crew.ask('wait')
      expect((await crew.ask('go')).output).toBe('fine')
      expect((await crew.ask('again')).output).toBe('once more')
      const contents = stage.requests.at(-1)!.messages.map((text) => (JSON.parse(text) as { content: unknown }).content)
      expect(contents).toEqual(['chief', ...before, 'go', null, 'Done: closer goes on from here.', 'fine', 'again'])
      await stage.runtime.close()
    },
  )

  test('supervision: a crash between two restarts changes nothing', async () => {
    const hold = gate()
    const stage = await stageOf({
      model: async (_, index) => {
        if (index === 0) return broken
        await hold.opened
        return say('never')
      },
    })
    const crew = await stage.runtime.spawn(crewOf({ restart: 'fresh' }))
    crew.start('go', { key: 'k' }).result.catch(() => undefined)
    await until(() => stage.requests.length === 2)
    stage.crash()
    const { store, clock } = stage
    const again = await stageOf({ store, clock, unclean: true, model: () => say('fine') })
    const run = (await again.runtime.spawn(crewOf({ restart: 'fresh' }))).start('go', { key: 'k' })
    await expect(run.result).resolves.toMatchObject({ output: 'fine', usage: { modelCalls: 3 } })
    expect(again.requests.map(({ messages }) => messages)).toEqual([stage.requests[0]!.messages])
    hold.open()
    await again.runtime.close()
  })

  test('supervision: a resumed agent goes on with its next round, and its tool is told to stop', async () => {
    const stage = await stageOf({ model: (_, index) => (index === 0 ? call(['wait', {}]) : say('fine')) })
    const crew = await stage.runtime.spawn(crewOf({ restart: 'resume' }))
    const run = crew.start('go')
    await tools.started.opened
    await crew.steer('hurry').catch(() => undefined)
    await tools.aborted.opened
    await expect(run.result).resolves.toMatchObject({ output: 'fine' })
    expect(messagesOf(stage.requests.at(-1)!).at(-1)).toMatchObject({
      role: 'tool',
      content: expect.stringContaining('The outcome of this call is unknown'),
    })
    await stage.runtime.close()
  })

  test('supervision: a delegate begins anew for the same call; one that escalates ends the run', async () => {
    const model: StageOptions['model'] = (request, index) => {
      const [system] = messagesOf(request)
      if (system?.content === 'scout') return index === 1 ? broken : say('seen')
      return index === 0 ? call(['scout', { task: 'look' }]) : say('fine')
    }
    const stage = await stageOf({ model })
    const crew = await stage.runtime.spawn(crewOf({ restart: 'fresh' }))
    await expect(crew.ask('go')).resolves.toMatchObject({ output: 'fine' })
    expect(messagesOf(stage.requests.at(-1)!).at(-1)).toMatchObject({ role: 'tool', content: 'seen' })
    await stage.runtime.close()
    const other = await stageOf({ model })
    const strict = crewOf({ restart: 'fresh' }, { restart: 'never', then: 'escalate' })
    await expect((await other.runtime.spawn(strict)).ask('go')).rejects.toMatchObject({
      code: 'ACTOR_FAILED',
      message: expect.stringContaining('agent/scout-'),
    })
    await other.runtime.close()
  })

  test('supervision: nonsense is refused, an agent’s word comes before its crew’s, silence leaves no trace', async () => {
    const code = (options: unknown) => {
      try {
        return defineAgent({ model: 'a:one', instructions: '', supervision: options as SupervisionOptions })
      } catch (error) {
        return (error as TroupeError).code
      }
    }
    for (const bad of [{ restart: 'always' }, { intensity: -1 }, { periodMs: 0 }, { then: 'retry' }, { more: 1 }])
      expect(code(bad)).toBe('CREW_INVALID')
    const stage = await openStage()
    const dataOf = (crew: Parameters<typeof prepareCrew>[0]) => prepareCrew(crew, stage.bind(crew).model).data.agents
    const { chief, scout } = dataOf(crewOf({ restart: 'fresh', intensity: 7 }, { restart: 'resume', then: 'escalate' }))
    expect(chief?.supervision).toEqual({ restart: 'fresh', intensity: 7, periodMs: 600_000, then: 'stop' })
    expect(scout?.supervision).toEqual({ restart: 'resume', intensity: 7, periodMs: 600_000, then: 'escalate' })
    expect('supervision' in dataOf(crewOf(undefined))['chief']!).toBe(false)
    await stage.runtime.close()
  })
})
