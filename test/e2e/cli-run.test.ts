import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { fault, reply } from '../../actors/scripted-model.js'
import { clerk, crewFile, ended, jsonLines, model, scratch, troupe } from './command-line.js'

const desk = crewFile('desk.mjs')

describe('troupe run', () => {
  test('answer: stdout has the answer alone, stderr who did what and what it cost', async () => {
    const cwd = await scratch()
    const server = await model(clerk())
    const { code, stdout, stderr } = await ended(['run', desk, '--input', 'go'], { cwd, model: server })
    expect({ code, stdout }).toEqual({ code: 0, stdout: 'All is known.\n' })
    expect(stderr).toMatch(/^desk r2\n/)
    expect(stderr).toMatch(/clerk +round 1 · [\d,]+ in, [\d,]+ out · .*→ lookup\n/)
    expect(stderr).toMatch(/clerk +✓ lookup · 20 B\n/)
    expect(stderr).toMatch(/done r2 · 3 rounds · 3 model calls · 2 tool calls · [\d,]+ tokens · .*\$/)
    // Not a terminal: no colour.
    expect(stderr).not.toContain('\u001b')
  })

  test('key: the same task is the same run, whose stored result is printed again; --new starts another', async () => {
    const cwd = await scratch()
    const server = await model(clerk())
    const words = ['run', desk, '--input', 'go']
    await ended(words, { cwd, model: server })
    const again = await ended(words, { cwd, model: server })
    expect(again).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect(again.stderr).toContain('r2 finished before')
    expect(server.requests.count).toBe(3)
    const another = await ended([...words, '--new'], { cwd, model: server })
    expect(another).toMatchObject({ code: 0, stdout: 'All is known.\n' })
    expect(server.requests.count).toBe(6)
    // From now on the newest run is the one that goes on.
    const newest = await ended([...words, '--json'], { cwd, model: server })
    expect(jsonLines(newest.stdout).at(-1)).toMatchObject({ type: 'result', runId: 'r8' })
    expect(server.requests.count).toBe(6)
    await ended(['run', desk, '--input', 'something else'], { cwd, model: server })
    await ended([...words, '--id', 'second'], { cwd, model: server })
    expect(server.requests.count).toBe(12)
    const { stdout } = await ended(['ps', '--json'], { cwd })
    expect(jsonLines(stdout).map(({ id }) => id)).toEqual(['desk', 'second'])
  })

  test('input: --input, then stdin, then the export of the file, then a usage error', async () => {
    const cwd = await scratch()
    const server = await model((request) => `asked: ${String(request.messages.at(-1)?.content)}`)
    const options = { cwd, model: server }
    const typescript = crewFile('desk.ts')
    const said = async (words: readonly string[], stdin?: string) =>
      (await ended(['run', ...words], stdin === undefined ? options : { ...options, stdin })).stdout
    expect(await said([typescript, '--input', 'by flag'], 'by pipe')).toBe('asked: by flag\n')
    expect(await said([typescript], 'by pipe\n')).toBe('asked: by pipe\n')
    expect(await said([typescript], '')).toBe('asked: What is known?\n')
    expect(await said([typescript])).toBe('asked: What is known?\n')
    const none = await ended(['run', desk], options)
    expect(none).toMatchObject({ code: 2, stdout: '' })
    expect(none.stderr).toMatch(/^INPUT_INVALID: no input/)
  })

  test('--json: CloudEvents with deltas of the first reply, then the result, one object a line', async () => {
    const cwd = await scratch()
    const server = await model(() => 'word after word after word')
    const { code, stdout, stderr } = await ended(['run', desk, '--input', 'go', '--json'], { cwd, model: server })
    const lines = jsonLines(stdout)
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const events = lines.slice(0, -1)
    expect(events.every((event) => event['specversion'] === '1.0')).toBe(true)
    const types = events.map(({ type }) => type)
    expect(types[0]).toBe('troupe.run.queued')
    expect(types.at(-1)).toBe('troupe.run.finished')
    expect(types).toContain('troupe.model.delta')
    expect(lines.at(-1)).toMatchObject({
      type: 'result',
      output: 'word after word after word',
      runId: 'r2',
      finishReason: 'stop',
      usage: { modelCalls: 1, toolCalls: 0 },
      cost: { usd: expect.any(Number) as number },
    })
  })

  test('exit codes: a failed run is 1, an exhausted budget 3, and both name the command for another run', async () => {
    const cwd = await scratch()
    const refused = await model(() => fault.status(400))
    const failed = await ended(['run', desk, '--input', 'it’s on'], { cwd, model: refused })
    expect(failed).toMatchObject({ code: 1, stdout: '' })
    expect(failed.stderr).toMatch(/\nMODEL_FAILED: /)
    expect(failed.stderr).toContain(`go on with: troupe run ${desk} --input 'it’s on' --new\n`)
    expect(failed.stderr).not.toMatch(/\n\s+at /)
    const poor = join(cwd, 'poor.ts')
    await writeFile(
      poor,
      `import { defineAgent, defineCrew } from 'troupe'
       const clerk = defineAgent({ model: 'openai:gpt-5-mini', instructions: 'Answer.' })
       export default defineCrew({ name: 'poor', agents: { clerk }, lead: 'clerk', budget: { modelCalls: 0 } })`,
    )
    const stopped = await ended(['run', poor, '--input', 'go', '--json'], { cwd, model: refused })
    expect(stopped.code).toBe(3)
    expect(jsonLines(stopped.stdout).at(-1)).toMatchObject({
      type: 'error',
      code: 'BUDGET_EXHAUSTED',
      details: { runId: 'r2', command: `troupe run ${poor} --input go --json --new` },
    })
  })

  test('usage: unknown words, a missing file, a bad id and a missing key are 2', async () => {
    const cwd = await scratch()
    expect((await ended(['dance'], { cwd })).code).toBe(2)
    expect((await ended(['run'], { cwd })).code).toBe(2)
    expect((await ended(['run', desk, '--inptu', 'go'], { cwd })).code).toBe(2)
    expect((await ended(['journal', 'desk', '--from', 'x'], { cwd })).code).toBe(2)
    expect((await ended(['ps'], { cwd })).stderr).toMatch(/^CONFIG_INVALID: there is no store/)
    expect((await ended(['--help'], { cwd })).code).toBe(0)
    expect((await ended(['--version'], { cwd })).stdout).toMatch(/^\d+\.\d+\.\d+/)
    const missing = await ended(['run', 'nowhere.ts', '--input', 'go'], { cwd })
    expect(missing).toMatchObject({ code: 2, stderr: expect.stringMatching(/^CREW_INVALID: .*nowhere\.ts/) as string })
    const badId = await ended(['run', desk, '--input', 'go', '--id', 'a.b'], { cwd })
    expect(badId).toMatchObject({ code: 2, stderr: expect.stringMatching(/^ID_INVALID/) as string })
    const noKey = await ended(['run', desk, '--input', 'go'], { cwd, env: { OPENAI_API_KEY: '' } })
    expect(noKey).toMatchObject({ code: 2, stderr: expect.stringMatching(/^KEY_MISSING.*OPENAI_API_KEY/) as string })
  })

  test.each([
    ['a syntax error', 'bad.ts', 'export default {\n  oops oops\n}', /bad\.ts cannot be loaded: .*\b2\b/],
    ['a syntax error in JavaScript', 'bad.mjs', 'const = 1', /bad\.mjs cannot be loaded: SyntaxError/],
    ['no default export', 'none.ts', 'export const crew = 1', /none\.ts has no default export/],
    ['no default export in JavaScript', 'none.mjs', 'export const crew = 1', /none\.mjs has no default export/],
    ['another kind', 'odd.ts', 'export default [1]', /odd\.ts exports an array by default/],
    [
      'a throw',
      'throws.ts',
      'const x: number = 1\nthrow new Error(`no ${x}`)',
      /throws\.ts cannot be loaded: no 1 \(line 2\)/,
    ],
    ['a missing import', 'lost.ts', "import './nowhere.js'\nexport default 1", /lost\.ts cannot be loaded: .*nowhere/],
    [
      'a bad definition',
      'wrong.ts',
      "import { defineAgent } from 'troupe'\nexport default defineAgent({ model: 'x' })",
      /CREW_INVALID: agent.*model/,
    ],
  ])('crew file: %s is CREW_INVALID in one line', async (_what, name, source, message) => {
    const cwd = await scratch()
    await writeFile(join(cwd, name), source)
    const { code, stdout, stderr } = await ended(['run', name, '--input', 'go'], { cwd })
    expect({ code, stdout, lines: stderr.trim().split('\n').length }).toEqual({ code: 2, stdout: '', lines: 1 })
    expect(stderr).toMatch(/^CREW_INVALID: /)
    expect(stderr).toMatch(message)
    const json = await ended(['run', name, '--input', 'go', '--json'], { cwd })
    expect(jsonLines(json.stdout)).toMatchObject([{ type: 'error', code: 'CREW_INVALID' }])
  })

  test('crew file: one outside any package, TypeScript or not, gets the package and zod that the command runs from', async () => {
    const cwd = await scratch()
    const server = await model(clerk())
    const source = `import { defineAgent, defineTool } from 'troupe'
      import { z } from 'zod'
      const input = z.object({ topic: z.string() })
      const lookup = defineTool({ name: 'lookup', description: '', input, run: ({ topic }) => topic })
      export default defineAgent({ model: 'openai:gpt-5-mini', tools: [lookup], instructions: 'Answer.' })`
    for (const name of ['lonely clerk.ts', 'lonely.js']) {
      await writeFile(join(cwd, name), source)
      const { code, stdout, stderr } = await ended(['run', name, '--input', 'go'], { cwd, model: server })
      expect({ code, stdout }, stderr).toEqual({ code: 0, stdout: 'All is known.\n' })
    }
    // An agent without a name is called like its file.
    expect(jsonLines((await ended(['ps', '--json'], { cwd })).stdout).map(({ id }) => id)).toEqual([
      'lonely',
      'lonely-clerk',
    ])
  })

  test('stray throw: code of the crew that throws outside of a call ends the process in one line; the run goes on', async () => {
    const cwd = await scratch()
    const server = await model(clerk())
    const source = `import { existsSync, writeFileSync } from 'node:fs'
      import { defineAgent, defineTool } from 'troupe'
      import { z } from 'zod'
      const input = z.object({ topic: z.string() })
      const run = async () => {
        if (existsSync('once')) return 'fine'
        writeFileSync('once', '')
        setImmediate(() => { throw new Error('stray') })
        await new Promise(() => undefined)
      }
      const lookup = defineTool({ name: 'lookup', description: '', input, effect: 'pure', run })
      export default defineAgent({ model: 'openai:gpt-5-mini', tools: [lookup], instructions: 'Answer.' })`
    await writeFile(join(cwd, 'stray.ts'), source)
    const words = ['run', 'stray.ts', '--input', 'go']
    const first = await ended(words, { cwd, model: server })
    expect(first.code).toBe(1)
    expect(first.stderr).toMatch(/\nACTOR_FAILED: .*stray\n {2}go on with: troupe run stray\.ts --input go\n$/)
    expect(await ended(words, { cwd, model: server })).toMatchObject({ code: 0, stdout: 'All is known.\n' })
  })

  test('colour: NO_COLOR wins over a terminal', async () => {
    const cwd = await scratch()
    const server = await model(clerk())
    const inTerminal = async (env: NodeJS.ProcessEnv): Promise<string> => {
      const words = [
        process.execPath,
        join(crewFile('..'), '../../dist/runtime/cli/main.js'),
        'run',
        desk,
        '--input',
        'go',
      ]
      const child = spawn('script', ['-qec', words.map((word) => `'${word}'`).join(' '), '/dev/null'], {
        cwd,
        env: {
          ...process.env,
          OPENAI_API_KEY: 'none',
          OPENAI_BASE_URL: server.baseURL,
          TERM: 'xterm-256color',
          // A build server says so, and then a terminal gets no colour.
          CI: undefined,
          NO_COLOR: undefined,
          ...env,
        },
        stdio: ['ignore', 'pipe', 'ignore'],
      })
      let text = ''
      child.stdout.setEncoding('utf8').on('data', (piece: string) => (text += piece))
      await once(child, 'close')
      return text
    }
    expect(await inTerminal({})).toContain('\u001b[')
    expect(await inTerminal({ NO_COLOR: '1' })).not.toContain('\u001b[')
  })

  test('pipe: a reader that leaves ends the command quietly, and the run goes on later', async () => {
    const cwd = await scratch()
    const server = await model(() => reply.text('x'.repeat(10_000)))
    const words = ['run', desk, '--input', 'go']
    const { child, end } = troupe([...words, '--json'], { cwd, model: server })
    child.stdout!.destroy()
    expect(await end).toMatchObject({ code: 0, stderr: '' })
    const again = await ended(words, { cwd, model: server })
    expect(again).toMatchObject({ code: 0, stdout: `${'x'.repeat(10_000)}\n` })
  })
})
