/**
 * The survey port: what is told of a namespace of workers to whoever looks after it.
 *
 * Owns: the shapes.
 * Does not own: finding it out (`transport/nats-survey.ts`), how it reads (`cli/ps.ts`).
 */
import type { Durability, ShardHead } from './journal.js'

/** A worker that lives. */
export interface WorkerInfo {
  readonly worker: string
  /** Number of its lease. */
  readonly epoch: number
  /** Epoch milliseconds when it took that lease. */
  readonly since: number
  /** Names of the crews whose code it has, with the versions of their code. None for one that leaves. */
  readonly crews: Readonly<Record<string, string>>
  /** Names of the remote tools that it works on; none for one that runs crews. */
  readonly tools: readonly string[]
  /** Partitions that fall to it, of 64, of crews in the versions that it has; those of different crews count once. */
  readonly partitions: number
}

/** What workers share. */
export interface ClusterInfo {
  /** Version of the server. */
  readonly server: string
  /** What an acknowledged step survives. */
  readonly durability: Durability
  /** Copies of the journal. */
  readonly replicas: number
  /** Letters that no crew takes, and that were not dropped. */
  readonly refused: number
  readonly workers: readonly WorkerInfo[]
}

/** Where a crew is, and what waits for it. */
export interface CrewPlace {
  /** Name of the worker that is to have it; null when none has its code. */
  readonly owner: string | null
  /** Letters that are stored and not taken. */
  readonly letters: number
  /** How long the oldest of them has waited; null for none, and when very many crews have some. */
  readonly lagMs: number | null
  /**
   * How far the event stream is behind the journal: commits from the last one whose events are stored to the last one that
   * has any. Null when it is not known, as with very many crews.
   */
  readonly eventsBehind: number | null
}

/** What a process that hands over still has. */
export interface DrainProgress {
  /** Name of the worker; null for the owner of a store. */
  readonly worker: string | null
  /** Crews in its memory. */
  readonly crews: number
  /** Calls of models and tools that run there. */
  readonly calls: number
}

/** Looks at a namespace. Costs a few requests, however many crews there are: no journal is read. */
export interface Survey {
  cluster(): Promise<ClusterInfo>
  /** How things are now, by crew. @param shard the only one that will be asked about @default any */
  places(shard?: string): Promise<(head: ShardHead) => CrewPlace>
}
