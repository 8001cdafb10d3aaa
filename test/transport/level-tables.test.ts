import { readFileSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { createLevelJournal } from '../../transport/level-journal.js'
import { checkTables, tablesOf } from '../../transport/level-tables.js'
import { appendNext } from '../conformance/journal.js'

describe('LevelDB tables', () => {
  let folder: string
  let path: string
  let table: string
  let sound: Buffer
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'troupe-tables-'))
    path = join(folder, 'store')
    const journal = createLevelJournal({ path, durability: 'process' })
    await journal.open()
    for (let round = 0; round < 60; round++) {
      for (const shard of ['a', 'b', 'c']) await appendNext(journal, shard, `${shard} ${round} `.repeat(30))
    }
    await journal.close()
    table = tablesOf(join(path, 'db'))[0] ?? ''
    sound = readFileSync(table)
  })
  afterEach(() => rm(folder, { recursive: true, force: true }))

  const refuses = (bytes: Buffer): boolean => {
    writeFileSync(table, bytes)
    try {
      checkTables([table])
      return false
    } catch (thrown) {
      expect(thrown).toMatchObject({ code: 'STORE_CORRUPT', details: { path: table } })
      return true
    }
  }
  const flipped = (bit: number): Buffer => {
    const bytes = Buffer.from(sound)
    bytes[bit >> 3]! ^= 1 << (bit & 7)
    return bytes
  }
  /** Bits over which LevelDB would end the process. */
  const deadly = (step: number, most = Number.POSITIVE_INFINITY): number[] => {
    const found: number[] = []
    for (let bit = 0; bit < sound.length * 8 && found.length < most; bit += step)
      if (refuses(flipped(bit))) found.push(bit)
    return found
  }

  test('LT1 open: a block whose keys cannot be is STORE_CORRUPT, and the process goes on', async () => {
    const bits = deadly(13, 5)
    expect(bits.length).toBe(5)
    for (const bit of bits) {
      writeFileSync(table, flipped(bit))
      await expect(createLevelJournal({ path }).open()).rejects.toMatchObject({ code: 'STORE_CORRUPT' })
    }
    writeFileSync(table, sound)
    const journal = createLevelJournal({ path })
    expect(await journal.open()).toMatchObject({ shards: 3, damaged: [] })
    await journal.close()
  })

  test('LT2 check: a sound table, and most of the damaged ones, are left to the checks of what is in them', () => {
    expect(refuses(sound)).toBe(false)
    const checked = Math.ceil((sound.length * 8) / 101)
    expect(deadly(101).length).toBeLessThan(checked / 4)
    for (const length of [0, 3, 47, 48, 100, sound.length - 1]) expect(refuses(sound.subarray(0, length))).toBe(false)
    expect(refuses(Buffer.alloc(5000, 255))).toBe(false)
    expect(refuses(Buffer.alloc(5000))).toBe(false)
  })

  test('LT3 check: the newest first, up to 64 MiB; a table that is gone is none', () => {
    const bit = deadly(13, 1)[0] ?? 0
    const other = join(folder, 'sound')
    writeFileSync(other, sound)
    writeFileSync(table, flipped(bit))
    const many = Array.from({ length: Math.ceil((64 * 1024 * 1024) / sound.length) }, () => other)
    expect(() => checkTables([join(folder, 'gone'), other, table])).toThrow('is damaged')
    expect(() => checkTables([...many, table])).not.toThrow()
    const names = tablesOf(join(path, 'db'))
    expect(names).toEqual([...names].sort().reverse())
    expect(tablesOf(join(folder, 'none'))).toEqual([])
  })
})
