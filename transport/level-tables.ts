/**
 * LevelDB's tables, looked through before anything is read from them.
 *
 * LevelDB believes a block that it reads, whatever its checksum. Most flipped bits are found later, by the checks of what
 * is in the block; but a key that is too short, or not in its order, ends the process by an assertion.
 *
 * Owns: finding blocks of that kind.
 * Does not own: any other damage (`level-inspect.ts`, `level-journal.ts`).
 *
 * - LT1 A store with a block over which LevelDB would end the process is not opened: `STORE_CORRUPT`, with the table.
 * - LT2 Damage that LevelDB survives refuses nothing here: the shards that it did not hit go on.
 * - LT3 Only tables that were there before the store was opened are looked through, the newest first, up to 64 MiB.
 */

import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { TroupeError } from '../runtime/errors.js'

const checkedBytes = 64 * 1024 * 1024
const footerSize = 48
/** Behind each block: how it is compressed 0 · masked crc32c of block and that byte 1. */
const trailerSize = 5
const snappy = 1
/** LevelDB's keys end with a sequence and a type. */
const keyTailSize = 8
/** LevelDB asks for as much memory as a damaged length says. */
const largestBlock = 256 * 1024 * 1024

/** A block's place in its table. */
interface Handle {
  readonly offset: number
  readonly size: number
}

/** The tables in LevelDB's folder, the newest first. */
export function tablesOf(folder: string): string[] {
  try {
    return readdirSync(folder)
      .filter((name) => name.endsWith('.ldb') || name.endsWith('.sst'))
      .sort()
      .reverse()
      .map((name) => join(folder, name))
  } catch {
    return [] // no folder yet
  }
}

/**
 * Looks tables through. Called by the owner of the store; one that is gone meanwhile was LevelDB's to delete.
 * @throws TroupeError `STORE_CORRUPT` for one that must not be read.
 */
export function checkTables(paths: readonly string[]): void {
  let left = checkedBytes
  for (const path of paths) {
    let table: Buffer
    try {
      table = readFileSync(path)
    } catch {
      continue
    }
    left -= table.length
    if (left < 0) return
    if (isDeadly(table)) {
      throw new TroupeError('STORE_CORRUPT', `${path} is damaged: a block has keys that cannot be`, {
        details: { path },
      })
    }
  }
}

/** Whether LevelDB would end the process over a table. What it cannot read at all it reports. */
function isDeadly(table: Buffer): boolean {
  if (table.length < footerSize) return false
  const index = attempt(() => handleAt(table, handleAt(table, table.length - footerSize).end).handle)
  if (index === null || index.offset + index.size + trailerSize > table.length) return false
  const content = isSound(table, index) ? contentOf(table, index) : survivable(table, index)
  if (content === 'deadly') return true
  let after: Buffer = Buffer.alloc(0)
  for (const { rest: upTo, value } of content === null ? [] : entriesOf(content, endOfEntries(content))) {
    const block = attempt(() => handleAt(value, 0).handle)
    if (block === null) continue
    if (block.size > largestBlock) return true
    if (block.offset + block.size + trailerSize <= table.length && !isSound(table, block)) {
      if (survivable(table, block, { after, upTo }) === 'deadly') return true
    }
    after = upTo
  }
  return false
}

/** What the index says of a block: its keys come after the one, and up to the other. */
interface Bounds {
  readonly after: Buffer
  readonly upTo: Buffer | null
}

/** The content of a damaged block; null when LevelDB notices that it is, so that nobody looks into it. */
function survivable(
  table: Buffer,
  block: Handle,
  bounds: Bounds = { after: Buffer.alloc(0), upTo: null },
): Buffer | null | 'deadly' {
  const how = table[block.offset + block.size] ?? 0
  if (how > snappy) return null
  const size = how === snappy ? attempt(() => varintAt(table, block.offset).value) : block.size
  if (size !== null && size > largestBlock) return 'deadly'
  const content = attempt(() => contentOf(table, block))
  return content !== null && !isOrdered(content, bounds) ? 'deadly' : content
}

/** Whether the keys of a block are long enough and in their order, and can be sought from each of its restarts. */
function isOrdered(block: Buffer, { after, upTo }: Bounds): boolean {
  const end = endOfEntries(block)
  if (end < 0) return true // an error of LevelDB's, or no entries
  const starts = new Set<number>([end])
  let key: Buffer = after
  for (const entry of entriesOf(block, end)) {
    if (entry.shared > key.length) break // an error of LevelDB's
    const next = Buffer.concat([key.subarray(0, entry.shared), entry.rest])
    if (next.length < keyTailSize || (key.length > 0 && !isBefore(key, next))) return false
    if (upTo !== null && isBefore(upTo, next)) return false
    key = next
    if (entry.shared === 0) starts.add(entry.at)
  }
  for (let at = end; at < block.length - 4; at += 4) {
    const restart = block.readUInt32LE(at)
    if (restart < end && !starts.has(restart)) return false
  }
  return true
}

/** By name; of the same name the later sequence comes first. */
function isBefore(one: Buffer, other: Buffer): boolean {
  const [name, next] = [one.subarray(0, -keyTailSize), other.subarray(0, -keyTailSize)]
  const order = name.compare(next)
  return order < 0 || (order === 0 && one.readBigUInt64LE(name.length) > other.readBigUInt64LE(next.length))
}

/** Where a block's restarts begin; negative when LevelDB finds it too short for them. */
function endOfEntries(block: Buffer): number {
  return block.length < 4 ? -1 : block.length - 4 * (1 + block.readUInt32LE(block.length - 4))
}

interface BlockEntry {
  readonly at: number
  readonly shared: number
  readonly rest: Buffer
  readonly value: Buffer
}

/** The entries of a block, up to one that is not whole. */
function* entriesOf(block: Buffer, end: number): Generator<BlockEntry> {
  for (let at = 0; at < end; ) {
    const sizes = attempt(() => {
      const shared = varintAt(block, at)
      const rest = varintAt(block, shared.end)
      return { shared, rest, value: varintAt(block, rest.end) }
    })
    if (sizes === null) return
    const valueAt = sizes.value.end + sizes.rest.value
    const next = valueAt + sizes.value.value
    if (next > end) return
    const rest = block.subarray(sizes.value.end, valueAt)
    yield { at, shared: sizes.shared.value, rest, value: block.subarray(valueAt, next) }
    at = next
  }
}

/** The result, or null when bytes were missing. */
function attempt<T>(read: () => T): T | null {
  try {
    return read()
  } catch (thrown) {
    if (!(thrown instanceof RangeError)) throw thrown
    return null
  }
}

/** A number in groups of seven bits. */
function varintAt(bytes: Buffer, from: number): { readonly value: number; readonly end: number } {
  let value = 0
  for (let at = from, factor = 1; ; factor *= 128) {
    const byte = bytes.readUInt8(at++)
    value += (byte & 127) * factor
    if (byte < 128) return { value, end: at }
  }
}

function handleAt(bytes: Buffer, from: number): { readonly handle: Handle; readonly end: number } {
  const offset = varintAt(bytes, from)
  const size = varintAt(bytes, offset.end)
  return { handle: { offset: offset.value, size: size.value }, end: size.end }
}

function isSound(table: Buffer, { offset, size }: Handle): boolean {
  const end = offset + size
  const crc = crc32c(table, offset, end + 1)
  const masked = (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0
  return masked === table.readUInt32LE(end + 1)
}

function contentOf(table: Buffer, { offset, size }: Handle): Buffer {
  const bytes = table.subarray(offset, offset + size)
  return table[offset + size] === snappy ? uncompress(bytes) : bytes
}

/** Snappy: literals, and copies of what came before. @throws RangeError for bytes that are not. */
function uncompress(bytes: Buffer): Buffer {
  const length = varintAt(bytes, 0)
  const out = Buffer.alloc(length.value)
  let to = 0
  for (let at = length.end; at < bytes.length; ) {
    const tag = bytes.readUInt8(at++)
    let count = (tag >> 2) + 1
    const isLiteral = (tag & 3) === 0
    const width = isLiteral ? Math.max(0, count - 60) : [0, 1, 2, 4][tag & 3]!
    const number = width === 0 ? 0 : bytes.readUIntLE(at, width)
    at += width
    if (isLiteral && width > 0) count = number + 1
    if (width === 1 && !isLiteral) count = 4 + ((tag >> 2) & 7)
    const back = width === 1 ? number + ((tag >> 5) << 8) : number
    if (to + count > out.length) throw new RangeError('more than was said')
    if (isLiteral) {
      if (at + count > bytes.length) throw new RangeError('less than was said')
      bytes.copy(out, to, at, at + count)
      at += count
      to += count
    } else {
      if (back === 0 || back > to) throw new RangeError('a copy of nothing')
      for (; count > 0; count--, to++) out[to] = out[to - back]!
    }
  }
  if (to < out.length) throw new RangeError('less than was said')
  return out
}

const polynomial = 0x82f63b78
/** Eight tables: eight bytes a step are four times as fast as one. */
const steps = [new Int32Array(256)]
for (let byte = 0; byte < 256; byte++) {
  let crc = byte
  for (let bit = 0; bit < 8; bit++) crc = (crc & 1) === 1 ? (crc >>> 1) ^ polynomial : crc >>> 1
  steps[0]![byte] = crc
}
for (let step = 1; step < 8; step++) {
  steps.push(steps[step - 1]!.map((crc) => (crc >>> 8) ^ steps[0]![crc & 255]!))
}

function crc32c(bytes: Buffer, from: number, to: number): number {
  const [t0, t1, t2, t3, t4, t5, t6, t7] = steps as [Int32Array, Int32Array, Int32Array, Int32Array, ...Int32Array[]]
  let crc = -1
  let at = from
  for (; at + 8 <= to; at += 8) {
    crc ^= bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)
    crc =
      t7![crc & 255]! ^
      t6![(crc >>> 8) & 255]! ^
      t5![(crc >>> 16) & 255]! ^
      t4![crc >>> 24]! ^
      t3[bytes[at + 4]!]! ^
      t2[bytes[at + 5]!]! ^
      t1[bytes[at + 6]!]! ^
      t0[bytes[at + 7]!]!
  }
  for (; at < to; at++) crc = (crc >>> 8) ^ t0[(crc ^ bytes[at]!) & 255]!
  return (crc ^ -1) >>> 0
}
