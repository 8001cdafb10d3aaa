/**
 * The one lane through which everything is written to LevelDB.
 *
 * Owns: the order of LevelDB's writes, why nothing is written any more.
 * Does not own: appends (`level-commit.ts`), opening the database anew (`level-journal.ts`).
 *
 * - G1 One write at a time.
 * - G2 After a failed write, here or in the log, nothing is written until `reset`: LevelDB would go on behind a torn
 *   record in its log, and lose on the next open what it acknowledged there.
 */

import { TroupeError } from '../runtime/errors.js'
import { storeError } from './level-database.js'

interface Task {
  readonly run: () => Promise<void>
  readonly resolve: () => void
  readonly reject: (error: TroupeError) => void
}

/** The write lane of one journal. */
export class LevelLane {
  /** Why nothing is written any more; null while all is well. */
  failure: TroupeError | null = null
  /** Called when that changes from null. */
  onFailure: (error: TroupeError) => void = () => undefined

  readonly #tasks: Task[] = []
  #running: Promise<void> | null = null

  /** Runs something that writes, alone. */
  run(run: () => Promise<void>): Promise<void> {
    if (this.failure !== null) return Promise.reject(copyOf(this.failure))
    return new Promise<void>((resolve, reject) => {
      this.#tasks.push({ run, resolve, reject })
      this.#running ??= this.#runAll()
    })
  }

  async #runAll(): Promise<void> {
    for (let task = this.#tasks.shift(); task !== undefined; task = this.#tasks.shift()) {
      try {
        await task.run()
        task.resolve()
      } catch (thrown) {
        task.reject(copyOf(this.fail(thrown)))
      }
    }
    this.#running = null
  }

  /** Nothing is written from now on. */
  fail(thrown: unknown): TroupeError {
    if (this.failure !== null) return this.failure
    const error = storeError(thrown)
    this.failure = error
    for (const { reject } of this.#tasks.splice(0)) reject(copyOf(error))
    this.onFailure(error)
    return error
  }

  /** Resolves when nothing is written or waits. */
  async idle(): Promise<void> {
    while (this.#running !== null) await this.#running
  }

  /** Goes on after a failure, on a store that was opened anew. */
  reset(): void {
    this.failure = null
  }
}

/** The same error with the caller's own stack and `cause`. */
export function copyOf(error: TroupeError): TroupeError {
  const { code, message, retryable, details, cause } = error
  return new TroupeError(code, message, { retryable, details, cause })
}
