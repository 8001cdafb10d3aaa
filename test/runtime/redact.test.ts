import { Buffer } from 'node:buffer'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { cutBytes, redact, wellFormed } from '../../runtime/redact.js'

// put together here, so that no scanner takes this file for a leak
const key = ['sk', 'proj', 'abcDEF123456789'].join('-')

describe('redact', () => {
  test.each([
    [`Incorrect API key provided: ${key}. See the docs.`, 'Incorrect API key provided: [redacted]. See the docs.'],
    ['bad key sk-abcd********wxyz', 'bad key [redacted]'],
    [`Authorization: Bearer ${key}`, 'Authorization: Bearer [redacted]'],
    ['authorization: Basic dXNlcjpwYXNzd29yZA==', 'authorization: Basic [redacted]'],
    ['OPENAI_API_KEY=abcdefgh12345678 next', 'OPENAI_API_KEY=[redacted] next'],
    ['{"apiKey": "abcd efgh ijkl", "n": 1}', '{"apiKey": "[redacted]", "n": 1}'],
    ['"{\\"password\\":\\"hunter2hunter2\\"}"', '"{\\"password\\":\\"[redacted]\\"}"'],
    ['x-api-key: 0123456789abcdef', 'x-api-key: [redacted]'],
    ['https://user:pass@example.com/x', 'https://[redacted]@example.com/x'],
    ['GET /v1?access_token=0123456789abcdef0123&q=1', 'GET /v1?access_token=[redacted]&q=1'],
    [`jwt ${'eyJhbGciOiJIUzI1NiJ9'}.${'eyJzdWIiOiIxMjM0NTY3ODkwIn0'}.abc_-def`, 'jwt [redacted]'],
    ['-----BEGIN PRIVATE KEY-----\nMIIEvQ\nIBADANB', '-----BEGIN PRIVATE KEY-----[redacted]'],
  ])('redact: takes the secret out of %j', (text, expected) => {
    expect(redact(text)).toBe(expected)
    expect(redact(expected)).toBe(expected)
  })

  test.each([
    "This model's maximum context length is 128000 tokens. However, you requested 130000 tokens.",
    'Unexpected token: expected }',
    'max_tokens=4096 is too large',
    'task-manager-of-the-desk-tops failed',
    'connect ECONNREFUSED 127.0.0.1:4222',
    'the password is wrong',
    'mail ann@example.com about it',
  ])('redact: leaves %j as it is', (text) => {
    expect(redact(text)).toBe(text)
  })

  test('redact: a given secret is gone in every spelling', () => {
    const secret = 'p/ss "w\\rd" é!'
    const text = [secret, JSON.stringify({ secret }), encodeURIComponent(secret)].join(' | ')
    const clean = redact(text, [secret])
    expect(clean).not.toContain('w\\rd')
    expect(clean).not.toContain('%C3%A9')
  })

  test('redact: a secret that holds another one goes whole, a short one is left', () => {
    expect(redact('abcdefgh-more abcdefgh none', ['abcdefgh', 'abcdefgh-more', 'none', ''])).toBe(
      '[redacted] [redacted] none',
    )
  })

  test('redact: no given secret survives, whatever surrounds it', () => {
    const secret = 'Qz7-secret.Value+1'
    fc.assert(
      fc.property(fc.string(), fc.string(), (before, after) => {
        expect(redact(`${before}${secret}${after}`, [secret])).not.toContain(secret)
      }),
    )
  })

  test('redact: takes time in proportion to the text', () => {
    const pieces = ['sk-', 'Bearer ', 'eyJ', 'api_key=', 'secret', '://', '-----BEGIN PRIVATE KEY-----', ' ', '"', 'a:']
    for (const piece of pieces) {
      const text = piece.repeat(Math.ceil(262_144 / piece.length))
      const before = performance.now()
      redact(text)
      // a quadratic pattern takes minutes here
      expect(performance.now() - before, piece).toBeLessThan(2000)
    }
  })
})

describe('cutBytes', () => {
  test('cutBytes: what fits is kept, made well-formed', () => {
    expect(cutBytes('abc', 3)).toBe('abc')
    expect(cutBytes('a\ud800b', 10)).toBe('a\ufffdb')
    expect(cutBytes('', 0)).toBe('')
    expect(cutBytes('abc', 0)).toBe('')
  })

  test('cutBytes: never splits a character', () => {
    expect(cutBytes('abcd😀', 7)).toBe('abcd')
    expect(cutBytes('abcd😀', 5)).toBe('abcd')
    expect(cutBytes('aé', 2)).toBe('a')
  })

  test('cutBytes: gives the longest well-formed beginning within the limit', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), fc.nat(64), (text, limit) => {
        const kept = cutBytes(text, limit)
        const whole = wellFormed(text)
        expect(whole.startsWith(kept)).toBe(true)
        expect(Buffer.byteLength(kept)).toBeLessThanOrEqual(limit)
        const next = [...whole.slice(kept.length)][0]
        if (next !== undefined) expect(Buffer.byteLength(kept + next)).toBeGreaterThan(limit)
      }),
    )
  })
})
