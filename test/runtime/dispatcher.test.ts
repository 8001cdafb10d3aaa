import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { nothing as nothingSpent } from '../../machines/index.js'
import { defineAgent, defineTool, toCrew } from '../../runtime/define.js'
import { Dispatcher, type DispatchingShard, maxInFlight } from '../../runtime/dispatcher.js'
import { Breakers } from '../../runtime/breakers.js'
import type { Draft } from '../../runtime/envelope.js'
import { TroupeError } from '../../runtime/errors.js'
import type { Journal } from '../../runtime/journal.js'
import type { ModelPort, ModelReply, ModelRequest, ToolOutcome, ToolPort, ToolRequest } from '../../runtime/ports.js'
import { fromRecord } from '../../runtime/record.js'
import { type Effect, emptyState } from '../../runtime/state.js'
import { MemoryBreakers } from '../../transport/memory-breakers.js'
import { call, gate, openStage, override, quiet, resultsIn, say, type Stage, until } from '../support/crew-stage.js'

const lookup = (effect: 'pure' | 'idempotent' | 'once', run: () => unknown = () => 'found') =>
  defineTool({ name: 'lookup', description: '', input: z.object({}), effect, retries: 1, run })
const agentWith = (...tools: ReturnType<typeof lookup>[]) => defineAgent({ model: 'a:one', instructions: 'x', tools })
const once = (results: number): Parameters<typeof openStage>[0] => ({
  model: (request) => (resultsIn(request).length < results ? call(['lookup']) : say(resultsIn(request).join('|'))),
})
const bodies = (stage: Stage) =>
  stage.store.shards
    .get('agent')!
    .records.flatMap((record) => fromRecord('agent', record).map(({ envelope }) => envelope.body))
const types = (stage: Stage) => bodies(stage).map(({ type }) => type)
/** Holds the first append of a `dispatched` record until the gate is opened. */
const holding = () => {
  const hold = gate()
  const reached = gate()
  const journal = (inner: Journal) =>
    override(inner, {
      append: async (record) => {
        if (Buffer.from(record.bytes).includes('effect.dispatched')) {
          reached.open()
          await hold.opened
        }
        return inner.append(record)
      },
    })
  return { hold, reached, journal }
}

/** A dispatcher without a shard around it, whose model answers when it is told to. */
async function alone(more: Partial<DispatchingShard> = {}) {
  const stage = await openStage()
  const asked: string[] = []
  const ends: (() => void)[] = []
  const posted: Draft[] = []
  const live = stage.bind(toCrew(agentWith()))
  const ask = (request: ModelRequest) => {
    asked.push(request.effect)
    return new Promise<ModelReply>((resolve) => ends.push(() => resolve(say('x'))))
  }
  const dispatcher = new Dispatcher({
    id: 's1',
    journal: stage.journal,
    ports: {
      clock: stage.clock,
      random: () => 0,
      breakers: new Breakers({ store: new MemoryBreakers(), clock: stage.clock }),
    },
    executor: () => 'test',
    term: 1,
    given: () => undefined,
    owns: () => true,
    send: () => Promise.resolve(),
    state: () => emptyState('s1'),
    crew: () => ({ ...live, model: { ...live.model, call: ask } }),
    logic: () => null,
    dataOf: () => Promise.resolve(null),
    post: (draft) => {
      posted.push(draft)
      return Promise.resolve()
    },
    watched: () => false,
    show: () => undefined,
    stop: () => undefined,
    ...more,
  })
  return { dispatcher, asked, ends, posted, close: () => stage.runtime.close() }
}

const modelCalls = (count: number) =>
  Array.from({ length: count }, (_, index): Effect => {
    const body = {
      ...{ type: 'model.call', agent: 'agent', run: 'r1', conversation: 'r1', deployments: ['a:one'] },
      ...{ maxOutputTokens: 1, grant: 'g', keeper: 'budget/r1', depth: 0, tries: 0, worst: nothingSpent },
    } as Effect['body']
    const place = { length: 0, hash: '', executor: '', startBy: null, parked: false }
    return { id: `1-${index}`, from: 'agent/a', body, ...place }
  })

describe('dispatcher', () => {
  test('X1 dispatcher: an effect goes to its port only behind its append', async () => {
    const order: string[] = []
    const stage = await openStage({
      model: (request) => {
        order.push(`model ${request.effect}`)
        return say('done')
      },
      journal: (journal) =>
        override(journal, {
          append: async (record) => {
            await quiet()
            await journal.append(record)
            order.push(`appended ${record.last}`)
          },
        }),
    })
    await (await stage.runtime.spawn(agentWith())).ask('go')
    expect(order.indexOf('appended 2')).toBeGreaterThanOrEqual(0)
    expect(order[order.indexOf('appended 2') + 1]).toMatch(/^model 2-/)
    await stage.runtime.close()
  })

  test('X2 dispatcher: a once call starts only behind its `dispatched` record', async () => {
    let ran = 0
    const { hold, reached, journal } = holding()
    const stage = await openStage({ ...once(1), journal })
    const crew = await stage.runtime.spawn(agentWith(lookup('once', () => (ran += 1))))
    const run = crew.start('go')
    await reached.opened
    await quiet()
    expect(ran).toBe(0)
    hold.open()
    await run.result
    expect(ran).toBe(1)
    expect(types(stage).indexOf('effect.dispatched')).toBeLessThan(types(stage).indexOf('tool.succeeded'))
    await stage.runtime.close()
  })

  test('X2 dispatcher: a once call whose record took too long is not started, and asked for anew', async () => {
    let ran = 0
    const { hold, reached, journal } = holding()
    const stage = await openStage({ ...once(1), journal })
    const crew = await stage.runtime.spawn(agentWith(lookup('once', () => (ran += 1))))
    const run = crew.start('go')
    await reached.opened
    stage.clock.advance(11_000)
    hold.open()
    await until(() => types(stage).includes('effect.interrupted'))
    await expect(run.result).resolves.toMatchObject({ output: '1' })
    expect(ran).toBe(1)
    const records = bodies(stage).filter(({ type }) => type === 'effect.dispatched')
    expect(records.map(({ startBy }) => Number(startBy) - stage.clock.now())).toEqual([-1_000, 10_000])
    await stage.runtime.close()
  })

  test('X2 dispatcher: a pure or idempotent call has no such record', async () => {
    for (const effect of ['pure', 'idempotent'] as const) {
      const stage = await openStage(once(1))
      await (await stage.runtime.spawn(agentWith(lookup(effect)))).ask('go')
      expect(types(stage)).not.toContain('effect.dispatched')
      await stage.runtime.close()
    }
  })

  test('X3 dispatcher: while the store cannot be read, what a call needs is waited for', async () => {
    let failures = 0
    const given: unknown[] = []
    const tool = defineTool({
      name: 'lookup',
      description: '',
      input: z.object({}),
      run: (_, { data }) => given.push(data),
    })
    const journal = (inner: Journal) =>
      override(inner, {
        read: async function* (shard, from) {
          if (failures-- > 0) throw new TroupeError('STORE_FAILED', 'the server is away', { retryable: true })
          yield* inner.read(shard, from)
        },
      })
    const stage = await openStage({ ...once(1), journal })
    const crew = await stage.runtime.spawn(defineAgent({ model: 'a:one', instructions: 'x', tools: [tool] }))
    failures = 3
    const run = crew.start('go', { data: { who: 'me' } })
    for (const left of [2, 1, 0]) {
      await until(() => failures === left)
      await quiet()
      stage.clock.advance(5_000)
    }
    await expect(run.result).resolves.toMatchObject({ output: '1' })
    expect(given).toEqual([{ who: 'me' }])
    expect(types(stage)).not.toContain('effect.interrupted')
    await stage.runtime.close()
  })

  const nothing = undefined as unknown as Error
  const brokenModels: Readonly<Record<string, ModelPort['call']>> = {
    rejects: () => Promise.reject(new Error('planted')),
    throws: () => {
      throw new Error('planted')
    },
    'answers nothing': () => Promise.resolve(undefined as never),
    'answers nonsense': () => Promise.resolve({ ok: true } as never),
    'rejects with nothing': () => Promise.reject(nothing),
  }
  test.each(Object.entries(brokenModels))(
    'X3 dispatcher: a model port that %s ends the run with a code',
    async (_, answer) => {
      const stage = await openStage({
        modelPort: { call: answer, price: () => null, check: () => undefined, close: async () => undefined },
      })
      const crew = await stage.runtime.spawn(agentWith())
      await expect(crew.ask('go')).rejects.toMatchObject({ code: 'MODEL_FAILED' })
      const shard = await stage.worker.shard('agent')
      expect(shard.state.effects.size).toBe(0)
      await stage.runtime.close()
    },
  )

  const brokenTools: Readonly<Record<string, (request: ToolRequest) => Promise<ToolOutcome>>> = {
    rejects: () => Promise.reject(new Error('planted')),
    throws: () => {
      throw new Error('planted')
    },
    'answers nothing': () => Promise.resolve(undefined as never),
    'answers nonsense': () => Promise.resolve({ status: 'wat' } as never),
    'says it was cancelled though nobody did': () => Promise.resolve({ status: 'cancelled', started: true }),
  }
  test.each(Object.entries(brokenTools))(
    'X3 dispatcher: a tool port that %s still brings one outcome',
    async (_, run) => {
      const tools: ToolPort = { run, verify: () => Promise.reject(new Error('planted')) }
      const stage = await openStage({ ...once(1), tools })
      const crew = await stage.runtime.spawn(agentWith(lookup('once')))
      await expect(crew.ask('go')).resolves.toMatchObject({
        output: expect.stringContaining('The tool could not be run'),
      })
      await stage.runtime.close()
    },
  )

  test('X3 dispatcher: a cancelled effect is aborted and brings nothing', async () => {
    const stage = await openStage({
      model: (request) =>
        new Promise((resolve) => request.signal.addEventListener('abort', () => resolve(say('late')))),
    })
    const crew = await stage.runtime.spawn(agentWith())
    const run = crew.start('go')
    await until(() => stage.requests.length === 1)
    await run.cancel()
    await expect(run.result).rejects.toMatchObject({ code: 'RUN_CANCELLED' })
    await quiet()
    expect(stage.requests[0]?.signal.aborted).toBe(true)
    expect([...(await stage.worker.shard('agent')).state.runs.values()]).toHaveLength(1)
    await stage.runtime.close()
  })

  test('X5 dispatcher: a model call that this process may not make any more is asked of nobody, and costs nothing', async () => {
    const { dispatcher, asked, posted, close } = await alone({ owns: () => false })
    dispatcher.dispatch(modelCalls(1))
    await until(() => posted.length === 1)
    expect(asked).toEqual([])
    expect(posted[0]).toMatchObject({
      ...{ from: 'port/model', to: 'agent/a', cause: '1-0' },
      body: { type: 'model.refused', skipped: [{ deployment: 'a:one', reason: 'elsewhere', waitMs: 250 }] },
    })
    await close()
  })

  test('X4 dispatcher: at most so many effects are with the ports, the rest wait in order', async () => {
    const { dispatcher, asked, ends, posted, close } = await alone()
    dispatcher.dispatch(modelCalls(maxInFlight + 10))
    await quiet()
    expect(asked).toHaveLength(maxInFlight)
    expect([dispatcher.running, dispatcher.size]).toEqual([maxInFlight, maxInFlight + 10])
    expect(dispatcher.knows(`1-${maxInFlight + 9}`)).toBe(true)
    expect(dispatcher.runs(`1-${maxInFlight + 9}`)).toBe(false)
    dispatcher.cancel([`1-${maxInFlight}`])
    for (const end of ends.splice(0, 3)) end()
    await quiet()
    expect(asked.slice(maxInFlight)).toEqual([1, 2, 3].map((more) => `1-${maxInFlight + more}`))
    expect(posted).toHaveLength(3)
    expect(dispatcher.drain()).toEqual([4, 5, 6, 7, 8, 9].map((more) => `1-${maxInFlight + more}`))
    for (const end of ends.splice(0)) end()
    await quiet()
    expect(asked).toHaveLength(maxInFlight + 3)
    dispatcher.close()
    expect([dispatcher.running, dispatcher.size]).toEqual([0, 0])
    await close()
  })
})
