/**
 * Generated machines in a shard, killed and taken up again between messages, against XState itself: promises too. A tenth of
 * the machines here; `TROUPE_SCALE=1` takes all. `TROUPE_SEED` repeats a run.
 */
import { setImmediate as turn } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { defineMachine } from '../../runtime/define-machine.js'
import type { Shard } from '../../runtime/shard.js'
import { nextDueAt } from '../../runtime/state.js'
import { machineAddress } from '../../runtime/user-actors.js'
import { createMemoryStore } from '../../transport/memory-journal.js'
import { openStage, quiet } from '../support/crew-stage.js'
import { toldOf } from '../support/decided-machine.js'
import { LiveMachine, type Told } from '../support/live-machine.js'
import { Dice, eventTypes, generateMachine } from '../support/machine-generator.js'
import { createManualClock } from '../support/manual-clock.js'

const scale = Number(process.env['TROUPE_SCALE'] ?? '0.1')
const seed = Number(process.env['TROUPE_SEED'] ?? '1')
const machines = Math.max(4, Math.round(40 * scale))
const messages = 60

/** Promises that the test settles: by what they were asked, so that it is the same for either side. */
class Promises {
  readonly #open = new Map<string, () => void>()

  readonly run = ({ ask }: { readonly ask: string }): Promise<unknown> =>
    new Promise((resolve, reject) => {
      this.#open.set(ask, () =>
        ask.endsWith('3') || ask.endsWith('7') ? reject(new Error(`no ${ask}`)) : resolve({ answer: ask }),
      )
    })

  get open(): readonly string[] {
    return [...this.#open.keys()].sort()
  }

  settle(ask: string): void {
    this.#open.get(ask)?.()
    this.#open.delete(ask)
  }
}

class Resumed {
  readonly clock = createManualClock()
  readonly promises = new Promises()
  readonly #store = createMemoryStore()
  readonly #definition
  #stage: Awaited<ReturnType<typeof openStage>> | null = null
  #shard: Shard | null = null

  constructor(number: number) {
    const machine = generateMachine(number, () => ({ address: 'machine/outside' }), this.promises.run, true)
    this.#definition = defineMachine(machine, { name: 'user', promises: { work: 'idempotent' } })
  }

  /** The process dies, when there is one, and another one takes over. */
  async resume(): Promise<void> {
    this.#stage?.crash()
    this.#stage = await openStage({ store: this.#store, clock: this.clock, checks: false })
    await this.#stage.runtime.spawn(this.#definition, { id: 'user' } as never)
    this.#shard = await this.#stage.worker.shard('user')
  }

  async send(type: string, by: number): Promise<void> {
    const draft = { from: 'client/local', to: machineAddress, cause: '', body: { type, by }, values: [] }
    await this.#shard!.post(draft, true)
  }

  async wait(ms: number): Promise<void> {
    // A commit has the time at which it is taken: each timer has to be taken at its own.
    const until = this.clock.now() + ms
    for (let due = this.#dueAt(); due !== null && due <= until; due = this.#dueAt()) {
      this.clock.advance(due - this.clock.now())
      await quiet()
    }
    this.clock.advance(until - this.clock.now())
    await quiet()
  }

  #dueAt(): number | null {
    return nextDueAt(this.#shard!.state)
  }

  get told(): Told {
    return toldOf(this.#shard!.state, machineAddress)
  }

  async close(): Promise<void> {
    await this.#stage?.runtime.close({ graceMs: 0 })
  }
}

interface Counts {
  sent: number
  deaths: number
  settled: number
}

/** One life of a machine, for so many messages at most. */
async function compare(number: number, dice: Dice, most: number, counts: Counts): Promise<number> {
  const waiting = new Promises()
  const ref = { id: 'outside', sessionId: 'outside', address: 'machine/outside', _send: () => undefined }
  const live = new LiveMachine(
    generateMachine(number, () => ref, waiting.run, true),
    {},
  )
  const ours = new Resumed(number)
  await ours.resume()
  const check = async (at: string): Promise<void> => {
    await quiet()
    expect(ours.told, at).toEqual(live.told)
  }
  let sent = 0
  for (; sent < most && live.told.status === 'active'; sent += 1) {
    await check(`machine ${number}, before message ${sent}`)
    const type = dice.pick([...eventTypes, 'unknown'])
    live.send({ type, by: sent })
    await ours.send(type, sent)
    await check(`machine ${number}, message ${sent} ${type}`)
    if (live.told.status !== 'active') break
    const [ask] = waiting.open
    if (ask !== undefined && dice.chance(0.5)) {
      counts.settled += 1
      waiting.settle(ask)
      ours.promises.settle(ask)
      await turn()
      await check(`machine ${number}, promise ${ask} behind message ${sent}`)
    }
    const ms = dice.below(12)
    live.wait(ms)
    await ours.wait(ms)
    if (dice.chance(0.15)) {
      counts.deaths += 1
      await ours.resume()
    }
  }
  await ours.close()
  counts.sent += sent
  // A machine that ends at once counts as one message, or its number would be tried for ever.
  return Math.max(1, sent)
}

test(`differential: ${machines} generated machines in a shard that is killed again and again do what XState does`, {
  timeout: 600_000,
}, async () => {
  const counts: Counts = { sent: 0, deaths: 0, settled: 0 }
  const { warn } = console
  // XState says so when something is sent to a child that has ended.
  console.warn = () => undefined
  try {
    for (let number = seed * 300_000; number < seed * 300_000 + machines; number += 1) {
      const dice = new Dice(number + 99)
      for (let left = messages; left > 0; ) left -= await compare(number, dice, left, counts)
    }
  } finally {
    console.warn = warn
  }
  console.log(`differential: ${machines} machines in shards, ${JSON.stringify(counts)}, TROUPE_SEED=${seed}`)
  expect(counts.deaths).toBeGreaterThan(0)
})
