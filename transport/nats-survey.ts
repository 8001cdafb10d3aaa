/**
 * The survey of a namespace over NATS: its workers, where each crew is, whose mail waits, whose events are not stored yet.
 *
 * Owns: asking the server what waits, and what it has of events.
 * Does not own: the shapes (`runtime/survey.ts`), who lives and owns what (`nats-ownership.ts`).
 *
 * - NSV1 The number of requests is bounded, however many crews there are: one for each of 256 crews whose mail waits, and one
 *   for 500 crews with events, up to 10,000.
 */
import { jetstream, type JetStreamClient, type MsgRequest } from '@nats-io/jetstream'
import type { ShardHead } from '../runtime/journal.js'
import type { ClusterInfo, CrewPlace, Survey } from '../runtime/survey.js'
import { storeError } from './jetstream-content.js'
import type { NatsLink } from './nats-connection.js'
import type { NatsOwnership } from './nats-ownership.js'
import { readSettings } from './nats-settings.js'
import { storedEvents } from './stored-events.js'
import type { Subjects } from './subjects.js'

/** Crews whose oldest letter is looked for. */
const maxAges = 256
/** Crews whose last stored event is looked for. */
const maxEvents = 10_000
const nanos = 1_000_000

/** What a survey needs. */
export interface SurveyOptions {
  readonly link: NatsLink
  readonly subjects: Subjects
  readonly ownership: Pick<NatsOwnership, 'workers' | 'ownerOf' | 'clock'>
}

/** Looks at a namespace as one of its workers. */
export class NatsSurvey implements Survey {
  readonly #options: SurveyOptions
  readonly #client: JetStreamClient

  constructor(options: SurveyOptions) {
    this.#options = options
    this.#client = jetstream(options.link.connection)
  }

  async cluster(): Promise<ClusterInfo> {
    const { link, subjects, ownership } = this.#options
    const { durability, replicas } = await readSettings(link, subjects)
    const refused = await this.#refused()
    return { server: link.version, durability, replicas, refused, workers: ownership.workers() }
  }

  async places(only?: string): Promise<(head: ShardHead) => CrewPlace> {
    const { ownership } = this.#options
    const [letters, behind] = await Promise.all([this.#letters(only), this.#events(only)])
    const ages = new Map<string, number>()
    await Promise.all(
      [...letters.keys()].slice(0, maxAges).map(async (shard) => ages.set(shard, await this.#age(shard))),
    )
    return (head) => ({
      owner: ownership.ownerOf(head.shard, head.crew ?? ''),
      letters: letters.get(head.shard) ?? 0,
      lagMs: ages.get(head.shard) ?? null,
      eventsBehind: behind(head),
    })
  }

  /** Letters that nobody takes. */
  async #refused(): Promise<number> {
    const { link, subjects } = this.#options
    try {
      return (await link.manager.streams.info(subjects.stream('dead'))).state.messages
    } catch (error) {
      throw storeError(error)
    }
  }

  /** How far the event stream is behind a crew's journal, in commits; null where that is not known. */
  async #events(only: string | undefined): Promise<(head: ShardHead) => number | null> {
    const { link, subjects, ownership } = this.#options
    try {
      const { config } = await link.manager.streams.info(subjects.stream('events'))
      const { last, isWhole } = await storedEvents(link, this.#client, subjects, { shard: only, most: maxEvents })
      // What is older than the stream keeps is not missed there.
      const until = config.max_age > 0 ? ownership.clock.now() - config.max_age / nanos : 0
      return ({ shard, lastEvent = 0, storedAt = Number.POSITIVE_INFINITY }) => {
        if (storedAt <= until) return 0
        return isWhole || last.has(shard) ? Math.max(0, lastEvent - (last.get(shard) ?? 0)) : null
      }
    } catch {
      // Without it the rest is still worth telling.
      return () => null
    }
  }

  /** Letters that are stored, by shard. */
  async #letters(only: string | undefined): Promise<ReadonlyMap<string, number>> {
    const { link, subjects } = this.#options
    const found = new Map<string, number>()
    try {
      const filter = { subjects_filter: only === undefined ? subjects.mails() : subjects.mailsOf(only) }
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
