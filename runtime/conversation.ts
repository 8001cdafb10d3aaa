/**
 * Conversations: append-only lists of chat messages, one per task of an agent.
 *
 * Owns: the entries, the running hash, the results staged for the open round.
 * Does not own: when something is appended (machines say so), loading content back (`content.ts`).
 *
 * - V1 An entry never changes and never moves; the hash after n entries names exactly these n.
 * - V2 Content is named by the record that brought it in; a conversation stores none of it again.
 * - V3 Results are appended in the order of the calls, whatever the order in which they came.
 */
import type { LogAppend, LogStage } from '../machines/index.js'
import { contentHash, type Value } from './codec.js'

/** How an entry's content becomes a chat message. */
export type Shape =
  /** It is one, as JSON text. */
  | 'message'
  /** It is the result of a tool call. */
  | 'tool'
  /** It is an assistant's message whose text is the result of a call. */
  | 'answer'
  /** It is an assistant's message whose text a user says, and whose it is: `callId` is that agent's name. */
  | 'said'

/** One message: where its content lies and how it is read. */
export interface Entry {
  /** Sequence of the commit whose envelope has it; 0 for content that a machine wrote. */
  readonly sequence: number
  /** Index among the envelope's values. */
  readonly index: number
  readonly shape: Shape
  readonly callId: string
  /** The content, for `sequence` 0. */
  readonly inline: string
  /** The chat message as JSON text, once it is loaded. */
  text: string | null
}

/** The plain data of an entry. */
export type StoredEntry = readonly [number, number, Shape, string, string]

/** Hash of a conversation without a message. */
export const emptyHash = ''

/** Makes a chat message of an entry's content. */
export function render(shape: Shape, callId: string, content: string): string {
  if (shape === 'message') return content
  const text = shape === 'tool' ? content : textOf(content)
  if (shape === 'said') return said(callId, text)
  return `{"role":"tool","tool_call_id":${JSON.stringify(callId)},"content":${JSON.stringify(text)}}`
}

function said(agent: string, text: string): string {
  return JSON.stringify({ role: 'user', content: `${agent}:\n${text}` })
}

/** The text of a chat message given as JSON. */
export function textOf(message: string): string {
  const { content } = JSON.parse(message) as { content?: unknown }
  if (typeof content === 'string') return content
  if (!Array.isArray(content)) return ''
  return content.map((part: { text?: string }) => part.text ?? '').join('')
}

/** One conversation. */
export class Conversation {
  readonly entries: Entry[] = []
  readonly staged = new Map<number, Entry>()
  /** Hex SHA-256 over the one before and the last entry. */
  hash: string = emptyHash

  get length(): number {
    return this.entries.length
  }

  append(entry: Entry, link: string): void {
    this.entries.push(entry)
    this.hash = contentHash(`${this.hash}\n${link}`)
  }

  seal(): void {
    for (const index of [...this.staged.keys()].sort((a, b) => a - b)) {
      const entry = this.staged.get(index)!
      this.append(entry, linkOf(entry))
    }
    this.staged.clear()
  }
}

/** What an entry adds to the hash: its place of origin is part of it, since records are chained by content. */
export function linkOf(entry: Entry): string {
  return `${entry.sequence}:${entry.index}:${entry.shape}:${entry.callId}:${entry.inline}`
}

/** An entry for a value of an envelope. Its text is there at once unless it is a blob. */
export function entryOf(
  sequence: number,
  index: number,
  shape: Shape,
  callId: string,
  value: Value | undefined,
): Entry {
  const text = typeof value === 'string' ? render(shape, callId, value) : null
  return { sequence, index, shape, callId, inline: '', text }
}

/** An entry for content that a machine wrote. */
export function inlineEntry(shape: Shape, callId: string, inline: string): Entry {
  return { sequence: 0, index: 0, shape, callId, inline, text: render(shape, callId, inline) }
}

export function toStoredEntry(entry: Entry): StoredEntry {
  return [entry.sequence, entry.index, entry.shape, entry.callId, entry.inline]
}

export function fromStoredEntry([sequence, index, shape, callId, inline]: StoredEntry): Entry {
  const text = sequence === 0 ? render(shape, callId, inline) : null
  return { sequence, index, shape, callId, inline, text }
}

/** The conversations of a shard, by name. */
export type Conversations = Map<string, Conversation>

/** Carries out a message to a conversation. @param commit the one that says it, with the values of its envelope */
export function write(
  logs: Conversations,
  name: string,
  message: { readonly type: string },
  { sequence, values }: { readonly sequence: number; readonly values: readonly Value[] },
): void {
  switch (message.type) {
    case 'log.append':
      return append(logs, name, message as LogAppend, sequence, values)
    case 'log.stage':
      return stage(logs, name, message as LogStage, sequence, values)
    case 'log.seal':
      logs.get(name)?.seal()
      return
    case 'log.clear':
      logs.get(name)?.staged.clear()
      return
    default:
      logs.delete(name)
  }
}

/** Carries out `log.append`. */
export function append(
  logs: Conversations,
  name: string,
  message: LogAppend,
  sequence: number,
  values: readonly Value[],
): void {
  const log = open(logs, name)
  const from = message.sequence ?? sequence
  for (const index of message.values ?? []) {
    const entry = entryOf(from, index, 'message', '', from === sequence ? values[index] : undefined)
    log.append(entry, linkOf(entry))
  }
  if (message.user !== undefined) {
    const entry = inlineEntry('message', '', JSON.stringify({ role: 'user', content: message.user }))
    log.append(entry, linkOf(entry))
  }
  if (message.said !== undefined) {
    const entry = inlineEntry('message', '', JSON.stringify({ role: 'assistant', ...message.said }))
    log.append(entry, linkOf(entry))
  }
  for (const entry of logs.get(message.copy ?? '')?.entries.slice(0, message.first) ?? [])
    log.append(entry, linkOf(entry))
  if (message.answer !== undefined) {
    const entry = answered(logs, message.answer)
    log.append(entry, linkOf(entry))
  }
  if (message.all !== undefined) {
    for (const entry of logs.get(message.all)?.entries ?? []) log.append(entry, linkOf(entry))
    logs.delete(message.all)
  }
}

/** What was staged of a call, as a message; it stays staged. */
function answered(logs: Conversations, { of, index, role, agent }: NonNullable<LogAppend['answer']>): Entry {
  const staged = logs.get(of)?.staged.get(index)
  if (staged?.shape !== 'answer') return inlineEntry('message', '', said(agent, staged?.inline ?? ''))
  const [shape, callId] = role === 'user' ? (['said', agent] as const) : (['message', ''] as const)
  const { sequence, inline } = staged
  // What is not here is read when it is asked for.
  const text = sequence === 0 ? render(shape, callId, inline) : null
  return { sequence, index: staged.index, shape, callId, inline, text }
}

/** Carries out `log.stage`. */
export function stage(
  logs: Conversations,
  name: string,
  message: LogStage,
  sequence: number,
  values: readonly Value[],
): void {
  const log = open(logs, name)
  if (message.unless === 'staged' && log.staged.has(message.index)) return
  log.staged.set(message.index, staged(logs, message, sequence, values))
}

function staged(logs: Conversations, message: LogStage, sequence: number, values: readonly Value[]): Entry {
  const { callId } = message
  if (message.value !== undefined) return entryOf(sequence, message.value, 'tool', callId, values[message.value])
  if (message.text !== undefined) return inlineEntry('tool', callId, message.text)
  const answer = logs.get(message.answerOf ?? '')?.entries.at(-1)
  if (answer === undefined) return inlineEntry('tool', callId, '')
  const text = answer.text === null ? null : render('answer', callId, answer.text)
  return { sequence: answer.sequence, index: answer.index, shape: 'answer', callId, inline: answer.inline, text }
}

function open(logs: Conversations, name: string): Conversation {
  let log = logs.get(name)
  if (log === undefined) {
    log = new Conversation()
    logs.set(name, log)
  }
  return log
}

/** Bytes of the text that a conversation holds in memory. */
export function bytesOf(log: Conversation): number {
  let bytes = 0
  for (const entry of log.entries) bytes += entry.text?.length ?? 0
  return bytes
}
