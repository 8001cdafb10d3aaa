import { once } from 'node:events'
import { mkdir, readFile, realpath, stat, writeFile } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { createRuntime, defineAgent, defineCrew, defineTool, keyOf, type Runtime } from '../../runtime/index.js'
import { BlobRef } from '../../runtime/codec.js'
import { connectRuntime } from '../../runtime/control-client.js'
import { listenControl } from '../../runtime/control.js'
import { createLog } from '../../runtime/log.js'
import { RemoteRuntime } from '../../runtime/remote-runtime.js'
import type { Runtime as LocalRuntime } from '../../runtime/runtime.js'
import { createLevelJournal } from '../../transport/level-journal.js'
import { passing } from '../../runtime/cli/busy-store.js'
import { clerk, crewFile, ended, Gate, jsonLines, model, scratch, troupe } from './command-line.js'

/** The crew of `crews/desk.mjs`: its definition has the same hash. */
function desk(instructions = 'Answer.') {
  const lookup = defineTool({
    name: 'lookup',
    description: 'Looks a topic up.',
    input: z.object({ topic: z.string() }),
    effect: 'idempotent',
    run: ({ topic }) => `a fact about ${topic}`,
  })
  return defineCrew({
    name: 'desk',
    agents: { clerk: defineAgent({ model: 'openai:gpt-5-mini', tools: [lookup], instructions }) },
    lead: 'clerk',
  })
}

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = []
  for await (const item of items) found.push(item)
  return found
}

/** Resolves when a socket is closed, with an error or not. */
function close(socket: Socket): Promise<void> {
  return new Promise((resolve) => socket.on('error', () => undefined).once('close', () => resolve()))
}

const open: Runtime[] = []

/** A runtime that is closed when the test ends. */
async function runtimeOn(store: string, url: string): Promise<Runtime> {
  const runtime = await createRuntime({
    store,
    log: 'silent',
    durability: 'process',
    providers: { openai: { baseURL: url, apiKey: 'none' } },
  })
  open.push(runtime)
  return runtime
}

beforeEach(() => {
  open.length = 0
})

afterEach(async () => {
  await Promise.all(open.map((runtime) => runtime.close({ graceMs: 0 })))
})

describe('one process', () => {
  test('two runtimes: they share the store, and the second life of a module goes on where the first was', async () => {
    const cwd = await scratch()
    const gate = new Gate()
    const server = await model(clerk({ 2: gate }))
    const store = join(cwd, 'store')
    const before = await runtimeOn(store, server.baseURL)
    const key = keyOf('desk', 'go')
    const first = (await before.spawn(desk())).start('go', { key })
    await gate.reached
    // A reload: the module runs again while the old one is still there.
    const after = await runtimeOn(store, server.baseURL)
    const handle = await after.spawn(desk())
    expect(await handle.start('go', { key }).id).toBe(await first.id)
    await before.close()
    gate.open()
    expect(await handle.start('go', { key }).result).toMatchObject({ output: 'All is known.' })
    await after.close()
    // Closed by its last user: a third one opens it anew.
    const third = await runtimeOn(store, server.baseURL)
    expect(await third.show('desk')).toMatchObject({ runs: [{ status: 'finished' }] })
  })

  test('close and open at once: the new runtime waits until the store is free', async () => {
    const cwd = await scratch()
    const server = await model(clerk())
    const store = join(cwd, 'store')
    const first = await runtimeOn(store, server.baseURL)
    await (await first.spawn(desk())).ask('go')
    const closing = first.close()
    const second = await runtimeOn(store, server.baseURL)
    await closing
    expect(await second.show('desk')).toMatchObject({ id: 'desk' })
  })
})

describe('the socket', () => {
  test('place: in the store and its owner’s alone; gone when the store is closed', async () => {
    const cwd = await scratch()
    const runtime = await runtimeOn(join(cwd, 'store'), 'http://127.0.0.1:1/v1')
    const path = join(cwd, 'store', 'control.sock')
    const found = await stat(path)
    expect({ socket: found.isSocket(), mode: found.mode & 0o777 }).toEqual({ socket: true, mode: 0o600 })
    await runtime.close()
    await expect(stat(path)).rejects.toThrow('ENOENT')
  })

  test('place: a store with a long path is reached through a private folder that it names', async () => {
    const cwd = await scratch()
    const server = await model(clerk())
    const store = join(cwd, 'long'.repeat(20), 'path'.repeat(20))
    await mkdir(store, { recursive: true })
    const runtime = await runtimeOn(store, server.baseURL)
    await (await runtime.spawn(desk())).ask('go')
    const path = (await readFile(join(store, 'control'), 'utf8')).trim()
    expect((await stat(dirname(path))).mode & 0o777).toBe(0o700)
    const { stdout } = await ended(['ps', '--json', '--store', store], { cwd })
    expect(jsonLines(stdout)).toMatchObject([{ id: 'desk' }])
    await runtime.close()
    await expect(stat(dirname(path))).rejects.toThrow('ENOENT')
    await expect(stat(join(store, 'control'))).rejects.toThrow('ENOENT')
  })

  test('stale: what a killed owner left behind is replaced by the next one', async () => {
    const cwd = await scratch()
    const gate = new Gate()
    const server = await model(clerk({ 1: gate }))
    const first = troupe(['run', crewFile('desk.mjs'), '--input', 'go'], { cwd, model: server })
    await gate.reached
    first.child.kill('SIGKILL')
    await first.end
    const store = join(cwd, '.troupe')
    expect((await stat(join(store, 'control.sock'))).isSocket()).toBe(true)
    const runtime = await runtimeOn(store, server.baseURL)
    expect(runtime).not.toBeInstanceOf(RemoteRuntime)
    const { stdout } = await ended(['ps', '--json'], { cwd })
    expect(jsonLines(stdout)).toMatchObject([{ id: 'desk' }])
  })

  test('CB1 busy: a store that a command has for a moment is waited for, told once; one whose owner stays is not', async () => {
    const cwd = await scratch()
    const server = await model(clerk())
    const runtime = (await runtimeOn(join(cwd, '.troupe'), server.baseURL)) as LocalRuntime
    const words = ['run', crewFile('desk.mjs'), '--input', 'go']
    const refused = await ended(words, { cwd, model: server })
    expect(refused.stderr).toContain('STORE_BUSY')
    expect(refused.stderr).not.toContain('waiting')
    passing(runtime)
    const waits = troupe(words, { cwd, model: server })
    await waits.says('the store is in use: waiting for it')
    await runtime.close()
    const end = await waits.end
    expect(end, end.stderr).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect(end.stderr.match(/in use/g)).toHaveLength(1)
  })

  test('CB1 busy: one that passes and never goes is STORE_BUSY in the end', async () => {
    const cwd = await scratch()
    const server = await model(clerk())
    const runtime = (await runtimeOn(join(cwd, '.troupe'), server.baseURL)) as LocalRuntime
    passing(runtime)
    const end = await ended(['run', crewFile('desk.mjs'), '--input', 'go'], { cwd, model: server })
    expect(end).toMatchObject({ code: 1, stderr: expect.stringContaining('STORE_BUSY') as string })
    expect(end.stderr).toContain(`process ${process.pid}`)
  })

  test('busy: a run beside commands that come and go is never refused', async () => {
    const cwd = await scratch()
    const server = await model(clerk())
    const words = ['run', crewFile('desk.mjs')]
    expect((await ended([...words, '--input', 'first'], { cwd, model: server })).code).toBe(0)
    const ends = await Promise.all([
      ended([...words, '--input', 'second'], { cwd, model: server }),
      ...['show', 'show', 'show'].map((command) => ended([command, 'desk'], { cwd })),
    ])
    expect(ends.map(({ code, stderr }) => [code, stderr.includes('STORE_BUSY')])).toEqual(Array(4).fill([0, false]))
  })

  test('none: a store without a socket works, and a second process is told who has it', async () => {
    const cwd = await scratch()
    const store = join(cwd, 'store')
    const journal = createLevelJournal({ path: store, durability: 'process' })
    await journal.open()
    try {
      const end = await ended(['ps', '--store', store, '--json'], { cwd })
      expect(end.code).toBe(1)
      expect(jsonLines(end.stdout)).toMatchObject([{ code: 'STORE_BUSY', details: { pid: process.pid } }])
    } finally {
      await journal.close()
    }
    const nowhere = await listenControl({
      store: join(cwd, 'nowhere'),
      runtime: {} as LocalRuntime,
      crew: () => undefined,
      log: createLog('silent'),
    })
    await nowhere()
  })

  /** Sends bytes and returns everything that comes back. */
  async function talk(path: string, bytes: string | Buffer): Promise<string> {
    const socket = connect(path).setEncoding('utf8')
    let text = ''
    socket.on('data', (piece: string) => (text += piece))
    socket.write(bytes)
    await close(socket)
    return text
  }

  test.each([
    ['noise', Buffer.from([0, 255, 1, 10, 13, 10]), 'ENVELOPE_INVALID'],
    ['no JSON', 'hello\n', 'ENVELOPE_INVALID'],
    ['another protocol', 'GET / HTTP/1.1\r\n\r\n', 'ENVELOPE_INVALID'],
    ['an unknown method', '{"method":"eval","code":"1"}\n', 'ENVELOPE_INVALID'],
    ['a field too many', '{"method":"list","x":1}\n', 'ENVELOPE_INVALID'],
    ['a bad id', '{"method":"show","crew":"../x"}\n', 'ID_INVALID'],
    ['a prototype', '{"method":"show","crew":{"__proto__":[]}}\n', 'ENVELOPE_INVALID'],
    ['a line that never ends', `{"method":"${'x'.repeat(65 * 1_048_576)}`, 'ENVELOPE_TOO_LARGE'],
  ])('garbage: %s is refused, and the next one is served', async (_what, bytes, code) => {
    const cwd = await scratch()
    await runtimeOn(join(cwd, 'store'), 'http://127.0.0.1:1/v1')
    const path = join(cwd, 'store', 'control.sock')
    const [greeting, answer] = jsonLines(await talk(path, bytes))
    expect(greeting).toEqual({ troupe: 1, pid: process.pid })
    expect(answer).toMatchObject({ error: { code } })
    expect(jsonLines(await talk(path, '{"method":"list"}\n')).at(-1)).toEqual({ result: null })
  })

  test('crowd: connections that say nothing are bounded, and closing the store ends them', async () => {
    const cwd = await scratch()
    const runtime = await runtimeOn(join(cwd, 'store'), 'http://127.0.0.1:1/v1')
    const path = join(cwd, 'store', 'control.sock')
    const sockets = Array.from({ length: 300 }, () => connect(path))
    const closed = sockets.map((socket) => close(socket.resume()))
    await Promise.race(closed)
    await runtime.close()
    await Promise.all(closed)
  })
})

describe('a store that another process owns', () => {
  const words = ['run', crewFile('desk.mjs'), '--input', 'go']

  test('client: a crew that runs there is used from here, events, result, journal and all', async () => {
    const cwd = await scratch()
    const gate = new Gate()
    const server = await model(clerk({ 2: gate }))
    const owner = troupe(words, { cwd, model: server })
    await gate.reached
    const runtime = await runtimeOn(join(cwd, '.troupe'), server.baseURL)
    expect(runtime).toBeInstanceOf(RemoteRuntime)
    expect((runtime as RemoteRuntime).owner).toBe(owner.child.pid)
    const crew = await runtime.spawn(desk())
    expect(runtime.crew('desk')).toBe(crew)
    const run = crew.start('go', { key: keyOf('desk', 'go') })
    expect(await run.id).toBe('r2')
    expect(await (await crew.current())?.id).toBe('r2')
    await expect(crew.run('r99').id).rejects.toMatchObject({ code: 'RUN_UNKNOWN' })
    await expect(crew.start([] as never).id).rejects.toMatchObject({ code: 'INPUT_INVALID' })
    const queued = crew.start('more', { data: { tenant: 'a' } })
    await queued.id
    await queued.cancel()
    await expect(queued.result).rejects.toMatchObject({ code: 'RUN_CANCELLED', details: { crewId: 'desk' } })
    const types: string[] = []
    const watching = (async () => {
      for await (const event of run.events) types.push(event.type)
    })()
    gate.open()
    expect(await run.result).toMatchObject({
      runId: 'r2',
      output: 'All is known.',
      rounds: 3,
      usage: { modelCalls: 3 },
    })
    await watching
    expect(types[0]).toBe('troupe.run.queued')
    expect(types.at(-1)).toBe('troupe.run.finished')
    expect((await owner.end).code).toBe(0)
  })

  test('client: leaving a stream cancels nothing, cancel by signal does, and the journal is the same from both sides', async () => {
    const cwd = await scratch()
    const gate = new Gate()
    const server = await model(clerk({ 2: gate }))
    const store = join(cwd, 'store')
    const owner = await runtimeOn(store, server.baseURL)
    const spawned = await owner.spawn(desk())
    // Another module's copy of this process is a client too: it has no other way.
    const runtime = await connectRuntime({ store: await realpath(store), hashOf: () => '0'.repeat(64) })
    const remote = runtime!
    const run = spawned.start({ messages: [{ role: 'user', content: 'x'.repeat(100_000) }] })
    await gate.reached
    await expect(remote.spawn(desk())).rejects.toMatchObject({ code: 'STORE_BUSY', details: { pid: process.pid } })
    await expect(remote.spawn(desk(), { id: 'nobody' })).rejects.toMatchObject({ code: 'STORE_BUSY' })
    const commits = await all(remote.journal('desk'))
    expect(commits).toEqual(await all(owner.journal('desk')))
    expect(commits[1]?.envelope.values[0]).toBeInstanceOf(BlobRef)
    expect(await all(remote.list())).toEqual(await all(owner.list()))
    expect(await remote.show('desk')).toEqual(await owner.show('desk'))
    await expect(remote.remove('desk')).rejects.toMatchObject({ code: 'MESSAGE_REFUSED' })
    for await (const _commit of remote.journal('desk')) break
    await remote.pause('desk')
    await remote.resume('desk')
    await remote.cancel('desk', await run.id)
    await expect(run.result).rejects.toMatchObject({ code: 'RUN_CANCELLED' })
    await remote.remove('desk')
    await expect(remote.show('desk')).rejects.toMatchObject({ code: 'CREW_UNKNOWN' })
    gate.open()
    await remote.close()
    await expect(remote.show('desk')).rejects.toMatchObject({ code: 'RUNTIME_CLOSED' })
  })

  test('owner gone: whoever waits is told with a code that may be retried', async () => {
    const cwd = await scratch()
    const gate = new Gate()
    const server = await model(clerk({ 1: gate }))
    const owner = troupe(words, { cwd, model: server })
    await gate.reached
    const runtime = await runtimeOn(join(cwd, '.troupe'), server.baseURL)
    const run = (await runtime.spawn(desk())).start('go', { key: keyOf('desk', 'go') })
    await run.id
    const result = expect(run.result).rejects.toMatchObject({ code: 'RUNTIME_CLOSED', retryable: true })
    owner.child.kill('SIGKILL')
    await result
    gate.open()
    // The store is free: this process takes it, and the run with it.
    const taken = await runtimeOn(join(cwd, '.troupe'), server.baseURL)
    expect(taken).not.toBeInstanceOf(RemoteRuntime)
    const again = (await taken.spawn(desk())).start('go', { key: keyOf('desk', 'go') })
    expect(await again.result).toMatchObject({ output: 'All is known.' })
  })

  test('edited: a crew with another definition than the owner’s is refused with the pid', async () => {
    const cwd = await scratch()
    const gate = new Gate()
    const server = await model(clerk({ 1: gate }))
    const owner = troupe(words, { cwd, model: server })
    await gate.reached
    const runtime = await runtimeOn(join(cwd, '.troupe'), server.baseURL)
    await expect(runtime.spawn(desk('Answer well.'))).rejects.toMatchObject({
      code: 'STORE_BUSY',
      details: { pid: owner.child.pid },
    })
    gate.open()
    await owner.end
  })

  test('alive: neither a listening owner nor an idle client keeps its process', async () => {
    const cwd = await scratch()
    const index = new URL('../../dist/runtime/index.js', import.meta.url).href
    await writeFile(
      join(cwd, 'idle.mjs'),
      `import { createRuntime } from '${index}'\nawait createRuntime({ store: 'store' })\n`,
    )
    const { spawn } = await import('node:child_process')
    const idle = async (): Promise<unknown> => (await once(spawn(process.execPath, ['idle.mjs'], { cwd }), 'exit'))[0]
    expect(await idle()).toBe(0)
    await runtimeOn(join(cwd, 'store'), 'http://127.0.0.1:1/v1')
    expect(await idle()).toBe(0)
  })
})
