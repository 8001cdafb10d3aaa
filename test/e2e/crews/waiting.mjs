// A crew whose one tool waits for somebody outside, who counts the calls.
import { defineAgent, defineCrew, defineTool } from 'troupe'
import { z } from 'zod'

const wait = defineTool({
  name: 'wait',
  description: 'Waits for somebody outside.',
  input: z.object({}),
  effect: 'once',
  run: async (_, { signal }) => (await fetch(process.env.OUTSIDE, { method: 'POST', signal })).text(),
})

export default defineCrew({
  name: 'desk',
  agents: { clerk: defineAgent({ model: 'openai:gpt-5-mini', tools: [wait], instructions: 'Answer.' }) },
  lead: 'clerk',
})
