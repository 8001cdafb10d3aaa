import { describe, expect, test } from 'vitest'
import { defaultLoops, loopMachine } from '../../machines/index.js'
import { drive, type Driver, type Message } from '../support/machine-driver.js'

const start = (): Driver => drive(loopMachine, { self: 'loop/r1' })

/** What each of some calls brought; a call that is not made brought ''. */
type Round = Readonly<Record<string, string>>

const check = (learned: Round, calls: readonly string[], more: Record<string, unknown> = {}): Message => ({
  type: 'loop.check',
  replyTo: 'agent/writer-r1',
  conversation: 'r1',
  turn: 0,
  learned: Object.entries(learned).map(([call, result]) => ({ call, result })),
  calls: calls.map((call, index) => ({ index, call, agent: null })),
  trail: ['writer'],
  loops: defaultLoops,
  ...more,
})
const verdict = (driver: Driver) =>
  driver.to('agent/writer-r1')[0]! as Message & {
    rung: string
    text: string
    refused: { index: number; message: string }[]
  }
/** The rungs of rounds that follow each other: before each one its calls are asked for. */
function rungs(rounds: readonly Round[], detector = start(), more: Record<string, unknown> = {}): string[] {
  let before: Round = {}
  return rounds.map((round) => {
    detector.send(check(before, Object.keys(round), more))
    before = round
    return verdict(detector).rung
  })
}
const times = (count: number, round: Round): Round[] => Array<Round>(count).fill(round)

describe('loop detector', () => {
  test('loop: one call with one result: made, warned, refused, stopped', () => {
    const ladder = ['pass', 'pass', 'pass', 'warn', 'block', 'stop']
    expect(rungs(times(6, { a: '1' }))).toEqual(ladder)
    // What was refused brought nothing new.
    expect(rungs([...times(4, { a: '1' }), ...times(2, { a: '' })])).toEqual(ladder)
  })

  test('loop: a warning is told, a refusal has a reason for each call, a stop says why', () => {
    const detector = start()
    rungs(times(4, { a: '1', b: '2' }), detector)
    expect(verdict(detector)).toMatchObject({ rung: 'warn', refused: [], text: expect.stringContaining('nothing new') })
    expect(detector.emitted).toEqual([
      { type: 'loop.found', agent: 'writer', conversation: 'r1', rung: 'warn', rounds: 2, ring: [] },
    ])
    detector.send(check({ a: '1', b: '2' }, ['a', 'b']))
    const { rung, text, refused } = verdict(detector)
    expect({ rung, refused }).toEqual({ rung: 'block', refused: [0, 1].map((index) => ({ index, message: text })) })
    detector.send(check({ a: '', b: '' }, ['b', 'a']))
    expect(verdict(detector)).toMatchObject({ rung: 'stop', refused: [], text: expect.stringContaining('4 rounds') })
  })

  test('loop: results that change are progress, and so is a call that was not made before', () => {
    const polls = Array.from({ length: 40 }, (_, index) => ({ a: String(index) }))
    expect(new Set(rungs(polls))).toEqual(new Set(['pass']))
    const pages = Array.from({ length: 40 }, (_, index) => ({ [`page${index}`]: 'empty' }))
    expect(new Set(rungs(pages))).toEqual(new Set(['pass']))
    // A known call beside one that is not is no repetition.
    expect(new Set(rungs(pages.map((page) => ({ a: '1', ...page }))))).toEqual(new Set(['pass']))
  })

  test.each([2, 3])('loop: a cycle of %i calls is found as soon as one call made over and over', (length) => {
    const cycle = Array.from({ length: 3 * length + 4 }, (_, index) => ({ [`c${index % length}`]: '1' }))
    const found = rungs(cycle)
    expect(found.slice(0, length + 2)).toEqual(Array(length + 2).fill('pass'))
    expect(found.slice(length + 2, length + 5)).toEqual(['warn', 'block', 'stop'])
  })

  test('loop: calls of one round count once, in whatever order', () => {
    expect(rungs(times(3, { a: '1', b: '1', c: '1', d: '1' }))).toEqual(['pass', 'pass', 'pass'])
  })

  test('loop: what is learned takes half a round back, never the whole', () => {
    const detector = start()
    rungs(times(4, { a: '1' }), detector)
    detector.send(check({ a: '1' }, ['new']), check({ new: '1' }, ['a']))
    // Three stale rounds, one that was not: two and a half.
    expect(verdict(detector).rung).toBe('warn')
    detector.send(check({ a: '1' }, ['new']))
    expect(verdict(detector).rung).toBe('block')
  })

  test('loop: leave never takes anything back: who is let through stays where it is', () => {
    const detector = start()
    const found = rungs(times(90, { a: '1' }), detector, { loops: { warn: 1, block: 100, stop: 101 } })
    expect(found.slice(2)).toEqual(Array(88).fill('warn'))
    expect(detector.emitted).toMatchObject([{ rounds: 88 }])
  })

  test('loop: the user speaks, and all begins anew', () => {
    const detector = start()
    rungs(times(5, { a: '1' }), detector)
    expect(rungs(times(4, { a: '1' }), detector, { turn: 1 })).toEqual(['pass', 'pass', 'pass', 'warn'])
  })

  test('loop: conversations are told apart', () => {
    const detector = start()
    rungs(times(5, { a: '1' }), detector)
    detector.send(check({}, ['a'], { conversation: 'other' }))
    expect(verdict(detector).rung).toBe('pass')
    detector.send(check({ a: '1' }, ['a']))
    expect(verdict(detector).rung).toBe('stop')
  })

  test('loop: calls that may be repeated at will are no repetition, nor is a round with one of them', () => {
    const detector = start()
    for (let round = 0; round < 30; round += 1) {
      detector.send(check({}, [''], { conversation: 'polls' }))
      expect(verdict(detector).rung).toBe('pass')
    }
    rungs(times(8, { a: '1' }), detector)
    detector.send(check({ a: '1' }, ['a', '']))
    expect(verdict(detector)).toMatchObject({ rung: 'pass', refused: [] })
  })

  test('loop: a ring of agents is not closed a third time; one that divides its own work is no ring', () => {
    const asks = (trail: readonly string[], agent: string): Driver =>
      start().send(check({}, [], { trail, calls: [{ index: 4, call: 'x', agent }] }))
    expect(verdict(asks(['a', 'b', 'a'], 'b')).refused).toEqual([])
    const third = asks(['a', 'b', 'a', 'b'], 'a')
    expect(verdict(third)).toMatchObject({
      rung: 'pass',
      refused: [{ index: 4, message: expect.stringContaining('a asks b asks a asks b asks a') }],
    })
    const ring = ['a', 'b', 'a', 'b', 'a']
    expect(third.emitted).toEqual([
      { type: 'loop.found', agent: 'b', conversation: 'r1', rung: 'block', rounds: 0, ring },
    ])
    expect(verdict(asks(['a', 'b', 'c', 'a', 'b', 'c'], 'a')).refused).toHaveLength(1)
    expect(verdict(asks(['a', 'a', 'a'], 'a')).refused).toEqual([])
  })

  test('loop: what it holds is bounded, whatever it is told', () => {
    const detector = start()
    for (let round = 0; round < 200; round += 1)
      detector.send(check({ a: `r${round}`, [`call${round}`]: '1' }, [`call${round}`]))
    for (let other = 0; other < 100; other += 1) detector.send(check({}, ['a'], { conversation: `c${other}` }))
    detector.send(check({}, ['a'], { conversation: 'c99' }))
    const { tracks } = detector.context as unknown as { tracks: { known: { results: string[] }[] }[] }
    expect(tracks).toHaveLength(32)
    const busy = start()
    for (let round = 0; round < 200; round += 1) busy.send(check({ a: `r${round}`, [`call${round}`]: '1' }, ['a']))
    const [{ known }] = (busy.context as unknown as { tracks: typeof tracks }).tracks as [(typeof tracks)[number]]
    expect(known).toHaveLength(32)
    expect(Math.max(...known.map(({ results }) => results.length))).toBe(4)
  })
})
