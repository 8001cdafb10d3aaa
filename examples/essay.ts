/**
 * A machine of one's own as a crew's flow: a writer writes, a critic judges, until it is good or three drafts are written.
 *
 * The machine is plain XState. It starts with `{ task, data }`; agents are invoked by `callAgent`, and their answers come as
 * those of promises do. What it does survives a crash like everything else.
 */
import { callAgent, createRuntime, defineAgent, defineCrew, startScriptedModel } from 'troupe'
import { assign, setup } from 'xstate'

const model = await startScriptedModel(({ messages }) => {
  const [system = '', told = ''] = messages.map(({ content }) => String(content))
  if (system.includes('critic')) return told.includes('short') ? 'good' : 'too long'
  return told.includes('too long') ? 'A short poem.' : 'A poem that goes on and on.'
})

interface Types {
  context: { task: string; draft: string; drafts: number }
  input: { task: string }
  output: string
}
const types = {} as Types

const essay = setup({
  types,
  actors: { writer: callAgent('writer'), critic: callAgent('critic') },
}).createMachine({
  id: 'essay',
  context: ({ input: { task } }) => ({ task, draft: '', drafts: 0 }),
  output: ({ context: { draft, drafts } }) => `${draft} (draft ${drafts})`,
  initial: 'writing',
  states: {
    writing: {
      invoke: {
        src: 'writer',
        id: 'draft',
        input: ({ context: { task } }) => task,
        onDone: {
          target: 'judging',
          actions: assign({ draft: ({ event }) => event.output, drafts: ({ context }) => context.drafts + 1 }),
        },
      },
    },
    judging: {
      invoke: {
        src: 'critic',
        id: 'verdict',
        input: ({ context: { draft } }) => draft,
        onDone: [
          { guard: ({ context, event }) => event.output === 'good' || context.drafts === 3, target: 'done' },
          { target: 'writing', actions: assign({ task: ({ context, event }) => `${context.task}: ${event.output}` }) },
        ],
      },
    },
    done: { type: 'final' },
  },
})

const crew = defineCrew({
  name: 'essay',
  agents: {
    writer: defineAgent({ model: 'scripted:any', instructions: 'You are the writer.' }),
    critic: defineAgent({ model: 'scripted:any', instructions: 'You are the critic: good, or what is wrong?' }),
  },
  flow: essay,
})

await using runtime = await createRuntime({ providers: { scripted: { baseURL: model.baseURL, apiKey: null } } })
console.log((await (await runtime.spawn(crew)).ask('Write a poem')).output)
await model.close()
