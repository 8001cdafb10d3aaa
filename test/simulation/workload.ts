/**
 * The work of a simulation: crews with their limits, and what their models say.
 *
 * A crew has a chief that works through tools of all classes and delegates to a scout and a clerk; the clerk delegates
 * too, and in some crews each may hand over. Crews come from a fixed set of variants, so that each is prepared once in a process.
 */
import { z } from 'zod'
import type { Budget } from '../../runtime/budget.js'
import { parallel, sequential } from '../../runtime/flow.js'
import { budgetNumbered, firstPool, hasPool, poolShard } from './pools.js'
import {
  type Agent,
  type Crew,
  defineAgent,
  defineCrew,
  defineTool,
  type HistoryMessage,
} from '../../runtime/define.js'
import type { ModelPort, Price, RawToolCall } from '../../runtime/ports.js'
import { prepareCrew, type PreparedCrew } from '../../runtime/prepared-crew.js'
import type { Supervision } from '../../runtime/supervision.js'
import { rounding } from './rounds.js'
import type { SeededRandom } from './seeded-random.js'
import { SeededRandom as Random } from './seeded-random.js'

/** Number of different crews. */
export const variants = 240

const input = z.object({ topic: z.string().min(1).max(40) })
const never = () => ''
const notAsked = () => Promise.resolve({ done: null } as const)
const look = defineTool({ name: 'look', description: '', input, effect: 'pure', timeoutMs: 2_000, run: never })
const save = defineTool({
  ...{ name: 'save', description: '', input, effect: 'idempotent', timeoutMs: 4_000, retries: 1, run: never },
})
const pay = defineTool({ name: 'pay', description: '', input, effect: 'once', timeoutMs: 4_000, run: never })
/** The same, and a person is asked before. */
const askedPay = defineTool({
  ...{ name: 'pay', description: '', input, effect: 'once', timeoutMs: 4_000, run: never },
  ...{ approval: true, approvalMs: 20_000 },
})
const ship = defineTool({
  ...{ name: 'ship', description: '', input, effect: 'once', timeoutMs: 3_000, run: never, verify: notAsked },
})
const output = z.object({ text: z.string() })

const prices: Readonly<Record<string, Price | null>> = {
  'sim:cheap': { input: 500_000, output: 1_500_000 },
  'sim:dear': { input: 3_000_000, output: 15_000_000 },
  'sim:odd': null,
}

/** What a deployment lists; null for one without a price. */
export function priceOf(deployment: string): Price | null {
  return prices[deployment] ?? null
}

const listing: ModelPort = {
  call: () => Promise.reject(new Error('only lists prices')),
  price: priceOf,
  check: () => undefined,
  close: () => Promise.resolve(),
}

/** A crew that is ready to run. */
export interface Variant {
  readonly prepared: PreparedCrew
  /** Whether its budget lets every task end. */
  readonly ample: boolean
}

const prepared = new Map<number, Variant>()

/** Crews from here on are those before with delegates in other crews. */
export const withMail = 1_000
/** Crews from here on are those before whose user has a say in their rounds. */
export const withRounds = 2_000
/** Crews from here on are those before with a budget that they share. */
export const withPool = 4_000
/** The same crews, in the same row: what is shared, who is asked, whose say it is. */
export const rowOf = (index: number): number => Math.floor(index / withMail) * withMail
/** Whether a crew has delegates in others. */
export function hasMail(index: number): boolean {
  return index % withRounds >= withMail
}
/** Whether a crew's user has a say in its rounds. */
const hasRounds = (index: number): boolean => index % withPool >= withRounds
/** Whether a crew spends from a budget that crews share. */
export const sharesBudget = (index: number): boolean => index >= withPool
/** Whether crews say something to each other, or to what they share. */
export function hasOthers(index: number): boolean {
  return hasMail(index) || sharesBudget(index)
}
/** The crews that ask each other, and one that there is not. */
const away = ['a', 'm', 'x'].flatMap((crew) => [`${crew}/agent/scout`, `${crew}/agent/clerk`])

/** One of the crews. Even ones have an ample budget. */
export function variantOf(index: number): Variant {
  const known = prepared.get(index)
  if (known !== undefined) return known
  const ample = index % 2 === 0
  const crew =
    index >= firstPool ? budgetNumbered(index) : crewOf(new Random((index % withMail) * 7_919 + 1), index, ample)
  const variant = { prepared: prepareCrew(crew, listing), ample }
  prepared.set(index, variant)
  return variant
}

function budgetOf(random: SeededRandom): Budget {
  const kind = random.pick(['usd', 'usd', 'tokens', 'modelCalls', 'toolCalls', 'mixed'] as const)
  const all: Budget = {
    usd: random.int(5, 90) / 1_000,
    tokens: random.int(1_500, 14_000),
    modelCalls: random.int(2, 14),
    toolCalls: random.int(2, 14),
  }
  if (kind === 'mixed') return all
  return { [kind]: all[kind] }
}

/** Of the crews, by their number. */
const supervisions: readonly (Supervision | undefined)[] = [
  ...[undefined, { restart: 'fresh' } as const, { restart: 'resume', intensity: 2, periodMs: 20_000 } as const],
  ...[undefined, { restart: 'fresh', intensity: 1, then: 'escalate' } as const],
  ...[{ restart: 'resume' } as const, { restart: 'fresh' } as const],
]

function crewOf(random: SeededRandom, index: number, ample: boolean): Crew {
  const models = () =>
    random.pick([['sim:cheap'], ['sim:dear'], ['sim:cheap', 'sim:dear'], ['sim:dear', 'sim:odd', 'sim:cheap']])
  const paying = index % 4 === 1 || index % 4 === 2 ? pay : askedPay
  const settings = () => ({ maxOutputTokens: random.pick([200, 400, 1_200]) })
  const instructions = (name: string) =>
    random.chance(0.8) ? `You are the ${name}.` : () => `You are the ${name}, called.`
  // By the crew's number, so that nothing else of it changes with them.
  const asks: Budget = index % 12 === 7 || index % 12 === 11 ? { onExhausted: 'ask', askMs: 15_000 } : {}
  const soft: Budget = index % 12 === 1 || index % 12 === 9 ? { mode: 'soft' } : {}
  const own = (): { budget?: Budget } =>
    random.chance(0.4) ? { budget: { ...budgetOf(random), ...asks, ...soft } } : {}
  const attempts = () => random.int(2, 4)
  // By the crew's number, like the asking budgets.
  const hands = index % 12 === 5 || index % 12 === 8
  const users = (messages: readonly HistoryMessage[]) => messages.filter(({ role }) => role === 'user')
  const shaped = random.chance(0.3) ? { output } : {}
  const said = (name: string) => (hasRounds(index) ? rounding(name) : {})
  const agents = {
    chief: defineAgent({
      model: models(),
      instructions: instructions('chief'),
      tools: [look, save, paying, ship],
      delegates: ['scout', 'clerk', ...(hasMail(index) ? away : [])],
      settings: settings(),
      limits: { rounds: ample ? random.int(7, 14) : random.int(4, 9), attempts: attempts() },
      continue: random.chance(0.15),
      ...shaped,
      ...said('chief'),
      ...(hands ? { handoffs: [index % 24 < 12 ? 'closer' : { agent: 'closer', history: users }] } : {}),
    }),
    scout: defineAgent({
      model: models(),
      instructions: instructions('scout'),
      tools: [look, paying],
      settings: settings(),
      limits: { rounds: random.int(2, 5) + (hasRounds(index) ? 3 : 0), attempts: attempts() },
      ...said('scout'),
      ...(ample ? {} : own()),
    }),
    clerk: defineAgent({
      model: models(),
      instructions: instructions('clerk'),
      tools: [save, ship],
      delegates: ['scout', ...(hasMail(index) ? away : [])],
      settings: settings(),
      limits: { rounds: random.int(2, 5), attempts: attempts(), callsPerRound: random.pick([2, 64]) },
      ...said('clerk'),
      ...(ample ? {} : own()),
      ...(hands ? { handoffs: ['scout'] } : {}),
    }),
    closer: closer(shaped, index),
  }
  const budget = ample ? (random.chance(0.5) ? { usd: 900 } : {}) : budgetOf(random)
  const supervision = supervisions[index % supervisions.length]
  const rest = {
    budget: {
      ...budget,
      ...(index % 12 === 7 ? asks : {}),
      ...(sharesBudget(index) ? { from: poolShard } : {}),
      ...soft,
      ...(random.chance(0.25) ? { wallMs: random.int(8_000, 90_000) } : {}),
      per: random.chance(0.2) ? 'crew' : 'run',
    },
    limits: { delegates: random.int(1, 4), depth: random.int(1, 3) },
    minOutputTokens: random.pick([32, 100, 200]),
    ...(supervision === undefined ? {} : { supervision }),
  } as const
  const name = `crew-${index}`
  // By the crew's number, like the asking budgets.
  if (index % 12 !== 3 && index % 12 !== 10) return defineCrew({ name, agents, lead: 'chief', ...rest })
  const join = index % 24 < 12 ? 'all' : 'first'
  return defineCrew({ name, agents, flow: sequential(parallel(['scout', 'clerk'], { join }), 'chief'), ...rest })
}

/** Who goes on for the chief, and gives it back. */
function closer(shaped: { readonly output?: typeof output }, index: number): Agent<unknown> {
  return defineAgent({
    ...{ model: ['sim:cheap', 'sim:dear'], tools: [look, ship], delegates: ['scout'], handoffs: ['chief'] },
    instructions: index % 2 === 0 ? 'You are the closer.' : () => 'You are the closer, called.',
    limits: { rounds: 6 },
    settings: { maxOutputTokens: 400 },
    continue: index % 24 === 5,
    ...shaped,
  })
}

/** What one agent means to do with one task. */
export interface Script {
  readonly agent: string
  /** Model replies until the answer. */
  readonly rounds: number
  /** Messages of the model that the conversation had at the beginning. */
  readonly base: number
  /** Makes the same calls over and over. */
  readonly stubborn: boolean
}

/** Draws a script. The chief's first two rounds have a `once` call and a delegation. */
export function drawScript(random: SeededRandom, agent: string, base: number, stubborn = false): Script {
  const rounds = agent === 'chief' ? random.int(4, 8) : random.int(1, 3)
  // For longer than anybody may.
  return { agent, base, stubborn, rounds: stubborn ? 24 : rounds }
}

const kinds = {
  chief: { look: 3, save: 3, pay: 2, ship: 2, scout: 2, clerk: 1 },
  scout: { look: 3, save: 0, pay: 1, ship: 0, scout: 0, clerk: 0 },
  clerk: { look: 0, save: 2, pay: 0, ship: 2, scout: 1, clerk: 0 },
} as const

/** In crews that ask each other. */
const awayKinds = { a_scout: 2, m_scout: 2, a_clerk: 2, m_clerk: 2, x_scout: 0.2 }

/**
 * What is added to the numbers of a seed's crews: whether they ask each other, and whether their users have a say in their
 * rounds. Not of the seed's own row of draws: seeds with neither stay what they were.
 */
export function kindOf(seed: number): number {
  return (
    (new Random(seed + 0x6d61696c).chance(0.25) ? withMail : 0) +
    (new Random(seed + roundsRow).chance(0.2) ? withRounds : 0) +
    (hasPool(seed) ? withPool : 0)
  )
}

/** A row of draws in which no seed that is kept for what it found has a say in its rounds. */
const roundsRow = 0x726f8d15

/** A crew whose tasks all end in an answer, as far as it is up to its budget. */
export function sureVariant(random: SeededRandom): number {
  for (let index = 2 * random.int(0, 20); ; index = (index + 2) % variants)
    if (variantOf(index).prepared.data.wallMs === null) return index
}

/**
 * Whether the models of a seed make the same calls over and over. Not of the seed's own row of draws, and so that no seed that
 * is kept for what it found has it.
 */
export function isStubborn(seed: number): boolean {
  return new Random(seed + 0x6c6f6f95).chance(0.12)
}

/** Topic of a call that is made again and again. */
export function isAgain(topic: string): boolean {
  return topic.startsWith('again')
}

/** The calls of a reply; none for the answer. */
export function callsOf(
  random: SeededRandom,
  script: Script,
  round: number,
  invalid: number,
  mail = false,
  handoffs: readonly string[] = [],
): RawToolCall[] {
  if (round >= script.rounds - 1) return []
  if (script.stubborn && round > 1 && random.chance(0.9)) return [callAgain(random, script.agent, round)]
  const own = kinds[script.agent as keyof typeof kinds] ?? kinds.scout
  const weights = mail && script.agent !== 'scout' ? { ...own, ...awayKinds } : own
  const calls: RawToolCall[] = []
  const add = (name: string) => calls.push(callOf(random, name, invalid))
  if (script.agent === 'chief' && round === 0) add(random.pick(['pay', 'ship']))
  if (script.agent === 'chief' && round === 1) add(random.pick(['scout', 'scout', 'clerk']))
  const more = random.pick([0, 0, 1, 1, 2, 3])
  for (let index = calls.length === 0 ? -1 : 0; index < more; index++) add(random.weighted(weights))
  if (calls.length > 1 && random.chance(invalid / 4)) calls.push({ ...calls[0]! })
  // Behind the first two rounds, which every chief makes.
  for (const name of round > 1 || script.agent !== 'chief' ? handoffs : [])
    if (random.chance(0.3)) calls.push(handoffTo(name))
  return calls
}

let counter = 0

/** Begins the numbering of calls anew: a seed starts with it. */
export function resetCalls(): void {
  counter = 0
}

/** One of a cycle of two, mostly. */
function callAgain(random: SeededRandom, agent: string, round: number): RawToolCall {
  const topic = `again ${random.chance(0.1) ? random.int(0, 9) : round % 2}`
  const name = agent === 'clerk' ? 'save' : 'look'
  return { id: `call_${(counter += 1)}`, name, arguments: JSON.stringify({ topic }) }
}

function handoffTo(name: string): RawToolCall {
  return { id: `call_${(counter += 1)}`, name, arguments: '{}' }
}

function callOf(random: SeededRandom, name: string, invalid: number): RawToolCall {
  const id = `call_${(counter += 1)}`
  const delegate = /(scout|clerk)$/.test(name)
  const given = delegate ? JSON.stringify({ task: `do ${id}` }) : JSON.stringify({ topic: id })
  if (!random.chance(invalid)) return { id, name, arguments: given }
  return random.pick<RawToolCall>([
    { id, name: 'unheard', arguments: given },
    { id, name, arguments: given.slice(0, -2) },
    { id, name, arguments: '{"topic":7}' },
    { id, name, arguments: '' },
    { id, name: `${name}<|channel|>commentary`, arguments: given },
    { id, name, arguments: `\`\`\`json\n${given}\n\`\`\`` },
  ])
}
