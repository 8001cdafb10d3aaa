/** What every store of circuit breakers must do. */
import { describe, expect, test } from 'vitest'
import type { StoredBreaker } from '../../machines/index.js'
import type { BreakerEntry, BreakerStore } from '../../runtime/breakers.js'
import { until } from '../support/crew-stage.js'

export const closed: StoredBreaker = { state: 'closed', until: 0, probe: null, cooling: null }
export const open: StoredBreaker = { ...closed, state: 'open', until: 1_700_000_000_000 }
const probing: StoredBreaker = { ...open, state: 'halfOpen', probe: { call: 'c.1-0', until: 1_700_000_060_000 } }
const cooling: StoredBreaker = { ...closed, cooling: { until: 1_700_000_020_000, why: 'asked' } }

/** Two views of one store, as two workers have them, or one view twice. */
export interface StoreUnderTest {
  readonly one: BreakerStore
  readonly two: BreakerStore
}

/** Tests of a store. @param make makes an empty one */
export function testBreakerStore(name: string, make: () => Promise<StoreUnderTest>): void {
  describe(name, () => {
    test(`${name}: nothing is stored of a target that nobody spoke of`, async () => {
      const { one } = await make()
      expect(await one.load('model/a:one')).toBeNull()
    })

    test.each([closed, open, probing, cooling])(
      `${name}: what is stored comes back as it was (%o)`,
      async (breaker) => {
        const { one, two } = await make()
        const revision = await one.save('model/openrouter:meta/llama-3.1:free', breaker, 0)
        expect(await two.load('model/openrouter:meta/llama-3.1:free')).toEqual({ breaker, revision })
      },
    )

    test(`${name}: of those who know the same entry one changes it`, async () => {
      const { one, two } = await make()
      const first = (await one.save('tool/crm', open, 0))!
      expect(await two.save('tool/crm', closed, 0)).toBeNull()
      const both = await Promise.all([one.save('tool/crm', probing, first), two.save('tool/crm', closed, first)])
      expect(both.filter((each) => each !== null)).toHaveLength(1)
      const [won] = both
      expect((await one.load('tool/crm'))!.breaker).toEqual(won === null ? closed : probing)
    })

    test(`${name}: targets are apart, whatever they are called`, async () => {
      const { one } = await make()
      const targets = ['model/a:one', 'tool/a_one', 'model/a_one', 'model/a.one', 'model/a/one', 'tool/a-one']
      for (const target of targets) expect(await one.save(target, open, 0)).toBeGreaterThan(0)
      for (const target of targets) expect((await one.load(target))?.breaker).toEqual(open)
    })

    test(`${name}: everything that is stored is told, as it was stored last`, async () => {
      const { one, two } = await make()
      expect(await two.all()).toEqual(new Map())
      const first = (await one.save('model/a:one', open, 0))!
      const last = (await one.save('model/a:one', cooling, first))!
      const other = (await one.save('tool/crm', probing, 0))!
      expect(await two.all()).toEqual(
        new Map([
          ['model/a:one', { breaker: cooling, revision: last }],
          ['tool/crm', { breaker: probing, revision: other }],
        ]),
      )
    })

    test(`${name}: others hear of a change, until they do not want to any more`, async () => {
      const { one, two } = await make()
      const heard: [string, BreakerEntry][] = []
      const unwatch = two.watch((target, entry) => void heard.push([target, entry]))
      const revision = (await one.save('model/a:one', open, 0))!
      await until(() => heard.length === 1)
      expect(heard).toEqual([['model/a:one', { breaker: open, revision }]])
      unwatch()
      const later = (await one.save('model/a:one', closed, revision))!
      expect(await two.load('model/a:one')).toEqual({ breaker: closed, revision: later })
      expect(heard).toHaveLength(1)
    })
  })
}
