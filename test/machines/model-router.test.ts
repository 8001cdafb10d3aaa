import { describe, expect, test } from 'vitest'
import { type FailureKind, type RouteAsk, routerMachine } from '../../machines/index.js'
import { cover, drive, type Driver, type Message } from '../support/machine-driver.js'

const covered = cover(routerMachine)
const start = (): Driver => drive(covered.machine, { self: 'router/main' })

const [one, two, three] = ['a:one', 'b:two', 'c:three'] as const
interface More extends Partial<Omit<RouteAsk, 'failure'>> {
  readonly delayMs?: number
  readonly retryAfterMs?: number | null
}

/** An agent asks before a round. */
const ask = (deployments: readonly string[], more: More = {}): Message => ({
  ...{ type: 'route.ask', replyTo: 'agent/a', round: 'r1 0', deployments, attempts: 3, failure: null },
  ...more,
})
/** It asks because a deployment failed. */
const failed = (deployment: string, kind: FailureKind, deployments: readonly string[], more: More = {}): Message => {
  const { delayMs = 40, retryAfterMs = null, ...rest } = more
  return { ...ask(deployments, rest), failure: { deployment, kind, delayMs, retryAfterMs } }
}
/** Empty for none. */
const deploymentIn = ({ deployment }: Message): string => (typeof deployment === 'string' ? deployment : '')
/** What an agent was told by the last step: which deployment, at once or in how many milliseconds; or that it ends. */
function told(router: Driver, agent = 'agent/a'): string {
  const at = (message: Message): string => deploymentIn(message) || message.type
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

  test('router: given one deployment, when it asks for time, that is the wait, and nobody else is kept from it', () => {
    const router = start().send(failed(one, 'rate_limited', [one], { delayMs: 30_000, retryAfterMs: 30_000 }))
    expect(told(router)).toBe('a:one in 30000')
    expect(router.timers.size).toBe(0)
    expect(told(router.send(ask([one], { replyTo: 'agent/b' })), 'agent/b')).toBe('a:one')
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

  test('router: agents do not count for each other', () => {
    const router = start().send(failed(one, 'server', [one]), failed(one, 'server', [one]))
    expect(told(router.send(failed(one, 'server', [one], { replyTo: 'agent/b' })), 'agent/b')).toBe('a:one in 40')
  })
})

describe('router: fallback', () => {
  test('router: given several, a round begins with the first one', () => {
    expect(told(start().send(ask([one, two])))).toBe('a:one')
  })

  test('router: when one fails for a while the next is tried at once; when all have, they are again, after a wait', () => {
    const all = [one, two]
    const router = start()
    expect(told(router.send(failed(one, 'overloaded', all)))).toBe('b:two')
    expect(told(router.send(failed(two, 'server', all)))).toBe('a:one in 40')
    expect(told(router.send(failed(one, 'server', all)))).toBe('b:two in 40')
    expect(told(router.send(failed(two, 'server', all)))).toBe('route.ended')
  })

  test.each(['auth', 'quota', 'not_found', 'config'] as const)(
    'router: given two dead ones (%s) and one that works, the third is tried, though a call has two tries',
    (kind) => {
      const all = [one, two, three]
      const router = start()
      expect(told(router.send(failed(one, kind, all, { attempts: 2 })))).toBe('b:two')
      expect(told(router.send(failed(two, kind, all, { attempts: 2 })))).toBe('c:three')
      expect(told(router.send(failed(three, kind, all, { attempts: 2 })))).toBe('route.ended')
    },
  )

  test.each(['context_window', 'content_policy'] as const)(
    'router: after %s another one may do better; the one that failed is not tried again in this round, and is in the next',
    (kind) => {
      const all = [one, two]
      const router = start().send(failed(one, kind, all))
      expect(told(router)).toBe('b:two')
      expect(told(router.send(failed(two, 'server', all)))).toBe('b:two in 40')
      expect(told(router.send(ask(all, { round: 'r1 1' })))).toBe('a:one')
    },
  )

  test.each(['bad_request', 'cancelled'] as const)('router: after %s nobody could do better', (kind) => {
    expect(told(start().send(failed(one, kind, [one, two])))).toBe('route.ended')
  })

  test('router: a ring of fallbacks ends: each once, and the tries of one call beyond that', () => {
    const all = [one, two, three]
    const router = start()
    let calls = 0
    for (let at = one as string; at !== ''; calls++) {
      router.send(failed(at, 'server', all))
      at = [...router.to('agent/a'), ...router.later.map(([, message]) => message)].map(deploymentIn).join('')
    }
    expect(calls).toBe(5)
  })

  test('router: the outside is told which deployment failed, which is tried, and after how long', () => {
    const router = start().send(failed(one, 'server', [one, two]))
    expect(router.emitted).toEqual([
      { type: 'model.rerouted', address: 'agent/a', from: one, to: two, kind: 'server', waitMs: 0 },
    ])
    expect(start().send(ask([one, two])).emitted).toEqual([])
  })
})

describe('router: cooldown', () => {
  const all = [one, two]
  const limited = (more: More = {}) => failed(one, 'rate_limited', all, { retryAfterMs: 20_000, ...more })

  test('router: given another one, who asks for time is passed over by all agents until the time is over', () => {
    const router = start().send(limited())
    expect(told(router)).toBe('b:two')
    expect(router.emitted[0]).toEqual({ type: 'deployment.out', deployment: one, kind: 'rate_limited', ms: 20_000 })
    expect(told(router.send(ask(all, { replyTo: 'agent/b' })), 'agent/b')).toBe('b:two')
    expect(router.timers.get('back:a:one')?.delayMs).toBe(20_000)
    router.fire('back:a:one')
    expect(router.emitted).toEqual([{ type: 'deployment.back', deployment: one }])
    expect(told(router.send(ask(all, { round: 'r1 1' })))).toBe('a:one')
  })

  test('router: when all cool down agents wait for the first that is back', () => {
    const router = start().send(limited())
    expect(told(router.send(failed(two, 'rate_limited', all, { retryAfterMs: 5_000 })))).toBe('nothing')
    expect(told(router.send(ask(all, { replyTo: 'agent/b' })), 'agent/b')).toBe('nothing')
    router.fire('back:b:two')
    const asks = router.to('router/main')
    expect(asks).toHaveLength(2)
    expect(told(router.send(asks[0]!))).toBe('b:two')
    expect(told(router.send(asks[1]!), 'agent/b')).toBe('b:two')
  })

  test('router: an agent that asks anew while it waits is answered once', () => {
    const router = start().send(limited(), failed(two, 'rate_limited', all, { retryAfterMs: 5_000 }))
    router.send(ask(all, { round: 'r1 1' })).fire('back:b:two')
    expect(router.to('router/main')).toMatchObject([{ round: 'r1 1' }])
  })

  test('router: a wait of no time is none', () => {
    const router = start().send(limited({ retryAfterMs: 0 }))
    expect([told(router), router.timers.size]).toEqual(['b:two', 0])
  })

  test('router: who is at fault is out for a minute, and is tried all the same when nobody else is left', () => {
    const router = start().send(failed(one, 'auth', all))
    expect(router.timers.get('back:a:one')?.delayMs).toBe(60_000)
    expect(told(router.send(ask(all, { round: 'r1 1' })))).toBe('b:two')
    router.send(failed(two, 'auth', all, { round: 'r1 1' }))
    expect(told(router)).toBe('a:one')
    expect(told(router.send(ask(all, { round: 'r1 2' })))).toBe('a:one')
  })

  test('router: who has no try left for the others waits for one that it has not tried, or tries one that is at fault', () => {
    const once = { attempts: 1, replyTo: 'agent/b' }
    const cooling = start().send(limited(), failed(two, 'server', all, once))
    expect(told(cooling, 'agent/b')).toBe('nothing')
    expect(cooling.context['waiting']).toHaveLength(1)
    const atFault = start().send(failed(one, 'auth', all), failed(two, 'server', all, once))
    expect(told(atFault, 'agent/b')).toBe('a:one')
  })

  test('router: a second failure of one that is out begins its time anew', () => {
    const router = start().send(failed(one, 'auth', all), failed(one, 'quota', all, { replyTo: 'agent/b' }))
    expect([...router.timers.keys()]).toEqual(['back:a:one'])
    expect(router.context['out']).toEqual([{ deployment: one, cools: false }])
  })

  test('router: one that cools down in the middle of a round is not waited for while another may be tried', () => {
    const router = start().send(failed(two, 'server', all), limited())
    expect(told(router)).toBe('b:two in 40')
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
