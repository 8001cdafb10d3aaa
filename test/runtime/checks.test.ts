import { describe, expect, test } from 'vitest'
import { assign } from 'xstate'
import { decideTwice } from '../../runtime/checks.js'
import type { Machines } from '../../runtime/state.js'
import { shippedMachines } from '../support/crew-stage.js'
import { answer, defined, Desk, outcome, replied, task } from '../support/envelopes.js'

/** A desk at the point where the agent's call is out. */
const asked = (machines: Machines = shippedMachines): Desk => {
  const desk = new Desk(machines)
  desk.all(defined(), task())
  return desk
}
const withAgent = (implementations: object): Machines => ({
  ...shippedMachines,
  agent: shippedMachines['agent']!.provide(implementations as never),
})
const take = (desk: Desk) =>
  decideTwice(
    desk.state,
    { ...outcome(desk.effect(), replied(), [answer('x')]), at: desk.now },
    { scope: desk.scope, machines: desk.machines },
  )

describe('checks', () => {
  test('Q1 checks: a pure commit is decided as without them, and leaves the same state', () => {
    const [checked, plain] = [asked(), asked()]
    const commit = take(checked)
    const other = plain.take(outcome(plain.effect(), replied(), [answer('x')]))
    expect(Buffer.from(commit.digest)).toEqual(Buffer.from(other.digest))
    expect(checked.hash).toBe(plain.hash)
  })

  test('Q1 checks: a machine that draws from outside stops with IMPURE_MACHINE', () => {
    let drawn = 0
    const impure = withAgent({ actions: { takeReply: assign({ reason: () => `${(drawn += 1)}` }) } })
    expect(() => take(asked(impure))).toThrow(expect.objectContaining({ code: 'IMPURE_MACHINE' }))
  })

  class Own {}
  const odd = [new Map([['a', 1]]), new Set(), new Own(), new Date(0), () => 1, undefined, Number.POSITIVE_INFINITY]
  test.each(odd)(
    'Q2 checks: a context with %s, which would come back as something else, is CONTEXT_NOT_PLAIN',
    (value) => {
      const desk = asked(withAgent({ actions: { reserve: assign({ reason: () => ({ deep: [value] }) }) } }))
      expect(() =>
        decideTwice(desk.state, { ...task('k2'), at: desk.now }, { scope: desk.scope, machines: desk.machines }),
      ).toThrow(
        expect.objectContaining({ code: 'CONTEXT_NOT_PLAIN', message: expect.stringContaining('agent/writer-r2') }),
      )
    },
  )

  test('Q3 checks: a machine that changes its context in place fails at once', () => {
    const guards = {
      calls: ({ context }: { context: { verdicts: unknown[] } }) => {
        context.verdicts.push('mine')
        return false
      },
    }
    const desk = asked(withAgent({ guards }))
    expect(() => take(desk)).toThrow(expect.objectContaining({ code: 'IMPURE_MACHINE' }))
  })
})
