/** One agent, one tool, one question. Here the model is a script behind a real HTTP server: no key, no network. */
import { ask, defineAgent, defineTool, reply, startScriptedModel } from 'troupe'
import { z } from 'zod'

const model = await startScriptedModel(({ messages }) => {
  const last = messages.at(-1)
  return last?.role === 'tool' ? `It landed on ${String(last.content)}.` : reply.call('lookup', { topic: 'Eagle' })
})

const lookup = defineTool({
  name: 'lookup',
  description: 'Looks up when something happened.',
  input: z.object({ topic: z.string() }),
  effect: 'pure',
  run: ({ topic }) => (topic === 'Eagle' ? '20 July 1969' : 'an unknown day'),
})

const historian = defineAgent({
  model: 'scripted:any', // with OPENAI_API_KEY set: 'openai:gpt-5-mini', and no `providers` below
  instructions: 'Answer from what the tools say.',
  tools: [lookup],
})

const { output, usage } = await ask(historian, 'When did the Eagle land?', {
  runtime: { providers: { scripted: { baseURL: model.baseURL } } },
})
console.log(`${usage.modelCalls} model calls, ${usage.toolCalls} tool call`)
console.log(output)
await model.close()
