/** A script of a test in a process of its own: TypeScript, with the package under its name. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const root = join(import.meta.dirname, '../..')
const folder = join(root, 'node_modules/.cache/troupe-scripts')
let count = 0

/** A running script. */
export interface Script extends AsyncDisposable {
  readonly process: ChildProcess
  /** Everything that it wrote so far. */
  readonly output: { stdout: string; stderr: string }
  /** Resolves when a line of its stdout begins with `word`, with the rest of that line. Rejects when it ends first. */
  line(word: string): Promise<string>
  /** Resolves when it has ended, with code or signal. */
  readonly ended: Promise<number | NodeJS.Signals>
}

/** Starts a script. It may import `troupe`, `zod` and, as `#root/…`, every file of the checkout. */
export function startScript(source: string, env: Readonly<Record<string, string>> = {}): Script {
  mkdirSync(folder, { recursive: true })
  const path = join(folder, `script-${process.pid}-${(count += 1)}.ts`)
  writeFileSync(path, source.replaceAll("'#root/", `'${root}/`))
  const child = spawn(process.execPath, ['--import', 'jiti/register', path], {
    cwd: root,
    env: { ...process.env, JITI_TSCONFIG_PATHS: 'true', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const output = { stdout: '', stderr: '' }
  const watchers = new Set<() => void>()
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output.stdout += text
    for (const look of [...watchers]) look()
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => (output.stderr += text))
  const ended = new Promise<number | NodeJS.Signals>((resolve) => {
    child.once('close', (code, signal) => resolve(code ?? signal ?? 1))
  })
  const line = (word: string): Promise<string> =>
    new Promise((resolve, reject) => {
      const look = () => {
        const lines = output.stdout.split('\n').slice(0, -1)
        const found = lines.find((each) => each === word || each.startsWith(`${word} `))
        if (found === undefined) return
        watchers.delete(look)
        resolve(found.slice(word.length + 1))
      }
      watchers.add(look)
      look()
      void ended.then((end) => reject(new Error(`the script ended with ${end}: ${output.stderr}`)))
    })
  return {
    process: child,
    output,
    line,
    ended,
    async [Symbol.asyncDispose]() {
      child.kill('SIGKILL')
      await ended
      rmSync(path, { force: true })
    },
  }
}
