import fc from 'fast-check'
import { expect, test } from 'vitest'
import { type Crews, offers, ownerOf, ownersAmong, Placement } from '../../transport/partitions.js'
import { partitionCount } from '../../transport/subjects.js'

const name = fc.stringMatching(/^[a-z0-9-]{1,12}$/)
const names = fc.uniqueArray(name, { minLength: 1, maxLength: 12 })
const sizeOf = (worker: string, workers: readonly string[]) =>
  ownersAmong(workers).filter((owner) => owner === worker).length

test('PA1 partitions: the owners follow from the names alone, and each partition has one', () => {
  fc.assert(
    fc.property(names, (workers) => {
      const owners = ownersAmong(workers)
      expect(ownersAmong([...workers].reverse())).toEqual(owners)
      expect(owners).toHaveLength(partitionCount)
      expect(owners.every((owner) => workers.includes(owner!))).toBe(true)
      expect(owners).toEqual(owners.map((_, partition) => ownerOf(partition, workers)))
    }),
  )
  expect(ownerOf(0, [])).toBeNull()
  expect(ownersAmong([])).toEqual(Array.from({ length: partitionCount }, () => null))
})

test('PA2 partitions: one that comes takes, one that goes leaves, and nothing else moves', () => {
  fc.assert(
    fc.property(names, name, (workers, other) => {
      const before = workers.filter((worker) => worker !== other)
      const [without, having] = [ownersAmong(before), ownersAmong([...before, other])]
      const moved = having.filter((owner, partition) => owner !== without[partition])
      expect(moved.every((owner) => owner === other)).toBe(true)
    }),
  )
})

test('PA2 partitions: three workers have a share each, none of them more than half', () => {
  for (let round = 0; round < 200; round++) {
    const workers = ['a', 'b', 'c'].map((letter) => `${letter}-${round}`)
    const sizes = workers.map((worker) => sizeOf(worker, workers))
    expect(Math.max(...sizes)).toBeLessThan(partitionCount * 0.6)
    expect(Math.min(...sizes)).toBeGreaterThan(partitionCount * 0.1)
  }
})

const version = fc.constantFrom('1', '2', '3')
/** Workers with a crew `report` of some version; some have another crew, too, or that one only. */
const offering = fc.uniqueArray(fc.tuple(name, version, fc.constantFrom('report', 'both', 'survey')), {
  selector: ([worker]) => worker,
  maxLength: 12,
})
const crewsOf = (of: string, which: string): Crews => ({
  ...(which === 'survey' ? {} : { report: of }),
  ...(which === 'report' ? {} : { survey: '1' }),
})
const placementOf = (all: readonly (readonly [string, string, string])[]) =>
  new Placement(all.map(([worker, of, which]) => [worker, crewsOf(of, which)]))
const nobody: readonly null[] = Array.from({ length: partitionCount }, () => null)
const tableOf = (placement: Placement, crew: string) => nobody.map((_, at) => placement.ownersOf(crew)[at] ?? null)

test('PA3 placement: those of the version go before others, any of the name before none, and nobody else is chosen', () => {
  fc.assert(
    fc.property(offering, version, (all, wanted) => {
      const having = all.filter(([, , which]) => which !== 'survey')
      const equal = having.filter(([, of]) => of === wanted)
      const names = (some: typeof all) => some.map(([worker]) => worker)
      const placement = placementOf(all)
      expect(tableOf(placement, `report@${wanted}`)).toEqual(ownersAmong(names(equal.length > 0 ? equal : having)))
      // Of a version that is not known, as records of old tell it, all are equal.
      expect(tableOf(placement, 'report')).toEqual(ownersAmong(names(having)))
      expect(tableOf(placement, 'report@9')).toEqual(ownersAmong(names(having)))
      expect(tableOf(placement, '')).toEqual(ownersAmong(names(all)))
      expect(tableOf(placement, 'nobody@1')).toEqual(nobody)
    }),
  )
  expect(tableOf(new Placement([['tools', {}]]), '')).toEqual(nobody)
  expect(['report', 'report@2', 'survey@1', '', 'toString'].map((crew) => offers({ report: '1' }, crew))).toEqual([
    ...[true, true, false, true, false],
  ])
})

test('PA2 placement: one that comes or goes moves what it gets or had, unless it is the first or last of its version', () => {
  fc.assert(
    fc.property(offering, name, version, version, (all, other, of, wanted) => {
      const before = all.filter(([worker]) => worker !== other)
      const without = tableOf(placementOf(before), `report@${wanted}`)
      const having = tableOf(placementOf([...before, [other, of, 'report']]), `report@${wanted}`)
      const isFirst = of === wanted && !before.some(([, each, which]) => each === of && which !== 'survey')
      const moved = having.filter((owner, partition) => owner !== without[partition])
      expect(moved.every((owner) => owner === other)).toBe(true)
      if (isFirst) expect(having.every((owner) => owner === other)).toBe(true)
    }),
  )
})

test('PA4 placement: a shard that takes the version of its owner stays with it, whoever that is', () => {
  fc.assert(
    fc.property(offering, fc.constantFrom('report', 'report@1', 'report@9'), (all, crew) => {
      const placement = placementOf(all)
      const versions = new Map(all.map(([worker, of]) => [worker, of]))
      tableOf(placement, crew).forEach((owner, partition) => {
        if (owner !== null) expect(tableOf(placement, `report@${versions.get(owner)}`)[partition]).toBe(owner)
      })
    }),
  )
})

test('PA5 placement: whatever is asked for, a table is made once for each crew and version that is offered', () => {
  const placement = placementOf([
    ['a', '1', 'both'],
    ['b', '2', 'report'],
  ])
  const offered = ['', 'report', 'report@1', 'report@2', 'survey', 'survey@1']
  const unknown = Array.from({ length: 100 }, (_, index) => [`report@x${index}`, `survey@x${index}`, `x${index}@1`])
  const tables = [...offered, ...unknown.flat()].map((crew) => placement.ownersOf(crew))
  expect(new Set(tables.filter((table) => table.length > 0)).size).toBe(offered.length)
})
