import { describe, expect, test } from 'vitest'
import { budgetMachine, type Limits, nothing } from '../../machines/index.js'
import {
  accounts,
  amounts,
  charge,
  close,
  cost,
  given,
  grants,
  open,
  pool,
  raise,
  refused,
  reserve,
  settle,
  spentOf,
  startSharing,
  startKeeper,
  waiting,
} from '../support/budget.js'
import { cover, type Driver } from '../support/machine-driver.js'

const covered = cover(budgetMachine)
const start = (limits: Limits): Driver => startKeeper(limits, covered.machine)

describe('budget: grants', () => {
  test('budget: a grant reserves the worst that the call can cost', () => {
    const keeper = start({ tokens: 1_000 }).send(reserve('a'))
    const worst = amounts(50, 100)
    expect(keeper.sent).toEqual([['agent/a', { type: 'budget.granted', grant: 'a', maxOutputTokens: 100, worst }]])
    expect(accounts(keeper)['run']).toMatchObject({ held: worst, spent: nothing })
  })

  test('budget: without limits everything is granted', () => {
    const keeper = start({})
    for (let call = 0; call < 20; call += 1) {
      expect(keeper.send(reserve(`g${call}`)).to('agent/a')).toMatchObject([{ type: 'budget.granted' }])
    }
  })

  test('budget: what does not fit waits while a grant is open, and gets what that gives back', () => {
    const keeper = start({ tokens: 200 }).send(reserve('a'), reserve('b'))
    expect(keeper.sent).toEqual([])
    keeper.send(settle('a', amounts(20, 10)))
    expect(keeper.sent).toMatchObject([['agent/a', { type: 'budget.granted', grant: 'b', maxOutputTokens: 100 }]])
  })

  test('budget: with none open it is cut down to what is left', () => {
    const keeper = start({ tokens: 90 }).send(reserve('a'))
    expect(keeper.sent).toMatchObject([['agent/a', { type: 'budget.granted', maxOutputTokens: 40 }]])
    const poor = start({ nanoUsd: cost(50, 30) + 1_999 }).send(reserve('a'))
    expect(poor.sent).toMatchObject([['agent/a', { type: 'budget.granted', maxOutputTokens: 30 }]])
  })

  test('budget: below the least that is worth a call it is refused, with what is short', () => {
    const keeper = start({ tokens: 59 }).send(reserve('a'))
    expect(keeper.sent).toEqual([
      ['agent/a', { type: 'budget.refused', grant: 'a', account: 'run', dimension: 'tokens', limit: 59 }],
    ])
    expect(start({ nanoUsd: 10 }).send(reserve('a')).sent).toMatchObject([['agent/a', { dimension: 'nanoUsd' }]])
    expect(start({ modelCalls: 0 }).send(reserve('a')).sent).toMatchObject([['agent/a', { dimension: 'modelCalls' }]])
  })

  test('budget: a request that asks for less than the least is measured by itself', () => {
    const keeper = start({ tokens: 55 }).send(reserve('a', { maxOutputTokens: 5 }))
    expect(keeper.sent).toMatchObject([['agent/a', { type: 'budget.granted', maxOutputTokens: 5 }]])
  })

  test('budget: who waits is served in order, also when a later one would fit', () => {
    const keeper = start({ tokens: 210 }).send(
      reserve('a'),
      reserve('b'),
      reserve('c', { maxOutputTokens: 10, inputTokens: 10 }),
    )
    expect(waiting(keeper).map(({ grant }) => grant)).toEqual(['b', 'c'])
    keeper.send(settle('a', amounts(5, 5)))
    expect(keeper.to('agent/a').map(({ grant }) => grant)).toEqual(['b', 'c'])
  })

  test('budget: a waiting request that is taken back is forgotten, the next one moves up', () => {
    const keeper = start({ tokens: 170 }).send(
      reserve('a'),
      reserve('b'),
      reserve('c', { maxOutputTokens: 10, inputTokens: 5 }),
    )
    keeper.send({ type: 'budget.release', grant: 'b' })
    expect(keeper.to('agent/a')).toMatchObject([{ type: 'budget.granted', grant: 'c' }])
  })

  test('budget: a release gives everything back, once', () => {
    const keeper = start({ tokens: 1_000 }).send(reserve('a'), { type: 'budget.release', grant: 'a' })
    expect(accounts(keeper)['run']).toMatchObject({ held: nothing, spent: nothing })
    keeper.send({ type: 'budget.release', grant: 'a' }, settle('a', amounts(9, 9)))
    expect(spentOf(keeper)).toEqual(nothing)
  })

  test('budget: a raise lets the waiting go on, one for nobody changes nothing', () => {
    const keeper = start({ tokens: 200 }).send(reserve('a'), reserve('b'))
    keeper.send(raise('ghost', { tokens: 9_999 }, 'to'))
    expect(keeper.sent).toEqual([])
    keeper.send(raise('run', { tokens: 9_999 }, 'to'))
    expect(keeper.to('agent/a')).toMatchObject([{ type: 'budget.granted', grant: 'b' }])
  })

  test('budget: limits are set anew, those named become another, or what is limited grows', () => {
    const keeper = start({ tokens: 200, modelCalls: 3 })
    const limits = () => accounts(keeper)['run']?.limits
    keeper.send(raise('run', { tokens: 300 }, 'to'))
    expect(limits()).toEqual({ tokens: 300, modelCalls: 3 })
    keeper.send(raise('run', { tokens: 50, toolCalls: 9 }, 'by'))
    expect(limits()).toEqual({ tokens: 350, modelCalls: 3 })
    keeper.send(raise('run', { toolCalls: 9 }, 'set'))
    expect(limits()).toEqual({ toolCalls: 9 })
  })

  test('budget: what a child is raised by comes from what its parent has left', () => {
    const keeper = start({ tokens: 1_000 }).send(open('a', { tokens: 300 }), open('b', { tokens: 200 }))
    keeper.send(raise('a', { tokens: 500 }, 'to'))
    expect(accounts(keeper)).toMatchObject({ run: { held: { tokens: 700 } }, a: { limits: { tokens: 500 } } })
    keeper.send(raise('b', { tokens: 900 }, 'by'))
    expect(accounts(keeper)).toMatchObject({ run: { held: { tokens: 1_000 } }, b: { limits: { tokens: 500 } } })
    // What somebody may have spent already is not taken back.
    keeper.send(raise('a', { tokens: 100 }, 'to'))
    expect(accounts(keeper)).toMatchObject({ run: { held: { tokens: 1_000 } }, a: { limits: { tokens: 500 } } })
  })
})

describe('budget: settlements', () => {
  test('budget: a grant id is reserved once, waiting or held', () => {
    const keeper = start({ tokens: 200 }).send(reserve('a'), reserve('b'), reserve('a'), reserve('b'))
    expect(keeper.sent).toEqual([])
    expect(waiting(keeper)).toHaveLength(1)
    expect(accounts(keeper)['run']?.held.tokens).toBe(150)
  })

  test('budget: an estimate is replaced by the first real one; after that nothing changes', () => {
    const keeper = start({}).send(reserve('a'), settle('a', amounts(50, 90), false))
    expect(spentOf(keeper)).toEqual(amounts(50, 90))
    keeper.send(settle('a', amounts(50, 95), false))
    expect(spentOf(keeper)).toEqual(amounts(50, 95))
    keeper.send(settle('a', amounts(40, 20)))
    expect(spentOf(keeper)).toEqual(amounts(40, 20))
    keeper.send(settle('a', amounts(1, 1)), settle('a', amounts(1, 1), false))
    expect(spentOf(keeper)).toEqual(amounts(40, 20))
  })

  test('budget: a grant that nobody asked for settles nothing', () => {
    expect(start({}).send(settle('ghost', amounts(9, 9))).taken).toBe(false)
  })

  test('budget: a settlement above its grant is recorded and blocks the next call', () => {
    const keeper = start({ tokens: 300 }).send(reserve('a'), settle('a', amounts(200, 100)), reserve('b'))
    expect(keeper.to('agent/a')).toMatchObject([{ type: 'budget.refused', grant: 'b', dimension: 'tokens' }])
    expect(spentOf(keeper).tokens).toBe(300)
  })

  test('budget: tool calls come with a settlement or are asked for', () => {
    const keeper = start({ toolCalls: 5 }).send(reserve('a'), settle('a', amounts(1, 1), true, 2))
    expect(keeper.send(charge(3)).to('agent/a')).toMatchObject([{ type: 'budget.granted', grant: '' }])
    expect(spentOf(keeper).toolCalls).toBe(5)
    expect(keeper.send(charge(1)).to('agent/a')).toEqual([
      { type: 'budget.refused', grant: '', account: 'run', dimension: 'toolCalls', limit: 5 },
    ])
    expect(spentOf(keeper).toolCalls).toBe(5)
  })

  test('budget: a grant that nobody settles is settled at its maximum at the second sweep', () => {
    const keeper = start({ tokens: 200 }).send(reserve('a'), reserve('b'))
    expect([...keeper.timers.keys()]).toEqual(['sweep'])
    keeper.fire()
    expect(grants(keeper)['a']).toMatchObject({ state: 'held' })
    keeper.fire()
    expect(grants(keeper)['a']).toMatchObject({ state: 'estimated', worst: amounts(50, 100) })
    expect(keeper.to('agent/a')).toMatchObject([{ type: 'budget.refused', grant: 'b' }])
    keeper.send(settle('a', amounts(1, 1)))
    expect(spentOf(keeper)).toEqual(amounts(1, 1))
  })

  test('budget: one that goes on after a failure plans its sweep anew, if it had one', () => {
    const keeper = start({ tokens: 200 }).send(reserve('a'))
    expect([...start({}).send({ type: 'actor.resumed' }).timers.keys()]).toEqual([])
    keeper.send({ type: 'actor.resumed' }).fire()
    keeper.fire()
    expect(grants(keeper)['a']).toMatchObject({ state: 'estimated' })
  })

  test('budget: with nothing held no sweep is planned, and the next grant plans one', () => {
    const keeper = start({})
      .send(reserve('a'), settle('a', amounts(1, 1)))
      .fire()
    expect(keeper.timers.size).toBe(0)
    keeper.send(reserve('b'))
    expect([...keeper.timers.keys()]).toEqual(['sweep'])
  })
})

describe('budget: soft accounts', () => {
  const soft = (limits: Limits) => startKeeper(limits, covered.machine, true)

  test('budget: a call is made whole as long as anything is left, and the next one is not', () => {
    const keeper = soft({ tokens: 90 }).send(reserve('a'))
    expect(keeper.sent).toMatchObject([['agent/a', { type: 'budget.granted', maxOutputTokens: 100 }]])
    keeper.send(settle('a', amounts(50, 39)), reserve('b'))
    expect(keeper.sent).toMatchObject([['agent/a', { type: 'budget.granted', maxOutputTokens: 100 }]])
    keeper.send(settle('b', amounts(50, 90)), reserve('c'))
    expect(keeper.sent).toMatchObject([['agent/a', { type: 'budget.refused', account: 'run', limit: 90 }]])
  })

  test('budget: of two calls at once only the first passes the limit', () => {
    const keeper = soft({ tokens: 90 }).send(reserve('a'), reserve('b'))
    expect(keeper.sent).toEqual([])
    keeper.send(settle('a', amounts(10, 10)))
    expect(keeper.sent).toMatchObject([['agent/a', { type: 'budget.granted', grant: 'b' }]])
  })

  test('budget: tool calls of a reply are made as long as one is left', () => {
    const keeper = soft({ toolCalls: 3 }).send(charge(2))
    expect(keeper.send(charge(4)).to('agent/a')).toMatchObject([{ type: 'budget.granted' }])
    expect(keeper.send(charge(1)).to('agent/a')).toMatchObject([{ type: 'budget.refused' }])
  })

  test('budget: what a soft child lacks its parent must have', () => {
    const keeper = start({ tokens: 300 }).send({ ...open('a', { tokens: 60 }), soft: true })
    keeper.send(reserve('g', { account: 'a' }))
    expect(keeper.to('agent/a')).toMatchObject([{ type: 'budget.granted', maxOutputTokens: 100 }])
    expect(accounts(keeper)).toMatchObject({ run: { held: { tokens: 150 } }, a: { limits: { tokens: 150 } } })
    keeper.send(settle('g', amounts(50, 90)), { ...open('b', { tokens: 20 }), soft: true })
    keeper.send(reserve('h', { account: 'b', inputTokens: 1, maxOutputTokens: 900 }))
    // The parent has 150 less 20, the child its 20.
    expect(keeper.to('agent/a')).toMatchObject([{ type: 'budget.granted', maxOutputTokens: 149 }])
  })

  test('budget: a soft child of a soft parent passes both by one call', () => {
    const keeper = soft({ tokens: 70 }).send({ ...open('a', { tokens: 60 }), soft: true })
    keeper.send(reserve('g', { account: 'a' }))
    expect(keeper.to('agent/a')).toMatchObject([{ type: 'budget.granted', maxOutputTokens: 100 }])
    keeper.send(settle('g', amounts(50, 100)), reserve('h', { account: 'a' }))
    expect(keeper.to('agent/a')).toMatchObject([{ type: 'budget.refused', account: 'a' }])
  })

  test('budget: who waits for a soft child may get what the parent’s other grants give back', () => {
    const keeper = start({ tokens: 200 }).send({ ...open('a', { tokens: 40 }), soft: true }, reserve('g'))
    keeper.send(reserve('h', { account: 'a' }))
    expect(keeper.sent).toEqual([])
    keeper.send(settle('g', amounts(5, 5)))
    expect(keeper.to('agent/a')).toMatchObject([{ type: 'budget.granted', grant: 'h', maxOutputTokens: 100 }])
  })
})

describe('budget: accounts', () => {
  test('budget: a child’s limit is carved from what its parent has left', () => {
    const keeper = start({ tokens: 1_000 }).send(open('a', { tokens: 600 }), open('b', { tokens: 600 }))
    expect(accounts(keeper)).toMatchObject({
      run: { held: { tokens: 1_000 } },
      a: { limits: { tokens: 600 } },
      b: { limits: { tokens: 400 } },
    })
    expect(keeper.send(reserve('g')).to('agent/a')).toMatchObject([{ type: 'budget.refused', account: 'run' }])
  })

  test('budget: what a child does not limit counts for its parent', () => {
    const keeper = start({ tokens: 1_000, modelCalls: 1 }).send(
      open('a', { tokens: 600 }),
      reserve('g', { account: 'a' }),
    )
    expect(accounts(keeper)).toMatchObject({
      run: { held: { modelCalls: 1 } },
      a: { held: { tokens: 150, modelCalls: 0 } },
    })
    keeper.send(settle('g', amounts(50, 10)), reserve('h', { account: 'a' }))
    expect(keeper.to('agent/a')).toMatchObject([{ type: 'budget.refused', account: 'run', dimension: 'modelCalls' }])
  })

  test('budget: a refund gives back what was neither spent nor held; opened again it is topped up', () => {
    const keeper = start({ tokens: 1_000 }).send(open('a', { tokens: 600 }), reserve('g', { account: 'a' }))
    keeper.send(settle('g', amounts(50, 10)), { type: 'budget.refund', account: 'a' })
    expect(accounts(keeper)).toMatchObject({ run: { held: { tokens: 60 } }, a: { limits: { tokens: 60 } } })
    keeper.send({ type: 'budget.refund', account: 'a' })
    expect(accounts(keeper)).toMatchObject({ run: { held: { tokens: 60 } }, a: { limits: { tokens: 60 } } })
    keeper.send(open('a', { tokens: 600 }))
    expect(accounts(keeper)).toMatchObject({ run: { held: { tokens: 600 } }, a: { limits: { tokens: 600 } } })
  })

  test('budget: what a late bill gives back to accounts that nobody spends from goes up to one that somebody does', () => {
    const keeper = start({ tokens: 1_000 }).send(open('a', { tokens: 600 }), open('b', { tokens: 400 }, 'a'))
    keeper.send(reserve('g', { account: 'b' }), settle('g', amounts(50, 100), false))
    for (const account of ['b', 'a']) keeper.send({ type: 'budget.refund', account })
    expect(accounts(keeper)).toMatchObject({ run: { held: { tokens: 150 } }, b: { limits: { tokens: 150 } } })
    keeper.send(settle('g', amounts(50, 10)))
    expect(accounts(keeper)).toMatchObject({
      ...{ run: { held: { tokens: 60 } }, a: { limits: { tokens: 60 }, held: { tokens: 60 } } },
      b: { limits: { tokens: 60 }, spent: { tokens: 60 } },
    })
    keeper.send(open('a', { tokens: 600 }), open('b', { tokens: 400 }, 'a'), reserve('h', { account: 'b' }))
    keeper.send(settle('h', amounts(50, 100), false), settle('h', amounts(50, 10)))
    expect(accounts(keeper)).toMatchObject({ a: { limits: { tokens: 600 } }, b: { limits: { tokens: 400 } } })
  })

  test('budget: what an account limits is settled when it is first opened, whatever a later definition says', () => {
    const keeper = start({}).send(open('a', { tokens: 600 }), reserve('g', { account: 'a' }))
    keeper.send(open('a', { modelCalls: 3 }), settle('g', amounts(50, 10)))
    expect(accounts(keeper)).toMatchObject({
      run: { held: { tokens: 600, modelCalls: 0 }, spent: { modelCalls: 1 } },
      a: { limits: { tokens: 600 }, held: nothing, spent: { tokens: 60 } },
    })
  })

  test('budget: the root and unknown accounts have nothing to refund', () => {
    const keeper = start({ tokens: 10 })
    expect(keeper.send({ type: 'budget.refund', account: 'run' }).taken).toBe(false)
    expect(keeper.send({ type: 'budget.refund', account: 'ghost' }).taken).toBe(false)
  })

  test('budget: a child that spent too much takes the difference from its parent', () => {
    const keeper = start({ tokens: 1_000 }).send(open('a', { tokens: 150 }), reserve('g', { account: 'a' }))
    keeper.send(settle('g', amounts(100, 150)))
    expect(accounts(keeper)).toMatchObject({
      run: { held: { tokens: 250 } },
      a: { limits: { tokens: 250 }, spent: { tokens: 250 } },
    })
  })

  test('budget: a child waits for its parent’s other grants when those may free what it is short of', () => {
    const keeper = start({ modelCalls: 1 }).send(
      open('a', { tokens: 600 }),
      reserve('g'),
      reserve('h', { account: 'a' }),
    )
    expect(waiting(keeper)).toHaveLength(1)
    const other = start({ tokens: 1_000 }).send(
      open('a', { tokens: 100 }),
      reserve('g'),
      reserve('h', { account: 'a' }),
    )
    expect(other.to('agent/a')).toMatchObject([{ type: 'budget.granted', grant: 'h', maxOutputTokens: 50 }])
  })
})

describe('budget: the end', () => {
  test('budget: closing settles what is open at its maximum and says what was spent', () => {
    const keeper = start({}).send(reserve('a'), reserve('b'), settle('a', amounts(10, 10)), close)
    expect(keeper.to('crew/main')).toMatchObject([{ type: 'budget.closed', spent: { tokens: 170, modelCalls: 2 } }])
    expect(keeper.state).toBe('closed')
    expect([...keeper.timers.keys()].filter((id) => id === 'sweep')).toEqual([])
  })

  test('budget: late real bills still count; with the last of them it is gone', () => {
    const keeper = start({}).send(reserve('a'), reserve('b'), close, settle('a', amounts(1, 1), false))
    expect(keeper.done).toBe(false)
    keeper.send(settle('a', amounts(1, 1)))
    expect(accounts(keeper)['run']?.spent).toEqual({ ...amounts(51, 101), modelCalls: 2 })
    keeper.send(settle('b', amounts(2, 2)))
    expect(keeper.done).toBe(true)
  })

  test('budget: closed without estimates it is gone at once, with some after a while', () => {
    expect(start({}).send(close).done).toBe(true)
    const keeper = start({}).send(reserve('a'), close)
    expect(keeper.send(settle('ghost', nothing)).taken).toBe(false)
    expect(keeper.fire().done).toBe(true)
  })
})

test('budget: what an actor that failed holds or waits for is given back, what it was charged is not', () => {
  const by = (holder: string, number: number) => reserve(`agent/${holder}#${number}`, { replyTo: `agent/${holder}` })
  const keeper = start({ tokens: 300 }).send(by('a', 0), settle('agent/a#0', amounts(50, 100), false), by('a', 1))
  keeper.send(by('a', 2), by('ab', 0))
  expect(waiting(keeper)).toHaveLength(2)
  keeper.send({ type: 'budget.withdraw', holder: 'agent/a' })
  expect(keeper.sent).toMatchObject([['agent/ab', { type: 'budget.granted', grant: 'agent/ab#0' }]])
  expect(Object.keys(grants(keeper))).toEqual(['agent/a#0', 'agent/ab#0'])
  expect(waiting(keeper)).toEqual([])
  expect(spentOf(keeper)).toEqual(amounts(50, 100))
  // A late bill of what it was charged still counts.
  expect(spentOf(keeper.send(settle('agent/a#0', amounts(50, 10))))).toEqual(amounts(50, 10))
})

describe('budget: a share of what crews have together', () => {
  const sharing = (limits: Limits = {}) => startSharing(limits, covered.machine)
  const call = amounts(50, 100)
  const ask = (number: number, more: Record<string, unknown> = {}) => ({
    ...{ type: 'share.ask', number, until: 0, used: nothing, least: amounts(50, 10), most: call, ...more },
  })
  const back = (number: number, used: object, final: boolean, until = 0) => {
    return { type: 'share.settle', number, until, used, final }
  }

  test('budget: before anything is granted a share is asked for, and the request waits for it', () => {
    const keeper = sharing().send(reserve('a'))
    expect(keeper.sent).toEqual([[pool, ask(1)]])
    keeper.send(given(1, { modelCalls: 2 }))
    expect(keeper.sent).toMatchObject([['agent/a', { type: 'budget.granted', grant: 'a', maxOutputTokens: 100 }]])
    expect(keeper.send(reserve('b')).sent).toMatchObject([['agent/a', { type: 'budget.granted', grant: 'b' }]])
    keeper.send(reserve('c'))
    expect(keeper.sent).toEqual([[pool, ask(2, { used: { ...amounts(100, 200), modelCalls: 2 } })]])
  })

  test('budget: what its own limits refuse is asked of nobody', () => {
    const keeper = sharing({ modelCalls: 0 }).send(reserve('a'))
    expect(keeper.sent).toMatchObject([['agent/a', { type: 'budget.refused', account: 'run' }]])
  })

  test('budget: a call is cut down to the share, when the pool has no more', () => {
    const keeper = sharing().send(reserve('a'), given(1, { tokens: 90 }))
    expect(keeper.sent).toMatchObject([['agent/a', { type: 'budget.granted', maxOutputTokens: 40 }]])
  })

  test('budget: refused, it says which budget and until when, and what is left goes back', () => {
    const keeper = sharing().send(reserve('a'), given(1, { modelCalls: 1 }, 3_600_000), settle('a', call), reserve('b'))
    keeper.send(refused(2, 3_600_000))
    const reason = 'the budget team has no modelCalls left until 1970-01-01 01:00 UTC'
    const why = { account: '@team', dimension: 'modelCalls', limit: 5, code: 'BUDGET_EXHAUSTED', reason }
    expect(keeper.sent).toEqual([
      ['agent/a', { type: 'budget.refused', grant: 'b', ...why }],
      [pool, back(3, call, false, 3_600_000)],
    ])
  })

  test('budget: while calls of its own may need less than they reserved it is not refused', () => {
    const keeper = sharing().send(reserve('a'), given(1, { tokens: 200 }), reserve('b'), refused(2))
    expect(keeper.sent).toEqual([])
    keeper.send(settle('a', amounts(20, 20)))
    expect(keeper.sent).toMatchObject([['agent/a', { type: 'budget.granted', grant: 'b', maxOutputTokens: 100 }]])
  })

  test('budget: a share that comes for a request that is gone serves the next one, which asks for itself', () => {
    const keeper = sharing().send(reserve('a'), { type: 'budget.release', grant: 'a' }, reserve('b'))
    expect(keeper.sent).toEqual([])
    keeper.send(given(1, { tokens: 100 }))
    expect(keeper.sent).toEqual([[pool, ask(2)]])
    expect(keeper.send(given(1, { tokens: 900 })).taken).toBe(false)
    keeper.send(given(2, { tokens: 150 }))
    expect(keeper.sent).toMatchObject([['agent/a', { type: 'budget.granted', grant: 'b', maxOutputTokens: 100 }]])
  })

  test('budget: a pool that is not there, or does not answer, is the end of the request', () => {
    const gone = { type: 'mail.returned', message: 'share.ask', code: 'CREW_UNKNOWN', reason: 'there is none' }
    const keeper = sharing().send(reserve('a'), gone)
    expect(keeper.to('agent/a')).toMatchObject([{ code: 'CREW_UNKNOWN', reason: 'the budget team: there is none' }])
    expect(keeper.send(gone).taken).toBe(false)
    const alone = sharing().send(reserve('a')).fire('late')
    expect(alone.to('agent/a')).toMatchObject([
      { type: 'budget.refused', code: 'BUDGET_EXHAUSTED', reason: 'the budget team did not answer within 9 seconds' },
    ])
    // Whatever it gave meanwhile, it is told that nothing is used of it.
    expect(alone.to(pool)).toContainEqual(back(2, nothing, false))
    expect(alone.send(given(1, { tokens: 900 })).taken).toBe(false)
  })

  test('budget: behind the end of its window a share is worth nothing, and no old call makes room in a new one', () => {
    const keeper = sharing().send(reserve('a'), given(1, { tokens: 300 }, 60_000, 20_000))
    expect(keeper.timers.get('over')).toMatchObject({ delayMs: 40_000 })
    keeper.fire('over').send(reserve('b'))
    expect(keeper.sent).toEqual([[pool, ask(2, { until: 60_000, used: call })]])
    keeper.send(given(2, { tokens: 150 }, 120_000, 119_999))
    expect(keeper.sent).toMatchObject([['agent/a', { type: 'budget.granted', grant: 'b', maxOutputTokens: 100 }]])
    // Clocks differ: it does not ask again at once.
    expect(keeper.timers.get('over')).toMatchObject({ delayMs: 1_000 })
    keeper.send(settle('a', amounts(1, 1)), reserve('c'))
    expect(keeper.sent).toEqual([[pool, ask(3, { until: 120_000, used: call })]])
  })

  test('budget: closed, it accounts for what it has used, and for late bills', () => {
    const keeper = sharing().send(reserve('a'), given(1, { modelCalls: 4 }), reserve('b'), settle('b', call), close)
    expect(keeper.to(pool)).toEqual([back(2, { ...amounts(100, 200), modelCalls: 2 }, false)])
    keeper.send(settle('a', amounts(50, 10)))
    expect(keeper.to(pool)).toEqual([back(3, { ...amounts(100, 110), modelCalls: 2 }, true)])
    const late = sharing()
      .send(reserve('a'), given(1, { modelCalls: 4 }), close)
      .fire()
    expect(late.to(pool)).toEqual([back(3, call, true)])
    expect(sharing().send(close).sent).toMatchObject([['crew/main', { type: 'budget.closed' }]])
  })

  test('budget: between runs of a crew only what is used is kept', () => {
    const keeper = sharing().send(reserve('a'), given(1, { modelCalls: 4 }), settle('a', call))
    expect(keeper.send({ type: 'budget.report', replyTo: 'crew/main' }).to(pool)).toEqual([back(2, call, false)])
    expect(keeper.send(reserve('b')).sent).toEqual([[pool, ask(3, { used: call })]])
  })

  test('budget: what was told of what is used is told again behind a bill that comes later, unless more was asked for', () => {
    const bill = (grant: string, output: number, real: boolean) => settle(grant, amounts(50, output), real)
    const keeper = sharing().send(reserve('a'), given(1, { modelCalls: 4, tokens: 900 }), bill('a', 90, false))
    keeper.send({ type: 'budget.report', replyTo: 'crew/main' })
    expect(keeper.send(bill('a', 70, false)).to(pool)).toEqual([back(3, amounts(50, 70), false)])
    expect(keeper.send(bill('a', 70, true)).sent).toEqual([])
    // Now it asks for more: the next message says what was used anyway.
    keeper.send(reserve('b'), given(4, { modelCalls: 2, tokens: 900 }))
    expect(keeper.send(bill('b', 60, false)).sent).toEqual([])
  })

  test('budget: resumed, it asks anew for what it may have lost', () => {
    const keeper = sharing().send(reserve('a'), { type: 'actor.resumed' })
    expect(keeper.to(pool)).toEqual([back(2, nothing, false), ask(3)])
    expect(keeper.send(given(1, { tokens: 900 })).taken).toBe(false)
    expect(keeper.send(given(3, { tokens: 900 })).to('agent/a')).toMatchObject([{ type: 'budget.granted' }])
  })
})

test('budget: every transition was taken and every guard answered both ways', () => {
  expect(covered.missing()).toEqual([])
})
