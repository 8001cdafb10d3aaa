/**
 * The settings that a server has really given to what a namespace stores: read back, not believed.
 *
 * Owns: what they mean for durability.
 * Does not own: making streams and refusing wrong ones (`jetstream-stream.ts`).
 *
 * - NST1 The durability that is told is that of the stream or bucket with the fewest copies.
 */
import type { Durability } from '../runtime/journal.js'
import { storeError } from './jetstream-content.js'
import type { NatsLink } from './nats-connection.js'
import type { Subjects } from './subjects.js'

/** What was obtained. */
export interface Settings {
  /** `process`: survives a killed server; `replicas`: and the loss of a minority of the servers. */
  readonly durability: Durability
  /** Copies of the journal and of what it names. */
  readonly replicas: number
  /** Bytes that the journal may have; null for no limit of its own. */
  readonly maxBytes: number | null
}

/** Fewest copies of which one may be lost while the others go on. */
const enough = 3

/** What an acknowledged append survives with so many copies. */
export function durabilityOf(replicas: number): Durability {
  return replicas >= enough ? 'replicas' : 'process'
}

/** Asks what a namespace's streams have. @throws TroupeError `STORE_FAILED` when one of them is not there or the server does not answer. */
export async function readSettings({ manager }: NatsLink, subjects: Subjects): Promise<Settings> {
  try {
    const names = [subjects.stream('journal'), subjects.stream('content'), subjects.stream('mail')]
    const [journal, ...others] = await Promise.all(names.map(async (name) => (await manager.streams.info(name)).config))
    const replicas = Math.min(journal!.num_replicas, ...others.map(({ num_replicas }) => num_replicas))
    return {
      durability: durabilityOf(replicas),
      replicas,
      maxBytes: journal!.max_bytes > 0 ? journal!.max_bytes : null,
    }
  } catch (error) {
    throw storeError(error)
  }
}
