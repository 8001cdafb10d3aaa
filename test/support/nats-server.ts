/**
 * A nats-server of the test's own: on a free port, with JetStream in a folder of its own.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connectNats } from '../../transport/nats-connection.js'

/** How long the nodes of a cluster may take to agree on a leader. */
const electionMs = 60_000

/** A running server. */
export interface NatsServer {
  readonly url: string
  readonly port: number
  /** Where JetStream keeps its files. */
  readonly folder: string
  /** Its process; 0 while there is none. */
  readonly pid: number
  /** Resolves when the process that runs now has ended, whoever ended it. */
  readonly ended: Promise<void>
  /** What it has said since it was started last. */
  log(): string
  /** `kill -9`. */
  kill(): Promise<void>
  /** Starts it again on the same port and files. */
  start(): Promise<void>
  /** Ends it and deletes its files. */
  dispose(): Promise<void>
}

/** How to start one. `config` is appended to its configuration; `whole` makes all of it. */
export interface NatsServerOptions {
  readonly jetstream?: boolean
  readonly config?: string
  readonly whole?: (place: { readonly port: number; readonly folder: string }) => string | Promise<string>
  readonly env?: Readonly<Record<string, string>>
}

/** Starts a server. Fails with one clear line when there is no nats-server on this machine. */
export async function startNatsServer(options: NatsServerOptions = {}): Promise<NatsServer> {
  const server = await prepareServer(options)
  await server.start()
  return server
}

/** Starts a cluster of servers on this machine; resolves when JetStream works there. */
export async function startNatsCluster(count = 3): Promise<readonly NatsServer[]> {
  const ports = await Promise.all(Array.from({ length: count }, freePort))
  const routes = ports.map((port) => `nats://127.0.0.1:${port}`).join(', ')
  const nodes = await Promise.all(
    ports.map((port, index) => {
      const cluster = `cluster { name: troupe, listen: "127.0.0.1:${port}", routes: [${routes}] }`
      return prepareServer({ config: `server_name: node${index}\n${cluster}` })
    }),
  )
  await Promise.all(nodes.map((node) => node.start()))
  await agreed(nodes)
  return nodes
}

/** Until the nodes have a leader JetStream answers nobody. */
async function agreed(nodes: readonly NatsServer[]): Promise<void> {
  for (const until = performance.now() + electionMs; ; ) {
    try {
      const { connection } = await connectNats({ servers: nodes.map(({ url }) => url) })
      return await connection.close()
    } catch (error) {
      if (performance.now() > until) throw error
    }
  }
}

async function prepareServer(options: NatsServerOptions): Promise<NatsServer> {
  const folder = await mkdtemp(join(tmpdir(), 'troupe-nats-'))
  const port = await freePort()
  const file = join(folder, 'server.conf')
  const jetstream = options.jetstream === false ? '' : `jetstream { store_dir: "${join(folder, 'js')}" }\n`
  const usual = `host: 127.0.0.1\nport: ${port}\n${jetstream}${options.config ?? ''}\n`
  await writeFile(file, (await options.whole?.({ port, folder })) ?? usual)
  let child: ChildProcess | null = null
  let said = ''
  let ended = Promise.resolve()
  return {
    url: `nats://127.0.0.1:${port}`,
    port,
    folder,
    get pid() {
      return child?.pid ?? 0
    },
    get ended() {
      return ended
    },
    log: () => said,
    async start() {
      said = ''
      const started = await startProcess(file, (text) => (said += text), options.env)
      child = started
      ended = new Promise((resolve) => started.once('exit', () => resolve()))
    },
    async kill() {
      await end(child, 'SIGKILL')
      child = null
    },
    async dispose() {
      await end(child, 'SIGKILL')
      await rm(folder, { recursive: true, force: true })
    },
  }
}

function startProcess(
  file: string,
  say: (text: string) => string,
  env: Readonly<Record<string, string>> = {},
): Promise<ChildProcess> {
  return new Promise((resolve, reject) => {
    const child = spawn('nats-server', ['-c', file], {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { ...process.env, ...env },
    })
    let said = ''
    child.once('error', (error: NodeJS.ErrnoException) => {
      const missing = 'there is no nats-server in PATH: install the package nats-server'
      reject(new Error(error.code === 'ENOENT' ? missing : error.message))
    })
    child.once('exit', (code) => reject(new Error(`nats-server ended with ${code}: ${said}`)))
    child.stderr.on('data', (chunk: Buffer) => {
      said = say(chunk.toString())
      if (said.includes('Server is ready')) resolve(child)
    })
  })
}

async function end(child: ChildProcess | null, signal: NodeJS.Signals): Promise<void> {
  if (child === null || child.exitCode !== null || child.signalCode !== null) return
  const ended = new Promise((resolve) => child.once('exit', resolve))
  child.kill(signal)
  await ended
}

/** A port of loopback that nobody has at the moment. */
export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  await new Promise((resolve) => server.close(resolve))
  return port
}
