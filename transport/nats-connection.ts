/**
 * The connection to NATS: who we are, how soon a dead link is noticed, what the server can do.
 *
 * Owns: connecting, refusing what is not safe, what a failure of the server means.
 * Does not own: what is stored or sent there.
 *
 * - NC1 Off loopback there is no connection without credentials, unless `insecure` says so; other addresses
 *   that a server tells of are not used.
 * - NC2 A link that has gone silent is noticed within three seconds; the connection is tried again for ever.
 * - NC3 No credential is in an error or a log.
 * - NC4 A server that is too old, or without JetStream for whoever needs it, is refused when it is connected to.
 * - NC5 What a server's permissions refuse is `NATS_DENIED` and says what: for whoever waits for an answer at once, and
 *   for whoever watches. Whose name is known has an inbox of his own.
 */
import { readFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { jetstreamManager, type JetStreamManager } from '@nats-io/jetstream'
import {
  type Authenticator,
  connect,
  credsAuthenticator,
  errors,
  nkeyAuthenticator,
  nkeys,
  type NatsConnection,
  type NodeConnectionOptions,
  type Status,
} from '@nats-io/transport-node'
import { TroupeError } from '../runtime/errors.js'
import { heedLink } from './link-requests.js'

/** How to reach NATS. */
export interface NatsOptions {
  /** `nats://host:port`, or several; user and password may be in it. */
  readonly servers: string | readonly string[]
  /**
   * Name of the user. It is also our name in subjects and inboxes, which the server's permissions bind: give it beside
   * an nkey or a creds file, too. Other characters than `A-Z a-z 0-9 _ -` make it a credential only.
   */
  readonly user?: string
  readonly password?: string
  readonly token?: string
  /** An nkey seed. */
  readonly nkeySeed?: string
  /** Path of a `.creds` file with JWT and seed. */
  readonly credsFile?: string
  /** Files in PEM. `tls: {}` asks for TLS with the system's authorities; a server without TLS is refused then. */
  readonly tls?: { readonly caFile?: string; readonly certFile?: string; readonly keyFile?: string }
  /** Allows a connection off loopback without credentials. @default false */
  readonly insecure?: boolean
  /** What inboxes begin with: one token. @default `_INBOX_<user>`; `_INBOX` without a user */
  readonly inboxPrefix?: string
  /** How the connection is listed on the server. @default 'troupe' */
  readonly name?: string
  /** How long the first connection may take. @default 5_000 */
  readonly timeoutMs?: number
}

/** An open connection whose server has what we need. */
export interface NatsLink {
  readonly connection: NatsConnection
  readonly manager: JetStreamManager
  /** The server's version, for people. */
  readonly version: string
  /** Our name, as permissions know it; null when there is none that could stand in a subject. */
  readonly user: string | null
  /** What our inboxes begin with. */
  readonly inboxPrefix: string
}

/** The oldest series whose fence was measured to hold (2.9.10); what is older is refused. */
export const oldestServer = '2.9.0'
/** Two silent seconds, and the third closes the link. */
const pingMs = 1_000
const maxPingOut = 2
const defaultPort = 4222
/** Refusals that are told of one link. */
const maxTold = 1_000
const longestSubject = 512

/**
 * Connects.
 * @param needs whether JetStream is used over the link. Whoever only asks workers needs no right to it
 * @throws TroupeError `CONFIG_INVALID` for unsafe or unreadable options, `NATS_UNREACHABLE`, `NATS_DENIED` for credentials
 * that are wrong or missing, `NATS_UNSUPPORTED` for a server that is too old or without JetStream.
 */
export async function connectNats(options: NatsOptions, needs = { jetStream: true }): Promise<NatsLink> {
  const servers = (typeof options.servers === 'string' ? options.servers.split(',') : [...options.servers]).map(
    addressOf,
  )
  const given = givenTo(servers, options)
  const where = servers.map(({ address }) => address).join(', ')
  const connection = await connect(given).catch((error: unknown) => {
    throw natsError(error, where)
  })
  try {
    const version = connection.info?.version ?? 'unknown'
    if (isOlder(version, oldestServer)) {
      throw new TroupeError(
        'NATS_UNSUPPORTED',
        `${where} is nats-server ${version}, at least ${oldestServer} is needed`,
      )
    }
    heedLink(connection)
    const manager = await jetstreamManager(connection, { timeout: given.timeout!, checkAPI: needs.jetStream })
    return { connection, manager, version, user: nameOf(servers, options), inboxPrefix: given.inboxPrefix! }
  } catch (error) {
    await connection.close()
    throw natsError(error, where)
  }
}

/** What the library is given. */
function givenTo(servers: readonly Address[], options: NatsOptions): NodeConnectionOptions {
  const authenticator = authenticatorOf(options)
  checkSafe(servers, options, authenticator)
  const tls = tlsOf(servers, options)
  const user = nameOf(servers, options)
  const inboxPrefix = options.inboxPrefix ?? (user === null ? '_INBOX' : `_INBOX_${user}`)
  if (!/^[A-Za-z0-9_-]{1,80}$/.test(inboxPrefix)) {
    throw new TroupeError('CONFIG_INVALID', 'the prefix of inboxes is one token of a subject: _INBOX_<name>')
  }
  return {
    servers: servers.map(({ address }) => address),
    name: options.name ?? 'troupe',
    timeout: options.timeoutMs ?? 5_000,
    pingInterval: pingMs,
    maxPingOut,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 250,
    reconnectJitter: 250,
    // Addresses that a server tells of were not checked.
    ignoreClusterUpdates: true,
    inboxPrefix,
    // Two stacks made for each request cost a twentieth of a busy worker; what fails says what and where without them.
    noAsyncTraces: true,
    ...(authenticator === null ? passwordOf(servers[0], options) : { authenticator }),
    ...(options.token === undefined ? {} : { token: options.token }),
    ...(tls === undefined ? {} : { tls: { ...tls } }),
  }
}

/**
 * Tells when the link is gone, when it is there again, and when the connection is closed for good: what was asked for
 * over a link that is gone is never answered. Returns a function that ends it.
 */
export function watchLink({ connection }: NatsLink, tell: (what: 'gone' | 'back' | 'closed') => void): () => void {
  const status = connection.status() as AsyncIterable<Status> & { stop(): void }
  void (async () => {
    for await (const { type } of status) {
      if (type === 'disconnect') tell('gone')
      else if (type === 'reconnect') tell('back')
      else if (type === 'close') tell('closed')
    }
  })()
  return () => status.stop()
}

/**
 * Tells of everything that the server's permissions refuse, once each: a publish without an answer has nobody who waits
 * for its error. Returns a function that ends it.
 */
export function watchDenied(
  { connection }: Pick<NatsLink, 'connection'>,
  tell: (error: TroupeError) => void,
): () => void {
  const status = connection.status() as AsyncIterable<Status> & { stop(): void }
  const told = new Set<string>()
  void (async () => {
    for await (const each of status) {
      if (each.type !== 'error' || !(each.error instanceof errors.PermissionViolationError)) continue
      const { message } = each.error
      if (told.has(message) || told.size >= maxTold) continue
      told.add(message)
      tell(natsError(each.error, 'the server'))
    }
  })()
  return () => status.stop()
}

/** What a failure of NATS is for the runtime. */
export function natsError(thrown: unknown, where: string): TroupeError {
  if (thrown instanceof TroupeError) return thrown
  // The library wraps what an answer failed with.
  if (thrown instanceof errors.RequestError && thrown.cause instanceof errors.PermissionViolationError) {
    return natsError(thrown.cause, where)
  }
  const message = thrown instanceof Error ? thrown.message : String(thrown)
  if (thrown instanceof errors.AuthorizationError || thrown instanceof errors.UserAuthenticationExpiredError) {
    return new TroupeError('NATS_DENIED', `${where} refused the credentials: ${message}`)
  }
  if (thrown instanceof errors.PermissionViolationError) {
    const { operation, subject } = thrown
    const details = { operation, subject: subject.slice(0, longestSubject) }
    return new TroupeError('NATS_DENIED', `${where} does not allow it: ${operation} ${details.subject}`, { details })
  }
  if (/jetstream.*not enabled|no responders/i.test(`${(thrown as Error).name} ${message}`)) {
    return new TroupeError('NATS_UNSUPPORTED', `JetStream is not enabled on ${where}, or not for this user`)
  }
  if (/temporarily unavailable|no suitable peers|cluster.*leader/i.test(message)) {
    const why = 'JetStream has no leader there: too few servers of the cluster run'
    return new TroupeError('NATS_UNREACHABLE', `${where}: ${why}`, { retryable: true, cause: thrown })
  }
  return new TroupeError('NATS_UNREACHABLE', `${where} cannot be reached: ${message}`, {
    retryable: true,
    cause: thrown,
  })
}

interface Address {
  /** Without user and password. */
  readonly address: string
  readonly host: string
  readonly user: string
  readonly password: string
}

function addressOf(text: string): Address {
  const full = /^[a-z]+:\/\//.test(text.trim()) ? text.trim() : `nats://${text.trim()}`
  let url: URL
  try {
    url = new URL(full)
  } catch {
    throw new TroupeError('CONFIG_INVALID', 'the address of a NATS server is not one: nats://HOST:PORT')
  }
  if (!['nats:', 'tls:'].includes(url.protocol) || url.hostname === '') {
    throw new TroupeError(
      'CONFIG_INVALID',
      `the address of a NATS server begins with nats:// or tls://, not ${url.protocol}`,
    )
  }
  const address = `${url.protocol}//${url.hostname}:${url.port === '' ? defaultPort : url.port}`
  return {
    address,
    host: url.hostname,
    user: decodeURIComponent(url.username),
    password: decodeURIComponent(url.password),
  }
}

function passwordOf(address: Address | undefined, { user, password }: NatsOptions): { user?: string; pass?: string } {
  if (user !== undefined) return { user, pass: password ?? '' }
  return address === undefined || address.user === '' ? {} : { user: address.user, pass: address.password }
}

/** Our name, when it may stand in a subject. */
function nameOf([first]: readonly Address[], { user = first?.user ?? '' }: NatsOptions): string | null {
  return /^[A-Za-z0-9_-]{1,64}$/.test(user) ? user : null
}

function authenticatorOf({ nkeySeed, credsFile }: NatsOptions): Authenticator | null {
  if (nkeySeed !== undefined) {
    const seed = new TextEncoder().encode(nkeySeed)
    try {
      // Of a copy: clearing a key clears the bytes that it was made of.
      nkeys.fromSeed(seed.slice()).clear()
    } catch {
      throw new TroupeError('CONFIG_INVALID', 'the nkey seed is none: it begins with SU')
    }
    return nkeyAuthenticator(seed)
  }
  if (credsFile === undefined) return null
  const creds = bytesIn(credsFile, 'credentials')
  try {
    const authenticator = credsAuthenticator(creds)
    // The library would read it with each connect only.
    authenticator('')
    return authenticator
  } catch {
    throw new TroupeError('CONFIG_INVALID', 'the credentials file has no JWT and no seed')
  }
}

/** TLS as it was asked for, also by an address that begins with `tls://`. */
function tlsOf(servers: readonly Address[], { tls }: NatsOptions): NatsOptions['tls'] {
  for (const file of Object.values(tls ?? {})) if (typeof file === 'string') bytesIn(file, 'TLS')
  if ((tls?.certFile === undefined) !== (tls?.keyFile === undefined)) {
    throw new TroupeError('CONFIG_INVALID', 'a certificate of the client and its key are given together, or not at all')
  }
  return tls ?? (servers.some(({ address }) => address.startsWith('tls:')) ? {} : undefined)
}

function bytesIn(file: string, what: string): Buffer {
  try {
    return readFileSync(file)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    throw new TroupeError('CONFIG_INVALID', `the ${what} file ${file} cannot be read: ${code ?? 'unknown'}`)
  }
}

function checkSafe(servers: readonly Address[], options: NatsOptions, authenticator: Authenticator | null): void {
  const hasCredentials =
    authenticator !== null ||
    (options.user !== undefined && (options.password ?? '') !== '') ||
    options.token !== undefined ||
    options.tls?.certFile !== undefined ||
    servers.every(({ user }) => user !== '')
  const open = servers.find(({ host }) => !isLoopback(host))
  if (open === undefined || hasCredentials || options.insecure === true) return
  const how = 'give a user, an nkey, a creds file or a client certificate, or say `insecure: true`'
  throw new TroupeError(
    'CONFIG_INVALID',
    `${open.address} is not on this machine, and there are no credentials: ${how}`,
  )
}

function isLoopback(host: string): boolean {
  const name = host.replace(/^\[|\]$/g, '')
  return name === 'localhost' || name === '::1' || (isIP(name) === 4 && name.startsWith('127.'))
}

function isOlder(version: string, than: string): boolean {
  const numbers = (text: string): number[] => text.split(/[.-]/).slice(0, 3).map(Number)
  const wanted = numbers(than)
  for (const [index, number] of numbers(version).entries()) {
    if (number !== wanted[index]) return number < (wanted[index] ?? 0)
  }
  return false
}
