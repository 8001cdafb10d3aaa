/**
 * Circuit breakers in memory: they are gone with whoever holds this, and shared by whoever is given it.
 */
import type { StoredBreaker } from '../machines/index.js'
import type { BreakerEntry, BreakerStore } from '../runtime/breakers.js'

/** A store of breakers in memory. */
export class MemoryBreakers implements BreakerStore {
  readonly #entries: Map<string, BreakerEntry>
  readonly #watchers = new Set<Parameters<BreakerStore['watch']>[0]>()

  /** @param entries what it holds at first */
  constructor(entries: ReadonlyMap<string, BreakerEntry> = new Map()) {
    this.#entries = new Map(entries)
  }

  load(target: string): Promise<BreakerEntry | null> {
    return Promise.resolve(this.#entries.get(target) ?? null)
  }

  save(target: string, breaker: StoredBreaker, revision: number): Promise<number | null> {
    if ((this.#entries.get(target)?.revision ?? 0) !== revision) return Promise.resolve(null)
    const entry = { breaker, revision: revision + 1 }
    this.#entries.set(target, entry)
    for (const told of [...this.#watchers]) told(target, entry)
    return Promise.resolve(entry.revision)
  }

  all(): Promise<ReadonlyMap<string, BreakerEntry>> {
    return Promise.resolve(new Map(this.#entries))
  }

  watch(told: (target: string, entry: BreakerEntry) => void): () => void {
    this.#watchers.add(told)
    return () => void this.#watchers.delete(told)
  }

  /** Everything that is stored. */
  get entries(): ReadonlyMap<string, BreakerEntry> {
    return this.#entries
  }
}
