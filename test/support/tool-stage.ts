/** The tool port on a manual clock, with one crew's tools; and a watch for what escapes from a tool. */
import { setImmediate as turn } from 'node:timers/promises'
import { afterEach, beforeEach, expect } from 'vitest'
import { z } from 'zod'
import { createToolPort } from '../../actors/tool.js'
import type { ToolBindings, ToolPortOptions } from '../../actors/tool.js'
import { defineTool } from '../../runtime/define.js'
import type { AnyTool, ToolContext, ToolLog, ToolOptions } from '../../runtime/define.js'
import type { ToolOutcome, ToolPort, ToolRequest } from '../../runtime/ports.js'
import { createManualClock } from './manual-clock.js'
import type { ManualClock } from './manual-clock.js'

/** What a tool of a test does. */
export type Run = (input: Record<string, unknown>, context: ToolContext) => unknown
/** A port, its clock, and the log lines that were written. */
export type Stage = { port: ToolPort; clock: ManualClock; lines: [ToolBindings, string, string][] }

/** A tool named `work` that takes any object, unless the options say otherwise. */
export function tool(run: Run, options: Partial<ToolOptions<z.ZodType<Record<string, unknown>>>> = {}): AnyTool {
  return defineTool({ name: 'work', description: '', input: z.looseObject({}), ...options, run })
}

/** A port whose one agent has these tools. */
export function stage(tools: readonly AnyTool[], options: Partial<ToolPortOptions> = {}): Stage {
  const clock = createManualClock()
  const known = new Map(tools.map((one) => [one.name, one]))
  const lines: Stage['lines'] = []
  const log = (bindings: ToolBindings): ToolLog => {
    const line = (level: string) => (message: string) => void lines.push([bindings, level, message])
    return { debug: line('debug'), info: line('info'), warn: line('warn'), error: line('error') }
  }
  const port = createToolPort({ tools: () => known, deps: { db: 1 }, log, clock, concurrency: () => 64, ...options })
  return { port, clock, lines }
}

/** A request for `work` without arguments, bound to a second. */
export function request(change: Partial<ToolRequest> = {}): ToolRequest {
  return {
    effect: 'e1',
    agent: 'writer',
    shard: 's1',
    runId: 'r1',
    callId: 'c1',
    idempotencyKey: 'k1',
    tool: 'work',
    arguments: '{}',
    timeoutMs: 1000,
    data: null,
    signal: new AbortController().signal,
    mayStart: () => Promise.resolve(true),
    term: 1,
    leaving: new AbortController().signal,
    progress: () => undefined,
    ...change,
  }
}

/** A promise and its ends. */
export function promise<T = void>(): {
  promise: Promise<T>
  resolve: (value: T) => void
  reject: (reason: unknown) => void
} {
  let resolve: (value: T) => void = () => undefined
  let reject: (reason: unknown) => void = () => undefined
  const made = new Promise<T>((yes, no) => {
    resolve = yes
    reject = no
  })
  return { promise: made, resolve, reject }
}

/** What comes of one call of a tool that does `run`. */
export async function outcome(run: Run, change: Partial<ToolRequest> = {}): Promise<ToolOutcome> {
  return stage([tool(run)]).port.run(request(change))
}

/** Fails each test of the file in which a tool's rejection or throw reached the process. */
export function watchProcess(): void {
  const escaped: unknown[] = []
  const note = (reason: unknown) => void escaped.push(reason)
  beforeEach(() => {
    escaped.length = 0
    process.on('unhandledRejection', note)
    process.on('uncaughtException', note)
  })
  afterEach(async () => {
    await turn()
    await turn()
    process.off('unhandledRejection', note)
    process.off('uncaughtException', note)
    expect(escaped).toEqual([])
  })
}
