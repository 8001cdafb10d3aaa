/**
 * What is told of a run and of an actor to whoever looks at a crew.
 *
 * Owns: a run and the state of an actor in words and numbers.
 * Does not own: the runs themselves (`runs.ts`), what a budget has counted (`machines/budget-keeper.ts`).
 */
import { type Amounts, nothing } from '../machines/index.js'
import { crewAddress } from './commit.js'
import type { RunState } from './runs.js'
import type { Actor, ShardState } from './state.js'

/** A run, as `show` tells it. */
export interface RunInfo {
  readonly runId: string
  readonly key: string
  readonly status: RunState['status']
  readonly code: string | null
  readonly reason: string
  readonly rounds: number
  /** So far, when it goes on: calls that are under way are not in it. */
  readonly costUsd: number
  readonly tokens: number
}

/** A run as the outside sees it. */
export function runInfo(run: RunState, state: ShardState): RunInfo {
  const { nanoUsd, tokens } = run.end?.spent ?? spentSoFar(run, state)
  return {
    runId: run.run,
    key: run.key,
    status: run.status,
    code: run.end?.code ?? null,
    reason: run.end?.reason ?? '',
    rounds: run.end?.rounds ?? 0,
    costUsd: nanoUsd / 1e9,
    tokens,
  }
}

/** What is read of a crew machine: who keeps the budget at work, and what that one had counted before this run. */
interface Books {
  readonly keeper?: string | null
  readonly before?: Amounts
}
/** What is read of a budget keeper. */
interface Accounts {
  readonly accounts?: Readonly<Record<string, { readonly spent: Amounts }>>
}

/** What a run that goes on has spent, as its keeper counts. */
function spentSoFar({ run, status }: RunState, { actors }: ShardState): Pick<Amounts, 'nanoUsd' | 'tokens'> {
  if (status !== 'running') return nothing
  const { keeper, before = nothing } = (contextOf(actors.get(crewAddress)) ?? {}) as Books
  const { accounts = {} } = (contextOf(actors.get(`budget/${keeper ?? run}`)) ?? {}) as Accounts
  const spent = Object.values(accounts).map((account) => account.spent)
  const sum = (of: 'nanoUsd' | 'tokens') => spent.reduce((total, each) => total + each[of], -before[of])
  return { nanoUsd: Math.max(0, sum('nanoUsd')), tokens: Math.max(0, sum('tokens')) }
}

function contextOf(actor: Actor | undefined): unknown {
  return actor?.snapshot.context
}

/** The state of an actor in words: of nested states the whole path. */
export function stateName(value: unknown): string {
  if (typeof value === 'string') return value
  // Of a machine whose task is still to be read.
  if (value === null) return 'starting'
  return Object.entries(value as Record<string, unknown>)
    .map(([key, inner]) => `${key}.${stateName(inner)}`)
    .join(' ')
}
