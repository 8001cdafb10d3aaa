/**
 * Requests over a link that may be lost.
 *
 * The library leaves a request alone whose link is gone until its time is over, and drops one that is made while there is
 * none: either way five seconds pass for nothing.
 *
 * Owns: when a request fails or waits because of its link.
 * Does not own: what a lost answer means to whoever asked.
 *
 * - LQ1 A request whose link is lost fails at once: whether it was done is not known.
 * - LQ2 A request that is made while there is no link is sent over the next one, if that comes within its time.
 */
import type { NatsConnection } from '@nats-io/transport-node'

const defaultTimeoutMs = 1_000

/** Makes the requests of a connection heed its link, from now on. */
export function heedLink(connection: NatsConnection): void {
  const request = connection.request.bind(connection)
  /** Tells requests that are under way. */
  const pending = new Set<(error: Error) => void>()
  /** Lets those go on that wait for a link; null while there is one. */
  let held: (() => void)[] | null = null
  const release = (): void => {
    for (const go of held ?? []) go()
    held = null
  }
  const lose = (): void => {
    for (const reject of pending) reject(lost())
    pending.clear()
  }
  void (async () => {
    for await (const { type } of connection.status()) {
      if (type === 'disconnect') held ??= []
      if (type === 'disconnect' || type === 'close') lose()
      if (type === 'reconnect' || type === 'close') release()
    }
    release()
  })()
  connection.request = async (subject, payload, options) => {
    const { timeout = defaultTimeoutMs } = options ?? {}
    const asked = performance.now()
    if (held !== null) await linkWithin(held, timeout)
    const left = Math.max(1, timeout - (performance.now() - asked))
    return new Promise((resolve, reject) => {
      pending.add(reject)
      request(subject, payload, { ...options, timeout: left })
        .then(resolve, reject)
        .finally(() => pending.delete(reject))
    })
  }
}

/** Resolves when there is a link. Rejects when there is none in time. */
async function linkWithin(held: (() => void)[], timeoutMs: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  try {
    await new Promise<void>((resolve, reject) => {
      held.push(resolve)
      timer = setTimeout(() => reject(lost()), timeoutMs)
    })
  } finally {
    clearTimeout(timer)
  }
}

/** As the library's own: whoever asked says what it means. */
function lost(): Error {
  return new Error('the link to NATS is lost')
}
