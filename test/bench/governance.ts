/**
 * What governance costs a model call in memory: the time from a provider's reply to the next request, with a loop detector,
 * budgets on every counter, two deployments and their breakers, less the same with none of these. The provider is in this
 * process and has no socket.
 */
import { createRuntime, defineAgent, defineCrew, defineTool } from 'troupe'
import { z } from 'zod'
import { lookResult, quantile, round3, say } from './measure.js'
import { stubFetch } from './stub.js'

const rounds = 20
const conversations = 60
/** Until the engine has compiled what it runs. */
const warmUp = 15

const look = defineTool({
  ...{ name: 'look', description: 'Looks at a place.', effect: 'idempotent', input: z.object({ at: z.number() }) },
  run: ({ at }) => lookResult(at),
})

interface Contender {
  readonly gaps: number[]
  converse(index: number): Promise<void>
  close(): Promise<void>
}

async function contender(governed: boolean): Promise<Contender> {
  const stub = stubFetch(() => rounds)
  let gaps: number[] = []
  let repliedAt: number | null = null
  const fetch: typeof globalThis.fetch = async (input, init) => {
    if (repliedAt !== null) gaps.push((performance.now() - repliedAt) * 1_000)
    const response = await stub(input, init)
    repliedAt = performance.now()
    return response
  }
  const runtime = await createRuntime({
    providers: { one: { baseURL: 'http://127.0.0.1:1/v1', apiKey: null, fetch } },
    checks: 'off',
    ...(governed ? {} : { breakers: false }),
  })
  const clerk = defineAgent({
    ...{ model: governed ? ['one:gpt-5-mini', 'one:gpt-5'] : 'one:gpt-5-mini', instructions: 'Look.', tools: [look] },
    limits: { rounds: rounds + 2, ...(governed ? {} : { loops: false }) },
  })
  const agents = { clerk }
  const budget = { usd: 1_000, tokens: 1_000_000_000, modelCalls: 1_000_000, toolCalls: 1_000_000 }
  const crew = defineCrew({ name: 'c', agents, lead: 'clerk', ...(governed ? { budget } : {}) })
  return {
    get gaps() {
      return gaps
    },
    async converse(index) {
      if (index === warmUp) gaps = []
      repliedAt = null
      const handle = await runtime.spawn(crew, { id: `c${index}` })
      await handle.ask('Look at every place.')
    },
    close: () => runtime.close({ graceMs: 0 }),
  }
}

export async function benchGovernance(): Promise<object> {
  const contenders = [await contender(true), await contender(false)] as const
  for (let index = 0; index < warmUp + conversations; index++) {
    // In turn, and in another order each time: whoever comes second finds the caches as the first has left them.
    for (const each of index % 2 === 0 ? contenders : contenders.toReversed()) await each.converse(index)
  }
  const [governed, bare] = contenders
  const p = (of: Contender, q: number) => quantile(of.gaps, q)
  say('from reply to request    p50 µs    p99 µs')
  for (const [name, of] of [
    ['governed', governed],
    ['bare', bare],
  ] as const)
    say(`${name.padEnd(20)} ${p(of, 0.5).toFixed(0).padStart(10)} ${p(of, 0.99).toFixed(0).padStart(9)}`)
  await Promise.all(contenders.map((each) => each.close()))
  return {
    bench: 'governance',
    addedMicrosP50: round3(p(governed, 0.5) - p(bare, 0.5)),
    addedMicrosP99: round3(p(governed, 0.99) - p(bare, 0.99)),
    governedMicrosP50: round3(p(governed, 0.5)),
    bareMicrosP50: round3(p(bare, 0.5)),
    calls: governed.gaps.length,
  }
}
