/**
 * A crew that surveys a directory of source code and writes a report whose figures are true.
 *
 *     npm start                                  this repository; without a key the model is a script
 *     OPENAI_API_KEY=… npm start -- --new        a real model; TROUPE_MODEL names it (default gpt-5-mini)
 *     npx troupe run examples/survey.ts --input runtime       a folder below the current one
 *
 *     lead ──► surveyor × folder, in parallel ──► lead ──► writer ──► lead ──► report
 *
 * Kill it with `kill -9` and run the same command again: it goes on where it was.
 */
import { readdir, readFile, realpath, rename, stat, writeFile } from 'node:fs/promises'
import { basename, extname, join, relative, resolve, sep } from 'node:path'
import { Script } from 'node:vm'
import { defineAgent, defineCrew, defineTool, ToolError } from 'troupe'
import { z } from 'zod'

// --- the files, as far as tools may see them ------------------------------------------------------------------------

/** Never looked into; `.env` because what is read goes to a model. */
const hidden = /^(node_modules|\.git|dist|\.troupe|\.env(\..*)?)$/
const bounds = { files: 5_000, fileBytes: 1_048_576, allBytes: 67_108_864, lineCharacters: 2_000, patternMs: 1_000 }
const known = `TypeScript ts tsx mts cts,JavaScript js jsx mjs cjs,Python py,Go go,Rust rs,Java java,Kotlin kt,C c h,
C++ cc cpp cxx hpp,C# cs,Ruby rb,PHP php,Swift swift,Shell sh,SQL sql,HTML html,CSS css,Markdown md,JSON json,
YAML yml yaml,TOML toml`
const languages = new Map<string, string>()
for (const [language = '', ...endings] of known.split(/,\s*/).map((line) => line.split(' ')))
  for (const ending of endings) languages.set(`.${ending}`, language)

interface SourceFile {
  readonly path: string
  readonly language: string
  readonly lines: readonly string[]
}

/** What all paths are relative to, and all tools stay in: a program's `deps.root`, else where the command was started. */
const rootOf = (deps: unknown) => realpath((deps as { root?: string } | undefined)?.root ?? process.cwd())

/** The real path of what the model named, if that lies in the root and is not hidden. */
async function inside(root: string, path: string): Promise<string> {
  const real = await realpath(resolve(root, path)).catch(() => '')
  const name = JSON.stringify(path)
  if (real === '') throw new ToolError(`There is no ${name} here.`)
  if (real !== root && !real.startsWith(root.endsWith(sep) ? root : root + sep))
    throw new ToolError(`${name} lies outside of the folder in which the survey was started.`)
  const parts = relative(root, real).split(sep)
  if (parts.some((part) => hidden.test(part))) throw new ToolError(`${name} is not to be looked into.`)
  return real
}

async function textOf(path: string): Promise<string | null> {
  const isSmall = (await stat(path)).size <= bounds.fileBytes
  const bytes = isSmall ? await readFile(path) : null
  return bytes === null || bytes.subarray(0, 8_192).includes(0) ? null : bytes.toString('utf8')
}

/** The files of a folder, by name; links are not followed. `unread` were binary, too large or gone; `cut`: too many. */
async function walk(root: string, folder: string, deep: boolean, signal: AbortSignal) {
  const found = { files: [] as SourceFile[], unread: 0, cut: false }
  let left = bounds.allBytes
  const visit = async (directory: string): Promise<void> => {
    const entries = await readdir(directory, { withFileTypes: true }).catch(() => [])
    for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
      signal.throwIfAborted()
      if (hidden.test(entry.name) || found.cut) continue
      const path = join(directory, entry.name)
      if (entry.isDirectory() && deep) await visit(path)
      if (!entry.isFile()) continue
      const text = await textOf(path).catch(() => null)
      left -= text?.length ?? 0
      if (text === null) found.unread += 1
      else if (found.files.length === bounds.files || left < 0) found.cut = true
      else found.files.push({ path: shown(root, path), language: languageOf(path), lines: linesOf(text) })
    }
  }
  const real = await inside(root, folder)
  if (!(await stat(real)).isDirectory()) throw new ToolError(`${JSON.stringify(folder)} is a file.`)
  await visit(real)
  return found
}

const shown = (root: string, path: string) => relative(root, path).split(sep).join('/') || '.'
const languageOf = (path: string) => languages.get(extname(path).toLowerCase()) ?? 'other'
const linesOf = (text: string) => (text === '' ? [] : text.replace(/\n$/, '').split(/\r?\n/))
const sum = (files: readonly SourceFile[]) => files.reduce((lines, file) => lines + file.lines.length, 0)
const isTest = ({ path }: SourceFile) => /^test_|[._](test|spec)\./.test(basename(path))

/** Files and lines by key, most lines first. */
function sums(files: readonly SourceFile[], keyOf: (file: SourceFile) => string) {
  const groups = new Map<string, SourceFile[]>()
  for (const file of files) groups.set(keyOf(file), [...(groups.get(keyOf(file)) ?? []), file])
  const rows = [...groups].map(([name, group]) => ({ name, files: group.length, lines: sum(group) }))
  return rows.sort((a, b) => b.lines - a.lines)
}

// --- tools: all but `save` only look, so they may run again at will: `pure` -----------------------------------------

const scope = {
  folder: z.string().max(1_024).describe('A folder, relative to the start; "." is the start itself.'),
  deep: z.boolean().describe('true: with all folders below; false: only the files directly in it.'),
}

const list = defineTool({
  name: 'list',
  description: 'Lists a folder: its folders with all files and lines below them, and its own files.',
  input: z.object({ folder: scope.folder }),
  effect: 'pure',
  run: async ({ folder }, { deps, signal }) => {
    const root = await rootOf(deps)
    const { files, unread, cut } = await walk(root, folder, true, signal)
    const base = shown(root, await inside(root, folder))
    const depth = base === '.' ? 1 : base.split('/').length + 1
    const isOwn = ({ path }: SourceFile) => path.split('/').length === depth
    const top = ({ path }: SourceFile) => path.split('/').slice(0, depth).join('/')
    const below = files.filter((file) => !isOwn(file))
    return { folders: sums(below, top), files: sums(files.filter(isOwn), top).slice(0, 200), unread, cut }
  },
})

const count = defineTool({
  name: 'count',
  description: 'Counts files, lines, languages and test files of a folder, and names its five longest files.',
  input: z.object(scope),
  effect: 'pure',
  run: async ({ folder, deep }, { deps, signal }) => {
    const { files, unread, cut } = await walk(await rootOf(deps), folder, deep, signal)
    const longest = sums(files, ({ path }) => path).slice(0, 5)
    const byLanguage = sums(files, ({ language }) => language)
    const testFiles = files.filter(isTest).length
    return { files: files.length, lines: sum(files), languages: byLanguage, longest, testFiles, unread, cut }
  },
})

type Match = readonly [path: string, line: number, text: string, group: string]

/** The model writes the pattern, and some patterns never end: only code in a `vm` has a time limit. */
const search = new Script(`files.flatMap(({ path, lines }) => lines.flatMap((line, index) => {
  const match = pattern.exec(line.slice(0, ${bounds.lineCharacters}))
  return match === null ? [] : [[path, index + 1, line.trim().slice(0, 160), match[1] ?? match[0]]]
}))`)
function matching(files: readonly SourceFile[], pattern: string): readonly Match[] {
  try {
    return search.runInNewContext({ files, pattern: new RegExp(pattern) }, { timeout: bounds.patternMs }) as Match[]
  } catch (error) {
    throw new ToolError(`This pattern does not work: ${(error as Error).message}`)
  }
}

const grep = defineTool({
  name: 'grep',
  description: 'Counts lines that match a pattern, shows the first ones, and tells the most frequent texts of group 1.',
  input: z.object({
    ...scope,
    pattern: z.string().min(1).max(400).describe('JavaScript regular expression for one line.'),
    language: z.string().optional().describe('Only files of this language, as `count` names it.'),
    limit: z.int().min(0).max(100).default(20).describe('How many lines and texts to show.'),
  }),
  effect: 'pure',
  run: async ({ folder, deep, pattern, language, limit }, { deps, signal }) => {
    const { files, cut } = await walk(await rootOf(deps), folder, deep, signal)
    const chosen = files.filter((file) => language === undefined || file.language === language)
    const matches = matching(chosen, pattern)
    const groups = new Map<string, number>()
    for (const [, , , group] of matches) groups.set(group, (groups.get(group) ?? 0) + 1)
    const ranked = [...groups].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1)).slice(0, limit)
    const most = ranked.map(([text, times]) => ({ text, times }))
    const lines = matches.slice(0, limit).map(([path, line, text]) => ({ path, line, text }))
    return { matches: matches.length, lines, most, cut }
  },
})

const read = defineTool({
  name: 'read',
  description: 'Reads lines of a file, at most 200 at once.',
  input: z.object({ path: z.string().max(1_024), from: z.int().min(1).default(1), lines: z.int().min(1).max(200) }),
  effect: 'pure',
  maxBytes: 32_768,
  run: async ({ path, from, lines }, { deps }) => {
    const real = await inside(await rootOf(deps), path)
    const text = (await stat(real)).isFile() ? await textOf(real) : null
    if (text === null) throw new ToolError(`${JSON.stringify(path)} is a folder, binary, or too large.`)
    const all = linesOf(text)
    return all.slice(from - 1, from - 1 + lines).join('\n')
  },
})

/** Twice leaves what once leaves, so a call that was killed is made again: `idempotent`. Only with SURVEY_FILE. */
const file = basename(process.env['SURVEY_FILE'] ?? '')
const save = defineTool({
  name: 'save',
  description: 'Saves the finished report.',
  input: z.object({ markdown: z.string().min(1) }),
  effect: 'idempotent',
  run: async ({ markdown }, { deps, idempotencyKey }) => {
    const path = join(await rootOf(deps), file)
    await writeFile(`${path}.${idempotencyKey}`, markdown)
    await rename(`${path}.${idempotencyKey}`, path)
    return `Saved as ${file}.`
  },
})

// --- the crew -------------------------------------------------------------------------------------------------------

const tally = z.object({ text: z.string(), times: z.int() })
const findings = z.object({
  folder: z.string(),
  purpose: z.string().describe('One sentence from what you read: what this folder is for.'),
  files: z.int(),
  lines: z.int(),
  languages: z.array(z.object({ name: z.string(), files: z.int(), lines: z.int() })),
  exports: z.object({ matches: z.int(), most: z.array(tally) }).describe('Names that other files can import.'),
  imports: z.object({ matches: z.int(), most: z.array(tally) }).describe('Modules that are imported most.'),
  testFiles: z.int(),
  testCases: z.int(),
  todos: z.int().describe('Lines with a mark of work to be done.'),
})

/** The script that stands in for a model is loaded only when nothing says where a real one is. */
const offline = !process.env['OPENAI_API_KEY'] && !process.env['OPENAI_BASE_URL']
if (offline) {
  console.error('neither OPENAI_API_KEY nor OPENAI_BASE_URL is set: a script stands in for the model')
  const script = new URL('./survey-offline.ts', import.meta.url).href
  const { startOfflineModel } = (await import(script)) as { startOfflineModel: () => Promise<{ baseURL: string }> }
  process.env['OPENAI_BASE_URL'] = (await startOfflineModel()).baseURL
}
const model = offline ? 'openai:offline-script' : `openai:${process.env['TROUPE_MODEL'] ?? 'gpt-5-mini'}`
const rule = 'Every figure you write is one that a tool told: never estimate, never add up in your head.'

export default defineCrew({
  name: 'survey',
  lead: 'lead',
  agents: {
    lead: defineAgent({
      model,
      instructions: `You lead the survey of a directory, which the user names. List it. Then give each of its folders, at
most the 15 with the most lines, to a surveyor, all in one reply; and one surveyor the files directly in it, if there
are any. When all have answered, give the writer the directory, the surveyors' answers word for word, and which folders
nobody surveyed. Your answer is the writer's report, word for word. If the directory cannot be listed, say why. ${rule}`,
      tools: [list],
      delegates: ['surveyor', 'writer'],
      settings: { maxOutputTokens: 16_384 },
    }),
    surveyor: defineAgent({
      model,
      description: 'Surveys one folder. Say which, and whether with all folders below or only its own files.',
      instructions: `You survey one folder of source code: count it; grep for exported names, imports, test cases and
marks of work to be done, in the languages that you found; read the beginning of a long file to see what it is for.
${rule}`,
      tools: [list, count, grep, read],
      output: findings,
      budget: { usd: 1 },
      limits: { rounds: 12 },
    }),
    writer: defineAgent({
      model,
      description: 'Writes the report. Give it the directory and all findings, word for word.',
      instructions: `You write a report in Markdown about a directory of source code: totals, folders, languages,
longest files, exported names, imports, tests, marks of work to be done. Count the whole directory yourself for the
totals, and say so where the findings differ from them. If you have a tool to save the report, save it. Answer with the
report alone. ${rule}`,
      tools: file === '' ? [count, grep] : [count, grep, save],
      settings: { maxOutputTokens: 16_384 },
      limits: { rounds: 8 },
    }),
  },
  // A run that would spend more ends with BUDGET_EXHAUSTED. A model without a known price counts as gpt-5-mini; the script
  // costs nothing.
  budget: { usd: 3, toolCalls: 600, wallMs: 20 * 60_000 },
  limits: { delegates: 8, toolConcurrency: 16 },
  unknownPrice: offline ? { input: 0, output: 0 } : { input: 250_000, output: 2_000_000 },
})
