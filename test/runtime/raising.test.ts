import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import type { Budget } from '../../runtime/budget.js'
import { defineAgent, defineCrew, defineTool } from '../../runtime/define.js'
import type { ModelRequest } from '../../runtime/ports.js'

import { call, type Model, openStage, quiet, resultsIn, say, type Stage, until } from '../support/crew-stage.js'

const look = defineTool({
  ...{ name: 'look', description: '', input: z.object({ at: z.number() }), effect: 'pure' },
  run: ({ at }) => `seen ${at}`,
})
/** Looks at so many things, one a round, then says what it saw. */
const looks =
  (rounds: number): Model =>
  (request) => {
    const seen = resultsIn(request)
    return seen.length < rounds ? call(['look', { at: seen.length }]) : say(seen.join(', '))
  }
const scout = { model: 'a:one', instructions: 'x', tools: [look], description: 'Looks.' }
const crewOf = (budget: Budget, own?: Omit<Budget, 'per'>) =>
  defineCrew({
    name: 'c',
    agents: {
      chief: defineAgent({ ...scout, delegates: ['scout'] }),
      scout: defineAgent({ ...scout, ...(own === undefined ? {} : { budget: own }) }),
    },
    lead: 'chief',
    budget,
  })

/** Whoever has nobody to ask is the scout. */
const isScout = ({ tools }: ModelRequest) => tools?.includes('"scout"') !== true
/** The chief has the scout look at so many things, and says what it was told. */
const delegates =
  (rounds: number): Model =>
  (request) => {
    if (isScout(request)) return looks(rounds)(request, 0)
    const told = resultsIn(request)
    return told.length === 0 ? call(['scout', { task: 'look' }]) : say(told.join())
  }

async function using(
  budget: Budget,
  model: Model,
  work: (stage: Stage, crew: Awaited<ReturnType<Stage['runtime']['spawn']>>) => Promise<void>,
  own?: Omit<Budget, 'per'>,
): Promise<void> {
  const stage = await openStage({ model })
  try {
    await work(stage, await stage.runtime.spawn(crewOf(budget, own)))
  } finally {
    await stage.runtime.close({ graceMs: 0 })
  }
}
async function onlyAsk(crew: { asks(): Promise<readonly { id: string }[]> }) {
  await until(async () => (await crew.asks()).length === 1)
  return (await crew.asks())[0] as Awaited<ReturnType<Stage['runtime']['asks']>>[number]
}

describe('budget: exhausted, a person is asked', () => {
  test('budget: who cannot pay waits, and goes on with what a person gives', () =>
    using({ modelCalls: 2, onExhausted: 'ask' }, looks(3), async ({ runtime, requests, clock }, crew) => {
      const run = crew.start('go')
      const ask = await onlyAsk(crew)
      expect(ask).toMatchObject({ kind: 'budget', agent: 'chief', tool: '', callId: '' })
      expect(JSON.parse(ask.arguments)).toEqual({ account: 'run', dimension: 'modelCalls', limit: 2 })
      expect(ask.expiresAt - clock.now()).toBe(7 * 86_400_000)
      expect(requests).toHaveLength(2)
      await crew.approve(ask.id, { arguments: { modelCalls: 3 }, by: 'grace' })
      const next = await onlyAsk(crew)
      expect(JSON.parse(next.arguments)).toMatchObject({ limit: 3 })
      await runtime.approve('c', next.id)
      await expect(run.result).resolves.toMatchObject({ output: 'seen 0, seen 1, seen 2', usage: { modelCalls: 4 } })
      const seen: string[] = []
      for await (const { type } of run.events) if (/human|budget/.test(type)) seen.push(type)
      const once = ['budget.exhausted', 'human.asked', 'human.answered', 'budget.raised']
      expect(seen).toEqual([...once, ...once].map((type) => `troupe.${type}`))
    }))

  test('budget: dollars are asked and given as dollars', () =>
    using({ usd: 0.000_1, onExhausted: 'ask' }, looks(1), async (_, crew) => {
      const run = crew.start('go')
      const ask = await onlyAsk(crew)
      expect(JSON.parse(ask.arguments)).toEqual({ account: 'run', dimension: 'usd', limit: 0.000_1 })
      await crew.approve(ask.id, { arguments: { usd: 5 } })
      await expect(run.result).resolves.toMatchObject({ output: 'seen 0' })
    }))

  test('budget: denied, or without an answer in time, the run ends and says who gave no more', () =>
    using({ modelCalls: 1, onExhausted: 'ask', askMs: 60_000 }, looks(1), async ({ clock }, crew) => {
      const denied = crew.start('go')
      await crew.deny((await onlyAsk(crew)).id, undefined, { by: 'grace' })
      await expect(denied.result).rejects.toMatchObject({
        code: 'BUDGET_EXHAUSTED',
        message: expect.stringContaining('grace gave no more'),
      })
      const silent = crew.start('go')
      const { id } = await onlyAsk(crew)
      clock.advance(60_000)
      await expect(silent.result).rejects.toMatchObject({
        code: 'BUDGET_EXHAUSTED',
        message: expect.stringContaining('nobody answered in time'),
      })
      await expect(crew.approve(id)).rejects.toMatchObject({ code: 'ASK_CLOSED' })
    }))

  test('budget: what a budget cannot be raised to is refused, and the ask stays open', () =>
    using({ modelCalls: 1, onExhausted: 'ask' }, looks(1), async (_, crew) => {
      const run = crew.start('go')
      const { id } = await onlyAsk(crew)
      for (const wrong of [{}, { modelCalls: -1 }, { usd: 'much' }, { wallMs: 5 }, 7, null])
        await expect(crew.approve(id, { arguments: wrong })).rejects.toMatchObject({ code: 'INPUT_INVALID' })
      await expect(crew.answer(id, 'yes')).rejects.toMatchObject({ code: 'INPUT_INVALID' })
      await crew.approve(id, { arguments: { modelCalls: 9 } })
      await expect(run.result).resolves.toMatchObject({ output: 'seen 0' })
    }))

  test('budget: for a delegate’s own budget only the delegation waits, and denied only that ends', () => {
    return using(
      {},
      delegates(1),
      async (_, crew) => {
        const run = crew.start('go')
        const ask = await onlyAsk(crew)
        expect(JSON.parse(ask.arguments)).toMatchObject({ account: 'run/scout', dimension: 'modelCalls' })
        await crew.deny(ask.id)
        expect((await run.result).output).toContain('scout failed')
        const other = crew.start('go')
        await crew.approve((await onlyAsk(crew)).id)
        expect((await other.result).output).toContain('seen 0')
      },
      { modelCalls: 1, onExhausted: 'ask' },
    )
  })

  test('budget: over deaths of the process who cannot pay still waits, and is asked about once', async () => {
    const crew = crewOf({ modelCalls: 1, onExhausted: 'ask' })
    let stage = await openStage({ model: looks(1) })
    const { clock, store } = stage
    const id = await (await stage.runtime.spawn(crew)).start('go').id
    const first = await onlyAsk(await stage.runtime.spawn(crew))
    for (let death = 0; death < 3; death++) {
      stage.crash()
      clock.advance(86_400_000)
      stage = await openStage({ store, clock, unclean: true, model: looks(1) })
      expect(await onlyAsk(await stage.runtime.spawn(crew))).toEqual(first)
    }
    const again = await stage.runtime.spawn(crew)
    await again.approve(first.id)
    await expect(again.run(id).result).resolves.toMatchObject({ output: 'seen 0' })
    await stage.runtime.close({ graceMs: 0 })
  })
})

describe('budget: raised by command', () => {
  test('RA1 raise: of the run at work; who waits goes on; the next run begins with its definition', () =>
    using({ modelCalls: 1, onExhausted: 'ask' }, looks(2), async ({ runtime }, crew) => {
      const run = crew.start('go')
      await onlyAsk(crew)
      await crew.raise({ modelCalls: 3 })
      await runtime.raise('c', { modelCalls: 3 })
      await expect(run.result).resolves.toMatchObject({ output: 'seen 0, seen 1' })
      expect(await crew.asks()).toEqual([])
      const next = crew.start('go')
      expect(JSON.parse((await onlyAsk(crew)).arguments)).toMatchObject({ limit: 1 })
      await crew.cancel()
      await expect(next.result).rejects.toMatchObject({ code: 'RUN_CANCELLED' })
    }))

  test('raise: of an agent before it begins, out of what the run has left', () => {
    return using(
      { modelCalls: 9 },
      delegates(2),
      async (_, crew) => {
        const run = crew.start('go')
        await run.id
        await crew.raise({ modelCalls: 3 }, { agent: 'scout' })
        expect((await run.result).output).toContain('seen 0, seen 1')
      },
      { modelCalls: 1 },
    )
  })

  test('raise: refused where no such budget is at work, and for what is none', () =>
    using({ modelCalls: 1 }, looks(1), async ({ runtime }, crew) => {
      await expect(crew.raise({ usd: 5 })).rejects.toMatchObject({ code: 'RAISE_REFUSED', details: { crew: 'c' } })
      await expect(crew.raise({})).rejects.toMatchObject({ code: 'INPUT_INVALID' })
      await expect(runtime.raise('nobody', { usd: 5 })).rejects.toMatchObject({ code: 'CREW_UNKNOWN' })
      await quiet()
    }))

  test('raise: a budget of the crew is raised between runs, too, and for good', () =>
    using({ modelCalls: 2, per: 'crew' }, looks(1), async (_, crew) => {
      await expect(crew.ask('go')).resolves.toMatchObject({ output: 'seen 0' })
      await expect(crew.ask('go')).rejects.toMatchObject({ code: 'BUDGET_EXHAUSTED' })
      await crew.raise({ modelCalls: 4 })
      await expect(crew.ask('go')).resolves.toMatchObject({ output: 'seen 0' })
      await expect(crew.ask('go')).rejects.toMatchObject({ code: 'BUDGET_EXHAUSTED' })
    }))
})

describe('budget: soft', () => {
  test('budget: the call that passes the limit is made whole, the next one is not made', () =>
    using({ tokens: 40, mode: 'soft' }, looks(9), async ({ requests }, crew) => {
      await expect(crew.ask('go')).rejects.toMatchObject({ code: 'BUDGET_EXHAUSTED' })
      expect(requests.length).toBeGreaterThan(1)
      expect(requests.every(({ maxOutputTokens }) => maxOutputTokens === 4_096)).toBe(true)
    }))
})
