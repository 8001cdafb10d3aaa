import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { type ModelScript, reply } from '../../actors/scripted-model.js'
import { until } from '../support/crew-stage.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import type { NatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'
import { crewFile, ended, jsonLines, model, scratch, troupe } from './command-line.js'
import { gather } from './crowd.js'

let server: NatsServer
let link: NatsLink
useNats((nats) => {
  ;({ server, link } = nats)
})

const till = crewFile('till.mjs')
const pays: ModelScript = ({ messages }) =>
  messages.at(-1)?.role === 'tool'
    ? `Told: ${String(messages.at(-1)?.content)}`
    : reply.call('pay', { to: 'ada', usd: 5 })
const paid = (cwd: string): Promise<string> => readFile(join(cwd, 'paid.txt'), 'utf8').catch(() => '')

describe('troupe approve', () => {
  test('approve: a run without a terminal leaves with 3; approved while nothing runs, the same command pays and ends', async () => {
    const cwd = await scratch()
    const server = await model(pays)
    const words = ['run', till, '--input', 'go']
    const left = await ended(words, { cwd, model: server })
    expect(left).toMatchObject({ code: 3, stdout: '' })
    expect(left.stderr).toMatch(/waits for a person:\n {2}(\d+-\d+) {2}till wants to call pay \{"to":"ada","usd":5\}/)
    const shown = await ended(['show', 'till'], { cwd })
    expect(shown.stdout).toContain('waits for 1 answer')
    expect(shown.stdout).toContain('till wants to call pay {"to":"ada","usd":5}')
    expect(await ended(words, { cwd, model: server })).toMatchObject({ code: 3 })
    expect(await paid(cwd)).toBe('')
    const said = await ended(['approve', 'till', '--by', 'grace'], { cwd })
    expect(said).toMatchObject({ code: 0, stderr: expect.stringMatching(/^till \d+-\d+ approved\n$/) })
    expect(await ended(words, { cwd, model: server })).toMatchObject({ code: 0, stdout: 'Told: paid\n' })
    expect(await paid(cwd)).toBe('ada 5\n')
    const late = await ended(['approve', 'till', '--json'], { cwd })
    expect(late.code).toBe(1)
    expect(jsonLines(late.stdout)).toMatchObject([{ type: 'error', code: 'ASK_CLOSED' }])
  })

  test('approve: beside a running process that waits; denied with a reason, and with other arguments', async () => {
    const cwd = await scratch()
    const server = await model(pays)
    const waiting = troupe(['run', till, '--input', 'go', '--wait', '--json'], { cwd, model: server })
    /** Looked for once the run has the store: whoever looks at one that nobody has takes it for that moment. */
    const asked = async (calls: number): Promise<string> => {
      await until(() => server.requests.count === calls)
      for (;;) {
        const { stdout } = await ended(['show', 'till', '--json'], { cwd })
        const [ask] = (jsonLines(stdout)[0] as { asks?: { id: string }[] } | undefined)?.asks ?? []
        if (ask !== undefined) return ask.id
      }
    }
    const ask = await asked(1)
    const wrong = await ended(['approve', 'till', ask, '--arguments', '{"to":7}'], { cwd })
    expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringContaining('INPUT_INVALID')])
    expect(await ended(['approve', 'till', ask, '--deny', 'Too much.', '--by', 'grace'], { cwd })).toMatchObject({
      code: 0,
    })
    const { code, stdout } = await waiting.end
    expect(code).toBe(0)
    expect(jsonLines(stdout).at(-1)).toMatchObject({
      output: 'Told: Not done: grace did not approve this call. Too much.',
    })
    const again = troupe(['run', till, '--input', 'go', '--wait', '--new'], { cwd, model: server })
    expect(
      await ended(['approve', 'till', await asked(3), '--arguments', '{"to":"bob","usd":1}'], { cwd }),
    ).toMatchObject({ code: 0 })
    expect((await again.end).code).toBe(0)
    expect(await paid(cwd)).toBe('bob 1\n')
  })

  test('approve: a question is answered', async () => {
    const cwd = await scratch()
    const server = await model(({ messages }) =>
      messages.at(-1)?.role === 'tool'
        ? String(messages.at(-1)?.content)
        : reply.call('ask_person', { question: 'Whom?' }),
    )
    const left = await ended(['run', till, '--input', 'go', '--json'], { cwd, model: server })
    expect(left.code).toBe(3)
    expect(jsonLines(left.stdout).at(-1)).toMatchObject({ type: 'paused', asks: [{ kind: 'question', agent: 'till' }] })
    expect((await ended(['show', 'till'], { cwd })).stdout).toContain('till asks Whom?')
    expect(await ended(['approve', 'till'], { cwd })).toMatchObject({ code: 2 })
    await ended(['approve', 'till', '--answer', 'Ada.'], { cwd })
    expect(await ended(['run', till, '--input', 'go'], { cwd, model: server })).toMatchObject({
      code: 0,
      stdout: 'Ada.\n',
    })
  })
})

describe('troupe raise', () => {
  const thrifty = crewFile('thrifty.mjs')
  const looks: ModelScript = ({ messages }) =>
    messages.at(-1)?.role === 'tool' ? `Told: ${String(messages.at(-1)?.content)}` : reply.call('look', {})
  const words = ['run', thrifty, '--input', 'go']

  test('raise: a run whose budget is spent leaves with 3 and says so; approved with a figure, it goes on', async () => {
    const cwd = await scratch()
    const server = await model(looks)
    const left = await ended(words, { cwd, model: server })
    expect(left).toMatchObject({ code: 3, stdout: '' })
    expect(left.stderr).toMatch(/(\d+-\d+) {2}scout cannot pay: the run has spent its 1 modelCalls/)
    const said = await ended(['approve', 'thrifty', '--arguments', '{"modelCalls":2}'], { cwd })
    expect(said.code).toBe(0)
    expect(await ended(words, { cwd, model: server })).toMatchObject({ code: 0, stdout: 'Told: seen\n' })
  })

  test('raise: by command; nonsense and budgets that are not at work are refused', async () => {
    const cwd = await scratch()
    const server = await model(looks)
    expect(await ended(words, { cwd, model: server })).toMatchObject({ code: 3 })
    expect(await ended(['raise', 'thrifty'], { cwd })).toMatchObject({ code: 2 })
    expect(await ended(['raise', 'thrifty', '--usd', 'much'], { cwd })).toMatchObject({ code: 2 })
    const nobody = await ended(['raise', 'thrifty', '--usd', '1', '--agent', 'nobody', '--json'], { cwd })
    expect(jsonLines(nobody.stdout)).toMatchObject([{ type: 'error', code: 'RAISE_REFUSED' }])
    const said = await ended(['raise', 'thrifty', '--model-calls', '2', '--json'], { cwd })
    expect(jsonLines(said.stdout)).toEqual([{ type: 'raised', crew: 'thrifty' }])
    expect(await ended(words, { cwd, model: server })).toMatchObject({ code: 0, stdout: 'Told: seen\n' })
  })

  test('raise: beside a running process that waits', async () => {
    const cwd = await scratch()
    const scripted = await model(looks)
    const waiting = troupe([...words, '--wait'], { cwd, model: scripted })
    await waiting.says('cannot pay and asks for more')
    expect(await ended(['raise', 'thrifty', '--model-calls', '5'], { cwd })).toMatchObject({
      ...{ code: 0, stderr: 'thrifty raised\n' },
    })
    expect(await waiting.end).toMatchObject({ code: 0, stdout: 'Told: seen\n' })
  })

  test('raise: over NATS, and who waits for it outlives its worker', async () => {
    const crowd = await gather({ server, link, names: ['w1', 'w2'], script: looks, crew: 'thrifty.mjs' })
    const running = crowd.run('--wait')
    const owner = crowd.ownerOf(await crowd.events(({ event }) => event.type === 'troupe.human.asked'))
    crowd.workers.get(owner)!.child.kill('SIGKILL')
    const asks = JSON.parse((await crowd.ask('show', 'thrifty', '--json')).stdout) as { asks: { kind: string }[] }
    expect(asks.asks).toMatchObject([{ kind: 'budget', agent: 'scout' }])
    const none = await crowd.ask('raise', 'thrifty', '--usd', '1', '--agent', 'scout')
    expect([none.code, none.stderr]).toEqual([1, expect.stringContaining('RAISE_REFUSED')])
    expect(await crowd.ask('raise', 'thrifty', '--model-calls', '2')).toMatchObject({ code: 0 })
    expect(await running.end).toMatchObject({ code: 0, stdout: 'Told: seen\n' })
  })
})
