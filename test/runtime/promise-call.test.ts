import { describe, expect, test } from 'vitest'
import { assign, createMachine, fromPromise, setup } from 'xstate'
import { defineMachine } from '../../runtime/define-machine.js'
import type { PromiseEffect } from '../../runtime/logic.js'
import { createMemoryStore } from '../../transport/memory-journal.js'
import { gate, openStage, until } from '../support/crew-stage.js'
import { createManualClock } from '../support/manual-clock.js'

interface Call {
  readonly input: unknown
  readonly signal: AbortSignal
}

/** A machine that has one thing done, and what its promise does. */
function worker(run: (call: Call) => Promise<unknown>, effect: PromiseEffect = 'once') {
  const machine = setup({
    types: {} as { context: { seen: unknown[] }; events: { type: 'go' } | { type: 'leave' } },
    actors: {
      work: fromPromise(({ input, signal }: { input: unknown; signal: AbortSignal }) => run({ input, signal })),
    },
    actions: {
      keep: assign({
        seen: ({ context, event }) => [
          ...context.seen,
          (event as { output?: unknown }).output ?? (event as { error?: unknown }).error ?? null,
        ],
      }),
    },
  }).createMachine({
    id: 'worker',
    context: { seen: [] },
    initial: 'idle',
    states: {
      idle: { on: { go: 'busy' } },
      busy: {
        on: { leave: 'idle' },
        invoke: {
          src: 'work',
          id: 'work',
          input: ({ context }: { context: { seen: unknown[] } }) => ({ ask: context.seen.length }),
          onDone: { target: 'idle', actions: 'keep' },
          onError: { target: 'idle', actions: 'keep' },
        },
      },
    },
  })
  return defineMachine(machine, { promises: { work: effect } })
}

describe('promise', () => {
  test('promise: it is run behind its record, and its output comes to the machine', async () => {
    const stage = await openStage()
    const calls: unknown[] = []
    const machine = await stage.runtime.spawn(
      worker(({ input }) => {
        calls.push(input)
        return Promise.resolve({ answer: [1, { deep: true }] })
      }),
    )
    for (let times = 1; times <= 2; times += 1) {
      await machine.send({ type: 'go' })
      await until(async () => ((await machine.state()).context as { seen: unknown[] }).seen.length === times)
    }
    expect(calls).toEqual([{ ask: 0 }, { ask: 1 }])
    expect((await machine.state()).context).toEqual({ seen: Array(2).fill({ answer: [1, { deep: true }] }) })
    const types: string[] = []
    for await (const { envelope } of stage.runtime.journal('worker')) types.push(envelope.body.type)
    expect(types.slice(1, 4)).toEqual(['go', 'effect.dispatched', 'promise.resolved'])
    await stage.runtime.close()
  })

  test('promise: one that is rejected tells why, as data', async () => {
    const stage = await openStage()
    const machine = await stage.runtime.spawn(
      worker(() => Promise.reject(Object.assign(new RangeError('no'), { code: 'E_DECLINED' }))),
    )
    await machine.send({ type: 'go' })
    await until(
      async () =>
        (await machine.state()).value === 'idle' &&
        ((await machine.state()).context as { seen: unknown[] }).seen.length === 1,
    )
    expect((await machine.state()).context).toEqual({
      seen: [{ code: 'E_DECLINED', name: 'RangeError', message: 'no' }],
    })
    await stage.runtime.close()
  })

  test('PM1 promise: an output that cannot be kept is an error, whatever it is', async () => {
    const odd: unknown[] = [() => 1, new Map(), 'x'.repeat(300_000), Number.NaN, 3n]
    const stage = await openStage()
    const machine = await stage.runtime.spawn(worker(() => Promise.resolve(odd.shift())))
    for (let times = 1; times <= 5; times += 1) {
      await machine.send({ type: 'go' })
      await until(async () => ((await machine.state()).context as { seen: unknown[] }).seen.length === times)
    }
    const { seen } = (await machine.state()).context as { seen: { code: string }[] }
    expect(seen.map(({ code }) => code)).toEqual([
      'CONTEXT_NOT_PLAIN',
      'CONTEXT_NOT_PLAIN',
      'ENVELOPE_TOO_LARGE',
      'CONTEXT_NOT_PLAIN',
      'CONTEXT_NOT_PLAIN',
    ])
    await stage.runtime.close()
  })

  test('promise: leaving its state aborts it, and what it brings later is nobody’s', async () => {
    const stage = await openStage()
    const first = gate<string>()
    const signals: AbortSignal[] = []
    let calls = 0
    const machine = await stage.runtime.spawn(
      worker(({ signal }) => {
        signals.push(signal)
        calls += 1
        return calls === 1 ? first.opened : Promise.resolve('second')
      }),
    )
    await machine.send({ type: 'go' })
    await until(() => signals.length === 1)
    await machine.send({ type: 'leave' })
    expect(signals[0]!.aborted).toBe(true)
    await machine.send({ type: 'go' })
    first.open('first')
    await until(async () => ((await machine.state()).context as { seen: unknown[] }).seen.length === 1)
    expect((await machine.state()).context).toEqual({ seen: ['second'] })
    await stage.runtime.close()
  })

  test.each([
    ['once', 1, [{ code: 'EFFECT_UNKNOWN', message: 'whether it was done is not known' }]],
    ['idempotent', 2, ['done']],
    ['pure', 2, ['done']],
  ] as const)('promise: one that is %s and was interrupted is run %i times', async (effect, times, seen) => {
    const store = createMemoryStore()
    const clock = createManualClock()
    let calls = 0
    const definition = worker(() => {
      calls += 1
      return calls === 1 ? new Promise(() => undefined) : Promise.resolve('done')
    }, effect)
    const first = await openStage({ store, clock })
    const before = await first.runtime.spawn(definition)
    await before.send({ type: 'go' })
    await until(() => calls === 1)
    first.crash()
    const second = await openStage({ store, clock, unclean: true })
    const again = await second.runtime.spawn(definition)
    await until(async () => ((await again.state()).context as { seen: unknown[] }).seen.length === 1)
    expect((await again.state()).context).toEqual({ seen })
    expect(calls).toBe(times)
    await second.runtime.close()
  })

  test('promise: what no process had begun is run by the next one', async () => {
    const store = createMemoryStore()
    const first = await openStage({ store })
    let calls = 0
    const definition = worker(() => Promise.resolve((calls += 1)))
    const before = await first.runtime.spawn(definition)
    await before.send({ type: 'go' })
    // The record of its start is on its way: nothing of it reaches the store.
    first.crash()
    const second = await openStage({ store, unclean: true })
    const again = await second.runtime.spawn(definition)
    await until(async () => ((await again.state()).context as { seen: unknown[] }).seen.length === 1)
    expect(calls).toBeLessThanOrEqual(1)
    await second.runtime.close()
  })

  test('promise: one that was cut and that nobody asks about fails its machine with EFFECT_UNKNOWN', async () => {
    const store = createMemoryStore()
    let calls = 0
    const work = fromPromise(() => {
      calls += 1
      return new Promise(() => undefined)
    })
    const definition = defineMachine(createMachine({ id: 'cut', invoke: { src: work, id: 'work' } }))
    const first = await openStage({ store })
    await first.runtime.spawn(definition)
    await until(() => calls === 1)
    first.crash()
    const second = await openStage({ store, unclean: true })
    const again = await second.runtime.spawn(definition)
    await expect(again.result).rejects.toMatchObject({ code: 'EFFECT_UNKNOWN' })
    await second.runtime.close()
  })

  test('promise: a machine that nobody takes its error from fails with it', async () => {
    const stage = await openStage()
    const failing = createMachine({
      id: 'failing',
      invoke: { src: fromPromise(() => Promise.reject(new Error('no'))), id: 'work' },
    })
    const machine = await stage.runtime.spawn(defineMachine(failing))
    await expect(machine.result).rejects.toMatchObject({ code: 'ACTOR_FAILED', message: 'no' })
    await stage.runtime.close()
  })
})
