import { createLog } from '../../runtime/log.js'
import { connectNats } from '../../transport/nats-connection.js'
import { NatsEvents } from '../../transport/nats-events.js'
import { Subjects } from '../../transport/subjects.js'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { EventSource } from '../support/event-source.js'
import { type NatsServer, startNatsServer } from '../support/nats-server.js'
import { type Command, ended, jsonLines, scratch, troupe } from './command-line.js'

let server: NatsServer
let cwd: string
let count = 0
beforeAll(async () => {
  server = await startNatsServer({ config: 'authorization { users: [ { user: "ada", password: "engine-1843" } ] }' })
})
afterAll(() => server.dispose())
beforeEach(async () => {
  cwd = await scratch()
})

const env = { NATS_USER: 'ada', NATS_PASSWORD: 'engine-1843' }

/** A stream of a namespace of its own. */
async function stream(): Promise<{ source: EventSource; events: NatsEvents; words: string[] }> {
  const namespace = `cli${++count}`
  const link = await connectNats({ servers: server.url, user: 'ada', password: 'engine-1843' })
  const source = await EventSource.open()
  const subjects = new Subjects(namespace)
  const events = await NatsEvents.open({ link, subjects, journal: source.journal, log: createLog('silent') })
  onTestFinished(async () => {
    await events.close()
    await link.connection.close()
  })
  return { source, events, words: ['events', '--nats', server.url, '--namespace', namespace] }
}

async function interrupted(command: Command): Promise<{ readonly code: number | null; readonly stderr: string }> {
  command.child.kill('SIGINT')
  return command.end
}

describe('troupe events', () => {
  test('CE1 events: a line each, with its number, which --since takes', async () => {
    const { source, events, words } = await stream()
    for (let n = 0; n < 3; n++) {
      await source.commit('q3', { count: 1, data: { text: 'a\u001b[31m\nb' } }, events)
      await events.flush()
    }
    const all = troupe([...words, '--since', 'all'], { cwd, env })
    await all.says('     3 ')
    await interrupted(all)
    const { stdout } = await all.end
    expect(stdout.trimEnd().split('\n')).toHaveLength(3)
    expect(stdout).toMatch(/^ {5}1 \d{4}-\d\d-\d\dT\S+Z {2}q3 {2}agent\/writer +model\.replied +n=0 text=a \[31m b$/m)
    const rest = troupe([...words, 'q3', '--since', '2', '--json'], { cwd, env })
    await rest.says('"sequence":"3"')
    await interrupted(rest)
    const lines = jsonLines((await rest.end).stdout)
    expect(lines).toEqual([expect.objectContaining({ specversion: '1.0', id: 'q3-3-0', sequence: '3' })])
  })

  test('CE2 events: a signal ends it with 130, a reader that leaves ends it quietly', async () => {
    const { source, events, words } = await stream()
    for (let n = 0; n < 50; n++) await source.commit('q3', { count: 20 }, events)
    await events.flush()
    const one = troupe([...words, '--since', 'all', '--live'], { cwd, env })
    await one.says('     3 ')
    expect(await interrupted(one)).toMatchObject({ code: 130, stderr: '' })
    const two = troupe([...words, '--since', 'all', '--json'], { cwd, env })
    await two.says('"sequence":"3"')
    two.child.stdout?.destroy()
    await source.commit('q3', { count: 500 }, events)
    expect(await two.end).toMatchObject({ code: 0, stderr: '' })
  })

  test('CN1 connection: a password comes from the environment or a file, and is in no argument and no error', async () => {
    const { source, events, words } = await stream()
    await source.commit('q3', {}, events)
    await events.flush()
    const [right, wrong] = [join(cwd, 'right'), join(cwd, 'wrong')]
    await writeFile(right, 'engine-1843\n')
    await writeFile(wrong, 'nonsense-1843')
    const given = troupe([...words, '--since', 'all', '--user', 'ada', '--password-file', right], { cwd })
    await given.says('     1 ')
    expect(await readFile(`/proc/${given.child.pid}/cmdline`, 'utf8').catch(() => '')).not.toContain('1843')
    expect(await interrupted(given)).toMatchObject({ code: 130 })
    const refused = await ended([...words, '--user', 'ada', '--password-file', wrong], { cwd, env })
    expect(refused).toMatchObject({ code: 1, stdout: '' })
    expect(refused.stderr).toContain('NATS_DENIED')
    expect(refused.stderr).not.toContain('1843')
    const seen = await ended(['events', '--nats', server.url.replace('//', '//ada:engine-1843@')], { cwd })
    expect(seen).toMatchObject({ code: 2, stdout: '' })
    expect(seen.stderr).toContain('NATS_PASSWORD')
    expect(seen.stderr).not.toContain('1843')
  })

  test('usage: what cannot be followed is 2, in one line', async () => {
    const { words } = await stream()
    const said = async (more: readonly string[], first = words) => {
      const { code, stderr } = await ended([...first, ...more], { cwd, env })
      return [code, stderr.split(':')[0]]
    }
    await writeFile(join(cwd, 'seed'), 'no seed\n')
    expect(await said([], ['events'])).toEqual([2, 'CONFIG_INVALID'])
    expect(await said(['--nkey', 'missing'])).toEqual([2, 'CONFIG_INVALID'])
    expect(await said(['--nkey', 'seed'])).toEqual([2, 'CONFIG_INVALID'])
    for (const file of ['--creds', '--password-file', '--tls-ca', '--tls-cert'])
      expect(await said([file, 'missing'])).toEqual([2, 'CONFIG_INVALID'])
    expect(await said(['--namespace', 'nobody'])).toEqual([2, 'CONFIG_INVALID'])
    expect(await said(['--namespace', 'a.b'])).toEqual([2, 'ID_INVALID'])
    expect(await said(['a..b'])).toEqual([2, 'ID_INVALID'])
    expect(await said(['--since', 'yesterday'])).toEqual([2, 'INPUT_INVALID'])
    expect(await said([], ['events', '--nats', 'nats://127.0.0.1:1'])).toEqual([1, 'NATS_UNREACHABLE'])
  })
})
