/** Tool workers as real processes: killed, stopped, missing, and in no language of ours. */
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { ModelScript } from '../../actors/scripted-model.js'
import { reply } from '../../actors/scripted-model.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { type FollowedEvent, followEvents } from '../../transport/nats-follower.js'
import { Subjects } from '../../transport/subjects.js'
import type { NatsServer } from '../support/nats-server.js'
import { type Command, crewFile, ended, model, scratch, troupe } from './command-line.js'
import { useNats } from '../support/use-nats.js'

const file = crewFile('remote.mjs')
let server: NatsServer
let link: NatsLink
let count = 0
useNats((nats) => {
  ;({ server, link } = nats)
})

/** An execution that began. */
interface Entry {
  readonly name: string
  readonly word: string
  readonly key: string
  readonly worker: string
  readonly answer: (text: string) => void
  /** The tool gave up. */
  readonly gone: Promise<unknown>
}

/** Where each execution says that it begins: an outside ledger. It answers at once, but holds those that are named. */
async function ledger(held: readonly string[]) {
  const entries: Entry[] = []
  /** What every execution is answered from now on. */
  let answered: string | null = null
  const waiting = new Set<() => void>()
  const server = createServer((request, response: ServerResponse) => {
    const { searchParams } = new URL(request.url ?? '', 'http://ledger')
    const [name = '', word = '', key = '', worker = ''] = ['name', 'word', 'key', 'worker'].map(
      (each) => searchParams.get(each) ?? '',
    )
    const answer = (text: string): void => void response.end(text)
    entries.push({ name, word, key, worker, answer, gone: once(response, 'close') })
    if (answered !== null || !held.includes(name)) answer(answered ?? 'done')
    for (const look of [...waiting]) look()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  const reaches = (number: number): Promise<Entry> =>
    new Promise((resolve) => {
      const look = (): void => {
        if (entries.length < number) return void waiting.add(look)
        waiting.delete(look)
        resolve(entries[number - 1]!)
      }
      look()
    })
  const answerAll = (text: string): void => {
    answered = text
    for (const each of entries) each.answer(text)
  }
  return { entries, reaches, answerAll, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }
}

/** Calls the tools one after the other, then says what they said. */
function calling(...names: string[]): ModelScript {
  return ({ messages }) => {
    const results = messages.filter(({ role }) => role === 'tool')
    const next = names[results.length]
    if (next !== undefined) return reply.call(next, { word: `w${results.length}` })
    return reply.text(results.map(({ content }) => String(content)).join(' | '))
  }
}

/** Workers and tool workers of a namespace of their own. */
async function crowd(
  tools: readonly string[],
  names: readonly string[],
  toolNames: readonly string[],
  held: readonly string[] = [],
) {
  const namespace = `far${process.pid}-${(count += 1)}`
  const cwd = await scratch()
  const book = await ledger(held)
  const scripted = await model(calling(...tools))
  const flags = ['--nats', server.url, '--namespace', namespace]
  const start = async (name: string, ...more: string[]): Promise<Command> => {
    const words = ['worker', file, ...flags, '--name', name, '--lease', '1000', ...more]
    // A tool worker has no key of a model.
    const env = { LEDGER: book.url, OPENAI_API_KEY: more.length > 0 ? '' : 'none' }
    const command = troupe(words, { cwd, model: scripted, env })
    await command.says(`worker ${name} of namespace`)
    return command
  }
  const startTools = (name: string): Promise<Command> => start(name, '--tools-only')
  const workers = new Map<string, Command>()
  for (const name of names) workers.set(name, await start(name))
  for (const name of toolNames) workers.set(name, await startTools(name))
  const run = (...words: string[]): Command =>
    troupe(['run', file, ...flags, '--input', 'go', ...words], { cwd, env: { OPENAI_API_KEY: '' } })
  const events = async (until: (event: FollowedEvent) => boolean): Promise<FollowedEvent[]> => {
    const found: FollowedEvent[] = []
    for await (const each of followEvents({ link, subjects: new Subjects(namespace), since: 'all' })) {
      found.push(each)
      if (until(each)) break
    }
    return found
  }
  const ownerOf = async (): Promise<string> => {
    const all = await events(({ event }) => event.type === 'troupe.tool.called')
    const taken = all.filter(({ event }) => event.type === 'troupe.shard.taken').at(-1)
    return String(taken?.event.data['owner']).split('.')[0]!
  }
  const ask = (...words: string[]) => ended([...words, ...flags], { cwd })
  /** The name of the tool worker whose process it is. */
  const nameOf = ({ worker }: Entry): string =>
    [...workers].find(([, { child }]) => `${child.pid}` === worker)?.[0] ?? ''
  return { namespace, book, workers, start, startTools, run, ask, events, ownerOf, nameOf }
}
type Crowd = Awaited<ReturnType<typeof crowd>>
const kill = ({ workers }: Crowd, name: string): void => void workers.get(name)!.child.kill('SIGKILL')

describe('tool workers', () => {
  test('round trip: a call of each class is done once by a tool worker, and the run is as if it were done here', async () => {
    const all = await crowd(['look', 'put', 'send'], ['w'], ['t1', 't2'])
    const end = await all.run().end
    expect(end, end.stderr).toMatchObject({ code: 0, stdout: 'look done | put done | send done\n' })
    expect(all.book.entries.map(({ name }) => name)).toEqual(['look', 'put', 'send'])
    expect(all.book.entries.map(all.nameOf).every((name) => name.startsWith('t'))).toBe(true)
    expect((await all.ask('journal', 'remote')).stdout.match(/effect\.dispatched/g)).toHaveLength(3)
  })

  test('owner killed while a tool runs: the next owner gets the outcome, and nothing runs twice', async () => {
    const all = await crowd(['send'], ['w1', 'w2'], ['t'], ['send'])
    const running = all.run()
    const entry = await all.book.reaches(1)
    const first = await all.ownerOf()
    kill(all, first)
    await all.events(
      ({ event }) => event.type === 'troupe.shard.taken' && !String(event.data['owner']).startsWith(first),
    )
    entry.answer('kept')
    const end = await running.end
    expect(end, end.stderr).toMatchObject({ code: 0, stdout: 'send kept\n' })
    expect(all.book.entries).toHaveLength(1)
  })

  test('all owners killed: an outcome that comes while there is none waits for the next', async () => {
    const all = await crowd(['send'], ['w1'], ['t'], ['send'])
    const running = all.run()
    const entry = await all.book.reaches(1)
    kill(all, 'w1')
    entry.answer('kept')
    await all.start('w2')
    const end = await running.end
    expect(end, end.stderr).toMatchObject({ code: 0, stdout: 'send kept\n' })
    expect(all.book.entries).toHaveLength(1)
  })

  test('tool worker killed: `pure` and `idempotent` calls go to another with the same key', async () => {
    for (const name of ['look', 'put']) {
      const all = await crowd([name], ['w'], ['t1', 't2'], [name])
      const running = all.run()
      const first = await all.book.reaches(1)
      kill(all, all.nameOf(first))
      const second = await all.book.reaches(2)
      expect(all.nameOf(second)).not.toBe(all.nameOf(first))
      expect(second.key).toBe(first.key)
      // One that loses its lease for a moment, as on a machine that is busy, has its call made once more.
      all.book.answerAll('again')
      const end = await running.end
      expect(end, end.stderr).toMatchObject({ code: 0, stdout: `${name} again\n` })
    }
  })

  test('tool worker killed: a `once` call is unknown, and is not made again', async () => {
    const all = await crowd(['send'], ['w'], ['t1', 't2'], ['send'])
    const running = all.run()
    kill(all, all.nameOf(await all.book.reaches(1)))
    const end = await running.end
    expect(end.stdout, end.stderr).toContain('unknown')
    expect(all.book.entries).toHaveLength(1)
  })

  test('SIGTERM: a tool worker finishes what it has, and gets nothing new', async () => {
    const all = await crowd(['send', 'look'], ['w'], ['t1'], ['send'])
    const running = all.run()
    const entry = await all.book.reaches(1)
    const leaving = all.workers.get('t1')!
    leaving.child.kill('SIGTERM')
    await leaving.says('finishing what runs')
    all.workers.set('t2', await all.startTools('t2'))
    entry.answer('finished')
    expect(await leaving.end).toMatchObject({ code: 0 })
    const end = await running.end
    expect(end, end.stderr).toMatchObject({ code: 0, stdout: 'send finished | look done\n' })
    expect(all.book.entries.map(all.nameOf)).toEqual(['t1', 't2'])
  })

  test('cancel: the run ends, and the tool is told to stop', async () => {
    const all = await crowd(['send'], ['w'], ['t'], ['send'])
    const running = all.run()
    const entry = await all.book.reaches(1)
    expect(await all.ask('cancel', 'remote')).toMatchObject({ code: 0 })
    await entry.gone
    expect((await running.end).stderr).toContain('RUN_CANCELLED')
    expect(all.book.entries).toHaveLength(1)
  })

  test('none there: the call waits for a tool worker to come', async () => {
    const all = await crowd(['send'], ['w'], [])
    const running = all.run()
    await all.workers.get('w')!.says('no worker serves a tool')
    await all.startTools('t')
    const end = await running.end
    expect(end, end.stderr).toMatchObject({ code: 0, stdout: 'send done\n' })
  })

  test('none to offer: a file without remote tools is refused', async () => {
    const words = ['worker', crewFile('desk.mjs'), '--nats', server.url, '--tools-only']
    const end = await ended(words, { cwd: await scratch() })
    expect(end.code).toBe(2)
    expect(end.stderr).toContain('CREW_INVALID')
  })

  test('protocol: a tool server on a bare socket does a call', async () => {
    const all = await crowd(['send'], ['w'], [])
    const script = join(import.meta.dirname, 'bare-tool.ts')
    const words = ['--import', 'jiti/register', script, `${server.port}`, all.namespace, 'bare', 'send']
    const served = execFile(process.execPath, words, { cwd: join(import.meta.dirname, '../..') })
    onTestFinished(() => void served.kill('SIGKILL'))
    let said = ''
    served.stderr!.on('data', (text: string) => (said += text))
    const end = await all.run().end
    expect(end, `${end.stderr}${said}`).toMatchObject({ code: 0, stdout: 'bare says w0\n' })
    expect((await all.ask('journal', 'remote')).stdout).toContain('bare.')
  })
})
