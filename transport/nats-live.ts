/**
 * Live events over NATS: tokens and progress, for whoever watches from outside.
 *
 * A worker asks the server whether anybody would hear: a request without listeners is answered at once.
 *
 * Owns: finding out who is watched, passing live events by for as long as somebody listens.
 * Does not own: what a live event is (`runtime/events.ts`), its bytes (`nats-events.ts`).
 *
 * - NV1 A shard's live events pass by, and its models stream, from a second after somebody began to listen to them until a
 *   second after the last one left.
 * - NV2 Nobody waits for it: without a link, and without an answer in time, all stays as it was.
 */
import { errors } from '@nats-io/transport-node'
import type { LiveEvent } from '../runtime/dispatcher.js'
import type { EventHub } from '../runtime/events.js'
import type { NatsLink } from './nats-connection.js'
import type { Subjects } from './subjects.js'

/** Options of `NatsLive`. */
export interface NatsLiveOptions {
  readonly link: NatsLink
  readonly subjects: Subjects
  readonly hub: Pick<EventHub, 'subscribe'>
  /** The shards that are here. */
  readonly shards: () => Iterable<string>
  /** Passes a live event by. */
  readonly show: (shard: string, event: LiveEvent) => void
}

const lookMs = 1_000
/** Whoever is asked says nothing: an answer can only be that there is nobody. */
const silenceMs = 100

/** The watching of one worker's shards, until `close`. */
export class NatsLive {
  readonly #options: NatsLiveOptions
  /** Ends the watching of each shard that is watched. */
  readonly #watched = new Map<string, () => void>()
  readonly #timer: NodeJS.Timeout
  #looking = false
  #closed = false

  constructor(options: NatsLiveOptions) {
    this.#options = options
    this.#timer = setInterval(() => void this.#lookAll(), lookMs).unref()
  }

  /** Looks who listens to a shard. Never rejects. */
  async look(shard: string): Promise<void> {
    const isHeard = await this.#isHeard(shard)
    if (isHeard === null || this.#closed) return
    const { hub, show } = this.#options
    if (!isHeard) this.#leave(shard)
    else if (!this.#watched.has(shard)) {
      const subscriber = { take: () => undefined, show: (event: LiveEvent) => show(shard, event) }
      this.#watched.set(shard, hub.subscribe(shard, subscriber))
    }
  }

  close(): void {
    this.#closed = true
    clearInterval(this.#timer)
    for (const shard of [...this.#watched.keys()]) this.#leave(shard)
  }

  #leave(shard: string): void {
    this.#watched.get(shard)?.()
    this.#watched.delete(shard)
  }

  async #lookAll(): Promise<void> {
    if (this.#looking) return
    this.#looking = true
    const here = new Set(this.#options.shards())
    for (const shard of this.#watched.keys()) if (!here.has(shard)) this.#leave(shard)
    await Promise.all([...here].map((shard) => this.look(shard)))
    this.#looking = false
  }

  /** Whether anybody hears what a shard shows; null when that is not known. */
  async #isHeard(shard: string): Promise<boolean | null> {
    const { connection } = this.#options.link
    try {
      await connection.request(this.#options.subjects.watch(shard), undefined, { timeout: silenceMs })
      return true
    } catch (error) {
      if (error instanceof errors.RequestError && error.isNoResponders()) return false
      return error instanceof errors.TimeoutError ? true : null
    }
  }
}
