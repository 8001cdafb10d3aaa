/**
 * Who owns which partition: each worker finds it out alone, from the names of those that live.
 *
 * Rendezvous hashing: every worker has a number for every partition, the highest one owns it.
 *
 * Owns: that rule, and among whom it chooses.
 * Does not own: who lives (`nats-membership.ts`), what an owner may write (the journal's fence).
 *
 * - PA1 The same names give the same owners, in whatever order they come.
 * - PA2 When a worker comes or goes, only partitions that it gets or had change hands.
 * - PA3 A crew falls to those who offer it in its version; when there is none, to those who offer it in any.
 * - PA4 Whoever a crew falls to in any version it falls to in that one's: a shard that takes its owner's version stays.
 * - PA5 There are no more tables than crews and versions that are offered, whatever is asked for.
 */
import { createHash } from 'node:crypto'
import { crewVersion, type CrewVersion, nameIn } from '../runtime/crew-version.js'
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

/** Names of crews whose code a worker has, with the versions of their code. */
export type Crews = Readonly<Record<string, string>>

/** Those of whom one owns the partitions of a crew, and who of them which. */
interface Offer {
  readonly workers: string[]
  owners: readonly (string | null)[] | null
}

/** Who owns what among workers and the crews that they offer. */
export class Placement {
  /** By crew and version, by name alone, and by nothing for shards that have no crew yet. */
  readonly #offers = new Map<CrewVersion, Offer>()

  constructor(workers: Iterable<readonly [worker: string, crews: Crews]>) {
    for (const [worker, crews] of workers) {
      const offered = Object.entries(crews).flatMap(([name, version]) => [name, crewVersion(name, version), ''])
      for (const crew of new Set(offered)) this.#offerOf(crew).workers.push(worker)
    }
  }

  #offerOf(crew: CrewVersion): Offer {
    const offer = this.#offers.get(crew) ?? { workers: [], owners: null }
    this.#offers.set(crew, offer)
    return offer
  }

  /** The owner of each partition of a crew, by the partition's number; none when nobody offers it. */
  ownersOf(crew: CrewVersion): readonly (string | null)[] {
    const offer = this.#offers.get(crew) ?? this.#offers.get(nameIn(crew))
    if (offer === undefined) return []
    return (offer.owners ??= ownersAmong(offer.workers))
  }
}

/** Whether a crew of this name is among them, in any version; any crew, for a shard that has none yet. */
export function offers(crews: Crews, crew: CrewVersion): boolean {
  return crew === '' ? Object.keys(crews).length > 0 : Object.hasOwn(crews, nameIn(crew))
}
