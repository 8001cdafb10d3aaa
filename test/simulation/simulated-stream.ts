/**
 * The stream that the workers of a simulation share, as a server keeps it: a message lands behind the one that it names
 * or not at all, and the same id once. Where the stream has copies their leader may just have changed: then a message may
 * land, and be acknowledged, behind one that the new leader does not know yet. It is a stray.
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
  /** Whether there are copies. */
  readonly copies: boolean
  readonly #placed = new Map<string, Placed[]>()
  readonly #ids = new Map<string, number>()
  #at = 0

  constructor(world: World, copies: boolean) {
    this.#world = world
    this.copies = copies
  }

  /** Number of the last message of a shard; 0 for none. */
  end(shard: string): number {
    return this.#placed.get(shard)?.at(-1)?.at ?? 0
  }

  /** The first message of a shard behind a number; null for none. */
  after(shard: string, behind: number): Placed | null {
    return this.#placed.get(shard)?.find(({ at }) => at > behind) ?? null
  }

  /**
   * A message comes. Gives its number; null when it is refused.
   * @param late its process may have gone on meanwhile
   */
  take({ record, id, behind, mark, writer, process }: Published, late = false): number | null {
    const known = this.#ids.get(id)
    if (known !== undefined) return known
    const { shard } = record
    const isStray = behind !== this.end(shard)
    if (isStray && !this.#isUnseen(shard, behind)) return null
    const { notes, store } = this.#world
    this.#at += 1
    this.#ids.set(id, this.#at)
    const placed = this.#placed.get(shard) ?? []
    this.#placed.set(shard, placed)
    placed.push({ at: this.#at, behind, mark, epoch: String(mark.epoch) })
    if (isStray) {
      notes.fault('two records at one place')
      return this.#at
    }
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

  /** Whether a leader that does not know the last message of a shard yet takes another one at its place. */
  #isUnseen(shard: string, behind: number): boolean {
    const { calm, random } = this.#world
    const isLast = this.#placed.get(shard)?.at(-1)?.behind === behind
    return this.copies && !calm && isLast && random.chance(0.7)
  }
}
