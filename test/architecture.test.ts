/**
 * The architecture of DESIGN.md section 6 is enforced by ESLint. This test proves that the rules are awake: it plants
 * small sources in a scratch copy of the layout and asserts that each bad one is reported by the rule it breaks, and
 * that the legal ones pass.
 */
import { copyFileSync, mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, relative, sep } from 'node:path'
import { ESLint } from 'eslint'
import { afterAll, beforeAll, expect, test } from 'vitest'

const repo = join(import.meta.dirname, '..')

/** Files that the planted sources import. They must pass too. */
const ground: Record<string, string> = {
  'machines/agent.ts': 'export const agent = 1',
  'runtime/errors.ts': 'export const errors = 1',
  'runtime/index.ts':
    "export { agent } from '../machines/agent.js'\nexport { mail } from '../transport/mail.js'\nexport { tool } from '../actors/tool.js'\nexport { docker } from '../sandbox/docker.js'",
  'runtime/cli/main.ts':
    "import { Command } from 'commander'\nimport { mail } from '../../transport/mail.js'\nimport { load } from './load.js'\nimport { tool } from 'troupe'\nexport const main = [Command, mail, load, tool]",
  'runtime/cli/load.ts': "import { createJiti } from 'jiti'\nexport const load = createJiti",
  'transport/mail.ts': "import { errors } from '../runtime/errors.js'\nexport const mail = errors",
  'sandbox/docker.ts': "import { errors } from '../runtime/errors.js'\nexport const docker = errors",
  'actors/tool.ts': "import { docker } from '../sandbox/docker.js'\nexport const tool = docker",
  'examples/hello.ts': "import { tool } from 'troupe'\nexport default tool",
  'test/probe.ts': "export { main } from '../runtime/cli/main.js'",
}

const legal: Record<string, string> = {
  ...ground,
  'machines/breaker.ts':
    "import { setup } from 'xstate'\nimport { agent } from './agent.js'\nexport const breaker = setup({}).createMachine({ id: String(agent) })",
  'machines/choice.ts': 'export const choice = (a: boolean, b: boolean): number => (a ? 1 : b ? 2 : 3)',
  'machines/crypto.ts':
    "import { createHash } from 'node:crypto'\nexport const hash = (s: string): string => createHash('sha256').update(s).digest('hex')",
  'runtime/scope.ts': "import { setup } from 'xstate'\nexport const scope = setup",
  'runtime/worker.ts':
    "import { agent } from '../machines/agent.js'\nexport const now = (): number => Date.now() + agent",
  'runtime/codec.ts': "export { pack } from 'msgpackr'",
  'runtime/log.ts': "export { pino } from 'pino'",
  'runtime/telemetry.ts': "export { trace } from '@opentelemetry/api'",
  'transport/level-journal.ts': "export { Level } from 'level'",
  'actors/fetch.ts': "export { Agent } from 'undici'",
  'actors/model-openai.ts': "export const client = async () => (await import('openai')).OpenAI",
  'actors/prices.ts': "export { calcPrice } from '@pydantic/genai-prices'",
  'examples/zod.ts':
    "import { readFile } from 'node:fs/promises'\nimport { z } from 'zod'\nexport default [z, readFile]",
  'test/anything.test.ts': "export { mail } from '../transport/mail.js'\nexport { createActor } from 'xstate'",
}

const imports = 'troupe/imports'
const value = 'export const value = '

/** [rule that must fire, file, source]; one line each, so that a rule that falls asleep is named by its case. */
const planted: [rule: string, file: string, source: string][] = [
  // direction
  [imports, 'machines/a1.ts', "export { errors } from '../runtime/errors.js'"],
  [imports, 'machines/a2.ts', "import type { errors } from '../runtime/errors.js'\nexport type E = typeof errors"],
  [imports, 'runtime/a1.ts', "export { mail } from '../transport/mail.js'"],
  [imports, 'runtime/a2.ts', "export { tool } from '../actors/tool.js'"],
  [imports, 'runtime/a3.ts', "export { docker } from '../sandbox/docker.js'"],
  [imports, 'runtime/a4.ts', "export type T = import('../sandbox/docker.js').docker"],
  [imports, 'transport/a1.ts', "export { tool } from '../actors/tool.js'"],
  [imports, 'transport/a2.ts', "export * from '../sandbox/docker.js'"],
  [imports, 'sandbox/a1.ts', "export { mail } from '../transport/mail.js'"],
  [imports, 'actors/a1.ts', "export { mail } from '../transport/mail.js'"],
  [imports, 'actors/a2.ts', "export const load = () => import('../transport/mail.js')"],
  [imports, 'actors/a3.ts', "export { default } from '../examples/hello.js'"],
  [imports, 'runtime/cli/a4.ts', "export { main } from '../../test/probe.js'"],
  // the composition root is imported by package name, by examples and the CLI only
  [imports, 'actors/b1.ts', "export { mail } from '../runtime/index.js'"],
  [imports, 'runtime/b2.ts', "export { mail } from './index.js'"],
  [imports, 'runtime/b3.ts', "export { load } from './cli/load.js'"],
  [imports, 'actors/b4.ts', "export { mail } from 'troupe'"],
  [imports, 'examples/b5.ts', "export { mail } from '../runtime/index.js'"],
  [imports, 'examples/b6.ts', "export { default } from './hello.js'"],
  // one home per vendor library
  [imports, 'runtime/v01.ts', "export { OpenAI } from 'openai'"],
  [imports, 'actors/v02.ts', "export const load = () => import('openai/index.js')"],
  [imports, 'actors/v03.ts', "export { Agent } from 'undici'"],
  [imports, 'runtime/v04.ts', "export { Level } from 'level'"],
  [imports, 'transport/v05.ts', "export { Level } from 'level'"],
  [imports, 'actors/v06.ts', "export { pino } from 'pino'"],
  [imports, 'runtime/v07.ts', "export { calcPrice } from '@pydantic/genai-prices'"],
  [imports, 'runtime/v08.ts', "export { createJiti } from 'jiti'"],
  [imports, 'runtime/v09.ts', "export { Command } from 'commander'"],
  [imports, 'transport/v10.ts', "export { pack } from 'msgpackr'"],
  [imports, 'runtime/v11.ts', "export { setup } from 'xstate'"],
  [imports, 'actors/v12.ts', "import type { AnyStateMachine } from 'xstate'\nexport type M = AnyStateMachine"],
  [imports, 'runtime/v13.ts', "export { trace } from '@opentelemetry/api'"],
  [imports, 'actors/v14.ts', "export const load = () => import('dockerode')"],
  [imports, 'runtime/v15.ts', "export const load = () => import('@nats-io/transport-node')"],
  [imports, 'examples/v16.ts', "export { pino } from 'pino'"],
  [imports, 'runtime/v17.ts', "export { test } from 'vitest'"],
  [imports, 'runtime/v18.ts', "export { readFile } from 'fs/promises'"],
  // cycles
  ['import-x/no-cycle', 'runtime/c1.ts', "import { two } from './c2.js'\nexport const one = (): number => two()"],
  ['import-x/no-cycle', 'runtime/c2.ts', "import { three } from './c3.js'\nexport const two = (): number => three()"],
  ['import-x/no-cycle', 'runtime/c3.ts', "import { one } from './c1.js'\nexport const three = (): number => one()"],
  // purity
  ['no-restricted-globals', 'machines/p01.ts', `${value}Date.now()`],
  ['no-restricted-globals', 'runtime/commit.ts', `${value}new Date()`],
  ['no-restricted-properties', 'machines/p02.ts', `${value}Math.random()`],
  ['no-restricted-globals', 'machines/p03.ts', `${value}setTimeout(() => undefined, 1)`],
  ['no-restricted-globals', 'machines/p04.ts', `${value}setInterval(() => undefined, 1)`],
  ['no-restricted-globals', 'machines/p05.ts', `${value}setImmediate(() => undefined)`],
  ['no-restricted-globals', 'machines/p06.ts', `queueMicrotask(() => undefined)\n${value}1`],
  ['no-restricted-globals', 'machines/p07.ts', `${value}process.pid`],
  ['no-restricted-globals', 'machines/p08.ts', `${value}fetch`],
  ['no-restricted-globals', 'machines/p09.ts', `${value}performance.now()`],
  ['no-restricted-globals', 'machines/p10.ts', `${value}crypto.randomUUID()`],
  ['no-restricted-globals', 'machines/p11.ts', `${value}globalThis.Date.now()`],
  ['no-restricted-globals', 'runtime/conversation.ts', `${value}Promise.resolve(1)`],
  ['no-restricted-syntax', 'machines/p12.ts', `${value}async () => 1`],
  ['no-restricted-syntax', 'machines/p13.ts', 'export async function value() {}'],
  ['no-restricted-syntax', 'machines/p14.ts', `declare const p: Promise<number>\n${value}p`],
  ['no-restricted-syntax', 'machines/p15.ts', `declare const p: number\n${value}await p`],
  ['no-restricted-syntax', 'machines/p16.ts', "export { value } from './p01.js'\nvoid import('./p01.js')"],
  ['no-restricted-syntax', 'machines/p17.ts', `import { randomUUID } from 'node:crypto'\n${value}randomUUID()`],
  ['no-restricted-syntax', 'machines/p18.ts', `import * as c from 'node:crypto'\n${value}c`],
  ['no-restricted-syntax', 'machines/p19.ts', `import { createActor } from 'xstate'\n${value}createActor`],
  ['no-restricted-syntax', 'machines/p22.ts', `import * as x from 'xstate'\n${value}x`],
  [imports, 'machines/p20.ts', "export { setTimeout } from 'node:timers/promises'"],
  [imports, 'machines/p21.ts', "export { readFileSync } from 'node:fs'"],
  // size and shape
  [
    'complexity',
    'machines/s1.ts',
    `${value}(a: number) => (a ? 1 : a > 1 ? 2 : a > 2 ? 3 : a > 3 ? 4 : a > 4 ? 5 : a > 5 ? 6 : a > 6 ? 7 : 8)`,
  ],
  [
    'max-lines',
    'runtime/s2.ts',
    Array.from({ length: 501 }, (_, i) => `${value.replace('value', `v${i}`)}1`).join('\n'),
  ],
  ['max-lines-per-function', 'runtime/s3.ts', `export function long() {\n${"console.log('x')\n".repeat(81)}}`],
  ['@typescript-eslint/no-floating-promises', 'runtime/s4.ts', `const p = async () => 1\np()\n${value}p`],
  ['@typescript-eslint/no-explicit-any', 'runtime/s5.ts', `${value}1 as any`],
  [
    '@typescript-eslint/consistent-type-imports',
    'runtime/s6.ts',
    "import { errors } from './errors.js'\nexport type E = typeof errors",
  ],
]

let scratch: string
const found = new Map<string, (string | null)[]>()

beforeAll(async () => {
  scratch = realpathSync(mkdtempSync(join(tmpdir(), 'troupe-architecture-')))
  for (const file of ['eslint.config.js', 'tsconfig.json', 'package.json']) {
    copyFileSync(join(repo, file), join(scratch, file))
  }
  symlinkSync(join(repo, 'node_modules'), join(scratch, 'node_modules'))
  for (const [file, source] of [
    ...Object.entries(legal),
    ...planted.map(([, file, source]) => [file, source] as const),
  ]) {
    mkdirSync(join(scratch, dirname(file)), { recursive: true })
    writeFileSync(join(scratch, file), `${source}\n`)
  }
  const results = await new ESLint({ cwd: scratch }).lintFiles(['.'])
  for (const { filePath, messages } of results) {
    found.set(
      relative(scratch, filePath).split(sep).join('/'),
      messages.map((message) => message.ruleId),
    )
  }
}, 120_000)

afterAll(() => {
  rmSync(scratch, { recursive: true, force: true })
})

test.each(planted)('architecture: %s reports %s', (rule, file) => {
  expect(found.get(file)).toContain(rule)
})

test.each(Object.keys(legal))('architecture: %s is legal', (file) => {
  expect(found.get(file)).toEqual([])
})
