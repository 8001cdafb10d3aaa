/**
 * What is given to a decision, and what comes of it.
 *
 * Owns: the shapes.
 * Does not own: deciding (`commit.ts`).
 */
import type { Envelope } from './envelope.js'
import type { OutboxRow } from './mail.js'
import type { Message, Scope } from './scope.js'
import type { Effect, Generation, Machines } from './state.js'

/** Something that happened, for whoever watches: where, and what. */
export type DomainEvent = readonly [from: string, event: Message]

/** A message that an actor was given, for whoever traces: which one of its commit made it, null for the envelope. */
export interface TracedMessage {
  readonly from: string
  readonly to: string
  readonly message: Message
  /** Index among the commit's messages of the one that was being taken when it was sent. */
  readonly cause: number | null
}

/** What one envelope led to. */
export interface Commit {
  readonly sequence: number
  readonly envelope: Envelope
  /** SHA-256 over every decision in order. */
  readonly digest: Uint8Array
  /** Two bytes of checksum a decision: tells which one differs. */
  readonly trail: Uint8Array
  /** Effects that were asked for and are still open. */
  readonly effects: readonly Effect[]
  /** Effects that nobody waits for any more. */
  readonly cancelled: readonly Effect[]
  /** `dispatched` records of this commit. */
  readonly dispatched: readonly Generation[]
  readonly events: readonly DomainEvent[]
  readonly timersChanged: boolean
  /** Letters to other shards. */
  readonly letters: readonly OutboxRow[]
  /** Runs that ended. */
  readonly finished: readonly string[]
  /** The decisions in words, for a refused upgrade; only when asked for. */
  readonly decisions: readonly string[]
  /** Every message inside, in the order in which they were sent; only when they are traced. */
  readonly messages: readonly TracedMessage[]
}

/** What `decide` needs beside state and envelope. */
export interface DecideContext {
  readonly scope: Scope
  readonly machines: Machines
  /** Effects of the outcome types that the edge may bring. */
  readonly explain?: boolean
  /** Commits tell their messages. */
  readonly trace?: boolean
}
