import { afterEach, expect, test } from 'vitest'
import { createLog } from '../../runtime/log.js'
import { RemoteRuntime } from '../../runtime/remote-runtime.js'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { type DoorOptions, openDoor } from '../../transport/nats-door.js'
import { createDoorClient } from '../../transport/nats-door-client.js'
import { Subjects } from '../../transport/subjects.js'
import { gate } from '../support/crew-stage.js'
import { startNatsServer } from '../support/nats-server.js'

const open: (() => Promise<unknown>)[] = []
afterEach(async () => {
  for (const dispose of open.splice(0).reverse()) await dispose()
})

const subjects = new Subjects('test')

async function linkTo({ port }: { readonly port: number }): Promise<NatsLink> {
  const link = await connectNats({ servers: `127.0.0.1:${port}` })
  open.push(() => link.connection.close())
  return link
}

/** A door, and a client of it with the link that it has. */
async function setDoor(parts: Pick<DoorOptions, 'answer' | 'owns'>, patienceMs: number) {
  const server = await startNatsServer()
  open.push(() => server.dispose())
  const door = await openDoor({ link: await linkTo(server), subjects, log: createLog('silent'), ...parts })
  open.push(() => door.close())
  const link = await linkTo(server)
  const channel = createDoorClient({ link, subjects, patienceMs })
  open.push(async () => channel.close())
  return { door, link, runtime: new RemoteRuntime({ channel }) }
}

test('NQ5 door: a worker that is seldom the owner is met in time', async () => {
  let asked = 0
  const { runtime } = await setDoor(
    {
      owns: () => (asked += 1) > 5,
      answer: async function* () {
        yield { result: { id: 'q' } }
      },
    },
    12_000,
  )
  expect(await runtime.show('q')).toEqual({ id: 'q' })
  expect(asked).toBe(6)
})

test('NQ5 door: what a worker has begun is not asked again, however long it takes', async () => {
  const held = gate()
  let asked = 0
  const { door, link, runtime } = await setDoor(
    {
      owns: () => true,
      answer: async function* () {
        asked += 1
        await held.opened
        yield { result: { id: 'q' } }
      },
    },
    30_000,
  )
  const said: string[] = []
  link.connection.subscribe('_INBOX.>', { callback: (_, message) => void said.push(message.string()) })
  const shown = runtime.show('q')
  await expect.poll(() => said.filter((text) => text === '{"alive":true}').length, { timeout: 10_000 }).toBe(4)
  held.open()
  expect(await shown).toEqual({ id: 'q' })
  expect([asked, door.underWay]).toEqual([1, 0])
})
