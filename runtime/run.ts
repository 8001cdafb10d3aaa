/**
 * Runs: one task given to a crew, as its user sees it.
 *
 * Owns: the run's handle, its result, its streams.
 * Does not own: the run itself, which goes on in the crew's shard whoever watches.
 *
 * - U1 Leaving a stream, or never reading one, neither cancels nor slows the run.
 * - U2 `result` rejects lazily: a run whose result nobody awaits never ends the process.
 */
import type { ErrorCode } from './errors.js'
import { type Cursor, isLive, parseCursor, type TroupeEvent } from './events.js'

/** What a run used. */
export interface RunUsage {
  /** Input and output tokens, as far as known; of cut calls an estimate. */
  readonly tokens: number
  readonly modelCalls: number
  readonly toolCalls: number
}

/** What a run cost. */
export interface RunCost {
  /** US dollars. */
  readonly usd: number
  /** The same in billionths, exact. */
  readonly nanoUsd: number
}

/** A message of a conversation, in the OpenAI shape. */
export interface ChatMessage {
  readonly role: string
  readonly content?: unknown
  readonly [field: string]: unknown
}

/** What came of a run. */
export interface RunResult<Output> {
  readonly runId: string
  readonly output: Output
  /** The lead's conversation, without the system message. */
  readonly messages: readonly ChatMessage[]
  readonly usage: RunUsage
  readonly cost: RunCost
  /** Why the last reply ended: `stop`, `length`, … */
  readonly finishReason: string
  readonly rounds: number
}

/** A run that ended without an answer, as its error's details tell it. */
export interface RunFailure {
  readonly code: ErrorCode
  readonly runId: string
}

/** How to open a stream of a run. */
export interface StreamOptions {
  /** Cursor: the id of the last event that was seen. @default the run's beginning */
  readonly since?: string | undefined
  readonly signal?: AbortSignal | undefined
}

/** What a run's handle needs of its crew. */
export interface RunSource<Output> {
  /** Resolves with the run's id when its task is journalled. */
  readonly started: Promise<string>
  result(run: string): Promise<RunResult<Output>>
  events(
    run: string,
    after: Cursor | null,
    options: { live: boolean; signal?: AbortSignal | undefined },
  ): AsyncGenerator<TroupeEvent, void, void>
  cancel(run: string): Promise<void>
  /** Whose replies `text` gives. @default everybody's */
  readonly lead?: string
  /** Says that somebody watches from now on, so that the first reply is streamed too; ends with the returned function. */
  watch?(): () => void
}

/** Handle of one run. */
export class Run<Output = unknown> {
  readonly #source: RunSource<Output>
  #result: Promise<RunResult<Output>> | null = null

  /** @internal Made by `crew.start`. */
  constructor(source: RunSource<Output>) {
    this.#source = source
    source.started.catch(() => undefined)
  }

  /** The run's id, once its task is durable. Rejects when the task was refused. */
  get id(): Promise<string> {
    return this.#source.started
  }

  /**
   * The result. Rejects with a `TroupeError` whose code says why there is none; its details carry `runId`.
   * The rejection counts as handled until somebody awaits it.
   */
  get result(): Promise<RunResult<Output>> {
    this.#result ??= this.#source.started.then((run) => this.#source.result(run))
    this.#result.catch(() => undefined)
    return this.#result
  }

  /** Events of this run from its beginning, and deltas from now on. Ends with the run. */
  get events(): AsyncGenerator<TroupeEvent, void, void> {
    return this.stream()
  }

  /** The answer's text as it comes: pieces of every reply of the lead, best effort; the result has the whole. */
  get text(): AsyncIterable<string> {
    return this.#text()
  }

  /** Events from a cursor on. */
  async *stream(options: StreamOptions = {}): AsyncGenerator<TroupeEvent, void, void> {
    const unwatch = this.#source.watch?.()
    try {
      const run = await this.#source.started
      const after = options.since === undefined ? null : parseCursor(options.since)
      yield* this.#source.events(run, after, { live: true, signal: options.signal })
    } finally {
      unwatch?.()
    }
  }

  /** Ends the run with `RUN_CANCELLED`. Resolves when that is durable. */
  async cancel(): Promise<void> {
    await this.#source.cancel(await this.#source.started)
  }

  /**
   * The events as a server-sent-events `Response`. Each stored event has its cursor as `id`, so that a browser's
   * `Last-Event-ID`, passed as `since`, goes on where it left. Ends with the run; a client that leaves cancels nothing.
   */
  toResponse(options: StreamOptions = {}): Response {
    const events = this.stream(options)
    const encoder = new TextEncoder()
    const body = new ReadableStream<Uint8Array>({
      async pull(controller) {
        try {
          const next = await events.next()
          if (next.done === true) return controller.close()
          controller.enqueue(encoder.encode(toServerSentEvent(next.value)))
        } catch (error) {
          controller.error(error)
        }
      },
      async cancel() {
        await events.return(undefined)
      },
    })
    const headers = {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-store',
      'x-accel-buffering': 'no',
    }
    return new Response(body, { headers })
  }

  async *#text(): AsyncGenerator<string, void, void> {
    for await (const event of this.stream()) {
      const { lead = event.data['agent'] } = this.#source
      if (event.type === 'troupe.model.delta' && event.data['agent'] === lead) yield String(event.data['text'])
    }
  }
}

/** One event in the form of a text/event-stream. Live ones have no id: they are no cursors. */
export function toServerSentEvent(event: TroupeEvent): string {
  const id = isLive(event) ? '' : `id: ${event.id}\n`
  return `${id}event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`
}

/** Cancels a run when its signal says so. */
export function cancelOn<Output>(signal: AbortSignal, run: Run<Output>): void {
  const cancel = (): void => {
    run.cancel().catch(() => undefined)
  }
  if (signal.aborted) cancel()
  else signal.addEventListener('abort', cancel, { once: true })
}
