/**
 * The model port: chat completions of any provider that speaks them, asked for as the `openai` client would.
 *
 * Owns: address and headers per provider (the client's), the request body as text, deadlines of a call, the way from bytes
 * and errors to a reply or a failure.
 * Does not own: the dialects (`model-reply.ts`), error wording (`model-failure.ts`), where providers are
 * (`providers.ts`), prices (`prices.ts`), retries and fallback (decisions of the router).
 *
 * - M1 A call sends at most one request: nothing is retried, redirects are not followed.
 * - M2 Messages, tools and response format are text and stay text; they are joined, never parsed.
 * - M3 `call` never rejects and always ends: by a reply, a failure, an abort or a deadline.
 * - M4 Keys are in closures only: not in the port, not in a failure, not in a log.
 * - M5 `billed: false` only when the provider certainly did no work.
 */
import { setMaxListeners } from 'node:events'
import { isTroupeError } from '../runtime/errors.js'
import type {
  FailureKind,
  ModelFailure,
  ModelPort,
  ModelReply,
  ModelRequest,
  ModelTimeouts,
  Usage,
} from '../runtime/ports.js'
import { bodyChunks, bodyText, BodyTooLargeError, createFetch, type PooledFetch } from './fetch.js'
import { createRedactor, readRefusal } from './model-failure.js'
import { ReplyReader, type Problem, type ReadReply } from './model-reply.js'
import { createPrices, type PriceOverrides } from './prices.js'
import { parseDeployment, resolveProvider, type Provider, type ProviderOptions } from './providers.js'

/** Settings of `createOpenAIModelPort`; all optional. */
export interface OpenAIModelPortOptions {
  /** Providers by name; adds to the known ones or changes them. */
  readonly providers?: Readonly<Record<string, ProviderOptions>>
  /** Where keys and base URLs are looked up. @default process.env */
  readonly env?: Readonly<Record<string, string | undefined>>
  /** Used for all providers that have none of their own. @default `createFetch()` */
  readonly fetch?: NonNullable<ProviderOptions['fetch']>
  /** Applied to every failure message after our own redaction; when it throws, the message is withheld. */
  readonly redact?: (text: string) => string
  /** Prices by `<provider>:<model>` or `<provider>`; they win over the table. */
  readonly prices?: PriceOverrides
}

/** How long a server may keep a stream open after `[DONE]` before its socket is destroyed, in milliseconds. */
const closingMs = 100
const maxDelayMs = 2 ** 31 - 1

interface Connection {
  readonly send: (body: string, signal: AbortSignal) => Promise<Response>
  readonly provider: Provider
  readonly redact: (text: string) => string
}

/** What a call knows of itself when it fails. */
interface Problematic {
  readonly kind: FailureKind
  readonly message: string
  readonly status?: number | null
  readonly retryAfterMs?: number | null
  readonly billed: boolean
  readonly usage?: Usage | null
}

/**
 * Makes the model port.
 *
 * `check` throws `MODEL_UNKNOWN`, `KEY_MISSING` (naming the variable) or `CONFIG_INVALID` (a base URL that is none);
 * `call` answers with kind `config` for the same. The `openai` client is loaded on the first call, some 60 ms.
 */
export function createOpenAIModelPort(options: OpenAIModelPortOptions = {}): ModelPort {
  const { providers = {}, env = process.env } = options
  const prices = createPrices(options.prices)
  const connections = new Map<string, Promise<Connection>>()
  let ownFetch: PooledFetch | undefined
  let closed = false

  const connect = async (name: string): Promise<Connection> => {
    const provider = resolveProvider(name, providers, env)
    const fetch = provider.fetch ?? options.fetch ?? (ownFetch ??= createFetch())
    const send = await createSender(provider, fetch, env)
    return { send, provider, redact: createRedactor(secretsOf(provider), options.redact) }
  }

  const connectionOf = (name: string): Promise<Connection> => {
    let connection = connections.get(name)
    if (connection === undefined) {
      connection = connect(name)
      connections.set(name, connection)
      // what was missing may be there at the next call
      connection.catch(() => connections.delete(name))
    }
    return connection
  }

  const fail = (request: ModelRequest, problem: Problematic, redact: (text: string) => string): ModelFailure => ({
    ok: false,
    kind: problem.kind,
    message: redact(problem.message),
    status: problem.status ?? null,
    retryAfterMs: problem.retryAfterMs ?? null,
    billed: problem.billed,
    usage: problem.usage ?? null,
    costNanoUsd: problem.usage ? prices.costOf(request.deployment, problem.usage) : null,
  })

  const call = async (request: ModelRequest): Promise<ModelReply | ModelFailure> => {
    let redact = createRedactor([], options.redact)
    try {
      if (closed)
        return fail(request, { kind: 'cancelled', message: 'the model port is closed', billed: false }, redact)
      if (request.signal.aborted)
        return fail(request, { kind: 'cancelled', message: 'cancelled', billed: false }, redact)
      const { provider: name, model } = parseDeployment(request.deployment)
      const connection = await connectionOf(name)
      redact = connection.redact
      const result = await converse(connection, request, model)
      if ('kind' in result) {
        return fail(request, closed && result.kind === 'network' ? { ...result, kind: 'cancelled' } : result, redact)
      }
      return {
        ok: true,
        ...result,
        model: result.model ?? model,
        costNanoUsd: prices.costOf(request.deployment, result.usage),
      }
    } catch (thrown) {
      const message = thrown instanceof Error ? thrown.message : String(thrown)
      const kind = isTroupeError(thrown) || thrown instanceof BodyError ? 'config' : 'server'
      return fail(request, { kind, message, billed: kind !== 'config' }, redact)
    }
  }

  return Object.freeze({
    call,
    price: (deployment: string) => prices.priceOf(deployment),
    check: (deployment: string) => {
      resolveProvider(parseDeployment(deployment).provider, providers, env)
    },
    close: async () => {
      closed = true
      connections.clear()
      await ownFetch?.close()
    },
  })
}

function secretsOf({ apiKey, headers }: Provider): string[] {
  const secret = Object.entries(headers).filter(([name]) => /key|auth|token|secret|cookie/i.test(name))
  return [apiKey, ...secret.map(([, value]) => value)].filter((value) => value !== null)
}

/**
 * What sends a body to a provider. Address and headers are those of the `openai` client, asked for once: making them anew,
 * and its wrapping of requests, answers and errors, took a seventh of a round's processor time (1,300 µs, 1,090 without).
 */
async function createSender(
  provider: Provider,
  fetch: NonNullable<ProviderOptions['fetch']>,
  env: Readonly<Record<string, string | undefined>>,
): Promise<Connection['send']> {
  const { OpenAI } = await import('openai/client')
  const atOpenAI = provider.name === 'openai'
  const client = new OpenAI({
    baseURL: provider.baseURL,
    apiKey: provider.apiKey ?? 'none',
    // what the client would read from the environment for every provider belongs to OpenAI alone
    adminAPIKey: null,
    organization: (atOpenAI && env['OPENAI_ORG_ID']) || null,
    project: (atOpenAI && env['OPENAI_PROJECT_ID']) || null,
    webhookSecret: null,
    logLevel: 'off',
    defaultHeaders: {
      ...(atOpenAI ? {} : withoutCustomHeaders()),
      authorization: provider.apiKey === null ? null : `Bearer ${provider.apiKey}`,
      ...provider.headers,
    },
  })
  const headers = { 'content-type': 'application/json' }
  const { req, url } = await client.buildRequest({ method: 'post', path: '/chat/completions', body: '{}', headers })
  return async (body, signal) =>
    // a copy: a user's fetch may write to them
    fetch(url, { method: 'POST', headers: new Headers(req.headers), body, signal, redirect: 'manual' })
}

/** The client adds `OPENAI_CUSTOM_HEADERS` for whatever provider; they may hold OpenAI's secrets. */
function withoutCustomHeaders(): Record<string, null> {
  const lines = (process.env['OPENAI_CUSTOM_HEADERS'] ?? '').split('\n')
  const names = lines.filter((line) => line.includes(':')).map((line) => line.slice(0, line.indexOf(':')).trim())
  return Object.fromEntries(names.map((name) => [name.toLowerCase(), null]))
}

// --- one call -----------------------------------------------------------------------------------------------------

async function converse(
  { send, provider }: Connection,
  request: ModelRequest,
  model: string,
): Promise<ReadReply | Problematic> {
  const body = requestBody(request, model, provider.maxTokensField)
  const reader = new ReplyReader(inputCharacters(request))
  const clock = new CallClock(request.timeouts, request.signal)
  let response: Response | undefined
  try {
    clock.phase('connect', request.timeouts.connectMs)
    response = await send(body, clock.signal)
    if (!response.ok) return await refusalOf(response, clock)
    await readBody(response, request, reader, clock)
    return answer(reader.end(), response.status)
  } catch (thrown) {
    const problem = problemOf(thrown, clock)
    if (response === undefined) return problem
    // the reply may have been whole before the connection went
    const read = reader.end(true)
    if (!('reason' in read) && problem.kind !== 'cancelled') return read
    if ('reason' in read && read.reason === 'error') return answer(read, response.status)
    return { ...problem, usage: 'reason' in read || !read.usage.estimated ? read.usage : null }
  } finally {
    clock.stop()
  }
}

async function readBody(
  response: Response,
  request: ModelRequest,
  reader: ReplyReader,
  clock: CallClock,
): Promise<void> {
  if (!request.stream) {
    // a whole reply has no deadline but the total: many providers send headers first and the body when it is done
    clock.phase('total', clock.totalMs)
    reader.push(await bodyText(response))
    return
  }
  clock.phase('first token', request.timeouts.firstTokenMs)
  const decoder = new TextDecoder()
  let offset = 0
  const pass = (piece: string): void => {
    reader.push(piece)
    const text = reader.takeText()
    if (text === '') return
    try {
      request.onDelta?.({ text, offset })
    } catch {
      // whoever watches does not decide about the call
    }
    offset += text.length
  }
  for await (const chunk of bodyChunks(response)) {
    pass(decoder.decode(chunk, { stream: true }))
    if (reader.done) clock.phase('closing', closingMs)
    else if (reader.started) clock.phase('gap', request.timeouts.gapMs)
  }
  pass(decoder.decode())
}

function answer(read: ReadReply | Problem, status: number): ReadReply | Problematic {
  if (!('reason' in read)) return read
  if (read.reason === 'error') {
    const verdict = readRefusal({ status, body: read.detail })
    return { ...verdict, status, billed: true, usage: read.usage }
  }
  const kind = read.reason === 'cut' ? 'network' : 'invalid_reply'
  return { kind, message: String(read.detail), status, billed: true, usage: read.usage }
}

function problemOf(thrown: unknown, clock: CallClock): Problematic {
  if (clock.over !== null) return { ...clock.over, billed: true }
  if (thrown instanceof BodyTooLargeError) return { kind: 'invalid_reply', message: thrown.message, billed: true }
  const code = codeOf(thrown)
  return {
    kind: kindOfError(thrown, code),
    message: textOf(thrown, code),
    billed: code === null || !unsentCodes.test(code),
  }
}

function kindOfError(thrown: unknown, code: string | null): FailureKind {
  if (thrown instanceof Error && thrown.name === 'HTTPParserError') return 'invalid_reply'
  if (code === null) return 'network'
  if (/TIMEDOUT|TIMEOUT/.test(code)) return 'timeout'
  return code === 'UND_ERR_HEADERS_OVERFLOW' ? 'invalid_reply' : 'network'
}

function textOf(thrown: unknown, code: string | null): string {
  // tried addresses come as an aggregate with an empty message
  const [first] = thrown instanceof AggregateError ? (thrown.errors as unknown[]) : []
  const error = first ?? thrown
  const text = error instanceof Error ? error.message : String(error)
  return [code !== null && !text.includes(code) ? code : '', text].filter((part) => part !== '').join(': ') || 'failed'
}

/** Codes of a connection that was never made, so that nothing was sent. */
const unsentCodes =
  /^(ECONNREFUSED|ENOTFOUND|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH|EADDRNOTAVAIL|UND_ERR_CONNECT_TIMEOUT|EPROTO|CERT_|ERR_TLS|ERR_SSL|DEPTH_ZERO|UNABLE_TO|SELF_SIGNED|UND_ERR_INVALID_ARG|ERR_INVALID_URL)/

function codeOf(error: unknown): string | null {
  for (let at: unknown = error, depth = 0; at instanceof Error && depth < 5; at = at.cause, depth += 1) {
    if ('code' in at && typeof at.code === 'string') return at.code
  }
  return null
}

async function refusalOf(response: Response, clock: CallClock): Promise<Problematic> {
  const { status } = response
  let body = ''
  try {
    clock.phase('gap', 10_000)
    body = await bodyText(response)
  } catch {
    // the status alone has to do
  }
  if (clock.over?.kind === 'cancelled') return { ...clock.over, status, billed: true }
  const verdict = readRefusal({ status, body, header: (name) => response.headers.get(name) })
  const workMayBeDone = status >= 500 ? status !== 503 && status !== 529 : status === 408
  return { ...verdict, message: `${status} ${verdict.message}`, status, billed: workMayBeDone }
}

// --- deadlines ----------------------------------------------------------------------------------------------------

type Phase = 'connect' | 'first token' | 'gap' | 'total' | 'closing'

const phaseText: Readonly<Record<Phase, string>> = {
  connect: 'no response headers',
  'first token': 'no content',
  gap: 'the stream stalled',
  total: 'no complete reply',
  closing: 'the stream stayed open',
}

/** The deadlines of one call and its cancellation, as one signal. Timers are monotonic and hold no process alive. */
class CallClock {
  readonly #controller = new AbortController()
  readonly totalMs: number
  /** Why the call was stopped; null while it was not. */
  over: { readonly kind: 'timeout' | 'cancelled'; readonly message: string } | null = null
  #phase: Phase = 'connect'
  #phaseMs = 0
  #turn = 0
  #phaseTimer: NodeJS.Timeout | undefined
  readonly #totalTimer: NodeJS.Timeout

  constructor(
    timeouts: ModelTimeouts,
    private readonly outside: AbortSignal,
  ) {
    this.totalMs = delay(timeouts.totalMs)
    this.#totalTimer = setTimeout(() => this.#expire('total', this.totalMs), this.totalMs).unref()
    // many calls may share a signal; each takes its listener off again
    setMaxListeners(0, outside)
    outside.addEventListener('abort', this.#cancel, { once: true })
    if (outside.aborted) this.#cancel()
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** Starts the deadline of a phase; the one before is over. */
  phase(phase: Phase, ms: number): void {
    this.#turn += 1
    const phaseMs = delay(ms)
    if (this.#phase === phase && this.#phaseMs === phaseMs && this.#phaseTimer !== undefined) {
      this.#phaseTimer.refresh()
      return
    }
    clearTimeout(this.#phaseTimer)
    this.#phase = phase
    this.#phaseMs = phaseMs
    this.#phaseTimer = phase === 'total' ? undefined : setTimeout(this.#onPhase, phaseMs).unref()
  }

  stop(): void {
    clearTimeout(this.#phaseTimer)
    clearTimeout(this.#totalTimer)
    this.outside.removeEventListener('abort', this.#cancel)
  }

  readonly #onPhase = (): void => {
    const turn = this.#turn
    // the loop may have been blocked: what has arrived meanwhile is read before the call is given up
    setImmediate(() => {
      if (turn === this.#turn) this.#expire(this.#phase, this.#phaseMs)
    })
  }

  readonly #cancel = (): void => {
    this.#end({ kind: 'cancelled', message: 'cancelled' })
  }

  #expire(phase: Phase, ms: number): void {
    this.#end({ kind: 'timeout', message: `timeout: ${phaseText[phase]} within ${ms} ms` })
  }

  #end(over: NonNullable<CallClock['over']>): void {
    if (this.over !== null) return
    this.over = over
    this.#controller.abort()
  }
}

function delay(ms: number): number {
  return Number.isNaN(ms) ? maxDelayMs : Math.min(Math.max(Math.ceil(ms), 1), maxDelayMs)
}

// --- the request --------------------------------------------------------------------------------------------------

/** Settings that cannot be written as a body. */
class BodyError extends Error {}

/** What the port decides itself: `extra` cannot change what the grant pays for or how the reply is read. */
const ownFields = new Set([
  'model',
  'messages',
  'tools',
  'response_format',
  'max_tokens',
  'max_completion_tokens',
  'n',
  'stream',
  'stream_options',
])

/** The body of a chat completion; messages, tools and response format are put in as the text that they are. */
function requestBody(request: ModelRequest, model: string, maxTokensField: Provider['maxTokensField']): string {
  const { settings, tools, responseFormat } = request
  const extra = Object.entries(settings.extra ?? {})
  const own = extra.find(([name]) => ownFields.has(name))
  if (own !== undefined) throw new BodyError(`settings.extra may not set '${own[0]}'`)
  const fields = fieldText({
    model,
    [maxTokensField]: request.maxOutputTokens,
    temperature: settings.temperature,
    top_p: settings.topP,
    seed: settings.seed,
    stop: settings.stop,
    reasoning_effort: settings.reasoningEffort,
    ...(tools === null ? {} : { tool_choice: settings.toolChoice, parallel_tool_calls: settings.parallelToolCalls }),
    ...(request.stream ? { stream: true, stream_options: { include_usage: true } } : {}),
    ...Object.fromEntries(extra),
  })
  const toolText = tools === null ? '' : `,"tools":${tools}`
  const formatText = responseFormat === null ? '' : `,"response_format":${responseFormat}`
  return `${fields.slice(0, -1)},"messages":[${request.messages.join(',')}]${toolText}${formatText}}`
}

function fieldText(fields: object): string {
  try {
    return JSON.stringify(fields)
  } catch (thrown) {
    throw new BodyError(`settings.extra is not JSON: ${thrown instanceof Error ? thrown.message : String(thrown)}`)
  }
}

function inputCharacters({ messages, tools, responseFormat }: ModelRequest): number {
  const text = messages.reduce((sum, message) => sum + message.length, 0)
  return text + (tools?.length ?? 0) + (responseFormat?.length ?? 0)
}
