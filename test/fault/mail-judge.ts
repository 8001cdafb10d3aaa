/**
 * The judge of mail between crews. It reads the journals of all of them side by side: what one says it sent another must
 * have taken, and what came of each delegation must be there once. What the leads were told, and what tools did, is
 * compared with what the tasks say.
 *
 * Every function returns violations as sentences; none means that all is well.
 */
import { textOf } from '../../runtime/conversation.js'
import { isForeign, partsOf, stampOf } from '../../runtime/mail.js'
import type { PlacedEvent, RecordedCommit } from '../../runtime/record.js'
import type { CrewResult } from './kill-child.js'
import { judgeAnswer, type MailAsk, nameOfTask } from './mail-crews.js'
import type { CrewStory } from './worker-judge.js'

/** What the journals of crews that ask each other tell. */
export interface MailVerdict {
  readonly letters: number
  readonly returned: number
  readonly delegations: number
  /** Delegations by what came of them: `answered`, or a code. */
  readonly ends: Readonly<Record<string, number>>
  readonly violations: readonly string[]
}

/** A letter as its sender's journal has it. */
interface Sent {
  readonly by: string
  readonly actor: string
  /** `<crew>/<kind>/<name>`. */
  readonly to: string
  readonly message: string
  readonly number: number
  readonly sequence: number
}

/** A letter as its receiver's journal has it. */
interface Taken {
  readonly by: string
  readonly from: string
  readonly to: string
  readonly message: string
  /** Null for one that came back. */
  readonly number: number | null
  readonly commit: RecordedCommit
}

/**
 * Judges crews of which all have ended and nothing is on its way.
 * @param givenUp crews with work that was given up, since processes died over it
 */
export function judgeMail(stories: ReadonlyMap<string, CrewStory>, givenUp: ReadonlySet<string>): MailVerdict {
  const crews = [...stories]
  const sent = crews.flatMap(([crew, story]) => sentOf(crew, story))
  const taken = crews.flatMap(([crew, story]) => takenOf(crew, story))
  const tasks = sent.filter(({ message }) => message === 'delegate.task')
  const ends: Record<string, number> = {}
  const violations = [
    ...crews.flatMap(([one]) => crews.flatMap(([other]) => judgeNumbers(one, other, sent, taken))),
    ...tasks.flatMap((task) => judgeDelegation(task, stories, taken, ends, givenUp)),
    ...taken.filter(({ message }) => message === 'delegate.task').flatMap((task) => judgeTaken(task, stories, sent)),
    ...judgeTwice(taken),
    ...crews.flatMap(([crew, story]) => judgeRuns(crew, story)),
  ]
  const returned = taken.filter(({ message }) => message === 'mail.returned').length
  return { letters: sent.length, returned, delegations: tasks.length, ends, violations }
}

function sentOf(by: string, { events }: CrewStory): Sent[] {
  return events
    .filter(({ event }) => event.type === 'mail.sent')
    .map(({ sequence, from, event }) => {
      const { to, message, number } = event as unknown as Pick<Sent, 'to' | 'message' | 'number'>
      return { by, actor: from, to, message, number, sequence }
    })
}

/** Commits of which an event says that the letter was taken: one that had been before changes nothing. */
function takenOf(by: string, { commits, events }: CrewStory): Taken[] {
  const counted = new Set(events.filter(({ event }) => event.type === 'mail.taken').map(({ sequence }) => sequence))
  return commits
    .filter(({ sequence, envelope }) => isForeign(envelope.from) && counted.has(sequence))
    .map((commit) => {
      const { from, to, cause, body } = commit.envelope
      return { by, from, to, message: body.type, number: stampOf(cause)?.number ?? null, commit }
    })
}

/** Whether a letter came back to the actor that wrote it. */
function cameBack({ by, actor, to, sequence, message }: Sent, taken: readonly Taken[]): boolean {
  const [receiver] = partsOf(to)
  return taken.some(
    (back) =>
      back.by === by &&
      back.to === actor &&
      back.message === 'mail.returned' &&
      partsOf(back.from)[0] === receiver &&
      back.commit.envelope.body['message'] === message &&
      back.commit.envelope.cause.split('-')[0] === `${sequence}`,
  )
}

/** Of one crew to another: numbered without a gap, and taken in that order, each once, but for those that came back. */
function judgeNumbers(from: string, to: string, sent: readonly Sent[], taken: readonly Taken[]): string[] {
  const letters = sent.filter(({ by, to: address }) => by === from && partsOf(address)[0] === to)
  const numbers = letters.map(({ number }) => number)
  const expected = letters.filter((letter) => !cameBack(letter, taken)).map(({ number }) => number)
  const found = taken
    .filter(({ by, from: address, number }) => by === to && partsOf(address)[0] === from && number !== null)
    .map(({ number }) => number)
  return [
    ...(numbers.some((number, index) => number !== index + 1)
      ? [`${from} numbered its letters to ${to} ${numbers.join()}`]
      : []),
    ...(found.join() === expected.join() ? [] : [`${to} took ${found.join()} of ${from}, not ${expected.join()}`]),
  ]
}

function count({ events }: CrewStory, holds: (event: PlacedEvent) => boolean): number {
  return events.filter(holds).length
}

/** What a crew gave away it saw end once, and at most one letter said so. */
function judgeDelegation(
  { by, actor, to }: Sent,
  stories: ReadonlyMap<string, CrewStory>,
  taken: readonly Taken[],
  ends: Record<string, number>,
  givenUp: ReadonlySet<string>,
): string[] {
  const story = stories.get(by)!
  const finished = story.events.filter(({ event }) => event.type === 'agent.finished' && event['address'] === actor)
  const code = (finished[0]?.event['code'] as string | null | undefined) ?? 'answered'
  ends[code] = (ends[code] ?? 0) + 1
  const [receiver] = partsOf(to)
  const answers = taken.filter(
    (letter) => letter.by === by && letter.to === actor && partsOf(letter.from)[0] === receiver,
  )
  return [
    ...(finished.length === 1 ? [] : [`${by}/${actor} ended ${finished.length} times`]),
    ...(answers.length === 1 ? [] : [`${by}/${actor} had ${answers.length} answers of ${receiver}`]),
    ...(mayEnd(code, by, taken) || isGivenUp(code, receiver, givenUp) ? [] : [`${by}/${actor} ended with ${code}`]),
  ]
}

/** Only a crew whose own task was called back cancels what it gave away for it. */
function mayEnd(code: string, by: string, taken: readonly Taken[]): boolean {
  if (code === 'RUN_CANCELLED') return taken.some((letter) => letter.by === by && letter.message === 'delegate.revoke')
  return code === 'answered' || code === 'DELEGATION_FAILED'
}

/** Its own work was given up: three owners died over it. Whoever asked is told so. */
function isGivenUp(code: string, crew: string, givenUp: ReadonlySet<string>): boolean {
  return code === 'EFFECT_CRASHED' && givenUp.has(crew)
}

/** A task that was taken is one run, which ends once and is answered once. */
function judgeTaken(
  { by, from, commit }: Taken,
  stories: ReadonlyMap<string, CrewStory>,
  sent: readonly Sent[],
): string[] {
  const run = `r${commit.sequence}`
  const story = stories.get(by)!
  const of = (type: string): number => count(story, ({ event }) => event.type === type && event['run'] === run)
  const answers = sent.filter(
    (letter) => letter.by === by && letter.to === from && letter.message === 'delegate.answered',
  )
  return [
    ...(of('run.queued') === 1 ? [] : [`${by}: the task of ${from} was queued ${of('run.queued')} times as ${run}`]),
    ...(of('run.finished') === 1 ? [] : [`${by}: ${run} of ${from} ended ${of('run.finished')} times`]),
    ...(answers.length === 1 ? [] : [`${by} answered ${from} ${answers.length} times`]),
  ]
}

/** No task was taken twice, whatever number it came with. */
function judgeTwice(taken: readonly Taken[]): string[] {
  const tasks = taken.filter(({ message }) => message === 'delegate.task')
  const names = tasks.map(({ commit }) => nameOfTask(textOf(commit.envelope.values.at(-1) as string)))
  return names.filter((name, index) => names.indexOf(name) !== index).map((name) => `${name} was taken twice`)
}

/** Every run that began has ended. */
function judgeRuns(crew: string, story: CrewStory): string[] {
  const runs = story.events.filter(({ event }) => event.type === 'run.queued').map(({ event }) => event['run'])
  return runs
    .filter((run) => count(story, ({ event }) => event.type === 'run.finished' && event['run'] === run) !== 1)
    .map((run) => `${crew}: ${String(run)} did not end once`)
}

/**
 * What the leads were told; each task of a lead was one run.
 * @param results by the tasks' names
 * @param givenUp as of `judgeMail`
 */
export function judgeLeads(
  asks: readonly MailAsk[],
  results: readonly CrewResult[],
  stories: ReadonlyMap<string, CrewStory>,
  givenUp: ReadonlySet<string>,
): string[] {
  const byName = new Map(results.map((result) => [result.id, result]))
  const own = (crew: string): number =>
    stories.get(crew)!.commits.filter(({ envelope }) => envelope.body.type === 'crew.task').length
  const crews = [...new Set(asks.map(({ crew }) => crew))]
  return [
    ...asks.flatMap((ask) => {
      const result = byName.get(ask.name)
      if (result === undefined) return [`${ask.name} has no result`]
      if (result.code === null) return judgeAnswer(ask, result.output, givenUp)
      return isGivenUp(result.code, ask.crew, givenUp)
        ? []
        : [`${ask.name} ended with ${result.code}: ${result.reason}`]
    }),
    ...crews.flatMap((crew) => {
      const asked = asks.filter((ask) => ask.crew === crew).length
      return own(crew) === asked ? [] : [`${crew} has ${own(crew)} runs of its own, ${asked} were asked for`]
    }),
  ]
}
