import { Kvm } from '@nats-io/kv'
import { expect, onTestFinished, test } from 'vitest'
import { connectNats } from '../../transport/nats-connection.js'
import { StandingLease } from '../../transport/standing-lease.js'
import { Subjects } from '../../transport/subjects.js'
import { startNatsServer } from '../support/nats-server.js'

const subjects = new Subjects('test')

test('SL2 held: whoever waits goes on with the next lease, when the wait is over, or when it is given back', async () => {
  const server = await startNatsServer()
  onTestFinished(() => server.dispose())
  const link = await connectNats({ servers: `127.0.0.1:${server.port}` })
  onTestFinished(() => link.connection.close())
  const lease = await StandingLease.take(link, subjects, { worker: 'w', ttlMs: 1_000 })
  const bucket = await new Kvm(link.connection).open(subjects.stream('workers'))
  /** Somebody else has the name: it is lost, and cannot be taken again. */
  const lose = async () => {
    await bucket.put('w', 'somebody else')
    await expect.poll(() => lease.isHeld, { timeout: 5_000 }).toBe(false)
  }
  await lease.held(60_000)
  expect(lease.isHeld).toBe(true)

  await lose()
  let isOver = false
  const next = lease.held(60_000).then(() => (isOver = true))
  await lease.held(50)
  expect([isOver, lease.isHeld]).toEqual([false, false])
  await bucket.delete('w')
  await next
  expect(lease.isHeld).toBe(true)

  await lose()
  const last = lease.held(60_000)
  await lease.release()
  await last
  expect(lease.isHeld).toBe(false)
})
