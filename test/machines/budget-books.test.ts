/** The keeper's books after any order of anything, compared with books that the test keeps itself. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type Amounts, budgetMachine, dimensions, type Limits, nothing } from '../../machines/index.js'
import {
  type Account,
  accounts,
  amounts,
  charge,
  close,
  grants,
  open,
  raise,
  report,
  reserve,
  settle,
  spentOf,
  startKeeper,
  waiting,
} from '../support/budget.js'
import type { Driver, Message } from '../support/machine-driver.js'

type Move =
  | { readonly move: 'open' | 'refund'; readonly account: number; readonly limits: Limits; readonly soft?: boolean }
  | { readonly move: 'reserve'; readonly account: number; readonly input: number; readonly output: number }
  | {
      readonly move: 'settle'
      readonly grant: number
      readonly share: number
      readonly real: boolean
      readonly tools: number
    }
  | { readonly move: 'release'; readonly grant: number }
  | { readonly move: 'charge'; readonly account: number; readonly tools: number }
  | { readonly move: 'raise'; readonly account: number; readonly limits: Limits }
  | { readonly move: 'sweep' | 'report' }

/** Accounts of the tree with their parents. */
const tree: readonly (readonly [name: string, parent: string | null])[] = [
  ['run', null],
  ['a', 'run'],
  ['b', 'run'],
  ['aa', 'a'],
]

const limits = fc.record(
  {
    nanoUsd: fc.nat(2_000_000),
    tokens: fc.nat(2_000),
    modelCalls: fc.nat(12),
    toolCalls: fc.nat(12),
  },
  { requiredKeys: [] },
) as fc.Arbitrary<Limits>
const account = fc.nat(tree.length - 1)
const grant = fc.nat(30)
const move: fc.Arbitrary<Move> = fc.oneof(
  {
    weight: 2,
    arbitrary: fc.record({
      move: fc.constantFrom('open' as const, 'refund' as const),
      account,
      limits,
      soft: fc.boolean(),
    }),
  },
  { weight: 1, arbitrary: fc.record({ move: fc.constant('raise' as const), account, limits }) },
  {
    weight: 5,
    arbitrary: fc.record({
      move: fc.constant('reserve' as const),
      account,
      input: fc.nat(200),
      output: fc.integer({ min: 1, max: 300 }),
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      move: fc.constant('settle' as const),
      grant,
      share: fc.integer({ min: 0, max: 150 }),
      real: fc.boolean(),
      tools: fc.nat(2),
    }),
  },
  { weight: 1, arbitrary: fc.record({ move: fc.constant('release' as const), grant }) },
  { weight: 1, arbitrary: fc.record({ move: fc.constant('charge' as const), account, tools: fc.nat(4) }) },
  { weight: 1, arbitrary: fc.record({ move: fc.constantFrom('sweep' as const, 'report' as const) }) },
)

/** An estimate of nothing makes room that the real bill takes back: by so much a limit is passed. */
const estimatedAtNothing: Move[] = [
  { move: 'reserve', account: 0, input: 0, output: 1 },
  { move: 'settle', grant: 1, share: 0, real: false, tools: 0 },
  { move: 'open', account: 1, limits: { nanoUsd: 1_001 } },
]

/** What the test itself knows about a grant. */
interface Known {
  readonly account: string
  readonly worst: Amounts
  /** What counts as spent for it; null while it is held. */
  counted: Amounts | null
  tools: number
  real: boolean
}

/** Plays moves against a keeper and keeps books of its own. */
class Game {
  readonly keeper: Driver
  readonly known = new Map<string, Known>()
  readonly opened = new Set(['run'])
  charged = 0
  /** What settlements exceeded their grants by, and tool calls nobody was asked for: by so much limits may be passed. */
  readonly excess = { nanoUsd: 0, tokens: 0, modelCalls: 0, toolCalls: 0 }
  /** By so much one call may pass the limits of a soft root. */
  readonly #most = { ...nothing }
  readonly #soft: boolean
  #grants = 0

  constructor(root: Limits, soft: boolean) {
    this.keeper = startKeeper(root, budgetMachine, soft)
    this.#soft = soft
  }

  play(move: Move): void {
    switch (move.move) {
      case 'open': {
        const [name, parent] = tree[move.account]!
        if (parent === null || !this.opened.has(parent)) return
        this.opened.add(name)
        return this.#send({ ...open(name, move.limits, parent), ...(move.soft === true ? { soft: true } : {}) })
      }
      case 'raise':
        return this.#send(raise(tree[move.account]![0], move.limits, 'by'))
      case 'refund':
        return this.#send({ type: 'budget.refund', account: tree[move.account]![0] })
      case 'reserve': {
        const [name] = tree[move.account]!
        if (!this.opened.has(name)) return
        const id = `g${(this.#grants += 1)}`
        return this.#send(reserve(id, { account: name, inputTokens: move.input, maxOutputTokens: move.output }))
      }
      case 'settle':
        return this.#settle(`g${move.grant}`, move.share, move.real, move.tools)
      case 'release': {
        const id = `g${move.grant}`
        if (grants(this.keeper)[id]?.state === 'held') this.known.delete(id)
        return this.#send({ type: 'budget.release', grant: id })
      }
      case 'charge': {
        const [name] = tree[move.account]!
        if (!this.opened.has(name)) return
        this.#send(charge(move.tools, name))
        if (this.keeper.to('agent/a')[0]?.type !== 'budget.granted') return
        this.charged += move.tools
        this.#most.toolCalls = Math.max(this.#most.toolCalls, move.tools)
        return
      }
      case 'sweep': {
        const before = grants(this.keeper)
        if (this.keeper.timers.size === 0) return
        this.keeper.fire('sweep')
        for (const [id, { state }] of Object.entries(grants(this.keeper))) {
          const known = this.known.get(id)
          if (known !== undefined && state === 'estimated' && before[id]?.state === 'held') known.counted = known.worst
        }
        return this.#look()
      }
      case 'report':
        return this.#send(report)
    }
  }

  #settle(id: string, share: number, real: boolean, tools: number): void {
    const known = this.known.get(id)
    const spent =
      known === undefined
        ? amounts(5, 5)
        : {
            nanoUsd: Math.floor((known.worst.nanoUsd * share) / 100),
            tokens: Math.floor((known.worst.tokens * share) / 100),
            modelCalls: 1,
            toolCalls: 0,
          }
    if (known !== undefined && !known.real) {
      for (const dimension of dimensions) {
        this.excess[dimension] += Math.max(
          0,
          spent[dimension] - Math.min(known.worst[dimension], (known.counted ?? known.worst)[dimension]),
        )
      }
      this.excess.toolCalls += tools
      known.counted = spent
      known.tools += tools
      known.real = real
    }
    this.#send(settle(id, spent, real, tools))
  }

  #send(message: Message): void {
    this.keeper.send(message)
    this.#look()
  }

  #look(): void {
    for (const message of this.keeper.to('agent/a')) {
      const { type, grant: id, worst } = message as { type: string; grant: string; worst: Amounts }
      if (type !== 'budget.granted' || id === '' || this.known.has(id)) continue
      for (const dimension of dimensions) this.#most[dimension] = Math.max(this.#most[dimension], worst[dimension])
      this.known.set(id, {
        account: grants(this.keeper)[id]?.account ?? 'run',
        worst,
        counted: null,
        tools: 0,
        real: false,
      })
    }
  }

  /** What was spent by the books of the test. */
  spent(): Amounts {
    const sum = { nanoUsd: 0, tokens: 0, modelCalls: 0, toolCalls: this.charged }
    for (const { counted, tools } of this.known.values()) {
      for (const dimension of dimensions) sum[dimension] += (counted ?? nothing)[dimension]
      sum.toolCalls += tools
    }
    return sum
  }

  check(): void {
    const all = accounts(this.keeper)
    const open = Object.values(grants(this.keeper)).filter(({ state }) => state === 'held')
    for (const [name, { limits: own, held, spent, parent }] of Object.entries(all)) {
      for (const dimension of dimensions) {
        const where = `${name} ${dimension}`
        expect(held[dimension], where).toBeGreaterThanOrEqual(0)
        expect(spent[dimension], where).toBeGreaterThanOrEqual(0)
        expect(Number.isInteger(held[dimension] + spent[dimension]), where).toBe(true)
        const limit = own[dimension]
        if (limit !== undefined) {
          const over = parent === null ? this.excess[dimension] + (this.#soft ? this.#most[dimension] : 0) : 0
          expect(held[dimension] + spent[dimension], where).toBeLessThanOrEqual(limit + over)
        }
        if (limit === undefined && parent !== null) {
          expect(held[dimension] + spent[dimension], where).toBe(0)
          continue
        }
        const grantsHeld = open
          .filter((grant) => payer(all, grant.account, dimension) === name)
          .reduce((sum, grant) => sum + grant.worst[dimension], 0)
        const carved = Object.values(all)
          .filter((child) => child.parent !== null && child.limits[dimension] !== undefined)
          .filter((child) => payer(all, child.parent!, dimension) === name)
          .reduce((sum, child) => sum + child.limits[dimension]!, 0)
        expect(held[dimension], `${where}: grants and children`).toBe(grantsHeld + carved)
      }
    }
    if (open.length === 0) expect(waiting(this.keeper)).toEqual([])
  }
}

function payer(all: Record<string, Account>, name: string, dimension: keyof Amounts): string {
  const own = all[name]!
  return own.parent === null || own.limits[dimension] !== undefined ? name : payer(all, own.parent, dimension)
}

describe('budget: any order of anything', () => {
  test('budget: limits hold but for settlements above their grants, carves add up, nothing is negative', () => {
    fc.assert(
      fc.property(limits, fc.boolean(), fc.array(move, { maxLength: 40 }), (root, soft, moves) => {
        const game = new Game(root, soft)
        for (const each of moves) {
          game.play(each)
          game.check()
        }
      }),
      { numRuns: 300 },
    )
  }, 60_000)

  test('budget: what is spent is the sum of the bills, whatever came twice, late or estimated', () => {
    fc.assert(
      fc.property(limits, fc.boolean(), fc.array(move, { maxLength: 40 }), (root, soft, moves) => {
        const game = new Game(root, soft)
        for (const each of moves) game.play(each)
        expect(spentOf(game.keeper)).toEqual(game.spent())
        for (const [id, known] of [...game.known]) {
          if (!known.real) game.play({ move: 'settle', grant: Number(id.slice(1)), share: 50, real: true, tools: 0 })
        }
        for (const id of [...game.known.keys()])
          game.play({ move: 'settle', grant: Number(id.slice(1)), share: 140, real: true, tools: 1 })
        expect(spentOf(game.keeper)).toEqual(game.spent())
        game.check()
      }),
      { numRuns: 300, examples: [[{ nanoUsd: 2_000 }, false, estimatedAtNothing]] },
    )
  }, 60_000)

  test('budget: every request is granted or refused once all grants are settled', () => {
    fc.assert(
      fc.property(limits, fc.boolean(), fc.array(move, { maxLength: 40 }), (root, soft, moves) => {
        const game = new Game(root, soft)
        for (const each of moves) game.play(each)
        for (let rest = 100; rest > 0; rest -= 1) {
          const [held] = Object.entries(grants(game.keeper)).filter(([, { state }]) => state === 'held')
          if (held === undefined) break
          game.play({ move: 'settle', grant: Number(held[0].slice(1)), share: 100, real: true, tools: 0 })
        }
        expect(waiting(game.keeper)).toEqual([])
        game.keeper.send(close)
        expect(game.keeper.to('crew/main')).toMatchObject([{ spent: game.spent() }])
      }),
      { numRuns: 200 },
    )
  }, 60_000)
})
