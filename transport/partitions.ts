/**
 * Who owns which partition: each worker finds it out alone, from the names of those that live.
 *
 * Rendezvous hashing: every worker has a number for every partition, the highest one owns it.
 *
 * Owns: that rule.
 * Does not own: who lives (`nats-membership.ts`), what an owner may write (the journal's fence).
 *
 * - PA1 The same names give the same owners, in whatever order they come.
 * - PA2 When a worker comes or goes, only partitions that it gets or had change hands.
 */
import { createHash } from 'node:crypto'
import { partitionCount } from './subjects.js'

/** The owner of a partition among living workers; null when there is none. */
export function ownerOf(partition: number, workers: readonly string[]): string | null {
  let owner: string | null = null
  let highest = ''
  for (const worker of workers) {
    const weight = createHash('sha256').update(`${partition}.${worker}`).digest('hex')
    if (weight > highest) {
      owner = worker
      highest = weight
    }
  }
  return owner
}

/** The owner of each partition among living workers, by the partition's number. */
export function ownersAmong(workers: readonly string[]): readonly (string | null)[] {
  return Array.from({ length: partitionCount }, (_, partition) => ownerOf(partition, workers))
}
