/**
 * Hand-overs: what of a conversation the next agent is shown.
 *
 * Owns: the history filter and what it may decide, which messages a view has.
 * Does not own: who goes on (`machines/agent.ts`, `machines/crew.ts`), the texts of messages (`content.ts`).
 *
 * - HO1 A call and its results are shown together or not at all.
 * - HO2 What is hidden stays hidden from everybody who has the conversation later.
 */
import type { View } from '../machines/index.js'
import type { HandoffOptions, HistoryMessage } from './define.js'
import { TroupeError } from './errors.js'
import { estimateTokens } from './prepared-crew.js'

/** A message that an agent was sent, and its place in the conversation. */
export interface Shown {
  readonly text: string
  readonly at: number
}

/**
 * Places in a conversation of so many messages that a view has, the agent's own system message first; null for all.
 * @param defined its instructions are text by now: they come with the request
 */
export function placesIn(length: number, view: View | undefined, defined = false): number[] | null {
  if (view === undefined) return null
  const { hidden, system } = view
  const isShown = (at: number): boolean => at !== system && !hidden.some(([from, to]) => at >= from && at <= to)
  const places = Array.from({ length }, (_, at) => at).filter(isShown)
  return system === null || defined ? places : [system, ...places]
}

/**
 * What of these messages the next agent is not shown, and about how many tokens that saves. System messages are not handed
 * over: each agent has its own instructions.
 * @param own place of that of whoever hands over, if it has one: it is not shown it any more when its instructions are text by now
 * @throws TroupeError `MESSAGE_REFUSED` for a filter that throws or brings what it was not given.
 */
export function hiddenFrom(
  shown: readonly Shown[],
  history: HandoffOptions['history'],
  own: number | null = null,
): Pick<View, 'hidden'> & { readonly saved: number } {
  const messages = shown.map(({ text, at }) => ({ at, size: text.length, message: JSON.parse(text) as HistoryMessage }))
  const systems = messages.filter(({ message }) => message.role === 'system')
  const rest = messages.filter(({ message }) => message.role !== 'system')
  const kept =
    history === undefined
      ? null
      : keptBy(
          history,
          rest.map(({ message }) => message),
        )
  const dropped = kept === null ? [] : droppedOf(rest, kept)
  const hidden = [...systems, ...dropped]
  return {
    hidden: rangesOf([...hidden.map(({ at }) => at), ...(own === null ? [] : [own])]),
    saved: estimateTokens(hidden.reduce((sum, { size }) => sum + size, 0)),
  }
}

/** Places of messages that are not kept, and of system messages that are hidden. */
export function hiddenAmong(
  messages: readonly { readonly at: number; readonly message: HistoryMessage }[],
  kept: ReadonlySet<HistoryMessage>,
  isHidden: (system: HistoryMessage) => boolean,
): [number, number][] {
  const systems = messages.filter(({ message }) => message.role === 'system' && isHidden(message))
  const rest = messages.filter(({ message }) => message.role !== 'system')
  return rangesOf([...systems, ...droppedOf(rest, kept)].map(({ at }) => at))
}

/** Those that are not kept; results go with their calls. */
function droppedOf<T extends { readonly message: HistoryMessage }>(
  messages: readonly T[],
  kept: ReadonlySet<HistoryMessage>,
): T[] {
  let isKept = true
  return messages.filter(({ message }) => {
    if (message.role !== 'tool') isKept = kept.has(message)
    return !isKept
  })
}

function keptBy(
  history: NonNullable<HandoffOptions['history']>,
  given: readonly HistoryMessage[],
): Set<HistoryMessage> {
  const refuse = (why: string, cause?: unknown): never => {
    throw new TroupeError('MESSAGE_REFUSED', `the history filter ${why}`, { cause })
  }
  let kept: unknown
  try {
    kept = history(given)
  } catch (error) {
    return refuse(`threw: ${error instanceof Error ? error.message : 'it gave no reason'}`, error)
  }
  const known = new Set<unknown>(given)
  if (Array.isArray(kept) && kept.every((message) => known.has(message))) return new Set(kept as HistoryMessage[])
  return refuse('must return some of the messages that it was given')
}

function rangesOf(places: readonly number[]): [number, number][] {
  const ranges: [number, number][] = []
  for (const at of [...new Set(places)].sort((one, other) => one - other)) {
    const last = ranges.at(-1)
    if (last?.[1] === at - 1) last[1] = at
    else ranges.push([at, at])
  }
  return ranges
}
