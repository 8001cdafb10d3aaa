import { createServer } from 'node:net'
import { once } from 'node:events'
import type { ServerResponse } from 'node:http'
import { inspect } from 'node:util'
import { expect, test, vi } from 'vitest'
import { createOpenAIModelPort, type OpenAIModelPortOptions } from '../../actors/model-openai.js'
import { fault, reply, startScriptedModel } from '../../actors/scripted-model.js'
import type { ModelFailure, ModelReply, ModelRequest, ModelTimeouts } from '../../runtime/ports.js'
import { startRawServer, type RawRequest } from '../support/raw-server.js'

const key = 'sk-test-0123456789abcdef'
const timeouts: ModelTimeouts = { connectMs: 5_000, firstTokenMs: 5_000, gapMs: 5_000, totalMs: 8_000 }

function request(changes: Partial<ModelRequest> = {}): ModelRequest {
  return {
    effect: 'e1',
    deployment: 'corp:m-1',
    messages: ['{"role":"user","content":"hi"}'],
    tools: null,
    responseFormat: null,
    settings: {},
    maxOutputTokens: 100,
    timeouts,
    stream: false,
    signal: new AbortController().signal,
    ...changes,
  }
}

/** A port whose provider `corp` is a server that answers as told. */
async function start(
  answer: (response: ServerResponse, request: RawRequest) => void,
  options: OpenAIModelPortOptions = {},
) {
  const server = await startRawServer(answer)
  const port = createOpenAIModelPort({
    env: {},
    ...options,
    providers: { corp: { baseURL: `${server.url}/v1`, apiKey: key }, ...options.providers },
  })
  return {
    server,
    port,
    async ask(changes: Partial<ModelRequest> = {}): Promise<ModelReply> {
      const result = await port.call(request(changes))
      if (!result.ok) throw new Error(`${result.kind}: ${result.message}`)
      return result
    },
    async fail(changes: Partial<ModelRequest> = {}): Promise<ModelFailure> {
      const result = await port.call(request(changes))
      if (result.ok) throw new Error(`a reply: ${result.message}`)
      expect(JSON.stringify(result)).not.toContain(key)
      return result
    },
    async [Symbol.asyncDispose]() {
      await port.close()
      await server[Symbol.asyncDispose]()
    },
  }
}

const completion = (text: string): string =>
  JSON.stringify({
    model: 'm-1-2026',
    choices: [{ index: 0, message: { role: 'assistant', content: text }, finish_reason: 'stop' }],
    usage: { prompt_tokens: 10, completion_tokens: 4, total_tokens: 14 },
  })

const event = (value: unknown): string => `data: ${typeof value === 'string' ? value : JSON.stringify(value)}\n\n`
const delta = (content: string, finish: string | null = null): string =>
  event({ model: 'm-1', choices: [{ index: 0, delta: { content }, finish_reason: finish }] })

test('model port: a whole reply, priced', async () => {
  await using world = await start((response) => response.end(completion('hello')), {
    prices: { corp: { input: 1_000_000, output: 2_000_000 } },
  })
  expect(await world.ask()).toEqual({
    ok: true,
    message: '{"role":"assistant","content":"hello"}',
    text: 'hello',
    toolCalls: [],
    finishReason: 'stop',
    usage: { inputTokens: 10, outputTokens: 4, cachedInputTokens: 0, estimated: false },
    costNanoUsd: 18_000,
    model: 'm-1-2026',
  })
  expect(world.port.price('corp:m-1')).toEqual({ input: 1_000_000, output: 2_000_000 })
  expect(world.port.price('other:m-1')).toBeNull()
})

test('model port: the body is joined text, messages byte for byte', async () => {
  await using world = await start((response) => response.end(completion('hello')))
  const odd = '{"role":"user",  "content":"\\u00fc 1.0e2", "x":1e400}'
  const tools = '[ {"type":"function","function":{"name":"f"}} ]'
  await world.ask({
    messages: ['{"role":"system","content":"s"}', odd],
    tools,
    responseFormat: '{"type":"json_object"}',
    settings: {
      temperature: 0,
      topP: 0.5,
      seed: 7,
      stop: ['x'],
      toolChoice: 'required',
      parallelToolCalls: false,
      reasoningEffort: 'low',
      extra: { top_k: 3, temperature: 1 },
    },
  })
  const { body, headers, path } = world.server.requests[0] ?? { body: '', headers: {}, path: '' }
  expect(path).toBe('/v1/chat/completions')
  expect(headers).toMatchObject({ 'content-type': 'application/json', authorization: `Bearer ${key}` })
  expect(body).toContain(`"messages":[{"role":"system","content":"s"},${odd}],"tools":${tools}`)
  const parsed = JSON.parse(body) as Record<string, unknown>
  expect(parsed).toMatchObject({
    model: 'm-1',
    max_tokens: 100,
    temperature: 1,
    top_p: 0.5,
    seed: 7,
    stop: ['x'],
    tool_choice: 'required',
    parallel_tool_calls: false,
    reasoning_effort: 'low',
    response_format: { type: 'json_object' },
    top_k: 3,
  })
  expect(parsed['stream']).toBeUndefined()
  await world.ask({ settings: { toolChoice: 'auto', parallelToolCalls: true } })
  const plain = JSON.parse(world.server.requests[1]?.body ?? '') as Record<string, unknown>
  expect(Object.keys(plain).sort()).toEqual(['max_tokens', 'messages', 'model'])
})

test('model port: settings.extra cannot change what is paid for, nor hold what is not JSON', async () => {
  await using world = await start((response) => response.end(completion('hello')))
  for (const extra of [{ max_tokens: 1e6 }, { n: 5 }, { model: 'dear' }, { messages: [] }, { big: 1n }]) {
    expect(await world.fail({ settings: { extra } })).toMatchObject({ kind: 'config', billed: false })
  }
  expect(world.server.requests).toHaveLength(0)
})

test('model port: a stream, with deltas and their offsets', async () => {
  await using world = await start((response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.write(event({ choices: [{ index: 0, delta: { role: 'assistant', content: '' } }] }))
    for (const piece of ['Hel', 'lo ', 'grü', 'ße']) response.write(delta(piece))
    response.write(delta('', 'stop'))
    response.end(event({ choices: [], usage: { prompt_tokens: 3, completion_tokens: 2 } }) + event('[DONE]'))
  })
  const seen: string[] = []
  const onDelta = vi.fn(({ text, offset }: { text: string; offset: number }) => {
    expect(offset).toBe(seen.join('').length)
    seen.push(text)
    throw new Error('a watcher’s mistake')
  })
  const result = await world.ask({ stream: true, onDelta })
  expect(result).toMatchObject({
    text: 'Hello grüße',
    finishReason: 'stop',
    usage: { inputTokens: 3, estimated: false },
  })
  expect(seen.join('')).toBe('Hello grüße')
  expect(JSON.parse(world.server.requests[0]?.body ?? '')).toMatchObject({
    stream: true,
    stream_options: { include_usage: true },
  })
})

test('model port: JSON for a stream and a stream for JSON are both read', async () => {
  await using world = await start((response, { body }) =>
    body.includes('"stream":true')
      ? response.end(completion('whole'))
      : response.end(delta('streamed', 'stop') + event('[DONE]')),
  )
  expect((await world.ask({ stream: true })).text).toBe('whole')
  expect((await world.ask()).text).toBe('streamed')
})

test('model port: a character that is cut by the network is put together', async () => {
  await using world = await start((response) => {
    const bytes = Buffer.from(delta('🌍', 'stop') + event('[DONE]'))
    const at = bytes.indexOf(Buffer.from('🌍')) + 2
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.write(bytes.subarray(0, at), () => setImmediate(() => response.end(bytes.subarray(at))))
  })
  expect((await world.ask({ stream: true })).text).toBe('🌍')
})

test('model port: a stream that is cut is a network failure, with the usage that was sent', async () => {
  await using world = await start(
    (response, { headers }) => {
      const usage = { prompt_tokens: 3, completion_tokens: 1 }
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      response.write(
        event({ choices: [{ index: 0, delta: { content: 'half' } }], ...(headers['x-u'] ? { usage } : {}) }),
        () => setImmediate(() => response.destroy()),
      )
    },
    { prices: { corp: { input: 1_000_000, output: 1_000_000 } } },
  )
  expect(await world.fail({ stream: true })).toMatchObject({ kind: 'network', billed: true, usage: null })
  await using counting = await start(
    (response) => {
      const usage = { prompt_tokens: 3, completion_tokens: 1 }
      response.write(event({ choices: [{ index: 0, delta: { content: 'half' } }], usage }))
      response.end()
    },
    { prices: { corp: { input: 1_000_000, output: 1_000_000 } } },
  )
  expect(await counting.fail({ stream: true })).toMatchObject({
    kind: 'network',
    usage: { inputTokens: 3, outputTokens: 1 },
    costNanoUsd: 4_000,
  })
})

test('model port: a connection lost after the finish reason costs nothing', async () => {
  await using world = await start((response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.write(delta('all', 'stop'), () => setImmediate(() => response.destroy()))
  })
  expect(await world.ask({ stream: true })).toMatchObject({ text: 'all', usage: { estimated: true } })
})

test('model port: a server that keeps the stream open after [DONE] is not waited for', async () => {
  await using world = await start((response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.write(delta('all', 'stop') + event('[DONE]'))
  })
  expect((await world.ask({ stream: true })).text).toBe('all')
  await vi.waitFor(() => expect(world.server.sockets.size).toBe(0))
})

test('model port: an error inside a stream of status 200', async () => {
  await using world = await start((response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.end(delta('half') + event({ error: { code: 429, message: `slow down, ${key}` } }))
  })
  const failure = await world.fail({ stream: true })
  expect(failure).toMatchObject({ kind: 'rate_limited', status: 200, billed: true })
  expect(failure.message).toBe('slow down, [redacted]')
})

test.each([
  [401, '{"error":{"message":"Incorrect API key"}}', 'auth', false],
  [404, '{"error":"model nope not found"}', 'not_found', false],
  [400, '{"message":"too many tokens: the limit is 10","id":"x"}', 'context_window', false],
  [400, '{"detail":"bad"}', 'bad_request', false],
  [429, 'slow', 'rate_limited', false],
  [402, '{"error":{"message":"Insufficient credits"}}', 'quota', false],
  [500, '{"error":{"message":"oops"}}', 'server', true],
  [503, '', 'overloaded', false],
  [502, '<html><h1>Bad Gateway</h1></html>', 'server', true],
  [307, '', 'config', false],
])('model port: status %i with %j is %s', async (status, body, kind, billed) => {
  await using world = await start((response) => {
    response.writeHead(status, { 'content-type': 'text/plain', 'retry-after': '2', location: '/elsewhere' }).end(body)
  })
  for (const stream of [false, true]) {
    expect(await world.fail({ stream })).toMatchObject({
      kind,
      billed,
      status,
      retryAfterMs: status >= 300 ? 2_000 : null,
    })
  }
  expect(world.server.requests).toHaveLength(2)
})

test('model port: a failure never shows a key, and is at most 2 KiB', async () => {
  await using world = await start(
    (response) =>
      response.writeHead(400).end(JSON.stringify({ error: { message: `${'ü'.repeat(1_015)}${key} Zebra` } })),
    { redact: (text) => text.replaceAll('ü', 'u') },
  )
  const { message } = await world.fail()
  expect(message).toContain('uuu')
  expect(message).not.toContain('0123456789abcdef')
  expect(Buffer.byteLength(message)).toBeLessThanOrEqual(2_048)
  expect(inspect(world.port, { depth: 20, showHidden: true })).not.toContain(key)
})

test('model port: empty, foreign and broken bodies are invalid_reply', async () => {
  const bodies = [
    '',
    '{}',
    '[]',
    'hello',
    '<html>',
    '{"choices":[]}',
    '{"choices":[{"mess',
    ': comment\n\n',
    event('[DONE]'),
  ]
  let next = 0
  await using world = await start((response) => response.end(bodies[next]))
  for (next = 0; next < bodies.length; next += 1) {
    for (const stream of [false, true]) {
      expect(await world.fail({ stream })).toMatchObject({ kind: 'invalid_reply', billed: true })
    }
  }
})

test('model port: a response above 16 MiB is invalid_reply, declared or streamed', { timeout: 20_000 }, async () => {
  const piece = delta('x'.repeat(1_048_576))
  await using world = await start((response, { body }) => {
    if (body.includes('"stream":true')) {
      let sent = 0
      const more = (): void => {
        while (sent < 20 && !response.destroyed) {
          sent += 1
          if (!response.write(piece)) return void response.once('drain', more)
        }
        response.end()
      }
      more()
    } else {
      response.end(completion('x'.repeat(17 * 1_048_576)))
    }
  })
  expect(await world.fail({ stream: true })).toMatchObject({ kind: 'invalid_reply', billed: true })
  expect(await world.fail()).toMatchObject({ kind: 'invalid_reply', billed: true })
  const foreign = createOpenAIModelPort({
    providers: { corp: { baseURL: `${world.server.url}/v1`, apiKey: key, fetch: globalThis.fetch } },
  })
  expect(await foreign.call(request())).toMatchObject({ ok: false, kind: 'invalid_reply' })
  await foreign.close()
})

test('model port: deadlines until headers, content, the next chunk and the end', async () => {
  const mode = (body: string): string => /mode-\w+/.exec(body)?.[0] ?? ''
  await using world = await start((response, { body }) => {
    if (mode(body) === 'mode-connect') return
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.flushHeaders()
    if (mode(body) === 'mode-first') response.write(': waiting\n\n')
    if (mode(body) === 'mode-gap') response.write(delta('half'))
    if (mode(body) === 'mode-total') {
      const timer = setInterval(() => response.write(delta('x')), 20)
      response.on('close', () => clearInterval(timer))
    }
  })
  const at = (name: string, changes: Partial<ModelTimeouts>, stream = true): Promise<ModelFailure> =>
    world.fail({
      stream,
      messages: [`{"role":"user","content":"mode-${name}"}`],
      timeouts: { ...timeouts, ...changes },
    })
  for (const [failure, words] of [
    [await at('connect', { connectMs: 80 }), 'no response headers within 80 ms'],
    [await at('first', { firstTokenMs: 80 }), 'no content within 80 ms'],
    [await at('gap', { gapMs: 80 }), 'stalled within 80 ms'],
    [await at('total', { totalMs: 150 }), 'no complete reply within 150 ms'],
    [await at('first', { totalMs: 80 }, false), 'no complete reply within 80 ms'],
  ] as const) {
    expect(failure).toMatchObject({ kind: 'timeout', billed: true })
    expect(failure.message).toContain(words)
  }
})

test('model port: an abort is cancelled, before the call and during it', async () => {
  await using world = await start((response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.write(delta('half'))
  })
  expect(await world.fail({ signal: AbortSignal.abort() })).toMatchObject({ kind: 'cancelled', billed: false })
  expect(world.server.requests).toHaveLength(0)
  const controller = new AbortController()
  const { signal } = controller
  const failure = await world.fail({ signal, stream: true, onDelta: () => controller.abort() })
  expect(failure).toMatchObject({ kind: 'cancelled', billed: true })
})

test('model port: no listener stays on the signal of many calls', async () => {
  await using world = await start((response) => response.end(completion('hello')))
  const { signal } = new AbortController()
  const added = vi.spyOn(signal, 'addEventListener')
  const removed = vi.spyOn(signal, 'removeEventListener')
  const warned = vi.fn()
  process.on('warning', warned)
  await Promise.all(Array.from({ length: 30 }, () => world.ask({ signal })))
  expect(removed).toHaveBeenCalledTimes(added.mock.calls.length)
  expect(warned).not.toHaveBeenCalled()
  process.off('warning', warned)
})

test('model port: a connection that was never made is not billed', async () => {
  const closed = createServer().listen(0, '127.0.0.1')
  await once(closed, 'listening')
  const { port: number } = closed.address() as { port: number }
  closed.close()
  await once(closed, 'close')
  const port = createOpenAIModelPort({
    env: {},
    providers: {
      corp: { baseURL: `http://127.0.0.1:${number}/v1` },
      far: { baseURL: 'https://no-such-host.invalid/v1', apiKey: key },
      thrown: { baseURL: 'http://127.0.0.1/v1', fetch: () => Promise.reject(new TypeError('request timed out')) },
    },
  })
  expect(await port.call(request())).toMatchObject({ ok: false, kind: 'network', billed: false })
  expect(await port.call(request({ deployment: 'far:m' }))).toMatchObject({ kind: 'network', billed: false })
  const odd = await port.call(request({ deployment: 'thrown:m' }))
  expect(odd).toMatchObject({ kind: 'network', billed: true, message: 'request timed out' })
  await port.close()
})

test('model port: a connection that breaks after the request may be billed', async () => {
  await using world = await start((response) => response.socket?.destroy())
  expect(await world.fail()).toMatchObject({ kind: 'network', billed: true })
})

test('model port: bytes that are no HTTP are invalid_reply', async () => {
  const odd = createServer((socket) => {
    socket.on('error', () => undefined).once('data', () => socket.end('220 smtp ready\r\n'))
  }).listen(0, '127.0.0.1')
  await once(odd, 'listening')
  const baseURL = `http://127.0.0.1:${(odd.address() as { port: number }).port}/v1`
  const port = createOpenAIModelPort({ providers: { corp: { baseURL } } })
  expect(await port.call(request())).toMatchObject({ ok: false, kind: 'invalid_reply' })
  await port.close()
  odd.close()
})

test('model port: check and call say what is missing', async () => {
  const port = createOpenAIModelPort({ env: {} })
  expect(() => port.check('nope:m')).toThrow(expect.objectContaining({ code: 'MODEL_UNKNOWN' }))
  expect(() => port.check('gpt-5')).toThrow(expect.objectContaining({ code: 'MODEL_UNKNOWN' }))
  expect(() => port.check('openai:gpt-5')).toThrow(expect.objectContaining({ code: 'KEY_MISSING' }))
  expect(() => port.check('ollama:llama3.2')).not.toThrow()
  const result = await port.call(request({ deployment: 'openai:gpt-5' }))
  expect(result).toMatchObject({ ok: false, kind: 'config', billed: false })
  expect(!result.ok && result.message).toContain('OPENAI_API_KEY')
  await port.close()
})

test('model port: a key that appears later is used at the next call', async () => {
  const env: Record<string, string> = {}
  await using server = await startRawServer((response) => response.end(completion('hello')))
  const fetch = (_input: string | URL | Request, init?: RequestInit): Promise<Response> =>
    globalThis.fetch(server.url, { method: 'POST', headers: init?.headers ?? {}, body: init?.body ?? null })
  const port = createOpenAIModelPort({ env, fetch })
  const ask = () => port.call(request({ deployment: 'openai:gpt-5' }))
  expect((await ask()).ok).toBe(false)
  env['OPENAI_API_KEY'] = key
  expect((await ask()).ok).toBe(true)
  expect(server.requests[0]?.headers.authorization).toBe(`Bearer ${key}`)
  expect(JSON.parse(server.requests[0]?.body ?? '')).toMatchObject({ max_completion_tokens: 100, model: 'gpt-5' })
  await port.close()
})

test('model port: what belongs to OpenAI is not sent to others', async () => {
  vi.stubEnv('OPENAI_CUSTOM_HEADERS', 'X-Secret: s\nAuthorization: Bearer other')
  vi.stubEnv('OPENAI_ORG_ID', 'org')
  vi.stubEnv('OPENAI_ADMIN_KEY', 'admin-key')
  await using world = await start((response) => response.end(completion('hello')), {
    env: { OPENAI_ORG_ID: 'org' },
    providers: {
      keyless: {
        baseURL: 'http://127.0.0.1:1/v1',
        fetch: (_input, init) =>
          Promise.resolve(new Response(JSON.stringify({ sent: [...new Headers(init?.headers)] }))),
      },
    },
  })
  await world.ask()
  const headers = world.server.requests[0]?.headers ?? {}
  expect(headers.authorization).toBe(`Bearer ${key}`)
  expect(headers['x-secret']).toBeUndefined()
  expect(headers['openai-organization']).toBeUndefined()
  const keyless = await world.fail({ deployment: 'keyless:m' })
  expect(keyless.message).not.toMatch(/authorization|admin-key|x-secret/i)
  vi.unstubAllEnvs()
})

test('model port: headers of a provider are sent, and secret ones redacted', async () => {
  await using server = await startRawServer((response, { headers }) => {
    response.writeHead(400).end(`no: ${String(headers['api-key'])} ${String(headers['x-title'])}`)
  })
  const headers = { 'api-key': 'azure-key-123456', authorization: null, 'x-title': 'troupe' }
  const port = createOpenAIModelPort({ providers: { corp: { baseURL: server.url, apiKey: key, headers } } })
  expect(await port.call(request())).toMatchObject({ ok: false, message: '400 no: [redacted] troupe' })
  expect(server.requests[0]?.headers.authorization).toBeUndefined()
  await port.close()
})

test('model port: closing ends calls in flight and refuses new ones', async () => {
  await using world = await start(() => undefined)
  const waiting = world.fail()
  await vi.waitFor(() => expect(world.server.requests).toHaveLength(1))
  await world.port.close()
  expect(await waiting).toMatchObject({ kind: 'cancelled' })
  expect(await world.fail()).toMatchObject({ kind: 'cancelled', billed: false })
})

test('model port: speaks with the scripted model, tools, faults and all', async () => {
  await using model = await startScriptedModel(
    ({ index }) =>
      [
        reply.calls({ name: 'lookup', arguments: { topic: 'x' } }, { name: 'lookup', arguments: '{"broken' }),
        reply.calls({ name: 'lookup', arguments: { topic: 'x' } }, { name: 'lookup', arguments: '{"broken' }),
        fault.status(429, { retryAfter: 1 }),
        fault.cut(120, { text: 'a long text that will not arrive' }),
        fault.garbage('??'),
        { text: 'y'.repeat(1_000) },
      ][index] ?? 'end',
  )
  const port = createOpenAIModelPort({ env: { OPENAI_BASE_URL: model.baseURL } })
  const ask = (changes: Partial<ModelRequest> = {}) =>
    port.call(request({ deployment: 'openai:gpt-4o-mini', ...changes }))
  const [whole, streamed] = [await ask(), await ask({ stream: true })]
  expect(whole).toMatchObject({ ok: true, finishReason: 'tool_calls', model: 'gpt-4o-mini' })
  expect(whole.ok && whole.toolCalls[1]?.arguments).toBe('{"broken')
  expect(streamed.ok && streamed.toolCalls).toEqual(
    whole.ok && whole.toolCalls.map((call, n) => ({ ...call, id: `call_1_${n}` })),
  )
  expect(whole.ok && whole.costNanoUsd).toBeGreaterThan(0)
  expect(await ask()).toMatchObject({ kind: 'rate_limited', retryAfterMs: 1_000 })
  expect(await ask({ stream: true })).toMatchObject({ ok: false, kind: 'network' })
  expect(await ask()).toMatchObject({ ok: false, kind: 'invalid_reply' })
  const cut = await ask({ maxOutputTokens: 10 })
  expect(cut).toMatchObject({ ok: true, finishReason: 'length', usage: { outputTokens: 10 } })
  expect(model.requests.count).toBe(6)
  await port.close()
})

test("model port: no redirect is followed with a user's fetch, so that no key goes elsewhere", async () => {
  await using there = await start((response) => response.end(completion('hi')))
  const location = `${there.server.url}/v1/chat/completions`
  await using at = await start((response) => response.writeHead(307, { location }).end(), { fetch: globalThis.fetch })
  expect(await at.fail()).toMatchObject({ status: 307 })
  expect(there.server.requests).toHaveLength(0)
})
