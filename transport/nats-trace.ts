/**
 * Traced messages over NATS: everything that actors tell each other, for whoever looks at the moment.
 *
 * Owns: passing messages by, how much may be on its way.
 * Does not own: which messages there are (`runtime/commit.ts`), following them (`nats-follower.ts`).
 *
 * - NT1 It takes durable commits only, never waits and never throws; what passes by while the link is down is lost.
 * - NT2 At most 4 MiB are on their way: what does not fit is lost, and the next message says in `lost` how many were.
 * - NT3 Secrets that are known by their shape are taken out, and a message above 64 KiB says `{ truncated: true }`.
 */
import type { Commit } from '../runtime/commit.js'
import { messagesToCloudEvents, type TroupeEvent } from '../runtime/events.js'
import { redact } from '../runtime/redact.js'
import type { NatsLink } from './nats-connection.js'
import type { Subjects } from './subjects.js'

/** Characters of JSON. */
const maxPending = 4 * 1024 * 1024
const maxMessage = 64 * 1024

/** The traced messages of one worker. */
export class NatsTrace {
  readonly #link: NatsLink
  readonly #subjects: Subjects
  #pending = 0
  #lost = 0
  #flushing = false

  constructor(link: NatsLink, subjects: Subjects) {
    this.#link = link
    this.#subjects = subjects
  }

  /** Lets the messages of a durable commit pass by. */
  publish(shard: string, commit: Commit): void {
    for (const { to, event } of messagesToCloudEvents(shard, commit)) this.#send(shard, to, event)
    if (this.#pending > 0 && !this.#flushing) void this.#flush()
  }

  #send(shard: string, to: string, event: TroupeEvent): void {
    try {
      const text = textOf(this.#lost === 0 ? event : { ...event, data: { ...event.data, lost: this.#lost } })
      if (this.#pending + text.length > maxPending) throw new Error('too much is on its way')
      this.#link.connection.publish(this.#subjects.message(shard, to), text)
      this.#pending += text.length
      this.#lost = 0
    } catch {
      // A closed link, a name that is no subject, or too much: nobody is owed it.
      this.#lost += 1
    }
  }

  /** The server has what was sent before, or the link is gone with it. */
  async #flush(): Promise<void> {
    this.#flushing = true
    while (this.#pending > 0) {
      const sent = this.#pending
      await this.#link.connection.flush().catch(() => undefined)
      this.#pending -= sent
      if (this.#link.connection.isClosed()) break
    }
    this.#flushing = false
  }
}

function textOf(event: TroupeEvent): string {
  const text = JSON.stringify(event, (_, value: unknown) => (typeof value === 'string' ? redact(value) : value))
  if (text.length <= maxMessage) return text
  return JSON.stringify({ ...event, data: { ...event.data, body: { truncated: true } } })
}
