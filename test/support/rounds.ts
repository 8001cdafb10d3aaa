/** Agents whose user has a say in their rounds, and tasks for them. */
import { z } from 'zod'
import { type AgentOptions, type Crew, defineAgent, defineTool } from '../../runtime/define.js'
import type { ModelRequest } from '../../runtime/ports.js'
import type { RoundChanges, RoundContext } from '../../runtime/prepare-round.js'
import { call, messagesOf, type Model, openStage, resultsIn, say, type StageOptions } from './crew-stage.js'
import { collect } from './values.js'

/** Tools, and an agent that has them. */
export const input = z.object({ topic: z.string().default('x') })
export const look = defineTool({
  name: 'look',
  description: '',
  input,
  effect: 'pure',
  run: ({ topic }) => `saw ${topic}`,
})
export const submit = defineTool({
  name: 'submit',
  description: '',
  input: z.object({ text: z.string() }),
  run: (given) => given,
})
const base = { model: 'a:one', instructions: 'You are it.', tools: [look, submit] } as const
export const agentWith = (more: Partial<AgentOptions>) => defineAgent({ ...base, ...more } as AgentOptions)
/** Looks until it has so many results, then answers. */
export const looks =
  (rounds: number): Model =>
  (request) =>
    resultsIn(request).length < rounds ? call(['look', { topic: `t${resultsIn(request).length}` }]) : say('done')
/** Names of the tools that a request tells of. */
export const toolsOf = ({ tools }: ModelRequest): string[] =>
  (JSON.parse(tools ?? '[]') as { function: { name: string } }[]).map((each) => each.function.name)
/** What the messages of a request say, and whose they are. */
export const contentsOf = (request: ModelRequest) => messagesOf(request).map(({ content }) => content)
export const rolesOf = (request: ModelRequest) => messagesOf(request).map(({ role }) => role)

/** Runs one task to its end. */
export async function asked(
  definition: Partial<AgentOptions> | Crew<unknown>,
  model: Model,
  options: StageOptions = {},
) {
  const stage = await openStage({ model, ...options })
  try {
    const crew = 'kind' in definition ? definition : agentWith(definition as Partial<AgentOptions>)
    const run = (await stage.runtime.spawn(crew as Crew<unknown>, { id: 'c' })).start('go', { data: { tenant: 'a' } })
    const events = collect(run.events)
    const result = await run.result
    return { ...result, requests: stage.requests, events: await events }
  } finally {
    await stage.runtime.close({ graceMs: 0 })
  }
}
export const changing = (changes: (context: RoundContext) => RoundChanges | undefined): Partial<AgentOptions> => ({
  prepareRound: changes,
})
