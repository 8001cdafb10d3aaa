// A JavaScript crew file: `troupe` and `zod` are what Node resolves.
import { defineAgent, defineCrew, defineTool } from 'troupe'
import { z } from 'zod'

const lookup = defineTool({
  name: 'lookup',
  description: 'Looks a topic up.',
  input: z.object({ topic: z.string() }),
  effect: 'idempotent',
  run: ({ topic }) => `a fact about ${topic}`,
})

export default defineCrew({
  name: 'desk',
  agents: { clerk: defineAgent({ model: 'openai:gpt-5-mini', tools: [lookup], instructions: 'Answer.' }) },
  lead: 'clerk',
})
