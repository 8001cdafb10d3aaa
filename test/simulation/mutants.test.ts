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
/** Seeds that are tried: of a mutant that breaks many a few are enough. */
const [quick, few, many] = [50, 150, 600]
const isSoak = process.env['TROUPE_SCALE'] !== undefined

test('mutants: each mechanism that the simulation stands for has one', () => {
  expect(listMutants()).toEqual(expect.arrayContaining(named))
})

test.each(listMutants())(
  'mutants: %s is caught by one of a hundred seeds',
  async (mutant) => {
    // Three of fifty are a rate of more than one in a hundred; what is seen less often is looked for longer.
    let result = await runMutant(mutant, 7_000, isSoak ? few : quick)
    if (!isSoak && result.rate < 0.06) result = await runMutant(mutant, 7_000, few)
    if (result.rate < 0.01) result = await runMutant(mutant, 7_000, many)
    process.stdout.write(`mutant: ${JSON.stringify(result)}\n`)
    expect(result.rate).toBeGreaterThanOrEqual(0.01)
  },
  600_000,
)
