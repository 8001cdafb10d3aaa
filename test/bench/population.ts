/**
 * A store full of crews, made by the product's own decisions without a provider: idle ones, ones with a timer that is
 * due, ones with an open model call.
 */
import { machines } from '../../machines/index.js'
import { type Commit, decide } from '../../runtime/commit.js'
import type { Journal, Pending } from '../../runtime/journal.js'
import { toRecord } from '../../runtime/record.js'
import { Scope } from '../../runtime/scope.js'
import { emptyState, nextDueAt } from '../../runtime/state.js'

/** What a crew waits for. */
export type Waiting = 'nothing' | 'timer' | 'effect'

const scope = new Scope()

const agent = {
  name: 'bench',
  deployments: [{ name: 'openai:gpt-5-mini', price: { input: 250_000, output: 2_000_000 } }],
  rounds: 20,
  attempts: 4,
  maxOutputTokens: 1_024,
  minOutputTokens: 256,
  baseTokens: 100,
  limits: null,
  keep: false,
}
const crew = {
  name: 'bench',
  lead: 'bench',
  agents: { bench: agent },
  limits: { nanoUsd: 2_000_000_000 },
  per: 'run',
  wallMs: null,
  delegates: 16,
  answerMs: 3_600_000,
}
const usage = { inputTokens: 100, outputTokens: 10, cachedInputTokens: 0, estimated: false }
const spent = { nanoUsd: 45_000, tokens: 110, modelCalls: 1, toolCalls: 0 }

/** Writes one crew whose last commit was at `at`. @param name of the crew, for a journal that keeps it */
export async function writeCrew(
  journal: Journal,
  shard: string,
  waiting: Waiting,
  at: number,
  name?: string,
): Promise<void> {
  const state = emptyState(shard)
  let hash: Uint8Array = new Uint8Array(32)
  const take = async (
    from: string,
    to: string,
    cause: string,
    body: { type: string; [field: string]: unknown },
    values: string[],
  ): Promise<Commit> => {
    const commit = decide(state, { from, to, cause, body, values, at }, { scope, machines })
    const pending: Pending = { nextDueAt: nextDueAt(state), openEffects: state.effects.size, outbox: 0 }
    const record = { ...toRecord(shard, hash, [commit], pending), crew: name }
    await journal.append(record)
    hash = record.hash
    return commit
  }
  await take(
    'shard/self',
    'shard/self',
    '',
    { type: 'crew.defined', definition: JSON.stringify({ data: crew }), crew },
    [],
  )
  const task = { type: 'crew.task', tokens: 10, messages: 1, key: 'k', data: false }
  const asked = await take('client/local', 'crew/main', '', task, ['{"role":"user","content":"go"}'])
  const [effect] = asked.effects
  if (waiting === 'effect' || effect === undefined) return
  if (waiting === 'timer') {
    const body = {
      type: 'model.failed',
      kind: 'overloaded',
      reason: 'busy',
      retryAfterMs: null,
      delayMs: 1_000,
      spent: { ...spent, nanoUsd: 0, tokens: 0 },
      real: true,
    }
    await take('port/model', effect.from, effect.id, body, [])
    return
  }
  const body = { type: 'model.replied', calls: [], fits: null, reason: '', finish: 'stop', usage, spent }
  await take('port/model', effect.from, effect.id, body, ['{"role":"assistant","content":"done"}'])
}

/** Writes many, 500 at a time. */
export async function populate(
  journal: Journal,
  count: number,
  waitingOf: (index: number) => Waiting,
  at: number,
): Promise<void> {
  for (let first = 0; first < count; first += 500) {
    const indexes = Array.from({ length: Math.min(500, count - first) }, (_, index) => first + index)
    await Promise.all(indexes.map((index) => writeCrew(journal, `crew-${index}`, waitingOf(index), at)))
  }
}
