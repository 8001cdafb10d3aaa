/** One pool and keepers of several crews, whose letters come late or twice or never: what they spend, by the test's own count. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { Message } from '../../runtime/scope.js'
import { close, reserve, settle, startSharing } from '../support/budget.js'
import { booked, calls, startPool } from '../support/budget-pool.js'
import type { Driver } from '../support/machine-driver.js'

const poolAddress = 'team/pool/main'
const hourMs = 3_600_000
const crews = 3

type Move =
  | {
      readonly move: 'reserve' | 'settle' | 'estimate' | 'release' | 'close' | 'die' | 'cut' | 'out' | 'in' | 'again'
      readonly crew: number
    }
  | { readonly move: 'pass'; readonly crew: number; readonly ms: number }

const crew = fc.nat(crews - 1)
const of = (weight: number, ...moves: readonly Exclude<Move['move'], 'pass'>[]) => ({
  weight,
  arbitrary: fc.record({ move: fc.constantFrom(...moves), crew }),
})
const moves = (windows: boolean): fc.Arbitrary<readonly Move[]> =>
  fc.array(
    fc.oneof(
      of(8, 'reserve', 'out', 'in'),
      of(3, 'settle'),
      of(1, 'estimate', 'release', 'close', 'again'),
      of(1, 'die'),
      of(1, 'cut'),
      {
        weight: windows ? 2 : 0,
        arbitrary: fc.record({ move: fc.constant('pass' as const), crew, ms: fc.nat(hourMs) }),
      },
    ),
    { maxLength: 70 },
  ) as fc.Arbitrary<readonly Move[]>

/** Behind the cut its first request looks like the one that was answered. */
const cutAndAsked = (['reserve', 'out', 'in', 'cut', 'reserve', 'out', 'in'] as const).map((move) => ({
  move,
  crew: 0,
}))

/** A call that was granted: in which window, and what became of it. */
interface Call {
  readonly keeper: string
  readonly until: number
  state: 'open' | 'spent'
}

/** A crew's present run. */
interface Run {
  readonly keeper: Driver
  readonly address: string
  closed: boolean
}

class Game {
  readonly pool: Driver
  readonly #limit: number
  readonly #calls = new Map<string, Call>()
  readonly #runs: Run[] = []
  /** Keepers that have ended and may still send a bill. */
  readonly #letters = {
    out: Array.from({ length: crews }, (): Message[] => []),
    in: Array.from({ length: crews }, (): Message[] => []),
  }
  readonly #taken: Message[][] = Array.from({ length: crews }, () => [])
  readonly dead = new Set<string>()
  /** Lives of the crews' journals. */
  readonly #lives = Array.from({ length: crews }, () => 1)
  #now = 10
  #count = 0

  constructor(limit: number, share: number, windows: boolean) {
    this.#limit = limit
    this.pool = startPool(limit, { share: { modelCalls: share }, window: windows ? 'hour' : null, waitMs: 600_000 })
    for (let at = 0; at < crews; at += 1) this.#begin(at)
  }

  #begin(at: number): void {
    const name = `budget/r${(this.#count += 1)}`
    this.#runs[at] = { keeper: startSharing({}), address: `c${at}/${name}`, closed: false }
  }

  play(move: Move): void {
    const run = this.#runs[move.crew]!
    switch (move.move) {
      case 'reserve':
        if (!run.closed) this.#tell(run, move.crew, reserve(`g${(this.#count += 1)}`))
        return
      case 'settle':
      case 'estimate':
        return this.#settle(run, move.crew, move.move === 'settle')
      case 'release': {
        const [id] = this.#openOf(run)
        if (id === undefined) return
        this.#calls.delete(id)
        return this.#tell(run, move.crew, { type: 'budget.release', grant: id })
      }
      case 'close':
        for (const id of this.#openOf(run)) this.#calls.get(id)!.state = 'spent'
        if (!run.closed) this.#tell(run, move.crew, close)
        return this.#begin(move.crew)
      case 'die':
        // With its machine: nobody hears of it again, and its calls may have been made.
        this.dead.add(run.address)
        this.#letters.out[move.crew] = []
        this.#letters.in[move.crew] = []
        return this.#begin(move.crew)
      case 'cut':
        // Its keeper is as it was when its run began, and knows of no call; what was not sent is lost.
        for (const id of this.#openOf(run)) this.#calls.get(id)!.state = 'spent'
        this.#letters.out[move.crew] = []
        this.#lives[move.crew]! += 1
        this.#runs[move.crew] = { ...run, keeper: startSharing({}), closed: false }
        return
      case 'out':
        return this.#deliver(this.#letters.out[move.crew]!.shift(), move.crew)
      case 'in':
        return this.#receive(move.crew)
      case 'again': {
        const last = this.#taken[move.crew]!.at(-1)
        return this.#deliver(last?.['life'] === this.#lives[move.crew] ? last : undefined, move.crew)
      }
      case 'pass':
        this.#now += move.ms
        for (const { keeper } of this.#runs) if (this.#isOver(keeper)) keeper.fire('over')
    }
  }

  #isOver(keeper: Driver): boolean {
    const share = keeper.context['share'] as unknown as { readonly until: number }
    return keeper.timers.has('over') && share.until <= this.#now
  }

  #openOf({ address }: Run): string[] {
    return [...this.#calls].filter(([, call]) => call.keeper === address && call.state === 'open').map(([id]) => id)
  }

  #settle(run: Run, at: number, real: boolean): void {
    const [id] = this.#openOf(run)
    if (id === undefined) return
    this.#calls.get(id)!.state = 'spent'
    this.#tell(run, at, settle(id, calls(1), real))
  }

  #tell(run: Run, at: number, message: Message): void {
    run.keeper.send(message)
    this.#heard(run, at)
  }

  #heard({ keeper, address }: Run, at: number): void {
    const { until = 0 } = (keeper.context['share'] as unknown as { until?: number } | null) ?? {}
    for (const message of keeper.to('agent/a'))
      if (message.type === 'budget.granted')
        this.#calls.set(message['grant'] as string, { keeper: address, until, state: 'open' })
    const life = this.#lives[at]!
    this.#letters.out[at]!.push(...keeper.to(poolAddress).map((letter) => ({ ...letter, sender: address, life })))
  }

  #deliver(letter: Message | undefined, at: number): void {
    if (letter === undefined) return
    this.#taken[at]!.push(letter)
    this.#now += 1
    this.pool.send({ ...letter, at: this.#now })
    for (const [to, message] of this.pool.sent) this.#letters.in[Number(to[1])]!.push({ ...message, sender: to })
  }

  #receive(at: number): void {
    const letter = this.#letters.in[at]!.shift()
    const run = this.#runs[at]!
    // For a run that has ended it is for nobody.
    if (letter !== undefined && letter['sender'] === run.address) this.#tell(run, at, { ...letter, at: this.#now })
  }

  /** Calls of each window are no more than its limit, whoever made them. */
  check(): void {
    const byWindow = new Map<number, number>()
    for (const { until } of this.#calls.values()) byWindow.set(until, (byWindow.get(until) ?? 0) + 1)
    for (const [until, count] of byWindow) expect(count, `window ${until}`).toBeLessThanOrEqual(this.#limit)
    expect(booked(this.pool)).toBeLessThanOrEqual(this.#limit)
  }

  /** Everybody ends, and every letter comes. */
  rest(): void {
    for (let at = 0; at < crews; at += 1) {
      for (let left = this.#openOf(this.#runs[at]!).length; left > 0; left -= 1) this.play({ move: 'settle', crew: at })
      const run = this.#runs[at]!
      run.keeper.send(close)
      this.#heard(run, at)
      if (run.keeper.timers.size > 0 || !run.keeper.done) if (!run.keeper.done) run.keeper.fire()
      this.#heard(run, at)
    }
    for (let at = 0; at < crews; at += 1) while (this.#letters.out[at]!.length > 0) this.play({ move: 'out', crew: at })
  }

  /** Whether some journal was cut back. */
  get wasCut(): boolean {
    return this.#lives.some((life) => life > 1)
  }

  /** Calls of keepers that were heard to the end. */
  get spent(): number {
    return [...this.#calls.values()].filter(({ keeper }) => !this.dead.has(keeper)).length
  }
}

describe('shared budget: any order of anything', () => {
  const shapes = fc.record({ limit: fc.integer({ min: 1, max: 12 }), share: fc.integer({ min: 1, max: 5 }) })

  test('shared budget: what crews spend together is within the limit of each window, whatever comes late, twice or never', () => {
    fc.assert(
      fc.property(
        shapes,
        fc.boolean().chain((windows) => fc.tuple(fc.constant(windows), moves(windows))),
        ({ limit, share }, [windows, all]) => {
          const game = new Game(limit, share, windows)
          for (const move of all) {
            game.play(move)
            game.check()
          }
        },
      ),
      { numRuns: 150, examples: [[{ limit: 1, share: 1 }, [false, cutAndAsked]]] },
    )
  }, 120_000)

  test('shared budget: at rest the books are what was spent, but for those who were never heard of again', () => {
    fc.assert(
      fc.property(shapes, moves(false), ({ limit, share }, all) => {
        const game = new Game(limit, share, false)
        // What comes twice opens at worst a share that nobody has: here everything comes once.
        for (const move of all.filter((each) => each.move !== 'again' && each.move !== 'estimate')) game.play(move)
        game.rest()
        game.check()
        expect(booked(game.pool)).toBeGreaterThanOrEqual(game.spent)
        if (game.dead.size === 0 && !game.wasCut) expect(booked(game.pool)).toBe(game.spent)
      }),
      { numRuns: 150 },
    )
  }, 120_000)
})
