import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { defineAgent, defineCrew, defineTool } from '../../runtime/define.js'
import type { TroupeEvent } from '../../runtime/events.js'
import type { ModelRequest } from '../../runtime/ports.js'
import { call, gate, messagesOf, openStage, say, type Stage, type StageOptions, until } from '../support/crew-stage.js'

const agent = defineAgent({ model: 'a:one', instructions: 'x', limits: { rounds: 4 } })
const spokenIn = (request: ModelRequest) => messagesOf(request).map(({ content }) => content)
const spoken = (stage: Stage, request: number) => spokenIn(stage.requests[request]!)

/** A run whose first model call waits until it is let go. */
async function thinking(options: StageOptions = {}) {
  const slow = gate()
  const stage = await openStage({
    model: (_, index) => (index === 0 ? slow.opened.then(() => say('one')) : say('two')),
    ...options,
  })
  const crew = await stage.runtime.spawn(agent)
  const run = crew.start('go')
  await until(() => stage.requests.length === 1)
  return { stage, crew, run, answer: slow.open }
}

describe('steering: promises', () => {
  test('ST1 steering: messages join behind the reply on its way, once and in order, and get an answer', async () => {
    const { stage, crew, run, answer } = await thinking()
    await crew.steer('first')
    await crew.steer([{ type: 'text', text: 'second' }], { key: 'k' })
    await stage.runtime.steer('agent', 'second again', { key: 'k' })
    answer()
    const { output, messages, rounds, usage } = await run.result
    expect([output, rounds]).toEqual(['two', 2])
    expect(spoken(stage, 1)).toEqual(['x', 'go', 'one', 'first', [{ type: 'text', text: 'second' }]])
    expect(messages.map(({ role }) => role)).toEqual(['user', 'assistant', 'user', 'user', 'assistant'])
    expect(usage.modelCalls).toBe(2)
    await stage.runtime.close()
  })

  test('ST1 steering: a message while a tool runs joins behind its result; a paused crew keeps it', async () => {
    const slow = gate()
    const wait = defineTool({
      name: 'wait',
      description: 'w',
      input: z.object({}),
      run: () => slow.opened.then(() => 'fact'),
    })
    const stage = await openStage({ model: (_, index) => (index === 0 ? call(['wait']) : say('done')) })
    const crew = await stage.runtime.spawn(defineAgent({ model: 'a:one', instructions: 'x', tools: [wait] }), {
      id: 'agent',
    })
    const run = crew.start('go')
    await until(async () => (await stage.runtime.show('agent')).openEffects === 1 && stage.requests.length === 1)
    await crew.pause()
    await crew.steer('first', { run: await run.id })
    slow.open()
    await until(async () => (await stage.runtime.show('agent')).actors.some(({ state }) => state === 'held'))
    await crew.steer('second')
    await crew.resume()
    await run.result
    expect(messagesOf(stage.requests[1]!).map(({ role }) => role)).toEqual([
      'system',
      'user',
      'assistant',
      'tool',
      'user',
      'user',
    ])
    expect(spoken(stage, 1).slice(-3)).toEqual(['fact', 'first', 'second'])
    await stage.runtime.close()
  })

  test('ST1 steering: a message is kept over the death of the process, and so is its key', async () => {
    const { stage, crew } = await thinking()
    await crew.steer('x'.repeat(200_000), { key: 'k' })
    stage.crash()
    const next = await openStage({ store: stage.store, clock: stage.clock, unclean: true })
    const again = await next.runtime.spawn(agent)
    await again.steer('no', { key: 'k' })
    const { output } = await (await again.current())!.result
    expect(output).toBe('done')
    expect(spoken(next, 0).map((text) => text?.length)).toEqual([1, 2, 200_000])
    await next.runtime.close()
  })

  test('ST1 steering: with no round left the message goes, the answer stays, and an event says so', async () => {
    const slow = gate()
    const stage = await openStage({ model: () => slow.opened.then(() => say('one')) })
    const crew = await stage.runtime.spawn(defineAgent({ model: 'a:one', instructions: 'x', limits: { rounds: 1 } }), {
      id: 'agent',
    })
    const run = crew.start('go')
    await until(() => stage.requests.length === 1)
    await crew.steer('too late')
    const seen: TroupeEvent[] = []
    const watching = (async () => {
      for await (const event of run.events) seen.push(event)
    })()
    slow.open()
    const { output, messages } = await run.result
    await watching
    expect([output, messages.length]).toEqual(['one', 2])
    const types = seen.map(({ type }) => type.replace('troupe.', '')).filter((type) => type.includes('steered'))
    expect(types).toEqual(['agent.steered', 'agent.unsteered'])
    const shard = await stage.worker.shard('agent')
    expect([...shard.state.logs.keys()]).toEqual([await run.id])
    await stage.runtime.close()
  })
})

describe('steering: whom', () => {
  test('steering: a delegate at work is told, its caller is not', async () => {
    const slow = gate()
    const crewOf = defineCrew({
      name: 'duo',
      lead: 'chief',
      agents: {
        chief: defineAgent({ model: 'a:one', delegates: ['scout'], instructions: 'x' }),
        scout: defineAgent({ model: 'a:one', instructions: 'y' }),
      },
    })
    const stage = await openStage({
      model: (request, index) => {
        if (spokenIn(request)[0] === 'x')
          return messagesOf(request).some(({ role }) => role === 'tool')
            ? say('end')
            : call(['scout', { task: 'look' }])
        return index === 1 ? slow.opened.then(() => say('found')) : say('found more')
      },
    })
    const crew = await stage.runtime.spawn(crewOf)
    const run = crew.start('go')
    await until(() => stage.requests.length === 2)
    await expect(crew.steer('x', { agent: 'clerk' })).rejects.toMatchObject({ code: 'STEER_REFUSED' })
    await crew.steer('look there', { agent: 'scout' })
    slow.open()
    await run.result
    expect(stage.requests.map((request) => spokenIn(request)[0])).toEqual(['x', 'y', 'y', 'x'])
    expect(spoken(stage, 2).slice(-2)).toEqual(['found', 'look there'])
    expect(spoken(stage, 3).at(-1)).toBe('found more')
    await stage.runtime.close()
  })

  test('steering: with nobody at work it is refused, and what is no message is refused before it is journalled', async () => {
    const stage = await openStage()
    const crew = await stage.runtime.spawn(agent)
    for (const bad of [7, null, { messages: [{ role: 'user', content: 'x' }] }, []] as never[])
      await expect(crew.steer(bad)).rejects.toMatchObject({ code: 'INPUT_INVALID' })
    for (const options of [{ key: '' }, { key: 'k'.repeat(65) }, { run: 'r'.repeat(65) }, { agent: 'a'.repeat(129) }])
      await expect(crew.steer('x', options)).rejects.toMatchObject({ code: 'INPUT_INVALID' })
    expect(stage.store.shards.get('agent')?.head.sequence).toBe(1)
    await expect(crew.steer('x')).rejects.toMatchObject({ code: 'STEER_REFUSED', message: 'agent: no run goes on' })
    const { runId } = await crew.ask('go')
    await expect(crew.steer('x', { run: runId })).rejects.toMatchObject({
      code: 'STEER_REFUSED',
      details: { run: runId },
    })
    await expect(stage.runtime.steer('nobody', 'x')).rejects.toMatchObject({ code: 'CREW_UNKNOWN' })
    await stage.runtime.close()
  })
})
