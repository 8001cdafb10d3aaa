/**
 * The crews of the kill test: what their tools do, what their model says. The process that is killed and the test that
 * judges it both import this, so everything follows from a task's name: two runs of one task say and do the same.
 *
 * A lead works some rounds, each with up to three calls: tools, and helpers that work rounds of their own. The last
 * reply has a digest of the whole conversation, so that a lead's answer proves what its helpers saw.
 */
import { createHash } from 'node:crypto'
import { z } from 'zod'
import {
  type Crew,
  defineAgent,
  defineCrew,
  defineTool,
  type ModelSettings,
  type Tool,
  type ToolContext,
} from '../../runtime/index.js'
import {
  lastUser,
  type ScriptedAnswer,
  type ScriptedMessage,
  type ScriptedRequest,
} from '../../actors/scripted-model.js'

/**
 * `plain`: pure and idempotent tools; `once`: all classes; `tight`: a budget too small for the task; `bulk`: one call that
 * brings much, and no more.
 */
export type CrewKind = 'plain' | 'once' | 'tight' | 'bulk' | PoisonKind

/** `poison` kills its process each time, `poison-once` too and is a `once` tool; `poison-twice` twice, then it fails twice. */
export type PoisonKind = 'poison' | 'poison-once' | 'poison-twice'

/** A crew of a campaign. */
export interface CrewPlan {
  readonly id: string
  readonly kind: CrewKind
  /** Rounds of the lead before it answers. */
  readonly rounds: number
}

/** One line of the ledger that tools keep outside of the runtime. */
export interface LedgerLine {
  readonly pid: number
  readonly at: number
  readonly what: 'start' | 'end' | 'throw' | 'kill' | 'server' | 'stop'
  /** Name of the tool, or of the window of a fault. */
  readonly tool: string
  /** The one call of one task that this is: unlike keys, it does not come from the runtime. */
  readonly slot: string
  /** Idempotency key. */
  readonly key: string
}

/** What the tools need of the process that runs them. */
export interface Workshop {
  write(line: Omit<LedgerLine, 'pid' | 'at'>): void
  /** Everything that was written about the crew of a slot. */
  read(slot: string): readonly LedgerLine[]
  /** In the middle of a tool's work. */
  working(tool: string): void
  /** Ends the process, once no crew but `crew` has work that has been through two crashes. */
  die(crew: string): Promise<never>
  readonly poisonous: boolean
  /** What `haul` brings. */
  readonly haulBytes?: number
}

interface Task {
  readonly name: string
  readonly kind: CrewKind
  readonly rounds: number
  readonly depth: number
}

/** Begins what a model is told of a `once` call that was lost. */
export const unknownText = 'The outcome of this call is unknown'
/** How long a poisonous tool works before it kills: other crews' calls take less. */
const poisonMs = 200

export function hash(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}

/** A number below `below` that follows from the text. */
export function draw(text: string, below: number): number {
  return Number.parseInt(hash(text).slice(0, 12), 16) % below
}

/** The task of a crew's lead. */
export function taskOf(plan: CrewPlan): string {
  return taskText({ name: plan.id, kind: plan.kind, rounds: plan.rounds, depth: 0 })
}

function taskText(task: Task): string {
  return JSON.stringify(task)
}

/** What a tool answers, whatever happened to the process meanwhile. Some answers are too large for a record. */
export function resultOf(tool: string, slot: string): string {
  const filler = draw(`${slot} size`, 60) === 0 ? 'x'.repeat(70_000) : ''
  return `${tool} ${slot} ${hash(slot).slice(0, 16)}${filler}`
}

/** Id of the crew that a slot is of. */
export function crewOfSlot(slot: string): string {
  return slot.split('.')[0] ?? ''
}

// ---------------------------------------------------------------------------------------------- the model

const palettes: Readonly<Record<CrewKind, readonly string[]>> = {
  plain: ['look', 'put', 'put'],
  once: ['look', 'put', 'send', 'pay'],
  tight: ['look', 'put'],
  bulk: ['haul'],
  poison: ['look'],
  'poison-once': ['look'],
  'poison-twice': ['look'],
}
const helpers = ['helper', 'sub'] as const

/** The model: a function of the conversation alone. */
export function answerTo(request: ScriptedRequest): ScriptedAnswer {
  const task = JSON.parse(lastUser(request)) as Task
  const round = request.messages.filter(({ role }) => role === 'assistant').length
  if (round >= task.rounds) return { text: `done ${task.name} ${conversationHash(request.messages)}` }
  const count = task.kind === 'bulk' ? 1 : 1 + draw(`${task.name} ${round} count`, 3)
  const calls = Array.from({ length: count }, (_, index) => callOf(task, round, index))
  return { text: `round ${round}`, calls }
}

function callOf(task: Task, round: number, index: number): { name: string; arguments: unknown; id: string } {
  const slot = `${task.name}.${round}.${index}`
  const id = `c-${slot}`
  if (task.kind.startsWith('poison') && task.depth === 0 && round === 1 && index === 0)
    return { name: task.kind, arguments: { slot }, id }
  const helper = helpers[task.depth]
  const delegates = round === 1 && index === 0 ? task.depth === 0 : draw(`${slot} delegates`, 6) === 0
  if (helper !== undefined && delegates && task.kind !== 'bulk') {
    const rounds = 1 + draw(`${slot} rounds`, 2)
    const text = taskText({ name: slot, kind: task.kind, rounds, depth: task.depth + 1 })
    return { name: helper, arguments: { task: text }, id }
  }
  const palette = palettes[task.kind]
  return { name: palette[draw(`${slot} tool`, palette.length)]!, arguments: { slot }, id }
}

/** Names a conversation by its content; a lost `once` call counts as if its result had been told. */
export function conversationHash(messages: readonly ScriptedMessage[]): string {
  return hash(JSON.stringify(withoutUnknowns(messages))).slice(0, 24)
}

/** The messages with each "unknown" replaced by what the call would have said. */
export function withoutUnknowns<Message extends { readonly role: string }>(messages: readonly Message[]): unknown[] {
  const known = new Map<string, string>()
  return (messages as unknown as ScriptedMessage[]).map((message) => {
    for (const { id, function: called } of message.tool_calls ?? []) {
      const { slot } = JSON.parse(called.arguments) as { slot?: string }
      if (slot !== undefined) known.set(id, resultOf(called.name, slot))
    }
    const { role, content, tool_call_id: id } = message
    if (role !== 'tool' || typeof content !== 'string' || !content.startsWith(unknownText)) return message
    return { ...message, content: known.get(id ?? '') ?? content }
  })
}

/** How long the model thinks, in milliseconds. */
export function latencyOf(conversation: string): number {
  return 3 + draw(`${conversation} latency`, 18)
}

// ---------------------------------------------------------------------------------------------- the tools

const input = z.object({ slot: z.string() })
type Slot = z.output<typeof input>

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}

/** Writes start and end around the work; a step of the work lies between. */
async function work(shop: Workshop, tool: string, slot: string, key: string, ms: number): Promise<string> {
  shop.write({ what: 'start', tool, slot, key })
  await pause(ms)
  shop.working(tool)
  await pause(1)
  shop.write({ what: 'end', tool, slot, key })
  return resultOf(tool, slot)
}

/** All tools, by name. */
export function toolsOf(shop: Workshop): Record<string, Tool> {
  const run = (tool: string) => (given: Slot, context: ToolContext) =>
    work(shop, tool, given.slot, context.idempotencyKey, 1 + draw(given.slot, 12))
  /** Fails once for some slots, so that a retry is due when the process dies. */
  const put = async ({ slot }: Slot, { idempotencyKey: key }: ToolContext): Promise<string> => {
    const failed = (line: LedgerLine): boolean => line.slot === slot && line.what === 'throw'
    if (draw(`${slot} fails`, 8) !== 0 || shop.read(slot).some(failed))
      return work(shop, 'put', slot, key, 1 + draw(slot, 12))
    shop.write({ what: 'start', tool: 'put', slot, key })
    shop.write({ what: 'throw', tool: 'put', slot, key })
    throw new Error('not this time')
  }
  /** Whoever pays keeps an account: it knows what was done, and what was begun and not ended. */
  const verify = async ({ slot }: Slot, { idempotencyKey: key }: ToolContext) => {
    const lines = shop.read(slot).filter((line) => line.key === key)
    if (lines.some(({ what }) => what === 'end')) return { done: true as const, result: resultOf('pay', slot) }
    return lines.length === 0 ? { done: false as const } : { done: null }
  }
  const poison = (tool: string) => async (given: Slot, context: ToolContext) => {
    if (!shop.poisonous) return resultOf(tool, given.slot)
    shop.write({ what: 'start', tool, slot: given.slot, key: context.idempotencyKey })
    await pause(poisonMs)
    return shop.die(crewOfSlot(given.slot))
  }
  /** Dies twice, throws twice, works: as many throws as it has retries. */
  const twice = async ({ slot }: Slot, { idempotencyKey: key }: ToolContext): Promise<string> => {
    const lines = shop.read(slot).filter((line) => line.slot === slot)
    const starts = lines.filter(({ what }) => what === 'start').length
    shop.write({ what: 'start', tool: 'poison-twice', slot, key })
    await pause(poisonMs)
    if (shop.poisonous && starts < 2) return shop.die(crewOfSlot(slot))
    if (lines.filter(({ what }) => what === 'throw').length === 2) return resultOf('poison-twice', slot)
    shop.write({ what: 'throw', tool: 'poison-twice', slot, key })
    throw new Error('not yet')
  }
  const tool = (name: string, more: Pick<Parameters<typeof defineTool>[0], 'effect' | 'run' | 'verify'>) =>
    defineTool({
      name,
      description: `Does ${name}.`,
      input,
      timeoutMs: 10_000,
      ...(more as object),
      run: more.run,
    }) as Tool
  return {
    look: tool('look', { effect: 'pure', run: run('look') as never }),
    put: tool('put', { effect: 'idempotent', run: put as never }),
    send: tool('send', { effect: 'once', run: run('send') as never }),
    pay: tool('pay', { effect: 'once', run: run('pay') as never, verify: verify as never }),
    haul: tool('haul', { effect: 'pure', run: () => 'x'.repeat(shop.haulBytes ?? 0) }),
    poison: tool('poison', { effect: 'idempotent', run: poison('poison') as never }),
    'poison-once': tool('poison-once', { effect: 'once', run: poison('poison-once') as never }),
    'poison-twice': tool('poison-twice', { effect: 'idempotent', run: twice as never }),
  }
}

/** The definitions that all crews of a campaign over several workers share, by name. */
export function sharedCrews(shop: Workshop): ReadonlyMap<string, Crew<string>> {
  const names = ['plain', 'once', 'bulk', ...tightBudgets.map((_, index) => `tight-${index}`)]
  const kindOf = (name: string): CrewKind => name.split('-')[0] as CrewKind
  return new Map(names.map((name) => [name, crewOf({ id: name, kind: kindOf(name), rounds: 0 }, shop)]))
}

/** Name of the shared definition for a crew. */
export function sharedNameOf({ id, kind }: CrewPlan): string {
  return kind === 'tight' ? `tight-${draw(id, tightBudgets.length)}` : kind
}

/** Effect class of each tool, for the judge. */
export const onceTools: ReadonlySet<string> = new Set(['send', 'pay', 'poison-once'])

// ---------------------------------------------------------------------------------------------- the crew

const tightBudgets = [{ modelCalls: 6 }, { toolCalls: 7 }, { usd: 1 }, { tokens: 12_000 }] as const
const amplyBudget = { usd: 1_000, tokens: 100_000_000, modelCalls: 100_000, toolCalls: 100_000 }

/** Makes a crew whose tools work in `shop`. */
export function crewOf(plan: CrewPlan, shop: Workshop): Crew<string> {
  const all = toolsOf(shop)
  const names = new Set(palettes[plan.kind])
  const tools = [...names].map((name) => all[name]!)
  const settings: ModelSettings = { maxOutputTokens: 2_000 }
  const limits = { rounds: 60 }
  const common = { model: 'scripted:any', settings, limits }
  const special = plan.kind.startsWith('poison') ? [all[plan.kind]!] : []
  return defineCrew({
    name: plan.id,
    agents: {
      lead: defineAgent({ ...common, instructions: 'Lead.', tools: [...tools, ...special], delegates: ['helper'] }),
      helper: defineAgent({ ...common, instructions: 'Help.', tools, delegates: ['sub'] }),
      sub: defineAgent({ ...common, instructions: 'Help the helper.', tools }),
    },
    lead: 'lead',
    budget: plan.kind === 'tight' ? tightBudgets[draw(plan.id, tightBudgets.length)]! : amplyBudget,
  })
}
