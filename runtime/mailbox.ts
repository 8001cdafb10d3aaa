/**
 * The mailbox of a shard: what waits in it, and how much may.
 *
 * Owns: the shapes and the bounds.
 * Does not own: taking things out of it (`shard.ts`).
 */
import type { Commit } from './commit.js'
import type { Draft } from './envelope.js'
import type { TroupeError } from './errors.js'
import type { JournalRecord } from './journal.js'

/** New work in a mailbox. */
export const maxMailbox = 1_000
export const maxMailboxBytes = 16 * 1_048_576

/** An envelope that waits, and whoever waits for what becomes of it. */
export interface Item {
  readonly draft: Draft
  readonly bytes: number
  /** New work counts against the bounds. */
  readonly work: boolean
  readonly resolve: (commit: Commit) => void
  readonly reject: (error: TroupeError) => void
}

/** A record on its way, and what it is made of. */
export interface Attempt {
  readonly record: JournalRecord
  readonly items: readonly Item[]
  readonly commits: readonly Commit[]
}
