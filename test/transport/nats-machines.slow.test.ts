/** Machines of users' own over NATS: whoever has the code runs them, a client spawns and tells them, kills lose nothing. */
import { expect, onTestFinished, test } from 'vitest'
import { createMachine, sendTo } from 'xstate'
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

test('RH2 machines over NATS: its owner is killed between two messages, and the other one goes on', async () => {
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

test('HE1 MH3 machines over NATS: a message that is sent again is taken once, also by the next owner and behind the end', async () => {
  const script = await child('twice', 'w1')
  const client = await join('twice', null)
  const machine = await client.spawn(basket, { id: 'b1', input: { customer: 'Ada' } })
  const channel = await bare('twice')
  const add: ControlRequest = { method: 'send', crew: 'b1', message: { type: 'add', items: 2 }, key: 'k1' }
  // Both at once, and again when the answer could have been lost.
  await Promise.all([channel.ask(add), channel.ask(add)])
  await channel.ask(add)
  expect((await machine.state()).context).toMatchObject({ items: 2 })
  const second = await join('twice', 'w2')
  await second.offer(basket)
  // Whether it was taken by the one that dies meanwhile is not known to whoever sent it.
  const sent = machine.send({ type: 'add', items: 3 }, { key: 'k2' })
  script.process.kill('SIGKILL')
  await sent
  await channel.ask(add)
  await machine.send({ type: 'add', items: 3 }, { key: 'k2' })
  expect((await machine.state()).context).toMatchObject({ items: 5 })
  await machine.send({ type: 'pay' }, { key: 'k3' })
  expect(await machine.result).toMatchObject({ items: 5 })
  await machine.send({ type: 'pay' }, { key: 'k3' })
  await expect(machine.send({ type: 'pay' }, { key: 'k4' })).rejects.toEqual(code('MACHINE_ENDED'))
  await expect(machine.send({ type: 'pay' }, { key: 'k4' })).rejects.toEqual(code('MACHINE_ENDED'))
})

test('DM2 machines over NATS: what is forged or malformed is refused with a code, and nothing of it is journalled', async () => {
  const worker = await join('forged', 'w1')
  await worker.offer(basket, other)
  const channel = await bare('forged')
  const spawn = { method: 'spawn', crew: 'b1', name: 'basket' } as const
  await expect(channel.ask({ ...spawn, input: { customer: '' } })).rejects.toEqual(code('INPUT_INVALID'))
  await expect(channel.ask(spawn)).rejects.toEqual(code('INPUT_INVALID'))
  await expect(channel.ask({ method: 'send', crew: 'b1', message: {}, key: 'k' })).rejects.toEqual(code('CREW_UNKNOWN'))
  expect(await all(worker.list())).toEqual([])
  await expect(channel.ask({ ...spawn, input: { customer: 'A' }, definition: 'f'.repeat(64) })).rejects.toEqual(
    code('STORE_BUSY'),
  )
  await channel.ask({ ...spawn, input: { customer: 'Ada' } })
  const send = (message: unknown, more: object = {}): Promise<unknown> =>
    channel.ask({ method: 'send', crew: 'b1', message, key: 'k', ...more } as ControlRequest)
  await expect(send({ type: 'xstate.done.actor.charge', output: 'free' })).rejects.toEqual(code('MESSAGE_REFUSED'))
  for (const message of [null, 'add', {}, { type: 7 }, { type: 'add', items: -1 }, { type: 'none' }])
    await expect(send(message)).rejects.toEqual(code('INPUT_INVALID'))
  await expect(send({ type: 'pay', large: 'x'.repeat(300_000) })).rejects.toEqual(code('INPUT_INVALID'))
  for (const more of [{ key: '' }, { key: 'k'.repeat(65) }, { from: 'port/promise' }])
    await expect(send({ type: 'pay' }, more)).rejects.toEqual(code('ENVELOPE_INVALID'))
  const client = await join('forged', null)
  const machine = await client.spawn(basket, { id: 'b1', input: { customer: 'Eve' } })
  for (const value of [new Date(), () => 1, Number.NaN])
    await expect(machine.send({ type: 'add', items: value } as never)).rejects.toEqual(code('INPUT_INVALID'))
  await expect(machine.send({ type: 'pay' }, { key: '' })).rejects.toEqual(code('INPUT_INVALID'))
  expect(await machine.state()).toMatchObject({ value: 'open', context: { customer: 'Ada', items: 0 } })
  const types = (await all(client.journal('b1'))).map(({ envelope: { body } }) => body.type)
  expect(types).toEqual(['shard.taken', 'crew.defined'])
  await send({ type: 'add', items: 1 })
  const [taken] = await all(client.journal('b1', 3))
  expect(taken?.envelope).toMatchObject({
    from: 'client/bare',
    to: 'machine/main',
    cause: 'k',
    body: { type: 'add', items: 1 },
  })
})

test('OF1 machines over NATS: a machine is no crew of agents, and a crew is no machine', async () => {
  const worker = await join('mixed', 'w1')
  await worker.offer(basket, other)
  const client = await join('mixed', null)
  await client.spawn(other, { id: 'crew' })
  await client.spawn(basket, { id: 'machine', input: { customer: 'Ada' } })
  const channel = await bare('mixed')
  for (const request of [
    { method: 'state', crew: 'crew' },
    { method: 'events', crew: 'crew' },
    { method: 'spawn', crew: 'crew', name: 'basket' },
    { method: 'current', crew: 'machine' },
    { method: 'start', crew: 'machine', key: 'k', input: 'go' },
    { method: 'pause', crew: 'machine' },
    { method: 'attach', crew: 'new', name: 'basket' },
    { method: 'start', crew: 'new', name: 'basket', key: 'k', input: 'go' },
    { method: 'spawn', crew: 'new', name: 'other' },
  ] as const)
    await expect(channel.ask(request)).rejects.toEqual(code('CREW_INVALID'))
  expect((await all(client.list())).map(({ id }) => id)).toEqual(['crew', 'machine'])
  await expect(client.remove('machine')).rejects.toEqual(code('MESSAGE_REFUSED'))
  await client.cancel('machine')
  await client.cancel('machine')
  expect(await client.show('machine')).toMatchObject({ machine: 'error' })
  const machine = await client.spawn(basket, { id: 'machine' } as never)
  await expect(machine.result).rejects.toEqual(code('RUN_CANCELLED'))
  await client.remove('machine')
})

test('OW OF2 machines over NATS: a worker without the machine does not take it; it waits until somebody comes who has it', async () => {
  const first = await join('alone', 'w1', { machines: [basket] })
  const client = await join('alone', null)
  const machine = await client.spawn(basket, { id: 'b1', input: { customer: 'Ada' } })
  await machine.send({ type: 'add', items: 1 })
  const second = await join('alone', 'w2')
  await second.offer(other)
  await first.close({ graceMs: 0 })
  const impatient = await bare('alone', 1_500)
  const add: ControlRequest = { method: 'send', crew: 'b1', message: { type: 'add', items: 1 }, key: 'k' }
  await expect(impatient.ask(add)).rejects.toEqual(code('WORKER_MISSING'))
  const spawn: ControlRequest = { method: 'spawn', crew: 'b2', name: 'unheard-of' }
  await expect(impatient.ask(spawn)).rejects.toEqual(code('WORKER_MISSING'))
  const sent = machine.send({ type: 'add', items: 5 })
  // One that has it under another definition goes on with it, as with crews, and says so in the journal.
  const third = await join('alone', 'w3')
  const changed = defineMachine(basket.machine, { ...basket.options, promises: { quote: 'pure' } })
  await third.offer(changed)
  await sent
  expect((await client.show('b1')).owner).toBe('w3')
  expect((await machine.state()).context).toMatchObject({ items: 6 })
  await expect(client.spawn(basket, { id: 'b1' } as never)).rejects.toEqual(code('STORE_BUSY'))
  const types = (await all(client.journal('b1'))).map(({ envelope: { body } }) => body.type)
  expect(types.filter((type) => type === 'crew.defined')).toHaveLength(2)
})

test('machines over NATS: of what their killed owner had begun, `once` is unknown and the rest is done again', async () => {
  const script = await child('promises', 'w1')
  const client = await join('promises', null)
  const paying = await client.spawn(basket, { id: 'paying', input: { customer: 'Ada' } })
  const quoting = await client.spawn(basket, { id: 'quoting', input: { customer: 'Bob' } })
  await paying.send({ type: 'pay' })
  await quoting.send({ type: 'add', items: 4 })
  await quoting.send({ type: 'quote' })
  await Promise.all([script.line('charging'), script.line('quoting')])
  let charges = 0
  const second = await join('promises', 'w2')
  await second.offer(basketWith({ charge: async () => `paid ${(charges += 1)}` }))
  script.process.kill('SIGKILL')
  await until(async () => (await paying.state()).value === 'open')
  expect((await paying.state()).context).toMatchObject({ problem: 'EFFECT_UNKNOWN' })
  expect(charges).toBe(0)
  await until(async () => (await quoting.state()).value === 'open')
  expect((await quoting.state()).context).toMatchObject({ price: 8 })
  await paying.send({ type: 'pay' })
  expect(await paying.result).toMatchObject({ receipt: 'paid 1' })
})

test('machines over NATS: one that is moved while its promise runs gets what comes of it at its new owner', async () => {
  const [began, done] = [gate(), gate<string>()]
  let charges = 0
  const charge = (): Promise<string> => {
    charges += 1
    began.open()
    return done.opened
  }
  const workers = { w1: await join('moved', 'w1'), w2: await join('moved', 'w2') }
  for (const each of Object.values(workers)) await each.offer(basketWith({ charge }))
  const machine = await workers.w1.spawn(basketWith({ charge }), { id: 'b1', input: { customer: 'Ada' } })
  await machine.send({ type: 'pay' })
  await began.opened
  const to = (await workers.w1.show('b1')).owner === 'w1' ? 'w2' : 'w1'
  expect(await workers.w1.move('b1', to)).toBe(to)
  expect((await machine.state()).value).toBe('paying')
  done.open('paid once')
  expect(await machine.result).toMatchObject({ receipt: 'paid once' })
  expect(charges).toBe(1)
})

test('RH1 machines over NATS: a schema that throws, and one that fails at its start, are told', async () => {
  const worker = await join('odd', 'w1')
  const never = defineMachine(
    createMachine({
      id: 'never',
      context: () => {
        throw new Error('planted')
      },
    }),
  )
  await worker.offer(never)
  const client = await join('odd', null)
  await expect(client.spawn(never, { input: new Map() } as never)).rejects.toEqual(code('INPUT_INVALID'))
  const machine = await client.spawn(never)
  await expect(machine.result).rejects.toEqual(code('ACTOR_FAILED'))
})

test('NO7 machines over NATS: one stays with its version; other code that decides otherwise refuses it and leaves it alone', async () => {
  const client = await join('versions', null)
  const first = await join('versions', 'w1')
  await first.offer(basket)
  const machine = await client.spawn(basket, { id: 'b1', input: { customer: 'Ada' } })
  await machine.send({ type: 'add', items: 2 })
  const renamed = createMachine({ id: 'basket', initial: 'shut', states: { shut: {} } })
  const other = await join('versions', 'w2')
  await other.offer(defineMachine(renamed, { version: '2' }))
  expect((await client.show('b1')).owner).toBe('w1')
  await first.close({ graceMs: 0 })
  await expect(machine.state()).rejects.toEqual(code('UPGRADE_REFUSED'))
  const again = await join('versions', 'w3')
  await again.offer(basket)
  await machine.send({ type: 'add', items: 2 })
  expect((await machine.state()).context).toMatchObject({ items: 4 })
})

test('machines over NATS: its timers are due at its next owner', async () => {
  const timed = defineMachine(
    createMachine({
      ...{ id: 'timed', initial: 'waiting', output: 'rang' },
      states: { waiting: { after: { 1_500: 'rung' } }, rung: { type: 'final' } },
    }),
  )
  const workers = { w1: await join('timers', 'w1'), w2: await join('timers', 'w2') }
  for (const each of Object.values(workers)) await each.offer(timed)
  const client = await join('timers', null)
  const { result } = await client.spawn(timed)
  const owner = (await client.show('timed')).owner as 'w1' | 'w2'
  await workers[owner].close({ graceMs: 0 })
  expect(await result).toBe('rang')
})

test('machines over NATS: what one says to a machine of another crew comes once, over the death of its worker', async () => {
  const first = await child('letters', 'w1')
  const client = await join('letters', null)
  const second = await join('letters', 'w2')
  const teller = defineMachine(
    createMachine({
      id: 'teller',
      on: { tell: { actions: sendTo({ address: 'b1/machine/main' } as never, { type: 'add', items: 2 } as never) } },
    }),
  )
  await second.offer(basket, teller)
  const machine = await client.spawn(basket, { id: 'b1', input: { customer: 'Ada' } })
  await client.move('b1', 'w1')
  const telling = await client.spawn(teller, { id: 't1' })
  for (let n = 0; n < 5; n += 1) await telling.send({ type: 'tell' })
  first.process.kill('SIGKILL')
  for (let n = 0; n < 5; n += 1) await telling.send({ type: 'tell' })
  await until(async () => ((await machine.state()).context as { items: number }).items >= 20)
  await telling.send({ type: 'tell' })
  await until(async () => ((await machine.state()).context as { items: number }).items > 20)
  expect((await machine.state()).context).toMatchObject({ items: 22 })
})
