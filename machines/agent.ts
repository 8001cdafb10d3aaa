/**
 * The agent: one task, round after round, until it answers.
 *
 * A round asks the budget keeper for leave, the model port for a reply, the loop detector whether the reply's calls lead
 * anywhere, and hands them to tool executors and delegates. It holds positions, counts and verdicts, never content.
 *
 *     ready ─► reserving ─► thinking ─► (checking ─►) (authorizing ─►) acting ─► ready …
 *      │           │           │  └► routing ─► ready                     └► handing ─► handed
 *      │       exhausted       └► answered · failed
 *      └► preparing ─► ready · answered · failed
 *
 * An agent whose user has a say in its rounds asks for that before it asks for money. What it is told holds for the round,
 * also for a second try of its call. What a user says meanwhile waits until then, joins, and it asks once more.
 *
 * An agent that failed, and is resumed, goes on with its next round: what it waited for is not waited for any more.
 *
 * What a user says meanwhile waits beside the conversation and joins it on the way to the next round: behind the results
 * of a round, and behind the reply that is on its way. With such a message waiting an answer is not the last word, as long
 * as there is a round left.
 *
 * An agent that hands over ends with the round in which it does: another one goes on with its conversation.
 */
import type { AgentEvent } from './agent-context.js'
import { agent } from './agent-setup.js'
import { nothing } from './messages.js'

export type { AgentEvent }

const unmadeText = 'Not done: the agent failed before this call was made.'
const lostText =
  'The outcome of this call is unknown: the agent failed while it was made. It may or may not have happened; it was not tried again.'

/** The agent machine. Bump `version` with any change of its decisions. */
export const agentMachine = agent.createMachine({
  id: 'agent',
  version: '8',
  context: ({ input }) => ({
    ...input,
    round: 0,
    tries: 0,
    grants: 0,
    deployments: [],
    answer: 0,
    misfits: 0,
    worst: nothing,
    result: '',
    turn: 0,
    learned: [],
    warning: '',
    verdicts: [],
    sequence: 0,
    open: [],
    steered: 0,
    steerTokens: 0,
    handoff: null,
    code: null,
    reason: '',
    finish: '',
  }),
  initial: 'ready',
  on: {
    'run.pause': { actions: 'pause' },
    'run.resume': { actions: 'resume' },
    'run.cancel': { target: '.failed', actions: 'endCancelled' },
    'run.steer': { actions: 'steer' },
    'agent.redefined': { actions: 'redefine' },
    'budget.raised': {},
    'actor.resumed': [
      { guard: 'callsWait', target: '.ready', actions: { type: 'loseCalls', params: { text: unmadeText } } },
      { target: '.ready', actions: 'askAnew' },
    ],
  },
  states: {
    ready: {
      always: [
        { guard: 'paused', target: 'held' },
        { guard: 'roundsSpent', target: 'failed', actions: 'endRounds' },
        { guard: 'unprepared', target: 'preparing' },
        { guard: 'steered', target: 'ready', actions: 'join' },
        { target: 'reserving' },
      ],
    },
    /** Until its user's code has said whether there is another round, and how it is to be. */
    preparing: {
      entry: 'askRound',
      on: {
        'round.prepared': { target: 'ready', actions: 'takeRound' },
        'round.stopped': { target: 'answered', actions: 'stopRounds' },
        'round.failed': { target: 'failed', actions: 'endUnprepared' },
        'effect.interrupted': 'ready',
        'effect.crashed': { target: 'failed', actions: 'endCrashed' },
        'run.cancel': { target: 'failed', actions: ['dropAsk', 'endCancelled'] },
      },
    },
    /** Until it may try a deployment: at once, or when a wait is over. */
    routing: {
      on: {
        'route.next': { target: 'ready', actions: 'takeRoute' },
        'route.ended': { target: 'failed', actions: 'endModel' },
      },
    },
    held: { on: { 'run.resume': { target: 'ready', actions: 'resume' } } },
    reserving: {
      entry: 'reserve',
      on: {
        'budget.granted': { target: 'thinking', actions: 'callModel' },
        'budget.refused': { target: 'exhausted', actions: 'tellExhausted' },
        'run.cancel': { target: 'failed', actions: ['withdraw', 'endCancelled'] },
        'run.steer': { target: 'ready', actions: ['withdraw', 'steer'] },
      },
    },
    thinking: {
      on: {
        'model.replied': [
          { guard: 'lastRoundCalls', target: 'failed', actions: ['takeReply', 'abandonCalls', 'endRounds'] },
          { guard: 'callsToCheck', target: 'checking', actions: 'takeReply' },
          { guard: 'callsToCount', target: 'authorizing', actions: 'takeReply' },
          { guard: 'calls', target: 'acting', actions: 'takeReply' },
          { guard: 'misfit', target: 'ready', actions: ['takeReply', 'correct'] },
          { guard: 'steeredAnswer', target: 'ready', actions: 'takeReply' },
          { guard: 'finalMisfit', target: 'failed', actions: ['takeReply', 'endMisfit'] },
          { target: 'answered', actions: 'takeReply' },
        ],
        'model.failed': { target: 'routing', actions: ['settleFailure', 'askAnother'] },
        'model.refused': { target: 'routing', actions: ['withdraw', 'askElse'] },
        'effect.interrupted': { target: 'ready', actions: 'settleWorst' },
        'effect.crashed': { target: 'failed', actions: ['settleWorst', 'endCrashed'] },
        'run.cancel': { target: 'failed', actions: ['stopModel', 'settleWorst', 'endCancelled'] },
      },
    },
    /** Whether these calls lead anywhere. */
    checking: {
      entry: 'check',
      on: {
        'loop.verdict': [
          { guard: 'loops', target: 'failed', actions: ['abandonCalls', 'endLoop'] },
          { guard: 'counted', target: 'authorizing', actions: 'takeVerdict' },
          { target: 'acting', actions: 'takeVerdict' },
        ],
        'run.cancel': { target: 'failed', actions: ['abandonCalls', 'endCancelled'] },
      },
    },
    authorizing: {
      entry: 'askToAct',
      on: {
        'budget.granted': 'acting',
        'budget.refused': { target: 'exhausted', actions: 'tellExhausted' },
        'run.cancel': { target: 'failed', actions: ['abandonCalls', 'endCancelled'] },
      },
    },
    acting: {
      entry: ['refuseCalls', 'tellHandoff', 'startTools', 'startDelegates'],
      always: [
        { guard: 'handsOver', target: 'handing', actions: ['noteHandoff', 'sealRound'] },
        { guard: 'warned', target: 'ready', actions: ['sealRound', 'warn'] },
        { guard: 'nothingOpen', target: 'ready', actions: 'sealRound' },
      ],
      on: {
        'tool.finished': [{ guard: 'endsRound', target: 'reserving', actions: 'endRound' }, { actions: 'closeCall' }],
        'delegate.finished': { actions: 'closeCall' },
        'actor.failed': { actions: 'closeFailedCall' },
        'actor.resumed': [
          {
            guard: 'toHandOver',
            target: 'handing',
            actions: ['noteHandoff', { type: 'loseCalls', params: { text: lostText } }],
          },
          { target: 'ready', actions: { type: 'loseCalls', params: { text: lostText } } },
        ],
        'run.cancel': { target: 'failed', actions: ['stopCalls', 'abandonCalls', 'endCancelled'] },
      },
    },
    /** What the user has said meanwhile is for whoever goes on. */
    handing: { always: [{ guard: 'steered', target: 'handing', actions: 'join' }, { target: 'handed' }] },
    exhausted: {
      on: {
        'budget.raised': [{ guard: 'callsWait', target: 'authorizing' }, { target: 'ready' }],
        'run.cancel': { target: 'failed', actions: ['abandonCalls', 'endCancelled'] },
      },
    },
    answered: { type: 'final', entry: ['dropSteerings', 'finish'] },
    failed: { type: 'final', entry: ['dropSteerings', 'finish'] },
    handed: { type: 'final', entry: ['bring', 'handOver'] },
  },
})
