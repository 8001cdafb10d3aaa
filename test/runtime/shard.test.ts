import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { defineAgent, defineCrew, defineTool } from '../../runtime/define.js'
import { TroupeError } from '../../runtime/errors.js'
import type { Journal, JournalRecord } from '../../runtime/journal.js'
import { fromRecord } from '../../runtime/record.js'
import { maxMailbox, maxMailboxBytes } from '../../runtime/mailbox.js'
import type { MemoryStore } from '../../transport/memory-journal.js'
import { call, gate, openStage, override, quiet, resultsIn, say, type Stage, until } from '../support/crew-stage.js'

const agent = defineAgent({ model: 'a:one', instructions: 'x' })
const envelopes = (store: MemoryStore, shard = 'agent') =>
  store.shards.get(shard)!.records.flatMap((record) => fromRecord(shard, record).map(({ envelope }) => envelope))
const types = (store: MemoryStore) => envelopes(store).map(({ body }) => body.type)

/** A journal whose appends go through a test's own function. */
const appending =
  (append: (record: JournalRecord, real: (record: JournalRecord) => Promise<void>) => Promise<void>) =>
  (journal: Journal) =>
    override(journal, { append: (record) => append(record, (each) => journal.append(each)) })
const full = () => new TroupeError('STORE_FULL', 'no space', { retryable: true })
const failed = () => new TroupeError('STORE_FAILED', 'broken', { retryable: true })

describe('shard: decide, record, act', () => {
  test('H1 shard: nothing is acknowledged, dispatched or shown before its append is durable', async () => {
    let hold = gate()
    hold.open()
    const stage = await openStage({
      journal: appending(async (record, real) => {
        await hold.opened
        await real(record)
      }),
    })
    const crew = await stage.runtime.spawn(agent)
    hold = gate()
    const run = crew.start('go')
    let acknowledged = false
    void run.id.then(() => (acknowledged = true))
    const shown: string[] = []
    stage.worker.hub.subscribe('agent', {
      take: (events) => shown.push(...events.map(({ event }) => event.type)),
      show: () => undefined,
    })
    await quiet()
    expect([acknowledged, stage.requests.length, shown.length]).toEqual([false, 0, 0])
    hold.open()
    await run.result
    expect(acknowledged).toBe(true)
    expect(shown).toContain('run.finished')
    await stage.runtime.close()
  })

  test('H2 shard: envelopes are decided in the order in which they were taken', async () => {
    const stage = await openStage({ model: () => gate<never>().opened })
    const crew = await stage.runtime.spawn(agent)
    const runs = Array.from({ length: 30 }, (_, index) => crew.start(`task ${index}`, { key: `k${index}` }))
    const ids = await Promise.all(runs.map((run) => run.id))
    expect(ids.map((id) => Number(id.slice(1)))).toEqual(ids.map((_, index) => index + 2))
    expect(
      envelopes(stage.store)
        .slice(1)
        .map(({ body }) => body['key']),
    ).toEqual(runs.map((_, index) => `k${index}`))
    await stage.runtime.close()
  })

  test('H2 shard: time never runs backwards', async () => {
    const stage = await openStage()
    const crew = await stage.runtime.spawn(agent)
    await crew.ask('one')
    stage.clock.step(-60_000)
    await crew.ask('two')
    stage.clock.step(90_000)
    await crew.ask('three')
    const times = envelopes(stage.store).map(({ at }) => at)
    expect(times).toEqual([...times].sort((one, other) => one - other))
    expect(times.at(-1)! - times[0]!).toBe(30_000)
    await stage.runtime.close()
  })

  test('H3 shard: after a failed append what was decided goes back to the head of the mailbox, in order', async () => {
    const failures = new Set([2, 5, 6])
    let appends = 0
    const stage = await openStage({
      journal: appending(async (record, real) => {
        appends += 1
        if (failures.has(appends)) throw failed()
        await real(record)
      }),
    })
    const crew = await stage.runtime.spawn(agent)
    const results = await Promise.all(
      Array.from({ length: 4 }, (_, index) => crew.ask(`task ${index}`, { key: `k${index}` })),
    )
    expect(results.map(({ output }) => output)).toEqual(['done', 'done', 'done', 'done'])
    expect(appends).toBeGreaterThan(6)
    const keys = envelopes(stage.store).flatMap(({ body }) => (body.type === 'crew.task' ? [body['key']] : []))
    expect(keys).toEqual(['k0', 'k1', 'k2', 'k3'])
    expect(stage.requests).toHaveLength(4)
    await stage.runtime.close()
  })

  test('H3 shard: a failed append that landed after all is taken for what it is', async () => {
    let appends = 0
    const stage = await openStage({
      journal: appending(async (record, real) => {
        appends += 1
        await real(record)
        if (appends % 2 === 0) throw failed()
      }),
    })
    const crew = await stage.runtime.spawn(agent)
    await crew.ask('one')
    await crew.ask('two')
    expect(stage.requests).toHaveLength(2)
    expect(types(stage.store).filter((type) => type === 'crew.task')).toHaveLength(2)
    await stage.runtime.close()
  })

  /** A stage whose store is full between `fill` and `empty`. */
  async function filling(
    model: Parameters<typeof openStage>[0] = {},
  ): Promise<Stage & { fill: (isFull: boolean) => void }> {
    let isFull = false
    const guard = async <T>(work: () => Promise<T>): Promise<T> => {
      if (isFull) throw full()
      return work()
    }
    const stage = await openStage({
      ...model,
      journal: (journal) =>
        override(journal, {
          append: (record) => guard(() => journal.append(record)),
          refresh: (shard) => guard(() => journal.refresh(shard)),
          putBlob: (...blob) => guard(() => journal.putBlob(...blob)),
        }),
    })
    return { ...stage, fill: (next) => (isFull = next) }
  }

  test('H4 shard: with a full store new work is refused with its code, outcomes wait and are taken later', async () => {
    const answer = gate()
    const stage = await filling({
      model: async () => {
        await answer.opened
        return say('done')
      },
    })
    const crew = await stage.runtime.spawn(agent)
    const run = crew.start('go')
    await until(() => stage.requests.length === 1)
    stage.fill(true)
    answer.open()
    await quiet()
    await expect(crew.start('more').id).rejects.toMatchObject({ code: 'STORE_FULL', retryable: true })
    await expect(crew.pause()).rejects.toMatchObject({ code: 'STORE_FULL' })
    stage.fill(false)
    stage.clock.advance(10_000)
    await expect(run.result).resolves.toMatchObject({ output: 'done' })
    await expect(crew.ask('more')).resolves.toMatchObject({ output: 'done' })
    await stage.runtime.close()
  })

  test('H4 shard: an outcome with a large value that cannot be stored yet waits too', async () => {
    const big = 'x'.repeat(200_000)
    const lookup = defineTool({
      name: 'lookup',
      description: '',
      input: z.object({}),
      effect: 'once',
      run: () => ready.opened,
    })
    const ready = gate<string>()
    const stage = await filling({
      model: (request) =>
        resultsIn(request).length === 0 ? call(['lookup']) : say(String(resultsIn(request)[0]?.length)),
    })
    const crew = await stage.runtime.spawn(defineAgent({ model: 'a:one', instructions: 'x', tools: [lookup] }))
    const run = crew.start('go')
    await until(() => types(stage.store).includes('effect.dispatched'))
    stage.fill(true)
    ready.open(big)
    await quiet()
    stage.fill(false)
    stage.clock.advance(10_000)
    await expect(run.result).resolves.toMatchObject({ output: '200000' })
    await stage.runtime.close()
  })

  test('H4 shard: a full mailbox refuses new work with MAILBOX_FULL, by number and by bytes', async () => {
    let hold = gate()
    hold.open()
    const stage = await openStage({
      journal: appending(async (record, real) => {
        await hold.opened
        await real(record)
      }),
    })
    const crew = await stage.runtime.spawn(agent)
    const shard = await stage.worker.shard('agent')
    hold = gate()
    const pause = {
      from: 'client/local',
      to: 'crew/main',
      cause: '',
      body: { type: 'crew.pause' },
      values: [] as string[],
    }
    const posts = Array.from({ length: maxMailbox }, () => shard.post(pause, true))
    await expect(shard.post(pause, true)).rejects.toMatchObject({ code: 'MAILBOX_FULL', retryable: true })
    await expect(crew.start('x').id).rejects.toMatchObject({ code: 'MAILBOX_FULL' })
    const late = { type: 'effect.interrupted', started: false }
    const outcome = shard.post({ ...pause, from: 'port/model', cause: '1-0', body: late })
    hold.open()
    await Promise.all([...posts, outcome])
    hold = gate()
    const large = { ...pause, values: ['x'.repeat(maxMailboxBytes / 2)] }
    const first = shard.post(large, true)
    await quiet()
    await expect(shard.post({ ...pause, values: ['x'.repeat(maxMailboxBytes / 2 + 1)] }, true)).rejects.toMatchObject({
      code: 'MAILBOX_FULL',
    })
    hold.open()
    await first
    await stage.runtime.close()
  })

  test('H5 shard: a shard that cannot go on stops with its reason; the others go on', async () => {
    let broken = false
    const stage = await openStage({
      journal: appending(async (record, real) => {
        if (broken && record.shard === 'agent') throw new TroupeError('JOURNAL_CORRUPT', 'planted')
        await real(record)
      }),
    })
    const crew = await stage.runtime.spawn(agent)
    const other = await stage.runtime.spawn(agent, { id: 'other' })
    await crew.ask('one')
    broken = true
    stage.store.shards.get('agent')!.records.splice(1, 1)
    stage.store.shards.get('agent')!.manifests = []
    const run = crew.start('two')
    await expect(run.result).rejects.toMatchObject({ code: 'SHARD_STOPPED', details: { reason: 'JOURNAL_CORRUPT' } })
    await expect(crew.start('three').id).rejects.toMatchObject({ code: 'SHARD_STOPPED' })
    await expect(stage.runtime.show('agent')).resolves.toMatchObject({ stopped: { code: 'JOURNAL_CORRUPT' } })
    await expect(other.ask('go')).resolves.toMatchObject({ output: 'done' })
    await stage.runtime.close()
  })

  test('H5 shard: whoever waits for a run or reads its events is told when the shard stops', async () => {
    let broken = false
    const stage = await openStage({
      model: () => gate<never>().opened,
      journal: appending(async (record, real) => {
        if (broken) throw new TroupeError('JOURNAL_CORRUPT', 'planted')
        await real(record)
      }),
    })
    const crew = await stage.runtime.spawn(agent)
    const run = crew.start('go')
    const seen: string[] = []
    const read = (async () => {
      for await (const event of run.events) seen.push(event.type)
    })()
    const result = run.result
    await until(() => seen.length > 2)
    broken = true
    stage.store.shards.get('agent')!.records.splice(0, 1)
    await expect(crew.pause()).rejects.toMatchObject({ code: 'SHARD_STOPPED' })
    await expect(result).rejects.toMatchObject({ code: 'SHARD_STOPPED', details: { reason: 'JOURNAL_CORRUPT' } })
    await expect(read).rejects.toMatchObject({ code: 'SHARD_STOPPED' })
    await expect(run.stream().next()).resolves.toMatchObject({ value: { type: 'troupe.run.queued' } })
    await stage.runtime.close()
  })

  test('H1 shard: a run has ended only when its end is durable', async () => {
    let hold = gate()
    hold.open()
    const answer = gate()
    const stage = await openStage({
      model: () => answer.opened.then(() => say('done')),
      journal: appending(async (record, real) => {
        await hold.opened
        await real(record)
      }),
    })
    const crew = await stage.runtime.spawn(agent)
    const id = await crew.start('go').id
    hold = gate()
    answer.open()
    await quiet()
    const shard = await stage.worker.shard('agent')
    expect(shard.state.runs.get(id)?.status).toBe('finished')
    let ended = false
    void crew.run(id).result.then(() => (ended = true))
    await quiet()
    expect(ended).toBe(false)
    hold.open()
    await until(() => ended)
    await stage.runtime.close()
  })
})

describe('shard: timers and the end', () => {
  const retrying = (failures: number): Parameters<typeof openStage>[0] => ({
    model: (_, index) =>
      index < failures
        ? {
            ok: false,
            kind: 'server',
            message: 'x',
            status: 500,
            retryAfterMs: 1_000,
            billed: false,
            usage: null,
            costNanoUsd: null,
          }
        : say('done'),
  })

  test('shard: a due timer is posted once, however slow its append is', async () => {
    let hold = gate()
    hold.open()
    const stage = await openStage({
      ...retrying(1),
      journal: appending(async (record, real) => {
        await hold.opened
        await real(record)
      }),
    })
    const crew = await stage.runtime.spawn(agent)
    const run = crew.start('go')
    await until(() => types(stage.store).includes('model.failed'))
    hold = gate()
    stage.clock.advance(5_000)
    await quiet()
    stage.clock.advance(5_000)
    hold.open()
    await run.result
    expect(types(stage.store).filter((type) => type === 'timer.due')).toHaveLength(1)
    await stage.runtime.close()
  })

  test('shard: a timer that fell due while nobody ran is taken on the next start', async () => {
    const stage = await openStage(retrying(1))
    const crew = await stage.runtime.spawn(agent)
    const run = crew.start('go')
    await until(() => types(stage.store).includes('model.failed'))
    const id = await run.id
    stage.crash()
    stage.clock.advance(60_000)
    const again = await openStage({ store: stage.store, clock: stage.clock })
    const reopened = await again.runtime.spawn(agent)
    await expect(reopened.run(id).result).resolves.toMatchObject({ output: 'done' })
    await again.runtime.close()
  })

  test('shard: close parks what no port had yet, and the next owner dispatches it as it is', async () => {
    const stage = await openStage({ model: () => gate<never>().opened })
    await stage.runtime.spawn(agent)
    const idle = await openStageOver(stage)
    // Nobody has spawned the crew there: its work waits for a definition.
    const shard = await idle.worker.shard('agent')
    await shard.post({
      from: 'client/local',
      to: 'crew/main',
      cause: '',
      body: { type: 'crew.task', tokens: 1, messages: 1, key: 'k', data: false },
      values: ['{"role":"user","content":"go"}'],
    })
    expect(shard.state.effects.size).toBe(1)
    await idle.runtime.close()
    const next = await openStage({ store: stage.store, clock: stage.clock })
    const crew = await next.runtime.spawn(agent)
    await expect((await crew.current())!.result).resolves.toMatchObject({ usage: { modelCalls: 1 } })
    expect(types(stage.store)).not.toContain('effect.interrupted')
    await next.runtime.close()
  })

  async function openStageOver(stage: Stage): Promise<Stage> {
    await stage.runtime.close()
    return openStage({ store: stage.store, clock: stage.clock })
  }

  test('shard: close waits for what runs up to its grace, then leaves it open for the next owner', async () => {
    const stage = await openStage({ model: () => gate<never>().opened })
    const crew = await stage.runtime.spawn(agent)
    const run = crew.start('go')
    await until(() => stage.requests.length === 1)
    await stage.runtime.close()
    expect(stage.requests[0]?.signal.aborted).toBe(true)
    const next = await openStage({ store: stage.store, clock: stage.clock })
    const again = await next.runtime.spawn(agent)
    await expect(again.run(await run.id).result).resolves.toMatchObject({ output: 'done', usage: { modelCalls: 2 } })
    expect(types(stage.store)).toContain('effect.interrupted')
    await next.runtime.close()
  })

  test('shard: a tail that outweighs the last snapshot is snapshotted while it runs', async () => {
    const lookup = defineTool({
      name: 'lookup',
      description: '',
      input: z.object({}),
      effect: 'pure',
      run: () => 'x'.repeat(15_000),
    })
    const stage = await openStage({
      model: (request) => (resultsIn(request).length < 30 ? call(['lookup']) : say('done')),
    })
    const crew = await stage.runtime.spawn(
      defineAgent({ model: 'a:one', instructions: 'x', tools: [lookup], limits: { rounds: 50, loops: false } }),
    )
    await crew.ask('go')
    expect(stage.store.shards.get('agent')!.manifests.length).toBeGreaterThan(0)
    stage.crash()
    const again = await openStage({ store: stage.store, clock: stage.clock })
    await again.runtime.spawn(
      defineAgent({ model: 'a:one', instructions: 'x', tools: [lookup], limits: { rounds: 50, loops: false } }),
    )
    await again.runtime.close()
  })

  test('shard: after three crashes over one call its actor is told, and the run ends', async () => {
    let { store, clock } = await openStage({ model: () => gate<never>().opened })
    store.owner = null
    const crewOf = defineCrew({ name: 'agent', agents: { agent }, lead: 'agent' })
    for (let crash = 0; crash < 3; crash += 1) {
      const stage = await openStage({ store, clock, unclean: crash > 0, model: () => gate<never>().opened })
      const crew = await stage.runtime.spawn(crewOf)
      crew.start('go', { key: 'k' })
      await until(() => stage.requests.length === 1)
      stage.crash()
      ;({ store, clock } = stage)
    }
    const last = await openStage({ store, clock, unclean: true })
    const crew = await last.runtime.spawn(crewOf)
    await expect(crew.ask('go', { key: 'k' })).rejects.toMatchObject({ code: 'EFFECT_CRASHED' })
    expect(last.requests).toEqual([])
    await last.runtime.close()
  })
})
