/**
 * The one error class of the runtime and its codes.
 *
 * Owns: the list of codes (the contract; messages may change), what is safe to put in an error.
 * Does not own: what to do about an error.
 */

/** Every code that a `TroupeError` can carry. Each is a heading in the README's error list. */
export const errorCodes = [
  // bad input
  'ID_INVALID',
  'INPUT_INVALID',
  'CONFIG_INVALID',
  'CREW_INVALID',
  'CREW_UNKNOWN',
  'RUN_UNKNOWN',
  'MODEL_UNKNOWN',
  'KEY_MISSING',
  'MESSAGE_REFUSED',
  'ENVELOPE_INVALID',
  'ENVELOPE_TOO_LARGE',
  'MAIL_GAP',
  'SENDER_BEHIND',
  'OUTCOME_FORGED',
  'MACHINE_UNSUPPORTED',
  'MACHINE_UNKNOWN',
  'MACHINE_ENDED',
  // bounds
  'MAILBOX_FULL',
  'RUNS_FULL',
  'STEER_REFUSED',
  'RAISE_REFUSED',
  'ASK_CLOSED',
  'LETTER_UNKNOWN',
  'LETTER_REFUSED',
  'COMMIT_OVERFLOW',
  'ROUND_LIMIT',
  'BUDGET_EXHAUSTED',
  // ends of a run
  'RUN_CANCELLED',
  'OUTPUT_INVALID',
  'MODEL_FAILED',
  'DELEGATION_FAILED',
  'LOOP_DETECTED',
  'CALLBACK_FAILED',
  'ACTOR_FAILED',
  'OUTCOME_IGNORED',
  'EFFECT_UNKNOWN',
  'EFFECT_CRASHED',
  'CONTEXT_NOT_PLAIN',
  'IMPURE_MACHINE',
  // storage and life cycle
  'STORE_BUSY',
  'STORE_FULL',
  'STORE_FAILED',
  'STORE_CORRUPT',
  'JOURNAL_TRUNCATED',
  'JOURNAL_CORRUPT',
  'SNAPSHOT_INCOMPATIBLE',
  'BLOB_MISSING',
  'UPGRADE_REFUSED',
  'SHARD_STOPPED',
  'SHARD_FENCED',
  'SHARD_ELSEWHERE',
  'RUNTIME_CLOSED',
  // NATS
  'NATS_UNREACHABLE',
  'NATS_DENIED',
  'NATS_UNSUPPORTED',
  'WORKER_MISSING',
  'WORKER_UNKNOWN',
  'WORKER_UNFIT',
] as const

/** One of the runtime's error codes. */
export type ErrorCode = (typeof errorCodes)[number]

/** Whether a text is one of the runtime's error codes. */
export function isErrorCode(code: string): code is ErrorCode {
  return (errorCodes as readonly string[]).includes(code)
}

/** JSON-safe data that travels with an error. */
export type ErrorDetails = Readonly<Record<string, string | number | boolean | null | readonly string[]>>

/** An error as it is stored, sent and printed: no stack, nothing that is not JSON. */
export interface ErrorRecord {
  readonly code: ErrorCode
  readonly message: string
  readonly retryable: boolean
  readonly details: ErrorDetails
}

/**
 * The only error that the runtime throws or rejects with. Branch on `code`; the message is for people.
 *
 * - `retryable`: the same call may succeed later without a change (a full mailbox, a busy store).
 * - `details`: JSON-safe facts, for instance `runId` or `command`, the command that goes on.
 */
export class TroupeError extends Error {
  override readonly name = 'TroupeError'
  readonly code: ErrorCode
  readonly retryable: boolean
  readonly details: ErrorDetails

  constructor(
    code: ErrorCode,
    message: string,
    options: { retryable?: boolean; details?: ErrorDetails; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.retryable = options.retryable ?? false
    this.details = options.details ?? {}
  }

  /** The error as plain data, for a journal, a wire or `--json`. */
  toRecord(): ErrorRecord {
    return { code: this.code, message: this.message, retryable: this.retryable, details: this.details }
  }

  /** Rebuilds an error from what `toRecord` made. */
  static fromRecord(record: ErrorRecord): TroupeError {
    return new TroupeError(record.code, record.message, { retryable: record.retryable, details: record.details })
  }
}

/** True for a `TroupeError` of this or another copy of the package. */
export function isTroupeError(value: unknown): value is TroupeError {
  return value instanceof Error && value.name === 'TroupeError' && 'code' in value
}

/** The store takes or gives nothing now, and may later. */
export function isStoreTrouble(value: unknown): boolean {
  return isTroupeError(value) && (value.code === 'STORE_FULL' || value.code === 'STORE_FAILED')
}

/** Whatever was thrown, as a `TroupeError`; a foreign one becomes `code` with its message. */
export function toTroupeError(thrown: unknown, code: ErrorCode): TroupeError {
  if (isTroupeError(thrown)) return thrown
  const message = thrown instanceof Error ? thrown.message : String(thrown)
  return new TroupeError(code, message, { cause: thrown })
}

/** The code of whatever an actor threw. */
export function codeOf(error: unknown): ErrorCode {
  return isTroupeError(error) ? error.code : 'ACTOR_FAILED'
}

/** What it says, at most 2 KiB. */
export function reasonOf(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).slice(0, 2_048)
}
