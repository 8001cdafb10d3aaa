/** A nats-server and a link to it for the tests of one file. */
import { afterAll, beforeAll } from 'vitest'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { type NatsServer, startNatsServer } from './nats-server.js'

/** Starts both before the first test, and ends them behind the last. @param take told of them before anything uses them */
export function useNats(take: (nats: { readonly server: NatsServer; readonly link: NatsLink }) => void): void {
  let server: NatsServer
  let link: NatsLink
  beforeAll(async () => {
    server = await startNatsServer()
    link = await connectNats({ servers: server.url })
    take({ server, link })
  })
  afterAll(async () => {
    await link.connection.close()
    await server.dispose()
  })
}
