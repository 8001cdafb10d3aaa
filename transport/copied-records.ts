/**
 * Reading a journal by way of the local copy: what is here is given from here, the rest is fetched and kept.
 *
 * Owns: the proof that what is here is what the server has.
 * Does not own: keeping it (`local-copy.ts`), the server's records (`jetstream-journal.ts`).
 *
 * - CPR1 Records from here are given only when their chain ends in the hash of the server's head, or in a record of the
 *   server that follows from the last one here. What does not is dropped.
 * - CPR2 Nothing is asked of the server twice: what proves that the records here are its own goes on from there.
 */
import type { StoredRecord } from '../runtime/journal.js'
import { Recent } from '../runtime/recent.js'
import { follows, type LocalCopy } from './local-copy.js'
import * as rows from './rows.js'
import type { Entry } from './shard-heads.js'

/** Commits of a shard's life of which the chain was proved. */
interface Proved {
  readonly life: string
  readonly from: number
  upTo: number
}

/** Proofs that are remembered: another one is made again. */
const maxProofs = 10_000
/** Records that are held until they are proved: longer chains are read twice. */
const maxHeldBytes = 16 * 1024 * 1024

/** The records of all shards, from here or from the server. */
export class CopiedRecords {
  readonly #copy: LocalCopy
  readonly #server: (shard: string, from: number) => AsyncIterable<StoredRecord>
  readonly #proofs = new Recent<Proved>(maxProofs)

  constructor(copy: LocalCopy, server: (shard: string, from: number) => AsyncIterable<StoredRecord>) {
    this.#copy = copy
    this.#server = server
  }

  /** Of this life of a shard are the records from now on. */
  async enter(shard: string, life: string): Promise<void> {
    if (this.#proofs.get(shard)?.life !== life) this.#proofs.delete(shard)
    await this.#copy.enter(shard, life)
  }

  /** Drops what is here of a shard. */
  async forget(shard: string): Promise<void> {
    this.#proofs.delete(shard)
    await this.#copy.forget(shard)
  }

  /** Keeps a record that the server has. */
  keep(shard: string, record: StoredRecord): void {
    this.#copy.keepRecord(shard, record)
    const proved = this.#proofs.get(shard)
    if (proved?.upTo === record.first - 1) proved.upTo = record.last
  }

  /** Records from the one that contains a sequence on, up to the head. @param life the one that was entered */
  async *read(head: Entry, life: string, from: number): AsyncGenerator<StoredRecord> {
    const { shard, sequence } = head
    if (from > sequence) return
    const server = new Served((next) => this.#server(shard, next))
    let next = from
    for await (const record of this.#sound(head, life, from, server)) {
      yield record
      next = record.last + 1
    }
    if (next > sequence) return
    for await (const record of server.from(next)) {
      this.keep(shard, record)
      yield record
    }
  }

  /** Those here that the server has, too. */
  async *#sound(head: Entry, life: string, from: number, server: Served): AsyncGenerator<StoredRecord> {
    const { shard, sequence } = head
    let upTo = this.#known(head, life, from)
    if (upTo === 0) {
      const first: StoredRecord[] = []
      let bytes = 0
      let last: StoredRecord | null = null
      for await (const record of this.#copy.records(shard, from)) {
        bytes += record.bytes.length
        if (bytes <= maxHeldBytes) first.push(record)
        last = record
      }
      if (last === null || !(await this.#prove(head, life, from, last, server))) return
      yield* first
      upTo = last.last
      from = (first.at(-1)?.last ?? from - 1) + 1
    }
    if (from > upTo) return
    for await (const record of this.#copy.records(shard, from)) {
      if (record.last > Math.min(upTo, sequence)) return
      yield record
      if (record.last === upTo) return
    }
  }

  /** The last commit of what is known to be the server's, from one on; 0 when that is not known. */
  #known({ shard, sequence }: Entry, life: string, from: number): number {
    const known = this.#proofs.get(shard)
    const isKnown = known?.life === life && known.from <= from && known.upTo >= from && known.upTo <= sequence
    return isKnown ? known.upTo : 0
  }

  /** Whether what is here from a commit up to this record is the server's. What is not goes. */
  async #prove(head: Entry, life: string, from: number, last: StoredRecord, server: Served): Promise<boolean> {
    const { shard } = head
    this.#proofs.delete(shard)
    if (!(await isServed(head, last, server))) {
      await this.#copy.forget(shard)
      await this.#copy.enter(shard, life)
      return false
    }
    this.#proofs.set(shard, { life, from, upTo: last.last })
    return true
  }
}

/** Whether a record is the server's: the head ends with it, or the next one follows from it. */
async function isServed({ sequence, hash }: Entry, last: StoredRecord, server: Served): Promise<boolean> {
  if (last.last >= sequence) return last.last === sequence && rows.asBuffer(hash).equals(last.hash)
  const next = await server.peek(last.last + 1)
  return next !== null && follows(next, last)
}

/** The server's records, of which the first was looked at before: it is not fetched again. */
class Served {
  readonly #open: (from: number) => AsyncIterable<StoredRecord>
  #peeked: { readonly from: number; readonly first: StoredRecord; readonly rest: AsyncIterator<StoredRecord> } | null =
    null

  constructor(open: (from: number) => AsyncIterable<StoredRecord>) {
    this.#open = open
  }

  /** The first one from a commit on; null for none. */
  async peek(from: number): Promise<StoredRecord | null> {
    const rest = this.#open(from)[Symbol.asyncIterator]()
    const next = await rest.next()
    if (next.done === true) return null
    this.#peeked = { from, first: next.value, rest }
    return next.value
  }

  async *from(from: number): AsyncGenerator<StoredRecord> {
    const peeked = this.#peeked
    if (peeked?.from === from) yield peeked.first
    yield* peeked?.from === from ? { [Symbol.asyncIterator]: () => peeked.rest } : this.#open(from)
  }
}
