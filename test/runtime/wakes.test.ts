import { expect, test } from 'vitest'
import { Wakes } from '../../runtime/wakes.js'
import { createManualClock, type ManualClock } from '../support/manual-clock.js'

const dayMs = 86_400_000

function stage(): { clock: ManualClock; wakes: Wakes; woken: string[] } {
  const clock = createManualClock()
  const woken: string[] = []
  return { clock, woken, wakes: new Wakes(clock, (shard) => woken.push(shard)) }
}

test('WK1 wakes: a shard is woken once, for what was planned last', () => {
  const { clock, wakes, woken } = stage()
  const now = clock.now()
  wakes.plan('a', now + 10)
  wakes.plan('a', now + 30)
  wakes.plan('b', now + 20)
  clock.advance(25)
  expect(woken).toEqual(['b'])
  clock.advance(1_000)
  expect(woken).toEqual(['b', 'a'])
})

test('wakes: what is due already is woken at once, what is planned for never is not', () => {
  const { clock, wakes, woken } = stage()
  wakes.plan('late', clock.now() - 5_000)
  wakes.plan('never', clock.now() + 10)
  wakes.plan('never', null)
  clock.advance(100)
  expect(woken).toEqual(['late'])
})

test('wakes: what is due in months is looked at again in between', () => {
  const { clock, wakes, woken } = stage()
  wakes.plan('a', clock.now() + 60 * dayMs)
  clock.advance(20 * dayMs)
  expect(woken).toEqual(['a'])
})

test('wakes: closed, it wakes nothing any more', () => {
  const { clock, wakes, woken } = stage()
  wakes.plan('a', clock.now() + 10)
  wakes.close()
  wakes.plan('b', clock.now() + 10)
  clock.advance(100)
  expect(woken).toEqual([])
})
