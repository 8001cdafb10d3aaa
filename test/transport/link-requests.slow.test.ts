import { afterEach, expect, test } from 'vitest'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { type LinkProxy, startLinkProxy } from '../support/link-proxy.js'
import { type NatsServer, startNatsServer } from '../support/nats-server.js'

const closing: (() => Promise<unknown>)[] = []
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close()
})
/** A link through a proxy, and somebody who echoes what is asked on `echo`, and nothing else. */
async function stage(): Promise<{ readonly server: NatsServer; readonly proxy: LinkProxy; readonly over: NatsLink }> {
  const server = await startNatsServer()
  closing.push(() => server.dispose())
  const proxy = await startLinkProxy(server.port)
  closing.push(() => proxy.close())
  const over = await connectNats({ servers: `127.0.0.1:${proxy.port}` })
  closing.push(() => over.connection.close())
  over.connection.subscribe('echo', { callback: (_, message) => void message.respond(message.data) })
  over.connection.subscribe('mute', { callback: () => undefined })
  await over.connection.flush()
  return { server, proxy, over }
}
const timed = async (asked: Promise<unknown>) => {
  const since = performance.now()
  const result = await asked.then(
    () => 'answered',
    (error: unknown) => (error as Error).message,
  )
  return { result, ms: performance.now() - since }
}

test('LQ1 request: one whose link is lost fails at once', async () => {
  const { proxy, over } = await stage()
  const asked = [1, 2].map(() => timed(over.connection.request('mute', 'x', { timeout: 30_000 })))
  await over.connection.flush()
  proxy.cut()
  for (const each of await Promise.all(asked)) {
    expect(each.result).toBe('the link to NATS is lost')
    expect(each.ms).toBeLessThan(5_000)
  }
})

test('LQ2 request: one that is made without a link is sent over the next one', async () => {
  const { server, over } = await stage()
  const down = (async () => {
    for await (const { type } of over.connection.status()) if (type === 'disconnect') return
  })()
  await server.kill()
  await down
  const short = await timed(over.connection.request('echo', 'x', { timeout: 50 }))
  expect(short).toMatchObject({ result: 'the link to NATS is lost' })
  expect(short.ms).toBeLessThan(1_000)
  const asked = Array.from({ length: 5 }, (_, n) => over.connection.request('echo', `${n}`, { timeout: 20_000 }))
  await server.start()
  expect((await Promise.all(asked)).map((message) => message.string())).toEqual(['0', '1', '2', '3', '4'])
  expect((await over.connection.request('echo', 'later')).string()).toBe('later')
})

test('LQ1 LQ2 request: when the connection is closed none is left waiting', async () => {
  const { server, over } = await stage()
  const asked = timed(over.connection.request('mute', 'x', { timeout: 30_000 }))
  await over.connection.flush()
  await over.connection.close()
  expect((await asked).result).not.toBe('answered')
  expect((await timed(over.connection.request('echo', 'x', { timeout: 30_000 }))).ms).toBeLessThan(1_000)
  await server.kill()
})
