/**
 * Bytes that come as letters: random, mutated, and made to harm. Counts are tenths of the full ones; `TROUPE_SCALE=1` runs
 * all, `TROUPE_SEED` repeats a run.
 */
import { headers } from '@nats-io/transport-node'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { BlobRef, decode, decodeForeign, encode } from '../../runtime/codec.js'
import type { Draft } from '../../runtime/envelope.js'
import { isTroupeError } from '../../runtime/errors.js'
import { claimHeaders, claimOf, decodeLetter, encodeLetter, largestLetter } from '../../transport/letter.js'
import { Subjects } from '../../transport/subjects.js'
import { SeededRandom } from '../simulation/seeded-random.js'

const scale = Number(process.env['TROUPE_SCALE'] ?? '0.1')
const seed = Number(process.env['TROUPE_SEED'] ?? Date.now() % 1_000_000)
console.log(`letters: TROUPE_SEED=${seed} TROUPE_SCALE=${scale}`)

const subjects = new Subjects('shop')
const subject = subjects.mail('q3', 'agent/writer')
const bounds = { maxValues: 50_000, maxDepth: 64 }
const draft: Draft = {
  from: 'port/model',
  to: 'agent/writer',
  cause: '7-1',
  body: { type: 'model.replied', calls: [{ id: 'c', ok: true, cost: 1.5, n: -3, none: null }], text: 'ä'.repeat(40) },
  values: ['x'.repeat(300), new BlobRef('ab'.repeat(32), 70_000)],
}
const read = (bytes: Uint8Array): Draft => decodeLetter(bytes, subject, subjects, null)
const refused = expect.objectContaining({ name: 'TroupeError', code: 'ENVELOPE_INVALID' })
const tooLarge = expect.objectContaining({ name: 'TroupeError', code: 'ENVELOPE_TOO_LARGE' })

/** Whether it was read; anything but a letter or a refusal fails. */
function isRead(bytes: Uint8Array): boolean {
  try {
    const { from, to, cause, body, values } = read(bytes)
    if ([from, to, cause, body.type].some((each) => typeof each !== 'string')) throw new Error('not a letter')
    if (to !== 'agent/writer') throw new Error('for somebody else')
    if (!values.every((value) => typeof value === 'string' || value instanceof BlobRef)) throw new Error('not values')
    return true
  } catch (error) {
    if (!isTroupeError(error) || error.code !== 'ENVELOPE_INVALID') throw error
    return false
  }
}

function expectUnpolluted(): void {
  expect(Object.keys(Object.prototype)).toEqual([])
  expect(Object.getOwnPropertyNames({})).toEqual([])
  expect(({} as { polluted?: unknown }).polluted).toBeUndefined()
}

const key = (name: string): Buffer => Buffer.concat([Buffer.from([0xa0 + name.length]), Buffer.from(name)])
/** A letter whose body has one more field, of these bytes. */
function letterWith(name: string, value: Uint8Array): Buffer {
  const field = (field: string, bytes: Uint8Array): Buffer[] => [key(field), Buffer.from(bytes)]
  return Buffer.concat([
    Buffer.from([0x85]),
    ...field('from', encode('port/model')),
    ...field('to', encode('agent/writer')),
    ...field('cause', encode('')),
    ...[key('body'), Buffer.from([0x82]), ...field('type', encode('t')), ...field(name, value)],
    ...field('values', encode([])),
  ])
}
const ext = (type: number, ...bytes: number[]): Buffer => Buffer.from([0xc7, bytes.length, type, ...bytes])

describe('letters of others', () => {
  test('LTR2 letter: it comes back as it was sent', () => {
    expect(read(encodeLetter(draft))).toEqual(draft)
    expect(isRead(letterWith('more', encode({ a: [1, -1, 2 ** 40, 0.5, null, true, new Uint8Array(3)] })))).toBe(true)
  })

  test('CO3 codec: what we encode is within the bounds, and comes back the same through them', () => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 20 }), fc.array(fc.double()), (value, numbers) => {
        const bytes = encode([value, numbers, draft.values])
        expect(decodeForeign(bytes, bounds)).toEqual(decode(bytes))
        expect(() => decodeForeign(bytes.subarray(0, -1), bounds)).toThrow()
        expect(() => decodeForeign(Buffer.concat([bytes, Buffer.from([1])]), bounds)).toThrow()
      }),
    )
    const nested = (depth: number): unknown => (depth === 0 ? 1 : [nested(depth - 1)])
    expect(decodeForeign(encode(nested(64)), bounds)).toEqual(nested(64))
    expect(() => decodeForeign(encode(nested(65)), bounds)).toThrow('deeper')
    expect(decodeForeign(encode(Array(49_999).fill(0)), bounds)).toHaveLength(49_999)
    expect(() => decodeForeign(encode(Array(50_000).fill(0)), bounds)).toThrow('50000 values')
  })

  test('LTR1 letter: random bytes are refused', { timeout: 300_000 }, () => {
    const random = new SeededRandom(seed)
    for (let count = 0; count < 1_000_000 * scale; count++) {
      const bytes = Buffer.alloc(random.int(0, 60))
      for (let at = 0; at < bytes.length; at++) bytes[at] = random.int(0, 255)
      expect(isRead(bytes) && count).toBe(false)
    }
    expectUnpolluted()
  })

  test('LTR1 letter: a mutated letter is a letter or refused', { timeout: 300_000 }, () => {
    const random = new SeededRandom(seed + 1)
    const whole = encodeLetter(draft)
    let intact = 0
    for (let count = 0; count < 100_000 * scale; count++) {
      let bytes = Buffer.from(whole)
      for (let left = random.int(1, 4); left > 0; left--) {
        const at = random.int(0, bytes.length - 1)
        const kind = random.int(0, 3)
        if (kind === 0) bytes[at] = random.int(0, 255)
        else if (kind === 1) bytes[at]! ^= 1 << random.int(0, 7)
        else if (kind === 2) bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + random.int(1, 8))])
        else bytes = Buffer.concat([bytes.subarray(0, at), whole.subarray(random.int(0, at)), bytes.subarray(at)])
        if (bytes.length === 0) break
      }
      if (isRead(bytes)) intact++
    }
    // Most hit the text, which may be any: it is tried what happens then, too.
    expect(intact).toBeGreaterThan(0)
    expectUnpolluted()
  })

  test.each<readonly [what: string, bytes: Uint8Array]>([
    [
      'a megabyte of maps',
      letterWith('x', Buffer.concat([Buffer.from([0xdd, 0, 0x10, 0, 0]), Buffer.alloc(2 ** 20, 0x80)])),
    ],
    ['8 MiB of nothing', Buffer.alloc(largestLetter, 0xc0)],
    ['arrays in arrays', letterWith('x', Buffer.concat([Buffer.alloc(100_000, 0x91), Buffer.from([0xc0])]))],
    ['maps in maps', letterWith('x', Buffer.concat([Buffer.alloc(200_000, 0x81), Buffer.from([0xc0])]))],
    ['an array of four billion', letterWith('x', Buffer.from([0xdd, 255, 255, 255, 255]))],
    ['a map of four billion', letterWith('x', Buffer.from([0xdf, 255, 255, 255, 255]))],
    ['a text of four gigabytes', letterWith('x', Buffer.from([0xdb, 255, 255, 255, 255]))],
    ['an error', letterWith('x', ext(0x65, ...encode([0, 'Error', 'm'])))],
    ['a set', letterWith('x', ext(0x73, ...encode([1, 2])))],
    ['a regular expression', letterWith('x', ext(0x78, ...encode(['(a+)+$', ''])))],
    [
      'a record',
      letterWith(
        'x',
        Buffer.concat([Buffer.from([0xd4, 0x72, 0x40]), encode(['a', '__proto__']), encode(1), encode(2)]),
      ),
    ],
    ['bundled strings', letterWith('x', Buffer.from([0xc8, 0, 4, 0x62, 0, 0, 0, 1]))],
    ['a pointer', letterWith('x', Buffer.from([0xd6, 0x70, 0, 0, 0, 1]))],
    ['a date', letterWith('x', Buffer.from([0xd6, 0xff, 0, 0, 0, 1]))],
    ['undefined', letterWith('x', Buffer.from([0xd4, 0, 0]))],
    ['a byte that means nothing', letterWith('x', Buffer.from([0xc1]))],
    ['a reference in another form', letterWith('x', ext(0x42, ...encode(['x', 1])))],
    ['a reference of one', letterWith('x', Buffer.from([0xd4, 0x42, 0, 0x91, 1]))],
    ['a reference to a map', letterWith('x', Buffer.from([0xd4, 0x42, 0, 0x82, 1, 1, 2, 2]))],
    [
      'references in references',
      letterWith('x', Buffer.concat(Array.from({ length: 50_000 }, () => Buffer.from([0xd4, 0x42, 0, 0x92, 1])))),
    ],
    ['a reference to nothing', encode({ ...draft, values: [new BlobRef('nothing', 1)] })],
    ['a reference of a negative size', encode({ ...draft, values: [new BlobRef('ab'.repeat(32), -1)] })],
    ['a field too many', encode({ ...draft, at: 1 })],
    ['a field too few', encode({ ...draft, cause: undefined })],
    ['a body without a type', encode({ ...draft, body: {} })],
    ['values that are none', encode({ ...draft, values: [1] })],
    ['JSON', Buffer.from(JSON.stringify(draft))],
    ['nothing', new Uint8Array(0)],
    ['one for another actor', encode({ ...draft, to: 'agent/other' })],
    ['one for an address that is none', encode({ ...draft, to: 'agent/*' })],
  ])('LTR1 letter: %s is refused at once', (_what, bytes) => {
    const since = performance.now()
    const before = process.memoryUsage().heapUsed
    expect(() => read(bytes)).toThrow(refused)
    expect(performance.now() - since).toBeLessThan(2_000)
    expect(process.memoryUsage().heapUsed - before).toBeLessThan(32 * 2 ** 20)
  })

  test.each(['__proto__', 'constructor', 'prototype', 'toString', 'hasOwnProperty'])(
    'CO2 LTR1 letter: a field named %s changes no prototype',
    (name) => {
      const bytes = letterWith(name, encode({ polluted: true, prototype: { polluted: true } }))
      expect(Object.getPrototypeOf(read(bytes).body)).toBe(Object.prototype)
      expect(read(bytes).body).not.toHaveProperty('polluted')
      expectUnpolluted()
    },
  )

  test('LTR1 letter: what is larger than a letter may be is refused before it is read', () => {
    expect(() => read(new Uint8Array(largestLetter + 1))).toThrow(tooLarge)
    expect(() => claimOf(undefined, new Uint8Array(largestLetter + 1))).toThrow(tooLarge)
    expect(claimOf(undefined, new Uint8Array(largestLetter))).toBeNull()
    const head = claimHeaders(new Uint8Array(largestLetter + 1))
    head.set('Nats-Msg-Id', 'x')
    expect(() => claimOf(head, new Uint8Array(0))).toThrow(tooLarge)
  })

  test('LTR1 letter: one that its receiver would refuse is not sent', () => {
    const deep = (depth: number): object => (depth === 0 ? {} : { in: deep(depth - 1) })
    for (const body of [deep(100), { list: Array.from({ length: 60_000 }, () => 0) }])
      expect(() => encodeLetter({ ...draft, body: { type: 't', ...body } })).toThrow(tooLarge)
    expect(() => encodeLetter({ ...draft, values: ['x'.repeat(largestLetter)] })).toThrow(tooLarge)
  })

  test('LTR1 claim: whatever the headers say, it is a claim within the bound or refused', () => {
    const random = new SeededRandom(seed + 2)
    const texts = [
      '',
      'x',
      '-1',
      '1e9',
      'NaN',
      '1.5',
      '0x10',
      ' 7',
      'ab'.repeat(32),
      'AB'.repeat(32),
      '../x',
      'a.b',
      '*',
      '>',
    ]
    for (let count = 0; count < 20_000 * scale; count++) {
      const head = headers()
      for (const name of ['Troupe-Body', 'Troupe-Bytes', 'Nats-Msg-Id'])
        if (random.chance(0.8)) head.set(name, random.pick(texts))
      try {
        const claim = claimOf(head, new Uint8Array(0))
        if (claim === null) continue
        expect(claim).toEqual({
          id: expect.stringMatching(/^[\w-]{1,64}$/),
          hash: expect.stringMatching(/^[0-9a-f]{64}$/),
          bytes: expect.any(Number),
        })
        expect(claim.bytes >= 0 && claim.bytes <= largestLetter).toBe(true)
        expect(() => decodeLetter(encode(draft), subject, subjects, claim)).toThrow(refused)
      } catch (error) {
        expect(isTroupeError(error) && ['ENVELOPE_INVALID', 'ENVELOPE_TOO_LARGE'].includes(error.code)).toBe(true)
      }
    }
  })
})
