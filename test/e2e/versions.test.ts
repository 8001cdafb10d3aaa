import { expect, test } from 'vitest'
import type { ModelScript } from '../../actors/scripted-model.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import type { NatsServer } from '../support/nats-server.js'
import { Gate, jsonLines } from './command-line.js'
import { type Crowd, gather } from './crowd.js'
import { useNats } from '../support/use-nats.js'

let server: NatsServer
let link: NatsLink
useNats((nats) => {
  ;({ server, link } = nats)
})

const ids = ['one', 'two', 'three', 'four', 'five', 'six']
const wait = { timeout: 30_000 }

/** Workers with editions of one crew, by name; whoever asks has the first. Requests wait at the gate. */
async function editions(names: readonly string[], gate: Gate) {
  const asked: string[] = []
  const script: ModelScript = async ({ messages }) => {
    asked.push(messages.map(({ content }) => JSON.stringify(content)).find((text) => text.includes('Edition')) ?? '')
    await gate.pass()
    return 'All is known.'
  }
  const envOf = (name: string) => ({ EDITION: name.startsWith('new') ? '2' : '1' })
  const crowd = await gather({ server, link, names, script, crew: 'versions.mjs', env: envOf(''), envOf })
  return { ...crowd, asked }
}

/** Names of the workers that crews are with. */
async function owners(crowd: Crowd): Promise<unknown[]> {
  const rows = jsonLines((await crowd.ask('ps', '--json')).stdout).filter(({ type }) => type === 'crew')
  return [...new Set(rows.map(({ owner }) => owner))].sort()
}

test('NO7 ND1 versions: crews go on with the worker of their edition; when it is killed the other takes them in its own, and keeps them', async () => {
  const gate = new Gate()
  const crowd = await editions(['old-1', 'new-1'], gate)
  const running = ids.map((id) => crowd.run('--id', id))
  await expect.poll(() => crowd.asked.length, wait).toBe(ids.length)
  expect(new Set(crowd.asked)).toEqual(new Set(['"Edition 1."']))
  expect(await owners(crowd)).toEqual(['old-1'])
  crowd.workers.get('old-1')!.child.kill('SIGKILL')
  await expect.poll(() => crowd.asked.length, wait).toBe(2 * ids.length)
  gate.open()
  for (const { end } of running) expect(await end).toMatchObject({ code: 0, stdout: 'All is known.\n' })
  expect(await owners(crowd)).toEqual(['new-1'])
  let ends = 0
  const events = await crowd.events(({ event }) => event.type === 'troupe.run.finished' && (ends += 1) === ids.length)
  const taken = events.filter(({ event }) => event.type === 'troupe.shard.taken')
  expect(taken.map(({ event }) => String(event.data['owner']).split('.')[0]).sort()).toEqual([
    ...ids.map(() => 'new-1'),
    ...ids.map(() => 'old-1'),
  ])
  // One that comes with the first edition gets none of them back, but by order.
  await crowd.start('old-2')
  await expect.poll(async () => (await crowd.ask('ps')).stdout, wait).toContain('old-2')
  expect(await owners(crowd)).toEqual(['new-1'])
  expect((await crowd.ask('move', 'one', '--to', 'old-2')).stderr).toBe('one is with old-2\n')
  expect(await owners(crowd)).toEqual(['new-1', 'old-2'])
  // What did nothing there is still of the second edition; what ran there is of the first, and stays.
  expect((await crowd.ask('move', 'one', '--to', 'auto')).stderr).toBe('one is with new-1\n')
  expect((await crowd.ask('move', 'one', '--to', 'old-2')).code).toBe(0)
  expect(await crowd.run('--id', 'one', '--new').end).toMatchObject({ code: 0 })
  expect((await crowd.ask('move', 'one', '--to', 'auto')).stderr).toBe('one is with old-2\n')
})

test('NO7 versions: workers are replaced one by one; crews stay with the old edition until its last worker is drained', async () => {
  const gate = new Gate()
  const crowd = await editions(['old-1', 'old-2'], gate)
  const running = ids.map((id) => crowd.run('--id', id))
  await expect.poll(() => crowd.asked.length, wait).toBe(ids.length)
  const replace = async (name: string, next: string) => {
    await crowd.start(next)
    crowd.workers.get(name)!.child.kill('SIGTERM')
    await expect.poll(async () => (await owners(crowd)).includes(name), wait).toBe(false)
  }
  await replace('old-1', 'new-1')
  expect(await owners(crowd)).toEqual(['old-2'])
  await replace('old-2', 'new-2')
  expect((await owners(crowd)).every((owner) => owner === 'new-1' || owner === 'new-2')).toBe(true)
  gate.open()
  for (const { end } of running) expect(await end).toMatchObject({ code: 0, stdout: 'All is known.\n' })
  // Replies followed their crews: no call was made twice.
  expect(crowd.asked).toHaveLength(ids.length)
  for (const name of ['old-1', 'old-2']) expect(await crowd.workers.get(name)!.end).toMatchObject({ code: 0 })
})
