/**
 * Port work on the wire: what a shard's owner and a tool worker say to each other.
 *
 *     tool.<name>                  who has a place for this call?          owner → one of the queue group
 *     start.<worker>               it is recorded that you do it: start    owner → that one
 *     progress.<owner>.<worker>    what the tool shows                     tool worker → owner, best effort
 *     mail …outcome.<worker>       what came of it                         tool worker → whoever owns the shard then
 *
 * Owns: the shapes and their bounds, splitting and joining what is large.
 * Does not own: the two halves (`nats-tools.ts`, `nats-tool-worker.ts`), outcomes (`runtime/remote-outcome.ts`).
 *
 * - TW1 Nothing is read that was not checked against its shape and its bound; what is wrong gets an error for an answer.
 */
import { headers, type Msg, type MsgHdrs } from '@nats-io/transport-node'
import { z } from 'zod'
import { startWithinMs } from '../runtime/dispatcher.js'
import { errorCodes, TroupeError, toTroupeError } from '../runtime/errors.js'

/** Bytes of a question for a place, of an answer, of a piece of progress. */
export const maxShortBytes = 16 * 1_024
/** Bytes of one message of a start; a larger one is split. */
export const partBytes = 256 * 1_024
/** Bytes of a start: arguments and the run's `data` above all. */
export const maxStartBytes = 8 * 1_048_576

const partHeader = 'Troupe-Part'
const placeHeader = 'Troupe-Place'

const id = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/)
const term = z.int().min(0)
/** `<worker>.<epoch>` */
const owner = z.string().regex(/^[A-Za-z0-9_-]{1,64}\.\d{1,15}(-\d{1,15})?$/)

/** Asks for a place. */
export const placeQuestion = z.strictObject({ shard: id, effect: id, term })

const failure = z.object({ error: z.object({ code: z.enum(errorCodes), message: z.string().max(2_048) }) })

/** A place, kept for so long; or none at the moment. */
export const placeAnswer = z.union([
  z.object({ executor: owner, place: id, withinMs: z.int().min(1).max(startWithinMs) }),
  z.object({ busy: z.literal(true) }),
  failure,
])

/** Starts a call that has a place. */
export const start = z.strictObject({
  place: id,
  shard: id,
  effect: id,
  term,
  /** What is to be done: the tool's `run`, or its `verify`. */
  work: z.enum(['run', 'verify']),
  tool: id,
  /** JSON text. */
  arguments: z.string(),
  timeoutMs: z
    .int()
    .min(1)
    .max(2 ** 31 - 1),
  idempotencyKey: z.string().max(256),
  agent: z.string().max(256),
  run: z.string().max(256),
  callId: z.string().max(1_024),
  data: z.unknown(),
  /** Name of the worker that shows progress. */
  owner: id,
  /** Subject of the outcome. */
  outcome: z.string().max(512),
})

/** The call was started, now or before. */
export const startAnswer = z.union([z.object({ started: z.literal(true) }), failure])

/** What a tool shows while it runs. */
export const progress = z.strictObject({ shard: id, effect: id, executor: owner, value: z.unknown() })

/** A start as it travels. */
export type Start = z.infer<typeof start>

/** What a message says. @throws TroupeError `ENVELOPE_TOO_LARGE`, `ENVELOPE_INVALID`. */
export function readWork<Shape extends z.ZodType>(data: Uint8Array, shape: Shape, bound: number): z.output<Shape> {
  if (data.length > bound) throw new TroupeError('ENVELOPE_TOO_LARGE', `more than ${bound} bytes of port work`)
  let value: unknown
  try {
    value = JSON.parse(Buffer.from(data).toString('utf8'))
  } catch {
    throw new TroupeError('ENVELOPE_INVALID', 'what came as port work is not JSON')
  }
  const found = shape.safeParse(value)
  if (found.success) return found.data
  const [issue] = found.error.issues
  const where = issue?.path.map(String).join('.') ?? ''
  throw new TroupeError(
    'ENVELOPE_INVALID',
    `what came as port work is not understood: ${where} ${issue?.message ?? ''}`,
  )
}

/** An error as an answer. */
export function refusal(thrown: unknown): z.input<typeof failure> {
  const { code, message } = toTroupeError(thrown, 'STORE_FAILED')
  return { error: { code, message: message.slice(0, 1_000) } }
}

/** One message of a start. */
interface StartPart {
  readonly data: Uint8Array
  readonly headers: MsgHdrs
}

/** The messages of a start, in order. @throws TroupeError `ENVELOPE_TOO_LARGE`. */
export function partsOfStart(start: Start): StartPart[] {
  const bytes = Buffer.from(JSON.stringify(start))
  if (bytes.length > maxStartBytes) {
    const message = `a call with its data has ${bytes.length} bytes, at most ${maxStartBytes} go to another process`
    throw new TroupeError('ENVELOPE_TOO_LARGE', message)
  }
  const count = Math.ceil(bytes.length / partBytes)
  return Array.from({ length: count }, (_, index) => {
    const head = headers()
    head.set(placeHeader, start.place)
    if (count > 1) head.set(partHeader, `${index + 1}/${count}`)
    return { headers: head, data: bytes.subarray(index * partBytes, (index + 1) * partBytes) }
  })
}

/** A start of which some parts are there. */
interface Joining {
  readonly chunks: Buffer[]
  bytes: number
}

/** Joins starts that come in parts: of places that were given only, so that what is kept is bounded. */
export class StartReader {
  readonly #parts = new Map<string, Joining>()
  readonly #isGiven: (place: string) => boolean

  constructor(isGiven: (place: string) => boolean) {
    this.#isGiven = isGiven
  }

  /** The start when it is whole; null while parts of it are still to come. @throws TroupeError as `readWork`. */
  take({ data, headers: head }: Msg): Start | null {
    const text = head?.get(partHeader) ?? ''
    if (text === '') return readWork(data, start, maxStartBytes)
    const [, part, count] = (/^(\d{1,3})\/(\d{1,3})$/.exec(text) ?? [text, '0', '0']).map(Number)
    const place = head?.get(placeHeader) ?? ''
    const kept: Joining | undefined = part === 1 ? { chunks: [], bytes: 0 } : this.#parts.get(place)
    this.#parts.delete(place)
    const isLast = part === count
    if (kept === undefined || part !== kept.chunks.length + 1 || !this.#isGiven(place)) {
      if (!isLast) return null
      throw new TroupeError('ENVELOPE_INVALID', 'a part of a start is missing, or its place is not given')
    }
    // The library uses its buffer again.
    kept.chunks.push(Buffer.from(data))
    kept.bytes += data.length
    if (isLast) return readWork(Buffer.concat(kept.chunks), start, maxStartBytes)
    if (kept.bytes <= maxStartBytes) this.#parts.set(place, kept)
    return null
  }

  /** Forgets the parts of a place that is over. */
  forget(place: string): void {
    this.#parts.delete(place)
  }
}
