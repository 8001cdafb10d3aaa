/**
 * The workers that live: who holds a lease, and what it has to offer.
 *
 * Owns: the list and telling when it changes.
 * Does not own: leases (`nats-lease.ts`), who owns what by them (`partitions.ts`).
 *
 * - NM1 Who takes a lease or gives it back is seen at once; whose lease runs out is seen within a third of its time.
 * - NM2 While the server cannot be asked, the list stays as it was: nobody is declared dead by somebody who is cut off.
 */
import { type KV, type KvEntry, Kvm } from '@nats-io/kv'
import { z } from 'zod'
import { storeError } from './jetstream-content.js'
import type { NatsLink } from './nats-connection.js'
import type { Subjects } from './subjects.js'

/** What a worker tells of itself. */
export interface Announcement {
  /** Names of the crews whose code it has, with the versions of their code. */
  readonly crews: Readonly<Record<string, string>>
}

/** A worker that lives. */
export interface Member extends Announcement {
  readonly worker: string
  /** Number of the last renewal of its lease that was seen here. */
  readonly revision: number
}

const announcement = z.object({ crews: z.record(z.string(), z.string()) })

/** Encodes an announcement as a lease carries it. */
export function encodeAnnouncement(told: Announcement): string {
  return JSON.stringify(told)
}

/** The living workers of a namespace, kept up to date until `close`. */
export class NatsMembership {
  readonly #bucket: KV
  readonly #members = new Map<string, Member>()
  readonly #pollMs: number
  #stopWatch: () => void = () => undefined
  #timer: NodeJS.Timeout | null = null
  #closed = false
  /** Called after somebody came or went, never for a renewal. */
  onChange: () => void = () => undefined

  private constructor(bucket: KV, pollMs: number) {
    this.#bucket = bucket
    this.#pollMs = pollMs
  }

  /** Opens the list. @param leaseMs how long leases of this namespace last */
  static async open(link: NatsLink, subjects: Subjects, leaseMs: number): Promise<NatsMembership> {
    try {
      const bucket = await new Kvm(link.connection).create(subjects.stream('workers'), { ttl: leaseMs, history: 1 })
      const membership = new NatsMembership(bucket, leaseMs / 3)
      await membership.#poll()
      await membership.#watch()
      membership.#plan()
      return membership
    } catch (error) {
      throw storeError(error)
    }
  }

  /** Those that live, by name. */
  get members(): ReadonlyMap<string, Member> {
    return this.#members
  }

  close(): void {
    this.#closed = true
    this.#stopWatch()
    if (this.#timer !== null) clearTimeout(this.#timer)
  }

  #plan(): void {
    if (this.#closed) return
    this.#timer = setTimeout(() => {
      // A server that does not answer says nothing about anybody.
      void this.#poll()
        .catch(() => undefined)
        .finally(() => this.#plan())
    }, this.#pollMs).unref()
  }

  /** Leases that ran out are told by nobody: they are missing. */
  async #poll(): Promise<void> {
    const found = new Map<string, Member>()
    for await (const key of await this.#bucket.keys()) {
      const member = memberOf(await this.#bucket.get(key))
      if (member !== null) found.set(member.worker, member)
    }
    // A list that a lost connection cut short must not be taken for the whole: whoever is missing is asked for.
    for (const worker of this.#members.keys()) {
      const member = found.has(worker) ? null : memberOf(await this.#bucket.get(worker))
      if (member !== null) found.set(worker, member)
    }
    if (this.#closed) return
    const gone = [...this.#members.keys()].filter((worker) => !found.has(worker))
    const come = [...found.keys()].filter((worker) => !this.#members.has(worker))
    for (const worker of gone) this.#members.delete(worker)
    for (const member of found.values()) this.#members.set(member.worker, member)
    if (gone.length > 0 || come.length > 0) this.onChange()
  }

  async #watch(): Promise<void> {
    const changes = await this.#bucket.watch({ ignoreDeletes: false })
    this.#stopWatch = () => changes.stop()
    void (async () => {
      for await (const entry of changes) this.#take(entry)
    })().catch(() => undefined)
  }

  #take(entry: KvEntry): void {
    if (this.#closed) return
    const member = memberOf(entry)
    const known = this.#members.has(entry.key)
    if (member === null) this.#members.delete(entry.key)
    else this.#members.set(member.worker, member)
    if (known !== (member !== null)) this.onChange()
  }
}

/** The worker of an entry; null for one that gave its lease back, or tells nothing that can be read. */
function memberOf(entry: KvEntry | null): Member | null {
  if (entry === null || entry.operation !== 'PUT') return null
  try {
    const told = announcement.parse(entry.length === 0 ? { crews: {} } : entry.json())
    return { worker: entry.key, revision: entry.revision, ...told }
  } catch {
    return null
  }
}
