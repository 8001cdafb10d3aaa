/**
 * Faults of storage, done to real files and processes: kill -9, power cuts, full disks (flipped bits: `bit-flips.slow.test.ts`).
 *
 * The ledger is the test's own: a child says on a pipe what was acknowledged, and the expected content of each record
 * follows from its shard and sequence. Counts are tenths of the full ones; `TROUPE_SCALE=1` runs all.
 */

import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  closeSync,
  cpSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
} from 'node:fs'
import { truncateSync, writeFileSync, writeSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { isTroupeError } from '../../runtime/errors.js'
import type { Durability, Journal, OpenReport } from '../../runtime/journal.js'
import { createLevelJournal } from '../../transport/level-journal.js'

const scale = Number(process.env['TROUPE_SCALE'] ?? '0.1')
const trials = (full: number): number => Math.max(3, Math.round(full * scale))
const root = join(import.meta.dirname, '../..')
const zeros = new Uint8Array(32)

let seed = Number(process.env['TROUPE_SEED'] ?? Date.now() % 1_000_000)
console.log(`storage faults: TROUPE_SEED=${seed} TROUPE_SCALE=${scale}`)
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

/** Appends to all shards at once, in order within each, and prints each acknowledged commit. */
const appender = `
import { createHash } from 'node:crypto'
import { writeSync } from 'node:fs'
import { createLevelJournal } from '${join(root, 'transport/level-journal.ts')}'
const [, , path, durability, count] = process.argv
const content = ${content.toString()}
// Appends outrun whoever reads the pipe.
function say(line) {
  for (;;) {
    try {
      return writeSync(1, line + '\\n')
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error
    }
  }
}
const journal = createLevelJournal({ path, durability })
await journal.open()
say('open ' + process.pid)
await Promise.all(Array.from({ length: Number(count) }, async (_, index) => {
  const shard = 's' + index
  let { sequence, hash } = await journal.head(shard)
  for (;;) {
    const bytes = content(shard, ++sequence)
    hash = createHash('sha256').update(hash).update(bytes).digest()
    const pending = { nextDueAt: null, openEffects: sequence % 5, outbox: 0 }
    try {
      await journal.append({ shard, first: sequence, last: sequence, hash, bytes, events: Buffer.from('event ' + sequence), pending })
      say('ack ' + shard + ' ' + sequence)
    } catch (error) {
      say('failed ' + shard + ' ' + sequence + ' ' + error.code)
      let read = 0
      for await (const record of journal.read(shard, 1)) if (content(shard, record.last).equals(record.bytes)) read++
      say('read ' + shard + ' ' + read)
      ;({ sequence, hash } = await journal.refresh(shard))
      say('refreshed ' + shard + ' ' + sequence)
    }
  }
}))
`

interface Appender {
  readonly acked: Map<string, number>
  readonly lines: string[]
}

/** Runs the appender until `stop` says so after a line, then kills it with SIGKILL. */
async function runUntil(
  command: (node: string[]) => string[],
  path: string,
  durability: Durability,
  stop: (line: string, acks: number) => boolean,
  shards = 20,
): Promise<Appender> {
  const script = join(folder, 'appender.ts')
  writeFileSync(script, appender)
  const node = [process.execPath, '--import', 'jiti/register', script]
  const [file, ...args] = command([...node, path, durability, String(shards)])
  const child: ChildProcess = spawn(file ?? '', args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] })
  const acked = new Map<string, number>()
  const lines: string[] = []
  let errors = ''
  child.stderr?.on('data', (data) => (errors += String(data)))
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()))
  let pid = 0
  let acks = 0
  let killed = false
  for await (const line of createInterface({ input: child.stdout! })) {
    const [word, shard, sequence] = line.split(' ')
    if (word === 'open') pid = Number(shard)
    // What it acknowledged before the kill counts, also when it is read after it.
    if (word === 'ack') acked.set(shard ?? '', Number(sequence))
    if (word === 'ack') acks++
    else lines.push(line)
    if (!killed && stop(line, acks)) {
      killed = true
      process.kill(pid, 'SIGKILL')
    }
  }
  await ended
  if (!killed) throw new Error(`the appender ended by itself: ${errors}`)
  return { acked, lines }
}

interface Findings {
  /** Shards whose damage somebody was told: by `open`, by an error of a read, or by a broken chain. */
  readonly told: Map<string, string>
  /** Sound shards, with their last sequence. */
  readonly sound: Map<string, number>
}

/** Reads all of a store as the runtime would: heads, records with their chain. Wrong content fails the test. */
async function examine(journal: Journal, report: OpenReport, shards: Iterable<string>): Promise<Findings> {
  const told = new Map<string, string>()
  const sound = new Map<string, number>()
  const reported = new Map(report.damaged.map((damage) => [damage.shard, damage.code]))
  for (const shard of shards) {
    let hash: Uint8Array = zeros
    let sequence = 0
    try {
      for await (const record of journal.read(shard, 1)) {
        const next = chain(hash, record.bytes)
        if (!next.equals(record.hash)) {
          told.set(shard, 'broken chain')
          break
        }
        if (!content(shard, record.last).equals(record.bytes))
          throw new Error(`wrong data used: ${shard} ${record.last}`)
        hash = next
        sequence = record.last
      }
      const head = await journal.head(shard)
      if (told.has(shard)) continue
      expect([shard, head.sequence, head.pending]).toEqual([shard, sequence, pendingAt(sequence)])
      sound.set(shard, sequence)
    } catch (thrown) {
      if (!isTroupeError(thrown)) throw thrown
      told.set(shard, thrown.code)
    }
    if (reported.has(shard)) expect(told.get(shard)).toBe(reported.get(shard))
  }
  return { told, sound }
}

async function appendMore(journal: Journal, shard: string, count = 1): Promise<void> {
  let { sequence, hash } = await journal.head(shard)
  for (let index = 0; index < count; index++) {
    const bytes = content(shard, ++sequence)
    hash = chain(hash, bytes)
    const events = Buffer.from(`event ${sequence}`)
    await journal.append({ shard, first: sequence, last: sequence, hash, bytes, events, pending: pendingAt(sequence) })
  }
}

describe('kill -9', () => {
  test.each(['process', 'power'] as const)('J1 %s: every acknowledged commit is there', async (durability) => {
    const path = join(folder, 'store')
    const all = new Map<string, number>()
    let total = 0
    for (let trial = 0; trial < trials(40); trial++) {
      // Up to five files of the log, or three.
      const enough = 1 + random(durability === 'process' ? 20_000 : 12_000)
      const { acked } = await runUntil(
        (node) => node,
        path,
        durability,
        (_, acks) => acks >= enough,
      )
      for (const [shard, sequence] of acked) all.set(shard, sequence)
      total += enough
      const journal = createLevelJournal({ path, durability })
      const report = await journal.open()
      expect(report).toMatchObject({ damaged: [], unclean: true })
      const { told, sound } = await examine(journal, report, all.keys())
      expect([...told]).toEqual([])
      for (const [shard, sequence] of all) expect(sound.get(shard)).toBeGreaterThanOrEqual(sequence)
      await journal.close()
    }
    console.log(`kill -9, ${durability}: ${trials(40)} kills, at least ${total} acknowledged commits, 0 missing`)
  })
})

interface Synced {
  /** Bytes of each appended file that were on disk when the process died. */
  readonly sizes: ReadonlyMap<string, number>
  /** Writes at a place of a file that no later sync covers. */
  readonly unsynced: ReadonlyMap<string, readonly { readonly at: number; readonly length: number }[]>
}

/** What was on disk when the process died, from what strace saw. */
function whatWasSynced(trace: string): Synced {
  const written = new Map<string, number>()
  const sizes = new Map<string, number>()
  const unsynced = new Map<string, { at: number; length: number }[]>()
  const open = new Map<string, { call: string; path: string; at: number; writes: number }>()
  for (const line of readFileSync(trace, 'utf8').split('\n')) {
    const start = /^(\d+) +(write|pwrite64|fsync|fdatasync)\(\d+<([^>]+)>(?:, .*?, (\d+), (\d+)\b)?/.exec(line)
    if (start !== null) {
      const [, pid = '', call = '', path = '', length, at] = start
      const writes = unsynced.get(path) ?? []
      // A write that was begun may have reached the disk, whole or in part.
      if (call === 'pwrite64') unsynced.set(path, [...writes, { at: Number(at), length: Number(length) }])
      open.set(pid, { call, path, at: written.get(path) ?? 0, writes: writes.length })
    }
    const pid = /^(\d+) /.exec(line)?.[1] ?? ''
    const result = /\) += (\d+)$/.exec(line)?.[1]
    const pending = open.get(pid)
    if (pending === undefined || result === undefined) continue
    open.delete(pid)
    if (pending.call === 'pwrite64') continue
    if (pending.call === 'write') written.set(pending.path, (written.get(pending.path) ?? 0) + Number(result))
    else {
      sizes.set(pending.path, pending.at)
      unsynced.set(pending.path, unsynced.get(pending.path)?.slice(pending.writes) ?? [])
    }
  }
  return { sizes, unsynced }
}

/** Takes back what a power cut may take: LevelDB's files end where they were synced, the log loses writes or their ends. */
function cutPower(path: string, { sizes, unsynced }: Synced): number {
  for (const name of readdirSync(join(path, 'db'))) {
    if (!/\.log$|\.ldb$|^MANIFEST/.test(name)) continue
    const file = join(path, 'db', name)
    truncateSync(file, Math.min(statSync(file).size, sizes.get(file) ?? 0))
  }
  let lost = 0
  for (const file of [join(path, 'log-0'), join(path, 'log-1')]) {
    const fd = openSync(file, 'r+')
    for (const { at, length } of unsynced.get(file) ?? []) {
      const kept = [0, length, random(length)][random(3)] ?? 0
      writeSync(fd, Buffer.alloc(length - kept), 0, length - kept, at + kept)
      if (kept < length) lost++
    }
    closeSync(fd)
  }
  return lost
}

function canTrace(): boolean {
  try {
    execFileSync('strace', ['-f', '-o', '/dev/null', 'true'], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

// CI installs strace: there a missing one is a failure, not a skip.
describe.skipIf(!canTrace() && process.env['CI'] === undefined)(
  'power cut (needs strace): what was not synced is cut off',
  () => {
    test.each(['power', 'process'] as const)('J1 J4 %s', async (durability) => {
      let lost = 0
      let writesLost = 0
      let ackedCommits = 0
      for (let trial = 0; trial < trials(30); trial++) {
        const path = join(folder, `store-${trial}`)
        const trace = join(folder, `trace-${trial}`)
        const early = join(folder, `head-${trial}`)
        const calls = ['-f', '-y', '-s', '0', '-e', 'trace=write,pwrite64,fsync,fdatasync', '-o', trace]
        // Up to two files of the log.
        const enough = 50 + random(6000)
        const { acked } = await runUntil(
          (node) => ['strace', ...calls, ...node],
          path,
          durability,
          (line, acks) => {
            if (line.startsWith('open')) cpSync(join(path, 'head'), early)
            return acks >= enough
          },
        )
        writesLost += cutPower(path, whatWasSynced(trace))
        // Once with all of the witness on disk, once with none of what was written after the open.
        for (const witness of durability === 'power' ? ['written', 'old'] : ['written']) {
          const copy = join(folder, `cut-${trial}-${witness}`)
          cpSync(path, copy, { recursive: true })
          if (witness === 'old') cpSync(early, join(copy, 'head'))
          const journal = createLevelJournal({ path: copy, durability })
          const report = await journal.open()
          const { told, sound } = await examine(journal, report, acked.keys())
          for (const [shard, sequence] of acked) {
            ackedCommits += sequence
            const found = sound.get(shard)
            if (durability === 'power')
              expect([witness, shard, (found ?? 0) >= sequence, told.get(shard)]).toEqual([
                witness,
                shard,
                true,
                undefined,
              ])
            else if (found === undefined || found < sequence) {
              expect([shard, told.get(shard)]).toEqual([shard, 'JOURNAL_TRUNCATED'])
              lost++
              await journal.acceptLoss(shard, 0, zeros)
              await appendMore(journal, shard)
            }
          }
          await journal.close()
          expect(await journal.open()).toMatchObject({ damaged: [], unclean: false })
          await journal.close()
        }
      }
      if (durability === 'process') expect(lost).toBeGreaterThan(0)
      console.log(
        `power cut, ${durability}: ${trials(30)} cuts, ${writesLost} writes of the log lost, ${ackedCommits} acknowledged, ${lost} shards lost their tail, all of them named`,
      )
    })
  },
)

describe('full disk', () => {
  test('J5 file size limit: STORE_FULL, reads go on, refresh goes on in a new log', async () => {
    const path = join(folder, 'store')
    const { acked, lines } = await runUntil(
      (node) => ['bash', '-c', 'ulimit -f 5000; exec "$@"', 'limited', ...node],
      path,
      'process',
      (line, acks) => line.startsWith('refreshed') && acks > 0 && random(3) === 0,
    )
    expect(lines.filter((line) => line.startsWith('failed')).every((line) => line.endsWith('STORE_FULL'))).toBe(true)
    expect(lines.some((line) => line.startsWith('read '))).toBe(true)
    const journal = createLevelJournal({ path, durability: 'process' })
    const report = await journal.open()
    const { told, sound } = await examine(journal, report, acked.keys())
    expect([...told]).toEqual([])
    for (const [shard, sequence] of acked) expect(sound.get(shard)).toBeGreaterThanOrEqual(sequence)
    await journal.close()
  })

  let mounted: string | null = null
  function mountSmall(): boolean {
    const at = join(folder, 'small')
    mkdirSync(at)
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=12m', 'tmpfs', at], { stdio: 'ignore' })
      mounted = at
      return true
    } catch {
      return false
    }
  }
  afterEach(() => {
    if (mounted !== null) execFileSync('umount', ['-l', mounted])
    mounted = null
  })

  test('J5 tmpfs: STORE_FULL, reads go on, work resumes when there is space', async (context) => {
    if (!mountSmall()) return context.skip('needs the right to mount')
    const path = join(mounted ?? '', 'store')
    const filler = join(mounted ?? '', 'filler')
    writeFileSync(filler, Buffer.alloc(5 * 1024 * 1024))
    const journal = createLevelJournal({ path, durability: 'power' })
    await journal.open()
    const acked = new Map<string, number>()
    let failures = 0
    const shards = Array.from({ length: 10 }, (_, index) => `s${index}`)
    const grow = async (shard: string): Promise<void> => {
      try {
        for (;;) {
          const noise = Buffer.from(Array.from({ length: 2000 }, () => random(256)))
          const { sequence } = await journal.head(shard)
          await journal.putBlob(shard, createHash('sha256').update(noise).digest('hex'), noise, sequence)
          await appendMore(journal, shard)
          acked.set(shard, sequence + 1)
        }
      } catch (thrown) {
        expect(thrown).toMatchObject({ code: 'STORE_FULL', retryable: true })
        failures++
      }
    }
    await Promise.all(shards.map(grow))
    expect(failures).toBe(10)
    const findings = async (): Promise<void> => {
      for (const [shard, sequence] of acked) {
        let last = 0
        for await (const record of journal.read(shard, 1)) {
          expect(content(shard, record.last).equals(record.bytes)).toBe(true)
          last = record.last
        }
        expect(last).toBeGreaterThanOrEqual(sequence)
      }
    }
    await findings()
    await expect(journal.refresh('s0')).rejects.toMatchObject({ code: 'STORE_FULL' })
    await expect(journal.putAttempts('s0', { effect: 1 })).rejects.toMatchObject({ code: 'STORE_FULL' })
    await findings()
    rmSync(filler)
    await Promise.all(shards.map((shard) => journal.refresh(shard)))
    await findings()
    for (const shard of shards) await appendMore(journal, shard)
    await journal.close()
    expect(await journal.open()).toMatchObject({ damaged: [], unclean: false, shards: 10 })
    await findings()
    await journal.close()
  })

  test('open: the reserve lets a store open on a full disk', async (context) => {
    if (!mountSmall()) return context.skip('needs the right to mount')
    const path = join(mounted ?? '', 'store')
    const journal = createLevelJournal({ path, durability: 'power' })
    await journal.open()
    await appendMore(journal, 'a', 100)
    await journal.close()
    try {
      for (let size = 1024 * 1024; size >= 1; size >>= 1) {
        for (let part = 0; ; part++) {
          const name = join(mounted ?? '', `filler-${size}-${part}`)
          try {
            writeFileSync(name, Buffer.alloc(size))
          } catch {
            break
          }
        }
        if (size === 4096) break
      }
      expect(existsSync(join(path, 'reserve'))).toBe(true)
      expect(await journal.open()).toMatchObject({ shards: 1, damaged: [] })
      expect((await journal.head('a')).sequence).toBe(100)
      await appendMore(journal, 'a', 10)
    } finally {
      await journal.close()
    }
  })
})
