/**
 * Mutants of what keeps a stale owner out: the product with one mechanism taken out. The journal's own tests, or the stops of
 * real workers, must notice, as the simulation does: they are four of its mutants (`test/simulation/mutants.ts`).
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

/** What became of a mutant. */
export interface FenceMutantResult {
  readonly mutant: string
  readonly caughtBy: 'journal tests' | 'stops' | null
  /** The first sign of it. */
  readonly example: string
}

/** Names of the mutants. */
export const fenceMutants = [
  'workers-no-fence',
  'workers-no-epoch-in-id',
  'workers-no-read-back',
  'workers-no-dispatched-record',
] as const

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
export function runFenceMutant(mutant: string, stops: number, seed: number): FenceMutantResult {
  using mutated = mutate(mutant)
  const run = (...words: string[]) =>
    spawnSync(process.execPath, words, {
      cwd: mutated.copy,
      encoding: 'utf8',
      env: { ...process.env, JITI_TSCONFIG_PATHS: 'true', NO_COLOR: '1' },
    })
  const journal = run('node_modules/vitest/vitest.mjs', 'run', '--project', 'real', '--reporter', 'dot', journalTests)
  if (journal.status !== 0) {
    const failed = /FAIL .*/.exec(`${journal.stdout}${journal.stderr}`)?.[0]
    if (failed === undefined) throw new Error(`the tests did not run: ${journal.stdout}${journal.stderr}`)
    return { mutant, caughtBy: 'journal tests', example: failed }
  }
  const stopped = run('--import', 'jiti/register', 'test/fault/stop-trials.ts', `${stops}`, `${seed}`)
  const line = stopped.stdout.trim().split('\n').at(-1) ?? ''
  if (!line.startsWith('{')) throw new Error(`the stops did not run: ${stopped.stdout}${stopped.stderr}`)
  const { violations } = JSON.parse(line) as { violations: string[] }
  return { mutant, caughtBy: violations.length > 0 ? 'stops' : null, example: violations[0] ?? '' }
}
