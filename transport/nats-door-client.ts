/**
 * The door from outside: a channel to whichever worker owns a crew, over NATS.
 *
 * A request is asked again, as it is or from where its answers had come to, until somebody has answered it to its end: a
 * worker that dies, a crew that moves and a link that is cut are a pause for whoever waits, and nothing else.
 *
 * Owns: asking, when to ask again and from where, giving up.
 * Does not own: the worker's half (`nats-door.ts`), what a remote runtime makes of it (`runtime/remote-runtime.ts`).
 *
 * - NQ1 A request that was asked again is done once: runs have keys, streams go on behind the last item passed on, and a
 *   command says what it is about.
 * - NQ2 Items come complete and in order, however often the way to them changed. Deltas and progress are best effort.
 * - NQ3 A request ends: with its answer, with `WORKER_MISSING` when nobody has answered for `patienceMs`, or by `close`.
 * - NQ4 A slow reader costs a bounded amount of memory: what does not fit is asked for again when there is room.
 * - NQ5 A request that nobody took is asked again soon, and at no fixed pace: an owner that comes and goes is met in time.
 */
import { randomBytes } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import {
  createInbox,
  errors,
  type Msg,
  type NatsConnection,
  type QueuedIterator,
  type Status,
  type Subscription,
} from '@nats-io/transport-node'
import { type ControlAnswer, controlAnswer, type ControlRequest, readLine, toError } from '../runtime/control-wire.js'
import { TroupeError, toTroupeError } from '../runtime/errors.js'
import { isLive, type TroupeEvent } from '../runtime/events.js'
import type { CrewDetails } from '../runtime/runtime.js'
import type { Channel } from '../runtime/remote-runtime.js'
import { AnswerReader } from './nats-answers.js'
import { natsError, type NatsLink } from './nats-connection.js'
import type { Subjects } from './subjects.js'

/** A worker that has said nothing more for so long is gone, or the link is. It says something every second. */
const silenceMs = 3_000
/**
 * Nobody has taken a request that nobody has said anything to for so long, and up to half as long at random: whoever has
 * the crew now says so at once. Where owners change all the time it must not be asked at the same moment of each change.
 */
const untakenMs = 1_000
/** How long nobody at all may have answered. */
const defaultPatienceMs = 30_000
/** Pause before a request is asked again, and as much again at random: after a failover everybody asks. */
const againMs = 100
/** Bytes of items that wait for a slow reader. */
const maxWaitingBytes = 8 * 1_048_576

/** How to reach the doors of a namespace. */
export interface DoorClientOptions {
  /** JetStream is not needed. */
  readonly link: Pick<NatsLink, 'connection' | 'user' | 'inboxPrefix'>
  readonly subjects: Subjects
  /** Our token in subjects, which the server's permissions may bind. @default the link's user, else a random one */
  readonly client?: string
  /** Gives up when nobody has answered for so long. @default 30_000 */
  readonly patienceMs?: number
}

/**
 * Makes a channel. Its requests reject with what was answered, and with
 * `ENVELOPE_TOO_LARGE` for a request above the server's bound of a message, `WORKER_MISSING`, `NATS_DENIED` for a crew that
 * this client may not reach, `RUNTIME_CLOSED` when the channel or its link was closed.
 */
export function createDoorClient(options: DoorClientOptions): Channel {
  return new DoorClient(options)
}

class DoorClient implements Channel {
  readonly #connection: NatsConnection
  readonly #subjects: Subjects
  readonly #client: string
  readonly #inboxPrefix: string
  readonly #patienceMs: number
  readonly #statuses: QueuedIterator<Status>
  readonly #asked = new Set<Asked>()
  #closed = false

  constructor(options: DoorClientOptions) {
    this.#connection = options.link.connection
    this.#subjects = options.subjects
    this.#client = options.client ?? options.link.user ?? randomBytes(12).toString('hex')
    this.#inboxPrefix = options.link.inboxPrefix
    this.#patienceMs = options.patienceMs ?? defaultPatienceMs
    this.#statuses = this.#connection.status() as QueuedIterator<Status>
    void this.#watch()
  }

  async ask(request: ControlRequest): Promise<unknown> {
    const named = await this.#named(request)
    if (named === null) return null
    const answers = this.stream(named)
    for (;;) {
      const next = await answers.next()
      if (next.done === true) return next.value
    }
  }

  async *stream(request: ControlRequest, signal?: AbortSignal): AsyncGenerator<unknown, unknown, void> {
    const course = new Course(request)
    let heardAt = performance.now()
    let refusal: TroupeError | null = null
    for (;;) {
      const patienceMs = heardAt + this.#patienceMs - performance.now()
      const untaken = untakenMs * (1 + Math.random() / 2)
      const asked = this.#ask(course.request, Math.max(1, Math.min(untaken, patienceMs)))
      const leave = (): void => asked.end()
      signal?.addEventListener('abort', leave)
      try {
        for (let answer = await asked.next(); answer !== null; answer = await asked.next()) {
          if (signal?.aborted === true) return null
          if ('result' in answer) return answer.result
          if ('item' in answer && course.takes(answer.item)) yield answer.item
          if (!('error' in answer)) continue
          refusal = toError(answer.error)
          if (course.isDone(refusal.code)) return null
          if (!course.mayAskAgain(refusal)) throw refusal
        }
      } finally {
        signal?.removeEventListener('abort', leave)
        asked.end()
        this.#asked.delete(asked)
      }
      if (signal?.aborted === true) return null
      if (asked.wasHeard) heardAt = performance.now()
      if (performance.now() - heardAt >= this.#patienceMs) throw this.#missing(request, refusal)
      await delay(againMs * (1 + Math.random()))
      course.again()
    }
  }

  close(): void {
    this.#closed = true
    this.#statuses.stop()
    for (const asked of this.#asked) asked.end(closedError())
  }

  #ask(request: ControlRequest, quietMs: number): Asked {
    if (this.#closed || this.#connection.isClosed()) throw closedError()
    const subject =
      'crew' in request ? this.#subjects.door(this.#client, request.crew) : this.#subjects.questions(this.#client)
    const payload = Buffer.from(JSON.stringify(request))
    // While the link is away its bound is not known; the request is asked again when it is back.
    const bound = this.#connection.info?.max_payload ?? payload.length
    if (payload.length > bound) {
      throw new TroupeError('ENVELOPE_TOO_LARGE', `the request has ${payload.length} bytes, the server takes ${bound}`)
    }
    const asked = new Asked(this.#connection, { subject, payload, inbox: createInbox(this.#inboxPrefix), quietMs })
    this.#asked.add(asked)
    return asked
  }

  /** A cancel without a run means the one that goes on now: asked again, it must not mean the next one. A machine has none. */
  async #named(request: ControlRequest): Promise<ControlRequest | null> {
    if (request.method !== 'cancel' || request.run !== undefined) return request
    const { runs, machine } = (await this.ask({ method: 'show', crew: request.crew })) as CrewDetails
    if (machine !== undefined) return request
    const going = runs.find(({ status }) => status !== 'finished')
    return going === undefined ? null : { ...request, run: going.runId }
  }

  /** What was under way when the link was away may have been lost, and what is not allowed is never answered. */
  async #watch(): Promise<void> {
    for await (const status of this.#statuses) {
      if (status.type === 'reconnect') for (const asked of this.#asked) asked.end()
      if (status.type !== 'error' || !(status.error instanceof errors.PermissionViolationError)) continue
      const { subject } = status.error
      for (const asked of this.#asked) if (asked.subject === subject) asked.end(natsError(status.error, 'the server'))
    }
    this.close()
  }

  /** @param refusal what was said last by one that could not answer */
  #missing(request: ControlRequest, refusal: TroupeError | null): TroupeError {
    const { crew } = 'crew' in request ? request : { crew: null }
    const details = { crew, patienceMs: this.#patienceMs, reason: refusal?.code ?? null }
    const what = crew === null ? 'no worker answers' : `no worker answers for crew ${crew}`
    const why = refusal === null ? '' : `: ${refusal.message}`
    return new TroupeError('WORKER_MISSING', `${what}${why}`, { retryable: true, details, cause: refusal })
  }
}

function closedError(): TroupeError {
  return new TroupeError('RUNTIME_CLOSED', 'the runtime is closed')
}

/** What a request that is asked again says of what it did the first time. */
const gone: Partial<Record<ControlRequest['method'], string>> = {
  remove: 'CREW_UNKNOWN',
  drain: 'WORKER_UNKNOWN',
  replay: 'LETTER_UNKNOWN',
  drop: 'LETTER_UNKNOWN',
  resend: 'LETTER_UNKNOWN',
  discard: 'LETTER_UNKNOWN',
}

/** What is answered with items that have an id of their own. */
const lists: readonly ControlRequest['method'][] = ['list', 'letters', 'refused']

/** How far the answers to a request have come. */
class Course {
  /** What is to be asked now. */
  request: ControlRequest
  /** Ids of a list's items. */
  readonly #passed = new Set<string>()
  #again = false

  constructor(request: ControlRequest) {
    this.request = request
  }

  /** It is asked once more. */
  again(): void {
    this.#again = true
  }

  /** Notes an item. False when it was passed on before. */
  takes(item: unknown): boolean {
    const { request } = this
    if (request.method === 'events' && !isLive(item as TroupeEvent))
      this.request = { ...request, since: (item as TroupeEvent).id }
    if (request.method === 'journal') this.request = { ...request, from: (item as { sequence: number }).sequence + 1 }
    if (!lists.includes(request.method)) return true
    const { id } = item as { id: string }
    if (this.#passed.has(id)) return false
    this.#passed.add(id)
    return true
  }

  /** What was removed, or had to go, when it was asked for the first time is not there any more. */
  isDone(code: string): boolean {
    return this.#again && code === gone[this.request.method]
  }

  /** Whether another worker, or the same one in a moment, may do it. Who was served before is not told that all are busy. */
  mayAskAgain({ code, details, retryable }: TroupeError): boolean {
    if (code === 'SHARD_STOPPED') return details['reason'] === 'SHARD_FENCED'
    if (code === 'MAILBOX_FULL') return this.#again
    if (code === 'STORE_FAILED') return retryable
    return code === 'SHARD_ELSEWHERE' || code === 'SHARD_FENCED' || code === 'RUNTIME_CLOSED'
  }
}

/** A request that was asked once, and what comes back. */
class Asked {
  readonly subject: string
  readonly #subscription: Subscription
  readonly #reader = new AnswerReader()
  #quiet: NodeJS.Timeout
  readonly #waiting: { readonly answer: ControlAnswer; readonly bytes: number }[] = []
  #bytes = 0
  #from: string | null = null
  #failure: TroupeError | null = null
  #ended = false
  #wake = (): void => undefined
  /** Somebody was at it. */
  wasHeard = false

  constructor(
    connection: NatsConnection,
    { subject, payload, inbox, quietMs }: { subject: string; payload: Uint8Array; inbox: string; quietMs: number },
  ) {
    this.subject = subject
    this.#subscription = connection.subscribe(inbox, {
      callback: (error, message) => {
        if (error === null) this.#hear(message)
        else this.end(natsError(error, 'the server'))
      },
    })
    this.#quiet = setTimeout(() => this.end(), quietMs)
    connection.publish(subject, payload, { reply: inbox })
  }

  /** The next answer; null when it is to be asked again. @throws TroupeError why it cannot be. */
  async next(): Promise<ControlAnswer | null> {
    while (this.#waiting.length === 0 && !this.#ended) await new Promise<void>((resolve) => (this.#wake = resolve))
    const next = this.#waiting.shift()
    if (next !== undefined) {
      this.#bytes -= next.bytes
      return next.answer
    }
    if (this.#failure !== null) throw this.#failure
    return null
  }

  /** Listens no more: the worker notices. What has come is still given out. */
  end(failure: TroupeError | null = null): void {
    if (this.#ended) return
    this.#ended = true
    this.#failure = failure
    clearTimeout(this.#quiet)
    this.#subscription.unsubscribe()
    this.#wake()
  }

  #hear(message: Msg): void {
    // The server's own answer when nobody listens at the door.
    if (message.data.length === 0) return this.end()
    // For a moment two workers may believe that it is theirs.
    if (this.#ended || (message.reply ?? '') !== (this.#from ?? message.reply ?? '')) return
    this.#listenOn(message)
    try {
      const read = this.#reader.take(message)
      if (read === 'gap') this.end()
      else if (read !== 'more') this.#take(read.text)
    } catch (error) {
      this.end(toTroupeError(error, 'ENVELOPE_INVALID'))
    }
  }

  /** Somebody has taken it. */
  #listenOn({ reply = '' }: Msg): void {
    if (this.#from !== null) return void this.#quiet.refresh()
    this.#from = reply
    clearTimeout(this.#quiet)
    this.#quiet = setTimeout(() => this.end(), silenceMs)
  }

  #take(text: string): void {
    const answer = readLine(text, controlAnswer, 'an answer')
    if (!('error' in answer)) this.wasHeard = true
    if ('alive' in answer) return
    // A slow reader: what comes now is asked for again, behind what waits already.
    if (this.#waiting.length > 0 && this.#bytes + text.length > maxWaitingBytes) return this.end()
    this.#waiting.push({ answer, bytes: text.length })
    this.#bytes += text.length
    if ('item' in answer) this.#wake()
    else this.end()
  }
}
