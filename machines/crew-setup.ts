/**
 * What the crew machine asks itself and what it does: its guards and actions.
 *
 * Owns: the messages that each step says, what it notes.
 * Does not own: when (`crew.ts`), what is read off the context (`crew-context.ts`).
 */
import { assertEvent, assign, cancel, enqueueActions, raise, setup } from 'xstate'
import {
  endsAlone,
  isOfRun,
  poolOf,
  raisedBy,
  raiseMsOf,
  raiseOf,
  refusedBy,
  replacedKeepers,
  shortOf,
  spentBy,
} from './crew-budgets.js'
import {
  billOf,
  countSteered,
  type CrewContext,
  type CrewEvent,
  type CrewInput,
  crossed,
  crosses,
  detectorsOf,
  dropped,
  endOf,
  isLead,
  isMeant,
  isRepeated,
  keeperAfter,
  keeperOf,
  keptAfter,
  keptByCrew,
  keptWithout,
  limitsOf,
  mayStart,
  minOutputTokens,
  perCrew,
  refusalOf,
  remembered,
  runOf,
  serves,
  steered,
  type Task,
  taskOf,
  without,
} from './crew-context.js'
import { escalates, restarted, restartOf } from './crew-supervision.js'
import {
  answersOf,
  delegateStart,
  deserted,
  endingOf,
  farewell,
  handedOver,
  leadStart,
  redefined,
  roundsOf,
  withdrawn,
} from './crew-workers.js'
import { type CrewMessage, nothing, steeringsOf, to } from './messages.js'

/** Whether an agent's end is not that of its task: another one goes on. */
const isHandingOver = (
  { data }: CrewContext,
  event: CrewMessage | Own,
): event is Extract<CrewMessage, { type: 'agent.finished' }> =>
  event.type === 'agent.finished' && data.agents[event.handover?.agent ?? ''] !== undefined
/** Raised by the crew itself. */
type Own = { type: 'crew.wall' }

/** Guards and actions, by the names that `crew.ts` uses. */
export const crew = setup({
  types: {} as { context: CrewContext; events: CrewMessage | Own; input: CrewInput; emitted: CrewEvent },
  guards: {
    /** Somebody else goes on with what it was doing. */
    handsOver: ({ context, event }) =>
      isHandingOver(context, event) &&
      event.address in context.workers &&
      serves(context, context.workers[event.address]!),
    leadHandsOver: ({ context, event }) => isHandingOver(context, event) && isLead(context, event.address),
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
    resumesWorker: ({ context, event }) => event.type === 'actor.failed' && restartOf(context, event) === 'resume',
    renewsWorker: ({ context, event }) => event.type === 'actor.failed' && restartOf(context, event) === 'fresh',
    escalates: ({ context, event }) => event.type === 'actor.failed' && escalates(context, event),
    /** Only its delegation fails. */
    endsAlone: ({ context, event }) =>
      event.type === 'agent.exhausted' && endsAlone(context, event.account, event.address),
    /** A person is asked already. */
    asksAlready: ({ context, event }) => event.type === 'agent.exhausted' && event.account in context.short,
    asksForMore: ({ context, event }) =>
      event.type === 'agent.exhausted' &&
      context.workers[event.address] !== undefined &&
      raiseMsOf(context, event.account) !== null,
    isRaised: ({ event }) => event.type === 'budget.decided' && event.raised,
    /** Only delegations of theirs fail. */
    endAlone: ({ context, event }) =>
      event.type === 'budget.decided' &&
      (shortOf(context, event.account).length > 0 || !isOfRun(event.account)) &&
      shortOf(context, event.account).every((address) => endsAlone(context, event.account, address)),
    mayRaise: ({ context, event }) =>
      event.type === 'crew.raise' &&
      context.keeper !== null &&
      (event.agent === undefined || limitsOf(context, event.agent) !== null),
    escalationFailed: ({ event }) => event.type === 'actor.failed' && event.address.startsWith('escalation/'),
    cancelsThis: ({ context, event }) =>
      (event.type === 'crew.cancel' && event.run === undefined) || isMeant(event, context.task),
    cancelsWaiting: ({ context, event }) => context.queue.some((task) => isMeant(event, task)),
    refusesTask: ({ context, event }) => event.type === 'delegate.task' && refusalOf(context, event) !== null,
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
      const task = taskOf(event)
      const { run } = task
      const values = Array.from({ length: event.messages }, (_, index) => index)
      enqueue.sendTo(to('shard/runs'), { type: 'run.queued', run })
      enqueue.sendTo(to(`log/${run}`), { type: 'log.append', values })
      enqueue.emit({ type: 'run.queued', run })
      enqueue.assign({ queue: [...context.queue, task] })
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
      const { limits, soft } = context.data
      const own = { limits, soft, minOutputTokens: minOutputTokens(context) }
      const input = { self: `budget/${name}`, ...own, ...poolOf(context) }
      for (const address of replacedKeepers(context))
        enqueue.sendTo(to('shard/actors'), { type: 'actor.stop', address })
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
      const { agent, address, worker, said } = leadStart(context)
      for (const { target, message } of said) enqueue.sendTo(to(target), message)
      enqueue.emit({ type: 'run.started', run: runOf(context), agent })
      enqueue.emit({ type: 'agent.started', agent, address })
      enqueue.assign({ workers: { [address]: worker } })
    }),
    planWall: raise({ type: 'crew.wall' }, { id: 'active:wall', delay: ({ context }) => context.data.wallMs ?? 0 }),
    dropWall: cancel('active:wall'),

    enqueueDelegate: assign({
      waiting: ({ context, event }) => (event.type === 'delegate.call' ? [...context.waiting, event] : context.waiting),
    }),
    /** The first that waits: an agent of this crew, or an envoy to that of another. */
    startWaiting: enqueueActions(({ context, enqueue }) => {
      const { agent, address, worker, said } = delegateStart(context)
      for (const { target, message } of said) enqueue.sendTo(to(target), message)
      enqueue.emit({ type: 'agent.started', agent, address })
      enqueue.assign({ waiting: context.waiting.slice(1), workers: { ...context.workers, [address]: worker } })
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
      assertEvent(event, ['agent.finished', 'actor.failed'])
      for (const { target, message } of answersOf(context, event)) enqueue.sendTo(to(target), message)
    }),
    startNext: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'agent.finished')
      const { agent, address, said, told, workers, short } = handedOver(context, event)
      for (const { target, message } of said) enqueue.sendTo(to(target), message)
      enqueue.emit(told)
      enqueue.emit({ type: 'agent.started', agent, address })
      enqueue.assign({ workers, short })
    }),
    dropWorker: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, ['agent.finished', 'actor.failed'])
      const { said, told, workers, short } = farewell(context, event)
      for (const { target, message } of said) enqueue.sendTo(to(target), message)
      enqueue.emit(told)
      enqueue.assign({ workers, short })
    }),
    /** Whoever works for an agent that wants no answer any more, or that failed, works for nobody. */
    cancelDelegates: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, ['delegate.cancel', 'actor.failed'])
      const caller = event.type === 'delegate.cancel' ? event.caller : event.address
      const { said, waiting, workers } = deserted(context, caller)
      for (const { target, message } of said) enqueue.sendTo(to(target), message)
      enqueue.assign({ waiting, workers })
    }),
    restartWorker: enqueueActions(({ context, event, enqueue }, params: { restart: keyof typeof restarted }) => {
      assertEvent(event, 'actor.failed')
      const { said, told, workers, short, kept } = restarted[params.restart](context, event)
      for (const { target, message } of said) enqueue.sendTo(to(target), message)
      for (const each of told) enqueue.emit(each)
      enqueue.assign({ workers, short, kept })
    }),
    dropCall: enqueueActions(({ event, enqueue }) => {
      assertEvent(event, 'delegate.call')
      for (const log of dropped([event])) enqueue.sendTo(log, { type: 'log.drop' })
    }),
    askForMore: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'agent.exhausted')
      const { address, account, dimension, limit } = event
      const { agent } = context.workers[address]!
      const waitMs = raiseMsOf(context, account)
      // Whoever is short can be so of one account at a time, so its name is free.
      const escalation = address.slice('agent/'.length)
      const self = `escalation/${escalation}`
      const input = { self, crew: context.self, run: runOf(context), agent, account, dimension, limit, waitMs }
      enqueue.sendTo(to('shard/actors'), { type: 'actor.start', kind: 'escalation', name: escalation, input })
      enqueue.assign({ short: { ...context.short, [account]: { escalation, agents: [address] } } })
    }),
    joinAsk: assign({
      short: ({ context, event }) => {
        assertEvent(event, 'agent.exhausted')
        const { escalation, agents } = context.short[event.account]!
        return { ...context.short, [event.account]: { escalation, agents: [...agents, event.address] } }
      },
    }),
    /** What a person gives for an answer; without a figure as much as there was, once more. */
    raiseShort: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'budget.decided')
      const raise = raiseOf(context, event)
      enqueue.sendTo(to(keeperOf(context)), { type: 'budget.raise', ...raise })
      for (const address of shortOf(context, event.account)) enqueue.sendTo(to(address), { type: 'budget.raised' })
      enqueue.emit({ type: 'budget.raised', ...raise })
      enqueue.assign({ short: without(context.short, event.account) })
    }),
    cancelShort: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'budget.decided')
      const message = { type: 'run.cancel', ...refusedBy(event) } as const
      for (const address of shortOf(context, event.account)) enqueue.sendTo(to(address), message)
      enqueue.assign({ short: without(context.short, event.account) })
    }),
    raise: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'crew.raise')
      const { agent, limits } = event
      for (const { account, opening } of raisedBy(context, agent)) {
        const raise = { account, limits, mode: 'to' } as const
        for (const message of [...opening, { type: 'budget.raise', ...raise }])
          enqueue.sendTo(to(keeperOf(context)), message)
        enqueue.emit({ type: 'budget.raised', ...raise })
      }
    }),
    refuseRaise: enqueueActions(({ event, enqueue }) => {
      assertEvent(event, 'crew.raise')
      enqueue.emit({ type: 'raise.refused', agent: event.agent ?? '' })
    }),
    stopAsking: enqueueActions(({ context, enqueue }) => {
      for (const { escalation } of Object.values(context.short))
        enqueue.sendTo(to(withdrawn(escalation).target), withdrawn(escalation).message)
      enqueue.assign({ short: {} })
    }),
    /** Whoever could not pay asks again; for who still cannot, a person is asked anew. */
    rouse: enqueueActions(({ context, enqueue }) => {
      for (const address of Object.values(context.short).flatMap(({ agents }) => agents))
        enqueue.sendTo(to(address), { type: 'budget.raised' })
    }),
    cancelExhausted: enqueueActions(({ event, enqueue }) => {
      assertEvent(event, 'agent.exhausted')
      enqueue.sendTo(to(event.address), { type: 'run.cancel', ...spentBy(event) })
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
      for (const { target, message } of redefined(context, event.crew)) enqueue.sendTo(to(target), message)
      const { limits } = event.crew
      enqueue.sendTo(to(keeperOf(context)), { type: 'budget.raise', account: 'run', limits, mode: 'set' })
      enqueue.assign({ data: event.crew })
    }),

    steer: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'crew.steer')
      const { tokens } = event
      for (const address of steered(context, event)) enqueue.sendTo(to(address), { type: 'run.steer', tokens })
      enqueue.assign({ steers: remembered(context, event), workers: countSteered(context, event) })
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
      end: ({ context, event }) => {
        assertEvent(event, 'agent.finished')
        const { address, finish, conversation } = event
        return { ...endingOf(event), finish, rounds: roundsOf(context.workers[address]!, event), conversation }
      },
    }),
    keep: assign({
      kept: ({ context, event }) => {
        assertEvent(event, 'agent.finished')
        return keptAfter(context, event)
      },
    }),
    /** Nobody knows how far a lead that failed had come: its next run begins anew. */
    forget: assign({
      kept: ({ context, event }) => {
        assertEvent(event, 'actor.failed')
        return keptWithout(context, context.workers[event.address]!)
      },
    }),
    endExhausted: assign({
      end: ({ event }) => {
        assertEvent(event, 'agent.exhausted')
        const { code, reason } = spentBy(event)
        return endOf(code, reason)
      },
    }),
    endRefused: assign({
      end: ({ event }) => {
        assertEvent(event, 'budget.decided')
        const { code, reason } = refusedBy(event)
        return endOf(code, reason)
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
      const { total, spent } = billOf(context, event)
      const finished = { type: 'run.finished', run: runOf(context), spent, ...context.end! } as const
      for (const address of detectorsOf(context)) enqueue.sendTo(to('shard/actors'), { type: 'actor.stop', address })
      enqueue.sendTo(to('shard/runs'), finished)
      enqueue.emit(finished)
      const keeper = keeperAfter(context)
      enqueue.assign({ task: null, bankrupt: false, detector: null, keeper, before: total })
    }),
  },
})
