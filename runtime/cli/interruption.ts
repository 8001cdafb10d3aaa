/**
 * Interruptions of a command that follows something: signals, and a reader that left.
 *
 * Owns: the one signal that stops cleanly, the second one that ends at once.
 * Does not own: what a clean stop is (`run.ts`, `run-machine.ts`).
 */
import { duration, exitCodes, writeLine } from './output.js'

/** How long a clean stop waits for what is running. */
export const graceMs = 10_000

/** Signals and a reader that left. */
export class Interruption {
  readonly #controller = new AbortController()
  /** The reader of stdout is gone: there is nobody to tell anything. */
  quiet = false

  constructor() {
    for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, this.#onSignal)
    process.stdout.on('error', this.#onPipe)
    process.stderr.on('error', ignore)
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  stop(): void {
    for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.off(name, this.#onSignal)
  }

  readonly #onSignal = (): void => {
    if (this.signal.aborted) process.exit(exitCodes.interrupted)
    writeLine(`stopping: what is running has ${duration(graceMs)} to end; once more stops now`)
    this.#controller.abort()
  }

  readonly #onPipe = (error: NodeJS.ErrnoException): void => {
    if (error.code !== 'EPIPE') throw error
    this.quiet = true
    this.#controller.abort()
  }
}

function ignore(): void {
  // Nobody reads our lines: the run goes on all the same.
}
