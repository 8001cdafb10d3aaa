/**
 * The trail of a commit: two bytes of checksum a decision, so that a refused upgrade can name the first one that differs.
 *
 * Owns: making it.
 * Does not own: comparing two (`recovery.ts`).
 */
import { crc32 } from 'node:zlib'

/** @param lines the decisions in order */
export function trailOf(lines: readonly string[]): Uint8Array {
  const trail = Buffer.alloc(lines.length * 2)
  lines.forEach((line, index) => trail.writeUInt16LE(crc32(line) & 0xffff, index * 2))
  return trail
}
