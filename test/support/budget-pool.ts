/** Messages to a budget pool, and its books as a test reads them. */
import type { AnyStateMachine } from 'xstate'
import { type Amounts, nothing, poolBooked, type PoolData, poolMachine } from '../../machines/index.js'
import { drive, type Driver, type Message } from './machine-driver.js'

interface Said {
  readonly at?: number
  readonly until?: number
  /** Model calls. */
  readonly used?: number
  readonly least?: number
  readonly most?: number
  readonly final?: boolean
  /** @default 1 */
  readonly life?: number
}

/** So many model calls. */
export const calls = (modelCalls: number): Amounts => ({ ...nothing, modelCalls })
/** Starts a pool of so many model calls. */
export const startPool = (
  modelCalls: number,
  more: Partial<PoolData> = {},
  machine: AnyStateMachine = poolMachine,
): Driver =>
  drive(machine, {
    self: 'pool/main',
    data: { limits: { modelCalls }, share: {}, window: null, waitMs: 5_000, ...more },
  } as { self: string })
/** A keeper asks for one call, or more. */
export const ask = (sender: string, number: number, said: Said = {}): Message => {
  const { at = 0, until = 0, used = 0, least = 1, most = least, life = 1 } = said
  const amounts = { used: calls(used), least: calls(least), most: calls(most) }
  return { type: 'share.ask', number, until, ...amounts, sender, life, at }
}
export const settle = (
  sender: string,
  number: number,
  { at = 0, until = 0, used = 0, final = false, life = 1 }: Said = {},
): Message => ({
  ...{ type: 'share.settle', number, until, used: calls(used), final, sender, life, at },
})
/** What counts as spent. */
export const booked = ({ context }: Driver): number => poolBooked(context as never).modelCalls
export const waiting = ({ context }: Driver) =>
  (context['waiting'] as unknown as readonly { readonly sender: string }[]).map(({ sender }) => sender)
