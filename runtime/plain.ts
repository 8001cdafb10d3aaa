/**
 * Plain data: what comes back from bytes as it was.
 *
 * Owns: the check of what users' machines say and keep, and the plain form of it.
 * Does not own: the check of contexts of shipped machines (`checks.ts`).
 *
 * - PL1 What is given back goes through bytes unchanged: a field that is undefined is left out, an undefined item is null.
 * - PL2 Anything else that would come back as something else is refused with `CONTEXT_NOT_PLAIN`, by its place.
 */
import { isTroupeError, TroupeError } from './errors.js'

/** Values that lie in each other. */
const maxDepth = 64

/** The value as plain data: itself, when it is plain. @param place what it is, for the refusal @throws TroupeError `CONTEXT_NOT_PLAIN`. */
export function toPlain<T>(value: T, place: string): T {
  return plainAt(value, place, 0) as T
}

function plainAt(value: unknown, place: string, depth: number): unknown {
  if (value === null || value === undefined || typeof value === 'string' || typeof value === 'boolean') return value
  if (typeof value === 'number' && Number.isFinite(value)) return value
  if (typeof value !== 'object') throw odd(place, typeof value === 'number' ? String(value) : `a ${typeof value}`)
  if (depth >= maxDepth) throw odd(place, `more than ${maxDepth} deep`)
  return Array.isArray(value) ? plainItems(value, place, depth) : plainFields(value, place, depth)
}

function plainItems(items: readonly unknown[], place: string, depth: number): unknown {
  const plain = items.map((item, at) => plainAt(item, `${place}[${at}]`, depth + 1) ?? null)
  return plain.every((item, at) => item === items[at]) ? items : plain
}

function plainFields(value: object, place: string, depth: number): unknown {
  const prototype: unknown = Object.getPrototypeOf(value)
  if (prototype !== Object.prototype && prototype !== null) throw odd(place, 'no plain object')
  const plain: Record<string, unknown> = {}
  let isSame = true
  for (const [key, field] of Object.entries(value)) {
    // As a key it would reach a prototype where it is read back.
    if (key === '__proto__') throw odd(place, 'an object with a field __proto__')
    const inner = plainAt(field, `${place}.${key}`, depth + 1)
    isSame &&= inner === field && inner !== undefined
    if (inner !== undefined) plain[key] = inner
  }
  return isSame ? value : plain
}

function odd(place: string, what: string): TroupeError {
  return new TroupeError('CONTEXT_NOT_PLAIN', `${place} is ${what}`)
}

/** An error as plain data, as machines are told of it: code, name and message, or the plain value that was thrown. */
export function errorData(thrown: unknown): unknown {
  if (isTroupeError(thrown)) return { code: thrown.code, message: thrown.message.slice(0, 2_048) }
  if (thrown instanceof Error) {
    const { name, message } = thrown
    const code = 'code' in thrown && typeof thrown.code === 'string' ? { code: thrown.code.slice(0, 256) } : {}
    return { ...code, name: String(name).slice(0, 256), message: String(message).slice(0, 2_048) }
  }
  try {
    return toPlain(thrown ?? null, 'the error')
  } catch {
    return { message: 'something that is no plain data was thrown' }
  }
}
