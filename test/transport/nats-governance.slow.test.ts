/** What workers share over NATS beside journals and mail: breakers, and what people are asked. */
import { onTestFinished, expect, test } from 'vitest'
import { z } from 'zod'
import { fault, reply, startScriptedModel } from '../../actors/scripted-model.js'
import type { Breakers } from '../../runtime/breakers.js'
import { Breakers as ProcessBreakers } from '../../runtime/breakers.js'
import { createRuntime, defineAgent, defineTool, type DistributedRuntime } from '../../runtime/index.js'
import { systemClock } from '../../runtime/system-clock.js'
import { NatsBreakers } from '../../transport/nats-breakers.js'
import { connectNats } from '../../transport/nats-connection.js'
import { Subjects } from '../../transport/subjects.js'
import { until } from '../support/crew-stage.js'
import type { NatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'

let server: NatsServer
useNats((nats) => {
  server = nats.server
})

async function join(
  namespace: string,
  worker: string | null,
  baseURL: string,
  more: object = {},
): Promise<DistributedRuntime> {
  const role = worker === null ? { role: 'client' as const } : { worker, leaseMs: 1_000 }
  const runtime = await createRuntime({
    nats: { servers: server.url, namespace, ...role },
    providers: { scripted: { baseURL } },
    ...more,
  })
  onTestFinished(() => runtime.close({ graceMs: 0 }))
  return runtime as DistributedRuntime
}

test('breakers over NATS: a client is told by any worker which of them keep somebody back, also one that called nobody', async () => {
  const model = await startScriptedModel(() => fault.status(500))
  onTestFinished(() => model.close())
  const clerk = defineAgent({ name: 'clerk', model: 'scripted:m', instructions: 'x', limits: { attempts: 1 } })
  const breakers = { failures: 1, cooldownMs: 600_000 }
  const worker = await join('told', 'w1', model.baseURL, { breakers })
  await worker.offer(clerk)
  const client = await join('told', null, model.baseURL)
  expect(await client.breakers()).toEqual([])
  await expect((await client.spawn(clerk, { id: 'q' })).ask('go')).rejects.toMatchObject({ code: 'MODEL_FAILED' })
  const open = { target: 'model/scripted:m', state: 'open', until: expect.any(Number) as number, why: 'failed' }
  await until(async () => (await client.breakers()).length === 1)
  expect(await client.breakers()).toEqual([open])
  await worker.close({ graceMs: 0 })
  await join('told', 'w2', model.baseURL, { breakers })
  expect(await client.breakers()).toEqual([open])
})

test('asks over NATS: a client answers what a crew asks, by its own name, wherever the crew is by then', async () => {
  const model = await startScriptedModel(({ messages }) =>
    messages.at(-1)?.role === 'tool' ? String(messages.at(-1)?.content) : reply.call('pay', { usd: 5 }),
  )
  onTestFinished(() => model.close())
  const pay = defineTool({
    ...{ name: 'pay', description: 'Pays.', input: z.object({ usd: z.number() }), approval: true },
    run: ({ usd }) => `paid ${usd}`,
  })
  const till = defineAgent({ name: 'till', model: 'scripted:m', instructions: 'Pay.', tools: [pay] })
  const workers = { w1: await join('asks', 'w1', model.baseURL), w2: await join('asks', 'w2', model.baseURL) }
  for (const each of Object.values(workers)) await each.offer(till)
  const client = await join('asks', null, model.baseURL)
  const crew = await client.spawn(till, { id: 'q' })
  const run = crew.start('go')
  await until(async () => (await client.asks('q')).length === 1)
  const [ask] = await client.asks('q')
  expect(ask).toMatchObject({ kind: 'approval', agent: 'till', arguments: '{"usd":5}' })
  const first = (await client.show('q')).owner as 'w1' | 'w2'
  const other = first === 'w1' ? 'w2' : 'w1'
  expect(await client.move('q', other)).toBe(other)
  expect(await client.asks('q')).toEqual([ask])
  await client.approve('q', ask!.id, { arguments: { usd: 1 }, by: 'somebody else' })
  expect((await run.result).output).toBe('paid 1')
  await expect(client.deny('q', ask!.id)).rejects.toMatchObject({ code: 'ASK_CLOSED' })
  const said: unknown[] = []
  for await (const event of run.events) if (event.type === 'troupe.human.answered') said.push(event.data)
  expect(said).toMatchObject([{ decision: 'approved', edited: true, by: expect.not.stringContaining('somebody') }])
})

test('breakers over NATS: what one worker has found out keeps the crews of all workers from asking again', async () => {
  let failures = 0
  const model = await startScriptedModel(({ model: name }) => {
    if (name !== 'dead') return 'well'
    failures += 1
    return fault.status(500)
  })
  onTestFinished(() => model.close())
  const clerk = defineAgent({ name: 'clerk', model: ['scripted:dead', 'scripted:m'], instructions: 'x' })
  const breakers = { breakers: { failures: 2, cooldownMs: 60_000 } }
  const names = ['w1', 'w2', 'w3']
  const workers = await Promise.all(names.map((name) => join('shared', name, model.baseURL, breakers)))
  for (const each of workers) await each.offer(clerk)
  const client = await join('shared', null, model.baseURL)
  for (let index = 0; index < 12; index++) {
    const crew = await client.spawn(clerk, { id: `c${index}` })
    expect((await crew.ask('go')).output).toBe('well')
  }
  const owners = new Set<unknown>()
  for await (const { owner } of client.list()) owners.add(owner)
  expect(owners.size).toBeGreaterThan(1)
  // Two opened it; whoever was on its way when it did may have asked too.
  expect(failures).toBeLessThanOrEqual(4)
})

test('breakers over NATS: one probe a cooldown in fifty trials, also when the prober dies', {
  timeout: 120_000,
}, async () => {
  const subjects = new Subjects('probes')
  const settings = { failures: 1, cooldownMs: 150, probeMs: 400 }
  const processes: Breakers[] = []
  for (let index = 0; index < 6; index++) {
    const link = await connectNats({ servers: server.url })
    const store = await NatsBreakers.open({ link, subjects })
    onTestFinished(async () => {
      store.close()
      await link.connection.close()
    })
    processes.push(new ProcessBreakers({ store, clock: systemClock, settings }))
  }
  let calls = 0
  /** Everybody asks until somebody may. */
  const probers = async (target: string): Promise<{ readonly by: Breakers; readonly call: string }[]> => {
    const asked = await Promise.all(
      processes.map(async (by) => {
        const call = `p${(calls += 1)}`
        return { by, call, ...(await by.ask(target, call, 'only')) }
      }),
    )
    return asked.filter(({ granted }) => granted)
  }
  const nextProbe = async (target: string) => {
    // Whoever has not heard yet that it is open would take it for closed.
    await until(async () => {
      const early = await probers(target)
      for (const { by, call } of early) by.done(target, call, { verdict: 'none', cooling: null })
      return early.length === 0
    })
    for (;;) {
      const found = await probers(target)
      if (found.length > 0) return found
    }
  }
  for (let trial = 0; trial < 50; trial++) {
    const target = `model/t:${trial}`
    const [first] = processes
    await first!.ask(target, 'f', 'only')
    first!.done(target, 'f', { verdict: 'failed', cooling: null })
    const once = await nextProbe(target)
    expect(once).toHaveLength(1)
    if (trial % 2 === 0) {
      once[0]!.by.done(target, once[0]!.call, { verdict: 'failed', cooling: null })
      expect(await nextProbe(target)).toHaveLength(1)
      continue
    }
    // This one is never heard of again.
    const startedAt = systemClock.monotonic()
    const after = await nextProbe(target)
    expect(after).toHaveLength(1)
    expect(systemClock.monotonic() - startedAt).toBeGreaterThan(250)
    after[0]!.by.done(target, after[0]!.call, { verdict: 'answered', cooling: null })
    await until(async () => {
      const asked = await probers(target)
      for (const { by, call } of asked) by.done(target, call, { verdict: 'answered', cooling: null })
      return asked.length === processes.length
    })
  }
})
