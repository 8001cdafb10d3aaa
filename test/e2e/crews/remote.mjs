// A crew whose tools run in tool workers. Each call tells a server of the test that it begins, and waits for its answer.
import { defineAgent, defineCrew, defineTool } from 'troupe'
import { z } from 'zod'

const remote = (name, effect) =>
  defineTool({
    name,
    description: 'Does something far away.',
    input: z.object({ word: z.string() }),
    effect,
    remote: true,
    timeoutMs: 60_000,
    run: async ({ word }, { idempotencyKey, signal, progress }) => {
      progress({ word })
      const facts = new URLSearchParams({ name, word, key: idempotencyKey, worker: `${process.pid}` })
      const answer = await fetch(`${process.env.LEDGER}?${facts}`, { signal })
      return `${name} ${await answer.text()}`
    },
  })

export default defineCrew({
  name: 'remote',
  agents: {
    clerk: defineAgent({
      model: 'openai:gpt-5-mini',
      tools: [remote('look', 'pure'), remote('put', 'idempotent'), remote('send', 'once')],
      instructions: 'Answer.',
    }),
  },
  lead: 'clerk',
})
