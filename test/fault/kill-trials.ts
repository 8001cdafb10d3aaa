/**
 * Kills a process with SIGKILL while it runs crews, again and again on the same store, until they are done; and lets the
 * judge compare with a twin that nobody killed. The model is a server in this process and outlives every kill.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { bundleChild } from './child-script.js'
import type { ChildConfig, ChildSays, CrewResult, HookedWindow } from './kill-child.js'
import { type CrewPlan, draw, type LedgerLine, type PoisonKind } from './kill-crews.js'
import { startKillModel } from './kill-model.js'
import { type Campaign, judge, type Kill, type LostCall } from './kill-judge.js'

const root = join(import.meta.dirname, '../..')
const hookedWindows: readonly HookedWindow[] = ['before append', 'append to dispatch', 'in flight', 'outcome to append']
/** A process must be done, or have been killed, by then. */
const boundMs = 60_000

const noGroups = { groups: [], asks: 0 } as const

/** One kill that is still to be done. */
export type Planned =
  | { readonly how: 'hook'; readonly window: HookedWindow; readonly nth: number }
  /** From outside, so long after the runtime was ready, or (`early`) after it began to open its store. */
  | { readonly how: 'random'; readonly early: boolean; readonly delayMs: number }

/** What came of the trials. */
export interface KillReport {
  /** Kills that were done. */
  readonly trials: number
  readonly campaigns: number
  readonly runs: number
  readonly perWindow: Readonly<Record<string, number>>
  /** `once` calls whose outcome was lost, and messages that told so to a lead. */
  readonly lost: number
  readonly toldUnknown: number
  /** Executions of tools that were repeats of another process's. */
  readonly repeats: number
  readonly exhausted: number
  readonly violations: readonly string[]
  readonly ms: number
}

/** Kills `kills` times: at least an eighth of them in each window, the rest at random times. */
export async function runKillTrials(options: { readonly kills: number; readonly seed: number }): Promise<KillReport> {
  const { kills, seed } = options
  const started = performance.now()
  const plan = plannedKills(kills, seed)
  const perWindow: Record<string, number> = {}
  const campaigns: Campaign[] = []
  const broken: string[] = []
  await using script = await bundleChild('kill-child')
  // A few campaigns in which nobody gets killed are bad luck; many are a harness that does not work.
  for (let at = 0; plan.length > 0 && at < 10 + kills && broken.length < 5; at += 1) {
    try {
      const campaign = await runCampaign(`s${seed}-${at}`, plan, script.path)
      campaigns.push(campaign)
      for (const { window } of campaign.kills) perWindow[window] = (perWindow[window] ?? 0) + 1
    } catch (error) {
      if (!(error instanceof CampaignError)) throw error
      broken.push(error.message)
    }
  }
  if (plan.length > 0) broken.push(`${plan.length} kills were never done, first ${JSON.stringify(plan[0])}`)
  return {
    trials: campaigns.reduce((sum, { kills: own }) => sum + own.length, 0),
    campaigns: campaigns.length,
    runs: campaigns.reduce((sum, { crews }) => sum + crews.length, 0),
    perWindow,
    lost: campaigns.reduce((sum, { lost }) => sum + lost.length, 0),
    toldUnknown: campaigns.reduce((sum, { results }) => sum + toldUnknown(results), 0),
    repeats: campaigns.reduce((sum, { ledger }) => sum + repeats(ledger), 0),
    exhausted: campaigns.reduce((sum, { results }) => sum + results.filter(({ code }) => code !== null).length, 0),
    violations: [...broken, ...campaigns.flatMap(judge)],
    ms: Math.round(performance.now() - started),
  }
}

function toldUnknown(results: readonly CrewResult[]): number {
  const messages = results.flatMap((result) => result.messages)
  return messages.filter(({ content }) => typeof content === 'string' && content.startsWith('The outcome of this'))
    .length
}

function repeats(ledger: readonly LedgerLine[]): number {
  const starts = ledger.filter(({ what }) => what === 'start')
  return starts.length - new Set(starts.map(({ key }) => key)).size
}

/** The kills in a shuffled order that follows from the seed. */
function plannedKills(kills: number, seed: number): Planned[] {
  const each = Math.max(3, Math.ceil(kills / 8))
  const windows: (HookedWindow | null)[] = hookedWindows.flatMap((window) => Array<HookedWindow>(each).fill(window))
  while (windows.length < kills) windows.push(null)
  return windows
    .map((window, index) => ({ window, index, order: draw(`${seed} order ${index}`, 1_000_000) }))
    .sort((a, b) => a.order - b.order)
    .map(({ window, index }): Planned => {
      const early = draw(`${seed} early ${index}`, 4) === 0
      const long = window === 'before append' || window === 'append to dispatch'
      if (window !== null) return { how: 'hook', window, nth: 1 + draw(`${seed} nth ${index}`, long ? 60 : 30) }
      return { how: 'random', early, delayMs: draw(`${seed} delay ${index}`, early ? 80 : 250) }
    })
}

// ---------------------------------------------------------------------------------------------- one campaign

const kinds = ['plain', 'once', 'plain', 'once', 'tight', 'plain', 'once', 'tight'] as const

function crewsOf(name: string): CrewPlan[] {
  return kinds.map((kind, index) => {
    const id = `${name}-${kind}-${index}`
    return { id, kind, rounds: kind === 'tight' ? 40 : 5 + draw(`${id} rounds`, 6) }
  })
}

/** A process that neither finished nor was killed by us: it hung, refused its store, or ended with an error. */
export class CampaignError extends Error {
  constructor(name: string, kills: readonly Kill[], says: ChildSays) {
    super(
      `${name}: after kills in [${kills.map(({ window }) => window).join(', ')}]: ${JSON.stringify(says).slice(0, 4_000)}`,
    )
  }
}

/** Takes kills off the plan until the crews are done, or the plan is. */
async function runCampaign(name: string, plan: Planned[], script: string): Promise<Campaign> {
  await using place = await openPlace()
  const crews = crewsOf(name)
  const base = { ...noGroups, baseURL: place.model.baseURL, crews, poisonous: false, boundMs, crashes: 2 }
  const durability = draw(`${name} durability`, 4) === 0 ? 'power' : 'process'
  const twinFiles = await place.files('twin')
  const twinEnds = runChild(script, { ...base, ...twinFiles, durability, hook: null }, null)
  const files = await place.files('killed')
  const kills: Kill[] = []
  for (;;) {
    const [planned, next] = plan
    const hook = planned?.how === 'hook' ? planned : null
    // An early kill follows a crash without progress: what is open then must not have been through one before.
    const crashes = next?.how === 'random' && next.early ? 1 : 2
    const ended = await runChild(script, { ...base, ...files, durability, hook, crashes }, planned ?? null)
    if (ended.killed !== null) {
      kills.push(ended.killed)
      plan.shift()
      continue
    }
    const { says } = ended
    const twin = await twinEnds
    if (says.type !== 'done') throw new CampaignError(name, kills, says)
    if (twin.says.type !== 'done') throw new CampaignError(`${name}, twin`, [], twin.says)
    return {
      name,
      crews,
      kills,
      results: says.results,
      lost: says.lost,
      twin: twin.says.results,
      ledger: readLedger(files.ledger),
      twinLedger: readLedger(twinFiles.ledger),
      requests: place.requests,
    }
  }
}

/** A folder and a model for one campaign. @param answerOf what the model says @default as in the kill test */
export async function openPlace(answerOf?: Parameters<typeof startKillModel>[1]) {
  const folder = await mkdtemp(join(tmpdir(), 'troupe-kill-'))
  const { model, requests } = await startKillModel(1, answerOf)
  return {
    model,
    requests,
    files: async (name: string) => {
      const store = join(folder, name)
      await mkdir(store)
      return { store, ledger: join(folder, `${name}.ledger`) }
    },
    [Symbol.asyncDispose]: async () => {
      await model.close()
      await rm(folder, { recursive: true, force: true })
    },
  }
}

/** Everything that tools wrote. */
export function readLedger(path: string): LedgerLine[] {
  const lines = readFileSync(path, 'utf8').split('\n').filter(Boolean)
  return lines.map((line) => JSON.parse(line) as LedgerLine)
}

// ---------------------------------------------------------------------------------------------- one process

/** How a child ended. */
export interface Ended {
  /** The last thing that it said; `failed` when that was no end. */
  readonly says: ChildSays
  readonly killed: Kill | null
}

/** Runs a child to its end, or to its death by `planned`. */
export async function runChild(script: string, config: ChildConfig, planned: Planned | null): Promise<Ended> {
  const child = spawn(process.execPath, [script, JSON.stringify(config)], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const pid = child.pid ?? 0
  let errors = ''
  child.stderr.on('data', (data: Buffer) => (errors += data.toString()))
  // It has a bound of its own; this one is for a process that does not even keep that.
  const bound = setTimeout(() => child.kill('SIGKILL'), config.boundMs + 15_000)
  let shot = false
  let says: ChildSays = { type: 'failed', reason: 'it said nothing' }
  const closed = new Promise<void>((resolve) => child.once('close', () => resolve()))
  for await (const line of createInterface({ input: child.stdout })) {
    says = parseLine(line) ?? says
    if (planned?.how === 'random' && says.type === (planned.early ? 'opening' : 'armed'))
      setTimeout(() => (shot = shoot(child)), planned.delayMs)
  }
  await closed
  clearTimeout(bound)
  const killedBy = child.signalCode
  const hooked = readLedger(config.ledger).some((line) => line.what === 'kill' && line.pid === pid)
  const poisoned = config.poisonous && killedBy === 'SIGKILL'
  const expected = shot || hooked || poisoned
  // Killed after its last word: it was done.
  if (killedBy === 'SIGKILL' && expected && says.type !== 'done') {
    const window = planned?.how === 'hook' ? planned.window : planned?.early === true ? 'random, early' : 'random'
    return { says, killed: { pid, at: Date.now(), window } }
  }
  if (says.type === 'opening' || says.type === 'armed')
    says = { type: 'failed', reason: `it ended by ${killedBy ?? child.exitCode} with: ${errors.slice(-2_000)}` }
  return { says, killed: null }
}

function shoot(child: ChildProcess): boolean {
  return child.exitCode === null && child.signalCode === null && child.kill('SIGKILL')
}

/** A line that the kill cut is none. */
function parseLine(line: string): ChildSays | null {
  try {
    return JSON.parse(line) as ChildSays
  } catch {
    return null
  }
}

// ---------------------------------------------------------------------------------------------- poison

/** What came of crews of which one has a tool that kills its process. */
export interface PoisonReport {
  readonly kills: number
  /** Executions of the poisonous tool. */
  readonly starts: number
  /** What the model was told of the call. */
  readonly told: string
  readonly violations: readonly string[]
  readonly lost: readonly LostCall[]
}

/** Runs crews beside one whose tool kills the process each time, until all are done. */
export async function runPoison(kind: PoisonKind, seed: number): Promise<PoisonReport> {
  await using bundle = await bundleChild('kill-child')
  const script = bundle.path
  await using place = await openPlace()
  const name = `p${seed}`
  // The poisonous crew is the last one to start, so that each process gets something done before it dies.
  const crews: CrewPlan[] = [
    ...(['plain', 'once', 'plain'] as const).map((plain, index) => ({
      id: `${name}-${index}`,
      kind: plain,
      rounds: 12,
    })),
    { id: `${name}-${kind}`, kind, rounds: 4 },
  ]
  const base = {
    ...noGroups,
    ...({ baseURL: place.model.baseURL, crews, boundMs, crashes: 2, durability: 'process', hook: null } as const),
  }
  const twinFiles = await place.files('twin')
  const twin = await runChild(script, { ...base, ...twinFiles, poisonous: false }, null)
  const files = await place.files('killed')
  const kills: Kill[] = []
  let ended = await runChild(script, { ...base, ...files, poisonous: true }, null)
  for (; ended.killed !== null && kills.length < 10; ) {
    kills.push(ended.killed)
    ended = await runChild(script, { ...base, ...files, poisonous: true }, null)
  }
  if (twin.says.type !== 'done' || ended.says.type !== 'done') throw new CampaignError(kind, kills, ended.says)
  const { results, lost } = ended.says
  const ledger = readLedger(files.ledger)
  const campaign = { name, kills, results, lost, ledger, requests: place.requests }
  const compared = kind === 'poison-twice' ? crews : crews.slice(0, -1)
  const twinLedger = readLedger(twinFiles.ledger)
  const violations = judge({ ...campaign, crews: compared, twin: twin.says.results, twinLedger })
  const poisoned = results.at(-1)
  if (poisoned?.code !== null) violations.push(`the poisoned crew ended with ${poisoned?.code}: ${poisoned?.reason}`)
  const told = poisoned?.messages.find(({ content }) => /given up|unknown/.test(String(content)))?.content
  const starts = ledger.filter(({ tool, what }) => tool === kind && what === 'start').length
  return { kills: kills.length, starts, told: String(told), violations, lost }
}
