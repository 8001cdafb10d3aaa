/**
 * A user's machine in the place of a lead: what it and the crew say to each other.
 *
 * Owns: the messages that call an agent for it, read its task and its answers, and end its run.
 * Does not own: its steps (`logic-step.ts`), the order of its messages (`user-actors.ts`), what is read (`content-read.ts`).
 *
 * - FM1 An agent that it calls is a delegate of the machine like any other: its account, its end, and what becomes of it when
 *   nobody waits any more are the crew's.
 * - FM2 No content gets into a commit but by an outcome: its task and the answers are read by a port.
 */
import type { DelegateCall } from '../machines/index.js'
import { contentHash } from './codec.js'
import { isErrorCode } from './errors.js'
import type { PromiseCall } from './promise-call.js'
import type { Message, Snapshot } from './scope.js'

/** A message, and whom it is for. */
interface Said {
  readonly to: string
  readonly message: Message
}

/** A call of an agent by a machine. */
export interface AgentCall {
  /** The actor in the machine that waits for the answer. */
  readonly child: string
  readonly agent: string
  readonly input: unknown
}

/** What the crew knows of the task that is being led. */
interface LedTask {
  readonly run: string
  readonly sequence: number
  readonly messages: number
  readonly tokens: number
  readonly systems: Readonly<Record<string, number>>
}

/** How a machine ended. */
type End = { readonly output: unknown } | { readonly error: unknown }

/** The actor that takes tasks and commands. */
export const crewAddress = 'crew/main'

/** Commits have fewer names than this. */
const names = 2 ** 16

/** Address of the machine that leads a run. */
export function flowAddress(run: string): string {
  return `machine/${run}`
}

function ledTask(crew: Snapshot | undefined): LedTask | null {
  return (crew?.context as { readonly task?: LedTask | null } | undefined)?.task ?? null
}

/** Rough tokens of a text. */
const tokensOf = (text: string): number => Math.ceil(text.length / 3)

/** Where the answer of a call is kept among those of the run. */
function indexOf(child: string): number {
  const [sequence = 0, index = 0] = child.slice('child/'.length).split('-').map(Number)
  return sequence * names + index
}

/** What begins a call: the agent's conversation, then the call itself. @param crew the crew's state */
export function callOf(crew: Snapshot | undefined, { child, agent, input }: AgentCall): Said[] {
  const task = ledTask(crew)
  if (task === null) return []
  const { run, sequence, systems } = task
  const text = typeof input === 'string' ? input : JSON.stringify(input ?? '')
  const name = `${agent.slice(agent.lastIndexOf('/') + 1)}-c${child.slice('child/'.length)}`
  const system = systems[agent]
  const messages = [...(system === undefined ? [] : [{ values: [system], sequence }]), { user: text }]
  const call: DelegateCall & { type: string } = {
    ...{ type: 'delegate.call', caller: flowAddress(run), replyTo: child, conversation: run, index: indexOf(child) },
    ...{ callId: name, agent, name, depth: 1, length: messages.length, tokens: tokensOf(text), trail: [] },
  }
  return [
    ...messages.map((message) => ({ to: `log/${name}`, message: { type: 'log.append', ...message } })),
    { to: crewAddress, message: call },
  ]
}

/** Nobody waits for what a child has called any more. */
export function desertion(child: string): Message {
  return { type: 'delegate.cancel', caller: child }
}

/** Asks for the task of a run. @param kind of the machine that is to lead it */
export function taskRead(kind: string, run: string): PromiseCall {
  return { type: 'promise.call', kind, effect: 'pure', conversation: run, reads: { task: run } }
}

/** Asks for the answer of an agent. */
export function answerRead(kind: string, crew: Snapshot | undefined, { child, agent }: AgentCall): PromiseCall {
  const reads = { agent, index: indexOf(child) }
  return { type: 'promise.call', kind, effect: 'pure', conversation: ledTask(crew)?.run ?? '', reads }
}

/** The end of a machine, as the crew is told of its lead's. */
export function flowEnd(crew: Snapshot | undefined, self: string, end: End): Said[] {
  const task = ledTask(crew)
  if (task === null) return []
  const { run, messages, tokens } = task
  const finished = { type: 'agent.finished', address: self, conversation: run, finish: 'stop', rounds: 0 }
  if ('error' in end) {
    const { code, message } = (end.error ?? {}) as { readonly code?: unknown; readonly message?: unknown }
    const known = typeof code === 'string' && isErrorCode(code) ? code : 'ACTOR_FAILED'
    const reason = typeof message === 'string' ? message : 'the flow failed'
    const ended = { ...finished, code: known, reason, length: messages, tokens, answer: 0, result: known }
    return [{ to: crewAddress, message: ended }]
  }
  const { output = null } = end
  const said = typeof output === 'string' ? { content: output } : { content: JSON.stringify(output), parsed: output }
  const answer = tokensOf(said.content)
  const result = contentHash(said.content).slice(0, 24)
  const sums = { length: messages + 1, tokens: tokens + answer, answer, result }
  return [
    { to: `log/${run}`, message: { type: 'log.append', said } },
    { to: crewAddress, message: { ...finished, code: null, reason: '', ...sums } },
  ]
}

/** What a machine that led a run has answered. @param text its message as JSON text */
export function outputIn(text: string): unknown {
  const { content, parsed } = JSON.parse(text) as { readonly content?: unknown; readonly parsed?: unknown }
  return parsed === undefined ? content : parsed
}
