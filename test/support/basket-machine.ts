/** A machine of a user's for several processes: it counts, asks promises of two classes, emits, and ends with an output. */
import { assign, emit, fromPromise, setup } from 'xstate'
import { z } from 'zod'
import { defineMachine } from '../../runtime/define-machine.js'

export interface BasketContext {
  readonly customer: string
  readonly items: number
  readonly price: number | null
  readonly receipt: string | null
  /** What a promise failed over. */
  readonly problem: string | null
}

export type BasketEvent =
  | { readonly type: 'add'; readonly items: number }
  | { readonly type: 'quote' }
  | { readonly type: 'pay' }

/** What its promises do. */
export interface BasketWork {
  quote?(items: number): Promise<number>
  charge?(items: number): Promise<string>
}

/** The machine; the work is no part of its identity. `quote` may be done twice, `charge` must not. */
export function basketWith({ quote = async (items) => items * 2, charge = async () => 'paid' }: BasketWork = {}) {
  const machine = setup({
    types: {} as {
      context: BasketContext
      input: { customer: string }
      events: BasketEvent
      output: { customer: string; items: number; receipt: string | null }
    },
    actors: {
      quote: fromPromise(({ input }: { input: number }) => quote(input)),
      charge: fromPromise(({ input }: { input: number }) => charge(input)),
    },
  }).createMachine({
    id: 'basket',
    context: ({ input }) => ({ customer: input.customer, items: 0, price: null, receipt: null, problem: null }),
    initial: 'open',
    output: ({ context: { customer, items, receipt } }) => ({ customer, items, receipt }),
    states: {
      open: {
        on: {
          add: {
            actions: [
              assign({ items: ({ context, event }) => context.items + event.items }),
              emit({ type: 'added' } as never),
            ],
          },
          quote: 'quoting',
          pay: 'paying',
        },
      },
      quoting: {
        invoke: {
          id: 'quote',
          src: 'quote',
          input: ({ context }) => context.items,
          onDone: { target: 'open', actions: assign({ price: ({ event }) => event.output }) },
        },
      },
      paying: {
        invoke: {
          id: 'charge',
          src: 'charge',
          input: ({ context }) => context.items,
          onDone: { target: 'done', actions: assign({ receipt: ({ event }) => event.output }) },
          onError: {
            target: 'open',
            actions: assign({ problem: ({ event }) => (event.error as { code?: string }).code ?? 'thrown' }),
          },
        },
      },
      done: { type: 'final' },
    },
  })
  const messages = z.discriminatedUnion('type', [
    z.strictObject({ type: z.literal('add'), items: z.int().min(1).default(1) }),
    z.strictObject({ type: z.literal('quote') }),
    z.strictObject({ type: z.literal('pay') }),
    // What only XState may send: a schema that lets it pass does not open the way.
    z.looseObject({ type: z.literal('xstate.done.actor.charge') }),
  ])
  const input = z.object({ customer: z.string().trim().min(1) })
  return defineMachine(machine, { input, messages, promises: { quote: 'idempotent' } })
}
