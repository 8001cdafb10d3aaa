/**
 * Streams of a namespace: made when they are missing, checked when they are there.
 *
 * Owns: what all streams have in common, which settings of a stream that is there are not ours to live with.
 * Does not own: what is stored in them.
 *
 * - JST1 A stream that is there stays as its operator has set it; one that does not have what must hold is refused.
 */
import { RetentionPolicy, StorageType, type StreamConfig } from '@nats-io/jetstream'
import { TroupeError } from '../runtime/errors.js'
import type { NatsLink } from './nats-connection.js'

/** How long the server remembers message ids, in milliseconds. */
export const rememberedMs = 120_000

/** A stream as it must be. What is not said here is the operator's to set. */
export type StreamWanted = Partial<StreamConfig> & { readonly name: string; readonly subjects: string[] }

/**
 * Makes sure that a stream is there. Subjects, retention (by limits), storage (file) and whether messages may be deleted
 * (yes) must hold; how full streams refuse only when it is said.
 * @throws TroupeError `CONFIG_INVALID` for a stream that is there and otherwise. Failures of the server come as they are.
 */
export async function ensureStream({ manager }: NatsLink, given: StreamWanted, replicas = 1): Promise<void> {
  const wanted = {
    retention: RetentionPolicy.Limits,
    storage: StorageType.File,
    deny_delete: false,
    num_replicas: replicas,
    duplicate_window: rememberedMs * 1_000_000,
    ...given,
  }
  const { name } = wanted
  const found = await manager.streams.info(name).catch(() => null)
  const { config } = found ?? (await manager.streams.add(wanted))
  const differs =
    config.subjects?.join() !== wanted.subjects.join() ||
    config.retention !== wanted.retention ||
    config.storage !== wanted.storage ||
    (config.deny_delete ?? false) !== wanted.deny_delete ||
    (given.discard !== undefined && config.discard !== given.discard)
  if (differs) throw new TroupeError('CONFIG_INVALID', `the stream ${name} is there and is not set as it must be`)
}
