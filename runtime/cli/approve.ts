/**
 * `troupe approve`: says yes or no to a call that waits for approval, or answers a question.
 *
 * Owns: which ask is meant.
 * Does not own: reaching the crew (`show.ts`), how asks are shown (`asks.ts`), what an answer does (`runtime/asks.ts`).
 */
import { userInfo } from 'node:os'
import { TroupeError } from '../errors.js'
import type { Runtime } from '../face.js'
import { askLine } from './asks.js'
import { exitCodes, writeJson, writeLine } from './output.js'
import { type StoreOptions, withStore } from './show.js'

/** Options of `troupe approve`. */
export interface ApproveFlags extends StoreOptions {
  readonly deny?: string | true
  readonly answer?: string
  /** JSON text. */
  readonly arguments?: string
  readonly by?: string
}

/** Answers an ask of a crew; the only one when none is named. */
export async function approve(id: string, ask: string | undefined, flags: ApproveFlags): Promise<number> {
  const by = flags.by ?? userInfo().username
  const edited = flags.arguments === undefined ? {} : { arguments: parsed(flags.arguments) }
  if ([flags.deny, flags.answer, flags.arguments].filter((each) => each !== undefined).length > 1)
    throw new TroupeError('CONFIG_INVALID', 'only one of --deny, --answer and --arguments can be meant')
  const { meant, done } = await withStore(options(flags), async (runtime) => {
    const meant = ask ?? (await onlyOne(runtime, id))
    if (flags.answer !== undefined) await runtime.answer(id, meant, flags.answer, { by })
    else if (flags.deny !== undefined)
      await runtime.deny(id, meant, flags.deny === true ? undefined : flags.deny, { by })
    else await runtime.approve(id, meant, { by, ...edited })
    return { meant, done: flags.answer !== undefined ? 'answered' : flags.deny !== undefined ? 'denied' : 'approved' }
  })
  if (flags.json === true) writeJson({ type: done, crew: id, ask: meant, by })
  else writeLine(`${id} ${meant} ${done}`)
  return exitCodes.done
}

function options({ deny, answer, arguments: edited, by, ...rest }: ApproveFlags): StoreOptions {
  return rest
}

async function onlyOne(runtime: Runtime, id: string): Promise<string> {
  const asks = await runtime.asks(id)
  const [first] = asks
  if (first === undefined) throw new TroupeError('ASK_CLOSED', `${id} waits for nobody`, { details: { crew: id } })
  if (asks.length === 1) return first.id
  throw new TroupeError('CONFIG_INVALID', ['which one?', ...asks.map(askLine)].join('\n'))
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    throw new TroupeError('INPUT_INVALID', '--arguments is not JSON')
  }
}
