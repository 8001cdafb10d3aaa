/** What users said to agents at work, and whether each word came to where it belongs. */
import type { ModelCall } from '../../machines/index.js'
import { type Commit, crewAddress } from '../../runtime/commit.js'
import type { ShardState } from '../../runtime/state.js'
import type { SimulatedCrew } from './client.js'
import type { Notes } from './notes.js'
import { SeededRandom } from './seeded-random.js'

/** Something that a user will say, and when. */
interface Steer {
  readonly id: string
  readonly key: string
  readonly agent: string | undefined
  readonly atMs: number
}

/** What users of a seed say, some of it twice. Drawn apart: a seed in which nobody says anything goes as it always went. */
export function drawSteers(seed: number, crews: readonly SimulatedCrew[], horizonMs: number): Steer[] {
  const random = new SeededRandom(seed + 7_777_777)
  const count = random.chance(0.3) ? random.int(1, 6) : 0
  return Array.from({ length: count }, (_, index) => {
    const { id } = random.pick(crews)
    const agent = random.chance(0.3) ? random.pick(['scout', 'clerk']) : undefined
    const times = random.chance(0.2) ? [1, 2] : [1]
    return times.map((): Steer => ({ id, key: `steer-${index}`, agent, atMs: random.int(0, horizonMs / 3) }))
  }).flat()
}

/** Said to one agent: the commits that took it, in order; those up to `joined` are in its conversation. */
interface Said {
  readonly conversation: string
  readonly sequences: number[]
  joined: number
}

/** The words of one shard's users. */
export class Steers {
  readonly #notes: Notes
  readonly #said = new Map<string, Said>()

  constructor(notes: Notes) {
    this.#notes = notes
  }

  /** Looks at a commit. @param state as it left it */
  take(state: ShardState, commit: Commit): void {
    const heard = commit.events.filter(([, { type }]) => type === 'agent.steered')
    for (const [address] of heard) {
      this.#notes.reached('steered')
      // Who ended over it, for lack of money, is gone; who was cancelled in the same commit tells that it was unheard.
      const isUnheard = commit.events.some(([from, { type }]) => from === address && type === 'agent.unsteered')
      if (state.actors.has(address) || isUnheard) this.#of(state, address).sequences.push(commit.sequence)
    }
    if (commit.events.some(([, { type }]) => type === 'steer.refused')) this.#notes.reached('steer refused')
    else if (commit.envelope.body.type === 'crew.steer' && heard.length === 0) this.#notes.reached('steer repeated')
    for (const { from, body, length } of commit.effects)
      if (body.type === 'model.call') this.#called(state, from, body, length)
    // What joined may have no call: there was no money for one.
    for (const said of this.#said.values())
      if (commit.decisions.some((line) => line.includes(`"all":"${said.conversation}+user"`)))
        said.joined = said.sequences.length
    for (const [address, event] of commit.events) {
      // What an incarnation was told goes with it.
      if (event.type !== 'agent.unsteered' || address === crewAddress) continue
      this.#notes.reached('steer without a round left')
      const { sequences, joined } = this.#of(state, address)
      const left = sequences.length - joined
      const detail = () => `${address}: ${left} left, ${event['messages'] as number} told`
      this.#notes.check('steered', left === event['messages'], detail)
      this.#said.delete(address)
    }
    for (const [address, { sequences, joined }] of this.#said) {
      if (state.actors.has(address)) continue
      const failed = commit.events.some(([from, { type }]) => from === address && type === 'actor.failed')
      const crewFailed = commit.events.some(([from, { type }]) => from === 'crew/main' && type === 'actor.failed')
      const detail = () => `${address} ended with ${sequences.length - joined} unheard`
      this.#notes.check('steered', joined === sequences.length || failed || crewFailed, detail)
      this.#said.delete(address)
    }
  }

  #called(state: ShardState, address: string, { conversation }: ModelCall, length: number): void {
    const said = this.#said.get(address)
    if (said === undefined) return
    const places = said.sequences.map((sequence) => this.#placeOf(state, conversation, sequence))
    const inOrder = places.every(
      (place, index) => place !== null && place < length && place > (places[index - 1] ?? -1),
    )
    this.#notes.check('steered', inOrder, () => `${address}: ${said.sequences.join()} at ${places.join()} of ${length}`)
  }

  /** Where the message that a commit brought is; null when it is not there, or twice. */
  #placeOf(state: ShardState, conversation: string, sequence: number): number | null {
    const entries = state.logs.get(conversation)?.entries ?? []
    const [place = null, ...more] = entries.flatMap((entry, index) => (entry.sequence === sequence ? [index] : []))
    return more.length > 0 ? null : place
  }

  #of(state: ShardState, address: string): Said {
    const known = this.#said.get(address)
    if (known !== undefined) return known
    const context = state.actors.get(address)?.snapshot.context as { conversation: string } | undefined
    const said: Said = { conversation: context?.conversation ?? '', sequences: [], joined: 0 }
    this.#said.set(address, said)
    return said
  }
}
