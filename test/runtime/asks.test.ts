import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { defineAgent, defineTool, type ToolOptions } from '../../runtime/define.js'
import {
  call,
  type Model,
  openStage,
  quiet,
  resultsIn,
  say,
  type Stage,
  type StageOptions,
  until,
} from '../support/crew-stage.js'

const input = z.object({ to: z.string(), usd: z.number() })
interface Paid {
  readonly paid: unknown[]
}
const clerk = (paid: unknown[], approval: NonNullable<ToolOptions<typeof input>['approval']>, more: object = {}) =>
  defineAgent({
    ...{ name: 'clerk', model: 'a:one', instructions: 'x' },
    tools: [
      defineTool({
        ...{ name: 'pay', description: '', input, approval, ...more },
        run: (given) => {
          paid.push(given)
          return 'paid'
        },
      }),
    ],
  })
const pays =
  (...calls: readonly object[]): Model =>
  (request) =>
    resultsIn(request).length === 0
      ? call(...calls.map((given) => ['pay', given] as const))
      : say(resultsIn(request).join(' | '))
const one = { to: 'ada', usd: 5 }

async function using(
  options: StageOptions & { readonly approval?: ToolOptions<typeof input>['approval']; readonly tool?: object },
  work: (stage: Stage & Paid, crew: Awaited<ReturnType<Stage['runtime']['spawn']>>) => Promise<void>,
): Promise<void> {
  const paid: unknown[] = []
  const stage = await openStage({ model: pays(one), ...options })
  try {
    await work({ ...stage, paid }, await stage.runtime.spawn(clerk(paid, options.approval ?? true, options.tool)))
  } finally {
    await stage.runtime.close({ graceMs: 0 })
  }
}
async function asksOf(crew: { asks(): Promise<readonly unknown[]> }, count = 1) {
  await until(async () => (await crew.asks()).length === count)
  return (await crew.asks()) as Awaited<ReturnType<Stage['runtime']['asks']>>
}

describe('asks', () => {
  test('asks: a call that wants approval waits, and is made when somebody says so', () =>
    using({}, async ({ paid, clock, runtime }, crew) => {
      const run = crew.start('go')
      const [ask] = await asksOf(crew)
      expect(ask).toMatchObject({ kind: 'approval', agent: 'clerk', tool: 'pay', arguments: JSON.stringify(one) })
      expect(ask!.expiresAt - ask!.askedAt).toBe(7 * 86_400_000)
      expect(ask!.askedAt).toBe(clock.now())
      expect((await runtime.show('clerk')).actors.find(({ state }) => state === 'asking')).toMatchObject({
        waitsFor: 'approval of pay',
      })
      await quiet()
      expect(paid).toEqual([])
      await crew.approve(ask!.id, { by: 'grace' })
      expect((await run.result).output).toBe('paid')
      expect(paid).toEqual([one])
      const seen: unknown[] = []
      for await (const event of run.events) if (event.type.startsWith('troupe.human.')) seen.push(event.data)
      expect(seen).toMatchObject([
        { ask: ask!.id, kind: 'approval', tool: 'pay' },
        { decision: 'approved', by: 'grace', edited: false },
      ])
    }))

  test('asks: denied, a call is not made, and the model is told who said so, and why', () =>
    using({}, async ({ paid }, crew) => {
      const run = crew.start('go')
      await crew.deny((await asksOf(crew))[0]!.id, 'Too much.', { by: 'grace' })
      expect((await run.result).output).toBe('Not done: grace did not approve this call. Too much.')
      expect(paid).toEqual([])
    }))

  test('asks: a predicate decides by the arguments and the data of the run; when it throws a person is asked', () =>
    using(
      {
        model: pays(one, { to: 'ada', usd: 500 }, { to: 'nobody', usd: 1 }),
        approval: ({ to, usd }, { data }) => {
          if (to === 'nobody') throw new Error('who is that?')
          return usd > (data as { most: number }).most
        },
      },
      async ({ paid }, crew) => {
        const run = crew.start('go', { data: { most: 100 } })
        const asks = await asksOf(crew, 2)
        expect(asks.map((ask) => JSON.parse(ask.arguments) as unknown)).toEqual([
          { to: 'ada', usd: 500 },
          { to: 'nobody', usd: 1 },
        ])
        await until(() => paid.length === 1)
        for (const { id } of asks) await crew.deny(id)
        await run.result
        expect(paid).toEqual([one])
      },
    ))

  test('AK1 asks: of two calls of one tool each has its own approval', () =>
    using({ model: pays(one, { to: 'bob', usd: 9 }) }, async ({ paid }, crew) => {
      const run = crew.start('go')
      const [first, second] = await asksOf(crew, 2)
      await crew.approve(second!.id)
      await until(() => paid.length === 1)
      await quiet()
      expect(paid).toEqual([{ to: 'bob', usd: 9 }])
      await crew.deny(first!.id)
      await run.result
      expect(paid).toHaveLength(1)
    }))

  test('AK1 asks: a call may be approved with other arguments, and is made with those', () =>
    using({}, async ({ paid }, crew) => {
      const run = crew.start('go')
      await crew.approve((await asksOf(crew))[0]!.id, { arguments: { to: 'ada', usd: 1 } })
      await run.result
      expect(paid).toEqual([{ to: 'ada', usd: 1 }])
    }))

  test('AK2 asks: the first answer counts, also when two come at once, and after the end', () =>
    using({}, async ({ paid, runtime }, crew) => {
      const run = crew.start('go')
      const { id } = (await asksOf(crew))[0]!
      const said = await Promise.allSettled([crew.approve(id), crew.deny(id), runtime.approve('clerk', id)])
      expect(said.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'rejected'])
      expect(said[1]).toMatchObject({ reason: { code: 'ASK_CLOSED' } })
      await run.result
      expect(paid).toEqual([one])
      await expect(crew.approve(id)).rejects.toMatchObject({ code: 'ASK_CLOSED' })
      await expect(crew.deny('9-9')).rejects.toMatchObject({
        code: 'ASK_CLOSED',
        details: { crew: 'clerk', ask: '9-9' },
      })
      await expect(runtime.approve('nobody', id)).rejects.toMatchObject({ code: 'CREW_UNKNOWN' })
    }))

  test('AK3 asks: arguments that the tool does not take are refused, and the ask stays open', () =>
    using({}, async ({ paid }, crew) => {
      const run = crew.start('go')
      const { id } = (await asksOf(crew))[0]!
      for (const wrong of [{ to: 'ada' }, 7, null, { to: 'ada', usd: 'much' }])
        await expect(crew.approve(id, { arguments: wrong })).rejects.toMatchObject({ code: 'INPUT_INVALID' })
      await expect(crew.answer(id, 'yes')).rejects.toMatchObject({ code: 'INPUT_INVALID' })
      await expect(crew.approve(id, { by: '' })).rejects.toMatchObject({ code: 'INPUT_INVALID' })
      await crew.approve(id)
      await run.result
      expect(paid).toEqual([one])
    }))

  test('asks: when nobody answers in time the call is not made', () =>
    using({ tool: { approvalMs: 60_000 } }, async ({ paid, clock }, crew) => {
      const run = crew.start('go')
      const [ask] = await asksOf(crew)
      clock.advance(60_000)
      expect((await run.result).output).toBe('Not done: nobody answered in time.')
      expect(paid).toEqual([])
      await expect(crew.approve(ask!.id)).rejects.toMatchObject({ code: 'ASK_CLOSED' })
    }))

  test('asks: with its run an ask ends', () =>
    using({}, async ({ paid }, crew) => {
      const run = crew.start('go')
      const [ask] = await asksOf(crew)
      await crew.cancel()
      await expect(run.result).rejects.toMatchObject({ code: 'RUN_CANCELLED' })
      expect(await crew.asks()).toEqual([])
      await expect(crew.approve(ask!.id)).rejects.toMatchObject({ code: 'ASK_CLOSED' })
      expect(paid).toEqual([])
    }))

  test('asks: over five deaths of the process an ask stays open, no death counts against the call, and its time goes on', async () => {
    const paid: unknown[] = []
    let stage = await openStage({ model: pays(one) })
    await (await stage.runtime.spawn(clerk(paid, true))).start('go').id
    const { clock, store } = stage
    const first = (await asksOf(await stage.runtime.spawn(clerk(paid, true))))[0]!
    for (let death = 0; death < 5; death++) {
      stage.crash()
      clock.advance(86_400_000)
      stage = await openStage({ store, clock, unclean: true, model: pays(one) })
      const [ask] = await asksOf(await stage.runtime.spawn(clerk(paid, true)))
      expect(ask).toEqual(first)
    }
    const crew = await stage.runtime.spawn(clerk(paid, true))
    await crew.approve(first.id)
    const run = await crew.current()
    expect((await run!.result).output).toBe('paid')
    expect(paid).toEqual([one])
    await stage.runtime.close({ graceMs: 0 })
  })

  test('asks: a crew that only waits for a person leaves memory, and is back when it is answered', () =>
    using({ idleMs: 1_000 }, async ({ paid, worker, runtime, clock, bind }, crew) => {
      const id = await crew.start('go').id
      const [ask] = await asksOf(crew)
      runtime.crew('clerk')
      ;(crew as unknown as { release(): void }).release()
      for (let look = 0; look < 5; look++) {
        clock.advance(1_000)
        await quiet()
      }
      expect(worker.active.has('clerk')).toBe(false)
      await runtime.approve('clerk', ask!.id)
      expect(paid).toEqual([])
      const again = await runtime.spawn(clerk(paid, true))
      expect((await again.run(id).result).output).toBe('paid')
      expect(bind).toBeDefined()
    }))

  test('asks: an agent with `questions` may ask its user, and is told what he says', async () => {
    const agent = defineAgent({ name: 'clerk', model: 'a:one', instructions: 'x', questions: true })
    const model: Model = (request) =>
      resultsIn(request).length === 0
        ? call(['ask_person', { question: 'Which vendor?' }])
        : say(resultsIn(request)[0]!)
    const stage = await openStage({ model })
    const crew = await stage.runtime.spawn(agent)
    const run = crew.start('go')
    const [ask] = await asksOf(crew)
    expect(ask).toMatchObject({ kind: 'question', tool: 'ask_person', arguments: '{"question":"Which vendor?"}' })
    expect(stage.requests[0]!.tools).toContain('ask_person')
    await expect(crew.approve(ask!.id)).rejects.toMatchObject({ code: 'INPUT_INVALID' })
    await crew.answer(ask!.id, 'The second one.')
    expect((await run.result).output).toBe('The second one.')
    await stage.runtime.close({ graceMs: 0 })
  })

  test('asks: an answer that comes as an outcome of another effect, or for another actor, is forged', () =>
    using({}, async ({ worker, paid }, crew) => {
      const run = crew.start('go')
      const { id } = (await asksOf(crew))[0]!
      const shard = await worker.shard('clerk')
      const body = { type: 'human.answered', decision: 'approved', by: 'x', bytes: 0, result: '' }
      for (const forged of [
        { from: 'port/human', to: 'tool/1-0', cause: id },
        { from: 'port/tool', to: shard.state.effects.get(id)!.from, cause: id },
        { from: 'port/human', to: 'tool/1-0', cause: '999-0' },
      ])
        await expect(shard.post({ ...forged, body, values: [] })).rejects.toMatchObject({ code: 'OUTCOME_FORGED' })
      await crew.deny(id)
      await run.result
      expect(paid).toEqual([])
    }))
})
