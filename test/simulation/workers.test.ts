import { expect, test } from 'vitest'
import { baseOf, commitOf, runCampaign, summarize } from './campaign.js'
import { compileCopy } from './compiled.js'
import { workerRegressions } from './regressions.js'
import { runSeed } from './simulation.js'

/** Share of the full counts; the soak runs the simulation itself. */
const scale = Number(process.env['TROUPE_SCALE'] ?? 1)
const seeds = Math.max(200, Math.round(600 * scale))
const workers = 3

test('workers: seeds that once failed hold', async () => {
  for (const [seed, was] of workerRegressions) {
    const { violations } = await runSeed(seed, { workers })
    expect(violations, `${seed}: ${was}`).toEqual([])
  }
})

test(`OW1 OW2 OW3 workers: ${seeds} seeds with three workers over one journal keep every promise`, async () => {
  using copy = compileCopy()
  const base = baseOf(commitOf())
  const result = await runCampaign({ base, seeds, workers, processes: 2, main: copy.main })
  const summary = summarize(result, workers)
  process.stdout.write(`simulation of workers: base ${base} ${JSON.stringify(summary)}\n`)
  expect(result.failed, 'each replays by its command').toEqual([])
  expect(summary.unsteady).toEqual([])
  expect(summary.medianCommits).toBeGreaterThanOrEqual(90)
  expect(summary.medianFaults).toBeGreaterThanOrEqual(6)
  if (seeds >= 1_000) expect(summary.neverReached).toEqual([])
}, 900_000)
