/** The person of a seed: says yes or no to what agents ask, soon or late, twice or never. */
import type { Said } from '../../runtime/asks.js'
import type { Client } from './client.js'
import { SeededRandom } from './seeded-random.js'
import type { World } from './world.js'

/** Answers through whoever lives when the answer is due. */
export class Person {
  readonly #world: World
  /** Not of the seed's own row of draws. */
  readonly #random: SeededRandom
  readonly #clients: (shard: string) => readonly Client[]
  /** What it has said, to which ask of which crew. */
  readonly #answers = new Set<string>()

  constructor(world: World, seed: number, clients: (shard: string) => readonly Client[]) {
    this.#world = world
    this.#random = new SeededRandom(seed + 0x70657273)
    this.#clients = clients
  }

  /** It is asked something, durably. */
  ask(shard: string, ask: string, kind: string): void {
    const isHeard = this.#world.calm || this.#random.chance(0.85)
    const times = isHeard ? (this.#random.chance(0.15) ? 2 : 1) : 0
    for (let time = 0; time < times; time++)
      this.#plan(shard, ask, kind, this.#random.int(20, this.#random.pick([500, 25_000])))
  }

  /** Whether it has said that to this ask. */
  hasSaid(shard: string, ask: string, decision: string): boolean {
    return this.#answers.has(`${shard} ${ask} ${decision}`)
  }

  #plan(shard: string, ask: string, kind: string, delayMs: number): void {
    const said = this.#say(kind)
    this.#world.timeline.after(delayMs, null, () => {
      const clients = this.#clients(shard)
      // Nobody lives who could bring the answer: it is brought later.
      if (clients.length === 0) return this.#plan(shard, ask, kind, 1_000)
      this.#answers.add(`${shard} ${ask} ${said.decision}`)
      for (const client of clients) void client.respond(ask, said)
    })
  }

  #say(kind: string): Said {
    if (this.#world.calm) return { decision: 'approved' }
    if (this.#random.chance(0.25)) return { decision: 'denied', text: 'No.' }
    const edited = kind === 'budget' ? { tokens: 30_000, modelCalls: 30, toolCalls: 30 } : { topic: 'again 1' }
    return this.#random.chance(0.2) ? { decision: 'approved', arguments: edited } : { decision: 'approved' }
  }
}
