import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { clerk, type Command, crewFile, ended, Gate, jsonLines, model, scratch, troupe } from './command-line.js'

const desk = crewFile('desk.mjs')
const words = ['run', desk, '--input', 'go']

/** A crew whose only tool writes a line to a ledger and may run once; then it waits for a file that never comes. */
const ledgerCrew = `import { appendFileSync } from 'node:fs'
import { defineAgent, defineTool } from 'troupe'
import { z } from 'zod'
const lookup = defineTool({
  name: 'lookup', description: '', input: z.object({ topic: z.string() }),
  run: async ({ topic }) => {
    appendFileSync('ledger', topic + '\\n')
    process.stderr.write('booked ' + topic + '\\n')
    await new Promise((resolve) => setTimeout(resolve, 2 ** 30))
  },
})
export default defineAgent({ name: 'clerk', model: 'openai:gpt-5-mini', tools: [lookup], instructions: 'Answer.' })`

describe('a run that is stopped', () => {
  test('kill -9: the same command goes on; what was done is neither asked nor done again', async () => {
    const cwd = await scratch()
    const gate = new Gate()
    const server = await model(clerk({ 3: gate }))
    const first = troupe(words, { cwd, model: server })
    await gate.reached
    first.child.kill('SIGKILL')
    expect((await first.end).signal).toBe('SIGKILL')
    gate.open()
    const second = await ended(words, { cwd, model: server })
    expect(second, second.stderr).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect(second.stderr).toMatch(/^desk r2 goes on\n/)
    // Three rounds, and the one that was cut again.
    expect(server.requests.count).toBe(4)
  })

  test('kill -9: a call that may run once is not made again, and the model is told', async () => {
    const cwd = await scratch()
    await writeFile(join(cwd, 'clerk.ts'), ledgerCrew)
    const told: string[] = []
    const server = await model((request) => {
      const last = request.messages.at(-1)
      if (last?.role === 'tool') told.push(String(last.content))
      return last?.role === 'tool' ? 'I cannot say.' : { calls: [{ name: 'lookup', arguments: { topic: 'a' } }] }
    })
    const command = ['run', 'clerk.ts', '--input', 'go']
    const first = troupe(command, { cwd, model: server })
    await first.says('booked a')
    first.child.kill('SIGKILL')
    await first.end
    const second = await ended(command, { cwd, model: server })
    expect(second).toMatchObject({ code: 0, stdout: 'I cannot say.\n' })
    expect(second.stderr).toContain('? lookup · unknown')
    expect(await readFile(join(cwd, 'ledger'), 'utf8')).toBe('a\n')
    expect(told[0]).toContain('unknown')
  })

  test.each(['SIGINT', 'SIGTERM'] as const)(
    'clean stop: %s once lets the running call end, names the command that goes on, and it does',
    async (signal) => {
      const cwd = await scratch()
      const gate = new Gate()
      const server = await model(clerk({ 2: gate }))
      const first = troupe(words, { cwd, model: server })
      await gate.reached
      first.child.kill(signal)
      await first.says('stopping')
      gate.open()
      const { code, stdout, stderr } = await first.end
      expect({ code, stdout }).toEqual({ code: 130, stdout: '' })
      expect(stderr).toContain(`go on with: troupe run ${desk} --input go\n`)
      const second = await ended(words, { cwd, model: server })
      expect(second).toMatchObject({ code: 0, stdout: 'All is known.\n' })
      // Nothing was asked twice: the reply that was awaited is in the journal.
      expect(server.requests.count).toBe(3)
    },
  )

  test('second signal: the process ends at once, and the same command goes on', async () => {
    const cwd = await scratch()
    const gate = new Gate()
    const server = await model(clerk({ 2: gate }))
    const first = troupe([...words, '--json'], { cwd, model: server })
    await gate.reached
    first.child.kill('SIGINT')
    await first.says('stopping')
    first.child.kill('SIGINT')
    expect((await first.end).code).toBe(130)
    gate.open()
    expect(await ended(words, { cwd, model: server })).toMatchObject({ code: 0, stdout: 'All is known.\n' })
  })

  test('edited prompt: after a kill in mid-run the edited crew goes on', async () => {
    const cwd = await scratch()
    const source = await readFile(crewFile('desk.ts'), 'utf8')
    const gate = new Gate()
    const systems: string[] = []
    const server = await model((request) => {
      systems.push(String(request.messages[0]?.content))
      return clerk({ 2: gate })(request)
    })
    await writeFile(join(cwd, 'desk.ts'), source)
    const first = troupe(['run', 'desk.ts'], { cwd, model: server })
    await gate.reached
    first.child.kill('SIGKILL')
    await first.end
    gate.open()
    await writeFile(join(cwd, 'desk.ts'), source.replace("'Answer.'", "'Answer well.'"))
    const second = await ended(['run', 'desk.ts'], { cwd, model: server })
    expect(second, second.stderr).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect(systems.at(-1)).toBe('Answer well.')
  })
})

describe('a second terminal', () => {
  /** A run that waits in its second round. */
  async function atWork(): Promise<{
    cwd: string
    gate: Gate
    first: Command
    server: Awaited<ReturnType<typeof model>>
  }> {
    const cwd = await scratch()
    const gate = new Gate()
    const server = await model(clerk({ 2: gate }))
    const first = troupe(words, { cwd, model: server })
    await gate.reached
    return { cwd, gate, first, server }
  }

  test('look: ps, show and journal answer beside the running process', async () => {
    const { cwd, gate, first } = await atWork()
    const crews = await ended(['ps', '--json'], { cwd })
    expect(jsonLines(crews.stdout)).toMatchObject([{ id: 'desk', openEffects: 1 }])
    const shown = await ended(['show', 'desk', '--json'], { cwd })
    expect(jsonLines(shown.stdout)).toMatchObject([
      { id: 'desk', crew: 'desk', runs: [{ runId: 'r2', status: 'running' }] },
    ])
    expect((await ended(['show', 'desk'], { cwd })).stdout).toMatch(
      /agent\/clerk-r2 {2}.*waits for model openai:gpt-5-mini/,
    )
    const journal = await ended(['journal', 'desk'], { cwd })
    expect(journal.stdout).toMatch(/^ {4}1 {2}[\d-]+ [\d:.]+ {2}shard\/self → shard\/self {2}crew\.defined\n/)
    expect(journal.stdout).toMatch(/2 {2}.* client\/local → crew\/main {2}crew\.task\n/)
    const from = jsonLines((await ended(['journal', 'desk', '--from', '3', '--json'], { cwd })).stdout)
    expect(from[0]).toMatchObject({ sequence: 3, from: 'port/model', body: { type: 'model.replied' } })
    expect(await ended(['show', 'nobody'], { cwd })).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/^CREW_UNKNOWN/) as string,
    })
    gate.open()
    expect(await first.end).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    // The store is free now: the same commands open it themselves.
    expect((await ended(['show', 'desk'], { cwd })).stdout).toMatch(/r2 {2}done · 3 rounds/)
  })

  test('cancel: the run ends there with RUN_CANCELLED', async () => {
    const { cwd, first } = await atWork()
    expect(await ended(['cancel', 'desk'], { cwd })).toMatchObject({ code: 0, stderr: 'desk cancelled\n' })
    const { code, stderr } = await first.end
    expect(code).toBe(1)
    expect(stderr).toMatch(/\nRUN_CANCELLED: /)
  })

  test('pause and resume: the running crew holds before its next call, and goes on', async () => {
    const { cwd, gate, first, server } = await atWork()
    expect((await ended(['pause', 'desk'], { cwd })).code).toBe(0)
    await first.says('paused')
    gate.open()
    await first.says('round 2')
    expect(server.requests.count).toBe(2)
    expect((await ended(['resume', 'desk'], { cwd })).code).toBe(0)
    expect(await first.end).toMatchObject({ code: 0, stdout: 'All is known.\n' })
  })

  test('paused store: a run of a paused crew says who lets it go on', async () => {
    const cwd = await scratch()
    const gate = new Gate()
    const server = await model(clerk({ 2: gate }))
    const first = troupe(words, { cwd, model: server })
    await gate.reached
    first.child.kill('SIGKILL')
    await first.end
    gate.open()
    // Nobody owns the store now: the command takes up what is there and lets it lie.
    expect((await ended(['pause', 'desk'], { cwd })).code).toBe(0)
    const second = troupe(words, { cwd, model: server })
    await second.says('`troupe resume desk` lets it go on')
    expect((await ended(['resume', 'desk'], { cwd })).code).toBe(0)
    expect(await second.end).toMatchObject({ code: 0, stdout: 'All is known.\n' })
  })

  test('rm: a crew at work stays; an idle one goes with everything it stored', async () => {
    const { cwd, gate, first, server } = await atWork()
    const refused = await ended(['rm', 'desk'], { cwd })
    expect(refused).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/^MESSAGE_REFUSED: .*cancel it first/) as string,
    })
    gate.open()
    await first.end
    expect((await ended(['rm', 'desk'], { cwd })).code).toBe(0)
    expect((await ended(['ps', '--json'], { cwd })).stdout).toBe('')
    const again = await ended(words, { cwd, model: server })
    expect(again, again.stderr).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect(server.requests.count).toBe(6)
  })

  test('run: the same command joins the run, another crew is refused with the pid', async () => {
    const { cwd, gate, first, server } = await atWork()
    const second = troupe(words, { cwd, model: server })
    await second.says('r2 goes on in process')
    const joined = troupe([...words, '--new', '--json'], { cwd, model: server })
    await joined.says('troupe.run.queued')
    const other = await ended([...words, '--id', 'other'], { cwd, model: server })
    expect(other).toMatchObject({ code: 1, stdout: '' })
    expect(other.stderr).toContain(`STORE_BUSY`)
    expect(other.stderr).toContain(`process ${first.child.pid}`)
    gate.open()
    expect(await first.end).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect(await second.end).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    // The owner ended with its own run: the one that waited goes on in the process that asked for it.
    const end = await joined.end
    expect(jsonLines(end.stdout).at(-1)).toMatchObject({ type: 'result', output: 'All is known.' })
    expect(server.requests.count).toBe(6)
  })

  test('owner killed: who joined its run takes it over', async () => {
    const { cwd, gate, first, server } = await atWork()
    const second = troupe(words, { cwd, model: server })
    await second.says('r2 goes on in process')
    first.child.kill('SIGKILL')
    await second.says('going on here')
    gate.open()
    expect(await second.end).toMatchObject({ code: 0, stdout: 'All is known.\n' })
  })
})
