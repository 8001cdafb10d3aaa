import { describe, expect, test } from 'vitest'
import { defineAgent } from '../../runtime/define.js'
import { isAtRest } from '../../runtime/state.js'
import { failure, openStage, quiet, say, type Stage, until } from '../support/crew-stage.js'

const agent = defineAgent({ model: 'a:one', instructions: 'x' })
const dayMs = 86_400_000

/** A store in which crews have run and nobody holds them; nothing is removed yet. */
async function filled(ids: readonly string[]): Promise<Stage> {
  const stage = await openStage({})
  for (const id of ids) await (await stage.runtime.spawn(agent, { id })).ask('go')
  await stage.runtime.close()
  // The keepers of these runs wait for late bills a while.
  const later = await openStage({ store: stage.store, clock: stage.clock })
  for (const id of ids) {
    await until(async () => {
      stage.clock.advance(3_600_000)
      await quiet()
      return isAtRest((await later.worker.shard(id)).state, Number.POSITIVE_INFINITY)
    })
  }
  await later.runtime.close()
  return stage
}

async function reopened({ store, clock }: Stage): Promise<Stage> {
  return openStage({ store, clock, retainMs: 10 * dayMs })
}

async function isThere({ journal }: Stage, id: string): Promise<boolean> {
  return !(await journal.head(id)).removed
}

/** Lets days go by, as one that looks every hour sees them. */
async function pass({ clock }: Stage, days: number): Promise<void> {
  for (let hour = 0; hour < days * 24; hour += 1) {
    clock.advance(3_600_000)
    await quiet()
  }
}

describe('retention', () => {
  test('RT1 retention: a crew at rest goes after its time, with its journal, and its id may be used again', async () => {
    const stage = await reopened(await filled(['old']))
    await pass(stage, 9)
    expect(await isThere(stage, 'old')).toBe(true)
    await pass(stage, 2)
    expect(await isThere(stage, 'old')).toBe(false)
    const again = await stage.runtime.spawn(agent, { id: 'old' })
    await expect(again.ask('go')).resolves.toMatchObject({ output: 'done' })
    await stage.runtime.close()
  })

  test('RT1 retention: a crew with an unfinished run stays, however long it waits', async () => {
    const first = await openStage({ model: () => failure('server', { retryAfterMs: 3_600_000 }) })
    const crew = await first.runtime.spawn(agent, { id: 'waits' })
    crew.start('go').result.catch(() => undefined)
    await until(() => first.requests.length > 0)
    await crew.pause()
    await first.runtime.close({ graceMs: 0 })
    const stage = await reopened(first)
    await pass(stage, 15)
    expect(await isThere(stage, 'waits')).toBe(true)
    await stage.runtime.close()
  })

  test('RT2 retention: a crew that somebody holds stays, and so does one that was used within the time', async () => {
    const stage = await reopened(await filled(['held', 'used', 'old']))
    await stage.runtime.spawn(agent, { id: 'held' })
    await pass(stage, 5)
    const run = await (await stage.runtime.spawn(agent, { id: 'used' })).ask('again')
    expect(run.output).toBe('done')
    await pass(stage, 7)
    expect(await isThere(stage, 'old')).toBe(false)
    expect([await isThere(stage, 'held'), await isThere(stage, 'used')]).toEqual([true, true])
    await stage.runtime.close()
  })

  test('retention: by default crews are kept', async () => {
    const { store, clock } = await filled(['kept'])
    const stage = await openStage({ store, clock, model: () => say('no') })
    await pass(stage, 30)
    expect(await isThere(stage, 'kept')).toBe(true)
    await stage.runtime.close()
  })
})
