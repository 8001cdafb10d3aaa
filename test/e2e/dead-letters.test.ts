import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { crewMachine } from '../../machines/index.js'
import { defineAgent, defineCrew } from '../../runtime/define.js'
import { createLevelJournal } from '../../transport/level-journal.js'
import { encode } from '../../runtime/codec.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import { Subjects } from '../../transport/subjects.js'
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
    expect(shown.stdout).toMatch(/^crew\/main is \S+$/m)
    expect(shown.stdout).toMatch(/^run r\d+ {2}ACTOR_FAILED/m)
    for (const [edit, code] of [
      ['{"type":"xstate.done"}', 'MESSAGE_REFUSED'],
      ['{"type":"crew.task"}', 'INPUT_INVALID'],
      ['{', 'INPUT_INVALID'],
      ['nowhere.json', 'CONFIG_INVALID'],
    ] as const)
      expect((await ask('replay', 'desk', first, '--edit', edit)).stderr).toContain(code)
    const edited = { type: 'crew.task', tokens: 9, messages: 1, key: 'k', data: false }
    await writeFile(join(cwd, 'edited.json'), JSON.stringify(edited))
    expect(await ask('replay', 'desk', first, '--edit', 'edited.json', '--by', 'ann')).toMatchObject({
      ...{ code: 0, stderr: `${first} of desk replayed\n` },
    })
    expect((await ended(['journal', 'desk', '--json'], { cwd })).stdout).toContain('"by":"ann"')
    expect((await ask('replay', 'desk', first)).stderr).toContain('LETTER_UNKNOWN')
    expect(jsonLines((await ask('drop', 'desk', '--all', '--json')).stdout)).toEqual([
      { type: 'dropped', crew: 'desk', count: 1 },
    ])
    for (const words of [
      ['a', 'b'],
      ['show', 'desk'],
      ['drop', 'desk'],
      ['replay', 'desk', first, 'x'],
      ['show', 'desk', first, '--edit', '{}'],
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
    const edit = ['--edit', '{"type":"crew.pause"}']
    expect((await crowd.ask('dead-letters', 'replay', 'desk', '9-9', ...edit)).stderr).toContain('LETTER_UNKNOWN')
    expect((await crowd.ask('dead-letters', 'drop', 'desk', '--all')).stderr).toBe('0 dead letters of desk dropped\n')
  })

  test('dead-letters: over NATS mail that no crew takes is listed, shown, sent again where that helps, and dropped', async () => {
    const crowd = await gather({ server, link, names: ['w1'], script: clerk() })
    expect((await crowd.run().end).code).toBe(0)
    const subjects = new Subjects(crowd.namespace)
    const put = (shard: string, to: string, bytes: string | Uint8Array) =>
      link.connection.publish(subjects.mail(shard, to), bytes)
    const draft = { cause: '', values: ['said \u001b[31m'] }
    put('desk', 'crew/main', encode({ ...draft, from: 'client/x', to: 'crew/main', body: { type: 'xstate.done' } }))
    put('desk', 'outcome/t', encode({ ...draft, from: 'port/tool', to: 'outcome/t', body: { type: 'tool.ended' } }))
    const task = { ...draft, from: 'desk/envoy/x', cause: '3-0|1|1', body: { type: 'delegate.task' } }
    put('nobody', 'crew/main', encode({ ...task, to: 'crew/main' }))
    put('desk', 'crew/main', 'no letter')
    const list = async (...words: string[]) => {
      const { stdout } = await crowd.ask('dead-letters', ...words, '--json')
      return stdout === '' ? [] : jsonLines(stdout)
    }
    const codes = async (...words: string[]) => (await list(...words)).map(({ code }) => code).sort()
    const all = ['CREW_UNKNOWN', 'ENVELOPE_INVALID', 'MESSAGE_REFUSED', 'OUTCOME_FORGED']
    await expect.poll(() => codes(), { timeout: 20_000 }).toEqual(all)
    const letters = await list()
    expect(letters.every(({ refused }) => refused === true)).toBe(true)
    const of = (code: string) => String(letters.find((letter) => letter['code'] === code)!['id'])
    expect(await codes('nobody')).toEqual(['CREW_UNKNOWN'])
    const listed = await crowd.ask('dead-letters', 'nobody')
    expect(listed).toMatchObject({ code: 0, stderr: '' })
    expect(listed.stdout).toMatch(/^nobody +m\S+ +refused CREW_UNKNOWN +desk\/envoy\/x +crew\/main +delegate\.task/m)
    expect((await crowd.ask('ps')).stdout).toMatch(/ · 4 refused letters$/m)
    const shown = (await crowd.ask('dead-letters', 'show', 'desk', of('MESSAGE_REFUSED'))).stdout
    expect(shown).toContain('said')
    expect(shown).not.toContain('\u001b[31m')
    expect(await list('show', 'desk', of('ENVELOPE_INVALID'))).toMatchObject([
      { refused: true, message: null, raw: Buffer.from('no letter').toString('base64'), bytes: 9 },
    ])
    // A forged one and one whose sender was told stay; the others are in the mail again, once, and are judged anew.
    for (const [crew, code] of [
      ['desk', 'OUTCOME_FORGED'],
      ['desk', 'ENVELOPE_INVALID'],
      ['nobody', 'CREW_UNKNOWN'],
    ] as const)
      expect((await crowd.ask('dead-letters', 'replay', crew, of(code))).stderr).toContain('LETTER_REFUSED')
    const again = of('MESSAGE_REFUSED')
    const replayed = await crowd.ask('dead-letters', 'replay', 'desk', again)
    expect(replayed).toMatchObject({ code: 0, stderr: `${again} of desk sent again\n` })
    expect((await crowd.ask('dead-letters', 'replay', 'desk', again)).stderr).toContain('LETTER_UNKNOWN')
    const fresh = async () => (await list('desk')).some(({ code, id }) => code === 'MESSAGE_REFUSED' && id !== again)
    await expect.poll(fresh, { timeout: 20_000 }).toBe(true)
    expect((await crowd.ask('dead-letters', 'drop', 'nobody', of('CREW_UNKNOWN'))).stderr).toContain('1 dead letter of')
    expect((await crowd.ask('dead-letters', 'drop', 'desk', '--all')).stderr).toMatch('3 dead letters of desk dropped')
    expect(await codes()).toEqual([])
  })
})
