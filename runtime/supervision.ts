/**
 * Supervision: what becomes of an agent's task when its actor fails, as users write it, and as machines take it.
 *
 * Owns: its shape, its check, its defaults.
 * Does not own: restarting (`machines/crew-supervision.ts`), what a failure takes away (`commit.ts`).
 */
import { z } from 'zod'
import type { Supervision as SupervisionData } from '../machines/index.js'
import { ms } from './budget.js'

/**
 * What becomes of an agent whose actor fails: over a fault in a machine, over a message that nobody could take, or over more
 * messages than a commit may have. An agent that ends with a code, be it for lack of money, has not failed.
 */
export interface Supervision {
  /**
   * `resume`: it goes on from before the message that it failed over, which is a dead letter. A model call that was under way
   * is made again; calls without a result are told to be lost. `fresh`: its task begins anew, in a conversation of its own.
   * `never`: neither. What cannot be resumed begins anew.
   * @default 'never'
   */
  readonly restart?: 'resume' | 'fresh' | 'never'
  /** Most restarts of one task within `periodMs`. @default 3 */
  readonly intensity?: number
  /** @default 600_000 */
  readonly periodMs?: number
  /**
   * What follows when it is not restarted. `stop`: its task ends; a caller is told, a lead's run ends. `escalate`: the run ends,
   * whoever it was.
   * @default 'stop'
   */
  readonly then?: 'stop' | 'escalate'
}

/** The shape of a supervision. */
export const supervisionShape = z.strictObject({
  restart: z.enum(['resume', 'fresh', 'never']).optional(),
  // Each restart may happen in one commit, and that has its bounds.
  intensity: z.int().min(0).max(1_000).optional(),
  periodMs: ms.optional(),
  then: z.enum(['stop', 'escalate']).optional(),
})

/** What machines know of an agent's supervision: its own, field by field, before its crew's; nothing where nobody says any. */
export function supervisionOf(
  own: Supervision | undefined,
  crew: Supervision | undefined,
): { supervision?: SupervisionData } {
  if (own === undefined && crew === undefined) return {}
  const { restart = 'never', intensity = 3, periodMs = 600_000, then = 'stop' } = { ...crew, ...own }
  return { supervision: { restart, intensity, periodMs, then } }
}
