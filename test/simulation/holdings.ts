/**
 * What accounts hold for others: for each open grant its worst, for each account below its limit, and nothing else; and no
 * limit below is kept that nobody spends from any more. So a refund that is lost shows in the commit that loses it. And which
 * keepers lose their word.
 */
import type { Amounts } from '../../machines/index.js'
import { type Commit, crewAddress } from '../../runtime/commit.js'
import type { ShardState } from '../../runtime/state.js'
import type { Notes } from './notes.js'

/** What a keeper knows, as far as it is looked at. */
interface Keeper {
  readonly accounts: Readonly<Record<string, Account>>
  readonly grants: Readonly<
    Record<string, { readonly account: string; readonly state: string; readonly worst: Amounts }>
  >
}
interface Account {
  readonly parent: string | null
  readonly limits: Partial<Amounts>
  readonly held: Amounts
  readonly spent: Amounts
}
/** What the crew knows of who spends from where. */
interface Crew {
  readonly keeper: string | null
  readonly workers: Readonly<Record<string, { readonly account: string }>>
}

const dims = ['nanoUsd', 'tokens', 'modelCalls', 'toolCalls'] as const
type Dim = (typeof dims)[number]

/** The holdings of one shard. */
export class Holdings {
  constructor(
    private readonly shard: string,
    private readonly notes: Notes,
  ) {}

  /** Looks at the keepers that a commit has told something, and at what it has raised. */
  take(state: ShardState, { decisions, events, sequence }: Commit): void {
    const told = decisions.filter((line) => line.startsWith('budget/'))
    if (told.length > 0 || decisions.some((line) => line.startsWith('shard/actors')))
      for (const [address, actor] of state.actors)
        if (actor.kind === 'budget') {
          const keeper = actor.snapshot.context as unknown as Keeper
          this.#checkHeld(`${this.shard} ${sequence}: ${address}`, keeper)
          if (typeof actor.snapshot.value === 'object') this.#checkLeft(state, address, keeper)
        }
    const raises = told.filter((line) => /"type":"budget\.raise"/.test(line) && !/"mode":"set"/.test(line)).length
    const raised = events.filter(([, { type }]) => type === 'budget.raised').length
    const detail = (): string => `${this.shard} ${sequence}: ${raised} answers have raised a limit ${raises} times`
    this.notes.check('raised', raises === raised, detail)
  }

  #checkHeld(where: string, { accounts, grants }: Keeper): void {
    const expected = new Map<string, number>()
    const hold = (name: string, dim: Dim, amount: number): void => {
      const key = `${payerOf(accounts, name, dim)} ${dim}`
      expected.set(key, (expected.get(key) ?? 0) + amount)
    }
    for (const { account, state, worst } of Object.values(grants))
      if (state === 'held') for (const dim of dims) hold(account, dim, worst[dim])
    for (const { parent, limits } of Object.values(accounts))
      if (parent !== null) for (const dim of dims) hold(parent, dim, limits[dim] ?? 0)
    for (const [name, { held }] of Object.entries(accounts))
      for (const dim of dims) {
        const wanted = expected.get(`${name} ${dim}`) ?? 0
        this.notes.check('leak', held[dim] === wanted, () => `${where} ${name} holds ${dim} ${held[dim]} for ${wanted}`)
      }
  }

  #checkLeft(state: ShardState, address: string, { accounts }: Keeper): void {
    const crew = state.actors.get(crewAddress)?.snapshot.context as Crew | undefined
    if (crew === undefined || address !== `budget/${crew.keeper}`) return
    const used = Object.values(crew.workers).map(({ account }) => account)
    for (const [name, { parent, limits, held, spent }] of Object.entries(accounts)) {
      if (parent === null || used.some((each) => each === name || each.startsWith(`${name}/`))) continue
      const unspent = dims.filter((dim) => (limits[dim] ?? 0) > held[dim] + spent[dim])
      const detail = (): string =>
        `${this.shard} ${state.sequence}: ${address} ${name} keeps ${unspent.join()} for nobody`
      this.notes.check('leak', unspent.length === 0, detail)
    }
  }
}

/** Whoever pays a dimension for an account: the nearest one that limits it, or the root. */
function payerOf(accounts: Keeper['accounts'], name: string, dim: Dim): string {
  const account = accounts[name]
  if (account === undefined || account.parent === null || account.limits[dim] !== undefined) return name
  return payerOf(accounts, account.parent, dim)
}

/** Whether what a keeper has used is not heard of any more: it failed, with its crew or alone, or its last word came back. */
export function losesWord({ envelope, events }: Commit): boolean {
  const { type, message } = envelope.body as { readonly type: string; readonly message?: string }
  if (type === 'mail.returned' && message === 'share.settle') return true
  return events.some(([from, event]) => event.type === 'actor.failed' && /^(crew|budget)\//.test(from))
}
