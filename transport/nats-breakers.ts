/**
 * Circuit breakers of a namespace: every worker hears when one opens or closes, and one of them probes.
 *
 * Owns: the bucket of breakers, compare-and-set of an entry, telling of changes.
 * Does not own: what they mean (`runtime/breakers.ts`).
 *
 * - NB1 Of those who know the same entry one changes it; whoever knew another one is told that it was overtaken.
 * - NB2 Changes by others are told of as they come. What a lost link swallows is seen with one's own next change.
 * - NB3 What cannot be read counts as nothing, and may be overwritten by whoever knows its revision.
 * - NB4 A list ends, also when its link is lost in the midst of it: then it is an error.
 */
import { type KV, type KvEntry, Kvm, KvWatchInclude } from '@nats-io/kv'
import { z } from 'zod'
import { type StoredBreaker, storedBreaker } from '../machines/index.js'
import type { BreakerEntry, BreakerStore } from '../runtime/breakers.js'
import { isOverwritten, storeError } from './jetstream-content.js'
import type { NatsLink } from './nats-connection.js'
import type { Subjects } from './subjects.js'

/** Options of `NatsBreakers.open`. */
export interface NatsBreakersOptions {
  readonly link: NatsLink
  readonly subjects: Subjects
  /** Copies in a cluster. @default 1 */
  readonly replicas?: number
}

/** The target is in it, too: its key is encoded. */
const stored = storedBreaker.extend({ target: z.string() })
/** Breakers that are told of at once. */
const maxListed = 1_000
const closed: StoredBreaker = { state: 'closed', until: 0, probe: null, cooling: null }

/** The breakers of a namespace. */
export class NatsBreakers implements BreakerStore {
  readonly #link: NatsLink
  readonly #subjects: Subjects
  readonly #bucket: KV
  readonly #watchers = new Set<Parameters<BreakerStore['watch']>[0]>()
  #stopWatch: () => void = () => undefined

  private constructor(link: NatsLink, subjects: Subjects, bucket: KV) {
    this.#link = link
    this.#subjects = subjects
    this.#bucket = bucket
  }

  /** Hears of changes from when it resolves. Throws what the server refuses. */
  static async open({ link, subjects, replicas = 1 }: NatsBreakersOptions): Promise<NatsBreakers> {
    try {
      const bucket = await new Kvm(link.connection).create(subjects.stream('breakers'), { history: 1, replicas })
      const breakers = new NatsBreakers(link, subjects, bucket)
      await breakers.#listen()
      return breakers
    } catch (error) {
      throw storeError(error)
    }
  }

  async load(target: string): Promise<BreakerEntry | null> {
    try {
      const entry = await this.#bucket.get(this.#subjects.breaker(target))
      return entry === null ? null : { breaker: read(entry)?.breaker ?? closed, revision: entry.revision }
    } catch (error) {
      throw storeError(error)
    }
  }

  async save(target: string, breaker: StoredBreaker, revision: number): Promise<number | null> {
    const key = this.#subjects.breaker(target)
    const text = JSON.stringify({ target, ...breaker })
    try {
      return await (revision === 0 ? this.#bucket.create(key, text) : this.#bucket.update(key, text, revision))
    } catch (error) {
      if (isOverwritten(error)) return null
      throw storeError(error)
    }
  }

  async all(): Promise<ReadonlyMap<string, BreakerEntry>> {
    try {
      const keys = (await this.#keys()).slice(0, maxListed)
      const entries = await Promise.all(keys.map((key) => this.#bucket.get(key)))
      return new Map(entries.flatMap(entryOf))
    } catch (error) {
      throw storeError(error)
    }
  }

  /** In one answer: the client's own list of keys waits for a last one, for good when the link is lost meanwhile. */
  async #keys(): Promise<readonly string[]> {
    const stream = `KV_${this.#subjects.stream('breakers')}`
    const { state } = await this.#link.manager.streams.info(stream, { subjects_filter: this.#subjects.breakers() })
    const prefix = `$KV.${this.#subjects.stream('breakers')}.`
    return Object.keys(state.subjects ?? {}).map((subject) => subject.slice(prefix.length))
  }

  watch(told: (target: string, entry: BreakerEntry) => void): () => void {
    this.#watchers.add(told)
    return () => void this.#watchers.delete(told)
  }

  /** Nothing is told any more. */
  close(): void {
    this.#watchers.clear()
    this.#stopWatch()
  }

  async #listen(): Promise<void> {
    const changes = await this.#bucket.watch({ include: KvWatchInclude.UpdatesOnly })
    this.#stopWatch = () => changes.stop()
    void (async () => {
      for await (const entry of changes) {
        const found = read(entry)
        if (found === null) continue
        const { target, breaker } = found
        for (const told of [...this.#watchers]) told(target, { breaker, revision: entry.revision })
      }
    })().catch(() => undefined)
  }
}

function entryOf(entry: KvEntry | null): [string, BreakerEntry][] {
  const found = entry === null ? null : read(entry)
  return found === null ? [] : [[found.target, { breaker: found.breaker, revision: entry!.revision }]]
}

/** What an entry says; null when that cannot be read. */
function read(entry: KvEntry): { readonly target: string; readonly breaker: StoredBreaker } | null {
  try {
    const { target, ...breaker } = stored.parse(entry.json())
    return { target, breaker }
  } catch {
    return null
  }
}
