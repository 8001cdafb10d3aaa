/**
 * Pins: shards that somebody has given to a worker of his choice, for all workers to see.
 *
 * A pin is a wish and no lock: whoever does not know of it yet is kept from writing by the journal's fence.
 *
 * Owns: the list of pins, setting them and taking them away.
 * Does not own: what a pin means (`nats-ownership.ts`), handing a shard over (`runtime/worker.ts`).
 *
 * - NPI1 A pin counts here after it was stored; others see it at once, and what a dead link swallowed within `pollMs`.
 * - NPI2 News never go back: what is older than what is known of a shard is ignored.
 */
import { type KV, type KvEntry, Kvm } from '@nats-io/kv'
import { z } from 'zod'
import { storeError } from './jetstream-content.js'
import type { NatsLink } from './nats-connection.js'
import type { Subjects } from './subjects.js'

interface Pin {
  /** Null for one that was taken away. */
  readonly worker: string | null
  readonly revision: number
}

const pinned = z.object({ worker: z.string().min(1).max(64) })

/** Options of `NatsPins.open`. */
export interface PinsOptions {
  readonly link: NatsLink
  readonly subjects: Subjects
  /** How often it is looked whether something was missed. */
  readonly pollMs: number
  /** Copies in a cluster. @default 1 */
  readonly replicas?: number
}

/** The pins of a namespace, kept up to date until `close`. */
export class NatsPins {
  readonly #options: PinsOptions
  readonly #bucket: KV
  readonly #pins = new Map<string, Pin>()
  /** Highest revision that was seen, of any pin. */
  #seen = 0
  #stopWatch: () => void = () => undefined
  #timer: NodeJS.Timeout | null = null
  #closed = false
  /** Called after a shard was given to a worker, or to none: also to the same one again, it may have been another's between. */
  onChange: (shard: string) => void = () => undefined

  private constructor(options: PinsOptions, bucket: KV) {
    this.#options = options
    this.#bucket = bucket
  }

  /** Knows all pins when it resolves. Throws what the server refuses. */
  static async open(options: PinsOptions): Promise<NatsPins> {
    const { link, subjects, replicas = 1 } = options
    try {
      const bucket = await new Kvm(link.connection).create(subjects.stream('pins'), { history: 1, replicas })
      const pins = new NatsPins(options, bucket)
      await pins.#watch()
      pins.#plan()
      return pins
    } catch (error) {
      throw storeError(error)
    }
  }

  /** The worker that a shard was given to; null when it was given to none. */
  workerOf(shard: string): string | null {
    return this.#pins.get(shard)?.worker ?? null
  }

  /** Every pin. */
  *all(): Generator<readonly [shard: string, worker: string]> {
    for (const [shard, { worker }] of this.#pins) if (worker !== null) yield [shard, worker]
  }

  /** Gives a shard to a worker, or to none. Resolves when that is stored, and counts here. Throws what the server refuses. */
  async set(shard: string, worker: string | null): Promise<void> {
    if (this.workerOf(shard) === worker) return
    try {
      const known = this.#pins.get(shard)?.revision ?? 0
      if (worker === null) await this.#bucket.delete(shard)
      const revision = worker === null ? known : await this.#bucket.put(shard, JSON.stringify({ worker }))
      this.#put(shard, { worker, revision })
    } catch (error) {
      throw storeError(error)
    }
  }

  /** Asks for the pin of one shard: somebody else may have set it just now. */
  async refresh(shard: string): Promise<void> {
    try {
      const entry = await this.#bucket.get(shard)
      if (entry !== null) this.#take(entry)
    } catch (error) {
      throw storeError(error)
    }
  }

  /** Nothing is told any more. */
  close(): void {
    this.#closed = true
    this.#stopWatch()
    if (this.#timer !== null) clearTimeout(this.#timer)
  }

  #plan(): void {
    if (this.#closed) return
    this.#timer = setTimeout(() => {
      void this.#poll()
        .catch(() => undefined)
        .finally(() => this.#plan())
    }, this.#options.pollMs).unref()
  }

  /** A watch over a link that was cut misses what came meanwhile until the next change: the server's last number tells. */
  async #poll(): Promise<void> {
    const { link, subjects } = this.#options
    const { state } = await link.manager.streams.info(`KV_${subjects.stream('pins')}`)
    if (state.last_seq <= this.#seen || this.#closed) return
    this.#stopWatch()
    await this.#watch()
    this.#seen = Math.max(this.#seen, state.last_seq)
  }

  /** Resolves when all that is stored now was seen. */
  async #watch(): Promise<void> {
    const changes = await this.#bucket.watch({ ignoreDeletes: false })
    this.#stopWatch = () => changes.stop()
    let left = (await this.#bucket.status()).values
    const first = new Promise<void>((resolve) => {
      void (async () => {
        if (left === 0) resolve()
        for await (const entry of changes) {
          this.#take(entry)
          left -= 1
          if (left <= 0) resolve()
        }
      })()
        .catch(() => undefined)
        .finally(resolve)
    })
    await first
  }

  #take(entry: KvEntry): void {
    const { key, revision } = entry
    this.#seen = Math.max(this.#seen, revision)
    if (revision > (this.#pins.get(key)?.revision ?? 0)) this.#put(key, { worker: workerIn(entry), revision })
  }

  #put(shard: string, pin: Pin): void {
    this.#pins.set(shard, pin)
    if (!this.#closed) this.onChange(shard)
  }
}

/** The worker of an entry; null for one that was taken away, or cannot be read. */
function workerIn(entry: KvEntry): string | null {
  if (entry.operation !== 'PUT') return null
  try {
    return pinned.parse(entry.json()).worker
  } catch {
    return null
  }
}
