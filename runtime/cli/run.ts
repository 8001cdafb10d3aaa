/**
 * `troupe run`: one task to a crew, from the command line to the answer.
 *
 * Owns: where the task comes from, which run it is, the clean stop, the end that the shell sees.
 * Does not own: the run (`runtime.ts`), loading (`load.ts`), lines (`progress.ts`, `output.ts`).
 *
 * - CR1 The same command goes on with the run that it started; `--new` starts another, which the same command without
 *   `--new` then goes on with.
 * - CR2 One signal stops cleanly and names the command that goes on; a second one ends at once.
 * - CR3 When the process that owns the store goes away, this one takes the run over.
 */
import { fstatSync } from 'node:fs'
import { toTroupeError, TroupeError } from '../errors.js'
import { isLive, type TroupeEvent } from '../events.js'
import { isMachineDefinition } from '../define-machine.js'
import type { CrewHandle, Runtime } from '../face.js'
import { keyOf } from '../index.js'
import type { Run, RunResult } from '../run.js'
import type { RunInput } from '../run-input.js'
import type { RunInfo } from '../runtime.js'
import type { PendingAsk } from '../asks.js'
import { askLine } from './asks.js'
import { passing } from './busy-store.js'
import { graceMs, Interruption } from './interruption.js'
import { loadCrew } from './load.js'
import type { NatsFlags } from './nats.js'
import { openWith } from './open.js'
import { jsonInput, runMachine } from './run-machine.js'
import {
  count,
  dollars,
  duration,
  exitCodes,
  oneLine,
  painter,
  plural,
  reportError,
  shellQuote,
  withDetails,
  writeAnswer,
  writeJson,
  writeLine,
} from './output.js'
import { Progress } from './progress.js'

/** Options of `troupe run`. */
export interface RunOptions extends NatsFlags {
  readonly input?: string
  readonly id?: string
  readonly new?: boolean
  readonly store: string
  readonly json?: boolean
  readonly acceptUpgrade?: boolean
  /** Wait for a person, terminal or not. */
  readonly wait?: boolean
}

/** A last event may come this much later than the result. */
const lastEventMs = 1_000
/** How long after an event it is looked whether a run only waits for a person. */
const lookMs = 300
/** Silence on stdin after which somebody is told what is being waited for. */
const silentMs = 1_000

/** Runs a crew file. Returns the exit code. */
export async function run(file: string, options: RunOptions): Promise<number> {
  const interruption = new Interruption()
  process.on('uncaughtException', (thrown: unknown) => {
    const message = thrown instanceof Error ? thrown.message : String(thrown)
    const error = new TroupeError('ACTOR_FAILED', `code of the crew threw outside of a call: ${message}`, {
      cause: thrown,
    })
    process.exit(reportError(withDetails(error, { command: goOn(false) }), options.json === true))
  })
  try {
    const { definition, input: exported } = await loadCrew(file)
    const id = options.id ?? definition.name
    const text = await textGiven(options)
    if (isMachineDefinition(definition)) {
      const input = text === undefined ? exported : jsonInput(text)
      return await runMachine(definition, { ...options, id, input, command: goOn(false) }, interruption)
    }
    const input = inputOf(text, exported as RunInput | undefined)
    const task = new Task(id, input, options, goOn(false))
    for (;;) {
      const spawning = { id, acceptUpgrade: options.acceptUpgrade === true }
      const { runtime } = await openWith(options, interruption, (each) => each.spawn(definition, spawning))
      try {
        const end = await task.follow(runtime, runtime.crew(id)!, interruption)
        if (end !== 'owner gone') return end
      } finally {
        passing(runtime)
        // Others may have runs here: they get the same time as ours.
        await runtime.close({ graceMs: interruption.quiet ? 0 : graceMs })
        if (interruption.signal.aborted && !interruption.quiet) task.tellInterrupted()
      }
    }
  } catch (error) {
    const known = toTroupeError(error, 'CREW_INVALID')
    const goes = known.code === 'UPGRADE_REFUSED' ? `${goOn(false)} --accept-upgrade` : goOn(false)
    const later = known.code === 'UPGRADE_REFUSED' || known.retryable || known.code.startsWith('STORE_')
    return reportError(later ? withDetails(known, { command: goes }) : error, options.json === true)
  } finally {
    interruption.stop()
  }
}

/** The command that goes on with this one's run, or that starts another run of the same task. */
function goOn(another: boolean): string {
  const words = process.argv.slice(2).filter((word) => word !== '--new')
  const stdin = !words.some((word) => word.startsWith('--input')) && !process.stdin.isTTY && readStdin !== null
  return `troupe ${shellQuote(another ? [...words, '--new'] : words)}${stdin ? ' # with the same input' : ''}`
}

// The task.

let readStdin: string | null = null

/** What the command line or stdin says; undefined for nothing. */
async function textGiven(options: RunOptions): Promise<string | undefined> {
  if (options.input !== undefined) return options.input
  if (!hasStdin()) return undefined
  const text = await textOfStdin()
  return text === '' ? undefined : (readStdin = text)
}

function inputOf(text: string | undefined, exported: RunInput | undefined): RunInput {
  if (text !== undefined) return text
  if (exported !== undefined) return exported
  throw new TroupeError('INPUT_INVALID', 'no input: give --input TEXT, or text on stdin, or an `input` export')
}

/** Whether somebody may write to stdin: no terminal, and neither closed nor /dev/null. */
function hasStdin(): boolean {
  try {
    const stat = fstatSync(0)
    return stat.isFIFO() || stat.isFile() || stat.isSocket()
  } catch {
    return false
  }
}

/** All of stdin, without a last line break. */
async function textOfStdin(): Promise<string> {
  const telling = setTimeout(() => writeLine('reading the input from stdin …'), silentMs)
  const chunks: Buffer[] = []
  try {
    for await (const chunk of process.stdin as AsyncIterable<Buffer>) chunks.push(chunk)
  } finally {
    clearTimeout(telling)
  }
  return Buffer.concat(chunks)
    .toString('utf8')
    .replace(/\r?\n$/, '')
}

// The run.

type Outcome =
  | { readonly result: RunResult<unknown> }
  | { readonly error: TroupeError }
  | { readonly asks: readonly PendingAsk[] }
  | 'interrupted'

/** One task, followed to its end. */
class Task {
  readonly #id: string
  readonly #input: RunInput
  readonly #options: RunOptions
  readonly #command: string
  readonly #started = performance.now()
  #runId = ''
  /** Last event that was seen: a second owner goes on behind it. */
  #since: string | undefined
  /** A person was asked for something in this run. */
  #asked = false

  constructor(id: string, input: RunInput, options: RunOptions, command: string) {
    this.#id = id
    this.#input = input
    this.#options = options
    this.#command = command
  }

  /** Starts the run, or goes on with it. */
  async follow(runtime: Runtime, crew: CrewHandle, interruption: Interruption): Promise<number | 'owner gone'> {
    const details = await runtime.show(this.#id)
    const { key, known } = this.#keyOf(details.runs)
    const run = crew.start(this.#input, { key })
    const leaving = new AbortController()
    // Watched before it begins, so that the first reply is streamed too.
    const events = run.stream({ since: this.#since, signal: leaving.signal })
    const first = events.next()
    first.catch(() => undefined)
    this.#runId = await run.id
    this.#tellStart(known, runtime)
    if (known?.status !== 'finished' && details.paused) {
      this.#say(`  it is paused: \`troupe resume ${this.#id}\` lets it go on`)
    }
    const watching = this.#watch(first, events)
    const outcome = await Promise.race([outcomeOf(run, interruption.signal), this.#heldUp(runtime, leaving.signal)])
    if (outcome !== 'interrupted' && 'asks' in outcome) {
      leaving.abort()
      return this.#tellAsks(outcome.asks)
    }
    if (outcome === 'interrupted' || ('error' in outcome && !isEnd(outcome.error))) leaving.abort()
    await Promise.race([watching, new Promise((resolve) => setTimeout(resolve, lastEventMs).unref())])
    leaving.abort()
    if (outcome === 'interrupted') return interruption.quiet ? exitCodes.done : exitCodes.interrupted
    if ('result' in outcome) return this.#tellResult(outcome.result, known)
    if (outcome.error.code !== 'RUNTIME_CLOSED') return this.#tellError(outcome.error)
    // It was here: somebody has drained the store.
    if (!('owner' in runtime)) {
      this.tellInterrupted()
      return exitCodes.interrupted
    }
    this.#say('the process that owned the store is gone: going on here')
    return 'owner gone'
  }

  /** Resolves when nothing goes on but what waits for a person, where nobody sits here who could be one. */
  async #heldUp(runtime: Runtime, signal: AbortSignal): Promise<Outcome> {
    const { wait = process.stderr.isTTY } = this.#options
    while (!wait && !signal.aborted) {
      await new Promise((resolve) => setTimeout(resolve, lookMs).unref())
      if (!this.#asked || signal.aborted) continue
      const details = await runtime.show(this.#id).catch(() => null)
      if (details !== null && details.openEffects === 0 && details.asks.length > 0) return { asks: details.asks }
    }
    return new Promise(() => undefined)
  }

  /** The key of the newest run of this task, or of one more. */
  #keyOf(runs: readonly RunInfo[]): { readonly key: string; readonly known: RunInfo | null } {
    const base = keyOf(this.#id, this.#input)
    const mine = runs.filter((run) => run.key === base || run.key.startsWith(`${base}.`))
    const newest = mine.at(-1)
    // After the first try of this command `--new` has been done.
    const another = this.#options.new === true && this.#runId === ''
    if (newest === undefined) return { key: base, known: null }
    return another ? { key: `${base}.${mine.length}`, known: null } : { key: newest.key, known: newest }
  }

  async #watch(first: Promise<IteratorResult<TroupeEvent>>, events: AsyncIterator<TroupeEvent>): Promise<void> {
    const progress = this.#options.json === true ? null : new Progress()
    try {
      for (let next = await first; next.done !== true; next = await events.next()) {
        const event = next.value
        if (!isLive(event)) this.#since = event.id
        if (event.type === 'troupe.human.asked') this.#asked = true
        if (progress === null) writeJson(event)
        // What happened before this process began was told by another.
        else if (Date.parse(event.time) < performance.timeOrigin - 1) progress.learn(event)
        else progress.show(event)
      }
    } catch {
      // The result says what happened.
    } finally {
      progress?.flush()
    }
  }

  #say(line: string): void {
    if (this.#options.json !== true) writeLine(line)
  }

  #tellStart(known: RunInfo | null, runtime: Runtime): void {
    const paint = painter(process.stderr)
    const where = 'owner' in runtime ? ` in process ${String(runtime.owner)}` : ''
    const what = known === null ? '' : known.status === 'finished' ? ' finished before' : ' goes on'
    this.#say(`${paint('bold', this.#id)} ${this.#runId}${what}${where}`)
  }

  #tellResult(result: RunResult<unknown>, known: RunInfo | null): number {
    const { output, usage, cost, runId, finishReason, rounds } = result
    if (this.#options.json === true) {
      writeJson({ type: 'result', output, usage, cost, runId, finishReason, rounds })
      return exitCodes.done
    }
    const paint = painter(process.stderr)
    const parts = [
      plural(rounds, 'round'),
      plural(usage.modelCalls, 'model call'),
      plural(usage.toolCalls, 'tool call'),
      `${count(usage.tokens)} tokens`,
      dollars(cost.usd),
      ...(known?.status === 'finished' ? [] : [duration(performance.now() - this.#started)]),
    ]
    writeLine(`${paint('green', 'done')} ${runId} ${paint('dim', `· ${parts.join(' · ')}`)}`)
    if (known?.status === 'finished') writeLine(paint('dim', '  its stored result; --new starts another run'))
    writeAnswer(output)
    return exitCodes.done
  }

  #tellAsks(asks: readonly PendingAsk[]): number {
    const ids = asks.map(({ id }) => id)
    if (this.#options.json === true) {
      writeJson({ type: 'paused', runId: this.#runId, asks, command: this.#command })
      return exitCodes.stopped
    }
    writeLine('waits for a person:')
    for (const ask of asks) writeLine(`  ${askLine(ask)}`)
    writeLine(`  \`troupe approve ${this.#id} ${ids[0]}\` answers; then go on with: ${oneLine(this.#command, 10_000)}`)
    return exitCodes.stopped
  }

  #tellError(error: TroupeError): number {
    const { details } = error
    const command = isEnd(error) ? goOn(true) : this.#command
    if (this.#options.json !== true && typeof details['tokens'] === 'number') {
      const parts = [
        plural(Number(details['modelCalls']), 'model call'),
        `${count(details['tokens'])} tokens`,
        dollars(Number(details['costNanoUsd']) / 1e9),
      ]
      const paint = painter(process.stderr)
      writeLine(`${paint('red', 'failed')} ${this.#runId} ${paint('dim', `· ${parts.join(' · ')}`)}`)
    }
    return reportError(withDetails(error, { command }), this.#options.json === true)
  }

  /** Names the command that goes on. */
  tellInterrupted(): void {
    const details = { command: this.#command, ...(this.#runId === '' ? {} : { runId: this.#runId }) }
    if (this.#options.json === true)
      writeJson({ type: 'error', code: 'RUNTIME_CLOSED', message: 'interrupted', details })
    else writeLine(`interrupted; go on with: ${oneLine(this.#command, 10_000)}`)
  }
}

async function outcomeOf(run: Run, signal: AbortSignal): Promise<Outcome> {
  const interrupted = new Promise<Outcome>((resolve) => {
    if (signal.aborted) resolve('interrupted')
    else signal.addEventListener('abort', () => resolve('interrupted'), { once: true })
  })
  const ended = run.result.then(
    (result): Outcome => ({ result }),
    (error: unknown): Outcome => ({ error: toTroupeError(error, 'ACTOR_FAILED') }),
  )
  return Promise.race([ended, interrupted])
}

/** Whether the run itself ended with this error; with another one it goes on some time. */
function isEnd(error: TroupeError): boolean {
  return 'costNanoUsd' in error.details
}
