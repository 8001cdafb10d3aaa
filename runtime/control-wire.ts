/**
 * The control socket's wire: one request a connection, lines of JSON.
 *
 *     server  {"troupe":1,"pid":4711}                          the greeting
 *     client  {"method":"show","crew":"q3"}                    the one request
 *     server  {"item":…}   any number                          then one of
 *             {"result":…} | {"error":{"code":…,…}}            and the end
 *
 * A client that closes its connection ends its stream and nothing else.
 *
 * Owns: the shapes, their bounds, the framing, where the socket of a store is.
 * Does not own: what a request does (`control-answers.ts`), who asks (`remote-runtime.ts`), the way over NATS
 * (`transport/nats-door.ts`), which has the same requests and answers.
 *
 * - O1 Nothing is read that was not checked against its schema and its bound.
 * - O2 What cannot be JSON (bytes, references) is written so that only the wire's own code makes it again.
 */
import { lstat, mkdir, mkdtemp, readFile } from 'node:fs/promises'
import type { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { BlobRef, contentHash, type Value } from './codec.js'
import { type ErrorCode, errorCodes, TroupeError } from './errors.js'
import type { RecordedCommit } from './record.js'

/** Another version is another language. */
export const wireVersion = 1
/** Longest request: an input and its data, each at their own bound, in UTF-8. */
export const maxRequestBytes = 64 * 1_048_576
/** Longest line of an answer. */
export const maxAnswerBytes = 256 * 1_048_576

/** Longest wait of a drain: a day. */
const maxGraceMs = 86_400_000

const id = z.string().max(64)
/** What a letter was for: it may be no crew. */
const shard = z.string().min(1).max(128)
const runOf = { crew: id, run: z.string().max(64) }
/** The crew's name, for an id that is new, and the hash of its definition: who speaks another language has none. */
const code = { name: z.string().max(64).optional(), definition: z.string().length(64).optional() }

/** Everything that can be asked. */
export const controlRequest = z.discriminatedUnion('method', [
  z.strictObject({ method: z.literal('list') }),
  z.strictObject({ method: z.literal('cluster') }),
  z.strictObject({ method: z.literal('breakers') }),
  z.strictObject({ method: z.literal('drain'), worker: id.optional(), graceMs: z.int().min(0).max(maxGraceMs) }),
  z.strictObject({ method: z.literal('show'), crew: id }),
  z.strictObject({ method: z.literal('journal'), crew: id, from: z.int().min(1) }),
  z.strictObject({ method: z.literal('remove'), crew: id }),
  z.strictObject({ method: z.literal('repair'), crew: id, acceptLoss: z.boolean().optional() }),
  z.strictObject({ method: z.literal('pause'), crew: id }),
  z.strictObject({ method: z.literal('resume'), crew: id }),
  z.strictObject({ method: z.literal('cancel'), crew: id, run: z.string().max(64).optional() }),
  /** The key makes it the same message when it is asked again. */
  z.strictObject({
    method: z.literal('steer'),
    crew: id,
    input: z.unknown(),
    key: z.string().min(1).max(64),
    run: z.string().max(64).optional(),
    agent: z.string().max(128).optional(),
  }),
  z.strictObject({
    method: z.literal('raise'),
    crew: id,
    limits: z.unknown(),
    agent: z.string().max(64).optional(),
  }),
  z.strictObject({ method: z.literal('asks'), crew: id }),
  z.strictObject({
    method: z.literal('answer'),
    crew: id,
    ask: z.string().max(64),
    decision: z.enum(['approved', 'denied', 'answered']),
    text: z.string().max(262_144).optional(),
    arguments: z.unknown().optional(),
    by: z.string().max(256).optional(),
  }),
  z.strictObject({ method: z.literal('letters'), crew: id }),
  z.strictObject({ method: z.literal('letter'), crew: id, letter: id }),
  /** Without `message`: as it is. */
  z.strictObject({
    method: z.literal('replay'),
    crew: id,
    letter: id,
    message: z.looseObject({ type: z.string().max(128) }).optional(),
    by: z.string().max(256).optional(),
  }),
  /** Without `letter`: all of them. */
  z.strictObject({ method: z.literal('drop'), crew: id, letter: id.optional() }),
  /** Of letters that no crew takes. Whoever is asked answers: there may be no owner. */
  z.strictObject({ method: z.literal('refused'), shard: shard.optional() }),
  z.strictObject({ method: z.literal('refusal'), shard, letter: id }),
  z.strictObject({ method: z.literal('resend'), shard, letter: id }),
  /** Without `letter`: all of them. */
  z.strictObject({ method: z.literal('discard'), shard, letter: id.optional() }),
  z.strictObject({ method: z.literal('move'), crew: id, to: id.optional() }),
  /** Does the crew run there, with this very definition? Can it, under its name's code? */
  z.strictObject({ method: z.literal('attach'), crew: id, ...code }),
  z.strictObject({
    method: z.literal('start'),
    crew: id,
    ...code,
    key: z.string().max(256),
    input: z.unknown(),
    data: z.unknown().optional(),
  }),
  /** A machine of the user's instead: starts it, or does it run there, with this very definition? */
  z.strictObject({ method: z.literal('spawn'), crew: id, ...code, input: z.unknown().optional() }),
  /** To a machine. The key makes it the same message when it is asked again. */
  z.strictObject({ method: z.literal('send'), crew: id, message: z.unknown(), key: z.string().min(1).max(64) }),
  z.strictObject({ method: z.literal('state'), crew: id }),
  z.strictObject({ method: z.literal('current'), crew: id }),
  z.strictObject({ method: z.literal('find'), ...runOf }),
  /** Both without `run`: of the machine that it is. */
  z.strictObject({ method: z.literal('result'), ...runOf, run: runOf.run.optional() }),
  z.strictObject({
    method: z.literal('events'),
    ...runOf,
    run: runOf.run.optional(),
    since: z.string().max(128).optional(),
  }),
])

/** A request. */
export type ControlRequest = z.infer<typeof controlRequest>

/** The first line of the server. */
export const controlGreeting = z.object({ troupe: z.literal(wireVersion), pid: z.int() })

const errorRecord = z.object({
  code: z.string(),
  message: z.string(),
  retryable: z.boolean(),
  details: z.record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.null(), z.array(z.string())])),
})

/** A line of the server after its greeting. */
export const controlAnswer = z.union([
  z.strictObject({ item: z.unknown() }),
  /** Nothing yet, but somebody is at it. */
  z.strictObject({ alive: z.literal(true) }),
  z.strictObject({ result: z.unknown() }),
  z.strictObject({ error: errorRecord }),
])

/** An answer. */
export type ControlAnswer = z.infer<typeof controlAnswer>

/** The error that an answer carries. */
export function toError(record: z.infer<typeof errorRecord>): TroupeError {
  const known = (errorCodes as readonly string[]).includes(record.code)
  return TroupeError.fromRecord({ ...record, code: known ? (record.code as ErrorCode) : 'STORE_FAILED' })
}

/** One line of JSON. */
export function toLine(value: unknown): string {
  return `${JSON.stringify(value)}\n`
}

/**
 * The lines that come in, at the reader's pace.
 * @throws TroupeError `ENVELOPE_TOO_LARGE` for a line above `maxBytes`.
 */
export async function* linesOf(socket: Socket, maxBytes: number): AsyncGenerator<string, void, void> {
  let chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of socket as AsyncIterable<Buffer>) {
    let rest = chunk
    for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
      chunks.push(rest.subarray(0, end))
      if (bytes + end > maxBytes) throw tooLong(maxBytes)
      yield Buffer.concat(chunks).toString('utf8')
      chunks = []
      bytes = 0
      rest = rest.subarray(end + 1)
    }
    bytes += rest.length
    if (bytes > maxBytes) throw tooLong(maxBytes)
    if (rest.length > 0) chunks.push(rest)
  }
}

/** The error for a line above its bound. */
export function tooLong(maxBytes: number): TroupeError {
  return new TroupeError('ENVELOPE_TOO_LARGE', `a line of the control socket has more than ${maxBytes} bytes`)
}

/** Reads a line, or what else is named. @throws TroupeError `ENVELOPE_INVALID`. */
export function readLine<Shape extends z.ZodType>(
  line: string,
  shape: Shape,
  what = 'a line of the control socket',
): z.output<Shape> {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    throw new TroupeError('ENVELOPE_INVALID', `${what} is not JSON`)
  }
  const read = shape.safeParse(value)
  if (read.success) return read.data
  const [issue] = read.error.issues
  const path = issue?.path.map(String).join('.') ?? ''
  throw new TroupeError('ENVELOPE_INVALID', `${what} is not understood: ${path} ${issue?.message}`)
}

// Commits.

const wireCommit = z.object({
  sequence: z.int(),
  at: z.number(),
  from: z.string(),
  to: z.string(),
  cause: z.string(),
  body: z.looseObject({ type: z.string() }),
  values: z.array(z.union([z.string(), z.object({ blob: z.string(), bytes: z.number() })])),
  digest: z.base64(),
  trail: z.base64(),
})

/** A recorded commit as JSON. */
export function toWireCommit({ sequence, envelope, digest, trail }: RecordedCommit): z.infer<typeof wireCommit> {
  const toWire = (value: Value) => (value instanceof BlobRef ? { blob: value.hash, bytes: value.bytes } : value)
  return {
    sequence,
    ...envelope,
    values: envelope.values.map(toWire),
    digest: Buffer.from(digest).toString('base64'),
    trail: Buffer.from(trail).toString('base64'),
  }
}

/** The commit again. @throws TroupeError `ENVELOPE_INVALID`. */
export function fromWireCommit(value: unknown): RecordedCommit {
  const read = wireCommit.safeParse(value)
  if (!read.success) throw new TroupeError('ENVELOPE_INVALID', 'a commit from the control socket is not understood')
  const { sequence, digest, trail, values, ...envelope } = read.data
  const fromWire = (each: (typeof values)[number]) =>
    typeof each === 'string' ? each : new BlobRef(each.blob, each.bytes)
  return {
    sequence,
    envelope: { ...envelope, values: values.map(fromWire) },
    digest: Buffer.from(digest, 'base64'),
    trail: Buffer.from(trail, 'base64'),
  }
}

// Where the socket is.

/** Longest path of a socket: the system cuts a longer one without a word. */
const maxPathBytes = process.platform === 'linux' ? 107 : 103

/** The file that names a socket which is not in the store itself. */
export const namingFile = 'control'

function fits(path: string): boolean {
  return Buffer.byteLength(path) <= maxPathBytes
}

function ownSocket(store: string): string {
  return join(store, 'control.sock')
}

/** Where the owner of a store is to listen. `folder`: made for it, and to be removed with it. */
export async function placeSocket(store: string): Promise<{ readonly path: string; readonly folder: string | null }> {
  const own = ownSocket(store)
  if (fits(own)) return { path: own, folder: null }
  const name = `troupe-${contentHash(store).slice(0, 16)}`
  const base = fits(join(tmpdir(), `${name}-XXXXXX`, 's')) ? tmpdir() : '/tmp'
  const known = join(base, name)
  await mkdir(known, { mode: 0o700 }).catch(() => undefined)
  // Somebody else may have made it first to listen in our place.
  const folder = (await isPrivate(known)) ? known : await mkdtemp(`${known}-`)
  return { path: join(folder, 's'), folder }
}

async function isPrivate(folder: string): Promise<boolean> {
  const found = await lstat(folder).catch(() => null)
  return found?.isDirectory() === true && found.uid === process.getuid?.() && (found.mode & 0o077) === 0
}

/** Where the owner of a store listens, if it does. */
export async function findSocket(store: string): Promise<string> {
  const named = await readFile(join(store, namingFile), 'utf8').catch(() => '')
  const path = named.trim()
  return path === '' ? ownSocket(store) : path
}
