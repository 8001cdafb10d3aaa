/**
 * Generated machines against XState itself: `createActor` with a simulated clock, and the runtime's decisions. A tenth of the
 * machines here; `TROUPE_SCALE=1` takes all. `TROUPE_SEED` repeats a run.
 */
import { describe, expect, test } from 'vitest'
import type { AnyStateMachine } from 'xstate'
import type { Message } from '../../runtime/scope.js'
import { DecidedMachine } from '../support/decided-machine.js'
import { LiveMachine } from '../support/live-machine.js'
import { Dice, eventTypes, generateMachine } from '../support/machine-generator.js'

const scale = Number(process.env['TROUPE_SCALE'] ?? '0.1')
const seed = Number(process.env['TROUPE_SEED'] ?? '1')
const machines = Math.max(20, Math.round(240 * scale))
const messages = 60

const never = (): Promise<never> => new Promise(() => undefined)

interface Said {
  readonly said: unknown[]
}

/** The machine for either side, and what it said to the outside there. */
function sides(number: number): { live: AnyStateMachine; ours: AnyStateMachine } & Said {
  const said: unknown[] = []
  const ref = {
    id: 'outside',
    sessionId: 'outside',
    address: 'machine/outside',
    _send: (event: unknown) => said.push(event),
  }
  return {
    live: generateMachine(number, () => ref, never, false),
    ours: generateMachine(number, () => ({ address: 'machine/outside' }), never, false),
    said,
  }
}

/** What the runtime's machine said to the outside. */
function saidBy({ commits }: DecidedMachine): unknown[] {
  return commits
    .flatMap(({ decisions }) => decisions)
    .filter((line) => line.startsWith('machine/outside '))
    .map((line) => JSON.parse(line.slice('machine/outside '.length)) as unknown)
}

/** Compares until enough messages were taken; a machine that ends before that begins again. */
function compare(number: number, restores: boolean): void {
  const dice = new Dice(number + 7_777)
  for (let left = messages; left > 0; ) left -= compareLife(number, dice, left, restores)
}

/** @returns how many messages it took, its start counted */
function compareLife(number: number, dice: Dice, most: number, restores: boolean): number {
  const { live: theirs, ours: mine, said } = sides(number)
  const live = new LiveMachine(theirs, {})
  const ours = new DecidedMachine(mine, {}, restores)
  const check = (at: string): void => {
    const told = live.told
    expect(ours.told, at).toEqual(told)
    // Children of a machine that failed go on in XState, where nobody hears them any more.
    if (told.status === 'error') return
    expect(Object.fromEntries(ours.emitted), at).toEqual(Object.fromEntries(live.emitted))
    expect(saidBy(ours), at).toEqual(said)
    for (const heard of [ours.emitted, live.emitted]) heard.clear()
    for (const list of [ours.commits, said]) list.length = 0
  }
  check(`machine ${number} at its start`)
  let taken = 1
  for (; taken <= most && live.told.status === 'active'; taken += 1) {
    const message: Message = { type: dice.pick([...eventTypes, 'unknown']), by: taken }
    live.send(message)
    ours.send(message)
    check(`machine ${number}, message ${taken} ${message.type}`)
    if (live.told.status !== 'active') break
    const ms = dice.below(12)
    live.wait(ms)
    ours.wait(ms)
    check(`machine ${number}, behind message ${taken}`)
    if (restores && dice.chance(0.2)) ours.restore()
  }
  return taken
}

describe('differential', () => {
  test(`LS2 LS3 UA1 differential: ${machines} generated machines do what XState does, message by message`, {
    timeout: 600_000,
  }, () => {
    for (let number = 0; number < machines; number += 1) compare(seed * 100_000 + number, false)
    console.log(`differential: ${machines} machines, ${messages} messages each, TROUPE_SEED=${seed}`)
  })

  test('LS5 differential: so they do when every step is taken twice, from bytes too', { timeout: 600_000 }, () => {
    for (let number = 0; number < Math.round(machines / 5); number += 1) compare(seed * 200_000 + number, true)
  })
})
