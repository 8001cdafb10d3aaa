// Two crews of this definition, `left` and `right`, ask each other.
import { defineAgent, defineCrew } from 'troupe'

export default defineCrew({
  name: 'pair',
  agents: {
    asker: defineAgent({
      model: 'openai:gpt-5-mini',
      delegates: ['left/agent/helper', 'right/agent/helper'],
      instructions: 'Ask.',
    }),
    helper: defineAgent({ model: 'openai:gpt-5-mini', instructions: 'Help.' }),
  },
  lead: 'asker',
})
