/**
 * Requests between workers: one asks another to leave a shard or to take it, which effects it still works on, or to end
 * some.
 *
 * Owns: the shapes on the wire and their bounds, asking, answering.
 * Does not own: what a worker does when it is asked (`runtime/worker.ts`), who lives (`nats-membership.ts`).
 *
 * - WQ1 A request is done by a process that holds the very lease it names, or by nobody.
 * - WQ2 Nothing is read that was not checked against its shape and its bound; what is wrong gets an error for an answer.
 * - WQ3 Asking ends in time, whatever happened to the one that is asked.
 */
import type { Msg, Subscription } from '@nats-io/transport-node'
import { z } from 'zod'
import { errorCodes, TroupeError, toTroupeError } from '../runtime/errors.js'
import type { NatsLink } from './nats-connection.js'
import type { Subjects } from './subjects.js'

/** What a worker that drains still has. */
export interface Left {
  readonly crews: number
  readonly calls: number
}

/** What others can ask of a worker: methods of `runtime/worker.ts`. */
export interface WorkerWork {
  /** Leaves a shard; resolves when another worker may take it. */
  leave(shard: string): Promise<void>
  /** Takes a shard that it is to own; resolves when it has, or when nothing is to be done for it. */
  take(shard: string): Promise<void>
  /** Hands everything over, waits up to `graceMs` for what runs, and goes. Answers at once what it still has. */
  drain?(graceMs: number): Left
  /** Those of the effects that it still works on. */
  working(shard: string, effects: readonly string[]): readonly string[]
  /** Ends them: nobody waits for them any more. */
  cancel(shard: string, effects: readonly string[]): void
}

/** Effects in one request. More are asked for in several. */
const maxEffects = 512
/** Bytes of a request or an answer. */
const maxBytes = 64 * 1_024

const id = z.string().min(1).max(64)
const effects = z.array(id).max(maxEffects)

const request = z.discriminatedUnion('method', [
  z.strictObject({ method: z.literal('release'), epoch: z.int(), shard: id }),
  z.strictObject({ method: z.literal('drain'), epoch: z.int(), graceMs: z.int().min(0) }),
  z.strictObject({ method: z.literal('take'), epoch: z.int(), shard: id }),
  z.strictObject({ method: z.literal('working'), epoch: z.int(), shard: id, effects }),
  z.strictObject({ method: z.literal('cancel'), epoch: z.int(), shard: id, effects }),
])

const left = z.strictObject({ crews: z.int(), calls: z.int() })

const answer = z.union([
  z.strictObject({ left }),
  z.strictObject({ effects }),
  z.strictObject({
    error: z.strictObject({ code: z.enum(errorCodes), message: z.string(), retryable: z.boolean().optional() }),
  }),
])

/** A request without the lease that it is for. */
export type Question =
  | { readonly method: 'release' | 'take'; readonly shard: string }
  | { readonly method: 'working' | 'cancel'; readonly shard: string; readonly effects: readonly string[] }

/** The requests of one worker: those it asks, and those it answers from `serve` to `close`. */
export class WorkerRequests {
  readonly #link: NatsLink
  readonly #subjects: Subjects
  readonly #timeoutMs: number
  #subscription: Subscription | null = null

  /** @param timeoutMs how long an answer is waited for */
  constructor(link: NatsLink, subjects: Subjects, timeoutMs: number) {
    this.#link = link
    this.#subjects = subjects
    this.#timeoutMs = timeoutMs
  }

  // Asking.

  /**
   * Asks a worker under one of its leases. Gives the effects that it named, none for other questions; null when it is gone:
   * nobody answers in time, or not under this lease. Never rejects.
   */
  async ask(worker: string, epoch: number, question: Question): Promise<readonly string[] | null> {
    return this.tell(worker, epoch, question).catch(() => null)
  }

  /** As `ask`, but rejects with what the worker refused it for. */
  async tell(worker: string, epoch: number, question: Question): Promise<readonly string[] | null> {
    if (!('effects' in question)) return this.#request(worker, { ...question, epoch })
    const found: string[] = []
    for (let at = 0; at < question.effects.length; at += maxEffects) {
      const portion = question.effects.slice(at, at + maxEffects)
      const named = await this.#request(worker, { ...question, epoch, effects: portion })
      if (named === null) return null
      found.push(...named.filter((effect) => portion.includes(effect)))
    }
    return found
  }

  /** Asks a worker to hand everything over. Gives what it still has; null when no answer came in time. @throws what it refused it for. */
  async drain(worker: string, epoch: number, graceMs: number): Promise<Left | null> {
    const found = await this.#send(worker, { method: 'drain', epoch, graceMs })
    return found !== null && 'left' in found ? found.left : null
  }

  async #request(worker: string, asked: z.input<typeof request>): Promise<readonly string[] | null> {
    const found = await this.#send(worker, asked)
    return found !== null && 'effects' in found ? found.effects : null
  }

  /** The answer, or null. @throws TroupeError an error that was answered. */
  async #send(
    worker: string,
    asked: z.input<typeof request>,
  ): Promise<Exclude<z.output<typeof answer>, { error: unknown }> | null> {
    const { connection } = this.#link
    let found: z.output<typeof answer>
    try {
      const text = JSON.stringify(asked)
      const { data } = await connection.request(this.#subjects.worker(worker), text, { timeout: this.#timeoutMs })
      found = read(data, answer)
    } catch {
      return null
    }
    if (!('error' in found)) return found
    const { code, message, retryable = false } = found.error
    throw new TroupeError(code, message, { retryable })
  }

  // Answering.

  /**
   * Answers from now on.
   * @param epoch number of the lease that is held; null while there is none
   * @throws TroupeError `ID_INVALID` for a name that is no token.
   */
  serve(worker: string, epoch: () => number | null, work: WorkerWork): void {
    this.close()
    this.#subscription = this.#link.connection.subscribe(this.#subjects.worker(worker), {
      callback: (error, message) => {
        if (error === null) void this.#answer(message, epoch, work)
      },
    })
  }

  async #answer(message: Msg, epoch: () => number | null, work: WorkerWork): Promise<void> {
    const holds = epoch()
    // Another process may have the name by now: the answer is left to it.
    if (holds === null) return
    const found = await answerTo(message.data, holds, work).catch((thrown: unknown) => {
      const { code, message: text, retryable } = toTroupeError(thrown, 'STORE_FAILED')
      return { error: { code, message: text.slice(0, 1_000), retryable } }
    })
    try {
      message.respond(JSON.stringify(found))
    } catch {
      // The connection is closed: whoever asked is told by time.
    }
  }

  /** Answers nobody any more. */
  close(): void {
    this.#subscription?.unsubscribe()
    this.#subscription = null
  }
}

async function answerTo(data: Uint8Array, epoch: number, work: WorkerWork): Promise<z.input<typeof answer>> {
  const asked = read(data, request)
  if (asked.epoch !== epoch) {
    throw new TroupeError('SHARD_ELSEWHERE', `the lease ${asked.epoch} is over, this one is ${epoch}`)
  }
  if (asked.method === 'drain') {
    if (work.drain === undefined) throw new TroupeError('MESSAGE_REFUSED', 'this worker cannot be drained')
    return { left: work.drain(asked.graceMs) }
  }
  if (asked.method === 'working') return { effects: [...work.working(asked.shard, asked.effects)] }
  if (asked.method === 'cancel') work.cancel(asked.shard, asked.effects)
  else if (asked.method === 'take') await work.take(asked.shard)
  else await work.leave(asked.shard)
  return { effects: [] }
}

function read<Shape extends z.ZodType>(data: Uint8Array, shape: Shape): z.output<Shape> {
  if (data.length > maxBytes) {
    throw new TroupeError('ENVELOPE_TOO_LARGE', `more than ${maxBytes} bytes between workers`)
  }
  let value: unknown
  try {
    value = JSON.parse(Buffer.from(data).toString('utf8'))
  } catch {
    throw new TroupeError('ENVELOPE_INVALID', 'what came from another worker is not JSON')
  }
  const found = shape.safeParse(value)
  if (found.success) return found.data
  throw new TroupeError('ENVELOPE_INVALID', `what came from another worker is not understood: ${found.error.message}`)
}
