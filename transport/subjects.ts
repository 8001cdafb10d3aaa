/**
 * Subjects: the one place where the name of anything becomes part of a NATS subject.
 *
 * Owns: the subjects of DESIGN 5, what may stand in a token, which partition a shard is in.
 * Does not own: who may use a subject (the server's permissions), what is sent on it.
 *
 * - SU1 Whatever is put in, each part of a subject is one token: no dot, no wildcard, no space, nothing of the protocol.
 * - SU2 A shard is in the same partition for everybody, and in one only.
 */
import { createHash } from 'node:crypto'
import { TroupeError } from '../runtime/errors.js'

/** Partitions of a namespace. Part of the subjects of shards: it cannot be changed later. */
export const partitionCount = 64

const tokenPattern = /^[A-Za-z0-9_-]{1,64}$/

/** The subjects of one namespace. */
export class Subjects {
  readonly #prefix: string
  /** Names of streams and buckets have no dots. */
  readonly #name: string

  /** @throws TroupeError `ID_INVALID` for a namespace that is no token. */
  constructor(namespace: string) {
    token(namespace)
    this.#prefix = `troupe.${namespace}`
    this.#name = `troupe_${namespace}`
  }

  /** The name of a stream or bucket of this namespace. */
  stream(of: 'journal' | 'content' | 'workers'): string {
    return `${this.#name}_${of}`
  }

  /** The journal of a shard. */
  journal(shard: string): string {
    return `${this.#prefix}.journal.${partitionOf(shard)}.${token(shard)}`
  }

  /** The journals of all shards, or of those of a partition. */
  journals(partition?: number): string {
    return partition === undefined ? `${this.#prefix}.journal.>` : `${this.#prefix}.journal.${partition}.*`
  }

  /** The shard of a journal's subject. */
  shardOf(subject: string): string {
    return subject.slice(subject.lastIndexOf('.') + 1)
  }

  /** A part of one piece of what a shard keeps beside its journal: its kind, and a key of that kind. */
  content(shard: string, kind: string, key: string, part = 0): string {
    return `${this.#prefix}.content.${token(shard)}.${token(kind)}.${token(key)}.${part}`
  }

  /** All parts of all pieces of a shard, of those of one kind, or of one. */
  contents(shard?: string, kind?: string, key?: string): string {
    const tokens = [shard, kind, key].filter((each) => each !== undefined).map(token)
    return [`${this.#prefix}.content`, ...tokens, '>'].join('.')
  }

  /** The first parts of all pieces of a kind. */
  pieces(shard: string, kind: string): string {
    return `${this.#prefix}.content.${token(shard)}.${token(kind)}.*.0`
  }
}

/** Where a shard belongs: a number below `partitionCount`. */
export function partitionOf(shard: string): number {
  return createHash('sha256').update(shard).digest().readUInt32BE(0) % partitionCount
}

function token(name: string): string {
  if (!tokenPattern.test(name))
    throw new TroupeError('ID_INVALID', `not one token of a subject: ${JSON.stringify(name)}`)
  return name
}
