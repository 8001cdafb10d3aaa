import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { defineAgent, defineTool } from '../../runtime/define.js'
import type { Run } from '../../runtime/run.js'
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
const clerk = (models: readonly [string, ...string[]], attempts = 4) =>
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
      await crew.ask('go on')
      expect(tried(stage).slice(4)).toEqual([two, two, two])
      stage.clock.advance(60_000)
      await quiet()
      await crew.ask('once more')
      expect(tried(stage).slice(7)).toEqual([one, two, two, two])
    }))

  test('routes: given Retry-After and another deployment, that one answers at once, and the first is back when its time is over', () =>
    using({ model: (request, index) => (index === 0 ? limited : scripted({})(request, index)) }, async (stage) => {
      const crew = await stage.runtime.spawn(clerk([one, two]))
      expect((await crew.ask('go')).output).toBe('by b:two')
      expect((await crew.ask('go')).output).toBe('by b:two')
      stage.clock.advance(20_000)
      await quiet()
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
        await quiet()
        stage.clock.advance(5_000)
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
    const stage = await openStage({ model: () => limited })
    const crew = await stage.runtime.spawn(clerk([one, two]))
    crew.start('go')
    await until(() => stage.requests.length === 2)
    await quiet()
    stage.crash()
    stage.clock.advance(10_000)
    await using({ store: stage.store, clock: stage.clock, unclean: true, model: scripted({}) }, async (again) => {
      await again.runtime.spawn(clerk([one, two]))
      await quiet()
      expect(again.requests).toEqual([])
      stage.clock.advance(10_000)
      await until(() => again.requests.length === 1)
      expect(tried(again)).toEqual([one])
    })
  })
})
