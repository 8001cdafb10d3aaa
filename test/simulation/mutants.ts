/**
 * Mutants: the product with one mechanism taken out. The simulation must notice.
 *
 * Each is a patch in `test/mutants/` (its first line says what it takes out), applied to a copy of the tree, so that the
 * product has no flags for it. Those that begin with `workers-` run with three workers over one journal; those that begin
 * with `real-` take out what only the real parts have, and are for the tests of those (`test/fault/worker-mutants.ts`). A patch that no longer applies is made anew: change the line in a copy of the file, then
 *
 *     diff -U1 --label a/runtime/shard.ts --label b/runtime/shard.ts runtime/shard.ts changed.ts
 */
import { execFileSync } from 'node:child_process'
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import ts from 'typescript'
import { type CampaignResult, runCampaign } from './campaign.js'

const root = resolve(import.meta.dirname, '../..')
const folder = join(root, 'test/mutants')
const copied = ['machines', 'runtime', 'transport', 'test/simulation', 'package.json', 'tsconfig.json']

/** What became of a mutant. */
export interface MutantResult {
  readonly mutant: string
  readonly seeds: number
  /** Seeds in which an invariant broke. */
  readonly caught: number
  readonly rate: number
  /** How often each invariant was the first to break. */
  readonly by: Readonly<Record<string, number>>
  /** A seed that catches it. */
  readonly example: number | null
}

/** Names of the mutants that the simulation can tell. */
export function listMutants(): string[] {
  return readdirSync(folder)
    .filter((file) => file.endsWith('.patch') && !file.startsWith('real-'))
    .map((file) => file.slice(0, -'.patch'.length))
    .sort()
}

/** A mutant that is ready to run. Disposing removes it. */
export interface Mutant extends Disposable {
  run(base: number, seeds: number, processes?: number): Promise<MutantResult>
}

/** Makes a mutant. Throws when its patch does not apply. */
export async function openMutant(mutant: string): Promise<Mutant> {
  const copy = mkdtempSync(join(tmpdir(), `troupe-${mutant}-`))
  const remove = (): void => rmSync(copy, { recursive: true, force: true })
  try {
    for (const path of copied) cpSync(join(root, path), join(copy, path), { recursive: true })
    execFileSync('git', ['apply', '-C1', '--recount', join(folder, `${mutant}.patch`)], { cwd: copy, stdio: 'pipe' })
    compile(copy)
    symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'))
    const main = join(copy, 'test/simulation/main.js')
    const workers = mutant.startsWith('workers-') ? 3 : 1
    return {
      run: async (base, seeds, processes = 2) =>
        judge(mutant, await runCampaign({ base, seeds, processes, workers, twiceEvery: 0, main })),
      [Symbol.dispose]: remove,
    }
  } catch (error) {
    remove()
    throw error
  }
}

/** Runs seeds on a mutant. Throws when its patch does not apply or the simulation itself breaks. */
export async function runMutant(mutant: string, base: number, seeds: number, processes = 2): Promise<MutantResult> {
  using opened = await openMutant(mutant)
  return await opened.run(base, seeds, processes)
}

/** JavaScript by source: mutants differ in a file or two. */
const compiled = new Map<string, string>()

/**
 * Makes JavaScript of a copy, without looking at types: a loader would find and translate its files anew in each process,
 * which took longer than most mutants live.
 */
function compile(copy: string): void {
  const { config } = ts.readConfigFile(join(copy, 'tsconfig.json'), ts.sys.readFile) as { config: object }
  const { options } = ts.parseJsonConfigFileContent(config, ts.sys, copy)
  const compilerOptions = { ...options, module: ts.ModuleKind.ESNext, noEmit: false }
  for (const file of readdirSync(copy, { recursive: true, encoding: 'utf8' })) {
    if (!file.endsWith('.ts')) continue
    const source = readFileSync(join(copy, file), 'utf8')
    const code = compiled.get(source) ?? ts.transpileModule(source, { compilerOptions }).outputText
    compiled.set(source, code)
    writeFileSync(join(copy, `${file.slice(0, -2)}js`), code)
  }
}

function judge(mutant: string, { seeds, failed }: CampaignResult): MutantResult {
  const by: Record<string, number> = {}
  for (const { invariant } of failed) by[invariant] = (by[invariant] ?? 0) + 1
  return { mutant, seeds, caught: failed.length, rate: failed.length / seeds, by, example: failed[0]?.seed ?? null }
}
