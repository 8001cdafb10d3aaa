/**
 * What the agent machine asks itself and what it does: its guards and actions.
 *
 * Owns: the messages that each step says, what it notes.
 * Does not own: when (`agent.ts`), what is read off the context (`agent-context.ts`).
 */
import { assertEvent, assign, enqueueActions, sendTo, setup } from 'xstate'
import {
  type AgentContext,
  type AgentEvent,
  admissionOf,
  answeredBy,
  broughtBy,
  calledBy,
  closesLast,
  deploymentsOf,
  executorOf,
  finishedOf,
  grantOf,
  handoverOf,
  handsOver,
  isCalling,
  isDelegate,
  isHandoff,
  isRefused,
  isTool,
  isUnprepared,
  learn,
  learnFailed,
  log,
  lostCalls,
  maxMisfits,
  nameOf,
  opened,
  reserveOf,
  roundAskOf,
  routeAskOf,
  skippedOf,
  steerings,
  tokensAfter,
  unanswered,
  unplanned,
  usedAfter,
} from './agent-context.js'
import { type AgentInput, type AgentMessage, type CallVerdict, steeringsOf, to } from './messages.js'

/** Guards and actions, by the names that `agent.ts` uses. */
export const agent = setup({
  types: {} as { context: AgentContext; events: AgentMessage; input: AgentInput; emitted: AgentEvent },
  guards: {
    paused: ({ context }) => context.paused,
    roundsSpent: ({ context }) => context.round >= context.data.rounds,
    calls: ({ event }) => isCalling(event),
    callsToCount: ({ context, event }) => context.counted && isCalling(event),
    callsToCheck: ({ context, event }) => context.detector !== null && context.data.loops !== null && isCalling(event),
    /** Who hands over needs no further round. */
    lastRoundCalls: ({ context, event }) =>
      context.round + 1 >= context.data.rounds && isCalling(event) && !handsOver({ verdicts: event.calls }),
    loops: ({ event }) => event.type === 'loop.verdict' && event.rung === 'stop',
    counted: ({ context }) => context.counted,
    warned: ({ context }) => context.warning !== '' && context.open.length === 0,
    misfit: ({ context, event }) =>
      event.type === 'model.replied' &&
      event.fits === false &&
      context.misfits < maxMisfits &&
      context.round + 1 < context.data.rounds,
    finalMisfit: ({ event }) => event.type === 'model.replied' && event.fits === false,
    callsWait: ({ context }) => context.verdicts.length > 0,
    steered: ({ context }) => context.steered > 0,
    /** Its user has a say in this round, and has not said it. */
    unprepared: ({ context }) => isUnprepared(context),
    /** No answer to a message that it does not know of yet. */
    steeredAnswer: ({ context }) => context.steered > 0 && context.round + 1 < context.data.rounds,
    /** The last result of a round that is followed by another one: the common case, in one step. */
    endsRound: ({ context, event }) =>
      closesLast(context, event) &&
      !handsOver(context) &&
      context.warning === '' &&
      !context.paused &&
      context.data.prepares === undefined &&
      context.steered === 0 &&
      context.round < context.data.rounds,
    toHandOver: ({ context }) => handsOver(context),
    nothingOpen: ({ context }) => context.open.length === 0,
    handsOver: ({ context }) => context.open.length === 0 && handsOver(context),
  },
  actions: {
    pause: assign({ paused: true }),
    resume: assign({ paused: false }),
    redefine: assign({
      data: ({ context, event }) => (event.type === 'agent.redefined' ? event.data : context.data),
      deployments: [],
    }),

    askAnother: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'model.failed')
      const { deployment, kind, retryAfterMs, reason } = event
      enqueue.sendTo(to(context.router), routeAskOf(context, { ...event, failure: { deployment, kind, retryAfterMs } }))
      enqueue.assign({ reason: `${kind}: ${reason}` })
    }),
    /** Nothing was asked of anybody, and nothing is spent. */
    askElse: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'model.refused')
      for (const each of skippedOf(context, event.skipped)) enqueue.emit(each)
      enqueue.sendTo(to(context.router), routeAskOf(context, { ...event, failure: null }))
      const names = event.skipped.map(({ deployment }) => deployment).join(', ')
      enqueue.assign({ reason: `no deployment takes a call: ${names}` })
    }),
    takeRoute: assign(({ event }) => {
      assertEvent(event, 'route.next')
      return { deployments: event.deployments, tries: event.tries, reason: '' }
    }),

    askRound: sendTo(to('port/round'), ({ context }) => roundAskOf(context)),
    dropAsk: sendTo(to('port/round'), { type: 'effect.cancel' }),
    takeRound: assign(({ event }) => {
      assertEvent(event, 'round.prepared')
      return { plan: { ...event.plan, sequence: event.sequence } }
    }),
    /** The answer becomes the last message, as if the model had given it. */
    stopRounds: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'round.stopped')
      const { condition, tokens, result } = event
      enqueue.sendTo(log(context), { type: 'log.append', values: [0] })
      enqueue.emit({ type: 'agent.stopped', agent: context.data.name, run: context.run, condition })
      enqueue.assign({
        ...{ length: context.length + 1, tokens: context.tokens + tokens },
        ...{ answer: tokens, result, finish: 'stopped' },
      })
    }),
    endUnprepared: assign(({ event }) => {
      assertEvent(event, 'round.failed')
      return { code: event.code, reason: event.reason }
    }),

    reserve: sendTo(
      ({ context }) => to(context.keeper),
      ({ context }) => reserveOf(context),
    ),
    callModel: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'budget.granted')
      const { maxOutputTokens, worst } = event
      enqueue.sendTo(to('port/model'), {
        type: 'model.call',
        agent: context.data.name,
        run: context.run,
        conversation: context.conversation,
        ...(context.view === undefined ? {} : { view: context.view }),
        ...(context.plan == null ? {} : { plan: context.plan }),
        deployments: deploymentsOf(context),
        maxOutputTokens,
        grant: grantOf(context),
        keeper: context.keeper,
        depth: context.depth,
        tries: context.tries,
        worst,
      })
      enqueue.assign({ worst })
    }),

    takeReply: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'model.replied')
      enqueue.sendTo(to(context.keeper), {
        type: 'budget.settle',
        grant: grantOf(context),
        spent: event.spent,
        real: !event.usage.estimated,
        toolCalls: context.counted ? 0 : event.calls.length,
      })
      enqueue.sendTo(log(context), { type: 'log.append', values: [0] })
      for (const each of admissionOf(context, event)) enqueue.emit(each)
      enqueue.emit({
        type: 'model.replied',
        round: context.round + 1,
        deployment: event.deployment,
        calls: event.calls.length,
        finish: event.finish,
        inputTokens: event.usage.inputTokens,
        outputTokens: event.usage.outputTokens,
        nanoUsd: event.spent.nanoUsd,
      })
      enqueue.assign({
        round: context.round + 1,
        tries: 0,
        grants: context.grants + 1,
        deployments: [],
        length: context.length + 1,
        tokens: tokensAfter(context, event.usage),
        ...unplanned(context),
        ...unanswered(context),
        ...usedAfter(context, event.spent),
        answer: event.usage.outputTokens,
        finish: event.finish,
        result: event.result,
        verdicts: event.calls,
        sequence: event.sequence,
        open: opened(event.calls, event.sequence),
      })
    }),
    check: sendTo(
      ({ context }) => to(context.detector ?? ''),
      ({ context }) => ({
        type: 'loop.check',
        replyTo: context.self,
        conversation: context.conversation,
        turn: context.turn,
        learned: context.learned,
        calls: context.verdicts.map((call) => ({
          index: call.index,
          call: call.call,
          agent: calledBy(call),
        })),
        trail: context.trail,
        loops: context.data.loops,
      }),
    ),
    takeVerdict: assign(({ context, event }) => {
      assertEvent(event, 'loop.verdict')
      const { rung, text, refused } = event
      const messages = new Map(refused.map(({ index, message }) => [index, message]))
      const verdicts = context.verdicts.map((call): CallVerdict => {
        const message = messages.get(call.index)
        const { index, callId } = call
        return message === undefined
          ? call
          : { verdict: 'refused', index, callId, name: nameOf(call), message, call: call.call }
      })
      const open = opened(verdicts, context.sequence)
      const unmade = verdicts.filter((call) => isRefused(call) && call.call !== '')
      const learned = unmade.map(({ call, index }) => ({ call, result: messages.has(index) ? '' : 'refused' }))
      return { verdicts, open, learned, warning: rung === 'warn' ? text : '' }
    }),
    endLoop: assign({
      code: 'LOOP_DETECTED',
      reason: ({ event }) => (event.type === 'loop.verdict' ? event.text : ''),
    }),
    warn: enqueueActions(({ context, enqueue }) => {
      enqueue.sendTo(log(context), { type: 'log.append', user: context.warning })
      const tokens = context.tokens + Math.ceil(context.warning.length / 3)
      enqueue.assign({ length: context.length + 1, tokens, warning: '' })
    }),
    askToAct: sendTo(
      ({ context }) => to(context.keeper),
      ({ context }) => ({
        type: 'budget.charge',
        account: context.account,
        replyTo: context.self,
        toolCalls: context.verdicts.length,
      }),
    ),
    refuseCalls: enqueueActions(({ context, enqueue }) => {
      for (const call of context.verdicts.filter(isRefused)) {
        enqueue.sendTo(log(context), { type: 'log.stage', index: call.index, callId: call.callId, text: call.message })
        enqueue.emit({ type: 'tool.refused', callId: call.callId, tool: call.name, reason: call.message })
      }
    }),
    tellHandoff: enqueueActions(({ context, enqueue }) => {
      for (const { index, callId, agent } of context.verdicts.filter(isHandoff)) {
        const text = `Done: ${agent} goes on from here.`
        enqueue.sendTo(log(context), { type: 'log.stage', index, callId, text })
        enqueue.emit({ type: 'agent.handed', callId, agent })
      }
    }),
    noteHandoff: assign({ handoff: ({ context }) => context.verdicts.find(isHandoff) ?? null }),
    /** What the other one is not shown costs it nothing. */
    bring: enqueueActions(({ context, enqueue }) => {
      const values = broughtBy(context)
      enqueue.sendTo(log(context), { type: 'log.append', values, sequence: context.sequence })
      const tokens = Math.max(0, context.tokens - (context.handoff?.saved ?? 0))
      enqueue.assign({ length: context.length + values.length, tokens })
    }),
    startTools: enqueueActions(({ context, enqueue }) => {
      for (const call of context.verdicts.filter(isTool)) {
        enqueue.sendTo(to('shard/actors'), {
          type: 'actor.start',
          kind: 'tool',
          name: `${context.sequence}-${call.index}`,
          input: {
            ...call,
            self: executorOf(context.sequence, call.index),
            owner: context.self,
            agent: context.data.name,
            run: context.run,
            conversation: context.conversation,
            position: context.length - 1,
            key: `${context.sequence}-${call.index}`,
          },
        })
      }
    }),
    startDelegates: enqueueActions(({ context, enqueue }) => {
      for (const call of context.verdicts.filter(isDelegate)) {
        const name = `${call.agent.slice(call.agent.lastIndexOf('/') + 1)}-${context.sequence}-${call.index}`
        // The budget may have been asked for meanwhile: the task is in the commit that brought the reply.
        const { values } = call
        enqueue.sendTo(to(`log/${name}`), { type: 'log.append', values, sequence: context.sequence })
        enqueue.sendTo(to(context.crew), {
          type: 'delegate.call',
          caller: context.self,
          conversation: context.conversation,
          index: call.index,
          callId: call.callId,
          agent: call.agent,
          name,
          depth: context.depth + 1,
          length: call.values.length,
          tokens: call.tokens,
          trail: context.trail,
        })
        enqueue.emit({ type: 'delegate.called', callId: call.callId, agent: call.agent })
      }
    }),
    closeCall: assign(({ context, event }) => {
      assertEvent(event, ['tool.finished', 'delegate.finished'])
      return {
        open: context.open.filter((call) => call.index !== event.index),
        tokens: context.tokens + event.tokens,
        learned: learn(context, event.index, event.result),
        ...answeredBy(context, event),
      }
    }),
    closeFailedCall: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'actor.failed')
      for (const call of context.open.filter((open) => open.executor === event.address)) {
        const text = `The tool could not be run: ${event.reason}`
        enqueue.sendTo(log(context), { type: 'log.stage', index: call.index, callId: call.callId, text })
      }
      enqueue.assign({
        open: context.open.filter((open) => open.executor !== event.address),
        learned: learnFailed(context, event.address),
      })
    }),
    endRound: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'tool.finished')
      enqueue.sendTo(log(context), { type: 'log.seal' })
      enqueue.assign({
        length: context.length + context.verdicts.length,
        tokens: context.tokens + event.tokens,
        learned: learn(context, event.index, event.result),
        verdicts: [],
        open: [],
      })
    }),
    sealRound: enqueueActions(({ context, enqueue }) => {
      enqueue.sendTo(log(context), { type: 'log.seal' })
      enqueue.assign({ length: context.length + context.verdicts.length, verdicts: [], open: [] })
    }),

    correct: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'model.replied')
      enqueue.sendTo(log(context), { type: 'log.append', user: event.reason })
      enqueue.assign({ misfits: context.misfits + 1, length: context.length + 1 })
    }),

    settleFailure: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'model.failed')
      const spent = { ...event.spent, modelCalls: 1 }
      const settle = { type: 'budget.settle', grant: grantOf(context), spent, real: event.real, toolCalls: 0 }
      enqueue.sendTo(to(context.keeper), settle)
      for (const each of admissionOf(context, event)) enqueue.emit(each)
      enqueue.emit({
        type: 'model.failed',
        round: context.round + 1,
        deployment: event.deployment,
        kind: event.kind,
        reason: event.reason,
      })
      enqueue.assign({ grants: context.grants + 1, ...usedAfter(context, spent) })
    }),
    settleWorst: enqueueActions(({ context, enqueue }) => {
      const settle = { type: 'budget.settle', grant: grantOf(context), spent: context.worst, real: false, toolCalls: 0 }
      enqueue.sendTo(to(context.keeper), settle)
      enqueue.assign({ grants: context.grants + 1, ...usedAfter(context, context.worst) })
    }),
    stopModel: sendTo(to('port/model'), { type: 'effect.cancel' }),
    stopCalls: enqueueActions(({ context, enqueue }) => {
      for (const call of context.open.filter((open) => open.executor !== null)) {
        enqueue.sendTo(to(call.executor ?? ''), { type: 'tool.cancel' })
      }
      enqueue.sendTo(to(context.crew), { type: 'delegate.cancel', caller: context.self })
    }),
    abandonCalls: enqueueActions(({ context, enqueue }) => {
      for (const call of context.verdicts) {
        const text = 'Not done: the run ended before this call had a result.'
        enqueue.sendTo(log(context), { type: 'log.stage', index: call.index, callId: call.callId, text })
      }
      enqueue.sendTo(log(context), { type: 'log.seal' })
      enqueue.assign({ length: context.length + context.verdicts.length, verdicts: [], open: [] })
    }),

    /** Whatever it waited for went with its failure: what has no result gets none. */
    loseCalls: enqueueActions(({ context, enqueue }, params: { text: string }) => {
      for (const { index, callId, text } of lostCalls(context, params.text))
        enqueue.sendTo(log(context), { type: 'log.stage', index, callId, text, unless: 'staged' })
      enqueue.sendTo(log(context), { type: 'log.seal' })
      const length = context.length + context.verdicts.length
      enqueue.assign({ length, verdicts: [], open: [], learned: [], warning: '', grants: context.grants + 1 })
    }),
    /** Its grant was settled for it. */
    askAnew: assign({ grants: ({ context }) => context.grants + 1 }),

    steer: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'run.steer')
      enqueue.sendTo(steerings(context), { type: 'log.append', values: [0] })
      enqueue.emit({ type: 'agent.steered', agent: context.data.name, run: context.run, tokens: event.tokens })
      enqueue.assign({ steered: context.steered + 1, steerTokens: context.steerTokens + event.tokens })
    }),
    join: enqueueActions(({ context, enqueue }) => {
      enqueue.sendTo(log(context), { type: 'log.append', all: steeringsOf(context.conversation) })
      enqueue.assign({
        length: context.length + context.steered,
        tokens: context.tokens + context.steerTokens,
        steered: 0,
        steerTokens: 0,
        ...unplanned(context),
        turn: context.turn + 1,
        learned: [],
      })
    }),
    /** There is no further round to hear it. */
    dropSteerings: enqueueActions(({ context, enqueue }) => {
      for (const messages of context.steered > 0 ? [context.steered] : []) {
        enqueue.sendTo(steerings(context), { type: 'log.drop' })
        enqueue.emit({ type: 'agent.unsteered', agent: context.data.name, run: context.run, messages })
      }
    }),
    /** Nothing was spent on it; the next request counts what has joined since. */
    withdraw: enqueueActions(({ context, enqueue }) => {
      enqueue.sendTo(to(context.keeper), { type: 'budget.release', grant: grantOf(context) })
      enqueue.assign({ grants: context.grants + 1 })
    }),

    tellExhausted: enqueueActions(({ context, event, enqueue }) => {
      assertEvent(event, 'budget.refused')
      const { type: _, grant: _grant, ...why } = event
      const { account, dimension } = why
      enqueue.sendTo(to(context.crew), { type: 'agent.exhausted', address: context.self, ...why })
      enqueue.emit({ type: 'budget.exhausted', account, dimension })
    }),
    endRounds: assign({
      code: 'ROUND_LIMIT',
      reason: ({ context }) => `no answer after ${context.data.rounds} rounds`,
    }),
    endMisfit: assign({
      code: 'OUTPUT_INVALID',
      reason: ({ event }) => (event.type === 'model.replied' ? event.reason : ''),
    }),
    endModel: assign({ code: 'MODEL_FAILED' }),
    endCrashed: assign({ code: 'EFFECT_CRASHED', reason: 'the process died three times over one call' }),
    endCancelled: assign(({ event }) => {
      assertEvent(event, 'run.cancel')
      const { code = 'RUN_CANCELLED', reason = 'cancelled' } = event
      return { code, reason }
    }),
    finish: sendTo(
      ({ context }) => to(context.crew),
      ({ context }) => finishedOf(context),
    ),
    handOver: sendTo(
      ({ context }) => to(context.crew),
      ({ context }) => ({ ...finishedOf(context), answer: 0, result: '', handover: handoverOf(context)! }),
    ),
  },
})
