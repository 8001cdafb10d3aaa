/**
 * The control socket: how other processes reach the crews of a store that this process owns.
 *
 * Owns: the socket and its place, serving requests.
 * Does not own: the wire (`control-wire.ts`), the other end (`control-client.ts`), what a request does
 * (`control-answers.ts`).
 *
 * - C1 Only the holder of the store's lock listens, and only it removes a socket that a dead owner left.
 * - C2 The socket is its owner's alone: mode 0600, or in a folder of mode 0700.
 * - C3 No request, however malformed, large or slow, harms the process or another connection.
 * - C5 Whoever drains the store is told after it is closed.
 * - C4 A listening or connected socket keeps no process alive.
 */
import { chmod, rm, writeFile } from 'node:fs/promises'
import { createServer, type Server, type Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { type AnswerTarget, answerRequest } from './control-answers.js'
import {
  controlRequest,
  maxRequestBytes,
  namingFile,
  placeSocket,
  readLine,
  toLine,
  tooLong,
  wireVersion,
} from './control-wire.js'
import { toTroupeError } from './errors.js'
import type { Log } from './log.js'

/** Connections at once; one more is closed at once. */
const maxConnections = 256
/** A connection that asks nothing for so long, or stays for so long after its answer, is closed. */
const silentMs = 10_000
/** Answers that are on their way have so long when the store is closed. */
const lastAnswersMs = 250

/** What the socket lets others reach; `store` is the store's folder. */
export interface ControlTarget extends AnswerTarget {
  readonly log: Log
}

/** Stops listening and closes every connection. */
export type Unlisten = () => Promise<void>

/** Listens for a store's lock holder. A socket that cannot be had is a warning: the store works without. */
export async function listenControl(target: ControlTarget): Promise<Unlisten> {
  let folder: string | null = null
  try {
    const place = await placeSocket(target.store)
    folder = place.folder
    await rm(place.path, { force: true })
    const control = new ControlServer(target)
    await control.listen(place.path)
    const named = join(target.store, namingFile)
    if (folder === null) await rm(named, { force: true })
    else await writeFile(named, `${place.path}\n`, { mode: 0o600 })
    return async () => {
      await control.close()
      if (folder === null) return
      await rm(named, { force: true })
      await rm(folder, { recursive: true, force: true })
    }
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    target.log.warn('no control socket', { store: target.store, reason })
    if (folder !== null) await rm(folder, { recursive: true, force: true }).catch(() => undefined)
    return async () => undefined
  }
}

class ControlServer {
  readonly #target: ControlTarget
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  readonly #serving = new Set<Promise<void>>()
  /** Those that wait until the store is closed: they are told after that. */
  readonly #draining = new Set<Socket>()

  constructor(target: ControlTarget) {
    this.#target = target
    this.#server = createServer((socket) => this.#accept(socket))
    this.#server.maxConnections = maxConnections
  }

  async listen(path: string): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject)
      // The socket is made inside this call: with the mask nobody can reach it before `chmod`.
      const restore = maskFiles()
      try {
        this.#server.listen(path, resolve)
      } finally {
        restore()
      }
    })
    this.#server.on('error', (error) => this.#target.log.warn('control socket', { reason: error.message }))
    this.#server.unref()
    await chmod(path, 0o600)
  }

  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()))
    const late = new AbortController()
    const timeout = delay(lastAnswersMs, undefined, { signal: late.signal }).catch(() => undefined)
    if (this.#draining.size === 0) await Promise.race([Promise.all(this.#serving), timeout])
    late.abort()
    for (const socket of this.#sockets) if (!this.#draining.has(socket)) socket.destroy()
    if (this.#draining.size === 0) await closed
  }

  #accept(socket: Socket): void {
    this.#sockets.add(socket)
    socket.unref()
    socket.on('error', () => socket.destroy())
    socket.on('close', () => {
      this.#sockets.delete(socket)
      this.#draining.delete(socket)
    })
    socket.write(toLine({ troupe: wireVersion, pid: process.pid }))
    const serving = this.#serve(socket)
      .catch(() => undefined)
      .then(() => {
        this.#serving.delete(serving)
        // Not destroyed at once: an answer is lost when it leaves before all of the request has come.
        socket.end()
        socket.setTimeout(silentMs, () => socket.destroy())
      })
    this.#serving.add(serving)
  }

  async #serve(socket: Socket): Promise<void> {
    const silence = setTimeout(() => socket.destroy(), silentMs)
    silence.unref()
    const gone = new AbortController()
    socket.on('close', () => {
      clearTimeout(silence)
      gone.abort()
    })
    try {
      const request = await firstLine(socket)
      if (request === null) return
      clearTimeout(silence)
      const read = readLine(request, controlRequest)
      if (read.method === 'drain') this.#draining.add(socket)
      for await (const item of answerRequest(this.#target, read, gone.signal)) {
        if (gone.signal.aborted) return
        await send(socket, item)
      }
    } catch (error) {
      await send(socket, { error: toTroupeError(error, 'STORE_FAILED').toRecord() })
    }
  }
}

/** The first line; null when the other end leaves before. What comes after it is read and dropped, so that a leave is seen. */
function firstLine(socket: Socket): Promise<string | null> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = []
    let room = maxRequestBytes
    const take = (chunk: Buffer): void => {
      const end = chunk.indexOf(10)
      const part = end < 0 ? chunk : chunk.subarray(0, end)
      room -= part.length
      chunks.push(part)
      if (end < 0 && room >= 0) return
      socket.off('data', take).resume()
      if (room < 0) reject(tooLong(maxRequestBytes))
      else resolve(Buffer.concat(chunks).toString('utf8'))
    }
    socket.on('data', take).on('close', () => resolve(null))
  })
}

/** Writes a line and waits until the reader has room for more. */
async function send(socket: Socket, value: object): Promise<void> {
  if (socket.destroyed || socket.write(toLine(value))) return
  await new Promise<void>((resolve) => {
    const done = (): void => {
      socket.off('drain', done).off('close', done)
      resolve()
    }
    socket.on('drain', done).on('close', done)
  })
}

/** New files are their owner's alone until the returned function is called. A worker thread cannot have that. */
function maskFiles(): () => void {
  try {
    const before = process.umask(0o177)
    return () => process.umask(before)
  } catch {
    return () => undefined
  }
}
