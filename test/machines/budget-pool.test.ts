import { describe, expect, test } from 'vitest'
import { nothing, poolMachine } from '../../machines/index.js'
import { ask, booked, calls, settle, startPool, waiting } from '../support/budget-pool.js'
import { cover } from '../support/machine-driver.js'

const covered = cover(poolMachine)
const start = (modelCalls: number, more: Parameters<typeof startPool>[1] = {}) =>
  startPool(modelCalls, more, covered.machine)
const [a, b, c] = ['a/budget/r1', 'b/budget/r1', 'c/budget/r1'] as const
const hourMs = 3_600_000

describe('pool: shares', () => {
  test('pool: a keeper is given what its call takes or a share, and that counts as spent', () => {
    const pool = start(100, { share: { modelCalls: 10 } }).send(ask(a, 1, { least: 1, most: 3 }))
    expect(pool.sent).toEqual([[a, { type: 'share.given', number: 1, until: 0, given: { modelCalls: 10 } }]])
    expect(pool.send(ask(b, 1, { least: 1, most: 30 })).to(b)).toMatchObject([{ given: { modelCalls: 30 } }])
    expect(booked(pool)).toBe(40)
    // What is not limited is not given, only noted.
    const { used: _, ...rest } = ask(a, 2)
    expect(pool.send({ ...rest, used: { ...nothing, tokens: 70, modelCalls: 9 } }).to(a)).toMatchObject([
      { given: { modelCalls: 19 } },
    ])
  })

  test('pool: at the end of what there is it gives what it has, if that is enough for a call', () => {
    const pool = start(5, { share: { modelCalls: 3 } }).send(ask(a, 1), ask(b, 1, { least: 2, most: 9 }))
    expect(pool.to(b)).toMatchObject([{ type: 'share.given', given: { modelCalls: 2 } }])
    expect(booked(pool)).toBe(5)
  })

  test('pool: what comes back others may have; what is spent is spent', () => {
    const pool = start(5, { share: { modelCalls: 5 } }).send(ask(a, 1), settle(a, 2, { used: 2, final: true }))
    expect(booked(pool)).toBe(2)
    expect(pool.send(ask(b, 1, { least: 4 })).sent).toMatchObject([[b, { type: 'share.refused', limit: 5 }]])
    expect(pool.send(ask(b, 2, { least: 3 })).sent).toMatchObject([[b, { type: 'share.given' }]])
  })

  test('pool: real bills above what was given are booked, and nothing is given on them', () => {
    const pool = start(5).send(ask(a, 1), settle(a, 2, { used: 7 }))
    expect(booked(pool)).toBe(7)
    expect(pool.send(ask(b, 1)).to(b)).toMatchObject([{ type: 'share.refused', dimension: 'modelCalls' }])
    expect(pool.send(settle(a, 3, { used: 4, final: true }), ask(b, 2)).to(b)).toMatchObject([{ type: 'share.given' }])
  })

  test('pool: of two messages of a keeper the later one counts, and one that comes again is answered again', () => {
    const pool = start(9, { share: { modelCalls: 4 } }).send(ask(a, 1), settle(a, 2, { used: 1 }), ask(a, 1))
    expect(pool.sent).toEqual([])
    expect(booked(pool)).toBe(1)
    pool.send(ask(a, 3, { used: 1 }), ask(a, 3, { used: 1 }))
    expect(pool.sent).toEqual([[a, { type: 'share.given', number: 3, until: 0, given: { modelCalls: 5 } }]])
    expect(booked(pool)).toBe(5)
    pool.send(settle(a, 4, { used: 2, final: true }), settle(a, 4, { used: 2, final: true }))
    expect(booked(pool)).toBe(2)
  })
})

describe('pool: a keeper whose journal was cut back', () => {
  const again = { life: 7 }

  test('pool: it is answered though it counts from one again, and what it had been given is spent', () => {
    const pool = start(9, { share: { modelCalls: 4 } }).send(
      ask(a, 1),
      settle(a, 2, { used: 1 }),
      ask(a, 3, { used: 1 }),
    )
    expect(booked(pool)).toBe(5)
    // The same number as its last one: no repetition.
    pool.send(ask(a, 3, again))
    expect(pool.sent).toEqual([[a, { type: 'share.given', number: 3, until: 0, given: { modelCalls: 4 } }]])
    expect(booked(pool)).toBe(9)
    // What its earlier life still says is not heard.
    pool.send(settle(a, 8, { used: 0, final: true }), settle(a, 4, { ...again, used: 2, final: true }))
    expect(booked(pool)).toBe(7)
  })

  test('pool: what it has used gives nothing back of what its earlier life was given', () => {
    const pool = start(9, { share: { modelCalls: 4 } }).send(
      ask(a, 1),
      settle(a, 1, { ...again, used: 1, final: true }),
    )
    expect(booked(pool)).toBe(4)
  })

  test('pool: its request takes the place of one that it does not know of', () => {
    const pool = start(2, { share: { modelCalls: 2 } }).send(ask(a, 1), ask(b, 5), ask(c, 1), ask(b, 1, again))
    expect(waiting(pool)).toEqual([b, c])
    pool.send(ask(b, 6), settle(a, 2, { used: 1 }))
    expect(pool.sent).toMatchObject([[b, { type: 'share.given', number: 1 }]])
  })
})

describe('pool: who waits', () => {
  test('pool: first come, first served, also when a later one would fit', () => {
    const pool = start(6, { share: { modelCalls: 4 } }).send(ask(a, 1), ask(b, 1, { least: 3 }), ask(c, 1))
    expect(pool.sent).toEqual([])
    expect(waiting(pool)).toEqual([b, c])
    pool.send(settle(a, 2, { used: 1, final: true }))
    expect(pool.sent.map(([to]) => to)).toEqual([b, c])
    expect(booked(pool)).toBe(6)
  })

  test('pool: who asks again keeps its place', () => {
    const pool = start(2, { share: { modelCalls: 2 } }).send(ask(a, 1), ask(b, 1), ask(c, 1), ask(b, 2))
    expect(waiting(pool)).toEqual([b, c])
    pool.send(settle(a, 2, { used: 1 }))
    expect(pool.sent).toMatchObject([[b, { type: 'share.given', number: 2 }]])
  })

  test('pool: what nobody could give back is refused at once', () => {
    const pool = start(3, { share: { modelCalls: 2 } }).send(ask(a, 1), ask(b, 1, { least: 4 }))
    expect(pool.sent).toMatchObject([[b, { type: 'share.refused' }]])
  })

  test('pool: when all who have something wait for each other the last of them is refused', () => {
    const pool = start(4, { share: { modelCalls: 2 } }).send(ask(a, 1), ask(b, 1))
    pool.send(ask(a, 2, { used: 2 }))
    expect(pool.sent).toEqual([])
    pool.send(ask(b, 2, { used: 1, least: 2 }))
    expect(pool.sent).toMatchObject([[b, { type: 'share.refused', number: 2 }]])
    expect(pool.send(settle(b, 3, { used: 1 })).sent).toMatchObject([[a, { type: 'share.given', number: 2 }]])
  })

  test('pool: nobody waits for longer than it says, and who gives up waits no more', () => {
    const pool = start(2, { share: { modelCalls: 2 } }).send(ask(a, 1), ask(b, 1, { at: 100 }))
    expect(pool.timers.get(`due ${b}`)).toMatchObject({ delayMs: 5_000 })
    pool.fire(`due ${b}`)
    expect(pool.sent).toMatchObject([[b, { type: 'share.refused', number: 1 }]])
    pool.send(ask(b, 2), settle(b, 3, { final: true }))
    expect(waiting(pool)).toEqual([])
    expect(pool.timers.size).toBe(0)
    expect(pool.send({ type: 'share.due', keeper: b, number: 2, at: 0 }).taken).toBe(false)
  })

  test('pool: resumed, it waits with them anew', () => {
    const pool = start(2, { share: { modelCalls: 2 } }).send(ask(a, 1), ask(b, 1))
    expect(pool.timers.size).toBe(1)
    expect(pool.send({ type: 'actor.resumed' }).timers.get(`due ${b}`)).toMatchObject({ delayMs: 5_000 })
  })
})

describe('pool: windows', () => {
  test('pool: an hour ends at the hour, a day at midnight, a month with its last day, all of UTC', () => {
    const at = Date.UTC(2024, 1, 28, 23, 59)
    const endOf = (window: 'hour' | 'day' | 'month'): unknown =>
      start(1, { window })
        .send(ask(a, 1, { at }))
        .to(a)[0]?.['until']
    expect(endOf('hour')).toBe(Date.UTC(2024, 1, 29))
    expect(endOf('day')).toBe(Date.UTC(2024, 1, 29))
    expect(endOf('month')).toBe(Date.UTC(2024, 2, 1))
  })

  test('pool: a window begins with all that is limited, and nothing of an earlier one changes that', () => {
    const pool = start(3, { window: 'hour', share: { modelCalls: 3 } }).send(ask(a, 1, { at: 10 }))
    pool.send(settle(b, 1, { at: hourMs + 1, until: hourMs, used: 1 }))
    expect(pool.emitted).toContainEqual({ type: 'pool.window', until: 2 * hourMs, spent: calls(3) })
    expect(booked(pool)).toBe(0)
    pool.send(settle(a, 2, { at: hourMs + 2, until: hourMs, used: 1, final: true }))
    expect(booked(pool)).toBe(0)
    // What it had used then counts for nothing now.
    pool.send(ask(a, 3, { at: hourMs + 3, until: hourMs, used: 2, least: 3 }))
    expect(pool.to(a)).toMatchObject([{ type: 'share.given', until: 2 * hourMs, given: { modelCalls: 3 } }])
  })

  test('pool: who waits at the end of a window is served from the next one', () => {
    const pool = start(2, { window: 'hour', share: { modelCalls: 2 } }).send(ask(a, 1, { at: hourMs - 100 }))
    pool.send(ask(b, 1, { at: hourMs - 50 }), ask(c, 1, { at: hourMs - 40, least: 2 }))
    expect(pool.timers.get(`due ${b}`)).toMatchObject({ delayMs: 50 })
    pool.fire(`due ${b}`)
    expect(pool.sent).toMatchObject([[b, { type: 'share.given', until: 2 * hourMs, given: { modelCalls: 2 } }]])
    // The other one waits on, for as long as it may.
    expect(pool.timers.get(`due ${c}`)).toMatchObject({ delayMs: 5_000 })
  })
})

describe('pool: commands', () => {
  test('pool: raised and redefined it serves who waits; an agent of its it has not', () => {
    const pool = start(1).send(ask(a, 1), ask(b, 1), { type: 'crew.raise', limits: { modelCalls: 2 } })
    expect(pool.to(b)).toMatchObject([{ type: 'share.given' }])
    expect(pool.send({ type: 'crew.raise', limits: {}, agent: 'x' }).emitted).toEqual([
      { type: 'raise.refused', agent: 'x' },
    ])
    const data = { limits: { modelCalls: 3 }, share: {}, window: null, waitMs: 9 }
    pool.send(ask(c, 1), { type: 'crew.redefined', crew: { pool: data } })
    expect(pool.to(c)).toMatchObject([{ type: 'share.given' }])
  })

  test('pool: of a crew that is gone it takes back what it never had, and asks nothing more', () => {
    const back = { type: 'mail.returned', message: 'share.given', code: 'CREW_UNKNOWN', reason: 'gone' }
    const pool = start(4, { share: { modelCalls: 2 } }).send(ask(a, 1), ask(a, 2, { used: 2 }), ask(b, 1))
    expect(waiting(pool)).toEqual([b])
    pool.send({ ...back, sender: 'a/shard/self', actor: 'budget/r1' })
    expect(pool.to(b)).toMatchObject([{ type: 'share.given', given: { modelCalls: 2 } }])
    expect(booked(pool)).toBe(4)
    pool.send(ask(c, 1), { ...back, message: 'share.refused', sender: 'c/shard/self', actor: 'budget/r1' })
    expect(waiting(pool)).toEqual([])
  })
})

test('pool: every transition was taken and every guard answered both ways', () => {
  expect(covered.missing()).toEqual([])
})
