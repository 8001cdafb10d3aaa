/**
 * `troupe ps`: the crews of a store, or the workers of a namespace and their crews; circuit breakers that keep somebody back.
 *
 * Owns: how workers, crews and breakers read in a list.
 * Does not own: reaching them (`show.ts`), what is told of them (`survey.ts` and `breakers.ts` of the runtime).
 */
import type { BreakerInfo } from '../breakers.js'
import type { CrewInfo } from '../runtime.js'
import type { ClusterInfo, WorkerInfo } from '../survey.js'
import { count, duration, exitCodes, oneLine, painter, plural, writeJson, writeLine, writeTable } from './output.js'
import { type StoreOptions, stateOf, withStore } from './show.js'

/** What each level of durability means, for people. */
const survives = {
  memory: 'nothing survives',
  process: 'survives kill -9, not a power cut',
  replicas: 'survives the loss of a minority of the servers',
  power: 'survives a power cut',
} as const

/** Lists the crews of a store, or the workers and crews of a namespace. */
export async function ps(options: StoreOptions): Promise<number> {
  return withStore(options, async (runtime) => {
    const cluster = await runtime.cluster()
    if (cluster !== null) tellCluster(cluster, options.json === true)
    const rows = [cluster === null ? ['CREW', 'COMMITS', 'STATE'] : ['CREW', 'COMMITS', 'WORKER', 'STATE']]
    for await (const crew of runtime.list()) {
      if (options.json === true) writeJson({ type: 'crew', ...crew })
      else rows.push(rowOf(crew, cluster))
    }
    if (options.json !== true) writeTable(rows)
    tellBreakers(await runtime.breakers(), options.json === true)
    return exitCodes.done
  })
}

/** Why a breaker keeps somebody back, for people. */
const reasons: Readonly<Record<BreakerInfo['why'], string>> = {
  failed: 'its calls failed',
  probing: 'one call finds out',
  asked: 'it asked for time',
  fault: 'it refuses for a reason that lasts: key, quota, or no such model',
}

function tellBreakers(breakers: readonly BreakerInfo[], json: boolean): void {
  if (json) for (const breaker of breakers) writeJson({ type: 'breaker', ...breaker })
  if (json || breakers.length === 0) return
  const rows = breakers.map(({ target, state, until, why }) => {
    const ms = until - Date.now()
    const left = ms > 0 ? duration(ms) : 'the next call'
    return [oneLine(target, 100), state === 'halfOpen' ? 'half-open' : state, left, reasons[why]]
  })
  writeLine('', process.stdout)
  writeTable([['BREAKER', 'STATE', 'UNTIL', 'WHY'], ...rows])
}

function rowOf(crew: CrewInfo, cluster: ClusterInfo | null): string[] {
  const { id, sequence, owner, letters = 0, lagMs = null, eventsBehind = null, outbox } = crew
  const waits =
    letters === 0 ? '' : `${plural(letters, 'letter')} waiting${lagMs === null ? '' : ` ${duration(lagMs)}`}`
  const behind = (eventsBehind ?? 0) === 0 ? '' : `events ${plural(eventsBehind!, 'commit')} behind`
  const state = [stateOf(crew), outbox === 0 ? '' : `${plural(outbox, 'letter')} to send`, waits, behind]
  const shown = state.filter((each) => each !== '').join(', ')
  return [id, count(sequence), ...(cluster === null ? [] : [owner ?? 'nobody']), shown]
}

function tellCluster(cluster: ClusterInfo, json: boolean): void {
  const { workers, ...rest } = cluster
  if (json) {
    writeJson({ type: 'cluster', ...rest })
    for (const worker of workers) writeJson({ type: 'worker', ...worker })
    return
  }
  const refused = cluster.refused === 0 ? '' : ` · ${plural(cluster.refused, 'refused letter')}`
  writeLine(painter(process.stdout)('dim', `${describe(cluster)}${refused}`), process.stdout)
  writeTable([['WORKER', 'EPOCH', 'SINCE', 'PARTITIONS', 'CREWS'], ...workers.map(workerRow)])
  writeLine('', process.stdout)
}

/** Server and durability in one line. */
export function describe({
  server,
  durability,
  replicas,
}: Pick<ClusterInfo, 'server' | 'durability' | 'replicas'>): string {
  const copies = replicas === 1 ? '1 copy' : `${replicas} copies`
  return `nats-server ${server} · ${copies} of the journal, ${survives[durability]}`
}

function workerRow({ worker, epoch, since, partitions, crews, tools }: WorkerInfo): string[] {
  const names = Object.keys(crews).map((name) => `${name}@${crews[name]?.slice(0, 8)}`)
  const time = new Date(since).toISOString().slice(0, 19).replace('T', ' ')
  return [
    worker,
    String(epoch),
    time,
    String(partitions),
    oneLine([...names, ...tools.map((tool) => `tool:${tool}`)].join(' ') || 'none: it leaves', 200),
  ]
}
