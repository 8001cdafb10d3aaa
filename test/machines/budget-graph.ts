/** Model-based test of the budget pool, a part of `graphs.test.ts`. */
import { test } from 'vitest'
import { poolMachine } from '../../machines/index.js'
import * as pools from '../support/budget-pool.js'
import { cover, type Message } from '../support/machine-driver.js'
import { covers, type Model } from '../support/machine-graph.js'

test('graph of the budget pool: the runtime takes each step as the model does, and none is left out', () => {
  interface Books {
    readonly holders: Readonly<Record<string, { readonly number: number }>>
    readonly waiting: readonly { readonly sender: string; readonly number: number }[]
    readonly until: number
  }
  const data = { limits: { modelCalls: 3 }, share: { modelCalls: 2 }, window: null, waitMs: 500 }
  const input: { readonly self: string; readonly data: object } = { self: 'pool/main', data }
  const [a, b] = ['a/budget/r1', 'b/budget/r1'] as const
  const last = ({ holders, waiting }: Books, keeper: string): number =>
    Math.max(
      holders[keeper]?.number ?? 0,
      ...waiting.filter(({ sender }) => sender === keeper).map(({ number }) => number),
    )
  const said = (books: Books, keeper: string, at: number): Message[] => {
    const number = last(books, keeper)
    if (number > 1) return []
    return [
      pools.ask(keeper, number + 1, { at, until: books.until, used: number === 0 ? 0 : 1 }),
      ...(number === 0 ? [] : [pools.ask(keeper, number, { at, until: books.until })]),
      pools.settle(keeper, number + 1, { at, until: books.until, used: 1, final: number > 0 }),
    ]
  }
  const common: Message[] = [
    { type: 'crew.raise', limits: { modelCalls: 4 } },
    { type: 'crew.raise', limits: { modelCalls: 4 }, agent: 'x' },
    {
      type: 'mail.returned',
      message: 'share.given',
      code: 'CREW_UNKNOWN',
      reason: '',
      sender: 'a/shard/self',
      actor: 'budget/r1',
    },
  ]
  const dues = ({ waiting }: Books, at: number): Message[] =>
    waiting.map(({ sender: keeper, number }) => ({ type: 'share.due', keeper, number, at }))
  const plain: Model<Books> = {
    inputs: [input],
    messages: (books) => [...said(books, a, 10), ...said(books, b, 10), ...common, ...dues(books, 510)],
  }
  const redefined = { type: 'crew.redefined', crew: { pool: { ...data, limits: { modelCalls: 1 } } } }
  const hourly = { self: 'pool/main', data: { ...data, window: 'hour' } }
  const windows: Model<Books> = {
    inputs: [hourly],
    messages: (books) => [
      ...(books.until > 3_600_000 ? [] : [...said(books, a, 10), ...said(books, a, 3_600_000)]),
      ...said(books, b, 20),
      ...dues(books, 3_600_000),
      ...dues({ ...books, waiting: [{ sender: b, number: 9 }] }, 30),
      ...[redefined, { type: 'actor.resumed' }],
    ],
  }
  covers<Books>(cover(poolMachine), [plain, windows], {
    atLeast: 100,
    within: 'two keepers with two messages each, two windows',
  })
})
