/** Machines of users' own over NATS: whoever has the code runs them, a client spawns and tells them, kills lose nothing. */
import { expect, onTestFinished, test } from 'vitest'
import { createMachine } from 'xstate'
import type { ControlRequest } from '../../runtime/control-wire.js'
import { createRuntime, defineAgent, defineMachine, type DistributedRuntime } from '../../runtime/index.js'
import type { Channel } from '../../runtime/remote-runtime.js'
import { connectNats } from '../../transport/nats-connection.js'
import { createDoorClient } from '../../transport/nats-door-client.js'
import { Subjects } from '../../transport/subjects.js'
import { basketWith } from '../support/basket-machine.js'
import { type Script, startScript } from '../support/child.js'
import { gate, until } from '../support/crew-stage.js'
import type { NatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'
import { code } from '../support/values.js'

let server: NatsServer
useNats((nats) => {
  server = nats.server
})

const basket = basketWith()
const other = defineAgent({ name: 'other', model: 'scripted:m', instructions: 'x' })

/** A worker of this process, or a client. */
async function join(namespace: string, worker: string | null, more: object = {}): Promise<DistributedRuntime> {
  const role = worker === null ? { role: 'client' as const } : { worker, leaseMs: 1_000 }
  const providers = { scripted: { baseURL: 'http://127.0.0.1:9' } }
  const nats = { servers: server.url, namespace, ...role }
  const runtime = await createRuntime({ nats, providers, log: 'silent', ...more })
  onTestFinished(() => runtime.close({ graceMs: 0 }))
  return runtime as DistributedRuntime
}

/** A worker in a process of its own, whose promises say that they began and never end. */
async function child(namespace: string, worker: string): Promise<Script> {
  const nats = { servers: server.url, namespace, worker, leaseMs: 1_000 }
  const script = startScript(`
    import { createRuntime } from '#root/runtime/index.js'
    import { basketWith } from '#root/test/support/basket-machine.js'
    const begin = (what) => () => {
      console.log(what)
      return new Promise(() => undefined)
    }
    const runtime = await createRuntime({ nats: ${JSON.stringify(nats)}, log: 'silent' })
    await runtime.offer(basketWith({ quote: begin('quoting'), charge: begin('charging') }))
    console.log('ready')
  `)
  onTestFinished(() => script[Symbol.asyncDispose]())
  await script.line('ready')
  return script
}

/** Asks as a program without our library would. */
async function bare(namespace: string, patienceMs = 30_000): Promise<Channel> {
  const link = await connectNats({ servers: server.url })
  const channel = createDoorClient({ link, subjects: new Subjects(namespace), client: 'bare', patienceMs })
  onTestFinished(async () => {
    channel.close()
    await link.connection.close()
  })
  return channel
}

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = []
  for await (const item of items) found.push(item)
  return found
}

test('machines over NATS: a client spawns one, tells it and waits; it runs where its code is', async () => {
  const worker = await join('used', 'w1')
  await worker.offer(basket)
  const client = await join('used', null)
  const machine = await client.spawn(basket, { id: 'b1', input: { customer: ' Ada ' } })
  const { result } = machine
  const live = all(machine.events())
  await machine.send({ type: 'add', items: 2 })
  // The schema of its messages fills in what is missing, where its code is.
  await machine.send({ type: 'add' } as never)
  expect(await machine.state()).toEqual({
    ...{ status: 'active', value: 'open' },
    context: { customer: 'Ada', items: 3, price: null, receipt: null, problem: null },
  })
  await machine.send({ type: 'quote' })
  await until(async () => ((await machine.state()).context as { price: number | null }).price === 6)
  expect(await client.show('b1')).toMatchObject({ crew: 'basket', machine: 'active', owner: 'w1' })
  await machine.send({ type: 'pay' })
  expect(await result).toEqual({ customer: 'Ada', items: 3, receipt: 'paid' })
  const again = await client.spawn(basket, { id: 'b1', input: { customer: 'Bob' } })
  expect(await again.result).toEqual({ customer: 'Ada', items: 3, receipt: 'paid' })
  expect(await again.state()).toMatchObject({ status: 'done', output: { customer: 'Ada' } })
  await expect(again.send({ type: 'pay' })).rejects.toEqual(code('MACHINE_ENDED'))
  const events = await live
  expect(events.filter(({ type }) => type === 'troupe.machine.emitted')).toHaveLength(2)
  expect(events.at(-1)?.type).toBe('troupe.machine.finished')
  // Behind the last event there is nothing to wait for.
  expect(await all(machine.events({ since: events.at(-1)!.id }))).toEqual([])
  expect((await all(machine.events({ since: events.at(-3)!.id }))).map(({ id }) => id)).toEqual(
    events.slice(-2).map(({ id }) => id),
  )
  await client.remove('b1')
  await expect(machine.send({ type: 'pay' })).rejects.toEqual(code('CREW_UNKNOWN'))
})

test('RA2 machines over NATS: its owner is killed between two messages, and the other one goes on', async () => {
  const first = await child('killed', 'w1')
  const client = await join('killed', null)
  const machine = await client.spawn(basket, { id: 'b1', input: { customer: 'Ada' } })
  await machine.send({ type: 'add', items: 2 })
  const second = await join('killed', 'w2')
  await second.offer(basket)
  expect((await client.show('b1')).owner).toMatch(/w[12]/)
  await client.move('b1', 'w1')
  const { result } = machine
  await machine.send({ type: 'add', items: 3 })
  first.process.kill('SIGKILL')
  await machine.send({ type: 'add', items: 5 })
  expect((await client.show('b1')).owner).toBe('w2')
  expect((await machine.state()).context).toMatchObject({ items: 10 })
  await machine.send({ type: 'pay' })
  expect(await result).toEqual({ customer: 'Ada', items: 10, receipt: 'paid' })
})
