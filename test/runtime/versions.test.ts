/**
 * Versions of one crew among workers: who has a shard when its definition or the machines changed, and that it goes to and
 * fro between none.
 */
import { afterEach, expect, test } from 'vitest'
import { z } from 'zod'
import { crewVersion, nameIn } from '../../runtime/crew-version.js'
import { type Crew, defineAgent, defineCrew, defineTool } from '../../runtime/define.js'
import type { Journal } from '../../runtime/journal.js'
import { prepareCrew } from '../../runtime/prepared-crew.js'
import { fromRecord } from '../../runtime/record.js'
import { crewVersionOf, type Machines } from '../../runtime/state.js'
import { createMemoryStore, type MemoryStore } from '../../transport/memory-journal.js'
import { Placement } from '../../transport/partitions.js'
import { partitionOf } from '../../transport/subjects.js'
import {
  call,
  gate,
  openStage,
  override,
  quiet,
  resultsIn,
  say,
  shippedMachines,
  until,
} from '../support/crew-stage.js'
import { createManualClock } from '../support/manual-clock.js'
import { Owners } from '../support/owners.js'
import { code } from '../support/values.js'

const price = () => ({ input: 1_000_000, output: 2_000_000 })
/** As a stage has it: prices are part of a definition. */
const model = { call: async () => say(''), price, check: () => undefined, close: async () => undefined }
const hashOf = (crew: Crew): string => prepareCrew(crew, model).hash
const closing: (() => Promise<void>)[] = []
afterEach(async () => {
  for (const close of closing.splice(0)) await close()
})

/** Workers whose crews differ in their instructions, placed by the rule of NATS. */
function several() {
  const owners = new Owners()
  const store = createMemoryStore({ shared: true })
  const clock = createManualClock()
  const works = gate<string>()
  const work = defineTool({
    name: 'work',
    description: '',
    input: z.object({}),
    effect: 'pure',
    timeoutMs: 30_000,
    run: () => works.opened,
  })
  const crewOf = (instructions: string): Crew => {
    const lead = defineAgent({ name: 'lead', model: 'a:one', instructions, tools: [work] })
    return defineCrew({ name: 'pair', agents: { lead }, lead: 'lead' })
  }
  const versions = new Map<string, string>()
  owners.rule = (crew, living) => {
    const placement = new Placement(living.map((name) => [name, { pair: versions.get(name)! }]))
    return placement.ownersOf(crew)[partitionOf('pair')] ?? null
  }
  const worker = async (
    name: string,
    instructions: string,
    more: { readonly machines?: Machines; readonly journal?: (inner: Journal) => Journal } = {},
  ) => {
    const crew = crewOf(instructions)
    versions.set(name, hashOf(crew))
    const stage = await openStage({
      ...{ store, clock, member: owners.join(name), crews: [crew], ...more },
      model: (request) => (resultsIn(request).length === 0 ? call(['work']) : say('done')),
    })
    closing.push(() => stage.runtime.close())
    owners.tell()
    return { ...stage, crew, has: () => stage.worker.active.has('pair') }
  }
  return { owners, store, works, worker }
}

const types = ({ shards }: MemoryStore): string[] =>
  (shards.get('pair')?.records ?? []).flatMap((record) =>
    fromRecord('pair', record).map(({ envelope }) => envelope.body.type),
  )
const count = (store: MemoryStore, type: string): number => types(store).filter((each) => each === type).length
/** By the rule this one goes before the others, whatever they are called. */
const [second, first] = ['a', 'b'].sort((one, other) => {
  const [owner] = [
    new Placement([one, other].map((name) => [name, { pair: 'x' }])).ownersOf('pair')[partitionOf('pair')],
  ]
  return owner === one ? 1 : -1
}) as [string, string]

test('CV1 crew version: equal definitions have equal ones, and the name comes back', () => {
  const crew = (instructions: string) =>
    defineCrew({ agents: { lead: defineAgent({ model: 'a:one', instructions }) }, name: 'desk', lead: 'lead' })
  const [one, same, other] = ['x', 'x', 'y'].map((text) => crewVersionOf(prepareCrew(crew(text), model).definition))
  expect(one).toBe(same)
  expect(one).not.toBe(other)
  expect(one).toBe(crewVersion('desk', hashOf(crew('x'))))
  expect([one, 'desk', ''].map((each) => nameIn(each!))).toEqual(['desk', 'desk', ''])
  expect([crewVersionOf(''), crewVersion('desk')]).toEqual(['', 'desk'])
})

test('PA4 versions: a shard stays with its version while one has it, goes to another then, and not back', async () => {
  const { owners, store, works, worker } = several()
  const old = await worker(second, 'old')
  await (await old.runtime.spawn(old.crew)).start('go').id
  const next = await worker(first, 'new')
  await quiet()
  expect([old.has(), next.has(), count(store, 'shard.taken')]).toEqual([true, false, 1])
  await expect(next.worker.shard('pair')).rejects.toEqual(code('SHARD_ELSEWHERE'))
  owners.expire(second, true)
  owners.tell()
  await until(next.has)
  await until(() => count(store, 'crew.defined') === 2 && count(store, 'effect.interrupted') === 1)
  expect(store.shards.get('pair')!.head.crew).toBe(crewVersion('pair', hashOf(next.crew)))
  owners.renew(second)
  await quiet()
  expect([old.has(), next.has(), count(store, 'shard.taken')]).toEqual([false, true, 2])
  works.open('x')
  await until(() => count(store, 'tool.succeeded') === 1)
})

test('versions: what cannot go on under other code waits untouched for whoever has its version', async () => {
  const { owners, store, works, worker } = several()
  const guards = { counted: () => true }
  const machines = { ...shippedMachines, agent: shippedMachines['agent']!.provide({ guards } as never) }
  const old = await worker('c', 'old')
  const crew = await old.runtime.spawn(old.crew)
  await crew.start('go').id
  await until(() => types(store).includes('model.replied'))
  const others = [await worker(first, 'new', { machines }), await worker(second, 'newer', { machines })]
  owners.expire('c', true)
  owners.tell()
  const before = types(store)
  for (let look = 0; look < 3; look += 1) {
    owners.tell()
    await quiet()
    const answers = others.map(({ worker: { shard } }, index) => shard.call(others[index]!.worker, 'pair'))
    expect(
      (await Promise.allSettled(answers)).map((each) => (each as { reason: { code: string } }).reason.code),
    ).toEqual(['UPGRADE_REFUSED', 'SHARD_ELSEWHERE'])
  }
  expect(types(store)).toEqual(before)
  owners.renew('c')
  await until(old.has)
  works.open('x')
  // It was under way all the time, for a process that lost its lease.
  await until(() => owners.sent.length === 1)
  await owners.deliver(old.worker)
  await until(() => count(store, 'model.replied') === 2)
})

test('TA6 takeover: what was another version when it was looked at is left to its owner', async () => {
  const { owners, store, works, worker } = several()
  let stale: Journal['head'] | null = null
  const journal = (inner: Journal): Journal =>
    override(inner, {
      head: (shard) => (stale ?? inner.head.bind(inner))(shard),
      refresh: (shard) => {
        stale = null
        return inner.refresh(shard)
      },
    })
  const old = await worker(first, 'old', { journal })
  await (await old.runtime.spawn(old.crew)).start('go').id
  const next = await worker(second, 'new')
  const head = store.shards.get('pair')!.head
  owners.expire(first, true)
  owners.tell()
  await until(() => count(store, 'crew.defined') === 2)
  stale = async () => head
  const asked: string[] = []
  owners.byName(first)!.release = async (_, owner) => void asked.push(owner)
  owners.renew(first)
  await quiet()
  await expect(old.worker.shard('pair')).rejects.toEqual(code('SHARD_ELSEWHERE'))
  expect([next.has(), asked, count(store, 'shard.taken')]).toEqual([true, [], 2])
  works.open('x')
})
