import { expect, test } from 'vitest'
import { Recent } from '../../runtime/recent.js'

test('recent: the keys that were set last are there, and at most twice as many (RC1)', () => {
  const recent = new Recent<number>(3)
  for (let key = 0; key < 100; key += 1) {
    recent.set(String(key), key)
    const known = Array.from({ length: key + 1 }, (_, index) => index).filter((index) => recent.has(String(index)))
    expect(known.slice(-3)).toEqual([key - 2, key - 1, key].filter((index) => index >= 0))
    expect(known.length).toBeLessThanOrEqual(6)
  }
})

test('recent: what is set again stays, what is deleted is gone', () => {
  const recent = new Recent<string>(2)
  recent.set('a', 'first')
  recent.set('b', 'first')
  recent.set('a', 'second')
  recent.set('c', 'first')
  expect([recent.get('a'), recent.get('b'), recent.get('c')]).toEqual(['second', 'first', 'first'])
  recent.delete('a')
  expect([recent.has('a'), recent.get('a')]).toEqual([false, undefined])
})
