/**
 * One budget of 60 crews on 3 workers under `kill -9` and cut links, judged by the provider's own count; see
 * `shared-budget-trials.ts` for what is promised. Counts are tenths of the full ones, or more: a budget has 400 units instead
 * of 1,000; `TROUPE_SCALE=1` runs all.
 */
import { expect, test } from 'vitest'
import { runSharedBudgetTrials } from './shared-budget-trials.js'

const scale = Number(process.env['TROUPE_SCALE'] ?? '0.1')
const trials = Math.max(3, Math.round(100 * scale))
const units = scale < 1 ? 400 : 1_000
const seed = Number(process.env['TROUPE_SEED'] ?? Date.now() % 1_000_000)
console.log(`shared budgets: TROUPE_SEED=${seed} TROUPE_SCALE=${scale}`)

test(
  `shared budget: 60 crews on 3 workers ask the provider at most ${units} times, and make use of 90 %, in ${trials} trials`,
  async () => {
    const { trials: all, ...report } = await runSharedBudgetTrials({ trials, seed, units })
    for (const trial of all) console.log(JSON.stringify(trial))
    console.log(JSON.stringify({ ...report, violations: report.violations.length }))
    expect(report.violations).toEqual([])
    expect(all.length).toBe(trials)
  },
  60_000 + trials * 60_000,
)
