/**
 * Mail between crews under faults: crews that ask each other lie on several workers over a real server, and the worker that
 * has the sender or the receiver of a letter is killed with SIGKILL, in each window that a task and its answer pass, and so
 * is the server.
 */
import type { Runtime } from '../../runtime/index.js'
import { isTroupeError } from '../../runtime/errors.js'
import { type NatsServer, startNatsServer } from '../support/nats-server.js'
import { bundleChild } from './child-script.js'
import { killServer, leaseMs, startWorkers } from './failover-trials.js'
import type { Window } from './hooked-ports.js'
import type { CrewResult } from './kill-child.js'
import { draw, onceTools } from './kill-crews.js'
import { judgeKeys, judgeRequests, judgeStarts } from './kill-judge.js'
import { askOf, lanesOf, type MailAsk, mailCrews, type MailGroup, mailGroups } from './mail-crews.js'
import { judgeLeads, judgeMail, type MailVerdict } from './mail-judge.js'
import type { CrewStory } from './worker-judge.js'
import { idleShop, setStage, type WorkerProcess, type WorkerStage } from './worker-stage.js'

/** The windows that a task and its answer pass, and the one that the wire has for the acknowledgement of either. */
export const mailWindows = [
  'task written',
  'task sent',
  'task handed',
  'task delivered',
  'task taken',
  'answer written',
  'answer sent',
  'answer handed',
  'answer delivered',
  'answer taken',
  'mail taken',
] as const satisfies readonly Window[]

/** How many, of what. */
export interface MailTrialOptions {
  readonly seed: number
  /** Kills in each window. */
  readonly each: number
  /** Kills at random. */
  readonly random: number
  /** Kills of the server, at random. */
  readonly servers: number
  /** Kills in one namespace. */
  readonly together: number
  /** Groups of each kind in one namespace. */
  readonly pairs: number
  readonly rings: number
  readonly crowds: number
}

/** What came of the trials. */
export interface MailReport extends Omit<MailVerdict, 'violations'> {
  readonly kills: number
  readonly perWindow: Readonly<Record<string, number>>
  /** Tasks of the leads. */
  readonly runs: number
  /** Work that was given up, since three owners died over it. */
  readonly givenUp: number
  readonly records: number
  readonly events: number
  readonly violations: readonly string[]
  readonly ms: number
}

/** A run must have ended by then. */
const boundMs = 90_000
/** A hook that nothing passes by then is given up, and planned again. */
const hookMs = 10_000
/** Longer than any letter stays away before it comes again. */
const quietMs = 40_000

/** Kills workers, in as many namespaces as that takes. */
export async function runMailTrials(options: MailTrialOptions): Promise<MailReport> {
  const { seed, together, pairs, rings, crowds } = options
  const started = performance.now()
  const plan = plannedKills(options)
  const all = plan.length
  const groups = mailGroups({ pair: pairs, ring: rings, crowd: crowds })
  const perWindow: Record<string, number> = {}
  const stages: StageVerdict[] = []
  const broken: string[] = []
  await using script = await bundleChild('worker-child')
  for (let at = 0; plan.length > 0 && at < 2 + (2 * all) / together && broken.length < 5; at += 1) {
    const server = await startNatsServer()
    try {
      const name = `m${seed}-${at}`
      await using stage = await setStage({ name, script: script.path, servers: [server], lanes: 0, leaseMs, groups })
      await startWorkers(stage, 2 + (at % 2))
      const load = new MailLoad(stage.client, groups)
      await load.begin()
      for (let made = 0; made < together && plan.length > 0; made += 1) {
        const [kill] = plan.splice(0, 1) as [Kill]
        if (!(await killOnce(stage, server, kill, `${seed} ${at} ${made}`))) plan.push(kill)
      }
      stages.push(await finish(stage, load, name))
      for (const { window } of stage.faults) perWindow[window] = (perWindow[window] ?? 0) + 1
    } catch (error) {
      broken.push(error instanceof Error ? (error.stack ?? error.message) : String(error))
    } finally {
      await server.dispose()
    }
  }
  if (plan.length > 0) broken.push(`${plan.length} kills were never made, first ${plan[0]}`)
  const sum = (of: (stage: StageVerdict) => number): number => stages.reduce((total, stage) => total + of(stage), 0)
  return {
    kills: Object.values(perWindow).reduce((total, count) => total + count, 0),
    perWindow,
    runs: sum(({ runs }) => runs),
    givenUp: sum(({ givenUp }) => givenUp),
    records: sum(({ records }) => records),
    events: sum(({ events }) => events),
    letters: sum(({ letters }) => letters),
    returned: sum(({ returned }) => returned),
    delegations: sum(({ delegations }) => delegations),
    ends: added(stages.map(({ ends }) => ends)),
    violations: [...broken, ...stages.flatMap(({ violations }) => violations)],
    ms: Math.round(performance.now() - started),
  }
}

/** Counts by name, together. */
export function added(all: readonly Readonly<Record<string, number>>[]): Record<string, number> {
  const total: Record<string, number> = {}
  for (const [name, count] of all.flatMap((each) => Object.entries(each))) total[name] = (total[name] ?? 0) + count
  return total
}

/** Of a worker in a window, of a worker at random, or of the server. */
type Kill = (typeof mailWindows)[number] | 'random' | 'server'

/** In an order that follows from the seed. */
function plannedKills({ seed, each, random, servers }: MailTrialOptions): Kill[] {
  const hooked = mailWindows.flatMap((window) => Array<Kill>(each).fill(window))
  return [...hooked, ...Array<Kill>(random).fill('random'), ...Array<Kill>(servers).fill('server')]
    .map((kill, index) => ({ kill, order: draw(`${seed} order ${index}`, 1_000_000) }))
    .sort((one, other) => one.order - other.order)
    .map(({ kill }) => kill)
}

// ---------------------------------------------------------------------------------------------- the kills

/** Kills one worker, and starts another, or restarts the server. False when its hook was not passed. */
async function killOnce(stage: WorkerStage, server: NatsServer, kill: Kill, name: string): Promise<boolean> {
  await stage.calm()
  if (kill === 'server' || kill === 'random') await new Promise((r) => setTimeout(r, draw(`${name} delay`, 300)))
  if (kill === 'server') {
    await killServer(stage, server, 'server')
    return true
  }
  const victim = ownerOfMost(stage)
  if (kill === 'random') {
    stage.note({ fault: 'kill', window: 'random', worker: victim.name, at: Date.now() })
    victim.child.kill('SIGKILL')
  } else {
    const before = stage.hookedFaults().length
    victim.arm(kill, 'kill', 1 + draw(`${name} nth`, 6))
    const line = await stage.nextFault(before, hookMs)
    if (line === null) {
      victim.arm(null, 'kill')
      return false
    }
    stage.note({ fault: 'kill', window: kill, worker: victim.name, at: line.at })
  }
  stage.measure(victim.name, await victim.ended)
  await stage.startWorker()
  return true
}

/** The worker that has most of the crews: with two of them, sender and receiver lie apart or together, as it comes. */
function ownerOfMost({ workers, observer }: WorkerStage): WorkerProcess {
  const count = ({ name }: WorkerProcess): number =>
    [...observer.crews.values()].filter(({ owner }) => owner.split('.')[0] === name).length
  return [...workers.values()].sort((one, other) => count(other) - count(one))[0]!
}

// ---------------------------------------------------------------------------------------------- the load

/** Gives the crews of groups their tasks, one after the other, until `end`. */
class MailLoad {
  readonly asks: MailAsk[] = []
  readonly results: CrewResult[] = []
  readonly crews: readonly string[]
  readonly #client: Runtime
  readonly #groups: readonly MailGroup[]
  #isLoading = true
  #lanes: Promise<void>[] = []

  constructor(client: Runtime, groups: readonly MailGroup[]) {
    this.#client = client
    this.#groups = groups
    this.crews = groups.flatMap(({ crews }) => crews)
  }

  /** Begins once every crew is there. */
  async begin(): Promise<void> {
    const definitions = mailCrews(this.#groups, idleShop)
    const spawned = await Promise.all(
      this.crews.map(async (id) => [id, await this.#client.spawn(definitions.get(id)!, { id })] as const),
    )
    const handles = new Map(spawned)
    this.#lanes = this.#groups.flatMap((group) =>
      lanesOf(group).map(async (lane) => {
        for (let n = 0; this.#isLoading; n += 1) {
          const ask = askOf(group, lane, n)
          this.asks.push(ask)
          this.results.push(await endOf(ask, handles.get(ask.crew)!))
        }
      }),
    )
  }

  /** Gives no more; resolves when all that were given have ended. */
  async end(): Promise<void> {
    this.#isLoading = false
    await Promise.all(this.#lanes)
  }
}

type Handle = Awaited<ReturnType<Runtime['spawn']>>

async function endOf({ name, key, text }: MailAsk, handle: Handle): Promise<CrewResult> {
  const failure = (code: string, reason: string): CrewResult => ({
    ...{ id: name, code, reason, output: '', messages: [], modelCalls: 0 },
  })
  let timer: NodeJS.Timeout | undefined
  const hung = new Promise<CrewResult>((resolve) => {
    timer = setTimeout(() => resolve(failure('HUNG', `no end after ${boundMs} ms`)), boundMs)
  })
  const ended = handle.start(text, { key }).result.then(
    ({ output, messages, usage }): CrewResult => ({
      ...{ id: name, code: null, reason: '', output: String(output), messages, modelCalls: usage.modelCalls },
    }),
    (error: unknown) => {
      if (!isTroupeError(error)) throw error
      return failure(error.code, error.message)
    },
  )
  return Promise.race([ended, hung]).finally(() => clearTimeout(timer))
}

// ---------------------------------------------------------------------------------------------- the end

type StageVerdict = Omit<MailReport, 'kills' | 'perWindow' | 'ms'>

async function finish(stage: WorkerStage, load: MailLoad, name: string): Promise<StageVerdict> {
  await load.end()
  await stage.settle()
  // A lead's run may end before all that it asked for: what nobody waits for any more is called back.
  const crews = () => [...stage.observer.crews.values()]
  const isQuiet = (): boolean =>
    crews().every(({ open }) => open.size === 0) && crews().reduce((sum, each) => sum + each.sent - each.taken, 0) === 0
  const quiet = await stage.observer.until(isQuiet, quietMs)
  const letters = await stage.judgeLetters()
  const stories = new Map<string, CrewStory>()
  const stored = await stage.judge(load.crews, (crew, story) => void stories.set(crew, story))
  const givenUp = new Set(stored.givenUp.map(({ crew }) => crew))
  const mail = judgeMail(stories, givenUp)
  const ledger = load.crews.flatMap((crew) => stage.ledgerOf(crew))
  const violations = [
    ...(quiet ? [] : [`letters are on their way ${quietMs} ms after the last run ended`]),
    ...letters,
    ...stored.violations,
    ...mail.violations,
    ...judgeLeads(load.asks, load.results, stories, givenUp),
    ...judgeKeys({ ledger }),
    ...judgeStarts(ledger, (tool) => onceTools.has(tool)),
    ...judgeRequests(stage),
  ]
  return {
    ...mail,
    runs: load.asks.length,
    givenUp: stored.givenUp.length,
    records: stored.records,
    events: stored.events,
    violations: violations.map((violation) => `${name}: ${violation}`),
  }
}
