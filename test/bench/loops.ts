/**
 * The loop detector over recorded tool calls, `--file PATH`: one JSON a line, plain or `.gz`, `{id, success, reason, calls:
 * [{step, turn, name, args, result}]}`. A `step` is one reply of the model, a `turn` one message of the user. Nothing that
 * the detector says reaches whoever made the calls: as if each warning and each refusal had been ignored. A file
 * `labels.jsonl` beside it, `{id, label}`, is counted too.
 */
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { defaultLoops, loopMachine, type Loops, type LoopVerdict } from '../../machines/index.js'
import { contentHash } from '../../runtime/codec.js'
import { Scope } from '../../runtime/scope.js'
import { round3, say } from './measure.js'

interface Recorded {
  readonly id: string
  readonly success: boolean
  readonly reason: string
  readonly calls: readonly {
    readonly step: number
    readonly turn: number
    readonly name: string
    readonly args: string
    readonly result: string
  }[]
}

/** Calls of one reply, with what they brought. */
interface Round {
  readonly turn: number
  readonly calls: { readonly call: string; readonly result: string }[]
}

/** Where a detector stops whom, by calls made so far; null: nowhere. */
type Stops = ReadonlyMap<Recorded, number | null>

function read(path: string): unknown[] {
  const bytes = readFileSync(path)
  const text = (path.endsWith('.gz') ? gunzipSync(bytes) : bytes).toString()
  return text
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line) as unknown)
}

function roundsOf({ calls }: Recorded): Round[] {
  const rounds: (Round & { readonly step: number })[] = []
  for (const { step, turn, name, args, result } of calls) {
    const last = rounds.at(-1)
    const each = { call: contentHash(`${name} ${args}`), result }
    if (last?.step === step && last.turn === turn) last.calls.push(each)
    else rounds.push({ step, turn, calls: [each] })
  }
  return rounds
}

/** How many calls are made before a detector stops whoever makes them. */
function stopOf(recorded: Recorded, loops: Loops): number | null {
  const scope = new Scope()
  const self = 'loop/r1'
  let { snapshot } = scope.start(loopMachine, self, { self })
  let learned: Round['calls'] = []
  let made = 0
  for (const { turn, calls } of roundsOf(recorded)) {
    const asked = calls.map(({ call }, index) => ({ index, call, agent: null }))
    const check = { conversation: 'r1', turn, replyTo: 'agent/a', learned, calls: asked, trail: ['a'], loops }
    const step = scope.deliver(snapshot, self, { type: 'loop.check', ...check })
    const verdict = step.actions.find((action) => action.kind === 'send')?.message as unknown as LoopVerdict
    if (verdict.rung === 'stop') return made
    snapshot = step.snapshot
    made += calls.length
    learned = calls
  }
  return null
}

/** The 95 % interval of a share, after Wilson. */
function interval(found: number, all: number): string {
  const z = 1.96
  const share = found / all
  const middle = share + z ** 2 / (2 * all)
  const half = z * Math.sqrt((share * (1 - share)) / all + z ** 2 / (4 * all ** 2))
  const percent = (value: number): string => ((100 * value) / (1 + z ** 2 / all)).toFixed(2)
  return `${found} of ${all} (${((100 * found) / all).toFixed(2)} %, ${percent(middle - half)} to ${percent(middle + half)})`
}

/** Stops and misses of the detector. @param path of the recorded calls */
export function benchLoops(path: string): object {
  const all = read(path) as Recorded[]
  const beside = join(dirname(path), 'labels.jsonl')
  const labelled = existsSync(beside) ? (read(beside) as { readonly id: string; readonly label: string }[]) : []
  const labels = new Map(labelled.map(({ id, label }) => [id, label]))
  const successes = all.filter(({ success }) => success)
  const limited = all.filter(({ reason }) => reason === 'max_steps')
  const named = (label: string): Recorded[] => all.filter(({ id }) => labels.get(id) === label)
  const stopsOf = (loops: Loops): Stops => new Map(all.map((each) => [each, stopOf(each, loops)]))
  const stopped = (of: readonly Recorded[], stops: Stops): number =>
    of.filter((each) => stops.get(each) !== null).length

  for (const stop of [2, 3, 4, 5, 6, 8, 10]) {
    const stops = stopsOf({ warn: stop, block: stop, stop })
    const kinds = [...new Set(labels.values())].map((label) => [label, named(label)] as const)
    const told = kinds
      .filter(([, of]) => of.length > 0)
      .map(([label, of]) => `${label} ${stopped(of, stops)}/${of.length}`)
    say(`stop after ${stop} stale rounds: successes ${interval(stopped(successes, stops), successes.length)}`)
    say(`  limit ${interval(stopped(limited, stops), limited.length)} ${told.join(', ')}`)
  }
  const stops = stopsOf(defaultLoops)
  const saved = limited.map((each) => each.calls.length - (stops.get(each) ?? each.calls.length))
  const polls = named('polling_or_paging')
  return {
    bench: 'loops',
    success: successes.length,
    successStopped: stopped(successes, stops),
    successShare: round3(stopped(successes, stops) / successes.length),
    limit: limited.length,
    limitStopped: stopped(limited, stops),
    limitCallsSaved: saved.reduce((sum, calls) => sum + calls, 0),
    loopToLimit: named('loop_to_limit').length,
    loopToLimitStopped: stopped(named('loop_to_limit'), stops),
    pollingStopped: stopped(polls, stops),
  }
}
