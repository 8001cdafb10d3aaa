/**
 * Seeds that once broke a promise, with what was wrong. They run first, for ever.
 *
 * A seed means what it meant only as long as the simulation draws the same; that it passes proves little later on, that
 * it fails proves much.
 */
export const regressions: readonly (readonly [seed: number, was: string])[] = [
  [5, 'a due timer that waited in a full mailbox made its shard look again without pause'],
  [11, 'delegations that waited when they were cancelled left their conversations behind'],
  [13, 'a delegate that waited for its own delegate took the last place: the crew hung'],
  [17, 'a delegate that waited for its own delegate took the last place: the crew hung'],
  [111, 'a shard that had been unloaded counted the time as time down'],
  [146, 'a run that was cancelled moved a kept conversation, and the next run read the wrong calls'],
  [513, 'a redefinition without a limit left the old one in force'],
  [1017, 'a kept conversation was written to by a run whose definition does not keep it'],
]
