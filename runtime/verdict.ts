/**
 * The edge's judgement of what a model says: its tool calls and its structured answer; and what it is told of both.
 *
 * Owns: names and arguments of calls, the words in which a model is told what was wrong, JSON schemas for the wire.
 * Does not own: running anything; when to judge (once, before the append: the verdict travels in the envelope).
 *
 * - VD1 A verdict `tool` means: the name is a tool of the agent, and `JSON.parse(arguments)` fits its schema.
 * - VD2 `arguments` is always text that the model wrote, whole or a part of it; what zod made of it is not kept, since
 *   the tool's schema is applied again where it runs.
 * - VD3 Every call gets exactly one verdict, in order; nothing throws, whatever the model or a user's schema does.
 * - VD4 A verdict is JSON-safe, and what the model is told takes at most 2 KiB, without a stack.
 */
import { Buffer } from 'node:buffer'
import { z } from 'zod'
import { delegateName, handoffName } from './called-names.js'
import type { Agent, AnyTool, Crew, EffectClass } from './define.js'
import { TroupeError } from './errors.js'
import type { RawToolCall } from './ports.js'
import { cutBytes, redact, wellFormed } from './redact.js'

/** Largest arguments of one call that are looked at, in bytes of UTF-8. */
export const maxArgumentBytes = 256 * 1024
/** Deepest nesting of arguments and of structured answers. */
export const maxDepth = 64
/** Most values in a structured answer; a graph that shares its parts unfolds to many. */
const maxValues = 1_000_000
/** Longest text that a model is told about a mistake, in bytes. */
const maxMessageBytes = 2048
/** Longest name of an unknown tool that is kept, in bytes. */
const maxNameBytes = 256
const maxIssues = 8

/** What an agent may call, as far as judging needs it. */
export interface JudgedAgent {
  readonly tools: ReadonlyMap<string, AnyTool>
  readonly delegates: ReadonlySet<string>
  /** Agents that it may hand over to, by the names of their tools. */
  readonly handoffs: ReadonlyMap<string, string>
  /** Calls taken from one reply; the rest are refused. */
  readonly callsPerRound: number
}

/** The call goes to a tool. */
export interface ToolVerdict {
  readonly verdict: 'tool'
  readonly tool: string
  readonly effect: EffectClass
  readonly timeoutMs: number
  /** Further tries after a failure; 0 for a `once` tool, whatever its definition says. */
  readonly retries: number
  readonly onUnknown: 'tell' | 'verify'
  /** JSON text that fits the tool's schema: the model's own, or the part of it that was meant. */
  readonly arguments: string
  /** True when `arguments` is not what the model wrote, letter by letter. */
  readonly repaired: boolean
}

/** The call goes to another agent. */
export interface DelegateVerdict {
  readonly verdict: 'delegate'
  readonly agent: string
  /** The task. */
  readonly input: string
}

/** Another agent goes on. */
export interface HandoffVerdict {
  readonly verdict: 'handoff'
  readonly agent: string
}

/** The call is not made; the model is told why. */
export interface RefusedVerdict {
  readonly verdict: 'refused'
  readonly reason: 'unknown_tool' | 'invalid_arguments' | 'too_many_calls' | 'duplicate_id' | 'second_handoff'
  readonly message: string
}

/** The judgement of one call. `name` is what the model wrote, at most 256 bytes of it; `index` its place in the reply. */
export type Verdict = { readonly index: number; readonly callId: string; readonly name: string } & (
  | ToolVerdict
  | DelegateVerdict
  | HandoffVerdict
  | RefusedVerdict
)

/** Arguments of a call to another agent. */
const delegateInput = z.object({ task: z.string().regex(/\S/, 'must not be empty') })
/** Arguments of a hand-over: for whoever goes on, who reads them in the conversation. */
const handoffInput = z.object({ reason: z.string().optional() })

/**
 * Judges the calls of one reply. Runs the tools' schemas, which may hold the user's own (async) checks: bound its time
 * from outside if those may hang.
 *
 * - More than `callsPerRound` calls, and a call whose id another one of the reply has, are refused.
 * - A name that is no tool's is taken for one only if stripping a `functions.` before it, `()` behind it, or everything
 *   from the first control token (`<|channel|>…`) on gives exactly a known name.
 * - Empty arguments are `{}`. Arguments that are a JSON string of JSON, or lie in one code fence, are unwrapped; nothing
 *   else is repaired.
 * - Keys that could reach a prototype (`__proto__`, `constructor.prototype`) are refused.
 *
 * Never rejects.
 */
export async function judgeCalls(calls: readonly RawToolCall[], agent: JudgedAgent): Promise<Verdict[]> {
  const seen = new Set<string>()
  const verdicts = await Promise.all(
    calls.map((call, index) => {
      const twice = seen.has(call.id)
      seen.add(call.id)
      return judgeCall(call, index, twice, agent)
    }),
  )
  const first = verdicts.findIndex(({ verdict }) => verdict === 'handoff')
  return verdicts.map((each, at) => (each.verdict === 'handoff' && at > first ? secondHandoff(each) : each))
}

function secondHandoff({ index, callId, name }: Verdict): Verdict {
  const message = 'Not done: another call of the same reply hands over already.'
  return { index, callId, name, verdict: 'refused', reason: 'second_handoff', message }
}

async function judgeCall(call: RawToolCall, index: number, twice: boolean, agent: JudgedAgent): Promise<Verdict> {
  const head = { index, callId: wellFormed(call.id), name: cutBytes(call.name, maxNameBytes) }
  const refused = (reason: RefusedVerdict['reason'], message: string): Verdict => {
    return { ...head, verdict: 'refused', reason, message: cutBytes(message, maxMessageBytes) }
  }
  if (index >= agent.callsPerRound) {
    const limit = `Too many tool calls in one reply: at most ${agent.callsPerRound} are made.`
    return refused(
      'too_many_calls',
      `${limit} This call was not made; make it again in your next reply if you need it.`,
    )
  }
  if (twice) {
    const same = 'Another tool call of the same reply has the same id.'
    return refused('duplicate_id', `${same} This call was not made; make it again in your next reply.`)
  }
  const name = knownName(call.name, agent)
  if (name === null) return refused('unknown_tool', describeUnknown(call.name, agent))
  const tool = agent.tools.get(name)
  const next = agent.handoffs.get(name)
  const input = tool?.input ?? (next === undefined ? delegateInput : handoffInput)
  const found = await findArguments(call.arguments, input)
  if (!found.ok) return refused('invalid_arguments', `The arguments of ${name} were refused. ${found.message}`)
  if (next !== undefined) return { ...head, verdict: 'handoff', agent: next }
  if (tool === undefined) return { ...head, verdict: 'delegate', agent: name, input: taskOf(found.value) }
  return {
    ...head,
    verdict: 'tool',
    tool: name,
    effect: tool.effect,
    timeoutMs: tool.timeoutMs,
    retries: tool.effect === 'once' ? 0 : tool.retries,
    onUnknown: tool.onUnknown,
    arguments: found.text,
    repaired: found.text !== call.arguments,
  }
}

function taskOf(value: unknown): string {
  return wellFormed((value as z.output<typeof delegateInput>).task)
}

function knownName(written: string, agent: JudgedAgent): string | null {
  const known = (name: string): boolean =>
    agent.tools.has(name) || agent.delegates.has(name) || agent.handoffs.has(name)
  if (known(written)) return written
  // no known name is longer than 64; the rest of a long one can only be a control token and what follows
  let name = written.slice(0, 512).trim()
  const token = name.search(/<\|[A-Za-z_]{1,32}\|>/)
  if (token !== -1) name = name.slice(0, token).trim()
  if (name.startsWith('functions.')) name = name.slice('functions.'.length)
  if (name.endsWith('()')) name = name.slice(0, -2)
  return known(name) ? name : null
}

function describeUnknown(written: string, agent: JudgedAgent): string {
  const names = [...agent.tools.keys(), ...agent.delegates, ...agent.handoffs.keys()]
  const quoted = JSON.stringify(cutBytes(written, 80))
  if (names.length === 0) return `There is no tool named ${quoted}: you have no tools. Answer without one.`
  const meant = names.filter((name) => written.startsWith(name)).sort((left, right) => right.length - left.length)[0]
  const guess = meant === undefined ? '' : ` Did you mean ${JSON.stringify(meant)}? Write the name alone.`
  return `There is no tool named ${quoted}.${guess} Your tools: ${names.join(', ')}.`
}

type Found<T> = { readonly ok: true; readonly text: string; readonly value: T } | Failed
type Failed = { readonly ok: false; readonly message: string }

/** The JSON that was meant and fits, with what the schema made of it. */
async function findArguments(written: string, schema: z.ZodType): Promise<Found<unknown>> {
  if (Buffer.byteLength(written) > maxArgumentBytes) {
    return { ok: false, message: `They are larger than ${maxArgumentBytes / 1024} KiB. Send less at once.` }
  }
  const text = wellFormed(written)
  if (text.trim() === '') return fit('{}', {}, schema)
  const parsed = parse(text)
  if (parsed.ok) {
    const fitted = await fit(text, parsed.value, schema)
    if (fitted.ok || typeof parsed.value !== 'string') return fitted
    const inner = parsed.value.trim() === '' ? '{}' : parsed.value
    const unwrapped = parse(inner)
    if (!unwrapped.ok || typeof unwrapped.value === 'string') return fitted
    return fit(wellFormed(inner), unwrapped.value, schema)
  }
  const body = fenced(text)
  const unwrapped = body === null ? parsed : parse(body)
  if (body !== null && unwrapped.ok) return fit(body, unwrapped.value, schema)
  return { ok: false, message: `They are not valid JSON: ${parsed.message}. Send one JSON object and nothing else.` }
}

/** What a text holds that is one code fence from its beginning to its end. */
function fenced(text: string): string | null {
  const trimmed = text.trim()
  if (trimmed.length < 6 || !trimmed.startsWith('```') || !trimmed.endsWith('```')) return null
  const body = trimmed.slice(3, -3).replace(/^[A-Za-z0-9_+-]{1,20}(?=[\s{["])/, '')
  return body.trim()
}

function parse(text: string): { readonly ok: true; readonly value: unknown } | Failed {
  try {
    return { ok: true, value: JSON.parse(text) as unknown }
  } catch (thrown) {
    return { ok: false, message: thrown instanceof Error ? thrown.message : 'it cannot be read' }
  }
}

async function fit(text: string, value: unknown, schema: z.ZodType): Promise<Found<unknown>> {
  const refusal = dangerous(value)
  if (refusal !== null) return { ok: false, message: refusal }
  try {
    const result = await schema.safeParseAsync(value)
    if (result.success) return { ok: true, text, value: result.data }
    return { ok: false, message: describeIssues(result.error) }
  } catch (thrown) {
    // a check of the user's own threw: nothing may run on arguments that nobody approved
    return { ok: false, message: `They could not be checked: ${redact(readMessage(thrown))}` }
  }
}

function readMessage(thrown: unknown): string {
  try {
    if (thrown instanceof Error && typeof thrown.message === 'string') return thrown.message.slice(0, 16_384)
    return typeof thrown === 'string' ? thrown.slice(0, 16_384) : 'the check failed'
  } catch {
    return 'the check failed'
  }
}

/** Why a parsed value may not go on, whatever its schema; null when it may. Walks without recursion. */
function dangerous(value: unknown): string | null {
  const open: { value: unknown; depth: number }[] = [{ value, depth: 0 }]
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    if (typeof next.value !== 'object' || next.value === null) continue
    if (next.depth >= maxDepth) return `The JSON is nested deeper than ${maxDepth} levels.`
    for (const [key, item] of Object.entries(next.value as Record<string, unknown>)) {
      if (key === '__proto__') return 'The key "__proto__" is not allowed.'
      if (key === 'constructor' && typeof item === 'object' && item !== null && Object.hasOwn(item, 'prototype')) {
        return 'The key "constructor.prototype" is not allowed.'
      }
      open.push({ value: item, depth: next.depth + 1 })
    }
  }
  return null
}

/**
 * What a validation error says to a model or a person: one line a problem, at most 8 of them, each with the field and
 * what was expected there. At most 2 KiB, no stack.
 */
export function describeIssues(error: z.ZodError): string {
  const lines = error.issues.slice(0, maxIssues).map((issue) => describeIssue(issue, [], 0))
  const more = error.issues.length - lines.length
  if (more > 0) lines.push(`… and ${more} more`)
  return cutBytes(lines.join('\n'), maxMessageBytes)
}

type Issue = z.core.$ZodIssue

function describeIssue(issue: Issue, above: readonly PropertyKey[], depth: number): string {
  const path = [...above, ...issue.path]
  if (issue.code === 'invalid_union' && issue.errors.length > 0 && depth < 4) {
    // "Invalid input" helps nobody: tell what the branch lacked that came closest
    const [closest] = [...issue.errors].sort((left, right) => left.length - right.length)
    const [first] = closest ?? []
    if (first !== undefined) return describeIssue(first, path, depth + 1)
  }
  const where = path.length === 0 ? '' : `Field "${path.map(showKey).join('.')}": `
  return `${where}${cutBytes(issue.message, 512)}`
}

function showKey(key: PropertyKey): string {
  return cutBytes(String(key), 80)
}

/**
 * The `tools` array of the OpenAI chat API as JSON text: the agent's tools in order, then its delegates, each a function
 * of one `task`, then those to whom it may hand over; null when there are none.
 * @throws TroupeError `CREW_INVALID` for a tool whose input has no JSON Schema (dates, bigints, `z.custom`) or is no object.
 */
export function toolSchemas(agent: Agent<unknown>, crew: Pick<Crew<unknown>, 'agents'>): string | null {
  const functions = agent.tools.map((tool) => {
    const parameters = jsonSchema(tool.input, `tool ${tool.name}: input`)
    if (parameters['type'] === undefined) parameters['type'] = 'object'
    if (parameters['type'] !== 'object') {
      throw new TroupeError(
        'CREW_INVALID',
        `tool ${tool.name}: input must be an object, as models call tools with objects`,
      )
    }
    return { name: tool.name, description: tool.description, parameters }
  })
  for (const delegate of agent.delegates) {
    const [other = '', , away] = delegate.split('/')
    const who = away === undefined ? delegate : `${away} of the crew ${other}`
    const told = crew.agents[delegate]?.description ?? ''
    const description = told === '' ? `Gives a task to the agent ${who} and returns its answer.` : told
    functions.push({ name: delegateName(delegate), description, parameters: structuredClone(delegateParameters) })
  }
  for (const { agent: next } of agent.handoffs) {
    const told = crew.agents[next]?.description ?? ''
    const description = `Hands the task over to the agent ${next}, who goes on from here and gives the answer. ${told}`
    functions.push({
      ...{ name: handoffName(next), description: description.trim() },
      parameters: structuredClone(handoffParameters),
    })
  }
  if (functions.length === 0) return null
  return JSON.stringify(functions.map((definition) => ({ type: 'function', function: definition })))
}

const delegateParameters: JsonSchema = {
  type: 'object',
  properties: {
    task: { type: 'string', description: 'What to do, with everything the agent must know: it sees nothing else.' },
  },
  required: ['task'],
  additionalProperties: false,
}

const handoffParameters: JsonSchema = {
  type: 'object',
  properties: { reason: { type: 'string', description: 'Why, in a sentence, for the one who goes on.' } },
  additionalProperties: false,
}

type JsonSchema = Record<string, unknown>

function jsonSchema(schema: z.ZodType, what: string): JsonSchema {
  try {
    const made: JsonSchema = { ...z.toJSONSchema(schema, { io: 'input', target: 'draft-7' }) }
    delete made['$schema']
    JSON.stringify(made)
    return made
  } catch (thrown) {
    const why = thrown instanceof Error ? thrown.message : 'unknown reason'
    throw new TroupeError('CREW_INVALID', `${what} has no JSON Schema: ${why}`, { cause: thrown })
  }
}

/**
 * Judges a structured answer: JSON, alone or in the text's only code fence, that fits `schema`. The value is what the
 * schema made of it, as plain JSON (no `undefined`, nothing shared with the schema). Never rejects.
 *
 * `message` is for the model: what was wrong, at most 2 KiB.
 */
export async function judgeOutput(
  text: string,
  schema: z.ZodType,
): Promise<{ readonly ok: true; readonly value: unknown } | { readonly ok: false; readonly message: string }> {
  const refused = (message: string) => ({ ok: false as const, message: cutBytes(message, maxMessageBytes) })
  const body = fenced(text) ?? onlyFence(text)
  const parsed = parse(text)
  const chosen = parsed.ok || body === null ? parsed : parse(body)
  if (!chosen.ok) {
    const why = parsed.ok ? '' : parsed.message
    return refused(`Your answer must be JSON and nothing else. It could not be read: ${why}`)
  }
  const fitted = await fit('', chosen.value, schema)
  if (!fitted.ok) return refused(`Your answer does not have the shape that was asked for. ${fitted.message}`)
  const plain = toPlain(fitted.value)
  if (plain.ok) return plain
  return refused(`Your answer was taken, but what the schema made of it is not JSON: ${plain.message}`)
}

/** The body of the only fenced block of a text; null when there is none or another one. */
function onlyFence(text: string): string | null {
  const parts = text.split('```', 4)
  return parts.length === 3 ? fenced(`\`\`\`${parts[1] ?? ''}\`\`\``) : null
}

/** A value as JSON gives it back, or why that would be another one. */
function toPlain(value: unknown): { readonly ok: true; readonly value: unknown } | Failed {
  try {
    const open: { value: unknown; depth: number }[] = [{ value, depth: 0 }]
    let left = maxValues
    for (let next = open.pop(); next !== undefined; next = open.pop()) {
      left -= 1
      const why = left < 0 ? `it holds more than ${maxValues} values.` : notJson(next.value, next.depth)
      if (why !== null) return { ok: false, message: why }
      if (typeof next.value !== 'object' || next.value === null) continue
      for (const item of Object.values(next.value as Record<string, unknown>)) {
        if (item !== undefined || Array.isArray(next.value)) open.push({ value: item, depth: next.depth + 1 })
      }
    }
    return { ok: true, value: JSON.parse(JSON.stringify(value)) as unknown }
  } catch (thrown) {
    return { ok: false, message: redact(readMessage(thrown)) }
  }
}

function notJson(value: unknown, depth: number): string | null {
  if (value === null || typeof value === 'string' || typeof value === 'boolean') return null
  if (typeof value === 'number') return Number.isFinite(value) ? null : `it holds ${value}.`
  if (typeof value !== 'object') return `it holds a value of type ${typeof value}.`
  if (depth >= maxDepth) return `it is nested deeper than ${maxDepth} levels.`
  const prototype: unknown = Object.getPrototypeOf(value)
  if (Array.isArray(value) || prototype === Object.prototype || prototype === null) return null
  return `it holds a ${value.constructor.name}.`
}

/**
 * `response_format` of the OpenAI chat API as JSON text, named `output`. `strict` is set when the schema is one that
 * strict mode takes (an object, every field required, only keywords it knows); its objects are then closed.
 * @throws TroupeError `CREW_INVALID` for a schema that has no JSON Schema.
 */
export function responseFormat(schema: z.ZodType): string {
  const open = jsonSchema(schema, 'output')
  const strict = open['type'] === 'object' && isStrict(open)
  const definition = strict ? { name: 'output', schema: close(open), strict: true } : { name: 'output', schema: open }
  return JSON.stringify({ type: 'json_schema', json_schema: definition })
}

/** Keywords of a schema that strict mode takes and that hold no schemas. */
const plainKeywords = new Set([
  ...['type', 'description', 'title', 'enum', 'const', 'required', 'pattern', 'minItems', 'maxItems'],
  ...['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf'],
])
const strictFormats = new Set(['date-time', 'time', 'date', 'duration', 'email', 'hostname', 'ipv4', 'ipv6', 'uuid'])

function isSchema(value: unknown): value is JsonSchema {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isStrict(schema: unknown): boolean {
  if (!isSchema(schema)) return false
  if (schema['type'] === undefined && schema['anyOf'] === undefined && schema['enum'] === undefined) return false
  if (schema['type'] === 'object' && schema['properties'] === undefined) return false
  return Object.entries(schema).every(([key, value]) => {
    if (plainKeywords.has(key)) return true
    if (key === 'additionalProperties') return value === false
    if (key === 'format') return typeof value === 'string' && strictFormats.has(value)
    if (key === 'items') return isStrict(value)
    if (key === 'anyOf') return Array.isArray(value) && value.every(isStrict)
    if (key !== 'properties' || !isSchema(value)) return false
    const required = Array.isArray(schema['required']) ? schema['required'] : []
    return Object.keys(value).every((name) => required.includes(name)) && Object.values(value).every(isStrict)
  })
}

/** The same schema with every object closed. */
function close(schema: JsonSchema): JsonSchema {
  const made: JsonSchema = { ...schema }
  if (isSchema(schema['items'])) made['items'] = close(schema['items'])
  if (Array.isArray(schema['anyOf'])) made['anyOf'] = schema['anyOf'].filter(isSchema).map(close)
  const properties = schema['properties']
  if (isSchema(properties)) {
    made['properties'] = Object.fromEntries(Object.entries(properties).filter(isField).map(closeField))
    made['additionalProperties'] = false
  }
  return made
}

function isField(entry: [string, unknown]): entry is [string, JsonSchema] {
  return isSchema(entry[1])
}

function closeField([name, field]: [string, JsonSchema]): [string, JsonSchema] {
  return [name, close(field)]
}
