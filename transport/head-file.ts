/**
 * The witness of the LevelDB journal: a small file that knows how far the shards were.
 *
 * LevelDB drops a damaged part of its log without a word, so the store alone cannot tell that its tail is missing.
 *
 * Owns: the file's layout, which shards have a slot, the number of shards and the sum over their last sequences.
 * Does not own: comparing it with the store (`level-inspect.ts`), deciding when it is written (`level-journal.ts`).
 *
 * - W1 It is written after the store and before anyone is told: the store may be ahead of it, never behind.
 * - W2 A slot lies inside one disk sector, so a power cut leaves the old slot or the new one.
 * - W3 Each slot and the header carry a checksum; a damaged one says nothing and is never believed.
 * - W4 Slots are reused per shard, the longest unwritten first, except those that `pin` holds: they name damage.
 */

import { closeSync, existsSync, fdatasync, fsyncSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs'
import { dirname } from 'node:path'
import { crc32 } from 'node:zlib'

const slotCount = 4096
const slotSize = 128
const slotsAt = 4096
const fileSize = slotsAt + slotCount * slotSize
const magic = 0x31485254 // 'TRH1'
const headerSize = 32
const headerCrcAt = 28
/** Length 0 · era 4 · sequence 8 · hash 16 · name 48 · sum 112 · count 120 · checksum 124. */
const slotCrcAt = 124
/** Up to this many untouched slots between two touched ones are written along: cheaper than one more call. */
const bridge = 16

/** What a slot says about its shard. */
export interface Witness {
  readonly sequence: number
  readonly hash: Uint8Array
}

/**
 * The head file, open.
 *
 * The header is written when the file is opened, closed, or a loss is accepted; each time its era goes up. In between,
 * the slot that was written last carries count and sum, so that an append costs one write. Both only grow within an
 * era, and slots of other eras do not count.
 */
export class HeadFile {
  /** Number of index rows, tombstones included. */
  count = 0
  /** Sum over the last sequences of all shards. */
  sum = 0
  /** The header was there and its checksum right. */
  readonly sound: boolean
  /** The last owner closed the journal. */
  readonly clean: boolean
  /** Shards with a slot that must keep it. */
  pin: (shard: string) => boolean = () => false

  readonly #fd: number
  readonly #image = Buffer.alloc(fileSize)
  /** Slot by shard, the longest unwritten first. */
  readonly #slots = new Map<string, number>()
  readonly #free: number[] = []
  readonly #dirty: number[] = []
  #era = 0
  #syncing = false
  #closing = false

  /** Opens the file at `path`, or creates it with all its blocks, so that later writes need no space. */
  constructor(path: string) {
    const isNew = !existsSync(path)
    this.#fd = openSync(path, isNew ? 'wx+' : 'r+', 0o600)
    const found = isNew ? 0 : readSync(this.#fd, this.#image, 0, fileSize, 0)
    if (found < fileSize) {
      writeSync(this.#fd, this.#image, found, fileSize - found, found)
      fsyncSync(this.#fd)
      syncFolder(dirname(path))
    }
    const header = this.#image.subarray(0, headerSize)
    this.sound =
      header.readUInt32LE(0) === magic && header.readUInt32LE(headerCrcAt) === crc32(header.subarray(0, headerCrcAt))
    this.clean = this.sound && header[4] === 1
    if (this.sound) {
      this.count = header.readDoubleLE(8)
      this.sum = header.readDoubleLE(16)
      this.#era = header.readUInt32LE(24)
    }
    for (let slot = slotCount - 1; slot >= 0; slot--) this.#load(slot)
  }

  #load(slot: number): void {
    const at = slotsAt + slot * slotSize
    const length = this.#image[at] ?? 0
    const crc = this.#image.readUInt32LE(at + slotCrcAt)
    if (length === 0 || length > 64 || crc !== crc32(this.#image.subarray(at, at + slotCrcAt))) {
      this.#free.push(slot)
      return
    }
    this.#slots.set(this.#image.toString('latin1', at + 48, at + 48 + length), slot)
    if (!this.sound || this.#image.readUInt32LE(at + 4) !== this.#era) return
    this.sum = Math.max(this.sum, this.#image.readDoubleLE(at + 112))
    this.count = Math.max(this.count, this.#image.readUInt32LE(at + 120))
  }

  /** Shards with a slot. */
  shards(): IterableIterator<string> {
    return this.#slots.keys()
  }

  /** What is known of a shard. */
  witness(shard: string): Witness | undefined {
    const slot = this.#slots.get(shard)
    if (slot === undefined) return undefined
    const at = slotsAt + slot * slotSize
    return { sequence: this.#image.readDoubleLE(at + 8), hash: this.#image.subarray(at + 16, at + 48) }
  }

  /** Notes a shard's new head in memory; `write` brings it to the file. */
  note(shard: string, sequence: number, hash: Uint8Array): void {
    const slot = this.#slotOf(shard)
    const at = slotsAt + slot * slotSize
    this.#image.writeDoubleLE(sequence, at + 8)
    this.#image.set(hash, at + 16)
    this.#dirty.push(slot)
  }

  /** Takes a shard's slot back. */
  drop(shard: string): void {
    const slot = this.#slots.get(shard)
    if (slot === undefined) return
    this.#slots.delete(shard)
    this.#image.fill(0, slotsAt + slot * slotSize, slotsAt + (slot + 1) * slotSize)
    this.#free.push(slot)
    this.#dirty.push(slot)
  }

  #slotOf(shard: string): number {
    const known = this.#slots.get(shard)
    const slot = known ?? this.#free.pop() ?? this.#evict()
    if (known === undefined) {
      const at = slotsAt + slot * slotSize
      this.#image.fill(0, at, at + slotSize)
      this.#image[at] = shard.length
      this.#image.write(shard, at + 48, 'latin1')
    } else {
      this.#slots.delete(shard)
    }
    this.#slots.set(shard, slot)
    return slot
  }

  #evict(): number {
    let looked = 0
    for (const [shard, slot] of this.#slots) {
      this.#slots.delete(shard)
      if (!this.pin(shard) || ++looked > slotCount) return slot
      this.#slots.set(shard, slot)
    }
    throw new Error('the head file has no slots')
  }

  /** Writes what was noted; count and sum go with the last of it. Without anything noted, nothing is written. */
  write(): void {
    const dirty = this.#dirty
    const image = this.#image
    const last = dirty.at(-1)
    if (last === undefined) return
    image.writeUInt32LE(this.#era, slotsAt + last * slotSize + 4)
    image.writeDoubleLE(this.sum, slotsAt + last * slotSize + 112)
    image.writeUInt32LE(this.count, slotsAt + last * slotSize + 120)
    for (const slot of dirty) this.#seal(slotsAt + slot * slotSize)
    if (dirty.length > 1) dirty.sort((one, other) => one - other)
    for (let index = 0; index < dirty.length; ) {
      const from = dirty[index] ?? 0
      let to = from
      while (++index < dirty.length && (dirty[index] ?? 0) - to <= bridge) to = dirty[index] ?? 0
      const at = slotsAt + from * slotSize
      writeSync(this.#fd, image, at, (to - from + 1) * slotSize, at)
    }
    dirty.length = 0
  }

  /** A used slot gets its checksum; a free one stays zero. */
  #seal(at: number): void {
    if (this.#image[at] === 0) return
    this.#image.writeUInt32LE(crc32(this.#image.subarray(at, at + slotCrcAt)), at + slotCrcAt)
  }

  /** Writes what was noted and a header of a new era, and waits until the file is on disk. */
  writeHeader(clean = false): void {
    this.#era = (this.#era + 1) >>> 0
    this.write()
    const image = this.#image
    image.writeUInt32LE(magic, 0)
    image[4] = clean ? 1 : 0
    image.writeDoubleLE(this.count, 8)
    image.writeDoubleLE(this.sum, 16)
    image.writeUInt32LE(this.#era, 24)
    image.writeUInt32LE(crc32(image.subarray(0, headerCrcAt)), headerCrcAt)
    writeSync(this.#fd, image, 0, headerSize, 0)
    fsyncSync(this.#fd)
  }

  /** Starts bringing the file to disk, unless that is under way. A failure only leaves the witness older. */
  syncSoon(): void {
    if (this.#syncing) return
    this.#syncing = true
    fdatasync(this.#fd, () => {
      this.#syncing = false
      this.#closeIfAsked()
    })
  }

  #closeIfAsked(): void {
    if (this.#closing && !this.#syncing) closeSync(this.#fd)
  }

  /** Gives the blocks of slots back that no shard has. The next open takes them again. */
  trim(): void {
    const last = Math.max(-1, ...this.#slots.values())
    try {
      ftruncateSync(this.#fd, slotsAt + (last + 1) * slotSize)
    } catch {
      // the file stays as large as it was
    }
  }

  /** Releases the file without writing. */
  close(): void {
    if (this.#closing) return
    this.#closing = true
    this.#closeIfAsked()
  }
}

/** Makes the names in a folder durable; a system that cannot sync folders does not need it. */
export function syncFolder(path: string): void {
  const fd = openSync(path, 'r')
  try {
    fsyncSync(fd)
  } catch {
    // EINVAL or EPERM: this file system keeps names by itself
  } finally {
    closeSync(fd)
  }
}
