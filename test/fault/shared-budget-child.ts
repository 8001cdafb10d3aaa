/** A worker of the trials of shared budgets: the runtime as users have it. `shared-budget-trials.ts` starts and kills it. */
import { writeSync } from 'node:fs'
import { createRuntime } from '../../runtime/index.js'
import type { DistributedRuntime } from '../../runtime/distributed.js'
import { sharedBudgetCrews } from './shared-budget-crews.js'

/** What the parent tells a worker at its start. */
export interface SharedBudgetConfig {
  readonly servers: readonly string[]
  readonly namespace: string
  readonly worker: string
  readonly leaseMs: number
  readonly baseURL: string
  readonly trials: readonly string[]
  readonly units: number
}

async function main(): Promise<void> {
  const { baseURL, trials, units, ...nats } = JSON.parse(process.argv[2] ?? '{}') as SharedBudgetConfig
  const runtime = (await createRuntime({
    nats,
    providers: { scripted: { baseURL, apiKey: null } },
    log: 'error',
    checks: 'off',
    // What a kill cuts off is no fault of the provider's.
    breakers: false,
  })) as DistributedRuntime
  await runtime.offer(...sharedBudgetCrews(trials, units))
  // Nobody is to be left behind by a parent that was killed.
  process.stdin.on('close', () => process.exit(0)).resume()
  writeSync(1, 'ready\n')
}

main().catch((error: unknown) => {
  writeSync(2, `${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`)
  process.exit(4)
})
