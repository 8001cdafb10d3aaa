/**
 * A real HTTP server whose answers a test writes byte by byte.
 *
 * Owns: listening, the list of requests and of sockets, closing. Does not own: what is answered.
 */
import { createServer, type IncomingHttpHeaders, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'

/** A request that came in, with its whole body. */
export interface RawRequest {
  readonly method: string
  readonly path: string
  readonly headers: IncomingHttpHeaders
  readonly body: string
}

/** A running server. */
export interface RawServer extends AsyncDisposable {
  readonly url: string
  readonly requests: readonly RawRequest[]
  /** Sockets that are open now. */
  readonly sockets: ReadonlySet<Socket>
  /** Sockets that were ever opened. */
  readonly opened: () => number
}

/** Starts a server on loopback; `answer` is called once the request's body is there. */
export async function startRawServer(
  answer: (response: ServerResponse, request: RawRequest) => void,
): Promise<RawServer> {
  const requests: RawRequest[] = []
  const sockets = new Set<Socket>()
  let opened = 0
  const server = createServer((message, response) => {
    const chunks: Buffer[] = []
    message.on('data', (chunk: Buffer) => chunks.push(chunk))
    message.on('end', () => {
      const { method = '', url: path = '', headers } = message
      const request = { method, path, headers, body: Buffer.concat(chunks).toString() }
      requests.push(request)
      answer(response, request)
    })
  })
  server.on('connection', (socket) => {
    opened += 1
    sockets.add(socket)
    socket.on('error', () => undefined).on('close', () => sockets.delete(socket))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    sockets,
    opened: () => opened,
    async [Symbol.asyncDispose]() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()))
      for (const socket of sockets) socket.destroy()
      await closed
    },
  }
}
