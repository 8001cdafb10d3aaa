import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { startScriptedModel } from '../../actors/scripted-model.js'
import { createRuntime } from '../../runtime/index.js'
import type { Budget } from '../../runtime/budget.js'
import { defineAgent, defineCrew, defineTool } from '../../runtime/define.js'
import type { Journal } from '../../runtime/journal.js'
import { acceptLoss, findLoss } from '../../runtime/repair.js'
import { type Message, Scope, type Snapshot, type Step } from '../../runtime/scope.js'
import { isAtRest } from '../../runtime/state.js'
import { defineBudget, type SharedBudgetOptions } from '../../runtime/shared-budget.js'
import { createMemoryJournal, createMemoryStore } from '../../transport/memory-journal.js'
import { createManualClock } from '../support/manual-clock.js'
import {
  call,
  gate,
  type Model,
  openStage,
  override,
  resultsIn,
  say,
  shippedMachines,
  type Stage,
  until,
} from '../support/crew-stage.js'

const look = defineTool({
  ...{ name: 'look', description: '', input: z.object({ at: z.number() }), effect: 'pure' },
  run: ({ at }) => `seen ${at}`,
})
/** Looks at so many things, one a round, then says what it saw: one model call more than that. */
const looks =
  (rounds: number): Model =>
  (request) => {
    const seen = resultsIn(request)
    return seen.length < rounds ? call(['look', { at: seen.length }]) : say(seen.join(', '))
  }
const scout = defineAgent({ model: 'a:one', instructions: 'look', tools: [look] })
const crewWith = (budget: Budget, name = 'c') => defineCrew({ name, agents: { scout }, lead: 'scout', budget })
const team = (more: Partial<SharedBudgetOptions> = {}) =>
  defineBudget({ name: 'team', limits: { modelCalls: 5 }, share: { modelCalls: 1 }, ...more })
const crew = crewWith({ from: 'team' })
const code = (wanted: string, message: RegExp | string = '') =>
  expect.objectContaining({ code: wanted, message: expect.stringMatching(message) as string })

async function using(model: Model, work: (stage: Stage) => Promise<void>): Promise<void> {
  const stage = await openStage({ model })
  try {
    await work(stage)
  } finally {
    await stage.runtime.close({ graceMs: 0 })
  }
}
const booked = async ({ runtime }: Stage) => (await runtime.show('team')).books!.booked.modelCalls
/** Lets time pass until something has ended. */
async function inTime<T>({ clock }: Pick<Stage, 'clock'>, ended: Promise<T>, stepMs = 50): Promise<T> {
  let isOver = false
  void ended.finally(() => (isOver = true)).catch(() => undefined)
  await until(() => {
    clock.advance(stepMs)
    return isOver
  })
  return ended
}

describe('shared budget: crews spend from it together', () => {
  test('shared budget: a run takes what it needs, and gives the rest back at its end', () =>
    using(looks(1), async (stage) => {
      await stage.runtime.spawn(team({ limits: { modelCalls: 5 }, share: { modelCalls: 4 } }))
      const handle = await stage.runtime.spawn(crew)
      await handle.ask('go')
      await until(async () => (await booked(stage)) === 2)
      await handle.ask('again')
      await until(async () => (await booked(stage)) === 4)
      expect((await stage.runtime.show('team')).books).toMatchObject({ limits: { modelCalls: 5 }, shares: [] })
      await expect(handle.ask('once more')).rejects.toEqual(
        code('BUDGET_EXHAUSTED', /^the budget team has no modelCalls left$/),
      )
      expect(stage.requests).toHaveLength(5)
    }))

  test('shared budget: many crews at once spend all of it, and not one call more', () =>
    using(looks(2), async (stage) => {
      await stage.runtime.spawn(team({ limits: { modelCalls: 30 } }))
      const ends = await inTime(
        stage,
        Promise.all(
          Array.from({ length: 12 }, async (_, index) => {
            const handle = await stage.runtime.spawn(crew, { id: `c${index}` })
            return handle.ask('go').then(
              () => 'done',
              (error: { code: string }) => error.code,
            )
          }),
        ),
      )
      expect(stage.requests).toHaveLength(30)
      expect(new Set(ends)).toEqual(new Set(['done', 'BUDGET_EXHAUSTED']))
      expect(ends.filter((end) => end === 'done').length).toBeGreaterThan(0)
      await until(async () => (await booked(stage)) === 30)
    }))

  test('shared budget: the limits of the crew hold as well, and those of its agents are parts of them', () =>
    using(looks(9), async (stage) => {
      await stage.runtime.spawn(team({ limits: { modelCalls: 50 } }))
      const own = await stage.runtime.spawn(crewWith({ modelCalls: 2, from: 'team' }))
      await expect(own.ask('go')).rejects.toEqual(code('BUDGET_EXHAUSTED', 'account run'))
      const agents = {
        scout: defineAgent({ model: 'a:one', instructions: 'look', tools: [look], budget: { modelCalls: 3 } }),
      }
      const small = await stage.runtime.spawn(
        defineCrew({ name: 'small', agents, lead: 'scout', budget: { from: team() } }),
      )
      await expect(small.ask('go')).rejects.toEqual(code('BUDGET_EXHAUSTED', 'account run/scout'))
      expect(stage.requests).toHaveLength(5)
      await until(async () => (await booked(stage)) === 5)
    }))

  test('shared budget: dollars and tokens are cut down to what is left, and refused below the least', () =>
    using(looks(40), async (stage) => {
      await stage.runtime.spawn(defineBudget({ name: 'team', limits: { usd: 0.009, tokens: 500 } }))
      const handle = await stage.runtime.spawn(crew)
      await expect(handle.ask('go')).rejects.toEqual(code('BUDGET_EXHAUSTED', 'no tokens left'))
      const asked = stage.requests.map(({ maxOutputTokens }) => maxOutputTokens)
      expect(Math.min(...asked)).toBeLessThan(Math.max(...asked))
      const { books } = await stage.runtime.show('team')
      expect(books!.booked.tokens).toBeLessThanOrEqual(500)
    }))

  test('shared budget: a cancelled run gives back what it did not use', () => {
    const door = gate()
    return using(
      async () => {
        await door.opened
        return say('late')
      },
      async (stage) => {
        await stage.runtime.spawn(team({ share: { modelCalls: 5 } }))
        const handle = await stage.runtime.spawn(crew)
        const run = handle.start('go')
        await until(async () => stage.requests.length === 1 && (await booked(stage)) === 5)
        await run.cancel()
        await expect(run.result).rejects.toEqual(code('RUN_CANCELLED'))
        // The call may have been made: it is booked until its bill comes.
        await until(async () => (await booked(stage)) === 1)
        door.open()
      },
    )
  })

  test('shared budget: who cannot pay waits while another run may give something back', () => {
    const door = gate()
    return using(
      async (request, index) => {
        if (index === 0) await door.opened
        return looks(1)(request, index)
      },
      async (stage) => {
        await stage.runtime.spawn(team({ limits: { modelCalls: 4 }, share: { modelCalls: 4 } }))
        const [one, two] = [
          await stage.runtime.spawn(crew, { id: 'one' }),
          await stage.runtime.spawn(crew, { id: 'two' }),
        ]
        const first = one.ask('go')
        await until(() => stage.requests.length === 1)
        const second = two.ask('go')
        await until(async () => (await stage.runtime.show('team')).books!.waiting.length === 1)
        expect((await stage.runtime.show('team')).books!.waiting).toEqual([expect.stringContaining('two/budget/')])
        door.open()
        await expect(first).resolves.toBeDefined()
        await expect(second).resolves.toBeDefined()
        expect(stage.requests).toHaveLength(4)
      },
    )
  })

  test('shared budget: nobody waits for longer than it says', () => {
    const door = gate()
    return using(
      async () => {
        await door.opened
        return say('late')
      },
      async (stage) => {
        await stage.runtime.spawn(team({ limits: { modelCalls: 1 }, waitMs: 5_000 }))
        const [one, two] = [
          await stage.runtime.spawn(crew, { id: 'one' }),
          await stage.runtime.spawn(crew, { id: 'two' }),
        ]
        const first = one.ask('go')
        await until(() => stage.requests.length === 1)
        const second = expect(two.ask('go')).rejects.toEqual(code('BUDGET_EXHAUSTED', 'no modelCalls left'))
        await until(async () => (await stage.runtime.show('team')).books!.waiting.length === 1)
        stage.clock.advance(5_000)
        await second
        door.open()
        await first
      },
    )
  })

  test('shared budget: it begins anew with its window, and what is left of a share does not go on', () =>
    using(looks(1), async (stage) => {
      await stage.runtime.spawn(team({ limits: { modelCalls: 3 }, share: { modelCalls: 3 }, window: 'hour' }))
      const handle = await stage.runtime.spawn(crew)
      await handle.ask('go')
      const { until: end } = (await stage.runtime.show('team')).books!
      expect(end).toBe((Math.floor(stage.clock.now() / 3_600_000) + 1) * 3_600_000)
      await expect(handle.ask('go')).rejects.toEqual(code('BUDGET_EXHAUSTED', 'until .* UTC'))
      stage.clock.advance(3_600_000)
      await handle.ask('go')
      await until(async () => (await booked(stage)) === 2)
    }))

  test('shared budget: a run that goes on past the end of a window asks anew', () => {
    const door = gate()
    return using(
      async (request, index) => {
        if (index === 1) await door.opened
        return looks(3)(request, index)
      },
      async (stage) => {
        await stage.runtime.spawn(team({ limits: { modelCalls: 4 }, share: { modelCalls: 4 }, window: 'hour' }))
        const asked = (await stage.runtime.spawn(crew)).ask('go')
        await until(() => stage.requests.length === 2)
        stage.clock.advance(3_600_000)
        door.open()
        await asked
        // The two calls of the first hour are that one's, whenever they ended.
        await until(async () => (await booked(stage)) === 2)
      },
    )
  })

  test('shared budget: raised by command, its crews go on; a person can be asked meanwhile', () =>
    using(looks(3), async (stage) => {
      const pool = await stage.runtime.spawn(team({ limits: { modelCalls: 2 } }))
      const handle = await stage.runtime.spawn(crewWith({ from: 'team', onExhausted: 'ask' }))
      const run = handle.ask('go')
      await until(async () => (await handle.asks()).length === 1)
      const [ask] = await handle.asks()
      expect(JSON.parse(ask!.arguments)).toEqual({ account: '@team', dimension: 'modelCalls', limit: 2 })
      await expect(pool.raise({ modelCalls: 9 }, { agent: 'scout' })).rejects.toEqual(code('RAISE_REFUSED'))
      await pool.raise({ modelCalls: 9 })
      await handle.approve(ask!.id)
      await run
      expect(stage.requests).toHaveLength(4)
    }))

  test('shared budget: another definition of it counts at once; it is kept while nobody spends from it', () =>
    using(looks(1), async (stage) => {
      await stage.runtime.spawn(team({ limits: { modelCalls: 1 } }))
      const handle = await stage.runtime.spawn(crew)
      await expect(handle.ask('go')).rejects.toEqual(code('BUDGET_EXHAUSTED'))
      await stage.runtime.spawn(team({ limits: { modelCalls: 3 }, window: 'day' }))
      await handle.ask('go')
      const { books } = await stage.runtime.show('team')
      expect(books).toMatchObject({ limits: { modelCalls: 3 }, window: 'day' })
      expect(isAtRest((await stage.worker.shard('team')).state, Number.POSITIVE_INFINITY)).toBe(false)
    }))

  test('shared budget: a budget of the crew keeps its share from run to run only as far as it is used', () =>
    using(looks(1), async (stage) => {
      await stage.runtime.spawn(team({ limits: { modelCalls: 5 }, share: { modelCalls: 3 } }))
      const handle = await stage.runtime.spawn(crewWith({ from: 'team', per: 'crew', modelCalls: 4 }))
      await handle.ask('go')
      await until(async () => (await booked(stage)) === 2)
      await handle.ask('go')
      await until(async () => (await booked(stage)) === 4)
      await expect(handle.ask('go')).rejects.toEqual(code('BUDGET_EXHAUSTED', 'account run'))
    }))

  test('shared budget: a budget of the crew that is replaced by one a run, and comes back, is another one for the team', () =>
    using(looks(1), async (stage) => {
      await stage.runtime.spawn(team({ limits: { modelCalls: 10 }, share: { modelCalls: 3 } }))
      for (const per of ['crew', 'run', 'crew'] as const) {
        const handle = await stage.runtime.spawn(crewWith({ from: 'team', per }))
        await handle.ask('go')
      }
      await until(async () => (await booked(stage)) === 6)
      const { books } = await stage.runtime.show('team')
      expect(books).toMatchObject({ shares: [{ keeper: 'c/budget/crew', booked: { modelCalls: 2 } }] })
    }))
})

describe('shared budget: who goes in the midst of it', () => {
  test('shared budget: a keeper that goes with its crew, or fails, has used what it had open, and gives the rest back', async () => {
    const scope = (address: RegExp) =>
      new (class extends Scope {
        override deliver(snapshot: Snapshot, to: string, message: Message): Step {
          // Behind the first call, when it holds a share.
          if (address.test(to) && /^(agent.exhausted|crew.steer|budget.charge|budget.withdraw)$/.test(message.type))
            throw new Error('planted')
          return super.deliver(snapshot, to, message)
        }
      })()
    for (const [failing, message] of [
      [/^crew/, { type: 'crew.steer', tokens: 5, key: 'k' }],
      [/^budget/, { type: 'budget.withdraw', holder: 'agent/x' }],
    ] as const) {
      const door = gate()
      const stage = await openStage({
        scope: scope(failing),
        model: async () => {
          await door.opened
          return say('late')
        },
      })
      await stage.runtime.spawn(team({ share: { modelCalls: 5 } }))
      const run = (await stage.runtime.spawn(crew)).start('go')
      const ended = expect(run.result).rejects.toEqual(code('ACTOR_FAILED'))
      await until(async () => stage.requests.length === 1 && (await booked(stage)) === 5)
      const shard = await stage.worker.shard('c')
      const to = failing.test('crew/main') ? 'crew/main' : `budget/${await run.id}`
      await shard.post({ from: 'client/local', to, cause: '', body: message, values: ['x'] })
      await until(async () => (await booked(stage)) === 1)
      door.open()
      await ended
      await stage.runtime.close({ graceMs: 0 })
    }
  })
})

describe('shared budget: what is none', () => {
  test('shared budget: a run whose budget is not there ends, and says so', () =>
    using(looks(1), async ({ runtime, requests }) => {
      const handle = await runtime.spawn(crew)
      await expect(handle.ask('go')).rejects.toEqual(code('CREW_UNKNOWN', 'the budget team: there is no crew team'))
      expect(requests).toEqual([])
    }))

  test('shared budget: a crew is none, be it the very crew that asks', () =>
    using(looks(1), async ({ runtime }) => {
      await runtime.spawn(crewWith({}, 'team'))
      const other = await runtime.spawn(crew)
      await expect(other.ask('go')).rejects.toEqual(code('MESSAGE_REFUSED', 'team is no budget'))
      const own = await runtime.spawn(crewWith({ from: 'own' }, 'own'))
      await expect(own.ask('go')).rejects.toEqual(code('MESSAGE_REFUSED', 'own is no budget'))
    }))

  test('SB1 shared budget: spawned like a crew, it takes no task and no command of one, and neither becomes the other', () =>
    using(looks(1), async ({ runtime }) => {
      const pool = await runtime.spawn(team())
      await expect(pool.ask('go' as never)).rejects.toEqual(code('CREW_INVALID', 'takes no tasks'))
      await expect(runtime.pause('team')).rejects.toEqual(code('CREW_INVALID', 'is a budget'))
      await expect(runtime.spawn(crewWith({}, 'team'))).rejects.toEqual(code('CREW_INVALID', 'is a budget'))
      await runtime.spawn(crew)
      await expect(runtime.spawn(team(), { id: 'c' })).rejects.toEqual(code('CREW_INVALID', 'no budget'))
    }))

  test('shared budget: nonsense is refused by name', () => {
    expect(() => defineBudget({ name: 'no name', limits: { usd: 1 } })).toThrow('name')
    expect(() => defineBudget({ name: 'x', limits: {} })).toThrow('at least one limit')
    expect(() => defineBudget({ name: 'x', limits: { toolCalls: 1 } as never })).toThrow('toolCalls')
    expect(() => defineBudget({ name: 'x', limits: { usd: 1 }, window: 'week' as never })).toThrow('window')
    expect(() => crewWith({ from: 'not an id' })).toThrow('budget.from')
    expect(() => crewWith({ from: crewWith({}) as never })).toThrow('budget.from')
  })

  test('shared budget: removed while crews wait, it gives nothing; a removed crew waits for nothing', () =>
    using(looks(1), async (stage) => {
      await stage.runtime.spawn(team({ limits: { modelCalls: 3 }, share: { modelCalls: 3 } }))
      const handle = await stage.runtime.spawn(crew)
      await handle.ask('go')
      await stage.runtime.remove('c')
      await stage.runtime.remove('team')
      const again = await stage.runtime.spawn(crew)
      await expect(again.ask('go')).rejects.toEqual(code('CREW_UNKNOWN'))
    }))
})

/** Everything that a crash may come between, one after the other. */
describe('shared budget: after a crash', () => {
  test('shared budget: the process dies behind each of its records: all runs end, nothing is spent twice', async () => {
    const limit = 7
    const ends: Record<string, number> = {}
    for (let at = 3; ; at += 1) {
      const store = createMemoryStore()
      const clock = createManualClock()
      let appends = 0
      let crashes = (): void => undefined
      const counting = (journal: Journal): Journal =>
        override(journal, {
          append: async (record) => {
            await journal.append(record)
            if ((appends += 1) === at) crashes()
          },
        })
      const definitions = [team({ limits: { modelCalls: limit }, share: { modelCalls: 2 } })] as const
      const start = async (stage: Stage): Promise<Promise<string>[]> => {
        await stage.runtime.spawn(definitions[0])
        const handles = await Promise.all(['one', 'two', 'three'].map((id) => stage.runtime.spawn(crew, { id })))
        return handles.map((handle) =>
          handle.ask('go', { key: 'k' }).then(
            () => 'done',
            (error: { code: string }) => error.code,
          ),
        )
      }
      const first = await openStage({ store, clock, model: looks(2), journal: counting })
      let dead = false
      crashes = () => {
        dead = true
        first.crash()
      }
      let ended = false
      void start(first)
        .then((runs) => Promise.all(runs))
        .then(() => (ended = true))
        .catch(() => undefined)
      await until(() => {
        clock.advance(20)
        return dead || ended
      })
      if (ended) break
      const second = await openStage({ store, clock, model: looks(2), unclean: true })
      const results = await inTime(
        second,
        start(second).then((runs) => Promise.all(runs)),
      )
      for (const end of results) ends[end] = (ends[end] ?? 0) + 1
      expect([...new Set(results)].filter((end) => end !== 'done' && end !== 'BUDGET_EXHAUSTED')).toEqual([])
      // What the first process still sent when it was dead reached nobody's books, and no provider.
      const spent = await spentOf(second)
      expect(spent).toBeLessThanOrEqual(limit)
      expect(first.requests.length + second.requests.length).toBeLessThanOrEqual(spent)
      // A call that was cut off is booked at its worst until its bill can come no more.
      await until(async () => {
        clock.advance(120_000)
        return (await second.runtime.show('team')).books!.shares.length === 0
      })
      expect(await booked(second)).toBe(spent)
      await second.runtime.close({ graceMs: 0 })
    }
    expect(ends['done']).toBeGreaterThan(0)
  }, 60_000)

  test('shared budget: a crew whose journal was cut back counts anew, and what it had been given is spent', async () => {
    const store = createMemoryStore()
    const model: Model = (request, index) => (index === 2 ? gate<never>().opened : looks(2)(request, index))
    const { runtime, requests, clock, crash } = await openStage({ store, model })
    await runtime.spawn(team({ limits: { modelCalls: 9 } }))
    ;(await runtime.spawn(crew)).start('go', { key: 'k' }).result.catch(() => undefined)
    await until(() => requests.length === 3)
    crash()
    // Behind its first call: by then it had asked once, now three times.
    store.shards.get('c')!.records[4]!.bytes[3]! ^= 1
    const journal = createMemoryJournal({ store })
    await journal.open()
    const context = { scope: new Scope(), machines: shippedMachines }
    await acceptLoss(journal, (await findLoss(journal, 'c', undefined, context))!, context, clock.now())
    await journal.close()
    const stage = await openStage({ store, clock, model: looks(2) })
    await stage.runtime.spawn(team({ limits: { modelCalls: 9 } }))
    await expect((await stage.runtime.spawn(crew)).ask('go', { key: 'k' })).resolves.toMatchObject({
      output: 'seen 0, seen 1',
    })
    // Three that it was given before, and the three that it knows of.
    await until(async () => (await booked(stage)) === 6)
    await stage.runtime.close()
  })

  test('shared budget: over restarts in a store it goes on where it was', async () => {
    const path = await mkdtemp(join(tmpdir(), 'troupe-pool-'))
    const model = await startScriptedModel(() => ({ text: 'done' }))
    const open = () =>
      createRuntime({ store: path, providers: { a: { baseURL: model.baseURL, apiKey: null } }, log: 'silent' })
    try {
      for (let run = 0; run < 3; run += 1) {
        await using runtime = await open()
        await runtime.spawn(team({ limits: { modelCalls: 3 } }))
        await (await runtime.spawn(crew)).ask('go', { key: `${run}` })
      }
      await using runtime = await open()
      await expect((await runtime.spawn(crew)).ask('go', { key: 'more' })).rejects.toEqual(code('BUDGET_EXHAUSTED'))
      expect((await runtime.show('team')).books!.booked).toMatchObject({ modelCalls: 3 })
      expect(model.requests.count).toBe(3)
    } finally {
      await model.close()
      await rm(path, { recursive: true, force: true })
    }
  })
})

/** What the runs have spent by their own books. */
async function spentOf({ worker }: Stage): Promise<number> {
  const shards = await Promise.all(['one', 'two', 'three'].map((id) => worker.shard(id)))
  const runs = shards.flatMap(({ state }) => [...state.runs.values()])
  return runs.reduce((sum, { end }) => sum + (end?.spent.modelCalls ?? 0), 0)
}
