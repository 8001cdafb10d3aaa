/**
 * A worker of the probe trials: the runtime as users have it, one of several over NATS. Run by `probe-trials.ts`.
 */
import { writeSync } from 'node:fs'
import { createRuntime, defineAgent, type DistributedRuntime } from '../../runtime/index.js'

/** When the breaker opens, and for how long. */
export const probeSettings = {
  failures: 3,
  cooldownMs: 800,
  probeMs: 1_600,
  windowMs: 60_000,
  minCalls: 1_000,
} as const

/** What the parent tells a worker. */
export interface ProbeChildConfig {
  readonly server: string
  readonly namespace: string
  readonly worker: string
  readonly baseURL: string
}

/** Asks the deployment that fails first, and has another one. */
export const clerk = defineAgent({
  ...{ name: 'clerk', model: ['scripted:shaky', 'scripted:well'], instructions: 'Answer.' },
  limits: { attempts: 2 },
})

async function main({ server, namespace, worker, baseURL }: ProbeChildConfig): Promise<void> {
  const runtime = (await createRuntime({
    nats: { servers: server, namespace, worker, leaseMs: 1_000 },
    ...{ log: 'error', breakers: probeSettings },
    providers: { scripted: { baseURL, apiKey: null, headers: { 'x-worker': worker } } },
  })) as DistributedRuntime
  await runtime.offer(clerk)
  // Nobody is to be left behind by a parent that was killed.
  process.stdin.on('close', () => process.exit(0)).resume()
  writeSync(1, 'ready\n')
}

// Only when it is the program: the trials import its settings.
const [, , given] = process.argv
if (given?.startsWith('{') === true) {
  main(JSON.parse(given) as ProbeChildConfig).catch((error: unknown) => {
    writeSync(2, `${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`)
    process.exit(4)
  })
}
