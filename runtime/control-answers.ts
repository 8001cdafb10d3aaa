/**
 * Answers: what each request of the control wire does, whichever way it came.
 *
 * Owns: the answers to a checked request, which crew it reaches.
 * Does not own: the ways (`control.ts`, `transport/nats-door.ts`), the wire's shapes (`control-wire.ts`), the work
 * (`runtime.ts`).
 *
 * - CA1 A request has one closing answer, `{result}`, or throws; `{item}`s come only before it.
 * - CA2 A crew or a machine that is at work here is not removed: whoever waits for it would wait for ever.
 * - CA3 Whoever asks and leaves holds nothing here: a wait ends with its signal, the run goes on.
 */
import type { BudgetLimits } from './budget.js'
import { type ControlRequest, toWireCommit } from './control-wire.js'
import type { CrewHandle } from './crew-handle.js'
import { isTroupeError, TroupeError } from './errors.js'
import { isDamage } from './journal.js'
import type { MachineHandle } from './machine-handle.js'
import type { RunInput } from './run-input.js'
import type { Runtime } from './runtime.js'
import { type SteerInput, whomOf } from './steering.js'

/** What requests reach. */
export interface AnswerTarget {
  /** Where the crews are, for people: the folder of a store, a namespace. */
  readonly store: string
  /** Reads, commands and removes. */
  readonly runtime: Runtime
  /**
   * The handle of a crew that can be used here; undefined when there is none.
   * @param name the crew whose code an id that is not known yet is to run
   */
  crew(id: string, name?: string): CrewHandle | undefined | Promise<CrewHandle | undefined>
  /**
   * The handle of a machine of the user's that can be used here; undefined when there is none. Whoever asked releases it.
   * @param spawn starts it when it is new: what its definition must be, if that is said, and its input
   * @throws TroupeError `CREW_INVALID` for a crew of agents.
   * @default there are none
   */
  machine?(id: string, spawn?: SpawnRequest): Visit | undefined | Promise<Visit | undefined>
  /** This process is about to leave the crews to others. @default it stays */
  passing?(): boolean
}

/** A handle for one request. */
export interface Visit {
  readonly machine: MachineHandle<unknown, never>
  /** It is not used any more. */
  readonly release: () => void
}

/** A request to start a machine. */
export type SpawnRequest = Extract<ControlRequest, { method: 'spawn' }>

/**
 * Does what is asked, and yields the answers: `{item}` any number of times, then one `{result}`.
 * @param signal whoever asked has left: a stream or a wait ends
 * @param client who asks, where that is known
 * @throws TroupeError what the runtime refuses; `STORE_BUSY` for a crew that is not here, or with another definition.
 */
export async function* answerRequest(
  target: AnswerTarget,
  request: ControlRequest,
  signal: AbortSignal,
  client?: string,
): AsyncGenerator<object, void, void> {
  const { runtime } = target
  switch (request.method) {
    case 'list':
      for await (const item of runtime.list()) yield { item }
      return yield { result: null }
    case 'cluster':
      return yield { result: await runtime.cluster() }
    case 'breakers':
      return yield { result: await runtime.breakers() }
    case 'drain':
      for await (const item of runtime.drain(request.worker, request)) yield { item }
      return yield { result: null }
    case 'show':
      return yield { result: await runtime.show(request.crew) }
    case 'journal':
      for await (const commit of runtime.journal(request.crew, request.from)) yield { item: toWireCommit(commit) }
      return yield { result: null }
    case 'remove':
      return yield { result: (await remove(target, request.crew)) ?? null }
    case 'repair':
      return yield { result: await runtime.repair(request.crew, { acceptLoss: request.acceptLoss === true }) }
    case 'pause':
      return yield { result: (await runtime.pause(request.crew)) ?? null }
    case 'resume':
      return yield { result: (await runtime.resume(request.crew)) ?? null }
    case 'cancel':
      return yield { result: (await runtime.cancel(request.crew, request.run)) ?? null }
    case 'steer': {
      const options = { key: request.key, ...whomOf(request) }
      return yield { result: (await runtime.steer(request.crew, request.input as SteerInput, options)) ?? null }
    }
    case 'raise': {
      const options = request.agent === undefined ? {} : { agent: request.agent }
      return yield { result: (await runtime.raise(request.crew, request.limits as BudgetLimits, options)) ?? null }
    }
    case 'asks':
      return yield { result: await runtime.asks(request.crew) }
    case 'answer': {
      // Whoever comes over NATS is known by its subject; who may open the store's socket may say who it is.
      const { ask, decision, text, arguments: edited, by } = request
      const said = {
        decision,
        ...(text === undefined ? {} : { text }),
        ...(edited === undefined ? {} : { arguments: edited }),
      }
      return yield { result: (await runtime.respond(request.crew, ask, said, client ?? by)) ?? null }
    }
    case 'letters':
      for await (const item of runtime.deadLetters.list(request.crew)) yield { item }
      return yield { result: null }
    case 'letter':
      return yield { result: await runtime.deadLetters.show(request.crew, request.letter) }
    case 'replay': {
      const { crew, letter, message, by = 'local' } = request
      const edit = message === undefined ? {} : { message, by: client ?? by }
      return yield { result: (await runtime.deadLetters.replay(crew, letter, edit)) ?? null }
    }
    case 'drop':
      return yield { result: await runtime.deadLetters.drop(request.crew, request.letter) }
    case 'refused':
      for await (const item of runtime.refusedLetters.list(request.shard)) yield { item }
      return yield { result: null }
    case 'refusal':
      return yield { result: await runtime.refusedLetters.show(request.shard, request.letter) }
    case 'resend':
      return yield { result: (await runtime.refusedLetters.replay(request.shard, request.letter)) ?? null }
    case 'discard':
      return yield { result: await runtime.refusedLetters.drop(request.shard, request.letter) }
    case 'move':
      return yield { result: await runtime.move(request.crew, request.to) }
    default:
      if (isOfCrew(request)) return yield* answerOfCrew(await crewOf(target, request), request, signal)
      return yield* answerOfMachine(target, request, signal, client)
  }
}

/** Requests about a machine of the user's. */
type MachineRequest = Extract<ControlRequest, { method: 'spawn' | 'send' | 'state' | 'result' | 'events' }>

async function* answerOfMachine(
  target: AnswerTarget,
  request: MachineRequest,
  signal: AbortSignal,
  client = 'local',
): AsyncGenerator<object, void, void> {
  const isSpawn = request.method === 'spawn'
  const visit = await target.machine?.(request.crew, isSpawn ? request : undefined)
  const wanted = isSpawn ? request.definition : undefined
  if (visit === undefined) throw notHere(target, `which has no machine ${request.crew}`)
  const { machine, release } = visit
  try {
    if (wanted !== undefined && machine.definition !== wanted)
      throw notHere(target, `which runs ${request.crew} with another definition`)
    switch (request.method) {
      case 'spawn':
        return yield { result: null }
      case 'send':
        return yield { result: (await machine.take(request.message, request.key, client)) ?? null }
      case 'state':
        return yield { result: await machine.state() }
      case 'result':
        return yield { result: await machine.end(signal) }
      case 'events': {
        const since = request.since === undefined ? {} : { since: request.since }
        for await (const item of machine.events({ ...since, signal })) yield { item }
        return yield { result: null }
      }
    }
  } finally {
    release()
  }
}

/** Requests that need the crew's own handle. */
type CrewRequest =
  | Extract<ControlRequest, { method: 'attach' | 'start' | 'current' | 'find' }>
  | (Extract<ControlRequest, { method: 'result' | 'events' }> & { readonly run: string })

/** Without a run, results and events are a machine's. */
function isOfCrew(request: CrewRequest | MachineRequest): request is CrewRequest {
  return 'run' in request ? request.run !== undefined : !ofMachine.includes(request.method)
}

const ofMachine: readonly string[] = ['spawn', 'send', 'state', 'result', 'events']

async function* answerOfCrew(
  crew: CrewHandle,
  request: CrewRequest,
  signal: AbortSignal,
): AsyncGenerator<object, void, void> {
  switch (request.method) {
    case 'attach':
      return yield { result: null }
    case 'start': {
      const options = { key: request.key, ...(request.data === undefined ? {} : { data: request.data }) }
      return yield { result: await crew.start(request.input as RunInput, options).id }
    }
    case 'current':
      return yield { result: (await (await crew.current())?.id) ?? null }
    case 'find':
      return yield { result: await crew.run(request.run).id }
    case 'result':
      return yield { result: await crew.result(request.run, signal) }
    case 'events':
      for await (const item of crew.run(request.run).stream({ since: request.since, signal })) yield { item }
      return yield { result: null }
  }
}

async function crewOf(target: AnswerTarget, request: CrewRequest): Promise<CrewHandle> {
  const asksMore = request.method === 'attach' || request.method === 'start'
  const { name = undefined, definition = undefined } = asksMore ? request : {}
  const crew = await target.crew(request.crew, name)
  if (crew !== undefined && (definition === undefined || crew.definition === definition)) return crew
  const { crew: id } = request
  throw notHere(target, crew === undefined ? `which has no crew ${id}` : `which runs ${id} with another definition`)
}

/** What this process does not run, or not with that code. */
function notHere(target: AnswerTarget, why: string): TroupeError {
  const { store } = target
  return new TroupeError('STORE_BUSY', `${store} is in use by process ${process.pid}, ${why}`, {
    retryable: true,
    details: { path: store, pid: process.pid, ...(target.passing?.() === true ? { passing: true } : {}) },
  })
}

async function remove(target: AnswerTarget, id: string): Promise<void> {
  const { runtime } = target
  const runId = await goingOn(target, id)
  if (runId !== undefined) {
    throw new TroupeError('MESSAGE_REFUSED', `${id} is at work on ${runId} in process ${process.pid}: cancel it first`)
  }
  await runtime.remove(id)
}

/** Whether it is used here. Who has a machine says of it that it is no crew. */
async function isHere(target: AnswerTarget, id: string): Promise<boolean> {
  try {
    if ((await target.crew(id)) !== undefined) return true
  } catch (error) {
    if (!isTroupeError(error) || error.code !== 'CREW_INVALID') throw error
  }
  const visit = await target.machine?.(id)
  visit?.release()
  return visit !== undefined
}

/** The run of a crew that goes on here, or its machine. What is stopped, or cannot be rebuilt since it is damaged, is not at work. */
async function goingOn(target: AnswerTarget, id: string): Promise<string | undefined> {
  try {
    if (!(await isHere(target, id))) return undefined
    const { stopped, runs, machine } = await target.runtime.show(id)
    if (stopped !== null) return undefined
    return machine === 'active' ? 'its machine' : runs.find(({ status }) => status !== 'finished')?.runId
  } catch (error) {
    if (isDamage(error)) return undefined
    throw error
  }
}
