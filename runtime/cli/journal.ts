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
import { acceptLoss, findLoss, type RepairReport, toReport } from '../repair.js'
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
  const accepts = options.acceptLoss === true
  const report =
    options.nats === undefined
      ? await repairIn(options.store, id, accepts)
      : await withStore(options, (runtime) => runtime.repair(id, { acceptLoss: accepts }))
  if (options.json === true) writeJson({ type: 'repair', ...report })
  else tell(report)
  return report.lost !== null && !report.repaired ? exitCodes.failed : exitCodes.done
}

/** Repairs in a store that no process owns. */
async function repairIn(path: string, id: string, accepts: boolean): Promise<RepairReport> {
  checkStore(path)
  const context = { scope: new Scope(), machines }
  const store = createLevelJournal({ path, durability: 'power' })
  const { damaged } = await store.open()
  try {
    const mark = damaged.find(({ shard }) => shard === id)
    const loss = await findLoss(store, id, mark, context)
    const accepted = accepts && loss !== null && loss.to >= loss.from
    if (accepted) await acceptLoss(store, loss, context, Date.now())
    return toReport(id, loss, accepted)
  } finally {
    await store.close()
  }
}

function tell({ crew: id, damage, sound = 0, lost, repaired }: RepairReport): void {
  if (damage === null) return writeLine(`${id} is sound`)
  writeLine(`${damage.code}: ${oneLine(damage.reason)}`)
  if (lost === null) return writeLine(`that is history: ${id} stands on a later snapshot, there is nothing to give up`)
  const { from, to } = lost
  writeLine(sound === 0 ? 'nothing of it is sound' : `sound up to commit ${count(sound)}`)
  writeLine(`${repaired ? 'given up' : 'to be given up'}: ${plural(to - from + 1, 'commit')}, ${from} to ${to}`)
  if (repaired) return writeLine(`${id} goes on from commit ${count(to)}; calls that may have happened are unknown`)
  writeLine(`\`troupe repair ${id} --accept-loss\` gives them up`)
}
