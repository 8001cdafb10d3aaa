/**
 * The door: where clients reach the crews of a namespace over NATS. This is the worker's half.
 *
 * A request is one message with a reply subject, and its answers come there; they are those of the control socket. Each
 * has a reply subject of its own, to which nobody needs to reply: when the client does not listen any more, because it
 * left or died, the server tells us there that nobody has got the answer.
 *
 * Owns: taking requests, who of the workers answers, sending answers, noticing that nobody wants them.
 * Does not own: the shapes (`runtime/control-wire.ts`), what a request does (`runtime/control-answers.ts`), the client's
 * half (`nats-door-client.ts`), which worker owns a shard.
 *
 * - ND1 A request about a crew is answered by the worker that owns it; the others are silent.
 * - ND2 Crew and client are those of the subject: a request that names another crew is refused.
 * - ND3 Nothing that comes, however malformed, large or many, harms the worker; it is refused and counted.
 * - ND4 Answers go to the client's own inbox and nowhere else: nobody writes where only workers may through the door.
 * - ND5 Work for a client that does not listen any more ends within three seconds.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { createInbox, type Msg, type NatsConnection, type Subscription } from '@nats-io/transport-node'
import { type ControlRequest, controlRequest, maxRequestBytes, readLine, tooLong } from '../runtime/control-wire.js'
import { crewVersion, type CrewVersion } from '../runtime/crew-version.js'
import { checkId } from '../runtime/envelope.js'
import { TroupeError, toTroupeError } from '../runtime/errors.js'
import type { Log } from '../runtime/log.js'
import { partBytes, partsOf } from './nats-answers.js'
import { natsError, type NatsLink } from './nats-connection.js'
import type { Subjects } from './subjects.js'

/** Requests under way at once. */
const maxRequests = 256
/** How often it is looked who was told nothing since: of what is begun the client hears then, later at every fourth look. */
const lookMs = 250
const looksPerAlive = 4
/** How long closing waits for the server, twice. */
const closeMs = 500
/** Who of the workers answers a question that each of them could. */
const queue = 'workers'

/** What a door needs. */
export interface DoorOptions {
  /** JetStream is not needed. */
  readonly link: Pick<NatsLink, 'connection' | 'inboxPrefix'>
  readonly subjects: Subjects
  /**
   * Does what is asked, and yields its answers as `answerRequest` does. The signal says that nobody wants them any more.
   * @param client who asks: a token of the subject, which the server's permissions bind
   */
  readonly answer: (request: ControlRequest, signal: AbortSignal, client: string) => AsyncIterable<object>
  /**
   * Whether this worker is the one that answers for a shard.
   * @param crew what a new id is to run, when the request says so
   */
  readonly owns: (shard: string, crew: CrewVersion | undefined) => boolean | Promise<boolean>
  readonly log: Log
  /** Requests under way at once; above it they are `MAILBOX_FULL`. @default 256 */
  readonly maxRequests?: number
}

/** An open door. */
export interface Door {
  /** Requests under way. */
  readonly underWay: number
  /** Requests that were refused before anything was done for them. */
  readonly refused: number
  /** Takes no more requests, and sends whoever waits to the next worker. Takes at most a second. */
  close(): Promise<void>
}

/** Opens the door of a worker. Resolves when requests reach it. @throws TroupeError `NATS_DENIED` when none can. */
export async function openDoor(options: DoorOptions): Promise<Door> {
  const door = new NatsDoor(options)
  await options.link.connection.flush()
  if (door.denied === null) return door
  await door.close()
  throw door.denied
}

class NatsDoor implements Door {
  readonly #options: DoorOptions
  readonly #connection: NatsConnection
  readonly #subscriptions: readonly Subscription[]
  /** Where the server tells that an answer reached nobody. */
  readonly #inbox: string
  readonly #askers = new Map<string, Asker>()
  readonly #alive: NodeJS.Timeout
  #refused = 0
  #closed = false
  /** Why it does not hear what is asked. */
  denied: TroupeError | null = null

  constructor(options: DoorOptions) {
    this.#options = options
    this.#connection = options.link.connection
    this.#inbox = createInbox(options.link.inboxPrefix)
    const { subjects } = options
    this.#subscriptions = [
      this.#subscribe(`${this.#inbox}.*`, undefined, ({ subject }) => this.#askers.get(tokenOf(subject))?.leave()),
      this.#subscribe(subjects.doors(), undefined, (message) => {
        const [client, shard] = subjects.partsOfDoor(message.subject)
        this.#take(message, client, shard)
      }),
      this.#subscribe(subjects.questions(), queue, (message) => this.#take(message, tokenOf(message.subject), null)),
    ]
    this.#alive = setInterval(() => {
      for (const asker of this.#askers.values()) asker.sayAlive()
    }, lookMs).unref()
  }

  get underWay(): number {
    return this.#askers.size
  }

  get refused(): number {
    return this.#refused
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    clearInterval(this.#alive)
    const [left, ...doors] = this.#subscriptions
    await inTime(Promise.all(doors.map((each) => each.drain())))
    const elsewhere = new TroupeError('SHARD_ELSEWHERE', 'this worker leaves', { retryable: true })
    for (const asker of this.#askers.values()) {
      void asker.send({ error: elsewhere.toRecord() })
      asker.leave()
    }
    await inTime(this.#connection.flush())
    left?.unsubscribe()
  }

  #subscribe(subject: string, group: string | undefined, take: (message: Msg) => void): Subscription {
    return this.#connection.subscribe(subject, {
      ...(group === undefined ? {} : { queue: group }),
      callback: (error, message) => {
        if (error === null) return take(message)
        this.denied ??= natsError(error, 'the server')
        this.#options.log.error('the door is shut', { subject, reason: error.message })
      },
    })
  }

  /** @param shard null for a question about the whole namespace */
  #take(message: Msg, client: string, shard: string | null): void {
    this.#serve(message, client, shard).catch((error: unknown) => {
      // Whoever asked hears nothing, and asks again.
      this.#options.log.warn('a request was dropped', {
        client,
        shard,
        reason: toTroupeError(error, 'STORE_FAILED').message,
      })
    })
  }

  async #serve(message: Msg, client: string, shard: string | null): Promise<void> {
    const reply = message.reply ?? ''
    if (!isInboxOf(client, reply) || !isId(client) || !isId(shard ?? client))
      return this.#refuse(client, shard, 'an id that is none, or a reply subject that is no inbox of the client')
    const request = readRequest(message, shard)
    const crew = request instanceof TroupeError ? undefined : crewOf(request)
    if (shard !== null && !(await this.#options.owns(shard, crew))) return
    const token = randomUUID()
    const asker = new Asker(this.#connection, reply, `${this.#inbox}.${token}`)
    const problem = request instanceof TroupeError ? request : this.#whyNot()
    if (problem !== null) {
      this.#refuse(client, shard, problem.message)
      return asker.send({ error: problem.toRecord() })
    }
    this.#askers.set(token, asker)
    try {
      await asker.answer(this.#options.answer(request as ControlRequest, asker.signal, client))
    } finally {
      this.#askers.delete(token)
    }
  }

  #whyNot(): TroupeError | null {
    const bound = this.#options.maxRequests ?? maxRequests
    if (this.#closed) return new TroupeError('SHARD_ELSEWHERE', 'this worker leaves', { retryable: true })
    if (this.#askers.size < bound) return null
    return new TroupeError('MAILBOX_FULL', `${bound} requests are under way at this worker`, { retryable: true })
  }

  #refuse(client: string, shard: string | null, reason: string): void {
    this.#refused += 1
    this.#options.log.debug('a request was refused', { client, shard, reason })
  }
}

/** Who waits for the answers to one request. */
class Asker {
  readonly #connection: NatsConnection
  readonly #to: string
  readonly #reply: string
  readonly #left = new AbortController()
  #number = 0
  #unflushed = 0
  #sending = false
  /** Looks since something was said. */
  #quietLooks = 0

  constructor(connection: NatsConnection, to: string, reply: string) {
    this.#connection = connection
    this.#to = to
    this.#reply = reply
  }

  /** Nobody waits any more. */
  get signal(): AbortSignal {
    return this.#left.signal
  }

  leave(): void {
    this.#left.abort()
  }

  /** Sends what comes, to its end. A failure is the last answer. */
  async answer(answers: AsyncIterable<object>): Promise<void> {
    try {
      for await (const answer of answers) {
        if (this.signal.aborted) return
        await this.send(answer)
      }
    } catch (error) {
      await this.send({ error: toTroupeError(error, 'STORE_FAILED').toRecord() })
    }
  }

  /** Resolves when there is room for more. */
  async send(answer: object): Promise<void> {
    if (this.signal.aborted) return
    this.#sending = true
    try {
      for (const { headers, data } of partsOf(answer, this.#number++)) {
        this.#connection.publish(this.#to, data, { headers, reply: this.#reply })
        this.#unflushed += data.length
        if (this.#unflushed >= partBytes) await this.#flush()
        if (this.signal.aborted) return
      }
    } catch {
      // The link is away or closed: the client sees that something is missing, and asks again.
      this.leave()
    } finally {
      this.#sending = false
      this.#quietLooks = 0
    }
  }

  async #flush(): Promise<void> {
    this.#unflushed = 0
    await this.#connection.flush()
  }

  /** Called once in a while: says that we live, unless something else was sent. */
  sayAlive(): void {
    if (this.#sending) return
    this.#quietLooks += 1
    if (this.#number === 0 || this.#quietLooks >= looksPerAlive) void this.send({ alive: true })
  }
}

/** The request, or why it is none. */
function readRequest({ data }: Msg, shard: string | null): ControlRequest | TroupeError {
  try {
    if (data.length > maxRequestBytes) throw tooLong(maxRequestBytes)
    const request = readLine(Buffer.from(data).toString('utf8'), controlRequest, 'the request')
    if ((shardOf(request) ?? null) === shard) return request
    return new TroupeError('MESSAGE_REFUSED', 'the request and the subject that it came on are about different crews')
  } catch (error) {
    return toTroupeError(error, 'ENVELOPE_INVALID')
  }
}

function shardOf(request: ControlRequest): string | undefined {
  return 'crew' in request ? request.crew : undefined
}

function crewOf(request: ControlRequest): CrewVersion | undefined {
  return 'name' in request && request.name !== undefined ? crewVersion(request.name, request.definition) : undefined
}

/** Permissions bind `_INBOX_<client>`, where a server has any; without them clients use the library's own. */
function isInboxOf(client: string, subject: string): boolean {
  const [first, ...rest] = subject.split('.')
  const isOwn = first === '_INBOX' || first === `_INBOX_${client}`
  return isOwn && subject.length <= 256 && rest.length > 0 && rest.every((token) => /^[A-Za-z0-9_-]+$/.test(token))
}

function isId(id: string): boolean {
  try {
    return checkId(id, 'an id') === id
  } catch {
    return false
  }
}

/** Waits for the server, but not for one that is away. */
async function inTime(work: Promise<unknown>): Promise<void> {
  const late = new AbortController()
  const timeout = delay(closeMs, undefined, { signal: late.signal, ref: false })
  await Promise.race([work, timeout]).catch(() => undefined)
  late.abort()
  await timeout.catch(() => undefined)
}

function tokenOf(subject: string): string {
  return subject.slice(subject.lastIndexOf('.') + 1)
}
