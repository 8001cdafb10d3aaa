import { afterEach, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { defineAgent, defineCrew, defineTool, type EffectClass } from '../../runtime/define.js'
import type { Journal } from '../../runtime/journal.js'
import { fromRecord } from '../../runtime/record.js'
import { returnMs } from '../../runtime/takeover.js'
import { TroupeError } from '../../runtime/errors.js'
import { createMemoryStore, type MemoryStore } from '../../transport/memory-journal.js'
import { call, gate, openStage, override, quiet, resultsIn, say, type Stage, until } from '../support/crew-stage.js'
import { createManualClock } from '../support/manual-clock.js'
import { Member, Owners } from '../support/owners.js'
import { code } from '../support/values.js'

const open: Stage[] = []
afterEach(async () => {
  for (const stage of open.splice(0)) await stage.runtime.close()
})

/** Two workers whose `once` call is asked about: when. */
async function asking() {
  const asked: number[] = []
  const verify = async () => {
    asked.push(stand.clock.monotonic())
    return { done: false } as const
  }
  const stand = await two('once', { verify })
  return { asked, stand }
}

/** Two workers with the same crew, whose tool waits for `gate`. */
async function two(effect: EffectClass = 'pure', more: { verify?: () => Promise<{ done: false }> } = {}) {
  const owners = new Owners()
  const store = createMemoryStore({ shared: true })
  const clock = createManualClock()
  const works = gate<string>()
  const started: string[] = []
  const tool = defineTool({
    name: 'work',
    description: '',
    input: z.object({}),
    effect,
    timeoutMs: 30_000,
    run: (_, { idempotencyKey }) => {
      started.push(idempotencyKey)
      return works.opened
    },
    ...(more.verify === undefined ? {} : { onUnknown: 'verify' as const, verify: more.verify }),
  })
  const lead = defineAgent({ name: 'lead', model: 'a:one', instructions: 'x', tools: [tool] })
  const crew = defineCrew({ name: 'pair', agents: { lead }, lead: 'lead' })
  const worker = async (name: string, journal?: (inner: Journal) => Journal) => {
    const stage = await openStage({
      store,
      clock,
      member: owners.join(name),
      crews: [crew],
      model: (request) => (resultsIn(request).length === 0 ? call(['work']) : say('done')),
      ...(journal === undefined ? {} : { journal }),
    })
    open.push(stage)
    return stage
  }
  return { owners, store, clock, works, started, crew, worker }
}

/** Types of the shard's commits so far. */
function commits(store: MemoryStore, shard = 'pair'): string[] {
  const records = store.shards.get(shard)?.records ?? []
  return records.flatMap((record) => fromRecord(shard, record).map(({ envelope }) => envelope.body.type))
}
const finished = (stage: Stage) => [...(stage.worker.active.get('pair')?.state.runs.values() ?? [])].at(-1)?.end

describe('takeover', () => {
  test('TA1 H7 takeover: the first commit of an owner is that it took the shard; behind it no other writes', async () => {
    const { owners, store, crew, works, worker } = await two()
    const one = await worker('one')
    await (await one.runtime.spawn(crew)).start('go').id
    await until(() => commits(store).includes('model.replied'))
    const other = await worker('other')
    owners.expire('one', false)
    const stale = await one.worker.shard('pair')
    owners.moveTo('other')
    await until(() => other.worker.active.has('pair'))
    expect(commits(store).filter((type) => type === 'shard.taken')).toHaveLength(2)
    const command = { from: 'client/local', to: 'crew/main', cause: '', body: { type: 'crew.pause' }, values: [] }
    await expect(stale.post(command, true)).rejects.toEqual(code('SHARD_ELSEWHERE'))
    await expect(stale.post(command, true)).rejects.toEqual(code('SHARD_ELSEWHERE'))
    expect(commits(store)).not.toContain('crew.pause')
    works.open('x')
  })

  test('TA1 takeover: whoever took the shard while another was waited for is asked to leave too', async () => {
    const { owners, store, crew, works, started, worker } = await two('once')
    const one = await worker('one')
    const other = await worker('other')
    const third = await worker('third')
    await (await one.runtime.spawn(crew)).start('go').id
    await until(() => started.length === 1)
    const member = owners.byName('third')!
    const asked: string[] = []
    const waits = gate()
    member.release = async (shard, owner) => {
      asked.push(owner)
      if (asked.length === 1) return void (await waits.opened)
      return Member.prototype.release.call(member, shard, owner)
    }
    // The one that has it stands still: it does not leave, and then it is gone.
    owners.byName('one')!.onChange = () => undefined
    owners.moveTo('third')
    await until(() => asked.length === 1)
    owners.expire('one')
    owners.moveTo('other')
    await until(() => other.worker.active.has('pair'))
    owners.byName('other')!.onChange = () => undefined
    owners.moveTo('third')
    waits.open()
    await until(() => third.worker.active.has('pair'))
    expect(asked).toEqual(['one', 'other'].map((name) => owners.byName(name)!.owner))
    expect(commits(store)).toContain('shard.left')
    works.open('x')
  })

  test('TA2 X5 DP1 takeover: what a living worker does is left to it, and its outcome comes after the shard', async () => {
    const { owners, store, crew, works, started, worker } = await two('once')
    const one = await worker('one')
    const other = await worker('other')
    await (await one.runtime.spawn(crew)).start('go').id
    await until(() => started.length === 1)
    owners.moveTo('other')
    await until(() => other.worker.active.has('pair'))
    await quiet()
    expect(commits(store)).toContain('shard.left')
    expect(other.worker.active.get('pair')!.state.effects.size).toBe(1)
    works.open('result')
    await until(() => owners.sent.length === 1)
    await owners.deliver(other.worker)
    await until(() => finished(other) != null)
    expect(finished(other)).toMatchObject({ code: null })
    expect(started).toHaveLength(1)
    expect(commits(store)).not.toContain('effect.interrupted')
  })

  /** A crew that went from `one` to `other`, began something there, and is to be back, while `one` heard nothing of that. */
  async function unseen() {
    const { owners, store, crew, works, started, worker } = await two()
    const one = await worker('one')
    await one.runtime.spawn(crew)
    const stale = await one.worker.shard('pair')
    const other = await worker('other')
    owners.byName('one')!.onChange = () => undefined
    owners.byName('other')!.release = async () => undefined
    owners.moveTo('other')
    const run = (await other.runtime.spawn(crew)).start('go')
    await run.id
    // The tool's call: a model call is under way for a moment too, and may have to be left before it begins.
    await until(() => started.length === 1)
    owners.moveTo('one')
    await until(() => commits(store).includes('shard.left'))
    expect(one.worker.active.get('pair')).toBe(stale)
    return { owners, store, works, one, stale, run: await run.id }
  }

  test('K7 takeover: a shard that went and came back unseen takes the outcome of what was begun elsewhere', async () => {
    const { owners, works, one } = await unseen()
    works.open('result')
    await until(() => owners.sent.length === 1)
    await owners.deliver(one.worker)
    await until(() => finished(one) != null)
    expect(finished(one)).toMatchObject({ code: null })
  })

  test('K7 takeover: a shard that went and came back unseen is taken anew when its owner is told that it has it', async () => {
    const { owners, store, works, one, stale } = await unseen()
    await one.worker.take('pair')
    expect(one.worker.active.get('pair')).not.toBe(stale)
    expect(one.worker.active.get('pair')!.owner).toBe(owners.byName('one')!.owner)
    expect(commits(store).filter((type) => type === 'shard.taken')).toHaveLength(3)
    works.open('result')
  })

  test('K7 takeover: a shard that went and came back unseen is asked for a run that began elsewhere, and knows it', async () => {
    const { owners, works, one, stale, run } = await unseen()
    const crew = one.runtime.crew('pair')!
    expect(await crew.run(run).id).toBe(run)
    expect(one.worker.active.get('pair')).not.toBe(stale)
    const result = crew.run(run).result
    works.open('result')
    await until(() => owners.sent.length === 1)
    await owners.deliver(one.worker)
    expect((await result).output).toBe('done')
    await expect(crew.run('r99').result).rejects.toEqual(code('RUN_UNKNOWN'))
  })

  test('K7 takeover: an outcome that nobody asked for is refused, by a shard that knows all', async () => {
    const { crew, worker } = await two()
    const one = await worker('one')
    await one.runtime.spawn(crew)
    const shard = await one.worker.shard('pair')
    const body = { type: 'tool.succeeded', truncated: false }
    const forged = { from: 'port/tool', to: 'tool/99-0', cause: '99-0', body, values: ['x'] }
    await expect(one.worker.receive('pair', forged, false)).rejects.toEqual(code('OUTCOME_FORGED'))
    expect(one.worker.active.get('pair')).toBe(shard)
    await shard.leave()
    await expect(shard.post(forged)).rejects.toEqual(code('SHARD_ELSEWHERE'))
  })

  test('TA2 takeover: what one that is gone did is interrupted once, also when it goes later', async () => {
    const { owners, store, crew, started, worker } = await two('once')
    const one = await worker('one')
    const other = await worker('other')
    await (await one.runtime.spawn(crew)).start('go').id
    await until(() => started.length === 1)
    owners.moveTo('other')
    await until(() => other.worker.active.has('pair'))
    await quiet()
    expect(commits(store)).not.toContain('effect.interrupted')
    owners.expire('one', true)
    owners.moveTo('other')
    await until(() => finished(other) != null)
    expect(commits(store).filter((type) => type === 'effect.interrupted')).toHaveLength(1)
    expect(started).toHaveLength(1)
  })

  test('X5 leave: an effect that no port had yet is parked, and the next owner has it done', async () => {
    const { owners, crew, works, started, store, worker } = await two('once')
    const landing = gate()
    // The record that a once call starts waits: the call has not begun when the shard moves.
    const one = await worker('one', (inner) =>
      override(inner, {
        append: async (record) => {
          const [first] = fromRecord(record.shard, record)
          if (first?.envelope.body.type === 'effect.dispatched') await landing.opened
          return inner.append(record)
        },
      }),
    )
    const other = await worker('other')
    await (await one.runtime.spawn(crew)).start('go').id
    await until(() => commits(store).includes('model.replied'))
    await quiet()
    owners.moveTo('other')
    await quiet()
    landing.open()
    await until(() => other.worker.active.has('pair'))
    await until(async () => {
      await owners.deliver(other.worker).catch(() => undefined)
      return started.length === 1
    })
    works.open('x')
    await until(() => finished(other) != null)
    expect(started).toHaveLength(1)
    expect(finished(other)).toMatchObject({ code: null })
  })

  test('TA3 takeover: an owner that is gone counts a crash for what it left open; at the third it is given up', async () => {
    const { owners, clock, crew, started, worker } = await two()
    let stage = await worker('w0')
    await (await stage.runtime.spawn(crew)).start('go').id
    for (const name of ['w1', 'w2', 'w3']) {
      await until(() => started.length > 0)
      started.length = 0
      owners.expire(owners.current)
      const next = await worker(name)
      owners.moveTo(name)
      await until(() => next.worker.active.has('pair'))
      stage = next
    }
    await quiet()
    clock.advance(returnMs)
    await until(() => finished(stage) != null)
    expect(started).toEqual([])
  })

  test('TA3 takeover: one of three that is back before anything is given up has not died over it', async () => {
    const { owners, clock, store, crew, works, started, worker } = await two()
    await (await (await worker('w0')).runtime.spawn(crew)).start('go').id
    let last = await worker('w1')
    for (const name of ['w1', 'w2', 'w3']) {
      await until(() => started.length > 0)
      started.length = 0
      owners.expire(owners.current)
      last = name === 'w1' ? last : await worker(name)
      owners.moveTo(name)
      await until(() => last.worker.active.has('pair'))
    }
    await quiet()
    expect(commits(store)).not.toContain('effect.crashed')
    // It had lost its lease when the server was away, as everybody had.
    owners.renew('w1')
    clock.advance(returnMs)
    await until(() => started.length > 0)
    works.open('result')
    await until(() => finished(last) != null)
    expect(finished(last)).toMatchObject({ code: null })
  })

  test('TA3 takeover: a crash that an owner counted counts, also when it left in order before anything came of it', async () => {
    const { owners, clock, crew, started, worker } = await two()
    await (await (await worker('w0')).runtime.spawn(crew)).start('go').id
    for (const name of ['w1', 'w2', 'w3']) {
      await until(() => started.length > 0)
      started.length = 0
      owners.expire(owners.current)
      const next = await worker(name)
      // The last one still waits for mail of the one that is gone when the shard moves on.
      if (name === 'w3') owners.byName(name)!.mailTaken = () => new Promise(() => undefined)
      owners.moveTo(name)
      await until(() => next.worker.active.has('pair'))
    }
    const last = await worker('w4')
    owners.moveTo('w4')
    await quiet()
    clock.advance(returnMs)
    await until(() => finished(last) != null)
    expect(started).toEqual([])
  })

  test('TA2 takeover: a process that lost its lease and has another keeps what it works on', async () => {
    const { owners, store, crew, works, started, worker } = await two('once')
    const one = await worker('one')
    await (await one.runtime.spawn(crew)).start('go').id
    await until(() => started.length === 1)
    for (let time = 0; time < 4; time += 1) {
      owners.expire('one', true)
      owners.byName('one')!.onChange()
      await until(() => !one.worker.active.has('pair'))
      owners.renew('one')
      await until(() => one.worker.active.has('pair'))
      await quiet()
    }
    expect(commits(store)).not.toContain('effect.interrupted')
    works.open('result')
    await until(() => owners.sent.length === 1)
    await owners.deliver(one.worker)
    await until(() => finished(one) != null)
    expect(finished(one)).toMatchObject({ code: null })
    expect(started).toHaveLength(1)
  })

  test('TA3 takeover: owners that lose their lease time and again and live are no crashes', async () => {
    const { owners, crew, works, started, worker } = await two()
    const stages = { one: await worker('one'), other: await worker('other') }
    await (await stages.one.runtime.spawn(crew)).start('go').id
    for (const [from, to] of Array.from({ length: 6 }, (_, time) =>
      time % 2 === 0 ? (['one', 'other'] as const) : (['other', 'one'] as const),
    )) {
      await until(() => started.length > 0)
      started.length = 0
      owners.expire(from, true)
      owners.byName(from)!.onChange()
      owners.moveTo(to)
      await until(() => stages[to].worker.active.has('pair'))
      await until(() => started.length > 0)
      owners.renew(from)
      await quiet()
    }
    works.open('result')
    await until(() => finished(stages.one) != null)
    expect(finished(stages.one)).toMatchObject({ code: null })
  })

  test('TA3 takeover: a process that dies over what it was left with counts a crash, too', async () => {
    const { owners, clock, crew, started, worker } = await two()
    let last = await worker('w0')
    await (await last.runtime.spawn(crew)).start('go').id
    for (const name of ['w1', 'w2', 'w3']) {
      await until(() => started.length > 0)
      started.length = 0
      const before = owners.current
      last = await worker(name)
      owners.moveTo(name)
      await until(() => last.worker.active.has('pair'))
      await quiet()
      expect(started).toEqual([])
      owners.expire(before)
      owners.moveTo(name)
    }
    await quiet()
    clock.advance(returnMs)
    await until(() => finished(last) != null)
    expect(started).toEqual([])
  })

  test('TA4 takeover: whether a call was done is asked only when it can no longer begin or go on', async () => {
    const { asked, stand } = await asking()
    const { owners, clock, crew, works, started, worker } = stand
    const one = await worker('one')
    const other = await worker('other')
    await (await one.runtime.spawn(crew)).start('go').id
    await until(() => started.length === 1)
    owners.expire('one', false)
    owners.moveTo('other')
    await until(() => other.worker.active.has('pair'))
    clock.advance(39_999)
    await quiet()
    expect(asked).toEqual([])
    clock.advance(1)
    await until(() => asked.length === 1)
    works.open('x')
    await until(() => finished(other) != null)
  })

  test('TA4 takeover: owners that follow each other wait once for a call that may go on', async () => {
    const { asked, stand } = await asking()
    const { owners, clock, crew, works, started, worker } = stand
    let last = await worker('w0')
    await (await last.runtime.spawn(crew)).start('go').id
    await until(() => started.length === 1)
    for (const name of ['w1', 'w2', 'w3', 'w4']) {
      owners.expire(owners.current)
      last = await worker(name)
      owners.moveTo(name)
      await until(() => last.worker.active.has('pair'))
      // Of 40 seconds, and one for clocks that differ.
      clock.advance(name === 'w4' ? 10_999 : 10_000)
      await quiet()
      expect(asked).toEqual([])
    }
    clock.advance(1)
    await until(() => asked.length === 1)
    works.open('x')
    await until(() => finished(last) != null)
  })

  test('TA3 TA4 takeover: owners that die while a call is waited out are no crashes over it', async () => {
    let asked = 0
    const stand = await two('once', {
      verify: async () => {
        asked += 1
        return { done: false }
      },
    })
    const { owners, clock, crew, works, started, worker } = stand
    const one = await worker('w0')
    await (await one.runtime.spawn(crew)).start('go').id
    await until(() => started.length === 1)
    let last = one
    for (const name of ['w1', 'w2', 'w3', 'w4']) {
      owners.expire(owners.current)
      last = await worker(name)
      owners.moveTo(name)
      await until(() => last.worker.active.has('pair'))
      await quiet()
    }
    clock.advance(40_000)
    await until(() => asked === 1)
    works.open('x')
    await until(() => finished(last) != null)
    expect(finished(last)).toMatchObject({ code: null })
    expect(started).toHaveLength(2)
  })

  test('H6 append: a record that lands after it was given up is not decided again', async () => {
    const { crew, works, store, worker } = await two()
    let late: (() => void) | null = null
    const one = await worker('one', (inner) =>
      override(inner, {
        append: async (record) => {
          const [first] = fromRecord(record.shard, record)
          if (late !== null || first?.envelope.body.type !== 'crew.task') {
            // The one before comes first after all.
            late?.()
            late = () => undefined
            const { sequence } = await inner.head(record.shard)
            if (sequence >= record.first) throw new TroupeError('STORE_FAILED', 'an own record has landed')
            return inner.append(record)
          }
          late = () => void inner.append(record)
          throw new TroupeError('STORE_FAILED', 'no acknowledgement', { retryable: true })
        },
      }),
    )
    const run = (await one.runtime.spawn(crew)).start('go')
    await until(() => late !== null)
    one.clock.advance(10_000)
    works.open('x')
    await expect(run.result).resolves.toMatchObject({ output: 'done' })
    expect(commits(store).filter((type) => type === 'crew.task')).toHaveLength(1)
  })

  test('K5 worker: a shard that is not its own is elsewhere; one that it is to own is taken up when it has work', async () => {
    const { owners, crew, works, worker } = await two()
    const one = await worker('one')
    const other = await worker('other')
    const run = (await one.runtime.spawn(crew)).start('go')
    await run.id
    await expect(other.worker.shard('pair')).rejects.toEqual(code('SHARD_ELSEWHERE'))
    owners.moveTo('other')
    await until(() => other.worker.active.has('pair') && !one.worker.active.has('pair'))
    await expect(one.worker.shard('pair')).rejects.toEqual(code('SHARD_ELSEWHERE'))
    works.open('x')
    await until(() => owners.sent.length === 1)
    await owners.deliver(other.worker)
    await until(() => finished(other) != null)
    owners.moveTo('one')
    await until(() => !other.worker.active.has('pair'))
    // Nothing waits there: it is taken up when somebody asks.
    await quiet()
    expect(one.worker.active.has('pair')).toBe(false)
    await expect(
      (await one.runtime.spawn(crew)).run((await one.worker.shard('pair')).state.runs.keys().next().value!).result,
    ).resolves.toMatchObject({ output: 'done' })
  })

  test('move: the owner leaves, then the other one takes what is open; the outcome follows', async () => {
    const { store, crew, works, started, worker } = await two('once')
    const one = await worker('one')
    const other = await worker('other')
    await (await one.runtime.spawn(crew)).start('go').id
    await until(() => started.length === 1)
    expect(await one.runtime.move('pair', 'other')).toBe('other')
    expect(other.worker.active.has('pair')).toBe(true)
    expect(commits(store).filter((type) => type === 'shard.left')).toHaveLength(1)
    works.open('result')
  })

  test('move: when the other one cannot go on with it, its owner does, and says why', async () => {
    const { owners, store, crew, works, started, worker } = await two('once')
    const one = await worker('one')
    await worker('other')
    await (await one.runtime.spawn(crew)).start('go').id
    await until(() => started.length === 1)
    const member = owners.byName('one')!
    member.handOver = () => Promise.reject(new TroupeError('UPGRADE_REFUSED', 'no'))
    await expect(one.runtime.move('pair', 'other')).rejects.toEqual(code('UPGRADE_REFUSED'))
    await until(() => one.worker.active.has('pair'))
    works.open('result')
    await until(() => owners.sent.length === 1)
    await owners.deliver(one.worker)
    await until(() => finished(one) != null)
    expect(finished(one)).toMatchObject({ code: null })
    expect(started).toHaveLength(1)
    expect(commits(store)).not.toContain('effect.interrupted')
  })
})
