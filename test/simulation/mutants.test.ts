import { expect, test } from 'vitest'
import { listMutants, runMutant } from './mutants.js'

/** What the issue names. */
const named = [
  'attempt-not-counted',
  'budget-checked-after-call',
  'effect-before-append',
  'generation-not-checked',
  'no-dispatched-record',
  'no-outcome-dedupe',
  'no-reload-after-failed-append',
  'settle-not-idempotent',
  'snapshot-without-chain-hash',
  'timer-not-durable',
  'workers-mail-acknowledged-early',
  'workers-no-dispatched-record',
  'workers-no-epoch-in-id',
  'workers-no-fence',
  'workers-no-read-back',
]
const seeds = Math.max(150, Math.round(150 * Number(process.env['TROUPE_SCALE'] ?? 1)))

test('mutants: each mechanism that the simulation stands for has one', () => {
  expect(listMutants()).toEqual(expect.arrayContaining(named))
})

test.each(listMutants())(
  'mutants: %s is caught by one of a hundred seeds',
  async (mutant) => {
    let result = await runMutant(mutant, 7_000, seeds)
    // One in a hundred is a rate: of a few seeds it may be missed by chance.
    if (result.rate < 0.01) result = await runMutant(mutant, 7_000, 4 * seeds)
    process.stdout.write(`mutant: ${JSON.stringify(result)}\n`)
    expect(result.rate).toBeGreaterThanOrEqual(0.01)
  },
  600_000,
)
