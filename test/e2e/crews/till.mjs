// A crew whose payments a person approves; each payment is a line of `paid.txt`.
import { appendFileSync } from 'node:fs'
import { defineAgent, defineTool } from 'troupe'
import { z } from 'zod'

const pay = defineTool({
  name: 'pay',
  description: 'Pays.',
  input: z.object({ to: z.string(), usd: z.number() }),
  approval: true,
  run: ({ to, usd }) => {
    appendFileSync('paid.txt', `${to} ${usd}\n`)
    return 'paid'
  },
})

export default defineAgent({ name: 'till', model: 'openai:gpt-5-mini', instructions: 'Pay.', tools: [pay], questions: true })
