import { Kvm } from '@nats-io/kv'
import { expect, test } from 'vitest'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { NatsLease } from '../../transport/nats-lease.js'
import { encodeAnnouncement, NatsMembership, ownerName, partsOf, processOf } from '../../transport/nats-membership.js'
import { Subjects } from '../../transport/subjects.js'
import { startLinkProxy } from '../support/link-proxy.js'
import type { NatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'

const leaseMs = 1_000
let server: NatsServer
let link: NatsLink
let count = 0
useNats((nats) => {
  ;({ server, link } = nats)
})

/** A list, and what it said each time it changed. */
async function opened(subjects: Subjects, over = link): Promise<{ list: NatsMembership; seen: string[] }> {
  const seen: string[] = []
  const list = await NatsMembership.open(over, subjects, leaseMs)
  list.onChange = () => void seen.push(names(list))
  return { list, seen }
}
const names = (list: NatsMembership) => [...list.members.keys()].sort().join()

test('NM1 membership: who comes and who goes is seen at once, a renewal is no change', async () => {
  const subjects = new Subjects(`members${++count}`)
  const take = (worker: string) =>
    NatsLease.take(link, subjects, { worker, ttlMs: leaseMs, announcement: { crews: { report: worker } } })
  const first = await take('a')
  const { list, seen } = await opened(subjects)
  expect(names(list)).toBe('a')
  const since = performance.now()
  const second = await take('b')
  await expect.poll(() => names(list)).toBe('a,b')
  expect(list.members.get('b')).toMatchObject({ worker: 'b', crews: { report: 'b' } })
  await first.release()
  await expect.poll(() => names(list)).toBe('b')
  expect(performance.now() - since).toBeLessThan(leaseMs)
  await expect.poll(() => list.members.get('b')!.revision, { timeout: 3_000 }).toBeGreaterThan(second.epoch)
  expect(seen).toEqual(['a,b', 'b'])
  list.close()
  await second.release()
})

test('NM1 membership: a lease that runs out is seen, and so is a next one of that name', async () => {
  const subjects = new Subjects(`members${++count}`)
  const proxy = await startLinkProxy(server.port)
  const over = await connectNats({ servers: `127.0.0.1:${proxy.port}` })
  const lease = await NatsLease.take(over, subjects, { worker: 'a', ttlMs: leaseMs })
  const { list } = await opened(subjects)
  proxy.up = 'swallow'
  const since = performance.now()
  await expect.poll(() => names(list), { timeout: 5_000 }).toBe('')
  expect(performance.now() - since).toBeLessThan(leaseMs * 2.5)
  const next = await NatsLease.take(link, subjects, { worker: 'a', ttlMs: leaseMs })
  await expect.poll(() => names(list)).toBe('a')
  expect(next.epoch).toBeGreaterThan(lease.epoch)
  list.close()
  await next.release()
  await over.connection.close()
  await proxy.close()
})

test('NM1 membership: a lease that runs out is seen then, whenever the list was looked at last', async () => {
  const subjects = new Subjects(`members${++count}`)
  const ttl = 3_000
  const bucket = await new Kvm(link.connection).create(subjects.stream('workers'), { ttl, history: 1 })
  const lists: NatsMembership[] = []
  // They look at the list a third of a lease apart, each at another time.
  for (let index = 0; index < 8; index++) {
    lists.push(await NatsMembership.open(link, subjects, ttl))
    await new Promise((resolve) => setTimeout(resolve, ttl / 3 / 8))
  }
  await bucket.put('a', encodeAnnouncement({ crews: {} }))
  const endsAt = performance.now() + ttl
  await expect.poll(() => lists.map(names)).toEqual(lists.map(() => 'a'))
  const seenAt = lists.map(
    (list) => new Promise<number>((resolve) => (list.onChange = () => resolve(performance.now()))),
  )
  // The server looks for what is over four times a second.
  expect(Math.max(...(await Promise.all(seenAt))) - endsAt).toBeLessThan(700)
  for (const list of lists) list.close()
})

test('NM1 membership: a lease that runs out while the list is asked for is seen as soon', async () => {
  const subjects = new Subjects(`members${++count}`)
  const ttl = 250
  const bucket = await new Kvm(link.connection).create(subjects.stream('workers'), { ttl, history: 1 })
  // Lists that are asked for all the time: the lease ends in the middle of some answer.
  const lists = await Promise.all(Array.from({ length: 8 }, () => NatsMembership.open(link, subjects, 3)))
  for (let round = 0; round < 15; round++) {
    await bucket.put('a', encodeAnnouncement({ crews: {} }))
    await expect.poll(() => lists.map(names), { interval: 5 }).toEqual(lists.map(() => 'a'))
    await expect.poll(() => lists.map(names), { interval: 5, timeout: 1_500 }).toEqual(lists.map(() => ''))
  }
  for (const list of lists) list.close()
})

test('NM2 membership: whoever is cut off declares nobody dead, and catches up afterwards', async () => {
  const subjects = new Subjects(`members${++count}`)
  const proxy = await startLinkProxy(server.port)
  const over = await connectNats({ servers: `127.0.0.1:${proxy.port}` })
  const a = await NatsLease.take(link, subjects, { worker: 'a', ttlMs: leaseMs })
  const { list, seen } = await opened(subjects, over)
  proxy.up = 'swallow'
  proxy.down = 'swallow'
  const b = await NatsLease.take(link, subjects, { worker: 'b', ttlMs: leaseMs })
  const other = await opened(subjects)
  await expect.poll(() => other.list.members.get('b')?.revision ?? 0, { timeout: 5_000 }).toBeGreaterThan(b.epoch + 2)
  expect(names(list)).toBe('a')
  expect(seen).toEqual([])
  proxy.up = 'pass'
  proxy.down = 'pass'
  proxy.cut()
  await expect.poll(() => names(list), { timeout: 10_000 }).toBe('a,b')
  for (const each of [list, other.list]) each.close()
  for (const lease of [a, b]) await lease.release()
  await over.connection.close()
  await proxy.close()
})

test('NM3 membership: another announcement and another lease of a name are told, a renewal is not', async () => {
  const subjects = new Subjects(`members${++count}`)
  const first = await NatsLease.take(link, subjects, { worker: 'a', ttlMs: leaseMs })
  const { list, seen } = await opened(subjects)
  const began = performance.now()
  const told = () => ({ epoch: list.members.get('a')?.epoch, crews: list.members.get('a')?.crews })
  await expect.poll(() => list.members.get('a')!.revision, { timeout: 3_000 }).toBeGreaterThan(first.epoch + 1)
  expect(seen).toEqual([])
  await first.announce({ crews: { report: '2' } })
  await expect.poll(told).toEqual({ epoch: first.epoch, crews: { report: '2' } })
  expect(seen).toEqual(['a'])
  await first.release()
  const second = await NatsLease.take(link, subjects, { worker: 'a', ttlMs: leaseMs })
  await expect.poll(told).toEqual({ epoch: second.epoch, crews: {} })
  expect(seen.slice(-1)).toEqual(['a'])
  await expect.poll(() => list.lastSeen(`a.${second.epoch}`), { timeout: 3_000 }).not.toBe(null)
  expect(list.lastSeen(`a.${first.epoch}`)).toBeGreaterThanOrEqual(began)
  expect(list.lastSeen('a.0')).toBe(null)
  list.close()
  await second.release()
})

test('NM3 membership: another lease is told also when nobody saw the end of the one before', async () => {
  const subjects = new Subjects(`members${++count}`)
  const { list, seen } = await opened(subjects)
  const put = (epoch: number) =>
    link.connection.request(`$KV.${subjects.stream('workers')}.a`, JSON.stringify({ crews: {}, epoch }))
  for (const epoch of [5, 5, 9, 9]) await put(epoch)
  await expect.poll(() => list.members.get('a')).toMatchObject({ epoch: 9, revision: 4 })
  expect(seen).toEqual(['a', 'a'])
  expect(list.lastSeen('a.5')).not.toBe(null)
  list.close()
})

test('NM4 membership: leases of one process are known to be its, and who gave its lease back has ended', async () => {
  const subjects = new Subjects(`members${++count}`)
  const { list } = await opened(subjects)
  const first = await NatsLease.take(link, subjects, { worker: 'a', ttlMs: leaseMs })
  const process = `a.${first.epoch}`
  await expect.poll(() => list.members.get('a')?.process).toBe(first.epoch)
  await first.release()
  await expect.poll(() => list.hasEnded(process)).toBe(true)
  const again = await NatsLease.take(link, subjects, { worker: 'a', ttlMs: leaseMs, process: first.epoch })
  await expect.poll(() => list.members.get('a')).toMatchObject({ epoch: again.epoch, process: first.epoch })
  // A renewal says it too, and a lease that only ran out has not ended.
  await expect.poll(() => list.members.get('a')!.revision, { timeout: 3_000 }).toBeGreaterThan(again.epoch)
  expect(list.members.get('a')?.process).toBe(first.epoch)
  const other = new Subjects(`members${++count}`)
  const { list: others } = await opened(other)
  const put = () => link.connection.request(`$KV.${other.stream('workers')}.b`, JSON.stringify({ crews: {}, epoch: 7 }))
  await put()
  await expect.poll(() => others.members.has('b')).toBe(true)
  await expect.poll(() => others.members.has('b'), { timeout: 3 * leaseMs + 2_000 }).toBe(false)
  expect(others.hasEnded('b.7')).toBe(false)
  for (const each of [list, others]) each.close()
  await again.release()
})

test('NM4 membership: the name of an owner tells its process, also to who never saw it', () => {
  const names = [ownerName('a', 7), ownerName('a', 9, 7), ownerName('a.b-1', 12, 7)]
  expect(names).toEqual(['a.7', 'a.9-7', 'a.b-1.12-7'])
  expect(names.map(processOf)).toEqual(['a.7', 'a.7', 'a.b-1.7'])
  expect(names.map(partsOf)).toEqual([
    { worker: 'a', epoch: 7, process: 7 },
    { worker: 'a', epoch: 9, process: 7 },
    { worker: 'a.b-1', epoch: 12, process: 7 },
  ])
  for (const none of ['', 'a', 'a.', 'a.x', '.7', 'a.7-', 'a.7-x'])
    expect(partsOf(none)).toEqual({ worker: none, epoch: 0, process: 0 })
})

test('NM1 membership: an entry that nobody can read is nobody', async () => {
  const subjects = new Subjects(`members${++count}`)
  const { list } = await opened(subjects)
  const put = (worker: string, text: string) =>
    link.connection.request(`$KV.${subjects.stream('workers')}.${worker}`, text)
  await put('x', 'not JSON')
  await put('y', '{"crews":3}')
  await put('z', '{"crews":{}}')
  await expect.poll(() => names(list)).toBe('z')
  list.close()
})

test('NM5 membership: who comes or offers more is told of by name; any other change is just one', async () => {
  const subjects = new Subjects(`members${++count}`)
  const list = await NatsMembership.open(link, subjects, leaseMs)
  const told: (readonly string[] | null)[] = []
  list.onChange = (joined) => void told.push(joined)
  const lease = await NatsLease.take(link, subjects, { worker: 'a', ttlMs: leaseMs })
  await expect.poll(() => told).toEqual([['a']])
  await lease.announce({ crews: { report: '1' } })
  await expect.poll(() => told.slice(1)).toEqual([['a']])
  await lease.announce({ crews: { report: '1', other: '1' } })
  await expect.poll(() => told.slice(2)).toEqual([['a']])
  await lease.announce({ crews: { report: '2', other: '1' } })
  await expect.poll(() => told.slice(3)).toEqual([null])
  await lease.announce({ crews: { report: '2' } })
  await expect.poll(() => told.slice(4)).toEqual([null])
  await lease.release()
  await expect.poll(() => told.slice(5)).toEqual([null])
  list.close()
})
