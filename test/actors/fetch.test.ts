import { execFile } from 'node:child_process'
import { createRequire } from 'node:module'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { once } from 'node:events'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { promisify } from 'node:util'
import { OpenAI } from 'openai'
import { expect, test, vi } from 'vitest'
import { bodyText, BodyTooLargeError, createFetch } from '../../actors/fetch.js'
import { startRawServer } from '../support/raw-server.js'

const completion = {
  id: 'c1',
  object: 'chat.completion',
  created: 1,
  model: 'm',
  choices: [{ index: 0, message: { role: 'assistant', content: 'grüße 🌍' }, finish_reason: 'stop' }],
}

test('fetch: the openai client reads JSON and a stream through it', async () => {
  await using server = await startRawServer((response, { body }) => {
    if (body.includes('"stream":true')) {
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      for (const content of ['a', 'b', 'c']) {
        response.write(`data: ${JSON.stringify({ choices: [{ index: 0, delta: { content } }] })}\n\n`)
      }
      response.end('data: [DONE]\n\n')
    } else {
      response.writeHead(200, { 'content-type': 'application/json', 'x-request-id': 'r1' })
      response.end(JSON.stringify(completion))
    }
  })
  const fetch = createFetch()
  const client = new OpenAI({ apiKey: 'k', baseURL: `${server.url}/v1`, fetch, maxRetries: 0 })
  const request = { model: 'm', messages: [{ role: 'user' as const, content: 'hi' }] }
  const whole = await client.chat.completions.create(request)
  expect(whole.choices[0]?.message.content).toBe('grüße 🌍')
  expect(whole._request_id).toBe('r1')
  let text = ''
  for await (const chunk of await client.chat.completions.create({ ...request, stream: true })) {
    text += chunk.choices[0]?.delta.content ?? ''
  }
  expect(text).toBe('abc')
  expect(server.requests[0]?.headers.authorization).toBe('Bearer k')
  await fetch.close()
})

test('fetch: answers with status, headers and a body that is read once', async () => {
  await using server = await startRawServer((response) => {
    response.writeHead(418, { 'X-One': '1', 'set-cookie': ['a=1', 'b=2'] })
    response.end('\ufeffshort')
  })
  const fetch = createFetch()
  const response = await fetch(`${server.url}/x?y=1`, { method: 'post', body: new TextEncoder().encode('bytes') })
  expect([response.status, response.ok, response.headers.get('x-one')]).toEqual([418, false, '1'])
  expect(response.headers.get('set-cookie')).toBe('a=1, b=2')
  expect([...response.headers.keys()]).toContain('x-one')
  expect([...response.headers].length).toBe([...response.headers.values()].length)
  expect(response.headers.has('x-two')).toBe(false)
  expect(response.headers.get('x-two')).toBeNull()
  expect(await response.text()).toBe('short')
  await expect(response.text()).rejects.toThrow(TypeError)
  expect(server.requests[0]).toMatchObject({ method: 'POST', path: '/x?y=1', body: 'bytes' })
  await fetch.close()
})

test('fetch: the body is a web stream for whoever asks for one', async () => {
  await using server = await startRawServer((response) => response.end('x'.repeat(300_000)))
  const fetch = createFetch()
  const { body } = await fetch(server.url)
  expect(await new Response(body).text()).toHaveLength(300_000)
  expect(await bodyText(await globalThis.fetch(server.url))).toHaveLength(300_000)
  await fetch.close()
})

test('fetch: sequential calls share one socket', async () => {
  await using server = await startRawServer((response) => response.end('{}'))
  const fetch = createFetch()
  for (let i = 0; i < 20; i += 1) await (await fetch(server.url)).json()
  // undici may open a second one when the next call comes in the same tick
  expect(server.opened()).toBeLessThanOrEqual(2)
  await fetch.close()
  await vi.waitFor(() => expect(server.sockets.size).toBe(0))
})

test('fetch: a body above the cap is refused, declared or not, and its socket is destroyed', async () => {
  await using server = await startRawServer((response, { path }) => {
    if (path === '/declared') response.writeHead(200, { 'content-length': 2_000 })
    response.write('x'.repeat(1_500))
    if (path !== '/declared') response.write('x'.repeat(1_500))
  })
  const fetch = createFetch({ maxBodyBytes: 1_999 })
  await expect(fetch(`${server.url}/declared`)).rejects.toThrow(BodyTooLargeError)
  const response = await fetch(`${server.url}/streamed`)
  await expect(response.text()).rejects.toThrow(BodyTooLargeError)
  await vi.waitFor(() => expect(server.sockets.size).toBe(0))
  await fetch.close()
})

test('fetch: a body of exactly the cap is taken', async () => {
  await using server = await startRawServer((response) => response.end('x'.repeat(2_000)))
  const fetch = createFetch({ maxBodyBytes: 2_000 })
  expect(await (await fetch(server.url)).text()).toHaveLength(2_000)
  await fetch.close()
})

test('fetch: a compressed body is unpacked, and the cap holds for what comes out', async () => {
  const bomb = gzipSync('x'.repeat(1_000_000))
  await using server = await startRawServer((response, { path }) => {
    response.writeHead(200, { 'content-encoding': 'gzip' })
    response.end(path === '/bomb' ? bomb : gzipSync('{"a":1}'))
  })
  const fetch = createFetch({ maxBodyBytes: 100_000 })
  expect(await (await fetch(server.url)).json()).toEqual({ a: 1 })
  expect(server.requests[0]?.headers['accept-encoding']).toBe('identity')
  const response = await fetch(`${server.url}/bomb`)
  await expect(response.text()).rejects.toThrow(BodyTooLargeError)
  await fetch.close()
})

test('fetch: redirects are handed back, not followed', async () => {
  await using server = await startRawServer((response) => {
    response.writeHead(307, { location: '/elsewhere' }).end()
  })
  const fetch = createFetch()
  const response = await fetch(server.url, { headers: { authorization: 'Bearer k' } })
  expect([response.status, response.headers.get('location')]).toEqual([307, '/elsewhere'])
  await response.text()
  expect(server.requests).toHaveLength(1)
  await fetch.close()
})

test('fetch: an abort rejects at once before, while waiting and while reading, and closes the socket', async () => {
  await using server = await startRawServer((response, { path }) => {
    if (path === '/body') response.write('some')
  })
  // undici may connect anew after an abort; that idle socket goes like every other
  const fetch = createFetch({ keepAliveMs: 100 })
  const reason = new Error('enough')
  await expect(fetch(server.url, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
  const waiting = new AbortController()
  const answer = fetch(server.url, { signal: waiting.signal })
  await vi.waitFor(() => expect(server.requests).toHaveLength(1))
  waiting.abort(reason)
  await expect(answer).rejects.toBe(reason)
  const reading = new AbortController()
  const response = await fetch(`${server.url}/body`, { signal: reading.signal })
  const text = response.text()
  reading.abort(reason)
  await expect(text).rejects.toBe(reason)
  await vi.waitFor(() => expect(server.sockets.size).toBe(0), 5_000)
  await fetch.close()
})

test('fetch: an abort rejects also while the connection is being made', async () => {
  // a listening socket with a full backlog would do; a server that never finishes TLS is portable
  const mute = createServer(() => undefined).listen(0, '127.0.0.1')
  await once(mute, 'listening')
  const fetch = createFetch()
  const controller = new AbortController()
  const connected = once(mute, 'connection')
  const answer = fetch(`https://127.0.0.1:${(mute.address() as { port: number }).port}`, { signal: controller.signal })
  const [socket] = (await connected) as [import('node:net').Socket]
  controller.abort(new Error('enough'))
  await expect(answer).rejects.toThrow('enough')
  socket.destroy()
  mute.close()
  await fetch.close()
})

test('fetch: a reader that leaves early destroys the socket', async () => {
  await using server = await startRawServer((response) => {
    response.write('data: 1\n\n')
  })
  const fetch = createFetch()
  const { body } = await fetch(server.url)
  for await (const chunk of body ?? []) {
    expect(Buffer.from(chunk).toString()).toBe('data: 1\n\n')
    break
  }
  await vi.waitFor(() => expect(server.sockets.size).toBe(0))
  const unread = await fetch(server.url)
  await unread.body?.cancel()
  await vi.waitFor(() => expect(server.sockets.size).toBe(0))
  await fetch.close()
})

test('fetch: a slow reader holds the sender back', async () => {
  const size = 48 * 1_048_576
  let written = 0
  let blocked: () => void = () => undefined
  const isBlocked = new Promise<void>((resolve) => (blocked = resolve))
  await using server = await startRawServer((response) => {
    const chunk = Buffer.alloc(1_048_576, 120)
    const more = (): void => {
      while (written < size) {
        written += chunk.length
        if (!response.write(chunk)) {
          blocked()
          response.once('drain', more)
          return
        }
      }
      response.end()
    }
    more()
  })
  const fetch = createFetch({ maxBodyBytes: size })
  const response = await fetch(server.url)
  await isBlocked
  // what a fast reader would have taken meanwhile: another call is answered while the first one stands still
  const early = written
  expect(early).toBeLessThan(size)
  let read = 0
  for await (const chunk of response.body ?? []) read += chunk.length
  expect(read).toBe(size)
  await fetch.close()
})

test('fetch: no listener stays on the signal', async () => {
  await using server = await startRawServer((response) => response.end('{}'))
  const fetch = createFetch()
  const { signal } = new AbortController()
  const added = vi.spyOn(signal, 'addEventListener')
  const removed = vi.spyOn(signal, 'removeEventListener')
  for (let i = 0; i < 5; i += 1) await (await fetch(server.url, { signal })).text()
  expect(removed.mock.calls.length).toBe(added.mock.calls.length)
  await fetch.close()
})

test('fetch: a refused connection rejects with its code', async () => {
  const closed = createServer().listen(0, '127.0.0.1')
  await once(closed, 'listening')
  const { port } = closed.address() as { port: number }
  closed.close()
  await once(closed, 'close')
  const fetch = createFetch()
  await expect(fetch(`http://127.0.0.1:${port}`)).rejects.toMatchObject({ code: 'ECONNREFUSED' })
  await fetch.close()
})

test('fetch: idle sockets do not keep the process alive', { timeout: 20_000 }, async () => {
  await using server = await startRawServer((response) => response.end('{}'))
  const folder = mkdtempSync(join(tmpdir(), 'troupe-fetch-'))
  const file = join(folder, 'once.mjs')
  const source = new URL('../../actors/fetch.ts', import.meta.url).href
  const jiti = createRequire(import.meta.url).resolve('jiti')
  writeFileSync(
    file,
    `const { createJiti } = await import(${JSON.stringify(jiti)})
     const { createFetch } = await createJiti(import.meta.url).import(${JSON.stringify(source)})
     await (await createFetch({ keepAliveMs: 60_000 })(${JSON.stringify(server.url)})).text()
     console.log('read')`,
  )
  const { stdout } = await promisify(execFile)(process.execPath, [file], { timeout: 15_000 })
  expect(stdout.trim()).toBe('read')
  rmSync(folder, { recursive: true })
})
