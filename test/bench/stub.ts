/**
 * A `fetch` that answers like the provider, in this process and without a socket: for counting what the rest costs.
 * It never looks at the conversation, only at its own count of calls.
 */
import { lookResult } from './measure.js'

/** Asks for the tool until `rounds` calls were made, then answers; starts over after the answer. */
export function stubFetch(rounds: () => number): typeof fetch {
  let done = 0
  return () => {
    const more = done < rounds()
    done = more ? done + 1 : 0
    const message = more
      ? {
          role: 'assistant',
          content: null,
          tool_calls: [
            { id: `call_${done}`, type: 'function', function: { name: 'look', arguments: `{"at":${done}}` } },
          ],
        }
      : { role: 'assistant', content: 'done' }
    const body = {
      id: 'stub',
      object: 'chat.completion',
      model: 'gpt-5-mini',
      choices: [{ index: 0, message, finish_reason: more ? 'tool_calls' : 'stop' }],
      usage: { prompt_tokens: 100, completion_tokens: 10, total_tokens: 110 },
    }
    return Promise.resolve(
      new Response(JSON.stringify(body), { status: 200, headers: { 'content-type': 'application/json' } }),
    )
  }
}

/** A tool result of so many bytes. */
export function resultOf(bytes: number): (at: number) => string {
  return (at) => `${lookResult(at)}${'x'.repeat(bytes)}`.slice(0, bytes)
}
