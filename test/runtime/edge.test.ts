import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { modelReplied, nothing, outcomes } from '../../machines/index.js'
import { type AnyTool, type Crew, defineAgent, defineCrew, defineTool, toCrew } from '../../runtime/define.js'
import { broken, failed, maxCalls, refused, replied, toolOutcome, verified } from '../../runtime/edge.js'
import type {} from '../../runtime/ports.js'
import { type PreparedCrew, prepareCrew } from '../../runtime/prepared-crew.js'
import { startScript } from '../support/child.js'
import { call, failure, openStage, say } from '../support/crew-stage.js'

const model = { call: async () => say(''), price: () => null, check: () => undefined, close: async () => undefined }
const prepare = (crew: Crew<unknown>): PreparedCrew => prepareCrew(crew, model)
const lookup = defineTool({
  name: 'lookup',
  description: 'd',
  input: z.object({ q: z.string() }),
  effect: 'pure',
  run: () => 1,
})
const crew = prepare(
  defineCrew({
    name: 'c',
    agents: {
      writer: defineAgent({ model: 'a:one', instructions: 'w', tools: [lookup], delegates: ['helper'] }),
      helper: defineAgent({ model: 'a:one', instructions: ({ input, data }) => `${input} ${JSON.stringify(data)}` }),
      typed: defineAgent({ model: 'a:one', instructions: 't', output: z.object({ n: z.number() }) }),
    },
    lead: 'writer',
    limits: { depth: 1 },
  }),
)
const asked = (agent = 'writer', more: Record<string, unknown> = {}) => ({
  type: 'model.call' as const,
  agent,
  run: 'r1',
  conversation: 'r1',
  deployments: ['a:one'],
  maxOutputTokens: 10,
  grant: 'g',
  keeper: 'budget/r1',
  depth: 0,
  tries: 0,
  worst: { nanoUsd: 99, tokens: 9, modelCalls: 1, toolCalls: 0 },
  ...more,
})
const toolCall = (effect: 'pure' | 'idempotent' | 'once') => ({
  type: 'tool.call' as const,
  agent: 'writer',
  run: 'r1',
  conversation: 'r1',
  position: 1,
  index: 0,
  callId: 'c',
  tool: 'lookup',
  effect,
  timeoutMs: 100,
  key: 'k',
  attempt: 1,
})
const run = { data: { tenant: 'a' }, random: () => 0.5, shown: () => [] }
const admitted = { deployment: 'a:one', skipped: [], changes: [] }

describe('edge', () => {
  test('ED1 edge: verdicts on calls travel in the envelope, with the messages that a delegate starts with', async () => {
    const { body, values } = await replied(
      call(['lookup', { q: 'x' }], ['nope'], ['helper', { task: 'find' }], ['lookup', '{']),
      admitted,
      asked(),
      crew,
      run,
    )
    expect(body).toMatchObject({
      type: 'model.replied',
      calls: [
        { verdict: 'tool', index: 0, tool: 'lookup', effect: 'pure', retries: 2 },
        { verdict: 'refused', index: 1, name: 'nope' },
        { verdict: 'delegate', index: 2, agent: 'helper', values: [1, 2] },
        { verdict: 'refused', index: 3 },
      ],
      fits: null,
    })
    expect(values.slice(1).map((text) => JSON.parse(text as string) as unknown)).toEqual([
      { role: 'system', content: 'find {"tenant":"a"}' },
      { role: 'user', content: 'find' },
    ])
    expect(modelReplied.safeParse(body).success).toBe(true)
  })

  test('ED1 edge: repaired arguments travel, untouched ones do not', async () => {
    const { body } = await replied(
      call(['lookup', '{"q":"x"}'], ['lookup', '```json\n{"q":"y"}\n```']),
      admitted,
      asked(),
      crew,
      run,
    )
    const calls = body['calls'] as { arguments?: string }[]
    expect(calls[0]).not.toHaveProperty('arguments')
    expect(calls[1]?.arguments).toBe('{"q":"y"}')
  })

  test('ED1 edge: a delegation that is too deep is refused there', async () => {
    const { body } = await replied(call(['helper', { task: 'x' }]), admitted, asked('writer', { depth: 1 }), crew, run)
    expect(body['calls']).toMatchObject([{ verdict: 'refused', message: expect.stringContaining('1 deep') }])
  })

  test('ED1 edge: a structured answer is judged there, and what the schema made of it travels', async () => {
    const good = await replied(say('{"n":1}'), admitted, asked('typed'), crew, run)
    expect(good.body).toMatchObject({ fits: true, reason: '' })
    expect(good.values[1]).toBe('{"n":1}')
    const bad = await replied(say('{"n":"1"}'), admitted, asked('typed'), crew, run)
    expect(bad.body).toMatchObject({ fits: false, reason: expect.stringContaining('n') })
    expect(bad.values).toHaveLength(1)
    expect((await replied(say('x'), admitted, asked(), crew, run)).body).toMatchObject({ fits: null })
  })

  test('ED1 edge: an agent that the definition does not have any more has no calls to judge', async () => {
    expect((await replied(call(['lookup']), admitted, asked('gone'), crew, run)).body).toMatchObject({ calls: [] })
  })

  test('ED1 edge: a reply with absurdly many calls is no reply, but is paid for', async () => {
    const calls = Array.from({ length: maxCalls + 1 }, () => ['lookup'] as const)
    const { body } = await replied(call(...calls), admitted, asked(), crew, run)
    expect(body).toMatchObject({
      type: 'model.failed',
      kind: 'invalid_reply',
      real: true,
      spent: { tokens: 30 },
    })
  })

  test('ED2 edge: jitter is drawn there and travels as a number', () => {
    const delay = (random: number, more = {}) =>
      failed(failure('server', more), admitted, asked(), crew, { random: () => random }).body['delayMs'] as number
    expect([delay(0), delay(0.999)]).toEqual([250, 500])
    expect(delay(0, { retryAfterMs: 7_000 })).toBe(250)
    expect(
      toolOutcome({ status: 'failed', kind: 'threw', message: 'x' }, toolCall('pure'), { random: () => 0 })?.body,
    ).toMatchObject({ retryMs: 250 })
  })

  test('edge: what a provider asks for travels, up to ten minutes', () => {
    const asks = (retryAfterMs: number | null) =>
      failed(failure('rate_limited', { retryAfterMs }), admitted, asked(), crew, run).body['retryAfterMs']
    expect([asks(null), asks(0), asks(7_000), asks(10 ** 9)]).toEqual([null, 0, 7_000, 600_000])
    expect(failed(failure('auth'), admitted, asked(), crew, run).body).toMatchObject({
      kind: 'auth',
      spent: nothing,
      real: true,
    })
  })

  test('edge: a call that may have been billed without a bill costs its worst, as an estimate', () => {
    expect(failed(failure('timeout', { billed: true }), admitted, asked(), crew, run).body).toMatchObject({
      spent: { nanoUsd: 99, tokens: 9 },
      real: false,
    })
  })

  test('edge: what a call costs is the port’s word, or the list price, or the crew’s worst; never free', async () => {
    const spent = async (more: Parameters<typeof say>[1], agent = 'writer', deployment = 'a:one') =>
      (
        (await replied(say('x', more), { ...admitted, deployment }, asked(agent), crew, run)).body['spent'] as {
          nanoUsd: number
        }
      ).nanoUsd
    expect(await spent({ costNanoUsd: 7 })).toBe(7)
    expect(await spent({})).toBe(20 * 15_000 + 10 * 75_000)
    expect(await spent({}, 'gone', 'z:z')).toBe(20 * 15_000 + 10 * 75_000)
  })

  test.each(['pure', 'idempotent', 'once'] as const)(
    'edge: which failures of a %s tool may be tried again',
    (effect) => {
      const retry = (kind: 'told' | 'threw' | 'timeout' | 'unserialisable' | 'unavailable') =>
        toolOutcome({ status: 'failed', kind, message: 'x' }, toolCall(effect), run)?.body['retryMs']
      expect([retry('told'), retry('unserialisable')]).toEqual([null, null])
      for (const kind of ['threw', 'timeout', 'unavailable'] as const)
        expect(retry(kind) === null).toBe(effect === 'once')
    },
  )

  test('edge: every outcome fits its message', async () => {
    const all = [
      (await replied(say('x'), admitted, asked(), crew, run)).body,
      failed(failure('server'), admitted, asked(), crew, run).body,
      refused([{ deployment: 'a:one', reason: 'open', waitMs: 9 }], asked(), run).body,
      toolOutcome({ status: 'ok', content: 'x', truncated: false }, toolCall('pure'), run)!.body,
      toolOutcome({ status: 'failed', kind: 'told', message: 'x' }, toolCall('pure'), run)!.body,
      verified({ done: null }).body,
      verified({ done: true, content: 'x' }).body,
      broken('ACTOR_FAILED', 'x', 'model.call', asked()).body,
      broken('ACTOR_FAILED', 'x', 'tool.call', toolCall('once')).body,
      broken('ACTOR_FAILED', 'x', 'tool.verify', toolCall('once')).body,
    ]
    for (const body of all) {
      const schema = outcomes[body.type as keyof typeof outcomes]
      expect(schema.safeParse(body).error?.message).toBeUndefined()
    }
    expect(toolOutcome({ status: 'cancelled', started: true }, toolCall('once'), run)).toBeNull()
  })
})

describe('definitions', () => {
  const tool = (more: Record<string, unknown> = {}) =>
    defineTool({ name: 't', description: '', input: z.object({}), run: () => 1, ...more })
  const agent = (more: Record<string, unknown> = {}) => defineAgent({ model: 'a:one', instructions: '', ...more })

  test('DF1 define: a definition is frozen, and making one reads nothing', () => {
    const env = process.env
    process.env = new Proxy({}, { get: () => expect.unreachable('the environment was read') })
    try {
      for (const made of [tool(), agent({ model: ['nowhere:x', 'openai:y'] }), toCrew(agent())]) {
        expect(Object.isFrozen(made)).toBe(true)
      }
    } finally {
      process.env = env
    }
    expect(tool()).toMatchObject({ effect: 'once', onUnknown: 'tell', timeoutMs: 60_000, retries: 2, concurrency: 16 })
    expect(agent()).toMatchObject({
      models: ['a:one'],
      limits: { rounds: 20, attempts: 4, callsPerRound: 64 },
      continue: false,
    })
    expect(toCrew(agent())).toMatchObject({ name: 'agent', lead: 'agent', limits: { delegates: 16, depth: 8 } })
  })

  const nonsense: Readonly<Record<string, () => unknown>> = {
    'a tool without a name': () => tool({ name: '' }),
    'a tool named like a path': () => tool({ name: 'a.b' }),
    'a tool without a schema': () => tool({ input: { type: 'object' } }),
    'a tool without work': () => tool({ run: 'x' }),
    'a tool of no class': () => tool({ effect: 'twice' }),
    'a tool without time': () => tool({ timeoutMs: 0 }),
    'a tool with a field that is none': () => tool({ timeout: 5 }),
    'a tool that verifies with nothing': () => tool({ onUnknown: 'verify' }),
    'an agent without a model': () => agent({ model: [] }),
    'an agent whose model has no provider': () => agent({ model: 'gpt-5' }),
    'an agent with two tools of one name': () => agent({ tools: [tool(), tool()] }),
    'an agent with a tool named like a delegate': () => agent({ tools: [tool()], delegates: ['t'] }),
    'an agent with a tool that is none': () => agent({ tools: [{ name: 't' } as unknown as AnyTool] }),
    'an agent with a budget below nothing': () => agent({ budget: { usd: -1 } }),
    'an agent with rounds that are none': () => agent({ limits: { rounds: 0 } }),
    'a crew without its lead': () => defineCrew({ name: 'c', agents: { a: agent() }, lead: 'b' as 'a' }),
    'a crew that delegates to nobody': () =>
      defineCrew({ name: 'c', agents: { a: agent({ delegates: ['b'] }) }, lead: 'a' }),
    'a crew with an agent that is none': () => defineCrew({ name: 'c', agents: { a: {} as never }, lead: 'a' }),
    'a crew with a name that is none': () => defineCrew({ name: 'c d', agents: { a: agent() }, lead: 'a' }),
    nothing: () => defineCrew(undefined as never),
    'something else': () => toCrew(7 as never),
  }
  test.each(Object.entries(nonsense))('DF2 define: %s is refused by name', (_, make) => {
    expect(make).toThrow(expect.objectContaining({ name: 'TroupeError', code: 'CREW_INVALID' }))
  })

  test('PP1 prepared: equal definitions have equal data; functions count by name only', () => {
    const make = (run: () => unknown, instructions = 'x') =>
      prepare(toCrew(agent({ tools: [tool({ run })], instructions })))
    const f = () => 1
    const one = make(f)
    expect(make(f).definition).toBe(one.definition)
    const other = { f: () => 2 }.f
    expect(make(other).hash).toBe(one.hash)
    expect(make(f, 'y').hash).not.toBe(one.hash)
    expect(JSON.parse(one.definition)).toMatchObject({ data: { name: 'agent', lead: 'agent' } })
    const swapped = prepare(defineCrew({ lead: 'a', agents: { b: agent(), a: agent() }, name: 'c' }))
    expect(prepare(defineCrew({ name: 'c', agents: { a: agent(), b: agent() }, lead: 'a' })).hash).toBe(swapped.hash)
  })

  test('PP1 prepared: a model that cannot work is refused with the port’s code', async () => {
    const stage = await openStage({
      modelPort: {
        ...model,
        check: (deployment) => {
          throw Object.assign(new Error(deployment), { code: 'MODEL_UNKNOWN' })
        },
      },
    })
    await expect(stage.runtime.spawn(agent())).rejects.toMatchObject({ code: 'MODEL_UNKNOWN' })
    expect(stage.store.shards.size).toBe(0)
    await stage.runtime.close()
  })
})

test('LO1 log: no secret reaches a line, by name or by shape', async () => {
  await using script = startScript(`
    import { createLog } from '#root/runtime/log.ts'
    const secret = 'sk-abcdefghijklmnop1234'
    createLog('info').with({ header: 'Authorization: Bearer ' + secret }).info('key ' + secret, { cause: new Error(secret), big: 1n })
    createLog('silent').error('silence')
    createLog('error').warn('not severe enough')
  `)
  expect(await script.ended).toBe(0)
  const lines = script.output.stderr.trim().split('\n')
  expect(lines).toHaveLength(1)
  expect(lines[0]).not.toContain('abcdefghijklmnop1234')
  expect(JSON.parse(lines[0]!)).toMatchObject({ level: 30, big: '1', cause: { name: 'Error' } })
})
