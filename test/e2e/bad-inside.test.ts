/**
 * Bad input that only comes from inside a process: forged messages and outcomes, planted machines, changed snapshots. One
 * test and one code each: the process lives, nothing is lost, the crew goes on.
 */
import { describe, expect, test } from 'vitest'
import { createMachine, sendTo } from 'xstate'
import { defineAgent, type TroupeError } from 'troupe'
import { to } from '../../machines/index.js'
import { decode, encode } from '../../runtime/codec.js'
import { gate, openStage, say, shippedMachines, until } from '../support/crew-stage.js'

const codeOf = (promise: Promise<unknown>) =>
  promise.then(
    () => 'no error',
    (error: TroupeError) => error.code,
  )

describe('bad input: inside', () => {
  const agent = defineAgent({ model: 'a:one', instructions: 'x' })
  const post = { from: 'client/local', to: 'crew/main', cause: '', values: [] as string[] }

  test('a message of type xstate.* from outside: MESSAGE_REFUSED', async () => {
    const stage = await openStage()
    await stage.runtime.spawn(agent)
    const shard = await stage.worker.shard('agent')
    for (const type of ['xstate.done.actor.x', 'xstate.init', 'XSTATE.error.actor.x'])
      expect(await codeOf(shard.post({ ...post, body: { type } }, true))).toBe('MESSAGE_REFUSED')
    expect(shard.state.sequence).toBe(1)
    await stage.runtime.close()
  })

  test('a message for nobody, or of no type that anybody takes, is a dead letter or nothing, and is journalled', async () => {
    const stage = await openStage()
    const crew = await stage.runtime.spawn(agent)
    const shard = await stage.worker.shard('agent')
    const commit = await shard.post({ ...post, to: 'agent/ghost', body: { type: 'run.cancel' } }, true)
    expect(commit.events).toEqual([
      ['shard/dead', expect.objectContaining({ type: 'message.dead', to: 'agent/ghost' })],
    ])
    expect((await shard.post({ ...post, body: { type: 'nonsense' } }, true)).events).toEqual([])
    await expect(crew.ask('go')).resolves.toMatchObject({ output: 'done' })
    await stage.runtime.close()
  })

  test('a forged outcome: OUTCOME_FORGED', async () => {
    const stage = await openStage({ model: () => gate<never>().opened })
    const crew = await stage.runtime.spawn(agent)
    const run = crew.start('go')
    await until(() => stage.requests.length === 1)
    const shard = await stage.worker.shard('agent')
    const [effect] = shard.state.effects.values()
    const real = {
      from: 'port/model',
      to: effect!.from,
      cause: effect!.id,
      body: { type: 'effect.crashed' },
      values: [],
    }
    const succeeded = { type: 'tool.succeeded', bytes: 1 }
    const forged = [
      { ...real, cause: '99-0' },
      { ...real, cause: '' },
      { ...real, cause: 'x|y' },
      { ...real, to: 'budget/r2' },
      { ...real, from: 'port/tool', body: succeeded },
      { ...real, body: succeeded },
      { ...real, body: { type: 'run.cancel' } },
      { ...real, from: 'port/ghost', body: { type: 'model.replied' } },
    ]
    for (const draft of forged) expect(await codeOf(shard.post(draft)), JSON.stringify(draft)).toBe('OUTCOME_FORGED')
    expect(shard.state.sequence).toBe(2)
    await shard.post(real)
    await expect(run.result).rejects.toMatchObject({ code: 'EFFECT_CRASHED' })
    expect((await shard.post(real)).decisions).toEqual([])
    await stage.runtime.close()
  })

  test('a guard that throws: ACTOR_FAILED, and the crew goes on', async () => {
    const broken = shippedMachines['agent']!.provide({
      guards: {
        calls: ({ event }: { event: { finish?: string } }) => {
          if (event.finish === 'length') throw new Error('planted')
          return false
        },
      },
    } as never)
    const stage = await openStage({
      machines: { ...shippedMachines, agent: broken },
      model: (_, index) => say('x', { finishReason: index === 0 ? 'length' : 'stop' }),
    })
    const crew = await stage.runtime.spawn(agent)
    await expect(crew.ask('go')).rejects.toMatchObject({
      code: 'ACTOR_FAILED',
      message: expect.stringContaining('planted'),
    })
    await expect(crew.ask('go')).resolves.toMatchObject({ output: 'x' })
    await stage.runtime.close()
    const again = await openStage({
      store: stage.store,
      clock: stage.clock,
      machines: { ...shippedMachines, agent: broken },
    })
    await expect((await again.runtime.spawn(agent)).ask('go')).resolves.toMatchObject({ output: 'done' })
    await again.runtime.close()
  })

  test('an endless ping-pong of two actors: COMMIT_OVERFLOW, and the crew goes on', async () => {
    const ping = (other: string) => ({ ping: { actions: sendTo(to(other), { type: 'ping' }) } })
    const lead = createMachine({
      entry: [
        sendTo(to('shard/actors'), { type: 'actor.start', kind: 'tool', name: 'pong', input: {} }),
        sendTo(to('tool/pong'), { type: 'ping' }),
      ],
      on: {
        ...ping('tool/pong'),
        'actor.failed': {
          guard: () => {
            throw new Error('nobody to play with')
          },
        },
      },
    })
    const pong = createMachine({ on: ping('agent/agent-r2') })
    const stage = await openStage({ machines: { ...shippedMachines, agent: lead, tool: pong } })
    const crew = await stage.runtime.spawn(agent)
    await expect(crew.ask('go')).rejects.toMatchObject({ code: expect.stringMatching(/COMMIT_OVERFLOW|ACTOR_FAILED/) })
    const dead = []
    for await (const event of crew.run('r2').events)
      if (event.type === 'troupe.message.dead') dead.push(event.data['code'])
    expect(dead).toContain('COMMIT_OVERFLOW')
    await expect(stage.runtime.show('agent')).resolves.toMatchObject({ stopped: null, openEffects: 0 })
    await stage.runtime.close()
  })

  test('a snapshot of another version whose journal is gone: SNAPSHOT_INCOMPATIBLE', async () => {
    const stage = await openStage()
    await (await stage.runtime.spawn(agent)).ask('go')
    await (await stage.runtime.spawn(agent, { id: 'other' })).ask('go')
    await stage.runtime.close()
    const shard = stage.store.shards.get('agent')!
    const manifest = shard.manifests[0]!
    const content = decode(manifest.bytes) as { state: { version: number } }
    shard.manifests = [{ ...manifest, bytes: encode({ ...content, state: { ...content.state, version: 99 } }) }]
    const kept = shard.records
    shard.records = kept.slice(-1)
    const again = await openStage({ store: stage.store, clock: stage.clock })
    expect(await codeOf(again.runtime.spawn(agent))).toBe('SNAPSHOT_INCOMPATIBLE')
    await expect((await again.runtime.spawn(agent, { id: 'other' })).ask('go')).resolves.toMatchObject({
      output: 'done',
    })
    shard.records = kept
    await expect((await again.runtime.spawn(agent)).ask('go')).resolves.toMatchObject({ output: 'done' })
    await again.runtime.close()
  })

  test('more work than a mailbox holds: MAILBOX_FULL; more runs than may wait: RUNS_FULL', async () => {
    const stage = await openStage({ model: () => gate<never>().opened })
    const crew = await stage.runtime.spawn(agent)
    const runs = Array.from({ length: 150 }, (_, index) => codeOf(crew.start('go', { key: `k${index}` }).id))
    expect(new Set(await Promise.all(runs))).toEqual(new Set(['no error', 'RUNS_FULL']))
    const pauses = Array.from({ length: 2_000 }, () => codeOf(crew.pause()))
    expect(new Set(await Promise.all(pauses))).toEqual(new Set(['no error', 'MAILBOX_FULL']))
    await stage.runtime.close()
  })
})
