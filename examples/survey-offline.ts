/**
 * The model of `survey.ts` when there is no key: a script behind a real HTTP server that speaks the OpenAI protocol.
 *
 * It answers from the conversation alone, as a model does, and remembers nothing: a server that starts in the middle of
 * a run goes on. Every figure it writes stands in a tool result before it. Which of the three agents asks, it sees from
 * the tools that are offered.
 */
import { createHash } from 'node:crypto'
import { startScriptedModel } from 'troupe'

type ModelScript = Parameters<typeof startScriptedModel>[0]
type Request = Parameters<ModelScript>[0]
type Answer = Awaited<ReturnType<ModelScript>>

/** A call that was made and what came of it. */
interface Step {
  readonly tool: string
  readonly args: Readonly<Record<string, unknown>>
  readonly text: string
}

interface Sums {
  readonly name: string
  readonly files: number
  readonly lines: number
}
interface Listing {
  readonly folders: readonly Sums[]
  readonly files: readonly Sums[]
}
interface Count {
  readonly files: number
  readonly lines: number
  readonly languages: readonly Sums[]
  readonly longest: readonly Sums[]
  readonly testFiles: number
  readonly unread: number
  readonly cut: boolean
}
interface Tally {
  readonly text: string
  readonly times: number
}
interface Matches {
  readonly matches: number
  readonly lines: readonly { readonly path: string; readonly line: number; readonly text: string }[]
  readonly most: readonly Tally[]
}
interface Findings {
  readonly folder: string
  readonly purpose: string
  readonly files: number
  readonly lines: number
  readonly languages: readonly Sums[]
  readonly exports: { readonly matches: number; readonly most: readonly Tally[] }
  readonly imports: { readonly matches: number; readonly most: readonly Tally[] }
  readonly testFiles: number
  readonly testCases: number
  readonly todos: number
}
/** What the lead tells the writer. */
interface Material {
  readonly directory: string
  readonly answers: readonly string[]
  readonly notSurveyed: readonly Sums[]
}

/** Folders that get a surveyor; the report says which ones did not. */
const most = 15
const todo = '\\b(?:TODO|FIXME)[:(]'
const scriptNames =
  '^export\\s+(?:default\\s+|declare\\s+|abstract\\s+|async\\s+)*(?:function\\*?|const|let|class|interface|type|enum)\\s+([\\w$]+)'
const scriptImports = '(?:\\bfrom|\\bimport|\\brequire\\()\\s*[\'"]([^\'"]+)[\'"]'
const scriptTests = '^\\s*(?:test|it)(?:\\.\\w+)*\\('
/** What to look for in which language. */
const patterns: Readonly<
  Record<string, { readonly exports: string; readonly imports: string; readonly tests: string }>
> = {
  TypeScript: { exports: scriptNames, imports: scriptImports, tests: scriptTests },
  JavaScript: { exports: scriptNames, imports: scriptImports, tests: scriptTests },
  Python: {
    exports: '^(?:class|def|async def) ([A-Za-z]\\w*)',
    imports: '^\\s*(?:from|import) ([\\w.]+)',
    tests: '^\\s*def (test_\\w+)',
  },
  Go: { exports: '^(?:func|type) ([A-Z]\\w*)', imports: '^(?:import )?\\s*"([\\w./-]+)"$', tests: '^func (Test\\w+)' },
  Rust: {
    exports: '^pub (?:async )?(?:fn|struct|enum|trait|mod) (\\w+)',
    imports: '^use ([\\w:]+)',
    tests: '^\\s*#\\[test\\]()',
  },
}

/** Starts the server on a free port. `SURVEY_LATENCY_MS` is how long it "thinks" before each answer (default 60). */
export function startOfflineModel(): ReturnType<typeof startScriptedModel> {
  return startScriptedModel(answer, { latencyMs: Number(process.env['SURVEY_LATENCY_MS'] ?? 60), chunkCharacters: 400 })
}

const answer: ModelScript = (request) => {
  const steps = stepsOf(request.messages)
  if (request.tools.includes('surveyor')) return lead(request, steps)
  return request.tools.includes('read') ? surveyor(request, steps) : writer(request, steps)
}

/** Ids follow from the conversation: a run that was killed has the same ones as its twin that was not. */
function calls(request: Request, wanted: readonly (readonly [name: string, args: object])[]): Answer {
  const from = createHash('sha256').update(task(request)).digest('hex').slice(0, 8)
  const round = request.messages.length
  return {
    calls: wanted.map(([name, args], index) => ({ name, arguments: args, id: `call_${from}_${round}_${index}` })),
  }
}

function stepsOf(messages: Request['messages']): Step[] {
  const results = new Map(messages.map((message) => [message.tool_call_id, text(message.content)]))
  return messages.flatMap((message) =>
    (message.tool_calls ?? []).map((call) => ({
      tool: call.function.name,
      args: JSON.parse(call.function.arguments) as Step['args'],
      text: results.get(call.id) ?? '',
    })),
  )
}

function text(content: unknown): string {
  if (typeof content === 'string') return content
  return Array.isArray(content) ? content.map((part: { text?: string }) => part.text ?? '').join('') : ''
}

/** The task: what the user, or the agent that delegated, wrote. */
function task(request: Request): string {
  return text(request.messages.find(({ role }) => role === 'user')?.content).trim()
}

/** A result as data; null when it is an error in words. */
function data<T>(step: Step | undefined): T | null {
  try {
    return JSON.parse(step?.text ?? '') as T
  } catch {
    return null
  }
}

// --- lead: list, delegate, hand over, pass on -----------------------------------------------------------------------

function lead(request: Request, steps: readonly Step[]): Answer {
  const directory = task(request) || '.'
  const [first] = steps
  if (first === undefined) return calls(request, [['list', { folder: directory }]])
  const listing = data<Listing>(first)
  if (listing === null) return `The directory cannot be surveyed: ${first.text}`
  const answers = steps.filter(({ tool }) => tool === 'surveyor')
  const own = listing.files.length > 0 ? [`Survey the files that lie directly in ${JSON.stringify(directory)}.`] : []
  const folders = listing.folders.slice(0, most)
  const tasks = [...folders.map(({ name }) => `Survey ${JSON.stringify(name)} with all folders below.`), ...own]
  if (tasks.length === 0) return `There are no text files in ${JSON.stringify(directory)}.`
  if (answers.length === 0)
    return calls(
      request,
      tasks.map((task) => ['surveyor', { task }] as const),
    )
  const report = steps.find(({ tool }) => tool === 'writer')
  if (report !== undefined) return report.text
  const notSurveyed = listing.folders.slice(most)
  const material: Material = { directory, answers: answers.map((step) => step.text), notSurveyed }
  return calls(request, [['writer', { task: JSON.stringify(material) }]])
}

// --- surveyor: count and list, grep, read, answer -------------------------------------------------------------------

function surveyor(request: Request, steps: readonly Step[]): Answer {
  const scope = scopeOf(task(request))
  const counted = data<Count>(steps.find(({ tool }) => tool === 'count'))
  if (steps.length === 0)
    return calls(request, [
      ['count', scope],
      ['list', { folder: scope.folder }],
    ])
  if (counted === null) return `I cannot survey ${scope.folder}: ${steps[0]?.text ?? ''}`
  const greps = steps.filter(({ tool }) => tool === 'grep')
  if (greps.length === 0) return calls(request, searches(scope, counted, 8))
  const opening = steps.find(({ tool }) => tool === 'read')
  const longest = counted.longest.find(({ name }) => /\.(?!json$|lock$)\w+$/.test(name)) ?? counted.longest[0]
  if (opening === undefined && longest !== undefined)
    return calls(request, [['read', { path: longest.name, lines: 20 }]])
  return JSON.stringify({
    folder: scope.folder + (scope.deep ? '' : ' (own files)'),
    purpose: longest === undefined ? 'It is empty.' : `${code(longest.name)} ${firstWords(opening?.text ?? '')}`,
    files: counted.files,
    lines: counted.lines,
    languages: counted.languages,
    exports: together(greps, 'exports'),
    imports: together(greps, 'imports'),
    testFiles: counted.testFiles,
    testCases: together(greps, 'tests').matches,
    todos: together(greps, 'todos').matches,
  } satisfies Findings)
}

interface Scope {
  readonly folder: string
  readonly deep: boolean
}

function scopeOf(task: string): Scope {
  const quoted = /"(?:[^"\\]|\\.)*"/.exec(task)?.[0] ?? '"."'
  return { folder: JSON.parse(quoted) as string, deep: !task.includes('directly in') }
}

/** A grep for each thing in each language that was found. */
function searches(scope: Scope, { languages }: Count, limit: number): (readonly [string, object])[] {
  const inLanguage = languages.flatMap(({ name }) => {
    const known = Object.hasOwn(patterns, name) ? patterns[name] : undefined
    const wanted = known === undefined ? [] : [known.exports, known.imports, known.tests]
    return wanted.map((pattern) => ['grep', { ...scope, pattern, language: name, limit }] as const)
  })
  return [['grep', { ...scope, pattern: todo, limit: 20 }], ...inLanguage]
}

/** The results of one thing over all languages; `most` only of the language with most of it: each figure is a tool's. */
function together(greps: readonly Step[], what: 'exports' | 'imports' | 'tests' | 'todos'): Matches {
  const found = greps
    .filter(({ args }) => {
      const language = String(args['language'])
      return what === 'todos' ? args['pattern'] === todo : patterns[language]?.[what] === args['pattern']
    })
    .map((step) => data<Matches>(step))
    .filter((matches) => matches !== null)
    .sort((a, b) => b.matches - a.matches)
  return {
    matches: found.reduce((sum, { matches }) => sum + matches, 0),
    lines: found.flatMap(({ lines }) => lines),
    most: found[0]?.most ?? [],
  }
}

/** What a file says of itself: the first words of its first comment or heading. */
function firstWords(source: string): string {
  const comment = /^\s*(?:\/\/|\/?\*+|#|<!--|--|"{3})\s*(.*)/
  const comments = source.split('\n').map((line) => comment.exec(line)?.[1]?.replace(/\s*(\*\/|-->)\s*$/, '') ?? '')
  const first = comments.find((words) => /[A-Za-z]{2,}.* [A-Za-z]/.test(words) && !words.includes('/bin/'))
  return first === undefined
    ? 'opens without a comment.'
    : `opens with “${first.slice(0, 120).replace(/[\s.:]+$/, '')}”.`
}

// --- writer: recount, search, save, write ---------------------------------------------------------------------------

function writer(request: Request, steps: readonly Step[]): Answer {
  const material = JSON.parse(task(request)) as Material
  const scope: Scope = { folder: material.directory, deep: true }
  const counted = data<Count>(steps.find(({ tool }) => tool === 'count'))
  if (steps.length === 0) return calls(request, [['count', scope]])
  if (counted === null) return `The report cannot be written: ${steps[0]?.text ?? ''}`
  const greps = steps.filter(({ tool }) => tool === 'grep')
  if (greps.length === 0) return calls(request, searches(scope, counted, 10))
  const markdown = report(material, counted, greps)
  const mustSave = request.tools.includes('save') && !steps.some(({ tool }) => tool === 'save')
  return mustSave ? calls(request, [['save', { markdown }]]) : markdown
}

function report(material: Material, all: Count, greps: readonly Step[]): string {
  const { directory, notSurveyed } = material
  const answers = material.answers.map((text) => ({ text, part: data<Findings>({ tool: '', args: {}, text }) }))
  const parts = answers.map(({ part }) => part).filter((part) => part !== null)
  const imports = together(greps, 'imports')
  const todos = together(greps, 'todos')
  return [
    `# Survey of ${directory === '.' ? 'this directory' : code(directory)}`,
    [
      ...[
        `Files: **${all.files}**`,
        `lines: **${all.lines}**`,
        `exported names: ${together(greps, 'exports').matches}`,
      ],
      ...[`test files: ${all.testFiles}`, `test cases: ${together(greps, 'tests').matches}`],
      `marks of work to be done: ${todos.matches}`,
    ].join(' · '),
    checked(material, parts, all),
    '## Folders',
    table(
      ['folder', 'files', 'lines', 'most lines in', 'exported names', 'imports', 'test files', 'test cases', 'marks'],
      parts.map((part) => [
        ...[code(part.folder), part.files, part.lines, part.languages[0]?.name ?? ''],
        ...[part.exports.matches, part.imports.matches, part.testFiles, part.testCases, part.todos],
      ]),
    ),
    ...notSurveyed.map(({ name, files, lines }) => `Not surveyed: ${code(name)}, ${files} files, ${lines} lines.`),
    ...answers.filter(({ part }) => part === null).map(({ text }) => `Not surveyed: ${text.slice(0, 300)}`),
    '## Languages',
    table(
      ['language', 'files', 'lines'],
      all.languages.map(({ name, files, lines }) => [name, files, lines]),
    ),
    '## Longest files',
    bullets(all.longest.map(({ name, lines }) => `${code(name)}: ${lines} lines`)),
    '## What is imported most',
    bullets(imports.most.map(({ text, times }) => `${code(text)}: ${times}`)),
    `## Marks of work to be done${todos.matches > todos.lines.length ? `, the first ${todos.lines.length}` : ''}`,
    bullets(todos.lines.map(({ path, line, text }) => `${code(`${path}:${line}`)} ${text}`)),
    '## What the folders hold',
    bullets(parts.map((part) => `${code(part.folder)}: ${part.purpose}${exported(part)}`)),
  ].join('\n\n')
}

/** Two ways to the same figure: the parts of the surveyors, and the whole in one count. */
function checked({ notSurveyed }: Material, parts: readonly Findings[], all: Count): string {
  const files = [...parts, ...notSurveyed].reduce((sum, part) => sum + part.files, 0)
  const same = files === all.files ? 'the same' : `${files}: some files came or went meanwhile, or were not surveyed`
  const unread = all.unread === 0 ? '' : ` ${all.unread} files were not read: they are binary or very large.`
  const cut = all.cut ? ' There are more files than the tools look at.' : ''
  return `Parts surveyed: ${parts.length}; their files add up to ${same}.${unread}${cut}`
}

function exported({ exports }: Findings): string {
  const shown = exports.most.slice(0, 5).map(({ text }) => code(text))
  if (shown.length === 0) return ''
  return ` It exports ${shown.join(', ')}${exports.matches > shown.length ? ' and more' : ''}.`
}

const code = (text: string): string => `\`${text}\``

function bullets(items: readonly string[]): string {
  return items.length === 0 ? 'None.' : items.map((item) => `- ${item}`).join('\n')
}

function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const line = head.map((_, column) => (column === 0 ? '---' : '--:'))
  const cells = [head, line, ...rows].map((row) => row.map((cell) => String(cell).replaceAll('|', '\\|')))
  return cells.map((row) => `| ${row.join(' | ')} |`).join('\n')
}
