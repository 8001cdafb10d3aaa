/**
 * Reaching NATS from the command line: the options that every such command has.
 *
 * Owns: the options and the variables of the environment.
 * Does not own: what is safe, what a failure means (`transport/nats-connection.ts`), what a command does there.
 *
 * - CN1 No secret is in the arguments of a process, where everybody on the machine sees it: passwords come from the
 *   environment or a file, keys from files.
 */
import { readFileSync } from 'node:fs'
import type { NatsLink, NatsOptions } from '../../transport/nats-connection.js'
import type { Subjects } from '../../transport/subjects.js'
import { TroupeError } from '../errors.js'

/** The options of a command that reaches NATS. */
export interface NatsFlags {
  /** `nats://host:port`, or several with commas. */
  readonly nats?: string
  readonly namespace: string
  /** Path of a `.creds` file. */
  readonly creds?: string
  /** Path of a file with an nkey seed. */
  readonly nkey?: string
  readonly user?: string
  /** Path of a file with the user's password. */
  readonly passwordFile?: string
  /** TLS with the system's authorities. */
  readonly tls?: true
  /** Paths of files in PEM. */
  readonly tlsCa?: string
  readonly tlsCert?: string
  readonly tlsKey?: string
  readonly insecure?: true
}

/** What of a commander command is needed here: its library has its home in `main.ts`. */
interface Optioned {
  option(flags: string, description: string, value?: string): this
}

/** Gives a command the options of `NatsFlags`. */
export function natsOptions<Command extends Optioned>(command: Command): Command {
  return command
    .option('--nats <url>', 'where NATS is: nats://HOST:PORT, or several with commas')
    .option('--namespace <name>', 'which crews: those of this name share workers, mail and events', 'default')
    .option('--creds <file>', 'credentials file with JWT and seed')
    .option('--nkey <file>', 'file with an nkey seed')
    .option('--user <name>', 'name of the user, also beside a key (default: NATS_USER)')
    .option('--password-file <file>', 'file with the password (default: NATS_PASSWORD)')
    .option('--tls', 'speak TLS, and nothing else')
    .option('--tls-ca <file>', 'authority that the server must have its certificate from')
    .option('--tls-cert <file>', 'certificate of this client')
    .option('--tls-key <file>', 'key of this certificate')
    .option('--insecure', 'connect off loopback without credentials')
}

/** How to reach NATS, as the options say. @throws TroupeError `CONFIG_INVALID` without `--nats` or for a file that cannot be read. */
export function natsFrom(flags: NatsFlags): NatsOptions & { readonly namespace: string } {
  if (flags.nats === undefined) throw new TroupeError('CONFIG_INVALID', 'no NATS: give --nats nats://HOST:PORT')
  const user = flags.user ?? process.env['NATS_USER']
  const password =
    flags.passwordFile === undefined ? process.env['NATS_PASSWORD'] : textIn(flags.passwordFile, 'password')
  const servers = flags.nats.split(',')
  if (servers.some((server) => /\/\/[^/@]*:[^/@]*@/.test(server))) {
    const instead = 'set NATS_PASSWORD, or give --password-file'
    throw new TroupeError('CONFIG_INVALID', `everybody on this machine sees a password in --nats: ${instead}`)
  }
  return {
    servers,
    namespace: flags.namespace,
    ...(user === undefined ? {} : { user }),
    ...(password === undefined ? {} : { password }),
    ...(flags.creds === undefined ? {} : { credsFile: flags.creds }),
    ...(flags.nkey === undefined ? {} : { nkeySeed: textIn(flags.nkey, 'nkey') }),
    ...tlsFrom(flags),
    ...(flags.insecure === undefined ? {} : { insecure: true }),
  }
}

function tlsFrom({ tls, tlsCa, tlsCert, tlsKey }: NatsFlags): Pick<NatsOptions, 'tls'> {
  const files = {
    ...(tlsCa === undefined ? {} : { caFile: tlsCa }),
    ...(tlsCert === undefined ? {} : { certFile: tlsCert }),
    ...(tlsKey === undefined ? {} : { keyFile: tlsKey }),
  }
  return tls === undefined && Object.keys(files).length === 0 ? {} : { tls: files }
}

/** Connects as the options say. @throws TroupeError as `natsFrom`, `ID_INVALID` for a namespace that is none, and what `connectNats` throws. */
export async function connectFrom(flags: NatsFlags): Promise<{ readonly link: NatsLink; readonly subjects: Subjects }> {
  const options = natsFrom(flags)
  const [{ connectNats }, { Subjects }] = await Promise.all([
    import('../../transport/nats-connection.js'),
    import('../../transport/subjects.js'),
  ])
  const subjects = new Subjects(flags.namespace)
  return { link: await connectNats(options), subjects }
}

function textIn(file: string, what: string): string {
  try {
    return readFileSync(file, 'utf8').trim()
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    throw new TroupeError('CONFIG_INVALID', `the ${what} file cannot be read: ${code ?? 'unknown'}`)
  }
}
