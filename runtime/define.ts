/**
 * What users write: tools, agents, crews.
 *
 * Owns: the definitions, their defaults and their checks (`CREW_INVALID`), and the data form of a crew.
 * Does not own: running them.
 *
 * - DF1 A definition is frozen data plus the user's functions; making one does no I/O and reads no environment.
 * - DF2 Nonsense is refused here, by name, before anything starts.
 */
import { z } from 'zod'
import { defaultLoops, type Loops, type PoolData } from '../machines/index.js'
import { type Budget, budgetFields, crewBudget, defaultAskMs, isShared, ms } from './budget.js'
import { delegateName, handoffName, isAddress } from './called-names.js'
import { type FlowMachine, type FlowMachineOutput, isFlowMachine, type MachineDefinition } from './define-machine.js'
import { type Flow, isFlow, type Parallel, type Step, type Supervisor } from './flow.js'
import { checkHandoffs, leadsOf, ledBy, supervisedBy } from './led-by.js'
import { TroupeError } from './errors.js'
import { modelShape, settingsShape } from './model-shape.js'
import type { ModelSettings, Price } from './ports.js'
import type { RoundChanges, RoundContext } from './prepare-round.js'
import { conditionsOf, type StopCondition, stopShape } from './stop-condition.js'
import { type Supervision, supervisionShape } from './supervision.js'

/** What a tool may assume about reruns. */
export type EffectClass = 'pure' | 'idempotent' | 'once'

/** Logger that a tool gets: lines go to the runtime's log with run, agent and call. */
export interface ToolLog {
  debug(message: string, data?: object): void
  info(message: string, data?: object): void
  warn(message: string, data?: object): void
  error(message: string, data?: object): void
}

/** The second argument of a tool's `run` and `verify`. */
export interface ToolContext<Deps = unknown, Data = unknown> {
  /** Live objects given to `createRuntime({ deps })`; never journalled. */
  readonly deps: Deps
  /** JSON given to `start(…, { data })`; journalled. */
  readonly data: Data
  readonly runId: string
  /** Name of the agent that asked. */
  readonly agent: string
  /** Id of the call in the conversation. */
  readonly callId: string
  /** The same on every try of this call, over restarts and failover; pass it on to what you call. */
  readonly idempotencyKey: string
  /** Aborts on timeout, cancel and shutdown. */
  readonly signal: AbortSignal
  /** Shows progress to whoever watches the run; best effort. */
  readonly progress: (value: unknown) => void
  readonly log: ToolLog
}

/** What an approval predicate gets beside the arguments. */
export interface ApprovalContext<Data = unknown> {
  readonly agent: string
  readonly runId: string
  /** The run's `data`. */
  readonly data: Data
}

/** A tool as `defineTool` takes it. */
export interface ToolOptions<Input extends z.ZodType = z.ZodType, Deps = unknown, Data = unknown> {
  /** `^[A-Za-z0-9_-]{1,64}$`: what models accept. */
  readonly name: string
  readonly description: string
  /** Arguments, as a zod object. What does not fit is told to the model. */
  readonly input: Input
  /**
   * `pure` may rerun at will, `idempotent` reruns with the same key, `once` is dispatched at most once.
   * @default 'once'
   */
  readonly effect?: EffectClass
  /**
   * What to do with a `once` call whose outcome was lost: tell the model, or ask `verify`.
   * @default 'tell', or 'verify' when `verify` is given
   */
  readonly onUnknown?: 'tell' | 'verify'
  /** For `onUnknown: 'verify'`: did the call happen? `done: null` = cannot say. Runs with the call's own arguments and key. */
  readonly verify?: (
    input: z.output<Input>,
    context: ToolContext<Deps, Data>,
  ) => Promise<{ done: true; result: unknown } | { done: false } | { done: null }>
  /** Bound of one execution. @default 60_000 */
  readonly timeoutMs?: number
  /** Further tries after a failure or a timeout of a `pure` or `idempotent` tool. @default 2 */
  readonly retries?: number
  /** Executions of this tool at once in one crew. @default 16 */
  readonly concurrency?: number
  /**
   * It is asked the same again until something happens: its calls count as no repetition.
   * @default false
   */
  readonly polling?: boolean
  /**
   * Name of the server that it speaks to, `^[A-Za-z0-9_-]{1,64}$`. Tools of one server share its circuit breaker: after many
   * calls that threw or timed out none is made for a while, and the model is told so.
   * @default none: it is always called
   */
  readonly server?: string
  /**
   * Ask a person before a call is made: always, or when this says so. It is asked once a call, outside of commits; when it
   * throws, a person is asked. Until somebody answers (`approve`, `deny`) the agent waits, over restarts too.
   * @default false
   */
  readonly approval?: boolean | ((input: z.output<Input>, context: ApprovalContext<Data>) => boolean | Promise<boolean>)
  /** How long an approval is waited for; then the model is told that the call was not made. @default 7 days */
  readonly approvalMs?: number
  /** Bytes of output kept for the model; more is cut with a note. @default 1_048_576 */
  readonly maxBytes?: number
  /**
   * Over NATS the calls go to tool workers (`troupe worker FILE --tools-only`), never to the worker that runs the crew;
   * `concurrency` counts in each of them. Without NATS it makes no difference: the tool runs in this process. One name
   * means one remote tool in a namespace.
   * @default false
   */
  readonly remote?: boolean
  /** The work. What it returns is told to the model: a string as it is, anything else as JSON. */
  readonly run: (input: z.output<Input>, context: ToolContext<Deps, Data>) => unknown
}

/** A checked tool with its defaults filled in. */
export interface Tool<Input extends z.ZodType = z.ZodType, Deps = unknown, Data = unknown>
  extends Required<Omit<ToolOptions<Input, Deps, Data>, 'verify' | 'server'>> {
  readonly kind: 'tool'
  readonly server: string | undefined
  /** Its calls are questions to a person. */
  readonly question?: true
  readonly verify: ToolOptions<Input, Deps, Data>['verify'] | undefined
}

// A tool of any input: method parameters of `run` are contravariant, so the general form takes `never`.
/** Any tool, whatever its input. */
export type AnyTool = Omit<Tool, 'run' | 'verify' | 'approval'> & {
  readonly approval: boolean | ((input: never, context: never) => unknown)
  readonly run: (input: never, context: never) => unknown
  readonly verify: ((input: never, context: never) => Promise<unknown>) | undefined
}

/** What an `instructions` function sees. */
export interface InstructionsContext {
  readonly agent: string
  /** The run's `data`. */
  readonly data: unknown
  /** The task as text. */
  readonly input: string
}

/** A message of a conversation, as a model is sent it. */
export interface HistoryMessage {
  readonly role: string
  readonly [field: string]: unknown
}

/** Whom a task may be handed over to, and what of the conversation that one is shown. */
export interface HandoffOptions {
  readonly agent: string
  /**
   * Those of the messages that the next agent is to see, of those that this one sees; results of calls go with their
   * calls. System messages are not handed over: each agent has its own instructions. The reply that hands over, and what
   * belongs to it, is always shown. Called once, outside the commit, and what it decides is recorded.
   * @default all
   */
  readonly history?: (messages: readonly HistoryMessage[]) => readonly HistoryMessage[]
}

/** An agent as `defineAgent` takes it. */
export interface AgentOptions<Output extends z.ZodType | undefined = z.ZodType | undefined> {
  /** Only needed for an agent that runs alone; in a crew its key is its name. */
  readonly name?: string
  /** Told to agents that may delegate to this one. */
  readonly description?: string
  /**
   * `<provider>:<model>`, or a list in order of preference. A list in the list is a group of deployments that are as good as
   * each other: the one with the fewest calls under way is asked, and the rest of its group before the next in the list.
   */
  readonly model: string | readonly (string | readonly string[])[]
  /** The system message. A function is called once per task, outside the commit, and its text recorded. */
  readonly instructions: string | ((context: InstructionsContext) => string | Promise<string>)
  readonly tools?: readonly AnyTool[]
  /** Agents that this one may call as tools: names of the crew's own, addresses (`<crew id>/agent/<name>`) of those of other crews. */
  readonly delegates?: readonly string[]
  /**
   * Agents of the crew to whom this one may hand its task over, each by a tool `transfer_to_<agent>`: that one goes on with
   * the conversation and gives the answer, this one ends. All who hand over to each other answer alike: none has an `output`,
   * or all have the same.
   */
  readonly handoffs?: readonly (string | HandoffOptions)[]
  /**
   * Give it a tool, `ask_person`, by which it asks its user a question and waits for the answer (`runtime.answer`).
   * @default false
   */
  readonly questions?: boolean
  /** The answer must be JSON of this shape; what does not fit is sent back with the reason, at most twice. */
  readonly output?: Output
  readonly settings?: ModelSettings
  readonly budget?: Omit<Budget, 'per' | 'from'>
  readonly limits?: {
    /** Model calls in one task, retries not counted. @default 20 */
    readonly rounds?: number
    /** Tries of one model call; each deployment beside the first gives one more. @default 4 */
    readonly attempts?: number
    /** Tool calls taken from one reply; the rest are told to be too many. @default 64 */
    readonly callsPerRound?: number
    /**
     * What becomes of an agent that repeats itself, by the number of rounds in a row whose calls all brought what they had
     * brought before: at `warn` the model is told, at `block` such calls are refused, at `stop` its task ends with
     * `LOOP_DETECTED`. A call that brings something new takes half a round back. `false`: nobody looks.
     * @default { warn: 2, block: 3, stop: 4 }
     */
    readonly loops?: false | { readonly warn?: number; readonly block?: number; readonly stop?: number }
    /** How long `prepareRound`, and `stopWhen`, may take for a round, in milliseconds. @default 60_000 */
    readonly prepareMs?: number
  }
  /**
   * Called before each round: which model, tools, settings, instructions and messages it is to have, where that is not the
   * usual. It runs outside of commits, and again when a process ended over it; what it says is journalled.
   * @default every round is alike
   */
  readonly prepareRound?: (context: RoundContext) => RoundChanges | undefined | Promise<RoundChanges | undefined>
  /**
   * When it makes no further round: a condition, or some of which one is enough. They are asked before each round but the
   * first, with all results there. Its answer is then the result of the call that a condition is about (`calledTool`), else
   * what it said last in this task; the run's `finishReason` is `stopped`. An answer that does not fit `output` is
   * `OUTPUT_INVALID`. `limits.rounds` is not a stop: it fails.
   * @default none
   */
  readonly stopWhen?: StopCondition | readonly StopCondition[]
  /** Keep the conversation from run to run. @default false */
  readonly continue?: boolean
  /** What becomes of its task when its actor fails. @default the crew's */
  readonly supervision?: Supervision
}

/** A checked agent with its defaults filled in. */
export interface Agent<Output = unknown> {
  readonly kind: 'agent'
  readonly name: string | undefined
  readonly description: string
  /** Every deployment, in order of preference. */
  readonly models: readonly string[]
  /** The same, by groups. */
  readonly groups: readonly (readonly string[])[]
  readonly instructions: AgentOptions['instructions']
  readonly tools: readonly AnyTool[]
  readonly delegates: readonly string[]
  readonly handoffs: readonly HandoffOptions[]
  readonly output: z.ZodType<Output> | undefined
  readonly settings: ModelSettings
  readonly budget: Omit<Budget, 'per' | 'from'> | undefined
  readonly limits: {
    readonly rounds: number
    readonly attempts: number
    readonly callsPerRound: number
    /** Null: it may repeat itself. */
    readonly loops: Loops | null
    readonly prepareMs: number
  }
  readonly prepareRound: AgentOptions['prepareRound']
  readonly stopWhen: readonly StopCondition[]
  readonly continue: boolean
  readonly supervision: Supervision | undefined
}

/** What an agent answers with: text, or its `output` schema's type. */
export type AgentOutput<O extends z.ZodType | undefined> = O extends z.ZodType ? z.output<O> : string

/** A crew as `defineCrew` takes it. */
export interface CrewOptions<Agents extends Record<string, Agent<unknown>>, Lead extends keyof Agents & string> {
  /** `^[A-Za-z0-9_-]{1,64}$`. */
  readonly name: string
  readonly agents: Agents
  /** The agent that gets the task and whose answer is the crew's. */
  readonly lead: Lead
  readonly flow?: undefined
  readonly budget?: Budget
  readonly limits?: {
    /** Delegations at work at once; the rest wait. @default 16 */
    readonly delegates?: number
    /** How deep delegations may nest. @default 8 */
    readonly depth?: number
    /** How long the answer of another crew is waited for, in milliseconds. @default 3_600_000 */
    readonly answerMs?: number
    /** Tool executions at once. @default 64 */
    readonly toolConcurrency?: number
  }
  /** What becomes of an agent that fails and says nothing of its own. @default its task ends */
  readonly supervision?: Supervision
  /** Fewest output tokens a model call is worth making for. @default 256 */
  readonly minOutputTokens?: number
  /** Price of models that the price table does not know: worst case, never free. @default 15 $ and 75 $ a million tokens */
  readonly unknownPrice?: Price
  /** A version of your own code, for information. */
  readonly version?: string
}

/** A crew whose agents work in an order of its own, as `defineCrew` takes it. */
export interface FlowCrewOptions<Agents extends Record<string, Agent<unknown>>, Last extends Step>
  extends Omit<CrewOptions<Agents, keyof Agents & string>, 'lead' | 'flow'> {
  /** In the place of a lead: which agents get the task, in what order. */
  readonly flow: Flow<Last> | (Last & Parallel) | Supervisor<Last & string>
  readonly lead?: undefined
}

/** A crew that a machine of the user's leads, as `defineCrew` takes it. */
export interface MachineFlowOptions<Agents extends Record<string, Agent<unknown>>, Machine extends FlowMachine>
  extends Omit<CrewOptions<Agents, keyof Agents & string>, 'lead' | 'flow'> {
  /**
   * In the place of a lead: an XState machine, started with `{ task, data }` as its input. It has agents work by `callAgent`;
   * its output is the run's, and what it fails over ends the run.
   */
  readonly flow: Machine
  readonly lead?: undefined
}

type OutputOf<Found> = Found extends Agent<infer Output> ? Output : never
/** What a flow answers: what its last agent does; of several an object by their names, or whoever was first. */
export type FlowOutput<Agents, Last extends Step> =
  Last extends Parallel<infer Name, infer Join>
    ? Join extends 'first'
      ? AnswerOf<Agents, Name>
      : { readonly [Each in Name]: AnswerOf<Agents, Each> }
    : Last extends string
      ? AnswerOf<Agents, Last>
      : unknown
type AnswerOf<Agents, Name> = Name extends keyof Agents ? OutputOf<Agents[Name]> : unknown

/** A machine of a user's as the definition of a crew names it. */
export interface MachineIdentity {
  readonly kind: string
  readonly version: string
  /** Hash of what is data of its states and transitions. */
  readonly shape: string
  readonly promises: Readonly<Record<string, string>>
}

/** A checked crew. */
export interface Crew<Output = unknown> {
  readonly kind: 'crew'
  readonly name: string
  readonly agents: Readonly<Record<string, Agent<unknown>>>
  /** Empty for a crew whose flow has stages. */
  readonly lead: string
  readonly flow: Flow | undefined
  /** The machine of a user's that leads its runs. */
  readonly flowMachine?: MachineDefinition
  readonly budget: Budget
  readonly limits: {
    readonly delegates: number
    readonly depth: number
    readonly answerMs: number
    readonly toolConcurrency: number
  }
  readonly supervision: Supervision | undefined
  readonly minOutputTokens: number
  readonly unknownPrice: Price
  readonly version: string | undefined
  /** Of a crew that is one machine: its identity as data. */
  readonly machine?: MachineIdentity
  /** Of a budget that crews share, which is a crew without agents. */
  readonly pool?: PoolData
  /** Type of the lead's answer; never present at run time. */
  readonly _output?: Output
}

/** Thrown by a tool to tell the model something in the tool's own words. Never retried. */
export class ToolError extends Error {
  override readonly name = 'ToolError'
}

/** Model calls in one task. */
const defaultRounds = 20
const namePattern = /^[A-Za-z0-9_-]{1,64}$/
/** An agent of another crew. */
const addressPattern = /^[A-Za-z0-9_-]{1,64}\/agent\/[A-Za-z0-9_-]{1,64}$/

const count = z.int().min(0).max(1_000_000)

const rung = z.int().min(1).max(100_000).optional()

const toolShape = z.strictObject({
  name: z.string().regex(namePattern),
  description: z.string().max(4_096),
  input: z.custom<z.ZodType>(isSchema, 'a zod schema'),
  effect: z.enum(['pure', 'idempotent', 'once']).default('once'),
  onUnknown: z.enum(['tell', 'verify']).optional(),
  verify: z.custom<AnyTool['verify']>((value) => typeof value === 'function', 'a function').optional(),
  timeoutMs: ms.default(60_000),
  retries: count.default(2),
  concurrency: z.int().min(1).max(10_000).default(16),
  maxBytes: z
    .int()
    .min(256)
    .max(16 * 1_048_576)
    .default(1_048_576),
  approval: z
    .union([z.boolean(), z.custom<(input: never) => boolean>((value) => typeof value === 'function', 'a function')])
    .default(false),
  approvalMs: ms.default(defaultAskMs),
  remote: z.boolean().default(false),
  polling: z.boolean().default(false),
  server: z.string().regex(namePattern).optional(),
  run: z.custom<AnyTool['run']>((value) => typeof value === 'function', 'a function'),
})

const agentShape = z.strictObject({
  name: z.string().regex(namePattern).optional(),
  description: z.string().max(4_096).default(''),
  model: modelShape,
  instructions: z.union([
    z.string().max(262_144),
    z.custom<(context: InstructionsContext) => string>((value) => typeof value === 'function', 'text or a function'),
  ]),
  tools: z.array(z.custom<AnyTool>((value) => hasKind(value, 'tool'), 'a tool of defineTool')).default([]),
  delegates: z.array(z.union([z.string().regex(namePattern), z.string().regex(addressPattern)])).default([]),
  handoffs: z
    .array(
      z.union([
        z.string().regex(namePattern),
        z.strictObject({
          agent: z.string().regex(namePattern),
          history: z
            .custom<NonNullable<HandoffOptions['history']>>((value) => typeof value === 'function', 'a function')
            .optional(),
        }),
      ]),
    )
    .max(64)
    .default([]),
  questions: z.boolean().default(false),
  output: z.custom<z.ZodType>(isSchema, 'a zod schema').optional(),
  settings: settingsShape.default({}),
  budget: z.strictObject(budgetFields).optional(),
  limits: z
    .strictObject({
      rounds: z.int().min(1).max(100_000).optional(),
      attempts: z.int().min(1).max(100).optional(),
      callsPerRound: z.int().min(1).max(256).optional(),
      loops: z.union([z.literal(false), z.strictObject({ warn: rung, block: rung, stop: rung })]).optional(),
      prepareMs: ms.optional(),
    })
    .default({}),
  prepareRound: z.custom<AgentOptions['prepareRound']>((value) => typeof value === 'function', 'a function').optional(),
  stopWhen: stopShape.optional(),
  continue: z.boolean().default(false),
  supervision: supervisionShape.optional(),
})

const crewShape = z.strictObject({
  name: z.string().regex(namePattern),
  agents: z.record(z.string().regex(namePattern), z.custom<Agent>(isAgent, 'an agent of defineAgent')),
  lead: z.string().optional(),
  flow: z
    .custom<Flow | Parallel | Supervisor | FlowMachine>(
      (value) => isFlow(value) || isFlowMachine(value),
      'sequential(…), parallel(…), supervisor(…) or a machine',
    )
    .optional(),
  budget: crewBudget.default({}),
  limits: z
    .strictObject({
      delegates: z.int().min(1).max(256).optional(),
      depth: z.int().min(0).max(64).optional(),
      answerMs: ms.optional(),
      toolConcurrency: z.int().min(1).max(10_000).optional(),
    })
    .default({}),
  supervision: supervisionShape.optional(),
  minOutputTokens: z.int().min(1).default(256),
  unknownPrice: z
    .strictObject({ input: z.int().min(0), output: z.int().min(0) })
    .default({ input: 15_000_000, output: 75_000_000 }),
  version: z.string().max(256).optional(),
})

/** A schema of zod 4, of this or another copy of zod: a crew file may bring its own. */
function isSchema(value: unknown): boolean {
  return typeof value === 'object' && value !== null && '_zod' in value
}

/** Made by `defineAgent`, of this or another copy of the package: a kind alone does not make one. */
function isAgent(value: unknown): boolean {
  return (
    hasKind(value, 'agent') &&
    ['groups', 'tools', 'delegates', 'handoffs', 'limits', 'stopWhen'].every((field) => field in (value as object))
  )
}

function isCrew(value: unknown): boolean {
  if (!hasKind(value, 'crew')) return false
  if (isShared(value)) return true
  const { name, agents, lead, flow, flowMachine, limits } = value as Partial<Crew>
  const whole = typeof name === 'string' && typeof lead === 'string' && limits !== undefined
  return (
    whole &&
    typeof agents === 'object' &&
    agents !== null &&
    (isFlow(flow) || flowMachine !== undefined || isAgent(agents[lead]))
  )
}

function hasKind(value: unknown, kind: string): boolean {
  return typeof value === 'object' && value !== null && 'kind' in value && value.kind === kind
}

function check<T extends z.ZodType>(shape: T, value: unknown, what: string): z.output<T> {
  const result = shape.safeParse(value)
  if (result.success) return result.data
  const [issue] = result.error.issues
  const path = issue?.path.map(String).join('.') ?? ''
  throw new TroupeError('CREW_INVALID', `${what}${path === '' ? '' : `: ${path}`}: ${issue?.message ?? 'invalid'}`, {
    details: { path },
  })
}

/**
 * Defines a tool.
 * @throws TroupeError `CREW_INVALID` for a bad name, a missing schema, `verify` without a function.
 */
export function defineTool<Input extends z.ZodType, Deps = unknown, Data = unknown>(
  options: ToolOptions<Input, Deps, Data>,
): Tool<Input, Deps, Data> {
  const data = check(toolShape, options, `tool ${describe(options)}`)
  const onUnknown = data.onUnknown ?? (data.verify === undefined ? 'tell' : 'verify')
  if (onUnknown === 'verify' && data.verify === undefined) {
    throw new TroupeError('CREW_INVALID', `tool ${data.name}: onUnknown 'verify' needs a verify function`)
  }
  return Object.freeze({
    ...data,
    kind: 'tool',
    onUnknown,
    verify: data.verify,
    server: data.server,
  }) as unknown as Tool<Input, Deps, Data>
}

/**
 * Defines an agent.
 * @throws TroupeError `CREW_INVALID` for a bad model name, two tools of one name, a tool named like a delegate.
 */
export function defineAgent<const Output extends z.ZodType | undefined = undefined>(
  options: AgentOptions<Output>,
): Agent<AgentOutput<Output>> {
  const data = check(agentShape, options, `agent ${describe(options)}`)
  const tools = data.questions ? [...data.tools, askPerson] : data.tools
  const handoffs = data.handoffs.map((each) => (typeof each === 'string' ? { agent: each } : each)) as HandoffOptions[]
  const names = [
    ...tools.map((tool) => tool.name),
    ...data.delegates.map(delegateName),
    ...handoffs.map(({ agent }) => handoffName(agent)),
  ]
  const twice = names.find((name, index) => names.indexOf(name) !== index)
  if (twice !== undefined) throw new TroupeError('CREW_INVALID', `agent ${describe(options)}: two tools named ${twice}`)
  const groups = [data.model].flat().map((each) => [each].flat())
  return Object.freeze({
    kind: 'agent',
    name: data.name,
    description: data.description,
    models: groups.flat(),
    groups,
    instructions: data.instructions,
    tools,
    delegates: data.delegates,
    handoffs,
    output: data.output,
    settings: data.settings as ModelSettings,
    budget: data.budget,
    limits: {
      rounds: data.limits.rounds ?? defaultRounds,
      attempts: data.limits.attempts ?? 4,
      callsPerRound: data.limits.callsPerRound ?? 64,
      loops: loopsOf(describe(options), data.limits.loops),
      prepareMs: data.limits.prepareMs ?? 60_000,
    },
    prepareRound: data.prepareRound,
    stopWhen: conditionsOf(data.stopWhen, data.limits.rounds ?? defaultRounds, describe(options)),
    continue: data.continue,
    supervision: data.supervision,
  }) as unknown as Agent<AgentOutput<Output>>
}

/** The tool of an agent with `questions`. It is never run: its result is what a person says. */
const askPerson: AnyTool = Object.freeze({
  ...defineTool({
    name: 'ask_person',
    description: 'Asks the user of this system a question and waits for the answer. Ask only what you cannot find out.',
    input: z.object({ question: z.string().min(1).max(8_192) }),
    effect: 'pure',
    run: () => '',
  }),
  question: true as const,
})

/**
 * Defines a crew, with a lead or a flow. Its output type is the lead's, or that of the flow's last step.
 * @throws TroupeError `CREW_INVALID` for a lead, delegate or step that is no agent of the crew.
 */
export function defineCrew<
  const Agents extends Record<string, Agent<unknown>>,
  const Lead extends keyof Agents & string,
>(options: CrewOptions<Agents, Lead>): Crew<OutputOf<Agents[Lead]>>
export function defineCrew<const Agents extends Record<string, Agent<unknown>>, const Last extends Step>(
  options: FlowCrewOptions<Agents, Last>,
): Crew<FlowOutput<Agents, Last>>
export function defineCrew<const Agents extends Record<string, Agent<unknown>>, const Machine extends FlowMachine>(
  options: MachineFlowOptions<Agents, Machine>,
): Crew<FlowMachineOutput<Machine>>
export function defineCrew(options: unknown): Crew<never> {
  const data = check(crewShape, options, `crew ${describe(options)}`)
  if ((data.lead === undefined) === (data.flow === undefined))
    throw new TroupeError('CREW_INVALID', `crew ${data.name}: either a lead or a flow`)
  const { supervisor, flow, machine } = ledBy(data.flow)
  const lead = data.lead ?? supervisor?.lead
  const what = data.lead === undefined ? 'flow' : 'lead'
  const unknown = leadsOf(lead, flow, machine).find((name) => data.agents[name] === undefined)
  if (unknown !== undefined)
    throw new TroupeError('CREW_INVALID', `crew ${data.name}: ${what} '${unknown}' is not one of its agents`)
  if (supervisor !== undefined) data.agents = supervisedBy(data.agents, supervisor)
  for (const [name, agent] of Object.entries(data.agents)) {
    const missing = agent.delegates.find((delegate) => !isAddress(delegate) && data.agents[delegate] === undefined)
    if (missing !== undefined) {
      throw new TroupeError(
        'CREW_INVALID',
        `crew ${data.name}: ${name} delegates to '${missing}', which is not one of its agents`,
      )
    }
  }
  checkHandoffs(data)
  return Object.freeze({
    kind: 'crew',
    name: data.name,
    agents: data.agents,
    lead: lead ?? '',
    flow,
    ...(machine === undefined ? {} : { flowMachine: machine }),
    budget: data.budget as Budget,
    limits: {
      delegates: data.limits.delegates ?? 16,
      depth: data.limits.depth ?? 8,
      answerMs: data.limits.answerMs ?? 3_600_000,
      toolConcurrency: data.limits.toolConcurrency ?? 64,
    },
    supervision: data.supervision as Supervision | undefined,
    minOutputTokens: data.minOutputTokens,
    unknownPrice: data.unknownPrice,
    version: data.version,
  })
}

function loopsOf(agent: string, wanted: z.output<typeof agentShape>['limits']['loops']): Loops | null {
  if (wanted === false) return null
  const { warn = defaultLoops.warn, block = defaultLoops.block, stop = defaultLoops.stop } = wanted ?? {}
  if (warn > block || block > stop)
    throw new TroupeError('CREW_INVALID', `agent ${agent}: limits.loops: first warn, then block, then stop`)
  return { warn, block, stop }
}

/** A crew of one from an agent; a crew stays what it is. @throws TroupeError `CREW_INVALID` for anything else. */
export function toCrew<Output>(definition: Crew<Output> | Agent<Output>, name?: string): Crew<Output> {
  if (isCrew(definition)) return definition as Crew<Output>
  if (!isAgent(definition)) {
    throw new TroupeError('CREW_INVALID', 'not a crew of defineCrew or an agent of defineAgent')
  }
  const agent = definition as Agent<Output>
  const known = alone.get(agent)
  const key = name ?? agent.name ?? 'agent'
  if (known?.name === key) return known as Crew<Output>
  const crew = defineCrew({ name: key, agents: { [key]: agent }, lead: key })
  alone.set(agent, crew)
  return crew
}

/** Crews of one, by their agent: the same agent is the same crew, so that it is prepared once. */
const alone = new WeakMap<object, Crew>()

function describe(options: unknown): string {
  return typeof options === 'object' && options !== null && 'name' in options && typeof options.name === 'string'
    ? options.name.slice(0, 64)
    : ''
}
