import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type FollowedEvent, followEvents } from '../../transport/nats-follower.js'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { Subjects } from '../../transport/subjects.js'
import { type NatsServer, startNatsServer } from '../support/nats-server.js'
import { clerk, type Command, crewFile, ended, Gate, model, scratch, troupe } from './command-line.js'

const desk = crewFile('desk.mjs')
let server: NatsServer
let link: NatsLink
let count = 0
beforeAll(async () => {
  server = await startNatsServer()
  link = await connectNats({ servers: server.url })
})
afterAll(async () => {
  await link.connection.close()
  await server.dispose()
})

/** Workers of a namespace of their own. */
async function crowd(names: readonly string[], gates: Readonly<Record<number, Gate>> = {}) {
  const namespace = `e2e${process.pid}-${(count += 1)}`
  const cwd = await scratch()
  const scripted = await model(clerk(gates))
  const flags = ['--nats', server.url, '--namespace', namespace]
  const start = async (name: string): Promise<Command> => {
    const command = troupe(['worker', desk, ...flags, '--name', name, '--lease', '1000'], { cwd, model: scripted })
    await command.says(`worker ${name} of namespace`)
    return command
  }
  const workers = new Map<string, Command>()
  for (const name of names) workers.set(name, await start(name))
  const run = (...words: string[]): Command =>
    // Whoever only asks needs no key.
    troupe(['run', desk, ...flags, '--input', 'go', ...words], { cwd, env: { OPENAI_API_KEY: '' } })
  const ask = (...words: string[]) => ended([...words, ...flags], { cwd })
  /** Events of the namespace so far. */
  const events = async (until: (event: FollowedEvent) => boolean): Promise<FollowedEvent[]> => {
    const found: FollowedEvent[] = []
    for await (const each of followEvents({ link, subjects: new Subjects(namespace), since: 'all' })) {
      found.push(each)
      if (until(each)) return found
    }
    return found
  }
  const ownerOf = (all: readonly FollowedEvent[]): string => {
    const taken = all.filter(({ event }) => event.type === 'troupe.shard.taken').at(-1)
    return String(taken?.event.data['owner']).split('.')[0]!
  }
  return { workers, start, run, ask, events, ownerOf, scripted, namespace }
}

describe('workers over NATS', () => {
  test('workers: a run is done by one of three, and whoever asks sees what a local one shows', async () => {
    const { run, ask } = await crowd(['w1', 'w2', 'w3'])
    const end = await run().end
    expect(end, end.stderr).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    const again = await run().end
    expect(again).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect((await ask('ps')).stdout).toContain('desk')
    expect((await ask('show', 'desk')).stdout).toContain('done · 3 rounds')
    expect((await ask('journal', 'desk')).stdout).toContain('shard.taken')
    expect((await ask('rm', 'desk')).code).toBe(0)
    expect((await ask('show', 'desk')).stderr).toContain('CREW_UNKNOWN')
  })

  test('DI1 kill -9: the crew goes on with another worker; whoever waits notices a pause', async () => {
    const gate = new Gate()
    const { workers, run, events, ownerOf, scripted } = await crowd(['w1', 'w2', 'w3'], { 3: gate })
    const running = run()
    await gate.reached
    const first = ownerOf(await events(({ event }) => event.type === 'troupe.model.called'))
    workers.get(first)!.child.kill('SIGKILL')
    gate.open()
    const end = await running.end
    expect(end, end.stderr).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    const all = await events(({ event }) => event.type === 'troupe.run.finished')
    expect(ownerOf(all)).not.toBe(first)
    // Three rounds, and the one that was cut again.
    expect(scripted.requests.count).toBe(4)
  })

  test('kill -9 of all: the next worker takes up what is open, without anybody asking for it', async () => {
    const gate = new Gate()
    const { workers, start, run, events } = await crowd(['w1'], { 2: gate })
    const running = run()
    await gate.reached
    running.child.kill('SIGKILL')
    workers.get('w1')!.child.kill('SIGKILL')
    gate.open()
    await start('w2')
    const all = await events(({ event }) => event.type === 'troupe.run.finished')
    expect(all.at(-1)!.event.data).toMatchObject({ code: null })
  })

  test('protocol: a client with a bare socket gives a task, hears its events and has its result over a kill', async () => {
    const gate = new Gate()
    const { workers, events, ownerOf, namespace } = await crowd(['w1', 'w2'], { 3: gate })
    const script = join(import.meta.dirname, 'bare-client.ts')
    const words = ['--import', 'jiti/register', script, `${server.port}`, namespace, 'desk', 'go']
    const client = execFile(process.execPath, words, { cwd: join(import.meta.dirname, '../..') })
    let said = ''
    client.stdout!.on('data', (text: string) => (said += text))
    await gate.reached
    workers.get(ownerOf(await events(({ event }) => event.type === 'troupe.model.called')))!.child.kill('SIGKILL')
    gate.open()
    const [code] = (await once(client, 'close')) as [number]
    expect(code, said).toBe(0)
    expect(said).toContain('output All is known.')
    for (const type of ['run.started', 'tool.finished', 'shard.taken', 'run.finished'])
      expect(said).toContain(`event troupe.${type}`)
  })

  test('DI2 WO1 SIGTERM: a worker hands over; the call that it still has is not made again; a second signal ends it', async () => {
    const gate = new Gate()
    const { workers, run, events, ownerOf, scripted } = await crowd(['w1', 'w2'], { 2: gate })
    const running = run()
    await gate.reached
    const first = ownerOf(await events(({ event }) => event.type === 'troupe.model.called'))
    const leaving = workers.get(first)!
    leaving.child.kill('SIGTERM')
    await events(({ event }) => event.type === 'troupe.shard.left')
    gate.open()
    const end = await running.end
    expect(end, end.stderr).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect(await leaving.end).toMatchObject({ code: 0 })
    expect(scripted.requests.count).toBe(3)
    const [stubborn] = [...workers.values()].filter((worker) => worker !== leaving)
    stubborn!.child.kill('SIGINT')
    stubborn!.child.kill('SIGINT')
    expect(await stubborn!.end).toMatchObject({ code: 130 })
  })
})
