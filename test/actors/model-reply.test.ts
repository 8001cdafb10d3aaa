import fc from 'fast-check'
import { expect, test } from 'vitest'
import { ReplyReader, type Problem, type ReadReply } from '../../actors/model-reply.js'

type Part = Record<string, unknown>

const chunk = (delta: Part | null, finish: string | null = null, more: Part = {}): Part => ({
  id: 'c1',
  object: 'chat.completion.chunk',
  model: 'm-1',
  choices: delta === null ? [] : [{ index: 0, delta, finish_reason: finish }],
  ...more,
})

const usage = { prompt_tokens: 7, completion_tokens: 5, total_tokens: 12, prompt_tokens_details: { cached_tokens: 3 } }

const sse = (...events: (Part | string)[]): string =>
  events.map((event) => `data: ${typeof event === 'string' ? event : JSON.stringify(event)}\n\n`).join('')

function read(body: string, cut = false): ReadReply | Problem {
  const reader = new ReplyReader(40)
  reader.push(body)
  return reader.end(cut)
}

function reply(body: string): ReadReply {
  const result = read(body)
  if ('reason' in result) throw new Error(`${result.reason}: ${String(result.detail)}`)
  return result
}

function problem(body: string, cut = false): Problem {
  const result = read(body, cut)
  if (!('reason' in result)) throw new Error(`a reply: ${result.message}`)
  return result
}

const call = (fields: Part): Part => ({ tool_calls: [fields] })

test('reply: a stream of text', () => {
  const body = sse(
    chunk({ role: 'assistant', content: '' }),
    chunk({ content: 'Hello' }),
    chunk({ content: ', you' }),
    chunk({}, 'stop'),
    chunk(null, null, { usage }),
    '[DONE]',
  )
  expect(reply(body)).toEqual({
    message: '{"role":"assistant","content":"Hello, you"}',
    text: 'Hello, you',
    toolCalls: [],
    finishReason: 'stop',
    usage: { inputTokens: 7, outputTokens: 5, cachedInputTokens: 3, estimated: false },
    model: 'm-1',
  })
})

test('reply: CRLF, lone CR, comments, other fields, no space after the colon, no [DONE], no last empty line', () => {
  const lines = [
    ': keep-alive',
    'event: message',
    'id: 7',
    'retry: 10',
    `data:${JSON.stringify(chunk({ content: 'a' }))}`,
    '',
    ':',
    `data: ${JSON.stringify(chunk({ content: 'b' }, 'stop'))}`,
  ]
  for (const end of ['\n', '\r\n', '\r']) expect(reply(lines.join(end)).text).toBe('ab')
})

test('reply: events without an empty line between them', () => {
  const events = [chunk({ content: 'a' }), chunk({ content: 'b' }, 'stop')].map((event) => JSON.stringify(event))
  expect(reply(`data: ${events.join('\ndata: ')}\ndata: [DONE]\n`).text).toBe('ab')
})

test('reply: an event in several data lines', () => {
  const [first, ...rest] = JSON.stringify(chunk({ content: 'a' }, 'stop'), null, 1).split('\n')
  expect(reply([`data: ${first ?? ''}`, ...rest.map((line) => `data: ${line}`), '', ''].join('\n')).text).toBe('a')
})

test('reply: usage in every chunk, in the last, at x_groq, in the choice, or nowhere', () => {
  const every = sse(
    chunk({ content: 'a' }, null, { usage: { ...usage, completion_tokens: 1, total_tokens: 8 } }),
    chunk({ content: 'b' }, 'stop', { usage }),
    '[DONE]',
  )
  const groq = sse(chunk({ content: 'ab' }), chunk({}, 'stop', { x_groq: { usage } }), '[DONE]')
  const inChoice = sse({ choices: [{ index: 0, delta: { content: 'ab' }, finish_reason: 'stop', usage }] }, '[DONE]')
  for (const body of [every, groq, inChoice])
    expect(reply(body).usage).toMatchObject({ inputTokens: 7, outputTokens: 5 })
  expect(reply(sse(chunk({ content: 'abcdefgh' }, 'stop'), '[DONE]')).usage).toEqual({
    inputTokens: 10,
    outputTokens: 2,
    cachedInputTokens: 0,
    estimated: true,
  })
})

test('reply: reasoning that a provider leaves out of the output is in the total and counted', () => {
  const counts = { prompt_tokens: 10, completion_tokens: 2, total_tokens: 50 }
  expect(reply(sse(chunk({ content: 'a' }, 'stop', { usage: counts }), '[DONE]')).usage.outputTokens).toBe(40)
})

test('reply: nonsense usage is no usage', () => {
  for (const bad of [
    {},
    [],
    'x',
    { prompt_tokens: -1, completion_tokens: 1 },
    { prompt_tokens: '7', completion_tokens: 5 },
  ]) {
    expect(reply(sse(chunk({ content: 'a' }, 'stop', { usage: bad }), '[DONE]')).usage.estimated).toBe(true)
  }
})

test('reply: tool calls in many deltas, interleaved', () => {
  const body = sse(
    chunk(call({ index: 0, id: 'a', type: 'function', function: { name: 'one', arguments: '' } })),
    chunk(call({ index: 1, id: 'b', type: 'function', function: { name: 'two', arguments: '{"y"' } })),
    chunk(call({ index: 0, function: { arguments: '{"x":' } })),
    chunk(call({ index: 1, function: { arguments: ':2}' } })),
    chunk(call({ index: 0, function: { arguments: '1}' } })),
    chunk({}, 'tool_calls'),
    '[DONE]',
  )
  const { toolCalls, message, finishReason } = reply(body)
  expect(toolCalls).toEqual([
    { id: 'a', name: 'one', arguments: '{"x":1}' },
    { id: 'b', name: 'two', arguments: '{"y":2}' },
  ])
  expect(finishReason).toBe('tool_calls')
  expect(JSON.parse(message)).toEqual({
    role: 'assistant',
    content: null,
    tool_calls: [
      { id: 'a', type: 'function', function: { name: 'one', arguments: '{"x":1}' } },
      { id: 'b', type: 'function', function: { name: 'two', arguments: '{"y":2}' } },
    ],
  })
})

test('reply: tool call deltas without index', () => {
  const body = sse(
    chunk(call({ id: 'a', function: { name: 'one', arguments: '{"x":' } })),
    chunk(call({ function: { arguments: '1' } })),
    chunk(call({ id: 'a', function: { arguments: '}' } })),
    chunk(call({ id: 'b', function: { name: 'two', arguments: '{}' } })),
    chunk({}, 'tool_calls'),
  )
  expect(reply(body).toolCalls).toEqual([
    { id: 'a', name: 'one', arguments: '{"x":1}' },
    { id: 'b', name: 'two', arguments: '{}' },
  ])
})

test('reply: calls that are all numbered 0, with and without ids', () => {
  for (const [first, second] of [
    ['a', 'b'],
    ['', ''],
    ['a', 'a'],
  ]) {
    const body = sse(
      chunk(call({ index: 0, id: first, function: { name: 'one', arguments: '{"x":1}' } })),
      chunk(call({ index: 0, id: second, function: { name: 'one', arguments: '{"x":2}' } })),
      chunk({}, 'stop'),
    )
    const { toolCalls, finishReason } = reply(body)
    expect(toolCalls.map((made) => made.arguments)).toEqual(['{"x":1}', '{"x":2}'])
    expect(new Set(toolCalls.map(({ id }) => id)).size).toBe(2)
    expect(finishReason).toBe('tool_calls')
  }
})

test('reply: a call that is sent again as a whole is one call; a name may come twice or in pieces', () => {
  const whole = call({ index: 0, id: '0', function: { name: 'one', arguments: '{"x":1}' } })
  expect(reply(sse(chunk(whole), chunk(whole), '[DONE]')).toolCalls).toHaveLength(1)
  const named = sse(
    chunk(call({ index: 0, id: 'a', function: { name: 'get', arguments: '' } })),
    chunk(call({ index: 0, function: { name: '_more' } })),
    chunk(call({ index: 0, id: 'a', function: { name: 'get_more', arguments: '{"a"' } })),
    chunk(call({ index: 0, id: 'a', function: { name: 'get_more', arguments: ':1}' } }), 'tool_calls'),
  )
  expect(reply(named).toolCalls).toEqual([{ id: 'a', name: 'get_more', arguments: '{"a":1}' }])
})

test('reply: arguments as object, null, empty or broken stay as they are in the calls and are JSON in the message', () => {
  const given: [unknown, string, string][] = [
    ['{"a":1}', '{"a":1}', '{"a":1}'],
    [{ a: 1 }, '{"a":1}', '{"a":1}'],
    [null, '', '{}'],
    [undefined, '', '{}'],
    ['', '', '{}'],
    ['{"a":', '{"a":', '{}'],
    ['[1]', '[1]', '{}'],
    ['"text"', '"text"', '{}'],
  ]
  for (const [sent, raw, accepted] of given) {
    const message = { content: null, tool_calls: [{ id: 'a', function: { name: 'f', arguments: sent } }] }
    const result = reply(JSON.stringify({ choices: [{ index: 0, message, finish_reason: 'tool_calls' }] }))
    expect(result.toolCalls[0]?.arguments).toBe(raw)
    expect(JSON.parse(result.message).tool_calls[0].function.arguments).toBe(accepted)
  }
})

test('reply: missing, empty and repeated ids become call_<n>; a name with control tokens is plain in the message', () => {
  const fn = (name: string): Part => ({ name, arguments: '{}' })
  const calls = [
    { function: fn('a') },
    { id: '', function: fn('b') },
    { id: 'x', function: fn('c') },
    { id: 'x', function: fn('d') },
    { id: 'call_0', function: fn('functions.lookup<|channel|>') },
    { id: 5, function: {} },
  ]
  const result = reply(JSON.stringify({ choices: [{ message: { content: 'hi', tool_calls: calls } }] }))
  const ids = result.toolCalls.map(({ id }) => id)
  expect(new Set(ids).size).toBe(6)
  expect(ids[1]).toBe('call_1')
  expect(ids[2]).toBe('x')
  expect(ids[3]).toBe('call_3')
  expect(ids[4]).toBe('call_0')
  expect(result.toolCalls[4]?.name).toBe('functions.lookup<|channel|>')
  const { tool_calls: written, content } = JSON.parse(result.message)
  expect(written[4].function.name).toBe('functions_lookup__channel__')
  expect(written[5].function.name).toBe('unknown')
  expect(content).toBe('hi')
})

test('reply: a legacy function_call, parts as content, a refusal', () => {
  const legacy = { role: 'assistant', content: null, function_call: { name: 'f', arguments: '{}' } }
  expect(reply(JSON.stringify({ choices: [{ message: legacy }] })).toolCalls[0]).toMatchObject({ name: 'f' })
  const parts = [{ type: 'thinking', thinking: [{ type: 'text', text: 'no' }] }, { type: 'text', text: 'yes' }, ' ok']
  expect(reply(JSON.stringify({ choices: [{ message: { content: parts } }] })).text).toBe('yes ok')
  const refused = reply(sse(chunk({ refusal: 'I can' }), chunk({ refusal: 'not' }, 'stop')))
  expect(JSON.parse(refused.message)).toEqual({ role: 'assistant', content: '', refusal: 'I cannot' })
})

test('reply: nothing but role, content, refusal and tool_calls is kept', () => {
  const message = { role: 'x', content: 'hi', reasoning_content: 'r', annotations: [], audio: null, extra_content: {} }
  expect(reply(JSON.stringify({ choices: [{ message, finish_reason: 'stop' }] })).message).toBe(
    '{"role":"assistant","content":"hi"}',
  )
})

test('reply: of several choices the first counts', () => {
  const body = sse(
    { choices: [{ index: 1, delta: { content: 'no' } }] },
    { choices: [{ index: 0, delta: { content: 'yes' }, finish_reason: 'stop' }] },
    { choices: [{ index: 1, delta: { content: 'no' }, finish_reason: 'length' }] },
    '[DONE]',
  )
  expect(reply(body)).toMatchObject({ text: 'yes', finishReason: 'stop' })
})

test('reply: finish reasons', () => {
  const finish = (reason: unknown, calls = false): string =>
    reply(
      JSON.stringify({
        choices: [
          {
            message: { content: 'a', ...(calls ? { tool_calls: [{ id: 'a', function: { name: 'f' } }] } : {}) },
            finish_reason: reason,
          },
        ],
      }),
    ).finishReason
  expect(['stop', 'eos', 'COMPLETE', 'end_turn'].map((reason) => finish(reason))).toEqual(Array(4).fill('stop'))
  expect(['length', 'MAX_TOKENS', 'model_length'].map((reason) => finish(reason))).toEqual(Array(3).fill('length'))
  expect(['content_filter', 'SAFETY'].map((reason) => finish(reason))).toEqual(Array(2).fill('content_filter'))
  expect(['whatever', null, undefined, 7].map((reason) => finish(reason))).toEqual(Array(4).fill('other'))
  expect(['stop', 'tool_calls', null].map((reason) => finish(reason, true))).toEqual(Array(3).fill('tool_calls'))
  expect([finish('length', true), finish('tool_calls')]).toEqual(['length', 'other'])
})

test('reply: the format follows from the bytes, not from what was asked for', () => {
  const whole = JSON.stringify({ choices: [{ message: { content: 'a' }, finish_reason: 'stop' }] })
  expect(reply(`\n  ${whole}\n`).text).toBe('a')
  expect(problem(JSON.stringify({ error: { message: 'no' } })).reason).toBe('error')
  expect(problem('<html>no</html>').reason).toBe('invalid')
})

test('reply: an error object in a stream, as an event, as a list or in the choice', () => {
  const half = chunk({ content: 'half' }, null, { usage })
  for (const body of [
    sse(half, { error: { message: 'no', code: 500 } }),
    sse(half, { ...chunk({ content: '' }), error: { message: 'no' } }),
    sse(half, { choices: [{ index: 0, delta: {}, error: { message: 'no' }, finish_reason: 'error' }] }),
    `${sse(half)}event: error\ndata: {"message":"no"}\n\n`,
    `${sse(half)}event: error\ndata: no\n\n`,
    sse(half, { object: 'error', message: 'no' }),
    sse(half, { detail: 'no' }),
  ]) {
    const { reason, detail, usage: counted } = problem(body)
    expect(reason).toBe('error')
    expect(JSON.stringify(detail)).toContain('no')
    expect(counted).toMatchObject({ inputTokens: 7 })
  }
  expect(problem('[{"error":{"message":"no"}}]').reason).toBe('error')
})

test('reply: empty and strange bodies are problems', () => {
  for (const body of [
    '',
    '\n\n',
    ': only comments\n\n',
    'data: [DONE]\n\n',
    'plain text',
    '{}',
    '[]',
    'null',
    '"x"',
    '{"choices":[]}',
  ]) {
    expect(problem(body).reason).toBe('invalid')
  }
  expect(problem('{"choices":[{}]}').reason).toBe('invalid')
  expect(problem(sse(chunk({ content: 'a' }), '{"id":}]}', '[DONE]')).reason).toBe('invalid')
  expect(problem(sse(chunk({ content: 'a' }))).reason).toBe('cut')
  expect(problem('{"choices":[{"mess', true).reason).toBe('cut')
})

test('reply: text is handed on once and in order', () => {
  const reader = new ReplyReader(0)
  const seen: string[] = []
  for (const content of ['a', 'bc', '', 'd']) {
    reader.push(sse(chunk({ content })))
    seen.push(reader.takeText())
  }
  expect(seen).toEqual(['a', 'bc', '', 'd'])
})

test('reply: ten thousand tool calls and a long text are linear', { timeout: 20_000 }, () => {
  const reader = new ReplyReader(0)
  for (let index = 0; index < 10_000; index += 1) {
    reader.push(sse(chunk(call({ index, id: '', function: { name: 'f', arguments: '{"a"' } }))))
  }
  for (let index = 9_999; index >= 0; index -= 1) {
    reader.push(sse(chunk(call({ index, function: { arguments: `:${index}}` } }))))
  }
  for (let i = 0; i < 100_000; i += 1) {
    reader.push(sse(chunk({ content: 'text ' })))
    reader.takeText()
  }
  reader.push(sse(chunk({}, 'tool_calls'), '[DONE]'))
  const result = reader.end()
  if ('reason' in result) throw new Error(result.reason)
  expect(result.toolCalls).toHaveLength(10_000)
  expect(result.toolCalls[1_234]).toEqual({ id: 'call_1234', name: 'f', arguments: '{"a":1234}' })
  expect(new Set(result.toolCalls.map(({ id }) => id)).size).toBe(10_000)
  expect(result.text).toHaveLength(500_000)
})

const fixtures = [
  sse(chunk({ content: 'grüße ' }), chunk({ content: '🌍 "x"' }, 'stop'), chunk(null, null, { usage }), '[DONE]'),
  sse(
    chunk(call({ index: 0, id: 'a', function: { name: 'one', arguments: '{"k' } })),
    chunk(call({ index: 0, function: { arguments: '":"ü"}' } })),
    chunk({}, 'tool_calls'),
  ).replaceAll('\n', '\r\n'),
  JSON.stringify({ choices: [{ index: 0, message: { content: 'grüße 🌍' }, finish_reason: 'stop' }], usage }, null, 1),
]

test('reply: any cutting into pieces gives the same reply', () => {
  fc.assert(
    fc.property(fc.constantFrom(...fixtures), fc.array(fc.nat(400), { maxLength: 30 }), (body, cuts) => {
      const bytes = new TextEncoder().encode(body)
      const decoder = new TextDecoder()
      const reader = new ReplyReader(40)
      const at = [...new Set(cuts)].filter((cut) => cut < bytes.length).sort((a, b) => a - b)
      let from = 0
      for (const to of [...at, bytes.length]) {
        reader.push(decoder.decode(bytes.subarray(from, to), { stream: true }))
        from = to
      }
      reader.push(decoder.decode())
      expect(reader.end()).toEqual(reply(body))
    }),
    { numRuns: 500 },
  )
})

test('reply: cut anywhere it is the same message or a problem, never another message', () => {
  for (const body of fixtures) {
    const bytes = new TextEncoder().encode(body)
    const { message, text, toolCalls } = reply(body)
    for (let end = 0; end < bytes.length; end += 1) {
      for (const cut of [true, false]) {
        const result = read(new TextDecoder().decode(bytes.subarray(0, end)), cut)
        if (!('reason' in result)) expect(result).toMatchObject({ message, text, toolCalls })
      }
    }
  }
})

test('reply: no body makes it throw', () => {
  const json = fc.json()
  const body = fc.oneof(
    fc.string(),
    json,
    fc.array(json).map((events) => sse(...events)),
    fc.array(json).map((choices) => `{"choices":[${choices.join(',')}]}`),
  )
  fc.assert(
    fc.property(body, fc.boolean(), (text, cut) => void read(text, cut)),
    { numRuns: 1_000 },
  )
})
