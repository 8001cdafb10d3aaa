/** A clock that stands still until a test moves it. */
import type { Clock } from '../../runtime/ports.js'

/** A `Clock` whose time passes only in `advance`. */
export interface ManualClock extends Clock {
  /**
   * Lets `ms` pass: fires what falls due, in order of due time and then of setting, each at its own time. Timers that a
   * callback sets fire too if they fall due. Promises settle only when the caller awaits.
   */
  advance(ms: number): void
  /** Moves the wall clock only, as an administrator would; monotonic time and timers do not notice. */
  step(ms: number): void
  /** Timers that are set and not yet fired or cancelled. */
  readonly pending: number
}

/** Makes a clock. @param start Epoch milliseconds. @default 1_700_000_000_000 */
export function createManualClock(start = 1_700_000_000_000): ManualClock {
  const timers = new Map<number, { due: number; callback: () => void }>()
  let elapsed = 0
  let stepped = 0
  let next = 0

  function earliest(until: number): number | undefined {
    let found: number | undefined
    let due = Infinity
    for (const [id, timer] of timers) {
      if (timer.due <= until && timer.due < due) {
        due = timer.due
        found = id
      }
    }
    return found
  }

  return {
    now: () => start + elapsed + stepped,
    monotonic: () => elapsed,
    after(delayMs, callback) {
      const id = next
      next += 1
      timers.set(id, { due: elapsed + Math.max(0, delayMs), callback })
      return () => {
        timers.delete(id)
      }
    },
    advance(ms) {
      const until = elapsed + ms
      for (let id = earliest(until); id !== undefined; id = earliest(until)) {
        const timer = timers.get(id)
        timers.delete(id)
        if (timer === undefined) continue
        elapsed = Math.max(elapsed, timer.due)
        timer.callback()
      }
      elapsed = until
    },
    step(ms) {
      stepped += ms
    },
    get pending() {
      return timers.size
    },
  }
}
