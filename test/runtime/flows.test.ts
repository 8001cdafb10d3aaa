import { describe, expect, expectTypeOf, test } from 'vitest'
import { z } from 'zod'
import { type AgentOptions, type Crew, defineAgent, defineCrew, defineTool } from '../../runtime/define.js'
import { parallel, sequential, supervisor } from '../../runtime/flow.js'
import type { ModelRequest } from '../../runtime/ports.js'
import { call, gate, type Model, openStage, quiet, resultsIn, say, until } from '../support/crew-stage.js'

const agent = (name: string) => defineAgent({ model: 'a:one', instructions: `You are ${name}.` })
const agentWith = (name: string, more: Partial<AgentOptions>) =>
  defineAgent({ model: 'a:one', instructions: `You are ${name}.`, ...more })
const named = (name: string) => defineTool({ name, description: '', input: z.object({}), run: () => '' })
/** Who is asked, by its system message. */
const whoOf = ({ messages }: ModelRequest) => /You are (\w+)/.exec(messages[0] ?? '')?.[1] ?? 'nobody'
const heard = ({ messages }: ModelRequest) =>
  messages.slice(1).map((text) => (JSON.parse(text) as { content: string }).content)
/** Says its name and what it has heard. */
const echoes: Model = (request) => say(`${whoOf(request)}(${heard(request).join('; ')})`)
const code = (wanted: string, message = '') =>
  expect.objectContaining({ code: wanted, message: expect.stringContaining(message) as string })
type OutputOf<Made> = Made extends Crew<infer Output> ? Output : never
const agents = { a: agent('a'), b: agent('b'), c: agent('c') }

async function asked(crew: Crew<unknown>, model: Model = echoes, input = 'go') {
  const stage = await openStage({ model })
  try {
    return await (await stage.runtime.spawn(crew)).ask(input)
  } finally {
    await stage.runtime.close({ graceMs: 0 })
  }
}

describe('flows', () => {
  test('flow: one after the other, each with the task and the answer before it', async () => {
    const crew = defineCrew({ name: 'line', agents, flow: sequential('a', 'b', 'c') })
    const { output, messages, usage } = await asked(crew)
    expect(output).toBe('c(go; b:\nb(go; a:\na(go)))')
    expect(messages.map(({ role }) => role)).toEqual(['user', 'assistant'])
    expect(usage.modelCalls).toBe(3)
    expectTypeOf<OutputOf<typeof crew>>().toEqualTypeOf<string>()
  })

  test('flow: at once, with all answers by name, or for the one behind them', async () => {
    const both = defineCrew({ name: 'pair', agents, flow: parallel(['b', 'a']) })
    expect((await asked(both)).output).toEqual({ b: 'b(go)', a: 'a(go)' })
    expectTypeOf<OutputOf<typeof both>>().toEqualTypeOf<{ readonly a: string; readonly b: string }>()
    const judged = defineCrew({ name: 'judged', agents, flow: sequential(parallel(['a', 'b']), 'c') })
    expect((await asked(judged)).output).toBe('c(go; a:\na(go); b:\nb(go))')
  })

  test('flow: a supervisor gets the task, gives parts of it to the others, and answers', async () => {
    const shaped = { ...agents, c: agentWith('c', { output: z.object({ n: z.number() }), delegates: ['b'] }) }
    const crew = defineCrew({ name: 'led', agents: shaped, flow: supervisor('c', ['a', 'b']) })
    expect(crew.agents['c']!.delegates).toEqual(['b', 'a'])
    const model: Model = (request) => {
      if (whoOf(request) !== 'c') return echoes(request, 0)
      return resultsIn(request).length === 0 ? call(['a', { task: 'one' }], ['b', { task: 'two' }]) : say('{"n":2}')
    }
    const stage = await openStage({ model })
    expect((await (await stage.runtime.spawn(crew)).ask('go')).output).toEqual({ n: 2 })
    expect(resultsIn(stage.requests.at(-1)!)).toEqual(['a(one)', 'b(two)'])
    await stage.runtime.close({ graceMs: 0 })
    expect(agents.c.delegates).toEqual([])
  })

  test.each([
    ['nobody to work for it', () => supervisor('a', []), 'supervisor'],
    ['itself to work for it', () => supervisor('a', ['a']), 'supervisor: an agent is there twice'],
    ['an agent twice', () => supervisor('a', ['b', 'b']), 'supervisor: an agent is there twice'],
    [
      'one that is not there',
      () => defineCrew({ name: 'x', agents, flow: supervisor('a', ['z']) }),
      "a delegates to 'z', which is not one of its agents",
    ],
    [
      'one that is not there in its place',
      () => defineCrew({ name: 'x', agents, flow: supervisor('z', ['a']) as never }),
      "flow 'z' is not one of its agents",
    ],
    [
      'a tool of the same name',
      () =>
        defineCrew({
          name: 'x',
          agents: { ...agents, d: agentWith('d', { tools: [named('a')] }) },
          flow: supervisor('d', ['a']),
        }),
      'two tools named a',
    ],
  ])('flow: a supervisor with %s is CREW_INVALID', (_, made, message) => {
    expect(made).toThrow(code('CREW_INVALID') as Error)
    expect(made).toThrow(message)
  })

  test('flow: structured answers keep their types', async () => {
    const shaped = { a: agentWith('a', { output: z.object({ n: z.number() }) }), b: agent('b') }
    const model: Model = (request) => say(whoOf(request) === 'a' ? '{"n":7}' : 'text')
    expect((await asked(defineCrew({ name: 'x', agents: shaped, flow: sequential('b', 'a') }), model)).output).toEqual({
      n: 7,
    })
    const both = defineCrew({ name: 'y', agents: shaped, flow: parallel(['a', 'b']) })
    expect((await asked(both, model)).output).toEqual({ a: { n: 7 }, b: 'text' })
    const race = defineCrew({ name: 'z', agents: shaped, flow: parallel(['a', 'b'], { join: 'first' }) })
    expect(
      (await asked(race, (request) => (whoOf(request) === 'a' ? say('{"n":7}') : gate<never>().opened))).output,
    ).toEqual({
      n: 7,
    })
  })

  test('flow: of a race the first answer counts, the others are cancelled, and what they had not spent is there again', async () => {
    const stage = await openStage({
      model: (request) => (whoOf(request) === 'b' ? say('won') : gate<never>().opened),
    })
    const crew = await stage.runtime.spawn(
      defineCrew({
        ...{ name: 'race', agents, budget: { modelCalls: 4 } },
        flow: sequential(parallel(['a', 'b', 'c'], { join: 'first' }), 'b'),
      }),
    )
    const { output, usage } = await crew.ask('go')
    expect(output).toBe('won')
    // The calls of those that lost were made, and are paid for at their worst.
    expect(usage.modelCalls).toBe(4)
    await until(() => stage.requests.filter(({ signal }) => signal.aborted).length === 2)
    await stage.runtime.close({ graceMs: 0 })
  })

  test('flow: of a race whoever can pay answers, and when nobody can it ends', async () => {
    const raceFor = (modelCalls: number) =>
      defineCrew({
        ...{ name: 'race', agents, budget: { modelCalls } },
        flow: parallel(['a', 'b'], { join: 'first' }),
      })
    const slow = gate()
    const stage = await openStage({ model: (request) => slow.opened.then(() => echoes(request, 0)) })
    const run = (await stage.runtime.spawn(raceFor(1))).start('go')
    await until(() => stage.requests.length === 1)
    await quiet()
    slow.open()
    expect((await run.result).output).toBe('a(go)')
    expect(stage.requests).toHaveLength(1)
    await stage.runtime.close()
    await expect(asked(raceFor(0))).rejects.toEqual(
      code('BUDGET_EXHAUSTED', 'b: the budget of modelCalls is spent (account run)'),
    )
  })

  test('flow: one that fails ends the run, by its code and name', async () => {
    const crew = defineCrew({
      name: 'line',
      agents: { ...agents, b: agentWith('b', { budget: { modelCalls: 0 } }) },
      flow: sequential('a', 'b'),
    })
    const why = 'b: the budget of modelCalls is spent (account run/b)'
    await expect(asked(crew)).rejects.toEqual(code('BUDGET_EXHAUSTED', why))
  })

  test('flow: instructions that are a function are made for each of its agents', async () => {
    const made = (name: string) =>
      agentWith(name, { instructions: ({ data }) => `You are ${name} for ${String(data)}.` })
    const seen: string[] = []
    const stage = await openStage({
      model: (request) => {
        seen.push(request.messages[0]!)
        return echoes(request, 0)
      },
    })
    const crew = await stage.runtime.spawn(
      defineCrew({ name: 'line', agents: { a: made('a'), b: made('b') }, flow: sequential('a', 'b') }),
    )
    expect((await crew.ask('go', { data: 'ada' })).output).toBe('b(go; a:\na(go))')
    expect(seen).toEqual(
      ['a', 'b'].map((name) => JSON.stringify({ role: 'system', content: `You are ${name} for ada.` })),
    )
    await stage.runtime.close()
  })

  test('flow: goes on over deaths of the process, and asks nobody twice who has answered', async () => {
    const crew = defineCrew({ name: 'line', agents, flow: sequential(parallel(['a', 'b']), 'c') })
    const slow = gate()
    const model: Model = (request) =>
      whoOf(request) === 'b' ? slow.opened.then(() => echoes(request, 0)) : echoes(request, 0)
    let stage = await openStage({ model })
    const { clock, store } = stage
    const id = await (await stage.runtime.spawn(crew)).start('go').id
    await until(() => stage.requests.length === 2)
    await quiet()
    stage.crash()
    stage = await openStage({ store, clock, unclean: true, model })
    const again = await stage.runtime.spawn(crew)
    await until(() => stage.requests.length === 1)
    expect(stage.requests.map(whoOf)).toEqual(['b'])
    slow.open()
    expect((await again.run(id).result).output).toBe('c(go; a:\na(go); b:\nb(go))')
    await stage.runtime.close()
  })

  test('flow: paused, resumed, steered and cancelled like any run', async () => {
    const slow = gate()
    const stage = await openStage({
      model: (request, index) => (index === 0 ? slow.opened.then(() => echoes(request, 0)) : echoes(request, 0)),
    })
    const crew = await stage.runtime.spawn(defineCrew({ name: 'line', agents, flow: sequential('a', 'b') }))
    const run = crew.start('go')
    await until(() => stage.requests.length === 1)
    await crew.steer('and briefly')
    await crew.pause()
    slow.open()
    await quiet()
    expect(stage.requests).toHaveLength(1)
    await crew.resume()
    expect((await run.result).output).toContain('and briefly')
    const other = crew.start('again')
    await other.id
    await other.cancel()
    await expect(other.result).rejects.toEqual(code('RUN_CANCELLED'))
    await stage.runtime.close({ graceMs: 0 })
  })

  test('flow: nonsense is refused', () => {
    const refused: readonly (() => unknown)[] = [
      () => sequential(),
      () => parallel(['a']),
      () => parallel(['a', 'a']),
      () => sequential('no name'),
      () => defineCrew({ name: 'x', agents, flow: sequential('a', 'nobody') } as never),
      () => defineCrew({ name: 'x', agents, lead: 'a', flow: sequential('a') } as never),
      () => defineCrew({ name: 'x', agents } as never),
      () => defineCrew({ name: 'x', agents, flow: ['a'] } as never),
    ]
    for (const make of refused) expect(make).toThrow(code('CREW_INVALID'))
  })
})
