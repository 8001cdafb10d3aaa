/**
 * What is given to a decision, and what comes of it.
 *
 * Owns: the shapes, what is collected while one decides, the digest, the names of what a commit makes.
 * Does not own: deciding (`commit.ts`).
 */
import { digestOf } from './codec.js'
import type { Envelope } from './envelope.js'
import type { OutboxRow } from './mail.js'
import type { Message, Scope } from './scope.js'
import type { Effect, Generation, Machines, ShardState } from './state.js'
import { trailOf } from './trail.js'
import type { CustomAction } from './user-actors.js'

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
  /** Actions of users' own, to be run once when this is durable. */
  readonly customs: readonly CustomAction[]
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

/** Collects what one decision leads to. */
export class Decided {
  readonly state: ShardState
  readonly envelope: Envelope
  /** The decisions in order, in words. */
  readonly lines: string[] = []
  readonly effects: Effect[] = []
  readonly cancelled: Effect[] = []
  readonly dispatched: Generation[] = []
  readonly events: DomainEvent[] = []
  readonly letters: OutboxRow[] = []
  readonly finished: string[] = []
  readonly traced: TracedMessage[] = []
  readonly customs: CustomAction[] = []
  timersChanged = false
  #index = 0

  constructor(state: ShardState, envelope: Envelope) {
    this.state = state
    this.envelope = envelope
  }

  /** Names something new: the commit and a number in it. */
  generation(): Generation {
    const generation: Generation = `${this.state.sequence}-${this.#index}`
    this.#index += 1
    return generation
  }

  say(what: string, text: string): void {
    this.lines.push(`${what} ${text}`)
  }

  emit(from: string, event: Message): void {
    this.events.push([from, event])
  }

  /** @param explain whether the decisions themselves are wanted, beside their digest */
  commit(explain: boolean): Commit {
    const { sequence, effects } = this.state
    return {
      sequence,
      envelope: this.envelope,
      digest: digestOf(this.lines.join('\n')),
      trail: trailOf(this.lines),
      effects: this.effects.filter((effect) => effects.has(effect.id)),
      cancelled: this.cancelled,
      dispatched: this.dispatched,
      events: this.events,
      timersChanged: this.timersChanged,
      letters: this.letters,
      finished: this.finished,
      decisions: explain ? this.lines : [],
      messages: this.traced,
      customs: this.customs,
    }
  }
}
