import fc from 'fast-check'
import { expect, test } from 'vitest'
import { ownerOf, ownersAmong } from '../../transport/partitions.js'
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
