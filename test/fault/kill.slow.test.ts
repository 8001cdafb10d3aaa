/**
 * `kill -9` of a real process under crews at work: counts are tenths of the full ones; `TROUPE_SCALE=1` runs all 300.
 * `TROUPE_SEED` repeats a run's plan; what a kill hits also depends on the machine.
 */
import { expect, test } from 'vitest'
import { runKillTrials, runPoison } from './kill-trials.js'

const scale = Number(process.env['TROUPE_SCALE'] ?? '0.1')
const kills = Math.max(24, Math.round(300 * scale))
const seed = Number(process.env['TROUPE_SEED'] ?? Date.now() % 1_000_000)
console.log(`kills: TROUPE_SEED=${seed} TROUPE_SCALE=${scale}`)

test(
  `kill -9: ${kills} kills in every window leave each run as its twin, and no once call runs twice`,
  async () => {
    const report = await runKillTrials({ kills, seed })
    console.log(`kills: ${JSON.stringify({ ...report, violations: report.violations.length })}`)
    expect(report.violations).toEqual([])
    expect(report.trials).toBe(kills)
    const least = Math.floor(kills / 10)
    for (const window of ['before append', 'append to dispatch', 'in flight', 'outcome to append'])
      expect(report.perWindow[window], window).toBeGreaterThanOrEqual(least)
    // The kills hit something: calls were repeated, and budgets ran dry.
    expect(report.repeats).toBeGreaterThan(0)
    expect(report.exhausted).toBeGreaterThan(0)
  },
  60_000 + kills * 20_000,
)

test('kill -9: a tool that kills its process is given up at the third crash, and everybody finishes', async () => {
  const report = await runPoison('poison', seed)
  expect(report.violations).toEqual([])
  expect(report.starts).toBe(3)
  expect(report.kills).toBe(3)
  expect(report.told).toContain('given up')
})

test('kill -9: a once tool that kills its process runs once and is told as unknown', async () => {
  const report = await runPoison('poison-once', seed)
  expect(report.violations).toEqual([])
  expect(report.starts).toBe(1)
  expect(report.kills).toBe(1)
  expect(report.told).toContain('unknown')
  expect(report.lost.length).toBeGreaterThan(0)
})

test('kill -9: a process that dies over a tool uses up none of its retries', async () => {
  const report = await runPoison('poison-twice', seed)
  expect(report.violations).toEqual([])
  expect(report.kills).toBe(2)
  expect(report.starts).toBe(5)
})
