/**
 * One budget under 200 agents at once, judged by the provider's own bill; see `budget-trials.ts` for what is promised.
 * Counts are tenths of the full ones; `TROUPE_SCALE=1` runs all. `TROUPE_SEED` repeats a run.
 */
import { expect, test } from 'vitest'
import { runBudgetTrials } from './budget-trials.js'

const scale = Number(process.env['TROUPE_SCALE'] ?? '0.1')
const trials = Math.max(3, Math.round(20 * scale))
const seed = Number(process.env['TROUPE_SEED'] ?? Date.now() % 1_000_000)
console.log(`budgets: TROUPE_SEED=${seed} TROUPE_SCALE=${scale}`)

test(
  `budget: 200 agents at once spend at most the limit and at least 85 % of it, in ${trials} trials`,
  async () => {
    const report = await runBudgetTrials({ trials, seed })
    for (const trial of report.trials) console.log(JSON.stringify(trial))
    expect(report.violations).toEqual([])
    expect(report.trials.length).toBe(trials)
  },
  60_000 + trials * 80_000,
)
