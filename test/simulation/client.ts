/**
 * The client of a simulated crew: what a program with the crew's handle does. It dies with its process and begins anew
 * in the next one, with the same tasks under the same keys.
 */
import { respond, type Said } from '../../runtime/asks.js'
import { crewAddress } from '../../runtime/commit.js'
import { taskMessages, userMessage } from '../../runtime/edge.js'
import { isTroupeError, TroupeError } from '../../runtime/errors.js'
import { estimateTokens } from '../../runtime/prepared-crew.js'
import type { Shard } from '../../runtime/shard.js'
import type { RoundDeps } from './rounds.js'
import { SimulatedModel, SimulatedTools } from './simulated-ports.js'
import { hasMail, variantOf } from './workload.js'
import type { SimulatedProcess, World } from './world.js'

/** A task of a crew, from its user's side. */
export interface Task {
  readonly key: string
  /** Its user has given it. */
  arrived: boolean
  /** The process that tries to hand it over. */
  handedBy: number
  /** Id of its run, once that was acknowledged. */
  run: string | null
}

/** A crew, from its user's side. */
export interface SimulatedCrew {
  readonly id: string
  variant: number
  readonly tasks: Task[]
}

/** What the runtime may refuse work with, for some time. */
const passing = new Set([
  'STORE_FULL',
  'STORE_FAILED',
  'MAILBOX_FULL',
  'RUNTIME_CLOSED',
  'SHARD_ELSEWHERE',
  'SHARD_FENCED',
])
const pollMs = 7_000

let causes = 0

/** Tells one message of a client from another: each is decided once. */
function nextCause(): string {
  return `c${(causes += 1)}`
}

/** The causes of a seed begin anew with it. */
export function resetCauses(): void {
  causes = 0
}

/** The client of one crew in one process. */
export class Client {
  readonly #world: World
  readonly #process: SimulatedProcess
  readonly #crew: SimulatedCrew
  #pinned = false

  constructor(world: World, process: SimulatedProcess, crew: SimulatedCrew) {
    this.#world = world
    this.#process = process
    this.#crew = crew
  }

  /** Takes the crew up; hands over what is not known to be handed over; looks again and again until all has ended. */
  async serve(): Promise<void> {
    await this.#try((shard) => this.#handOver(shard))
    if (!this.#process.alive || this.#process.closing) return
    this.#world.timeline.after(pollMs, this.#process, () => {
      // A crew that others ask has to have its code here, whatever it has to do itself.
      if (this.#unfinished() || hasMail(this.#crew.variant)) void this.serve()
    })
  }

  /** Hands over the tasks that have arrived. */
  async arrive(): Promise<void> {
    await this.#try((shard) => this.#handOver(shard))
  }

  async command(type: 'crew.pause' | 'crew.resume' | 'crew.cancel', run?: string): Promise<void> {
    await this.#try(async (shard) => {
      const body = run === undefined ? { type } : { type, run }
      await shard.post({ from: 'client/local', to: crewAddress, cause: nextCause(), body, values: [] }, true)
    })
  }

  /** Says something to whoever is at work. */
  async steer(key: string, agent: string | undefined): Promise<void> {
    await this.#try(async (shard) => {
      const body = { type: 'crew.steer', tokens: 5, key, ...(agent === undefined ? {} : { agent }) }
      const values = [userMessage(`but ${key}`)]
      await shard.post({ from: 'client/local', to: crewAddress, cause: nextCause(), body, values }, true)
    })
  }

  /** Says what a person says to an ask. */
  async respond(ask: string, said: Said): Promise<void> {
    await this.#try(async (shard) => {
      try {
        await respond(() => Promise.resolve(shard), ask, said, 'person')
      } catch (error) {
        if (!isTroupeError(error) || error.code !== 'ASK_CLOSED') throw error
        this.#world.notes.reached('answer refused: nobody waits for it')
      }
    })
  }

  /** Puts the crew's present definition into force. */
  async redefine(): Promise<void> {
    await this.#try(() => Promise.resolve())
  }

  #unfinished(): boolean {
    const { runs } = this.#world.replica(this.#crew.id).state
    const ended = new Set([...runs.values()].filter((run) => run.status === 'finished').map((run) => run.key))
    return this.#crew.tasks.some((task) => !ended.has(task.key))
  }

  async #try(work: (shard: Shard) => Promise<void>): Promise<void> {
    const { notes } = this.#world
    try {
      const shard = await this.#shard()
      if (shard !== null) await work(shard)
    } catch (error) {
      if (!this.#process.alive || this.#process.closing) return
      const code = isTroupeError(error) ? error.code : 'none'
      if (code === 'STORE_FULL') notes.reached('work refused: STORE_FULL')
      const detail = () => `${this.#crew.id}: ${String(error)} ${isTroupeError(error) ? '' : (error as Error).stack}`
      notes.check('alive', passing.has(code), detail)
    }
  }

  async #shard(): Promise<Shard | null> {
    const { worker } = this.#process
    if (worker === null || !this.#process.alive || this.#process.closing) return null
    const { id } = this.#crew
    if (!this.#pinned && !this.#world.plan.unpinned) {
      this.#pinned = true
      worker.pin(id)
    }
    if (!worker.active.has(id) && !this.#process.recovering.has(id)) this.#world.notes.reached('shard unloaded')
    const shard = await worker.shard(id)
    const { prepared } = variantOf(this.#crew.variant)
    if (shard.crew?.prepared !== prepared) {
      const model = new SimulatedModel(this.#world, this.#process, id, prepared)
      const tools = new SimulatedTools(this.#world, this.#process, id)
      const deps: RoundDeps = { world: this.#world, process: this.#process }
      await shard.define({ prepared, model, tools, deps })
    }
    this.#process.recovering.delete(id)
    if (shard.stopped !== null) throw shard.stopped
    return shard
  }

  async #handOver(shard: Shard): Promise<void> {
    for (const task of this.#crew.tasks) {
      if (!task.arrived || task.run !== null || task.handedBy === this.#process.id) continue
      task.handedBy = this.#process.id
      try {
        const run = await this.#start(shard, task)
        if (this.#process.alive) task.run = run
      } finally {
        task.handedBy = 0
      }
    }
  }

  /** As `CrewHandle.start` does it. */
  async #start(shard: Shard, { key }: Task): Promise<string> {
    const same = shard.state.runs.withKey(key)
    if (same !== undefined) {
      // What is decided and not durable may be lost with its append: asked for again in a while.
      if (!shard.isDurable(same.sequence)) throw new TroupeError('STORE_FAILED', `${key} is not durable yet`)
      return same.run
    }
    const { prepared } = variantOf(this.#crew.variant)
    const text = `task ${key}`
    const { all: values, count, systems } = await taskMessages(prepared, [userMessage(text)], text, null)
    const tokens = estimateTokens(values.reduce((sum, value) => sum + value.length, 0))
    const body = {
      type: 'crew.task',
      tokens,
      messages: count,
      key,
      data: false,
      ...(systems === null ? {} : { systems }),
    }
    const commit = await shard.post({ from: 'client/local', to: crewAddress, cause: nextCause(), body, values }, true)
    return `r${commit.sequence}`
  }
}
