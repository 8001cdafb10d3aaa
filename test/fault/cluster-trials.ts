/**
 * A cluster of three NATS servers with three copies of everything: any node is killed under load, and some come back with
 * a truncated file of the journal's stream.
 */
import { readdirSync, statSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { connectNats } from '../../transport/nats-connection.js'
import { type NatsServer, startNatsCluster } from '../support/nats-server.js'
import { bundleChild } from './child-script.js'
import { startWorkers } from './failover-trials.js'
import { draw } from './kill-crews.js'
import { setStage, type StageReport, type WorkerStage } from './worker-stage.js'

/** What came of the trials. */
export interface ClusterReport extends StageReport {
  readonly kills: number
  /** Nodes that came back with a truncated file, and what became of it. */
  readonly truncations: number
  readonly refused: number
  /** Those that had all messages again, as many as the others, and led the stream then. */
  readonly healed: number
  readonly ms: number
}

const streams = ['journal', 'content', 'mail', 'events'] as const
/** A node that is back has what the others have by then. */
const healMs = 60_000

/** Kills nodes, some of them with a truncated file at their return. @param lanes crews at work at once */
export async function runClusterFaults(options: {
  readonly seed: number
  readonly kills: number
  readonly truncations: number
  readonly lanes: number
}): Promise<ClusterReport> {
  const { seed, kills, truncations, lanes } = options
  const started = performance.now()
  const found: string[] = []
  const counts = { refused: 0, healed: 0 }
  await using script = await bundleChild('worker-child')
  const nodes = await startNatsCluster(3)
  try {
    await using stage = await setStage({
      name: `c${seed}`,
      script: script.path,
      servers: nodes,
      lanes,
      leaseMs: 2_000,
      replicas: 3,
      slower: 5,
    })
    await startWorkers(stage, 3)
    stage.load()
    for (let trial = 0; trial < kills + truncations; trial += 1) {
      await stage.calm()
      const node = nodes[draw(`${seed} node ${trial}`, nodes.length)]!
      const fault = stage.note({ fault: 'server', window: 'node', worker: '', at: Date.now() })
      await node.kill()
      // Load goes on without it.
      const runs = stage.ended
      await stage.observer.until(() => stage.ended > runs + 2, 30_000)
      const cut = trial < kills ? null : truncateJournal(node, stage, draw(`${seed} cut ${trial}`, 900) / 1_000)
      const refused = await node.start().then(
        () => false,
        () => true,
      )
      if (refused) {
        if (cut === null) found.push(`node ${node.port} did not come back`)
        counts.refused += 1
        break
      }
      if (!(await healed(stage, node, cut !== null))) found.push(`node ${node.port} does not have all, cut ${cut}`)
      else if (cut !== null) counts.healed += 1
      fault.until = Date.now() + 4_000
    }
    const report = await stage.finish()
    const violations = [...found, ...report.violations]
    return { ...report, kills, truncations, ...counts, violations, ms: Math.round(performance.now() - started) }
  } finally {
    for (const node of nodes) await node.dispose()
  }
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
