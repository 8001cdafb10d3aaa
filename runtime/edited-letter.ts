/**
 * Edited letters: a dead letter whose message a person has changed before it is tried again.
 *
 * Owns: what a message may become.
 * Does not own: replaying it (`dead-letters.ts`), what a replay decides (`commit.ts`).
 *
 * - EL1 An edited message is one that its actor takes from where the letter came from: a command of the outside, or what
 *   another crew may say. Messages of the inside, outcomes and what begins with `xstate.` are refused.
 * - EL2 It speaks of the content that the letter has, and of its sender as the letter does: neither can be edited.
 */
import { z } from 'zod'
import { commands } from '../machines/index.js'
import type { DeadLetter } from './dead-letter.js'
import { TroupeError } from './errors.js'
import { mailSchema } from './inbox.js'
import { isForeign } from './mail.js'
import { crewAddress } from './commit.js'
import type { Message } from './scope.js'

/** The message that a letter becomes. @param count values of the letter @throws TroupeError `INPUT_INVALID`, `MESSAGE_REFUSED`. */
export function editedMessage(letter: DeadLetter, edited: unknown, count: number): Message {
  const type = typeof edited === 'object' && edited !== null ? (edited as { type?: unknown }).type : undefined
  if (typeof type !== 'string') throw new TroupeError('INPUT_INVALID', 'the message is no object with a type')
  const schema = schemaOf(letter, type)
  if (schema === undefined) {
    const message = `${letter.to} does not take ${type.slice(0, 80)} from ${letter.from.slice(0, 200)}`
    throw new TroupeError('MESSAGE_REFUSED', message, { details: { letter: letter.id } })
  }
  const read = schema.safeParse(edited)
  if (!read.success) throw invalid(letter, `is no ${type}: ${z.prettifyError(read.error)}`)
  const message = { ...read.data, ...filledIn(letter.message) } as Message
  if (!fitsContent(message, letter.message, count))
    throw invalid(letter, `does not speak of its content as it is: ${count} values, see \`messages\` and \`data\``)
  return message
}

function schemaOf({ from, to }: DeadLetter, type: string): z.ZodType<object> | undefined {
  if (isForeign(from)) return mailSchema(to, type)
  if (to !== crewAddress || !Object.hasOwn(commands, type)) return undefined
  return commands[type as keyof typeof commands]
}

/** What the runtime has written into it itself. */
function filledIn({ sender, shard }: Message): object {
  return { ...(sender === undefined ? {} : { sender }), ...(shard === undefined ? {} : { shard }) }
}

/** Whether a message names as much content as there is, and as what it is. */
function fitsContent(message: Message, before: Message, count: number): boolean {
  switch (message.type) {
    case 'crew.task':
      return (
        message['data'] === (before.type === 'crew.task' && before['data'] === true) &&
        (message['messages'] as number) > 0 &&
        (message['messages'] as number) + (message['data'] === true ? 1 : 0) === count
      )
    case 'delegate.task':
      return message['messages'] === count
    case 'crew.steer':
      return count === 1
    case 'delegate.answered':
      return message['code'] !== null || count === 1
    default:
      return true
  }
}

function invalid({ id }: DeadLetter, why: string): TroupeError {
  return new TroupeError('INPUT_INVALID', `the message for ${id} ${why}`, { details: { letter: id } })
}
