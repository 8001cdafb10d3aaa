import { describe, expect, test } from 'vitest'
import { type Fenced, type Placed, publishBehind } from '../../transport/fence.js'

const mark = { epoch: 7, kind: 'record', last: 12, hash: 'mine' }
const message: Fenced = { shard: 'a', mark, behind: 40, shared: true }
const refusal = new Error('wrong last sequence')
/** A server that refuses, or whose answer is lost; `last` is the end of the subject then. */
const refusing = (last: Placed | null) => ({
  publish: () => Promise.reject(refusal),
  last: () => Promise.resolve(last),
})
const placed = (at: number, of: Partial<typeof mark> = {}): Placed => {
  const theirs = { ...mark, ...of }
  return { at, mark: theirs, epoch: String(theirs.epoch) }
}
const code = (expected: string): unknown => expect.objectContaining({ code: expected })

describe('fence', () => {
  test('JJ1 fence: the server compares with the last message that the writer saw', async () => {
    const asked: unknown[] = []
    const publish = (id: string, behind: number) => {
      asked.push([id, behind])
      return Promise.resolve(41)
    }
    expect(await publishBehind(message, { publish, last: () => Promise.resolve(null) })).toBe(41)
    expect(asked).toEqual([['a:7:40:record:12:mine', 40]])
  })

  test('JJ2 fence: an own message that is there has landed, whatever the answer was', async () => {
    expect(await publishBehind(message, refusing(placed(41)))).toBe(41)
  })

  test('JJ2 fence: where nothing has landed the answer of the server counts', async () => {
    await expect(publishBehind(message, refusing(null))).rejects.toBe(refusal)
    await expect(publishBehind(message, refusing(placed(40, { hash: 'before' })))).rejects.toBe(refusal)
  })

  test.each([
    ['another owner', placed(41, { epoch: 8 })],
    ['another owner with the same content', { at: 41, mark: { ...mark, epoch: 8 }, epoch: '8' }],
    ['somebody whose message cannot be read', { at: 41, mark: null, epoch: '8' }],
  ])('JJ2 fence: a message of %s fences', async (_, last) => {
    await expect(publishBehind(message, refusing(last))).rejects.toEqual(code('SHARD_FENCED'))
  })

  test('JJ5 fence: an earlier message of the same owner is STORE_FAILED where owners change, else another owner', async () => {
    const late = placed(41, { last: 11, hash: 'earlier' })
    await expect(publishBehind(message, refusing(late))).rejects.toEqual(code('STORE_FAILED'))
    await expect(publishBehind({ ...message, shared: false }, refusing(late))).rejects.toEqual(code('SHARD_FENCED'))
  })
})
