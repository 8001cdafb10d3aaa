/**
 * Who leads a crew, and who may go on with what: the checks of a definition that concern several agents.
 *
 * Owns: what a `flow` may be, hand-overs from agent to agent.
 * Does not own: the agents themselves (`define.ts`), leading (`machines/`).
 */
import { z } from 'zod'
import { handoffName, isAddress } from './called-names.js'
import type { Agent, Crew } from './define.js'
import { type FlowMachine, isFlowMachine, type MachineDefinition, toMachine } from './define-machine.js'
import { TroupeError } from './errors.js'
import { agentsOf, type Flow, type Parallel, type Supervisor, toFlow } from './flow.js'
import { agentsCalledBy } from './logic.js'

/** What leads a crew that has no lead of its own. */
export function ledBy(given: Flow | Parallel | Supervisor | FlowMachine | undefined): {
  readonly supervisor?: Supervisor
  readonly flow?: Flow
  readonly machine?: MachineDefinition
} {
  if (given === undefined) return {}
  if (isFlowMachine(given)) return { machine: toMachine(given) }
  return given.kind === 'supervisor' ? { supervisor: given } : { flow: toFlow(given) }
}

/** Who has to be an agent of the crew, for it to be led. */
export function leadsOf(
  lead: string | undefined,
  flow: Flow | undefined,
  machine: MachineDefinition | undefined,
): string[] {
  if (machine !== undefined) return agentsCalledBy(machine.logics).filter((name) => !isAddress(name))
  return flow === undefined ? [lead!] : agentsOf(flow)
}

/** The same agents; one of them may delegate to those that it supervises. */
export function supervisedBy(
  agents: Readonly<Record<string, Agent>>,
  { lead, agents: others }: Supervisor,
): Record<string, Agent> {
  const supervisor = agents[lead]!
  const delegates = [...new Set([...supervisor.delegates, ...others])]
  const taken = new Set([
    ...supervisor.tools.map(({ name }) => name),
    ...supervisor.handoffs.map((each) => handoffName(each.agent)),
  ])
  const twice = others.find((name) => taken.has(name))
  if (twice !== undefined) throw new TroupeError('CREW_INVALID', `agent ${lead}: two tools named ${twice}`)
  return { ...agents, [lead]: Object.freeze({ ...supervisor, delegates }) }
}

/** Whoever has the task last gives the answer: it must be what the first one was asked for. */
export function checkHandoffs({ name: crew, agents }: Pick<Crew, 'name' | 'agents'>): void {
  for (const [name, { handoffs, output }] of Object.entries(agents)) {
    for (const { agent } of handoffs) {
      const next = agents[agent]
      const problem =
        next === undefined
          ? 'which is not one of its agents'
          : agent === name
            ? 'which is itself'
            : shapeOf(next.output) === shapeOf(output)
              ? null
              : 'whose output is another one'
      if (problem !== null)
        throw new TroupeError('CREW_INVALID', `crew ${crew}: ${name} hands over to '${agent}', ${problem}`)
    }
  }
}

/** An output as text; equal ones have equal text. */
function shapeOf(output: z.ZodType | undefined): string {
  return output === undefined ? '' : JSON.stringify(z.toJSONSchema(output, { unrepresentable: 'any' }))
}
