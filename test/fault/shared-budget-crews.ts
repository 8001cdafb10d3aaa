/** Crews that spend from one budget, for trials of shared budgets: what each is asked, and how long it takes. */
import { z } from 'zod'
import type { Crew } from '../../runtime/define.js'
import { defineAgent, defineBudget, defineCrew, defineTool } from '../../runtime/index.js'
import { draw } from './kill-crews.js'

/** Model calls that all crews of a trial may make together, in full. */
export const allUnits = 1_000
/** Crews of a trial. */
export const crewsOfTrial = 60
/** Of all units, a share is one in so many. */
const shares = 250
/** How long a crew waits for what others may give back. */
const waitMs = 15_000

/** Names of the budget and the crew of a trial. */
export const poolOf = (trial: string): string => `${trial}-budget`
export const crewOf = (trial: string): string => `${trial}-crew`

/** Model calls of a crew's run: those of all crews together are half as many again as there are units. */
export const callsOf = (crew: string, units: number): number =>
  Math.ceil(((15 + draw(`${crew} calls`, 21)) * units) / allUnits)

/** What a worker runs, for some trials. */
export function sharedBudgetCrews(trials: readonly string[], units: number): readonly Crew[] {
  const share = Math.ceil(units / shares)
  const note = defineTool({
    name: 'note',
    description: 'Notes something down.',
    effect: 'pure',
    input: z.object({ n: z.number() }),
    run: ({ n }) => `noted ${n}`,
  })
  return trials.flatMap((trial): readonly Crew[] => [
    defineBudget({ name: poolOf(trial), limits: { modelCalls: units }, share: { modelCalls: share }, waitMs }),
    defineCrew({
      name: crewOf(trial),
      agents: {
        spender: defineAgent({
          model: 'scripted:m',
          instructions: 'Note what you are told.',
          tools: [note],
          limits: { rounds: 100, loops: false },
          settings: { maxOutputTokens: 100 },
        }),
      },
      lead: 'spender',
      budget: { from: poolOf(trial) },
      minOutputTokens: 10,
    }),
  ])
}
