import { describe, expect, test } from 'vitest'
import { assign, createMachine, sendTo, setup } from 'xstate'
import { z } from 'zod'
import { defineMachine } from '../../runtime/define-machine.js'
import { createMemoryStore } from '../../transport/memory-journal.js'
import { openStage, type Stage, until } from '../support/crew-stage.js'

type Heard = { type: string; n?: number; code?: string; message?: string; reason?: string }
/** Keeps what it hears. */
const ear = setup({ types: {} as { context: { heard: Heard[] }; events: Heard } }).createMachine({
  id: 'ear',
  context: { heard: [] },
  on: { '*': { actions: assign({ heard: ({ context, event }) => [...context.heard, event] }) } },
})
/** Says on what it is told, to a machine of another crew. */
const mouth = setup({
  types: {} as {
    context: { to: string; back: Heard[] }
    input: { to: string }
    events:
      | { type: 'say'; n: number; text?: string }
      | { type: 'later'; n: number }
      | ({ type: 'mail.returned' } & Heard)
  },
}).createMachine({
  id: 'mouth',
  context: ({ input }) => ({ to: input.to, back: [] }),
  on: {
    say: {
      actions: sendTo(
        ({ context }) => ({ address: context.to }) as never,
        ({ event }) => ({ ...event, type: 'said' }) as never,
      ),
    },
    later: {
      actions: sendTo(
        ({ context }) => ({ address: context.to }) as never,
        ({ event }) => ({ type: 'said', n: event.n }) as never,
        { delay: 1_000 },
      ),
    },
    'mail.returned': { actions: assign({ back: ({ context, event }) => [...context.back, event] }) },
  },
})
const said = defineMachine(ear, {
  messages: z.discriminatedUnion('type', [
    z.strictObject({ type: z.literal('said'), n: z.number(), text: z.string().optional() }),
    z.strictObject({ type: z.literal('end') }),
  ]),
})
const saying = defineMachine(mouth)

async function pair(stage: Stage) {
  const hearing = await stage.runtime.spawn(said, { id: 'b' })
  const speaking = await stage.runtime.spawn(saying, { id: 'a', input: { to: 'b/machine/main' } })
  const heard = async () => ((await hearing.state()).context as { heard: Heard[] }).heard
  return { hearing, speaking, heard }
}

describe('mail between machines', () => {
  test('machine mail: what a machine says to one of another crew comes once, in order, also later', async () => {
    const stage = await openStage()
    const { speaking, heard } = await pair(stage)
    await speaking.send({ type: 'later', n: 4 })
    for (const n of [1, 2, 3]) await speaking.send({ type: 'say', n })
    await until(async () => (await heard()).length === 3)
    stage.clock.advance(1_000)
    await until(async () => (await heard()).length === 4)
    expect(await heard()).toEqual([1, 2, 3, 4].map((n) => ({ type: 'said', n })))
    await stage.runtime.close({ graceMs: 0 })
  })

  test('machine mail: over crashes of either it comes once', async () => {
    const store = createMemoryStore()
    let stage = await openStage({ store })
    for (let n = 1; n <= 6; n += 1) {
      const { speaking } = await pair(stage)
      await speaking.send({ type: 'say', n })
      stage.crash()
      stage = await openStage({ store, unclean: true, clock: stage.clock })
    }
    const { heard } = await pair(stage)
    await until(async () => (await heard()).length === 6)
    expect((await heard()).map(({ n }) => n)).toEqual([1, 2, 3, 4, 5, 6])
    await stage.runtime.close({ graceMs: 0 })
  })

  test('IN3 machine mail: what its receiver does not take, has not, or is not there for comes back with the reason', async () => {
    const stage = await openStage()
    const { hearing, heard } = await pair(stage)
    const told = async (to: string, text?: unknown) => {
      const id = `to-${to.replaceAll('/', '-')}-${String(text).length}`
      const machine = await stage.runtime.spawn(saying, { id, input: { to } })
      await machine.send({ type: 'say', n: 1, ...(text === undefined ? {} : { text }) } as never)
      const back = async () => ((await machine.state()).context as { back: Heard[] }).back
      await until(async () => (await back()).length === 1)
      return (await back())[0]
    }
    const returned = (code: string) => ({ type: 'mail.returned', message: 'machine.told', code })
    expect(await told('nobody/machine/main')).toMatchObject(returned('CREW_UNKNOWN'))
    expect(await told('b/machine/other')).toMatchObject(returned('MESSAGE_REFUSED'))
    expect(await told('b/machine/main', 7)).toMatchObject(returned('MESSAGE_REFUSED'))
    expect(await heard()).toEqual([])
    await hearing.cancel()
    await stage.runtime.close({ graceMs: 0 })
  })

  test('LS machine mail: a machine can say nothing to agents, ports or the shard of another crew', async () => {
    const stage = await openStage()
    for (const to of [
      'b/agent/writer',
      'b/crew/main',
      'b/shard/self',
      'b/port/model',
      'b/budget/r1',
      'b//main',
      'b/child/1-1',
    ]) {
      const machine = createMachine({ id: 'aims', entry: sendTo({ address: to } as never, { type: 'x' } as never) })
      const handle = await stage.runtime.spawn(defineMachine(machine), { id: `aims-${to.replaceAll('/', '-')}` })
      await expect(handle.result).rejects.toMatchObject({ code: 'MACHINE_UNSUPPORTED' })
    }
    await stage.runtime.close({ graceMs: 0 })
  })

  test('machine mail: what is said to a machine that has ended is a dead letter', async () => {
    const stage = await openStage()
    const { hearing, speaking } = await pair(stage)
    await hearing.cancel()
    await speaking.send({ type: 'say', n: 1 })
    await until(async () => (await stage.worker.shard('b')).state.letters.size === 1)
    const [letter] = [...(await stage.worker.shard('b')).state.letters.values()]
    expect(letter).toMatchObject({ code: 'MACHINE_ENDED', to: 'machine/main', from: 'a/machine/main' })
    await stage.runtime.close({ graceMs: 0 })
  })
})
