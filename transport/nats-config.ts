/**
 * A configuration of nats-server: one user for each role, each with the least it needs.
 *
 * Owns: the text, which credentials it names.
 * Does not own: what a role may do (`nats-roles.ts`), where seeds are kept (`runtime/cli/nats-config.ts`).
 *
 * - NCF1 No secret is in the text: it has public keys, or names of variables that the server reads.
 * - NCF2 Whatever the options say, the text is a configuration that the server reads as it is meant, or they are refused.
 */
import { nkeys } from '@nats-io/transport-node'
import { TroupeError } from '../runtime/errors.js'
import { permissionsOf, type RoleUser } from './nats-roles.js'
import { Subjects } from './subjects.js'

/** What a server is to be. */
export interface ServerWanted {
  readonly namespace: string
  /** Names of clients, one token each. */
  readonly clients: readonly string[]
  /** Names of tool workers, one token each. */
  readonly tools: readonly string[]
  /** Where it listens: `HOST:PORT`. */
  readonly listen: string
  /** Folder of JetStream's files. */
  readonly storeDir: string
  /** Paths of PEM files. With `caFile` clients need a certificate that this authority signed. */
  readonly tls?:
    | { readonly certFile: string; readonly keyFile: string; readonly caFile?: string | undefined }
    | undefined
  /** Public key of a user. @default users have passwords, in variables that `variableOf` names */
  readonly keyOf?: ((name: string) => string) | undefined
}

const comments = {
  worker: 'Shard workers: they run crews.',
  tools: 'A tool worker, by the name that it has.',
  client: 'A client: it uses crews.',
  observer: 'Observers: they watch events.',
}

/** The users of a server. @throws TroupeError `ID_INVALID` for a name that is no token, `CONFIG_INVALID` for one that is there twice. */
export function usersOf({ clients, tools }: Pick<ServerWanted, 'clients' | 'tools'>): readonly RoleUser[] {
  const users: RoleUser[] = [
    { role: 'worker', name: 'worker' },
    ...tools.map((name) => ({ role: 'tools' as const, name })),
    ...clients.map((name) => ({ role: 'client' as const, name })),
    { role: 'observer', name: 'observer' },
  ]
  const seen = new Set<string>()
  for (const { name } of users) {
    // Refuses what could not stand in a subject, or in the configuration.
    new Subjects(name)
    const key = variableOf(name)
    if (seen.has(key)) throw new TroupeError('CONFIG_INVALID', `two users cannot be told apart: ${name}`)
    seen.add(key)
  }
  return users
}

/** The variable of a user's password: letters of either case, `-` and `_` are alike in it. */
export function variableOf(name: string): string {
  return `TROUPE_PASSWORD_${name.replaceAll('-', '_').toUpperCase()}`
}

/** A new key of a user: its seed, and its public half. */
export function newKey(): { readonly seed: string; readonly publicKey: string } {
  const pair = nkeys.createUser()
  return { seed: new TextDecoder().decode(pair.getSeed()), publicKey: pair.getPublicKey() }
}

/** The public half of a seed. @throws TroupeError `CONFIG_INVALID` for what is no seed of a user. */
export function publicKeyOf(seed: string): string {
  try {
    const key = nkeys.fromSeed(new TextEncoder().encode(seed)).getPublicKey()
    if (key.startsWith('U')) return key
  } catch {
    // Said below, without what was read.
  }
  throw new TroupeError('CONFIG_INVALID', 'that is no seed of a user: it begins with SU')
}

/** The configuration. @throws TroupeError as `usersOf`, and `CONFIG_INVALID` for an address or a path that is none. */
export function natsConfig(wanted: ServerWanted): string {
  const subjects = new Subjects(wanted.namespace)
  const users = usersOf(wanted)
  const blocks = users.map((user) => userBlock(user, wanted, subjects))
  return `# nats-server 2.9 or newer, for the namespace ${wanted.namespace} of Troupe. Made by \`troupe nats-config\`.

listen: ${quoted(addressOf(wanted.listen))}
jetstream { store_dir: ${quoted(wanted.storeDir)} }
max_payload: 1MB
max_control_line: 4KB

${tlsBlock(wanted.tls)}

authorization {
  users: [
${blocks.join('\n')}
  ]
}
`
}

function userBlock(user: RoleUser, { clients, keyOf }: ServerWanted, subjects: Subjects): string {
  const { publish, subscribe, responds } = permissionsOf(user, clients, subjects)
  const { name, role } = user
  const credentials =
    keyOf === undefined ? `user: ${quoted(name)}, password: $${variableOf(name)}` : `nkey: ${quoted(keyOf(name))}`
  const list = (words: readonly string[]): string => words.map((word) => `\n            ${quoted(word)}`).join('')
  return `    # ${comments[role]} Inbox: _INBOX_${name}
    {
      ${credentials}
      permissions: {
        publish: { allow: [${list(publish)}
        ] }
        subscribe: { allow: [${list(subscribe)}
        ] }${responds ? '\n        allow_responses: { max: 1, expires: "1m" }' : ''}
      }
    }`
}

function tlsBlock(tls: ServerWanted['tls']): string {
  if (tls === undefined) {
    return `# Off this machine nothing but TLS: --tls-cert, --tls-key and, where clients have certificates, --tls-ca.
# tls { cert_file: "server.pem", key_file: "server.key", ca_file: "ca.pem", verify: true }`
  }
  const { certFile, keyFile, caFile } = tls
  const verify = caFile === undefined ? '' : `, ca_file: ${quoted(caFile)}, verify: true`
  return `tls { cert_file: ${quoted(certFile)}, key_file: ${quoted(keyFile)}${verify} }`
}

function addressOf(listen: string): string {
  if (/^(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}$/.test(listen)) return listen
  throw new TroupeError('CONFIG_INVALID', 'where the server listens is HOST:PORT')
}

/** A string of the server's configuration. */
function quoted(text: string): string {
  if (!/["\\\u0000-\u001f\u007f]/.test(text)) return `"${text}"`
  throw new TroupeError('CONFIG_INVALID', `not a path that a configuration can hold: ${JSON.stringify(text)}`)
}
