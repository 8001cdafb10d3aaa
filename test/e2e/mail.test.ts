import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type ModelScript, reply } from '../../actors/scripted-model.js'
import { connectNats, type NatsLink } from '../../transport/nats-connection.js'
import { type NatsServer, startNatsServer } from '../support/nats-server.js'
import { jsonLines } from './command-line.js'
import { gather } from './crowd.js'

let server: NatsServer
let link: NatsLink
beforeAll(async () => {
  server = await startNatsServer()
  link = await connectNats({ servers: server.url })
})
afterAll(async () => {
  await link.connection.close()
  await server.dispose()
})

/** Asks both crews at once, its own too, and tells what came of it; whoever is asked helps. */
const script: ModelScript = (request) => {
  const results = request.messages.filter((message) => message.role === 'tool').map(({ content }) => String(content))
  if (results.length > 0) return reply.text(results.join('\n'))
  const isHelper = request.messages.some(({ content }) => String(content).includes('help me'))
  if (isHelper) return reply.text('helped')
  const task = { task: 'help me' }
  return reply.calls({ name: 'left_helper', arguments: task }, { name: 'right_helper', arguments: task })
}
const kills = 6

describe('mail between crews over NATS', () => {
  test('mail: two crews on two workers ask each other while either is killed; each task is taken once, in order, and ends', async () => {
    const { workers, start, run, ask, events } = await gather({
      server,
      link,
      names: ['w1', 'w2'],
      script,
      crew: 'pair.mjs',
    })
    // So that both are there.
    for (const id of ['left', 'right']) expect(await run('--id', id).end).toMatchObject({ code: 0 })
    for (let kill = 0; kill < kills; kill++) {
      const running = ['left', 'right'].map((id) => run('--id', id, '--new'))
      const seen = await events(
        ({ event }) => event.type === 'troupe.mail.sent' && event.data['message'] === 'delegate.task',
      )
      expect(seen.length).toBeGreaterThan(0)
      // A new one each time: the name of a worker that was killed is taken until its lease is over.
      const killed = workers.get(`w${kill + 1}`)!
      killed.child.kill('SIGKILL')
      await killed.end
      await start(`w${kill + 3}`)
      for (const { end } of running) {
        const { code, stdout, stderr } = await end
        expect(code, stderr).toBe(0)
        const [left, right] = stdout.trim().split('\n')
        for (const told of [left, right])
          expect(told).toMatch(
            /^(helped|(left|right)\/agent\/helper failed: DELEGATION_FAILED: .* (waits for it itself|would be waited for))$/,
          )
      }
    }
    for (const id of ['left', 'right']) {
      const numbers: number[] = []
      for (const commit of jsonLines((await ask('journal', id, '--json')).stdout)) {
        const number = /\|\d+\|(\d+)$/.exec(String(commit['cause']))?.[1]
        if (number !== undefined && !String(commit['from']).startsWith(`${id}/`)) numbers.push(Number(number))
      }
      expect(numbers.length).toBeGreaterThan(kills)
      // The first one may have come before the other crew was there: it went back.
      expect(numbers[0]).toBeLessThanOrEqual(2)
      expect(numbers).toEqual(numbers.map((_, index) => numbers[0]! + index))
      const { runs } = JSON.parse((await ask('show', id, '--json')).stdout) as { runs: { status: string }[] }
      expect(runs.filter(({ status }) => status !== 'finished')).toEqual([])
    }
  }, 300_000)
})
