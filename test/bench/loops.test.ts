import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { expect, test } from 'vitest'
import { benchLoops } from './loops.js'

interface Call {
  readonly name: string
  readonly args: string
  readonly result: string
}

/** A run whose calls are made one a reply, all behind one message of the user. */
const run = (id: string, success: boolean, calls: readonly Call[]): string =>
  JSON.stringify({
    ...{ id, success, reason: success ? 'valid' : 'max_steps' },
    calls: calls.map((call, step) => ({ step, turn: 1, ...call })),
  })
const same = (count: number): Call[] => Array<Call>(count).fill({ name: 'look', args: '{"at":1}', result: 'a1' })
const pages = Array.from({ length: 30 }, (_, page) => ({ name: 'page', args: `{"page":${page}}`, result: 'b2' }))
const polls = Array.from({ length: 30 }, (_, poll) => ({ name: 'status', args: '{}', result: `c${poll}` }))

test('bench loops: counts who is stopped, and the calls that were saved, plain and zipped', () => {
  const folder = mkdtempSync(join(tmpdir(), 'troupe-loops-'))
  try {
    const lines = [run('pages', true, pages), run('polls', true, polls), run('short', true, same(5))]
    const all = [...lines, run('limit', false, same(20)), run('wanders', false, pages)].join('\n')
    const [plain, zipped] = [join(folder, 'calls.jsonl'), join(folder, 'calls.jsonl.gz')]
    writeFileSync(plain, all)
    writeFileSync(zipped, gzipSync(all))
    writeFileSync(join(folder, 'labels.jsonl'), JSON.stringify({ id: 'polls', label: 'polling_or_paging' }))
    // Made five times, each as if nothing had been said; the sixth is not.
    const counted = { success: 3, successStopped: 0, limit: 2, limitStopped: 1, limitCallsSaved: 15, pollingStopped: 0 }
    for (const path of [plain, zipped]) expect(benchLoops(path)).toMatchObject({ bench: 'loops', ...counted })
  } finally {
    rmSync(folder, { recursive: true })
  }
})
