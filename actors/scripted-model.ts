/**
 * A model that does what a script says: a real HTTP server that speaks OpenAI's chat completions, JSON and SSE.
 *
 * Owns: the server, faults, the count of what was asked of it.
 * Does not own: any part of the runtime; it is the outside, and judges it.
 *
 * - SM1 No clock and no randomness: the same requests in the same order get the same bytes.
 * - SM2 The totals count every request that was answered, also faults; the log keeps at most `keep` requests.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { TroupeError } from '../runtime/errors.js'
import {
  completionOf,
  countOf,
  eventsOf,
  includesUsage,
  inputTokensOf,
  readRequest,
  RequestRefused,
  settle,
  type ModelScript,
  type ScriptedAnswer,
  type ScriptedCall,
  type ScriptedFault,
  type ScriptedRequest,
  type Settled,
} from './scripted-chat.js'

export {
  lastUser,
  scriptedTokens,
  toolResults,
  type ModelScript,
  type ScriptedAnswer,
  type ScriptedCall,
  type ScriptedFault,
  type ScriptedMessage,
  type ScriptedReply,
  type ScriptedRequest,
} from './scripted-chat.js'

/** Settings of `startScriptedModel`. */
export interface ScriptedModelOptions {
  /** @default 0: any free one */
  readonly port?: number
  /** @default '127.0.0.1' */
  readonly host?: string
  /** Wait before the first byte of every reply, in milliseconds. @default 0 */
  readonly latencyMs?: number
  /** Wait between two chunks of a stream, in milliseconds. @default 0 */
  readonly chunkMs?: number
  /** Characters of text in a chunk of a stream. @default 6 */
  readonly chunkCharacters?: number
  /** Requests kept in `requests.log`; the totals count all. @default 1_000 */
  readonly keep?: number
}

/** One request in the log. */
export interface ScriptedRecord {
  readonly request: ScriptedRequest
  readonly inputTokens: number
  readonly outputTokens: number
  /** HTTP status; 0 when the connection was stalled before the headers. */
  readonly status: number
}

/** Sums over requests. */
export interface ScriptedTotals {
  count: number
  inputTokens: number
  outputTokens: number
  /** Requests that were not answered with a complete reply. */
  faults: number
}

/** What was asked of the server. */
export interface ScriptedRequests extends Readonly<ScriptedTotals> {
  readonly byModel: ReadonlyMap<string, Readonly<ScriptedTotals>>
  /** The last `keep` requests, oldest first. */
  readonly log: readonly ScriptedRecord[]
}

/** A running scripted model. */
export interface ScriptedModel extends AsyncDisposable {
  /** `http://host:port`. */
  readonly url: string
  /** For `OPENAI_BASE_URL`: `url` and `/v1`. */
  readonly baseURL: string
  readonly requests: ScriptedRequests
  /** Destroys all connections and stops. */
  close(): Promise<void>
}

/** Builds replies. */
export const reply = {
  text: (text: string, more: Omit<ScriptedAnswer, 'text'> = {}): ScriptedAnswer => ({ ...more, text }),
  calls: (...calls: readonly ScriptedCall[]): ScriptedAnswer => ({ calls }),
  call: (name: string, args: unknown = {}): ScriptedAnswer => ({ calls: [{ name, arguments: args }] }),
} as const

/** Builds faults; the second argument of those in a reply is the reply. */
export const fault = {
  status: (status: number, more: { retryAfter?: number | string; body?: unknown } = {}): ScriptedAnswer => ({
    fault: { status, ...more },
  }),
  cut: (afterBytes: number, answer: ScriptedAnswer = { text: 'cut' }): ScriptedAnswer => ({
    ...answer,
    fault: { cut: afterBytes },
  }),
  stall: (at: 'headers' | 'body', answer: ScriptedAnswer = { text: 'stalled' }): ScriptedAnswer => ({
    ...answer,
    fault: { stall: at },
  }),
  garbage: (text: string): ScriptedAnswer => ({ fault: { garbage: text } }),
  delay: (delayMs: number, answer: ScriptedAnswer): ScriptedAnswer => ({ ...answer, fault: { delayMs } }),
} as const

/**
 * Starts a scripted model.
 * @throws TroupeError `CONFIG_INVALID` when the port cannot be had.
 */
export async function startScriptedModel(
  script: ModelScript,
  options: ScriptedModelOptions = {},
): Promise<ScriptedModel> {
  const host = options.host ?? '127.0.0.1'
  const ledger = new Ledger(options.keep ?? 1_000)
  const sockets = new Set<Socket>()
  const server = createServer({ keepAlive: true, noDelay: true }, (message, response) => {
    void new Turn(script, options, ledger, response).serve(message)
  })
  server.keepAliveTimeout = 60_000
  server.on('connection', (socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket)).on('error', () => socket.destroy())
  })
  await listen(server, options.port ?? 0, host)
  const { port } = server.address() as AddressInfo
  const url = `http://${host.includes(':') ? `[${host}]` : host}:${port}`
  const close = async (): Promise<void> => {
    const closed = new Promise<void>((resolve) => server.close(() => resolve()))
    for (const socket of sockets) socket.destroy()
    await closed
  }
  return { url, baseURL: `${url}/v1`, requests: ledger, close, [Symbol.asyncDispose]: close }
}

function listen(server: Server, port: number, host: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const refuse = (error: Error): void => {
      reject(new TroupeError('CONFIG_INVALID', `the scripted model cannot listen on ${host}:${port}: ${error.message}`))
    }
    server.once('error', refuse).listen(port, host, () => {
      server.off('error', refuse)
      resolve()
    })
  })
}

class Ledger implements ScriptedRequests {
  count = 0
  inputTokens = 0
  outputTokens = 0
  faults = 0
  readonly byModel = new Map<string, ScriptedTotals>()
  #log: ScriptedRecord[] = []

  constructor(private readonly keep: number) {}

  get log(): readonly ScriptedRecord[] {
    return this.#log.slice(-this.keep)
  }

  add(record: ScriptedRecord, faulty: boolean): void {
    const { model } = record.request
    let totals = this.byModel.get(model)
    if (totals === undefined)
      this.byModel.set(model, (totals = { count: 0, inputTokens: 0, outputTokens: 0, faults: 0 }))
    for (const sums of [this, totals]) {
      sums.count += 1
      sums.inputTokens += record.inputTokens
      sums.outputTokens += record.outputTokens
      if (faulty) sums.faults += 1
    }
    if (this.keep === 0) return
    this.#log.push(record)
    if (this.#log.length > this.keep * 2) this.#log = this.#log.slice(-this.keep)
  }
}

/** One request and its answer. */
class Turn {
  constructor(
    private readonly script: ModelScript,
    private readonly options: ScriptedModelOptions,
    private readonly ledger: Ledger,
    private readonly response: ServerResponse,
  ) {}

  async serve(message: IncomingMessage): Promise<void> {
    try {
      const path = message.url?.split('?')[0]
      if (message.method === 'GET' && path === '/v1/models') return this.#json(200, { object: 'list', data: [] })
      if (message.method !== 'POST' || path !== '/v1/chat/completions') {
        return this.#error(404, `no route ${message.method ?? ''} ${path ?? ''}`)
      }
      await this.#complete(await bodyOf(message), message.headers)
    } catch (thrown) {
      const text = thrown instanceof Error ? thrown.message : String(thrown)
      if (!this.response.headersSent) this.#error(thrown instanceof RequestRefused ? 400 : 500, text)
      else this.response.destroy()
    }
  }

  async #complete(body: string, headers: ScriptedRequest['headers']): Promise<void> {
    const request = readRequest(body, headers, this.ledger.count)
    const inputTokens = inputTokensOf(body, request)
    let answer: ScriptedAnswer
    try {
      const given = this.script(request)
      const reply = given instanceof Promise ? await given : given
      answer = typeof reply === 'string' ? { text: reply } : reply
    } catch (thrown) {
      this.ledger.add({ request, inputTokens: 0, outputTokens: 0, status: 500 }, true)
      throw thrown
    }
    const { fault } = answer
    const delayMs = (this.options.latencyMs ?? 0) + (fault !== undefined && 'delayMs' in fault ? fault.delayMs : 0)
    if (delayMs > 0) await delay(delayMs)
    if (fault !== undefined && 'status' in fault) {
      this.ledger.add({ request, inputTokens: 0, outputTokens: 0, status: fault.status }, true)
      return this.#refuse(fault)
    }
    const settled = settle(answer, request, inputTokens)
    const { input, output } = settled.usage ?? countOf(settled, inputTokens)
    const status = fault !== undefined && 'stall' in fault && fault.stall === 'headers' ? 0 : 200
    const faulty = fault !== undefined && !('delayMs' in fault)
    this.ledger.add({ request, inputTokens: input, outputTokens: output, status }, faulty)
    if (status === 0) return
    if (fault !== undefined && 'garbage' in fault) return this.#send(200, 'text/plain', fault.garbage)
    const limit = bytesBefore(fault)
    if (!request.stream) return this.#sendWhole(JSON.stringify(completionOf(settled)), limit, fault)
    await this.#stream(settled, request, limit, fault)
  }

  #refuse(fault: { status: number; retryAfter?: number | string; body?: unknown }): void {
    if (fault.retryAfter !== undefined) this.response.setHeader('retry-after', String(fault.retryAfter))
    if (fault.body === undefined) return this.#error(fault.status, `scripted fault ${fault.status}`)
    if (typeof fault.body === 'string') return this.#send(fault.status, 'text/plain', fault.body)
    this.#json(fault.status, fault.body)
  }

  #sendWhole(body: string, limit: number, fault: ScriptedFault | undefined): void {
    if (limit === Infinity) return this.#send(200, 'application/json', body)
    const bytes = Buffer.from(body)
    this.response.writeHead(200, { 'content-type': 'application/json', 'content-length': bytes.length })
    this.#end(bytes.subarray(0, limit), fault)
  }

  async #stream(
    settled: Settled,
    request: ScriptedRequest,
    limit: number,
    fault: ScriptedFault | undefined,
  ): Promise<void> {
    const { chunkMs = 0, chunkCharacters = 6 } = this.options
    const events = eventsOf(settled, includesUsage(request), chunkCharacters)
    this.response.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8', 'cache-control': 'no-cache' })
    if (limit !== Infinity) return this.#end(Buffer.from(events.join('')).subarray(0, limit), fault)
    for (const event of events) {
      if (this.response.destroyed) return
      if (chunkMs > 0) await delay(chunkMs)
      if (!this.response.write(event)) await drained(this.response)
    }
    this.response.end()
  }

  /** Sends the first bytes, then destroys the connection or leaves it open. */
  #end(bytes: Buffer, fault: ScriptedFault | undefined): void {
    const after = (): void => {
      if (fault !== undefined && 'cut' in fault) this.response.socket?.destroy()
    }
    if (bytes.length === 0) {
      this.response.flushHeaders()
      setImmediate(after)
    } else {
      this.response.write(bytes, after)
    }
  }

  #error(status: number, message: string): void {
    const type = status < 500 ? 'invalid_request_error' : 'server_error'
    this.#json(status, { error: { message, type, param: null, code: null } })
  }

  #json(status: number, value: unknown): void {
    this.#send(status, 'application/json', JSON.stringify(value))
  }

  #send(status: number, type: string, body: string): void {
    this.response.writeHead(status, { 'content-type': type, 'content-length': Buffer.byteLength(body) })
    this.response.end(body)
  }
}

function bytesBefore(fault: ScriptedFault | undefined): number {
  if (fault === undefined) return Infinity
  if ('cut' in fault) return fault.cut
  return 'stall' in fault ? 40 : Infinity
}

function bodyOf(message: IncomingMessage): Promise<string> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = []
    message
      .on('data', (chunk: Buffer) => chunks.push(chunk))
      .on('end', () =>
        resolve((chunks.length === 1 ? (chunks[0] ?? Buffer.alloc(0)) : Buffer.concat(chunks)).toString()),
      )
      .on('error', reject)
  })
}

function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}

function drained(response: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const go = (): void => {
      response.off('drain', go).off('close', go)
      resolve()
    }
    response.on('drain', go).on('close', go)
  })
}
