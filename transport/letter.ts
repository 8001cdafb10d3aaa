/**
 * Letters: a draft on its way between workers, as the bytes of a message.
 *
 * Owns: the bytes, what is checked when they come in, how large they may be, which ones lie beside the mail.
 * Does not own: storing them (`nats-mail.ts`), who may send what to an actor (`shard.ts`).
 *
 * - LTR1 Whatever bytes come in, a letter is a draft that fits the schema and its subject, or it is refused with a code;
 *   how many they are, how many values they hold and how deep is looked at before anything is made of them.
 * - LTR2 A letter comes back as it was sent, references to blobs included.
 */
import { type MsgHdrs, headers } from '@nats-io/transport-node'
import { z } from 'zod'
import { BlobRef, checkShape, contentHash, type DecodeBounds, decodeForeign, encode } from '../runtime/codec.js'
import type { Draft } from '../runtime/envelope.js'
import { TroupeError } from '../runtime/errors.js'
import { isRemoteOutcome } from '../runtime/remote-outcome.js'
import type { Subjects } from './subjects.js'

/** A larger letter keeps its body beside the mail: a claim check. */
export const largestInline = 256 * 1024
/** Bytes of the largest letter there may be. */
export const largestLetter = 8 * 1024 * 1024

/** What a letter may hold: an outcome of 1,024 calls is some 10,000 values. */
const bounds: DecodeBounds = { maxValues: 50_000, maxDepth: 64 }

const bodyHeader = 'Troupe-Body'
const bytesHeader = 'Troupe-Bytes'
const idHeader = 'Nats-Msg-Id'

const count = z.number().int().nonnegative()
const hash = z.string().regex(/^[0-9a-f]{64}$/)
const blob = z
  .instanceof(BlobRef)
  .refine((ref) => hash.safeParse(ref.hash).success && count.safeParse(ref.bytes).success)
const schema = z.strictObject({
  from: z.string(),
  to: z.string(),
  cause: z.string(),
  body: z.looseObject({ type: z.string() }),
  values: z.array(z.union([z.string(), blob])),
})

/** Where the body of a large letter is, and what it must be. */
export interface Claim {
  /** The id of the letter's message. */
  readonly id: string
  /** Hex SHA-256 of the body. */
  readonly hash: string
  readonly bytes: number
}

/** A message of the mail as it came, whatever it is. */
export interface RawLetter {
  /** The same each time it is delivered, and no other's. */
  readonly id: string
  readonly subject: string
  /** None where there is a claim. */
  readonly bytes: Uint8Array
  readonly claim: Claim | null
}

/** Encodes a letter. @throws TroupeError `ENVELOPE_TOO_LARGE`, also for what holds too many values or too deep ones. */
export function encodeLetter({ from, to, cause, body, values }: Draft): Buffer {
  const bytes = encode({ from, to, cause, body, values })
  if (bytes.length > largestLetter) throw tooLarge(bytes.length)
  try {
    // Whoever gets it would refuse it.
    checkShape(bytes, bounds)
  } catch (error) {
    throw new TroupeError('ENVELOPE_TOO_LARGE', `the letter holds too much: ${(error as Error).message}`)
  }
  return bytes
}

/** The headers of a message whose body lies beside it. */
export function claimHeaders(bytes: Uint8Array): MsgHdrs {
  const head = headers()
  head.set(bodyHeader, contentHash(bytes))
  head.set(bytesHeader, String(bytes.length))
  return head
}

/**
 * The claim of a message; null for one that is the letter itself.
 * @throws TroupeError `ENVELOPE_TOO_LARGE`, `ENVELOPE_INVALID`.
 */
export function claimOf(head: MsgHdrs | undefined, data: Uint8Array): Claim | null {
  const isClaim = head?.has(bodyHeader) === true
  const bytes = isClaim ? Number(head.get(bytesHeader)) : data.length
  if (bytes > largestLetter) throw tooLarge(bytes)
  if (!isClaim) return null
  const claim = { id: head.get(idHeader), hash: head.get(bodyHeader), bytes }
  if (/^[\w-]{1,64}$/.test(claim.id) && hash.safeParse(claim.hash).success && count.safeParse(bytes).success)
    return claim
  throw new TroupeError('ENVELOPE_INVALID', 'the letter does not say where its body is')
}

/**
 * Decodes a letter that came by a subject.
 * @param claim what the body must be, if it lay beside its message
 * @throws TroupeError `ENVELOPE_INVALID`.
 */
export function decodeLetter(bytes: Uint8Array, subject: string, subjects: Subjects, claim: Claim | null): Draft {
  if (bytes.length > largestLetter) throw tooLarge(bytes.length)
  if (claim !== null && (bytes.length !== claim.bytes || contentHash(bytes) !== claim.hash)) {
    throw new TroupeError('ENVELOPE_INVALID', 'the body of the letter does not match its hash')
  }
  let draft: Draft
  try {
    draft = schema.parse(isJson(bytes) ? jsonOf(bytes) : decodeForeign(bytes, bounds))
    // Also the partition: a letter elsewhere would be read by somebody who is not asked for it.
    if (subjects.mail(subjects.shardOfMail(subject), draft.to) === subject) return draft
  } catch (error) {
    throw new TroupeError('ENVELOPE_INVALID', 'the bytes are no letter', { cause: error })
  }
  throw new TroupeError('ENVELOPE_INVALID', `the letter is for ${draft.to.slice(0, 80)}, and came as mail for another`)
}

/** No letter in MessagePack begins like this: it would be a number. */
function isJson(bytes: Uint8Array): boolean {
  return bytes[0] === 0x7b
}

/** An outcome as a program in any language may write it. What actors are sent by workers has no such form. */
function jsonOf(bytes: Uint8Array): unknown {
  const value = JSON.parse(Buffer.from(bytes).toString('utf8')) as Draft
  if (isRemoteOutcome(value)) return decodeForeign(encode(value), bounds)
  throw new TroupeError('ENVELOPE_INVALID', 'only outcomes of tool workers may be JSON')
}

function tooLarge(bytes: number): TroupeError {
  return new TroupeError('ENVELOPE_TOO_LARGE', `the letter has ${bytes} bytes, at most ${largestLetter} are taken`)
}
