/**
 * The stream that the workers of a simulation share, as a server keeps it: a message lands behind the one that it names
 * or not at all, and the same id once.
 *
 * What is asked of it and what its answers mean is the product's own (`transport/fence.ts`).
 */
import type { JournalRecord } from '../../runtime/journal.js'
import { createMemoryJournal } from '../../transport/memory-journal.js'
import type { Mark, Placed } from '../../transport/fence.js'
import type { SimulatedProcess, World } from './world.js'

/** A record as it is published. */
export interface Published {
  readonly record: JournalRecord
  readonly id: string
  readonly behind: number
  readonly mark: Mark
  /** Who has published it: name of the owner and process. */
  readonly writer: string
  readonly process: SimulatedProcess
}

/** The server's side of the journal. */
export class SimulatedStream {
  readonly #world: World
  readonly #last = new Map<string, Placed>()
  readonly #ids = new Map<string, number>()
  #at = 0

  constructor(world: World) {
    this.#world = world
  }

  /** The last message of a shard; null for none. */
  last(shard: string): Placed | null {
    return this.#last.get(shard) ?? null
  }

  /**
   * A message comes. Gives its number; null when it is refused.
   * @param late its process may have gone on meanwhile
   */
  take({ record, id, behind, mark, writer, process }: Published, late = false): number | null {
    const known = this.#ids.get(id)
    if (known !== undefined) return known
    const { shard } = record
    if (behind !== (this.last(shard)?.at ?? 0)) return null
    const { notes, store } = this.#world
    this.#at += 1
    this.#ids.set(id, this.#at)
    this.#last.set(shard, { at: this.#at, mark, epoch: String(mark.epoch) })
    const before = store.shards.get(shard)?.head
    const follows = (before?.sequence ?? 0) + 1 === record.first
    const detail = () => `${shard}: ${writer} writes ${record.first} behind ${before?.sequence ?? 0}`
    notes.check('gap', follows, detail)
    // What nobody can read any more ends the seed.
    if (!follows) return this.#at
    createMemoryJournal({ store })
      .append(record)
      .catch(() => undefined)
    this.#world.landed(late ? null : process, record, writer)
    return this.#at
  }
}
