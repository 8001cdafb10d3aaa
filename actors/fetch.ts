/**
 * A `fetch` for model calls on undici's connection pool.
 *
 * Owns: the pool, one request on it, the body of its response, the cap on that body.
 * Does not own: what the bytes mean, deadlines (it obeys the signal it is given), retries (there are none).
 *
 * Node's own `fetch` spends about 250 µs of CPU a call on web streams, header objects and clones that the client never
 * looks at. This one answers with an object that has the parts of `Response` which clients use; a body becomes a web
 * stream only when `body` is asked for.
 *
 * - FE1 A promise settles once: an abort rejects at once, also while the connection is still being made.
 * - FE2 A body above the cap fails with `BodyTooLargeError` and its socket is destroyed; never more than the cap plus one
 *   chunk is held.
 * - FE3 No listener stays on the signal and no socket stays busy after the body has ended, failed or been cancelled.
 * - FE4 Idle sockets do not keep the process alive.
 * - FE5 Redirects are not followed: a key never travels to another origin.
 */
import { createRequire } from 'node:module'
import { createBrotliDecompress, createGunzip, createInflate } from 'node:zlib'
import type { Transform } from 'node:stream'
import type { Agent, Dispatcher } from 'undici'

/** Most bytes of a response body that are taken unless told otherwise: 16 MiB. */
export const defaultMaxBodyBytes = 16 * 1_048_576

/** Bytes of an unread body after which the socket is paused. */
const highWaterBytes = 262_144

/** Settings of `createFetch`. */
export interface FetchOptions {
  /** Most bytes of a response body, after decompression. @default 16 MiB */
  readonly maxBodyBytes?: number
  /** Bound of making a TCP and TLS connection, in milliseconds. @default 10_000 */
  readonly connectMs?: number
  /** How long an idle socket is kept for the next call, in milliseconds; a server's own hint wins. @default 15_000 */
  readonly keepAliveMs?: number
}

/**
 * `fetch` as the model port (and the `openai` client) calls it: a URL, method, headers, a text or byte body and a signal.
 *
 * Rejects with the signal's reason after an abort, `BodyTooLargeError` for a declared length above the cap, and
 * undici's error (with its `code`) when the connection fails.
 */
export interface PooledFetch {
  (input: string | URL | Request, init?: RequestInit): Promise<Response>
  /** Destroys all sockets; calls in flight fail. Resolves when they are closed. */
  close(): Promise<void>
}

/** A response body was larger than the cap. */
export class BodyTooLargeError extends Error {
  override readonly name = 'BodyTooLargeError'
  constructor(
    /** The cap, in bytes. */
    readonly limit: number,
  ) {
    super(`the response is larger than ${limit} bytes`)
  }
}

type RawHeaders = Readonly<Record<string, string | readonly string[] | undefined>>

/** Response headers, read only. */
class PooledHeaders {
  readonly #raw: RawHeaders

  constructor(raw: RawHeaders) {
    this.#raw = raw
  }

  get(name: string): string | null {
    const value = this.#raw[name.toLowerCase()]
    return value === undefined ? null : typeof value === 'string' ? value : value.join(', ')
  }

  has(name: string): boolean {
    return this.#raw[name.toLowerCase()] !== undefined
  }

  *entries(): IterableIterator<[string, string]> {
    for (const name of Object.keys(this.#raw)) yield [name, this.get(name) ?? '']
  }

  *keys(): IterableIterator<string> {
    for (const [name] of this.entries()) yield name
  }

  *values(): IterableIterator<string> {
    for (const [, value] of this.entries()) yield value
  }

  forEach(callback: (value: string, name: string) => void): void {
    for (const [name, value] of this.entries()) callback(value, name)
  }

  [Symbol.iterator](): IterableIterator<[string, string]> {
    return this.entries()
  }
}

/** The parts of `Response` that clients use. Read the body or cancel it; an ignored one keeps its socket. */
class PooledResponse {
  readonly redirected = false
  readonly type = 'default'
  bodyUsed = false
  readonly headers: PooledHeaders
  readonly #exchange: Exchange
  #stream: ReadableStream<Uint8Array> | undefined

  constructor(
    readonly url: string,
    readonly status: number,
    readonly statusText: string,
    headers: RawHeaders,
    exchange: Exchange,
  ) {
    this.headers = new PooledHeaders(headers)
    this.#exchange = exchange
  }

  get ok(): boolean {
    return this.status >= 200 && this.status < 300
  }

  /** The body as a web stream, made on first use. */
  get body(): ReadableStream<Uint8Array> {
    this.#stream ??= streamOf(this.chunks(), this.#exchange)
    return this.#stream
  }

  /** The body chunk by chunk, without a web stream in between. Leaving the loop early destroys the socket. */
  chunks(): AsyncGenerator<Uint8Array, void, undefined> {
    this.#take()
    return this.#exchange.chunks()
  }

  async bytes(): Promise<Buffer> {
    this.#take()
    return this.#exchange.whole()
  }

  async arrayBuffer(): Promise<ArrayBuffer> {
    return new Uint8Array(await this.bytes()).buffer
  }

  async text(): Promise<string> {
    const text = (await this.bytes()).toString('utf8')
    return text.charCodeAt(0) === 0xfeff ? text.slice(1) : text
  }

  async json(): Promise<unknown> {
    return JSON.parse(await this.text()) as unknown
  }

  #take(): void {
    if (this.bodyUsed) throw new TypeError('the body has been read already')
    this.bodyUsed = true
  }
}

function streamOf(chunks: AsyncGenerator<Uint8Array, void, undefined>, exchange: Exchange): ReadableStream<Uint8Array> {
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      const next = await chunks.next()
      if (next.done === true) controller.close()
      else controller.enqueue(next.value)
    },
    cancel() {
      exchange.fail(new Error('the body was cancelled'))
    },
  })
}

/** One request and its response on the pool: undici's handler on one side, a reader on the other. */
class Exchange implements Dispatcher.DispatchHandler {
  #controller: Dispatcher.DispatchController | undefined
  #headersCame = false
  #queue: Buffer[] = []
  #queuedBytes = 0
  #totalBytes = 0
  #collecting = false
  #paused = false
  #ended = false
  #error: Error | undefined
  #wake: (() => void) | undefined
  #decoder: Transform | undefined

  constructor(
    private readonly url: string,
    private readonly limit: number,
    private readonly signal: AbortSignal | undefined,
    private readonly resolve: (response: PooledResponse) => void,
    private readonly reject: (error: Error) => void,
  ) {
    signal?.addEventListener('abort', this.#onAbort, { once: true })
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller
    if (this.#error !== undefined) controller.abort(this.#error)
  }

  onResponseStart(
    _controller: Dispatcher.DispatchController,
    status: number,
    headers: RawHeaders,
    statusText?: string,
  ): void {
    if (status < 200) return
    if (Number(headers['content-length'] ?? 0) > this.limit) return this.fail(new BodyTooLargeError(this.limit))
    this.#decoder = this.#decoderFor(headers['content-encoding'])
    this.#headersCame = true
    this.resolve(new PooledResponse(this.url, status, statusText ?? '', headers, this))
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (this.#error !== undefined) return
    if (this.#decoder === undefined) this.#accept(chunk)
    else this.#decoder.write(chunk)
  }

  onResponseEnd(): void {
    if (this.#decoder === undefined) this.#finish()
    else this.#decoder.end()
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    this.fail(error)
  }

  /** Ends the exchange with an error, once; the socket is destroyed. */
  fail(error: Error): void {
    if (this.#ended || this.#error !== undefined) return
    this.#error = error
    this.#queue = []
    this.signal?.removeEventListener('abort', this.#onAbort)
    if (this.#controller?.aborted === false) this.#controller.abort(error)
    this.#decoder?.destroy()
    if (!this.#headersCame) this.reject(error)
    this.#wake?.()
  }

  /** The rest of the body at once. */
  async whole(): Promise<Buffer> {
    this.#collecting = true
    this.#resume()
    while (!this.#ended) {
      if (this.#error !== undefined) throw this.#error
      await this.#change()
    }
    const [first] = this.#queue
    return first !== undefined && this.#queue.length === 1 ? first : Buffer.concat(this.#queue)
  }

  /** The rest of the body as it comes; the socket is paused while nobody reads. */
  async *chunks(): AsyncGenerator<Uint8Array, void, undefined> {
    try {
      for (;;) {
        const taken = this.#queue
        this.#queue = []
        this.#queuedBytes = 0
        this.#resume()
        for (const chunk of taken) yield chunk
        if (this.#queue.length > 0) continue
        if (this.#error !== undefined) throw this.#error
        if (this.#ended) return
        await this.#change()
      }
    } finally {
      this.fail(new Error('the body was cancelled'))
    }
  }

  readonly #onAbort = (): void => {
    const reason: unknown = this.signal?.reason
    this.fail(reason instanceof Error ? reason : new Error(`aborted: ${String(reason)}`))
  }

  #accept(chunk: Buffer): void {
    this.#totalBytes += chunk.length
    if (this.#totalBytes > this.limit) return this.fail(new BodyTooLargeError(this.limit))
    this.#queue.push(chunk)
    this.#queuedBytes += chunk.length
    if (this.#collecting) return
    if (this.#queuedBytes > highWaterBytes && !this.#paused) {
      this.#paused = true
      this.#controller?.pause()
    }
    this.#wake?.()
  }

  #finish(): void {
    if (this.#error !== undefined) return
    this.#ended = true
    this.signal?.removeEventListener('abort', this.#onAbort)
    this.#wake?.()
  }

  #resume(): void {
    if (!this.#paused) return
    this.#paused = false
    this.#controller?.resume()
  }

  #change(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = () => {
        this.#wake = undefined
        resolve()
      }
    })
  }

  /** Nothing compressed is asked for; a server may send it all the same. */
  #decoderFor(encoding: string | readonly string[] | undefined): Transform | undefined {
    const decoder =
      encoding === 'gzip' || encoding === 'x-gzip'
        ? createGunzip()
        : encoding === 'br'
          ? createBrotliDecompress()
          : encoding === 'deflate'
            ? createInflate()
            : undefined
    return decoder
      ?.on('data', (chunk: Buffer) => this.#accept(chunk))
      .on('end', () => this.#finish())
      .on('error', (error: Error) => this.fail(error))
  }
}

// undici's index also loads its fetch, web sockets, caches and mocks: 70 ms instead of 28. The version is pinned.
const loadAgent = (): typeof Agent => createRequire(import.meta.url)('undici/lib/dispatcher/agent.js') as typeof Agent

/**
 * Makes a `fetch` with a connection pool of its own. See the head of this file for what it guarantees. The first call
 * in a process loads undici, some 28 ms.
 *
 * Deadlines are the caller's, by `signal`; only making a connection is bounded here.
 */
export function createFetch(options: FetchOptions = {}): PooledFetch {
  const limit = options.maxBodyBytes ?? defaultMaxBodyBytes
  const agent = new (loadAgent())({
    headersTimeout: 0,
    bodyTimeout: 0,
    keepAliveTimeout: options.keepAliveMs ?? 15_000,
    connect: { timeout: options.connectMs ?? 10_000 },
  })

  const pooledFetch = (input: string | URL | Request, init: RequestInit = {}): Promise<Response> =>
    new Promise((resolve, reject) => {
      const url = input instanceof URL ? input : new URL(typeof input === 'string' ? input : input.url)
      const signal = init.signal ?? undefined
      if (signal?.aborted === true) throw signal.reason
      // The one cast from the parts of `Response` that we have to all of it; see `PooledResponse`.
      const answer = (response: PooledResponse): void => resolve(response as unknown as Response)
      const exchange = new Exchange(url.href, limit, signal, answer, reject)
      try {
        agent.dispatch(
          {
            origin: url.origin,
            path: url.pathname + url.search,
            method: (init.method ?? 'GET').toUpperCase(),
            headers: headerList(init.headers),
            body: bodyOf(init.body),
          },
          exchange,
        )
      } catch (error) {
        exchange.fail(error instanceof Error ? error : new Error(String(error)))
      }
    })

  return Object.assign(pooledFetch, {
    close: async (): Promise<void> => {
      await agent.destroy()
    },
  })
}

/**
 * The body of any `Response` chunk by chunk, capped at 16 MiB; without a web stream when it came from `createFetch`.
 * Throws `BodyTooLargeError`.
 */
export function bodyChunks(response: Response): AsyncIterable<Uint8Array> {
  if (response instanceof PooledResponse) return response.chunks()
  return cappedChunks(response.body)
}

/** The body of any `Response` as text, capped at 16 MiB. Throws `BodyTooLargeError`. */
export async function bodyText(response: Response): Promise<string> {
  if (response instanceof PooledResponse) return response.text()
  const decoder = new TextDecoder()
  let text = ''
  for await (const chunk of bodyChunks(response)) text += decoder.decode(chunk, { stream: true })
  return text + decoder.decode()
}

async function* cappedChunks(body: ReadableStream<Uint8Array> | null): AsyncGenerator<Uint8Array, void, undefined> {
  let bytes = 0
  for await (const chunk of body ?? []) {
    bytes += chunk.length
    if (bytes > defaultMaxBodyBytes) throw new BodyTooLargeError(defaultMaxBodyBytes)
    yield chunk
  }
}

function headerList(headers: RequestInit['headers']): string[] {
  const list: string[] = []
  let encoded = false
  const add = (name: string, value: string): void => {
    encoded ||= name === 'accept-encoding'
    list.push(name, value)
  }
  if (headers instanceof Headers) headers.forEach((value, name) => add(name, value))
  else for (const [name, value] of new Headers(headers).entries()) add(name, value)
  if (!encoded) list.push('accept-encoding', 'identity')
  return list
}

function bodyOf(body: RequestInit['body']): string | Uint8Array | null {
  if (body === undefined || body === null || typeof body === 'string') return body ?? null
  if (body instanceof Uint8Array) return body
  if (body instanceof ArrayBuffer) return new Uint8Array(body)
  throw new TypeError('the body of a request must be text or bytes')
}
