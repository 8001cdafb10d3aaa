/** Rounds in which the user's code has a say: what it says, and whether each call was made as it was said last. */
import type { CallVerdict, ModelCall, RoundPlan } from '../../machines/index.js'
import type { Commit } from '../../runtime/commit.js'
import { textOf } from '../../runtime/conversation.js'
import type { AgentOptions } from '../../runtime/define.js'
import type { Envelope } from '../../runtime/envelope.js'
import type { ShardState } from '../../runtime/state.js'
import type { ModelRequest } from '../../runtime/ports.js'
import type { RoundChanges, RoundContext } from '../../runtime/prepare-round.js'
import { all, calledTool, roundsAre } from '../../runtime/stop-condition.js'
import { messageOf } from './ladders.js'
import type { Judge } from './judge.js'
import type { Notes } from './notes.js'
import { never, type SimulatedProcess, type World } from './world.js'

/** What the user's code is given as `deps`. */
export interface RoundDeps {
  readonly world: World
  readonly process: SimulatedProcess
}

/** Options of an agent whose user has a say in its rounds; by its name, so that each has another say. */
export function rounding(agent: string): Pick<AgentOptions, 'prepareRound' | 'stopWhen'> {
  // What is large lies in a blob, where the judge does not look.
  const isSmall: AgentOptions['stopWhen'] = ({ lastCalls }) => lastCalls.every(({ result }) => result.length < 60_000)
  if (agent === 'scout') return { stopWhen: [all(calledTool('look'), isSmall), roundsAre(4)] }
  return { prepareRound: changes, ...(agent === 'clerk' ? { stopWhen: all(calledTool('save'), isSmall) } : {}) }
}

async function changes({ agent, round, messages, tools, deps }: RoundContext): Promise<RoundChanges> {
  const { world, process } = deps as RoundDeps
  const { random, notes, timeline, calm } = world
  if (!process.alive) return never()
  const hangs = !calm && random.chance(0.01)
  await timeline.wait(hangs ? 90_000 : random.int(1, 300), process)
  if (!process.alive) return never()
  if (!calm && random.chance(0.01)) {
    notes.fault('code of a round threw')
    throw new Error('planted')
  }
  const last = messages.findLastIndex(({ role }) => role === 'assistant')
  const kept = last > 0 && random.chance(0.4) ? messages.slice(random.int(1, last)) : messages
  const note = { role: 'user', content: `note of round ${round}` }
  return {
    ...(random.chance(0.3) ? { model: random.pick(['sim:cheap', 'sim:dear', ['sim:odd', 'sim:cheap']]) } : {}),
    ...(random.chance(0.3) ? { tools: tools.filter(() => random.chance(0.7)) } : {}),
    ...(random.chance(0.2) ? { settings: { maxOutputTokens: random.pick([150, 300]) } } : {}),
    // The first call has to show the judge the system message that there is.
    ...(round > 1 && random.chance(0.2) ? { instructions: `You are the ${agent}, in round ${round}.` } : {}),
    ...(kept.length < messages.length || random.chance(0.2)
      ? { messages: random.chance(0.3) ? [...kept, note] : kept }
      : {}),
  }
}

/** What was said of a round, and what stands beside its conversation. */
interface Said {
  readonly plan: RoundPlan
  readonly beside: readonly string[]
}

/** The rounds of one shard's agents. */
export class Rounds {
  readonly #shard: string
  readonly #notes: Notes
  readonly #judge: Judge
  /** Of the round that an agent is in, by its address. */
  readonly #said = new Map<string, Said>()
  /** The same before the last message that changed it. */
  readonly #before = new Map<string, Said | undefined>()
  readonly #conversations = new Map<string, string>()
  readonly #stopped = new Set<string>()
  /** By the effect. */
  readonly #calls = new Map<string, Said | undefined>()

  constructor(shard: string, notes: Notes, judge: Judge) {
    this.#shard = shard
    this.#notes = notes
    this.#judge = judge
  }

  /** Looks at a commit: what was said of a round is over with its reply, and when something joins. */
  take(_: ShardState, { envelope: { to, body, values }, sequence, decisions, effects }: Commit): void {
    const where = (): string => `${this.#shard} ${sequence}: ${to}`
    for (const line of decisions) {
      const actor = line.slice(0, line.indexOf(' '))
      this.#undo(line)
      if (/ \{"type":"(round\.(prepared|stopped)|model\.replied)"/.test(line))
        this.#before.set(actor, this.#said.get(actor))
      const prepared = messageOf<{ plan: RoundPlan }>(line, 'round.prepared')
      if (prepared !== null) {
        this.#notes.reached('round prepared')
        this.#said.set(actor, { plan: prepared.plan, beside: values.map(String) })
      }
      if (messageOf(line, 'round.stopped') !== null) this.#stop(actor, values)
      const replied = messageOf<{ calls: readonly CallVerdict[] }>(line, 'model.replied')
      if (replied !== null) this.#over(actor, replied.calls, where)
      const joined = messageOf<{ all?: string }>(line, 'log.append')
      if (joined?.all !== undefined) this.#said.delete(this.#conversations.get(actor) ?? '')
    }
    if (body.type === 'effect.interrupted' && this.#conversations.has(`round ${to}`))
      this.#notes.reached('round interrupted')
    for (const { id, from, body: asked } of effects) {
      if (asked.type !== 'model.call' && asked.type !== 'round.prepare') continue
      this.#notes.check('round', !this.#stopped.has(from), () => `${where()}: ${from} goes on behind its stop`)
      this.#conversations.set(`log/${asked.conversation}`, from)
      if (asked.type === 'round.prepare') this.#conversations.set(`round ${from}`, from)
      else this.#conversations.delete(`round ${from}`)
      if (asked.type === 'model.call') this.#check(id, from, asked, where)
    }
  }

  /** Whoever failed over a message, and is resumed, has not taken it. */
  #undo(line: string): void {
    const [, actor, type] =
      /^dead \S+ \S+ (agent\/\S+) (round\.prepared|round\.stopped|model\.replied)$/.exec(line) ?? []
    if (actor === undefined) return
    if (type === 'round.stopped') this.#stopped.delete(actor)
    const before = this.#before.get(actor)
    if (before === undefined) this.#said.delete(actor)
    else this.#said.set(actor, before)
  }

  /** A reply has come: of what its model was not told of, nothing is called. */
  #over(actor: string, calls: readonly CallVerdict[], where: () => string): void {
    const { tools } = this.#said.get(actor)?.plan ?? {}
    this.#said.delete(actor)
    for (const call of calls) {
      const isOffered = call.verdict !== 'tool' || (tools?.includes(call.tool) ?? true)
      this.#notes.check('round', isOffered, () => `${where()}: ${JSON.stringify(call)}, was offered ${tools?.join()}`)
    }
  }

  #check(id: string, from: string, { plan }: ModelCall, where: () => string): void {
    const said = this.#said.get(from)
    this.#calls.set(id, said)
    const same = JSON.stringify(withoutPlace(plan)) === JSON.stringify(withoutPlace(said?.plan))
    const detail = (): string => `${where()}: ${JSON.stringify(plan)}, was told ${JSON.stringify(said?.plan)}`
    this.#notes.check('round', same, detail)
  }

  #stop(actor: string, values: Envelope['values']): void {
    this.#notes.reached('round stopped')
    this.#stopped.add(actor)
    const text = textOf(typeof values[0] === 'string' ? values[0] : '{}')
    this.#notes.check('round', this.#judge.brought(text), () => `${this.#shard}: ${actor} answers ${text}`)
    this.#judge.answers.add(text)
  }

  /**
   * What a model is sent is what was said of its round. @param sent the conversation's part of it
   * @param known what its agent may call: it may be another definition's by now
   */
  checkRequest(effect: string, request: ModelRequest, sent: readonly string[], known: readonly string[]): void {
    const said = this.#calls.get(effect)
    if (said === undefined) return
    const { deployments, tools, maxOutputTokens = request.maxOutputTokens, beside } = said.plan
    const rest = request.messages.filter((message) => !sent.includes(message))
    const told = (JSON.parse(request.tools ?? '[]') as { function: { name: string } }[]).map(
      (each) => each.function.name,
    )
    const fits =
      (deployments?.some(({ name }) => name === request.deployment) ?? true) &&
      (tools === undefined || tools.filter((name) => known.includes(name)).join() === told.join()) &&
      request.maxOutputTokens <= maxOutputTokens &&
      (beside === undefined || said.beside.every((message) => rest.includes(message)))
    const detail = (): string => `${this.#shard}: ${effect} with ${told.join()}, told ${JSON.stringify(said.plan)}`
    this.#notes.check('round', fits, detail)
  }
}

function withoutPlace(plan: RoundPlan | undefined): Partial<RoundPlan> {
  const { sequence: _, ...rest } = plan ?? { sequence: 0 }
  return rest
}
