/**
 * The provider of the benchmarks: the scripted model in a process of its own, so that its work is not measured.
 * Asks for a tool call until the conversation has as many results as its first message says, then answers.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { reply, startScriptedModel } from 'troupe'

const self = fileURLToPath(import.meta.url)

/** A provider in another process. */
export interface Provider {
  readonly baseURL: string
  stop(): void
}

/** Starts the provider and waits until it listens. */
export async function startProvider(): Promise<Provider> {
  const child: ChildProcess = fork(self, ['serve'], {
    execArgv: process.execArgv,
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
  const baseURL = await new Promise<string>((resolve, reject) => {
    child.once('message', (url) => resolve(url as string))
    child.once('exit', (code) => reject(new Error(`provider ended with ${code}`)))
  })
  return { baseURL, stop: () => child.kill('SIGKILL') }
}

/** The task that makes the provider ask for so many tool rounds. */
export function task(rounds: number): string {
  return `rounds=${rounds}`
}

async function serve(): Promise<void> {
  const model = await startScriptedModel((request) => {
    const first = request.messages.find((message) => message.role === 'user')
    const wanted = Number(/rounds=(\d+)/.exec(String(first?.content))?.[1] ?? 0)
    let done = 0
    for (const message of request.messages) if (message.role === 'tool') done += 1
    return done < wanted ? reply.calls({ name: 'look', arguments: { at: done } }) : reply.text('done')
  })
  process.send?.(model.baseURL)
}

if (process.argv[2] === 'serve') await serve()
