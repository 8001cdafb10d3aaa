import { jetstream } from '@nats-io/jetstream'
import { headers, type MsgHdrs } from '@nats-io/transport-node'
import { describe, expect, test } from 'vitest'
import { createJetStreamJournal } from '../../transport/jetstream-journal.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { Subjects } from '../../transport/subjects.js'
import type { NatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'
import { clerk, Gate, jsonLines } from './command-line.js'
import { type Crowd, gather } from './crowd.js'

let server: NatsServer
let link: NatsLink
useNats((nats) => {
  ;({ server, link } = nats)
})

/** A message of the journal's stream. */
interface Stored {
  readonly subject: string
  readonly data: Uint8Array
  readonly headers: MsgHdrs
}

/**
 * Makes the journal's stream anew of what it had, changed, as a server does that has lost some of it: what is kept has the
 * numbers that it had.
 */
async function damage(crowd: Crowd, change: (messages: Stored[]) => readonly Stored[]): Promise<void> {
  const { streams } = link.manager
  const name = new Subjects(crowd.namespace).stream('journal')
  const { config, state } = await streams.info(name)
  expect(state.first_seq).toBe(1)
  const messages: Stored[] = []
  for (let seq = 1; seq <= state.last_seq; seq++) {
    const { subject, data, header } = (await streams.getMessage(name, { seq }))!
    const kept = headers()
    for (const key of header.keys()) if (key.startsWith('Troupe-')) kept.set(key, header.get(key))
    messages.push({ subject, data, headers: kept })
  }
  await streams.delete(name)
  await streams.add(config)
  const client = jetstream(link.connection)
  for (const { subject, data, headers } of change(messages)) await client.publish(subject, data, { headers })
}

const withoutLast =
  (count: number) =>
  (messages: Stored[]): Stored[] =>
    messages.slice(0, -count)

/** Flips a bit of the commits of a message, counted from the first. */
const flipped =
  (index: number) =>
  (messages: Stored[]): Stored[] =>
    messages.map((message, at) => {
      if (at !== index) return message
      const data = Buffer.from(message.data)
      const commits = Number(message.headers.get('Troupe-Events')) || data.length
      data[commits - 3]! ^= 4
      return { ...message, data }
    })

/** A run that has ended with all its events stored; its workers are killed, and the journal is damaged. */
async function wrecked(change: (messages: Stored[]) => readonly Stored[]): Promise<Crowd> {
  const crowd = await gather({ server, link, names: ['w1', 'w2'], script: clerk() })
  expect((await crowd.run().end).code).toBe(0)
  await crowd.events(({ event }) => event.type === 'troupe.run.finished')
  for (const { child } of crowd.workers.values()) child.kill('SIGKILL')
  for (const { end } of crowd.workers.values()) await end
  await damage(crowd, change)
  for (const name of ['w3', 'w4']) await crowd.start(name)
  return crowd
}

async function report(crowd: Crowd, ...words: readonly string[]): Promise<Record<string, unknown>> {
  const end = await crowd.ask('repair', 'desk', '--json', ...words)
  const [line, ...more] = jsonLines(end.stdout)
  expect(more).toEqual([])
  return { ...line, exit: end.code }
}

/** Commits whose events are not stored yet. */
async function behind(crowd: Crowd): Promise<unknown> {
  const lines = jsonLines((await crowd.ask('ps', '--json')).stdout)
  return lines.find(({ type }) => type === 'crew')?.['eventsBehind']
}

const sound = { type: 'repair', crew: 'desk', damage: null, lost: null, repaired: false, exit: 0 }

describe('troupe repair --nats', () => {
  test('K6 truncated: the loss is told, accepted and journalled, and the crew goes on with any worker', async () => {
    const crowd = await wrecked(withoutLast(3))
    for (const words of [
      ['show', 'desk'],
      ['journal', 'desk'],
    ]) {
      const end = await crowd.ask(...words)
      expect(end.stderr).toMatch(/^JOURNAL_TRUNCATED: .*\n {2}see `troupe repair desk`/)
    }
    const told = await report(crowd)
    expect(told).toMatchObject({ type: 'repair', crew: 'desk', damage: { code: 'JOURNAL_TRUNCATED' }, exit: 1 })
    const { from, to } = told['lost'] as { from: number; to: number }
    expect(told).toMatchObject({ sound: from - 1, repaired: false })
    expect(to).toBeGreaterThan(from)
    // Nothing was changed by looking.
    expect(await report(crowd)).toEqual(told)
    expect(await report(crowd, '--accept-loss')).toEqual({ ...told, repaired: true, exit: 0 })
    const journal = jsonLines((await crowd.ask('journal', 'desk', '--from', String(to), '--json')).stdout)
    expect(journal.slice(0, 2)).toMatchObject([
      { sequence: to, body: { type: 'shard.skipped' } },
      { sequence: to + 1, body: { type: 'shard.repaired', from, to } },
    ])
    const again = await crowd.run('--new').end
    expect(again, again.stderr).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect(await report(crowd)).toEqual(sound)
    for (const name of ['w3', 'w4']) crowd.workers.get(name)!.child.kill('SIGKILL')
    await crowd.start('w5')
    const third = await crowd.run('--new').end
    expect(third, third.stderr).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect(await report(crowd, '--accept-loss')).toEqual(sound)
    // Who follows has heard of the lost commits: no event comes under the id of another one.
    let ends = 0
    const events = await crowd.events(({ event }) => event.type === 'troupe.run.finished' && (ends += 1) === 3)
    const numbers = events.map(({ event }) => Number(event.id.split('-')[1]))
    expect(numbers).toEqual([...numbers].sort((one, next) => one - next))
    expect(new Set(events.map(({ event }) => event.id)).size).toBe(events.length)
    expect(events.filter(({ event }) => event.type === 'troupe.shard.repaired')).toHaveLength(1)
  })

  test('damaged record: the crew goes on from the one before', async () => {
    const crowd = await wrecked(flipped(4))
    const told = await report(crowd)
    expect(told).toMatchObject({ damage: { code: 'JOURNAL_CORRUPT' }, repaired: false, exit: 1 })
    expect((await crowd.ask('show', 'desk')).stderr).toMatch(/^JOURNAL_CORRUPT/)
    expect(await report(crowd, '--accept-loss')).toEqual({ ...told, repaired: true, exit: 0 })
    const again = await crowd.run('--new').end
    expect(again, again.stderr).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect(await report(crowd)).toEqual(sound)
  })

  test('cut half way: whoever dies before the loss is journalled leaves it to be accepted again', async () => {
    const crowd = await wrecked(withoutLast(3))
    const told = await report(crowd)
    const subjects = new Subjects(crowd.namespace)
    const dying = createJetStreamJournal({ link, subjects, worker: 'dying', epoch: () => 9_999_999 })
    await dying.open()
    let hash: Uint8Array = new Uint8Array(32)
    const read = async (): Promise<void> => {
      for await (const record of dying.read('desk', 1)) hash = record.hash
    }
    await expect(read()).rejects.toMatchObject({ code: 'JOURNAL_TRUNCATED' })
    await dying.acceptLoss('desk', told['sound'] as number, hash)
    await dying.close()
    expect((await crowd.ask('show', 'desk')).stderr).toMatch(/^JOURNAL_TRUNCATED/)
    const { damage, ...rest } = await report(crowd, '--accept-loss')
    expect(damage).toMatchObject({ code: 'JOURNAL_TRUNCATED' })
    expect(rest).toMatchObject({ sound: told['sound'], lost: told['lost'], repaired: true, exit: 0 })
    expect((await crowd.run('--new').end).code).toBe(0)
  })

  test('nothing is left: the crew begins anew behind the numbers that its events tell of', async () => {
    const crowd = await wrecked(() => [])
    const told = await report(crowd, '--accept-loss')
    expect(told).toMatchObject({ damage: { code: 'JOURNAL_TRUNCATED' }, sound: 0, repaired: true, exit: 0 })
    const again = await crowd.run('--json').end
    const { to } = told['lost'] as { to: number }
    const runId = String(jsonLines(again.stdout).at(-1)!['runId'])
    expect(Number(runId.slice(1))).toBeGreaterThan(to)
  })

  test('at work: a sound crew is left alone; a damaged one is refused, and stands on its memory at rest', async () => {
    const gate = new Gate()
    const crowd = await gather({ server, link, names: ['w1'], script: clerk({ 3: gate }) })
    expect((await crowd.ask('repair', 'nobody')).stderr).toMatch(/^CREW_UNKNOWN/)
    expect((await crowd.ask('repair', 'a b')).stderr).toMatch(/^ID_INVALID/)
    const running = crowd.run()
    await gate.reached
    expect(await report(crowd, '--accept-loss')).toEqual(sound)
    await damage(crowd, flipped(4))
    expect(await report(crowd)).toMatchObject({ damage: { code: 'JOURNAL_CORRUPT' }, repaired: false, exit: 1 })
    expect((await crowd.ask('repair', 'desk', '--accept-loss')).stderr).toMatch(/^MESSAGE_REFUSED: .*cancel it first/)
    gate.open()
    expect(await running.end).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect(await report(crowd, '--accept-loss')).toMatchObject({ lost: null, repaired: false, exit: 0 })
    expect((await crowd.run('--new').end).code).toBe(0)
  })
})

describe('a loss under a living worker', () => {
  test('stopped: the crew says why, and goes on once the loss is accepted, or is removed', async () => {
    for (const word of ['repair', 'rm']) {
      const gate = new Gate()
      const crowd = await gather({ server, link, names: ['w1'], script: clerk({ 3: gate }) })
      const running = crowd.run()
      await gate.reached
      await expect.poll(() => behind(crowd), { timeout: 20_000 }).toBe(0)
      await damage(crowd, withoutLast(2))
      gate.open()
      const end = await running.end
      expect(end.code, end.stderr).toBe(1)
      expect(end.stderr).toContain('JOURNAL_TRUNCATED')
      const accepted = await crowd.ask(word, 'desk', ...(word === 'repair' ? ['--accept-loss'] : []))
      expect(accepted, accepted.stderr).toMatchObject({ code: 0 })
      const again = await crowd.run().end
      expect(again, again.stderr).toMatchObject({ code: 0, stdout: 'All is known.\n' })
      expect(await report(crowd)).toEqual(sound)
    }
  })
})

describe('troupe rm --nats', () => {
  test('rm: a damaged crew goes with all that it stored, and its id begins behind what it is known to have had', async () => {
    for (const change of [withoutLast(3), flipped(4)]) {
      const crowd = await wrecked(change)
      const lost = (await report(crowd))['lost'] as { to: number }
      expect(await crowd.ask('rm', 'desk')).toMatchObject({ code: 0, stderr: 'desk removed\n' })
      expect((await crowd.ask('show', 'desk')).stderr).toMatch(/^CREW_UNKNOWN/)
      expect((await crowd.ask('repair', 'desk')).stderr).toMatch(/^CREW_UNKNOWN/)
      const subjects = new Subjects(crowd.namespace)
      const { streams } = link.manager
      const { state } = await streams.info(subjects.stream('journal'))
      expect(state.messages).toBe(1)
      expect((await streams.info(subjects.stream('content'))).state.messages).toBe(0)
      const anew = await crowd.run('--json').end
      expect(anew, anew.stderr).toMatchObject({ code: 0 })
      const runId = String(jsonLines(anew.stdout).at(-1)!['runId'])
      expect(Number(runId.slice(1))).toBeGreaterThan(lost.to)
      expect(await report(crowd)).toEqual(sound)
    }
  })
})
