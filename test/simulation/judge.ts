/**
 * The judge: what providers and tools saw, kept outside of the runtime and of its crashes.
 *
 * The runtime's own word counts for nothing here: spending is what providers billed, an execution is what a tool did.
 */
import type { Amounts } from '../../machines/index.js'
import type { Notes } from './notes.js'

/** One request to a provider. */
export interface Billed {
  readonly shard: string
  readonly keeper: string
  readonly worst: Amounts
  /** What the provider counted; tokens and money only once it has worked. */
  actual: { nanoUsd: number; tokens: number; modelCalls: number }
  /** What it told. */
  reported: { nanoUsd: number; tokens: number; modelCalls: number } | null
}

/** One call of a tool, over all its tries. */
export interface ToolRecord {
  readonly shard: string
  readonly callId: string
  readonly key: string
  readonly tool: string
  /** What it was asked about. */
  topic: string
  starts: number
  executions: number
  /** Answers that the tool gave. */
  readonly contents: Set<string>
}

interface Heard {
  readonly messages: string[]
  /** Ids of calls whose results must come next, in order. */
  readonly open: string[]
}

interface ChatMessage {
  readonly role: string
  readonly content?: unknown
  readonly tool_call_id?: string
  readonly tool_calls?: readonly { readonly id: string }[]
}

/** What the runtime tells a model in its own words. */
const ownWords =
  /^(The outcome of this call is unknown|The call was given up|The tool could not be run|Not done:|Done: \w+ goes on from here\.$|There is no tool|The arguments of|Too many tool calls|Another tool call|[\w/-]+ failed:|$)/

const dims = ['nanoUsd', 'tokens', 'modelCalls'] as const

/** The ledger of one seed. */
export class Judge {
  readonly billed: Billed[] = []
  readonly tools = new Map<string, ToolRecord>()
  /** Final texts of models. */
  readonly answers = new Set<string>()
  readonly #keys = new Map<string, string>()
  readonly #heard = new Map<string, Heard>()
  readonly #notes: Notes

  constructor(notes: Notes) {
    this.#notes = notes
  }

  /** Calls of tools that may run once, and did. */
  get onceCalls(): number {
    const calls = [...this.tools.values()]
    return calls.filter(({ tool, executions }) => executions > 0 && (tool === 'pay' || tool === 'ship')).length
  }

  /** A provider gets a request. */
  request(shard: string, keeper: string, worst: Amounts): Billed {
    const billed = { shard, keeper, worst, actual: { nanoUsd: 0, tokens: 0, modelCalls: 1 }, reported: null }
    this.billed.push(billed)
    return billed
  }

  /** The record of a tool call; checks that it keeps its key. */
  tool(shard: string, callId: string, key: string, tool: string): ToolRecord {
    const known = this.tools.get(callId)
    const owner = this.#keys.get(key)
    this.#notes.check('key', known === undefined || known.key === key, () => `${callId}: ${known?.key} and ${key}`)
    this.#notes.check('key', owner === undefined || owner === callId, () => `${key}: ${owner} and ${callId}`)
    this.#keys.set(key, callId)
    if (known !== undefined) return known
    const record = { shard, callId, key, tool, topic: '', starts: 0, executions: 0, contents: new Set<string>() }
    this.tools.set(callId, record)
    return record
  }

  /** What a model was sent: it only grows, each call has its result, each result is one that a tool gave. */
  conversation(name: string, messages: readonly string[]): void {
    let heard = this.#heard.get(name)
    if (heard === undefined) {
      heard = { messages: [], open: [] }
      this.#heard.set(name, heard)
    }
    const known = heard.messages.length
    for (let index = 0; index < Math.min(known, messages.length); index++) {
      if (messages[index] === heard.messages[index]) continue
      return this.#notes.violate(
        'grows',
        `${name}: message ${index}: ${heard.messages[index]} is now ${messages[index]}`,
      )
    }
    this.#notes.check('grows', messages.length >= known, () => `${name}: ${known} messages, now ${messages.length}`)
    for (let index = known; index < messages.length; index++) this.#hear(name, heard, messages[index]!)
    this.#notes.check('answered', heard.open.length === 0, () => `${name}: no result of ${heard.open.join(', ')}`)
  }

  #hear(name: string, heard: Heard, text: string): void {
    heard.messages.push(text)
    const message = JSON.parse(text) as ChatMessage
    if (message.role !== 'tool') {
      this.#notes.check('answered', heard.open.length === 0, () => `${name}: ${heard.open.join(', ')} before ${text}`)
      heard.open.length = 0
      for (const call of message.tool_calls ?? []) heard.open.push(call.id)
      return
    }
    const expected = heard.open.shift()
    const { content } = message
    const id = message.tool_call_id ?? ''
    this.#notes.check('answered', expected === id, () => `${name}: a result of ${id}, expected ${expected}`)
    const said =
      typeof content === 'string' &&
      (this.tools.get(id)?.contents.has(content) === true || this.answers.has(content) || ownWords.test(content))
    this.#notes.check('true', said, () => `${name}: nobody said ${text.slice(0, 300)}`)
  }

  /** Whether somebody said a text: a model, a tool, or the runtime. */
  brought(text: string): boolean {
    return (
      this.answers.has(text) ||
      ownWords.test(text) ||
      [...this.tools.values()].some(({ contents }) => contents.has(text))
    )
  }

  /** The last message that was heard of a conversation. */
  heard(name: string): readonly string[] {
    return this.#heard.get(name)?.messages ?? []
  }

  /** Checks what providers counted against the limits. @param limitOf highest limit of a keeper's root account, if any */
  checkSpending(
    limitOf: (shard: string, keeper: string) => Readonly<Partial<Record<string, number>>> | undefined,
  ): void {
    const sums = new Map<string, Billed[]>()
    for (const billed of this.billed) {
      const name = `${billed.shard}|${billed.keeper}`
      const list = sums.get(name) ?? []
      if (list.length === 0) sums.set(name, list)
      list.push(billed)
    }
    for (const [name, list] of sums) {
      const [shard = '', keeper = ''] = name.split('|')
      const limits = limitOf(shard, keeper)
      for (const dim of dims) {
        const limit = limits?.[dim]
        if (limit === undefined) continue
        const spent = list.reduce((sum, each) => sum + each.actual[dim], 0)
        // What DESIGN 3 grants: a bill above its grant, and what the provider counted and did not tell.
        const error = list.reduce((sum, each) => sum + errorOf(each, dim), 0)
        this.#notes.check('provider', spent <= limit + error, () => `${name}: ${dim} ${spent} of ${limit} + ${error}`)
      }
    }
  }
}

/** By how much a bill may pass its limit: what it is above its grant, and what was not told. */
export function errorOf({ actual, reported, worst }: Billed, dim: (typeof dims)[number]): number {
  const told = reported === null ? 0 : Math.max(0, actual[dim] - reported[dim])
  const over = Math.max(0, actual[dim] - worst[dim], (reported?.[dim] ?? 0) - worst[dim])
  return told + over
}
