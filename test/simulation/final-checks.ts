/** What is checked when all has ended: replay, leftovers, answers, what the provider counted. */
import { contentHash, encode } from '../../runtime/codec.js'
import { textsOf } from '../../runtime/content.js'
import { textOf } from '../../runtime/conversation.js'
import type { Journal, SnapshotManifest } from '../../runtime/journal.js'
import type { Log } from '../../runtime/log.js'
import { recover } from '../../runtime/recovery.js'
import type { RunState } from '../../runtime/runs.js'
import { type ShardState, stateHash } from '../../runtime/state.js'
import { createMemoryJournal } from '../../transport/memory-journal.js'
import type { SimulatedCrew } from './client.js'
import { machines } from '../../machines/index.js'
import type { Notes } from './notes.js'
import type { Replica } from './replica.js'
import { checkMail } from './simulated-mail.js'
import type { SimulatedProcess, World } from './world.js'

/** Runs the checks of a world that has come to its end. */
export async function checkEnd(
  world: World,
  crews: readonly SimulatedCrew[],
  replicas: readonly Replica[],
): Promise<void> {
  const journal = createMemoryJournal({ store: world.store })
  await journal.open()
  for (const replica of replicas) {
    await checkReplay(world, journal, replica)
    checkRest(world, replica)
    await checkAnswers(world, journal, replica)
    if (world.random.chance(0.15)) await checkConversations(world, journal, replica)
  }
  for (const crew of crews) checkTasks(world, crew)
  checkMail(world, replicas)
  world.judge.checkSpending((shard, keeper) => world.replica(shard).accounts.limitsOf(keeper))
  await journal.close()
}

/** Checks that all runs have ended when nothing more will happen. */
export function checkEnded(world: World, crews: readonly SimulatedCrew[], why: string): void {
  for (const crew of crews) {
    const { state } = world.replica(crew.id)
    const open = [...state.runs.values()].filter((run) => run.status !== 'finished')
    const actors = [...state.actors].map(([address, { snapshot }]) => `${address} ${JSON.stringify(snapshot.value)}`)
    world.notes.check(
      'ends',
      open.length === 0 && state.mail.outbox.size === 0 && state.runs.size >= crew.tasks.length,
      () => `${crew.id}: ${open.map(({ run, status }) => `${run} ${status}`).join()}: ${why}: ${actors.join('; ')}`,
    )
  }
}

/** The log of a process: an error is a promise that broke. */
export function logOf(notes: Notes, process: SimulatedProcess): Log {
  const line = (message: string, data?: object) => {
    if (process.alive && !process.closing) notes.violate('alive', `${message} ${JSON.stringify(data)}`)
  }
  const none = () => undefined
  return { debug: none, info: none, warn: none, error: line, with: () => logOf(notes, process) }
}

/** From each snapshot, and from the first record, replay comes to the same state. */
async function checkReplay(world: World, journal: Journal, replica: Replica): Promise<void> {
  const { shard } = replica
  const wanted = replica.hash()
  const spoilt = world.spoilt.get(shard)
  const stored = await journal.snapshots(shard)
  const sound = stored.filter((manifest) => !spoilt?.has(manifest.sequence))
  const choices: (readonly SnapshotManifest[])[] = sound.map((manifest) => [manifest])
  // Of a single sound one, or of none at all, a start finds what is tried anyway.
  if (stored.length > 1 || sound.length < stored.length) choices.push(stored)
  if (stored.length === 0 || world.random.chance(0.1)) choices.push([])
  for (const choice of choices) {
    const from = choice.map(({ sequence }) => sequence).join()
    try {
      const context = { scope: world.scope(), machines }
      const { state } = await recover(withSnapshots(journal, choice), shard, context, false)
      const same = stateHash(state, context.scope, machines) === wanted
      world.notes.check('replay', same, () => `${shard}: another state from the snapshots at [${from}]`)
    } catch (error) {
      world.notes.violate('replay', `${shard}: from the snapshots at [${from}]: ${String(error)}`)
    }
  }
}

/** The journal with these snapshots only. */
function withSnapshots(journal: Journal, manifests: readonly SnapshotManifest[]): Journal {
  const view: Pick<Journal, 'head' | 'snapshots' | 'read' | 'getChunks'> = {
    head: (shard) => journal.head(shard),
    snapshots: () => Promise.resolve(manifests),
    read: (shard, from) => journal.read(shard, from),
    getChunks: (shard, hashes) => journal.getChunks(shard, hashes),
  }
  return view as Journal
}

/** Nothing is open, nothing is kept that nobody will need. */
function checkRest(world: World, { shard, state }: Replica): void {
  if (world.notes.violations.length > 0) return
  const { notes } = world
  notes.check('rest', state.effects.size === 0, () => `${shard}: effects ${[...state.effects.keys()].join()} are open`)
  for (const [name, log] of state.logs) {
    notes.check('rest', isOfRun(name, state), () => `${shard}: the conversation ${name} is left`)
    notes.check('rest', log.staged.size === 0, () => `${shard}: results are staged in ${name}`)
  }
  for (const [address, actor] of state.actors) {
    const kept = ['crew', 'budget', 'pool', 'router'].includes(actor.kind)
    notes.check('rest', kept, () => `${shard}: ${address} is left in ${JSON.stringify(actor.snapshot.value)}`)
  }
  for (const [effect, { keeper }] of state.owed)
    notes.check('rest', state.actors.has(keeper), () => `${shard}: ${effect} is owed to ${keeper}, which is gone`)
}

/** A run's own, or that of a lead that began anew. */
function isOfRun(name: string, { runs }: ShardState): boolean {
  if (runs.has(name)) return true
  return /^r\d+-i\d+$/.test(name) && [...runs.values()].some(({ conversation }) => conversation === name)
}

/** Conversations of runs that have ended are whole: each call has its result, and they are what models were sent. */
async function checkConversations(
  world: World,
  journal: Journal,
  { shard, state, incarnations }: Replica,
): Promise<void> {
  for (const [name, log] of state.logs) {
    if (![...state.runs.values()].some((run) => run.conversation === name && run.status === 'finished')) continue
    // Of a lead that failed nobody knows which calls it had open; nobody goes on in its conversation.
    if (incarnations.broken.has(name)) continue
    world.judge.conversation(`${shard}|${name}`, await textsOf(journal, shard, log.entries))
  }
}

/** What an answered run answers is the last thing that its model said. */
async function checkAnswers(world: World, journal: Journal, { shard, state }: Replica): Promise<void> {
  for (const run of state.runs.values()) {
    if (run.end === null || run.end.code !== null) continue
    const log = state.logs.get(run.conversation)
    const entry = log?.entries[run.until - 1]
    const [text] = entry === undefined ? [] : await textsOf(journal, shard, [entry])
    const said = text === undefined ? '' : textOf(text)
    world.notes.check('answer', world.judge.answers.has(said), () => `${shard}: ${run.run} answers ${said}`)
  }
}

/** Each task has one run, and a run that was acknowledged is there. */
function checkTasks(world: World, crew: SimulatedCrew): void {
  const byKey = new Map<string, RunState[]>()
  for (const run of world.replica(crew.id).state.runs.values()) byKey.set(run.key, [...(byKey.get(run.key) ?? []), run])
  for (const { key, run } of crew.tasks) {
    const runs = byKey.get(key) ?? []
    const detail = () => `${crew.id}: ${key} (${run}) is ${runs.map((each) => each.run).join()}`
    world.notes.check('run', runs.length <= 1 && (run === null || runs[0]?.run === run), detail)
  }
}

/** Of all that was journalled: the same for the same seed. */
export function hashOf({ store, timeline, notes }: World, replicas: readonly Replica[]): string {
  const heads = replicas.map((replica) => [
    replica.shard,
    replica.state.sequence,
    store.shards.get(replica.shard)?.head.hash ?? null,
    replica.hash(),
  ])
  return contentHash(encode([heads, timeline.now, notes.faults, notes.violations.length]))
}
