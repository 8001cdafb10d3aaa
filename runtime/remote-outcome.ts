/**
 * Outcomes of port work that another process did: a letter for the shard, from the executor that the effect names.
 *
 * Owns: the letter's shape, who may send it, what it means for whoever asked.
 * Does not own: getting it here (`transport/nats-mail.ts`), taking it (`shard.ts`).
 *
 * - RMO1 Only the executor that an effect's `dispatched` record names brings its outcome; what anybody else sends is a dead
 *   letter.
 * - RMO2 Letters that come twice, or when the effect is closed, change nothing and are no error.
 */
import { z } from 'zod'
import type { ToolCall } from '../machines/index.js'
import { type Outcome, toolOutcome, verified } from './edge.js'
import type { Draft } from './envelope.js'
import { TroupeError } from './errors.js'
import type { ToolOutcome, ToolVerified } from './ports.js'
import { cutBytes, wellFormed } from './redact.js'
import type { Effect, ShardState } from './state.js'

/** What an executor says of a piece of work. The text that goes with it, if any, is the letter's one value. */
const ended = z.discriminatedUnion('status', [
  z.object({ status: z.literal('ok'), truncated: z.boolean() }),
  z.object({
    status: z.literal('failed'),
    kind: z.enum(['told', 'threw', 'timeout', 'unserialisable', 'unavailable']),
  }),
  /** It was not started, for sure. */
  z.object({ status: z.literal('dropped') }),
  z.object({ status: z.literal('verified'), done: z.boolean().nullable() }),
])
const body = z.looseObject({ type: z.literal('tool.ended'), executor: z.string() })

/** Longest text that an executor may bring, in bytes: the largest `maxBytes` of a tool. */
const maxTextBytes = 16 * 1_048_576
const prefix = 'outcome/'

/** Where a worker sends outcomes: an address in the shard that only this worker may write to. */
export function outcomeAddress(worker: string): string {
  return `${prefix}${worker}`
}

/** Whether a letter is one of these. */
export function isRemoteOutcome({ to }: Draft): boolean {
  return typeof to === 'string' && to.startsWith(prefix)
}

/** The letter of an outcome. @param executor `<worker>.<epoch>`, as the `dispatched` record names it */
export function remoteOutcome(executor: string, effect: string, outcome: ToolOutcome | ToolVerified): Draft {
  const worker = executor.slice(0, executor.lastIndexOf('.'))
  const told = toldOf(outcome)
  return {
    from: 'port/tool',
    to: outcomeAddress(worker),
    cause: effect,
    body: { type: 'tool.ended', executor, ...told.fields },
    values: told.text === null ? [] : [told.text],
  }
}

function toldOf(outcome: ToolOutcome | ToolVerified): { readonly fields: object; readonly text: string | null } {
  if ('done' in outcome) {
    return { fields: { status: 'verified', done: outcome.done }, text: outcome.done === true ? outcome.content : null }
  }
  const { status } = outcome
  if (status === 'ok') return { fields: { status, truncated: outcome.truncated }, text: outcome.content }
  if (status === 'failed') return { fields: { status, kind: outcome.kind }, text: outcome.message }
  return { fields: { status: 'dropped' }, text: null }
}

/**
 * What the shard is to take for a letter; null when the effect is closed.
 * @param random uniform in [0, 1)
 * @throws TroupeError `OUTCOME_FORGED`, `ENVELOPE_INVALID`.
 */
export function readRemoteOutcome(
  letter: Draft,
  state: Pick<ShardState, 'shard' | 'sequence' | 'effects'>,
  random: () => number,
): Draft | null {
  const { cause } = letter
  const effect = state.effects.get(cause)
  const sequence = Number(/^(\d{1,15})-\d{1,9}$/.exec(cause)?.[1] ?? Infinity)
  if (effect === undefined && sequence <= state.sequence) return null
  const worker = letter.to.slice(prefix.length)
  const head = body.safeParse(letter.body)
  const executor = head.success ? head.data.executor : ''
  const isSender = executor.slice(0, executor.lastIndexOf('.')) === worker && executor === effect?.executor
  if (effect === undefined || !isSender || effect.startBy === null) {
    const what = `${worker.slice(0, 80)} brings an outcome of '${cause.slice(0, 80)}'`
    throw new TroupeError('OUTCOME_FORGED', `${state.shard}: ${what}, and was not asked for it`)
  }
  const outcome = outcomeOf(letter, effect, random)
  return { from: 'port/tool', to: effect.from, cause, body: outcome.body, values: outcome.values }
}

function isToolCall(body: Effect['body']): body is ToolCall {
  return body.type === 'tool.call' || body.type === 'tool.verify'
}

function outcomeOf(letter: Draft, { body: call }: Effect, random: () => number): Outcome {
  const told = ended.safeParse(letter.body)
  const [text = ''] = letter.values
  const fits = told.success && (told.data.status === 'verified') === (call.type === 'tool.verify')
  const isDropped = told.success && told.data.status === 'dropped'
  if ((!fits && !isDropped) || !isToolCall(call) || typeof text !== 'string') {
    throw new TroupeError('ENVELOPE_INVALID', `the outcome of ${letter.cause} is none of a ${call.type}`)
  }
  const content = cutBytes(wellFormed(text), maxTextBytes)
  switch (told.data.status) {
    case 'dropped':
      return { body: { type: 'effect.interrupted', started: false }, values: [] }
    case 'verified':
      return verified({ done: told.data.done, content })
    case 'ok':
      return toolOutcome({ status: 'ok', content, truncated: told.data.truncated }, call, { random })!
    case 'failed':
      return toolOutcome({ status: 'failed', kind: told.data.kind, message: content }, call, { random })!
  }
}
