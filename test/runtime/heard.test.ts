import { expect, test } from 'vitest'
import { Heard, isHeardAgain, messageKey } from '../../runtime/heard.js'
import { emptyState, fromStoredState, toStoredState } from '../../runtime/state.js'
import { Scope } from '../../runtime/scope.js'
import { code } from '../support/values.js'

const said = { from: 'client/a', to: 'machine/main', cause: 'k' }

test('HE1 heard: the last 1,024 keys are known, whoever says them, and the plain data keeps them in order', () => {
  const state = emptyState('s')
  for (let index = 0; index < 1_100; index += 1) {
    state.sequence = index + 1
    expect(isHeardAgain(state, { ...said, cause: `k${index}` })).toBe(false)
  }
  expect(state.heard.size).toBe(1_024)
  expect(isHeardAgain(state, { ...said, from: 'client/b', cause: 'k1099' })).toBe(true)
  expect(state.heard.commitOf('k1099')).toBe(1_100)
  expect(state.heard.commitOf('k75')).toBeUndefined()
  expect(state.heard.commitOf('k76')).toBe(77)
  const scope = new Scope()
  const stored = toStoredState(state, scope, {})
  const again = fromStoredState('s', structuredClone(stored), scope, {})
  expect(toStoredState(again, scope, {})).toEqual(stored)
  expect(again.heard.commitOf('k76')).toBe(77)
})

test('HE1 heard: what has no key, comes from inside or is for somebody else is never the same', () => {
  const state = emptyState('s')
  for (const other of [{ cause: '' }, { from: 'machine/main' }, { from: 'port/promise' }, { to: 'crew/main' }])
    for (const envelope of [
      { ...said, ...other },
      { ...said, ...other },
    ])
      expect(isHeardAgain(state, envelope)).toBe(false)
  expect(state.heard.size).toBe(0)
  expect(toStoredState(state, new Scope(), {})).not.toHaveProperty('heard')
  expect(new Heard().toStored()).toEqual([])
})

test('heard: a key that is none is refused', () => {
  for (const key of ['', 'k'.repeat(65), 7 as unknown as string])
    expect(() => messageKey(key)).toThrow(code('INPUT_INVALID'))
  expect(messageKey('k'.repeat(64))).toHaveLength(64)
})
