import { describe, expect, test } from 'vitest'
import { defineAgent, defineCrew } from '../../runtime/define.js'
import { maxWaitingRuns } from '../../runtime/crew-handle.js'
import { failure, gate, openStage, quiet, say, until } from '../support/crew-stage.js'

const agent = defineAgent({ model: 'a:one', instructions: 'x' })

describe('runtime: keys', () => {
  test('R1 runtime: the same key is the same run: going on, finished, over a restart', async () => {
    const slow = gate()
    const stage = await openStage({ model: () => slow.opened.then(() => say('done')) })
    const crew = await stage.runtime.spawn(agent)
    const first = crew.start('go', { key: 'k' })
    const second = crew.start('something else', { key: 'k' })
    expect(await second.id).toBe(await first.id)
    slow.open()
    await first.result
    const again = await crew.ask('go', { key: 'k' })
    expect(again.runId).toBe(await first.id)
    expect(stage.requests).toHaveLength(1)
    await stage.runtime.close()
    const next = await openStage({ store: stage.store, clock: stage.clock })
    await expect((await next.runtime.spawn(agent)).ask('go', { key: 'k' })).resolves.toEqual(again)
    expect(next.requests).toEqual([])
    await next.runtime.close()
  })

  test('R1 runtime: the same key at once, through two handles, is one run', async () => {
    const stage = await openStage()
    const one = await stage.runtime.spawn(agent)
    const two = await stage.runtime.spawn(agent)
    const runs = [one.start('a', { key: 'k' }), two.start('b', { key: 'k' }), one.start('c', { key: 'k' })]
    const ids = await Promise.all(runs.map((run) => run.id))
    expect(new Set(ids).size).toBe(1)
    await runs[0]!.result
    expect((await stage.runtime.show('agent')).runs).toHaveLength(1)
    await stage.runtime.close()
  })

  test('R1 runtime: a failed run keeps its key, and its end', async () => {
    const stage = await openStage({ model: () => failure('bad_request') })
    const crew = await stage.runtime.spawn(agent)
    for (const _ of [1, 2]) await expect(crew.ask('go', { key: 'k' })).rejects.toMatchObject({ code: 'MODEL_FAILED' })
    expect(stage.requests).toHaveLength(1)
    await stage.runtime.close()
  })

  test('R1 runtime: without a key each start is a run of its own', async () => {
    const stage = await openStage()
    const crew = await stage.runtime.spawn(agent)
    const [one, two] = await Promise.all([crew.ask('go'), crew.ask('go')])
    expect(one.runId).not.toBe(two.runId)
    await stage.runtime.close()
  })

  test('R1 runtime: a run that was going on when the process died goes on under its key', async () => {
    const stage = await openStage({ model: () => gate<never>().opened })
    const crew = await stage.runtime.spawn(agent)
    const run = crew.start('go', { key: 'k' })
    await until(() => stage.requests.length === 1)
    stage.crash()
    const next = await openStage({ store: stage.store, clock: stage.clock })
    const result = await (await next.runtime.spawn(agent)).ask('go', { key: 'k' })
    expect(result).toMatchObject({ runId: await run.id, output: 'done' })
    await next.runtime.close()
  })
})

describe('runtime: refusals', () => {
  const inputs: readonly unknown[] = [
    undefined,
    null,
    7,
    [],
    {},
    { messages: [] },
    { messages: [{ role: 'x' }] },
    [{ type: 'text' }],
    [{ type: 'image', url: 'file:///etc' }],
    ['x'],
    { messages: ['x'] },
  ]

  test.each(inputs)('R2 runtime: an input like %j is refused and nothing is journalled', async (input) => {
    const stage = await openStage()
    const crew = await stage.runtime.spawn(agent)
    await expect(crew.ask(input as never)).rejects.toMatchObject({ code: 'INPUT_INVALID' })
    expect(stage.store.shards.get('agent')?.head.sequence).toBe(1)
    await stage.runtime.close()
  })

  test('R2 runtime: data that is not JSON, a key out of bounds and an input out of bounds are refused', async () => {
    const stage = await openStage()
    const crew = await stage.runtime.spawn(agent)
    const cycle: Record<string, unknown> = {}
    cycle['self'] = cycle
    for (const data of [cycle, 1n, () => 1, Symbol('x')]) {
      await expect(crew.ask('go', { data })).rejects.toMatchObject({ code: 'INPUT_INVALID' })
    }
    for (const key of ['', 'k'.repeat(257)]) {
      await expect(crew.ask('go', { key })).rejects.toMatchObject({ code: 'INPUT_INVALID' })
    }
    await expect(crew.ask('x'.repeat(17 * 1_048_576))).rejects.toMatchObject({ code: 'ENVELOPE_TOO_LARGE' })
    expect(stage.store.shards.get('agent')?.head.sequence).toBe(1)
    await expect(crew.ask('go', { key: 'k'.repeat(256), data: null })).resolves.toMatchObject({ output: 'done' })
    await stage.runtime.close()
  })

  test('R2 runtime: instructions that throw refuse the task with a code', async () => {
    const stage = await openStage()
    const throwing = defineAgent({
      model: 'a:one',
      instructions: () => {
        throw new Error('planted')
      },
    })
    const crew = await stage.runtime.spawn(throwing)
    await expect(crew.ask('go')).rejects.toMatchObject({
      code: 'INPUT_INVALID',
      message: expect.stringContaining('planted'),
    })
    expect(stage.store.shards.get('agent')?.head.sequence).toBe(1)
    await stage.runtime.close()
  })

  test('R2 runtime: a crew that is none, an id that is none, a run that is none', async () => {
    const stage = await openStage()
    await expect(stage.runtime.spawn({} as never)).rejects.toMatchObject({ code: 'CREW_INVALID' })
    for (const id of ['a.b', '*', '', 'x'.repeat(65)]) {
      await expect(stage.runtime.spawn(agent, { id })).rejects.toMatchObject({ code: 'ID_INVALID' })
      await expect(stage.runtime.show(id)).rejects.toMatchObject({ code: 'ID_INVALID' })
    }
    await expect(stage.runtime.show('ghost')).rejects.toMatchObject({ code: 'CREW_UNKNOWN' })
    await expect(stage.runtime.pause('ghost')).rejects.toMatchObject({ code: 'CREW_UNKNOWN' })
    await expect(stage.runtime.repair('a.b')).rejects.toMatchObject({ code: 'ID_INVALID' })
    await expect(stage.runtime.repair('ghost')).rejects.toMatchObject({ code: 'STORE_BUSY' })
    const crew = await stage.runtime.spawn(agent)
    const run = crew.run('r99')
    await expect(run.id).rejects.toMatchObject({ code: 'RUN_UNKNOWN' })
    await expect(run.result).rejects.toMatchObject({ code: 'RUN_UNKNOWN' })
    await expect(run.events.next()).rejects.toMatchObject({ code: 'RUN_UNKNOWN' })
    await expect(run.toResponse().text()).rejects.toMatchObject({ code: 'RUN_UNKNOWN' })
    expect(stage.store.shards.has('ghost')).toBe(false)
    await stage.runtime.close()
  })

  test.each(['at once', 'one by one'])('R2 runtime: at most so many runs wait, started %s', async (how) => {
    const stage = await openStage({ model: () => gate<never>().opened })
    const crew = await stage.runtime.spawn(agent)
    const runs = []
    for (let index = 0; index < maxWaitingRuns + 6; index += 1) {
      const id = crew.start(`task ${index}`).id.then(
        () => 'taken',
        (error: { code: string }) => error.code,
      )
      runs.push(id)
      if (how === 'one by one') await id
    }
    const ends = await Promise.all(runs)
    expect(ends.filter((end) => end === 'taken')).toHaveLength(maxWaitingRuns + 1)
    expect(new Set(ends)).toEqual(new Set(['taken', 'RUNS_FULL']))
    expect((await stage.runtime.show('agent')).runs).toHaveLength(maxWaitingRuns + 1)
    await stage.runtime.close()
  })
})

describe('runtime: crews', () => {
  test('runtime: list, show and journal tell what is there', async () => {
    const stage = await openStage({ model: (_, index) => (index === 0 ? say('done') : gate<never>().opened) })
    const crew = await stage.runtime.spawn(agent, { id: 'one' })
    await stage.runtime.spawn(agent, { id: 'two' })
    await crew.ask('go')
    crew.start('more')
    await until(() => stage.requests.length === 2)
    const list = []
    for await (const info of stage.runtime.list()) list.push(info)
    expect(list).toMatchObject([
      { id: 'one', openEffects: 1 },
      { id: 'two', openEffects: 0, sequence: 1 },
    ])
    const shown = await stage.runtime.show('one')
    expect(shown).toMatchObject({
      crew: 'agent',
      stopped: null,
      runs: [
        { runId: 'r2', status: 'finished', code: null, rounds: 1, tokens: 30 },
        { runId: 'r4', status: 'running' },
      ],
    })
    expect(shown.actors).toContainEqual({ address: 'agent/agent-r4', state: 'thinking', waitsFor: 'model a:one' })
    const types = []
    for await (const { envelope } of stage.runtime.journal('one', 2)) types.push(envelope.body.type)
    expect(types).toEqual(['crew.task', 'model.replied', 'crew.task'])
    expect(await (await crew.current())?.id).toBe('r4')
    expect(stage.runtime.crew('one')).toBe(crew)
    expect(stage.runtime.crew('ghost')).toBeUndefined()
    await stage.runtime.close()
  })

  test('runtime: pause holds the next model call, resume lets it go on', async () => {
    const stage = await openStage()
    const crew = await stage.runtime.spawn(agent)
    await crew.pause()
    const run = crew.start('go')
    await run.id
    await quiet()
    expect(stage.requests).toEqual([])
    await stage.runtime.resume('agent')
    await expect(run.result).resolves.toMatchObject({ output: 'done' })
    await stage.runtime.pause('agent')
    const held = crew.start('go')
    await held.id
    await stage.runtime.cancel('agent', await held.id)
    await expect(held.result).rejects.toMatchObject({ code: 'RUN_CANCELLED' })
    await stage.runtime.close()
  })

  test('runtime: another definition is journalled once and holds from the next round', async () => {
    const slow = gate()
    const stage = await openStage({
      model: (_, index) => (index === 0 ? slow.opened.then(() => say('one')) : say('two')),
    })
    const crew = await stage.runtime.spawn(agent)
    const run = crew.start('go')
    await until(() => stage.requests.length === 1)
    const other = defineAgent({ model: 'b:two', instructions: 'y' })
    const redefined = await stage.runtime.spawn(other)
    await stage.runtime.spawn(other)
    slow.open()
    await run.result
    await redefined.ask('more')
    expect(stage.requests.map(({ deployment }) => deployment)).toEqual(['a:one', 'b:two'])
    const types = []
    for await (const { envelope } of stage.runtime.journal('agent')) types.push(envelope.body.type)
    expect(types.filter((type) => type === 'crew.defined')).toHaveLength(2)
    await stage.runtime.close()
  })

  test('runtime: another budget in the middle of a run ends nothing, whatever it counts by', async () => {
    const slow = gate()
    const stage = await openStage({
      model: (_, index) => (index === 0 ? slow.opened.then(() => say('one')) : say('two')),
    })
    const define = (per: 'run' | 'crew') =>
      defineCrew({ name: 'c', agents: { agent }, lead: 'agent', budget: { tokens: 100_000, per } })
    const crew = await stage.runtime.spawn(define('run'))
    const run = crew.start('go')
    await until(() => stage.requests.length === 1)
    const changed = await stage.runtime.spawn(define('crew'))
    slow.open()
    await expect(run.result).resolves.toMatchObject({ output: 'one' })
    await expect(changed.ask('go')).resolves.toMatchObject({ output: 'two', usage: { tokens: 30 } })
    await expect((await stage.runtime.spawn(define('run'))).ask('go')).resolves.toMatchObject({ output: 'two' })
    await stage.runtime.close()
  })

  test('runtime: a tight budget ends BUDGET_EXHAUSTED, and never hangs', async () => {
    for (const budget of [{ modelCalls: 0 }, { tokens: 1 }, { usd: 0 }]) {
      const stage = await openStage()
      const crew = await stage.runtime.spawn(defineCrew({ name: 'c', agents: { agent }, lead: 'agent', budget }))
      await expect(crew.ask('go')).rejects.toMatchObject({ code: 'BUDGET_EXHAUSTED' })
      await stage.runtime.close()
    }
  })

  test('runtime: the wall budget ends a run that hangs; time in which the process was down does not count', async () => {
    const crewOf = defineCrew({ name: 'c', agents: { agent }, lead: 'agent', budget: { wallMs: 60_000 } })
    const stage = await openStage({ model: () => gate<never>().opened })
    const crew = await stage.runtime.spawn(crewOf)
    const run = crew.start('go')
    await until(() => stage.requests.length === 1)
    stage.crash()
    stage.clock.advance(3_600_000)
    const next = await openStage({ store: stage.store, clock: stage.clock, model: () => gate<never>().opened })
    const again = await next.runtime.spawn(crewOf)
    await until(() => next.requests.length === 1)
    expect((await next.runtime.show('c')).runs).toMatchObject([{ status: 'running' }])
    next.clock.advance(59_000)
    await quiet()
    expect((await next.runtime.show('c')).runs).toMatchObject([{ status: 'running' }])
    next.clock.advance(2_000)
    await expect(again.run(await run.id).result).rejects.toMatchObject({ code: 'BUDGET_EXHAUSTED' })
    await next.runtime.close()
  })
})
