/**
 * `troupe nats-config`: a configuration of nats-server with one user for each role.
 *
 * Owns: the folder of seeds, what is printed where.
 * Does not own: the configuration (`transport/nats-config.ts`), what a role may do (`transport/nats-roles.ts`).
 *
 * - NG1 No secret is printed. Seeds are in files that only their owner reads; one that is there is used again.
 */
import { mkdir, open, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { natsConfig, newKey, publicKeyOf, usersOf, variableOf } from '../../transport/nats-config.js'
import { TroupeError } from '../errors.js'
import { exitCodes, writeLine } from './output.js'

/** Options of `troupe nats-config`. */
export interface NatsConfigOptions {
  readonly namespace: string
  readonly client: readonly string[]
  readonly tools: readonly string[]
  readonly listen: string
  readonly storeDir: string
  readonly out?: string
  readonly tlsCert?: string
  readonly tlsKey?: string
  readonly tlsCa?: string
}

/** Prints the configuration. Returns the exit code. */
export async function printNatsConfig(options: NatsConfigOptions): Promise<number> {
  const { namespace, client: clients, tools, listen, storeDir, out } = options
  const names = usersOf({ clients, tools }).map(({ name }) => name)
  const keys = new Map<string, string>()
  if (out !== undefined) {
    await mkdir(out, { recursive: true, mode: 0o700 })
    for (const name of names) keys.set(name, await publicKeyIn(join(out, `${name}.nk`)))
  }
  const keyOf = out === undefined ? undefined : (name: string): string => keys.get(name)!
  process.stdout.write(natsConfig({ namespace, clients, tools, listen, storeDir, tls: tlsOf(options), keyOf }))
  if (out !== undefined) writeLine(`seeds: ${names.map((name) => join(out, `${name}.nk`)).join(', ')}`)
  else writeLine(`the server reads passwords from ${names.map(variableOf).join(', ')}; --out DIR makes keys instead`)
  return exitCodes.done
}

function tlsOf({
  tlsCert: certFile,
  tlsKey: keyFile,
  tlsCa: caFile,
}: NatsConfigOptions): Parameters<typeof natsConfig>[0]['tls'] {
  if (certFile !== undefined && keyFile !== undefined) return { certFile, keyFile, caFile }
  if (certFile === undefined && keyFile === undefined && caFile === undefined) return undefined
  throw new TroupeError('CONFIG_INVALID', 'TLS of a server needs its certificate and its key: --tls-cert and --tls-key')
}

/** The public key of the seed in a file, which is made when it is not there. */
async function publicKeyIn(path: string): Promise<string> {
  const { seed, publicKey } = newKey()
  try {
    // Never over one that is there, which its users have.
    const file = await open(path, 'wx', 0o600)
    await file.writeFile(`${seed}\n`)
    await file.close()
    return publicKey
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw fileError(path, error)
  }
  const text = await readFile(path, 'utf8').catch((error: unknown) => {
    throw fileError(path, error)
  })
  return publicKeyOf(text.trim())
}

function fileError(path: string, error: unknown): TroupeError {
  const { code = 'unknown' } = error as NodeJS.ErrnoException
  return new TroupeError('CONFIG_INVALID', `the seed ${path} cannot be kept: ${code}`)
}
