/**
 * What a user's machine is told of conversations: the task that it is to lead, and what agents have answered it.
 *
 * Owns: the value that comes of a message.
 * Does not own: when it is read (`flow-machine.ts`, `dispatcher.ts`), bringing texts back (`content.ts`).
 *
 * - TC1 An answer has the value that its agent's `output` made of it, or is text; a task is what the machine's `input` makes
 *   of `{ task, data }`. One that it refuses ends the run with `INPUT_INVALID`.
 */
import { textsOf, valuesAt } from './content.js'
import { type Entry, textOf } from './conversation.js'
import { machineInput } from './define-machine.js'
import type { Journal } from './journal.js'
import type { PreparedCrew } from './prepared-crew.js'
import type { ContentRead } from './promise-call.js'

/** Where something is read, and for whom. */
export interface Reading {
  readonly journal: Journal
  readonly shard: string
  readonly entries: readonly Entry[]
  readonly crew: PreparedCrew
  readonly dataOf: (run: string) => Promise<unknown>
}

/** Reads it. @throws TroupeError `INPUT_INVALID`, and as `textsOf`. */
export async function readContent(reads: ContentRead, reading: Reading): Promise<unknown> {
  const { journal, shard, entries, crew, dataOf } = reading
  const texts = await textsOf(journal, shard, entries)
  if ('task' in reads) {
    const given = { task: texts.map(textOf).join('\n'), data: await dataOf(reads.task) }
    const { flowMachine } = crew.crew
    return flowMachine === undefined ? given : machineInput(flowMachine, given)
  }
  const [entry] = entries
  if (entry === undefined) return ''
  const typed = crew.agents.get(reads.agent)?.agent.output !== undefined
  const value = typed && entry.sequence > 0 ? (await valuesAt(journal, shard, entry.sequence))[1] : undefined
  return value === undefined ? textOf(texts[0]!) : (JSON.parse(value) as unknown)
}
