/**
 * `troupe drain`: a worker, or the process that owns a store, hands over what it has and goes.
 *
 * Owns: how the progress reads, what it means that nobody has the store.
 * Does not own: draining (`worker.ts` of the runtime), reaching whoever drains (`show.ts`).
 */
import { exitCodes, plural, writeJson, writeLine } from './output.js'
import { type StoreOptions, withStore } from './show.js'

/** Drains, tells what is left whenever that changes, and ends when it is done. */
export async function drain(name: string | undefined, options: StoreOptions & { grace: number }): Promise<number> {
  const json = options.json === true
  return withStore(options, async (runtime) => {
    const who = name ?? options.store
    // Opened by this command, and closed by it in a moment.
    if (!('owner' in runtime)) {
      if (json) writeJson({ type: 'drained', worker: null, was: 'idle' })
      else writeLine(`no process has ${who}: there is nothing to drain`)
      return exitCodes.done
    }
    let told = ''
    for await (const progress of runtime.drain(name, { graceMs: options.grace })) {
      const { crews, calls } = progress
      const line = `${who}: ${plural(crews, 'crew')} to hand over, ${plural(calls, 'call')} to wait for`
      if (json && line !== told) writeJson({ type: 'progress', ...progress })
      else if (line !== told) writeLine(line)
      told = line
    }
    if (json) writeJson({ type: 'drained', worker: name ?? null })
    else writeLine(`${who} is drained`)
    return exitCodes.done
  })
}
