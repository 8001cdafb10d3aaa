/** The judge of workers knows what the same work is: what it takes for three deaths is what the runtime counts. */
import { expect, test } from 'vitest'
import type { RecordedCommit } from '../../runtime/record.js'
import { givenUpOf, judgeGivenUp, type WorkerFault } from './worker-judge.js'

const lead = 'agent/lead-r3'
/** A commit at so many seconds. */
const commit = (second: number, from: string, to: string, body: object): RecordedCommit =>
  ({
    envelope: { from, to, at: second * 10_000, cause: '', values: [], body },
    digest: new Uint8Array(),
  }) as unknown as RecordedCommit
const taken = (second: number, worker: string): RecordedCommit =>
  commit(second, 'shard/self', 'shard/self', { type: 'shard.taken', owner: `${worker}.${second}`, downMs: 0 })
const outcome = (second: number, type: string): RecordedCommit => commit(second, 'port/model', lead, { type })
const kill = (second: number, worker: string): WorkerFault => ({
  ...{ fault: 'kill', window: 'random', worker, at: second * 10_000, until: second * 10_000 },
})
const deaths = [kill(3, 'w1'), kill(6, 'w2'), kill(8, 'w3')]
const story = (between: string): RecordedCommit[] => [
  ...[taken(1, 'w1'), outcome(2, 'model.replied'), taken(4, 'w2'), outcome(5, between)],
  ...[taken(7, 'w3'), taken(9, 'w4'), outcome(10, 'effect.crashed')],
]
const judge = (between: string): string[] => judgeGivenUp(givenUpOf('c', story(between)), deaths)

test('judge of workers: a call that failed and is tried again is the same work, one that was answered is not', () => {
  expect(judge('effect.interrupted')).toEqual([])
  expect(judge('model.failed')).toEqual([])
  expect(judge('model.replied')).toEqual([expect.stringContaining('given up over 2 deaths')])
})
