/**
 * The crew: one run after the other, from task to one typed end.
 *
 * A run starts the lead with the task, starts delegates when agents call them (at most `delegates` at once, the rest
 * wait), and ends with the lead's answer or with a code. It decides what becomes of an agent that cannot pay, and of one
 * that failed (`crew-supervision.ts`).
 *
 *     idle ─► running ─► closing ─► idle | running (next run)
 */
import type { CrewEvent } from './crew-context.js'
import { crew } from './crew-setup.js'
import { nothing } from './messages.js'

export type { CrewEvent }

/** The crew machine. Bump `version` with any change of its decisions. */
export const crewMachine = crew.createMachine({
  id: 'crew',
  version: '7',
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
    short: {},
  }),
  initial: 'waking',
  on: {
    'crew.redefined': { actions: ['redefine', 'rouse', 'stopAsking'] },
    'crew.raise': { actions: 'refuseRaise' },
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
        'crew.raise': [{ guard: 'mayRaise', actions: 'raise' }, { actions: 'refuseRaise' }],
      },
    },
    running: {
      initial: 'starting',
      on: {
        'agent.finished': [
          { guard: 'leadHandsOver', actions: ['keep', 'startNext'] },
          { guard: 'handsOver', actions: 'startNext' },
          { guard: 'fromLead', target: 'closing', actions: ['endAnswered', 'keep', 'dropWorker'] },
          { guard: 'isWorker', actions: ['answerCaller', 'dropWorker'] },
        ],
        'actor.failed': [
          {
            guard: 'resumesWorker',
            actions: ['cancelDelegates', { type: 'restartWorker', params: { restart: 'resume' } }],
          },
          {
            guard: 'renewsWorker',
            actions: ['cancelDelegates', { type: 'restartWorker', params: { restart: 'fresh' } }],
          },
          { guard: 'leadFailed', target: 'closing', actions: ['endFailed', 'forget', 'dropSteerings', 'dropWorker'] },
          { guard: 'crewKeeperFailed', target: 'closing', actions: ['endFailed', 'resumeKeeper'] },
          { guard: 'keeperFailed', target: 'closing', actions: ['endFailed', 'goBankrupt'] },
          { guard: 'detectorFailed', target: 'closing', actions: ['endFailed', 'dropDetector'] },
          { guard: 'routerFailed', target: 'closing', actions: ['endFailed', 'dropRouter'] },
          { guard: 'escalates', target: 'closing', actions: ['endFailed', 'dropSteerings', 'dropWorker'] },
          { guard: 'isWorker', actions: ['answerCaller', 'cancelDelegates', 'dropSteerings', 'dropWorker'] },
          { guard: 'escalationFailed', target: 'closing', actions: 'endFailed' },
        ],
        'agent.exhausted': [
          { guard: 'asksAlready', actions: 'joinAsk' },
          { guard: 'asksForMore', actions: 'askForMore' },
          { guard: 'endsAlone', actions: 'cancelExhausted' },
          { target: 'closing', actions: 'endExhausted' },
        ],
        'budget.decided': [
          { guard: 'isRaised', actions: 'raiseShort' },
          { guard: 'endAlone', actions: 'cancelShort' },
          { target: 'closing', actions: 'endRefused' },
        ],
        'crew.raise': [{ guard: 'mayRaise', actions: ['raise', 'rouse', 'stopAsking'] }, { actions: 'refuseRaise' }],
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
          always: {
            guard: 'waitsAndMayStart',
            target: 'working',
            reenter: true,
            actions: ['startWaiting', 'refuseCrossing'],
          },
        },
      },
    },
    /** Stops who is still at work, then asks for the bill. */
    closing: {
      entry: ['dropWall', 'stopAsking', 'cancelAll'],
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
