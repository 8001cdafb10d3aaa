/**
 * Checks: finds impure machines at the desk instead of on replay.
 *
 * Owns: the second opinion on a commit. On in development and tests, off in production.
 * Does not own: what a commit does.
 *
 * - Q1 With checks on, every commit is decided twice: on the live state, and on one rebuilt from its plain data. Both
 *   must say the same, or the shard stops: `IMPURE_MACHINE`.
 * - Q2 A context that does not survive being stored stops the shard with `CONTEXT_NOT_PLAIN`.
 * - Q3 With checks on, a machine that changes a context in place fails at once: contexts are frozen deeply.
 */
import { contentHash, decode, encode } from './codec.js'
import { type Commit, type DecideContext, decide } from './commit.js'
import type { Envelope } from './envelope.js'
import { TroupeError } from './errors.js'
import { fromStoredState, type ShardState, type StoredState, toStoredState } from './state.js'

/** Takes one envelope like `decide`, with a second opinion. @throws TroupeError `IMPURE_MACHINE`, `CONTEXT_NOT_PLAIN`. */
export function decideTwice(state: ShardState, envelope: Envelope, context: DecideContext): Commit {
  const { scope, machines } = context
  const before = encode(toStoredState(state, scope, machines))
  const twin = fromStoredState(state.shard, decode(before) as StoredState, scope, machines)
  if (!encode(toStoredState(twin, scope, machines)).equals(before)) {
    throw new TroupeError(
      'CONTEXT_NOT_PLAIN',
      `${state.shard}: a context changes when it is stored: ${firstChange(state, twin, context)}`,
    )
  }
  for (const [address, actor] of state.actors) {
    const odd = whyNotPlain(actor.snapshot.context, 'context')
    if (odd !== null) throw new TroupeError('CONTEXT_NOT_PLAIN', `${state.shard}: ${address}: ${odd}`)
    freeze(actor.snapshot.context)
  }
  const commit = decide(state, envelope, context)
  const again = decide(twin, envelope, context)
  const same =
    Buffer.from(commit.digest).equals(Buffer.from(again.digest)) && hashOf(state, context) === hashOf(twin, context)
  if (same) return commit
  throw new TroupeError(
    'IMPURE_MACHINE',
    `${state.shard}: commit ${commit.sequence} (${envelope.body.type} to ${envelope.to}) was decided in two ways`,
  )
}

function hashOf(state: ShardState, context: DecideContext): string {
  return contentHash(encode(toStoredState(state, context.scope, context.machines)))
}

/** The first actor whose context differs from its stored form. */
function firstChange(state: ShardState, twin: ShardState, { scope }: DecideContext): string {
  for (const [address, actor] of state.actors) {
    const stored = twin.actors.get(address)
    if (stored === undefined || !encode(scope.persist(actor.snapshot)).equals(encode(scope.persist(stored.snapshot))))
      return address
  }
  return 'a table of the shard'
}

/** The place in a context that would come back as something else; null when there is none. */
function whyNotPlain(value: unknown, place: string): string | null {
  if (value === undefined) return `${place} is undefined, which comes back as null`
  if (typeof value === 'number' && !Number.isFinite(value)) return `${place} is ${value}`
  if (typeof value !== 'object' || value === null)
    return typeof value === 'function' || typeof value === 'symbol' ? `${place} is a ${typeof value}` : null
  const prototype: unknown = Object.getPrototypeOf(value)
  if (!Array.isArray(value) && prototype !== Object.prototype && prototype !== null)
    return `${place} is no plain object`
  for (const [key, inner] of Object.entries(value)) {
    const odd = whyNotPlain(inner, `${place}.${key}`)
    if (odd !== null) return odd
  }
  return null
}

/** Freezes deeply; stops at what is frozen. */
function freeze(value: unknown): void {
  if (typeof value !== 'object' || value === null || Object.isFrozen(value)) return
  Object.freeze(value)
  for (const inner of Object.values(value)) freeze(inner)
}
