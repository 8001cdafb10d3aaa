/** What a disk and another owner may leave of snapshots between two processes. */
import { decide } from '../../runtime/commit.js'
import { takeSnapshot } from '../../runtime/snapshot.js'
import { fromStoredState, type ShardState, toStoredState } from '../../runtime/state.js'
import type { Worker } from '../../runtime/worker.js'
import { createMemoryJournal } from '../../transport/memory-journal.js'
import { machines } from '../../machines/index.js'
import type { World } from './world.js'

/** How a stored snapshot is not what it should be. */
export type Spoilt = 'rotten' | 'other branch'

/** Has snapshots name a chunk that is not there, and adds snapshots that do not belong to the journal. @param worker the one that has just ended */
export async function spoilSnapshots(world: World, worker: Worker | null): Promise<void> {
  if (world.calm) return
  for (const [shard, { manifests, chunks }] of world.store.shards) {
    const newest = manifests.at(-1)
    if (newest !== undefined && world.random.chance(world.plan.rotten)) {
      world.notes.fault('snapshot rotten')
      if (newest.chunks.length > 0) chunks.delete(world.random.pick(newest.chunks))
      else manifests.splice(-1, 1, { ...newest, chunks: ['0'.repeat(64)] })
      spoil(world, shard, newest.sequence, 'rotten')
    }
    const live = worker?.active.get(shard)?.state
    if (live !== undefined && world.random.chance(world.plan.otherBranch)) await otherBranch(world, shard, live)
  }
}

/** A snapshot by an owner that had gone another way, and whose records never were in this journal. */
async function otherBranch(world: World, shard: string, live: ShardState): Promise<void> {
  const context = { scope: world.scope(), machines }
  const plain = toStoredState(live, context.scope, machines)
  const state = fromStoredState(shard, plain, context.scope, machines)
  const envelope = { from: 'client/local', to: 'crew/main', cause: '', at: state.at, values: [] }
  const steps = world.random.int(1, 3)
  const types = ['crew.pause', 'crew.task', 'crew.cancel']
  for (let step = 0; step < steps; step++) {
    const type = types[step] ?? ''
    const body = { type, tokens: 1, messages: 0, key: 'another', data: false }
    decide(state, { ...envelope, body }, context)
  }
  const hash = Buffer.alloc(32, 7)
  const { manifest, chunks } = takeSnapshot(state, hash, new Map(), context.scope, machines)
  const keep = world.store.shards.get(shard)?.manifests.map(({ sequence }) => sequence) ?? []
  if (keep.includes(manifest.sequence)) return
  world.notes.fault('snapshot of another branch')
  spoil(world, shard, manifest.sequence, 'other branch')
  const journal = createMemoryJournal({ store: world.store })
  await journal.open()
  await journal.putSnapshot(manifest, chunks, keep)
  await journal.close()
}

function spoil(world: World, shard: string, sequence: number, how: Spoilt): void {
  const known = world.spoilt.get(shard) ?? new Map<number, Spoilt>()
  world.spoilt.set(shard, known.set(sequence, how))
}
