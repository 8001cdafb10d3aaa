/**
 * Several nats-servers as one cluster, each with JetStream in a folder of its own.
 */
import { type AddressInfo, createServer } from 'node:net'
import { connectNats } from '../../transport/nats-connection.js'
import { type NatsServer, startNatsServer } from './nats-server.js'

/** Starts a cluster. Resolves when JetStream has a leader. */
export async function startNatsCluster(size = 3): Promise<readonly NatsServer[]> {
  const ports = await freePorts(size)
  const routes = ports.map((port) => `"nats://127.0.0.1:${port}"`).join(', ')
  const servers = await Promise.all(
    ports.map((port, index) =>
      startNatsServer({
        config: `server_name: n${index}\ncluster { name: c, host: 127.0.0.1, port: ${port}, routes: [${routes}] }\n`,
      }),
    ),
  )
  for (;;) {
    const link = await connectNats({ servers: servers[0]!.url }).catch(() => null)
    if (link === null) continue
    const isReady = await link.manager.streams
      .add({ name: 'ready', subjects: ['ready'], num_replicas: size })
      .then(() => link.manager.streams.delete('ready'))
      .catch(() => false)
    await link.connection.close()
    if (isReady) return servers
  }
}

/** Free all at once, so that no two are the same. */
async function freePorts(count: number): Promise<number[]> {
  const holders = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer()
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
      return server
    }),
  )
  const ports = holders.map((server) => (server.address() as AddressInfo).port)
  await Promise.all(holders.map((server) => new Promise((resolve) => server.close(resolve))))
  return ports
}
