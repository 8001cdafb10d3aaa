import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { DiscardPolicy } from '@nats-io/jetstream'
import { describe, expect, onTestFinished, test } from 'vitest'
import { fault, type ModelScript, reply } from '../../actors/scripted-model.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { Subjects } from '../../transport/subjects.js'
import type { NatsServer } from '../support/nats-server.js'
import { clerk, crewFile, ended, Gate, jsonLines, model, scratch, troupe } from './command-line.js'
import { type Crowd, gather } from './crowd.js'
import { useNats } from '../support/use-nats.js'

let server: NatsServer
let link: NatsLink
useNats((nats) => {
  ;({ server, link } = nats)
})

/** What the tool waits for: counts its calls, and answers when the gate is open. */
async function outside(gate: Gate): Promise<{ readonly url: string; readonly calls: () => number }> {
  let calls = 0
  const http = createServer((_, response) => {
    calls += 1
    void gate.pass().then(() => response.end('a fact'))
  })
  await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => void http.close())
  return { url: `http://127.0.0.1:${(http.address() as AddressInfo).port}`, calls: () => calls }
}

/** Calls the tool, then answers. */
const caller: ModelScript = ({ messages }) =>
  messages.at(-1)?.role === 'tool' ? 'All is known.' : reply.call('wait', {})

/** Two workers that wait with a run, and who has it. */
async function waiting(crowd: Crowd, until: string): Promise<{ readonly owner: string; readonly other: string }> {
  const owner = crowd.ownerOf(await crowd.events(({ event }) => event.type === until))
  return { owner, other: owner === 'w1' ? 'w2' : 'w1' }
}

/** Moves the crew, and has the event stream say that it went. */
async function moved(crowd: Crowd, other: string): Promise<void> {
  const end = await crowd.ask('move', 'desk', '--to', other)
  expect(end, end.stderr).toMatchObject({ code: 0, stderr: `desk is with ${other}\n` })
  const events = await crowd.events(({ event }) => String(event.data['owner']).startsWith(`${other}.`))
  expect(events.filter(({ event }) => event.type === 'troupe.shard.left')).toHaveLength(1)
}

/** How the run ended for whoever waited, and that each of its calls was made and told once. */
async function wentOn(
  crowd: Crowd,
  end: { readonly code: number | null },
  calls: Record<string, number>,
): Promise<void> {
  expect(end).toMatchObject({ code: 0, stdout: 'All is known.\n' })
  const events = await crowd.events(({ event }) => event.type === 'troupe.run.finished')
  const types = events.map(({ event }) => event.type.replace('troupe.', ''))
  for (const [type, count] of Object.entries(calls))
    expect([type, types.filter((each) => each === type).length]).toEqual([type, count])
  expect(JSON.stringify(events)).not.toMatch(/interrupted|unknown/i)
}

describe('move', () => {
  test('move: a crew that waits for a model goes on with another worker; its reply follows it', async () => {
    const gate = new Gate()
    const crowd = await gather({ server, link, names: ['w1', 'w2'], script: clerk({ 2: gate }) })
    const running = crowd.run()
    await gate.reached
    const { other } = await waiting(crowd, 'troupe.model.called')
    await moved(crowd, other)
    gate.open()
    await wentOn(crowd, await running.end, { 'model.called': 3, 'model.replied': 3, 'tool.called': 2 })
    expect(crowd.scripted.requests.count).toBe(3)
  })

  test('move: a crew that waits for a once tool goes on with another worker; the tool runs once', async () => {
    const gate = new Gate()
    const { url, calls } = await outside(gate)
    const crowd = await gather({
      server,
      link,
      names: ['w1', 'w2'],
      script: caller,
      crew: 'waiting.mjs',
      env: { OUTSIDE: url },
    })
    const running = crowd.run()
    await gate.reached
    const { other } = await waiting(crowd, 'troupe.tool.called')
    await moved(crowd, other)
    gate.open()
    await wentOn(crowd, await running.end, { 'tool.called': 1, 'tool.finished': 1, 'model.called': 2 })
    expect(calls()).toBe(1)
  })

  test('move: a crew that waits for a timer has it fire with another worker, once and not early', async () => {
    const refused = new Gate()
    let refusedAt = 0
    let againAt = 0
    const script: ModelScript = () => {
      if (refusedAt > 0) {
        againAt = performance.now()
        return 'All is known.'
      }
      refusedAt = performance.now()
      void refused.pass()
      return fault.status(503, { retryAfter: 4 })
    }
    const crowd = await gather({ server, link, names: ['w1', 'w2'], script })
    const running = crowd.run()
    await refused.reached
    const { other } = await waiting(crowd, 'troupe.model.failed')
    await moved(crowd, other)
    expect(crowd.scripted.requests.count).toBe(1)
    await wentOn(crowd, await running.end, { 'model.called': 2 })
    expect(againAt - refusedAt).toBeGreaterThan(3_900)
    expect(crowd.scripted.requests.count).toBe(2)
  })

  test('move: to somebody who is not there is refused; auto gives it back; it stays over a kill', async () => {
    const crowd = await gather({ server, link, names: ['w1', 'w2'], script: clerk() })
    expect((await crowd.run().end).code).toBe(0)
    const { owner, other } = await waiting(crowd, 'troupe.run.finished')
    expect((await crowd.ask('move', 'desk', '--to', 'w9')).stderr).toContain('WORKER_UNKNOWN')
    expect((await crowd.ask('move', 'nobody', '--to', other)).stderr).toContain('CREW_UNKNOWN')
    expect((await crowd.ask('move', 'desk', '--to', 'a b')).stderr).toContain('ID_INVALID')
    expect((await crowd.ask('move', 'desk', '--to', other)).code).toBe(0)
    const again = await crowd.ask('move', 'desk', '--to', other, '--json')
    expect(jsonLines(again.stdout)).toEqual([{ type: 'moved', crew: 'desk', worker: other }])
    // The one that it was given to dies: the rule counts, and when it is back, its pin.
    crowd.workers.get(other)!.child.kill('SIGKILL')
    const anew = await crowd.run('--new').end
    expect(anew, anew.stderr).toMatchObject({ code: 0 })
    await crowd.start(other)
    await expect
      .poll(async () => (await crowd.ask('move', 'desk', '--to', 'auto')).stderr, { timeout: 30_000 })
      .toBe(`desk is with ${owner}\n`)
    expect((await crowd.ask('rm', 'desk')).code).toBe(0)
  })

  test('move: in a store it is said that it takes workers', async () => {
    const cwd = await scratch()
    const scripted = await model(clerk())
    expect((await ended(['run', crewFile('desk.mjs'), '--input', 'go'], { cwd, model: scripted })).code).toBe(0)
    const end = await ended(['move', 'desk', '--to', 'w1'], { cwd })
    expect(end.code).toBe(2)
    expect(end.stderr).toContain('CONFIG_INVALID: one process owns this store: a crew moves between workers over NATS')
  })
})

describe('drain', () => {
  test('drain: a worker hands its crews over and waits for its calls, then goes; the last one is told so itself', async () => {
    const gate = new Gate()
    const { url, calls } = await outside(gate)
    const env = { OUTSIDE: url }
    const crowd = await gather({ server, link, names: ['w1', 'w2'], script: caller, crew: 'waiting.mjs', env })
    const running = crowd.run()
    await gate.reached
    const { owner, other } = await waiting(crowd, 'troupe.tool.called')
    expect((await crowd.ask('drain', 'w9')).stderr).toContain('WORKER_UNKNOWN: there is no worker w9')
    expect((await crowd.ask('drain')).stderr).toContain('CONFIG_INVALID: which worker?')
    const draining = crowd.ask('drain', owner, '--json')
    await crowd.events(({ event }) => event.type === 'troupe.shard.left')
    gate.open()
    await wentOn(crowd, await running.end, { 'tool.called': 1, 'tool.finished': 1, 'model.called': 2 })
    expect(calls()).toBe(1)
    const told = await draining
    expect(told, told.stderr).toMatchObject({ code: 0 })
    const lines = jsonLines(told.stdout)
    expect(lines.at(0)).toMatchObject({ type: 'progress', worker: owner, calls: 1 })
    expect(lines.at(-1)).toEqual({ type: 'drained', worker: owner })
    expect(await crowd.workers.get(owner)!.end).toMatchObject({ code: 0, stderr: expect.stringContaining('drained') })
    expect(jsonLines((await crowd.ask('ps', '--json')).stdout).filter(({ type }) => type === 'worker')).toHaveLength(1)
    const last = await crowd.ask('drain', other)
    expect(last, last.stderr).toMatchObject({ code: 0, stderr: expect.stringContaining(`${other} is drained`) })
    expect((await crowd.workers.get(other)!.end).code).toBe(0)
  })

  test('C5 drain: the owner of a store takes nothing new, closes it, and says how to go on', async () => {
    const cwd = await scratch()
    const gate = new Gate()
    const scripted = await model(clerk({ 2: gate }))
    const words = ['run', crewFile('desk.mjs'), '--input', 'go']
    const running = troupe(words, { cwd, model: scripted })
    await gate.reached
    const draining = troupe(['drain', '--json'], { cwd })
    await draining.says('progress')
    gate.open()
    const told = await draining.end
    expect(told, told.stderr).toMatchObject({ code: 0 })
    const lines = jsonLines(told.stdout)
    expect([lines.at(0), lines.at(-1)]).toMatchObject([
      { type: 'progress', worker: null, crews: 1, calls: 1 },
      { type: 'drained' },
    ])
    const end = await running.end
    expect(end.code).toBe(130)
    expect(end.stderr).toContain('go on with: troupe run')
    // Its reply came in time: it is in the store, and is not asked for again.
    expect(await ended(words, { cwd, model: scripted })).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect(scripted.requests.count).toBe(3)
    expect((await ended(['drain'], { cwd })).stderr).toContain('there is nothing to drain')
  })
})

describe('ps', () => {
  test('ps: workers with their partitions and code, crews with their worker and what is open, one object a line', async () => {
    const gate = new Gate()
    const crowd = await gather({ server, link, names: ['w1', 'w2'], script: clerk({ 2: gate }) })
    const before = Date.now()
    const running = crowd.run()
    await gate.reached
    const { owner } = await waiting(crowd, 'troupe.model.called')
    const [cluster, one, other, crew] = jsonLines((await crowd.ask('ps', '--json')).stdout)
    expect(cluster).toEqual({
      type: 'cluster',
      server: expect.stringMatching(/^2\./),
      durability: 'process',
      replicas: 1,
      refused: 0,
    })
    expect([one, other]).toMatchObject([
      { type: 'worker', worker: 'w1', crews: { desk: expect.stringMatching(/^[0-9a-f]{64}$/) } },
      { type: 'worker', worker: 'w2', crews: { desk: one!['crews'] && expect.any(String) } },
    ])
    expect(Number(one!['partitions']) + Number(other!['partitions'])).toBe(64)
    expect(Math.abs(Number(one!['since']) - before)).toBeLessThan(60_000)
    expect(Number(other!['epoch'])).toBeGreaterThan(Number(one!['epoch']))
    expect(crew).toMatchObject({ type: 'crew', id: 'desk', crew: 'desk', owner, openEffects: 1, letters: 0, outbox: 0 })
    expect(crew).toMatchObject({ eventsBehind: 0 })
    const text = (await crowd.ask('ps')).stdout
    expect(text).toMatch(/^nats-server 2\.\S+ · 1 copy of the journal, survives kill -9, not a power cut$/m)
    expect(text).toMatch(/^WORKER {2}EPOCH {2}SINCE +PARTITIONS {2}CREWS$/m)
    expect(text).toMatch(new RegExp(`^desk +\\d+ +${owner} +at work: 1 open call$`, 'm'))
    expect(jsonLines((await crowd.ask('show', 'desk', '--json')).stdout)).toMatchObject([
      { durability: 'process', owner },
    ])
    gate.open()
    expect((await running.end).code).toBe(0)
  })

  test('ps: events that the stream does not take are told, by crew, until it takes them', async () => {
    const crowd = await gather({ server, link, names: ['w1'], script: clerk() })
    expect((await crowd.run().end).code).toBe(0)
    const behind = async () => {
      const crew = jsonLines((await crowd.ask('ps', '--json')).stdout).find(({ type }) => type === 'crew')
      return Number(crew?.['eventsBehind'])
    }
    await expect.poll(behind, { timeout: 20_000 }).toBe(0)
    const { streams } = link.manager
    const { config, state } = await streams.info(new Subjects(crowd.namespace).stream('events'))
    await streams.update(config.name, { ...config, discard: DiscardPolicy.New, max_msgs: state.messages })
    expect((await crowd.run('--new').end).code).toBe(0)
    expect(await behind()).toBeGreaterThan(3)
    expect((await crowd.ask('ps')).stdout).toMatch(/^desk +\d+ +w1 +idle, events \d+ commits behind$/m)
    await streams.update(config.name, config)
    await expect.poll(behind, { timeout: 20_000 }).toBe(0)
  })
})

describe('clocks', () => {
  test('clocks: workers that are ten minutes early and late change nothing: times, timers, leases, a move in between', async () => {
    const refused = new Gate()
    let refusedAt = 0
    let againAt = 0
    const script: ModelScript = () => {
      if (refusedAt > 0) {
        againAt = performance.now()
        return 'All is known.'
      }
      refusedAt = performance.now()
      void refused.pass()
      return fault.status(503, { retryAfter: 4 })
    }
    const envOf = (name: string) => ({
      NODE_OPTIONS: `--import ${crewFile('shifted-clock.mjs')}`,
      SHIFT_MS: name === 'w1' ? '600000' : '-600000',
    })
    const crowd = await gather({ server, link, names: ['w1', 'w2'], script, envOf })
    const before = Date.now()
    const running = crowd.run()
    await refused.reached
    const { other } = await waiting(crowd, 'troupe.model.failed')
    await moved(crowd, other)
    await wentOn(crowd, await running.end, { 'model.called': 2 })
    expect(againAt - refusedAt).toBeGreaterThan(3_900)
    const events = await crowd.events(({ event }) => event.type === 'troupe.run.finished')
    const times = events.map(({ event }) => Date.parse(event.time))
    expect(times).toEqual([...times].sort((one, next) => one - next))
    expect(times[0]).toBeGreaterThan(before - 5_000)
    expect(times.at(-1)).toBeLessThan(Date.now() + 5_000)
    // Each took its lease once, and has kept it.
    const workers = jsonLines((await crowd.ask('ps', '--json')).stdout).filter(({ type }) => type === 'worker')
    expect(workers).toHaveLength(2)
    for (const { since } of workers) expect(Math.abs(Number(since) - before)).toBeLessThan(60_000)
    const owners = events
      .filter(({ event }) => event.type === 'troupe.shard.taken')
      .map(({ event }) => event.data['owner'])
    for (const { worker, epoch } of workers) expect(owners).toContain(`${String(worker)}.${String(epoch)}`)
  })
})

describe('a second terminal', () => {
  test('commands: pause, resume, cancel, show, journal and rm reach a run that goes on, also after a move; wrong ids say so', async () => {
    const gate = new Gate()
    const crowd = await gather({ server, link, names: ['w1', 'w2'], script: clerk({ 2: gate }) })
    const running = crowd.run()
    await gate.reached
    const { owner, other } = await waiting(crowd, 'troupe.model.called')
    expect(await crowd.ask('pause', 'desk')).toMatchObject({ code: 0, stderr: 'desk paused\n' })
    expect((await crowd.ask('show', 'desk')).stdout).toMatch(/ · paused\n/)
    expect((await crowd.ask('rm', 'desk')).stderr).toContain('MESSAGE_REFUSED: desk is at work on r')
    expect((await crowd.ask('move', 'desk', '--to', other)).code).toBe(0)
    gate.open()
    // The reply comes, and the next round waits.
    await crowd.events(({ event }) => event.type === 'troupe.model.replied' && crowd.scripted.requests.count === 2)
    expect((await crowd.ask('show', 'desk')).stdout).toMatch(/ · paused\n/)
    expect((await crowd.ask('cancel', 'desk', '--run', 'r999')).code).toBe(0)
    expect((await crowd.ask('resume', 'desk')).code).toBe(0)
    expect((await running.end).code).toBe(0)
    for (const words of [
      ['show', 'nobody'],
      ['pause', 'nobody'],
      ['resume', 'nobody'],
      ['cancel', 'nobody'],
      ['journal', 'nobody'],
      ['rm', 'nobody'],
    ]) {
      const end = await crowd.ask(...words)
      expect([words, end.code, end.stderr.split('\n')[0]]).toEqual([
        words,
        1,
        expect.stringMatching(/^CREW_UNKNOWN: there is no crew nobody\b/),
      ])
    }
    expect((await crowd.ask('cancel', 'desk')).code).toBe(0)
    const journal = jsonLines((await crowd.ask('journal', 'desk', '--json')).stdout)
    expect(journal.map(({ sequence }) => sequence)).toEqual(journal.map((_, index) => index + 1))
    // Removed where it is now: whoever had it before knows it too, and a new life goes on behind the old one.
    expect((await crowd.ask('rm', 'desk')).code).toBe(0)
    expect((await crowd.ask('show', 'desk')).stderr).toContain('CREW_UNKNOWN')
    expect((await crowd.ask('pause', 'desk')).stderr).toContain('CREW_UNKNOWN')
    const anew = await crowd.run().end
    expect(anew, anew.stderr).toMatchObject({ code: 0 })
    const again = jsonLines((await crowd.ask('journal', 'desk', '--json')).stdout)
    expect(again[0]!['sequence']).toBe(journal.length + 1)
    expect([owner, other].sort()).toEqual(['w1', 'w2'])
  })
})
