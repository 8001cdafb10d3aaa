// A crew whose flow is a machine of its user's: one writes, a promise looks at it, the other judges.
import { callAgent, defineAgent, defineCrew, defineMachine } from 'troupe'
import { assign, fromPromise, setup } from 'xstate'

const agent = (name) => defineAgent({ model: 'openai:gpt-5-mini', instructions: `You are ${name}.` })
const essay = setup({
  actors: {
    writer: callAgent('writer'),
    critic: callAgent('critic'),
    count: fromPromise(({ input }) => Promise.resolve(input.length)),
  },
}).createMachine({
  id: 'essay',
  context: ({ input }) => ({ task: input.task, draft: '', letters: 0 }),
  output: ({ context }) => `${context.draft}, ${context.letters} letters, ${context.verdict}`,
  initial: 'writing',
  states: {
    writing: {
      invoke: {
        src: 'writer',
        id: 'draft',
        input: ({ context }) => context.task,
        onDone: { target: 'counting', actions: assign({ draft: ({ event }) => event.output }) },
      },
    },
    counting: {
      invoke: {
        src: 'count',
        id: 'count',
        input: ({ context }) => context.draft,
        onDone: { target: 'judging', actions: assign({ letters: ({ event }) => event.output }) },
      },
    },
    judging: {
      invoke: {
        src: 'critic',
        id: 'verdict',
        input: ({ context }) => context.draft,
        onDone: { target: 'done', actions: assign({ verdict: ({ event }) => event.output }) },
      },
    },
    done: { type: 'final' },
  },
})

export default defineCrew({
  name: 'desk',
  agents: { writer: agent('writer'), critic: agent('critic') },
  flow: defineMachine(essay, { promises: { count: 'pure' } }),
})
