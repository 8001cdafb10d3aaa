/**
 * Code that changes under a stored crew: what is data is simply another definition; what decides otherwise is refused,
 * names its first difference, touches nothing, and goes on when somebody accepts it.
 */
import { describe, expect, test } from 'vitest'
import { createRuntime, defineAgent, defineTool, startScriptedModel } from 'troupe'
import { z } from 'zod'
import { toolResults } from '../../actors/scripted-model.js'
import { isTroupeError } from '../../runtime/errors.js'
import type { Machines } from '../../runtime/state.js'
import type { MemoryStore } from '../../transport/memory-journal.js'
import { startScript } from '../support/child.js'
import {
  call,
  gate,
  messagesOf,
  openStage,
  resultsIn,
  say,
  shippedMachines,
  type Stage,
  until,
} from '../support/crew-stage.js'
import { providers, temporaryFolder } from '../support/live-crew.js'

const note = defineTool({
  name: 'note',
  description: '',
  input: z.object({}),
  effect: 'idempotent',
  retries: 3,
  run: () => 'noted',
})
const agent = (instructions = 'old') => defineAgent({ name: 'agent', model: 'a:one', instructions, tools: [note] })

/** Two rounds with a tool, then an answer; with `hangs` the third call never comes back. */
const rounds = (hangs: boolean): Parameters<typeof openStage>[0] => ({
  model: (request) => {
    if (resultsIn(request).length < 2) return call(['note'])
    return hangs ? gate<never>().opened : say('done')
  },
})

/** A stage that ended with the third model call open: killed, or closed. */
async function stopped(how: 'killed' | 'closed'): Promise<Stage & { run: string }> {
  const stage = await openStage(rounds(true))
  const run = (await stage.runtime.spawn(agent())).start('go', { key: 'k' })
  await until(() => stage.requests.length === 3)
  const id = await run.id
  if (how === 'killed') stage.crash()
  else await stage.runtime.close()
  return { ...stage, run: id }
}

/** The shipped machines with another agent. */
function withAgent(implementations: object, version = shippedMachines['agent']!.version): Machines {
  const machine = shippedMachines['agent']!.provide(implementations as never)
  Object.defineProperty(machine, 'version', { value: version })
  return { ...shippedMachines, agent: machine }
}
/** It asks the budget before it acts, limit or not: from the first round on it decides otherwise. */
const greedy = { guards: { counted: () => true } }

const bytesOf = (store: MemoryStore) => {
  const hex = (bytes: Uint8Array | null) => Buffer.from(bytes ?? []).toString('hex')
  const { records, manifests, chunks, head, attempts } = store.shards.get('agent')!
  return JSON.stringify({
    records: records.map((record) => [record.first, hex(record.hash), hex(record.bytes), hex(record.events)]),
    manifests: manifests.map(({ sequence, bytes, hash }) => [sequence, hex(bytes), hex(hash)]),
    chunks: [...chunks].map(([name, bytes]) => [name, hex(bytes)]),
    head: [head.sequence, hex(head.hash), head.pending],
    attempts,
  })
}
const refusalOf = async (opening: Promise<unknown>) => {
  const error = await opening.catch((reason: unknown) => reason)
  if (!isTroupeError(error)) throw new Error('it was not refused')
  return error
}

describe('upgrade: data', () => {
  test.each(['killed', 'closed'] as const)('instructions that were edited hold when the crew was %s', async (how) => {
    const before = await stopped(how)
    const stage = await openStage({ ...rounds(false), store: before.store, clock: before.clock })
    const crew = await stage.runtime.spawn(agent('new'))
    await expect(crew.ask('go', { key: 'k' })).resolves.toMatchObject({ runId: before.run, output: 'done', rounds: 3 })
    expect(stage.requests).toHaveLength(1)
    expect(messagesOf(stage.requests[0]!)[0]).toEqual({ role: 'system', content: 'new' })
    expect(before.requests.every((request) => messagesOf(request)[0]?.content === 'old')).toBe(true)
    await stage.runtime.close()
  })

  test('edited and run again, over and over, killed each time', async () => {
    let { store, clock } = await stopped('killed')
    for (const version of ['two', 'three', 'four']) {
      const stage = await openStage({ ...rounds(true), store, clock })
      await stage.runtime.spawn(agent(version))
      await until(() => stage.requests.length === 1)
      expect(messagesOf(stage.requests[0]!)[0]?.content).toBe(version)
      stage.crash()
      ;({ store, clock } = stage)
    }
    const last = await openStage({ ...rounds(false), store, clock })
    await expect((await last.runtime.spawn(agent('five'))).ask('go', { key: 'k' })).resolves.toMatchObject({
      rounds: 3,
    })
    await last.runtime.close()
  })

  test('a real process that is killed with SIGKILL, edited, and run again', async () => {
    using folder = temporaryFolder()
    const heard: string[] = []
    const reached = gate()
    await using provider = await startScriptedModel((request) => {
      heard.push(String(request.messages[0]?.content))
      if (toolResults(request).length > 0 && request.messages[0]?.content === 'old') {
        reached.open()
        return gate<never>().opened
      }
      return toolResults(request).length > 0 ? 'done' : { calls: [{ name: 'note', arguments: {} }] }
    })
    await using script = startScript(`
      import { createRuntime, defineAgent, defineTool } from 'troupe'
      import { z } from 'zod'
      const note = defineTool({ name: 'note', description: '', input: z.object({}), effect: 'idempotent', retries: 3, run: () => 'noted' })
      const runtime = await createRuntime({ store: ${JSON.stringify(folder.path)}, durability: 'process', providers: { scripted: { baseURL: ${JSON.stringify(provider.baseURL)}, apiKey: null } } })
      const crew = await runtime.spawn(defineAgent({ name: 'agent', model: 'scripted:m', instructions: 'old', tools: [note] }))
      await crew.ask('go', { key: 'k' })
    `)
    await Promise.race([reached.opened, script.ended])
    script.process.kill('SIGKILL')
    expect(await script.ended).toBe('SIGKILL')
    await using runtime = await createRuntime({
      store: folder.path,
      durability: 'process',
      providers: providers(provider.baseURL),
      log: 'silent',
    })
    const edited = defineAgent({ name: 'agent', model: 'scripted:m', instructions: 'new', tools: [note] })
    await expect((await runtime.spawn(edited)).ask('go', { key: 'k' })).resolves.toMatchObject({
      output: 'done',
      rounds: 2,
    })
    expect(heard).toEqual(['old', 'old', 'new'])
  })
})

describe('upgrade: decisions', () => {
  test('another decision is refused with the first difference, and nothing is touched', async () => {
    const before = await stopped('killed')
    const bytes = bytesOf(before.store)
    const stage = await openStage({
      ...rounds(false),
      store: before.store,
      clock: before.clock,
      machines: withAgent(greedy),
    })
    for (const _ of [1, 2]) {
      const refusal = await refusalOf(stage.runtime.spawn(agent()))
      expect(refusal).toMatchObject({ code: 'UPGRADE_REFUSED', details: { shard: 'agent', sequence: 3 } })
      expect(refusal.message).toMatch(
        /commit 3 \(model\.replied to agent\/agent-r2\), decision \d+ of \d+: now budget\/r2 .*"toolCalls"/,
      )
    }
    await stage.runtime.close()
    expect(bytesOf(before.store)).toBe(bytes)
    const old = await openStage({ ...rounds(false), store: before.store, clock: before.clock })
    await expect((await old.runtime.spawn(agent())).ask('go', { key: 'k' })).resolves.toMatchObject({ output: 'done' })
    await old.runtime.close()
  })

  test('accepted, it goes on under the new code, also after the next kill and the next start', async () => {
    const before = await stopped('killed')
    const machines = withAgent(greedy)
    const open = (more: Parameters<typeof openStage>[0]) =>
      openStage({ store: before.store, clock: before.clock, machines, ...more })
    const first = await open(rounds(true))
    await first.runtime.spawn(agent(), { acceptUpgrade: true })
    await until(() => first.requests.length > 0)
    first.crash()
    const second = await open(rounds(true))
    await second.runtime.spawn(agent())
    await until(() => second.requests.length > 0)
    await second.runtime.close()
    const third = await open(rounds(false))
    await expect((await third.runtime.spawn(agent())).ask('go', { key: 'k' })).resolves.toMatchObject({
      output: 'done',
    })
    await third.runtime.close()
    const upgrades = before.store.shards
      .get('agent')!
      .records.filter(({ bytes }) => Buffer.from(bytes).includes('shard.upgraded'))
    expect(upgrades).toHaveLength(1)
  })

  test('after a clean close there is no tail to differ from: a changed decision holds from then on', async () => {
    const before = await stopped('closed')
    const stage = await openStage({
      ...rounds(false),
      store: before.store,
      clock: before.clock,
      machines: withAgent(greedy),
    })
    await expect((await stage.runtime.spawn(agent())).ask('go', { key: 'k' })).resolves.toMatchObject({
      output: 'done',
    })
    await stage.runtime.close()
  })

  test('an upgrade that nobody needs is accepted in silence', async () => {
    const before = await stopped('killed')
    const stage = await openStage({ ...rounds(false), store: before.store, clock: before.clock })
    const crew = await stage.runtime.spawn(agent(), { acceptUpgrade: true })
    await expect(crew.ask('go', { key: 'k' })).resolves.toMatchObject({ output: 'done' })
    const { records } = before.store.shards.get('agent')!
    expect(records.some(({ bytes }) => Buffer.from(bytes).includes('shard.upgraded'))).toBe(false)
    await stage.runtime.close()
  })
})

describe('upgrade: versions', () => {
  test.each(['killed', 'closed'] as const)('a new version that decides the same goes on (%s)', async (how) => {
    const before = await stopped(how)
    const stage = await openStage({
      ...rounds(false),
      store: before.store,
      clock: before.clock,
      machines: withAgent({}, 'next'),
    })
    await expect((await stage.runtime.spawn(agent())).ask('go', { key: 'k' })).resolves.toMatchObject({
      output: 'done',
    })
    await stage.runtime.close()
  })

  test.each(['killed', 'closed'] as const)(
    'a new version that decides otherwise is refused with both reasons, then accepted (%s)',
    async (how) => {
      const before = await stopped(how)
      const bytes = bytesOf(before.store)
      const machines = withAgent(greedy, 'next')
      const open = (more: Parameters<typeof openStage>[0]) =>
        openStage({ store: before.store, clock: before.clock, machines, ...more })
      const refusing = await open(rounds(false))
      const refusal = await refusalOf(refusing.runtime.spawn(agent()))
      expect(refusal.code).toBe('UPGRADE_REFUSED')
      expect(refusal.message).toMatch(/commit 3 \(model\.replied/)
      if (how === 'closed')
        expect(refusal.message).toMatch(/agent\/agent-r2 was run by version \d+ of its machine, this is next/)
      await refusing.runtime.close()
      expect(bytesOf(before.store)).toBe(bytes)
      const accepting = await open(rounds(true))
      await accepting.runtime.spawn(agent(), { acceptUpgrade: true })
      await until(() => accepting.requests.length > 0)
      accepting.crash()
      const last = await open(rounds(false))
      await expect((await last.runtime.spawn(agent())).ask('go', { key: 'k' })).resolves.toMatchObject({
        output: 'done',
      })
      await last.runtime.close()
    },
  )

  test('accepted, a version goes on from the snapshot when its states are still there: a finished run stays finished', async () => {
    const stage = await openStage(rounds(false))
    const done = await (await stage.runtime.spawn(agent())).ask('go', { key: 'k' })
    await stage.runtime.close()
    const crewMachine = shippedMachines['crew']!.provide({ guards: { hasWall: () => true } } as never)
    Object.defineProperty(crewMachine, 'version', { value: 'next' })
    const machines = { ...shippedMachines, crew: crewMachine }
    const open = () => openStage({ ...rounds(false), store: stage.store, clock: stage.clock, machines })
    const refusing = await open()
    expect(await refusalOf(refusing.runtime.spawn(agent()))).toMatchObject({ code: 'UPGRADE_REFUSED' })
    await refusing.runtime.close()
    for (const acceptUpgrade of [true, false]) {
      const next = await open()
      await expect((await next.runtime.spawn(agent(), { acceptUpgrade })).ask('go', { key: 'k' })).resolves.toEqual(
        done,
      )
      expect(next.requests).toEqual([])
      next.crash()
    }
  })
})
