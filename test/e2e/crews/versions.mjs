// A crew whose instructions are those of its time: where EDITION differs it is another version of it.
import { defineAgent, defineCrew } from 'troupe'

export default defineCrew({
  name: 'desk',
  agents: { clerk: defineAgent({ model: 'openai:gpt-5-mini', instructions: `Edition ${process.env.EDITION}.` }) },
  lead: 'clerk',
})
