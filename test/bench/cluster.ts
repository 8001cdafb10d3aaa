/**
 * Workers of the benchmarks over a nats-server of their own: each in a process of its own, or in this one.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { createRuntime, type DistributedRuntime, type RuntimeOptions } from 'troupe'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { Subjects } from '../../transport/subjects.js'
import { freePort, type NatsServer, startNatsServer } from '../support/nats-server.js'
import { benchAgent } from './measure.js'

const self = fileURLToPath(import.meta.url)

/** How a worker takes part. */
export interface BenchWorkerOptions {
  readonly baseURL: string
  readonly worker: string
  readonly leaseMs?: number
  readonly store?: string
}

/** A server, a namespace in it, and whoever works there. */
export class BenchCluster {
  readonly server: NatsServer
  readonly link: NatsLink
  readonly subjects: Subjects
  readonly namespace: string
  /** Where the server tells what it has counted; empty for nowhere. */
  readonly monitor: string
  readonly #processes: ChildProcess[] = []
  readonly #runtimes: DistributedRuntime[] = []

  private constructor(server: NatsServer, link: NatsLink, namespace: string, monitor: string) {
    this.server = server
    this.link = link
    this.namespace = namespace
    this.monitor = monitor
    this.subjects = new Subjects(namespace)
  }

  static async start({ monitor = false }: { readonly monitor?: boolean } = {}): Promise<BenchCluster> {
    const port = monitor ? await freePort() : 0
    const server = await startNatsServer(monitor ? { config: `http: 127.0.0.1:${port}` } : {})
    const link = await connectNats({ servers: server.url })
    return new BenchCluster(server, link, 'bench', monitor ? `http://127.0.0.1:${port}` : '')
  }

  /** A worker in a process of its own, that has the agent of the benchmarks. */
  async worker(options: BenchWorkerOptions): Promise<ChildProcess> {
    const words = JSON.stringify({ ...options, servers: this.server.url, namespace: this.namespace })
    const child = fork(self, ['work', words], {
      execArgv: process.execArgv,
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    })
    this.#processes.push(child)
    const failed = once(child, 'exit').then(([code]) => Promise.reject(new Error(`a worker ended with ${code}`)))
    await Promise.race([once(child, 'message'), failed])
    failed.catch(() => undefined)
    return child
  }

  /** A runtime in this process: a worker, one for tools, or who only uses others. */
  async runtime(
    role: 'worker' | 'tools' | 'client',
    { worker, leaseMs, ...options }: RuntimeOptions & { readonly worker?: string; readonly leaseMs?: number } = {},
  ): Promise<DistributedRuntime> {
    const more = { ...(worker === undefined ? {} : { worker }), ...(leaseMs === undefined ? {} : { leaseMs }) }
    const nats = { servers: this.server.url, namespace: this.namespace, role, ...more }
    const runtime = (await createRuntime({ log: 'error', ...options, nats })) as DistributedRuntime
    this.#runtimes.push(runtime)
    return runtime
  }

  /** The number of the last message of a stream. */
  async last(of: 'journal' | 'content' | 'mail' | 'events'): Promise<number> {
    return (await this.link.manager.streams.info(this.subjects.stream(of))).state.last_seq
  }

  async stop(): Promise<void> {
    for (const runtime of this.#runtimes) await runtime.close({ graceMs: 0 })
    for (const child of this.#processes) {
      if (child.exitCode !== null || child.signalCode !== null) continue
      const ended = once(child, 'exit')
      child.kill('SIGKILL')
      await ended
    }
    await this.link.connection.close()
    await this.server.dispose()
  }
}

async function work(): Promise<void> {
  const { baseURL, store, ...nats } = JSON.parse(process.argv[3] ?? '') as BenchWorkerOptions & { servers: string }
  const runtime = (await createRuntime({
    log: 'error',
    providers: { openai: { baseURL, apiKey: 'none' } },
    ...(store === undefined ? {} : { store }),
    nats,
  })) as DistributedRuntime
  await runtime.offer(benchAgent(1_000))
  process.send?.('ready')
  // Nobody is to be left behind by a bench that was killed.
  process.on('disconnect', () => process.exit(0))
}

if (process.argv[2] === 'work') await work()
