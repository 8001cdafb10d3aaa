/**
 * Blobs: values too large for a record, put beside the journal.
 *
 * Owns: when a value is one, storing it before the record that will name it.
 * Does not own: where it lies (`journal.ts`), reading it (`content.ts`).
 */
import { BlobRef, contentHash, type Value } from './codec.js'
import { isStoreTrouble } from './errors.js'
import type { Journal } from './journal.js'
import type { Clock } from './ports.js'

/** Values above this go to blobs, in bytes of UTF-8. */
export const blobBytes = 64 * 1024
/** Waits between two tries of what the store did not take. */
export const refreshMs = 250
export const maxRefreshMs = 5_000

/** Where a shard's blobs go. */
export interface BlobStore {
  readonly shard: string
  readonly journal: Journal
  readonly clock: Clock
  /** The last commit so far. */
  sequence(): number
  /** Whether a store that takes nothing is waited for. */
  waits(): boolean
}

/** Puts a large value beside the journal; gives what the record names instead of it. */
export async function toBlob(value: Value, store: BlobStore): Promise<Value> {
  if (value instanceof BlobRef) return value
  const bytes = Buffer.from(value, 'utf8')
  if (bytes.length <= blobBytes) return value
  const hash = contentHash(bytes)
  for (let delayMs = refreshMs; ; delayMs = Math.min(maxRefreshMs, delayMs * 2)) {
    try {
      await store.journal.putBlob(store.shard, hash, bytes, store.sequence() + 1)
      return new BlobRef(hash, bytes.length)
    } catch (error) {
      if (!store.waits() || !isStoreTrouble(error)) throw error
      await new Promise<void>((resolve) => store.clock.after(delayMs, resolve))
    }
  }
}
