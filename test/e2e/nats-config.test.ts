import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, onTestFinished, test } from 'vitest'
import { reply } from '../../actors/scripted-model.js'
import { connectNats } from '../../transport/nats-connection.js'
import { makeCertificates } from '../support/certificates.js'
import { type NatsServer, type NatsServerOptions, startNatsServer } from '../support/nats-server.js'
import { clerk, crewFile, ended, model, scratch, troupe } from './command-line.js'

const run = promisify(execFile)

/** A server with what the command prints. */
async function serverWith(cwd: string, words: readonly string[], more: NatsServerOptions = {}): Promise<NatsServer> {
  const server = await startNatsServer({
    ...more,
    whole: async ({ port, folder }) => {
      const place = ['--listen', `127.0.0.1:${port}`, '--store-dir', join(folder, 'js')]
      const { code, stdout, stderr } = await ended(['nats-config', ...place, ...words], { cwd })
      expect(code, stderr).toBe(0)
      return stdout
    },
  })
  onTestFinished(() => server.dispose())
  return server
}

describe('troupe nats-config', () => {
  test('NG1 keys: a worker, a client and an observer do their work with the keys and the configuration it made', async () => {
    const cwd = await scratch()
    const server = await serverWith(cwd, ['--out', 'keys', '--client', 'ada', 'eve', '--namespace', 'shop'])
    const scripted = await model(clerk())
    const as = (user: string): string[] => [
      ...['--nats', server.url, '--namespace', 'shop'],
      ...['--user', user, '--nkey', join('keys', `${user}.nk`)],
    ]
    const file = crewFile('desk.mjs')
    const worker = troupe(['worker', file, '--name', 'w1', ...as('worker')], { cwd, model: scripted })
    await worker.says('worker w1 of namespace shop')
    const end = await ended(['run', file, '--input', 'go', ...as('ada')], { cwd })
    expect(end, end.stderr).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect((await ended(['ps', ...as('eve')], { cwd })).stdout).toContain('desk')
    const watching = troupe(['events', '--since', 'all', ...as('observer')], { cwd })
    await watching.says('run.finished')
    expect(server.log()).not.toContain('Violation')
    const denied = await ended(['events', '--since', 'all', ...as('ada')], { cwd })
    expect(denied).toMatchObject({ code: 1, stdout: '' })
    expect(denied.stderr).toMatch(/^NATS_DENIED: .*publish \$JS\.API\.INFO/)
    const other = await ended(['ps', ...as('eve').with(5, 'ada')], { cwd })
    expect(other.stderr).toMatch(/^NATS_DENIED/)
  })

  test('NG1 tool workers: calls of each class are done with no more rights than it printed', async () => {
    const cwd = await scratch()
    const server = await serverWith(cwd, ['--out', 'keys', '--client', 'ada', '--tools', 't1', '--namespace', 'shop'])
    const calls: string[] = []
    const ledger = createServer((request, response) => {
      calls.push(new URL(request.url ?? '', 'http://ledger').searchParams.get('name') ?? '')
      response.end('done')
    })
    await once(ledger.listen(0, '127.0.0.1'), 'listening')
    onTestFinished(() => void ledger.close())
    const env = { LEDGER: `http://127.0.0.1:${(ledger.address() as AddressInfo).port}` }
    const scripted = await model(({ messages }) => {
      const results = messages.filter(({ role }) => role === 'tool')
      const next = ['look', 'put', 'send'][results.length]
      if (next !== undefined) return reply.call(next, { word: 'w' })
      return reply.text(results.map(({ content }) => String(content)).join(' | '))
    })
    const as = (user: string): string[] => [
      ...['--nats', server.url, '--namespace', 'shop'],
      ...['--user', user, '--nkey', join('keys', `${user}.nk`)],
    ]
    const file = crewFile('remote.mjs')
    const worker = troupe(['worker', file, '--name', 'w1', ...as('worker')], { cwd, model: scripted, env })
    await worker.says('worker w1 of namespace shop')
    const tools = troupe(['worker', file, '--tools-only', '--name', 't1', ...as('t1')], { cwd, env })
    await tools.says('tool worker t1 of namespace shop')
    const end = await ended(['run', file, '--input', 'go', ...as('ada')], { cwd })
    expect(end, end.stderr).toMatchObject({ code: 0, stdout: 'look done | put done | send done\n' })
    expect(calls).toEqual(['look', 'put', 'send'])
    tools.child.kill('SIGTERM')
    expect(await tools.end).toMatchObject({ code: 0 })
    expect(server.log()).not.toContain('Violation')
  })

  test('NG1 secrets: seeds are in files of their owner only, are kept, and are in nothing that is printed', async () => {
    const cwd = await scratch()
    const first = await ended(['nats-config', '--out', 'keys'], { cwd })
    const names = (await readdir(join(cwd, 'keys'))).sort()
    expect(names).toEqual(['client.nk', 'observer.nk', 'tools.nk', 'worker.nk'])
    expect((await stat(join(cwd, 'keys'))).mode & 0o777).toBe(0o700)
    const seeds = await Promise.all(names.map((name) => readFile(join(cwd, 'keys', name), 'utf8')))
    for (const name of names) expect((await stat(join(cwd, 'keys', name))).mode & 0o777).toBe(0o600)
    const second = await ended(['nats-config', '--out', 'keys', '--client', 'client', 'eve'], { cwd })
    expect(await Promise.all(names.map((name) => readFile(join(cwd, 'keys', name), 'utf8')))).toEqual(seeds)
    const keysIn = (text: string): string[] => [...text.matchAll(/nkey: "(U\w{55})"/g)].map(([, key = '']) => key)
    expect(new Set(keysIn(first.stdout)).size).toBe(4)
    expect(keysIn(second.stdout)).toEqual(expect.arrayContaining(keysIn(first.stdout)))
    for (const seed of seeds) expect(JSON.stringify([first, second])).not.toContain(seed.trim())
    await writeFile(join(cwd, 'keys', 'eve.nk'), 'hunter2hunter2')
    const bad = await ended(['nats-config', '--out', 'keys', '--client', 'eve'], { cwd })
    expect(bad).toMatchObject({ code: 2, stdout: '' })
    expect(bad.stderr).toMatch(/^CONFIG_INVALID/)
    expect(bad.stderr).not.toContain('hunter2')
  })

  test('NCF1 passwords: without --out they are variables of the server, and no password is printed', async () => {
    const cwd = await scratch()
    const users = ['WORKER', 'TOOLS', 'CLIENT', 'OBSERVER']
    const env = Object.fromEntries(users.map((user) => [`TROUPE_PASSWORD_${user}`, `secret-of-${user}`]))
    const server = await serverWith(cwd, [], { env })
    for (const user of ['worker', 'tools', 'observer']) {
      const link = await connectNats({ servers: server.url, user, password: `secret-of-${user.toUpperCase()}` })
      await link.connection.close()
    }
    const wrong = connectNats({ servers: server.url, user: 'worker', password: '$TROUPE_PASSWORD_WORKER' })
    await expect(wrong).rejects.toMatchObject({ code: 'NATS_DENIED' })
    await expect(serverWith(cwd, [])).rejects.toThrow(/TROUPE_PASSWORD_WORKER/)
  })

  test('TLS: a server with certificates takes clients of its authority', async () => {
    const cwd = await scratch()
    const { caFile, server: own, client } = await makeCertificates()
    const words = ['--tls-cert', own.certFile, '--tls-key', own.keyFile, '--tls-ca', caFile, '--out', 'keys']
    const { port } = await serverWith(cwd, words)
    const to = [
      '--nats',
      `tls://127.0.0.1:${port}`,
      '--user',
      'observer',
      '--nkey',
      'keys/observer.nk',
      '--tls-ca',
      caFile,
    ]
    const files = ['--tls-cert', client.certFile, '--tls-key', client.keyFile]
    const said = async (...words: readonly string[]) => (await ended(['events', ...to, ...words], { cwd })).stderr
    // There is no stream yet: it has got in. A machine that is very busy is asked again.
    await expect.poll(() => said(...files), { timeout: 120_000 }).toContain('no stream troupe_default_events')
    expect(await said()).toMatch(/^NATS_UNREACHABLE/)
  })

  test('NCF2 options: what would be another configuration is refused, in one line', async () => {
    const cwd = await scratch()
    const said = async (...words: readonly string[]): Promise<unknown[]> => {
      const { code, stdout, stderr } = await ended(['nats-config', ...words], { cwd })
      return [code, stdout, stderr.split(':')[0]]
    }
    for (const name of ['a.b', '*', '>', 'a b', '"} ', '', 'x'.repeat(65), 'ä', '../x'])
      expect(await said('--client', name, '--out', 'keys'), name).toEqual([2, '', 'ID_INVALID'])
    expect(await said('--namespace', 'a.b')).toEqual([2, '', 'ID_INVALID'])
    for (const words of [
      ['--client', 'worker'],
      ['--client', 'a', 'a'],
      ['--client', 'a-b', 'a_B'],
      ['--tools', 'client'],
      ['--listen', '0.0.0.0'],
      ['--listen', '127.0.0.1:4222"\nauthorization {}'],
      ['--store-dir', 'x" }\nauthorization { users: [] } #'],
      ['--store-dir', 'x\\'],
      ['--tls-cert', 'a.pem'],
      ['--tls-ca', 'a.pem'],
      ['--tls-cert', 'a"', '--tls-key', 'b'],
    ])
      expect(await said(...words), words.join(' ')).toEqual([2, '', 'CONFIG_INVALID'])
    const odd = await ended(['nats-config', '--store-dir', "it's # a {folder} $HOME", '--namespace', 'default-1'], {
      cwd,
    })
    await writeFile(join(cwd, 'odd.conf'), odd.stdout.replaceAll(/password: \$\w+/g, 'password: "x"'))
    await run('nats-server', ['-t', '-c', join(cwd, 'odd.conf')])
  })
})
