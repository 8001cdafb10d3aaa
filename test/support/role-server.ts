/**
 * A nats-server with the configuration that `troupe nats-config` prints: a user for each role.
 */
import { connect, nkeyAuthenticator, type NatsConnection } from '@nats-io/transport-node'
import { natsConfig, newKey, usersOf } from '../../transport/nats-config.js'
import type { NatsOptions } from '../../transport/nats-connection.js'
import type { RoleUser } from '../../transport/nats-roles.js'
import { type NatsServer, startNatsServer } from './nats-server.js'

/** Who there is: `worker`, tool workers `t1` and `t2`, clients `ada` and `eve`, `observer`. */
export interface RoleServer {
  readonly server: NatsServer
  readonly namespace: string
  readonly users: readonly RoleUser[]
  /** How to connect as one of them. */
  as(user: string): NatsOptions & { readonly namespace: string }
  /** Connects as one of them, with the library alone. */
  bare(user: string): Promise<NatsConnection>
  /** What the server has refused so far: user, and what he wanted. */
  refused(): string[]
}

const namespace = 'shop'

/** Starts it. */
export async function startRoleServer(): Promise<RoleServer> {
  const names = { clients: ['ada', 'eve'], tools: ['t1', 't2'] }
  const users = usersOf(names)
  const keys = new Map(users.map(({ name }) => [name, newKey()]))
  const nameOf = new Map([...keys].map(([name, { publicKey }]) => [publicKey, name]))
  const server = await startNatsServer({
    whole: ({ port, folder }) =>
      natsConfig({
        ...{ namespace, ...names, listen: `127.0.0.1:${port}`, storeDir: `${folder}/js` },
        keyOf: (name) => keys.get(name)!.publicKey,
      }),
  })
  return {
    server,
    namespace,
    users,
    as: (user) => ({ servers: server.url, namespace, user, nkeySeed: keys.get(user)!.seed }),
    bare: (user) =>
      connect({
        servers: server.url,
        authenticator: nkeyAuthenticator(new TextEncoder().encode(keys.get(user)!.seed)),
        inboxPrefix: `_INBOX_${user}`,
        reconnect: false,
      }),
    refused: () =>
      [...server.log().matchAll(/(Publish|Subscription) Violation - Nkey "?(\w+)"?, .*?Subject "([^"]+)"/g)].map(
        ([, what = '', key = '', subject = '']) => `${nameOf.get(key) ?? key} ${what.toLowerCase()} ${subject}`,
      ),
  }
}
