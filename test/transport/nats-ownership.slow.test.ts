import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import type { Draft } from '../../runtime/envelope.js'
import { TroupeError } from '../../runtime/errors.js'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { NatsLease } from '../../transport/nats-lease.js'
import { NatsOwnership, type NatsOwnershipOptions } from '../../transport/nats-ownership.js'
import { partitionOf, Subjects } from '../../transport/subjects.js'
import { WorkerRequests, type WorkerWork } from '../../transport/worker-requests.js'
import { type LinkProxy, startLinkProxy } from '../support/link-proxy.js'
import type { NatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'

const leaseMs = 1_000
const wait = { timeout: 10_000 }
const shards = Array.from({ length: 200 }, (_, index) => `s${index}`)
let server: NatsServer
let link: NatsLink
let subjects: Subjects
let count = 0
const closing: (() => Promise<unknown>)[] = []
useNats((nats) => {
  ;({ server, link } = nats)
})
beforeEach(() => {
  subjects = new Subjects(`owners${++count}`)
})
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close()
})

async function worker(name: string, more: Partial<NatsOwnershipOptions> = {}): Promise<NatsOwnership> {
  const mail = { send: () => Promise.resolve(), taken: () => Promise.resolve() }
  const crews = { report: '1' }
  const ownership = await NatsOwnership.open({ link, subjects, worker: name, leaseMs, crews, mail, ...more })
  closing.push(() => ownership.close())
  return ownership
}

/** A connection through a proxy of its own. */
async function proxied(): Promise<{ readonly proxy: LinkProxy; readonly over: NatsLink }> {
  const proxy = await startLinkProxy(server.port)
  closing.push(() => proxy.close())
  const over = await connectNats({ servers: `127.0.0.1:${proxy.port}` })
  closing.push(() => over.connection.close())
  return { proxy, over }
}
function silence(proxy: LinkProxy): void {
  proxy.up = 'swallow'
  proxy.down = 'swallow'
}
function heal(proxy: LinkProxy): void {
  proxy.up = 'pass'
  proxy.down = 'pass'
  proxy.cut()
}

/** How many of the shards each worker owns, and how many have not exactly one owner. */
function split(all: readonly NatsOwnership[], crew = 'report'): { readonly owned: number[]; readonly wrong: number } {
  const owns = shards.map((shard) => all.map((each) => each.owns(shard, crew)))
  const owned = all.map((_, index) => owns.filter((each) => each[index]).length)
  return { owned, wrong: owns.filter((each) => each.filter(Boolean).length !== 1).length }
}

/** Work that remembers what it was asked. */
function work(more: Partial<WorkerWork> = {}): WorkerWork & { readonly asked: string[] } {
  const asked: string[] = []
  return {
    asked,
    leave: async (shard) => void asked.push(`leave ${shard}`),
    take: async (shard) => void asked.push(`take ${shard}`),
    working: (shard, effects) => {
      asked.push(`working ${shard} ${effects.length}`)
      return effects.filter((effect) => effect.startsWith('mine'))
    },
    cancel: (shard, effects) => void asked.push(`cancel ${shard} ${effects.join()}`),
    ...more,
  }
}

describe('NATS ownership', () => {
  test('NO1 owns: two and three workers agree, each shard has one owner, and only the new one gets shards', async () => {
    const [a, b] = [await worker('a'), await worker('b')]
    let changes = 0
    a.onChange = () => void changes++
    await expect.poll(() => split([a, b]).wrong).toBe(0)
    expect(Math.min(...split([a, b]).owned)).toBeGreaterThan(40)
    const before = shards.filter((shard) => a.owns(shard, 'report'))
    const c = await worker('c')
    await expect.poll(() => split([a, b, c]).wrong).toBe(0)
    expect(changes).toBeGreaterThan(0)
    expect(Math.min(...split([a, b, c]).owned)).toBeGreaterThan(20)
    expect(shards.filter((shard) => a.owns(shard, 'report') && !before.includes(shard))).toEqual([])
    await c.close()
    await expect.poll(() => split([a, b]).wrong).toBe(0)
    expect(shards.filter((shard) => a.owns(shard, 'report'))).toEqual(before)
    expect(split([c]).owned).toEqual([0])
  })

  test('NO1 owns: a crew that nobody else has stays with the one who has it', async () => {
    const [a, b] = [await worker('a', { crews: { report: '1', survey: '1' } }), await worker('b')]
    const tools = await worker('tools', { crews: {} })
    const all = [a, b, tools]
    await expect.poll(() => all.map((each) => all.filter(({ owner }) => each.lives(owner)).length)).toEqual([3, 3, 3])
    await expect.poll(() => split(all).wrong).toBe(0)
    expect(split(all, 'survey').owned).toEqual([200, 0, 0])
    expect(split(all, 'nobody').owned).toEqual([0, 0, 0])
    const { owned, wrong } = split(all, '')
    expect([wrong, owned[2]]).toEqual([0, 0])
    await b.announce({ survey: '2', report: '1' })
    await expect.poll(() => split(all, 'survey').wrong).toBe(0)
    expect(split(all, 'survey').owned[1]).toBeGreaterThan(40)
  })

  test('NO7 owns: those of the version of a shard go before others, one of them for each; what they get nobody gives back', async () => {
    const [a, b] = [await worker('a'), await worker('b')]
    const c = await worker('c', { crews: { report: '2' } })
    const all = [a, b, c]
    const ownersOf = (seen: NatsOwnership, crew: string) => shards.map((shard) => seen.ownerOf(shard, crew))
    const agreeOn = async (crew: string, isRight: (owned: number[]) => boolean) => {
      const seen = () => all.map((each) => ownersOf(each, crew).join())
      await expect.poll(() => [new Set(seen()).size, isRight(split(all, crew).owned)]).toEqual([1, true])
      expect(split(all, crew).wrong).toBe(0)
    }
    await agreeOn('report@1', ([ofA = 0, ofB = 0, ofC]) => ofC === 0 && Math.min(ofA, ofB) > 40)
    await agreeOn('report@2', ([, , ofC]) => ofC === 200)
    // A version that nobody has, and one that old records do not tell: all are equal.
    await agreeOn('report@3', (owned) => Math.min(...owned) > 20)
    await agreeOn('report', (owned) => Math.min(...owned) > 20)
    expect(ownersOf(c, 'report@3')).toEqual(ownersOf(c, 'report'))
    for (const each of all)
      for (const shard of shards)
        if (each.owns(shard, 'report')) expect(each.partitions().has(partitionOf(shard))).toBe(true)
    const [before, fallen] = [ownersOf(a, 'report@1'), ownersOf(a, 'report')]
    await b.withdraw()
    await agreeOn('report@1', ([ofA]) => ofA === 200)
    await b.announce({ report: '2' })
    await agreeOn('report@2', ([, ofB = 0, ofC = 0]) => Math.min(ofB, ofC) > 40)
    expect(split(all, 'report@1').owned).toEqual([200, 0, 0])
    // The last one of the old version takes the new one: whoever a shard falls to then has it in that version, too.
    await a.announce({ report: '3' })
    await agreeOn('report@1', ([ofA = 0]) => ofA < 200)
    expect(ownersOf(b, 'report@1')).toEqual(fallen)
    for (const [at, owner] of fallen.entries())
      expect(ownersOf(b, owner === 'a' ? 'report@3' : 'report@2')[at]).toBe(owner)
    for (const each of [a, b]) await each.announce({ report: '1' })
    await agreeOn('report@1', ([, , ofC]) => ofC === 0)
    expect(ownersOf(c, 'report@1')).toEqual(before)
    expect(c.workers().map(({ worker: name, partitions }) => [name, partitions > 0])).toEqual(
      ['a', 'b', 'c'].map((name) => [name, true]),
    )
  })

  test('NO5 NO7 assign: a shard is given to a worker with another version, to none without the crew', async () => {
    const [a, b] = [await worker('a'), await worker('b', { crews: { report: '2' } })]
    const c = await worker('c', { crews: { survey: '1' } })
    await expect
      .poll(() => [split([a, b, c], 'report@1').owned, split([a, b, c], 'survey@2').owned])
      .toEqual([
        [200, 0, 0],
        [0, 0, 200],
      ])
    expect(await a.assign('s1', 'report@1', 'b')).toBe('b')
    await expect
      .poll(() => [b.owns('s1', 'report@1'), b.owns('s1', 'report@2'), c.ownerOf('s1', 'report')])
      .toEqual([...[true, true, 'b']])
    const refused = a.assign('s1', 'report@1', 'c')
    await expect(refused).rejects.toMatchObject({ code: 'WORKER_UNFIT', details: { worker: 'c', crew: 'report' } })
    expect(await b.assign('s1', 'report@2', null)).toBe('b')
    expect(await b.assign('s1', 'report@1', null)).toBe('a')
  })

  test('NO2 open: a name that another process has is STORE_BUSY, and one that is no token is ID_INVALID', async () => {
    await worker('a')
    await expect(worker('a')).rejects.toMatchObject({ code: 'STORE_BUSY' })
    await expect(worker('a.b')).rejects.toMatchObject({ code: 'ID_INVALID' })
  })

  test('NO2 SL1 SL2 lease: behind a dead link nothing is owned when its time is over, and later there is another epoch', async () => {
    const { proxy, over } = await proxied()
    const [a, b] = [await worker('a', { link: over }), await worker('b')]
    await expect.poll(() => split([a, b]).wrong).toBe(0)
    const { owner, epoch } = a
    const seen: boolean[] = []
    a.onChange = () => void seen.push(a.lives(a.owner))
    const since = performance.now()
    silence(proxy)
    let both = 0
    await expect
      .poll(() => {
        const [ofA = 0, ofB = 0] = split([a, b]).owned
        both = Math.max(both, ofA + ofB - shards.length)
        return ofA
      }, wait)
      .toBe(0)
    expect(performance.now() - since).toBeLessThan(leaseMs * 1.3)
    expect(a.lives(owner)).toBe(false)
    await expect.poll(() => split([b]).owned, wait).toEqual([200])
    expect(both).toBe(0)
    expect(seen).toEqual([false])
    expect([b.lives(owner), a.owner]).toEqual([false, owner])
    expect(Date.now() - b.lastSeen(owner)!).toBeLessThan(60_000)
    expect(await a.leased().then(() => a.lives(a.owner))).toBe(false)
    heal(proxy)
    await expect.poll(() => a.leased().then(() => a.epoch), { timeout: 20_000 }).toBeGreaterThan(epoch)
    expect(seen).toContain(true)
    await expect.poll(() => split([a, b]).wrong, wait).toBe(0)
    expect([a.lives(a.owner), b.lives(a.owner), b.lives(owner), a.lives(owner)]).toEqual([true, true, false, false])
  })

  test('NO6 lease: a process that lost its lease and took another is not gone, and is asked under the new one', async () => {
    const { proxy, over } = await proxied()
    const [a, b] = [await worker('a', { link: over }), await worker('b')]
    const asked: (readonly string[])[] = []
    a.serve({
      leave: async () => undefined,
      take: async () => undefined,
      working: (_, effects) => {
        asked.push(effects)
        return effects
      },
      cancel: (_, effects) => void asked.push(effects),
    })
    await expect.poll(() => b.lives(a.owner)).toBe(true)
    const { owner, epoch } = a
    expect([b.isRunning(owner), b.crashOf(owner), a.crashOf(owner)]).toEqual([true, owner, null])
    silence(proxy)
    await expect.poll(() => b.isRunning(owner), wait).toBe(false)
    expect([b.crashOf(owner), b.crashOf('c.1')]).toEqual([owner, 'c.1'])
    expect(await b.working(owner, 's', ['e'])).toBe(null)
    heal(proxy)
    await expect.poll(() => a.epoch, { timeout: 20_000 }).toBeGreaterThan(epoch)
    await expect.poll(() => b.isRunning(owner), wait).toBe(true)
    expect([b.lives(owner), b.isRunning(a.owner), b.crashOf(a.owner)]).toEqual([false, true, owner])
    expect([a.isRunning(owner), a.crashOf(owner)]).toEqual([true, null])
    await expect.poll(() => b.working(owner, 's', ['e']), wait).toEqual(['e'])
    b.cancel(owner, 's', ['f'])
    await expect.poll(() => asked).toContainEqual(['f'])
    const last = a.owner
    await a.close()
    await expect.poll(() => [b.isRunning(last), b.crashOf(last), b.crashOf(owner)]).toEqual([false, null, null])
  })

  test('NO2 lease: while somebody else has the name it is tried again, until it is free', async () => {
    const { proxy, over } = await proxied()
    const a = await worker('a', { link: over })
    silence(proxy)
    await expect.poll(() => a.lives(a.owner), wait).toBe(false)
    const options = { worker: 'a', ttlMs: leaseMs }
    const take = () => NatsLease.take(link, subjects, options).catch(() => null)
    let other: NatsLease | null = null
    await expect.poll(async () => (other = await take()), wait).not.toBe(null)
    heal(proxy)
    await expect.poll(() => over.connection.rtt().catch(() => -1), wait).toBeGreaterThanOrEqual(0)
    expect([split([a]).owned, other!.isHeld]).toEqual([[0], true])
    await other!.release()
    await expect.poll(() => a.epoch, { timeout: 20_000 }).toBeGreaterThan(other!.epoch)
    expect(split([a]).owned).toEqual([200])
  })

  test('NO3 withdraw: nothing is owned from then on, also under a later lease, and others know that it lives', async () => {
    const { proxy, over } = await proxied()
    const [a, b] = [await worker('a', { link: over }), await worker('b')]
    await expect.poll(() => split([a, b]).wrong).toBe(0)
    const withdrawn = a.withdraw()
    expect(split([a]).owned).toEqual([0])
    await withdrawn
    await expect.poll(() => split([b]).owned).toEqual([200])
    expect([b.lives(a.owner), a.lives(a.owner)]).toEqual([true, true])
    const { epoch } = a
    silence(proxy)
    await expect.poll(() => a.lives(a.owner), wait).toBe(false)
    heal(proxy)
    await expect.poll(() => a.epoch, { timeout: 20_000 }).toBeGreaterThan(epoch)
    await expect.poll(() => b.lives(a.owner), wait).toBe(true)
    expect(split([a, b]).owned).toEqual([0, 200])
  })

  test('NO3 withdraw: behind a dead link it ends with the lease', async () => {
    const { proxy, over } = await proxied()
    const a = await worker('a', { link: over })
    silence(proxy)
    await a.withdraw()
    expect([a.lives(a.owner), split([a]).owned]).toEqual([false, [0]])
    heal(proxy)
  })

  test('CL1 CL2 clock: workers agree on the time, however far their own clocks are off', async () => {
    const real = Date.now.bind(Date)
    const at = async (name: string, offMs: number): Promise<NatsOwnership> => {
      const wrong = vi.spyOn(Date, 'now').mockImplementation(() => real() + offMs)
      try {
        return await worker(name)
      } finally {
        wrong.mockRestore()
      }
    }
    const [early, late] = [await at('early', -600_000), await at('late', 600_000)]
    expect(Math.abs(early.clock.now() - late.clock.now())).toBeLessThan(1_000)
    const [from, since] = [late.clock.now(), performance.now()]
    const stepped = vi.spyOn(Date, 'now').mockImplementation(() => real() - 3_600_000)
    await expect.poll(() => late.clock.now() - from).toBeGreaterThan(20)
    expect(late.clock.now() - from).toBeLessThanOrEqual(performance.now() - since + 2)
    stepped.mockRestore()
  })

  test('NO5 NPI1 assign: everybody sees whom a shard was given to, for as long as that one lives and has the code', async () => {
    const [a, b, c] = [await worker('a'), await worker('b'), await worker('c', { crews: { survey: '1' } })]
    await expect.poll(() => split([a, b]).wrong).toBe(0)
    const [shard] = shards.filter((each) => a.owns(each, 'report'))
    const told: unknown[] = []
    b.onChange = (changed) => void told.push(changed)
    expect(await a.assign(shard!, 'report', 'b')).toBe('b')
    expect([a.owns(shard!, 'report'), a.ownerOf(shard!, 'report')]).toEqual([false, 'b'])
    await expect.poll(() => b.owns(shard!, 'report')).toBe(true)
    expect(told).toEqual([shard])
    expect(b.partitions().has(partitionOf(shard!))).toBe(true)
    expect(split([a, b]).wrong).toBe(0)
    const late = await worker('d')
    expect([late.owns(shard!, 'report'), late.ownerOf(shard!, 'report')]).toEqual([false, 'b'])
    await late.close()
    await expect.poll(() => a.lives(late.owner)).toBe(false)
    // Whoever has no code of the crew, or is gone, has no shards of it.
    await expect
      .poll(() => a.assign(shard!, 'report', 'c').catch(({ code }: { code: string }) => code))
      .toBe('WORKER_UNFIT')
    await expect(a.assign(shard!, 'report', 'd')).rejects.toMatchObject({ code: 'WORKER_UNKNOWN' })
    await expect(a.assign(shard!, 'report', 'nobody')).rejects.toMatchObject({ code: 'WORKER_UNKNOWN' })
    expect(b.owns(shard!, 'report')).toBe(true)
    await b.withdraw()
    await expect.poll(() => a.owns(shard!, 'report')).toBe(true)
    await b.announce({ report: '1' })
    await expect.poll(() => b.owns(shard!, 'report')).toBe(true)
    await b.close()
    await expect.poll(() => a.owns(shard!, 'report')).toBe(true)
    const again = await worker('b')
    await expect.poll(() => again.owns(shard!, 'report')).toBe(true)
    expect(await again.assign(shard!, 'report', null)).toBe('a')
    await expect.poll(() => a.owns(shard!, 'report')).toBe(true)
    expect(c.ownerOf(shard!, 'report')).toBe('a')
  })

  test('NPI1 NPI2 assign: what a dead link swallowed is seen when it is there again', async () => {
    const { proxy, over } = await proxied()
    const [a, b] = [await worker('a'), await worker('b', { link: over })]
    await expect.poll(() => split([a, b]).wrong).toBe(0)
    const [shard] = shards.filter((each) => a.owns(each, 'report'))
    proxy.down = 'swallow'
    await a.assign(shard!, 'report', 'b')
    proxy.down = 'pass'
    // The link was never cut: nothing tells the watch that it missed something.
    await expect.poll(() => b.owns(shard!, 'report'), wait).toBe(true)
    await a.assign(shard!, 'report', 'a')
    await a.assign(shard!, 'report', null)
    await a.assign(shard!, 'report', 'b')
    await expect.poll(() => [a.ownerOf(shard!, 'report'), b.ownerOf(shard!, 'report')]).toEqual(['b', 'b'])
  })

  test('handOver: the one that is to own it is asked to take it; what it refuses for is told, one that is gone is not waited for', async () => {
    const [a, b] = [await worker('a'), await worker('b')]
    await expect.poll(() => split([a, b]).wrong).toBe(0)
    const [shard] = shards.filter((each) => a.owns(each, 'report'))
    let busy = 2
    const ofB = work({
      take: async (each) => {
        // It knows of the pin when it is asked, whatever its watch has seen.
        if (!b.owns(each, 'report')) throw new TroupeError('OUTCOME_FORGED', 'too early')
        if (each !== shard) throw new TroupeError('UPGRADE_REFUSED', 'no')
        if (busy-- > 0) throw new TroupeError('SHARD_ELSEWHERE', 'not yet', { retryable: true })
      },
    })
    b.serve(ofB)
    await a.assign(shard!, 'report', 'b')
    await a.handOver(shard!, 'b')
    expect(busy).toBe(-1)
    await a.assign('other', 'report', 'b')
    await expect(a.handOver('other', 'b')).rejects.toMatchObject({ code: 'UPGRADE_REFUSED' })
    await b.close()
    await expect(a.handOver(shard!, 'b')).rejects.toMatchObject({ code: 'WORKER_UNKNOWN' })
  })

  test('send: a letter is given to the mail', async () => {
    const sent: unknown[] = []
    const send = async (shard: string, draft: Draft) => void sent.push([shard, draft])
    const a = await worker('a', { mail: { send, taken: () => Promise.resolve() } })
    const draft: Draft = { from: 'a/b', to: 'c/d', cause: 'x', body: { type: 'x' }, values: [] }
    await a.send('s1', draft)
    expect(sent).toEqual([['s1', draft]])
  })
})

describe('requests between workers', () => {
  test('WQ1 requests: release, working and cancel reach the one that was asked', async () => {
    const [a, b, c] = [await worker('a'), await worker('b'), await worker('c')]
    let left = (): void => undefined
    const leaving = new Promise<void>((resolve) => {
      left = resolve
    })
    const [ofA, ofB, ofC] = [work(), work({ leave: () => leaving }), work()]
    a.serve(ofA)
    b.serve(ofB)
    c.serve(ofC)
    let released = false
    const releasing = a.release('s1', b.owner).then(() => {
      released = true
    })
    expect(await a.working(b.owner, 's1', ['mine1', 'other', 'mine2'])).toEqual(['mine1', 'mine2'])
    expect(released).toBe(false)
    left()
    await releasing
    a.cancel(b.owner, 's1', ['x', 'y'])
    await expect.poll(() => ofB.asked).toEqual(['working s1 3', 'cancel s1 x,y'])
    expect(await a.working(a.owner, 's2', ['mine'])).toEqual(['mine'])
    a.cancel(a.owner, 's2', ['z'])
    await a.release('s2', a.owner)
    expect(ofA.asked).toEqual(['working s2 1', 'cancel s2 z'])
    expect(ofC.asked).toEqual([])
  })

  test('WQ1 requests: one whose lease is over leaves the answer to the one that has the name', async () => {
    const [stale, holder, asking] = Array.from({ length: 3 }, () => new WorkerRequests(link, subjects, 2_000))
    closing.push(async () => [stale, holder].forEach((each) => each!.close()))
    const [ofStale, ofHolder] = [work(), work()]
    stale!.serve('x', () => null, ofStale)
    holder!.serve('x', () => 8, ofHolder)
    const effects = ['mine', 'other']
    for (let round = 0; round < 20; round++) {
      expect(await asking!.ask('x', 8, { method: 'working', shard: 's1', effects })).toEqual(['mine'])
    }
    expect(await asking!.ask('x', 7, { method: 'working', shard: 's1', effects })).toBe(null)
    expect([ofStale.asked.length, ofHolder.asked.length]).toEqual([0, 20])
  })

  test('NO4 WQ3 requests: whoever is gone, has another lease, fails or is out of reach is not waited for', async () => {
    const { proxy, over } = await proxied()
    const requestMs = 1_000
    const a = await worker('a', { requestMs })
    const [b, c] = [await worker('b', { link: over }), await worker('c')]
    const ofB = work()
    b.serve(ofB)
    c.serve(
      work({
        leave: () => Promise.reject(new Error('no')),
        working: () => {
          throw new Error('no')
        },
      }),
    )
    const gone = [`b.${b.epoch + 1}`, 'nobody.7', 'no owner', 'x y.3', '', `a.${a.epoch - 1}`]
    const since = performance.now()
    for (const owner of [...gone, c.owner]) {
      expect(await a.working(owner, 's1', ['mine'])).toEqual(owner.startsWith('a.') ? [] : null)
      await a.release('s1', owner)
      a.cancel(owner, 's1', ['mine'])
      if (owner !== c.owner) expect(a.lives(owner)).toBe(false)
    }
    expect(performance.now() - since).toBeLessThan(requestMs)
    expect(ofB.asked).toEqual([])
    silence(proxy)
    const asked = performance.now()
    const both = [a.working(b.owner, 's1', ['mine']), a.release('s1', b.owner)]
    expect(await Promise.all(both)).toEqual([null, undefined])
    expect(performance.now() - asked).toBeLessThan(requestMs * 1.5)
    heal(proxy)
  })

  test('NO4 requests: whoever goes while it is asked is not waited for any longer', async () => {
    const { proxy, over } = await proxied()
    const a = await worker('a', { requestMs: 60_000 })
    const b = await worker('b', { link: over })
    b.serve(work())
    await over.connection.flush()
    await expect.poll(() => a.lives(b.owner), wait).toBe(true)
    silence(proxy)
    const asked = performance.now()
    const both = [a.working(b.owner, 's1', ['mine']), a.release('s1', b.owner)]
    expect(await Promise.all(both)).toEqual([null, undefined])
    expect(performance.now() - asked).toBeLessThan(10_000)
    expect(a.lives(b.owner)).toBe(false)
    heal(proxy)
  })

  test('WQ2 requests: what is wrong gets an error, and the next one is answered', async () => {
    const a = await worker('a')
    const done = work()
    a.serve(done)
    const ask = async (text: string) => {
      const { data } = await link.connection.request(subjects.worker('a'), text, { timeout: 2_000 })
      return JSON.parse(Buffer.from(data).toString()) as { effects?: string[]; error?: { code: string } }
    }
    const { epoch } = a
    const wrong: readonly unknown[] = [
      null,
      {},
      { method: 'delete', epoch, shard: 's1' },
      { method: 'release', epoch: 'x', shard: 's1' },
      { method: 'release', epoch, shard: 's1', more: 1 },
      { method: 'cancel', epoch, shard: 's1' },
      { method: 'working', epoch, shard: 's1', effects: [3] },
      { method: 'working', epoch, shard: 's1', effects: Array.from({ length: 513 }, () => 'x') },
      { method: 'working', epoch, shard: 's'.repeat(65), effects: [] },
    ]
    for (const each of wrong) {
      expect((await ask(JSON.stringify(each))).error?.code, JSON.stringify(each)).toBe('ENVELOPE_INVALID')
    }
    for (const text of ['', 'not JSON', '\xff{']) expect((await ask(text)).error?.code).toBe('ENVELOPE_INVALID')
    expect((await ask('x'.repeat(70_000))).error?.code).toBe('ENVELOPE_TOO_LARGE')
    expect((await ask(JSON.stringify({ method: 'release', epoch: epoch - 1, shard: 's1' }))).error?.code).toBe(
      'SHARD_ELSEWHERE',
    )
    link.connection.publish(subjects.worker('a'), 'nobody waits')
    expect(done.asked).toEqual([])
    expect(await ask(JSON.stringify({ method: 'release', epoch, shard: 's1' }))).toEqual({ effects: [] })
    expect(done.asked).toEqual(['leave s1'])
  })

  test('WQ2 requests: an answer that is wrong is none, and what was not asked about is not believed', async () => {
    const a = await worker('a')
    const answers = ['not JSON', '{"effects":3}', '{}', 'x'.repeat(70_000), '{"effects":["mine","other"]}']
    const subscription = link.connection.subscribe(subjects.worker('x'), {
      callback: (_, message) => void message.respond(answers.shift() ?? ''),
    })
    for (let left = answers.length; left > 1; left--) expect(await a.working('x.1', 's1', ['mine'])).toBeNull()
    expect(await a.working('x.1', 's1', ['mine'])).toEqual(['mine'])
    subscription.unsubscribe()
  })

  test('WQ2 requests: more effects than fit into one request are asked for in several', async () => {
    const [a, b] = [await worker('a'), await worker('b')]
    const done = work()
    b.serve(done)
    const effects = Array.from({ length: 1_200 }, (_, index) => `mine${index}-${'0'.repeat(40)}`)
    expect(await a.working(b.owner, 's1', effects)).toEqual(effects)
    expect(done.asked).toEqual(['working s1 512', 'working s1 512', 'working s1 176'])
  })
})
