/**
 * Time of a simulation: a queue of events by due time, and the clock that a simulated process sees.
 *
 * Events of one instant run in an order that the seed decides. Events of a dead owner never run.
 */
import type { Clock } from '../../runtime/ports.js'
import type { SeededRandom } from './seeded-random.js'

/** Whoever set an event: when it is dead, the event is too. */
export interface Owner {
  alive: boolean
  /** It stands still until then, in milliseconds: what is due comes late. */
  pausedUntil?: number
}

interface Due {
  at: number
  /** Decides the order at one instant. */
  readonly tie: number
  readonly owner: Owner | null
  callback: (() => void) | null
}

/** Where simulated time begins, in epoch milliseconds. */
const epoch = 1_700_000_000_000

/** The queue of a whole simulation. */
export class Timeline {
  #now = 0
  readonly #heap: Due[] = []
  readonly #random: SeededRandom

  constructor(random: SeededRandom) {
    this.#random = random
  }

  /** Milliseconds since the beginning. */
  get now(): number {
    return this.#now
  }

  /** Runs `callback` after `delayMs`, unless its owner is dead by then. Returns a cancel. */
  after(delayMs: number, owner: Owner | null, callback: () => void): () => void {
    const due: Due = { at: this.#now + Math.max(0, Math.round(delayMs)), tie: this.#random.next(), owner, callback }
    this.#push(due)
    return () => {
      due.callback = null
    }
  }

  /** Resolves after `delayMs`; never when the owner is dead by then. */
  wait(delayMs: number, owner: Owner | null): Promise<void> {
    return new Promise((resolve) => {
      this.after(delayMs, owner, resolve)
    })
  }

  /** When the next event is due; null when there is none. */
  get next(): number | null {
    for (let first = this.#heap[0]; first !== undefined; first = this.#heap[0]) {
      if (first.callback !== null && first.owner?.alive !== false) return first.at
      this.#pop()
    }
    return null
  }

  /** Runs the next event. False when there is none. */
  run(): boolean {
    if (this.next === null) return false
    const due = this.#pop()
    this.#now = Math.max(this.#now, due.at)
    const pausedUntil = due.owner?.pausedUntil ?? 0
    if (pausedUntil > this.#now) {
      due.at = pausedUntil
      this.#push(due)
      return true
    }
    const { callback } = due
    due.callback = null
    callback?.()
    return true
  }

  #before(one: Due, other: Due): boolean {
    return one.at < other.at || (one.at === other.at && one.tie < other.tie)
  }

  #push(due: Due): void {
    const heap = this.#heap
    let at = heap.push(due) - 1
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (!this.#before(due, heap[parent]!)) break
      heap[at] = heap[parent]!
      at = parent
    }
    heap[at] = due
  }

  #pop(): Due {
    const heap = this.#heap
    const first = heap[0]!
    const last = heap.pop()!
    if (heap.length === 0) return first
    let at = 0
    for (;;) {
      let child = at * 2 + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && this.#before(heap[child + 1]!, heap[child]!)) child += 1
      if (!this.#before(heap[child]!, last)) break
      heap[at] = heap[child]!
      at = child
    }
    heap[at] = last
    return first
  }
}

/** The clock of one process: its timers die with it, its wall clock may step. */
export class VirtualClock implements Clock {
  readonly #timeline: Timeline
  readonly #owner: Owner
  readonly #wall: { stepMs: number }

  /** @param wall what the wall clock is off by; shared by the processes of one machine */
  constructor(timeline: Timeline, owner: Owner, wall: { stepMs: number }) {
    this.#timeline = timeline
    this.#owner = owner
    this.#wall = wall
  }

  now(): number {
    return epoch + this.#timeline.now + this.#wall.stepMs
  }

  monotonic(): number {
    return this.#timeline.now
  }

  after(delayMs: number, callback: () => void): () => void {
    return this.#timeline.after(delayMs, this.#owner, callback)
  }
}
