/**
 * What of a foreign text may be shown: to a model, in a log, in a journal.
 *
 * Owns: taking secrets out of a text, cutting it to a size, making it well-formed.
 * Does not own: knowing the secrets; deciding which texts are foreign.
 *
 * - RX1 Every secret of at least 8 characters that is given by value is gone, also URL-encoded and JSON-escaped.
 * - RX2 Secrets that are known by their shape only are taken out at best effort: this is a net, not a promise.
 * - RX3 Linear in the text's length: no pattern backtracks over more than a bounded piece.
 */
import { Buffer } from 'node:buffer'
import { toUSVString } from 'node:util'

/** What stands where a secret stood. */
export const redacted = '[redacted]'

/** Shortest secret that is taken out by value, in characters; a shorter one would shred ordinary words. */
const minSecret = 8

/** Shapes of secrets. What the first group that took part holds stays. */
const shapes: readonly RegExp[] = [
  // a private key in PEM, also with escaped line ends, also cut off
  /(-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----)[A-Za-z0-9+/=\s\\]+/g,
  // user and password of a URL
  /(\b[a-z][a-z0-9+.-]{1,20}:\/\/)[^\s/@"'<>]{1,512}(?=@)/gi,
  /(\bBearer\s{1,8})[A-Za-z0-9._~+/=*-]{8,}/gi,
  // OpenAI and the many that copied it; with `*` as providers print them
  /()(?<![A-Za-z0-9])sk-[A-Za-z0-9_*-]{8,}/g,
  /()(?<![A-Za-z0-9])(?:gh[pousr]_|github_pat_|(?:sk|rk|pk)_(?:live|test)_|glpat-|xox[abeoprs]-|xai-|pplx-|AIza)[A-Za-z0-9_-]{16,}/g,
  /()(?<![A-Za-z0-9])(?:AKIA|ASIA|hf_|gsk_|npm_|r8_)[A-Za-z0-9]{16,}/g,
  // a JSON web token
  /()(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?/g,
  assignment(
    'api[_-]?key|access[_-]?key|private[_-]?key|secret[A-Za-z0-9_-]{0,24}|passw(?:or)?d|passphrase|authorization',
    8,
  ),
  assignment('token|cookie|session[_-]?id|credentials?', 16),
]

/** `name = value`, `"name": "value"`, `name: Basic value`, with any number of escapes before the quotes. */
function assignment(names: string, minLength: number): RegExp {
  const name = `(?:${names})\\\\{0,4}["']?\\s{0,8}[:=]\\s{0,8}(?:(?:Basic|Bearer|Digest|Token|ApiKey)\\s{1,8})?`
  const quoted = `\\\\{0,4}["'](?=[^"'\\\\\\n]{${minLength}})`
  const value = `(?!\\[redacted\\])[^\\s"'\\\\,;&<>)}\\]]{${minLength},}`
  return new RegExp(`(${name}${quoted})[^"'\\\\\\n]+|(${name})${value}`, 'gi')
}

/**
 * The text without secrets; each became `[redacted]`.
 *
 * Takes out: `secrets` by value (those of at least 8 characters, also URL-encoded and JSON-escaped), `sk-…` and other
 * well-known key prefixes, `Bearer …`, JSON web tokens, PEM private keys, user and password of URLs, and assignments of
 * long values to names such as `api_key`, `password`, `token`. Doing it twice changes nothing more.
 * @param secrets Values that must not be shown, for instance the API keys of the providers. @default []
 */
export function redact(text: string, secrets: readonly string[] = []): string {
  let clean = text
  for (const secret of spellings(secrets)) clean = clean.replaceAll(secret, redacted)
  for (const shape of shapes) {
    clean = clean.replace(shape, (_match: string, first: unknown, second: unknown) => {
      const kept = typeof first === 'string' ? first : typeof second === 'string' ? second : ''
      return kept + redacted
    })
  }
  return clean
}

/** Every way a secret may be written, longest first, so that one that holds another goes whole. */
function spellings(secrets: readonly string[]): string[] {
  const all = new Set<string>()
  for (const secret of secrets) {
    if (secret.length < minSecret) continue
    all.add(secret)
    all.add(JSON.stringify(secret).slice(1, -1))
    all.add(encodeURIComponent(wellFormed(secret)))
  }
  return [...all].sort((left, right) => right.length - left.length)
}

/** The text with each lone surrogate replaced by U+FFFD: what UTF-8 would make of it anyway. */
export function wellFormed(text: string): string {
  return toUSVString(text)
}

/**
 * The longest well-formed beginning of a text that takes at most `maxBytes` in UTF-8. Never splits a character.
 * Does not hold on to the memory of the whole text.
 */
export function cutBytes(text: string, maxBytes: number): string {
  // a UTF-16 unit takes at least one byte, so no more than maxBytes of them can fit
  const head = text.length > maxBytes ? text.slice(0, maxBytes) : text
  const bytes = Buffer.from(head)
  if (bytes.length <= maxBytes && head.length === text.length) return wellFormed(text)
  let end = Math.min(bytes.length, Math.max(0, maxBytes))
  // a byte 10xxxxxx goes on with a character that began earlier
  while (end > 0 && ((bytes[end] ?? 0) & 0xc0) === 0x80) end -= 1
  return bytes.toString('utf8', 0, end)
}
