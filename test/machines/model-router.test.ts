import { describe, expect, test } from 'vitest'
import { type FailureKind, type RouteAsk, routerMachine, type Skipped } from '../../machines/index.js'
import { cover, drive, type Driver, type Message } from '../support/machine-driver.js'

const covered = cover(routerMachine)
const start = (): Driver => drive(covered.machine, { self: 'router/main' })

const [one, two, three] = ['a:one', 'b:two', 'c:three'] as const
interface More extends Partial<Omit<RouteAsk, 'failure'>> {
  readonly retryAfterMs?: number | null
}

/** Each deployment a group of its own, unless it is written otherwise. */
const ask = (deployments: readonly (string | string[])[], more: Partial<RouteAsk> = {}): Message => ({
  ...{ type: 'route.ask', replyTo: 'agent/a', round: 'r1 0', groups: deployments.map((each) => [each].flat()) },
  ...{ attempts: 3, failure: null, delayMs: 40, skipped: [] },
  ...more,
})
/** It asks because a deployment failed. */
const failed = (
  deployment: string,
  kind: FailureKind,
  deployments: readonly (string | string[])[],
  { retryAfterMs = null, ...rest }: More = {},
): Message => ask(deployments, { ...rest, failure: { deployment, kind, retryAfterMs } })
const kept = (deployment: string, reason: Skipped['reason'], waitMs = 900): Skipped => ({ deployment, reason, waitMs })

const deploymentsIn = ({ deployments }: Message): string => (Array.isArray(deployments) ? deployments.join(' ') : '')
/** What an agent was told by the last step: which deployments, at once or in how many milliseconds; or that it ends. */
function told(router: Driver, agent = 'agent/a'): string {
  const at = (message: Message): string => deploymentsIn(message) || message.type
  const later = router.later.filter(([to]) => to === agent).map(([, message, ms]) => `${at(message)} in ${ms}`)
  return [...router.to(agent).map(at), ...later].join(', ') || 'nothing'
}

describe('router: retry', () => {
  test('router: given one deployment, when it fails for a while, it is tried again after its wait, three times in all', () => {
    const router = start()
    expect(told(router.send(failed(one, 'server', [one])))).toBe('a:one in 40')
    expect(router.later[0]![1]).toMatchObject({ tries: 1 })
    expect(told(router.send(failed(one, 'timeout', [one], { delayMs: 90 })))).toBe('a:one in 90')
    expect(told(router.send(failed(one, 'network', [one])))).toBe('route.ended')
  })

  test('router: given one deployment, when it asks for more time than a retry waits, that is the wait', () => {
    expect(told(start().send(failed(one, 'rate_limited', [one], { retryAfterMs: 30_000 })))).toBe('a:one in 30000')
    expect(told(start().send(failed(one, 'rate_limited', [one], { retryAfterMs: 3 })))).toBe('a:one in 40')
    expect(told(start().send(failed(one, 'rate_limited', [one], { retryAfterMs: 0 })))).toBe('a:one in 40')
  })

  test('router: given one try a call, a failure is the end', () => {
    expect(told(start().send(failed(one, 'server', [one], { attempts: 1 })))).toBe('route.ended')
  })

  test('router: a round that is over counts no more', () => {
    const router = start().send(failed(one, 'server', [one]), failed(one, 'server', [one]))
    const later = { round: 'r1 1' }
    expect(told(router.send(failed(one, 'server', [one], later)))).toBe('a:one in 40')
    expect(told(router.send(failed(one, 'server', [one], later)))).toBe('a:one in 40')
    expect(told(router.send(failed(one, 'server', [one], later)))).toBe('route.ended')
  })

  test('router: agents have their tries apart', () => {
    const router = start().send(failed(one, 'server', [one]), failed(one, 'server', [one]))
    expect(told(router.send(failed(one, 'server', [one], { replyTo: 'agent/b' })), 'agent/b')).toBe('a:one in 40')
  })
})

describe('router: fallback', () => {
  test('router: when one fails for a while the next is tried at once; when all have, they are again, after a wait', () => {
    const all = [one, two]
    const router = start()
    expect(told(router.send(failed(one, 'overloaded', all)))).toBe('b:two')
    expect(told(router.send(failed(two, 'server', all)))).toBe('a:one b:two in 40')
    expect(told(router.send(failed(one, 'server', all)))).toBe('b:two a:one in 40')
    expect(told(router.send(failed(two, 'server', all)))).toBe('route.ended')
  })

  test('router: given one that asks for time and others that failed before, these are tried again first', () => {
    const all = [one, two]
    const router = start().send(failed(one, 'server', all))
    expect(told(router.send(failed(two, 'rate_limited', all, { retryAfterMs: 20_000 })))).toBe('a:one in 40')
  })

  test.each(['auth', 'quota', 'not_found', 'config'] as const)(
    'router: given two dead ones (%s) and one that works, the third is tried, though a call has two tries',
    (kind) => {
      const all = [one, two, three]
      const router = start()
      expect(told(router.send(failed(one, kind, all, { attempts: 2 })))).toBe('b:two c:three')
      expect(told(router.send(failed(two, kind, all, { attempts: 2 })))).toBe('c:three')
      expect(told(router.send(failed(three, kind, all, { attempts: 2 })))).toBe('route.ended')
    },
  )

  test.each(['context_window', 'content_policy'] as const)(
    'router: after %s another group may do better; the one that failed is not tried again in this round',
    (kind) => {
      const router = start()
      expect(told(router.send(failed(one, kind, [[one, two], three])))).toBe('c:three')
      expect(told(router.send(failed(three, 'server', [[one, two], three])))).toBe('c:three in 40')
    },
  )

  test('router: the rest of a group comes before the next one, and is tried though one of it is at fault', () => {
    const all = [[one, two], three]
    expect(told(start().send(failed(one, 'server', all)))).toBe('b:two c:three')
    expect(told(start().send(failed(two, 'auth', all)))).toBe('c:three a:one')
  })

  test.each(['bad_request', 'cancelled'] as const)('router: after %s nobody could do better', (kind) => {
    expect(told(start().send(failed(one, kind, [one, two])))).toBe('route.ended')
  })

  test('router: a ring of fallbacks ends: each once, and the tries of one call beyond that', () => {
    const all = [one, two, three]
    const router = start()
    let calls = 0
    for (let at = one as string; at !== ''; calls++) {
      router.send(failed(at, 'server', all))
      const next = [...router.to('agent/a'), ...router.later.map(([, message]) => message)].map(deploymentsIn).join('')
      at = next.split(' ')[0]!
    }
    expect(calls).toBe(5)
  })

  test('router: the outside is told which deployment failed, which is tried, and after how long', () => {
    expect(start().send(failed(one, 'server', [one, two])).emitted).toEqual([
      { type: 'model.rerouted', address: 'agent/a', from: one, to: two, kind: 'server', waitMs: 0 },
    ])
  })
})

describe('router: cooldown', () => {
  const all = [one, two]

  test('router: when no deployment takes a call, the first that is back is waited for, and none was tried', () => {
    const router = start().send(ask(all, { skipped: [kept(one, 'open', 9_000), kept(two, 'asked', 5_000)] }))
    expect(told(router)).toBe('a:one b:two in 5000')
    expect(router.later[0]![1]).toMatchObject({ tries: 0 })
    expect(router.emitted).toEqual([{ type: 'model.held', address: 'agent/a', waitMs: 5_000 }])
  })

  test('router: one that is kept back is not waited for while another may be tried, and is asked again with it', () => {
    const skipped = [kept(one, 'asked', 20_000)]
    expect(told(start().send(failed(two, 'server', all, { skipped })))).toBe('a:one b:two in 40')
    expect(told(start().send(failed(two, 'server', [one, two, three], { skipped })))).toBe('c:three a:one')
  })

  test('router: who has no try left for the others waits for one that it has not tried', () => {
    const skipped = [kept(one, 'open')]
    expect(told(start().send(failed(two, 'server', all, { skipped, attempts: 1 })))).toBe('a:one in 900')
  })

  test('router: one that only its own fault keeps back is not waited for, but tried when nobody else is left', () => {
    const skipped = [kept(one, 'fault', 60_000)]
    expect(told(start().send(failed(two, 'server', all, { skipped })))).toBe('a:one b:two in 40')
    expect(told(start().send(failed(two, 'auth', all, { skipped })))).toBe('a:one')
  })

  test('router: breakers are waited for ten minutes in a round, and no failure is counted meanwhile', () => {
    const router = start()
    const held = ask([one], { skipped: [kept(one, 'open', 200_000)] })
    for (let wait = 0; wait < 3; wait++) expect(told(router.send(held))).toBe('a:one in 200000')
    expect(told(router.send(held))).toBe('route.ended')
    expect(told(router.send({ ...held, round: 'r1 1' }))).toBe('a:one in 200000')
    expect(told(router.send(failed(one, 'server', [one], { round: 'r1 1' })))).toBe('a:one in 40')
  })
})

test('router: what it remembers is bounded', () => {
  const router = start()
  for (let agent = 0; agent < 100; agent++) router.send(failed(one, 'server', [one], { replyTo: `agent/a${agent}` }))
  expect(router.context['rounds']).toHaveLength(64)
})

test('router: every transition was taken', () => {
  expect(covered.missing()).toEqual([])
})
