/**
 * Programs that load twice: a development server that reloads its modules and never closes the old ones, a web handler
 * whose client goes away and comes back.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { createRuntime, defineAgent, defineTool, reply, type Run, startScriptedModel } from 'troupe'
import { z } from 'zod'
import { type ScriptedRequest, toolResults } from '../../actors/scripted-model.js'
import { gate } from '../support/crew-stage.js'
import { model, providers, startLive, temporaryFolder } from '../support/live-crew.js'

type Troupe = typeof import('troupe')

/** Another copy of the package, as a reload makes one: every module is evaluated anew. */
async function reload(): Promise<Troupe> {
  vi.resetModules()
  return import('troupe')
}

describe('reload: two copies of the program in one process', () => {
  test('two reloads share one worker; the old one is never closed, the new definition wins', async () => {
    using folder = temporaryFolder()
    const heard: string[] = []
    const slow = gate()
    await using provider = await startScriptedModel(async (request) => {
      const system = String(request.messages[0]?.content)
      heard.push(system)
      if (system === 'one') await slow.opened
      return `answer of ${system}`
    })
    const options = {
      store: folder.path,
      durability: 'process',
      providers: providers(provider.baseURL),
      log: 'silent',
    } as const
    const load = async (troupe: Troupe, instructions: string) => {
      const runtime = await troupe.createRuntime(options)
      return { runtime, crew: await runtime.spawn(troupe.defineAgent({ name: 'desk', model, instructions })) }
    }
    const first = await load(await reload(), 'one')
    const running = first.crew.start('go', { key: 'a' })
    await running.id
    const second = await load(await reload(), 'two')
    const third = await load(await reload(), 'three')
    expect(third.runtime.constructor).not.toBe(first.runtime.constructor)
    slow.open()
    await expect(running.result).resolves.toMatchObject({ output: 'answer of one' })
    await expect(third.crew.ask('go', { key: 'b' })).resolves.toMatchObject({ output: 'answer of three' })
    // Whoever still holds an old handle reaches the same crew, under its present definition.
    await expect(first.crew.ask('go', { key: 'c' })).resolves.toMatchObject({ output: 'answer of three' })
    expect(await second.crew.ask('go', { key: 'a' })).toEqual(await running.result)
    expect(heard).toEqual(['one', 'three', 'three'])
    await third.runtime.close()
    await expect(second.crew.ask('go', { key: 'd' })).resolves.toMatchObject({ output: 'answer of three' })
    await second.runtime.close()
    await first.runtime.close()
    // The last one closed the store: it can be opened anew.
    const fourth = await load(await reload(), 'four')
    await expect(fourth.crew.ask('go', { key: 'b' })).resolves.toMatchObject({ output: 'answer of three' })
    await fourth.runtime.close()
  })

  test('the same request that comes through two copies at once is one run', async () => {
    using folder = temporaryFolder()
    await using provider = await startScriptedModel(() => 'hi')
    const options = {
      store: folder.path,
      durability: 'process',
      providers: providers(provider.baseURL),
      log: 'silent',
    } as const
    const copies = [await reload(), await reload()]
    const runtimes = await Promise.all(copies.map((troupe) => troupe.createRuntime(options)))
    const crews = await Promise.all(
      runtimes.map((runtime, index) =>
        runtime.spawn(copies[index]!.defineAgent({ name: 'desk', model, instructions: 'x' })),
      ),
    )
    const results = await Promise.all([...crews, ...crews].map((crew) => crew.ask('go', { key: 'k' })))
    expect(new Set(results.map(({ runId }) => runId)).size).toBe(1)
    expect(provider.requests.count).toBe(1)
    for (const runtime of runtimes) await runtime.close()
  })

  test('tools of the new copy run for a crew that the old one began, with large values between them', async () => {
    using folder = temporaryFolder()
    const slow = gate()
    await using provider = await startScriptedModel(async (request) => {
      if (toolResults(request).length > 0) return `told ${toolResults(request)[0]?.content.length}`
      await slow.opened
      return reply.call('look')
    })
    const options = {
      store: folder.path,
      durability: 'process',
      providers: providers(provider.baseURL),
      log: 'silent',
    } as const
    const load = async (size: number) => {
      const troupe = await reload()
      const look = troupe.defineTool({
        name: 'look',
        description: '',
        input: z.object({}),
        effect: 'pure',
        run: () => 'x'.repeat(size),
      })
      const runtime = await troupe.createRuntime(options)
      return {
        runtime,
        crew: await runtime.spawn(troupe.defineAgent({ name: 'desk', model, instructions: 'x', tools: [look] })),
      }
    }
    const old = await load(10)
    const run = old.crew.start('go')
    await run.id
    const young = await load(200_000)
    slow.open()
    await expect(run.result).resolves.toMatchObject({ output: 'told 200000' })
    await young.runtime.close()
    await old.runtime.close()
  })

  beforeEach(() => void vi.resetModules())
  afterEach(() => void vi.resetModules())
})

describe('reload: a web handler and a client that comes back', () => {
  const look = defineTool({
    name: 'look',
    description: '',
    input: z.object({ round: z.number() }),
    effect: 'pure',
    run: ({ round }) => `seen ${round}`,
  })
  const agent = defineAgent({ name: 'desk', model, instructions: 'x', tools: [look] })

  /** Serves runs as a framework does: a `Request` in, a `Response` out. */
  async function serve(handle: (request: Request) => Promise<Response>) {
    const answer = async (message: IncomingMessage, response: ServerResponse) => {
      const gone = new AbortController()
      response.on('close', () => gone.abort())
      const headers = new Headers(
        Object.entries(message.headers).map(([name, value]): [string, string] => [name, String(value)]),
      )
      const result = await handle(new Request(`http://x${message.url}`, { headers, signal: gone.signal }))
      response.writeHead(result.status, Object.fromEntries(result.headers))
      const reader = result.body!.getReader()
      gone.signal.addEventListener('abort', () => void reader.cancel().catch(() => undefined))
      for (let next = await reader.read(); !next.done; next = await reader.read()) response.write(next.value)
      response.end()
    }
    const server = createServer((message, response) => void answer(message, response).catch(() => response.destroy()))
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const { port } = server.address() as AddressInfo
    return {
      port,
      async [Symbol.asyncDispose]() {
        server.closeAllConnections()
        await new Promise((resolve) => server.close(resolve))
      },
    }
  }

  /** A client that reads so many events and then drops the line; gives the ids, the last one cut off is not among them. */
  function read(port: number, lastEventId: string | null, most: number): Promise<{ ids: string[]; ended: boolean }> {
    return new Promise((resolve, reject) => {
      const socket = connect(port, '127.0.0.1')
      let text = ''
      const look = (ended: boolean) => {
        const blocks = text.split('\n\n').slice(0, -1)
        const ids = blocks.flatMap((block) => /^(?:[0-9a-f]+\r\n)?id: (.+)$/m.exec(block)?.[1]?.trim() ?? [])
        if (ids.length < most && !ended) return
        socket.destroy()
        resolve({ ids: ids.slice(0, most), ended: ended && ids.length <= most })
      }
      socket.setEncoding('utf8').on('data', (data) => {
        text += String(data)
        look(text.includes('\r\n0\r\n\r\n'))
      })
      socket.on('end', () => look(true)).on('error', reject)
      const header = lastEventId === null ? '' : `Last-Event-ID: ${lastEventId}\r\n`
      socket.write(`GET /run HTTP/1.1\r\nHost: x\r\n${header}\r\n`)
    })
  }

  test('a client that reconnects with Last-Event-ID misses nothing and repeats nothing, and cancels nothing', async () => {
    const rounds = 6
    const steps = Array.from({ length: rounds }, () => gate())
    const script = async (request: ScriptedRequest) => {
      const round = request.messages.filter(({ role }) => role === 'assistant').length
      await steps[round]?.opened
      return round < rounds ? reply.call('look', { round }) : 'done'
    }
    await using live = await startLive(script)
    const crew = await live.runtime.spawn(agent)
    const run = crew.start('go')
    const id = await run.id
    await using server = await serve((request) => {
      const since = request.headers.get('last-event-id')
      return Promise.resolve(crew.run(id).toResponse({ signal: request.signal, ...(since === null ? {} : { since }) }))
    })
    const seen: string[] = []
    let last: string | null = null
    for (const step of steps) {
      const { ids } = await read(server.port, last, 2)
      seen.push(...ids)
      last = seen.at(-1) ?? null
      step.open()
    }
    for (;;) {
      const { ids, ended } = await read(server.port, last, 3)
      seen.push(...ids)
      last = seen.at(-1) ?? null
      if (ended) break
    }
    await expect(run.result).resolves.toMatchObject({ output: 'done', rounds: rounds + 1 })
    const stored: string[] = []
    for await (const event of (crew.run(id) as Run).events) stored.push(event.id)
    expect(seen).toEqual(stored)
    // A browser comes back even after the end: it is told nothing, and the line is closed.
    expect(await read(server.port, last, 1)).toEqual({ ids: [], ended: true })
  })

  test('a client that comes back after the process was closed and opened again goes on from its cursor', async () => {
    using folder = temporaryFolder()
    await using provider = await startScriptedModel((request) =>
      toolResults(request).length === 0 ? reply.call('look', { round: 1 }) : 'done',
    )
    const options = {
      store: folder.path,
      durability: 'process',
      providers: providers(provider.baseURL),
      log: 'silent',
    } as const
    const all: string[] = []
    {
      await using runtime = await createRuntime(options)
      const run = (await runtime.spawn(agent)).start('go', { key: 'k' })
      for await (const event of run.events) if (!event.id.includes('live')) all.push(event.id)
    }
    await using runtime = await createRuntime(options)
    const run = (await runtime.spawn(agent)).start('go', { key: 'k' })
    await using server = await serve((request) =>
      Promise.resolve(run.toResponse({ since: request.headers.get('last-event-id')! })),
    )
    expect(await read(server.port, all[4]!, 1_000)).toEqual({ ids: all.slice(5), ended: true })
  })
})
