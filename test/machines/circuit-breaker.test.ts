import { describe, expect, test } from 'vitest'
import { type BreakerSettings, breakerMachine, type PermitNeed } from '../../machines/index.js'
import { cover, drive, type Driver, type Message } from '../support/machine-driver.js'

const covered = cover(breakerMachine)
const settings: BreakerSettings = {
  ...{ failures: 3, rate: 0.5, minCalls: 4, windowMs: 1_000, cooldownMs: 100, probeMs: 50 },
}
const start = (more: Partial<BreakerSettings> = {}): Driver => {
  const input = { self: 'breaker/model/a:one', target: 'model/a:one', settings: { ...settings, ...more } }
  return drive(covered.machine, input)
}

const ask = (at: number, need: PermitNeed = 'only', call = `c${at}`): Message => ({
  ...{ type: 'permit.ask', replyTo: 'port/model', call, at, need },
})
const done = (verdict: 'answered' | 'failed' | 'none', at: number, more: object = {}): Message => ({
  ...{ type: 'permit.done', call: 'c', at, verdict, cooling: null, underWay: 0 },
  ...more,
})
/** What was said to who asked last. */
function told(breaker: Driver): string {
  const [answer] = breaker.to('port/model')
  if (answer === undefined) return 'nothing'
  if (answer.type === 'permit.granted') return answer['probe'] === true ? 'probe' : 'granted'
  return `${answer['reason'] as string} ${answer['waitMs'] as number}`
}
const failing = (times: number, at = 10): Message[] => Array.from({ length: times }, () => done('failed', at))

describe('breaker: closed', () => {
  test('breaker: given nothing yet, when a call asks, it is made', () => {
    expect(told(start().send(ask(0)))).toBe('granted')
  })

  test('breaker: given failures in a row, when they are enough, it opens for its time', () => {
    const breaker = start().send(...failing(2))
    expect([breaker.state, told(breaker.send(ask(11)))]).toEqual(['closed', 'granted'])
    breaker.send(done('failed', 20))
    expect(breaker.state).toBe('open')
    expect(breaker.emitted).toEqual([{ type: 'breaker.opened', target: 'model/a:one', ms: 100 }])
    expect(told(breaker.send(ask(21)))).toBe('open 99')
  })

  test('breaker: given an answer in between, failures are not in a row', () => {
    expect(start({ minCalls: 9 }).send(...failing(2), done('answered', 11), ...failing(2)).state).toBe('closed')
  })

  test('breaker: given more failures than its rate among enough calls of a window, it opens', () => {
    const ends = [done('failed', 1), done('failed', 2), done('answered', 3), done('failed', 4)]
    expect(start().send(...ends).state).toBe('open')
    expect(start({ minCalls: 5 }).send(...ends).state).toBe('closed')
  })

  test('breaker: given many calls under way, a few quick failures among them do not open it', () => {
    const quick = [199, 198, 197, 196, 195, 194].map((underWay) => done('failed', 1, { underWay }))
    expect(start({ minCalls: 5 }).send(...quick).state).toBe('closed')
    // All of them fail: with every one fewer may succeed yet.
    const breaker = start({ minCalls: 999 })
    for (let underWay = 99; breaker.state === 'closed'; underWay--) breaker.send(done('failed', 1, { underWay }))
    expect(breaker.context).toMatchObject({ inARow: 0, until: 101 })
    expect(
      start({ minCalls: 999 }).send(
        done('failed', 1, { underWay: 6 }),
        done('failed', 1, { underWay: 6 }),
        done('failed', 1, { underWay: 6 }),
      ).state,
    ).toBe('open')
  })

  test('breaker: exactly its rate is not above it', () => {
    const ends = [done('failed', 1), done('answered', 2), done('answered', 3), done('failed', 4)]
    expect(start().send(...ends).state).toBe('closed')
  })

  test('breaker: when a window is over its calls count no more', () => {
    const ends = [done('failed', 1), done('failed', 2), done('answered', 3), done('failed', 1_002)]
    expect(start().send(...ends).state).toBe('closed')
  })

  test('breaker: calls that were not made to their end count for nothing', () => {
    const breaker = start().send(...failing(2), done('none', 11), done('none', 12))
    expect(breaker.context).toMatchObject({ inARow: 2, calls: 2 })
  })
})

describe('breaker: open and half-open', () => {
  const open = (): Driver => start().send(...failing(3, 0))
  const probing = (): Driver => open().send(ask(100, 'only', 'p'))

  test.each(['choice', 'last', 'only'] as const)('breaker: while it is open nobody calls (%s)', (need) => {
    expect(told(open().send(ask(99, need)))).toBe('open 1')
  })

  test('breaker: when its time is over the first that asks probes, and the others are told how long at most', () => {
    const breaker = probing()
    expect([breaker.state, told(breaker)]).toEqual(['halfOpen', 'probe'])
    expect(breaker.emitted).toEqual([{ type: 'breaker.probed', target: 'model/a:one' }])
    for (let at = 101; at < 150; at++) expect(told(breaker.send(ask(at)))).toBe(`probing ${150 - at}`)
  })

  test('breaker: when the probe was answered it closes, and failures count from none', () => {
    const breaker = probing().send(done('answered', 120, { call: 'p' }))
    expect(breaker.emitted).toEqual([{ type: 'breaker.closed', target: 'model/a:one' }])
    expect(told(breaker.send(ask(121)))).toBe('granted')
    expect(breaker.send(...failing(2, 122)).state).toBe('closed')
  })

  test('breaker: when the probe failed it is open for its time again', () => {
    const breaker = probing().send(done('failed', 120, { call: 'p' }))
    expect(breaker.state).toBe('open')
    expect(told(breaker.send(ask(219)))).toBe('open 1')
    expect(told(breaker.send(ask(220)))).toBe('probe')
  })

  test('breaker: when the probe was not made to its end the next that asks probes', () => {
    const breaker = probing().send(done('none', 120, { call: 'p' }))
    expect(breaker.state).toBe('open')
    expect(told(breaker.send(ask(121)))).toBe('probe')
  })

  test('breaker: when nothing is heard of the probe another one takes its place, and the first decides nothing any more', () => {
    const breaker = probing()
    expect(told(breaker.send(ask(150, 'only', 'q')))).toBe('probe')
    expect(breaker.send(done('failed', 151, { call: 'p' })).state).toBe('halfOpen')
    expect(breaker.send(done('answered', 152, { call: 'q' })).state).toBe('closed')
  })

  test('breaker: calls from before it opened decide nothing', () => {
    expect(open().send(done('answered', 1), done('failed', 2)).state).toBe('open')
    expect(told(open().send(done('failed', 50), ask(100)))).toBe('probe')
    expect(probing().send(done('answered', 101), done('failed', 102)).state).toBe('halfOpen')
  })
})

describe('breaker: cooldown', () => {
  const cooled = (why: 'asked' | 'fault'): Driver => start().send(done('answered', 0, { cooling: { ms: 100, why } }))

  test('breaker: given one that asked for time, who has another one leaves it alone until that is over; who has none does not', () => {
    const breaker = cooled('asked')
    expect(breaker.emitted).toEqual([{ type: 'breaker.cooled', target: 'model/a:one', ms: 100 }])
    expect(told(breaker.send(ask(60, 'choice')))).toBe('asked 40')
    expect(told(breaker.send(ask(60, 'last')))).toBe('asked 40')
    expect(told(breaker.send(ask(60, 'only')))).toBe('granted')
    expect(told(breaker.send(ask(100, 'choice')))).toBe('granted')
  })

  test('breaker: given one at fault, whom the others have failed may try it all the same', () => {
    expect(told(cooled('fault').send(ask(60, 'choice')))).toBe('fault 40')
    expect(told(cooled('fault').send(ask(60, 'last')))).toBe('granted')
  })

  test('breaker: given one at fault, when it takes a call, it is forgiven; one that asked for time is not asked sooner', () => {
    expect(told(cooled('fault').send(done('answered', 10), ask(11, 'choice')))).toBe('granted')
    expect(told(cooled('fault').send(done('failed', 10), ask(11, 'choice')))).toBe('fault 89')
    expect(told(cooled('asked').send(done('answered', 10), ask(11, 'choice')))).toBe('asked 89')
  })

  test('breaker: one that is asked for more time again has that', () => {
    const again = done('answered', 90, { cooling: { ms: 100, why: 'asked' } })
    expect(told(cooled('asked').send(again, ask(150, 'choice')))).toBe('asked 40')
  })

  test('breaker: a failure that asks for time counts as one, too', () => {
    const ends = Array.from({ length: 3 }, () => done('failed', 0, { cooling: { ms: 500, why: 'asked' } }))
    const breaker = start().send(...ends)
    expect(breaker.state).toBe('open')
    expect(breaker.context['cooling']).toEqual({ until: 500, why: 'asked' })
  })

  test('breaker: what a late call asks for is heard in any state', () => {
    const late = done('answered', 10, { cooling: { ms: 500, why: 'asked' } })
    const open = start().send(...failing(3, 0), late)
    expect([open.state, open.context['cooling']]).toEqual(['open', { until: 510, why: 'asked' }])
    const probing = start().send(...failing(3, 0), ask(100, 'only', 'p'), late)
    expect([probing.state, probing.context['cooling']]).toEqual(['halfOpen', { until: 510, why: 'asked' }])
  })
})

describe('breaker: what others tell', () => {
  const state = { until: 0, probe: null, cooling: null }
  const hear = (more: object): Message => ({ type: 'breaker.told', state: 'closed', ...state, ...more })

  test('breaker: another one has opened it', () => {
    const breaker = start().send(hear({ state: 'open', until: 500 }))
    expect(told(breaker.send(ask(400)))).toBe('open 100')
    expect(told(breaker.send(ask(500)))).toBe('probe')
  })

  test('breaker: another one probes: nobody here does, until that is overdue', () => {
    const breaker = start().send(hear({ state: 'halfOpen', until: 10, probe: { call: 'x', until: 500 } }))
    expect(told(breaker.send(ask(400)))).toBe('probing 100')
    expect(told(breaker.send(ask(500)))).toBe('probe')
  })

  test('breaker: another one has closed it, and failures count from none', () => {
    const breaker = start().send(...failing(3, 0), hear({}))
    expect(told(breaker.send(ask(1)))).toBe('granted')
    expect(breaker.send(...failing(2, 2)).state).toBe('closed')
  })

  test('breaker: another one was asked for time', () => {
    const cooling = { until: 90, why: 'asked' }
    expect(told(start().send(hear({ cooling }), ask(50, 'choice')))).toBe('asked 40')
  })
})

test('breaker: every transition was taken', () => {
  expect(covered.missing()).toEqual([])
})
