/**
 * Effects: what actors asked the ports for and is not over.
 *
 * Owns: opening and closing them, who has one, what a closed one may still owe its account.
 * Does not own: running them (`dispatcher.ts`), the order of messages (`commit.ts`).
 */
import type { Amounts, ModelCall } from '../machines/index.js'
import { emptyHash } from './conversation.js'
import type { Decided } from './decided.js'
import { called } from './effect-event.js'
import type { Message } from './scope.js'
import type { Effect, ShardState } from './state.js'

/** An account, and a grant of it. */
type Owed = Pick<ModelCall, 'keeper' | 'grant'>

/** Opens an effect: it sees its conversation as it is now. */
export function ask(decided: Decided, from: string, message: Message): void {
  const { state } = decided
  const body = message as unknown as Effect['body']
  const log = state.logs.get(body.conversation)
  const effect: Effect = {
    id: decided.generation(),
    from,
    body,
    length: log?.length ?? 0,
    hash: log?.hash ?? emptyHash,
    executor: state.owner,
    startBy: null,
    parked: false,
  }
  state.effects.set(effect.id, effect)
  decided.effects.push(effect)
  decided.emit(from, called(body, effect.id))
  decided.say('effect', `${effect.id} ${effect.length} ${effect.hash}`)
}

/** Closes everything that an actor asked for. */
export function withdraw(decided: Decided, from: string): void {
  const { state, cancelled } = decided
  for (const effect of state.effects.values()) {
    if (effect.from !== from) continue
    state.effects.delete(effect.id)
    owe(state, effect, { type: 'effect.cancel' })
    cancelled.push(effect)
  }
}

/** Closes an effect by its outcome; gives who asked, null when it was closed before. */
export function close(state: ShardState, id: string, outcome: Message): string | null {
  const effect = state.effects.get(id)
  if (effect === undefined) return null
  state.effects.delete(id)
  owe(state, effect, outcome)
  return effect.from
}

/** Notes who is about to begin an effect, and by when. */
export function dispatched(decided: Decided, body: Message): void {
  const effect = decided.state.effects.get(body['effect'] as string)
  if (effect === undefined) return
  effect.startBy = body['startBy'] as number
  effect.executor = body['executor'] as string
  decided.dispatched.push(effect.id)
  decided.say('dispatched', effect.id)
}

/** Whoever announced to begin these has not the shard any more, and can not announce it again. */
export function lost(state: ShardState, at: number): void {
  for (const effect of state.effects.values()) if (effect.startBy !== null) effect.lostAt ??= at
}

/** These wait for the next owner; any other that waited is now the present owner's. */
export function park(state: ShardState, effects: readonly string[]): void {
  for (const effect of state.effects.values()) {
    const parked = effects.includes(effect.id)
    if (effect.parked && !parked) effect.executor = state.owner
    effect.parked = parked
  }
}

/** What is told to an account. */
export interface Settlement {
  readonly keeper: string
  readonly message: Message
}

/** Who fails cannot settle what it has asked for: its calls count at their worst until a real bill comes. */
export function settleWorst(state: ShardState, from: string): Settlement[] {
  const open = [...state.effects.values()].filter((effect) => effect.from === from)
  return open.flatMap(({ body }) => (body.type === 'model.call' ? [settlementOf(body, body.worst, false)] : []))
}

/** What an effect cost whose outcome its actor failed over. Of a call that nobody took, nothing. */
export function settleLost({ body }: Effect, outcome: Message): Settlement[] {
  if (body.type !== 'model.call' || outcome.type === 'model.refused') return []
  if (!('spent' in outcome)) return [settlementOf(body, body.worst, false)]
  return [settlementOf(body, outcome['spent'] as Amounts, isReal(outcome))]
}

/** A call that failed was one, as it is for an agent that waits for it. */
function settlementOf({ keeper, grant }: Owed, amounts: Amounts, real: boolean): Settlement {
  const spent = { ...amounts, modelCalls: 1 }
  return { keeper, message: { type: 'budget.settle', grant, spent, real, toolCalls: 0 } }
}

/** A closed effect's outcome: what it cost still counts, once. Null when it owes nothing. */
export function settleLate(state: ShardState, id: string, outcome: Message): Settlement | null {
  const owed = state.owed.get(id)
  if (owed === undefined || !('spent' in outcome)) return null
  state.owed.delete(id)
  return settlementOf(owed, outcome['spent'] as Amounts, isReal(outcome))
}

/** Remembers the grant of a model call that ends without a bill. */
function owe(state: ShardState, effect: Effect, outcome: Message): void {
  if (effect.body.type !== 'model.call' || ('spent' in outcome && isReal(outcome))) return
  // Whoever is stopped behind its keeper, when a whole crew is, owes nobody.
  if (!state.actors.has(effect.body.keeper)) return
  state.owed.set(effect.id, { keeper: effect.body.keeper, grant: effect.body.grant })
}

/** Whether an outcome's counts are the provider's own. */
function isReal(outcome: Message): boolean {
  const usage = outcome['usage'] as { estimated?: boolean } | undefined
  return usage === undefined ? outcome['real'] === true : usage.estimated === false
}
