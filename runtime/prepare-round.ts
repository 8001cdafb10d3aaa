/**
 * Before a round: asks the agent's stop conditions and its `prepareRound`, and makes an outcome of what they say.
 *
 * Owns: what they are told, the check of what they bring, their time, the answer of an agent that is stopped.
 * Does not own: the forms of conditions (`stop-condition.ts`), what a plan makes of a request (`round-plan.ts`), when it is
 * asked (`machines/agent.ts`).
 *
 * - RND1 It runs as work for a port, never in a commit: interrupted, it runs again, and what counts is the outcome in the journal.
 * - RND2 Whatever the user's code does (throws, hangs, brings nonsense), the agent ends with `CALLBACK_FAILED` and the reason.
 * - RND3 Messages are shown or not, and said beside; a call and its results go together (HO1), and what was said is not rewritten.
 * - RND4 Conditions are asked before `prepareRound`, and never before a task's first round.
 */
import { z } from 'zod'
import type { RoundPlan, RoundPrepare } from '../machines/index.js'
import { canonicalJson, shortHash } from './codec.js'
import type { AgentOptions, HistoryMessage } from './define.js'
import type { LiveCrew } from './dispatcher.js'
import type { Outcome } from './edge.js'
import { TroupeError, toTroupeError } from './errors.js'
import { hiddenAmong, type Shown } from './handoff.js'
import { modelShape, settingsShape } from './model-shape.js'
import type { Clock, ModelSettings } from './ports.js'
import { estimateTokens, type PreparedAgent, systemMessage } from './prepared-crew.js'
import { cutBytes, redact } from './redact.js'
import { callable, messagesIn, plannedAgent } from './round-plan.js'
import type { RunCost } from './run.js'
import { firstStop, type RoundCall, type RoundUsage, type StopContext } from './stop-condition.js'
import { describeIssues, judgeOutput } from './verdict.js'

/** What `prepareRound` is told of the round that is about to begin. */
export interface RoundContext {
  readonly agent: string
  readonly runId: string
  /** Its number, from 1. */
  readonly round: number
  /** The conversation as the agent is shown it, without system messages. */
  readonly messages: readonly HistoryMessage[]
  /** By what names the model may call something: tools, delegates, hand-overs. */
  readonly tools: readonly string[]
  readonly usage: RoundUsage
  readonly cost: RunCost
  /** The run's `data`. */
  readonly data: unknown
  /** Live objects given to `createRuntime({ deps })`. */
  readonly deps: unknown
  /** Aborts on timeout, cancel and shutdown. */
  readonly signal: AbortSignal
}

/** How the round is to be. It holds for this round only, also for further tries of its call; what is left out is as usual. */
export interface RoundChanges {
  /** As in `defineAgent`; it need not be one of the agent's own. */
  readonly model?: AgentOptions['model']
  /** Those of the agent's own that the model is told of; none for an empty list. Calls of others are refused. */
  readonly tools?: readonly string[]
  /** On top of the agent's own. */
  readonly settings?: ModelSettings
  /** In the place of all system messages. */
  readonly instructions?: string
  /**
   * Those of the given messages that are sent, in their order; results go with their calls. Before them, or behind, may stand
   * new ones of `user` or `system`, as a summary of what is left out. The conversation itself stays what it is.
   */
  readonly messages?: readonly HistoryMessage[]
}

/** What a round is asked with. */
export interface RoundAsk {
  /** What of the conversation the agent is shown. */
  readonly shown: readonly Shown[]
  readonly data: unknown
  readonly clock: Clock
  readonly signal: AbortSignal
}

/** Bytes of what one round may bring beside its conversation. */
const maxBesideBytes = 1_048_576
const maxSettingsBytes = 65_536

const changesShape = z.strictObject({
  model: modelShape.optional(),
  tools: z.array(z.string()).optional(),
  settings: settingsShape.optional(),
  instructions: z.string().max(262_144).optional(),
  messages: z.array(z.custom<HistoryMessage>((value) => typeof value === 'object' && value !== null)).optional(),
})
const newMessage = z.strictObject({ role: z.enum(['user', 'system']), content: z.string() })

type Changes = z.output<typeof changesShape>

/** Asks an agent's conditions and its `prepareRound`. Never rejects. */
export async function prepareRound(call: RoundPrepare, live: LiveCrew, ask: RoundAsk): Promise<Outcome> {
  const agent = live.prepared.agents.get(call.agent)
  // Another definition has come meanwhile.
  if (agent === undefined) return failed('CREW_INVALID', `the crew has no agent ${call.agent} any more`)
  const messages = ask.shown.map(({ text }) => JSON.parse(text) as HistoryMessage)
  const { stopWhen, prepareRound: prepare, limits } = agent.agent
  const given = { ...factsOf(call, messages, ask), deps: live.deps }
  const within = <T>(what: string, work: (signal: AbortSignal) => T | Promise<T>): Promise<T> =>
    bounded(what, work, limits.prepareMs, ask)
  try {
    const stop =
      call.rounds === 0 || stopWhen.length === 0
        ? null
        : await within('stopWhen', (signal) => firstStop(stopWhen, { ...given, signal }))
    if (stop !== null) return await stopped(stop.name, stop.call?.result ?? lastText(messages, call.rounds), agent)
    if (prepare === undefined) return { body: { type: 'round.prepared', plan: {} }, values: [] }
    const { text: _, lastCalls: __, ...known } = given
    const context = { ...known, round: call.rounds + 1, tools: callable(agent) }
    const changes = await within('prepareRound', (signal) => prepare({ ...context, signal }))
    return planOf(checkedChanges(changes ?? {}), agent, live, { ...ask, messages, given: known.messages })
  } catch (error) {
    return failed('CALLBACK_FAILED', wordsOf(error))
  }
}

/** What was thrown says; the user's code may throw anything. */
function wordsOf(thrown: unknown): string {
  try {
    const { message } = toTroupeError(thrown, 'CALLBACK_FAILED') as { readonly message: unknown }
    return typeof message === 'string' ? message : 'it gave no reason'
  } catch {
    return 'it gave no reason'
  }
}

/** The outcome of a round that cannot be asked for. */
export function failed(code: string, reason: string): Outcome {
  return { body: { type: 'round.failed', code, reason: cutBytes(redact(reason), 2_048) }, values: [] }
}

// ---------------------------------------------------------------------------------------------- what is told

function factsOf(
  call: RoundPrepare,
  messages: readonly HistoryMessage[],
  { data }: RoundAsk,
): Omit<StopContext, 'signal' | 'deps'> {
  const { agent, run: runId, rounds: round, used } = call
  const at = round === 0 ? -1 : messages.findLastIndex(({ role }) => role === 'assistant')
  const said = messages[at]
  return {
    ...{ agent, runId, round, data },
    messages: messages.filter(({ role }) => role !== 'system'),
    text: said === undefined ? '' : textIn(said),
    lastCalls: said === undefined ? [] : callsIn(said, messages.slice(at + 1), call),
    usage: { tokens: used.tokens, modelCalls: used.modelCalls },
    cost: { usd: used.nanoUsd / 1e9, nanoUsd: used.nanoUsd },
  }
}

interface WrittenCall {
  readonly id: string
  readonly function: { readonly name: string; readonly arguments: string }
}

function callsIn(said: HistoryMessage, behind: readonly HistoryMessage[], { answered }: RoundPrepare): RoundCall[] {
  const calls = (said['tool_calls'] as readonly WrittenCall[] | undefined) ?? []
  // Two calls of one id have two results, in the order of the calls.
  const results = behind.filter(({ role }) => role === 'tool').map(textIn)
  return calls.map(({ function: written }, index) => {
    const known = answered.find((each) => each.index === index)
    const result = results[index] ?? ''
    return { name: known?.name ?? written.name, arguments: written.arguments, result, ok: known !== undefined }
  })
}

function textIn({ content }: HistoryMessage): string {
  if (typeof content === 'string') return content
  if (!Array.isArray(content)) return ''
  return content.map((part: { text?: string } | null) => part?.text ?? '').join('')
}

/** What the agent said last in this task; empty for nothing. */
function lastText(messages: readonly HistoryMessage[], rounds: number): string {
  const own = messages.filter(({ role }) => role === 'assistant').slice(-rounds)
  return own.map(textIn).findLast((text) => text !== '') ?? ''
}

// ---------------------------------------------------------------------------------------------- the end

/** The answer is a message of the agent's own, as if it had said it. */
async function stopped(condition: string, text: string, { agent }: PreparedAgent): Promise<Outcome> {
  const values = [JSON.stringify({ role: 'assistant', content: text })]
  if (agent.output !== undefined) {
    const judged = await judgeOutput(text, agent.output)
    if (!judged.ok)
      return failed('OUTPUT_INVALID', `${condition} has stopped it, and what it leaves is no answer: ${judged.message}`)
    values.push(JSON.stringify(judged.value))
  }
  const body = { type: 'round.stopped', condition, tokens: estimateTokens(text.length), result: shortHash(text) }
  return { body, values }
}

// ---------------------------------------------------------------------------------------------- the plan

function checkedChanges(changes: unknown): Changes {
  const read = changesShape.safeParse(changes)
  if (read.success) return read.data
  return refuse(`brought what it may not: ${describeIssues(read.error)}`)
}

function refuse(why: string): never {
  throw new TroupeError('CALLBACK_FAILED', `prepareRound ${why}`)
}

/** Messages as they were parsed, and those of them that were given. */
interface Given extends RoundAsk {
  readonly messages: readonly HistoryMessage[]
  readonly given: readonly HistoryMessage[]
}

function planOf(changes: Changes, agent: PreparedAgent, live: LiveCrew, given: Given): Outcome {
  const { tools, settings, instructions } = changes
  const { hidden, before, behind } = choiceOf(changes, given)
  const beside = [...(instructions === undefined ? [] : [systemMessage(instructions)]), ...before, ...behind]
  if (beside.reduce((sum, text) => sum + text.length, 0) > maxBesideBytes) refuse('brought more than 1 MiB of its own')
  const plan: Omit<RoundPlan, 'sequence'> = {
    ...(changes.model === undefined ? {} : { deployments: deploymentsOf(changes.model, live) }),
    ...(tools === undefined ? {} : { tools: checkedTools(tools, agent) }),
    ...(settings === undefined ? {} : settingsOf(settings)),
    ...(hidden.length === 0 ? {} : { hidden }),
    ...(beside.length === 0
      ? {}
      : { beside: { system: instructions !== undefined, before: before.length, behind: behind.length } }),
  }
  const isOther = [plan.tools, plan.hidden, plan.beside].some((each) => each !== undefined)
  const sized = isOther ? { ...plan, tokens: sizeOf(agent, given.shown, { ...plan, sequence: 0 }, beside) } : plan
  return { body: { type: 'round.prepared', plan: sized }, values: beside }
}

/** Estimate of what a round sends. */
function sizeOf(agent: PreparedAgent, shown: readonly Shown[], plan: RoundPlan, beside: readonly string[]): number {
  const planned = plannedAgent(agent, plan)
  const sent = [...messagesIn(planned, shown, plan, beside), planned.schemas ?? '', planned.format ?? '']
  return estimateTokens(sent.reduce((sum, text) => sum + text.length, 0)) + 16
}

/** What is hidden, and what stands before the rest and behind it. */
function choiceOf(
  { messages: chosen, instructions }: Changes,
  { shown, messages, given }: Given,
): { hidden: [number, number][]; before: string[]; behind: string[] } {
  const known = new Set(given)
  const wanted = chosen ?? given
  const first = wanted.findIndex((each) => known.has(each))
  const last = wanted.findLastIndex((each) => known.has(each))
  const kept = first < 0 ? [] : wanted.slice(first, last + 1)
  let at = -1
  for (const each of kept) {
    const next = given.indexOf(each, at + 1)
    if (next < 0) refuse('must keep messages in their order, each once, and say its own before them or behind')
    at = next
  }
  const own = (list: readonly HistoryMessage[]): string[] => list.map((each) => JSON.stringify(checkedMessage(each)))
  const isHidden = (message: HistoryMessage): boolean => message.role === 'system' && instructions !== undefined
  return {
    hidden: hiddenAmong(
      shown.map(({ at: place }, index) => ({ at: place, message: messages[index]! })),
      new Set(kept),
      isHidden,
    ),
    before: own(first < 0 ? [] : wanted.slice(0, first)),
    behind: own(first < 0 ? wanted : wanted.slice(last + 1)),
  }
}

function checkedMessage(message: HistoryMessage): z.output<typeof newMessage> {
  const read = newMessage.safeParse(message)
  return read.success ? read.data : refuse('may say messages of its own only as user or system, with text')
}

function checkedTools(names: readonly string[], agent: PreparedAgent): string[] {
  const known = callable(agent)
  const unknown = names.find((name) => !known.includes(name))
  if (unknown !== undefined) refuse(`named the tool ${JSON.stringify(unknown.slice(0, 80))}, which the agent has not`)
  return known.filter((name) => names.includes(name))
}

function deploymentsOf(
  model: NonNullable<Changes['model']>,
  { model: port, prepared }: LiveCrew,
): RoundPlan['deployments'] {
  return [model].flat().flatMap((each, group) =>
    [each].flat().map((name) => {
      try {
        port.check(name)
      } catch (error) {
        refuse(`chose a model that cannot work: ${wordsOf(error)}`)
      }
      return { name, price: port.price(name) ?? prepared.crew.unknownPrice, group }
    }),
  )
}

function settingsOf(settings: NonNullable<Changes['settings']>): Pick<RoundPlan, 'settings' | 'maxOutputTokens'> {
  const text = canonicalJson(settings)
  if (text.length > maxSettingsBytes) refuse('brought more than 64 KiB of settings')
  return {
    settings: text,
    ...(settings.maxOutputTokens === undefined ? {} : { maxOutputTokens: settings.maxOutputTokens }),
  }
}

// ---------------------------------------------------------------------------------------------- time

/** Runs the user's code for so long. @throws TroupeError `CALLBACK_FAILED`. */
async function bounded<T>(
  what: string,
  work: (signal: AbortSignal) => T | Promise<T>,
  timeoutMs: number,
  { clock, signal }: RoundAsk,
): Promise<T> {
  const own = new AbortController()
  const leave = (): void => own.abort(signal.reason)
  signal.addEventListener('abort', leave, { once: true })
  let cancel = (): void => undefined
  const late = new Promise<never>((_, reject) => {
    cancel = clock.after(timeoutMs, () => {
      const error = new TroupeError('CALLBACK_FAILED', `${what} took longer than ${timeoutMs} ms`)
      reject(error)
      own.abort(error)
    })
    own.signal.addEventListener('abort', () => reject(new TroupeError('CALLBACK_FAILED', `${what} was cancelled`)))
  })
  late.catch(() => undefined)
  try {
    return await Promise.race([(async () => work(own.signal))(), late])
  } catch (error) {
    if (error instanceof TroupeError && error.code === 'CALLBACK_FAILED' && error.message.startsWith(what)) throw error
    throw new TroupeError('CALLBACK_FAILED', `${what} failed: ${wordsOf(error)}`, { cause: error })
  } finally {
    cancel()
    signal.removeEventListener('abort', leave)
  }
}
