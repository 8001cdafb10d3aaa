/**
 * `troupe run` of a machine of the user's: started, or taken up again, and followed to its end.
 *
 * Owns: what is told of it, the end that the shell sees.
 * Does not own: the machine (`runtime.ts`), loading (`load.ts`), what its messages are: programs send them.
 *
 * - CM1 The same command goes on with the same machine; what it starts with counts the first time. There is no other run of it.
 * - CM2 When the process that owns the store goes away, this one takes the machine over.
 */
import type { MachineDefinition } from '../define-machine.js'
import { isTroupeError, TroupeError } from '../errors.js'
import type { TroupeEvent } from '../events.js'
import type { MachineHandle, Runtime } from '../face.js'
import { stateName } from '../run-info.js'
import { passing } from './busy-store.js'
import { graceMs, type Interruption } from './interruption.js'
import type { NatsFlags } from './nats.js'
import { openWith } from './open.js'
import { exitCodes, oneLine, painter, reportError, withDetails, writeAnswer, writeJson, writeLine } from './output.js'

/** What is said of a machine that is run. */
export interface MachineRunOptions extends NatsFlags {
  readonly id: string
  readonly input: unknown
  readonly store: string
  /** The command that goes on with it. */
  readonly command: string
  readonly new?: boolean
  readonly json?: boolean
  readonly acceptUpgrade?: boolean
}

type Outcome = { readonly output: unknown } | { readonly error: unknown } | 'interrupted'

/** A last event may come this much later than the result. */
const lastEventMs = 1_000

/** Runs a machine. Returns the exit code. */
export async function runMachine(
  definition: MachineDefinition,
  options: MachineRunOptions,
  interruption: Interruption,
): Promise<number> {
  if (options.new === true)
    throw new TroupeError(
      'CONFIG_INVALID',
      'a machine is started once: --id ID starts another, `troupe rm` ends this one',
    )
  const { id, input, acceptUpgrade = false } = options
  const followed = new Followed(options)
  for (;;) {
    const spawn = (runtime: Runtime): Promise<MachineHandle> => runtime.spawn(definition, { id, input, acceptUpgrade })
    const { runtime, handle } = await openWith(options, interruption, spawn)
    try {
      const end = await followed.follow(runtime, handle, interruption)
      if (end !== 'owner gone') return end
    } finally {
      passing(runtime)
      await runtime.close({ graceMs: interruption.quiet ? 0 : graceMs })
    }
  }
}

/** What a machine starts with, from the command line. @throws TroupeError `INPUT_INVALID`. */
export function jsonInput(text: string): unknown {
  try {
    return JSON.parse(text) as unknown
  } catch (error) {
    throw new TroupeError('INPUT_INVALID', 'what a machine starts with is JSON', { cause: error })
  }
}

/** One machine, told of until it ends. */
class Followed {
  readonly #options: MachineRunOptions
  /** Last event that was told: a second owner goes on behind it. */
  #since: string | undefined

  constructor(options: MachineRunOptions) {
    this.#options = options
  }

  async follow(runtime: Runtime, machine: MachineHandle, interruption: Interruption): Promise<number | 'owner gone'> {
    const { status, value } = await machine.state()
    const where = 'owner' in runtime && typeof runtime.owner === 'number' ? ` in process ${runtime.owner}` : ''
    this.#say(
      `${painter(process.stderr)('bold', machine.id)} ${status === 'active' ? stateName(value) : status}${where}`,
    )
    const leaving = new AbortController()
    const watching = this.#watch(machine, leaving.signal)
    const outcome = await outcomeOf(machine, interruption.signal)
    if (outcome !== 'interrupted')
      await Promise.race([watching, new Promise((resolve) => setTimeout(resolve, lastEventMs).unref())])
    leaving.abort()
    if (outcome === 'interrupted') return this.#tellInterrupted(interruption)
    if ('output' in outcome) return this.#tellOutput(machine.id, outcome.output)
    const { error } = outcome
    if (!isTroupeError(error) || error.code !== 'RUNTIME_CLOSED') return reportError(error, this.#options.json === true)
    if (!('owner' in runtime)) return this.#tellInterrupted(interruption)
    this.#say('the process that owned the store is gone: going on here')
    return 'owner gone'
  }

  async #watch(machine: MachineHandle, signal: AbortSignal): Promise<void> {
    try {
      const since = this.#since === undefined ? {} : { since: this.#since }
      for await (const event of machine.events({ ...since, signal })) {
        this.#since = event.id
        if (this.#options.json === true) writeJson(event)
        else tell(event)
      }
    } catch {
      // The result says what happened.
    }
  }

  #say(line: string): void {
    if (this.#options.json !== true) writeLine(line)
  }

  #tellOutput(id: string, output: unknown = null): number {
    if (this.#options.json === true) writeJson({ type: 'result', id, output })
    else {
      writeLine(`${painter(process.stderr)('green', 'done')} ${id}`)
      writeAnswer(output)
    }
    return exitCodes.done
  }

  #tellInterrupted({ quiet }: Interruption): number {
    if (quiet) return exitCodes.done
    const interrupted = new TroupeError('RUNTIME_CLOSED', 'interrupted')
    reportError(withDetails(interrupted, { command: this.#options.command }), this.#options.json === true)
    return exitCodes.interrupted
  }
}

/** Says what happened, where that is worth a line. */
function tell({ type, data }: TroupeEvent): void {
  const what = type.slice('troupe.'.length)
  if (what === 'machine.emitted') writeLine(`  emitted ${oneLine(JSON.stringify(data['event']))}`)
  if (what === 'machine.logged') writeLine(`  ${oneLine([data['label'], JSON.stringify(data['value'])].join(' '))}`)
  if (what === 'actor.failed' || what === 'action.failed') writeLine(`  ${what}: ${oneLine(String(data['reason']))}`)
}

async function outcomeOf(machine: MachineHandle, signal: AbortSignal): Promise<Outcome> {
  const interrupted = new Promise<Outcome>((resolve) => {
    if (signal.aborted) resolve('interrupted')
    else signal.addEventListener('abort', () => resolve('interrupted'), { once: true })
  })
  const ended = machine.result.then(
    (output): Outcome => ({ output }),
    (error: unknown): Outcome => ({ error }),
  )
  return Promise.race([ended, interrupted])
}
