/**
 * Mutants: the product with one mechanism taken out. The simulation must notice.
 *
 * Each is a patch in `test/mutants/` (its first line says what it takes out), applied to a copy of the tree, so that the
 * product has no flags for it. Those that begin with `workers-` run with three workers over one journal; those that begin
 * with `real-` take out what only the real parts have, and are for the tests of those (`test/fault/worker-mutants.ts`). A
 * patch that no longer applies is made anew: change the line in a copy of the file, then
 *
 *     diff -U1 --label a/runtime/shard.ts --label b/runtime/shard.ts runtime/shard.ts changed.ts
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { type CampaignResult, runCampaign } from './campaign.js'
import { compileCopy } from './compiled.js'

const folder = resolve(import.meta.dirname, '../mutants')

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
  /** A seed that is known to catch it, of one that few do: the line `Seed: N` of its patch. */
  readonly known: number | null
  run(base: number, seeds: number, processes?: number): Promise<MutantResult>
}

/** Makes a mutant. Throws when its patch does not apply. */
export function openMutant(mutant: string): Mutant {
  const patch = join(folder, `${mutant}.patch`)
  const [, known] = /^Seed: (\d+)$/m.exec(readFileSync(patch, 'utf8')) ?? []
  const copy = compileCopy(patch)
  const workers = mutant.startsWith('workers-') ? 3 : 1
  return {
    known: known === undefined ? null : Number(known),
    run: async (base, seeds, processes = 2) =>
      judge(mutant, await runCampaign({ base, seeds, processes, workers, twiceEvery: 0, main: copy.main })),
    [Symbol.dispose]: () => copy[Symbol.dispose](),
  }
}

/** Runs seeds on a mutant. Throws when its patch does not apply or the simulation itself breaks. */
export async function runMutant(mutant: string, base: number, seeds: number, processes = 2): Promise<MutantResult> {
  using opened = openMutant(mutant)
  return await opened.run(base, seeds, processes)
}

function judge(mutant: string, { seeds, failed }: CampaignResult): MutantResult {
  const by: Record<string, number> = {}
  for (const { invariant } of failed) by[invariant] = (by[invariant] ?? 0) + 1
  return { mutant, seeds, caught: failed.length, rate: failed.length / seeds, by, example: failed[0]?.seed ?? null }
}
