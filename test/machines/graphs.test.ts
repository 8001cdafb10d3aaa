/**
 * Model-based tests: every step of every machine, from every state within a bound, taken by the runtime and compared with
 * XState's own. The gate is that each transition and both answers of each guard are among them.
 */
import { expect, test } from 'vitest'
import {
  type AgentInput,
  agentMachine,
  breakerMachine,
  budgetMachine,
  crewMachine,
  defaultLoops,
  envoyMachine,
  escalationMachine,
  flowMachine,
  loopMachine,
  machines,
  nothing,
  routerMachine,
  type Supervision,
  type ToolInput,
  toolMachine,
} from '../../machines/index.js'
import './budget-graph.js'
import * as agent from '../support/agent-messages.js'
import * as budget from '../support/budget.js'
import * as crew from '../support/crew-messages.js'
import { cover, type Message } from '../support/machine-driver.js'
import { covers, explored, type Model } from '../support/machine-graph.js'

test('graph of the tool executor: the runtime takes each step as the model does, and none is left out', () => {
  const input: ToolInput = {
    ...{ self: 'tool/7-0', owner: 'agent/writer-r1', agent: 'writer', run: 'r1', conversation: 'r1' },
    ...{ index: 2, callId: 'c2', tool: 'lookup', timeoutMs: 1_000, retries: 1, position: 1, key: '7-0' },
    ...{ effect: 'once', onUnknown: 'tell' },
  }
  const failed = (retryMs: number | null): Message => {
    return { type: 'tool.failed', kind: 'threw', bytes: 6, retryMs, result: 'f', sequence: 9 }
  }
  const verified = (done: boolean | null): Message => ({ type: 'tool.verified', done, bytes: 4, result: 'v' })
  const messages: Message[] = [
    { type: 'tool.succeeded', bytes: 10, result: 'r', sequence: 9 },
    ...[failed(null), failed(40), verified(true), verified(false), verified(null)],
    ...[true, false].map((started) => ({ type: 'effect.interrupted', started })),
    ...['effect.crashed', 'tool.cancel', 'tool.unheard'].map((type) => ({ type })),
    ...['approved', 'denied'].map((decision) => {
      return { type: 'human.answered', decision, by: 'ada', bytes: 3, result: 'h', sequence: 9 }
    }),
    { type: 'human.answered', decision: 'approved', by: 'ada', bytes: 0, result: '', arguments: '{}', sequence: 9 },
  ]
  const effects = ['once', 'idempotent', 'pure'] as const
  const inputs = effects.flatMap((effect) =>
    (['tell', 'verify'] as const).map((onUnknown) => ({ ...input, effect, onUnknown })),
  )
  covers<{ attempt: number }>(
    cover(toolMachine),
    [
      {
        inputs: [...inputs, ...inputs.map((each) => ({ ...each, ask: { kind: 'approval' as const, waitMs: 50 } }))],
        messages: ({ attempt }) => (attempt > 4 ? [] : messages),
      },
    ],
    { atLeast: 80, within: 'four attempts of a call' },
  )
})

test('graph of the envoy: the runtime takes each step as the model does, and none is left out', () => {
  const input = {
    ...{ self: 'envoy/writer-4-0', crew: 'crew/main', agent: 'q3/agent/writer', conversation: 'writer-4-0' },
    ...{ length: 1, depth: 2, chain: ['q1'], answerMs: 60_000 },
  }
  const answered = (code: string | null): Message => {
    return { type: 'delegate.answered', code, reason: 'so', tokens: 7, result: 'r' }
  }
  const messages: Message[] = [
    ...[answered(null), answered('MODEL_FAILED')],
    { type: 'mail.returned', code: 'CREW_UNKNOWN', reason: 'gone' },
    ...['run.cancel', 'run.pause'].map((type) => ({ type })),
  ]
  covers(cover(envoyMachine), [{ inputs: [input], messages: () => messages }], { atLeast: 6, within: 'none' })
})

test('graph of the flow: the runtime takes each step as the model does, and none is left out', () => {
  const base = {
    ...{ self: 'flow/r3', crew: 'crew/main', run: 'r3', conversation: 'r3', length: 1, tokens: 9, sequence: 3 },
    systems: { b: 1 },
  }
  const inputs = (['all', 'first'] as const).map((join) => ({
    ...base,
    stages: [
      { agents: ['a', 'b'], join },
      { agents: ['c'], join: 'all' as const },
    ],
  }))
  const messages = [0, 1, 64].flatMap((index) =>
    [null, 'MODEL_FAILED'].map((code) => ({
      ...{ type: 'delegate.finished', index, tokens: 5, result: 'r', code, reason: 'so' },
    })),
  )
  const model = { inputs, messages: () => [...messages, { type: 'run.cancel' }] }
  covers(cover(flowMachine), [model], { atLeast: 12, within: 'two agents, then one' })
})

test('graph of the escalation: the runtime takes each step as the model does, and none is left out', () => {
  const input = {
    ...{ self: 'escalation/r1-run', crew: 'crew/main', run: 'r1', agent: 'writer' },
    ...{ account: 'run', dimension: 'tokens', limit: 40, waitMs: 50 },
  }
  const answered = (decision: string, more: object = {}): Message => {
    return { type: 'human.answered', decision, by: 'ada', bytes: 0, result: '', ...more }
  }
  const messages = [answered('approved'), answered('approved', { limits: { tokens: 90 } }), answered('denied')]
  covers(cover(escalationMachine), [{ inputs: [input], messages: () => messages }], { atLeast: 2, within: 'none' })
})

test('graph of the loop detector: the runtime takes each step as the model does, and none is left out', () => {
  interface Tracks {
    readonly tracks: readonly { readonly level: number }[]
  }
  const check = (
    turn: number,
    learned: readonly string[],
    call: string,
    more: Record<string, unknown> = {},
  ): Message => ({
    ...{ type: 'loop.check', replyTo: 'agent/a', conversation: 'r1', turn, trail: ['a'], loops: defaultLoops },
    learned: learned.map((each) => ({ call: each.slice(0, 1), result: each })),
    calls: [{ index: 0, call, agent: null }],
    ...more,
  })
  const messages = [
    ...[check(0, [], 'a'), check(0, ['a1'], 'a'), check(0, ['a2'], 'b'), check(1, ['a1'], 'a')],
    check(0, ['a1'], 'a', { trail: ['a', 'b', 'a', 'b'], calls: [{ index: 0, call: 'x', agent: 'a' }] }),
    check(0, ['b1'], 'b', { conversation: 'r2' }),
  ]
  const isFar = ({ tracks }: Tracks): boolean => tracks.some(({ level }) => level > 8)
  const model = { inputs: [{ self: 'loop/r1' }], messages: (known: Tracks) => (isFar(known) ? [] : messages) }
  covers<Tracks>(cover(loopMachine), [model], { atLeast: 40, within: 'two conversations, a level of 8' })
})

test('graph of the model router: the runtime takes each step as the model does, and none is left out', () => {
  interface Routes {
    readonly rounds: readonly { readonly tried: readonly string[]; readonly heldMs: number }[]
  }
  const groups = [['a:one', 'b:two'], ['c:three']]
  const base = { type: 'route.ask', replyTo: 'agent/a', round: 'r1 0', groups, attempts: 2, delayMs: 40 }
  const failed = (deployment: string, kind = 'server', retryAfterMs: number | null = null) => ({
    ...{ ...base, skipped: [], failure: { deployment, kind, retryAfterMs } },
  })
  const kept = (reason: string, ...deployments: readonly string[]) =>
    deployments.map((deployment, at) => ({ deployment, reason, waitMs: 500 * (at + 1) }))
  const messages = [
    ...['a:one', 'b:two', 'c:three'].map((each) => failed(each)),
    ...[failed('a:one', 'rate_limited', 9_000), failed('a:one', 'context_window'), failed('b:two', 'auth')],
    failed('c:three', 'bad_request'),
    { ...base, failure: null, skipped: kept('open', 'a:one', 'c:three') },
    { ...failed('c:three'), skipped: kept('fault', 'a:one', 'b:two') },
    { ...failed('a:one'), replyTo: 'agent/b' },
  ]
  const isFar = ({ rounds }: Routes): boolean => rounds.some(({ tried, heldMs }) => tried.length > 2 || heldMs > 0)
  const model = { inputs: [{ self: 'router/main' }], messages: (known: Routes) => (isFar(known) ? [] : messages) }
  covers<Routes>(cover(routerMachine), [model], { atLeast: 40, within: 'three tries, or one wait, in a round' })
})

test('graph of the circuit breaker: the runtime takes each step as the model does, and none is left out', () => {
  interface Circuit {
    readonly inARow: number
    readonly calls: number
  }
  const settings = { failures: 2, rate: 0.5, minCalls: 3, windowMs: 1_000, cooldownMs: 100, probeMs: 50 }
  const done = (verdict: string, call = 'c', cooling: object | null = null) => ({
    ...{ type: 'permit.done', call, at: 100, verdict, cooling, underWay: 0 },
  })
  const closed = { type: 'breaker.told', state: 'closed', until: 0, probe: null, cooling: null }
  const messages = [
    ...[100, 160, 220].flatMap((at) =>
      ['choice', 'last', 'only'].map((need) => ({ type: 'permit.ask', replyTo: 'port', call: 'c', at, need })),
    ),
    ...[done('answered'), done('failed'), done('none'), done('failed', 'd')],
    ...[done('answered', 'c', { ms: 90, why: 'asked' }), done('none', 'c', { ms: 90, why: 'fault' })],
    ...[closed, { ...closed, state: 'open', until: 150 }],
    { ...closed, state: 'halfOpen', until: 90, probe: { call: 'e', until: 150 } },
  ]
  const inputs = [{ self: 'breaker/model/a:one', target: 'model/a:one', settings }]
  const isFar = ({ calls }: Circuit): boolean => calls > 3
  const model = { inputs, messages: (known: Circuit) => (isFar(known) ? [] : messages) }
  covers<Circuit>(cover(breakerMachine), [model], { atLeast: 40, within: 'three calls of a window' })
})

test('graph of the budget keeper: the runtime takes each step as the model does, and none is left out', () => {
  interface Books {
    readonly accounts: Readonly<
      Record<string, { readonly spent: { readonly modelCalls: number; readonly toolCalls: number } }>
    >
  }
  interface Shared extends Books {
    readonly share: { readonly number: number }
  }
  const limits = { modelCalls: 2, toolCalls: 1, tokens: 400 }
  const spent = { nanoUsd: 5, tokens: 60, modelCalls: 1, toolCalls: 0 }
  const release = (grant: string): Message => ({ type: 'budget.release', grant })
  const [resumed, sweep] = [{ type: 'actor.resumed' }, { type: 'budget.sweep' }]
  const raise = budget.raise('run', { tokens: 500 }, 'to')
  const large = budget.reserve('b', { inputTokens: 280, replyTo: 'agent/b' })
  const estimated = budget.settle('a', spent, false)
  const withdrawn = ['a', 'b'].map((name) => ({ type: 'budget.withdraw', holder: `agent/${name}` }))
  const failing = [budget.reserve('agent/a#0'), budget.reserve('agent/b#0', { inputTokens: 280, replyTo: 'agent/b' })]
  const three = [...failing, ...withdrawn, budget.settle('agent/a#0', spent, false), budget.close]
  const two = [
    budget.reserve('a'),
    large,
    release('a'),
    release('b'),
    budget.settle('a', spent),
    estimated,
    budget.close,
  ]
  const one = [
    ...[budget.reserve('a'), estimated, budget.settle('a', spent, true, 1), budget.charge(1)],
    ...[sweep, resumed, budget.report, budget.close],
  ]
  const accounts: Message[] = [
    ...[budget.open('child', { tokens: 90 }), { type: 'budget.refund', account: 'child' }, raise],
    ...[budget.reserve('a'), large, budget.settle('a', spent), release('c'), budget.close],
  ]
  // Nobody asks for an account that is not open.
  const child = budget.reserve('c', { account: 'child', replyTo: 'agent/c' })
  const isFar = ({ accounts: { run } }: Books): boolean => run!.spent.modelCalls > 1 || run!.spent.toolCalls > 1
  const within = (messages: readonly Message[]) => (books: Books) => {
    if (isFar(books)) return []
    return messages === accounts && 'child' in books.accounts ? [...messages, child] : messages
  }
  const strict = { self: 'budget/r1', limits, minOutputTokens: 10 }
  const inputs = [strict, { ...strict, soft: true }]
  const models = [two, three, one, accounts].map((messages): Model<Books> => ({ inputs, messages: within(messages) }))
  const sharing = { ...strict, limits: { modelCalls: 2 }, pool: { address: budget.pool, answerMs: 9_000 } }
  /** The pool answers the last message, or an earlier one; its window may have an end. */
  const shared: Model<Shared> = {
    inputs: [sharing],
    messages: ({ accounts: { run }, share: { number } }) =>
      number > 3 || run!.spent.modelCalls > 1
        ? []
        : [
            ...[
              budget.reserve('a'),
              budget.reserve('b'),
              release('a'),
              budget.settle('a', spent),
              estimated,
              budget.close,
            ],
            ...[budget.given(number, { modelCalls: 1 }), budget.given(number, { tokens: 100 }, 60_000)],
            ...[budget.given(number + 1, { modelCalls: 1 }), budget.refused(number), budget.refused(9)],
            ...['share.ask', 'share.settle'].map((message) => ({
              ...{ type: 'mail.returned', message, code: 'CREW_UNKNOWN', reason: 'gone' },
            })),
            ...[{ type: 'share.over' }, { type: 'share.late' }, resumed, budget.report],
          ],
  }
  covers<Books>(cover(budgetMachine), [...models, shared as Model<Books>], {
    atLeast: 200,
    within: 'two accounts, one call and one tool call spent; three answers of a pool',
  })
})

test('graph of the agent: the runtime takes each step as the model does, and none is left out', () => {
  interface Known {
    readonly grants: number
    readonly steered: number
    readonly turn: number
    readonly open: readonly { readonly index: number }[]
  }
  const data = { ...agent.data, rounds: 2, attempts: 2, loops: defaultLoops }
  const plain: AgentInput = { ...agent.input, data }
  const counted: AgentInput = { ...plain, counted: true }
  const bare = (...types: readonly string[]): Message[] => types.map((type) => ({ type }))
  const verdict = (rung: string, refused: readonly number[] = []): Message => ({
    ...{ type: 'loop.verdict', rung, text: rung === 'pass' ? '' : `it is ${rung}` },
    refused: refused.map((index) => ({ index, message: 'not again' })),
  })
  const calls = [agent.toolCall(0), agent.delegation(1), agent.refusal(2)]
  const ends: Message[] = [
    { type: 'tool.finished', index: 0, status: 'ok', tokens: 5, result: 'r' },
    { type: 'delegate.finished', index: 1, tokens: 9, result: 'd' },
    { type: 'actor.failed', address: 'tool/7-0', code: 'ACTOR_FAILED', reason: 'boom' },
  ]
  const one = agent.replied({ calls: [agent.toolCall(0)] })
  const attempts: Message[] = [
    ...[agent.granted, agent.refused, agent.replied(), agent.replied({ calls }), one],
    ...[agent.replied({ fits: false, reason: 'no object' }), agent.replied({ calls: [agent.refusal(0)] })],
    ...[agent.failed(), agent.next('a:one', 1), agent.ended],
    agent.unadmitted({ deployment: 'a:one', reason: 'open', waitMs: 9 }),
    ...[...ends, ...bare('effect.interrupted', 'effect.crashed', 'run.cancel', 'budget.raised')],
  ]
  const loops: Message[] = [
    ...[agent.granted, agent.refused, agent.replied({ calls }), ...ends],
    ...[verdict('pass'), verdict('warn'), verdict('block', [0, 1]), verdict('stop')],
    ...bare('run.cancel', 'budget.raised', 'run.pause', 'run.resume'),
  ]
  const routes: Message[] = [
    ...[agent.granted, agent.replied(), one, agent.failed(), agent.next('a:one'), agent.next('b:two', 1), agent.ended],
    agent.unadmitted({ deployment: 'a:one', reason: 'open', waitMs: 9 }),
    ...[...ends, ...bare('run.cancel', 'run.pause', 'run.resume', 'effect.interrupted')],
  ]
  const users: Message[] = [
    ...[agent.granted, agent.replied(), one, ends[0]!, { type: 'run.steer', tokens: 6 }],
    ...bare('run.cancel', 'run.pause', 'run.resume'),
  ]
  const hands = agent.handoff(1, { hidden: [[0, 1]], saved: 4, system: 1 })
  const handoffs: Message[] = [
    ...[agent.granted, agent.refused, agent.replied({ calls: [agent.handoff(0)] })],
    ...[agent.replied({ calls: [agent.toolCall(0), hands] }), ends[0]!, ends[2]!],
    ...[verdict('pass'), verdict('warn'), verdict('block', [0, 1]), { type: 'run.steer', tokens: 6 }],
    ...bare('run.cancel', 'budget.raised', 'actor.resumed'),
  ]
  const failures: Message[] = [
    ...[agent.granted, agent.refused, agent.replied(), agent.replied({ calls }), agent.failed(), verdict('pass')],
    ...[...ends, ...bare('actor.resumed', 'run.pause', 'run.resume')],
  ]
  const redefined: Message = { type: 'agent.redefined', data: { ...data, rounds: 1 } }
  const rounds: Message[] = [
    ...[agent.prepared(), agent.prepared({ tools: [], tokens: 2 }), agent.stopped, agent.unprepared, agent.granted],
    ...[agent.replied(), one, ends[0]!, { type: 'run.steer', tokens: 6 }],
    ...bare('effect.interrupted', 'effect.crashed', 'run.cancel', 'run.pause', 'run.resume'),
  ]
  const within = (grants: number, messages: readonly Message[]): Model<Known>['messages'] => {
    // A call ends once.
    const mayCome = ({ index }: Message, { open }: Known): boolean => {
      return index === undefined || open.some((each) => each.index === index)
    }
    return (known) => {
      const isFar = known.grants > grants || known.steered + known.turn > 1
      return isFar ? [] : messages.filter((message) => mayCome(message, known))
    }
  }
  const models: Model<Known>[] = [
    { inputs: [plain, counted], messages: within(1, attempts) },
    { inputs: [plain, counted].map((each) => ({ ...each, detector: 'loop/r1' })), messages: within(1, loops) },
    { inputs: [plain], messages: within(1, users) },
    { inputs: [plain, { ...counted, detector: 'loop/r1' }], messages: within(1, handoffs) },
    { inputs: [{ ...plain, data: { ...data, deployments: agent.choice.deployments } }], messages: within(1, routes) },
    { inputs: [plain], messages: within(1, [agent.granted, one, ends[0]!, redefined]) },
    {
      inputs: (['each', 'later'] as const).map((prepares) => ({ ...plain, data: { ...data, prepares } })),
      messages: within(1, rounds),
    },
    { inputs: [plain, { ...counted, detector: 'loop/r1' }], messages: within(2, failures) },
  ]
  covers(cover(agentMachine), models, {
    atLeast: 500,
    within: 'two grants, three where it fails; one message of its user',
  })
})

// The largest of them: on a busy machine it takes longer than a test may otherwise.
test('graph of the crew: the runtime takes each step as the model does, and none is left out', {
  timeout: 60_000,
}, () => {
  interface Known {
    readonly queue: readonly { readonly run: string }[]
    readonly task: { readonly run: string } | null
    readonly workers: Readonly<Record<string, unknown>>
    readonly waiting: readonly { readonly name: string }[]
    readonly steers: readonly string[]
    readonly keeper: string | null
    readonly detector: string | null
    readonly router: string | null
    readonly short: Readonly<Record<string, { readonly escalation: string; readonly agents: readonly string[] }>>
  }
  const bare = (...types: readonly string[]): Message[] => types.map((type) => ({ type }))
  const isKnown = (known: Known, run: string): boolean =>
    known.task?.run === run || known.queue.some((task) => task.run === run)
  /** What the actors of a crew may say: those that work, and its keeper, detector and router. */
  const actorsOf = ({ workers, keeper, detector, router, task }: Known): Message[] => [
    ...Object.keys(workers).flatMap((address) => {
      const accounts = address.includes('saver') ? ['run', 'run/saver'] : ['run']
      const ends = [crew.finished(address), crew.actorFailed(address)]
      return [...ends, ...accounts.map((account) => crew.exhausted(address, account))]
    }),
    ...(task === null && keeper !== 'crew' ? [] : [crew.actorFailed(`budget/${keeper ?? task?.run}`)]),
    ...[detector, router].filter((each) => each !== null).map((each) => crew.actorFailed(each)),
    { type: 'budget.closed', spent: nothing },
  ]
  const tasks = (known: Known, ...sequences: readonly number[]): Message[] =>
    sequences.filter((sequence) => !isKnown(known, `r${sequence}`)).map((sequence) => crew.task(sequence))
  /** Calls of a run's lead, each name once at a time. */
  const calls = (known: Known, of: Readonly<Record<string, string>>): Message[] => {
    const lead = Object.keys(known.workers)[0] ?? 'agent/nobody'
    const isThere = (name: string): boolean =>
      known.waiting.some((each) => each.name === name) ||
      `agent/${name}` in known.workers ||
      `envoy/${name}` in known.workers
    const names = Object.entries(of).filter(([name]) => !isThere(name))
    return names.map(([name, agent]) => crew.call(name, { agent, caller: lead }))
  }
  const given = (known: Known, sequence: number, more: Record<string, unknown> = {}): Message[] => {
    const message = {
      ...{ type: 'delegate.task', agent: 'helper', depth: 3, chain: [], tokens: 12, messages: 1, refused: '' },
      ...{ sender: `a/envoy/helper-${sequence}-0`, shard: 'm', sequence, ...more },
    }
    return isKnown(known, `r${sequence}`) ? [] : [message]
  }
  const steer = (key: string): Message => ({ type: 'crew.steer', tokens: 6, key })
  const looping = { ...crew.data.agents, writer: crew.agentData('writer', { loops: defaultLoops }) }
  const input = (more: Record<string, unknown> = {}, of: Record<string, unknown> = {}) => ({
    ...{ self: 'crew/main', data: { ...crew.data, delegates: 1, ...more }, ...of },
  })
  const runs: Model<Known> = {
    inputs: [input(), input({ wallMs: 5_000 }), input({ per: 'crew' }), input({ per: 'crew' }, { keeper: 'crew' })],
    messages: (known) => [
      ...tasks(known, 1, 2),
      ...actorsOf(known),
      ...bare('crew.cancel', 'crew.wall'),
      { type: 'crew.cancel', run: 'r2' },
    ],
  }
  const delegates: Model<Known> = {
    inputs: [input({ agents: looping })],
    messages: (known) => [
      ...tasks(known, 1),
      ...calls(known, { 'helper-5-0': 'helper', 'saver-5-1': 'saver', 'x-5-2': 'z/agent/x' }),
      ...actorsOf(known),
      ...bare('crew.cancel'),
      { type: 'delegate.cancel', caller: 'agent/writer-r1' },
    ],
  }
  /** Each hands over once: the lead to one that keeps its conversation, the delegate to one with a budget. */
  const handover = (address: string): Message[] => {
    const agent = address.includes('helper') ? 'saver' : 'keeper'
    const next = { agent, name: `${agent}-9-0`, view: { hidden: [], system: null }, trail: ['x'] }
    return /saver|keeper/.test(address) ? [] : [crew.finished(address, { handover: next })]
  }
  const keeper = crew.agentData('keeper', { keep: true })
  const handing: Model<Known> = {
    inputs: [input({ agents: { ...crew.data.agents, keeper, writer: keeper } })],
    messages: (known) => [
      ...tasks(known, 1),
      ...('agent/writer-r1' in known.workers ? calls(known, { 'helper-5-0': 'helper' }) : []),
      ...Object.keys(known.workers).flatMap((address) => [...handover(address), crew.finished(address)]),
      { type: 'budget.closed', spent: nothing },
    ],
  }
  const users: Model<Known> = {
    inputs: [input()],
    messages: (known) => [
      ...tasks(known, 1),
      ...actorsOf(known),
      ...(known.steers.length > 1 ? [] : [steer('a'), steer('b')]),
      ...[steer('a'), { type: 'crew.redefined', crew: { ...crew.data, delegates: 2 } }],
      ...bare('crew.pause', 'crew.resume', 'crew.cancel'),
    ],
  }
  /** Each of those who work cannot pay once. */
  const shortOf = ({ short, workers }: Known): Message[] =>
    Object.keys(workers)
      .filter((address) => !Object.values(short).some(({ agents }) => agents.includes(address)))
      .map((address) => crew.exhausted(address, address.includes('saver') ? 'run/saver' : 'run'))
  const asking = { ...crew.data.agents, saver: crew.agentData('saver', { limits: { tokens: 50 }, raiseMs: 7 }) }
  const budgets: Model<Known> = {
    inputs: [input({ raiseMs: 9, agents: asking, delegates: 2 }), input({ per: 'crew', raiseMs: 9 })],
    messages: (known) => [
      ...tasks(known, 1),
      ...calls(known, { 'helper-5-0': 'helper', 'saver-5-1': 'saver' }),
      ...shortOf(known),
      ...Object.keys(known.workers).map((address) => crew.finished(address)),
      ...Object.entries(known.short).flatMap(([account, { escalation }]) => [
        ...[crew.decided(account, true), crew.decided(account, true, { limits: { tokens: 99 } })],
        ...[crew.decided(account, false), crew.actorFailed(`escalation/${escalation}`)],
      ]),
      ...[
        { type: 'crew.raise', limits: { tokens: 88 } },
        { type: 'crew.raise', limits: {}, agent: 'saver' },
      ],
      ...[
        { type: 'crew.raise', limits: {}, agent: 'helper' },
        { type: 'budget.closed', spent: nothing },
      ],
      ...[crew.actorFailed('agent/nobody'), ...bare('crew.cancel')],
    ],
  }
  const mail: Model<Known> = {
    inputs: [input()],
    messages: (known) => [
      ...given(known, 1),
      ...given(known, 2, { sender: 'z/envoy/y' }),
      ...given(known, 3, { agent: 'nobody' }),
      ...calls(known, { 'x-5-2': 'z/agent/x' }),
      ...actorsOf(known),
      { type: 'delegate.revoke', sender: 'a/envoy/helper-1-0' },
      { type: 'delegate.revoke', sender: 'z/envoy/y' },
    ],
  }
  const supervised = (supervision: Supervision) => {
    const agents = ['writer', 'helper'].map((name) => [name, crew.agentData(name, { supervision })] as const)
    return input({ agents: Object.fromEntries(agents) })
  }
  const failures: Model<Known> = {
    inputs: [
      supervised({ restart: 'fresh', intensity: 1, periodMs: 9, then: 'stop' }),
      supervised({ restart: 'resume', intensity: 1, periodMs: 9, then: 'escalate' }),
    ],
    messages: (known) => [
      ...tasks(known, 1),
      ...calls(known, { 'helper-5-0': 'helper' }),
      ...Object.keys(known.workers).flatMap((address) => [
        ...[crew.finished(address), crew.actorFailed(address), crew.actorFailed(address, { resumable: false })],
        { type: 'delegate.cancel', caller: address },
      ]),
      { type: 'budget.closed', spent: nothing },
    ],
  }
  const models = [runs, delegates, handing, users, budgets, mail, failures]
  covers(cover(crewMachine), models, { atLeast: 500, within: 'two runs, three delegates, two messages of its user' })
})

test('graphs: every machine has one, also the one that runs beside the crews', () => {
  const all = [...Object.values(machines), breakerMachine].map(({ id }) => id)
  expect([...explored].sort()).toEqual(all.sort())
})
