import { expect, test } from 'vitest'
import { type Commit, decide } from '../../runtime/commit.js'
import type { Envelope } from '../../runtime/envelope.js'
import { messagesToCloudEvents } from '../../runtime/events.js'
import { answer, defined, Desk, outcome, replied, task, toolVerdict } from '../support/envelopes.js'

/** A desk that traces. */
class Tracing extends Desk {
  override take(draft: Omit<Envelope, 'at'>): Commit {
    const context = { scope: this.scope, machines: this.machines, trace: true }
    const commit = decide(this.state, { ...draft, at: this.now }, context)
    this.commits.push(commit)
    return commit
  }
}

function story(desk: Desk): readonly Commit[] {
  desk.all(defined(), task())
  desk.take(outcome(desk.effect(), replied({ calls: [toolVerdict(0), toolVerdict(1)] }), [answer('')]))
  for (const [id, { from }] of [...desk.state.effects])
    desk.take(outcome(id, { type: 'tool.succeeded', bytes: 3 }, ['one'], from))
  desk.take(outcome(desk.effect(), replied(), [answer('done')]))
  return desk.commits
}

test('trace: each message tells which one led to it, and its sender is who was given that one', () => {
  const commits = story(new Tracing())
  expect(commits).toHaveLength(6)
  for (const { messages, envelope } of commits) {
    for (const [index, { from, cause }] of messages.entries()) {
      if (cause === null) expect([envelope.from, 'shard/self', 'crew/main']).toContain(from)
      else expect([from, 'shard/actors'], `${index}`).toContain(messages[cause]!.to)
      expect(cause ?? -1).toBeLessThan(index)
    }
  }
  expect(commits.flatMap(({ messages }) => messages).map(({ to }) => to)).toEqual(
    expect.arrayContaining(['crew/main', 'port/model', 'port/tool', 'shard/actors']),
  )
})

test('trace: it changes no decision, and without it a commit tells nothing', () => {
  const [traced, plain] = [story(new Tracing()), story(new Desk())]
  expect(traced.map(({ digest }) => Buffer.from(digest).toString('hex'))).toEqual(
    plain.map(({ digest }) => Buffer.from(digest).toString('hex')),
  )
  expect(plain.flatMap(({ messages }) => messages)).toEqual([])
})

test('trace: outside, a message has its place, and what led to it by name', () => {
  const commits = story(new Tracing())
  const replies = commits[2]!
  const events = messagesToCloudEvents('s1', replies)
  const [first] = events
  expect(first!.to).toBe(replies.messages[0]!.to)
  expect(first!.event).toMatchObject({
    id: 's1-message-3-0',
    source: '/troupe/s1/port/model',
    type: 'troupe.message',
    data: { type: 'model.replied', sequence: 3, index: 0, cause: replies.envelope.cause },
  })
  const ids = new Set(events.map(({ event }) => event.id))
  expect(ids.size).toBe(events.length)
  for (const { event } of events.slice(1)) expect(ids).toContain(event.data['cause'])
})
