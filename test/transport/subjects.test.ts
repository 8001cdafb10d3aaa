import fc from 'fast-check'
import { expect, test } from 'vitest'
import { SeededRandom } from '../simulation/seeded-random.js'
import { isMatch, partitionCount, partitionOf, Subjects } from '../../transport/subjects.js'

const subjects = new Subjects('shop')
const refused = expect.objectContaining({ code: 'ID_INVALID' })

test('subjects: they are the ones of the design', () => {
  expect(subjects.journal('q3-report')).toBe(`troupe.shop.journal.${partitionOf('q3-report')}.q3-report`)
  expect(subjects.journals()).toBe('troupe.shop.journal.>')
  expect(subjects.journals(7)).toBe('troupe.shop.journal.7.*')
  expect(subjects.shardOf(subjects.journal('q3-report'))).toBe('q3-report')
  expect(subjects.content('a', 'blob', 'f00')).toBe('troupe.shop.content.a.blob.f00.0')
  expect(subjects.contents('a', 'blob')).toBe('troupe.shop.content.a.blob.>')
  expect(subjects.pieces('a', 'blob')).toBe('troupe.shop.content.a.blob.*.0')
  expect(subjects.refusal('a', 'm1-x')).toBe('troupe.shop.dead.a.m1-x')
  expect(subjects.refusals('a')).toBe('troupe.shop.dead.a.*')
  expect(subjects.letterOf(subjects.refusal('a', 'm1-x'))).toBe('m1-x')
  expect(subjects.stream('journal')).toBe('troupe_shop_journal')
})

test('SU1 subjects: what is no token is refused, whatever it is and wherever it stands', () => {
  const bad = ['', 'a.b', '*', '>', 'a b', 'a\r\nPUB x 0\r\n', '\0', 'ä', 'x'.repeat(65)]
  for (const name of bad) {
    expect(() => new Subjects(name)).toThrow(refused)
    expect(() => subjects.journal(name)).toThrow(refused)
    expect(() => subjects.content(name, 'blob', 'f')).toThrow(refused)
    expect(() => subjects.content('a', 'blob', name)).toThrow(refused)
    expect(() => subjects.contents('a', name)).toThrow(refused)
  }
  fc.assert(
    fc.property(fc.string({ unit: 'binary', maxLength: 70 }), (name) => {
      let subject: string
      try {
        subject = subjects.journal(name)
      } catch (error) {
        expect(error).toEqual(refused)
        return
      }
      expect(subject).toMatch(/^troupe\.shop\.journal\.\d+\.[A-Za-z0-9_-]{1,64}$/)
    }),
  )
})

test('SU3 subjects: a foreign name is one token, and no two names meet', () => {
  expect(subjects.mail('q3', 'agent/writer-r2')).toBe(`troupe.shop.mail.${partitionOf('q3')}.q3.agent.writer-r2`)
  expect(subjects.event('q3', 'tool/a.b>*', 'run.finished')).toBe('troupe.shop.event.q3.tool.a_2eb_3e_2a.run.finished')
  const outcome = subjects.mail('q3', 'outcome/gpu_1').replace(/mail\.\d+\.q3/, 'mail.*.*')
  expect(subjects.outcomes('gpu_1')).toBe(outcome)
  expect([subjects.tool('look'), subjects.start('t')]).toEqual(['troupe.shop.tool.look', 'troupe.shop.start.t'])
  expect(subjects.workerOfProgress(subjects.progress('w', 't'))).toBe('t')
  expect(() => subjects.tool('a.b')).toThrow(refused)
  expect(subjects.shardOfMail(subjects.mail('q3', 'agent/x'))).toBe('q3')
  expect(subjects.partsOfDoor(subjects.door('me', 'q3'))).toEqual(['me', 'q3'])
  expect(() => subjects.mail('q3', 'a.b/x')).toThrow(refused)
  const tokenOf = (name: string) => subjects.event('s', `k/${name}`, 't').split('.').slice(5, -1)
  const name = fc.string({ unit: 'binary', maxLength: 200 })
  fc.assert(
    fc.property(name, name, (one, other) => {
      const [token = '', ...rest] = tokenOf(one)
      expect(rest).toEqual([])
      expect(token).toMatch(/^[A-Za-z0-9_-]{1,128}$/)
      // A lone half of a surrogate pair is no text: both are the same replacement.
      const isText = (text: string) => Buffer.from(text, 'utf8').toString('utf8') === text
      if (isText(one) && isText(other)) expect(token === tokenOf(other)[0]).toBe(one === other)
    }),
  )
})

test('SU2 subjects: a shard is in one partition, and the partitions are of one size', () => {
  const counts = new Map<number, number>()
  for (let index = 0; index < 64_000; index++) {
    const partition = partitionOf(`crew-${index}`)
    expect(partition).toBe(partitionOf(`crew-${index}`))
    counts.set(partition, (counts.get(partition) ?? 0) + 1)
  }
  expect(counts.size).toBe(partitionCount)
  expect(Math.max(...counts.values())).toBeLessThan(1_200)
  expect([...counts.keys()].every((partition) => partition >= 0 && partition < partitionCount)).toBe(true)
})

test('SU1 subjects: what follows events is a filter below them, or refused', () => {
  expect(subjects.followed('event')).toBe('troupe.shop.event.>')
  expect(subjects.followed('event', 'q3-report')).toBe('troupe.shop.event.q3-report.>')
  expect(subjects.followed('live', '*.agent')).toBe('troupe.shop.live.*.agent.>')
  expect(subjects.followed('event', '*.agent.>')).toBe('troupe.shop.event.*.agent.>')
  expect(subjects.followed('event', 'a.agent.x.run.finished')).toBe('troupe.shop.event.a.agent.x.run.finished')
  for (const bad of ['', '.', 'a.', '>.a', 'a.>.b', 'a b', 'a*', 'a\r\nPUB x 0', 'ä', 'x'.repeat(129)])
    expect(() => subjects.followed('event', bad), bad).toThrow(refused)
})

test('SU1 subjects: a filter finds the messages that may hold what it names, and then the events in them', () => {
  const filter = (text: string) => subjects.followed('event', text)
  expect(subjects.eventsOf(filter('>'))).toBe('troupe.shop.event.>')
  expect(subjects.eventsOf(filter('*.agent'))).toBe('troupe.shop.event.*')
  expect(subjects.eventsOf(filter('q3'))).toBe(subjects.events('q3'))
  const name = subjects.event('q3', 'agent/writer', 'run.finished')
  const fits = (text: string) => isMatch(filter(text), name)
  expect(['>', 'q3', '*.agent', '*.*.*.run.finished', 'q3.agent.writer.>'].every(fits)).toBe(true)
  expect(['q', '*.crew', '*.*.*.run', 'q3.agent.writer.run.finished.>', '*.*.*.*'].some(fits)).toBe(false)
})

test('SU3 subjects: an event of any type has a subject of bounded length, and two types do not meet', () => {
  const event = (type: string) => subjects.event('a', 'agent/x', type)
  expect(event('run.finished')).toBe('troupe.shop.event.a.agent.x.run.finished')
  expect(subjects.live('a', 'agent/x', 'model.delta')).toBe('troupe.shop.live.a.agent.x.model.delta')
  const many = 'a.'.repeat(100_000)
  expect(event(many).length).toBeLessThan(300)
  expect(event(`${many}b`)).not.toBe(event(many))
  expect(event('x'.repeat(1_000).concat('.y').repeat(4)).length).toBeLessThan(1_500)
  expect(event('a.>.*. ')).toBe('troupe.shop.event.a.agent.x.a._3e._2a._20')
})

test('SU1 SU3 subjects: a hostile id is one token everywhere, or refused everywhere (100,000 at full count)', {
  timeout: 300_000,
}, () => {
  const parts = [
    '.',
    '*',
    '>',
    ' ',
    '\t',
    '\r\n',
    '\0',
    '$SYS',
    '_INBOX',
    'PUB x 0',
    '/',
    '-',
    '_',
    'a',
    'Z9',
    'ä',
    '\ud800',
    '😀',
  ]
  const random = new SeededRandom(7)
  const idOf = (): string => Array.from({ length: random.int(0, 6) }, () => random.pick(parts)).join('')
  const builders: readonly ((id: string) => string)[] = [
    (id) => subjects.journal(id),
    (id) => subjects.mail(id, 'agent/x'),
    (id) => subjects.mail('q3', `${id}/x`),
    (id) => subjects.mailsOf(id),
    (id) => subjects.door(id, 'q3'),
    (id) => subjects.door('me', id),
    (id) => subjects.doorsOf(id),
    (id) => subjects.questions(id),
    (id) => subjects.event(id, 'agent/x', 't'),
    (id) => subjects.live(id, 'agent/x', 't'),
    (id) => subjects.events(id),
    (id) => subjects.worker(id),
    (id) => subjects.entries('pins', id),
    (id) => subjects.refusal('q3', id),
    (id) => subjects.toolReports(id)[0]!,
    (id) => subjects.content(id, 'blob', 'k'),
    (id) => subjects.contents(id, 'blob', 'k'),
  ]
  const lengths = builders.map((build) => build('x').split('.').length)
  let taken = 0
  const scale = Number(process.env['TROUPE_SCALE'] ?? '0.1')
  for (let count = 0; count < 100_000 * scale; count++) {
    const id = count === 0 ? 'x'.repeat(5_000) : idOf()
    const isToken = /^[A-Za-z0-9_-]{1,64}$/.test(id)
    if (isToken) taken++
    for (const [index, build] of builders.entries()) {
      // A kind is what stands before the first slash.
      if (index === 2 && id.includes('/')) continue
      let subject: string | null = null
      try {
        subject = build(id)
      } catch (error) {
        expect(error).toEqual(refused)
      }
      if (
        subject === null ? isToken : !isToken || subject.split('.').length !== lengths[index] || /[\s\0]/.test(subject)
      )
        expect.fail(`builder ${index} makes ${JSON.stringify(subject)} of ${JSON.stringify(id)}`)
    }
    // Names of models and files are taken, whatever they are.
    const [event, live] = [subjects.event('q3', `tool/${id}`, 'run.finished'), subjects.live('q3', `tool/${id}`, id)]
    for (const subject of [event, live])
      if (!/^troupe\.shop\.(?:event|live)\.q3\.tool(?:\.[A-Za-z0-9_-]{1,128}){2,9}$/.test(subject))
        expect.fail(`${JSON.stringify(id)} gives ${subject}`)
  }
  expect(taken).toBeGreaterThan(0)
})
