import fc from 'fast-check'
import { expect, test } from 'vitest'
import { createRedactor, maxMessageBytes, parseDuration, readRefusal } from '../../actors/model-failure.js'
import type { FailureKind } from '../../runtime/ports.js'

const said = (message: string, more: object = {}): string => JSON.stringify({ error: { message, ...more } })

const kinds: [kind: FailureKind, status: number | null, body: unknown][] = [
  ['context_window', 400, said('The prompt holds 131073 tokens, the context length of this model is 131072.')],
  ['context_window', 400, said('prompt is too long: 210000 tokens > 200000 maximum')],
  ['context_window', 400, said('Please shorten', { code: 'context_length_exceeded' })],
  ['context_window', 400, said('input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000')],
  ['context_window', 400, '{"error_type":"TOO_MANY_TOKENS","message":"size limit"}'],
  ['context_window', 400, { detail: 'Input is longer than the maximum of 8192 tokens' }],
  ['context_window', 413, ''],
  ['context_window', 413, '<html><head><title>413 Request Entity Too Large</title></head></html>'],
  ['context_window', 500, 'Requested token count exceeds the maximum'],
  ['context_window', null, "Invalid 'messages[7].content': string too long. Expected at most 10485760."],
  ['bad_request', 400, said("Invalid 'tools[0].function.name': string too long. Expected maximum length 64, got 70.")],
  ['bad_request', 400, said('max_tokens is too large: 100000. At most 16384 completion tokens are supported.')],
  ['bad_request', 400, said('Image exceeds 5 MB maximum')],
  [
    'bad_request',
    422,
    '{"detail":[{"loc":["body","temperature"],"msg":"Input should be less than 2","type":"less_than"}]}',
  ],
  ['bad_request', 400, said("Unknown parameter: 'timeout'")],
  ['rate_limited', 429, ''],
  ['rate_limited', 429, said('Rate limit reached on tokens per min (TPM): Limit 30000, Requested 31000.')],
  [
    'rate_limited',
    429,
    said('You exceeded your current quota. Please retry in 35.9s.', { status: 'RESOURCE_EXHAUSTED' }),
  ],
  ['rate_limited', 200, { error: { code: 429, message: 'slow down' } }],
  ['quota', 429, said('You exceeded your current quota, check your plan.', { type: 'insufficient_quota' })],
  ['quota', 402, said('Insufficient credits')],
  ['quota', 400, said('Your credit balance is too low')],
  ['auth', 401, '{}'],
  ['auth', 403, 'Forbidden'],
  ['auth', 400, '{"code":"invalid-argument","error":"Incorrect API key provided"}'],
  ['not_found', 404, said('The model `x` does not exist or you do not have access to it.')],
  ['not_found', 400, said('nope/nope is not a valid model ID')],
  ['not_found', null, 'unknown model'],
  ['content_policy', 400, said('Your request was flagged', { code: 'content_filter' })],
  ['content_policy', 400, said('x', { innererror: { code: 'ResponsibleAIPolicyViolation' } })],
  ['timeout', 408, ''],
  ['timeout', 504, '<html>Gateway Time-out</html>'],
  ['timeout', null, 'The operation timed out'],
  ['overloaded', 503, ''],
  ['overloaded', 529, said('Overloaded', { type: 'overloaded_error' })],
  ['overloaded', 400, said('The engine is currently overloaded')],
  ['server', 500, said('The server had an error')],
  ['server', 502, '<html><body>Bad Gateway</body></html>'],
  ['server', 400, said(' ', { type: 'upstream_error', code: 'bad_response_status_code' })],
  ['network', null, 'Connection refused'],
  ['invalid_reply', null, "Expecting ',' delimiter: line 1 column 14 (char 13)"],
  ['bad_request', 400, '[{"error":{"code":400,"message":"Invalid value","status":"INVALID_ARGUMENT"}}]'],
  ['bad_request', 418, 'teapot'],
  ['config', 307, ''],
  ['server', null, 'something odd'],
]

test.each(kinds)('failure: %s of status %s and %j', (kind, status, body) => {
  expect(readRefusal({ status, body }).kind).toBe(kind)
})

test('failure: the message is the provider’s own words', () => {
  expect(readRefusal({ status: 400, body: said('one') }).message).toBe('one')
  expect(readRefusal({ status: 400, body: '{"error":"two"}' }).message).toBe('two')
  expect(readRefusal({ status: 400, body: '{"detail":"three"}' }).message).toBe('three')
  expect(readRefusal({ status: 502, body: '<html><style>x{}</style><h1>four</h1></html>' }).message).toBe('four')
  expect(readRefusal({ status: 500, body: '{"error":{"message":"five","metadata":{"raw":"six"}}}' }).message).toBe(
    'five: six',
  )
  expect(readRefusal({ status: 500, body: '' }).message).toBe('status 500, empty body')
})

test('failure: waits come from either header, a date, a field or the words', () => {
  const now = Date.parse('2026-01-02T03:04:05Z')
  const wait = (headers: Record<string, string>, body = ''): number | null =>
    readRefusal({ status: 429, body, header: (name) => headers[name] ?? null, now }).retryAfterMs
  expect(wait({ 'retry-after': '3' })).toBe(3_000)
  expect(wait({ 'retry-after': '1.5' })).toBe(1_500)
  expect(wait({ 'retry-after-ms': '250', 'retry-after': '3' })).toBe(250)
  expect(wait({ 'retry-after': 'Fri, 02 Jan 2026 03:04:15 GMT' })).toBe(10_000)
  expect(wait({ 'retry-after': 'Fri, 02 Jan 2026 03:04:00 GMT' })).toBe(0)
  expect(wait({ 'retry-after': 'soon' })).toBeNull()
  expect(wait({ 'retry-after': '99999999999' })).toBe(2 ** 31 - 1)
  expect(wait({}, said('Please try again in 20s.'))).toBe(20_000)
  expect(wait({}, said('Please try again in 6m0s. Thanks'))).toBe(360_000)
  expect(wait({}, said('try again in 120ms'))).toBe(120)
  expect(wait({}, said('Retry after 10 seconds or so'))).toBe(10_000)
  expect(wait({}, '{"error":{"details":[{"retryDelay":"35s"}]}}')).toBe(35_000)
  expect(wait({}, '{"retry_after":2}')).toBe(2_000)
  expect(wait({}, said('within the last 5 minutes, please wait a moment and try again'))).toBeNull()
})

test('failure: durations', () => {
  expect(['1h', '2 min', '1m30s', '1.5 s', '7ms', '1 hour, 2 minutes'].map(parseDuration)).toEqual([
    3_600_000, 120_000, 90_000, 1_500, 7, 3_720_000,
  ])
  expect(['', 'x', '5', 's', '5 apples'].map(parseDuration)).toEqual([null, null, null, null, null])
})

test('failure: any status and body is read, in bounded time', () => {
  fc.assert(
    fc.property(
      fc.option(fc.integer({ min: 0, max: 999 })),
      fc.oneof(fc.string(), fc.json(), fc.anything()),
      (status, body) => {
        expect(typeof readRefusal({ status, body }).kind).toBe('string')
      },
    ),
  )
  for (const piece of ['a', ' ', '<', 'token ', '{"a":', 'retry in 1', 'messages[0].', '[[[[']) {
    const started = performance.now()
    readRefusal({ status: 400, body: piece.repeat(500_000) })
    expect(performance.now() - started).toBeLessThan(1_000)
  }
})

test('redaction: keys and whatever looks like one are gone, before the cut', () => {
  const key = 'my-own-key-0123456789'
  const redact = createRedactor([key, 'tiny'], (text) => text.replace('Zebra', '[animal]'))
  const texts = [
    `bad key ${key}!`,
    `x${key}y`,
    'Incorrect API key provided: sk-proj-abc123DEF456ghi789.',
    'Incorrect API key provided: sk-abc1****wxyz.',
    'Authorization: Bearer abc.def.ghi',
    'api_key=abcdef123456',
    '"x-api-key": "abcdef123456"',
    'eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc',
    'AIzaSyA1234567890abcdefghij',
    `${'.'.repeat(2_030)}${key}`,
  ]
  for (const text of texts) {
    const clean = redact(text)
    expect(clean).not.toMatch(/0123456789|abc123DEF|wxyz|def\.ghi|abcdef123456|eyJzdWI|1234567890abc/)
    expect(Buffer.byteLength(clean)).toBeLessThanOrEqual(maxMessageBytes)
  }
  expect(redact('a tiny and a tinyish Zebra')).toBe('a [redacted] and a tinyish [animal]')
  expect(redact('Your api key: ****-key is invalid')).toBe('Your api key: [redacted] is invalid')
})

test('redaction: a redactor that throws withholds the message', () => {
  const redact = createRedactor([], () => {
    throw new Error('oh')
  })
  expect(redact('secret')).not.toContain('secret')
})

test('redaction: a long message is cut at a character', () => {
  const clean = createRedactor([])('ü🌍'.repeat(2_000))
  expect(Buffer.byteLength(clean)).toBeLessThanOrEqual(maxMessageBytes)
  expect(clean).not.toContain('\ufffd')
  expect(clean.endsWith('…')).toBe(true)
})
