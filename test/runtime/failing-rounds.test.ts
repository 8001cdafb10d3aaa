import { describe, expect, test } from 'vitest'
import { type AgentOptions, defineCrew, type HistoryMessage } from '../../runtime/define.js'
import { call, openStage, resultsIn, say, until } from '../support/crew-stage.js'
import { agentWith, asked, changing, looks } from '../support/rounds.js'

describe('prepareRound: code that fails', () => {
  const refusals: [string, () => unknown, RegExp][] = [
    [
      'throws',
      () => {
        throw new Error('planted sk-123456789012345678901234')
      },
      /^prepareRound failed: planted \S*\[redacted\]/,
    ],
    ['rejects', () => Promise.reject(new Error('planted')), /^prepareRound failed: planted$/],
    [
      'throws what is no error',
      () => {
        // eslint-disable-next-line @typescript-eslint/only-throw-error
        throw null
      },
      /^prepareRound failed: null$/,
    ],
    [
      'throws what cannot be read',
      () => {
        throw Object.defineProperty(new Error('x'), 'message', {
          get: () => {
            throw new Error('again')
          },
        })
      },
      /^prepareRound failed: it gave no reason$/,
    ],
    ['brings what is nothing', () => 7, /^prepareRound brought what it may not/],
    ['brings an unknown field', () => ({ toolz: [] }), /^prepareRound brought what it may not.*toolz/],
    ['names an unknown tool', () => ({ tools: ['nope'] }), /^prepareRound named the tool "nope"/],
    ['names no model', () => ({ model: 'nope' }), /^prepareRound brought what it may not/],
    [
      'makes a result up',
      () => ({ messages: [{ role: 'tool', content: 'x' }] }),
      /^prepareRound may say messages of its own/,
    ],
    [
      'makes a message up that is none',
      () => ({ messages: [{ role: 'user' }] }),
      /^prepareRound may say messages of its own/,
    ],
    ['brings too much', () => ({ messages: [{ role: 'user', content: 'x'.repeat(1_100_000) }] }), /more than 1 MiB/],
    [
      'brings settings without end',
      () => ({ settings: { extra: { x: 'x'.repeat(70_000) } } }),
      /more than 64 KiB of settings/,
    ],
  ]
  for (const [what, prepare, reason] of refusals)
    test(`RND2 prepareRound: one that ${what} ends the agent with the reason`, async () => {
      const ended = asked({ prepareRound: prepare as AgentOptions['prepareRound'] } as never, () => say('x'))
      await expect(ended).rejects.toMatchObject({ code: 'CALLBACK_FAILED', message: expect.stringMatching(reason) })
    })

  test('RND2 prepareRound: messages out of order, or with its own between, are refused', async () => {
    for (const choose of [
      (given: readonly HistoryMessage[]) => [...given].reverse(),
      (given: readonly HistoryMessage[]) => [given[0]!, given[0]!],
      (given: readonly HistoryMessage[]) => [given[0]!, { role: 'user', content: 'x' }, ...given.slice(1)],
    ]) {
      const ended = asked(
        changing(({ round, messages }) => (round === 1 ? {} : { messages: choose(messages) })),
        looks(1),
      )
      await expect(ended).rejects.toMatchObject({
        code: 'CALLBACK_FAILED',
        message: expect.stringMatching(/in their order/),
      })
    }
  })

  test('RND2 prepareRound: a model that cannot work is refused before anything is paid', async () => {
    const ended = asked(
      changing(() => ({ model: 'z:none' })),
      () => say('x'),
      {
        modelPort: {
          call: async () => say('x'),
          price: () => null,
          check: (name) => {
            if (name === 'z:none') throw new Error('no provider z')
          },
          close: async () => undefined,
        },
      },
    )
    await expect(ended).rejects.toMatchObject({
      code: 'CALLBACK_FAILED',
      message: expect.stringMatching(/no provider z/),
    })
  })

  test('RND2 prepareRound: one that hangs is given up after its time, and told by its signal', async () => {
    let signal: AbortSignal | undefined
    const stage = await openStage()
    const hangs = agentWith({
      limits: { prepareMs: 5_000 },
      prepareRound: (context) => {
        signal = context.signal
        return new Promise<undefined>(() => undefined)
      },
    })
    const { result } = (await stage.runtime.spawn(hangs)).start('go')
    await until(() => signal !== undefined)
    stage.clock.advance(5_000)
    await expect(result).rejects.toMatchObject({
      code: 'CALLBACK_FAILED',
      message: 'prepareRound took longer than 5000 ms',
    })
    expect([signal!.aborted, stage.requests.length]).toEqual([true, 0])
    await stage.runtime.close()
  })

  test('RND2 prepareRound: a delegate whose code fails tells its caller', async () => {
    const agents = {
      lead: agentWith({ delegates: ['help'] }),
      help: agentWith(changing(() => ({ tools: ['nope'] }))),
    }
    const { output } = await asked(defineCrew({ name: 'd', agents, lead: 'lead' }), (request) =>
      resultsIn(request).length === 0 ? call(['help', { task: 'x' }]) : say(resultsIn(request)[0]!),
    )
    expect(output).toMatch(/CALLBACK_FAILED.*named the tool "nope"/)
  })
})
