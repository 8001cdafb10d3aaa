/**
 * A cluster of three NATS servers with three copies of everything: any node is killed under load, and some come back with
 * a truncated file of the journal's stream.
 */
import { readdirSync, statSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { isTroupeError } from '../../runtime/errors.js'
import { createJetStreamJournal } from '../../transport/jetstream-journal.js'
import { connectNats } from '../../transport/nats-connection.js'
import { type NatsServer, startNatsCluster } from '../support/nats-server.js'
import { bundleChild } from './child-script.js'
import { startWorkers } from './failover-trials.js'
import { draw } from './kill-crews.js'
import { storyOf } from './worker-judge.js'
import { setStage, type StageReport, totalOf, type WorkerStage } from './worker-stage.js'

/** What came of the trials. */
export interface ClusterReport extends StageReport {
  readonly kills: number
  /** Nodes that came back with a truncated file, and what became of it. */
  readonly truncations: number
  readonly refused: number
  /** Those that had all messages again, as many as the others, and led the stream then. */
  readonly healed: number
  /** Those that came back and lacked some: nothing was wrong in silence then, and a new cluster was begun. */
  readonly holed: number
  /** Crews of those clusters whose journal could be read all the same, and those that said that it cannot. */
  readonly readable: number
  readonly reported: number
  readonly ms: number
}

/** How many, of what. */
export interface ClusterOptions {
  readonly seed: number
  readonly kills: number
  readonly truncations: number
  /** Crews at work at once. */
  readonly lanes: number
  /** Told how far it is. */
  readonly onProgress?: (text: string) => void
}

interface Counts {
  refused: number
  healed: number
  holed: number
  readable: number
  reported: number
}

const streams = ['journal', 'content', 'mail', 'events'] as const
/** A node that is back has what the others have by then. */
const healMs = 60_000

/** Kills nodes, some of them with a truncated file at their return; in another cluster each time one does not get over it. */
export async function runClusterFaults(options: ClusterOptions): Promise<ClusterReport> {
  const { kills, truncations } = options
  const started = performance.now()
  const counts: Counts = { refused: 0, healed: 0, holed: 0, readable: 0, reported: 0 }
  const reports: StageReport[] = []
  await using script = await bundleChild('worker-child')
  for (let trial = 0; trial < kills + truncations; ) {
    const { done, report } = await runCluster(options, script.path, trial, counts)
    reports.push(report)
    trial = done
  }
  return {
    ...totalOf(reports),
    ...{ kills, truncations, ...counts },
    ms: Math.round(performance.now() - started),
  }
}

/** One cluster, until all is done or a node of it has lost messages. */
async function runCluster(
  { seed, kills, truncations, lanes, onProgress }: ClusterOptions,
  script: string,
  first: number,
  counts: Counts,
): Promise<{ readonly done: number; readonly report: StageReport }> {
  const found: string[] = []
  const nodes = await startNatsCluster(3)
  try {
    await using stage = await setStage({
      name: `c${seed}-${first}`,
      script,
      servers: nodes,
      lanes,
      leaseMs: 2_000,
      replicas: 3,
      slower: 5,
    })
    await startWorkers(stage, 3)
    stage.load()
    for (let trial = first; trial < kills + truncations; trial += 1) {
      const outcome = await runTrial(stage, nodes, `${seed} ${trial}`, trial >= kills)
      onProgress?.(`${trial + 1} of ${kills + truncations} nodes: ${outcome}`)
      if (outcome === 'healed') {
        if (trial >= kills) counts.healed += 1
        continue
      }
      if (trial < kills) found.push(`trial ${trial}: a node that was only killed is ${outcome}`)
      counts[outcome] += 1
      const report = outcome === 'refused' ? await stage.finish() : await judgeHoled(stage, counts)
      return { done: trial + 1, report: { ...report, violations: [...found, ...report.violations] } }
    }
    const report = await stage.finish()
    return { done: kills + truncations, report }
  } finally {
    for (const node of nodes) await node.dispose()
  }
}

/** Kills one node under load, and starts it again. What became of it. */
async function runTrial(
  stage: WorkerStage,
  nodes: readonly NatsServer[],
  name: string,
  truncates: boolean,
): Promise<'healed' | 'refused' | 'holed'> {
  await stage.calm()
  const node = nodes[draw(`${name} node`, nodes.length)]!
  const fault = stage.note({ fault: 'server', window: 'node', worker: '', at: Date.now() })
  await node.kill()
  // Load goes on without it.
  const runs = stage.ended
  await stage.observer.until(() => stage.ended > runs + 2, 30_000)
  if (truncates) truncateJournal(node, stage, draw(`${name} cut`, 900) / 1_000)
  const refused = await node.start().then(
    () => false,
    () => true,
  )
  if (refused) return 'refused'
  const isHealed = await healed(stage, node, truncates)
  fault.until = Date.now() + 4_000
  return isHealed ? 'healed' : 'holed'
}

/**
 * What must hold in a cluster one node of which lacks messages of the journal, and may lead it: each crew can be read, and has
 * all that was seen of it from outside, or says that it cannot be read. None is shorter in silence.
 */
async function judgeHoled(stage: WorkerStage, counts: Counts): Promise<StageReport> {
  await stage.halt()
  const { link, subjects, observer } = stage
  const journal = createJetStreamJournal({ link, subjects, worker: 'judge', epoch: () => 0 })
  await journal.open()
  const violations: string[] = []
  let events = 0
  try {
    for (const [crew, { ids }] of observer.crews) {
      try {
        const story = await storyOf(journal, crew)
        counts.readable += 1
        events += story.events.length
        const stored = new Set(story.events.map(({ sequence, index }) => `${crew}-${sequence}-${index}`))
        const lacking = ids.filter((id) => !stored.has(id))
        if (lacking.length > 0)
          violations.push(`${crew}: ${lacking.length} events from ${lacking[0]} on are gone in silence`)
      } catch (error) {
        if (isTroupeError(error) && error.code.startsWith('JOURNAL_')) counts.reported += 1
        else violations.push(`${crew}: ${String(error)}`)
      }
    }
  } finally {
    await journal.close()
  }
  return { ...totalOf([]), runs: stage.ended, events, violations }
}

/** Cuts the last file of the journal's stream to a part of its length. Returns how many bytes are gone. */
function truncateJournal(node: NatsServer, { subjects }: WorkerStage, part: number): number {
  const folder = join(node.folder, 'js/jetstream/$G/streams', subjects.stream('journal'), 'msgs')
  const [file] = readdirSync(folder)
    .filter((name) => name.endsWith('.blk'))
    .map((name) => join(folder, name))
    .sort((one, other) => statSync(other).size - statSync(one).size)
  const { size } = statSync(file!)
  truncateSync(file!, Math.floor(size * part))
  return size - Math.floor(size * part)
}

/** Whether every stream has all its copies up to date in time; and, when asked, whether this node has all of the journal. */
async function healed(stage: WorkerStage, node: NatsServer, looks: boolean): Promise<boolean> {
  const until = performance.now() + healMs
  const isCurrent = async (of: (typeof streams)[number]): Promise<boolean> => {
    const info = await stage.link.manager.streams.info(stage.subjects.stream(of)).catch(() => null)
    const { leader = '', replicas = [] } = info?.cluster ?? {}
    return leader !== '' && replicas.length === 2 && replicas.every(({ current }) => current)
  }
  for (const of of streams)
    while (!(await isCurrent(of))) {
      if (performance.now() > until) return false
      await new Promise((resolve) => setTimeout(resolve, 200))
    }
  return looks ? ledBy(stage, node, until) : true
}

/** What a node calls itself. It is asked again until a time: JetStream may not answer there yet. */
async function nameOf(node: NatsServer, until: number): Promise<string | undefined> {
  for (;;) {
    try {
      const { connection } = await connectNats({ servers: node.url })
      const name = connection.info?.server_name
      await connection.close()
      return name
    } catch (error) {
      if (performance.now() > until) throw error
    }
  }
}

/** Makes a node lead the journal's stream; whether it has as many messages as there were before. */
async function ledBy(stage: WorkerStage, node: NatsServer, until: number): Promise<boolean> {
  const stream = stage.subjects.stream('journal')
  const name = await nameOf(node, until)
  const before = await stage.link.manager.streams.info(stream)
  for (;;) {
    const info = await stage.link.manager.streams.info(stream).catch(() => null)
    if (info?.cluster?.leader === name) {
      const gone = info!.state.last_seq - info!.state.first_seq + 1 - info!.state.messages
      return info!.state.messages >= before.state.messages && gone === 0
    }
    if (performance.now() > until) return false
    await stage.link.connection.request(`$JS.API.STREAM.LEADER.STEPDOWN.${stream}`, '').catch(() => undefined)
    await new Promise((resolve) => setTimeout(resolve, 1_000))
  }
}
