/**
 * One probe a cooldown in a whole cluster: a tenth of the full counts, which are 50 trials; `TROUPE_SCALE=1` runs all.
 * `TROUPE_SEED` repeats a plan; what a fault hits also depends on the machine.
 */
import { expect, test } from 'vitest'
import { runProbeTrials } from './probe-trials.js'

const scale = Number(process.env['TROUPE_SCALE'] ?? '0.1')
const trials = Math.max(5, Math.round(50 * scale))
const seed = Number(process.env['TROUPE_SEED'] ?? Date.now() % 1_000_000)
console.log(`probes: TROUPE_SEED=${seed} TROUPE_SCALE=${scale}`)

test(
  `probes: of three workers one asks, once a cooldown, also when it dies over it or is cut off, in ${trials} trials`,
  async () => {
    const report = await runProbeTrials({ trials, seed, lanes: 24 })
    console.log(`probes: ${JSON.stringify(report)}`)
    expect(report.violations).toEqual([])
    expect(report.probes).toBe(trials)
  },
  60_000 + trials * 20_000,
)
