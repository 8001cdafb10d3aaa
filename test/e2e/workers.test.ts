import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { NatsLink } from '../../transport/nats-connection.js'
import { type NatsServer, startNatsServer } from '../support/nats-server.js'
import { clerk, crewFile, ended, Gate, model, scratch, troupe } from './command-line.js'
import { gather } from './crowd.js'
import { useNats } from '../support/use-nats.js'

let server: NatsServer
let link: NatsLink
useNats((nats) => {
  ;({ server, link } = nats)
})
const crowd = (names: readonly string[], gates: Readonly<Record<number, Gate>> = {}) =>
  gather({ server, link, names, script: clerk(gates) })

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

  test('NV1 events: `troupe events --live` shows tokens of a crew that runs elsewhere', async () => {
    const { namespace, run } = await crowd(['w1'])
    const words = ['events', 'desk', '--live', '--json', '--nats', server.url, '--namespace', namespace]
    const watching = troupe(words, { cwd: await scratch() })
    let shown = ''
    watching.child.stdout!.on('data', (bytes: Buffer) => (shown += bytes.toString()))
    // Who begins to listen is heard of in a second: a run that is over by then shows nothing.
    for (let time = 0; time < 20 && !shown.includes('troupe.model.delta'); time += 1)
      expect((await run('--new').end).code).toBe(0)
    const events = shown
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line) as { type: string; sequence?: string; data: object })
    const deltas = events.filter(({ type }) => type === 'troupe.model.delta')
    expect(deltas[0]).toMatchObject({ data: { agent: expect.any(String) as string } })
    expect(deltas.every(({ sequence }) => sequence === undefined)).toBe(true)
    watching.child.kill('SIGINT')
    expect((await watching.end).code).toBe(130)
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

  test('readme: three workers, a crew for each run, kill -9 of one of them: all go on, and nobody sees more than a pause', async () => {
    const readme = await readFile(join(import.meta.dirname, '../../README.md'), 'utf8')
    const section = readme.slice(readme.indexOf('## Many machines'), readme.indexOf('## Layout'))
    const [worker, run, ps] = [...section.matchAll(/^ {4}troupe (\S.*?)(?: {3,}.*)?$/gm)].map(([, words = '']) => words)
    const own = await startNatsServer()
    onTestFinished(() => own.dispose())
    const cwd = await scratch()
    const gate = new Gate()
    const scripted = await model(clerk({ 2: gate }))
    const words = (line: string, id = 'one') =>
      line
        .split(' ')
        .map((word) => ({ 'crew.ts': crewFile('desk.mjs'), 'nats://127.0.0.1:4222': own.url, one: id })[word] ?? word)
    const workers = [1, 2, 3].map(() => troupe(words(worker!), { cwd, model: scripted }))
    for (const each of workers) await each.says('worker ')
    const ids = ['one', 'two', 'three', 'four']
    const running = ids.map((id) => troupe(words(run!, id), { cwd, model: scripted }))
    await Promise.all(running.map((each) => each.says('lookup')))
    const before = await ended(words(ps!), { cwd })
    const owner = /^one +\S+ +(\S+)/m.exec(before.stdout)?.[1] ?? before.stderr
    const killed = workers.find(({ child }) => owner.includes(`-${child.pid}-`))!
    killed.child.kill('SIGKILL')
    gate.open()
    for (const each of running) {
      const end = await each.end
      expect(end, end.stderr).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    }
    const after = await ended(words(ps!), { cwd })
    for (const id of ids) expect(after.stdout).toMatch(new RegExp(`^${id} `, 'm'))
    expect(after.stdout).not.toContain('at work')
    expect(after.stdout).not.toContain(owner)
  })
})
