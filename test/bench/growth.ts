/**
 * Does a round cost more late in a conversation? Enters at round 90 and at round 990 from a prepared store, 20 rounds
 * each; (ours − raw) in microseconds, and bytes written by `/proc/self/io`, snapshots included.
 * The port is stubbed: what is measured is everything but the provider.
 *
 * And does a run cost more after many runs of the same crew? 200 of them behind 1,000 and behind 10,000.
 */
import { readFileSync } from 'node:fs'
import OpenAI from 'openai'
import { createRuntime, type Runtime } from 'troupe'
import { benchAgent, median, quantile, round3, say, scratch } from './measure.js'
import { resultOf, stubFetch } from './stub.js'

const measured = 20
const passes = 12
const starts = [90, 990] as const

function written(): number {
  return Number(/^wchar: (\d+)$/m.exec(readFileSync('/proc/self/io', 'utf8'))?.[1] ?? Number.NaN)
}

interface Prepared {
  readonly runtime: Runtime
  /** Goes on by 20 rounds. */
  advance(): Promise<void>
  close(): Promise<void>
}

/** A crew that is `start` rounds into its conversation, in a store that was closed and opened again. */
async function prepare(start: number, bytes: number): Promise<Prepared> {
  const folder = scratch(`growth-${start}`)
  let rounds = start - 1
  const agent = { ...benchAgent(90_000, resultOf(bytes)), continue: true }
  const open = () =>
    createRuntime({
      store: folder.path,
      durability: 'process',
      providers: { openai: { baseURL: 'http://127.0.0.1:9/v1', apiKey: 'none', fetch: stubFetch(() => rounds) } },
    })
  const first = await open()
  await (await first.spawn(agent, { id: 'bench' })).ask('go')
  await first.close({ graceMs: 0 })
  const runtime = await open()
  const crew = await runtime.spawn(agent, { id: 'bench' })
  rounds = 0
  await crew.ask('warm')
  return {
    runtime,
    advance: async () => {
      rounds = measured - 1
      await crew.ask('more')
    },
    close: async () => {
      await runtime.close({ graceMs: 0 })
      folder.drop()
    },
  }
}

/** The same by hand. */
export function raw(start: number, bytes: number): { advance(): Promise<void> } {
  const result = resultOf(bytes)
  let rounds = start - 1
  const client = new OpenAI({
    baseURL: 'http://127.0.0.1:9/v1',
    apiKey: 'none',
    maxRetries: 0,
    fetch: stubFetch(() => rounds),
  })
  const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: 'system', content: 'Look at every place.' }]
  for (let at = 0; at < start; at += 1) {
    const id = `call_${at}`
    messages.push({
      role: 'assistant',
      content: null,
      tool_calls: [{ id, type: 'function', function: { name: 'look', arguments: `{"at":${at}}` } }],
    })
    messages.push({ role: 'tool', tool_call_id: id, content: result(at) })
  }
  return {
    advance: async () => {
      rounds = measured - 1
      messages.push({ role: 'user', content: 'more' })
      for (;;) {
        const completion = await client.chat.completions.create({ model: 'gpt-5-mini', messages, max_tokens: 4096 })
        const message = completion.choices[0]!.message
        messages.push(message)
        if (message.tool_calls === undefined || message.tool_calls.length === 0) return
        for (const call of message.tool_calls) {
          if (call.type === 'function')
            messages.push({
              role: 'tool',
              tool_call_id: call.id,
              content: result((JSON.parse(call.function.arguments) as { at: number }).at),
            })
        }
      }
    },
  }
}

async function time(work: () => Promise<void>): Promise<number> {
  const start = performance.now()
  await work()
  return ((performance.now() - start) * 1_000) / measured
}

interface Growth {
  readonly overhead: number
  readonly ours: number
  readonly p99: number
  readonly raw: number
  readonly bytes: number
}

async function measure(start: number, bytes: number): Promise<Growth> {
  const ours = await prepare(start, bytes)
  const hand = raw(start, bytes)
  const oursMicros: number[] = []
  const rawMicros: number[] = []
  let written20 = 0
  for (let pass = 0; pass < passes; pass += 1) {
    const before = written()
    oursMicros.push(await time(() => ours.advance()))
    written20 += written() - before
    rawMicros.push(await time(() => hand.advance()))
  }
  await ours.close()
  const overhead = median(oursMicros.map((micros, index) => micros - rawMicros[index]!))
  return {
    overhead,
    ours: median(oursMicros),
    p99: quantile(oursMicros, 0.99),
    raw: median(rawMicros),
    bytes: written20 / passes / measured,
  }
}

const runsBefore = [1_000, 10_000] as const
const measuredRuns = 200

/** Microseconds of a run of one round, after so many runs of the crew. */
async function measureRuns(): Promise<readonly number[]> {
  const folder = scratch('growth-runs')
  const fetch = stubFetch(() => 0)
  const runtime = await createRuntime({
    store: folder.path,
    durability: 'process',
    providers: { openai: { baseURL: 'http://127.0.0.1:9/v1', apiKey: 'none', fetch } },
  })
  const crew = await runtime.spawn(benchAgent(2, resultOf(16)), { id: 'bench' })
  const found: number[] = []
  let done = 0
  for (const before of runsBefore) {
    for (; done < before; done += 1) await crew.ask('go')
    const micros: number[] = []
    for (let count = 0; count < measuredRuns; count += 1, done += 1) {
      const start = performance.now()
      await crew.ask('go')
      micros.push((performance.now() - start) * 1_000)
    }
    found.push(median(micros))
  }
  await runtime.close({ graceMs: 0 })
  folder.drop()
  return found
}

export async function benchGrowth(): Promise<object> {
  const [at100, at1000] = [await measure(starts[0], 1_024), await measure(starts[1], 1_024)]
  const [large100, large1000] = [await measure(starts[0], 32_768), await measure(starts[1], 32_768)]
  const [early = 0, late = 0] = await measureRuns()
  say(`a run behind ${runsBefore.join(' and ')} others: ${early.toFixed(0)} and ${late.toFixed(0)} µs`)
  say('entered at  ours µs   p99 µs   raw µs  ours-raw µs  bytes/round  bytes/round at 32 KB')
  for (const [start, small, large] of [
    [starts[0], at100, large100],
    [starts[1], at1000, large1000],
  ] as const) {
    say(
      [
        String(start).padEnd(10),
        ...[small.ours, small.p99, small.raw, small.overhead, small.bytes, large.bytes].map((value) =>
          value.toFixed(0).padStart(9),
        ),
      ].join(' '),
    )
  }
  return {
    bench: 'growth',
    // Where we are cheaper than the hand-written loop there is no overhead left that could grow.
    overheadRound1000Over100: round3(Math.max(at1000.overhead, 0) / Math.max(at100.overhead, 1)),
    bytesRound1000Over100: round3(at1000.bytes / at100.bytes),
    bytes32KRound1000Over100: round3(large1000.bytes / large100.bytes),
    overheadMicros100: round3(at100.overhead),
    overheadMicros1000: round3(at1000.overhead),
    oursMicros1000Over100: round3(at1000.ours / at100.ours),
    p99Micros1000: round3(at1000.p99),
    runMicros10000Over1000: round3(late / early),
  }
}
