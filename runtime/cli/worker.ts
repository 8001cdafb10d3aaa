/**
 * `troupe worker`: a process that runs crews for whoever asks over NATS.
 *
 * Owns: loading the crew files, what is told at the start, the clean stop.
 * Does not own: the worker (`distributed.ts`), how NATS is reached (`nats.ts`).
 *
 * - WO1 One signal hands the crews over and waits for what runs here; a second one ends at once.
 */
import { type DistributedRuntime, createRuntime } from '../index.js'
import { loadCrew } from './load.js'
import { type NatsFlags, natsFrom } from './nats.js'
import { exitCodes, writeJson, writeLine } from './output.js'
import { describe } from './ps.js'

/** Options of `troupe worker`. */
export interface WorkerCommandOptions extends NatsFlags {
  readonly name?: string
  readonly store?: string
  readonly trace?: boolean
  readonly lease: number
  readonly replicas: number
  readonly keepEvents: number
  readonly grace: number
  readonly json?: boolean
}

const dayMs = 86_400_000

/** Runs until a signal comes. Returns the exit code. */
export async function worker(files: readonly string[], options: WorkerCommandOptions): Promise<number> {
  const crews = await Promise.all(files.map(async (file) => (await loadCrew(file)).crew))
  const stopping = firstSignal()
  const runtime = (await createRuntime({
    log: 'info',
    ...(options.store === undefined ? {} : { store: options.store }),
    nats: {
      ...natsFrom(options),
      leaseMs: options.lease,
      replicas: options.replicas,
      keepEventsMs: options.keepEvents * dayMs,
      trace: options.trace === true,
      ...(options.name === undefined ? {} : { worker: options.name }),
    },
  })) as DistributedRuntime
  for (const crew of crews) await runtime.offer(crew)
  const names = crews.map(({ name }) => name)
  const { namespace } = options
  const cluster = { server: runtime.server, ...(await runtime.settings()) }
  if (options.json === true) writeJson({ type: 'worker', worker: runtime.worker, namespace, crews: names, ...cluster })
  else writeLine(`worker ${runtime.worker} of namespace ${namespace}: ${names.join(', ')} · ${describe(cluster)}`)
  if (cluster.replicas < options.replicas) {
    writeLine(`  asked for ${options.replicas} copies: the streams were made with fewer, and stay as they are`)
  }
  const signal = await Promise.race([stopping, runtime.left.then(() => null)])
  if (options.json !== true) writeLine(signal === null ? 'drained' : 'handing the crews over …')
  await runtime.close({ graceMs: options.grace })
  return signal === 'SIGINT' ? exitCodes.interrupted : exitCodes.done
}

/** The first signal; a second one ends the process. */
function firstSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    let first = true
    const take = (signal: NodeJS.Signals): void => {
      if (!first) process.exit(exitCodes.interrupted)
      first = false
      resolve(signal)
    }
    process.on('SIGINT', take)
    process.on('SIGTERM', take)
  })
}
