// A TypeScript crew file with a task of its own.
import { defineAgent, defineCrew, defineTool } from 'troupe'
import { z } from 'zod'

const lookup = defineTool({
  name: 'lookup',
  description: 'Looks a topic up.',
  input: z.object({ topic: z.string() }),
  effect: 'idempotent',
  run: ({ topic }): string => `a fact about ${topic}`,
})

export const input = 'What is known?'

export default defineCrew({
  name: 'desk',
  agents: { clerk: defineAgent({ model: 'openai:gpt-5-mini', tools: [lookup], instructions: 'Answer.' }) },
  lead: 'clerk',
})
