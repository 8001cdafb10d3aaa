/**
 * Real workers over a real nats-server under faults: counts are a tenth of the full ones; `npm run soak workers` runs all.
 * Failover and rolling restarts run there alone until what they found is mended. `TROUPE_SEED` repeats a run's plan; what
 * a fault hits also depends on the machine.
 */
import { expect, test } from 'vitest'
import { runClusterFaults } from './cluster-trials.js'
import { linkFaults, runLinkFaults } from './link-trials.js'
import { runStops } from './stop-trials.js'
import { fenceMutants, mutate } from './worker-mutants.js'

const seed = Number(process.env['TROUPE_SEED'] ?? Date.now() % 1_000_000)
console.log(`workers: TROUPE_SEED=${seed}`)
const lanes = 12
const longMs = 600_000
const tell = (name: string, report: { readonly violations: readonly string[] }): void =>
  console.log(
    `${name}: ${JSON.stringify({ ...report, violations: report.violations.length })}\n${report.violations.join('\n')}`,
  )

test(
  'stop: an owner that sleeps beyond its lease appends nothing and starts no once call when it wakes',
  async () => {
    const report = await runStops({ seed, count: 5, lanes })
    tell('stops', report)
    expect(report.violations).toEqual([])
    expect(report.stops).toBe(5)
  },
  longMs,
)

test.each(fenceMutants)('stop: the mutant %s of what keeps a stale owner out applies', (mutant) => {
  mutate(mutant)[Symbol.dispose]()
})

test(
  'NC2 links: black hole, delay, cut, one-way and half-open are noticed within five seconds and lose nothing',
  async () => {
    const report = await runLinkFaults({ seed, count: 3, lanes })
    tell('links', report)
    expect(report.violations).toEqual([])
    for (const kind of linkFaults.filter((each) => each !== 'delay'))
      expect(report.noticedMs[kind], kind).toBeLessThanOrEqual(5_000)
  },
  longMs,
)

test(
  'cluster: killed nodes lose nothing; one that comes back with a truncated file has all again, or does not come back',
  async () => {
    const report = await runClusterFaults({ seed, kills: 3, truncations: 2, lanes: 6 })
    tell('cluster', report)
    expect(report.violations).toEqual([])
    expect(report.healed + report.refused).toBeGreaterThan(0)
  },
  longMs,
)
