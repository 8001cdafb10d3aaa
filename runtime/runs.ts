/**
 * The runs of a crew, those that ended too: a crew that is asked all day has many thousands.
 *
 * Owns: their table, and finding the one of a key and those that go on without looking through it.
 * Does not own: what becomes of a run (`commit.ts`), its conversation (`conversation.ts`).
 *
 * - RU1 Starting, finding and ending a run cost the same however many runs there were before it.
 */
import type { Envelope } from './envelope.js'
import { taskKeyOf } from './mail.js'
import type { Message } from './scope.js'

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

/** The end of a run that never began, or whose crew failed. */
export function failedRun(run: string, code: string, reason: string) {
  const spent = { nanoUsd: 0, tokens: 0, modelCalls: 0, toolCalls: 0 }
  return { type: 'run.finished', run, code, reason, finish: '', rounds: 0, spent }
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
  /** Full address of whoever waits for its end in another crew; empty for nobody. */
  readonly replyTo: string
  /** The agent that leads it; empty for the crew's own lead. */
  readonly lead: string
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

  /**
   * Takes the task of an envelope.
   * @param replayed the dead letter that gives it again: another run than the one that it ended as, and nobody waits for it
   */
  queue(id: string, sequence: number, { from, cause, body }: Envelope, replayed: Message | null): void {
    const { key, data, agent } = replayed === null ? body : { ...replayed, key: id }
    const replyTo = replayed === null && body.type === 'delegate.task' ? from : ''
    this.set(id, {
      run: id,
      key: replyTo !== '' ? taskKeyOf(replyTo, cause) : typeof key === 'string' ? key : id,
      sequence,
      data: data === true,
      status: 'queued',
      conversation: id,
      skip: 0,
      until: 0,
      end: null,
      replyTo,
      lead: replyTo === '' ? '' : (agent as string),
    })
  }

  /** Ends a run. @param until length of its conversation */
  finish(run: RunState, until: number, end: RunEnd): void {
    run.status = 'finished'
    run.until = until
    run.end = end
    this.#unfinished.delete(run.run)
  }
}
