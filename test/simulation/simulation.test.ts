import { expect, test } from 'vitest'
import { baseOf, commitOf, runCampaign, summarize } from './campaign.js'
import { compileCopy } from './compiled.js'
import { regressions } from './regressions.js'
import { runSeed } from './simulation.js'

/** Share of the full counts; the soak runs the simulation itself. */
const scale = Number(process.env['TROUPE_SCALE'] ?? 1)
const seeds = Math.max(200, Math.round(3_000 * scale))

test('simulation: seeds that once failed hold', async () => {
  for (const [seed, was] of regressions) {
    const { violations } = await runSeed(seed)
    expect(violations, `${seed}: ${was}`).toEqual([])
  }
})

test('simulation: a seed replays exactly', async () => {
  for (const seed of [1, 2, 3, 42, 1_017]) {
    const [one, other] = [await runSeed(seed), await runSeed(seed)]
    expect(other).toEqual(one)
  }
})

test(`simulation: ${seeds} seeds keep every promise`, async () => {
  using copy = compileCopy()
  const base = baseOf(commitOf())
  const result = await runCampaign({ base, seeds, processes: 2, main: copy.main })
  const summary = summarize(result)
  process.stdout.write(`simulation: base ${base} ${JSON.stringify(summary)}\n`)
  expect(result.failed, 'each replays by its command').toEqual([])
  expect(summary.unsteady).toEqual([])
  expect(summary.replayed).toBeGreaterThan(0)
  expect(summary.leastRounds).toBeGreaterThanOrEqual(5)
  expect(summary.leastDelegations).toBeGreaterThanOrEqual(1)
  expect(summary.leastOnceCalls).toBeGreaterThanOrEqual(1)
  expect(summary.medianCommits).toBeGreaterThanOrEqual(100)
  expect(summary.medianFaults).toBeGreaterThanOrEqual(3)
  // A campaign that never gets somewhere shows nothing about it.
  if (seeds >= 2_000) expect(summary.neverReached).toEqual([])
}, 900_000)
