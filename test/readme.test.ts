/**
 * The README says nothing that is not so, as far as a test can tell: its programs compile, its first one is an example
 * that runs, its errors, commands, scripts and providers are the ones there are.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import ts from 'typescript'
import { expect, test } from 'vitest'
import { knownProviders } from '../actors/providers.js'
import { errorCodes } from '../runtime/errors.js'
import { type Soaks, soakTable, withTable } from './soak-table.js'

const root = join(import.meta.dirname, '..')
const read = (path: string) => readFileSync(join(root, path), 'utf8')
const readme = read('README.md')
const programs = [...readme.matchAll(/^```ts\n([\s\S]*?)^```$/gm)].map((match) => match[1] ?? '')

/** What the compiler says of sources that stand in no file, with the repository's own settings. */
function problems(sources: readonly string[]): string[] {
  const config = ts.getParsedCommandLineOfConfigFile(
    join(root, 'tsconfig.json'),
    {},
    {
      ...ts.sys,
      onUnRecoverableConfigFileDiagnostic: (diagnostic) => {
        throw new Error(ts.flattenDiagnosticMessageText(diagnostic.messageText, '\n'))
      },
    },
  )
  if (config === undefined) throw new Error('tsconfig.json cannot be read')
  const files = new Map(sources.map((source, index) => [join(root, 'examples', `readme-${index + 1}.ts`), source]))
  const host = ts.createCompilerHost(config.options)
  const { fileExists, readFile, getSourceFile } = host
  host.fileExists = (path) => files.has(path) || fileExists(path)
  host.readFile = (path) => files.get(path) ?? readFile(path)
  host.getSourceFile = (path, options) => {
    const source = files.get(path)
    return source === undefined ? getSourceFile(path, options) : ts.createSourceFile(path, source, options)
  }
  const program = ts.createProgram([...files.keys()], config.options, host)
  return [...files.keys()].flatMap((path, index) => {
    const file = program.getSourceFile(path)
    const found = [...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file)]
    return found.map(({ messageText, start }) => {
      const line = file === undefined ? 0 : file.getLineAndCharacterOfPosition(start ?? 0).line + 1
      return `program ${index + 1}, line ${line}: ${ts.flattenDiagnosticMessageText(messageText, '\n')}`
    })
  })
}

test('readme: every program compiles', { timeout: 60_000 }, () => {
  expect(programs.length).toBeGreaterThanOrEqual(3)
  expect(problems(programs)).toEqual([])
})

test('readme: a program that does not compile is noticed', { timeout: 60_000 }, () => {
  expect(problems(["import { defineTool } from 'troupe'\nexport const x: number = defineTool\n"])).toHaveLength(1)
})

test('readme: the first program begins by line 20 and is examples/hello.ts', () => {
  expect(readme.slice(0, readme.indexOf('```ts')).split('\n').length).toBeLessThanOrEqual(20)
  expect(programs[0]).toBe(read('examples/hello.ts').replace(/^\/\*\*.*\*\/\n/, ''))
})

test('readme: what is read through, without the list of errors and the measured table, is at most 230 lines', () => {
  const errors = readme.indexOf('## Errors')
  const own = withTable(readme, '').replace(readme.slice(errors, readme.indexOf('\n## ', errors)), '')
  expect(own.split('\n').length).toBeLessThanOrEqual(230)
})

test('readme: the errors are the codes, in their order, and each says something', () => {
  const errors = readme.slice(readme.indexOf('\n## Errors\n'), readme.indexOf('\n## Examples\n'))
  expect([...errors.matchAll(/^### (.+)$/gm)].map((match) => match[1])).toEqual([...errorCodes])
  expect([...errors.matchAll(/^### .+\n[A-Z0-9`].{20,}$/gm)]).toHaveLength(errorCodes.length)
})

test('readme: no other heading looks like a code, and no code is named that is none', () => {
  const named = [...readme.matchAll(/`([A-Z]+(?:_[A-Z]+)+)`/g)].map((match) => match[1] ?? '')
  const variables = ['NATS_PASSWORD', 'NATS_USER', 'NODE_ENV', 'OPENAI_API_KEY', 'OPENAI_BASE_URL']
  expect(
    named.filter((name) => !variables.includes(name) && !(errorCodes as readonly string[]).includes(name)),
  ).toEqual([])
})

test('readme: every command of the command line is there, and no other', () => {
  const section = readme.slice(readme.indexOf('\n## Command line\n'), readme.indexOf('\n## Errors\n'))
  const synopses = section.split('\n').filter((line) => line.startsWith('    troupe '))
  const told = synopses.flatMap((line) =>
    line
      .slice('    troupe '.length)
      .replace(/ {3,}.*$/, '')
      .split(' | '),
  )
  const built = [
    ...read('runtime/cli/main.ts').matchAll(
      /^(?:storeCommand|localCommand|natsCommand|program\s*\.command)\('([a-z-]+)/gm,
    ),
  ]
  const commands = told.map((words) => words.split(' ')[0])
  expect(new Set(commands)).toEqual(new Set(built.map((match) => match[1])))
})

test('readme: every script it names is in package.json', () => {
  const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> }
  const named = [...readme.matchAll(/npm (?:run ([a-z:]+)|(test|start))/g)].map((match) => match[1] ?? match[2] ?? '')
  expect(named).toContain('start')
  expect(named.filter((name) => scripts[name] === undefined)).toEqual([])
})

test('readme: the known providers are the known ones', () => {
  expect(/^Known providers: ([a-z, ]+)\./m.exec(readme)?.[1]?.split(', ')).toEqual([...knownProviders])
})

test('readme: every link to a file leads to one', () => {
  for (const [, path = ''] of readme.matchAll(/\]\(([^)#]+)\)/g)) expect(() => read(path)).not.toThrow()
})

test('readme: the table of what was measured is that of test/soak.json', () => {
  expect(withTable(readme, 'a table')).toContain('-->\na table\n<!--')
  expect(withTable(readme, soakTable(JSON.parse(read('test/soak.json')) as Soaks))).toBe(readme)
})
