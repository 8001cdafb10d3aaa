/**
 * Steering: a message of the user for agents that are at work.
 *
 * Owns: what may be said, asking the crew, telling what it refused.
 * Does not own: when the message joins a conversation (`machines/agent.ts`), who takes it (`machines/crew.ts`).
 *
 * - ST1 What was accepted joins the conversation once, before the next model call of its agent; when there is none any
 *   more, an event `agent.unsteered` says so. Several keep their order.
 */
import { randomUUID } from 'node:crypto'
import { crewAddress } from './commit.js'
import { TroupeError } from './errors.js'
import { estimateTokens } from './prepared-crew.js'
import { messagesOf, type Part } from './run-input.js'
import type { Shard } from './shard.js'

/** What is said: text or parts. */
export type SteerInput = string | readonly Part[]

/** To whom it is said. */
export interface SteerOptions {
  /** Only while this run goes on. @default the run that goes on */
  readonly run?: string
  /** Every live task of this agent, or the actor of this name. @default the lead */
  readonly agent?: string
  /** The same key is the same message: said again it changes nothing. Up to 64 characters. @default a new one */
  readonly key?: string
}

type Whom = Pick<SteerOptions, 'run' | 'agent'>

/** Whom a message is for, as far as it is said. @throws TroupeError `INPUT_INVALID`. */
export function whomOf({
  run,
  agent,
}: {
  readonly run?: string | undefined
  readonly agent?: string | undefined
}): Whom {
  if ((run ?? '').length > 64 || (agent ?? '').length > 128)
    throw new TroupeError('INPUT_INVALID', 'a run has at most 64 characters, an agent 128')
  return { ...(run === undefined ? {} : { run }), ...(agent === undefined ? {} : { agent }) }
}

/** The key of a message, its own or a new one. @throws TroupeError `INPUT_INVALID`. */
export function steerKey({ key = randomUUID() }: SteerOptions): string {
  if (key.length >= 1 && key.length <= 64) return key
  throw new TroupeError('INPUT_INVALID', 'the key of a message has 1 to 64 characters')
}

/** The message as JSON text. @throws TroupeError `INPUT_INVALID`, `ENVELOPE_TOO_LARGE`. */
export function steerMessage(input: SteerInput): string {
  if (typeof input === 'string' || Array.isArray(input)) return messagesOf(input).messages[0]!
  throw new TroupeError('INPUT_INVALID', 'the message is not text or parts')
}

/** Says it; resolves when that is durable. @throws TroupeError `INPUT_INVALID`, `STEER_REFUSED`, and what intake refuses. */
export async function steer(active: Promise<Shard>, input: SteerInput, options: SteerOptions): Promise<void> {
  const message = steerMessage(input)
  const whom = whomOf(options)
  const body = { type: 'crew.steer', tokens: estimateTokens(message.length), key: steerKey(options), ...whom }
  const shard = await active
  const commit = await shard.post({ from: 'client/local', to: crewAddress, cause: '', body, values: [message] }, true)
  if (!commit.events.some(([, event]) => event.type === 'steer.refused' || event.type === 'message.dead')) return
  const { run, agent } = whom
  const who = agent === undefined ? '' : ` with ${agent} at work`
  const what = run === undefined ? `no run goes on${who}` : `${run} does not go on${who}`
  throw new TroupeError('STEER_REFUSED', `${shard.id}: ${what}`, { details: { crew: shard.id, ...whom } })
}
