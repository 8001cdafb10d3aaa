/**
 * Real workers over a real nats-server under faults: counts are a tenth of the full ones; `npm run soak workers` runs all.
 * `TROUPE_SEED` repeats a run's plan; what a fault hits also depends on the machine.
 */
import { expect, test } from 'vitest'
import { runClusterFaults } from './cluster-trials.js'
import { failoverWindows, leaseMs, runFailover } from './failover-trials.js'
import { linkFaults, runLinkFaults } from './link-trials.js'
import { runMoves } from './move-trials.js'
import { runRollingRestarts } from './rolling-trials.js'
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
  'failover: kill -9 of workers and of the server in every window loses no run and no event, and doubles no once call',
  async () => {
    const report = await runFailover({
      seed,
      each: 2,
      random: 10,
      lanes,
      slower: 5,
      together: 30,
      idle: 50,
      idleBytes: 100_000,
    })
    tell('failover', report)
    expect(report.violations).toEqual([])
    for (const window of failoverWindows) expect(report.perWindow[window], window).toBeGreaterThanOrEqual(2)
    expect(report.perWindow['random']).toBeGreaterThanOrEqual(10)
    // The faults hit something.
    expect(report.repeats).toBeGreaterThan(0)
    expect(report.takeovers).toBeGreaterThan(0)
    // The soak holds 99 of 100 to it, on a machine that has nothing else to do.
    expect(report.takeoverP50Ms).toBeLessThanOrEqual(leaseMs + 2_000)
  },
  longMs,
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
  'moves: crews that are moved while the server is killed go on, and no letter stays behind',
  async () => {
    const report = await runMoves({ seed, kills: 6, lanes: 60 })
    tell('moves', report)
    expect(report.violations).toEqual([])
    expect(report.moves).toBeGreaterThan(0)
    expect(report.lost).toBe(0)
  },
  longMs,
)

test(
  'rolling restart: three workers leave by SIGTERM under load; no outcome is unknown, no client sees an error',
  async () => {
    const report = await runRollingRestarts({ seed, count: 2, lanes })
    tell('rolling', report)
    expect(report.violations).toEqual([])
    expect(report.lost).toBe(0)
  },
  longMs,
)

test(
  'cluster: killed nodes lose nothing; one that comes back with a truncated file has all again, does not come back, or stops who reads it',
  async () => {
    const report = await runClusterFaults({ seed, kills: 3, truncations: 2, lanes: 6 })
    tell('cluster', report)
    expect(report.violations).toEqual([])
    expect(report.healed + report.refused + report.holed).toBeGreaterThan(0)
  },
  longMs,
)
