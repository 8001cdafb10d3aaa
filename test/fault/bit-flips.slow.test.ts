/**
 * One flipped bit in each kind of file of a LevelDB journal: it is noticed or does no harm, and what is read is never
 * wrong. Counts are tenths of the full ones; `TROUPE_SCALE=1` runs all.
 */

import { spawn, type ChildProcess } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  closeSync,
  cpSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { createInterface } from 'node:readline'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Journal } from '../../runtime/journal.js'
import { createLevelJournal } from '../../transport/level-journal.js'

const scale = Number(process.env['TROUPE_SCALE'] ?? '0.1')
const trials = (full: number): number => Math.max(3, Math.round(full * scale))
const root = join(import.meta.dirname, '../..')

let seed = Number(process.env['TROUPE_SEED'] ?? Date.now() % 1_000_000)
console.log(`bit flips: TROUPE_SEED=${seed} TROUPE_SCALE=${scale}`)
/** A small generator, so that a failing run can be repeated. */
function random(below: number): number {
  seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0
  return Math.floor((seed / 2 ** 32) * below)
}

/** What commit `sequence` of a shard is; the child below gets its source, so it names nothing from outside. */
const content = (shard: string, sequence: number): Buffer =>
  Buffer.from(`${shard}:${sequence}:${String(sequence * 7919).repeat(5 + ((sequence * 31) % 150))}`)
const chain = (previous: Uint8Array, bytes: Uint8Array): Buffer =>
  createHash('sha256').update(previous).update(bytes).digest()
const pendingAt = (sequence: number) => ({ nextDueAt: null, openEffects: sequence % 5, outbox: 0 })

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'troupe-storage-'))
})
afterEach(() => rm(folder, { recursive: true, force: true }))

async function appendMore(journal: Journal, shard: string, count = 1): Promise<void> {
  let { sequence, hash } = await journal.head(shard)
  for (let index = 0; index < count; index++) {
    const bytes = content(shard, ++sequence)
    hash = chain(hash, bytes)
    const events = Buffer.from(`event ${sequence}`)
    await journal.append({ shard, first: sequence, last: sequence, hash, bytes, events, pending: pendingAt(sequence) })
  }
}

/**
 * Takes a store's path per line and answers with what it found, opened twice with appends in between. A process of its
 * own: LevelDB asserts that keys are whole, and a flipped bit in a table could end the process that reads it.
 */
const examiner = `
import { createHash } from 'node:crypto'
import { createInterface } from 'node:readline'
import { createLevelJournal } from '${join(root, 'transport/level-journal.ts')}'
const content = ${content.toString()}
const chain = (previous, bytes) => createHash('sha256').update(previous).update(bytes).digest()
const shards = Array.from({ length: 20 }, (_, index) => 's' + index)
async function look(journal) {
  const report = await journal.open()
  const found = { damaged: report.damaged.map(({ shard }) => shard), told: {}, sound: {}, wrong: [] }
  for (const shard of shards) {
    try {
      let hash = new Uint8Array(32)
      let sequence = 0
      for await (const record of journal.read(shard, 1)) {
        const next = chain(hash, record.bytes)
        if (!next.equals(record.hash)) throw Object.assign(new Error('chain'), { code: 'broken chain' })
        if (!content(shard, record.last).equals(record.bytes)) found.wrong.push(shard + ' ' + record.last)
        hash = next
        sequence = record.last
      }
      const head = await journal.head(shard)
      if (head.sequence !== sequence || head.pending.openEffects !== sequence % 5) found.wrong.push(shard + ' head')
      found.sound[shard] = sequence
    } catch (error) {
      if (!error.code) throw error
      found.told[shard] = error.code
    }
  }
  return found
}
for await (const path of createInterface({ input: process.stdin })) {
  const journal = createLevelJournal({ path, durability: 'process' })
  let answer
  try {
    const first = await look(journal)
    for (const shard of Object.keys(first.sound)) {
      const { sequence, hash } = await journal.head(shard)
      const bytes = content(shard, sequence + 1)
      const pending = { nextDueAt: null, openEffects: (sequence + 1) % 5, outbox: 0 }
      await journal.append({ shard, first: sequence + 1, last: sequence + 1, hash: chain(hash, bytes), bytes, events: null, pending })
    }
    await journal.close()
    answer = { first, second: await look(journal) }
    await journal.close()
  } catch (error) {
    answer = { refused: error.code ?? String(error) }
  }
  console.log(JSON.stringify(answer))
}
`

interface Look {
  readonly damaged: readonly string[]
  readonly told: Readonly<Record<string, string>>
  readonly sound: Readonly<Record<string, number>>
  readonly wrong: readonly string[]
}
type Answer = { readonly refused: string } | { readonly first: Look; readonly second: Look }

/** Asks one examiner after the other; null when it died over a store. */
function createExaminer(): { ask(path: string): Promise<Answer | null>; stop(): void } {
  const script = join(folder, 'examiner.ts')
  writeFileSync(script, examiner)
  let child: ChildProcess | null = null
  return {
    ask(path) {
      child ??= spawn(process.execPath, ['--import', 'jiti/register', script], {
        cwd: root,
        stdio: ['pipe', 'pipe', 'ignore'],
      })
      const asked = child
      const answers = createInterface({ input: asked.stdout! })
      return new Promise((resolve) => {
        const died = (): void => {
          child = null
          resolve(null)
        }
        asked.once('exit', died)
        answers.once('line', (line) => {
          asked.off('exit', died)
          answers.close()
          resolve(JSON.parse(line) as Answer)
        })
        asked.stdin?.write(`${path}\n`)
      })
    },
    stop: () => void child?.kill('SIGKILL'),
  }
}

describe('flipped bits', () => {
  const shards = Array.from({ length: 20 }, (_, index) => `s${index}`)
  const expected = 80

  /**
   * A store as a killed process leaves it, with something in each kind of row: a table, LevelDB's log with records that
   * the first file of the record log has too, and records that only the second one has. A close would leave no log.
   */
  async function makeStore(path: string): Promise<void> {
    const live = `${path}-live`
    const journal = createLevelJournal({ path: live, durability: 'process' })
    // One shard follows the other, so that a damaged block or frame leaves some of them sound.
    const appendAll = async (count: number): Promise<void> => {
      for (const shard of shards) await appendMore(journal, shard, count)
    }
    await journal.open()
    await Promise.all(shards.map((shard) => appendMore(journal, shard, 50)))
    await putContent(journal, 50)
    await journal.close()
    await journal.open()
    await appendAll(15)
    await putContent(journal, 65)
    await appendAll(15)
    cpSync(live, path, { recursive: true })
    await journal.close()
  }

  /** A blob and a snapshot, which takes the record log into LevelDB. */
  async function putContent(journal: Journal, sequence: number): Promise<void> {
    const bytes = Buffer.from(`content ${sequence}`.repeat(100))
    const hash = createHash('sha256').update(bytes).digest('hex')
    await journal.putBlob('s0', hash, bytes, sequence)
    const manifest = { shard: 's0', sequence, hash: (await journal.head('s0')).hash, bytes, chunks: [hash] }
    await journal.putSnapshot(manifest, new Map([[hash, bytes]]), [])
  }

  function filesOf(path: string, target: string): string[] {
    if (target === 'head') return [join(path, 'head')]
    if (target === 'log-')
      return ['log-0', 'log-1'].map((name) => join(path, name)).filter((file) => statSync(file).size > 0)
    const names = readdirSync(join(path, 'db')).filter((name) => name.includes(target))
    return names.map((name) => join(path, 'db', name)).filter((file) => statSync(file).size > 0)
  }

  function flip(file: string, used: number): string {
    const bytes = readFileSync(file)
    const at = random(Math.min(bytes.length, used))
    const bit = random(8)
    const fd = openSync(file, 'r+')
    writeSync(fd, Buffer.from([(bytes[at] ?? 0) ^ (1 << bit)]), 0, 1, at)
    closeSync(fd)
    return `${basename(file)} byte ${at} bit ${bit}`
  }

  test.each(['log-', '.log', '.ldb', 'head', 'MANIFEST', 'CURRENT'])(
    'J4 %s: noticed or harmless, never wrong data',
    async (target) => {
      const template = join(folder, 'template')
      await makeStore(template)
      const tally = { refused: 0, died: 0, told: 0, harmless: 0, soundShards: 0 }
      const examiner = createExaminer()
      for (let trial = 0; trial < trials(200); trial++) {
        const path = join(folder, 'flipped')
        rmSync(path, { recursive: true, force: true })
        cpSync(template, path, { recursive: true })
        // As if it was in use again: what LevelDB's log has is nowhere else.
        if (target === '.log') writeFileSync(join(path, 'log-0'), '')
        const files = filesOf(path, target)
        // Only 20 of the head file's slots are used.
        const where = flip(
          files[random(files.length)] ?? '',
          target === 'head' ? 4096 + 20 * 128 : Number.MAX_SAFE_INTEGER,
        )
        const answer = await examiner.ask(path)
        if (answer === null) {
          tally.died++
          continue
        }
        if ('refused' in answer) {
          expect([where, answer.refused]).toEqual([where, 'STORE_CORRUPT'])
          tally.refused++
          continue
        }
        const { first, second } = answer
        expect([where, first.wrong, second.wrong]).toEqual([where, [], []])
        const sound = Object.keys(first.sound)
        expect([where, first.sound]).toEqual([where, Object.fromEntries(sound.map((shard) => [shard, expected]))])
        expect([where, sound.map((shard) => second.sound[shard])]).toEqual([where, sound.map(() => expected + 1)])
        for (const shard of first.damaged)
          expect([where, shard in first.told, shard in second.told]).toEqual([where, true, true])
        tally[sound.length < shards.length ? 'told' : 'harmless']++
        tally.soundShards += sound.length
      }
      examiner.stop()
      expect(tally.died).toBe(0)
      console.log(`flips in ${target}: ${trials(200)}: ${JSON.stringify(tally)}`)
    },
  )
})
