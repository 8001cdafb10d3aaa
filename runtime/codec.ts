/**
 * Bytes, hashes and canonical text: the one place that knows msgpack.
 *
 * Owns: encoding of records, snapshots and blobs' references; content hashes; canonical JSON.
 * Does not own: what is encoded.
 *
 * - CO1 A `BlobRef` can only be made by the runtime: on the wire it is an extension type, so that an object of a tool or
 *   a model that looks like one stays data.
 * - CO2 What was encoded comes back as it was, and nothing in foreign bytes reaches a prototype.
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

addExtension({
  Class: BlobRef,
  type: 0x42,
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

/** Hex SHA-256 of text or bytes. */
export function contentHash(content: string | Uint8Array): string {
  return hashOnce('sha256', content, 'hex')
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
