/**
 * What a scripted model reads and writes: chat completions of the OpenAI shape.
 *
 * Owns: the checks that a provider makes of a request, the counting of tokens, the bytes of a reply and of a stream.
 * Does not own: sockets, faults, the log (`scripted-model.ts`).
 *
 * - SC1 Everything is a function of the request, its index and the script's answer; ids and counts repeat exactly.
 * - SC2 What a provider would refuse is refused: no messages, results without a call, calls without a result.
 */

/** A chat message as it was sent. */
export interface ScriptedMessage {
  readonly role: string
  readonly content?: unknown
  readonly tool_calls?: readonly {
    readonly id: string
    readonly type?: string
    readonly function: { readonly name: string; readonly arguments: string }
  }[]
  readonly tool_call_id?: string
  readonly name?: string
}

/** One request as the script sees it. */
export interface ScriptedRequest {
  readonly model: string
  readonly messages: readonly ScriptedMessage[]
  /** Names of the tools offered. */
  readonly tools: readonly string[]
  /** `max_tokens` or `max_completion_tokens`; null when absent. */
  readonly maxTokens: number | null
  readonly stream: boolean
  /** How many requests came before this one. */
  readonly index: number
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>
  /** The whole body, parsed. */
  readonly body: Readonly<Record<string, unknown>>
}

/** A tool call that the model makes; `arguments` as text are sent as they are, broken or not. */
export interface ScriptedCall {
  readonly name: string
  readonly arguments: unknown
  /** @default a text that follows from request and position */
  readonly id?: string
}

/** A fault instead of, or in, a reply. */
export type ScriptedFault =
  | { readonly status: number; readonly retryAfter?: number | string; readonly body?: unknown }
  /** The reply is sent up to so many bytes of its body, then the connection is destroyed. */
  | { readonly cut: number }
  /** Nothing (more) comes: before the headers, or after the first bytes of the body. */
  | { readonly stall: 'headers' | 'body' }
  /** The body is this text, with status 200. */
  | { readonly garbage: string }
  /** The reply comes so many milliseconds late. */
  | { readonly delayMs: number }

/** What the script answers. A bare string is a text. */
export interface ScriptedAnswer {
  readonly text?: string
  readonly calls?: readonly ScriptedCall[]
  readonly refusal?: string
  /** Overrides the counted tokens. */
  readonly usage?: { readonly input?: number; readonly output?: number; readonly cached?: number } | null
  /** Overrides what follows from text, calls and `max_tokens`. */
  readonly finish?: string
  readonly fault?: ScriptedFault
}

/** A script's answer to one request. */
export type ScriptedReply = string | ScriptedAnswer

/** A model's behaviour: a function of the conversation. What it throws becomes a 500. */
export type ModelScript = (request: ScriptedRequest) => ScriptedReply | Promise<ScriptedReply>

/** Text of the last user message; '' when there is none. Text parts are joined. */
export function lastUser(request: ScriptedRequest): string {
  const message = request.messages.findLast(({ role }) => role === 'user')
  return message === undefined ? '' : textOf(message.content)
}

/** Tool results since the last assistant message, in order: what a model answers next to. */
export function toolResults(request: ScriptedRequest): readonly { readonly id: string; readonly content: string }[] {
  const last = request.messages.findLastIndex(({ role }) => role === 'assistant')
  return request.messages
    .slice(last + 1)
    .filter(({ role }) => role === 'tool')
    .map((message) => ({ id: message.tool_call_id ?? '', content: textOf(message.content) }))
}

/** Tokens in so many characters as this server counts: a quarter, rounded up. */
export function scriptedTokens(text: string): number {
  return Math.ceil(text.length / 4)
}

/** A reply with everything decided. */
export interface Settled {
  readonly id: string
  readonly model: string
  readonly text: string | null
  readonly refusal: string | null
  readonly calls: readonly { readonly id: string; readonly name: string; readonly arguments: string }[]
  readonly finish: string
  readonly usage: { readonly input: number; readonly output: number; readonly cached: number } | null
}

/** The request is one that a provider answers with 400. */
export class RequestRefused extends Error {}

// --- the request --------------------------------------------------------------------------------------------------

type Fields = Readonly<Record<string, unknown>>

const isFields = (value: unknown): value is Fields =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** Reads and checks a request. @throws RequestRefused */
export function readRequest(text: string, headers: ScriptedRequest['headers'], index: number): ScriptedRequest {
  let body: unknown
  try {
    body = JSON.parse(text) as unknown
  } catch {
    throw new RequestRefused('the body is not JSON')
  }
  if (!isFields(body)) throw new RequestRefused('the body is not an object')
  const { model, messages, tools = [] } = body
  if (typeof model !== 'string' || model === '') throw new RequestRefused("'model' is missing")
  if (!Array.isArray(messages) || messages.length === 0)
    throw new RequestRefused("'messages' must be an array with a message")
  checkMessages(messages as unknown[])
  const maxTokens = body['max_completion_tokens'] ?? body['max_tokens'] ?? null
  if (maxTokens !== null && (!Number.isInteger(maxTokens) || Number(maxTokens) < 1)) {
    throw new RequestRefused("'max_tokens' must be a positive integer")
  }
  return {
    model,
    messages: messages as ScriptedMessage[],
    tools: toolNames(tools),
    maxTokens: maxTokens as number | null,
    stream: body['stream'] === true,
    index,
    headers,
    body,
  }
}

function toolNames(tools: unknown): string[] {
  if (!Array.isArray(tools)) throw new RequestRefused("'tools' must be an array")
  return (tools as unknown[]).map((tool, position) => {
    const name = isFields(tool) && isFields(tool['function']) ? tool['function']['name'] : undefined
    if (typeof name !== 'string' || !/^[A-Za-z0-9_-]{1,64}$/.test(name)) {
      throw new RequestRefused(`'tools[${position}].function.name' does not match ^[A-Za-z0-9_-]{1,64}$`)
    }
    return name
  })
}

const roles = new Set(['system', 'developer', 'user', 'assistant', 'tool'])

/** A result must answer a call of the assistant message before it, and every call must be answered. */
function checkMessages(messages: readonly unknown[]): void {
  let open = new Set<string>()
  messages.forEach((message, position) => {
    const where = `messages[${position}]`
    if (!isFields(message)) throw new RequestRefused(`'${where}' is not an object`)
    const { role } = message
    if (typeof role !== 'string' || !roles.has(role)) throw new RequestRefused(`'${where}.role' is not a role`)
    if (role === 'tool') {
      const id = String(message['tool_call_id'])
      if (!open.delete(id))
        throw new RequestRefused(`'${where}' answers '${id}', which no preceding 'tool_calls' has open`)
    } else if (open.size > 0) {
      throw new RequestRefused(`'${where}': these 'tool_call_id's have no tool message: ${[...open].join(', ')}`)
    }
    if (role === 'assistant') open = callIds(message, where)
    else if (!isContent(message['content'])) throw new RequestRefused(`'${where}.content' must be text or parts`)
  })
  if (open.size > 0) throw new RequestRefused(`these 'tool_call_id's have no tool message: ${[...open].join(', ')}`)
}

function callIds(message: Fields, where: string): Set<string> {
  const calls = message['tool_calls'] ?? []
  if (!Array.isArray(calls)) throw new RequestRefused(`'${where}.tool_calls' must be an array`)
  if (calls.length === 0 && !isContent(message['content']) && typeof message['refusal'] !== 'string') {
    throw new RequestRefused(`'${where}' has neither content nor tool_calls`)
  }
  const ids = new Set<string>()
  for (const call of calls as unknown[]) {
    const inner = isFields(call) ? call['function'] : undefined
    if (!isFields(call) || typeof call['id'] !== 'string' || !isFields(inner)) {
      throw new RequestRefused(`'${where}.tool_calls' has a call without id or function`)
    }
    if (typeof inner['name'] !== 'string' || typeof inner['arguments'] !== 'string') {
      throw new RequestRefused(`'${where}.tool_calls': name and arguments must be text`)
    }
    ids.add(call['id'])
  }
  if (ids.size !== calls.length) throw new RequestRefused(`'${where}.tool_calls' has an id twice`)
  return ids
}

function isContent(content: unknown): boolean {
  return typeof content === 'string' || Array.isArray(content)
}

function textOf(content: unknown): string {
  if (typeof content === 'string') return content
  if (!Array.isArray(content)) return ''
  const parts = content as unknown[]
  return parts.map((part) => (isFields(part) && typeof part['text'] === 'string' ? part['text'] : '')).join('')
}

/**
 * Input tokens: a quarter of the characters of messages, tools and response format, as they were sent. Exact for compact
 * JSON; nothing is serialised again but the few other fields.
 */
export function inputTokensOf(text: string, { body, messages }: ScriptedRequest): number {
  const { messages: _messages, tools, response_format: format, ...rest } = body
  let others = JSON.stringify(rest).length + ',"messages":[]'.length + messages.length - 1
  if (tools !== undefined) others += ',"tools":'.length
  if (format !== undefined) others += ',"response_format":'.length
  return Math.ceil(Math.max(text.length - others, 0) / 4)
}

/** Whether a stream ends with a usage chunk. */
export function includesUsage({ body }: ScriptedRequest): boolean {
  const options = body['stream_options']
  return isFields(options) && options['include_usage'] === true
}

// --- the reply ----------------------------------------------------------------------------------------------------

/** Decides a reply: cuts the text at `max_tokens`, fills in ids, finish reason and usage. */
export function settle(answer: ScriptedAnswer, request: ScriptedRequest, inputTokens: number): Settled {
  const calls = (answer.calls ?? []).map((call, position) => ({
    id: call.id ?? `call_${request.index}_${position}`,
    name: call.name,
    arguments: typeof call.arguments === 'string' ? call.arguments : JSON.stringify(call.arguments ?? {}),
  }))
  const whole = answer.text ?? null
  const cut = request.maxTokens !== null && whole !== null && scriptedTokens(whole) > request.maxTokens
  const text = cut ? whole.slice(0, (request.maxTokens ?? 0) * 4) : whole
  const settled = {
    id: `chatcmpl-scripted-${request.index}`,
    model: request.model,
    text: text ?? (calls.length > 0 || answer.refusal !== undefined ? null : ''),
    refusal: answer.refusal ?? null,
    calls: cut ? [] : calls,
    finish: answer.finish ?? (cut ? 'length' : calls.length > 0 ? 'tool_calls' : 'stop'),
  }
  const counted = countOf(settled, inputTokens)
  const { usage } = answer
  if (usage === null) return { ...settled, usage: null }
  return {
    ...settled,
    usage: {
      input: usage?.input ?? counted.input,
      output: usage?.output ?? counted.output,
      cached: usage?.cached ?? 0,
    },
  }
}

/** What a reply counts, whatever usage the script told to send. */
export function countOf(settled: Omit<Settled, 'usage'>, input: number): { input: number; output: number } {
  let output = scriptedTokens(settled.text ?? '') + scriptedTokens(settled.refusal ?? '')
  for (const call of settled.calls) output += scriptedTokens(call.name + call.arguments)
  return { input, output }
}

function usageOf({ usage }: Settled): object | null {
  if (usage === null) return null
  return {
    prompt_tokens: usage.input,
    completion_tokens: usage.output,
    total_tokens: usage.input + usage.output,
    prompt_tokens_details: { cached_tokens: usage.cached },
  }
}

const callOf = (call: Settled['calls'][number]): object => ({
  id: call.id,
  type: 'function',
  function: { name: call.name, arguments: call.arguments },
})

/** The body of a reply that is not streamed. */
export function completionOf(settled: Settled): object {
  const usage = usageOf(settled)
  return {
    id: settled.id,
    object: 'chat.completion',
    created: 0,
    model: settled.model,
    choices: [
      {
        index: 0,
        message: {
          role: 'assistant',
          content: settled.text,
          refusal: settled.refusal,
          ...(settled.calls.length === 0 ? {} : { tool_calls: settled.calls.map(callOf) }),
        },
        logprobs: null,
        finish_reason: settled.finish,
      },
    ],
    ...(usage === null ? {} : { usage }),
  }
}

/** The events of a stream: role, text in pieces, calls in pieces with their index, finish, usage, `[DONE]`. */
export function eventsOf(settled: Settled, withUsage: boolean, characters: number): string[] {
  const chunk = (choices: readonly object[], more: object = {}): string =>
    `data: ${JSON.stringify({ id: settled.id, object: 'chat.completion.chunk', created: 0, model: settled.model, choices, ...more })}\n\n`
  const delta = (fields: object, finish: string | null = null): string =>
    chunk([{ index: 0, delta: fields, logprobs: null, finish_reason: finish }])
  const events = [delta({ role: 'assistant', content: settled.text === null ? null : '' })]
  for (const piece of pieces(settled.text ?? '', characters)) events.push(delta({ content: piece }))
  if (settled.refusal !== null) events.push(delta({ refusal: settled.refusal }))
  settled.calls.forEach((call, index) => {
    const start = { index, id: call.id, type: 'function', function: { name: call.name, arguments: '' } }
    events.push(delta({ tool_calls: [start] }))
    for (const piece of pieces(call.arguments, characters * 2)) {
      events.push(delta({ tool_calls: [{ index, function: { arguments: piece } }] }))
    }
  })
  events.push(delta({}, settled.finish))
  const usage = usageOf(settled)
  if (withUsage && usage !== null) events.push(chunk([], { usage }))
  events.push('data: [DONE]\n\n')
  return events
}

/** Pieces of so many UTF-16 units, never between the halves of a character. */
function* pieces(text: string, size: number): Generator<string> {
  let at = 0
  while (at < text.length) {
    let end = Math.min(at + size, text.length)
    const code = text.charCodeAt(end - 1)
    if (code >= 0xd800 && code <= 0xdbff && end < text.length) end += 1
    yield text.slice(at, end)
    at = end
  }
}
