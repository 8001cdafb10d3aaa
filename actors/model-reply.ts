/**
 * A chat completion, whole or streamed, in whatever dialect, to one normal reply.
 *
 * Owns: telling JSON from SSE by the bytes, SSE framing, putting deltas together, the normal form of a message.
 * Does not own: sockets, time, what an error in the body means (`model-failure.ts`), money.
 *
 * - MR1 Linear in the bytes: no text is searched or copied again for each piece that arrives.
 * - MR2 Nothing in a body makes it throw; what cannot be read is a `Problem`.
 * - MR3 A message that comes out is taken back by strict providers: ids are there and differ, arguments are the text of a
 *   JSON object, names are plain. The calls beside it are as the model wrote them.
 * - MR4 A stream counts as complete only with a finish reason, `[DONE]` or a closing usage chunk; otherwise it was cut.
 */
import type { ModelReply, RawToolCall, Usage } from '../runtime/ports.js'

/** What was read; money and the deployment's name are the caller's. */
export interface ReadReply {
  readonly message: string
  readonly text: string
  readonly toolCalls: readonly RawToolCall[]
  readonly finishReason: ModelReply['finishReason']
  readonly usage: Usage
  /** As the provider names it; null when it does not say. */
  readonly model: string | null
}

/** Why there is no reply. */
export interface Problem {
  /** `error`: the body holds an error object. `cut`: it ended too early. `invalid`: it is no chat completion. */
  readonly reason: 'error' | 'cut' | 'invalid'
  /** For people, in our words; the error object when `reason` is `error`. */
  readonly detail: unknown
  /** Counts that the provider sent before it failed. */
  readonly usage: Usage | null
}

type Fields = Readonly<Record<string, unknown>>

const isFields = (value: unknown): value is Fields =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

const listOf = (value: unknown): readonly unknown[] => (Array.isArray(value) ? (value as unknown[]) : [])

/** Tokens in so many characters, by the rule of thumb of four. */
export function estimateTokens(characters: number): number {
  return Math.ceil(characters / 4)
}

/** Takes the text of a response body piece by piece and makes a reply of it. */
export class ReplyReader {
  #format: 'unknown' | 'json' | 'sse' = 'unknown'
  #head = ''
  #pieces: string[] = []
  #events = new EventLines((data, event) => this.#event(data, event))
  #builder: ReplyBuilder
  #done = false
  #problem: Pick<Problem, 'reason' | 'detail'> | null = null

  /** `inputCharacters`: length of the request, for an estimate when the provider counts nothing. */
  constructor(inputCharacters: number) {
    this.#builder = new ReplyBuilder(inputCharacters)
  }

  /** Nothing more is needed: `[DONE]` came, or an error. */
  get done(): boolean {
    return this.#done || this.#problem !== null
  }

  /** Some of the reply is here. */
  get started(): boolean {
    return this.#builder.started
  }

  /** The model has finished, whatever may still come. */
  get finished(): boolean {
    return this.done || this.#builder.closed
  }

  /** Text that came since the last time this was called. */
  takeText(): string {
    const { fresh } = this.#builder
    this.#builder.fresh = ''
    return fresh
  }

  /** Takes a piece of the body, decoded. */
  push(piece: string): void {
    if (this.#problem !== null) return
    if (this.#format === 'unknown') {
      const first = /\S/.exec(piece)?.[0]
      if (first === undefined) return
      this.#head = piece.slice(0, 300)
      // an event stream starts with a field name or a colon, whatever its content type says
      this.#format = first === '{' || first === '[' || first === '<' || first === '"' ? 'json' : 'sse'
    }
    if (this.#format === 'json') this.#pieces.push(piece)
    else this.#events.push(piece)
  }

  /** Ends the body; `cut`: by a lost connection or a deadline. */
  end(cut = false): ReadReply | Problem {
    if (this.#format === 'json') this.#readWhole(this.#pieces.join(''), cut)
    else if (!cut) this.#events.end()
    const usage = this.#builder.reportedUsage
    if (this.#problem !== null) return { ...this.#problem, usage }
    if (this.#format === 'unknown') return { reason: cut ? 'cut' : 'invalid', detail: 'the body is empty', usage }
    if (!this.#builder.started) {
      const reason = cut && this.#format === 'sse' ? 'cut' : 'invalid'
      return { reason, detail: `the body holds no choice of a chat completion: ${this.#head}`, usage }
    }
    if (this.#format === 'sse' && !this.finished) {
      return { reason: 'cut', detail: 'the stream ended before the reply was complete', usage }
    }
    return this.#builder.build()
  }

  #readWhole(body: string, cut: boolean): void {
    const value = parse(body)
    if (value === undefined) {
      this.#problem = cut
        ? { reason: 'cut', detail: 'the body was cut' }
        : { reason: 'invalid', detail: `the body is not JSON: ${this.#head}` }
    } else {
      this.#take(value, true, '')
    }
  }

  #event(data: readonly string[], event: string): void {
    if (this.done) return
    const joined = data.join('\n')
    if (joined.trim() === '') return
    if (joined.trimStart().startsWith('[DONE]')) {
      this.#done = true
      return
    }
    const value = parse(joined)
    if (value !== undefined) return this.#take(value, false, event)
    // some servers leave out the empty line between events
    for (const line of data.length > 1 ? data : [joined]) {
      if (this.done) return
      if (line.trim() === '') continue
      if (line.startsWith('[DONE]')) {
        this.#done = true
        return
      }
      const single = data.length > 1 ? parse(line) : undefined
      if (single === undefined) {
        const reason = event === 'error' ? 'error' : 'invalid'
        this.#problem = { reason, detail: reason === 'error' ? line : `not JSON in the stream: ${line.slice(0, 500)}` }
        return
      }
      this.#take(single, false, event)
    }
  }

  #take(value: unknown, whole: boolean, event: string): void {
    if (!isFields(value)) {
      const error = listOf(value).find((item) => isFields(item) && item['error'] !== undefined)
      if (error !== undefined) this.#problem = { reason: 'error', detail: error }
      return
    }
    this.#builder.take(value, whole)
    const error = errorIn(value, event)
    if (error !== undefined) this.#problem = { reason: 'error', detail: error }
  }
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text) as unknown
  } catch {
    return undefined
  }
}

function errorIn(value: Fields, event: string): unknown {
  if (isPresent(value['error'])) return value
  for (const choice of listOf(value['choices'])) {
    if (isFields(choice) && isPresent(choice['error'])) return choice
  }
  if (value['choices'] !== undefined) return undefined
  if (event === 'error' || value['object'] === 'error' || value['type'] === 'error') return value
  return isPresent(value['detail']) ? value : undefined
}

function isPresent(value: unknown): boolean {
  return value !== undefined && value !== null && value !== '' && value !== false
}

/** Splits an event stream into events: LF, CRLF or CR, comments, fields other than `data` and `event` ignored. */
class EventLines {
  #rest: string[] = []
  #afterCR = false
  #data: string[] = []
  #event = ''

  constructor(private readonly emit: (data: readonly string[], event: string) => void) {}

  push(piece: string): void {
    let text = this.#afterCR && piece.startsWith('\n') ? piece.slice(1) : piece
    if (piece !== '') this.#afterCR = piece.endsWith('\r')
    if (text.includes('\r')) text = text.replace(/\r\n?/g, '\n')
    let from = 0
    for (;;) {
      const end = text.indexOf('\n', from)
      if (end === -1) break
      this.#rest.push(text.slice(from, end))
      this.#line(this.#rest.length === 1 ? (this.#rest[0] ?? '') : this.#rest.join(''))
      this.#rest = []
      from = end + 1
    }
    if (from < text.length) this.#rest.push(text.slice(from))
  }

  /** An event at the end of the body counts without its empty line. */
  end(): void {
    if (this.#rest.length > 0) this.#line(this.#rest.join(''))
    this.#rest = []
    this.#line('')
  }

  #line(line: string): void {
    if (line === '') {
      if (this.#data.length > 0) this.emit(this.#data, this.#event)
      this.#data = []
      this.#event = ''
    } else if (line.startsWith('data:')) {
      this.#data.push(line.slice(line.charCodeAt(5) === 32 ? 6 : 5))
    } else if (line.startsWith('event:')) {
      this.#event = line.slice(6).trim()
    }
  }
}

interface CallParts {
  id: string
  name: string
  arguments: string
  /** The last character that came; asking the growing text for it would copy it. */
  last: string
}

/** Puts chunks, or one whole completion, together. */
class ReplyBuilder {
  started = false
  text = ''
  /** Text not yet passed on by `takeText`. */
  fresh = ''
  #refusal = ''
  #calls: CallParts[] = []
  #byIndex = new Map<number, CallParts>()
  #byId = new Map<string, CallParts>()
  #finish: string | null = null
  #closingUsage = false
  #usage: Usage | null = null
  #model: string | null = null

  constructor(private readonly inputCharacters: number) {}

  get closed(): boolean {
    return this.#finish !== null || this.#closingUsage
  }

  get reportedUsage(): Usage | null {
    return this.#usage
  }

  take(value: Fields, whole: boolean): void {
    const { model } = value
    if (typeof model === 'string' && model !== '') this.#model = model
    const choices = listOf(value['choices']).filter(isFields)
    const choice = choices.find(({ index }) => (index ?? 0) === 0) ?? (whole ? choices[0] : undefined)
    const elsewhere = isFields(value['x_groq']) ? value['x_groq']['usage'] : undefined
    const usage = readUsage(value['usage']) ?? readUsage(elsewhere) ?? readUsage(choice?.['usage'])
    if (usage !== null) this.#usage = usage
    if (choice === undefined) {
      if (usage !== null && choices.length === 0 && this.started) this.#closingUsage = true
      return
    }
    const finish = choice['finish_reason']
    if (typeof finish === 'string' && finish !== '') this.#finish = finish
    // some send both: a whole reply with an empty delta, a stream with all of the message so far
    const [first, second] = whole ? [choice['message'], choice['delta']] : [choice['delta'], choice['message']]
    const part = isFields(first) ? first : second
    if (isFields(part)) this.#takePart(part, whole)
    else if (this.#finish !== null) this.started = true
  }

  #takePart(part: Fields, whole: boolean): void {
    this.started = true
    const text = textOf(part['content'])
    this.text += text
    this.fresh += text
    if (typeof part['refusal'] === 'string') this.#refusal += part['refusal']
    const calls = listOf(part['tool_calls'])
    for (const call of calls) if (isFields(call)) this.#takeCall(call, whole)
    const legacy = part['function_call']
    if (calls.length === 0 && isFields(legacy)) this.#takeCall({ index: 0, function: legacy }, whole)
  }

  #takeCall(delta: Fields, whole: boolean): void {
    const { function: inner, index } = delta
    const fields = isFields(inner) ? inner : {}
    const id = typeof delta['id'] === 'string' ? delta['id'] : ''
    const name = typeof fields['name'] === 'string' ? fields['name'] : ''
    const given = fields['arguments']
    const piece = typeof given === 'string' ? given : isPresent(given) ? (JSON.stringify(given) ?? '') : ''
    const at = typeof index === 'number' ? index : null
    const known = whole ? undefined : this.#knownCall(at, id, name)
    const call = { id, name, arguments: piece, last: piece.slice(-1) }
    if (known === undefined) return this.#addCall(call, at)
    if (startsAnother(known, call)) return this.#addCall(call, at)
    if (repeats(known, call)) return
    known.id ||= id
    if (known.name === '') known.name = name
    else if (name !== '' && name !== known.name && known.arguments === '') known.name = joined(known.name, name)
    if (piece === '') return
    known.arguments += piece
    known.last = call.last
  }

  /** The call that a delta may go on with. */
  #knownCall(index: number | null, id: string, name: string): CallParts | undefined {
    if (index !== null) return this.#byIndex.get(index)
    if (id !== '') return this.#byId.get(id)
    return name === '' ? this.#calls.at(-1) : undefined
  }

  #addCall(call: CallParts, index: number | null): void {
    this.#calls.push(call)
    if (index !== null) this.#byIndex.set(index, call)
    if (call.id !== '') this.#byId.set(call.id, call)
  }

  build(): ReadReply {
    const ids = new Set<string>()
    const taken = new Set(this.#calls.map(({ id }) => id))
    const toolCalls = this.#calls.map((call, position): RawToolCall => {
      let id = call.id
      for (let n = position; id === '' || ids.has(id); n += this.#calls.length) {
        id = taken.has(`call_${n}`) ? '' : `call_${n}`
      }
      ids.add(id)
      return { id, name: call.name, arguments: call.arguments }
    })
    const argumentCharacters = toolCalls.reduce((sum, call) => sum + call.name.length + call.arguments.length, 0)
    return {
      message: this.#message(toolCalls),
      text: this.text,
      toolCalls,
      finishReason: finishReasonOf(this.#finish, toolCalls.length > 0),
      usage: this.#usage ?? {
        inputTokens: estimateTokens(this.inputCharacters),
        outputTokens: estimateTokens(this.text.length + this.#refusal.length + argumentCharacters),
        cachedInputTokens: 0,
        estimated: true,
      },
      model: this.#model,
    }
  }

  #message(toolCalls: readonly RawToolCall[]): string {
    return JSON.stringify({
      role: 'assistant',
      content: this.text === '' && toolCalls.length > 0 ? null : this.text,
      ...(this.#refusal === '' ? {} : { refusal: this.#refusal }),
      ...(toolCalls.length === 0 ? {} : { tool_calls: toolCalls.map(acceptable) }),
    })
  }
}

/** Text of a `content`: a string, or parts of which only the text counts. */
function textOf(content: unknown): string {
  if (typeof content === 'string') return content
  let text = ''
  for (const part of listOf(content)) {
    if (typeof part === 'string') text += part
    else if (isFields(part) && typeof part['text'] === 'string' && isTextType(part['type'])) text += part['text']
  }
  return text
}

function isTextType(type: unknown): boolean {
  return type === undefined || type === 'text' || type === 'output_text'
}

/** Some servers number every call 0, or give all the same id: a name makes it another call when the last one is whole. */
function startsAnother(known: CallParts, call: CallParts): boolean {
  if (call.name === '') return false
  if (call.id !== '' && known.id !== '' && call.id !== known.id) return true
  return isWhole(known) && (call.name !== known.name || call.arguments !== known.arguments)
}

/** The whole call once more, not a continuation. */
function repeats(known: CallParts, call: CallParts): boolean {
  return call.name !== '' && call.arguments === known.arguments && isWhole(known)
}

/** Asked only of calls that are named again; bounded, so that a server that names each delta costs no square. */
function isWhole({ arguments: text, last }: CallParts): boolean {
  return last === '}' && text.length < 65_536 && parse(text) !== undefined
}

/** A name that comes in pieces, or again and longer. */
function joined(name: string, more: string): string {
  return more.startsWith(name) ? more : name + more
}

/** A call in the form that strict providers take back: broken arguments would make them refuse the conversation. */
function acceptable(call: RawToolCall): object {
  const name = call.name.replace(/[^A-Za-z0-9_-]/g, '_').slice(0, 64)
  return {
    id: call.id,
    type: 'function',
    function: { name: name || 'unknown', arguments: isFields(parse(call.arguments)) ? call.arguments : '{}' },
  }
}

const finishReasons: Readonly<Record<string, ModelReply['finishReason']>> = {
  stop: 'stop',
  eos: 'stop',
  eos_token: 'stop',
  end_turn: 'stop',
  stop_sequence: 'stop',
  complete: 'stop',
  length: 'length',
  max_tokens: 'length',
  model_length: 'length',
  tool_calls: 'tool_calls',
  tool_call: 'tool_calls',
  tool_use: 'tool_calls',
  function_call: 'tool_calls',
  content_filter: 'content_filter',
  safety: 'content_filter',
  refusal: 'content_filter',
}

function finishReasonOf(finish: string | null, hasCalls: boolean): ModelReply['finishReason'] {
  const reason = finish === null ? undefined : finishReasons[finish.toLowerCase()]
  if (hasCalls) return reason === undefined || reason === 'stop' ? 'tool_calls' : reason
  return reason === undefined || reason === 'tool_calls' ? 'other' : reason
}

/** Counts as the provider sent them; null when there are none or they are nonsense. */
function readUsage(value: unknown): Usage | null {
  if (!isFields(value)) return null
  const input = countOf(value['prompt_tokens'] ?? value['input_tokens'])
  const total = countOf(value['total_tokens']) ?? 0
  const output = countOf(value['completion_tokens'] ?? value['output_tokens'] ?? (total > 0 ? 0 : null))
  if (input === null || output === null || (input === 0 && output === 0)) return null
  const details = value['prompt_tokens_details'] ?? value['input_tokens_details']
  const cached = isFields(details) ? countOf(details['cached_tokens']) : countOf(value['prompt_cache_hit_tokens'])
  return {
    inputTokens: input,
    // some leave reasoning out of the output; it is billed, and it is in the total
    outputTokens: Math.max(output, total - input),
    cachedInputTokens: Math.min(cached ?? 0, input),
    estimated: false,
  }
}

function countOf(value: unknown): number | null {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 ? value : null
}
