import { expect, test } from 'vitest'
import { createMemoryJournal, createMemoryStore } from '../../transport/memory-journal.js'
import { appendNext, journalConformance } from '../conformance/journal.js'

journalConformance('memory', () => {
  const store = createMemoryStore()
  return Promise.resolve({
    journal: createMemoryJournal({ store }),
    reopen: () => createMemoryJournal({ store }),
    dispose: () => Promise.resolve(),
  })
})

test('memory journal: the content outlives a crash, the old owner can no longer append', async () => {
  const store = createMemoryStore()
  const old = createMemoryJournal({ store })
  await old.open()
  await appendNext(old, 'a', 'one')
  store.owner = null
  const next = createMemoryJournal({ store })
  expect((await next.open()).shards).toBe(1)
  await expect(appendNext(old, 'a', 'two')).rejects.toMatchObject({ code: 'STORE_FAILED' })
  await old.close()
  await appendNext(next, 'a', 'two')
  expect((await next.head('a')).sequence).toBe(2)
})
