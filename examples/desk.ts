/**
 * A help desk: whoever takes a question hands it over to the one who can answer, then an editor has the last word.
 *
 * The front desk gives its whole conversation to billing (`handoffs`), which goes on where it was; the editor gets the task
 * and what the step before has answered (`sequential`). Each step of it is a message between actors, so all of it can be
 * watched.
 */
import { createRuntime, defineAgent, defineCrew, defineTool, reply, sequential, startScriptedModel } from 'troupe'
import { z } from 'zod'

const model = await startScriptedModel(({ messages }) => {
  const [system = '', ...said] = messages.map(({ content }) => String(content))
  const last = said.at(-1) ?? ''
  if (system.includes('front desk')) return reply.call('transfer_to_billing', { reason: 'it is about an invoice' })
  if (system.includes('editor')) return `Dear customer, ${last.split('\n').at(-1)!}`
  return last.includes('goes on from here') ? reply.call('invoice', { number: 17 }) : `invoice 17 ${last}.`
})

const invoice = defineTool({
  name: 'invoice',
  description: 'Says what became of an invoice.',
  input: z.object({ number: z.int() }),
  effect: 'pure',
  run: ({ number }) => (number === 17 ? 'was paid on 3 May' : 'is not known'),
})

const desk = defineCrew({
  name: 'desk',
  agents: {
    front: defineAgent({
      model: 'scripted:any',
      instructions: 'You are the front desk: hand each question over to whoever knows.',
      handoffs: ['billing'],
    }),
    billing: defineAgent({ model: 'scripted:any', instructions: 'You know the invoices.', tools: [invoice] }),
    editor: defineAgent({ model: 'scripted:any', instructions: 'You are the editor: make it a friendly letter.' }),
  },
  flow: sequential('front', 'editor'),
})

await using runtime = await createRuntime({ providers: { scripted: { baseURL: model.baseURL, apiKey: null } } })
const run = (await runtime.spawn(desk)).start('What about invoice 17?')
for await (const { type, data } of run.events) {
  if (type === 'troupe.flow.stage') console.log(`step ${String(data['stage'])}: ${String(data['agents'])}`)
  if (type === 'troupe.agent.handed') console.log(`goes to ${String(data['agent'])}`)
}
console.log((await run.result).output)
await model.close()
