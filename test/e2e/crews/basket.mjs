// A machine as default export: it takes messages until it is closed, and ends with what it was told.
import { defineMachine } from 'troupe'
import { assign, emit, setup } from 'xstate'
import { z } from 'zod'

const machine = setup({}).createMachine({
  id: 'basket',
  context: ({ input }) => ({ customer: input?.customer, items: 0 }),
  initial: 'open',
  output: ({ context }) => context,
  states: {
    open: {
      on: {
        add: {
          actions: [
            assign({ items: ({ context, event }) => context.items + event.items }),
            emit(({ event }) => ({ type: 'added', items: event.items })),
          ],
        },
        close: 'closed',
      },
    },
    closed: { type: 'final' },
  },
})

export default defineMachine(machine, {
  input: z.object({ customer: z.string() }),
  messages: z.union([z.object({ type: z.literal('add'), items: z.int() }), z.object({ type: z.literal('close') })]),
})
