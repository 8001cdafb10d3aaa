/**
 * Where a shard stands in a stream that may have lost some of it: its entry, or what is wrong with it.
 *
 * Owns: finding an end that must be there, telling a loss, what is known of an end that is not sound.
 * Does not own: reading messages (`jetstream-reading.ts`), cutting (`jetstream-journal.ts`).
 *
 * - JJ8 A shard whose end the server has lost, though the event stream has events of it, is `JOURNAL_TRUNCATED` until it is cut
 *   and a record tells of that: whoever dies between the two leaves it as it was.
 * - JJ4 A shard whose last row is damaged refuses everything but a cut with `JOURNAL_CORRUPT`; the others go on.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { CrewVersion } from '../runtime/crew-version.js'
import { TroupeError } from '../runtime/errors.js'
import { crewOf, type Cut, cutsOf, isCut, lastEventOf, rowOf } from './jetstream-message.js'
import type { End, JetStreamReading } from './jetstream-reading.js'
import { type Entry, entryOf } from './shard-heads.js'
import type { Message } from './stored-messages.js'

/** Where a shard stands in a stream. */
export interface StreamEntry extends Entry {
  /** Number of its last message in the stream; 0 for none. */
  at: number
  cuts: readonly Cut[]
}

/** How often a leader is asked for the end of a shard that must have more, and how long it is left between. */
const maxLooks = 5
const lookAgainMs = 500
/** Among the cuts of a shard: what is known of a lost end is not looked for any more. No message has this number. */
export const acceptedLoss: Cut = [0, 0]

/** Finds where shards end. */
export class JetStreamEnds {
  readonly #reading: JetStreamReading
  /** Shards that were cut here, and wait for the record that tells of it. */
  readonly #cut = new Set<string>()
  /** Shards whose end is gone: a leader that was chosen long ago is not waited for again. */
  readonly #truncated = new Set<string>()

  constructor(reading: JetStreamReading) {
    this.#reading = reading
  }

  /** A shard was cut by this process, which writes what tells of it. */
  cut(shard: string): void {
    this.#cut.add(shard)
  }

  /** What was cut is told, or another one's to tell. */
  told(shard: string): void {
    this.#cut.delete(shard)
  }

  /**
   * The entry of a shard.
   * @throws TroupeError `JOURNAL_TRUNCATED`, `JOURNAL_CORRUPT`, both with the last commit that is known of; what the server says.
   */
  async load(shard: string): Promise<StreamEntry> {
    // In this order: what is written meanwhile is not taken for lost.
    const told = await this.#reading.eventsUntil(shard)
    const end = await this.#endWith(shard, told)
    const row = end.last === null ? undefined : rowOf(shard, end.last)
    if (row !== null) return { ...entryOf(shard, row), ...standing(end) }
    // It was one commit more at least.
    const sound = await this.#reading.soundRow(shard, end.at, end.cuts)
    const last = Math.max(told, (sound?.last ?? 0) + 1)
    throw damaged(shard, { last, crew: crewOf(end.last) ?? null })
  }

  /** The entry of a shard whose end is damaged or gone, as far as it is sound: for whoever cuts, reads or removes it. */
  async loadSound(shard: string): Promise<StreamEntry> {
    const end = await this.#endWith(shard, 0)
    const row = end.last === null ? undefined : rowOf(shard, end.last)
    const sound = row === null ? await this.#reading.soundRow(shard, end.at, end.cuts) : row
    return { ...entryOf(shard, sound), ...standing(end) }
  }

  /** Where a shard ends, that must have a commit. A leader that has just been chosen may not know all at once. */
  async #endWith(shard: string, told: number): Promise<End> {
    for (let left = this.#reading.copies && !this.#truncated.has(shard) ? maxLooks : 1; ; left -= 1) {
      const end = await this.#reading.end(shard)
      const sequence = end.last === null ? 0 : (rowOf(shard, end.last)?.last ?? told)
      if (told <= sequence || (hasAcceptedLoss(end.last) && (!isCut(end.last) || this.#cut.has(shard)))) {
        this.#truncated.delete(shard)
        return end
      }
      if (left === 1) {
        this.#truncated.add(shard)
        throw truncated(shard, { sequence, last: told, crew: crewOf(end.last) ?? null })
      }
      await delay(lookAgainMs)
    }
  }
}

function standing({ last, at, cuts }: End): Pick<StreamEntry, 'crew' | 'lastEvent' | 'at' | 'cuts'> {
  return { crew: crewOf(last), lastEvent: lastEventOf(last), cuts, at }
}

/** Whether a shard's commits went back once, as somebody wanted it. Strays are cut too, and say nothing of that. */
function hasAcceptedLoss(last: Message | null): boolean {
  return cutsOf(last).some(([from, to]) => from === acceptedLoss[0] && to === acceptedLoss[1])
}

/** What is known of a shard whose end is not sound: its last commit, lost or not, and its crew. */
interface KnownEnd {
  readonly last: number
  readonly crew: CrewVersion | null
}

/** Refusal of a shard with a message that is not what was written. */
export function damaged(shard: string, end?: KnownEnd): TroupeError {
  const message = `${shard}: a message of its journal is damaged`
  return new TroupeError('JOURNAL_CORRUPT', message, { details: { shard, ...end } })
}

function truncated(shard: string, end: KnownEnd & { readonly sequence: number }): TroupeError {
  const message = `${shard}: its journal ends with commit ${end.sequence}, and its events tell of commit ${end.last}`
  return new TroupeError('JOURNAL_TRUNCATED', message, { details: { shard, ...end } })
}

/** Refusal of a shard with a hole. */
export function missing(shard: string, from: number, to: number): TroupeError {
  return new TroupeError('JOURNAL_CORRUPT', `${shard}: commits ${from} to ${to} are missing`, { details: { shard } })
}
