import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { defineAgent, defineTool, ToolError } from '../../runtime/define.js'
import type { Run } from '../../runtime/run.js'
import { MemoryBreakers } from '../../transport/memory-breakers.js'
import {
  call,
  failure,
  type Model,
  openStage,
  quiet,
  resultsIn,
  say,
  type Stage,
  type StageOptions,
  until,
} from '../support/crew-stage.js'

const [one, two, three] = ['a:one', 'b:two', 'c:three'] as const
const look = defineTool({
  ...{ name: 'look', description: '', effect: 'pure', input: z.object({ at: z.number() }) },
  run: ({ at }) => `seen ${at}`,
})
const clerk = (models: readonly (string | string[])[], attempts = 4) =>
  defineAgent({ name: 'clerk', model: models, instructions: 'x', tools: [look], limits: { attempts } })

/** A model of which each deployment answers as it is written; `ok` is an answer, or so many rounds of calls before it. */
const scripted = (script: Readonly<Record<string, ReturnType<typeof failure> | 'ok'>>, rounds = 0): Model => {
  return (request) => {
    const written = script[request.deployment] ?? 'ok'
    if (written !== 'ok') return written
    const at = resultsIn(request).length
    return at < rounds ? call(['look', { at }]) : say(`by ${request.deployment}`)
  }
}
const limited = failure('rate_limited', { retryAfterMs: 20_000, status: 429 })
const tried = (stage: Stage): string[] => stage.requests.map(({ deployment }) => deployment)
async function events(run: Run<unknown>, type: string) {
  const found: unknown[] = []
  for await (const event of run.events) if (event.type === `troupe.${type}`) found.push(event.data)
  return found
}
async function using<T>(options: StageOptions, work: (stage: Stage) => Promise<T>): Promise<T> {
  const stage = await openStage(options)
  try {
    return await work(stage)
  } finally {
    await stage.runtime.close({ graceMs: 0 })
  }
}

describe('routes', () => {
  test('routes: given two dead deployments and one that works, when the crew is asked, the third answers, without a wait', () =>
    using({ model: scripted({ [one]: failure('auth'), [two]: failure('not_found') }) }, async (stage) => {
      const run = (await stage.runtime.spawn(clerk([one, two, three], 1))).start('go')
      expect(await run.result).toMatchObject({ output: 'by c:three' })
      expect(tried(stage)).toEqual([one, two, three])
      expect(await events(run, 'model.rerouted')).toMatchObject([
        { address: 'agent/clerk-r2', from: one, to: two, kind: 'auth', waitMs: 0 },
        { from: two, to: three },
      ])
    }))

  test('routes: given a deployment that is at fault, when the next round and the next run begin, it is passed over for a minute', () =>
    using({ model: scripted({ [one]: failure('quota') }, 2) }, async (stage) => {
      const crew = await stage.runtime.spawn(clerk([one, two]))
      await crew.ask('go')
      expect(tried(stage)).toEqual([one, two, two, two])
      const run = crew.start('go on')
      await run.result
      expect(tried(stage).slice(4)).toEqual([two, two, two])
      const skipped = [{ deployment: one, reason: 'fault', waitMs: 60_000 }]
      expect(await events(run, 'model.skipped')).toMatchObject([{ skipped }, { skipped }, { skipped }])
      stage.clock.advance(60_000)
      await crew.ask('once more')
      expect(tried(stage).slice(7)).toEqual([one, two, two, two])
    }))

  test('routes: given Retry-After and another deployment, that one answers at once, and the first is back when its time is over', () =>
    using({ model: (request, index) => (index === 0 ? limited : scripted({})(request, index)) }, async (stage) => {
      const crew = await stage.runtime.spawn(clerk([one, two]))
      expect((await crew.ask('go')).output).toBe('by b:two')
      expect((await crew.ask('go')).output).toBe('by b:two')
      stage.clock.advance(20_000)
      expect((await crew.ask('go')).output).toBe('by a:one')
    }))

  test('routes: given Retry-After and no other deployment, the agent waits as long as it is asked to', () =>
    using({ model: (request, index) => (index === 0 ? limited : scripted({})(request, index)) }, async (stage) => {
      const run = (await stage.runtime.spawn(clerk([one]))).start('go')
      await until(() => stage.requests.length === 1)
      await quiet()
      stage.clock.advance(19_999)
      await quiet()
      expect(stage.requests).toHaveLength(1)
      stage.clock.advance(1)
      expect((await run.result).output).toBe('by a:one')
    }))

  test('routes: given Retry-After of all deployments, the first that is back is tried', () =>
    using(
      {
        model: (request, index) =>
          index === 0 ? limited : index === 1 ? { ...limited, retryAfterMs: 5_000 } : scripted({})(request, index),
      },
      async (stage) => {
        const run = (await stage.runtime.spawn(clerk([one, two]))).start('go')
        await until(() => stage.requests.length === 2)
        for (let second = 0; second < 5; second++) {
          await quiet()
          expect(stage.requests).toHaveLength(2)
          stage.clock.advance(1_000)
        }
        expect((await run.result).output).toBe('by b:two')
      },
    ))

  test('routes: what a provider asks for is honoured up to ten minutes', () =>
    using(
      {
        model: (request, index) =>
          index === 0 ? { ...limited, retryAfterMs: 86_400_000 } : scripted({})(request, index),
      },
      async (stage) => {
        const run = (await stage.runtime.spawn(clerk([one]))).start('go')
        await until(() => stage.requests.length === 1)
        await quiet()
        stage.clock.advance(600_000)
        expect((await run.result).output).toBe('by a:one')
      },
    ))

  test('routes: given nobody who works, the run ends with the last failure, and every try is counted', () =>
    using({ model: scripted({ [one]: failure('auth'), [two]: failure('quota') }) }, async (stage) => {
      const run = (await stage.runtime.spawn(clerk([one, two]))).start('go')
      await expect(run.result).rejects.toMatchObject({
        code: 'MODEL_FAILED',
        message: expect.stringContaining('quota'),
      })
      expect(tried(stage)).toEqual([one, two])
      expect((await stage.worker.shard('clerk')).state.runs.get('r2')?.end?.spent).toMatchObject({ modelCalls: 2 })
    }))

  test('routes: given a prompt too long for the first, the second takes it, and the next round begins with the first', () =>
    using(
      {
        model: (request, index) => (index === 0 ? failure('context_window') : scripted({}, 1)(request, index)),
      },
      async (stage) => {
        await (await stage.runtime.spawn(clerk([one, two]))).ask('go')
        expect(tried(stage)).toEqual([one, two, one])
      },
    ))

  test('routes: a request that is wrong is wrong everywhere', () =>
    using({ model: scripted({ [one]: failure('bad_request') }) }, async (stage) => {
      const run = (await stage.runtime.spawn(clerk([one, two]))).start('go')
      await expect(run.result).rejects.toMatchObject({ code: 'MODEL_FAILED' })
      expect(tried(stage)).toEqual([one])
    }))

  test('routes: cancelled while it waits for its time, a run ends at once, and nothing comes behind it', () =>
    using({ model: () => limited }, async (stage) => {
      const crew = await stage.runtime.spawn(clerk([one]))
      const run = crew.start('go')
      await until(() => stage.requests.length === 1)
      await quiet()
      await crew.cancel()
      await expect(run.result).rejects.toMatchObject({ code: 'RUN_CANCELLED' })
      stage.clock.advance(600_000)
      await quiet()
      expect(stage.requests).toHaveLength(1)
    }))

  test('routes: over the death of the process a wait and a cooldown go on', async () => {
    const breakers = new MemoryBreakers()
    const stage = await openStage({ model: () => limited, breakers })
    const crew = await stage.runtime.spawn(clerk([one, two]))
    crew.start('go')
    await until(() => stage.requests.length === 2)
    await quiet()
    stage.crash()
    stage.clock.advance(10_000)
    const { store, clock } = stage
    await using({ store, clock, breakers, unclean: true, model: scripted({}) }, async (again) => {
      await again.runtime.spawn(clerk([one, two]))
      await quiet()
      expect(again.requests).toEqual([])
      stage.clock.advance(10_000)
      await until(() => again.requests.length === 1)
      expect(tried(again)).toEqual([one])
    })
  })

  test('routes: given a group, each call goes to the one that has least to do, and the rest of it comes before the next', async () => {
    const held: (() => void)[] = []
    const model: Model = async (request, index) => {
      await new Promise<void>((resolve) => held.push(resolve))
      return index === 2 ? failure('server') : say(`by ${request.deployment}`)
    }
    await using({ model }, async (stage) => {
      const runs = await Promise.all(
        ['p', 'q'].map(async (id) => (await stage.runtime.spawn(clerk([[one, two], three]), { id })).start('go')),
      )
      await until(() => held.length === 2)
      expect(tried(stage).toSorted()).toEqual([one, two])
      for (const release of held.splice(0)) release()
      await Promise.all(runs.map(({ result }) => result))
      const third = (await stage.runtime.spawn(clerk([[one, two], three]), { id: 'r' })).start('go')
      await until(() => held.length === 1)
      held[0]!()
      await until(() => held.length === 2)
      held[1]!()
      expect(await third.result).toMatchObject({ output: 'by b:two' })
      expect(tried(stage).slice(2)).toEqual([one, two])
    })
  })
})

describe('routes: breakers', () => {
  const breakerSettings = { failures: 3, cooldownMs: 10_000, probeMs: 60_000 }

  test('routes: given a deployment that fails all crews, when that is enough, the others are not made to ask it', () =>
    using({ model: scripted({ [one]: failure('server') }), breakerSettings }, async (stage) => {
      for (let crew = 0; crew < 5; crew++)
        await (await stage.runtime.spawn(clerk([one, two]), { id: `c${crew}` })).ask('go')
      expect(tried(stage).filter((each) => each === one)).toHaveLength(3)
      expect(tried(stage).filter((each) => each === two)).toHaveLength(5)
    }))

  test('routes: the outside is told by whose call a breaker opened, and who is passed over since', () =>
    using(
      { model: scripted({ [one]: failure('server') }), breakerSettings: { ...breakerSettings, failures: 1 } },
      async (stage) => {
        const crew = await stage.runtime.spawn(clerk([one, two]))
        const run = crew.start('go')
        await run.result
        expect(await events(run, 'breaker.changed')).toMatchObject([{ deployment: one, to: 'opened', ms: 10_000 }])
        const next = crew.start('go on')
        await next.result
        expect(await events(next, 'model.skipped')).toMatchObject([
          { skipped: [{ deployment: one, reason: 'open', waitMs: 10_000 }] },
        ])
        expect(await events(next, 'model.replied')).toMatchObject([{ deployment: two }])
      },
    ))

  test('routes: half-open under 50 crews: one probes, the others wait for it, and all end', async () => {
    let isUp = false
    const held: (() => void)[] = []
    const model: Model = async () => {
      if (!isUp) return failure('server')
      await new Promise<void>((resolve) => held.push(resolve))
      return say('well')
    }
    await using({ model, breakerSettings }, async (stage) => {
      const crews = await Promise.all(
        Array.from({ length: 50 }, (_, index) => stage.runtime.spawn(clerk([one], 9), { id: `c${index}` })),
      )
      const runs = crews.map((crew) => crew.start('go'))
      await until(() => stage.requests.length >= 3)
      await quiet()
      const before = stage.requests.length
      isUp = true
      stage.clock.advance(10_000)
      await until(() => held.length === 1)
      await quiet()
      expect(stage.requests).toHaveLength(before + 1)
      held.splice(0)[0]!()
      await until(() => held.length === 49)
      for (const release of held) release()
      for (const run of runs) expect((await run.result).output).toBe('well')
      expect(stage.requests).toHaveLength(before + 50)
    })
  })

  test('routes: a run whose only deployment stays open is not given up before ten minutes, and costs nothing meanwhile', () =>
    using(
      { model: scripted({ [one]: failure('server') }), breakerSettings: { ...breakerSettings, cooldownMs: 200_000 } },
      async (stage) => {
        const first = await stage.runtime.spawn(clerk([one]), { id: 'first' })
        const ended = first.ask('go').catch((error: unknown) => error)
        for (let wait = 0; wait < 3; wait++) {
          await quiet()
          stage.clock.advance(30_000)
        }
        await until(() => stage.requests.length === 3)
        await quiet()
        for (let wait = 0; wait < 4; wait++) {
          stage.clock.advance(200_000)
          await quiet()
        }
        expect(await ended).toMatchObject({ code: 'MODEL_FAILED' })
        // Three that opened it, and the fourth try, the probe.
        expect(stage.requests).toHaveLength(4)
      },
    ))

  test('routes: a crew that is cancelled while it waits for a probe ends, and the probe goes on', async () => {
    const held: (() => void)[] = []
    let isUp = false
    const model: Model = async () => {
      if (!isUp) return failure('server')
      await new Promise<void>((resolve) => held.push(resolve))
      return say('well')
    }
    await using({ model, breakerSettings: { ...breakerSettings, failures: 1 } }, async (stage) => {
      const [p, q] = await Promise.all(['p', 'q'].map((id) => stage.runtime.spawn(clerk([one], 9), { id })))
      const first = p!.start('go')
      await until(() => stage.requests.length === 1)
      await quiet()
      isUp = true
      stage.clock.advance(10_000)
      await until(() => held.length === 1)
      const second = q!.start('go')
      await quiet()
      await q!.cancel()
      await expect(second.result).rejects.toMatchObject({ code: 'RUN_CANCELLED' })
      held[0]!()
      expect((await first.result).output).toBe('well')
      expect(stage.requests).toHaveLength(2)
    })
  })

  test('routes: over a restart an open breaker is open', async () => {
    const breakers = new MemoryBreakers()
    const options = { breakers, breakerSettings: { ...breakerSettings, failures: 1 } }
    const stage = await openStage({ ...options, model: scripted({ [one]: failure('server') }) })
    await (await stage.runtime.spawn(clerk([one, two]))).ask('go')
    await stage.runtime.close({ graceMs: 0 })
    const { store, clock } = stage
    await using({ ...options, store, clock, model: scripted({}) }, async (again) => {
      expect((await (await again.runtime.spawn(clerk([one, two]))).ask('go on')).output).toBe('by b:two')
      clock.advance(10_000)
      expect((await (await again.runtime.spawn(clerk([one, two]))).ask('go on')).output).toBe('by a:one')
    })
  })

  test('routes: without breakers nobody is kept back', () =>
    using({ model: scripted({ [one]: failure('server') }), breakers: null }, async (stage) => {
      for (let crew = 0; crew < 7; crew++)
        await (await stage.runtime.spawn(clerk([one, two]), { id: `c${crew}` })).ask('go')
      expect(tried(stage).filter((each) => each === one)).toHaveLength(7)
    }))
})

describe('routes: tool servers', () => {
  const breakerSettings = { failures: 2, cooldownMs: 10_000 }
  const serve = (effect: 'pure' | 'once', run: () => unknown) =>
    defineAgent({
      ...{ name: 'clerk', model: one, instructions: 'x' },
      tools: [
        defineTool({
          name: 'look',
          description: '',
          effect,
          retries: 1,
          server: 'crm',
          input: z.object({ at: z.number() }),
          run,
        }),
      ],
    })
  const told = ({ requests }: Stage): string[] =>
    requests
      .at(-1)!
      .messages.map((text) => JSON.parse(text) as { role: string; content: string })
      .filter(({ role }) => role === 'tool')
      .map(({ content }) => content)

  test('GT1 routes: given a tool server that fails, when that is enough, a call is not made, and the model is told so', async () => {
    let runs = 0
    const agent = serve('once', () => {
      runs += 1
      throw new Error('down')
    })
    await using({ model: scripted({}, 4), breakerSettings }, async (stage) => {
      await (await stage.runtime.spawn(agent)).ask('go')
      expect(runs).toBe(2)
      expect(told(stage).slice(2)).toEqual(Array(2).fill('Not done: crm does not answer. It is asked again in 10 s.'))
    })
  })

  test('GT2 routes: a call that was kept back and may be retried is made when its server is back: no permit is left behind', async () => {
    let runs = 0
    const agent = serve('pure', () => {
      runs += 1
      if (runs < 3) throw new Error('down')
      return 'seen'
    })
    await using({ model: scripted({}, 2), breakerSettings }, async (stage) => {
      const run = (await stage.runtime.spawn(agent)).start('go')
      await until(() => runs === 1)
      await quiet()
      stage.clock.advance(500)
      await until(() => stage.requests.length === 2)
      await quiet()
      expect(runs).toBe(2)
      stage.clock.advance(10_000)
      await run.result
      expect(told(stage)).toEqual([expect.stringContaining('down'), 'seen'])
    })
  })

  test('routes: what a tool says in its own words opens nothing', async () => {
    let runs = 0
    const agent = serve('once', () => {
      runs += 1
      throw new ToolError('no such customer')
    })
    await using({ model: scripted({}, 4), breakerSettings }, async (stage) => {
      await (await stage.runtime.spawn(agent)).ask('go')
      expect(runs).toBe(4)
    })
  })
})
