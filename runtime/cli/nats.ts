/**
 * Reaching NATS from the command line: the options that every such command has.
 *
 * Owns: the options and the variables of the environment.
 * Does not own: what is safe, what a failure means (`transport/nats-connection.ts`), what a command does there.
 *
 * - CN1 A password comes from the environment as well as from the command line, where others of the machine see it.
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
  readonly password?: string
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
    .option('--user <name>', 'user (default: NATS_USER)')
    .option('--password <text>', 'password (default: NATS_PASSWORD, which nobody else sees)')
}

/** How to reach NATS, as the options say. @throws TroupeError `CONFIG_INVALID` without `--nats` or for a file that cannot be read. */
export function natsFrom(flags: NatsFlags): NatsOptions & { readonly namespace: string } {
  if (flags.nats === undefined) throw new TroupeError('CONFIG_INVALID', 'no NATS: give --nats nats://HOST:PORT')
  const user = flags.user ?? process.env['NATS_USER']
  const password = flags.password ?? process.env['NATS_PASSWORD']
  return {
    servers: flags.nats.split(','),
    namespace: flags.namespace,
    ...(user === undefined ? {} : { user }),
    ...(password === undefined ? {} : { password }),
    ...(flags.creds === undefined ? {} : { credsFile: flags.creds }),
    ...(flags.nkey === undefined ? {} : { nkeySeed: seedIn(flags.nkey) }),
  }
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

function seedIn(file: string): string {
  try {
    return readFileSync(file, 'utf8').trim()
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    throw new TroupeError('CONFIG_INVALID', `the nkey file cannot be read: ${code ?? 'unknown'}`)
  }
}
