/**
 * A budget that the crews of a seed spend from together, and its invariant: what they have spent and hold is within its
 * limit, by the books of their keepers and by the provider's; at rest the pool has booked what they have spent.
 */
import { type Amounts, poolBooked, type PoolData } from '../../machines/index.js'
import { poolAddress } from '../../runtime/pool-books.js'
import { defineBudget, type SharedBudget } from '../../runtime/shared-budget.js'
import { errorOf } from './judge.js'
import type { Replica } from './replica.js'
import { SeededRandom } from './seeded-random.js'
import type { World } from './world.js'

/** The shard of the budget. */
export const poolShard = 'team'
/** Budgets from here on, by the numbers of crews. */
export const firstPool = 9_000
const pools = 12

/**
 * Whether the crews of a seed share a budget. Not of the seed's own row of draws, so that seeds without one stay what they were.
 */
export function hasPool(seed: number): boolean {
  return new SeededRandom(seed + 0x706f6f6c).chance(0.25)
}

/** The budget of a seed, by its number. */
export function poolOf(seed: number): number {
  return firstPool + new SeededRandom(seed + 0x706f6f6d).int(0, pools - 1)
}

/** A budget by its number. Most are too small for what is asked for. */
export function budgetNumbered(index: number): SharedBudget {
  const random = new SeededRandom(index)
  const kind = random.pick(['modelCalls', 'modelCalls', 'usd', 'tokens'] as const)
  const all = { modelCalls: random.int(10, 80), usd: random.int(50, 600) / 1_000, tokens: random.int(8_000, 80_000) }
  const share = random.chance(0.5) ? { [kind]: kind === 'usd' ? all.usd / 6 : Math.ceil(all[kind] / 6) } : {}
  const window = index % 4 === 3 ? ({ window: 'hour' } as const) : {}
  return defineBudget({ name: `budget-${index}`, limits: { [kind]: all[kind] }, share, waitMs: 20_000, ...window })
}

interface Books {
  readonly data: PoolData
  readonly spent: Amounts
  readonly holders: Readonly<Record<string, { readonly booked: Amounts }>>
}

const dims = ['nanoUsd', 'tokens', 'modelCalls'] as const
type Dim = (typeof dims)[number]

function booksOf(pool: Replica): Books | undefined {
  return pool.state.actors.get(poolAddress)?.snapshot.context as Books | undefined
}

/** Crews that spend from what is shared. */
function sharing(world: World, all: readonly { readonly id: string }[]): readonly Replica[] {
  return all.map(({ id }) => world.replica(id)).filter(({ crew }) => crew?.data.from !== undefined)
}

/** Counters that a pool limits for good: what windows have is not compared, since bills come in later ones. */
function limitedBy({ data }: Books): readonly (readonly [Dim, number])[] {
  if (data.window !== null) return []
  return dims.flatMap((dim) => (data.limits[dim] === undefined ? [] : [[dim, data.limits[dim]] as const]))
}

/** What all keepers have settled, and hold. */
function usedBy(
  crews: readonly Replica[],
  dim: Dim,
): { readonly settled: number; readonly held: number; readonly over: number } {
  let [settled, held, over] = [0, 0, 0]
  for (const { accounts, state } of crews) {
    const { sum, over: above } = accounts.total
    settled += sum[dim]
    over += above[dim]
    held += accounts.heldIn(state, dim)
  }
  return { settled, held, over }
}

/** Checks at any time, by what is durable. */
export function checkPool(world: World, all: readonly { readonly id: string }[]): void {
  const books = booksOf(world.replica(poolShard))
  const crews = sharing(world, all)
  if (books === undefined) return
  for (const [dim, limit] of limitedBy(books)) {
    const { settled, held, over } = usedBy(crews, dim)
    const detail = () => `${dim}: ${settled} spent, ${held} held of ${limit} + ${over}`
    world.notes.check('pool', settled + held <= limit + over, detail)
  }
}

/** Checks when all has ended. */
export function checkPoolEnd(world: World, all: readonly { readonly id: string }[]): void {
  const books = booksOf(world.replica(poolShard))
  const crews = sharing(world, all)
  if (books === undefined || world.notes.violations.length > 0) return
  const of = new Set(crews.map(({ shard }) => shard))
  const billed = world.judge.billed.filter(({ shard }) => of.has(shard))
  for (const [dim, limit] of limitedBy(books)) {
    const asked = billed.reduce((sum, { actual }) => sum + actual[dim], 0)
    const error = billed.reduce((sum, each) => sum + errorOf(each, dim), 0)
    world.notes.check(
      'pool',
      asked <= limit + error,
      () => `the provider counts ${dim} ${asked} of ${limit} + ${error}`,
    )
    const { settled, held } = usedBy(crews, dim)
    const booked = poolBooked(books)[dim]
    // A keeper that went with its crew has booked what its open calls cost at worst; one whose last word came back, since the
    // budget was not there yet, what it had been given before it came.
    const fits = crews.some(({ recalled }) => recalled) ? booked >= settled : booked === settled + held
    world.notes.check('pool', fits, () => `${dim}: ${booked} are booked at rest, ${settled} were spent, ${held} held`)
    if (booked >= limit) world.notes.reached('shared budget spent')
  }
}
