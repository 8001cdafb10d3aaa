/** What tests compare with. */
import { expect } from 'vitest'
import type { ErrorCode } from '../../runtime/errors.js'

/** Equals our errors with a code. */
export const code = (expected: ErrorCode): unknown => expect.objectContaining({ name: 'TroupeError', code: expected })

/** All that there is. */
export async function collect<T>(from: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = []
  for await (const each of from) all.push(each)
  return all
}

/** Bytes as text. */
export const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString()
