import { expect, test } from 'vitest'
import { defineAgent } from '../../runtime/define.js'
import { type RunState, Runs } from '../../runtime/runs.js'
import { openStage } from '../support/crew-stage.js'

const agent = defineAgent({ model: 'a:one', instructions: 'x' })
const run = (id: string, key: string, status: RunState['status'] = 'queued'): RunState => ({
  run: id,
  key,
  sequence: 1,
  data: false,
  status,
  conversation: id,
  skip: 0,
  until: 0,
  end: null,
  replyTo: '',
  lead: '',
})
const end = {
  code: null,
  reason: '',
  finish: 'stop',
  rounds: 1,
  spent: { nanoUsd: 0, tokens: 0, modelCalls: 0, toolCalls: 0 },
  at: 5,
}

test('runs: the first of a key is found by it, those that go on by themselves, ended ones stay', () => {
  const runs = new Runs()
  for (const each of [run('r1', 'a'), run('r2', 'b', 'finished'), run('r3', 'a')]) runs.set(each.run, each)
  expect(runs.withKey('a')?.run).toBe('r1')
  expect(runs.withKey('c')).toBeUndefined()
  expect([...runs.unfinished.keys()]).toEqual(['r1', 'r3'])
  runs.finish(runs.get('r1')!, 3, end)
  expect(runs.get('r1')).toMatchObject({ status: 'finished', until: 3, end })
  expect([...runs.unfinished.keys()]).toEqual(['r3'])
  expect([...runs.keys()]).toEqual(['r1', 'r2', 'r3'])
})

test('RU1 runs: a run is started, found, awaited and ended without a look at those before it', async () => {
  // Checks look at everything, by their nature.
  const stage = await openStage({ checks: false })
  const crew = await stage.runtime.spawn(agent)
  for (let count = 0; count < 3; count += 1) await crew.ask('go')
  const { runs } = (await stage.worker.shard('agent')).state
  const looks: string[] = []
  for (const way of ['values', 'entries', 'keys', 'forEach', Symbol.iterator] as const) {
    Object.defineProperty(runs, way, { value: () => looks.push(String(way)) })
  }
  const { runId } = await crew.ask('go', { key: 'k' })
  expect((await crew.ask('go', { key: 'k' })).runId).toBe(runId)
  expect(await crew.current()).toBeUndefined()
  expect(looks).toEqual([])
  await stage.worker.close(0).catch(() => undefined)
})
