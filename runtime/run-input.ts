/**
 * What a crew is asked: the input of a run in its three forms, and what goes with it.
 *
 * Owns: the shapes, their check, the chat messages that come of them, the key that an input names.
 * Does not own: what the crew does with them (`crew-handle.ts`).
 *
 * - RI1 An input becomes chat messages as JSON text, or is refused with a code before anything is journalled.
 */
import { z } from 'zod'
import { contentHash } from './codec.js'
import { textOf } from './conversation.js'
import { TroupeError } from './errors.js'
import type { ChatMessage } from './run.js'

/** Largest input of a run, in characters of JSON. */
const maxInput = 16 * 1_048_576

/** A piece of a message. */
export type Part =
  | { readonly type: 'text'; readonly text: string }
  /** `url` may be a `data:` URL. */
  | { readonly type: 'image'; readonly url: string }
  /** A file as base64 with its media type. */
  | { readonly type: 'file'; readonly name: string; readonly mediaType: string; readonly data: string }

/** A task: text, parts, or whole messages in the OpenAI shape. */
export type RunInput = string | readonly Part[] | { readonly messages: readonly ChatMessage[] }

/** How to start a run. */
export interface StartOptions {
  /** JSON that the run's tools and instructions see; journalled. */
  readonly data?: unknown
  /** The same key names the same run. @default a new one */
  readonly key?: string
  /** Cancels the run. Leaving a stream does not. */
  readonly signal?: AbortSignal
}

const part = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('text'), text: z.string() }),
  z.strictObject({ type: z.literal('image'), url: z.string().regex(/^(https?|data):/) }),
  z.strictObject({ type: z.literal('file'), name: z.string(), mediaType: z.string(), data: z.string() }),
])
const chatMessage = z.looseObject({ role: z.enum(['system', 'developer', 'user', 'assistant', 'tool']) })
const runInput = z.union([z.string(), z.array(part).min(1), z.strictObject({ messages: z.array(chatMessage).min(1) })])

/** The messages of a task as JSON text, and what of it is text. @throws TroupeError `INPUT_INVALID`. */
export function messagesOf(input: RunInput): { readonly messages: string[]; readonly text: string } {
  const checked = runInput.safeParse(input)
  if (!checked.success) {
    const [issue] = checked.error.issues
    throw new TroupeError(
      'INPUT_INVALID',
      `the input is not text, parts or messages: ${issue?.path.map(String).join('.') ?? ''} ${issue?.message ?? ''}`,
    )
  }
  const given = checked.data
  const messages =
    typeof given === 'string' ? [user(given)] : Array.isArray(given) ? [user(given.map(toContent))] : given.messages
  const texts = messages.map((message) => JSON.stringify(message))
  if (texts.reduce((sum, text) => sum + text.length, 0) > maxInput) {
    throw new TroupeError('ENVELOPE_TOO_LARGE', `the input has more than ${maxInput} characters`)
  }
  return { messages: texts, text: texts.map(textOf).join('\n') }
}

function user(content: unknown): ChatMessage {
  return { role: 'user', content }
}

function toContent(given: Part): unknown {
  if (given.type === 'text') return given
  if (given.type === 'image') return { type: 'image_url', image_url: { url: given.url } }
  return { type: 'file', file: { filename: given.name, file_data: `data:${given.mediaType};base64,${given.data}` } }
}

/** The `data` of a run as JSON text. @throws TroupeError `INPUT_INVALID`. */
export function dataText(data: unknown): string {
  try {
    const text = JSON.stringify(data) as string | undefined
    if (text !== undefined && text.length <= maxInput) return text
  } catch {
    // Told below: a cycle, a bigint.
  }
  throw new TroupeError('INPUT_INVALID', 'the data of a run must be JSON')
}

/** The key of a run that is named by its input: the same task again is the same run. */
export function keyOf(id: string, input: RunInput): string {
  return contentHash(`${id}\n${JSON.stringify(input)}`).slice(0, 32)
}
