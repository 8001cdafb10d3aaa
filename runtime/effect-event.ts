/**
 * The event of an effect: what the outside may watch of work that is given to a port.
 *
 * Owns: its fields.
 * Does not own: when it is shown (`commit.ts`), its public form (`events.ts`).
 */
import type { ModelCall, ToolCall } from '../machines/index.js'
import type { Message } from './scope.js'

/** The event of work that is asked for. */
export function called(body: ModelCall | ToolCall): Message {
  const { type } = body
  if (type !== 'model.call')
    return {
      type: type === 'tool.call' ? 'tool.called' : 'tool.verified',
      callId: body.callId,
      tool: body.tool,
      agent: body.agent,
      attempt: body.attempt,
    }
  return { type: 'model.called', agent: body.agent, deployment: body.deployment, maxOutputTokens: body.maxOutputTokens }
}
