/**
 * What a model is told of what a tool returned or threw.
 *
 * Owns: values as text, their bounds, the words for an error.
 * Does not own: when a tool runs; whether a failed call is made again.
 *
 * - TR1 A value either becomes JSON text or is refused with the place that has none: unlike `JSON.stringify`, no function,
 *   `Map` or `Response` becomes nothing in silence. An error inside a result is told as its name and message.
 * - TR2 Every result is well-formed and bounded; an error is also without secrets.
 * - TR3 Each property of a value is read once: what was checked is what is told.
 */
import { Buffer } from 'node:buffer'
import { ToolError } from '../runtime/define.js'
import { cutBytes, redact, wellFormed } from '../runtime/redact.js'

/** Longest error message that a model is told, in bytes. */
const maxErrorBytes = 2048
/** Deepest nesting of a result. */
const maxDepth = 64
/** Most values, and most characters of text, in a result that is turned into JSON. */
const maxValues = 1_000_000
const maxCharacters = 32 * 1_048_576

/** A result that has no text. The message is for the model and the tool's author. */
class Unserialisable extends Error {}

/**
 * What a value is as text: a string as it is, `undefined` nothing (''), anything else JSON.
 * @param characters Most characters that its strings and keys may have together. @default 33_554_432
 * @throws Error for what JSON cannot say: bigints, functions, symbols, cycles, binary data, promises, collections such
 *   as `Map`, more than 1,000,000 values or 64 levels; and whatever a getter or `toJSON` of the value throws.
 */
export function toText(value: unknown, characters = maxCharacters): string {
  if (typeof value === 'string') return value
  const plain = plainOf(value, '', { values: maxValues, characters, path: [], above: new Set() })
  return plain === undefined ? '' : JSON.stringify(plain)
}

/** What is left of a walk, and where it is. */
interface Walk {
  values: number
  characters: number
  readonly path: string[]
  readonly above: Set<object>
}

function refuse(walk: Walk, what: string): never {
  const where = cutBytes(['result', ...walk.path].join('.'), 256)
  throw new Unserialisable(`${where} ${what}. Return text or plain JSON data.`)
}

function plainOf(value: unknown, key: string, walk: Walk): unknown {
  walk.values -= 1
  walk.characters -= typeof value === 'string' ? value.length : 1
  if (walk.values < 0 || walk.characters < 0) refuse(walk, 'makes the whole too large')
  if (value === null || value === undefined || typeof value === 'boolean' || typeof value === 'number') return value
  if (typeof value === 'string') return wellFormed(value)
  if (typeof value !== 'object') return refuse(walk, `is a ${typeof value}`)
  if (value instanceof Number || value instanceof String || value instanceof Boolean) return value.valueOf()
  if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer || value instanceof SharedArrayBuffer) {
    return refuse(walk, `is binary (${value.byteLength} bytes)`)
  }
  if (walk.above.has(value)) return refuse(walk, 'contains itself')
  if (walk.path.length >= maxDepth) return refuse(walk, `is nested deeper than ${maxDepth} levels`)
  walk.above.add(value)
  const { toJSON } = value as { toJSON?: unknown }
  const made = typeof toJSON === 'function' ? copyOf(toJSON.call(value, key), walk) : copyOf(value, walk)
  walk.above.delete(value)
  return made
}

/** A copy of what holds other values; `toJSON` is not asked (again). */
function copyOf(value: unknown, walk: Walk): unknown {
  if (typeof value !== 'object' || value === null) return plainOf(value, '', walk)
  if (value instanceof Error) return { name: wellFormed(value.name), message: wellFormed(value.message) }
  const within = (key: string, item: unknown): unknown => {
    walk.path.push(key)
    const made = plainOf(item, key, walk)
    walk.path.pop()
    return made
  }
  if (Array.isArray(value)) {
    if (value.length > walk.values) return refuse(walk, 'makes the whole too large')
    return Array.from({ length: value.length }, (_, index) => within(String(index), value[index]) ?? null)
  }
  const parts = value as Record<PropertyKey, unknown>
  if (typeof parts['then'] === 'function') return refuse(walk, 'is a promise; await it')
  if (typeof parts[Symbol.iterator] === 'function' || typeof parts[Symbol.asyncIterator] === 'function') {
    return refuse(walk, 'is a collection or stream that JSON does not know; make it an array')
  }
  const keys = Object.keys(value)
  const prototype = Object.getPrototypeOf(value) as { constructor?: { name?: unknown } } | null
  if (keys.length === 0 && prototype !== null && prototype !== Object.prototype) {
    // a Response, a RegExp: JSON would say {} and nobody would know
    return refuse(walk, `is a ${String(prototype.constructor?.name)}, of which JSON keeps nothing`)
  }
  // without a prototype, so that a key like __proto__ is a key
  const copy = Object.create(null) as Record<string, unknown>
  for (const key of keys) {
    walk.characters -= key.length
    copy[wellFormed(key)] = within(key, parts[key])
  }
  return copy
}

/** Well-formed text of at most `maxBytes` bytes, the note about what is missing included; `maxBytes` is at least 256. */
export function cutOutput(text: string, maxBytes: number): { content: string; truncated: boolean } {
  const bytes = Buffer.byteLength(text)
  if (bytes <= maxBytes) return { content: wellFormed(text), truncated: false }
  const note = (left: number): string => `\n[cut: the last ${left} of ${bytes} bytes are left out]`
  const kept = cutBytes(text, Math.max(0, maxBytes - note(bytes).length))
  return { content: kept + note(bytes - Buffer.byteLength(kept)), truncated: true }
}

/** The words of a `ToolError`, of this or another copy of the package; null for anything else. Never throws. */
export function wordsOf(thrown: unknown): string | null {
  try {
    const ours = thrown instanceof ToolError || (thrown instanceof Error && thrown.name === 'ToolError')
    return ours && typeof thrown.message === 'string' ? thrown.message : null
  } catch {
    return null
  }
}

/** What a thrown value says, without secrets (see `redact`) and within 2 KiB. Never throws. */
export function describeThrown(thrown: unknown, secrets: readonly string[]): string {
  let text: string
  try {
    text = messageOf(thrown)
  } catch {
    text = 'it threw something that cannot be read'
  }
  // far more than can be shown, so that what is cut here is cut again
  const clean = redact(text.slice(0, 32 * maxErrorBytes), secrets)
  return cutBytes(clean === '' ? 'it failed without a message' : clean, maxErrorBytes)
}

function messageOf(thrown: unknown): string {
  if (typeof thrown === 'string') return thrown
  if (typeof thrown !== 'object' || thrown === null) return `it threw ${String(thrown)}`
  const { message, name, code, cause } = thrown as Record<string, unknown>
  const said = typeof message === 'string' && message !== '' ? message : [name, code].filter(isText).join(' ')
  if (said === '') return toText(thrown, maxErrorBytes)
  const why = cause instanceof Error && cause.message !== said ? cause.message : ''
  return why === '' ? said : `${said} (${why})`
}

function isText(value: unknown): value is string {
  return typeof value === 'string'
}
