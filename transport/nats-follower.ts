/**
 * Following the event stream over NATS, from anywhere and for as long as one likes.
 *
 * Owns: reading the stream in order, going on after a lost link or a restarted server, live events beside it.
 * Does not own: what is in the stream (`nats-events.ts`), how events are shown.
 *
 * - NF1 Every event of the stream that the filter names comes, in the stream's order, from where it was asked for;
 *   whatever happens to links and servers, none is left out while the stream keeps it.
 * - NF2 An event that is in the stream twice comes once, unless 10,000 others came in between.
 * - NF3 A slow reader holds at most some thousand events in memory; live ones that do not fit are lost.
 * - NF4 Whoever goes on from the number of any event that came misses none behind it.
 */
import { setTimeout as delay } from 'node:timers/promises'
import {
  AckPolicy,
  type ConsumerMessages,
  DeliverPolicy,
  jetstream,
  JetStreamApiCodes,
  JetStreamApiError,
  type JsMsg,
} from '@nats-io/jetstream'
import type { Msg, Subscription } from '@nats-io/transport-node'
import { z } from 'zod'
import { TroupeError } from '../runtime/errors.js'
import type { TroupeEvent } from '../runtime/events.js'
import { Recent } from '../runtime/recent.js'
import { storeError } from './jetstream-content.js'
import { natsError, type NatsLink, watchLink } from './nats-connection.js'
import { isMatch, type Subjects } from './subjects.js'

/** What to follow. */
export interface FollowOptions {
  readonly link: NatsLink
  readonly subjects: Subjects
  /** A filter below `event.`: the id of a shard, `*.agent.>`, `q3.agent.writer.model.replied`. @default everything */
  readonly filter?: string | undefined
  /**
   * Where to begin: behind this number of the stream; at this time, in ISO 8601; or `'all'` that the stream has.
   * @default only what comes from now on
   */
  readonly since?: number | string | undefined
  /** Live events too, which are stored nowhere. @default false */
  readonly live?: boolean | undefined
  /** Traced messages between actors too, of workers that trace: of the actors that the filter names. @default false */
  readonly messages?: boolean | undefined
  /** Ends it, without an error. */
  readonly signal?: AbortSignal | undefined
}

/** An event and its place in the stream. */
export interface FollowedEvent {
  readonly event: TroupeEvent
  /**
   * The number of the stream from which `since` goes on and misses nothing; null for a live event. Of several events in one
   * message only the last has the message's own: from the others on the message comes again.
   */
  readonly sequence: number | null
}

/** Events that wait for a slow reader, and messages that are on their way to it. */
const maxReady = 500
const maxMessages = 100
/** Ids that are remembered. */
const maxSeen = 10_000
/** A request for more lasts so long; a server that stays silent for twice half of it is asked anew. */
const expiresMs = 4_000
const againMs = 250
/** A stream that does not answer at the start is asked again for so long. */
const startMs = 20_000

const cloudEvent = z.object({
  specversion: z.literal('1.0'),
  id: z.string(),
  source: z.string(),
  type: z.string(),
  time: z.string(),
  datacontenttype: z.literal('application/json'),
  // Whatever is in it: a schema of a record would copy it.
  data: z.custom<TroupeEvent['data']>((data) => typeof data === 'object' && data !== null && !Array.isArray(data)),
})

/**
 * Follows the stream until `signal` ends it, or whoever reads leaves.
 * @throws TroupeError `ID_INVALID` for a filter that is none, `INPUT_INVALID` for a `since` that is none,
 * `CONFIG_INVALID` where there is no stream of events, `NATS_DENIED`, `NATS_UNREACHABLE` when the connection is closed,
 * and what the server refuses at the start; `STORE_FAILED` when the
 * stream does not answer for 20 s.
 */
export async function* followEvents(options: FollowOptions): AsyncGenerator<FollowedEvent, void, void> {
  const follower = new Follower(options)
  try {
    await follower.start()
    for (let ready = await follower.next(); ready !== null; ready = await follower.next()) {
      for (const each of ready) {
        if (follower.isClosed) return
        yield each
      }
    }
  } finally {
    follower.close()
  }
}

class Follower {
  readonly #options: FollowOptions
  readonly #stream: string
  readonly #filter: string
  readonly #closing = new AbortController()
  #ready: FollowedEvent[] = []
  readonly #seen = new Recent<true>(maxSeen)
  /** The number of the stream that is asked for next. */
  #at = 1
  #error: TroupeError | null = null
  #wake: () => void = () => undefined
  #room: () => void = () => undefined
  #messages: ConsumerMessages | null = null
  readonly #passing: Subscription[] = []
  #stopWatching: () => void = () => undefined

  constructor(options: FollowOptions) {
    this.#options = options
    this.#stream = options.subjects.stream('events')
    this.#filter = options.subjects.followed('event', options.filter)
  }

  async start(): Promise<void> {
    const { subjects, filter, live, messages, signal } = this.#options
    if (signal?.aborted === true) this.#stop()
    signal?.addEventListener('abort', this.#stop)
    if (live === true) this.#watch(subjects.followed('live', filter))
    if (messages === true) this.#hear(subjects.messages(filter))
    this.#at = await this.#beginInTime()
    this.#heed()
    void this.#read()
  }

  /** A stream whose leader is being chosen does not answer: that is waited for. */
  async #beginInTime(): Promise<number> {
    for (const until = performance.now() + startMs; ; ) {
      try {
        return await this.#begin()
      } catch (error) {
        const known = startError(error, this.#stream)
        const { aborted } = this.#closing.signal
        if (known.code !== 'STORE_FAILED' || aborted || performance.now() > until) throw known
        await delay(againMs)
      }
    }
  }

  /** Hears live events, and lets those who could show some know that somebody does. */
  #watch(subject: string): void {
    const [first = '*'] = subject.split('.').slice(3)
    const shard = first === '>' ? '*' : first
    this.#hear(subject)
    this.#hear(this.#options.subjects.watch(shard))
  }

  /** Takes what passes by, and is stored nowhere. */
  #hear(subject: string): void {
    const callback = (error: Error | null, message: Msg): void => {
      if (error !== null) this.#fail(natsError(error, 'NATS'))
      else if (this.#ready.length < maxReady) for (const event of eventsIn(message)) this.#take(event, null)
    }
    this.#passing.push(this.#options.link.connection.subscribe(subject, { callback }))
  }

  /** The first number of the stream that is wanted. */
  async #begin(): Promise<number> {
    const { since, link } = this.#options
    const { state } = await link.manager.streams.info(this.#stream)
    if (since === undefined) return state.last_seq + 1
    if (since === 'all') return 1
    if (typeof since === 'number') {
      if (Number.isSafeInteger(since) && since >= 0) return since + 1
    } else if (!Number.isNaN(Date.parse(since))) return this.#numberAt(new Date(since))
    throw new TroupeError('INPUT_INVALID', `neither a number of the stream, nor a time, nor 'all': ${since}`)
  }

  /** The number of the first message that was stored at a time or later: a consumer says where it would begin. */
  async #numberAt(time: Date): Promise<number> {
    const { consumers } = this.#options.link.manager
    const { name, delivered } = await consumers.add(this.#stream, {
      ack_policy: AckPolicy.None,
      deliver_policy: DeliverPolicy.StartTime,
      opt_start_time: time.toISOString(),
      mem_storage: true,
      num_replicas: 1,
    })
    consumers.delete(this.#stream, name).catch(() => undefined)
    return delivered.stream_seq + 1
  }

  /**
   * After each reconnect the stream is asked anew. The library would go on with the consumer that it had, and not notice
   * that the last messages before the silence went into a dead link.
   */
  #heed(): void {
    this.#stopWatching = watchLink(this.#options.link, (what) => {
      if (what === 'back') void this.#messages?.close()
      if (what === 'closed') this.#fail(new TroupeError('NATS_UNREACHABLE', 'the connection to NATS is closed'))
    })
  }

  async #read(): Promise<void> {
    const { signal } = this.#closing
    while (!signal.aborted) {
      try {
        await this.#consume()
      } catch (error) {
        const known = storeError(error)
        if (known.code === 'NATS_DENIED') this.#fail(known)
      }
      if (!signal.aborted) await delay(againMs, undefined, { signal, ref: false }).catch(() => undefined)
    }
  }

  async #consume(): Promise<void> {
    const { manager, connection } = this.#options.link
    const { state } = await manager.streams.info(this.#stream)
    // A server that lost the end of its stream counts from there.
    this.#at = Math.min(this.#at, state.last_seq + 1)
    const consumer = await jetstream(connection).consumers.get(this.#stream, {
      filter_subjects: this.#options.subjects.eventsOf(this.#filter),
      opt_start_seq: this.#at,
    })
    this.#messages = await consumer.consume({ max_messages: maxMessages, expires: expiresMs })
    try {
      if (this.#closing.signal.aborted) return
      for await (const message of this.#messages) {
        if (this.#closing.signal.aborted) return
        this.#accept(message)
        if (this.#ready.length >= maxReady) await this.#roomAgain()
      }
    } finally {
      this.#messages = null
      // Nobody waits for a server that may be away: the consumer goes by itself, too.
      consumer.delete().catch(() => undefined)
    }
  }

  #accept(message: JsMsg): void {
    const found = eventsIn(message)
    const events = this.#options.filter === undefined ? found : found.filter((event) => this.#isWanted(event))
    const { seq } = message
    for (const [index, event] of events.entries()) this.#take(event, index < events.length - 1 ? seq - 1 : seq)
    this.#at = seq + 1
  }

  async #roomAgain(): Promise<void> {
    while (this.#ready.length >= maxReady && !this.#closing.signal.aborted) {
      await new Promise<void>((resolve) => (this.#room = resolve))
    }
  }

  #isWanted({ source, type }: TroupeEvent): boolean {
    const [shard = '', ...actor] = source.split('/').slice(2)
    try {
      const name = this.#options.subjects.event(shard, actor.join('/'), type.slice(type.indexOf('.') + 1))
      return isMatch(this.#filter, name)
    } catch {
      return false
    }
  }

  #take(event: TroupeEvent, sequence: number | null): void {
    if (this.#closing.signal.aborted) return
    if (sequence !== null) {
      if (this.#seen.has(event.id)) return
      this.#seen.set(event.id, true)
    }
    this.#ready.push({ event, sequence })
    this.#wake()
  }

  /** Ended without an error. */
  get isClosed(): boolean {
    return this.#closing.signal.aborted && this.#error === null
  }

  /** What came since the last time; null at the end. */
  async next(): Promise<readonly FollowedEvent[] | null> {
    for (;;) {
      if (this.#error !== null) throw this.#error
      if (this.#closing.signal.aborted) return null
      if (this.#ready.length > 0) {
        const ready = this.#ready
        this.#ready = []
        this.#room()
        return ready
      }
      await new Promise<void>((resolve) => (this.#wake = resolve))
    }
  }

  #fail(error: TroupeError): void {
    this.#error ??= error
    this.#stop()
  }

  readonly #stop = (): void => {
    this.#closing.abort()
    void this.#messages?.close()
    this.#wake()
    this.#room()
  }

  close(): void {
    this.#options.signal?.removeEventListener('abort', this.#stop)
    this.#stop()
    this.#stopWatching()
    for (const subscription of this.#passing) subscription.unsubscribe()
  }
}

function startError(error: unknown, stream: string): TroupeError {
  const isMissing = error instanceof JetStreamApiError && error.code === Number(JetStreamApiCodes.StreamNotFound)
  if (!isMissing) return storeError(error)
  return new TroupeError('CONFIG_INVALID', `there is no stream ${stream}: no worker of this namespace has run yet`)
}

/** The events of a message: what is none of ours is passed over. */
function eventsIn(message: Pick<Msg, 'json'>): TroupeEvent[] {
  try {
    const found = message.json<unknown>()
    const events: TroupeEvent[] = []
    for (const each of Array.isArray(found) ? found : [found]) {
      const { data } = cloudEvent.safeParse(each)
      if (data !== undefined) events.push(data)
    }
    return events
  } catch {
    return []
  }
}
