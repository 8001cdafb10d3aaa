import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { defineAgent, defineCrew, defineTool } from '../../runtime/define.js'
import { EventHub, parseCursor, streamEvents, type TroupeEvent } from '../../runtime/events.js'
import type { Journal } from '../../runtime/journal.js'
import type { PlacedEvent } from '../../runtime/record.js'
import type { Run } from '../../runtime/run.js'
import { call, gate, openStage, override, quiet, resultsIn, say, type Stage, until } from '../support/crew-stage.js'

const lookup = defineTool({ name: 'lookup', description: '', input: z.object({}), effect: 'pure', run: () => 'found' })
const agent = defineAgent({ model: 'a:one', instructions: 'x', tools: [lookup] })
const rounds = (count: number): Parameters<typeof openStage>[0] => ({
  model: (request) => (resultsIn(request).length < count ? call(['lookup']) : say('done')),
})
const read = async (events: AsyncIterable<TroupeEvent>) => {
  const all: TroupeEvent[] = []
  for await (const event of events) all.push(event)
  return all
}
const ids = (events: readonly TroupeEvent[]) => events.map(({ id }) => id)

describe('events', () => {
  test('events: each is a CloudEvent with its place as id', async () => {
    const stage = await openStage(rounds(1))
    const crew = await stage.runtime.spawn(agent, { id: 'a-1' })
    const events = await read(crew.start('go').events)
    expect(events[0]).toEqual({
      specversion: '1.0',
      id: 'a-1-2-0',
      source: '/troupe/a-1/crew/main',
      type: 'troupe.run.queued',
      time: '2023-11-14T22:13:20.000Z',
      datacontenttype: 'application/json',
      data: { run: 'r2' },
    })
    expect(events.at(-1)).toMatchObject({ type: 'troupe.run.finished', data: { run: 'r2', code: null } })
    expect(events.map(({ type }) => type)).toContain('troupe.tool.finished')
    expect(new Set(ids(events)).size).toBe(events.length)
    expect(JSON.parse(JSON.stringify(events))).toEqual(events)
    await stage.runtime.close()
  })

  test('events: a cursor is read from an id, whatever the shard’s name; anything else is none', () => {
    expect(parseCursor('a-1-2-0')).toEqual({ sequence: 2, index: 0 })
    expect(parseCursor('r-9-9-12-34')).toEqual({ sequence: 12, index: 34 })
    for (const text of ['', 'x', 'a-1', 'a-1-', 'a--1-x', '-', 'a-99999999999999999999-1'])
      expect(parseCursor(text)).toBeNull()
  })

  test('EV1 events: from any cursor the rest comes, once, in order: nothing is missed and nothing repeated', async () => {
    const stage = await openStage(rounds(2))
    const crew = await stage.runtime.spawn(agent)
    const run = crew.start('go')
    const all = ids(await read(run.events))
    expect(all.length).toBeGreaterThanOrEqual(15)
    for (const [index, since] of all.entries()) {
      expect(ids(await read(run.stream({ since }))), `since ${since}`).toEqual(all.slice(index + 1))
    }
    await stage.runtime.close()
  })

  test('EV1 events: from any cursor also while the run goes on', async () => {
    const slow = gate()
    const stage = await openStage({
      model: async (request) => {
        if (resultsIn(request).length < 2) return call(['lookup'])
        await slow.opened
        return say('done')
      },
    })
    const crew = await stage.runtime.spawn(agent)
    const run = crew.start('go')
    await until(() => stage.requests.length === 3)
    await quiet()
    const first: string[] = []
    for await (const { id } of run.events) {
      first.push(id)
      if (first.length === 8) break
    }
    const streams = [...first.entries()].map(([index, since]) => ({ index, rest: read(run.stream({ since })) }))
    await quiet()
    slow.open()
    const all = ids(await read(run.events))
    for (const { index, rest } of streams) expect(ids(await rest)).toEqual(all.slice(index + 1))
    await stage.runtime.close()
  })

  test('EV1 events: a run that waited behind another has its own events only', async () => {
    const slow = gate()
    const stage = await openStage({
      model: async () => {
        await slow.opened
        return say('done')
      },
    })
    const crew = await stage.runtime.spawn(agent)
    const [one, two, three] = ['one', 'two', 'three'].map((text) => crew.start(text)) as [Run, Run, Run]
    await Promise.all([one.id, two.id, three.id])
    const streams = [one, two, three].map((run) => read(run.events))
    await quiet()
    await three.cancel()
    slow.open()
    const [first, second, third] = (await Promise.all(streams)) as [TroupeEvent[], TroupeEvent[], TroupeEvent[]]
    const runsIn = (events: TroupeEvent[]) =>
      new Set(events.flatMap(({ data }) => (typeof data['run'] === 'string' ? [data['run']] : [])))
    expect(runsIn(first)).toEqual(new Set(['r2']))
    expect(runsIn(second)).toEqual(new Set(['r3']))
    expect(third.map(({ type }) => type)).toEqual(['troupe.run.queued', 'troupe.run.finished'])
    const all = ids(second)
    for (const [index, since] of all.entries()) {
      expect(ids(await read(two.stream({ since })))).toEqual(all.slice(index + 1))
    }
    await stage.runtime.close()
  })

  test('EV2 events: a slow reader loses no stored event', async () => {
    const count = 400
    const stage = await openStage(rounds(count))
    const crew = await stage.runtime.spawn(
      defineAgent({ model: 'a:one', instructions: 'x', tools: [lookup], limits: { rounds: count + 1, loops: false } }),
    )
    const run = crew.start('go')
    const slow = run.events
    const seen = [(await slow.next()).value as TroupeEvent]
    await run.result
    for await (const event of slow) seen.push(event)
    expect(seen.length).toBeGreaterThan(1_000)
    expect(ids(seen)).toEqual(ids(await read(run.events)))
    await stage.runtime.close()
  })

  test('EV2 events: what comes while the store is being read is neither lost nor doubled', async () => {
    const hub = new EventHub()
    const placed = (sequence: number): PlacedEvent => ({ sequence, index: 0, at: 0, from: 'x', event: { type: 'e' } })
    const stage = await openStage()
    const publish = (sequence: number) => hub.publish('s', [placed(sequence)])
    const journal: Journal = override(stage.journal, {
      async *readEvents() {
        publish(2)
        yield { first: 1, bytes: await bytesOf([1, 2]) }
        publish(3)
        publish(2)
      },
    })
    const events = streamEvents({
      shard: 's',
      after: { sequence: 0, index: -1 },
      journal,
      hub,
      isLast: ({ sequence }) => sequence === 3,
      wants: () => true,
      wantsLive: null,
      now: () => 0,
    })
    expect(ids(await read(events))).toEqual(['s-1-0', 's-2-0', 's-3-0'])
    await stage.runtime.close()
  })

  test('EV3 events: a reader that leaves costs nothing and cancels nothing', async () => {
    const slow = gate()
    const stage = await openStage({ model: () => slow.opened.then(() => say('done')) })
    const crew = await stage.runtime.spawn(agent)
    const run = crew.start('go')
    for await (const { type } of run.events) if (type === 'troupe.model.called') break
    const controller = new AbortController()
    const aborted = read(run.stream({ signal: controller.signal }))
    await quiet()
    controller.abort()
    expect((await aborted).length).toBeGreaterThan(0)
    expect(stage.worker.hub.watched('agent')).toBe(false)
    slow.open()
    await expect(run.result).resolves.toMatchObject({ output: 'done' })
    await stage.runtime.close()
  })

  test('events: deltas come while somebody watches, of the lead in `text`, and are no cursors', async () => {
    const stage = await openStage({
      model: (request) => {
        const lead = request.messages[0]!.includes('lead')
        if (lead && resultsIn(request).length === 0) return call(['helper', { task: 'x' }])
        const text = lead ? 'the answer' : 'not for you'
        request.onDelta?.({ text: text.slice(0, 4), offset: 0 })
        request.onDelta?.({ text: text.slice(4), offset: 4 })
        return say(text)
      },
    })
    const crew = await stage.runtime.spawn(
      defineCrew({
        name: 'pair',
        agents: {
          lead: defineAgent({ model: 'a:one', instructions: 'lead', delegates: ['helper'] }),
          helper: defineAgent({ model: 'a:one', instructions: 'helper' }),
        },
        lead: 'lead',
      }),
    )
    const run = crew.start('go')
    const events = read(run.events)
    let text = ''
    for await (const piece of run.text) text += piece
    expect(text).toBe('the answer')
    const deltas = (await events).filter(({ type }) => type === 'troupe.model.delta')
    expect(deltas.map(({ data }) => `${String(data['agent'])}:${String(data['text'])}`)).toEqual([
      'helper:not ',
      'helper:for you',
      'lead:the ',
      'lead:answer',
    ])
    expect(new Set(ids(deltas)).size).toBe(4)
    await stage.runtime.close()
  })

  test('events: nobody watches, nobody asks for a stream', async () => {
    const stage: Stage = await openStage()
    await (await stage.runtime.spawn(agent)).ask('go')
    expect(stage.requests[0]).toMatchObject({ stream: false, onDelta: undefined })
    await stage.runtime.close()
  })
})

async function bytesOf(sequences: readonly number[]): Promise<Uint8Array> {
  const { encode } = await import('../../runtime/codec.js')
  return encode(sequences.map((sequence) => [sequence, 0, [['x', { type: 'e' }]]]))
}
