/**
 * What the command line prints: text that is safe in a terminal, errors with a hint, exit codes.
 *
 * Owns: colour, quoting, shortening, the form of results and errors, what each error code means for the shell.
 * Does not own: progress of a run (`progress.ts`), what a command does.
 *
 * - OU1 Text that came from outside never reaches a terminal with control characters in it.
 * - OU2 Answers go to stdout, everything else to stderr; with `--json` stdout holds one JSON object a line and no more.
 * - OU3 An error is one line and a hint; a stack only with TROUPE_DEBUG.
 */
import { type ErrorCode, type ErrorDetails, TroupeError, toTroupeError } from '../errors.js'

/** How a command ends, as the shell sees it. */
export const exitCodes = { done: 0, failed: 1, usage: 2, stopped: 3, interrupted: 130 } as const

const usageCodes: readonly ErrorCode[] = [
  'CREW_INVALID',
  'INPUT_INVALID',
  'ID_INVALID',
  'CONFIG_INVALID',
  'MODEL_UNKNOWN',
  'KEY_MISSING',
]

/** The exit code for an error. */
export function exitCodeOf(code: ErrorCode): number {
  if (usageCodes.includes(code)) return exitCodes.usage
  return code === 'BUDGET_EXHAUSTED' ? exitCodes.stopped : exitCodes.failed
}

/** What to do about an error, where there is something to say. `command` is the one that goes on. */
const hints: Partial<Record<ErrorCode, (details: ErrorDetails) => string>> = {
  KEY_MISSING: (details) => `set ${String(details['variable'] ?? 'the provider’s key variable')}`,
  BUDGET_EXHAUSTED: () => 'raise `budget` in the crew file',
  ROUND_LIMIT: () => 'raise `limits.rounds` of the agent in the crew file',
  STORE_BUSY: () => '--store DIR uses another store',
  STORE_FULL: () => 'make room: on the disk, or by a higher limit of the stream',
  JOURNAL_CORRUPT: (details) => `see \`troupe repair ${String(details['shard'] ?? 'ID')}\``,
  JOURNAL_TRUNCATED: (details) => `see \`troupe repair ${String(details['shard'] ?? 'ID')}\``,
  UPGRADE_REFUSED: () => '--accept-upgrade takes the new decisions, or run with the code that wrote the journal',
  CREW_UNKNOWN: () => '`troupe ps` lists the crews',
  NATS_UNREACHABLE: () => 'start one with `nats-server -js`, or say with --nats where it is',
  NATS_DENIED: () => 'give --user and --password-file, --nkey or --creds of a user who may',
  NATS_UNSUPPORTED: () => 'start nats-server 2.9 or newer with JetStream: `nats-server -js`',
  WORKER_MISSING: () => '`troupe worker FILE --nats URL` starts one',
  WORKER_UNKNOWN: () => '`troupe ps` lists the workers',
}

/** Whether a stream wants colour: a terminal, and nobody asked for none. */
export function wantsColour(stream: NodeJS.WriteStream): boolean {
  return stream.isTTY && !process.env['NO_COLOR'] && process.env['TERM'] !== 'dumb' && stream.hasColors()
}

const escapes = { bold: '1', dim: '2', red: '31', green: '32', yellow: '33', cyan: '36' } as const

/** Colours text, or leaves it. */
export type Paint = (style: keyof typeof escapes, text: string) => string

/** Colours for a stream. */
export function painter(stream: NodeJS.WriteStream): Paint {
  if (!wantsColour(stream)) return (_style, text) => text
  return (style, text) => `\u001b[${escapes[style]}m${text}\u001b[0m`
}

/** One line without control characters, at most `length` characters long. */
export function oneLine(text: string, length = 200): string {
  const plain = text.slice(0, length * 4).replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, ' ')
  return plain.length > length ? `${plain.slice(0, length - 1)}…` : plain
}

/** Text of several lines for a terminal: control characters other than tab and newline are dropped. */
function lines(text: string): string {
  return text.replace(/\r\n/g, '\n').replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, '')
}

/** Writes an answer: text as it is, anything else as JSON. */
export function writeAnswer(output: unknown): void {
  const text = typeof output === 'string' ? output : JSON.stringify(output, null, 2)
  const shown = process.stdout.isTTY ? lines(text) : text
  process.stdout.write(shown.endsWith('\n') ? shown : `${shown}\n`)
}

/** Writes one JSON object on a line of its own. */
export function writeJson(value: object): void {
  process.stdout.write(`${JSON.stringify(value)}\n`)
}

/** Writes a line for people. */
export function writeLine(text: string, stream: NodeJS.WriteStream = process.stderr): void {
  stream.write(`${text}\n`)
}

/** Writes rows in columns; the first row is the heading. */
export function writeTable(rows: readonly (readonly string[])[]): void {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)))
  for (const row of rows) {
    writeLine(
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
      process.stdout,
    )
  }
}

/** Tells an error and returns its exit code. */
export function reportError(thrown: unknown, json: boolean): number {
  const error = toTroupeError(thrown, 'STORE_FAILED')
  const { code, message, details } = error
  if (process.env['TROUPE_DEBUG'] && thrown instanceof Error) writeLine(debugText(thrown))
  if (json) {
    writeJson({ type: 'error', code, message, details })
    return exitCodeOf(code)
  }
  const paint = painter(process.stderr)
  writeLine(`${paint('red', `${code}:`)} ${oneLine(message, 2_000)}`)
  const hint = hints[code]?.(details)
  if (hint !== undefined) writeLine(paint('dim', `  ${oneLine(hint)}`))
  if (typeof details['command'] === 'string') writeLine(`  ${paint('dim', 'go on with:')} ${details['command']}`)
  return exitCodeOf(code)
}

function debugText(error: Error): string {
  const cause = error.cause instanceof Error ? `\ncaused by ${debugText(error.cause)}` : ''
  return `${error.stack ?? error.message}${cause}`
}

/** An error with more details. */
export function withDetails(error: TroupeError, more: ErrorDetails): TroupeError {
  const { code, message, retryable, details } = error
  return new TroupeError(code, message, { retryable, details: { ...details, ...more }, cause: error })
}

/** Words as a POSIX shell takes them. */
export function shellQuote(words: readonly string[]): string {
  return words.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)).join(' ')
}

/** A count with thousands separated. */
export function count(value: number): string {
  return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, ',')
}

/** A count with its noun. */
export function plural(value: number, noun: string): string {
  return `${count(value)} ${noun}${value === 1 ? '' : 's'}`
}

/** Dollars, with as many digits as matter. */
export function dollars(usd: number): string {
  if (usd === 0) return '$0'
  return usd >= 0.1 ? `$${usd.toFixed(2)}` : usd >= 0.0001 ? `$${usd.toFixed(4)}` : '<$0.0001'
}

/** Bytes in a unit that people read. */
export function size(bytes: number): string {
  if (bytes < 1_024) return `${bytes} B`
  return bytes < 1_048_576 ? `${(bytes / 1_024).toFixed(1)} KB` : `${(bytes / 1_048_576).toFixed(1)} MB`
}

/** Milliseconds as people read them. */
export function duration(ms: number): string {
  if (ms < 1_000) return `${Math.round(ms)} ms`
  return ms < 60_000
    ? `${(ms / 1_000).toFixed(1)} s`
    : `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1_000)} s`
}
