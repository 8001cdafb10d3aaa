/**
 * A clerk that adds up invoices: the first round by a large model, the rest by a small one that sees only what is new, and
 * the end when the sum is handed in.
 *
 * `prepareRound` says what a round has otherwise, for that round only; `stopWhen` says that there is no further one. Both run
 * outside of the commits, and what they say is journalled, so a crew that is killed goes on with the same round.
 */
import { any, calledTool, createRuntime, defineAgent, defineTool, reply, roundsAre, startScriptedModel } from 'troupe'
import { z } from 'zod'

const amounts = [10, 20, 30]

const model = await startScriptedModel(({ messages, model: name }) => {
  const results = messages.filter(({ role }) => role === 'tool')
  console.log(`${name} is sent ${messages.length} messages`)
  if (String(messages.at(-1)?.content).startsWith('All read')) return reply.call('submit', { total: 60 })
  return reply.call('read', {
    invoice: results.length === 0 ? 0 : Number(String(results.at(-1)!.content).split(' ')[1]) + 1,
  })
})

const read = defineTool({
  name: 'read',
  description: 'Reads an invoice.',
  input: z.object({ invoice: z.int() }),
  effect: 'pure',
  run: ({ invoice }) => `invoice ${invoice} is over ${amounts[invoice] ?? 0}`,
})

const submit = defineTool({
  name: 'submit',
  description: 'Hands the total in.',
  input: z.object({ total: z.number() }),
  run: ({ total }) => `The total is ${total}.`,
})

const clerk = defineAgent({
  model: 'scripted:large',
  instructions: 'Read every invoice, then hand the total in.',
  tools: [read, submit],
  prepareRound: ({ round, messages }) => {
    if (round === 1) return {}
    if (round <= amounts.length) return { model: 'scripted:small', messages: messages.slice(-2) }
    return {
      model: 'scripted:small',
      tools: ['submit'],
      messages: [...messages, { role: 'user', content: 'All read.' }],
    }
  },
  stopWhen: any(calledTool('submit'), roundsAre(9)),
})

await using runtime = await createRuntime({ providers: { scripted: { baseURL: model.baseURL, apiKey: null } } })
const { output, finishReason } = await (await runtime.spawn(clerk)).ask('What do the invoices come to?')
console.log(finishReason)
console.log(output)
await model.close()
