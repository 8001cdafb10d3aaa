/**
 * Mutants of what keeps a stale owner out: the product with one mechanism taken out. The journal's own tests, or the stops of
 * real workers, must notice, as the simulation does: they are four of its mutants (`test/simulation/mutants.ts`). One of
 * what reads the mail, which the simulation does not have: the mail's own tests must notice.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { cpSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'

const root = resolve(import.meta.dirname, '../..')
const folder = join(root, 'test/mutants')
const tests = ['conformance', 'fault', 'support', 'transport'].map((name) => `test/${name}`)
const copied = [
  'machines',
  'runtime',
  'transport',
  'actors',
  ...tests,
  'package.json',
  'tsconfig.json',
  'vitest.config.ts',
]
const journalTests = 'test/transport/jetstream-journal.slow.test.ts'
const mailTests = 'test/transport/nats-mail.slow.test.ts'

/** What became of a mutant. */
export interface RealMutantResult {
  readonly mutant: string
  readonly caughtBy: 'journal tests' | 'mail tests' | 'stops' | null
  /** The first sign of it. */
  readonly example: string
}

/** Names of the mutants of what keeps a stale owner out. */
export const fenceMutants = [
  'workers-no-fence',
  'workers-no-epoch-in-id',
  'workers-no-read-back',
  'workers-no-dispatched-record',
] as const

/** The mutant of what keeps the mail of one shard from stopping its partition. */
export const mailMutant = 'real-no-credit-per-shard'

/** A copy of the product with a mutant's patch. Throws when that does not apply. */
export function mutate(mutant: string): { readonly copy: string } & Disposable {
  const copy = mkdtempSync(join(tmpdir(), `troupe-${mutant}-`))
  const remove = (): void => rmSync(copy, { recursive: true, force: true })
  try {
    for (const path of copied) cpSync(join(root, path), join(copy, path), { recursive: true })
    symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'))
    execFileSync('git', ['apply', '-C1', '--recount', join(folder, `${mutant}.patch`)], { cwd: copy, stdio: 'pipe' })
  } catch (error) {
    remove()
    throw error
  }
  return { copy, [Symbol.dispose]: remove }
}

/** Runs the journal's tests on a mutant, and stops when those are content. */
export function runFenceMutant(mutant: string, stops: number, seed: number): RealMutantResult {
  using mutated = mutate(mutant)
  const failed = failedTest(mutated.copy, journalTests)
  if (failed !== null) return { mutant, caughtBy: 'journal tests', example: failed }
  const stopped = runIn(mutated.copy, '--import', 'jiti/register', 'test/fault/stop-trials.ts', `${stops}`, `${seed}`)
  const line = stopped.stdout.trim().split('\n').at(-1) ?? ''
  if (!line.startsWith('{')) throw new Error(`the stops did not run: ${stopped.stdout}${stopped.stderr}`)
  const { violations } = JSON.parse(line) as { violations: string[] }
  return { mutant, caughtBy: violations.length > 0 ? 'stops' : null, example: violations[0] ?? '' }
}

/** Runs those tests of the mail on its mutant that are about shards which get nothing done. */
export function runMailMutant(): RealMutantResult {
  using mutated = mutate(mailMutant)
  const failed = failedTest(mutated.copy, mailTests, '--testNamePattern', 'MLR2')
  return { mutant: mailMutant, caughtBy: failed === null ? null : 'mail tests', example: failed ?? '' }
}

function runIn(copy: string, ...words: string[]) {
  return spawnSync(process.execPath, words, {
    cwd: copy,
    encoding: 'utf8',
    env: { ...process.env, JITI_TSCONFIG_PATHS: 'true', NO_COLOR: '1' },
  })
}

/** The first of these tests that fails on a copy; null when none does. Throws when they do not run. */
function failedTest(copy: string, ...words: string[]): string | null {
  const { status, stdout, stderr } = runIn(
    copy,
    ...['node_modules/vitest/vitest.mjs', 'run', '--project', 'real', '--reporter', 'dot', '--bail', '1', ...words],
  )
  if (status === 0) return null
  const failed = /FAIL .*/.exec(`${stdout}${stderr}`)?.[0]
  if (failed === undefined) throw new Error(`the tests did not run: ${stdout}${stderr}`)
  return failed
}
