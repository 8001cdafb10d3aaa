/** What a simulation notes while it runs: faults that were injected, branches that were reached, invariants that broke. */

/** The promises that are checked, by name. */
export const invariants = {
  spent: 'spent is never above a limit',
  provider: 'the provider counts no more than the limit',
  pool: 'crews that share a budget spend no more than it has, and it has booked what they spent',
  accounts: 'accounts are the sum of the settlements',
  grants: 'every grant is settled or expired',
  answered: 'every call is answered, refused or dead-lettered',
  once: 'a once call is executed at most once',
  dispatched: 'a once call starts only after its record',
  durable: 'effects and events come only after their append',
  replay: 'replay from any snapshot gives the same state',
  pure: 'the same commit decides the same',
  ends: 'every run ends',
  generation: 'no completion of an old generation is delivered',
  taken: 'every outcome is taken by a transition',
  time: 'time never runs backwards',
  key: 'a call keeps its key, and no other call has it',
  grows: 'a conversation only grows',
  view: 'whoever was handed a conversation is shown what its view has, under its own instructions',
  true: 'a model is told what a port said',
  poison: 'work that kills the process is given up after three crashes, and no other work is',
  unknown: 'an unknown outcome lies over the end of a process',
  wall: 'the wall budget counts the time in a living process',
  rest: 'a crew at rest holds nothing',
  alive: 'no shard stops',
  gap: 'no gap: a record follows the one before, in number and in chain',
  run: 'a key names one run, and an accepted one is kept',
  letters: 'every dead letter is kept or counted',
  steered: 'what a user says meanwhile is in the conversation once, in order, before the next call',
  mail: 'a letter is taken once, in the order of its sender, and none is lost',
  delegated: 'a task given to another crew ends once',
  decided: 'a message of a client is decided once',
  owner: 'one owner: only who took the shard last writes',
  answer: 'the answer of a run is what its model answered',
  route: 'a deployment is tried as long as it is worth it, and a call that fails has had all of them',
  probe:
    'while a breaker is half-open its probe is the only call, and another takes its place only when that is overdue',
  approved: 'a call that wants approval starts only after a person approved this very call',
  raised: 'a limit that grows while its run goes on is one that a person has raised, once',
  leak: 'what an account holds is what its grants and the accounts below it have, and nothing is kept for nobody',
  flow: 'a flow has those at work whose answers it waits for, and a stage begins behind all answers of the last',
  zombie: 'nothing of an old incarnation comes to a new one, and what it held is settled',
  round: 'a call is made as was said of its round last, and nobody goes on behind a stop',
  ladder: 'rounds that bring nothing new add up, and only what is learned takes from them',
} as const

/** An invariant's key. */
export type Invariant = keyof typeof invariants

/** A broken promise. */
export interface Violation {
  readonly invariant: Invariant
  readonly detail: string
}

/** Faults: each is reached in some seed of a campaign. */
export const faults = [
  'crash: before append',
  'crash: append in flight, lost',
  'crash: append in flight, landed',
  'crash: append landed',
  'crash: outcome to append',
  'crash: append to dispatch',
  'crash: in flight',
  'crash: at rest',
  'crash: before dispatched record',
  'crash: dispatched record landed',
  'crash: dispatched to start',
  'crash: blob to append',
  'crash: in recovery',
  'crash: in snapshot',
  'crash: in close',
  'crash: poisonous tool',
  'crash: poisonous model call',
  'crash: poisonous timer',
  'append failed',
  'append failed, landed',
  'store full',
  'snapshot failed',
  'snapshot rotten',
  'snapshot of another branch',
  'outcome twice',
  'model outcome late',
  'tool outcome late',
  'model failed',
  'model down',
  'model hung',
  'model outlived its grant',
  'model lied about usage',
  'model sent no usage',
  'model wrote an invalid call',
  'model answered out of shape',
  'tool threw',
  'tool said no',
  'tool timed out',
  'tool ignored its cancel',
  'agent failed over a message',
  'code of a round threw',
  'clock stepped',
  'collision with a timer',
  'letter late',
  'answer to a letter lost',
  'sender went back in time',
] as const

/** Faults among several workers. */
export const clusterFaults = [
  'append landed late',
  'append landed, answer lost',
  'crash: mail to append',
  'crew moved',
  'lease lost',
  'mail late',
  'mail twice',
  'server slow',
  'two records at one place',
  'worker cut off',
  'worker cut off one way',
  'worker stood still',
] as const

/** A fault's name. */
export type Fault = (typeof faults)[number] | (typeof clusterFaults)[number]

/** Branches of the work and of its recovery: each is reached in some seed of a campaign. */
export const branches = [
  'close with nothing running',
  'close over running work',
  'commits share a record',
  'recovered from the newest snapshot',
  'recovered from an older snapshot',
  'recovered from the first record',
  'passed over a snapshot of another branch',
  'passed over a rotten snapshot',
  'append reloaded: landed',
  'append reloaded: lost',
  'work refused: STORE_FULL',
  'model call interrupted',
  'tool call interrupted',
  'once call interrupted before its start',
  'once call unknown: told',
  'once call verified: done',
  'once call verified: not done',
  'once call verified: unsure',
  'once call executed again after verify',
  'effect given up after crashes',
  'timer given up after crashes',
  'time down was not counted',
  'parked effects dispatched',
  'shard unloaded',
  'shard woken by a timer',
  'late outcome changed accounts',
  'late outcome changed nothing',
  'late timer was not delivered',
  'grant cut to what is left',
  'grant waited',
  'budget refused',
  'child budget refused',
  'grant expired',
  'estimate replaced by the real bill',
  'model call rerouted',
  'model call retried',
  'call approved',
  'call approved with other arguments',
  'call denied',
  'call not answered in time',
  'budget raised',
  'soft limit passed',
  'answer refused: nobody waits for it',
  'breaker opened',
  'breaker closed',
  'model call passed a breaker over',
  'model call refused by breakers',
  'model call cooled its deployment',
  'tool call retried',
  'call repaired',
  'call refused',
  'delegation nested',
  'delegation waited',
  'value in a blob',
  'conversation kept over runs',
  'redefined in a run',
  'paused',
  'cancelled while waiting',
  'steered',
  'steer refused',
  'steer repeated',
  'steer without a round left',
  'conversation handed over',
  'round prepared',
  'round interrupted',
  'round stopped',
  'loop warned',
  'loop blocked',
  'loop stopped',
  'end: answered',
  'end: LOOP_DETECTED',
  'end: CALLBACK_FAILED',
  'end: ROUND_LIMIT',
  'end: OUTPUT_INVALID',
  'end: MODEL_FAILED',
  'end: BUDGET_EXHAUSTED',
  'end: BUDGET_EXHAUSTED by wallMs',
  'end: RUN_CANCELLED',
  'end: EFFECT_CRASHED',
  'end: ACTOR_FAILED',
  'agent resumed',
  'agent began anew',
  'impurity checked: state rebuilt from bytes',
  'impurity checked: contexts frozen',
  'impurity checked: every commit decided twice',
  'orphaned blob dropped',
  'letter dropped: it was taken before',
  'sender behind refused',
  'letter returned: no such crew',
  'shared budget spent',
  'delegation answered by mail',
  'delegation failed by mail',
  'delegation called back',
  'delegation refused: a cycle',
  'delegation refused: two ask each other',
] as const

/** Branches among several workers. */
export const clusterBranches = [
  'stale append fenced',
  'owner asked to leave',
  'outcome sent after its shard',
  'mail out of order',
  'shard taken from one that was gone',
  'shard taken from one that left it',
  'effect left to its executor',
  'letter put back: one before it is missing',
] as const

/** A branch's name. */
export type Branch = (typeof branches)[number] | (typeof clusterBranches)[number]

/** Most violations that are kept of one seed. */
const maxViolations = 20

/** The notes of one seed. */
export class Notes {
  readonly sometimes = new Set<string>()
  readonly violations: Violation[] = []
  faults = 0
  /** How often an agent was resumed. */
  resumes = 0

  fault(name: Fault): void {
    this.faults += 1
    this.sometimes.add(name)
  }

  reached(name: Branch): void {
    this.sometimes.add(name)
  }

  violate(invariant: Invariant, detail: string): void {
    if (this.violations.length < maxViolations) this.violations.push({ invariant, detail: detail.slice(0, 600) })
  }

  /** Notes a violation unless `holds`. */
  check(invariant: Invariant, holds: boolean, detail: () => string): void {
    if (!holds) this.violate(invariant, detail())
  }
}
