/**
 * Bytes, hashes and canonical text: the one place that knows msgpack.
 *
 * Owns: encoding of records, snapshots and blobs' references; content hashes; canonical JSON.
 * Does not own: what is encoded.
 *
 * - CO1 A `BlobRef` can only be made by the runtime: on the wire it is an extension type, so that an object of a tool or
 *   a model that looks like one stays data.
 * - CO2 What was encoded comes back as it was, and nothing in foreign bytes reaches a prototype.
 * - CO3 Of foreign bytes nothing is made before it is known how many values there are, how deep they lie, that they end
 *   where the bytes do, and that there is no extension but a `BlobRef`.
 */
import { hash as hashOnce } from 'node:crypto'
import { addExtension, Packr } from 'msgpackr'

/** A value that lies beside the journal, named by its content. */
export class BlobRef {
  /** @param hash hex SHA-256 of the content @param bytes its size in UTF-8 */
  constructor(
    readonly hash: string,
    readonly bytes: number,
  ) {}
}

/** What an envelope carries beside its message: text, or a reference to a stored one. Opaque to machines. */
export type Value = string | BlobRef

const packr = new Packr({ useRecords: false, variableMapSize: true, encodeUndefinedAsNil: true })

const refType = 0x42

addExtension({
  Class: BlobRef,
  type: refType,
  write: (ref: BlobRef): [string, number] => [ref.hash, ref.bytes],
  read: ([hash, bytes]: [string, number]): BlobRef => new BlobRef(hash, bytes),
})

/** Encodes plain data. */
export function encode(value: unknown): Buffer {
  return packr.pack(value)
}

/** Decodes what `encode` made. Throws on anything else. */
export function decode(bytes: Uint8Array): unknown {
  return packr.unpack(bytes)
}

/** What foreign bytes may hold. */
export interface DecodeBounds {
  /** Values, those in others included. */
  readonly maxValues: number
  /** Values that lie in each other. */
  readonly maxDepth: number
}

/** Decodes bytes of somebody else. Throws on anything that `encode` does not make, and on what exceeds the bounds. */
export function decodeForeign(bytes: Uint8Array, bounds: DecodeBounds): unknown {
  checkShape(bytes, bounds)
  return decode(bytes)
}

/**
 * Walks over encoded bytes and makes nothing of them.
 * @throws Error for what is not encoded data within the bounds.
 */
export function checkShape(bytes: Uint8Array, { maxValues, maxDepth }: DecodeBounds): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  /** Values that are still to come, by level. */
  const open = [1]
  let at = 0
  let values = 0
  while (open.length > 0) {
    const level = open.length - 1
    if (open[level]! === 0) {
      open.pop()
      continue
    }
    open[level]! -= 1
    const { size, inside } = headOf(view, at)
    const end = at + size
    // A value has a byte at least, so what is said to be inside must be there.
    if (end > bytes.length || inside > bytes.length - end) throw new Error('the bytes end too early')
    if (++values > maxValues) throw new Error(`more than ${maxValues} values`)
    if (inside > 0 && open.push(inside) > maxDepth + 1) throw new Error(`deeper than ${maxDepth}`)
    at = end
  }
  if (at !== bytes.length) throw new Error('there are bytes behind the end')
}

/** A value's first bytes. */
interface Head {
  /** Bytes without the values inside. */
  readonly size: number
  /** How many values are inside: of a map keys and values. */
  readonly inside: number
}

/** Sizes of values by their first byte, from 0xc0 on; 0 for what is not fixed or not allowed. */
const fixedSizes = [1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 5, 9, 2, 3, 5, 9, 2, 3, 5, 9]

function headOf(view: DataView, at: number): Head {
  const first = view.getUint8(at)
  if (first < 0x80 || first >= 0xe0) return { size: 1, inside: 0 }
  if (first < 0x90) return { size: 1, inside: 2 * (first & 0x0f) }
  if (first < 0xa0) return { size: 1, inside: first & 0x0f }
  if (first < 0xc0) return { size: 1 + (first & 0x1f), inside: 0 }
  const fixed = fixedSizes[first - 0xc0] ?? 0
  if (fixed > 0) return { size: fixed, inside: 0 }
  if (first === 0xd4) return refOf(view, at + 1)
  const [kind, width] = longOf(first)
  const count = width === 1 ? view.getUint8(at + 1) : width === 2 ? view.getUint16(at + 1) : view.getUint32(at + 1)
  if (kind === 'bytes') return { size: 1 + width + count, inside: 0 }
  return { size: 1 + width, inside: kind === 'map' ? 2 * count : count }
}

/** What a value of a written length is, and in how many bytes that is written. */
function longOf(first: number): readonly [kind: 'bytes' | 'array' | 'map', width: number] {
  if (first >= 0xc4 && first <= 0xc6) return ['bytes', 2 ** (first - 0xc4)]
  if (first >= 0xd9 && first <= 0xdb) return ['bytes', 2 ** (first - 0xd9)]
  if (first >= 0xdc && first <= 0xdf) return [first < 0xde ? 'array' : 'map', first % 2 === 0 ? 2 : 4]
  throw new Error(`no value begins with ${first}`)
}

/** A reference is an extension without bytes of its own, and behind it one array of two. */
function refOf(view: DataView, at: number): Head {
  if (view.getUint8(at) === refType && view.getUint8(at + 1) === 0 && view.getUint8(at + 2) === 0x92)
    return { size: 3, inside: 1 }
  throw new Error('an extension that is no reference')
}

/** Hex SHA-256 of text or bytes. */
export function contentHash(content: string | Uint8Array): string {
  return hashOnce('sha256', content, 'hex')
}

/** What tells texts apart in messages of machines: 96 bits of SHA-256, as 16 characters. */
export function shortHash(content: string): string {
  return digestOf(content).subarray(0, 12).toString('base64url')
}

/** SHA-256 of text or bytes as 32 bytes. */
export function digestOf(content: string | Uint8Array): Buffer {
  return hashOnce('sha256', content, 'buffer')
}

/** The next link of a chain: SHA-256 over the previous hash and the new content. */
export function chain(previous: Uint8Array, content: Uint8Array): Buffer {
  return hashOnce('sha256', Buffer.concat([previous, content]), 'buffer')
}

/** JSON text with object keys in order: the same text for the same data. */
export function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_key, inner: unknown) =>
    inner !== null && typeof inner === 'object' && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)))
      : inner,
  )
}
