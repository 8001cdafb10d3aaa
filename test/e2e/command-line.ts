/**
 * The built command line as a real process beside a real model server, for tests.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { onTestFinished } from 'vitest'
import { type ModelScript, reply, startScriptedModel } from '../../actors/scripted-model.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const main = join(root, 'dist/runtime/cli/main.js')

/** A crew file of `test/e2e/crews`. */
export function crewFile(name: string): string {
  return join(root, 'test/e2e/crews', name)
}

/** A folder that goes when the test ends. */
export async function scratch(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'troupe-cli-'))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
  return folder
}

/** How a command ended. */
export interface End {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

/** A command that runs. */
export interface Command {
  readonly child: ChildProcess
  readonly end: Promise<End>
  /** Resolves when stderr or stdout has the text. */
  says(text: string): Promise<void>
}

/** How to start a command. */
export interface CommandOptions {
  readonly cwd: string
  readonly model?: { readonly baseURL: string }
  readonly stdin?: string
  readonly env?: Readonly<Record<string, string>>
}

/** Starts `troupe` with arguments. Killed when the test ends. */
export function troupe(words: readonly string[], options: CommandOptions): Command {
  const env: NodeJS.ProcessEnv = {
    PATH: process.env['PATH'],
    HOME: process.env['HOME'],
    TMPDIR: process.env['TMPDIR'],
    OPENAI_API_KEY: 'none',
    ...(options.model === undefined ? {} : { OPENAI_BASE_URL: options.model.baseURL }),
    ...options.env,
  }
  const stdin = options.stdin === undefined ? 'ignore' : 'pipe'
  const child = spawn(process.execPath, [main, ...words], { cwd: options.cwd, env, stdio: [stdin, 'pipe', 'pipe'] })
  if (options.stdin !== undefined) child.stdin?.end(options.stdin)
  const texts = { stdout: '', stderr: '' }
  const waiting = new Set<() => void>()
  for (const name of ['stdout', 'stderr'] as const) {
    child[name]?.setEncoding('utf8').on('data', (text: string) => {
      texts[name] += text
      for (const look of [...waiting]) look()
    })
  }
  const end = new Promise<End>((resolve) => {
    child.once('close', (code, signal) => {
      resolve({ code, signal, ...texts })
      for (const look of [...waiting]) look()
    })
  })
  onTestFinished(() => {
    if (child.exitCode === null) child.kill('SIGKILL')
  })
  const says = (text: string): Promise<void> =>
    new Promise((resolve, reject) => {
      const look = (): void => {
        if (texts.stdout.includes(text) || texts.stderr.includes(text)) resolve()
        else if (child.exitCode !== null)
          reject(new Error(`it never said '${text}' but:\n${texts.stderr}${texts.stdout}`))
        else return
        waiting.delete(look)
      }
      waiting.add(look)
      look()
    })
  return { child, end, says }
}

/** Runs `troupe` to its end. */
export function ended(words: readonly string[], options: CommandOptions): Promise<End> {
  return troupe(words, options).end
}

/** JSON lines. */
export function jsonLines(text: string): Record<string, unknown>[] {
  return text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>)
}

/** A door that a test opens. */
export class Gate {
  readonly #opened: Promise<void>
  readonly #reached: Promise<void>
  #open = (): void => undefined
  #reach = (): void => undefined

  constructor() {
    this.#opened = new Promise((resolve) => (this.#open = resolve))
    this.#reached = new Promise((resolve) => (this.#reach = resolve))
  }

  /** Called by what has to wait. */
  pass(): Promise<void> {
    this.#reach()
    return this.#opened
  }

  /** Somebody waits. */
  get reached(): Promise<void> {
    return this.#reached
  }

  open(): void {
    this.#open()
  }
}

/** A model server that goes when the test ends. */
export async function model(script: ModelScript): Promise<Awaited<ReturnType<typeof startScriptedModel>>> {
  const server = await startScriptedModel(script)
  onTestFinished(() => server.close())
  return server
}

/** Looks two topics up, then answers; waits at a gate before the reply of a round. */
export function clerk(gates: Readonly<Record<number, Gate>> = {}): ModelScript {
  return async (request) => {
    const results = request.messages.filter((message) => message.role === 'tool').length
    await gates[results + 1]?.pass()
    return results < 2 ? reply.call('lookup', { topic: `topic ${results + 1}` }) : reply.text('All is known.')
  }
}
