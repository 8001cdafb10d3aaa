/**
 * Mail between workers: one work-queue stream of a namespace, one consumer a partition.
 *
 * Owns: storing letters until they are stored, what becomes of a letter that came, dead letters' notices.
 * Does not own: order and credit (`mail-reader.ts`), letters that stayed (`mail-leftovers.ts`), the bytes of a letter
 * (`letter.ts`), numbering letters so that what comes twice is taken once (the shard's), keeping dead letters
 * (`nats-refused.ts`).
 *
 * - ML1 A letter whose `send` resolved is stored, once: it is tried again with the same id, which the server remembers for
 *   two minutes.
 * - ML2 A letter is acknowledged after it was taken, never before: until then it is delivered again, to whoever reads.
 * - ML3 A letter goes to a worker that owns its shard, in whatever order those who read its partition ask, and waits while
 *   there is none.
 * - ML4 A large letter's body lies beside the mail, and is deleted only after the server has the acknowledgement.
 * - ML5 What is no letter, and what a shard will never take, is a dead letter; the mail behind it goes on.
 * - ML6 Whoever asks whether a shard's letters were taken does not wait for one that is counted and is not there.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as wait } from 'node:timers/promises'
import {
  AckPolicy,
  DiscardPolicy,
  jetstream,
  type JetStreamClient,
  type MsgRequest,
  RetentionPolicy,
} from '@nats-io/jetstream'
import { headers } from '@nats-io/transport-node'
import type { Draft } from '../runtime/envelope.js'
import { type ErrorCode, isTroupeError, toTroupeError, TroupeError } from '../runtime/errors.js'
import type { Log } from '../runtime/log.js'
import type { Whose } from '../runtime/ownership.js'
import { ensureContent, JetStreamContent, storeError } from './jetstream-content.js'
import { type Delivery, JetStreamPull } from './jetstream-pull.js'
import { ensureStream } from './jetstream-stream.js'
import {
  type Claim,
  claimHeaders,
  claimOf,
  decodeLetter,
  encodeLetter,
  largestInline,
  type RawLetter,
} from './letter.js'
import { consumerOf, MailLeftovers } from './mail-leftovers.js'
import { delayOf, MailReader, type Verdict } from './mail-reader.js'
import type { NatsLink } from './nats-connection.js'
import type { Subjects } from './subjects.js'

/** Options of `NatsMail.open`. */
export interface NatsMailOptions {
  readonly link: NatsLink
  readonly subjects: Subjects
  /** Copies in a cluster. @default 1 */
  readonly replicas?: number
  /** A letter of which nothing was heard for so long is delivered to somebody else. @default 30_000 */
  readonly ackWaitMs?: number
  /** After a restart of the server a consumer that delivers nothing for so long is made anew. @default 35_000, `ackWaitMs` and 5_000 at least */
  readonly stuckMs?: number
  readonly log?: Log
}

/** What becomes of letters that come. */
export interface MailReceiver {
  /** Whose letters these are: the own ones are taken here. Asked for each letter. */
  whose(shard: string): Whose | Promise<Whose>
  /**
   * Takes a letter: resolves when it is committed, and may be forgotten. What it rejects with decides what becomes of it:
   * `OUTCOME_FORGED`, `MESSAGE_REFUSED`, `ENVELOPE_INVALID`, `ID_INVALID`, `SENDER_BEHIND` and `CREW_UNKNOWN` make a dead letter;
   * `SHARD_ELSEWHERE`, `RUNTIME_CLOSED`, failures of a store and whatever may be retried bring it again soon; anything else, above all
   * `SHARD_STOPPED`, brings it again every 30 seconds.
   * A letter that is refused with `MAIL_GAP` is given again at once when no earlier one of its shard is stored.
   * @param deliveries how often the letter was delivered, to anybody, this time included
   * @param first no earlier letter of the shard is stored
   */
  take(shard: string, draft: Draft, deliveries: number, first: boolean): Promise<void>
  /**
   * Told of a dead letter before it is deleted; one that rejects brings it again. Its large body, if any, stays.
   * @param draft null for what is no letter
   * @param letter the message itself
   */
  dead(shard: string, draft: Draft | null, code: ErrorCode, reason: string, letter: RawLetter): Promise<void>
  /** Letters of one shard that are kept here while it gets none done. @default 32 */
  readonly creditPerShard?: number
}

const defaultAckWaitMs = 30_000
/** How long the server may take to store a letter before it is tried again. */
const storeMs = 2_000
/** How often it is looked whether the letters of a shard were taken. */
const takenAgainMs = 100
const longestPauseMs = 5_000
const parkedMs = 30_000
/**
 * The longest that a letter of another worker's stays away. Its server gives each letter to whoever waits longest. Requests
 * that were begun together, as after a restart of the server, are in the same order whenever they are made anew, so what
 * comes again more seldom than that would come to the same one each time.
 */
const otherMs = 1_000
const longestReason = 500

const deadCodes: readonly ErrorCode[] = [
  'ID_INVALID',
  'OUTCOME_FORGED',
  'MESSAGE_REFUSED',
  'ENVELOPE_INVALID',
  'ENVELOPE_TOO_LARGE',
  'BLOB_MISSING',
  'CREW_UNKNOWN',
  'SENDER_BEHIND',
]
const soonCodes: readonly ErrorCode[] = ['SHARD_ELSEWHERE', 'SHARD_FENCED', 'RUNTIME_CLOSED']

/** The mail of one namespace, sent and received by one process until `close`. */
export class NatsMail {
  readonly #options: NatsMailOptions
  readonly #stream: string
  readonly #client: JetStreamClient
  readonly #content: JetStreamContent
  readonly #readers = new Map<number, MailReader>()
  readonly #leftovers: MailLeftovers
  /** Readers of partitions that are being left, with the end of it. */
  readonly #leaving = new Map<MailReader, Promise<void>>()
  /** Tells each sender that is not done. */
  readonly #sending = new Set<(error: TroupeError) => void>()
  readonly #stopWatch: () => void
  /** The look at what is stored that is under way, and the one behind it. */
  #looking: Promise<unknown> = Promise.resolve()
  #nextLook: Promise<ReadonlySet<string> | null> | null = null
  #receiver: MailReceiver | null = null
  #state: 'open' | 'draining' | 'closed' = 'open'

  private constructor(options: NatsMailOptions) {
    this.#options = options
    this.#stream = options.subjects.stream('mail')
    this.#client = jetstream(options.link.connection, { timeout: storeMs })
    this.#content = new JetStreamContent(options.link, options.subjects)
    this.#leftovers = new MailLeftovers(options.link, options.subjects, stuckMsOf(options))
    this.#stopWatch = this.#watch()
  }

  /** @throws TroupeError `CONFIG_INVALID` for a stream that is there and not as it must be, and what the server refuses. */
  static async open(options: NatsMailOptions): Promise<NatsMail> {
    const { link, subjects, replicas } = options
    try {
      const mail = {
        name: subjects.stream('mail'),
        subjects: [subjects.mails()],
        retention: RetentionPolicy.Workqueue,
        discard: DiscardPolicy.New,
      }
      await ensureStream(link, mail, replicas)
      await ensureContent(link, subjects, replicas)
    } catch (error) {
      throw storeError(error)
    }
    return new NatsMail(options)
  }

  // Sending.

  /**
   * Stores a letter: resolves when it is stored, and tries for as long as that takes. Letters of which each is sent after
   * the one before was stored are in that order.
   * @param id two letters of one id within two minutes are one @default another one each time
   * @throws TroupeError `ID_INVALID` for a name that is none, `ENVELOPE_TOO_LARGE` above 8 MiB, `NATS_DENIED`;
   * `RUNTIME_CLOSED` when this mail is closed before: the letter may be stored or not.
   */
  send(shard: string, draft: Draft, id: string = randomUUID()): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#sending.add(reject)
      this.#store(shard, draft, id)
        .then(resolve, reject)
        .finally(() => this.#sending.delete(reject))
    })
  }

  async #store(shard: string, draft: Draft, id: string): Promise<void> {
    const subject = this.#options.subjects.mail(shard, draft.to)
    const bytes = encodeLetter(draft)
    for (let attempt = 0; ; attempt++) {
      if (this.#state === 'closed') throw new TroupeError('RUNTIME_CLOSED', 'the mail is closed')
      try {
        return await this.#publish(shard, subject, bytes, id)
      } catch (error) {
        const failure = storeError(error)
        if (!failure.retryable) throw failure
        if (attempt === 0) this.#options.log?.warn('a letter is not stored yet', { shard, reason: failure.message })
      }
      await wait(Math.min(longestPauseMs, 100 * 2 ** Math.min(attempt, 6)), undefined, { ref: false })
    }
  }

  async #publish(shard: string, subject: string, bytes: Buffer, id: string): Promise<void> {
    const isLarge = bytes.length > largestInline
    // Again with each attempt: a part that is there is written over by itself.
    if (isLarge) await this.#content.putLetter(shard, id, bytes)
    const head = isLarge ? claimHeaders(bytes) : headers()
    await this.#client.publish(subject, isLarge ? undefined : bytes, { headers: head, msgID: id, timeout: storeMs })
  }

  // Receiving.

  /** Says what becomes of letters. Nothing is read before `listen`. */
  receive(receiver: MailReceiver): void {
    this.#receiver = receiver
  }

  /**
   * Reads these partitions from now on, and no others. What comes from a partition that is left is finished or given back.
   * Several workers may read one partition: each letter is delivered to one of them.
   * @throws TroupeError `CONFIG_INVALID` before `receive`.
   */
  listen(partitions: ReadonlySet<number>): void {
    const receiver = this.#receiver
    if (receiver === null) throw new TroupeError('CONFIG_INVALID', 'nobody takes the letters: call `receive` first')
    for (const partition of this.#readers.keys()) if (!partitions.has(partition)) this.#leave(partition)
    if (this.#state !== 'open') return
    for (const partition of partitions) {
      if (!this.#readers.has(partition)) this.#readers.set(partition, this.#read(partition, receiver))
    }
  }

  /** Letters of stopped shards that this process gave back and that are not due yet. */
  get parked(): number {
    return [...this.#readers.values()].reduce((sum, { parked }) => sum + parked, 0)
  }

  /**
   * Resolves when no letter of a shard is stored, or when one that a dead reader held must have come to another, and have been
   * taken. Never rejects.
   */
  async taken(shard: string): Promise<void> {
    const { ackWaitMs = defaultAckWaitMs } = this.#options
    const patienceMs = ackWaitMs + longestPauseMs
    for (const until = performance.now() + patienceMs; performance.now() < until && this.#state !== 'closed'; ) {
      this.#nextLook ??= this.#look()
      const waiting = await this.#nextLook
      if (waiting !== null && (!waiting.has(shard) || (await this.#hasNone(shard)))) return
      await wait(takenAgainMs)
    }
  }

  /** Shards that letters are stored for, as it is after this was called; null when that is not known. */
  async #look(): Promise<ReadonlySet<string> | null> {
    const { link, subjects } = this.#options
    // Whoever takes over many shards at once asks once for all of them.
    await this.#looking
    this.#looking = this.#nextLook ?? this.#looking
    this.#nextLook = null
    const filter = { subjects_filter: subjects.mails() }
    const info = await link.manager.streams.info(subjects.stream('mail'), filter).catch(() => null)
    return info === null
      ? null
      : new Set(Object.keys(info.state.subjects ?? {}).map((each) => subjects.shardOfMail(each)))
  }

  /** Reads no more: resolves when what was begun is taken or refused, the rest is given back, and the server knows. */
  async drain(): Promise<void> {
    if (this.#state === 'open') this.#state = 'draining'
    for (const partition of this.#readers.keys()) this.#leave(partition)
    await Promise.all(this.#leaving.values())
    await this.#options.link.connection.flush().catch(() => undefined)
  }

  /** Stops at once. What was begun and not taken is delivered to somebody else when its time is over. */
  close(): void {
    this.#state = 'closed'
    this.#stopWatch()
    for (const reader of [...this.#readers.values(), ...this.#leaving.keys()]) reader.stop()
    this.#readers.clear()
    for (const reject of this.#sending) reject(new TroupeError('RUNTIME_CLOSED', 'the mail is closed'))
  }

  #leave(partition: number): void {
    const reader = this.#readers.get(partition)
    if (reader === undefined) return
    this.#readers.delete(partition)
    this.#leftovers.drop(partition)
    this.#leaving.set(
      reader,
      reader.drain().finally(() => this.#leaving.delete(reader)),
    )
  }

  #read(partition: number, receiver: MailReceiver): MailReader {
    const { link, subjects, ackWaitMs = defaultAckWaitMs } = this.#options
    const consumer = {
      durable_name: consumerOf(partition),
      filter_subject: subjects.mails(partition),
      ack_policy: AckPolicy.Explicit,
      ack_wait: ackWaitMs * 1_000_000,
      // Letters that were given back count until they are due: a bound would let one stopped shard stop its partition.
      max_ack_pending: -1,
    }
    this.#leftovers.add(partition)
    return new MailReader({
      pull: (take) =>
        new JetStreamPull(link, this.#stream, consumer, { take, asked: () => this.#leftovers.look(partition) }),
      shardOf: (subject) => subjects.shardOfMail(subject),
      work: (shard, delivery) => this.#work(receiver, shard, delivery),
      credit: receiver.creditPerShard ?? 32,
      ackWaitMs,
    })
  }

  /** A new link knows nothing of what the old one had asked for. */
  #watch(): () => void {
    const statuses = this.#options.link.connection.status()[Symbol.asyncIterator]()
    void (async () => {
      for (let next = await statuses.next(); next.done !== true; next = await statuses.next()) {
        if (next.value.type !== 'reconnect') continue
        for (const [partition, reader] of this.#readers) {
          this.#leftovers.add(partition)
          reader.renew()
        }
      }
    })().catch(() => undefined)
    return () => void statuses.return?.()
  }

  // One letter.

  async #work(receiver: MailReceiver, shard: string, delivery: Delivery): Promise<Verdict> {
    let draft: Draft | null = null
    let claim: Claim | null = null
    try {
      claim = claimOf(delivery.headers, delivery.data)
      if (claim === null) draft = this.#decode(delivery.data, delivery, null)
      const whose = await receiver.whose(shard)
      if (whose !== 'own') return again(delivery, whose === 'other')
      if (claim !== null) {
        const body = await this.#claimed(shard, claim, delivery)
        if (body === null) return null
        draft = this.#decode(body, delivery, claim)
      }
      await this.#give(receiver, shard, draft as Draft, delivery)
      await this.#taken(shard, claim, delivery)
      return null
    } catch (error) {
      return await this.#refused(receiver, shard, { draft, claim, delivery }, error)
    }
  }

  /** What is missing before a letter may still come, as long as something before it is stored. */
  async #give(receiver: MailReceiver, shard: string, draft: Draft, { count, seq }: Delivery): Promise<void> {
    try {
      await receiver.take(shard, draft, count, false)
    } catch (error) {
      if (!isTroupeError(error) || error.code !== 'MAIL_GAP' || !(await this.#isFirst(shard, seq))) throw error
      await receiver.take(shard, draft, count, true)
    }
  }

  async #isFirst(shard: string, seq: number): Promise<boolean> {
    const first = await this.#first(shard)
    return first === null || first.seq >= seq
  }

  /** Whether no letter of a shard can be had. A server that was killed may count one that it does not have (2.9.10). */
  async #hasNone(shard: string): Promise<boolean> {
    return (await this.#first(shard).catch(() => undefined)) === null
  }

  async #first(shard: string): Promise<{ readonly seq: number } | null> {
    const { link, subjects } = this.#options
    try {
      // The client's type does not know that a stream may be asked so, too.
      const query = { seq: 1, next_by_subj: subjects.mailsOf(shard) } as MsgRequest
      return await link.manager.streams.getMessage(this.#stream, query)
    } catch (error) {
      throw storeError(error)
    }
  }

  #decode(bytes: Uint8Array, { subject }: Delivery, claim: Claim | null): Draft {
    return decodeLetter(bytes, subject, this.#options.subjects, claim)
  }

  /** The body of a large letter; null when somebody else has taken the letter meanwhile. */
  async #claimed(shard: string, { id }: Claim, delivery: Delivery): Promise<Uint8Array | null> {
    const body = await this.#content.getLetter(shard, id)
    if (body !== null) return body
    if (!(await this.#isStored(delivery))) {
      delivery.done()
      return null
    }
    throw new TroupeError('BLOB_MISSING', 'the body of the letter is not there')
  }

  async #isStored({ seq }: Delivery): Promise<boolean> {
    try {
      return (await this.#options.link.manager.streams.getMessage(this.#stream, { seq })) !== null
    } catch (error) {
      throw storeError(error)
    }
  }

  async #taken(shard: string, claim: Claim | null, delivery: Delivery): Promise<void> {
    if (claim === null) return delivery.done()
    // What cannot be deleted now stays until its shard is removed; a body that went too early would be a letter lost.
    try {
      await delivery.confirmed()
      await this.#content.deleteLetter(shard, claim.id)
    } catch (error) {
      this.#options.log?.warn('the body of a letter stays', { shard, reason: storeError(error).message })
    }
  }

  async #refused(
    receiver: MailReceiver,
    shard: string,
    { draft, claim, delivery }: { draft: Draft | null; claim: Claim | null; delivery: Delivery },
    thrown: unknown,
  ): Promise<Verdict> {
    const { code, message, retryable } = toTroupeError(thrown, 'SHARD_STOPPED')
    if (!isTroupeError(thrown)) this.#options.log?.error('taking a letter failed', { shard, reason: message })
    if (!deadCodes.includes(code)) {
      if (retryable || code.startsWith('STORE_') || soonCodes.includes(code))
        return again(delivery, code === 'SHARD_ELSEWHERE')
      return { delayMs: parkedMs, parked: true }
    }
    try {
      const reason = message.slice(0, longestReason)
      const { id, subject, data: bytes } = delivery
      await receiver.dead(shard, draft, code, reason, { id, subject, bytes, claim })
      this.#tell({ shard, code, reason })
      delivery.end()
      return null
    } catch {
      return again(delivery)
    }
  }

  /** Best effort: whoever keeps dead letters was told already. */
  #tell(dead: { readonly shard: string; readonly code: ErrorCode; readonly reason: string }): void {
    const { link, subjects } = this.#options
    if (!link.connection.isClosed()) {
      link.connection.publish(subjects.dead(), JSON.stringify({ ...dead, at: Date.now() }))
    }
  }
}

/** Longer than any letter stays away: one that a dead reader had, or that waits for its shard to be repaired. */
function stuckMsOf({
  ackWaitMs = defaultAckWaitMs,
  stuckMs = Math.max(ackWaitMs, parkedMs) + longestPauseMs,
}: NatsMailOptions): number {
  return stuckMs
}

/** @param isOther it is another worker's, who asks for it too */
function again({ count }: Delivery, isOther = false): Verdict {
  return { delayMs: delayOf(count, isOther ? otherMs : undefined), parked: false }
}
