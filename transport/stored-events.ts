/**
 * What the event stream has: of each shard the last commit all of whose events are in it.
 *
 * Owns: looking through the stream.
 * Does not own: storing events (`nats-events.ts`), what the journal has of them.
 *
 * - SEV1 A look costs one request for each 500 shards, and three more.
 */
import { DeliverPolicy, type JetStreamClient } from '@nats-io/jetstream'
import { lastEventOf } from './jetstream-message.js'
import type { NatsLink } from './nats-connection.js'
import { storedMessages } from './stored-messages.js'
import type { Subjects } from './subjects.js'

/** Which shards. */
export interface EventsWanted {
  /** The only one. @default all */
  readonly shard?: string | undefined
  /** No more of them. @default all */
  readonly most?: number
}

/** What was found. */
export interface StoredEvents {
  /** Commits, by shard. */
  readonly last: ReadonlyMap<string, number>
  /** A shard that is not named has nothing in the stream. False when there were more of them than wanted. */
  readonly isWhole: boolean
}

/** Looks through the stream. @throws TroupeError as `storedMessages`. */
export async function storedEvents(
  link: NatsLink,
  client: JetStreamClient,
  subjects: Subjects,
  { shard, most = Number.POSITIVE_INFINITY }: EventsWanted = {},
): Promise<StoredEvents> {
  const last = new Map<string, number>()
  const wanted = {
    deliver_policy: DeliverPolicy.LastPerSubject,
    filter_subject: subjects.events(shard),
    headers_only: true,
  }
  for await (const message of storedMessages(link, client, subjects.stream('events'), wanted)) {
    if (last.size >= most) return { last, isWhole: false }
    last.set(subjects.shardOf(message.subject), lastEventOf(message) ?? 0)
  }
  return { last, isWhole: true }
}
