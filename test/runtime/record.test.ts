import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { BlobRef, canonicalJson, chain, contentHash, decode, encode } from '../../runtime/codec.js'
import { checkId, checkType, fromStored, sizeOf, toStored } from '../../runtime/envelope.js'
import { nothingPending } from '../../runtime/journal.js'
import { checkChain, eventsOf, fromEvents, fromRecord, toRecord } from '../../runtime/record.js'
import { defined, Desk, task } from '../support/envelopes.js'

const start = new Uint8Array(32)
const commits = () => {
  const desk = new Desk()
  desk.all(defined(), task())
  return desk.commits
}

describe('codec', () => {
  test('CO1 codec: a reference is an extension type; whatever looks like one stays data', () => {
    const ref = new BlobRef('ab'.repeat(32), 70_000)
    const looks = [{ hash: ref.hash, bytes: ref.bytes }, [ref.hash, ref.bytes], { xstate$$type: 1, id: 'x' }]
    const decoded = decode(encode([ref, ...looks])) as unknown[]
    expect(decoded[0]).toBeInstanceOf(BlobRef)
    expect(decoded[0]).toEqual(ref)
    expect(decoded.slice(1)).toEqual(looks)
    expect(decoded.slice(1).some((each) => each instanceof BlobRef)).toBe(false)
    const bytes = encode(ref).toString('latin1')
    expect(decode(encode(bytes))).toBe(bytes)
  })

  test('CO2 codec: a `__proto__` in foreign bytes reaches no prototype', () => {
    const key = Buffer.from('__proto__')
    const bytes = Buffer.concat([Buffer.from([0x81, 0xa0 + key.length]), key, encode({ polluted: true })])
    const decoded = decode(bytes) as { polluted?: boolean }
    expect(decoded.polluted).toBeUndefined()
    expect(Object.getPrototypeOf(decoded)).toBe(Object.prototype)
    expect(({} as { polluted?: boolean }).polluted).toBeUndefined()
  })

  test('CO2 codec: JSON comes back as it went in', () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        expect(decode(encode(value))).toEqual(withoutProto(value))
      }),
    )
  })

  test('codec: canonical JSON is the same for the same data, whatever the order of keys', () => {
    expect(canonicalJson({ b: [{ y: 1, x: 2 }], a: null })).toBe('{"a":null,"b":[{"x":2,"y":1}]}')
    expect(canonicalJson({ a: null, b: [{ x: 2, y: 1 }] })).toBe(canonicalJson({ b: [{ y: 1, x: 2 }], a: null }))
    expect(contentHash('x')).toMatch(/^[0-9a-f]{64}$/)
  })
})

describe('record', () => {
  test('RE1 record: its hash is SHA-256 over the previous hash and its bytes', () => {
    const record = toRecord('s1', start, commits(), nothingPending)
    expect(Buffer.from(record.hash)).toEqual(chain(start, record.bytes))
    expect(() => checkChain('s1', start, record)).not.toThrow()
    const other = Uint8Array.from(start).fill(1)
    expect(() => checkChain('s1', other, record)).toThrow(expect.objectContaining({ code: 'JOURNAL_CORRUPT' }))
  })

  test('RE1 record: commits come back as they were', () => {
    const [first, second] = commits()
    const record = toRecord('s1', start, [first!, second!], nothingPending)
    expect([record.first, record.last]).toEqual([1, 2])
    const read = fromRecord('s1', record)
    expect(read.map(({ sequence }) => sequence)).toEqual([1, 2])
    expect(read.map(({ envelope }) => envelope)).toEqual([first!.envelope, second!.envelope])
    expect(Buffer.from(read[1]!.digest)).toEqual(Buffer.from(second!.digest))
  })

  test('RE2 record: bytes that do not decode to its commits are JOURNAL_CORRUPT, never a guess', () => {
    const record = toRecord('s1', start, commits(), nothingPending)
    for (const bad of [
      { ...record, bytes: record.bytes.subarray(0, record.bytes.length - 3) },
      { ...record, bytes: Buffer.alloc(0) },
      { ...record, bytes: encode('text') },
      { ...record, bytes: encode([1, 2]) },
      { ...record, last: 9 },
    ]) {
      expect(() => fromRecord('s1', bad)).toThrow(expect.objectContaining({ code: 'JOURNAL_CORRUPT' }))
    }
  })

  test('RE2 record: a flipped bit breaks the chain', () => {
    const record = toRecord('s1', start, commits(), nothingPending)
    fc.assert(
      fc.property(fc.nat(record.bytes.length - 1), fc.nat(7), (at, bit) => {
        const bytes = Uint8Array.from(record.bytes)
        bytes[at]! ^= 1 << bit
        expect(() => checkChain('s1', start, { ...record, bytes })).toThrow(
          expect.objectContaining({ code: 'JOURNAL_CORRUPT' }),
        )
      }),
    )
  })

  test('record: events lie beside it with their places', () => {
    const all = commits()
    const record = toRecord('s1', start, all, nothingPending)
    expect(fromEvents(record.events!)).toEqual(all.flatMap(eventsOf))
    expect(
      fromEvents(record.events!)
        .map(({ sequence, index }) => `${sequence}-${index}`)
        .slice(0, 3),
    ).toEqual(['1-0', '2-0', '2-1'])
  })
})

describe('envelope', () => {
  const bad = ['', 'a.b', 'a*', 'a>', 'a b', 'a\r\nPUB x', 'ä', '../x', 'x'.repeat(65), 'x'.repeat(5_000), null, 7, {}]
  test.each(bad)('E1 envelope: an id like %j is refused', (id) => {
    expect(() => checkId(id, 'a crew id')).toThrow(expect.objectContaining({ code: 'ID_INVALID' }))
  })

  test('E1 envelope: a refusal does not repeat thousands of characters', () => {
    expect(() => checkId('.'.repeat(5_000), 'a crew id')).toThrow(
      expect.objectContaining({ message: expect.stringMatching(/^.{1,200}$/) }),
    )
    expect(checkId('A-z_9', 'a crew id')).toBe('A-z_9')
  })

  test('E1 envelope: messages that only the inside makes are refused by their type', () => {
    for (const type of ['xstate.done.actor.x', 'XState.init', 'xstate.after.1', 'xstate.stop'])
      expect(() => checkType(type)).toThrow(expect.objectContaining({ code: 'MESSAGE_REFUSED' }))
    expect(() => checkType('crew.task')).not.toThrow()
    expect(() => checkType('not.xstate.done')).not.toThrow()
  })

  test('E2 envelope: message and values go apart through their stored form', () => {
    const envelope = { ...task(), at: 12, values: ['text', new BlobRef('ab', 9)] }
    expect(fromStored(decode(encode(toStored(envelope))) as never)).toEqual(envelope)
    expect(sizeOf(envelope)).toBe(256 + 4 + 64)
  })
})

/** msgpack keeps a key named `__proto__` from being one. */
function withoutProto(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutProto)
  if (typeof value !== 'object' || value === null) return Object.is(value, -0) ? 0 : value
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [key === '__proto__' ? '__proto_' : key, withoutProto(inner)]),
  )
}
