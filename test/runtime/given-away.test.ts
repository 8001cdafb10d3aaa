/** Tool calls that another process works on, seen by the shards that asked for them. */
import { once } from 'node:events'
import { afterEach, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { type Crew, defineAgent, defineCrew, defineTool, type EffectClass } from '../../runtime/define.js'
import { startWithinMs } from '../../runtime/dispatcher.js'
import type { ToolPort, ToolRequest } from '../../runtime/ports.js'
import { fromRecord } from '../../runtime/record.js'
import { readRemoteOutcome, remoteOutcome } from '../../runtime/remote-outcome.js'
import { lateMs, lookAgainMs } from '../../runtime/takeover.js'
import type { Worker } from '../../runtime/worker.js'
import { createMemoryStore, type MemoryStore } from '../../transport/memory-journal.js'
import { call, openStage, quiet, resultsIn, say, type Stage, until } from '../support/crew-stage.js'
import { createManualClock } from '../support/manual-clock.js'
import { Owners } from '../support/owners.js'

const open: Stage[] = []
afterEach(async () => {
  for (const stage of open.splice(0)) await stage.runtime.close()
})
const timeoutMs = 30_000

/** Workers whose one tool is somebody else's, `t`: who it is, what it was given, what it answers for. */
async function given(effect: EffectClass) {
  const owners = new Owners()
  const store = createMemoryStore({ shared: true })
  const clock = createManualClock()
  const has = new Set<string>()
  const requests: ToolRequest[] = []
  const cancelled: string[] = []
  const tool = defineTool({
    ...{ name: 'work', description: '', input: z.object({}), effect, timeoutMs },
    run: () => expect.unreachable('it ran here'),
  })
  const lead = defineAgent({ name: 'lead', model: 'a:one', instructions: 'x', tools: [tool] })
  const crew = defineCrew({ name: 'pair', agents: { lead }, lead: 'lead' }) as Crew
  /** Whether there is no place anywhere. */
  const full = { value: false, waiting: 0 }
  const port: ToolPort = {
    run: async (request) => {
      if (full.value) {
        full.waiting += 1
        await once(request.leaving, 'abort')
      }
      if (request.leaving.aborted) return { status: 'dropped' }
      if (!(await request.mayStart({ executor: executor.owner, withinMs: startWithinMs }))) return { status: 'dropped' }
      requests.push(request)
      has.add(request.effect)
      return { status: 'given' }
    },
    verify: () => expect.unreachable(),
  }
  const worker = async (name: string): Promise<Stage> => {
    const stage = await openStage({
      ...{ store, clock, tools: port, member: owners.join(name), crews: [crew] },
      model: (request) => (resultsIn(request).length === 0 ? call(['work']) : say(resultsIn(request).join())),
    })
    open.push(stage)
    return stage
  }
  const one = await worker('one')
  const executor = owners.join('t')
  const answers = {
    working: (_: string, effects: readonly string[]) => effects.filter((id) => has.has(id)),
    cancel: (_: string, effects: readonly string[]) => void cancelled.push(...effects),
  }
  executor.worker = answers as unknown as Worker
  /** The outcome comes, by mail, to whoever has the shard. */
  const deliver = async (stage: Stage, content: string): Promise<void> => {
    const shard = await stage.worker.shard('pair')
    const letter = remoteOutcome(executor.owner, requests.at(-1)!.effect, { status: 'ok', content, truncated: false })
    const draft = readRemoteOutcome(letter, shard.state, () => 0)
    if (draft !== null) await shard.post(draft)
  }
  return { owners, full, store, clock, has, requests, cancelled, crew, worker, one, executor, deliver }
}

function commits(store: MemoryStore): { readonly type: string }[] {
  const records = store.shards.get('pair')?.records ?? []
  return records.flatMap((record) => fromRecord('pair', record).map(({ envelope }) => envelope.body))
}
const count = (store: MemoryStore, type: string): number => commits(store).filter((each) => each.type === type).length

describe('given away', () => {
  test('X6 dispatcher: a call of any class is recorded with its executor before it is given, and its outcome is taken', async () => {
    for (const effect of ['pure', 'once'] as const) {
      const { store, requests, crew, one, executor, deliver } = await given(effect)
      const run = (await one.runtime.spawn(crew)).start('go')
      await until(() => requests.length === 1)
      expect(commits(store)).toContainEqual(
        expect.objectContaining({ type: 'effect.dispatched', effect: requests[0]!.effect, executor: executor.owner }),
      )
      await deliver(one, 'found')
      expect((await run.result).output).toBe('found')
      // Once more, as letters do.
      await deliver(one, 'found')
      expect(count(store, 'tool.succeeded')).toBe(1)
    }
  })

  test('X6 takeover: whoever takes the shard leaves the call to its executor, and gets its outcome', async () => {
    const { owners, store, requests, crew, worker, one, deliver } = await given('once')
    const other = await worker('other')
    await (await one.runtime.spawn(crew)).start('go').id
    await until(() => requests.length === 1)
    owners.expire('one', false)
    owners.moveTo('other')
    await until(() => other.worker.active.has('pair'))
    await quiet()
    expect(count(store, 'effect.interrupted')).toBe(0)
    expect(requests[0]!.term).toBeLessThan((await other.worker.shard('pair')).state.sequence)
    await deliver(other, 'found')
    await until(
      () => count(store, 'run.finished') === 0 && (other.worker.active.get('pair')?.state.effects.size ?? 1) === 0,
    )
    expect(requests).toHaveLength(1)
  })

  test('TA2 executor gone: a pure call is given again with the same key, a once call is unknown', async () => {
    for (const effect of ['pure', 'once'] as const) {
      const { owners, store, requests, crew, one } = await given(effect)
      const run = (await one.runtime.spawn(crew)).start('go')
      await until(() => requests.length === 1)
      owners.expire('t', true)
      owners.moveTo('one')
      await until(() => count(store, 'effect.interrupted') === 1)
      if (effect === 'once') {
        expect((await run.result).output).toContain('unknown')
        continue
      }
      await until(() => requests.length === 2)
      expect(requests[1]!.idempotencyKey).toBe(requests[0]!.idempotencyKey)
      expect(requests[1]!.effect).not.toBe(requests[0]!.effect)
    }
  })

  test('TA5 lost: a call that its executor does not have any more is interrupted when it is asked, and not before', async () => {
    const { store, clock, has, requests, crew, one } = await given('pure')
    await (await one.runtime.spawn(crew)).start('go').id
    await until(() => requests.length === 1)
    await quiet()
    clock.advance(lookAgainMs)
    await quiet()
    has.clear()
    clock.advance(lookAgainMs - 1)
    await quiet()
    expect(count(store, 'effect.interrupted')).toBe(0)
    clock.advance(1)
    await until(() => requests.length === 2)
    expect(count(store, 'effect.interrupted')).toBe(1)
  })

  test('TA5 stuck: one that its executor never ends is given up a while behind its time, and ended there', async () => {
    const { store, clock, requests, crew, cancelled, one, deliver } = await given('once')
    const run = (await one.runtime.spawn(crew)).start('go')
    await until(() => requests.length === 1)
    for (let passed = 0; passed + lookAgainMs <= startWithinMs + timeoutMs + lateMs; passed += lookAgainMs) {
      await quiet()
      clock.advance(lookAgainMs)
    }
    await quiet()
    expect(count(store, 'effect.interrupted')).toBe(0)
    clock.advance(lookAgainMs)
    expect((await run.result).output).toContain('unknown')
    expect(cancelled).toEqual([requests[0]!.effect])
    // What comes then changes nothing.
    await deliver(one, 'late')
    expect(count(store, 'tool.succeeded')).toBe(0)
  })

  test('TA5 takeover: the next owner looks after it as well', async () => {
    const { owners, store, clock, has, requests, crew, worker, one } = await given('once')
    const other = await worker('other')
    await (await one.runtime.spawn(crew)).start('go').id
    await until(() => requests.length === 1)
    owners.moveTo('other')
    await until(() => other.worker.active.has('pair'))
    await quiet()
    has.clear()
    clock.advance(lookAgainMs)
    await until(() => count(store, 'effect.interrupted') === 1)
  })

  test('X6 cancel: what is cancelled is ended at its executor', async () => {
    const { requests, crew, one, cancelled } = await given('once')
    const handle = await one.runtime.spawn(crew)
    const run = handle.start('go')
    await until(() => requests.length === 1)
    await handle.cancel()
    await expect(run.result).rejects.toMatchObject({ code: 'RUN_CANCELLED' })
    expect(cancelled).toEqual([requests[0]!.effect])
  })

  test('X6 leave: a call that waits for a place is not waited for when its shard goes, and is given by the next owner', async () => {
    const { owners, full, requests, crew, worker, one, deliver } = await given('once')
    const other = await worker('other')
    full.value = true
    await (await one.runtime.spawn(crew)).start('go').id
    await until(() => full.waiting === 1)
    full.value = false
    owners.moveTo('other')
    await until(() => owners.sent.length === 1)
    expect(owners.sent[0]!.draft.body).toEqual({ type: 'effect.interrupted', started: false })
    await owners.deliver(other.worker)
    await until(() => requests.length === 1)
    await deliver(other, 'found')
    await until(() => other.worker.active.get('pair')!.state.effects.size === 0)
  })
})
