import { expect, test } from 'vitest'
import { listMutants, openMutant } from './mutants.js'

/** What the issues name. */
const named = [
  'allow-resets-ladder',
  'approval-of-any-call',
  'attempt-not-counted',
  'breaker-two-probes',
  'budget-checked-after-call',
  'effect-before-append',
  'generation-not-checked',
  'no-dispatched-record',
  'no-outcome-dedupe',
  'no-reload-after-failed-append',
  'refund-lost',
  'restart-keeps-generation',
  'settle-not-idempotent',
  'snapshot-without-chain-hash',
  'timer-not-durable',
  'workers-mail-acknowledged-early',
  'workers-no-dispatched-record',
  'workers-no-epoch-in-id',
  'workers-no-fence',
  'workers-no-read-back',
]
/**
 * After how many seeds one looks, and how many of them must have broken something for no more to be tried. One in a hundred
 * is what holds for all; every day the first one is enough that comes within a hundred, and the one that is known to come
 * late is tried before.
 */
const full = [150, 200, 300, 400, 500, 600].map((until) => ({ until, enough: Math.ceil(until / 100) }))
const everyday = [...[6, 16, 32, 64, 100].map((until) => ({ until, enough: 1 })), ...full]
const isEveryday = process.env['TROUPE_SCALE'] === undefined
const steps = isEveryday ? everyday : full

test('mutants: each mechanism that the simulation stands for has one', () => {
  expect(listMutants()).toEqual(expect.arrayContaining(named))
})

test.each(listMutants())(
  'mutants: %s is caught by one of a hundred seeds',
  async (mutant) => {
    using opened = openMutant(mutant)
    if (isEveryday && opened.known !== null && (await opened.run(opened.known, 1, 1)).caught === 1) return
    let [seeds, caught, least] = [0, 0, 1]
    for (const { until, enough } of steps) {
      const result = await opened.run(7_000 + seeds, until - seeds, seeds === 0 ? 1 : 2)
      process.stdout.write(`mutant: ${JSON.stringify(result)}\n`)
      ;[seeds, caught, least] = [until, caught + result.caught, enough]
      if (caught >= least) break
    }
    expect(caught).toBeGreaterThanOrEqual(least)
  },
  600_000,
)
