/**
 * `troupe dead-letters`: messages that nobody could process.
 *
 * Owns: what its words mean, how a dead letter reads.
 * Does not own: what is done about one (`dead-letters.ts` of the runtime).
 */
import type { DeadLetterDetails, DeadLetterInfo } from '../dead-letters.js'
import { TroupeError, toTroupeError } from '../errors.js'
import type { Runtime } from '../face.js'
import { duration, exitCodes, oneLine, plural, writeJson, writeLine, writeTable } from './output.js'
import { type StoreOptions, withStore } from './show.js'

type Options = StoreOptions & { readonly all?: boolean }

/** Lists dead letters, or does with one what the words say. */
export async function deadLetters(words: readonly string[], options: Options): Promise<number> {
  const [verb = '', crew = '', letter] = words
  const isVerb = ['show', 'replay', 'drop'].includes(verb) && words.length > 1
  if (!isVerb && words.length > 1) throw misused()
  const all = verb === 'drop' && options.all === true
  if (isVerb && (words.length > 3 || (letter === undefined) !== all)) throw misused()
  return withStore(options, async (runtime) => {
    if (!isVerb) return list(runtime, verb, options)
    if (verb === 'show') show(crew, await runtime.deadLetters.show(crew, letter!), options)
    else if (verb === 'drop') dropped(crew, await runtime.deadLetters.drop(crew, letter), options)
    else {
      await runtime.deadLetters.replay(crew, letter!)
      if (options.json === true) writeJson({ type: 'replayed', crew, letter })
      else writeLine(`${letter} of ${crew} replayed`)
    }
    return exitCodes.done
  })
}

function misused(): TroupeError {
  const usage = 'dead-letters [ID] | show ID LETTER | replay ID LETTER | drop ID LETTER | drop ID --all'
  return new TroupeError('CONFIG_INVALID', usage)
}

async function list(runtime: Runtime, only: string, options: Options): Promise<number> {
  const rows: string[][] = [['CREW', 'LETTER', 'CODE', 'FROM', 'TO', 'TYPE', 'AGE']]
  let code: number = exitCodes.done
  const add = async (crew: string): Promise<void> => {
    for await (const letter of runtime.deadLetters.list(crew)) {
      if (options.json === true) writeJson({ crew, ...letter })
      else rows.push(rowOf(crew, letter))
    }
  }
  if (only !== '') await add(only)
  else
    for await (const { id } of runtime.list())
      await add(id).catch((error: unknown) => {
        // Those of the others are told all the same.
        const { code: why, message } = toTroupeError(error, 'STORE_FAILED')
        writeLine(`${id}: ${why}: ${oneLine(message)}`)
        code = exitCodes.failed
      })
  if (options.json !== true) writeTable(rows)
  return code
}

function rowOf(crew: string, { id, code, from, to, type, at }: DeadLetterInfo): string[] {
  const age = duration(Math.max(0, Date.now() - at))
  return [crew, id, code, oneLine(from, 60), oneLine(to, 60), oneLine(type, 60), age]
}

function show(crew: string, letter: DeadLetterDetails, options: Options): void {
  if (options.json === true) return writeJson({ crew, ...letter })
  const { id, code, reason, from, to, at, message, values } = letter
  const lines = [
    `${id} of ${crew}  ${code}: ${oneLine(reason, 2_000)}`,
    `${oneLine(from)} → ${oneLine(to)}  ${oneLine(message.type)}  ${new Date(at).toISOString()}`,
    oneLine(JSON.stringify(message), 2_000),
    ...values.map((value) => `  ${oneLine(value, 2_000)}`),
  ]
  for (const line of lines) writeLine(line, process.stdout)
}

function dropped(crew: string, count: number, options: Options): void {
  if (options.json === true) writeJson({ type: 'dropped', crew, count })
  else writeLine(`${plural(count, 'dead letter')} of ${crew} dropped`)
}
