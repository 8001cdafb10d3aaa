/**
 * `troupe dead-letters`: messages that nobody could process, and letters over NATS that no crew takes.
 *
 * Owns: what its words mean, how a dead letter reads.
 * Does not own: what is done about one (`dead-letters.ts` and `refused-letters.ts` of the runtime).
 */
import { readFileSync } from 'node:fs'
import { userInfo } from 'node:os'
import type { DeadLetterDetails, DeadLetterInfo } from '../dead-letters.js'
import { isTroupeError, TroupeError, toTroupeError } from '../errors.js'
import type { Runtime } from '../face.js'
import { isRefused, type RefusedDetails, type RefusedInfo } from '../refused-letters.js'
import { duration, exitCodes, oneLine, plural, writeJson, writeLine, writeTable } from './output.js'
import { runLine, type StoreOptions, withStore } from './show.js'

type Options = StoreOptions & {
  readonly all?: boolean
  /** JSON text, or the path of a file with it: the message instead of the letter's own. */
  readonly edit?: string
  readonly by?: string
}

/** Lists dead letters, or does with one what the words say. */
export async function deadLetters(words: readonly string[], options: Options): Promise<number> {
  const [verb = '', crew = '', letter] = words
  const isVerb = ['show', 'replay', 'drop'].includes(verb) && words.length > 1
  if (!isVerb && words.length > 1) throw misused()
  const all = verb === 'drop' && options.all === true
  if (isVerb && (words.length > 3 || (letter === undefined) !== all)) throw misused()
  if (options.edit !== undefined && (verb !== 'replay' || isRefused(letter ?? ''))) throw misused()
  const edit = options.edit === undefined ? {} : { message: messageIn(options.edit), by: editor(options) }
  return withStore(options, async (runtime) => {
    if (!isVerb) return list(runtime, verb, options)
    const ofMail = letter !== undefined && isRefused(letter)
    if (verb === 'show' && ofMail) showRefused(crew, await runtime.refusedLetters.show(crew, letter), options)
    else if (verb === 'show') show(crew, await runtime.deadLetters.show(crew, letter!), options)
    else if (verb === 'drop') dropped(crew, await drop(runtime, crew, letter), options)
    else {
      await (ofMail ? runtime.refusedLetters.replay(crew, letter) : runtime.deadLetters.replay(crew, letter!, edit))
      if (options.json === true) writeJson({ type: 'replayed', crew, letter })
      else writeLine(`${letter} of ${crew} ${ofMail ? 'sent again' : 'replayed'}`)
    }
    return exitCodes.done
  })
}

/** The message of `--edit`. @throws TroupeError `INPUT_INVALID`, `CONFIG_INVALID`. */
function messageIn(edit: string): unknown {
  let text = edit
  if (!edit.trimStart().startsWith('{')) {
    try {
      text = readFileSync(edit, 'utf8')
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      throw new TroupeError(
        'CONFIG_INVALID',
        `--edit is neither JSON nor a file that can be read: ${code ?? 'unknown'}`,
      )
    }
  }
  try {
    return JSON.parse(text)
  } catch {
    throw new TroupeError('INPUT_INVALID', '--edit is not JSON')
  }
}

function editor({ by }: Options): string {
  return by ?? userInfo().username
}

function misused(): TroupeError {
  const usage =
    'dead-letters [ID] | show ID LETTER | replay ID LETTER [--edit JSON] | drop ID LETTER | drop ID --all; no edit of refused ones'
  return new TroupeError('CONFIG_INVALID', usage)
}

async function list(runtime: Runtime, only: string, options: Options): Promise<number> {
  const rows: string[][] = [['CREW', 'LETTER', 'CODE', 'FROM', 'TO', 'TYPE', 'AGE']]
  let code: number = exitCodes.done
  let refused = 0
  const add = async (crew: string): Promise<void> => {
    for await (const letter of runtime.deadLetters.list(crew)) {
      if (options.json === true) writeJson({ crew, ...letter })
      else rows.push(rowOf(crew, letter))
    }
  }
  for await (const letter of runtime.refusedLetters.list(only === '' ? undefined : only)) {
    refused += 1
    if (options.json === true) writeJson({ refused: true, ...letter })
    else rows.push(rowOf(letter.crew, letter, 'refused '))
  }
  if (only !== '') await add(only).catch((error: unknown) => passNobody(error, refused))
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

/** What a refused letter was for need not be a crew: then there is nothing more to tell. */
function passNobody(error: unknown, refused: number): number {
  const isNobody = isTroupeError(error) && ['CREW_UNKNOWN', 'ID_INVALID'].includes(error.code)
  if (refused > 0 && isNobody) return 0
  throw error
}

async function drop(runtime: Runtime, crew: string, letter: string | undefined): Promise<number> {
  if (letter !== undefined) return (isRefused(letter) ? runtime.refusedLetters : runtime.deadLetters).drop(crew, letter)
  const refused = await runtime.refusedLetters.drop(crew)
  return refused + (await runtime.deadLetters.drop(crew).catch((error: unknown) => passNobody(error, refused)))
}

type Row = Pick<DeadLetterInfo, 'id' | 'code' | 'from' | 'to' | 'type' | 'at'>

function rowOf(crew: string, { id, code, from, to, type, at }: Row, mark = ''): string[] {
  const age = duration(Math.max(0, Date.now() - at))
  return [oneLine(crew, 60), id, `${mark}${code}`, oneLine(from, 60), oneLine(to, 60), oneLine(type, 60), age]
}

function show(crew: string, letter: DeadLetterDetails, options: Options): void {
  if (options.json === true) return writeJson({ crew, ...letter })
  const { id, code, reason, from, to, at, message, values, state, run } = letter
  const lines = [
    `${id} of ${crew}  ${code}: ${oneLine(reason, 2_000)}`,
    `${oneLine(from)} → ${oneLine(to)}  ${oneLine(message.type)}  ${new Date(at).toISOString()}`,
    `${oneLine(to)} ${state === null ? 'is gone' : `is ${oneLine(state)}`}`,
    ...(run === null ? [] : [`run ${runLine(run)}`]),
    oneLine(JSON.stringify(message), 2_000),
    ...values.map((value) => `  ${oneLine(value, 2_000)}`),
  ]
  for (const line of lines) writeLine(line, process.stdout)
}

const keptAs: Readonly<Record<RefusedInfo['kept'], string>> = {
  whole: '',
  beside: ', beside the mail',
  none: ', not kept',
}

function showRefused(crew: string, letter: RefusedDetails, options: Options): void {
  if (options.json === true) return writeJson({ refused: true, ...letter })
  const { id, code, reason, from, to, type, at, bytes, hash, kept, returned, message, values, raw } = letter
  const sender = from === '' ? 'no letter' : `${oneLine(from)} → ${oneLine(to)}  ${oneLine(type)}`
  const lines = [
    `${id} of ${oneLine(crew)}  refused ${code}: ${oneLine(reason, 2_000)}`,
    `${sender}  ${new Date(at).toISOString()}${returned ? '  its sender was told' : ''}`,
    `${plural(bytes, 'byte')}${keptAs[kept]}, SHA-256 ${hash}`,
    ...(message === null ? [] : [oneLine(JSON.stringify(message), 2_000)]),
    ...values.map((value) => `  ${oneLine(value, 2_000)}`),
    ...(raw === null || raw === '' ? [] : [oneLine(raw, 2_000)]),
  ]
  for (const line of lines) writeLine(line, process.stdout)
}

function dropped(crew: string, count: number, options: Options): void {
  if (options.json === true) writeJson({ type: 'dropped', crew, count })
  else writeLine(`${plural(count, 'dead letter')} of ${crew} dropped`)
}
