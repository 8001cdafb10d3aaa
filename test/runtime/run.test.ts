import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { defineAgent, defineCrew, defineTool } from '../../runtime/define.js'
import { isTroupeError } from '../../runtime/errors.js'
import { toServerSentEvent } from '../../runtime/run.js'
import { keyOf, messagesOf as toMessages } from '../../runtime/run-input.js'
import { call, failure, gate, messagesOf, openStage, quiet, resultsIn, say, until } from '../support/crew-stage.js'
import { startScript } from '../support/child.js'

const agent = defineAgent({ model: 'a:one', instructions: 'be brief' })

describe('run', () => {
  test('U1 run: nobody watches, somebody left, somebody never reads: the run goes on', async () => {
    const slow = gate()
    const stage = await openStage({ model: () => slow.opened.then(() => say('done')) })
    const crew = await stage.runtime.spawn(agent)
    const run = crew.start('go')
    void run.events.next()
    await run.toResponse().body?.cancel()
    for await (const _ of run.events) break
    await quiet()
    slow.open()
    await expect(run.result).resolves.toMatchObject({ output: 'done' })
    const unread = crew.start('again')
    await unread.id
    const shard = await stage.worker.shard('agent')
    await until(() => [...shard.state.runs.values()].every(({ status }) => status === 'finished'))
    await stage.runtime.close()
  })

  test('R3 run: whoever waits for a run keeps the process alive; whoever leaves does not, and cancels nothing', async () => {
    // In a process of its own, in which nothing else is left to do. Its model answers by a timer that does not hold it.
    const stage = (rest: string) => `
      import { defineAgent } from '#root/runtime/define.js'
      import { openStage, say } from '#root/test/support/crew-stage.js'
      const later = (ms) => new Promise((resolve) => setTimeout(() => resolve(say('done')), ms).unref())
      const { runtime } = await openStage({ model: () => later(300) })
      const run = (await runtime.spawn(defineAgent({ model: 'a:one', instructions: 'x' }))).start('go')
      await run.id
      const left = async () => {
        for await (const _ of run.events) break
      }
      ${rest}`
    const outputOf = async (rest: string): Promise<string> => {
      await using script = startScript(stage(rest))
      await script.ended
      return script.output.stdout + script.output.stderr
    }
    const [awaited, followed, leaving, returned] = await Promise.all([
      outputOf('console.log((await run.result).output)'),
      outputOf('for await (const _ of run.events);\nconsole.log("end")'),
      outputOf('await left()\nvoid run.result.then(({ output }) => console.log(output))'),
      outputOf('await left()\nprocess.once("exit", () => console.log("nothing left to do"))'),
    ])
    expect(awaited).toBe('done\n')
    expect(followed).toBe('end\n')
    expect(leaving).toBe('done\n')
    expect(returned).toBe('nothing left to do\n')
    // Four processes that load everything from its source.
  }, 60_000)

  test('U2 run: a result that nobody awaits never reaches the process', async () => {
    const escaped: unknown[] = []
    const note = (reason: unknown) => void escaped.push(reason)
    process.on('unhandledRejection', note)
    const stage = await openStage({ model: () => failure('bad_request') })
    const crew = await stage.runtime.spawn(agent)
    const refused = crew.start('x', { key: '' })
    const failed = crew.start('go')
    void failed.result
    void refused.result
    crew.start(null as never)
    await failed.id
    await quiet()
    await expect(failed.result).rejects.toMatchObject({ code: 'MODEL_FAILED' })
    await quiet()
    process.off('unhandledRejection', note)
    expect(escaped).toEqual([])
    await stage.runtime.close()
  })

  test('run: the result has output, messages, usage, cost and the reason why it ended', async () => {
    const lookup = defineTool({
      name: 'lookup',
      description: '',
      input: z.object({}),
      effect: 'pure',
      run: () => 'found',
    })
    const stage = await openStage({
      model: (request) => (resultsIn(request).length === 0 ? call(['lookup']) : say('done')),
    })
    const crew = await stage.runtime.spawn(defineAgent({ model: 'a:one', instructions: 'x', tools: [lookup] }))
    await expect(crew.ask('go')).resolves.toEqual({
      runId: 'r2',
      output: 'done',
      messages: [
        { role: 'user', content: 'go' },
        {
          role: 'assistant',
          content: null,
          tool_calls: [{ id: 'call_0', type: 'function', function: { name: 'lookup', arguments: '{}' } }],
        },
        { role: 'tool', tool_call_id: 'call_0', content: 'found' },
        { role: 'assistant', content: 'done' },
      ],
      usage: { tokens: 60, modelCalls: 2, toolCalls: 1 },
      cost: { usd: 0.00008, nanoUsd: 80_000 },
      finishReason: 'stop',
      rounds: 2,
    })
    await stage.runtime.close()
  })

  test('run: messages come without the system message, also when instructions are a function', async () => {
    const stage = await openStage()
    const dynamic = defineAgent({
      model: 'a:one',
      instructions: ({ input, data }) => `about ${input} for ${String(data)}`,
    })
    const crew = await stage.runtime.spawn(dynamic)
    const { messages } = await crew.ask('go', { data: 'acme' })
    expect(messagesOf(stage.requests[0]!)).toEqual([
      { role: 'system', content: 'about go for acme' },
      { role: 'user', content: 'go' },
    ])
    expect(messages.map(({ role }) => role)).toEqual(['user', 'assistant'])
    await stage.runtime.close()
  })

  test('run: a typed answer is what the schema made of it; what does not fit is sent back', async () => {
    const output = z.object({ n: z.number().transform((n) => n + 1) })
    const stage = await openStage({
      model: (_, index) => (index === 0 ? say('no json') : say('{"n":41}')),
    })
    const crew = await stage.runtime.spawn(defineAgent({ model: 'a:one', instructions: 'x', output }))
    await expect(crew.ask('go')).resolves.toMatchObject({ output: { n: 42 }, rounds: 2 })
    expect(messagesOf(stage.requests[1]!).at(-1)).toMatchObject({
      role: 'user',
      content: expect.stringContaining('JSON'),
    })
    await stage.runtime.close()
  })

  test('run: a failed run rejects with its code, and what it cost', async () => {
    const stage = await openStage({
      model: () =>
        failure('bad_request', {
          billed: true,
          usage: { inputTokens: 9, outputTokens: 1, cachedInputTokens: 0, estimated: false },
        }),
    })
    const crew = await stage.runtime.spawn(agent)
    const error = await crew.ask('go').catch((reason: unknown) => reason)
    expect(isTroupeError(error)).toBe(true)
    expect(error).toMatchObject({
      code: 'MODEL_FAILED',
      details: { runId: 'r2', crewId: 'agent', costNanoUsd: 11_000, modelCalls: 1 },
    })
    await stage.runtime.close()
  })

  test('run: a signal cancels it, before it started and while it runs', async () => {
    const stage = await openStage({ model: () => gate<never>().opened })
    const crew = await stage.runtime.spawn(agent)
    await expect(crew.start('go', { signal: AbortSignal.abort() }).result).rejects.toMatchObject({
      code: 'RUN_CANCELLED',
    })
    const controller = new AbortController()
    const run = crew.start('go', { signal: controller.signal })
    await until(() => stage.requests.at(-1)?.signal.aborted === false)
    controller.abort()
    await expect(run.result).rejects.toMatchObject({ code: 'RUN_CANCELLED' })
    await stage.runtime.close()
  })

  test('run: toResponse is a stream of server-sent events whose ids are cursors', async () => {
    const stage = await openStage({
      model: async (request) => {
        await quiet()
        request.onDelta?.({ text: 'do', offset: 0 })
        return say('done')
      },
    })
    const crew = await stage.runtime.spawn(agent, { id: 'my-live-crew' })
    const run = crew.start('go')
    const response = run.toResponse()
    expect(response.headers.get('content-type')).toBe('text/event-stream; charset=utf-8')
    const blocks = (await response.text()).trim().split('\n\n')
    const ids = blocks.flatMap((block) => /^id: (.*)$/m.exec(block)?.[1] ?? [])
    const types = blocks.map((block) => /^event: (.*)$/m.exec(block)?.[1])
    expect(types).toContain('troupe.model.delta')
    expect(ids).toHaveLength(blocks.length - 1)
    expect(blocks.every((block) => JSON.parse(/^data: (.*)$/m.exec(block)?.[1] ?? '') !== null)).toBe(true)
    const rest = (await run.toResponse({ since: ids[3]! }).text()).trim().split('\n\n')
    expect(rest.map((block) => /^id: (.*)$/m.exec(block)?.[1])).toEqual(ids.slice(4))
    expect((await run.toResponse({ since: ids.at(-1)! }).text()).trim()).toBe('')
    await stage.runtime.close()
  })

  test('run: an event is one block, whatever is in its data', () => {
    const event = {
      specversion: '1.0',
      id: 'a-1-0',
      source: '/x',
      type: 'troupe.x',
      time: '',
      datacontenttype: 'application/json',
      data: { text: 'a\n\ndata: b\r\nid: 9' },
    } as const
    const text = toServerSentEvent(event)
    expect(text.match(/\n/g)).toHaveLength(4)
    expect(text.startsWith('id: a-1-0\nevent: troupe.x\ndata: {')).toBe(true)
  })

  test('run: delegates work in conversations of their own; a refused depth is told', async () => {
    const stage = await openStage({
      model: (request) => {
        const results = resultsIn(request)
        const task = messagesOf(request).find(({ role }) => role === 'user')?.content ?? ''
        if (results.length > 0) return say(`${task}<${results.join(',')}>`)
        return call(['lead', { task: `${task}.` }])
      },
    })
    const crew = await stage.runtime.spawn(
      defineCrew({
        name: 'deep',
        agents: { lead: defineAgent({ model: 'a:one', instructions: 'x', delegates: ['lead'] }) },
        lead: 'lead',
        limits: { depth: 2 },
      }),
    )
    const { output } = await crew.ask('go')
    expect(output).toBe('go<go.<go..<Not done: delegations may be nested 2 deep at most.>>>')
    await stage.runtime.close()
  })

  test('run: a conversation that is kept goes on in the next run, and its result has the new messages only', async () => {
    const stage = await openStage()
    const crew = await stage.runtime.spawn(defineAgent({ model: 'a:one', instructions: 'x', continue: true }))
    await crew.ask('one')
    const { messages } = await crew.ask('two')
    expect(messagesOf(stage.requests[1]!).map(({ content }) => content)).toEqual(['x', 'one', 'done', 'two'])
    expect(messages.map(({ content }) => content)).toEqual(['two', 'done'])
    await stage.runtime.close()
  })

  test('RI1 run: input may be text, parts or messages', () => {
    expect(toMessages('x')).toEqual({ messages: ['{"role":"user","content":"x"}'], text: 'x' })
    const parts = toMessages([
      { type: 'text', text: 'look' },
      { type: 'image', url: 'https://x/y.png' },
      { type: 'file', name: 'a.pdf', mediaType: 'application/pdf', data: 'AA==' },
    ])
    expect(JSON.parse(parts.messages[0]!)).toEqual({
      role: 'user',
      content: [
        { type: 'text', text: 'look' },
        { type: 'image_url', image_url: { url: 'https://x/y.png' } },
        { type: 'file', file: { filename: 'a.pdf', file_data: 'data:application/pdf;base64,AA==' } },
      ],
    })
    expect(
      toMessages({
        messages: [
          { role: 'user', content: 'a' },
          { role: 'assistant', content: 'b' },
        ],
      }).text,
    ).toBe('a\nb')
    expect(keyOf('q', 'x')).toBe(keyOf('q', 'x'))
    expect(keyOf('q', 'x')).not.toBe(keyOf('r', 'x'))
  })
})
