/** How far each conversation has gone without learning anything, counted apart from the loop detector. */
import type { LoopCheck, LoopRung, LoopVerdict } from '../../machines/messages.js'
import type { Commit } from '../../runtime/commit.js'
import type { ShardState } from '../../runtime/state.js'
import type { Notes } from './notes.js'

/** What one conversation has learned since its user last spoke. */
interface Learned {
  readonly turn: number
  readonly pairs: Set<string>
  readonly calls: Set<string>
  /** Half stale rounds. */
  stale: number
}

const reached = { warn: 'loop warned', block: 'loop blocked', stop: 'loop stopped' } as const

/** The ladders of one shard. */
export class Ladders {
  readonly #shard: string
  readonly #notes: Notes
  /** By detector and conversation. */
  readonly #learned = new Map<string, Learned>()

  constructor(shard: string, notes: Notes) {
    this.#shard = shard
    this.#notes = notes
  }

  /** Looks at a commit: every verdict must be the one that the rounds so far lead to. */
  take(_: ShardState, { sequence, decisions }: Commit): void {
    let expected: LoopRung | null = null
    for (const line of decisions) {
      const check = messageOf<LoopCheck>(line, 'loop.check')
      if (check !== null) expected = this.#expect(line.slice(0, line.indexOf(' ')), check)
      const verdict = messageOf<LoopVerdict>(line, 'loop.verdict')
      if (verdict === null) continue
      const { rung } = verdict
      const detail = (): string => `${this.#shard} ${sequence}: ${rung}, expected ${expected}: ${line.slice(0, 200)}`
      this.#notes.check('ladder', rung === expected, detail)
      if (rung !== 'pass') this.#notes.reached(reached[rung])
      expected = null
    }
  }

  #expect(detector: string, { conversation, turn, learned, calls, loops }: LoopCheck): LoopRung {
    const known = this.#of(`${detector} ${conversation}`, turn)
    const isNew = ({ call, result }: { readonly call: string; readonly result: string }): boolean =>
      result !== '' && !known.pairs.has(`${call} ${result}`)
    if (learned.length > 0) known.stale = learned.some(isNew) ? Math.max(0, known.stale - 1) : known.stale + 2
    for (const { call, result } of learned) {
      known.pairs.add(`${call} ${result}`)
      known.calls.add(call)
    }
    if (calls.length === 0 || !calls.every(({ call }) => known.calls.has(call))) return 'pass'
    const isAt = (rounds: number): boolean => known.stale >= 2 * rounds
    return isAt(loops.stop) ? 'stop' : isAt(loops.block) ? 'block' : isAt(loops.warn) ? 'warn' : 'pass'
  }

  #of(name: string, turn: number): Learned {
    const before = this.#learned.get(name)
    if (before?.turn === turn) return before
    const fresh: Learned = { turn, pairs: new Set(), calls: new Set(), stale: 0 }
    this.#learned.set(name, fresh)
    return fresh
  }
}

/** The message of a decision, if it is one of this type. */
export function messageOf<Message>(line: string, type: string): Message | null {
  const at = line.indexOf(' {"type":"')
  return at > 0 && line.startsWith(`${type}"`, at + 10) ? (JSON.parse(line.slice(at + 1)) as Message) : null
}
