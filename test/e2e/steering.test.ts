import { describe, expect, test } from 'vitest'
import type { ModelScript } from '../../actors/scripted-model.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import type { NatsServer } from '../support/nats-server.js'
import { clerk, crewFile, ended, Gate, jsonLines, model, scratch, troupe } from './command-line.js'
import { gather } from './crowd.js'
import { useNats } from '../support/use-nats.js'

let server: NatsServer
let link: NatsLink
useNats((nats) => {
  ;({ server, link } = nats)
})

/** A model that keeps what it was sent. */
function listening(script: ModelScript): { readonly script: ModelScript; readonly heard: string[][] } {
  const heard: string[][] = []
  return {
    heard,
    script: (request, ...more) => {
      heard.push(request.messages.map(({ role, content }) => `${role}: ${JSON.stringify(content)}`))
      return script(request, ...more)
    },
  }
}

const tail = ['tool: "a fact about topic 2"', 'assistant: "All is known."', 'user: "Be brief."', 'user: "And kind."']

describe('steer', () => {
  test('steer: beside a running process it joins behind the reply on its way, and makes another round', async () => {
    const cwd = await scratch()
    const gate = new Gate()
    const { script, heard } = listening(clerk({ 3: gate }))
    const scripted = await model(script)
    const running = troupe(['run', crewFile('desk.mjs'), '--input', 'go'], { cwd, model: scripted })
    await gate.reached
    expect(await ended(['steer', 'desk', 'Be brief.'], { cwd })).toMatchObject({ code: 0, stderr: 'desk steered\n' })
    const said = await ended(['steer', 'desk', 'And kind.', '--agent', 'clerk', '--run', 'r2', '--json'], { cwd })
    expect(jsonLines(said.stdout)).toEqual([{ type: 'steered', crew: 'desk' }])
    expect((await ended(['steer', 'desk', 'x', '--agent', 'cook'], { cwd })).stderr).toContain('STEER_REFUSED')
    gate.open()
    expect(await running.end).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect(heard).toHaveLength(4)
    expect(heard[3]?.slice(-4)).toEqual(tail)
    const late = await ended(['steer', 'desk', 'x', '--json'], { cwd })
    expect(late.code).toBe(1)
    expect(jsonLines(late.stdout)).toMatchObject([{ type: 'error', code: 'STEER_REFUSED' }])
  })

  test('steer: over NATS, and what was accepted outlives the worker that took it', async () => {
    const gate = new Gate()
    const { script, heard } = listening(clerk({ 3: gate }))
    const crowd = await gather({ server, link, names: ['w1', 'w2'], script })
    const running = crowd.run()
    await gate.reached
    for (const text of ['Be brief.', 'And kind.'])
      expect(await crowd.ask('steer', 'desk', text)).toMatchObject({ code: 0, stderr: 'desk steered\n' })
    const owner = crowd.ownerOf(await crowd.events(({ event }) => event.type === 'troupe.agent.steered'))
    crowd.workers.get(owner)!.child.kill('SIGKILL')
    gate.open()
    expect(await running.end).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    // The call of the one that died was made again: by then the messages were there.
    expect(heard.at(-1)?.filter((message) => message.startsWith('user:'))).toEqual([
      'user: "go"',
      'user: "Be brief."',
      'user: "And kind."',
    ])
    const late = await crowd.ask('steer', 'desk', 'x')
    expect([late.code, late.stderr]).toEqual([1, expect.stringContaining('STEER_REFUSED')])
  })
})
