/**
 * The accounts as they must be: a second bookkeeping, from the messages to the budget keepers.
 *
 * A grant is settled by the first real bill; until that comes, by the last estimate.
 */
import { type Amounts, nothing } from '../../machines/index.js'
import type { ShardState } from '../../runtime/state.js'
import type { Notes } from './notes.js'

/** What a keeper knows, as far as it is looked at. */
interface KeeperContext {
  readonly accounts: Readonly<
    Record<
      string,
      {
        readonly limits: Partial<Amounts>
        readonly soft: boolean
        readonly held: Amounts
        readonly spent: Amounts
      }
    >
  >
  readonly grants: Readonly<Record<string, { readonly state: 'held' | 'estimated'; readonly worst: Amounts }>>
  readonly waiting: readonly unknown[]
}

interface Settled {
  readonly amount: Amounts
  readonly real: boolean
}

interface Book {
  readonly generation: string
  readonly worst: Map<string, Amounts>
  readonly settled: Map<string, Settled>
  /** What was settled, and what of it lies above its grants. */
  readonly sum: Record<Dim, number>
  readonly over: Record<Dim, number>
  /** By how much one call may pass a soft limit: the dearest one that was granted. */
  readonly dearest: Record<Dim, number>
  /** Its root account is soft. */
  soft: boolean
  /** Highest limit that an account ever had; undefined counts as none. */
  readonly limits: Map<string, Record<string, number>>
}

type Dim = keyof Amounts
const dims = ['nanoUsd', 'tokens', 'modelCalls', 'toolCalls'] as const
/** Tool calls of one reply at most. */
const maxCalls = 64
/** Counters that only settlements change. */
const settledDims = ['nanoUsd', 'tokens', 'modelCalls'] as const

/** What was settled, and what of it lies above its grants. */
interface Sums {
  readonly sum: Record<Dim, number>
  readonly over: Record<Dim, number>
}

/** The books of one shard. */
export class Accounts {
  readonly #shard: string
  readonly #notes: Notes
  readonly #books = new Map<string, Book>()
  /** Of keepers whose name another one has now. */
  readonly #before: Sums = { sum: { ...nothing }, over: { ...nothing } }

  constructor(shard: string, notes: Notes) {
    this.#shard = shard
    this.#notes = notes
  }

  /** A model call was asked for under a grant. */
  granted(keeper: string, grant: string, worst: Amounts): void {
    this.#books.get(keeper)?.worst.set(grant, worst)
  }

  /** Highest limits that a keeper's root account had; counters without one are absent. */
  limitsOf(keeper: string): Readonly<Record<string, number>> | undefined {
    const book = this.#books.get(keeper)
    const limits = book?.limits.get('run')
    if (book?.soft !== true || limits === undefined) return limits
    return Object.fromEntries(Object.entries(limits).map(([dim, limit]) => [dim, limit + book.dearest[dim as Dim]]))
  }

  /** Of all keepers that there ever were. */
  get total(): Sums {
    const all = [this.#before, ...this.#books.values()]
    const of = (which: keyof Sums): Record<Dim, number> =>
      all.reduce((total, each) => added(total, each[which]), { ...nothing })
    return { sum: of('sum'), over: of('over') }
  }

  /** What keepers hold for calls. */
  heldIn({ actors }: ShardState, dim: Dim): number {
    const keepers = [...actors.values()].filter(({ kind }) => kind === 'budget')
    const grants = keepers.flatMap(({ snapshot }) => Object.values((snapshot.context as KeeperContext).grants))
    return grants.filter(({ state }) => state === 'held').reduce((sum, { worst }) => sum + worst[dim], 0)
  }

  /** Takes what a commit told the keepers, and compares their accounts with the books. */
  check(state: ShardState, lines: readonly string[]): void {
    let touched = false
    for (const line of lines) {
      if (!line.startsWith('budget/') && !line.startsWith('shard/actors')) continue
      touched = true
      if (line.startsWith('{"type":"budget.settle"', line.indexOf(' ') + 1)) this.#settle(line)
    }
    if (!touched) return
    const open = new Set<string>()
    for (const { body } of state.effects.values()) {
      if (body.type === 'model.call') open.add(`${body.keeper} ${body.grant}`)
    }
    for (const [address, actor] of state.actors) {
      if (actor.kind !== 'budget') continue
      const keeper = actor.snapshot.context as KeeperContext
      const book = this.#book(address, actor.generation)
      this.#checkGrants(address, keeper, book, open, lines)
      this.#checkSums(address, keeper, book, state.sequence)
      if (keeper.waiting.length > 0) this.#notes.reached('grant waited')
    }
  }

  /** What a run is said to have cost is what was settled by then. */
  checkBill(run: string, spent: Amounts): void {
    const book = this.#books.get(`budget/${run}`)
    if (book === undefined) return
    for (const dim of settledDims) {
      const detail = () => `${this.#shard}: ${run} is billed ${dim} ${spent[dim]}, settled were ${book.sum[dim]}`
      this.#notes.check('accounts', spent[dim] === book.sum[dim], detail)
    }
  }

  #book(keeper: string, generation: string): Book {
    const known = this.#books.get(keeper)
    if (known?.generation === generation) return known
    if (known !== undefined)
      for (const which of ['sum', 'over'] as const)
        Object.assign(this.#before[which], added(this.#before[which], known[which]))
    const book: Book = {
      ...{ generation, worst: new Map(), settled: new Map(), limits: known?.limits ?? new Map() },
      ...{ sum: { ...nothing }, over: { ...nothing }, dearest: { ...nothing, toolCalls: maxCalls }, soft: false },
    }
    this.#books.set(keeper, book)
    return book
  }

  #settle(line: string): void {
    const at = line.indexOf(' ')
    const book = this.#books.get(line.slice(0, at))
    const { grant, spent, real } = JSON.parse(line.slice(at + 1)) as { grant: string; spent: Amounts; real: boolean }
    if (book === undefined || !book.worst.has(grant) || book.settled.get(grant)?.real === true) return
    if (real && book.settled.has(grant)) this.#notes.reached('estimate replaced by the real bill')
    enter(book, grant, { amount: spent, real })
  }

  /** Grants that are held are those of the calls that are open; those that ran out count as estimates. */
  #checkGrants(
    address: string,
    keeper: KeeperContext,
    book: Book,
    open: ReadonlySet<string>,
    lines: readonly string[],
  ): void {
    for (const [grant, { state, worst }] of Object.entries(keeper.grants)) {
      if (state === 'held') {
        book.worst.set(grant, worst)
        for (const dim of settledDims) book.dearest[dim] = Math.max(book.dearest[dim], worst[dim])
        const detail = () => `${this.#shard}: ${grant} is held by ${address}, but its call is not open`
        this.#notes.check('grants', open.has(`${address} ${grant}`), detail)
      } else if (!book.settled.has(grant)) {
        if (lines.some((line) => line.includes('budget.sweep'))) this.#notes.reached('grant expired')
        enter(book, grant, { amount: worst, real: false })
      }
    }
  }

  #checkSums(address: string, keeper: KeeperContext, book: Book, sequence: number): void {
    const { sum, over } = book
    for (const dim of settledDims) {
      let spent = 0
      for (const account of Object.values(keeper.accounts)) spent += account.spent[dim]
      const detail = () => `${this.#shard} ${sequence}: ${address} says ${dim} ${spent}, settled were ${sum[dim]}`
      this.#notes.check('accounts', spent === sum[dim], detail)
    }
    for (const [name, { limits, soft, held, spent }] of Object.entries(keeper.accounts)) {
      const most = this.#raise(book, name, limits)
      // What a soft account below lacks its parent has, so that its limit grows.
      const isLenient = soft && name === 'run'
      if (isLenient) book.soft = true
      for (const dim of dims) {
        const used = held[dim] + spent[dim]
        const strict = (most[dim] ?? Number.POSITIVE_INFINITY) + over[dim]
        const limit = strict + (isLenient ? book.dearest[dim] : 0)
        if (isLenient && used > strict) this.#notes.reached('soft limit passed')
        const detail = () => `${this.#shard} ${sequence}: ${address} ${name}: ${dim} ${used} of ${limit}`
        this.#notes.check('spent', used <= limit && held[dim] >= 0 && spent[dim] >= 0, detail)
      }
    }
  }

  #raise(book: Book, name: string, limits: Partial<Amounts>): Record<string, number> {
    const most = book.limits.get(name)
    const now: Record<string, number> = {}
    for (const dim of dims) {
      const limit = limits[dim]
      const before = most === undefined ? limit : most[dim]
      if (limit !== undefined && before !== undefined) now[dim] = Math.max(limit, before)
    }
    book.limits.set(name, now)
    return now
  }
}

function added(a: Readonly<Record<Dim, number>>, b: Readonly<Record<Dim, number>>): Record<Dim, number> {
  const [first, ...rest] = dims.map((dim) => ({ [dim]: a[dim] + b[dim] }))
  return Object.assign(first!, ...rest) as Record<Dim, number>
}

/** Puts a settlement into a book, in the place of the one before. */
function enter(book: Book, grant: string, settled: Settled): void {
  const worst = book.worst.get(grant) ?? nothing
  const before = book.settled.get(grant)?.amount
  book.settled.set(grant, settled)
  for (const dim of dims) {
    if (before !== undefined) {
      book.sum[dim] -= before[dim]
      book.over[dim] -= Math.max(0, before[dim] - worst[dim])
    }
    book.sum[dim] += settled.amount[dim]
    book.over[dim] += Math.max(0, settled.amount[dim] - worst[dim])
  }
}
