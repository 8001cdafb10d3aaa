/**
 * What actors have to say to other crews when they go with what they belonged to.
 *
 * Owns: the letters of an envoy and of a keeper that are stopped in the midst of something.
 * Does not own: who is stopped, and when (`commit.ts`), the letters of those that end by themselves (`machines/`).
 */
import { returnOf, type Share, type SharedGrant } from '../machines/index.js'
import { partsOf } from './mail.js'
import type { Message } from './scope.js'
import type { Actor } from './state.js'

/** A letter and the address that it is for. */
export interface Farewell {
  readonly to: string
  readonly message: Message
}

/**
 * An agent of another crew works for nobody when its envoy goes. A keeper spends no more: what it has used of a budget that
 * crews share is spent, open calls at their worst, and the rest others may have.
 */
export function farewellsOf({ kind, snapshot }: Actor, crewAddress: string): readonly Farewell[] {
  if (kind === 'envoy') {
    const [crew] = partsOf((snapshot.context as { agent: string }).agent)
    return [{ to: `${crew}/${crewAddress}`, message: { type: 'delegate.revoke' } }]
  }
  if (kind !== 'budget') return []
  const { share, grants } = snapshot.context as KeeperContext
  return returnOf(share, grants, true).map(({ pool, message }) => ({ to: pool, message }))
}

interface KeeperContext {
  readonly share: Share | null
  readonly grants: Readonly<Record<string, SharedGrant>>
}
