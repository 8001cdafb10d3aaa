/**
 * The judge of workers under faults: what the kill test's judge demands, and that the journal as the server has it, the
 * events as an outsider saw them, and the ownership that both tell of agree.
 *
 * Every function returns violations as sentences; none means that all is well.
 */
import { AckPolicy, DeliverPolicy, jetstream } from '@nats-io/jetstream'
import type { Journal } from '../../runtime/journal.js'
import { fromEvents, fromRecord, type PlacedEvent, type RecordedCommit } from '../../runtime/record.js'
import { maxCrashes } from '../../runtime/takeover.js'
import { createJetStreamJournal } from '../../transport/jetstream-journal.js'
import { rowOf } from '../../transport/jetstream-message.js'
import type { NatsLink } from '../../transport/nats-connection.js'
import type { Subjects } from '../../transport/subjects.js'
import { type LostCall, lostCalls } from './kill-judge.js'
import type { SeenCrew } from './worker-observer.js'

/** How far the clocks of judge and workers, and what they note, may lie apart. */
const slackMs = 1_000

/** A fault as the parent made it, or saw it made. */
export interface WorkerFault {
  readonly fault: 'kill' | 'server' | 'stop' | 'term' | 'link'
  readonly window: string
  /** Name of the worker; empty for the server. */
  readonly worker: string
  readonly at: number
  /** When the worker went on again, the server was back. */
  until: number
}

/** What the server has of a namespace. */
export interface StoredCrews {
  readonly lost: readonly LostCall[]
  readonly givenUp: readonly GivenUp[]
  readonly records: number
  readonly events: number
  readonly violations: readonly string[]
}

/** What a journal has of one crew. */
export interface CrewStory {
  readonly commits: readonly RecordedCommit[]
  readonly events: readonly PlacedEvent[]
}

/** Reads all of it. */
export async function storyOf(journal: Journal, crew: string): Promise<CrewStory> {
  const commits: RecordedCommit[] = []
  const events: PlacedEvent[] = []
  for await (const record of journal.read(crew, 1)) commits.push(...fromRecord(crew, record))
  for await (const { bytes } of journal.readEvents(crew, 1)) events.push(...fromEvents(bytes))
  return { commits, events }
}

interface StoredMessage {
  readonly kind: string
  readonly epoch: string
  readonly first: number
  readonly last: number
}

/** Every message of the journal, by shard, in the server's order: headers only. */
async function messagesOf(link: NatsLink, subjects: Subjects): Promise<Map<string, StoredMessage[]>> {
  const stream = subjects.stream('journal')
  const client = jetstream(link.connection)
  const found = new Map<string, StoredMessage[]>()
  const info = await link.manager.consumers.add(stream, {
    ack_policy: AckPolicy.None,
    deliver_policy: DeliverPolicy.All,
    headers_only: true,
    mem_storage: true,
    num_replicas: 1,
    inactive_threshold: 60_000_000_000,
  })
  const consumer = client.consumers.getConsumerFromInfo(info)
  for (let left = info.num_pending; left > 0; ) {
    for await (const message of await consumer.fetch({ max_messages: Math.min(left, 1_000), expires: 5_000 })) {
      left--
      const shard = subjects.shardOf(message.subject)
      const row = rowOf(shard, { seq: message.seq, header: message.headers, data: message.data })
      const header = (name: string): string => message.headers?.get(name) ?? ''
      const list = found.get(shard) ?? []
      found.set(shard, list)
      const { first = 0, last = 0 } = row ?? {}
      list.push({ kind: header('Troupe-Kind'), epoch: header('Troupe-Epoch'), first, last })
    }
  }
  return found
}

/**
 * Reads everything that the server has of these crews, and compares it with what the observer saw.
 * @param see told of each crew, for those who have more to judge
 */
export async function judgeStored(
  link: NatsLink,
  subjects: Subjects,
  crews: readonly string[],
  seen: ReadonlyMap<string, SeenCrew>,
  see: (crew: string, story: CrewStory) => void = () => undefined,
): Promise<StoredCrews> {
  const messages = await messagesOf(link, subjects)
  const journal = createJetStreamJournal({ link, subjects, worker: 'judge', epoch: () => 0 })
  await journal.open()
  const violations: string[] = []
  const lost: LostCall[] = []
  const givenUp: GivenUp[] = []
  let events = 0
  try {
    for (const crew of crews) {
      const story = await storyOf(journal, crew)
      see(crew, story)
      const { commits } = story
      const stored = story.events.map(({ sequence, index }) => `${crew}-${sequence}-${index}`)
      events += stored.length
      lost.push(...(await lostCalls(crew, iterate(commits))))
      givenUp.push(...givenUpOf(crew, commits))
      violations.push(...judgeEvents(crew, stored, seen.get(crew)?.ids ?? []))
      violations.push(...judgeOwners(crew, messages.get(crew) ?? [], commits))
    }
  } finally {
    await journal.close()
  }
  const records = [...messages.values()].reduce((sum, list) => sum + list.length, 0)
  return { lost, givenUp, records, events, violations }
}

async function* iterate<Item>(items: readonly Item[]): AsyncGenerator<Item> {
  yield* items
}

/** The observer saw each event that the journal has once, in its order. */
function judgeEvents(crew: string, stored: readonly string[], seen: readonly string[]): string[] {
  const at = stored.findIndex((id, index) => seen[index] !== id)
  if (at === -1 && seen.length === stored.length) return []
  const place = at === -1 ? stored.length : at
  return [
    `${crew}: event ${place} of ${stored.length} is ${stored[place] ?? 'none'}, the observer saw ${seen[place] ?? 'none'} of ${seen.length}`,
  ]
}

/** Commits follow each other, and from one owner's `shard.taken` to the next all records are this owner's. */
function judgeOwners(crew: string, messages: readonly StoredMessage[], commits: readonly RecordedCommit[]): string[] {
  const violations: string[] = []
  const takings = new Map<number, string>()
  for (const { sequence, envelope } of commits)
    if (envelope.body.type === 'shard.taken') takings.set(sequence, String(envelope.body['owner']))
  let epoch = ''
  let next = 1
  for (const { kind, epoch: own, first, last } of messages) {
    if (kind !== 'record') continue
    if (first !== next) violations.push(`${crew}: a record begins with ${first} instead of ${next}`)
    next = last + 1
    if (own === epoch) continue
    const owner = takings.get(first)
    if (owner?.split('.')[1]?.split('-')[0] !== own)
      violations.push(`${crew}: commit ${first} is of the owner with epoch ${own} behind ${epoch}, taken by ${owner}`)
    epoch = own
  }
  return violations
}

/** Work that was given up, and the workers that may have died over it: who had the crew since its actor last heard. */
export interface GivenUp {
  readonly crew: string
  readonly actor: string
  readonly since: number
  readonly at: number
  readonly owners: readonly string[]
}

/** Outcomes behind which the same work is tried again, if at all, or asked about: its crashes are counted on. */
const sameWork = new Set(['effect.interrupted', 'tool.verified', 'model.failed', 'model.refused', 'tool.failed'])

/** What a crew's journal has as given up. */
export function givenUpOf(crew: string, commits: readonly RecordedCommit[]): GivenUp[] {
  const found: GivenUp[] = []
  const heard = new Map<string, number>()
  const takings: { readonly worker: string; readonly at: number }[] = []
  for (const { envelope } of commits) {
    const { body, at, from, to } = envelope
    if (body.type === 'shard.taken') takings.push({ worker: String(body['owner']).split('.')[0]!, at })
    if (body.type === 'effect.crashed') {
      const since = heard.get(to) ?? 0
      const first = takings.findLastIndex((taking) => taking.at <= since)
      const owners = takings.slice(Math.max(0, first)).map(({ worker }) => worker)
      found.push({ crew, actor: to, since, at, owners: [...new Set(owners)] })
    }
    if (from.startsWith('port/') && !sameWork.has(body.type)) heard.set(to, at)
  }
  return found
}

/** Whoever gave something up lost three of its owners over it. */
export function judgeGivenUp(givenUp: readonly GivenUp[], faults: readonly WorkerFault[]): string[] {
  const deathsOver = ({ owners, since, at }: GivenUp): WorkerFault[] =>
    faults.filter(
      (fault) =>
        fault.fault === 'kill' &&
        owners.includes(fault.worker) &&
        fault.at >= since - slackMs &&
        fault.at <= at + slackMs,
    )
  return givenUp
    .map((work) => ({ work, deaths: deathsOver(work) }))
    .filter(({ deaths }) => deaths.length < maxCrashes)
    .map(({ work, deaths }) => `work was given up over ${deaths.length} deaths: ${JSON.stringify({ ...work, deaths })}`)
}

/** Each call that was lost was with a worker over a fault that may have lost it. */
export function judgeLosses(lost: readonly LostCall[], faults: readonly WorkerFault[]): string[] {
  const explains = ({ executor, dispatchedAt, interruptedAt }: LostCall, { fault, worker, at, until }: WorkerFault) =>
    fault !== 'term' &&
    (fault === 'server' || executor.split('.')[0] === worker) &&
    dispatchedAt <= until + slackMs &&
    interruptedAt >= at - slackMs
  return lost
    .filter((call) => !faults.some((fault) => explains(call, fault)))
    .map((call) => `a call was lost over no fault: ${JSON.stringify(call)}`)
}
