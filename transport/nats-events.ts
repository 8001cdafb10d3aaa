/**
 * The event stream over NATS: the events of every shard, stored in one stream for whoever watches from outside.
 *
 * Events of a shard that are there together are one message. One message of a shard is on its way at a time, and many
 * shards at once. Sending the next one before the last one is acknowledged would leave a hole where the link breaks in between: later ones land by the next link, and neither a
 * reader nor the next owner could see that one is missing. So what is in the stream is always a beginning of what the
 * journal has, and the last one of a shard is where whoever owns it goes on.
 *
 * Owns: storing the events of this worker's shards, going on where the stream ends, passing live ones by.
 * Does not own: what an event is (`runtime/events.ts`), reading the stream (`nats-follower.ts`).
 *
 * - NE1 Every stored event of a shard is in the stream, behind all earlier ones of the shard, whatever fails and whoever
 *   owns it. The server stores a message only behind the last one of its shard that its sender knows, so none is there
 *   twice.
 * - NE2 Nobody waits for the stream: `publish` takes at most 10,000 events into memory, over all shards, and what does
 *   not fit is read from the journal again.
 * - NE3 An event that is too large for the server, or that JSON cannot say, is there without its data: it says
 *   `{ truncated: true }`.
 * - NE4 What is older than the stream keeps is not stored again.
 */
import { setTimeout as delay } from 'node:timers/promises'
import {
  DiscardPolicy,
  jetstream,
  JetStreamApiError,
  type JetStreamClient,
  RetentionPolicy,
  StorageType,
  type StreamConfig,
} from '@nats-io/jetstream'
import { errors, headers } from '@nats-io/transport-node'
import { TroupeError } from '../runtime/errors.js'
import {
  type Cursor,
  isAfter,
  liveToCloudEvent,
  parseCursor,
  toCloudEvent,
  type TroupeEvent,
} from '../runtime/events.js'
import type { LiveEvent } from '../runtime/dispatcher.js'
import type { Journal, ShardHead } from '../runtime/journal.js'
import type { Log } from '../runtime/log.js'
import { fromEvents, type PlacedEvent } from '../runtime/record.js'
import { storeError } from './jetstream-content.js'
import { lastEventHeader } from './jetstream-message.js'
import type { NatsLink } from './nats-connection.js'
import { storedEvents } from './stored-events.js'
import type { Subjects } from './subjects.js'

/** Options of `NatsEvents.open`. */
export interface NatsEventsOptions {
  readonly link: NatsLink
  readonly subjects: Subjects
  /** Where events are read again that did not get into the stream. Open as long as this is. */
  readonly journal: Pick<Journal, 'readEvents' | 'refresh'>
  readonly log: Log
  /** Copies in a cluster. @default 1 */
  readonly replicas?: number
  /** How long the stream keeps an event, when this is the first to open it. @default 7 days */
  readonly maxAgeMs?: number
}

/** Events in memory, over all shards. */
export const maxQueued = 10_000
/** Events of one message, and characters of their JSON: below the server's usual limit, whatever they are in UTF-8. */
const maxTogether = 64
const maxCharacters = 256 * 1024
/** Shards that are sent for at once. */
const maxAtOnce = 64
/** Shards whose place in the stream is remembered; another one's is looked up. */
const maxRemembered = 10_000
/** How long the server may take for one event. */
const ackMs = 2_000
/** When a shard is tried again. */
const againMs = 250
const weekMs = 7 * 24 * 3_600_000
const nanos = 1_000_000
const messageTooLarge = 10054

/** A shard's way into the stream. */
interface Lane {
  readonly shard: string
  /** The last event that is in the stream; null when the stream must be asked. */
  cursor: Cursor | null
  /** Number of the message that has it; 0 for none. */
  at: number
  /** Of the journal, events up to this time need not be stored. Epoch milliseconds. */
  until: number
  /** Events behind the cursor, in order. */
  queue: PlacedEvent[]
  /** The journal has events that neither the stream nor the queue has. */
  behind: boolean
  working: boolean
}

/** The stream of events, as the owner of shards sees it. */
export class NatsEvents {
  readonly #options: NatsEventsOptions
  readonly #client: JetStreamClient
  readonly #stream: string
  readonly #maxAgeMs: number
  /** The one that was used last is last. */
  readonly #lanes = new Map<string, Lane>()
  readonly #waiting: Lane[] = []
  readonly #closing = new AbortController()
  /** Ends the wait for an answer, when this is closed. */
  readonly #asked = new Set<(error: TroupeError) => void>()
  #atOnce = 0
  #queued = 0
  #working = 0
  #shown = 0
  #failing = false
  #idle: (() => void)[] = []

  private constructor(options: NatsEventsOptions, maxAgeMs: number) {
    this.#options = options
    this.#maxAgeMs = maxAgeMs
    this.#client = jetstream(options.link.connection, { timeout: ackMs })
    this.#stream = options.subjects.stream('events')
  }

  /**
   * Opens the stream, and makes it when it is not there. One that is there stays as its operator has set it.
   * @throws TroupeError `CONFIG_INVALID` for a stream of that name with other subjects, and what the server refuses.
   */
  static async open(options: NatsEventsOptions): Promise<NatsEvents> {
    const { streams } = options.link.manager
    const maxAgeMs = options.maxAgeMs ?? weekMs
    const wanted: Partial<StreamConfig> & { name: string } = {
      name: options.subjects.stream('events'),
      subjects: [options.subjects.events()],
      retention: RetentionPolicy.Limits,
      discard: DiscardPolicy.Old,
      storage: StorageType.File,
      num_replicas: options.replicas ?? 1,
      max_age: maxAgeMs * nanos,
    }
    try {
      const found = await streams.info(wanted.name).catch(() => null)
      const { config } = found ?? (await streams.add(wanted))
      if (config.subjects?.join() !== wanted.subjects?.join()) {
        throw new TroupeError('CONFIG_INVALID', `the stream ${wanted.name} is there and is not set as it must be`)
      }
      return new NatsEvents(options, config.max_age / nanos)
    } catch (error) {
      throw storeError(error)
    }
  }

  /** Events that wait in memory, at most `maxQueued`. */
  get queued(): number {
    return this.#queued
  }

  /** Takes the events of durable commits of a shard, in order: called by its owner after each. Never waits. */
  publish(shard: string, placed: readonly PlacedEvent[]): void {
    if (this.#closing.signal.aborted || placed.length === 0) return
    const lane = this.#laneOf(shard)
    if (!lane.behind && this.#queued + placed.length > maxQueued) this.#fallBehind(lane)
    if (!lane.behind) {
      lane.queue.push(...placed)
      this.#queued += placed.length
    }
    this.#start(lane)
  }

  /** Stores what the stream does not have of a shard that was taken over, or cut: called by its owner. Never waits. */
  catchUp(shard: string): void {
    if (this.#closing.signal.aborted) return
    const lane = this.#laneOf(shard)
    this.#fallBehind(lane)
    lane.cursor = null
    this.#start(lane)
  }

  /**
   * Stores what the stream does not have of shards that nobody owns: whoever had them may have died before it could. Never
   * rejects.
   * @param heads what the journal knows of them
   */
  async catchUpAll(heads: readonly ShardHead[]): Promise<void> {
    const until = this.#maxAgeMs > 0 ? Date.now() - this.#maxAgeMs : 0
    const known = heads.filter(
      ({ lastEvent, removed, storedAt = Infinity }) => lastEvent !== undefined && !removed && storedAt > until,
    )
    if (known.length === 0 || this.#closing.signal.aborted) return
    try {
      const { link, subjects } = this.#options
      const { last } = await storedEvents(link, this.#client, subjects)
      const behind = known.filter(({ shard, lastEvent }) => lastEvent! > (last.get(shard) ?? 0))
      await Promise.all(behind.map(({ shard }) => this.#catchUpLeft(shard)))
    } catch (error) {
      // Workers look again when one comes or goes, and once more a while later.
      this.#options.log.warn('the event stream could not be looked through', { reason: storeError(error).message })
    }
  }

  /** Where a shard stood when this worker had it, it stands no more. Never rejects. */
  async #catchUpLeft(shard: string): Promise<void> {
    try {
      await this.#options.journal.refresh(shard)
      this.catchUp(shard)
    } catch (error) {
      const { code, message: reason } = storeError(error)
      this.#options.log.warn('the events of a shard cannot be looked for', { shard, code, reason })
    }
  }

  /** Passes a live event by, best effort: it is stored nowhere, and lost while there is no link. */
  show(shard: string, live: LiveEvent): void {
    const { link, subjects } = this.#options
    const event = liveToCloudEvent(shard, live, ++this.#shown, Date.now())
    try {
      link.connection.publish(subjects.live(shard, `agent/${live.agent}`, wordsOf(event)), JSON.stringify(event))
    } catch {
      // A closed link, or too large for the server: nobody is owed it.
    }
  }

  /** Resolves when everything that was given so far is stored, or when this is closed. */
  async flush(): Promise<void> {
    while (this.#working > 0 && !this.#closing.signal.aborted) {
      await new Promise<void>((resolve) => this.#idle.push(resolve))
    }
  }

  /** Ends. What was not stored is stored by the next owner's `catchUp`. */
  async close(): Promise<void> {
    this.#closing.abort()
    for (const giveUp of this.#asked)
      giveUp(new TroupeError('NATS_UNREACHABLE', 'the event stream is closed', { retryable: true }))
    for (const lane of this.#waiting.splice(0)) this.#rest(lane)
    while (this.#working > 0) await new Promise<void>((resolve) => this.#idle.push(resolve))
    this.#tellIdle()
    this.#lanes.clear()
  }

  // Lanes.

  #laneOf(shard: string): Lane {
    // Where nothing is known of a shard the stream is asked.
    const fresh: Lane = { shard, cursor: null, at: 0, until: 0, queue: [], behind: true, working: false }
    const lane = this.#lanes.get(shard) ?? fresh
    this.#lanes.delete(shard)
    this.#lanes.set(shard, lane)
    for (const [oldest, { working }] of this.#lanes) {
      if (this.#lanes.size <= maxRemembered || working) break
      this.#lanes.delete(oldest)
    }
    return lane
  }

  #fallBehind(lane: Lane): void {
    lane.behind = true
    this.#queued -= lane.queue.length
    lane.queue = []
  }

  #start(lane: Lane): void {
    if (lane.working) return
    lane.working = true
    this.#working++
    this.#waiting.push(lane)
    this.#next()
  }

  #next(): void {
    while (this.#atOnce < maxAtOnce) {
      const lane = this.#waiting.shift()
      if (lane === undefined) return
      this.#atOnce++
      void this.#work(lane)
    }
  }

  #rest(lane: Lane): void {
    lane.working = false
    this.#working--
    if (this.#working === 0) this.#tellIdle()
  }

  #tellIdle(): void {
    for (const resolve of this.#idle.splice(0)) resolve()
  }

  /** Brings a shard up to date. Ends early when this is closed, and for a shard whose journal cannot be read. */
  async #work(lane: Lane): Promise<void> {
    let isReadable = true
    while (isReadable && (lane.behind || lane.queue.length > 0) && !this.#closing.signal.aborted) {
      try {
        await this.#advance(lane)
      } catch (error) {
        isReadable = await this.#failed(lane, storeError(error))
      }
    }
    // Without a wait since the last look: what comes from here on starts it anew.
    this.#atOnce--
    this.#rest(lane)
    this.#next()
  }

  /** Waits before the next try; false when there is to be none before something new is published. */
  async #failed(lane: Lane, { code, message: reason }: TroupeError): Promise<boolean> {
    // Whether it landed is not known, and the server may have lost more than this one.
    this.#fallBehind(lane)
    lane.cursor = null
    const { log } = this.#options
    const { signal } = this.#closing
    if (signal.aborted) return false
    if (code.startsWith('JOURNAL_')) {
      log.error('the events of a shard cannot be read', { shard: lane.shard, code, reason })
      return false
    }
    if (!this.#failing) log.warn('events cannot be stored', { code, reason })
    this.#failing = true
    await delay(againMs, undefined, { signal, ref: false }).catch(() => undefined)
    return true
  }

  async #advance(lane: Lane): Promise<void> {
    if (lane.cursor === null) await this.#find(lane)
    if (lane.behind) {
      // What is published from here on is queued, and passed over if the journal had it already.
      lane.behind = false
      const gathered: PlacedEvent[] = []
      for await (const { bytes } of this.#options.journal.readEvents(lane.shard, Math.max(1, lane.cursor!.sequence))) {
        gathered.push(...fromEvents(bytes))
        if (gathered.length >= maxTogether) await this.#pass(lane, gathered.splice(0), lane.until)
      }
      await this.#pass(lane, gathered, lane.until)
      return
    }
    const placed = lane.queue.slice(0, endOfCommit(lane.queue))
    await this.#pass(lane, placed)
    if (lane.queue[0] !== placed[0]) return
    lane.queue.splice(0, placed.length)
    this.#queued -= placed.length
  }

  /** Where the stream ends for a shard. */
  async #find(lane: Lane): Promise<void> {
    const { link, subjects } = this.#options
    const asked = link.manager.streams.getMessage(this.#stream, { last_by_subj: subjects.events(lane.shard) })
    const message = await this.#answered(asked)
    const last = placeIn(message)
    lane.at = message?.seq ?? 0
    lane.until = this.#maxAgeMs > 0 ? Date.now() - this.#maxAgeMs : 0
    if (last === null || (await this.#isInJournal(lane.shard, last))) lane.cursor = last ?? beginning
    else {
      // The journal was cut before this one: its next commits have numbers that were there before, and are later.
      lane.until = Math.max(lane.until, last.at)
      lane.cursor = beginning
    }
  }

  async #isInJournal(shard: string, last: Place): Promise<boolean> {
    for await (const { bytes } of this.#options.journal.readEvents(shard, last.sequence)) {
      const isSame = ({ sequence, index, at }: Place): boolean =>
        sequence === last.sequence && index === last.index && at === last.at
      return fromEvents(bytes).some(isSame)
    }
    return false
  }

  /** @param until events up to this time are passed over */
  async #pass(lane: Lane, all: readonly PlacedEvent[], until = 0): Promise<void> {
    for (let rest = all; rest.length > 0; ) {
      this.#closing.signal.throwIfAborted()
      const { cursor } = lane
      if (cursor === null) return
      const wanted = rest.filter((placed) => placed.at > until && isAfter(placed, cursor))
      const sent = wanted.length === 0 ? 0 : await this.#send(lane, wanted)
      const last = sent === wanted.length ? rest.at(-1)! : wanted[sent - 1]!
      rest = rest.slice(rest.indexOf(last) + 1)
      // Somebody may have said meanwhile that it is not known any more.
      if (lane.cursor !== null && isAfter(last, lane.cursor)) {
        lane.cursor = { sequence: last.sequence, index: last.index }
      }
    }
  }

  /** Stores as many of these events as one message takes, at least one. Gives their number. */
  async #send(lane: Lane, placed: readonly PlacedEvent[]): Promise<number> {
    const texts: string[] = []
    let characters = 0
    for (const each of placed.slice(0, maxTogether)) {
      const text = textOf(toCloudEvent(lane.shard, each))
      characters += text.length
      if (texts.length > 0 && characters > maxCharacters) break
      texts.push(text)
    }
    const sent = await this.#store(lane, texts, wholeUntil(placed, texts.length)).catch((error: unknown) => {
      if (!isUnsendable(error)) throw error
      const text = texts.length > 1 ? texts[0]! : JSON.stringify(truncated(toCloudEvent(lane.shard, placed[0]!)))
      return this.#store(lane, [text], wholeUntil(placed, 1))
    })
    if (this.#failing) this.#options.log.info('events are stored again')
    this.#failing = false
    return sent
  }

  /**
   * Stores one message behind the last one of its shard, and nowhere else: another owner may have been here.
   * @param until the last commit all of whose events are stored then
   */
  async #store(lane: Lane, texts: readonly string[], until: number): Promise<number> {
    const subject = this.#options.subjects.events(lane.shard)
    const head = headers()
    head.set(lastEventHeader, String(until))
    const options = { headers: head, expect: { lastSubjectSequence: lane.at }, timeout: ackMs }
    const { seq } = await this.#answered(this.#client.publish(subject, `[${texts.join(',')}]`, options))
    lane.at = seq
    return texts.length
  }

  /** An answer of the server, or at once an error when this is closed. */
  async #answered<T>(answer: Promise<T>): Promise<T> {
    let giveUp: (error: TroupeError) => void = () => undefined
    const lost = new Promise<never>((_resolve, reject) => (giveUp = reject))
    this.#asked.add(giveUp)
    try {
      return await Promise.race([answer, lost])
    } finally {
      this.#asked.delete(giveUp)
    }
  }
}

/** Where and when an event happened. */
type Place = Pick<PlacedEvent, 'sequence' | 'index' | 'at'>

const beginning: Cursor = { sequence: 0, index: -1 }

/** How many events to take so that no commit is torn, at least about as many as go into one message. */
function endOfCommit(queue: readonly PlacedEvent[]): number {
  const end = queue.findIndex(({ sequence }, index) => index >= maxTogether && sequence !== queue[index - 1]!.sequence)
  return end === -1 ? queue.length : end
}

/** The last commit that is whole when so many of these events are stored; they end with a whole one. */
function wholeUntil(placed: readonly PlacedEvent[], count: number): number {
  const { sequence } = placed[count - 1]!
  return placed[count]?.sequence === sequence ? sequence - 1 : sequence
}

/** The words of a CloudEvent's type behind `troupe.`. */
function wordsOf({ type }: TroupeEvent): string {
  return type.slice(type.indexOf('.') + 1)
}

function textOf(event: TroupeEvent): string {
  try {
    return JSON.stringify(event)
  } catch {
    return JSON.stringify(truncated(event))
  }
}

function truncated(event: TroupeEvent): TroupeEvent {
  return { ...event, data: { truncated: true } }
}

/** Too large for the client, which knows the server's limit, or for the stream. */
function isUnsendable(error: unknown): boolean {
  return (
    error instanceof errors.InvalidArgumentError ||
    (error instanceof JetStreamApiError && error.code === messageTooLarge)
  )
}

/** The place of the last event in a message; null when it holds none. */
function placeIn(message: { json<T>(): T } | null): Place | null {
  try {
    const event = message?.json<readonly TroupeEvent[]>().at(-1)
    const cursor = event === undefined ? null : parseCursor(event.id)
    return event === undefined || cursor === null ? null : { ...cursor, at: Date.parse(event.time) }
  } catch {
    return null
  }
}
