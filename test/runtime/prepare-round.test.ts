import { describe, expect, test } from 'vitest'
import { type AgentOptions, defineCrew } from '../../runtime/define.js'
import { parallel, sequential } from '../../runtime/flow.js'
import type { ModelRequest } from '../../runtime/ports.js'
import type { RoundChanges, RoundContext } from '../../runtime/prepare-round.js'
import { call, failure, gate, openStage, resultsIn, say, type StageOptions, until } from '../support/crew-stage.js'
import { agentWith, asked, changing, contentsOf, looks, rolesOf, toolsOf } from '../support/rounds.js'
import { code } from '../support/values.js'

describe('prepareRound: what a round may have otherwise', () => {
  test('prepareRound: it is told what the round begins with, once each round, and may leave all as it is', async () => {
    const told: RoundContext[] = []
    const { output, requests } = await asked(
      {
        prepareRound: async (context) => {
          told.push(context)
          return undefined
        },
      },
      looks(2),
      { deps: { db: 'live' } },
    )
    expect([output, requests.length]).toEqual(['done', 3])
    expect(told.map(({ round, messages }) => [round, messages.length])).toEqual([
      [1, 1],
      [2, 3],
      [3, 5],
    ])
    expect(told[2]).toMatchObject({
      agent: 'agent',
      data: { tenant: 'a' },
      deps: { db: 'live' },
      tools: ['look', 'submit'],
    })
    expect(told[2]!.usage).toEqual({ tokens: 60, modelCalls: 2 })
    expect(told[2]!.cost).toEqual({ usd: 0.00008, nanoUsd: 80_000 })
    expect(rolesOf(requests[2]!)).toEqual(['system', 'user', 'assistant', 'tool', 'assistant', 'tool'])
  })

  test('RP2 prepareRound: model, tools, settings and instructions hold for their round only', async () => {
    const { requests, events } = await asked(
      changing(({ round }) =>
        round !== 2
          ? undefined
          : {
              model: ['b:two', 'a:one'],
              tools: ['submit'],
              settings: { temperature: 0.5 },
              instructions: 'Submit now.',
            },
      ),
      (_, index) => (index < 3 ? call(['look', { topic: `t${index}` }]) : say('done')),
    )
    expect(requests.map(({ deployment }) => deployment)).toEqual(['a:one', 'b:two', 'a:one', 'a:one'])
    expect(requests.map(toolsOf)).toEqual([['look', 'submit'], ['submit'], ['look', 'submit'], ['look', 'submit']])
    expect(requests.map(({ settings }) => settings.temperature)).toEqual([undefined, 0.5, undefined, undefined])
    expect(requests.map((each) => contentsOf(each)[0])).toEqual([
      'You are it.',
      'Submit now.',
      'You are it.',
      'You are it.',
    ])
    // RP2: a call of what it was not told of in this round is refused, and the model is told.
    expect(resultsIn(requests[2]!)[1]).toMatch(/^There is no tool named "look".* Your tools: submit/)
    expect(events.filter(({ type }) => type === 'troupe.model.called').map(({ data }) => data['deployments'])).toEqual([
      ['a:one'],
      ['b:two', 'a:one'],
      ['a:one'],
      ['a:one'],
    ])
  })

  test('prepareRound: no tools are none, and the round is sent without', async () => {
    const { requests } = await asked(
      changing(() => ({ tools: [] })),
      () => say('x'),
    )
    expect(requests[0]!.tools).toBeNull()
  })

  test('RP1 prepareRound: messages are left out and said beside for a round; the conversation stays whole', async () => {
    const summary = { role: 'user', content: 'So far: nothing.' }
    const { requests, messages } = await asked(
      changing(({ round, messages: given }) =>
        round === 3 ? { messages: [summary, ...given.slice(-1), { role: 'system', content: 'Be brief.' }] } : undefined,
      ),
      (_, index) => (index < 3 ? call(['look', { topic: `t${index}` }]) : say('done')),
    )
    // RND3: the result whose call is left out goes with it.
    expect(contentsOf(requests[2]!)).toEqual(['You are it.', 'So far: nothing.', 'Be brief.'])
    expect(rolesOf(requests[3]!)).toEqual([
      'system',
      'user',
      'assistant',
      'tool',
      'assistant',
      'tool',
      'assistant',
      'tool',
    ])
    expect(messages.map(({ role }) => role)).toEqual([
      'user',
      'assistant',
      'tool',
      'assistant',
      'tool',
      'assistant',
      'tool',
      'assistant',
    ])
  })

  test('RND3 prepareRound: a call is kept with its results, and a summary stands behind the system message', async () => {
    for (const instructions of ['You are it.', () => 'You are it.']) {
      const { requests } = await asked(
        {
          instructions,
          ...changing(({ round, messages: given }) =>
            round === 3 ? { messages: [{ role: 'user', content: 'Sum.' }, given[3]!] } : undefined,
          ),
        },
        looks(2),
      )
      const { length } = requests
      expect(contentsOf(requests[2]!)).toEqual(['You are it.', 'Sum.', null, 'saw t1'])
      expect(length).toBe(4)
    }
  })

  test('prepareRound: instructions stand in the place of those that a function made, and only then', async () => {
    const { requests, messages } = await asked(
      { instructions: () => 'Made once.', ...changing(({ round }) => (round === 2 ? { instructions: 'Now.' } : {})) },
      looks(2),
    )
    expect(requests.map((each) => contentsOf(each)[0])).toEqual(['Made once.', 'Now.', 'Made once.'])
    expect(requests.map((each) => rolesOf(each).filter((role) => role === 'system').length)).toEqual([1, 1, 1])
    expect(messages.some(({ role }) => role === 'system')).toBe(false)
  })

  test('prepareRound: the price and the size of what is sent are what is reserved, and what is billed', async () => {
    const prices: Record<string, number> = { 'a:one': 1_000_000, 'b:two': 50_000_000 }
    const requests: ModelRequest[] = []
    const modelPort = {
      call: async (request: ModelRequest) => {
        requests.push(request)
        return requests.length === 1 ? call(['look']) : say('done')
      },
      price: (name: string) => ({ input: prices[name]!, output: prices[name]! }),
      check: () => undefined,
      close: async () => undefined,
    }
    const both = {
      ...changing(({ round }) => (round === 2 ? { model: 'b:two' } : undefined)),
      settings: { maxOutputTokens: 300 },
    }
    const { cost } = await asked(both, () => say(''), { modelPort })
    // 30 tokens at a micro-dollar, 30 at fifty.
    expect(cost.nanoUsd).toBe(30 * 1_000 + 30 * 50_000)
    requests.length = 0
    // At the first price there would be room for both.
    const poor = defineCrew({ name: 'p', agents: { agent: agentWith(both) }, lead: 'agent', budget: { usd: 0.01 } })
    await expect(asked(poor, () => say(''), { modelPort })).rejects.toEqual(code('BUDGET_EXHAUSTED'))
    expect(requests).toHaveLength(1)
    requests.length = 0
    const large = 'x'.repeat(30_000)
    const short = { ...both, ...changing(({ round }) => (round === 1 ? {} : { instructions: large })) }
    const tokens = defineCrew({
      name: 't',
      agents: { agent: agentWith(short) },
      lead: 'agent',
      budget: { tokens: 9_000 },
    })
    await expect(asked(tokens, () => say(''), { modelPort })).rejects.toEqual(code('BUDGET_EXHAUSTED'))
    expect(requests).toHaveLength(1)
  })

  test('prepareRound: a round with less output asks for less', async () => {
    const { requests } = await asked(
      changing(() => ({ settings: { maxOutputTokens: 17 } })),
      () => say('x'),
    )
    expect(requests[0]).toMatchObject({ maxOutputTokens: 17, settings: { maxOutputTokens: 17 } })
  })

  test('prepareRound: a second try of the call has the same round, on its own list of models', async () => {
    let prepared = 0
    const { requests } = await asked(
      changing(() => {
        prepared += 1
        return { model: ['b:two', 'c:three'], instructions: `Prepared ${prepared}.` }
      }),
      (_, index) => (index === 0 ? failure('auth') : say('x')),
    )
    expect(prepared).toBe(1)
    expect(requests.map(({ deployment }) => deployment)).toEqual(['b:two', 'c:three'])
    expect(requests.map((each) => contentsOf(each)[0])).toEqual(['Prepared 1.', 'Prepared 1.'])
  })

  test('prepareRound: delegates, and agents of a flow, have their own', async () => {
    const named = (name: string): Partial<AgentOptions> =>
      changing(() => ({ instructions: `You are ${name}, prepared.` }))
    const agents = { lead: agentWith({ ...named('lead'), delegates: ['help'] }), help: agentWith(named('help')) }
    const whole = await asked(defineCrew({ name: 'd', agents, lead: 'lead' }), (request) => {
      if (contentsOf(request)[0] === 'You are help, prepared.') return say('helped')
      return resultsIn(request).length === 0 ? call(['help', { task: 'do it' }]) : say(resultsIn(request)[0]!)
    })
    expect(whole.output).toBe('helped')
    const flow = sequential(parallel(['lead', 'help']), 'lead')
    const { output, requests } = await asked(defineCrew({ name: 'f', agents, flow }), () => say('x'))
    expect([output, requests.length]).toEqual(['x', 3])
  })

  test('prepareRound: whoever goes on with a conversation is shown what a round left out', async () => {
    const agents = {
      triage: agentWith({ handoffs: ['closer'], ...changing(({ round }) => (round === 2 ? { messages: [] } : {})) }),
      closer: agentWith({ instructions: 'You close.' }),
    }
    const { requests } = await asked(defineCrew({ name: 'h', agents, lead: 'triage' }), (request, index) => {
      if (contentsOf(request)[0] === 'You close.') return say('x')
      return index === 0 ? call(['look']) : call(['transfer_to_closer'])
    })
    expect(rolesOf(requests[1]!)).toEqual(['system'])
    expect(rolesOf(requests[2]!)).toEqual(['system', 'user', 'assistant', 'tool', 'assistant', 'tool'])
  })
})

describe('prepareRound: what happens meanwhile', () => {
  /** A run whose first preparation waits until it is let go. */
  async function preparing(more: Partial<AgentOptions> = {}, options: StageOptions = {}) {
    const held = gate<RoundChanges>()
    const told: RoundContext[] = []
    const agent = agentWith({
      prepareRound: (context) => {
        told.push(context)
        return told.length === 1 ? held.opened : {}
      },
      ...more,
    })
    const stage = await openStage(options)
    const crew = await stage.runtime.spawn(agent, { id: 'c' })
    const run = crew.start('go')
    await until(() => told.length === 1)
    return { stage, crew, run, told, agent, held }
  }

  test('prepareRound: a message of the user joins, and the round is prepared with it', async () => {
    const { stage, crew, run, told, held } = await preparing()
    await crew.steer('also this')
    held.open({ instructions: 'Old.' })
    await run.result
    expect(told.map(({ messages }) => messages.length)).toEqual([1, 2])
    expect(contentsOf(stage.requests[0]!)).toEqual(['You are it.', 'go', 'also this'])
    await stage.runtime.close()
  })

  test('prepareRound: a cancel ends it at once, and its signal tells', async () => {
    const { stage, crew, run, told, held } = await preparing()
    await crew.cancel()
    await expect(run.result).rejects.toEqual(code('RUN_CANCELLED'))
    expect(told[0]!.signal.aborted).toBe(true)
    held.open({})
    expect(stage.requests).toHaveLength(0)
    await stage.runtime.close()
  })

  test('prepareRound: a pause holds the prepared round until it goes on', async () => {
    const { stage, crew, run, told, held } = await preparing()
    await crew.pause()
    held.open({ instructions: 'Kept.' })
    await until(async () => (await stage.runtime.show('c')).actors.some(({ state }) => state === 'held'))
    expect(stage.requests).toHaveLength(0)
    await crew.resume()
    await run.result
    expect([told.length, contentsOf(stage.requests[0]!)[0]]).toEqual([1, 'Kept.'])
    await stage.runtime.close()
  })

  test('prepareRound: what it waits for is shown', async () => {
    const { stage, run, held } = await preparing()
    const { actors } = await stage.runtime.show('c')
    expect(actors.find(({ state }) => state === 'preparing')).toMatchObject({ waitsFor: 'round 1 of agent' })
    held.open({})
    await run.result
    await stage.runtime.close()
  })

  test('RND1 prepareRound: when the process dies over it, it is asked again, and its prepared round outlives a death', async () => {
    const { stage, agent, told } = await preparing()
    stage.crash()
    const slow = gate()
    const second = await openStage({
      ...{ store: stage.store, clock: stage.clock, unclean: true },
      model: () => slow.opened.then(() => say('late')),
    })
    const made = agentWith({ prepareRound: agent.prepareRound!, instructions: 'You are it.' })
    await second.runtime.spawn(made, { id: 'c' })
    await until(() => second.requests.length === 1)
    expect(told).toHaveLength(2)
    second.crash()
    const third = await openStage({ store: stage.store, clock: stage.clock, unclean: true, model: () => say('done') })
    const crew = await third.runtime.spawn(made, { id: 'c' })
    const run = await crew.current()
    expect((await run!.result).output).toBe('done')
    // The call went again, with the round as it was prepared.
    expect(told).toHaveLength(2)
    await third.runtime.close()
  })

  test('RND1 prepareRound: a process that dies three times over it ends the agent, and is not asked a fourth time', async () => {
    const { stage, run } = await preparing()
    const id = await run.id
    let asked = 0
    const prepareRound = (): Promise<undefined> => {
      asked += 1
      return new Promise(() => undefined)
    }
    for (let death = 1; ; death++) {
      stage.crash()
      const next = await openStage({ store: stage.store, clock: stage.clock, unclean: true })
      const crew = await next.runtime.spawn(agentWith({ prepareRound }), { id: 'c' })
      if (death < 3) {
        await until(() => asked === death)
        continue
      }
      await expect(crew.run(id).result).rejects.toMatchObject({ code: 'EFFECT_CRASHED' })
      expect(asked).toBe(2)
      return next.runtime.close({ graceMs: 0 })
    }
  })

  test('prepareRound: code that is taken out, or put in, holds from the next round on, over a death too', async () => {
    const { stage, told } = await preparing()
    stage.crash()
    const plain = agentWith({})
    const { store, clock } = stage
    const second = await openStage({ store, clock, unclean: true, model: looks(2) })
    const crew = await second.runtime.spawn(plain, { id: 'c' })
    const run = await crew.current()
    expect((await run!.result).output).toBe('done')
    expect(told).toHaveLength(1)
    const held = gate()
    const next = await openStage({
      model: (request) => (resultsIn(request).length === 0 ? held.opened.then(() => call(['look'])) : say('done')),
    })
    const before = await next.runtime.spawn(plain, { id: 'c' })
    const going = before.start('go')
    await until(() => next.requests.length === 1)
    await next.runtime.spawn(agentWith(changing(() => ({ instructions: 'Put in.' }))), { id: 'c' })
    held.open()
    await going.result
    expect(next.requests.map((each) => contentsOf(each)[0])).toEqual(['You are it.', 'Put in.'])
    await second.runtime.close()
    await next.runtime.close()
  })

  test('prepareRound: an agent that waits for more money keeps its prepared round', async () => {
    let prepared = 0
    const poor = defineCrew({
      name: 'c',
      agents: {
        agent: agentWith(
          changing(() => {
            prepared += 1
            return { instructions: 'Kept.' }
          }),
        ),
      },
      lead: 'agent',
      budget: { tokens: 50, onExhausted: 'ask' },
    })
    const stage = await openStage({ model: () => say('x') })
    const crew = await stage.runtime.spawn(poor)
    const run = crew.start('go')
    await until(async () => (await crew.asks()).length === 1)
    const [ask] = await crew.asks()
    await crew.approve(ask!.id, { arguments: { tokens: 9_000 } })
    await run.result
    expect([prepared, contentsOf(stage.requests[0]!)[0]]).toEqual([1, 'Kept.'])
    await stage.runtime.close()
  })
})
