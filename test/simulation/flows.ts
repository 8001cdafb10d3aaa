/** Whom a flow has at work: those whose answer it waits for, and nobody else; and a stage begins behind all answers of the last. */
import { crewAddress } from '../../runtime/commit.js'
import type { ShardState } from '../../runtime/state.js'
import type { Notes } from './notes.js'

/** What a flow knows, as far as it is looked at. */
interface Flow {
  readonly self: string
  readonly stages: readonly { readonly agents: readonly string[]; readonly join: 'all' | 'first' }[]
  readonly stage: number
  readonly open: readonly { readonly index: number }[]
  readonly before: readonly unknown[]
}
type Call = { readonly caller: string; readonly index: number } | null
/** What the crew knows of who works for whom, and who waits for a place to. */
interface Crew {
  readonly workers: Readonly<Record<string, { readonly call: Call }>>
  readonly waiting: readonly Call[]
}

/** Looks at the flows of a shard between two commits. */
export function checkFlows(state: ShardState, notes: Notes): void {
  const flows = [...state.actors.values()].filter(({ kind }) => kind === 'flow')
  if (flows.length === 0) return
  const crew = state.actors.get(crewAddress)?.snapshot.context as Crew | undefined
  const calls = [...Object.values(crew?.workers ?? {}).map(({ call }) => call), ...(crew?.waiting ?? [])]
  for (const { snapshot } of flows) {
    const { self, stages, stage, open, before } = snapshot.context as unknown as Flow
    const where = `${state.shard} ${state.sequence}: ${self}`
    const working = listed(calls.flatMap((call) => (call?.caller === self ? [call] : [])))
    const wanted = listed(open)
    notes.check('flow', working === wanted, () => `${where} has ${working} at work and waits for ${wanted}`)
    const last = stages[stage - 1]
    const answers = last === undefined ? 0 : last.join === 'all' ? last.agents.length : 1
    notes.check('flow', before.length === answers, () => `${where}: stage ${stage} has ${before.length} of ${answers}`)
  }
}

function listed(calls: readonly { readonly index: number }[]): string {
  return calls
    .map(({ index }) => index)
    .sort((one, two) => one - two)
    .join()
}
