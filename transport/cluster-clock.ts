/**
 * Cluster time: what the server's clock says, whatever this machine's does.
 *
 * It is measured once, when a lease is taken, and held: the monotonic clock carries it on. So the times of a shard go on
 * when it comes to a worker whose clock is minutes off, and never step.
 *
 * Owns: that clock.
 * Does not own: measuring (`nats-lease.ts`), how commits are stamped (`runtime/shard.ts`).
 *
 * - CL1 Two workers of a namespace agree on the time to within a round trip to the server.
 * - CL2 Between two looks at the clock it goes on by what has passed: it never steps, and never goes back.
 */
import type { Clock } from '../runtime/ports.js'
import { systemClock } from '../runtime/system-clock.js'

/** A clock by the server's. @param offsetMs epoch milliseconds at which the monotonic clock stood at zero */
export function clusterClock(offsetMs: number): Clock {
  return { ...systemClock, now: () => Math.round(offsetMs + systemClock.monotonic()) }
}
