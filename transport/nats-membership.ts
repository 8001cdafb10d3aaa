/**
 * The workers that live: who holds a lease, and what it has to offer.
 *
 * Owns: the list and telling when it changes.
 * Does not own: leases (`nats-lease.ts`), who owns what by them (`partitions.ts`).
 *
 * - NM1 Who takes a lease or gives it back is seen at once; whose lease runs out is seen within a third of its time.
 * - NM2 While the server cannot be asked, the list stays as it was: nobody is declared dead by somebody who is cut off.
 * - NM3 Another lease of a name and another announcement are a change, a mere renewal is none, and news never go back.
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
  /** Number of its lease. */
  readonly epoch: number
  /** Number of the last renewal of its lease that was seen here. */
  readonly revision: number
}

const announcement = z.object({ crews: z.record(z.string(), z.string()), epoch: z.int().min(1).optional() })
/** Owners that are remembered after they were seen. */
const maxSeen = 10_000

/** Encodes an announcement as a lease carries it. @param epoch the lease's number; the entry that takes it has none yet */
export function encodeAnnouncement({ crews }: Announcement, epoch?: number): string {
  return JSON.stringify(epoch === undefined ? { crews } : { crews, epoch })
}

/** The name of a worker under one lease, as records have it. */
export function ownerName(worker: string, epoch: number): string {
  return `${worker}.${epoch}`
}

/** The living workers of a namespace, kept up to date until `close`. */
export class NatsMembership {
  readonly #bucket: KV
  readonly #members = new Map<string, Member>()
  /** Revisions of the leases that were given back since the list was last asked for. */
  readonly #left = new Map<string, number>()
  /** When each owner was seen last, in epoch milliseconds; the one that was seen last comes last. */
  readonly #seen = new Map<string, number>()
  readonly #pollMs: number
  #stopWatch: () => void = () => undefined
  #timer: NodeJS.Timeout | null = null
  #closed = false
  /** Called after somebody came or went, or announces something else, never for a renewal. */
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

  /** When, by the monotonic clock, a renewal of an owner, `<worker>.<epoch>`, was last seen here; null for never. */
  lastSeen(owner: string): number | null {
    return this.#seen.get(owner) ?? null
  }

  /** Nothing is told any more. */
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
    this.#left.clear()
    const found = new Map<string, Member>()
    for await (const key of await this.#bucket.keys()) {
      const member = memberOf(await this.#bucket.get(key))
      if (member !== null) found.set(member.worker, member)
    }
    // A list that a lost connection cut short must not be taken for the whole: whoever is missing is asked for.
    const gone = new Set<Member>()
    for (const known of this.#members.values()) {
      const member = found.get(known.worker) ?? memberOf(await this.#bucket.get(known.worker))
      if (member === null) gone.add(known)
      else found.set(member.worker, member)
    }
    if (this.#closed) return
    // What the watch told meanwhile is newer.
    const changes = [
      ...[...gone].map((known) => this.#members.get(known.worker) === known && this.#members.delete(known.worker)),
      ...[...found.values()].map((member) => this.#put(member)),
    ]
    if (changes.includes(true)) this.onChange()
  }

  /** Whether it is news, and more than a renewal. */
  #put(member: Member): boolean {
    const { worker, epoch, revision, crews } = member
    const known = this.#members.get(worker)
    if (revision <= Math.max(known?.revision ?? 0, this.#left.get(worker) ?? 0)) return false
    this.#members.set(worker, member)
    this.#saw(ownerName(worker, epoch))
    return known?.epoch !== epoch || JSON.stringify(known.crews) !== JSON.stringify(crews)
  }

  #saw(owner: string): void {
    this.#seen.delete(owner)
    this.#seen.set(owner, performance.now())
    for (const oldest of this.#seen.keys()) {
      if (this.#seen.size <= maxSeen) return
      this.#seen.delete(oldest)
    }
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
    if (member === null) this.#left.set(entry.key, entry.revision)
    if (member === null ? this.#members.delete(entry.key) : this.#put(member)) this.onChange()
  }
}

/** The worker of an entry; null for one that gave its lease back, or tells nothing that can be read. */
export function memberOf(entry: KvEntry | null): Member | null {
  if (entry === null || entry.operation !== 'PUT') return null
  try {
    const { crews, epoch } = announcement.parse(entry.length === 0 ? { crews: {} } : entry.json())
    return { worker: entry.key, epoch: epoch ?? entry.revision, revision: entry.revision, crews }
  } catch {
    return null
  }
}
