import { describe, expect, test } from 'vitest'
import type { StoredBreaker } from '../../machines/index.js'
import { admit, type Applicant, targetOf, underPermit } from '../../runtime/admission.js'
import { Breakers, type BreakerStore, type CallEnd } from '../../runtime/breakers.js'
import { createRuntime } from '../../runtime/index.js'
import { MemoryBreakers } from '../../transport/memory-breakers.js'
import { failure, quiet, say } from '../support/crew-stage.js'
import { createManualClock } from '../support/manual-clock.js'

const settings = { failures: 1, cooldownMs: 100, probeMs: 500 }
const failed: CallEnd = { verdict: 'failed', cooling: null }
const answered: CallEnd = { verdict: 'answered', cooling: null }
const none: CallEnd = { verdict: 'none', cooling: null }
const target = 'model/a:one'

/** A store that counts, and that can be away. */
class Watched extends MemoryBreakers {
  saves: StoredBreaker[] = []
  isAway = false

  override async load(of: string) {
    if (this.isAway) throw new Error('away')
    return super.load(of)
  }

  override async all() {
    if (this.isAway) throw new Error('away')
    return super.all()
  }

  override async save(of: string, breaker: StoredBreaker, revision: number) {
    if (this.isAway) throw new Error('away')
    const saved = await super.save(of, breaker, revision)
    if (saved !== null) this.saves.push(breaker)
    return saved
  }
}

/** As many processes as wanted over one store, on one clock. */
function processes(count: number, store: BreakerStore = new Watched()) {
  const clock = createManualClock()
  const breakers = Array.from({ length: count }, () => new Breakers({ store, clock, settings }))
  return { clock, store: store as Watched, breakers, one: breakers[0]!, two: breakers[1]! }
}
let calls = 0
const name = (): string => `c.${(calls += 1)}`

async function fail(breakers: Breakers): Promise<void> {
  const call = name()
  expect(await breakers.ask(target, call, 'only')).toEqual({ granted: true })
  breakers.done(target, call, failed)
}

describe('breakers', () => {
  test('BR2 breakers: calls that change nothing are stored nowhere', async () => {
    const { one, store } = processes(1)
    for (let call = 0; call < 50; call++) {
      await one.ask(target, `c${call}`, 'only')
      expect(one.done(target, `c${call}`, answered)).toEqual([])
    }
    await quiet()
    expect(store.saves).toEqual([])
  })

  test('BR2 breakers: whoever opens one is told at once, and does not wait for that to be stored', async () => {
    const { one, store } = processes(1)
    await one.ask(target, 'c', 'only')
    expect(one.done(target, 'c', failed)).toEqual([{ to: 'opened', ms: 100 }])
    expect(store.saves).toEqual([])
    await quiet()
    expect(store.saves).toMatchObject([{ state: 'open' }])
  })

  test('BR3 breakers: what one process opens is open in the others', async () => {
    const { one, two } = processes(2)
    await two.ask(target, 'c', 'only')
    await fail(one)
    await quiet()
    expect(await two.ask(target, name(), 'only')).toEqual({ granted: false, reason: 'open', waitMs: 100 })
  })

  test('BR3 breakers: whoever comes later asks what is stored first', async () => {
    const { one, store, clock } = processes(1)
    await fail(one)
    await quiet()
    const late = new Breakers({ store, clock, settings })
    expect(await late.ask(target, name(), 'only')).toMatchObject({ granted: false, reason: 'open' })
  })

  test('BR1 breakers: of ten processes that ask at once when its time is over one probes', async () => {
    const { breakers, one, clock } = processes(10)
    for (const each of breakers) await each.ask(target, name(), 'only')
    await fail(one)
    await quiet()
    clock.advance(100)
    const permits = await Promise.all(breakers.map((each) => each.ask(target, name(), 'only')))
    expect(permits.filter(({ granted }) => granted)).toHaveLength(1)
    expect(permits.filter((permit) => !permit.granted && permit.reason === 'probing')).toHaveLength(9)
  })

  test('BR1 breakers: a probe whose process dies is given to another when it is overdue', async () => {
    const { one, two, clock } = processes(2)
    await fail(one)
    await quiet()
    clock.advance(100)
    expect(await one.ask(target, name(), 'only')).toEqual({ granted: true })
    expect(await two.ask(target, name(), 'only')).toEqual({ granted: false, reason: 'probing', waitMs: 500 })
    clock.advance(500)
    expect(await two.ask(target, name(), 'only')).toEqual({ granted: true })
    expect(await one.ask(target, name(), 'only')).toMatchObject({ granted: false, reason: 'probing' })
  })

  test('BR4 breakers: while the store is away calls are made, and breakers open; nobody probes', async () => {
    const { one, store, clock } = processes(1)
    store.isAway = true
    await fail(one)
    expect(await one.ask(target, name(), 'only')).toEqual({ granted: false, reason: 'open', waitMs: 100 })
    clock.advance(100)
    expect(await one.ask(target, name(), 'only')).toEqual({ granted: false, reason: 'probing', waitMs: 1_000 })
    expect(await one.ask(target, name(), 'only')).toEqual({ granted: false, reason: 'probing', waitMs: 1_000 })
    store.isAway = false
    expect(await one.ask(target, name(), 'only')).toEqual({ granted: true })
  })

  test('BR3 breakers: those that keep somebody back are listed with their time and why, also as others stored them', async () => {
    const { one, store, clock } = processes(1)
    const now = clock.now()
    expect(await one.list()).toEqual([])
    await fail(one)
    await one.ask('model/b:two', 'limited', 'choice')
    one.done('model/b:two', 'limited', { verdict: 'answered', cooling: { ms: 50, why: 'asked' } })
    await one.ask('model/c:three', 'well', 'only')
    one.done('model/c:three', 'well', answered)
    await quiet()
    const open = { target, state: 'open', until: now + 100, why: 'failed' }
    const cooling = { target: 'model/b:two', state: 'cooling', until: now + 50, why: 'asked' }
    expect(await one.list()).toEqual([open, cooling])
    const late = new Breakers({ store, clock, settings })
    expect(await late.list()).toEqual([open, cooling])
    clock.advance(100)
    expect(await late.list()).toEqual([open])
    await one.ask(target, 'probe', 'only')
    expect(await late.list()).toEqual([{ target, state: 'halfOpen', until: now + 600, why: 'probing' }])
    one.done(target, 'probe', answered)
    await quiet()
    expect(await late.list()).toEqual([])
  })

  test('BR4 breakers: while the store is away those of this process are listed', async () => {
    const { one, store } = processes(1)
    store.isAway = true
    await fail(one)
    expect(await one.list()).toMatchObject([{ target, state: 'open' }])
  })

  test('breakers: calls under way are counted, whatever comes of them', async () => {
    const { one } = processes(1)
    for (const call of ['p', 'q']) await one.ask(target, call, 'only')
    expect(one.underWay(target)).toBe(2)
    one.done(target, 'p', none)
    expect(one.underWay(target)).toBe(1)
  })
})

test.each([{ failures: 0 }, { rate: 2 }, { cooldownMs: 1.5 }, { cooldown: 5 }, true] as never[])(
  'breakers: settings that are none are refused: %o',
  async (breakers) => {
    await expect(createRuntime({ breakers })).rejects.toMatchObject({ code: 'CONFIG_INVALID' })
  },
)

describe('admission', () => {
  const of = (deployments: string[], more: Partial<Applicant> = {}): Applicant => ({
    ...{ call: name(), deployments, groups: deployments.map((each) => [each]), signals: [] },
    ...more,
  })
  const all = ['a:one', 'b:two']
  const down = async (breakers: Breakers, deployment: string, kind: 'server' | 'auth' | 'rate_limited' = 'server') => {
    const call = name()
    await breakers.ask(targetOf(deployment), call, 'only')
    await underPermit(breakers, deployment, call, async () => failure(kind, { retryAfterMs: 900 }))
  }

  test('AD1 admission: the first that takes the call is asked, the others have no permit', async () => {
    const { one } = processes(1)
    await down(one, 'a:one')
    expect(await admit(one, of(all))).toEqual({
      ...{ deployment: 'b:two', skipped: [{ deployment: 'a:one', reason: 'open', waitMs: 100 }] },
    })
    expect([one.underWay('model/a:one'), one.underWay('model/b:two')]).toEqual([0, 1])
  })

  test('AD1 admission: of a group the one with the fewest calls comes first, and no other group before it', async () => {
    const { one } = processes(1)
    const deployments = ['a:one', 'b:two', 'c:three']
    const groups = [['a:one', 'b:two'], ['c:three']]
    const found: (string | null)[] = []
    for (let call = 0; call < 4; call++) found.push((await admit(one, of(deployments, { groups }))).deployment)
    expect(found).toEqual(['a:one', 'b:two', 'a:one', 'b:two'])
  })

  test('AD2 admission: one at fault is asked when all that are left are; one that asked for time is not', async () => {
    const { one } = processes(1)
    for (const each of all) await down(one, each, 'auth')
    expect((await admit(one, of(all))).deployment).toBe('a:one')
    await down(one, 'b:two', 'rate_limited')
    expect(await admit(one, of(all))).toMatchObject({
      deployment: null,
      skipped: [{ reason: 'fault' }, { reason: 'asked' }],
    })
    expect((await admit(one, of(['b:two'], { groups: [['b:two']] }))).deployment).toBe('b:two')
  })

  test('AD3 admission: the end of a probe is waited for, or until a signal comes', async () => {
    const { one, clock } = processes(1)
    await down(one, 'a:one')
    clock.advance(100)
    const probe = of(['a:one'])
    expect((await admit(one, probe)).deployment).toBe('a:one')
    const stop = new AbortController()
    const waiting = admit(one, of(['a:one']))
    const stopped = admit(one, of(['a:one'], { signals: [stop.signal] }))
    await quiet()
    stop.abort()
    expect((await stopped).deployment).toBeNull()
    await underPermit(one, 'a:one', probe.call, async () => say('well'))
    expect((await waiting).deployment).toBe('a:one')
  })

  test('AD3 admission: when nothing is heard of a probe one of those who wait takes its place', async () => {
    const { one, clock } = processes(1)
    await down(one, 'a:one')
    clock.advance(100)
    await admit(one, of(['a:one']))
    const waiting = [admit(one, of(['a:one'])), admit(one, of(['a:one']))]
    await quiet()
    clock.advance(500)
    const first = await Promise.race(waiting)
    expect(first.deployment).toBe('a:one')
    expect(one.underWay('model/a:one')).toBe(2)
  })

  test('AD4 admission: who may not call any more when the wait is over gives the permit back', async () => {
    const { one, clock } = processes(1)
    await down(one, 'a:one')
    clock.advance(100)
    const probe = of(['a:one'])
    await admit(one, probe)
    let may = true
    const waiting = admit(one, of(['a:one'], { mayCall: () => may }))
    await quiet()
    may = false
    await underPermit(one, 'a:one', probe.call, async () => say('well'))
    expect((await waiting).deployment).toBeNull()
    expect(one.underWay('model/a:one')).toBe(0)
  })

  test('AD4 admission: a port that throws gives its permit back', async () => {
    const { one } = processes(1)
    const call = of(['a:one'])
    await admit(one, call)
    const made = underPermit(one, 'a:one', call.call, async () => {
      throw new Error('broken port')
    })
    await expect(made).rejects.toThrow('broken port')
    expect(one.underWay('model/a:one')).toBe(0)
  })

  test('admission: without breakers the first is asked', async () => {
    expect(await admit(undefined, of(all))).toEqual({ deployment: 'a:one', skipped: [] })
  })
})
