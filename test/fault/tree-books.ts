/**
 * The books of a tree of budgets, as its crew's journal has them, and what is wrong with them beside what the provider
 * counted. A call that brought a bill must have the provider's, to the nano-dollar; one that brought none, since its process
 * was killed, its agent cancelled or its connection cut, counts as *estimated*, at its maximum. So what was booked is
 * the provider's count, and what is stated of calls without a bill above what the provider took for them.
 */
import { type Amounts, machines } from '../../machines/index.js'
import { decide } from '../../runtime/commit.js'
import type { Journal } from '../../runtime/journal.js'
import { fromRecord } from '../../runtime/record.js'
import type { Message } from '../../runtime/scope.js'
import { Scope } from '../../runtime/scope.js'
import { emptyState, type ShardState } from '../../runtime/state.js'
import { accountOf, limitOf, type TreeLimits } from './tree-crew.js'

/** A request as the provider counts it. */
export interface Bill {
  readonly agent: string
  readonly input: number
  readonly output: number
  readonly nanoUsd: number
}

/** A call as the crew's journal has it. */
interface Call {
  readonly agent: string
  /** Who asked: one actor for each task of an agent. */
  readonly actor: string
  readonly worst: Amounts
  /** What is booked for it: the provider's own figure, or an estimate. */
  booked: Amounts
  state: 'open' | 'real' | 'estimated'
  usage: { readonly inputTokens: number; readonly outputTokens: number } | null
}

/** What a keeper knows, as far as it is looked at. */
interface Keeper {
  readonly accounts: Readonly<Record<string, Account>>
  readonly grants: Readonly<Record<string, { readonly state: string }>>
}
interface Account {
  readonly parent: string | null
  readonly limits: Partial<Amounts>
  readonly held: Amounts
  readonly spent: Amounts
}

/** What a journal has. */
export interface Books {
  readonly calls: readonly Call[]
  /** The keeper's, when it outlives the run. */
  readonly keeper: Keeper | null
  /** Agents that could not pay. */
  readonly exhausted: number
  readonly state: ShardState
}

/** Replays a crew's journal. */
export async function booksOf(journal: Journal, crew: string): Promise<Books> {
  const state = emptyState(crew)
  const context = { scope: new Scope(), machines }
  const calls = new Map<string, Call>()
  let exhausted = 0
  for await (const record of journal.read(crew, 1))
    for (const { envelope } of fromRecord(crew, record)) {
      const call = calls.get(envelope.cause)
      if (call !== undefined && envelope.from.startsWith('port/')) take(call, envelope.body)
      const { effects, events } = decide(state, envelope, context)
      exhausted += events.filter(([, { type }]) => type === 'budget.exhausted').length
      for (const { id, from, body } of effects)
        if (body.type === 'model.call') {
          const { agent, worst } = body
          calls.set(id, { agent, actor: from, worst, booked: worst, state: 'open', usage: null })
        }
    }
  const keeper = (state.actors.get('budget/crew')?.snapshot.context ?? null) as Keeper | null
  return { calls: [...calls.values()], keeper, exhausted, state }
}

function take(call: Call, outcome: Message): void {
  if (call.state === 'real') return
  const usage = outcome['usage'] as { estimated: boolean; inputTokens: number; outputTokens: number } | undefined
  const isReal = usage === undefined ? outcome['real'] === true : !usage.estimated
  call.state = isReal ? 'real' : 'estimated'
  if (isReal && usage !== undefined) call.usage = usage
  if ('spent' in outcome) call.booked = outcome['spent'] as Amounts
}

/** What came of comparing them. */
export interface BooksReport {
  readonly bookedNanoUsd: number
  readonly billedNanoUsd: number
  /** Calls that count as estimated, what they are booked at, and what the provider took for them. */
  readonly estimated: number
  readonly estimatedNanoUsd: number
  readonly unseenNanoUsd: number
  readonly agents: number
  readonly exhausted: number
  readonly violations: readonly string[]
}

/** Compares the books with the provider's count. @param costNanoUsd what the run is said to have cost */
export function judgeBooks(
  { calls, keeper, exhausted, state }: Books,
  bills: readonly Bill[],
  limits: TreeLimits,
  costNanoUsd: number,
): BooksReport {
  const violations: string[] = []
  const fail = (isWrong: boolean, what: string): unknown => isWrong && violations.push(what)
  const left = new Map<string, Bill[]>()
  for (const bill of bills) left.set(keyOf(bill), [...(left.get(keyOf(bill)) ?? []), bill])
  for (const call of calls.filter(({ usage }) => usage !== null)) {
    const { agent, booked, usage } = call
    const bill = left.get(keyOf({ agent, input: usage!.inputTokens, output: usage!.outputTokens }))?.pop()
    fail(bill?.nanoUsd !== booked.nanoUsd, `${agent}: booked ${booked.nanoUsd}, the provider has ${bill?.nanoUsd}`)
    fail(booked.nanoUsd > call.worst.nanoUsd, `${agent}: ${booked.nanoUsd} is above the grant ${call.worst.nanoUsd}`)
  }
  const lost = calls.filter((call) => call.state !== 'real')
  const unseen = [...left.values()].flat()
  for (const agent of new Set(unseen.map((bill) => bill.agent))) {
    const wanted = unseen.filter((bill) => bill.agent === agent).sort((one, two) => two.nanoUsd - one.nanoUsd)
    const had = lost.filter((call) => call.agent === agent).sort((one, two) => two.booked.nanoUsd - one.booked.nanoUsd)
    const covers = wanted.every(({ nanoUsd }, at) => nanoUsd <= (had[at]?.booked.nanoUsd ?? -1))
    fail(!covers, `${agent}: ${wanted.length} bills that nobody saw, ${had.length} estimates do not cover them`)
  }
  const booked = sumOf(calls.map((call) => call.booked))
  const [billed, unseenNanoUsd] = [sumOf(bills), sumOf(unseen)]
  const estimatedNanoUsd = sumOf(lost.map((call) => call.booked))
  fail(booked !== costNanoUsd, `the run is said to have cost ${costNanoUsd}, booked are ${booked}`)
  fail(
    booked !== billed - unseenNanoUsd + estimatedNanoUsd,
    `booked ${booked}, the provider ${billed}, of it ${unseenNanoUsd} for ${estimatedNanoUsd} of estimates`,
  )
  for (const account of new Set(['run', ...calls.map(({ agent }) => accountOf(agent))])) {
    const isBelow = ({ agent }: { readonly agent: string }): boolean =>
      account === 'run' || accountOf(agent) === account || accountOf(agent).startsWith(`${account}/`)
    const [limit, taken] = [limitOf(account, limits), sumOf(bills.filter(isBelow))]
    const own = sumOf(calls.filter(isBelow).map((call) => call.booked))
    fail(Math.max(taken, own) > limit, `${account}: the provider took ${taken}, booked ${own}, its limit is ${limit}`)
  }
  if (keeper !== null) violations.push(...judgeKeeper(keeper, calls))
  fail(state.effects.size > 0, `${state.effects.size} effects are open at rest`)
  const agents = new Set(calls.map(({ actor }) => actor)).size
  return {
    ...{ bookedNanoUsd: booked, billedNanoUsd: billed, estimated: lost.length, estimatedNanoUsd, unseenNanoUsd },
    ...{ agents, exhausted, violations },
  }
}

/** At rest each account has spent what its agents did, holds no grant, and no more than its children have spent. */
function judgeKeeper({ accounts, grants }: Keeper, calls: readonly Call[]): string[] {
  const violations: string[] = []
  const held = Object.values(grants).filter((grant) => grant.state === 'held').length
  if (held > 0) violations.push(`${held} grants are held at rest`)
  for (const [name, account] of Object.entries(accounts)) {
    const own = sumOf(calls.filter(({ agent }) => accountOf(agent) === name).map(({ booked }) => booked))
    const below = Object.values(accounts).filter(({ parent }) => parent === name)
    const carved = below.reduce((sum, { limits }) => sum + (limits.nanoUsd ?? 0), 0)
    const { spent, held: kept, limits } = account
    if (spent.nanoUsd !== own) violations.push(`${name} says ${spent.nanoUsd}, its agents spent ${own}`)
    if (kept.nanoUsd !== carved) violations.push(`${name} holds ${kept.nanoUsd}, its children have ${carved}`)
    if (name !== 'run' && limits.nanoUsd !== spent.nanoUsd + kept.nanoUsd)
      violations.push(`${name} keeps ${limits.nanoUsd} of its parent's, used are ${spent.nanoUsd + kept.nanoUsd}`)
  }
  return violations
}

function keyOf({ agent, input, output }: Pick<Bill, 'agent' | 'input' | 'output'>): string {
  return `${agent} ${input} ${output}`
}

function sumOf(amounts: readonly { readonly nanoUsd: number }[]): number {
  return amounts.reduce((sum, { nanoUsd }) => sum + nanoUsd, 0)
}
