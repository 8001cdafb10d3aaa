/**
 * `troupe journal` and `troupe repair`: the records of a crew, and what to do when they are damaged.
 *
 * Owns: how a commit reads, the report of a loss.
 * Does not own: repairing (`repair.ts` of the runtime).
 */
import { machines } from '../../machines/index.js'
import { createLevelJournal } from '../../transport/level-journal.js'
import { BlobRef, type Value } from '../codec.js'
import { type RecordedCommit } from '../record.js'
import { acceptLoss, findLoss, type Loss } from '../repair.js'
import { Scope } from '../scope.js'
import { count, exitCodes, oneLine, painter, plural, size, writeJson, writeLine } from './output.js'
import { checkStore, type StoreOptions, withStore } from './show.js'

/** Longest shown piece of a value. */
const shownCharacters = 100

/** Prints the commits of a crew. */
export async function journal(id: string, options: StoreOptions & { readonly from: number }): Promise<number> {
  return withStore(options, async (runtime) => {
    for await (const commit of runtime.journal(id, options.from)) {
      if (options.json === true) writeJson(toJson(commit))
      else writeCommit(commit)
      // A long journal is read at the pace of whoever reads the lines.
      if (process.stdout.writableNeedDrain) await new Promise((resolve) => process.stdout.once('drain', resolve))
    }
    return exitCodes.done
  })
}

function toJson({ sequence, envelope, digest }: RecordedCommit): object {
  const { at, values, ...rest } = envelope
  const toPlain = (value: Value) => (value instanceof BlobRef ? { blob: value.hash, bytes: value.bytes } : value)
  const time = new Date(at).toISOString()
  return { sequence, time, ...rest, values: values.map(toPlain), digest: Buffer.from(digest).toString('hex') }
}

function writeCommit({ sequence, envelope }: RecordedCommit): void {
  const paint = painter(process.stdout)
  const { at, from, to, body, cause, values } = envelope
  const time = new Date(at).toISOString().slice(0, 23).replace('T', ' ')
  const { type, ...fields } = body
  const head = `${String(sequence).padStart(5)}  ${paint('dim', time)}  ${from} → ${to}  ${paint('bold', type)}`
  writeLine(`${head}${cause === '' ? '' : paint('dim', ` for ${cause}`)}`, process.stdout)
  const shown = oneLine(JSON.stringify(fields), shownCharacters)
  if (shown !== '{}') writeLine(`       ${paint('dim', shown)}`, process.stdout)
  for (const value of values) writeLine(`       ${describe(value)}`, process.stdout)
}

function describe(value: Value): string {
  if (value instanceof BlobRef) return `${size(value.bytes)} in blob ${value.hash.slice(0, 12)}`
  return `${size(Buffer.byteLength(value))}  ${oneLine(value, shownCharacters)}`
}

/** Reports what a crew lost; with `acceptLoss` it goes on without. */
export async function repair(id: string, options: StoreOptions & { readonly acceptLoss?: boolean }): Promise<number> {
  checkStore(options.store)
  const context = { scope: new Scope(), machines }
  const store = createLevelJournal({ path: options.store, durability: 'power' })
  const report = await store.open()
  try {
    const loss = await findLoss(store, id, report, context)
    const loses = loss !== null && loss.to >= loss.from
    const accepted = loses && options.acceptLoss === true
    if (accepted) await acceptLoss(store, loss, context, Date.now())
    if (options.json === true) writeJson(toReport(id, loss, accepted))
    else tell(id, loss, accepted)
    return loses && !accepted ? exitCodes.failed : exitCodes.done
  } finally {
    await store.close()
  }
}

function toReport(crew: string, loss: Loss | null, accepted: boolean): object {
  if (loss === null) return { type: 'repair', crew, damage: null, lost: null, repaired: false }
  const { code, reason, sound, from, to } = loss
  const lost = to < from ? null : { from, to }
  return { type: 'repair', crew, damage: { code, reason }, sound, lost, repaired: accepted }
}

function tell(id: string, loss: Loss | null, accepted: boolean): void {
  if (loss === null) return writeLine(`${id} is sound`)
  const { code, reason, sound, from, to } = loss
  writeLine(`${code}: ${oneLine(reason)}`)
  if (to < from) return writeLine(`that is history: ${id} stands on a later snapshot, there is nothing to give up`)
  writeLine(sound === 0 ? 'nothing of it is sound' : `sound up to commit ${count(sound)}`)
  writeLine(`${accepted ? 'given up' : 'to be given up'}: ${plural(to - from + 1, 'commit')}, ${from} to ${to}`)
  if (accepted) return writeLine(`${id} goes on from commit ${count(to)}; calls that may have happened are unknown`)
  writeLine(`\`troupe repair ${id} --accept-loss\` gives them up`)
}
