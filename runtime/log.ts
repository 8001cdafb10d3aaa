/**
 * The log: one line of JSON on stderr for what an operator must know.
 *
 * Owns: pino, its level, redaction. Loaded on the first line, since most runs write none.
 * Does not own: what users watch (`events.ts`).
 *
 * - LO1 No secret reaches a line: every text goes through `redact`.
 */
import type { Logger } from 'pino'
import { redact } from './redact.js'

/** Least severe lines that are written. */
export type LogLevel = 'silent' | 'error' | 'warn' | 'info' | 'debug'

/** Writes lines. */
export interface Log {
  debug(message: string, data?: object): void
  info(message: string, data?: object): void
  warn(message: string, data?: object): void
  error(message: string, data?: object): void
  /** The same log with fields on every line. */
  with(fields: object): Log
}

const severity = { silent: 0, error: 1, warn: 2, info: 3, debug: 4 } as const

/** Makes a log. */
export function createLog(level: LogLevel): Log {
  let loading: Promise<Logger> | null = null
  const write = (
    line: Exclude<LogLevel, 'silent'>,
    fields: object,
    message: string,
    data: object | undefined,
  ): void => {
    if (severity[line] > severity[level]) return
    const safe = JSON.parse(redact(JSON.stringify({ ...fields, ...data }, plain))) as object
    loading ??= import('pino').then(({ pino }) =>
      pino({ level, base: null }, pino.destination({ dest: 2, sync: true })),
    )
    loading.then((logger) => logger[line](safe, redact(message))).catch(() => undefined)
  }
  const make = (fields: object): Log => ({
    debug: (message, data) => write('debug', fields, message, data),
    info: (message, data) => write('info', fields, message, data),
    warn: (message, data) => write('warn', fields, message, data),
    error: (message, data) => write('error', fields, message, data),
    with: (more) => make({ ...fields, ...more }),
  })
  return make({})
}

function plain(_key: string, value: unknown): unknown {
  if (typeof value === 'bigint') return String(value)
  return value instanceof Error ? { name: value.name, message: value.message } : value
}
