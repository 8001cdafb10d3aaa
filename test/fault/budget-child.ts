/**
 * The process of a budget trial: one crew whose lead calls 200 workers at once, all paid from one budget. It is the
 * runtime as users have it; `budget-trials.ts` starts it, kills it, and is the provider that bills it.
 */
import { createInterface } from 'node:readline'
import { writeSync } from 'node:fs'
import { z } from 'zod'
import {
  createRuntime,
  type CrewHandle,
  defineAgent,
  defineCrew,
  defineTool,
  isTroupeError,
  type Run,
} from '../../runtime/index.js'

/** Agents that ask for money at once. */
export const workers = 200
/** Output tokens of a worker's call, and of the lead's. */
export const maxOutput = { worker: 700, lead: 1_200 } as const

/** What the parent tells a child. */
export interface BudgetChildConfig {
  readonly store: string
  readonly baseURL: string
  readonly limitNanoUsd: number
  /** Of it, what the workers may spend together; null: no limit of their own. */
  readonly workersNanoUsd: number | null
  readonly per: 'run' | 'crew'
  /** Keys of the runs, one after the other. */
  readonly runs: readonly string[]
  readonly boundMs: number
}

/** How a run ended, and what the runtime says that it cost. */
export interface RunEnd {
  readonly run: string
  readonly code: string | null
  readonly reason: string
  readonly costNanoUsd: number
}

/** A line of the child's stdout. */
export type BudgetChildSays =
  | { readonly type: 'ready' }
  | { readonly type: 'done'; readonly ends: readonly RunEnd[] }
  | { readonly type: 'hung'; readonly state: unknown }
  | { readonly type: 'failed'; readonly reason: string }

const say = (line: BudgetChildSays): number => writeSync(1, `${JSON.stringify(line)}\n`)

/** Some thousand tokens of input, so that an error of their estimate is money. */
const handbook = 'Work as the handbook says. '.repeat(450)

function crewOf(config: BudgetChildConfig) {
  const note = defineTool({
    name: 'note',
    description: 'Notes something down.',
    effect: 'pure',
    input: z.object({ n: z.number() }),
    run: ({ n }) => `noted ${n}`,
  })
  const model = 'openai:gpt-5-mini'
  const { workersNanoUsd } = config
  return defineCrew({
    name: 'spenders',
    agents: {
      lead: defineAgent({
        model,
        instructions: 'Lead.',
        delegates: ['worker'],
        settings: { maxOutputTokens: maxOutput.lead },
        limits: { rounds: 4, callsPerRound: workers },
      }),
      worker: defineAgent({
        model,
        instructions: handbook,
        tools: [note],
        settings: { maxOutputTokens: maxOutput.worker },
        limits: { rounds: 8, attempts: 4 },
        ...(workersNanoUsd === null ? {} : { budget: { usd: workersNanoUsd / 1e9 } }),
      }),
    },
    lead: 'lead',
    budget: { usd: config.limitNanoUsd / 1e9, per: config.per },
    limits: { delegates: workers },
  })
}

async function endOf(name: string, run: Run<string>): Promise<RunEnd> {
  try {
    const { cost } = await run.result
    return { run: name, code: null, reason: '', costNanoUsd: cost.nanoUsd }
  } catch (error) {
    if (!isTroupeError(error)) throw error
    return { run: name, code: error.code, reason: error.message, costNanoUsd: Number(error.details['costNanoUsd']) }
  }
}

async function main(config: BudgetChildConfig): Promise<void> {
  const runtime = await createRuntime({
    store: config.store,
    durability: 'process',
    log: 'error',
    providers: { openai: { baseURL: config.baseURL, apiKey: 'test' } },
  })
  const bound = setTimeout(() => {
    void runtime.show('spenders').then((state) => {
      say({ type: 'hung', state: { ...state, actors: state.actors.slice(0, 10), actorCount: state.actors.length } })
      process.exit(3)
    })
  }, config.boundMs)
  const crew: CrewHandle<string> = await runtime.spawn(crewOf(config))
  say({ type: 'ready' })
  const ends: RunEnd[] = []
  const commands = createInterface({ input: process.stdin })
  for (const name of config.runs) {
    const run = crew.start(`lead ${name}`, { key: name })
    const cancel = (line: string): void => {
      if (line === `cancel ${name}`)
        run.cancel().catch((error: unknown) => say({ type: 'failed', reason: String(error) }))
    }
    commands.on('line', cancel)
    ends.push(await endOf(name, run))
    commands.off('line', cancel)
  }
  await runtime.close({ graceMs: 0 })
  clearTimeout(bound)
  say({ type: 'done', ends })
  process.exit(0)
}

// Only when it is the program: the trials import its types and constants.
const [, , given] = process.argv
if (given?.startsWith('{') === true) {
  main(JSON.parse(given) as BudgetChildConfig).catch((error: unknown) => {
    say({ type: 'failed', reason: error instanceof Error ? (error.stack ?? error.message) : String(error) })
    process.exit(4)
  })
}
