// An agent with one model call too few: a person is asked for more.
import { defineAgent, defineCrew, defineTool } from 'troupe'
import { z } from 'zod'

const look = defineTool({
  name: 'look',
  description: 'Looks.',
  input: z.object({}),
  effect: 'pure',
  run: () => 'seen',
})
const scout = defineAgent({ model: 'openai:gpt-5-mini', instructions: 'Look.', tools: [look] })

export default defineCrew({
  name: 'thrifty',
  agents: { scout },
  lead: 'scout',
  budget: { modelCalls: 1, onExhausted: 'ask' },
})
