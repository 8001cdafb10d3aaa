/**
 * The crew: one run after the other, from task to one typed end.
 *
 * A run starts the lead with the task, starts delegates when agents call them (at most `delegates` at once, the rest
 * wait), and ends with the lead's answer or with a code. It decides what becomes of an agent that cannot pay.
 *
 *     idle ─► running ─► closing ─► idle | running (next run)
 */
import { assertEvent, assign, cancel, enqueueActions, raise, setup } from 'xstate'
import {
  accountOf,
  crossed,
  crosses,
  endOf,
  isAway,
  isMeant,
  mailOf,
  refusalOf,
  type Task,
  answerable,
  type CrewContext,
  type CrewEvent,
  type CrewInput,
  delegatesOf,
  dropped,
  grows,
  isRepeated,
  isLead,
  keeperOf,
  keptByCrew,
  keptOf,
  leadName,
  leadOf,
  mayStart,
  minOutputTokens,
  minus,
  perCrew,
  remembered,
  runOf,
  startOf,
  steered,
  without,
  type Worker,
} from './crew-context.js'
import { type CrewMessage, nothing, steeringsOf, to } from './messages.js'

export type { CrewEvent }

/** Raised by the crew itself. */
type Own = { type: 'crew.wall' }

const crew = setup({
  types: {} as { context: CrewContext; events: CrewMessage | Own; input: CrewInput; emitted: CrewEvent },
  guards: {
    fromLead: ({ context, event }) => event.type === 'agent.finished' && isLead(context, event.address),
    leadFailed: ({ context, event }) => event.type === 'actor.failed' && isLead(context, event.address),
    /** Keepers of earlier runs live on for late bills: what becomes of them is nothing to this one. */
    keeperFailed: ({ context, event }) => event.type === 'actor.failed' && event.address === keeperOf(context),
    crewKeeperFailed: ({ context, event }) =>
      event.type === 'actor.failed' && keptByCrew(context) && event.address === keeperOf(context),
    detects: ({ context }) => Object.values(context.data.agents).some(({ loops }) => loops !== null),
    needsRouter: ({ context }) => context.router === null,
    routerFailed: ({ context, event }) => event.type === 'actor.failed' && event.address === context.router,
    detectorFailed: ({ context, event }) => event.type === 'actor.failed' && event.address === context.detector,
    isKept: ({ context }) => keptByCrew(context),
    isWorker: ({ context, event }) =>
      (event.type === 'agent.finished' || event.type === 'actor.failed') &&
      context.workers[event.address] !== undefined,
    /** The account that ran dry is the delegate's own: only the delegation fails. */
    ownAccount: ({ context, event }) =>
      event.type === 'agent.exhausted' && event.account !== 'run' && !isLead(context, event.address),
    cancelsThis: ({ context, event }) =>
      (event.type === 'crew.cancel' && event.run === undefined) || isMeant(event, context.task),
    cancelsWaiting: ({ context, event }) => context.queue.some((task) => isMeant(event, task)),
    refusesTask: ({ context, event }) => event.type === 'delegate.task' && refusalOf(context, event) !== null,
    awayMayStart: ({ context }) => isAway(context.waiting[0]?.agent ?? '') && mayStart(context),
    steers: ({ context, event }) =>
      event.type === 'crew.steer' && !isRepeated(context, event) && steered(context, event).length > 0,
    steeredBefore: ({ context, event }) => event.type === 'crew.steer' && isRepeated(context, event),
    waitsAndMayStart: ({ context }) => context.waiting.length > 0 && mayStart(context),
    stoppedBankrupt: ({ context }) => context.bankrupt && Object.keys(context.workers).length === 0,
    allStopped: ({ context }) => Object.keys(context.workers).length === 0,
    isQueued: ({ context }) => context.queue.length > 0,
    hasWall: ({ context }) => context.data.wallMs !== null,
    needsKeeper: ({ context }) => context.keeper === null || keptByCrew(context) !== perCrew(context),
  },
  actions: {
    takeTask: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, ['crew.task', 'delegate.task'])
      const run = `r${event.sequence}`
      const values = Array.from({ length: event.messages }, (_, index) => index)
      enqueue.sendTo(to('shard/runs'), { type: 'run.queued', run })
      enqueue.sendTo(to(`log/${run}`), { type: 'log.append', values })
      enqueue.emit({ type: 'run.queued', run })
      const mail = event.type === 'delegate.task' ? mailOf(event) : null
      enqueue.assign({ queue: [...context.queue, { run, tokens: event.tokens, messages: event.messages, mail }] })
    }),
    /** A run that ends before it begins: so it is answered like any other. */
    refuseTask: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'delegate.task')
      const run = `r${event.sequence}`
      const end = { run, spent: nothing, ...refusalOf(context, event)! }
      enqueue.sendTo(to('shard/runs'), { type: 'run.queued', run })
      enqueue.emit({ type: 'run.queued', run })
      enqueue.sendTo(to('shard/runs'), { type: 'run.finished', ...end })
      enqueue.emit({ type: 'run.finished', ...end })
    }),
    nextTask: assign(({ context }) => {
      const [task, ...queue] = context.queue
      return { task: task ?? null, queue, end: null, workers: {}, waiting: [] }
    }),
    startKeeper: enqueueActions(({ context, enqueue }) => {
      const name = perCrew(context) ? 'crew' : runOf(context)
      const input = { self: `budget/${name}`, limits: context.data.limits, minOutputTokens: minOutputTokens(context) }
      for (const old of context.keeper === null ? [] : [keeperOf(context)])
        enqueue.sendTo(to('shard/actors'), { type: 'actor.stop', address: old })
      enqueue.sendTo(to('shard/actors'), { type: 'actor.start', kind: 'budget', name, input })
      enqueue.assign({ keeper: name, before: nothing })
    }),
    startDetector: enqueueActions(({ context, enqueue }) => {
      const self = `loop/${runOf(context)}`
      enqueue.sendTo(to('shard/actors'), { type: 'actor.start', kind: 'loop', name: runOf(context), input: { self } })
      enqueue.assign({ detector: self })
    }),
    startRouter: enqueueActions(({ enqueue }) => {
      const self = 'router/main'
      enqueue.sendTo(to('shard/actors'), { type: 'actor.start', kind: 'router', name: 'main', input: { self } })
      enqueue.assign({ router: self })
    }),
    startLead: enqueueActions(({ context, enqueue }) => {
      const task = context.task!
      const agent = leadOf(context)
      const kept = keptOf(context, task)
      const name = leadName(context)
      const part = {
        depth: task.mail?.depth ?? 0,
        length: kept.length + task.messages,
        tokens: kept.tokens + task.tokens,
        conversation: kept.conversation,
        trail: [],
      }
      enqueue.sendTo(to('shard/runs'), { type: 'run.started', run: task.run, conversation: kept.conversation })
      for (const conversation of kept.conversation === task.run ? [] : [kept.conversation]) {
        enqueue.sendTo(to(`log/${conversation}`), { type: 'log.append', all: task.run })
      }
      enqueue.emit({ type: 'run.started', run: task.run, agent })
      for (const { target, message } of startOf(context, agent, name, part)) enqueue.sendTo(to(target), message)
      enqueue.emit({ type: 'agent.started', agent, address: `agent/${name}` })
      enqueue.assign({ workers: { [`agent/${name}`]: { agent, conversation: kept.conversation, call: null } } })
    }),
    planWall: raise({ type: 'crew.wall' }, { id: 'active:wall', delay: ({ context }) => context.data.wallMs ?? 0 }),
    dropWall: cancel('active:wall'),

    enqueueDelegate: assign({
      waiting: ({ context, event }) => (event.type === 'delegate.call' ? [...context.waiting, event] : context.waiting),
    }),
    startDelegate: enqueueActions(({ context, enqueue }) => {
      const [call, ...waiting] = context.waiting
      const { agent, name, depth, length, tokens, trail } = call!
      const part = { depth, length, tokens, conversation: name, trail }
      for (const { target, message } of startOf(context, agent, name, part)) {
        enqueue.sendTo(to(target), message)
      }
      enqueue.emit({ type: 'agent.started', agent, address: `agent/${name}` })
      const worker: Worker = { agent, conversation: name, call: call! }
      enqueue.assign({ waiting, workers: { ...context.workers, [`agent/${name}`]: worker } })
    }),
    startEnvoy: enqueueActions(({ context, enqueue }) => {
      const [call, ...waiting] = context.waiting
      const { agent, name, depth, length } = call!
      const self = `envoy/${name}`
      const { answerMs } = context.data
      const chain = context.task?.mail?.chain ?? []
      const input = { self, crew: context.self, agent, conversation: name, length, depth, chain, answerMs }
      enqueue.sendTo(to('shard/actors'), { type: 'actor.start', kind: 'envoy', name, input })
      enqueue.emit({ type: 'agent.started', agent, address: self })
      enqueue.assign({ waiting, workers: { ...context.workers, [self]: { agent, conversation: name, call: call! } } })
    }),
    /** Tasks of crews that this run waits for from now on. */
    refuseCrossing: enqueueActions(({ context, enqueue }) => {
      const isRefused = ({ mail }: Task) => mail !== null && crosses(context, mail)
      for (const { run, mail } of context.queue.filter(isRefused)) {
        const end = { run, spent: nothing, ...crossed(mail!) }
        enqueue.sendTo(to('shard/runs'), { type: 'run.finished', ...end })
        enqueue.emit({ type: 'run.finished', ...end })
      }
      enqueue.assign({ queue: context.queue.filter((task) => !isRefused(task)) })
    }),
    answerCaller: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'agent.finished')
      const { agent } = context.workers[event.address]!
      const failed = `${agent} failed: ${event.code}: ${event.reason}`
      const content = event.code === null ? { answerOf: event.conversation } : { text: failed }
      for (const { index, callId, conversation, caller } of answerable(context, event.address)) {
        enqueue.sendTo(to(`log/${conversation}`), { type: 'log.stage', index, callId, ...content })
        enqueue.sendTo(to(caller), {
          ...{ type: 'delegate.finished', index, tokens: event.answer + 16 },
          result: event.code ?? event.result,
        })
      }
    }),
    answerFailed: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'actor.failed')
      const { agent } = context.workers[event.address]!
      const text = `${agent} failed: ${event.code}: ${event.reason}`
      for (const { index, callId, conversation, caller } of answerable(context, event.address)) {
        enqueue.sendTo(to(`log/${conversation}`), { type: 'log.stage', index, callId, text })
        enqueue.sendTo(to(caller), { type: 'delegate.finished', index, tokens: 64, result: event.code })
      }
    }),
    /** Whoever works for an agent that failed works for nobody. */
    cancelOrphans: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'actor.failed')
      for (const address of delegatesOf(context, event.address)) enqueue.sendTo(to(address), { type: 'run.cancel' })
      const theirs = context.waiting.filter((call) => call.caller === event.address)
      for (const log of dropped(theirs)) enqueue.sendTo(log, { type: 'log.drop' })
      enqueue.assign({ waiting: context.waiting.filter((call) => call.caller !== event.address) })
    }),
    dropWorker: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, ['agent.finished', 'actor.failed'])
      const { agent, conversation } = context.workers[event.address]!
      const workers = without(context.workers, event.address)
      const code = event.code
      const last = !Object.values(workers).some((worker) => worker.agent === agent)
      const refunds = last && accountOf(context, agent) !== 'run' ? [accountOf(context, agent)] : []
      for (const account of refunds) enqueue.sendTo(to(keeperOf(context)), { type: 'budget.refund', account })
      for (const log of isLead(context, event.address) ? [] : [conversation])
        enqueue.sendTo(to(`log/${log}`), { type: 'log.drop' })
      enqueue.emit({
        type: 'agent.finished',
        agent,
        address: event.address,
        code,
        rounds: event.type === 'agent.finished' ? event.rounds : 0,
      })
      enqueue.assign({ workers })
    }),
    cancelDelegates: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'delegate.cancel')
      for (const address of delegatesOf(context, event.caller)) enqueue.sendTo(to(address), { type: 'run.cancel' })
      const theirs = context.waiting.filter((call) => call.caller === event.caller)
      for (const log of dropped(theirs)) enqueue.sendTo(log, { type: 'log.drop' })
      enqueue.assign({ waiting: context.waiting.filter((call) => call.caller !== event.caller) })
    }),
    dropCall: enqueueActions(({ event, enqueue }) => {
      assertEvent(event, 'delegate.call')
      for (const log of dropped([event])) enqueue.sendTo(log, { type: 'log.drop' })
    }),
    cancelExhausted: enqueueActions(({ event, enqueue }) => {
      assertEvent(event, 'agent.exhausted')
      enqueue.sendTo(to(event.address), { type: 'run.cancel' })
    }),
    cancelAll: enqueueActions(({ context, enqueue }) => {
      for (const address of Object.keys(context.workers)) enqueue.sendTo(to(address), { type: 'run.cancel' })
      for (const log of dropped(context.waiting)) enqueue.sendTo(log, { type: 'log.drop' })
      enqueue.assign({ waiting: [] })
    }),

    pause: enqueueActions(({ context, enqueue }) => {
      for (const address of Object.keys(context.workers)) enqueue.sendTo(to(address), { type: 'run.pause' })
      enqueue.emit({ type: 'run.paused', run: runOf(context) })
      enqueue.assign({ paused: true })
    }),
    resume: enqueueActions(({ context, enqueue }) => {
      for (const address of Object.keys(context.workers)) enqueue.sendTo(to(address), { type: 'run.resume' })
      enqueue.emit({ type: 'run.resumed', run: runOf(context) })
      enqueue.assign({ paused: false })
    }),
    redefine: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'crew.redefined')
      for (const [address, worker] of Object.entries(context.workers)) {
        const data = event.crew.agents[worker.agent]
        for (const known of data === undefined ? [] : [data])
          enqueue.sendTo(to(address), { type: 'agent.redefined', data: known })
      }
      enqueue.sendTo(to(keeperOf(context)), { type: 'budget.raise', account: 'run', limits: event.crew.limits })
      enqueue.assign({ data: event.crew })
    }),

    steer: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'crew.steer')
      const { tokens } = event
      for (const address of steered(context, event)) enqueue.sendTo(to(address), { type: 'run.steer', tokens })
      enqueue.assign({ steers: remembered(context, event) })
    }),
    refuseSteer: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'crew.steer')
      enqueue.emit({ type: 'steer.refused', run: event.run ?? runOf(context), agent: event.agent ?? '' })
    }),
    /** What a worker that failed did not hear of any more. */
    dropSteerings: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'actor.failed')
      const { conversation } = context.workers[event.address]!
      enqueue.sendTo(to(`log/${steeringsOf(conversation)}`), { type: 'log.drop' })
    }),

    endAnswered: assign({
      end: ({ event }) => {
        assertEvent(event, 'agent.finished')
        const { code, reason, finish, rounds, conversation } = event
        return { code, reason, finish, rounds, conversation }
      },
    }),
    keep: assign({
      kept: ({ context, event }) => {
        assertEvent(event, 'agent.finished')
        const { conversation, length, tokens } = event
        const agent = context.workers[event.address]!.agent
        const moved = grows(context, agent, conversation)
        return moved ? { ...context.kept, [agent]: { conversation, length, tokens } } : context.kept
      },
    }),
    /** Nobody knows how far a lead that failed had come: its next run begins anew. */
    forget: assign({
      kept: ({ context, event }) => {
        assertEvent(event, 'actor.failed')
        return without(context.kept, context.workers[event.address]!.agent)
      },
    }),
    endExhausted: assign({
      end: ({ event }) => {
        assertEvent(event, 'agent.exhausted')
        return endOf('BUDGET_EXHAUSTED', `the budget of ${event.dimension} is spent (account ${event.account})`)
      },
    }),
    endWall: assign({ end: () => endOf('BUDGET_EXHAUSTED', 'the budget of wallMs is spent') }),
    endFailed: assign({
      end: ({ event }) => {
        assertEvent(event, 'actor.failed')
        return endOf(event.code, `${event.address}: ${event.reason}`)
      },
    }),
    endCancelled: assign({ end: () => endOf('RUN_CANCELLED', 'cancelled') }),
    goBankrupt: assign({ bankrupt: true }),
    dropDetector: assign({ detector: null }),
    dropRouter: assign({ router: null }),
    /** A budget of the crew outlives its keeper's failure: another one would know nothing of what was spent. */
    resumeKeeper: enqueueActions(({ context, enqueue }) => {
      enqueue.sendTo(to('shard/actors'), { type: 'actor.resume', address: keeperOf(context) })
    }),
    recall: assign({
      before: ({ event }) => {
        assertEvent(event, 'budget.closed')
        return event.spent
      },
    }),
    cancelWaiting: enqueueActions(({ context, event, enqueue }) => {
      for (const { run } of context.queue.filter((task) => isMeant(event, task))) {
        const end = { run, spent: nothing, ...endOf('RUN_CANCELLED', 'cancelled before it started') }
        enqueue.sendTo(to('shard/runs'), { type: 'run.finished', ...end })
        enqueue.emit({ type: 'run.finished', ...end })
      }
      enqueue.assign({ queue: context.queue.filter((task) => !isMeant(event, task)) })
    }),
    closeBudget: enqueueActions(({ context, enqueue }) => {
      const type = keptByCrew(context) ? 'budget.report' : 'budget.close'
      enqueue.sendTo(to(keeperOf(context)), { type, replyTo: context.self })
    }),
    finish: enqueueActions(({ context, event, enqueue }) => {
      const total = event.type === 'budget.closed' ? event.spent : context.before
      const spent = minus(total, context.before)
      const run = runOf(context)
      for (const address of context.detector === null ? [] : [context.detector])
        enqueue.sendTo(to('shard/actors'), { type: 'actor.stop', address })
      enqueue.sendTo(to('shard/runs'), { type: 'run.finished', run, spent, ...context.end! })
      enqueue.emit({ type: 'run.finished', run, spent, ...context.end! })
      const lives = keptByCrew(context) && !context.bankrupt
      enqueue.assign({
        task: null,
        bankrupt: false,
        detector: null,
        keeper: lives ? context.keeper : null,
        before: total,
      })
    }),
  },
})

/** The crew machine. Bump `version` with any change of its decisions. */
export const crewMachine = crew.createMachine({
  id: 'crew',
  version: '4',
  context: ({ input: { self, data, keeper } }) => ({
    self,
    data,
    queue: [],
    task: null,
    workers: {},
    waiting: [],
    kept: {},
    paused: false,
    end: null,
    bankrupt: false,
    keeper: keeper ?? null,
    detector: null,
    router: null,
    before: nothing,
    steers: [],
  }),
  initial: 'waking',
  on: {
    'crew.redefined': { actions: 'redefine' },
    'crew.pause': { actions: 'pause' },
    'crew.resume': { actions: 'resume' },
    'crew.cancel': { guard: 'cancelsWaiting', actions: 'cancelWaiting' },
    'crew.task': { actions: 'takeTask' },
    'crew.steer': [{ guard: 'steeredBefore' }, { actions: 'refuseSteer' }],
    'delegate.task': [{ guard: 'refusesTask', actions: 'refuseTask' }, { actions: 'takeTask' }],
    'delegate.revoke': { guard: 'cancelsWaiting', actions: 'cancelWaiting' },
    'budget.closed': {},
  },
  states: {
    /** A crew that failed asks its keeper what was spent before. */
    waking: {
      always: [{ guard: 'isKept', target: 'idle', actions: 'closeBudget' }, { target: 'idle' }],
    },
    idle: {
      always: { guard: 'isQueued', target: 'running', actions: 'nextTask' },
      on: {
        'actor.failed': [
          { guard: 'crewKeeperFailed', actions: 'resumeKeeper' },
          { guard: 'routerFailed', actions: 'dropRouter' },
        ],
        'budget.closed': { actions: 'recall' },
      },
    },
    running: {
      initial: 'starting',
      on: {
        'agent.finished': [
          { guard: 'fromLead', target: 'closing', actions: ['endAnswered', 'keep', 'dropWorker'] },
          { guard: 'isWorker', actions: ['answerCaller', 'dropWorker'] },
        ],
        'actor.failed': [
          { guard: 'leadFailed', target: 'closing', actions: ['endFailed', 'forget', 'dropSteerings', 'dropWorker'] },
          { guard: 'crewKeeperFailed', target: 'closing', actions: ['endFailed', 'resumeKeeper'] },
          { guard: 'keeperFailed', target: 'closing', actions: ['endFailed', 'goBankrupt'] },
          { guard: 'detectorFailed', target: 'closing', actions: ['endFailed', 'dropDetector'] },
          { guard: 'routerFailed', target: 'closing', actions: ['endFailed', 'dropRouter'] },
          { guard: 'isWorker', actions: ['answerFailed', 'cancelOrphans', 'dropSteerings', 'dropWorker'] },
        ],
        'agent.exhausted': [
          { guard: 'ownAccount', actions: 'cancelExhausted' },
          { target: 'closing', actions: 'endExhausted' },
        ],
        'crew.cancel': [
          { guard: 'cancelsThis', target: 'closing', actions: 'endCancelled' },
          { guard: 'cancelsWaiting', actions: 'cancelWaiting' },
        ],
        'crew.steer': { guard: 'steers', actions: 'steer' },
        'delegate.revoke': [
          { guard: 'cancelsThis', target: 'closing', actions: 'endCancelled' },
          { guard: 'cancelsWaiting', actions: 'cancelWaiting' },
        ],
        'crew.wall': { target: 'closing', actions: 'endWall' },
        'delegate.call': { target: '.working', actions: 'enqueueDelegate' },
        'delegate.cancel': { actions: 'cancelDelegates' },
      },
      states: {
        starting: {
          always: [{ guard: 'needsKeeper', target: 'detecting', actions: 'startKeeper' }, { target: 'detecting' }],
        },
        detecting: {
          always: [{ guard: 'detects', target: 'routing', actions: 'startDetector' }, { target: 'routing' }],
        },
        routing: {
          always: [{ guard: 'needsRouter', target: 'leading', actions: 'startRouter' }, { target: 'leading' }],
        },
        leading: {
          always: [
            { guard: 'hasWall', target: 'working', actions: ['startLead', 'planWall'] },
            { target: 'working', actions: 'startLead' },
          ],
        },
        working: {
          always: [
            { guard: 'awayMayStart', target: 'working', reenter: true, actions: ['startEnvoy', 'refuseCrossing'] },
            { guard: 'waitsAndMayStart', target: 'working', reenter: true, actions: 'startDelegate' },
          ],
        },
      },
    },
    /** Stops who is still at work, then asks for the bill. */
    closing: {
      entry: ['dropWall', 'cancelAll'],
      initial: 'stopping',
      on: {
        'agent.finished': [
          { guard: 'fromLead', actions: ['keep', 'dropWorker'] },
          { guard: 'isWorker', actions: 'dropWorker' },
        ],
        'actor.failed': [
          { guard: 'leadFailed', actions: ['forget', 'dropSteerings', 'dropWorker'] },
          { guard: 'isWorker', actions: ['dropSteerings', 'dropWorker'] },
          { guard: 'crewKeeperFailed', actions: 'resumeKeeper' },
          { guard: 'keeperFailed', actions: 'goBankrupt' },
          { guard: 'detectorFailed', actions: 'dropDetector' },
          { guard: 'routerFailed', actions: 'dropRouter' },
        ],
        'agent.exhausted': {},
        'delegate.call': { actions: 'dropCall' },
        'delegate.cancel': {},
      },
      states: {
        stopping: {
          always: [
            { guard: 'stoppedBankrupt', target: '#crew.idle', actions: 'finish' },
            { guard: 'allStopped', target: 'billing' },
          ],
        },
        billing: {
          entry: 'closeBudget',
          on: {
            'budget.closed': { target: '#crew.idle', actions: 'finish' },
            'actor.failed': [
              { guard: 'crewKeeperFailed', target: '#crew.idle', actions: ['resumeKeeper', 'finish'] },
              { guard: 'keeperFailed', target: '#crew.idle', actions: 'finish' },
            ],
          },
        },
      },
    },
  },
})
