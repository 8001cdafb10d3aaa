/**
 * The ports of a simulated process: a provider that bills, fails, lies and comes late, and tools that do what they do
 * whether or not anybody hears of it. The judge sees what really happened.
 */
import type { ModelCall } from '../../machines/index.js'
import { replied, toolOutcome } from '../../runtime/edge.js'
import { placesIn } from '../../runtime/handoff.js'
import type {
  FailureKind,
  ModelFailure,
  ModelPort,
  ModelReply,
  ModelRequest,
  ToolOutcome,
  ToolPort,
  ToolRequest,
  Usage,
} from '../../runtime/ports.js'
import type { PreparedCrew } from '../../runtime/prepared-crew.js'
import { callable } from '../../runtime/round-plan.js'
import type { Effect } from '../../runtime/state.js'
import type { Billed, ToolRecord } from './judge.js'
import { callsOf, isAgain, priceOf, type Script } from './workload.js'
import { never, type SimulatedProcess, type World } from './world.js'

const kinds: readonly FailureKind[] = [
  ...(['rate_limited', 'timeout', 'overloaded', 'server', 'network', 'invalid_reply', 'auth', 'quota'] as const),
  ...(['not_found', 'context_window', 'content_policy', 'bad_request', 'config'] as const),
]
/** Failures before any work: the provider bills nothing. */
const unbilled = new Set<FailureKind>(['rate_limited', 'overloaded', 'auth', 'quota', 'not_found', 'config', 'network'])

/** What a model call leads to, unless something comes between. */
interface Fate {
  readonly deployment: string
  readonly result: ModelReply | ModelFailure
  readonly latencyMs: number
  readonly actual: { readonly tokens: number; readonly nanoUsd: number }
}

/** The provider, as one crew of one process reaches it. */
export class SimulatedModel implements ModelPort {
  readonly #world: World
  readonly #process: SimulatedProcess
  readonly #shard: string
  readonly #prepared: PreparedCrew

  constructor(world: World, process: SimulatedProcess, shard: string, prepared: PreparedCrew) {
    this.#world = world
    this.#process = process
    this.#shard = shard
    this.#prepared = prepared
  }

  get #hasMail(): boolean {
    return [...this.#prepared.agents.values()].some(({ away }) => away.size > 0)
  }

  price = priceOf

  check(): void {
    return
  }

  async close(): Promise<void> {
    return
  }

  call(request: ModelRequest): Promise<ModelReply | ModelFailure> {
    if (!this.#process.alive) return never()
    const { notes, judge } = this.#world
    const effect = durable(this.#world, this.#shard, request.effect)
    if (effect === undefined) return Promise.resolve(failureOf('config', 0, null))
    const call = effect.body as ModelCall
    const agent = this.#prepared.agents.get(call.agent)
    const isDefined = agent?.system !== null
    const places = placesIn(effect.length, call.view, isDefined)
    const { sent, said } = this.#unplanned(effect, call, places, request)
    this.#world.breakers.arrives(request.deployment, `${this.#shard}.${request.effect}`, this.#process)
    notes.check(
      'grows',
      request.messages.length - sent.length - (call.plan?.beside?.behind ?? 0) <= 1,
      () => `${request.effect}: too many messages`,
    )
    const known = agent === undefined ? [] : callable(agent)
    this.#world.replica(this.#shard).rounds.checkRequest(request.effect, request, sent, known)
    if (places !== null) this.#checkView(call, places, said)
    else if (!said.includes('')) judge.conversation(`${this.#shard}|${call.conversation}`, said)
    if (this.#world.poisons('model', `${this.#shard} ${effect.from} ${effect.length}`))
      return this.#die('crash: poisonous model call')
    if (this.#world.strikes('append to dispatch')) return this.#die('crash: append to dispatch')
    const billed = judge.request(this.#shard, call.keeper, call.worst)
    const fate = this.#fateOf(effect, call, request, said)
    return this.#live(effect, call, request.signal, billed, fate)
  }

  /**
   * What a request has of its conversation, and the same with what its round leaves out: the provider has been sent that
   * before. What it has not is empty.
   */
  #unplanned(
    { length }: Effect,
    { conversation, plan }: ModelCall,
    places: readonly number[] | null,
    { messages }: ModelRequest,
  ): { sent: readonly string[]; said: readonly string[] } {
    const behind = plan?.beside?.behind ?? 0
    const all = places ?? Array.from({ length }, (_, at) => at)
    const isSent = (at: number): boolean => plan?.hidden?.some(([from, to]) => at >= from && at <= to) !== true
    const count = all.filter(isSent).length
    const sent = messages.slice(messages.length - behind - count, messages.length - behind)
    if (count === all.length) return { sent, said: sent }
    const heard = this.#world.judge.heard(`${this.#shard}|${conversation}`)
    const rest = [...sent]
    return { sent, said: all.map((at) => (isSent(at) ? rest.shift()! : (heard[at] ?? ''))) }
  }

  /** Who was handed a conversation is shown what its view has, and has taken nobody else's system message for its own. */
  #checkView({ conversation, agent }: ModelCall, places: readonly number[], said: readonly string[]): void {
    const { judge, notes } = this.#world
    const heard = judge.heard(`${this.#shard}|${conversation}`)
    places.forEach((at, index) => {
      notes.check('view', heard[at] === undefined || heard[at] === said[index], () => `${conversation}: ${said[index]}`)
    })
    const systems = said.filter((message) => message.startsWith('{"role":"system"'))
    const isOwn = systems.every((message) => message.includes(`the ${agent},`))
    notes.check('view', isOwn, () => `${conversation}: ${agent} is shown ${systems.join()}`)
    notes.reached('conversation handed over')
  }

  /** Waits for the end of the call, its cancel or the end of the process. */
  #live(
    effect: Effect,
    call: ModelCall,
    signal: AbortSignal,
    billed: Billed,
    fate: Fate,
  ): Promise<ModelReply | ModelFailure> {
    const { random, timeline } = this.#world
    return new Promise((resolve) => {
      const crashed = () => {
        // The provider may have done its work, and its answer may still come.
        if (random.chance(0.6)) billed.actual = { ...billed.actual, ...fate.actual }
        if (random.chance(this.#world.plan.late)) this.#late(effect, call, billed, fate)
      }
      const end = (result: ModelReply | ModelFailure) => {
        cancel()
        this.#process.underWay.delete(crashed)
        resolve(result)
      }
      const cancel = timeline.after(fate.latencyMs, this.#process, () => {
        this.#bill(billed, fate)
        end(fate.result)
      })
      this.#process.underWay.add(crashed)
      signal.addEventListener('abort', () => {
        // Then its answer comes late, or never in time.
        if (random.chance(this.#world.plan.ignoresCancel) && fate.latencyMs < 600_000) return
        if (random.chance(0.5)) billed.actual = { ...billed.actual, ...fate.actual }
        timeline.after(1, this.#process, () => end({ ...failureOf('cancelled', 0, null), billed: true }))
      })
    })
  }

  #late(effect: Effect, call: ModelCall, billed: Billed, fate: Fate): void {
    const { result } = fate
    if (!result.ok) return
    this.#world.notes.fault('model outcome late')
    this.#bill(billed, fate)
    const delayMs = this.#world.random.int(0, 60_000)
    const admitted = { deployment: fate.deployment, skipped: [], changes: [] }
    void replied(result, admitted, call, this.#prepared, { data: null, random: () => 0.5, shown: () => [] }).then(
      ({ body, values }) =>
        this.#world.deliver(
          this.#shard,
          { from: 'port/model', to: effect.from, cause: effect.id, body, values },
          delayMs,
        ),
    )
  }

  // ------------------------------------------------------------------------------------------ what comes of a call

  #fateOf(effect: Effect, call: ModelCall, request: ModelRequest, said: readonly string[]): Fate {
    const { random, plan, notes } = this.#world
    const characters = request.messages.reduce((sum, message) => sum + message.length, 0)
    const inputTokens = Math.ceil((characters / 4 + 40) * (0.8 + 0.4 * random.next()))
    const outputTokens = Math.min(request.maxOutputTokens, random.int(10, 260))
    const latencyMs = random.int(20, random.pick([100, 400, 3_000]))
    const { deployment } = request
    const actual = { tokens: inputTokens + outputTokens, nanoUsd: this.#cost(deployment, inputTokens, outputTokens) }
    if (!this.#world.calm && this.#world.breakers.isDown(deployment)) {
      const result = { ...failureOf('server', 0, null), billed: false }
      return { deployment, result, latencyMs, actual: { tokens: 0, nanoUsd: 0 } }
    }
    if (!this.#world.calm && random.chance(plan.modelHangs)) {
      if (random.chance(0.4)) {
        notes.fault('model hung')
        return { deployment, result: failureOf('timeout', 0, null), latencyMs: 600_000, actual }
      }
      notes.fault('model outlived its grant')
      const result = this.#reply(effect, deployment, said, inputTokens, outputTokens, false)
      return { deployment, result, latencyMs: 2_400_000, actual }
    }
    if (!this.#world.calm && random.chance(plan.modelFails))
      return this.#failure(deployment, inputTokens, latencyMs, actual)
    const result = this.#reply(effect, deployment, said, inputTokens, outputTokens, true)
    const collision = result.toolCalls.length === 0 ? this.#collision(effect, latencyMs) : latencyMs
    return { deployment, result, latencyMs: collision, actual }
  }

  #failure(deployment: string, inputTokens: number, latencyMs: number, actual: Fate['actual']): Fate {
    const { random, notes } = this.#world
    notes.fault('model failed')
    const kind = random.pick(kinds)
    const retryAfterMs = random.pick([0, 0, 1_000, 20_000])
    if (unbilled.has(kind)) {
      const result = { ...failureOf(kind, retryAfterMs, null), billed: false }
      return { deployment, result, latencyMs, actual: { tokens: 0, nanoUsd: 0 } }
    }
    if (random.chance(0.5)) return { deployment, result: failureOf(kind, retryAfterMs, null), latencyMs, actual }
    const usage = { inputTokens, outputTokens: 0, cachedInputTokens: 0, estimated: false }
    const result = { ...failureOf(kind, retryAfterMs, usage), costNanoUsd: actual.nanoUsd }
    return { deployment, result, latencyMs, actual: { tokens: inputTokens, nanoUsd: actual.nanoUsd } }
  }

  /** The answer of the lead and the end of its wall budget, at the same moment, while the shard is busy. */
  #collision(effect: Effect, latencyMs: number): number {
    const { plan, random, notes, timeline, calm } = this.#world
    const worker = this.#process.worker
    const wall = worker?.active.get(this.#shard)?.state.timers.get('crew/main|active:wall')
    if (calm || !plan.collisions || wall === undefined || !effect.from.includes('chief') || random.chance(0.3))
      return latencyMs
    const dueMs = wall.dueAt - 1_700_000_000_000 - timeline.now
    if (dueMs < 5) return latencyMs
    notes.fault('collision with a timer')
    this.#world.collide(this.#shard, dueMs - 2)
    return dueMs - 1
  }

  #reply(
    effect: Effect,
    deployment: string,
    said: readonly string[],
    inputTokens: number,
    outputTokens: number,
    honest: boolean,
  ): ModelReply {
    const { random, plan, judge } = this.#world
    const replies = said.filter((message) => message.startsWith('{"role":"assistant"')).length
    const script = this.#world.script(this.#shard, effect, replies)
    const toolCalls = callsOf(
      random,
      script,
      replies - script.base,
      this.#world.calm ? 0 : plan.invalidCalls,
      this.#hasMail,
      [...(this.#prepared.agents.get(script.agent)?.handoffs.keys() ?? [])],
    )
    const text = toolCalls.length > 0 ? '' : this.#answer(script, effect)
    if (text !== '') judge.answers.add(text)
    if (toolCalls.some((each) => !/^(look|save|pay|ship|([amx]_)?(scout|clerk)|transfer_to_\w+)$/.test(each.name)))
      this.#world.notes.sometimes.add('model wrote an invalid call')
    const lied = honest && plan.modelLies ? 0.8 + 0.4 * random.next() : 1
    if (lied !== 1) this.#world.notes.sometimes.add('model lied about usage')
    const estimated = !this.#world.calm && random.chance(plan.modelNoUsage)
    if (estimated) this.#world.notes.fault('model sent no usage')
    const usage = {
      inputTokens: Math.round(inputTokens * lied),
      outputTokens: Math.round(outputTokens * lied),
      cachedInputTokens: 0,
      estimated,
    }
    const message =
      toolCalls.length === 0
        ? { role: 'assistant', content: text }
        : {
            role: 'assistant',
            content: null,
            tool_calls: toolCalls.map(({ id, name, arguments: given }) => ({
              id,
              type: 'function',
              function: { name, arguments: given },
            })),
          }
    return {
      ok: true,
      message: JSON.stringify(message),
      text,
      toolCalls,
      finishReason: toolCalls.length > 0 ? 'tool_calls' : 'stop',
      usage,
      costNanoUsd: priceOf(deployment) === null ? null : this.#cost(deployment, usage.inputTokens, usage.outputTokens),
      model: deployment,
    }
  }

  #answer(script: Script, effect: Effect): string {
    const { random, plan, notes, calm } = this.#world
    const text = `answer of ${effect.id} by ${script.agent}`
    if (this.#prepared.agents.get(script.agent)?.agent.output === undefined) return text
    if (calm || !random.chance(plan.misfits)) return JSON.stringify({ text })
    notes.fault('model answered out of shape')
    return random.pick([text, '{"text":7}'])
  }

  #cost(deployment: string, inputTokens: number, outputTokens: number): number {
    const price = priceOf(deployment) ?? this.#prepared.crew.unknownPrice
    return Math.ceil((inputTokens * price.input + outputTokens * price.output) / 1_000)
  }

  /** The provider did its work and told what it cost: money where it tells that, else what is listed for its tokens. */
  #bill(billed: Billed, { deployment, result, actual }: Fate): void {
    billed.actual = { ...billed.actual, ...actual }
    if (result.usage === null) return
    const { inputTokens, outputTokens } = result.usage
    const nanoUsd = result.costNanoUsd ?? this.#cost(deployment, inputTokens, outputTokens)
    billed.reported = { modelCalls: 1, tokens: inputTokens + outputTokens, nanoUsd }
  }

  #die<T>(name: Parameters<World['crash']>[1]): Promise<T> {
    this.#world.crash(this.#process, name)
    return never()
  }
}

/** The effect, if the store has the commit that asked for it. */
function durable(world: World, shard: string, id: string): Effect | undefined {
  const effect = world.replica(shard).asked.get(id)
  world.notes.check('durable', effect !== undefined, () => `${shard}: ${id} is with a port, but not in the journal`)
  return effect
}

function failureOf(kind: FailureKind, retryAfterMs: number, usage: Usage | null): ModelFailure {
  const { message, status, costNanoUsd } = { message: `simulated: ${kind}`, status: null, costNanoUsd: null }
  return { ok: false, kind, message, status, retryAfterMs, billed: kind !== 'cancelled', usage, costNanoUsd }
}

/** The tools, as one crew of one process reaches them. */
export class SimulatedTools implements ToolPort {
  readonly #world: World
  readonly #process: SimulatedProcess
  readonly #shard: string

  constructor(world: World, process: SimulatedProcess, shard: string) {
    this.#world = world
    this.#process = process
    this.#shard = shard
  }

  async run(request: ToolRequest): Promise<ToolOutcome> {
    const { random, timeline, judge, notes } = this.#world
    if (!this.#process.alive) return never()
    const effect = durable(this.#world, this.#shard, request.effect)
    if (effect === undefined) return { status: 'failed', kind: 'told', message: '' }
    const { topic } = JSON.parse(request.arguments) as { topic: string }
    notes.check(
      'key',
      topic === request.callId || isAgain(topic),
      () => `${request.callId} got the arguments of ${topic}`,
    )
    const record = judge.tool(this.#shard, request.callId, request.idempotencyKey, request.tool)
    record.topic = topic
    if (random.chance(0.3)) await timeline.wait(random.int(1, 50), this.#process)
    const once = 'effect' in effect.body && effect.body.effect === 'once'
    const may = await request.mayStart()
    if (!this.#process.alive) return never()
    if (!may) return { status: 'dropped' }
    if (once) {
      const known = this.#world.replica(this.#shard).dispatched.has(request.effect)
      notes.check('dispatched', known, () => `${this.#shard}: ${request.effect} starts without its record`)
      if (this.#world.strikes('dispatched to start')) return this.#die('crash: dispatched to start')
      // Right behind the last check: what was dispatched begins late, and its owner is another one by then.
      const { cluster, calm } = this.#world
      if (cluster !== null && !calm && random.chance(0.03)) this.#world.pause(this.#process)
    }
    const replica = this.#world.replica(this.#shard)
    const isApproved = replica.askOf(effect.from) === undefined || replica.approved.has(effect.from)
    notes.check('approved', isApproved, () => `${this.#shard}: ${request.callId} of ${effect.from} starts unasked`)
    record.starts += 1
    if (once && record.starts > 1) notes.reached('once call executed again after verify')
    if (this.#world.poisons(once ? 'once' : 'tool', `${this.#shard} ${request.callId}`)) {
      if (random.chance(0.5)) this.#execute(record, once)
      return this.#die('crash: poisonous tool')
    }
    return this.#live(effect, request, record, once)
  }

  #live(effect: Effect, request: ToolRequest, record: ToolRecord, once: boolean): Promise<ToolOutcome> {
    const { random, timeline, notes, plan, calm } = this.#world
    const hangs = !calm && random.chance(plan.toolHangs)
    const latencyMs = hangs ? request.timeoutMs : random.int(1, random.pick([20, 200, 1_500]))
    return new Promise((resolve) => {
      let executed = false
      const execute = () => {
        if (!executed) this.#execute(record, once)
        executed = true
      }
      const crashed = () => {
        if (random.chance(0.5)) execute()
        if (executed && random.chance(plan.late)) this.#late(effect, record)
      }
      const end = (outcome: ToolOutcome) => {
        this.#process.underWay.delete(crashed)
        if ('content' in outcome) record.contents.add(outcome.content)
        if ('message' in outcome) record.contents.add(outcome.message)
        resolve(outcome)
      }
      this.#process.underWay.add(crashed)
      // A tool that hangs has done its work or will do it: nobody knows.
      timeline.after(random.int(0, hangs ? latencyMs * 2 : latencyMs), this.#process, execute)
      timeline.after(latencyMs, this.#process, () => {
        if (hangs) notes.fault('tool timed out')
        end(hangs ? { status: 'failed', kind: 'timeout', message: `timeout ${record.callId}` } : this.#outcome(record))
      })
      request.signal.addEventListener('abort', () => {
        if (random.chance(plan.ignoresCancel)) return notes.fault('tool ignored its cancel')
        timeline.after(1, this.#process, () => end({ status: 'cancelled', started: true }))
      })
    })
  }

  #outcome(record: ToolRecord): ToolOutcome {
    const { random, plan, notes, calm } = this.#world
    const message = `${record.callId} failed at try ${record.starts}`
    if (!calm && random.chance(plan.toolFails)) {
      const kind = random.pick(['threw', 'threw', 'told'] as const)
      notes.fault(kind === 'threw' ? 'tool threw' : 'tool said no')
      return { status: 'failed', kind, message }
    }
    return { status: 'ok', content: this.#content(record), truncated: false }
  }

  #content(record: ToolRecord): string {
    const again = isAgain(record.topic)
    const content = again ? `result of ${record.topic}` : `result of ${record.callId} at try ${record.starts}`
    return this.#world.random.chance(this.#world.plan.large) ? content.padEnd(70_000, '.') : content
  }

  #execute(record: ToolRecord, once: boolean): void {
    record.executions += 1
    if (!once) return
    const detail = () => `${record.shard}: ${record.callId} (${record.tool}) was executed ${record.executions} times`
    this.#world.notes.check('once', record.executions === 1, detail)
  }

  #late(effect: Effect, record: ToolRecord): void {
    if (!('effect' in effect.body) || effect.body.type === 'promise.call') return
    this.#world.notes.fault('tool outcome late')
    const content = this.#content(record)
    record.contents.add(content)
    const outcome = toolOutcome({ status: 'ok', content, truncated: false }, effect.body, {
      random: () => 0.5,
    })
    if (outcome === null) return
    const draft = { from: 'port/tool', to: effect.from, cause: effect.id, ...outcome }
    this.#world.deliver(this.#shard, draft, this.#world.random.int(0, 20_000))
  }

  async verify(request: ToolRequest): Promise<{ done: true; content: string } | { done: false } | { done: null }> {
    const { random, timeline, judge } = this.#world
    if (!this.#process.alive) return never()
    if (durable(this.#world, this.#shard, request.effect) === undefined) return { done: null }
    const record = judge.tool(this.#shard, request.callId, request.idempotencyKey, request.tool)
    await timeline.wait(random.int(1, 200), this.#process)
    if (!this.#process.alive) return never()
    if (random.chance(0.15)) return { done: null }
    if (record.executions === 0) return { done: false }
    const content = `verified ${record.callId}`
    record.contents.add(content)
    return { done: true, content }
  }

  #die<T>(name: Parameters<World['crash']>[1]): Promise<T> {
    this.#world.crash(this.#process, name)
    return never()
  }
}
