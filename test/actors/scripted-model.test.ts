import { OpenAI } from 'openai'
import { expect, test } from 'vitest'
import {
  fault,
  lastUser,
  reply,
  startScriptedModel,
  toolResults,
  type ModelScript,
  type ScriptedModelOptions,
} from '../../actors/scripted-model.js'

type Message = OpenAI.ChatCompletionMessageParam

const user = (content: string): Message => ({ role: 'user', content })
const lookup = { type: 'function', function: { name: 'lookup', parameters: { type: 'object' } } } as const

async function start(script: ModelScript, options: ScriptedModelOptions = {}) {
  const model = await startScriptedModel(script, options)
  const client = new OpenAI({ apiKey: 'k', baseURL: model.baseURL, maxRetries: 0 })
  return { model, client, [Symbol.asyncDispose]: () => model.close() }
}

async function post(url: string, body: unknown): Promise<{ status: number; text: string; headers: Headers }> {
  const text = typeof body === 'string' ? body : JSON.stringify(body)
  const response = await fetch(`${url}/chat/completions`, { method: 'POST', body: text })
  return { status: response.status, text: await response.text(), headers: response.headers }
}

test('scripted model: a conversation with a tool, whole and streamed, is the same', async () => {
  await using world = await start((request) => {
    const [result] = toolResults(request)
    if (result !== undefined) return `It is ${result.content}, ${lastUser(request)}`
    return reply.calls({ name: 'lookup', arguments: { topic: 'größe' } }, { name: 'lookup', arguments: '{"broken' })
  })
  const messages = [user('friend')]
  const whole = await world.client.chat.completions.create({ model: 'm', messages, tools: [lookup] })
  const made = whole.choices[0]?.message.tool_calls ?? []
  expect(made).toEqual([
    { id: 'call_0_0', type: 'function', function: { name: 'lookup', arguments: '{"topic":"größe"}' } },
    { id: 'call_0_1', type: 'function', function: { name: 'lookup', arguments: '{"broken' } },
  ])
  expect(whole.choices[0]?.finish_reason).toBe('tool_calls')
  const streamed = await world.client.chat.completions.stream({ model: 'm', messages, tools: [lookup] }).finalMessage()
  expect(streamed.tool_calls?.map((call) => call.type === 'function' && call.function.arguments)).toEqual([
    '{"topic":"größe"}',
    '{"broken',
  ])
  const assistant: Message = { role: 'assistant', content: null, tool_calls: made }
  const results = made.map(({ id }, n): Message => ({ role: 'tool', tool_call_id: id, content: `${n + 1} m` }))
  const answer = await world.client.chat.completions.create({
    model: 'm',
    messages: [...messages, assistant, ...results],
  })
  expect(answer.choices[0]?.message.content).toBe('It is 1 m, friend')
})

test('scripted model: a stream has role, pieces, finish, usage and [DONE]', async () => {
  await using world = await start(() => 'one two 🌍 three')
  const request = { model: 'm', messages: [user('hi')], stream: true, stream_options: { include_usage: true } }
  const { text, headers } = await post(world.model.baseURL, request)
  expect(headers.get('content-type')).toContain('text/event-stream')
  const events = text
    .trimEnd()
    .split('\n\n')
    .map((event) => event.replace('data: ', ''))
  expect(events.at(-1)).toBe('[DONE]')
  const chunks = events.slice(0, -1).map((event) => JSON.parse(event))
  expect(chunks[0].choices[0].delta).toEqual({ role: 'assistant', content: '' })
  const pieces = chunks.map(({ choices }) => choices[0]?.delta.content ?? '')
  expect(pieces.join('')).toBe('one two 🌍 three')
  expect(Math.max(...pieces.map((piece: string) => piece.length))).toBeLessThanOrEqual(7)
  expect(chunks.at(-2).choices[0].finish_reason).toBe('stop')
  expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { completion_tokens: 4 } })
  const plain = await post(world.model.baseURL, { ...request, stream_options: undefined })
  expect(plain.text).not.toContain('usage')
})

test('scripted model: tokens are a quarter of the characters of messages and tools, and max_tokens cuts', async () => {
  await using world = await start(() => ({ text: 'x'.repeat(100), calls: [{ name: 'lookup', arguments: {} }] }))
  const messages = [user('hi'), user('there')]
  const tools = [lookup]
  const characters = messages.reduce(
    (sum, message) => sum + JSON.stringify(message).length,
    JSON.stringify(tools).length,
  )
  const request = { model: 'm', messages, tools, temperature: 1 }
  const cut = await world.client.chat.completions.create({ ...request, max_tokens: 10 })
  expect(cut.choices[0]).toMatchObject({ finish_reason: 'length', message: { content: 'x'.repeat(40) } })
  expect(cut.choices[0]?.message.tool_calls).toBeUndefined()
  const input = Math.ceil(characters / 4)
  expect(cut.usage).toMatchObject({ prompt_tokens: input, completion_tokens: 10, total_tokens: input + 10 })
  const whole = await world.client.chat.completions.create({ ...request, max_completion_tokens: 1_000 })
  expect(whole.choices[0]?.finish_reason).toBe('tool_calls')
})

test('scripted model: usage can be told, or left out and still be counted', async () => {
  await using world = await start(({ index }) =>
    index === 0 ? { text: 'abcd', usage: { input: 50, output: 60, cached: 7 } } : { text: 'abcd', usage: null },
  )
  const ask = () => world.client.chat.completions.create({ model: 'm', messages: [user('hi')] })
  expect((await ask()).usage).toMatchObject({
    prompt_tokens: 50,
    completion_tokens: 60,
    prompt_tokens_details: { cached_tokens: 7 },
  })
  expect((await ask()).usage).toBeUndefined()
  expect(world.model.requests).toMatchObject({ count: 2, outputTokens: 61, faults: 0 })
})

test('scripted model: requests are counted by model and logged up to a bound', async () => {
  await using world = await start(({ model }) => (model === 'bad' ? fault.status(500) : 'abcd'), { keep: 3 })
  for (const model of ['a', 'b', 'a', 'bad', 'a']) {
    await post(world.model.baseURL, { model, messages: [user(model)] })
  }
  const { requests } = world.model
  expect(requests).toMatchObject({ count: 5, outputTokens: 4, faults: 1 })
  expect(requests.byModel.get('a')).toMatchObject({ count: 3, outputTokens: 3 })
  expect(requests.byModel.get('bad')).toMatchObject({ count: 1, outputTokens: 0, faults: 1 })
  expect(requests.log.map(({ request, status }) => [request.index, request.model, status])).toEqual([
    [2, 'a', 200],
    [3, 'bad', 500],
    [4, 'a', 200],
  ])
})

test('scripted model: status faults with body and retry-after', async () => {
  await using world = await start(
    ({ index }) =>
      [
        fault.status(429, { retryAfter: 2 }),
        fault.status(502, { body: '<html>' }),
        fault.status(400, { body: { error: 'x' } }),
      ][index] ?? 'ok',
  )
  const ask = () => post(world.model.baseURL, { model: 'm', messages: [user('hi')] })
  const limited = await ask()
  expect([limited.status, limited.headers.get('retry-after')]).toEqual([429, '2'])
  expect(JSON.parse(limited.text).error.message).toContain('429')
  expect(await ask()).toMatchObject({ status: 502, text: '<html>' })
  expect(await ask()).toMatchObject({ status: 400, text: '{"error":"x"}' })
  expect((await ask()).status).toBe(200)
})

test('scripted model: a cut ends the connection after so many bytes, a stall leaves it open, garbage is sent', async () => {
  await using world = await start(
    ({ index }) =>
      [
        fault.cut(30, { text: 'long enough' }),
        fault.cut(0),
        fault.stall('body'),
        fault.stall('headers'),
        fault.garbage('??'),
      ][index] ?? '',
  )
  const open = (signal?: AbortSignal, stream = false) =>
    fetch(`${world.model.baseURL}/chat/completions`, {
      method: 'POST',
      body: JSON.stringify({ model: 'm', stream, messages: [user('hi')] }),
      signal: signal ?? null,
    })
  for (const stream of [false, true]) {
    const response = await open(undefined, stream)
    let bytes = 0
    await expect(
      (async () => {
        for await (const chunk of response.body ?? []) bytes += chunk.length
      })(),
    ).rejects.toThrow()
    expect(bytes).toBe(stream ? 0 : 30)
  }
  const stalled = await open()
  const reader = stalled.body?.getReader()
  expect((await reader?.read())?.value?.length).toBe(40)
  await reader?.cancel()
  const controller = new AbortController()
  const silent = open(controller.signal)
  while (world.model.requests.count < 4) await new Promise(setImmediate)
  controller.abort()
  await expect(silent).rejects.toThrow()
  expect(await (await open()).text()).toBe('??')
  expect(world.model.requests.faults).toBe(5)
})

test('scripted model: latency and delays hold the reply back', async () => {
  await using world = await start(({ index }) => (index === 0 ? 'now' : fault.delay(60, { text: 'late' })), {
    latencyMs: 30,
  })
  const timed = async () => {
    const started = performance.now()
    await post(world.model.baseURL, { model: 'm', messages: [user('hi')] })
    return performance.now() - started
  }
  expect(await timed()).toBeGreaterThanOrEqual(29)
  expect(await timed()).toBeGreaterThanOrEqual(89)
  expect(world.model.requests.faults).toBe(0)
})

test('scripted model: what a provider would refuse is refused with 400', async () => {
  await using world = await start(() => 'ok')
  const calling = (...ids: string[]) => ({
    role: 'assistant',
    content: null,
    tool_calls: ids.map((id) => ({ id, type: 'function', function: { name: 'f', arguments: '{}' } })),
  })
  const result = (id: string) => ({ role: 'tool', tool_call_id: id, content: 'x' })
  const conversations: [boolean, unknown][] = [
    [true, [user('a'), calling('1', '2'), result('2'), result('1'), user('b')]],
    [true, [{ role: 'system', content: 's' }, user('a'), { role: 'assistant', content: 'b' }]],
    [true, [user('a'), { role: 'assistant', content: null, refusal: 'no' }]],
    [false, []],
    [false, 'x'],
    [false, [7]],
    [false, [{ role: 'king', content: '' }]],
    [false, [{ role: 'user' }]],
    [false, [user('a'), result('1')]],
    [false, [user('a'), calling('1'), user('b')]],
    [false, [user('a'), calling('1')]],
    [false, [user('a'), calling('1', '2'), result('1'), user('b')]],
    [false, [user('a'), calling('1'), result('1'), result('1')]],
    [false, [user('a'), calling('1', '1'), result('1')]],
    [false, [user('a'), { role: 'assistant', content: null }]],
    [false, [user('a'), { role: 'assistant', tool_calls: [{ id: '1' }] }]],
  ]
  for (const [fine, messages] of conversations) {
    const { status, text } = await post(world.model.baseURL, { model: 'm', messages })
    expect([status, text.slice(0, 200)]).toEqual([fine ? 200 : 400, expect.any(String)])
  }
  for (const body of ['{', '[]', { messages: [user('a')] }, { model: 'm', messages: [user('a')], max_tokens: 0 }]) {
    expect((await post(world.model.baseURL, body)).status).toBe(400)
  }
  const tools = [{ type: 'function', function: { name: 'has space' } }]
  expect((await post(world.model.baseURL, { model: 'm', messages: [user('a')], tools })).status).toBe(400)
  expect((await fetch(`${world.model.url}/nowhere`)).status).toBe(404)
  expect((await fetch(`${world.model.baseURL}/models`)).status).toBe(200)
})

test('scripted model: a script that throws is a 500, and the server goes on', async () => {
  await using world = await start(({ index }) => {
    if (index === 0) throw new Error('oh')
    return Promise.resolve({ text: 'ok' })
  })
  const ask = () => post(world.model.baseURL, { model: 'm', messages: [user('hi')] })
  expect((await ask()).status).toBe(500)
  expect((await ask()).status).toBe(200)
})

test('scripted model: a port that is taken is refused with CONFIG_INVALID', async () => {
  await using world = await start(() => 'ok')
  const port = Number(new URL(world.model.url).port)
  await expect(startScriptedModel(() => 'ok', { port })).rejects.toMatchObject({ code: 'CONFIG_INVALID' })
})
