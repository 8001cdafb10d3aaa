/**
 * What the benchmarks share: quantiles, contenders, a table.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import OpenAI from 'openai'
import { type CrewHandle, createRuntime, defineAgent, defineTool, type Runtime } from 'troupe'
import { z } from 'zod'
import { createFetch } from '../../actors/fetch.js'
import { task } from './provider.js'

/** The p-th quantile (0–1) of samples. */
export function quantile(samples: readonly number[], p: number): number {
  const sorted = [...samples].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(p * sorted.length))] ?? Number.NaN
}

export function median(samples: readonly number[]): number {
  return quantile(samples, 0.5)
}

/** Median of the ratios of two contenders, pass by pass: what slows both down for a while does not count. */
export function medianOver(samples: ReadonlyMap<string, readonly number[]>, name: string, floor: string): number {
  const floors = samples.get(floor)!
  return round3(median(samples.get(name)!.map((value, pass) => value / floors[pass]!)))
}

export function round3(value: number): number {
  return Math.round(value * 1_000) / 1_000
}

/** A fresh folder that `drop` deletes. */
export function scratch(name: string): { path: string; drop: () => void } {
  const path = mkdtempSync(join(tmpdir(), `troupe-bench-${name}-`))
  return { path, drop: () => rmSync(path, { recursive: true, force: true }) }
}

/** One conversation of so many tool rounds, start to end. */
export interface Contender {
  readonly name: string
  converse(rounds: number): Promise<void>
  close(): Promise<void>
}

const description = 'Looks at a place.'
/** What the tool of every contender returns. */
export const lookResult = (at: number): string => `the place ${at} is quiet ${'.'.repeat(160)}`

/** The loop as one writes it by hand on the `openai` client. */
export function rawContender(name: string, baseURL: string, ownFetch: boolean): Contender {
  const pooled = ownFetch ? createFetch() : null
  const client = new OpenAI({
    baseURL,
    apiKey: 'none',
    maxRetries: 0,
    ...(pooled === null ? {} : { fetch: pooled }),
  })
  const tools: OpenAI.ChatCompletionTool[] = [
    {
      type: 'function',
      function: {
        name: 'look',
        description,
        parameters: { type: 'object', properties: { at: { type: 'number' } }, required: ['at'] },
      },
    },
  ]
  return {
    name,
    async converse(rounds) {
      const messages: OpenAI.ChatCompletionMessageParam[] = [
        { role: 'system', content: 'Look at every place.' },
        { role: 'user', content: task(rounds) },
      ]
      for (;;) {
        const completion = await client.chat.completions.create({
          model: 'gpt-5-mini',
          messages,
          tools,
          max_tokens: 4096,
        })
        const message = completion.choices[0]!.message
        messages.push(message)
        if (message.tool_calls === undefined || message.tool_calls.length === 0) return
        for (const call of message.tool_calls) {
          if (call.type !== 'function') continue
          const { at } = JSON.parse(call.function.arguments) as { at: number }
          messages.push({ role: 'tool', tool_call_id: call.id, content: lookResult(at) })
        }
      }
    },
    close: async () => {
      await pooled?.close()
    },
  }
}

/** An agent with the one tool of the benchmarks. */
export function benchAgent(
  rounds: number,
  result: (at: number) => string = lookResult,
  effect: 'idempotent' | 'once' = 'idempotent',
  remote = false,
) {
  const look = defineTool({
    name: 'look',
    description,
    input: z.object({ at: z.number() }),
    effect,
    remote,
    run: ({ at }) => result(at),
  })
  return defineAgent({
    name: 'bench',
    model: 'openai:gpt-5-mini',
    instructions: 'Look at every place.',
    tools: [look],
    limits: { rounds: rounds + 2 },
    budget: { usd: 1_000, toolCalls: 1_000_000 },
  })
}

export interface TroupeContender extends Contender {
  readonly runtime: Runtime
  readonly store: string | null
}

/** The same task given to Troupe; each conversation is a crew of its own when `crews` says so. */
export async function troupeContender(
  name: string,
  baseURL: string,
  durability: 'memory' | 'process' | 'power',
  crews = false,
): Promise<TroupeContender> {
  const folder = durability === 'memory' ? null : scratch(name)
  const runtime = await createRuntime({
    providers: { openai: { baseURL, apiKey: 'none' } },
    ...(folder === null ? {} : { store: folder.path, durability: durability === 'power' ? 'power' : 'process' }),
  })
  const agent = benchAgent(1_000)
  let count = 0
  let handle: CrewHandle<string> | null = null
  return {
    name,
    runtime,
    store: folder?.path ?? null,
    async converse(rounds) {
      if (crews || handle === null) {
        count += 1
        handle = await runtime.spawn(agent, { id: `bench-${count}` })
      }
      const result = await handle.ask(task(rounds))
      if (result.rounds !== rounds + 1) throw new Error(`${name}: ${result.rounds} rounds instead of ${rounds + 1}`)
    },
    close: async () => {
      await runtime.close({ graceMs: 0 })
      folder?.drop()
    },
  }
}

/** Runs the contenders in turn, `passes` times; microseconds a round. */
export async function interleave(
  contenders: readonly Contender[],
  rounds: number,
  passes: number,
): Promise<Map<string, number[]>> {
  const samples = new Map<string, number[]>(contenders.map(({ name }) => [name, []]))
  for (let pass = -2; pass < passes; pass += 1) {
    for (const contender of contenders) {
      const start = performance.now()
      await contender.converse(rounds)
      if (pass >= 0) samples.get(contender.name)!.push(((performance.now() - start) * 1_000) / (rounds + 1))
    }
  }
  return samples
}

/** One line of the table on stderr. */
export function say(text: string): void {
  process.stderr.write(`${text}\n`)
}
