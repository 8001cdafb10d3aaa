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
  delegatesOf,
  desertedBy,
  isAway,
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
import type { CrewData, CrewMessage, DelegateCall, FlowInput, FlowStages } from './messages.js'

/** A message, and whom it is for. */
export interface Said {
  readonly target: string
  readonly message: { readonly type: string; readonly [field: string]: unknown }
}

type Ended = Extract<CrewMessage, { type: 'agent.finished' | 'actor.failed' }>

/** What an agent actor begins with. */
interface Part {
  readonly account: string
  readonly depth: number
  readonly length: number
  readonly tokens: number
  readonly conversation: string
  readonly trail: readonly string[]
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
    data,
  }
  return { target: 'shard/actors', message: { type: 'actor.start', kind: 'agent', name, input } }
}

/** How the present run begins: with its lead, or with the flow that leads it. */
export function leadStart(context: CrewContext): Start {
  const task = context.task!
  const stages = context.data.flow
  return stages === undefined || task.mail !== null ? agentStart(context, task) : flowStart(context, task, stages)
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

function agentStart(context: CrewContext, task: Task): Start {
  const agent = leadOf(context)
  const name = leadName(context)
  const { conversation, length, tokens } = keptOf(context, task)
  const part = {
    ...{ account: accountOf(context, agent, null), conversation, trail: [] },
    ...{ depth: task.mail?.depth ?? 0, length: length + task.messages, tokens: tokens + task.tokens },
  }
  const started = { target: 'shard/runs', message: { type: 'run.started', run: task.run, conversation } }
  // What was kept goes on with the task.
  const joined = { target: `log/${conversation}`, message: { type: 'log.append', all: task.run } }
  const begun = { name, length: part.length, tokens: part.tokens, ...first }
  const worker: Worker = { agent, account: part.account, conversation, call: null, ...begun }
  return {
    agent,
    address: `agent/${name}`,
    worker,
    said: [started, ...(conversation === task.run ? [] : [joined]), ...startOf(context, agent, name, part)],
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

/** The answer of a delegate, or why there is none, for whoever called it. */
export function answersOf(context: CrewContext, event: Ended): Said[] {
  const { agent } = context.workers[event.address]!
  const { code, reason } = event
  const answer = event.type === 'agent.finished' ? event : null
  const content =
    answer === null || code !== null
      ? { text: `${agent} failed: ${code}: ${reason}` }
      : { answerOf: answer.conversation }
  const tokens = answer === null ? 64 : answer.answer + 16
  return answerable(context, event.address).flatMap(({ index, callId, conversation, caller }) => [
    { target: `log/${conversation}`, message: { type: 'log.stage', index, callId, ...content } },
    {
      target: caller,
      message: { type: 'delegate.finished', index, tokens, result: code ?? answer?.result ?? '', code, reason },
    },
  ])
}

/** What follows for those who work, or would, for a caller that takes no answer any more. */
export function deserted(context: CrewContext, caller: string) {
  const called = context.waiting.filter((call) => call.caller === caller)
  const said: Said[] = [
    ...delegatesOf(context, caller).map((target) => ({ target, message: { type: 'run.cancel' } })),
    ...called.map(({ name }) => ({ target: `log/${name}`, message: { type: 'log.drop' } })),
  ]
  const waiting = context.waiting.filter((call) => call.caller !== caller)
  return { said, waiting, workers: desertedBy(context, caller) }
}

/** What follows from the end of an agent, whatever it was. */
export function farewell(context: CrewContext, event: Ended) {
  const { address, code } = event
  const worker = context.workers[address]!
  const workers = without(context.workers, address)
  const { short, settled } = shortWithout(context, address)
  const log = `log/${worker.conversation}`
  const said: Said[] = [
    ...leftOpen(context, event),
    ...leftBy(worker.account, workers).map((account) => {
      return { target: keeperOf(context), message: { type: 'budget.refund', account } }
    }),
    ...(isLead(context, address) ? [] : [{ target: log, message: { type: 'log.drop' } }]),
    ...settled.map(withdrawn),
  ]
  const rounds = event.type === 'agent.finished' ? event.rounds : 0
  const told: CrewEvent = { type: 'agent.finished', agent: worker.agent, address, code, rounds }
  return { said, told, workers, short }
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
