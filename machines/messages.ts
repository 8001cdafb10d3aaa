/* eslint max-lines: "off" -- one vocabulary, in one file on purpose */
/**
 * The message vocabulary of the shipped machines: one zod schema a message, and the data they share.
 *
 * In one file on purpose: who reads a machine looks up what it takes and says, and most shapes stand between two of them.
 *
 * Owns: every shape that travels between actors, from the outside to an actor, and from an actor to a port.
 * Does not own: content. What models, tools and people say never enters a machine: it travels as the opaque `values`
 * of an envelope and lies in a conversation; messages carry positions, sizes and verdicts.
 *
 * Addresses inside a shard are `<kind>/<name>`. `port/…`, `log/…` and `shard/…` are taken by the shard itself: work for
 * a port, a conversation, the shard's own table of actors and runs.
 */
import type { AnyActorRef } from 'xstate'
import { z } from 'zod'

/** `<kind>/<name>` of an actor in the same shard. */
const address = z.string().regex(/^[a-z]+\/[A-Za-z0-9_-]{1,128}$/)
const count = z.int().min(0)
const code = z.string().regex(/^[A-Z_]{1,64}$/)

/**
 * The target of a `sendTo`: an address. XState takes any object that a function returns for a target; the scope reads
 * the address back.
 */
export function to(address: string): AnyActorRef {
  return { address } as unknown as AnyActorRef
}

/** Where messages of the user wait to join a conversation: a name that no conversation of an agent can have. */
export function steeringsOf(conversation: string): string {
  return `${conversation}+user`
}

// ---------------------------------------------------------------------------------------------- shared data

/** What money and counters are counted in. `nanoUsd`: billionths of a US dollar. */
export const amounts = z.object({ nanoUsd: count, tokens: count, modelCalls: count, toolCalls: count })
export type Amounts = z.infer<typeof amounts>
/** One of the counters. */
export type Dimension = keyof Amounts
/** All counters, in the order in which a shortage is named. */
export const dimensions = ['nanoUsd', 'tokens', 'modelCalls', 'toolCalls'] as const satisfies readonly Dimension[]
/** Nothing spent. */
export const nothing: Amounts = { nanoUsd: 0, tokens: 0, modelCalls: 0, toolCalls: 0 }

const limits = amounts.partial()
/** Upper bounds; an absent counter is unbounded. */
export type Limits = z.infer<typeof limits>

/** Micro-dollars per million tokens. */
const price = z.object({ input: count, output: count })
export type PriceData = z.infer<typeof price>

/** After how many stale rounds an agent is warned, its calls are refused, its task ends. */
const loops = z.object({ warn: z.int().min(1), block: z.int().min(1), stop: z.int().min(1) })
export type Loops = z.infer<typeof loops>
/** Measured on recorded calls: `npm run bench -- loops`. */
export const defaultLoops: Loops = { warn: 2, block: 3, stop: 4 }

/** What holds for a budget beside its limits. */
const budgetTerms = {
  /** A call may pass the limits as long as anything is left. Absent: none may. */
  soft: z.literal(true).optional(),
  /** How long a person is asked for more when it is spent, in milliseconds. Absent: nobody is asked. */
  raiseMs: z.int().min(1).optional(),
}

/**
 * What becomes of an agent's task when its actor fails: `restart`, at most `intensity` times within `periodMs`, and what
 * follows when that is used up, or for `never`.
 */
const supervision = z.object({
  /** `resume`: it goes on from before the message that it failed over. `fresh`: a new incarnation begins its task anew. */
  restart: z.enum(['resume', 'fresh', 'never']),
  intensity: count,
  periodMs: z.int().min(1),
  /** `stop`: this task ends, and its caller is told. `escalate`: the run ends. */
  then: z.enum(['stop', 'escalate']),
})
export type Supervision = z.infer<typeof supervision>

/** In the order in which they are tried. Those of one `group` are as good as each other, and next to each other. */
const deployments = z.array(z.object({ name: z.string(), price, group: count })).min(1)

/** An agent's definition as far as machines need it. */
export const agentData = z.object({
  name: z.string(),
  deployments,
  rounds: z.int().min(1),
  attempts: z.int().min(1),
  maxOutputTokens: z.int().min(1),
  minOutputTokens: z.int().min(1),
  /** Estimate of instructions and tool schemas. */
  baseTokens: count,
  limits: limits.nullable(),
  ...budgetTerms,
  keep: z.boolean(),
  /** Null: it may repeat itself. */
  loops: loops.nullable(),
  /** Absent: a task that fails ends. */
  supervision: supervision.optional(),
  /** Which rounds its user's code has a say in: `each`, or all `later` ones than the first. Absent: none. */
  prepares: z.enum(['each', 'later']).optional(),
})
export type AgentData = z.infer<typeof agentData>

/** Stages of a flow, one after the other. The agents of a stage work at once, until `all` have answered or the `first` has. */
export const flowStages = z
  .array(z.object({ agents: z.array(z.string()).min(1), join: z.enum(['all', 'first']) }))
  .min(1)
export type FlowStages = z.infer<typeof flowStages>

/** What a budget counts that crews share, until it begins anew: an hour, a day or a month of UTC. */
const budgetWindow = z.enum(['hour', 'day', 'month'])

/** A budget that crews share, as far as its machine needs it. */
export const poolData = z.object({
  limits,
  /** How much a crew is given at once, at least. */
  share: limits,
  /** Null: it never begins anew. */
  window: budgetWindow.nullable(),
  /** How long a crew waits for what others may give back. */
  waitMs: z.int().min(1),
})
export type PoolData = z.infer<typeof poolData>

/** A crew's definition as far as machines need it. */
export const crewData = z.object({
  name: z.string(),
  /** Empty for a crew with a flow. */
  lead: z.string(),
  flow: flowStages.optional(),
  /** A user's machine in the place of a lead: what tells it from another one. */
  flowMachine: z.looseObject({ kind: z.string(), version: z.string() }).optional(),
  agents: z.record(z.string(), agentData),
  limits,
  ...budgetTerms,
  /** Id of the budget that it shares with other crews. */
  from: z.string().optional(),
  per: z.enum(['run', 'crew']),
  wallMs: z.int().min(1).nullable(),
  delegates: z.int().min(1),
  /** How long the answer of another crew is waited for. */
  answerMs: z.int().min(1),
})
export type CrewData = z.infer<typeof crewData>

/** What of its conversation an agent is not shown that took it over, and which of the messages is its system message. */
const view = z.object({
  /** Positions, both ends included. */
  hidden: z.array(z.tuple([count, count])),
  /** Null: its definition has it. */
  system: count.nullable(),
})
export type View = z.infer<typeof view>

/** How one round differs from the agent's definition. What is absent is as the definition has it. */
const roundPlan = z.object({
  deployments: deployments.optional(),
  /** Names of what the model may call. */
  tools: z.array(z.string()).optional(),
  /** As JSON text; they come on top of the agent's own. */
  settings: z.string().optional(),
  maxOutputTokens: z.int().min(1).optional(),
  /** Positions that are not shown in this round, both ends included. */
  hidden: z.array(z.tuple([count, count])).optional(),
  /** What is sent beside the conversation, in the order of the values: the system message, what stands before it and behind. */
  beside: z.object({ system: z.boolean(), before: count, behind: count }).optional(),
  /** Estimate of all that is sent. Absent: it is the whole conversation. */
  tokens: count.optional(),
  /** The commit that has what is beside; filled in by the agent. */
  sequence: count.default(0),
})
export type RoundPlan = z.infer<typeof roundPlan>

// ---------------------------------------------------------------------------------------------- outside → crew

/** A task for the crew: the start of a run. `sequence` is filled in by the commit. */
export const crewTask = z.object({
  type: z.literal('crew.task'),
  /** Estimate of the input. */
  tokens: count,
  /** How many of the envelope's values are messages of the lead's conversation. */
  messages: count,
  /** The run's key; the same key names the same run. */
  key: z.string().min(1).max(256),
  /** Whether one more value follows: the run's `data` as JSON text. */
  data: z.boolean(),
  /** Of a flow: which values are system messages of agents that make their own for a task. */
  systems: z.record(z.string(), count).optional(),
  sequence: count.default(0),
})
export const crewPause = z.object({ type: z.literal('crew.pause') })
export const crewResume = z.object({ type: z.literal('crew.resume') })
/** Ends the current run; with `run`, that one, also while it waits. */
export const crewCancel = z.object({ type: z.literal('crew.cancel'), run: z.string().optional() })
/**
 * A user message for whoever is at work: the lead, or every live task of an agent (or the one of this actor's name). It
 * joins the conversation before the next model call. The message is value 0.
 */
export const crewSteer = z.object({
  type: z.literal('crew.steer'),
  /** Estimate of the message. */
  tokens: count,
  /** Only while this run goes on. */
  run: z.string().optional(),
  agent: z.string().optional(),
  /** The same key is the same message. */
  key: z.string().min(1).max(64),
})
/** Other limits for the budget of the run, or of an agent of its: those named, from now on. */
export const crewRaise = z.object({ type: z.literal('crew.raise'), limits, agent: z.string().optional() })
export const crewRedefined = z.object({ type: z.literal('crew.redefined'), crew: crewData })

// ---------------------------------------------------------------------------------------------- crew ↔ agent

/** What an agent actor is started with. */
export const agentInput = z.object({
  self: address,
  run: z.string(),
  crew: address,
  keeper: address,
  account: z.string(),
  conversation: z.string(),
  depth: count,
  /** Messages in the conversation. */
  length: count,
  /** Estimate of what the next call sends. */
  tokens: count,
  paused: z.boolean(),
  /** True when a limit of tool calls applies, so that each round must ask before it acts. */
  counted: z.boolean(),
  /** Whom each round with calls must ask whether they lead anywhere; null: nobody. */
  detector: address.nullable(),
  /** Whom it asks which deployment to try. */
  router: address,
  /** Agents that wait for each other, or handed over to each other, this one last. */
  trail: z.array(z.string()),
  /** What it sees of the conversation. Absent: all, for it is its own from the beginning. */
  view: view.optional(),
  data: agentData,
})
export type AgentInput = z.infer<typeof agentInput>

export const runPause = z.object({ type: z.literal('run.pause') })
export const runResume = z.object({ type: z.literal('run.resume') })
export const runCancel = z.object({
  type: z.literal('run.cancel'),
  /** What it ends with, and why, unless somebody cancelled it. */
  code: code.optional(),
  reason: z.string().optional(),
})
/** The message is value 0. */
export const runSteer = z.object({ type: z.literal('run.steer'), tokens: count })
export const agentRedefined = z.object({ type: z.literal('agent.redefined'), data: agentData })
/** To whom an agent hands its conversation over. */
const handover = z.object({
  agent: z.string(),
  /** Name of the actor to start. */
  name: z.string(),
  view,
  /** The one that hands over, and those before. */
  trail: z.array(z.string()),
})
export type Handover = z.infer<typeof handover>
/** An agent's end. `code` null: it answered; the answer is the last message of its conversation, unless another goes on. */
export const agentFinished = z.object({
  type: z.literal('agent.finished'),
  address,
  conversation: z.string(),
  code: code.nullable(),
  reason: z.string(),
  finish: z.string(),
  rounds: count,
  length: count,
  tokens: count,
  /** Tokens of the answer. */
  answer: count,
  /** The answer as a hash. */
  result: z.string(),
  /** Who goes on with the conversation. */
  handover: handover.optional(),
})
/** Of what a budget lacks that crews share: what its run ends with, and why. */
const refusal = { code: code.optional(), reason: z.string().optional() }
/** The agent cannot pay for its next step and waits. */
export const agentExhausted = z.object({
  type: z.literal('agent.exhausted'),
  address,
  account: z.string(),
  dimension: z.enum(dimensions),
  /** What the account is limited to. */
  limit: count,
  ...refusal,
})
/** An agent calls another one as a tool. */
export const delegateCall = z.object({
  type: z.literal('delegate.call'),
  caller: address,
  /** Who takes the answer, when it is not the caller itself: an actor of a user's that works for it. */
  replyTo: address.optional(),
  /** The caller's conversation, where the answer goes. */
  conversation: z.string(),
  /** Position among the calls of the reply. */
  index: count,
  callId: z.string(),
  /** Name of an agent of this crew, or address of one of another. */
  agent: z.string(),
  /** Name of the actor and conversation to start. */
  name: z.string(),
  depth: count,
  length: count,
  tokens: count,
  /** The caller's: agents that wait for each other. */
  trail: z.array(z.string()),
  /** One of several of which the first answer is wanted. */
  race: z.boolean().optional(),
})
export type DelegateCall = z.infer<typeof delegateCall>
/** The answer, or the reason why there is none, is staged in the caller's conversation. */
export const delegateFinished = z.object({
  type: z.literal('delegate.finished'),
  index: count,
  tokens: count,
  /** What came back, as a hash. */
  result: z.string(),
  /** Null: it answered. */
  code: code.nullable(),
  reason: z.string(),
})
export type DelegateFinished = z.infer<typeof delegateFinished>
/** `caller`: or whoever was to take the answers. */
export const delegateCancel = z.object({ type: z.literal('delegate.cancel'), caller: address })

// ---------------------------------------------------------------------------------------------- crew ↔ flow

/** What a flow is started with, in the place of a lead. */
export const flowInput = z.object({
  self: address,
  crew: address,
  run: z.string(),
  /** Where the task is, and where the answers go. */
  conversation: z.string(),
  /** Messages of the task, and their tokens. */
  length: count,
  tokens: count,
  /** The commit that has the task, and where in it system messages of agents are. */
  sequence: count,
  systems: z.record(z.string(), count),
  stages: flowStages,
})
export type FlowInput = z.infer<typeof flowInput>

// ---------------------------------------------------------------------------------------------- crew ↔ crew, by mail

/** Ids of crews that wait for what they asked for: the one that asked first comes first. */
const chain = z.array(z.string().max(64)).max(64)

/** What an envoy is started with. */
export const envoyInput = z.object({
  self: address,
  crew: address,
  /** Address of the agent: `<crew>/agent/<name>`. */
  agent: z.string(),
  /** Where the task is, and where the answer goes. */
  conversation: z.string(),
  length: count,
  depth: count,
  /** Crews that wait for the run that asks. */
  chain,
  answerMs: z.int().min(1),
})
export type EnvoyInput = z.infer<typeof envoyInput>
/**
 * To the crew of another agent: a task for it. Its text is value 0. What has a default is filled in by the receiver:
 * sizes and `refused` before the commit, `sender` (the full address of the envoy), `shard` (its own id) in it.
 */
export const delegateTask = z.object({
  type: z.literal('delegate.task'),
  agent: z.string().regex(/^[A-Za-z0-9_-]{1,64}$/),
  depth: count.max(64),
  chain,
  tokens: count.default(0),
  messages: count.default(0),
  /** Why it cannot even be asked; empty when it can. */
  refused: z.string().default(''),
  sender: z.string().default(''),
  shard: z.string().default(''),
  sequence: count.default(0),
})
/** To the same crew: nobody waits for it any more. */
export const delegateRevoke = z.object({ type: z.literal('delegate.revoke'), sender: z.string().default('') })
/** Back to the envoy: the end of the run. `code` null: the answer is value 0. */
export const delegateAnswered = z.object({
  type: z.literal('delegate.answered'),
  code: code.nullable(),
  reason: z.string(),
  tokens: count.default(0),
  result: z.string().default(''),
})
/** From a machine of a user's to one of another crew: what that is told. */
export const machineTold = z.object({
  type: z.literal('machine.told'),
  message: z.looseObject({ type: z.string().min(1).max(256) }),
})
/** To the actor that wrote a letter: nobody will ever take it. */
export const mailReturned = z.object({
  type: z.literal('mail.returned'),
  /** Type of the message. */
  message: z.string(),
  code,
  reason: z.string(),
  /** The actor that it was for; only of what a budget says that crews share. */
  actor: z.string().optional(),
  sender: z.string().default(''),
})

// ---------------------------------------------------------------------------------------------- agent ↔ model port

/** What a person is asked: whether a call may be made, or what the model wants to know. `waitMs`: for how long. */
const askData = z.object({ kind: z.enum(['approval', 'question']), waitMs: z.int().min(1) })
const askKind = z.enum([...askData.shape.kind.options, 'budget'])
export type AskData = z.infer<typeof askData>
/** Which call it is, whoever makes it: name and arguments as a hash. Empty: it may be repeated at will. */
const callHash = z.string().default('')
/** The edge's verdict on one tool call of a reply. */
export const callVerdict = z.discriminatedUnion('verdict', [
  z.object({
    verdict: z.literal('tool'),
    index: count,
    callId: z.string(),
    tool: z.string(),
    effect: z.enum(['pure', 'idempotent', 'once']),
    timeoutMs: z.int().min(1),
    retries: count,
    onUnknown: z.enum(['tell', 'verify']),
    /** Only when a person has to say something to it first. */
    ask: askData.optional(),
    /** Only when the model's own text had to be repaired. */
    arguments: z.string().optional(),
    call: callHash,
  }),
  z.object({
    verdict: z.literal('delegate'),
    index: count,
    callId: z.string(),
    agent: z.string(),
    /** Positions of the new conversation's messages among the envelope's values. */
    values: z.array(count),
    tokens: count,
    call: callHash,
  }),
  z.object({
    verdict: z.literal('handoff'),
    index: count,
    callId: z.string(),
    agent: z.string(),
    /** What of the messages before this reply the other one is not shown: positions, both ends included. */
    hidden: z.array(z.tuple([count, count])),
    /** Estimate of what that saves. */
    saved: count,
    /** The system message among the envelope's values. Null: the definition has it. */
    system: count.nullable(),
    call: callHash,
  }),
  z.object({
    verdict: z.literal('refused'),
    index: count,
    callId: z.string(),
    name: z.string(),
    message: z.string(),
    call: callHash,
  }),
])
export type CallVerdict = z.infer<typeof callVerdict>

/** Asks the port for one round. Its conversation is named, never copied: the shard adds length and hash. */
export const modelCall = z.object({
  type: z.literal('model.call'),
  agent: z.string(),
  run: z.string(),
  conversation: z.string(),
  /** Absent: all of it is sent. */
  view: view.optional(),
  /** Absent: the round is as the definition has it. */
  plan: roundPlan.optional(),
  /** The first of them that admits it is asked. */
  deployments: z.array(z.string()).min(1),
  maxOutputTokens: z.int().min(1),
  grant: z.string(),
  keeper: address,
  depth: count,
  /** Failed tries of this round so far: the next wait grows with them. */
  tries: count,
  /** What to charge when no real count ever comes in. */
  worst: amounts,
})
export type ModelCall = z.infer<typeof modelCall>

const usage = z.object({ inputTokens: count, outputTokens: count, cachedInputTokens: count, estimated: z.boolean() })

/** Who would not take a call, why, and for how long that is known to be so. */
const skipped = z.object({
  deployment: z.string(),
  /** `elsewhere`: whoever asked for the call has not the crew any more. */
  reason: z.enum(['open', 'probing', 'asked', 'fault', 'elsewhere']),
  waitMs: count,
})
export type Skipped = z.infer<typeof skipped>
/** What its call has changed for everybody: the deployment's breaker, or that it cools down. `ms`: for how long. */
const breakerChange = z.object({ to: z.enum(['opened', 'closed', 'cooled']), ms: count })
export type BreakerChange = z.infer<typeof breakerChange>
/** How the deployment of a call was found. */
const admission = {
  /** The one that was asked. */
  deployment: z.string(),
  /** Those before it that would not take it. */
  skipped: z.array(skipped),
  changes: z.array(breakerChange),
}

/** A reply; the assistant message is value 0. `sequence` is filled in by the commit. */
export const modelReplied = z.object({
  type: z.literal('model.replied'),
  ...admission,
  calls: z.array(callVerdict),
  /** Only without calls: does the text fit the agent's output? `null`: it asks for no shape. */
  fits: z.boolean().nullable(),
  /** What to tell the model when it does not. */
  reason: z.string(),
  finish: z.string(),
  usage,
  spent: amounts,
  /** The text as a hash. */
  result: z.string().default(''),
  sequence: count.default(0),
})
/** Why a model call brought no reply. */
const failureKind = z.enum([
  'auth',
  'rate_limited',
  'quota',
  'context_window',
  'content_policy',
  'bad_request',
  'not_found',
  'timeout',
  'overloaded',
  'server',
  'network',
  'invalid_reply',
  'cancelled',
  'config',
])
export type FailureKind = z.infer<typeof failureKind>
/** No reply. */
export const modelFailed = z.object({
  type: z.literal('model.failed'),
  ...admission,
  kind: failureKind,
  reason: z.string(),
  /** Wait before the same deployment is tried again, with jitter, unless the provider asks for more. */
  delayMs: count,
  /** What the provider asks for; null for nothing. */
  retryAfterMs: count.nullable(),
  spent: amounts,
  /** False when the counts of `spent` are a guess. */
  real: z.boolean(),
})

/** No call: none of its deployments would take it. */
export const modelRefused = z.object({
  type: z.literal('model.refused'),
  skipped: z.array(skipped).min(1),
  /** Wait before one that failed is tried again, with jitter. */
  delayMs: count,
})

// ---------------------------------------------------------------------------------------------- agent ↔ round port

/** Asks the user's code whether there is to be another round, and what is to be otherwise in it. */
export const roundPrepare = z.object({
  type: z.literal('round.prepare'),
  agent: z.string(),
  run: z.string(),
  conversation: z.string(),
  view: view.optional(),
  /** Rounds done. */
  rounds: count,
  /** What the agent's own model calls have cost in this task. */
  used: amounts,
  /** Calls of the last reply that were answered, and whom they were for. */
  answered: z.array(z.object({ index: count, name: z.string() })),
})
export type RoundPrepare = z.infer<typeof roundPrepare>
/** What is beside the conversation are the values. */
export const roundPrepared = z.object({
  type: z.literal('round.prepared'),
  plan: roundPlan,
  sequence: count.default(0),
})
/** There is to be none: value 0 is the agent's answer. */
export const roundStopped = z.object({
  type: z.literal('round.stopped'),
  /** The condition that holds, in words. */
  condition: z.string(),
  /** Estimate of the answer. */
  tokens: count,
  /** The answer as a hash. */
  result: z.string(),
})
/** The user's code failed, or what it stopped has no answer. */
export const roundFailed = z.object({ type: z.literal('round.failed'), code, reason: z.string() })

// ---------------------------------------------------------------------------------------------- agent ↔ tool executor ↔ tool port

/** What a tool executor is started with. */
export const toolInput = z.object({
  self: address,
  owner: address,
  agent: z.string(),
  run: z.string(),
  conversation: z.string(),
  index: count,
  callId: z.string(),
  tool: z.string(),
  effect: z.enum(['pure', 'idempotent', 'once']),
  timeoutMs: z.int().min(1),
  retries: count,
  onUnknown: z.enum(['tell', 'verify']),
  ask: askData.optional(),
  arguments: z.string().optional(),
  /** Position of the assistant message in the conversation. */
  position: count,
  /** Idempotency key: sequence and index of the commit that recorded the model's reply. */
  key: z.string(),
})
export type ToolInput = z.infer<typeof toolInput>

/** Asks the port for one execution, or (`verify`) whether one happened. */
export const toolCall = z.object({
  type: z.enum(['tool.call', 'tool.verify']),
  agent: z.string(),
  run: z.string(),
  conversation: z.string(),
  position: count,
  index: count,
  callId: z.string(),
  tool: z.string(),
  effect: z.enum(['pure', 'idempotent', 'once']),
  timeoutMs: z.int().min(1),
  arguments: z.string().optional(),
  key: z.string(),
  attempt: count,
})
export type ToolCall = z.infer<typeof toolCall>

/**
 * Asks a person. The call that it is about is named as in `tool.call`: nobody else's arguments can be meant. Of a budget it
 * names no call; `arguments` say which budget.
 */
export const humanAsk = z.object({
  type: z.literal('human.ask'),
  kind: askKind,
  waitMs: askData.shape.waitMs,
  agent: z.string(),
  run: z.string(),
  conversation: z.string(),
  position: count,
  index: count,
  callId: z.string(),
  tool: z.string(),
  arguments: z.string().optional(),
})
export type HumanAsk = z.infer<typeof humanAsk>

/** What a tool said, as a hash. */
const resultHash = z.string().default('')
/** The tool's answer is value 0. */
export const toolSucceeded = z.object({ type: z.literal('tool.succeeded'), bytes: count, result: resultHash })
/** What the model is told is value 0. `retry`: null when the class or the failure forbids it. */
export const toolFailed = z.object({
  type: z.literal('tool.failed'),
  kind: z.string(),
  bytes: count,
  retryMs: count.nullable(),
  result: resultHash,
})
/** The answer of `verify`; with `done: true` value 0 is the tool's answer. */
export const toolVerified = z.object({
  type: z.literal('tool.verified'),
  done: z.boolean().nullable(),
  bytes: count,
  result: resultHash,
})
/**
 * What a person said, and who it was. What the model is told is value 0, except of an approval. `arguments`: those to be used
 * instead of the model's.
 */
export const humanAnswered = z.object({
  type: z.literal('human.answered'),
  decision: z.enum(['approved', 'denied', 'answered']),
  by: z.string().max(256),
  bytes: count,
  result: resultHash,
  arguments: z.string().optional(),
  /** Of a budget: what is to be its limits. */
  limits: limits.optional(),
})
export const toolCancel = z.object({ type: z.literal('tool.cancel') })
/** The result is staged in the owner's conversation. */
export const toolFinished = z.object({
  type: z.literal('tool.finished'),
  index: count,
  status: z.enum(['ok', 'failed', 'unknown']),
  tokens: count,
  /** What came back, as a hash. */
  result: z.string(),
})

// ---------------------------------------------------------------------------------------------- ends of effects

/** The effect's executor is gone. `started` is false when a `once` effect has no `dispatched` record. */
export const effectInterrupted = z.object({ type: z.literal('effect.interrupted'), started: z.boolean() })
/** The process died over this work three times. */
export const effectCrashed = z.object({ type: z.literal('effect.crashed') })
/** To a port: whoever works on effects of the sender may stop. */
export const effectCancel = z.object({ type: z.literal('effect.cancel') })

// ---------------------------------------------------------------------------------------------- budget

/** What a budget keeper is started with. */
export const budgetInput = z.object({
  self: address,
  limits,
  soft: budgetTerms.soft,
  minOutputTokens: z.int().min(1),
  /** Where it has what it grants from, and how long an answer is waited for. Absent: its limits are all there is. */
  pool: z.object({ address: z.string(), answerMs: z.int().min(1) }).optional(),
})
/** Opens an account below another one, or tops it up: its limits are carved from what the parent has left. */
export const budgetOpen = z.object({
  type: z.literal('budget.open'),
  account: z.string(),
  parent: z.string(),
  limits,
  soft: budgetTerms.soft,
})
export type BudgetOpen = z.infer<typeof budgetOpen>
/** Gives back to the parent what an account neither spent nor holds. */
export const budgetRefund = z.object({ type: z.literal('budget.refund'), account: z.string() })
/** Somebody has failed, and its calls are settled: what else it holds was not spent, and what it asked for nobody takes. */
export const budgetWithdraw = z.object({ type: z.literal('budget.withdraw'), holder: address })
/** Asks for what was spent so far. */
export const budgetReport = z.object({ type: z.literal('budget.report'), replyTo: address })
/** Asks for the price of one model call. */
export const budgetReserve = z.object({
  type: z.literal('budget.reserve'),
  grant: z.string(),
  account: z.string(),
  replyTo: address,
  inputTokens: count,
  maxOutputTokens: z.int().min(1),
  minOutputTokens: z.int().min(1),
  price,
})
export type BudgetReserve = z.infer<typeof budgetReserve>
/** Asks for tool calls. */
export const budgetCharge = z.object({
  type: z.literal('budget.charge'),
  account: z.string(),
  replyTo: address,
  toolCalls: count,
})
/** What a grant really cost; an estimate is replaced by the first real one, and nothing after that. */
export const budgetSettle = z.object({
  type: z.literal('budget.settle'),
  grant: z.string(),
  spent: amounts,
  real: z.boolean(),
  /** Tool calls that follow and need no leave. */
  toolCalls: count,
})
/** Takes a reservation back that nothing was spent on. */
export const budgetRelease = z.object({ type: z.literal('budget.release'), grant: z.string() })
/**
 * Other limits for an account. `set`: these are all, counters that are not named are unbounded from now on. `to`: the named
 * ones become these. `by`: those that are limited grow by so much. A child takes it from what its parent has left.
 */
export const budgetRaise = z.object({
  type: z.literal('budget.raise'),
  account: z.string(),
  limits,
  mode: z.enum(['set', 'to', 'by']),
})
export type BudgetRaise = z.infer<typeof budgetRaise>
/** Whoever could not pay may ask again. */
export const budgetRaised = z.object({ type: z.literal('budget.raised') })
/** The end of a run: closes the account tree, every open grant is settled as estimated. */
export const budgetClose = z.object({ type: z.literal('budget.close'), replyTo: address })
export const budgetClosed = z.object({ type: z.literal('budget.closed'), spent: amounts })
export const budgetGranted = z.object({
  type: z.literal('budget.granted'),
  grant: z.string(),
  maxOutputTokens: count,
  worst: amounts,
})
export const budgetRefused = z.object({
  type: z.literal('budget.refused'),
  grant: z.string(),
  /** `@<id>` for a budget that crews share. */
  account: z.string(),
  dimension: z.enum(dimensions),
  /** What the account is limited to. */
  limit: count,
  ...refusal,
})

// ---------------------------------------------------------------------------------------------- budget keeper ↔ budget pool, by mail

/** What a budget pool is started with. */
export const poolInput = z.object({ self: address, data: poolData })
export type PoolInput = z.infer<typeof poolInput>
/**
 * What the commit fills in of a letter: the full address of whoever says it, in which life of its shard it said so (another
 * one begins when a journal is cut back), and when it came, in epoch milliseconds.
 */
const letter = { sender: z.string().default(''), life: count.default(0), at: count.default(0) }
/** Place of a message among those of its keeper's life: of two the later one counts. */
const number = z.int().min(1)
/** End of the window in epoch milliseconds; 0: there is none, or nothing is known of it yet. */
const until = count
/** A keeper asks for what it needs for its next call. */
export const shareAsk = z.object({
  type: z.literal('share.ask'),
  number,
  until,
  /** What it has spent, and reserved for open calls, in that window. */
  used: amounts,
  /** What it needs on top: at least, and for the whole call. */
  least: amounts,
  most: amounts,
  ...letter,
})
export type ShareAsk = z.infer<typeof shareAsk>
/** A keeper tells what it has used in a window, and gives back the rest. */
export const shareSettle = z.object({
  type: z.literal('share.settle'),
  number,
  until,
  used: amounts,
  /** It will say nothing more. */
  final: z.boolean(),
  ...letter,
})
/** To a keeper: what it may use in this window altogether, of what is limited. `number`: that of its message. */
export const shareGiven = z.object({ type: z.literal('share.given'), number, until, given: limits, ...letter })
/** To a keeper: there is nothing more, and nothing comes. */
export const shareRefused = z.object({
  type: z.literal('share.refused'),
  number,
  until,
  dimension: z.enum(dimensions),
  limit: count,
  ...letter,
})

// ---------------------------------------------------------------------------------------------- crew ↔ escalation

/** What an escalation is started with: a budget that is spent, and whoever could not pay. */
export const escalationInput = z.object({
  self: address,
  crew: address,
  run: z.string(),
  agent: z.string(),
  account: z.string(),
  dimension: z.enum(dimensions),
  limit: count,
  waitMs: z.int().min(1),
})
export type EscalationInput = z.infer<typeof escalationInput>
/** What a person said to it, or that nobody did in time. */
export const budgetDecided = z.object({
  type: z.literal('budget.decided'),
  account: z.string(),
  dimension: z.enum(dimensions),
  raised: z.boolean(),
  /** Absent: as much as it had, once more. */
  limits: limits.optional(),
  reason: z.string(),
})

// ---------------------------------------------------------------------------------------------- agent ↔ loop detector

/** What a loop detector is started with. */
export const loopInput = z.object({ self: address })
export type LoopInput = z.infer<typeof loopInput>
/** A call that an agent is about to make. */
const loopCall = z.object({
  index: count,
  /** As in its verdict. */
  call: z.string(),
  /** Whom it asks; null for a tool. */
  agent: z.string().nullable(),
})
export type LoopCall = z.infer<typeof loopCall>
/** Asks before the calls of a round are made, and tells what those of the round before have brought. */
export const loopCheck = z.object({
  type: z.literal('loop.check'),
  replyTo: address,
  conversation: z.string(),
  /** How often the user has spoken. */
  turn: count,
  /** What was learned, of calls that count: each with its result as a hash, empty for one that was not made. */
  learned: z.array(z.object({ call: z.string(), result: z.string() })),
  calls: z.array(loopCall),
  /** Agents that wait for each other, the one that asks last. */
  trail: z.array(z.string()),
  loops,
})
export type LoopCheck = z.infer<typeof loopCheck>
const loopRung = z.enum(['pass', 'warn', 'block', 'stop'])
export type LoopRung = z.infer<typeof loopRung>
/** What may be done. */
export const loopVerdict = z.object({
  type: z.literal('loop.verdict'),
  rung: loopRung,
  /** What the model is told, or why it ends; empty for `pass`. */
  text: z.string(),
  /** Calls that are not to be made. */
  refused: z.array(z.object({ index: count, message: z.string() })),
})
export type LoopVerdict = z.infer<typeof loopVerdict>

// ---------------------------------------------------------------------------------------------- agent ↔ model router

/** What a model router is started with. */
export const routerInput = z.object({ self: address })
export type RouterInput = z.infer<typeof routerInput>
/** Asks whom to try next, and tells of the call that failed last in this round, or that nobody would take. */
export const routeAsk = z.object({
  type: z.literal('route.ask'),
  replyTo: address,
  /** Another one for each round of an agent. */
  round: z.string(),
  /** Deployments in the order in which they are to be tried, by groups of those that are as good as each other. */
  groups: z.array(z.array(z.string()).min(1)).min(1),
  attempts: z.int().min(1),
  /** Null: none would take it. */
  failure: z.object({ deployment: z.string(), kind: failureKind, retryAfterMs: count.nullable() }).nullable(),
  /** Wait before one that has failed is tried again. */
  delayMs: count,
  /** Those that would not take it. */
  skipped: z.array(skipped),
})
export type RouteAsk = z.infer<typeof routeAsk>
/** To be tried now, the first that admits it; `tries` calls have failed in this round. */
export const routeNext = z.object({
  type: z.literal('route.next'),
  deployments: z.array(z.string()).min(1),
  tries: count,
})
/** No other try would do better. */
export const routeEnded = z.object({ type: z.literal('route.ended') })
export type RouteAnswer = z.infer<typeof routeNext> | z.infer<typeof routeEnded>

// ---------------------------------------------------------------------------------------------- ports ↔ circuit breaker

/** When a breaker opens, and for how long. */
export const breakerSettings = z.object({
  /** Failures in a row that open it. */
  failures: z.int().min(1),
  /** Share of the calls of a window above which it opens, when there were `minCalls` or more. */
  rate: z.number().min(0).max(1),
  minCalls: z.int().min(1),
  windowMs: z.int().min(1),
  /** How long nobody may call. */
  cooldownMs: z.int().min(1),
  /** How long one probe is waited for. */
  probeMs: z.int().min(1),
})
export type BreakerSettings = z.infer<typeof breakerSettings>
/** What a circuit breaker is started with. `target`: a deployment, or a server of tools. */
export const breakerInput = z.object({ self: z.string(), target: z.string(), settings: breakerSettings })
export type BreakerInput = z.infer<typeof breakerInput>
/** Whether whoever asks has others: he has, they would not do it either, or there are none. */
export type PermitNeed = 'choice' | 'last' | 'only'
/** May this call be made now? `at`: epoch milliseconds. */
export const permitAsk = z.object({
  type: z.literal('permit.ask'),
  replyTo: z.string(),
  call: z.string(),
  at: count,
  need: z.enum(['choice', 'last', 'only']),
})
export const permitGranted = z.object({ type: z.literal('permit.granted'), probe: z.boolean() })
export const permitRefused = z.object({
  type: z.literal('permit.refused'),
  reason: skipped.shape.reason,
  waitMs: count,
})
export type PermitAnswer = z.infer<typeof permitGranted> | z.infer<typeof permitRefused>
/** What came of a call that was permitted: an answer, be it a refusal; no answer; or it was not made to its end. */
export const permitDone = z.object({
  type: z.literal('permit.done'),
  call: z.string(),
  at: count,
  verdict: z.enum(['answered', 'failed', 'none']),
  /** How long others are to leave it alone, because it asked for that, or is at fault. */
  cooling: z.object({ ms: count, why: z.enum(['asked', 'fault']) }).nullable(),
  /** Calls that were permitted and are not done, without this one. */
  underWay: count,
})
/** What of a breaker outlives its process, and others are told of. */
export const storedBreaker = z.object({
  state: z.enum(['closed', 'open', 'halfOpen']),
  /** Nobody may call before that. */
  until: count,
  /** The call that is to find out, and how long it is waited for. */
  probe: z.object({ call: z.string(), until: count }).nullable(),
  cooling: z.object({ until: count, why: z.enum(['asked', 'fault']) }).nullable(),
})
export type StoredBreaker = z.infer<typeof storedBreaker>
/** What is stored, by this process or another. */
export const breakerTold = storedBreaker.extend({ type: z.literal('breaker.told') })

// ---------------------------------------------------------------------------------------------- shard, log

/** To `shard/actors`, in the commit in which it failed: an actor goes on from before the message that it failed over. */
export const actorResume = z.object({ type: z.literal('actor.resume'), address })
/** To an actor that was resumed: its timers are gone, and so are its effects and whoever it had started. */
export const actorResumed = z.object({ type: z.literal('actor.resumed') })
/** To `shard/actors`: starts an actor; the sender supervises it. */
export const actorStart = z.object({
  type: z.literal('actor.start'),
  /** Of a user's machine `machine:<name>`. */
  kind: z.string(),
  name: z.string(),
  input: z.unknown(),
})
export const actorStop = z.object({ type: z.literal('actor.stop'), address })
/** From the shard to the supervisor. */
export const actorFailed = z.object({
  type: z.literal('actor.failed'),
  address,
  code,
  reason: z.string(),
  /** Epoch milliseconds. */
  at: count,
  /** It may go on from before the message that it failed over: it ran, and nothing that it said was lost. */
  resumable: z.boolean(),
})
/** To `shard/runs`. */
export const runQueued = z.object({ type: z.literal('run.queued'), run: z.string() })
export const runStarted = z.object({ type: z.literal('run.started'), run: z.string(), conversation: z.string() })
/** Its lead has begun anew, in another conversation. */
export const runRestarted = z.object({ type: z.literal('run.restarted'), run: z.string(), conversation: z.string() })
export const runFinished = z.object({
  type: z.literal('run.finished'),
  run: z.string(),
  conversation: z.string().nullable(),
  code: code.nullable(),
  reason: z.string(),
  finish: z.string(),
  rounds: count,
  spent: amounts,
})
/** To `log/<conversation>`: appends values of an envelope, a user message, or all of another conversation, which goes. */
export const logAppend = z.object({
  type: z.literal('log.append'),
  values: z.array(count).optional(),
  /** The commit that has these values. @default this one */
  sequence: count.optional(),
  user: z.string().optional(),
  /** What a user's machine has answered: text, or JSON text and the value itself. */
  said: z.object({ content: z.string(), parsed: z.unknown().optional() }).optional(),
  all: z.string().optional(),
  /** Another conversation, which stays as it is; with `first` only so many of its first messages. */
  copy: z.string().optional(),
  first: count.optional(),
  /** What was staged of a call in another conversation: as an assistant's message, or as a user's that says whose it is. */
  answer: z.object({ of: z.string(), index: count, role: z.enum(['user', 'assistant']), agent: z.string() }).optional(),
})
export type LogAppend = z.infer<typeof logAppend>
/** To `log/<conversation>`: keeps the result of a call until the round is sealed. */
export const logStage = z.object({
  type: z.literal('log.stage'),
  index: count,
  callId: z.string(),
  /** The content: a value of the envelope, a text, or the last message of another conversation. */
  value: count.optional(),
  text: z.string().optional(),
  answerOf: z.string().optional(),
  /** Only if the call has no result yet. */
  unless: z.literal('staged').optional(),
})
export type LogStage = z.infer<typeof logStage>
/** To `log/<conversation>`: appends what was staged, in the order of the calls. */
export const logSeal = z.object({ type: z.literal('log.seal') })
/** To `log/<conversation>`: what is staged will not be read again. */
export const logClear = z.object({ type: z.literal('log.clear') })
/** To `log/<conversation>`: nobody will read it again. */
export const logDrop = z.object({ type: z.literal('log.drop') })

// ---------------------------------------------------------------------------------------------- unions

/** Messages that an outcome of a port may become, by type; the edge checks each against its schema. */
export const outcomes = {
  'model.replied': modelReplied,
  'model.failed': modelFailed,
  'model.refused': modelRefused,
  'round.prepared': roundPrepared,
  'round.stopped': roundStopped,
  'round.failed': roundFailed,
  'tool.succeeded': toolSucceeded,
  'tool.failed': toolFailed,
  'tool.verified': toolVerified,
  'human.answered': humanAnswered,
  'effect.interrupted': effectInterrupted,
  'effect.crashed': effectCrashed,
} as const

/** Messages that people and programs outside may send to a crew. */
export const commands = {
  'crew.task': crewTask,
  'crew.pause': crewPause,
  'crew.resume': crewResume,
  'crew.cancel': crewCancel,
  'crew.steer': crewSteer,
  'crew.raise': crewRaise,
} as const

type M<T extends z.ZodType> = z.output<T>

/** What an agent takes. */
export type AgentMessage =
  | M<typeof budgetGranted>
  | M<typeof budgetRefused>
  | M<typeof budgetRaised>
  | M<typeof modelReplied>
  | M<typeof modelFailed>
  | M<typeof modelRefused>
  | M<typeof roundPrepared>
  | M<typeof roundStopped>
  | M<typeof roundFailed>
  | M<typeof effectInterrupted>
  | M<typeof effectCrashed>
  | M<typeof loopVerdict>
  | M<typeof routeNext>
  | M<typeof routeEnded>
  | M<typeof toolFinished>
  | M<typeof delegateFinished>
  | M<typeof runPause>
  | M<typeof runResume>
  | M<typeof runCancel>
  | M<typeof runSteer>
  | M<typeof agentRedefined>
  | M<typeof actorFailed>
  | M<typeof actorResumed>

/** What a tool executor takes. */
export type ToolMessage =
  | M<typeof toolSucceeded>
  | M<typeof toolFailed>
  | M<typeof toolVerified>
  | M<typeof humanAnswered>
  | M<typeof effectInterrupted>
  | M<typeof effectCrashed>
  | M<typeof toolCancel>

/** What a budget keeper takes. */
export type BudgetMessage =
  | M<typeof budgetOpen>
  | M<typeof budgetReserve>
  | M<typeof budgetCharge>
  | M<typeof budgetSettle>
  | M<typeof budgetRelease>
  | M<typeof budgetRaise>
  | M<typeof budgetClose>
  | M<typeof budgetRefund>
  | M<typeof budgetWithdraw>
  | M<typeof budgetReport>
  | M<typeof shareGiven>
  | M<typeof shareRefused>
  | M<typeof mailReturned>
  | M<typeof actorResumed>

/** What a budget pool takes. */
export type PoolMessage =
  | M<typeof shareAsk>
  | M<typeof shareSettle>
  | M<typeof mailReturned>
  | M<typeof crewRaise>
  | { readonly type: 'crew.redefined'; readonly crew: { readonly pool: PoolData } }
  | M<typeof actorResumed>

/** What a loop detector takes. */
export type LoopMessage = M<typeof loopCheck>

/** What a model router takes. */
export type RouterMessage = M<typeof routeAsk>

/** What a circuit breaker takes. */
export type BreakerMessage = M<typeof permitAsk> | M<typeof permitDone> | M<typeof breakerTold>

/** What a flow takes. */
export type FlowMessage = M<typeof delegateFinished> | M<typeof runCancel>

/** What an escalation takes. */
export type EscalationMessage = M<typeof humanAnswered>

/** What an envoy takes. */
export type EnvoyMessage = M<typeof delegateAnswered> | M<typeof mailReturned> | M<typeof runCancel>

/** What a crew takes. */
export type CrewMessage =
  | M<typeof crewTask>
  | M<typeof crewPause>
  | M<typeof crewResume>
  | M<typeof crewCancel>
  | M<typeof crewSteer>
  | M<typeof crewRaise>
  | M<typeof crewRedefined>
  | M<typeof delegateTask>
  | M<typeof delegateRevoke>
  | M<typeof agentFinished>
  | M<typeof agentExhausted>
  | M<typeof delegateCall>
  | M<typeof delegateCancel>
  | M<typeof budgetClosed>
  | M<typeof budgetDecided>
  | M<typeof actorFailed>
