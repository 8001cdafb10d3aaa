/**
 * Events: what the outside may watch, as CloudEvents.
 *
 * Owns: their public form, live fan-out, streams that go on from a cursor.
 * Does not own: what is an event (machines and `commit.ts`), storing them (`journal.ts`).
 *
 * - EV1 A stream from a cursor gives every stored event after it, once, in order, and then the live ones.
 * - EV2 A slow reader loses no stored event: what does not fit in its buffer is read from the store again. Deltas and
 *   progress are best effort.
 * - EV3 A reader that leaves costs nothing and cancels nothing.
 */
import type { Commit } from './commit.js'
import type { LiveEvent } from './dispatcher.js'
import type { Journal } from './journal.js'
import { fromEvents, type PlacedEvent } from './record.js'

/** A CloudEvent 1.0. */
export interface TroupeEvent {
  readonly specversion: '1.0'
  /** `<shard>-<sequence>-<index>`: the cursor. Deltas have ids of their own, which are no cursors. */
  readonly id: string
  /** `/troupe/<shard>/<actor>`. */
  readonly source: string
  /** `troupe.<what>`, e.g. `troupe.tool.called`. */
  readonly type: string
  /** ISO 8601. */
  readonly time: string
  readonly datacontenttype: 'application/json'
  readonly data: Readonly<Record<string, unknown>>
}

/** A stored event's place. */
export interface Cursor {
  readonly sequence: number
  readonly index: number
}

/** Events that a stream keeps for a slow reader before it goes back to the store. */
const maxBuffer = 1_000

/** The public form of a stored event. */
export function toCloudEvent(shard: string, placed: PlacedEvent): TroupeEvent {
  const { type, ...data } = placed.event
  return {
    specversion: '1.0',
    id: `${shard}-${placed.sequence}-${placed.index}`,
    source: `/troupe/${shard}/${placed.from}`,
    type: `troupe.${type}`,
    time: new Date(placed.at).toISOString(),
    datacontenttype: 'application/json',
    data,
  }
}

/**
 * The public form of what passes by. @param count tells two of one effect apart in their ids @param now epoch milliseconds
 */
export function liveToCloudEvent(shard: string, live: LiveEvent, count: number, now: number): TroupeEvent {
  const { agent, run, effect } = live
  const data =
    live.kind === 'delta'
      ? { run, agent, effect, ...live.delta }
      : { run, agent, effect, callId: live.callId, value: live.value }
  return {
    specversion: '1.0',
    id: `${shard}-live-${effect}-${count}`,
    source: `/troupe/${shard}/agent/${agent}`,
    type: live.kind === 'delta' ? 'troupe.model.delta' : 'troupe.tool.progress',
    time: new Date(now).toISOString(),
    datacontenttype: 'application/json',
    data,
  }
}

/** The public form of every message of a traced commit, with the actor that it is for. */
export function messagesToCloudEvents(
  shard: string,
  commit: Commit,
): { readonly to: string; readonly event: TroupeEvent }[] {
  const { sequence, envelope } = commit
  const id = (index: number): string => `${shard}-message-${sequence}-${index}`
  return commit.messages.map(({ from, to, message: { type, ...body }, cause }, index) => ({
    to,
    event: {
      specversion: '1.0',
      id: id(index),
      source: `/troupe/${shard}/${from}`,
      type: 'troupe.message',
      time: new Date(envelope.at).toISOString(),
      datacontenttype: 'application/json',
      data: { to, type, sequence, index, cause: cause === null ? envelope.cause : id(cause), body },
    },
  }))
}

/** Whether an event is the end of a run, or of a crew that is one machine. */
export function isEnd({ event: { type } }: PlacedEvent): boolean {
  return type === 'run.finished' || type === 'machine.finished'
}

/** Whether an event passed by and is stored nowhere: its id is no cursor. */
export function isLive({ type }: TroupeEvent): boolean {
  return type === 'troupe.model.delta' || type === 'troupe.tool.progress'
}

/** Reads a cursor; null for something else. Shard ids may hold `-`, sequences and indexes do not. */
export function parseCursor(text: string): Cursor | null {
  const match = /-(\d{1,15})-(\d{1,9})$/.exec(text)
  return match === null ? null : { sequence: Number(match[1]), index: Number(match[2]) }
}

/** Whether an event lies behind a cursor. */
export function isAfter(placed: PlacedEvent, cursor: Cursor): boolean {
  return placed.sequence > cursor.sequence || (placed.sequence === cursor.sequence && placed.index > cursor.index)
}

interface Subscriber {
  take(events: readonly PlacedEvent[]): void
  show(event: LiveEvent): void
  /** There may be no more to come: the shard stopped, or its worker is closed. */
  wake?(): void
}

/** Fans the events of durable commits out to whoever watches. */
export class EventHub {
  readonly #subscribers = new Map<string, Set<Subscriber>>()
  /** Called with the events of every shard, before anybody else. */
  tap: ((shard: string, events: readonly PlacedEvent[]) => void) | null = null

  publish(shard: string, events: readonly PlacedEvent[]): void {
    this.tap?.(shard, events)
    for (const subscriber of this.#subscribers.get(shard) ?? []) subscriber.take(events)
  }

  show(shard: string, event: LiveEvent): void {
    for (const subscriber of this.#subscribers.get(shard) ?? []) subscriber.show(event)
  }

  /** Lets everybody who watches look whether there is more to come. */
  wake(shard: string): void {
    for (const subscriber of this.#subscribers.get(shard) ?? []) subscriber.wake?.()
  }

  watched(shard: string): boolean {
    return this.#subscribers.has(shard)
  }

  subscribe(shard: string, subscriber: Subscriber): () => void {
    const set = this.#subscribers.get(shard) ?? new Set()
    set.add(subscriber)
    this.#subscribers.set(shard, set)
    return () => {
      set.delete(subscriber)
      if (set.size === 0) this.#subscribers.delete(shard)
    }
  }
}

/** What a stream reads. */
export interface StreamOptions {
  readonly shard: string
  /** Events after this one; `{ sequence: 0, index: -1 }` is the beginning. */
  readonly after: Cursor
  readonly journal: Journal
  readonly hub: EventHub
  /** True for the last event: the stream ends behind it. */
  readonly isLast: (event: PlacedEvent) => boolean
  readonly wants: (event: PlacedEvent) => boolean
  /** Live events to pass on; null for none. */
  readonly wantsLive: ((event: LiveEvent) => boolean) | null
  readonly now: () => number
  /** Why no more will come; the stream rejects with it when it has given what there is. */
  readonly ended?: () => Error | null
  readonly signal?: AbortSignal | undefined
}

/** Stored events after a cursor, then live ones, until the last. */
export async function* streamEvents(options: StreamOptions): AsyncGenerator<TroupeEvent, void, void> {
  const reader = new StreamReader(options)
  try {
    let next = await reader.next()
    while (next !== null) {
      yield next
      next = await reader.next()
    }
  } finally {
    reader.close()
  }
}

function toError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new Error(String(thrown))
}

class StreamReader implements Subscriber {
  readonly #options: StreamOptions
  readonly #unsubscribe: () => void
  readonly #ready: TroupeEvent[] = []
  #buffer: PlacedEvent[] = []
  #cursor: Cursor
  #wake: (() => void) | null = null
  /** The buffer overflowed, or nothing was read yet: the store knows more. */
  #behind = true
  #done = false
  #live = 0

  constructor(options: StreamOptions) {
    this.#options = options
    this.#cursor = options.after
    this.#unsubscribe = options.hub.subscribe(options.shard, this)
    options.signal?.addEventListener('abort', this.#abort)
  }

  readonly #abort = (): void => {
    this.#done = true
    this.#wake?.()
  }

  take(events: readonly PlacedEvent[]): void {
    if (this.#buffer.length + events.length > maxBuffer) {
      this.#buffer = []
      this.#behind = true
    } else {
      this.#buffer.push(...events)
    }
    this.#wake?.()
  }

  show(event: LiveEvent): void {
    if (this.#options.wantsLive === null || !this.#options.wantsLive(event) || this.#ready.length >= maxBuffer) return
    this.#live += 1
    this.#ready.push(liveToCloudEvent(this.#options.shard, event, this.#live, this.#options.now()))
    this.#wake?.()
  }

  wake(): void {
    this.#wake?.()
  }

  async next(): Promise<TroupeEvent | null> {
    for (;;) {
      const event = this.#ready.shift()
      if (event !== undefined) return event
      if (this.#done) return null
      const reason = this.#options.ended?.() ?? null
      if (this.#buffer.length > 0 && !this.#behind) this.#accept(this.#buffer.splice(0))
      else if (this.#behind) await this.#catchUp().catch((error: unknown) => Promise.reject(reason ?? toError(error)))
      else if (reason !== null) throw reason
      else await new Promise<void>((resolve) => (this.#wake = resolve))
      this.#wake = null
    }
  }

  async #catchUp(): Promise<void> {
    this.#behind = false
    const { journal, shard } = this.#options
    for await (const { bytes } of journal.readEvents(shard, Math.max(1, this.#cursor.sequence))) {
      this.#accept(fromEvents(bytes))
      if (this.#done) return
    }
  }

  #accept(events: readonly PlacedEvent[]): void {
    for (const event of events) {
      if (this.#done || !isAfter(event, this.#cursor)) continue
      this.#cursor = { sequence: event.sequence, index: event.index }
      if (this.#options.wants(event)) this.#ready.push(toCloudEvent(this.#options.shard, event))
      if (this.#options.isLast(event)) this.#done = true
    }
  }

  close(): void {
    this.#unsubscribe()
    this.#options.signal?.removeEventListener('abort', this.#abort)
  }
}
