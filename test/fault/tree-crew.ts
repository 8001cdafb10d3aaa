/**
 * A crew with a tree of budgets: three heads race, each with scouts; whoever is first is followed by a chief, whose managers
 * have workers. Sixty agents at most, and accounts on three levels below the crew's. The process that is killed and the
 * trials that judge it both import this.
 */
import { z } from 'zod'
import { type Crew, defineAgent, defineCrew, defineTool, parallel, sequential } from '../../runtime/index.js'

/** Dollars a million tokens, in micro-dollars: nano-dollars a thousand tokens. */
export const treePrice = { input: 250_000, output: 2_000_000 } as const
/** Output tokens of one call at most. */
export const maxOutput = 600
/** Whom a head calls, and a manager. */
export const scouts = 4
export const workers = 10
/** Heads, and managers. */
export const heads = ['h1', 'h2', 'h3'] as const
export const managers = ['m1', 'm2', 'm3', 'm4'] as const

/** Limits of the tree in nano-dollars. */
export interface TreeLimits {
  readonly run: number
  readonly head: number
  readonly scout: number
  readonly chief: number
  readonly manager: number
  readonly worker: number
}

/** What differs between trials. */
export interface TreePlan {
  readonly limits: TreeLimits
  readonly per: 'run' | 'crew'
  /** The first head that answers is enough, the others are cancelled. */
  readonly races: boolean
}

/** Enough for all. */
export const roomy: TreeLimits = {
  ...{ run: 900e6, head: 50e6, scout: 40e6, chief: 500e6, manager: 100e6, worker: 80e6 },
}
/** Not every worker is paid for, and the last manager is given less than it should have. */
export const tight: TreeLimits = {
  ...{ run: 130e6, head: 14e6, scout: 9e6, chief: 70e6, manager: 24e6, worker: 16e6 },
}

/** The account of an agent: its name is in no other. */
export function accountOf(agent: string): string {
  if (agent === 'chief' || agent.startsWith('h')) return `run/${agent}`
  const number = agent.slice(1)
  if (agent.startsWith('s')) return `run/h${number}/${agent}`
  return agent.startsWith('m') ? `run/chief/${agent}` : `run/chief/m${number}/${agent}`
}

/** What an account may spend. */
export function limitOf(account: string, limits: TreeLimits): number {
  const of = { h: limits.head, s: limits.scout, c: limits.chief, m: limits.manager, w: limits.worker, r: limits.run }
  return of[account.slice(account.lastIndexOf('/') + 1)[0] as keyof typeof of]
}

/** Some hundred tokens of input: an estimate counts three characters a token, the provider four. */
const handbook = 'Work as the handbook says. '.repeat(110)
/** What the provider counts of it at least. */
export const handbookTokens = Math.floor(handbook.length / 4)

/** The crew of a plan. */
export function treeCrew({ limits, per, races }: TreePlan): Crew {
  const note = defineTool({
    ...{ name: 'note', description: 'Notes something down.', effect: 'pure', input: z.object({ n: z.number() }) },
    run: ({ n }: { n: number }) => `noted ${n}`,
  })
  const agent = (
    name: string,
    usd: number,
    more: { delegates?: readonly string[]; tools?: readonly (typeof note)[] },
  ) =>
    defineAgent({
      ...{ name, model: 'scripted:any', instructions: `I am ${name}. ${handbook}`, budget: { usd: usd / 1e9 } },
      settings: { maxOutputTokens: maxOutput },
      limits: { rounds: 8, callsPerRound: workers, attempts: 4 },
      ...more,
    })
  const group = (of: string, below: string, usd: number, less: number) => ({
    [of]: agent(of, usd, { delegates: [below] }),
    [below]: agent(below, less, { tools: [note] }),
  })
  return defineCrew({
    name: 'tree',
    agents: {
      ...Object.assign({}, ...heads.map((name) => group(name, `s${name.slice(1)}`, limits.head, limits.scout))),
      chief: agent('chief', limits.chief, { delegates: managers }),
      ...Object.assign({}, ...managers.map((name) => group(name, `w${name.slice(1)}`, limits.manager, limits.worker))),
    },
    flow: sequential(parallel(heads, { join: races ? 'first' : 'all' }), 'chief'),
    budget: { usd: limits.run / 1e9, per },
    limits: { delegates: 64 },
  }) as Crew
}
