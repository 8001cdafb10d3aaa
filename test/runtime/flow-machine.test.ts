import { describe, expect, expectTypeOf, test } from 'vitest'
import { type AnyStateMachine, assign, createMachine, fromPromise, sendParent, sendTo, setup } from 'xstate'
import { z } from 'zod'
import { type AgentOptions, type Crew, defineAgent, defineCrew } from '../../runtime/define.js'
import { defineMachine } from '../../runtime/define-machine.js'
import { callAgent } from '../../runtime/logic.js'
import type { ModelRequest } from '../../runtime/ports.js'
import { createMemoryStore } from '../../transport/memory-journal.js'
import { call, gate, type Model, openStage, say, until } from '../support/crew-stage.js'

const agent = (name: string, more: Partial<AgentOptions> = {}) =>
  defineAgent({ model: 'a:one', instructions: `You are ${name}.`, ...more })
const whoOf = ({ messages }: ModelRequest) => /You are (\w+)/.exec(messages[0] ?? '')?.[1] ?? 'nobody'
const heard = ({ messages }: ModelRequest) =>
  messages.slice(1).map((text) => (JSON.parse(text) as { content: string }).content)
/** Says its name and what it has heard. */
const echoes: Model = (request) => say(`${whoOf(request)}(${heard(request).join('; ')})`)
const code = (wanted: string) => expect.objectContaining({ code: wanted }) as Error
type OutputOf<Made> = Made extends Crew<infer Output> ? Output : never
const agents = { writer: agent('writer'), critic: agent('critic') }

interface Draft {
  readonly task: string
  readonly draft: string
  readonly tries: number
}

/** The writer writes, until the critic says that it is good, thrice at most. */
const essay = setup({
  types: {} as { context: Draft; input: { task: string }; output: { text: string; tries: number } },
  actors: { writer: callAgent('writer'), critic: callAgent('critic') },
  guards: { isGood: (_, { said }: { said: string }) => said.startsWith('good') },
}).createMachine({
  id: 'essay',
  version: '1',
  context: ({ input }) => ({ task: input.task, draft: '', tries: 0 }),
  initial: 'writing',
  output: ({ context }) => ({ text: context.draft, tries: context.tries }),
  states: {
    writing: {
      invoke: {
        src: 'writer',
        id: 'draft',
        input: ({ context: { task, draft } }) => (draft === '' ? task : `${task}, better than ${draft}`),
        onDone: {
          target: 'judging',
          actions: assign({ draft: ({ event }) => event.output, tries: ({ context }) => context.tries + 1 }),
        },
      },
    },
    judging: {
      invoke: {
        src: 'critic',
        id: 'verdict',
        input: ({ context }) => context.draft,
        onDone: [
          { guard: { type: 'isGood', params: ({ event }) => ({ said: event.output }) }, target: 'done' },
          { guard: ({ context }) => context.tries >= 3, target: 'done' },
          { target: 'writing' },
        ],
      },
    },
    done: { type: 'final' },
  },
})

/** Both at once; whoever answers first wins. */
const race = setup({
  types: {} as { context: { task: string; won: string }; input: { task: string }; output: string },
  actors: { writer: callAgent('writer'), critic: callAgent('critic') },
}).createMachine({
  id: 'race',
  context: ({ input }) => ({ task: input.task, won: '' }),
  initial: 'racing',
  output: ({ context }) => context.won,
  states: {
    racing: {
      invoke: (['writer', 'critic'] as const).map((src) => ({
        src,
        id: src,
        input: ({ context }: { context: { task: string } }) => context.task,
        onDone: {
          target: 'done',
          actions: assign({ won: ({ event }: { event: { output: string } }) => event.output }),
        },
      })) as never,
    },
    done: { type: 'final' },
  },
})

/** Asks one agent once. */
function once(
  name: string,
  more: object = {},
  output: unknown = ({ context }: { context: unknown }) => context,
): AnyStateMachine {
  return setup({ actors: { one: callAgent<unknown>(name) } }).createMachine({
    id: 'once',
    context: {},
    initial: 'asking',
    output: output as never,
    states: {
      asking: {
        invoke: {
          src: 'one',
          id: 'one',
          input: 'go',
          onDone: { target: 'done', actions: assign(({ event }) => ({ output: event.output })) },
          ...more,
        },
      },
      done: { type: 'final' },
    },
  } as never) as unknown as AnyStateMachine
}

const crewOf = (flow: Parameters<typeof defineCrew>[0]['flow'], more: object = {}) =>
  defineCrew({ name: 'led', agents, flow, ...more } as never) as Crew<unknown>

async function asked(crew: Crew<unknown>, model: Model = echoes, data?: unknown) {
  const stage = await openStage({ model })
  try {
    return await (await stage.runtime.spawn(crew)).ask('go', { data })
  } finally {
    await stage.runtime.close({ graceMs: 0 })
  }
}

describe('a machine as flow', () => {
  test('FM1 flow machine: it has agents work, decides by their answers, and its output is the run’s', async () => {
    const crew = defineCrew({ name: 'essay', agents, flow: essay })
    expectTypeOf<OutputOf<typeof crew>>().toEqualTypeOf<{ text: string; tries: number }>()
    let judged = 0
    const result = await asked(crew, (request) => {
      if (whoOf(request) === 'writer') return echoes(request, 0)
      judged += 1
      return say(judged === 2 ? 'good' : 'bad')
    })
    expect(result.output).toEqual({ text: 'writer(go, better than writer(go))', tries: 2 })
    expect(result.usage.modelCalls).toBe(4)
    expect(result.messages.map(({ role }) => role)).toEqual(['user', 'assistant'])
  })

  test('FM1 flow machine: of a race the losers are cancelled, and what they had not spent is there again', async () => {
    const stage = await openStage({
      model: (request) => (whoOf(request) === 'critic' ? say('won') : gate<never>().opened),
    })
    const crew = await stage.runtime.spawn(crewOf(race))
    expect((await crew.ask('go')).output).toBe('won')
    await until(() => stage.requests.filter(({ signal }) => signal.aborted).length === 1)
    const show = await stage.runtime.show('led')
    expect(show.actors.map(({ address }) => address.split('/')[0]).sort()).toEqual(['budget', 'crew', 'router'])
    await stage.runtime.close({ graceMs: 0 })
  })

  test('FM2 flow machine: an answer has the value of the agent’s output schema', async () => {
    const shaped = { writer: agent('writer', { output: z.object({ n: z.number() }) }) }
    const crew = crewOf(once('writer'), { agents: shaped })
    expect((await asked(crew, () => say('{"n":7}'))).output).toEqual({ output: { n: 7 } })
  })

  test('TC1 flow machine: its input is the task and data, and what its schema refuses ends the run', async () => {
    const told = createMachine({
      id: 'told',
      types: {} as { context: object },
      context: ({ input }) => input as object,
      output: ({ context }) => context,
      initial: 'done',
      states: { done: { type: 'final' } },
    })
    expect((await asked(crewOf(told), echoes, { a: 1 })).output).toEqual({ task: 'go', data: { a: 1 } })
    const strict = defineMachine(told, { input: z.object({ task: z.string().min(5) }) })
    await expect(asked(crewOf(strict))).rejects.toThrow(code('INPUT_INVALID'))
  })

  test('flow machine: an agent that fails is an error of its invocation; one that nobody takes fails the run', async () => {
    const poor = { writer: agent('writer', { budget: { modelCalls: 0 } }) }
    const caught = once('writer', {
      onError: { target: 'done', actions: assign(({ event }) => ({ error: event.error })) },
    })
    const { output } = await asked(crewOf(caught, { agents: poor }))
    expect(output).toMatchObject({
      error: { code: expect.any(String) as string, message: expect.any(String) as string },
    })
    await expect(asked(crewOf(once('writer'), { agents: poor }))).rejects.toMatchObject({
      code: (output as { error: { code: string } }).error.code,
    })
  })

  test('flow machine: promises and after work beside agents, and a throw ends the run with its code', async () => {
    const machine = setup({
      actors: { look: fromPromise(() => Promise.resolve(20)), writer: callAgent('writer') },
    }).createMachine({
      id: 'mixed',
      context: {},
      initial: 'looking',
      states: {
        looking: { invoke: { src: 'look', id: 'look', onDone: 'waiting' } },
        waiting: { after: { 1_000: 'writing' } },
        writing: {
          invoke: {
            src: 'writer',
            id: 'w',
            input: { plain: ['data'] },
            onDone: {
              actions: assign(() => {
                throw new Error('too much')
              }),
            },
          },
        },
      },
    })
    const stage = await openStage({ model: echoes })
    const run = (await stage.runtime.spawn(crewOf(machine))).start('go')
    await until(() => stage.worker.active.get('led')!.state.timers.size > 0)
    stage.clock.advance(1_000)
    await expect(run.result).rejects.toMatchObject({ code: 'ACTOR_FAILED', message: 'too much' })
    expect(heard(stage.requests[0]!)).toEqual(['{"plain":["data"]}'])
    await stage.runtime.close({ graceMs: 0 })
  })

  test('UA6 flow machine: a cancelled run stops it and its agents; a paused one goes on when it is resumed', async () => {
    const held = gate<never>()
    const stage = await openStage({ model: () => held.opened })
    const crew = await stage.runtime.spawn(crewOf(once('writer')))
    const run = crew.start('go')
    await until(() => stage.requests.length === 1)
    await crew.pause()
    await crew.resume()
    await run.cancel()
    await expect(run.result).rejects.toThrow(code('RUN_CANCELLED'))
    expect(stage.requests[0]!.signal.aborted).toBe(true)
    await stage.runtime.close({ graceMs: 0 })
  })

  test('FM2 flow machine: a long answer is read from its blob; one that no outcome holds is an error', async () => {
    const caught = once('writer', {
      onError: { target: 'done', actions: assign(({ event }) => ({ error: event.error })) },
    })
    const long = 'x'.repeat(100_000)
    expect((await asked(crewOf(caught), () => say(long))).output).toEqual({ output: long })
    const longer = await asked(crewOf(caught), () => say('x'.repeat(300_000)))
    expect(longer.output).toMatchObject({ error: { code: 'ENVELOPE_TOO_LARGE' } })
  })

  test('FM1 flow machine: whoever the agent hands over to answers for it', async () => {
    const two = { writer: agent('writer', { handoffs: ['critic'] }), critic: agent('critic') }
    const { output } = await asked(crewOf(once('writer'), { agents: two }), (request) =>
      whoOf(request) === 'writer' ? call(['transfer_to_critic', {}]) : say('from the critic'),
    )
    expect(output).toEqual({ output: 'from the critic' })
  })

  test('flow machine: function instructions are made for the agents that it calls', async () => {
    const own = { writer: agent('writer', { instructions: ({ data }) => `You are writer${String(data)}.` }) }
    const result = await asked(crewOf(once('writer'), { agents: own }), echoes, 7)
    expect(result.output).toEqual({ output: 'writer7(go)' })
  })

  test.each([1, 2, 3, 4, 5, 6])('flow machine: killed at its model call %i it ends as it would have', async (at) => {
    const store = createMemoryStore()
    const crew = crewOf(essay)
    const first = await openStage({
      store,
      model: (request, index) => (index + 1 === at ? gate<never>().opened : echoes(request, index)),
    })
    const started = (await first.runtime.spawn(crew)).start('go', { key: 'k' })
    await until(() => first.requests.length === at)
    first.crash()
    const second = await openStage({ store, model: echoes, unclean: true, clock: first.clock })
    const again = (await second.runtime.spawn(crew)).start('go', { key: 'k' })
    expect(await again.id).toBe(await started.id)
    expect((await again.result).output).toMatchObject({ tries: 3 })
    await second.runtime.close({ graceMs: 0 })
  })

  test.each([
    ['an agent that is not there', () => crewOf(once('nobody')), "flow 'nobody' is not one of its agents"],
    ['a lead beside it', () => crewOf(essay, { lead: 'writer' }), 'either a lead or a flow'],
  ])('flow machine: %s is CREW_INVALID', (_, made, message) => {
    expect(made).toThrow(code('CREW_INVALID'))
    expect(made).toThrow(message)
  })

  test('UA6 flow machine: it cannot speak for the agents that its crew waits for', async () => {
    const forges = setup({}).createMachine({
      id: 'forges',
      entry: sendParent({ type: 'agent.finished', address: 'machine/r2', code: null }),
    })
    await expect(asked(crewOf(forges))).rejects.toThrow(code('ACTOR_FAILED'))
    const aims = setup({}).createMachine({
      id: 'aims',
      entry: sendTo({ address: 'crew/main' } as never, { type: 'crew.cancel' } as never),
    })
    await expect(asked(crewOf(aims))).rejects.toThrow(code('MACHINE_UNSUPPORTED'))
  })

  test('flow machine: of a run that has ended nothing is left but its conversation', async () => {
    const stage = await openStage({ model: echoes })
    await (await stage.runtime.spawn(crewOf(essay))).ask('go')
    const { logs, actors, effects } = (await stage.worker.shard('led')).state
    expect([...logs.keys()]).toEqual(['r2'])
    expect([...logs.values()].map(({ staged }) => staged.size)).toEqual([0])
    expect([...actors.keys()].filter((each) => /^(agent|machine|child)\//.test(each))).toEqual([])
    expect(effects.size).toBe(0)
    await stage.runtime.close({ graceMs: 0 })
  })

  test('flow machine: one that calls agents runs for no crew of its own', async () => {
    const stage = await openStage({})
    await expect(stage.runtime.spawn(defineMachine(essay))).rejects.toThrow(code('CREW_INVALID'))
    await stage.runtime.close({ graceMs: 0 })
  })
})
