/** Remote tools over whole runtimes: a worker, a tool worker, a model and a server. */
import {
  createRuntime,
  defineAgent,
  defineCrew,
  defineTool,
  type DistributedRuntime,
  reply,
  startScriptedModel,
} from 'troupe'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { z } from 'zod'
import type { ModelScript } from '../../actors/scripted-chat.js'
import type { AnyTool, Crew } from '../../runtime/define.js'
import { remoteOutcome } from '../../runtime/remote-outcome.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { followEvents } from '../../transport/nats-follower.js'
import { Subjects } from '../../transport/subjects.js'
import { gate } from '../support/crew-stage.js'
import { providers } from '../support/live-crew.js'
import type { NatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'

let server: NatsServer
let link: NatsLink
let namespace: string
let subjects: Subjects
let count = 0
const closing: (() => unknown)[] = []
useNats((nats) => {
  ;({ server, link } = nats)
})
beforeEach(() => {
  namespace = `far${++count}`
  subjects = new Subjects(namespace)
})
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close()
})

/** A tool that takes a word. */
function tool(
  name: string,
  run: AnyTool['run'],
  more: { concurrency?: number; effect?: 'pure' | 'once' } = {},
): AnyTool {
  const input = z.object({ word: z.string() })
  return defineTool({ name, description: '', input, remote: true, ...more, run: run as () => unknown })
}

/** Calls the named tools one after the other, then answers with what they said. */
function calls(...names: string[]): ModelScript {
  return ({ messages }) => {
    const results = messages.filter(({ role }) => role === 'tool')
    const next = names[results.length]
    return next === undefined
      ? reply.text(results.map(({ content }) => String(content)).join(' | '))
      : reply.call(next, { word: `w${results.length}` })
  }
}

async function join(role: 'worker' | 'tools', name: string, crew: Crew, baseURL = ''): Promise<DistributedRuntime> {
  const runtime = (await createRuntime({
    ...(baseURL === '' ? {} : { providers: providers(baseURL) }),
    log: 'silent',
    nats: { servers: server.url, namespace, role, worker: name, leaseMs: 1_000 },
  })) as DistributedRuntime
  closing.push(() => runtime.close({ graceMs: 0 }))
  await runtime.offer(crew)
  return runtime
}

async function scripted(script: ModelScript): Promise<string> {
  const model = await startScriptedModel(script)
  closing.push(() => model.close())
  return model.baseURL
}
const crewOf = (...tools: AnyTool[]): Crew =>
  defineCrew({
    name: 'far',
    agents: { lead: defineAgent({ model: 'scripted:m', instructions: 'x', tools }) },
    lead: 'lead',
  })

describe('remote tools over runtimes', () => {
  test('classes: a call of each is done by a tool worker, recorded before, and its outcome comes by mail', async () => {
    const named = (name: string, effect: 'pure' | 'once') =>
      tool(name, ({ word }: { word: string }) => `${name} ${word}`, { effect })
    const crew = crewOf(named('look', 'pure'), named('send', 'once'))
    const worker = await join('worker', 'w', crew, await scripted(calls('look', 'send')))
    await join('tools', 't', crew)
    const handle = await worker.spawn(crew)
    const { output } = await handle.ask('go')
    expect(output).toBe('look w0 | send w1')
  })

  test('progress: what a remote tool shows comes to whoever watches the run', async () => {
    const seen = gate<string>()
    const run = async (_: object, { progress }: { progress: (value: unknown) => void }): Promise<string> => {
      // Best effort: it is shown until somebody has seen it.
      const again = setInterval(() => progress({ percent: 50 }), 20)
      const text = await seen.opened
      clearInterval(again)
      return text
    }
    const crew = crewOf(tool('look', run))
    const worker = await join('worker', 'w', crew, await scripted(calls('look')))
    await join('tools', 't', crew)
    const started = (await worker.spawn(crew)).start('go')
    for await (const { type, data } of started.events) {
      if (type !== 'troupe.tool.progress') continue
      expect(data).toMatchObject({ agent: 'lead', value: { percent: 50 } })
      break
    }
    seen.open('seen')
    expect((await started.result).output).toBe('seen')
  })

  test('stored: a round with a remote tool takes at most six messages on the server, events and mail included', async () => {
    const crew = crewOf(tool('look', ({ word }: { word: string }) => word))
    const script: ModelScript = ({ messages }) => {
      const wanted = Number(messages.find(({ role }) => role === 'user')?.content)
      const done = messages.filter(({ role }) => role === 'tool').length
      return done < wanted ? reply.call('look', { word: `w${done}` }) : reply.text('done')
    }
    const worker = await join('worker', 'w', crew, await scripted(script))
    await join('tools', 't', crew)
    const handle = await worker.spawn(crew)
    const stored = async (runs: number): Promise<number> => {
      let ended = 0
      for await (const { event } of followEvents({ link, subjects, since: 'all' })) {
        if (event.type === 'troupe.run.finished') ended += 1
        if (ended === runs) break
      }
      const streams = (['journal', 'content', 'mail', 'events'] as const).map((of) => subjects.stream(of))
      const infos = await Promise.all(streams.map((name) => link.manager.streams.info(name)))
      return infos.reduce((sum, { state }) => sum + state.last_seq, 0)
    }
    await handle.ask('1')
    const first = await stored(1)
    await handle.ask('2')
    const second = await stored(2)
    await handle.ask('12')
    const third = await stored(3)
    // Ten rounds more than the run before; fewer where commits share a record.
    expect((third - second - (second - first)) / 10).toBeLessThanOrEqual(6)
    expect(third - second).toBeGreaterThan(12 * 3)
  })

  test('RMO1 TO1 hostile: a start that comes twice and an outcome from somebody else change nothing', async () => {
    const open = gate<string>()
    let ran = 0
    const crew = crewOf(tool('send', () => ((ran += 1), open.opened), { effect: 'once' }))
    const worker = await join('worker', 'w', crew, await scripted(calls('send')))
    await join('tools', 't', crew)
    const overheard = link.connection.subscribe(subjects.start('t'), { max: 1 })
    const dead = link.connection.subscribe(subjects.dead(), { max: 1 })
    await link.connection.flush()
    const result = (await worker.spawn(crew)).ask('go')
    for await (const { data } of overheard) {
      const again = await link.connection.request(subjects.start('t'), data)
      expect(again.json()).toEqual({ started: true })
      const { effect } = JSON.parse(Buffer.from(data).toString()) as { effect: string }
      const owner = (await link.manager.streams.info(`KV_${subjects.stream('workers')}`)).state.last_seq
      const forged = remoteOutcome(`evil.${owner}`, effect, { status: 'ok', content: 'forged', truncated: false })
      link.connection.publish(subjects.mail('far', forged.to), JSON.stringify(forged))
    }
    for await (const message of dead) expect(message.json()).toMatchObject({ shard: 'far', code: 'OUTCOME_FORGED' })
    open.open('sent')
    expect((await result).output).toBe('sent')
    expect(ran).toBe(1)
  })

  test('offer: two remote tools of one name are refused', async () => {
    const tools = await join('tools', 't', crewOf(tool('look', () => 1)))
    await expect(tools.offer(crewOf(tool('look', () => 2)))).rejects.toMatchObject({ code: 'CREW_INVALID' })
  })
})
