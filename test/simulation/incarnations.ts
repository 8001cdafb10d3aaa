/** Which incarnation of a task is at work, counted apart from its crew: nothing of one before may come to it. */
import type { Commit } from '../../runtime/commit.js'
import type { Envelope } from '../../runtime/envelope.js'
import type { ShardState } from '../../runtime/state.js'
import { messageOf } from './ladders.js'
import { planted } from './machine-faults.js'
import type { Notes } from './notes.js'

interface KeeperContext {
  readonly grants: Readonly<Record<string, { readonly state: string }>>
}

/** Whose a grant is. */
const holderOf = (grant: string) => grant.slice(0, grant.lastIndexOf('#'))
/** A task's name, whatever its incarnation. */
const taskOf = (address: string) => address.replace(/-i\d+$/, '')

/** The incarnations of one shard. */
export class Incarnations {
  readonly #shard: string
  readonly #notes: Notes
  /** Last incarnation of each task. */
  readonly #last = new Map<string, number>()
  /** Conversations of agents that failed and did not go on. */
  readonly broken = new Set<string>()
  /** Who had a conversation first in a run, by both. */
  readonly #owners = new Map<string, string>()
  /** Agents that have handed their conversation over. */
  readonly #handed = new Set<string>()
  /** Names of actors that had a task. */
  readonly #addresses = new Set<string>()

  constructor(shard: string, notes: Notes) {
    this.#shard = shard
    this.#notes = notes
  }

  /** Looks at what comes for an actor. @param state before it is taken */
  before(state: ShardState, { from, cause }: Envelope): void {
    const effect = from.startsWith('port/') ? state.effects.get(cause) : undefined
    if (effect !== undefined) this.#isOf(state, effect.from, effect.id)
    if (from !== 'clock/timer') return
    const [actor = '', id = ''] = cause.split('|')
    const timer = state.timers.get(`${actor}|${id}`)
    if (timer !== undefined) this.#isOf(state, actor, timer.generation)
  }

  /** Looks at a commit. @param state as it left it */
  take(state: ShardState, { sequence, events, effects, decisions }: Commit): void {
    const check = (holds: boolean, detail: string) =>
      this.#notes.check('zombie', holds, () => `${this.#shard} ${sequence}: ${detail}`)
    let failed = false
    for (const [from, event] of events) {
      if (event.type === 'actor.failed') failed = true
      if (event.type === 'actor.failed' && event['reason'] === planted) this.#notes.fault('agent failed over a message')
      if (event.type === 'agent.handed') this.#handed.add(from)
      if (event.type === 'agent.started') this.#begin(event['address'] as string, 1, check)
      if (event.type !== 'agent.restarted') continue
      const [address, incarnation] = [event['address'] as string, event['incarnation'] as number]
      this.#notes.reached(event['restart'] === 'fresh' ? 'agent began anew' : 'agent resumed')
      if (event['restart'] === 'resume') this.#notes.resumes += 1
      if (event['restart'] === 'fresh') this.#begin(address, incarnation, check)
      else check(incarnation >= this.#last.get(taskOf(address))!, `${from} resumed incarnation ${incarnation}`)
    }
    for (const { from, body } of effects) {
      if (body.type !== 'model.call') continue
      const place = `${body.conversation} ${body.run}`
      const before = this.#owners.get(place) ?? from
      const owner = this.#handed.has(before) ? from : before
      this.#owners.set(place, owner)
      check(owner === from, `${from} goes on in the conversation of ${owner}`)
    }
    for (const line of decisions) {
      const granted = messageOf<{ readonly grant: string }>(line, 'budget.granted')
      const to = line.slice(0, line.indexOf(' '))
      if (granted !== null && granted.grant !== '')
        check(holderOf(granted.grant) === to, `${to} gets the grant ${granted.grant}`)
    }
    if (!failed) return
    for (const [place, owner] of this.#owners)
      if (!state.actors.has(owner) && events.some(([from, { type }]) => from === owner && type === 'actor.failed'))
        this.broken.add(place.slice(0, place.indexOf(' ')))
    this.#checkLeft(state, check)
  }

  /** A name that no other had, and a higher number: those of whoever handed the task over were counted before. */
  #begin(address: string, incarnation: number, check: (holds: boolean, detail: string) => void): void {
    const task = taskOf(address)
    const before = this.#last.get(task) ?? 0
    check(!this.#addresses.has(address), `${address} was there before`)
    check(incarnation > before, `${address} is incarnation ${incarnation} after ${before}`)
    this.#addresses.add(address)
    this.#last.set(task, incarnation)
  }

  /** What was asked for was asked for by the actor that is there now. */
  #isOf(state: ShardState, address: string, generation: string): void {
    const actor = state.actors.get(address)
    const since = actor === undefined ? '0-0' : actor.generation
    const isLater = actor !== undefined && compare(generation, since) > 0
    const detail = () => `${this.#shard} ${state.sequence}: ${generation} comes to ${address}, there since ${since}`
    this.#notes.check('zombie', isLater, detail)
  }

  /** Behind a failure nothing is open, and nothing held, for somebody who is gone. */
  #checkLeft(state: ShardState, check: (holds: boolean, detail: string) => void): void {
    for (const { id, from } of state.effects.values()) {
      const since = state.actors.get(from)?.generation
      check(since !== undefined && compare(id, since) > 0, `${id} is open for ${from}, which is gone`)
    }
    for (const [address, { kind, snapshot }] of state.actors) {
      if (kind !== 'budget') continue
      for (const [grant, { state: column }] of Object.entries((snapshot.context as KeeperContext).grants))
        check(column !== 'held' || state.actors.has(holderOf(grant)), `${address} holds ${grant} for nobody`)
    }
  }
}

/** The order of two generations: commits, then places in them. */
function compare(one: string, other: string): number {
  const [a = 0, b = 0] = one.split('-').map(Number)
  const [c = 0, d = 0] = other.split('-').map(Number)
  return a - c || b - d
}
