import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import {
  type AgentOptions,
  type Crew,
  defineAgent,
  defineCrew,
  defineTool,
  type HandoffOptions,
} from '../../runtime/define.js'
import { hiddenFrom, placesIn } from '../../runtime/handoff.js'
import type { ModelRequest } from '../../runtime/ports.js'
import { call, gate, messagesOf, type Model, openStage, resultsIn, say, until } from '../support/crew-stage.js'
import { code, collect } from '../support/values.js'

const agentWith = (name: string, more: Partial<AgentOptions> = {}) =>
  defineAgent({ model: 'a:one', instructions: `You are ${name}.`, ...more })
const whoOf = ({ messages }: ModelRequest) => /You are (\w+)/.exec(messages[0] ?? '')?.[1] ?? 'nobody'
const rolesOf = (request: ModelRequest) => messagesOf(request).map(({ role }) => role)

const desk = (more: Partial<AgentOptions> = {}, closer: Partial<AgentOptions> = {}): Crew<unknown> =>
  defineCrew({
    name: 'desk',
    agents: { triage: agentWith('triage', { handoffs: ['billing'], ...more }), billing: agentWith('billing', closer) },
    lead: 'triage',
  })
/** The first hands over, the second answers. */
const hands: Model = (request) =>
  whoOf(request) === 'triage' ? call(['transfer_to_billing', { reason: 'money' }]) : say('It is paid.')

async function asked(crew: Crew<unknown>, model: Model) {
  const stage = await openStage({ model })
  try {
    const run = (await stage.runtime.spawn(crew)).start('My bill is wrong.')
    const events = collect(run.events)
    return { ...(await run.result), requests: stage.requests, events: await events }
  } finally {
    await stage.runtime.close({ graceMs: 0 })
  }
}

describe('hand-overs', () => {
  test('handoff: the next agent goes on with the conversation, under its own instructions, and answers the run', async () => {
    const { output, requests, events, messages, rounds } = await asked(desk(), hands)
    expect([output, rounds]).toEqual(['It is paid.', 2])
    expect(requests.map(whoOf)).toEqual(['triage', 'billing'])
    expect(rolesOf(requests[1]!)).toEqual(['system', 'user', 'assistant', 'tool'])
    expect(resultsIn(requests[1]!)).toEqual(['Done: billing goes on from here.'])
    expect(messages.map(({ role }) => role)).toEqual(['user', 'assistant', 'tool', 'assistant'])
    const told = events.filter(({ type }) => /handed|agent\./.test(type)).map(({ type, data }) => [type, data['agent']])
    expect(told).toEqual([
      ['troupe.agent.started', 'triage'],
      ['troupe.agent.handed', 'billing'],
      ['troupe.agent.finished', 'triage'],
      ['troupe.agent.started', 'billing'],
      ['troupe.agent.finished', 'billing'],
    ])
  })

  test('handoff: instructions that are functions are made for the next one, and the old ones are not shown', async () => {
    const heard: unknown[] = []
    const crew = desk(
      { instructions: () => 'You are triage, today.' },
      {
        instructions: (context) => {
          heard.push(context)
          return 'You are billing, today.'
        },
      },
    )
    const { requests, output } = await asked(crew, hands)
    expect(output).toBe('It is paid.')
    const shown = messagesOf(requests[1]!).filter(({ role }) => role === 'system')
    expect(shown.map(({ content }) => content)).toEqual(['You are billing, today.'])
    expect(rolesOf(requests[1]!)[0]).toBe('system')
    expect(heard).toEqual([{ agent: 'billing', input: 'My bill is wrong.', data: null }])
  })

  test('handoff: a history filter decides what the next one is shown, and is asked once', async () => {
    let filtered = 0
    const look = defineTool({ name: 'look', description: '', input: z.object({}), effect: 'pure', run: () => 'seen' })
    const history: HandoffOptions['history'] = (messages) => {
      filtered += 1
      return messages.filter(({ role }) => role === 'user')
    }
    const crew = desk({ tools: [look], handoffs: [{ agent: 'billing', history }] })
    const { requests, output } = await asked(crew, (request) => {
      if (whoOf(request) === 'billing') return say('x')
      return resultsIn(request).length === 0 ? call(['look', {}]) : call(['transfer_to_billing'])
    })
    expect(rolesOf(requests[2]!)).toEqual(['system', 'user', 'assistant', 'tool'])
    expect([filtered, output]).toEqual([1, 'x'])
  })

  test('handoff: a filter that throws, or brings what it was not given, is a refused call', async () => {
    const refusals: string[][] = []
    for (const history of [
      () => {
        throw new Error('planted')
      },
      () => [{ role: 'user', content: 'made up' }],
      () => null as never,
    ]) {
      const crew = desk({ handoffs: [{ agent: 'billing', history }] })
      const { requests } = await asked(crew, (request) =>
        resultsIn(request).length === 0 ? call(['transfer_to_billing']) : say('I stay.'),
      )
      refusals.push(resultsIn(requests[1]!))
    }
    const refused = 'Not done: the history filter must return some of the messages that it was given.'
    expect(refusals).toEqual([['Not done: the history filter threw: planted.'], [refused], [refused]])
  })

  test('handoff: of two in one reply the first counts, beside other calls, which are made before', async () => {
    const held = gate()
    const look = defineTool({
      ...{ name: 'look', description: '', input: z.object({}), effect: 'pure' as const },
      run: () => held.opened.then(() => 'seen'),
    })
    const agents = {
      triage: agentWith('triage', { tools: [look], handoffs: ['billing', 'sales'] }),
      billing: agentWith('billing'),
      sales: agentWith('sales'),
    }
    const stage = await openStage({
      model: (request) =>
        whoOf(request) === 'triage'
          ? call(['transfer_to_billing'], ['look', {}], ['transfer_to_sales'])
          : say(resultsIn(request).join(' | ')),
    })
    const result = (await stage.runtime.spawn(defineCrew({ name: 'd', agents, lead: 'triage' }))).ask('go')
    await until(() => stage.requests.length === 1)
    held.open()
    expect((await result).output).toBe(
      'Done: billing goes on from here. | seen | Not done: another call of the same reply hands over already.',
    )
    await stage.runtime.close({ graceMs: 0 })
  })

  test('handoff: a delegate hands over, and whoever called it gets the answer of the last one', async () => {
    const agents = {
      boss: agentWith('boss', { delegates: ['triage'] }),
      triage: agentWith('triage', { handoffs: ['billing'] }),
      billing: agentWith('billing'),
    }
    const { output } = await asked(defineCrew({ name: 'd', agents, lead: 'boss' }), (request) => {
      if (whoOf(request) !== 'boss') return hands(request, 0)
      return resultsIn(request).length === 0 ? call(['triage', { task: 'ask' }]) : say(resultsIn(request)[0]!)
    })
    expect(output).toBe('It is paid.')
  })

  test('handoff: a ring of hand-overs is broken before its third lap', async () => {
    const agents = {
      ping: agentWith('ping', { handoffs: ['pong'] }),
      pong: agentWith('pong', { handoffs: ['ping'] }),
    }
    const { output, requests, events } = await asked(defineCrew({ name: 'd', agents, lead: 'ping' }), (request) => {
      const refusal = resultsIn(request).find((text) => text.startsWith('Not done'))
      if (refusal !== undefined) return say(refusal)
      return call([whoOf(request) === 'ping' ? 'transfer_to_pong' : 'transfer_to_ping'])
    })
    expect(requests.map(whoOf)).toEqual(['ping', 'pong', 'ping', 'pong', 'pong'])
    expect(output).toContain('ping asks pong asks ping asks pong asks ping')
    expect(events.filter(({ type }) => type === 'troupe.loop.found')).toHaveLength(1)
  })

  test('handoff: structured answers are those of whoever has the conversation last', async () => {
    const output = z.object({ paid: z.boolean() })
    const { output: said } = await asked(desk({ output }, { output }), (request) =>
      whoOf(request) === 'triage' ? call(['transfer_to_billing']) : say('{"paid":true}'),
    )
    expect(said).toEqual({ paid: true })
  })

  test('handoff: it goes on behind a restart, with the view that was recorded', async () => {
    const held = gate()
    const crew = desk({
      handoffs: [{ agent: 'billing', history: (messages) => messages.slice(1) }],
    })
    const model: Model = async (request) => {
      if (whoOf(request) === 'billing') await held.opened
      return hands(request, 0)
    }
    const stage = await openStage({ model })
    const run = (await stage.runtime.spawn(crew)).start('secret', { key: 'k' })
    await until(() => stage.requests.length === 2)
    void run.result.catch(() => undefined)
    stage.crash()
    const next = await openStage({ model, store: stage.store, unclean: true })
    const again = (await next.runtime.spawn(crew)).start('secret', { key: 'k' })
    held.open()
    expect((await again.result).output).toBe('It is paid.')
    expect(next.requests.map(rolesOf)).toEqual([['system', 'assistant', 'tool']])
    await next.runtime.close({ graceMs: 0 })
  })

  test.each([
    [
      'an agent that is not there',
      { handoffs: ['nobody'] },
      {},
      "hands over to 'nobody', which is not one of its agents",
    ],
    ['itself', { handoffs: ['triage'] }, {}, "hands over to 'triage', which is itself"],
    ['one with another output', {}, { output: z.object({}) }, "hands over to 'billing', whose output is another one"],
    ['one by two ways', { handoffs: ['billing', { agent: 'billing' }] }, {}, 'two tools named transfer_to_billing'],
  ])('handoff: to %s is CREW_INVALID', (_, more, closer, message) => {
    expect(() => desk(more, closer)).toThrow(code('CREW_INVALID'))
    expect(() => desk(more, closer)).toThrow(message)
  })
})

describe('views', () => {
  const role = fc.constantFrom('system', 'user', 'assistant', 'tool')

  test('HO1 view: calls and their results are shown together or not at all, whatever a filter keeps', () => {
    fc.assert(
      fc.property(fc.array(role, { maxLength: 30 }), fc.array(fc.boolean(), { minLength: 30 }), (roles, keeps) => {
        const shown = roles.map((each, at) => ({ at: at * 2, text: JSON.stringify({ role: each, content: `${at}` }) }))
        const { hidden } = hiddenFrom(shown, (messages) => messages.filter((_, at) => keeps[at]))
        const isHidden = (at: number) => hidden.some(([from, to]) => at * 2 >= from && at * 2 <= to)
        roles.forEach((each, at) => {
          if (each === 'system') expect(isHidden(at)).toBe(true)
          const before = roles.slice(0, at).findLastIndex((other) => other !== 'system')
          if (each === 'tool' && before >= 0) expect(isHidden(at)).toBe(isHidden(before))
        })
      }),
    )
  })

  test('HO1 view: the system message of whoever hands over is hidden, also when it is not shown it any more', () => {
    const user = { at: 0, text: JSON.stringify({ role: 'user', content: 'hello' }) }
    const system = { at: 1, text: JSON.stringify({ role: 'system', content: 'You are the first.' }) }
    expect(hiddenFrom([system, user], undefined, 1).hidden).toEqual([[1, 1]])
    expect(hiddenFrom([user], undefined, 1).hidden).toEqual([[1, 1]])
    expect(hiddenFrom([user], () => [], 1).hidden).toEqual([[0, 1]])
  })

  test('HO2 view: what is hidden stays hidden, the system message comes first', () => {
    expect(placesIn(3, undefined)).toBe(null)
    expect(placesIn(6, { hidden: [[0, 1]], system: 4 })).toEqual([4, 2, 3, 5])
    expect(placesIn(6, { hidden: [[0, 1]], system: 4 }, true)).toEqual([2, 3, 5])
    const range = fc.tuple(fc.nat(20), fc.nat(4)).map(([from, more]): [number, number] => [from, from + more])
    fc.assert(
      fc.property(fc.array(range), fc.array(range), fc.nat(25), (before, later, length) => {
        const first = placesIn(length, { hidden: before, system: null })!
        const both = placesIn(length, { hidden: [...before, ...later], system: null })!
        expect(both.every((at) => first.includes(at))).toBe(true)
      }),
    )
  })
})
