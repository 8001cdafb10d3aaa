/**
 * Crews that delegate to each other by address: who asks whom, what their model says, what an answer must be. As in the
 * kill test everything follows from a task's name, but for one thing: of crews that would wait for each other one is
 * refused, and which one that is depends on who came first.
 *
 * A lead asks its neighbour's helper, some times a round; a helper works with one tool, and may ask the next crew's
 * helper before it answers, as many crews on as the task says: in a ring it comes back to the crew that waits for it.
 */
import { lastUser, type ScriptedAnswer, type ScriptedRequest } from '../../actors/scripted-model.js'
import { type Crew, defineAgent, defineCrew } from '../../runtime/index.js'
import { draw, hash, toolsOf, type Workshop } from './kill-crews.js'

/**
 * `pair`: two crews ask each other, both at once. `ring`: of three crews each asks the next one, one at a time. `crowd`: the
 * same, all at once, so that runs that know nothing of each other wait in a ring until their patience ends.
 */
export type MailGroupKind = 'pair' | 'ring' | 'crowd'

/** Crews that ask each other. */
export interface MailGroup {
  readonly kind: MailGroupKind
  /** Each asks the one behind it, the last one the first. */
  readonly crews: readonly string[]
}

/** A task for a crew's lead. */
export interface MailAsk {
  readonly group: MailGroup
  readonly crew: string
  /** No other has it. */
  readonly name: string
  /** Of its run. */
  readonly key: string
  readonly text: string
}

interface MailTask {
  readonly name: string
  readonly crews: readonly string[]
  /** Whose turn it is. */
  readonly at: number
  /** Rounds of a lead. */
  readonly rounds: number
  /** Crews that a helper's task goes on to, itself included; 0 for a lead. */
  readonly hops: number
}

/** How long an envoy of a crowd waits for its answer. */
export const crowdMs = 4_000

/** Groups of crews with names that no other has. */
export function mailGroups(counts: Readonly<Record<MailGroupKind, number>>): MailGroup[] {
  const kinds = Object.keys(counts) as MailGroupKind[]
  return kinds.flatMap((kind) =>
    Array.from({ length: counts[kind] }, (_, index): MailGroup => {
      const letters = kind === 'pair' ? ['a', 'b'] : ['a', 'b', 'c']
      return { kind, crews: letters.map((letter) => `${kind}${index}${letter}`) }
    }),
  )
}

/** The lists of crews of a group of which each is given one task after the other, its crews in turn. */
export function lanesOf({ kind, crews }: MailGroup): readonly (readonly string[])[] {
  return kind === 'ring' ? [crews] : crews.map((crew) => [crew])
}

/** The n-th task of a lane. */
export function askOf(group: MailGroup, lane: readonly string[], n: number): MailAsk {
  const crew = lane[n % lane.length]!
  const name = `${crew}.${n}`
  const task: MailTask = {
    name,
    crews: group.crews,
    at: group.crews.indexOf(crew),
    rounds: 1 + draw(`${name} rounds`, 2),
    hops: 0,
  }
  return { group, crew, name, key: `ask-${n}`, text: JSON.stringify(task) }
}

/** Name of the task with this text. */
export function nameOfTask(text: string): string {
  return (JSON.parse(text) as MailTask).name
}

// ---------------------------------------------------------------------------------------------- the model

/** Names of the tasks that a lead gives away in a round. */
function given(name: string, round: number): string[] {
  return Array.from({ length: 1 + draw(`${name} ${round} count`, 2) }, (_, index) => `${name}.${round}.${index}`)
}

/** How a helper begins its answer. */
function doneText(name: string): string {
  return `did ${name} ${hash(name).slice(0, 12)}`
}

/** The model of these crews. */
export function answerMail(request: ScriptedRequest): ScriptedAnswer {
  const task = JSON.parse(lastUser(request)) as MailTask
  const own = request.messages.slice(request.messages.findLastIndex(({ role }) => role === 'user') + 1)
  const round = own.filter(({ role }) => role === 'assistant').length
  const results = own.filter(({ role }) => role === 'tool').map(({ content }) => String(content))
  return task.hops === 0 ? leadSays(task, round, results) : helperSays(task, round, results)
}

function leadSays(task: MailTask, round: number, results: readonly string[]): ScriptedAnswer {
  if (round >= task.rounds) return { text: results.join('\n') }
  const hops = (name: string): number => {
    const all = task.crews.length
    return all === 2 ? 1 + Number(draw(`${name} hops`, 4) === 0) : 1 + draw(`${name} hops`, all)
  }
  return { text: `round ${round}`, calls: given(task.name, round).map((name) => handOn(task, name, hops(name))) }
}

function helperSays(task: MailTask, round: number, results: readonly string[]): ScriptedAnswer {
  const { name, hops } = task
  if (round > 0) return { text: [doneText(name), ...results.slice(1).map((text) => `[${text}]`)].join(' ') }
  const tool = draw(`${name} tool`, 2) === 0 ? 'put' : 'send'
  const work = { name: tool, arguments: { slot: name }, id: `c-${name}` }
  return { text: 'working', calls: hops > 1 ? [work, handOn(task, `${name}.on`, hops - 1)] : [work] }
}

function handOn({ crews, at }: MailTask, name: string, hops: number) {
  const next = (at + 1) % crews.length
  const task: MailTask = { name, crews, at: next, rounds: 0, hops }
  return { name: `${crews[next]}_helper`, arguments: { task: JSON.stringify(task) }, id: `c-${name}` }
}

// ---------------------------------------------------------------------------------------------- the answers

/** How a delegation may fail; what was given up with its processes fails otherwise. */
const refusals = 'waits for it itself|waits for [\\w, ]+ and would be waited for'
const failure = (kind: MailGroupKind): RegExp => {
  const late = kind === 'crowd' ? `|no answer came within ${crowdMs / 1_000} seconds` : ''
  return new RegExp(`^\\w+/agent/helper failed: DELEGATION_FAILED: (the crew \\w+ (${refusals})${late})$`)
}
const gaveUp = /^(\w+)\/agent\/helper failed: EFFECT_CRASHED: /

/**
 * What is wrong with the answer to a task: each delegation has its own end in it, in the order of the calls.
 * @param givenUp crews whose helper may have failed with work that was given up
 */
export function judgeAnswer({ group, name, text }: MailAsk, answer: string, givenUp: ReadonlySet<string>): string[] {
  const { rounds } = JSON.parse(text) as MailTask
  const names = Array.from({ length: rounds }, (_, round) => given(name, round)).flat()
  const lines = answer.split('\n')
  if (lines.length !== names.length) return [`${name} was told of ${lines.length} delegations, not ${names.length}`]
  const failed = (told: string): boolean => failure(group.kind).test(told) || givenUp.has(gaveUp.exec(told)?.[1] ?? '')
  return names.flatMap((each, index) => judgeTold(each, lines[index]!, failed))
}

function judgeTold(name: string, told: string, failed: (told: string) => boolean): string[] {
  if (failed(told)) return []
  const done = doneText(name)
  const rest = told.slice(done.length)
  if (told.startsWith(done) && rest === '') return []
  if (told.startsWith(done) && rest.startsWith(' [') && rest.endsWith(']'))
    return judgeTold(`${name}.on`, rest.slice(2, -1), failed)
  return [`${name} ended with '${told}'`]
}

// ---------------------------------------------------------------------------------------------- the crews

const amplyBudget = { usd: 1_000, tokens: 100_000_000, modelCalls: 100_000, toolCalls: 100_000 }

/** The definitions of these crews, by name, with tools that work in `shop`. */
export function mailCrews(groups: readonly MailGroup[], shop: Workshop): ReadonlyMap<string, Crew<string>> {
  const { put, send } = toolsOf(shop)
  const common = { model: 'scripted:any', settings: { maxOutputTokens: 2_000 }, limits: { rounds: 60 } }
  const all = groups.flatMap(({ kind, crews }) =>
    crews.map((name, at) => {
      const delegates = [`${crews[(at + 1) % crews.length]}/agent/helper`]
      return defineCrew({
        name,
        agents: {
          lead: defineAgent({ ...common, instructions: 'Ask.', delegates }),
          helper: defineAgent({ ...common, instructions: 'Help.', tools: [put!, send!], delegates }),
        },
        lead: 'lead',
        budget: amplyBudget,
        limits: kind === 'crowd' ? { answerMs: crowdMs } : {},
      })
    }),
  )
  return new Map(all.map((crew) => [crew.name, crew]))
}
