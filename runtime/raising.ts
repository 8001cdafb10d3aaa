/**
 * Raising: other limits for a budget that is at work.
 *
 * Owns: asking the crew, telling what it refused.
 * Does not own: what becomes of whoever waits for it (`machines/crew.ts`), the books (`machines/budget-keeper.ts`).
 *
 * - RA1 A raise names what is to be the limit, not by how much: said twice it is the same.
 */
import { type BudgetLimits, raiseOf } from './budget.js'
import { crewAddress } from './commit.js'
import { TroupeError } from './errors.js'
import { poolAddress } from './pool-books.js'
import type { Shard } from './shard.js'

/** Whose budget is raised. */
export interface RaiseOptions {
  /** The budget of this agent. @default the crew's, or the run's that goes on */
  readonly agent?: string
}

/** Raises; resolves when that is durable. @throws TroupeError `INPUT_INVALID`, `RAISE_REFUSED`, and what intake refuses. */
export async function raise(active: Promise<Shard>, to: BudgetLimits, { agent }: RaiseOptions = {}): Promise<void> {
  const limits = raiseOf(to)
  const body = { type: 'crew.raise', limits, ...(agent === undefined ? {} : { agent }) }
  const shard = await active
  const whom = shard.state.actors.has(poolAddress) ? poolAddress : crewAddress
  const commit = await shard.post({ from: 'client/local', to: whom, cause: '', body, values: [] }, true)
  if (!commit.events.some(([, { type }]) => type === 'raise.refused' || type === 'message.dead')) return
  const why = agent === undefined ? 'no budget is at work' : `${agent} has no budget of its own, or none is at work`
  throw new TroupeError('RAISE_REFUSED', `${shard.id}: ${why}`, { details: { crew: shard.id } })
}
