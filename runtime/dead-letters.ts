/**
 * What is done about dead letters: they are listed, looked at, replayed and dropped.
 *
 * Owns: the four commands, what may be replayed.
 * Does not own: the table (`dead-letter.ts`), what a message may be edited to (`edited-letter.ts`), what a replay decides
 * (`commit.ts`).
 *
 * - DL2 A replay is a journalled input like any other: it is decided anew, once, however often it is asked for.
 * - DL3 What is over stays over: outcomes and timers are not replayed, nor what is for an actor that is gone.
 */
import { textOfValue } from './content.js'
import type { Value } from './codec.js'
import type { DeadLetter } from './dead-letter.js'
import { editedMessage } from './edited-letter.js'
import { TroupeError } from './errors.js'
import type { Journal } from './journal.js'
import { corrupt, fromRecord } from './record.js'
import { type RunInfo, runInfo, stateName } from './run-info.js'
import type { Message } from './scope.js'
import type { Shard } from './shard.js'
import type { ShardState } from './state.js'

/** Longest name of whoever edits. */
const maxBy = 256

/** A dead letter, as `list` tells it. */
export interface DeadLetterInfo {
  readonly id: string
  /** Address of the sender: an actor, a port, a client. */
  readonly from: string
  readonly to: string
  readonly type: string
  /** Why nobody could process it. */
  readonly code: string
  readonly reason: string
  /** Epoch milliseconds. */
  readonly at: number
}

/** Everything of a dead letter. */
export interface DeadLetterDetails extends DeadLetterInfo {
  readonly message: Message
  /** Content of the commit that it came up in: what people, models and tools said. */
  readonly values: readonly string[]
  /** State of the actor that it is for; null when that one is gone. */
  readonly state: string | null
  /** The run that it is about, with what it has cost so far; null for none. */
  readonly run: RunInfo | null
}

/** How to replay a dead letter. */
export interface ReplayOptions {
  /**
   * Instead of the letter's own message: of the outside or of another crew, as the letter is, and about the same content.
   * @default the letter's own
   */
  readonly message?: unknown
  /** Who edited it, for the record; over NATS it is the name of the client. Up to 256 characters. @default 'local' */
  readonly by?: string
}

/** The dead letters of crews: messages that nobody could process. */
export interface DeadLetters {
  /** The dead letters of a crew, the oldest first. @throws TroupeError `CREW_UNKNOWN`. */
  list(crew: string): AsyncGenerator<DeadLetterInfo, void, void>
  /** One of them with its content. @throws TroupeError `CREW_UNKNOWN`, `LETTER_UNKNOWN`. */
  show(crew: string, letter: string): Promise<DeadLetterDetails>
  /**
   * Has it decided anew, as an input from outside, by the code that the crew has now. Resolves when that is durable. One
   * that dies again is a new dead letter.
   * @throws TroupeError `CREW_UNKNOWN`, `LETTER_UNKNOWN`; `LETTER_REFUSED` for an outcome, a timer, an actor that is gone, and
   * when it died again; `MESSAGE_REFUSED` for an edited message that its actor does not take from outside, `INPUT_INVALID` for
   * one that is malformed or does not fit its content.
   */
  replay(crew: string, letter: string, options?: ReplayOptions): Promise<void>
  /** Deletes one, or all of the crew. Gives their number. @throws TroupeError `CREW_UNKNOWN`, `LETTER_UNKNOWN`. */
  drop(crew: string, letter?: string): Promise<number>
}

/** Those of the crews of this process. */
export class LocalDeadLetters implements DeadLetters {
  readonly #journal: Journal
  readonly #shard: (crew: string) => Promise<Shard>

  /** @param shard rejects with `CREW_UNKNOWN` */
  constructor(journal: Journal, shard: (crew: string) => Promise<Shard>) {
    this.#journal = journal
    this.#shard = shard
  }

  async *list(crew: string): AsyncGenerator<DeadLetterInfo, void, void> {
    for (const letter of [...(await this.#shard(crew)).state.letters.values()]) yield infoOf(letter)
  }

  async show(crew: string, id: string): Promise<DeadLetterDetails> {
    const { state } = await this.#shard(crew)
    const letter = letterOf(state, id)
    const actor = state.actors.get(letter.to)
    const told = {
      state: actor === undefined ? null : stateName(actor.snapshot.value),
      run: runOf(letter, state),
    }
    const values = await this.#valuesOf(crew, letter)
    const texts = await Promise.all(values.map((value) => textOfValue(this.#journal, crew, value)))
    return { ...infoOf(letter), message: letter.message, values: texts, ...told }
  }

  async replay(crew: string, id: string, { message, by = 'local' }: ReplayOptions = {}): Promise<void> {
    const shard = await this.#shard(crew)
    const letter = letterOf(shard.state, id)
    const over = whyOver(letter, shard)
    if (over !== null) throw new TroupeError('LETTER_REFUSED', `${crew}: ${id} ${over}`, { details: { letter: id } })
    const values = await this.#valuesOf(crew, letter)
    const edit = message === undefined ? {} : { message: editedMessage(letter, message, values.length), by: named(by) }
    const { events } = await tell(shard, { type: 'letter.replayed', letter: id, ...edit }, values)
    if (!events.some(([, { type }]) => type === 'letter.replayed')) throw unknown(crew, id)
    const [, again] = events.find(([, { type }]) => type === 'message.dead') ?? []
    if (again === undefined) return
    const { letter: next, code } = again as unknown as { letter: string; code: string }
    const details = { letter: id, next, reason: code }
    throw new TroupeError('LETTER_REFUSED', `${crew}: ${id} died again, as ${next}: ${code}`, { details })
  }

  async drop(crew: string, id?: string): Promise<number> {
    const shard = await this.#shard(crew)
    if (id !== undefined) letterOf(shard.state, id)
    if (shard.state.letters.size === 0) return 0
    const { events } = await tell(shard, { type: 'letter.dropped', letter: id ?? null }, [])
    const [, dropped] = events.find(([, { type }]) => type === 'letters.dropped') ?? []
    return (dropped?.['count'] as number | undefined) ?? 0
  }

  /** As they are in the record, so that what lies beside the journal is not copied. */
  async #valuesOf(crew: string, { id }: DeadLetter): Promise<readonly Value[]> {
    const sequence = Number.parseInt(id, 10)
    for await (const record of this.#journal.read(crew, sequence)) {
      const commit = fromRecord(crew, record)[sequence - record.first]
      if (commit !== undefined) return commit.envelope.values
      break
    }
    throw corrupt(crew, sequence, 'is missing')
  }
}

function tell(shard: Shard, body: Message, values: readonly Value[]) {
  return shard.post({ from: 'client/local', to: 'shard/self', cause: '', body, values }, true)
}

function letterOf({ shard, letters }: ShardState, id: string): DeadLetter {
  const letter = letters.get(id)
  if (letter === undefined) throw unknown(shard, id)
  return letter
}

function named(by: string): string {
  if (by.length >= 1 && by.length <= maxBy) return by
  throw new TroupeError('INPUT_INVALID', `a name has 1 to ${maxBy} characters`)
}

/** The run that a letter names, or its actor's, or the one that it would have begun. */
function runOf({ id, to, message }: DeadLetter, state: ShardState): RunInfo | null {
  const { actors, runs } = state
  const ofActor = (actors.get(to)?.snapshot.context as { run?: unknown } | undefined)?.run
  const named = [message['run'], ofActor, /-(r\d+)$/.exec(to)?.[1]].find((each) => typeof each === 'string')
  const begins = /^(crew|delegate)\.task$/.test(message.type) ? `r${Number.parseInt(id, 10)}` : undefined
  const run =
    runs.get(named ?? begins ?? '') ?? [...runs.unfinished.values()].find(({ status }) => status === 'running')
  return run === undefined ? null : runInfo(run, state)
}

function unknown(crew: string, letter: string): TroupeError {
  return new TroupeError('LETTER_UNKNOWN', `${crew} has no dead letter ${letter.slice(0, 80)}`)
}

/** Why it can never be processed any more; null when it can. */
function whyOver({ from, to }: DeadLetter, { state }: Shard): string | null {
  if (from.startsWith('port/')) return 'is an outcome, and what it was for is closed'
  if (from === 'clock/timer') return 'is a timer, and its time is over'
  return state.actors.has(to) ? null : `is for ${to}, which is gone`
}

function infoOf({ id, from, to, message, code, reason, at }: DeadLetter): DeadLetterInfo {
  return { id, from, to, type: message.type, code, reason, at }
}
