import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { crewMachine } from '../../machines/index.js'
import { maxLetterBytes, maxLetters, trimLetters } from '../../runtime/dead-letter.js'
import { defineAgent, defineCrew, defineTool } from '../../runtime/define.js'
import { editedMessage } from '../../runtime/edited-letter.js'
import { call, gate, openStage, say, shippedMachines, type Stage, until } from '../support/crew-stage.js'
import { command, defined, Desk, events, task } from '../support/envelopes.js'

const agent = defineAgent({ model: 'a:one', instructions: 'x' })
/** A crew that cannot take a task: a guard throws over it. */
const poisoned = {
  ...shippedMachines,
  crew: crewMachine.provide({
    guards: {
      isQueued: ({ context }) => {
        if (context.queue.length > 0) throw new Error('planted')
        return false
      },
    },
  }),
}

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = []
  for await (const item of items) found.push(item)
  return found
}

/** A store in which a task died. */
async function died(input: string): Promise<Stage> {
  const stage = await openStage({ machines: poisoned })
  const crew = await stage.runtime.spawn(agent)
  await expect(crew.ask(input, { key: 'k', data: { tenant: 'a' } })).rejects.toMatchObject({ code: 'ACTOR_FAILED' })
  return stage
}

/** The same store, with code that was mended, after a clean end. */
async function mended(stage: Stage): Promise<Stage> {
  await stage.runtime.close()
  const next = await openStage({ store: stage.store, clock: stage.clock })
  await next.runtime.spawn(agent)
  return next
}

describe('dead letters: promises', () => {
  test.each([
    ['short', 'go'],
    ['large', 'ü€x'.repeat(100_000)],
    ['binary', '\u0000\u001b[31m\ud800 "\\ \u2028'],
  ])(
    'DL2 dead letters: a %s message that a guard threw over is kept, shown, and taken by mended code, once',
    async (_, input) => {
      const stage = await died(input)
      const [letter] = await all(stage.runtime.deadLetters.list('agent'))
      expect(letter).toMatchObject({
        id: '2-0',
        from: 'client/local',
        to: 'crew/main',
        type: 'crew.task',
        code: 'ACTOR_FAILED',
      })
      expect(letter?.reason).toContain('planted')
      await expect(stage.runtime.deadLetters.replay('agent', '2-0')).rejects.toMatchObject({
        code: 'LETTER_REFUSED',
        details: { reason: 'ACTOR_FAILED' },
      })
      const [again] = await all(stage.runtime.deadLetters.list('agent'))
      const next = await mended(stage)
      expect(await all(next.runtime.deadLetters.list('agent'))).toEqual([again])
      const shown = await next.runtime.deadLetters.show('agent', again!.id)
      expect(shown.values).toEqual([JSON.stringify({ role: 'user', content: input }), '{"tenant":"a"}'])
      await next.runtime.deadLetters.replay('agent', again!.id)
      await expect(next.runtime.deadLetters.replay('agent', again!.id)).rejects.toMatchObject({
        code: 'LETTER_UNKNOWN',
      })
      const runs = (await next.runtime.show('agent')).runs.filter(({ code }) => code === null)
      expect(runs).toHaveLength(1)
      const { output, messages } = await next.runtime.crew('agent')!.run(runs[0]!.runId).result
      expect([output, messages[0]?.content]).toEqual(['done', input])
      expect(next.requests).toHaveLength(1)
      await next.runtime.close()
    },
  )

  test('DL1 dead letters: they outlive a crash, and go when they are dropped, one or all', async () => {
    const stage = await died('go')
    const crew = stage.runtime.crew('agent')!
    await expect(crew.ask('more')).rejects.toMatchObject({ code: 'ACTOR_FAILED' })
    stage.crash()
    const next = await openStage({ store: stage.store, clock: stage.clock, machines: poisoned, unclean: true })
    const letters = await all(next.runtime.deadLetters.list('agent'))
    expect(letters).toHaveLength(2)
    expect(await next.runtime.deadLetters.drop('agent', letters[0]!.id)).toBe(1)
    await expect(next.runtime.deadLetters.drop('agent', letters[0]!.id)).rejects.toMatchObject({
      code: 'LETTER_UNKNOWN',
    })
    expect(await next.runtime.deadLetters.drop('agent')).toBe(1)
    expect(await next.runtime.deadLetters.drop('agent')).toBe(0)
    expect(await all(next.runtime.deadLetters.list('agent'))).toEqual([])
    await expect(all(next.runtime.deadLetters.list('nobody'))).rejects.toMatchObject({ code: 'CREW_UNKNOWN' })
    await next.runtime.close()
  })

  test('DL3 dead letters: an outcome, a timer and a message for an actor that is gone are not replayed', async () => {
    const stage = await died('go')
    const { letters } = (await stage.worker.shard('agent')).state
    const [known] = letters.values()
    for (const more of [{ from: 'port/model' }, { from: 'clock/timer' }, { to: 'agent/writer-r9' }]) {
      letters.set('2-0', { ...known!, ...more })
      await expect(stage.runtime.deadLetters.replay('agent', '2-0')).rejects.toMatchObject({ code: 'LETTER_REFUSED' })
      expect(letters.size).toBe(1)
    }
    await stage.runtime.close()
  })

  test('DL2 dead letters: shown, it tells the state of its actor and what its run has cost so far', async () => {
    const stage = await died('go')
    const [letter] = await all(stage.runtime.deadLetters.list('agent'))
    const shown = await stage.runtime.deadLetters.show('agent', letter!.id)
    expect(shown).toMatchObject({ state: 'idle', run: { runId: 'r2', status: 'finished', code: 'ACTOR_FAILED' } })
    const { letters } = (await stage.worker.shard('agent')).state
    letters.set('2-0', { ...letters.get('2-0')!, to: 'agent/agent-r9', message: { type: 'run.pause' } })
    expect(await stage.runtime.deadLetters.show('agent', '2-0')).toMatchObject({ state: null, run: null })
    await stage.runtime.close()
  })

  test('DL2 dead letters: of a run that goes on, the cost so far is told', async () => {
    const look = defineTool({ name: 'look', description: '', effect: 'pure', input: z.object({}), run: () => 'seen' })
    const clerk = defineAgent({ name: 'clerk', model: 'a:one', instructions: 'x', tools: [look] })
    for (const per of ['run', 'crew'] as const) {
      const stage = await openStage({
        model: (_, index) => [say('done'), call(['look']), gate<never>().opened][index]!,
      })
      const crew = await stage.runtime.spawn(
        defineCrew({ name: 'c', agents: { clerk }, lead: 'clerk', budget: { usd: 1, per } }),
      )
      // An earlier run's call, which is none of the next one's.
      const { cost } = await crew.ask('go')
      const run = crew.start('go on')
      run.result.catch(() => undefined)
      await until(() => stage.requests.length === 3)
      const { state } = await stage.worker.shard('c')
      const letter = {
        id: '1-0' as const,
        from: 'client/local',
        to: `agent/clerk-${await run.id}`,
        code: 'X',
        reason: '',
        at: 1,
      }
      state.letters.set('1-0', { ...letter, message: { type: 'run.pause' } })
      expect(await stage.runtime.deadLetters.show('c', '1-0')).toMatchObject({
        state: 'thinking',
        run: { runId: await run.id, status: 'running', tokens: 30, costUsd: cost.usd },
      })
      await stage.runtime.close({ graceMs: 0 })
    }
  })

  test('EL1 EL2 dead letters: edited, it is taken as the message that it was made, about its own content', async () => {
    const stage = await died('go')
    const next = await mended(stage)
    const [letter] = await all(next.runtime.deadLetters.list('agent'))
    const { message } = await next.runtime.deadLetters.show('agent', letter!.id)
    const edited = { ...message, tokens: 7, key: 'another', extra: 'dropped', sequence: 99 }
    await next.runtime.deadLetters.replay('agent', letter!.id, { message: edited, by: 'ann' })
    const commits = await all(next.runtime.journal('agent'))
    const replayed = commits.find(({ envelope }) => envelope.body.type === 'letter.replayed')!.envelope.body
    expect(replayed).toMatchObject({ by: 'ann', message: { type: 'crew.task', tokens: 7, key: 'another' } })
    expect(JSON.stringify(replayed)).not.toContain('dropped')
    const { runs } = await next.runtime.show('agent')
    const { output, messages } = await next.runtime.crew('agent')!.run(runs.at(-1)!.runId).result
    expect([output, messages[0]?.content]).toEqual(['done', 'go'])
    await next.runtime.close()
  })

  test.each([
    ['EL1', 'MESSAGE_REFUSED', { type: 'xstate.done.actor.x' }],
    ['EL1', 'MESSAGE_REFUSED', { type: 'model.replied' }],
    ['EL1', 'MESSAGE_REFUSED', { type: 'human.answered', decision: 'approved', by: 'x', bytes: 0 }],
    ['EL1', 'MESSAGE_REFUSED', { type: 'agent.finished' }],
    ['EL1', 'MESSAGE_REFUSED', { type: 'delegate.task', agent: 'agent', depth: 0, chain: [] }],
    ['EL1', 'MESSAGE_REFUSED', { type: 'toString' }],
    ['EL1', 'INPUT_INVALID', 'crew.pause'],
    ['EL1', 'INPUT_INVALID', null],
    ['EL1', 'INPUT_INVALID', { key: 'k' }],
    ['EL1', 'INPUT_INVALID', { type: 'crew.task', tokens: -1, messages: 1, key: 'k', data: true }],
    ['EL2', 'INPUT_INVALID', { type: 'crew.task', tokens: 1, messages: 2, key: 'k', data: false }],
    ['EL2', 'INPUT_INVALID', { type: 'crew.task', tokens: 1, messages: 2, key: 'k', data: true }],
    ['EL2', 'INPUT_INVALID', { type: 'crew.steer', tokens: 1, key: 'k' }],
  ])('%s dead letters: what it may not become is refused with %s, and it stays: %o', async (_, code, message) => {
    const stage = await died('go')
    const { sequence } = await stage.runtime.show('agent')
    await expect(stage.runtime.deadLetters.replay('agent', '2-0', { message })).rejects.toMatchObject({ code })
    expect(await all(stage.runtime.deadLetters.list('agent'))).toHaveLength(1)
    expect((await stage.runtime.show('agent')).sequence).toBe(sequence)
    await stage.runtime.close()
  })

  test('EL1 dead letters: of an outcome no other message is made, and a name is one', async () => {
    const stage = await died('go')
    const { letters } = (await stage.worker.shard('agent')).state
    const [known] = letters.values()
    const message = { type: 'crew.pause' }
    for (const by of ['', 'x'.repeat(257)])
      await expect(stage.runtime.deadLetters.replay('agent', '2-0', { message, by })).rejects.toMatchObject({
        code: 'INPUT_INVALID',
      })
    letters.set('2-0', { ...known!, from: 'port/model' })
    await expect(stage.runtime.deadLetters.replay('agent', '2-0', { message })).rejects.toMatchObject({
      code: 'LETTER_REFUSED',
    })
    await stage.runtime.close()
  })

  test('EL1 EL2 edited letter: of another crew, what that one may say, in its own name', () => {
    const task = {
      type: 'delegate.task',
      agent: 'a',
      depth: 1,
      chain: ['b'],
      messages: 1,
      sender: 'b/envoy/x',
      shard: 'c',
    }
    const letter = {
      id: '2-0' as const,
      from: 'b/envoy/x',
      to: 'crew/main',
      message: task,
      code: 'X',
      reason: '',
      at: 1,
    }
    const edited = editedMessage(letter, { ...task, agent: 'other', sender: 'forged/envoy/y', shard: 'x' }, 1)
    expect(edited).toMatchObject({ agent: 'other', sender: 'b/envoy/x', shard: 'c' })
    const codeOf = (message: unknown) => {
      try {
        return editedMessage(letter, message, 1).type
      } catch (error) {
        return (error as { code: string }).code
      }
    }
    expect(codeOf({ type: 'crew.pause' })).toBe('MESSAGE_REFUSED')
    expect(codeOf({ type: 'delegate.answered', code: null, reason: '' })).toBe('MESSAGE_REFUSED')
    expect(codeOf({ ...task, messages: 2 })).toBe('INPUT_INVALID')
    expect(codeOf({ type: 'delegate.revoke' })).toBe('delegate.revoke')
  })

  test('DL1 dead letters: the oldest go when there are too many or too large ones, and their number is told', () => {
    const letter = (index: number, text = '') =>
      ({
        id: `${index}-0`,
        from: 'a/b',
        to: 'c/d',
        message: { type: 't', text },
        code: 'X',
        reason: '',
        at: 1,
      }) as const
    const many = new Map(Array.from({ length: maxLetters + 3 }, (_, index) => [`${index}-0`, letter(index)]))
    expect([trimLetters(many), many.size, many.has('2-0'), many.has('3-0')]).toEqual([3, maxLetters, false, true])
    const large = new Map([0, 1, 2].map((index) => [`${index}-0`, letter(index, 'x'.repeat(maxLetterBytes / 2 - 99))]))
    expect([trimLetters(large), [...large.keys()]]).toEqual([1, ['1-0', '2-0']])
    const huge = new Map([['0-0', letter(0, 'x'.repeat(maxLetterBytes))]])
    expect([trimLetters(huge), huge.size]).toEqual([1, 0])
  })

  test('DL1 commit: a full table lets the oldest go with an event; it is part of state and digest', () => {
    const desk = new Desk()
    desk.take(defined())
    const lost = { ...command({ type: 'crew.pause' }), to: 'agent/nobody' }
    for (let index = 0; index < maxLetters; index += 1) desk.take(lost)
    expect(events(desk.commits.at(-1)!, 'letters.dropped')).toEqual([])
    const commit = desk.take(lost)
    expect(events(commit, 'letters.dropped')).toEqual([{ type: 'letters.dropped', count: 1, reason: 'no room' }])
    expect(commit.decisions.some((line) => line.startsWith('dead '))).toBe(true)
    const { hash } = desk
    expect(desk.restore().hash).toBe(hash)
    expect(desk.state.letters.size).toBe(maxLetters)
  })

  test('DL2 commit: a dead letter that its actor ignores is one again, and fails nobody', () => {
    const desk = new Desk()
    desk.all(defined(), task(), { ...command({ type: 'odd.message' }), to: 'agent/nobody' })
    const [letter] = desk.state.letters.values()
    desk.state.letters.set(letter!.id, { ...letter!, to: 'crew/main' })
    const commit = desk.take({ ...command({ type: 'letter.replayed', letter: letter!.id }), to: 'shard/self' })
    expect(events(commit, 'message.dead')).toMatchObject([{ to: 'crew/main', code: 'OUTCOME_IGNORED' }])
    expect(events(commit, 'actor.failed')).toEqual([])
    expect([...desk.state.letters.keys()]).toEqual(['4-0'])
  })
})
