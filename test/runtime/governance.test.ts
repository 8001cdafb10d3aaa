/**
 * Router, breaker and budget through the real runtime and the real model port, before a scripted server that counts what
 * it is asked: what a provider does on the wire, and what a crew makes of it.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { z } from 'zod'
import { createOpenAIModelPort } from '../../actors/model-openai.js'
import {
  fault,
  type ModelScript,
  reply,
  type ScriptedModel,
  type ScriptedRequest,
  startScriptedModel,
} from '../../actors/scripted-model.js'
import type { Budget } from '../../runtime/budget.js'
import { defineAgent, defineCrew, defineTool } from '../../runtime/define.js'
import type { TroupeError } from '../../runtime/errors.js'
import { createRuntime } from '../../runtime/index.js'
import type { ModelTimeouts } from '../../runtime/ports.js'
import type { Run } from '../../runtime/run.js'
import { gate, openStage, quiet, type Stage, type StageOptions, until } from '../support/crew-stage.js'

const [one, two, three] = ['a:one', 'b:two', 'c:three'] as const
const price = { input: 1_000_000, output: 2_000_000 }
const look = defineTool({
  ...{ name: 'look', description: '', effect: 'pure', input: z.object({ at: z.number() }) },
  run: ({ at }) => `seen ${at}`,
})
const clerk = (models: readonly (string | string[])[], attempts = 4) =>
  defineAgent({ name: 'clerk', model: models, instructions: 'x', tools: [look], limits: { attempts } })
const crewOf = (models: readonly string[], budget: Budget, attempts = 4) =>
  defineCrew({ name: 'clerk', agents: { clerk: clerk(models, attempts) }, lead: 'clerk', budget })

interface World extends Stage {
  readonly server: ScriptedModel
  /** Models that the server was asked for, in order. */
  asked(): string[]
  /** Lets the time of everything that waits pass until a run has ended. */
  inTime<T>(ended: Promise<T>): Promise<T>
  /** An agent of this crew waits for its time, and nothing else goes on. */
  waits(crew?: string): Promise<void>
}

/** What the server does with a model, by its name, or by how often it was asked for it. */
type Script = Readonly<Record<string, ReturnType<ModelScript> | readonly ReturnType<ModelScript>[]>>
const by = (script: Script): ModelScript => {
  const asked = new Map<string, number>()
  return (request) => {
    const at = asked.get(request.model) ?? 0
    asked.set(request.model, at + 1)
    const written = script[request.model] ?? `by ${request.model}`
    return Array.isArray(written) ? (written[at] ?? `by ${request.model}`) : (written as ReturnType<ModelScript>)
  }
}

async function world(
  script: ModelScript | Script,
  options: Omit<StageOptions, 'model' | 'modelPort'> & {
    /** What the first provider's refusals have beside their own. */
    readonly headers?: Readonly<Record<string, string>>
    readonly timeouts?: Partial<ModelTimeouts>
  } = {},
): Promise<World> {
  const server = await startScriptedModel(typeof script === 'function' ? script : by(script))
  const provider = { baseURL: server.baseURL, apiKey: 'k' }
  const port = createOpenAIModelPort({
    providers: { a: { ...provider, fetch: withHeaders(options.headers) }, b: provider, c: provider, d: provider },
    prices: { a: price, b: price, c: price, d: { input: 100_000_000, output: 200_000_000 } },
  })
  const stage = await openStage({
    ...options,
    modelPort: {
      ...port,
      call: (request) => port.call({ ...request, timeouts: { ...request.timeouts, ...options.timeouts } }),
    },
  })
  onTestFinished(async () => {
    await stage.runtime.close({ graceMs: 0 })
    await port.close()
    await server.close()
  })
  const inTime = async <T>(ended: Promise<T>): Promise<T> => {
    let isOver = false
    void ended.catch(() => undefined).finally(() => (isOver = true))
    await until(() => {
      stage.clock.advance(50)
      return isOver
    })
    return ended
  }
  const waits = (crew = 'clerk'): Promise<void> =>
    until(async () => {
      const { effects, timers } = (await stage.worker.shard(crew)).state
      return effects.size === 0 && [...timers.values()].some(({ actor }) => actor.startsWith('agent/'))
    })
  return { ...stage, server, inTime, waits, asked: () => server.requests.log.map(({ request }) => request.model) }
}

async function events(run: Run<unknown>, type: string) {
  const found: unknown[] = []
  for await (const event of run.events) if (event.type === `troupe.${type}`) found.push(event.data)
  return found
}
const withHeaders =
  (headers: Readonly<Record<string, string>> = {}): typeof fetch =>
  async (input, init) => {
    const response = await fetch(input, init)
    if (response.ok) return response
    const all = { ...Object.fromEntries(response.headers), ...headers }
    return new Response(response.body, { status: response.status, headers: all })
  }
const roundsOf = ({ messages }: ScriptedRequest): number => messages.filter(({ role }) => role === 'tool').length

describe('governance: routes', () => {
  test('given two dead deployments, when a crew is asked, then the third answers, each is asked once, and one bill is paid', async () => {
    const { runtime, server, asked } = await world({ one: fault.status(503), two: fault.status(404) })
    const { output, cost, usage } = await (await runtime.spawn(clerk([one, two, three], 1))).ask('go')
    expect(output).toBe('by three')
    expect(asked()).toEqual(['one', 'two', 'three'])
    const { inputTokens, outputTokens } = server.requests
    expect(cost.usd).toBeCloseTo((inputTokens * 1 + outputTokens * 2) / 1e6, 9)
    expect(usage.modelCalls).toBe(3)
  })

  test('given two that fail for good, when they are asked in a ring, then it ends behind the list and the tries beyond it', async () => {
    const { runtime, asked, inTime } = await world({ one: fault.status(503), two: fault.status(503) })
    const run = (await runtime.spawn(clerk([one, two], 3))).start('go')
    await expect(inTime(run.result)).rejects.toMatchObject({ code: 'MODEL_FAILED' })
    expect(asked()).toEqual(['one', 'two', 'one', 'two'])
  })

  test('given a list longer than its attempts, when all are dead, then every one is tried, once, and no more: the cap of hops', async () => {
    const models = Array.from({ length: 12 }, (_, at) => `a:m${at}`)
    const { runtime, asked, inTime } = await world(() => fault.status(503))
    const run = (await runtime.spawn(clerk(models, 1))).start('go')
    await expect(inTime(run.result)).rejects.toMatchObject({ code: 'MODEL_FAILED' })
    expect(asked()).toEqual(models.map((each) => each.slice(2)))
    const hops = await events(run, 'model.rerouted')
    expect(hops).toHaveLength(11)
  })

  test('given a key that is refused, when every round begins, then that deployment is passed over without a request', async () => {
    const script = by({ one: fault.status(401) })
    const { runtime, asked } = await world((request) =>
      request.model === 'two' && roundsOf(request) < 3
        ? reply.call('look', { at: roundsOf(request) })
        : script(request),
    )
    expect((await (await runtime.spawn(clerk([one, two]))).ask('go')).output).toBe('by two')
    expect(asked()).toEqual(['one', 'two', 'two', 'two', 'two'])
  })

  test('given a quota that is used up, when it comes as 429, then nothing is waited for', async () => {
    const body = { error: { message: 'You exceeded your current quota', code: 'insufficient_quota' } }
    const { runtime, asked } = await world({ one: fault.status(429, { body }) })
    expect((await (await runtime.spawn(clerk([one, two]))).ask('go')).output).toBe('by two')
    expect(asked()).toEqual(['one', 'two'])
  })

  test('given a prompt that is too long for a group, when it is refused, then no other of that group is asked', async () => {
    const body = { error: { message: 'too long', code: 'context_length_exceeded' } }
    const { runtime, asked } = await world({ one: fault.status(400, { body }) })
    expect((await (await runtime.spawn(clerk([[one, two], three]))).ask('go')).output).toBe('by three')
    expect(asked()).toEqual(['one', 'three'])
  })

  test('given a stream that is cut, when another deployment is there, then the round is made anew, and the half is nowhere', async () => {
    const { runtime, asked } = await world({ one: fault.cut(300, reply.text('half of it, and no more of it')) })
    const { output, messages } = await (await runtime.spawn(clerk([one, two]))).ask('go')
    expect(output).toBe('by two')
    expect(asked()).toEqual(['one', 'two'])
    expect(JSON.stringify(messages)).not.toContain('half')
  })
})

describe('governance: waits', () => {
  test('given Retry-After and another deployment, when the first is limited, then nobody asks it before its time, and somebody at it', async () => {
    const { runtime, asked, clock } = await world({ one: [fault.status(429, { retryAfter: 20 })] })
    const crews = await Promise.all(['p', 'q'].map((id) => runtime.spawn(clerk([one, two]), { id })))
    for (const crew of crews) expect((await crew.ask('go')).output).toBe('by two')
    clock.advance(19_999)
    expect((await crews[1]!.ask('go on')).output).toBe('by two')
    clock.advance(1)
    expect((await crews[1]!.ask('once more')).output).toBe('by one')
    expect(asked()).toEqual(['one', 'two', 'two', 'two', 'one'])
  })

  test('given Retry-After and no other deployment, when it is limited, then it waits so long, and another crew is not kept back', async () => {
    const { runtime, asked, clock, waits } = await world({ one: [fault.status(429, { retryAfter: 20 })] })
    const run = (await runtime.spawn(clerk([one]))).start('go')
    await waits()
    expect((await (await runtime.spawn(clerk([one]), { id: 'other' })).ask('go')).output).toBe('by one')
    clock.advance(19_999)
    await quiet()
    expect(asked()).toHaveLength(2)
    clock.advance(1)
    expect((await run.result).output).toBe('by one')
    expect(asked()).toHaveLength(3)
  })

  test.each([
    ['retry-after-ms', '0'],
    ['retry-after', '0'],
  ])(
    'given %s: %s, when it comes with every answer, then tries are apart all the same, and they end',
    async (header, value) => {
      const { runtime, asked, waits, inTime } = await world(() => fault.status(429), { headers: { [header]: value } })
      const run = (await runtime.spawn(clerk([one], 3))).start('go')
      await waits()
      await quiet()
      expect(asked()).toHaveLength(1)
      await expect(inTime(run.result)).rejects.toMatchObject({ code: 'MODEL_FAILED' })
      expect(asked()).toHaveLength(3)
    },
  )

  test('given a run that waits for its time, when it is cancelled, then it ends at once, nothing is asked any more, and its money is back', async () => {
    const { runtime, asked, clock, waits } = await world(() => fault.status(429, { retryAfter: 300 }))
    const crew = await runtime.spawn(crewOf([one], { usd: 1, per: 'crew' }))
    const run = crew.start('go')
    await waits()
    await crew.cancel()
    await expect(run.result).rejects.toMatchObject({ code: 'RUN_CANCELLED', details: { costNanoUsd: 0 } })
    clock.advance(600_000)
    await quiet()
    expect(asked()).toHaveLength(1)
  })

  test('given retry-after-ms: 0 and another deployment, when the first is limited, then the other answers, and nobody is kept back', async () => {
    const { runtime, asked } = await world({ one: [fault.status(429)] }, { headers: { 'retry-after-ms': '0' } })
    const crew = await runtime.spawn(clerk([one, two]))
    expect((await crew.ask('go')).output).toBe('by two')
    expect((await crew.ask('go on')).output).toBe('by one')
    expect(asked()).toEqual(['one', 'two', 'one'])
  })

  test('given an answer that comes after its time is over, when another one was taken, then it changes nothing', async () => {
    const late = gate()
    const { runtime, asked, server } = await world(
      (request) => (request.model === 'one' ? late.opened.then(() => reply.text('too late')) : 'by two'),
      { timeouts: { connectMs: 40 } },
    )
    const run = (await runtime.spawn(clerk([one, two]))).start('go')
    expect((await run.result).output).toBe('by two')
    expect(await events(run, 'model.rerouted')).toMatchObject([{ from: one, to: two, kind: 'timeout' }])
    const { sequence } = await runtime.show('clerk')
    late.open()
    await until(() => server.requests.count === 2)
    await quiet()
    expect(asked()).toEqual(['two', 'one'])
    expect(await runtime.show('clerk')).toMatchObject({ sequence, runs: [{ status: 'finished', code: null }] })
  })
})

describe('governance: breakers', () => {
  const breakerSettings = { failures: 3, cooldownMs: 10_000, probeMs: 60_000 }

  test('given a deployment that fails everybody, when it has failed often enough, then no more requests reach it until its time is over', async () => {
    const { runtime, server, clock } = await world({ one: fault.status(500) }, { breakerSettings })
    for (let crew = 0; crew < 6; crew++)
      expect((await (await runtime.spawn(clerk([one, two]), { id: `c${crew}` })).ask('go')).output).toBe('by two')
    expect(server.requests.byModel.get('one')?.count).toBe(3)
    clock.advance(10_000)
    await (await runtime.spawn(clerk([one, two]), { id: 'later' })).ask('go')
    expect(server.requests.byModel.get('one')?.count).toBe(4)
  })

  test('given failures that are never in a row, when they are more than their share, then it opens', async () => {
    let at = 0
    const half = { failures: 100, rate: 0.4, minCalls: 4, windowMs: 60_000, cooldownMs: 10_000 }
    const { runtime, server } = await world(
      ({ model }) => (model === 'one' && (at += 1) % 2 === 0 ? fault.status(500) : `by ${model}`),
      { breakerSettings: half },
    )
    const crew = await runtime.spawn(clerk([one, two]))
    for (let run = 0; run < 8; run++) await crew.ask(`go ${run}`)
    expect(server.requests.byModel.get('one')?.count).toBe(4)
  })

  test('given refusals that are answers, when ten come, then nothing opens', async () => {
    const body = { error: { message: 'bad', code: 'invalid_request_error' } }
    const { runtime, server } = await world({ one: fault.status(400, { body }) }, { breakerSettings })
    const crew = await runtime.spawn(clerk([one]))
    for (let run = 0; run < 10; run++)
      await expect(crew.ask(`go ${run}`)).rejects.toMatchObject({ code: 'MODEL_FAILED' })
    expect(server.requests.count).toBe(10)
  })

  test('given one deployment and nothing else, when it is limited again and again, then it is never cooled to zero', async () => {
    const { runtime, server, inTime } = await world({ one: Array(3).fill(fault.status(429, { retryAfter: 5 })) as [] })
    const run = (await runtime.spawn(clerk([one], 4))).start('go')
    expect((await inTime(run.result)).output).toBe('by one')
    expect(await events(run, 'model.skipped')).toEqual([])
    expect(server.requests.count).toBe(4)
  })

  test('given 50 crews at an open breaker, when its time is over, then one asks, the others wait for it, and all are answered', async () => {
    let isUp = false
    const probe = gate()
    const { runtime, server, clock, inTime } = await world(
      async () => (isUp ? probe.opened.then(() => reply.text('well')) : fault.status(500)),
      { breakerSettings },
    )
    const crews = await Promise.all(
      Array.from({ length: 50 }, (_, index) => runtime.spawn(clerk([one], 9), { id: `c${index}` })),
    )
    const runs = crews.map((crew) => crew.start('go'))
    const isHeld = async () =>
      (await Promise.all(crews.map(({ id }) => runtime.show(id)))).every(({ openEffects }) => openEffects === 0)
    await until(async () => server.requests.count >= 3 && (await isHeld()))
    const before = server.requests.count
    isUp = true
    clock.advance(10_000)
    await until(async () =>
      (await Promise.all(crews.map(({ id }) => runtime.show(id)))).every(({ openEffects }) => openEffects === 1),
    )
    await quiet()
    expect(server.requests.count).toBe(before)
    probe.open()
    const ended = await inTime(Promise.all(runs.map(({ result }) => result)))
    expect(ended.map(({ output }) => output)).toEqual(Array(50).fill('well'))
    expect(server.requests.count).toBe(before + 50)
  })

  test('given a probe that fails, when it is back, then it rests for a whole cooldown again, and that is told', async () => {
    const { runtime, server, clock } = await world(
      { one: fault.status(500) },
      { breakerSettings: { ...breakerSettings, failures: 1 } },
    )
    const crew = await runtime.spawn(clerk([one, two]))
    await crew.ask('go')
    clock.advance(10_000)
    const probing = crew.start('probe')
    await probing.result
    expect(await events(probing, 'breaker.changed')).toMatchObject([{ deployment: one, to: 'opened', ms: 10_000 }])
    clock.advance(9_999)
    await crew.ask('too early')
    expect(server.requests.byModel.get('one')?.count).toBe(2)
  })

  test('given a probe whose crew is cancelled, when the next one comes, then it probes at once', async () => {
    let asked = 0
    const hold = gate<never>()
    const { runtime, clock, waits } = await world(() => [fault.status(500), hold.opened][(asked += 1) - 1] ?? 'well', {
      breakerSettings: { ...breakerSettings, failures: 1 },
    })
    const crew = await runtime.spawn(clerk([one]))
    const first = crew.start('go')
    await waits()
    clock.advance(10_000)
    await until(() => asked === 2)
    await crew.cancel()
    await expect(first.result).rejects.toMatchObject({ code: 'RUN_CANCELLED' })
    expect((await (await runtime.spawn(clerk([one]), { id: 'next' })).ask('go')).output).toBe('well')
    expect(asked).toBe(3)
  })

  test('given a process that ends, when another one opens its store, then what was open is open, at its own time', async () => {
    const store = await mkdtemp(join(tmpdir(), 'troupe-governance-'))
    const server = await startScriptedModel(by({ one: fault.status(500) }))
    onTestFinished(async () => {
      await server.close()
      await rm(store, { recursive: true, force: true })
    })
    const provider = { baseURL: server.baseURL, apiKey: 'k' }
    const open = () =>
      createRuntime({
        ...{ store, durability: 'process', providers: { a: provider, b: provider } },
        breakers: { failures: 1, cooldownMs: 600_000 },
      })
    for (const input of ['go', 'go on', 'and on']) {
      const runtime = await open()
      expect((await (await runtime.spawn(clerk([one, two]))).ask(input)).output).toBe('by two')
      await runtime.close({ graceMs: 0 })
    }
    expect(server.requests.byModel.get('one')?.count).toBe(1)
  })
})

describe('governance: budgets', () => {
  const billed = ({ server }: World): number => server.requests.inputTokens * 1e-6 + server.requests.outputTokens * 2e-6
  const endless: ModelScript = (request) => reply.call('look', { at: roundsOf(request) })

  test('given a limit of money, when an agent would go on for ever, then the provider’s own count stays within it', async () => {
    const w = await world(endless)
    const ended = (await w.runtime.spawn(crewOf([one], { usd: 0.005 }))).ask('go')
    const error = await ended.catch((thrown: unknown) => thrown as TroupeError)
    expect(error).toMatchObject({ code: 'BUDGET_EXHAUSTED', details: { costNanoUsd: Math.round(billed(w) * 1e9) } })
    expect(billed(w)).toBeGreaterThan(0.0005)
    expect(billed(w)).toBeLessThanOrEqual(0.005)
  })

  test('given a little money left, when a call is made, then the bound on its output is what is left can pay', async () => {
    const w = await world({})
    await (await w.runtime.spawn(crewOf([one], { usd: 0.002 }))).ask('go')
    const bound = w.server.requests.log[0]!.request.maxTokens!
    expect(bound * 2e-6).toBeLessThanOrEqual(0.002)
    expect(bound).toBeGreaterThan(0)
  })

  test('given no money for even one answer, when a task comes, then nobody is asked', async () => {
    const w = await world({})
    await expect((await w.runtime.spawn(crewOf([one], { usd: 0.00001 }))).ask('go')).rejects.toMatchObject({
      code: 'BUDGET_EXHAUSTED',
    })
    expect(w.server.requests.count).toBe(0)
  })

  test('given failed attempts, when they are counted as calls, then the limit of calls ends them', async () => {
    const w = await world(() => fault.status(503))
    const run = (await w.runtime.spawn(crewOf([one, two, three], { modelCalls: 2 }, 9))).start('go')
    await expect(w.inTime(run.result)).rejects.toMatchObject({ code: 'BUDGET_EXHAUSTED', details: { modelCalls: 2 } })
    expect(w.asked()).toEqual(['one', 'two'])
  })

  test('given attempts that were refused before any work, when another one answers, then only that one costs', async () => {
    const w = await world({ one: fault.status(429), two: fault.status(401) })
    const { cost, usage } = await (await w.runtime.spawn(crewOf([one, two, three], { usd: 1 }))).ask('go')
    expect(cost.usd).toBeCloseTo(billed(w), 9)
    expect(usage.modelCalls).toBe(3)
  })

  test.each([
    ['is cut in its stream', fault.cut(300, reply.text('x'.repeat(600)))],
    ['does not come in time', fault.delay(300, reply.text('late'))],
  ])(
    'given an attempt that %s, when nobody knows its bill, then it costs its worst, never nothing',
    async (_, first) => {
      const w = await world({ one: first }, { timeouts: { connectMs: 40 } })
      const { cost } = await (await w.runtime.spawn(crewOf([one, two], { usd: 1 }))).ask('go')
      await until(() => w.server.requests.count === 2)
      expect(cost.usd).toBeGreaterThanOrEqual(billed(w))
      expect(cost.usd).toBeLessThan(1)
    },
  )

  test('given a list with a dear one, when there is no money for that one, then nobody is asked: any of them may take the call', async () => {
    const w = await world({})
    const dear = (await w.runtime.spawn(crewOf([one, 'd:dear'], { usd: 0.002 }), { id: 'dear' })).ask('go')
    await expect(dear).rejects.toMatchObject({ code: 'BUDGET_EXHAUSTED', details: { costNanoUsd: 0 } })
    expect(w.asked()).toEqual([])
    expect((await (await w.runtime.spawn(crewOf([one], { usd: 0.002 }))).ask('go')).output).toBe('by one')
  })

  test('given a breaker that keeps a call back, when it waits, then it holds no money that others need', async () => {
    const w = await world({ one: [fault.status(500)] }, { breakerSettings: { failures: 1, cooldownMs: 10_000 } })
    const crew = await w.runtime.spawn(crewOf([one], { usd: 0.01 }))
    const run = crew.start('go')
    await w.waits()
    const { state } = await w.worker.shard('clerk')
    const books = state.actors.get(`budget/${await run.id}`)!.snapshot.context as {
      accounts: Record<string, { held: { nanoUsd: number } }>
    }
    expect(Object.values(books.accounts).map(({ held }) => held.nanoUsd)).toEqual([0])
    expect((await w.inTime(run.result)).output).toBe('by one')
  })

  test('given a budget of a crew, when its second run comes, then what the first one spent is gone', async () => {
    const w = await world({})
    const crew = await w.runtime.spawn(crewOf([one], { modelCalls: 2, per: 'crew' }))
    for (const input of ['go', 'go on']) expect((await crew.ask(input)).output).toBe('by one')
    await expect(crew.ask('more')).rejects.toMatchObject({ code: 'BUDGET_EXHAUSTED' })
    expect(w.server.requests.count).toBe(2)
  })

  test('given a lead and a delegate, when both spend, then what they cost together stays within the crew’s budget', async () => {
    const helper = defineAgent({ model: two, instructions: 'help', tools: [look] })
    const lead = defineAgent({ model: one, instructions: 'lead', delegates: ['helper'] })
    const w = await world((request) =>
      request.model === 'one' ? reply.call('helper', { task: `part ${roundsOf(request)}` }) : endless(request),
    )
    const crew = defineCrew({ name: 'pair', agents: { lead, helper }, lead: 'lead', budget: { usd: 0.004 } })
    await expect((await w.runtime.spawn(crew)).ask('go')).rejects.toMatchObject({ code: 'BUDGET_EXHAUSTED' })
    expect(billed(w)).toBeLessThanOrEqual(0.004)
    expect(new Set(w.asked())).toEqual(new Set(['one', 'two']))
  })

  test('given a limit of tool calls, when a reply asks for more, then none of them is made', async () => {
    const w = await world(() => reply.calls(...[1, 2, 3].map((at) => ({ name: 'look', arguments: { at } }))))
    await expect((await w.runtime.spawn(crewOf([one], { toolCalls: 5 }))).ask('go')).rejects.toMatchObject({
      code: 'BUDGET_EXHAUSTED',
      details: { modelCalls: 2 },
    })
  })
})
