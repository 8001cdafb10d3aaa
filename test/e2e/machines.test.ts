/** `troupe` with a file whose default export is a machine: in a store, and over NATS. */
import { expect, onTestFinished, test } from 'vitest'
import { createRuntime, type MachineDefinition, type Runtime } from '../../runtime/index.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import type { NatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'
import { crewFile, ended, jsonLines, scratch, troupe } from './command-line.js'
import { gather } from './crowd.js'

let server: NatsServer
let link: NatsLink
useNats((nats) => {
  ;({ server, link } = nats)
})

const file = crewFile('basket.mjs')
const { default: basket } = (await import(file)) as { readonly default: MachineDefinition }
const input = '{"customer":"Ada"}'

/** A program beside the command, that tells the machine. */
async function teller(options: object): Promise<Runtime> {
  const runtime = await createRuntime({ log: 'silent', ...options })
  onTestFinished(() => runtime.close({ graceMs: 0 }))
  return runtime
}

test('CM1 machines: one is run in a store, told by another process, and its output is the answer, again and again', async () => {
  const cwd = await scratch()
  const words = ['run', file, '--input', input]
  const running = troupe(words, { cwd })
  await running.says('basket open')
  const beside = await teller({ store: `${cwd}/.troupe` })
  const machine = await beside.spawn(basket, { id: 'basket' })
  await machine.send({ type: 'add', items: 2 } as never)
  await running.says('emitted {"type":"added","items":2}')
  expect(await machine.state()).toMatchObject({ status: 'active', context: { customer: 'Ada', items: 2 } })
  expect((await ended(['show', 'basket'], { cwd })).stdout).toContain('machine/main  open')
  expect((await ended(['ps'], { cwd })).stdout).toMatch(/basket +\d+ +idle/)
  // It stops in order, and the same command goes on with it.
  running.child.kill('SIGINT')
  const stopped = await running.end
  expect(stopped).toMatchObject({ code: 130, stdout: '' })
  expect(stopped.stderr).toContain(`go on with: troupe run`)
  await expect(machine.send({ type: 'close' } as never)).rejects.toMatchObject({ code: 'RUNTIME_CLOSED' })
  expect(await ended(['show', 'basket'], { cwd })).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('MACHINE_UNKNOWN') as string,
  })
  const again = troupe(words, { cwd })
  await again.says('basket open')
  const second = await teller({ store: `${cwd}/.troupe` })
  const known = await second.spawn(basket, { id: 'basket' })
  // Whoever waits is told before the process that ends with it.
  const { result } = known
  await known.send({ type: 'close' } as never)
  expect(await result).toEqual({ customer: 'Ada', items: 2 })
  const end = await again.end
  expect(end.code).toBe(0)
  expect(JSON.parse(end.stdout)).toEqual({ customer: 'Ada', items: 2 })
  const told = await ended([...words, '--json'], { cwd })
  expect(told.code).toBe(0)
  expect(jsonLines(told.stdout).at(-1)).toEqual({ type: 'result', id: 'basket', output: { customer: 'Ada', items: 2 } })
})

test('CM2 machines: two commands follow one; the owner of the store is killed, and the other one goes on with it', async () => {
  const cwd = await scratch()
  const words = ['run', file, '--input', input]
  const owner = troupe(words, { cwd })
  await owner.says('basket open')
  const other = troupe(words, { cwd })
  await other.says(`basket open in process ${owner.child.pid}`)
  owner.child.kill('SIGKILL')
  await owner.end
  await other.says('basket open\n')
  const beside = await teller({ store: `${cwd}/.troupe` })
  const machine = await beside.spawn(basket, { id: 'basket' })
  await machine.send({ type: 'close' } as never)
  const end = await other.end
  expect(end.code).toBe(0)
  expect(JSON.parse(end.stdout)).toEqual({ customer: 'Ada', items: 0 })
})

test('CM1 machines: what is wrong with the command is told with a code, and one that is cancelled ends it', async () => {
  const cwd = await scratch()
  const refused = [
    [['--input', 'no json'], 'INPUT_INVALID'],
    [['--input', '{"customer":7}'], 'INPUT_INVALID'],
    [[], 'INPUT_INVALID'],
    [['--input', input, '--new'], 'CONFIG_INVALID'],
    [['--input', input, '--id', 'a/b'], 'ID_INVALID'],
  ] as const
  for (const [words, code] of refused) {
    const end = await ended(['run', file, ...words], { cwd })
    expect(end).toMatchObject({ code: 2, stdout: '', stderr: expect.stringContaining(`${code}:`) as string })
  }
  const running = troupe(['run', file, '--input', input, '--id', 'b1'], { cwd })
  await running.says('b1 open')
  expect((await ended(['steer', 'b1', 'hello'], { cwd })).stderr).toMatch(/^[A-Z_]+: /)
  expect((await ended(['pause', 'b1'], { cwd })).stderr).toContain('CREW_INVALID')
  expect(await ended(['cancel', 'b1'], { cwd })).toMatchObject({ code: 0 })
  expect(await running.end).toMatchObject({ code: 1, stderr: expect.stringContaining('RUN_CANCELLED') as string })
})

test('CM1 machines over NATS: a command follows one while its workers are killed, and a client tells it', async () => {
  const crowd = await gather({ server, link, names: ['w1', 'w2'], script: () => 'unused', crew: 'basket.mjs' })
  const running = crowd.run('--input', input, '--id', 'b1')
  await running.says('b1 open')
  const nats = { servers: server.url, namespace: crowd.namespace, role: 'client' }
  const client = await teller({ nats })
  const machine = await client.spawn(basket, { id: 'b1' })
  await machine.send({ type: 'add', items: 2 } as never)
  await running.says('emitted {"type":"added","items":2}')
  const [row] = jsonLines((await crowd.ask('ps', '--json')).stdout).filter(({ type }) => type === 'crew')
  expect(row).toMatchObject({ id: 'b1', crew: 'basket' })
  crowd.workers.get(String(row!['owner']))!.child.kill('SIGKILL')
  await machine.send({ type: 'add', items: 3 } as never)
  await running.says('emitted {"type":"added","items":3}')
  expect(jsonLines((await crowd.ask('show', 'b1', '--json')).stdout)[0]).toMatchObject({ machine: 'active' })
  const other = crowd.run('--input', input, '--id', 'b2')
  await other.says('b2 open')
  expect(await crowd.ask('cancel', 'b2')).toMatchObject({ code: 0 })
  expect(await other.end).toMatchObject({ code: 1, stderr: expect.stringContaining('RUN_CANCELLED') as string })
  await machine.send({ type: 'close' } as never)
  const end = await running.end
  expect(JSON.parse(end.stdout)).toEqual({ customer: 'Ada', items: 5 })
  expect(await crowd.ask('rm', 'b1')).toMatchObject({ code: 0 })
})
