/**
 * What the crew machine knows of budgets: whose account is whose, who cannot pay.
 *
 * Owns: the names of accounts, the messages that open and raise them.
 * Does not own: the books (`budget-keeper.ts`), when anything happens (`crew.ts`).
 */
import { type CrewContext, type CrewMessageOf, isLead, keeperOf, limitsOf } from './crew-context.js'
import type { BudgetOpen, CrewData, CrewMessage, Limits } from './messages.js'

type OwnBudget = Pick<CrewData, 'soft' | 'raiseMs'> & { readonly limits: Limits | null }
/** Who an account belongs to; the crew has `run`. */
const ownerOf = (account: string) => account.slice(account.lastIndexOf('/') + 1)
const parentOf = (account: string) => account.slice(0, account.lastIndexOf('/'))
/** Whether all of a run lack it: the run's own account, or what crews share. */
export const isOfRun = (account: string) => account === 'run' || account.startsWith('@')
const ownBudget = ({ data }: CrewContext, account: string): OwnBudget =>
  isOfRun(account) ? data : (data.agents[ownerOf(account)] ?? { limits: null })
/** For how long a person is asked for more of an account's budget; null when nobody is. */
export const raiseMsOf = (context: CrewContext, account: string): number | null =>
  ownBudget(context, account).raiseMs ?? null
/** The limits of an account by the definition. */
export const definedLimits = (context: CrewContext, account: string): Limits => ownBudget(context, account).limits ?? {}
/** An agent's account: its own below its caller's, or its caller's. So a budget bounds whatever its agent has others do. */
export const accountOf = (context: CrewContext, agent: string, caller: string | null) => {
  const above = context.workers[caller ?? '']?.account ?? 'run'
  return limitsOf(context, agent) === null ? above : `${above}/${agent}`
}
/** The message that opens an agent's account, or tops it up. */
export const openingOf = (context: CrewContext, account: string): BudgetOpen => {
  const { limits, soft } = ownBudget(context, account)
  const opening = { type: 'budget.open' as const, account, parent: parentOf(account), limits: limits ?? {} }
  return soft === undefined ? opening : { ...opening, soft }
}
/** Accounts of an agent at work, or the one that it would have. */
const accountsOf = ({ workers }: CrewContext, agent: string): readonly string[] => {
  const open = new Set(Object.values(workers).map(({ account }) => account))
  const own = [...open].filter((account) => account.endsWith(`/${agent}`))
  return own.length === 0 ? [`run/${agent}`] : own
}
const isWithin = (account: string, above: string) => account === above || account.startsWith(`${above}/`)
/** Accounts that nobody spends from any more when a worker is gone, the lowest first. */
export const leftBy = (account: string, workers: CrewContext['workers']): readonly string[] => {
  if (account === 'run' || Object.values(workers).some((other) => isWithin(other.account, account))) return []
  return [account, ...leftBy(parentOf(account), workers)]
}
/** Who still cannot pay when an agent is gone, and the escalations that nobody waits for any more. */
export const shortWithout = ({ short }: CrewContext, address: string) => {
  const rest = Object.entries(short).map(([account, { escalation, agents }]) => {
    return [account, { escalation, agents: agents.filter((each) => each !== address) }] as const
  })
  return {
    short: Object.fromEntries(rest.filter(([, { agents }]) => agents.length > 0)),
    settled: rest.filter(([, { agents }]) => agents.length === 0).map(([, { escalation }]) => escalation),
  }
}
/** Whether a limit of tool calls applies to an account. */
export const counted = (context: CrewContext, account: string): boolean =>
  definedLimits(context, account).toolCalls !== undefined || (account !== 'run' && counted(context, parentOf(account)))

/** Whether whoever cannot pay ends alone: the account is its own, or others of its race may still answer. */
export const endsAlone = (context: CrewContext, account: string, address: string): boolean =>
  !isLead(context, address) && (!isOfRun(account) || context.workers[address]?.call?.race === true)
/** How it ends for whoever could not pay. */
export const spentBy = ({
  account,
  dimension,
  code = 'BUDGET_EXHAUSTED',
  reason,
}: CrewMessageOf<'agent.exhausted'>) => ({
  code,
  reason: reason ?? `the budget of ${dimension} is spent (account ${account})`,
})
/** How it ends when nobody gave more. */
export const refusedBy = ({ account, dimension, reason }: CrewMessageOf<'budget.decided'>) => ({
  code: 'BUDGET_EXHAUSTED' as const,
  reason: `the budget of ${dimension} is spent (account ${account}): ${reason}`,
})
/** Agents that wait for more in an account. */
export const shortOf = ({ short }: CrewContext, account: string) => short[account]?.agents ?? []
/** What a person gives for an answer; without a figure as much as there was, once more. */
export const raiseOf = (
  context: CrewContext,
  { account, dimension, limits }: Extract<CrewMessage, { type: 'budget.decided' }>,
) => {
  const once = definedLimits(context, account)[dimension] ?? 0
  return limits === undefined
    ? { account, limits: { [dimension]: once } as Limits, mode: 'by' as const }
    : { account, limits, mode: 'to' as const }
}
/** The accounts that a command raises, with what opens those that may not be open yet. */
export const raisedBy = (context: CrewContext, agent: string | undefined) =>
  agent === undefined
    ? [{ account: 'run', opening: [] }]
    : accountsOf(context, agent).map((account) => ({ account, opening: [openingOf(context, account)] }))
/** Where the keeper of a run has what it grants from, when that is shared with other crews. */
export const poolOf = ({ data: { from, answerMs } }: CrewContext) =>
  from === undefined ? {} : { pool: { address: `${from}/pool/main`, answerMs } }
/** Keepers that a new one takes the place of. */
export const replacedKeepers = (context: CrewContext) => (context.keeper === null ? [] : [keeperOf(context)])
