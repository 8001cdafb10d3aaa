import { Buffer } from 'node:buffer'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ToolError } from '../../runtime/define.js'
import { outcome, request, stage, tool, watchProcess } from '../support/tool-stage.js'
import type { Run } from '../support/tool-stage.js'

watchProcess()

describe('tool: results', () => {
  test.each([
    ['a string', 'a "b"', 'a "b"'],
    ['nothing', undefined, ''],
    ['null', null, 'null'],
    ['a number', 1.5, '1.5'],
    ['false', false, 'false'],
    ['an object', { a: [1, undefined, { b: null }], c: undefined }, '{"a":[1,null,{"b":null}]}'],
    ['a date', { at: new Date(0) }, '{"at":"1970-01-01T00:00:00.000Z"}'],
    ['a URL', new URL('http://a/'), '"http://a/"'],
    ['an error', { failed: new RangeError('far') }, '{"failed":{"name":"RangeError","message":"far"}}'],
    ['boxed values', [new Number(1), new String('x')], '[1,"x"]'],
    ['an own __proto__', JSON.parse('{"__proto__":{"a":1}}') as unknown, '{"__proto__":{"a":1}}'],
    ['lone surrogates', 'a\ud800b', 'a\ufffdb'],
    ['lone surrogates inside', { '\udfff': '\ud800' }, '{"\ufffd":"\ufffd"}'],
    [
      'a class of data',
      new (class Point {
        x = 1
      })(),
      '{"x":1}',
    ],
    ['no prototype', Object.assign(Object.create(null) as object, { a: 1 }), '{"a":1}'],
    ['the same part twice', ((part) => [part, part])({ a: 1 }), '[{"a":1},{"a":1}]'],
  ])('result: %s is told', async (_what, value, content) => {
    expect(await outcome(() => value)).toEqual({ status: 'ok', content, truncated: false })
    expect(await outcome(() => Promise.resolve(value))).toEqual({ status: 'ok', content, truncated: false })
  })

  const cycle: Record<string, unknown> = {}
  cycle['self'] = { cycle }
  let deep: unknown = 1
  for (let level = 0; level < 10_000; level += 1) deep = [deep]
  const endless = (): unknown =>
    new Proxy(
      {},
      {
        ownKeys: () => ['a', 'b'],
        get: (_t, key) => (key === 'a' || key === 'b' ? endless() : undefined),
        getOwnPropertyDescriptor: () => ({ enumerable: true, configurable: true, value: 1 }),
      },
    )
  const thrower = (): never => {
    throw new Error('no entry')
  }

  test.each([
    ['a bigint', { n: 1n }, /result\.n is a bigint/],
    ['a cycle', cycle, /result\.self\.cycle contains itself/],
    ['a function', { rows: [{ f: () => 1 }] }, /result\.rows\.0\.f is a function/],
    ['a symbol', Symbol('s'), /result is a symbol/],
    ['a deep value', deep, /deeper than 64/],
    ['an endless value', endless(), /deeper than 64|too large/],
    ['a huge array', new Array(2 ** 31), /too large/],
    ['too much text', Array.from({ length: 40 }, () => 'x'.repeat(1_048_576)), /too large/],
    ['a throwing getter', Object.defineProperty({}, 'a', { enumerable: true, get: thrower }), /no entry/],
    ['a throwing toJSON', { toJSON: thrower }, /no entry/],
    ['a revoked proxy', revoked(), /cannot be told/],
    ['bytes', new Uint8Array(3), /binary \(3 bytes\)/],
    ['a buffer inside', { body: Buffer.from('abc') }, /result\.body is binary/],
    ['an array buffer', new ArrayBuffer(8), /binary/],
    ['a map', new Map([[1, 2]]), /make it an array/],
    ['a promise inside', { rows: Promise.resolve([]) }, /await it/],
    [
      'a generator',
      (function* () {
        yield 1
      })(),
      /make it an array/,
    ],
    ['a response', new Response('body'), /Response, of which JSON keeps nothing/],
    ['a pattern', { match: /x/ }, /RegExp, of which JSON keeps nothing/],
  ])('result: %s is unserialisable', async (_what, value, message) => {
    const ended = await outcome(() => ({ then: (resolve: (wrapped: unknown) => void) => resolve(value) }))
    expect(ended).toMatchObject({ status: 'failed', kind: 'unserialisable', message: expect.stringMatching(message) })
  })

  function revoked(): object {
    const { proxy, revoke } = Proxy.revocable([], {})
    // a revoked proxy cannot be returned by itself: the promise reads its `then`
    const holder = { inner: proxy }
    revoke()
    return holder
  }

  test('result: what is above maxBytes is cut with a note, at a character', async () => {
    const { port } = stage([tool(() => '😀'.repeat(1000), { maxBytes: 1000 })])
    const ended = await port.run(request())
    if (ended.status !== 'ok') throw new Error(ended.status)
    expect(ended.truncated).toBe(true)
    expect(Buffer.byteLength(ended.content)).toBeLessThanOrEqual(1000)
    const [, kept, left] = /^((?:😀)+)\n\[cut: the last (\d+) of 4000 bytes are left out\]$/u.exec(ended.content) ?? []
    expect(Buffer.byteLength(kept ?? '') + Number(left)).toBe(4000)
  })

  test('result: any string stays within maxBytes and is well-formed', async () => {
    const maxBytes = 256
    let text = ''
    const { port } = stage([tool(() => text, { maxBytes })])
    const unit = fc.constantFrom('a', 'é', '€', '😀', '\ud800', '\udc00')
    await fc.assert(
      fc.asyncProperty(fc.array(unit, { minLength: 40, maxLength: 400 }), async (units) => {
        text = units.join('')
        const ended = await port.run(request())
        if (ended.status !== 'ok') throw new Error(ended.status)
        expect(Buffer.byteLength(ended.content)).toBeLessThanOrEqual(maxBytes)
        expect(ended.content).not.toMatch(/\p{Surrogate}/u)
        expect(ended.truncated).toBe(Buffer.byteLength(text) > maxBytes)
      }),
    )
  })

  test('result: any value gives an outcome', async () => {
    let value: unknown
    const { port } = stage([tool(() => value)])
    const anything = fc.anything({
      withBigInt: true,
      withDate: true,
      withMap: true,
      withTypedArray: true,
      withNullPrototype: true,
      withSparseArray: true,
    })
    await fc.assert(
      fc.asyncProperty(anything, async (made) => {
        value = made
        const ended = await port.run(request())
        if (ended.status === 'ok') expect(typeof ended.content).toBe('string')
        else expect(ended).toMatchObject({ status: 'failed' })
      }),
    )
  })
})

describe('tool: failures', () => {
  test('failure: a ToolError is told in its own words', async () => {
    const run = () => {
      throw new ToolError('No such file. Try "ls".')
    }
    const expected = { status: 'failed', kind: 'told', message: 'No such file. Try "ls".' }
    expect(await outcome(run)).toEqual(expected)
    expect(await outcome(() => Promise.resolve().then(run))).toEqual(expected)
    const foreign = Object.assign(new Error('foreign copy'), { name: 'ToolError' })
    expect(await outcome(() => Promise.reject(foreign))).toMatchObject({ kind: 'told', message: 'foreign copy' })
  })

  test('failure: a ToolError is cut at maxBytes', async () => {
    const { port } = stage([tool(() => Promise.reject(new ToolError('x'.repeat(5000))), { maxBytes: 300 })])
    const ended = await port.run(request())
    if (ended.status !== 'failed') throw new Error(ended.status)
    expect(Buffer.byteLength(ended.message)).toBeLessThanOrEqual(300)
  })

  const hostile = new Proxy(new Error('x'), {
    get: () => {
      throw new Error('trap')
    },
    getPrototypeOf: () => {
      throw new Error('trap')
    },
  })

  test.each([
    ['an error', new Error('disk full'), 'disk full'],
    ['an error with a cause', new Error('fetch failed', { cause: new Error('refused') }), 'fetch failed (refused)'],
    ['an error without a message', Object.assign(new Error(''), { code: 'ECONNREFUSED' }), 'Error ECONNREFUSED'],
    ['a string', 'oops', 'oops'],
    ['undefined', undefined, 'it threw undefined'],
    ['null', null, 'it threw null'],
    ['a number', 7, 'it threw 7'],
    ['a symbol', Symbol('s'), 'it threw Symbol(s)'],
    ['an object', { status: 500 }, '{"status":500}'],
    ['an object with a message', { message: 'quota' }, 'quota'],
    ['a proxy that throws', hostile, 'it threw something that cannot be read'],
    ['an empty string', '', 'it failed without a message'],
  ])('failure: %s that is thrown or rejected is told', async (_what, thrown, message) => {
    const ways: Run[] = [
      () => {
        // eslint-disable-next-line @typescript-eslint/only-throw-error -- tools do that
        throw thrown
      },
      // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- tools do that
      () => Promise.reject(thrown),
      () => ({ then: (_resolve: unknown, reject: (reason: unknown) => void) => reject(thrown) }),
    ]
    for (const run of ways) expect(await outcome(run)).toEqual({ status: 'failed', kind: 'threw', message })
  })

  test('failure: secrets are taken out and the message is cut', async () => {
    const secret = 'Qz7-value-of-a-key'
    const run = () => Promise.reject(new Error(`401 for ${secret}, Bearer abcdefgh12345678 ${'x'.repeat(1_000_000)}`))
    const ended = await stage([tool(run)], { secrets: [secret] }).port.run(request())
    if (ended.status !== 'failed') throw new Error(ended.status)
    expect(ended.message).toContain('401 for [redacted], Bearer [redacted] xxx')
    expect(Buffer.byteLength(ended.message)).toBeLessThanOrEqual(2048)
  })

  test('failure: a thenable may call back as often as it likes', async () => {
    const twice = {
      then(resolve: (value: unknown) => void, reject: (reason: unknown) => void) {
        resolve('first')
        reject(new Error('second'))
        resolve('third')
        throw new Error('fourth')
      },
    }
    expect(await outcome(() => twice)).toMatchObject({ status: 'ok', content: 'first' })
    const trap = Object.defineProperty({}, 'then', {
      get: () => {
        throw new Error('trap')
      },
    })
    expect(await outcome(() => trap)).toMatchObject({ kind: 'threw', message: 'trap' })
  })
})
