/**
 * The examples as a user meets them: real processes on the build in `dist/`, without a key, some of them killed.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, extname, join } from 'node:path'
import { startScriptedModel } from 'troupe'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'

const root = join(import.meta.dirname, '..')
const main = join(root, 'dist/runtime/cli/main.js')
const survey = join(root, 'examples/survey.ts')
const scratch = realpathSync(mkdtempSync(join(tmpdir(), 'troupe-examples-')))

beforeAll(() => {
  if (!existsSync(main)) throw new Error('there is no build: `npm run build` first')
})
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

// --- processes ------------------------------------------------------------------------------------------------------

interface Ended {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

class Program {
  stdout = ''
  stderr = ''
  readonly ended: Promise<Ended>
  readonly #child: ChildProcess
  #waiting: (() => void)[] = []

  constructor(command: string, args: readonly string[], cwd: string, env: Readonly<Record<string, string>> = {}) {
    const own = Object.entries(process.env).filter(([name]) => !/^(OPENAI|TROUPE|SURVEY|VITEST|NODE_|JITI)/.test(name))
    // A group of its own, so that a kill reaches what npm started.
    this.#child = spawn(command, args, { cwd, env: { ...Object.fromEntries(own), ...env }, detached: true })
    this.#child.stdout?.setEncoding('utf8').on('data', (text: string) => this.#take('stdout', text))
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => this.#take('stderr', text))
    this.ended = new Promise((resolve, reject) => {
      this.#child.on('error', reject).on('close', (code, signal) => {
        this.#tell()
        resolve({ code, signal, stdout: this.stdout, stderr: this.stderr })
      })
    })
    onTestFinished(() => this.signal('SIGKILL'))
  }

  #take(stream: 'stdout' | 'stderr', text: string): void {
    this[stream] += text
    this.#tell()
  }

  #tell(): void {
    for (const wake of this.#waiting.splice(0)) wake()
  }

  /** Resolves when the output has so many matches, or the program has ended. */
  async saying(pattern: RegExp, times: number): Promise<void> {
    const enough = () => [...(this.stdout + this.stderr).matchAll(pattern)].length >= times
    while (!enough() && this.#child.exitCode === null && this.#child.signalCode === null)
      await new Promise<void>((resolve) => this.#waiting.push(resolve))
  }

  signal(name: NodeJS.Signals): void {
    if (this.#child.pid === undefined || this.#child.exitCode !== null || this.#child.signalCode !== null) return
    try {
      process.kill(-this.#child.pid, name)
    } catch {
      // it ended meanwhile
    }
  }
}

const node = (args: readonly string[], cwd: string, env?: Readonly<Record<string, string>>) =>
  new Program(process.execPath, args, cwd, env)
const example = (name: string, ...args: readonly string[]) =>
  node(['--import', 'jiti/register', join(root, 'examples', name), ...args], root)
const lastLine = (text: string) => text.trimEnd().split('\n').at(-1)

let folders = 0
function folder(name: string): string {
  folders += 1
  const path = join(scratch, `${folders}-${name}`)
  mkdirSync(path)
  return path
}

function write(files: Readonly<Record<string, string | Buffer>>, into: string): void {
  for (const [path, content] of Object.entries(files)) {
    mkdirSync(join(into, dirname(path)), { recursive: true })
    writeFileSync(join(into, path), content)
  }
}

/** The survey of a folder by the command, with a store outside of it. */
const surveying = (
  cwd: string,
  store: string,
  input = '.',
  file = survey,
  env: Readonly<Record<string, string>> = {},
) => node([main, 'run', file, '--input', input, '--store', store], cwd, env)

async function surveyOf(cwd: string, input = '.'): Promise<string> {
  const { code, stdout, stderr } = await surveying(cwd, folder('store'), input).ended
  expect(code, stderr).toBe(0)
  return stdout
}

// --- a count of our own ---------------------------------------------------------------------------------------------

interface Counted {
  path: string
  lines: number
  language: string
  exports: number
  imports: number
  tests: number
  marks: number
}

const skipped = new Set(['node_modules', '.git', 'dist', '.troupe', '.env'])
const endings: Readonly<Record<string, string>> = {
  ...{
    '.ts': 'TypeScript',
    '.js': 'JavaScript',
    '.mjs': 'JavaScript',
    '.py': 'Python',
    '.go': 'Go',
    '.md': 'Markdown',
  },
  ...{ '.json': 'JSON', '.yml': 'YAML', '.sh': 'Shell' },
}
const declarations = new Set(['function', 'function*', 'const', 'let', 'class', 'interface', 'type', 'enum'])
const modifiers = new Set(['default', 'declare', 'abstract', 'async'])

function isExport(line: string): boolean {
  const words = line.split(/\s+/)
  if (words.shift() !== 'export') return false
  while (modifiers.has(words[0] ?? '')) words.shift()
  return declarations.has(words.shift() ?? '') && /^[\w$]/.test(words[0] ?? '')
}

function isImport(line: string): boolean {
  const parts = line.split(/['"]/)
  return parts.some((part, at) => {
    const quoted = parts[at + 1] ?? ''
    return at + 2 < parts.length && quoted !== '' && /(^|\W)(from|import|require\()$/.test(part.trimEnd())
  })
}

function isTestCase(line: string): boolean {
  const [first, ...rest] = line.trimStart().split('(', 1).join('').split('.')
  return line.includes('(') && (first === 'test' || first === 'it') && rest.every((word) => /^\w+$/.test(word))
}

function isMark(line: string): boolean {
  return ['TODO', 'FIXME'].some((word) =>
    line.split(word).some((rest, at, all) => at > 0 && /^[:(]/.test(rest) && !/\w$/.test(all[at - 1] ?? '')),
  )
}

function countFile(at: string, path: string): Counted | null {
  const bytes = readFileSync(join(at, path))
  if (bytes.length > 1024 * 1024 || bytes.subarray(0, 8192).includes(0)) return null
  const text = bytes.toString('utf8')
  const lines = text.split('\n').map((line) => line.replace(/\r$/, ''))
  if (lines.at(-1) === '') lines.pop()
  const language = endings[extname(path)] ?? 'other'
  const script = language === 'TypeScript' || language === 'JavaScript'
  const count = (is: (line: string) => boolean) => lines.map((line) => line.slice(0, 2000)).filter(is).length
  const python = language === 'Python'
  const word = (line: string) => line.split(/[\s(:]/).filter((part) => part !== '')
  return {
    path,
    lines: lines.length,
    language,
    exports: script
      ? count(isExport)
      : python
        ? count((line) => ['class', 'def'].includes(line.split(' ')[0] ?? ''))
        : 0,
    imports: script ? count(isImport) : python ? count((line) => ['from', 'import'].includes(word(line)[0] ?? '')) : 0,
    tests: script
      ? count(isTestCase)
      : python
        ? count((line) => word(line)[0] === 'def' && word(line)[1]?.startsWith('test_') === true)
        : 0,
    marks: count(isMark),
  }
}

function countAll(at: string, under = ''): Counted[] {
  return readdirSync(join(at, under), { withFileTypes: true }).flatMap((entry) => {
    const path = under === '' ? entry.name : `${under}/${entry.name}`
    if (skipped.has(entry.name)) return []
    if (entry.isDirectory()) return countAll(at, path)
    const counted = entry.isFile() ? countFile(at, path) : null
    return counted === null ? [] : [counted]
  })
}

const total = (files: readonly Counted[], of: 'lines' | 'exports' | 'imports' | 'tests' | 'marks') =>
  files.reduce((sum, file) => sum + file[of], 0)
const testFiles = (files: readonly Counted[]) =>
  files.filter(({ path }) => /^test_|[._](test|spec)\./.test(basename(path)))

/** Rows of the table under a heading, without its head. */
function rows(report: string, heading: string): string[][] {
  const section = report.split(`## ${heading}\n`)[1]?.split('\n## ')[0] ?? ''
  const lines = section.split('\n').filter((line) => line.startsWith('|'))
  return lines.slice(2).map((line) =>
    line
      .replaceAll('\\|', '\0')
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim().replaceAll('\0', '|')),
  )
}

/** Every figure of a report against the count of this test. */
function expectTrue(report: string, at: string): void {
  const files = countAll(at)
  const head = `Files: **${files.length}** · lines: **${total(files, 'lines')}** · exported names: ${total(files, 'exports')}`
  const tests = `test files: ${testFiles(files).length} · test cases: ${total(files, 'tests')}`
  expect(report.split('\n')[2]).toBe(`${head} · ${tests} · marks of work to be done: ${total(files, 'marks')}`)
  const groups = grouped(files, topOf)
  const expected = [...groups].map(([name, group]) => [
    `\`${name}\``,
    ...[group.length, total(group, 'lines')].map(String),
    ...[
      total(group, 'exports'),
      total(group, 'imports'),
      testFiles(group).length,
      total(group, 'tests'),
      total(group, 'marks'),
    ].map(String),
  ])
  const written = rows(report, 'Folders').map(([name = '', files = '', lines = '', , ...rest]) => [
    name,
    files,
    lines,
    ...rest,
  ])
  expect(new Set(written.map(String))).toEqual(new Set(expected.map(String)))
  expect(new Set(rows(report, 'Languages').map(String))).toEqual(
    new Set(
      [...grouped(files, ({ language }) => language)].map(([name, group]) =>
        String([name, group.length, total(group, 'lines')]),
      ),
    ),
  )
  const longest = Math.max(...files.map(({ lines }) => lines))
  expect(report).toContain(`: ${longest} lines`)
  expect(report).toContain('add up to the same')
}

const topOf = ({ path }: Counted) => (path.includes('/') ? (path.split('/')[0] ?? '') : '. (own files)')

function grouped(files: readonly Counted[], keyOf: (file: Counted) => string): Map<string, Counted[]> {
  const groups = new Map<string, Counted[]>()
  for (const file of files) groups.set(keyOf(file), [...(groups.get(keyOf(file)) ?? []), file])
  return groups
}

// --- trees to survey ------------------------------------------------------------------------------------------------

/** Marks are written in two pieces: this file is part of the repository that is surveyed below. */
const mark = (word: string, rest: string) => `${word}${rest}`

function makeTree(at: string): void {
  const secret = folder('outside')
  write({ 'secret.ts': 'export const secret = 1\n' }, secret)
  write(
    {
      'README.md': '# Made tree\n\nA tree for a test.\n',
      'main.ts': "import { a } from './src/a.js'\nimport 'node:fs'\nexport default function main() {}\nconsole.log(a)",
      'src/a.ts': `/** The letter a, exported. */\nexport const a = 1\nexport interface A {}\n// ${mark('TODO', ': more letters')}\n`,
      'src/deep/er/b.ts': "export type B = string\nconst x = await import('node:os')\nexport { x }\n",
      'src/crlf.js': 'const a = require("./a.js")\r\nexport class C {}\r\n',
      'src/a.test.ts': "test('one', () => {})\n  it.each([1])('two', () => {})\nattest('no')\n",
      'src/empty.ts': '',
      'py/tool.py': `import os\nfrom sys import path\n\nclass Tool:\n    def test_inner(self): ...  # ${mark('FIXME', '(x) later')}\n\ndef run():\n    pass\n`,
      'py/test_tool.py': 'def test_it():\n    import tool\n',
      'odd | name "x"/c.ts': '# not a comment of TypeScript\nexport enum E {}\n',
      'binary.bin': Buffer.from([1, 2, 0, 3]),
      'large.json': `"${'x'.repeat(1024 * 1024)}"\n`,
      '.env': 'KEY=1\n',
      'node_modules/dep/index.js': 'export const dep = 1\n',
      'src/node_modules/dep/index.js': 'export const dep = 1\n',
      '.git/config': 'export const git = 1\n',
      'dist/a.js': 'export const a = 1\n',
      '.troupe/x.js': 'export const x = 1\n',
    },
    at,
  )
  symlinkSync(secret, join(at, 'src/out'))
  symlinkSync(join(secret, 'secret.ts'), join(at, 'src/out.ts'))
  symlinkSync(at, join(at, 'src/loop'))
}

/** Eight folders with something to find, so that a run takes long enough to be killed in. */
function makeCode(at: string): void {
  for (let index = 0; index < 8; index += 1) {
    write(
      { [`part${index}/index.ts`]: `/** Part ${index} of the code. */\n${'export const x = 1\n'.repeat(index + 1)}` },
      at,
    )
  }
}

// --- the small examples ---------------------------------------------------------------------------------------------

test.each([
  ['hello.ts', /^It landed on 20 July 1969\.$/],
  ['desk.ts', /^Dear customer, invoice 17 was paid on 3 May\.$/],
  ['rounds.ts', /^The total is 60\.$/],
  ['essay.ts', /^A short poem\. \(draft 2\)$/],
  ['web.ts', /^7 events, a lost connection, \d+ more: none lost$/],
])('examples: %s ends by itself with the line it promises', async (name, line) => {
  const { code, stdout, stderr } = await example(name).ended
  expect(code, stderr).toBe(0)
  expect(lastLine(stdout)).toMatch(line)
})

test('examples: resume.ts posts every invoice once, killed three times on the way', async () => {
  const at = folder('resume')
  for (let kills = 0; kills < 3; kills += 1) {
    const killed = example('resume.ts', at)
    // Events are told from the run's beginning, so each start tells those of the starts before it too.
    await killed.saying(/post: ok/g, 2 * (kills + 1))
    killed.signal('SIGKILL')
    expect((await killed.ended).signal).toBe('SIGKILL')
  }
  const { code, stdout, stderr } = await example('resume.ts', at).ended
  expect(code, stderr).toBe(0)
  expect(lastLine(stdout)).toBe('8 invoices posted, 0 of them twice')
})

// --- the survey -----------------------------------------------------------------------------------------------------

test('survey: every figure about a small tree is true, and nothing outside of it is seen', async () => {
  const at = folder('tree')
  makeTree(at)
  const report = await surveyOf(at)
  expectTrue(report, at)
  expect(report).toContain('2 files were not read')
  expect(report).toContain('`src/a.ts` opens with “The letter a, exported”.')
  expect(report).toContain('`src/a.ts:4` //')
  expect(report).not.toContain('secret')
})

test('survey: every figure about this repository is true', async () => {
  const at = folder('repository')
  cpSync(root, at, { recursive: true, filter: (path) => !skipped.has(basename(path)) })
  expectTrue(await surveyOf(at), at)
})

test('survey: a part of the tree, and what cannot be surveyed', async () => {
  const at = folder('parts')
  makeTree(at)
  const part = await surveyOf(at, 'src')
  expect(part).toContain('# Survey of `src`')
  expect(part).toContain(`Files: **${countAll(at, 'src').length}**`)
  expect(await surveyOf(at, '..')).toContain('lies outside of the folder')
  expect(await surveyOf(at, 'nowhere')).toContain('There is no "nowhere" here')
  expect(await surveyOf(at, 'src/out')).toContain('lies outside of the folder')
  mkdirSync(join(at, 'nothing'))
  expect(await surveyOf(at, 'nothing')).toContain('There are no text files')
}, 120_000)

test('survey: of many folders the smallest are told to be left out, with their figures', async () => {
  const at = folder('many')
  for (let index = 10; index < 30; index += 1) write({ [`f${index}/x.ts`]: 'const x = 1\n'.repeat(index) }, at)
  const report = await surveyOf(at)
  expect(rows(report, 'Folders')).toHaveLength(15)
  expect(report).toContain('Not surveyed: `f10`, 1 files, 10 lines.')
  expect(report).toContain(
    `Files: **20** · lines: **${Array.from({ length: 20 }, (_, at) => at + 10).reduce((a, b) => a + b)}**`,
  )
  expect(report).toContain('add up to the same')
})

test('survey: SURVEY_FILE saves the report, once', async () => {
  const at = folder('save')
  makeCode(at)
  const { code, stdout, stderr } = await surveying(at, folder('store'), '.', survey, { SURVEY_FILE: 'report.md' }).ended
  expect(code, stderr).toBe(0)
  expect(readFileSync(join(at, 'report.md'), 'utf8').trim()).toBe(stdout.trim())
  expect(readdirSync(at).filter((name) => name.includes('report'))).toEqual(['report.md'])
})

test('survey: with OPENAI_BASE_URL set, it asks that model and no script', async () => {
  await using model = await startScriptedModel(() => 'A report of another model.')
  const at = folder('online')
  makeCode(at)
  const env = { OPENAI_BASE_URL: model.baseURL, TROUPE_MODEL: 'some-model' }
  const { code, stdout, stderr } = await surveying(at, folder('store'), '.', survey, env).ended
  expect(code, stderr).toBe(0)
  expect(stdout).toBe('A report of another model.\n')
  expect([...model.requests.byModel.keys()]).toEqual(['some-model'])
  expect(stderr).not.toContain('a script stands in')
})

/** The tools of the surveyors, by name, as calls on a folder. */
async function toolsOn(at: string) {
  process.env['OPENAI_API_KEY'] ??= 'none' // so that the file does not start its script here
  const { default: crew } = await import('../examples/survey.js')
  const signal = AbortSignal.timeout(20_000)
  return async (name: string, input: object): Promise<unknown> => {
    const tool = crew.agents['surveyor']?.tools.find((tool) => tool.name === name)
    if (tool === undefined) throw new Error(`no tool ${name}`)
    return tool.run(tool.input.parse(input) as never, { deps: { root: at }, signal } as never)
  }
}

test('survey: the tools see nothing outside of the folder, whatever they are asked', async () => {
  const at = folder('inside')
  makeTree(at)
  const call = await toolsOn(at)
  for (const path of ['..', '../', '/', '/etc', 'src/../..', 'src/out', 'src/out.ts', at.slice(0, -1)])
    for (const [name, input] of Object.entries({ list: { folder: path }, read: { path, lines: 1 } }))
      await expect(call(name, input), `${name} ${path}`).rejects.toMatchObject({ name: 'ToolError' })
  for (const path of [
    '.env',
    'node_modules',
    '.git/config',
    'src/node_modules/dep/index.js',
    'binary.bin',
    'large.json',
  ])
    await expect(call('read', { path, lines: 1 }), path).rejects.toMatchObject({ name: 'ToolError' })
  expect(await call('read', { path: join(at, 'main.ts'), from: 2, lines: 1 })).toBe("import 'node:fs'")
  expect(await call('read', { path: 'src/loop/main.ts', lines: 1 })).toBe("import { a } from './src/a.js'")
  expect(await call('grep', { folder: '.', deep: true, pattern: 'secret|KEY=|dep = ' })).toMatchObject({ matches: 0 })
})

test('survey: a pattern that would never end is refused, as is one that is none', async () => {
  const at = folder('pattern')
  write({ 'a.ts': `${'a'.repeat(60)}!\n` }, at)
  const call = await toolsOn(at)
  const started = performance.now()
  const refused = { name: 'ToolError', message: expect.stringContaining('This pattern does not work') }
  await expect(call('grep', { folder: '.', deep: true, pattern: '(a+)+$' })).rejects.toMatchObject(refused)
  expect(performance.now() - started).toBeLessThan(10_000)
  await expect(call('grep', { folder: '.', deep: true, pattern: '(' })).rejects.toMatchObject(refused)
  expect(await call('grep', { folder: '.', deep: true, pattern: 'a!$' })).toMatchObject({ matches: 1 })
})

// --- killed, stopped, edited ----------------------------------------------------------------------------------------

/** Slow enough to be caught in the middle. */
const slowly = { SURVEY_LATENCY_MS: '150' }
/** What the command says about a call of a surveyor's. */
const progress = /grep/g

test('survey: `npm start` killed in the middle finishes when it is run again', async () => {
  const store = folder('store')
  const start = () => new Program('npm', ['start', '--silent', '--', '--store', store], root, slowly)
  const killed = start()
  await killed.saying(progress, 3)
  killed.signal('SIGKILL')
  expect((await killed.ended).signal).toBe('SIGKILL')
  expect(killed.stdout).not.toContain('# Survey')
  const { code, stdout, stderr } = await start().ended
  expect(code, stderr).toBe(0)
  expect(stdout).toContain('# Survey of this directory')
  expect(stdout).toMatch(/^\| `runtime` \| \d+ \|/m)
  const again = await start().ended
  expect(again.stdout, 'a finished run gives its stored result').toBe(stdout)
}, 120_000)

test('survey: killed twice, it ends with the report of its twin that was not', async () => {
  const at = folder('code')
  makeCode(at)
  const twin = await surveyOf(at)
  const store = folder('store')
  // Not three times: a call over which the process died three times is given up.
  for (const rounds of [3, 6]) {
    const killed = surveying(at, store, '.', survey, slowly)
    await killed.saying(/ round /g, rounds)
    killed.signal('SIGKILL')
    expect((await killed.ended).signal).toBe('SIGKILL')
  }
  const { code, stdout, stderr } = await surveying(at, store).ended
  expect(code, stderr).toBe(0)
  expect(stderr).toContain('goes on')
  expect(stdout).toBe(twin)
}, 120_000)

/** A user's own project: the example beside the package, as `npm install` leaves it. */
function project(): string {
  const at = folder('project')
  makeCode(join(at, 'code'))
  mkdirSync(join(at, 'node_modules'))
  symlinkSync(root, join(at, 'node_modules/troupe'))
  symlinkSync(join(root, 'node_modules/zod'), join(at, 'node_modules/zod'))
  write({ 'package.json': '{ "type": "module" }\n' }, at)
  for (const name of ['survey.ts', 'survey-offline.ts']) cpSync(join(root, 'examples', name), join(at, name))
  return at
}

test.each([
  ['SIGINT', 130],
  ['SIGKILL', null],
] as const)(
  'survey: with edited instructions it goes on after %s',
  async (signal, code) => {
    const at = project()
    const file = join(at, 'survey.ts')
    const store = folder('store')
    const twin = await surveyOf(at, 'code')
    const stopped = surveying(at, store, 'code', file, slowly)
    await stopped.saying(progress, 3)
    stopped.signal(signal)
    const ended = await stopped.ended
    expect(ended.code, ended.stderr).toBe(code)
    expect(ended.stdout).not.toContain('# Survey')
    const before = readFileSync(file, 'utf8')
    const after = before.replace(
      'You survey one folder of source code',
      'You survey one folder of source code with care',
    )
    expect(after).not.toBe(before)
    writeFileSync(file, after)
    const resumed = await surveying(at, store, 'code', file).ended
    expect(resumed.code, resumed.stderr).toBe(0)
    expect(resumed.stdout).toBe(twin)
  },
  120_000,
)

test('examples: all are here, and the README of the folder names each', () => {
  const names = readdirSync(join(root, 'examples')).filter((name) => name.endsWith('.ts'))
  const readme = readFileSync(join(root, 'examples/README.md'), 'utf8')
  for (const name of names) expect(readme).toContain(`\`${name}\``)
  expect(statSync(survey).isFile()).toBe(true)
})
