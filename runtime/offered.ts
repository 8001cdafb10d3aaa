/**
 * What a worker among others has the code of: crews and machines of the user's, by name.
 *
 * Owns: both tables, the handles that requests from outside are answered with.
 * Does not own: announcing them (`transport/nats-membership.ts`), the door (`transport/nats-door.ts`), who owns what.
 *
 * - OF1 A crew or a machine is answered for by the code of the name that its journal tells, a new one by what is asked for.
 * - OF2 A machine is started only with the definition that whoever starts it has.
 */
import type { SpawnRequest, Visit } from './control-answers.js'
import type { CrewHandle } from './crew-handle.js'
import { nameIn } from './crew-version.js'
import type { Crew } from './define.js'
import { isMachineDefinition, type MachineDefinition } from './define-machine.js'
import { crewOf, type Definition } from './definition.js'
import type { LiveCrew } from './dispatcher.js'
import { TroupeError } from './errors.js'
import type { Runtime } from './runtime.js'
import type { Worker } from './worker.js'

/** The code that a worker has. */
export class Offered {
  /** By name: what a shard of that name goes on with. */
  readonly crews = new Map<string, LiveCrew>()
  readonly #machines = new Map<string, MachineDefinition>()
  readonly #bind: (crew: Crew) => LiveCrew
  readonly #register: (machine: MachineDefinition) => void

  /** @param register lets shards of a machine be rebuilt */
  constructor(bind: (crew: Crew) => LiveCrew, register: (machine: MachineDefinition) => void) {
    this.#bind = bind
    this.#register = register
  }

  /** Takes one more definition. False when it has this very code. @throws TroupeError `CREW_INVALID` and as `bind`. */
  add(definition: Definition): boolean {
    const crew = crewOf(definition)
    const live = this.#bind(crew)
    if (this.crews.get(crew.name)?.prepared === live.prepared) return false
    if (isMachineDefinition(definition)) {
      this.#register(definition)
      this.#machines.set(crew.name, definition)
    } else this.#machines.delete(crew.name)
    if (crew.flowMachine !== undefined) this.#register(crew.flowMachine)
    this.crews.set(crew.name, live)
    return true
  }

  /** Name and hash of the definition of each. */
  versions(): Record<string, string> {
    return Object.fromEntries([...this.crews].map(([name, { prepared }]) => [name, prepared.hash]))
  }

  /** The handle of a crew that this worker owns. @param name what a new one is to be @throws TroupeError `CREW_INVALID`. */
  async crew({ worker, runtime }: Behind, id: string, name?: string): Promise<CrewHandle | undefined> {
    const { lives, wanted } = await this.#codeOf(worker, id, name)
    const live = this.crews.get(wanted ?? '')
    if (live === undefined) return undefined
    if (this.#machines.has(wanted!)) throw new TroupeError('CREW_INVALID', `${wanted} is a machine, and no crew`)
    // A handle from before its crew went elsewhere, and was removed there, is of another life.
    const known = lives ? runtime.crew(id) : undefined
    return known?.definition === live.prepared.hash ? known : runtime.spawn(live.prepared.crew, { id })
  }

  /** A handle of a machine that this worker owns, for one request. @throws TroupeError `CREW_UNKNOWN`, `CREW_INVALID`. */
  async machine({ worker, runtime }: Behind, id: string, spawn?: SpawnRequest): Promise<Visit | undefined> {
    const { lives, wanted } = await this.#codeOf(worker, id, spawn?.name)
    if (!lives && spawn === undefined) throw new TroupeError('CREW_UNKNOWN', `there is no crew ${id}`)
    const definition = this.#machines.get(wanted ?? '')
    const hash = this.crews.get(wanted ?? '')?.prepared.hash
    if (definition === undefined) {
      if (hash === undefined) return undefined
      throw new TroupeError('CREW_INVALID', `${wanted} is a crew of agents, and no machine`)
    }
    if (spawn?.definition !== undefined && spawn.definition !== hash) return undefined
    const machine = await runtime.openMachine(definition, { id, input: spawn?.input })
    return { machine: machine as never, release: () => machine.release() }
  }

  async #codeOf(worker: Worker, id: string, name: string | undefined): Promise<{ lives: boolean; wanted?: string }> {
    const head = await worker.head(id)
    const lives = head.sequence > 0 && !head.removed
    const wanted = lives && (head.crew ?? '') !== '' ? nameIn(head.crew!) : name
    return { lives, ...(wanted === undefined ? {} : { wanted }) }
  }
}

/** What answers requests. */
export interface Behind {
  readonly worker: Worker
  readonly runtime: Runtime
}
