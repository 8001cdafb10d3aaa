import { Buffer } from 'node:buffer'
import { getEventListeners } from 'node:events'
import { setImmediate as turn } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { defineTool } from '../../runtime/define.js'
import type { AnyTool, ToolContext } from '../../runtime/define.js'
import type { ToolRequest } from '../../runtime/ports.js'
import { outcome, promise, request, stage, tool, watchProcess } from '../support/tool-stage.js'
import type { Run } from '../support/tool-stage.js'

watchProcess()

describe('tool: running', () => {
  test('run: the tool gets its parsed input and its context', async () => {
    let seen: unknown
    const data = { tenant: 'a' }
    const input = z.object({ n: z.string().transform(Number), more: z.number().default(7) })
    const run = (value: unknown, context: ToolContext) => {
      seen = { value, ...context }
      ;(context.data as { tenant: string }).tenant = 'changed'
      context.log.info('at work')
      return 'done'
    }
    const made = defineTool({ name: 'work', description: '', input, run }) as AnyTool
    const { port, lines } = stage([made])
    expect(await port.run(request({ arguments: '{"n":"5"}', data }))).toEqual({
      status: 'ok',
      content: 'done',
      truncated: false,
    })
    expect(seen).toMatchObject({
      value: { n: 5, more: 7 },
      deps: { db: 1 },
      runId: 'r1',
      agent: 'writer',
      callId: 'c1',
      idempotencyKey: 'k1',
      signal: expect.any(AbortSignal),
    })
    expect(data).toEqual({ tenant: 'a' })
    const bindings = { shard: 's1', runId: 'r1', agent: 'writer', callId: 'c1', tool: 'work' }
    expect(lines).toEqual([[bindings, 'info', 'at work']])
  })

  test('run: an unknown tool and arguments that do not fit are told, nothing runs', async () => {
    const run = () => expect.unreachable()
    const strict = defineTool({ name: 'work', description: '', input: z.object({ n: z.number() }), run }) as AnyTool
    const { port } = stage([strict])
    expect(await port.run(request({ tool: 'other' }))).toMatchObject({ status: 'failed', kind: 'told' })
    expect(await port.run(request({ arguments: '{"n":"x"}' }))).toMatchObject({ status: 'failed', kind: 'told' })
    expect(await port.run(request({ arguments: '{' }))).toMatchObject({ status: 'failed', kind: 'told' })
  })

  test('run: a refused, failed or throwing mayStart drops the call', async () => {
    const refusals: ToolRequest['mayStart'][] = [
      () => Promise.resolve(false),
      () => Promise.reject(new Error('fenced')),
      () => {
        throw new Error('fenced')
      },
    ]
    for (const mayStart of refusals) {
      expect(await outcome(() => expect.unreachable(), { mayStart })).toEqual({ status: 'dropped' })
    }
  })

  test('run: options that throw give an outcome', async () => {
    const broken = (): never => {
      throw new Error('broken')
    }
    const work = tool(({}, { log }) => {
      log.info('x')
      return 'ok'
    })
    expect(await stage([work], { tools: broken }).port.run(request())).toMatchObject({
      kind: 'threw',
      message: 'broken',
    })
    expect(await stage([work], { tools: broken }).port.verify(request())).toEqual({ done: null })
    expect(await stage([work], { log: broken, concurrency: broken }).port.run(request())).toMatchObject({
      status: 'ok',
    })
    expect(await stage([work], { concurrency: () => NaN }).port.run(request())).toMatchObject({ status: 'ok' })
  })
})

describe('tool: places', () => {
  /** Calls that hold their place until they are let go, and who is at work. */
  function hall(toolOptions: readonly { name: string; concurrency: number }[], concurrency: number) {
    const working: string[] = []
    const ends = new Map<string, () => void>()
    const run: Run = (input) => {
      const name = String(input['name'])
      working.push(name)
      const end = promise()
      ends.set(name, end.resolve)
      return end.promise
    }
    const { port } = stage(
      toolOptions.map((options) => tool(run, options)),
      { concurrency: () => concurrency },
    )
    const call = (name: string, change: Partial<ToolRequest> = {}) =>
      port.run(request({ arguments: JSON.stringify({ name }), ...change }))
    const end = async (name: string) => {
      ends.get(name)?.()
      await turn()
    }
    return { call, end, working }
  }

  test('places: a tool runs as often at once as it may, then in order of arrival', async () => {
    const { call, end, working } = hall([{ name: 'work', concurrency: 2 }], 64)
    const all = ['a', 'b', 'c', 'd'].map((name) => call(name))
    await turn()
    expect(working).toEqual(['a', 'b'])
    await end('b')
    expect(working).toEqual(['a', 'b', 'c'])
    await end('a')
    await end('c')
    await end('d')
    expect(await Promise.all(all)).toMatchObject([
      { status: 'ok' },
      { status: 'ok' },
      { status: 'ok' },
      { status: 'ok' },
    ])
  })

  test('places: a crew runs as many calls at once as it may; each crew has its own places', async () => {
    const { call, end, working } = hall(
      [
        { name: 'work', concurrency: 64 },
        { name: 'other', concurrency: 64 },
      ],
      2,
    )
    const all = [call('a'), call('b'), call('c', { tool: 'other' }), call('d'), call('z', { shard: 's2' })]
    await turn()
    expect(working).toEqual(['a', 'b', 'z'])
    await end('a')
    expect(working).toEqual(['a', 'b', 'z', 'c'])
    await end('b')
    expect(working).toEqual(['a', 'b', 'z', 'c', 'd'])
    for (const name of ['c', 'd', 'z']) await end(name)
    await Promise.all(all)
  })

  test('places: a tool without a free place does not hold up another one', async () => {
    const { call, end, working } = hall(
      [
        { name: 'work', concurrency: 1 },
        { name: 'other', concurrency: 1 },
      ],
      2,
    )
    const all = [call('a'), call('b'), call('c', { tool: 'other' }), call('d', { tool: 'other' })]
    await turn()
    expect(working).toEqual(['a', 'c'])
    await end('c')
    expect(working).toEqual(['a', 'c', 'd'])
    await end('a')
    expect(working).toEqual(['a', 'c', 'd', 'b'])
    await end('b')
    await end('d')
    await Promise.all(all)
  })

  test('places: a call that is cancelled while it waits leaves the queue and never starts', async () => {
    const { call, end, working } = hall([{ name: 'work', concurrency: 1 }], 64)
    const controller = new AbortController()
    let asked = false
    const mayStart = () => Promise.resolve((asked = true))
    const first = call('a')
    const second = call('b', { signal: controller.signal, mayStart })
    const third = call('c')
    await turn()
    controller.abort()
    expect(await second).toEqual({ status: 'cancelled', started: false })
    await end('a')
    expect(working).toEqual(['a', 'c'])
    expect(asked).toBe(false)
    await end('c')
    await Promise.all([first, third])
    expect(await call('d', { signal: controller.signal })).toEqual({ status: 'cancelled', started: false })
  })

  test('places: a dropped, failed, cancelled or timed out call gives its place back', async () => {
    const controller = new AbortController()
    const hang: Run = (input) =>
      input['fail'] === true ? Promise.reject(new Error('no')) : new Promise(() => undefined)
    const { port, clock } = stage([tool(hang, { concurrency: 1 })], { concurrency: () => 1 })
    const all = [
      port.run(request({ mayStart: () => Promise.resolve(false) })),
      port.run(request({ arguments: '{"fail":true}' })),
      port.run(request({ signal: controller.signal })),
      port.run(request()),
      port.verify(request()),
    ]
    expect(await all[0]).toEqual({ status: 'dropped' })
    expect(await all[1]).toMatchObject({ kind: 'threw', message: 'no' })
    await turn()
    controller.abort()
    expect(await all[2]).toEqual({ status: 'cancelled', started: true })
    await turn()
    clock.advance(1000)
    expect(await all[3]).toMatchObject({ kind: 'timeout' })
    expect(await all[4]).toEqual({ done: null })
    expect(clock.pending).toBe(0)
  })

  test('places: a flood is served in order, never above the cap', async () => {
    let working = 0
    let most = 0
    const order: unknown[] = []
    const run: Run = async (input) => {
      working += 1
      most = Math.max(most, working)
      order.push(input['n'])
      await turn()
      working -= 1
    }
    const { port } = stage([tool(run, { concurrency: 16 })])
    const all = Array.from({ length: 2000 }, (_, n) => port.run(request({ arguments: JSON.stringify({ n }) })))
    expect((await Promise.all(all)).every(({ status }) => status === 'ok')).toBe(true)
    expect(most).toBe(16)
    expect(order).toEqual(Array.from({ length: 2000 }, (_, n) => n))
  })
})

describe('tool: time and cancelling', () => {
  test('timeout: counts from the start, aborts the signal and abandons the run', async () => {
    const started = promise<AbortSignal>()
    const late = promise<string>()
    const may = promise<boolean>()
    const run: Run = (_input, { signal }) => {
      started.resolve(signal)
      return late.promise
    }
    const { port, clock } = stage([tool(run)])
    const ended = port.run(request({ mayStart: () => may.promise }))
    clock.advance(5000)
    may.resolve(true)
    const signal = await started.promise
    clock.advance(999)
    expect(signal.aborted).toBe(false)
    clock.advance(1)
    expect(await ended).toMatchObject({ status: 'failed', kind: 'timeout' })
    expect(signal.reason).toHaveProperty('name', 'TimeoutError')
    late.reject(new Error('too late'))
  })

  test('timeout: the wall clock has no say', async () => {
    const end = promise<string>()
    const { port, clock } = stage([tool(() => end.promise)])
    const ended = port.run(request())
    await turn()
    clock.step(86_400_000)
    end.resolve('in time')
    expect(await ended).toMatchObject({ status: 'ok', content: 'in time' })
    expect(clock.pending).toBe(0)
  })

  test('timeout: holds for a schema whose check hangs, and nothing runs after it', async () => {
    const check = promise<boolean>()
    const input = z.looseObject({}).refine(() => check.promise)
    let ran = false
    const { port, clock } = stage([tool(() => (ran = true), { input })])
    const ended = port.run(request())
    await turn()
    clock.advance(1000)
    expect(await ended).toMatchObject({ kind: 'timeout' })
    check.resolve(true)
    await turn()
    expect(ran).toBe(false)
  })

  test('cancel: a running call is cancelled at once and its later result ignored', async () => {
    const controller = new AbortController()
    const started = promise<AbortSignal>()
    const run: Run = (_input, { signal }) => {
      started.resolve(signal)
      return new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(new Error('stopped'))))
    }
    const { port } = stage([tool(run)])
    const ended = port.run(request({ signal: controller.signal }))
    const signal = await started.promise
    controller.abort()
    expect(signal.aborted).toBe(true)
    expect(await ended).toEqual({ status: 'cancelled', started: true })
  })

  test('cancel: while mayStart is asked nothing starts, also when it then says yes', async () => {
    const controller = new AbortController()
    const asked = promise()
    const may = promise<boolean>()
    const mayStart = () => {
      asked.resolve()
      return may.promise
    }
    let ran = false
    const ended = outcome(() => (ran = true), { signal: controller.signal, mayStart })
    await asked.promise
    controller.abort()
    expect(await ended).toEqual({ status: 'cancelled', started: false })
    may.resolve(true)
    await turn()
    expect(ran).toBe(false)
  })

  test('cancel: at any moment it is told truly whether the tool was started, and leaves no listener', async () => {
    const seen = new Set<string>()
    for (let moment = 0; moment < 40; moment += 1) {
      const controller = new AbortController()
      let asked = false
      let ran = false
      const mayStart = () => {
        expect(controller.signal.aborted).toBe(false)
        asked = true
        return Promise.resolve(true)
      }
      const run: Run = () => {
        expect(controller.signal.aborted).toBe(false)
        ran = true
        return new Promise(() => undefined)
      }
      const ended = outcome(run, { signal: controller.signal, mayStart })
      for (let step = 0; step < moment; step += 1) await Promise.resolve()
      controller.abort()
      expect(await ended).toEqual({ status: 'cancelled', started: ran })
      expect(getEventListeners(controller.signal, 'abort')).toEqual([])
      seen.add(`asked: ${asked}, ran: ${ran}`)
    }
    expect([...seen]).toEqual(['asked: false, ran: false', 'asked: true, ran: false', 'asked: true, ran: true'])
    const { signal } = new AbortController()
    await outcome(() => 'ok', { signal })
    expect(getEventListeners(signal, 'abort')).toEqual([])
  })

  test('cancel: abort listeners that throw or reject do not end the process', async () => {
    const controller = new AbortController()
    const started = promise()
    const run: Run = (_input, { signal }) => {
      const removed = () => expect.unreachable()
      signal.addEventListener('abort', removed)
      signal.removeEventListener('abort', removed)
      signal.addEventListener('abort', () => {
        throw new Error('careless')
      })
      // eslint-disable-next-line @typescript-eslint/no-misused-promises -- tools do that
      signal.addEventListener('abort', () => Promise.reject(new Error('careless')), { once: true })
      signal.addEventListener('abort', {
        handleEvent() {
          throw new Error('careless')
        },
      })
      started.resolve()
      return new Promise(() => undefined)
    }
    const { port, lines } = stage([tool(run)])
    const ended = port.run(request({ signal: controller.signal }))
    await started.promise
    controller.abort()
    expect(await ended).toMatchObject({ status: 'cancelled' })
    await turn()
    expect(lines.filter(([, level]) => level === 'warn')).toHaveLength(3)
  })

  test('cancel: fetch and timers of Node take the signal', async () => {
    const controller = new AbortController()
    const started = promise()
    const run: Run = async (_input, { signal }) => {
      const any = AbortSignal.any([signal])
      const sleeping = import('node:timers/promises').then(({ setTimeout }) =>
        setTimeout(60_000, null, { signal: any }),
      )
      started.resolve()
      await expect(sleeping).rejects.toHaveProperty('name', 'AbortError')
      await expect(fetch('http://127.0.0.1:9/', { signal })).rejects.toHaveProperty('name', 'AbortError')
    }
    const { port } = stage([tool(run)])
    const ended = port.run(request({ signal: controller.signal }))
    await started.promise
    controller.abort()
    expect(await ended).toEqual({ status: 'cancelled', started: true })
  })
})

describe('tool: progress', () => {
  test('progress: values are copied, small and at most 64 a second', async () => {
    const seen: unknown[] = []
    const row = { done: 1 }
    const { port, clock } = stage([
      tool(
        (_input, { progress }) => {
          progress(row)
          row.done = 2
          progress('x'.repeat(20_000))
          progress({ text: 'x'.repeat(20_000) })
          progress({ f: () => 1 })
          for (let n = 0; n < 1000; n += 1) progress(n)
          clock.advance(999)
          progress('not yet')
          clock.advance(1)
          progress('next second')
        },
        { timeoutMs: 10_000 },
      ),
    ])
    await port.run(request({ progress: (value) => void seen.push(value), timeoutMs: 10_000 }))
    expect(seen[0]).toEqual({ done: 1 })
    expect(seen[1]).toHaveLength(8192)
    expect(seen.slice(2, -1)).toEqual(Array.from({ length: 60 }, (_, n) => n))
    expect(seen.at(-1)).toBe('next second')
  })

  test('progress: never throws, and says nothing after the end', async () => {
    let later: ((value: unknown) => void) | undefined
    const seen: unknown[] = []
    const progress = (value: unknown) => {
      seen.push(value)
      throw new Error('nobody listens')
    }
    const run: Run = (_input, context) => {
      later = context.progress
      context.progress('first')
      context.progress(new Proxy({}, { ownKeys: () => expect.unreachable() }))
      return 'ok'
    }
    expect(await outcome(run, { progress })).toMatchObject({ status: 'ok' })
    later?.('late')
    expect(seen).toEqual(['first'])
  })
})

describe('tool: verify', () => {
  type Verify = (input: Record<string, unknown>, context: ToolContext) => unknown
  const verifying = (verify: Verify) =>
    stage([tool(() => expect.unreachable(), { verify: verify as never, maxBytes: 256 })])

  test('verify: answers what the function says, with the call’s own input and key', async () => {
    const { port } = verifying((input, { idempotencyKey }) =>
      Promise.resolve({ done: true, result: { ...input, idempotencyKey } }),
    )
    const mayStart = () => expect.unreachable()
    const content = '{"n":1,"idempotencyKey":"k1"}'
    expect(await port.verify(request({ arguments: '{"n":1}', mayStart }))).toEqual({ done: true, content })
    expect(await verifying(() => Promise.resolve({ done: false })).port.verify(request())).toEqual({ done: false })
    expect(await verifying(() => ({ done: null })).port.verify(request())).toEqual({ done: null })
  })

  test('verify: a failure of any kind is null', async () => {
    const trap = new Proxy(
      {},
      {
        get: (_target, key) => {
          if (key === 'then') return undefined
          throw new Error('trap')
        },
      },
    )
    const ways: Verify[] = [
      () => {
        throw new Error('no')
      },
      () => Promise.reject(new Error('no')),
      () => undefined,
      () => 'yes',
      () => ({ done: 'yes' }),
      () => trap,
    ]
    for (const way of ways) expect(await verifying(way).port.verify(request())).toEqual({ done: null })
    expect(await stage([tool(() => 'x')]).port.verify(request())).toEqual({ done: null })
    expect(await stage([]).port.verify(request())).toEqual({ done: null })
  })

  test('verify: is bound in time and output, and a result without text stays done', async () => {
    const hanging = verifying(() => new Promise(() => undefined))
    const ended = hanging.port.verify(request())
    await turn()
    hanging.clock.advance(1000)
    expect(await ended).toEqual({ done: null })
    const long = await verifying(() => ({ done: true, result: 'x'.repeat(999) })).port.verify(request())
    if (!('done' in long) || long.done !== true) throw new Error('not done')
    expect(Buffer.byteLength(long.content)).toBeLessThanOrEqual(256)
    const odd = await verifying(() => ({ done: true, result: 1n })).port.verify(request())
    expect(odd).toMatchObject({ done: true, content: expect.stringContaining('bigint') })
    const controller = new AbortController()
    controller.abort()
    expect(await hanging.port.verify(request({ signal: controller.signal }))).toEqual({ done: null })
  })
})
