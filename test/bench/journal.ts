/** The journal port over raw LevelDB batches of the same bytes, and whole commits a second over 100 shards, in `process`. */
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { Level } from 'level'
import { chain } from '../../runtime/codec.js'
import { decide } from '../../runtime/commit.js'
import { type JournalRecord, nothingPending } from '../../runtime/journal.js'
import { toRecord } from '../../runtime/record.js'
import { Scope } from '../../runtime/scope.js'
import { emptyState, type ShardState } from '../../runtime/state.js'
import { createLevelJournal } from '../../transport/level-journal.js'
import { median, round3, say, scratch } from './measure.js'
import { machines } from '../../machines/index.js'

const shards = 100
const appends = 20_000
const bytes = randomBytes(490)
const passes = 5

/** 100 writers, each waiting for its own append; records a second. */
async function writers(append: (shard: number, sequence: number) => Promise<void>): Promise<number> {
  const start = performance.now()
  const each = appends / shards
  await Promise.all(
    Array.from({ length: shards }, async (_, shard) => {
      for (let sequence = 1; sequence <= each; sequence += 1) await append(shard, sequence)
    }),
  )
  return appends / ((performance.now() - start) / 1_000)
}

/** The floor: what waits is written in one batch, record and index row, and nothing else is done. */
async function raw(): Promise<number> {
  const folder = scratch('journal-raw')
  const db = new Level<string, Buffer>(join(folder.path, 'db'), { valueEncoding: 'buffer' })
  await db.open()
  let waiting: { key: string; resolve: () => void }[] = []
  let writing = false
  const flush = async (): Promise<void> => {
    writing = true
    while (waiting.length > 0) {
      const batch = waiting
      waiting = []
      const chained = db.batch()
      for (const { key } of batch) chained.put(key, bytes)
      await chained.write()
      for (const { resolve } of batch) resolve()
    }
    writing = false
  }
  const rate = await writers(
    (shard, sequence) =>
      new Promise((resolve) => {
        waiting.push({ key: `j/crew-${shard}/${sequence}`, resolve })
        if (!writing) void flush()
      }),
  )
  await db.close()
  folder.drop()
  return rate
}

/** The records of the writers by shard: the port takes them ready, chain hash and all. */
const records: readonly (readonly JournalRecord[])[] = Array.from({ length: shards }, (_, index) => {
  const shard = `crew-${index}`
  let hash: Uint8Array = new Uint8Array(32)
  return Array.from({ length: appends / shards }, (_, at): JournalRecord => {
    hash = chain(hash, bytes)
    return { shard, first: at + 1, last: at + 1, hash, bytes, events: null, pending: nothingPending }
  })
})

async function port(): Promise<number> {
  const folder = scratch('journal-port')
  const journal = createLevelJournal({ path: folder.path, durability: 'process' })
  await journal.open()
  const rate = await writers((shard, sequence) => journal.append(records[shard]![sequence - 1]!))
  await journal.close()
  folder.drop()
  return rate
}

/** Decide, encode, append: a tool round's commits, alternating. */
async function commits(): Promise<number> {
  const folder = scratch('journal-commits')
  const journal = createLevelJournal({ path: folder.path, durability: 'process' })
  await journal.open()
  const scope = new Scope()
  const agent = {
    name: 'bench',
    deployments: [{ name: 'openai:gpt-5-mini', price: { input: 250_000, output: 2_000_000 } }],
    rounds: 100_000,
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
    limits: {},
    per: 'run',
    wallMs: null,
    delegates: 16,
    answerMs: 3_600_000,
  }
  const usage = { inputTokens: 100, outputTokens: 10, cachedInputTokens: 0, estimated: false }
  const spent = { nanoUsd: 45_000, tokens: 110, modelCalls: 1, toolCalls: 0 }
  const call = {
    verdict: 'tool',
    index: 0,
    callId: 'call_1',
    tool: 'look',
    effect: 'idempotent',
    timeoutMs: 60_000,
    retries: 2,
    onUnknown: 'tell',
  }
  const replied = { type: 'model.replied', calls: [call], fits: null, reason: '', finish: 'tool_calls', usage, spent }
  const states: { readonly state: ShardState; hash: Uint8Array }[] = Array.from({ length: shards }, (_, index) => ({
    state: emptyState(`crew-${index}`),
    hash: new Uint8Array(32),
  }))
  const message =
    '{"role":"assistant","content":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"look","arguments":"{\\"at\\":1}"}}]}'
  const rate = await writers((index, sequence) => {
    const shard = states[index]!
    const [open] = shard.state.effects.values()
    const take = (
      from: string,
      to: string,
      cause: string,
      body: { type: string; [field: string]: unknown },
      values: string[],
    ) => decide(shard.state, { from, to, cause, body, values, at: sequence }, { scope, machines })
    const commit =
      sequence === 1
        ? take(
            'shard/self',
            'shard/self',
            '',
            { type: 'crew.defined', definition: JSON.stringify({ data: crew }), crew },
            [],
          )
        : sequence === 2
          ? take(
              'client/local',
              'crew/main',
              '',
              { type: 'crew.task', tokens: 10, messages: 1, key: 'k', data: false },
              ['{"role":"user","content":"go"}'],
            )
          : open!.body.type === 'model.call'
            ? take('port/model', open!.from, open!.id, replied, [message])
            : take('port/tool', open!.from, open!.id, { type: 'tool.succeeded', bytes: 200 }, ['x'.repeat(200)])
    const record = toRecord(`crew-${index}`, shard.hash, [commit], { ...nothingPending, openEffects: 1 })
    shard.hash = record.hash
    return journal.append(record)
  })
  await journal.close()
  folder.drop()
  return rate
}

export async function benchJournal(): Promise<object> {
  const rates = { raw: [] as number[], port: [] as number[], commits: [] as number[] }
  for (let pass = -1; pass < passes; pass += 1) {
    const sample = { raw: await raw(), port: await port(), commits: await commits() }
    if (pass < 0) continue
    rates.raw.push(sample.raw)
    rates.port.push(sample.port)
    rates.commits.push(sample.commits)
  }
  const [floor, journal, whole] = [median(rates.raw), median(rates.port), median(rates.commits)]
  say(`raw batches ${floor.toFixed(0)}/s, journal port ${journal.toFixed(0)}/s, whole commits ${whole.toFixed(0)}/s`)
  return { bench: 'journal', portOverRaw: round3(journal / floor), commitsPerSecond: Math.round(whole) }
}
