/**
 * Asks: what agents wait for a person to say, and what a person says to it.
 *
 * An ask is an effect of the port `human`. No process works on it: it is open until somebody answers, its time is over, or
 * its run ends; over restarts, moves and upgrades, and whether or not the crew is in memory.
 *
 * Owns: the list of what is asked, checking an answer, telling that nobody waits for it.
 * Does not own: when something is asked (`edge.ts`, `machines/crew.ts`), what follows from an answer
 * (`machines/tool-executor.ts`, `machines/escalation.ts`).
 *
 * - AK1 An answer is for one call with its arguments: those that the model wrote, or those that it brings itself.
 * - AK2 The first answer counts; every other one is refused with `ASK_CLOSED`, also when both come at once.
 * - AK3 Arguments that the tool does not take are refused, where its code is at hand; else its port refuses them.
 */
import type { HumanAsk, Limits } from '../machines/index.js'
import { raiseOf } from './budget.js'
import { shortHash } from './codec.js'
import { argumentsOf } from './content.js'
import { TroupeError } from './errors.js'
import type { Journal } from './journal.js'
import type { Shard } from './shard.js'
import type { Effect, ShardState } from './state.js'

/** Something that an agent waits for. */
export interface PendingAsk {
  readonly id: string
  /**
   * `approval`: may this call be made? `question`: what the model wants to know is in the arguments. `budget`: may more be
   * spent? The arguments are `{ account, dimension, limit }`: the account is
   * `run`, or an agent's below it (`run/writer`); there is no call.
   */
  readonly kind: 'approval' | 'question' | 'budget'
  readonly agent: string
  readonly runId: string
  readonly tool: string
  readonly callId: string
  /** JSON text, as the model wrote it. */
  readonly arguments: string
  /** Epoch milliseconds. */
  readonly askedAt: number
  readonly expiresAt: number
}

/** How to answer. */
export interface AnswerOptions {
  /** Who answers, for the record; over NATS it is the name of the client. Up to 256 characters. @default 'local' */
  readonly by?: string
}

/** How to approve. */
export interface ApproveOptions extends AnswerOptions {
  /** Make the call with these instead of the model's. Of a budget: what its limits are to be, as `BudgetLimits`. */
  readonly arguments?: unknown
}

/** What is said. */
export interface Said {
  readonly decision: 'approved' | 'denied' | 'answered'
  /** The answer, or why not. */
  readonly text?: string
  readonly arguments?: unknown
}

/** That a call may be made. */
export function approval({ arguments: edited }: ApproveOptions): Said {
  return { decision: 'approved', ...(edited === undefined ? {} : { arguments: edited }) }
}

/** That it may not. */
export function denial(reason: string | undefined): Said {
  return { decision: 'denied', ...(reason === undefined ? {} : { text: reason }) }
}

type AskEffect = Effect & { readonly body: HumanAsk }

/** Longest text of an answer, and of arguments, in characters. */
const maxText = 262_144
const maxBy = 256

/** What a crew's agents wait for, the oldest first. @throws TroupeError `JOURNAL_CORRUPT`, `BLOB_MISSING`. */
export async function pendingAsks({ id: shard, state }: Shard, journal: Journal): Promise<PendingAsk[]> {
  const open = [...state.effects.values()].filter(isAsk)
  return Promise.all(
    open.map(async ({ id, from, body }) => {
      const { kind, agent, run: runId, tool, callId, conversation, position, waitMs } = body
      const entries = state.logs.get(conversation)?.entries.slice(position, position + 1) ?? []
      const expiresAt = expiryOf(state, from)
      return {
        ...{ id, kind, agent, runId, tool, callId },
        arguments: kind === 'budget' ? shownBudget(body) : await argumentsOf(journal, shard, body, entries),
        askedAt: expiresAt - waitMs,
        expiresAt,
      }
    }),
  )
}

/** Dollars for people, not billionths of them. */
function shownBudget({ arguments: text = '{}' }: HumanAsk): string {
  const { account, dimension, limit } = JSON.parse(text) as { account: string; dimension: string; limit: number }
  const isMoney = dimension === 'nanoUsd'
  return JSON.stringify({ account, dimension: isMoney ? 'usd' : dimension, limit: isMoney ? limit / 1e9 : limit })
}

function isAsk(effect: Effect): effect is AskEffect {
  return effect.body.type === 'human.ask'
}

/** An actor that asks has one timer. */
function expiryOf({ timers }: ShardState, actor: string): number {
  return [...timers.values()].find((timer) => timer.actor === actor)?.dueAt ?? 0
}

/** Answers; resolves when that is durable. @param find as `Worker.knowing` @throws TroupeError `ASK_CLOSED`, `INPUT_INVALID`, and what intake refuses. */
export async function respond(
  find: (knows: (state: ShardState) => boolean) => Promise<Shard>,
  ask: string,
  said: Said,
  by = 'local',
): Promise<void> {
  const shard = await find(({ effects }) => effects.has(ask))
  const effect = shard.state.effects.get(ask)
  if (effect === undefined || !isAsk(effect)) throw closed(shard, ask)
  check(effect.body, said, by)
  const text = textOf(said, by)
  const body = {
    ...{ type: 'human.answered', decision: said.decision, by, bytes: text.length, result: shortHash(text) },
    ...(said.arguments === undefined ? {} : await edited(shard, effect.body, said.arguments)),
  }
  const values = said.decision === 'approved' ? [] : [text]
  const commit = await shard.post({ from: 'port/human', to: effect.from, cause: ask, body, values })
  if (!commit.events.some(([from, { type }]) => from === effect.from && type === 'human.answered'))
    throw closed(shard, ask)
}

function check({ kind }: HumanAsk, { decision, text = '' }: Said, by: string): void {
  if ((kind === 'question') !== (decision === 'answered'))
    throw new TroupeError(
      'INPUT_INVALID',
      kind === 'question'
        ? 'a question wants an answer'
        : `${kind === 'budget' ? 'a budget' : 'an approval'} wants a yes or no`,
    )
  if (by.length === 0 || by.length > maxBy)
    throw new TroupeError('INPUT_INVALID', `a name has 1 to ${maxBy} characters`)
  if (text.length > maxText) throw new TroupeError('INPUT_INVALID', `an answer has at most ${maxText} characters`)
}

/** What the model is told. */
function textOf({ decision, text = '' }: Said, by: string): string {
  if (decision === 'answered') return text
  return `Not done: ${by} did not approve this call.${text === '' ? '' : ` ${text}`}`
}

async function edited(
  shard: Shard,
  body: HumanAsk,
  given: unknown,
): Promise<{ limits: Limits } | { arguments: string }> {
  return body.kind === 'budget' ? { limits: raiseOf(given) } : { arguments: await editedArguments(shard, body, given) }
}

async function editedArguments({ crew }: Shard, { agent, tool }: HumanAsk, given: unknown): Promise<string> {
  const text = JSON.stringify(given)
  if (text === undefined || text.length > maxText)
    throw new TroupeError('INPUT_INVALID', `arguments are JSON of at most ${maxText} characters`)
  const schema = crew?.prepared.agents.get(agent)?.tools.get(tool)?.input
  const read = await schema?.safeParseAsync(JSON.parse(text))
  if (read?.success === false) {
    const [issue] = read.error.issues
    throw new TroupeError(
      'INPUT_INVALID',
      `${tool} does not take these arguments: ${issue?.path.map(String).join('.')} ${issue?.message}`,
    )
  }
  return text
}

function closed({ id }: Shard, ask: string): TroupeError {
  const message = `${id}: nobody waits for an answer to ${ask.slice(0, 64)}: it was given, its time is over, or its run has ended`
  return new TroupeError('ASK_CLOSED', message, { details: { crew: id, ask: ask.slice(0, 64) } })
}
