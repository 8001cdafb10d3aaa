/**
 * Waiting for a store that another process has for a moment only: a command, or a run that is ending.
 *
 * Owns: for how long a command waits, telling that it does.
 * Does not own: asking again where no owner answers (`index.ts`), who passes (`control-answers.ts`).
 *
 * - CB1 An owner that stays and answers is not waited for: whoever cannot use its crews is told at once.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { isTroupeError } from '../errors.js'
import type { Runtime } from '../face.js'
import { Runtime as LocalRuntime } from '../runtime.js'
import { writeLine } from './output.js'

/** How long a store that is in use is waited for. */
const patienceMs = 5_000
const askAgainMs = 50
/** What is shorter is not worth telling. */
const tellMs = 300

/** One wait for a store. */
export class BusyStore {
  readonly #since = performance.now()
  #told = false

  /** Called whenever it is in use; says so once. */
  readonly tell = (): void => {
    if (this.#told || performance.now() - this.#since < tellMs) return
    this.#told = true
    writeLine('the store is in use: waiting for it …')
  }

  /** Waits before it is asked again. False: what was refused is refused for good. */
  async again(runtime: Runtime, refusal: unknown): Promise<boolean> {
    if (!isPassing(runtime, refusal) || performance.now() - this.#since > patienceMs) return false
    this.tell()
    await delay(askAgainMs)
    return true
  }
}

/** Says that this process has its store for a moment only: whom it refuses may ask again. */
export function passing(runtime: Runtime): void {
  if (runtime instanceof LocalRuntime) runtime.passing = true
}

/** Whether a store's owner goes, or is gone since it was reached. */
function isPassing(runtime: Runtime, refusal: unknown): boolean {
  if (!isTroupeError(refusal) || runtime instanceof LocalRuntime) return false
  return refusal.code === 'RUNTIME_CLOSED' || (refusal.code === 'STORE_BUSY' && refusal.details['passing'] === true)
}
