/**
 * Why a provider said no: any status, header and body to one `FailureKind`, a wait and a message for people.
 *
 * Owns: the reading of error bodies of every shape, the words that tell one kind from another, redaction.
 * Does not own: transport errors, what to do about a failure.
 *
 * - MF1 There is no rule for a provider: one list of words per kind, applied to the normalised text of the whole body.
 * - MF2 Reading is bounded: 16 KiB of text, 200 values, depth 6.
 * - MF3 A message is redacted before it is cut, so half a key cannot be left over.
 */
import type { FailureKind } from '../runtime/ports.js'

/** A refusal as it came from the wire. */
export interface Refusal {
  /** HTTP status; null when there is only a text. */
  readonly status: number | null
  /** The body as text, or the parsed error object out of a stream. */
  readonly body: unknown
  /** A response header by lower-case name. */
  readonly header?: (name: string) => string | null
  /** Epoch milliseconds, for `retry-after` dates. @default Date.now() */
  readonly now?: number
}

/** What a refusal means. */
export interface Verdict {
  readonly kind: FailureKind
  /** The provider's own words; not redacted, not cut. */
  readonly message: string
  /** The provider's wish, in milliseconds; null when it has none. */
  readonly retryAfterMs: number | null
}

const maxText = 16_384
const maxValues = 200
const maxDepth = 6

/** Reads a refusal. Never throws. */
export function readRefusal(refusal: Refusal): Verdict {
  const body = typeof refusal.body === 'string' ? parsed(refusal.body) : refusal.body
  const facts = gather(body)
  const words = normalise(facts.all.join(' ; '))
  const status = effectiveStatus(refusal.status, facts.numbers, words)
  const retryAfterMs = waitOf(refusal, facts)
  return {
    kind: kindOf(status, words, retryAfterMs !== null),
    message: facts.messages.join(': ') || facts.all.join(' ') || `status ${refusal.status ?? 'unknown'}, empty body`,
    retryAfterMs,
  }
}

// --- what a body says ---------------------------------------------------------------------------------------------

interface Facts {
  /** Every text of the body. */
  readonly all: string[]
  /** Texts that are meant for people. */
  readonly messages: string[]
  /** Numbers under `code` and `status`. */
  readonly numbers: number[]
  /** Waits, in milliseconds. */
  readonly waits: number[]
}

const messageKeys = new Set(['message', 'detail', 'error', 'msg', 'raw', 'error_description', 'title', 'reason'])

function parsed(text: string): unknown {
  const cut = text.slice(0, maxText).trim()
  if (cut.startsWith('{') || cut.startsWith('[')) {
    try {
      return JSON.parse(text)
    } catch {
      return cut
    }
  }
  return cut.startsWith('<') ? withoutTags(cut) : cut
}

function withoutTags(html: string): string {
  return html
    .replace(/<(style|script)\b[\s\S]*?<\/\1>/gi, ' ')
    .replace(/<[^>]*>/g, ' ')
    .replace(/\s+/g, ' ')
    .trim()
}

function gather(body: unknown): Facts {
  const facts: Facts = { all: [], messages: [], numbers: [], waits: [] }
  let left = maxValues
  let room = maxText
  const visit = (key: string, value: unknown, depth: number): void => {
    if (left-- <= 0 || depth > maxDepth) return
    if (typeof value === 'string') {
      const text = value.slice(0, Math.max(room, 0))
      room -= text.length
      if (text === '') return
      facts.all.push(text)
      if (messageKeys.has(key) && !facts.messages.includes(text)) facts.messages.push(text)
      const wait = waitUnder(key, text)
      if (wait !== null) facts.waits.push(wait)
    } else if (typeof value === 'number') {
      if (key === 'code' || key === 'status' || key === 'status_code') facts.numbers.push(value)
      const wait = waitUnder(key, value)
      if (wait !== null) facts.waits.push(wait)
    } else if (typeof value === 'object' && value !== null) {
      for (const [name, inner] of Object.entries(value)) {
        visit(Array.isArray(value) ? key : name, inner, depth + 1)
      }
    }
  }
  visit('message', body, 0)
  return facts
}

/** Lower case, words apart (`context_length_exceeded`, `BadRequestError`), no links, no quotes. */
function normalise(text: string): string {
  return text
    .replace(/https?:\/\/\S+/g, ' ')
    .replace(/([a-z])([A-Z])/g, '$1 $2')
    .toLowerCase()
    .replace(/[_\-"'`’\\]+/g, ' ')
    .replace(/\s+/g, ' ')
}

/** A status said in the body counts when the transport had none or claimed success. */
function effectiveStatus(status: number | null, numbers: readonly number[], words: string): number | null {
  if (status !== null && status >= 300) return status
  const inWords = Number(/\berror code: (\d{3})\b/.exec(words)?.[1] ?? Number.NaN)
  return [...numbers, inWords].find((number) => number >= 400 && number <= 599) ?? null
}

// --- kinds --------------------------------------------------------------------------------------------------------

const paceWords =
  /\brate limit|too many requests|\bper (second|minute|min|hour|day)\b|\b(rpm|tpm|rpd|tpd)\b|throttl|slow down|resource( has been)? exhausted/
const quotaWords =
  /\bquota|insufficient (funds|balance|credit)|\bcredits?\b|\bbilling|\bbalance\b|payment|spend(ing)? limit|usage limit/
const outputBoundWords = /\bmax (completion |output |new )?tokens\b/
const inputWords = /context (length|limit|size)|\bprompt|\binput|\bmessages/
const contextWords = [
  /context (length|window|size|limit)/,
  /\b(prompt|input|context|total length|conversation)\b.{0,60}\b(too (long|large|big)|exceed|longer than|out of range)/,
  /\brequest\b.{0,30}\b(too large|maximum size|token limit)|payload too large|entity too large/,
  /\btokens?\b.{0,60}\b(exceed|limit|maximum)/,
  /\b(exceed\w*|too many|maximum)\b.{0,40}\btokens?\b/,
  /\binput (length|characters|tokens?)\b.{0,30}\b(limit|should be|maximum|max)\b|maximum prompt length/,
  /messages\[\d+\](\.content|\.tool calls)?\s?: (string|array) too long/,
]
const policyWords =
  /content (policy|management|filter|moderation)|responsible ai|\bsafety\b|moderation|\bflagged\b|policy violation|inappropriate|data inspection/
const notFoundWords =
  /\bmodel\b.{0,80}\b(not found|not exist|is unknown|no longer available|decommissioned)|\bmodel (is )?not support|\b(unknown|incorrect|invalid|no such|unsupported|not a valid) model\b|deployment.{0,60}\b(not found|not exist)|no endpoints found|not found error/
const authWords =
  /\bapi key|unauthori[sz]ed|authentication|permission|forbidden|access denied|must be verified|invalid (bearer |access )?token|token (has )?expired|credentials/
const overloadWords =
  /overload|at capacity|capacity (exceeded|constraint)|too busy|temporarily unavailable|service unavailable|no (healthy|available)/
const networkWords =
  /connection (refused|reset|closed|terminat|abort|error)|(cannot|failed to|could not|unable to) connect|connect error|econn|enotfound|certificate|disconnected|stream error|\bnetwork error/
const serverWords =
  /internal (server )?error|server (had an )?error|\bupstream|\bbackend|bad gateway|bad response status|\bapi error|service error/
const requestWords = /bad request|invalid (request|argument|parameter|value)|unprocessable/
const argumentWords = /\bjson format|invalid parameter/
const brokenJsonWords = /\b(line \d+ column|char) \d+/

function kindOf(status: number | null, words: string, saysWhen: boolean): FailureKind {
  const paced = paceWords.test(words)
  if (!paced && (status === 413 || isContext(words))) return 'context_window'
  if (policyWords.test(words)) return 'content_policy'
  if (status === 429 || paced) return quotaWords.test(words) && !paced && !saysWhen ? 'quota' : 'rate_limited'
  if (status === 402 || quotaWords.test(words)) return 'quota'
  if (status === 401) return 'auth'
  if (status === 404 || notFoundWords.test(words)) return 'not_found'
  if (isTimeout(status, words)) return 'timeout'
  if (status === 403 || authWords.test(words)) return 'auth'
  if (status === 503 || status === 529 || overloadWords.test(words)) return 'overloaded'
  return otherKind(status, words)
}

function isContext(words: string): boolean {
  if (outputBoundWords.test(words) && !inputWords.test(words)) return false
  return contextWords.some((pattern) => pattern.test(words))
}

function isTimeout(status: number | null, words: string): boolean {
  if (status === 408 || status === 504) return true
  // `timeout` alone may also be the name of a parameter that was refused
  return /\btimed out\b|deadline exceeded/.test(words) || ((status ?? 500) >= 500 && /\btimeout\b/.test(words))
}

function otherKind(status: number | null, words: string): FailureKind {
  if (status === null && networkWords.test(words)) return 'network'
  if ((status ?? 400) < 500 && argumentWords.test(words)) return 'bad_request'
  if ((status ?? 500) >= 500 || serverWords.test(words)) {
    if (status !== null || serverWords.test(words)) return 'server'
    if (brokenJsonWords.test(words)) return 'invalid_reply'
    return requestWords.test(words) ? 'bad_request' : 'server'
  }
  return (status ?? 0) < 400 ? 'config' : 'bad_request'
}

// --- waits --------------------------------------------------------------------------------------------------------

const units: readonly (readonly [pattern: RegExp, ms: number])[] = [
  [/^(ms|milli)/, 1],
  [/^s/, 1_000],
  [/^m/, 60_000],
  [/^h/, 3_600_000],
  [/^d/, 86_400_000],
]

/** `1.5s`, `20ms`, `6m0s`, `10 seconds` in milliseconds; null for anything else. */
export function parseDuration(text: string): number | null {
  const part = /(\d+(?:\.\d+)?)\s*(milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d)(?![a-z])/y
  const compact = text.trim().toLowerCase()
  let at = 0
  let total = 0
  while (at < compact.length) {
    // `6m0s`: a unit may be followed by the next number at once, and by a space or a comma
    part.lastIndex = at
    const match = part.exec(compact)
    if (match === null) return null
    const [whole, number, unit] = match
    const scale = units.find(([pattern]) => pattern.test(unit ?? ''))?.[1]
    total += Number(number) * (scale ?? 0)
    at += whole.length
    while (compact[at] === ' ' || compact[at] === ',') at += 1
  }
  return at === 0 ? null : bounded(total)
}

function waitOf({ status, header, now }: Refusal, facts: Facts): number | null {
  if (status !== null && status < 300) header = undefined
  const ms = header?.('retry-after-ms')
  if (ms !== null && ms !== undefined && ms.trim() !== '' && Number.isFinite(Number(ms))) return bounded(Number(ms))
  const after = header?.('retry-after')?.trim()
  if (after !== undefined && after !== '') {
    const wait = Number.isFinite(Number(after)) ? Number(after) * 1_000 : Date.parse(after) - (now ?? Date.now())
    if (Number.isFinite(wait)) return bounded(wait)
  }
  if (facts.waits.length > 0) return Math.max(...facts.waits)
  const said =
    /(?:again|retry|wait)[^.;]{0,30}?\b(?:in|after|for)\s+(?:about\s+)?((?:\d+(?:\.\d+)?\s*[a-z]+,?\s*){1,4})/i
  for (const text of facts.all) {
    const words = said.exec(text)?.[1]
    if (words === undefined) continue
    // the phrase may run on into the sentence: take the longest duration that it starts with
    for (let end = words.length; end > 0; end -= 1) {
      const wait = parseDuration(words.slice(0, end))
      if (wait !== null) return wait
    }
  }
  return null
}

function waitUnder(key: string, value: string | number): number | null {
  const name = key.toLowerCase().replaceAll(/[_-]/g, '')
  if (!['retryafter', 'retryafterms', 'retryafterseconds', 'retrydelay'].includes(name)) return null
  const number = Number(value)
  if (typeof value === 'string' && !Number.isFinite(number)) return parseDuration(value)
  return Number.isFinite(number) ? bounded(number * (name.endsWith('ms') ? 1 : 1_000)) : null
}

function bounded(ms: number): number {
  return Math.min(Math.max(Math.ceil(ms), 0), 2 ** 31 - 1)
}

// --- redaction ----------------------------------------------------------------------------------------------------

const secretPatterns: readonly RegExp[] = [
  /\bBearer\s+[^\s"',;]+/gi,
  /\b(?:sk|rk|pk|gsk|xai|hf|pplx|csk|tgp|fw|ghp|github_pat)[-_][A-Za-z0-9_*.-]{4,}/g,
  /\bAIza[0-9A-Za-z_-]{16,}/g,
  /\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_.-]+/g,
]
/** A value behind its name; the name stays. */
const namedSecret = /\b((?:api[-_ ]?key|authorization|access[-_]token)["']?\s*[:=]\s*["']?)(?!bearer\b)[^\s"',;}]{6,}/gi

/** Most bytes of a failure's message: 2 KiB. */
export const maxMessageBytes = 2_048

/**
 * Makes the function that every message goes through: the given keys, whatever looks like one, then `more`; at last cut
 * to 2 KiB of UTF-8.
 */
export function createRedactor(keys: readonly string[], more?: (text: string) => string): (text: string) => string {
  const exact = keys.filter((key) => key !== '').sort((a, b) => b.length - a.length)
  const short = exact
    .filter((key) => key.length < 8)
    .map((key) => new RegExp(`(?<![\\w-])${escaped(key)}(?![\\w-])`, 'g'))
  const long = exact.filter((key) => key.length >= 8)
  return (text) => {
    let clean = text.slice(0, maxText)
    for (const key of long) clean = clean.replaceAll(key, '[redacted]')
    for (const pattern of [...short, ...secretPatterns]) clean = clean.replace(pattern, '[redacted]')
    clean = clean.replace(namedSecret, '$1[redacted]')
    return cutToBytes(more === undefined ? clean : redactedBy(more, clean), maxMessageBytes)
  }
}

/** A redactor that throws must neither end the call nor let the text through. */
function redactedBy(more: (text: string) => string, text: string): string {
  try {
    return more(text)
  } catch {
    return 'the message is withheld: its redactor threw'
  }
}

function escaped(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')
}

function cutToBytes(text: string, bytes: number): string {
  const encoded = Buffer.from(text)
  if (encoded.length <= bytes) return text
  let end = bytes - 3
  while (end > 0 && ((encoded[end] ?? 0) & 0xc0) === 0x80) end -= 1
  return `${encoded.subarray(0, end).toString()}…`
}
