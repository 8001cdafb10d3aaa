/**
 * Mail between crews of one store under `kill -9`: sender and receiver live in the process that is killed, in each window
 * that a task and its answer pass there, and at random. The next process goes on, until all that was asked has ended.
 */
import { createLevelJournal } from '../../transport/level-journal.js'
import { bundleChild } from './child-script.js'
import type { HookedWindow } from './kill-child.js'
import { draw } from './kill-crews.js'
import { judgeKeys, judgeLost, judgeRequests, judgeStarts, type Kill } from './kill-judge.js'
import { CampaignError, openPlace, type Planned, readLedger, runChild } from './kill-trials.js'
import { answerMail, askOf, lanesOf, type MailGroup, mailGroups } from './mail-crews.js'
import { judgeLeads, judgeMail, type MailVerdict } from './mail-judge.js'
import { added } from './mail-trials.js'
import { type CrewStory, storyOf } from './worker-judge.js'

/** The windows that letters pass in one process: there is no wire. */
export const mailKillWindows = [
  'task written',
  'task handed',
  'task delivered',
  'task taken',
  'answer written',
  'answer handed',
  'answer delivered',
  'answer taken',
] as const satisfies readonly HookedWindow[]

/** What came of the trials. */
export interface MailKillReport extends Omit<MailVerdict, 'violations'> {
  readonly kills: number
  readonly campaigns: number
  readonly perWindow: Readonly<Record<string, number>>
  /** Tasks of the leads. */
  readonly runs: number
  readonly violations: readonly string[]
  readonly ms: number
}

/** A process must be done, or have been killed, by then. */
const boundMs = 60_000
/** Tasks that a lane is given. */
const asks = 6
/** Crews with work that was given up: the child is not killed over work that was through two crashes. */
const none: ReadonlySet<string> = new Set()
const groups = mailGroups({ pair: 3, ring: 2, crowd: 0 })
const crews = groups.flatMap((group: MailGroup) => group.crews)

/** Kills so often in each window, and at random. */
export async function runMailKills(options: {
  readonly seed: number
  readonly each: number
  readonly random: number
}): Promise<MailKillReport> {
  const { seed, each, random } = options
  const started = performance.now()
  const plan = plannedKills(seed, each, random)
  const most = 10 + plan.length
  const campaigns: CampaignVerdict[] = []
  const broken: string[] = []
  await using script = await bundleChild('kill-child')
  for (let at = 0; plan.length > 0 && at < most && broken.length < 5; at += 1) {
    try {
      campaigns.push(await runCampaign(`e${seed}-${at}`, plan, script.path))
    } catch (error) {
      if (!(error instanceof CampaignError)) throw error
      broken.push(error.message)
    }
  }
  if (plan.length > 0) broken.push(`${plan.length} kills were never done, first ${JSON.stringify(plan[0])}`)
  const kills = campaigns.flatMap((campaign) => campaign.kills)
  const sum = (of: (campaign: CampaignVerdict) => number): number =>
    campaigns.reduce((total, campaign) => total + of(campaign), 0)
  return {
    kills: kills.length,
    campaigns: campaigns.length,
    perWindow: added(kills.map(({ window }) => ({ [window]: 1 }))),
    runs: sum(({ runs }) => runs),
    letters: sum(({ letters }) => letters),
    returned: sum(({ returned }) => returned),
    delegations: sum(({ delegations }) => delegations),
    ends: added(campaigns.map(({ ends }) => ends)),
    violations: [...broken, ...campaigns.flatMap(({ violations }) => violations)],
    ms: Math.round(performance.now() - started),
  }
}

/** In an order that follows from the seed. */
function plannedKills(seed: number, each: number, random: number): Planned[] {
  const hooked = mailKillWindows.flatMap((window) => Array<HookedWindow | null>(each).fill(window))
  return [...hooked, ...Array<null>(random).fill(null)]
    .map((window, index) => ({ window, index, order: draw(`${seed} order ${index}`, 1_000_000) }))
    .sort((one, other) => one.order - other.order)
    .map(({ window, index }): Planned => {
      if (window !== null) return { how: 'hook', window, nth: 1 + draw(`${seed} nth ${index}`, 8) }
      return { how: 'random', early: false, delayMs: draw(`${seed} delay ${index}`, 150) }
    })
}

interface CampaignVerdict extends MailVerdict {
  readonly runs: number
  readonly kills: readonly Kill[]
}

/** Takes kills off the plan until all tasks have ended, or the plan has. */
async function runCampaign(name: string, plan: Planned[], script: string): Promise<CampaignVerdict> {
  await using place = await openPlace(answerMail)
  const files = await place.files('killed')
  const base = {
    ...files,
    baseURL: place.model.baseURL,
    crews: [],
    groups,
    asks,
    poisonous: false,
    boundMs,
    crashes: 2,
  }
  const durability = draw(`${name} durability`, 4) === 0 ? 'power' : 'process'
  const kills: Kill[] = []
  for (;;) {
    const [planned] = plan
    const hook = planned?.how === 'hook' ? planned : null
    const { says, killed } = await runChild(script, { ...base, durability, hook }, planned ?? null)
    if (killed !== null) {
      kills.push(killed)
      plan.shift()
      continue
    }
    if (says.type !== 'done') throw new CampaignError(name, kills, says)
    const asked = groups.flatMap((group) =>
      lanesOf(group).flatMap((lane) => Array.from({ length: asks }, (_, n) => askOf(group, lane, n))),
    )
    const stories = await storiesOf(files.store)
    const ledger = readLedger(files.ledger).filter(({ what }) => what !== 'kill')
    const mail = judgeMail(stories, none)
    const violations = [
      ...mail.violations,
      ...judgeLeads(asked, says.results, stories, none),
      ...judgeKeys({ ledger }),
      ...judgeStarts(ledger, () => true),
      ...judgeRequests(place),
      ...judgeLost({ lost: says.lost, kills }),
    ]
    return { ...mail, kills, runs: asked.length, violations: violations.map((violation) => `${name}: ${violation}`) }
  }
}

/** The store as somebody else reads it who opens it afterwards. */
async function storiesOf(store: string): Promise<Map<string, CrewStory>> {
  const journal = createLevelJournal({ path: store, durability: 'process' })
  await journal.open()
  try {
    const stories = new Map<string, CrewStory>()
    for (const crew of crews) stories.set(crew, await storyOf(journal, crew))
    return stories
  } finally {
    await journal.close()
  }
}
