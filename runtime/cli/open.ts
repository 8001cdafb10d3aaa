/**
 * Opening a runtime for one command that runs something: a store, or the workers of a namespace.
 *
 * Owns: waiting for a store that somebody has for a moment only.
 * Does not own: what is spawned there (`run.ts`, `run-machine.ts`), how a store is opened (`index.ts`).
 */
import type { Runtime } from '../face.js'
import { createRuntime } from '../index.js'
import { BusyStore } from './busy-store.js'
import { graceMs, type Interruption } from './interruption.js'
import { type NatsFlags, natsFrom } from './nats.js'

/** Opens a runtime and spawns there. Whoever has it closes it. @throws TroupeError what either refuses. */
export async function openWith<T>(
  options: NatsFlags & { readonly store: string },
  { signal }: Interruption,
  spawn: (runtime: Runtime) => Promise<T>,
): Promise<{ readonly runtime: Runtime; readonly handle: T }> {
  const busy = new BusyStore()
  for (;;) {
    const runtime = await createRuntime(
      options.nats === undefined ? { store: options.store } : { nats: { ...natsFrom(options), role: 'client' } },
      busy.tell,
    )
    try {
      return { runtime, handle: await spawn(runtime) }
    } catch (error) {
      await runtime.close({ graceMs })
      if (signal.aborted || options.nats !== undefined || !(await busy.again(runtime, error))) throw error
    }
  }
}
