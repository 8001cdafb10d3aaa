import { describe, expect, test } from 'vitest'
import type { ToolCall } from '../../machines/index.js'
import { shortHash } from '../../runtime/codec.js'
import type { Draft } from '../../runtime/envelope.js'
import type { ToolOutcome, ToolVerified } from '../../runtime/ports.js'
import { isRemoteOutcome, outcomeAddress, readRemoteOutcome, remoteOutcome } from '../../runtime/remote-outcome.js'
import { type Effect, emptyState, type ShardState } from '../../runtime/state.js'
import { code } from '../support/values.js'

const half = (): number => 0.5

/** A shard whose effect 3-0 a tool worker has. */
function stateWith(effect: Partial<Effect> = {}, call: Partial<ToolCall> = {}): ShardState {
  const state = { ...emptyState('s1'), sequence: 9 }
  const body = { type: 'tool.call', effect: 'pure', attempt: 1, tool: 'work', timeoutMs: 1_000, ...call } as ToolCall
  const open: Effect = {
    ...{ id: '3-0', from: 'tool/x', body, length: 0, hash: '', executor: 't.7', startBy: 1, parked: false },
    ...effect,
  }
  state.effects.set(open.id, open)
  return state
}
const read = (outcome: ToolOutcome | ToolVerified, state = stateWith(), executor = 't.7'): Draft | null =>
  readRemoteOutcome(remoteOutcome(executor, '3-0', outcome), state, half)

describe('remote outcome', () => {
  test('words: what an executor brings is what the actor that asked is told', () => {
    expect(read({ status: 'ok', content: 'found', truncated: false })).toEqual({
      ...{ from: 'port/tool', to: 'tool/x', cause: '3-0', values: ['found'] },
      body: { type: 'tool.succeeded', bytes: 5, result: shortHash('found') },
    })
    expect(read({ status: 'failed', kind: 'threw', message: 'oh' })!.body).toMatchObject({
      kind: 'threw',
      retryMs: 375,
    })
    expect(read({ status: 'failed', kind: 'told', message: 'no' })!.body).toMatchObject({ kind: 'told', retryMs: null })
    const once = stateWith({}, { effect: 'once' })
    expect(read({ status: 'failed', kind: 'timeout', message: '' }, once)!.body).toMatchObject({ retryMs: null })
    expect(read({ status: 'dropped' })!.body).toEqual({ type: 'effect.interrupted', started: false })
    const asked = stateWith({}, { type: 'tool.verify' })
    expect(read({ done: true, content: 'yes' }, asked)).toMatchObject({ body: { done: true }, values: ['yes'] })
    expect(read({ done: null }, asked)!.body).toMatchObject({ type: 'tool.verified', done: null })
  })

  test('RMO1 forged: whoever is not the executor that the record names brings nothing', () => {
    const ok = { status: 'ok' as const, content: 'x', truncated: false }
    const forged = (letter: Draft, state = stateWith()) => expect(() => readRemoteOutcome(letter, state, half))
    forged(remoteOutcome('t.6', '3-0', ok)).toThrow(code('OUTCOME_FORGED'))
    forged(remoteOutcome('other.7', '3-0', ok)).toThrow(code('OUTCOME_FORGED'))
    // The address is bound by the server, the executor in the body is not.
    forged({ ...remoteOutcome('t.7', '3-0', ok), to: outcomeAddress('other') }).toThrow(code('OUTCOME_FORGED'))
    forged(remoteOutcome('t.7', '77-0', ok)).toThrow(code('OUTCOME_FORGED'))
    forged(remoteOutcome('t.7', 'nonsense', ok)).toThrow(code('OUTCOME_FORGED'))
    // Recorded as nobody's yet: the owner has it.
    forged(remoteOutcome('t.7', '3-0', ok), stateWith({ startBy: null })).toThrow(code('OUTCOME_FORGED'))
    forged({ ...remoteOutcome('t.7', '3-0', ok), body: { type: 'run.finished' } }).toThrow(code('OUTCOME_FORGED'))
  })

  test('RMO1 nonsense: an outcome of another kind of work, or of no kind, is refused', () => {
    const ok = { status: 'ok' as const, content: 'x', truncated: false }
    expect(() => read({ done: true, content: 'x' })).toThrow(code('ENVELOPE_INVALID'))
    expect(() => read(ok, stateWith({}, { type: 'tool.verify' }))).toThrow(code('ENVELOPE_INVALID'))
    const letter = remoteOutcome('t.7', '3-0', ok)
    const odd = { ...letter, body: { ...letter.body, status: 'great' } }
    expect(() => readRemoteOutcome(odd, stateWith(), half)).toThrow(code('ENVELOPE_INVALID'))
    expect(isRemoteOutcome(letter)).toBe(true)
    expect(isRemoteOutcome({ ...letter, to: 'tool/x' })).toBe(false)
  })

  test('RMO2 late: the outcome of an effect that is closed is nothing, and no error', () => {
    const state = stateWith()
    state.effects.clear()
    expect(read({ status: 'dropped' }, state)).toBeNull()
  })
})
