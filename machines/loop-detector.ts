/**
 * The loop detector: whether the agents of a run still learn something.
 *
 * A round is stale when each of its calls brought what the same call had brought before, since the user last spoke. Changed
 * results are progress, and so is any call that was not made before; cycles of two or three calls are as stale as one call
 * made over and over, with no rule of their own. Stale rounds add up; a round that learns something takes half of one
 * back, and nothing else does. Whoever is about to make nothing but known calls again is told how far that has gone:
 *
 *     pass ─► warn ─► block ─► stop
 *
 * What it holds is bounded: the last conversations, the last calls of each, the last results of a call.
 */
import { assertEvent, enqueueActions, setup } from 'xstate'
import {
  type LoopCall,
  type LoopCheck,
  type LoopInput,
  type LoopMessage,
  type Loops,
  type LoopRung,
  to,
} from './messages.js'

/** What is known of a conversation since its user last spoke. */
interface Track {
  readonly conversation: string
  readonly turn: number
  /** Half stale rounds. */
  readonly level: number
  /** Calls and what they brought, the last ones last. */
  readonly known: readonly Known[]
}
interface Known {
  readonly call: string
  readonly results: readonly string[]
}

interface LoopContext extends LoopInput {
  /** The conversations that were heard of last, the last one last. */
  readonly tracks: readonly Track[]
}

/** What the outside may watch a loop detector do. */
export type LoopEvent = {
  type: 'loop.found'
  agent: string
  conversation: string
  rung: Exclude<LoopRung, 'pass'>
  /** Stale rounds so far. */
  rounds: number
  /** Agents that ask each other in a ring; empty for calls that repeat. */
  ring: readonly string[]
}

/** Result of a call that was not made. */
const notMade = ''
const maxTracks = 32
const maxKnown = 32
const maxResults = 4
/** How often an agent may stand among those that wait for a call before it is asked no more: two laps, not three. */
const maxLaps = 2

const isKnown = (known: readonly Known[], { call, result }: { readonly call: string; readonly result: string }) =>
  result === notMade || known.some((each) => each.call === call && each.results.includes(result))

/** With what a call brought; the call counts as the last one. */
const learn = (known: readonly Known[], { call, result }: { readonly call: string; readonly result: string }) => {
  const before = known.find((each) => each.call === call)?.results ?? []
  const results = [...before.filter((each) => each !== result), result].slice(-maxResults)
  return [...known.filter((each) => each.call !== call), { call, results }].slice(-maxKnown)
}

/** A conversation with its last round. One without calls that count, or of another turn, changes nothing. */
const advance = (track: Track, { learned }: LoopCheck): Track => {
  if (learned.length === 0) return track
  const isStale = learned.every((each) => isKnown(track.known, each))
  const level = isStale ? track.level + 2 : Math.max(0, track.level - 1)
  return { ...track, level, known: learned.reduce(learn, track.known) }
}

const trackOf = ({ tracks }: LoopContext, { conversation, turn }: LoopCheck): Track =>
  tracks.find((track) => track.conversation === conversation && track.turn === turn) ?? {
    ...{ conversation, turn },
    level: 0,
    known: [],
  }

/** How far a conversation has gone that is about to make these calls. */
const rungOf = ({ level, known }: Track, calls: readonly LoopCall[], { warn, block, stop }: Loops): LoopRung => {
  // One that may be repeated at will is never known.
  const repeats = calls.length > 0 && calls.every(({ call }) => known.some((each) => each.call === call))
  const rungs: [number, LoopRung][] = [
    [stop, 'stop'],
    [block, 'block'],
    [warn, 'warn'],
  ]
  return rungs.find(([rounds]) => repeats && level >= 2 * rounds)?.[1] ?? 'pass'
}

/** Whether an agent would be asked by those that it has asked itself, once too often. An agent that asks itself divides its work. */
const closesRing = (trail: readonly string[], agent: string | null) =>
  agent !== null && trail.at(-1) !== agent && trail.filter((each) => each === agent).length >= maxLaps

const again = 'It would bring what you know already. Do something else, or answer with what you have.'
const texts: Readonly<Record<LoopRung, (rounds: number) => string>> = {
  pass: () => '',
  warn: (rounds) => `Your last ${rounds} rounds of calls brought nothing new. ${again}`,
  block: (rounds) =>
    `Not done: ${rounds} rounds of calls have brought nothing new. ${again} The next such round is the last.`,
  stop: (rounds) => `${rounds} rounds of calls brought nothing new, and the next one would repeat them`,
}

/** What is to be said to whoever asks, and to the outside. */
function judge(track: Track, { conversation, calls, trail, loops }: LoopCheck) {
  const rounds = Math.floor(track.level / 2)
  const rung = rungOf(track, calls, loops)
  const text = texts[rung](rounds)
  const ring = calls.filter(({ agent }) => closesRing(trail, agent))
  const refused = rung === 'block' ? calls : ring
  const messageOf = (call: LoopCall) =>
    ring.includes(call) ? `Not done: ${[...trail, call.agent].join(' asks ')}. ${again}` : text
  const found = { type: 'loop.found', agent: trail.at(-1) ?? '', conversation, rounds } as const
  return {
    verdict: {
      ...{ type: 'loop.verdict', rung, text },
      refused: refused.map((call) => ({ index: call.index, message: messageOf(call) })),
    },
    events: [
      ...(rung === 'pass' ? [] : [{ ...found, rung, ring: [] }]),
      ...ring.map(({ agent }) => ({ ...found, rung: 'block' as const, ring: [...trail, agent ?? ''] })),
    ],
  }
}

const detector = setup({
  types: {} as { context: LoopContext; events: LoopMessage; input: LoopInput; emitted: LoopEvent },
  actions: {
    judge: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'loop.check')
      const track = advance(trackOf(context, event), event)
      const { verdict, events } = judge(track, event)
      enqueue.sendTo(to(event.replyTo), verdict)
      for (const each of events) enqueue.emit(each)
      const others = context.tracks.filter(({ conversation }) => conversation !== event.conversation)
      enqueue.assign({ tracks: [...others, track].slice(-maxTracks) })
    }),
  },
})

/** The loop detector machine. Bump `version` with any change of its decisions. */
export const loopMachine = detector.createMachine({
  id: 'loop',
  version: '1',
  context: ({ input }) => ({ ...input, tracks: [] }),
  initial: 'watching',
  states: { watching: { on: { 'loop.check': { actions: 'judge' } } } },
})
