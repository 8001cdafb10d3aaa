/**
 * Refused letters over NATS: one stream of a namespace, one message a letter, each on a subject of its own.
 *
 * A message is the letter's bytes, with what is told of it in a header: so a list costs no bytes of letters.
 *
 * Owns: storing refused letters, listing, sending again and dropping them.
 * Does not own: which letters are refused (`nats-mail.ts`), which may be sent again (`runtime/refused-letters.ts`), the
 * bodies of large ones, which stay where the mail has them until their letter is sent again or dropped.
 *
 * - NRF1 A refused letter is stored once, however often it is delivered, and before the mail forgets it.
 * - NRF2 What is kept is bounded in number, bytes and age, whatever comes in: the oldest go. Nothing that comes in makes a
 *   letter unstorable.
 * - NRF3 A letter that is asked for again twice is in the mail once.
 */
import {
  DeliverPolicy,
  DiscardPolicy,
  jetstream,
  JetStreamApiError,
  type JetStreamClient,
  RetentionPolicy,
} from '@nats-io/jetstream'
import { headers, type MsgHdrs } from '@nats-io/transport-node'
import { z } from 'zod'
import { contentHash, type Value } from '../runtime/codec.js'
import type { Draft } from '../runtime/envelope.js'
import { type ErrorCode, TroupeError } from '../runtime/errors.js'
import {
  isRefused,
  type RefusedDetails,
  type RefusedInfo,
  type RefusedLetters,
  unknownLetter,
  whyNotAgain,
} from '../runtime/refused-letters.js'
import { JetStreamContent, storeError } from './jetstream-content.js'
import { ensureStream } from './jetstream-stream.js'
import { type Claim, decodeLetter, largestInline, type RawLetter } from './letter.js'
import type { NatsLink } from './nats-connection.js'
import { storedMessages } from './stored-messages.js'
import { isToken, type Subjects } from './subjects.js'

/** What the stream keeps, where its operator does not say otherwise. */
export const keptLetters = 1_000
const keptBytes = 16 * 1_048_576
const keptMs = 30 * 24 * 3_600_000
const nanos = 1_000_000

const aboutHeader = 'Troupe-Refused'
/** Characters of that header that are read. */
const longestAbout = 65_536
/** Longest addresses and types that are told, longest reason and subject. */
const longestName = 200
const longestReason = 500
const longestSubject = 1_024
/** Longest name of what a letter was for: a crew's has 64. */
const longestShard = 128
/** More than all headers of a message take. */
const spareBytes = 32_768
/** How long the server may take to store a letter before it is brought again. */
const storeMs = 2_000
const notTheLast = 10071

const text = (longest: number) => z.string().max(longest)
const about = z.strictObject({
  shard: text(longestShard),
  /** The one that it came by. */
  subject: text(longestSubject),
  from: text(longestName),
  to: text(longestName),
  type: text(longestName),
  code: text(64),
  reason: text(longestReason),
  bytes: z.int().nonnegative(),
  hash: text(64),
  kept: z.enum(['whole', 'beside', 'none']),
  returned: z.boolean(),
  /** Id of the large body. */
  body: text(64).nullable(),
})
type About = z.infer<typeof about>

/** Why a letter is refused. */
export interface Refusal {
  readonly shard: string
  /** Null for what is no letter. */
  readonly draft: Draft | null
  readonly code: ErrorCode
  readonly reason: string
  /** Its sender is told. */
  readonly returned: boolean
}

/** Options of `NatsRefused.open`. */
export interface NatsRefusedOptions {
  readonly link: NatsLink
  readonly subjects: Subjects
  /** Stores a letter in the mail; once for one id. */
  readonly send: (shard: string, draft: Draft, id: string) => Promise<void>
  /** Copies in a cluster. @default 1 */
  readonly replicas?: number
}

interface Found {
  readonly about: About
  readonly info: RefusedInfo
  readonly data: Uint8Array
}

/** The refused letters of one namespace. */
export class NatsRefused implements RefusedLetters {
  readonly #options: NatsRefusedOptions
  readonly #stream: string
  readonly #client: JetStreamClient
  readonly #content: JetStreamContent

  private constructor(options: NatsRefusedOptions) {
    const { link, subjects } = options
    this.#options = options
    this.#stream = subjects.stream('dead')
    this.#client = jetstream(link.connection, { timeout: storeMs })
    this.#content = new JetStreamContent(link, subjects)
  }

  /** @throws TroupeError `CONFIG_INVALID` for a stream that is there and not as it must be, and what the server refuses. */
  static async open(options: NatsRefusedOptions): Promise<NatsRefused> {
    const { link, subjects, replicas } = options
    const must = {
      name: subjects.stream('dead'),
      subjects: [subjects.refusals()],
      retention: RetentionPolicy.Limits,
      discard: DiscardPolicy.Old,
    }
    const limits = { max_msgs: keptLetters, max_bytes: keptBytes, max_age: keptMs * nanos }
    try {
      await ensureStream(link, must, replicas, limits)
    } catch (error) {
      throw storeError(error)
    }
    return new NatsRefused(options)
  }

  /** Keeps a letter. Resolves when it is stored, now or before. @throws TroupeError what a store refuses. */
  async put(letter: RawLetter, refusal: Refusal): Promise<void> {
    const { id, bytes } = letter
    const told = this.#aboutOf(letter, refusal)
    const head = headers()
    // Whatever a reason says: headers are lines.
    head.set(aboutHeader, Buffer.from(JSON.stringify(told)).toString('base64'))
    // Its own subject, on which nothing may be yet: so it is stored once, also after the server has forgotten its id.
    const options = { headers: head, msgID: id, expect: { lastSubjectSequence: 0 }, timeout: storeMs }
    const subject = this.#options.subjects.refusal(told.shard, id)
    try {
      await this.#client.publish(subject, told.kept === 'whole' ? bytes : undefined, options)
    } catch (error) {
      if (!(error instanceof JetStreamApiError && error.code === notTheLast)) throw storeError(error)
    }
  }

  #aboutOf({ subject, bytes, claim }: RawLetter, { shard, draft, code, reason, returned }: Refusal): About {
    const name = (given: string | undefined): string => (given ?? '').slice(0, longestName)
    const room = (this.#options.link.connection.info?.max_payload ?? Infinity) - spareBytes
    const fits = claim === null ? bytes.length <= Math.min(largestInline, room) : isToken(shard)
    return {
      shard: shard.slice(0, longestShard),
      subject: subject.slice(0, longestSubject),
      from: name(draft?.from),
      to: name(draft?.to),
      type: name(draft?.body.type),
      code,
      reason: reason.slice(0, longestReason),
      bytes: claim?.bytes ?? bytes.length,
      hash: claim?.hash ?? contentHash(bytes),
      kept: !fits ? 'none' : claim === null ? 'whole' : 'beside',
      returned,
      body: claim?.id ?? null,
    }
  }

  async *list(crew?: string): AsyncGenerator<RefusedInfo, void, void> {
    const { link, subjects } = this.#options
    const filter_subject = subjects.refusals(crew)
    const wanted = { deliver_policy: DeliverPolicy.All, filter_subject, headers_only: true }
    for await (const { header, subject, storedAt } of storedMessages(link, this.#client, this.#stream, wanted)) {
      const told = readAbout(header)
      if (told !== null) yield infoOf(told, subjects.letterOf(subject), storedAt)
    }
  }

  async show(crew: string, letter: string): Promise<RefusedDetails> {
    const { info, about: told, data } = await this.#find(crew, letter)
    const bytes = await this.#bytesOf(told, data)
    const draft = bytes === null ? null : this.#draftOf(told, bytes)
    const raw = bytes === null || draft !== null ? null : Buffer.from(bytes).toString('base64')
    return { ...info, message: draft?.body ?? null, values: draft?.values.map(textOf) ?? [], raw }
  }

  async replay(crew: string, letter: string): Promise<void> {
    const { info, about: told, data } = await this.#find(crew, letter)
    const why = whyNotAgain(info)
    if (why !== null) throw refused(crew, letter, why)
    const bytes = await this.#bytesOf(told, data)
    const draft = bytes === null ? null : this.#draftOf(told, bytes)
    if (draft === null) throw refused(crew, letter, 'is not there whole any more')
    await this.#options.send(told.shard, draft, `again-${letter}`)
    await this.#remove(told, letter)
  }

  async drop(crew: string, letter?: string): Promise<number> {
    const all: string[] = []
    if (letter === undefined) for await (const { id } of this.list(crew)) all.push(id)
    // One by one: what comes meanwhile stays, and large bodies go with their letters.
    for (const id of letter === undefined ? all : [letter]) await this.#remove((await this.#find(crew, id)).about, id)
    return letter === undefined ? all.length : 1
  }

  async #find(crew: string, letter: string): Promise<Found> {
    const { link, subjects } = this.#options
    if (!isRefused(letter)) throw unknownLetter(crew, letter)
    try {
      const query = { last_by_subj: subjects.refusal(crew, letter) }
      const message = await link.manager.streams.getMessage(this.#stream, query)
      const told = readAbout(message?.header)
      if (message === null || told === null) throw unknownLetter(crew, letter)
      return { about: told, info: infoOf(told, letter, message.time.getTime()), data: message.data }
    } catch (error) {
      throw storeError(error)
    }
  }

  /** Null for bytes that are not there. */
  async #bytesOf({ kept, shard, body }: About, data: Uint8Array): Promise<Uint8Array | null> {
    if (kept === 'whole') return data
    return body === null || kept === 'none' ? null : this.#content.getLetter(shard, body)
  }

  /** Null for what is no letter. */
  #draftOf({ subject, body, hash, bytes: size }: About, bytes: Uint8Array): Draft | null {
    const claim: Claim | null = body === null ? null : { id: body, hash, bytes: size }
    try {
      return decodeLetter(bytes, subject, this.#options.subjects, claim)
    } catch {
      return null
    }
  }

  async #remove({ shard, kept, body }: About, letter: string): Promise<void> {
    const { link, subjects } = this.#options
    try {
      await link.manager.streams.purge(this.#stream, { filter: subjects.refusal(shard, letter) })
    } catch (error) {
      throw storeError(error)
    }
    if (kept === 'beside' && body !== null) await this.#content.deleteLetter(shard, body)
  }
}

/** What is told of a letter; null for a message that says nothing that could be read. */
function readAbout(header: MsgHdrs | undefined): About | null {
  const told = header?.get(aboutHeader) ?? ''
  if (told.length > longestAbout) return null
  try {
    return about.parse(JSON.parse(Buffer.from(told, 'base64').toString('utf8')))
  } catch {
    return null
  }
}

function infoOf({ shard: crew, subject: _, body: __, ...rest }: About, id: string, at: number): RefusedInfo {
  return { id, crew, ...rest, at }
}

function textOf(value: Value): string {
  return typeof value === 'string' ? value : `(${value.bytes} bytes that lie beside a journal: ${value.hash})`
}

function refused(crew: string, letter: string, why: string): TroupeError {
  const details = { letter }
  return new TroupeError('LETTER_REFUSED', `${crew.slice(0, 80)}: ${letter} ${why}`, { details })
}
