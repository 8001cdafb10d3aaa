import { describe, expect, test } from 'vitest'
import { type Fenced, type Placed, publishBehind } from '../../transport/fence.js'
import { code } from '../support/values.js'

const mark = { epoch: 7, kind: 'record', last: 12, hash: 'mine' }
const message: Fenced = { shard: 'a', mark, behind: 40, shared: true, copies: false }
const refusal = new Error('wrong last sequence')
/** A server that refuses, or whose answer is lost; `first` is what stands behind the writer's last one then. */
const refusing = (first: Placed | null) => ({
  publish: () => Promise.reject(refusal),
  after: () => Promise.resolve(first),
})
/** A server with copies that acknowledges. */
const acknowledging = (at: number, first: Placed | null) => ({
  publish: () => Promise.resolve(at),
  after: () => Promise.resolve(first),
})
const placed = (at: number, of: Partial<typeof mark> = {}): Placed => {
  const theirs = { ...mark, ...of }
  return { at, behind: 40, mark: theirs, epoch: String(theirs.epoch) }
}

describe('fence', () => {
  test('JJ1 fence: the server compares with the last message that the writer saw', async () => {
    const asked: unknown[] = []
    const publish = (id: string, behind: number) => {
      asked.push([id, behind])
      return Promise.resolve(41)
    }
    expect(await publishBehind(message, { publish, after: () => Promise.resolve(null) })).toBe(41)
    expect(asked).toEqual([['a:7:40:record:12:mine', 40]])
  })

  test('JJ2 fence: an own message that is there has landed, whatever the answer was', async () => {
    expect(await publishBehind(message, refusing(placed(41)))).toBe(41)
  })

  test('JJ2 fence: where nothing has landed the answer of the server counts', async () => {
    await expect(publishBehind(message, refusing(null))).rejects.toBe(refusal)
  })

  test.each([
    ['another owner', placed(41, { epoch: 8 })],
    ['another owner with the same content', { at: 41, behind: 40, mark: { ...mark, epoch: 8 }, epoch: '8' }],
    ['somebody whose message cannot be read', { at: 41, behind: 40, mark: null, epoch: '8' }],
  ])('JJ2 fence: a message of %s fences', async (_, last) => {
    await expect(publishBehind(message, refusing(last))).rejects.toEqual(code('SHARD_FENCED'))
  })

  test('JJ5 fence: an earlier message of the same owner is STORE_FAILED where owners change, else another owner', async () => {
    const late = placed(41, { last: 11, hash: 'earlier' })
    await expect(publishBehind(message, refusing(late))).rejects.toEqual(code('STORE_FAILED'))
    await expect(publishBehind({ ...message, shared: false }, refusing(late))).rejects.toEqual(code('SHARD_FENCED'))
  })

  test('JJ7 fence: a message that stands elsewhere than its writer saw counts for nothing, and fences nobody', async () => {
    for (const behind of [39, null])
      for (const epoch of [7, 8]) {
        const stray = { ...placed(41, { epoch }), behind }
        await expect(publishBehind(message, refusing(stray))).rejects.toEqual(code('STORE_FAILED'))
      }
  })

  test('JJ7 fence: with copies an acknowledged record counts only when it is the first at its place', async () => {
    const copied = { ...message, copies: true }
    expect(await publishBehind(copied, acknowledging(41, placed(41)))).toBe(41)
    const foreign = publishBehind(copied, acknowledging(42, placed(41, { epoch: 8 })))
    await expect(foreign).rejects.toEqual(code('SHARD_FENCED'))
    const earlier = publishBehind(copied, acknowledging(42, placed(41, { last: 11, hash: 'earlier' })))
    await expect(earlier).rejects.toEqual(code('STORE_FAILED'))
    await expect(publishBehind(copied, acknowledging(41, null))).rejects.toEqual(code('STORE_FAILED'))
    // The same one came twice: the first is it.
    expect(await publishBehind(copied, acknowledging(42, placed(41)))).toBe(41)
  })
})
