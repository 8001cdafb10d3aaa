import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { defineAgent, defineCrew, defineTool, type ToolOptions } from '../../runtime/define.js'
import type { TroupeEvent } from '../../runtime/events.js'
import type { Run } from '../../runtime/run.js'
import { call, messagesOf, openStage, resultsIn, say, type Stage } from '../support/crew-stage.js'

const rounds = 40

/** A tool that counts its runs. */
function lookupTool(answer: (run: number) => string, more: Partial<ToolOptions> = {}) {
  const made: unknown[] = []
  const lookup = defineTool({
    ...{ name: 'lookup', description: '', effect: 'pure', input: z.object({ a: z.number(), b: z.number() }), ...more },
    run: (input: unknown) => answer(made.push(input)),
  })
  return { lookup, made }
}

/** A model that asks for the same, in other letters each time, until it has so many results. */
const stubborn = (until: number) => ({
  model: (request: Parameters<typeof resultsIn>[0], index: number) => {
    const args = index % 2 === 0 ? { a: 1, b: 2 } : { b: 2, a: 1 }
    return resultsIn(request).length < until ? call(['lookup', args]) : say('done')
  },
})

async function eventsOf(run: Run<unknown>): Promise<TroupeEvent[]> {
  const events: TroupeEvent[] = []
  for await (const event of run.events) events.push(event)
  return events
}
const found = async (run: Run<unknown>) =>
  (await eventsOf(run)).filter(({ type }) => type === 'troupe.loop.found').map(({ data }) => data)

function clerk(tools: ReturnType<typeof lookupTool>['lookup'][], loops?: false) {
  const limits = loops === undefined ? { rounds } : { rounds, loops }
  return defineAgent({ name: 'clerk', model: 'a:one', instructions: 'x', tools, limits })
}

async function start(stage: Stage, ...of: Parameters<typeof clerk>) {
  return (await stage.runtime.spawn(clerk(...of), { id: 'desk' })).start('go')
}

describe('loops', () => {
  test('loops: an agent that repeats itself is told, refused, stopped; its calls are made four times', async () => {
    const { lookup, made } = lookupTool(() => 'the same')
    const stage = await openStage(stubborn(rounds))
    const run = await start(stage, [lookup])
    await expect(run.result).rejects.toMatchObject({ code: 'LOOP_DETECTED' })
    expect(made).toHaveLength(4)
    const said = messagesOf(stage.requests.at(-1)!).map(({ role, content }) => `${role} ${String(content)}`)
    expect(said.filter((text) => text.startsWith('user'))).toEqual(['user go', expect.stringContaining('nothing new')])
    expect(said.at(-1)).toContain('Not done: 3 rounds of calls have brought nothing new')
    expect((await found(run)).map(({ agent, rung, rounds: stale }) => [agent, rung, stale])).toEqual([
      ['clerk', 'warn', 2],
      ['clerk', 'block', 3],
      ['clerk', 'stop', 4],
    ])
    await stage.runtime.close()
  })

  test('loops: whoever does something else after the warning, or answers, has lost nothing', async () => {
    const { lookup } = lookupTool(() => 'the same')
    const stage = await openStage(stubborn(5))
    const run = await start(stage, [lookup])
    expect((await run.result).output).toBe('done')
    expect((await found(run)).map(({ rung }) => rung)).toEqual(['warn', 'block'])
    await stage.runtime.close()
  })

  test.each([
    ['answers that change', () => lookupTool((run) => `answer ${run}`), undefined],
    ['a tool that is to be asked again', () => lookupTool(() => 'not yet', { polling: true }), undefined],
    ['an agent that may repeat itself', () => lookupTool(() => 'the same'), false as const],
  ])('loops: %s are no loop', async (_, make, loops) => {
    const { lookup, made } = make()
    const stage = await openStage(stubborn(30))
    const run = await start(stage, [lookup], loops)
    expect((await run.result).output).toBe('done')
    expect(made).toHaveLength(30)
    expect(await found(run)).toEqual([])
    await stage.runtime.close()
  })

  test('loops: calls that cannot be made are repeated like any other', async () => {
    const stage = await openStage({ model: () => call(['nonsense', { x: 1 }]) })
    const run = await start(stage, [lookupTool(() => '').lookup])
    await expect(run.result).rejects.toMatchObject({ code: 'LOOP_DETECTED' })
    expect(stage.requests).toHaveLength(6)
    await stage.runtime.close()
  })

  test('loops: what was seen is not forgotten when the process dies', async () => {
    const { lookup, made } = lookupTool(() => 'the same')
    const first = await openStage({
      model: (request) =>
        resultsIn(request).length === 3 ? new Promise(() => undefined) : call(['lookup', { a: 1, b: 2 }]),
    })
    const run = await start(first, [lookup])
    run.result.catch(() => undefined)
    await expect.poll(() => first.requests.length).toBe(4)
    first.crash()
    const second = await openStage({ ...stubborn(rounds), store: first.store, clock: first.clock, unclean: true })
    const crew = await second.runtime.spawn(clerk([lookup]), { id: 'desk' })
    await expect(crew.run(await run.id).result).rejects.toMatchObject({ code: 'LOOP_DETECTED' })
    expect(made).toHaveLength(4)
    await second.runtime.close()
  })

  test('loops: agents that ask each other in a ring end before the third lap, and the answer comes home', async () => {
    const asks = (name: string) =>
      defineAgent({ model: 'a:one', instructions: name, delegates: [name === 'a' ? 'b' : 'a'] })
    const crew = defineCrew({ name: 'pair', agents: { a: asks('a'), b: asks('b') }, lead: 'a' })
    const stage = await openStage({
      model: (request, index) => {
        const [system] = messagesOf(request)
        const [result] = resultsIn(request)
        return result === undefined
          ? call([system?.content === 'a' ? 'b' : 'a', { task: `part ${index}` }])
          : say(`said: ${result}`)
      },
    })
    const run = (await stage.runtime.spawn(crew, { id: 'pair' })).start('go')
    const { output } = await run.result
    expect(output).toContain('Not done: a asks b asks a asks b asks a')
    expect(await found(run)).toMatchObject([{ ring: ['a', 'b', 'a', 'b', 'a'] }])
    expect(stage.requests).toHaveLength(8)
    await stage.runtime.close()
  })

  /** Two crews whose agents may ask each other; what a model says to its results. */
  async function twoCrews(
    next: (name: string, results: readonly string[], index: number) => string | { answer: string },
  ) {
    const other = { p: 'q', q: 'p' } as const
    const stage = await openStage({
      model: (request, index) => {
        const name = request.deployment.slice(2)
        const task = next(name, resultsIn(request), index)
        return typeof task === 'string' ? call([`${other[name as 'p']}_worker`, { task }]) : say(task.answer)
      },
    })
    const spawn = (id: 'p' | 'q') => {
      const delegates = [`${other[id]}/agent/worker`]
      const worker = defineAgent({ model: `a:${id}`, instructions: id, delegates, limits: { rounds } })
      return stage.runtime.spawn(defineCrew({ name: id, agents: { worker }, lead: 'worker' }), { id })
    }
    const [p] = [await spawn('p'), await spawn('q')]
    const asked = (name: string) => stage.requests.filter(({ deployment }) => deployment === `a:${name}`).length
    return { stage, run: p.start('go'), asked }
  }

  test('loops: crews that ask each other end within the first lap, and the answer comes home', async () => {
    const { stage, run, asked } = await twoCrews((name, results) =>
      results.length === 0 ? `for ${name}` : { answer: `told: ${results.join()}` },
    )
    const { output } = await run.result
    expect(output).toContain('DELEGATION_FAILED: the crew p waits for it itself')
    expect([asked('p'), asked('q')]).toEqual([2, 2])
    // The task that came back was refused as a run that did nothing.
    expect((await stage.runtime.show('p')).runs).toMatchObject([
      { code: null },
      { code: 'DELEGATION_FAILED', rounds: 0 },
    ])
    await stage.runtime.close()
  })

  test('loops: crews that go on asking each other, whatever they are told, are both stopped', async () => {
    const { stage, run, asked } = await twoCrews(() => 'the same')
    await expect(run.result).rejects.toMatchObject({ code: 'LOOP_DETECTED' })
    expect((await stage.runtime.show('q')).runs.every(({ code }) => code === 'LOOP_DETECTED')).toBe(true)
    // The third equal task is the first that could be known to bring nothing; it is warned of, the next one is refused.
    expect((await stage.runtime.show('q')).runs.length).toBeLessThanOrEqual(4)
    expect(asked('p')).toBeLessThanOrEqual(6)
    await stage.runtime.close()
  })

  test('loops: a crew that is asked the same by another, and says the same, is not asked for ever', async () => {
    const { stage, run } = await twoCrews((name) => (name === 'p' ? 'the same' : { answer: 'as before' }))
    await expect(run.result).rejects.toMatchObject({ code: 'LOOP_DETECTED' })
    expect((await found(run)).map(({ rung }) => rung)).toEqual(['warn', 'block', 'stop'])
    expect((await stage.runtime.show('q')).runs).toHaveLength(4)
    await stage.runtime.close()
  })

  test('loops: an agent of the same crew that is asked the same, and says the same, is not asked for ever', async () => {
    const a = defineAgent({ model: 'a:a', instructions: 'a', delegates: ['b'], limits: { rounds } })
    const b = defineAgent({ model: 'a:b', instructions: 'b' })
    const stage = await openStage({
      model: ({ deployment }) => (deployment === 'a:a' ? call(['b', { task: 'the same' }]) : say('as before')),
    })
    const crew = defineCrew({ name: 'pair', agents: { a, b }, lead: 'a' })
    const run = (await stage.runtime.spawn(crew)).start('go')
    await expect(run.result).rejects.toMatchObject({ code: 'LOOP_DETECTED' })
    expect(stage.requests.filter(({ deployment }) => deployment === 'a:b')).toHaveLength(4)
    await stage.runtime.close()
  })

  test('loops: a crew that is asked the same and has something new to say is asked on', async () => {
    const { stage, run } = await twoCrews((name, results, index) =>
      name === 'q' ? { answer: `news ${index}` } : results.length < 12 ? 'the same' : { answer: 'well' },
    )
    expect((await run.result).output).toBe('well')
    expect((await stage.runtime.show('q')).runs).toHaveLength(12)
    await stage.runtime.close()
  })
})
