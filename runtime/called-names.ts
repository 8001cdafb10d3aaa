/**
 * The names by which a model calls other agents: to have them work, or to hand over to them.
 *
 * Owns: the names.
 * Does not own: what they stand for (`define.ts`), what becomes of a call (`verdict.ts`).
 */
import { contentHash } from './codec.js'

/** Whether a delegate is an agent of another crew. */
export function isAddress(delegate: string): boolean {
  return delegate.includes('/')
}

/** The name by which a model calls a delegate: `<crew>_<agent>` for one of another crew, cut where that is too long. */
export function delegateName(delegate: string): string {
  if (!isAddress(delegate)) return delegate
  const name = delegate.replace('/agent/', '_')
  return name.length <= 64 ? name : `${name.slice(0, 55)}_${contentHash(delegate).slice(0, 8)}`
}

/** The name by which a model hands over to an agent. */
export function handoffName(agent: string): string {
  return `transfer_to_${agent}`.slice(0, 64)
}
