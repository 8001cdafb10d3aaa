/**
 * Against recorded answers of real providers and real error texts, when they are there (`../shared/data` beside the
 * repository). The expectations are read here from the raw bytes in the plainest way, not by the code under test.
 */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { expect, test } from 'vitest'
import { readRefusal } from '../../actors/model-failure.js'
import { createOpenAIModelPort } from '../../actors/model-openai.js'
import type { FailureKind, ModelFailure, ModelReply } from '../../runtime/ports.js'
import { startRawServer } from '../support/raw-server.js'

const data = join(import.meta.dirname, '../../../shared/data')
const archive = join(data, 'providers.tgz')
const errors = join(data, 'error-messages.json')

interface Recorded {
  readonly file: string
  readonly provider: string
  readonly status: number
  readonly headers: Record<string, string>
}

/** The files of a tar archive; names and octal sizes are all that is needed of a header. */
function untar(bytes: Buffer): Map<string, Buffer> {
  const files = new Map<string, Buffer>()
  const field = (at: number, length: number): string => bytes.toString('latin1', at, at + length).replace(/\0.*$/s, '')
  let longName = ''
  for (let at = 0; at + 512 <= bytes.length; ) {
    const size = Number.parseInt(field(at + 124, 12), 8) || 0
    const type = field(at + 156, 1)
    const body = bytes.subarray(at + 512, at + 512 + size)
    const prefix = field(at + 345, 155)
    const name = longName || (prefix === '' ? field(at, 100) : `${prefix}/${field(at, 100)}`)
    longName = ''
    if (type === 'L') longName = body.toString('utf8').replace(/\0.*$/s, '')
    else if (type === 'x') longName = /\d+ path=(.*)\n/.exec(body.toString('utf8'))?.[1] ?? ''
    else if (type === '0' || type === '') files.set(name, body)
    at += 512 + Math.ceil(size / 512) * 512
  }
  return files
}

/** Protocols other than chat completions: they belong to adapters. */
const foreign = new Set(['anthropic', 'azure-responses', 'cohere', 'gemini-native', 'pydantic-gateway'])

/** Recordings that are no reply, by what they must be read as. */
const failures: Readonly<Record<string, FailureKind>> = {
  'anthropic/err_not_found_error-error-404.json': 'not_found',
  'azure/err_DeploymentNotFound-error-404.json': 'not_found',
  'azure/error-in-200.json': 'content_policy',
  'cohere/err-context-length-error-400.json': 'context_window',
  'cohere/error-401.json': 'auth',
  'cohere/error-404.json': 'not_found',
  'deepseek/err-context-length-err_invalid_request_error-error-400.json': 'context_window',
  'deepseek/err_invalid_request_error-error-401.json': 'auth',
  'gemini-native/err_404-error-404.json': 'not_found',
  'groq/err_model_not_found-error-404.json': 'not_found',
  'non-llm-endpoint/non-json-200.txt': 'invalid_reply',
  'non-llm-endpoint/text.json': 'invalid_reply',
  'ollama/err-string-error-404.json': 'not_found',
  'ollama/err_api_error-error-401.json': 'auth',
  'openai/err_invalid_image_format-error-400.json': 'bad_request',
  'openai/err_invalid_image_url-error-400.json': 'bad_request',
  'openai/err_invalid_request_error-error-400.json': 'bad_request',
  'openai/err_invalid_value-error-400.json': 'bad_request',
  'openai/node-stream-emits-content-logprobs-events-1.sse': 'invalid_reply',
  'openai/sk-chat_completion_invalid_streaming_test_response.sse': 'invalid_reply',
  'openrouter/err-429-no-retry-after-err_429-error-429.json': 'rate_limited',
  'openrouter/err-context-length-err_400-error-400.json': 'context_window',
  'openrouter/sse-delta-reasoning-delta-reasoning_details-finish-length-sse-midstream-error.sse': 'context_window',
  'perplexity/err-context-length-err_400-error-400.json': 'context_window',
  'quoted/openai-429-insufficient-quota.json': 'quota',
  'quoted/openai-429-rpm.json': 'rate_limited',
  'quoted/openai-500-server-error.json': 'server',
  'xai/err-string-error-400.json': 'auth',
}

/** Text, call names and arguments of a recording, by the plainest reading. */
function plainly(raw: string): { text: string; calls: [string, string][] } {
  const whole = raw.trimStart().startsWith('{')
  const values = whole
    ? [JSON.parse(raw)]
    : [...raw.matchAll(/^data: ?(\{.*)$/gm)].map(([, json]) => JSON.parse(json ?? ''))
  let text = ''
  const calls: [string, string][] = []
  for (const value of values) {
    for (const choice of value.choices ?? []) {
      if ((choice.index ?? 0) !== 0) continue
      const part = choice.message ?? choice.delta
      const content = part?.content ?? ''
      text +=
        typeof content === 'string' ? content : content.map((piece: { text?: string }) => piece.text ?? '').join('')
      for (const call of part?.tool_calls ?? []) {
        const at = whole ? calls.length : (call.index ?? calls.length)
        const known = (calls[at] ??= ['', ''])
        known[0] ||= call.function?.name ?? ''
        known[1] += call.function?.arguments ?? ''
      }
    }
  }
  return { text, calls: calls.filter(() => true) } // an index may start at 1
}

function check(file: string, raw: string, result: ModelReply | ModelFailure): void {
  const kind = failures[file] ?? (foreign.has(file.split('/')[0] ?? '') ? 'invalid_reply' : undefined)
  if (kind !== undefined) return expect(result, file).toMatchObject({ ok: false, kind })
  const { text, calls } = plainly(raw)
  expect(result, file).toMatchObject({ ok: true, text })
  if (!result.ok) return
  expect(
    result.toolCalls.map(({ name, arguments: args }) => [name, args]),
    file,
  ).toEqual(calls)
  expect(new Set(result.toolCalls.map(({ id }) => id)).size, file).toBe(calls.length)
  expect(Object.keys(JSON.parse(result.message)), file).toEqual(
    ['role', 'content', 'refusal', 'tool_calls'].filter((name) => name in JSON.parse(result.message)),
  )
}

test.skipIf(!existsSync(archive))(
  'recorded: every response of the providers is read right',
  { timeout: 60_000 },
  async () => {
    const files = untar(gunzipSync(readFileSync(archive)))
    const find = (file: string): Buffer =>
      files.get(`providers/${file}`) ?? files.get(`./providers/${file}`) ?? Buffer.alloc(0)
    const index = JSON.parse(find('index.json').toString()) as Recorded[]
    expect(index.length).toBeGreaterThan(100)
    let current: Recorded | undefined
    await using server = await startRawServer((response) => {
      const { status = 200, headers = {}, file = '' } = current ?? {}
      const { 'content-encoding': _coding, 'transfer-encoding': _transfer, ...rest } = headers
      response.writeHead(status, rest).end(find(file))
    })
    const port = createOpenAIModelPort({ env: {}, providers: { corp: { baseURL: server.url } } })
    for (current of index) {
      const result = await port.call({
        effect: 'e',
        deployment: 'corp:m',
        messages: ['{"role":"user","content":"hi"}'],
        tools: null,
        responseFormat: null,
        settings: {},
        maxOutputTokens: 100,
        timeouts: { connectMs: 5_000, firstTokenMs: 5_000, gapMs: 5_000, totalMs: 5_000 },
        stream: current.file.endsWith('.sse'),
        signal: new AbortController().signal,
      })
      check(current.file, find(current.file).toString(), result)
    }
    await port.close()
  },
)

/** What each label may be read as. The last two are not about a provider's refusal: any general kind will do. */
const labels: Readonly<Record<string, readonly FailureKind[]>> = {
  context_window: ['context_window'],
  auth: ['auth'],
  timeout: ['timeout'],
  server_or_network: ['server', 'network', 'overloaded'],
  model_or_config: ['not_found', 'bad_request', 'config'],
  malformed_tool_arguments: ['bad_request', 'invalid_reply'],
  max_turns: ['server', 'bad_request'],
  other: ['server', 'bad_request'],
}

test.skipIf(!existsSync(errors))('recorded: error texts get their kind, context window always', () => {
  const texts = JSON.parse(readFileSync(errors, 'utf8')) as { label: string; example: string }[]
  for (const wrap of [
    (text: string) => ({ status: null, body: text as unknown }),
    (text: string) => ({ status: 400, body: { error: { message: text, type: 'invalid_request_error' } } as unknown }),
  ]) {
    const wrong = texts.filter(({ label, example }) => !labels[label]?.includes(readRefusal(wrap(example)).kind))
    expect(wrong.filter(({ label }) => label === 'context_window')).toEqual([])
    expect(1 - wrong.length / texts.length).toBeGreaterThanOrEqual(0.95)
  }
})
