/**
 * Reads the mail of one partition: a lane for each shard, in which one letter at a time is worked on.
 *
 * A shard with much mail slows the reading of its partition down: beyond its credit nothing more is asked for. A shard
 * that gets no letter done for a second is stuck, and does not: what is beyond its credit goes back, and comes again.
 *
 * Owns: order, credit, giving letters back, keeping the server patient.
 * Does not own: asking the server (`jetstream-pull.ts`), what becomes of a letter (`nats-mail.ts`).
 *
 * - MLR1 Letters of a shard are worked on one after the other, in the order of the stream: one that was given back holds
 *   the later ones back until it is here again, or is due for two seconds and is not.
 * - MLR2 At most `credit` letters of a stuck shard are kept here, and it stops no other shard.
 * - MLR3 A letter that is kept here is not delivered to anybody else for as long as this process lives.
 */
import type { Delivery, JetStreamPull } from './jetstream-pull.js'

/** What became of a letter: null when it is answered, otherwise when it is to come again. */
export type Verdict = null | {
  readonly delayMs: number
  /** Its shard is stopped: nothing changes until somebody does something about it. */
  readonly parked: boolean
}

/** Options of a reader. */
export interface MailReaderOptions {
  /** Begins to read. */
  readonly pull: (take: (delivery: Delivery) => void) => JetStreamPull
  /** Name of the shard of a subject. */
  readonly shardOf: (subject: string) => string
  /** Works on one letter. Must not reject. */
  readonly work: (shard: string, delivery: Delivery) => Promise<Verdict>
  /** Letters of one shard that are kept while it is stuck. */
  readonly credit: number
  /** How long the server waits for an answer. */
  readonly ackWaitMs: number
}

/** A shard that finished nothing for so long is stuck. */
const patienceMs = 1_000
/** A letter that is due for so long and did not come went to somebody else. */
const lateMs = 2_000
const longestDelayMs = 5_000

/**
 * How long a letter stays away: longer each time, and never quite the same, since of letters that come again in step each one
 * would come to the same reader.
 * @param count how often it was delivered
 * @param longestMs what it grows up to @default 5_000
 */
export function delayOf(count: number, longestMs = longestDelayMs): number {
  return Math.min(longestMs, 100 * 2 ** Math.min(count - 1, 6)) * (0.5 + Math.random() / 2)
}

interface Away {
  readonly dueAt: number
  readonly parked: boolean
}

/** The letters of one shard. */
class Lane {
  /** The first one is worked on. */
  readonly kept: Delivery[] = []
  /** Letters that were given back, by their number, in this order. */
  readonly away = new Map<number, Away>()
  /** The end of the work on it, while there is some. */
  working: Promise<void> | null = null
  /** When the last one was begun. */
  begunAt = 0
  isStuck = false

  /** The letter that has to come before this one. */
  before(seq: number): Away | null {
    for (const [other, away] of this.away) if (other < seq) return away
    return null
  }
}

/** The reading of one partition, from its making until `drain` or `stop`. */
export class MailReader {
  readonly #options: MailReaderOptions
  readonly #pull: JetStreamPull
  readonly #lanes = new Map<string, Lane>()
  /** Those with more letters here than their credit. */
  readonly #beyond = new Set<Lane>()
  readonly #timer: NodeJS.Timeout
  #state: 'reading' | 'draining' | 'stopped' = 'reading'
  #toldAt = performance.now()

  constructor(options: MailReaderOptions) {
    this.#options = options
    this.#pull = options.pull((delivery) => this.#came(delivery))
    this.#timer = setInterval(() => this.#look(), Math.min(500, options.ackWaitMs / 4)).unref()
  }

  /** Letters of stopped shards that were given back here and are not due yet. */
  get parked(): number {
    let parked = 0
    for (const { away } of this.#lanes.values()) for (const each of away.values()) if (each.parked) parked++
    return parked
  }

  /** The link is new. */
  renew(): void {
    this.#pull.renew()
  }

  /** Reads no more, waits for the letters that are worked on, and gives the others back. */
  async drain(): Promise<void> {
    if (this.#state !== 'reading') return
    this.#state = 'draining'
    for (const lane of this.#lanes.values()) for (const each of lane.kept.splice(1)) each.giveBack()
    await this.#pull.leave()
    for (const { working } of this.#lanes.values()) await working
    this.stop()
  }

  /** Reads no more. Letters that are kept here go to somebody else when their time is over, unless they are done before. */
  stop(): void {
    this.#state = 'stopped'
    for (const { kept } of this.#lanes.values()) kept.splice(1)
    clearInterval(this.#timer)
    this.#pull.stop()
  }

  #came(delivery: Delivery): void {
    if (this.#state !== 'reading') return delivery.giveBack()
    const lane = this.#lane(this.#options.shardOf(delivery.subject))
    lane.away.delete(delivery.seq)
    // Its time was over while it was kept here: it is worked on already, and the one answer counts.
    if (lane.kept.some(({ seq }) => seq === delivery.seq)) return
    const before = lane.before(delivery.seq)
    const delayMs = delayOf(delivery.count)
    if (before !== null) {
      const { dueAt, parked } = before
      return this.#giveBack(lane, [delivery], { delayMs: Math.max(dueAt - performance.now(), 100), parked })
    }
    if (lane.isStuck && lane.kept.length >= this.#options.credit) {
      return this.#giveBack(lane, [delivery], { delayMs, parked: false })
    }
    lane.kept.push(delivery)
    lane.working ??= this.#work(lane, this.#options.shardOf(delivery.subject))
    this.#flow(lane)
  }

  #lane(shard: string): Lane {
    const lane = this.#lanes.get(shard) ?? new Lane()
    this.#lanes.set(shard, lane)
    return lane
  }

  /** Works on what is kept until nothing is. */
  async #work(lane: Lane, shard: string): Promise<void> {
    for (let first = lane.kept[0]; first !== undefined; first = lane.kept[0]) {
      lane.begunAt = performance.now()
      const verdict = await this.#options.work(shard, first)
      lane.isStuck = false
      lane.kept.shift()
      // What is behind it would overtake it.
      if (verdict !== null) this.#giveBack(lane, [first, ...lane.kept.splice(0)], verdict)
      this.#flow(lane)
    }
    lane.working = null
  }

  #giveBack(lane: Lane, deliveries: readonly Delivery[], { delayMs, parked }: NonNullable<Verdict>): void {
    const dueAt = performance.now() + delayMs
    for (const delivery of deliveries) {
      delivery.giveBack(this.#state === 'reading' ? delayMs : 0)
      lane.away.set(delivery.seq, { dueAt, parked })
    }
  }

  /** Reads on unless some shard has more than its credit here. */
  #flow(lane: Lane): void {
    if (this.#state !== 'reading') return
    if (lane.kept.length > this.#options.credit) this.#beyond.add(lane)
    else this.#beyond.delete(lane)
    if (this.#beyond.size > 0) this.#pull.pause()
    else this.#pull.resume()
  }

  /** What time brings about. */
  #look(): void {
    const now = performance.now()
    for (const [shard, lane] of this.#lanes) {
      for (const [seq, { dueAt }] of lane.away) if (dueAt + lateMs <= now) lane.away.delete(seq)
      if (lane.kept.length > 0 && now - lane.begunAt > patienceMs) this.#stick(lane)
      if (lane.working === null && lane.away.size === 0) this.#lanes.delete(shard)
    }
    if (now - this.#toldAt < this.#options.ackWaitMs / 3) return
    this.#toldAt = now
    for (const { kept } of this.#lanes.values()) for (const each of kept) each.working()
  }

  #stick(lane: Lane): void {
    lane.isStuck = true
    const beyond = lane.kept.splice(this.#options.credit)
    const [first] = beyond
    if (first !== undefined) this.#giveBack(lane, beyond, { delayMs: delayOf(first.count), parked: false })
    this.#flow(lane)
  }
}
