import { once } from 'node:events'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { createToolPort } from '../../actors/tool.js'
import { type AnyTool, defineTool, ToolError } from '../../runtime/define.js'
import type { Draft } from '../../runtime/envelope.js'
import { TroupeError } from '../../runtime/errors.js'
import { createLog } from '../../runtime/log.js'
import type { RemotePlace, ToolOutcome, ToolPort, ToolRequest } from '../../runtime/ports.js'
import { systemClock } from '../../runtime/system-clock.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { NatsToolWorker, type ToolWorkerOptions } from '../../transport/nats-tool-worker.js'
import { type RemoteProgress, RemoteTools, type RemoteToolsOptions } from '../../transport/nats-tools.js'
import { Subjects } from '../../transport/subjects.js'
import { maxStartBytes } from '../../transport/tool-work.js'
import { gate } from '../support/crew-stage.js'
import { request as plain } from '../support/tool-stage.js'
import { useNats } from '../support/use-nats.js'

const wait = { timeout: 10_000 }
const log = createLog('silent')
let link: NatsLink
let namespace: string
let subjects: Subjects
let count = 0
const closing: (() => unknown)[] = []
useNats((nats) => {
  link = nats.link
})
beforeEach(() => {
  namespace = `tools${++count}`
  subjects = new Subjects(namespace)
})
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close()
})

/** A tool that takes a word. */
function tool(
  name: string,
  run: AnyTool['run'],
  more: { concurrency?: number; effect?: 'pure' | 'once' } = {},
): AnyTool {
  const input = z.object({ word: z.string() })
  return defineTool({ name, description: '', input, remote: true, ...more, run: run as () => unknown })
}

/** A tool worker with these tools, and the letters that it sent. */
async function toolWorker(name: string, tools: readonly AnyTool[], more: Partial<ToolWorkerOptions> = {}) {
  const sent: { readonly shard: string; readonly letter: Draft }[] = []
  const known = new Map(tools.map((each) => [each.name, each]))
  const worker = new NatsToolWorker({
    ...{ link, subjects, log, worker: name, owner: () => `${name}.1` },
    tools: createToolPort({
      tools: () => known,
      deps: null,
      log: () => log,
      clock: systemClock,
      concurrency: () => Number.POSITIVE_INFINITY,
    }),
    send: async (shard, letter) => void sent.push({ shard, letter }),
    ...more,
  })
  for (const each of tools) worker.offer(each.name, each)
  await link.connection.flush()
  closing.push(() => worker.close(0))
  return { worker, sent }
}

/** The owner's half of a worker, as a port that sends every call away. */
function owner(name = 'w', more: Partial<RemoteToolsOptions> = {}): ToolPort {
  const remote = new RemoteTools({
    ...{ link, subjects, log, worker: name, lives: () => true, show: () => undefined },
    release: () => undefined,
    ...more,
  })
  closing.push(() => remote.close())
  const none = (): never => expect.unreachable('the call was made here')
  return remote.route({ run: none, verify: none }, () => true)
}

/** A request, and the places that were recorded for it. */
function call(change: Partial<ToolRequest> = {}): ToolRequest & { readonly recorded: RemotePlace[] } {
  const recorded: RemotePlace[] = []
  const mayStart = async (place?: RemotePlace): Promise<boolean> => {
    recorded.push(place!)
    return true
  }
  const request = plain({ effect: '1-0', arguments: '{"word":"x"}', timeoutMs: 5_000, mayStart, ...change })
  return Object.assign(request, { recorded })
}
const ask = async (subject: string, body: unknown): Promise<unknown> => {
  const data = typeof body === 'string' ? body : JSON.stringify(body)
  return (await link.connection.request(subject, data, { timeout: 2_000 })).json()
}
const place = (name: string, change: object = {}): Promise<{ place: string; busy?: true }> =>
  ask(subjects.tool(name), { shard: 's1', effect: '1-0', term: 1, ...change }) as Promise<{ place: string }>
const start = (worker: string, change: object = {}): Promise<unknown> =>
  ask(subjects.start(worker), {
    ...{ shard: 's1', effect: '1-0', term: 1, work: 'run', tool: 'work', arguments: '{"word":"x"}', timeoutMs: 5_000 },
    ...{ idempotencyKey: 'k', agent: 'a', run: 'r1', callId: 'c', data: null, owner: 'w' },
    outcome: subjects.mail('s1', `outcome/${worker}`),
    ...change,
  })
const refused = (code: string): unknown => expect.objectContaining({ error: expect.objectContaining({ code }) })

describe('remote tools: the owner', () => {
  test('NRT1 give: the place is recorded, then the call is started there, and its outcome goes to the shard', async () => {
    const order: string[] = []
    const { sent } = await toolWorker('t', [
      tool('work', ({ word }: { word: string }) => (order.push('ran'), `<${word}>`)),
    ])
    const given = await owner().run(
      call({
        mayStart: async (place) => {
          expect(place).toMatchObject({ executor: 't.1', withinMs: 10_000 })
          await link.connection.flush()
          order.push('recorded')
          return true
        },
      }),
    )
    expect(given).toEqual({ status: 'given' })
    await expect.poll(() => sent, wait).toHaveLength(1)
    expect(order).toEqual(['recorded', 'ran'])
    expect(sent[0]).toMatchObject({
      shard: 's1',
      letter: { to: 'outcome/t', cause: '1-0', body: { executor: 't.1', status: 'ok' }, values: ['<x>'] },
    })
  })

  test('NRT1 give: a call whose record was refused is started nowhere, and its place is given back', async () => {
    const { worker, sent } = await toolWorker('t', [tool('work', () => expect.unreachable(), { concurrency: 1 })])
    const port = owner('w', { release: (_, shard, effect) => worker.cancel(shard, [effect]) })
    expect(await port.run(call({ mayStart: () => Promise.resolve(false) }))).toEqual({ status: 'dropped' })
    expect(await port.run(call({ mayStart: () => Promise.reject(new Error('fenced')) }))).toEqual({ status: 'dropped' })
    expect(await place('work', { effect: '2-0' })).toHaveProperty('place')
    expect([worker.running, sent.length]).toEqual([0, 0])
  })

  test('NRT2 wait: with no worker a call waits, says so, and is done when one comes', async () => {
    const shown = gate<unknown>()
    const given = owner().run(call({ timeoutMs: 60_000, progress: shown.open }))
    expect(await shown.opened).toBe('waiting: no worker serves work')
    const { sent } = await toolWorker('t', [tool('work', () => 'done')])
    expect(await given).toEqual({ status: 'given' })
    await expect.poll(() => sent, wait).toHaveLength(1)
  })

  test('NRT2 wait: behind its own time a call that nobody serves is told as not made, whatever its class', async () => {
    const asked = call({ timeoutMs: 100 })
    expect(await owner().run(asked)).toMatchObject({ status: 'failed', kind: 'unserved' })
    expect(await owner().verify(call({ timeoutMs: 100 }))).toEqual({ done: null })
    expect(asked.recorded).toEqual([])
  })

  test('NRT2 wait: calls for a full worker wait without a bound, and none is lost', async () => {
    const open = gate()
    let [now, most] = [0, 0]
    const run = async (): Promise<void> => {
      most = Math.max(most, (now += 1))
      await open.opened
      now -= 1
    }
    const { sent } = await toolWorker('t', [tool('work', run, { concurrency: 2 })])
    const port = owner()
    const all = Array.from({ length: 8 }, (_, index) => port.run(call({ effect: `${index + 1}-0`, timeoutMs: 1_000 })))
    await expect.poll(() => now, wait).toBe(2)
    open.open()
    expect(await Promise.all(all)).toEqual(Array.from({ length: 8 }, () => ({ status: 'given' })))
    await expect.poll(() => sent, wait).toHaveLength(8)
    expect(most).toBe(2)
  })

  test('NRT2 wait: a shard that goes and a call that is cancelled leave at once', async () => {
    const [going, cancelled] = [new AbortController(), new AbortController()]
    const left = owner().run(call({ leaving: going.signal }))
    const ended = owner().run(call({ signal: cancelled.signal }))
    going.abort()
    cancelled.abort()
    expect(await left).toEqual({ status: 'dropped' })
    expect(await ended).toEqual({ status: 'cancelled', started: false })
  })

  test('NRT3 refused: a call whose place is over when it is started gets another one', async () => {
    const { sent, worker } = await toolWorker('t', [tool('work', () => 'done')])
    let tries = 0
    const given = await owner().run(
      call({
        mayStart: async () => {
          // Asked by another owner meanwhile, the worker denied that it has the call.
          if ((tries += 1) === 1) worker.working('s1', ['1-0'])
          return true
        },
      }),
    )
    expect(given).toEqual({ status: 'given' })
    await expect.poll(() => sent, wait).toHaveLength(1)
    expect([tries, worker.refused]).toEqual([2, 1])
  })

  test('NRT3 give: a worker that is not known to live yet gets nothing', async () => {
    await toolWorker('t', [tool('work', () => 'done')])
    const released: string[] = []
    let lives = false
    const port = owner('w', {
      lives: () => lives,
      release: (executor) => {
        released.push(executor)
        lives = true
      },
    })
    const asked = call()
    expect(await port.run(asked)).toEqual({ status: 'given' })
    expect([released, asked.recorded.length]).toEqual([['t.1'], 1])
  })

  test('large: arguments and data above a message come in parts; above the bound the model is told', async () => {
    const run = ({ word }: { word: string }, { data }: { data: { list: string } }): string =>
      `${word.length} ${data.list.length}`
    const { sent } = await toolWorker('t', [tool('work', run)])
    const word = 'ä'.repeat(200_000)
    const large = { arguments: JSON.stringify({ word }), data: { list: 'x'.repeat(3_000_000) } }
    expect(await owner().run(call(large))).toEqual({ status: 'given' })
    await expect.poll(() => sent[0]?.letter.values, wait).toEqual(['200000 3000000'])
    const tooLarge = call({ data: 'x'.repeat(maxStartBytes) })
    const told = (await owner().run(tooLarge)) as Extract<ToolOutcome, { status: 'failed' }>
    expect(told).toMatchObject({ status: 'failed', kind: 'told' })
    expect(told.message).toContain('at most')
    expect(tooLarge.recorded).toEqual([])
  })

  test('progress: comes to the worker that gave the call, and only under the name of the one that works on it', async () => {
    const shown: RemoteProgress[] = []
    const run = (_: object, { progress }: { progress: (value: unknown) => void }): void => progress({ percent: 50 })
    await toolWorker('t', [tool('work', run)])
    await owner('w', { show: (progress) => void shown.push(progress) }).run(call())
    const forged = JSON.stringify({ shard: 's1', effect: '1-0', executor: 't.1', value: 'forged' })
    link.connection.publish(subjects.progress('w', 'other'), forged)
    link.connection.publish(subjects.progress('w', 't'), 'nonsense')
    link.connection.publish(subjects.progress('w', 't'), JSON.stringify({ ...JSON.parse(forged), value: 'last' }))
    await expect.poll(() => shown.at(-1)?.value, wait).toBe('last')
    expect(shown.map(({ value }) => value)).toEqual([{ percent: 50 }, 'last'])
  })
})

describe('remote tools: the tool worker', () => {
  test('TO1 start: an effect is started once, however often its start comes, and never without its place', async () => {
    let ran = 0
    const { worker, sent } = await toolWorker('t', [tool('work', () => (ran += 1))])
    const { place: id } = await place('work')
    expect(await start('t', { place: 'other' })).toEqual(refused('MESSAGE_REFUSED'))
    expect(await start('t', { place: id, effect: '2-0' })).toEqual(refused('MESSAGE_REFUSED'))
    expect(await start('t', { place: id })).toEqual({ started: true })
    expect(await start('t', { place: id })).toEqual({ started: true })
    await expect.poll(() => sent, wait).toHaveLength(1)
    expect(await start('t', { place: id })).toEqual({ started: true })
    expect(await place('work')).toEqual(refused('MESSAGE_REFUSED'))
    expect([ran, worker.refused]).toEqual([1, 3])
  })

  test('TO1 start: behind its time, and under another lease, a place is worth nothing', async () => {
    let epoch = 1
    const { sent } = await toolWorker('t', [tool('work', () => 'x')], {
      owner: () => (epoch === 0 ? null : `t.${epoch}`),
    })
    const { place: id } = await place('work')
    epoch = 2
    expect(await start('t', { place: id })).toEqual(refused('MESSAGE_REFUSED'))
    epoch = 0
    expect(await place('work')).toEqual({ busy: true })
    const short = await toolWorker('u', [tool('brief', () => 'x')], { placeMs: 1 })
    const { place: brief } = await place('brief')
    const until = performance.now() + 2
    while (performance.now() < until) await link.connection.flush()
    expect(await start('u', { place: brief, tool: 'brief' })).toEqual(refused('MESSAGE_REFUSED'))
    expect([sent.length, short.sent.length]).toEqual([0, 0])
  })

  test('TO2 TO4 working: what it has it owns up to, what it denied or was told to cancel it does not start', async () => {
    const open = gate<string>()
    const { worker, sent } = await toolWorker('t', [tool('work', () => open.opened)])
    const { place: denied } = await place('work', { effect: '1-0' })
    expect(worker.working('s1', ['1-0', '9-9'])).toEqual([])
    expect(await start('t', { place: denied })).toEqual(refused('MESSAGE_REFUSED'))
    const { place: cancelled } = await place('work', { effect: '2-0' })
    worker.cancel('s1', ['2-0'])
    expect(await start('t', { place: cancelled, effect: '2-0' })).toEqual(refused('MESSAGE_REFUSED'))
    const { place: kept } = await place('work', { effect: '3-0' })
    expect(await start('t', { place: kept, effect: '3-0' })).toEqual({ started: true })
    expect(worker.working('s1', ['1-0', '3-0'])).toEqual(['3-0'])
    expect(worker.working('s2', ['3-0'])).toEqual([])
    open.open('done')
    await expect.poll(() => sent, wait).toHaveLength(1)
    expect(worker.working('s1', ['3-0'])).toEqual(['3-0'])
  })

  test('TO2 cancel: a call that runs has its signal aborted, and nobody hears of it', async () => {
    const aborted = gate()
    const run = async (_: object, { signal }: { signal: AbortSignal }): Promise<void> => {
      if (!signal.aborted) await once(signal, 'abort')
      aborted.open()
    }
    const { worker, sent } = await toolWorker('t', [tool('work', run)])
    const { place: id } = await place('work')
    await start('t', { place: id })
    worker.cancel('s1', ['1-0'])
    await aborted.opened
    expect([worker.running, worker.working('s1', ['1-0'])]).toEqual([0, []])
    await link.connection.flush()
    expect(sent).toEqual([])
  })

  test('TO3 stale owner: behind one with a higher term an earlier one gets no place and starts nothing', async () => {
    const { sent } = await toolWorker('t', [tool('work', () => 'x')])
    const { place: early } = await place('work', { effect: '1-0', term: 4 })
    expect(await place('work', { effect: '8-0', term: 7 })).toHaveProperty('place')
    expect(await start('t', { place: early, term: 4 })).toEqual(refused('SHARD_FENCED'))
    expect(await place('work', { effect: '2-0', term: 4 })).toEqual(refused('SHARD_FENCED'))
    expect(await place('work', { shard: 's2', term: 1 })).toHaveProperty('place')
    expect(sent).toEqual([])
  })

  test('TO4 outcome: while it is not stored the worker answers for the call; one that cannot be sent it denies', async () => {
    const stored = gate()
    const { worker } = await toolWorker('t', [tool('work', () => 'x')], { send: () => stored.opened })
    const { place: id } = await place('work')
    await start('t', { place: id })
    expect(worker.working('s1', ['1-0'])).toEqual(['1-0'])
    stored.open()
    const failing = await toolWorker('u', [tool('other', () => 'x')], {
      send: () => Promise.reject(new Error('denied')),
    })
    const { place: second } = await place('other')
    await start('u', { place: second, tool: 'other' })
    await expect.poll(() => failing.worker.working('s1', ['1-0']), wait).toEqual([])
  })

  test('TO5 TW1 hostile: malformed, oversized, headless and forged messages are refused and counted', async () => {
    const { worker, sent } = await toolWorker('t', [tool('work', ({ word }: { word: string }) => word)])
    for (const body of ['', '{', '[]', 'null', '{"shard":"a.b","effect":"1-0","term":1}', '{"shard":"s"}'])
      expect(await ask(subjects.tool('work'), body)).toEqual(refused('ENVELOPE_INVALID'))
    expect(await ask(subjects.tool('work'), 'x'.repeat(20_000))).toEqual(refused('ENVELOPE_TOO_LARGE'))
    expect(await place('work', { more: true })).toEqual(refused('ENVELOPE_INVALID'))
    const { place: id } = await place('work')
    expect(await start('t', { place: id, timeoutMs: -1 })).toEqual(refused('ENVELOPE_INVALID'))
    expect(await start('t', { place: id, outcome: 'troupe.other.journal.1.s1' })).toEqual(refused('MESSAGE_REFUSED'))
    const before = worker.refused
    // An answer goes to an inbox and nowhere else.
    const listener = link.connection.subscribe(`troupe.${namespace}.mail.>`)
    const question = JSON.stringify({ shard: 's1', effect: '5-0', term: 1 })
    link.connection.publish(subjects.tool('work'), question, { reply: subjects.mail('s1', 'agent/a') })
    await expect.poll(() => worker.refused, wait).toBe(before + 1)
    await link.connection.flush()
    expect(listener.getReceived()).toBe(0)
    listener.unsubscribe()
    // The model's arguments are the tool's own to judge.
    const { place: bad } = await place('work', { effect: '6-0' })
    expect(await start('t', { place: bad, effect: '6-0', arguments: '{"word":7}' })).toEqual({ started: true })
    await expect.poll(() => sent[0]?.letter.body, wait).toMatchObject({ status: 'failed', kind: 'told' })
    expect(sent[0]!.letter.values[0]).toContain('do not fit')
  })

  test('TO6 leave: a worker that leaves takes nothing new, finishes what it has, and ends the rest', async () => {
    const [first, never] = [gate<string>(), gate<string>()]
    const run = ({ word }: { word: string }): Promise<string> => (word === 'x' ? first.opened : never.opened)
    const { worker, sent } = await toolWorker('t', [tool('work', run)])
    const { place: one } = await place('work')
    await start('t', { place: one })
    const { place: held } = await place('work', { effect: '2-0' })
    const closed = worker.close(60_000)
    expect(await start('t', { place: held, effect: '2-0' })).toEqual(refused('MESSAGE_REFUSED'))
    await expect(place('work', { effect: '3-0' })).rejects.toThrow('no responders')
    first.open('done')
    await closed
    expect(sent).toHaveLength(1)
    const hasty = await toolWorker('u', [tool('slow', run)])
    const { place: lost } = await place('slow')
    await start('u', { place: lost, tool: 'slow', arguments: '{"word":"y"}' })
    await hasty.worker.close(0)
    never.open('late')
    await link.connection.flush()
    expect(hasty.sent).toEqual([])
  })

  test('words: what a tool says no with is told, and that a result is too large to be sent', async () => {
    const run = ({ word }: { word: string }): string => {
      if (word === 'x') throw new ToolError('not x')
      return word
    }
    const sent: Draft[] = []
    const send = async (_: string, letter: Draft): Promise<void> => {
      if (letter.values[0] === 'large') throw new TroupeError('ENVELOPE_TOO_LARGE', 'too many bytes')
      sent.push(letter)
    }
    await toolWorker('t', [tool('work', run)], { send })
    await owner().run(call())
    await owner().run(call({ effect: '2-0', arguments: '{"word":"large"}' }))
    await expect.poll(() => sent, wait).toHaveLength(2)
    expect(sent.map(({ body }) => body)).toMatchObject([{ kind: 'told' }, { kind: 'unserialisable' }])
    expect(sent[1]!.values[0]).toContain('too many bytes')
  })
})
