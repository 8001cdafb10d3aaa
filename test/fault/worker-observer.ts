/**
 * The outside observer of workers under faults: follows the event stream from its beginning over a link of its own, and
 * knows of each crew only what was told there.
 */
import type { NatsLink } from '../../transport/nats-connection.js'
import { followEvents } from '../../transport/nats-follower.js'
import type { Subjects } from '../../transport/subjects.js'

/** A takeover as it was seen. */
export interface SeenTaking {
  /** `<worker>.<epoch>`. */
  readonly owner: string
  readonly seenAt: number
}

/** What was seen of one crew. */
export interface SeenCrew {
  readonly ids: string[]
  readonly takings: SeenTaking[]
  /** Who has it; empty when it was left, or never taken. */
  owner: string
  /** Runs that began and did not end. */
  readonly open: Set<string>
  /** A run ended, and none is open. */
  finished: boolean
  /** Letters between crews that it sent, and that it took. */
  sent: number
  taken: number
}

const unseen = (): SeenCrew => ({
  ids: [],
  takings: [],
  owner: '',
  open: new Set(),
  finished: false,
  sent: 0,
  taken: 0,
})

/** Follows until `stop`. */
export class WorkerObserver {
  readonly crews = new Map<string, SeenCrew>()
  readonly #aborting = new AbortController()
  readonly #following: Promise<void>
  #failure: unknown = null

  constructor(link: NatsLink, subjects: Subjects) {
    this.#following = this.#follow(link, subjects).catch((error: unknown) => void (this.#failure = error))
  }

  async #follow(link: NatsLink, subjects: Subjects): Promise<void> {
    for await (const { event } of followEvents({ link, subjects, since: 'all', signal: this.#aborting.signal })) {
      const shard = event.source.split('/')[2]!
      const crew = this.crews.get(shard) ?? unseen()
      this.crews.set(shard, crew)
      crew.ids.push(event.id)
      if (event.type === 'troupe.shard.left') crew.owner = ''
      if (event.type === 'troupe.run.queued') crew.open.add(String(event.data['run']))
      if (event.type === 'troupe.run.finished') crew.open.delete(String(event.data['run']))
      if (event.type === 'troupe.mail.sent') crew.sent += 1
      if (event.type === 'troupe.mail.taken') crew.taken += 1
      if (/^troupe\.run\.(queued|finished)$/.test(event.type)) crew.finished = crew.open.size === 0
      if (event.type !== 'troupe.shard.taken') continue
      crew.owner = String(event.data['owner'])
      crew.takings.push({ owner: crew.owner, seenAt: Date.now() })
    }
  }

  /** Crews that a worker has and that are not done. */
  unfinishedOf(worker: string): string[] {
    const found = [...this.crews].filter(([, { owner, finished }]) => !finished && owner.split('.')[0] === worker)
    return found.map(([shard]) => shard)
  }

  /** Resolves when `holds`, or after so long. Says which. */
  async until(holds: () => boolean, timeoutMs: number): Promise<boolean> {
    for (const end = performance.now() + timeoutMs; !holds(); ) {
      if (this.#failure !== null) throw new Error('the observer failed', { cause: this.#failure })
      if (performance.now() > end) return false
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
    return true
  }

  async stop(): Promise<void> {
    this.#aborting.abort()
    await this.#following
  }
}
