/**
 * The runs of a crew, those that ended too: a crew that is asked all day has many thousands.
 *
 * Owns: their table, and finding the one of a key and those that go on without looking through it.
 * Does not own: what becomes of a run (`commit.ts`), its conversation (`conversation.ts`).
 *
 * - RU1 Starting, finding and ending a run cost the same however many runs there were before it.
 */

/** What became of a run. */
export interface RunEnd {
  readonly code: string | null
  readonly reason: string
  readonly finish: string
  readonly rounds: number
  readonly spent: {
    readonly nanoUsd: number
    readonly tokens: number
    readonly modelCalls: number
    readonly toolCalls: number
  }
  readonly at: number
}

/** One task of the crew. */
export interface RunState {
  readonly run: string
  readonly key: string
  /** Commit that took the task. */
  readonly sequence: number
  /** Whether the last value of that commit is the run's `data`. */
  readonly data: boolean
  status: 'queued' | 'running' | 'finished'
  conversation: string
  /** Entries of the conversation that belong to earlier runs. */
  skip: number
  /** Length of the conversation at the run's end. */
  until: number
  end: RunEnd | null
}

/** Runs by their id, in the order of their tasks. */
export class Runs extends Map<string, RunState> {
  readonly #byKey = new Map<string, RunState>()
  readonly #unfinished = new Map<string, RunState>()

  override set(id: string, run: RunState): this {
    if (!this.#byKey.has(run.key)) this.#byKey.set(run.key, run)
    if (run.status !== 'finished') this.#unfinished.set(id, run)
    return super.set(id, run)
  }

  /** The first run with this key. */
  withKey(key: string): RunState | undefined {
    return this.#byKey.get(key)
  }

  /** Those that wait or go on, by their id, in the order of their tasks. */
  get unfinished(): ReadonlyMap<string, RunState> {
    return this.#unfinished
  }

  /** Ends a run. @param until length of its conversation */
  finish(run: RunState, until: number, end: RunEnd): void {
    run.status = 'finished'
    run.until = until
    run.end = end
    this.#unfinished.delete(run.run)
  }
}
