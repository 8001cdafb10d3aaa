import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { defineAgent, defineTool } from '../../runtime/define.js'
import { recover } from '../../runtime/recovery.js'
import { Scope } from '../../runtime/scope.js'
import { type Machines, stateHash } from '../../runtime/state.js'
import type { MemoryStore } from '../../transport/memory-journal.js'
import {
  call,
  gate,
  openStage,
  override,
  resultsIn,
  say,
  shippedMachines,
  type Stage,
  until,
} from '../support/crew-stage.js'

const context = { scope: new Scope(), machines: shippedMachines }
const ran: string[] = []
const note = defineTool({
  name: 'note',
  description: '',
  input: z.object({ text: z.string() }),
  effect: 'idempotent',
  run: ({ text }) => {
    ran.push(text)
    return text
  },
})
const agent = (instructions = 'x') => defineAgent({ model: 'a:one', instructions, tools: [note] })
const talk = (rounds: number): Parameters<typeof openStage>[0] => ({
  model: (request) => {
    const done = resultsIn(request).length
    return done < rounds ? call(['note', { text: `n${done}` }]) : say('done')
  },
})

/** Everything that a store holds for the crew. */
const bytesOf = (store: MemoryStore, shard = 'agent') => {
  const { records, manifests, chunks } = store.shards.get(shard)!
  return JSON.stringify({
    records: records.map(({ bytes, hash, events }) =>
      [bytes, hash, events].map((each) => Buffer.from(each ?? []).toString('hex')),
    ),
    manifests: manifests.map(({ bytes, sequence }) => [sequence, Buffer.from(bytes).toString('hex')]),
    chunks: [...chunks.keys()],
  })
}

/** A stage whose process died with a model call open after `rounds` rounds. */
async function killed(rounds: number): Promise<Stage> {
  const stage = await openStage({
    model: (request) => {
      const done = resultsIn(request).length
      return done < rounds ? call(['note', { text: `n${done}` }]) : gate<never>().opened
    },
  })
  const crew = await stage.runtime.spawn(agent())
  crew.start('go')
  await until(() => stage.requests.length === rounds + 1)
  stage.crash()
  return stage
}

/** An agent machine that decides otherwise: it settles every call as an estimate. */
const changed = (version = '1'): Machines => {
  const machine = shippedMachines['agent']!
  const guards = { misfit: () => true }
  const provided = machine.provide({ guards } as never)
  Object.defineProperty(provided, 'version', { value: version })
  return { ...shippedMachines, agent: provided }
}

describe('recovery', () => {
  test('Y1 recovery: replay runs no effect and calls nothing of the user', async () => {
    const stage = await openStage(talk(3))
    const crew = await stage.runtime.spawn(agent())
    await crew.ask('go')
    stage.crash()
    ran.length = 0
    const again = await openStage({ store: stage.store, clock: stage.clock })
    const { state } = await recover(again.journal, 'agent', context, false)
    expect(state.sequence).toBe(stage.store.shards.get('agent')!.head.sequence)
    expect(ran).toEqual([])
    expect(again.requests).toEqual([])
    await again.runtime.close()
  })

  test('Y1 recovery: from any snapshot, or none, the state is the same', async () => {
    const stage = await openStage(talk(4))
    const crew = await stage.runtime.spawn(agent())
    const shard = await stage.worker.shard('agent')
    const run = crew.start('go')
    await until(() => ran.length >= 2)
    await shard.snapshot()
    await run.result
    await shard.snapshot()
    const hashes: string[] = []
    for (const skip of [0, 1, 2]) {
      const journal = override(stage.journal, {
        snapshots: async (id) => (await stage.journal.snapshots(id)).slice(skip),
      })
      const recovered = await recover(journal, 'agent', context, false)
      hashes.push(stateHash(recovered.state, context.scope, context.machines))
      expect(Buffer.from(recovered.hash)).toEqual(Buffer.from(stage.store.shards.get('agent')!.head.hash))
    }
    expect(new Set(hashes)).toEqual(new Set([stateHash(shard.state, context.scope, context.machines)]))
    await stage.runtime.close()
  })

  test('Y2 recovery: a snapshot that the journal’s chain does not have is not used', async () => {
    const stage = await openStage(talk(1))
    const crew = await stage.runtime.spawn(agent())
    await crew.ask('go')
    const shard = await stage.worker.shard('agent')
    const before = stateHash(shard.state, context.scope, context.machines)
    await stage.runtime.close()
    const stored = stage.store.shards.get('agent')!
    expect(stored.manifests).toHaveLength(1)
    stored.manifests = stored.manifests.map((manifest) => ({ ...manifest, hash: Buffer.alloc(32, 9) }))
    const again = await openStage({ store: stage.store, clock: stage.clock })
    const recovered = await recover(again.journal, 'agent', context, false)
    expect(recovered.snapshot).toBe(0)
    expect(stateHash(recovered.state, context.scope, context.machines)).toBe(before)
    await again.runtime.close()
  })

  test('Y2 recovery: a damaged snapshot is an optimisation lost', async () => {
    const stage = await openStage(talk(1))
    const crew = await stage.runtime.spawn(agent())
    await crew.ask('go')
    await stage.runtime.close()
    const stored = stage.store.shards.get('agent')!
    stored.manifests = stored.manifests.map((manifest) => ({ ...manifest, chunks: ['0'.repeat(64)] }))
    expect(stored.manifests).toHaveLength(1)
    const again = await openStage({ store: stage.store, clock: stage.clock })
    await expect((await again.runtime.spawn(agent())).ask('go')).resolves.toMatchObject({ output: 'done' })
    await again.runtime.close()
  })

  test.each(['bytes', 'hash', 'gap'] as const)(
    'Y3 recovery: a record with other %s stops the shard with JOURNAL_CORRUPT',
    async (what) => {
      const stage = await killed(2)
      const { records } = stage.store.shards.get('agent')!
      if (what === 'gap') records.splice(2, 1)
      else {
        const bytes = Uint8Array.from(records[2]![what])
        bytes[5]! ^= 1
        records[2] = { ...records[2]!, [what]: bytes }
      }
      const again = await openStage({ store: stage.store, clock: stage.clock })
      await expect(again.runtime.spawn(agent())).rejects.toMatchObject({
        code: 'JOURNAL_CORRUPT',
        details: { shard: 'agent' },
      })
      await expect(again.runtime.spawn(agent(), { id: 'other' })).resolves.toBeDefined()
      await again.runtime.close()
    },
  )

  test('Y5 recovery: a record that lands between a look at the head and the reading is no damage', async () => {
    const stage = await openStage(talk(2))
    await (await stage.runtime.spawn(agent())).ask('go')
    const now = await stage.journal.head('agent')
    let looks = 0
    const journal = override(stage.journal, {
      head: async () => ((looks += 1) === 1 ? { ...now, sequence: now.sequence - 1 } : now),
    })
    expect((await recover(journal, 'agent', context, false)).state.sequence).toBe(now.sequence)
    const behind = override(stage.journal, { head: async () => ({ ...now, sequence: now.sequence - 1 }) })
    await expect(recover(behind, 'agent', context, false)).rejects.toMatchObject({ code: 'JOURNAL_TRUNCATED' })
    await stage.runtime.close()
  })

  test('Y6 recovery: of a snapshot of the head no record is read; of another one those behind it', async () => {
    const stage = await openStage(talk(2))
    const crew = await stage.runtime.spawn(agent())
    await crew.ask('go')
    const shard = await stage.worker.shard('agent')
    await shard.snapshot()
    const reads: number[] = []
    const journal = override(stage.journal, {
      read: (id, from) => {
        reads.push(from)
        return stage.journal.read(id, from)
      },
    })
    const { sequence } = shard.state
    expect(await recover(journal, 'agent', context, false)).toMatchObject({ snapshot: sequence, tailBytes: 0 })
    expect(reads).toEqual([])
    await crew.ask('go on')
    expect((await recover(journal, 'agent', context, false)).snapshot).toBe(sequence)
    expect(reads).toEqual([sequence])
    await stage.runtime.close()
  })

  test('Y3 recovery: records that end before the index says are JOURNAL_TRUNCATED', async () => {
    const stage = await killed(2)
    stage.store.shards.get('agent')!.records.pop()
    const again = await openStage({ store: stage.store, clock: stage.clock })
    await expect(again.runtime.spawn(agent())).rejects.toMatchObject({ code: 'JOURNAL_TRUNCATED' })
    await again.runtime.close()
  })

  test('Y4 recovery: other decisions are refused with the first one, and nothing is touched', async () => {
    const stage = await killed(2)
    const before = bytesOf(stage.store)
    const other = changed()
    const machines = {
      ...other,
      tool: shippedMachines['tool']!.provide({ actions: { call: () => undefined } } as never),
    }
    const again = await openStage({ store: stage.store, clock: stage.clock, machines })
    const refusal = await again.runtime.spawn(agent()).then(
      () => null,
      (error: unknown) => error as { code: string; message: string; details: Record<string, unknown> },
    )
    expect(refusal).toMatchObject({ code: 'UPGRADE_REFUSED', details: { shard: 'agent', sequence: 3 } })
    expect(refusal?.message).toMatch(/commit 3 \(model\.replied to agent\/agent-r2\), decision \d+ of \d+: now /)
    expect(bytesOf(stage.store)).toBe(before)
    again.crash()
  })

  test('Y4 recovery: an accepted upgrade is journalled, and not refused again, also without its snapshot', async () => {
    const stage = await killed(2)
    const machines = {
      ...shippedMachines,
      tool: shippedMachines['tool']!.provide({
        guards: { mayRetry: () => false },
        actions: { tellValue: () => undefined },
      } as never),
    }
    // The new code never tells a result: every digest from the first tool call on differs.
    const open =
      (accept: boolean, more: Parameters<typeof openStage>[0] = {}) =>
      async () => {
        const next = await openStage({ store: stage.store, clock: stage.clock, machines, ...more })
        try {
          return await next.runtime.spawn(agent(), { acceptUpgrade: accept })
        } finally {
          next.crash()
        }
      }
    await expect(open(false)()).rejects.toMatchObject({ code: 'UPGRADE_REFUSED' })
    await expect(open(true)()).resolves.toBeDefined()
    const { records, manifests } = stage.store.shards.get('agent')!
    expect(records.some(({ bytes }) => Buffer.from(bytes).includes('shard.upgraded'))).toBe(true)
    expect(manifests.at(-1)?.sequence).toBeGreaterThan(5)
    await expect(open(false)()).resolves.toBeDefined()
    stage.store.shards.get('agent')!.manifests = []
    const upgrades = () => records.filter(({ bytes }) => Buffer.from(bytes).includes('shard.upgraded')).length
    const counted = upgrades()
    await expect(open(false)()).resolves.toBeDefined()
    expect(upgrades()).toBe(counted)
  })

  test('recovery: equal decisions under another version go on by replay', async () => {
    const stage = await killed(1)
    const agentMachine = shippedMachines['agent']!.provide({})
    Object.defineProperty(agentMachine, 'version', { value: '2' })
    const again = await openStage({
      ...talk(1),
      store: stage.store,
      clock: stage.clock,
      machines: { ...shippedMachines, agent: agentMachine },
    })
    const crew = await again.runtime.spawn(agent())
    await expect((await crew.current())?.result).resolves.toMatchObject({ output: 'done' })
    await again.runtime.close()
  })

  test('recovery: a removed crew begins a new life behind its tombstone', async () => {
    const stage = await openStage(talk(0))
    await (await stage.runtime.spawn(agent())).ask('go')
    const { sequence } = stage.store.shards.get('agent')!.head
    await stage.runtime.remove('agent')
    const crew = await stage.runtime.spawn(agent())
    const run = crew.start('again')
    expect(await run.id).toBe(`r${sequence + 2}`)
    await run.result
    stage.crash()
    const again = await openStage({ store: stage.store, clock: stage.clock })
    await expect((await again.runtime.spawn(agent())).run(await run.id).result).resolves.toMatchObject({
      output: 'done',
    })
    await again.runtime.close()
  })
})
