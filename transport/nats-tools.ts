/**
 * Remote tools: the half of a shard's owner. It finds a tool worker that has a place for a call, and starts it there.
 *
 * Owns: which calls go to tool workers, waiting for a place, starting once it is recorded, their progress.
 * Does not own: the tool worker's half (`nats-tool-worker.ts`), the `dispatched` record and what becomes of a call that is
 * with a worker (`runtime/dispatcher.ts`, `runtime/takeover.ts`), outcomes (they are mail).
 *
 * - NRT1 A call is started by nobody but the worker that its `dispatched` record names, and after that record is durable.
 * - NRT2 A call that has no place waits for one as long as there are tool workers, and for its `timeoutMs` while there are
 *   none; then the model is told that it was not made.
 * - NRT3 What a worker refused is given to another place; what may have been started is never given twice.
 */
import { setTimeout as pause } from 'node:timers/promises'
import { errors, type Msg, type Subscription } from '@nats-io/transport-node'
import type { z } from 'zod'
import { toTroupeError } from '../runtime/errors.js'
import type { Log } from '../runtime/log.js'
import type { ToolOutcome, ToolPort, ToolRequest } from '../runtime/ports.js'
import { outcomeAddress } from '../runtime/remote-outcome.js'
import type { NatsLink } from './nats-connection.js'
import type { Subjects } from './subjects.js'
import * as work from './tool-work.js'

/** What came from a tool while it runs. */
export type RemoteProgress = z.infer<typeof work.progress>

/** What the owner's half needs. */
export interface RemoteToolsOptions {
  /** JetStream is not needed. */
  readonly link: Pick<NatsLink, 'connection'>
  readonly subjects: Subjects
  /** Name of this worker. */
  readonly worker: string
  /** Whether an executor may be alive, as far as is known here. */
  readonly lives: (executor: string) => boolean
  /** Tells an executor that nobody wants an effect any more. */
  readonly release: (executor: string, shard: string, effect: string) => void
  /** Shows progress. The worker's name in `executor` is the one that the server's permissions bind. */
  readonly show: (progress: RemoteProgress) => void
  readonly log: Log
}

/** How long an answer is waited for. */
const answerMs = 2_000
/** Waits between two questions for a place. */
const firstPauseMs = 25
const longestPauseMs = 1_000
/** When somebody is told that a call finds no worker. */
const tellMs = 1_000
/** Places that are tried for one call. */
const maxPlaces = 5

type Place = Extract<z.infer<typeof work.placeAnswer>, { place: string }>
type Kind = work.Start['work']
/** Why there is no place. */
type NoPlace = 'cancelled' | 'dropped' | 'unserved'

/** Remote tools of the crews of one worker, until `close`. */
export class RemoteTools {
  readonly #options: RemoteToolsOptions
  readonly #progress: Subscription

  constructor(options: RemoteToolsOptions) {
    const { link, subjects, worker } = options
    this.#options = options
    this.#progress = link.connection.subscribe(subjects.progress(worker), {
      callback: (error, message) => {
        if (error === null) this.#show(message)
      },
    })
  }

  /** The tool port of a crew whose remote tools go to tool workers, and the others to `local`. */
  route(local: ToolPort, isRemote: (agent: string, tool: string) => boolean): ToolPort {
    return {
      run: (request) =>
        isRemote(request.agent, request.tool) ? this.#give(request, 'run').catch(told) : local.run(request),
      verify: async (request) => {
        if (!isRemote(request.agent, request.tool)) return local.verify(request)
        const given = await this.#give(request, 'verify').catch(told)
        return given.status === 'given' || given.status === 'dropped' ? given : { done: null }
      },
    }
  }

  /** Shows no more progress. */
  close(): void {
    this.#progress.unsubscribe()
  }

  #show({ subject, data }: Msg): void {
    const { subjects, show, log } = this.#options
    try {
      const progress = work.readWork(data, work.progress, work.maxShortBytes)
      const worker = subjects.workerOfProgress(subject)
      if (progress.executor.startsWith(`${worker}.`)) show(progress)
    } catch (error) {
      log.debug('progress was refused', { reason: toTroupeError(error, 'ENVELOPE_INVALID').message })
    }
  }

  /** Gives a call to a tool worker. */
  async #give(request: ToolRequest, kind: Kind): Promise<ToolOutcome> {
    // What is too large is told before anybody is asked.
    work.partsOfStart(this.#startOf(request, kind, '-', '-'))
    for (let tries = 0; tries < maxPlaces; tries++) {
      const place = await this.#place(request)
      if (place === 'cancelled') return { status: 'cancelled', started: false }
      if (place === 'dropped') return { status: 'dropped' }
      if (place === 'unserved') return unserved(request)
      const { executor, withinMs } = place
      const until = performance.now() + withinMs
      const may = await request.mayStart({ executor, withinMs }).catch(() => false)
      if (may && (await this.#start(request, kind, place, until))) return { status: 'given' }
      if (may) continue
      this.#options.release(executor, request.shard, request.effect)
      return request.signal.aborted ? { status: 'cancelled', started: false } : { status: 'dropped' }
    }
    return unserved(request)
  }

  // A place.

  async #place(request: ToolRequest): Promise<Place | NoPlace> {
    const { signal, leaving, timeoutMs, tool } = request
    const wanted = AbortSignal.any([signal, leaving])
    /** Since when nobody answers. */
    let missingSince: number | null = null
    let isTold = false
    for (let attempt = 0; ; attempt++) {
      if (signal.aborted) return 'cancelled'
      if (leaving.aborted) return 'dropped'
      const answer = await this.#ask(request)
      if (typeof answer === 'object') {
        if (!wanted.aborted) return answer
        this.#options.release(answer.executor, request.shard, request.effect)
        continue
      }
      const now = performance.now()
      missingSince = answer === 'busy' ? null : (missingSince ?? now)
      const missingMs = missingSince === null ? 0 : now - missingSince
      if (missingMs >= timeoutMs) return 'unserved'
      if (missingMs >= tellMs && !isTold) {
        isTold = true
        this.#options.log.warn('no worker serves a tool: its calls wait', { tool, shard: request.shard })
        request.progress(`waiting: no worker serves ${tool}`)
      }
      const longest = Math.min(longestPauseMs, firstPauseMs * 2 ** Math.min(attempt, 8))
      const left = missingSince === null ? longest : timeoutMs - missingMs
      await pause(Math.min(left, longest * (0.5 + Math.random() / 2)), null, { signal: wanted, ref: false }).catch(
        () => undefined,
      )
    }
  }

  /** Asks once. `busy`: there are tool workers, and none that was asked has room. */
  async #ask({ shard, effect, term, tool }: ToolRequest): Promise<Place | 'busy' | 'missing'> {
    const { link, subjects, lives, release } = this.#options
    try {
      const question = JSON.stringify({ shard, effect, term })
      const { data } = await link.connection.request(subjects.tool(tool), question, { timeout: answerMs })
      const answer = work.readWork(data, work.placeAnswer, work.maxShortBytes)
      if ('busy' in answer) return 'busy'
      if ('error' in answer) return 'missing'
      if (lives(answer.executor)) return answer
      // Whoever is not known here yet would be taken for gone.
      release(answer.executor, shard, effect)
      return 'busy'
    } catch (error) {
      return isNobody(error) ? 'missing' : 'busy'
    }
  }

  // The start.

  #startOf(request: ToolRequest, kind: Kind, place: string, worker: string): work.Start {
    const { shard, effect, term, tool, timeoutMs, idempotencyKey, agent, runId, callId, data } = request
    const { subjects, worker: owner } = this.#options
    const outcome = subjects.mail(shard, outcomeAddress(worker))
    const call = { tool, arguments: request.arguments, timeoutMs, idempotencyKey, agent, run: runId, callId, data }
    return { place, shard, effect, term, work: kind, ...call, owner, outcome }
  }

  /** False when the worker has not started it, and will not. */
  async #start(request: ToolRequest, kind: Kind, { place, executor }: Place, until: number): Promise<boolean> {
    const { subjects, log } = this.#options
    const worker = executor.slice(0, executor.lastIndexOf('.'))
    const parts = work.partsOfStart(this.#startOf(request, kind, place, worker))
    let maybe = false
    // Behind that time it is not begun any more. Whether it was is asked when its own time is over (`Takeover.follow`).
    while (performance.now() < until && !request.signal.aborted) {
      try {
        const answer = await this.#send(subjects.start(worker), parts)
        if ('started' in answer) return true
        log.warn('a tool worker refused a call', { worker, shard: request.shard, reason: answer.error.message })
        return false
      } catch (error) {
        if (isNobody(error) && !maybe) return false
        maybe = true
        await pause(firstPauseMs, null, { signal: request.signal, ref: false }).catch(() => undefined)
      }
    }
    return true
  }

  async #send(subject: string, parts: ReturnType<typeof work.partsOfStart>): Promise<z.infer<typeof work.startAnswer>> {
    const { connection } = this.#options.link
    for (const { data, headers } of parts.slice(0, -1)) connection.publish(subject, data, { headers })
    const { data, headers } = parts.at(-1)!
    const answer = await connection.request(subject, data, { headers, timeout: answerMs })
    return work.readWork(answer.data, work.startAnswer, work.maxShortBytes)
  }
}

/** The server knows of nobody who listens. */
function isNobody(error: unknown): boolean {
  return error instanceof errors.RequestError && error.isNoResponders()
}

function unserved({ tool }: ToolRequest): ToolOutcome {
  const message = `No worker serves the tool ${tool} at the moment. The call was not made.`
  return { status: 'failed', kind: 'unserved', message }
}

/** What nobody could be asked for. */
function told(thrown: unknown): ToolOutcome {
  const { message } = toTroupeError(thrown, 'ENVELOPE_INVALID')
  return { status: 'failed', kind: 'told', message: `The call was not made: ${message}` }
}
