/**
 * Actions of users' own: what a machine has its process do, when the commit that says so is durable.
 *
 * Owns: running one, what is told of one that throws.
 * Does not own: when (`shard.ts`), which there are (`logic-step.ts`).
 *
 * - UC1 An action runs at most once, behind its commit, and never on replay; one that throws, or whose promise rejects, is an
 *   event and no crash.
 */
import { reasonOf } from './errors.js'
import type { Message } from './scope.js'
import type { CustomAction } from './user-actors.js'

/** Runs an action. @param tell takes the event of one that failed */
export function runCustomAction({ actor, name, run }: CustomAction, tell: (event: Message) => void): void {
  const failed = (error: unknown): void =>
    tell({ type: 'action.failed', actor, action: name.slice(0, 256), reason: reasonOf(error) })
  try {
    const made = run()
    if (made instanceof Promise) made.catch(failed)
  } catch (error) {
    failed(error)
  }
}
