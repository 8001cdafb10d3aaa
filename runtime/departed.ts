/**
 * What a worker still owes shards that it has left: calls that run for them here, and outcomes that it has sent.
 *
 * Owns: who is asked for them, and how long they are remembered.
 * Does not own: what runs (`shard.ts`), how it reaches the new owner (`ownership.ts`).
 *
 * - DP1 Whoever takes a shard is told of each effect that this process works for, or whose outcome it has sent.
 */
import type { Clock } from './ports.js'
import { Recent } from './recent.js'
import type { Shard } from './shard.js'

/** Outcomes on their way that are remembered: whoever takes a shard asks for them before it gives them up. */
const maxSent = 10_000
/** When a shard that was left is looked after. */
const lookMs = 1_000

/** Shards that were left while ports still worked for them. */
export class Departed {
  readonly #clock: Clock
  readonly #shards = new Set<Shard>()
  readonly #sent = new Recent<true>(maxSent)

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /** A shard has another owner now: it leaves memory when nothing runs for it here any more. */
  add(shard: Shard): void {
    if (shard.working === 0) return
    this.#shards.add(shard)
    const look = (): void => {
      if (shard.working === 0) this.#shards.delete(shard)
      else this.#clock.after(lookMs, look)
    }
    look()
  }

  /** The outcome of an effect was sent. */
  sent(shard: string, effect: string): void {
    this.#sent.set(`${shard} ${effect}`, true)
  }

  /** Of these effects of a shard, those whose outcome this process still owes, or has sent. @param active the shard, if it is here */
  working(id: string, effects: readonly string[], active: Shard | undefined): string[] {
    const shards = [active, ...this.#shards].filter((shard) => shard?.id === id)
    return effects.filter((effect) => this.#sent.has(`${id} ${effect}`) || shards.some((shard) => shard!.owes(effect)))
  }

  /** Ends work for a shard. */
  cancel(id: string, effects: readonly string[]): void {
    for (const shard of this.#shards) if (shard.id === id) shard.cancel(effects)
  }

  /** Those for which something still runs. */
  get shards(): ReadonlySet<Shard> {
    return this.#shards
  }

  /** Resolves when nothing runs for them any more, or after a time. */
  async settled(graceMs: number): Promise<void> {
    const until = this.#clock.monotonic() + graceMs
    while (this.#shards.size > 0 && this.#clock.monotonic() < until) {
      for (const shard of this.#shards) if (shard.working === 0) this.#shards.delete(shard)
      await new Promise<void>((resolve) => this.#clock.after(5, resolve))
    }
  }
}
