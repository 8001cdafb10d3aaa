/**
 * `troupe worker`: a process that runs crews for whoever asks over NATS, or works on their remote tools.
 *
 * Owns: loading the crew files, what is told at the start, the clean stop.
 * Does not own: the worker (`distributed.ts`), how NATS is reached (`nats.ts`).
 *
 * - WO1 One signal hands the crews over and waits for what runs here; a second one ends at once.
 */
import { crewOf } from '../definition.js'
import { TroupeError } from '../errors.js'
import { type DistributedRuntime, createRuntime } from '../index.js'
import { type CrewFile, loadCrew } from './load.js'
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
  readonly retain?: number
  readonly grace: number
  readonly json?: boolean
  readonly toolsOnly?: boolean
}

const dayMs = 86_400_000

/** Runs until a signal comes. Returns the exit code. */
export async function worker(files: readonly string[], options: WorkerCommandOptions): Promise<number> {
  const definitions = await Promise.all(files.map(async (file) => (await loadCrew(file)).definition))
  const tools = options.toolsOnly === true ? remoteToolsOf(definitions) : null
  const stopping = firstSignal()
  const runtime = (await createRuntime({
    log: 'info',
    ...(options.store === undefined ? {} : { store: options.store }),
    ...(options.retain === undefined ? {} : { retainMs: options.retain * dayMs }),
    nats: {
      ...natsFrom(options),
      role: options.toolsOnly === true ? 'tools' : 'worker',
      leaseMs: options.lease,
      replicas: options.replicas,
      keepEventsMs: options.keepEvents * dayMs,
      trace: options.trace === true,
      ...(options.name === undefined ? {} : { worker: options.name }),
    },
  })) as DistributedRuntime
  await runtime.offer(...definitions)
  const about = { worker: runtime.worker, namespace: options.namespace, server: runtime.server }
  if (tools === null) await tell(about, definitions, runtime, options)
  else if (options.json === true) writeJson({ type: 'worker', ...about, crews: [], tools })
  else writeLine(`tool worker ${about.worker} of namespace ${about.namespace}: ${tools.join(', ')}`)
  const signal = await Promise.race([stopping, runtime.left.then(() => null)])
  const leaving = tools === null ? 'handing the crews over …' : 'finishing what runs …'
  if (options.json !== true) writeLine(signal === null ? 'drained' : leaving)
  await runtime.close({ graceMs: options.grace })
  return signal === 'SIGINT' ? exitCodes.interrupted : exitCodes.done
}

/** Says what a worker has, and what the server has given it. */
async function tell(
  about: { readonly worker: string | null; readonly namespace: string; readonly server: string },
  definitions: readonly CrewFile['definition'][],
  runtime: DistributedRuntime,
  options: WorkerCommandOptions,
): Promise<void> {
  const names = definitions.map(({ name }) => name)
  const cluster = { server: about.server, ...(await runtime.settings()) }
  if (options.json === true) writeJson({ type: 'worker', ...about, crews: names, ...cluster })
  else writeLine(`worker ${about.worker} of namespace ${about.namespace}: ${names.join(', ')} · ${describe(cluster)}`)
  if (cluster.replicas < options.replicas) {
    writeLine(`  asked for ${options.replicas} copies: the streams were made with fewer, and stay as they are`)
  }
}

/** Names of the tools that a tool worker of these crews offers. @throws TroupeError `CREW_INVALID` when there are none. */
function remoteToolsOf(definitions: readonly CrewFile['definition'][]): string[] {
  const agents = definitions.flatMap((each) => Object.values(crewOf(each).agents))
  const tools = agents.flatMap((agent) => agent.tools)
  const names = new Set(tools.filter(({ remote }) => remote).map(({ name }) => name))
  if (names.size > 0) return [...names]
  throw new TroupeError('CREW_INVALID', 'no tool of these files is for tool workers: define it with `remote: true`')
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
