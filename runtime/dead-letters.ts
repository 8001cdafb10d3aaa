/**
 * What is done about dead letters: they are listed, looked at, replayed and dropped.
 *
 * Owns: the four commands, what may be replayed.
 * Does not own: the table (`dead-letter.ts`), what a replay decides (`commit.ts`).
 *
 * - DL2 A replay is a journalled input like any other: it is decided anew, once, however often it is asked for.
 * - DL3 What is over stays over: outcomes and timers are not replayed, nor what is for an actor that is gone.
 */
import { textOfValue } from './content.js'
import type { Value } from './codec.js'
import type { DeadLetter } from './dead-letter.js'
import { TroupeError } from './errors.js'
import type { Journal } from './journal.js'
import { corrupt, fromRecord } from './record.js'
import type { Message } from './scope.js'
import type { Shard } from './shard.js'

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
   * when it died again.
   */
  replay(crew: string, letter: string): Promise<void>
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
    const letter = letterOf(await this.#shard(crew), id)
    const values = await this.#valuesOf(crew, letter)
    const texts = await Promise.all(values.map((value) => textOfValue(this.#journal, crew, value)))
    return { ...infoOf(letter), message: letter.message, values: texts }
  }

  async replay(crew: string, id: string): Promise<void> {
    const shard = await this.#shard(crew)
    const letter = letterOf(shard, id)
    const over = whyOver(letter, shard)
    if (over !== null) throw new TroupeError('LETTER_REFUSED', `${crew}: ${id} ${over}`, { details: { letter: id } })
    const values = await this.#valuesOf(crew, letter)
    const { events } = await tell(shard, { type: 'letter.replayed', letter: id }, values)
    if (!events.some(([, { type }]) => type === 'letter.replayed')) throw unknown(crew, id)
    const [, again] = events.find(([, { type }]) => type === 'message.dead') ?? []
    if (again === undefined) return
    const { letter: next, code } = again as unknown as { letter: string; code: string }
    const details = { letter: id, next, reason: code }
    throw new TroupeError('LETTER_REFUSED', `${crew}: ${id} died again, as ${next}: ${code}`, { details })
  }

  async drop(crew: string, id?: string): Promise<number> {
    const shard = await this.#shard(crew)
    if (id !== undefined) letterOf(shard, id)
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

function letterOf(shard: Shard, id: string): DeadLetter {
  const letter = shard.state.letters.get(id)
  if (letter === undefined) throw unknown(shard.id, id)
  return letter
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
