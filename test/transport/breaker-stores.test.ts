import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { FileBreakers } from '../../transport/file-breakers.js'
import { MemoryBreakers } from '../../transport/memory-breakers.js'
import { closed, open, testBreakerStore } from '../conformance/breaker-store.js'

async function folder(): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'troupe-breakers-'))
  onTestFinished(() => rm(path, { recursive: true }))
  return path
}

testBreakerStore('breakers in memory', async () => {
  const store = new MemoryBreakers()
  return { one: store, two: store }
})

testBreakerStore('breakers in a file', async () => {
  const store = await FileBreakers.open(await folder())
  return { one: store, two: store }
})

test('FB1 breakers in a file: the next owner of the folder knows them; nobody else may read them', async () => {
  const path = await folder()
  const first = await FileBreakers.open(path)
  await Promise.all([first.save('model/a:one', open, 0), first.save('tool/crm', closed, 0)])
  expect(await readdir(path)).toEqual(['breakers.json'])
  expect((await stat(join(path, 'breakers.json'))).mode & 0o777).toBe(0o600)
  const second = await FileBreakers.open(path)
  expect(await second.load('model/a:one')).toEqual({ breaker: open, revision: 1 })
  expect(await second.save('model/a:one', closed, 1)).toBe(2)
  expect(await (await FileBreakers.open(path)).load('model/a:one')).toEqual({ breaker: closed, revision: 2 })
})

test('FB1 breakers in a file: what a killed process left beside it is passed over', async () => {
  const path = await folder()
  await (await FileBreakers.open(path)).save('model/a:one', open, 0)
  await writeFile(join(path, 'breakers.json.new'), '{"model/a:one":{"bre')
  const store = await FileBreakers.open(path)
  expect(await store.load('model/a:one')).toMatchObject({ breaker: open })
  await store.save('model/b:two', open, 0)
  expect(JSON.parse(await readFile(join(path, 'breakers.json'), 'utf8'))).toHaveProperty(['model/b:two'])
})

test.each(['', '{', '[]', '{"model/a:one":{"breaker":{"state":"ajar"},"revision":1}}'])(
  'FB2 breakers in a file: one that cannot be read counts as none, and is replaced (%s)',
  async (text) => {
    const path = await folder()
    await writeFile(join(path, 'breakers.json'), text)
    const store = await FileBreakers.open(path)
    expect(await store.load('model/a:one')).toBeNull()
    expect(await store.save('model/a:one', open, 0)).toBe(1)
    expect(await (await FileBreakers.open(path)).load('model/a:one')).not.toBeNull()
  },
)
