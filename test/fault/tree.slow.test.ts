/**
 * A tree of budgets under kills and cancelled races, judged by the provider's own count: a tenth of the full counts, which
 * are 20 trials; `TROUPE_SCALE=1` runs all. `TROUPE_SEED` repeats a plan; what a kill hits also depends on the machine.
 */
import { expect, test } from 'vitest'
import { runTreeTrials } from './tree-trials.js'

const scale = Number(process.env['TROUPE_SCALE'] ?? '0.1')
const trials = Math.max(6, Math.round(20 * scale))
const seed = Number(process.env['TROUPE_SEED'] ?? Date.now() % 1_000_000)
console.log(`tree: TROUPE_SEED=${seed} TROUPE_SCALE=${scale}`)

test(
  `tree: 60 agents on three levels of budgets, killed and cancelled, cost what the provider counts, in ${trials} trials`,
  async () => {
    const report = await runTreeTrials({ trials, seed })
    for (const trial of report.trials) console.log(JSON.stringify(trial))
    expect(report.violations).toEqual([])
    for (const window of ['before append', 'append to dispatch', 'in flight', 'outcome to append', 'random'])
      expect(report.perWindow[window], window).toBeGreaterThan(0)
    // Something was lost, and stated; and limits were met.
    expect(report.estimated).toBeGreaterThan(0)
    expect(report.exhausted).toBeGreaterThan(0)
  },
  60_000 + trials * 80_000,
)
