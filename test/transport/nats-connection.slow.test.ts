import { writeFileSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { join } from 'node:path'
import { afterEach, describe, expect, test } from 'vitest'
import { nkeys } from '@nats-io/transport-node'
import { connectNats, type NatsOptions, natsError, watchDenied } from '../../transport/nats-connection.js'
import { makeCertificates } from '../support/certificates.js'
import { startLinkProxy } from '../support/link-proxy.js'
import { makeJwt } from '../support/nats-jwt.js'
import { type NatsServer, type NatsServerOptions, startNatsServer } from '../support/nats-server.js'
import { code } from '../support/values.js'

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

  test('NC1 connect: a name without a password is no credential, nor is one address of two', async () => {
    const servers = 'nats://192.0.2.1'
    expect(await failure({ servers, user: 'a' })).toMatchObject({ code: 'CONFIG_INVALID' })
    expect(await failure({ servers, user: 'a', password: '' })).toMatchObject({ code: 'CONFIG_INVALID' })
    expect(await failure({ servers, tls: {} })).toMatchObject({ code: 'CONFIG_INVALID' })
    expect(await failure({ servers: ['nats://a:b@127.0.0.1', servers] })).toMatchObject({ code: 'CONFIG_INVALID' })
  })

  test('NC3 connect: an nkey opens, another one is NATS_DENIED, what is none is CONFIG_INVALID', async () => {
    const [mine, other] = [nkeys.createUser(), nkeys.createUser()]
    const seedOf = (pair: typeof mine): string => new TextDecoder().decode(pair.getSeed())
    const { port } = await server({ config: `authorization { users: [{ nkey: ${mine.getPublicKey()} }] }` })
    const servers = `127.0.0.1:${port}`
    const link = await connected({ servers, nkeySeed: seedOf(mine), user: 'ada' })
    expect(link).toMatchObject({ user: 'ada', inboxPrefix: '_INBOX_ada' })
    // Over a lost link, too: the key is still there.
    const states = link.connection.status()[Symbol.asyncIterator]()
    await link.connection.reconnect()
    while (((await states.next()).value as { type: string }).type !== 'reconnect');
    await link.connection.flush()
    const wrong = await failure({ servers, nkeySeed: seedOf(other) })
    expect(wrong.code).toBe('NATS_DENIED')
    expect(wrong.text).not.toContain(seedOf(other))
    for (const nkeySeed of ['', 'no seed', mine.getPublicKey(), seedOf(mine).slice(1), secret]) {
      const none = await failure({ servers, nkeySeed })
      expect(none.code).toBe('CONFIG_INVALID')
      if (nkeySeed !== '') expect(none.text).not.toContain(nkeySeed)
    }
  })

  test('NC3 connect: a creds file opens with JWT and seed, one of another operator is NATS_DENIED', async () => {
    const [mine, other] = [makeJwt(), makeJwt()]
    const { port, folder } = await server({ config: mine.config })
    const fileOf = (name: string, text: string): string => {
      writeFileSync(join(folder, name), text)
      return join(folder, name)
    }
    const servers = `127.0.0.1:${port}`
    const link = await connected({ servers, credsFile: fileOf('mine.creds', mine.creds) })
    expect(link).toMatchObject({ user: null, inboxPrefix: '_INBOX' })
    const wrong = await failure({ servers, credsFile: fileOf('other.creds', other.creds) })
    expect(wrong.code).toBe('NATS_DENIED')
    for (const text of [other.seed, other.creds.split('\n')[1]!]) expect(wrong.text).not.toContain(text)
    const none = await failure({ servers, credsFile: fileOf('none.creds', mine.seed) })
    expect(none.code).toBe('CONFIG_INVALID')
    expect(none.text).not.toContain(mine.seed)
  })

  test('connect: TLS with an authority of one’s own, and a certificate of the client where the server wants one', async () => {
    const { caFile, server: own, client } = await makeCertificates()
    const files = `cert_file: "${own.certFile}", key_file: "${own.keyFile}", ca_file: "${caFile}"`
    const [open, strict] = [
      await server({ config: `tls { ${files} }` }),
      await server({ config: `tls { ${files}, verify: true }` }),
    ]
    const servers = `127.0.0.1:${open.port}`
    const link = await connected({ servers, tls: { caFile } })
    expect(link.version).toMatch(/^2\./)
    // Nobody knows the authority.
    expect(await failure({ servers })).toMatchObject({ code: 'NATS_UNREACHABLE' })
    expect(await failure({ servers, tls: { caFile: client.certFile } })).toMatchObject({ code: 'NATS_UNREACHABLE' })
    expect(await failure({ servers, tls: { caFile: '/nowhere/ca.pem' } })).toMatchObject({ code: 'CONFIG_INVALID' })
    const verified = `127.0.0.1:${strict.port}`
    await connected({ servers: verified, tls: { caFile, ...client } })
    expect(await failure({ servers: verified, tls: { caFile } })).toMatchObject({ code: 'NATS_UNREACHABLE' })
    expect(await failure({ servers: verified, tls: { caFile, certFile: client.certFile } })).toMatchObject({
      code: 'CONFIG_INVALID',
    })
  })

  test('NC3 connect: whoever asks for TLS sends no password to a server that has none', async () => {
    let heard = ''
    const info = { server_id: 'x', version: '2.9.10', proto: 1, max_payload: 1_048_576, jetstream: true }
    const plain = createServer((socket) => {
      socket.write(`INFO ${JSON.stringify(info)}\r\n`)
      socket.on('data', (chunk: Buffer) => (heard += chunk.toString()))
      socket.on('error', () => undefined)
    })
    await new Promise<void>((resolve) => plain.listen(0, '127.0.0.1', resolve))
    open.push({ dispose: () => new Promise((resolve) => plain.close(() => resolve())) })
    const where = `127.0.0.1:${(plain.address() as AddressInfo).port}`
    for (const options of [{ servers: where, tls: {} }, { servers: `tls://${where}` }]) {
      expect(await failure({ ...options, user: 'a', password: secret })).toMatchObject({ code: 'NATS_UNREACHABLE' })
    }
    expect(heard).toBe('')
  })

  test('NC5 denied: a request says at once what is not allowed, and whoever watches hears of the rest, once each', async () => {
    const allowed = 'publish: ["$JS.API.INFO"], subscribe: ["_INBOX_a.>"]'
    const { port } = await server({
      config: `authorization { users: [{ user: a, password: b, permissions: { ${allowed} } }] }`,
    })
    const link = await connected({ servers: `nats://a:b@127.0.0.1:${port}` })
    expect(link).toMatchObject({ user: 'a', inboxPrefix: '_INBOX_a' })
    const told: unknown[] = []
    const stop = watchDenied(link, (error) => told.push(error))
    const since = performance.now()
    const asked: unknown = await link.manager.streams.info('s').catch((error: unknown) => natsError(error, 'NATS'))
    expect(asked).toMatchObject({
      code: 'NATS_DENIED',
      details: { operation: 'publish', subject: '$JS.API.STREAM.INFO.s' },
    })
    expect(performance.now() - since).toBeLessThan(2_000)
    for (let time = 0; time < 3; time++) link.connection.publish('elsewhere')
    link.connection.subscribe('>', { callback: () => undefined })
    await link.connection.flush()
    const details = [
      ['publish', '$JS.API.STREAM.INFO.s'],
      ['publish', 'elsewhere'],
      ['subscription', '>'],
    ]
    await expect
      .poll(() => told)
      .toEqual(
        details.map(([operation, subject]) =>
          expect.objectContaining({ code: 'NATS_DENIED', details: { operation, subject } }),
        ),
      )
    stop()
    const shared = await failure({ servers: `nats://a:b@127.0.0.1:${port}`, inboxPrefix: '_INBOX' })
    expect(shared).toMatchObject({ code: 'NATS_DENIED' })
    for (const inboxPrefix of ['', '>', '_INBOX.*', 'a b', 'x\r\nPUB y 0'])
      expect(await failure({ servers: '127.0.0.1', inboxPrefix })).toMatchObject({ code: 'CONFIG_INVALID' })
  })

  test('NC4 connect: a server without JetStream is NATS_UNSUPPORTED', async () => {
    const { url } = await server({ jetstream: false })
    expect(await failure({ servers: url })).toMatchObject({ code: 'NATS_UNSUPPORTED' })
    const link = await connectNats({ servers: url }, { jetStream: false })
    await link.connection.close()
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
