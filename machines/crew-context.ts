/**
 * What the crew machine knows, and what it reads off it.
 *
 * Owns: the crew's context, questions to it.
 * Does not own: when anything happens (`crew.ts`).
 */
import {
  type Amounts,
  type CrewData,
  type CrewMessage,
  type DelegateCall,
  type Limits,
  to,
  type View,
} from './messages.js'

/** What is known of a task that came by mail. */
export interface TaskMail {
  /** The agent that it is for. */
  readonly agent: string
  /** Full address of the envoy that waits for the answer. */
  readonly sender: string
  /** Id of this crew, as its mail names it. */
  readonly shard: string
  readonly depth: number
  /** Crews that wait for the answer; the one that asks is the last. */
  readonly chain: readonly string[]
}

export interface Task {
  readonly run: string
  readonly tokens: number
  readonly messages: number
  /** The commit that brought it, and of a flow where system messages of agents are in it. */
  readonly sequence: number
  readonly systems: Readonly<Record<string, number>>
  /** Null for a task of the crew's user. */
  readonly mail: TaskMail | null
}

/** An agent at work: the lead, or a delegate with whoever called it. */
export interface Worker {
  readonly agent: string
  /** What it spends from: `run`, or the budget of an agent below it, `run/<agent>/<agent>…`. */
  readonly account: string
  readonly conversation: string
  readonly call: DelegateCall | null
  /** Its name, without its incarnation. */
  readonly name: string
  /** What its conversation began with: messages, and an estimate of them. */
  readonly length: number
  readonly tokens: number
  /** How often it was started: 1 at first. */
  readonly incarnation: number
  /** When it was restarted, as far as that counts. */
  readonly restarts: readonly number[]
  /** Messages of its user that this incarnation was given. */
  readonly steered: number
  /** Rounds of those who had the conversation before. */
  readonly rounds?: number
  /** Of one to whom it was handed over, or that has kept it: what of the conversation it is shown. */
  readonly view?: View
  /** Of one to whom it was handed over: those before. */
  readonly trail?: readonly string[]
}

/** A person is asked for more. */
export interface Shortage {
  /** Name of the actor that asks. */
  readonly escalation: string
  /** Agents that cannot pay. */
  readonly agents: readonly string[]
}

export interface End {
  readonly code: string | null
  readonly reason: string
  readonly finish: string
  readonly rounds: number
  readonly conversation: string | null
}

/** A kept conversation of an agent with `continue`. */
export interface Kept {
  readonly conversation: string
  readonly length: number
  readonly tokens: number
  /** What of it its agent is not shown: system messages of those to whom it was handed over. */
  readonly hidden?: View['hidden']
}

export interface CrewContext {
  readonly self: string
  readonly data: CrewData
  readonly queue: readonly Task[]
  readonly task: Task | null
  readonly workers: Readonly<Record<string, Worker>>
  readonly waiting: readonly DelegateCall[]
  readonly kept: Readonly<Record<string, Kept>>
  readonly paused: boolean
  readonly end: End | null
  /** The keeper failed: nobody can send the bill. */
  readonly bankrupt: boolean
  /** Name of the keeper at work: `crew` for a budget of the crew, else the run's; null when the next run starts one. */
  readonly keeper: string | null
  /** The loop detector of this run; null: there is none. */
  readonly detector: string | null
  /** The model router, which outlives a run; null until there is one. */
  readonly router: string | null
  /** For a budget of the crew: what was spent before this run. */
  readonly before: Amounts
  /** Keys of the last messages of its user that were passed on, this run's and earlier ones'. */
  readonly steers: readonly string[]
  /** Accounts for which a person is asked for more. */
  readonly short: Readonly<Record<string, Shortage>>
}

export interface CrewInput {
  readonly self: string
  readonly data: CrewData
  /** The keeper of a crew that failed and begins anew: what was spent is not forgotten. */
  readonly keeper?: 'crew' | null
}

/** What the outside may watch a crew do. */
export type CrewEvent =
  | { type: 'run.queued'; run: string }
  | { type: 'run.started'; run: string; agent: string }
  | { type: 'run.paused'; run: string }
  | { type: 'run.resumed'; run: string }
  | {
      type: 'run.finished'
      run: string
      code: string | null
      reason: string
      finish: string
      rounds: number
      spent: Amounts
    }
  | { type: 'agent.started'; agent: string; address: string }
  | { type: 'agent.finished'; agent: string; address: string; code: string | null; rounds: number }
  /** It had failed with this code. `address`: of the one that goes on; of a `fresh` one a new one. */
  | {
      type: 'agent.restarted'
      agent: string
      address: string
      restart: 'resume' | 'fresh'
      incarnation: number
      code: string
    }
  /** A new incarnation knows nothing of what the one before was told by its user. */
  | { type: 'agent.unsteered'; agent: string; run: string; messages: number }
  | { type: 'steer.refused'; run: string; agent: string }
  | { type: 'budget.raised'; account: string; limits: Limits; mode: 'to' | 'by' }
  | { type: 'raise.refused'; agent: string }

export const minus = (a: Amounts, b: Amounts): Amounts => ({
  nanoUsd: a.nanoUsd - b.nanoUsd,
  tokens: a.tokens - b.tokens,
  modelCalls: a.modelCalls - b.modelCalls,
  toolCalls: a.toolCalls - b.toolCalls,
})
export const runOf = (context: CrewContext) => context.task?.run ?? ''
export const perCrew = (context: CrewContext) => context.data.per === 'crew'
/** Whether the keeper at work is the crew's: the definition may say otherwise from the next run on. */
export const keptByCrew = (context: CrewContext) => context.keeper === 'crew'
export const keeperOf = (context: CrewContext) => `budget/${context.keeper ?? runOf(context)}`
export const leadOf = (context: CrewContext) => context.task?.mail?.agent ?? context.data.lead
export const leadName = (context: CrewContext) => `${leadOf(context)}-${runOf(context)}`
export const limitsOf = (context: CrewContext, agent: string): Limits | null =>
  context.data.agents[agent]?.limits ?? null
export const keeps = (context: CrewContext, agent: string) => context.data.agents[agent]?.keep === true
export const keptOf = (context: CrewContext, task: Task): Kept => {
  const kept = keeps(context, leadOf(context)) ? context.kept[leadOf(context)] : undefined
  return kept ?? { conversation: task.run, length: 0, tokens: 0 }
}
/** Those who keep a conversation: also when the definition does not ask for it any more. */
const keepersOf = ({ kept }: CrewContext, conversation: string) =>
  Object.keys(kept).filter((agent) => kept[agent]!.conversation === conversation)
/** What is kept when an agent has written to a conversation. */
export const keptAfter = (context: CrewContext, event: CrewMessageOf<'agent.finished'>): CrewContext['kept'] => {
  const { address, conversation, length, tokens, handover } = event
  const { agent, view } = context.workers[address]!
  const { system = null } = handover?.view ?? {}
  const names = [...keepersOf(context, conversation), ...(keeps(context, agent) ? [agent] : [])]
  const hiddenFrom = (name: string) => (name === agent ? (view?.hidden ?? []) : (context.kept[name]?.hidden ?? []))
  const brought: View['hidden'] = system === null ? [] : [[system, system]]
  const kept = names.map((name) => [name, keptAs({ conversation, length, tokens }, [...hiddenFrom(name), ...brought])])
  return { ...context.kept, ...(Object.fromEntries(kept) as CrewContext['kept']) }
}
const keptAs = (kept: Kept, hidden: View['hidden']): Kept => (hidden.length === 0 ? kept : { ...kept, hidden })
/** What is kept when nobody knows how far a conversation has come. */
export const keptWithout = (context: CrewContext, { agent, conversation }: Worker): CrewContext['kept'] =>
  [agent, ...keepersOf(context, conversation)].reduce<CrewContext['kept']>(without, context.kept)
export const without = <T>(record: Readonly<Record<string, T>>, key: string) => {
  const { [key]: _, ...rest } = record
  return rest
}
export const isLead = (context: CrewContext, address: string) => context.workers[address]?.call === null
export const delegateWorkers = (context: CrewContext) =>
  Object.entries(context.workers).filter(([, worker]) => worker.call !== null)
/** Whether a call is one of this caller, or its answer would come to it. */
export const isFor = (call: DelegateCall, caller: string) => call.caller === caller || call.replyTo === caller
export const delegatesOf = (context: CrewContext, caller: string) =>
  delegateWorkers(context)
    .filter(([, worker]) => worker.call !== null && isFor(worker.call, caller))
    .map(([address]) => address)
/** The caller of whoever works for nobody. */
const nobody = ''
/** Those who work for a caller, who wants no answer any more. */
export const desertedBy = (context: CrewContext, caller: string): CrewContext['workers'] =>
  Object.fromEntries(
    Object.entries(context.workers).map(([address, worker]) => [
      address,
      worker.call !== null && isFor(worker.call, caller)
        ? { ...worker, call: { ...worker.call, caller: nobody } }
        : worker,
    ]),
  )
/** Whether somebody waits for what it does. */
export const serves = ({ workers }: CrewContext, { call }: Worker) =>
  call === null || workers[call.caller] !== undefined
/** The call that a delegate's end answers; none when its caller, and with it the conversation, is gone. */
export const answerable = (context: CrewContext, address: string): DelegateCall[] =>
  [context.workers[address]?.call ?? null].filter(
    (call) => call !== null && context.workers[call.caller] !== undefined,
  ) as DelegateCall[]
export const callers = (context: CrewContext) =>
  new Set(
    [...context.waiting, ...delegateWorkers(context).map(([, worker]) => worker.call!)].map((call) => call.caller),
  )
/** A delegate that waits for one of its own takes no place: else those that wait would wait for each other. */
export const mayStart = (context: CrewContext) =>
  delegateWorkers(context).filter(([address]) => !callers(context).has(address)).length < context.data.delegates
/** Calls that will not be made any more. */
export const dropped = (calls: readonly DelegateCall[]) => calls.map((call) => to(`log/${call.name}`))
export const minOutputTokens = (context: CrewContext) =>
  context.data.agents[leadOf(context)]?.minOutputTokens ??
  Math.min(...Object.values(context.data.agents).map((agent) => agent.minOutputTokens))

/** A message that the crew takes, by its type. */
export type CrewMessageOf<Type extends CrewMessage['type']> = Extract<CrewMessage, { type: Type }>

type Steer = CrewMessageOf<'crew.steer'>
/** Keys of messages that are remembered: whoever got no answer asks again soon. */
const maxSteers = 64
export const isRepeated = (context: CrewContext, { key }: Steer) => context.steers.includes(key)
export const remembered = ({ steers }: CrewContext, { key }: Steer) => [...steers, key].slice(-maxSteers)
/** Nobody but the user, or the flow that leads the run, has asked it. */
const isInFront = ({ call }: Worker) => call === null || /^(flow|machine)\//.test(call.caller)
/** Who takes a message of the user: the lead, or whoever a flow has at work, or each live task of the named agent, or the actor of that name. */
export const steered = (context: CrewContext, { run, agent }: Steer) =>
  Object.entries(context.workers)
    .filter(([address]) => address.startsWith('agent/') && (run ?? runOf(context)) === runOf(context))
    .filter(([address, worker]) =>
      agent === undefined ? isInFront(worker) : worker.agent === agent || address === `agent/${agent}`,
    )
    .map(([address]) => address)

/** The workers, when a message of the user was passed on to some. */
export const countSteered = (context: CrewContext, event: Steer): CrewContext['workers'] => {
  const heard = steered(context, event).map((address) => [address, context.workers[address]!] as const)
  const counted = heard.map(([address, worker]) => [address, { ...worker, steered: worker.steered + 1 }] as const)
  return { ...context.workers, ...Object.fromEntries(counted) }
}

/** An agent of another crew is named by its address. */
export const isAway = (agent: string) => agent.includes('/')
const crewOf = (address: string) => address.slice(0, address.indexOf('/'))
/** Crews that the present run waits for. */
const awaited = (context: CrewContext) =>
  delegateWorkers(context).flatMap(([, { agent }]) => (isAway(agent) ? [crewOf(agent)] : []))
/**
 * Whether a task would wait for a run that waits for whoever gave it. Of two crews that ask each other at the same time
 * both know: the one whose id comes first refuses.
 */
export const crosses = (context: CrewContext, { chain, shard }: TaskMail) =>
  awaited(context).some((crew) => chain.includes(crew) && (crew !== chain.at(-1) || shard < crew))
/** Runs that may wait. */
const maxQueue = 100

type DelegateTask = CrewMessageOf<'delegate.task'>

/** What a task by mail says of itself. */
export const mailOf = ({ agent, sender, shard, depth, chain }: DelegateTask): TaskMail => ({
  ...{ agent, sender, shard, depth },
  chain: [...chain, crewOf(sender)],
})

/** What is known of a task, whoever gave it. */
export const taskOf = (event: Extract<CrewMessage, { type: 'crew.task' | 'delegate.task' }>): Task => ({
  ...{ run: `r${event.sequence}`, sequence: event.sequence, tokens: event.tokens, messages: event.messages },
  ...(event.type === 'crew.task' ? { systems: event.systems ?? {}, mail: null } : { systems: {}, mail: mailOf(event) }),
})

/** Why a task by mail is not taken; null when it is. */
export function refusalOf(context: CrewContext, event: DelegateTask): End | null {
  const { agent, refused } = event
  const mail = mailOf(event)
  if (refused !== '') return endOf('DELEGATION_FAILED', refused)
  if (context.data.agents[agent] === undefined)
    return endOf('DELEGATION_FAILED', `the crew ${mail.shard} has no agent ${agent}`)
  if (context.queue.length >= maxQueue) return endOf('RUNS_FULL', `${maxQueue} runs wait already`)
  if (mail.chain.includes(mail.shard)) return endOf('DELEGATION_FAILED', `the crew ${mail.shard} waits for it itself`)
  return crosses(context, mail) ? crossed(mail) : null
}

/** The end of a task that nobody could ever begin. */
export const crossed = ({ shard, chain }: TaskMail) =>
  endOf('DELEGATION_FAILED', `the crew ${shard} waits for ${chain.join(', ')} and would be waited for`)

/** Whether a task is the one that a message wants ended. */
export const isMeant = (event: CrewMessage | { readonly type: 'crew.wall' }, task: Task | null) =>
  (event.type === 'crew.cancel' && event.run === task?.run) ||
  (event.type === 'delegate.revoke' && event.sender === task?.mail?.sender)

export const endOf = (code: string, reason: string): End => ({
  ...{ code, reason, finish: '', rounds: 0, conversation: null },
})

/** What the present run has cost, and everything that its keeper has counted. A keeper that failed cannot say. */
export const billOf = ({ before }: CrewContext, event: CrewMessage | { readonly type: 'crew.wall' }) => {
  const total = event.type === 'budget.closed' ? event.spent : before
  return { total, spent: minus(total, before) }
}
export const detectorsOf = ({ detector }: CrewContext) => (detector === null ? [] : [detector])
/** The keeper that outlives the present run, if one does. */
export const keeperAfter = (context: CrewContext) => (keptByCrew(context) && !context.bankrupt ? context.keeper : null)
