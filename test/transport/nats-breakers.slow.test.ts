import { Kvm } from '@nats-io/kv'
import { expect, onTestFinished, test } from 'vitest'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { NatsBreakers } from '../../transport/nats-breakers.js'
import { startLinkProxy } from '../support/link-proxy.js'
import { Subjects } from '../../transport/subjects.js'
import { closed, open, testBreakerStore } from '../conformance/breaker-store.js'
import { useNats } from '../support/use-nats.js'
import { until } from '../support/crew-stage.js'

let link: NatsLink
let url: string
useNats((nats) => {
  link = nats.link
  url = nats.server.url
})
let namespaces = 0
const space = (): Subjects => new Subjects(`breakers-${(namespaces += 1)}`)

async function openIn(subjects: Subjects): Promise<NatsBreakers> {
  const other = await connectNats({ servers: url })
  const store = await NatsBreakers.open({ link: other, subjects })
  onTestFinished(async () => {
    store.close()
    await other.connection.close()
  })
  return store
}

testBreakerStore('breakers over NATS', async () => {
  const subjects = space()
  return { one: await openIn(subjects), two: await openIn(subjects) }
})

test('NB1 breakers over NATS: of twenty workers one is first with each change', async () => {
  const subjects = space()
  const stores = await Promise.all(Array.from({ length: 20 }, () => openIn(subjects)))
  let revision = 0
  for (const breaker of [open, closed, open]) {
    const saved = await Promise.all(stores.map((store) => store.save('model/a:one', breaker, revision)))
    const won = saved.filter((each) => each !== null)
    expect(won).toHaveLength(1)
    revision = won[0]!
  }
})

test('NB2 breakers over NATS: whoever comes later is told of what changes from then on, and asks for the rest', async () => {
  const subjects = space()
  const one = await openIn(subjects)
  const first = (await one.save('model/a:one', open, 0))!
  const two = await openIn(subjects)
  const heard: string[] = []
  two.watch((target, { breaker }) => void heard.push(`${target} ${breaker.state}`))
  expect(await two.load('model/a:one')).toEqual({ breaker: open, revision: first })
  await one.save('model/a:one', closed, first)
  await until(() => heard.length > 0)
  expect(heard).toEqual(['model/a:one closed'])
})

test('NB3 breakers over NATS: an entry that cannot be read counts as nothing, and is replaced', async () => {
  const subjects = space()
  const store = await openIn(subjects)
  const heard: string[] = []
  store.watch((target) => void heard.push(target))
  const bucket = await new Kvm(link.connection).open(subjects.stream('breakers'))
  const revision = await bucket.put(subjects.breaker('model/a:one'), '{"state":"ajar"')
  expect(await store.load('model/a:one')).toEqual({ breaker: closed, revision })
  expect(await store.save('model/a:one', open, revision)).toBeGreaterThan(revision)
  await until(() => heard.length > 0)
  expect(heard).toEqual(['model/a:one'])
})

test('NB4 breakers over NATS: a list whose answer is lost with the link ends, and the next one has all', {
  timeout: 60_000,
}, async () => {
  const subjects = space()
  await (await openIn(subjects)).save('model/a:one', open, 0)
  const proxy = await startLinkProxy(Number(new URL(url).port))
  const behind = await connectNats({ servers: `nats://127.0.0.1:${proxy.port}` })
  const store = await NatsBreakers.open({ link: behind, subjects })
  onTestFinished(async () => {
    store.close()
    await behind.connection.close()
    await proxy.close()
  })
  const isBack = () => until(async () => (await store.all().catch(() => null))?.has('model/a:one') === true)
  for (const sends of [1, 2, 3, 4]) {
    await isBack()
    let left = sends
    // Behind so many packets of it the link is gone.
    proxy.onUp = () => void ((left -= 1) === 0 && (proxy.down = 'swallow'))
    let isDone = false
    const listed = store
      .all()
      .then(
        () => 'listed',
        ({ code }: { code: string }) => code,
      )
      .finally(() => (isDone = true))
    await until(() => left <= 0 || isDone)
    proxy.onUp = () => undefined
    proxy.cut()
    proxy.down = 'pass'
    expect(['listed', 'STORE_FAILED']).toContain(await listed)
  }
  await isBack()
})

test('breakers over NATS: a server that is away is told as such', async () => {
  const other = await connectNats({ servers: url })
  const store = await NatsBreakers.open({ link: other, subjects: space() })
  await other.connection.close()
  await expect(store.save('model/a:one', open, 0)).rejects.toMatchObject({ code: 'STORE_FAILED', retryable: true })
  await expect(store.load('model/a:one')).rejects.toMatchObject({ code: 'STORE_FAILED' })
  store.close()
})
