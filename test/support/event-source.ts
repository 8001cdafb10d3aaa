/**
 * Shards that make events: commits in a memory journal, handed to a publisher as their owner would.
 */
import type { TroupeEvent } from '../../runtime/events.js'
import { encode } from '../../runtime/codec.js'
import type { Journal } from '../../runtime/journal.js'
import { fromEvents, type PlacedEvent } from '../../runtime/record.js'
import { createMemoryJournal } from '../../transport/memory-journal.js'
import type { NatsEvents } from '../../transport/nats-events.js'
import { type FollowedEvent, followEvents, type FollowOptions } from '../../transport/nats-follower.js'
import { appendNext } from '../conformance/journal.js'

/** Options of `EventSource.commit`. */
export interface CommitOptions {
  /** Events of the commit. @default 2 */
  readonly count?: number
  readonly at?: number
  readonly from?: string
  readonly type?: string
  readonly data?: object
}

/** Commits with events. */
export class EventSource {
  readonly journal: Journal
  /** Ids of all events of each shard, in order. */
  readonly ids = new Map<string, string[]>()

  private constructor(journal: Journal) {
    this.journal = journal
  }

  /** @param journal closed; a memory when none is given */
  static async open(journal: Journal = createMemoryJournal()): Promise<EventSource> {
    await journal.open()
    return new EventSource(journal)
  }

  /** Appends a commit, and gives its events to those who publish them. */
  async commit(shard: string, options: CommitOptions, ...publishers: readonly NatsEvents[]): Promise<PlacedEvent[]> {
    const { count = 2, at = Date.now(), from = 'agent/writer', type = 'model.replied', data = {} } = options
    const sequence = (await this.journal.head(shard)).sequence + 1
    const events = Array.from({ length: count }, (_, n) => [from, { type, n, ...data }])
    const record = await appendNext(this.journal, shard, `${sequence}`, { events: encode([[sequence, at, events]]) })
    const placed = fromEvents(record.events!)
    const known = this.ids.get(shard) ?? []
    this.ids.set(shard, [...known, ...placed.map(({ index }) => `${shard}-${sequence}-${index}`)])
    for (const publisher of publishers) publisher.publish(shard, placed)
    return placed
  }

  /** Ids of all events, by shard. */
  get expected(): Record<string, string[]> {
    return Object.fromEntries(this.ids)
  }
}

/** Events of a stream until there are so many. Fails when they do not come. */
export async function take(options: FollowOptions, count: number, timeoutMs = 20_000): Promise<FollowedEvent[]> {
  const all: FollowedEvent[] = []
  const signal = AbortSignal.timeout(timeoutMs)
  if (count === 0) return all
  for await (const each of followEvents({ ...options, signal })) {
    all.push(each)
    if (all.length === count) return all
  }
  throw new Error(`${all.length} of ${count} events came: ${all.map(({ event }) => event.id).join(' ')}`)
}

/** Everything that is in the stream, as it is stored: duplicates too. */
export async function stored({ link, subjects }: FollowOptions): Promise<TroupeEvent[]> {
  const name = subjects.stream('events')
  const { state } = await link.manager.streams.info(name)
  const all: TroupeEvent[] = []
  for (let seq = state.first_seq; seq <= state.last_seq && state.messages > 0; seq++) {
    const message = await link.manager.streams.getMessage(name, { seq })
    if (message !== null) all.push(...[message.json<TroupeEvent | TroupeEvent[]>()].flat())
  }
  return all
}

/** Ids by shard, in the order in which they came first; and how many came again. */
export function byShard(events: readonly TroupeEvent[]): { ids: Record<string, string[]>; twice: number } {
  const ids = new Map<string, Set<string>>()
  for (const { id, source } of events) {
    const shard = source.split('/')[2]!
    ids.set(shard, (ids.get(shard) ?? new Set()).add(id))
  }
  const found = Object.fromEntries([...ids].map(([shard, set]) => [shard, [...set]]))
  return { ids: found, twice: events.length - Object.values(found).flat().length }
}
