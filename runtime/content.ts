/**
 * Content: brings the text of conversation entries back from the records and blobs that have it.
 *
 * Owns: loading, and its check against the chain.
 * Does not own: what is kept in memory afterwards (entries keep their text until the shard is unloaded).
 *
 * - CT1 Text that is returned was in the record that the entry names, and that record is in the chain.
 */
import type { ToolCall } from '../machines/index.js'
import type { Value } from './codec.js'
import { type Entry, render } from './conversation.js'
import type { Journal } from './journal.js'
import { checkChain, corrupt, fromRecord } from './record.js'

/** The chat messages of entries, as JSON text. Loads what is missing. @throws TroupeError `JOURNAL_CORRUPT`, `BLOB_MISSING`. */
export async function textsOf(journal: Journal, shard: string, entries: readonly Entry[]): Promise<string[]> {
  // An entry may lose its text while others are loaded: what is returned is what was there, or what was loaded.
  const texts = entries.map((entry) => entry.text)
  const missing = entries.filter((entry) => entry.text === null)
  const loaded = missing.length === 0 ? null : await load(journal, shard, missing)
  return texts.map((text, index) => text ?? loaded!.get(entries[index]!)!)
}

/** The arguments of a tool call: the model's, from its message, unless there are others. @param entries that message */
export async function argumentsOf(
  journal: Journal,
  shard: string,
  call: Pick<ToolCall, 'index' | 'arguments'>,
  entries: readonly Entry[],
): Promise<string> {
  if (call.arguments !== undefined) return call.arguments
  const [text] = await textsOf(journal, shard, entries)
  const message = JSON.parse(text ?? '{}') as { tool_calls?: { function?: { arguments?: string } }[] }
  const written = message.tool_calls?.[call.index]?.function?.arguments ?? ''
  return written.trim() === '' ? '{}' : written
}

/** The values of one commit's envelope. */
export async function valuesAt(journal: Journal, shard: string, sequence: number): Promise<string[]> {
  for await (const record of journal.read(shard, sequence)) {
    const commit = fromRecord(shard, record)[sequence - record.first]
    if (commit === undefined) break
    return Promise.all(commit.envelope.values.map((value) => textOfValue(journal, shard, value)))
  }
  throw corrupt(shard, sequence, 'is missing')
}

/** Text of a value, from its blob when it has one. */
export async function textOfValue(journal: Journal, shard: string, value: Value): Promise<string> {
  if (typeof value === 'string') return value
  return Buffer.from(await journal.getBlob(shard, value.hash)).toString('utf8')
}

async function load(journal: Journal, shard: string, missing: readonly Entry[]): Promise<Map<Entry, string>> {
  const loaded = new Map<Entry, string>()
  const wanted = new Map<number, Entry[]>()
  for (const entry of missing) wanted.set(entry.sequence, [...(wanted.get(entry.sequence) ?? []), entry])
  const first = Math.min(...wanted.keys())
  const last = Math.max(...wanted.keys())
  let previous: Uint8Array | null = first === 1 ? new Uint8Array(32) : null
  // One record before the first wanted one, for its hash.
  for await (const record of journal.read(shard, Math.max(1, first - 1))) {
    if (previous !== null) checkChain(shard, previous, record)
    previous = record.hash
    if (record.first > last) break
    if (!anyWanted(wanted, record.first, record.last)) continue
    for (const commit of fromRecord(shard, record)) {
      for (const entry of wanted.get(commit.sequence) ?? []) {
        const value = commit.envelope.values[entry.index]
        if (value === undefined) throw corrupt(shard, commit.sequence, 'lacks a value that a conversation names')
        entry.text = render(entry.shape, entry.callId, await textOfValue(journal, shard, value))
        loaded.set(entry, entry.text)
      }
      wanted.delete(commit.sequence)
    }
    if (wanted.size === 0) return loaded
  }
  throw corrupt(shard, Math.min(...wanted.keys()), 'is missing')
}

function anyWanted(wanted: ReadonlyMap<number, unknown>, first: number, last: number): boolean {
  for (let sequence = first; sequence <= last; sequence += 1) if (wanted.has(sequence)) return true
  return false
}
