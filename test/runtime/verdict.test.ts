import { Buffer } from 'node:buffer'
import { existsSync, readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { defineAgent, defineTool } from '../../runtime/define.js'
import type { AnyTool } from '../../runtime/define.js'
import type { RawToolCall } from '../../runtime/ports.js'
import { judgeCalls, judgeOutput, responseFormat, toolSchemas } from '../../runtime/verdict.js'
import type { JudgedAgent, Verdict } from '../../runtime/verdict.js'

const run = () => 'done'
const cat = defineTool({
  name: 'cat',
  description: 'Shows a file.',
  input: z.object({ file: z.string() }),
  effect: 'pure',
  run,
})
const list = defineTool({ name: 'ls', description: 'Lists.', input: z.object({ all: z.boolean().optional() }), run })
const anything = defineTool({ name: 'anything', description: '', input: z.looseObject({}), effect: 'idempotent', run })
const tools = new Map<string, AnyTool>([cat, list, anything].map((tool) => [tool.name, tool]))
const agent: JudgedAgent = { tools, delegates: new Set(['writer']), handoffs: new Map(), callsPerRound: 8 }

function call(name: string, args: string, id = 'c1'): RawToolCall {
  return { id, name, arguments: args }
}

async function judge(name: string, args: string, judged: JudgedAgent = agent): Promise<Verdict> {
  const [verdict] = await judgeCalls([call(name, args)], judged)
  if (verdict === undefined) throw new Error('no verdict')
  return verdict
}

function fits(verdict: Verdict, known: ReadonlyMap<string, AnyTool>): boolean {
  if (verdict.verdict !== 'tool') return true
  const tool = known.get(verdict.tool)
  return tool !== undefined && tool.input.safeParse(JSON.parse(verdict.arguments)).success
}

function withInput(input: z.ZodType): JudgedAgent {
  const tool = defineTool({ name: 't', description: '', input, run })
  return { tools: new Map([['t', tool]]), delegates: new Set(), handoffs: new Map(), callsPerRound: 8 }
}

/** The kinds of malformed calls that were seen in public trajectories, in our own words. */
const malformed: readonly (readonly [string, string])[] = [
  ['cat', '{""}'],
  ['cat', '{"file": "a.txt", mode: "..."}'],
  ['cat', '{"file": "a.txt", ...}'],
  ['cat', '{"file": "what??"?"}'],
  ['cat', '{"file": ..."'],
  ['cat', '{"file": ?????\n\n\n\nThe user wants to see the file. We need to call cat.'],
  ['cat', '{"file":"a"}{"file":"b"}'],
  ['cat', '{"file": "a",{"..."}'],
  ['cat', '{"file": "line one\nline two"}'],
  ['cat', '{"file": [[\\"a\\", 1.0]]}'],
  ['cat', '{"file": "cut off in the middle of a long te'],
  ['cat', '{"file": "a.txt",}'],
  ['cat', `{"file": "${'... '.repeat(5000)}\n\n\n"`],
  ['cat', 'We need to read a file. Use cat.'],
  ['cat', ''],
  ['cat', 'null'],
  ['cat', '[]'],
  ['cat', '"a.txt"'],
  ['cat', '{"file": null}'],
  ['cat', '{"file": "a.txt"}<|call|>'],
  ['cat ...', '{"file": "a.txt"}'],
  ['cat json', '{"file": "a.txt"}'],
  ['cat...commentary?<|end|><|start|>assistant', 'We need to read a file.'],
  ['cat?commentary?…???…', '{"file": "a.txt"}'],
  ['.commentary???<|end|><|start|>assistant', '{}'],
  ['<|channel|>cat', '{"file": "a.txt"}'],
  ['cat<|end|><|start|>assistant<|channel|>analysis', 'Use cat.'],
  ['', ''],
  ['__proto__', '{}'],
  ['toString', '{}'],
  ['ＣＡＴ', '{"file": "a.txt"}'],
]

describe('judgeCalls', () => {
  test('tool call: what fits goes to the tool with the text that the model wrote', async () => {
    const verdict = await judge('cat', '{ "file": "a.txt", "more": 1.0 }')
    expect(verdict).toEqual({
      index: 0,
      callId: 'c1',
      name: 'cat',
      verdict: 'tool',
      tool: 'cat',
      effect: 'pure',
      timeoutMs: 60_000,
      retries: 2,
      onUnknown: 'tell',
      arguments: '{ "file": "a.txt", "more": 1.0 }',
      repaired: false,
    })
  })

  test('tool call: a once tool has no retries', async () => {
    expect(await judge('ls', '{}')).toMatchObject({ verdict: 'tool', effect: 'once', retries: 0 })
  })

  test('delegate call: the task goes to the agent', async () => {
    const verdict = await judge('writer', '{"task":"Write it."}')
    expect(verdict).toMatchObject({ verdict: 'delegate', agent: 'writer', input: 'Write it.' })
    expect(await judge('writer', '{"task":" "}')).toMatchObject({ reason: 'invalid_arguments' })
    expect(await judge('writer', '')).toMatchObject({ reason: 'invalid_arguments' })
  })

  test.each([
    'cat<|channel|>commentary',
    'cat<|channel|>',
    'cat <|constrain|>json',
    'functions.cat',
    'functions.cat<|channel|>analysis',
    'cat()',
    ' cat\n',
    'cat<|end|><|start|>assistant<|channel|>analysis',
  ])('tool name: %j is taken for cat', async (name) => {
    expect(await judge(name, '{"file":"a"}')).toMatchObject({ verdict: 'tool', tool: 'cat', name })
  })

  test('tool name: a delegate is recognised the same way', async () => {
    expect(await judge('functions.writer', '{"task":"x"}')).toMatchObject({ verdict: 'delegate', agent: 'writer' })
  })

  test('tool name: an unknown one is refused with the names that exist and a guess', async () => {
    const verdict = await judge('cat json', '{"file":"a"}')
    expect(verdict).toMatchObject({ verdict: 'refused', reason: 'unknown_tool' })
    expect(verdict).toHaveProperty('message', expect.stringContaining('Did you mean "cat"'))
    expect(verdict).toHaveProperty('message', expect.stringContaining('cat, ls, anything, writer'))
    const alone = await judge('cat', '{}', {
      tools: new Map(),
      delegates: new Set(),
      handoffs: new Map(),
      callsPerRound: 1,
    })
    expect(alone).toHaveProperty('message', expect.stringContaining('you have no tools'))
  })

  test('arguments: none at all are an empty object', async () => {
    for (const text of ['', '  \n', '""', '" "']) {
      const verdict = await judge('ls', text)
      expect(verdict, text).toMatchObject({ verdict: 'tool', arguments: '{}', repaired: true })
    }
  })

  test.each([
    ['double encoded', JSON.stringify('{"file": "a"}'), '{"file": "a"}'],
    ['in a fence', '```json\n{"file":"a"}\n```', '{"file":"a"}'],
    ['in a fence without a language', ' ```{"file":"a"}``` ', '{"file":"a"}'],
  ])('arguments: %s are unwrapped', async (_kind, written, meant) => {
    const verdict = await judge('cat', written)
    expect(verdict).toMatchObject({ verdict: 'tool', arguments: meant, repaired: true })
  })

  test('arguments: a string that the schema wants stays a string', async () => {
    const text = JSON.stringify('{"a":1}')
    expect(await judge('t', text, withInput(z.string()))).toMatchObject({ verdict: 'tool', arguments: text })
  })

  test('arguments: nothing else is repaired', async () => {
    for (const [name, args] of malformed) {
      const verdict = await judge(name, args)
      expect(verdict.verdict, `${name} ${args}`).toBe('refused')
    }
  })

  test('arguments: the model is told which field is wrong and what was expected', async () => {
    const verdict = await judge('cat', '{"file": 3}')
    expect(verdict).toMatchObject({ verdict: 'refused', reason: 'invalid_arguments' })
    expect(verdict).toHaveProperty('message', expect.stringMatching(/Field "file".*expected string, received number/))
  })

  test('arguments: of a union the closest branch is told', async () => {
    const input = z.object({ at: z.union([z.array(z.string()), z.object({ x: z.number() })]) })
    const verdict = await judge('t', '{"at":{"x":"1"}}', withInput(input))
    expect(verdict).toHaveProperty('message', expect.stringContaining('Field "at'))
    expect(verdict).not.toHaveProperty('message', expect.stringMatching(/Invalid input$/))
  })

  test('arguments: broken JSON is told without a stack', async () => {
    const verdict = await judge('cat', '{"file": ???')
    expect(verdict).toHaveProperty('message', expect.stringContaining('not valid JSON'))
    expect(verdict).not.toHaveProperty('message', expect.stringContaining('    at '))
  })

  test('arguments: what is told stays within 2 KiB and well-formed', async () => {
    const input = z.strictObject({ rows: z.array(z.object({ ['k'.repeat(3000)]: z.number() })) })
    const rows = Array.from({ length: 1000 }, () => ({}))
    const wrong = JSON.stringify({ rows, ['\u{1f600}'.repeat(2000)]: 1 })
    for (const [name, args] of [
      ['t', wrong],
      ['x'.repeat(9999), '{}'],
      ['t', '\ud800'.repeat(3000)],
    ] as const) {
      const verdict = await judge(name, args, withInput(input))
      if (verdict.verdict !== 'refused') throw new Error('not refused')
      expect(Buffer.byteLength(verdict.message)).toBeLessThanOrEqual(2048)
      expect(Buffer.byteLength(verdict.name)).toBeLessThanOrEqual(256)
      expect(JSON.stringify(verdict)).not.toMatch(/\\ud[89a-f]/i)
    }
  })

  test('arguments: keys that reach a prototype are refused, whatever the schema takes', async () => {
    const keys = ['{"__proto__":{"x":1}}', '{"a":[{"__proto__":1}]}', '{"constructor":{"prototype":{"x":1}}}']
    for (const text of [...keys, ...keys.map((key) => JSON.stringify(key))]) {
      expect(await judge('anything', text), text).toMatchObject({ reason: 'invalid_arguments' })
    }
    expect(await judge('anything', '{"constructor":"Ferrari"}')).toMatchObject({ verdict: 'tool' })
    expect(({} as Record<string, unknown>)['x']).toBeUndefined()
  })

  test('arguments: too large and too deep ones are refused', async () => {
    const large = JSON.stringify({ file: 'x'.repeat(256 * 1024) })
    expect(await judge('cat', large)).toHaveProperty('message', expect.stringContaining('256 KiB'))
    const deep = `{"a":${'['.repeat(100_000)}${']'.repeat(100_000)}}`
    expect(await judge('anything', deep)).toHaveProperty('message', expect.stringContaining('deeper than 64'))
    const open = '['.repeat(200_000)
    expect(await judge('anything', open)).toMatchObject({ reason: 'invalid_arguments' })
    const just = `{"a":${'['.repeat(63)}1${']'.repeat(63)}}`
    expect(await judge('anything', just)).toMatchObject({ verdict: 'tool' })
  })

  test('arguments: a check of the user that throws or rejects refuses the call', async () => {
    const sync = z.object({
      a: z.string().refine((): boolean => {
        throw new Error(`db down, password=hunter2hunter2`)
      }),
    })
    const late = z.object({ a: z.string().refine(() => Promise.reject(new Error('late'))) })
    const verdict = await judge('t', '{"a":""}', withInput(sync))
    expect(verdict).toMatchObject({ reason: 'invalid_arguments' })
    expect(verdict).toHaveProperty('message', expect.stringContaining('db down'))
    expect(verdict).not.toHaveProperty('message', expect.stringContaining('hunter2'))
    expect(await judge('t', '{"a":""}', withInput(late))).toMatchObject({ reason: 'invalid_arguments' })
  })

  test('arguments: async checks are awaited and transforms do not change the text', async () => {
    const input = z.object({ a: z.string().transform((text) => text.length) }).refine(({ a }) => Promise.resolve(a < 3))
    expect(await judge('t', '{"a":"xx"}', withInput(input))).toMatchObject({ verdict: 'tool', arguments: '{"a":"xx"}' })
    expect(await judge('t', '{"a":"xxx"}', withInput(input))).toMatchObject({ verdict: 'refused' })
  })

  test('reply: calls above the limit are refused, the others keep their order', async () => {
    const calls = Array.from({ length: 5 }, (_, index) => call('ls', '{}', `c${index}`))
    const verdicts = await judgeCalls(calls, { ...agent, handoffs: new Map(), callsPerRound: 3 })
    expect(verdicts.map(({ index, callId }) => [index, callId])).toEqual(calls.map(({ id }, index) => [index, id]))
    expect(verdicts.map(({ verdict }) => verdict)).toEqual(['tool', 'tool', 'tool', 'refused', 'refused'])
    expect(verdicts[4]).toMatchObject({ reason: 'too_many_calls' })
  })

  test('reply: the second call with one id is refused', async () => {
    const verdicts = await judgeCalls([call('ls', '{}'), call('cat', '{"file":"a"}'), call('ls', '', 'c2')], agent)
    expect(verdicts.map(({ verdict }) => verdict)).toEqual(['tool', 'refused', 'tool'])
    expect(verdicts[1]).toMatchObject({ reason: 'duplicate_id' })
  })

  test('verdict: any call gets one that is JSON-safe, and none goes to a tool that does not fit it', async () => {
    const name = fc.oneof(
      fc.constantFrom('cat', 'ls', 'anything', 'writer', 'functions.cat', 'cat<|channel|>'),
      fc.string({ unit: 'binary' }),
    )
    const json = fc.json({ maxDepth: 3 })
    const args = fc.oneof(
      fc.string({ unit: 'binary' }),
      json,
      json.map((text) => JSON.stringify(text)),
      json.map((text) => `\`\`\`json\n${text}\n\`\`\``),
      fc.record({ file: fc.oneof(fc.string(), fc.integer()) }).map((value) => JSON.stringify(value)),
      json.map((text) => `{"file":"a","__proto__":${text}}`),
    )
    const one = fc.record({ id: fc.string({ maxLength: 2 }), name, arguments: args })
    await fc.assert(
      fc.asyncProperty(fc.array(one, { maxLength: 12 }), async (calls) => {
        const verdicts = await judgeCalls(calls, agent)
        expect(verdicts).toHaveLength(calls.length)
        expect(JSON.parse(JSON.stringify(verdicts))).toEqual(verdicts)
        expect(verdicts.every((verdict) => fits(verdict, tools))).toBe(true)
      }),
      { numRuns: 300 },
    )
  })

  const corpus = new URL('../../../shared/data/malformed-calls.json', import.meta.url)
  test.skipIf(!existsSync(corpus))(
    'verdict: every malformed call of real models gets one, and nothing unfit goes to a tool',
    async () => {
      const entries = z
        .array(z.object({ kind: z.string(), name: z.string(), arguments: z.string() }))
        .parse(JSON.parse(readFileSync(corpus, 'utf8')))
      const plain = (name: string) => /^[A-Za-z0-9_-]*/.exec(name)?.[0] ?? ''
      const counts: Record<string, number> = {}
      const loose = z.looseObject({})
      const demanding = z.strictObject({ file_name: z.string() })
      for (const entry of entries) {
        // the tool that was meant, with a schema that takes any object and with one that hardly anything fits
        for (const [schema, input] of Object.entries({ loose, demanding })) {
          const name = plain(entry.name) === '' ? 'none' : plain(entry.name)
          const known = new Map<string, AnyTool>([[name, defineTool({ name, description: '', input, run })]])
          const verdict = await judge(entry.name, entry.arguments, {
            tools: known,
            delegates: new Set(),
            handoffs: new Map(),
            callsPerRound: 64,
          })
          expect(fits(verdict, known), JSON.stringify(entry)).toBe(true)
          if (entry.kind === 'bad_json') expect(verdict.verdict).toBe('refused')
          if (verdict.verdict === 'refused') expect(Buffer.byteLength(verdict.message)).toBeLessThanOrEqual(2048)
          const outcome = verdict.verdict === 'refused' ? verdict.reason : verdict.verdict
          const row = `${entry.kind}/${schema}/${outcome}`
          counts[row] = (counts[row] ?? 0) + 1
        }
      }
      expect(counts['empty_arguments/loose/tool']).toBe(10)
      expect(counts['odd_tool_name/loose/tool']).toBeGreaterThan(80)
    },
  )
})

describe('toolSchemas', () => {
  const crew = { agents: {} }

  test('tool schemas: an agent without tools and delegates has none', () => {
    expect(toolSchemas(defineAgent({ model: 'a:b', instructions: '' }), crew)).toBeNull()
  })

  test('tool schemas: tools and delegates are functions in the shape of OpenAI', () => {
    const strict = defineTool({
      name: 'strict',
      description: '',
      input: z.strictObject({ n: z.number().default(1) }),
      run,
    })
    const lead = defineAgent({ model: 'a:b', instructions: '', tools: [cat, strict], delegates: ['writer', 'other'] })
    const writer = defineAgent({ model: 'a:b', instructions: '', description: 'Writes well.' })
    const schemas: unknown = JSON.parse(toolSchemas(lead, { agents: { writer } }) ?? 'null')
    expect(schemas).toMatchObject([
      {
        type: 'function',
        function: {
          name: 'cat',
          description: 'Shows a file.',
          parameters: { type: 'object', properties: { file: { type: 'string' } }, required: ['file'] },
        },
      },
      {
        function: {
          name: 'strict',
          parameters: { properties: { n: { type: 'number', default: 1 } }, additionalProperties: false },
        },
      },
      { function: { name: 'writer', description: 'Writes well.', parameters: { required: ['task'] } } },
      { function: { name: 'other', description: expect.stringContaining('other') } },
    ])
    expect(JSON.stringify(schemas)).not.toContain('$schema')
    expect(schemas).not.toHaveProperty('[0].function.parameters.additionalProperties')
  })

  test('tool schemas: the input side of a transform is shown, a union of objects is an object', () => {
    const length = z.object({ text: z.string().transform((text) => text.length), at: z.coerce.number() })
    const either = z.discriminatedUnion('kind', [
      z.object({ kind: z.literal('a') }),
      z.object({ kind: z.literal('b') }),
    ])
    for (const input of [length, either, z.record(z.string(), z.number())]) {
      const tool = defineTool({ name: 't', description: '', input, run })
      const lead = defineAgent({ model: 'a:b', instructions: '', tools: [tool as AnyTool] })
      const schemas: unknown = JSON.parse(toolSchemas(lead, crew) ?? '')
      expect(schemas).toHaveProperty('[0].function.parameters.type', 'object')
    }
  })

  test('tool schemas: an input that models cannot send is CREW_INVALID', () => {
    for (const input of [z.object({ at: z.date() }), z.string(), z.object({ n: z.bigint() }), z.array(z.string())]) {
      const tool = defineTool({ name: 't', description: '', input, run })
      const lead = defineAgent({ model: 'a:b', instructions: '', tools: [tool as AnyTool] })
      expect(() => toolSchemas(lead, crew)).toThrow(expect.objectContaining({ code: 'CREW_INVALID' }))
    }
  })
})

describe('judgeOutput', () => {
  const schema = z.object({ title: z.string(), pages: z.number().optional() })

  test.each([
    '{"title":"x"}',
    ' {"title":"x"} \n',
    '```json\n{"title":"x"}\n```',
    'Here it is:\n```json\n{"title":"x"}\n```\nAnything else?',
  ])('structured output: %j is taken', async (text) => {
    expect(await judgeOutput(text, schema)).toEqual({ ok: true, value: { title: 'x' } })
  })

  test.each([
    ['Sorry, I cannot.', /must be JSON/],
    ['', /must be JSON/],
    ['{"title": 3}', /Field "title".*expected string/],
    ['```\n{"title":"x"}\n```\n```\n{"title":"y"}\n```', /must be JSON/],
    ['{"title":"x","__proto__":{}}', /__proto__/],
    ['['.repeat(100_000), /must be JSON/],
    [`${'['.repeat(100)}${']'.repeat(100)}`, /deeper than 64/],
  ])('structured output: %j is sent back with the reason', async (text, reason) => {
    const judged = await judgeOutput(text, schema)
    expect(judged).toMatchObject({ ok: false, message: expect.stringMatching(reason) })
  })

  test('structured output: the value is what the schema makes of it, as plain JSON', async () => {
    const doubled = z.object({
      a: z.number().transform((n) => n * 2),
      b: z
        .string()
        .optional()
        .transform(() => undefined),
    })
    expect(await judgeOutput('{"a":2}', doubled)).toEqual({ ok: true, value: { a: 4 } })
  })

  test('structured output: a schema that makes something else than JSON is refused by name', async () => {
    const cyclic: unknown[] = []
    cyclic.push(cyclic, cyclic)
    // 2^40 values that take no room
    let shared: unknown = 1
    for (let level = 0; level < 40; level += 1) shared = [shared, shared]
    for (const made of [shared, new Date(0), 1n, NaN, new Map(), Symbol('x'), () => 1, [undefined], cyclic]) {
      const judged = await judgeOutput('{"a":"1"}', z.object({ a: z.string().transform(() => made) }))
      expect(judged).toMatchObject({ ok: false, message: expect.stringContaining('not JSON') })
    }
    const throwing = z.object({ a: z.string() }).transform(() => ({
      get a(): string {
        throw new Error('getter')
      },
    }))
    expect(await judgeOutput('{"a":"1"}', throwing)).toMatchObject({ ok: false })
  })

  test('structured output: any text is judged without a throw', async () => {
    await fc.assert(
      fc.asyncProperty(fc.oneof(fc.string({ unit: 'binary' }), fc.json()), async (text) => {
        const judged = await judgeOutput(text, z.looseObject({}))
        if (judged.ok) expect(JSON.parse(JSON.stringify(judged.value))).toEqual(judged.value)
        else expect(Buffer.byteLength(judged.message)).toBeLessThanOrEqual(2048)
      }),
    )
  })
})

describe('responseFormat', () => {
  test('response format: a schema that strict mode takes is closed and strict', () => {
    const inner = z.object({ n: z.int(), tag: z.enum(['a', 'b']).nullable() })
    const format: unknown = JSON.parse(responseFormat(z.object({ list: z.array(inner), id: z.uuid() })))
    expect(format).toMatchObject({ type: 'json_schema', json_schema: { name: 'output', strict: true } })
    expect(format).toHaveProperty('json_schema.schema.additionalProperties', false)
    expect(format).toHaveProperty('json_schema.schema.properties.list.items.additionalProperties', false)
  })

  test.each([
    ['an optional field', z.object({ a: z.string().optional() })],
    ['a bounded string', z.object({ a: z.string().max(3) })],
    ['a record', z.object({ a: z.record(z.string(), z.number()) })],
    ['anything', z.object({ a: z.unknown() })],
    ['a tuple', z.object({ a: z.tuple([z.string()]) })],
    ['an array', z.array(z.string())],
    ['an open object', z.looseObject({ a: z.string() })],
  ])('response format: %s is sent without strict', (_what, schema) => {
    const format: unknown = JSON.parse(responseFormat(schema))
    expect(format).toHaveProperty('json_schema.name', 'output')
    expect(format).not.toHaveProperty('json_schema.strict')
    expect(JSON.stringify(format)).not.toContain('$schema')
  })

  test('response format: a schema without a JSON Schema is CREW_INVALID', () => {
    expect(() => responseFormat(z.object({ at: z.date() }))).toThrow(expect.objectContaining({ code: 'CREW_INVALID' }))
  })
})
