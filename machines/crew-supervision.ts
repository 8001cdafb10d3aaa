/**
 * How a crew supervises its agents, one for one: whose task goes on when its actor has failed, and how.
 *
 * A *resumed* agent goes on from before the message that it failed over; what it waited for is not waited for any more. A
 * *fresh* one is a new incarnation, under a name of its own, in a conversation of its own that begins as the first one did:
 * no grant, effect, timer, call or message of the old one can be meant for it.
 *
 * Owns: who may be restarted, what is said for it.
 * Does not own: when (`crew.ts`), what the failure itself takes away (effects, timers, tools; the shard).
 */
import { shortWithout } from './crew-budgets.js'
import {
  type CrewContext,
  type CrewEvent,
  type CrewMessageOf,
  isLead,
  keeperOf,
  runOf,
  serves,
  type Worker,
} from './crew-context.js'
import { actorStart, depthOf, type Said, withdrawn } from './crew-workers.js'
import { type DelegateCall, steeringsOf, type Supervision } from './messages.js'

type Failed = CrewMessageOf<'actor.failed'>

/** What the definition says of an agent at work; null for one that is not supervised, and for whoever works for nobody. */
function policyOf(context: CrewContext, address: string): Supervision | null {
  const worker = context.workers[address]
  if (worker === undefined || !address.startsWith('agent/') || !serves(context, worker)) return null
  return context.data.agents[worker.agent]?.supervision ?? null
}

/** Restarts that still count. */
const recent = ({ restarts }: Worker, { periodMs }: Supervision, at: number) =>
  restarts.filter((each) => each > at - periodMs)

/** How a worker that failed goes on; null when it does not. What cannot be resumed begins anew. */
export function restartOf(context: CrewContext, { address, at, resumable }: Failed): 'resume' | 'fresh' | null {
  const policy = policyOf(context, address)
  if (policy === null || policy.restart === 'never') return null
  if (recent(context.workers[address]!, policy, at).length >= policy.intensity) return null
  return policy.restart === 'resume' && resumable ? 'resume' : 'fresh'
}

/** Whether a failure that nobody mends ends the whole run. */
export const escalates = (context: CrewContext, { address }: Failed) => policyOf(context, address)?.then === 'escalate'

/** What follows from a restart. */
interface Restarted {
  readonly said: readonly Said[]
  readonly told: readonly CrewEvent[]
  readonly workers: CrewContext['workers']
  readonly short: CrewContext['short']
  readonly kept: CrewContext['kept']
}

/** What follows from the restart of a worker, by its kind. */
export const restarted = { resume: resumed, fresh: renewed } as const

/** The agent goes on. What it was not told meanwhile it is told now. */
function resumed(context: CrewContext, event: Failed): Restarted {
  const { address } = event
  const worker = again(context, event)
  const { said, short } = released(context, address)
  const pause = { target: address, message: { type: context.paused ? 'run.pause' : 'run.resume' } }
  return {
    said: [...said, { target: 'shard/actors', message: { type: 'actor.resume', address } }, pause],
    told: [toldOf(worker, address, 'resume', event)],
    workers: { ...context.workers, [address]: worker },
    short,
    kept: context.kept,
  }
}

/** A new incarnation takes the place of the one that failed. */
function renewed(context: CrewContext, event: Failed): Restarted {
  const before = again(context, event)
  const { agent, call, conversation: old, account, length, tokens, steered, view } = before
  const incarnation = before.incarnation + 1
  const name = `${before.name}-i${incarnation}`
  const conversation = `${call?.name ?? runOf(context)}-i${incarnation}`
  const address = `agent/${name}`
  const worker = { ...before, conversation, incarnation, steered: 0 }
  const { said, short } = released(context, event.address)
  const part = { account, length, tokens, conversation, view, ...placeOf(context, before) }
  const unheard = { type: 'agent.unsteered', agent, run: runOf(context), messages: steered } as const
  return {
    said: [
      ...said,
      { target: `log/${conversation}`, message: { type: 'log.append', copy: old, first: length } },
      ...left(context, event.address, conversation),
      // Its account is open, whatever the definition says by now.
      actorStart(context, agent, name, part),
    ],
    told: [...(steered > 0 ? [unheard] : []), toldOf(worker, address, 'fresh', event)],
    workers: replaced(context, event.address, address, worker),
    short,
    kept: keptElsewhere(context, old, conversation),
  }
}

/** How deep it is, and who waits for it, or had the task before. */
function placeOf(context: CrewContext, worker: Worker): Pick<DelegateCall, 'depth' | 'trail'> {
  const { depth = depthOf(context), trail = [] } = worker.call ?? {}
  return { depth, trail: [...(worker.trail ?? trail)] }
}

/** A worker with one restart more. */
function again(context: CrewContext, { address, at }: Failed): Worker {
  const worker = context.workers[address]!
  const policy = policyOf(context, address)
  return { ...worker, restarts: [...(policy === null ? [] : recent(worker, policy, at)), at] }
}

const toldOf = (
  { agent, incarnation }: Worker,
  address: string,
  restart: 'resume' | 'fresh',
  { code }: Failed,
): CrewEvent => ({ type: 'agent.restarted', agent, address, restart, incarnation, code })

/** What the failed agent held and asked for, of its keeper and of people. */
function released(context: CrewContext, address: string): Pick<Restarted, 'short'> & { said: Said[] } {
  const { short, settled } = shortWithout(context, address)
  const said = [{ target: keeperOf(context), message: { type: 'budget.withdraw', holder: address } }]
  return { said: [...said, ...settled.map(withdrawn)], short }
}

/** Whether a conversation is of this run alone. */
function isOwn(context: CrewContext, address: string): boolean {
  const { conversation, incarnation } = context.workers[address]!
  return !isLead(context, address) || incarnation > 1 || conversation === runOf(context)
}

/** Who keeps a conversation keeps the copy: in the first one stays what the failed agent had begun. */
function keptElsewhere({ kept }: CrewContext, old: string, conversation: string): CrewContext['kept'] {
  return Object.fromEntries(
    Object.entries(kept).map(([agent, each]) => [agent, each.conversation === old ? { ...each, conversation } : each]),
  )
}

/** What becomes of the conversation that was left: one that earlier runs have stays theirs, without the results of an open round. */
function left(context: CrewContext, address: string, conversation: string): Said[] {
  const { conversation: old } = context.workers[address]!
  const run = runOf(context)
  const restarted = { target: 'shard/runs', message: { type: 'run.restarted', run, conversation } }
  return [
    { target: `log/${old}`, message: { type: isOwn(context, address) ? 'log.drop' : 'log.clear' } },
    { target: `log/${steeringsOf(old)}`, message: { type: 'log.drop' } },
    ...(isLead(context, address) ? [restarted] : []),
  ]
}

/** The workers, in the same order, with another one in the place of one. */
function replaced({ workers }: CrewContext, old: string, address: string, worker: Worker): CrewContext['workers'] {
  return Object.fromEntries(
    Object.entries(workers).map((entry) => (entry[0] === old ? ([address, worker] as const) : entry)),
  )
}
