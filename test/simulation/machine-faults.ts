/** Machines that throw: agents fail over messages that a seed has picked, in every process and on every replay the same. */
import { contentHash } from '../../runtime/codec.js'
import type { DeadLetter } from '../../runtime/dead-letter.js'
import { type Message, Scope, type Snapshot, type Step } from '../../runtime/scope.js'
import type { Generation, ShardState } from '../../runtime/state.js'
import { SeededRandom } from './seeded-random.js'

/** What an agent is said to have failed over. */
export const planted = 'planted: a machine threw'

/** Whether it is a failure that the simulation means. */
export function mayFail({ code, reason }: { readonly code: string; readonly reason: string }): boolean {
  return code === 'EFFECT_CRASHED' || reason === planted
}

/** Whether a dead letter is one for another reason than that nobody was there to take it, or would. */
export function wasTaken(
  state: ShardState,
  { letter, code }: Pick<DeadLetter, 'code'> & { letter: Generation },
): boolean {
  return (code !== 'OUTCOME_IGNORED' && code !== 'ACTOR_FAILED') || state.letters.get(letter)?.reason === planted
}

/** One of so many messages of an agent, in a seed that has such faults. */
const oneOf = 40

/**
 * Whether the agents of a seed fail. Not of the seed's own row of draws, and so that no seed that is kept for what it found
 * has it.
 */
export function isFragile(seed: number): boolean {
  return new SeededRandom(seed + 0x66726114).chance(0.15)
}

/** What runs the machines of a seed. */
export function scopeOf(seed: number): Scope {
  return isFragile(seed) ? new FaultyScope(seed) : new Scope()
}

class FaultyScope extends Scope {
  readonly #seed: number

  constructor(seed: number) {
    super()
    this.#seed = seed
  }

  override deliver(snapshot: Snapshot, address: string, message: Message): Step {
    if (address.startsWith('agent/') && this.#strikes(address, message)) throw new Error(planted)
    return super.deliver(snapshot, address, message)
  }

  /** By what it is and to whom: whoever decides again decides the same. */
  #strikes(address: string, message: Message): boolean {
    const hash = contentHash(`${this.#seed} ${address} ${JSON.stringify(message)}`)
    return Number.parseInt(hash.slice(0, 8), 16) % oneOf === 0
  }
}
