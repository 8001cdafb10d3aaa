/**
 * The model router: which deployment an agent tries next, and when.
 *
 * An agent asks before a round, when it has a choice, and behind each call that failed. *Retry* is another try, *fallback*
 * another deployment, *cooldown* a deployment that nobody of the crew begins with for a while. The kind of a failure decides:
 *
 * - `again`: another deployment at once, or, when each was tried in this round, the next one after a wait.
 * - `next`: another deployment; this one is not tried again in this round.
 * - `out`: the same, and nobody begins with this one for a minute.
 * - `end`: nobody could do better.
 *
 * Retry-After is the wait of whoever has no other deployment, and else the cooldown. Who is out is passed over only while
 * another one is left: agents wait for one that cools down, and try one that is out for its own fault all the same.
 * In a round each deployment is tried once, and `attempts` less one tries are made beyond that.
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
}
interface Out {
  readonly deployment: string
  /** It comes back by itself: others wait for it. */
  readonly cools: boolean
}

interface RouterContext extends RouterInput {
  /** The rounds that were asked for last, the last one last. */
  readonly rounds: readonly Round[]
  readonly out: readonly Out[]
  /** Who waits for a deployment that cools down. */
  readonly waiting: readonly RouteAsk[]
}

/** What the outside may watch a router do. */
export type RouterEvent =
  /** Another try: which deployment failed, which is tried, after how long. */
  | { type: 'model.rerouted'; address: string; from: string; to: string; kind: string; waitMs: number }
  | { type: 'deployment.out'; deployment: string; kind: string; ms: number }
  | { type: 'deployment.back'; deployment: string }

/** Raised by the router itself. */
type Own = { type: 'route.back'; deployment: string }

/** How long nobody begins with a deployment that is at fault. */
const outMs = 60_000
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

/** What an agent is told. */
type Route =
  | { readonly is: 'next'; readonly deployment: string; readonly waitMs: number }
  | { readonly is: 'held' }
  | { readonly is: 'ended' }

/** The round of an ask, with what failed in it. */
function roundOf({ rounds }: RouterContext, { replyTo, round, failure }: RouteAsk): Round {
  const known = rounds.find((each) => each.asker === replyTo && each.round === round)
  const { tried, spent } = known ?? { tried: [], spent: [] }
  if (failure === null) return { asker: replyTo, round, tried, spent }
  const isSpent = fates[failure.kind] !== 'again'
  return {
    ...{ asker: replyTo, round },
    tried: [...tried, failure.deployment],
    spent: isSpent ? [...spent, failure.deployment] : spent,
  }
}

/** Who is out behind a failure: at fault, or asked for time where there is another one. */
function outBy({ deployments, failure }: RouteAsk): (Out & { readonly ms: number })[] {
  if (failure === null) return []
  const { deployment, kind, retryAfterMs } = failure
  if (fates[kind] === 'out') return [{ deployment, cools: false, ms: outMs }]
  const cools = fates[kind] === 'again' && (retryAfterMs ?? 0) > 0 && deployments.length > 1
  return cools ? [{ deployment, cools, ms: retryAfterMs! }] : []
}

/** Deployments in their order, behind the one that failed last. */
function behind(deployments: readonly string[], failure: RouteAsk['failure']): readonly string[] {
  const at = deployments.indexOf(failure?.deployment ?? '') + 1
  return [...deployments.slice(at), ...deployments.slice(0, at)]
}

/** What may still be tried in a round: each deployment once, and some more tries beyond that. */
function leftOf({ tried, spent }: Round, { deployments, attempts, failure }: RouteAsk): readonly string[] {
  if (failure !== null && fates[failure.kind] === 'end') return []
  const mayRepeat = tried.length - new Set(tried).size < attempts - 1
  return deployments.filter((each) => !spent.includes(each) && (mayRepeat || !tried.includes(each)))
}

/** Of these, those that may be tried now. When all are out for a fault of their own one of them may still do. */
function openOf(out: readonly Out[], left: readonly string[]): readonly string[] {
  const open = left.filter((each) => !out.some(({ deployment }) => deployment === each))
  const waits = out.some(({ deployment, cools }) => cools && left.includes(deployment))
  return open.length > 0 || waits ? open : left
}

/** One that was not tried in this round, at once; or else the next one behind that which failed, after a wait. */
function routeOf(out: readonly Out[], round: Round, ask: RouteAsk): Route {
  const left = leftOf(round, ask)
  const open = openOf(out, left)
  const fresh = open.find((each) => !round.tried.includes(each))
  if (fresh !== undefined) return { is: 'next', deployment: fresh, waitMs: 0 }
  const [deployment] = behind(open, ask.failure)
  if (deployment !== undefined) return { is: 'next', deployment, waitMs: ask.failure?.delayMs ?? 0 }
  return { is: left.length === 0 ? 'ended' : 'held' }
}

/** What is said to whoever asked, and after how long. */
function answersTo(
  route: Route,
  { tried }: Round,
): readonly (readonly [message: RouteAnswer, options: { readonly id?: string; readonly delay?: number }])[] {
  if (route.is === 'held') return []
  if (route.is === 'ended') return [[{ type: 'route.ended' }, {}]]
  const { deployment, waitMs } = route
  const message = { type: 'route.next' as const, deployment, tries: tried.length }
  return [[message, waitMs === 0 ? {} : { id: 'route', delay: waitMs }]]
}

/** What the outside is told of it: nothing of a round that begins. */
function eventsOf(route: Route, { replyTo, failure }: RouteAsk): readonly RouterEvent[] {
  if (route.is !== 'next' || failure === null) return []
  const { deployment: from, kind } = failure
  return [{ type: 'model.rerouted', address: replyTo, from, to: route.deployment, kind, waitMs: route.waitMs }]
}

const router = setup({
  types: {} as { context: RouterContext; events: RouterMessage | Own; input: RouterInput; emitted: RouterEvent },
  actions: {
    route: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'route.ask')
      const { replyTo, failure } = event
      const round = roundOf(context, event)
      const added = outBy(event)
      const out = [...context.out.filter((each) => !added.some((one) => one.deployment === each.deployment)), ...added]
      for (const { deployment, ms } of added) {
        enqueue.raise({ type: 'route.back', deployment }, { id: `back:${deployment}`, delay: ms })
        enqueue.emit({ type: 'deployment.out', deployment, kind: failure!.kind, ms })
      }
      const route = routeOf(out, round, event)
      for (const [message, options] of answersTo(route, round)) enqueue.sendTo(to(replyTo), message, options)
      for (const each of eventsOf(route, event)) enqueue.emit(each)
      const waiting = context.waiting.filter((each) => each.replyTo !== replyTo)
      enqueue.assign({
        out: out.map(({ deployment, cools }) => ({ deployment, cools })),
        rounds: [...context.rounds.filter(({ asker }) => asker !== replyTo), round].slice(-maxRounds),
        waiting: route.is === 'held' ? [...waiting, { ...event, failure: null }] : waiting,
      })
    }),
    bringBack: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'route.back')
      const { deployment } = event
      enqueue.emit({ type: 'deployment.back', deployment })
      enqueue.assign({ out: context.out.filter((each) => each.deployment !== deployment), waiting: [] })
      for (const ask of context.waiting) enqueue.sendTo(to(context.self), ask)
    }),
  },
})

/** The model router machine. Bump `version` with any change of its decisions. */
export const routerMachine = router.createMachine({
  id: 'router',
  version: '1',
  context: ({ input }) => ({ ...input, rounds: [], out: [], waiting: [] }),
  initial: 'routing',
  states: {
    routing: { on: { 'route.ask': { actions: 'route' }, 'route.back': { actions: 'bringBack' } } },
  },
})
