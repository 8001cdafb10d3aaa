import { describe, expect, test } from 'vitest'
import { escalationMachine } from '../../machines/index.js'
import { drive } from '../support/machine-driver.js'

const input = {
  ...{ self: 'escalation/r1-run', crew: 'crew/main', run: 'r1', agent: 'writer' },
  ...{ account: 'run', dimension: 'nanoUsd', limit: 2_000_000_000, waitMs: 900 },
}
const answered = (decision: string, more: object = {}) => ({
  ...{ type: 'human.answered', decision, by: 'ada', bytes: 0, result: '', ...more },
})

describe('escalation', () => {
  test('escalation: asks a person, and says which budget is spent', () => {
    const escalation = drive(escalationMachine, input)
    expect(escalation.to('port/human')).toMatchObject([
      { type: 'human.ask', kind: 'budget', waitMs: 900, agent: 'writer' },
    ])
    expect(JSON.parse(String(escalation.to('port/human')[0]?.['arguments']))).toEqual({
      ...{ account: 'run', dimension: 'nanoUsd', limit: 2_000_000_000 },
    })
  })

  test('escalation: more, with a figure or without, is told the crew', () => {
    const limits = { nanoUsd: 5_000_000_000 }
    const escalation = drive(escalationMachine, input).send(answered('approved', { limits }))
    expect(escalation.to('crew/main')).toEqual([
      { type: 'budget.decided', account: 'run', dimension: 'nanoUsd', raised: true, reason: '', limits },
    ])
    expect(escalation.emitted).toMatchObject([{ type: 'human.answered', by: 'ada', edited: true }])
    expect(escalation.done).toBe(true)
    const bare = drive(escalationMachine, input).send(answered('approved'))
    expect(bare.to('crew/main')[0]).not.toHaveProperty('limits')
  })

  test('escalation: no more, said or by silence', () => {
    const denied = drive(escalationMachine, input).send(answered('denied'))
    expect(denied.to('crew/main')).toMatchObject([{ raised: false, reason: 'ada gave no more' }])
    const silent = drive(escalationMachine, input).fire()
    expect(silent.to('port/human')).toEqual([{ type: 'effect.cancel' }])
    expect(silent.to('crew/main')).toMatchObject([{ raised: false, reason: 'nobody answered in time' }])
    expect(silent.emitted).toMatchObject([{ type: 'human.expired' }])
    expect(silent.done).toBe(true)
  })
})
