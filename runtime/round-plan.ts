/**
 * Round plans: what a model is sent, and may call, in a round that its user's code has changed.
 *
 * Owns: an agent as a plan has it, the order of what is sent.
 * Does not own: making a plan (`prepare-round.ts`), which round it is for (`machines/agent.ts`).
 *
 * - RP1 A plan leaves out, or says beside; a conversation is as it was, for the next round and for whoever goes on with it.
 * - RP2 What a model may call in a round is what it was told of: anything else is refused.
 */
import type { RoundPlan } from '../machines/index.js'
import type { Shown } from './handoff.js'
import type { ModelSettings } from './ports.js'
import type { PreparedAgent } from './prepared-crew.js'

/** An agent for one round. Without a plan it is as it was defined. */
export function plannedAgent(agent: PreparedAgent, plan: RoundPlan | undefined): PreparedAgent {
  if (plan === undefined) return agent
  const { tools, settings, deployments } = plan
  return {
    ...agent,
    ...(deployments === undefined ? {} : { groups: groupsOf(deployments) }),
    ...(tools === undefined ? {} : offered(agent, new Set(tools))),
    ...(settings === undefined
      ? {}
      : {
          agent: { ...agent.agent, settings: { ...agent.agent.settings, ...(JSON.parse(settings) as ModelSettings) } },
        }),
  }
}

/** By what names a model may call something. */
export function callable({ tools, delegates, handoffs }: PreparedAgent): string[] {
  return [...tools.keys(), ...delegates, ...handoffs.keys()]
}

function offered(
  { tools, delegates, handoffs, schemas }: PreparedAgent,
  names: ReadonlySet<string>,
): Pick<PreparedAgent, 'tools' | 'delegates' | 'handoffs' | 'schemas'> {
  const all = JSON.parse(schemas ?? '[]') as { readonly function: { readonly name: string } }[]
  const left = all.filter((each) => names.has(each.function.name))
  return {
    tools: new Map([...tools].filter(([name]) => names.has(name))),
    delegates: new Set([...delegates].filter((name) => names.has(name))),
    handoffs: new Map([...handoffs].filter(([name]) => names.has(name))),
    schemas: left.length === 0 ? null : JSON.stringify(left),
  }
}

/**
 * The messages of a round: the system message, what the conversation has of others, and what is said beside.
 * @param shown what the agent is shown of its conversation @param beside in the plan's order
 */
export function messagesIn(
  { system }: Pick<PreparedAgent, 'system'>,
  shown: readonly Shown[],
  plan: RoundPlan | undefined,
  beside: readonly string[],
): string[] {
  const { hidden = [], beside: said = { system: false, before: 0, behind: 0 } } = plan ?? {}
  const isShown = ({ at }: Shown): boolean => !hidden.some(([from, to]) => at >= from && at <= to)
  const seen = (hidden.length === 0 ? shown : shown.filter(isShown)).map(({ text }) => text)
  const own = said.system ? beside.slice(0, 1) : system === null ? [] : [system]
  const rest = beside.slice(said.system ? 1 : 0)
  // An agent's own system message may be the conversation's first; it stays in front.
  const front = said.before === 0 ? 0 : seen.findIndex((text) => !isSystem(text))
  const first = front < 0 ? seen.length : front
  return [
    ...own,
    ...seen.slice(0, first),
    ...rest.slice(0, said.before),
    ...seen.slice(first),
    ...rest.slice(said.before),
  ]
}

function isSystem(text: string): boolean {
  return (JSON.parse(text) as { role?: unknown }).role === 'system'
}

function groupsOf(deployments: NonNullable<RoundPlan['deployments']>): string[][] {
  const groups = [...new Set(deployments.map(({ group }) => group))]
  return groups.map((group) => deployments.filter((each) => each.group === group).map(({ name }) => name))
}
