/**
 * The survey of a namespace over NATS: its workers, where each crew is, whose mail waits.
 *
 * Owns: asking the server what waits.
 * Does not own: the shapes (`runtime/survey.ts`), who lives and owns what (`nats-ownership.ts`).
 *
 * - NSV1 The number of requests does not grow with the crews, but with those whose mail waits, and by a bounded number.
 */
import type { MsgRequest } from '@nats-io/jetstream'
import type { ShardHead } from '../runtime/journal.js'
import type { ClusterInfo, CrewPlace, Survey } from '../runtime/survey.js'
import { storeError } from './jetstream-content.js'
import type { NatsLink } from './nats-connection.js'
import type { NatsOwnership } from './nats-ownership.js'
import { readSettings } from './nats-settings.js'
import type { Subjects } from './subjects.js'

/** Crews whose oldest letter is looked for. */
const maxAges = 256

/** What a survey needs. */
export interface SurveyOptions {
  readonly link: NatsLink
  readonly subjects: Subjects
  readonly ownership: Pick<NatsOwnership, 'workers' | 'ownerOf' | 'clock'>
}

/** Looks at a namespace as one of its workers. */
export class NatsSurvey implements Survey {
  readonly #options: SurveyOptions

  constructor(options: SurveyOptions) {
    this.#options = options
  }

  async cluster(): Promise<ClusterInfo> {
    const { link, subjects, ownership } = this.#options
    const { durability, replicas } = await readSettings(link, subjects)
    return { server: link.version, durability, replicas, workers: ownership.workers() }
  }

  async places(): Promise<(head: ShardHead) => CrewPlace> {
    const { ownership } = this.#options
    const letters = await this.#letters()
    const ages = new Map<string, number>()
    await Promise.all(
      [...letters.keys()].slice(0, maxAges).map(async (shard) => ages.set(shard, await this.#age(shard))),
    )
    return ({ shard, crew }) => ({
      owner: ownership.ownerOf(shard, crew ?? ''),
      letters: letters.get(shard) ?? 0,
      lagMs: ages.get(shard) ?? null,
    })
  }

  /** Letters that are stored, by shard. */
  async #letters(): Promise<ReadonlyMap<string, number>> {
    const { link, subjects } = this.#options
    const found = new Map<string, number>()
    try {
      const filter = { subjects_filter: subjects.mails() }
      const { state } = await link.manager.streams.info(subjects.stream('mail'), filter)
      for (const [subject, count] of Object.entries(state.subjects ?? {})) {
        const shard = subjects.shardOfMail(subject)
        found.set(shard, (found.get(shard) ?? 0) + count)
      }
    } catch (error) {
      throw storeError(error)
    }
    return found
  }

  /** How old a shard's oldest letter is, in milliseconds; 0 when it was taken meanwhile. */
  async #age(shard: string): Promise<number> {
    const { link, subjects, ownership } = this.#options
    // The client's types know this request for streams that can be read from any copy only.
    const oldest = { seq: 1, next_by_subj: subjects.mailsOf(shard) } as unknown as MsgRequest
    const message = await link.manager.streams.getMessage(subjects.stream('mail'), oldest).catch(() => null)
    return message === null ? 0 : Math.max(0, Math.round(ownership.clock.now() - message.time.getTime()))
  }
}
