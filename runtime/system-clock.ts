/**
 * The system's clock behind the clock port. Its timers never keep a process alive.
 */
import type { Clock } from './ports.js'

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  after: (delayMs, callback) => {
    const timer = setTimeout(callback, delayMs)
    timer.unref()
    return () => clearTimeout(timer)
  },
}
