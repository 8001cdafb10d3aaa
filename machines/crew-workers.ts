/**
 * The agents that work for a crew: the messages that start them, and those that follow from their end.
 *
 * Owns: what is said to whom, in order.
 * Does not own: when (`crew.ts`), what is known of them (`crew-context.ts`), their accounts (`crew-budgets.ts`).
 */
import { accountOf, counted, leftBy, openingOf, shortWithout } from './crew-budgets.js'
import {
  answerable,
  type CrewContext,
  type CrewEvent,
  type CrewMessageOf,
  delegatesOf,
  desertedBy,
  isAway,
  isFor,
  isLead,
  keeperOf,
  keptOf,
  leadName,
  leadOf,
  limitsOf,
  runOf,
  type Task,
  without,
  type Worker,
} from './crew-context.js'
import type { CrewData, DelegateCall, FlowInput, FlowStages, View } from './messages.js'

/** A message, and whom it is for. */
export interface Said {
  readonly target: string
  readonly message: { readonly type: string; readonly [field: string]: unknown }
}

type Finished = CrewMessageOf<'agent.finished'>
type Ended = Finished | CrewMessageOf<'actor.failed'>

/** What an agent actor begins with. */
interface Part {
  readonly account: string
  readonly depth: number
  readonly length: number
  readonly tokens: number
  readonly conversation: string
  readonly trail: readonly string[]
  readonly view?: View | undefined
}

/** The messages that start an agent actor: its account when it has one, then itself. */
function startOf(context: CrewContext, agent: string, name: string, part: Part): Said[] {
  const open = { target: keeperOf(context), message: openingOf(context, part.account) }
  return [...(limitsOf(context, agent) === null ? [] : [open]), actorStart(context, agent, name, part)]
}

/** The message that starts an agent actor. */
export function actorStart(context: CrewContext, agent: string, name: string, part: Part): Said {
  const data = context.data.agents[agent]
  const input = {
    self: `agent/${name}`,
    run: runOf(context),
    crew: context.self,
    keeper: keeperOf(context),
    account: part.account,
    conversation: part.conversation,
    depth: part.depth,
    length: part.length,
    tokens: part.tokens + (data?.baseTokens ?? 0),
    paused: context.paused,
    counted: counted(context, part.account),
    detector: context.detector,
    router: context.router,
    trail: [...part.trail, agent],
    ...(part.view === undefined ? {} : { view: part.view }),
    data,
  }
  return { target: 'shard/actors', message: { type: 'actor.start', kind: 'agent', name, input } }
}

/** How the present run begins: with its lead, or with the flow that leads it. */
export function leadStart(context: CrewContext): Start {
  const task = context.task!
  const { flow: stages, flowMachine } = context.data
  if (task.mail !== null) return agentStart(context, task)
  if (flowMachine !== undefined) return machineStart(task, flowMachine.kind)
  return stages === undefined ? agentStart(context, task) : flowStart(context, task, stages)
}

/** Who leads, and what is said at the beginning. */
interface Start {
  readonly agent: string
  readonly address: string
  readonly worker: Worker
  readonly said: readonly Said[]
}

/** Of a worker that was never restarted. */
const first = { incarnation: 1, restarts: [], steered: 0 }

function flowStart({ self: crew }: CrewContext, task: Task, stages: FlowStages): Start {
  const { run, sequence, systems, messages: length, tokens } = task
  const self = `flow/${run}`
  const input: FlowInput = { self, crew, run, conversation: run, length, tokens, sequence, systems, stages }
  const started = { target: 'shard/runs', message: { type: 'run.started', run, conversation: run } }
  const start = { target: 'shard/actors', message: { type: 'actor.start', kind: 'flow', name: run, input } }
  const begun = { ...{ name: run, length, tokens }, ...first }
  const worker: Worker = { agent: 'flow', account: 'run', conversation: run, call: null, ...begun }
  return { agent: 'flow', address: self, worker, said: [started, start] }
}

/** A user's machine is told of its task by whoever can read it: here it has only a name. */
function machineStart({ run, messages: length, tokens }: Task, kind: string): Start {
  const started = { target: 'shard/runs', message: { type: 'run.started', run, conversation: run } }
  const start = { target: 'shard/actors', message: { type: 'actor.start', kind, name: run, input: { run } } }
  const worker: Worker = {
    ...{ agent: 'flow', account: 'run', conversation: run, call: null },
    ...{ name: run, length, tokens, ...first },
  }
  return { agent: 'flow', address: `machine/${run}`, worker, said: [started, start] }
}

/** How deep the present task is nested, over all crews. */
export const depthOf = ({ task }: CrewContext) => task?.mail?.depth ?? 0

function agentStart(context: CrewContext, task: Task): Start {
  const agent = leadOf(context)
  const name = leadName(context)
  const { conversation, length, tokens, hidden } = keptOf(context, task)
  const part = {
    ...{ account: accountOf(context, agent, null), conversation, trail: [] },
    ...{ depth: depthOf(context), length: length + task.messages, tokens: tokens + task.tokens },
  }
  const started = { target: 'shard/runs', message: { type: 'run.started', run: task.run, conversation } }
  // What was kept goes on with the task.
  const joined = { target: `log/${conversation}`, message: { type: 'log.append', all: task.run } }
  const seen = hidden === undefined ? {} : { view: { hidden, system: null } }
  const begun = { name, length: part.length, tokens: part.tokens, ...first, ...seen }
  const worker: Worker = { agent, account: part.account, conversation, call: null, ...begun }
  return {
    agent,
    address: `agent/${name}`,
    worker,
    said: [
      ...[started, ...(conversation === task.run ? [] : [joined])],
      ...startOf(context, agent, name, { ...part, ...seen }),
    ],
  }
}

/** How the first call that waits begins: with an agent of this crew, or with an envoy to another one's. */
export function delegateStart(context: CrewContext): Start {
  const call = context.waiting[0]!
  const { agent, caller, name, depth, length, tokens, trail } = call
  const account = accountOf(context, agent, caller)
  const worker: Worker = { agent, account, conversation: name, call, name, length, tokens, ...first }
  if (isAway(agent)) return { agent, address: `envoy/${name}`, worker, said: [envoyStart(context, call)] }
  const part = { account, depth, length, tokens, conversation: name, trail }
  return { agent, address: `agent/${name}`, worker, said: startOf(context, agent, name, part) }
}

function envoyStart({ self: crew, data, task }: CrewContext, { agent, name, depth, length }: DelegateCall): Said {
  const chain = task?.mail?.chain ?? []
  const { answerMs } = data
  const input = { self: `envoy/${name}`, crew, agent, conversation: name, length, depth, chain, answerMs }
  return { target: 'shard/actors', message: { type: 'actor.start', kind: 'envoy', name, input } }
}

/** How another agent goes on with a conversation: in the place of the one that hands it over, for whoever called that. */
export function handedOver(context: CrewContext, event: Finished) {
  const { address, conversation, length, tokens, rounds, handover } = event
  const before = context.workers[address]!
  const { agent, name, view, trail } = handover!
  const { caller = null, depth = depthOf(context) } = before.call ?? {}
  const account = accountOf(context, agent, caller)
  const begun = { name, length, tokens, view, trail, rounds: roundsOf(before, event), restarts: [], steered: 0 }
  // Incarnations are counted for a task, whoever has it: their conversations are named by them.
  const next: Worker = { ...before, agent, account, ...begun }
  const workers = { ...without(context.workers, address), [`agent/${name}`]: next }
  const part = { account, depth, length, tokens, conversation, trail, view }
  const { short, settled } = shortWithout(context, address)
  const said: Said[] = [
    ...refunds(context, before.account, workers),
    ...settled.map(withdrawn),
    ...startOf(context, agent, name, part),
  ]
  const told: CrewEvent = { type: 'agent.finished', agent: before.agent, address, code: null, rounds }
  return { agent, address: `agent/${name}`, said, told, workers, short }
}

/** Why a task ended; a null code: with an answer. Whom it was handed over to its crew may not have any more. */
export const endingOf = (event: Ended) => {
  const { code, reason } = event
  const missing = event.type === 'agent.finished' ? event.handover?.agent : undefined
  return missing === undefined
    ? { code, reason }
    : { code: 'CREW_INVALID', reason: `the crew has no agent ${missing} any more` }
}

/** Rounds in a conversation, whoever had it. */
export const roundsOf = ({ rounds = 0 }: Worker, event: Finished) => rounds + event.rounds

/** The answer of a delegate, or why there is none, for whoever called it. */
export function answersOf(context: CrewContext, event: Ended): Said[] {
  const { agent } = context.workers[event.address]!
  const { code, reason } = endingOf(event)
  const answer = event.type === 'agent.finished' ? event : null
  const content =
    answer === null || code !== null
      ? { text: `${agent} failed: ${code}: ${reason}` }
      : { answerOf: answer.conversation }
  const tokens = answer === null ? 64 : answer.answer + 16
  return answerable(context, event.address).flatMap(({ index, callId, conversation, caller, replyTo = caller }) => [
    { target: `log/${conversation}`, message: { type: 'log.stage', index, callId, ...content } },
    {
      target: replyTo,
      message: { type: 'delegate.finished', index, tokens, result: code ?? answer?.result ?? '', code, reason },
    },
  ])
}

/** What follows for those who work, or would, for a caller that takes no answer any more. */
export function deserted(context: CrewContext, caller: string) {
  const called = context.waiting.filter((call) => isFor(call, caller))
  const said: Said[] = [
    ...delegatesOf(context, caller).map((target) => ({ target, message: { type: 'run.cancel' } })),
    ...called.map(({ name }) => ({ target: `log/${name}`, message: { type: 'log.drop' } })),
  ]
  const waiting = context.waiting.filter((call) => !isFor(call, caller))
  return { said, waiting, workers: desertedBy(context, caller) }
}

/** What follows from the end of an agent, whatever it was. */
export function farewell(context: CrewContext, event: Ended) {
  const { address } = event
  const { code } = endingOf(event)
  const worker = context.workers[address]!
  const workers = without(context.workers, address)
  const { short, settled } = shortWithout(context, address)
  const log = `log/${worker.conversation}`
  const said: Said[] = [
    ...leftOpen(context, event),
    ...refunds(context, worker.account, workers),
    ...(isLead(context, address) ? [] : [{ target: log, message: { type: 'log.drop' } }]),
    ...settled.map(withdrawn),
  ]
  const rounds = event.type === 'agent.finished' ? event.rounds : 0
  const told: CrewEvent = { type: 'agent.finished', agent: worker.agent, address, code, rounds }
  return { said, told, workers, short }
}

/** What accounts give back that nobody spends from any more. */
function refunds(context: CrewContext, account: string, workers: CrewContext['workers']): Said[] {
  return leftBy(account, workers).map((left) => {
    return { target: keeperOf(context), message: { type: 'budget.refund', account: left } }
  })
}

/**
 * What is given back and not read any more of whoever could not end that itself: it failed, or it is a flow, and others have
 * answered it behind its end.
 */
function leftOpen(context: CrewContext, { type, address }: Ended): Said[] {
  const failed = type === 'actor.failed'
  const holding = { target: keeperOf(context), message: { type: 'budget.withdraw', holder: address } }
  const { conversation } = context.workers[address]!
  const clear = { target: `log/${conversation}`, message: { type: 'log.clear' } }
  const isRead = isLead(context, address) && (failed || !address.startsWith('agent/'))
  return [...(failed ? [holding] : []), ...(isRead ? [clear] : [])]
}

/** What withdraws a question to a person. */
export function withdrawn(escalation: string): Said {
  return { target: 'shard/actors', message: { type: 'actor.stop', address: `escalation/${escalation}` } }
}

/** Another definition, for the agents at work that it still has. */
export function redefined({ workers }: CrewContext, { agents }: CrewData): Said[] {
  return Object.entries(workers).flatMap(([target, { agent }]) => {
    const data = agents[agent]
    return data === undefined ? [] : [{ target, message: { type: 'agent.redefined', data } }]
  })
}
