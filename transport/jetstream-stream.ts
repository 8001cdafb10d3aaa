/**
 * Streams of a namespace: made when they are missing, checked when they are there.
 *
 * Owns: what all streams have in common, which settings of a stream that is there are not ours to live with.
 * Does not own: what is stored in them.
 *
 * - JST1 A stream that is there stays as its operator has set it; one that does not have what must hold is refused.
 * - JST2 A setting is believed when the server says that it has it, not because it was asked for.
 */
import { RetentionPolicy, StorageType, type StreamConfig } from '@nats-io/jetstream'
import { TroupeError } from '../runtime/errors.js'
import type { NatsLink } from './nats-connection.js'

/** How long the server remembers message ids, in milliseconds. */
export const rememberedMs = 120_000

/** A stream as it must be. What is not said here is the operator's to set. */
export type StreamWanted = Partial<StreamConfig> & { readonly name: string; readonly subjects: string[] }

/**
 * Makes sure that a stream is there, and gives its settings as the server has them. What is `given` must hold, and so must
 * retention (by limits), storage (file) and whether messages may be deleted (yes), where nothing else is given; copies,
 * limits and how long ids are remembered are the operator's to set.
 * @param limits of a stream that is made, and what else one that is there may do without
 * @throws TroupeError `CONFIG_INVALID` for a stream that is there and otherwise, `NATS_UNSUPPORTED` for a server that did not
 * take what was asked for. Failures of the server come as they are.
 */
export async function ensureStream(
  { manager }: NatsLink,
  given: StreamWanted,
  replicas = 1,
  limits: Pick<Partial<StreamConfig>, 'max_msgs' | 'max_bytes' | 'max_age' | 'allow_direct'> = {},
): Promise<StreamConfig> {
  const must = { retention: RetentionPolicy.Limits, storage: StorageType.File, deny_delete: false, ...given }
  const { name } = must
  const found = await manager.streams.info(name).catch(() => null)
  const free = { ...limits, num_replicas: replicas, duplicate_window: rememberedMs * 1_000_000 }
  const { config } = found ?? (await manager.streams.add({ ...free, ...must }))
  // What a server does not know it leaves out without a word.
  const has = (setting: string): string => JSON.stringify(config[setting as keyof StreamConfig] ?? false)
  const [missing] = Object.entries(must).find(([setting, value]) => has(setting) !== JSON.stringify(value)) ?? []
  if (missing === undefined) return config
  if (found === null) throw new TroupeError('NATS_UNSUPPORTED', `the server made the stream ${name} without ${missing}`)
  throw new TroupeError('CONFIG_INVALID', `the stream ${name} is there and is not set as it must be: ${missing}`)
}
