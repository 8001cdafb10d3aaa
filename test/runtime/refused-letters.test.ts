import { expect, test } from 'vitest'
import { errorCodes } from '../../runtime/errors.js'
import { isRefused, noRefusedLetters, type RefusedInfo, whyNotAgain } from '../../runtime/refused-letters.js'

const letter: RefusedInfo = {
  ...{ id: 'm1-a', crew: 'desk', from: 'port/model', to: 'agent/x', type: 'model.replied', reason: '', at: 0 },
  ...{ code: 'MESSAGE_REFUSED', bytes: 1, hash: '', kept: 'whole', returned: false },
}

test('RFL1 again: only what other code may take, is there whole, and nobody has gone on without', () => {
  const may = errorCodes.filter((code) => whyNotAgain({ ...letter, code }) === null)
  expect(may).toEqual(['CREW_UNKNOWN', 'MESSAGE_REFUSED'])
  expect(whyNotAgain({ ...letter, kept: 'beside' })).toBeNull()
  expect(whyNotAgain({ ...letter, kept: 'none' })).toMatch(/not kept/)
  expect(whyNotAgain({ ...letter, returned: true })).toMatch(/sender/)
  expect(whyNotAgain({ ...letter, code: 'OUTCOME_FORGED' })).toMatch(/OUTCOME_FORGED/)
})

test('RFL1 ids: those of refused letters are none of a crew’s own table', () => {
  expect(['m1-a', `m${'9'.repeat(16)}-zzzzzzzzzzzzz`].map(isRefused)).toEqual([true, true])
  expect(['1-0', 'm1', 'm1-', 'm-a', 'm1-a.b', 'm1-*', 'm1-A', ''].some(isRefused)).toBe(false)
})

test('refused: a store has none', async () => {
  expect((await noRefusedLetters.list().next()).done).toBe(true)
  expect(await noRefusedLetters.drop('desk')).toBe(0)
  for (const asked of [noRefusedLetters.show, noRefusedLetters.replay, noRefusedLetters.drop])
    await expect(asked('desk', 'm1-a')).rejects.toMatchObject({ code: 'LETTER_UNKNOWN' })
})
