import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { crewMachine } from '../../machines/index.js'
import { defineAgent, defineCrew } from '../../runtime/define.js'
import { createLevelJournal } from '../../transport/level-journal.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { openStage, shippedMachines } from '../support/crew-stage.js'
import type { NatsServer } from '../support/nats-server.js'
import { clerk, crewFile, ended, Gate, jsonLines, model, scratch, troupe } from './command-line.js'
import { gather } from './crowd.js'
import { useNats } from '../support/use-nats.js'

let server: NatsServer
let link: NatsLink
useNats((nats) => {
  ;({ server, link } = nats)
})

const poisoned = {
  ...shippedMachines,
  crew: crewMachine.provide({
    guards: {
      isQueued: ({ context }) => {
        if (context.queue.length > 0) throw new Error('planted')
        return false
      },
    },
  }),
}

/** A store whose crew `desk` had code that died over two tasks. */
async function poisonedStore(cwd: string): Promise<void> {
  const journal = createLevelJournal({ path: join(cwd, '.troupe'), durability: 'process' })
  const stage = await openStage({ machines: poisoned, journal: () => journal })
  const agent = defineAgent({ model: 'openai:gpt-5-mini', instructions: 'Answer.' })
  const desk = await stage.runtime.spawn(defineCrew({ name: 'desk', agents: { clerk: agent }, lead: 'clerk' }))
  for (const input of ['go', 'again \u001b[31m'])
    await expect(desk.ask(input)).rejects.toMatchObject({ code: 'ACTOR_FAILED' })
  await stage.runtime.close()
}

describe('dead-letters', () => {
  test('dead-letters: beside a running process one is listed, shown, replayed by mended code, and dropped', async () => {
    const cwd = await scratch()
    await poisonedStore(cwd)
    const gate = new Gate()
    const scripted = await model(clerk({ 3: gate }))
    // The run of another key holds the store, with the code that takes tasks.
    const running = troupe(['run', crewFile('desk.mjs'), '--input', 'other'], { cwd, model: scripted })
    await gate.reached
    const ask = (...words: string[]) => ended(['dead-letters', ...words], { cwd })
    const letters = jsonLines((await ask('--json')).stdout)
    expect(letters).toMatchObject([
      { crew: 'desk', code: 'ACTOR_FAILED', from: 'client/local', to: 'crew/main', type: 'crew.task' },
      { crew: 'desk', code: 'ACTOR_FAILED' },
    ])
    const [first, second] = letters.map(({ id }) => String(id)) as [string, string]
    expect((await ask('desk')).stdout).toMatch(
      new RegExp(`desk +${first} +ACTOR_FAILED +client/local +crew/main +crew.task`),
    )
    const shown = await ask('show', 'desk', second)
    expect(shown.stdout).toContain('planted')
    expect(shown.stdout).not.toContain('\u001b[31m')
    expect(jsonLines((await ask('show', 'desk', first, '--json')).stdout)).toMatchObject([
      { crew: 'desk', id: first, message: { type: 'crew.task' }, values: ['{"role":"user","content":"go"}'] },
    ])
    expect(await ask('replay', 'desk', first)).toMatchObject({ code: 0, stderr: `${first} of desk replayed\n` })
    expect((await ask('replay', 'desk', first)).stderr).toContain('LETTER_UNKNOWN')
    expect(jsonLines((await ask('drop', 'desk', '--all', '--json')).stdout)).toEqual([
      { type: 'dropped', crew: 'desk', count: 1 },
    ])
    for (const words of [
      ['a', 'b'],
      ['show', 'desk'],
      ['drop', 'desk'],
      ['replay', 'desk', first, 'x'],
    ])
      expect(await ask(...words)).toMatchObject({ code: 2, stderr: expect.stringContaining('CONFIG_INVALID') })
    gate.open()
    expect((await running.end).code).toBe(0)
    const ended1 = await ended(['show', 'desk', '--json'], { cwd })
    const { runs } = jsonLines(ended1.stdout)[0] as { runs: { code: string | null; status: string }[] }
    expect(runs.filter(({ code }) => code === 'ACTOR_FAILED')).toHaveLength(2)
    expect(runs).toHaveLength(4)
  })

  test('dead-letters: over NATS a crew without any has none, and what is not there is refused with its code', async () => {
    const crowd = await gather({ server, link, names: ['w1'], script: clerk() })
    expect((await crowd.run().end).code).toBe(0)
    expect(await crowd.ask('dead-letters', '--json')).toMatchObject({ code: 0, stdout: '' })
    expect((await crowd.ask('dead-letters', 'nobody')).stderr).toMatch(/CREW_UNKNOWN|WORKER_MISSING/)
    for (const verb of ['show', 'replay', 'drop'])
      expect((await crowd.ask('dead-letters', verb, 'desk', '9-9')).stderr).toContain('LETTER_UNKNOWN')
    expect((await crowd.ask('dead-letters', 'drop', 'desk', '--all')).stderr).toBe('0 dead letters of desk dropped\n')
  })
})
