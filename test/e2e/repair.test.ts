import { cp, readFile, rename, rm, truncate } from 'node:fs/promises'
import { join } from 'node:path'
import { Level } from 'level'
import { describe, expect, test } from 'vitest'
import { createLevelJournal } from '../../transport/level-journal.js'
import { clerk, crewFile, ended, Gate, jsonLines, model, scratch, troupe } from './command-line.js'

const words = ['run', crewFile('desk.mjs'), '--input', 'go']

/** Changes the rows of a closed store. */
async function tamper(cwd: string, change: (db: Level<string, Buffer>) => Promise<unknown>): Promise<void> {
  const db = new Level<string, Buffer>(join(cwd, '.troupe', 'db'), { valueEncoding: 'buffer' })
  await db.open()
  await change(db)
  await db.close()
}

/** Flips a bit near the end of a record. */
function flip(cwd: string, key: string): Promise<void> {
  return tamper(cwd, async (db) => {
    const value = Buffer.from((await db.get(key)) ?? [])
    value[value.length - 3]! ^= 4
    await db.put(key, value)
  })
}

/** Brings what only the log has into LevelDB, like an owner that is killed after it has opened the store. */
async function settle(cwd: string): Promise<void> {
  const path = join(cwd, '.troupe')
  const journal = createLevelJournal({ path })
  await journal.open()
  await cp(path, `${path}-killed`, { recursive: true, filter: (name) => !name.endsWith('.sock') })
  await journal.close()
  await rm(path, { recursive: true })
  await rename(`${path}-killed`, path)
}

/** A run that was killed in its third round: commits 1 to 6, no snapshot. */
async function killed(beside = false): Promise<{ cwd: string; server: Awaited<ReturnType<typeof model>>; gate: Gate }> {
  const cwd = await scratch()
  const gate = new Gate()
  const server = await model((request) => clerk(sent ? { 3: gate } : {})(request))
  let sent = false
  if (beside) await ended([...words, '--id', 'other'], { cwd, model: server })
  sent = true
  const run = troupe(words, { cwd, model: server })
  await gate.reached
  run.child.kill('SIGKILL')
  await run.end
  gate.open()
  return { cwd, server, gate }
}

describe('troupe repair', () => {
  test('damaged record: the run is refused, the loss is told, accepted, journalled, and the run goes on', async () => {
    const { cwd, server } = await killed()
    await settle(cwd)
    await flip(cwd, 'r!desk!a5')
    const refused = await ended(words, { cwd, model: server })
    expect(refused).toMatchObject({ code: 1, stdout: '' })
    expect(refused.stderr).toMatch(/JOURNAL_CORRUPT: .*\n {2}see `troupe repair desk`/)
    const told = await ended(['repair', 'desk'], { cwd })
    expect(told).toMatchObject({ code: 1, stdout: '' })
    expect(told.stderr).toContain('sound up to commit 4\nto be given up: 2 commits, 5 to 6\n')
    const [report] = jsonLines((await ended(['repair', 'desk', '--json'], { cwd })).stdout)
    expect(report).toMatchObject({ sound: 4, lost: { from: 5, to: 6 }, repaired: false })
    expect((await ended(['repair', 'desk', '--accept-loss'], { cwd })).code).toBe(0)
    expect(await ended(['repair', 'desk'], { cwd })).toMatchObject({ code: 0, stderr: 'desk is sound\n' })
    const journal = jsonLines((await ended(['journal', 'desk', '--from', '5', '--json'], { cwd })).stdout)
    // The numbers of lost commits name nothing new, not even what tells of them.
    expect(journal).toMatchObject([
      { sequence: 5, body: { type: 'shard.skipped' } },
      { sequence: 6, body: { type: 'shard.skipped' } },
      { sequence: 7, body: { type: 'shard.repaired', from: 5, to: 6 } },
    ])
    const run = await ended(words, { cwd, model: server })
    expect(run, run.stderr).toMatchObject({ code: 0, stdout: 'All is known.\n' })
  })

  test('truncated log: what is missing is known by number, and another crew is not touched', async () => {
    const { cwd, server } = await killed(true)
    await settle(cwd)
    await tamper(cwd, (db) => db.batch(['r!desk!a6', 'i!desk'].map((key) => ({ type: 'del', key }))))
    const show = await ended(['show', 'desk'], { cwd })
    expect(show.stderr).toMatch(/^JOURNAL_TRUNCATED: .*\n {2}see `troupe repair desk`/)
    const { stdout } = await ended(['repair', 'desk', '--accept-loss', '--json'], { cwd })
    expect(jsonLines(stdout)).toMatchObject([{ damage: { code: 'JOURNAL_TRUNCATED' }, sound: 5, repaired: true }])
    expect(await ended(words, { cwd, model: server })).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect(await ended(['repair', 'other'], { cwd })).toMatchObject({ code: 0, stderr: 'other is sound\n' })
  })

  test('torn log file: the crew stops with its reason and goes on from what is sound', async () => {
    const { cwd, server } = await killed()
    const log = join(cwd, '.troupe', 'log-0')
    // Behind the last frame are zeros: the file grows in steps.
    const bytes = await readFile(log)
    await truncate(log, bytes.findLastIndex((byte) => byte !== 0) - 40)
    const refused = await ended(words, { cwd, model: server })
    expect(refused.stderr).toMatch(/JOURNAL_TRUNCATED/)
    expect((await ended(['repair', 'desk', '--accept-loss'], { cwd })).code).toBe(0)
    expect(await ended(words, { cwd, model: server })).toMatchObject({ code: 0, stdout: 'All is known.\n' })
  })

  test('damaged history: a crew that stands on a later snapshot loses nothing', async () => {
    const cwd = await scratch()
    const server = await model(clerk())
    await ended(words, { cwd, model: server })
    await flip(cwd, 'r!desk!a3')
    const told = await ended(['repair', 'desk', '--accept-loss'], { cwd })
    expect(told.code).toBe(0)
    expect(told.stderr).toContain('nothing to give up')
    expect(await ended(['run', crewFile('desk.mjs'), '--input', 'else'], { cwd, model: server })).toMatchObject({
      code: 0,
    })
  })

  test('nothing sound: the crew begins anew, and its numbers go on', async () => {
    const { cwd, server } = await killed()
    await settle(cwd)
    await flip(cwd, 'r!desk!a1')
    const { stdout } = await ended(['repair', 'desk', '--accept-loss', '--json'], { cwd })
    expect(jsonLines(stdout)).toMatchObject([{ sound: 0, lost: { from: 1, to: 6 }, repaired: true }])
    const run = await ended([...words, '--json'], { cwd, model: server })
    expect(jsonLines(run.stdout).at(-1)).toMatchObject({ type: 'result', runId: 'r9' })
  })

  test('refusals: an unknown crew, a store in use', async () => {
    const cwd = await scratch()
    const gate = new Gate()
    const server = await model(clerk({ 1: gate }))
    const run = troupe(words, { cwd, model: server })
    await gate.reached
    expect((await ended(['repair', 'desk'], { cwd })).stderr).toMatch(/^STORE_BUSY/)
    gate.open()
    await run.end
    expect((await ended(['repair', 'nobody'], { cwd })).stderr).toMatch(/^CREW_UNKNOWN/)
  })
})

describe('a new life of a removed id', () => {
  test('kill -9: it goes on like any other', async () => {
    const cwd = await scratch()
    const gate = new Gate()
    const server = await model(clerk({ 3: gate }))
    const first = troupe(words, { cwd, model: server })
    await gate.reached
    first.child.kill('SIGKILL')
    await first.end
    expect((await ended(['rm', 'desk'], { cwd })).code).toBe(0)
    const second = troupe(words, { cwd, model: server })
    await second.says('round 2')
    second.child.kill('SIGKILL')
    await second.end
    gate.open()
    const third = await ended(words, { cwd, model: server })
    expect(third, third.stderr).toMatchObject({ code: 0, stdout: 'All is known.\n' })
  })
})
