/**
 * The inbox: what becomes of a letter of another shard before it is a message here.
 *
 * Owns: the order in which letters of one sender are taken, which messages may come by mail, what of a task has to be
 * looked up or called outside of a commit.
 * Does not own: bringing letters (`worker.ts`, `transport/`), the cursors (`mail.ts`), taking the message (`commit.ts`).
 *
 * - IN1 Of one sender one letter at a time is worked on. One that was taken is answered as if it were taken now; one that
 *   comes early is refused with `MAIL_GAP`, unless nothing is under way before it.
 * - IN2 A sender that goes back in time is refused with `SENDER_BEHIND`.
 * - IN3 What another crew may not say here is refused with `MESSAGE_REFUSED`, whoever asks.
 */
import {
  delegateAnswered,
  delegateRevoke,
  delegateTask,
  machineTold,
  mailReturned,
  shareAsk,
  shareGiven,
  shareRefused,
  shareSettle,
} from '../machines/index.js'
import { textOf } from './conversation.js'
import { instructionsOf, userMessage } from './edge.js'
import type { LiveCrew } from './dispatcher.js'
import { shortHash } from './codec.js'
import type { Draft } from './envelope.js'
import { TroupeError, toTroupeError } from './errors.js'
import type { Logic } from './logic.js'
import { partsOf, stampOf } from './mail.js'
import { estimateTokens } from './prepared-crew.js'
import type { Message } from './scope.js'
import type { ShardState } from './state.js'

/** What the inbox needs of its shard. */
export interface ReceivingShard {
  readonly id: string
  state(): ShardState
  crew(): LiveCrew | null
  /** Logic of a user's machine by its kind; null when this process does not know it. */
  logic(kind: string): Logic | null
  /** Throws when the shard takes nothing any more. */
  check(): void
  /** Takes a message; resolves when it is durable. */
  post(draft: Draft, work: boolean): Promise<unknown>
}

/** What may come by mail, and for which kind of actor. */
const allowed = {
  'delegate.task': { kinds: ['crew'], schema: delegateTask },
  'delegate.revoke': { kinds: ['crew'], schema: delegateRevoke },
  'delegate.answered': { kinds: ['envoy'], schema: delegateAnswered },
  'share.ask': { kinds: ['pool'], schema: shareAsk },
  'share.settle': { kinds: ['pool'], schema: shareSettle },
  'share.given': { kinds: ['budget'], schema: shareGiven },
  'share.refused': { kinds: ['budget'], schema: shareRefused },
  'machine.told': { kinds: ['machine'], schema: machineTold },
  'mail.returned': { kinds: ['envoy', 'budget', 'pool', 'machine'], schema: mailReturned },
} as const

/** Takes letters. */
export class Inbox {
  readonly #shard: ReceivingShard
  readonly #lanes = new Map<string, Promise<void>>()

  constructor(shard: ReceivingShard) {
    this.#shard = shard
  }

  /**
   * Takes a letter; resolves when that is durable, or was before.
   * @param first no earlier letter can still come: what is missing before this one never will
   * @throws TroupeError `MAIL_GAP`, `SENDER_BEHIND`, `MESSAGE_REFUSED`, `ENVELOPE_INVALID`, `WORKER_MISSING`, and what
   * refuses a message.
   */
  take(draft: Draft, first: boolean): Promise<void> {
    const [sender] = partsOf(draft.from)
    const before = this.#lanes.get(sender)
    const taking = before === undefined ? this.#take(draft, first) : before.then(() => this.#take(draft, first))
    const done = taking
      .catch(() => undefined)
      .then(() => {
        if (this.#lanes.get(sender) === done) this.#lanes.delete(sender)
      })
    this.#lanes.set(sender, done)
    return taking
  }

  async #take(draft: Draft, first: boolean): Promise<void> {
    const { id } = this.#shard
    this.#shard.check()
    const body = messageOf(draft, id)
    this.#checkPool(draft.to)
    const [sender] = partsOf(draft.from)
    const stamp = stampOf(draft.cause)
    if (stamp === null && body.type !== 'mail.returned')
      throw new TroupeError('ENVELOPE_INVALID', `${id}: a letter of ${sender} without its number`)
    const place = stamp === null ? 'next' : this.#shard.state().mail.placeOf(sender, stamp)
    if (place === 'taken') return
    if (place === 'behind')
      throw new TroupeError(
        'SENDER_BEHIND',
        `${id}: ${sender} went back in time: its journal has lost what it sent here`,
      )
    if (place === 'early' && !first) {
      const message = `${id}: letter ${stamp?.number} of ${sender} came before the one before it`
      throw new TroupeError('MAIL_GAP', message, { retryable: true })
    }
    const work = body.type === 'delegate.task'
    await this.#shard.post(await this.#prepare({ ...draft, body }), work)
  }

  /** A crew that is no budget has none to share. @throws TroupeError `MESSAGE_REFUSED`; `WORKER_MISSING` of one that is to come. */
  #checkPool(to: string): void {
    const { actors, definition } = this.#shard.state()
    if (!to.startsWith('pool/') || actors.has(to)) return
    const { id } = this.#shard
    // Taken, and not told yet what it is: whoever took it may have died over that.
    if (definition === '') throw new TroupeError('WORKER_MISSING', `${id} is not defined yet`, { retryable: true })
    throw new TroupeError('MESSAGE_REFUSED', `${id} is no budget`)
  }

  /** What the message needs that is not in the letter: user code runs here, its result is recorded. */
  async #prepare(draft: Draft): Promise<Draft> {
    if (draft.body.type === 'delegate.answered') {
      const [answer = ''] = draft.values as readonly string[]
      return { ...draft, body: { ...draft.body, tokens: estimateTokens(answer.length), result: shortHash(answer) } }
    }
    if (draft.body.type === 'machine.told') return this.#toMachine(draft)
    if (draft.body.type !== 'delegate.task') return draft
    const live = this.#shard.crew()
    if (live === null)
      throw new TroupeError('WORKER_MISSING', `the code of ${this.#shard.id} is not here yet`, { retryable: true })
    const task = taskOf(draft)
    const agent = draft.body['agent'] as string
    let system: string | null = null
    let refused = ''
    try {
      system = await instructionsOf(live.prepared, agent, task, null)
    } catch (error) {
      refused = `the instructions of ${agent} threw: ${toTroupeError(error, 'INPUT_INVALID').message.slice(0, 500)}`
    }
    const values = [...(system === null ? [] : [system]), userMessage(task)]
    const tokens = estimateTokens(values.reduce((sum, value) => sum + value.length, 0))
    return { ...draft, values, body: { ...draft.body, tokens, messages: values.length, refused } }
  }

  /** What a machine of another crew says to one here, checked as what anybody says to it. */
  async #toMachine(draft: Draft): Promise<Draft> {
    const { id } = this.#shard
    const { actors, definition } = this.#shard.state()
    const kind = actors.get(draft.to)?.kind
    if (kind === undefined && definition !== '')
      throw new TroupeError('MESSAGE_REFUSED', `${id} has no ${draft.to.slice(0, 80)}`)
    const accepts = kind === undefined ? undefined : this.#shard.logic(kind)?.accepts
    if (accepts === undefined)
      throw new TroupeError('WORKER_MISSING', `the code of ${id} is not here yet`, { retryable: true })
    try {
      return { ...draft, body: { ...draft.body, message: await accepts(draft.body['message']) } }
    } catch (error) {
      const { message } = toTroupeError(error, 'MESSAGE_REFUSED')
      throw new TroupeError('MESSAGE_REFUSED', `${id}: ${message.slice(0, 500)}`, { cause: error })
    }
  }
}

/** The shape of a message that another crew may say to an actor; undefined for another one. */
export function mailSchema(to: string, type: string): (typeof allowed)[keyof typeof allowed]['schema'] | undefined {
  const known = Object.hasOwn(allowed, type) ? allowed[type as keyof typeof allowed] : undefined
  return known !== undefined && isOne(known.kinds, kindOfAddress(to)) ? known.schema : undefined
}

const isOne = (kinds: readonly string[], kind: string): boolean => kinds.includes(kind)
const kindOfAddress = (address: string): string => address.slice(0, address.indexOf('/'))

/** The message of a letter. @throws TroupeError `MESSAGE_REFUSED`. */
function messageOf({ to, from, body }: Draft, shard: string): Message {
  const message = mailSchema(to, body.type)?.safeParse(body)
  if (message?.success === true) return message.data
  const what = `${body.type.slice(0, 80)} from ${from.slice(0, 200)} to ${to.slice(0, 80)}`
  throw new TroupeError('MESSAGE_REFUSED', `${shard}: ${what} may not come by mail`)
}

/** The text of a task. @throws TroupeError `ENVELOPE_INVALID`. */
function taskOf({ values, from }: Draft): string {
  try {
    if (values.length === 1) return textOf(values[0] as string)
  } catch {
    // Told below.
  }
  throw new TroupeError('ENVELOPE_INVALID', `a task of ${from.slice(0, 200)} without its text`)
}
