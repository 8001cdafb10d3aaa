/**
 * The ports to the outside that are not storage: clock, model, tool.
 *
 * Owns: the shapes that cross them. Implementations are in `actors/`; simulation brings its own.
 * Every port call answers with an outcome, also for failures; a port that throws or never answers is a bug that the
 * dispatcher turns into an outcome.
 */

import type { FailureKind } from '../machines/index.js'

export type { FailureKind }

/** Time for the shard's owner. Machines never see it; they see the `at` of an envelope. */
export interface Clock {
  /** Epoch milliseconds. May step; the shard never lets `at` run backwards. */
  now(): number
  /** Milliseconds that only grow, for timeouts inside one process. */
  monotonic(): number
  /** Calls back once after `delayMs`; returns a cancel. Must not keep the process alive. */
  after(delayMs: number, callback: () => void): () => void
}

/** What a model may be asked for beside messages and tools. Absent fields are left to the provider. */
export interface ModelSettings {
  readonly temperature?: number
  readonly topP?: number
  /** Upper bound of output tokens a round; the grant may lower it. Default 4,096. */
  readonly maxOutputTokens?: number
  readonly toolChoice?: 'auto' | 'required' | 'none'
  readonly parallelToolCalls?: boolean
  readonly reasoningEffort?: 'minimal' | 'low' | 'medium' | 'high'
  readonly seed?: number
  readonly stop?: readonly string[]
  /** Merged into the request body last; for what a provider has and this list has not. */
  readonly extra?: Readonly<Record<string, unknown>>
}

/** A price in micro-dollars per million tokens (3 $ a million = 3,000,000). */
export interface Price {
  readonly input: number
  readonly output: number
}

/** Token counts of one model call. */
export interface Usage {
  readonly inputTokens: number
  readonly outputTokens: number
  readonly cachedInputTokens: number
  /** True when the provider sent none and the counts are estimates. */
  readonly estimated: boolean
}

/** A tool call as the model wrote it; nothing about it can be trusted. */
export interface RawToolCall {
  readonly id: string
  readonly name: string
  /** The arguments as text; may be empty or broken JSON. */
  readonly arguments: string
}

/** A piece of a reply while it streams. Best effort: may be lost or coalesced. */
export interface ModelDelta {
  readonly text: string
  /** Characters of text before this piece in this call. */
  readonly offset: number
}

/** One request to one deployment. */
export interface ModelRequest {
  readonly effect: string
  /** `<provider>:<model>`. */
  readonly deployment: string
  /** Chat messages in order, each as JSON text in the OpenAI shape. They are sent as they are, never parsed. */
  readonly messages: readonly string[]
  /** JSON text of the `tools` array; null when there are no tools. */
  readonly tools: string | null
  /** JSON text of `response_format`; null for plain text. */
  readonly responseFormat: string | null
  readonly settings: ModelSettings
  /** `max_tokens` to send: what the grant pays for. */
  readonly maxOutputTokens: number
  readonly timeouts: ModelTimeouts
  /** Whether to ask for a stream. The reply is the same. */
  readonly stream: boolean
  readonly signal: AbortSignal
  readonly onDelta?: ((delta: ModelDelta) => void) | undefined
}

/** Bounds of one model call, in milliseconds. */
export interface ModelTimeouts {
  /** Until the response headers are there. Default 60,000. */
  readonly connectMs: number
  /** Until the first byte of a stream's content. Default 120,000. */
  readonly firstTokenMs: number
  /** Between two chunks of a stream. Default 60,000. */
  readonly gapMs: number
  /** The whole call. Default 600,000. */
  readonly totalMs: number
}

/** A reply that can go on in the conversation. */
export interface ModelReply {
  readonly ok: true
  /** The assistant message as JSON text in the OpenAI shape, normalised: only role, content, refusal, tool_calls. */
  readonly message: string
  readonly text: string
  readonly toolCalls: readonly RawToolCall[]
  readonly finishReason: 'stop' | 'length' | 'tool_calls' | 'content_filter' | 'other'
  readonly usage: Usage
  /** What it cost, in nano-dollars; null when the model's price is unknown. */
  readonly costNanoUsd: number | null
  /** The model that answered, as the provider names it. */
  readonly model: string
}

/** A call that brought no usable reply. */
export interface ModelFailure {
  readonly ok: false
  readonly kind: FailureKind
  /** For people; secrets redacted, at most 2 KiB. */
  readonly message: string
  readonly status: number | null
  /** The provider's wish, from header or body. */
  readonly retryAfterMs: number | null
  /** False when the provider certainly did not bill (refused before work, never connected). */
  readonly billed: boolean
  /** Known usage and cost of a cut call; null otherwise. */
  readonly usage: Usage | null
  readonly costNanoUsd: number | null
}

/** The model port. Never rejects. */
export interface ModelPort {
  call(request: ModelRequest): Promise<ModelReply | ModelFailure>
  /** List price of a deployment; null when unknown. */
  price(deployment: string): Price | null
  /** Refuses a deployment that cannot work: unknown provider, no key. @throws TroupeError `MODEL_UNKNOWN`, `KEY_MISSING`. */
  check(deployment: string): void
  close(): Promise<void>
}

/** Where another process is to work on a call. */
export interface RemotePlace {
  /** Who it is, `<worker>.<epoch>`. */
  readonly executor: string
  /** It starts within so long from now, or not at all; at most `startWithinMs` of the dispatcher. */
  readonly withinMs: number
}

/** One execution of one tool call. */
export interface ToolRequest {
  readonly effect: string
  /** Name of the agent that asked. */
  readonly agent: string
  readonly shard: string
  readonly runId: string
  /** The call's id in the conversation. */
  readonly callId: string
  /** The same on every try of this call. */
  readonly idempotencyKey: string
  readonly tool: string
  /** The validated arguments as JSON text. */
  readonly arguments: string
  readonly timeoutMs: number
  /** The run's `data`: journalled JSON. */
  readonly data: unknown
  readonly signal: AbortSignal
  /**
   * Called when the call has its place and would start now. For a `once` tool, and for any that another process is to
   * work on, this writes the `dispatched` record.
   * False: the call must not be made; answer `dropped`.
   */
  readonly mayStart: (remote?: RemotePlace) => Promise<boolean>
  /** A number that is higher with every owner of the shard: who works for a later one refuses an earlier one. */
  readonly term: number
  /** Aborts when the shard goes to another process: a call that has no place yet is not made here (`dropped`). */
  readonly leaving: AbortSignal
  readonly progress: (value: unknown) => void
}

/** What came of it. */
export type ToolOutcome =
  /** `content` is what the model is told: text, at most the tool's `maxBytes`. */
  | { readonly status: 'ok'; readonly content: string; readonly truncated: boolean }
  /** The tool said no in its own words (`ToolError`), or threw; the model is told `message`. */
  | {
      readonly status: 'failed'
      /** `unserved`: no worker has this tool. `unavailable`: its server's breaker is open. */
      readonly kind: 'told' | 'threw' | 'timeout' | 'unserialisable' | 'unserved' | 'unavailable'
      readonly message: string
      /** Of `unavailable`: for how long that is known to be so. */
      readonly waitMs?: number
    }
  /** It was cancelled; whether it ran is unknown when `started`. */
  | { readonly status: 'cancelled'; readonly started: boolean }
  /** `mayStart` refused. */
  | { readonly status: 'dropped' }
  /** The executor that `mayStart` was told of works on it; its outcome comes by mail. */
  | { readonly status: 'given' }

/** What a `verify` found out. */
export type ToolVerified =
  | { readonly done: true; readonly content: string }
  | { readonly done: false }
  | { readonly done: null }

/** The tool port. Never rejects. */
export interface ToolPort {
  run(request: ToolRequest): Promise<ToolOutcome>
  /** Asks a tool's `verify` function whether a call that may have run did run. */
  verify(request: ToolRequest): Promise<ToolVerified | Extract<ToolOutcome, { status: 'dropped' | 'given' }>>
}
