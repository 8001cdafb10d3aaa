/**
 * The model router: which deployments an agent tries next, and when.
 *
 * An agent asks behind each call that failed, or that nobody would take. *Retry* is another try, *fallback* another
 * deployment; that one is left alone by everybody for a while, the *cooldown*, is its circuit breaker's to say. The kind of
 * a failure decides:
 *
 * - `again`: another deployment at once, or, when each was tried in this round, one that was after a wait.
 * - `out`: another deployment; this one is not tried again in this round.
 * - `next`: another group; those of this one would say the same.
 * - `end`: nobody could do better.
 *
 * In a round each deployment is tried once, and `attempts` less one tries are made beyond that. A deployment that its
 * breaker keeps back was not tried: it is waited for, ten minutes a round at most.
 */
import { assertEvent, enqueueActions, setup } from 'xstate'
import {
  type FailureKind,
  type RouteAnswer,
  type RouteAsk,
  type RouterInput,
  type RouterMessage,
  to,
} from './messages.js'

/** A round that was asked for, as far as calls failed in it. */
interface Round {
  readonly asker: string
  readonly round: string
  /** Calls that failed, by their deployment. */
  readonly tried: readonly string[]
  /** Deployments that are not tried again. */
  readonly spent: readonly string[]
  /** How long breakers were waited for. */
  readonly heldMs: number
}

interface RouterContext extends RouterInput {
  /** The rounds that were asked for last, the last one last. */
  readonly rounds: readonly Round[]
}

/** What the outside may watch a router do. */
export type RouterEvent =
  /** Another try: which deployment failed, which one is tried next, after how long. */
  | { type: 'model.rerouted'; address: string; from: string; to: string; kind: string; waitMs: number }
  /** No deployment takes its call: how long it waits. */
  | { type: 'model.held'; address: string; waitMs: number }

const maxHeldMs = 600_000
const maxRounds = 64

const fates: Readonly<Record<FailureKind, 'again' | 'next' | 'out' | 'end'>> = {
  rate_limited: 'again',
  timeout: 'again',
  overloaded: 'again',
  server: 'again',
  network: 'again',
  invalid_reply: 'again',
  context_window: 'next',
  content_policy: 'next',
  auth: 'out',
  quota: 'out',
  not_found: 'out',
  config: 'out',
  bad_request: 'end',
  cancelled: 'end',
}

/** Whom a failure takes out of its round. */
function spentBy({ groups, failure }: RouteAsk): readonly string[] {
  switch (failure === null ? 'again' : fates[failure.kind]) {
    case 'again':
      return []
    case 'out':
      return [failure!.deployment]
    case 'next':
      return groups.find((group) => group.includes(failure!.deployment)) ?? [failure!.deployment]
    case 'end':
      return groups.flat()
  }
}

/** The round of an ask, with what failed in it. */
function roundOf({ rounds }: Pick<RouterContext, 'rounds'>, ask: RouteAsk): Round {
  const { replyTo: asker, round, failure } = ask
  const known = rounds.find((each) => each.asker === asker && each.round === round)
  const { tried = [], spent = [], heldMs = 0 } = known ?? {}
  const more = failure === null ? [] : [failure.deployment]
  return { asker, round, tried: [...tried, ...more], spent: [...new Set([...spent, ...spentBy(ask)])], heldMs }
}

/** What may still be tried in a round, behind the one that failed last: each once, and some more tries beyond that. */
function leftOf({ tried, spent }: Round, { groups, attempts, failure }: RouteAsk): readonly string[] {
  const mayRepeat = tried.length - new Set(tried).size < attempts - 1
  const all = groups.flat()
  const at = all.indexOf(failure?.deployment ?? '') + 1
  return [...all.slice(at), ...all.slice(0, at)].filter(
    (each) => !spent.includes(each) && (mayRepeat || !tried.includes(each)),
  )
}

/** One that is left. */
interface Left {
  readonly deployment: string
  /** How long it has to be waited for: one that is fresh not at all. */
  readonly ms: number
  /** Why its breaker keeps it back; null for one that may be tried then. */
  readonly kept: RouteAsk['skipped'][number]['reason'] | null
}

function leftWith({ tried }: Round, { failure, delayMs, skipped }: RouteAsk, deployment: string): Left {
  const kept = skipped.find((each) => each.deployment === deployment)
  if (kept !== undefined) return { deployment, ms: kept.waitMs, kept: kept.reason }
  const hasFailed = failure?.deployment === deployment
  const ms = hasFailed ? Math.max(delayMs, failure.retryAfterMs ?? 0) : tried.includes(deployment) ? delayMs : 0
  return { deployment, ms, kept: null }
}

/**
 * Those that are back first, and when, beside those that are kept back, which may be back by then. Whom nothing but its own
 * fault keeps back is not waited for. Null: nobody is left, or was waited for long enough.
 */
function nextOf(round: Round, ask: RouteAsk): { readonly deployments: readonly string[]; readonly ms: number } | null {
  const left = leftOf(round, ask).map((deployment) => leftWith(round, ask, deployment))
  if (left.length === 0 || (ask.failure === null && round.heldMs >= maxHeldMs)) return null
  const awaited = left.filter(({ kept }) => kept !== 'fault')
  const ms = awaited.length === 0 ? 0 : Math.min(...awaited.map((each) => each.ms))
  const next = left.filter((each) => each.ms <= ms || each.kept !== null)
  return { deployments: next.map(({ deployment }) => deployment), ms }
}

/** What is answered and told, and what is remembered. */
function routed({ rounds }: Pick<RouterContext, 'rounds'>, ask: RouteAsk) {
  const { replyTo, failure } = ask
  const round = roundOf({ rounds }, ask)
  const next = nextOf(round, ask)
  const ms = next?.ms ?? 0
  const answer: RouteAnswer =
    next === null
      ? { type: 'route.ended' }
      : { type: 'route.next', deployments: [...next.deployments], tries: round.tried.length }
  const held = { ...round, heldMs: round.heldMs + (failure === null ? ms : 0) }
  return {
    answer,
    when: ms === 0 ? {} : { id: 'route', delay: ms },
    events: eventsOf(next, replyTo, failure),
    rounds: [...rounds.filter(({ asker }) => asker !== replyTo), held].slice(-maxRounds),
  }
}

const router = setup({
  types: {} as { context: RouterContext; events: RouterMessage; input: RouterInput; emitted: RouterEvent },
  actions: {
    route: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'route.ask')
      const { answer, when, events, rounds } = routed(context, event)
      enqueue.sendTo(to(event.replyTo), answer, when)
      for (const each of events) enqueue.emit(each)
      enqueue.assign({ rounds })
    }),
  },
})

/** What the outside is told of it. */
function eventsOf(
  next: ReturnType<typeof nextOf>,
  address: string,
  failure: RouteAsk['failure'],
): readonly RouterEvent[] {
  if (next === null) return []
  if (failure === null) return [{ type: 'model.held', address, waitMs: next.ms }]
  const { deployment: from, kind } = failure
  return [{ type: 'model.rerouted', address, from, to: next.deployments[0]!, kind, waitMs: next.ms }]
}

/** The model router machine. Bump `version` with any change of its decisions. */
export const routerMachine = router.createMachine({
  id: 'router',
  version: '2',
  context: ({ input }) => ({ ...input, rounds: [] }),
  initial: 'routing',
  states: {
    routing: { on: { 'route.ask': { actions: 'route' } } },
  },
})
