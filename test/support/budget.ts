/** Messages to a budget keeper, and its books as a test reads them. */
import type { AnyStateMachine } from 'xstate'
import { type Amounts, budgetMachine, type Limits } from '../../machines/index.js'
import { drive, type Driver, type Message } from './machine-driver.js'

/** An account of the keeper's tree. */
export interface Account {
  readonly parent: string | null
  readonly limits: Limits
  readonly held: Amounts
  readonly spent: Amounts
}
/** A grant that is not closed for good. */
export interface Grant {
  readonly account: string
  readonly worst: Amounts
  readonly state: 'held' | 'estimated'
}

const price = { input: 1_000_000, output: 2_000_000 }
/** Starts a keeper with these limits of its root account. */
export const startKeeper = (limits: Limits, machine: AnyStateMachine = budgetMachine, soft = false): Driver =>
  drive(machine, { self: 'budget/r1', limits, minOutputTokens: 10, ...(soft ? { soft } : {}) } as { self: string })
/** Address of the pool that a keeper with a share asks. */
export const pool = 'team/pool/main'
/** Starts a keeper that has a share of a budget of several crews. */
export const startSharing = (limits: Limits = {}, machine: AnyStateMachine = budgetMachine): Driver =>
  drive(machine, {
    ...{ self: 'budget/r1', limits, minOutputTokens: 10, pool: { address: pool, answerMs: 9_000 } },
  } as { self: string })
/** What the pool says to a keeper's message. */
export const given = (number: number, limits: Limits, until = 0, at = 0): Message => ({
  ...{ type: 'share.given', number, until, given: limits, sender: pool, at },
})
export const refused = (number: number, until = 0): Message => ({
  ...{ type: 'share.refused', number, until, dimension: 'modelCalls', limit: 5, sender: pool, at: 0 },
})
export const reserve = (grant: string, more: Record<string, unknown> = {}): Message => ({
  type: 'budget.reserve',
  grant,
  account: 'run',
  replyTo: 'agent/a',
  inputTokens: 50,
  maxOutputTokens: 100,
  minOutputTokens: 10,
  price,
  ...more,
})
/** Price of a call: 1 and 2 dollars a million tokens, in nano-dollars. */
export const cost = (input: number, output: number) => input * 1_000 + output * 2_000
export const amounts = (input: number, output: number): Amounts => ({
  nanoUsd: cost(input, output),
  tokens: input + output,
  modelCalls: 1,
  toolCalls: 0,
})
export const settle = (grant: string, spent: Amounts, real = true, toolCalls = 0): Message => ({
  type: 'budget.settle',
  grant,
  spent,
  real,
  toolCalls,
})
export const open = (account: string, limits: Limits, parent = 'run'): Message => ({
  type: 'budget.open',
  account,
  parent,
  limits,
})
export const raise = (account: string, limits: Limits, mode: 'set' | 'to' | 'by'): Message => ({
  type: 'budget.raise',
  account,
  limits,
  mode,
})
export const report: Message = { type: 'budget.report', replyTo: 'crew/main' }
export const close: Message = { type: 'budget.close', replyTo: 'crew/main' }
export const charge = (toolCalls: number, account = 'run'): Message => ({
  type: 'budget.charge',
  account,
  replyTo: 'agent/a',
  toolCalls,
})

export const accounts = (keeper: Driver) => keeper.context['accounts'] as unknown as Record<string, Account>
export const grants = (keeper: Driver) => keeper.context['grants'] as unknown as Record<string, Grant>
export const waiting = (keeper: Driver) => keeper.context['waiting'] as unknown as Message[]
export const spentOf = (keeper: Driver): Amounts => keeper.send(report).to('crew/main')[0]?.['spent'] as Amounts
