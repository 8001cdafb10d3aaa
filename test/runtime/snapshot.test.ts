import { describe, expect, test } from 'vitest'
import { decode, encode } from '../../runtime/codec.js'
import { append } from '../../runtime/conversation.js'
import type { SnapshotManifest } from '../../runtime/journal.js'
import { loadSnapshot, type SealedSegments, takeSnapshot } from '../../runtime/snapshot.js'
import { emptyState, fromStoredState, type StoredState, toStoredState } from '../../runtime/state.js'
import { createMemoryJournal } from '../../transport/memory-journal.js'
import { shippedMachines } from '../support/crew-stage.js'
import { answer, defined, Desk, outcome, replied, task, toolVerdict } from '../support/envelopes.js'

const hash = Buffer.alloc(32, 7)

const busy = (): Desk => {
  const desk = new Desk()
  desk.all(defined(), task())
  desk.take(outcome(desk.effect(), replied({ calls: [toolVerdict(0), toolVerdict(1)] }), [answer('')]))
  const [first] = desk.state.effects.keys()
  desk.take(outcome(first!, { type: 'tool.succeeded', bytes: 12 }, ['a tool result'], 'tool/3-0'))
  return desk
}
const take = (desk: Desk, sealed: SealedSegments = new Map()) =>
  takeSnapshot(desk.state, hash, sealed, desk.scope, desk.machines)

async function stored(...snapshots: readonly ReturnType<typeof take>[]) {
  const journal = createMemoryJournal()
  await journal.open()
  for (const { manifest, chunks } of snapshots) await journal.putSnapshot(manifest, chunks, [])
  return journal
}

describe('state', () => {
  test('T1 state: two states that serve the same commits have the same plain data, over any restore', () => {
    const live = busy()
    const restored = busy().restore()
    expect(restored.hash).toBe(live.hash)
    for (const desk of [live, restored])
      desk.take(outcome(desk.effect(), { type: 'tool.succeeded', bytes: 2 }, ['b'], 'tool/3-1'))
    expect(
      encode(toStoredState(restored.state, restored.scope, restored.machines)).equals(
        encode(toStoredState(live.state, live.scope, live.machines)),
      ),
    ).toBe(true)
  })

  test('T2 state: the plain data holds no content of messages', () => {
    const desk = new Desk()
    desk.all(defined(), task('k', 'the secret task'))
    desk.take(outcome(desk.effect(), replied({ calls: [toolVerdict(0)] }), [answer('the secret reply')]))
    desk.take(outcome(desk.effect(), { type: 'tool.succeeded', bytes: 3 }, ['the secret result'], 'tool/3-0'))
    expect(encode(toStoredState(desk.state, desk.scope, desk.machines)).toString('latin1')).not.toContain('secret')
  })

  const refused = (change: (stored: StoredState) => StoredState, machines = shippedMachines) => {
    const desk = busy()
    const plain = decode(encode(toStoredState(desk.state, desk.scope, desk.machines))) as StoredState
    expect(() => fromStoredState('s1', change(plain), desk.scope, machines)).toThrow(
      expect.objectContaining({ code: 'SNAPSHOT_INCOMPATIBLE' }),
    )
  }

  test('state: another form, an unknown kind, another version of a machine, a state that is gone are SNAPSHOT_INCOMPATIBLE', () => {
    refused((plain) => ({ ...plain, version: 99 }))
    refused((plain) => ({ ...plain, machines: { ...plain.machines, agent: '0' } }))
    const { agent: _, ...machines } = shippedMachines
    refused((plain) => plain, machines)
    refused((plain) => ({
      ...plain,
      actors: plain.actors.map(([address, kind, parent, generation, snapshot]) => [
        address,
        kind,
        parent,
        generation,
        { ...snapshot, value: 'no such state' },
      ]),
    }))
  })
})

describe('snapshot', () => {
  test('SN1 snapshot: it holds the chain hash of its sequence and gives the same state back', async () => {
    const desk = busy()
    const snapshot = take(desk)
    expect(snapshot.manifest).toMatchObject({ shard: 's1', sequence: 4, hash })
    const journal = await stored(snapshot)
    const [manifest] = await journal.snapshots('s1')
    const state = await loadSnapshot(journal, manifest!, new Map(), desk.scope, desk.machines)
    desk.state = state
    expect(desk.hash).toBe(busy().hash)
  })

  test('SN2 snapshot: a sealed segment of a conversation is written once, and read back', async () => {
    const desk = new Desk()
    desk.state = emptyState('s1')
    const grow = (entries: number) => {
      for (let at = 0; at < entries; at += 1)
        append(
          desk.state.logs,
          'r1',
          { type: 'log.append', user: `message ${desk.state.logs.get('r1')?.length ?? 0}` },
          1,
          [],
        )
    }
    const sealed: SealedSegments = new Map()
    grow(1_100)
    const first = take(desk, sealed)
    grow(100)
    const second = take(desk, sealed)
    expect(first.chunks.size).toBe(2)
    expect(second.chunks.size).toBe(0)
    expect(second.manifest.chunks).toEqual(first.manifest.chunks)
    grow(500)
    const third = take(desk, sealed)
    expect(third.chunks.size).toBe(1)
    const journal = await stored(first, second, third)
    const reread: SealedSegments = new Map()
    const [manifest] = await journal.snapshots('s1')
    const state = await loadSnapshot(journal, manifest!, reread, desk.scope, desk.machines)
    expect(state.logs.get('r1')?.entries.map(({ text }) => text)).toEqual(
      desk.state.logs.get('r1')?.entries.map(({ text }) => text),
    )
    expect(reread).toEqual(sealed)
    desk.state = state
    grow(1)
    expect(take(desk, reread).chunks.size).toBe(0)
  })

  test('SN2 snapshot: segments of a conversation that is gone are forgotten', () => {
    const desk = new Desk()
    for (let at = 0; at < 600; at += 1) append(desk.state.logs, 'r1', { type: 'log.append', user: 'x' }, 1, [])
    const sealed: SealedSegments = new Map()
    take(desk, sealed)
    expect([...sealed.keys()]).toEqual(['r1'])
    desk.state.logs.delete('r1')
    take(desk, sealed)
    expect(sealed.size).toBe(0)
  })

  /** A desk whose crew has more than goes into a manifest. */
  const large = (): Desk => {
    const desk = busy()
    const [address] = [...desk.state.actors.keys()].filter((each) => each.startsWith('crew/'))
    const actor = desk.state.actors.get(address!)!
    Object.assign(actor.snapshot.context as object, { note: 'n'.repeat(10_000) })
    return desk
  }

  test('snapshot: small actors are in the manifest; a large one is a chunk, and the same one while it does not change', () => {
    const desk = large()
    const before = take(desk)
    expect(before.manifest.chunks).toHaveLength(1)
    desk.take(outcome(desk.effect(), { type: 'tool.succeeded', bytes: 2 }, ['b'], 'tool/3-1'))
    expect(take(desk).manifest.chunks).toEqual(before.manifest.chunks)
    expect(take(busy()).manifest.chunks).toEqual([])
  })

  test('snapshot: a chunk that is missing is JOURNAL_CORRUPT', async () => {
    const desk = large()
    const journal = await stored(take(desk))
    const [manifest] = await journal.snapshots('s1')
    const poor: SnapshotManifest = { ...manifest!, chunks: manifest!.chunks.slice(1) }
    await expect(loadSnapshot(journal, poor, new Map(), desk.scope, desk.machines)).rejects.toMatchObject({
      code: 'JOURNAL_CORRUPT',
    })
  })
})
