/**
 * A crew made ready to run: the definition as data for the journal and the machines, the user's functions for the edge.
 *
 * Owns: the data form of a definition, prices and estimates that go into it, the texts a request needs.
 * Does not own: the definition's checks (`define.ts`), running it.
 *
 * - PP1 Equal definitions have equal data; functions count by name only.
 */
import { z } from 'zod'
import type { AgentData, CrewData, PoolData } from '../machines/index.js'
import { fromOf, limitsOf, termsOf } from './budget.js'
import { canonicalJson, contentHash } from './codec.js'
import { delegateName, handoffName, isAddress } from './called-names.js'
import type { Agent, AnyTool, Crew, MachineIdentity } from './define.js'
import { identityOf } from './define-machine.js'
import { TroupeError } from './errors.js'
import type { ModelPort } from './ports.js'
import { describeCondition, toolsIn } from './stop-condition.js'
import { supervisionOf } from './supervision.js'
import { type JudgedAgent, responseFormat, toolSchemas } from './verdict.js'

/** One agent, ready for the edge. */
export interface PreparedAgent extends JudgedAgent {
  readonly agent: Agent
  /** Its deployments, by groups of those that are as good as each other. */
  readonly groups: readonly (readonly string[])[]
  /** Addresses of agents of other crews that it may call, by the names of their tools. */
  readonly away: ReadonlyMap<string, string>
  /** The system message as JSON text; null when `instructions` is a function. */
  readonly system: string | null
  /** JSON text of the `tools` array. */
  readonly schemas: string | null
  /** JSON text of `response_format`. */
  readonly format: string | null
}

/** One crew, ready to run. */
export interface PreparedCrew {
  readonly crew: Crew
  readonly data: CrewData & { readonly machine?: MachineIdentity; readonly pool?: PoolData }
  /** Canonical JSON of everything that is data: what the journal takes as the definition. */
  readonly definition: string
  /** Hex hash of `definition`. */
  readonly hash: string
  readonly agents: ReadonlyMap<string, PreparedAgent>
}

/** Default bound of output tokens a round. */
const defaultMaxOutputTokens = 4_096

/**
 * Prepares a crew.
 * @throws TroupeError `MODEL_UNKNOWN`, `KEY_MISSING` for a model that cannot work, `CREW_INVALID` for a schema that has no JSON Schema.
 */
export function prepareCrew(crew: Crew, model: ModelPort): PreparedCrew {
  const agents = new Map<string, PreparedAgent>()
  const data: Record<string, AgentData> = {}
  const described: Record<string, unknown> = {}
  for (const [name, agent] of Object.entries(crew.agents)) {
    for (const deployment of agent.models) model.check(deployment)
    const prepared = prepareAgent(agent, crew)
    checkStops(name, agent)
    agents.set(name, prepared)
    data[name] = agentData(name, prepared, crew, model)
    described[name] = describeAgent(agent, prepared)
  }
  const crewData: PreparedCrew['data'] = {
    name: crew.name,
    lead: crew.lead,
    ...(crew.flow === undefined ? {} : { flow: crew.flow.stages }),
    ...(crew.flowMachine === undefined ? {} : { flowMachine: { ...identityOf(crew.flowMachine) } }),
    agents: data,
    limits: limitsOf(crew.budget),
    ...termsOf(crew.budget),
    ...fromOf(crew.budget),
    per: crew.budget.per ?? 'run',
    wallMs: crew.budget.wallMs ?? null,
    delegates: crew.limits.delegates,
    answerMs: crew.limits.answerMs,
    ...(crew.machine === undefined ? {} : { machine: crew.machine }),
    ...(crew.pool === undefined ? {} : { pool: crew.pool }),
  }
  const definition = canonicalJson({
    data: crewData,
    agents: described,
    limits: crew.limits,
    version: crew.version ?? null,
  })
  return { crew, data: crewData, definition, hash: contentHash(definition), agents }
}

/** @throws TroupeError `CREW_INVALID` for a condition that is about something that the agent cannot call. */
function checkStops(name: string, { stopWhen, tools, delegates }: Agent): void {
  const known = new Set([...tools.map((tool) => tool.name), ...delegates])
  const unknown = toolsIn(stopWhen).find((tool) => !known.has(tool))
  if (unknown === undefined) return
  throw new TroupeError(
    'CREW_INVALID',
    `agent ${name}: stopWhen: calledTool(${unknown}): it has no such tool or delegate`,
  )
}

function prepareAgent(agent: Agent, crew: Crew): PreparedAgent {
  const { instructions, output } = agent
  return {
    agent,
    groups: agent.groups,
    tools: new Map<string, AnyTool>(agent.tools.map((tool) => [tool.name, tool])),
    delegates: new Set(agent.delegates.map(delegateName)),
    away: new Map(agent.delegates.filter(isAddress).map((address) => [delegateName(address), address])),
    handoffs: new Map(agent.handoffs.map((each) => [handoffName(each.agent), each.agent])),
    callsPerRound: agent.limits.callsPerRound,
    system: typeof instructions === 'string' ? systemMessage(instructions) : null,
    schemas: toolSchemas(agent, crew),
    format: output === undefined ? null : responseFormat(output),
  }
}

/** A system message as JSON text. */
export function systemMessage(instructions: string): string {
  return JSON.stringify({ role: 'system', content: instructions })
}

/** Rough tokens of a text; errs on the high side for prose. */
export function estimateTokens(characters: number): number {
  return Math.ceil(characters / 3)
}

function agentData(name: string, prepared: PreparedAgent, crew: Crew, model: ModelPort): AgentData {
  const { agent, system, schemas, format } = prepared
  const characters = (system?.length ?? 0) + (schemas?.length ?? 0) + (format?.length ?? 0)
  const maxOutputTokens = agent.settings.maxOutputTokens ?? defaultMaxOutputTokens
  return {
    name,
    deployments: agent.groups.flatMap((deployments, group) =>
      deployments.map((deployment) => ({
        name: deployment,
        price: model.price(deployment) ?? crew.unknownPrice,
        group,
      })),
    ),
    rounds: agent.limits.rounds,
    attempts: agent.limits.attempts,
    maxOutputTokens,
    minOutputTokens: Math.min(crew.minOutputTokens, maxOutputTokens),
    baseTokens: estimateTokens(characters) + 16,
    limits: agent.budget === undefined ? null : limitsOf(agent.budget),
    ...termsOf(agent.budget ?? {}),
    keep: agent.continue,
    // Only who calls something can repeat itself.
    loops: agent.tools.length + agent.delegates.length + agent.handoffs.length > 0 ? agent.limits.loops : null,
    ...supervisionOf(agent.supervision, crew.supervision),
    ...preparesOf(agent),
  }
}

/** In which rounds its user's code has a say; conditions have none in the first. */
function preparesOf({ prepareRound, stopWhen }: Agent): Pick<AgentData, 'prepares'> {
  if (prepareRound !== undefined) return { prepares: 'each' }
  return stopWhen.length === 0 ? {} : { prepares: 'later' }
}

function describeAgent(agent: Agent, prepared: PreparedAgent): unknown {
  const { instructions, settings, models, delegates } = agent
  return {
    instructions: typeof instructions === 'string' ? instructions : `function ${instructions.name}`,
    models,
    delegates,
    ...(agent.handoffs.length === 0
      ? {}
      : {
          handoffs: agent.handoffs.map(({ agent: next, history }) => ({ agent: next, history: history?.name ?? null })),
        }),
    ...(agent.prepareRound === undefined ? {} : { prepareRound: `function ${agent.prepareRound.name}` }),
    ...(agent.stopWhen.length === 0 ? {} : { stopWhen: agent.stopWhen.map(describeCondition) }),
    settings,
    tools: agent.tools.map(
      ({
        name,
        description,
        effect,
        onUnknown,
        timeoutMs,
        retries,
        run,
        remote,
        polling,
        server,
        approval,
        approvalMs,
      }) => ({
        ...(remote ? { remote } : {}),
        ...(polling ? { polling } : {}),
        ...(server === undefined ? {} : { server }),
        ...(approval === false ? {} : { approval: approval === true ? true : `function ${approval.name}`, approvalMs }),
        name,
        description,
        effect,
        onUnknown,
        timeoutMs,
        retries,
        run: run.name,
      }),
    ),
    schemas: prepared.schemas,
    output: agent.output === undefined ? null : z.toJSONSchema(agent.output, { unrepresentable: 'any' }),
  }
}
