/**
 * The judge of the kill test. It believes the ledger of the tools, the requests that the model's server counted, and the
 * kills that the parent saw; of the runtime it takes only what its user would: results, and the records of lost calls.
 *
 * Every function returns violations as sentences; none means that all is well.
 */
import type { RecordedCommit } from '../../runtime/record.js'
import type { CrewResult } from './kill-child.js'
import { crewOfSlot, type CrewPlan, type LedgerLine, onceTools, unknownText, withoutUnknowns } from './kill-crews.js'

/** A `once` call that was interrupted after its `dispatched` record: who had it, when it was dispatched and given up. */
export interface LostCall {
  readonly crew: string
  readonly executor: string
  readonly dispatchedAt: number
  readonly interruptedAt: number
}

/** The calls that a crew's journal has as lost. */
export async function lostCalls(crew: string, journal: AsyncIterable<RecordedCommit>): Promise<LostCall[]> {
  const dispatched = new Map<string, { executor: string; at: number }>()
  const lost: LostCall[] = []
  for await (const { envelope } of journal) {
    const { body, at, cause } = envelope
    if (body.type === 'effect.dispatched') dispatched.set(cause, { executor: String(body['executor']), at })
    if (body.type !== 'effect.interrupted' || body['started'] !== true) continue
    const by = dispatched.get(cause) ?? { executor: 'nobody', at: Number.POSITIVE_INFINITY }
    lost.push({ crew, executor: by.executor, dispatchedAt: by.at, interruptedAt: at })
  }
  return lost
}

/** A kill as the parent saw it: the process was gone at `at`. */
export interface Kill {
  readonly pid: number
  readonly at: number
  readonly window: string
}

/** What is left of one campaign: some crews on one store, killed until they were done. */
export interface Campaign {
  readonly name: string
  readonly crews: readonly CrewPlan[]
  readonly kills: readonly Kill[]
  readonly results: readonly CrewResult[]
  readonly twin: readonly CrewResult[]
  readonly lost: readonly LostCall[]
  readonly ledger: readonly LedgerLine[]
  readonly twinLedger: readonly LedgerLine[]
  /** Requests by process and conversation, and how many of them were answered with a fault. */
  readonly requests: ReadonlyMap<string, { readonly count: number; readonly faults: number }>
}

/** What a campaign did, whoever did it. */
export interface Deeds extends Pick<Campaign, 'crews' | 'results' | 'twin' | 'lost' | 'ledger' | 'twinLedger'> {
  /** Crews with work that was given up since processes died over it: they end otherwise than their twins. @default none */
  readonly givenUp?: ReadonlySet<string>
}

/** Everything that is wrong with a campaign of one process at a time. */
export function judge(campaign: Campaign): string[] {
  const found = [
    ...judgeDeeds(campaign),
    ...judgeStarts(campaign.ledger, (tool) => !onceTools.has(tool)),
    ...judgeLost(campaign),
    ...judgeRequests(campaign),
  ]
  return found.map((violation) => `${campaign.name}: ${violation}`)
}

/** What must hold for whoever works: runs end as their twins', each call has one key and is done, `once` at most once. */
export function judgeDeeds(deeds: Deeds): string[] {
  return [
    ...deeds.crews.flatMap((plan) => judgeResult(deeds, plan)),
    ...judgeKeys(deeds),
    ...judgeStarts(deeds.ledger, (tool) => onceTools.has(tool)),
    ...judgeDone(deeds),
    ...judgeTold(deeds),
  ]
}

/** The run ended as the twin's did; one whose work was given up has ended, as it may. */
function judgeResult({ results, twin, givenUp }: Deeds, plan: CrewPlan): string[] {
  const mine = results.find(({ id }) => id === plan.id)
  const expected = twin.find(({ id }) => id === plan.id)
  if (mine === undefined || expected === undefined) return [`${plan.id} has no result`]
  if (givenUp?.has(plan.id) === true && (mine.code === null || mine.code === 'EFFECT_CRASHED')) return []
  const code = plan.kind === 'tight' ? 'BUDGET_EXHAUSTED' : null
  if (expected.code !== code)
    return [`the twin of ${plan.id} ended with ${expected.code}: ${expected.reason}, not ${code}`]
  if (mine.code !== code) return [`${plan.id} ended with ${mine.code}: ${mine.reason}, its twin with ${code}`]
  if (mine.output !== expected.output) return [`${plan.id} says '${mine.output}', its twin '${expected.output}'`]
  const knows = plan.kind === 'once' || plan.kind === 'poison-once'
  const messages = knows ? withoutUnknowns(mine.messages) : mine.messages
  if (plan.kind !== 'poison' && plan.kind !== 'poison-once' && !same(messages, expected.messages))
    return [`the conversation of ${plan.id} differs from its twin's: ${firstDifference(messages, expected.messages)}`]
  return []
}

function same(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b)
}

function firstDifference(mine: readonly unknown[], expected: readonly unknown[]): string {
  const at = expected.findIndex((message, index) => !same(message, mine[index]))
  const text = (message: unknown): string => (JSON.stringify(message) ?? 'nothing').slice(0, 200)
  return `message ${at} of ${mine.length}: ${text(mine[at])} instead of ${text(expected[at])}`
}

/** One call of one task has one key, over all processes: a second key means that its model reply was taken twice. */
export function judgeKeys({ ledger }: Pick<Deeds, 'ledger'>): string[] {
  const keys = new Map<string, Set<string>>()
  const slots = new Map<string, Set<string>>()
  for (const { slot, key, what } of ledger) {
    if (what === 'kill') continue
    keys.set(slot, (keys.get(slot) ?? new Set()).add(key))
    slots.set(key, (slots.get(key) ?? new Set()).add(slot))
  }
  return [
    ...[...keys]
      .filter(([, own]) => own.size > 1)
      .map(([slot, own]) => `${slot} ran under keys ${[...own].join(', ')}`),
    ...[...slots]
      .filter(([, own]) => own.size > 1)
      .map(([key, own]) => `key ${key} was given to ${[...own].join(', ')}`),
  ]
}

/** A `once` call starts once over all processes; any other once a process, and once more for each failure. */
export function judgeStarts(ledger: readonly LedgerLine[], judges: (tool: string) => boolean): string[] {
  const violations: string[] = []
  const starts = new Map<string, number>()
  const allowed = new Map<string, number>()
  for (const { tool, slot, pid, what } of ledger) {
    if (!judges(tool)) continue
    const place = onceTools.has(tool) ? `${tool} ${slot}` : `${tool} ${slot} in process ${pid}`
    if (what === 'start') starts.set(place, (starts.get(place) ?? 0) + 1)
    if (what === 'throw') allowed.set(place, (allowed.get(place) ?? 1) + 1)
  }
  for (const [place, count] of starts) {
    if (count > (allowed.get(place) ?? 1)) violations.push(`${place} started ${count} times`)
  }
  return violations
}

/** What the twin did was done, and nothing else; a `once` call may be missing only where one was lost. */
function judgeDone({ crews, ledger, twinLedger, lost, givenUp }: Deeds): string[] {
  const whole = crews.filter(({ id, kind }) => (kind === 'plain' || kind === 'once') && givenUp?.has(id) !== true)
  const compared = new Set(whole.map(({ id }) => id))
  const done = (lines: readonly LedgerLine[]): Map<string, LedgerLine> =>
    new Map(
      lines
        .filter(({ what, slot }) => what === 'end' && compared.has(crewOfSlot(slot)))
        .map((line) => [line.slot, line]),
    )
  const mine = done(ledger)
  const expected = done(twinLedger)
  const missing = [...expected.values()].filter(({ slot }) => !mine.has(slot))
  const surplus = [...mine.keys()].filter((slot) => !expected.has(slot))
  const excused = new Map<string, number>()
  for (const { crew } of lost) excused.set(crew, (excused.get(crew) ?? 0) + 1)
  const violations = surplus.map((slot) => `${slot} was done, and not by the twin`)
  for (const { slot, tool } of missing) {
    const left = excused.get(crewOfSlot(slot)) ?? 0
    if (!onceTools.has(tool) || left === 0) violations.push(`${tool} ${slot} was never done`)
    else excused.set(crewOfSlot(slot), left - 1)
  }
  return violations
}

/** Each `unknown` lies over a kill of the very process that had the call. */
export function judgeLost({ lost, kills }: Pick<Campaign, 'lost' | 'kills'>): string[] {
  const violations: string[] = []
  for (const { crew, executor, dispatchedAt, interruptedAt } of lost) {
    const kill = kills.find(({ pid }) => `${pid}` === executor)
    if (kill === undefined) violations.push(`${crew}: a call of process ${executor} was lost, which nobody killed`)
    else if (dispatchedAt > kill.at || interruptedAt < kill.at - 1_000)
      violations.push(`${crew}: a call was lost from ${dispatchedAt} to ${interruptedAt}, the kill was at ${kill.at}`)
  }
  return violations
}

/** None is told as unknown that was not lost. */
function judgeTold({ lost, results }: Deeds): string[] {
  const violations: string[] = []
  for (const { id, messages } of results) {
    const told = messages.filter(({ content }) => typeof content === 'string' && content.startsWith(unknownText)).length
    const own = lost.filter(({ crew }) => crew === id).length
    if (told > own) violations.push(`${id} was told 'unknown' ${told} times and lost ${own} calls`)
  }
  return violations
}

/** A process asks the model once for each reply, and once more for each fault. */
export function judgeRequests({ requests }: Pick<Campaign, 'requests'>): string[] {
  return [...requests]
    .filter(([, { count, faults }]) => count > 1 + faults)
    .map(([request, { count, faults }]) => `the model was asked ${count} times with ${faults} faults: ${request}`)
}
