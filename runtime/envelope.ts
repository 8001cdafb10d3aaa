/**
 * Envelopes: one message on its way into a shard, and where it comes from.
 *
 * Owns: the envelope's shape, its stored form, the addresses that are not actors.
 * Does not own: who may send what (`shard.ts`, `edge.ts`).
 *
 * - E1 Ids and addresses are checked when they enter; nothing else is ever put into a subject, a key or a file name.
 * - E2 An envelope's message is plain data; content travels beside it as opaque values.
 */
import { z } from 'zod'
import { BlobRef, type Value } from './codec.js'
import { TroupeError } from './errors.js'
import type { Message } from './scope.js'
import type { ShardState } from './state.js'

/** One external message to an actor of a shard. */
export interface Envelope {
  /** Address of the sender: an actor, `port/…`, `clock/timer`, `client/…` or `shard/…`; of a letter with its shard before it. */
  readonly from: string
  /** Address of the actor, or `shard/…`. */
  readonly to: string
  /** Epoch milliseconds; stamped when it is taken, never running backwards inside a shard. */
  readonly at: number
  /** What caused it: an effect's or timer's id, a letter's place (`mail.ts`); empty for a new cause. */
  readonly cause: string
  readonly body: Message
  readonly values: readonly Value[]
}

/** An envelope before it is taken: without its time. */
export type Draft = Omit<Envelope, 'at'>

/** An envelope as it lies in a record. */
export type StoredEnvelope = readonly [number, string, string, string, Message, readonly Value[]]

export function toStored(envelope: Envelope): StoredEnvelope {
  return [envelope.at, envelope.from, envelope.to, envelope.cause, envelope.body, envelope.values]
}

export function fromStored([at, from, to, cause, body, values]: StoredEnvelope): Envelope {
  return { at, from, to, cause, body, values }
}

/** Bytes that an envelope takes in memory and in a record, roughly. */
export function sizeOf(draft: Draft): number {
  let bytes = 256
  for (const value of draft.values) bytes += value instanceof BlobRef ? 64 : value.length
  return bytes
}

const idPattern = /^[A-Za-z0-9_-]{1,64}$/

/** Checks an id that comes from outside: crew, agent, client. @throws TroupeError `ID_INVALID`. */
export function checkId(id: unknown, what: string): string {
  if (typeof id === 'string' && idPattern.test(id)) return id
  const shown = typeof id === 'string' ? JSON.stringify(id.slice(0, 80)) : typeof id
  throw new TroupeError('ID_INVALID', `${what} must match ${idPattern.source}, not ${shown}`)
}

/** Refuses messages that outsiders must not send. @throws TroupeError `MESSAGE_REFUSED`. */
export function checkType(type: string): void {
  // XState would believe a forged completion of a child or timer.
  if (/^xstate\./i.test(type))
    throw new TroupeError('MESSAGE_REFUSED', `messages of type ${type.slice(0, 80)} are made inside only`)
}

/** Which outcomes an effect may have. */
const outcomesOf: Readonly<Record<string, readonly string[]>> = {
  'model.call': ['model.replied', 'model.failed', 'model.refused', 'effect.interrupted', 'effect.crashed'],
  'round.prepare': ['round.prepared', 'round.stopped', 'round.failed', 'effect.interrupted', 'effect.crashed'],
  'tool.call': ['tool.succeeded', 'tool.failed', 'effect.interrupted', 'effect.crashed'],
  'human.ask': ['human.answered'],
  'promise.call': ['promise.resolved', 'promise.rejected', 'effect.interrupted', 'effect.crashed'],
  'tool.verify': ['tool.verified', 'effect.interrupted', 'effect.crashed'],
}

/**
 * Refuses what says it comes from a port and cannot: an outcome of an effect that never was, of another kind of effect,
 * or for another actor than the one that asked. One of a closed effect is merely late.
 * @throws TroupeError `OUTCOME_FORGED`.
 */
export function checkOutcome(draft: Draft, state: Pick<ShardState, 'shard' | 'sequence' | 'effects'>): void {
  if (!draft.from.startsWith('port/')) return
  const { from, to, cause, body } = draft
  const effect = state.effects.get(cause)
  const asked = effect === undefined ? null : effect.body.type
  const isKnown = asked !== null || Number(/^(\d{1,15})-\d{1,9}$/.exec(cause)?.[1] ?? Infinity) <= state.sequence
  const types = asked === null ? Object.values(outcomesOf).flat() : (outcomesOf[asked] ?? [])
  const port = body.type.startsWith('effect.') ? from : `port/${body.type.split('.')[0] ?? ''}`
  if (isKnown && types.includes(body.type) && from === port && (effect === undefined || effect.from === to)) return
  const what = `${body.type.slice(0, 80)} from ${from.slice(0, 80)} for ${to.slice(0, 80)}`
  throw new TroupeError('OUTCOME_FORGED', `${state.shard}: ${what} is no outcome of the effect '${cause.slice(0, 80)}'`)
}

/** Messages that the shard itself takes, at `shard/self`. */
export const shardMessages = {
  /** First definition, or another one at a commit boundary. `definition` is its canonical JSON. */
  'crew.defined': z.object({ type: z.literal('crew.defined'), definition: z.string(), crew: z.unknown() }),
  /** A `once` effect starts: written before it does. */
  'effect.dispatched': z.object({
    type: z.literal('effect.dispatched'),
    effect: z.string(),
    executor: z.string(),
    startBy: z.number(),
  }),
  /** Another worker owns the shard from here on. Nobody did for `downMs`: timers of active time move. */
  'shard.taken': z.object({ type: z.literal('shard.taken'), owner: z.string(), downMs: z.number() }),
  /** Its owner left it in order; `parked` are effects that no port had yet. */
  'shard.left': z.object({ type: z.literal('shard.left'), owner: z.string(), parked: z.array(z.string()) }),
  /** Letters that were handed over leave the outbox. */
  'mail.handed': z.object({ type: z.literal('mail.handed'), rows: z.array(z.string()) }),
  /** The process was down so long; timers of active time move. */
  'shard.resumed': z.object({ type: z.literal('shard.resumed'), downMs: z.number() }),
  /** Changed code was accepted: commits up to `until` may have other digests. */
  'shard.upgraded': z.object({ type: z.literal('shard.upgraded'), until: z.number() }),
  /** Records were lost and given up. */
  'shard.repaired': z.object({ type: z.literal('shard.repaired'), reason: z.string() }),
} as const
