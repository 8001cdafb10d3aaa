/**
 * When shards are to be woken: one timer a shard, for the next thing that is due in it.
 *
 * Owns: these timers.
 * Does not own: what waking is (`worker.ts`).
 *
 * - WK1 A shard has one timer at most, the one that was planned last.
 */
import type { Clock } from './ports.js'

/** Longest delay of one timer; a later due time is looked at again then. */
const maxDelayMs = 2 ** 30

/** The timers of a worker's shards. */
export class Wakes {
  readonly #clock: Clock
  readonly #wake: (shard: string) => void
  readonly #planned = new Map<string, { readonly dueAt: number; readonly cancel: () => void }>()
  #closed = false

  /** @param wake called when something of a shard is due, or may be */
  constructor(clock: Clock, wake: (shard: string) => void) {
    this.#clock = clock
    this.#wake = wake
  }

  /** Plans when a shard is woken, instead of what was planned before. @param dueAt epoch milliseconds; null: not at all */
  plan(shard: string, dueAt: number | null): void {
    const known = this.#planned.get(shard)
    if (known?.dueAt === dueAt) return
    known?.cancel()
    this.#planned.delete(shard)
    if (dueAt === null || this.#closed) return
    const delayMs = Math.min(maxDelayMs, Math.max(0, dueAt - this.#clock.now()))
    const cancel = this.#clock.after(delayMs, () => {
      this.#planned.delete(shard)
      this.#wake(shard)
    })
    this.#planned.set(shard, { dueAt, cancel })
  }

  /** Wakes nothing from now on. */
  close(): void {
    this.#closed = true
    for (const { cancel } of this.#planned.values()) cancel()
    this.#planned.clear()
  }
}
