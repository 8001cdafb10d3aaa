/**
 * The workers that live: who holds a lease, and what it has to offer.
 *
 * Owns: the list and telling when it changes.
 * Does not own: leases (`nats-lease.ts`), who owns what by them (`partitions.ts`).
 *
 * - NM1 Who takes a lease or gives it back is seen at once; whose lease runs out is looked for when that is, and seen within a
 *   third of its time after that.
 * - NM2 While the server cannot be asked, the list stays as it was: nobody is declared dead by somebody who is cut off.
 * - NM4 The leases of one process are known to be that by their names alone, and a process that gave its last one back did not
 *   crash.
 * - NM5 Who came, or offers more than before, is told of by name: only from such a change nobody else gains anything.
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
  /** Names of the tools that it works on for others. @default none */
  readonly tools?: readonly string[] | undefined
}

/** A worker that lives. */
export interface Member extends Announcement {
  readonly worker: string
  /** Number of its lease. */
  readonly epoch: number
  /** When the lease was taken, in epoch milliseconds of the server. */
  readonly since: number
  /** Number of the first lease of its process. */
  readonly process: number
  /** Number of the last renewal of its lease that was seen here. */
  readonly revision: number
}

const announcement = z.object({
  crews: z.record(z.string(), z.string()),
  tools: z.array(z.string()).optional(),
  epoch: z.int().min(1).optional(),
  since: z.int().optional(),
  process: z.int().min(1).optional(),
})
/** What an entry says of its lease. The one that takes the first lease of a process says nothing: its number is not known yet. */
type LeaseNote = Partial<Pick<Member, 'epoch' | 'since' | 'process'>>
/** How long after a lease has run out it is looked for, and again as long as the server has not noticed. */
const overdueMs = 40
/** Owners that are remembered after they were seen. */
const maxSeen = 10_000

/** Encodes an announcement as a lease carries it. */
export function encodeAnnouncement({ crews, tools }: Announcement, lease: LeaseNote = {}): string {
  return JSON.stringify({ crews, tools, epoch: lease.epoch, since: lease.since, process: lease.process })
}

/**
 * The name of a worker under one lease, as records have it: whoever reads it behind its end, and never saw it, knows by it
 * which process that was. @param process number of its first lease @default this one is the first
 */
export function ownerName(worker: string, epoch: number, process = epoch): string {
  return process === epoch ? `${worker}.${epoch}` : `${worker}.${epoch}-${process}`
}

/** Worker, lease and process of an owner. A name that is none gives an epoch that nobody has. */
export function partsOf(owner: string): Pick<Member, 'worker' | 'epoch' | 'process'> {
  const {
    worker,
    lease,
    first = lease,
  } = /^(?<worker>.+)\.(?<lease>\d{1,15})(?:-(?<first>\d{1,15}))?$/.exec(owner)?.groups ?? {}
  if (worker === undefined) return { worker: owner, epoch: 0, process: 0 }
  return { worker, epoch: Number(lease), process: Number(first) }
}

/** The first owner of the process that an owner belongs to. */
export function processOf(owner: string): string {
  const { worker, process } = partsOf(owner)
  return ownerName(worker, process)
}

/** The living workers of a namespace, kept up to date until `close`. */
export class NatsMembership {
  readonly #link: NatsLink
  readonly #subjects: Subjects
  readonly #bucket: KV
  readonly #members = new Map<string, Member>()
  /** Revisions of the leases that were given back since the list was last asked for. */
  readonly #left = new Map<string, number>()
  /** When each owner was seen last; the one that was seen last comes last. */
  readonly #seen = new Map<string, number>()
  /** Processes that gave their lease back, by their first owner. */
  readonly #ended = new Set<string>()
  readonly #leaseMs: number
  #stopWatch: () => void = () => undefined
  #timer: NodeJS.Timeout | null = null
  #closed = false
  /**
   * Called after somebody came or went, or announces something else, never for a renewal.
   * @param joined names of those who came or offer more than before, when that is all that happened; else null
   */
  onChange: (joined: readonly string[] | null) => void = () => undefined

  private constructor(link: NatsLink, subjects: Subjects, bucket: KV, leaseMs: number) {
    this.#link = link
    this.#subjects = subjects
    this.#bucket = bucket
    this.#leaseMs = leaseMs
  }

  /** Opens the list. @param leaseMs how long leases of this namespace last */
  static async open(link: NatsLink, subjects: Subjects, leaseMs: number): Promise<NatsMembership> {
    try {
      const bucket = await new Kvm(link.connection).create(subjects.stream('workers'), { ttl: leaseMs, history: 1 })
      const membership = new NatsMembership(link, subjects, bucket, leaseMs)
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

  /** When, by the monotonic clock, a renewal of an owner was last seen here; null for never. */
  lastSeen(owner: string): number | null {
    return this.#seen.get(owner) ?? null
  }

  /** Whether a process, by its first owner, gave its lease back. */
  hasEnded(process: string): boolean {
    return this.#ended.has(process)
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
    }, this.#untilLook()).unref()
  }

  /** Milliseconds until the list is looked at again: a third of a lease, or until the next one of those who live runs out. */
  #untilLook(): number {
    const seen = [...this.#members.values()].map(({ worker, epoch, process }) => {
      return this.lastSeen(ownerName(worker, epoch, process)) ?? 0
    })
    const nextEnd = Math.min(...seen) + this.#leaseMs + overdueMs - performance.now()
    return Math.min(this.#leaseMs / 3, Math.max(overdueMs, nextEnd))
  }

  /** Leases that ran out are told by nobody: they are missing. */
  async #poll(): Promise<void> {
    this.#left.clear()
    const listed = await this.#listed()
    const found: Member[] = []
    const gone = new Set([...this.#members.values()].filter(({ worker }) => !listed.has(worker)))
    for (const worker of listed) {
      const entry = await this.#bucket.get(worker)
      const member = memberOf(entry)
      const known = this.#members.get(worker)
      if (member !== null) found.push(member)
      // One that is listed and cannot be had has run out in between: the next list will not have it.
      else if (entry !== null && known !== undefined) gone.add(known)
    }
    if (this.#closed) return
    // What the watch told meanwhile is newer.
    const left = [...gone].map(
      (known) => this.#members.get(known.worker) === known && this.#members.delete(known.worker),
    )
    const put = found.map((member) => ({ member, change: this.#put(member) })).filter(({ change }) => change !== null)
    const isMore = !left.includes(true) && put.every(({ change }) => change === 'more')
    if (left.includes(true) || put.length > 0) this.onChange(isMore ? put.map(({ member }) => member.worker) : null)
  }

  /**
   * Names under which something is stored, in one answer: the client's own list of keys waits for a last one, and for
   * seconds when that runs out before it comes.
   */
  async #listed(): Promise<ReadonlySet<string>> {
    const filter = { subjects_filter: this.#subjects.leases() }
    const { state } = await this.#link.manager.streams.info(`KV_${this.#subjects.stream('workers')}`, filter)
    return new Set(Object.keys(state.subjects ?? {}).map((subject) => subject.slice(subject.lastIndexOf('.') + 1)))
  }

  /** What is new about it: it came, or offers more than before; or something else. Null for nothing but a renewal. */
  #put(member: Member): 'more' | 'other' | null {
    const { worker, epoch, process, revision } = member
    const known = this.#members.get(worker)
    if (revision <= Math.max(known?.revision ?? 0, this.#left.get(worker) ?? 0)) return null
    this.#members.set(worker, member)
    this.#saw(ownerName(worker, epoch, process))
    if (known === undefined) return 'more'
    if (known.epoch !== epoch) return 'other'
    if (encodeAnnouncement(known) === encodeAnnouncement(member)) return null
    return offersAll(member, known) ? 'more' : 'other'
  }

  #saw(owner: string): void {
    this.#seen.delete(owner)
    this.#seen.set(owner, performance.now())
    dropOldest(this.#seen)
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
    if (member === null) this.#leave(entry)
    const change = member !== null ? this.#put(member) : this.#members.delete(entry.key) ? 'other' : null
    if (change !== null) this.onChange(change === 'more' ? [entry.key] : null)
  }

  #leave({ key: worker, revision, operation }: KvEntry): void {
    this.#left.set(worker, revision)
    const known = this.#members.get(worker)
    if (operation === 'PUT' || known === undefined) return
    this.#ended.add(ownerName(worker, known.process))
    dropOldest(this.#ended)
  }
}

/** Keeps the last `maxSeen`. */
function dropOldest(seen: { readonly size: number; keys(): Iterator<string>; delete(key: string): void }): void {
  while (seen.size > maxSeen) seen.delete(seen.keys().next().value as string)
}

/** Whether it has all the code that it had before. */
function offersAll(now: Announcement, before: Announcement): boolean {
  return Object.entries(before.crews).every(([name, version]) => now.crews[name] === version)
}

/** The worker of an entry; null for one that gave its lease back, or tells nothing that can be read. */
export function memberOf(entry: KvEntry | null): Member | null {
  if (entry === null || entry.operation !== 'PUT') return null
  try {
    const {
      epoch: known,
      since,
      process,
      ...told
    } = announcement.parse(entry.length === 0 ? { crews: {} } : entry.json())
    const { key: worker, revision, created } = entry
    const epoch = known ?? revision
    return { ...told, worker, epoch, since: since ?? created.getTime(), process: process ?? epoch, revision }
  } catch {
    return null
  }
}
