import { describe, expect, test } from 'vitest'
import type { NatsLink } from '../../transport/nats-connection.js'
import type { NatsServer } from '../support/nats-server.js'
import { useNats } from '../support/use-nats.js'
import { crewFile, Gate, model, scratch, troupe } from './command-line.js'
import { gather } from './crowd.js'

let server: NatsServer
let link: NatsLink
useNats((nats) => {
  ;({ server, link } = nats)
})
const end = { code: 0, stdout: 'a text, 6 letters, good\n' }

/** Each agent says one thing; the call of this number waits. */
const script = (gate: Gate, at: number) => {
  let calls = 0
  return async ({ messages }: { messages: readonly { content?: unknown }[] }) => {
    calls += 1
    if (calls === at) await gate.pass()
    return String(messages[0]?.content).includes('writer') ? 'a text' : 'good'
  }
}

describe('a machine as flow, in processes', () => {
  test.each([1, 2])(
    'flow machine over NATS: killed at model call %i, another worker goes on where it was',
    async (at) => {
      const gate = new Gate()
      const { workers, run, events, ownerOf } = await gather({
        ...{ server, link, names: ['w1', 'w2'], script: script(gate, at), crew: 'essay.mjs' },
      })
      const running = run()
      await gate.reached
      const first = ownerOf(await events(({ event }) => event.type === 'troupe.model.called'))
      workers.get(first)!.child.kill('SIGKILL')
      gate.open()
      const ended = await running.end
      expect(ended, ended.stderr).toMatchObject(end)
      const all = await events(({ event }) => event.type === 'troupe.run.finished')
      expect(ownerOf(all)).not.toBe(first)
    },
  )

  test.each([1, 2])('flow machine in a store: killed at model call %i, the next process goes on', async (at) => {
    const gate = new Gate()
    const scripted = await model(script(gate, at))
    const cwd = await scratch()
    const words = ['run', crewFile('essay.mjs'), '--store', 'store', '--input', 'go']
    const first = troupe(words, { cwd, model: scripted })
    await gate.reached
    first.child.kill('SIGKILL')
    gate.open()
    const ended = await troupe(words, { cwd, model: scripted }).end
    expect(ended, ended.stderr).toMatchObject(end)
    // The call that was cut is made again, no other.
    expect(scripted.requests.count).toBe(3)
  })
})
