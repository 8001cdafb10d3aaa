/**
 * What was said to a machine of a user's from outside: the keys of the last messages, so that each is taken once.
 *
 * Owns: the keys of a shard, their plain data, which envelope is one that came before.
 * Does not own: what a machine makes of a message (`user-actors.ts`), who asks again (`transport/nats-door-client.ts`).
 *
 * - HE1 A message with a key is taken once, as long as not 1,024 others with keys came behind it.
 * - HE2 What a machine refused since it has ended is not remembered: said again it is refused again.
 */
import type { Envelope } from './envelope.js'
import { TroupeError } from './errors.js'
import type { ShardState } from './state.js'
import { hasEnded, isUserAddress } from './user-actors.js'

/** Keys of a shard that are remembered. */
const maxKeys = 1_024
const maxKeyLength = 64

/** The keys of a shard. */
export class Heard {
  /** Sequence of the commit by key, the oldest first. */
  readonly #keys: Map<string, number>

  constructor(stored: Iterable<readonly [string, number]> = []) {
    this.#keys = new Map(stored)
  }

  get size(): number {
    return this.#keys.size
  }

  /** The commit that took the message of a key; undefined when none is known. */
  commitOf(key: string): number | undefined {
    return this.#keys.get(key)
  }

  add(key: string, sequence: number): void {
    this.#keys.set(key, sequence)
    if (this.#keys.size <= maxKeys) return
    const [oldest] = this.#keys.keys()
    this.#keys.delete(oldest!)
  }

  toStored(): [string, number][] {
    return [...this.#keys]
  }
}

/** Whether an envelope brings a machine what it was told before; notes it when not. A client's key is its message's cause. */
export function isHeardAgain(
  state: Pick<ShardState, 'heard' | 'sequence' | 'runs' | 'actors'>,
  { from, to, cause }: Pick<Envelope, 'from' | 'to' | 'cause'>,
): boolean {
  if (cause === '' || !isUserAddress(to) || !from.startsWith('client/')) return false
  if (state.heard.commitOf(cause) !== undefined) return true
  if (!hasEnded(state, to)) state.heard.add(cause, state.sequence)
  return false
}

/** The key of a message. @throws TroupeError `INPUT_INVALID`. */
export function messageKey(key: string): string {
  if (typeof key === 'string' && key.length >= 1 && key.length <= maxKeyLength) return key
  throw new TroupeError('INPUT_INVALID', `the key of a message has 1 to ${maxKeyLength} characters`)
}
