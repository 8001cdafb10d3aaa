/** Ownership among a few workers of one process: who owns everything is said by the test. */
import type { CrewVersion } from '../../runtime/crew-version.js'
import type { Draft } from '../../runtime/envelope.js'
import type { Ownership } from '../../runtime/ownership.js'
import type { Worker } from '../../runtime/worker.js'

/** The workers of a test. */
export class Owners {
  readonly #members = new Map<string, Member>()
  /** Outcomes that were sent after a shard, in order. They stay here until `deliver`. */
  readonly sent: { readonly shard: string; readonly draft: Draft }[] = []
  /** Who of those that live is to own what runs this, when it is not the one that `moveTo` named. */
  rule: ((crew: CrewVersion, living: readonly string[]) => string | null) | null = null
  #current = ''
  #epochs = 0

  /** Somebody new; the first one owns everything. */
  join(name: string): Member {
    const member = new Member(this, `${name}.${(this.#epochs += 1)}`, name)
    this.#members.set(name, member)
    if (this.#current === '') this.#current = name
    return member
  }

  get current(): string {
    return this.#current
  }

  ownerOf(crew: CrewVersion): string | null {
    const living = [...this.#members].filter(([, { alive }]) => alive).map(([name]) => name)
    return this.rule === null ? this.#current : this.rule(crew, living)
  }

  /** Somebody came or went: those who live look. */
  tell(): void {
    for (const member of this.#members.values()) if (member.alive) member.onChange()
  }

  /** From now on this one is to own everything. */
  moveTo(name: string): void {
    this.#current = name
    this.tell()
  }

  /** This one's lease ran out, whether it knows or not. */
  expire(name: string, knows = false): void {
    const member = this.#members.get(name)!
    member.alive = false
    member.knows = knows
  }

  /** This one lost its lease and takes another, under a new name; its process is the same. */
  renew(name: string): void {
    const member = this.#members.get(name)!
    member.alive = true
    member.owner = `${name}.${(this.#epochs += 1)}`
    member.owners.add(member.owner)
    this.tell()
  }

  /** Whose process an owner is or was. */
  processOf(owner: string): Member | undefined {
    return [...this.#members.values()].find(({ owners }) => owners.has(owner))
  }

  byOwner(owner: string): Member | undefined {
    return [...this.#members.values()].find((member) => member.owner === owner)
  }

  byName(name: string): Member | undefined {
    return this.#members.get(name)
  }

  /** Brings what was sent to a worker. */
  async deliver(worker: Worker): Promise<void> {
    for (const { shard, draft } of this.sent.splice(0)) await worker.receive(shard, draft, false)
  }
}

/** One worker's view. */
export class Member implements Ownership {
  readonly #owners: Owners
  readonly #name: string
  owner: string
  /** All its names so far. */
  readonly owners: Set<string>
  worker: Worker | null = null
  alive = true
  /** That its lease ran out. */
  knows = true
  onChange: () => void = () => undefined

  constructor(owners: Owners, owner: string, name: string) {
    this.#owners = owners
    this.owner = owner
    this.owners = new Set([owner])
    this.#name = name
  }

  owns(_shard: string, crew: CrewVersion): boolean {
    return this.lives(this.owner) && this.#owners.ownerOf(crew) === this.#name
  }

  lives(owner: string): boolean {
    const member = this.#owners.byOwner(owner)
    return member !== undefined && (member.alive || (member === this && !this.knows))
  }

  isRunning(owner: string): boolean {
    const member = this.#owners.processOf(owner)
    return member === this || member?.alive === true
  }

  crashOf(owner: string): string | null {
    const member = this.#owners.processOf(owner)
    return member === this ? null : ([...(member?.owners ?? [owner])][0] ?? owner)
  }

  lastSeen(): number | null {
    return null
  }

  async release(shard: string, owner: string): Promise<void> {
    await this.#owners.byOwner(owner)?.worker?.leave(shard)
  }

  async working(executor: string, shard: string, effects: readonly string[]): Promise<readonly string[] | null> {
    return this.#owners.processOf(executor)?.worker?.working(shard, effects) ?? []
  }

  cancel(executor: string, shard: string, effects: readonly string[]): void {
    this.#owners.processOf(executor)?.worker?.cancel(shard, effects)
  }

  async withdraw(): Promise<void> {
    return
  }

  ownerOf(_shard: string, crew: CrewVersion): string | null {
    return this.#owners.ownerOf(crew)
  }

  async assign(_shard: string, _crew: string, worker: string | null): Promise<string> {
    this.#owners.moveTo(worker ?? this.#name)
    return worker ?? this.#name
  }

  async handOver(shard: string, worker: string): Promise<void> {
    await this.#owners.byName(worker)?.worker?.take(shard)
  }

  async mailTaken(): Promise<void> {
    return
  }

  async send(shard: string, draft: Draft): Promise<void> {
    this.#owners.sent.push({ shard, draft })
  }
}
