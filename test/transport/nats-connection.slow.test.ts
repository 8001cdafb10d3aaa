import { writeFileSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { join } from 'node:path'
import { afterEach, describe, expect, test } from 'vitest'
import { connectNats, type NatsOptions } from '../../transport/nats-connection.js'
import { startLinkProxy } from '../support/link-proxy.js'
import { type NatsServer, type NatsServerOptions, startNatsServer } from '../support/nats-server.js'

const open: { dispose(): Promise<void> }[] = []
afterEach(async () => {
  for (const each of open.splice(0).reverse()) await each.dispose()
})

async function server(options?: NatsServerOptions): Promise<NatsServer> {
  const started = await startNatsServer(options)
  open.push(started)
  return started
}

async function connected(options: NatsOptions): Promise<Awaited<ReturnType<typeof connectNats>>> {
  const link = await connectNats(options)
  open.push({ dispose: () => link.connection.close() })
  return link
}

const secret = 's3cret-of-mine'
const code = (expected: string) => expect.objectContaining({ name: 'TroupeError', code: expected })
/** What a failed connection says, anywhere in it. */
async function failure(options: NatsOptions): Promise<{ readonly code: string; readonly text: string }> {
  const error: unknown = await connectNats({ timeoutMs: 1_000, ...options }).catch((thrown: unknown) => thrown)
  const { code: found, message, details, cause } = error as Error & { code: string; details: unknown }
  return { code: found, text: `${message} ${JSON.stringify(details)} ${String(cause)}` }
}

describe('NATS connection', () => {
  test('connect: a server on this machine needs no credentials, and says its version', async () => {
    const { url } = await server()
    const link = await connected({ servers: url })
    expect(link.version).toMatch(/^2\.\d+\.\d+/)
    expect(await link.manager.getAccountInfo()).toMatchObject({ memory: 0 })
  })

  test('NC1 connect: off loopback it takes credentials, or somebody who says insecure', async () => {
    for (const servers of ['nats://192.0.2.1', ['nats://127.0.0.1:1', 'nats://192.0.2.1'], 'tls://example.org:4222']) {
      expect(await failure({ servers })).toMatchObject({ code: 'CONFIG_INVALID' })
    }
    const safe: readonly Partial<NatsOptions>[] = [
      { user: 'a', password: secret },
      { token: secret },
      { nkeySeed: 'SUAMK2FG4MI6UE3ACF3FK3OIQBCEIEZV7NSWFFEW63UXMRLFM2XLAXK4GY' },
      { insecure: true },
    ]
    for (const more of safe) {
      expect(await failure({ servers: 'nats://192.0.2.1', timeoutMs: 200, ...more })).toMatchObject({
        code: 'NATS_UNREACHABLE',
      })
    }
  })

  test('connect: an address that is none is CONFIG_INVALID, and so is a creds file that is not there', async () => {
    for (const servers of ['http://127.0.0.1', 'nats://', 'nats://[x', '']) {
      expect(await failure({ servers })).toMatchObject({ code: 'CONFIG_INVALID' })
    }
    expect(await failure({ servers: 'localhost', credsFile: '/nowhere/x.creds' })).toMatchObject({
      code: 'CONFIG_INVALID',
    })
  })

  test('connect: nobody listens: NATS_UNREACHABLE, to be tried again', async () => {
    const { port, kill } = await server()
    await kill()
    const error: unknown = await connectNats({ servers: `127.0.0.1:${port}` }).catch((thrown: unknown) => thrown)
    expect(error).toEqual(code('NATS_UNREACHABLE'))
    expect(error).toMatchObject({ retryable: true })
  })

  test('NC3 connect: wrong credentials are NATS_DENIED, and no credential is in the error', async () => {
    const { port } = await server({ config: 'authorization { users: [{ user: a, password: right }] }' })
    const wrong: readonly NatsOptions[] = [
      { servers: `nats://a:${secret}@127.0.0.1:${port}` },
      { servers: `127.0.0.1:${port}`, user: 'a', password: secret },
      { servers: `127.0.0.1:${port}`, token: secret },
      { servers: `127.0.0.1:${port}` },
    ]
    for (const options of wrong) {
      const { code: found, text } = await failure(options)
      expect(found).toBe('NATS_DENIED')
      expect(text).not.toContain(secret)
    }
    await connected({ servers: `nats://a:right@127.0.0.1:${port}` })
    const { text } = await failure({ servers: `nats://a:${secret}@127.0.0.1:1` })
    expect(text).not.toContain(secret)
  })

  test('NC3 connect: nothing of a creds file is in an error', async () => {
    const { port, folder } = await server()
    const credsFile = join(folder, 'bad.creds')
    writeFileSync(credsFile, secret)
    const { text } = await failure({ servers: `127.0.0.1:${port}`, credsFile })
    expect(text).not.toContain(secret)
  })

  test('NC4 connect: a server without JetStream is NATS_UNSUPPORTED', async () => {
    const { url } = await server({ jetstream: false })
    expect(await failure({ servers: url })).toMatchObject({ code: 'NATS_UNSUPPORTED' })
  })

  test('NC4 connect: a server that is too old is NATS_UNSUPPORTED, and named', async () => {
    const info = { server_id: 'x', version: '2.2.6', proto: 1, max_payload: 1_048_576, jetstream: true }
    const old = createServer((socket) => {
      socket.write(`INFO ${JSON.stringify(info)}\r\n`)
      socket.on('data', () => socket.write('PONG\r\n'))
      socket.on('error', () => undefined)
    })
    await new Promise<void>((resolve) => old.listen(0, '127.0.0.1', resolve))
    open.push({ dispose: () => new Promise((resolve) => old.close(() => resolve())) })
    const { code: found, text } = await failure({ servers: `127.0.0.1:${(old.address() as AddressInfo).port}` })
    expect(found).toBe('NATS_UNSUPPORTED')
    expect(text).toContain('2.2.6')
  })

  test('NC2 connection: a link that has gone silent is noticed within 5 s, and is used again', async () => {
    const { port } = await server()
    const proxy = await startLinkProxy(port)
    open.push({ dispose: () => proxy.close() })
    const { connection } = await connected({ servers: `127.0.0.1:${proxy.port}` })
    const states = connection.status()[Symbol.asyncIterator]()
    const seen = async (type: string): Promise<void> => {
      for (;;) if (((await states.next()).value as { type: string }).type === type) return
    }
    for (const silence of ['up', 'down'] as const) {
      const since = performance.now()
      proxy[silence] = 'swallow'
      await seen('disconnect')
      expect(performance.now() - since).toBeLessThan(5_000)
      proxy[silence] = 'pass'
      await seen('reconnect')
      await connection.flush()
    }
  })
})
