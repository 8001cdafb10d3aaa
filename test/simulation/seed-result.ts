/** One seed: what of it may be chosen, and what it came to. */
import type { Violation } from './notes.js'

/** What one seed came to. */
export interface SeedResult {
  readonly seed: number
  readonly commits: number
  readonly faults: number
  /** Model replies that were taken. */
  readonly rounds: number
  readonly delegations: number
  readonly onceCalls: number
  readonly violations: readonly Violation[]
  readonly sometimes: ReadonlySet<string>
  /** Of all that was journalled: the same for the same seed. */
  readonly hash: string
}

/** What of a seed may be chosen. */
export interface SeedOptions {
  /** Called with a line for everything that happens. */
  readonly trace?: (line: string) => void
  /** Workers that share one journal. @default 1: one process that owns its store */
  readonly workers?: number
}
