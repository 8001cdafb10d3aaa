/**
 * Every promise that a file's header numbers is kept under test: a line such as ` * - D4 An outcome is delivered once …`
 * needs a test whose title begins with `D4`, or a row below that names the title of the test that has it.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'

const root = join(import.meta.dirname, '../..')
const read = (folder: string) =>
  readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ts'))
    .map((file) => ({ file: `${folder}/${file}`, text: readFileSync(join(root, folder, file), 'utf8') }))

/** The promises, by id. */
const promises = ['machines', 'runtime', 'transport', 'actors'].flatMap(read).flatMap(({ file, text }) =>
  [...(/^\/\*\*[\s\S]*?\*\//.exec(text)?.[0] ?? '').matchAll(/^ \* - ([A-Z]{1,3}\d+) (.*)$/gm)].map((match) => ({
    file,
    id: match[1]!,
    promise: match[2]!,
  })),
)

/** Every title of a test or of a group of tests. */
const titles = read('test').flatMap(({ text }) =>
  [...text.matchAll(/\b(?:test|it|describe)(?:\.[a-zA-Z]+(?:\([\s\S]{0,400}?\))?)?\(\s*(['"`])([\s\S]+?)\1/g)].map(
    (match) => match[2]!,
  ),
)

test('invariants: ids are unique over all files', () => {
  const ids = promises.map(({ id }) => id)
  const twice = promises.filter(({ id }) => ids.indexOf(id) !== ids.lastIndexOf(id))
  expect(twice.map(({ id, file }) => `${id} ${file}`)).toEqual([])
  expect(ids.length).toBeGreaterThan(100)
})

/** Promises whose test has another title. A title that is gone fails. */
const elsewhere: Readonly<Record<string, string>> = {
  // redaction and judgement
  RX1: 'redact: no given secret survives, whatever surrounds it',
  RX2: 'redact: a secret that holds another one goes whole, a short one is left',
  RX3: 'redact: takes time in proportion to the text',
  VD1: 'verdict: any call gets one that is JSON-safe, and none goes to a tool that does not fit it',
  VD2: 'arguments: async checks are awaited and transforms do not change the text',
  VD3: 'reply: calls above the limit are refused, the others keep their order',
  VD4: 'arguments: what is told stays within 2 KiB and well-formed',
  // other processes
  C1: 'stale: what a killed owner left behind is replaced by the next one',
  C2: 'place: in the store and its owner’s alone; gone when the store is closed',
  C3: 'crowd: connections that say nothing are bounded, and closing the store ends them',
  C4: 'alive: neither a listening owner nor an idle client keeps its process',
  F1: 'client: a crew that runs there is used from here, events, result, journal and all',
  RM1: 'edited: a crew with another definition than the owner’s is refused with the pid',
  I1: 'owner gone: whoever waits is told with a code that may be retried',
  I2: 'alive: neither a listening owner nor an idle client keeps its process',
  O1: 'crowd: connections that say nothing are bounded, and closing the store ends them',
  O2: 'client: leaving a stream cancels nothing, cancel by signal does, and the journal is the same from both sides',
  P1: 'damaged record: the run is refused, the loss is told, accepted, journalled, and the run goes on',
  P2: 'nothing sound: the crew begins anew, and its numbers go on',
  // the command line
  CF1: 'usage: unknown words, a missing file, a bad id and a missing key are 2',
  CF2: 'crew file: one outside any package, TypeScript or not, gets the package and zod that the command runs from',
  OU1: '--json: CloudEvents with deltas of the first reply, then the result, one object a line',
  OU2: 'pipe: a reader that leaves ends the command quietly, and the run goes on later',
  OU3: 'stray throw: code of the crew that throws outside of a call ends the process in one line; the run goes on',
  PG1: 'answer: stdout has the answer alone, stderr who did what and what it cost',
  PG2: 'answer: stdout has the answer alone, stderr who did what and what it cost',
  CR1: 'second signal: the process ends at once, and the same command goes on',
  CR2: 'exit codes: a failed run is 1, an exhausted budget 3, and both name the command for another run',
  CR3: 'owner killed: who joined its run takes it over',
  // LevelDB
  W2: 'J4 open: a shard of which nothing is left is named by the head file',
  G1: 'close: appends in flight land first',
  G2: 'J5 file size limit: STORE_FULL, reads go on, refresh goes on in a new log',
  LC1: 'J4 content: flipped blobs, chunks, manifests, events and attempts are not given out',
  LC2: 'putSnapshot: a manifest that names a chunk nobody stored is refused',
  LE1: 'acceptLoss: the shard is cut back and goes on from there',
  LE2: 'J6 remove: a tombstone stays, and a new life goes on from it',
  LH1: 'append: a second append of a shard in flight is refused, the first one lands',
  LH2: 'heads: more shards than the cache and the head file hold go on where they were',
  LI1: 'open: shards with something pending are reported, idle and removed ones are not',
  LI2: 'J4 open: an index row that no record proves is JOURNAL_CORRUPT',
  LI3: 'J4 open: a loss that the head file cannot name stops every shard it may be of',
  L1: 'power cut (needs strace): what was not synced is cut off',
  L2: 'power cut (needs strace): what was not synced is cut off',
  L3: 'J4 open: a lost tail is JOURNAL_TRUNCATED for its shard only, until the loss is accepted',
  L4: 'heads: more shards than the cache and the head file hold go on where they were',
  LK1: 'J6 remove: blobs and snapshots go, those of a shard with a like name stay',
  LK2: 'J4 open: a damaged or missing index row is rebuilt from the last record, pending included',
  // the outside
  FE1: 'fetch: an abort rejects also while the connection is being made',
  FE2: 'fetch: a body above the cap is refused, declared or not, and its socket is destroyed',
  FE3: 'fetch: no listener stays on the signal',
  FE4: 'fetch: idle sockets do not keep the process alive',
  FE5: 'fetch: redirects are handed back, not followed',
  M1: 'model port: speaks with the scripted model, tools, faults and all',
  M2: 'model port: the body is joined text, messages byte for byte',
  M3: 'model port: deadlines until headers, content, the next chunk and the end',
  M4: 'model port: a failure never shows a key, and is at most 2 KiB',
  M5: 'model port: a connection that was never made is not billed',
  MF1: 'recorded: error texts get their kind, context window always',
  MF2: 'failure: any status and body is read, in bounded time',
  MF3: 'redaction: keys and whatever looks like one are gone, before the cut',
  MR1: 'reply: ten thousand tool calls and a long text are linear',
  MR2: 'reply: no body makes it throw',
  MR3: 'reply: missing, empty and repeated ids become call_<n>; a name with control tokens is plain in the message',
  MR4: 'reply: cut anywhere it is the same message or a problem, never another message',
  PC1: 'prices: an unknown model, an unknown provider and a gateway of any name have none',
  PC2: 'prices: nonsense usage costs as its nearest sense and never throws',
  PC3: 'prices: an override of a deployment wins over one of its provider, and both over the table',
  PR1: 'model port: a failure never shows a key, and is at most 2 KiB',
  PR2: 'providers: the table is https, or loopback without a key',
  SC1: 'scripted model: a conversation with a tool, whole and streamed, is the same',
  SC2: 'scripted model: what a provider would refuse is refused with 400',
  SM1: 'scripted model: a conversation with a tool, whole and streamed, is the same',
  SM2: 'scripted model: requests are counted by model and logged up to a bound',
  RO1: 'J4 read: a damaged, a missing and a renamed record are JOURNAL_CORRUPT, and stop the shard',
  RO2: 'JC1 blobs and chunks: what was changed in the stream is not given out',
  TR1: 'result: any value gives an outcome',
  TR2: 'result: any string stays within maxBytes and is well-formed',
  TR3: 'failure: a thenable may call back as often as it likes',
  TL1: 'run: options that throw give an outcome',
  TL2: 'cancel: while mayStart is asked nothing starts, also when it then says yes',
  TL3: 'places: a dropped, failed, cancelled or timed out call gives its place back',
  TL4: 'places: a flood is served in order, never above the cap',
  TL5: 'progress: values are copied, small and at most 64 a second',
}

test('invariants: each is named by a test', () => {
  const named = new Set(titles.flatMap((title) => title.match(/\b[A-Z]{1,3}\d+\b/g) ?? []))
  const isNamed = (id: string) => named.has(id) || titles.includes(elsewhere[id] ?? '')
  const missing = promises.filter(({ id }) => !isNamed(id))
  expect(missing.map(({ id, file, promise }) => `${file} ${id} ${promise}`)).toEqual([])
})

test('invariants: the table names only tests and promises that are there', () => {
  const ids = new Set(promises.map(({ id }) => id))
  const rows = Object.entries(elsewhere)
  expect(rows.filter(([id, title]) => !ids.has(id) || !titles.includes(title))).toEqual([])
})
