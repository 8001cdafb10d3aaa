import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { type AgentOptions, defineCrew, defineTool } from '../../runtime/define.js'
import { parallel, sequential } from '../../runtime/flow.js'
import { all, any, calledTool, not, roundsAre, spentAtLeast, textMatches } from '../../runtime/stop-condition.js'
import { call, gate, type Model, openStage, resultsIn, say, until } from '../support/crew-stage.js'
import { agentWith, asked, contentsOf, input, look, looks, rolesOf, submit } from '../support/rounds.js'
import { code, collect } from '../support/values.js'

describe('stop conditions', () => {
  const text = { role: 'assistant', content: 'Thinking aloud.' }
  /** Looks again and again, and says something each time. */
  const endless: Model = (request) => {
    const made = call(['look', { topic: `t${resultsIn(request).length}` }])
    return {
      ...made,
      text: text.content,
      message: JSON.stringify({ ...JSON.parse(made.message), ...text }),
    } as typeof made
  }

  test('RND4 stopWhen: so many rounds are made, and the answer is what was said last', async () => {
    const { output, finishReason, rounds, messages, requests, events } = await asked(
      { stopWhen: roundsAre(2) },
      endless,
    )
    expect([output, finishReason, rounds, requests.length]).toEqual(['Thinking aloud.', 'stopped', 2, 2])
    expect(messages.map(({ role }) => role)).toEqual(['user', 'assistant', 'tool', 'assistant', 'tool', 'assistant'])
    expect(events.find(({ type }) => type === 'troupe.agent.stopped')?.data).toMatchObject({
      agent: 'agent',
      condition: 'roundsAre(2)',
    })
  })

  test('stopWhen: a call that was answered ends it with its result; one that was refused or failed does not', async () => {
    const fails = defineTool({
      ...{ name: 'fails', description: '', input, effect: 'pure', retries: 0 },
      run: () => {
        throw new Error('planted')
      },
    })
    const { output, rounds } = await asked(
      { tools: [submit, look, fails], stopWhen: [calledTool('submit'), calledTool('fails')] },
      (_, index) =>
        index === 0
          ? call(['submit', { wrong: 1 }])
          : index === 1
            ? call(['fails'], ['look'])
            : call(['look', { topic: 'y' }], ['submit', { text: 'final' }]),
    )
    expect([output, rounds]).toEqual(['{"text":"final"}', 3])
  })

  test('stopWhen: with an output the result must fit it', async () => {
    const shape = z.object({ text: z.string().transform((said) => said.length) })
    const submits: Model = () => call(['submit', { text: 'final' }])
    const typed = await asked({ output: shape, stopWhen: calledTool('submit') }, submits)
    expect(typed.output).toEqual({ text: 5 })
    const misfit = asked({ output: z.object({ other: z.string() }), stopWhen: calledTool('submit') }, submits)
    await expect(misfit).rejects.toMatchObject({
      code: 'OUTPUT_INVALID',
      message: expect.stringMatching(/^calledTool\(submit\) has stopped it/),
    })
  })

  test('stopWhen: one that stops without a word answers nothing', async () => {
    const { output } = await asked({ stopWhen: roundsAre(1) }, looks(9))
    expect(output).toBe('')
  })

  test('STC2 stopWhen: money and tokens, text, and functions, each alone and combined, in their order', async () => {
    const rounds = async (stopWhen: AgentOptions['stopWhen']) => (await asked({ stopWhen: stopWhen! }, endless)).rounds
    // 30 tokens and 40 micro-dollars a call.
    expect(await rounds(spentAtLeast({ tokens: 60 }))).toBe(2)
    expect(await rounds(spentAtLeast({ usd: 0.0001 }))).toBe(3)
    expect(await rounds(textMatches('aloud'))).toBe(1)
    const unasked = (): boolean => {
      throw new Error('asked')
    }
    expect(await rounds(any(roundsAre(1), unasked))).toBe(1)
    expect(await rounds([all(roundsAre(9), unasked), roundsAre(2)])).toBe(2)
    expect(await rounds([textMatches(/^ALOUD/i), roundsAre(3)])).toBe(3)
    expect(await rounds(all(textMatches(/^thinking/i), roundsAre(2)))).toBe(2)
    expect(await rounds(any(all(calledTool('look'), not(spentAtLeast({ tokens: 1 }))), roundsAre(4)))).toBe(4)
    expect(
      await rounds(
        all(
          roundsAre(1),
          not(({ round }) => round < 3),
        ),
      ),
    ).toBe(3)
    expect(
      await rounds(
        any(
          () => false,
          async ({ lastCalls }) => lastCalls[0]?.result === 'saw t1',
        ),
      ),
    ).toBe(2)
  })

  test('stopWhen: a function is told of the last round', async () => {
    const told: unknown[] = []
    const notes: AgentOptions['stopWhen'] = ({ signal: _, messages, ...context }) => {
      told.push({ ...context, messages: messages.length })
      return true
    }
    await asked({ stopWhen: notes }, () => call(['look'], ['nope', 'x']), { deps: 7 })
    expect(told).toEqual([
      {
        ...{
          agent: 'agent',
          runId: expect.any(String),
          round: 1,
          messages: 4,
          text: '',
          data: { tenant: 'a' },
          deps: 7,
        },
        lastCalls: [
          { name: 'look', arguments: '{}', result: 'saw x', ok: true },
          { name: 'nope', arguments: 'x', result: expect.stringMatching(/no tool named/), ok: false },
        ],
        ...{ usage: { tokens: 30, modelCalls: 1 }, cost: { usd: 0.00004, nanoUsd: 40_000 } },
      },
    ])
  })

  test('stopWhen: an answer is an answer, and no condition is asked', async () => {
    const { output, finishReason } = await asked(
      {
        stopWhen: () => {
          throw new Error('asked')
        },
      },
      () => say('mine'),
    )
    expect([output, finishReason]).toEqual(['mine', 'stop'])
  })

  test('RND2 stopWhen: a function that throws, or says neither, ends the agent', async () => {
    const ended = asked(
      {
        stopWhen: () => {
          throw new Error('planted')
        },
      },
      endless,
    )
    await expect(ended).rejects.toMatchObject({ code: 'CALLBACK_FAILED', message: 'stopWhen failed: planted' })
    const neither = asked({ stopWhen: (() => 'yes') as never }, endless)
    await expect(neither).rejects.toMatchObject({ code: 'CALLBACK_FAILED', message: /true or false/ })
  })

  test('stopWhen: delegates, hand-overs and flows are stopped like a lead, and go on in the run', async () => {
    const agents = {
      lead: agentWith({ delegates: ['help'] }),
      help: agentWith({ instructions: 'You help.', stopWhen: calledTool('look') }),
    }
    const helps: Model = (request) => {
      if (contentsOf(request)[0] === 'You help.') return call(['look', { topic: 'deep' }])
      return resultsIn(request).length === 0 ? call(['help', { task: 'x' }]) : say(resultsIn(request)[0]!)
    }
    expect((await asked(defineCrew({ name: 'd', agents, lead: 'lead' }), helps)).output).toBe('saw deep')
    const flow = sequential('help', parallel(['help', 'lead']))
    const both = await asked(defineCrew({ name: 'f', agents, flow }), helps)
    expect(both.output).toEqual({ help: 'saw deep', lead: 'saw deep' })
  })

  test('stopWhen: a kept conversation goes on behind a stop, and counts its own rounds', async () => {
    const stage = await openStage({ model: endless })
    const crew = await stage.runtime.spawn(agentWith({ continue: true, stopWhen: roundsAre(2) }))
    const first = await crew.ask('one')
    const second = await crew.ask('two')
    expect([first.rounds, second.rounds, second.output]).toEqual([2, 2, 'Thinking aloud.'])
    expect(rolesOf(stage.requests[2]!).slice(-2)).toEqual(['assistant', 'user'])
    await stage.runtime.close()
  })

  test('stopWhen: what the user said behind the last round goes unheard, and is told', async () => {
    const held = gate<boolean>()
    const stage = await openStage({ model: endless })
    let isAsked = false
    const crew = await stage.runtime.spawn(
      agentWith({
        stopWhen: () => {
          isAsked = true
          return held.opened
        },
      }),
    )
    const run = crew.start('go')
    const events = collect(run.events)
    await until(() => isAsked)
    await crew.steer('wait')
    held.open(true)
    expect((await run.result).finishReason).toBe('stopped')
    expect((await events).map(({ type }) => type)).toContain('troupe.agent.unsteered')
    await stage.runtime.close()
  })

  test('stopWhen: it comes before prepareRound, which is not asked for a round that is not made', async () => {
    const prepared: number[] = []
    const { rounds } = await asked(
      {
        stopWhen: roundsAre(2),
        prepareRound: ({ round }) => {
          prepared.push(round)
          return undefined
        },
      },
      endless,
    )
    expect([rounds, prepared]).toEqual([2, [1, 2]])
  })

  test('stopWhen: nonsense is refused where it is written', () => {
    const refused = (make: () => unknown) => expect(make).toThrow(code('CREW_INVALID') as Error)
    refused(() => roundsAre(0))
    refused(() => spentAtLeast({}))
    refused(() => calledTool(''))
    refused(() => any())
    refused(() => all('x' as never))
    refused(() => not(null as never))
    refused(() => textMatches(''))
    refused(() => agentWith({ stopWhen: [] }))
    refused(() => agentWith({ stopWhen: [7 as never] }))
    refused(() => agentWith({ stopWhen: any(textMatches('x'), roundsAre(20)) }))
    refused(() => agentWith({ prepareRound: 7 as never }))
    refused(() => agentWith({ limits: { prepareMs: 0 } }))
    refused(() => Array.from({ length: 17 }).reduce<ReturnType<typeof not>>((inner) => not(inner), roundsAre(1)))
  })

  test('stopWhen: a tool that the agent has not is refused with its crew', async () => {
    const stage = await openStage()
    const spawned = (stopWhen: AgentOptions['stopWhen']) =>
      stage.runtime.spawn(agentWith({ stopWhen: stopWhen!, delegates: [] }))
    for (const wrong of [calledTool('sumbit'), any(not(all(calledTool('sumbit'), roundsAre(2))))])
      await expect(spawned(wrong)).rejects.toEqual(code('CREW_INVALID'))
    await expect(spawned(calledTool('submit'))).resolves.toBeDefined()
    await stage.runtime.close()
  })

  test('STC1 stopWhen: conditions are part of the definition, functions by their names', async () => {
    const stage = await openStage()
    const hash = (more: Partial<AgentOptions>) =>
      stage.bind(defineCrew({ name: 'c', agents: { agent: agentWith(more) }, lead: 'agent' })).prepared.hash
    const own = (): boolean => true
    expect(hash({ stopWhen: roundsAre(2) })).toBe(hash({ stopWhen: [roundsAre(2)] }))
    const all_ = [
      {},
      ...[roundsAre(2), roundsAre(3), textMatches('a'), textMatches(/a/), textMatches(/a/i), own].map((stopWhen) => ({
        stopWhen,
      })),
      ...[any(own), not(own), not(roundsAre(2)), not(any(roundsAre(2), own))].map((stopWhen) => ({ stopWhen })),
      {
        prepareRound: function first() {
          return undefined
        },
      },
      {
        prepareRound: function second() {
          return undefined
        },
      },
    ].map(hash)
    expect(new Set(all_).size).toBe(all_.length)
    await stage.runtime.close()
  })
})
