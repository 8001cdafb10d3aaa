/** Which deployments each round tries, counted apart from the model router. */
import type { RouteAsk } from '../../machines/messages.js'
import type { Commit } from '../../runtime/commit.js'
import type { ShardState } from '../../runtime/state.js'
import { messageOf } from './ladders.js'
import type { Notes } from './notes.js'

/** A round of one agent, as far as calls failed in it. */
interface Round {
  readonly ask: RouteAsk
  readonly failed: readonly string[]
  /** Deployments that nobody may try again in it. */
  readonly dead: ReadonlySet<string>
  /** How often nobody would take its call. */
  readonly refused: number
}

/** What is wrong with one says nothing of the rest of its group. */
const own = new Set(['auth', 'quota', 'not_found', 'config'])
const passing = new Set(['rate_limited', 'timeout', 'overloaded', 'server', 'network', 'invalid_reply'])
const hopeless = new Set(['bad_request', 'cancelled'])

/** The routes of one shard. */
export class Routes {
  readonly #shard: string
  readonly #notes: Notes
  readonly #rounds = new Map<string, Round>()

  constructor(shard: string, notes: Notes) {
    this.#shard = shard
    this.#notes = notes
  }

  /** Looks at a commit: what is tried next must be worth a try, and who ends must have had all of them. */
  take(_: ShardState, { sequence, decisions }: Commit): void {
    for (const line of decisions) {
      const ask = messageOf<RouteAsk>(line, 'route.ask')
      if (ask !== null) this.#rounds.set(ask.replyTo, this.#advance(ask))
      const next = messageOf<{ readonly deployments: readonly string[] }>(line, 'route.next')
      const round = this.#rounds.get(/agent\/\S+/.exec(line)?.[0] ?? '')
      if (round === undefined) continue
      const detail = (): string => `${this.#shard} ${sequence}: ${line.slice(0, 200)} behind ${round.failed.join()}`
      if (next !== null) for (const each of next.deployments) this.#notes.check('route', isWorth(round, each), detail)
      else if (messageOf(line, 'route.ended') !== null) this.#notes.check('route', isOver(round), detail)
      if (next !== null && round.failed.length > 0 && next.deployments[0] !== round.failed.at(-1))
        this.#notes.reached('model call rerouted')
    }
  }

  #advance(ask: RouteAsk): Round {
    const before = this.#rounds.get(ask.replyTo)
    const isSame = before?.ask.round === ask.round
    const { failed, dead, refused } = isSame ? before : { failed: [], dead: new Set<string>(), refused: 0 }
    const { failure } = ask
    if (failure === null) return { ask, failed, dead, refused: refused + 1 }
    return { ask, failed: [...failed, failure.deployment], dead: new Set([...dead, ...deadBy(ask, failure)]), refused }
  }
}

function deadBy({ groups }: RouteAsk, { deployment, kind }: NonNullable<RouteAsk['failure']>): readonly string[] {
  if (passing.has(kind)) return []
  return own.has(kind) ? [deployment] : groups.filter((group) => group.includes(deployment)).flat()
}

/** Each deployment has one try, and a call some more. */
function isSpent({ ask, failed }: Round): boolean {
  return failed.length - new Set(failed).size >= ask.attempts - 1
}

function isWorth(round: Round, deployment: string): boolean {
  const { ask, failed, dead } = round
  const isFresh = !failed.includes(deployment)
  return ask.groups.flat().includes(deployment) && !dead.has(deployment) && (isFresh || !isSpent(round))
}

function isOver(round: Round): boolean {
  const { ask, failed, dead, refused } = round
  if (hopeless.has(ask.failure?.kind ?? '')) return true
  // Ten minutes take many refusals.
  if (ask.failure === null && refused > 10) return true
  const left = ask.groups.flat().filter((each) => !dead.has(each))
  return left.length === 0 || (isSpent(round) && left.every((each) => failed.includes(each)))
}
