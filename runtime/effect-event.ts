/**
 * The event of an effect: what the outside may watch of work that is given to a port.
 *
 * Owns: its fields.
 * Does not own: when it is shown (`commit.ts`), its public form (`events.ts`).
 */
import type { Message } from './scope.js'
import type { Effect } from './state.js'

/** The event of work that is asked for. @param id of the effect */
export function called(body: Effect['body'], id: string): Message {
  const { type } = body
  if (type === 'promise.call') return { type: 'promise.called', kind: body.kind, effect: body.effect }
  if (type === 'round.prepare') return { type: 'round.asked', agent: body.agent, rounds: body.rounds }
  if (type === 'human.ask') {
    const { kind, agent, callId, tool, waitMs } = body
    return { type: 'human.asked', ask: id, kind, agent, callId, tool, waitMs }
  }
  if (type !== 'model.call')
    return {
      type: type === 'tool.call' ? 'tool.called' : 'tool.verified',
      callId: body.callId,
      tool: body.tool,
      agent: body.agent,
      attempt: body.attempt,
    }
  const { agent, deployments, maxOutputTokens } = body
  return { type: 'model.called', agent, deployments, maxOutputTokens }
}
