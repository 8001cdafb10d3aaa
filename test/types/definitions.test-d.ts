import { describe, expectTypeOf, test } from 'vitest'
import {
  type Agent,
  any,
  ask,
  type ChatMessage,
  type Crew,
  type CrewHandle,
  createRuntime,
  defineAgent,
  defineCrew,
  defineTool,
  type EffectClass,
  type ErrorCode,
  isTroupeError,
  roundsAre,
  type Run,
  type RunResult,
  type Runtime,
  type ToolContext,
  TroupeError,
  type TroupeEvent,
} from 'troupe'
import { z } from 'zod'

const text = defineAgent({ model: 'a:b', instructions: 'x' })
const report = z.object({ title: z.string(), pages: z.number().default(1) })
const typed = defineAgent({ model: ['a:b', 'c:d'], instructions: () => 'x', output: report, delegates: ['text'] })

describe('types: output', () => {
  test('an agent without output answers with text', () => {
    expectTypeOf(text).toEqualTypeOf<Agent<string>>()
  })

  test('an agent’s output is what its schema gives out', () => {
    expectTypeOf(typed).toEqualTypeOf<Agent<{ title: string; pages: number }>>()
    const made = defineAgent({ model: 'a:b', instructions: '', output: z.string().transform((value) => value.length) })
    expectTypeOf(made).toEqualTypeOf<Agent<number>>()
  })

  test('a crew’s output is its lead’s', () => {
    const crew = defineCrew({ name: 'c', agents: { text, typed }, lead: 'typed' })
    expectTypeOf(crew).toEqualTypeOf<Crew<{ title: string; pages: number }>>()
    expectTypeOf(defineCrew({ name: 'c', agents: { text, typed }, lead: 'text' })).toEqualTypeOf<Crew<string>>()
  })

  test('it goes through runtime, handle, run and `ask`', () => {
    const crew = defineCrew({ name: 'c', agents: { text, typed }, lead: 'typed' })
    const use = async () => {
      await using runtime = await createRuntime()
      expectTypeOf(runtime).toEqualTypeOf<Runtime>()
      const handle = await runtime.spawn(crew)
      expectTypeOf(handle).toEqualTypeOf<CrewHandle<{ title: string; pages: number }>>()
      const run = handle.start('x')
      expectTypeOf(run).toEqualTypeOf<Run<{ title: string; pages: number }>>()
      expectTypeOf((await run.result).output).toEqualTypeOf<{ title: string; pages: number }>()
      expectTypeOf((await run.result).messages).toEqualTypeOf<readonly ChatMessage[]>()
      expectTypeOf(run.events).toEqualTypeOf<AsyncGenerator<TroupeEvent, void, void>>()
      expectTypeOf(run.text).toEqualTypeOf<AsyncIterable<string>>()
      expectTypeOf(run.toResponse({ since: 'x' })).toEqualTypeOf<Response>()
      expectTypeOf(await handle.ask('x')).toEqualTypeOf<RunResult<{ title: string; pages: number }>>()
      expectTypeOf((await ask(crew, 'x')).output).toEqualTypeOf<{ title: string; pages: number }>()
      expectTypeOf((await ask(text, 'x', { data: { tenant: 'a' } })).output).toEqualTypeOf<string>()
      expectTypeOf((await (await runtime.spawn(text)).ask('x')).output).toEqualTypeOf<string>()
      expectTypeOf(runtime.crew('x')).toEqualTypeOf<CrewHandle | undefined>()
    }
    expectTypeOf(use).toEqualTypeOf<() => Promise<void>>()
  })

  test('a lead or an agent that is none is refused', () => {
    // @ts-expect-error: the lead is not one of the agents
    defineCrew({ name: 'c', agents: { text }, lead: 'other' })
    // @ts-expect-error: an agent is made by defineAgent
    defineCrew({ name: 'c', agents: { text: { model: 'a:b' } }, lead: 'text' })
    // @ts-expect-error: instructions are missing
    defineAgent({ model: 'a:b' })
    // @ts-expect-error: a schema is zod's
    defineAgent({ model: 'a:b', instructions: '', output: { type: 'object' } })
    // @ts-expect-error: no such field
    defineAgent({ model: 'a:b', instructions: '', temperature: 1 })
    // @ts-expect-error: a limit that is none
    defineAgent({ model: 'a:b', instructions: '', limits: { turns: 3 } })
  })
})

describe('types: tools', () => {
  test('input is what the schema gives out', () => {
    defineTool({
      name: 't',
      description: '',
      input: z.object({ topic: z.string(), most: z.number().default(3) }),
      run: (input) => expectTypeOf(input).toEqualTypeOf<{ topic: string; most: number }>(),
    })
  })

  test('without a word on them, deps and data are unknown', () => {
    defineTool({
      name: 't',
      description: '',
      input: z.object({}),
      run: (_, context) => {
        expectTypeOf(context.deps).toEqualTypeOf<unknown>()
        expectTypeOf(context.data).toEqualTypeOf<unknown>()
        expectTypeOf(context.signal).toEqualTypeOf<AbortSignal>()
        expectTypeOf(context.idempotencyKey).toEqualTypeOf<string>()
      },
    })
  })

  test('deps and data are what the tool says of its context', () => {
    interface Deps {
      readonly db: { find(id: string): string }
    }
    interface Data {
      readonly tenant: string
    }
    const tool = defineTool({
      name: 't',
      description: '',
      input: z.object({ id: z.string() }),
      effect: 'pure',
      run: ({ id }, { deps, data }: ToolContext<Deps, Data>) => deps.db.find(id) + data.tenant,
    })
    const agent = defineAgent({ model: 'a:b', instructions: '', tools: [tool] })
    expectTypeOf(agent).toEqualTypeOf<Agent<string>>()
    expectTypeOf(tool.effect).toEqualTypeOf<EffectClass>()
  })

  test('verify sees the call’s own arguments', () => {
    defineTool({
      name: 't',
      description: '',
      input: z.object({ id: z.string() }),
      verify: async ({ id }, { idempotencyKey }) => ({ done: true, result: id + idempotencyKey }),
      run: () => 1,
    })
  })

  test('nonsense is refused', () => {
    const base = { name: 't', description: '', input: z.object({ id: z.string() }) }
    // @ts-expect-error: no such class
    defineTool({ ...base, effect: 'twice', run: () => 1 })
    // @ts-expect-error: no such field in the input
    defineTool({ ...base, run: ({ other }) => other as unknown })
    // @ts-expect-error: no work
    defineTool({ ...base })
    // @ts-expect-error: verify says whether it is done
    defineTool({ ...base, verify: async () => ({ result: 1 }), run: () => 1 })
    // @ts-expect-error: a tool is made by defineTool
    defineAgent({ model: 'a:b', instructions: '', tools: [{ name: 't', run: () => 1 }] })
  })
})

describe('types: input and errors', () => {
  test('an input is text, parts or messages', () => {
    const use = async (crew: CrewHandle<string>) => {
      await crew.ask('x')
      await crew.ask([
        { type: 'text', text: 'x' },
        { type: 'image', url: 'https://x' },
      ])
      await crew.ask({ messages: [{ role: 'user', content: 'x' }] })
      // @ts-expect-error: not a number
      await crew.ask(7)
      // @ts-expect-error: a part needs its text
      await crew.ask([{ type: 'text' }])
      // @ts-expect-error: no such option
      await crew.ask('x', { timeout: 5 })
    }
    expectTypeOf(use).returns.resolves.toBeVoid()
  })

  test('an error is branched on by its code', () => {
    const error: unknown = new TroupeError('RUN_CANCELLED', 'x')
    if (isTroupeError(error)) {
      expectTypeOf(error.code).toEqualTypeOf<ErrorCode>()
      // @ts-expect-error: no such code
      expectTypeOf(error.code === 'NO_SUCH_CODE').toBeBoolean()
    }
    // @ts-expect-error: no such code
    void new TroupeError('NO_SUCH_CODE', 'x')
  })
})

describe('types: rounds', () => {
  test('what a round is told, what it may have otherwise, and when an agent stops', () => {
    defineAgent({
      ...{ model: 'a:b', instructions: 'x' },
      prepareRound: ({ round, messages, tools, usage, cost, signal }) => {
        expectTypeOf(round).toEqualTypeOf<number>()
        expectTypeOf(tools).toEqualTypeOf<readonly string[]>()
        expectTypeOf(usage.tokens + cost.usd).toEqualTypeOf<number>()
        expectTypeOf(signal).toEqualTypeOf<AbortSignal>()
        return round > 1 ? { messages: [...messages, { role: 'user', content: 'x' }], tools: [] } : undefined
      },
      stopWhen: any(
        roundsAre(2),
        ({ lastCalls, text }) => lastCalls.some(({ ok, name }) => ok && name === text),
        async () => true,
      ),
    })
    // @ts-expect-error there is no such change
    defineAgent({ model: 'a:b', instructions: 'x', prepareRound: () => ({ toolz: [] }) })
    // @ts-expect-error a condition says true or false
    defineAgent({ model: 'a:b', instructions: 'x', stopWhen: () => 'yes' })
  })
})
