/** What happens to several workers and to the server between them: links that are cut, processes that stand still, a slow server. */
import type { SimulatedProcess, World } from './world.js'

/** Lets something happen to a living process a few times, at moments that the seed decides. */
type At = (count: number, happen: (process: SimulatedProcess) => void) => void

/** Plans the faults of a cluster. @param close lets a process end in order */
export function planClusterFaults(world: World, at: At, close: (process: SimulatedProcess) => void): void {
  const { random, notes, timeline } = world
  const count = (enabled: number, most: number) => (random.chance(enabled) ? random.int(1, most) : 0)
  at(count(0.4, 3), ({ ownership }) => {
    if (ownership?.cut === false) ownership.cutOff(random.pick([500, 2_000, 5_000, 20_000]), random.chance(0.3))
  })
  at(count(0.4, 3), (process) => world.pause(process))
  at(count(0.25, 2), () => {
    notes.fault('server slow')
    world.slowUntil = timeline.now + random.pick([1_000, 5_000, 15_000])
  })
  at(count(0.7, 5), close)
  at(count(0.5, 5), ({ worker, ownership }) => {
    const to = random.pick([...(world.cluster?.leases.keys() ?? [])])
    if (worker === null || ownership?.cut !== false || to === undefined) return
    notes.fault('crew moved')
    // Who cannot hand it over says so; the shard is somebody's all the same.
    worker.move('a', to).catch(() => undefined)
  })
}
